"""The chosen run while it goes on and after: status, progress, stop, and the curves of all arms and seeds."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, launch, source, steer, store
from panels.wording import STATUS, humanised, number, plain, setting, span

from claimlab import figures, ledger, verbs
from claimlab.study import Study

EVERY = 1.0
SHOWN = 2
AT_MOST = 6
HEIGHT = 340


def panel(study: Study, run: dict[str, Any]) -> None:
    """Draw the run; while it is alive this part of the page renews itself, and the whole page once it has ended."""
    going = run["status"] not in ledger.ENDED
    st.fragment(_draw, run_every=EVERY if going else None, key="live")(study, run["id"], going)


def _draw(study: Study, run: str, going: bool) -> None:
    with store.guarded():
        book = store.ledger()
        if going:
            launch.settle(book)
            book.reap(store.SILENCE)
        row = book.run(run)
        if going and row["status"] in ledger.ENDED:
            st.rerun()
        _status(row)
        events = book.events(run)
        table, mark = _table(row, events)
        marks = [e for e in events if e["kind"] in (*verbs.CHANGES, "rollback", "fork", "diverged")]
        if going:
            steer.panel(study, row, sorted(table["arm"].unique()))
    _charts(study, row, table, (mark, len(marks), st.context.theme.type), marks)


def _status(row: dict[str, Any]) -> None:
    """The status in words, with how far the run is, how long it took, and why it ended if not by itself."""
    done, total, now = row["done"] or 0, row["total"] or 0, time.time()
    facts = [f"{STATUS[row['status']]} **{row['status']}**", f"{row['profile']} profile", f"n = {len(row['seeds'])} seeds"]
    if row["control"]:
        facts.append("negative control")
    if row["status"] in ledger.ENDED:
        facts.append(span((row["ended"] or now) - row["started"]))
        st.markdown(" · ".join(facts))
        if row["reason"]:
            kind = st.info if row["status"] == "stopped" else st.error
            kind(plain(row["reason"]), title=f"This run {'was' if row['status'] in ('stopped', 'lost') else 'has'} {row['status']}; "
                 "what it recorded is kept")  # fmt: skip
        return
    st.markdown(" · ".join(facts))
    share = min(1.0, done / total) if total else 0.0
    text = f"step {done:,} of {total:,} of all arms" if total else "starting the process; the first points come in a few seconds"
    if 0.02 < share < 1:
        text += f", about {span((now - row['started']) * (1 - share) / share)} left"
    elif share == 1:
        text += ", judging and drawing figures"
    st.progress(share, text=text)
    silent = now - (row["heartbeat"] or now)
    st.caption(f"Data as of {time.strftime('%H:%M:%S')}" + (f"; no sign of life for {span(silent)}" if silent > 3 else ""))


# ---- points


def _table(row: dict[str, Any], events: list[dict[str, Any]]) -> tuple[pd.DataFrame, Any]:
    """The run's points so far that stand, and a mark that changes only with them. New ones are added to those read before."""
    if row["status"] in ledger.ENDED:
        return closed(row["id"], row["ended"], store.ledger().url), row["ended"]
    kept = st.session_state.get("points")
    if kept is None or kept["run"] != row["id"]:
        kept = {"run": row["id"], "cursor": 0, "table": pd.DataFrame(columns=["id", *ledger.COLUMNS])}
    rows, cursor = store.ledger().points_since(row["id"], kept["cursor"])
    if rows:
        new = pd.DataFrame(rows, columns=["id", *ledger.COLUMNS]).astype({"value": "float64"})
        table = pd.concat([kept["table"], new], ignore_index=True) if len(kept["table"]) else new
        kept = {"run": row["id"], "cursor": cursor, "table": table}
    st.session_state["points"] = kept
    table, undone = kept["table"], [e["payload"] for e in events if e["kind"] == "rollback"]
    for back in undone:
        reached = table["arm"].map(back["to"]).fillna(-1)
        table = table[(table["id"] > back["cursor"]) | (table["step"] <= reached)]
    return table, (kept["cursor"], len(undone))


@st.cache_data(max_entries=8, show_spinner=False)
def closed(run: str, ended: float, url: str) -> pd.DataFrame:
    """The whole table of a run that has ended."""
    return store.ledger().table(run)


# ---- curves


