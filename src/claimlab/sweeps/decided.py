"""`claimlab run --until-decided`: seeds are added, look by look, until every claim of a study has its verdict.

All looks are one run of the ledger. The seeds that a look adds train as companies of their own (a member does not notice its
company, so that their tables can be joined), and companies that an earlier run has finished are taken from it. Such a run can be
paused and stopped, not changed: what is changed would not be judged.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from claimlab import live, runner
from claimlab import params as knob_views
from claimlab.experiment import Experiment
from claimlab.job import Job
from claimlab.ledger import ALIVE, COLUMNS, home
from claimlab.params import KnobError
from claimlab.steering import Driver
from claimlab.sweeps import looks

COMPANY = 20  # seeds that train at the same time, at most
BEAT = 0.5  # seconds between two reports of how far the run is
END = object()


def run(slug: str, values: dict[str, Any] | None = None, *, most: Any = looks.LOOKS[-1], profile: str = "default",
        control: bool = False, ledger: Any = None, progress: Any = None,
        told: Callable[[str], None] | None = None) -> runner.Outcome:  # fmt: skip
    """Run a study at 5, 10, ... `most` seeds until all its claims are decided, without a notebook; the outcome.

    KnobError and StudyError before anything starts. `told` hears the result of each look in words.
    """
    from claimlab.ledger import Ledger

    planned = looks.planned(most)
    if "seeds" in (values or {}):
        raise KnobError("seeds is not allowed with --until-decided, which adds seeds by itself; --max-seeds says how many at most")
    chosen = {**(values or {}), "seeds": planned[0]}
    study, p = runner.prepare(slug, chosen, profile=profile, control=control, kernel=False)
    book = ledger or Ledger()
    try:
        known = {"params": knob_views.values(p), "profile": profile + looks.MARK, "control": control, "versions": runner.provenance(study)}
        earlier = _earlier(book, study.slug, known)
        name = book.start_run(study.slug, known["params"], profile=known["profile"], seeds=range(planned[0]), control=control,
                              source_hash=study.source_hash, versions=known["versions"])  # fmt: skip

        def drive(job: Job) -> None:
            _Adding(job, planned, told or (lambda text: None)).drive(earlier)

        return runner.run(slug, chosen, profile=profile, control=control, kernel=False, ledger=book, progress=progress,
                          run_id=name, drive=drive)  # fmt: skip
    finally:
        if ledger is None:
            book.close()


def _earlier(book: Any, study: str, known: dict[str, Any]) -> tuple[str, list[list[int]]]:
    """The run of the same settings, source and libraries that has finished the most companies, and these; ("", []) if none."""
    found: tuple[str, list[list[int]]] = ("", [])
    known = json.loads(json.dumps(known))
    book.reap()
    for row in book.runs(study=study):
        if row["status"] in ("queued", *ALIVE) or {k: bool(row[k]) if k == "control" else row[k] for k in known} != known:
            continue
        done = [e["payload"]["seeds"] for e in book.events(row["id"]) if e["kind"] == "company"]
        if sum(map(len, done)) > sum(map(len, found[1])):
            found = (row["id"], done)
    return found


class _Driver(Driver):
    """Obeys what does not change the run."""

    def _refuse(self, *_: Any) -> dict:
        raise ValueError("this run adds seeds until its claims are decided; it can be paused and stopped, and what is changed "
                         "would not be judged: change a run of its own")  # fmt: skip

    _change = _rollback = _fork = _checkpoint = _refuse


@dataclass
class _Adding:
    """One run on its way through the looks."""

    job: Job
    planned: tuple[int, ...]
    told: Callable[[str], None]
    lab: Experiment | None = None  # the company in training, or the one trained last
    steps: int = 0  # of the companies that are done
    left: int = 0  # companies to go until the next look, the present one included
    beaten: float = -math.inf
    spent: dict[str, dict[str, float]] = field(default_factory=dict)

    def drive(self, earlier: tuple[str, list[list[int]]]) -> None:
        book, name = self.job.ledger, self.job.run
        book.set_status(name, "running")
        have = self._take(*earlier)
        for before, until in zip((0, *self.planned), self.planned, strict=False):
            wanted = [one for one in _companies(before, until) if not set(one) <= have]
            book.extend(name, range(until))
            for self.left, seeds in zip(range(len(wanted), 0, -1), wanted, strict=True):
                self._train(seeds)
            if not self._look(until):
                break
        self._draw(until)
        book.event(name, "budget", payload={"arms": list(self.spent.values())})

    def _take(self, earlier: str, done: list[list[int]]) -> set[int]:
        """The seeds that an earlier run has trained, whose points are this run's from now on."""
        have = {seed for one in done for seed in one if seed < self.planned[-1]}
        if have:
            book, name = self.job.ledger, self.job.run
            table = book.table(earlier)
            book.log(name, table.loc[table["seed"].isin(have), COLUMNS].itertuples(index=False, name=None))
            book.flush()
            for seeds in done:
                book.event(name, "company", payload={"seeds": seeds, "from": earlier})
            self.told(f"{len(have)} seeds are taken from the run {earlier}")
        return have

    def _train(self, seeds: list[int]) -> None:
        book, name = self.job.ledger, self.job.run
        study = self.job.study
        lab = self.lab = Experiment(study, study.module.Params(**knob_views.values(self.job.params)), seeds)
        driver = _Driver(study, lab, book, name)
        driver.shelf.wait = math.inf  # a checkpoint would hold this company alone
        while (pair := next(lab.stepwise(), END)) is not END:
            if pair is not None:
                live.record(lab, book, name, *pair)
            self._beat()
            driver.between()
        book.flush()
        self.steps += lab.done
        for line in lab.budgets.to_dict("records"):
            kept = self.spent.setdefault(line["arm"], {**line, "seconds": 0.0})
            kept["seconds"] += line["seconds"]
        book.event(name, "company", payload={"seeds": seeds})

    def _beat(self) -> None:
        self.job.heed()
        if time.monotonic() - self.beaten > BEAT:
            self.beaten = time.monotonic()
            self.job.ledger.heartbeat(self.job.run, self.steps + self.lab.done, self.steps + self.left * self.lab.total)

    def _look(self, seeds: int) -> bool:
        """Judge all claims on the seeds so far; whether more of them could decide anything."""
        book, study = self.job.ledger, self.job.study
        table = book.table(self.job.run)
        verdicts = looks.judge(study.claims, table[table["seed"] < seeds])
        kept = [looks.facts(v, c, seeds) for v, c in zip(verdicts, study.claims, strict=True)]
        book.record_verdicts(self.job.run, kept)
        shown = ("claim", "verdict", "effect", "low", "high", "threshold")
        payload = {"seeds": seeds, "looks": list(self.planned), "claims": [{k: one[k] for k in shown} for one in kept]}
        book.event(self.job.run, "look", payload=payload)
        book.heartbeat(self.job.run, self.steps, self.steps)
        decided, undecided = sum(v.verdict != "undecided" for v in verdicts), looks.open_claims(verdicts)
        said = f"{seeds} seeds: {decided} of {len(verdicts)} claims decided"
        self.told(said + (f"; {', '.join(undecided)} undecided" if undecided else ""))
        return bool(undecided)

    def _draw(self, seeds: int) -> None:
        """The study's figures of all seeds where they need the table alone, else those of the company trained last."""
        study, book = self.job.study, self.job.ledger
        whole = Experiment(study, self.job.params, range(seeds))
        rows = list(book.table(self.job.run).itertuples(index=False, name=None))
        whole.load({"arms": {}, "finished": [], "rows": rows, "steered": False})
        folder = home() / self.job.run / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for lab in filter(None, (whole, self.lab)):
            try:
                drawn = lab.figures()
            except Exception as error:  # a study may draw from networks, which no company holds for all seeds
                trouble = f"no figures of seeds {lab.seeds[0]} to {lab.seeds[-1]}: {type(error).__name__}: {error}"
                continue
            for name, figure in drawn.items():
                path = folder / f"{name}.json"
                path.write_text(figure.to_json(), encoding="utf-8")
                book.artifact(self.job.run, f"figure:{name}", str(path))
            return
        book.event(self.job.run, "error", payload={"text": trouble})


def _companies(before: int, until: int) -> Iterator[list[int]]:
    """The seeds from `before` to `until` in companies of at most COMPANY."""
    for first in range(before, until, COMPANY):
        yield list(range(first, min(first + COMPANY, until)))
