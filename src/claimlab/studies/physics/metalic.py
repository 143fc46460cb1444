"""METALIC: a bandit learns, equation by equation, which conditions should hold together a physics-informed network in two parts.

Every (equation, choice of conditions) is trained once, as one stacked program; the bandits then play against that table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.derivatives import taylor
from claimlab.studies.physics._metalic_bandit import Sequential, Surrogate, choose
from claimlab.studies.physics._metalic_data import load, stream
from claimlab.studies.physics._metalic_figures import figures, label, solution_view, surrogate_view
from claimlab.studies.physics._metalic_lbfgs import Descent
from claimlab.studies.physics._metalic_physics import (
    INSIDE,
    NAMES,
    actions,
    conditions,
    fields,
    fresh,
    inside,
    log_error,
    losses,
)
from claimlab.studies.physics._metalic_plays import Arm, Player, all_conditions, best_fixed, oracle, random, sequential, single
from claimlab.study import Control, Paper
from claimlab.training import Stepwise, Task, Tick

PAPER = Paper(
    title="Meta Learning of Interface Conditions for Multi-Domain Physics-Informed Neural Networks",
    authors="Li, Penwarden, Xu, Tillinghast, Narayan, Kirby, Zhe", year=2022, url="https://arxiv.org/abs/2210.12669",
    theme="stages", system="METALIC",
    question="When a physics-informed network is split over subdomains, can a bandit learn online which conditions to impose on "
    "the interface, for each equation and each stage of training?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    family: str = knob("advection", "which equation family the stream is drawn from", choices=("advection", "poisson"))
    conditions: int = knob(3, "size of the pool of interface conditions; actions grow as 2^s - 1", low=2, high=5)
    exploration: float = knob(1.0, "c in mean + c sd; 0 is greedy and may lock in", low=0.0, high=5.0)
    plays: int = knob(60, "length of the stream of equations", low=10, high=300)
    adam_steps: int = knob(300, "length of the stochastic stage", low=20, high=5000, unit="steps")
    interface_weight: float = knob(5.0, "lam_I; too small tears the solution, too large freezes it", low=0.1, high=100.0,
                                   live=True)  # fmt: skip
    rule: str = knob("ucb", "how the GP turns into a choice", choices=("ucb", "thompson"))
    parameters: int = knob(15, "parameter values of the family; each third is held out for the test", low=3, high=48)
    steps: int = knob(30, "length of the deterministic stage: evaluations that L-BFGS may spend", low=2, high=1000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(conditions=2, parameters=3, adam_steps=20, steps=3, plays=10, seeds=2)
    FULL = dict(conditions=5, parameters=16, adam_steps=1000, steps=100)
    CONTROL = Control(
        set=dict(plays=10), vanishes=("beats-random",),
        why="Ten plays are too few to learn anything about seven choices that depend on a parameter.",
    )  # fmt: skip


CLAIMS = (
    Claim("beats-random", "Over a stream of equations of one family, the bandit accumulates less solution error than random "
          "choice of the interface conditions.", kind="paired", metric="mean_log10_error", arm="single_ucb", baseline="random",
          better="lower", margin=0.03, source="abstract; online-performance figure"),
    Claim("beats-all-conditions", "After the online phase, the chosen conditions solve unseen members of the family better than "
          "imposing every known condition at once.", kind="paired", metric="test_log10_error", arm="single_ucb",
          baseline="all_conditions", better="lower", margin=0.03, source="abstract; offline test tables"),
    Claim("two-stages-help", "Choosing separately for the stochastic (Adam) and the deterministic (L-BFGS) stage gives a lower "
          "final error than one choice for both.", kind="paired", metric="test_log10_error", arm="seq_ucb",
          baseline="single_ucb", better="lower", margin=0.02, source="abstract; Sec. on the sequential bandit"),
    Claim("context-matters", "The best condition set changes with the equation's parameter: a per-parameter oracle beats the "
          "best single fixed set.", kind="paired", metric="test_log10_error", arm="oracle", baseline="best_fixed",
          better="lower", margin=0.02, source="introduction (motivation)"),
)  # fmt: skip
HONESTY = (
    "Networks are tiny and the bandit plays against a table that was computed once, so wall-clock savings of online learning are "
    "not measured. Two of the four equation families are here, with pools of three to five conditions instead of the paper's "
    "larger one. How the two rewards are split between the stages is our reading of the sequential model."
)
DENSE = 3  # up to this pool the whole table of (first, second) choices is trained, beyond it only what is played
CHUNK = 105  # pairs in one program of the second stage; more fall out of the cache


# ---- the first stage: one member holds the networks of all (equation, choice) of a seed


class Pairs(nn.Module):
    """The pairs of a seed, weights [B * A, 2, K]: for each of B equations all A choices, from one common start an equation."""

    def __init__(self, starts: Tensor, choices: int):
        super().__init__()
        self.weights = nn.Parameter(starts.repeat_interleave(choices, 0))


class Adam(Task):
    """The stochastic stage: Adam on points drawn anew at each step. The loss is a sum over pairs and Adam works number by
    number, so no pair knows of another."""

    lr, ahead, vectorize = 2e-2, 20, False  # the pairs of a seed are stacked already

    def __init__(self, params):
        super().__init__(params)
        self.setting, self.bits = stream(params).setting, actions(params.conditions)
        self.which = torch.arange(len(self.setting.betas)).repeat_interleave(len(self.bits))
        self.chosen = self.bits.repeat(len(self.setting.betas), 1)

    @property
    def steps(self):
        return self.p.adam_steps

    @property
    def every(self):
        return max(1, self.steps // 6)

    def init(self):
        return Pairs(fresh(len(self.setting.betas)), len(self.bits))

    def block(self, net, rng, step, n):
        points = inside(torch.rand(n, 2, INSIDE, 2, generator=rng))
        return points, self.setting.source(points).movedim(0, 1).float()

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, points, f):
        return losses(net.weights, self.setting, self.which, self.chosen, points, f, self.p.interface_weight).sum()

    def metrics(self, net):
        return {"log10_error": log_error(net.weights, self.setting, self.which).mean()}


# ---- the second stage, and the table of both


class Table(Stepwise):
    """L-BFGS from where Adam ended, in double precision, on a fixed grid of points. What it gives is kept by
    (member, equation, first choice, second choice): log10 error and weights [2, K]."""

    def __init__(self, params: Any, seeds: Sequence[int], adam):
        self.p, self.seeds, self.adam = params, list(seeds), adam
        self.stream, self.bits = stream(params), actions(params.conditions)
        size = len(self.stream.setting.betas), len(self.bits)
        self.started = torch.stack([net.weights.detach().unflatten(0, size) for net in adam.members])  # [S, B, A, 2, K]
        which = torch.arange(size[0]).repeat_interleave(size[1])
        early = [log_error(w.flatten(0, 1), self.stream.setting, which).view(size) for w in self.started]
        self.early = torch.stack(early).numpy()  # [S, B, A]
        side = (torch.arange(8) + 0.5) / 8
        self.points = inside(torch.cartesian_prod(side, side).expand(2, -1, -1).double())
        self.source = self.stream.setting.source(self.points)
        self.known: dict[tuple[int, int, int, int], tuple[float, Tensor]] = {}
        self.step = 0

    def wanted(self) -> list[tuple[int, int, int, int]]:
        """What is trained before the first play: every pair of choices, or where those are too many, the same choice twice."""
        members, equations, count = self.early.shape
        twos = range(count) if self.p.conditions <= DENSE else (None,)
        return [(i, b, one, one if two is None else two) for i in range(members) for two in twos
                for b in range(equations) for one in range(count)]  # fmt: skip

    @property
    def total(self) -> int:
        return -(-len(self.wanted()) // CHUNK) * self.p.steps

    def train(self, rows: Sequence[tuple[int, int, int, int]]) -> Iterator[None]:
        """Train what is not known yet, all side by side; hands back control after each evaluation."""
        i, which, one, two = torch.tensor(rows).T
        start = self.started[i, which, one].double()

        def value(x: Tensor) -> Tensor:
            flat, weight = x.view(start.shape), self.p.interface_weight
            return losses(flat, self.stream.setting, which, self.bits[two], self.points, self.source, weight)

        descent = Descent(value, start.flatten(1))
        for _ in range(self.p.steps):
            descent.step()
            self.step += 1
            yield None
        ended = descent.x.view(start.shape)
        errors = log_error(ended, self.stream.setting, which).tolist()
        self.known |= {tuple(row): (e, w) for row, e, w in zip(rows, errors, ended.float(), strict=True)}

    def stepwise(self) -> Iterator[Tick | None]:
        rows = self.wanted()
        for a in range(0, len(rows), CHUNK):
            yield from self.train(rows[a : a + CHUNK])
        means = [np.mean([e for row, (e, _) in self.known.items() if row[0] == i]) for i in range(len(self.seeds))]
        yield Tick(self.step, [{"log10_error": float(mean)} for mean in means])

    def ask(self, rows: Sequence[tuple[int, int, int, int]]) -> list[float]:
        """log10 errors of these rows, trained now where they are not known."""
        if missing := sorted({tuple(row) for row in rows} - self.known.keys()):
            for _ in self.train(missing):
                pass
        return [self.known[tuple(row)][0] for row in rows]

    def single(self) -> np.ndarray:
        """log10 errors with one choice for both stages, [S, B, A]."""
        members, equations, count = self.early.shape
        return np.array([[[self.known[i, b, a, a][0] for a in range(count)] for b in range(equations)] for i in range(members)])

    def both(self) -> np.ndarray:
        """log10 errors with a choice a stage, [S, B, A, A]; NaN where they have not been trained."""
        members, equations, count = self.early.shape
        found = np.full((members, equations, count, count), np.nan)
        for row, (error, _) in self.known.items():
            found[row] = error
        return found


# ---- the arms


class Second:
    """Makes the table once Adam is done."""

    after = "adam"

    def __call__(self, params, seeds, adam):
        return Table(params, seeds, adam)


ARMS = {
    "adam": Adam, "lbfgs": Second(), "random": Arm(random), "single_ucb": Arm(single), "seq_ucb": Arm(sequential),
    "all_conditions": Arm(all_conditions), "best_fixed": Arm(best_fixed), "no_context": Arm(partial(single, context=False)),
    "oracle": Arm(oracle),
}  # fmt: skip
VIEWS = {"surrogate": surrogate_view, "solution": solution_view}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "NAMES", "PAPER", "VIEWS", "Params", "Player", "Sequential", "Surrogate", "choose", "conditions",
    "fields", "figures", "label", "load", "losses", "taylor",
]  # fmt: skip
