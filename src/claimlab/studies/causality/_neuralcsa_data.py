"""Data of the study neuralcsa: two simulated worlds with a hidden cause, and an observational table of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.data.own import read_table
from claimlab.parts.confounding import hidden_cause


@dataclass(frozen=True)
class Data:
    """Covariates x [N, d], treatment a [N] as the flow sees it (-1 and 1, or real), outcome y [N] standardised by (mean, sd).

    `points` [n, d] are where the effect is asked for, between the treatments `levels` (1 first). `truth` [n] is the true
    answer in units of sd, NaN where nobody knows it; `e` [n] is P(A = 1 | x) there, for the strength of a hidden cause.
    """

    x: Tensor
    a: Tensor
    y: Tensor
    scale: tuple[float, float]
    points: Tensor
    levels: tuple[float, float]
    truth: Tensor
    e: Tensor
    binary: bool


def outcome(s: Tensor, x: Tensor) -> Tensor:
    """The outcome without hidden cause and noise at treatment s = 2 A - 1 in [-1, 1]."""
    return s * x + s - 2 * torch.sin(2 * s * x)


def pull(x: Tensor) -> Tensor:
    """What the hidden cause takes from the outcome, times 2 U - 1."""
    return 2 * (1 + 0.5 * x)


def propensity(x: Tensor) -> Tensor:
    """P(A = 1 | x) of the binary world."""
    return torch.sigmoid(0.75 * x + 0.5)


def draw(seed: int, rows: int, gamma: float, dose: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [N, 1], s [N] in [-1, 1], y [N] and the hidden u [N] of a world whose confounding has strength gamma.

    Binary (Kallus, Mao, Zhou 2019): exactly gamma. With a dose: s = 2 sigmoid(0.75 x + log(gamma) (u - 1/2) + e) - 1 with e
    logistic; the density ratio of two logistic laws a step d apart is at most exp(d), so that the strength is at most gamma.
    """
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4, rows, generator=rng, dtype=torch.float64)
    x = 4 * uniform[0] - 2
    p0, p1, share = hidden_cause(propensity(x), gamma)
    u = (uniform[1] < (0.5 if dose else share)).double()
    if dose:
        s = 2 * torch.sigmoid(0.75 * x + np.log(gamma) * (u - 0.5) + torch.logit(uniform[2].clamp(1e-9, 1 - 1e-9))) - 1
    else:
        s = 2 * (uniform[2] < torch.where(u > 0, p1, p0)).double() - 1
    y = outcome(s, x) - pull(x) * (2 * u - 1) + torch.randn(rows, generator=rng, dtype=torch.float64)
    return x[:, None], s, y, u


def answer(query: str, x: Tensor, levels: tuple[float, float], gamma: float, dose: bool, scale: tuple[float, float]) -> Tensor:
    """The true answer at x [n], the hidden cause summed out, in units of sd; a probability for prob_above."""
    mean, sd = scale
    high, low = (outcome(torch.full_like(x, s), x) for s in levels)
    share = torch.full_like(x, 0.5) if dose else hidden_cause(propensity(x), gamma)[2]
    if query in ("cate", "ate"):
        effect = (high - low) / sd
        return effect.mean(-1, keepdim=True).expand_as(effect) if query == "ate" else effect
    means = torch.stack([high + pull(x), high - pull(x)])  # u = 0 and u = 1
    found = 1 - torch.special.ndtr(mean - means) if query == "prob_above" else (means - mean) / sd
    return (1 - share) * found[0] + share * found[1]


@lru_cache(maxsize=64)
def simulated(seed: int, rows: int, n: int, gamma: float, dose: bool, query: str) -> Data:
    """One seed of a simulated world, with n query points in [-1.8, 1.8]."""
    x, s, y, _ = draw(seed, rows, gamma, dose)
    scale = (float(y.mean()), float(y.std()))
    points, levels = torch.linspace(-1.8, 1.8, n, dtype=torch.float64), (0.5, -0.5) if dose else (1.0, -1.0)
    truth = answer(query, points, levels, gamma, dose, scale)
    single = [part.float() for part in (x, s, (y - scale[0]) / scale[1], points[:, None], truth, propensity(points))]
    x, s, y, points, truth, e = single
    return Data(x, s, y, scale, points, levels, truth, e, not dose)


