"""Starts a run in a process of its own, so that neither a closed tab nor a restart of this server ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from panels.knobs import Request

from claimlab import ledger as ledgers
from claimlab import params, remote, study
from claimlab.ledger import Ledger, LedgerError
from claimlab.study import Study

LATE = 45.0
RESUMABLE = ("failed", "stopped", "timed out", "lost")
CHILDREN: dict[str, subprocess.Popen] = {}
REPLAYS: dict[str, subprocess.Popen] = {}


def start(one: Study, request: Request, book: Ledger) -> str:
    """Check the knobs, enter the run in the ledger and start its process; KnobError before anything has started."""
    checked = params.make(one.Params, {**request.values, **(one.control.set if request.control else {})}, request.profile)
    values = params.values(checked)
    run = book.start_run(one.slug, values, profile=request.profile, seeds=range(checked.seeds), source_hash=one.source_hash,
                         control=request.control)  # fmt: skip
    folder = ledgers.home() / run
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.log").open("wb") as log:
        CHILDREN[run] = subprocess.Popen(
            command(one, run, values, request), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env=environment(book),
        )  # fmt: skip
    return run


def command(one: Study, run: str, values: dict[str, Any], request: Request) -> list[str]:
    """The child's command line: a list of arguments that no shell reads; the child checks every knob again."""
    knobs = [part for name, value in values.items() for part in ("-p", f"{name}={value}")]
    flags = ["--control"] if request.control else []
    flags += ["--single-file"] if request.notebook else ["--no-kernel"]
    return [sys.executable, "-m", "claimlab.cli", "run", one.slug, "--run-id", run, "--profile", request.profile, *flags, *knobs]


def resume(run: str, book: Ledger) -> None:
    """Go on with a run that has ended early, from its last checkpoint; LedgerError if it goes on already or is finished."""
    row = book.run(run)
    if row["status"] not in RESUMABLE:
        raise LedgerError(f"the run {run} is {row['status']}; only one that has ended early can be resumed")
    book.set_status(run, "queued", "")  # so that a second press finds it taken
    CHILDREN[run] = spawn(run, ["resume", run], "worker.log", book)


def replay(run: str, seeds: str, book: Ledger) -> None:
    """Do again what was done to a run, for these seeds (`5..9`); KnobError for what are no seeds."""
    remote.seeds_of(seeds)
    REPLAYS[run] = spawn(run, ["replay", run, "--seeds", seeds], "replay.log", book)


def replaying(run: str) -> str:
    """How the last replay of a run stands that this server started: `under way`, the last line of one that failed, or nothing."""
    child = REPLAYS.get(run)
    if child is None or child.poll() == 0:
        return ""
    return "under way" if child.poll() is None else last_line(run, "replay.log")


def spawn(place: str, words: list[str], log: str, book: Ledger) -> subprocess.Popen:
    """A command of claimlab in a process of its own, which outlives this one; what it says is added to a log in the folder `place`
    (that of a run) of the home of runs."""
    folder = ledgers.home() / place
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = {k: v for k, v in environment(book).items() if k != "CLAIMLAB_RUN"}
    with (folder / log).open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "claimlab.cli", *words], stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT, start_new_session=True, env=surroundings)  # fmt: skip


def environment(book: Ledger) -> dict[str, str]:
    """How the child finds the same ledger, home of runs and studies."""
    return {**os.environ, **study.surroundings(ledgers.home(), book.url), **study.importable()}


def settle(book: Ledger) -> None:
    """Mark runs as failed whose process ended, or never came up, without having said so; with the last line of its log."""
    for run, child in list(CHILDREN.items()):
        if child.poll() is None:
            continue
        del CHILDREN[run]
        row = book.run(run)
        if row["status"] not in ledgers.ENDED:
            book.set_status(run, "failed", f"the process ended with exit code {child.returncode}: {last_line(run)}")
    for row in book.runs(status="queued", limit=50):
        if row["id"] not in CHILDREN and time.time() - (row["heartbeat"] or row["started"]) > LATE:
            book.set_status(row["id"], "failed", f"it did not start within {LATE:g} s: {last_line(row['id'])}")


def last_line(run: str, log: str = "worker.log") -> str:
    """The last words of a run's log."""
    path: Path = ledgers.home() / run / log
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")
