"""Potentials of the study quantum-well-pinn: the three wells, a user's own, and their exact states by finite differences.

The box is x in [0, 1]; E and V are in units of hbar^2 / (2 m L^2).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.linalg import eigh_tridiagonal
from scipy.special import expit


@dataclass(frozen=True)
class Step:
    """V = height where |x - 1/2| > half (a well), or where it is smaller (`inside`: a barrier); else 0."""

    height: float
    half: float
    inside: bool = False
    smooth: float = 0.0

    def __call__(self, x: np.ndarray, cell: float = 0.0) -> np.ndarray:
        """V at x; with `cell`, the jump's mean over [x - cell/2, x + cell/2], which keeps sums on a grid second order."""
        out = (np.abs(x - 0.5) - self.half) * (-1 if self.inside else 1)
        if self.smooth:
            return self.height * expit(out / self.smooth)
        return self.height * (np.clip(out / cell + 0.5, 0, 1) if cell else (out > 0))


@dataclass(frozen=True)
class Sampled:
    """A potential from a table, linear in between; `height` is the span of its values."""

    x: tuple[float, ...]
    v: tuple[float, ...]

    @property
    def height(self) -> float:
        return max(self.v) - min(self.v)

    def __call__(self, x: np.ndarray, cell: float = 0.0) -> np.ndarray:
        return np.interp(x, self.x, self.v)


Potential = Step | Sampled


def source() -> str:
    """The user's own potential: the CSV file that CLAIMLAB_DATA names, or empty."""
    return os.environ.get("CLAIMLAB_DATA", "")


@lru_cache(maxsize=4)
def load(path: str) -> Sampled:
    """Read a sampled potential: a CSV with the columns x (ascending) and V, at least 50 rows. x is rescaled to [0, 1], so V is
    meant in units of hbar^2 / (2 m L^2) with L the file's whole range of x. ValueError says what is wrong and what is allowed."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"CLAIMLAB_DATA names {file}, which is not a file")
    try:
        table = pd.read_csv(file, encoding="utf-8")
    except (ValueError, OSError) as error:  # parser and encoding errors are ValueErrors
        raise ValueError(f"{file.name} is not a CSV file in UTF-8: {error}") from None
    if missing := [name for name in ("x", "V") if name not in table]:
        raise ValueError(f"{file.name}: the column {' and '.join(missing)} is missing; it must have the columns x and V")
    if len(table) < 50:
        raise ValueError(f"{file.name} has {len(table)} rows; at least 50 are needed")
    for name in ("x", "V"):
        if table[name].dtype.kind not in "iuf":
            raise ValueError(f"{file.name}: column {name} holds text; only numbers are allowed")
        if bad := (~np.isfinite(table[name])).to_numpy().nonzero()[0].tolist():
            raise ValueError(f"{file.name}: {name} in row {bad[0] + 1} is not a finite number")
    x, v = table["x"].to_numpy(float), table["V"].to_numpy(float)
    if (step := np.diff(x)).min() <= 0:
        raise ValueError(f"{file.name}: x must ascend, but row {step.argmin() + 2} does not lie above row {step.argmin() + 1}")
    return Sampled(tuple(((x - x[0]) / (x[-1] - x[0])).tolist()), tuple(v.tolist()))


def potential(name: str, v0: float, smooth: float = 0.0) -> Potential:
    """The potential of an arm: infinite, finite, barrier, or own (from CLAIMLAB_DATA)."""
    if name == "own":
        return load(source())
    return {"infinite": Step(0.0, 0.5), "finite": Step(v0, 0.25, smooth=smooth), "barrier": Step(v0, 0.1, True, smooth)}[name]


@lru_cache(maxsize=16)
def solve(v: Potential, n: int = 2000, levels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite differences: n interior points x [n], the lowest energies [levels], their normalised psi [levels, n].

    -psi'' becomes (-psi_{i-1} + 2 psi_i - psi_{i+1}) / h^2 with h = 1 / (n + 1): a tridiagonal matrix, error O(h^2).
    """
    h = 1 / (n + 1)
    x = np.arange(1, n + 1) * h
    energies, states = eigh_tridiagonal(2 / h**2 + v(x, h), np.full(n - 1, -1 / h**2), select="i", select_range=(0, levels - 1))
    states = states.T / math.sqrt(h)
    return x, energies, states * np.sign(states[:, :1])


def interior_zeros(psi: np.ndarray) -> int:
    """Sign changes of psi where it is above 2 % of its maximum: 0 for a ground state, 2 for the third level."""
    clear = psi[np.abs(psi) > 0.02 * np.abs(psi).max()]
    return int((np.diff(np.sign(clear)) != 0).sum())


def compare(psi: np.ndarray, energy: float | None, v: Potential) -> dict[str, float]:
    """Errors of psi (on the reference nodes) and energy against the ground state. The sign of psi is free, its size is not."""
    _, levels, states = solve(v)
    sign = np.sign(psi @ states[0]) or 1.0
    found = {"psi_error": float(np.linalg.norm(sign * psi - states[0]) / np.linalg.norm(states[0])), "nodes": interior_zeros(psi)}
    return found if energy is None else found | {"energy": energy, "energy_error": abs(energy - levels[0]) / abs(levels[0])}
