"""Images of the study lobster: MNIST's 5,000, scikit-learn's 8 x 8 digits, or a folder with idx files of one's own."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.idx import idx_folder


@lru_cache(maxsize=16)
def split(seed: int, images: str, folder: str = "") -> tuple[tuple[Tensor, Tensor], ...]:
    """(x [N, pixels] in [0, 1], y [N]) to train, validate and test: 60, 20 and 20 % of 5,000 images, shares of classes kept."""
    x, y = idx_folder(folder) if folder else getattr(data, images)()
    rng = np.random.default_rng(seed)
    chosen = data.stratified(y, 5000, rng)[0] if len(y) > 5000 else np.arange(len(y))
    train, rest = data.stratified(y[chosen], round(0.6 * len(chosen)), rng)
    first, second = data.stratified(y[chosen][rest], len(rest) // 2, rng)
    parts = (chosen[rows] for rows in (train, rest[first], rest[second]))
    return tuple((torch.from_numpy(x[rows].reshape(len(rows), -1)), torch.from_numpy(y[rows])) for rows in parts)
