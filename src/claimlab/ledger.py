"""The ledger: one database of runs, points, events, commands, verdicts and artefacts, shared by many processes.

SQLite in WAL mode under the home of runs; CLAIMLAB_LEDGER names another database by its SQLAlchemy URL. Points are buffered
and committed every 200 ms or 50 calls; readers fetch all and close, since an open cursor lets the log grow without end.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from claimlab import schema
from claimlab.database import LedgerError, home
from claimlab.reading import Reading
from claimlab.watching import ALIVE, Watching

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("queued", "starting", "running", "paused", "finished", "failed", "stopped", "timed out", "lost")
ENDED = ("finished", "failed", "stopped", "timed out", "lost")
COLUMNS = ["arm", "seed", "step", "metric", "value"]
CALLS, SECONDS = 50, 0.2


class Ledger(Watching, Reading):
    """Runs, points, events, commands, verdicts and artefacts in one database; see `Database` for how it is opened."""

    def __init__(self, url: str | None = None):
        super().__init__(url)
        self._points: list[dict[str, Any]] = []
        self._calls, self._flushed = 0, time.monotonic()
        self._seen: dict[tuple[str, str], int] = {}
        self._living: set[int] = set()

    def close(self) -> None:
        """Write what is buffered and let go of the database."""
        with self._lock:
            if not self._connection.closed:
                self.flush()
                self._connection.close()
                self._engine.dispose()

    # ---- runs

    def start_run(self, study: str, params: dict[str, Any], *, profile: str = "default", seeds: Iterable[int] = (),
                  source_hash: str = "", versions: dict | None = None, control: bool = False, parent: str | None = None,
                  branch: str | None = None, total_steps: int | None = None, status: str = "queued") -> str:  # fmt: skip
        """Record a new run and return its id, which sorts by time and is safe in a URL."""
        slug = re.sub(r"[^a-z0-9-]+", "-", study.lower()).strip("-") or "run"
        run = f"{datetime.now():%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(3)}"
        row = {
            "id": run, "study": study, "params": json.dumps(params), "profile": profile, "seeds": json.dumps(list(seeds)),
            "status": status, "reason": "", "started": time.time(), "heartbeat": time.time(), "done": 0, "total": total_steps,
            "pid": os.getpid(), "source_hash": source_hash, "versions": json.dumps(versions or {}), "control": control,
            "parent": parent, "branch": branch,
        }  # fmt: skip
        with self._writing() as connection:
            connection.execute(schema.run.insert().values(**row))
        return run

    def set_status(self, run: str, status: str, reason: str = "") -> None:
        """Set the status of a run; one that ends it stamps the time and refuses the commands that still wait."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is not one of {', '.join(STATUSES)}")
        ended = {"ended": time.time()} if status in ENDED else {"heartbeat": time.time(), "pid": os.getpid(), "ended": None}
        with self._writing() as connection:
            self._alone(connection, run)
            connection.execute(update(schema.run).where(schema.run.c.id == run).values(status=status, reason=reason, **ended))
            self._refuse(connection, run)

    def heartbeat(self, run: str, done: int | None = None, total: int | None = None) -> None:
        """Say that the run's process lives, and how far it is in steps."""
        known = {k: v for k, v in (("done", done), ("total", total)) if v is not None}
        with self._writing() as connection:
            connection.execute(update(schema.run).where(schema.run.c.id == run)
                               .values(heartbeat=time.time(), pid=os.getpid(), **known))  # fmt: skip

    def extend(self, run: str, seeds: Iterable[int]) -> None:
        """Say which seeds a run has by now, where they are added while it goes on."""
        with self._writing() as connection:
            connection.execute(update(schema.run).where(schema.run.c.id == run).values(seeds=json.dumps(list(seeds))))

    def runs(self, study: str | None = None, status: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Runs, newest first."""
        query = select(schema.run).order_by(schema.run.c.started.desc(), schema.run.c.id.desc()).limit(limit)
        if study is not None:
            query = query.where(schema.run.c.study == study)
        if status is not None:
            query = query.where(schema.run.c.status == status)
        return [_decoded(row) for row in self._rows(query)]

    def run(self, run: str) -> dict[str, Any]:
        """One run; LedgerError names the nearest ids of an unknown one."""
        found = self._rows(select(schema.run).where(schema.run.c.id == run))
        if not found:
            near = difflib.get_close_matches(run, [r["id"] for r in self._rows(select(schema.run.c.id))], n=3, cutoff=0.3)
            raise LedgerError(f"there is no run {run!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        return _decoded(found[0])

    # ---- points

    def log(self, run: str, rows: Iterable[tuple[str, int, int, str, float]]) -> None:
        """Buffer points (arm, seed, step, metric, value); NaN and infinities are kept as NaN."""
        with self._lock:
            for arm, seed, step, metric, value in rows:
                number = float(value)
                self._points.append({"run": run, "arm": arm, "seed": int(seed), "step": int(step), "metric": metric,
                                     "value": number if math.isfinite(number) else None})  # fmt: skip
            self._calls += 1
            if self._calls >= CALLS or time.monotonic() - self._flushed >= SECONDS:
                self.flush()

    def flush(self) -> None:
        """Commit the buffered points. What cannot be written stays in the buffer."""
        with self._lock:
            self._calls, self._flushed = 0, time.monotonic()
            if self._points:
                with self._writing() as connection:
                    self._alone(connection, *{point["run"] for point in self._points})
                    connection.execute(schema.metric.insert(), self._points)
                self._points = []

    def points_since(self, run: str, cursor: int = 0, limit: int | None = None) -> tuple[list[tuple], int]:
        """Committed points after `cursor`, `limit` at most, as (id, arm, seed, step, metric, value), and the new cursor."""
        table = schema.metric
        query = (
            select(table.c.id, *(table.c[c] for c in COLUMNS))
            .where((table.c.run == run) & (table.c.id > cursor))
            .order_by(table.c.id).limit(limit)
        )  # fmt: skip
        rows = [tuple(row) if row[-1] is not None else (*row[:-1], math.nan) for row in self._tuples(query)]
        return rows, rows[-1][0] if rows else cursor

    def cursor(self, run: str) -> int:
        """The id of the last committed point of a run; 0 if there is none."""
        return self._rows(select(func.max(schema.metric.c.id).label("last")).where(schema.metric.c.run == run))[0]["last"] or 0

    def table(self, run: str) -> pd.DataFrame:
        """The tidy table of a run: study, arm, seed, step, metric, value; from Parquet once it is closed."""
        import pandas as pd

        self.flush()
        study = self.run(run)["study"]
        kept = [a["path"] for a in self.artifacts(run) if a["kind"] == "table"]
        if kept and Path(kept[-1]).exists():
            return pd.read_parquet(kept[-1])
        rows, _ = self.points_since(run)
        rows = standing(rows, self.events(run))
        frame = pd.DataFrame([row[1:] for row in rows], columns=COLUMNS).astype({"value": "float64"})
        frame.insert(0, "study", study)
        return frame

    def finish(self, run: str) -> None:
        """Close a run: Parquet beside its other files, a summary for lists, and a short log again."""
        self.flush()
        table = self.table(run)
        path = home() / run / "table.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        summaries = []
        for (arm, metric), part in table.groupby(["arm", "metric"]):
            last = part.sort_values("step").groupby("seed")["value"].agg(lambda v: v.iloc[-1])
            tail = part[part["step"] >= 0.9 * part["step"].max()]["value"].mean()
            facts = {"last": last.mean(), "low": part["value"].min(), "high": part["value"].max(), "tail": tail}
            clean = {k: float(v) if math.isfinite(v) else None for k, v in facts.items()}
            summaries.append({"run": run, "arm": arm, "metric": metric, "n": len(last), **clean})
        with self._writing() as connection:
            connection.execute(schema.run_summary.delete().where(schema.run_summary.c.run == run))
            if summaries:
                connection.execute(schema.run_summary.insert(), summaries)
        if not any(a["kind"] == "table" for a in self.artifacts(run)):
            self.artifact(run, "table", str(path))
        if self.path is not None:
            with self._lock:
                self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._connection.rollback()

    def summary(self, run: str) -> list[dict[str, Any]]:
        """Last, lowest, highest and tail mean of each metric of each arm of a closed run."""
        return self._rows(select(schema.run_summary).where(schema.run_summary.c.run == run))

    # ---- events, commands, verdicts, artefacts

    def event(self, run: str, kind: str, step: int | None = None, arm: str | None = None, seed: int | None = None,
              payload: dict | None = None) -> None:  # fmt: skip
        """Record that something happened."""
        row = {"run": run, "kind": kind, "step": step, "arm": arm, "seed": seed, "payload": json.dumps(payload or {})}
        with self._writing() as connection:
            self._alone(connection, run)
            connection.execute(schema.event.insert().values(**row, time=time.time()))

    def events(self, run: str, after: int = 0) -> list[dict[str, Any]]:
        """Events of a run with an id above `after`, oldest first."""
        table = schema.event
        query = select(table).where((table.c.run == run) & (table.c.id > after)).order_by(table.c.id)
        return [_decoded(r) for r in self._rows(query)]

    def command(self, run: str, verb: str, payload: dict, *, arm: str | None = None, seed: int | None = None, by: str = "") -> int:
        """Queue a command for a run and return its number; one for a run that has ended is refused at once."""
        row = {"run": run, "verb": verb, "payload": json.dumps(payload), "arm": arm, "seed": seed, "by": by, "time": time.time()}
        self._seen.clear()  # the stamp tells of other connections only
        with self._writing() as connection:
            self._ring(connection)
            self._alone(connection, run)
            number = connection.execute(schema.command.insert().values(**row)).inserted_primary_key[0]
            self._refuse(connection, run)
        return number

    @staticmethod
    def _refuse(connection: Any, run: str) -> None:
        table, status = schema.command, connection.execute(select(schema.run.c.status).where(schema.run.c.id == run)).scalar()
        if status in ENDED:
            reason = f"the run is {status}; only a run that goes on can be steered"
            waits = (table.c.run == run) & table.c.answered.is_(None)
            connection.execute(update(table).where(waits).values(answered=time.time(), ok=False, reason=reason))

    def pending(self, run: str) -> list[dict[str, Any]]:
        """Commands not yet answered, oldest first; costs microseconds while nothing has changed."""
        if (stamp := self._stamp()) is not None:
            if self._seen.get(("commands", run)) == stamp:
                return []
            self._seen["commands", run] = stamp
        table = schema.command
        query = select(table).where((table.c.run == run) & table.c.answered.is_(None)).order_by(table.c.id)
        return [_decoded(row) for row in self._rows(query)]

    def answer(
        self, command: int, ok: bool, *, step: int | None = None, old: Any = None, new: Any = None, reason: str = ""
    ) -> None:
        """Answer a command: applied at `step` with old and new value, or refused with the reason."""
        row = {"answered": time.time(), "ok": ok, "step": step, "old": json.dumps(old), "new": json.dumps(new), "reason": reason}
        with self._writing() as connection:
            connection.execute(update(schema.command).where(schema.command.c.id == command).values(**row))

    def commands(self, run: str) -> list[dict[str, Any]]:
        """All commands of a run with their answers, oldest first."""
        table = schema.command
        return [_decoded(r) for r in self._rows(select(table).where(table.c.run == run).order_by(table.c.id))]

    def record_verdicts(self, run: str, verdicts: list[dict[str, Any]], control: bool = False) -> None:
        """Replace the verdicts of a run (as `Verdict.as_dict` gives them), or those under its control."""
        table = schema.verdict
        known = {"run": run, "control": control}
        rows = [{**known, "claim": v["claim"], "verdict": v["verdict"], "body": json.dumps(v)} for v in verdicts]
        with self._writing() as connection:
            connection.execute(table.delete().where((table.c.run == run) & (table.c.control == control)))
            if rows:
                connection.execute(table.insert(), rows)

    def verdicts(self, run: str) -> list[dict[str, Any]]:
        """The verdicts of a run, each with `control`: whether it was judged under the negative control."""
        rows = self._rows(select(schema.verdict).where(schema.verdict.c.run == run).order_by(schema.verdict.c.id))
        return [{**json.loads(row["body"]), "control": bool(row["control"])} for row in rows]

    def artifact(self, run: str, kind: str, path: str) -> None:
        """Record a file that belongs to a run."""
        with self._writing() as connection:
            connection.execute(schema.artifact.insert().values(run=run, kind=kind, path=str(path)))

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        """Files of a run: kind and path."""
        return self._rows(select(schema.artifact).where(schema.artifact.c.run == run).order_by(schema.artifact.c.id))

    def counts(self) -> dict[str, int]:
        """Number of runs by status."""
        query = select(schema.run.c.status, func.count().label("n")).group_by(schema.run.c.status)
        return {row["status"]: row["n"] for row in self._rows(query)}


def standing(points: list[tuple], events: Iterable[dict[str, Any]]) -> list[tuple]:
    """The points (id, arm, seed, step, metric, value) that no rollback has undone."""
    for event in events:
        if event["kind"] == "rollback":
            to, cursor = event["payload"]["to"], event["payload"]["cursor"]
            points = [p for p in points if p[0] > cursor or p[3] <= to.get(p[1], -1)]
    return points


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("params", "seeds", "versions", "payload", "old", "new"):
        if isinstance(row.get(name), str):
            row[name] = json.loads(row[name])
    return row


__all__ = ["ALIVE", "ENDED", "STATUSES", "Ledger", "LedgerError", "home"]
