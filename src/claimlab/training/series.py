"""Several runs one after the other as one arm: other settings of arms that a study has, for its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from claimlab.training.run import Run
from claimlab.training.task import Stepwise, Tick


class Series(Stepwise):
    """An arm of `runs` by name, for the first of `seeds` or all. At the end of each run one tick is reported, in which every
    metric bears its name, as `lambda=1: accuracy`."""

    def __init__(self, runs: Mapping[str, Run], seeds: Sequence[int]):
        self.runs, self.seeds = dict(runs), list(seeds)
        self.total = sum(run.total for run in self.runs.values())

    @property
    def step(self) -> int:
        return sum(run.step for run in self.runs.values())

    @property
    def budget(self) -> dict[str, float]:
        """Of all runs together."""
        return {key: sum(run.budget[key] for run in self.runs.values()) for key in ("steps", "samples", "forward_calls", "seconds")}

    def stepwise(self) -> Iterator[Tick | None]:
        for name, run in self.runs.items():
            last = None
            for tick in run.stepwise():
                last = tick or last
                if run.step < run.total:
                    yield None
            found = [{f"{name}: {key}": value for key, value in metrics.items()} for metrics in last.metrics]
            yield Tick(self.step, found + [{}] * (len(self.seeds) - len(found)))
