"""What a regulariser adds to loss and gradient of a weight tensor, one row an output unit, and what one step of it costs.

w has the shape [..., out, *fan_in]; `dims` is the number of axes of one row: 3 for a convolution, 1 for a linear layer.
Penalties are summed over output units, not averaged; leading axes stay. All functions but those of the timer are pure.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LEAST = 1e-8  # shortest row that 1 / ||w|| is taken of


def row_norms(w: Tensor, dims: int) -> Tensor:
    """||w_c||_2 of each output unit [..., out, 1, ...]: the axes of the row are kept with length 1."""
    return torch.linalg.vector_norm(w, dim=tuple(range(-dims, 0)), keepdim=True)


def norm_loss(w: Tensor, dims: int, target: float = 1.0) -> Tensor:
    """NL = sum over output units c of (target - ||w_c||)^2; the paper's target is 1. [..., out, *fan_in] -> [...]"""
    return (target - row_norms(w, dims)).square().flatten(-1 - dims).sum(-1)


def norm_loss_gradient(w: Tensor, dims: int, target: float = 1.0) -> Tensor:
    """d NL / d w_c = 2 (1 - target / ||w_c||) w_c: weight decay that turns round where the row is shorter than `target`.

    ||w_c|| is clipped at 1e-8 from below, so that a row of zeros stays where it is.
    """
    return 2 * (1 - target / row_norms(w, dims).clamp_min(LEAST)) * w


def weight_decay(w: Tensor, dims: int, target: float = 1.0) -> Tensor:
    """||w||^2, gradient 2 w: the scale of norm loss. torch's `weight_decay` is the gradient's factor, so 2 lambda there."""
    return w.square().flatten(-1 - dims).sum(-1)


def soft_orthogonal(w: Tensor, dims: int, target: float = 1.0) -> Tensor:
    """||W W^T - I||_F^2 with W [out, fan_in]: rows of unit norm, and at right angles to each other as well."""
    rows = w.flatten(-dims)
    return (rows @ rows.mT - torch.eye(rows.shape[-2], dtype=w.dtype, device=w.device)).square().sum((-2, -1))


def to_sphere(w: Tensor, dims: int) -> Tensor:
    """Every row divided by its norm: the nearest point with rows of unit norm (the oblique manifold). A row of zeros stays."""
    return w / row_norms(w, dims).clamp_min(LEAST)


# ---- what a step costs


def add_gradients(weights: list[Tensor], coefficient: float, target: float) -> None:
    """Add coefficient * d NL / d w to the gradient that each tensor [K, out, *fan_in] holds, in place: before the optimiser."""
    turn = [row_norms(w, w.dim() - 2) for w in weights]
    torch._foreach_clamp_min_(turn, LEAST)
    torch._foreach_reciprocal_(turn)
    torch._foreach_mul_(turn, -target)
    torch._foreach_add_(turn, 1.0)
    torch._foreach_addcmul_([w.grad for w in weights], weights, turn, value=2 * coefficient)


class Step:
    """One step of SGD on a copy of `net`; weight decay is the optimiser's built-in one, norm loss the closed form."""

    def __init__(self, net: nn.Module, lr: float, coefficient: float, target: float | None = None):
        self.net = copy.deepcopy(net).train()
        self.weights, self.coefficient, self.target = list(self.net.weights), coefficient, target
        held = {id(w) for w in self.weights}
        rest = [p for p in self.net.parameters() if id(p) not in held]
        decay = 2 * coefficient if target is None else 0.0
        groups = [{"params": self.weights, "weight_decay": decay}, {"params": rest}]
        self.optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True, fused=True)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """Processor seconds of one step on x [B, C, H, W], y [B]; other work on the machine does not count."""
        began = time.thread_time()
        self.optimizer.zero_grad()
        cross_entropy(self.net(x).squeeze(1), y).backward()
        if self.target is not None:
            with torch.no_grad():
                add_gradients(self.weights, self.coefficient, self.target)
        self.optimizer.step()
        return time.thread_time() - began


def cost_ratio(net: nn.Module, batch: tuple[Tensor, Tensor], lr: float, coefficient: float, target: float, pairs: int) -> float:
    """Median time of `pairs` steps of norm loss over that of weight decay, in turn, after 5 of each to warm up."""
    steps = {"ours": Step(net, lr, coefficient, target), "theirs": Step(net, lr, coefficient)}
    seconds = {name: [] for name in steps}
    with torch.enable_grad():
        for k in range(pairs + 5):
            for name in sorted(steps, reverse=k % 2 == 1):  # each goes first every other time
                seconds[name].append(steps[name](*batch))
    return statistics.median(seconds["ours"][5:]) / statistics.median(seconds["theirs"][5:])
