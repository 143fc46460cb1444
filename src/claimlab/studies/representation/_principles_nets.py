"""R fully connected networks side by side, started by the theory's law or by torch's, with or without skip connections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from claimlab.studies.representation._principles_method import ACTIVATIONS, empirical_tangent, kernels


class Networks(nn.Module):
    """`draws` networks of `depth` layers of weights: [B, n_0] or [R, B, n_0] -> [R, B, classes].

    z^1 = W x + b, then z' = gamma z + W s(z) + b in layers of equal width, z' = W s(z) + b at the end. With a law (C_b, C_W)
    weights are N(0, C_W / inputs), those of the first layer N(0, 1 / n_0), those beside a skip connection N(0, C_W (1 - gamma^2)
    / n), biases N(0, C_b); without one they are uniform within 1 / sqrt(inputs), as nn.Linear has it. `probe` [P, n_0] are
    inputs to look at; `norm` puts a layer norm before every activation.
    """

    def __init__(self, sizes: tuple[int, int, int], depth: int, draws: int, law: tuple[float, float] | None, probe: Tensor, *,
                 gamma: float = 0.0, activation: str = "relu", norm: bool = False):  # fmt: skip
        super().__init__()
        inputs, width, classes = sizes
        self.law, self.gamma, self.activation, self.depth = law, gamma, activation, depth
        c_w = law[1] if law else 1 / 3
        inner = (width, width, c_w * (1 - gamma**2))
        shapes = {"first": (inputs, width, 1.0 if law else c_w)} if depth > 1 else {}
        self.last, self.last_bias = self._layer((), draws, width if depth > 1 else inputs, classes, c_w if depth > 1 else 1.0)
        if shapes:
            self.first, self.first_bias = self._layer((), draws, *shapes["first"])
        if depth > 2:
            self.hidden, self.hidden_bias = self._layer((depth - 2,), draws, *inner)
        if norm and depth > 1:
            self.gain = nn.Parameter(torch.ones(depth - 1, draws, 1, width))
            self.offset = nn.Parameter(torch.zeros(depth - 1, draws, 1, width))
        self.norm = norm
        self.register_buffer("probe", probe)

    def _layer(self, count: tuple[int, ...], draws: int, inputs: int, outputs: int, variance: float):
        shape, bias = (*count, draws, inputs, outputs), (*count, draws, 1, outputs)
        if self.law is None:
            edge = inputs**-0.5
            return nn.Parameter(torch.empty(shape).uniform_(-edge, edge)), nn.Parameter(torch.empty(bias).uniform_(-edge, edge))
        return nn.Parameter(torch.randn(shape) * math.sqrt(variance / inputs)), nn.Parameter(
            torch.randn(bias) * self.law[0] ** 0.5
        )

    def layers(self, x: Tensor) -> list[Tensor]:
        """The preactivations z^1, ..., z^L, each [R, B, units]."""
        act, found = ACTIVATIONS[self.activation], []
        if self.depth > 1:
            found.append(x @ self.first + self.first_bias)
            hidden = zip(self.hidden.unbind(0), self.hidden_bias.unbind(0), strict=True) if self.depth > 2 else ()
            for weight, bias in hidden:
                z = act(self._normed(found)) @ weight + bias
                found.append(z + self.gamma * found[-1] if self.gamma else z)
            x = act(self._normed(found))
        return [*found, x @ self.last + self.last_bias]

    def _normed(self, found: list[Tensor]) -> Tensor:
        if not self.norm:
            return found[-1]
        i = len(found) - 1
        return layer_norm(found[-1], found[-1].shape[-1:]) * self.gain[i] + self.offset[i]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[-1]

    def theory(self) -> list[float]:
        """K^1, ..., K^L at the start, of networks of infinite width with this law and inputs of mean square 1."""
        n = (self.first if self.depth > 1 else self.last).shape[-1]
        c_b, c_w = self.law or (1 / (3 * n), 1 / 3)
        if self.norm:  # every layer gets inputs of mean square 1
            k = c_b + c_w * float(kernels(self.activation, 0.0, 1.0, 2, 1.0)[1])
            return [1 / (3 * self.probe.shape[-1]) + c_w, *[k] * (self.depth - 1)]
        first = c_b + 1.0 if self.law else 1 / (3 * self.probe.shape[-1]) + c_w
        if self.depth == 1:
            return [first]
        inner = kernels(self.activation, c_b, c_w * (1 - self.gamma**2), self.depth - 1, first, self.gamma)
        return [*inner.tolist(), float(kernels(self.activation, c_b, c_w, 2, inner[-1])[1])]

    def tangent(self, inputs: int = 12) -> Tensor:
        """The empirical tangent kernel of the first output on the first probe inputs: [R, P, P]."""
        weights = {name: w.detach() for name, w in self.named_parameters()}

        def answer(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self, weights, (x,))[:, 0, 0]

        return empirical_tangent(answer, weights, self.probe[:inputs])
