"""How well scores order what is relevant above what is not."""

from __future__ import annotations

import numpy as np


def auc(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """P(score of a positive > score of a negative) + half the ties; NaN where one class is missing.

    y [N] in {0, 1}, score [N], weights [..., N] (how often an example counts). A number, or one for each row of weights.
    """
    weight = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=float)
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # of each run of equal scores
    good = np.add.reduceat((weight * (y == 1))[..., order], first, axis=-1)
    bad = np.add.reduceat((weight * (y == 0))[..., order], first, axis=-1)
    won = (good * (np.cumsum(bad, -1) - bad / 2)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / (good.sum(-1) * bad.sum(-1))
