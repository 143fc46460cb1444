"""The method of the study sobol-attribution: designs, Sobol indices from them, the black-box rivals, and the tests of a map.

Nothing here knows the data set. A grid has d = g x g cells; a mask m in [0, 1]^d says how much of each cell is shown. f is one
number an image: a class's logit or probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from claimlab.parts.attribution import SPLIT

# ---- the design: where f is asked


class Design(NamedTuple):
    """`a`, `b` [N, d] independent points; `c` [d, N, d] where c[i] is a with column i from b. In all N (d + 2) rows."""

    a: Tensor
    b: Tensor
    c: Tensor

    def rows(self) -> Tensor:
        """Every point in the order a, b, c[0], c[1], ... [N (d + 2), d]"""
        return torch.cat([self.a, self.b, self.c.flatten(0, 1)])


def design(points: int, cells: int, sampler: str, rng: np.random.Generator) -> Design:
    """Draw 2 d numbers for each of N points, the first d are a, the others b. Source: Saltelli 2002; section 3 of the paper.

    `sampler`: qmc is a scrambled Sobol sequence (no point skipped; N a power of two keeps its balance), latin a Latin
    hypercube, random independent uniform numbers.
    """
    from scipy.stats import qmc

    if sampler == "random":
        drawn = rng.random((points, 2 * cells))
    elif sampler == "latin":
        drawn = qmc.LatinHypercube(2 * cells, rng=rng).random(points)
    else:
        drawn = qmc.Sobol(2 * cells, scramble=True, rng=rng).random(points)
    a, b = torch.from_numpy(drawn.astype(np.float32)).split(cells, dim=1)
    c = a.repeat(cells, 1, 1)
    own = torch.arange(cells)
    c[own, :, own] = b.T
    return Design(a, b, c)

# ---- from the answers to the indices


class Answers(NamedTuple):
    """f at the rows of a design, for n images: a [n, N], b [n, N], c [n, d, N]."""

    a: Tensor
    b: Tensor
    c: Tensor

    def first(self, points: int) -> Answers:
        """The answers for the first `points` points: a smaller design, since the beginning of a Sobol sequence is one."""
        return Answers(self.a[:, :points], self.b[:, :points], self.c[:, :, :points])


def answers(f: Tensor, points: int) -> Answers:
    """Split f [n, N (d + 2)], as `Design.rows` orders them."""
    a, b, c = f.double().split([points, points, f.shape[1] - 2 * points], dim=1)
    return Answers(a, b, c.view(len(f), -1, points))


def total_index(f: Answers, formula: str = "jansen") -> Tensor:
    """ST_i = E[Var(f | all but m_i)] / Var f: the share of variance in which cell i has a part, alone or with others. [n, d]

    jansen: sum_j (f(a_j) - f(c_ij))^2 / 2N.  homma: V - (mean f(a) f(c_i) - mean f(a)^2).  janon: the same with mean and
    variance pooled over a and c_i.  saltelli: mean f(a) (f(a) - f(c_i)).  Each is divided by the variance V; only jansen
    cannot be negative. A constant f gives 0. Sources: Jansen 1999; Homma, Saltelli 1996; Janon et al. 2014; Saltelli et al. 2010.
    """
    a, c = f.a[:, None], f.c
    variance = f.a.var(1, keepdim=True)
    if formula == "jansen":
        part = (a - c).square().mean(2) / 2
    elif formula == "homma":
        part = variance - ((a * c).mean(2) - a.mean(2).square())
    elif formula == "saltelli":
        part = (a * (a - c)).mean(2)
    else:
        middle = (a + c).mean(2) / 2
        variance = (a.square() + c.square()).mean(2) / 2 - middle.square()
        part = variance - ((a * c).mean(2) - middle.square())
    return _share(part, variance, f)


def first_index(f: Answers) -> Tensor:
    """S_i = Var(E[f | m_i]) / Var f = 1 - sum_j (f(b_j) - f(c_ij))^2 / 2NV: what cell i does alone. [n, d]. Source: Jansen 1999.

    All d estimates share f(b): at N = 16 their errors point the same way, so their sum means nothing.
    """
    variance = f.a.var(1, keepdim=True)
    return _share(variance - (f.b[:, None] - f.c).square().mean(2) / 2, variance, f)


def _share(part: Tensor, variance: Tensor, f: Answers) -> Tensor:
    still = f.a.var(1, keepdim=True) <= 1e-20
    return torch.where(still, 0.0, part / variance.clamp(min=1e-300)).float()

# ---- masks on images, and the network's answer to them


def spread(m: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells to pixels, every pixel that of its cell. [K, d] -> [K, 1, H, W]"""
    grid = round(m.shape[1] ** 0.5)
    return F.interpolate(m.view(-1, 1, grid, grid), size=tuple(size), mode="nearest")


