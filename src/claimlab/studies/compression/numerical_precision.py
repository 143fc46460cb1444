"""Numerical precision: cut every weight to a few mantissa bits after every batch. When does a network stop learning?"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.compression import _numerical_precision_format as formats
from claimlab.studies.compression import _numerical_precision_net as nets
from claimlab.studies.compression._numerical_precision_data import split
from claimlab.studies.compression._numerical_precision_net import Copies, relative
from claimlab.study import Control, Paper, beside
from claimlab.training import Supervised, Tick

PAPER = Paper(
    title="Exploration of Numerical Precision in Deep Neural Networks", authors="Li, Ma, Vajiac, Zhang", year=2018,
    url="https://arxiv.org/abs/1805.01078", theme="sensitivity", system="truncation emulator",
    question="How many bits may be cut off every weight after every batch before a network stops learning, and can arithmetic "
    "predict it?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    mantissa: int = knob(8, "stored mantissa bits of the arm `chosen`; 23 is float32 itself, the reference", low=1, high=23,
                         unit="bits", live=True)  # fmt: skip
    exponent: int = knob(8, "range of numbers; few flush small weights to zero", low=3, high=8, unit="bits", live=True)
    rounding: str = knob("truncate", "what happens to the bits that are cut, in the arm `chosen`",
                         choices=("truncate", "nearest", "stochastic"), live=True)  # fmt: skip
    layers: int = knob(2, "hidden layers (the deep arms keep theirs)", low=1, high=8)
    width: int = knob(100, "units a layer", low=16, high=256)
    lr: float = knob(0.1, "larger steps survive coarser grids", low=0.001, high=1.0, live=True)
    every: int = knob(1, "truncate only every so many batches", low=1, high=100, unit="batches", live=True)
    infinity: bool = knob(False, "a number too large becomes infinity, not the largest of the format")
    factors: str = knob("depth", "which factors are varied: hidden layers, or width, batch, activation and range as well",
                        choices=("depth", "all"))  # fmt: skip
    images: str = knob("digits", "1,797 digits of 8 x 8 pixels, or 5,000 of 28 x 28", choices=("digits", "mnist"))
    steps: int = knob(400, "optimiser steps", low=20, high=10000)
    seeds: int = knob(12, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=20, seeds=2, width=24)
    FULL = dict(images="mnist", factors="all", steps=800, seeds=10)
    CONTROL = Control(
        why="The reference of every claim already is the control: 23 mantissa bits run through the same truncation code and "
        "must equal 32-bit training bit for bit, which an oracle demands.",
    )  # fmt: skip


CLAIMS = (
    Claim("resilient", "With 8 stored mantissa bits the final accuracy is within 1 point of 32-bit training.", kind="bound",
          metric="accuracy_drop_8bit", arm="truncate", better="lower", margin=0.01,
          source="abstract (resilient to small errors); accuracy-against-bits figures"),
    Claim("cliff", "The fall is a cliff: from losing at most 5 points to losing at least 20 points takes at most 3 mantissa bits, "
          "and with 2 bits training has collapsed.", kind="bound", metric="cliff_width_bits", arm="truncate", better="lower",
          margin=3.0, source="accuracy-against-bits figures"),
    Claim("forward-rate", "Relative output error of a truncated network falls like 2^-m: slope of log2(error) against mantissa "
          "bits m is -0.9 or steeper.", kind="rate", metric="forward_slope", arm="probe", better="lower", margin=-0.9,
          source="section on forward error scaling"),
    Claim("backward-rate", "The relative error of the gradient falls at the same rate.", kind="rate", metric="backward_slope",
          arm="probe", better="lower", margin=-0.8, source="section on backward error scaling"),
    Claim("depth-costs-bits", "At 6 mantissa bits a network with 8 hidden layers loses more accuracy than one with 2, same "
          "learning rate.", kind="paired", metric="accuracy_drop_6bit", arm="truncate_deep", baseline="truncate",
          better="higher", margin=0.02, source="abstract (impact of model parameters)"),
)  # fmt: skip
HONESTY = (
    "Digits and small dense nets as in the paper's MNIST study; no hardware runs at these precisions, so nothing is said about "
    "speed, and accumulations inside a batch are full precision. The theory is a worst-case bound; the study tests its rate, "
    "not its constant."
)

STORED = formats.STORED
GRID, FEW = (2, 3, 4, 5, 6, 7, 8, 10, STORED), (4, 6, 8, 10, STORED)  # the last copy of every arm is its float32 reference
PROBED = tuple(range(2, 17))


# ---- the arms: copies of one network that differ in their mantissa bits alone, trained side by side on the same batches


class Float32(Supervised):
    """SGD without momentum in float32, no rounding code at all."""

    kind, widths, activation, batch_size, ahead = "float32", (STORED,), "relu", 32, 1
    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(20, self.steps // 10))
    exponent = property(lambda self: self.p.exponent)
    layers = property(lambda self: self.p.layers)
    width = property(lambda self: self.p.width)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.x, bound.y, bound.test_x, bound.test_y = split(seed, self.p.images, os.environ.get("CLAIMLAB_DATA", ""))
        return bound

    def init(self):
        classes = int(self.y.max()) + 1
        return Copies([self.x.shape[1], *[self.width] * self.layers, classes], self.widths, self.activation)

    def groups(self):
        return {"weights": {}, "biases": {}, "memo": {}}

    def optimizer(self, groups):
        return nets.Rounded(groups, self)

    def batch(self, net, rng, step):
        rows = torch.randint(len(self.x), (self.batch_size,), generator=rng)
        net.note(int(torch.randint(2**24, (1,), generator=rng)), due=(step + 1) % self.p.every == 0)
        return self.x[rows], self.y[rows]

    def loss(self, net, x, y):
        """The sum over the copies: none of them feels the others."""
        return losses(net, x, y).sum()

    def labels(self) -> list[str]:
        return [f"{m}bit" for m in self.widths[:-1]]

    def metrics(self, net):
        right = (net(self.test_x).argmax(-1) == self.test_y).double().mean(-1)
        still, size = unmoved(net, self), magnitude(net)
        found = {}
        for k, name in enumerate([*self.labels(), "float32"]):
            found |= {f"accuracy_{name}": right[k], f"unmoved_{name}": still[k], f"size_{name}": size[k]}
        found |= {f"accuracy_drop_{name}": right[-1] - right[k] for k, name in enumerate(self.labels())}
        return found | {"train_loss": losses(net, self.x[:256], self.y[:256])[0]}

    def final(self, net):
        if self.widths != GRID:
            return {}
        drops = self.metrics(net)
        return {"cliff_width_bits": cliff_width({m: float(drops[f"accuracy_drop_{m}bit"]) for m in GRID[:-1]})}


def losses(net: Copies, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of every copy on x [B, in], y [B]; [K]."""
    logits = net(x)
    return cross_entropy(logits.mT, y.expand(len(logits), -1), reduction="none").mean(-1)


