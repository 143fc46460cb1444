"""WINNER: noise on the first weights of a sine network, by the target's spectrum. Does it cure silence where all is treble?"""

from __future__ import annotations

import copy
import math
import os
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.schedules import cosine
from claimlab.studies.training import _winner_siren_data as data
from claimlab.studies.training._winner_siren_method import (
    FIXED,
    GROWTH,
    FourierNet,
    SineNet,
    centroid,
    energy_on,
    explained,
    leading,
    noise_scales,
    perturb,
    power,
    psnr,
    tangent_kernel,
)
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Series, Task

PAPER = Paper(
    title="Spectral Bottleneck in Deep Neural Networks: Noise is All You Need",
    authors="Chandravamsi, Shenoy, Zinn, Pisnoy, Frankel", year=2025, url="https://arxiv.org/abs/2509.09719",
    theme="representations", system="WINNER (SIREN squared)",
    question="Why does a sine network output silence when the sound is all treble, and can a dose of noise in the first weights "
    "cure it?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    s0_scale: float = knob(0.04, "noise in the first layer, r as share of Nyquist; 0 (with b at 0 too) is plain SIREN",
                           low=0.0, high=1.0)  # fmt: skip
    b: float = knob(3.0, "noise in the second layer: side bands", low=0.0, high=10.0)
    omega0: float = knob(30.0, "frequency factor inside every sine", low=1.0, high=1000.0)
    band_low: float = knob(0.5, "lower edge of the target's band: push it up to meet the bottleneck", low=0.0, high=0.9,
                           unit="fraction of Nyquist")  # fmt: skip
    lr: float = knob(0.002, "learning rate of Adam", low=0.00001, high=0.01, live=True)
    width: int = knob(96, "units a layer", low=16, high=256)
    layers: int = knob(3, "layers of sines", low=2, high=6)
    points: int = knob(1024, "samples of a target on [-1, 1]", low=128, high=8192)
    batch: int = knob(0, "points a step; 0 takes all of them", low=0, high=8192)
    steps: int = knob(300, "optimiser steps", low=20, high=5000)
    images: bool = knob(False, "also fit and denoise four images of 64 x 64")
    seeds: int = knob(5, "independent repetitions, each with its own targets and initial weights", low=2, high=64)
    SMOKE = dict(steps=20, seeds=2, points=128, width=32)
    FULL = dict(steps=600, seeds=10, points=2048, batch=1024, width=128, images=True)
    CONTROL = Control(
        set=dict(band_low=0.0), vanishes=("bottleneck-exists", "winner-fixes-it"),
        why="A signal with low frequencies is what a standard SIREN is made for.",
    )  # fmt: skip

    def __post_init__(self):
        if self.batch > self.points:
            raise ValueError(f"batch = {self.batch} is more than points = {self.points}; a step takes all of them at most")


CLAIMS = (
    Claim("bottleneck-exists", "A standard SIREN fitted to a signal with only high frequencies explains less than 10% of "
          "its variance at the end of training.", kind="bound", metric="r2_high", arm="siren", better="lower", margin=0.1,
          source="spectral bottleneck figures"),
    Claim("winner-fixes-it", "WINNER initialisation fits the same signal at least 10 dB better after the same steps.",
          kind="paired", metric="psnr_high", arm="winner", baseline="siren", better="higher", margin=10.0,
          source="audio fitting tables"),
    Claim("beats-tuned-frequency", "WINNER is at least 1 dB better, on average over three targets, than a SIREN whose omega_0 "
          "was tuned by grid for each target.", kind="paired", metric="psnr_mean", arm="winner", baseline="siren_tuned",
          better="higher", margin=1.0, source="comparison of initialisations"),
    Claim("target-aware-matters", "Noise scales taken from the target's spectral centroid beat one fixed scale over low, mixed "
          "and high targets.", kind="paired", metric="psnr_mean", arm="winner", baseline="fixed_noise", better="higher",
          margin=1.0, source="target-aware argument"),
    Claim("kernel-aligns", "Before training, more of the target's energy lies in the top 10% of the tangent kernel's "
          "eigenvectors than with SIREN.", kind="paired", metric="ntk_energy_top10", arm="winner", baseline="siren", better="higher",
          margin=0.1, source="NTK section"),
)  # fmt: skip
HONESTY = (
    "A thousand samples and 300 steps stand for audio of hundreds of thousands of samples; absolute decibels differ, the failure "
    "and its cure do not need size. The constants a, b and the maximum were set by the authors per kind of data; here the maximum "
    "is scaled by Nyquist, which is our transfer rule. Later text of the paper calls the scheme ad hoc itself."
)

