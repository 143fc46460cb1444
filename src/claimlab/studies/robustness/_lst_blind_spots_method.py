"""Walks towards a target picture while a network keeps its answer, and how confident it is on segments and triangles.

N walkers side by side, pictures flattened to D numbers in [0, 1]. m is the log-odds against the first answer y, so that its
confidence is p_y = 1 / (1 + exp m) and cross-entropy is log(1 + exp m), whose gradient is g = (1 - p_y) grad m.
`odds(x [n, D], rows [n])` gives m [n] for points that belong to the walkers `rows`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from claimlab.parts.adversarial import inside, log_odds, slope, steepest

Odds = Callable[[Tensor, Tensor], Tensor]


def odds_against(net: nn.Module, y: Tensor) -> Odds:
    """Log-odds against the answer y [N] of each walker."""
    return lambda x, rows: log_odds(net(x), y[rows])


def odds_between(net: nn.Module, y: Tensor, other: Tensor) -> Odds:
    """Log-odds of the class `other` [N] against y [N], all further classes left out: linear in x where `net` is."""

    def odds(x, rows):
        logits = net(x)
        return (logits.gather(1, other[rows, None]) - logits.gather(1, y[rows, None]))[:, 0]

    return odds


def confidence(m: Tensor) -> Tensor:
    """p_y = 1 / (1 + exp m)."""
    return torch.sigmoid(-m)


# ---- one step


def tangent(d: Tensor, gradient: Tensor) -> Tensor:
    """d less its part along the gradient: d - (g . d) / |g|^2 g; all of d where there is no gradient. [..., D]

    The length of g drops out, so that the gradient of m serves, which does not vanish where the network is very sure.
    """
    normal = steepest(gradient, "2")
    return d - (d * normal).sum(-1, keepdim=True) * normal


def onward(x: Tensor, target: Tensor, m: Tensor, gradient: Tensor, pull: Tensor, eta: float, eps: float,
           project: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of level-set traversal from x [N, D]: the next point and the next correction.

    d = target - x, d_perp = d - (g . d) / |g|^2 g, pull' = clip(pull - eps g, -eps, eps), x' = x + eta d_perp + pull'.
    `gradient` is that of m [N]; without `project` the walk follows d itself. Source: the paper's algorithm 1.
    """
    d = target - x
    g = torch.sigmoid(m).unsqueeze(-1) * gradient
    pull = (pull - eps * g).clamp(-eps, eps)
    return x + eta * (tangent(d, gradient) if project else d) + pull, pull


# ---- whole walks


