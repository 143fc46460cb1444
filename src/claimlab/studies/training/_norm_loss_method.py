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
    for w in weights:
        turn = target / torch.linalg.vector_norm(w, dim=tuple(range(2, w.dim())), keepdim=True).clamp_min_(LEAST)
        w.grad.addcmul_(w, turn.neg_().add_(1), value=2 * coefficient)


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
        """Seconds of one step on x [B, C, H, W], y [B]."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        cross_entropy(self.net(x).squeeze(1), y).backward()
        if self.target is not None:
            with torch.no_grad():
                add_gradients(self.weights, self.coefficient, self.target)
        self.optimizer.step()
        return time.perf_counter() - began


def cost_ratio(net: nn.Module, batch: tuple[Tensor, Tensor], lr: float, coefficient: float, target: float, pairs: int) -> float:
    """Median seconds of `pairs` steps of norm loss over those of weight decay, in turn, after 5 of each to warm up."""
    steps = Step(net, lr, coefficient, target), Step(net, lr, coefficient)
    with torch.enable_grad():
        seconds = [[step(*batch) for step in steps] for _ in range(pairs + 5)][5:]
    ours, theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
    return ours / theirs
