"""Tables of the ledger, and the steps that bring an older database forward."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    text,
)

VERSION = 6
metadata = MetaData()

version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

run = Table(
    "run", metadata,
    Column("id", String(80), primary_key=True), Column("study", String(80), nullable=False),
    Column("params", Text, nullable=False), Column("profile", String(16)), Column("seeds", Text),
    Column("status", String(16), nullable=False), Column("reason", Text, default=""),
    Column("started", Float, nullable=False), Column("ended", Float), Column("heartbeat", Float),
    Column("done", Integer, default=0), Column("total", Integer), Column("pid", Integer),
    Column("source_hash", String(64)), Column("versions", Text), Column("control", Boolean, default=False),
    Column("parent", String(80)), Column("branch", String(80)),
)  # fmt: skip
Index("run_by_study", run.c.study, run.c.started)

metric = Table(
    "metric", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False),
    Column("arm", String(80), nullable=False), Column("seed", Integer, nullable=False), Column("step", Integer, nullable=False),
    Column("metric", String(120), nullable=False), Column("value", Float),
)  # fmt: skip
Index("metric_by_run", metric.c.run, metric.c.id)

event = Table(
    "event", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False, index=True),
    Column("kind", String(40), nullable=False), Column("step", Integer), Column("arm", String(80)), Column("seed", Integer),
    Column("time", Float, nullable=False), Column("payload", Text),
)  # fmt: skip

# one row a command of any verb: set, pause, resume, step, checkpoint, rollback, fork, reset, freeze, unfreeze, evaluate, stop
command = Table(
    "command", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False, index=True),
    Column("verb", String(20), nullable=False), Column("payload", Text, nullable=False), Column("arm", String(80)),
    Column("seed", Integer), Column("by", String(80), default=""), Column("time", Float, nullable=False),
    Column("answered", Float), Column("ok", Boolean), Column("step", Integer), Column("old", Text), Column("new", Text),
    Column("reason", Text, default=""),
)  # fmt: skip

verdict = Table(
    "verdict", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False, index=True),
    Column("claim", String(80), nullable=False), Column("verdict", String(16), nullable=False),
    Column("control", Boolean, default=False), Column("body", Text, nullable=False),
)  # fmt: skip

artifact = Table(
    "artifact", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False, index=True),
    Column("kind", String(120), nullable=False), Column("path", Text, nullable=False),
)  # fmt: skip

run_summary = Table(
    "run_summary", metadata,
    Column("run", String(80), primary_key=True), Column("arm", String(80), primary_key=True),
    Column("metric", String(120), primary_key=True), Column("last", Float), Column("low", Float), Column("high", Float),
    Column("tail", Float), Column("n", Integer),
)  # fmt: skip

# one row a picture that somebody watches or has watched; drawn anew in place
view = Table(
    "view", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("run", String(80), nullable=False, index=True),
    Column("view", String(120), nullable=False), Column("arm", String(80), nullable=False), Column("seed", Integer, nullable=False),
    Column("until", Float, nullable=False), Column("step", Integer), Column("drawn", Float), Column("figure", Text),
    Column("reason", Text, default=""),
    UniqueConstraint("run", "view", "arm", "seed"),
)  # fmt: skip

# a sweep is a plan and its points; the points of two sweeps that ask for the same run share it by its key
sweep = Table(
    "sweep", metadata,
    Column("name", String(80), primary_key=True), Column("study", String(80), nullable=False), Column("kind", String(16), nullable=False),
    Column("plan", Text, nullable=False), Column("engine", String(120), default=""), Column("status", String(16), nullable=False),
    Column("started", Float, nullable=False), Column("ended", Float), Column("heartbeat", Float), Column("owner", String(80)),
)  # fmt: skip
sweep_point = Table(
    "sweep_point", metadata,
    Column("sweep", String(80), primary_key=True), Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String(64), nullable=False, index=True), Column("params", Text, nullable=False), Column("run", String(80)),
)  # fmt: skip

# one row a time that a schedule was due; while it runs the index below lets no other process run the same schedule
firing = Table(
    "firing", metadata,
    Column("id", Integer, primary_key=True, autoincrement=True), Column("schedule", String(60), nullable=False),
    Column("due", Float, nullable=False), Column("began", Float, nullable=False), Column("ended", Float), Column("heartbeat", Float),
    Column("status", String(16), nullable=False), Column("attempts", Integer, default=0), Column("code", Integer),
    Column("reason", Text, default=""), Column("out", Text, default=""), Column("owner", String(120), default=""),
    UniqueConstraint("schedule", "due"),
)  # fmt: skip
_GOING = firing.c.status == "running"
Index("firing_alone", firing.c.schedule, unique=True, sqlite_where=_GOING, postgresql_where=_GOING)
paused = Table("paused", metadata, Column("schedule", String(60), primary_key=True), Column("since", Float, nullable=False))
scheduler = Table("scheduler", metadata, Column("owner", String(120), primary_key=True), Column("heartbeat", Float, nullable=False))


class NewerSchema(RuntimeError):
    """The database was written by a later version of claimlab."""


def migrate(connection: Connection) -> int:
    """Create the tables or bring them to VERSION; the version found. NewerSchema leaves the database as it is."""
    names = set(inspect(connection).get_table_names())
    found = connection.execute(version.select()).scalar() if "schema_version" in names else None
    if found is not None and found > VERSION:
        raise NewerSchema(f"it has schema {found}, and this claimlab knows schemas up to {VERSION}")
    if found == VERSION:
        return found
    for step in range(found or VERSION, VERSION):
        STEPS[step](connection)
    metadata.create_all(connection)
    connection.execute(version.delete())
    connection.execute(version.insert().values(version=VERSION))
    return found or VERSION


def _branches(connection: Connection) -> None:
    """1 -> 2: runs know which run they were forked from."""
    present = {column["name"] for column in inspect(connection).get_columns("run")}
    for name in {"parent", "branch"} - present:
        connection.execute(text(f"ALTER TABLE run ADD COLUMN {name} VARCHAR(80)"))


def _views(_connection: Connection) -> None:
    """2 -> 3: live views have a table of their own, which is made with all that are missing."""


def _unchanged(_connection: Connection) -> None:
    """3 -> 4: nothing to bring forward."""


def _sweeps(_connection: Connection) -> None:
    """4 -> 5: sweeps and their points have tables of their own, which are made with all that are missing."""


def _calendar(_connection: Connection) -> None:
    """5 -> 6: what schedules have done has tables of its own, which are made with all that are missing."""


STEPS = {1: _branches, 2: _views, 3: _unchanged, 4: _sweeps, 5: _calendar}
