"""Parity, attention that looks at positions alone, the zig-zag read-out, and their networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# ---- parity: bits are -1 or +1; an input is a row [n]


def parity(x: Tensor, secret: Tensor) -> Tensor:
    """y = product over i in the secret of x_i. x [..., n], secret [k] positions -> [...]."""
    return x[..., secret].prod(-1)


# ---- attention on positions


def positions(n: int) -> Tensor:
    """p_j = (cos(2 pi j / n), sin(2 pi j / n)): n places on a circle, none of them learned, [n, 2] float64."""
    turn = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([turn.cos(), turn.sin()], 1)


class Attention(nn.Module):
    """Heads that choose by position alone: alpha_i = softmax_j(tau <a_i, p_j>), v_i = sum_j alpha_ij x_j.

    `query` a [h, d] may be trained; `codes` p [n, d] are fixed. One-hot codes (d = n) give one free score a head and position.
    """

    def __init__(self, query: Tensor, codes: Tensor, trained: bool = True):
        super().__init__()
        self.query = nn.Parameter(query, requires_grad=trained)
        self.register_buffer("codes", codes.to(query.dtype))

    def weights(self, tau: Tensor | float) -> Tensor:
        """alpha [h, n]; each row sums to 1."""
        return (tau * (self.query @ self.codes.T)).softmax(-1)

    def forward(self, x: Tensor, tau: Tensor | float) -> Tensor:
        """What the heads see: bits x [B, n] -> v [B, h]."""
        return x @ self.weights(tau).T


# ---- read-outs


class Hidden(nn.Module):
    """One hidden layer, f(x) = offset + sum_q out_q relu(<w_q, x> + bias_q): [B, inputs] -> [B]; width (inputs + 2) + 1 numbers."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        near, far = inputs**-0.5, width**-0.5  # torch's default law for linear layers
        self.weight = nn.Parameter(torch.empty(inputs, width).uniform_(-near, near))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-near, near))
        self.out = nn.Parameter(torch.empty(width).uniform_(-far, far))
        self.offset = nn.Parameter(torch.empty(()).uniform_(-far, far))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias).relu() @ self.out + self.offset


def zigzag(h: int) -> Hidden:
    """The parity of h bits from their sum s: f(-h), f(-h + 2), ..., f(h) = (-1)^h, ..., -1, +1, straight in between.

    The slope changes by d_0, ..., d_h at the h + 1 possible sums; f = mean of the wave built from the left, with
    relu(s - b), and from the right, with relu(b - s): 2 h + 2 units, flat outside [-h, h].
    """
    net = Hidden(1, 2 * h + 2)
    bends = torch.arange(-h, h + 1, 2.0)
    slopes = torch.cat([torch.zeros(1), (-1.0) ** (torch.arange(h) + h + 1), torch.zeros(1)])
    change, side = slopes.diff() / 2, torch.ones(h + 1)
    with torch.no_grad():
        net.weight.copy_(torch.cat([side, -side])[None])
        net.bias.copy_(torch.cat([-bends, bends]))
        net.out.copy_(change.repeat(2))
        net.offset.fill_(((-1) ** h + 1) / 2)
    return net


class Network(nn.Module):
    """Heads, if any, then a read-out of their vector v [B, h] or of their sum; without heads of the bits themselves.

    `secret` [k] holds the places of the bits that decide (empty where nobody knows them); the answer does not use it.
    """

    def __init__(self, secret: Tensor, readout: Hidden, attention: Attention | None = None, *, add: bool = False):
        super().__init__()
        self.attention, self.readout, self.add = attention, readout, add
        self.register_buffer("secret", secret)

    def forward(self, x: Tensor, tau: Tensor | float) -> Tensor:
        """f(x) [B] for bits x [B, n] at sharpness tau; the answer is its sign."""
        seen = x if self.attention is None else self.attention(x, tau)
        return self.readout(seen.sum(-1, keepdim=True) if self.add else seen)


def count(net: nn.Module) -> int:
    """Numbers that a network may learn."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def found(net: Network, tau: float) -> Tensor:
    """Share of the secret places that some head gives more than half of its attention."""
    return (net.attention.weights(tau)[:, net.secret] > 0.5).any(0).float().mean()


def pruned(readout: Hidden, share: float) -> tuple[Hidden, int]:
    """A copy without the first-layer weights below `share` of the largest, and the number of parameters that are left.

    A neuron that keeps no weight is a constant and goes into the offset; the others count their weights, bias and output.
    """
    import copy

    small = copy.deepcopy(readout)
    with torch.no_grad():
        small.weight *= small.weight.abs() >= share * small.weight.abs().max()
        kept = small.weight != 0
        alive = kept.any(0)
        small.offset += (small.bias.relu() * small.out)[~alive].sum()
        small.out *= alive
    return small, int(kept.sum()) + 2 * int(alive.sum()) + 1
