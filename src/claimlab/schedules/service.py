"""The process that waits: APScheduler with its job store in the ledger's database. Each firing is a process of its own.

What was due while no scheduler lived is made up for once: the store keeps when each job is due next, and many missed times make one
run. Several schedulers may serve one ledger; the calendar lets one of them have each time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_SUBMITTED, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING
from apscheduler.triggers.base import BaseTrigger

from claimlab.database import home
from claimlab.schedules.calendar import BEAT, Calendar, owner, stream
from claimlab.schedules.cron import Cron
from claimlab.schedules.plan import Schedule, read
from claimlab.study import StudyError

TABLE = "schedule_job"
SIDE_BY_SIDE = 8  # firings of different schedules
LONG = timedelta(hours=2)
SERVICES: dict[str, Service] = {}  # the store keeps the name of a function, and no object


class ByTheClock(BaseTrigger):
    """Cron's times for APScheduler, whose own trigger counts Monday as 0 and stumbles where a clock is put forward or back."""

    def __init__(self, cron: Cron):
        self.cron = cron

    def __getstate__(self) -> dict[str, str]:
        return {"text": self.cron.text, "zone": self.cron.zone}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.cron = Cron(state["text"], state["zone"])

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        if previous_fire_time is None:
            return self.cron.next(now.astimezone(UTC))
        previous = previous_fire_time.astimezone(UTC)
        if now - previous > LONG and (missed := self.cron.last(now.astimezone(UTC))) is not None and missed > previous:
            return missed  # of all that were missed the last one stands for all
        return self.cron.next(previous)


class Scheduler(BackgroundScheduler):
    """APScheduler looks once more for what is due while it is shut down, when nothing can be started any more; this one does not."""

    def _process_jobs(self) -> float | None:
        return super()._process_jobs() if self.state == STATE_RUNNING else None


def due(service: str, name: str) -> None:
    """What APScheduler calls when a schedule is due."""
    SERVICES[service].start(name)


class Service:
    """A scheduler for the schedules of one file. `say` is told what happens."""

    def __init__(self, file: Path, say: Callable[[str], None]):
        self.file, self.say, self.over = file.absolute(), say, threading.Event()
        self.schedules, self.stamp = read(file), _stamp(file)
        self.book = Calendar()
        self.children: dict[str, subprocess.Popen] = {}
        self.failed: set[str] = set()  # schedules whose last firing here failed
        self.lock = threading.Lock()
        store = SQLAlchemyJobStore(url=self.book.url, tablename=TABLE, engine_options=_patient(self.book.url))
        self.scheduler = Scheduler(
            jobstores={"default": store}, executors={"default": ThreadPoolExecutor(SIDE_BY_SIDE)}, timezone=UTC,
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
        )  # fmt: skip
        SERVICES[str(self.file)] = self
        self.going = 0  # jobs that APScheduler has begun and not ended
        self.scheduler.add_listener(self._heard, EVENT_JOB_ERROR | EVENT_JOB_EXECUTED | EVENT_JOB_SUBMITTED)

    def run(self, until_idle: bool = False) -> int:
        """Serve until a signal comes, or, with `until_idle`, until all that was missed has been made up for; 1 if a firing failed."""
        self.scheduler.start(paused=True)
        try:
            self._sync()
            self.scheduler.resume()
            quiet = 0
            while not self.over.wait(0.5) and quiet < 3:
                self._tend()
                quiet = quiet + 1 if until_idle and self._idle() else 0
        finally:
            self._end()
        return 1 if self.failed else 0

    def _heard(self, event: JobEvent) -> None:
        with self.lock:
            self.going += 1 if event.code == EVENT_JOB_SUBMITTED else -1
        if event.code == EVENT_JOB_ERROR:
            self.failed.add(event.job_id)
            self.say(f"{event.job_id}: {type(event.exception).__name__}: {event.exception}")

    def start(self, name: str) -> None:
        """Run a schedule that is due in a process of its own, and wait for it."""
        one = self.schedules.get(name)
        moment = one.cron.last(datetime.now(UTC)) if one is not None else None
        if moment is None or self.over.is_set() or name in self.book.paused() or self.book.had(name, moment.timestamp()):
            return
        if any(last["status"] == "running" for last in self.book.firings(name, 1)):
            self.book.event(stream(name), "skipped", payload={"due": moment.timestamp(), "reason": "the one before it still runs"})
            self.say(f"{name}: the one before it still runs; the time {moment:%Y-%m-%d %H:%M} UTC is left out")
            return
        self._child(one, moment.timestamp())

    def _child(self, one: Schedule, moment: float) -> None:
        words = [sys.executable, "-m", "claimlab.cli", "schedule", "run", one.name, "--file", str(self.file), "--due", repr(moment)]
        one.out.mkdir(parents=True, exist_ok=True)
        with (one.out / "schedule.log").open("ab") as log:
            with self.lock:
                if self.over.is_set():
                    return
                self.say(f"{one.name}: started")
                child = self.children[one.name] = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "CLAIMLAB_HOME": str(home()), "CLAIMLAB_LEDGER": self.book.url},
                )  # fmt: skip
        code = child.wait()
        self.say(f"{one.name}: ended with exit code {code}" + (f"; {one.out / 'schedule.log'} says why" if code else ""))
        (self.failed.add if code not in (0, 130) else self.failed.discard)(one.name)
        with self.lock:
            self.children.pop(one.name, None)

    def _sync(self) -> None:
        """Give APScheduler the jobs of the file. One that has not changed keeps when it is due next: what was missed is not forgotten."""
        known = {job.id: job for job in self.scheduler.get_jobs()}
        for name, one in self.schedules.items():
            job = known.get(name)
            if job is None or job.trigger.cron != one.cron or job.args[0] != str(self.file):
                self.scheduler.add_job(due, ByTheClock(one.cron), args=[str(self.file), name], id=name, name=name, replace_existing=True)
        for name, job in known.items():
            if name not in self.schedules and job.args[0] == str(self.file):
                self.scheduler.remove_job(name)

    def _tend(self) -> None:
        """Between two looks: a sign of life, what others have left unfinished, and a file that has been edited."""
        if time.monotonic() - getattr(self, "_told", 0.0) > BEAT:
            self._told = time.monotonic()
            self.book.serve()
            for name in self.book.lost():
                self.book.event(stream(name), "lost", payload={"by": owner()})
                self.say(f"{name}: its process has died; it is made up for now")
                if name in self.schedules and name not in self.book.paused():
                    threading.Thread(target=self._child, args=(self.schedules[name], time.time()), daemon=True).start()
        if (stamp := _stamp(self.file)) != self.stamp:
            self.stamp = stamp
            try:
                self.schedules = read(self.file)
                self._sync()
                self.say(f"{self.file.name} has been read again")
            except StudyError as error:
                self.say(f"{error}; the schedules stay as they were")

    def _idle(self) -> bool:
        now, jobs = datetime.now(UTC), self.scheduler.get_jobs()
        return not self.going and not self.children and not any(job.next_run_time and job.next_run_time <= now for job in jobs)

    def stop(self, *_: Any) -> None:
        """End the service; reports under way are stopped, and written from what there is."""
        self.over.set()

    def _end(self) -> None:
        with self.lock:
            self.over.set()
            for child in self.children.values():
                child.send_signal(signal.SIGTERM)
        self.scheduler.shutdown(wait=True)
        self.book.serve(False)
        self.book.close()
        SERVICES.pop(str(self.file), None)


def _stamp(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


def _patient(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
