"""The report: which claims hold, with interval, seeds and negative control, an index and one page a study.

Runs that are fresh are reused: finished, not steered, with the same knobs, profile, notebook, source and libraries.
"""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claimlab import export, job, runner
from claimlab import params as knob_views
from claimlab.params import KnobError
from claimlab.study import Study, StudyError, catalogue, find

COLUMNS = ("study", "claim", "kind", "verdict", "effect", "low", "high", "n", "margin", "control", "says_nothing", "profile")


@dataclass
class Entry:
    """One study in a report: its run, the run of its negative control, and what stands in the way of a verdict."""

    study: Study
    main: runner.Outcome | None = None
    control: runner.Outcome | None = None
    reused: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def page(self) -> str:
        return f"{self.study.slug}.html" if self.main is not None and self.main.notebook is not None else ""

    def fail(self, status: str, reason: str, control: bool = False) -> None:
        found = {"study": self.study.slug, "status": status, "reason": reason, "control": control}
        self.failures.append({**found, "page": "" if control else self.page})

    def rows(self) -> list[dict[str, Any]]:
        """One line a claim that was judged; a claim that need not vanish under the control is not held against it."""
        if self.main is None:
            return []
        declared, rows = self.study.control, []
        found = {v["claim"]: v for v in self.main.verdicts}
        under = {v["claim"]: v["verdict"] for v in (self.control.verdicts if self.control else [])}
        for claim in self.study.claims:
            if claim.id not in found:
                continue
            concerned = claim.id in declared.vanishes
            note = "need not vanish there" if declared.set and not concerned else "" if declared.set else "no control"
            line = export.row(found[claim.id], claim, under.get(claim.id) if concerned else None, note)
            rows.append({**line, "study": self.study.slug, "page": self.page, "kind": claim.kind, "margin": claim.margin})
        return rows


def report(slugs: Iterable[str], profile: str = "default", out: Path | str = Path("runs/report"), *,
           progress: Callable[[int, int, str], None] | None = None, ledger: Any = None, jobs: int = 1, force: bool = False,
           control: bool = True, single_file: bool = False,
           told: Callable[[runner.Outcome], None] | None = None) -> Path:  # fmt: skip
    """Run what is missing or stale of these studies and write the report into the folder `out`; the path of its index.

    StudyError names an unknown study before anything starts. A study that is broken, fails or is stopped stands first in
    the index with its reason. Beside the pages: verdicts.csv, and plotly.min.js unless `single_file`. An interrupt ends
    the running study and the report is written from what there is. `force` reuses nothing; `jobs` studies run at a time;
    `told` hears of every run that has come to an end, controls aside.
    """
    from claimlab.ledger import Ledger

    studies, out = _studies(slugs), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    book = ledger or Ledger()
    entries = [Entry(study) for study in studies]
    how = _How(book, profile, progress, force, control, max(1, min(jobs, len(entries))), told)
    try:
        _run_all(entries, how)
        return _write(entries, book, profile, out, single_file)
    finally:
        if ledger is None:
            book.close()


