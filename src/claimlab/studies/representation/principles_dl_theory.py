"""Effective theory of deep networks: recursions, criticality and depth over width, measured on ensembles of random networks.

Can pen and paper foretell how signals, their randomness and learning change with depth, and is depth over width what counts?
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _principles_data as data
from claimlab.studies.representation._principles_data import describe, load_table
from claimlab.studies.representation._principles_drawings import NarrowEnsemble, Side, TanhCritical, WideEnsemble
from claimlab.studies.representation._principles_method import (
    Chain,
    chi_parallel,
    chi_perpendicular,
    critical_point,
    first_order,
    kernels,
    next_kernel,
    scale_invariant_vertex,
    vertex,
)
from claimlab.studies.representation._principles_nets import Networks
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Series, Supervised

PAPER = Paper(
    title="The Principles of Deep Learning Theory", authors="Roberts, Yaida, Hanin", year=2021,
    url="https://arxiv.org/abs/2106.10165", theme="representations", system="effective theory of deep networks",
    question="Can pen and paper foretell how signals, their randomness and learning change with depth, and is depth over width "
    "really the number that counts?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    c_w: float = knob(2.0, "weight variance: below critical signals die, above they explode", low=0.2, high=4.0)
    c_b: float = knob(0.0, "bias variance", low=0.0, high=1.0)
    activation: str = knob("relu", "each belongs to a universality class",
                           choices=("linear", "relu", "tanh", "sin", "gelu", "swish"))  # fmt: skip
    width: int = knob(24, "units a layer", low=4, high=1000)
    depth: int = knob(24, "layers; watch depth over width; the very deep arms have a third more", low=1, high=100)
    gamma_res: float = knob(0.0, "strength of the skip connection in the critical arms", low=0.0, high=0.99)
    lr: float = knob(0.05, "global learning rate; each arm multiplies it by its own factor", low=0.0001, high=1.0, live=True)
    noise: float = knob(0.1, "share of training labels that are wrong", low=0.0, high=0.8, unit="fraction")
    nets: int = knob(4, "networks drawn a seed; a seed's accuracy is their mean", low=1, high=64)
    draws: int = knob(4000, "random networks of the wide ensemble; the narrow ones have five times as many", low=20, high=200000)
    wide: int = knob(1000, "units a layer in the wide ensemble", low=10, high=10000)
    variants: bool = knob(False, "also GELU and SWISH in the wide ensemble, and a finer grid of depths and widths")
    steps: int = knob(300, "optimiser steps", low=10, high=20000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(wide=50, draws=50, depth=5, steps=20, seeds=2, nets=2)
    FULL = dict(wide=4000, draws=10000, variants=True, seeds=20)
    CONTROL = Control(
        set=dict(depth=2), vanishes=("criticality-trains-deep", "too-deep-hurts-and-residuals-help"),
        why="Two layers give signals no time to explode or to die, so the start hardly matters.",
    )  # fmt: skip


CLAIMS = (
    Claim("recursion-holds", "The mean squared preactivation measured over wide random networks follows the layer recursion of "
          "the theory (largest relative error at most 5%).", kind="equality", metric="kernel_relative_error", arm="wide_ensemble",
          better="lower", margin=0.05, source="chapters 4 and 5, kernel recursion"),
    Claim("tanh-decays-as-one-over-depth", "At criticality the tanh kernel falls as a power law with exponent -1 (measured "
          "exponent off by at most 0.15).", kind="rate", metric="abs_exponent_error", arm="tanh_critical", better="lower",
          margin=0.15, source="chapter 5, K*=0 universality class"),
    Claim("aspect-ratio-controls-fluctuation", "For ReLU at criticality the connected four-point function in units of the "
          "squared kernel starts as 5 times (l-1)/n, whatever the width (relative error of the slope at most 15%).",
          kind="equality", metric="vertex_relative_error", arm="narrow_ensemble", better="lower", margin=0.15,
          source="chapters 4 and 5, four-point vertex, scale-invariant class"),
    Claim("criticality-trains-deep", "At depth 24 a network started at criticality learns better than one with PyTorch's default "
          "start, each at its best learning rate.", kind="paired", metric="test_accuracy", arm="critical_deep",
          baseline="default_deep", better="higher", margin=0.1,
          source="criticality as cure of exploding and vanishing gradients"),
    Claim("too-deep-hurts-and-residuals-help", "At aspect ratio near one residual connections tuned to criticality test better "
          "than the plain critical network.", kind="paired", metric="test_accuracy", arm="residual_very_deep",
          baseline="critical_very_deep", better="higher", margin=0.02,
          source="appendix and epilogue on residual networks and the optimal aspect ratio"),
)  # fmt: skip
HONESTY = (
    "The theory is an expansion in depth over width for fully connected networks and inputs of equal norm; at ratio one it "
    "leaves its own range, so the last claim is qualitative. The optimal ratio's formula from information theory is illustrated "
    "by accuracy, not derived."
)


# ---- networks that learn


class Learner(Supervised):
    """`nets` networks of one seed, trained side by side by plain gradient descent on the same minibatches.

    An arm is its law, depth, skip connection and rate. The rates are the best of 0.2, 0.6 and 2 times the knob (0.01, 0.03 and
    0.1) on the development seeds 1000 to 1004, by mean test accuracy without a divergence: (below depth 8, from depth 8 on).
    """

    rates: tuple[float, float] = (2.0, 0.6)
    gain = 1.0  # factor on the knob c_w
    very, norm = False, False
    spread = 1.0  # further factor on the rate

    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(5, self.steps // 10))
    depth = property(lambda self: round(self.p.depth * 4 / 3) if self.very else self.p.depth)
    gamma = property(lambda self: self.p.gamma_res)
    law = property(lambda self: (self.p.c_b, self.p.c_w * self.gain))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.split = data.split(seed, self.p.noise, data.own())
        bound.x, bound.y, bound.test = bound.split.x, bound.split.given, bound.split.test
        return bound

    def init(self):
        sizes = self.x.shape[1], self.p.width, self.split.classes
        return Networks(sizes, self.depth, self.p.nets, self.law, self.test[0][:64], gamma=self.gamma,
                        activation=self.p.activation, norm=self.norm)  # fmt: skip

    def optimizer(self, groups):
        return torch.optim.SGD(groups)

    def schedule(self, step, steps):
        # the loss is a mean over networks, and each of them is to move at the full rate
        return self.rates[self.depth >= 8] * self.spread * self.p.nets

    def loss(self, net, x, y):
        out = net(x)
        return cross_entropy(out.flatten(0, 1), y.expand(len(out), -1).flatten())

    def metrics(self, net):
        right = (net(self.test[0]).argmax(2) == self.test[1]).float().mean(1)
        return {"test_accuracy": right.mean(), "spread": right.std() if len(right) > 1 else 0.0}


class CriticalDeep(Learner):
    pass


class DefaultDeep(Learner):
    rates = (2.0, 2.0)
    law, gamma = None, 0.0


class DefaultLayernorm(DefaultDeep):
    rates = (2.0, 0.2)
    norm = True


class OffLow(Learner):
    rates = (2.0, 2.0)
    gain, gamma = 0.75, 0.0


class OffHigh(Learner):
    rates = (2.0, 0.2)
    gain, gamma = 1.25, 0.0


class CriticalVeryDeep(Learner):
    very = True


class ResidualVeryDeep(Learner):
    rates = (2.0, 2.0)
    very, gamma = True, math.sqrt(0.9)


class Cell(Learner):
    """One cell of the grid of depths and widths. The rate of a layer falls as 1 / (depth width): every layer then adds the same
    to the tangent kernel, and the kernel keeps its size (equal contribution, chapter 9)."""

    rates, gamma = (0.6, 0.6), 0.0
    every = property(lambda self: self.steps)
    spread = property(lambda self: 24 * 24 / (self.p.depth * self.p.width))

    def init(self):
        net = super().init()
        net.register_buffer("start", net.tangent())
        net.register_buffer("first_change", self.step_once(net))
        return net

    def step_once(self, net):
        """Relative change of the tangent kernel by one step on the first 256 rows at a tenth of the rate, so small that it
        shows the kernel's differential; [R]."""
        moved = copy.deepcopy(net)
        weights = list(moved.parameters())
        gradients = torch.autograd.grad(self.loss(moved, self.x[:256], self.y[:256]), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * self.lr * self.schedule(0, 1) * gradient
        return change(moved.tangent(), net.start)

    def final(self, net):
        return {"kernel_change": change(net.tangent(), net.start).median(), "first_change": net.first_change.median()}


def change(kernel: Tensor, start: Tensor) -> Tensor:
    """|kernel - start| / |start| of each network, kernels [R, P, P]."""
    return (kernel - start).flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)


