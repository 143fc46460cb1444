"""The summary of a report on one page of Markdown, for a chat or an e-mail."""

from __future__ import annotations

from typing import Any

from claimlab.reports import document as documents

ICONS = {"supported": "✔", "refuted": "✘", "undecided": "?"}
MOST = 12  # failures and changes that are listed each
STUDIES = 30  # studies that are listed


def markdown(found: dict[str, Any]) -> str:
    """Counts, failures, changes, claims that say nothing, and a line a study; it ends where a page ends and says so."""
    counts = found["counts"]
    lines = [f"# {headline(found)}", "",
             f"{counts['studies']} studies, {counts['claims']} claims at the profile {found['profile']}: {documents.tally(counts)}. "
             f"{counts['ran']} ran, {counts['studies'] - counts['ran']} reused. Written {found['written']}."]  # fmt: skip
    if found["interrupted"]:
        lines += ["", "The report was interrupted; the same command goes on."]
    lines += _part("What did not finish", [f"**{one['study']}**{' (negative control)' if one['control'] else ''}: {one['status']}: "
                                           f"{plain(one['reason'])}" for one in found["failures"]], MOST)  # fmt: skip
    lines += _part("What changed", [plain(documents.sentence(one)) for one in found["changes"]], MOST)
    lines += _part("Supported under the control as well: says nothing",
                   [f"**{r['study']}**: {r['claim']}" for r in found["verdicts"] if r["says_nothing"]], MOST)  # fmt: skip
    lines += _part("Studies", [f"**{one['study']}**: {claims(found, one['study'])}" for one in found["studies"]], STUDIES)
    return "\n".join(lines) + "\n"


def headline(found: dict[str, Any]) -> str:
    """The report in one line: what failed and what changed come first."""
    counts = found["counts"]
    parts = [f"{counts['failures']} not finished"] if counts["failures"] else []
    parts += [f"{counts['changes']} verdict{'' if counts['changes'] == 1 else 's'} changed"] if counts["changes"] else []
    return ", ".join([*parts, documents.tally(counts)])


def claims(found: dict[str, Any], study: str) -> str:
    """The verdicts of a study as `✔ claim, ✘ claim`."""
    return ", ".join(f"{ICONS[r['verdict']]} {r['claim']}" for r in found["verdicts"] if r["study"] == study) or "no verdict"


def plain(text: str) -> str:
    """A text that comes from outside on one line, without marks that Markdown would obey."""
    for mark in "\\`*_[]<>":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _part(title: str, items: list[str], most: int) -> list[str]:
    if not items:
        return []
    more = [f"- … and {len(items) - most} more in the report"] if len(items) > most else []
    return ["", f"## {title}", "", *(f"- {one}" for one in items[:most]), *more]
