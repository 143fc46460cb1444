"""The database under the ledger: opened with care, one connection, short transactions."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError
from sqlalchemy.pool import NullPool

from claimlab import schema


class LedgerError(RuntimeError):
    """The ledger cannot be read or written; the message says why and what to do."""


def home() -> Path:
    """The folder of runs: CLAIMLAB_HOME, else `runs` in the working folder."""
    return Path(os.environ.get("CLAIMLAB_HOME") or "runs").absolute()


class Database:
    """One connection to the database at `url` (a SQLAlchemy URL; default: CLAIMLAB_LEDGER, else SQLite under `home()`).

    Tables are made or brought forward on opening. A file that is no database is moved aside, never overwritten; a newer
    schema is refused with LedgerError.
    """

    def __init__(self, url: str | None = None):
        self.url = url or os.environ.get("CLAIMLAB_LEDGER") or f"sqlite:///{home() / 'ledger.db'}"
        self.path = Path(self.url.removeprefix("sqlite:///")) if self.url.startswith("sqlite:///") else None
        self._lock = threading.RLock()
        self._open()

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
            raise LedgerError(
                f"the ledger {self._name} cannot be opened: {type(error).__name__}; its URL is not usable here"
            ) from None
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
        with self._connection.begin():
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
        with self._lock, self._connection.begin():
            return [dict(row) for row in self._connection.execute(query).mappings().fetchall()]


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
