"""Training in stages: an explicit chain of tasks, each made from the members that the stage before left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from claimlab.training.run import Run
from claimlab.training.task import Stepwise, Task, Tick


class Stages:
    """An arm in several stages: `Stages(pretrain=Pretrain, finetune=Finetune)`. Call it with parameters and seeds."""

    after: str | None = None

    def __init__(self, **stages: type[Task]):
        self.stages = stages

    def __call__(self, params: Any, seeds: Sequence[int], **options: Any) -> Chain:
        return Chain(self.stages, params, seeds, **options)


class Chain(Stepwise):
    """The running chain. Its state is the stage's name and that stage's Run, so that resume is exact across a border."""

    def __init__(self, stages: dict[str, type[Task]], params: Any, seeds: Sequence[int], *,
                 start: Sequence[nn.Module] | None = None, device: str = "auto"):  # fmt: skip
        self.tasks_by_stage = {name: make(params) for name, make in stages.items()}
        self.names, self.seeds, self.device = list(stages), [int(s) for s in seeds], device
        self.total = sum(task.steps for task in self.tasks_by_stage.values())
        self.offset, self._spent = 0, {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": 0.0}
        self._enter(0, start)

    def _enter(self, index: int, start) -> None:
        self.index = index
        self.run = Run(self.tasks_by_stage[self.stage], self.seeds, start=start, device=self.device)

    @property
    def stage(self) -> str:
        return self.names[self.index]

    @property
    def step(self) -> int:
        return self.offset + self.run.step

    @property
    def members(self) -> list[nn.Module]:
        return self.run.members

    @property
    def tasks(self) -> list[Task]:
        return self.run.tasks

    @property
    def budget(self) -> dict[str, float]:
        """Counted over all stages."""
        return {name: spent + self.run.budget[name] for name, spent in self._spent.items()}

    def stepwise(self) -> Iterator[Tick | None]:
        while True:
            for tick in self.run.stepwise():
                yield tick and replace(tick, step=self.step, stage=self.stage)
            if self.index + 1 == len(self.names) or len(self.run.diverged) == len(self.seeds):
                return
            self._spent, self.offset = self.budget, self.step
            self._enter(self.index + 1, self.run.members)

    def set(self, member: int | None = None, **changes: Any) -> dict[str, tuple[Any, Any]]:
        return self.run.set(member, **changes)

    def rollback(self, step: int) -> int:
        """Back to a remembered step of the present stage; ValueError where it lies in an earlier one."""
        if step < self.offset:
            raise ValueError(f"step {step} lies before the stage {self.stage}, which began at step {self.offset}")
        return self.offset + self.run.rollback(step - self.offset)

    def state(self) -> dict[str, Any]:
        return {"stage": self.stage, "offset": self.offset, "spent": dict(self._spent), "run": self.run.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on in the saved stage; earlier stages are built but not trained, to give the later net its form."""
        start = None
        for index in range(self.names.index(state["stage"]) + 1):
            if index or self.index:
                self._enter(index, start)
            start = self.run.members
        self.run.load(state["run"])
        self.offset, self._spent = state["offset"], dict(state["spent"])
