"""Checkpoints of a run: written beside its other files, few kept, and the start of forks and of what is resumed or undone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from claimlab.experiment import Experiment
from claimlab.ledger import Ledger, home

LAST = 3  # regular checkpoints that are kept
SECONDS = 20.0  # between two of them, at least
SHARE = 0.02  # of a run's time that may go into writing them
COURTESY = 0.03  # seconds before the disk's turn: saving holds the interpreter, and whoever asked for a change wants an answer


class Shelf:
    """The checkpoints of one run: model, optimiser, schedule, generators, data cursor and steering state of every arm."""

    def __init__(self, ledger: Ledger, run: str):
        self.ledger, self.run, self.folder = ledger, run, home() / run / "checkpoints"
        self.wait, self.last = SECONDS, time.monotonic()
        self.here, self.changed = (-1, ""), False  # the checkpoint of this very step, and whether a change came after it
        self.taken: set[str] | None = None  # names of checkpoints that this run ever had
        self.writing: dict[str, Future] = {}  # training does not wait for the disk: it goes on while a copy is written
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def put(self, lab: Experiment, why: str, *, exact: bool = True) -> str:
        """Write the state of `lab` and return the checkpoint's name; one that was written at this very step is used again.

        Unless `exact`, also where a change has come since: a burst of changes at one step is undone together.
        """
        if self.here[0] == lab.done and not (exact and self.changed):
            return self.here[1]
        self.settle(leave=1)
        if self.taken is None:
            self.taken = {e["payload"]["name"] for e in self.ledger.events(self.run) if e["kind"] == "checkpoint"}
        name = next(n for k in count(1) if (n := f"{lab.done:09d}" + (f"-{k}" if k > 1 else "")) not in self.taken)
        self.taken.add(name)
        self.writing[name] = self.writer.submit(self._write, lab.state() if why != "end" else _light(lab.state()), name)
        self.last, self.here, self.changed = time.monotonic(), (lab.done, name), False
        facts = {"name": name, "arms": {n: getattr(a, "step", 0) for n, a in lab.arms.items()}, "why": why}
        self.ledger.event(self.run, "checkpoint", step=lab.done, payload=facts)
        return name

    def _write(self, state: dict[str, Any], name: str) -> None:
        import torch

        time.sleep(COURTESY)
        began, path = time.monotonic(), self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        self.wait = max(SECONDS, (time.monotonic() - began) / SHARE)

    def settle(self, leave: int = 0) -> None:
        """Wait until all but the newest `leave` checkpoints are on the disk; OSError where one could not be written."""
        for name in list(self.writing)[: len(self.writing) - leave]:
            self.writing.pop(name).result()

    def regular(self, lab: Experiment) -> None:
        """Write a checkpoint when it is time, and let go of regular ones that are no longer among the last."""
        if time.monotonic() - self.last < self.wait:
            return
        self.put(lab, "regular")
        for one in [c for c in self.all() if c["why"] == "regular"][:-LAST]:  # the newest two at most are still being written
            self.path(one["name"]).unlink(missing_ok=True)

    def end(self, lab: Experiment) -> None:
        """Keep the networks of a run that is done, without their optimisers, and let go of what only resuming needs."""
        if [one for one in self.all() if one["why"] == "end"]:
            return
        self.here = (-1, "")
        self.put(lab, "end")
        self.settle()
        for one in [c for c in self.all() if c["why"] == "regular"]:
            self.path(one["name"]).unlink(missing_ok=True)

    def all(self) -> list[dict[str, Any]]:
        """The checkpoints that are there, oldest first: name, step of each arm, why it was written."""
        found = [e["payload"] for e in self.ledger.events(self.run) if e["kind"] == "checkpoint"]
        return [one for one in found if one["name"] in self.writing or self.path(one["name"]).exists()]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def at(self, step: int, arm: str | None = None) -> str:
        """The latest checkpoint at which `arm` (or every arm) had come no further than `step`."""
        known = self.all()
        reached = {c["name"]: max((s for n, s in c["arms"].items() if arm in (None, n)), default=0) for c in known}
        fit = [name for name, s in reached.items() if s <= step]
        if not fit:
            there = f"; there are some at {sorted(set(reached.values()))}" if reached else ""
            raise ValueError(f"there is no checkpoint at or before step {step}{there}")
        return max(fit, key=lambda name: (reached[name], name))

    def read(self, name: str) -> dict[str, Any]:
        """The state that a checkpoint holds; ValueError where there is none of that name."""
        import torch

        self.settle()
        if name not in [one["name"] for one in self.all()]:
            raise ValueError(f"there is no checkpoint {name!r}; checkpoints: {', '.join(c['name'] for c in self.all()) or 'none'}")
        return torch.load(self.path(name), weights_only=True)

    def take(self, lab: Experiment, name: str, by: str = "") -> None:
        """Set `lab` back to a checkpoint; what was recorded since stays in the ledger, marked as undone."""
        lab.load(self.read(name))
        self.here, self.changed = (lab.done, name), False
        self.ledger.flush()
        to = {arm: getattr(one, "step", 0) for arm, one in lab.arms.items()}
        facts = {"checkpoint": name, "to": to, "cursor": self.ledger.cursor(self.run), "by": by}
        self.ledger.event(self.run, "rollback", step=lab.done, payload=facts)

    def branch(self, name: str, change: dict[str, Any] | None) -> str:
        """Enter a new run that starts from a checkpoint with one change, and start it in a process of its own; its id."""
        self.settle()
        row = self.ledger.run(self.run)
        child = self.ledger.start_run(
            row["study"], row["params"], profile=row["profile"], seeds=row["seeds"], source_hash=row["source_hash"],
            versions=row["versions"], parent=self.run, branch=name,
        )  # fmt: skip
        self.ledger.event(child, "forked", payload={"parent": self.run, "checkpoint": name, "change": change})
        self.ledger.event(self.run, "fork", payload={"child": child, "checkpoint": name, "change": change})
        start(child)
        return child


def _light(state: Any) -> Any:
    """A state without the optimisers: enough to look at the networks, and too little to go on."""
    if isinstance(state, dict):
        return {key: None if key == "optimizers" else _light(value) for key, value in state.items()}
    return [_light(one) for one in state] if isinstance(state, list) else state


def start(run: str) -> subprocess.Popen:
    """Go on with a run in a process of its own, which outlives this one."""
    command = [sys.executable, "-m", "claimlab.cli", "resume", run]
    folder = home() / run
    folder.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "CLAIMLAB_RUN"}  # a notebook's kernel has a run of its own
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
