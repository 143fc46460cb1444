"""Do two networks have the same units? Pure functions on activations, of the study convergent-learning.

X and Y are activations of two networks on the same samples in the same order, [N, p] and [N, q], one column a unit.
Correlations are Pearson's. Randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 20  # of each unit's histogram
LEAST = 0.01  # a unit that answers to a smaller share of the samples counts as dead


class Units(NamedTuple):
    """The living units of a layer: z-scores on the samples that choose partners [N, p] and on those that judge [M, p], both with
    the first's mean and deviation; the units' numbers in the layer [p]; how many were dead."""

    fit: np.ndarray
    held: np.ndarray
    index: np.ndarray
    dead: int


class Match(NamedTuple):
    """Partners chosen on `fit`, correlations of the partners on `held`. `one` pairs (rows, columns) use every unit once;
    `best` is the best partner of each unit of X, and may repeat."""

    between: np.ndarray  # held correlations [p, q]
    rows: np.ndarray
    columns: np.ndarray
    best: np.ndarray

    @property
    def one(self) -> np.ndarray:
        """Correlation of each unit of X with its own partner."""
        return self.between[self.rows, self.columns]

    @property
    def many(self) -> np.ndarray:
        """Correlation of each unit of X with its best partner."""
        return self.between[np.arange(len(self.between)), self.best]


# ---- units and how alike they are


def living(x: np.ndarray) -> np.ndarray:
    """Which units vary (s >= 1e-6) and differ from zero on at least 1 % of the samples. [N, p] -> [p] bool"""
    return (x.std(0) >= 1e-6) & ((x != 0).mean(0) >= LEAST)


def standardised(fit: np.ndarray, held: np.ndarray, drop: bool = True) -> Units:
    """z-scores (x - mu) / s with mu and s from `fit`. ValueError where fewer than two units are alive."""
    alive = living(fit) if drop else fit.std(0) >= 1e-6
    if alive.sum() < 2:
        raise ValueError(f"{alive.sum()} of {len(alive)} units are alive: at least 2 are needed to compare networks")
    mu, s = fit[:, alive].mean(0), fit[:, alive].std(0)
    return Units((fit[:, alive] - mu) / s, (held[:, alive] - mu) / s, np.flatnonzero(alive), int((~alive).sum()))


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """c_ij = E[(X_i - mu_i)(Y_j - mu_j)] / (s_i s_j), zero for a unit that does not vary. [p, q]"""
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.outer(np.sqrt((x * x).mean(0)), np.sqrt((y * y).mean(0)))
    return np.divide(x.T @ y / len(x), scale, out=np.zeros_like(scale), where=scale > 1e-9)


def information(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Mutual information of all pairs of units from histograms of equal width, in nats. [p, q]"""
    n, (p, q) = len(x), (x.shape[1], y.shape[1])
    joint = np.zeros((p * bins, q * bins), dtype=np.float32)
    for part in np.array_split(np.arange(n), -(-n // 2000)):  # for memory's sake
        joint += _boxes(x, part, bins).T @ _boxes(y, part, bins)
    joint = joint.astype(float).reshape(p, bins, q, bins).transpose(0, 2, 1, 3) / n
    apart = joint.sum(3, keepdims=True) * joint.sum(2, keepdims=True)
    share = np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log(share)).sum((2, 3))


def _boxes(x: np.ndarray, part: np.ndarray, bins: int) -> np.ndarray:
    """In which box of its unit's histogram each value lies, one-hot. [n, p * bins] float32"""
    low, high = x.min(0), x.max(0)
    box = np.minimum(((x[part] - low) / np.maximum(high - low, 1e-12) * bins).astype(int), bins - 1)
    found = np.zeros((len(part), x.shape[1] * bins), dtype=np.float32)
    np.put_along_axis(found, box + bins * np.arange(x.shape[1]), 1.0, axis=1)
    return found


# ---- one to one, and best partner


def matching(x: Units, y: Units, similarity: str = "correlation") -> Match:
    """Bipartite matching: the one-to-one assignment with the largest sum of similarities (Hungarian algorithm), and
    semi-matching: argmax_j for each unit i. Source: Li et al. 2015, sections 3.1 and 3.2."""
    from scipy.optimize import linear_sum_assignment

    alike = (correlations if similarity == "correlation" else information)(x.fit, y.fit)
    rows, columns = linear_sum_assignment(alike, maximize=True)
    return Match(correlations(x.held, y.held), rows, columns, alike.argmax(1))


def haar(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random orthogonal matrix, uniform over all of them. [n, n]. Source: Mezzadri 2007."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def rotated(units: Units, rng: np.random.Generator) -> Units:
    """The same subspace in a random orthogonal basis, standardised again."""
    q = haar(units.fit.shape[1], rng)
    turned = standardised(units.fit @ q, units.held @ q, drop=False)
    return turned._replace(dead=units.dead)


def shuffled(units: Units, rng: np.random.Generator) -> Units:
    """The same units with the samples of each part in another order: what is left of their likeness to others is chance."""
    return units._replace(fit=rng.permutation(units.fit), held=rng.permutation(units.held))


# ---- few to one: sparse regression


def lasso(gram: np.ndarray, cross: np.ndarray, prices: Sequence[float], sweeps: int = 300, tolerance: float = 1e-4) -> np.ndarray:
    """Weights [L, p, q] that minimise |y_j - X w|^2 / 2N + lambda |w|_1 for each column j of Y and each lambda of `prices`.

    `gram` = X'X / N [p, p], `cross` = X'Y / N [p, q]. Coordinate descent, all columns and prices at once; lambda = 0 is solved
    as least squares.
    """
    p, q = cross.shape
    price = np.repeat(np.asarray(prices, dtype=float), q)
    w, left = np.zeros((p, len(price))), np.tile(cross, len(prices))  # left = X'(Y - X w) / N
    todo = np.flatnonzero(price > 0)
    for _ in range(sweeps):
        before, v, rest = w[:, todo], w[:, todo], left[:, todo]
        for k in range(p):
            pull = rest[k] + gram[k, k] * v[k]
            new = np.sign(pull) * np.maximum(np.abs(pull) - price[todo], 0) / max(gram[k, k], 1e-12)
            if (change := new - v[k]).any():
                rest -= gram[:, k, None] * change
                v[k] = new
        w[:, todo], left[:, todo] = v, rest
        todo = todo[np.abs(v - before).max(0) >= tolerance]
        if not len(todo):
            break
    found = w.reshape(p, len(prices), q).transpose(1, 0, 2)
    for k in np.flatnonzero(np.asarray(prices) == 0):
        found[k] = np.linalg.lstsq(gram, cross, rcond=1e-10)[0]
    return found


def active(w: np.ndarray) -> np.ndarray:
    """Weights above 1e-3 in absolute value for each predicted unit. [..., p, q] -> [..., q]"""
    return (np.abs(w) > 1e-3).sum(-2)


def cheapest(count: np.ndarray, most: int) -> np.ndarray:
    """The place of the smallest price at which no more than `most` weights are active; the last one where there is none.
    [L, q], prices rising -> [q]"""
    fits = count <= most
    return np.where(fits.any(0), fits.argmax(0), len(count) - 1)


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of each column of y on the same column of x, both centred. [N, q] twice -> [q]"""
    return (x * y).sum(0) / np.maximum((x * x).sum(0), 1e-12)


# ---- many to many: clusters and subspaces


def spectral(between: np.ndarray, clusters: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the joint graph of both networks' units, [p] and [q]: edges |c_ij| between the networks, none inside one;
    k-means on the first k eigenvectors of L = I - D^(-1/2) W D^(-1/2). Source: Shi, Malik 2000; Li et al. 2015."""
    from sklearn.cluster import KMeans

    p, q = between.shape
    w = np.zeros((p + q, p + q))
    w[:p, p:] = np.abs(between)
    w += w.T
    root = 1 / np.sqrt(np.maximum(w.sum(1), 1e-12))
    k = min(clusters, p + q - 1)
    vectors = np.linalg.eigh(np.eye(p + q) - root[:, None] * w * root)[1][:, :k]
    labels = KMeans(k, n_init=10, random_state=int(rng.integers(2**31))).fit_predict(vectors)
    return labels[:p], labels[p:]


def agglomerated(x: np.ndarray, y: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of all units by average linkage with the distance 1 - |c|, [p] and [q]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    both = np.concatenate([x, y], axis=1)
    far = 1 - np.abs(correlations(both, both))
    np.fill_diagonal(far, 0)
    labels = fcluster(linkage(squareform(np.clip(far, 0, 1), checks=False), "average"), clusters, "maxclust") - 1
    return labels[: x.shape[1]], labels[x.shape[1] :]


def shared(first: np.ndarray, second: np.ndarray) -> list[int]:
    """Clusters of near-equal size in both networks: the smaller share has at least half as many units as the larger one."""
    count = [np.bincount(labels, minlength=max(first.max(), second.max()) + 1) for labels in (first, second)]
    few, many = np.minimum(*count), np.maximum(*count)
    return [int(k) for k in np.flatnonzero((few > 0) & (2 * few >= many))]


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles between the spans of the centred columns of x [N, p] and y [N, q], largest first:
    their canonical correlations. [min(p, q)]. Source: Björck, Golub 1973."""
    a, b = (_basis(one - one.mean(0)) for one in (x, y))
    return np.clip(np.linalg.svd(a.T @ b, compute_uv=False), 0, 1)


def overlap(x: np.ndarray, y: np.ndarray) -> float:
    """Mean cosine of the principal angles; zero where nothing varies on one side."""
    found = cosines(x, y)
    return float(found.mean()) if len(found) else 0.0


def _basis(x: np.ndarray) -> np.ndarray:
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-8 * max(s[0], 1e-12)]
