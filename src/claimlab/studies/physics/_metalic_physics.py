"""Equations, stacked pairs of networks and interface conditions of the study metalic.

A pair is two perceptrons, u_1 on x <= 1/2 and u_2 on x >= 1/2. Many pairs are held as one tensor [P, 2, K] of flat weights.
The second coordinate is the time t (advection) or y (poisson); both run over [0, 1].
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from claimlab.models import mlp
from claimlab.parts.derivatives import taylor
from claimlab.training.shortcuts import Shortcuts

RANGES = {"advection": (0.3, 3.0), "poisson": (3.0, 15.0)}  # of the equation's parameter
SECOND = {"advection": "t", "poisson": "y"}
NAMES = ("c0 value", "c1 residual", "c2 gradient", "c3 flux", "c4 residual slope")
HALVES = ((0.0, 0.5), (0.5, 1.0))
GRID, SIDE, SEAM, INSIDE = 41, 16, 17, 64  # nodes of the test grid, points of a side, of the interface, of a subdomain
LAM_B = 20.0
WIDTHS = (2, 16, 16, 1)


# ---- equations: u, the source f of F(u) = f, and its slope f_x, at x, y [...] for the parameter beta


def _bumps(beta: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """g(x) = [erf(beta (x - 1/4)) - erf(beta (x - 3/4))] / 2 and its first three derivatives."""
    from scipy.special import erf

    parts = []
    for sign, centre in ((1, 0.25), (-1, 0.75)):
        z = beta * (x - centre)
        bell = sign * beta / math.sqrt(math.pi) * np.exp(-(z**2))
        parts.append((sign * erf(z) / 2, bell, -2 * beta * z * bell, beta**2 * (4 * z**2 - 2) * bell))
    return tuple(a + b for a, b in zip(*parts, strict=True))


class Advection:
    """u_t + beta u_x = 0, u(x, 0) = sin(2 pi x), solved by u = sin(2 pi (x - beta t)). Data at t = 0 and at the inflow x = 0."""

    family = "advection"

    def __init__(self, betas):
        self.betas = tuple(betas)

    def u(self, beta, x, t):
        return np.sin(2 * np.pi * (x - beta * t))

    def f(self, beta, x, t):
        return np.zeros_like(x)

    f_x = f


class Poisson(Advection):
    """u_xx + u_yy = f with u = g(x) sin(pi y): two steps of sharpness beta at x = 1/4 and 3/4. Data on all four sides."""

    family = "poisson"

    def u(self, beta, x, y):
        return _bumps(beta, x)[0] * np.sin(np.pi * y)

    def f(self, beta, x, y):
        g, _, g_xx, _ = _bumps(beta, x)
        return (g_xx - np.pi**2 * g) * np.sin(np.pi * y)

    def f_x(self, beta, x, y):
        _, g_x, _, g_xxx = _bumps(beta, x)
        return (g_xxx - np.pi**2 * g_x) * np.sin(np.pi * y)


def sides(family: str) -> tuple[np.ndarray, np.ndarray]:
    """Boundary points [2, 3 * 16, 2] of both subdomains, and weights [2, 48] that make a sum over them a mean."""
    s = (np.arange(SIDE) + 0.5) / SIDE
    points, weights = [], []
    for left, right in HALVES:
        x = left + (right - left) * s
        wall = np.full(SIDE, 0.0 if left == 0 else 1.0)
        three = [(x, np.zeros(SIDE)), (wall, s), (x, np.ones(SIDE))]
        known = [True, family == "poisson" or left == 0, family == "poisson"]
        points.append(np.concatenate([np.stack(side, -1) for side in three]))
        weights.append(np.repeat(np.array(known) / (SIDE * sum(known)), SIDE))
    return np.stack(points), np.stack(weights)


def inside(draws: Tensor) -> Tensor:
    """Numbers in [0, 1) [..., 2, N, 2] as points of the two subdomains."""
    low = torch.tensor([[[0.0, 0.0]], [[0.5, 0.0]]], dtype=draws.dtype)
    return low + draws * torch.tensor([0.5, 1.0], dtype=draws.dtype)


class Setting:
    """Everything about an equation's members that does not change in training, as float64 tensors; B members."""

    def __init__(self, equation):
        self.equation, self.family, self.betas = equation, equation.family, equation.betas
        self.seam = torch.stack([torch.full((SEAM,), 0.5), torch.linspace(0, 1, SEAM)], -1).double()  # [17, 2]
        points, weights = sides(self.family)
        self.sides, self.weights = torch.from_numpy(points), torch.from_numpy(weights)
        self.data = self.at(equation.u, self.sides)  # [B, 2, 48]
        self.seam_f, self.seam_f_x = self.at(equation.f, self.seam), self.at(equation.f_x, self.seam)  # [B, 17]
        axis = torch.linspace(0, 1, GRID).double()
        halves = [torch.cartesian_prod(axis[part], axis) for part in (slice(0, GRID // 2 + 1), slice(GRID // 2, GRID))]
        self.grid = torch.stack(halves)  # [2, 21 * 41, 2]; both halves hold the column x = 1/2
        self.truth = joined(self.at(equation.u, self.grid))  # [B, 41, 41]

    def at(self, function, points: Tensor) -> Tensor:
        """`function` of the equation at points [..., 2], for each member: [B, ...]."""
        x, y = points.double().numpy()[..., 0], points.double().numpy()[..., 1]
        return torch.from_numpy(np.stack([np.asarray(function(beta, x, y), dtype=float) for beta in self.betas]))

    def source(self, points: Tensor) -> Tensor:
        return self.at(self.equation.f, points)


def joined(halves: Tensor) -> Tensor:
    """Values [..., 2, 21 * 41] of u_1 and u_2 as one field [..., 41, 41] with x first; on the interface the average."""
    left, right = halves.unflatten(-1, (GRID // 2 + 1, GRID)).unbind(-3)
    return torch.cat([left[..., :-1, :], (left[..., -1:, :] + right[..., :1, :]) / 2, right[..., 1:, :]], -2)


# ---- networks


class Jet(nn.Module):
    """A tanh perceptron as a program of its flat weights [K]: value, slope and curvature along a direction."""

    def __init__(self):
        super().__init__()
        self.net = mlp(*WIDTHS, activation=nn.Tanh)

    def forward(self, x, along=None):
        return self.net(x)[:, 0] if along is None else taylor(self.net, x, along)


@lru_cache(maxsize=1)
def _program() -> tuple[Jet, list[tuple[str, int, torch.Size]]]:
    with torch.random.fork_rng(devices=[]):
        jet = Jet()
    return jet.to("meta"), [(name, p.numel(), p.shape) for name, p in jet.named_parameters()]


def weights_of(count: int) -> int:
    """Numbers in one perceptron times `count`."""
    return count * sum(n for _, n, _ in _program()[1])


def apply(flat: Tensor, *inputs: Tensor):
    """One perceptron with flat weights [K] at x [N, 2]: its value [N]; with a direction [2], value, slope and curvature."""
    jet, layout = _program()
    parts = flat.split([n for _, n, _ in layout])
    return functional_call(jet, {name: p.view(shape) for (name, _, shape), p in zip(layout, parts, strict=True)}, inputs)


def every(flat: Tensor, x: Tensor, along: Tensor | None = None, *, third: bool = False):
    """`apply` for pairs: flat [P, 2, K], x [2, N, 2], along [P, 2] -> [P, 2, N] once or three times.

    With `third` a fourth: the derivative in x of the curvature, by forward mode through the Taylor pass.
    """
    pairs, x = len(flat), x.to(flat)
    inputs = [x.expand(pairs, *x.shape).flatten(0, 1)]
    if along is not None:
        inputs.append(along.to(flat).repeat_interleave(2, 0))
    if third:
        def one(w, at, direction):
            step = torch.zeros_like(at) + torch.tensor([1.0, 0.0], dtype=at.dtype)
            value, slope = jvp(lambda z: torch.stack(apply(w, z, direction)), (at,), (step,))
            return (*value, slope[2])

        found = vmap(one)(flat.flatten(0, 1), *inputs)
    else:
        with Shortcuts():
            found = vmap(apply)(flat.flatten(0, 1), *inputs)
    return found.unflatten(0, (pairs, 2)) if along is None else tuple(f.unflatten(0, (pairs, 2)) for f in found)


def fresh(members: int) -> Tensor:
    """First weights [members, 2, K] from torch's generator: Xavier normal, zero offsets, for inputs that run over [-1, 1] in
    each subdomain. The change from x to these inputs is written into the first layer."""
    parts, widen = [], torch.tensor([4.0, 2.0])  # a subdomain is 1/2 wide and 1 high
    for name, n, shape in _program()[1]:
        scale = math.sqrt(2 / sum(shape)) if name.endswith("weight") else 0.0
        parts.append(scale * torch.randn(members, 2, n))
        if len(parts) == 1:
            first = parts[0].unflatten(-1, shape) * widen  # [members, 2, 16, 2]
            parts[0] = first.flatten(-2)
        elif len(parts) == 2:
            centre = torch.tensor([[0.25, 0.5], [0.75, 0.5]])[:, :, None]  # [2, 2, 1]
            parts[1] = -(first @ centre)[..., 0]
    return torch.cat(parts, -1)


# ---- derivatives at points, as far as the equation and the conditions need them


def fields(flat: Tensor, x: Tensor, beta: Tensor, family: str, f: Tensor, seam: int, pool: int, f_x: Tensor) -> dict[str, Tensor]:
    """At x [2, N, 2], the last `seam` of them on the interface: residual F [P, 2, N] and there, [P, 2, seam] each, value u,
    gradient u_x, u_y, flux through the interface, and with five conditions the residual's slope F_x. f is [P, 2, N]."""
    line = x[:, -seam:]
    e = torch.eye(2).to(flat).expand(len(flat), 2, 2)
    third = pool > 4
    if family == "advection":  # F = u_t + beta u_x is the slope along (beta, 1)
        u, slope, bend = every(flat, x, torch.stack([beta, torch.ones_like(beta)], -1))
        _, u_x, u_xx = every(flat, line, e[:, 0])
        found = {"F": slope - f, "u_x": u_x, "u_y": slope[..., -seam:] - beta[:, None, None] * u_x}
        found["flux"] = beta[:, None, None] * u[..., -seam:]
        if third:  # bend = beta^2 u_xx + 2 beta u_xt + u_tt
            u_tt = every(flat, line, e[:, 1])[2]
            b = beta[:, None, None]
            found["F_x"] = (bend[..., -seam:] + b * b * u_xx - u_tt) / (2 * b) - f_x
    else:
        u, u_x, u_xx = every(flat, x, e[:, 0])
        _, u_y, u_yy = every(flat, x, e[:, 1])
        found = {"F": u_xx + u_yy - f, "u_x": u_x[..., -seam:], "u_y": u_y[..., -seam:], "flux": u_x[..., -seam:]}
        if third:
            found["F_x"] = every(flat, line, e[:, 0], third=True)[3] + every(flat, line, e[:, 1], third=True)[3] - f_x
    return found | {"u": u[..., -seam:]}


def conditions(at: dict[str, Tensor], pool: int) -> Tensor:
    """The first `pool` interface conditions [P, pool], each a mean square over the interface points; at[...] is [P, 2, J]."""

    def jump(name: str) -> Tensor:
        return (at[name][:, 0] - at[name][:, 1]).square()

    average = at["u"].mean(1, keepdim=True)
    found = [(at["u"] - average).square().sum(1)]  # c0: both to their average
    found.append(jump("F"))  # c1: the residual is continuous
    found.append(jump("u_x") + jump("u_y"))  # c2: the gradient is continuous
    if pool > 3:
        found.append(jump("flux"))  # c3: what flows out on the left flows in on the right
    if pool > 4:
        found.append(at["F_x"].square().sum(1))  # c4: the residual has no slope across the interface
    return torch.stack(found[:pool], 1).mean(-1)


def losses(flat: Tensor, setting: Setting, which: Tensor, chosen: Tensor, points: Tensor, f: Tensor, weight: float) -> Tensor:
    """The loss [P] of each pair: flat [P, 2, K], which [P] its equation, chosen [P, pool] its conditions as 0 or 1.

    sum_k [lam_b mean |u_k - data|^2 + mean |F(u_k)|^2] + lam_I sum_j chosen_j I_j, points [2, N, 2] with f [B, 2, N].
    """
    pool, beta = chosen.shape[1], torch.tensor(setting.betas, dtype=flat.dtype)[which]
    x = torch.cat([points.to(flat), setting.seam.to(flat).expand(2, -1, -1)], 1)
    seam_f = setting.seam_f.to(flat)[:, None].expand(-1, 2, -1)
    whole = torch.cat([f.to(flat), seam_f], -1)[which]
    slope = setting.seam_f_x.to(flat)[which][:, None]
    at = fields(flat, x, beta, setting.family, whole, SEAM, pool, slope)
    residual = at["F"][..., :-SEAM].square().mean(-1).sum(-1)
    at["F"] = at["F"][..., -SEAM:]
    missed = (every(flat, setting.sides) - setting.data.to(flat)[which]).square()
    known = (missed * setting.weights.to(flat)).sum((-1, -2))
    return LAM_B * known + residual + weight * (chosen.to(flat) * conditions(at, pool)).sum(-1)


@torch.no_grad()
def solution(flat: Tensor, setting: Setting) -> Tensor:
    """The joined fields [P, 41, 41] of pairs, x first."""
    return joined(every(flat, setting.grid))


def log_error(flat: Tensor, setting: Setting, which: Tensor, part: int = 128) -> Tensor:
    """log10 of the relative L2 error of each pair on the test grid, [P] float64; more than 10, or no number, counts as 10."""
    found = []
    for a in range(0, len(flat), part):
        truth = setting.truth[which[a : a + part]]
        off = (solution(flat[a : a + part], setting).double() - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        found.append(off.nan_to_num(10.0, 10.0, 10.0).clamp(1e-12, 10.0).log10())
    return torch.cat(found)


def actions(pool: int) -> Tensor:
    """All non-empty subsets of the first `pool` conditions as rows of 0 and 1, [2^pool - 1, pool]; the last is all of them."""
    codes = torch.arange(1, 2**pool)
    return (codes[:, None] >> torch.arange(pool)) & 1


def grid_of(family: str, count: int) -> tuple[list[float], list[bool]]:
    """`count` parameters, equally spaced over the family's range, and which of them are held out for the test: each third."""
    low, high = RANGES[family]
    return [float(b) for b in np.linspace(low, high, count)], [k % 3 == 1 for k in range(count)]
