"""The method of the study mask-of-truth: versions of an image from one organ mask, the matrix of AUCs, what an ideal observer
reaches, expected gradients. Nothing here knows the data set. Images are [N, 1, H, W], masks [N, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.attribution import gradient
from claimlab.parts.ranking import auc

VERSIONS = ("full", "no_roi", "no_roi_box", "only_roi", "only_roi_box")

# ---- five versions of an image


def box_masks(centre: Tensor, reach: Tensor, dilation: int, size: tuple[int, int]) -> Tensor:
    """A box of one size around each centre [N, 2]: `reach` (up, down, left, right) and `dilation` more. [N, H, W] bool"""
    up, down, left, right = (reach + dilation).tolist()
    row = torch.arange(size[0], device=centre.device) - centre[:, :1]
    column = torch.arange(size[1], device=centre.device) - centre[:, 1:]
    return ((row >= -up) & (row <= down))[:, :, None] & ((column >= -left) & (column <= right))[:, None]


def kept(version: str, organ: Tensor, box: Tensor) -> Tensor:
    """The pixels that a version leaves: all, those outside the organ or its box, those inside. [N, H, W] bool"""
    return {"full": torch.ones_like(organ), "no_roi": ~organ, "no_roi_box": ~box, "only_roi": organ, "only_roi_box": box}[version]


def masked(x: Tensor, keep: Tensor, fill: str = "zero", grey: float = 0.0, rng: torch.Generator | None = None) -> Tensor:
    """x [N, 1, H, W] where `keep`; elsewhere black, the mean `grey`, noise around it, or the kept pixels smeared into the hole.

    blur divides by the smeared mask, so that no removed pixel takes part: no fill may bring back what was cut out.
    """
    keep = keep[:, None]
    if fill == "zero" or bool(keep.all()):
        return x * keep
    if fill == "mean":
        hole = torch.full_like(x, grey)
    elif fill == "noise":
        hole = (grey + 0.2 * torch.randn(x.shape, generator=rng).to(x)).clamp(0, 1)
    else:
        hole = smeared(x * keep) / smeared(keep.to(x)).clamp(min=1e-6)
    return torch.where(keep, x, hole)


def smeared(x: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of an eighth of the picture, zeros beyond its rim. [N, 1, H, W]"""
    for axis in (2, 3):
        side = x.shape[axis]
        at = torch.arange(1 - side, side, device=x.device, dtype=x.dtype)
        window = torch.exp(-((8 * at / side) ** 2) / 2)
        shape = [1, 1, 1, 1]
        shape[axis] = len(window)
        x = F.conv2d(x, window.view(shape), padding=[side - 1 if a == axis else 0 for a in (2, 3)])
    return x


def swapped(x: Tensor, donor: Tensor, centre: Tensor, reach: Tensor, dilation: int) -> Tensor:
    """x with the content of its box replaced by that of the donor's box, pixel by pixel from the boxes' centres. [N, 1, H, W]

    `donor` [N] are rows of x. The outside is the receiver's, the inside the donor's: both are real, and each knows only its own.
    """
    n, _, height, width = x.shape
    row = torch.arange(height, device=x.device) + (centre[donor] - centre)[:, :1]
    column = torch.arange(width, device=x.device) + (centre[donor] - centre)[:, 1:]
    rows = torch.arange(n, device=x.device)
    inside = x[donor, 0][rows[:, None, None], row.clamp(0, height - 1)[:, :, None], column.clamp(0, width - 1)[:, None]]
    return torch.where(box_masks(centre, reach, dilation, (height, width))[:, None], inside[:, None], x)


