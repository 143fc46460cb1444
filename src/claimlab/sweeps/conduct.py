"""Drives a sweep to its end on any engine, and goes on with one that was stopped or killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from claimlab.ledger import home
from claimlab.runner import provenance
from claimlab.study import StudyError, surroundings
from claimlab.sweeps import engine as engines
from claimlab.sweeps.book import Book, owner_here
from claimlab.sweeps.child import Ended, Job
from claimlab.sweeps.plan import Plan

BEAT = 1.0  # seconds


@dataclass(frozen=True)
class Tally:
    """How a sweep stands: points finished and all of them, of which `before` were finished when it began, and what failed."""

    name: str
    status: str
    done: int
    total: int
    before: int
    failed: tuple[Ended, ...] = ()


def name_of(plan: Plan) -> str:
    """The name of a sweep that was given none: the same for the same command."""
    return f"{plan.study.slug[:50]}-{plan.kind}-{plan.mark}"


def conduct(plan: Plan, book: Book, *, name: str = "", engine: str = "local", jobs: int | None = None,
            told: Callable[[Tally, Ended | None], None] | None = None) -> Tally:  # fmt: skip
    """Run what is missing of a plan and return how the sweep stands.

    A sweep of that name with the same plan goes on where it stopped: only finished runs count, all others are made again. Raises
    StudyError before anything has started (another plan of that name, an engine that is not there, a second driver), and
    KeyboardInterrupt after the running processes have been stopped.
    """
    name, owner = name or name_of(plan), owner_here()
    versions = provenance(plan.study)
    engines.check(engine, jobs)
    book.enter(name, plan, versions)
    try:
        executor = engines.make(engine, book, jobs)
    except StudyError:
        book.forget(name)
        raise
    try:
        book.drive(name, owner, engine)
        try:
            status = _drive(plan, book, name, owner, executor, versions, told)
        except BaseException:
            executor.close()
            book.conclude(name, owner, "stopped")
            raise
        executor.close()
        book.conclude(name, owner, status)
    finally:
        executor.close()
    return _tally(book, name, status, 0)


def _drive(plan: Plan, book: Book, name: str, owner: str, executor: engines.Executor, versions: dict[str, str], told) -> str:
    points = book.points(name)
    todo = list({p["key"]: p for p in points if p["status"] != "finished"}.values())  # points with one key share one run
    going, failed, before = set(), [], len(points) - sum(p["status"] != "finished" for p in points)
    tell = told or (lambda *_: None)
    tell(_tally(book, name, "running", before), None)
    around, threads = surroundings(home(), book.url), int(os.environ.get("OMP_NUM_THREADS") or 1)
    while todo or going:
        while todo and executor.room():
            point = todo.pop(0)
            executor.start(Job(name, owner, point["key"], plan.study.slug, point["params"], plan.profile, plan.seeds, versions,
                               plan.judged, around, threads))  # fmt: skip
            going.add(point["key"])
        for one in executor.ended(BEAT):
            going.discard(one.key)
            failed += [one] if one.status != "finished" else []
            tell(_tally(book, name, "running", before, failed), one)
        if not book.beat(name, owner):
            return "stopped"
    return "failed" if failed else "finished"


def _tally(book: Book, name: str, status: str, before: int, failed: list[Ended] | tuple = ()) -> Tally:
    points = book.points(name)
    done = sum(p["status"] == "finished" for p in points)
    if not failed:
        failed = [Ended(p["key"], p["status"], p["reason"] or "") for p in points if p["status"] in ("failed", "stopped", "lost")]
    return Tally(name, status, done, len(points), before, tuple(failed))
