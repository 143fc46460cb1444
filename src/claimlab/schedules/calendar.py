"""What the ledger knows of schedules: each time one was due and what came of it, which are paused, which scheduler lives.

The database itself lets no schedule overlap itself: a firing that runs is alone in a unique index, for all processes.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from claimlab import schema
from claimlab.ledger import Ledger, LedgerError
from claimlab.watching import lives

BEAT = 3.0  # seconds between two signs of life of a firing, and of a scheduler
LATE = 30.0  # seconds after which a firing without one is lost


class Calendar(Ledger):
    """The ledger with what schedules have done."""

    def claim(self, schedule: str, due: float, out: str = "") -> int | None:
        """Begin the firing of a schedule that was due at `due`, for this process alone; None where another has it, or had it, or
        one before it still runs."""
        now = time.time()
        row = {"schedule": schedule, "due": due, "began": now, "heartbeat": now, "status": "running", "out": out, "owner": owner()}
        try:
            with self._writing() as connection:
                return connection.execute(schema.firing.insert().values(**row)).inserted_primary_key[0]
        except LedgerError as error:
            if isinstance(error.__cause__, IntegrityError):
                return None
            raise

    def beat(self, firing: int, attempts: int) -> None:
        """Say that a firing goes on, and at which attempt it is."""
        self._change(firing, heartbeat=time.time(), attempts=attempts)

    def end(self, firing: int, status: str, code: int, reason: str, attempts: int) -> None:
        """Say what came of a firing: finished, failed, stopped or timed out."""
        self._change(firing, status=status, code=code, reason=reason, attempts=attempts, ended=time.time())

    def _change(self, firing: int, **values: Any) -> None:
        with self._writing() as connection:
            connection.execute(update(schema.firing).where(schema.firing.c.id == firing).values(**values))

    def lost(self, older: float = LATE) -> list[str]:
        """Mark firings as lost whose process has died here, or has given no sign of life for `older` seconds from elsewhere; the
        schedules whose firing was marked by this process."""
        table, found = schema.firing, []
        running = table.c.status == "running"
        for row in self._rows(select(table.c.id, table.c.schedule, table.c.owner, table.c.heartbeat).where(running)):
            if row["heartbeat"] > time.time() - older and not _died(row["owner"]):
                continue
            change = {"status": "lost", "reason": "its process has died", "ended": time.time()}
            with self._writing() as connection:
                if connection.execute(update(table).where(running & (table.c.id == row["id"])).values(**change)).rowcount:
                    found.append(row["schedule"])
        return found

    def firings(self, schedule: str, limit: int = 20) -> list[dict[str, Any]]:
        """What came of a schedule, newest first."""
        table = schema.firing
        return self._rows(select(table).where(table.c.schedule == schedule).order_by(table.c.began.desc(), table.c.id.desc()).limit(limit))

    def had(self, schedule: str, due: float) -> bool:
        """Whether a schedule was run, or is, for this time."""
        return bool(self._rows(select(schema.firing.c.id).where((schema.firing.c.schedule == schedule) & (schema.firing.c.due == due))))

    def pause(self, schedule: str, on: bool = True) -> None:
        """Let a schedule rest, or go on; what was due while it rested is not made up for."""
        with self._writing() as connection:
            connection.execute(schema.paused.delete().where(schema.paused.c.schedule == schedule))
            if on:
                connection.execute(schema.paused.insert().values(schedule=schedule, since=time.time()))
        self.event(stream(schedule), "paused" if on else "resumed")

    def paused(self) -> set[str]:
        """The schedules that rest."""
        return {row["schedule"] for row in self._rows(select(schema.paused.c.schedule))}

    def serve(self, on: bool = True) -> None:
        """Say that this process is a scheduler that lives, or is one no longer."""
        table = schema.scheduler
        with self._writing() as connection:
            connection.execute(table.delete().where((table.c.owner == owner()) | (table.c.heartbeat < time.time() - 3600)))
            if on:
                connection.execute(table.insert().values(owner=owner(), heartbeat=time.time()))

    def schedulers(self) -> list[str]:
        """The schedulers that live."""
        table = schema.scheduler
        return [row["owner"] for row in self._rows(select(table.c.owner).where(table.c.heartbeat > time.time() - LATE))]


def stream(schedule: str) -> str:
    """Where the ledger keeps the events of a schedule."""
    return f"schedule:{schedule}"


def owner() -> str:
    """This process, for people: machine and process number."""
    return f"{socket.gethostname()[:80]}:{os.getpid()}"


def _died(name: str) -> bool:
    """Whether a process of this machine has ended; of others nothing can be said."""
    host, _, number = name.rpartition(":")
    return host == socket.gethostname()[:80] and not lives(int(number))
