"""Courses: one method through all tasks of all streams, with what it could do after each one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from claimlab.studies.adaptation import _lifelong_learning_review_method as rule
from claimlab.studies.adaptation._lifelong_learning_review_data import STREAMS, stream
from claimlab.studies.adaptation._lifelong_learning_review_tasks import Case, Finetune
from claimlab.training import Chain, Stepwise, Task, Tick

SHORT = {"permuted": "permuted", "new_classes": "classes", "new_tasks": "tasks"}
BOUNDED = ("ewc", "lwf", "replay", "generative_replay", "gdm")  # methods of bounded memory that `replay` is the last of

# strengths by method and stream, each the best by Omega_all of its grid on the development seeds 1000 to 1002: lambda 1, 10, 100,
# 1000, 10000 (here in units of the knob's default); lambda_o 0.3, 1, 3; share of old data 0.25, 0.5
CHOSEN = {
    "ewc": {"permuted": 1.0, "new_classes": 100.0, "new_tasks": 100.0},
    "lwf": {"permuted": 1.0, "new_classes": 0.3, "new_tasks": 1.0},
    "replay": {"permuted": 0.5, "new_classes": 0.5, "new_tasks": 0.5},
    "generative_replay": {"permuted": 0.25, "new_classes": 0.5, "new_tasks": 0.5},
    "gdm": {"permuted": 0.5, "new_classes": 0.5, "new_tasks": 0.5},
}


class Course(Chain):
    """One method through all tasks of all its cases, stacked: `cases` holds the streams of the first seed, then of the next."""

    def __init__(self, name: str, method: type[Task], params: Any, seeds: Sequence[int], cases: Sequence[Case],
                 before: Course | None = None):  # fmt: skip
        self.name, self.before, self.cases, self.of = name, before, tuple(cases), list(seeds)
        self.shown = len(self.cases) // max(1, len(self.of))  # networks of a seed
        stages = {f"task {t + 1}": partial(method, t=t, cases=self.cases) for t in range(params.tasks)}
        super().__init__(stages, params, range(len(self.cases)))

    def _enter(self, index, start):
        if index:  # a knob that was turned stays turned in the next task
            self.tasks_by_stage[self.names[index]].p = self.run.task.p
        super()._enter(index, start)

    @property
    def members(self):
        """The network of each seed on the stream that the knob names (or the first stream of this method)."""
        streams = [case.stream for case in self.cases[: self.shown]]
        wanted = self.run.task.p.stream
        return self.run.members[streams.index(wanted) if wanted in streams else 0 :: self.shown]

    @property
    def over(self) -> bool:
        return self.index + 1 == len(self.names) and self.run.step == self.run.total

    def stepwise(self) -> Iterator[Tick | None]:
        for tick in super().stepwise():
            first = tick is not None and self.run.step == 0 and self.index > 0
            yield None if tick is None or first else self.merged(tick)

    def merged(self, tick: Tick) -> Tick:
        """The tick with a member a seed: metrics by stream, the loss as a mean over streams."""
        found = []
        for start in range(0, len(self.cases), self.shown):
            pairs = zip(self.cases[start : start + self.shown], tick.metrics[start : start + self.shown], strict=True)
            found.append({f"{case.stream}: {key}": value for case, metrics in pairs for key, value in metrics.items()})
        if self.over:
            found = [a | b for a, b in zip(found, self.summary(), strict=True)]
        losses = None if tick.losses is None else tick.losses.view(-1, self.shown).mean(1)
        return replace(tick, metrics=found, losses=losses, diverged=tuple(sorted({i // self.shown for i in tick.diverged})))

    # -- what a finished course says

    @property
    def known(self) -> dict[str, dict[tuple[int, str], np.ndarray]]:
        """Scores [T + 1, T] by (seed, stream), of this course and those that it came after."""
        own = {(case.seed, case.stream): net.scores.double().cpu().numpy() for case, net in zip(self.cases, self.run.members, strict=True)}
        return (self.before.known if self.before else {}) | {self.name: own}

    def summary(self) -> list[dict[str, float]]:
        """Measures of each seed, over all streams."""
        known, found = self.known, []
        for i, seed in enumerate(self.of):
            one: dict[str, float] = {}
            for k in range(i * self.shown, (i + 1) * self.shown):
                one |= self.measures(k, known)
            if self.name == "replay":
                best = max(self.end(known[name], seed) for name in BOUNDED if name in known)
                one["best_minus_joint_classes"] = best - self.end(known["joint"], seed)
            found.append(one)
        return found

    def measures(self, k: int, known) -> dict[str, float]:
        case, net, task = self.cases[k], self.run.members[k], self.run.tasks[k]
        scores, joint = (known[name][case.seed, case.stream] for name in (self.name, "joint"))
        sizes, short = task.data.sizes.numpy(), SHORT[case.stream]
        moves = rule.transfers(scores)
        found = {f"omega_{name}_{short}": value for name, value in rule.omegas(scores, joint, sizes).items()}
        found |= {f"final_accuracy_{short}": rule.overall(scores, sizes, len(sizes)), f"stored_{short}": task.stored(net)}
        if self.name != "joint":
            suffix = "" if short == "permuted" else f"_{short}"
            found |= {f"{way}_transfer{suffix}": value for way, value in moves.items()}
        if short == "tasks":
            found["max_output_change_old_tasks"] = float(net.moved)
        return found

    def end(self, scores, seed: int) -> float:
        """Final accuracy over all classes on the stream of new classes."""
        data = stream(Case(seed, "new_classes").source(self.run.task.p))
        return rule.overall(scores[seed, "new_classes"], data.sizes.numpy(), len(data.sizes))


@dataclass(frozen=True)
class Arm:
    """Makes the course of `method`; its cases take their strengths from CHOSEN."""

    name: str
    method: type[Task]
    after: str | None = None
    streams: tuple[str, ...] = STREAMS

    def __call__(self, p: Any, seeds: Sequence[int], before: Course | None = None) -> Course:
        chosen = CHOSEN.get(self.name, {})
        cases = [Case(seed, name, chosen.get(name, 0.0), p.memory) for seed in seeds for name in self.streams]
        return Course(self.name, self.method, p, seeds, cases, before)


class Swept(Course):
    """Settings side by side on two streams, for the first two seeds; one tick at the end, with metrics as `permuted: 100: old`."""

    streams = ("permuted", "new_classes")

    def __init__(self, name, method, params, seeds, settings: Mapping[str, Mapping[str, float]]):
        few, self.everyone = list(seeds)[:2], len(seeds)
        self.labels = [f"{which}: {label}" for which in self.streams for label in settings]
        cases = [Case(seed, which, **values) for seed in few for which in self.streams for values in settings.values()]
        super().__init__(name, method, params, few, cases)

    def stepwise(self):
        for tick in super().stepwise():
            yield tick if tick is not None and self.over else None

    def merged(self, tick):
        found = [{} for _ in range(self.everyone)]
        for k, net in enumerate(self.run.members if self.over else ()):
            scores, sizes = net.scores.double().cpu().numpy(), self.run.tasks[k].data.sizes.numpy()
            place, label = k // self.shown, self.labels[k % self.shown]
            found[place][f"{label}: old"] = float(np.average(scores[-1, :-1], weights=sizes[:-1]))
            found[place][f"{label}: new"] = float(np.mean([scores[t, t - 1] for t in range(2, len(sizes) + 1)]))
        return replace(tick, metrics=found, losses=None, diverged=())


@dataclass(frozen=True)
class Sweep:
    """Makes the arm of several settings of one method."""

    method: type[Task]
    knob: str
    grid: tuple[float, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, p: Any, seeds: Sequence[int]) -> Swept:
        settings = {f"{value:g}": {**self.fixed, self.knob: value} for value in self.grid}
        return Swept(f"sweep of {self.knob}", self.method, p, seeds, settings)


class Averages(Stepwise):
    """Nearest class mean through all streams; no steps, one update a task."""

    name, after = "nearest_mean", "joint"

    def __init__(self, p: Any, seeds: Sequence[int], before: Course):
        self.p, self.seeds, self.before, self.step, self.total = p, list(seeds), before, 0, p.tasks
        self.shown, self.of = len(STREAMS), self.seeds
        self.cases = [Case(seed, name) for seed in seeds for name in STREAMS]
        plain = Finetune(p, 0, self.cases)
        self.tasks = [plain.bind(i) for i in range(len(self.cases))]
        self.nets = [rule.Means(case, task.data) for case, task in zip(self.cases, self.tasks, strict=True)]

    @property
    def members(self):
        return self.nets[STREAMS.index(self.p.stream) :: self.shown]

    def stepwise(self):
        for t in range(self.p.tasks):
            found = [{} for _ in self.seeds]
            for k, (task, net) in enumerate(zip(self.tasks, self.nets, strict=True)):
                task.t = t
                net.see(*task.data.all_of(t)[:2])
                task.grade(net, t + 1)
                found[k // self.shown] |= {f"{task.case.stream}: task {j + 1}": float(net.scores[t + 1, j]) for j in range(t + 1)}
            self.step = t + 1
            if self.step == self.total:
                found = [a | self.measures(i) for i, a in enumerate(found)]
            yield Tick((t + 1) * self.p.steps, found)

    def measures(self, i: int) -> dict[str, float]:
        found, joint = {}, self.before.known["joint"]
        for k in range(i * self.shown, (i + 1) * self.shown):
            case, net = self.cases[k], self.nets[k]
            scores, sizes, short = net.scores.double().numpy(), self.tasks[k].data.sizes.numpy(), SHORT[case.stream]
            found |= {f"omega_{n}_{short}": v for n, v in rule.omegas(scores, joint[case.seed, case.stream], sizes).items()}
            suffix = "" if short == "permuted" else f"_{short}"
            found[f"backward_transfer{suffix}"] = rule.transfers(scores)["backward"]
            found[f"final_accuracy_{short}"] = rule.overall(scores, sizes, len(sizes))
            found[f"stored_{short}"] = float(net.sums.numel() + net.counts.numel())
        return found
