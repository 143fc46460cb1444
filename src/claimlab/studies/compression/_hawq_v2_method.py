"""The method of the study hawq-v2: quantiser, Hessian traces and eigenvalues by layer, and the frontier of bit settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BITS = (2, 3, 4, 6, 8)

# ---- the quantiser


def quantize(w: Tensor, bits: Tensor | int) -> Tensor:
    """Symmetric and uniform, a scale for each output channel: s round(w / s) with s = max|w| / (2^(b-1) - 1).

    w [out, ...]; `bits` a number or a 0-dimensional tensor. b = 2 gives {-s, 0, s}. A channel of zeros stays zero.
    """
    top = 2.0 ** (torch.as_tensor(bits, device=w.device) - 1) - 1
    scale = w.abs().flatten(1).amax(1).view(-1, *[1] * (w.dim() - 1)) / top
    scale = torch.where(scale > 0, scale, 1.0)
    return scale * torch.round(w / scale)


def quantize_activation(a: Tensor, bits: Tensor | int, high: Tensor) -> Tensor:
    """Unsigned, after a ReLU: s clip(round(a / s), 0, 2^b - 1) with s = high / (2^b - 1)."""
    top = 2.0 ** torch.as_tensor(bits, device=a.device) - 1
    scale = high / top
    return scale * torch.round(a / scale).clamp_min(0).minimum(top)


def straight_through(w: Tensor, q: Tensor) -> Tensor:
    """The value of q with the gradient of w."""
    return w + (q - w).detach()


# ---- curvature: a loss with gradient graph over parts (layers), double backward


def hessian_products(parts: Sequence[Tensor], slopes: Sequence[Tensor], z: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """H z for the Hessian over all `parts` together, from their gradient `slopes` (made with create_graph); same shapes."""
    return torch.autograd.grad(slopes, parts, z, retain_graph=True)


def rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    """Entries +1 or -1 with equal probability."""
    return (2 * torch.randint(2, like.shape, generator=rng) - 1).to(like)


def hutchinson(loss: Tensor, parts: Sequence[Tensor], probes: int, rng: torch.Generator) -> Tensor:
    """z_i . (H z)_i of each part i for `probes` Rademacher z over all parts at once: [probes, parts].

    The mean over probes estimates Tr(H_ii): the blocks off the diagonal vanish in expectation.
    """
    slopes = torch.autograd.grad(loss, parts, create_graph=True)
    rows = []
    for _ in range(probes):
        z = [rademacher(part, rng) for part in parts]
        rows.append(torch.stack([(a * b).sum() for a, b in zip(z, hessian_products(parts, slopes, z), strict=True)]))
    return torch.stack(rows).detach()


def top_eigenvalue(loss: Callable[[Tensor], Tensor], part: Tensor, iterations: int, rng: torch.Generator) -> Tensor:
    """Eigenvalue of largest size of the Hessian of loss(part), by power iteration from a random start."""
    part = part.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(part), part, create_graph=True)
    v, value = torch.randn(part.shape, generator=rng).to(part), part.new_zeros(())
    for _ in range(iterations):
        v = v / v.norm().clamp_min(1e-30)
        (h,) = torch.autograd.grad(slope, part, v, retain_graph=True)
        value, v = (v * h).sum(), h
    return value.detach()


# ---- which bits: the frontier


def sensitivity(curvature: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Omega [layers, bits] = max(curvature, 0) * ||Q_b(W) - W||^2, made non-increasing in b. curvature [layers]."""
    return np.minimum.accumulate(np.maximum(curvature, 0)[:, None] * errors, axis=1)


def frontier(omega: np.ndarray, sizes: np.ndarray, bits: Sequence[int] = BITS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every setting that no other one beats in both size and total Omega: size [F] ascending, Omega [F], bits [F, layers].

    omega [layers, bits], sizes [layers] weights a layer. Exact dynamic programming: a state that is dominated after some
    layers stays dominated whatever follows, so that it is dropped.
    """
    total, cost, chosen = np.zeros(1), np.zeros(1), np.zeros((1, 0), int)
    for layer, row in enumerate(omega):
        total = (total[:, None] + sizes[layer] * np.array(bits)).ravel()
        cost = (cost[:, None] + row).ravel()
        chosen = np.column_stack([chosen.repeat(len(bits), 0), np.tile(bits, len(chosen))])
        order = np.lexsort((cost, total))
        best = np.minimum.accumulate(cost[order])
        keep = order[np.r_[True, best[1:] < best[:-1]]]
        total, cost, chosen = total[keep], cost[keep], chosen[keep]
    return total, cost, chosen


def choose(omega: np.ndarray, sizes: np.ndarray, budget: float, bits: Sequence[int] = BITS) -> np.ndarray:
    """The setting of the frontier with the smallest Omega whose average is at most `budget` bits; [layers]."""
    total, _, chosen = frontier(omega, sizes, bits)
    return chosen[np.flatnonzero(total <= budget * sizes.sum() + 1e-6)[-1]]


def raised(order: Sequence[int], sizes: np.ndarray, budget: float, bits: Sequence[int] = BITS) -> np.ndarray:
    """Bits as even as the size allows: all layers at the largest width within the budget, then raised by one candidate each,
    in `order`, as long as the size is kept; [layers]."""
    low = max(b for b in bits if b <= budget)
    above = [b for b in bits if b > low]
    found = np.full(len(sizes), low)
    for layer in order if above else ():
        trial = found.copy()
        trial[layer] = above[0]
        if (trial * sizes).sum() <= budget * sizes.sum() + 1e-6:
            found = trial
    return found


def filled(sizes: np.ndarray, budget: float, rng: np.random.Generator, bits: Sequence[int] = BITS) -> np.ndarray:
    """A random setting that uses the size up: layers are raised one candidate at a time until none fits any more; [layers]."""
    found, allowed = np.full(len(sizes), bits[0]), budget * sizes.sum() + 1e-6
    while True:
        above = [np.where(np.arange(len(sizes)) == i, bits[bits.index(b) + 1], found) for i, b in enumerate(found) if b != bits[-1]]
        fits = [trial for trial in above if (trial * sizes).sum() <= allowed]
        if not fits:
            return found
        found = fits[rng.integers(len(fits))]
