"""Where a run comes from and what has come of it: the tree of forks and replays, and each one's difference from its parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, condition, glance, launch, source, store, typed
from panels.wording import STATUS, ago, badge, humanised, plain, setting

from claimlab import figures, params
from claimlab.claims import interval
from claimlab.study import Study

HEIGHT = 300
SHOWN, FORKS = 30, 4  # runs of one tree, and forks whose difference is told


def tree(run: str) -> None:
    """The tree as a picture and as links, the run that is shown marked."""
    book = store.ledger()
    rows = [book.run(name) for name in book.family(run)[:SHOWN]]
    if len(rows) == 1:
        st.caption("This run has neither parent nor forks. A fork starts from the exact state of now and differs by one change.")
        return
    births = {row["id"]: birth(row, book.events(row["id"])) for row in rows}
    st.mermaid_chart(picture(rows, births, run), width="content", alt=f"Lineage of {len(rows)} runs, listed below as links")
    for row in rows:
        text = f"{births[row['id']]}, {row['status']}, {ago(row['started'])}"
        if row["id"] == run:
            st.markdown(f"{STATUS[row['status']]} **{plain(text)}** (this run)")
        else:
            st.page_link(
                "app_pages/live.py",
                label=plain(f"{text} · {row['id'][-6:]}"),
                icon=STATUS[row["status"]],
                query_params={"run": row["id"]},
            )


def birth(row: dict[str, Any], events: Sequence[dict[str, Any]]) -> str:
    """How a run began, in words."""
    resumed = sum(e["kind"] == "rollback" and e["payload"].get("by") == "resume" for e in events)
    again = f", resumed {'once' if resumed == 1 else f'{resumed} times'}" if resumed else ""
    if row["branch"] == "replay":
        return f"replay on seeds {spanned(row['seeds'])}" + again
    born = next((e["payload"] for e in events if e["kind"] == "forked"), None)
    if born is None:
        return "original" + again
    change = born["change"]
    return ("fork: " + (changed(change) if change else "no change")) + again


def changed(change: dict[str, Any]) -> str:
    """A fork's one change in words."""
    what = f"{change['name']} = {setting(change['value'])}" if change["verb"] == "set" else f"{change['verb']} {change['layer']}"
    return what + (f" of {change['arm']}" if change.get("arm") else "")


def spanned(seeds: Sequence[int]) -> str:
    """Seeds as the command line takes them: 5..9 or 3,4,8."""
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) if seeds else False
    return f"{seeds[0]}..{seeds[-1]}" if whole and len(seeds) > 1 else ",".join(map(str, seeds))


def picture(rows: Sequence[dict[str, Any]], births: dict[str, str], shown: str) -> str:
    """The tree as a Mermaid flowchart; what a reader has named is written without the marks that Mermaid reads."""
    number_of = {row["id"]: f"n{k}" for k, row in enumerate(rows)}
    lines = ["flowchart LR"]
    for row in rows:
        text = "".join(c if c.isalnum() or c in " =.,-_:" else " " for c in births[row["id"]])
        lines.append(f'  {number_of[row["id"]]}["{text}<br/>{row["status"]}"]')
        if row["parent"] in number_of:
            lines.append(f"  {number_of[row['parent']]} --> {number_of[row['id']]}")
    return "\n".join([*lines, f"  style {number_of[shown]} stroke:#0072B2,stroke-width:3px"])


# ---- difference from the parent


def children(study: Study, row: dict[str, Any], table: pd.DataFrame, metric: str) -> None:
    """How each fork of this run stands against it so far, in words."""
    book = store.ledger()
    rows = [book.run(name) for name in book.family(row["id"])[:SHOWN]]
    for child in [r for r in rows if r["parent"] == row["id"] and r["branch"] != "replay"][:FORKS]:
        theirs = glance.at(child["id"])
        start = condition.where(book.events(row["id"]), child["branch"] or "")
        gaps = {arm: differences(theirs.table, table, metric, arm, start.get(arm, 0)) for arm in theirs.arms}
        told = [sentence(arm, gap, metric) for arm, gap in gaps.items() if len(gap) and (gap["value"].abs() > 0).any()]
        st.caption(plain(f"{birth(child, theirs.events)}: {'; '.join(told) or 'no difference so far'}."))


