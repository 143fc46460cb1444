"""Pictures of a network in training, for the member and arm picked on the page: now, or at an earlier checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from panels import charts, glance, looker
from panels.wording import plain

from claimlab import ledger
from claimlab.study import Study

NOW = "now"


@dataclass(frozen=True)
class Choice:
    """A picture to look at: which view of which member of which arm, now or at a checkpoint of this name (empty: there is none)."""

    view: str
    arm: str
    seed: int
    moment: str


def panel(study: Study, seen: glance.Glance) -> None:
    """The picture, and below it what chooses it, for a run whose arms have reported."""
    with st.container(border=True, key="view-frame"):
        place = st.container()
        choice = choose(study, seen)
        with place:
            show(seen.row, choice)


def choose(study: Study, seen: glance.Glance, changed: Callable[[], None] | None = None) -> Choice:
    """Choice of view, arm, member and moment; `changed` is called when it changes."""
    kept: dict[str, Any] = {"persist_state": "session", "on_change": changed}
    view = st.selectbox("Live view", study.views, key="view-name", **kept)
    left, right = st.columns(2)
    usual = next((c.arm for c in study.claims if c.arm in seen.arms), seen.arms[0])
    arm = left.selectbox("Arm", seen.arms, index=seen.arms.index(usual), key="view-arm", **kept)
    seed = right.selectbox("Member", seen.row["seeds"], key="view-seed", format_func=lambda s: f"seed {s}", **kept)
    return Choice(view, arm, seed, _moment(seen, changed))


def show(row: dict[str, Any], choice: Choice) -> None:
    """The picture that was chosen, and what it shows in words."""
    kept = choice.moment != NOW or row["status"] in ledger.ENDED
    with st.container() if kept else nullcontext():  # a place of its own for the spinner, so that the picture keeps its place
        figure, told = (_kept if kept else _live)(row["id"], choice)
    if figure is not None:
        charts.show(figure, key="view-picture", alt=f"{choice.view} of {choice.arm}, seed {choice.seed}")
    st.caption(plain(told))


def _moment(seen: glance.Glance, changed: Callable[[], None] | None) -> str:
    """Now, while the run goes on, or the name of a checkpoint."""
    row, known = seen.row, seen.kept
    going = row["status"] not in ledger.ENDED
    names = [*known, NOW] if going else list(known)
    if len(names) < 2:
        return names[0] if names else ""
    return st.select_slider("Moment", names, value=names[-1], key=f"view-moment-{row['id']}-{going}", on_change=changed,
                            format_func=lambda name: NOW if name == NOW else f"step {known[name]:,} of all arms")  # fmt: skip


def _live(run: str, choice: Choice) -> tuple[charts.Drawn | None, str]:
    """The picture that the run's process keeps up to date while this page asks for it."""
    picture = glance.picture(run, choice.view, choice.arm, choice.seed)
    if picture is None:
        return None, "The run draws this view between its next two steps."
    if picture["figure"] is None:
        return None, f"Nothing to show: {picture['reason']}"
    figure = _picture(picture["figure"], st.context.theme.type)
    return figure, f"{choice.arm}, seed {choice.seed}, step {picture['step']:,}; renewed once a second while you look"


@lru_cache(maxsize=32)
def _picture(content: str, theme: str | None) -> charts.Drawn:
    return charts.Drawn(go.Figure(json.loads(content)), margin=20)


def _kept(run: str, choice: Choice) -> tuple[charts.Drawn | None, str]:
    """The picture at a checkpoint, drawn once in a process of its own."""
    if choice.moment in (NOW, ""):
        return None, "This run left no checkpoint, so its networks cannot be looked at any more."
    answer = _drawn(run, choice.view, choice.arm, choice.seed, choice.moment)
    if "figure" not in answer:
        return None, f"Nothing to show: {answer['reason']}"
    figure = _picture(json.dumps(answer["figure"]), st.context.theme.type)
    return figure, f"{choice.arm}, seed {choice.seed}, at a checkpoint"


@st.cache_data(max_entries=64, show_spinner="Loading the networks")
def _drawn(run: str, view: str, arm: str, seed: int, checkpoint: str) -> dict[str, Any]:
    return looker.ask(run, {"view": view, "arm": arm, "seed": seed, "checkpoint": checkpoint})
