"""Effective theory of deep networks: Gaussian averages, layer recursions, critical points, and exact draws of random networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "sin": torch.sin, "gelu": F.gelu, "swish": F.silu,
}  # fmt: skip


# ---- Gaussian averages <f(z)>, z ~ N(0, K), for any number of kernels K at once


@lru_cache(maxsize=4)
def nodes(count: int = 100) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights [count] of the standard normal law, float64."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


def average(f: Callable[[Tensor], Tensor], k: Tensor | float) -> Tensor:
    """<f(z)> over z ~ N(0, k) by quadrature; k [...] >= 0 gives [...]. Exact where f is a polynomial on each half line."""
    x, w = nodes()
    return f(torch.as_tensor(k, dtype=torch.float64).sqrt().unsqueeze(-1) * x) @ w


def slope(activation: str) -> Callable[[Tensor], Tensor]:
    """The derivative s'(z) of an activation, by automatic differentiation."""

    def derivative(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(ACTIVATIONS[activation](z).sum(), z)[0]

    return derivative


def second(activation: str, k: Tensor | float) -> Tensor:
    """<s^2>."""
    return average(lambda z: ACTIVATIONS[activation](z).square(), k)


def fourth(activation: str, k: Tensor | float) -> Tensor:
    """<s^4>."""
    return average(lambda z: ACTIVATIONS[activation](z) ** 4, k)


def slope_square(activation: str, k: Tensor | float) -> Tensor:
    """<s'^2>."""
    derivative = slope(activation)
    return average(lambda z: derivative(z).square(), k)


# ---- recursions over layers


def next_kernel(activation: str, c_b: float, c_w: float, k: Tensor | float, gamma: float = 0.0) -> Tensor:
    """K' = C_b + C_W <s(z)^2> over z ~ N(0, K) (chapter 4), plus gamma^2 K where a skip connection carries gamma z along."""
    return c_b + c_w * second(activation, k) + gamma**2 * torch.as_tensor(k, dtype=torch.float64)


def kernels(activation: str, c_b: float, c_w: float, layers: int, first: float, gamma: float = 0.0) -> np.ndarray:
    """K^1 = first, ..., K^layers of networks of infinite width."""
    found = [torch.tensor(float(first), dtype=torch.float64)]
    for _ in range(layers - 1):
        found.append(next_kernel(activation, c_b, c_w, found[-1], gamma))
    return torch.stack(found).numpy()


def chi_parallel(activation: str, c_w: float, k: Tensor | float) -> Tensor:
    """dK'/dK = C_W / (2 K^2) <s(z)^2 (z^2 - K)>: growth of a difference in length from layer to layer (chapter 5)."""
    k = torch.as_tensor(k, dtype=torch.float64)
    tilted = average(lambda z: ACTIVATIONS[activation](z).square() * (z.square() - k.unsqueeze(-1)), k)
    return c_w * tilted / (2 * k.square())


def chi_perpendicular(activation: str, c_w: float, k: Tensor | float) -> Tensor:
    """C_W <s'(z)^2>: growth of a small difference in direction, and of the square of a gradient (chapter 5)."""
    return c_w * slope_square(activation, k)


def vertex(activation: str, c_b: float, c_w: float, layers: int, first: float) -> np.ndarray:
    """V / K^2 of layers 1, ..., layers, where cov(z_i^2, z_j^2) = V / n to first order for i != j; the first layer is Gaussian.

    V' = chi_par^2 V + C_W^2 (<s^4> - <s^2>^2) (chapter 4).
    """
    found, k, v = [0.0], torch.tensor(float(first), dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for _ in range(layers - 1):
        v = chi_parallel(activation, c_w, k).square() * v + c_w**2 * (fourth(activation, k) - second(activation, k).square())
        k = next_kernel(activation, c_b, c_w, k)
        found.append(float(v / k.square()))
    return np.array(found)


def scale_invariant_vertex(plus: float, minus: float = 0.0) -> float:
    """V / K^2 a layer at criticality for s(z) = plus z (z > 0), minus z (z < 0): 3 A4 / A2^2 - 1; 5 for ReLU, 2 for linear."""
    a2, a4 = (plus**2 + minus**2) / 2, (plus**4 + minus**4) / 2
    return 3 * a4 / a2**2 - 1


def tangent_kernels(activation: str, c_b: float, c_w: float, layers: int, first: float, lambda_w: float, lambda_b: float = 0.0,
                    inputs: float = 1.0) -> np.ndarray:  # fmt: skip
    """Theta^1, ..., Theta^layers: Theta' = lambda_b + lambda_W <s^2> + C_W <s'^2> Theta, from lambda_b + lambda_W |x|^2 / n_0 on.

    `inputs` is |x|^2 / n_0; the learning rate of a layer's weights is lambda_W over its number of inputs (chapter 8).
    """
    ks = kernels(activation, c_b, c_w, layers, first)
    found = [lambda_b + lambda_w * inputs]
    for k in ks[:-1]:
        carried = float(chi_perpendicular(activation, c_w, k)) * found[-1]
        found.append(lambda_b + lambda_w * float(second(activation, k)) + carried)
    return np.array(found)


@lru_cache(maxsize=2)
def polar(radii: int = 48, angles: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Points u1, u2 and weights [radii * angles] of the standard normal law in the plane: r^2 / 2 is exponential, the angle
    uniform. Unlike a product of Gauss-Hermite rules it is good to 1e-5 for kinks along straight lines through the origin."""
    t, w = np.polynomial.laguerre.laggauss(radii)
    angle = (np.arange(angles) + 0.5) * 2 * np.pi / angles
    r = np.sqrt(2 * t)[:, None]
    parts = r * np.cos(angle), r * np.sin(angle), np.repeat((w / w.sum())[:, None], angles, 1) / angles
    return tuple(torch.from_numpy(part.ravel()) for part in parts)


def next_pair(activation: str, c_b: float, c_w: float, kernel: tuple[float, float, float]) -> tuple[float, float, float]:
    """(K_aa, K_ab, K_bb) of two inputs, one layer on: K_ab' = C_b + C_W <s(z_a) s(z_b)> with z ~ N(0, K)."""
    aa, ab, bb = kernel
    u, v, w = polar()
    a = math.sqrt(aa) * u
    b = ab / math.sqrt(aa) * u + math.sqrt(max(bb - ab**2 / aa, 0.0)) * v
    s_a, s_b = ACTIVATIONS[activation](a), ACTIVATIONS[activation](b)
    return tuple(c_b + c_w * float((first * other) @ w) for first, other in ((s_a, s_a), (s_a, s_b), (s_b, s_b)))


@lru_cache(maxsize=8)
def critical_point(activation: str) -> tuple[float, float, float]:
    """(C_b, C_W, K*) at which chi_par = chi_perp = 1 at the fixed point K*; nan where every K is one (scale-invariant class).

    tanh and sin have K* = 0; GELU and SWISH, which need a bias, are solved for (chapter 5); for SWISH, whose K* is 14, the
    quadrature's 100 nodes leave an error of 5e-5 in the two conditions.
    """
    fixed = {"linear": (0.0, 1.0, math.nan), "relu": (0.0, 2.0, math.nan), "tanh": (0.0, 1.0, 0.0), "sin": (0.0, 1.0, 0.0)}
    if activation in fixed:
        return fixed[activation]

    def off(k: float) -> float:
        return float(chi_parallel(activation, 1 / float(slope_square(activation, k)), k)) - 1

    k = brentq(off, 1.0, 60.0, xtol=1e-12)
    c_w = 1 / float(slope_square(activation, k))
    return k - c_w * float(second(activation, k)), c_w, k


# ---- random networks


class Chain:
    """`draws` random networks of one width on one input, a layer at a time, for every seed and every case (activation, C_b, C_W).

    Exact without matrices: given layer l, the preactivations of layer l + 1 are independent N(0, C_b + C_W mean s(z)^2). All
    cases see the same normal draws. `variance` [S, cases, draws] is that of the coming layer.
    """

    block = 1 << 18  # numbers drawn in one go; they stay in the cache

    def __init__(self, cases: list[tuple[str, float, float]], width: int, draws: int, seeds: list[int], mark: int):
        self.cases, self.width, self.draws = cases, width, draws
        self.rngs = [torch.Generator().manual_seed((s * 1_000_003 + mark * 7_919 + 1) % 2**63) for s in seeds]
        start = torch.tensor([c_b + c_w for _, c_b, c_w in cases], dtype=torch.float64)  # |x|^2 = n_0
        self.variance = start[None, :, None].repeat(len(seeds), 1, draws)
        self.sample = torch.zeros(len(seeds), len(cases), min(4096, draws * width))

    def advance(self, moments: bool = False) -> Tensor:
        """Draw one layer: [S, cases, 2] means over draws of sum_i z_i^2 / n, and, where `moments` are asked for, of
        ((sum_i z_i^2)^2 - sum_i z_i^4) / (n (n - 1)), which estimates <z_i^2 z_j^2>."""
        found = torch.zeros(len(self.rngs), len(self.cases), 2, dtype=torch.float64)
        rows = max(1, self.block // self.width)
        for s, rng in enumerate(self.rngs):
            for begin in range(0, self.draws, rows):
                some = slice(begin, min(begin + rows, self.draws))
                g = torch.randn(some.stop - begin, self.width, generator=rng)
                for a, case in enumerate(self.cases):
                    found[s, a] += self._case(s, a, case, g, some, moments)
        return found / self.draws

    def _case(self, s: int, a: int, case: tuple[str, float, float], g: Tensor, some: slice, moments: bool) -> Tensor:
        activation, c_b, c_w = case
        z = g * self.variance[s, a, some].sqrt().float().unsqueeze(1)
        square = _dot(z, z)
        if some.start == 0:
            own = z.flatten()[: self.sample.shape[2]]
            self.sample[s, a, : len(own)] = own
        out = ACTIVATIONS[activation](z)
        passed = square if activation == "linear" else _dot(out, out)
        self.variance[s, a, some] = c_b + c_w * passed / self.width
        pair = torch.zeros(())
        if moments:
            z = z.square_()
            pair = (square.square() - _dot(z, z)).sum() / (self.width * (self.width - 1))
        return torch.stack([square.sum() / self.width, pair])

    def state(self) -> dict:
        return {"variance": self.variance.clone(), "sample": self.sample.clone(), "rngs": [g.get_state() for g in self.rngs]}

    def load(self, state: dict) -> None:
        self.variance.copy_(state["variance"])
        self.sample.copy_(state["sample"])
        for rng, saved in zip(self.rngs, state["rngs"], strict=True):
            rng.set_state(saved)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b).double()


def draw_pair(activation: str, c_b: float, c_w: float, width: int, draws: int, layers: int, overlap: float,
              rng: torch.Generator) -> np.ndarray:  # fmt: skip
    """Correlation of the preactivations of two inputs (of unit mean square and normalised inner product `overlap`) in each
    layer, measured over random networks by the exact law; [layers]."""
    aa = torch.full((draws,), c_b + c_w)
    ab, bb, found = torch.full((draws,), c_b + c_w * overlap), aa.clone(), []
    for _ in range(layers):
        u, v = torch.randn(2, draws, width, generator=rng)
        a = aa.sqrt()[:, None] * u
        b = (ab / aa.sqrt())[:, None] * u + (bb - ab.square() / aa).clamp_min(0).sqrt()[:, None] * v
        kernel = [torch.linalg.vecdot(i, j).double().mean() for i, j in ((a, a), (a, b), (b, b))]
        found.append(float(kernel[1] / (kernel[0] * kernel[2]).sqrt()))
        s_a, s_b = ACTIVATIONS[activation](a), ACTIVATIONS[activation](b)
        aa, ab, bb = (c_b + c_w * torch.linalg.vecdot(i, j) / width for i, j in ((s_a, s_a), (s_a, s_b), (s_b, s_b)))
    return np.array(found)


def draw_tangent(activation: str, c_b: float, c_w: float, width: int, draws: int, layers: int, lambda_w: float,
                 rng: torch.Generator) -> np.ndarray:  # fmt: skip
    """Tangent kernel of each output neuron with itself, drawn with explicit matrices: mean of Theta_ii and of Theta_ii^2 in
    each layer, [layers, 2]. Theta' = lambda_W mean s^2 1 + W D Theta D W^T, D = diag s'(z) (chapter 8, one input)."""
    eye = torch.eye(width)
    z = math.sqrt(c_b + c_w) * torch.randn(draws, width, generator=rng)
    theta, found = lambda_w * eye.expand(draws, -1, -1), []
    for layer in range(layers):
        own = theta.diagonal(dim1=1, dim2=2).double()
        found.append([float(own.mean()), float(own.square().mean())])
        if layer == layers - 1:
            break
        s, ds = ACTIVATIONS[activation](z), slope(activation)(z)
        w = torch.randn(draws, width, width, generator=rng) * math.sqrt(c_w / width)
        passed = w * ds.unsqueeze(1)
        theta = lambda_w * s.square().mean(1)[:, None, None] * eye + passed @ theta @ passed.mT
        z = torch.bmm(w, s.unsqueeze(2)).squeeze(2)
        if c_b:
            z = z + math.sqrt(c_b) * torch.randn(draws, width, generator=rng)
    return np.array(found)


def first_order(ratio: np.ndarray, excess: np.ndarray) -> tuple[float, float]:
    """(s1, s2) of excess = s1 r + s2 r^2 by least squares with weights 1 / r^2: of excess / r on 1 and r."""
    s2, s1 = np.polyfit(ratio, excess / ratio, 1)
    return float(s1), float(s2)


# ---- the tangent kernel of a given network


def empirical_tangent(answer: Callable[[dict[str, Tensor], Tensor], Tensor], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Theta_r(x_a, x_b) = sum over all parameters of df_r(x_a) df_r(x_b), for R networks side by side: [R, P, P].

    `answer(weights, x [1, n_0])` gives one number a network, [R]; every tensor of `weights` has the axis R first but for
    hidden layers, whose axis R is second to last but two. x [P, n_0].
    """
    gradient = torch.func.grad(lambda w, one: answer(w, one.unsqueeze(0)).sum())  # networks do not see each other
    found = torch.func.vmap(gradient, in_dims=(None, 0))(weights, x)
    total = 0.0
    for g in found.values():  # [P, R, in, out], hidden layers [P, layers, R, in, out]
        g = (g.movedim(2, 0) if g.dim() == 5 else g.movedim(1, 0)).flatten(2)
        total = total + g @ g.mT
    return total
