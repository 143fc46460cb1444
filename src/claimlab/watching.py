"""Who watches which picture of a run, and the last picture drawn: one row a view, arm and seed, written over each time."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select, update

from claimlab import schema
from claimlab.database import Database

PATIENCE = 5.0  # seconds that a picture is kept up to date after somebody has looked at it


class Watching(Database):
    """The part of the ledger that live views use: a viewer asks, the run's process draws, the viewer reads."""

    def watch(self, run: str, view: str, arm: str, seed: int, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """Ask for a picture to be kept up to date for some seconds; the last one drawn, or None if there is none yet.

        A picture has step, drawn (time), figure (plotly's JSON) and reason (why there is none, else empty).
        """
        table, until = schema.view, time.time() + seconds
        this = (table.c.run == run) & (table.c.view == view) & (table.c.arm == arm) & (table.c.seed == seed)
        known = self._rows(select(table).where(this))
        if not known or known[0]["until"] < until - seconds / 2:
            with self._writing() as connection:
                if not connection.execute(update(table).where(this).values(until=until)).rowcount:
                    connection.execute(table.insert().values(run=run, view=view, arm=arm, seed=seed, until=until))
        return known[0] if known and known[0]["drawn"] is not None else None

    def watched(self, run: str) -> list[dict[str, Any]]:
        """The pictures that somebody watches now: id, view, arm, seed, and the step and reason of the last drawing."""
        table = schema.view
        names = (table.c.id, table.c.view, table.c.arm, table.c.seed, table.c.step, table.c.reason)
        return self._rows(select(*names).where((table.c.run == run) & (table.c.until > time.time())).order_by(table.c.id))

    def show(self, picture: int, step: int, figure: str | None, reason: str = "") -> None:
        """Put a new picture in the place of the old one."""
        drawn = {"step": step, "drawn": time.time(), "figure": figure, "reason": reason}
        with self._writing() as connection:
            connection.execute(update(schema.view).where(schema.view.c.id == picture).values(**drawn))
