"""The arms of the study neuralcsa: stages 0 and 1, stage 2 under each sensitivity model, and the ablations."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from claimlab.parts.lagrangian import penalty, raised
from claimlab.parts.schedules import cosine
from claimlab.studies.causality import _neuralcsa_method as method
from claimlab.studies.causality._neuralcsa_data import Data, own, simulated
from claimlab.studies.causality._neuralcsa_nets import UPPER, Bounds, Observed, chance, closed, fit, nodes, payoff, plain, report
from claimlab.training import Run, Stepwise, Task, Tick


def table(seed: int, p: Any, dose: bool = False) -> Data:
    """The data of one seed: simulated, or the file that CLAIMLAB_DATA names (the same for every seed)."""
    if path := os.environ.get("CLAIMLAB_DATA", ""):
        return own(path, p.points)
    return simulated(seed, p.rows, p.points, p.true_gamma, dose, p.query)


# ---- stages 0 and 1: the propensity, and the flow of the outcome


class Naive(Task):
    """Stages 0 and 1 by maximum likelihood. By itself this is the analysis without hidden confounding: no interval."""

    lr, batch_size, ahead = 2e-2, 256, 20
    dose = False
    every = property(lambda self: max(1, self.steps // 5))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.data = table(seed, self.p, self.dose)
        bound.x, bound.a, bound.y = bound.data.x, bound.data.a, bound.data.y
        return bound

    def init(self):
        return Observed(self.data, self.p.bins, self.p.query)

    def schedule(self, step, steps):
        return cosine(step, steps)

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.x), (n, self.batch_size), generator=rng)
        return self.x[rows], self.a[rows], self.y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, a, y):
        return fit(net.flow, x, a, y) + chance(net, x, a)

    def metrics(self, net):
        return {"nll": fit(net.flow, self.x, self.a, self.y)}

    def final(self, net):
        return report(plain(net), closed(net, self.p.gamma), net)


class PluginMsm(Stepwise):
    """The sharp closed form of the marginal model on the stage-1 flow; nothing is trained."""

    after, total, step = "naive", 1, 0

    def __init__(self, params: Any, seeds, naive: Run):
        self.params, self.naive = params, naive

    @torch.no_grad()
    def bounds(self, i: int) -> Tensor:
        """The four bounds of one seed, [4, n]."""
        return closed(self.naive.members[i], self.params.gamma)

    def stepwise(self):
        four = [self.bounds(i) for i in range(len(self.naive.members))]
        found = [report(one, one, net) for one, net in zip(four, self.naive.members, strict=True)]
        yield Tick(0, [{k: float(v) for k, v in one.items()} for one in found])
        self.step = 1


# ---- stage 2: the worst shift of the latent law


class Csa(Task):
    """Stage 2: maximise, or minimise, the query over the shift h under D <= Gamma, by the augmented Lagrangian."""

    lr, ahead, after = 1e-2, 20, "naive"
    model, mixed = "msm", True

    steps = property(lambda self: self.p.outer_rounds * self.p.inner)
    round = property(lambda self: self.steps // self.p.outer_rounds)
    every = property(lambda self: max(1, self.round // 2))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.e = table(seed, self.p).e
        return bound

    def problems(self) -> dict[str, tuple[str, float]]:
        """The sensitivity models and Gammas that this arm solves, by name."""
        return {self.model: (self.model, self.limit(self.model))}

    def limit(self, model: str) -> float:
        """Gamma of the arm: the knob for the marginal model; for another what a hidden cause of that strength has."""
        return self.p.gamma if model == "msm" else method.cause_strength(model, self.e, self.p.gamma)

    def begin(self, start):
        chosen = self.problems()
        first = super().begin(start)
        return Bounds(first, {k: g for k, (_, g) in chosen.items()}, tuple(m for m, _ in chosen.values()), self.p.gamma, self.mixed)

    def block(self, net, rng, step, n):
        parts, m = net.pi.shape[1], self.p.samples  # one draw in each of m equal parts
        return (((torch.arange(m) + torch.rand(n, parts, m, generator=rng)) / m).clamp(1e-6, 1 - 1e-6),)

    def batch(self, net, rng, step):
        return (self.block(net, rng, step, 1)[0][0],)

    def schedule(self, step, steps):
        return cosine(step, steps)

    def loss(self, net, t):
        return self.worst(net, t, net.knots)

    def worst(self, net: Bounds, t: Tensor, knots: Tensor) -> Tensor:
        """Sum over problems and bounds, mean over query points, of -Q (upper) or Q (lower) + lambda c + mu / 2 max(0, c)^2.

        Q = E f(u) with u = xi u0 + (1 - xi) h(u0), xi ~ Bernoulli(pi); the mean over xi is taken exactly.
        """
        reached, q, weight = net.shifted(t)
        still = self.still(net, t, knots)
        moved = payoff(knots, method.latent(reached), net.query, soft=True).mean(-1)
        wanted = net.mix * still + (1 - net.mix) * moved
        sign = wanted.new_tensor([1.0, -1.0, 1.0, -1.0])[:, None]
        return (penalty(net.excess(q, weight, 0.99), net.multiplier, self.mu(net)) - sign * wanted).mean(-1).sum()

    def still(self, net: Bounds, t: Tensor, knots: Tensor) -> Tensor:
        """E f(u0), [4, n]: what no shift changes, so that the frozen flow's own mean serves."""
        return net.centre

    def mu(self, net: Bounds) -> Tensor:
        """The weight of the square: doubled after each outer round."""
        return self.p.penalty * 2 ** (net.clock / self.round).floor()

    def project(self, net):
        """The multipliers of the next outer round, where one ends with this step."""
        t = nodes(self.p.samples, net.pi).expand(net.pi.shape[1], -1)
        _, q, weight = net.shifted(t)
        due = (net.clock + 1) % self.round == 0
        found = raised(net.excess(q, weight, 0.99), net.multiplier, self.mu(net))
        return {"clock": net.clock + 1, "multiplier": torch.where(due, found, net.multiplier)}

    def metrics(self, net, m: int = 400, knots: Tensor | None = None):
        four, excess, w = net.four(m, knots)
        found = report(four[0], net.best, net.first)
        return found | {"excess": excess[0].mean(), "worst_excess": excess[0].max(), "repair": w[0].mean()}

    def final(self, net):
        return self.metrics(net, 2000)


