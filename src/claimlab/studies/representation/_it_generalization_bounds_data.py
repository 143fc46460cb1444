"""Data of the study it-generalization-bounds: a noisy Gaussian mixture, digits, a table of one's own, and the Gibbs data sets."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import labelled_table

DIMENSION, DISTANCE = 20, 2.0  # of the mixture: inputs, and |mu| in units of the noise's deviation
LEAST = 400  # rows of a table of one's own
TEACHER_NOISE, EXAMPLES = 0.1, 6  # of the Gibbs data sets


class Sample(NamedTuple):
    """Training points x [N, D], y [N]; fresh points of the same law [M, D], [M], in random order; number of classes."""

    x: Tensor
    y: Tensor
    fresh_x: Tensor
    fresh_y: Tensor
    classes: int


def flipped(y: np.ndarray, noise: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Each label replaced by another class with probability `noise`."""
    wrong = rng.random(len(y)) < noise
    return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y)


def mixture(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two round Gaussians of unit variance in R^20 around +-mu, |mu| = 2; [count, 20] and labels 0, 1."""
    mu = rng.standard_normal(DIMENSION)
    y = rng.integers(0, 2, count)
    return np.outer(2 * y - 1, DISTANCE * mu / np.linalg.norm(mu)) + rng.standard_normal((count, DIMENSION)), y


@lru_cache(maxsize=32)
def sample(seed: int, kind: str, noise: float, train: int, fresh: int, path: str = "") -> Sample:
    """The data of a seed: "mixture" (or the table at `path`), "digits 3 8" or "digits". Labels of training and fresh points are
    flipped alike, since the theorem compares two draws of one law. Tables and digits are standardised on the training part."""
    rng = np.random.default_rng((seed, 11))
    if kind == "mixture" and not path:
        x, y = mixture(train + fresh, rng)
        first, rest = np.arange(train), np.arange(train, train + fresh)
    else:
        x, y = load_table(path) if kind == "mixture" else digits(kind)
        first, rest = data.stratified(y, min(train, len(y) // 2), rng)
        spread = x[first].std(0)
        x = (x - x[first].mean(0)) / np.where(spread > 0, spread, 1)
    classes = int(y.max()) + 1
    y = flipped(y, noise, classes, rng)
    parts = [torch.from_numpy(x[rows].astype(np.float32)) for rows in (first, rest[:fresh])]
    labels = [torch.from_numpy(y[rows].astype(np.int64)) for rows in (first, rest[:fresh])]
    return Sample(parts[0], labels[0], parts[1], labels[1], classes)


def digits(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 64] and labels of all digits, or of threes (0) and eights (1)."""
    x, y = data.digits()
    x = x.reshape(len(x), -1).astype(float)
    if kind == "digits":
        return x, y
    chosen = np.isin(y, (3, 8))
    return x[chosen], (y[chosen] == 8).astype(np.int64)


def own() -> str:
    """The table that CLAIMLAB_DATA names, or nothing."""
    return os.environ.get("CLAIMLAB_DATA", "")


def load_table(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N, D] and labels [N] of a .csv with a column `label` and finite numbers in all others, two classes or more, at
    least 400 rows. ValueError names the file, what is wrong and what is allowed."""
    return labelled_table(path, least=LEAST)


# ---- the Gibbs data sets


def cube(n: int = 3) -> np.ndarray:
    """All points of {-1, 1}^n, [2^n, n]."""
    return np.array(np.meshgrid(*[[-1, 1]] * n, indexing="ij")).reshape(n, -1).T


def teacher(seed: int) -> np.ndarray:
    """Answers +-1 of a random linear form on the cube [8]."""
    return np.where(cube() @ np.random.default_rng((seed, 12)).standard_normal(3) >= 0, 1, -1)


def gibbs_sets(seed: int, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Data sets of six examples: how often each input comes with label +1 and with -1, [sets, 8] both."""
    rng, truth = np.random.default_rng((seed, 13)), teacher(seed)
    at = rng.integers(0, 8, (sets, EXAMPLES))
    plus = (truth[at] > 0) != (rng.random(at.shape) < TEACHER_NOISE)
    counts = np.zeros((2, sets, 8))
    np.add.at(counts, (plus.astype(int), np.arange(sets)[:, None], at), 1)
    return counts[1], counts[0]


def risks(answers: np.ndarray, plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Share of each data set's examples that each function gets wrong: answers [F, 8] -> [sets, F]."""
    wrong = plus @ (answers < 0).T + minus @ (answers > 0).T
    return wrong / (plus + minus).sum(1, keepdims=True)


def population_risk(answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of all noisy examples that each function gets wrong [F]."""
    return TEACHER_NOISE + (1 - 2 * TEACHER_NOISE) * (answers != truth).mean(1)
