"""What a report says, as one document: report.json, of which index, summary, table and e-mail are views.

Its form is that of `templates/report.schema.json`; SCHEMA is raised when a reader of the old form would misread the new one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claimlab import __version__
from claimlab.reports import staleness
from claimlab.reports.planning import Entry
from claimlab.strict import finite

SCHEMA = 1
NAME = "report.json"
KEPT = 50  # earlier reports in history/
TREND = 8  # of them that a trend goes back
WORDS = ("supported", "refuted", "undecided")


def make(entries: Iterable[Entry], profile: str, *, began: float, interrupted: bool, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """The document of a report that began at `began`; `earlier` are the reports before it, newest first."""
    entries, now = list(entries), time.time()
    past = [one for one in earlier if one["profile"] == profile]
    rows = [row for entry in entries for row in entry.rows()]
    verdicts = [{**_plain(row), "trend": trend(row, past)} for row in rows]
    studies = [_study(entry, past) for entry in entries]
    found = {
        "schema": SCHEMA, "id": f"{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S-%f}", "claimlab": __version__,
        "written": stamp(now), "began": stamp(began), "seconds": round(now - began, 1), "profile": profile,
        "interrupted": interrupted, "before": past[0]["id"] if past else None,
        "failures": [one for entry in entries for one in entry.failures()],
        "changes": [*changes(verdicts, studies, past)], "studies": studies, "verdicts": verdicts,
    }  # fmt: skip
    return finite({**found, "counts": _counts(found)})


def _counts(found: dict[str, Any]) -> dict[str, int]:
    words = Counter(row["verdict"] for row in found["verdicts"])
    return {
        "studies": len(found["studies"]), "claims": len(found["verdicts"]), **{word: words[word] for word in WORDS},
        "says_nothing": sum(row["says_nothing"] for row in found["verdicts"]), "failures": len(found["failures"]),
        "changes": len(found["changes"]), "ran": sum(not one["reused"] for one in found["studies"]),
    }  # fmt: skip


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "picture"}


def _study(entry: Entry, past: list[dict[str, Any]]) -> dict[str, Any]:
    study, outcome, main = entry.study, entry.outcome, entry.main
    known, failures = bool(study.declared), entry.failures()
    found = {
        "study": study.slug, "family": study.family, "title": study.paper.title if known else study.slug,
        "question": study.paper.question if known else "", "page": entry.page,
        "status": outcome.status if outcome is not None else failures[0]["status"] if failures else "stopped",
        "run": outcome.run if outcome else "", "seconds": round(outcome.seconds, 1) if outcome else 0.0,
        "reused": main is not None and main.reused, "why": main.why if main is not None else [],
        "params": main.wanted["params"] if main else {}, "versions": main.wanted["versions"] if main else {},
        "control": {"run": entry.control.outcome.run if entry.control is not None and entry.control.outcome else "",
                    "set": dict(study.control.set) if known else {}, "why": study.control.why if known else ""},
    }  # fmt: skip
    return {**found, "since": since(found, past)}


def since(study: dict[str, Any], past: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What has changed of a study since the last report that shows it: source, knobs, versions, notebook, data."""
    last = next((s for one in past for s in one["studies"] if s["study"] == study["study"] and s["run"]), None)
    if last is None or last["run"] == study["run"] or not study["versions"]:
        return []
    return staleness.differences({"params": last["params"], "versions": last["versions"]}, study)


def trend(row: dict[str, Any], past: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What earlier reports said of this claim, the oldest first, one entry a run: written, run, verdict, effect, low, high, n."""
    found, seen = [], {row["run"]}
    for one in past:
        for old in one["verdicts"]:
            if (old["study"], old["claim"]) == (row["study"], row["claim"]) and old["run"] not in seen:
                seen.add(old["run"])
                found.append({"written": one["written"], **{k: old[k] for k in ("run", "verdict", "effect", "low", "high", "n")}})
    return found[:TREND][::-1]


def changes(verdicts: list[dict[str, Any]], studies: list[dict[str, Any]], past: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The claims whose verdict is not that of the report before that judged them: study, claim, was, now, why."""
    why = {one["study"]: one["since"] for one in studies}
    for row in verdicts:
        key = (row["study"], row["claim"])
        was = next((old["verdict"] for one in past for old in one["verdicts"] if (old["study"], old["claim"]) == key), None)
        if was is not None and was != row["verdict"]:
            yield {"study": row["study"], "claim": row["claim"], "was": was, "now": row["verdict"], "why": why[row["study"]]}


def sentence(change: dict[str, Any]) -> str:
    """A change in words, with what else has changed since."""
    since = "; ".join(f"{one['kind']}: {one['text']}" for one in change["why"]) or "nothing that is recorded has changed since"
    return f"{change['study']}, {change['claim']}: {change['was']} before, {change['now']} now ({since})"


def tally(counts: dict[str, int]) -> str:
    """The verdicts of a report in words: `3 supported, 1 refuted, 2 undecided`."""
    return ", ".join(f"{counts[word]} {word}" for word in WORDS)


def stamp(moment: float) -> str:
    """A time as text, in UTC: 2026-03-29T01:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def moment(stamp: str) -> float:
    """The time that `stamp` wrote, in seconds since 1970."""
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def read(path: Path) -> dict[str, Any] | None:
    """The document in a file; None if it is none, or of a later form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["schema"] <= SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def history(folder: Path) -> list[dict[str, Any]]:
    """The reports that were written into a folder, newest first."""
    paths = sorted((folder / "history").glob("*.json"), reverse=True)[:KEPT]
    return [found for path in paths if (found := read(path)) is not None]
