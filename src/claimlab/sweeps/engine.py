"""What runs the jobs of a sweep: the interface of all engines, and how one is chosen by its name."""

from __future__ import annotations

from typing import Protocol

from claimlab import admission
from claimlab.study import StudyError
from claimlab.sweeps.book import Book
from claimlab.sweeps.child import Ended, Job

REMOTE = "dask://"


class Executor(Protocol):
    """An engine: it runs each job in a process of its own. A process that dies fails its own job and no other."""

    def room(self) -> bool:
        """Whether another job may start now."""
        ...

    def start(self, job: Job) -> None:
        """Begin a job."""
        ...

    def ended(self, seconds: float) -> list[Ended]:
        """What has ended since the last call, after at most `seconds`."""
        ...

    def close(self) -> None:
        """End what still runs, and keep what it has recorded. Calling it twice is harmless."""
        ...


def make(name: str, book: Book, jobs: int | None = None) -> Executor:
    """The engine `local`, `dask-local` or `dask://host:port`; StudyError where it cannot be used."""
    check(name, jobs)
    if name == "local":
        from claimlab.sweeps.local import Local

        return Local(book, jobs or admission.cores())
    from claimlab.sweeps.cluster import Cluster

    return Cluster(book, name.removeprefix(REMOTE) if name.startswith(REMOTE) else None, jobs or admission.cores())


def check(name: str, jobs: int | None = None) -> None:
    """StudyError for a name that is no engine's, or fewer than one run at a time."""
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs = {jobs} is not allowed: it must be at least 1")
    if name not in ("local", "dask-local") and not (name.startswith(REMOTE) and name != REMOTE):
        raise StudyError(f"engine = {name!r} is not allowed: local, dask-local, or dask://host:port")
