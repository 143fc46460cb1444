"""Worlds whose hidden cause is known, tables drawn from them, and tables of one's own records."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from claimlab.data.own import read_table
from claimlab.parts.confounding import hidden_cause
from claimlab.studies.causality._causal_fairness_sensitivity_method import level

LEVELS = torch.arange(-2.0, 3.0, dtype=torch.float64)  # of z
CUTS = torch.tensor([-1.5, 0.0, 1.5], dtype=torch.float64)  # of the ordered logit of m
FACTORS = (0.75, 1.0, 1.5)
WORLDS = 20  # fresh worlds of each seed, for the coverage
ROLES = "a=a; z=z; m=m; y=y"
LEAST = 20  # rows of each (a, z)


@dataclass(frozen=True)
class World:
    """Probabilities of the simulation: z [K], u = 1 given z [K], a = 1 given (u, z) [2, K], m given (u, a, z) [2, 2, K, d],
    y = 1 given (u, a, z, m) [2, 2, K, d]. Strength = true_gamma x factor; sign says which way u moves m."""

    z: Tensor
    u: Tensor
    a: Tensor
    m: Tensor
    y: Tensor
    factor: float
    sign: int

    @property
    def causes(self) -> Tensor:
        """P(u | z) [2, K]."""
        return torch.stack([1 - self.u, self.u])

    @property
    def joint(self) -> Tensor:
        """P(u, z, a, m, y) [2, K, 2, d, 2]."""
        a = torch.stack([1 - self.a, self.a], -1)  # [u, K, a]
        y = torch.stack([1 - self.y, self.y], -1)
        return (self.z * self.causes)[..., None, None, None] * a[..., None, None] * (self.m[..., None] * y).transpose(1, 2)

    def law(self, conditional: bool = False) -> Tensor:
        """P(m | do(i), z) by the unit's own a, then i [2, 2, K, d]; `conditional`: of the units who have that a."""
        given = torch.stack([1 - self.a, self.a]) * self.causes  # P(a, u | z) [a, u, K]
        weight = given / given.sum(1, keepdim=True) if conditional else self.causes.expand(2, -1, -1)
        return torch.einsum("auk,uikm->aikm", weight, self.m)

    def outcome(self) -> Tensor:
        """P(y = 1 | do(a, m), z) [2, K, d]."""
        return torch.einsum("uk,uakm->akm", self.causes, self.y)

    @property
    def share(self) -> Tensor:
        """P(z | a) [2, K]."""
        both = self.joint.sum((0, 3, 4)).T
        return both / both.sum(1, keepdim=True)


def world(true_gamma: float, strength: float, factor: float, sign: int) -> World:
    """The world of that strength, `strength` being how far u moves the score of the mediator."""
    edges = norm.cdf([-np.inf, -1.5, -0.5, 0.5, 1.5, np.inf])
    z, e = torch.tensor(np.diff(edges)), torch.sigmoid(0.6 * LEVELS)
    p0, p1, u = hidden_cause(e, float(level(true_gamma, torch.tensor(factor, dtype=torch.float64))))
    push = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]
    a = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]
    score = 0.8 * LEVELS + 0.7 * a + sign * strength * push
    below = torch.sigmoid(CUTS - score[..., None])
    m = torch.diff(below, dim=-1, prepend=torch.zeros_like(below[..., :1]), append=torch.ones_like(below[..., :1]))
    place = torch.arange(4, dtype=torch.float64) - 1.5
    y = torch.sigmoid(-0.5 + 0.6 * LEVELS[:, None] + 0.5 * a[..., None] + 0.8 * place + 0.5 * push[..., None])
    return World(z, u, torch.stack([p0, p1]), m, y, factor, sign)


@dataclass(frozen=True)
class Cases:
    """One seed's tables of counts [K, 2, d, 2] by (z, a, m, y): `train` has the own world in front of the fresh ones
    [1 + W, ...], `test` is of the own world. z [K, F] holds the levels, `worlds` the truth (none for records)."""

    z: Tensor
    train: Tensor
    test: Tensor
    worlds: tuple[World, ...]


@lru_cache(maxsize=64)
def cases(seed: int, rows: int, true_gamma: float, strength: float, records: str = "simulated", path: str = "", roles: str = "") -> Cases:
    """All data of `seed`, which follow from these numbers alone. A path, or records, replace the simulation: halved at random."""
    rng = np.random.default_rng(seed)
    if path or records != "simulated":
        z, coded = case_records(path, roles or ROLES) if path else recidivism()
        order = rng.permutation(len(coded[0]))
        first, second = (table(*(column[half] for column in coded)) for half in np.array_split(order, 2))
        shape = tuple(max(a, b) for a, b in zip(first.shape, second.shape, strict=True))
        train, test = (_padded(one, (len(z), *shape[1:])) for one in (first, second))
        return Cases(z, train[None], test, ())
    drawn = [world(true_gamma, strength, FACTORS[rng.integers(3)], int(rng.choice([-1, 1]))) for _ in range(1 + WORLDS)]
    counts = [torch.tensor(draw(one, rows, rng)) for one in (*drawn, drawn[0])]
    return Cases(LEVELS[:, None] / 2**0.5, torch.stack(counts[:-1]), counts[-1], tuple(drawn))


