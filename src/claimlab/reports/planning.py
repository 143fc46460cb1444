"""What a report needs: of every study a run and a run of its negative control, each reused, or to be run and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from claimlab import admission, export, runner
from claimlab.params import KnobError
from claimlab.reports import staleness, timing
from claimlab.study import Study, StudyError, catalogue, find

FINISHED = 100  # earlier runs of a study that are looked through


@dataclass(eq=False)
class Item:
    """One run of a report. `why` holds the reasons to run it, none where it is reused; `outcome` what came of it."""

    study: Study
    control: bool
    wanted: dict[str, Any]
    why: list[dict[str, str]]
    outcome: runner.Outcome | None = None
    expected: float | None = None
    memory: int = admission.USUAL
    done: int = 0
    total: int = 0
    text: str = ""
    began: float = 0.0
    ended: float = 0.0
    failure: tuple[str, str] | None = None  # status, reason

    @property
    def reused(self) -> bool:
        return not self.why

    @property
    def name(self) -> str:
        return f"{self.study.slug} (control)" if self.control else self.study.slug

    @property
    def work(self) -> timing.Work:
        """The run as the clock of the report sees it."""
        spent = (self.ended or time.monotonic()) - self.began if self.began else 0.0
        return timing.Work(self.expected, spent, self.done / self.total if self.total else 0.0, bool(self.ended or self.failure))


@dataclass(eq=False)
class Entry:
    """One study in a report: its run, the run of its negative control, and what stands in the way of a verdict."""

    study: Study
    main: Item | None = None
    control: Item | None = None
    refused: str = ""  # why it cannot be run at all

    @property
    def outcome(self) -> runner.Outcome | None:
        return self.main.outcome if self.main is not None else None

    @property
    def page(self) -> str:
        return f"{self.study.slug}.html" if self.outcome is not None and self.outcome.notebook is not None else ""

    def failures(self) -> list[dict[str, Any]]:
        """What did not finish: study, status, reason, control (whether it is the control that failed), run, page."""
        found = [self._failure("failed", self.refused)] if self.refused else []
        for one in (self.main, self.control):
            if one is not None and one.failure is not None:
                found.append(self._failure(*one.failure, one))
            elif one is not None and one.outcome is not None and one.outcome.status != "finished":
                found.append(self._failure(one.outcome.status, one.outcome.reason, one))
        return found

    def _failure(self, status: str, reason: str, item: Item | None = None) -> dict[str, Any]:
        control, run = (False, "") if item is None else (item.control, item.outcome.run if item.outcome else "")
        return {"study": self.study.slug, "status": status, "reason": reason, "control": control, "run": run,
                "page": "" if control else self.page}  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """One line a claim that was judged; a claim that need not vanish under the control is not held against it."""
        if self.outcome is None:
            return []
        declared, rows = self.study.control, []
        found = {v["claim"]: v for v in self.outcome.verdicts}
        judged = self.control.outcome.verdicts if self.control is not None and self.control.outcome is not None else []
        under = {v["claim"]: v["verdict"] for v in judged}
        for claim in self.study.claims:
            if claim.id not in found:
                continue
            concerned = claim.id in declared.vanishes
            note = "need not vanish there" if declared.set and not concerned else "" if declared.set else "no control"
            line = export.row(found[claim.id], claim, under.get(claim.id) if concerned else None, note)
            rows.append({**line, "study": self.study.slug, "kind": claim.kind, "better": claim.better, "margin": claim.margin,
                         "page": self.page, "run": self.outcome.run})  # fmt: skip
        return rows


@dataclass
class Choice:
    """What is asked of a report: `force` reuses nothing that began before `since`."""

    profile: str = "default"
    force: bool = False
    control: bool = True
    since: float = field(default_factory=time.time)


def select(names: list[str], everything: bool = False, family: str | None = None, theme: str | None = None) -> list[str]:
    """The slugs that are asked for; StudyError says why there are none."""
    chosen = [s for s in catalogue() if not s.broken]
    if family is not None and family not in (known := sorted({s.family for s in chosen})):
        raise StudyError(f"no study is of that family: family = {family!r} is not allowed, one of {', '.join(known)}")
    if names:
        chosen = [find(name) for name in names]
    elif not (everything or family or theme):
        raise StudyError("name studies, or use --all, --family or --theme")
    chosen = [s for s in chosen if family in (None, s.family) and theme in (None, s.paper.theme)]
    if not chosen:
        raise StudyError("no study is of that family and theme")
    return [s.slug for s in chosen]


def chosen(slugs: Iterable[str]) -> list[Study]:
    """The studies of these names, in this order, broken ones among them; StudyError names an unknown one."""
    known = {s.slug: s for s in catalogue()}
    wanted = [slug.replace("_", "-").lower() for slug in slugs]
    return [known[slug] if slug in known else find(slug) for slug in dict.fromkeys(wanted)]


def plan(book: Any, studies: Iterable[Study], choice: Choice) -> list[Entry]:
    """An entry for each study with what is reused and what is to be run. Nothing is started."""
    return [_entry(book, study, choice) for study in studies]


def _entry(book: Any, study: Study, choice: Choice) -> Entry:
    entry = Entry(study)
    if study.broken:
        entry.refused = f"the study is broken: {study.broken}"
        return entry
    past = book.runs(study=study.slug, status="finished", limit=FINISHED)
    try:
        entry.main = _item(book, study, past, choice, control=False)
        if choice.control and study.control.set:
            entry.control = _item(book, study, past, choice, control=True)
    except (KnobError, StudyError) as error:
        entry.refused, entry.main = str(error), None
    return entry


def _item(book: Any, study: Study, past: list[dict[str, Any]], choice: Choice, control: bool) -> Item:
    p = study.make(study.control.set if control else None, choice.profile)
    runner.check_notebook(study)
    wanted = staleness.want(study, p, choice.profile, control)
    found = staleness.fresh(book, past, wanted, choice.since if choice.force else 0.0)
    if found is not None:
        return Item(study, control, wanted, [], found, ended=1.0)
    alike = [row for row in past if bool(row["control"]) == control]
    estimate = timing.expected(alike or past, wanted["params"], choice.profile)
    need = admission.needs(admission.heights(book, [row["id"] for row in alike]))
    return Item(study, control, wanted, staleness.reasons(past, wanted, choice.force), None,
                estimate.seconds if estimate else None, need)  # fmt: skip
