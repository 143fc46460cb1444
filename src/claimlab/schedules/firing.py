"""One firing of a schedule, in a process of its own: the report, tried again after a failure, told to the ledger and by e-mail."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from claimlab.ledger import LedgerError
from claimlab.params import KnobError
from claimlab.reports import mail, making, summary
from claimlab.schedules.calendar import BEAT, Calendar, stream
from claimlab.schedules.plan import Schedule
from claimlab.study import StudyError

CODES = {"finished": 0, "failed": 1, "timed out": 1, "stopped": 130}
REFUSED = 2


@dataclass
class Firing:
    """One firing on its way: what its threads share."""

    schedule: Schedule
    number: int
    over: threading.Event = field(default_factory=threading.Event)
    late: bool = False
    attempts: int = 0
    found: dict[str, Any] | None = None  # the document of the last report that was written
    code: int = 1
    reason: str = ""

    @property
    def status(self) -> str:
        if self.late:
            return "timed out"
        return "finished" if self.code == 0 else "stopped" if self.code == 130 else "failed"


def fire(schedule: Schedule, due: float, say: Callable[[str], None], show: Callable[[making.State], None] = lambda state: None) -> int:
    """Make the report of a schedule that was due at `due`; the exit code. 0 where another process makes it, or has made it."""
    book = Calendar()
    try:
        number = book.claim(schedule.name, due, str(schedule.out))
        if number is None:
            say(f"{schedule.name}: it runs already, or has been run for this time; nothing was started")
            return 0
        this = Firing(schedule, number)
        book.event(stream(schedule.name), "started", payload={"due": due, "firing": number})
        with _Watch(this, book.url):
            _attempts(this, book, say, show)
        book.end(number, this.status, this.code, this.reason, this.attempts)
        facts = {"firing": number, "code": this.code, "reason": this.reason, "attempts": this.attempts}
        book.event(stream(schedule.name), this.status, payload=facts)
        say(f"{schedule.name}: {this.status}" + (f": {this.reason}" if this.reason else ""))
        unsent = _tell(this)
        if unsent:
            book.event(stream(schedule.name), "unsent", payload={"reason": unsent})
            say(f"{schedule.name}: the e-mail was not sent: {unsent}")
        return max(CODES[this.status], 1 if unsent and this.code == 0 else 0) if this.code != REFUSED else REFUSED
    finally:
        book.close()


def _attempts(this: Firing, book: Calendar, say: Callable[[str], None], show: Callable[[making.State], None]) -> None:
    """Make the report until it is whole; after a failure again, each time after twice as long a pause."""
    schedule = this.schedule
    for this.attempts in range(1, schedule.retries + 2):
        this.code, this.reason = _attempt(this, book, show)
        if this.late:
            this.reason = f"it took longer than {schedule.hours} h"
        if this.code in (0, REFUSED, 130) or this.late or this.attempts > schedule.retries:
            return
        pause = schedule.backoff * 2 ** (this.attempts - 1)
        book.event(stream(schedule.name), "retry", payload={"firing": this.number, "reason": this.reason, "seconds": pause})
        say(f"{schedule.name}: {this.reason}; once more in {pause} s")
        if _rest(this, pause):
            this.code = 130
            return


def _attempt(this: Firing, book: Calendar, show: Callable[[making.State], None]) -> tuple[int, str]:
    one = this.schedule
    try:
        found = making.report(one.slugs, one.profile, one.out, ledger=book, jobs=one.jobs, force=one.force and this.attempts == 1,
                              single_file=one.single_file, show=show)  # fmt: skip
    except KeyboardInterrupt:  # before its first run, or after its last
        return 130, "interrupted"
    except (KnobError, StudyError) as error:
        return REFUSED, str(error)
    except LedgerError as error:
        return 1, str(error)
    except Exception as error:  # whatever a report dies of is told and tried again
        return 1, f"{type(error).__name__}: {error}"
    this.found = found
    if found["interrupted"]:
        return 130, "interrupted"
    failed = sorted({one["study"] for one in found["failures"]})
    return (1, f"{len(failed)} of {len(found['studies'])} studies did not finish: {', '.join(failed)}") if failed else (0, "")


def _rest(this: Firing, seconds: float) -> bool:
    """Wait between two attempts; whether a signal ended it."""
    before = {s: signal.signal(s, lambda *_: this.over.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return this.over.wait(seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """A thread that says that the firing goes on, and stops it when it takes too long."""

    def __init__(self, this: Firing, url: str):
        self.this, self.url, self.done = this, url, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.done.set()
        self.thread.join(timeout=10)

    def _watch(self) -> None:
        book, end = Calendar(self.url), time.monotonic() + 3600 * self.this.schedule.hours
        while not self.done.wait(BEAT):
            with suppress(LedgerError):  # a full disk, say: the report meets it and says so
                book.beat(self.this.number, self.this.attempts)
            if time.monotonic() > end and not self.this.late:
                self.this.late = True
                os.kill(os.getpid(), signal.SIGTERM)
        book.close()


def _tell(this: Firing) -> str:
    """Send the report, or that there is none; in words why it could not be sent."""
    if not this.schedule.email:
        return ""
    try:
        server = mail.settings(this.schedule.email)
        letter = mail.letter(this.found, this.schedule.out) if this.found is not None else EmailMessage()
        del letter["Subject"]
        if this.found is None:
            letter.set_content(f"The report {this.schedule.name} was not written.\n\n{this.reason}\n\nAttempts: {this.attempts}\n")
        told = f"{this.status} after {this.attempts} attempts: {this.reason}" if this.code else summary.headline(this.found)
        letter["Subject"] = f"claimlab {this.schedule.name}: {' '.join(told.split())[:200]}"
        return mail.try_send(server, letter, this.schedule.email)
    except StudyError as error:
        return str(error)
