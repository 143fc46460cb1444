"""The claims of a study with what the data say of each: sentence, interval, negative control, and the picture of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st
from panels import charts, predict
from panels.wording import badge, humanised, measured, plain, setting

from claimlab import figures
from claimlab.claims import Claim, says_nothing
from claimlab.study import Study


def board(study: Study, judged: Mapping[str, dict[str, Any]], control: Mapping[str, str], *, note: str,
          expected: float | None = None) -> None:  # fmt: skip
    """One card a claim. `judged` holds verdicts by claim id, `control` the words of the same claims under the control,
    `expected` is the reader's number for the claim that was asked about."""
    st.header("Verdicts", anchor="verdicts")
    st.caption(note)
    asked = predict.asked(study)
    for claim in study.claims:
        with st.container(border=True):
            mine = expected if asked is not None and claim.id == asked.id else None
            _card(study, claim, judged.get(claim.id), control.get(claim.id), mine)


def wait(study: Study) -> None:
    """In place of verdicts that wait for the reader's expectation."""
    st.header("Verdicts", anchor="verdicts")
    st.info("Say above what you expect, and the outcome is drawn beside it.", title="The verdicts are there",
            icon=":material/psychology_alt:")  # fmt: skip
    st.button("Just show me", key="show-me", icon=":material/visibility:", on_click=predict.show_at_once)


def _card(study: Study, claim: Claim, verdict: dict[str, Any] | None, control: str | None, expected: float | None) -> None:
    drawn = verdict is not None and bool(verdict.get("values"))
    words, picture = st.columns([5, 6], vertical_alignment="center") if drawn else (st.container(), None)
    with words:
        shown = verdict["verdict"] if verdict else "not run yet"
        st.markdown(f"{badge(shown)} **{plain(claim.text)}**")
        if verdict:
            st.markdown(f"{plain(humanised(claim.metric))}: **{plain(measured(verdict))}**")
            if verdict.get("sentence"):
                st.caption(plain(verdict["sentence"]))
            if expected is not None:
                st.markdown(f":material/psychology_alt: {plain(predict.compared(expected, verdict))}")
        _control(study, claim, verdict, control)
        st.caption(plain(_rule(claim)))
    if drawn:
        with picture:
            figure = figures.paired(verdict, claim).update_layout(title_text=None)
            seen = [value for _, value in verdict["values"]] + [verdict[k] for k in ("effect", "low", "high")]
            alt = f"{shown}: {measured(verdict)}, margin {claim.threshold:g}"
            if expected is not None:
                predict.draw(figure, expected)
                seen, alt = [*seen, expected], f"{alt}, you expected {expected:+.3g}"
            charts.padded(figure, claim.threshold, *([0.0] if claim.kind == "paired" else []), *seen)
            charts.show(figure, key=f"verdict-{claim.id}", height=190, alt=alt)


def _control(study: Study, claim: Claim, verdict: dict[str, Any] | None, control: str | None) -> None:
    """What the same claim says where the effect should vanish."""
    if not study.control.set or claim.id not in study.control.vanishes:
        return
    settings = ", ".join(f"{k} = {setting(v)}" for k, v in study.control.set.items())
    if control is None:
        st.markdown(f"Negative control ({plain(settings)}): {badge('not run yet')}")
        return
    st.markdown(f"Negative control ({plain(settings)}): {badge(control)}")
    if verdict and says_nothing(verdict["verdict"], control):
        st.warning("Supported where the effect should vanish as well: this verdict says nothing about its cause.",
                   icon=":material/warning:")  # fmt: skip


def _rule(claim: Claim) -> str:
    """What was set in advance."""
    compared = f"{claim.arm} minus {claim.baseline}" if claim.baseline else claim.arm
    side = "above" if claim.better == "higher" else "below"
    rule = f"every case {'at least' if claim.better == 'higher' else 'at most'} {claim.margin:g}"
    if claim.kind != "equality":
        rule = f"{compared} {side} {claim.threshold:+g}"
    return f"Set in advance: {rule}. Source: {claim.source or 'not given'}."
