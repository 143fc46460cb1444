"""The engine of many machines: Dask hands jobs to its workers, and each worker runs them as the local engine does.

A worker's thread watches one child process. The ledger says who drives the sweep: once that is somebody else or nobody, the
worker ends its child, so that a cancelled sweep leaves nothing behind. A job that is made again, because its worker died, finds out
whether it was finished already.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

from claimlab.study import StudyError, find
from claimlab.sweeps.book import Book
from claimlab.sweeps.child import Child, Ended, Job

LOOK = 0.3
PATIENCE = 6  # seconds for a scheduler to answer
AHEAD = 2  # jobs handed over for each thread of the workers, so that none waits for this process


class Cluster:
    """Runs jobs on a Dask scheduler at `address` (host:port), or on `jobs` workers of its own on this machine."""

    def __init__(self, book: Book, address: str | None, jobs: int):
        try:
            import distributed
        except ImportError:
            raise StudyError("the engine dask needs the library distributed: pip install 'claimlab[dask]'") from None
        self.book, self.own, self.futures, self.buried = book, None, {}, []
        try:
            if address is None:
                self.own = distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
            self.client = distributed.Client(self.own or f"tcp://{address}", timeout=PATIENCE, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise StudyError(f"no Dask scheduler answers at {address}: {error or type(error).__name__}") from None
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """StudyError where there is no worker, or one that sees another ledger."""
        if not self.client.scheduler_info(n_workers=-1)["workers"]:
            raise StudyError("the Dask scheduler has no workers; start some with: dask worker HOST:PORT")
        sweeps = {row["name"] for row in self.book.sweeps()}
        try:
            answers = self.client.run(_sees, self.book.url)
        except Exception as error:
            raise StudyError(f"a Dask worker cannot use this ledger: {type(error).__name__}: {error}") from None
        blind = [where for where, seen in answers.items() if not sweeps <= set(seen)]
        if blind:
            raise StudyError(f"the Dask worker {blind[0]} sees another ledger; all of them need one that they share (CLAIMLAB_LEDGER)")

    def room(self) -> bool:
        threads = sum(one["nthreads"] for one in self.client.scheduler_info(n_workers=-1)["workers"].values())
        return len(self.futures) < AHEAD * max(1, threads)

    def start(self, job: Job) -> None:
        future = self.client.submit(supervise, job, key=f"claimlab-{job.key}-{os.urandom(4).hex()}", pure=False)
        self.futures[future] = job

    def ended(self, seconds: float) -> list[Ended]:
        until, over = time.monotonic() + seconds, []
        while self.futures and not over and time.monotonic() < until:
            over = [future for future in self.futures if future.done()]
            if not over:
                time.sleep(min(LOOK, seconds))
        return [self._outcome(future, self.futures.pop(future)) for future in over]

    def _outcome(self, future: Any, job: Job) -> Ended:
        if future.status == "finished":
            return future.result()
        lost = "its workers died" if future.status == "error" else f"Dask says {future.status}"
        reason = f"{lost}: {future.exception()}" if future.status == "error" else lost
        self.book.bury(job.key, "failed", reason)
        return Ended(job.key, "failed", reason)

    def close(self) -> None:
        """Let the workers end their children, which they do once the sweep has no driver, and leave the scheduler."""
        if self.client.status == "closed":
            return
        until = time.monotonic() + PATIENCE
        for job in self.futures.values():
            self.book.conclude(job.sweep, job.owner, "stopped")
        self.client.cancel([future for future in self.futures if not future.done()])
        while self.futures and time.monotonic() < until and any(self.client.processing().values()):
            time.sleep(LOOK)
        self.futures = {}
        self.client.close()
        if self.own is not None:
            self.own.close()


# ---- in a worker


def supervise(job: Job) -> Ended:
    """Run a job in a child of this worker and wait for it; end it when nobody drives its sweep any more."""
    multiprocessing.current_process()._config.pop("daemon", None)  # Dask's workers may be daemons; our child ends with its parent
    os.environ.update(job.environment)
    book = Book(job.environment["CLAIMLAB_LEDGER"])
    try:
        if book.finished(job.key):
            return Ended(job.key, "finished")
        if not book.driven(job.sweep, job.owner):
            return Ended(job.key, "stopped", "the sweep was stopped")
        find(job.study)  # says what is wrong before there is a process
        child = Child(job)
        while child.process.is_alive():
            child.process.join(LOOK)
            child.look()
            if not book.driven(job.sweep, job.owner):
                child.stop()
        return child.outcome(book)
    finally:
        book.close()


def _sees(url: str) -> list[str]:
    book = Book(url)
    names = [row["name"] for row in book.sweeps()]
    book.close()
    return names
