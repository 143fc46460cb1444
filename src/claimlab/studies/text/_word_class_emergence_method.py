"""Scores and networks of word-class-emergence: generalised discrimination value, scaling, probe, word vectors, trigram model."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

# ---- the score: N points in D dimensions, L classes


def living(x: Tensor) -> Tensor:
    """The dimensions of x [N, D] that vary: a unit that is dead for all points has no z-score. [N, D']"""
    spread = x.std(0, correction=0)
    return x[:, spread > 1e-6 * x.abs().amax().clamp_min(1e-30)]


def gdv(x: Tensor, labels: Tensor) -> Tensor:
    """Generalised discrimination value of points x [N, D] with labels [N]; 0: no structure, -1: perfectly separate classes.

    Each dimension is z-scored over all points and halved. With dbar the mean Euclidean distance within or between classes,
    GDV = D^(-1/2) [ 1/L sum_l dbar(C_l) - 2/(L(L-1)) sum_{l<m} dbar(C_l, C_m) ] (Schilling et al. 2021).
    """
    x = living(x.double())
    if not x.shape[1]:
        return torch.zeros(())  # nothing varies: no structure
    x = 0.5 * (x - x.mean(0)) / x.std(0, correction=0)
    member = torch.nn.functional.one_hot(torch.unique(labels, return_inverse=True)[1]).to(x.dtype)
    size = member.sum(0)
    total = member.T @ torch.cdist(x, x) @ member  # sums of distances by pair of classes
    within = total.diagonal() / (size * (size - 1)).clamp_min(1)
    between = (total / (size[:, None] * size)).triu(1)
    many = len(size)
    return (within.mean() - 2 / (many * (many - 1)) * between.sum()) / math.sqrt(x.shape[1])


def slope(values: list[float]) -> float:
    """Least-squares slope of values over their index."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def scaling(x: np.ndarray) -> np.ndarray:
    """Classical multidimensional scaling of points [N, D] to the plane [N, 2], from their Euclidean distances alone.

    The squared distances, doubly centred, are -2 times the matrix of inner products; its two leading eigenvectors, times the
    roots of their eigenvalues, are the coordinates (Torgerson 1952). Each axis points so that its largest entry is positive.
    """
    from scipy.linalg import eigh

    square = ((x**2).sum(1)[:, None] + (x**2).sum(1) - 2 * x @ x.T).clip(0)
    inner = -0.5 * (square - square.mean(0) - square.mean(1)[:, None] + square.mean())
    values, vectors = eigh(inner, subset_by_index=[len(x) - 2, len(x) - 1])
    plane = vectors[:, ::-1] * np.sqrt(values[::-1].clip(0))
    return plane * np.sign(plane[abs(plane).argmax(0), [0, 1]])


def standard(fit: np.ndarray, judge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of points with mean 0 and deviation 1 by the first; dimensions that do not vary there are left out."""
    spread = fit.std(0)
    kept = spread > 1e-6 * max(abs(fit).max(), 1e-30)
    if not kept.any():
        return np.zeros((len(fit), 1)), np.zeros((len(judge), 1))
    return tuple((x[:, kept] - fit[:, kept].mean(0)) / spread[kept] for x in (fit, judge))


def probe(fit: np.ndarray, labels: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Classes [M] that multinomial logistic regression (L2, C = 1) on fit [N, D] with labels [N] tells for judge [M, D]."""
    from sklearn.linear_model import LogisticRegression

    first, second = standard(fit, judge)
    return LogisticRegression(C=1.0, max_iter=400, tol=1e-3).fit(first, labels).predict(second)


def centroids(fit: np.ndarray, labels: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Class [M] of the nearest class mean."""
    first, second = standard(fit, judge)
    kinds = np.unique(labels)
    means = np.stack([first[labels == k].mean(0) for k in kinds])
    return kinds[((means**2).sum(1) - 2 * second @ means.T).argmin(1)]


def agreement(x: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Adjusted Rand index of k-means on z-scored points with as many clusters as there are classes; 0: chance, 1: the same."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    found = KMeans(len(np.unique(labels)), n_init=3, random_state=seed).fit_predict(standard(x, x)[0])
    return float(adjusted_rand_score(labels, found))


# ---- word vectors and the trigram model: counts of the training text alone


def ppmi(words: np.ndarray, size: int, reach: int = 2):
    """Positive pointwise mutual information max(0, log P(a, b) / (P(a) P(b))) of words at most `reach` places apart; sparse [V, V]."""
    from scipy.sparse import coo_matrix

    near = sum(coo_matrix((np.ones(len(words) - k), (words[:-k], words[k:])), (size, size)) for k in range(1, reach + 1))
    near = (near + near.T).tocsr().tocoo()  # each pair once
    often = np.asarray(near.sum(0)).ravel()
    gain = np.log(near.data * often.sum() / (often[near.row] * often[near.col])).clip(0)
    return coo_matrix((gain, (near.row, near.col)), (size, size)).tocsr()


def ppmi_vectors(words: np.ndarray, size: int, dimension: int) -> np.ndarray:
    """Word vectors [V, dimension] by truncated SVD of the PPMI matrix, each coordinate scaled to the deviation 1 that a random
    start has."""
    from scipy.sparse.linalg import svds

    rank = min(dimension, size - 2)
    left, strength, _ = svds(ppmi(words, size), k=rank, v0=np.ones(size))
    vectors = np.zeros((size, dimension))
    vectors[:, :rank] = left[:, ::-1] * np.sqrt(strength[::-1])
    return vectors / np.maximum(vectors.std(0), 1e-12) * (vectors.std(0) > 0)


class KneserNey:
    """Interpolated Kneser-Ney trigram model (discount 0.75) of the word numbers 0 .. size - 1."""

    discount = 0.75

    def __init__(self, words: np.ndarray, size: int):
        from scipy.sparse import csr_matrix

        triples = np.unique(np.stack([words[:-2], words[1:-1], words[2:]], 1), axis=0, return_counts=True)
        (a, b, c), count = triples[0].T, triples[1].astype(float)
        self.size = size
        self.keys, row = np.unique(a * size + b, return_inverse=True)
        self.counts = csr_matrix((count, (row, c)), (len(self.keys), size))
        pairs, kinds = np.unique(np.stack([b, c], 1), axis=0, return_counts=True)  # left neighbours of each pair
        self.follow = csr_matrix((kinds.astype(float), pairs.T), (size, size))
        self.unigram = np.bincount(pairs[:, 1], minlength=size) / len(pairs)

    def __call__(self, last: np.ndarray) -> np.ndarray:
        """P(w | u, v) for contexts `last` [n, 2] of two words, oldest first: [n, size], rows sum to 1."""
        flat = 0.999 * self.unigram + 0.001 / self.size  # a word that was never seen
        lower = self._mix(self.follow[last[:, 1]], np.broadcast_to(flat, (len(last), self.size)))
        key = last[:, 0] * self.size + last[:, 1]
        row = np.searchsorted(self.keys, key).clip(0, len(self.keys) - 1)
        known = (self.keys[row] == key).astype(float)
        return self._mix(self.counts[row].multiply(known[:, None]).tocsr(), lower)

    def _mix(self, counts, lower: np.ndarray) -> np.ndarray:
        """Each count minus the discount, and what was taken away spread as the shorter context says."""
        dense = counts.toarray()
        total = dense.sum(1, keepdims=True)
        freed = np.where(total > 0, self.discount * (dense > 0).sum(1, keepdims=True) / np.maximum(total, 1), 1.0)
        return np.maximum(dense - self.discount, 0) / np.maximum(total, 1) + freed * lower


# ---- the networks


class Reader(nn.Module):
    """Word numbers [B, context], oldest first -> scores of the next word [B, V].

    `visible` words at the end are seen, the rest are replaced by <pad>. `vectors` [V, E], where given, stand fixed in place of a
    learned embedding. The buffers are what the live views look at: some contexts with the class and topic of the next word.
    """

    def __init__(self, size: int, context: int, layers: int, body: str = "mlp", visible: int = 0, vectors: Tensor | None = None,
                 looked: tuple[Tensor, Tensor, Tensor] | None = None, classes: tuple[str, ...] = (), wide: int = 48,
                 width: int = 128):  # fmt: skip
        super().__init__()
        start = torch.randn(size, wide)
        if vectors is None:
            self.embedding = nn.Parameter(start)
        else:
            self.register_buffer("embedding", vectors.float())
        self.visible, self.context, self.classes = visible or context, context, classes
        self.lstm = nn.LSTM(wide, width, batch_first=True) if body == "lstm" else None
        sizes = [context * wide, *[width] * layers] if body == "mlp" else [width] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(width, size)
        for name, tensor in zip(("contexts", "roles", "topics"), looked or (), strict=False):
            self.register_buffer(name, tensor.clone())

    def layers(self, x: Tensor) -> list[Tensor]:
        """Activations of every layer, [B, .] each: the joined word vectors, then the hidden layers."""
        hidden = self.context - self.visible
        x = torch.cat([torch.zeros_like(x[:, :hidden]), x[:, hidden:]], 1) if hidden else x
        vectors = self.embedding[x]
        found = [vectors.flatten(1)]
        if self.lstm is not None:
            found.append(self.lstm(vectors)[0][:, -1])
        for layer in self.hidden:
            found.append(layer(found[-1]).relu())
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x)[-1])
