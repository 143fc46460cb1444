"""The table of the study adaptive-mi-estimators: every pattern of twelve bits on a sphere with its label, or one of your own."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.special import eval_legendre, expit, xlogy

from claimlab.data.own import arrays

DEGREES = 7  # spherical harmonics of degree 0 to 6
MOST = 20_000  # distinct rows of an own table
BITS = 0.99  # information that a pattern carries about its label


@dataclass(frozen=True)
class Table:
    """All inputs x [N, D] float32 and labels y [N] of 0, 1, ...; where they come from, in words."""

    x: torch.Tensor
    y: torch.Tensor
    told: str

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


def icosahedron() -> np.ndarray:
    """Its 12 vertices on the unit sphere, [12, 3]."""
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    turned = np.array([np.roll(corner, k) for k in range(3) for corner in corners])
    return turned / np.hypot(1, golden)


def invariant(x: np.ndarray, a: np.ndarray, r: np.ndarray) -> np.ndarray:
    """f(x) = sum_l a_l sum_m |sum_i x_i Y_lm(r_i)|^2 for patterns x [N, D] on the points r [D, 3]; it does not feel a rotation.

    By the addition theorem sum_m Y_lm(r_i) Y_lm(r_j)* = (2 l + 1) / (4 pi) P_l(r_i . r_j), so that f = x M x. [N]
    """
    cosine = np.clip(r @ r.T, -1, 1)
    m = sum(a[k] * (2 * k + 1) / (4 * np.pi) * eval_legendre(k, cosine) for k in range(len(a)))
    return np.einsum("ni,ij,nj->n", x, m, x)


def told_bits(p: np.ndarray) -> float:
    """I(X; Y) in bits for X uniform over the patterns and p(y = 1 | x) = p [N]."""

    def entropy(q):
        return -(xlogy(q, q) + xlogy(1 - q, 1 - q)) / np.log(2)

    return float(entropy(p.mean()) - entropy(p).mean())


def threshold(f: np.ndarray) -> float:
    """The gap between two values of f that is nearest to its median; a value itself would leave its patterns to a coin. f is
    rounded first, so that equal values stay equal."""
    values, count = np.unique(np.round(f, 9), return_counts=True)
    below = np.cumsum(count)[:-1] / len(f)
    k = int(abs(below - 0.5).argmin())
    return float(values[k : k + 2].mean())


def steepness(f: np.ndarray, theta: float, bits: float = BITS) -> float:
    """gamma by bisection, so that I(X; Y) is `bits`; ValueError where no gamma reaches it."""
    low, high = 1e-6, 1e6
    if told_bits(expit(high * (f - theta))) < bits:
        raise ValueError("no threshold halves the patterns well enough")
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if told_bits(expit(middle * (f - theta))) < bits else (low, middle)
    return high


@dataclass(frozen=True)
class Rule:
    """One drawing of the rotation-invariant rule: p(y = 1 | x) = sigmoid(gamma (f(x) - theta))."""

    a: np.ndarray
    theta: float
    gamma: float
    x: np.ndarray
    p: np.ndarray
    draws: int


@lru_cache(maxsize=4)
def rule(seed: int = 0) -> Rule:
    """All 4,096 patterns and the rule; coefficients are drawn again until some threshold balances the labels."""
    rng, r = np.random.default_rng(seed), icosahedron()
    x = (np.arange(4096)[:, None] >> np.arange(12) & 1).astype(float)
    for draws in range(1, 1000):
        a = rng.standard_normal(DEGREES)
        f = invariant(x, a, r)
        theta = threshold(f)
        try:
            gamma = steepness(f, theta)
        except ValueError:
            continue
        return Rule(a, theta, gamma, x, expit(gamma * (f - theta)), draws)
    raise ValueError(f"a thousand drawings from seed {seed} gave no balanced rule")


def table(patterns: int = 4096) -> Table:
    """The table of the file that CLAIMLAB_DATA names, or that of the spherical rule; at most `patterns` rows, chosen by lot."""
    return _table(patterns, os.environ.get("CLAIMLAB_DATA", ""))


@lru_cache(maxsize=4)
def _table(patterns: int, path: str) -> Table:
    if path:
        x, y = own_table(path)
        told = Path(path).name
    else:
        found = rule()
        x, told = found.x, f"sphere, a = {np.round(found.a, 3).tolist()}, theta = {found.theta:.4g}, gamma = {found.gamma:.4g}"
        y = (np.random.default_rng(1).random(len(x)) < found.p).astype(np.int64)
    keep = np.sort(np.random.default_rng(2).permutation(len(x))[:patterns])
    return Table(torch.from_numpy(x[keep].astype(np.float32)), torch.from_numpy(y[keep].astype(np.int64)), told)


def own_table(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, D] and labels [N] from a MATLAB file with F and y (such as var_u.mat), or an .npz with x and y.

    X must be uniform over distinct rows: what repeats is dropped with a warning. ValueError names the file, what is wrong and
    what is allowed: finite numbers, labels 0, 1, ... without a gap of which each makes up a tenth or more, 100 to 20,000 rows.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a MATLAB file with F and y, or an .npz with x and y, is needed")
    x, y = _matlab(file) if file.suffix == ".mat" else arrays(file, ("x", "y"))
    if x.ndim != 2 or x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        raise ValueError(f"{file.name}: inputs are {x.dtype} of shape {x.shape}, labels {y.dtype}; allowed are numbers, rows x "
                         "columns")  # fmt: skip
    y = y.ravel()
    if len(y) != len(x):
        raise ValueError(f"{file.name}: {len(y)} labels for {len(x)} rows; one label a row is needed")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"{file.name}: some values are NaN or infinite; every value must be a finite number")
    first = np.sort(np.unique(x, axis=0, return_index=True)[1])
    if repeats := len(x) - len(first):
        warnings.warn(f"{file.name}: {repeats} rows repeat and are dropped; I(T; X) needs distinct rows", stacklevel=2)
    x, y = x[first].astype(float), y[first]
    if not 100 <= len(x) <= MOST:
        raise ValueError(f"{file.name}: {len(x):,} distinct rows; allowed are 100 to {MOST:,}")
    labels, count = np.unique(y, return_counts=True)
    if len(labels) < 2 or (labels != np.arange(len(labels))).any():
        raise ValueError(f"{file.name}: labels are {labels[:8].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < 0.1 * len(y):
        raise ValueError(f"{file.name}: label {labels[count.argmin()]:g} has {count.min()} of {len(y)} rows; at least a tenth is "
                         "needed")  # fmt: skip
    return x, y.astype(np.int64)


def _matlab(file: Path) -> list[np.ndarray]:
    try:
        held = loadmat(file, variable_names=["F", "y"])
    except Exception as error:  # whatever a reader of a foreign format meets
        raise ValueError(f"{file.name} cannot be read as a MATLAB file (version 7.2 or older): {error}") from error
    if missing := [name for name in ("F", "y") if name not in held]:
        raise ValueError(f"{file.name} has no array {' and no '.join(missing)}; it must hold F and y")
    return [held["F"], held["y"]]
