"""Predict first: what the reader expects of a study's first paired claim, held against what the data say of it.

The expectation is a number in the metric's units, arm minus baseline. It is kept in the session and in the address as
?expect=0.1, and is never judged: it only stands beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from panels.wording import humanised, measured, plain

from claimlab import figures
from claimlab.claims import Claim
from claimlab.study import Study

NAME = "expect"  # in the address
NEITHER = "neither"
AT_ONCE = "show-at-once"
SPAN = 10.0  # margins that the slider reaches, or more where past runs did


def asked(study: Study) -> Claim | None:
    """The claim that is asked about: the first that compares two arms."""
    return next((c for c in study.claims if c.kind == "paired"), None)


def limit(study: Study, claim: Claim, effects: Iterable[float | None] = ()) -> float:
    """How far the slider goes. It stays for the session, so that a new outcome neither moves it nor tells anything."""
    return st.session_state.setdefault(_key(study, "limit"), reach(claim, effects))


def reach(claim: Claim, effects: Iterable[float | None] = ()) -> float:
    """A round number in the metric's units past ten margins and past what has been seen."""
    far = max([SPAN * abs(claim.margin), *(1.5 * abs(e) for e in effects if e is not None)]) or 1.0
    power = 10.0 ** math.floor(math.log10(far))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= far * (1 - 1e-9))


def expected(study: Study, most: float) -> float | None:
    """The reader's number for this study: of this session, else of the address if it is a number within reach."""
    key = _key(study)
    if key not in st.session_state:
        try:
            value = float(st.query_params.get(NAME, ""))
        except ValueError:
            value = math.nan
        st.session_state[key] = value if math.isfinite(value) and abs(value) <= most else None
    value = st.session_state[key]
    if value is not None and st.query_params.get(NAME) != f"{value:g}":
        st.query_params[NAME] = f"{value:g}"
    elif value is None and NAME in st.query_params:
        del st.query_params[NAME]
    return value


def begun(run: str) -> None:
    """Note that this reader has started a run, whose outcome he has not seen yet."""
    st.session_state.setdefault("begun", set()).add(run)


def waits(study: Study, run: Mapping[str, Any] | None, value: float | None) -> bool:
    """Whether the verdicts wait for an expectation: only those of a run that this reader has started, and until he has said
    once that he wants to see them at once."""
    state = st.session_state
    mine = run is not None and run["id"] in state.get("begun", ()) and not run["control"]
    return mine and value is None and asked(study) is not None and not state.get(AT_ONCE)


def panel(study: Study, claim: Claim, most: float, value: float | None, *, folded: bool) -> None:
    """The question, open or folded away; once answered, the answer with the way to change it."""
    if folded or value is not None:
        label = "Predict first" if value is None else f"You expect {plain(sentence(claim, value))}"
        with st.expander(label, icon=":material/psychology_alt:"):
            _form(study, claim, most, skip=False)
    else:
        with st.container(border=True):
            st.markdown(f":material/psychology_alt: **Predict first.** {plain(claim.text)}")
            _form(study, claim, most, skip=not st.session_state.get(AT_ONCE))


def _form(study: Study, claim: Claim, most: float, *, skip: bool) -> None:
    better = f"Which arm ends better, with the {claim.better} {humanised(claim.metric)}?"
    with st.form(f"{_key(study)}-form", border=False):
        left, right = st.columns([2, 3])
        left.segmented_control(plain(better), [claim.arm, claim.baseline, NEITHER], key=_key(study, "arm"), wrap=True, required=True,
                               default=claim.arm, persist_state="session")  # fmt: skip
        step = most / 100
        right.slider(plain(f"By how much, in {humanised(claim.metric)}?"), 0.0, most, most / 10, step, key=_key(study, "by"),
                     format=f"%.{max(0, -math.floor(math.log10(step) + 1e-9))}f", persist_state="session")  # fmt: skip
        with st.container(horizontal=True):
            st.form_submit_button("Hold it against the data", icon=":material/balance:", key=_key(study, "set"),
                                  on_click=_set, args=(study, claim, most))  # fmt: skip
            if skip:
                st.form_submit_button("Just show me", type="tertiary", key=_key(study, "skip"), on_click=show_at_once,
                                      help="Verdicts are shown at once from now on; you can still predict.")  # fmt: skip


def _key(study: Study, *parts: str) -> str:
    return "-".join((study.slug, NAME, *parts))


def _set(study: Study, claim: Claim, most: float) -> None:
    state = st.session_state
    side = {claim.arm: 1, claim.baseline: -1}.get(state[_key(study, "arm")], 0) * (1 if claim.better == "higher" else -1)
    state[_key(study)] = round(side * min(abs(float(state[_key(study, "by")])), most), 12) + 0.0


def show_at_once() -> None:
    """The reader wants to see verdicts without being asked."""
    st.session_state[AT_ONCE] = True


# ---- held against the data


def sentence(claim: Claim, value: float) -> str:
    """The expectation in words."""
    if value == 0:
        return f"no difference in {humanised(claim.metric)}"
    side = "above" if value > 0 else "below"
    return f"{claim.arm} {abs(value):.3g} {side} {claim.baseline} in {humanised(claim.metric)}"


def compared(value: float, verdict: Mapping[str, Any]) -> str:
    """`You expected +0.1, the data say +0.05 [0.03, 0.07], n = 5: right direction, too strong.`"""
    if verdict.get("effect") is None:
        return f"You expected {value:+.3g}; the data give no number."
    low, high = (_end(verdict.get(side), sign) for side, sign in (("low", -1), ("high", 1)))
    return f"You expected {value:+.3g}, the data say {measured(verdict)}: {_how(value, verdict['effect'], low, high)}."


def _end(value: float | None, sign: int) -> float:
    return sign * math.inf if value is None else value


def _how(value: float, effect: float, low: float, high: float) -> str:
    if low <= value <= high:
        return "within the interval" + (", which does not tell the direction yet" if low < 0 < high else "")
    if low <= 0 <= high:
        return "the data do not tell the direction, and the interval excludes your number"
    if value == 0:
        return "there is a difference"
    if (value < 0) != (effect < 0):  # a product of tiny numbers would be 0
        return "the opposite direction"
    return f"right direction, too {'strong' if abs(value) > abs(effect) else 'weak'}"


def draw(figure: go.Figure, value: float) -> go.Figure:
    """Set the expectation into the picture of a verdict, as a diamond."""
    return figure.add_scatter(
        x=[value], y=[0], mode="markers+text", text=["you"], textposition="bottom center", showlegend=False, cliponaxis=False,
        marker={"symbol": "diamond-open", "size": 14, "color": figures.OTHERS[2], "line": {"width": 2.5}},
        hovertemplate="you expected %{x:+.4g}<extra></extra>",
    )  # fmt: skip
