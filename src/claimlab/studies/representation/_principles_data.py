"""Data of the study principles-dl-theory: inputs of equal norm, as the theory assumes, and training labels partly wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from claimlab import data

HELD = 500 / 1797  # share of the rows that is tested: 500 of the 1,797 digits
LEAST, MOST, FEATURES = 40, 20_000, 512


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


def load_table(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N, D] and labels [N] of a CSV in UTF-8 with a column `label` and numbers in all others.

    ValueError names the file, what is wrong and what is allowed: 40 to 20,000 rows, at most 512 columns of finite numbers, two
    classes or more with at least ten rows each. Labels may be words; they are numbered in sorted order.
    """
    file = Path(path)
    if not file.is_file() or file.suffix.lower() != ".csv":
        raise ValueError(f"CLAIMLAB_DATA names {path}, which is not a .csv file")
    try:
        table = pd.read_csv(file, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise ValueError(f"{file.name} is not a CSV file in UTF-8: {error}") from None
    if "label" not in table or table.shape[1] < 2:
        raise ValueError(f"{file.name} needs a column label and one column of numbers or more; it has {', '.join(table.columns)}")
    if not LEAST <= len(table) <= MOST or table.shape[1] - 1 > FEATURES:
        raise ValueError(f"{file.name} has {len(table)} rows of {table.shape[1] - 1} numbers; {LEAST} to {MOST:,} rows and at "
                         f"most {FEATURES} numbers are allowed")  # fmt: skip
    x = table.drop(columns="label")
    if words := [name for name in x if x[name].dtype.kind not in "iuf"]:
        raise ValueError(f"{file.name}: the column {words[0]} holds other things than numbers; only label may")
    if bad := (~np.isfinite(x.to_numpy(float))).any(1).nonzero()[0].tolist():
        raise ValueError(f"{file.name}: row {bad[0] + 1} holds a number that is missing or not finite ({len(bad)} such rows)")
    if table["label"].isna().any():
        raise ValueError(f"{file.name}: row {int(table['label'].isna().argmax()) + 1} has no label")
    names, y, count = np.unique(table["label"].astype(str), return_inverse=True, return_counts=True)
    if len(names) < 2 or count.min() < 10:
        said = ", ".join(f"{n} ({c})" for n, c in list(zip(names, count, strict=True))[:8])
        raise ValueError(f"{file.name} has the labels {said}; two or more with at least ten rows each are needed")
    return x.to_numpy(float), y.astype(np.int64)


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
