"""Starting, stopping and going on with a sweep from the page, in a process of its own that outlives it."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import streamlit as st
from panels import launch, store, sweeps, typed
from panels.wording import humanised, plain

from claimlab.cli import parser
from claimlab.commands import sweeps as commands
from claimlab.params import KnobError
from claimlab.study import Study, StudyError
from claimlab.sweeps import conduct, space
from claimlab.sweeps.plan import Plan

KINDS = {"sweep": "Where do the claims hold?", "sensitivity": "Which knob moves a claim?", "tune": "Are the arms tuned equally?"}
SETTINGS = (8, 16, 32, 64, 128)
BASES = (4, 8, 16, 32)  # base points of an analysis; runs are these times the number of knobs and two
MOST = 1000  # runs that one may start from a page
EVERY = 0.5
CHILDREN: dict[str, subprocess.Popen] = {}


def form(whole: dict[str, Study]) -> None:
    """Choose study, question, knobs and size, see what would be run, and start it."""
    kind = st.segmented_control("Question", list(KINDS), default="sweep", required=True, format_func=KINDS.get, key="plan-kind")
    left, right = st.columns(2)
    study = whole[left.selectbox("Study", list(whole), key="plan-study")]
    words = _knobs(study, kind, right)
    one, two, three = st.columns(3)
    if kind != "tune":
        sizes = SETTINGS if kind == "sweep" else BASES
        count = one.selectbox("Settings" if kind == "sweep" else "Base points", sizes, index=2, key=f"plan-size-{kind}")
        words += ["--sample" if kind == "sweep" else "--size", str(count)]
    profile = two.selectbox("Profile", ("smoke", "default", "full"), key="plan-profile")
    seeds = three.number_input("Seeds of each setting", 2, 40, 5, key="plan-seeds")
    words += ["--profile", profile, "--seeds", str(seeds)]
    try:
        made = _made(words)
    except (KnobError, StudyError) as error:
        st.error(plain(error), title="This is no sweep yet", icon=":material/tune:")
        return
    name = conduct.name_of(made)
    runs = len(made.points)
    st.caption(f"{runs:,} runs of {study.slug} with {seeds} seeds each, as {plain(name)}. What has been run before is not run again.")
    if runs > MOST:
        st.error(f"At most {MOST:,} runs are started from here; the command below has no such limit.", icon=":material/block:")
    st.button("Start", type="primary", icon=":material/play_arrow:", key="plan-start", disabled=runs > MOST, on_click=start,
              args=(name, words))  # fmt: skip
    typed.show([" ".join(("claimlab", *words))])


def _knobs(study: Study, kind: str, place: Any) -> list[str]:
    """The first words of the command: its verb, the study and the knobs that vary."""
    free = [axis.knob.name for axis in space.free(study, ())]
    if kind == "tune":
        usual = next((k for k, name in enumerate(free) if name == "lr" or name.endswith("_lr")), 0)
        knob = place.selectbox("Knob", free, index=usual, format_func=humanised, key=f"plan-knob-{study.slug}")
        return ["tune", study.slug, "--knob", knob]
    drawn = place.multiselect("Knobs that vary", free, default=free[:3], format_func=humanised, key=f"plan-knobs-{study.slug}",
                              help="the others stay at the profile's values; none stands for all")  # fmt: skip
    claim = ["--claim", study.claims[0].id] if kind == "sensitivity" else []
    return [kind, study.slug, *claim, *(word for name in drawn for word in ("--over", name))]


def _made(words: list[str]) -> Plan:
    """The plan that the command would make; nothing is started. KnobError, StudyError as the command would say it."""
    return commands.planned(parser().parse_args(words))


def start(name: str, words: list[str]) -> None:
    """Start the command in a process of its own, unless this sweep goes on already, and look at it from now on."""
    going = CHILDREN.get(name)
    if going is None or going.poll() is not None:
        CHILDREN[name] = launch.spawn(f"sweeps/{name}", words, "sweep.log", store.ledger())
    st.session_state["plan-awaited"] = name


def awaited(known: dict[str, Any]) -> None:
    """Say that a sweep that was just started comes up, show it when it is there, or say why it does not come."""
    name = st.session_state.get("plan-awaited")
    if name is None:
        return
    child = CHILDREN.get(name)
    if name in known and (known[name]["status"] == "running" or child is None or child.poll() is not None):
        del st.session_state["plan-awaited"]
        st.session_state["compare-sweep-any"] = name
    elif child is None or child.poll() is not None:
        del st.session_state["plan-awaited"]
        st.error(plain(launch.last_line(f"sweeps/{name}", "sweep.log")), title=f"The sweep {plain(name)} did not start",
                 icon=":material/error:")  # fmt: skip
    else:
        st.info(f"{plain(name)} starts; this takes a few seconds.", icon=":material/hourglass_top:")
        st.fragment(_arrives, run_every=EVERY, key="plan-arrives")(name, time.monotonic())


def _arrives(name: str, since: float) -> None:
    rows = {row["name"]: row["status"] for row in sweeps.book().sweeps()}
    if rows.get(name) == "running" or CHILDREN[name].poll() is not None:
        st.rerun(scope="app")
    st.caption(f"waiting for {time.monotonic() - since:.0f} s")


def controls(row: dict[str, Any]) -> list[str]:
    """Stop a sweep that goes on, or go on with one that does not; the command that stands for the button, if there is one."""
    name = row["name"]
    if row["status"] == "running":
        st.button("Stop this sweep", icon=":material/stop:", key="plan-stop", on_click=_stop, args=(name,))
        return [f"claimlab sweep stop {name}"]
    words = again(row) if row["done"] < row["total"] else []
    if words:
        st.button("Go on with this sweep", icon=":material/play_arrow:", key="plan-on", on_click=start, args=(name, words))
    return [" ".join(("claimlab", *words))] if words else []


def _stop(name: str) -> None:
    sweeps.book().conclude(name, None, "stopped")


def again(row: dict[str, Any]) -> list[str]:
    """The command that makes this plan again; empty where it can not be told from what was kept (ranges, values that were fixed)."""
    one, about = row["plan"], row["plan"]["about"]
    if row["kind"] != "sweep" or one["fixed"] or about["grid"]:
        return []
    over = [word for name in about["drawn"] for word in ("--over", name)]
    words = ["sweep", row["study"], *over, "--sample", str(about["sample"]), "--profile", one["profile"], "--seeds", str(len(one["seeds"]))]
    try:
        made = _made(words)
    except (KnobError, StudyError):
        return []
    same = made.mark == one["mark"]
    return [*words, *(["--name", row["name"]] if conduct.name_of(made) != row["name"] else [])] if same else []