def dim(x: Tensor, masks: Tensor, hidden: Tensor) -> Tensor:
    """x~ = x M + (1 - M) mu for one image x [C, H, W], masks M [K, 1, H, W], mu = `hidden` (broadcast). [K, C, H, W]"""
    return hidden + masks * (x - hidden)


def ask(logits: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, masks: Tensor, hidden: Tensor, kind: str) -> Tensor:
    """f of every image [n, C, H, W] under every mask [K, 1, H, W]: the logit or probability of `target` [n]. [n, K]

    The masks of an image go to `logits` in pieces that stay in the processor's cache, channels last; `hidden` is mu,
    [n or 1, C, H or 1, W or 1].
    """
    found, parts = [], masks.split(SPLIT)
    with torch.no_grad():
        for one, mu in zip(x, hidden.expand(len(x), *hidden.shape[1:]), strict=True):
            last = one[None].contiguous(memory_format=torch.channels_last)[0]
            found.append(torch.cat([logits(dim(last, part, mu)) for part in parts]))
    chosen = torch.stack(found).softmax(2) if kind == "probability" else torch.stack(found)
    return chosen.gather(2, target[:, None, None].expand(-1, len(masks), 1))[..., 0]

# ---- the black-box rivals


def levels(count: int) -> list[float]:
    """0, 1/count, ... in an order whose every beginning is spread out (binary digits reversed; count a power of two)."""
    bits = count.bit_length() - 1
    return [int(f"{k:0{bits}b}"[::-1], 2) / count if bits else 0.0 for k in range(count)]


def one_at_a_time(count: int, cells: int) -> Tensor:
    """Masks that show all but one cell, which has one of `count` intensities. [count * d, d], intensity by intensity"""
    masks = torch.ones(count, cells, cells)
    own = torch.arange(cells)
    masks[:, own, own] = torch.tensor(levels(count))[:, None]
    return masks.flatten(0, 1)

# ---- what a map is worth


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Total variation distance of two maps, each divided by its sum. [n, d], [n, d] -> [n]"""
    a, b = (t / torch.where(t.sum(1) == 0, 1.0, t.sum(1))[:, None] for t in (a, b))
    return (a - b).abs().sum(1) / 2

# ---- interactions


def not_additive(m: np.ndarray, f: np.ndarray, folds: int = 5) -> np.ndarray:
    """1 - cross-validated R^2 of the ridge regression of f [K, n] on m_i and m_i^2 of all cells, m [K, d]. [n]

    What no sum of one-cell terms (linear or square) explains: interactions, finer shapes, and the fit's own error.
    """
    from sklearn.linear_model import RidgeCV

    features = np.concatenate([m - 0.5, (m - 0.5) ** 2 - 1 / 12], axis=1)
    guess = np.empty_like(f)
    for fold in np.array_split(np.arange(len(m)), folds):
        rest = np.setdiff1d(np.arange(len(m)), fold)
        ridge = RidgeCV(alphas=np.logspace(-3, 3, 13), alpha_per_target=True).fit(features[rest], f[rest])
        guess[fold] = ridge.predict(features[fold]).reshape(len(fold), -1)
    return ((f - guess) ** 2).mean(0) / np.maximum(f.var(0), 1e-30)


def stand_in(m: np.ndarray, profile: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A purely additive score: the sum over cells of what dimming that cell alone does, read off between intensities.

    m [K, d]; `profile` [n, len(at), d] is f with one cell at intensity `at`, in any order, 0 and 1 among them. [K, n]
    """
    order = np.argsort(at)
    at, profile = at[order], profile[:, order]
    return np.stack([sum(np.interp(m[:, i], at, one[:, i]) for i in range(m.shape[1])) for one in profile], axis=1)


def pair_strengths(m: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, float]:
    """How much of what additive terms leave of f [K] follows the product of two cells: correlations [d, d], noise level.

    Each is the correlation of the residual with (m_i - 1/2)(m_j - 1/2); without interaction its standard deviation is
    about 1 / sqrt(K), which is the second value.
    """
    features = np.concatenate([np.ones((len(m), 1)), m - 0.5, (m - 0.5) ** 2], axis=1)
    left = f - features @ np.linalg.lstsq(features, f, rcond=None)[0]
    z = (m - 0.5) * np.sqrt(12)
    strength = np.einsum("k,ki,kj->ij", left, z, z, optimize=True) / (len(m) * max(left.std(), 1e-30))
    np.fill_diagonal(strength, 0.0)
    return strength, len(m) ** -0.5
