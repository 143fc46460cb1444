"""Two outcomes at once, for the study neuralcsa: a coupling flow in two latent dimensions and a shift that moves both.

y1 = f1(u1; x, a) and y2 = f2(u2; x, y1, a); the shift is G1(t1; x), then G2(t2; x, u1'), so that p_h / phi = 1 / (g1 g2). The
query is the mean of the sum of both standardised outcomes; under one hidden cause both cannot be at their worst by themselves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from claimlab.parts.lagrangian import penalty, raised
from claimlab.studies.causality import _neuralcsa_method as method
from claimlab.studies.causality._neuralcsa_arms import Csa, Naive
from claimlab.studies.causality._neuralcsa_data import draw, pull, simulated
from claimlab.studies.causality._neuralcsa_nets import Observed, chance, fit, report


def second(seed: int, p) -> tuple[Tensor, float]:
    """The second outcome of the simulated table, s (1 + x / 2) + pull (2 u - 1) / 2 + noise, standardised, and its sd. The hidden
    cause raises it where it lowers the first."""
    x, s, _, u = draw(seed, p.rows, p.true_gamma, False)
    noise = torch.randn(p.rows, generator=torch.Generator().manual_seed(seed + 2**40), dtype=torch.float64)
    y = s * (1 + 0.5 * x[:, 0]) + 0.5 * pull(x[:, 0]) * (2 * u - 1) + noise
    return ((y - y.mean()) / y.std()).float(), float(y.std())


class TwoObserved(Observed):
    """Stage 1 for two outcomes, asked at every fourth query point."""

    def __init__(self, data, bins: int):
        super().__init__(data, bins, "cate")
        self.flow2 = method.Maker(data.x.shape[1] + 2, 32, 32, 3 * bins + 3)

    def both(self, u1: Tensor, u2: Tensor) -> Tensor:
        """y1 + y2 of the four bounds at latents [4, n, m] each."""
        y1 = method.forward(self.curves(self.flow), u1)
        context = [self.points[:, None, :].expand(*y1.shape, -1), y1[..., None], self.levels.repeat_interleave(2)[:, None, None, None]]
        context[2] = context[2].expand_as(context[1])
        knots = method.knots(self.flow2(torch.cat(context, -1)))
        return y1 + method.forward(knots, u2[..., None])[..., 0]


class TwoNaive(Naive):
    def bind(self, seed):
        bound = type(self)(self.p)
        data = simulated(seed, self.p.rows, self.p.points, self.p.true_gamma, False, "cate")
        bound.y2, sd = second(seed, self.p)
        both = (data.truth + 2 * (1 + 0.5 * data.points[:, 0]) / sd)[1::4]
        bound.data = replace(data, points=data.points[1::4], truth=both, e=data.e[1::4])
        bound.x, bound.a, bound.y = data.x, data.a, data.y
        return bound

    def init(self):
        return TwoObserved(self.data, self.p.bins)

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.x), (n, self.batch_size), generator=rng)
        return self.x[rows], self.a[rows], self.y[rows], self.y2[rows]

    def loss(self, net, x, a, y, y2):
        return fit(net.flow, x, a, y) + fit(net.flow2, torch.cat([x, y[:, None]], 1), a, y2) + chance(net, x, a)

    def metrics(self, net):
        return {"nll": self.loss(net, self.x, self.a, self.y, self.y2) - chance(net, self.x, self.a)}

    def final(self, net):
        return {}


def lattice(m: int, like: Tensor) -> Tensor:
    """m points of the golden-ratio lattice in the unit square, [2, 1, m]."""
    k = torch.arange(m, dtype=torch.float64, device=like.device)
    return torch.stack([(k + 0.5) / m, (k * (5**0.5 - 1) / 2 + 0.5) % 1])[:, None].to(like).clamp(1e-6, 1 - 1e-6)


class TwoBounds(nn.Module):
    """Four shifts of two latents over a frozen stage 1, under the marginal model."""

    def __init__(self, first: TwoObserved, gamma: float):
        super().__init__()
        self.first, self.query, self.limit = first.requires_grad_(False), "cate", gamma
        width, out = first.points.shape[1], 1 + 3 * method.BUMPS
        self.make, self.make2 = (method.Maker(w, 32, out, copies=(4,)) for w in (width, width + 1))
        with torch.no_grad():
            values, pi = first.both(*(self.still(4000))), first.chances()
            upper, lower = method.sharp(values, pi, gamma)
        kept = {"pi": pi, "mix": pi, "centre": values.mean(-1), "best": torch.stack([upper[0], lower[1], upper[2], lower[3]]),
                "clock": torch.zeros(()).to(pi), "multiplier": torch.zeros_like(pi)}  # fmt: skip
        for name, value in kept.items():
            self.register_buffer(name, value.clone())

    def still(self, m: int) -> Tensor:
        """Latents without a shift, two of [4, n, m]."""
        return method.latent(lattice(m, self.first.points)).expand(2, len(self.first.points), m)[:, None].expand(-1, 4, -1, -1)

    def shifted(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At t [2, n, m]: the outcome y1 + y2 after the shift, q = p_h / phi and the law phi on these nodes, each [4, n, m]."""
        reached, slope = method.shift(self.make(self.first.points), t[0])
        u1 = method.latent(reached)
        context = torch.cat([self.first.points[:, None, :].expand(*u1.shape, -1), u1[..., None]], -1)
        raw = self.make2(context.flatten(1, 2)).unflatten(1, u1.shape[1:])
        reached, steep = method.shift(raw, t[1][..., None])
        slope = slope * steep[..., 0]
        return self.first.both(u1, method.latent(reached[..., 0])), 1 / slope, slope / slope.sum(-1, keepdim=True)


class TwoCsa(Csa):
    """Stage 2 for two outcomes under the marginal model."""

    def begin(self, start):
        return TwoBounds(super(Csa, self).begin(start), self.p.gamma)

    def block(self, net, rng, step, n):
        points, m = net.pi.shape[1], self.p.samples
        t = (torch.arange(m) + torch.rand(n, 2, points, m, generator=rng)) / m
        order = torch.rand(n, 1, points, m, generator=rng).argsort(-1)  # a Latin square
        return (torch.cat([t[:, :1], torch.gather(t[:, 1:], -1, order)], 1).clamp(1e-6, 1 - 1e-6),)

    def loss(self, net, t):
        value, q, weight = net.shifted(t)
        wanted = net.mix * net.centre + (1 - net.mix) * value.mean(-1)
        c = method.strength("msm", q, net.mix[..., None], weight, 0.99) - net.limit
        sign = wanted.new_tensor([1.0, -1.0, 1.0, -1.0])[:, None]
        return (penalty(c, net.multiplier, self.mu(net)) - sign * wanted).mean(-1).sum()

    def project(self, net):
        _, q, weight = net.shifted(lattice(self.p.samples, net.pi).expand(-1, net.pi.shape[1], -1))
        c = method.strength("msm", q, net.mix[..., None], weight, 0.99) - net.limit
        due = (net.clock + 1) % self.round == 0
        return {"clock": net.clock + 1, "multiplier": torch.where(due, raised(c, net.multiplier, self.mu(net)), net.multiplier)}

    def metrics(self, net, m=1000, knots=None):
        value, q, weight = net.shifted(lattice(m, net.pi).expand(-1, net.pi.shape[1], -1))
        w = method.repair("msm", q, net.mix[..., None], weight, torch.tensor(net.limit))
        keep = net.mix + (1 - net.mix) * w
        return report(keep * net.centre + (1 - keep) * value.mean(-1), net.best, net.first) | {"repair": w.mean()}
