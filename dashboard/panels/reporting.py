"""Starts a report in a process of its own, and shows the one that is being written: its runs and its log."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st
from panels import launch, reports, store, typed
from panels.wording import STATUS, ago, humanised, plain, span

from claimlab import ledger as ledgers
from claimlab.params import PROFILES, KnobError
from claimlab.reports import making
from claimlab.study import Study

EVERY = 2.0
FOLDER, FACTS, LOG = "reports", "started.json", "report.log"
CHILDREN: dict[str, subprocess.Popen] = {}


def form(found: list[Study]) -> None:
    """Which studies at which profile; starts the report."""
    known = {s.slug: s for s in found if not s.broken}
    left, right = st.columns([3, 2])
    chosen = left.multiselect("Studies", list(known), key="report-studies", placeholder="all studies", format_func=humanised,
                              persist_state="session")  # fmt: skip
    profile = right.segmented_control("Profile", PROFILES, default="default", required=True, key="report-profile", wrap=True,
                                      persist_state="session")  # fmt: skip
    st.caption("Runs what is missing or stale, each study with its negative control, and reuses what is fresh.")
    with st.container(horizontal=True):
        pressed = st.button("Run now", type="primary", icon=":material/play_arrow:", key="report-start")
        with st.popover("Copy the command", icon=":material/terminal:"):
            typed.show([shlex.join(["claimlab", "report", *(chosen or ["--all"]), "--profile", profile])])
    if pressed:
        try:
            start(chosen or list(known), profile, list(known))
        except (KnobError, OSError) as error:
            st.error(plain(error), title="Nothing was started", icon=":material/error:")
        else:
            st.rerun()


def start(slugs: Sequence[str], profile: str, known: Sequence[str]) -> Path:
    """Check what is asked for and start the report's process; the folder that it writes into."""
    if stray := [slug for slug in slugs if slug not in known]:
        raise KnobError(f"there is no study {', '.join(stray)}")
    if profile not in PROFILES:
        raise KnobError(f"profile = {profile!r} is not allowed: one of {', '.join(PROFILES)}")
    if not slugs:
        raise KnobError("there is no study to report on")
    folder = ledgers.home() / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "claimlab.cli", "report", *slugs, "--profile", profile, "-o", str(folder)]
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                 env=launch.environment(store.ledger()))  # fmt: skip
    CHILDREN[folder.name] = child
    facts = {"pid": child.pid, "studies": list(slugs), "profile": profile, "started": time.time()}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return folder


def pending() -> list[tuple[Path, dict[str, Any]]]:
    """Folders of reports that were started here and have no index yet, newest first, with what was asked for."""
    found = []
    for path in sorted((ledgers.home() / FOLDER).glob(f"*/{FACTS}"), reverse=True):
        with suppress(OSError, ValueError):
            if not (path.parent / "index.html").exists() or alive(path.parent):
                found.append((path.parent, json.loads(path.read_text(encoding="utf-8"))))
    return found


def alive(folder: Path) -> bool:
    """Whether the process that writes a report goes on; also after a restart of this server."""
    if folder.name in CHILDREN:
        return CHILDREN[folder.name].poll() is None
    return process(folder) is not None


def process(folder: Path) -> int | None:
    """The number of the process that writes into a folder, if it lives. A number that another program has taken over since is
    told by the command line, where the system shows it."""
    try:
        pid = int(json.loads((folder / FACTS).read_text(encoding="utf-8"))["pid"])
        os.kill(pid, 0)
        shown = Path(f"/proc/{pid}/cmdline")
        return pid if not shown.exists() or folder.name.encode() in shown.read_bytes() else None
    except (OSError, ValueError, KeyError):
        return None


def panel() -> None:
    """Reports that are being written; renews itself while one is, and the page when it is done."""
    waiting = pending()
    going = [folder for folder, _ in waiting if alive(folder)]
    st.fragment(_draw, run_every=EVERY if going else None, key="reporting")([folder.name for folder in going])


def _draw(going: list[str]) -> None:
    now = pending()
    if going and sorted(f.name for f, _ in now if alive(f)) != sorted(going):
        st.rerun()
    for folder, asked in now:
        _one(folder, asked, folder.name in going)


def _one(folder: Path, asked: dict[str, Any], going: bool) -> None:
    title = f"{len(asked['studies'])} {'study' if len(asked['studies']) == 1 else 'studies'}, profile {asked['profile']}"
    with st.container(border=True):
        if going:
            st.markdown(
                f":material/hourglass_top: **A report is being written**: {plain(title)}, started {ago(asked['started'])}"
            )
            bar(folder)
            runs = [r for r in store.ledger().runs(limit=200) if r["started"] >= asked["started"] - 1
                    and r["study"] in asked["studies"] and r["profile"] == asked["profile"]]  # fmt: skip
            over = sum(r["status"] in ledgers.ENDED for r in runs)
            lines = [f"{STATUS[r['status']]} {plain(r['study'])}{' (negative control)' if r['control'] else ''}: {r['status']}"
                     + (f", {100 * (r['done'] or 0) // r['total']} %" if r["total"] and r["status"] == "running" else "")
                     for r in runs]  # fmt: skip
            st.markdown("  \n".join(lines))
            st.caption(
                f"{over} runs have ended. Closing this page does not end the report. Data as of {time.strftime('%H:%M:%S')}."
            )
            st.button(
                "Stop, and write what there is", icon=":material/stop:", key=f"stop-{folder.name}", on_click=stop, args=(folder,)
            )
        else:
            st.error(plain(_last(folder)), title=f"A report ended before it was written: {plain(title)}", icon=":material/error:")
            st.button("Put away", key=f"away-{folder.name}", icon=":material/delete:", on_click=put_away, args=(folder,))
        with st.expander("Log", icon=":material/terminal:", expanded=not going):
            log = folder / LOG
            st.code((reports.tail(log) if log.exists() else "") or "It has said nothing yet.", language=None, height=200)


def bar(folder: Path) -> None:
    """How far the report is that is being written into a folder, and how long it will take."""
    try:
        note = json.loads((folder / making.NOTE).read_text(encoding="utf-8"))
        left = "" if note["left"] is None else f", about {span(note['left'])} left"
        st.progress(min(1.0, max(0.0, note["share"])), text=plain(f"{note['over']} of {note['runs']} runs{left}"))
    except (OSError, ValueError, KeyError):
        st.progress(0.0, text="Looking for what is fresh.")


def stop(folder: Path) -> None:
    """Interrupt a report: it ends the studies under way and writes what there is."""
    if alive(folder) and (pid := process(folder)) is not None:
        os.kill(pid, signal.SIGTERM)


def put_away(folder: Path) -> None:
    """Forget a report that was never written; its log stays."""
    with suppress(OSError):
        (folder / FACTS).rename(folder / f"{FACTS}.ended")


def _last(folder: Path) -> str:
    log = folder / LOG
    lines = [line.strip() for line in reports.tail(log).splitlines() if line.strip()] if log.exists() else []
    return lines[-1] if lines else "it left no message"
