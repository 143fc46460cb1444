"""verdicts.csv: one line a claim, the same results give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = ("study", "claim", "kind", "verdict", "effect", "low", "high", "n", "margin", "control", "says_nothing", "profile")


def as_csv(rows: Iterable[dict[str, Any]], profile: str) -> str:
    """The lines of a verdicts.csv, in the order of the rows, numbers with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        facts = {
            **row,
            "control": row["control"] or "",
            "says_nothing": "yes" if row["says_nothing"] else "no",
            "profile": profile,
        }
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in map(facts.get, COLUMNS)])
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a verdicts.csv as texts; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))
