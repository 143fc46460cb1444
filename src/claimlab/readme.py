"""The README's table of studies and verdicts, generated from the reference results in data/verdicts.csv."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from claimlab.study import Study, catalogue

BEGIN, END = "<!-- studies: begin (written by `claimlab sync`) -->", "<!-- studies: end -->"
ICONS = {"supported": "✔", "refuted": "✘", "undecided": "?"}


def table(studies: list[Study], results: list[dict[str, str]]) -> str:
    """A Markdown table: question, study, and each claim with its verdict; claims without a result say so."""
    verdicts: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in results:
        verdicts[row["study"]][row["claim"]] = row
    lines = ["| question | study | claims |", "|---|---|---|"]
    for one in studies:
        shown = [_claim(claim.id, verdicts[one.slug].get(claim.id)) for claim in one.claims]
        link = f"[{one.slug}](notebooks/{one.family}/{one.path.stem}.ipynb)"
        lines.append(f"| {one.paper.question} | {link} | {'<br>'.join(shown)} |")
    return "\n".join(lines)


def _claim(name: str, row: dict[str, str] | None) -> str:
    if row is None:
        return f"– {name}: not run yet"
    note = " (also under its control: says nothing)" if row["says_nothing"] == "yes" else ""
    return f"{ICONS[row['verdict']]} {name}: {row['verdict']}{note}"


def fresh(root: Path) -> str:
    """The README as `sync` would write it; ValueError if its markers are gone."""
    from claimlab.reports.verdicts import read_csv

    text = (root / "README.md").read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has lost its markers {BEGIN} and {END}")
    studies = [s for s in catalogue() if not s.broken and s.path.is_relative_to(root)]
    return f"{head}{BEGIN}\n{table(studies, read_csv(root / 'data' / 'verdicts.csv'))}\n{END}{tail}"


def sync(root: Path) -> list[Path]:
    """Write the table anew; the files that changed."""
    path, text = root / "README.md", fresh(root)
    if text == path.read_text(encoding="utf-8"):
        return []
    path.write_text(text, encoding="utf-8")
    return [path]


def record(root: Path, results: Path) -> None:
    """Take the lines of a report's verdicts.csv over into data/verdicts.csv, and write the table anew.

    The lines of a study are replaced together; those of studies that the report does not hold stay. Studies from outside of
    the project are no part of its reference results.
    """
    from claimlab.reports.verdicts import COLUMNS, read_csv

    kept = root / "data" / "verdicts.csv"
    known = [s.slug for s in catalogue() if not s.broken and s.path.is_relative_to(root)]
    new = read_csv(results)
    replaced = {row["study"] for row in new}
    rows = [row for row in read_csv(kept) if row["study"] not in replaced] + new
    rows = sorted((row for row in rows if row["study"] in known), key=lambda row: known.index(row["study"]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sync(root)
