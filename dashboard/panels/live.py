"""The chosen run while it goes on and after: status, progress, steering, and the curves of all arms and seeds."""

from __future__ import annotations

import html
import math
import threading
import time
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, launch, looks, source, steer, store, views
from panels.wording import STATUS, humanised, number, plain, setting, span

from claimlab import figures, ledger, verbs
from claimlab.study import Study

EVERY = 1.0
SHOWN = 2
AT_MOST = 6
CLOSE = 0.3  # of the axis: what happens nearer than this is named together
READ = 16  # runs that go on whose points are kept
AGE = 0.8  # seconds for which what has been read for one viewer is shown to others as well
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
        status(row)
        events = book.events(run)
        table, mark = points(row, events)
        if going:
            steer.panel(study, row, sorted(table["arm"].unique()), events)
    looks.panel(study, events)
    scene(study, row, table, mark, events)


def status(row: dict[str, Any], rate: float = 0.0) -> None:
    """The status in words, with how far the run is, how long it took, and why it ended if not by itself.

    `rate` is in steps a second, where it is known; else the time that is left is taken from the whole run so far.
    """
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
    if row["status"] == "paused":
        pass
    elif rate and share < 1:
        text += f", about {span((total - done) / rate)} left"
    elif 0.02 < share < 1:
        text += f", about {span((now - row['started']) * (1 - share) / share)} left"
    elif share == 1:
        text += ", judging and drawing figures"
    st.progress(share, text=text)
    silent = now - (row["heartbeat"] or now)
    st.caption(f"Data as of {time.strftime('%H:%M:%S')}" + (f"; no sign of life for {span(silent)}" if silent > 3 else ""))


# ---- points


def points(row: dict[str, Any], events: list[dict[str, Any]]) -> tuple[pd.DataFrame, Any]:
    """The run's points so far that stand, and a mark that changes only with them. New ones are added to those read before."""
    if row["status"] in ledger.ENDED:
        return closed(row["id"], row["ended"], store.ledger().url), row["ended"]
    table, cursor = _read(row["id"], store.ledger().url).renewed()
    undone = [e["payload"] for e in events if e["kind"] == "rollback"]
    for back in undone:
        reached = table["arm"].map(back["to"]).fillna(-1)
        table = table[(table["id"] > back["cursor"]) | (table["step"] <= reached)]
    return table, (cursor, len(undone))


class _Points:
    """The points of a run that goes on, read once for all who look at it at about the same time."""

    def __init__(self, run: str):
        self.run, self.lock, self.at = run, threading.Lock(), -math.inf
        self.cursor, self.table = 0, pd.DataFrame(columns=["id", *ledger.COLUMNS])

    def renewed(self) -> tuple[pd.DataFrame, int]:
        """All points so far, at most AGE seconds old, and the cursor up to which they go."""
        with self.lock:
            if time.monotonic() - self.at >= AGE:
                rows, self.cursor = store.ledger().points_since(self.run, self.cursor)
                if rows:
                    new = pd.DataFrame(rows, columns=["id", *ledger.COLUMNS]).astype({"value": "float64"})
                    self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new
                self.at = time.monotonic()
            return self.table, self.cursor


@st.cache_resource(max_entries=READ, show_spinner=False)
def _read(run: str, url: str) -> _Points:
    return _Points(run)


@st.cache_data(max_entries=8, show_spinner=False)
def closed(run: str, ended: float, url: str) -> pd.DataFrame:
    """The whole table of a run that has ended."""
    return store.ledger().table(run)


# ---- curves


def scene(study: Study, row: dict[str, Any], table: pd.DataFrame, mark: Any, events: list[dict]) -> list[str]:
    """The curves, and beside them on request a picture of one network as it learns; the names of all curves."""
    if not study.views or table.empty:
        return curves(study, row, table, mark, events)
    going = row["status"] not in ledger.ENDED
    if not st.toggle("Watch a network", going, key=f"{study.slug}-watch-{going}", persist_state="session"):
        return curves(study, row, table, mark, events)
    left, right = st.columns([3, 2])
    with left:
        names = curves(study, row, table, mark, events, columns=1)
    with right:
        views.panel(study, row, list(table["arm"].unique()))
    return names


def curves(study: Study, row: dict[str, Any], table: pd.DataFrame, mark: Any, events: list[dict], columns: int = 2) -> list[str]:
    """Draw the curves that the reader has picked, and return the names of all there are, judged ones first."""
    names = ordered(study, charts.curves(table))
    if not names:
        if row["status"] in ledger.ENDED:
            st.caption("This run recorded no curves.")
        else:
            st.skeleton(height=HEIGHT)
        return []
    happened = [e for e in events if e["kind"] in (*verbs.CHANGES, "rollback", "fork", "diverged")]
    mark = (mark, len(happened), st.context.theme.type)
    chosen = st.pills("Curves", names, selection_mode="multi", default=names[:SHOWN], key=f"{study.slug}-curves", wrap=True,
                      format_func=humanised, persist_state="session")  # fmt: skip
    places = st.columns(columns) if min(columns, len(chosen or [])) > 1 else [st.container()]
    for place, name in enumerate((chosen or [])[:AT_MOST]):
        with places[place % len(places)]:
            figure, title = _figure(row["id"], name, mark, study, table, happened)
            alt = f"{humanised(name)} of every arm over the optimiser steps: {title}"
            charts.show(figure, key=f"curve-{name}", title=title, alt=alt)
    return names


