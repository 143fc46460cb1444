"""Adaptive estimators of information: bins and kernels that follow a layer's activity, on networks that never saturate.

Do networks without saturating units also forget their input while they learn, once the ruler adapts to the size of their activity?
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _adaptive_mi_estimators_arms as arms
from claimlab.studies.representation import _adaptive_mi_estimators_data as data
from claimlab.studies.representation._adaptive_mi_estimators_arms import Crowd, Kernels, Look, Measured, PlainKernels, Same
from claimlab.studies.representation._adaptive_mi_estimators_method import binned_information as binned_information
from claimlab.studies.representation._adaptive_mi_estimators_method import codes as codes  # these are shown in the notebook
from claimlab.studies.representation._adaptive_mi_estimators_method import compression as compression
from claimlab.studies.representation._adaptive_mi_estimators_method import equal_edges as equal_edges
from claimlab.studies.representation._adaptive_mi_estimators_method import kernel_information as kernel_information
from claimlab.studies.representation._adaptive_mi_estimators_method import quantile_edges as quantile_edges
from claimlab.study import Control, Paper, beside
from claimlab.training import Series, Task

PAPER = Paper(
    title="Adaptive Estimators Show Information Compression in Deep Neural Networks", authors="Chelombiev, Houghton, O'Donnell",
    year=2019, url="https://arxiv.org/abs/1902.09037", theme="representations", system="EBAB and aKDE",
    question="Do networks without saturating units also forget their input while they learn, once the ruler adapts to the size of "
    "their activity?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    activation: str = knob("relu", "non-linearity of all hidden layers, in the arms whose names begin with relu",
                           choices=("relu", "tanh", "elu", "softplus", "swish", "abs", "sigmoid"))  # fmt: skip
    bins: int = knob(30, "number of bins; many bins saturate at log2(4096), 12 bits", low=3, high=200)
    binning: str = knob("adaptive", "quantile bins, one range for the whole run, or one range an epoch",
                        choices=("adaptive", "fixed_run", "fixed_epoch"))  # fmt: skip
    l2: float = knob(0.0, "weight penalty on all layers", low=0.0, high=0.05, live=True)
    noise: float = knob(0.001, "analysis noise of the kernel estimate relative to the layer's maximum", low=0.00001, high=0.1)
    lr: float = knob(0.002, "Adam step size", low=0.0001, high=0.02, live=True)
    init_scale: float = knob(1.0, "scale of first weights: compression varies a lot with it", low=0.2, high=3.0)
    networks: int = knob(20, "networks a seed in the population; the first four are looked at closely", low=2, high=100)
    patterns: int = knob(4096, "rows of the table that are used", low=200, high=20000)
    measurements: int = knob(12, "times at which all layers are measured", low=5, high=60)
    survey: bool = knob(False, "also train the other activations and a grid of weight penalties")
    steps: int = knob(1500, "optimiser steps", low=20, high=50000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=60, patterns=512, measurements=5, seeds=2, networks=2)
    FULL = dict(steps=8000, networks=50, measurements=20, survey=True)
    CONTROL = Control(
        set=dict(activation="tanh"), vanishes=("fixed-bins-mislead",),
        why="A bounded activation fills a fixed range, so fixed bins have nothing to be misled by.",
    )  # fmt: skip

    def __post_init__(self):
        if self.steps < 4 * self.measurements:
            raise ValueError(f"steps = {self.steps} is too short for measurements = {self.measurements}: four steps or more must "
                             "lie between two of them on average")  # fmt: skip


CLAIMS = (
    Claim("saturation-not-needed", "Measured with entropy-based adaptive bins, at least one hidden layer of a ReLU network loses "
          "5 % or more of its peak information about the input by the end of training.", kind="bound", metric="max_compression",
          arm="relu_ebab", better="higher", margin=0.05, source="abstract; information planes for non-saturating functions"),
    Claim("l2-compresses", "L2 regularisation on all weights increases compression of the hidden layers.", kind="paired",
          metric="mean_compression", arm="relu_l2_ebab", baseline="relu_ebab", better="higher", margin=0.05,
          source="abstract; section on L2 regularisation"),
    Claim("fixed-bins-mislead", "Fixed-range bins underestimate the information in an unbounded layer compared with adaptive bins "
          "of the same number.", kind="paired", metric="final_ixt_layer3", arm="relu_ebab", baseline="relu_fixed_bins",
          better="higher", margin=0.1, source="method section; comparison of binning"),
    Claim("last-layer-only", "Over many initialisations, compression of the last hidden layer correlates positively with test "
          "accuracy (Spearman above 0.2).", kind="bound", metric="spearman_last_layer", arm="relu_population", better="higher",
          margin=0.2, source="abstract; correlation of compression and generalisation"),
)  # fmt: skip
HONESTY = (
    "The network and task are the paper's own size, so this study is close to the original, but the target function is rebuilt "
    "from its description and not the original file. Binned 'information' of a deterministic network measures clustering of "
    "activity at the ruler's resolution, not true mutual information; the study says what each ruler sees."
)
HIDDEN = (10, 7, 5, 4, 3)
L2 = 0.005  # of the regularised arm: loss + L2 * sum of squared weights
TRAIN = 0.8
BATCH = 512


class Networks(Task):
    """A seed's crowd: networks that differ in first weights and in which fifth of the table is held out.

    The loss is the sum over the networks, so that Adam moves each by its own gradient alone. All of them draw the same places
    of their own training halves, and a smaller crowd is the beginning of a larger one: arms are paired network by network.
    """

    ahead = 10

    def __init__(self, p: Params, activation: str = "", l2: float | None = None, count: int = arms.FEW, population: bool = False):
        super().__init__(replace(p, activation=activation or p.activation))
        self.lr, self.own_l2, self.count, self.population = p.lr, l2, min(count, p.networks), population

    def bind(self, seed):
        bound, table = copy.copy(self), data.table(self.p.patterns)
        bound.x, bound.y, bound.labels, bound.classes = table.x, table.y, table.y.numpy(), table.classes
        orders = [np.random.default_rng([seed, k]).permutation(len(table.x)) for k in range(self.count)]
        cut = int(TRAIN * len(table.x))
        bound.train, bound.held = (torch.from_numpy(np.stack(part)) for part in
                                   ([o[:cut] for o in orders], [np.sort(o[cut:]) for o in orders]))  # fmt: skip
        return bound

    def init(self):
        sizes = (self.x.shape[1], *HIDDEN, self.classes)
        return Crowd(sizes, self.count, self.p.activation, self.p.init_scale, len(arms.moments(self.p)))

    def block(self, net, rng, step, n):
        """Inputs [n, K, B, D] and labels [n, K, B]."""
        places = torch.randint(self.train.shape[1], (n, BATCH), generator=rng).to(self.x.device)
        rows = self.train[:, places].movedim(1, 0)
        return self.x[rows], self.y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        told = net.layers(x)[-1]
        fit = nn.functional.cross_entropy(told.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[-1]
        strength = self.p.l2 if self.own_l2 is None else self.own_l2
        return fit + strength * sum(w.square().sum() for w in net.weights()) if strength else fit

    def record(self, net: Crowd, t: int, over: bool) -> None:
        """Keep what the networks are at measurement t, and measure it. A range of the whole run is known when it is over."""
        with torch.no_grad():
            net.film[t] = net.theta
            right = (net.layers(self.x)[-1].argmax(-1) == self.y).float()
            net.accuracy[t] = right.gather(1, self.held).mean(1)
        whole = self.p.binning == "fixed_run"
        span = arms.spans(net, self.x, range(t + 1)) if whole else None
        for one in range(t + 1) if over and whole else [t]:
            arms.measure(net, self.x, self.labels, one, self.p, self.p.binning, span)

    def metrics(self, net):
        return arms.summary(net, population=self.population)


@dataclass(frozen=True)
class Trained:
    """An arm of crowds that are trained: with another activation or penalty than the knobs say, a few networks or all."""

    activation: str = ""
    l2: float | None = None
    all: bool = False

    def __call__(self, p: Params, seeds: Sequence[int]) -> Measured:
        count = p.networks if self.all else arms.FEW
        return Measured(Networks(p, self.activation, self.l2, count, self.all), seeds)


@dataclass(frozen=True)
class Seen:
    """An arm that looks at the population when it is grown."""

    look: type[Look]
    after: str = "relu_population"

    def __call__(self, p: Params, seeds: Sequence[int], before: Measured) -> Look:
        return self.look(p, seeds, before)


@dataclass(frozen=True)
class Survey:
    """Several trainings one after the other, only where the survey is asked for."""

    arms: tuple[tuple[str, Trained], ...]

    def when(self, p: Params) -> bool:
        return p.survey

    def __call__(self, p: Params, seeds: Sequence[int]) -> Series:
        return Series({name: arm(p, seeds) for name, arm in self.arms}, seeds)


ARMS = {
    "relu_population": Trained(all=True),
    "relu_ebab": Seen(Same),
    "relu_l2_ebab": Trained(l2=L2),
    "relu_fixed_bins": Seen(Look),
    "relu_akde": Seen(Kernels),
    "relu_kde": Seen(PlainKernels),
    "tanh_ebab": Trained("tanh"),
    "elu_ebab": Trained("elu"),
    "other_activations": Survey(tuple((name, Trained(name)) for name in ("softplus", "swish", "abs", "sigmoid"))),
    "l2_grid": Survey(tuple((f"l2={l2:g}", Trained(l2=l2)) for l2 in (0.0005, 0.001, 0.01, 0.025))),
}
figures = beside(__name__, "figures")
VIEWS = {
    "information plane: each layer's path over epochs": beside(__name__, "plane_view"),
    "histogram of one unit with both kinds of bins": beside(__name__, "unit_view"),
}