class CsaKl(Csa):
    """The KL model; Gamma is the largest two-sided divergence of the world's own hidden cause (of a cause of strength gamma,
    where the table is one's own)."""

    model = "kl"

    def limit(self, model):
        return method.cause_strength(model, self.e, self.p.gamma if os.environ.get("CLAIMLAB_DATA") else self.p.true_gamma)


class CsaOther(Csa):
    """The sensitivity model of the knob, where no other arm has it."""

    model = property(lambda self: self.p.model)
    when = staticmethod(lambda p: p.model not in ("msm", "kl"))


class NoBernoulli(Csa):
    """Ablation: u = h(u0), without the part pi of the latent law that cannot move."""

    mixed = False


class SingleStage(Csa):
    """Ablation: likelihood, query and penalty at once from the start, over as many steps as both stages have together.

    Each bound is a problem of its own and has a flow of its own, which the query may bend. On development seeds `weight` is the
    best of 0.01, 0.1 and 1 (the larger two diverge), the flow's rate the better of 5e-3 and 2e-2. The stage-1 net beside it
    serves for the propensity and for the sharp bound alone.
    """

    weight = 0.01
    steps = property(lambda self: self.p.steps + self.p.outer_rounds * self.p.inner)

    def bind(self, seed):
        bound = super().bind(seed)
        data = table(seed, self.p)
        bound.x, bound.a, bound.y = data.x, data.a, data.y
        return bound

    def begin(self, start):
        net = super().begin(start)
        net.flow = method.Maker(net.first.points.shape[1] + 1, 32, 32, 3 * self.p.bins + 3, copies=(4,))
        return net

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.x), (n, Naive.batch_size), generator=rng)
        return *super().block(net, rng, step, n), self.x[rows], self.a[rows], self.y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def groups(self):
        return {"flow": {"lr": 5e-3}}

    def still(self, net, t, knots):
        few = method.latent(t[..., ::4])  # one draw in four is enough for a mean that no shift changes
        return payoff(knots, few.expand(4, -1, -1), net.query, soft=True).mean(-1)

    def loss(self, net, t, x, a, y):
        return fit(net.flow, x, a, y) + self.weight * self.worst(net, t, net.first.curves(net.flow))

    def metrics(self, net, m=400, knots=None):
        return super().metrics(net, m, net.first.curves(net.flow))

    def final(self, net):
        found, best = super().final(net), closed(net.first, self.p.gamma, flow=net.flow)
        own = (net.four(2000, net.first.curves(net.flow))[0][0] - best)[list(UPPER)].abs().mean()
        return found | {"gap_on_own_flow": own}  # small: then the gap is not the shift's fault but the flow's
