"""A small residual network, several copies side by side: each copy has weights of its own, all start alike and see one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, pad

from claimlab.studies.training import _norm_loss_method as rule

LAYERS = ("conv 1", "block 1 a", "block 1 b", "block 2 a", "block 2 b", "block 3 a", "block 3 b", "linear")


class ResNet(nn.Module):
    """conv - three residual blocks (conv, batch norm, ReLU; the second one halves the picture) - mean - linear.

    x [B, C, H, W] -> logits [B, K, classes] for K copies. In training batch norm takes the statistics of the batch. With
    `seen` > 0 it takes those of the first `seen` images: put training images there, and no answer depends on its neighbours.
    `spheres` holds the weights as length times direction (weight normalisation, Salimans and Kingma 2016).
    """

    def __init__(self, channels: int, classes: int, width: int, copies: int, spheres: bool = False, eps: float = 1e-5):
        super().__init__()
        widths = (width, width, width, 2 * width, 2 * width, 2 * width, 2 * width)
        shapes = [(out, inside, 3, 3) for inside, out in zip((channels, *widths), widths, strict=False)]
        shapes.append((classes, 2 * width))
        drawn = [torch.randn(s) * math.sqrt(2 / math.prod(s[1:])) for s in shapes]
        self.copies, self.eps = copies, eps
        self.weights = nn.ParameterList(w.expand(copies, *w.shape).clone() for w in drawn)
        norms = [rule.row_norms(w, w.dim() - 2) for w in self.weights]
        self.lengths = nn.ParameterList([n.clone() for n in norms] if spheres else [])
        self.gains = nn.ParameterList(torch.ones(copies, w) for w in widths)
        self.shifts = nn.ParameterList(torch.zeros(copies, w) for w in (*widths, classes))

    def weight(self, i: int) -> Tensor:
        """The weight tensor of layer i as it acts: [K, out, in, 3, 3], the last one [K, classes, in]."""
        w = self.weights[i]
        return self.lengths[i] * rule.to_sphere(w, w.dim() - 2) if len(self.lengths) else w

    def forward(self, x: Tensor, seen: int = 0) -> Tensor:
        x = self.layer(0, x.repeat(1, self.copies, 1, 1), 1, seen).relu()
        for first, stride in ((1, 1), (3, 2), (5, 1)):
            inner = self.layer(first, x, stride, seen).relu()
            x = (self.layer(first + 1, inner, 1, seen) + self.shortcut(x, stride)).relu()
        features = x.mean((2, 3)).unflatten(1, (self.copies, -1))
        return (self.weight(7) @ features.unsqueeze(-1)).squeeze(-1) + self.shifts[7]

    def layer(self, i: int, x: Tensor, stride: int, seen: int) -> Tensor:
        x = conv2d(x, self.weight(i).flatten(0, 1), stride=stride, padding=1, groups=self.copies)
        gain, shift = self.gains[i].flatten(), self.shifts[i].flatten()
        if not seen:
            return batch_norm(x, None, None, gain, shift, training=True, eps=self.eps)
        var, mean = torch.var_mean(x[:seen].detach(), (0, 2, 3), correction=0)
        return batch_norm(x, mean, var, gain, shift, eps=self.eps)

    def shortcut(self, x: Tensor, stride: int) -> Tensor:
        """The picture as it is; where it is halved, every second pixel and as many empty channels again."""
        if stride == 1:
            return x
        every = x[..., ::2, ::2].unflatten(1, (self.copies, -1))
        return pad(every, (0, 0, 0, 0, 0, every.shape[2])).flatten(1, 2)
