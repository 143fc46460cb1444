"""The knob form of any study, made from its declarations: ranges become sliders, large spans steps of a log scale, names a choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import streamlit as st
from panels import address, timing
from panels.wording import changed, humanised, plain, setting

from claimlab import ledger, params
from claimlab.params import PROFILES, Knob
from claimlab.study import Study

PAPER, CONTROL, MINE = "paper", "control", "mine"
TITLES = {PAPER: "Paper", CONTROL: "Break it", MINE: "Mine"}
MANTISSAS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
WIDE = 100


@dataclass(frozen=True)
class Request:
    """What the form asks for: knob values as data, the profile, whether as negative control, and whether with the notebook."""

    values: dict[str, Any]
    profile: str
    control: bool
    notebook: bool


def form(study: Study, run: dict[str, Any] | None) -> Request | None:
    """Draw presets, profile and knobs; the request once Run is pressed. `run` is the run that the page shows, if any.

    Every change runs the page again, so that address, command, time and what the change means in mid-run follow it.
    """
    for refused in _prepare(study, run):
        st.warning(plain(refused), title="The address asks for what is not allowed", icon=":material/tune:")
    presets = [PAPER, *([CONTROL] if study.control.set else []), MINE]
    st.segmented_control("Preset", presets, key=_key(study, "preset"), required=True, on_change=_apply, args=(study,), wrap=True,
                         format_func=lambda name: TITLES[name], persist_state="session")  # fmt: skip
    st.segmented_control("Profile", PROFILES, key=_key(study, "profile"), required=True, on_change=_apply, args=(study,), wrap=True,
                         help="smoke takes seconds and judges little, default at most two minutes, full up to twenty",
                         persist_state="session")  # fmt: skip
    _explain(study)
    for one in study.knobs:
        _widget(study, one)
    has_notebook = study.notebook.exists()
    notebook = st.toggle("Write notebook and report", key=_key(study, "notebook"), disabled=not has_notebook,
                         help="Runs through the notebook, so that both can be downloaded; starts some seconds later.")  # fmt: skip
    address.write(profile(study), current(study), *_base(study, run))
    going = run is not None and run["status"] in ledger.ALIVE
    pressed = st.button("New run" if going else "Run", type="primary", icon=":material/play_arrow:", width="stretch",
                        key=_key(study, "submit"), help="Ctrl and Enter do the same", shortcut="Ctrl+Enter")  # fmt: skip
    if took := timing.estimate(study, current(study), profile(study)):
        st.caption(f"It takes {took}.")
    return Request(current(study), profile(study), is_control(study), notebook and has_notebook) if pressed else None


def current(study: Study) -> dict[str, Any]:
    """The values that the form shows."""
    return {one.name: st.session_state[_key(study, "knob", one.name)] for one in study.knobs}


def profile(study: Study) -> str:
    """The profile that the form shows."""
    return st.session_state[_key(study, "profile")]


def is_control(study: Study) -> bool:
    """Whether the form shows the negative control."""
    return st.session_state[_key(study, "preset")] == CONTROL


def usual(study: Study, profile: str = "default") -> dict[str, Any]:
    """The paper's setting at a profile."""
    return params.values(params.make(study.Params, profile=profile))


def _key(study: Study, *parts: str) -> str:
    return "-".join((study.slug, *parts))


