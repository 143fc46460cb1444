"""Sliders for what can be changed while a run goes on: rates on a log scale, live knobs in their range; sent when applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import streamlit as st
from panels import condition, knobs, steer, typed
from panels.wording import humanised, plain, setting

from claimlab import params, verbs
from claimlab.params import Knob
from claimlab.study import Study

ALL = "all arms"
EVERY = "all seeds"
SMALLEST = 1e-6


def panel(
    study: Study, row: dict[str, Any], here: condition.Condition, arms: Sequence[str], why: str
) -> tuple[str | None, int | None]:
    """Choose arm and member, turn the sliders, apply or fork; the arm and seed that commands are meant for."""
    one, other = st.columns(2)
    arm = one.selectbox("Arm", [ALL, *arms], key=f"{row['id']}-arm")
    seed = other.selectbox(
        "Member", [EVERY, *row["seeds"]], key=f"{row['id']}-seed", format_func=lambda s: s if s == EVERY else f"seed {s}"
    )
    arm, seed = None if arm == ALL else arm, None if seed == EVERY else seed
    met = [here.arms[a] for a in ([arm] if arm else here.arms) if a in here.arms]
    wanted: dict[str, tuple[Any, Any]] = {}
    with st.grid(3, min_column_width=250, gap="medium"):
        for knob in turnable(study, met):
            found = [a.settings[knob.name] for a in met if knob.name in a.settings] or [
                row["params"].get(knob.name, knob.default)
            ]
            value = _widget(row["id"], knob, found, arm, seed)
            if value != found[0]:
                wanted[knob.name] = (found[0], value)
    _apply(study, row, wanted, arm, seed, why)
    return arm, seed


def turnable(study: Study, met: Sequence[condition.Arm]) -> list[Knob]:
    """What the arms can take: the optimiser's settings that they have, and the study's live knobs."""
    live = {k.name: k for k in study.knobs if k.live}
    found = []
    for name, (low, high) in params.SETTABLE.items():
        values = [a.settings[name] for a in met if isinstance(a.settings.get(name), int | float)]
        if (values or name == "lr") and name not in live:
            found.append(Knob(name, float(values[0]) if values else 0.001, f"of the optimiser, {low:g} to {high:g}", low, high))
    return [*found, *live.values()]


def _widget(run: str, knob: Knob, found: list[Any], arm: str | None, seed: int | None) -> Any:
    """One widget, which starts at the present value and again there once that has changed."""
    now = found[0]
    label = humanised(knob.name) + (f" ({knob.unit})" if knob.unit else "")
    differ = sorted({setting(v) for v in found})
    help = plain(f"{knob.help}; {knob.allowed}" + (f"; the arms differ: {', '.join(differ)}" if len(differ) > 1 else ""))
    facts = {"key": f"{run}-{arm}-{seed}-{knob.name}-{now}", "help": help}
    label = plain(label + (" (arms differ)" if len(differ) > 1 else ""))
    if knob.type is bool:
        return st.toggle(label, now, **facts)
    if knob.choices is not None:
        return st.selectbox(label, knob.choices, knob.choices.index(now), format_func=str, **facts)
    if knob.name in ("lr", "weight_decay") or knobs.wide(knob):
        return st.select_slider(label, stops(knob, now), now, format_func=setting, **facts)
    step, digits = knobs.grid(knob)
    shape = {"format": f"%.{digits}f"} if knob.type is float else {}
    return st.slider(label, knob.type(knob.low), knob.type(knob.high), knob.type(now), knob.type(step), **shape, **facts)


def stops(knob: Knob, now: Any) -> list[Any]:
    """Stops of a log scale over the knob's range: 1, 1.5, 2, 3, 4, 5, 7 of each decade, both ends, and the present value."""
    bottom = knob.low if knob.low > 0 else min(SMALLEST, now / 100 if now > 0 else SMALLEST)
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(knob.high)) + 1)
    found = {float(f"{m * 10.0**d:.12g}") for d in decades for m in knobs.MANTISSAS}
    if knob.type is int:
        found = {int(v) for v in found if v == int(v)}
    return sorted({v for v in found if bottom <= v <= knob.high} | {knob.type(knob.low), knob.type(knob.high), now})


def _apply(
    study: Study, row: dict[str, Any], wanted: dict[str, tuple[Any, Any]], arm: str | None, seed: int | None, why: str
) -> None:
    """What would change, the buttons that do it, and the command that one would type."""
    changes = [{"name": name, "value": value} for name, (_, value) in wanted.items()]
    text = ", ".join(f"{name} {setting(old)} → {setting(new)}" for name, (old, new) in wanted.items())
    none = "" if changes else "turn a slider first"
    several = "a fork differs by one change; turn one slider only" if len(changes) > 1 else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Apply to this run", key="apply", icon=":material/tune:", type="primary" if changes else "secondary", on_click=_set,
                  disabled=bool(why or none), help=plain(why or none or text), args=(study, row["id"], changes, arm, seed))  # fmt: skip
        st.button("Fork with the change" if changes else "Fork as it is", key="fork", icon=":material/call_split:", on_click=_fork,
                  disabled=bool(why or several), args=(study, row["id"], changes, arm, seed),
                  help=plain(why or several or "a second run from this exact state, a controlled comparison"))  # fmt: skip
        if text:
            st.markdown(f"**{plain(text)}** of {plain(arm or ALL)}", width="content")
    if said := st.session_state.pop("steer-refused", ""):
        st.error(plain(said), title="Nothing was sent", icon=":material/tune:")
    if changes:
        typed.show([typed.steer(row["id"], "set", change, arm, seed) for change in changes])


def _set(study: Study, run: str, changes: list[dict[str, Any]], arm: str | None, seed: int | None) -> None:
    try:
        checked = [verbs.validate(study, "set", change) for change in changes]
    except params.KnobError as error:
        st.session_state["steer-refused"] = str(error)
        return
    for change in checked:
        steer.send(run, "set", change, arm, seed)


def _fork(study: Study, run: str, changes: list[dict[str, Any]], arm: str | None, seed: int | None) -> None:
    try:
        payload = verbs.validate(study, "fork", {"change": {"verb": "set", **changes[0]} if changes else None})
    except params.KnobError as error:
        st.session_state["steer-refused"] = str(error)
        return
    steer.send(run, "fork", payload, arm, seed)
