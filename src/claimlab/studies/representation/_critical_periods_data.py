"""Data of the study critical-periods-linear: targets and first weights of the race, matrices to complete, a user's own files."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from claimlab.data.own import read_table

MODES = (10.0, 8.0, 6.0, 5.0)
SIZE, SPREAD = 8, 0.02  # rows of the race's target; standard deviation of the log of the first strengths
LARGEST = 128


class Target(NamedTuple):
    """What the two pathways learn: left diag(s) right^T, with left and right [n, M] and s [M]."""

    left: np.ndarray
    s: np.ndarray
    right: np.ndarray


def rotation(rng: np.random.Generator, n: int) -> np.ndarray:
    """A random orthogonal matrix [n, n]."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def target(seed: int) -> Target:
    """The seed's target: random orthogonal vectors, fixed singular values."""
    rng = np.random.default_rng((seed, 1))
    return Target(rotation(rng, SIZE)[:, : len(MODES)], np.array(MODES), rotation(rng, SIZE)[:, : len(MODES)])


def first_strengths(seed: int, init: float, pairs: int) -> np.ndarray:
    """Layer strengths p of the pathways a and b [2, pairs], log-normal around `init`; the same at every depth."""
    return init * np.exp(SPREAD * np.random.default_rng((seed, 2)).standard_normal((pairs, 2)).T)


def first_weights(goal: Target, p: np.ndarray, depth: int, seed: int, aligned: bool) -> list[Tensor]:
    """D stacks [2 pairs, n, n], pathway a first: balanced chains R_l (p I) R_(l-1)^T that begin in the target's right vectors
    and end in its left ones, or in random ones where not `aligned`. p [2, pairs]."""
    rng, n = np.random.default_rng((seed, 3)), len(goal.left)
    flat = p.reshape(-1)
    inner = np.stack([[rotation(rng, n) for _ in range(depth + 1)] for _ in flat], 1)  # [D + 1, 2 pairs, n, n]
    if aligned:
        inner[0], inner[-1] = complete_basis(goal.right), complete_basis(goal.left)
    return [torch.from_numpy(flat[:, None, None] * inner[k + 1] @ inner[k].transpose(0, 2, 1)) for k in range(depth)]


def complete_basis(some: np.ndarray) -> np.ndarray:
    """Orthonormal columns [n, M] made up to a basis [n, n] that begins with them."""
    full = np.linalg.svd(some)[0]
    return np.concatenate([some, full[:, some.shape[1] :]], 1)


# ---- completion


class Problem(NamedTuple):
    """Two matrices [n, n], the mask of known entries that both share, the mask of entries to be told [n, n]."""

    first: np.ndarray
    second: np.ndarray
    known: np.ndarray
    asked: np.ndarray


def low_rank(rng: np.random.Generator, n: int, rank: int) -> np.ndarray:
    """Product of independent normal factors [n, rank], scaled to unit mean square."""
    product = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n))
    return product / np.sqrt((product**2).mean())


def problem(seed: int, k: int, n: int, ranks: tuple[int, int], observed: int) -> Problem:
    """The k-th pair of matrices of a seed and its observed positions."""
    rng = np.random.default_rng((seed, 4, k))
    first, second = low_rank(rng, n, ranks[0]), low_rank(rng, n, ranks[1])
    known = np.zeros(n * n, dtype=bool)
    known[rng.permutation(n * n)[:observed]] = True
    known = known.reshape(n, n)
    return Problem(first, second, known, ~known)


def small_weights(seed: int, k: int, n: int, depth: int) -> np.ndarray:
    """First weights [D, n, n]: entries N(0, sd^2) with sd = 0.001^(1/D) / sqrt(n), a product as small at every depth."""
    sd = 0.001 ** (1 / depth) / np.sqrt(n)
    return sd * np.random.default_rng((seed, 5, k)).standard_normal((depth, n, n))


# ---- a user's own data


def source(suffix: str) -> str:
    """The file that CLAIMLAB_DATA names if it ends so, else empty. Any other ending is refused when an arm asks."""
    named = os.environ.get("CLAIMLAB_DATA", "")
    if named and Path(named).suffix.lower() not in (".csv", ".npy"):
        raise ValueError(f"CLAIMLAB_DATA names {Path(named).name}; allowed are a matrix as .csv or a target map as .npy")
    return named if named.lower().endswith(suffix) else ""


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"CLAIMLAB_DATA names {path}, which is not a file")
    return Path(path)


