"""Rulers for the information in a layer: bins that adapt, bins that do not, and kernels. Pure functions; all results in bits.

T is the activity of a layer on all N inputs of a finite table, X uniform over the table. The network is deterministic, so the
binned I(T; X) is the entropy of the symbols that the ruler can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LAST = 3  # measurements whose mean is the end value
FAR = 80.0  # a kernel of exp(-80) is nothing, and smaller numbers are slow


@dataclass(frozen=True)
class Information:
    """I(T; X) and I(T; Y) in bits, and the share of the N inputs that have a symbol of their own kind (distinct symbols / N)."""

    ixt: float
    ity: float
    distinct: float


# ---- bins


def quantile_edges(values: np.ndarray, bins: int, saturated: float | None = None) -> np.ndarray:
    """EBAB: inner edges that cut the sorted UNIQUE values, without the saturated one, into `bins` parts of equal count.

    Each edge is itself a value, so that any strictly increasing map of the activity leaves the bins as they are. float64, at
    most [bins - 1] of them; fewer where there are fewer values. Chelombiev, Houghton and O'Donnell 2019.
    """
    u = np.unique(np.asarray(values, dtype=np.float64))
    if saturated is not None:
        u = u[u != saturated]
    return np.unique(u[np.arange(1, bins) * len(u) // bins]) if len(u) else u


def equal_edges(low: float, high: float, bins: int) -> np.ndarray:
    """Inner edges of `bins` bins of one width on [low, high]; none where the range is empty. [bins - 1]"""
    return np.linspace(low, high, bins + 1)[1:-1] if high > low else np.empty(0)


def codes(values: np.ndarray, edges: np.ndarray, saturated: float | None = None) -> np.ndarray:
    """The bin of each value, 1, 2, ...; an edge belongs to the bin above it, the saturated value has bin 0 alone."""
    values = np.asarray(values, dtype=np.float64)
    found = 1 + np.searchsorted(edges, values, side="right")
    return found if saturated is None else np.where(values == saturated, 0, found)


def symbols(codes: np.ndarray) -> np.ndarray:
    """One whole number for each row of bins [N, d]; equal rows, equal numbers. [N]"""
    base, key, span = int(codes.max()) + 1, codes[:, 0].astype(np.int64), int(codes.max()) + 1
    for column in codes.T[1:]:
        if span * base >= 2**62:  # the rows seen so far are numbered anew, before a key runs over
            seen, key = np.unique(key, return_inverse=True)
            span = len(seen)
        key, span = key * base + column, span * base
    return key


def entropy(labels: np.ndarray) -> float:
    """Entropy in bits of the empirical distribution of `labels` [N]."""
    p = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(abs((p * np.log2(p)).sum()))


def binned_information(codes: np.ndarray, y: np.ndarray) -> Information:
    """I(T; X) = H(T) and I(T; Y) = H(T) + H(Y) - H(T, Y) for bins [N, d] and labels y = 0, 1, ... [N]."""
    key = np.unique(symbols(codes), return_inverse=True)[1]
    whole = entropy(key)
    joint = entropy(key * (int(y.max()) + 1) + y)
    return Information(whole, max(0.0, whole + entropy(y) - joint), (int(key.max()) + 1) / len(key))


# ---- kernels


def kernel_variance(t: Tensor, noise: float, adaptive: bool = True) -> float:
    """Variance s^2 of the noise added for analysis: `noise` times the largest |activity| of the layer, or `noise` itself."""
    return noise * float(t.abs().max()) if adaptive else noise


def kernel_information(t: Tensor, y: Tensor, variance: float) -> tuple[float, float, float]:
    """I(T + noise; X) from above and from below, and I(T + noise; Y) by the upper form, in bits, for t [P, d] and y [P].

    H(T) <= -mean_i ln mean_j exp(-|t_i - t_j|^2 / 2 s^2) + (d/2) ln(2 pi e s^2); with 4 s^2 in place of s^2 in the kernel the
    same from below; H(T|X) = (d/2) ln(2 pi e s^2) cancels. Kolchinsky and Tracey 2017. A dead layer (s^2 = 0) tells nothing.
    """
    if variance <= 0:
        return 0.0, 0.0, 0.0
    order = y.argsort(stable=True)
    t, y = t[order] - t.mean(0), y[order]
    length = t.square().sum(1)
    square = torch.addmm(length + length[:, None], t, t.T, alpha=-2).clamp_(min=0).fill_diagonal_(0)
    near = square.mul_(-1 / (2 * variance)).clamp_(min=-FAR).exp_()
    upper, lower = _mixture(near), _mixture(near.sqrt().sqrt())  # the fourth root: 4 s^2 in place of s^2
    count, start, inside = torch.bincount(y).tolist(), 0, 0.0
    for n in count:
        inside += n / len(y) * _mixture(near[start : start + n, start : start + n]) if n else 0.0
        start += n
    return upper, lower, max(0.0, upper - inside)


def _mixture(near: Tensor) -> float:
    """-mean_i log2 mean_j of kernels [P, P]; the diagonal is 1, so that no logarithm runs away."""
    return max(0.0, -float(near.mean(1).double().log2().mean()))


# ---- score


def compression(ixt: np.ndarray) -> np.ndarray:
    """c = (peak - end) / peak of I(T; X) [T, ...] over the measurements; the end is the mean of the last three. A layer that
    never told anything has c = 0. [...]"""
    peak, end = ixt.max(0), ixt[-LAST:].mean(0)
    return np.divide(peak - end, peak, out=np.zeros_like(peak), where=peak > 0)
