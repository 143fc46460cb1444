"""Formulas of the study it-generalization-bounds: KL and Wasserstein by layer, contraction of noisy channels, exact Gibbs sums."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import ndtr
from torch import Tensor

SIGMA = 0.5  # a loss in [0, 1] is sub-Gaussian with this parameter

# ---- the binary Gaussian model: Y = +-1, X | Y ~ N(Y mu, s^2 I_d), w = mean of Y_i X_i over n examples


def kl_gaussians(shift2, v0: float, v1: float, r):
    """KL(N(a, v0 I_r) || N(b, v1 I_r)) in nats, where shift2 = |a - b|^2."""
    return 0.5 * (r * (v0 / v1 - 1 - math.log(v0 / v1)) + shift2 / v1)


def w2_gaussians(shift2, v0: float, v1: float, r):
    """2-Wasserstein distance of the same two Gaussians; never below their 1-Wasserstein distance."""
    return np.sqrt(shift2 + r * (math.sqrt(v0) - math.sqrt(v1)) ** 2)


def ranks(d: int, depth: int) -> list[int]:
    """Dimensions d = r_0 > r_1 > ... > r_L = 1 in about equal ratios; L = depth, or as many as fit."""
    depth, found = min(depth, d - 1), [d]
    for layer in range(1, depth + 1):
        found.append(min(found[-1] - 1, max(round(d ** (1 - layer / depth)), depth - layer + 1)))
    return found


class Layers(NamedTuple):
    """Draws of w for the binary Gaussian model: KL and W_2 between training and fresh representations given w [draws, L + 1],
    population error and training error of sign(w.x) [draws]."""

    kl: np.ndarray
    w2: np.ndarray
    test: np.ndarray
    train: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        """UB(l) = sqrt(2 sigma^2 E_w D_l), of the 0-1 loss, [L + 1]."""
        return np.sqrt(2 * SIGMA**2 * self.kl.mean(0))

    @property
    def gap(self) -> float:
        return float((self.test - self.train).mean())


def binary_gaussian(n: int, r: list[int], draws: int, rng: np.random.Generator, mu: float = 1.0, s: float = 1.0) -> Layers:
    """Layers P_l that keep w / |w| and r_l - 1 random orthonormal directions beside it, nested.

    Given w, a training Y_i X_i is N(w, s^2 (1 - 1/n) I) and a fresh one N(mu, s^2 I). |P_l(w - mu)|^2 is the part along w plus a
    random share of the rest: the share of the first r_l - 1 among d - 1 squared normal numbers, which is that of random
    directions in law.
    """
    d = r[0]
    w = rng.standard_normal((draws, d)) * (s / math.sqrt(n))
    w[:, 0] += mu
    length, along = np.sqrt((w**2).sum(1)), mu * w[:, 0]  # |w| and w.mu
    first = (length - along / length) ** 2
    rest = np.maximum(((w**2).sum(1) - 2 * along + mu**2) - first, 0)
    squares = np.cumsum(rng.standard_normal((draws, d - 1)) ** 2, 1)
    share = np.concatenate([np.zeros((draws, 1)), squares / squares[:, -1:]], 1)[:, [k - 1 for k in r]]
    shift2, v = first[:, None] + rest[:, None] * share, s**2 * (1 - 1 / n)
    kl, w2 = (f(shift2, v, s**2, np.array(r)) for f in (kl_gaussians, w2_gaussians))
    return Layers(kl, w2, ndtr(-along / (length * s)), ndtr(-length / math.sqrt(v)))


# ---- Wasserstein distance between samples


def partners(n: int, available: int, most: int) -> int:
    """The largest sample size up to `available` that can be matched with n points by copying both to at most `most` points."""
    return next(m for m in range(available, 0, -1) if math.lcm(n, m) <= max(most, n))


def wasserstein(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> float:
    """W_1 between the laws of (t, label) in two samples [N, D], [M, D] with labels [N], [M]: cost |t - t'| + 1[label differs].

    Copies make both sides equally long; the best transport is then a matching.
    """
    n, m = len(x), len(y)
    size = math.lcm(n, m)
    cost = cdist(x, y) + (of_x[:, None] != of_y[None])
    full = cost.repeat(size // n, 0).repeat(size // m, 1)
    return float(full[linear_sum_assignment(full)].mean())


def scaled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both samples in units of their mean norm, each sample counting half."""
    unit = (np.linalg.norm(x, axis=1).mean() + np.linalg.norm(y, axis=1).mean()) / 2
    return (x / unit, y / unit) if unit > 0 else (x, y)


def by_layer(train: list[np.ndarray], fresh: list[np.ndarray], y: np.ndarray, fresh_y: np.ndarray) -> np.ndarray:
    """Normalised W_1 between two samples in every layer; representations are lists of [N, D] and [M, D]."""
    return np.array([wasserstein(*scaled(a, b), y, fresh_y) for a, b in zip(train, fresh, strict=True)])