def draw(one: World, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Counts [K, 2, d, 2] of `rows` independent units, of whom u is not seen."""
    seen = one.joint.sum(0)
    return rng.multinomial(rows, seen.flatten().numpy()).reshape(seen.shape).astype(float)


def table(z: np.ndarray, a: np.ndarray, m: np.ndarray, y: np.ndarray) -> Tensor:
    """Counts [K, 2, d, 2] of coded columns [N]."""
    found = np.zeros((z.max() + 1, 2, m.max() + 1, 2))
    np.add.at(found, (z, a, m, y), 1.0)
    return torch.tensor(found)


def _padded(counts: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = torch.zeros(shape, dtype=counts.dtype)
    found[tuple(slice(n) for n in counts.shape)] = counts
    return found


# ---- records of one's own


def parse_roles(text: str) -> dict[str, list[str]]:
    """Columns by role from "a=race; z=age, education; m=priors; y=arrest". ValueError says what is wrong."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        role, _, names = part.partition("=")
        found[role.strip()] = [name.strip() for name in names.split(",") if name.strip()]
    if set(found) != {"a", "z", "m", "y"} or not all(found.values()) or any(len(found[r]) != 1 for r in "amy"):
        raise ValueError(f"the roles {text!r} must name one column for each of a, m and y and one or more for z, "
                         "as in 'a=race; z=age, education; m=priors; y=arrest'")  # fmt: skip
    used = [name for names in found.values() for name in names]
    if twice := {name for name in used if used.count(name) > 1}:
        raise ValueError(f"the column {min(twice)} has two roles; a, z, m and y must be different columns")
    return found


def case_records(path: str, roles: str = ROLES) -> tuple[Tensor, tuple[np.ndarray, ...]]:
    """Levels of z [K, F], standardised, and the coded columns z, a, m, y of a CSV. ValueError names file and reason.

    a and y hold 0 and 1, m at most ten whole numbers 0, 1, ..., z numbers of at most 40 distinct combinations; each (a, z)
    needs 20 rows, or there is nobody to compare with.
    """

    file, wanted = Path(path), parse_roles(roles)
    frame = read_table(file)
    names = [name for role in "zamy" for name in wanted[role]]
    if absent := [name for name in names if name not in frame]:
        raise ValueError(f"{file.name} has no column {absent[0]}; it has {', '.join(map(str, frame.columns))}; "
                         "CLAIMLAB_ROLES says which column is what")  # fmt: skip
    if not len(frame):
        raise ValueError(f"{file.name} has no rows")
    return coded(frame, wanted, file.name)


def coded(frame, roles: dict[str, list[str]], name: str) -> tuple[Tensor, tuple[np.ndarray, ...]]:
    """The columns of `frame` as levels of z and codes; ValueError where they do not fit."""
    for column in (c for names in roles.values() for c in names):
        if frame[column].dtype.kind not in "iufb":
            raise ValueError(f"{name}: the column {column} holds other things than numbers")
        if not np.isfinite(frame[column].to_numpy(float)).all():
            raise ValueError(f"{name}: the column {column} has a value that is missing or not finite")
    a, m, y = (_whole(frame[roles[role][0]], role, name) for role in "amy")
    z, place = np.unique(frame[roles["z"]].to_numpy(float), axis=0, return_inverse=True)
    if len(z) > 40:
        raise ValueError(f"{name}: z has {len(z)} distinct combinations; at most 40 are allowed, so put its values into groups")
    rows = table(place.ravel(), a, m, y).sum((2, 3))
    if rows.min() < LEAST:
        k, one = divmod(int(rows.argmin()), 2)
        raise ValueError(f"{name}: a = {one} and z = {z[k].tolist()} have {int(rows.min())} rows; every pair needs at least {LEAST}")
    spread = z.std(0)
    return torch.tensor((z - z.mean(0)) / np.where(spread > 0, spread, 1)), (place.ravel(), a, m, y)


def _whole(column, role: str, name: str) -> np.ndarray:
    values, most = column.to_numpy(float), 10 if role == "m" else 2
    found = np.unique(values).tolist()
    if found != list(range(len(found))) or not 2 <= len(found) <= most:
        allowed = "0 and 1" if most == 2 else "whole numbers 0, 1, ... without a gap, two to ten of them"
        raise ValueError(f"{name}: the column {column.name} ({role}) holds {found[:12]}; allowed are {allowed}")
    return values.astype(np.int64)


def recidivism() -> tuple[Tensor, tuple[np.ndarray, ...]]:
    """The records of 432 released prisoners that come with lifelines: a = race, z = age above its median, m = prior convictions
    in four groups, y = arrested within a year (Rossi, Berk, Lenihan 1980)."""
    try:
        from lifelines.datasets import load_rossi
    except ImportError:
        raise ValueError("records = recidivism needs the package lifelines, which holds the table: pip install lifelines") from None
    frame = load_rossi()
    grouped = {"a": frame["race"], "z": (frame["age"] > frame["age"].median()).astype(int), "y": frame["arrest"],
               "m": np.digitize(frame["prio"], [1, 3, 6])}  # fmt: skip
    import pandas as pd

    return coded(pd.DataFrame(grouped), {role: [role] for role in "azmy"}, "lifelines.datasets.load_rossi")


def of(seed: int, p) -> Cases:
    """The data of `seed` at the knobs `p`; CLAIMLAB_DATA names one's own CSV, CLAIMLAB_ROLES its columns."""
    path, roles = os.environ.get("CLAIMLAB_DATA", ""), os.environ.get("CLAIMLAB_ROLES", "")
    return cases(seed, p.rows, p.true_gamma, p.confounder_to_mediator, p.records, path, roles)
