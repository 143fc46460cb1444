"""Modular addition in Fourier terms: spectra, phases, the flow of one frequency, the hand-built net. Pure functions.

A real frequency k of a vector w in R^p is one complex number c_k: w[x] = mean + sum_k Re(c_k exp(i omega_k x)) with
omega_k = 2 pi k / p, k = 1 .. p // 2. Its modulus is the amplitude and its angle the phase: with c_k = alpha exp(i phi)
the term is alpha cos(omega_k x + phi). Frequencies k and p - k are the same one and are counted once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": torch.relu, "square": torch.square, "abs": torch.abs}
STRIDE = 0.02  # of the flow: amplitudes change by a few per cent a step
LEVEL = 10.0  # a frequency has won when its amplitude is so many times the neuron's largest at the start


class Network(nn.Module):
    """f(x, y)[j] = sum_m xi_m[j] act(theta_m[x] + theta_m[y]); theta, xi [M, p], no biases, no embedding.

    `table` [p, p] holds the answers and `shown` [p, p] says which of them the net trains on: constants that training does not
    read; they are kept so that a picture of the net can show them.
    """

    def __init__(self, theta: Tensor, xi: Tensor, activation: str, table: Tensor, shown: Tensor):
        super().__init__()
        self.theta, self.xi, self.activation = nn.Parameter(theta), nn.Parameter(xi), activation
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("shown", shown, persistent=False)

    def forward(self, pairs: Tensor, activation: str = "") -> Tensor:
        """Logits [B, p] of pairs [B, p], each row the sum of the one-hot rows of x and of y: a lookup as one product."""
        return ACTIVATIONS[activation or self.activation](pairs @ self.theta.mT) @ self.xi


def unordered(p: int) -> tuple[Tensor, Tensor]:
    """All p (p + 1) / 2 pairs x <= y, as two index vectors."""
    x, y = np.triu_indices(p)
    return torch.from_numpy(x), torch.from_numpy(y)


def two_hot(x: Tensor, y: Tensor, p: int) -> Tensor:
    """One-hot of x plus one-hot of y: [B, p] for index vectors [B]."""
    return torch.nn.functional.one_hot(x, p).float() + torch.nn.functional.one_hot(y, p).float()


def logits(net: Network, activation: str = "") -> Tensor:
    """The logits of the whole table, [p, p, p] as (x, y, j)."""
    p = net.theta.shape[-1]
    x, y = (i.to(net.theta.device) for i in unordered(p))
    found = net(two_hot(x, y, p).to(net.theta), activation)
    table = found.new_empty(p, p, p)
    table[x, y] = table[y, x] = found
    return table


# ---- spectra


def spectrum(w: Tensor) -> Tensor:
    """Complex amplitudes c_k [..., p // 2] of w [..., p], mean removed."""
    p = w.shape[-1]
    c = torch.fft.rfft(w)[..., 1:] * (2 / p)
    if p % 2 == 0:  # the last frequency of an even p is its own mirror image
        c[..., -1] = c[..., -1] / 2
    return c


def shares(c: Tensor) -> Tensor:
    """Share of each frequency in the power of its neuron, [M, K]; they sum to 1."""
    power = c.abs().square()
    return power / power.sum(-1, keepdim=True).clamp_min(1e-30)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in (-pi, pi]."""
    return math.pi - torch.remainder(math.pi - angle, 2 * math.pi)


def lags(a: Tensor, b: Tensor) -> Tensor:
    """D = wrap(2 phi - psi) of input amplitudes a and output amplitudes b, [..., K]."""
    return wrap(2 * a.angle() - b.angle())


def misalignment(a: Tensor, b: Tensor) -> Tensor:
    """sum_m w_m |D_m| / sum_m w_m at each neuron's dominant frequency, w = alpha^2. 0 aligned, pi / 2 random. Radians."""
    weight, k = a.abs().square().max(-1, keepdim=True)
    return (weight * lags(a, b).gather(-1, k).abs()).sum() / weight.sum()


def effective_frequencies(a: Tensor) -> Tensor:
    """(sum_k P_k)^2 / sum_k P_k^2 of a neuron's powers P: how many frequencies live in it; mean over neurons by power."""
    power = a.abs().square()
    return (power.sum(-1) / shares(a).square().sum(-1)).sum() / power.sum()


def overtone(a: Tensor, p: int, times: int = 3) -> Tensor:
    """Mean share of power at `times` the dominant frequency of each neuron; 3 is where the bend of a ReLU shows first.

    Frequencies are folded: q and p - q are one. NaN for even p and where `times` divides p.
    """
    if p % 2 == 0 or p % times == 0:
        return torch.tensor(math.nan)
    q = times * (a.abs().argmax(-1, keepdim=True) + 1) % p
    return shares(a).gather(-1, torch.minimum(q, p - q) - 1).mean()


def diversity(a: Tensor) -> dict[str, Tensor]:
    """The two halves of the diversification condition. Neurons are grouped by their dominant frequency.

    phase_order_2, phase_order_4: |mean exp(2 i phi)| and |mean exp(4 i phi)| within a group, mean over groups by their number
    of neurons; 0 is full symmetry. frequency_entropy: entropy of the groups' power over ln K; 1 is all frequencies alike.
    """
    k, frequencies = a.abs().argmax(-1), a.shape[-1]
    top = a.gather(-1, k[:, None])[:, 0]
    found = {}
    for order in (2, 4):
        turn = torch.zeros(frequencies, dtype=a.dtype, device=a.device).index_add(0, k, torch.exp(1j * order * top.angle()).to(a))
        found[f"phase_order_{order}"] = turn.abs().sum() / len(k)
    power = torch.zeros(frequencies, device=a.device, dtype=top.real.dtype).index_add(0, k, top.abs().square())
    share = power / power.sum().clamp_min(1e-30)
    return found | {"frequency_entropy": torch.special.entr(share).sum() / math.log(frequencies)}


# ---- the lottery: the decoupled flow at tiny weights, square activation


def flow(a: np.ndarray, b: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """a' = (2 / p) conj(a) b and b' = a^2 / p: the gradient flow of the energy G = Re(a^2 conj(b)) / 2 of one frequency.

    In amplitudes and phases, a = alpha exp(i phi), b = beta exp(i psi), D = 2 phi - psi:
    alpha' = (2/p) alpha beta cos D, beta' = (1/p) alpha^2 cos D, phi' = -(2/p) beta sin D, psi' = (1/p) (alpha^2 / beta) sin D.
    The complex form has no trouble where beta passes through 0. Conserved: |a|^2 - 2 |b|^2.
    """
    return 2 / p * a.conj() * b, a * a / p


def step(a: np.ndarray, b: np.ndarray, p: int, dt) -> tuple[np.ndarray, np.ndarray]:
    """One step of the classical Runge-Kutta method of order 4; dt broadcasts against a and b."""
    a1, b1 = flow(a, b, p)
    a2, b2 = flow(a + dt / 2 * a1, b + dt / 2 * b1, p)
    a3, b3 = flow(a + dt / 2 * a2, b + dt / 2 * b2, p)
    a4, b4 = flow(a + dt * a3, b + dt * b3, p)
    return a + dt / 6 * (a1 + 2 * a2 + 2 * a3 + a4), b + dt / 6 * (b1 + 2 * b2 + 2 * b3 + b4)


def stride(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    """A time step for each neuron, [..., M, 1], by its fastest frequency."""
    return STRIDE * p / (abs(a) + abs(b)).max(-1, keepdims=True)


def race(a: np.ndarray, b: np.ndarray, p: int, most: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Which frequency first reaches LEVEL times the neuron's largest starting amplitude, and when: winner and time [..., M].

    a, b [..., M, K] at the start; every neuron goes at its own pace. Where nobody arrives in `most` steps, the leader wins.
    """
    level, time = LEVEL * abs(a).max(-1, keepdims=True), np.zeros((*a.shape[:-1], 1))
    for _ in range(most):
        running = abs(a).max(-1, keepdims=True) < level
        if not running.any():
            break
        dt = running * stride(a, b, p)
        a, b = step(a, b, p, dt)
        time = time + dt
    return abs(a).argmax(-1), time[..., 0]


def follow(a: np.ndarray, b: np.ndarray, p: int, times: np.ndarray) -> np.ndarray:
    """Amplitudes |a| [T, K] of one neuron at the given times, from a, b [K] at time 0; NaN once the flow has run away."""
    found, now, level = [], 0.0, 1e3 * abs(a).max()
    for goal in times:
        while now < goal and abs(a).max() < level:
            dt = min(goal - now, float(stride(a, b, p)[0]))
            (a, b), now = step(a, b, p, dt), now + dt
        found.append(abs(a) if now >= goal else np.full(len(a), np.nan))
    return np.array(found)


# ---- the vote: a net built by hand


def built(phases: Tensor, frequencies: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """theta and xi [N, p] of neurons with amplitude 1 at `frequencies` [N] with input phases [N] and psi = 2 phi."""
    turn = 2 * math.pi / p * frequencies.to(phases)[:, None] * torch.arange(p).to(phases)
    return torch.cos(turn + phases[:, None]), torch.cos(turn + 2 * phases[:, None])


def flawed_indicator(p: int, a: float, n: int) -> Tensor:
    """Logits [p, p, p] of the hand-built net with n evenly spaced phases at every frequency, p odd, amplitude a = alpha^2 beta:
    f_j = (a n / 2) (-1 + (p / 2) 1[x + y = j] + (p / 4) (1[2x = j] + 1[2y = j])): right, with two ghosts of half height."""
    x, y, j = torch.meshgrid(*[torch.arange(p)] * 3, indexing="ij")
    ghosts = ((2 * x - j) % p == 0).double() + ((2 * y - j) % p == 0).double()
    return a * n / 2 * (-1 + p / 2 * ((x + y - j) % p == 0).double() + p / 4 * ghosts)


def margin(found: Tensor, table: Tensor) -> Tensor:
    """Mean over all pairs of (right logit - largest other one), over the standard deviation of all logits [p, p, p]."""
    right = found.gather(-1, table[..., None])
    other = found.scatter(-1, table[..., None], -math.inf).amax(-1, keepdim=True)
    return (right - other).mean() / found.std().clamp_min(1e-30)
