"""complex AEC: one complex-valued network hears microphone and loopback and answers with the near-end speech alone.

Does it do without the adaptive filter that such systems begin with, and without that filter's time to converge?
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.schedules import one_cycle
from claimlab.studies.audio import _complex_aec_data as data
from claimlab.studies.audio import _complex_aec_method as method
from claimlab.studies.audio._complex_aec_data import DOUBLE, FAR, NEAR, RATE, Clips
from claimlab.studies.audio._complex_aec_method import D2 as D2  # shown in the notebook, as the three below
from claimlab.studies.audio._complex_aec_method import D3, combine, compress, erle, geigel, istft, level, sisdr, stft
from claimlab.studies.audio._complex_aec_method import delay_mask as delay_mask
from claimlab.studies.audio._complex_aec_method import nlms as nlms
from claimlab.studies.audio._complex_aec_method import tied as tied
from claimlab.study import Control, Paper, beside
from claimlab.training import Stepwise, Task, Tick

PAPER = Paper(
    title="End-to-End Complex-Valued Multidilated Convolutional Neural Network for Joint Acoustic Echo Cancellation and Noise "
    "Suppression", authors="Watcharasupat, Nguyen, Gan, Zhao, Ma", year=2021, url="https://arxiv.org/abs/2110.00745",
    theme="stages", system="complex D3Net with dual mask",
    question="Does a single complex-valued network remove echo and noise as well as an adaptive filter followed by a network, "
    "without needing time to converge?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    combine: str = knob("sum", "how the masks act", choices=("sum", "cascade", "single"))
    delay_ms: float = knob(30.0, "largest echo delay; beyond the window (16 ms) masks alone must fail or use context", low=0.0,
                           high=60.0, unit="ms")  # fmt: skip
    nonlinearity: float = knob(1.5, "loudspeaker distortion; linear filters cannot follow", low=0.0, high=5.0)
    ser_db: float = knob(0.0, "speech to echo ratio in tests", low=-20.0, high=20.0, unit="dB")
    nlms_mu: float = knob(0.2, "step of the adaptive filter: fast or stable", low=0.05, high=1.5)
    growth: int = knob(4, "channels a layer", low=2, high=12)
    sisdr_weight: float = knob(0.5, "waveform against spectral loss", low=0.0, high=1.0, live=True)
    blocks: int = knob(2, "multidilated blocks", low=1, high=4)
    clips: int = knob(400, "training clips of one second", low=12, high=4000)
    tests: int = knob(120, "test clips of one second", low=12, high=1200)
    batch: int = knob(2, "excerpts an update, half of all double talk", low=2, high=32)
    crop_ms: int = knob(500, "length of an excerpt", low=200, high=1000, unit="ms")
    ablation: bool = knob(False, "also train the dense block with one dilation a layer")
    steps: int = knob(200, "optimiser steps", low=2, high=10000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=4, crop_ms=256, clips=12, tests=12, seeds=2)
    FULL = dict(steps=700, growth=6, blocks=3, ablation=True)
    CONTROL = Control(
        set=dict(nonlinearity=0.0, ser_db=20), vanishes=("end-to-end-beats-two-stage", "dual-mask"),
        why="A weak and linear echo is what an adaptive filter removes completely.",
    )  # fmt: skip


CLAIMS = (
    Claim("end-to-end-beats-two-stage", "The end-to-end complex network improves the near-end speech (SI-SDR gain in double "
          "talk, dB) at least as much as an adaptive filter plus a mask network of the same size.", kind="paired",
          metric="sisdr_gain_db", arm="complex_dual", baseline="nlms_plus_mask", better="higher", margin=0.0,
          source="abstract; synthetic test table"),
    Claim("no-convergence-time", "Right after an echo-path change it removes more echo (ERLE in the next 300 ms, dB) than the "
          "adaptive filter chain.", kind="paired", metric="erle_after_change_db", arm="complex_dual",
          baseline="nlms_plus_mask", better="higher", margin=1.0, source="introduction: filters need time to converge"),
    Claim("complex-mask-needed", "Complex masks beat real (magnitude) masks in the same architecture.", kind="paired",
          metric="sisdr_gain_db", arm="complex_dual", baseline="real_dual", better="higher", margin=0.3,
          source="abstract: offset-compensating ability of complex masks"),
    Claim("dual-mask", "Two masks (microphone and loopback) beat one mask on the microphone.", kind="paired",
          metric="sisdr_gain_db", arm="complex_dual", baseline="complex_single", better="higher", margin=0.2,
          source="dual-mask section"),
)  # fmt: skip
HONESTY = (
    "Synthetic vowels and exponential rooms replace the AEC-Challenge; PESQ or MOS proxies are left out. A model of a few "
    "thousand parameters trained for seconds is far from the paper's quality: only the ranking of masks, of one against two "
    "stages, and the reaction to a path change are examined."
)


# ---- the objective


def objective(estimate: Tensor, near: Tensor, mic: Tensor, weight: float) -> Tensor:
    """w (waveform) + (1 - w) (spectral), a mean over excerpts: spectra `estimate` [B, K, M], waves `near`, `mic` [B, T].

    Waveform: -SI-SDR / 10, and where the near end is silent (SI-SDR is undefined) log10 of the energy that is left, in units
    of the microphone's. Spectral: mean |c(S) - c(S_true)| of compressed spectra.
    """
    wave = istft(estimate)
    talking = near.square().mean(-1) > method.SILENT
    left = torch.log10(wave.square().sum(-1) / (mic.square().sum(-1) + 1e-9) + 1e-3)
    heard = -sisdr(wave, near) / 10
    off = compress(estimate) - compress(stft(near))
    spectral = (off.real.square() + off.imag.square() + 1e-8).sqrt().mean()
    return weight * torch.where(talking, heard, left).mean() + (1 - weight) * spectral


# ---- data of a seed


def _source() -> str:
    return os.environ.get("CLAIMLAB_DATA", "")


def own_or_made(seed: int, p: Params) -> tuple[Clips, Clips]:
    """Training and test clips of `seed`: synthetic, or those of the folder that CLAIMLAB_DATA names."""
    return data.made(seed, p.clips, p.tests, p.delay_ms, p.nonlinearity, p.ser_db, _source())


def taps(p: Params) -> int:
    """Length of the adaptive filter: the largest delay and the 64 ms response, in whole steps of 64 samples."""
    return -(-int((p.delay_ms + 64) * RATE / 1000) // 64) * 64


def cancelled(clips: Clips, length: int, mu: float) -> tuple[Tensor, Tensor]:
    """Error and echo estimate [C, T] of the adaptive filter; where the far end is silent it has nothing to do."""
    error, echo = clips.mic.clone(), torch.zeros_like(clips.mic)
    busy = (clips.far.abs().amax(1) > 0).nonzero().flatten()
    for rows in busy.split(96):  # as many weights as stay in the cache
        far, mic = clips.far[rows], clips.mic[rows]
        error[rows], echo[rows], _ = nlms(far, mic, length, mu, geigel(far, mic, length))
    return error, echo


@lru_cache(maxsize=12)
def filtered(seed: int, count: int, tests: int, delay_ms: float, nonlinearity: float, ser_db: float, path: str,
             length: int, mu: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:  # fmt: skip
    """What the adaptive filter makes of training and test clips, all in one pass over the samples."""
    train, test = data.made(seed, count, tests, delay_ms, nonlinearity, ser_db, path)
    both = Clips(*(torch.cat([getattr(train, n), getattr(test, n)]) for n in ("mic", "far", "near", "scenario", "change")))
    error, echo = cancelled(both, length, mu)
    cut = len(train.mic)
    return (error[:cut], echo[:cut]), (error[cut:], echo[cut:])


def first_stage(seed: int, p: Params) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`filtered` at the knobs `p`."""
    return filtered(seed, p.clips, p.tests, p.delay_ms, p.nonlinearity, p.ser_db, _source(), taps(p), p.nlms_mu)


