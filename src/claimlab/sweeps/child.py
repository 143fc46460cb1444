"""One run of a sweep in a process of its own: what happens in it, and how whoever started it watches and ends it.

The process comes from a forkserver that has torch loaded (0.1 s instead of 2 s), or is spawned where there is none. It ends
itself when the process that started it dies, however that died, so that no engine leaves work behind that nobody asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from claimlab import admission
from claimlab import study as studies
from claimlab.ledger import home
from claimlab.sweeps.book import Book

GRACE = 5.0  # seconds to write down what there is before a run that is to stop is killed
DEVELOPMENT = "these are development seeds, which are never judged"


@dataclass(frozen=True)
class Job:
    """One run to make: plain data that any process on any machine can be handed."""

    sweep: str
    owner: str
    key: str
    study: str
    params: dict[str, Any]
    profile: str
    seeds: tuple[int, ...]
    versions: dict[str, str]
    judged: bool
    environment: dict[str, str]
    threads: int = 1


@dataclass(frozen=True)
class Ended:
    """What has become of a job: finished, failed or stopped, why, and the largest memory seen (bytes)."""

    key: str
    status: str
    reason: str = ""
    memory: int = 0


# ---- in the process


def execute(job: Job) -> None:
    """Make the run of a job, enter it in the ledger, and set what has become of it."""
    from claimlab import live

    os.environ.update(job.environment)
    _prepare(job)
    study, book = studies.find(job.study), (Book if job.judged else Unjudged)(job.environment["CLAIMLAB_LEDGER"])
    params = study.module.Params(**job.params)
    run = book.start_run(study.slug, job.params, profile=job.profile, seeds=job.seeds, source_hash=study.source_hash,
                         versions=job.versions, branch=f"sweep {job.sweep}"[:80], status="starting")  # fmt: skip
    book.attach(job.key, run)
    _log_into(home() / run)
    status, reason = "finished", ""
    try:
        live.execute(study, params, book, run, seeds=job.seeds)
    except (live.Stopped, KeyboardInterrupt) as error:
        status, reason = "stopped", str(error) or "the sweep was stopped"
    except Exception as error:
        import traceback

        traceback.print_exc()
        status, reason = "failed", f"{type(error).__name__}: {error}"
    book.finish(run)
    book.set_status(run, status, reason)
    book.close()


class Unjudged(Book):
    """A ledger that keeps no verdict: for development seeds."""

    def record_verdicts(self, run: str, verdicts: list[dict[str, Any]], control: bool = False) -> None:
        nothing = dict(verdict="undecided", effect=None, low=None, high=None, values=[], reason=DEVELOPMENT,
                       sentence=f"Undecided: {DEVELOPMENT}.")  # fmt: skip
        super().record_verdicts(run, [{**v, **nothing} for v in verdicts], control)


def _prepare(job: Job) -> None:
    import torch

    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    torch.set_num_threads(job.threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _log_into(folder: Path) -> None:
    """Let what the study prints go into a file beside the run."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    with (folder / "worker.log").open("ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)


# ---- from outside


class Child:
    """The process of one job, seen by the process that started it."""

    def __init__(self, job: Job):
        self.job, self.memory, self.until = job, 0, None
        self.process = context().Process(target=execute, args=(job,), name=f"claimlab {job.sweep}")
        self.process.start()

    def look(self) -> None:
        """Remember the largest memory, and kill what was asked to stop and has not."""
        self.memory = max(self.memory, admission.resident(self.process.pid))
        if self.until is not None and time.monotonic() > self.until:
            self.process.kill()

    def stop(self) -> None:
        """Ask the run to stop and to keep what there is; after a while it is killed."""
        if self.until is None:
            self.process.terminate()
            self.until = time.monotonic() + GRACE

    def outcome(self, book: Book) -> Ended:
        """What has become of the run, once its process has ended; a run that could not say so itself is marked in the ledger."""
        code, key = self.process.exitcode, self.job.key
        self.process.close()
        status, reason = book.outcome(key)
        if status in ("finished", "failed", "stopped"):
            return Ended(key, status, reason, self.memory)
        reason = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        if code == -signal.SIGKILL:
            reason += " (out of memory, or by hand)"
        asked = self.until is not None
        status, reason = ("stopped", "the sweep was stopped") if asked else ("failed", reason)
        book.bury(key, status, reason)
        return Ended(key, status, reason, self.memory)


def context() -> Any:
    """Where processes come from: a forkserver with torch and the lab loaded, or a fresh interpreter each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["claimlab.sweeps.preloaded"])
    return found