def lipschitz_bounds(train: list[np.ndarray], fresh: list[np.ndarray], y: np.ndarray, fresh_y: np.ndarray,
                     norms: list[float]) -> np.ndarray:  # fmt: skip
    """W_1 of each layer (not normalised) times the norms of the weights above it, each at least 1: [L + 2], falling.

    norms[l] is the operator norm of the weights between representations l and l + 1. The loss 1 - p(right class) changes by at
    most 1 with a unit of cost, so every entry bounds the difference of its means over the two samples.
    """
    w1 = np.array([wasserstein(a, b, y, fresh_y) for a, b in zip(train, fresh, strict=True)])
    above = np.cumprod([1.0, *(max(1.0, k) for k in reversed(norms))])[::-1]
    return above * w1


# ---- contraction of noisy channels


def dropout_channel(d: int, delta: float) -> Tensor:
    """K [2^d, outcomes] (float64): each of d units with values in {1, 2} reads 0 with probability delta; impossible outcomes left out."""
    unit = torch.tensor([[delta, 1 - delta, 0], [delta, 0, 1 - delta]], dtype=torch.float64)
    channel = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(d):
        channel = torch.kron(channel, unit)
    return channel[:, channel.sum(0) > 0]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL in nats of laws given as logarithms [..., outcomes]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def contraction(p: Tensor, q: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
    """KL(P channel || Q channel) / KL(P || Q), and KL(P || Q); p, q are logits [..., 2^d]."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    before, log_k = kl(p, q), channel.log()  # in logarithms, so that rare outcomes keep their ratio
    after = [torch.logsumexp(one.unsqueeze(-1) + log_k, -2) for one in (p, q)]
    return kl(*after) / before, before


def search(d: int, delta: float, starts: int, steps: int, rngs: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Contraction of random pairs (P, Q), and the largest that gradient ascent finds from each: [S, starts] both."""
    channel = dropout_channel(d, delta)
    pairs = [torch.randn(2, starts, 2**d, generator=g, dtype=torch.float64) for g in rngs]
    pairs = torch.stack(pairs, 1).requires_grad_()
    first, best = None, torch.zeros(len(rngs), starts, dtype=torch.float64)
    mover = torch.optim.Adam([pairs], lr=0.1, maximize=True)
    for _ in range(steps + 1):
        with torch.enable_grad():
            ratio, before = contraction(pairs[0], pairs[1], channel)
            (gradient,) = torch.autograd.grad(ratio.log().sum(), pairs)
        first = ratio.detach() if first is None else first
        sound = (before > 1e-6) & torch.isfinite(ratio)  # below, the ratio is a quotient of rounding errors
        best = torch.where(sound, torch.maximum(best, ratio.detach()), best)
        pairs.grad = gradient.nan_to_num(0.0)
        mover.step()
    return first, best


def dropout_factor(d: int, delta: float) -> float:
    """1 - delta^d, a bound on the contraction of dropout on d units: with probability delta^d nothing gets through."""
    return 1 - delta**d


def noise_factor(diameter: float, tau: float) -> float:
    """1 - 2 Q(D / (2 tau)), of Gaussian noise of deviation tau on representations at most D apart."""
    return 1 - 2 * float(ndtr(-diameter / (2 * tau)))


# ---- the Gibbs algorithm on binary weights


def predictions(shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """Answers +-1 of every network of binary weights and sign activations, sign(0) = +1: [2^weights, X] of inputs [X, shape[0]]."""
    count = sum(a * b for a, b in zip(shape, shape[1:], strict=False))
    weights = np.array(list(product((-1, 1), repeat=count)), dtype=np.int8)
    h = np.broadcast_to(x.astype(np.int8), (len(weights), *x.shape))
    for a, b in zip(shape, shape[1:], strict=False):
        w, weights = weights[:, : a * b].reshape(-1, a, b), weights[:, a * b :]
        h = np.where(np.einsum("wxa,wab->wxb", h, w) >= 0, 1, -1).astype(np.int8)
    return h[:, :, 0]


def functions(shape: tuple[int, ...], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different functions among them [F, X], and the share of all weight vectors that compute each [F]: a uniform prior over
    weights is this prior over functions, since risks depend on the function alone."""
    found, count = np.unique(predictions(shape, x), axis=0, return_counts=True)
    return found, count / count.sum()


class Gibbs(NamedTuple):
    """Expectations over data sets and Gibbs weights: test error and training error of the 0-1 loss; and, of the data sets given,
    training error with the weights of another data set, and I(W;D) + L(W;D) in nats."""

    test: float
    train: float
    crossed: float
    information: float


def gibbs(losses: np.ndarray, prior: np.ndarray, gamma: float, risk: np.ndarray) -> Gibbs:
    """P(f | D) proportional to prior(f) exp(-gamma L_D(f)), exact over all functions; losses [N, F] of N equally likely data sets,
    population risk [F]. crossed - train = information / gamma, an identity."""
    score = np.log(prior) - gamma * losses
    score -= score.max(1, keepdims=True)
    log_post = score - np.log(np.exp(score).sum(1, keepdims=True))
    post = np.exp(log_post)
    mean = post.mean(0)
    information = ((post - mean) * log_post).sum(1).mean()  # I + L: the terms in log mean cancel
    return Gibbs(float(mean @ risk), float((post * losses).sum(1).mean()), float(mean @ losses.mean(0)), float(information))
