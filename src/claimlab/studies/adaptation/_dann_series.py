"""Other settings of arms that a study has, trained one after the other as one arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claimlab.training import Run, Series, Task


@dataclass(frozen=True)
class Settings:
    """Makes a Series of what `chosen(params)` names, for the first three seeds, once the arm `dann` is done."""

    chosen: Callable[[Any], dict[str, tuple[type[Task], Any]]]
    after = "dann"

    def __call__(self, p: Any, seeds: list[int], dann: Run) -> Series:
        few = seeds[:3]
        return Series({name: Run(arm(q), few, every=q.steps) for name, (arm, q) in self.chosen(p).items()}, seeds)
