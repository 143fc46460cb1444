"""`claimlab ledger copy`: all tables of one ledger into another database, row by row with their numbers.

The numbers of rows are kept, for events and cursors speak of them. Rows go in the order of their keys, in transactions of a few
thousand; a copy that was interrupted goes on behind what is there, after it has been compared. At the end counts and checksums of
every table on both sides must be equal. Files of runs (tables, notebooks, figures) stay where they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Float, LargeBinary, MetaData, String, Table, func, inspect, select, text

from claimlab import schema
from claimlab.database import Database
from claimlab.ledger import ALIVE, Ledger
from claimlab.params import KnobError

BATCH = 2000
SCHEDULER = Table("schedule_job", MetaData(), Column("id", String(191), primary_key=True), Column("next_run_time", Float),
                  Column("job_state", LargeBinary, nullable=False))  # fmt: skip
LEFT = ("schema_version",)  # made with the tables themselves


def copy(source: str, target: str, progress: Callable[[str, int, int], None] = lambda *_: None) -> dict[str, Any]:
    """Copy everything and compare; {from, to, tables: {name: {rows, copied, checksum}}}.

    KnobError before anything is written where the source is absent or a run goes on in it, and where the target is the
    source or holds other things. LedgerError where a database cannot be opened.
    """
    here, there = _url(source), _url(target)
    if here == there:
        raise KnobError(f"FROM and TO are the same ledger: {source}")
    if here.startswith("sqlite:///") and not Path(here.removeprefix("sqlite:///")).is_file():
        raise KnobError(f"{source} is not there; FROM is a ledger.db or the URL of a database")
    old = Ledger(here)
    try:
        old.reap()
        if going := [row["id"] for row in old.runs(limit=None) if row["status"] in ("queued", *ALIVE)]:
            raise KnobError(f"{len(going)} runs go on or wait, as {going[0]}; copy when they have ended")
        _refuse_others(there, target)
        new = Database(there)
        try:
            tables = _tables(old, new)
            copied = {t.name: _begun(old, new, t, target) for t in tables}  # all of them first: nothing is written in vain
            found = {t.name: _fill(old, new, t, copied[t.name], progress) for t in tables}
        finally:
            new._connection.close()
            new._engine.dispose()
    finally:
        old.close()
    return {"from": source, "to": target, "tables": found}


def _url(name: str) -> str:
    return name if "://" in name else f"sqlite:///{Path(name).absolute()}"


def _refuse_others(url: str, name: str) -> None:
    """KnobError if the target has tables that are no ledger's: it is looked at before a table is made in it."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(Database.spelt(url))
        strange = sorted(set(inspect(engine).get_table_names()) - {*schema.metadata.tables, SCHEDULER.name})
        engine.dispose()
    except (SQLAlchemyError, ImportError):  # opening it as a ledger says what is wrong
        return
    if strange:
        raise KnobError(f"{name} holds other things: the tables {', '.join(strange[:5])}; give an empty database")


def _tables(old: Database, new: Database) -> list[Table]:
    """The tables of the ledger, parents of nothing first, and the scheduler's where there is one."""
    found = [t for t in schema.metadata.sorted_tables if t.name not in LEFT]
    if inspect(old._connection).has_table(SCHEDULER.name):
        found.append(SCHEDULER)
        SCHEDULER.create(new._connection, checkfirst=True)
    for one in (old, new):
        one._connection.commit()
    return found


# ---- rows in the order of their keys


def _numbered(table: Table) -> bool:
    keys = list(table.primary_key.columns)
    return len(keys) == 1 and keys[0].name == "id" and keys[0].type.python_type is int


def _batches(connection: Connection, table: Table, after: int = 0) -> Iterator[list[dict[str, Any]]]:
    """The rows behind the first `after`, by their key. Databases order words differently, so that those are ordered here."""
    if not _numbered(table):
        keys = [c.name for c in table.primary_key.columns]
        rows = sorted(map(dict, connection.execute(select(table)).mappings()), key=lambda row: [str(row[k]) for k in keys])
        yield from (rows[first : first + BATCH] for first in range(after, len(rows), BATCH))
        return
    key, query = table.c.id, select(table).order_by(table.c.id).limit(BATCH)
    rows = [dict(row) for row in connection.execute(query.offset(after)).mappings()]
    while rows:
        yield rows
        rows = [dict(row) for row in connection.execute(query.where(key > rows[-1]["id"])).mappings()]


def _checksum(connection: Connection, table: Table, most: int | None = None) -> str:
    """Hash of the first `most` rows, whatever database they are in."""
    total, left = hashlib.sha256(), most
    for rows in _batches(connection, table):
        for row in rows[:left]:
            total.update(json.dumps(list(row.values()), default=repr).encode() + b"\n")
        left = None if left is None else left - len(rows[:left])
        if left == 0:
            break
    connection.commit()
    return total.hexdigest()


def _count(connection: Connection, table: Table) -> int:
    found = connection.execute(select(func.count()).select_from(table)).scalar()
    connection.commit()
    return found


def _begun(old: Database, new: Database, table: Table, name: str) -> int:
    """How many rows of a table the target has already; KnobError unless they are the source's first ones."""
    present, whole = _count(new._connection, table), _count(old._connection, table)
    if present > whole or _checksum(new._connection, table) != _checksum(old._connection, table, present):
        raise KnobError(f"{name} holds other things: {present} rows of {table.name} that are not the first of FROM; give an empty database")
    return present


def _fill(old: Database, new: Database, table: Table, present: int, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    done, whole = present, _count(old._connection, table)
    for rows in _batches(old._connection, table, present):
        with new._writing() as connection:
            connection.execute(table.insert(), rows)
        done += len(rows)
        progress(table.name, done, whole)
    old._connection.commit()
    if _numbered(table) and new._engine.dialect.name == "postgresql":
        with new._writing() as connection:  # the next number is behind those that came along
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id)) FROM {table.name}"))
    sums = [_checksum(one._connection, table) for one in (old, new)]
    counts = [_count(one._connection, table) for one in (old, new)]
    if sums[0] != sums[1] or counts[0] != counts[1]:
        raise KnobError(f"{table.name} differs after the copy: {counts[0]} rows in FROM, {counts[1]} in TO; was FROM written to? "
                        "Copy again")  # fmt: skip
    return {"rows": counts[1], "copied": counts[1] - present, "checksum": sums[1][:16]}


def told(found: dict[str, Any]) -> str:
    """What was copied, a line a table that has rows."""
    lines = [f"{name}: {one['rows']} rows, {one['copied']} of them now, checksum {one['checksum']} on both sides"
             for name, one in found["tables"].items() if one["rows"]]  # fmt: skip
    return "\n".join([*lines, "Everything is there. Files of runs stay where they are. From now on: export CLAIMLAB_LEDGER=..."])