def cliff_width(drops: dict[int, float]) -> float:
    """m_hi - m_lo: m_lo the largest m that loses 0.20 or more, m_hi the smallest m from which on none loses more than 0.05."""
    fallen = [m for m, drop in drops.items() if drop >= 0.20]
    safe = [m for m in drops if all(drop <= 0.05 for n, drop in drops.items() if n >= m)]
    return min(safe) - max(fallen) if fallen and safe else math.nan


def unmoved(net: Copies, task: Float32) -> Tensor:
    """Share of the weights with a gradient that one more step, on the first training images, would leave as they are; [K].

    The learning rate is that of the last step, the knob at the start. Noise, where it is needed, is always the same.
    """
    x, y = task.x[: task.batch_size], task.y[: task.batch_size]
    lr = net.lr or task.lr
    mantissa = torch.tensor(task.widths[:-1], dtype=torch.int32, device=x.device)[:, None, None]
    with torch.enable_grad():
        slopes = torch.autograd.grad(losses(net, x, y).sum(), list(net.weights))
    same, felt, rng = 0, 0, torch.Generator().manual_seed(0)
    for w, g in zip(net.weights, slopes, strict=True):
        noise = formats.uniform_bits((1, *w.shape[-2:]), rng).to(w.device) if task.kind == "stochastic" else None
        after = nets.descend(w.detach(), g, lr, task.kind, mantissa, task.exponent, noise, task.p.infinity)
        same = same + ((after == w) & (g != 0)).sum((-1, -2))
        felt = felt + (g != 0).sum((-1, -2))
    return same / felt.clamp_min(1)


def magnitude(net: Copies) -> Tensor:
    """Mean |w| over all weights of each copy; [K]."""
    total = sum(w.abs().sum((-1, -2)) for w in net.weights)
    return total / sum(w.shape[-1] * w.shape[-2] for w in net.weights)


class Truncate(Float32):
    kind, widths = "truncate", GRID


class Nearest(Truncate):
    kind = "nearest"


class Stochastic(Truncate):
    kind = "stochastic"


class UpdateOnly(Truncate):
    """The step is truncated, the weights stay float32."""

    kind = "update_only"