# ---- what is measured


def measured(out: Tensor, clips: Clips) -> dict[str, Tensor]:
    """The metrics of estimates `out` [C, T] on test clips; dB."""
    double, near, far = clips.of(DOUBLE), clips.of(NEAR), clips.of(FAR)
    gain = sisdr(out, clips.near) - sisdr(clips.mic, clips.near)
    scale = 1 / level(out[near], clips.near[near])
    found = {"sisdr_gain_db": gain[double].mean(), "sisdr_gain_near_db": gain[near].mean(),
             "erle_far_db": erle(clips.mic[far], scale * out[far]).mean()}  # fmt: skip
    moved = far[clips.change[far] == RATE // 2]
    window = slice(RATE // 2, RATE * 8 // 10)
    after = erle(clips.mic[moved, window], scale * out[moved, window]).mean()  # NaN where no path changes: a claim says so
    return found | {"erle_after_change_db": after, "sisdr_out_db": sisdr(out, clips.near)[double].mean()}


# ---- the arms


class Masker(nn.Module):
    """A D3 network with the way its masks are used. `two_stage`: it gets the adaptive filter's error and echo estimate."""

    def __init__(self, how: str, two_stage: bool, **options):
        super().__init__()
        self.how, self.two_stage = how, two_stage
        self.net = D3(masks=1 if how == "single" else 2, **options)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Spectra [B, K, M] of microphone and loopback, or of error and echo estimate, to the spectrum of the near end."""
        return combine(self.how, self.net(first, second), first, second)

    def waves(self, first: Tensor, second: Tensor, chunk: int = 4) -> Tensor:
        """Waves [C, T] to the estimate [C, T], a few clips at a time."""
        with torch.no_grad():
            parts = zip(first.split(chunk), second.split(chunk), strict=True)
            return torch.cat([istft(self(stft(a), stft(b))) for a, b in parts])


def size(net: nn.Module) -> int:
    """Real parameters."""
    return sum(p.numel() for p in net.parameters())


@lru_cache(maxsize=32)
def real_growth(growth: int, blocks: int) -> int:
    """Channels a layer of the real network whose number of parameters comes nearest to the complex one's."""
    with torch.random.fork_rng(devices=[]):
        wanted = size(D3(growth, blocks, 2))
        return min(range(growth, 2 * growth + 2), key=lambda g: abs(size(D3(g, blocks, 2, is_complex=False)) - wanted))


class ComplexDual(Task):
    """Complex masks on microphone and loopback, end to end. Other arms of a seed see the same excerpts in the same order."""

    lr = 1e-2
    vectorize = False  # convolutions of this size gain nothing from stacking
    ahead = 10
    is_complex, two_stage, multidilated = True, False, True

    @property
    def every(self) -> int:
        return self.steps // 5 if self.steps >= 10 else self.steps

    @property
    def how(self) -> str:
        return self.p.combine

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.train, bound.test = own_or_made(seed, self.p)
        inputs = first_stage(seed, self.p) if self.two_stage else [(c.mic, c.far) for c in (bound.train, bound.test)]
        bound.inputs, bound.tested = inputs
        bound.kinds = [bound.train.of(code) for code in (DOUBLE, FAR, DOUBLE, NEAR)]
        return bound

    def init(self):
        growth = self.p.growth if self.is_complex else real_growth(self.p.growth, self.p.blocks)
        return Masker(self.how, self.two_stage, growth=growth, blocks=self.p.blocks, is_complex=self.is_complex,
                      multidilated=self.multidilated)  # fmt: skip

    def schedule(self, step, steps):
        return one_cycle(step, steps)

    def block(self, net, rng, step, n):
        length = self.p.crop_ms * RATE // 1000 // method.HOP * method.HOP
        places = torch.rand(2, n, self.p.batch, generator=rng)
        turn = (torch.arange(step, step + n)[:, None] * self.p.batch + torch.arange(self.p.batch)) % len(self.kinds)
        rows = torch.stack([kind[(places[0] * len(kind)).long()] for kind in self.kinds]).gather(0, turn[None])[0]
        starts = (places[1] * (self.train.mic.shape[1] - length + 1)).long()
        span = starts[..., None] + torch.arange(length)
        return tuple(wave[rows[..., None], span] for wave in (*self.inputs, self.train.near, self.train.mic))

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, first, second, near, mic):
        return objective(net(stft(first), stft(second)), near, mic, self.p.sisdr_weight)

    def metrics(self, net):
        few = self.test.of(DOUBLE)[:4]
        out = net.waves(*(wave[few] for wave in self.tested))
        return {"gain_so_far_db": (sisdr(out, self.test.near[few]) - sisdr(self.test.mic[few], self.test.near[few])).mean()}

    def final(self, net):
        return measured(net.waves(*self.tested), self.test)


class ComplexSingle(ComplexDual):
    """One complex mask, on the microphone."""

    how = "single"


class RealDual(ComplexDual):
    """Real convolutions and real masks: M_y in [0, 2], M_x in [-2, 2]."""

    is_complex = False


class NlmsPlusMask(ComplexSingle):
    """The rival: an adaptive filter, then one complex mask on its error from (error, echo estimate)."""

    two_stage = True


class SingleDilation(ComplexDual):
    """Ablation: dilation 2^l for every group of layer l."""

    multidilated = False

    @staticmethod
    def when(params) -> bool:
        return params.ablation


class Nlms(Stepwise):
    """The adaptive filter alone: one tick, nothing is trained."""

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.total, self.step, self.seconds = p, list(seeds), 1, 0, 0.0

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, "samples": self.p.clips, "forward_calls": 0, "seconds": self.seconds}

    def stepwise(self):
        began = time.perf_counter()
        found = [measured(first_stage(seed, self.p)[1][0], own_or_made(seed, self.p)[1]) for seed in self.seeds]
        self.seconds, self.step = time.perf_counter() - began, 1
        yield Tick(1, [{name: float(value) for name, value in one.items()} for one in found])


ARMS = {
    "nlms": Nlms, "complex_dual": ComplexDual, "complex_single": ComplexSingle, "real_dual": RealDual,
    "nlms_plus_mask": NlmsPlusMask, "single_dilation": SingleDilation,
}  # fmt: skip
figures = beside(__name__, "figures")
sounds = beside(__name__, "sounds")
VIEWS = {
    "spectrograms": beside(__name__, "spectrograms"),
    "echo over time": beside(__name__, "echo_over_time"),
}
