"""Other settings of arms that a study has, trained one after the other as one arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claimlab.training import Run, Task, Tick


class Series:
    """Several runs one after the other as one arm; the metrics of each bear its name, `lambda_max=1: target_accuracy`."""

    def __init__(self, settings: dict[str, tuple[type[Task], Any]], seeds: list[int]):
        self.seeds, few = seeds, seeds[:3]
        self.runs = {name: Run(arm(p), few, every=p.steps) for name, (arm, p) in settings.items()}
        self.total = sum(run.total for run in self.runs.values())

    @property
    def step(self) -> int:
        return sum(run.step for run in self.runs.values())

    @property
    def budget(self) -> dict[str, float]:
        """Of all runs together."""
        return {key: sum(run.budget[key] for run in self.runs.values()) for key in ("steps", "samples", "forward_calls", "seconds")}

    def stepwise(self):
        for name, run in self.runs.items():
            for tick in run.stepwise():
                if tick is None or tick.step < run.total:
                    yield None
            found = [{f"{name}: {key}": value for key, value in m.items()} for m in tick.metrics]
            yield Tick(self.step, found + [{}] * (len(self.seeds) - len(found)))


@dataclass(frozen=True)
class Settings:
    """Makes a Series of what `chosen(params)` names, once the arm `dann` is done."""

    chosen: Callable[[Any], dict[str, tuple[type[Task], Any]]]
    after = "dann"

    def __call__(self, p: Any, seeds: list[int], dann: Run) -> Series:
        return Series(self.chosen(p), seeds)
