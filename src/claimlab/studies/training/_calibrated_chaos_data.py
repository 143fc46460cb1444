"""Data of the study of variance between runs: splits of the digits, simulated points, and a user's own files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import arrays

TRAIN, FRESH = 600, 50_000
LEAST_RUNS, LEAST_EXAMPLES = 64, 200


def stream(*key: object) -> torch.Generator:
    """A generator of its own for each key, such as (member, "order", run, epoch): what varies is switched by the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)


@dataclass(frozen=True)
class Split:
    """One seed's data. x [V * N, D] holds V = `versions` of the N training rows, one after the other; y [V * N] their
    labels with noise; `varying` [D] marks the inputs that differ between training rows; `fresh` are further test points or None."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    classes: int
    varying: Tensor
    versions: int = 1
    fresh: tuple[Tensor, Tensor] | None = None


@lru_cache(maxsize=2)
def examples(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows X [N, D] float32 and labels y [N] int64: the digits, or your own .npz (ValueError where it does not fit)."""
    if not path:
        x, y = data.digits()
        return x.reshape(len(x), -1), y
    return own_examples(path)


def _labelled(x, y, train, test, classes: int, noise: float, rng, shifts: bool = False, fresh=None) -> Split:
    given = y[train].copy()
    wrong = rng.permutation(len(train))[: round(noise * len(train))]
    given[wrong] = (given[wrong] + rng.integers(1, classes, size=len(wrong))) % classes  # always another class
    rows = shifted(x[train]) if shifts else x[train]
    versions, varying = len(rows) // len(train), x[train].max(0) > x[train].min(0)
    parts = map(torch.from_numpy, (rows, np.tile(given, versions), x[test], y[test], varying, *(fresh or ())))
    x, y, test_x, test_y, varying, *fresh = parts
    return Split(x, y, (test_x, test_y), classes, varying, versions, tuple(fresh) or None)


@lru_cache(maxsize=64)
def split(seed: int, test_size: int, noise: float, binary: bool, shifts: bool, path: str = "") -> Split:
    """Stratified training and test rows of `seed`. 600 rows train (of fewer than 1,800 own rows a third), at most
    `test_size` of the others test. `binary` asks for odd against even labels on the same rows."""
    x, y = examples(path)
    rng = np.random.default_rng(seed)
    train, test = data.stratified(y, min(TRAIN, len(y) // 3) if path else TRAIN, rng)
    if path:  # columns to [0, 1] by the training rows; the digits are there already
        low, high = x[train].min(0), x[train].max(0)
        x = ((x - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    y, classes = (y % 2, 2) if binary else (y, int(y.max()) + 1)
    return _labelled(x, y, train, test[:test_size], classes, noise, rng, shifts)


@lru_cache(maxsize=64)
def simulated(seed: int, noise: float) -> Split:
    """Two overlapping Gaussians in 20 dimensions: N(0, 1) against N(m, s^2) with m = 0.6 in the first ten dimensions and
    s = 1.5 in the last ten, so that the best boundary is curved. 600 training, 1,200 test and 50,000 fresh points."""
    rng = np.random.default_rng((seed, 20))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(2, size=count)
        first, scale = np.arange(20) < 10, np.where(np.arange(20) < 10, 1.0, 1.5)
        x = rng.standard_normal((count, 20)) * np.where(y[:, None] == 1, scale, 1.0) + 0.6 * np.outer(y, first)
        return x.astype(np.float32), y

    x, y = draw(TRAIN + 1200)
    fresh = draw(FRESH)
    return _labelled(x, y, np.arange(TRAIN), np.arange(TRAIN, TRAIN + 1200), 2, noise, rng, fresh=fresh)


def shifted(x: np.ndarray) -> np.ndarray:
    """Square images [N, D] as [9 * N, D]: as they are, and moved by one pixel in each of the eight directions."""
    side = round(x.shape[1] ** 0.5)
    if side * side != x.shape[1]:
        raise ValueError(f"augment shifts square images, and rows of {x.shape[1]} numbers are none; set augment = False")
    pictures = np.pad(x.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)))
    moves = [(1, 1), *[(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]]
    return np.concatenate([pictures[:, i : i + side, j : j + side].reshape(len(x), -1) for i, j in moves])


# ---- your own files


def _matrix_hint(held) -> str:
    return "; a matrix c of finished runs goes to analyse(own_matrix(path))" if "c" in held else ""


def own_examples(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """X [N, D] finite numbers and y [N] labels 0, 1, ... from an .npz, with 300 rows or more and at least 10 of each label.

    ValueError names the file, what is wrong and what is allowed.
    """
    (x, y), name = arrays(path, ("X", "y"), hint=_matrix_hint), Path(path).name
    if x.ndim != 2 or x.dtype.kind not in "fiu" or len(x) < 300:
        raise ValueError(f"{name}: X is {x.dtype} of shape {x.shape}; allowed are numbers of shape N x D with N >= 300")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} rows")
    if bad := int((~np.isfinite(x)).any(1).sum()):
        raise ValueError(f"{name}: {bad} rows of X hold NaN or infinity; all must be finite")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(f"{name}: y holds labels {found[:12].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < 10:
        raise ValueError(f"{name}: label {found[count.argmin()]} has {count.min()} rows; at least 10 are needed")
    if twice := len(x) - len(np.unique(x, axis=0)):
        raise ValueError(f"{name}: {twice} rows occur again; each may occur once, or a test row could be trained on")
    return x.astype(np.float32), y.astype(np.int64)


def own_matrix(path: str | Path) -> np.ndarray:
    """The matrix c [runs, examples] of 0 (wrong) and 1 (right) that you saved from your own trainings, as booleans.

    ValueError unless it holds 0 and 1 only, 64 runs or more, 200 examples or more, and no two equal runs.
    """
    (c,), name = arrays(path, ("c",), hint=_matrix_hint), Path(path).name
    if c.ndim != 2 or c.dtype.kind not in "biuf" or not np.isin(c, (0, 1)).all():
        raise ValueError(f"{name}: c is {c.dtype} of shape {c.shape}; allowed are the values 0 and 1 of shape runs x examples")
    if len(c) < LEAST_RUNS:
        raise ValueError(f"{name}: c has {len(c)} runs; at least {LEAST_RUNS} are needed, or a variance says little")
    if c.shape[1] < LEAST_EXAMPLES:
        raise ValueError(f"{name}: c has {c.shape[1]} examples; at least {LEAST_EXAMPLES} are needed")
    if same := len(c) - len(np.unique(c, axis=0)):
        raise ValueError(f"{name}: {same} runs are identical to another; they are copies, and copies do not scatter")
    return c.astype(bool)