def write_csv(path: Path, rows: Iterable[dict[str, Any]], profile: str) -> Path:
    """Write the reference results: one line a claim, in the order of the rows; the same results give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            facts = {
                **row,
                "control": row["control"] or "",
                "says_nothing": "yes" if row["nothing"] else "no",
                "profile": profile,
            }
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in map(facts.get, COLUMNS)])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a verdicts.csv as texts; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


# ---- running


@dataclass(frozen=True)
class _How:
    book: Any
    profile: str
    progress: Callable[[int, int, str], None] | None
    force: bool
    control: bool
    jobs: int
    told: Callable[[runner.Outcome], None] | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def kernels(self) -> bool:
        """Studies that run at the same time need a process each: the global generator is not shared safely."""
        return self.jobs > 1


def _studies(slugs: Iterable[str]) -> list[Study]:
    known = {s.slug: s for s in catalogue()}
    wanted = [slug.replace("_", "-").lower() for slug in slugs]
    return [known[slug] if slug in known else find(slug) for slug in dict.fromkeys(wanted)]


def _run_all(entries: list[Entry], how: _How) -> None:
    with _interrupts(how):
        if how.jobs == 1:
            for entry in entries:
                _fill(entry, how)
            return
        with ThreadPoolExecutor(how.jobs) as pool:
            for done in [pool.submit(_fill, entry, how) for entry in entries]:
                done.result()


@contextmanager
def _interrupts(how: _How):
    """SIGTERM and Ctrl-C stop the studies that run now and start no other; the report is written from what there is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def obey(number, frame):
        how.over.set()
        _stop_all()

    before = {s: signal.signal(s, obey) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_all() -> None:
    for one in list(job.ACTIVE):
        with suppress(KeyboardInterrupt):  # raised where there is no kernel yet; the job knows all the same
            one.stop()


def _fill(entry: Entry, how: _How) -> None:
    if entry.study.broken:
        return entry.fail("failed", f"the study is broken: {entry.study.broken}")
    entry.main, entry.reused = _outcome(entry, how, control=False)
    if entry.main is None:
        return None
    if how.told is not None and not entry.reused:
        how.told(entry.main)
    if entry.main.status != "finished":
        return entry.fail(entry.main.status, entry.main.reason)
    if how.control and entry.study.control.set:
        entry.control, _ = _outcome(entry, how, control=True)
        if entry.control is not None and entry.control.status != "finished":
            entry.fail(entry.control.status, entry.control.reason, control=True)
        elif entry.control is not None:
            how.book.record_verdicts(entry.main.run, entry.control.verdicts, control=True)
    return None


def _outcome(entry: Entry, how: _How, control: bool) -> tuple[runner.Outcome | None, bool]:
    slug, kernel = entry.study.slug, how.kernels or not control

    def tell(done: int, total: int, text: str) -> None:
        if how.over.is_set() and not all(one.stopping for one in job.ACTIVE):
            _stop_all()  # an interrupt that came while this run was on its way
        if how.progress is not None:
            how.progress(done, total, f"{slug}{' (control)' if control else ''}: {text}")

    if how.over.is_set():
        entry.fail("stopped", "the report was interrupted before it ran", control)
        return None, False
    try:
        study, p = runner.prepare(slug, profile=how.profile, control=control, kernel=kernel)
        found = None if how.force else fresh(how.book, study, p, how.profile, control=control)
        if found is not None:
            tell(1, 1, "nothing has changed")
            return found, True
        outcome = runner.run(slug, profile=how.profile, control=control, kernel=kernel, ledger=how.book, progress=tell)
    except (KnobError, StudyError) as error:
        entry.fail("failed", str(error), control)
        return None, False
    if any(e["kind"] == "interrupted" for e in how.book.events(outcome.run)):
        how.over.set()
    return outcome, False


def fresh(book: Any, study: Study, p: Any, profile: str, control: bool = False) -> runner.Outcome | None:
    """The newest run of `study` that would come out the same if it were run again, or None."""
    want = json.loads(json.dumps(knob_views.values(p)))
    ignored = {"notebook"} if control else set()
    depends = {k: v for k, v in runner.provenance(study).items() if k not in ignored}
    for row in book.runs(study=study.slug, status="finished"):
        same = row["params"] == want and row["profile"] == profile and bool(row["control"]) == control
        if not same or any(row["versions"].get(k) != v for k, v in depends.items()):
            continue
        files = {a["kind"]: Path(a["path"]) for a in book.artifacts(row["id"])}
        kept = {k: p if (p := files.get(k)) is not None and p.exists() else None for k in ("notebook", "report", "table")}
        if any(e["kind"] == "set" for e in book.events(row["id"])) or not (control or kept["notebook"]):
            continue
        verdicts = [v for v in book.verdicts(row["id"]) if not v["control"]]
        seconds = round((row["ended"] or row["started"]) - row["started"], 3)
        return runner.Outcome(row["id"], study.slug, "finished", seconds, row["params"], verdicts, **kept)
    return None


# ---- writing


def _write(entries: list[Entry], book: Any, profile: str, out: Path, single_file: bool) -> Path:
    if not single_file:
        export.share_plotly(out)
    for entry in entries:
        if entry.page:
            _page(entry, profile, out, single_file)
    rows = [row for entry in entries for row in entry.rows()]
    before = read_csv(out / "verdicts.csv")
    changes = changed(before, rows, profile) if before else []
    write_csv(out / "verdicts.csv", rows, profile)
    nothing = sum(row["nothing"] for row in rows)
    facts = [f"{len(entries)} studies", f"{len(rows)} claims judged", f"profile {profile}", time.strftime("%d %B %Y, %H:%M")]
    facts += [f"{nothing} supported claims say nothing"] if nothing else []
    return export.index(out / "index.html", facts=facts, rows=rows, changes=changes, studies=[_line(e) for e in entries],
                        failures=[f for e in entries for f in e.failures])  # fmt: skip


def _page(entry: Entry, profile: str, out: Path, single_file: bool) -> None:
    main, study = entry.main, entry.study
    facts = [f"run {main.run}", f"profile {profile}", f"{main.params.get('seeds')} seeds", f"{main.seconds:.0f} s"]
    if entry.control is not None:
        settings = ", ".join(f"{k} = {v}" for k, v in study.control.set.items())
        facts.append(f"negative control with {settings}: {study.control.why}")
    shown = dict(title=study.paper.title, status=main.status, reason=main.reason, traceback="", facts=facts,
                 rows=entry.rows(), back="index.html")  # fmt: skip
    export.page(main.notebook, out / entry.page, shown, single_file=single_file)


def _line(entry: Entry) -> dict[str, Any]:
    study, main = entry.study, entry.main
    known = bool(study.declared)
    status = main.status if main is not None else entry.failures[0]["status"]
    return {
        "title": study.paper.title if known else study.slug, "question": study.paper.question if known else "",
        "status": status, "seconds": main.seconds if main else 0.0, "run": main.run if main else "", "page": entry.page,
        "reused": entry.reused,
    }  # fmt: skip


def changed(before: list[dict[str, str]], rows: list[dict[str, Any]], profile: str) -> list[str]:
    """In words: the claims whose verdict is not that of the earlier report, at the same profile."""
    old = {(r["study"], r["claim"]): r["verdict"] for r in before if r["profile"] == profile}
    lines = []
    for row in rows:
        was = old.get((row["study"], row["claim"]))
        if was is not None and was != row["verdict"]:
            lines.append(f"{row['study']}, {row['claim']}: {was} before, {row['verdict']} now")
    return lines
