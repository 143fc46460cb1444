"""Sine networks, their start with noise, their tangent kernel, and the spectrum tools of the study winner-siren."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

GROWTH = {1: 7.0, 2: 5.0}  # a of the released code, for sounds and for images
FIXED = 0.3  # the centroid that the arm with one scale for all targets pretends to see


# ---- spectra: arrays [N] of a sound or [H, W] of an image; frequencies are shares of Nyquist


def magnitude(y: np.ndarray) -> np.ndarray:
    """|Y_k| of the one-sided Fourier transform: [N // 2 + 1] or [H, W // 2 + 1]."""
    return np.abs(np.fft.rfftn(y))


def frequencies(shape: tuple[int, ...]) -> np.ndarray:
    """f_k that belong to `magnitude`, scaled so that Nyquist is 1; of an image the radius."""
    axes = [2 * np.abs(np.fft.fftfreq(n)) for n in shape[:-1]] + [2 * np.fft.rfftfreq(shape[-1])]
    return np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))


def centroid(y: np.ndarray) -> float:
    """psi = sum_k f_k |Y_k| / sum_k |Y_k|: where on average the target's spectrum lies, as a share of Nyquist."""
    size = magnitude(y)
    return float((frequencies(y.shape) * size).sum() / size.sum())


def power(y: np.ndarray, axis: int = 0) -> np.ndarray:
    """One-sided power spectrum along an axis; by Parseval's theorem its sum is the mean of y^2."""
    n = y.shape[axis]
    found = np.moveaxis(np.abs(np.fft.rfft(y, axis=axis)) ** 2 / n**2, axis, 0)
    found[1 : (n + 1) // 2] *= 2  # two sides, but for the mean and, with even n, Nyquist
    return np.moveaxis(found, 0, axis)


def psnr(y: Tensor, fit: Tensor) -> Tensor:
    """10 log10(peak^2 / MSE) in dB, peak = max |y|."""
    return 10 * torch.log10(y.abs().max() ** 2 / (y - fit).square().mean().clamp_min(1e-20))


def explained(y: Tensor, fit: Tensor) -> Tensor:
    """R^2 = 1 - MSE / variance of y."""
    return 1 - (y - fit).square().mean() / y.var(correction=0)


# ---- networks: x [N, d] in [-1, 1]^d -> [N]


class SineNet(nn.Module):
    """SIREN (Sitzmann et al. 2020): h_1 = sin(w0 (W_0 x + b_0)), h_{l+1} = sin(w0 (W_l h_l + b_l)), linear output.

    Standard start: W_0 ~ U(+-1/d), all others U(+-sqrt(6/n) / w0), biases U(+-1/sqrt(fan in)). Weights lie as [in, out].
    """

    def __init__(self, inputs: int, width: int, layers: int, omega: float, rng: torch.Generator):
        super().__init__()
        self.omega = omega
        sizes = [inputs, *[width] * layers, 1]
        pairs = list(zip(sizes, sizes[1:], strict=False))
        spread = [1 / inputs] + [math.sqrt(6 / n) / omega for n, _ in pairs[1:]]
        drawn = [torch.empty(*pair).uniform_(-s, s, generator=rng) for pair, s in zip(pairs, spread, strict=True)]
        self.weights = nn.ParameterList(drawn)
        self.biases = nn.ParameterList(torch.empty(m).uniform_(-(n**-0.5), n**-0.5, generator=rng) for n, m in pairs)

    def phases(self, x: Tensor) -> list[Tensor]:
        """What enters the sines, w0 (W_l h_l + b_l) in rad, layer by layer: [N, width] each."""
        found, h = [], x
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            linear = h * weight if len(weight) == 1 else h @ weight
            found.append(self.omega * (linear + bias))
            h = torch.sin(found[-1])
        return found

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.phases(x)[-1])
        return (h * self.weights[-1][:, 0]).sum(-1) + self.biases[-1]


def noise_scales(psi: float, r: float, b: float, side: int, growth: float) -> tuple[float, float]:
    """WINNER's scales from the centroid: s_0 = r (pi side / 2) (1 - exp(-a psi)) in rad per unit of x, s_1 = b psi.

    `side` samples on [-1, 1] have their Nyquist frequency at pi side / 2 rad per unit; a is `growth`.
    """
    return r * math.pi * side / 2 * (1 - math.exp(-growth * psi)), b * psi


@torch.no_grad()
def perturb(net: SineNet, s_0: float, s_1: float, rng: torch.Generator) -> SineNet:
    """W_0 += N(0, (s_0 / w0)^2) and W_1 += N(0, (s_1 / w0)^2), in place; nothing else moves.

    The sine multiplies weights by w0, hence the division: s_0 is the spread of w0 W_0, the first layer's frequencies.
    """
    for weight, scale in zip(net.weights, (s_0, s_1), strict=False):
        weight += torch.randn(weight.shape, generator=rng) * (scale / net.omega)
    return net


class FourierNet(nn.Module):
    """Random Fourier features (Tancik et al. 2020): a ReLU network on cos(Bx) and sin(Bx), B ~ N(0, sigma^2) in rad per unit.

    B takes the place of the first layer and is not trained, so that the number of parameters is nearly a SineNet's.
    """

    def __init__(self, inputs: int, width: int, layers: int, sigma: float, rng: torch.Generator):
        super().__init__()
        self.register_buffer("waves", sigma * torch.randn(inputs, width // 2, generator=rng))
        sizes = [2 * (width // 2), *[width] * (layers - 1), 1]
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.randn(n, m, generator=rng) * math.sqrt(2 / n) for n, m in pairs)
        self.biases = nn.ParameterList(torch.zeros(m) for _, m in pairs)

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.waves
        h = torch.cat([phase.cos(), phase.sin()], -1)
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            h = (h @ weight + bias).relu()
        return (h @ self.weights[-1] + self.biases[-1])[:, 0]


# ---- the tangent kernel


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """J [P, number of weights]: the derivative of the answer at each of x [P, d] by every weight."""
    weights = {name: value.detach() for name, value in net.named_parameters()}
    parts = vmap(grad(lambda w, one: functional_call(net, w, one[None])[0]), in_dims=(None, 0))(weights, x)
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def tangent_kernel(net: nn.Module, x: Tensor) -> Tensor:
    """K = J J^T [P, P]: how far a small step of gradient descent on one point moves the answer at another."""
    j = jacobian(net, x)
    return (j @ j.mT).double()


def energy_on(kernel: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [P] of a kernel, largest first, and the share of |y - mean|^2 that lies on each eigenvector [P]."""
    values, vectors = torch.linalg.eigh(kernel)
    centred = (y - y.mean()).to(kernel)
    return values.flip(0), ((vectors.mT @ centred).square() / centred.square().sum()).flip(0)


def leading(shares: Tensor) -> Tensor:
    """The share of energy on the first tenth of the eigenvectors."""
    return shares[: max(1, round(len(shares) / 10))].sum()
