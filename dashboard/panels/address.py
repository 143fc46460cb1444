"""Knobs in the address of the study page, as ?study=SLUG&profile=full&p.KNOB=4: a setting that one can send to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from claimlab import params
from claimlab.study import Study

PREFIX = "p."  # as `-p` on the command line
PROFILE = "profile"


def read(study: Study) -> tuple[str | None, dict[str, Any], list[str]]:
    """Profile and knob values that the address asks for, checked; and in words what it asks for that is not allowed."""
    declared = {one.name: one for one in study.knobs}
    values, refused = {}, []
    for name in (n for n in st.query_params if n.startswith(PREFIX)):
        knob = declared.get(name.removeprefix(PREFIX))
        try:
            if knob is None:
                raise params.KnobError(f"{name.removeprefix(PREFIX)} is not a knob of this study")
            values[knob.name] = knob.check(st.query_params[name])
        except params.KnobError as error:
            refused.append(str(error))
    profile = st.query_params.get(PROFILE)
    return (profile if profile in params.PROFILES else None), values, refused


def write(profile: str, values: Mapping[str, Any], base_profile: str, base: Mapping[str, Any]) -> None:
    """Put what differs from the base (the run that is shown, else the paper's setting) into the address."""
    wanted = {f"{PREFIX}{name}": str(value) for name, value in values.items() if base.get(name) != value}
    wanted |= {PROFILE: profile} if profile != base_profile else {}
    for name in [n for n in st.query_params if (n.startswith(PREFIX) or n == PROFILE) and n not in wanted]:
        del st.query_params[name]
    for name, value in wanted.items():
        if st.query_params.get(name) != value:
            st.query_params[name] = value


def go(study: Study, run: str) -> None:
    """Show a run of the study; the knobs of the form become its knobs, the reader's expectation stays."""
    kept = {name: st.query_params[name] for name in ("expect",) if name in st.query_params}
    st.query_params.from_dict({"study": study.slug, "run": run, **kept})