class Grid(Series):
    """Cells one after the other as one arm; metrics bear their cell's name, `n=24 L=8: test_accuracy`."""

    def __init__(self, p: Params, seeds: list[int]):
        self.cells = cells(p)
        runs = {f"n={n} L={depth}": Run(Cell(replace(p, width=n, depth=depth)), seeds) for n, depth in self.cells}
        super().__init__(runs, seeds)


def cells(p: Params) -> list[tuple[int, int]]:
    """(width, depth) of the grid: half, once and twice the knob's width; depths up to that of the very deep arms."""
    most = max(2, round(p.depth * 4 / 3))
    depths = [d for d in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if d <= most or p.variants]
    depths = depths if p.variants else [d for d in depths if d in (2, 4, 8, 16, 24, 32)]
    widths = [max(4, p.width // 2), p.width, 2 * p.width] + ([4 * p.width] if p.variants else [])
    return [(n, depth) for n in widths for depth in depths]


ARMS = {
    "wide_ensemble": WideEnsemble, "tanh_critical": TanhCritical, "narrow_ensemble": NarrowEnsemble, "pairs_and_tangents": Side,
    "critical_deep": CriticalDeep, "default_deep": DefaultDeep, "default_layernorm": DefaultLayernorm,
    "off_critical_low": OffLow, "off_critical_high": OffHigh,
    "critical_very_deep": CriticalVeryDeep, "residual_very_deep": ResidualVeryDeep, "depth_grid": Grid,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"kernel over layers": beside(__name__, "kernel_view"), "distribution of preactivations": beside(__name__, "gauss_view")}
__all__ = [
    "ARMS", "CLAIMS", "Chain", "HONESTY", "PAPER", "VIEWS", "Params", "chi_parallel", "chi_perpendicular", "critical_point",
    "describe", "figures", "first_order", "kernels", "load_table", "next_kernel", "scale_invariant_vertex", "vertex",
]  # fmt: skip
