"""An Experiment drives all arms of one study in lockstep and keeps what they report: tidy table, budgets, verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from claimlab import claims
from claimlab.study import Study
from claimlab.training import Run, Stages, Task, Tick

COLUMNS = ["study", "arm", "seed", "step", "metric", "value"]


class Experiment:
    """The arms of `study` at `params`, for each of `seeds` (default 0, 1, ... params.seeds - 1).

    An arm is declared in the study's ARMS as a Task class, a Stages, or any callable `(params, seeds)` that returns an
    object with `ticks()`. An arm with `after = "other"` starts when that arm is done and gets it (a Task its members, a
    callable the arm itself as third argument). An arm with `when(params)` false is left out.
    """

    def __init__(self, study: Study, params: Any, seeds: Sequence[int] | None = None, arms: Sequence[str] | None = None):
        declared = study.module.ARMS
        if unknown := set(arms or ()) - set(declared):
            raise ValueError(f"{study.slug} has no arm {', '.join(sorted(unknown))}; its arms: {', '.join(declared)}")
        wanted = _with_needs(declared, arms or list(declared))
        self.study, self.params = study, params
        self.seeds = [int(s) for s in (range(params.seeds) if seeds is None else seeds)]
        self.specs = {n: s for n, s in declared.items() if n in wanted and getattr(s, "when", _always)(params)}
        self.arms: dict[str, Any] = {}
        self.finished: set[str] = set()
        self.steered = False
        self.told: dict[str, set[int]] = {}  # members whose divergence has been reported, by arm
        self._ended: dict[str, Any] = {}  # states of finished arms: they change no more, and checkpoints share them
        self._rows: list[tuple] = []
        self._table: pd.DataFrame | None = None
        self._figures: dict[str, Any] | None = None
        self._iterator: Iterator | None = None

    # ---- driving

    def ticks(self) -> Iterator[tuple[str, Tick]]:
        """(arm, tick) of all arms, side by side, until every arm is done."""
        return (pair for pair in self.stepwise() if pair is not None)

    def stepwise(self) -> Iterator[tuple[str, Tick] | None]:
        """As `ticks`, with None after each step in between, so that the caller can act between any two steps."""
        if self._iterator is None:
            self._iterator = self._lockstep()
        return self._iterator

    def run(self) -> Experiment:
        """Drive everything to the end."""
        for _ in self.ticks():
            pass
        return self

    def _lockstep(self) -> Iterator[tuple[str, Tick] | None]:
        active: dict[str, Iterator] = {}
        while len(self.finished) < len(self.specs):
            for name, spec in self.specs.items():
                if name not in self.arms and self._ready(spec):
                    self.arms[name] = self._start(spec)
                if name in self.arms and name not in self.finished and name not in active:
                    active[name] = _steps(self.arms[name])
            for name in list(active):
                tick = yield from _until_tick(active[name])
                if tick is None:
                    del active[name]
                    self.finished.add(name)
                else:
                    self._record(name, tick)
                    yield name, tick

    def _ready(self, spec) -> bool:
        need = getattr(spec, "after", None)
        return need is None or need in self.finished

    def _start(self, spec) -> Any:
        need = self.arms.get(getattr(spec, "after", None))
        if isinstance(spec, type) and issubclass(spec, Task):
            return Run(spec(self.params), self.seeds, start=need and need.members)
        if isinstance(spec, Stages):
            return spec(self.params, self.seeds, start=need and need.members)
        return spec(self.params, self.seeds, need) if need else spec(self.params, self.seeds)

    def _record(self, arm: str, tick: Tick) -> None:
        self._table = self._figures = None
        self._rows += rows(self.study.slug, arm, self.seeds, tick)

    # ---- state

    def state(self) -> dict[str, Any]:
        """A copy of everything that the rest of the experiment depends on, as plain data and tensors; not to be changed."""
        arms = {name: self._ended.get(name) or (arm.state() if hasattr(arm, "state") else None) for name, arm in self.arms.items()}
        self._ended = {name: arms[name] for name in self.finished}
        return {"arms": arms, "finished": sorted(self.finished), "rows": list(self._rows), "steered": self.steered}

    def load(self, state: dict[str, Any], *, again: bool = True) -> None:
        """Go on exactly where `state` was taken, in this process or in another one.

        An arm that has no state of its own is run again from its start; what it reports is the same. With `again` false
        such arms are left out: enough to look at the networks of the others, and too little to go on.
        """
        before, self.arms = self.arms, {}
        done, self.finished = self.finished, set()
        waiting = [n for n in self.specs if n in state["arms"] and (again or state["arms"][n] is not None)]
        while name := next((n for n in waiting if self._ready(self.specs[n])), None):
            waiting.remove(name)
            over, saved = name in state["finished"], state["arms"][name]
            if over and name in done:  # nothing about it has changed
                self.arms[name] = before[name]
            else:
                self.arms[name] = self._restored(name, before.get(name), saved, over)
            if over:
                self.finished.add(name)
        again = {n for n, saved in state["arms"].items() if saved is None and n not in self.finished}
        self._ended = {name: kept for name, kept in self._ended.items() if name in self.finished and name in done}
        self._rows = [row for row in state["rows"] if row[1] not in again]
        self.steered, self._iterator, self._table, self._figures = state["steered"], None, None, None

    def _restored(self, name: str, arm: Any, saved: dict | None, over: bool) -> Any:
        if saved is None:
            arm = self._start(self.specs[name])
            for _ in _steps(arm) if over else ():
                pass
            return arm
        arm = arm or self._start(self.specs[name])
        arm.load(saved)
        return arm

    # ---- what is known so far

    @property
    def table(self) -> pd.DataFrame:
        """Tidy table: study, arm, seed, step, metric, value."""
        if self._table is None:
            self._table = pd.DataFrame(self._rows, columns=COLUMNS)
        return self._table

    @property
    def budgets(self) -> pd.DataFrame:
        """Per arm: steps, samples and forward calls of each member, seconds of all members together."""
        spent = {n: a.budget for n, a in self.arms.items() if hasattr(a, "budget")}
        return pd.DataFrame.from_dict(spent, orient="index").rename_axis("arm").reset_index()

    @property
    def total(self) -> int:
        """Steps of all arms."""
        return sum(self.arms[n].total if hasattr(self.arms.get(n), "total") else self._planned(s) for n, s in self.specs.items())

    def _planned(self, spec) -> int:
        if isinstance(spec, type) and issubclass(spec, Task):
            return spec(self.params).steps
        if isinstance(spec, Stages):
            return sum(task(self.params).steps for task in spec.stages.values())
        return 1

    @property
    def done(self) -> int:
        """Steps done by all arms."""
        return sum(getattr(arm, "step", int(n in self.finished)) for n, arm in self.arms.items())

    def verdicts(self) -> list[claims.Verdict]:
        """Every claim judged on the table; a steered experiment is shown and never judged."""
        if self.steered:
            reason = "the run was steered; steered runs are shown and never judged"
            return [
                claims.Verdict(c.id, "undecided", None, None, None, 0, f"Undecided: {reason}.", reason) for c in self.study.claims
            ]
        return [claims.judge(claim, self.table) for claim in self.study.claims]

    def figures(self) -> dict[str, Any]:
        """The study's figures of this experiment, made once."""
        if self._figures is None:
            self._figures = self.study.module.figures(self)
        return self._figures

    # ---- control

    def running(self, arm: str | None = None) -> dict[str, Run]:
        """The trainings that go on now, by arm, or that of one arm; ValueError where there is none."""
        if arm is not None and arm not in self.specs:
            raise ValueError(f"there is no arm {arm}; arms: {', '.join(self.specs)}")
        trained = {n: getattr(a, "run", a) for n, a in self.arms.items() if n not in self.finished and arm in (None, n)}
        trained = {n: a for n, a in trained.items() if isinstance(a, Run)}
        if not trained:
            raise ValueError("no arm is in training now" if arm is None else f"the arm {arm} is not in training now")
        return trained

    def evaluate(self, arm: str | None = None) -> list[tuple[str, Tick]]:
        """Measure the arms in training where they are now; the ticks are recorded unless this step has one already."""
        found = []
        for name, run in self.running(arm).items():
            tick = replace(run.tick(), step=self.arms[name].step)
            if not any(row[1] == name and row[3] == tick.step for row in reversed(self._rows)):
                self._record(name, tick)
                found.append((name, tick))
        return found

    def set(self, name: str, value: float, *, arm: str | None = None, member: int | None = None) -> dict[str, tuple[Any, Any]]:
        """Change a setting in one arm or in all running ones; {arm: (old, new)}. ValueError where nobody can take it."""
        targets = self.running(arm)
        for run in targets.values():
            run.check(name, value, member)  # all of them first: a refusal leaves every arm as it is
        self.steered = True
        return {n: run.set(member, **{name: value})[name] for n, run in targets.items()}


