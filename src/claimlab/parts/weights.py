"""Networks of one's own: weights from a file, and whether they know anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def own_weights(path: Path, build: Callable[[dict[str, Tensor]], nn.Module], described: str) -> dict[str, Tensor] | None:
    """The weights in `path`, a file `torch.save(net.state_dict())` of the network that `build(weights)` makes, or None.

    It is read as data only (weights_only=True). ValueError says what does not fit the network, which is `described` in it.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        build(state).load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path} does not hold weights of {described}: {str(error)[:200]}") from None
    if bad := [name for name, t in state.items() if not torch.isfinite(t).all()]:
        raise ValueError(f"{path}: {bad[0]} holds a value that is not a number")
    return state


def above_chance(right: float, y: np.ndarray) -> None:
    """ValueError where the accuracy `right` on the labels y [N] is within two standard errors of naming the commonest class."""
    chance = np.unique(y, return_counts=True)[1].max() / len(y)
    if right <= chance + 2 * np.sqrt(chance * (1 - chance) / len(y)):
        raise ValueError(f"the classifier is right on {right:.0%} of the images, no more than chance ({chance:.0%} for one class)")