@lru_cache(maxsize=4)
def load_target(path: str) -> Target:
    """A target map from a .npy file: 2-D, finite numbers, 2 to 64 rows and columns. It is padded with zeros to a square and
    scaled to a largest singular value of 10; modes above a twentieth of it are followed. ValueError says what is wrong."""
    file = _file(path)
    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file.name} is not a plain .npy array: {error}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf" or found.ndim != 2:
        raise ValueError(f"{file.name} must hold one matrix of real numbers, not {getattr(found, 'dtype', type(found))} of shape "
                         f"{getattr(found, 'shape', ())}")  # fmt: skip
    if min(found.shape) < 2 or max(found.shape) > 64:
        raise ValueError(f"{file.name} is {found.shape[0]} x {found.shape[1]}; 2 to 64 rows and columns are allowed")
    if not np.isfinite(found).all():
        raise ValueError(f"{file.name}: {int((~np.isfinite(found)).sum())} entries are not finite numbers")
    n = max(found.shape)
    square = np.zeros((n, n))
    square[: found.shape[0], : found.shape[1]] = found
    left, s, right = np.linalg.svd(square)
    if s[0] == 0:
        raise ValueError(f"{file.name} holds zeros only; there is nothing to learn")
    kept = s > s[0] / 20
    return Target(left[:, kept], 10 * s[kept] / s[0], right[kept].T)


@lru_cache(maxsize=4)
def load_entries(path: str) -> pd.DataFrame:
    """Entries of a partly known matrix from a .csv with the columns row, col (whole numbers from 0) and value.

    At least 50 entries, rows and columns below 128, none twice, 1 to 95 % of the matrix known, values not all equal.
    ValueError names the file, what is wrong and what is allowed. Values come back with mean 0 and mean square 1.
    """
    file = _file(path)
    table = read_table(file)
    if missing := [name for name in ("row", "col", "value") if name not in table]:
        raise ValueError(f"{file.name}: the column {' and '.join(missing)} is missing; it must have the columns row, col and value")
    if len(table) < 50:
        raise ValueError(f"{file.name} has {len(table)} entries; at least 50 are needed")
    for name in ("row", "col", "value"):
        if table[name].dtype.kind not in "iuf":
            raise ValueError(f"{file.name}: column {name} holds text; only numbers are allowed")
        if bad := (~np.isfinite(table[name])).to_numpy().nonzero()[0].tolist():
            raise ValueError(f"{file.name}: {name} in row {bad[0] + 1} is not a finite number")
    for name in ("row", "col"):
        wrong = (table[name] % 1 != 0) | (table[name] < 0) | (table[name] >= LARGEST)
        if wrong.any():
            raise ValueError(f"{file.name}: {name} = {table[name][wrong].iloc[0]} is out of range; whole numbers from 0 to "
                             f"{LARGEST - 1} are allowed")  # fmt: skip
    return _checked(file.name, table.astype({"row": int, "col": int, "value": float}))


def _checked(name: str, table: pd.DataFrame) -> pd.DataFrame:
    twice = table.duplicated(["row", "col"])
    if twice.any():
        row, col = table.loc[twice, ["row", "col"]].iloc[0]
        raise ValueError(f"{name}: the entry ({row}, {col}) occurs twice; each may occur once ({int(twice.sum())} repeat)")
    share = len(table) / ((table["row"].max() + 1) * (table["col"].max() + 1))
    if not 0.01 <= share <= 0.95:
        raise ValueError(f"{name}: {share:.1%} of the matrix is known; 1 to 95 % is allowed")
    centred = table["value"] - table["value"].mean()
    if not (centred**2).mean() > 0:
        raise ValueError(f"{name}: all values are equal; there is nothing to complete")
    return table.assign(value=centred / np.sqrt((centred**2).mean()))


def own_problem(entries: pd.DataFrame, seed: int, k: int, rank: int) -> Problem:
    """The user's matrix as second task, padded to a square; a fifth of its entries is held out and asked for. The first task
    is a random matrix of rank `rank` at the same known positions."""
    rng = np.random.default_rng((seed, 6, k))
    row, col, value = (entries[name].to_numpy() for name in ("row", "col", "value"))
    n = int(max(row.max(), col.max())) + 1
    second, known, asked = np.zeros((n, n)), np.zeros((n, n), bool), np.zeros((n, n), bool)
    second[row, col] = value
    order = rng.permutation(len(row))
    held, kept = order[: len(row) // 5], order[len(row) // 5 :]
    known[row[kept], col[kept]], asked[row[held], col[held]] = True, True
    return Problem(low_rank(rng, n, rank), second, known, asked)
