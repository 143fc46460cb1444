"""Pictures of a network in training, for the member and arm picked on the page: now, or at an earlier checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from panels import charts, looker, store
from panels.wording import plain

from claimlab import ledger
from claimlab.study import Study

NOW = "now"


def panel(study: Study, row: dict[str, Any], arms: list[str], key: str = "view") -> None:
    """Choice of view, arm, member and moment, and the picture; nothing for a study without views or a run that has not begun."""
    if not study.views or not arms:
        return
    with st.container(border=True, key=f"{key}-frame"):
        place = st.container()  # the picture stands above what chooses it
        view = st.selectbox("Live view", study.views, key=f"{key}-name", persist_state="session")
        left, right = st.columns(2)
        usual = next((c.arm for c in study.claims if c.arm in arms), arms[0])
        arm = left.selectbox("Arm", arms, index=arms.index(usual), key=f"{key}-arm", persist_state="session")
        seed = right.selectbox("Member", row["seeds"], key=f"{key}-seed", format_func=lambda s: f"seed {s}", persist_state="session")
        moment = _moment(row, key)
    figure, told = _live(row["id"], view, arm, seed) if moment == NOW else _kept(row["id"], view, arm, seed, moment)
    with place:
        if figure is not None:
            charts.show(figure, key=f"{key}-picture", alt=f"{view} of {arm}, seed {seed}")
        st.caption(plain(told))


def _moment(row: dict[str, Any], key: str) -> str:
    """Now, while the run goes on, or the name of a checkpoint."""
    known = checkpoints(row["id"])
    going = row["status"] not in ledger.ENDED
    names = [*known, NOW] if going else list(known)
    if len(names) < 2:
        return names[0] if names else ""
    return st.select_slider("Moment", names, value=names[-1], key=f"{key}-moment-{row['id']}-{going}",
                            format_func=lambda name: NOW if name == NOW else f"step {known[name]:,} of all arms")  # fmt: skip


def checkpoints(run: str) -> dict[str, int]:
    """The checkpoints of a run that are still there, oldest first: name and step of all arms together."""
    folder = ledger.home() / run / "checkpoints"
    written = [e for e in store.ledger().events(run) if e["kind"] == "checkpoint"]
    there = {e["payload"]["name"]: e["step"] or 0 for e in written if (folder / f"{e['payload']['name']}.pt").exists()}
    return dict(sorted(there.items(), key=lambda one: one[1]))


def _live(run: str, view: str, arm: str, seed: int) -> tuple[charts.Drawn | None, str]:
    """The picture that the run's process keeps up to date while this page asks for it."""
    picture = store.ledger().watch(run, view, arm, seed)
    if picture is None:
        return None, "The run draws this view between its next two steps."
    if picture["figure"] is None:
        return None, f"Nothing to show: {picture['reason']}"
    figure = _picture(run, view, arm, seed, picture["drawn"], st.context.theme.type, lambda: json.loads(picture["figure"]))
    return figure, f"{arm}, seed {seed}, step {picture['step']:,}; renewed once a second while you look"


@st.cache_resource(max_entries=32, show_spinner=False)
def _picture(run: str, view: str, arm: str, seed: int, when: Any, theme: str | None, _read: Callable[[], dict]) -> charts.Drawn:
    return charts.Drawn(go.Figure(_read()), margin=20)


def _kept(run: str, view: str, arm: str, seed: int, checkpoint: str) -> tuple[charts.Drawn | None, str]:
    """The picture at a checkpoint, drawn once in a process of its own."""
    if not checkpoint:
        return None, "This run left no checkpoint, so its networks cannot be looked at any more."
    answer = _drawn(run, view, arm, seed, checkpoint)
    if "figure" not in answer:
        return None, f"Nothing to show: {answer['reason']}"
    figure = _picture(run, view, arm, seed, checkpoint, st.context.theme.type, lambda: answer["figure"])
    return figure, f"{arm}, seed {seed}, at a checkpoint"


@st.cache_data(max_entries=64, show_spinner="Loading the networks")
def _drawn(run: str, view: str, arm: str, seed: int, checkpoint: str) -> dict[str, Any]:
    return looker.ask(run, {"view": view, "arm": arm, "seed": seed, "checkpoint": checkpoint})
