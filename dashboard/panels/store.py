"""What the pages read: studies by their declarations, runs and verdicts by the ledger, reference results by data/verdicts.csv."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import streamlit as st
from sqlalchemy.exc import SQLAlchemyError

from claimlab import ledger as ledgers
from claimlab import study as studies_of
from claimlab.ledger import Ledger, LedgerError
from claimlab.reports.verdicts import read_csv
from claimlab.study import Study

# a worker that is starting holds the interpreter while libraries load, so that its sign of life may come late
SILENCE = 8.0
TIMED = 5  # runs whose middle duration is told


@dataclass(frozen=True)
class Standing:
    """What is known of a study's claims: verdicts by claim id, the same under the control, and where they come from.
    `seconds`: how long a run at the default profile took on this machine, the middle of the last ones; None if none was made."""

    verdicts: dict[str, dict[str, Any]]
    control: dict[str, str]
    run: dict[str, Any] | None = None
    seconds: float | None = None

    @property
    def reference(self) -> bool:
        """Whether these are the shipped reference results and no run of this machine."""
        return bool(self.verdicts) and self.run is None


def ledger() -> Ledger:
    """The ledger that this process shares; made anew when CLAIMLAB_HOME or CLAIMLAB_LEDGER says another one."""
    return _ledger(os.environ.get("CLAIMLAB_LEDGER") or f"sqlite:///{ledgers.home() / 'ledger.db'}")


@lru_cache(maxsize=4)  # every tick of every viewer asks several times, and Streamlit's cache takes a tenth of a millisecond
def _ledger(url: str) -> Ledger:
    return Ledger(url)


@contextmanager
def guarded() -> Iterator[None]:
    """Show a ledger that cannot be read as a message with a way on, and end the page there."""
    try:
        yield
    except (LedgerError, SQLAlchemyError) as error:
        _ledger.cache_clear()
        st.error(
            str(getattr(error, "orig", None) or error), title="The ledger of runs cannot be read", icon=":material/database_off:"
        )
        st.button("Try again", icon=":material/refresh:", key="retry_ledger")
        st.stop()


def studies() -> list[Study]:
    """All studies, broken ones included; read anew only when a file has changed."""
    stamps = tuple(
        (str(path), path.stat().st_mtime_ns)
        for folder in studies_of.folders()
        for path in sorted(folder.rglob("*.py"))
        if not path.name.startswith("_")
    )
    return _studies(stamps)


@st.cache_resource(max_entries=2, show_spinner=False)
def _studies(stamps: tuple) -> list[Study]:
    return studies_of.catalogue()


def reference() -> dict[str, dict[str, dict[str, Any]]]:
    """The reference results by study and claim, as `Verdict.as_dict` gives them where the file has the column."""
    path = studies_of.root() / "data" / "verdicts.csv"
    return _reference(str(path), path.stat().st_mtime_ns if path.exists() else 0)


@st.cache_data(max_entries=2, show_spinner=False)
def _reference(path: str, stamp: int) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_csv(studies_of.Path(path)):
        numbers = {k: _number(row.get(k, "")) for k in ("effect", "low", "high")}
        kept = {**row, **numbers, "n": int(row.get("n") or 0), "values": [], "sentence": "", "reason": ""}
        found.setdefault(row["study"], {})[row["claim"]] = kept
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def standings(found: list[Study]) -> dict[str, Standing]:
    """The standing of every study: its last finished run, else the reference results. A smoke run, which lasts seconds and
    judges little, counts only where there is neither."""
    book, known = ledger(), reference()
    latest: dict[str, dict[str, Any]] = {}
    smoke: dict[str, dict[str, Any]] = {}
    took: dict[str, list[float]] = {}
    for row in book.runs(status="finished", limit=2000):
        if not row["control"] and not (row["branch"] or "").startswith("sweep "):  # a setting of a sweep is no standing
            (smoke if row["profile"].startswith("smoke") else latest).setdefault(row["study"], row)
        if row["profile"] == "default" and row["ended"]:
            took.setdefault(row["study"], []).append(row["ended"] - row["started"])
    seconds = {slug: statistics.median(times[:TIMED]) for slug, times in took.items()}
    result = {}
    for one in found:
        run = latest.get(one.slug) or (None if one.slug in known else smoke.get(one.slug))
        if run is None:
            rows = known.get(one.slug, {})
            control = {claim: row["control"] for claim, row in rows.items() if row.get("control")}
            result[one.slug] = Standing(rows, control, seconds=seconds.get(one.slug))
        else:
            judged = {v["claim"]: v for v in book.verdicts(run["id"]) if not v["control"]}
            result[one.slug] = Standing(judged, under_control(one, run)[0], run, seconds.get(one.slug))
    return result


def under_control(study: Study, run: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Verdicts of a run's negative control by claim, and the control's run: recorded with the run, or the last control run
    with the same other knobs."""
    book = ledger()
    recorded = {v["claim"]: v["verdict"] for v in book.verdicts(run["id"]) if v["control"]}
    if recorded or not study.control.set:
        return recorded, None
    want = {**run["params"], **study.control.set}
    for row in book.runs(study=study.slug, status="finished", limit=100):
        if row["control"] and row["params"] == want:
            return {v["claim"]: v["verdict"] for v in book.verdicts(row["id"])}, row
    return {}, None


def alive() -> list[dict[str, Any]]:
    """Runs that are queued or under way, newest first, after those without a sign of life have been marked lost."""
    book = ledger()
    book.reap(SILENCE)
    return [row for row in book.runs(limit=200) if row["status"] in ("queued", *ledgers.ALIVE)]
