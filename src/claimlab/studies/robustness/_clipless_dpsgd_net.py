"""The networks of the study `clipless-dpsgd`: dense or with small convolutions, as a tuple of steps over a list of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from claimlab.studies.robustness._clipless_dpsgd_method import Linear, Residual, flat, forward, l2_pool


def plan(network: str, depth: int, width: int, shape: tuple[int, ...], classes: int, activation) -> tuple[tuple, list[tuple[int, int]]]:
    """Steps of a network of `depth` linear layers on inputs of `shape`, and the shapes [out, in] of its weights."""
    if network == "conv" and len(shape) < 3:
        raise ValueError(f"network = conv needs images of H x W pixels; these rows have the shape {shape}")
    if network == "dense":
        sizes = [math.prod(shape), *[width, *[width // 2] * depth][: depth - 1], classes]
        steps = [flat, Linear(0)]
        for k in range(1, depth):
            steps += [activation, Linear(k)]
        return tuple(steps), [(b, a) for a, b in zip(sizes, sizes[1:], strict=False)]
    steps, sizes, (side, _, channels) = [], [], shape
    for k, (kernel, out) in enumerate([(4, width // 8), (3, width // 4)][: depth - 1]):
        steps += [Linear(k, kernel, 2), activation]
        sizes.append((out, channels * kernel**2))
        side, channels = (side - kernel) // 2 + 1, out
    for k in range(2, depth - 1):
        steps.append(Residual((Linear(k), activation)))
        sizes.append((channels, channels))
    if side > 1 and depth > 1:
        steps, side = [*steps, l2_pool], side // 2
    return (*steps, flat, Linear(depth - 1)), [*sizes, (classes, side * side * channels)]


def linears(steps: tuple) -> list[Linear]:
    """The linear layers of a network by index."""
    found = [one for s in steps for one in ([s] if isinstance(s, Linear) else linears(s.inner) if isinstance(s, Residual) else [])]
    return sorted(found, key=lambda layer: layer.index)


class Network(nn.Module):
    """Weights of a plan, drawn normally with He's variance; `outputs` are the shapes that the linear layers give."""

    def __init__(self, steps: tuple, sizes: list[tuple[int, int]], shape: tuple[int, ...]):
        super().__init__()
        self.steps, self.layers = steps, linears(steps)
        gains = [2.0] * (len(sizes) - 1) + [1.0]
        self.weights = nn.ParameterList(torch.randn(*s) * (g / s[1]) ** 0.5 for s, g in zip(sizes, gains, strict=True))
        self.register_buffer("worst", torch.zeros(()))  # the largest norm over bound so far
        seen: dict[int, Tensor] = {}
        with torch.no_grad():
            forward(steps, list(self.weights), torch.zeros(1, *shape), seen=seen)
        self.outputs = [(*seen[k].shape[1:-1], s[0]) for k, s in enumerate(sizes)]

    def forward(self, x: Tensor) -> Tensor:
        return forward(self.steps, list(self.weights), x)
