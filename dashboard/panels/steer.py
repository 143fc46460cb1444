"""Steering the run that is shown: pause, step, undo, change a setting or fork with it; and what became of each command."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import streamlit as st
from panels import condition, glance, lease, store, typed
from panels.wording import plain, setting

from claimlab import params, verbs
from claimlab.study import Study

ANSWERS = 5  # commands that are listed
TWICE, TWICE_STEP = 1.0, 0.5  # seconds within which a press that comes again is the same one


def panel(study: Study, seen: glance.Glance) -> None:
    """Buttons and a form for a run that goes on."""
    row, why = seen.row, lease.barred(seen.events)
    buttons(seen, why, steps=(10,))
    if why:
        st.caption(f"{plain(why)}; the page Live lets you ask for the wheel.")
    with st.expander("Change a setting", icon=":material/tune:", key=f"{row['id']}-change", on_change="rerun") as change:
        if change.open:
            _form(study, row, sorted(seen.arms), why)
    as_typed(seen)


def buttons(seen: glance.Glance, why: str = "", steps: Sequence[int] = (1, 10)) -> None:
    """One button a verb; `why` is the reason for which none of them can be pressed."""
    row = seen.row
    paused = row["status"] == "paused"
    with st.container(horizontal=True):
        _button(row, "resume" if paused else "pause", "Go on" if paused else "Pause", "play_arrow" if paused else "pause", why=why,
                shortcut="Space")  # fmt: skip
        for n in steps:
            _button(
                row,
                "step",
                "1 step" if n == 1 else f"{n} steps",
                "skip_next",
                {"n": n},
                why,
                key="step" if n == 10 else f"step-{n}",
            )
        _button(row, "evaluate", "Measure now", "monitoring", why=why)
        _button(row, "checkpoint", "Checkpoint", "bookmark", why=why)
        before = seen.condition.undoable
        nothing = "" if before else "nothing has been changed that could be undone"
        _button(row, "rollback", "Undo last change", "undo", {"checkpoint": before}, why or nothing)
        waits = any(c["verb"] == "stop" and c["answered"] is None for c in seen.commands)
        _button(
            row,
            "stop",
            "Stopping at the next step" if waits else "Stop run",
            "stop",
            why=why or ("it has been asked to" if waits else ""),
        )


def _button(row: dict[str, Any], verb: str, text: str, icon: str, payload: dict | None = None, why: str = "", key: str = "",
            shortcut: str | None = None) -> None:  # fmt: skip
    st.button(text, icon=f":material/{icon}:", key=key or verb, disabled=bool(why), help=plain(why) or None, shortcut=shortcut,
              on_click=send, args=(row["id"], verb, payload or {}))  # fmt: skip


def send(run: str, verb: str, payload: dict[str, Any], arm: str | None = None, seed: int | None = None) -> None:
    """Queue a command of this browser; a second one like it within a moment is the same press, delivered twice."""
    sent, now = (run, verb, str(payload), arm, seed), time.monotonic()
    last, when = st.session_state.get("sent", (None, 0.0))
    st.session_state["sent"] = (sent, now)
    if sent == last and now - when < (TWICE_STEP if verb == "step" else TWICE):
        return
    store.ledger().command(run, verb, payload, arm=arm, seed=seed, by=lease.me())
    glance.forget(run)


def _form(study: Study, row: dict[str, Any], arms: list[str], why: str) -> None:
    settings = {name: f"{low:g} to {high:g}" for name, (low, high) in params.SETTABLE.items()}
    settings |= {k.name: k.allowed for k in study.knobs if k.live}
    name = st.selectbox("Setting", list(settings), key="steer-name")
    value = st.text_input("New value", key="steer-value", placeholder=settings[name], help=f"allowed: {settings[name]}")
    arm = st.selectbox("Arm", ["all arms", *arms], key="steer-arm")
    chosen = None if arm == "all arms" else arm
    here, fork = st.columns(2)
    steer = here.button("Change this run", key="steer-set", icon=":material/tune:", width="stretch", disabled=bool(why))
    other = fork.button("Fork with it", key="steer-fork", icon=":material/call_split:", width="stretch", disabled=bool(why),
                        help="a second run from this exact state with the change; this one goes on")  # fmt: skip
    if not (steer or other):
        return
    try:
        payload = verbs.validate(study, "set", {"name": name, "value": value})
    except params.KnobError as error:
        st.error(plain(error), title="Nothing was sent", icon=":material/tune:")
        return
    if steer:
        send(row["id"], "set", payload, chosen)
    else:
        send(row["id"], "fork", {"change": {"verb": "set", **payload}}, chosen)


def answers(seen: glance.Glance) -> None:
    """The last commands and what became of them, newest first."""
    quiet = []
    for command in reversed(seen.commands[-ANSWERS:]):
        text = answered(command)
        if command["answered"] is not None and not command["ok"]:
            st.warning(plain(text), icon=":material/block:")
        elif command["verb"] == "fork" and command["ok"]:
            st.page_link("app_pages/live.py", label=plain(text), icon=":material/call_split:", query_params={"run": command["new"]},
                         help="Open the fork")  # fmt: skip
        else:
            quiet.append(plain(text))
    if quiet:
        st.caption("  \n".join(quiet))


def as_typed(seen: glance.Glance) -> None:
    """The last commands as one would have typed them."""
    run, found = seen.row["id"], seen.commands[-ANSWERS:]
    if found:
        with st.expander("Copy these commands", icon=":material/terminal:", key=f"{run}-typed", on_change="rerun") as lines:
            if lines.open:
                typed.show([line(run, command, seen.events) for command in found])


def answered(command: dict[str, Any]) -> str:
    """A command and what became of it, in words."""
    asked = f"{time.strftime('%H:%M:%S', time.localtime(command['time']))} {command['by'] or 'somebody'}: {said(command)}"
    if command["answered"] is None:
        return f"{asked} … waiting for the next step"
    if not command["ok"]:
        return f"{asked}. Refused: {command['reason']}"
    change = "" if command["verb"] not in ("set", "rollback") else f": {setting(command['old'])} → {setting(command['new'])}"
    whole = "" if command["verb"] in verbs.CHANGES else " of all arms together"
    opened = "; open the fork" if command["verb"] == "fork" else ""
    return f"{asked}, took effect at step {command['step'] or 0:,}{whole}{change}{opened}"


def line(run: str, command: dict[str, Any], events: Sequence[dict[str, Any]]) -> str:
    """A command as one would type it."""
    at = condition.where(events, command["payload"].get("checkpoint") or "")
    return typed.steer(run, command["verb"], command["payload"], command["arm"], command["seed"], max(at.values(), default=None))


def said(command: dict[str, Any]) -> str:
    """A command in words: its verb, what it is about, and its arm."""
    payload = command["payload"].get("change") or command["payload"]
    what = payload.get("name") or payload.get("layer") or payload.get("n") or payload.get("checkpoint") or ""
    if command["verb"] == "drive":
        what = (
            f"to {payload['to']}"
            if payload.get("to")
            else "until now"
            if not payload["seconds"]
            else f"{payload['seconds'] / 60:g} min"
        )
    value = f" = {setting(payload['value'])}" if "value" in payload else ""
    inner = f" with {payload['verb']}" if command["verb"] == "fork" and "verb" in payload else ""
    target = f" of {command['arm']}" if command["arm"] else ""
    target += f", seed {command['seed']}" if command["seed"] is not None else ""
    return f"{command['verb']}{inner} {what}{value}".strip() + target