# ---- a table of one's own


@lru_cache(maxsize=4)
def own(path: str, n: int) -> Data:
    """An observational table: a CSV in UTF-8 with the columns `treatment`, `outcome` and one covariate or more, all numbers.

    The treatment is 0 and 1, or real. Covariates and outcome are standardised (the scale is kept); the query points are n rows
    evenly spaced in the order of the first covariate. ValueError names the file, what is wrong and what is allowed: 100 rows or
    more, no missing values, both treatments, an outcome that varies, overlap (propensity of a logistic regression in
    [0.02, 0.98], else the rows are named).
    """
    file, table = _table(path)
    x = table.drop(columns=["treatment", "outcome"]).to_numpy(float)
    a, y = table["treatment"].to_numpy(float), table["outcome"].to_numpy(float)
    for name, column in (("outcome", y), ("treatment", a), *((str(c), table[c].to_numpy(float)) for c in table)):
        if column.std() == 0:
            raise ValueError(f"{file.name}: the column {name} is {column[0]:g} in every row; it has to vary")
    x = (x - x.mean(0)) / x.std(0)
    binary = set(np.unique(a)) == {0.0, 1.0}
    if not binary and len(np.unique(a)) < 10:
        raise ValueError(f"{file.name}: treatment has the values {np.unique(a).tolist()}; allowed are 0 and 1, or real numbers")
    share = _overlap(file, x, a) if binary else 0.5
    s = 2 * a - 1 if binary else (a - a.mean()) / a.std()
    levels = (1.0, -1.0) if binary else tuple(np.quantile(s, [0.75, 0.25]).tolist())
    rows = np.argsort(x[:, 0], kind="stable")[np.linspace(0, len(x) - 1, n + 2).astype(int)[1:-1]]
    tensors = [torch.as_tensor(part, dtype=torch.float32) for part in (x, s, (y - y.mean()) / y.std(), x[rows])]
    unknown = torch.full((n,), float("nan"))
    return Data(*tensors[:3], (float(y.mean()), float(y.std())), tensors[3], levels, unknown, torch.full((n,), share), binary)


def _table(path: str):

    file = Path(path)
    table = read_table(file)
    if not {"treatment", "outcome"} <= set(table) or table.shape[1] < 3:
        raise ValueError(f"{file.name} needs the columns treatment, outcome and one covariate or more; it has "
                         f"{', '.join(map(str, table.columns))}")  # fmt: skip
    if len(table) < 100:
        raise ValueError(f"{file.name} has {len(table)} rows; 100 or more are needed")
    if words := [name for name in table if table[name].dtype.kind not in "iufb"]:
        raise ValueError(f"{file.name}: the column {words[0]} holds other things than numbers")
    if (bad := (~np.isfinite(table.to_numpy(float))).any(1)).any():
        raise ValueError(f"{file.name}: row {bad.argmax() + 1} has a value that is missing or not finite ({bad.sum()} such rows)")
    return file, table


def _overlap(file: Path, x: np.ndarray, a: np.ndarray) -> float:
    """The share of treated rows; ValueError where a treatment is nearly certain."""
    from sklearn.linear_model import LogisticRegression

    e = LogisticRegression().fit(x, a).predict_proba(x)[:, 1]
    far = ((e < 0.02) | (e > 0.98)).nonzero()[0] + 1
    if len(far):
        shown = ", ".join(map(str, far[:8])) + (" ..." if len(far) > 8 else "")
        raise ValueError(f"{file.name}: no overlap in {len(far)} rows ({shown}): their propensity is outside [0.02, 0.98]; "
                         "leave such rows out")  # fmt: skip
    return float(a.mean())
