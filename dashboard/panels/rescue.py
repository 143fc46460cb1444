"""A run that has ended early or diverged: why, what is kept, and the way on from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from panels import glance, launch, steer, store, typed
from panels.wording import number, plain

from claimlab.ledger import ENDED, LedgerError

SHOWN = 4


def checkpoints(run: str, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The checkpoints whose files are there, oldest first: name, step of each arm, why it was written."""
    there = glance.at(run).kept
    return [e["payload"] for e in events if e["kind"] == "checkpoint" and e["payload"]["name"] in there]


def panel(row: dict[str, Any], events: Sequence[dict[str, Any]]) -> None:
    """For a run that ended early: a button that goes on from the last checkpoint, or what to do where there is none."""
    if row["status"] not in launch.RESUMABLE:
        return
    kept = checkpoints(row["id"], events)
    born = any(e["kind"] == "forked" for e in events)
    if not kept and not born:
        st.info("It left no checkpoint, so it has to start again. A checkpoint is written before each change and every 20 seconds.",
                icon=":material/restart_alt:")  # fmt: skip
        typed.show([f"claimlab run {row['study']} --profile {row['profile']}"])
        return
    last = " and ".join(f"{arm} at step {step:,}" for arm, step in kept[-1]["arms"].items()) if kept else "where the fork began"
    st.button(
        "Resume this run", key="resume-run", icon=":material/restart_alt:", type="primary", on_click=_resume, args=(row["id"],)
    )
    st.caption(plain(f"It goes on from its last checkpoint: {last}. The numbers are those that it would have had."))
    _refusal()
    typed.show([typed.resume(row["id"])])


def _resume(run: str) -> None:
    try:
        launch.resume(run, store.ledger())
    except LedgerError as error:
        st.session_state["resume-refused"] = str(error)


def _refusal() -> None:
    if refused := st.session_state.pop("resume-refused", ""):
        st.error(plain(refused), title="Nothing was started", icon=":material/restart_alt:")


def divergence(row: dict[str, Any], events: Sequence[dict[str, Any]], why: str) -> None:
    """Each member that diverged: where, what broke first, the gradient before it, and the checkpoint to go back to."""
    kept = checkpoints(row["id"], events)
    undone = max((e["id"] for e in events if e["kind"] == "rollback"), default=0)
    found = [e for e in events if e["kind"] == "diverged" and e["id"] > undone]
    if found:
        names = [f"seed {e['seed']} of {e['arm']}" for e in found]
        title = f"{len(found)} members have diverged" if len(found) > 1 else f"{names[0]} has diverged".capitalize()
        lines = [
            f"{name}: {told(event)}" if len(found) > 1 else told(event) for name, event in zip(names, found[:SHOWN], strict=False)
        ]
        lines += [f"{len(found) - SHOWN} more, which the table of events lists."] if len(found) > SHOWN else []
        lines.append("The other members go on; a claim without these stays undecided.")
        st.error("  \n".join(map(plain, lines)), title=plain(title), icon=":material/emergency_home:")
        _back(row, found[0], kept, why)


def told(event: dict[str, Any]) -> str:
    """One divergence in words."""
    facts = event["payload"]
    if not facts:
        return f"its numbers were not finite at step {event['step']:,}."
    norm = facts.get("gradient_norm")
    before = f"the gradient's norm just before was {number(norm)}" if norm is not None else "there was no good step before"
    what = facts["tensor"] or "the loss"
    return f"first at step {facts['step']:,}, where {what} was no longer finite; {before}; last good step {facts['last_good']:,}."


def _back(row: dict[str, Any], event: dict[str, Any], kept: Sequence[dict[str, Any]], why: str) -> None:
    """The last checkpoint at which the arm had not passed its last good step."""
    good = [c for c in kept if c["arms"].get(event["arm"], 0) <= event["payload"].get("last_good", event["step"])]
    going, resumable = row["status"] not in ENDED, row["status"] in launch.RESUMABLE
    if not good or not (going or resumable):
        st.caption("No checkpoint is left from before it; start again with a smaller learning rate." if not good else
                   "This run is finished: start again with a smaller learning rate.")  # fmt: skip
        return
    step = good[-1]["arms"].get(event["arm"], 0)
    st.button(f"Go back to step {step:,}" + ("" if going else " and go on"), key="last-good", icon=":material/history:", on_click=_rollback,
              args=(row["id"], good[-1]["name"], resumable), disabled=bool(why), help=plain(why) or "the last good checkpoint")  # fmt: skip
    _refusal()
    typed.show([typed.steer(row["id"], "rollback", {"step": step}, event["arm"])])


def _rollback(run: str, checkpoint: str, ended: bool) -> None:
    if ended:
        _resume(run)
        if "resume-refused" in st.session_state:
            return
    steer.send(run, "rollback", {"checkpoint": checkpoint})
