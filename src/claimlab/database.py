"""The database under the ledger: opened with care, one connection, short transactions. SQLite here, or PostgreSQL for a team."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Row, create_engine, event, text
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool

from claimlab import schema


class LedgerError(RuntimeError):
    """The ledger cannot be read or written; the message says why and what to do."""


def home() -> Path:
    """The folder of runs: CLAIMLAB_HOME, else `runs` in the working folder."""
    return Path(os.environ.get("CLAIMLAB_HOME") or "runs").absolute()


class Bell:
    """Rings where another connection to PostgreSQL has asked something of a run: heard without a query."""

    def __init__(self, connection: Any):
        self.connection, self.raw, self.count = connection, None, 0

    def heard(self) -> int:
        """How often it has rung. A few microseconds while it has not."""
        raw = self.connection.connection.driver_connection
        if raw is not self.raw:  # the first time, or after the server has come back
            raw.add_notify_handler(self._ring)
            with self.connection.begin():
                self.connection.exec_driver_sql("LISTEN claimlab")
            self.raw = raw
            self._ring()
        raw.pgconn.consume_input()
        while raw.pgconn.notifies() is not None:
            self._ring()
        return self.count

    def _ring(self, *_: Any) -> None:
        self.count += 1


class Database:
    """One connection to the database at `url` (a SQLAlchemy URL; default: CLAIMLAB_LEDGER, else SQLite under `home()`).

    Tables are made or brought forward on opening. A file that is no database is moved aside, never overwritten; a newer
    schema is refused with LedgerError.
    """

    def __init__(self, url: str | None = None):
        given = url or os.environ.get("CLAIMLAB_LEDGER") or f"sqlite:///{home() / 'ledger.db'}"
        self.url = self.spelt(given)
        self.path = Path(self.url.removeprefix("sqlite:///")) if self.url.startswith("sqlite:///") else None
        self._lock = threading.RLock()
        self._open()

    @staticmethod
    def spelt(url: str) -> str:
        """A URL of PostgreSQL names its driver, which people leave out."""
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)

    def _open(self) -> None:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(f"the folder of runs {self.path.parent} cannot be made: {error.strerror}") from error
        try:
            self._connect()
        except schema.NewerSchema as error:
            raise LedgerError(
                f"the ledger {self._name} cannot be used: {error}; update claimlab or choose another home"
            ) from None
        except (ArgumentError, ImportError) as error:
            lacking = getattr(error, "name", None) == "psycopg"
            hint = "psycopg is not installed: pip install 'claimlab[postgres]'" if lacking else "its URL is not usable here"
            raise LedgerError(f"the ledger {self._name} cannot be opened: {type(error).__name__}; {hint}") from None
        except DatabaseError as error:
            if self.path is None or "not a database" not in str(error) and "malformed" not in str(error):
                raise LedgerError(f"the ledger {self._name} cannot be opened: {_plain(error)}") from error
            self._move_aside()
            self._connect()

    @property
    def _name(self) -> str:
        return str(self.path or re.sub(r"://.*@", "://...@", self.url))

    def _connect(self) -> None:
        if self.path is None:
            self._engine = create_engine(self.url)
        else:
            self._engine = create_engine(self.url, poolclass=NullPool, connect_args={"check_same_thread": False, "timeout": 30})
            event.listen(self._engine, "connect", _pragmas)
        self._connection = self._engine.connect()
        self._driver = self._connection.connection.driver_connection  # asked fifty times a second: no detour
        self._shared = self._engine.dialect.name == "postgresql"
        self._bell = Bell(self._connection)
        with self._connection.begin():
            self._alone(self._connection, "schema")
            schema.migrate(self._connection)

    def _move_aside(self) -> None:
        self._engine.dispose()
        number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.corrupt-{n}").exists())
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(self.path.with_name(f"{self.path.name}.corrupt-{number}{suffix}"))

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        with self._lock:
            try:
                with self._connection.begin():
                    yield self._connection
            except DBAPIError as error:
                raise LedgerError(f"the ledger {self._name} cannot be written: {_plain(error)}") from error

    def _rows(self, query) -> list[dict[str, Any]]:
        return [row._asdict() for row in self._tuples(query)]

    def _tuples(self, query) -> Sequence[Row]:
        try:
            with self._lock, self._connection.begin():
                return self._connection.execute(query).all()
        except DBAPIError as error:
            raise LedgerError(f"the ledger {self._name} cannot be read: {_plain(error)}") from error

    def _alone(self, connection: Any, *names: str) -> None:
        """Let one transaction at a time pass for each name. Numbers of rows are given out before they are committed: without
        this a reader that goes on from the last number it has seen would miss what was committed late. SQLite has one writer."""
        for name in sorted(names) if self._shared else ():
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"claimlab {name}"})

    def _ring(self, connection: Any) -> None:
        """Tell other connections, when this transaction is committed, that something was asked of a run."""
        if self._shared:
            connection.exec_driver_sql("NOTIFY claimlab")

    def _stamp(self) -> int | None:
        """A number that changes when others may have asked something; None where that takes a query. Costs microseconds."""
        with self._lock:
            if self.path is not None:
                cursor = self._driver.execute("PRAGMA data_version")
                found = cursor.fetchone()[0]
                cursor.close()
                return found
            try:
                return self._bell.heard() if self._shared else None
            except Exception as error:  # psycopg's own: the query that follows says what is wrong
                if type(error).__module__.partition(".")[0] not in ("psycopg", "sqlalchemy"):
                    raise
                return None


def _pragmas(connection, _record) -> None:
    for name, value in (
        ("journal_mode", "WAL"),
        ("synchronous", "NORMAL"),
        ("busy_timeout", 30_000),
        ("journal_size_limit", 1 << 24),
    ):
        connection.execute(f"PRAGMA {name} = {value}").fetchall()


def _plain(error: DBAPIError) -> str:
    return str(error.orig if error.orig is not None else error).strip()