def against_parent(study: Study, row: dict[str, Any], table: pd.DataFrame, metric: str) -> None:
    """The curve of this run minus its parent, paired over the seeds that both have, from their common step on."""
    if not row["parent"]:
        return
    book = store.ledger()
    parent = book.run(row["parent"])
    if not set(parent["seeds"]) & set(row["seeds"]):
        st.caption("This replay has other seeds than its original; its answer compares it with the same seeds left alone.")
        return
    before = glance.at(parent["id"]).table
    start = condition.where(book.events(parent["id"]), row["branch"] or "")
    gaps = {arm: gap for arm in table["arm"].unique() if len(gap := differences(table, before, metric, arm, start.get(arm, 0)))}
    moved = {arm: gap for arm, gap in gaps.items() if (gap["value"].abs() > 0).any()}
    if not moved:
        st.caption(f"So far this run and its parent have the same {humanised(metric)} at every step and seed.")
        return
    figure = drawn(moved, source.palette(study, table), metric)
    title = "; ".join(sentence(arm, gap, metric) for arm, gap in moved.items())
    charts.show(charts.legend_below(figure, HEIGHT), key="against-parent", title=title, margin=14, alt=title)


def differences(table: pd.DataFrame, before: pd.DataFrame, metric: str, arm: str, start: int) -> pd.DataFrame:
    """Rows (seed, step, value): this run minus its parent for one arm and metric, at the steps from `start` on that both have."""
    mine, other = (t[(t["metric"] == metric) & (t["arm"] == arm) & (t["step"] >= start)] for t in (table, before))
    both = mine.merge(other, on=["seed", "step"], suffixes=("", "_before"))
    return pd.DataFrame({"seed": both["seed"], "step": both["step"], "value": both["value"] - both["value_before"]})


def drawn(gaps: dict[str, pd.DataFrame], palette: dict[str, str], metric: str) -> go.Figure:
    """Thin line a seed, thick mean and 95 % band of each arm's difference; the line at nought is the parent."""
    rows = pd.concat([gap.assign(arm=arm, metric=metric) for arm, gap in gaps.items()])
    figure = figures.curve(
        charts.thinned(rows, metric), metric, title="", y_title=f"{humanised(metric)}, fork − parent", palette=palette
    )
    return figure.add_hline(y=0, line={"color": figures.INK, "width": 1})


def sentence(arm: str, gap: pd.DataFrame, metric: str) -> str:
    """What one sees at the last common step: `fast: +0.008 [0.001, 0.015] against its parent in accuracy at step 400, n = 5`."""
    step = gap["step"].max()
    values = gap.loc[gap["step"] == step, "value"].to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    if not len(known):
        return f"{arm} gave no number at step {step:,}"
    mean = known.mean()
    low, high = interval(known) if len(known) > 1 else (mean, mean)
    return f"{arm}: {mean:+.3g} [{low:.3g}, {high:.3g}] against its parent in {humanised(metric)} at step {step:,}, n = {len(known)}"


# ---- replay


def replays(row: dict[str, Any], events: Sequence[dict[str, Any]]) -> None:
    """Was it luck? The same changes at the same steps on other seeds; and the answers that there are."""
    book = store.ledger()
    _answer(row, events)
    why = ""
    if any(e["kind"] == "forked" for e in events):
        why = "this run is a fork; replay the original"
    elif not condition.now(events).changes:
        why = "nothing has been changed in this run yet"
    ahead = max(row["seeds"], default=-1) + 1
    fresh = spanned(list(range(ahead, ahead + max(5, len(row["seeds"])))))
    text, button = st.columns([2, 1], vertical_alignment="bottom")
    seeds = text.text_input("Replay on seeds", fresh, key=f"{row['id']}-seeds", help="written as 5..9 or 3,4,8")
    button.button("Replay on these seeds", key="replay", icon=":material/replay:", width="stretch", disabled=bool(why),
                  help=plain(why) or None, on_click=_replay, args=(row["id"], seeds))  # fmt: skip
    if why:
        st.caption(f"Replay needs a change to replay: {plain(why)}.")
    if refused := st.session_state.pop("replay-refused", ""):
        st.error(plain(refused), title="Nothing was started", icon=":material/replay:")
    state = launch.replaying(row["id"])
    if state == "under way":
        st.info("The replay is under way. Its run appears in the lineage; its answer, paired over seeds, when it has ended.")
    elif state:
        st.error(plain(state), title="The replay has failed")
    for name in book.family(row["id"])[:SHOWN]:
        child = book.run(name)
        if child["parent"] == row["id"] and child["branch"] == "replay" and child["id"] != row["id"]:
            _answer(child, book.events(name))
    if not why:
        typed.show([typed.replay(row["id"], seeds)])


def _replay(run: str, seeds: str) -> None:
    try:
        launch.replay(run, seeds, store.ledger())
    except params.KnobError as error:
        st.session_state["replay-refused"] = str(error)


def _answer(row: dict[str, Any], events: Sequence[dict[str, Any]]) -> None:
    """What a replay on other seeds has found, if this run is one."""
    for event in (e for e in events if e["kind"] == "replayed"):
        judged = event["payload"]["verdicts"]
        st.markdown(f"**Replay on seeds {spanned(row['seeds'])}**" + ("" if judged else ": the same seeds, so the same numbers."))
        for verdict in judged:
            st.markdown(f"{badge(verdict['verdict'])} {plain(verdict['sentence'])}")
