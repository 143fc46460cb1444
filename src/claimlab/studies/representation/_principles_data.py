"""Data of the study principles-dl-theory: inputs of equal norm, as the theory assumes, and training labels partly wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import labelled_table as load_table

HELD = 500 / 1797  # share of the rows that is tested: 500 of the 1,797 digits


@dataclass(frozen=True)
class Split:
    """One seed's data: inputs [N, D] with mean square 1 each; `given` are the labels to train on, some of them wrong."""

    x: Tensor
    given: Tensor
    test: tuple[Tensor, Tensor]
    classes: int


def own() -> str:
    """The file that CLAIMLAB_DATA names, '' for none."""
    return os.environ.get("CLAIMLAB_DATA", "")


@lru_cache(maxsize=2)
def rows(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N, D] and labels 0, 1, ... [N]: scikit-learn's digits, or the table at `path`."""
    if path:
        return load_table(path)
    x, y = data.digits()
    return x.reshape(len(x), -1).astype(float), y


@lru_cache(maxsize=32)
def split(seed: int, noise: float, path: str = "") -> Split:
    """Stratified rows of `seed`: standardised with the training part's mean and deviation, then scaled to mean square 1 each;
    a share `noise` of the training labels is replaced by another class at random."""
    x, y = rows(path)
    rng = np.random.default_rng(seed)
    train, test = data.stratified(y, len(y) - round(HELD * len(y)), rng)
    z, _ = equal_norm(x, train)
    given, classes = y[train].copy(), int(y.max()) + 1
    wrong = rng.permutation(len(train))[: round(noise * len(train))]
    given[wrong] = (given[wrong] + rng.integers(1, classes, size=len(wrong))) % classes
    x_train, x_test = (torch.from_numpy(z[part].astype(np.float32)) for part in (train, test))
    return Split(x_train, torch.from_numpy(given), (x_test, torch.from_numpy(y[test])), classes)


def equal_norm(x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows standardised over `train` and scaled to mean square 1, and their root mean square before the scaling. A column that
    does not vary becomes 0; a row that lies exactly at the mean stays there."""
    mean, spread = x[train].mean(0), x[train].std(0)
    z = (x - mean) / np.where(spread > 0, spread, np.inf)
    norm = np.sqrt((z**2).mean(1))
    return z / np.where(norm > 0, norm, 1.0)[:, None], norm


def describe(path: str = "", seed: int = 0) -> str:
    """One sentence on what the study makes of the data: rows, split, and how much the norms were changed."""
    x, y = rows(path)
    train, test = data.stratified(y, len(y) - round(HELD * len(y)), np.random.default_rng(seed))
    _, norm = equal_norm(x, train)
    low, high = np.quantile(norm, [0.05, 0.95])
    return (f"{len(train)} rows to train on and {len(test)} to test, {x.shape[1]} numbers each, {y.max() + 1} classes; all "
            f"inputs are rescaled to root mean square 1 (before, nine in ten lay between {low:.2f} and {high:.2f})")  # fmt: skip
