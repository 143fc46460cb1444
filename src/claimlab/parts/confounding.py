"""Hidden confounding of a known strength: worlds that have it, and the worst that it may do to a discrete law.

The strength is Gamma >= 1 of the marginal sensitivity model (Tan 2006): who knows the hidden cause u changes the odds of the
treatment a, given what is seen, by a factor of at most Gamma either way.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_cause(e: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """P(a = 1 | u = 0), P(a = 1 | u = 1) and P(u = 1) for a binary cause of strength exactly gamma that leaves P(a = 1) at e.

    The odds given u are those of e, divided and multiplied by gamma. All of e's shape. Source: Kallus, Mao, Zhou 2019.
    """
    p0, p1 = 1 / (1 + (1 / e - 1) * gamma), 1 / (1 + (1 / e - 1) / gamma)
    share = torch.where(p1 > p0, (e - p0) / (p1 - p0).clamp(min=torch.finfo(e.dtype).tiny), 0.5)
    return p0, p1, share


def ratio_limits(pi: Tensor, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest P(u | x, do(a)) / P(u | x, a) at strength gamma, where pi = P(a | x): 1 and 1 without confounding."""
    return pi + (1 - pi) / gamma, pi + (1 - pi) * gamma


def worst_case(values: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The law P that maximises sum P v among all with low q <= P <= high q and sum P = 1 (-v: that minimises it).

    values and q [..., d] with sum q = 1; low <= 1 <= high [...]. The fractional knapsack's solution: all the mass that low q
    leaves goes to the largest values, each up to high q. P is constant in `values` as long as their order is the same.
    """
    order = values.argsort(-1, descending=True)
    room = (high - low)[..., None] * q.gather(-1, order)
    before = room.cumsum(-1) - room
    filled = ((1 - low)[..., None] - before).clamp(min=0).minimum(room)
    return low[..., None] * q + torch.zeros_like(q).scatter(-1, order, filled)
