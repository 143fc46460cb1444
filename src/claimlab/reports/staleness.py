"""Which earlier run would come out the same if it were run again, and if there is none, why not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from claimlab import params as knob_views
from claimlab import runner
from claimlab.study import Study

FILES = ("notebook", "sources", "data")  # of a run's provenance; the rest are versions of libraries


def want(study: Study, p: Any, profile: str, control: bool) -> dict[str, Any]:
    """What a run has to agree with: the fields of the ledger's row of a run on which its result depends."""
    versions = json.loads(json.dumps(runner.provenance(study)))
    if control:  # its numbers alone are used, and they do not come from the notebook's text
        versions.pop("notebook")
    return {"params": json.loads(json.dumps(knob_views.values(p))), "profile": profile, "control": control, "versions": versions}


def fresh(book: Any, past: Iterable[dict[str, Any]], wanted: dict[str, Any], since: float = 0.0) -> runner.Outcome | None:
    """The newest finished run among `past` (newest first) that agrees with `wanted` and began after `since`, or None."""
    for row in past:
        if not _comparable(row, wanted) or row["started"] < since or differences(row, wanted):
            continue
        files = {a["kind"]: Path(a["path"]) for a in book.artifacts(row["id"])}
        kept = {k: p if (p := files.get(k)) is not None and p.exists() else None for k in ("notebook", "report", "table")}
        if steered(book, row["id"]) or not (wanted["control"] or kept["notebook"]):
            continue
        verdicts = [v for v in book.verdicts(row["id"]) if not v["control"]]
        seconds = round((row["ended"] or row["started"]) - row["started"], 3)
        return runner.Outcome(row["id"], row["study"], "finished", seconds, row["params"], verdicts, **kept)
    return None


def steered(book: Any, run: str) -> bool:
    """Whether a hand has changed the run; such a run is shown and never judged."""
    return any(event["kind"] == "set" for event in book.events(run))


def reasons(past: Iterable[dict[str, Any]], wanted: dict[str, Any], forced: bool = False) -> list[dict[str, str]]:
    """Why something has to be run: each reason has a `kind` (missing, knobs, source, notebook, versions, data, files, forced)
    and a `text`."""
    last = next((row for row in past if _comparable(row, wanted)), None)
    if last is None:
        return [_reason("missing", f"it has not been run at the profile {wanted['profile']}")]
    found = differences(last, wanted)
    if forced and not found:
        return [_reason("forced", "asked for, though nothing has changed")]
    return found or [_reason("files", "the last run was steered, or its files are gone")]


def differences(row: dict[str, Any], wanted: dict[str, Any]) -> list[dict[str, str]]:
    """In words, everything in which an earlier run differs from what is wanted, and on which its result depends."""
    found = []
    if knobs := _changed(row["params"], wanted["params"]):
        found.append(_reason("knobs", ", ".join(knobs)))
    elif row.get("seeds") and list(row["seeds"]) != list(range(wanted["params"].get("seeds", len(row["seeds"])))):
        found.append(_reason("knobs", f"its seeds were {', '.join(map(str, row['seeds']))}"))
    old, new = row["versions"], wanted["versions"]
    if "sources" not in old:
        return [*found, _reason("source", "the earlier run kept no record of its source")]
    if old["sources"] != new["sources"]:
        found.append(_reason("source", ", ".join(_files(old["sources"], new["sources"]))))
    if old.get("data", {}) != new["data"]:
        found.append(_reason("data", ", ".join(f"{n} names other contents" for n in _files(old.get("data", {}), new["data"]))))
    if "notebook" in new and old.get("notebook") != new["notebook"]:
        found.append(_reason("notebook", "the notebook has been edited"))
    versions = _changed(*({k: v for k, v in one.items() if k not in FILES} for one in (old, new)))
    return [*found, _reason("versions", ", ".join(versions))] if versions else found


def _comparable(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return row["profile"] == wanted["profile"] and bool(row["control"]) == wanted["control"]


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    names = [k for k in (*old, *(k for k in new if k not in old)) if old.get(k) != new.get(k)]
    return [f"{k} {_said(old, k)} → {_said(new, k)}" for k in names]


def _said(values: dict[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "none"


def _files(old: Any, new: dict[str, str]) -> list[str]:
    """Names of the files that differ, the study's own first; older records hold one hash for all of them."""
    if not isinstance(old, dict):
        return ["recorded in an older form"]
    found = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return sorted(found, key=lambda name: (not name.startswith("studies/"), name))


def _reason(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}