def ordered(study: Study, names: list[str]) -> list[str]:
    judged = [c.metric for c in study.claims]
    return sorted(names, key=lambda n: (judged.index(n) if n in judged else len(judged), "loss" in n))


@st.cache_resource(max_entries=64, show_spinner=False)
def _figure(run: str, metric: str, mark: tuple, _study: Study, _table: pd.DataFrame, _events: list[dict]) -> tuple[charts.Drawn, str]:
    """The chart of one metric, for all who look; drawn anew only if points or interventions have come since the last time."""
    rows, palette = charts.thinned(_table, metric), source.palette(_study, _table)
    figure = figures.curve(rows, metric, title="", y_title=humanised(metric), palette=palette)
    _marks(figure, rows, [e for e in _events if e["arm"] in set(rows["arm"])], palette)
    _told(figure, rows, _events, palette)
    return charts.Drawn(charts.legend_below(figure, HEIGHT), margin=14), sentence(_study, _table, metric)


def _marks(figure: go.Figure, rows: pd.DataFrame, events: list[dict[str, Any]], palette: dict[str, str]) -> None:
    """A dotted line in the arm's colour where something happened to it; of what stands close together the first is named."""
    first, last = rows["step"].min(), rows["step"].max()
    told: dict[str, dict[str, Any]] = {}
    for event in sorted(events, key=lambda e: e["step"]):
        text = mark_text(event)
        figure.add_vline(x=event["step"], line={"dash": "dot", "width": 1.2, "color": palette.get(event["arm"], figures.INK)})
        if text in told:
            continue
        near = [t for t in told.values() if "step" in t and event["step"] - t["step"] < CLOSE * (last - first)]
        told[text] = {} if near else {"step": event["step"], "text": text, "more": 0}
        if near:
            near[-1]["more"] += 1
    for one in (t for t in told.values() if "step" in t):
        at_left = one["step"] - first < CLOSE * (last - first)
        figure.add_annotation(
            x=one["step"], y=1, yref="y domain", yanchor="top", xanchor="left" if at_left else "right", showarrow=False, font_size=11,
            text=html.escape(one["text"]) + (f" and {one['more']} more" if one["more"] else ""),
        )  # fmt: skip


def _told(figure: go.Figure, rows: pd.DataFrame, events: list[dict[str, Any]], palette: dict[str, str]) -> None:
    """A diamond on the arm's mean where something happened; pointing at it tells what, old and new value, who and when."""
    for arm, part in rows.groupby("arm", sort=False):
        here = [e for e in events if e["arm"] == arm]
        mean = part.groupby("step")["value"].mean().dropna()
        if not here or mean.empty:
            continue
        heights = np.interp([e["step"] for e in here], mean.index.to_numpy(dtype=float), mean.to_numpy())
        figure.add_scatter(
            x=[e["step"] for e in here], y=heights, mode="markers", showlegend=False, name="what happened",
            marker={"symbol": "diamond", "size": 10, "color": palette.get(arm, figures.INK), "line": {"width": 1, "color": "#ffffff"}},
            text=[happening(e) for e in here], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip


def happening(event: dict[str, Any]) -> str:
    """One event in words: what, to which arm, at which step, by whom and when."""
    who, seed = event["payload"].get("by") or "", event["seed"]
    met = f"{event['arm'] or 'all arms'}" + (f", seed {seed}" if seed is not None and event["kind"] != "diverged" else "")
    at = f"step {event['step']:,}, " if event["step"] is not None else ""
    told = f"{mark_text(event)} · {met} · {at}{time.strftime('%H:%M:%S', time.localtime(event['time']))}"
    return html.escape(told + (f" · {who}" if who else ""))


def mark_text(event: dict[str, Any]) -> str:
    """What happened at a step, for the curve."""
    payload = event["payload"]
    if event["kind"] == "set":
        return f"{payload['name']} {setting(payload['old'])} → {setting(payload['new'])}"
    if event["kind"] == "diverged":
        return f"seed {event['seed']} of {event['arm']} diverged"
    return f"{event['kind']} {payload.get('layer', '')}".strip()


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
        level = abs(gap) <= 1e-6 * max(abs(a.mean()), abs(b.mean()))
        where = "level with" if level else f"{number(abs(gap))} {'above' if gap > 0 else 'below'}"
        if gap != gap:
            return f"{humanised(metric)}: {arm} or {baseline} gave no number at step {step:,}"
        return f"{arm} is {where} {baseline} in {humanised(metric)} at step {step:,} (n = {min(a.count(), b.count())})"
    last = rows[rows["step"] == rows["step"].max()]
    return f"{humanised(metric)} is {number(last['value'].mean())} at step {int(last['step'].max()):,} (n = {last['seed'].nunique()})"
