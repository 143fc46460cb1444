"""The engine of one machine: a bounded pool of processes, one a run, as many as cores and memory allow."""

from __future__ import annotations

import time
from multiprocessing import connection

from claimlab import admission
from claimlab.sweeps.book import Book
from claimlab.sweeps.child import Child, Ended, Job

LOOK = 0.2


class Local:
    """Runs up to `jobs` children of this process at a time, and fewer where memory is short; always at least one."""

    def __init__(self, book: Book, jobs: int):
        self.book, self.jobs = book, jobs
        self.children: list[Child] = []
        self.need = 0

    def room(self) -> bool:
        need = self.need or admission.USUAL
        return admission.admits(need, [(need, admission.resident(child.process.pid)) for child in self.children], self.jobs)

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
