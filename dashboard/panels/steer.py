"""Steering the run that is shown: pause, step, undo, change a setting or fork with it; and what became of each command."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st
from panels import store
from panels.wording import plain

from claimlab import params, verbs
from claimlab.study import Study

BY = "dashboard"
ANSWERS = 5  # commands that are listed


def panel(study: Study, row: dict[str, Any], arms: list[str]) -> None:
    """Buttons and a form for a run that goes on, and the last answers; `arms` are those that have reported."""
    paused = row["status"] == "paused"
    with st.container(horizontal=True):
        _button(row, "resume" if paused else "pause", "Go on" if paused else "Pause", "play_arrow" if paused else "pause")
        _button(row, "step", "10 steps", "skip_next", {"n": 10})
        _button(row, "evaluate", "Measure now", "monitoring")
        _button(row, "checkpoint", "Checkpoint", "bookmark")
        before = _undoable(row["id"])
        _button(row, "rollback", "Undo last change", "undo", {"checkpoint": before}, off=not before)
        waits = any(c["verb"] == "stop" and c["answered"] is None for c in store.ledger().commands(row["id"]))
        _button(row, "stop", "Stopping at the next step" if waits else "Stop run", "stop", off=waits)
    with st.expander("Change a setting", icon=":material/tune:", key=f"{row['id']}-change"):
        _form(study, row, arms)
    _answers(row["id"])


def _button(row: dict[str, Any], verb: str, text: str, icon: str, payload: dict | None = None, off: bool = False) -> None:
    st.button(text, icon=f":material/{icon}:", key=verb, disabled=off, on_click=_send, args=(row["id"], verb, payload or {}))


def _send(run: str, verb: str, payload: dict[str, Any], arm: str | None = None) -> None:
    store.ledger().command(run, verb, payload, arm=arm, by=BY)


def _undoable(run: str) -> str:
    """The checkpoint before the last change that still stands; empty if there is none."""
    kept: list[str] = []
    for event in store.ledger().events(run):
        if event["kind"] in verbs.CHANGES:
            kept.append(event["payload"].get("checkpoint", ""))
        elif event["kind"] == "rollback":
            name = event["payload"]["checkpoint"]
            kept = kept[: kept.index(name)] if name in kept else kept
    return kept[-1] if kept else ""


def _form(study: Study, row: dict[str, Any], arms: list[str]) -> None:
    settings = {name: f"{low:g} to {high:g}" for name, (low, high) in params.SETTABLE.items()}
    settings |= {k.name: k.allowed for k in study.knobs if k.live}
    name = st.selectbox("Setting", list(settings), key="steer-name")
    value = st.text_input("New value", key="steer-value", placeholder=settings[name], help=f"allowed: {settings[name]}")
    arm = st.selectbox("Arm", ["all arms", *arms], key="steer-arm")
    chosen = None if arm == "all arms" else arm
    here, fork = st.columns(2)
    steer = here.button("Change this run", key="steer-set", icon=":material/tune:", width="stretch")
    other = fork.button("Fork with it", key="steer-fork", icon=":material/call_split:", width="stretch",
                        help="a second run from this exact state with the change; this one goes on")  # fmt: skip
    if not (steer or other):
        return
    try:
        payload = verbs.validate(study, "set", {"name": name, "value": value})
    except params.KnobError as error:
        st.error(plain(error), title="Nothing was sent", icon=":material/tune:")
        return
    if steer:
        _send(row["id"], "set", payload, chosen)
    else:
        _send(row["id"], "fork", {"change": {"verb": "set", **payload}}, chosen)


def _answers(run: str) -> None:
    """The last commands and what became of them, newest first."""
    book = store.ledger()
    for command in reversed(book.commands(run)[-ANSWERS:]):
        asked = f"{time.strftime('%H:%M:%S', time.localtime(command['time']))} {command['by'] or 'somebody'}: {said(command)}"
        if command["answered"] is None:
            st.caption(plain(f"{asked} … waiting for the next step"))
        elif not command["ok"]:
            st.warning(plain(f"{asked}. {command['reason']}"), icon=":material/block:")
        elif command["verb"] == "fork":
            st.caption(plain(f"{asked}, at step {command['step']:,}"))
            st.page_link("app_pages/study.py", label="Open the fork", icon=":material/call_split:",
                         query_params={"study": book.run(run)["study"], "run": command["new"]})  # fmt: skip
        else:
            change = "" if command["verb"] not in ("set", "rollback") else f": {command['old']} → {command['new']}"
            where = "" if command["verb"] in verbs.CHANGES else " of all arms together"
            st.caption(plain(f"{asked}, took effect at step {command['step'] or 0:,}{where}{change}"))


def said(command: dict[str, Any]) -> str:
    """A command in words: its verb, what it is about, and its arm."""
    payload = command["payload"].get("change") or command["payload"]
    what = payload.get("name") or payload.get("layer") or payload.get("n") or payload.get("checkpoint") or ""
    value = f" = {payload['value']}" if "value" in payload else ""
    inner = f" with {payload['verb']}" if command["verb"] == "fork" and "verb" in payload else ""
    return f"{command['verb']}{inner} {what}{value}".strip() + (f" of {command['arm']}" if command["arm"] else "")
