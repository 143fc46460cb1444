"""Which equations the study metalic plays: the simulated family, or reference solutions of one's own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from claimlab.data.own import read_table
from claimlab.studies.physics._metalic_physics import RANGES, SECOND, Advection, Poisson, Setting, grid_of

ORDER = 5  # of the spline through a reference solution: its third derivatives are still continuous


class Measured:
    """Reference solutions on grids of one's own, one a parameter, as splines; boundary data and source follow from them."""

    def __init__(self, family: str, tables: dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]]):
        from scipy.interpolate import RectBivariateSpline

        self.family, self.betas = family, tuple(sorted(tables))
        self.splines = {beta: RectBivariateSpline(*one, kx=ORDER, ky=ORDER) for beta, one in tables.items()}

    def u(self, beta, x, y):
        return self.splines[beta].ev(x, y)

    def f(self, beta, x, y, more: int = 0):
        if self.family == "advection":
            return np.zeros_like(x)
        return self.splines[beta].ev(x, y, dx=2 + more) + self.splines[beta].ev(x, y, dx=more, dy=2)

    def f_x(self, beta, x, y):
        return self.f(beta, x, y, more=1)


def load(folder: str, family: str) -> Measured:
    """Reference solutions from the CSV files of a folder, one a parameter, which the file's name ends with: beta_0.75.csv.

    Columns x, u and t (advection) or y (poisson), on a complete rectangular grid from 0 to 1 both ways. ValueError names the
    file, what is wrong and what is allowed.
    """
    place = Path(folder)
    files = sorted(place.glob("*.csv")) if place.is_dir() else []
    if len(files) < 3:
        raise ValueError(f"CLAIMLAB_DATA names {folder}, with {len(files)} .csv files; a folder with at least three is needed")
    tables = {}
    for file in files:
        beta = _parameter(file, family)
        if beta in tables:
            raise ValueError(f"{file.name}: the parameter {beta:g} has a file already; each may have one")
        tables[beta] = _table(file, SECOND[family])
    return Measured(family, tables)


def _parameter(file: Path, family: str) -> float:
    low, high = RANGES[family]
    found = re.search(r"(\d+(?:\.\d+)?)$", file.stem)
    if found is None:
        raise ValueError(f"{file.name}: the name must end with the parameter, such as beta_{low:g}.csv")
    if not low <= float(found[1]) <= high:
        raise ValueError(f"{file.name}: the parameter {found[1]} is outside of [{low:g}, {high:g}], the range of {family}")
    return float(found[1])


def _table(file: Path, second: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:

    table = read_table(file)
    if missing := [name for name in ("x", second, "u") if name not in table]:
        raise ValueError(f"{file.name} has no column {' and no '.join(missing)}; x, {second} and u are needed")
    table = table[["x", second, "u"]]
    if any(table[name].dtype.kind not in "iuf" for name in table) or not np.isfinite(table.to_numpy(float)).all():
        raise ValueError(f"{file.name} holds a value that is missing or no finite number; numbers alone are allowed")
    x, y = np.unique(table["x"]), np.unique(table[second])
    if len(table) != len(x) * len(y) or table.duplicated(["x", second]).any():
        raise ValueError(f"{file.name} is no complete grid: {len(table)} rows for {len(x)} values of x and {len(y)} of {second}")
    if min(len(x), len(y)) < 12 or any(abs(v[0]) > 1e-9 or abs(v[-1] - 1) > 1e-9 for v in (x, y)):
        raise ValueError(f"{file.name}: x and {second} must run from 0 to 1 with at least 12 values each")
    if not np.ptp(table["u"]):
        raise ValueError(f"{file.name}: u is the same everywhere; there is nothing to solve")
    return x, y, table.pivot(index="x", columns=second, values="u").to_numpy(float)


@dataclass(frozen=True)
class Stream:
    """The equations of a run: their setting, which of them are held out, and the parameter on a scale from 0 to 1."""

    setting: Setting
    held: np.ndarray  # [B] bool

    @property
    def scaled(self) -> np.ndarray:
        low, high = RANGES[self.setting.family]
        return (np.array(self.setting.betas) - low) / (high - low)


def stream(params) -> Stream:
    """The equations that the knobs name, or those in the folder that CLAIMLAB_DATA names."""
    return _stream(params.family, params.parameters, os.environ.get("CLAIMLAB_DATA", ""))


@lru_cache(maxsize=4)
def _stream(family: str, count: int, folder: str) -> Stream:
    if folder:
        equation = load(folder, family)
        return Stream(Setting(equation), np.arange(len(equation.betas)) % 3 == 1)
    betas, held = grid_of(family, count)
    return Stream(Setting({"advection": Advection, "poisson": Poisson}[family](betas)), np.array(held))
