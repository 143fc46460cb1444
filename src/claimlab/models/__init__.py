"""Small network builders. Weights come from torch's generator, which the caller seeds."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """A perceptron with `sizes` units a layer, input first; no activation after the last layer. [B, sizes[0]] -> [B, sizes[-1]]."""
    if len(sizes) < 2:
        raise ValueError(f"a perceptron needs at least an input and an output size, not {sizes}")
    layers: list[nn.Module] = []
    for inside, outside in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inside, outside), activation()]
    return nn.Sequential(*layers[:-1])
