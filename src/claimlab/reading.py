"""What lists and comparisons read of many runs at once: each in one query, none of them through all points."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select

from claimlab import schema
from claimlab.database import Database


class Reading(Database):
    """The part of the ledger that reads over runs."""

    def verdicts_of(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """The verdicts of every run of a study by run, each as `verdicts` gives it."""
        run, verdict = schema.run, schema.verdict
        query = select(verdict.c.run, verdict.c.control, verdict.c.body).join(run, run.c.id == verdict.c.run)
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self._rows(query.where(run.c.study == study).order_by(verdict.c.id)):
            found.setdefault(row["run"], []).append({**json.loads(row["body"]), "control": bool(row["control"])})
        return found

    def latest(self, kind: str, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The last event of a kind of each of `runs` that has one: its payload, by run."""
        table = schema.event
        query = select(table.c.run, table.c.payload).where((table.c.kind == kind) & table.c.run.in_(list(runs))).order_by(table.c.id)
        return {row["run"]: json.loads(row["payload"]) for row in self._rows(query)}

    def ended_since(self, moment: float) -> dict[str, int]:
        """Number of runs that have ended since a time, by status."""
        table = schema.run
        query = select(table.c.status, func.count().label("n")).where(table.c.ended >= moment).group_by(table.c.status)
        return {row["status"]: row["n"] for row in self._rows(query)}

    def means(self, run: str, metrics: Iterable[str], cursor: int = 0) -> tuple[list[tuple[str, str, int, float | None]], int]:
        """Means over the seeds of the points after `cursor`, as (arm, metric, step, mean), and the new cursor."""
        table = schema.metric
        key = (table.c.arm, table.c.metric, table.c.step)
        query = select(*key, func.avg(table.c.value).label("mean"), func.max(table.c.id).label("last"))
        here = (table.c.run == run) & (table.c.id > cursor) & table.c.metric.in_(list(metrics))
        rows = self._rows(query.where(here).group_by(*key).order_by("last"))
        return [(r["arm"], r["metric"], r["step"], r["mean"]) for r in rows], rows[-1]["last"] if rows else cursor

    def family(self, run: str) -> list[str]:
        """The ids of a run's tree of forks and replays, from the first ancestor on, each parent before its children."""
        table, found = schema.run, [run]
        while (up := self._rows(select(table.c.parent).where(table.c.id == found[0]))) and up[0]["parent"] not in (None, *found):
            found.insert(0, up[0]["parent"])
        found = found[1:] if not up and len(found) > 1 else found  # a parent that is no longer there
        found = grown = found[:1]
        while grown:
            query = select(table.c.id).where(table.c.parent.in_(grown)).order_by(table.c.started, table.c.id)
            grown = [row["id"] for row in self._rows(query) if row["id"] not in found]
            found = found + grown
        return found