def _charts(study: Study, row: dict[str, Any], table: pd.DataFrame, mark: tuple, events: list[dict]) -> None:
    names = _ordered(study, charts.curves(table))
    if not names:
        if row["status"] in ledger.ENDED:
            st.caption("This run recorded no curves.")
        else:
            st.skeleton(height=HEIGHT)
        return
    chosen = st.pills("Curves", names, selection_mode="multi", default=names[:SHOWN], key=f"{study.slug}-curves", wrap=True,
                      format_func=humanised, persist_state="session")  # fmt: skip
    columns = st.columns(2) if len(chosen or []) > 1 else [st.container()]
    for place, name in enumerate((chosen or [])[:AT_MOST]):
        with columns[place % len(columns)]:
            figure, title = _figure(study, row["id"], table, name, mark, events)
            charts.show(
                figure,
                key=f"curve-{name}",
                title=title,
                margin=14,
                alt=f"{humanised(name)} of every arm over the optimiser steps",
            )


def _ordered(study: Study, names: list[str]) -> list[str]:
    judged = [c.metric for c in study.claims]
    return sorted(names, key=lambda n: (judged.index(n) if n in judged else len(judged), "loss" in n))


def _figure(study: Study, run: str, table: pd.DataFrame, metric: str, mark: tuple, events: list[dict]) -> tuple[go.Figure, str]:
    """The chart of one metric; drawn anew only if points or interventions have come since the last time."""
    drawn = st.session_state.setdefault("drawn", {})
    if drawn.get("run") != run:
        drawn.clear()
        drawn["run"] = run
    if drawn.get(metric, (None,))[0] != mark:
        rows, palette = charts.thinned(table, metric), source.palette(study, table)
        figure = figures.curve(rows, metric, title="", y_title=humanised(metric), palette=palette)
        _marks(figure, [e for e in events if e["arm"] in set(rows["arm"])], palette)
        drawn[metric] = (mark, charts.legend_below(figure, HEIGHT), sentence(study, table, metric))
    return drawn[metric][1:]


def _marks(figure: go.Figure, events: list[dict[str, Any]], palette: dict[str, str]) -> None:
    """A dotted line in the arm's colour where something happened to it; what met several arms is said once."""
    told: set[str] = set()
    for event in sorted(events, key=lambda e: e["step"]):
        text = mark_text(event)
        colour = palette.get(event["arm"], figures.INK)
        label = {} if text in told else {"annotation_text": text, "annotation_font_size": 11, "annotation_position": "top left"}
        figure.add_vline(x=event["step"], line={"dash": "dot", "width": 1.2, "color": colour}, **label)
        told.add(text)


def mark_text(event: dict[str, Any]) -> str:
    """What happened at a step, for the curve."""
    payload = event["payload"]
    if event["kind"] == "set":
        return f"{payload['name']} {setting(payload['old'])} → {setting(payload['new'])}"
    if event["kind"] == "diverged":
        return f"seed {event['seed']} of {event['arm']} diverged"
    return f"{event['kind']} {payload.get('layer', '')}"


def sentence(study: Study, table: pd.DataFrame, metric: str) -> str:
    """What one sees: where the method stands against its baseline at the last step that both have reached."""
    rows = table[table["metric"] == metric]
    pairs = [(c.arm, c.baseline) for c in study.claims if c.baseline]
    pairs.sort(key=lambda pair: not any(c.metric == metric and (c.arm, c.baseline) == pair for c in study.claims))
    for arm, baseline in pairs:
        one, other = (rows[rows["arm"] == name] for name in (arm, baseline))
        common = set(one["step"]) & set(other["step"])
        if not common:
            continue
        step = max(common)
        a, b = (part.loc[part["step"] == step, "value"] for part in (one, other))
        gap = a.mean() - b.mean()
        where = "level with" if gap == 0 else f"{number(abs(gap))} {'above' if gap > 0 else 'below'}"
        if gap != gap:
            return f"{humanised(metric)}: {arm} or {baseline} gave no number at step {step:,}"
        return f"{arm} is {where} {baseline} in {humanised(metric)} at step {step:,} (n = {min(len(a), len(b))})"
    last = rows[rows["step"] == rows["step"].max()]
    return f"{humanised(metric)} is {number(last['value'].mean())} at step {int(last['step'].max()):,} (n = {last['seed'].nunique()})"