def rows(study: str, arm: str, seeds: Sequence[int], tick: Tick) -> list[tuple]:
    """The tidy rows of one tick; the loss is a metric like the others."""
    found = []
    losses = [None] * len(seeds) if tick.losses is None else tick.losses.tolist()
    for i, (seed, metrics) in enumerate(zip(seeds, tick.metrics, strict=True)):
        if losses[i] is not None:
            found.append((study, arm, seed, tick.step, "loss", math.nan if i in tick.diverged else losses[i]))
        found += [(study, arm, seed, tick.step, name, float(value)) for name, value in metrics.items()]
    return found


def _always(_params) -> bool:
    return True


def _with_needs(declared: dict[str, Any], names: Sequence[str]) -> set[str]:
    wanted: set[str] = set()
    for name in names:
        while name and name not in wanted:
            wanted.add(name)
            name = getattr(declared[name], "after", None)
    return wanted


def _steps(arm) -> Iterator[Tick | None]:
    return arm.stepwise() if hasattr(arm, "stepwise") else iter(arm.ticks() if hasattr(arm, "ticks") else arm)


def _until_tick(iterator: Iterator):
    """Pass the steps in between on to the caller and return the next tick, or None at the end."""
    for tick in iterator:
        if tick is not None:
            return tick
        yield None
    return None
