"""What a page reads of a run at one glance: read once for all who look at it at about the same time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pandas as pd
import streamlit as st
from panels import charts, condition, launch, store

from claimlab import ledger

AGE = 0.8  # seconds for which what has been read or drawn for one viewer is shown to others as well
FEW, MANY = 10, 50  # and so many times as long as that took, for one who looks and for a crowd
READ = 64  # runs, pictures and curves that are kept


class Shared:
    """A value that `make(last, ...)` gives, made anew when it is too old; one at a time, while others wait for it.

    The more look at it, the less often what costs much is made anew: at most a tenth of a core goes into it for one who looks
    once a second, a fiftieth for a crowd.
    """

    def __init__(self, make: Callable[..., Any]):
        self._make, self._value, self._lock, self._until = make, None, threading.Lock(), -math.inf
        self._asked, self._since = 0, time.monotonic()

    def now(self, *given: Any) -> Any:
        """The value; `given` is what is needed where it is made anew."""
        with self._lock:
            self._asked += 1
            if (began := time.monotonic()) >= self._until:
                lookers = self._asked / max(0.1, began - self._since)
                self._value, self._asked, self._since = self._make(self._value, *given), 0, began
                ended = time.monotonic()
                self._until = ended + max(AGE, min(MANY, max(FEW, 2 * lookers)) * (ended - began))
            return self._value

    def forget(self) -> None:
        """Let the next look make it anew: something has just been written from here."""
        self._until = -math.inf


@dataclass(frozen=True)
class Glance:
    """A run as it stands: its row, events and commands, oldest first; `kept`: checkpoints that are there, by name, with the
    step of all arms together; `points`: those committed so far, undone ones too, up to `cursor`."""

    row: dict[str, Any]
    events: list[dict[str, Any]]
    commands: list[dict[str, Any]]
    kept: dict[str, int]
    points: pd.DataFrame
    cursor: int = 0

    @cached_property
    def condition(self) -> condition.Condition:
        """What its arms are set to now, and which changes stand."""
        return condition.now(self.events)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The points that no rollback has undone; of a run that has ended the whole table."""
        if self.row["status"] in ledger.ENDED:
            return _closed(self.row["id"], self.row["ended"], store.ledger().url)
        table = self.points
        for back in self._undone:
            reached = table["arm"].map(back["to"]).fillna(-1)
            table = table[(table["id"] > back["cursor"]) | (table["step"] <= reached)]
        return table

    @property
    def mark(self) -> tuple:
        """Changes only with the points that stand."""
        return self.cursor, len(self._undone), self.row["ended"]

    @property
    def _undone(self) -> list[dict[str, Any]]:
        return [e["payload"] for e in self.events if e["kind"] == "rollback"]

    @cached_property
    def curves(self) -> list[str]:
        """Metrics that were recorded at more than one step, in the order in which they came."""
        return charts.curves(self.table)

    @cached_property
    def arms(self) -> list[str]:
        """The arms that have reported."""
        return list(self.table["arm"].unique())


def at(run: str) -> Glance:
    """The run now; LedgerError if there is none of that name."""
    return _shared(run, store.ledger().url).now()


def forget(run: str) -> None:
    """Show what this page has just written without delay."""
    _shared(run, store.ledger().url).forget()


@lru_cache(maxsize=READ)
def _shared(run: str, url: str) -> Shared:
    return Shared(lambda last: _look(run, last))


def _look(run: str, last: Glance | None) -> Glance:
    book = store.ledger()
    row = book.run(run)
    events = [] if last is None else last.events
    events = [*events, *book.events(run, events[-1]["id"] if events else 0)]
    points, cursor = _points(run, row, last)
    return Glance(row, events, book.commands(run), _kept(run, events), points, cursor)


def _points(run: str, row: dict[str, Any], last: Glance | None) -> tuple[pd.DataFrame, int]:
    """Those read before with the new ones; the table of a run that has ended is read as a whole instead."""
    names = ["id", *ledger.COLUMNS]
    before = pd.DataFrame(columns=names) if last is None else last.points
    if row["status"] in ledger.ENDED:
        return before, 0 if last is None else last.cursor
    rows, cursor = store.ledger().points_since(run, 0 if last is None else last.cursor)
    if not rows:
        return before, cursor
    new = pd.DataFrame(rows, columns=names).astype({"value": "float64"})
    return pd.concat([before, new], ignore_index=True) if len(before) else new, cursor


@st.cache_data(max_entries=16, show_spinner=False)
def _closed(run: str, ended: float, url: str) -> pd.DataFrame:
    return store.ledger().table(run)


def _kept(run: str, events: list[dict[str, Any]]) -> dict[str, int]:
    folder = ledger.home() / run / "checkpoints"
    there = {path.stem for path in folder.glob("*.pt")}
    found = {e["payload"]["name"]: e["step"] or 0 for e in events if e["kind"] == "checkpoint" and e["payload"]["name"] in there}
    return dict(sorted(found.items(), key=lambda one: one[1]))


# ---- what concerns all runs


def settled() -> None:
    """See to runs whose process has died or never came up, once for all who look."""
    _keeper(store.ledger().url).now()


@lru_cache(maxsize=4)
def _keeper(url: str) -> Shared:
    def keep(_last: None) -> None:
        launch.settle(store.ledger())
        store.ledger().reap(store.SILENCE)

    return Shared(keep)


def alive() -> list[dict[str, Any]]:
    """Every run that is queued or under way, newest first."""
    return _going(store.ledger().url).now()


@lru_cache(maxsize=4)
def _going(url: str) -> Shared:
    return Shared(lambda _last: store.alive())


def picture(run: str, view: str, arm: str, seed: int) -> dict[str, Any] | None:
    """Ask for a live picture and get the last one drawn, as `Ledger.watch` gives it."""
    return _pictures(run, view, arm, seed, store.ledger().url).now()


@lru_cache(maxsize=READ)
def _pictures(run: str, view: str, arm: str, seed: int, url: str) -> Shared:
    return Shared(lambda _last: store.ledger().watch(run, view, arm, seed))
