"""The chosen run while it goes on and after: status, progress, steering, and the curves of all arms and seeds."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, glance, lease, looks, source, steer, store, views
from panels.wording import STATUS, humanised, number, plain, setting, span

from claimlab import figures, ledger, verbs
from claimlab.study import Study

EVERY = 1.0
OFFER = 15.0  # seconds after which further arms and curves are offered
PICKED = "picked"  # of the session: the curves, and the picture of a network or None
SHOWN = 2
AT_MOST = 6
CLOSE = 0.3  # of the axis: what happens nearer than this is named together
HEIGHT = 340


def panel(study: Study, run: str) -> None:
    """Draw the run. While it is alive, status and curves renew themselves; what can be pressed is drawn anew only when it changes,
    and what can be picked now and then.

    Most of a tick's cost is in its widgets, so that the part that renews itself has none.
    """
    head = st.container()
    with store.guarded():
        seen = glance.at(run)  # a moment old perhaps: what is drawn from it has to renew itself
        going = seen.row["status"] not in ledger.ENDED
        if going:
            steer.panel(study, seen)
        answers = st.container()
        st.fragment(_toolbar, run_every=OFFER if going else None, key="toolbar")(study, run)
        st.fragment(_draw, run_every=EVERY if going else None, key="live")(study, run, going, (head, answers), _shape(seen))


def _toolbar(study: Study, run: str) -> None:
    """Lets the reader pick curves, and a picture of a network beside them, if any."""
    picked, choice = [], None
    with store.guarded():
        seen = glance.at(run)
        if names := ordered(study, seen.curves):
            with st.container(horizontal=True, vertical_alignment="bottom"):
                picked = pills(study, names, _picked)
                if study.views and watches(study, seen.row, _picked):
                    with st.popover("Which network", icon=":material/visibility:", key="which"):
                        choice = views.choose(study, seen, _picked)
    st.session_state[PICKED] = picked, choice


def _picked() -> None:
    """Draw what has been picked without delay, and nothing else."""
    st.rerun(["toolbar", "live"])


def _shape(seen: glance.Glance) -> tuple:
    """What the buttons of the page hang on; when it has changed the page is drawn anew as a whole."""
    asked = [c["answered"] for c in seen.commands]
    return seen.row["status"], seen.row["seeds"], bool(seen.curves), seen.condition.undoable, lease.driver(seen.events), asked


def _draw(study: Study, run: str, going: bool, places: tuple, shape: tuple) -> None:
    (head, answers), (picked, choice) = places, st.session_state[PICKED]
    with store.guarded():
        if going:
            glance.settled()
        seen = glance.at(run)
        if going and _shape(seen) != shape:
            st.rerun()
        with head:
            status(seen.row)
        if going:
            with answers:
                steer.answers(seen)
    looks.panel(study, seen.events)
    if choice is None:
        curves(study, seen, picked)
    else:
        left, right = st.columns([3, 2])
        with left:
            curves(study, seen, picked, columns=1)
        with right, st.container(key="picture"):
            views.show(seen.row, choice)


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
    silent = now - (row["heartbeat"] or now)
    fresh = f"Data as of {time.strftime('%H:%M:%S')}" + (f"; no sign of life for {span(silent)}" if silent > 3 else "")
    st.markdown(f"{' · '.join(facts)}  \n:small[:gray[{fresh}]]")
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


# ---- curves


def scene(study: Study, seen: glance.Glance) -> list[str]:
    """All in one part of a page: the choice of curves and the curves, and beside them on request a picture of one network as it
    learns; the names of all curves, judged ones first."""
    names = ordered(study, seen.curves)
    watched = bool(study.views and seen.arms) and watches(study, seen.row)
    left, right = st.columns([3, 2]) if watched else (st.container(), None)
    with left:
        curves(study, seen, pills(study, names) if names else [], columns=1 if watched else 2)
    if watched:
        with right:
            views.panel(study, seen)
    return names


def watches(study: Study, row: dict[str, Any], changed: Callable[[], None] | None = None) -> bool:
    """Whether the reader wants to see a network; while the run goes on that is taken for granted."""
    going = row["status"] not in ledger.ENDED
    return st.toggle("Watch a network", going, key=f"{study.slug}-watch-{going}", persist_state="session", on_change=changed)


def pills(study: Study, names: list[str], changed: Callable[[], None] | None = None) -> list[str]:
    """The curves that the reader has picked; `changed` is called when that changes."""
    chosen = st.pills("Curves", names, selection_mode="multi", default=names[:SHOWN], key=f"{study.slug}-curves", wrap=True,
                      format_func=humanised, persist_state="session", on_change=changed)  # fmt: skip
    return (chosen or [])[:AT_MOST]


def curves(study: Study, seen: glance.Glance, picked: list[str], columns: int = 2) -> None:
    """Draw these curves, or say why there are none."""
    if not seen.curves:
        if seen.row["status"] in ledger.ENDED:
            st.caption("This run recorded no curves.")
        else:
            st.skeleton(height=HEIGHT)
        return
    places = st.columns(columns) if min(columns, len(picked)) > 1 else [nullcontext()]
    for place, name in enumerate(picked):
        with places[place % len(places)]:
            _, figure, title = _figure(seen.row["id"], name, st.context.theme.type, store.ledger().url).now(study, seen, name)
            charts.show(figure, key=f"curve-{name}", title=title, alt=f"{humanised(name)} of every arm over the optimiser steps: {title}")


def ordered(study: Study, names: list[str]) -> list[str]:
    judged = [c.metric for c in study.claims]
    return sorted(names, key=lambda n: (judged.index(n) if n in judged else len(judged), "loss" in n))


@lru_cache(maxsize=glance.READ)
def _figure(run: str, metric: str, theme: str | None, url: str) -> glance.Shared:
    """The chart of one metric and its title, for all who look."""
    return glance.Shared(_drawn)


def _drawn(last: tuple | None, study: Study, seen: glance.Glance, metric: str) -> tuple[Any, charts.Drawn, str]:
    """(mark, chart, title): drawn anew only if points or interventions have come since the last time."""
    happened = [e for e in seen.events if e["kind"] in (*verbs.CHANGES, "rollback", "fork", "diverged")]
    mark = (seen.mark, len(happened), study.source_hash)
    if last is not None and last[0] == mark:
        return last
    rows, palette = charts.thinned(seen.table, metric), source.palette(study, seen.table)
    figure = figures.curve(rows, metric, title="", y_title=humanised(metric), palette=palette)
    _marks(figure, rows, [e for e in happened if e["arm"] in set(rows["arm"])], palette)
    _told(figure, rows, happened, palette)
    return mark, charts.Drawn(charts.legend_below(figure, HEIGHT), margin=14), sentence(study, seen.table, metric)


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
