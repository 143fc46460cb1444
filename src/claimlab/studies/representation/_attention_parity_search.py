"""Smallest-size search: train ever larger networks until one is good enough, for several cases and all seeds at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from claimlab.training import Run, Task, Tick


class Search:
    """For each case the first of `sizes`, in rising order, at which a seed's `metric` reaches `good` at the end of training.

    `make(case, size)` gives the task. A seed that has succeeded is not trained again; `smallest[case][seed]` is its size, or
    None while it is sought and where even the largest size fails. `sums_up(smallest, seed)` gives the metrics of the last tick.
    The state is the list of finished trials; a trial that was interrupted is trained again.
    """

    def __init__(self, make: Callable[[Any, int], Task], cases: Sequence, sizes: Sequence[int], seeds: Sequence[int], *,
                 metric: str, good: float, sums_up: Callable[[dict, int], dict[str, float]]):  # fmt: skip
        self.make, self.cases, self.sizes, self.seeds = make, list(cases), list(sizes), list(seeds)
        self.metric, self.good, self.sums_up = metric, good, sums_up
        self.each = make(self.cases[0], self.sizes[0]).steps
        self.trials: list[tuple[Any, int, dict[int, float]]] = []  # case, size, value by seed
        self.seconds, self.spent = 0.0, {"steps": 0, "samples": 0, "forward_calls": 0}
        self.step = self.reached = 0  # `reached` at the end of the last trial
        self.total = len(self.cases) * len(self.sizes) * self.each + 1  # the last tick says what was found

    @property
    def smallest(self) -> dict[Any, dict[int, int | None]]:
        """Case -> seed -> smallest good size."""
        answer = {case: dict.fromkeys(self.seeds) for case in self.cases}
        for case, size, values in self.trials:
            answer[case] |= {seed: size for seed, value in values.items() if value >= self.good}
        return answer

    @property
    def budget(self) -> dict[str, float]:
        """Of one member, if none had stopped early; seconds of all together."""
        return {**self.spent, "seconds": self.seconds}

    def stepwise(self) -> Iterator[Tick | None]:
        """A tick after each trial, with what its seeds reached; None after each step; at the end what `sums_up` says."""
        for place, (case, size) in enumerate((case, size) for case in self.cases for size in self.sizes):
            wanted = [seed for seed, good in self.smallest[case].items() if good is None]
            if place * self.each >= self.reached and wanted:
                yield from self._trial(case, size, wanted, place * self.each)
        if self.reached < self.total:
            self.step = self.reached = self.total
            yield Tick(self.total, [self.sums_up(self.smallest, seed) for seed in self.seeds])

    def ticks(self) -> Iterator[Tick]:
        return (tick for tick in self.stepwise() if tick is not None)

    def _trial(self, case: Any, size: int, seeds: list[int], start: int) -> Iterator[Tick | None]:
        began, last = time.perf_counter(), None
        run = Run(self.make(case, size), seeds)
        for tick in run.stepwise():
            last = tick or last
            self.step = start + min(run.step, self.each - 1)
            yield None
        values = dict(zip(seeds, (one[self.metric] for one in last.metrics), strict=True))
        self.trials.append((case, size, values))
        self.spent = {name: self.spent[name] + run.budget[name] for name in self.spent}
        self.seconds += time.perf_counter() - began
        self.step = self.reached = start + self.each
        yield Tick(self.step, [{self.metric: values[seed]} if seed in values else {} for seed in self.seeds])

    def state(self) -> dict[str, Any]:
        return {"trials": list(self.trials), "step": self.reached, "seconds": self.seconds, "spent": dict(self.spent)}

    def load(self, state: dict[str, Any]) -> None:
        self.trials, self.step, self.reached = list(state["trials"]), state["step"], state["step"]
        self.seconds, self.spent = state["seconds"], dict(state["spent"])


def slope(x: Sequence[float], y: Sequence[float | None]) -> float:
    """Least-squares slope of log2 y on log2 x; NaN where a y is missing or there are fewer than two points."""
    if len(x) < 2 or any(value is None for value in y):
        return math.nan
    return float(np.polyfit(np.log2(x), np.log2(np.asarray(y, dtype=float)), 1)[0])
