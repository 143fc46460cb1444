"""The method of the study neuralcsa: a conditional flow, a learned shift of its latent law, and what a sensitivity model allows.

Fix P(U | x, a) = N(0, 1) and an outcome map Y = f(U; x, a). Confounding is then only a change of the latent law from
phi = P(U | x, a) to P(U | x, do(a)) = pi phi + (1 - pi) p_h, where pi = P(a | x) and p_h is the law of h(U). The shift is
written through probabilities t = Phi(u) as h = Phi^-1 o G o Phi, so that p_h / phi at h(u) is 1 / G'(t), tails included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softmax, softplus

from claimlab.parts.confounding import hidden_cause, ratio_limits, worst_case

MODELS = ("msm", "kl", "tv", "hellinger", "chi2", "rosenbaum")
EDGE = 4.0  # the spline spans latent values in [-4, 4]; beyond it goes on as a straight line
BUMPS = 4
FLOOR = 1e-3  # least slope of G: no u becomes more than a thousand times as likely, where a divergence would let it


class Maker(nn.Module):
    """`copies` perceptrons of equal `sizes` with tanh inside, which make parameters: [..., n, in] -> [*copies, ..., n, out].

    The last layer starts small, so that what is made starts near the identity.
    """

    def __init__(self, *sizes: int, copies: tuple[int, ...] = ()):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.empty(*copies, a, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)
        self.biases = nn.ParameterList(torch.empty(*copies, 1, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)
        with torch.no_grad():
            self.weights[-1] *= 0.1
            self.biases[-1] *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x.tanh() if i else x) @ weight + bias
        return x


# ---- stage 1: y = f(u; x, a), a monotone rational-quadratic spline (Durkan et al. 2019) with a location and a scale


def knots(raw: Tensor) -> Tensor:
    """Places, values and slopes of the K + 1 knots, [..., 3, K + 1], from 3 K + 3 free numbers [..., 3 K + 3].

    K widths, K heights, K + 1 slopes, then location and log scale of the outcome. All zero is the identity.
    """
    bins = (raw.shape[-1] - 3) // 3
    width, height, slope, place = raw.split([bins, bins, bins + 1, 2], -1)
    parts = torch.stack([width, height], -2)
    parts = 1e-3 + (1 - bins * 1e-3) * softmax(parts, -1)
    at = pad(parts.cumsum(-1), (1, 0)) * 2 * EDGE - EDGE
    location, scale = place[..., :1], place[..., 1:].exp()
    return torch.stack([at[..., 0, :], location + scale * at[..., 1, :], scale * (1e-3 + softplus(slope + 0.5403))], -2)


def _pieces(knot: Tensor, value: Tensor, of: int) -> tuple[Tensor, ...]:
    """Left ends, sizes and slopes of the bin that holds each value [..., m]; `of` 0 for places, 1 for values."""
    inner = knot[..., of, 1:-1]
    k = (value.unsqueeze(-1) >= inner.unsqueeze(-2)).sum(-1)
    x, y, d = (torch.take_along_dim(knot[..., i, :], k, -1) for i in range(3))
    x1, y1, d1 = (torch.take_along_dim(knot[..., i, :], k + 1, -1) for i in range(3))
    return x, y, d, x1 - x, y1 - y, d1


def forward(knot: Tensor, u: Tensor) -> Tensor:
    """f(u): knot [..., 3, K + 1], u [..., m] -> outcomes [..., m]."""
    inside = u.clamp(-EDGE, EDGE)
    x, y, d, w, h, d1 = _pieces(knot, inside, 0)
    part, s = (inside - x) / w, h / w
    mixed = part * (1 - part)
    found = y + h * (s * part**2 + d * mixed) / (s + (d1 + d - 2 * s) * mixed)
    return found + (u - inside) * torch.where(u > 0, knot[..., 2, -1:], knot[..., 2, :1])


def inverse(knot: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """u = f^-1(y) and log f'(u), each [..., m]."""
    inside = y.clamp(knot[..., 1, :1], knot[..., 1, -1:])
    x, y0, d, w, h, d1 = _pieces(knot, inside, 1)
    s, rise = h / w, inside - y0
    bend = d1 + d - 2 * s
    a, b, c = h * (s - d) + rise * bend, h * d - rise * bend, -s * rise
    part = 2 * c / (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt())
    mixed = part * (1 - part)
    slope = s**2 * (d1 * part**2 + 2 * s * mixed + d * (1 - part) ** 2) / (s + bend * mixed) ** 2
    tail = torch.where(y > inside, knot[..., 2, -1:], knot[..., 2, :1])
    return x + part * w + (y - inside) / tail, slope.log()


def negative_log_likelihood(knot: Tensor, y: Tensor) -> Tensor:
    """- log p(y | x, a) in nats, [..., m]."""
    u, slope = inverse(knot, y)
    return 0.5 * u**2 + 0.9189385332 + slope


# ---- stage 2: the shift


