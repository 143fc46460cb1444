"""Private rows of the study `clipless-dpsgd`: digits, a simulated mixture, or your own file that CLAIMLAB_DATA names."""

from __future__ import annotations

import os
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.idx import idx_folder
from claimlab.data.own import arrays

CENTRE = 0.13  # of MNIST's pixels, known from other people's publications: not a statistic of the private rows
RADIUS = 1.0  # X_0: every input lies in the ball of this radius
LEAST = 1000  # rows; with fewer, delta and epsilon mean nothing


@dataclass(frozen=True)
class Rows:
    """Training rows x [N, ...] with labels y [N], and test rows; images are [H, W, 1], others flat."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    classes: int


def own_path() -> str:
    """The file or folder that CLAIMLAB_DATA names, '' for none."""
    return os.environ.get("CLAIMLAB_DATA", "")


def into_ball(x: np.ndarray) -> np.ndarray:
    """Rows [N, n] longer than RADIUS are shortened to it; each row by its own length alone, so nothing leaks to another row."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    inside = RADIUS * (1 - 1e-6)  # single precision rounds to either side
    return (x * np.minimum(1, inside / np.maximum(length, 1e-12))).astype(np.float32)


@lru_cache(maxsize=2)
def own_rows(path: str) -> tuple[np.ndarray, np.ndarray]:
    """x [N, ...] in [0, 1] and y [N] from an .npz, or from a folder with MNIST's idx files. ValueError says what is wrong."""
    place = Path(path)
    if place.is_dir():
        x, y = idx_folder(path)
    elif place.is_file() and zipfile.is_zipfile(place):
        x, y = _npz(place)
    else:
        raise ValueError(f"{place} is neither an .npz file with x and y nor a folder with MNIST's idx files")
    if len(x) < LEAST:
        raise ValueError(f"{place.name}: {len(x)} rows; at least {LEAST} are needed, or delta and epsilon mean nothing")
    warnings.warn(f"pixels are centred on the public constant {CENTRE}; a mean taken from the private rows would itself leak", stacklevel=2)
    return x, y


def _npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays(file, ("x", "y"))
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise ValueError(f"{file.name}: x is {x.dtype} of shape {x.shape}; allowed are numbers of N x ...")
    if not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise ValueError(f"{file.name}: x lies in [{x.min()}, {x.max()}]; allowed are finite numbers in [0, 1]")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{file.name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} rows")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1 or count.min() < 10:
        raise ValueError(f"{file.name}: y must hold 0, 1, ... without a gap, at least two labels with ten rows each")
    return x.astype(np.float32), y.astype(np.int64)


def mixture(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian mixture in 20 dimensions: 10 centres of length about 2, noise of 0.25 on each axis. x [rows, 20], y [rows]."""
    centres, y = rng.normal(0, 2 / 20**0.5, (10, 20)), rng.integers(10, size=rows)
    return centres[y] + rng.normal(0, 0.25, (rows, 20)), y


@lru_cache(maxsize=16)
def load(seed: int, kind: str, rows: int, side: int, path: str = "") -> Rows:
    """The rows of a seed, in the ball: `rows` for training (of the digits at most 4,000, of an own file at most four fifths), and
    up to 1,000 others for the test."""
    rng = np.random.default_rng(seed)
    if path:
        x, y = own_rows(path)
        train, test = data.stratified(y, min(rows, len(x) * 4 // 5), rng)
    elif kind == "mixture":
        x, y = mixture(rows + 1000, rng)
        train, test = np.arange(rows), np.arange(rows, rows + 1000)
    else:
        x, y = data.mnist()
        train, test = data.stratified(y, min(rows, 4000), rng)
    if x.ndim == 3 and x.shape[1:] == (28, 28) and side == 14:
        x = x.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    shape = (*x.shape[1:], 1) if x.ndim == 3 else x.shape[1:]
    inside = into_ball(x.reshape(len(x), -1) - (0 if kind == "mixture" and not path else CENTRE)).reshape(-1, *shape)
    parts = [torch.from_numpy(part) for part in (inside[train], y[train], inside[test[:1000]], y[test[:1000]])]
    return Rows(parts[0], parts[1], (parts[2], parts[3]), int(y.max()) + 1)
