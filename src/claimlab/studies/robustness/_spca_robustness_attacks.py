"""Attacks on inputs in [0, 1] as pure functions of a loss and of the inputs: FGSM, PGD, momentum iterative, Square.

x [..., D] are flattened inputs with any axes in front (images, seeds, arms); `loss` maps them to the loss of each, [...], and
must not mix them. An attack raises the loss inside the ball of radius `eps` (norm "inf": every entry; "2": Euclidean length)
around x and inside [0, 1]. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from claimlab.parts.adversarial import inside, log_odds, pgd, random_start, slope, steepest

Loss = Callable[[Tensor], Tensor]
__all__ = ["fgsm", "inside", "log_odds", "momentum", "pgd", "random_start", "slope", "square", "square_share", "steepest"]


def fgsm(loss: Loss, x: Tensor, eps: float, norm: str = "inf") -> Tensor:
    """One step of full length along the gradient. Source: Goodfellow, Shlens, Szegedy 2015."""
    return inside(x + eps * steepest(slope(loss, x)[1], norm), x, eps, norm)


def momentum(loss: Loss, x: Tensor, eps: float, norm: str = "inf", steps: int = 10, mu: float = 1.0) -> Tensor:
    """Steps of eps / steps along g = mu g + gradient / |gradient|_1. Source: Dong et al. 2018, algorithm 1."""
    here, g = x, torch.zeros_like(x)
    for _ in range(steps):
        gradient = slope(loss, here)[1]
        g = mu * g + gradient / gradient.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        here = inside(here + eps / steps * steepest(g, norm), x, eps, norm)
    return here


def square_share(query: int, queries: int, start: float = 0.8) -> float:
    """Share of the pixels that the square covers at a query: halved at fixed places of a schedule of 10,000 queries."""
    place = query * 10_000 // max(queries, 1)
    return start / 2 ** sum(place > border for border in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def square(loss: Loss, x: Tensor, eps: float, queries: int, rng: torch.Generator, start: float = 0.8) -> Tensor:
    """Random search without gradients in the L-infinity ball: grey square images x [N, side * side].

    It begins with vertical stripes of +-eps; each query sets one square window to x + eps or x - eps and keeps the change
    where the loss rises. Source: Andriushchenko et al. 2020, algorithms 1 and 2.
    """
    n, side = len(x), round(x.shape[-1] ** 0.5)
    if side * side != x.shape[-1]:
        raise ValueError(f"the Square attack needs square grey images; {x.shape[-1]} numbers an image are no square")
    image, line = x.view(n, side, side), torch.arange(side, device=x.device)

    def drawn(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=rng).to(x.device)

    with torch.no_grad():
        found = (image + eps * (2 * drawn(2, n, 1, side) - 1)).clamp(0, 1)
        best = loss(found.flatten(1))
        for query in range(1, queries):
            width = min(max(round((square_share(query, queries, start) * side * side) ** 0.5), 1), side - 1)
            top, left, sign = drawn(side - width + 1, n, 1), drawn(side - width + 1, n, 1), 2 * drawn(2, n, 1, 1) - 1
            rows, columns = (line >= top) & (line < top + width), (line >= left) & (line < left + width)
            window = rows[:, :, None] & columns[:, None, :]
            tried = torch.where(window, (image + eps * sign).clamp(0, 1), found)
            idle = (tried == found).flatten(1).all(1)[:, None, None]  # a query that asks nothing new: take the other sign
            tried = torch.where(idle & window, (image - eps * sign).clamp(0, 1), tried)
            value = loss(tried.flatten(1))
            found = torch.where((value > best)[:, None, None], tried, found)
            best = torch.maximum(best, value)
    return found.flatten(1)