def shift(raw: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """G(t) and its slope g(t), both [..., m], for t in (0, 1) [..., m] and 1 + 3 * BUMPS free numbers [..., 13].

    g is proportional to e^b + sum_j w_j sigmoid((t - c_j) / s_j) + max(0, -w_j): a level and four smooth steps, up or down.
    """
    base, w, c, s = raw.unsqueeze(-2).split([1, BUMPS, BUMPS, BUMPS], -1)
    spread = torch.linspace(-1.4, 1.4, BUMPS, dtype=raw.dtype, device=raw.device)
    c, s = torch.sigmoid(c + spread), 0.01 + 0.2 * torch.sigmoid(s)
    level = base.exp() + (-w).clamp(min=0).sum(-1, keepdim=True)
    z, start, end = (t.unsqueeze(-1) - c) / s, softplus(-c / s), softplus((1 - c) / s)
    total = (level + (w * s * (end - start)).sum(-1, keepdim=True))[..., 0]
    reached = level[..., 0] * t + (w * s * (softplus(z) - start)).sum(-1)
    slope = level[..., 0] + (w * torch.sigmoid(z)).sum(-1)
    return (1 - FLOOR) * reached / total + FLOOR * t, (1 - FLOOR) * slope / total + FLOOR


def latent(t: Tensor) -> Tensor:
    """u = Phi^-1(t), within what single precision can tell from 0 and 1."""
    return torch.special.ndtri(t.clamp(1e-6, 1 - 1e-6))


def rank(values: Tensor, share: float) -> Tensor:
    """The value that a share of `values` [..., m] does not pass; 1 gives the greatest."""
    return values.topk(1 + int((1 - share) * values.shape[-1]), -1).values[..., -1]


# f(r) and r f(1 / r): their means over phi are the divergences one way and the other
F_MODELS = {
    "kl": (lambda r: r * r.log(), lambda r: -r.log()),
    "tv": (lambda r: (r - 1).abs() / 2, lambda r: (r - 1).abs() / 2),
    "hellinger": (lambda r: (r.sqrt() - 1) ** 2, lambda r: (r.sqrt() - 1) ** 2),
    "chi2": (lambda r: (r - 1) ** 2, lambda r: (r - 1) ** 2 / r),
}


def strength(model: str, q: Tensor, pi: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
    """D(P(U | x), P(U | x, a)) of a sensitivity model, [...]; what has to stay below Gamma. Source: section 3 and appendix.

    q = p_h / phi at nodes [..., m], weight = the law phi on these nodes (sums to 1), pi = P(a | x) [..., 1], r = pi + (1 - pi) q.
    msm: max(q, 1 / q); rosenbaum: greatest over least q; else the larger of E_phi f(r) and E_phi r f(1 / r).
    share < 1 takes that quantile of the nodes instead of the maximum, which is what training can follow.
    """
    if model == "msm":
        return rank(torch.maximum(q, 1 / q), share)
    if model == "rosenbaum":
        return rank(q, share) * rank(1 / q, share)
    r = pi + (1 - pi) * q
    one, other = ((weight * f(r)).sum(-1) for f in F_MODELS[model])
    return torch.maximum(one, other)


def repair(model: str, q: Tensor, pi: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    """Least weight of the identity, in [0, 1], at which the mixture (1 - w) p_h + w phi keeps strength <= gamma. [...]"""
    low, high = torch.zeros_like(q[..., 0]), torch.ones_like(q[..., 0])
    keeps = lambda w: strength(model, q + w[..., None] * (1 - q), pi, weight) <= gamma  # noqa: E731
    high = torch.where(keeps(low), low, high)
    for _ in range(20):
        middle = (low + high) / 2
        fine = keeps(middle)
        low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
    return high


# ---- what is known without learning a shift


def sharp(values: Tensor, pi: Tensor, gamma: float | Tensor) -> Tensor:
    """The sharp marginal bounds, upper then lower [2, ...], of a mean over `values` [..., m], samples of P(Y | x, a).

    Weights of at most w_hi go to the largest outcomes and w_lo to the others; w changes at the quantile gamma / (1 + gamma).
    """
    even = torch.full_like(values, 1 / values.shape[-1])
    low, high = ratio_limits(pi, gamma)
    return torch.stack([(worst_case(one, even, low, high) * values).sum(-1) for one in (values, -values)])


def cause_strength(model: str, e: Tensor, gamma: float) -> float:
    """The largest strength of the binary hidden cause of odds ratio `gamma` over propensities e [n] and both arms, exact."""
    p0, p1, share = hidden_cause(e.double(), gamma)
    chance = torch.stack([torch.stack([1 - p0, 1 - p1], -1), torch.stack([p0, p1], -1)])  # P(a | u) as [a, n, u]
    prior, marginal = torch.stack([1 - share, share], -1), torch.stack([1 - e, e]).double()[..., None]
    given = prior * chance / marginal  # P(u | x, a)
    other = given.flip(0)
    return float(strength(model, other / given, marginal, given).max())


def ends(four: Tensor, query: str) -> tuple[Tensor, Tensor]:
    """Lower and upper end of the query [..., n] from the bounds [..., 4, n]: upper and lower of a = 1, upper and lower of a = 0."""
    up1, low1, up0, low0 = four.unbind(-2)
    if query in ("mean_do_1", "prob_above"):
        return low1, up1
    low, high = low1 - up0, up1 - low0
    return (low.mean(-1, keepdim=True), high.mean(-1, keepdim=True)) if query == "ate" else (low, high)