def _base(study: Study, run: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Profile and knobs that the address need not name: those of the run that the page shows, else the paper's setting."""
    chosen = run["profile"] if run and run["profile"] in PROFILES else "default"
    return chosen, {**usual(study, chosen), **(run["params"] if run else {})}


def _prepare(study: Study, run: dict[str, Any] | None) -> list[str]:
    """Fill the form once, with the knobs of the address on top of those of the run that the page shows or of the paper's
    setting; in words what the address may not ask for."""
    state, seen = st.session_state, _key(study, "filled")
    mark = run["id"] if run else ""
    if state.get(seen) == mark or (seen in state and not mark):
        return []
    first, state[seen] = seen not in state, mark
    chosen, values = _base(study, run)
    asked, own, refused = address.read(study) if first else (None, {}, [])
    if asked and asked != chosen:
        chosen, values = asked, {**usual(study, asked)}
    state[_key(study, "profile")] = chosen
    _show(study, {**values, **own})
    _name_preset(study)
    return refused


def _show(study: Study, values: dict[str, Any]) -> None:
    for one in study.knobs:
        st.session_state[_key(study, "knob", one.name)] = values[one.name]


def _apply(study: Study) -> None:
    """A preset or a profile was chosen: set the knobs."""
    state = st.session_state
    profile, preset = state[_key(study, "profile")], state[_key(study, "preset")]
    values = usual(study, profile)
    if preset == CONTROL:
        values |= study.control.set
    elif preset == MINE:
        values |= state.get(_key(study, "mine"), {})
    _show(study, values)


def _name_preset(study: Study) -> None:
    """Say which preset the knobs are now, and keep the reader's own changes for later."""
    state = st.session_state
    values, paper = current(study), usual(study, state[_key(study, "profile")])
    own = {name: value for name, value in values.items() if value != paper[name]}
    if not own:
        preset = PAPER
    elif study.control.set and all(values[k] == v for k, v in study.control.set.items()):
        preset = CONTROL
    else:
        preset = MINE
        state[_key(study, "mine")] = own
    state[_key(study, "preset")] = preset


def _explain(study: Study) -> None:
    """What the chosen preset is for."""
    preset = st.session_state[_key(study, "preset")]
    if preset == CONTROL:
        settings = ", ".join(f"{k} = {setting(v)}" for k, v in study.control.set.items())
        st.caption(plain(f"Negative control, {settings}: here the effect should vanish. {study.control.why}"))
    elif preset == MINE:
        own = st.session_state.get(_key(study, "mine"), {})
        usual_here = usual(study, st.session_state[_key(study, "profile")])
        st.caption(plain(changed({**usual_here, **own}, usual_here)) if own else "Turn any knob; your values are kept here.")


# ---- one widget a knob


def _widget(study: Study, one: Knob) -> None:
    key, name = _key(study, "knob", one.name), humanised(one.name)
    facts = {"key": key, "help": plain(f"{one.help}; {one.allowed}") + (", can change while a run goes on" if one.live else "")}
    facts |= {"persist_state": "session", "on_change": _name_preset, "args": (study,)}
    label = plain(f"{name} ({one.unit})" if one.unit else name)
    if one.type is bool:
        st.toggle(label, **facts)
    elif one.choices is not None:
        few = len(one.choices) <= 4 and sum(len(str(c)) for c in one.choices) <= 24
        if few:
            st.segmented_control(label, one.choices, required=True, wrap=True, format_func=str, **facts)
        else:
            st.selectbox(label, one.choices, format_func=str, **facts)
    elif wide(one):
        options = steps(one, st.session_state.get(key, one.default))
        st.select_slider(label, options, format_func=setting, **facts)
    else:
        step, digits = grid(one)
        shape = {"format": f"%.{digits}f"} if one.type is float else {}
        st.slider(label, one.type(one.low), one.type(one.high), step=one.type(step), **shape, **facts)


def wide(one: Knob) -> bool:
    """Whether a knob spans so much that equal steps of its logarithm serve better."""
    if one.low > 0:
        return one.high / one.low >= WIDE
    return one.low == 0 and one.default > 0 and one.high / one.default >= WIDE


def steps(one: Knob, *present: Any) -> list[Any]:
    """The stops of a wide knob: both ends, 1, 1.5, 2, 3, 4, 5, 7 of each decade, the default and the values `present`."""
    bottom = one.low if one.low > 0 else one.default / WIDE
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(one.high)) + 1)
    found = {m * 10.0**d for d in decades for m in MANTISSAS}
    if one.type is int:
        found = {v for v in found if v == int(v)}
    found = {one.type(f"{v:.12g}") if one.type is float else int(v) for v in found if bottom <= v <= one.high}
    return sorted(found | {one.type(one.low), one.type(one.high), one.default, *present})


def grid(one: Knob) -> tuple[float, int]:
    """Step and digits after the point of a slider: about a hundred to a thousand stops, with the default on one of them."""
    power = math.floor(math.log10((one.high - one.low) / 100)) if one.high > one.low else 0
    if one.type is int:
        power = max(0, power)
    while power > -12 and abs(math.remainder(one.default - one.low, 10.0**power)) > 1e-9 * 10.0**power + 1e-15:
        power -= 1
    return 10.0**power, max(0, -power)