class Chosen(Float32):
    """One format, the one of the knobs mantissa and rounding."""

    kind = property(lambda self: self.p.rounding)
    widths = property(lambda self: (self.p.mantissa, STORED))

    def labels(self):
        return ["chosen"]


def varied(*, when=None, **fixed) -> type[Truncate]:
    """An arm with one factor changed and few mantissa widths; `when` says at which parameters it runs."""
    limit = {} if when is None else {"when": staticmethod(when)}
    return type("Varied", (Truncate,), {"widths": FEW, **fixed, **limit})


def _all(params) -> bool:
    return params.factors == "all"


class Probe:
    """No training: the float32 networks that an arm left, cut once to m = 2 ... 16 bits; errors on 256 training images.

    In double precision, so that float32's own rounding does not blur small errors.
    """

    after = "float32"

    def __init__(self, params, seeds, before):
        self.p, self.members, self.tasks = params, before.members, before.tasks

    def ticks(self):
        with torch.no_grad():
            found = [errors(net, task, self.p) for net, task in zip(self.members, self.tasks, strict=True)]
        yield Tick(1, found)


class ProbeDeep(Probe):
    after = "truncate_deep"


def errors(net: Copies, task: Float32, p: Params) -> dict[str, float]:
    """Relative errors of the logits and of the gradient at each m, their slopes, the bound, and errors by layer at m = 6.

    `stored`: only the forward pass uses cut weights; `transposed`: only the way back does.
    """
    exact = net.one(-1)
    x, y, name = task.x[:256].double(), task.y[:256], task.activation
    m = torch.tensor(PROBED, dtype=torch.int32, device=x.device)[:, None, None]
    cut = [[formats.to_format(w, m, p.exponent, infinity=p.infinity).double() for w in part] for part in exact]
    exact = [[w.double() for w in part] for part in exact]
    inner, inner_cut = nets.states(*exact, x, name), nets.states(*cut, x, name)
    slope = nets.backward(inner, exact[0], x, y, name)
    both, stored = (nets.backward(inner_cut, w, x, y, name) for w in (cut[0], exact[0]))
    transposed = nets.backward([a.expand(len(m), -1, -1) for a in inner], cut[0], x, y, name)
    u = 2.0 ** -m.flatten().double()
    bound = nets.forward_bound(*exact, inner, x, u) / inner[-1].norm()
    series = {"forward": relative(inner_cut[-1:], inner[-1:]), "backward": relative(both, slope), "bound": bound,
              "stored": relative(stored, slope), "transposed": relative(transposed, slope)}  # fmt: skip
    found = {f"{kind}_{n}bit": value for kind, values in series.items() for n, value in zip(PROBED, values, strict=True)}
    found |= {f"{kind}_slope": rate(values) for kind, values in series.items()}
    six = PROBED.index(6)
    for layer in range(len(inner)):
        found[f"forward_layer_{layer + 1}"] = relative(inner_cut[layer : layer + 1], inner[layer : layer + 1])[six]
        found[f"backward_layer_{layer + 1}"] = relative(both[layer : layer + 1], slope[layer : layer + 1])[six]
    return {key: float(value) for key, value in found.items()}


def rate(values: Tensor, low: int = 4, high: int = 14) -> float:
    """Least-squares slope of log2(values) against m, for `low` <= m <= `high`; values [15] at m = 2 ... 16."""
    kept = [i for i, m in enumerate(PROBED) if low <= m <= high]
    return float(np.polyfit([PROBED[i] for i in kept], values[kept].log2().cpu().numpy(), 1)[0])


ARMS = {
    "float32": Float32, "truncate": Truncate, "nearest": Nearest, "stochastic": Stochastic, "update_only": UpdateOnly,
    "chosen": Chosen, "truncate_1": varied(layers=1), "truncate_4": varied(layers=4), "truncate_deep": varied(layers=8),
    "narrow": varied(width=32, when=_all), "wide": varied(width=256, when=_all), "batch_8": varied(batch_size=8, when=_all),
    "batch_128": varied(batch_size=128, when=_all), "tanh": varied(activation="tanh", when=_all),
    "sigmoid": varied(activation="sigmoid", when=_all), "exponent_5": varied(exponent=5, when=_all),
    "exponent_4": varied(exponent=4, when=_all), "exponent_3": varied(exponent=3, when=_all),
    "probe": Probe, "probe_deep": ProbeDeep,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "weights on the grid": beside(__name__, "weights_on_grid"),
    "training loss by width": beside(__name__, "loss_by_width"),
}
