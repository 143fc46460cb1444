"""What one seed learns: which bits decide, a fixed test set, and endless fresh bits; or the rows of a user's own CSV file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LEAST, DIFFERENT, BALANCE = 100, 16, 0.2


@dataclass(frozen=True)
class Lesson:
    """The `secret` places [k] of a seed and its test bits x [N, n] with y [N], all -1 or +1. `rows` (x, y) are training rows
    of a user's own; None where bits are drawn afresh."""

    secret: Tensor
    test: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor] | None = None


def source() -> str:
    """The CSV file that CLAIMLAB_DATA names, or empty."""
    return os.environ.get("CLAIMLAB_DATA", "")


def hidden(seed: int, n: int, k: int) -> Tensor:
    """The k places that decide, drawn from the seed, in order."""
    return torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(n)[:k]))


@lru_cache(maxsize=64)
def lesson(seed: int, n: int, k: int, path: str = "") -> Lesson:
    """The lesson of a seed: 4,096 fresh test inputs, or of one's own file all rows of a quarter of its different inputs."""
    rng = np.random.default_rng([seed, 1])
    if not path:
        secret = hidden(seed, n, k)
        x = torch.from_numpy(rng.integers(2, size=(4096, n)) * 2.0 - 1).float()
        return Lesson(secret, (x, x[:, secret].prod(1)))
    x, y = load_bits(path, n)
    _, which = np.unique(x, axis=0, return_inverse=True)  # an input that occurs twice must not be on both sides
    drawn = rng.permutation(which.max() + 1)
    asked = np.isin(which, drawn[: len(drawn) // 4])
    test, train = (tuple(torch.from_numpy(part[rows]) for part in (x, y)) for rows in (asked, ~asked))
    return Lesson(torch.empty(0, dtype=torch.int64), test, train)


@lru_cache(maxsize=4)
def load_bits(path: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits x [N, n] and labels y [N] as -1 or +1 from a CSV: a line of names, then n columns of 0 or 1 and one named `label`.

    A 1 becomes -1, so that a product is a parity. ValueError names the file, what is wrong and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"CLAIMLAB_DATA names {file}, which is not a file; a CSV with columns of 0 and 1 is needed")
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    if names.count("label") != 1:
        raise ValueError(f"{file.name}: {names.count('label')} columns are named label; exactly one must be")
    if len(names) - 1 != n:
        raise ValueError(f"{file.name}: {len(names) - 1} columns of bits, and the knob n is {n}; set n = {len(names) - 1}")
    cells = [[cell.strip() for cell in line.split(",")] for line in lines[1:]]
    for number, row in enumerate(cells, 2):
        if len(row) != len(names):
            raise ValueError(f"{file.name}, line {number}: {len(row)} entries; there are {len(names)} columns")
        if strange := sorted(set(row) - {"0", "1"}):
            raise ValueError(f"{file.name}, line {number}: the entry {strange[0]!r}; allowed are 0 and 1")
    if len(cells) < LEAST:
        raise ValueError(f"{file.name}: {len(cells)} rows; at least {LEAST} are needed")
    table, at = np.array(cells, dtype=np.float32), names.index("label")
    ones = float(table[:, at].mean())
    if ones in (0.0, 1.0):
        raise ValueError(f"{file.name}: the label is {ones:.0f} in every row; both 0 and 1 must occur")
    if not BALANCE <= ones <= 1 - BALANCE:
        raise ValueError(f"{file.name}: {ones:.0%} of the labels are 1; allowed is {BALANCE:.0%} to {1 - BALANCE:.0%}, since "
                         "an accuracy would say little of a label that is nearly always the same")  # fmt: skip
    bits = np.delete(table, at, 1)
    if (different := len(np.unique(bits, axis=0))) < DIFFERENT:
        raise ValueError(f"{file.name}: {different} different inputs; at least {DIFFERENT} are needed, a quarter of them for the test")
    return 1 - 2 * bits, 1 - 2 * table[:, at]
