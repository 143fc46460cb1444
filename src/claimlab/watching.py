"""Which runs live, who watches which picture of them, and the last picture drawn."""

from __future__ import annotations

import os
import time
from typing import Any

from sqlalchemy import select, update

from claimlab import schema
from claimlab.database import Database

ALIVE = ("starting", "running", "paused")
BEAT = 1.0  # seconds after which a sign of life is late
PATIENCE = 5.0  # seconds that a picture is kept up to date after somebody has looked at it


class Watching(Database):
    """The part of the ledger that tells lost runs, and that live views use: a viewer asks, the run's process draws."""

    _living: set[int]  # processes of runs that were seen alive from here
    _seen: dict[tuple[str, str], int]  # what of which run was looked at, with the stamp of then

    def reap(self, older: float = 3.0) -> list[str]:
        """Mark runs as lost whose process has not been heard of for `older` seconds, or has died before our eyes; their ids.

        A process that was never seen alive from here may live on another machine, or in another container.
        """
        table, now = schema.run, time.time()
        late = table.c.status.in_(ALIVE) & (table.c.heartbeat < now - min(older, BEAT))
        rows = self._rows(select(table.c.id, table.c.heartbeat, table.c.pid).where(table.c.status.in_(ALIVE)))
        dead = {row["pid"] for row in rows if row["pid"] in self._living and not lives(row["pid"])}
        self._living = {row["pid"] for row in rows if row["pid"] and lives(row["pid"])}
        silent = [row["id"] for row in rows if row["heartbeat"] < now - older]
        died = [row["id"] for row in rows if row["pid"] in dead and row["id"] not in silent]
        for ids, reason in ((silent, f"no sign of life for {older:g} s: the process has died or the machine slept"),
                            (died, "its process has died")):  # fmt: skip
            if ids:
                with self._writing() as connection:
                    connection.execute(update(table).where(table.c.id.in_(ids) & late)
                                       .values(status="lost", reason=reason, ended=time.time()))  # fmt: skip
        return silent + died

    def watch(self, run: str, view: str, arm: str, seed: int, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """Ask for a picture to be kept up to date for some seconds; the last one drawn, or None if there is none yet.

        A picture has step, drawn (time), figure (plotly's JSON) and reason (why there is none, else empty).
        """
        table, until = schema.view, time.time() + seconds
        this = (table.c.run == run) & (table.c.view == view) & (table.c.arm == arm) & (table.c.seed == seed)
        known = self._rows(select(table).where(this))
        if not known or known[0]["until"] < until - seconds / 2:
            self._seen.clear()  # the stamp tells of other connections only
            with self._writing() as connection:
                if not connection.execute(update(table).where(this).values(until=until)).rowcount:
                    connection.execute(table.insert().values(run=run, view=view, arm=arm, seed=seed, until=until))
        return known[0] if known and known[0]["drawn"] is not None else None

    def watched(self, run: str) -> list[dict[str, Any]]:
        """The pictures that somebody watches now: id, view, arm, seed, and the step and reason of the last drawing."""
        stamp = None if self.path is None else self._stamp()  # a server rings for commands only
        if stamp is not None and self._seen.get(("views", run)) == stamp:
            return []
        table = schema.view
        names = (table.c.id, table.c.view, table.c.arm, table.c.seed, table.c.step, table.c.reason)
        found = self._rows(select(*names).where((table.c.run == run) & (table.c.until > time.time())).order_by(table.c.id))
        if stamp is not None and not found:
            self._seen["views", run] = stamp
        return found

    def show(self, picture: int, step: int, figure: str | None, reason: str = "") -> None:
        """Put a new picture in the place of the old one."""
        drawn = {"step": step, "drawn": time.time(), "figure": figure, "reason": reason}
        with self._writing() as connection:
            connection.execute(update(schema.view).where(schema.view.c.id == picture).values(**drawn))


def lives(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