PROBE = 256  # consecutive points on which the tangent kernel is looked at: every fourth point would alias the target
SOUNDS = ("low", "mixed", "high")
EDGES = (0.0, 0.25)  # bands in which the arm `edges` trains on the high target, beside that of the knob
IMAGE_B = 0.4 / 3.0  # b of images in units of b of sounds, in the released code


class Fits(nn.Module):
    """One network for each target of a member, with what a view needs to know of it: the targets and their points."""

    def __init__(self, nets: dict[str, nn.Module], x: Tensor, ys: Tensor):
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.register_buffer("x", x)
        self.register_buffer("ys", ys)
        last = "high" if "high" in nets else list(nets)[-1]
        near, values = probe(x, ys[list(nets).index(last)])
        kernel = tangent_kernel(nets[last], near)
        self.register_buffer("shares", energy_on(kernel, values)[1].float())  # of the target's energy, at the start


def probe(x: Tensor, y: Tensor, size: int = PROBE) -> tuple[Tensor, Tensor]:
    """The middle `size` points and values."""
    first = max(0, (len(x) - size) // 2)
    return x[first : first + size], y[first : first + size]


class Rated(torch.optim.AdamW):
    """Adam whose groups multiply the learning rate by a factor of their own, `rate`, whatever it is set to."""

    def step(self, closure=None):
        before = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["rate"]
        found = super().step(closure)
        for group, lr in zip(self.param_groups, before, strict=True):
            group["lr"] = lr
        return found


# ---- the arms: each trains one network a target, side by side; no network feels another


class Standard(Task):
    """SIREN as it is. Arms of a seed share targets, points and the standard start.

    The learning rate was the best of 2e-4, 5e-4 and 2e-3 for each arm on development seeds, and 2e-3 for all of them; an arm
    that wants another one has a factor on it, for all its targets (`rate`) or for some (`rates`).
    """

    targets: tuple[str, ...] = SOUNDS
    rate = 1.0
    rates: dict[str, float] = {}

    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(5, self.steps // 25))

    def bind(self, seed):
        bound = copy.copy(self)
        path = os.environ.get("CLAIMLAB_DATA", "") if "own" in self.targets else ""
        bound.signals = {name: data.target(name, seed, self.p.points, self.p.band_low, path) for name in self.targets}
        bound.x = next(iter(bound.signals.values())).x
        bound.ys = torch.stack([signal.y for signal in bound.signals.values()])
        return bound

    def omega(self, name: str) -> float:
        return self.p.omega0

    def network(self, name: str, signal: data.Target, rng: torch.Generator) -> nn.Module:
        return SineNet(signal.x.shape[1], self.p.width, self.p.layers, self.omega(name), rng)

    def init(self):
        x, ys = self.x.cpu(), self.ys.cpu()
        first = int(torch.randint(2**60, ()))  # a generator for each target, so that an arm with fewer targets starts alike
        rngs = {name: torch.Generator().manual_seed(first + zlib.crc32(name.encode())) for name in self.targets}
        return Fits({name: self.network(name, signal, rngs[name]) for name, signal in self.signals.items()}, x, ys)

    def groups(self):
        return {f"nets.{name}.": {"rate": self.rates.get(name, self.rate)} for name in self.targets}

    def optimizer(self, groups):
        return Rated(groups, fused=True)

    schedule = staticmethod(cosine)

    def batch(self, net, rng, step):
        size = self.p.batch or (2048 if len(self.x) > 8192 else 0)  # a sound of one's own may be long
        if not 0 < size < len(self.x):
            return self.x, self.ys
        rows = torch.randint(len(self.x), (size,), generator=rng).to(self.x.device)
        return self.x[rows], self.ys[:, rows]

    def loss(self, net, x, ys):
        """Sum of the mean squared errors of the fits, x [B, d], ys [targets, B]."""
        return sum((net.nets[name](x) - y).square().mean() for name, y in zip(self.targets, ys, strict=True))

    def metrics(self, net):
        found = {}
        for name, y in zip(self.targets, self.ys, strict=True):
            fit = net.nets[name](self.x)
            found |= {f"psnr_{name}": psnr(y, fit), f"r2_{name}": explained(y, fit)}
            if (clean := self.signals[name].clean) is not None:
                found[f"psnr_{name}_to_clean"] = psnr(clean.to(y), fit)
        if set(SOUNDS) <= set(self.targets):
            found["psnr_mean"] = sum(found[f"psnr_{name}"] for name in SOUNDS) / len(SOUNDS)
        return found | ({"ntk_energy_top10": leading(net.shares)} if "high" in self.targets else {})

    def final(self, net):
        pairs = {name: signal.between for name, signal in self.signals.items() if signal.between}
        return {f"psnr_between_{name}": psnr(y.to(self.x), net.nets[name](x.to(self.x))) for name, (x, y) in pairs.items()}


class Tuned(Standard):
    """SIREN with w0 of 30, 100, 300 or 1000 and the rate, chosen for each target on development seeds with 1024 points.

    The high target chose the same for all lower edges of its band that were tried: 0, 0.25, 0.5 and 0.7.
    """

    omegas = {"low": 30.0, "mixed": 300.0, "high": 30.0}
    rates = {"mixed": 0.25}

    def omega(self, name):
        return self.omegas[name]


class Slow(Standard):
    """SIREN on the high target with a quarter of the learning rate."""

    targets = ("high",)
    rate = 0.25


class Winner(Standard):
    """Noise by the centroid. `share` is the arm's factor on the knob r: it was chosen from 0.04, 0.08 and 0.16."""

    share = 1.0

    def seen(self, signal: data.Target) -> float:
        """The centroid that the scales follow."""
        return signal.psi

    def scales(self, signal: data.Target) -> tuple[float, float]:
        sounds = len(signal.sides) == 1
        b = self.p.b * (1.0 if sounds else IMAGE_B)
        return noise_scales(self.seen(signal), self.share * self.p.s0_scale, b, signal.sides[0], GROWTH[len(signal.sides)])

    def network(self, name, signal, rng):
        return perturb(super().network(name, signal, rng), *self.scales(signal), rng)


class FixedNoise(Winner):
    """One scale for all targets."""

    share = 2.0

    def seen(self, signal):
        return FIXED


class FirstLayerOnly(Winner):
    """Ablation: no noise in the second layer."""

    targets = ("high",)
    share = 4.0

    def scales(self, signal):
        return super().scales(signal)[0], 0.0


class SlowWinner(Winner):
    targets = ("high",)
    rate = 0.25


class Fourier(Standard):
    """Random Fourier features whose scale is the centroid, under a ReLU network."""

    targets = ("high",)

    def network(self, name, signal, rng):
        sigma = signal.psi * math.pi * signal.sides[0] / 2
        return FourierNet(signal.x.shape[1], self.p.width, self.p.layers, sigma, rng)


class Images:
    targets = tuple(data.IMAGES)
    when = staticmethod(lambda p: p.images)


class StandardImages(Images, Standard):
    pass


class WinnerImages(Images, Winner):
    pass


class Own:
    targets = ("own",)
    when = staticmethod(lambda p: bool(os.environ.get("CLAIMLAB_DATA")))


class StandardOwn(Own, Standard):
    pass


class WinnerOwn(Own, Winner):
    pass


COMPARED = {
    "siren": Standard, "siren_tuned": Tuned, "winner": Winner, "fixed_noise": FixedNoise, "first_layer_only": FirstLayerOnly,
    "fourier_features": Fourier, "siren_slow": Slow, "winner_slow": SlowWinner,
}  # fmt: skip


class Edges(Series):
    """The compared arms on high targets with other bands, for the first seed: `siren at 0.25: psnr_high`.

    Without siren_tuned, whose choice for the high target is what siren has.
    """

    def __init__(self, p: Params, seeds: list[int]):
        pairs = {f"{name} at {edge:g}": (arm, edge) for edge in EDGES for name, arm in COMPARED.items() if arm is not Tuned}
        super().__init__({name: alone(arm, replace(p, band_low=edge), seeds[:1]) for name, (arm, edge) in pairs.items()}, seeds)


def alone(arm: type[Standard], p: Params, seeds: list[int]) -> Run:
    """An arm on the high target only, measured at its end."""
    task = arm(p)
    task.targets = ("high",)
    return Run(task, seeds, every=p.steps)


ARMS = COMPARED | {
    "edges": Edges, "siren_images": StandardImages, "winner_images": WinnerImages, "siren_own": StandardOwn, "winner_own": WinnerOwn,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"signal and fit": beside(__name__, "fit_view"), "tangent kernel": beside(__name__, "kernel_view")}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "centroid", "data", "figures", "noise_scales", "perturb", "power",
    "psnr", "tangent_kernel",
]  # fmt: skip