class Walk:
    """N walkers on their way from `source` to `target` [N, D]; x is the last point within the tolerance of each.

    `rows` are those that still walk. `start` is p_y(x_s) [N]; a point is good where p_y > start - delta or equal.
    """

    def __init__(self, odds: Odds, source: Tensor, target: Tensor, delta: float):
        self.odds, self.source, self.target, self.delta = odds, source, target, delta
        self.x, self.rows = source.clone(), torch.arange(len(source), device=source.device)
        self.m, self.gradient = self.look(source)
        self.start = confidence(self.m)
        self.sure, self.taken = self.start.clone(), torch.zeros(len(source), device=source.device)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m and its gradient at points of those that still walk."""
        return slope(lambda z: self.odds(z, self.rows), x)

    def good(self, m: Tensor) -> Tensor:
        """Whether the tolerance holds at points of those that still walk."""
        return self.start[self.rows] - confidence(m) <= self.delta

    def keep(self, good: Tensor, moved: Tensor, m: Tensor) -> None:
        """Those of the walkers whose new point is good go there."""
        rows = self.rows[good]
        self.x[rows], self.sure[rows] = moved[good], confidence(m[good])
        self.taken[rows] += 1

    def left(self) -> Tensor:
        """Relative distance |x - target| / |source - target| of each, [N]."""
        return (self.x - self.target).norm(dim=1) / (self.source - self.target).norm(dim=1).clamp_min(1e-12)

    def advance(self) -> None:
        """One step of everybody who still walks."""
        raise NotImplementedError


class Traversal(Walk):
    """Level-set traversal; `project=False` leaves the gradient part in, `eps=0` the correction out, `clip=False` the pixel range."""

    def __init__(self, odds, source, target, delta, eta, eps, project=True, clip=True):
        super().__init__(odds, source, target, delta)
        self.eta, self.eps, self.project, self.clip = eta, eps, project, clip
        self.pull = torch.zeros_like(source)

    def advance(self):
        if not len(self.rows):
            return
        here, there = self.x[self.rows], self.target[self.rows]
        moved, pull = onward(here, there, self.m, self.gradient, self.pull, self.eta, self.eps, self.project)
        moved = moved.clamp(0, 1) if self.clip else moved
        m, gradient = self.look(moved)
        good = self.good(m)
        self.keep(good, moved, m)
        self.rows, self.m, self.gradient, self.pull = self.rows[good], m[good], gradient[good], pull[good]


class Straight(Walk):
    """The straight line in `steps` equal parts."""

    def __init__(self, odds, source, target, delta, steps):
        super().__init__(odds, source, target, delta)
        self.k, self.steps = 0, steps

    def advance(self):
        if not len(self.rows):
            return
        self.k += 1
        moved = torch.lerp(self.source[self.rows], self.target[self.rows], self.k / self.steps)
        with torch.no_grad():
            m = self.odds(moved, self.rows)
        good = self.good(m)
        self.keep(good, moved, m)
        self.rows = self.rows[good]


class PenaltyDescent(Walk):
    """Adam on (|z - target| / |source - target|)^2 + weight relu(CE(z) - CE at the tolerance), a gradient a step.

    z may leave the tolerance and come back; it stays among pictures and no farther from the target than the source is. x is
    the nearest good point met so far.
    """

    def __init__(self, odds, source, target, delta, weight, lr=0.01):
        super().__init__(odds, source, target, delta)
        self.weight, self.whole = weight, (source - target).norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.ceiling = -(self.start - delta).clamp_min(0).log()  # infinite where all confidence may be lost
        self.z = source.clone()
        self.optimizer = torch.optim.Adam([self.z], lr=lr)

    def advance(self):
        lost = (nn.functional.softplus(self.m) > self.ceiling).float() * torch.sigmoid(self.m)
        with torch.no_grad():
            self.z.grad = 2 * (self.z - self.target) / self.whole**2 + self.weight * lost[:, None] * self.gradient
            self.optimizer.step()
            self.z.copy_(inside(self.z, self.target, self.whole, "2"))
        self.m, self.gradient = self.look(self.z)
        nearer = (self.z - self.target).norm(dim=1) < (self.x - self.target).norm(dim=1)
        self.keep(self.good(self.m) & nearer, self.z, self.m)


# ---- what lies between


def segment(a: Tensor, b: Tensor, points: int = 21) -> Tensor:
    """Equally spaced points from a to b [N, D], both ends included: [N, points, D]."""
    t = torch.linspace(0, 1, points, device=a.device, dtype=a.dtype)[:, None]
    return a[:, None] + t * (b - a)[:, None]


def triangle(a: Tensor, b: Tensor, c: Tensor, side: int = 11) -> Tensor:
    """A triangular grid with `side` points on each edge of the triangle a, b, c [N, D]: [N, side (side + 1) / 2, D]."""
    u, v = torch.meshgrid(*[torch.linspace(0, 1, side, device=a.device, dtype=a.dtype)] * 2, indexing="ij")
    kept = u + v < 1 + 1e-6
    u, v = u[kept][:, None], v[kept][:, None]
    return a[:, None] + u * (b - a)[:, None] + v * (c - a)[:, None]


def area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Area of the triangle a, b, c [N, D], half the root of the Gram determinant of its edges: [N]."""
    u, v = (b - a).double(), (c - a).double()
    gram = (u * u).sum(1) * (v * v).sum(1) - (u * v).sum(1) ** 2
    return (gram.clamp_min(0).sqrt() / 2).to(a.dtype)


def sureness(odds: Odds, points: Tensor) -> Tensor:
    """p_y at the points [N, K, D] of the walkers 0 to N - 1: [N, K]."""
    n, k = points.shape[:2]
    rows = torch.arange(n, device=points.device).repeat_interleave(k)
    with torch.no_grad():
        return confidence(odds(points.flatten(0, 1), rows)).view(n, k)


def projected(source: Tensor, target: Tensor, gradient: Tensor) -> Tensor:
    """Where a linear model's walk ends: the foot of the target on the plane through the source across `gradient` [N, D]."""
    return source + tangent(target - source, gradient)
