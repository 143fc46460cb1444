"""The page Live: cards of all that goes on, below them the chosen run with its wheel. One part that renews itself."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st
from panels import glance, happenings, layers, lease, lineage, live, looks, rescue, running, steer, store, tune, typed
from panels.wording import STATUS, ago, plain

from claimlab.ledger import ENDED, LedgerError
from claimlab.study import Study

FAST, SLOW = 1.0, 3.0  # seconds between two looks: while something goes on, and while nothing does
TABS = ("Settings", "Layers", "Lineage", "Events", "Commands")
EARLY = 5


def page(wanted: str) -> None:
    """Draw the page for the run in the address; without one, for the newest that goes on, which the address then names."""
    with store.guarded():
        going = store.alive()
        if not wanted and going:
            wanted = next((r["id"] for r in going if r["status"] != "queued"), going[0]["id"])
            st.query_params["run"] = wanted
        known = {one.slug: one for one in store.studies() if not one.broken}
    st.fragment(_draw, run_every=FAST if going else SLOW, key="watch")(wanted, known, bool(going))


def _draw(wanted: str, known: dict[str, Study], fast: bool) -> None:
    with store.guarded():
        book = store.ledger()
        glance.settled()
        going = glance.alive()
        if bool(going) != fast:
            st.rerun()  # at the other pace
        st.title(heading(going), anchor=False)
        st.caption(f"{running.today(book.ended_since(running.midnight()))} · data as of {time.strftime('%H:%M:%S')}")
        if going:
            running.cards(going, known, wanted)
        else:
            _nothing()
        if wanted:
            _chosen(wanted, known)


def heading(going: list[dict[str, Any]]) -> str:
    """How many runs go on, in words."""
    queued = sum(row["status"] == "queued" for row in going)
    whole = len(going) - queued
    text = "Nothing is running" if not whole else "One run goes on" if whole == 1 else f"{whole} runs go on"
    return text + (f", {queued} in the queue" if queued else "")


def _nothing() -> None:
    st.info("Open a study, set its knobs and press Run; or type `claimlab run STUDY`. Every run appears here within seconds, "
            "wherever it was started, and can be steered from here.", icon=":material/play_arrow:")  # fmt: skip
    rows = store.ledger().runs(limit=EARLY)
    with st.container(horizontal=True):
        st.page_link("app_pages/catalogue.py", label="Choose a study", icon=":material/search:")
        for row in rows:
            text = f"{row['study']}, {row['status']} {ago(row['ended'] or row['started'])}"
            st.page_link("app_pages/live.py", label=plain(text), icon=STATUS[row["status"]], query_params={"run": row["id"]})


def _chosen(run: str, known: dict[str, Study]) -> None:
    try:
        seen = glance.at(run)
    except LedgerError as error:
        st.error(plain(error), title="This run cannot be shown", icon=":material/link_off:")
        return
    row, events, table = seen.row, seen.events, seen.table
    study = known.get(row["study"])
    if study is None:
        st.error(
            plain(f"its study {row['study']} is not there or is broken"),
            title="This run cannot be shown",
            icon=":material/build:",
        )
        return
    st.header(plain(study.paper.question), anchor="run")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(plain(row["id"]), width="content")
        st.page_link(
            "app_pages/study.py",
            label="Open the study",
            icon=":material/experiment:",
            query_params={"study": study.slug, "run": run},
        )
    live.status(row, running.rate_of(row))
    why = lease.barred(events)
    rescue.panel(row, events)
    rescue.divergence(row, events, why)
    if row["status"] in ("queued", "starting") and table.empty:
        _waiting(row)
        return
    looks.panel(study, events)
    names = live.scene(study, seen)
    if row["status"] not in ENDED:
        lease.panel(run, events)
        steer.buttons(seen, why)
        steer.answers(seen)
        steer.as_typed(seen)
    _tabs(study, seen, names, why)


def _waiting(row: dict[str, Any]) -> None:
    st.info("Its process is being started; the first points come in a few seconds." if row["status"] == "starting" else
            "It waits for its process. If nothing comes within a minute it is marked as failed, with the last line of its log.",
            icon=":material/hourglass_top:")  # fmt: skip
    st.skeleton(height=live.HEIGHT)


def _tabs(study: Study, seen: glance.Glance, names: list[str], why: str) -> None:
    row, events, table, here = seen.row, seen.events, seen.table, seen.condition
    run, going = row["id"], row["status"] not in ENDED
    arms = list(here.arms) or list(table["arm"].unique())
    chosen = st.session_state.get(f"{run}-arm", tune.ALL)
    shown = TABS if going else TABS[2:]
    tabs = dict(zip(shown, st.tabs(shown, key="live-tab" if going else "ended-tab", on_change="rerun"), strict=True))
    if going and tabs["Settings"].open:
        with tabs["Settings"]:
            tune.panel(study, row, here, arms, why)
    if going and tabs["Layers"].open:
        with tabs["Layers"]:
            layers.panel(run, here, None if chosen == tune.ALL else chosen, why)
    if tabs["Lineage"].open:
        with tabs["Lineage"]:
            lineage.tree(run)
            if names:
                lineage.children(study, row, table, names[0])
                lineage.against_parent(study, row, table, names[0])
            lineage.replays(row, events)
    if tabs["Events"].open:
        with tabs["Events"]:
            happenings.table(run, events)
    if tabs["Commands"].open:
        with tabs["Commands"]:
            _commands(row, going)


def _commands(row: dict[str, Any], going: bool) -> None:
    """What one would type for what this page does."""
    run = row["id"]
    st.caption("What these buttons do, as one would type it. The same commands work in any terminal of this machine.")
    lines = [f"claimlab runs show {run}", typed.replay(run, ""), typed.resume(run)]
    if going:
        plain_verbs = [(verb, {}) for verb in ("pause", "resume", "evaluate", "checkpoint", "fork", "stop")]
        change = {"name": "lr", "value": 0.001}
        more = [("step", {"n": 10}), ("set", change), ("fork", {"change": {"verb": "set", **change}}),
                ("rollback", {"step": 100}), ("drive", {"seconds": 600.0})]  # fmt: skip
        lines = [typed.steer(run, verb, payload) for verb, payload in plain_verbs + more] + lines[:2]
    typed.show(lines)