def donors(patient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image the row of an image of another patient: patients in random order, each gets the next one's. [N]

    Drawn without a look at hospitals, signs or diseases.
    """
    order = rng.permutation(np.unique(patient))
    following = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    rows = {p: np.flatnonzero(patient == p) for p in order.tolist()}
    place = np.array([int((patient[:i] == p).sum()) for i, p in enumerate(patient)])
    return np.array([rows[following[p]][k % len(rows[following[p]])] for p, k in zip(patient.tolist(), place, strict=True)])


def by_patient(patient: np.ndarray, shares: tuple[float, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of images for each share of the patients, and for what is left; all images of a patient fall on one side."""
    order = rng.permutation(np.unique(patient))
    cuts = np.rint(np.cumsum(shares) * len(order)).astype(int)
    return [np.flatnonzero(np.isin(patient, part)) for part in np.split(order, cuts)]


# ---- intervals and the ideal observer


def bootstrap(y: np.ndarray, score: np.ndarray, patient: np.ndarray, rng: np.random.Generator, draws: int = 200) -> tuple[float, float]:
    """95 % interval of the AUC when patients (not images) are drawn again with replacement."""
    _, number = np.unique(patient, return_inverse=True)
    count = number.max() + 1
    times = rng.multinomial(count, np.full(count, 1 / count), draws)
    return tuple(np.nanquantile(auc(y, score, times[:, number]), (0.025, 0.975)).tolist())


def ideal_auc(rho: float, q: float, site: bool, own: bool, others: int = 0) -> float:
    """AUC of the ideal observer of one disease D who sees the hospital S, the finding's own sign V, the signs of `others`.

    P(D = 1 | S) = 1/2 +- rho/2, each V = D with probability q, diseases are independent given S. Exact: all patterns of cues
    are listed with their probability under D = 0 and D = 1, and ranked by the ratio. One cue alone gives q, or 1/2 + rho/2.
    """
    link = (1 + rho) / 2
    agree = link * q + (1 - link) * (1 - q)  # of another finding's sign with S
    seen: dict[tuple, np.ndarray] = {}
    for s, v, *rest in product((0, 1), repeat=2 + others):
        chance = np.array([(link if d == s else 1 - link) * (q if d == v else 1 - q) for d in (0, 1)])
        for one in rest:
            chance = chance * (agree if one == s else 1 - agree)
        pattern = (s if site else -1, v if own else -1, *rest)
        seen[pattern] = seen.get(pattern, 0) + chance
    table = np.array(list(seen.values()))
    table /= table.sum(0)
    ratio = np.round(table[:, 1] / table.sum(1), 12)
    return float(sum(a * b * ((r > t) + (r == t) / 2) for a, r in zip(table[:, 1], ratio, strict=True)
                     for b, t in zip(table[:, 0], ratio, strict=True)))  # fmt: skip


def independent(site: np.ndarray, disease: np.ndarray) -> np.ndarray:
    """Weights under which hospital and each disease are independent: P(S) P(D) / P(S, D), from counts. [N], [N, K] -> [N, K]"""
    found = np.ones(disease.shape)
    for k, s, d in product(range(disease.shape[1]), np.unique(site), (0, 1)):
        cell = (site == s) & (disease[:, k] == d)
        if cell.any():
            found[cell, k] = (site == s).mean() * (disease[:, k] == d).mean() / cell.mean()
    return found


# ---- attribution and embeddings


def expected_gradients(net: nn.Module, x: Tensor, target: Tensor, base: Tensor, rng: torch.Generator, draws: int = 16) -> Tensor:
    """mean over baselines x' (rows of `base`) and a in [0, 1] of (x - x') d f(x' + a (x - x')) / dx, signed. [B, 1, H, W]

    Its sum tends to f(x) - mean f(x'). This is gradient SHAP without noise. Source: Erion et al. 2021; Lundberg, Lee 2017.
    """
    total = torch.zeros_like(x)
    for _ in range(draws):
        start = base[torch.randint(len(base), (len(x),), generator=rng).to(x.device)]
        a = torch.rand(len(x), 1, 1, 1, generator=rng).to(x)
        total += (x - start) * gradient(net, start + a * (x - start), target)
    return total / draws


def share_inside(maps: Tensor, organ: Tensor) -> Tensor:
    """Share of the absolute attribution [B, 1, H, W] that lies in the organ [B, H, W]. [B]"""
    size = maps.abs()[:, 0]
    return (size * organ).sum((1, 2)) / size.sum((1, 2)).clamp(min=1e-12)


def probe(train: np.ndarray, label: np.ndarray, test: np.ndarray, wanted: np.ndarray) -> float:
    """AUC on `test` [M, d] of a logistic regression on embeddings `train` [N, d]: is `label` written in them linearly?"""
    if len(np.unique(label)) < 2:
        return float("nan")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(train)
    found = LogisticRegression(max_iter=200).fit(scale.transform(train), label)
    return float(auc(wanted, found.decision_function(scale.transform(test))))


def answers(score: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """What `score` gives, as an array."""
    with torch.no_grad():
        return score(x).cpu().numpy().astype(float)
