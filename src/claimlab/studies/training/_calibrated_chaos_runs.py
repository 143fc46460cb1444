"""R networks of one recipe side by side, as one module: their answers, and how far nudged ones are from the original."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.studies.training._calibrated_chaos_data import Split


class Runs(nn.Module):
    """R perceptrons as one program: weights [R, out, in], biases [R, out, 1], activations in columns [R, units, B], which a
    processor multiplies and normalises faster than rows. Training rows and test set ride along as buffers, so that a member
    can be looked at by itself."""

    def __init__(self, weights: list[Tensor], data: Split):
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(torch.zeros(*w.shape[:2], 1) for w in weights)
        for name, part in zip(("x", "y", "test_x", "test_y"), (data.x, data.y, *data.test), strict=True):
            self.register_buffer(name, part)
        self.register_buffer("trace", torch.full((64, 2), math.nan))  # distances of nudged twins, a row a tick

    def forward(self, x: Tensor) -> Tensor:
        """Rows [R, B, D], or [N, D] for all runs, to logits in columns [R, C, B]."""
        h = x.expand(len(self.weights[0]), -1, -1).mT
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, weight, h)
            h = h.relu() if i < len(self.weights) - 1 else h
        return h

    @torch.no_grad()
    def votes(self, x: Tensor) -> Tensor:
        """The answer of each run to each row: [R, N]."""
        return torch.cat([self(part).max(1).indices for part in x.split(200)], 1)  # small parts stay in the cache

    def right(self) -> np.ndarray:
        """The matrix c [R, n] on the test set."""
        return (self.votes(self.test_x) == self.test_y).double().cpu().numpy()


class ConvRuns(Runs):
    """The same with a convolution in front: 3 x 3, its largest answer in each 2 x 2 square, then one dense layer."""

    def forward(self, x: Tensor) -> Tensor:
        runs, side = len(self.weights[0]), round(x.shape[-1] ** 0.5)
        x = x.expand(runs, -1, -1).unflatten(2, (side, side))
        patches = x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # [R, B, side - 2, side - 2, 9]
        even = (side - 2) // 2
        patches = patches[:, :, : 2 * even, : 2 * even]
        maps = torch.baddbmm(self.biases[0], self.weights[0], patches.flatten(1, 3).mT)  # [R, channels, B * places]
        maps = maps.unflatten(2, (x.shape[1], even, 2, even, 2)).amax((4, 6)).relu()  # [R, channels, B, even, even]
        return torch.baddbmm(self.biases[1], self.weights[1], maps.transpose(1, 2).flatten(2).mT)


@torch.no_grad()
def distances(net: Runs) -> tuple[float, float]:
    """Median over the other runs of their distance from run 0: in weights |w_r - w_0| / |w_0|, and in predictions, the root
    mean square difference of the class probabilities on the test set."""
    flat = torch.cat([w.flatten(1) for w in (*net.weights, *net.biases)], 1).double()
    weights = (flat[1:] - flat[0]).norm(dim=1) / flat[0].norm()
    parts = [net(part).softmax(1) for part in net.test_x.split(200)]
    square = sum((chance[1:] - chance[0]).square().sum((1, 2)) for chance in parts)
    return float(weights.median()), float((square / len(net.test_x) / parts[0].shape[1]).sqrt().median())
