"""Attacks on inputs in [0, 1] as pure functions of a loss and of the inputs: FGSM, PGD, momentum iterative, Square.

x [..., D] are flattened inputs with any axes in front (images, seeds, arms); `loss` maps them to the loss of each, [...], and
must not mix them. An attack raises the loss inside the ball of radius `eps` (norm "inf": every entry; "2": Euclidean length)
around x and inside [0, 1]. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """m = log sum_{j != y} exp f_j - f_y: the log-odds against the label. logits [..., C], y [...] -> [...].

    Cross-entropy is log(1 + exp m), so both rise and fall together and their gradients have one direction; but where the
    network is very sure the gradient of cross-entropy rounds to zero, which would pass for robustness, and that of m does not.
    """
    right = logits.gather(-1, y.unsqueeze(-1))
    return logits.scatter(-1, y.unsqueeze(-1), -torch.inf).logsumexp(-1) - right.squeeze(-1)


def slope(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each input, [...], and its gradient, [..., D]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = loss(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def steepest(gradient: Tensor, norm: str = "inf") -> Tensor:
    """The step of norm 1 that raises a linear function most: its sign, or its direction. [..., D]"""
    if norm == "inf":
        return gradient.sign()
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def inside(moved: Tensor, x: Tensor, eps: float, norm: str = "inf") -> Tensor:
    """`moved` brought back into the ball around x and then into [0, 1], which does not leave the ball. [..., D]"""
    away = moved - x
    if norm == "inf":
        return (x + away.clamp(-eps, eps)).clamp(0, 1)
    return (x + away * (eps / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp(max=1)).clamp(0, 1)


def random_start(x: Tensor, eps: float, rng: torch.Generator, norm: str = "inf") -> Tensor:
    """A point drawn uniformly from the ball around each x, clipped to [0, 1]. [..., D]"""
    if norm == "inf":
        away = eps * (2 * torch.rand(x.shape, generator=rng) - 1)
    else:
        away = eps * steepest(torch.randn(x.shape, generator=rng), "2")
        away = away * torch.rand(*x.shape[:-1], 1, generator=rng) ** (1 / x.shape[-1])
    return (x + away.to(x)).clamp(0, 1)


def fgsm(loss: Loss, x: Tensor, eps: float, norm: str = "inf") -> Tensor:
    """One step of full length along the gradient. Source: Goodfellow, Shlens, Szegedy 2015."""
    return inside(x + eps * steepest(slope(loss, x)[1], norm), x, eps, norm)


def pgd(loss: Loss, x: Tensor, eps: float, norm: str = "inf", steps: int = 40, start: Tensor | None = None) -> Tensor:
    """Steps of eps / 8, each brought back into the ball; of all points on the way the one of the largest loss.

    `start` (default x itself) is where it begins; restarts are further calls. Source: Madry et al. 2018, equation 4.
    """
    here = x if start is None else start
    value, gradient = slope(loss, here)
    best, found = value, here
    for _ in range(steps):
        here = inside(here + eps / 8 * steepest(gradient, norm), x, eps, norm)
        value, gradient = slope(loss, here)
        found = torch.where((value > best).unsqueeze(-1), here, found)
        best = torch.maximum(best, value)
    return found


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
