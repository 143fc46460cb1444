"""The engine of one machine: a bounded pool of processes, one a run, as many as cores and memory allow."""

from __future__ import annotations

import time
from multiprocessing import connection
from pathlib import Path

from claimlab.sweeps.book import Book
from claimlab.sweeps.child import Child, Ended, Job, resident

FIRST = 600 << 20  # bytes that a run is taken to need before one has been seen
SPARE = 512 << 20  # bytes that are left to the rest of the machine
LOOK = 0.2


class Local:
    """Runs up to `jobs` children of this process at a time, and fewer where memory is short; always at least one."""

    def __init__(self, book: Book, jobs: int):
        self.book, self.jobs = book, jobs
        self.children: list[Child] = []
        self.need = 0

    def room(self) -> bool:
        if not self.children or len(self.children) >= self.jobs:
            return not self.children
        need = self.need or FIRST
        promised = sum(max(0, need - resident(child.process.pid)) for child in self.children)  # what they will still take
        return free() - promised - SPARE >= need

    def start(self, job: Job) -> None:
        self.children.append(Child(job))

    def ended(self, seconds: float) -> list[Ended]:
        until, found = time.monotonic() + seconds, []
        while self.children and not found and (left := until - time.monotonic()) > 0:
            connection.wait([child.process.sentinel for child in self.children], min(left, LOOK))
            for child in list(self.children):
                child.look()
                if not child.process.is_alive():
                    self.children.remove(child)
                    found.append(child.outcome(self.book))
        self.need = max([self.need, *(one.memory for one in found)])
        return found

    def close(self) -> None:
        for child in self.children:
            child.stop()
        while self.children:
            self.ended(LOOK)


def free() -> int:
    """Memory that new processes may take, in bytes: what the machine has left, or less where a control group says so."""
    found = [_machine()]
    try:
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no group, or one without a limit
        pass
    return min(found)


def _machine() -> int:
    try:
        import psutil
    except ImportError:
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            return 1 << 62  # unknown: cores alone decide
    return psutil.virtual_memory().available
