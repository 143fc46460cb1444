"""Tables to learn: addition modulo p, the same with answers redrawn at random, or a user's own group table."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.studies.representation._modular_addition_method import two_hot, unordered


@dataclass(frozen=True)
class Lesson:
    """What one seed learns. `table` [p, p] are the answers and `shown` [p, p] says which are trained on.

    `pairs` [B, p] are the shown unordered pairs, two-hot; `target` [B, p] is the share of each pair's two ordered cells that
    has the answer j, divided by the number of shown cells: the cross-entropy with it is the mean over all shown cells.
    """

    table: Tensor
    shown: Tensor
    pairs: Tensor
    target: Tensor


@lru_cache(maxsize=64)
def lesson(seed: int, p: int, noise: float, share: float, path: str = "") -> Lesson:
    """The lesson of a seed: a share `noise` of the cells is redrawn, a share of the unordered pairs is shown.

    (x, y) and (y, x) always lie on the same side: a net that is symmetric in x and y knows one from the other.
    """
    rng = np.random.default_rng(seed)
    table = redrawn(load_table(path, p) if path else addition(p), noise, rng)
    x, y = unordered(p)
    known = torch.from_numpy(np.sort(rng.permutation(len(x))[: max(1, round(share * len(x)))]))
    answers, shown = torch.from_numpy(table), torch.zeros(p, p, dtype=torch.bool)
    x, y = x[known], y[known]
    shown[x, y] = shown[y, x] = True
    both = torch.stack([answers[x, y], answers[y, x]], 1)
    weight = torch.where(x == y, 0.5, 1.0)[:, None].expand(-1, 2)  # a cell on the diagonal is one cell
    target = torch.zeros(len(x), p).scatter_add(1, both, weight) / shown.sum()
    return Lesson(answers, shown, two_hot(x, y, p), target)


def addition(p: int) -> np.ndarray:
    """(x + y) mod p, [p, p]."""
    return np.add.outer(np.arange(p), np.arange(p)) % p


def redrawn(table: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """A share `noise` of the cells gets an answer drawn uniformly from all p, each cell alone."""
    flat, p = table.copy().ravel(), len(table)
    cells = rng.permutation(p * p)[: round(noise * p * p)]
    flat[cells] = rng.integers(p, size=len(cells))
    return flat.reshape(p, p)


# ---- a table of one's own


def source() -> str:
    """The CSV file that CLAIMLAB_DATA names, or empty."""
    return os.environ.get("CLAIMLAB_DATA", "")


def fourier(p: int) -> bool:
    """Whether the table is addition modulo p, so that pictures in Fourier terms mean something."""
    return not source() or np.array_equal(load_table(source(), p), addition(p))


@lru_cache(maxsize=4)
def load_table(path: str, p: int) -> np.ndarray:
    """A group table [p, p] of whole numbers 0 .. p - 1 from a CSV without heading; every row and column holds each once.

    A cyclic group is relabelled so that the table reads (x + y) mod p; for any other one a warning says that pictures in
    Fourier terms are left out. ValueError names the file, what is wrong and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"CLAIMLAB_DATA names {file}, which is not a file; a CSV with a table of {p} rows is needed")
    rows = [line.split(",") for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    wide = sorted({len(row) for row in rows})
    if not rows or wide != [len(rows)]:
        raise ValueError(f"{file.name}: {len(rows)} rows of {', '.join(map(str, wide)) or 0} entries; allowed is a square table")
    if len(rows) != p:
        raise ValueError(f"{file.name}: the table has {len(rows)} rows, and the knob p is {p}; set p = {len(rows)}")
    try:
        table = np.array([[int(entry) for entry in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{file.name}: every entry must be a whole number ({error})") from None
    _check_latin(table, file.name)
    ordered = relabelled(table)
    if ordered is None:
        alike = "" if np.array_equal(table, table.T) else "; nor is it commutative, and this net answers x, y and y, x alike"
        warnings.warn(f"{file.name} is not a cyclic group: frequencies mean nothing, and the Fourier figures are left out{alike}",
                      stacklevel=2)  # fmt: skip
        return table
    return ordered


def _check_latin(table: np.ndarray, name: str) -> None:
    p, every = len(table), np.arange(len(table))
    if table.min() < 0 or table.max() >= p:
        raise ValueError(f"{name}: entries from {table.min()} to {table.max()}; allowed are 0 to {p - 1}")
    for what, lines in (("row", table), ("column", table.T)):
        for i, line in enumerate(lines):
            if not np.array_equal(np.sort(line), every):
                raise ValueError(f"{name}: {what} {i} holds an entry twice; each of 0 to {p - 1} must stand once in every {what}")


def relabelled(table: np.ndarray) -> np.ndarray | None:
    """The table of a cyclic group with its elements in the order of a generator's powers, so (x + y) mod p; else None."""
    p, every = len(table), np.arange(len(table))
    neutral = [e for e in range(p) if np.array_equal(table[e], every) and np.array_equal(table[:, e], every)]
    for generator in range(p) if neutral else ():
        walk = [neutral[0]]
        while len(walk) < p:
            walk.append(int(table[walk[-1], generator]))
        if len(set(walk)) == p:
            place = np.argsort(walk)
            ordered = place[table[np.ix_(walk, walk)]]
            return ordered if np.array_equal(ordered, addition(p)) else None
    return None
