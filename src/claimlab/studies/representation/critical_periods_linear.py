"""Critical periods in deep linear networks: two pathways race for each feature, and a first task scars matrix completion.

Why can a short disturbance early in training scar a network for ever, even one without any non-linearity?
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _critical_periods_data as data
from claimlab.studies.representation._critical_periods_data import load_entries, load_target
from claimlab.studies.representation._critical_periods_figures import figures, matrix_view, pathway_view
from claimlab.studies.representation._critical_periods_method import (
    DEFICITS,
    conserved,
    descend,
    final_share,
    follow,
    forward,
    slope,
    strengths,
)
from claimlab.study import Control, Paper
from claimlab.training import Tick

PAPER = Paper(
    title="Critical Learning Periods Emerge Even in Deep Linear Networks", authors="Kleinman, Achille, Soatto", year=2023,
    url="https://arxiv.org/abs/2308.12221", theme="representations", system="multi-pathway deep linear networks",
    question="Why can a short disturbance early in training scar a network for ever, even one without any non-linearity?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    depth: int = knob(4, "weight matrices in a pathway; 2 keeps the first ratio, deeper takes all", low=1, high=8)
    onset: float = knob(0.0, "when the deficit begins", low=0.0, high=3.0, unit="convergence times")
    duration: float = knob(0.2, "how long pathway b is disturbed", low=0.0, high=3.0, unit="half-learning times")
    deficit: str = knob("frozen", "b does not learn, is silent, or sees a weaker feature", choices=("frozen", "blocked", "blurred"))
    init: float = knob(0.2, "size of the first weights; large weights weaken the effect", low=0.01, high=1.0)
    aligned: bool = knob(True, "first weights begin and end in the target's own vectors, as the equation assumes")
    observed: int = knob(480, "known entries in completion; the scar lives near twice the degrees of freedom of a "
                         "matrix, r(2n - r), which are 231; at 640 it is gone", low=100, high=1600, unit="entries")  # fmt: skip
    rank_first: int = knob(3, "rank of the pre-training matrix", low=1, high=20)
    rank_second: int = knob(3, "rank of the matrix to complete", low=1, high=20)
    switch: int = knob(6000, "steps on the first task", low=0, high=100000, unit="steps")
    size: int = knob(40, "rows and columns of the matrices to complete", low=12, high=100)
    pairs: int = knob(20, "pairs of first strengths in the race, averaged", low=2, high=200)
    problems: int = knob(10, "pairs of matrices in completion, averaged", low=1, high=50)
    variants: bool = knob(False, "also complete with depths 4 and 5, ReLU and tanh")
    steps: int = knob(8000, "gradient steps of the race, and of completion after the switch", low=40, high=200000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=200, seeds=2, init=0.7, size=12, observed=100, rank_first=1, rank_second=1, switch=100, pairs=4, problems=2)
    FULL = dict(steps=16000, size=60, observed=730, switch=20000, variants=True, problems=5)
    CONTROL = Control(
        set=dict(duration=0.0, switch=0),
        vanishes=("early-hurts", "depth-amplifies", "pretraining-damages", "two-layers-suffice"),
        why="Without deficit and without a first task the timing of nothing cannot matter; what is left is the noise of the "
        "comparison.",
    )  # fmt: skip

    def __post_init__(self):
        if self.observed >= 0.95 * self.size**2:
            raise ValueError(f"observed = {self.observed} and size = {self.size}: of {self.size**2} entries a twentieth must stay "
                             "unknown, or nothing is left to be tested")  # fmt: skip
        if max(self.rank_first, self.rank_second) > self.size:
            raise ValueError(f"rank_first and rank_second must not be above size = {self.size}")
        for depth in {2, self.depth}:
            least = self.horizon(depth) * depth * 10 ** (2 - 2 / depth) / 0.9
            if self.steps < least:
                raise ValueError(f"depth = {depth}, init = {self.init:g} and steps = {self.steps}: from so small weights the race "
                                 f"lasts {self.horizon(depth):.3g} time units, and descent is stable with {least:,.0f} steps or "
                                 "more; raise init or steps")  # fmt: skip

    def time_to(self, share: float, depth: int, s: float = 10.0) -> float:
        """Time in which two equal undisturbed pathways learn `share` of a mode: the integral of K^(2/D - 1) / (D s) over y, with
        K = s z / (2 + 2 z) and y = ln z, by the trapezoid rule (whose step in y is written without a logarithm)."""
        first, last, n = 2 * self.init**depth / (s - 2 * self.init**depth), share / (1 - share), 200
        if last <= first:
            return 0.0
        ratio = (last / first) ** (1 / n)
        grid = [s * first * ratio**k / (2 + 2 * first * ratio**k) for k in range(n + 1)]
        values = [k ** (2 / depth - 1) / (depth * s) for k in grid]
        return (sum(values) - (values[0] + values[-1]) / 2) * (ratio**0.5 - ratio**-0.5)

    def horizon(self, depth: int) -> float:
        """Time that the race of this depth lasts: a convergence time longer than the latest deficit of its arms."""
        return (max(2.0, self.onset) + 1) * self.time_to(0.99, depth) + self.duration * self.time_to(0.5, depth)


CLAIMS = (
    Claim("early-hurts", "A deficit of one pathway during early learning lowers that pathway's final share of the feature far more "
          "than an equally long deficit late.", kind="paired", metric="share_of_b", arm="early_depth4", baseline="late_depth4",
          better="lower", margin=0.2, source="phase-portrait figure (early and late deficit)"),
    Claim("depth-amplifies", "The same short early deficit leaves a smaller share in a deeper network.", kind="paired",
          metric="share_of_b", arm="early_depth4", baseline="early_depth2", better="lower", margin=0.1,
          source="abstract; phase portraits for growing depth"),
    Claim("theory-holds", "Singular-mode strengths of the trained matrices follow the reduced differential equation within 5 % of "
          "the target singular value throughout training.", kind="equality", metric="max_relative_deviation", arm="early_depth4",
          better="lower", margin=0.05, source="analytical section; simulation against theory"),
    Claim("pretraining-damages", "In matrix completion with few observed entries, longer pre-training on another matrix raises the "
          "final test error of a three-layer network on the second.", kind="paired", metric="completion_test_error",
          arm="long_pretrain", baseline="no_pretrain", better="higher", margin=0.02,
          source="multi-task section (deficit task then completion)"),
    Claim("two-layers-suffice", "Two layers are enough: with depth 2 long pre-training also raises the final test error on the "
          "second matrix.", kind="paired", metric="completion_test_error", arm="long_pretrain_depth2",
          baseline="no_pretrain_depth2", better="higher", margin=0.02, source="depth comparison in matrix completion"),
)  # fmt: skip
HONESTY = (
    "This is close to the paper's own scale, since its systems are small; the nonlinear networks and the biological data that it "
    "refers to are not simulated. Late deficits are harmless in the 'frozen' version because nothing is left to learn, which is "
    "nearly built in; the 'blocked' version is the harder test and is shown beside it."
)
EVERY = 4  # gradient steps to one step of the reference equation; deficits begin and end on this grid


class Descent:
    """Gradient descent of all seeds in one stack, with ticks. A subclass owns `weights` and says what a step and a tick are."""

    def __init__(self, p: Params, seeds: list[int], total: int):
        self.p, self.seeds, self.total = p, seeds, total
        self.step, self.seconds = 0, 0.0
        self.records: dict[int, np.ndarray] = {}  # what was measured at each tick, by step

    def ticks(self):
        return (tick for tick in self.stepwise() if tick is not None)

    def stepwise(self):
        """A Tick where one is due, else None after every few steps, so that a caller can act in between."""
        if self.step not in self.records:
            yield self.measure()
        while self.step < self.total:
            self.stretch()
            yield self.measure() if self.due() else None

    @torch.no_grad()  # not around the yield, or whoever acts in between would train without gradients
    def stretch(self) -> None:
        began = time.perf_counter()
        for _ in range(EVERY):
            self.advance()
            self.step += 1
        self.seconds += time.perf_counter() - began

    def due(self) -> bool:
        return self.step % self.pace == 0 or self.step >= self.total

    @property
    def budget(self) -> dict[str, float]:
        """A step sees the whole problem once: every entry of the target, or every known one."""
        return {"steps": self.step, "samples": self.step * self.entries, "forward_calls": self.step, "seconds": self.seconds}

    def state(self) -> dict:
        own = {k: getattr(self, k) for k in self.changing}
        return {"weights": [w.clone() for w in self.weights], "step": self.step, "seconds": self.seconds,
                "records": dict(self.records), **{k: v.copy() for k, v in own.items()}}  # fmt: skip

    def load(self, state: dict) -> None:
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.copy_(saved)
        self.step, self.seconds, self.records = state["step"], state["seconds"], dict(state["records"])
        for name in self.changing:
            setattr(self, name, state[name].copy())


class Race(Descent):
    """Pathways a and b learn one target together while b is disturbed in `window`; S seeds times P pairs of first strengths.

    The loss of a pair is |W_a + W_b - M|^2 / 2 over a target M with singular values s: whitened inputs.
    """

    changing = ("reached", "worst")

    def __init__(self, p: Params, seeds: list[int], depth: int, onset: float | None, deficit: str, *, own: str = ""):
        super().__init__(p, seeds, p.steps // EVERY * EVERY)
        self.depth, self.deficit, self.dt = depth, deficit, p.horizon(depth) / p.steps
        self.pace = EVERY * max(1, self.total // EVERY // 100)
        self.goals = [load_target(own) if own else data.target(seed) for seed in seeds]
        first = np.stack([data.first_strengths(seed, p.init, p.pairs) for seed in seeds], 1)  # [2, S, P]
        members = enumerate(zip(self.goals, seeds, strict=True))
        stacks = [data.first_weights(g, first[:, i], depth, seed, p.aligned) for i, (g, seed) in members]
        n, layers = stacks[0][0].shape[-1], zip(*stacks, strict=True)
        self.weights = [torch.stack([w.view(2, p.pairs, n, n) for w in same], 1).reshape(-1, n, n) for same in layers]
        self.count, self.entries = len(seeds) * p.pairs, n * n
        self.left, self.right = (self._spread([getattr(g, name) for g in self.goals]) for name in ("left", "right"))
        self.s = np.stack([g.s for g in self.goals])  # [S, M]
        self.map = self.left * torch.from_numpy(self.s).repeat_interleave(p.pairs, 0)[:, None] @ self.right.mT
        self.window, self.gain, self.learns = self._deficit(onset)
        same = torch.eye(n, dtype=torch.float64).expand(self.count, n, n)
        blurred = same + self.right * torch.from_numpy(self.gain - 1) @ self.right.mT
        self.seen = blurred if deficit == "blurred" else self.gain[0] * same  # what b's input becomes during the deficit
        self.reached = np.full((len(seeds), p.pairs), math.nan)  # share of b when the feature was first learned after the deficit
        self.worst = np.zeros(len(seeds))  # largest distance from the equation so far, in units of the target
        self.theory = follow(first[:, :, 0, None], self.s, depth, EVERY * self.dt, self.total // EVERY,
                             tuple(k // EVERY for k in self.window), self.gain, self.learns)  # fmt: skip

    def _spread(self, vectors) -> torch.Tensor:
        return torch.from_numpy(np.stack(vectors)).repeat_interleave(self.p.pairs, 0)

    def _deficit(self, onset) -> tuple[tuple[int, int], np.ndarray, bool]:
        """First and last step of the deficit, how much of each of b's modes gets through, and whether b learns."""
        p, unit = self.p, EVERY * self.dt
        begin = EVERY * round((onset or 0.0) * p.time_to(0.99, self.depth) / unit)
        length = EVERY * math.ceil(p.duration * p.time_to(0.5, self.depth) / unit)
        through, learns = DEFICITS[self.deficit]
        gain = np.full(self.s.shape[1], through)
        if self.deficit == "blurred":
            gain[1:] = 1.0  # one feature of b's source is weakened, the others are as before
        return ((0, 0) if onset is None or not length else (begin, begin + length)), gain, learns

    def advance(self) -> None:
        out, received = forward(self.weights)
        a, b = out[: self.count], out[self.count :]
        if not self.window[0] <= self.step < self.window[1]:
            error = a + b - self.map
            return descend(self.weights, received, torch.cat([error, error]), self.dt)
        error = a + torch.bmm(b, self.seen) - self.map
        if self.learns:
            return descend(self.weights, received, torch.cat([error, torch.bmm(error, self.seen)]), self.dt)
        only = slice(0, self.count)  # b stands still
        return descend([w[only] for w in self.weights], [r[only] for r in received], error, self.dt)

    def measure(self) -> Tick:
        out, _ = forward(self.weights)
        both = torch.cat([self.left, self.left]), torch.cat([self.right, self.right])
        k = strengths(out, *both).view(2, len(self.seeds), self.p.pairs, -1).numpy()  # [2, S, P, M]
        self.records[self.step] = k
        total, share = k[..., 0].sum(0), k[1, ..., 0] / k[..., 0].sum(0)
        learned = np.isnan(self.reached) & (abs(total / self.s[:, :1] - 1) < 0.01) & (self.step >= self.window[1])
        self.reached[learned] = share[learned]
        shares = np.where(np.isnan(self.reached), share, self.reached).mean(1)
        self.worst = np.maximum(self.worst, (abs(k[:, :, 0] - self.theory[self.step // EVERY]) / self.s).max((0, 2)))
        error = (out[: self.count] + out[self.count :] - self.map).square().sum((1, 2)).view(len(self.seeds), -1).mean(1) / 2
        found = [{"share_of_b": float(x), "max_relative_deviation": float(w)} for x, w in zip(shares, self.worst, strict=True)]
        return Tick(self.step, found, error)

    @property
    def members(self) -> list[Pathways]:
        return [Pathways(self, i) for i in range(len(self.seeds))]


class Completion(Descent):
    """A chain learns the known entries of a first matrix for `switch` steps, then those of a second at the same positions."""

    changing = ()

    def __init__(self, p: Params, seeds: list[int], depth: int, switch: int, shape: str = "linear", *, own: str = ""):
        super().__init__(p, seeds, EVERY * (-(-switch // EVERY) - (-p.steps // EVERY)))
        self.depth, self.shape, self.switch = depth, shape, EVERY * -(-switch // EVERY)
        self.rate, self.pace = 0.2, EVERY * max(1, self.total // EVERY // 30)
        count = self.count = 1 if own else p.problems
        problems = [
            data.own_problem(load_entries(own), s, k, p.rank_first) if own
            else data.problem(s, k, p.size, (p.rank_first, p.rank_second), p.observed) for s in seeds for k in range(count)
        ]  # fmt: skip
        n = problems[0].first.shape[0]
        first = [data.small_weights(s, k, n, depth) for s in seeds for k in range(count)]
        self.weights = [torch.from_numpy(np.stack(layer)).float() for layer in zip(*first, strict=True)]
        self.tasks_ = [torch.from_numpy(np.stack(m)).float() for m in ([q.first for q in problems], [q.second for q in problems])]
        self.known, self.asked = (torch.from_numpy(np.stack(m)) for m in ([q.known for q in problems], [q.asked for q in problems]))
        self.entries = int(self.known[0].sum())
        self.mean = self.known.float() / self.known.sum((1, 2), keepdim=True)

    def advance(self) -> None:
        out, received = forward(self.weights, self.shape)
        error = (out - self.tasks_[self.step >= self.switch]).mul_(self.mean)
        descend(self.weights, received, error, self.rate, self.shape)

    def due(self) -> bool:
        return super().due() or self.step == self.switch

    def measure(self) -> Tick:
        out, _ = forward(self.weights, self.shape)
        self.records[self.step] = torch.linalg.svdvals(out[:: self.count]).numpy()  # of the first problem of each seed
        now, (_, second) = self.tasks_[self.step >= self.switch], self.tasks_
        test = (out - second).square().mul(self.asked).sum((1, 2)) / self.asked.sum((1, 2))
        train = (out - now).square().mul(self.mean).sum((1, 2))
        test, train = (x.view(len(self.seeds), -1).double().mean(1) for x in (test, train))
        return Tick(self.step, [{"completion_test_error": float(x)} for x in test], train / 2)

    @property
    def members(self) -> list[Completed]:
        return [Completed(self, i) for i in range(len(self.seeds))]


class Pathways(nn.Module):
    """The first pair of a seed: its two chains as one network, and the strengths of its modes at every tick."""

    def __init__(self, race: Race, i: int):
        super().__init__()
        place, self.s, self.dt, self.window = i * race.p.pairs, race.s[i], race.dt, race.window
        for name, start in (("a", place), ("b", race.count + place)):
            self.register_buffer(name, torch.stack([w[start] for w in race.weights]))
        self.steps = np.array(list(race.records))
        self.measured = np.stack([k[:, i, 0] for k in race.records.values()])  # [T, 2, M]
        self.theory = race.theory[: self.steps[-1] // EVERY + 1, :, i]  # the equation, every EVERY steps
        self.theory_steps = EVERY * np.arange(len(self.theory))

    def forward(self, x):
        return x @ (torch.linalg.multi_dot([*self.a.flip(0)]) + torch.linalg.multi_dot([*self.b.flip(0)])).mT


class Completed(nn.Module):
    """The first matrix of a seed: what the chain says, the truth, and which entries were known."""

    def __init__(self, run: Completion, i: int):
        super().__init__()
        place = i * run.count
        out = forward([w[place : place + 1] for w in run.weights], run.shape)[0][0]
        for name, value in {"out": out, "truth": run.tasks_[1][place], "known": run.known[place], "asked": run.asked[place]}.items():
            self.register_buffer(name, value.clone())


@dataclass(frozen=True)
class Make:
    """An arm: the race with a deficit from `onset` convergence times (None: no deficit; "knob": the knob's) in pathways of
    `depth` (0: the knob's), or completion after `part` of the knob's switch. `own` is the ending of the user's file, `deficit`
    one that is not the knob's."""

    depth: int
    onset: float | str | None = None
    part: float | None = None
    shape: str = "linear"
    own: str = ""
    extra: bool = False
    deficit: str = ""

    def when(self, p: Params) -> bool:
        return bool(data.source(self.own)) if self.own else p.variants or not self.extra

    def __call__(self, p: Params, seeds: list[int]) -> Descent:
        own = data.source(self.own) if self.own else ""
        if self.part is not None:
            return Completion(p, seeds, self.depth, round(self.part * p.switch), self.shape, own=own)
        onset = p.onset if self.onset == "knob" else self.onset
        return Race(p, seeds, self.depth or p.depth, onset, self.deficit or p.deficit, own=own)


LATE = 2.0  # convergence times
ARMS = {
    "early_depth4": Make(0, "knob"), "late_depth4": Make(0, LATE), "early_depth2": Make(2, "knob"), "none_depth4": Make(0),
    "early_blocked": Make(0, "knob", deficit="blocked"), "late_blocked": Make(0, LATE, deficit="blocked"),
    "no_pretrain": Make(3, part=0), "short_pretrain": Make(3, part=1 / 3), "long_pretrain": Make(3, part=1),
    "no_pretrain_depth2": Make(2, part=0), "short_pretrain_depth2": Make(2, part=1 / 3),
    "long_pretrain_depth2": Make(2, part=1), "long_pretrain_depth1": Make(1, part=1),
    **{f"{name}_pretrain_depth{d}": Make(d, part=part, extra=True) for d in (4, 5) for name, part in (("no", 0), ("long", 1))},
    **{f"{name}_pretrain_{shape}": Make(3, part=part, shape=shape, extra=True) for shape in ("relu", "tanh")
       for name, part in (("no", 0), ("long", 1))},
    "own_early": Make(0, "knob", own=".npy"), "own_late": Make(0, LATE, own=".npy"),
    "own_scratch": Make(3, part=0, own=".csv"), "own_pretrained": Make(3, part=1, own=".csv"),
}  # fmt: skip
VIEWS = {"both pathways over time": pathway_view, "recovered matrix": matrix_view}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "conserved", "figures", "final_share", "follow", "slope"]
