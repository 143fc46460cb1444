"""Images of the study numerical-precision: digits of 8 x 8, MNIST's 5,000, or your own as .npz or as MNIST's idx files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.idx import idx_folder
from claimlab.data.own import own_images


@lru_cache(maxsize=2)
def pictures(images: str, path: str = "") -> tuple[np.ndarray, np.ndarray]:
    """x [N, pixels] float32 in [0, 1] and y [N]; ValueError where an own file does not fit, with file and reason.

    `path` is a folder with MNIST's idx files (magic numbers, counts and labels are checked) or an .npz with x and y.
    """
    if path:
        x, y = idx_folder(path) if Path(path).is_dir() else own_images(path)
    else:
        x, y = getattr(data, images)()
    return x.reshape(len(x), -1), y


@lru_cache(maxsize=64)
def split(seed: int, images: str, path: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y to train and x, y to test of one seed: two thirds and one third, class shares kept; at most 12,000 and 2,000."""
    x, y = pictures(images, path)
    count = 1200 if len(y) == 1797 else len(y) * 2 // 3
    train, test = data.stratified(y, count, np.random.default_rng(seed))
    train, test = train[:12000], test[:2000]
    return tuple(torch.from_numpy(part) for part in (x[train], y[train], x[test], y[test]))
