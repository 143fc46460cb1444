"""Effective theory of deep networks: recursions, criticality and depth over width, measured on ensembles of random networks.

Can pen and paper foretell how signals, their randomness and learning change with depth, and is depth over width what counts?
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _principles_data as data
from claimlab.studies.representation._principles_data import describe, load_table
from claimlab.studies.representation._principles_method import (
    Chain,
    chi_parallel,
    chi_perpendicular,
    critical_point,
    draw_pair,
    draw_tangent,
    first_order,
    kernels,
    next_kernel,
    next_pair,
    scale_invariant_vertex,
    tangent_kernels,
    vertex,
)
from claimlab.studies.representation._principles_nets import Networks
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Supervised, Tick

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
    Claim("recursion-holds", "The mean squared preactivation measured over wide random networks follows the layer recursion of the "
          "theory (largest relative error at most 5%).", kind="equality", metric="kernel_relative_error", arm="wide_ensemble",
          better="lower", margin=0.05, source="chapters 4 and 5, kernel recursion"),
    Claim("tanh-decays-as-one-over-depth", "At criticality the tanh kernel falls as a power law with exponent -1 (measured exponent "
          "off by at most 0.15).", kind="rate", metric="abs_exponent_error", arm="tanh_critical", better="lower", margin=0.15,
          source="chapter 5, K*=0 universality class"),
    Claim("aspect-ratio-controls-fluctuation", "For ReLU at criticality the connected four-point function in units of the squared "
          "kernel starts as 5 times (l-1)/n, whatever the width (relative error of the slope at most 15%).", kind="equality",
          metric="vertex_relative_error", arm="narrow_ensemble", better="lower", margin=0.15,
          source="chapters 4 and 5, four-point vertex, scale-invariant class"),
    Claim("criticality-trains-deep", "At depth 24 a network started at criticality learns better than one with PyTorch's default "
          "start, each at its best learning rate.", kind="paired", metric="test_accuracy", arm="critical_deep",
          baseline="default_deep", better="higher", margin=0.1,
          source="criticality as cure of exploding and vanishing gradients"),
    Claim("too-deep-hurts-and-residuals-help", "At aspect ratio near one residual connections tuned to criticality test better than "
          "the plain critical network.", kind="paired", metric="test_accuracy", arm="residual_very_deep",
          baseline="critical_very_deep", better="higher", margin=0.02,
          source="appendix and epilogue on residual networks and the optimal aspect ratio"),
)  # fmt: skip
HONESTY = (
    "The theory is an expansion in depth over width for fully connected networks and inputs of equal norm; at ratio one it leaves "
    "its own range, so the last claim is qualitative. The optimal ratio's formula from information theory is illustrated by "
    "accuracy, not derived."
)
RELU = ("relu", 0.0, 2.0)


# ---- random networks that are drawn and not trained


class Drawing:
    """Ensembles of random networks, drawn a layer a step for all seeds at once. A subclass owns `chains` and says what a layer
    gives: `found` is a list of metrics, one dict a seed."""

    def __init__(self, p: Params, seeds: list[int], chains: list[Chain], layers: list[int], moments: bool = False):
        self.p, self.seeds, self.chains, self.depths, self.moments = p, seeds, chains, layers, moments
        self.total, self.step, self.seconds = max(layers), 0, 0.0
        self.measured = [np.full((n, len(seeds), len(c.cases), 2), np.nan) for c, n in zip(chains, layers, strict=True)]
        self.theory = [np.stack([kernels(a, b, w, n, b + w) for a, b, w in c.cases], 1) for c, n in zip(chains, layers, strict=True)]

    def stepwise(self):
        while self.step < self.total:
            began = time.perf_counter()
            for chain, depth, measured in zip(self.chains, self.depths, self.measured, strict=True):
                if self.step < depth:
                    measured[self.step] = chain.advance(self.moments).numpy()
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield Tick(self.step, [self.found(i) for i in range(len(self.seeds))])

    def found(self, i: int) -> dict[str, float]:
        raise NotImplementedError

    @property
    def members(self) -> list[Drawn]:
        return [Drawn(self, i) for i in range(len(self.seeds))]

    @property
    def budget(self) -> dict[str, float]:
        drawn = sum(c.draws for c in self.chains)
        return {"steps": self.step, "samples": drawn, "forward_calls": drawn, "seconds": self.seconds}

    def state(self) -> dict:
        return {"step": self.step, "seconds": self.seconds, "measured": [m.copy() for m in self.measured],
                "chains": [c.state() for c in self.chains]}  # fmt: skip

    def load(self, state: dict) -> None:
        self.step, self.seconds, self.measured = state["step"], state["seconds"], [m.copy() for m in state["measured"]]
        for chain, saved in zip(self.chains, state["chains"], strict=True):
            chain.load(saved)


class Drawn(nn.Module):
    """What one seed of a drawing has given so far, of its last chain: kernels by layer and preactivations of the last layer."""

    def __init__(self, drawing: Drawing, i: int):
        super().__init__()
        chain, depth = drawing.chains[-1], min(drawing.step, drawing.depths[-1])
        self.names = [f"{a}, ({b:.3g}, {w:.3g})" for a, b, w in chain.cases]
        self.width, self.at = chain.width, depth
        self.register_buffer("measured", torch.from_numpy(drawing.measured[-1][:depth, i, :, 0].copy()))
        self.register_buffer("expected", torch.from_numpy(drawing.theory[-1][:depth]))
        self.register_buffer("sample", chain.sample[i].clone())


class WideEnsemble(Drawing):
    """ReLU, tanh and linear networks at their critical points, and those of the knobs: 30 layers."""

    judged = ("relu", "tanh", "linear")

    def __init__(self, p: Params, seeds: list[int]):
        names = [*self.judged, *(("gelu", "swish") if p.variants else ())]
        cases = {name: (name, *critical_point(name)[:2]) for name in names} | {p.activation: (p.activation, p.c_b, p.c_w)}
        super().__init__(p, seeds, [Chain(list(cases.values()), p.wide, p.draws, seeds, 1)], [30])

    def found(self, i):
        off = abs(self.measured[0][: self.step, i, :, 0] / self.theory[0][: self.step] - 1)
        errors = {case[0]: float(off[:, a].max()) for a, case in enumerate(self.chains[0].cases)}
        return {"kernel_relative_error": max(errors[a] for a in self.judged)} | {f"error of {a}": e for a, e in errors.items()}


class TanhCritical(Drawing):
    """tanh at (0, 1), 100 layers: the exponent of K over layers 20 to 100."""

    first = 20

    def __init__(self, p: Params, seeds: list[int]):
        super().__init__(p, seeds, [Chain([("tanh", 0.0, 1.0)], p.wide, max(10, p.draws * 3 // 40), seeds, 2)], [100])

    def found(self, i):
        k = self.measured[0][: self.step, i, 0, 0]
        found = {"log10_kernel": math.log10(k[-1])}
        if self.step < self.first + 2:
            return found
        return found | {"abs_exponent_error": abs(exponent(k, self.first) + 1)}


def exponent(k: np.ndarray, first: int) -> float:
    """Slope of log K^l on log l from layer `first` on; k [l] begins with layer 1."""
    layer = np.arange(first, len(k) + 1)
    return float(np.polyfit(np.log(layer), np.log(k[first - 1 :]), 1)[0])


class NarrowEnsemble(Drawing):
    """ReLU and linear networks at criticality, four widths: how the product of two neurons' squares outgrows K^2."""

    widths, shown, range = (20, 50, 100, 200), 0.15, (0.01, 0.1)

    def __init__(self, p: Params, seeds: list[int]):
        cases, draws = [RELU, ("linear", 0.0, 1.0)], 5 * p.draws
        chains = [Chain(cases, n, draws, seeds, 10 + k) for k, n in enumerate(self.widths)]
        super().__init__(p, seeds, chains, [1 + round(self.shown * n) for n in self.widths], moments=True)

    def excess(self, i: int, case: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(n, ratio (l - 1) / n, excess) of each width, as far as drawn."""
        some = [slice(0, min(self.step, depth)) for depth in self.depths]
        return [(n, np.arange(s.stop) / n, m[s, i, case, 1] / t[s, case] ** 2 - 1)
                for n, s, m, t in zip(self.widths, some, self.measured, self.theory, strict=True)]  # fmt: skip

    def slope(self, i: int, case: int) -> float:
        """s1 of excess = s1 r + s2 r^2 over all widths and layers inside `range`."""
        ratio, excess = (np.concatenate(part) for part in list(zip(*self.excess(i, case), strict=True))[1:])
        inside = (ratio >= self.range[0] - 1e-9) & (ratio <= self.range[1] + 1e-9)
        return first_order(ratio[inside], excess[inside])[0]

    def found(self, i):
        if self.step < 3:
            return {}
        s1 = self.slope(i, 0)
        return {"vertex_relative_error": abs(s1 - 5) / 5, "slope of relu": s1, "slope of linear": self.slope(i, 1)}


class Side:
    """Smaller drawings beside the judged ones, all in one step: the correlation of two inputs, and the tangent kernel."""

    overlap, layers, pairs = 0.5, 30, (("relu", 0.0, 2.0), ("tanh", 0.0, 1.0))
    widths, total = (16, 32, 64), 1

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.step = p, seeds, 0
        self.correlation = {a: self.foretold(a, b, w) for a, b, w in self.pairs}  # of infinite width
        self.measured: dict[str, np.ndarray] = {}  # [S, layers]
        self.tangent: dict[int, np.ndarray] = {}  # mean of Theta and of Theta^2, [S, layers, 2]

    def foretold(self, activation: str, c_b: float, c_w: float) -> np.ndarray:
        kernel, found = (c_b + c_w, c_b + c_w * self.overlap, c_b + c_w), []
        for _ in range(self.layers):
            found.append(kernel[1] / math.sqrt(kernel[0] * kernel[2]))
            kernel = next_pair(activation, c_b, c_w, kernel)
        return np.array(found)

    def ticks(self):
        p, rngs = self.p, [torch.Generator().manual_seed(s * 1_000_003 + 977) for s in self.seeds]
        for a, b, w in self.pairs:
            drawn = [draw_pair(a, b, w, p.wide, max(10, p.draws // 20), self.layers, self.overlap, g) for g in rngs]
            self.measured[a] = np.stack(drawn)
        for n in self.widths:
            drawn = [draw_tangent(*RELU, n, max(20, p.draws // 8), n // 4, 1.0, g) for g in rngs]
            self.tangent[n] = np.stack(drawn)
        self.step = 1
        yield Tick(1, [self.found(i) for i in range(len(self.seeds))])

    def found(self, i: int) -> dict[str, float]:
        off = max(abs(self.measured[a][i] - self.correlation[a]).max() for a in self.measured)
        mean = [abs(t[i, :, 0] / tangent_kernels(*RELU, n // 4, 2.0, 1.0) - 1).max() for n, t in self.tangent.items()]
        return {"correlation_error": float(off), "tangent_relative_error": float(max(mean))}


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
    law, gamma = None, 0.0


class DefaultLayernorm(DefaultDeep):
    norm = True


class OffLow(Learner):
    gain, gamma = 0.75, 0.0


class OffHigh(Learner):
    gain, gamma = 1.25, 0.0


class CriticalVeryDeep(Learner):
    very = True


class ResidualVeryDeep(Learner):
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
        return net

    def final(self, net):
        change = (net.tangent() - net.start).flatten(1).norm(dim=1) / net.start.flatten(1).norm(dim=1)
        return {"kernel_change": change.median()}


class Grid:
    """Cells one after the other as one arm; metrics bear their cell's name, `n=24 L=8: test_accuracy`."""

    def __init__(self, p: Params, seeds: list[int]):
        self.seeds = seeds
        self.cells = {(n, depth): Run(Cell(replace(p, width=n, depth=depth)), seeds) for n, depth in cells(p)}
        self.total = sum(run.total for run in self.cells.values())

    @property
    def step(self) -> int:
        return sum(run.step for run in self.cells.values())

    @property
    def budget(self) -> dict[str, float]:
        return {key: sum(run.budget[key] for run in self.cells.values()) for key in ("steps", "samples", "forward_calls", "seconds")}

    def stepwise(self):
        for (n, depth), run in self.cells.items():
            for tick in run.stepwise():  # noqa: B007 - the last one counts
                yield None
            yield Tick(self.step, [{f"n={n} L={depth}: {key}": value for key, value in m.items()} for m in tick.metrics])


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
    "ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "chi_parallel", "chi_perpendicular", "critical_point", "describe",
    "figures", "kernels", "load_table", "next_kernel", "scale_invariant_vertex", "vertex",
]  # fmt: skip
