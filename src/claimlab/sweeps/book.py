"""The ledger with sweeps: their plans, their points, who drives them, and which run answers which point."""

from __future__ import annotations

import difflib
import json
import os
import socket
import time
from typing import Any

from sqlalchemy import and_, exists, or_, select, update

from claimlab import schema
from claimlab.ledger import ENDED, Ledger
from claimlab.study import StudyError
from claimlab.sweeps.plan import Plan
from claimlab.verbs import CHANGES
from claimlab.watching import lives

SILENCE = 15.0  # seconds without a sign of life after which nobody drives a sweep any more
GOING = "running"
SWEEP, POINT = schema.sweep.c, schema.sweep_point.c


class Book(Ledger):
    """A ledger that knows sweeps. A sweep has one driver at a time, `owner`; a run belongs to every point with its key."""

    def enter(self, name: str, plan: Plan, versions: dict[str, str]) -> None:
        """Enter a sweep with its points, or find it again; StudyError if the name stands for another plan.

        A point whose run depends on what has changed since (source, libraries) gets a new key, and so no run.
        """
        kept = json.dumps({**plan.as_dict(), "mark": plan.mark})
        known = self._rows(select(schema.sweep).where(SWEEP.name == name))
        if known and json.loads(known[0]["plan"])["mark"] != plan.mark:
            raise StudyError(f"the sweep {name} has another plan (study, knobs, seeds or profile); choose another --name")
        runs = self._answers(plan.study.slug) | {p["key"]: p["run"] for p in self.points(name) if p["run"]}
        keys = [plan.key(i, versions) for i in range(len(plan.points))]
        rows = [{"sweep": name, "number": i, "key": key, "params": json.dumps(plan.values(i)), "run": runs.get(key)}
                for i, key in enumerate(keys)]  # fmt: skip
        with self._writing() as connection:
            if not known:
                facts = {"name": name, "study": plan.study.slug, "kind": plan.kind, "status": "entered", "started": time.time()}
                connection.execute(schema.sweep.insert().values(**facts, plan=kept))
            connection.execute(schema.sweep_point.delete().where(POINT.sweep == name))
            connection.execute(schema.sweep_point.insert(), rows)

    def forget(self, name: str) -> None:
        """Take back a sweep that was entered and never driven."""
        with self._writing() as connection:
            if connection.execute(schema.sweep.delete().where((SWEEP.name == name) & SWEEP.owner.is_(None))).rowcount:
                connection.execute(schema.sweep_point.delete().where(POINT.sweep == name))

    def _answers(self, study: str) -> dict[str, str]:
        """The finished runs that any sweep of a study has, by key; one that was steered answers its own sweep alone."""
        run, event = schema.run.c, schema.event.c
        steered = exists().where(and_(event.run == run.id, event.kind.in_(CHANGES)))
        query = select(POINT.key, POINT.run).join(schema.run, run.id == POINT.run).distinct()
        rows = self._rows(query.where((run.study == study) & (run.status == "finished") & ~steered))
        return {row["key"]: row["run"] for row in rows}

    def sweeps(self) -> list[dict[str, Any]]:
        """All sweeps, newest first, with how many of their points are finished (`done`) and how many there are (`total`)."""
        from sqlalchemy import case, func

        done = func.sum(case((schema.run.c.status == "finished", 1), else_=0))
        query = (select(POINT.sweep, func.count().label("total"), done.label("done"))
                 .join(schema.run, schema.run.c.id == POINT.run, isouter=True).group_by(POINT.sweep))  # fmt: skip
        counts = {row["sweep"]: row for row in self._rows(query)}
        rows = self._rows(select(schema.sweep).order_by(SWEEP.started.desc(), SWEEP.name))
        return [{**_plain(row), "total": counts[row["name"]]["total"], "done": int(counts[row["name"]]["done"] or 0)} for row in rows]

    def sweep(self, name: str) -> dict[str, Any]:
        """One sweep; StudyError names the nearest ones of an unknown name."""
        found = self._rows(select(schema.sweep).where(SWEEP.name == name))
        if not found:
            near = difflib.get_close_matches(name, [row["name"] for row in self._rows(select(SWEEP.name))], n=3, cutoff=0.3)
            raise StudyError(f"there is no sweep {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        return _plain(found[0])

    def points(self, name: str) -> list[dict[str, Any]]:
        """The points of a sweep: number, key, params, run, and status and reason of the run (None where there is none)."""
        run = schema.run.c
        query = (select(POINT.number, POINT.key, POINT.params, POINT.run, run.status, run.reason, run.done, run.total, run.heartbeat)
                 .join(schema.run, run.id == POINT.run, isouter=True).where(POINT.sweep == name).order_by(POINT.number))  # fmt: skip
        return [{**row, "params": json.loads(row["params"])} for row in self._rows(query)]

    def judged(self, name: str) -> dict[str, dict[str, dict[str, Any]]]:
        """The verdicts of a sweep's runs, by run and claim."""
        verdict = schema.verdict.c
        query = select(verdict.run, verdict.claim, verdict.body).distinct().join(schema.sweep_point, POINT.run == verdict.run)
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._rows(query.where((POINT.sweep == name) & verdict.control.is_(False))):
            found.setdefault(row["run"], {})[row["claim"]] = json.loads(row["body"])
        return found

    # ---- who drives

    def drive(self, name: str, owner: str, engine: str) -> None:
        """Take the driver's seat of a sweep; StudyError if somebody sits there."""
        row = self.sweep(name)
        if row["status"] == GOING and _drives(row):
            raise StudyError(f"the sweep {name} goes on already ({row['owner']}); `claimlab sweep stop {name}` ends it")
        seat = (SWEEP.name == name) & (SWEEP.owner.is_(None) if row["owner"] is None else SWEEP.owner == row["owner"])
        facts = {"owner": owner, "status": GOING, "engine": engine, "heartbeat": time.time(), "ended": None}
        with self._writing() as connection:
            taken = connection.execute(update(schema.sweep).where(seat).values(**facts)).rowcount
        if not taken:
            raise StudyError(f"somebody else has just begun to drive the sweep {name}")
        self.reap()

    def beat(self, name: str, owner: str) -> bool:
        """A sign of life of the driver; False if it is to stop, or another one has taken over."""
        mine = (SWEEP.name == name) & (SWEEP.owner == owner) & (SWEEP.status == GOING)
        with self._writing() as connection:
            return bool(connection.execute(update(schema.sweep).where(mine).values(heartbeat=time.time())).rowcount)

    def driven(self, name: str, owner: str) -> bool:
        """Whether this driver still drives the sweep: asked by those who work for it elsewhere."""
        rows = self._rows(select(SWEEP.status, SWEEP.owner, SWEEP.heartbeat).where(SWEEP.name == name))
        return bool(rows) and rows[0]["status"] == GOING and rows[0]["owner"] == owner and time.time() - rows[0]["heartbeat"] < SILENCE

    def conclude(self, name: str, owner: str | None, status: str) -> None:
        """Set what has become of a sweep; for `owner` None whoever drives it."""
        this = (SWEEP.name == name) & (SWEEP.owner == owner if owner is not None else SWEEP.status == GOING)
        with self._writing() as connection:
            connection.execute(update(schema.sweep).where(this).values(status=status, ended=time.time()))

    # ---- which run answers which point

    def finished(self, key: str) -> str | None:
        """A finished run for a key, if any sweep has one."""
        run = schema.run.c
        query = select(POINT.run).join(schema.run, run.id == POINT.run).where((POINT.key == key) & (run.status == "finished"))
        rows = self._rows(query.limit(1))
        return rows[0]["run"] if rows else None

    def outcome(self, key: str) -> tuple[str | None, str]:
        """Status and reason of the run that answers a key; (None, "") where there is none."""
        run = schema.run.c
        query = select(run.status, run.reason).join(schema.sweep_point, POINT.run == run.id).where(POINT.key == key)
        rows = self._rows(query.order_by(run.started.desc()).limit(1))
        return (rows[0]["status"], rows[0]["reason"] or "") if rows else (None, "")

    def attach(self, key: str, run: str) -> None:
        """Let a run answer all points with this key that have no finished one."""
        other = schema.run.alias()
        settled = exists().where(and_(other.c.id == POINT.run, other.c.status == "finished"))
        with self._writing() as connection:
            connection.execute(update(schema.sweep_point).where((POINT.key == key) & or_(POINT.run.is_(None), ~settled)).values(run=run))

    def bury(self, key: str, status: str, reason: str) -> None:
        """Set what has become of the run of a key whose process has died without saying so."""
        run = schema.run.c
        query = select(run.id).join(schema.sweep_point, POINT.run == run.id).where((POINT.key == key) & run.status.not_in(ENDED[:-1]))
        for row in self._rows(query.distinct()):
            self.set_status(row["id"], status, reason)


def owner_here() -> str:
    """Who drives: a name that is this process's alone."""
    return f"{socket.gethostname()[:40]}:{os.getpid()}:{os.urandom(3).hex()}"


def _drives(row: dict[str, Any]) -> bool:
    """Whether the driver of a sweep lives: by its process on this machine, by its last sign of life on another one."""
    host, pid = (row["owner"] or "::").split(":")[:2]
    if host == socket.gethostname()[:40] and pid.isdigit() and not lives(int(pid)):
        return False
    return time.time() - (row["heartbeat"] or 0.0) < SILENCE


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    plan = json.loads(row["plan"])
    stale = row["status"] == GOING and not _drives(row)
    return {**row, "plan": plan, "status": "interrupted" if stale else row["status"]}
