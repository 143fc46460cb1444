"""Gradients in the input and projected gradient descent, for inputs in [0, 1], as pure functions of a loss and of the inputs.

x [..., D] are flattened inputs with any axes in front (images, seeds, arms); `loss` maps them to the loss of each, [...], and
must not mix them. An attack raises the loss inside the ball of radius `eps` (norm "inf": every entry; "2": Euclidean length)
around x and inside [0, 1]. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """m = log sum_{j != y} exp f_j - f_y: the log-odds against the label. logits [..., C], y [...] -> [...].

    Cross-entropy is log(1 + exp m), so both rise and fall together and their gradients have one direction; but where the
    network is very sure the gradient of cross-entropy rounds to zero, which would pass for robustness, and that of m does not.
    """
    right = logits.gather(-1, y.unsqueeze(-1))
    return logits.scatter(-1, y.unsqueeze(-1), -torch.inf).logsumexp(-1) - right.squeeze(-1)


def slope(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each input, [...], and its gradient, [..., D]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = loss(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def steepest(gradient: Tensor, norm: str = "inf") -> Tensor:
    """The step of norm 1 that raises a linear function most: its sign, or its direction (zero for none). [..., D]"""
    if norm == "inf":
        return gradient.sign()
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def inside(moved: Tensor, x: Tensor, eps: float | Tensor, norm: str = "inf") -> Tensor:
    """`moved` brought back into the ball around x and then into [0, 1], which does not leave the ball. [..., D]

    `eps` is one radius, or one for each input, [..., 1].
    """
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


def pgd(loss: Callable[[Tensor], Tensor], x: Tensor, eps: float, norm: str = "inf", steps: int = 40,
        start: Tensor | None = None, step: float = 1 / 8) -> Tensor:  # fmt: skip
    """Steps of `step` times eps, each brought back into the ball; of all points on the way the one of the largest loss.

    `start` (default x itself) is where it begins; restarts are further calls. Source: Madry et al. 2018, equation 4.
    """
    here = x if start is None else start
    value, gradient = slope(loss, here)
    best, found = value, here
    for _ in range(steps):
        here = inside(here + eps * step * steepest(gradient, norm), x, eps, norm)
        value, gradient = slope(loss, here)
        found = torch.where((value > best).unsqueeze(-1), here, found)
        best = torch.maximum(best, value)
    return found
