"""Path-specific effects of a predictor, and the worst that a hidden cause of a given strength may make of them.

Tables: K levels of the confounders z, d levels of the mediator m. g [..., 2, K, d] is a predictor or P(y = 1 | a, z, m);
`observed` [..., 2, K, d] is P(m | a, z), a law [..., 2, 2, K, d] is P(m | do(i), z) by the unit's own a, then i; `share`
[..., 2, K] is P(z | a). The three effects stand last, in the order of EFFECTS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from claimlab.parts.confounding import ratio_limits, worst_case

EFFECTS = ("direct", "indirect", "spurious")


def effects(g: Tensor, law: Tensor, observed: Tensor, share: Tensor, i: int = 0, j: int = 1, a: int = 0) -> Tensor:
    """DE_ij(a), IE_ij(a), SE_ij [..., 3] of g, by the paper's standard fairness model with P(m | do) from `law`.

    DE changes what g itself is told of a, IE only the mediators, SE only who has which confounders. With law = observed
    TV_ij = SE_ij + IE_ij(j) - DE_ji(j), the plain difference E[g | a = j] - E[g | a = i].
    """
    direct = ((g[..., j, :, :] - g[..., i, :, :]) * law[..., a, i, :, :]).sum(-1)
    indirect = (g[..., i, :, :] * (law[..., a, j, :, :] - law[..., a, i, :, :])).sum(-1)
    moved = (g[..., i, :, :] * law[..., j, i, :, :]).sum(-1)
    spurious = (moved * share[..., j, :]).sum(-1) - _as_seen(g, observed, share, i)
    return torch.stack([(direct * share[..., a, :]).sum(-1), (indirect * share[..., a, :]).sum(-1), spurious], -1)


def _as_seen(g: Tensor, observed: Tensor, share: Tensor, i: int) -> Tensor:
    """E[g | a = i], which no hidden cause can move."""
    return ((g[..., i, :, :] * observed[..., i, :, :]).sum(-1) * share[..., i, :]).sum(-1)


def limits(pi: Tensor, gamma: float | Tensor, conditional: bool = False) -> tuple[Tensor, Tensor]:
    """Least and greatest P(m | do(i), z) / P(m | i, z) at strength gamma [..., 2, 2, K], from pi = P(a = 1 | z) [..., K].

    `conditional` asks for the units whose own value is a: nothing is hidden where a = i, and elsewhere the ratio is that of
    P(u | z, a) to P(u | z, i), at most gamma either way.
    """
    own = torch.stack([1 - pi, pi], -2)
    gamma = torch.as_tensor(gamma, dtype=pi.dtype, device=pi.device)[..., None, None]
    if not conditional:
        return tuple(side.unsqueeze(-3).expand(*own.shape[:-2], 2, *own.shape[-2:]) for side in ratio_limits(own, gamma))
    same = torch.eye(2, dtype=torch.bool, device=pi.device)[..., None]
    return tuple(torch.where(same, torch.ones_like(own)[..., None, :, :], side[..., None]) for side in (1 / gamma, gamma))


def bounds(g: Tensor, observed: Tensor, low: Tensor, high: Tensor, share: Tensor, i: int = 0, j: int = 1, a: int = 0,
           spread: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The least and the greatest [..., 3] that the effects may be while each ratio lies in [low, high] of `limits`.

    Each law is shifted for itself, one up and the other down where an effect is a difference of two: never too narrow, and
    for IE perhaps too wide. `spread` = (g-, g+) replaces g where g is an outcome that is confounded as well.
    """
    less, more = spread or (g, g)
    most = torch.stack([more[..., j, :, :] - less[..., i, :, :], *[more[..., i, :, :]] * 3], -3)
    least = torch.stack([less[..., j, :, :] - more[..., i, :, :], *[less[..., i, :, :]] * 3], -3)
    law = torch.stack([observed[..., k, :, :] for k in (i, j, i, i)], -3)
    sides = [torch.stack([side[..., a, i, :], side[..., a, j, :], side[..., a, i, :], side[..., j, i, :]], -2) for side in (low, high)]
    up, down = highest(most, law, *sides), -highest(-least, law, *sides)
    seen, near, far = _as_seen(g, observed, share, i), share[..., None, a, :], share[..., j, :]

    def three(one: Tensor, other: Tensor) -> Tensor:
        mean = (torch.stack([one[..., 0, :], one[..., 1, :] - other[..., 2, :]], -2) * near).sum(-1)
        return torch.cat([mean, ((one[..., 3, :] * far).sum(-1) - seen)[..., None]], -1)

    return three(down, up), three(up, down)


def highest(values: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The greatest mean of `values` [..., d] over the laws between low q and high q."""
    values, q, low, high = _alike(values, q, low, high)
    return (worst_case(values, q, low, high) * values).sum(-1)


def _alike(values: Tensor, q: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    values, q, low, high = torch.broadcast_tensors(values, q, low[..., None], high[..., None])
    return values, q, low[..., 0], high[..., 0]


def outcome_limits(g: Tensor, pi: Tensor, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    """P- and P+ of a binary outcome whose link to a is confounded [..., 2, K, d]: P+ = min(q w_hi, 1 - (1 - q) w_lo)."""
    low, high = (side[..., None] for side in ratio_limits(torch.stack([1 - pi, pi], -2), gamma))
    return torch.maximum(g * low, 1 - (1 - g) * high), torch.minimum(g * high, 1 - (1 - g) * low)


def largest(low: Tensor, high: Tensor) -> Tensor:
    """max(|E-|, |E+|) of each effect."""
    return torch.maximum(low.abs(), high.abs())


def level(gamma: float, factor: Tensor) -> Tensor:
    """The strength of one world: gamma times the world's factor, at least 1; gamma = 1 is no confounding in any world."""
    return (gamma * factor).clamp(min=1) if gamma > 1 else torch.ones_like(factor)
