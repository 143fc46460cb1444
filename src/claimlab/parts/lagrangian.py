"""Training under a constraint c <= 0 by the augmented Lagrangian (Nocedal, Wright, Numerical Optimization, ch. 17)."""

from __future__ import annotations

from torch import Tensor


def penalty(c: Tensor, multiplier: Tensor, mu: Tensor | float) -> Tensor:
    """What is added to the loss: lambda c + mu / 2 max(0, c)^2, elementwise; c is the excess over what is allowed."""
    return multiplier * c + mu / 2 * c.clamp(min=0) ** 2


def raised(c: Tensor, multiplier: Tensor, mu: Tensor | float) -> Tensor:
    """The multiplier of the next round: max(0, lambda + mu c), elementwise."""
    return (multiplier + mu * c).clamp(min=0)
