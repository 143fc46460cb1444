"""A run that has ended, read as a whole: what every way of handing results on begins with."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claimlab.params import KnobError
from claimlab.study import StudyError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Closed:
    """One run: its row of the ledger, its tidy table, its verdicts (controls aside) and its events."""

    row: dict[str, Any]
    table: pd.DataFrame
    verdicts: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def run(self) -> str:
        return self.row["id"]

    @property
    def tags(self) -> dict[str, str]:
        """What a tracker keeps as tags: the run, its study, how it ended, and every verdict with its sentence."""
        facts = {f"claimlab.{k}": str(self.row[k]) for k in ("study", "status", "profile", "control", "source_hash")}
        words = {f"verdict.{v['claim']}": v["verdict"] for v in self.verdicts}
        return {"claimlab.run": self.run, **facts, **words, **{f"sentence.{v['claim']}": v["sentence"] for v in self.verdicts}}

    @property
    def effects(self) -> dict[str, float]:
        """Effect, low and high of every claim that has them, by claim/ID/NAME."""
        names = ("effect", "low", "high")
        return {f"claim/{v['claim']}/{n}": v[n] for v in self.verdicts for n in names if v.get(n) is not None}

    def lines(self, kind: str) -> pd.DataFrame:
        """The verdicts or the events as a table: what is no number or word stands there as JSON."""
        import pandas as pd

        rows = self.verdicts if kind == "verdicts" else self.events
        plain = [{k: json.dumps(v) if isinstance(v, list | tuple | dict) else v for k, v in one.items()} for one in rows]
        return pd.DataFrame(plain)


def closed(book: Any, run: str) -> Closed:
    """A run that has ended. LedgerError for an unknown one, KnobError for one that goes on or has recorded nothing."""
    from claimlab.ledger import ENDED

    row = book.run(run)
    if row["status"] not in ENDED:
        raise KnobError(f"the run {run} is {row['status']}; only a run that has ended can be handed on")
    table = book.table(run)
    if table.empty:
        raise KnobError(f"the run {run} is {row['status']} and recorded no points: there is nothing to hand on")
    verdicts = [v for v in book.verdicts(run) if not v["control"]]
    return Closed(row, table, verdicts, book.events(run))


def needs(module: str, extra: str) -> None:
    """StudyError that names the optional extra if a library is missing; checked before anything is written."""
    if importlib.util.find_spec(module) is None:
        raise StudyError(f"{module} is not installed; it comes with pip install 'claimlab[{extra}]'")
