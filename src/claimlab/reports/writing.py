"""Lays a report down in its folder in one go: everything is written beside it first and then moved, the index last.

A reader never sees half a file. A process that dies while it moves leaves all it wrote and the list of it: the next report into
the same folder moves the rest, so that the folder holds the old report or the new one and no mixture that stays.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claimlab import export
from claimlab.reports import document as documents
from claimlab.reports import summary
from claimlab.reports.verdicts import as_csv

STAGE, LIST = ".new", "moves.json"
TRAIL = 110  # px of the drawing of a trend


def write(found: dict[str, Any], out: Path, pages: Callable[[Path], None], single_file: bool = False) -> Path:
    """Write the report `found` (see `document`) into the folder `out`, `pages(folder)` writing those of the studies; its index."""
    stage = out / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    if not single_file and not (out / export.PLOTLY).exists():
        export.share_plotly(stage)
    pages(stage)
    text = json.dumps(found, indent=1, allow_nan=False)
    (stage / "verdicts.csv").write_text(as_csv(found["verdicts"], found["profile"]), encoding="utf-8", newline="")
    (stage / "summary.md").write_text(summary.markdown(found), encoding="utf-8")
    (stage / documents.NAME).write_text(text, encoding="utf-8")
    (stage / "history").mkdir()
    (stage / "history" / f"{found['id']}.json").write_text(text, encoding="utf-8")
    index(found, stage / "index.html")
    before = documents.read(out / documents.NAME)
    shown = {one["page"] for one in found["studies"]}
    gone = [one["page"] for one in (before or {"studies": []})["studies"] if one["page"] and one["page"] not in shown]
    old = sorted((out / "history").glob("*.json"), reverse=True)[documents.KEPT - 1 :]
    (stage / "moves.part").write_text(json.dumps({"gone": [*gone, *(f"history/{p.name}" for p in old)]}), encoding="utf-8")
    (stage / "moves.part").replace(stage / LIST)  # from here on the new report stands, whatever dies
    settle(out)
    return out / "index.html"


def settle(out: Path) -> None:
    """Move what a report that was written to its end has left beside the folder's files; forget one that was not."""
    stage = out / STAGE
    if (stage / LIST).exists():
        last = (documents.NAME, "index.html", LIST)
        files = sorted((p for p in stage.rglob("*") if p.is_file()), key=lambda p: last.index(p.name) if p.name in last else -1)
        for path in files[:-1]:
            target = out / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        for name in json.loads((stage / LIST).read_text(encoding="utf-8"))["gone"]:
            (out / name).unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)


def index(found: dict[str, Any], target: Path) -> Path:
    """Write the index of a report."""
    counts = found["counts"]
    facts = [f"{counts['studies']} studies", f"{counts['claims']} claims judged: {documents.tally(counts)}", f"profile {found['profile']}",
             f"{counts['ran']} studies ran, {counts['studies'] - counts['ran']} reused", local(found["written"])]  # fmt: skip
    facts += [f"{counts['says_nothing']} supported claims say nothing"] if counts["says_nothing"] else []
    facts += ["interrupted: the same command goes on"] if found["interrupted"] else []
    rows = [{**row, "picture": export.picture(row, row["threshold"]), "trail": trail(row)} for row in found["verdicts"]]
    return export.index(target, facts=facts, rows=rows, changes=found["changes"], before=found["before"],
                        studies=found["studies"], failures=found["failures"])  # fmt: skip


def local(stamp: str) -> str:
    """A time of a report in the words and the zone of this machine."""
    return time.strftime("%d %B %Y, %H:%M", time.localtime(documents.moment(stamp)))


def trail(row: dict[str, Any]) -> dict[str, Any] | None:
    """Positions (in px) of the effects of the earlier reports and of this one, and of the margin; None without an earlier one."""
    points = [*row["trend"], row]
    known = [one for one in points if one["effect"] is not None]
    if len(points) < 2 or not known:
        return None
    values = [one["effect"] for one in known] + [row["threshold"]]
    low, span = min(values), (max(values) - min(values)) or 1.0

    def height(value: float) -> float:
        return round(22 - 18 * (value - low) / span, 1)

    step = (TRAIL - 10) / max(1, len(points) - 1)
    dots = [{"x": round(5 + step * n, 1), "y": height(one["effect"]), "verdict": one["verdict"]}
            for n, one in enumerate(points) if one["effect"] is not None]  # fmt: skip
    said = [f"{one['written'][:10]} {one['verdict']} {one['effect']:+.3g}" for one in row["trend"] if one["effect"] is not None]
    return {"width": TRAIL, "dots": dots, "margin": height(row["threshold"]), "title": "; ".join([*said, f"now {row['verdict']}"])}
