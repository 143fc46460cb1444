"""What a knob that was turned in mid-run can mean: steer the run that goes on, or start a new one."""

from __future__ import annotations

from typing import Any

import streamlit as st
from panels import knobs, lease, steer, store
from panels.wording import humanised, plain, setting

from claimlab import ledger, params, verbs
from claimlab.study import Study


def offer(study: Study, run: dict[str, Any]) -> None:
    """Where the form differs from a run that goes on: a button for what can change in it, and words for what cannot."""
    if run["status"] not in ledger.ALIVE:
        return
    book = store.ledger()
    now = {**run["params"], **changed(book.commands(run["id"]))}
    turned = {name: value for name, value in knobs.current(study).items() if name in now and now[name] != value}
    if not turned:
        return
    able = {one.name for one in study.knobs if one.live}
    live = {name: value for name, value in turned.items() if name in able}
    if live:
        told = ", ".join(f"{humanised(n)} {setting(now[n])} → {setting(v)}" for n, v in live.items())
        why = plain(lease.barred(book.events(run["id"])))
        st.button("Steer this run", key="knobs-steer", icon=":material/tune:", width="stretch", disabled=bool(why), help=why or None,
                  on_click=_steer, args=(study, run["id"], live))  # fmt: skip
        st.caption(plain(f"{told} in the run that goes on. 'New run' starts another one beside it."))
    if fixed := [name for name in turned if name not in live]:
        cannot = ", ".join(map(humanised, fixed))
        st.caption(plain(f"{cannot} cannot change in mid-run: {'it takes' if len(fixed) == 1 else 'they take'} a new run."))


def changed(commands: list[dict[str, Any]]) -> dict[str, Any]:
    """The knobs that commands to all arms have set, or are about to set, with their value."""
    heard = [c for c in commands if c["verb"] == "set" and c["arm"] is None and c["seed"] is None and c["ok"] is not False]
    return {c["payload"]["name"]: c["payload"]["value"] for c in heard}


def _steer(study: Study, run: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        try:
            payload = verbs.validate(study, "set", {"name": name, "value": value})
        except params.KnobError as error:
            st.toast(plain(error), icon=":material/block:")
        else:
            steer.send(run, "set", payload)
