"""A report from top to bottom: plan it, run what is missing or stale, say what came of it, lay it down.

A report that was stopped or killed leaves its finished runs in the ledger and a note in its folder; the same command finds both
and goes on where it stopped, also one that was told to reuse nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claimlab import admission, export
from claimlab.reports import document as documents
from claimlab.reports import planning, timing, writing
from claimlab.reports.planning import Choice, Entry, Item
from claimlab.reports.running import Hands
from claimlab.study import StudyError
from claimlab.sweeps.tuning import tuned_equally

NOTE = "unfinished.json"
MEMORY = 7 * 86_400.0  # seconds after which a report that never came to its end is begun anew
SILENCE = 8.0  # seconds after which a run without a sign of life is lost


@dataclass(frozen=True)
class State:
    """How far a report is: all its runs, the share of the work that is done, seconds left (None: nobody knows)."""

    items: tuple[Item, ...]
    share: float
    left: float | None

    @property
    def going(self) -> list[Item]:
        return [one for one in self.items if one.began and not one.ended]

    @property
    def over(self) -> int:
        return sum(bool(one.ended) for one in self.items)


def report(slugs: Iterable[str], profile: str = "default", out: Path | str = Path("runs/report"), *, ledger: Any = None,
           jobs: int | None = None, force: bool = False, control: bool = True, single_file: bool = False,
           show: Callable[[State], None] = lambda state: None) -> dict[str, Any]:  # fmt: skip
    """Run what is missing or stale of these studies and write the report into the folder `out`; the document of it.

    StudyError names an unknown study before anything starts. A study that is broken, fails or is stopped is listed with its
    reason and stops no other. At most `jobs` runs go side by side (default: as many as cores and memory carry). An interrupt
    ends what runs; the report is then written from what there is, unless a whole one lies there already. `force` reuses
    nothing; `show` is told how far it is.
    """
    from claimlab.ledger import Ledger

    studies, out = planning.chosen(slugs), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    book = ledger or Ledger()
    try:
        with _alone(out):
            writing.settle(out)
            book.reap(SILENCE)
            asked = {"studies": [s.slug for s in studies], "profile": profile, "force": force, "control": control}
            since = _begin(out, asked)
            entries = planning.plan(book, studies, Choice(profile, force, control, since))
            hands = _run(book, out, entries, jobs, show)
            return _write(book, out, entries, profile, since, hands.over.is_set(), single_file)
    finally:
        if ledger is None:
            book.close()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One report at a time writes into a folder; the system lets go of the lock of a process that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyError(f"out = {out} is not allowed now: another report is being written there") from None
    try:
        yield
    finally:
        lock.release()


def _begin(out: Path, asked: dict[str, Any]) -> float:
    """When this report began: now, or when the one began that was asked for the same and never came to its end."""
    note, began = _note(out), time.time()
    if note.get("asked") == asked and began - note["began"] < MEMORY:
        began = note["began"]
    _tell(out, {"asked": asked, "began": began, "pid": os.getpid()})
    return began


def _note(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _tell(out: Path, facts: dict[str, Any]) -> None:
    part = out / f"{NOTE}.part"
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(out / NOTE)


def _run(book: Any, out: Path, entries: list[Entry], jobs: int | None, show: Callable[[State], None]) -> Hands:
    items = tuple(item for one in entries for item in (one.main, one.control) if item is not None)
    abreast = min(jobs or admission.abreast(), max(1, len(items)))
    note, told = _note(out), [0.0]

    def look() -> None:
        share, left = timing.progress([one.work for one in items if not one.reused], abreast)
        state = State(items, share, left)
        show(state)
        if time.monotonic() - told[0] > 1:
            told[0] = time.monotonic()
            _tell(out, {**note, "runs": len(items), "over": state.over, "share": round(share, 3), "left": left,
                        "going": [one.name for one in state.going]})  # fmt: skip

    hands = Hands(book, abreast, look)
    look()
    hands.run(entries)
    return hands


def _write(book: Any, out: Path, entries: list[Entry], profile: str, began: float, interrupted: bool, single: bool) -> dict[str, Any]:
    book.reap(SILENCE)  # runs of a report that was killed a moment before this one began
    for one in entries:
        judged = one.control.outcome if one.control is not None else None
        if one.outcome is not None and judged is not None and one.outcome.status == judged.status == "finished":
            book.record_verdicts(one.outcome.run, judged.verdicts, control=True)
    found = documents.make(entries, profile, began=began, interrupted=interrupted, earlier=documents.history(out))

    before = documents.read(out / documents.NAME)
    if interrupted and before is not None and not before["interrupted"]:
        return found  # a whole report is worth more than the half of the next one

    def pages(folder: Path) -> None:
        for one in entries:
            if one.page:
                page(one, profile, folder, single)

    writing.write(found, out, pages, single)
    if not interrupted:
        (out / NOTE).unlink(missing_ok=True)
    return found


def page(entry: Entry, profile: str, folder: Path, single_file: bool) -> None:
    """Write the page of a study: its executed notebook with the verdicts, and those under the control, at its head."""
    main, study = entry.outcome, entry.study
    facts = [f"run {main.run}", f"profile {profile}", f"{main.params.get('seeds')} seeds", f"{main.seconds:.0f} s"]
    facts.append(f"tuned equally: {tuned_equally(study).word}")
    if entry.control is not None and entry.control.outcome is not None:
        settings = ", ".join(f"{k} = {v}" for k, v in study.control.set.items())
        facts.append(f"negative control with {settings}: {study.control.why}")
    shown = dict(title=study.paper.title, status=main.status, reason=main.reason, traceback="", facts=facts,
                 rows=entry.rows(), back="index.html")  # fmt: skip
    export.page(main.notebook, folder / entry.page, shown, single_file=single_file)
