"""Data and priors of the study: three-way splits of the digits with wrong training labels, and a user's own files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import arrays
from claimlab.studies.training._pbt_method import Hyper, Space

TRAIN, VALIDATION = 500, 400  # of the 1,797 digits; of own rows the same shares
LEAST, ROWS = 6, 60  # rows of a label, rows in all

SPACE: Space = (
    Hyper("learning_rate", 1e-4, 1.0, log=True),
    Hyper("momentum", 0.5, 0.99, complement=True),
    Hyper("input_noise", 0.0, 1.0),
    Hyper("label_smoothing", 0.0, 0.4),
    Hyper("weight_decay", 1e-6, 1e-2, log=True),
)


@dataclass(frozen=True)
class Split:
    """One seed's rows: x [N, D] in [0, 1] with the labels y [N] that training sees and the right ones `true`; clean
    validation and test rows."""

    x: Tensor
    y: Tensor
    true: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


@lru_cache(maxsize=2)
def examples(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows X [N, D] float32 and labels y [N]: the digits, or your own .npz (ValueError where it does not fit)."""
    if path:
        return own_examples(path)
    x, y = data.digits()
    return x.reshape(len(x), -1), y


@lru_cache(maxsize=64)
def split(seed: int, noise: float, path: str = "") -> Split:
    """Stratified parts of `seed`; a share `noise` of the training labels is replaced by another class, drawn uniformly."""
    x, y = examples(path)
    rng, total = np.random.default_rng(seed), 1797
    shares = (TRAIN, VALIDATION) if not path else (len(y) * TRAIN // total, len(y) * VALIDATION // total)
    train, rest = data.stratified(y, shares[0], rng)
    validation, test = (rest[part] for part in data.stratified(y[rest], shares[1], rng))
    if path:  # columns to [0, 1] by the training rows; the digits are there already, and input noise is in these units
        low, high = x[train].min(0), x[train].max(0)
        x = ((x - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    classes, given = int(y.max()) + 1, y[train].copy()
    wrong = rng.permutation(len(train))[: round(noise * len(train))]
    given[wrong] = (given[wrong] + rng.integers(1, classes, size=len(wrong))) % classes
    tensors = map(torch.from_numpy, (x[train], given, y[train], x[validation], y[validation], x[test], y[test]))
    first, shown, true, *others = tensors
    return Split(first, shown, true, tuple(others[:2]), tuple(others[2:]), classes)


# ---- your own files, parsed as data only


def own_examples(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """X [N, ...] finite numbers (a table or images) and y [N] labels 0, 1, ... from an .npz with 60 rows or more, at least 6
    of each label, so that three parts with every label can be cut. ValueError names file, fault and what is allowed."""
    x, y = arrays(path, ("X", "y"))
    _check(Path(path).name, x, y)
    return x.reshape(len(x), -1).astype(np.float32), y.astype(np.int64)


def _check(name: str, x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim < 2 or x.dtype.kind not in "fiu" or len(x) < ROWS or not x[0].size:
        raise ValueError(f"{name}: X is {x.dtype} of shape {x.shape}; allowed are numbers of shape N x ... with N >= {ROWS}, "
                         "or three parts cannot be cut")  # fmt: skip
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} rows")
    if bad := int((~np.isfinite(x)).reshape(len(x), -1).any(1).sum()):
        raise ValueError(f"{name}: {bad} rows of X hold NaN or infinity; all must be finite")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(f"{name}: y holds labels {found[:12].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < LEAST:
        raise ValueError(f"{name}: label {found[count.argmin()]} has {count.min()} rows; at least {LEAST} are needed for three parts")


@lru_cache(maxsize=4)
def space(path: str = "") -> Space:
    """The priors: SPACE, with the ranges that a JSON file such as {"learning_rate": {"low": 0.001, "high": 0.1}} narrows.

    ValueError names file, fault and what is allowed: known names, numbers low < high inside the study's own range.
    """
    if not path:
        return SPACE
    name = Path(path).name
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not a readable JSON file: {error}") from None
    known = {one.name: one for one in SPACE}
    if not isinstance(given, dict) or (stray := sorted(set(given) - set(known))):
        wrong = f"{', '.join(stray)} is none of them" if isinstance(given, dict) else "it holds no names"
        raise ValueError(f"{name}: allowed are priors by name, of {', '.join(known)}; {wrong}")
    return tuple(replace(one, **_range(name, one, given[one.name])) if one.name in given else one for one in SPACE)


def _range(file: str, one: Hyper, given: object) -> dict[str, float]:
    ends = [given.get(end) for end in ("low", "high")] if isinstance(given, dict) and set(given) == {"low", "high"} else []
    numbers = bool(ends) and all(isinstance(e, int | float) and not isinstance(e, bool) and math.isfinite(e) for e in ends)
    if not numbers or not one.low <= ends[0] < ends[1] <= one.high:
        raise ValueError(f'{file}: {one.name} is {given}; allowed is {{"low": a, "high": b}} with {one.low:g} <= a < b <= {one.high:g}')
    return {"low": float(ends[0]), "high": float(ends[1])}
