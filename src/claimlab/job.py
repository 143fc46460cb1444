"""One run under way: what its engine, its signal handlers and its polling thread share."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claimlab.study import Study, importable, surroundings

Progress = Callable[[int, int, str], None]
POLL = 0.3
BEAT = 1.0
GRACE = 10.0
ACTIVE: list[Job] = []
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(eq=False)
class Job:
    """One run under way: what the signal handlers, the polling thread and the engine share."""

    study: Study
    params: Any
    ledger: Any
    run: str
    folder: Path
    progress: Progress | None = None
    control: bool = False
    profile: str = "default"
    client: Any = None
    cells: list = field(default_factory=list)
    cell: int | None = None
    stopping: bool = False
    traceback: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def notebook(self) -> Path:
        return self.folder / "notebook.ipynb"

    def where(self, index: int | None) -> str:
        """The name of a cell: its number and the heading above it."""
        if index is None or index >= len(self.cells):
            return "before the first cell"
        above = [
            m[1] for c in self.cells[: index + 1] if c.cell_type == "markdown" and (m := re.search(r"(?m)^#+ (.+)$", c.source))
        ]
        return f"cell {index + 1}" + (f" ({above[-1].strip()})" if above else "")

    def stop(self) -> None:
        """Interrupt the kernel; at the second call, or when it does not obey, kill it."""
        again, self.stopping = self.stopping, True
        process = self.process
        if process is None:
            raise KeyboardInterrupt
        process.send_signal(signal.SIGKILL if again else signal.SIGINT)
        if not again:
            timer = threading.Timer(GRACE, process.kill)
            timer.daemon = True
            timer.start()

    def heed(self, *_: Any) -> None:
        """Called at each tick of a run without a kernel: an end that was asked for from another thread."""
        if self.stopping:
            raise KeyboardInterrupt

    @property
    def process(self):
        """The kernel's process, if one has been started."""
        manager = getattr(self.client, "km", None)
        return getattr(getattr(manager, "provisioner", None), "process", None)


def mend(job: Job) -> None:
    """Correct what papermill wrote after the kernel was gone: it calls the dead cell and all later ones completed."""
    from claimlab.lightly import nbformat

    if not job.notebook.exists():
        return
    node = nbformat.read(job.notebook, 4)
    for position, cell in enumerate(node.cells):
        reached = -1 if job.cell is None else job.cell
        if position >= reached and "papermill" in cell.metadata:
            cell.metadata.papermill.update(status="failed" if position == reached else "pending", exception=position == reached)
    node.metadata.setdefault("papermill", {})["exception"] = True
    nbformat.write(node, job.notebook)


def kernel_environment(job: Job) -> dict[str, str]:
    """How the kernel learns its run, and finds this package, the studies and the ledger from whatever folder it works in."""
    known = surroundings(job.folder.parent, job.ledger.url)
    return {**os.environ, **known, **importable(), "CLAIMLAB_RUN": job.run, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class Pulse:
    """A thread that tells the caller's `progress` what the ledger knows, and beats while the worker does not."""

    def __init__(self, job: Job):
        self.job, self.over, self.told = job, threading.Event(), None
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        ACTIVE.append(self.job)
        self.thread.start()

    def __exit__(self, *_):
        ACTIVE.remove(self.job)
        self.over.set()
        self.thread.join(timeout=5)

    def _watch(self) -> None:
        from claimlab.ledger import Ledger, LedgerError

        ledger = Ledger(self.job.ledger.url)
        while True:
            with suppress(LedgerError):  # a full disk, say: the run itself meets it and says so
                self._look(ledger)
            if self.over.wait(POLL):
                break
        ledger.close()

    def _look(self, ledger) -> None:
        row = ledger.run(self.job.run)
        if time.time() - (row["heartbeat"] or 0.0) > BEAT:
            ledger.heartbeat(self.job.run)
        now = (row["done"] or 0, row["total"] or 0, self.job.where(self.job.cell) if self.job.cells else row["status"])
        if self.job.progress is not None and now != self.told:
            self.job.progress(*now)
            self.told = now


@contextmanager
def signals(job: Job, kernel: bool):
    """SIGTERM and Ctrl-C stop the run and keep what there is, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def obey(number, frame):
        if not kernel:
            job.stopping = True
            raise KeyboardInterrupt
        job.stop()

    before = {s: signal.signal(s, obey) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
