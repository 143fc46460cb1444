"""The method of the study critical-periods-linear: deep linear chains, their gradient by hand, and the equation of a mode.

A chain is a list of D weight stacks [B, n, n]; its output is W_D ... W_1. Two chains a and b that feed one output race for
each singular mode of the target. With layer strength p and pathway strength K = p^D a mode obeys

    dp_a/dt = p_a^(D-1) (s - K_a - K_b),      hence      dK_a/dt = D K_a^(2-2/D) (s - K_a - K_b),      the same for b.

Source: Kleinman, Achille and Soatto (2023), analytical section; Saxe, McClelland and Ganguli (2014) for one chain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# during the deficit: (share of b's signal that gets through, whether b learns)
DEFICITS = {"frozen": (1.0, False), "blocked": (0.0, False), "blurred": (0.5, True)}
SHAPES = {
    "linear": (None, None),
    "relu": (torch.relu, lambda a: (a > 0).to(a)),  # the slope is written in the activation a, not in its input
    "tanh": (torch.tanh, lambda a: 1 - a * a),
}


# ---- a chain of matrices, and plain gradient descent on it


def forward(weights: list[Tensor], shape: str = "linear") -> tuple[Tensor, list[Tensor]]:
    """W_D f(W_(D-1) ... f(W_1)) [B, n, n], and what each layer above the first received; f is the identity for `linear`."""
    out, received = weights[0], []
    for weight in weights[1:]:
        received.append(SHAPES[shape][0](out) if SHAPES[shape][0] else out)
        out = torch.bmm(weight, received[-1])
    return out, received


def descend(weights: list[Tensor], received: list[Tensor], error: Tensor, rate: float, shape: str = "linear") -> None:
    """One gradient step in place: W_l -= rate * delta_l received_l^T with delta_D = error = dL/d(output) [B, n, n] and
    delta_(l-1) = W_l^T delta_l times the slope of f. The first layer receives the identity (whitened inputs)."""
    delta = error
    for weight, given in zip(weights[:0:-1], received[::-1], strict=True):
        below = torch.bmm(weight.mT, delta)
        weight.baddbmm_(delta, given.mT, alpha=-rate)
        delta = below if SHAPES[shape][1] is None else below * SHAPES[shape][1](given)
    weights[0].sub_(delta, alpha=rate)


def strengths(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """K_m = u_m^T W v_m for each mode of the target, out [B, n, n], left and right [B, n, M] -> [B, M]. The target's own
    vectors are used, since a fresh SVD of W may reorder or flip its modes."""
    return (left * torch.bmm(out, right)).sum(1)


# ---- the equation of a mode


def slope(p: np.ndarray, s, depth: int, gain=1.0, learns=1.0) -> np.ndarray:
    """dp/dt for p [2, ...] (a, b): p^(D-1) (s - K_a - g K_b), for b times g and times 1 or 0 where it does not learn."""
    power = p ** (depth - 1)
    left = s - power[0] * p[0] - gain * power[1] * p[1]
    return np.stack([power[0] * left, gain * learns * power[1] * left])


def follow(p, s, depth: int, dt: float, steps: int, window=(0, 0), gain=0.0, learns=False, every: int = 1) -> np.ndarray:
    """K [steps / every + 1, 2, ...] of the equation by the classical Runge-Kutta rule with step `dt`.

    p [2, ...] are the first layer strengths, s [...] the targets, `window` = (first, last) step of the deficit, each a number
    or an array that broadcasts to s; inside it b has `gain` and learns or not.
    """
    p, s = np.asarray(p, dtype=float), np.asarray(s, dtype=float)
    p = np.broadcast_to(p, (2, *np.broadcast_shapes(p.shape[1:], s.shape)))
    found = [p**depth]
    for k in range(steps):
        inside = (np.asarray(window[0]) <= k) & (k < np.asarray(window[1]))
        terms = (s, depth, np.where(inside, gain, 1.0), np.where(inside, float(learns), 1.0)) if inside.any() else (s, depth)
        a = slope(p, *terms)
        b = slope(p + dt / 2 * a, *terms)
        c = slope(p + dt / 2 * b, *terms)
        d = slope(p + dt * c, *terms)
        p = p + dt / 6 * (a + 2 * b + 2 * c + d)
        if (k + 1) % every == 0:
            found.append(p**depth)
    return np.stack(found)


def conserved(k_a, k_b, depth: int):
    """What undisturbed learning keeps: ln(K_a / K_b) for D = 2, else p_a^(2-D) - p_b^(2-D) with p = K^(1/D)."""
    if depth == 2:
        return np.log(k_a) - np.log(k_b)
    power = (2 - depth) / depth
    return np.asarray(k_a) ** power - np.asarray(k_b) ** power


def final_share(k_a, k_b, s: float, depth: int) -> np.ndarray:
    """K_b / s once K_a + K_b = s, from the state at the end of the deficit: the share at which `conserved` is the same.

    `conserved` is monotone in the share, so that bisection finds it.
    """
    kept = np.asarray(conserved(k_a, k_b, depth), dtype=float)
    low, high = np.zeros_like(kept), np.ones_like(kept)
    rising = -1.0 if depth <= 2 else 1.0  # of `conserved` in the share of b
    for _ in range(100):
        middle = (low + high) / 2
        over = rising * (conserved((1 - middle) * s, middle * s, depth) - kept) > 0
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return (low + high) / 2
