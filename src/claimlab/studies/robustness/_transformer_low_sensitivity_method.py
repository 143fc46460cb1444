"""Token-wise sensitivity and what is done with it. F answers tokens x [N, T, ...] (patches or words) with logits [N, C]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from claimlab.parts.boolean import every_input, sensitivity, walsh


def one_changed(x: Tensor, other: Tensor) -> Tensor:
    """x^(i) for every position i: x with token i alone taken from `other`. x, other [N, T, ...] -> [T, N, T, ...]."""
    here = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return torch.where(here.view(len(here), 1, len(here), *[1] * (x.dim() - 2)), other, x)


def answers(net: Callable[[Tensor], Tensor], x: Tensor, rows: int = 256) -> Tensor:
    """Logits of many inputs, `rows` at a time, so that a network's work stays in the cache."""
    return torch.cat([net(part) for part in x.split(rows)])


def token_sensitivity(net: Callable[[Tensor], Tensor], x: Tensor, others: Tensor) -> Tensor:
    """Mean over inputs and draws of 1[argmax F(x) differs from argmax F(x^(i))], for each position i: [T].

    others [draws, N, T, ...]: what token i becomes. Measured against the network's own answer, right or wrong.
    """
    own = answers(net, x).argmax(-1)
    turned = [answers(net, one_changed(x, other).flatten(0, 1)).argmax(-1).view(-1, len(x)) != own for other in others]
    return torch.stack(turned).float().mean((0, 2))


def penalty(net: Callable[[Tensor], Tensor], x: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """F(x) [B, C] and mean over the batch of ||F(x) - F(x~)||^2; x~ has all tokens disturbed. One forward pass for both."""
    clean, other = net(torch.cat([x, noisy])).chunk(2)
    return clean, (clean - other).square().sum(-1).mean()


def at_match(low: Tensor, high: Tensor, match: float) -> Tensor:
    """Sensitivity at training accuracy `match`, on the line between two ticks (accuracy, sensitivity) below and not below it."""
    return low[1] + (match - low[0]) / (high[0] - low[0]) * (high[1] - low[1])


def loss_rise(net: nn.Module, x: Tensor, y: Tensor, size: float, rng: torch.Generator, draws: int = 3) -> Tensor:
    """Flatness: mean rise of the loss when every weight tensor w is moved by `size` of its root mean square times N(0, 1)."""

    def moved(w: Tensor) -> Tensor:
        return w + size * w.square().mean().sqrt() * torch.randn(w.shape, generator=rng).to(w.device)

    weights = dict(net.named_parameters())
    losses = [cross_entropy(functional_call(net, {n: moved(w) for n, w in weights.items()}, (x,)), y) for _ in range(draws)]
    return torch.stack(losses).mean() - cross_entropy(net(x), y)


def share_right(logits: Tensor, y: Tensor) -> Tensor:
    """Share of rows [N, C] whose largest logit is that of the label y [N]."""
    return (logits.argmax(-1) == y).float().mean()


def share(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Share of inputs x that get the label y [N]."""
    return share_right(answers(net, x), y)


# ---- Boolean functions: the same idea where everything can be counted


def by_degree(f: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Of the +-1 valued function 1[f(x) > 0] on all 2^n inputs: W_k = sum over |A| = k of fhat(A)^2 [n + 1], and its sensitivity.

    S(f) = sum_i P(flipping bit i changes f) = sum_k k W_k: the two answers say the same thing twice.
    """
    x = every_input(n)
    weight = walsh((f(x) > 0).double() * 2 - 1).square()
    degree = (x < 0).sum(1)  # the coefficient of A stands in the row whose bits in A are -1
    return torch.zeros(n + 1, dtype=torch.float64).index_add(0, degree, weight), sensitivity(f, x).sum()
