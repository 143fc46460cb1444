"""Over-squashing in causal transformers: why do long rows of ones look all alike to the last token, and does a comma help?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _transformers_need_glasses_net as nets
from claimlab.studies.representation import _transformers_need_glasses_rows as rows
from claimlab.studies.representation import _transformers_need_glasses_text as text
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Stepwise, Task, Tick

PAPER = Paper(
    title="Transformers need glasses! Information over-squashing in language tasks",
    authors="Barbero, Banino, Kapturowski, Kumaran, Araújo, Vitvitskyi, Pascanu, Veličković", year=2024,
    url="https://arxiv.org/abs/2406.04267", theme="sensitivity", system="representational collapse",
    question="Why does a language model that reads everything at once stumble over counting long rows of ones or repeating the last "
    "sign, and does a comma help?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    position: str = knob("rotary", "how position enters; linear bias (alibi) favours recent signs",
                         choices=("none", "sinusoidal", "rotary", "alibi"))  # fmt: skip
    comma_every: int = knob(3, "separator spacing; 0 is off", low=0, high=16, unit="signs")
    layers: int = knob(2, "depth of the trained model; more layers mean more paths", low=1, high=6)
    logit_gain: float = knob(1.0, "sharpness of attention; large values delay collapse", low=0.1, high=10.0, live=True)
    max_train: int = knob(48, "longest row in training", low=16, high=256, unit="signs")
    precision: str = knob("float32", "number format of the forward pass after training", choices=("float64", "float32", "bfloat16"))
    width: int = knob(64, "numbers in a state, trained or not", low=16, high=256)
    draw_layers: int = knob(4, "depth of the untrained draws", low=1, high=8)
    draws: int = knob(4, "untrained networks a seed", low=1, high=16)
    longest: int = knob(2048, "longest row of the untrained study", low=32, high=8192, unit="signs")
    text: bool = knob(False, "also train a small model on the letters of Python's help topics and feed it the rows")
    steps: int = knob(300, "optimiser steps", low=10, high=20000)
    seeds: int = knob(10, "independent repetitions", low=2, high=64)
    SMOKE = dict(layers=1, draw_layers=1, width=16, draws=2, longest=32, max_train=16, steps=15, seeds=2)
    FULL = dict(layers=4, steps=1500, longest=4096, text=True)
    CONTROL = Control(
        set=dict(comma_every=0), vanishes=("commas-help",),
        why="Trivial control: without separators both inputs are the same row.",
    )  # fmt: skip


CLAIMS = (
    Claim("collapse-rate", "The distance between the last-token states of a row 1...1 0 of length n and the same row with its last "
          "sign repeated shrinks at least like n to the power -0.8.", kind="rate", metric="log_log_slope", arm="plain",
          better="lower", margin=-0.8, source="collapse theorem and its figure"),
    Claim("half-precision-blind-sooner", "In bfloat16 the two states can no longer be told apart, their distance being within "
          "rounding noise, at a shorter length than in float32 (log2 of the length).", kind="paired",
          metric="log2_collapse_length", arm="bf16", baseline="plain", better="lower", margin=1.0,
          source="abstract: low precision makes it worse"),
    Claim("commas-help", "A separator after every third sign keeps the states farther apart at length 256 (log10 distance).",
          kind="paired", metric="log10_distance_256", arm="commas", baseline="plain", better="higher", margin=0.15,
          source="proposed remedy"),
    Claim("first-easier-than-last", "A trained model repeats a lone zero at the start of a long row of ones more reliably than one "
          "at the end.", kind="paired", metric="copy_accuracy_long", arm="copy_first", baseline="copy_last", better="higher",
          margin=0.05, source="copying experiments"),
    Claim("path-bound-holds", "The sensitivity of the last state to token i never exceeds the bound from the sum over attention "
          "paths.", kind="bound", metric="bound_violation", arm="frozen_attention", better="lower", margin=0.000001,
          source="over-squashing theorem"),
)  # fmt: skip
HONESTY = (
    "Two-layer models trained on rows of bits stand in for frontier language models, and rotary length extrapolation fails by itself "
    "beyond the trained range; therefore in-range and long results are shown apart. The theorems are checked directly, the behaviour "
    "of large chat models is not."
)
FEW = 4  # seeds of the arms that are only drawn
AT = 256  # signs at which formats are compared


# ---- untrained networks


def lengths(p: Params) -> Tensor:
    """4, 8, 16, ... up to p.longest."""
    return 2 ** torch.arange(2, int(math.log2(p.longest)) + 1)


@lru_cache(maxsize=64)
def untrained(seed: int, p: Params):
    """The draws of one seed."""
    return nets.draw(p.draws, rows.WORDS, p.width, p.draw_layers, torch.Generator().manual_seed(2**32 + seed))


@lru_cache(maxsize=24)
@torch.no_grad()
def endings(p: Params, seeds: tuple[int, ...], precision: str, code: str, sharp: bool = False, draws: int = 0) -> Tensor:
    """States before the final norm of the rows 1^(n-1) 0 and 1^(n-1) 0 0: [seeds, draws, lengths, 2, d].

    `draws` (default p.draws) a seed; the draws of all seeds go through the network side by side, eight at a time.
    """
    count, dtype = draws or p.draws, nets.PRECISIONS[precision]
    every = nets.joined([untrained(seed, p) for seed in seeds])
    wanted = (torch.arange(len(seeds))[:, None] * p.draws + torch.arange(count)).view(-1)
    found = [nets.endings(nets.cast(nets.chosen(every, part), dtype), lengths(p), rows.ONE, rows.ZERO, code=code, gain=p.logit_gain,
                          sharp=sharp) for part in wanted.split(8)]  # fmt: skip
    return torch.cat(found).unflatten(0, (len(seeds), count))


def distances(p: Params, seeds: tuple[int, ...], precision: str, code: str, sharp: bool = False, draws: int = 0) -> Tensor:
    """L1 distance of the two normed last states: [seeds, draws, lengths]."""
    return nets.apart(nets.norm(endings(p, seeds, precision, code, sharp, draws)))


def noise(p: Params, seeds: tuple[int, ...], precision: str, code: str) -> Tensor:
    """Rounding noise: how far the state of (s, a) lies from that in the next higher precision; 0 in the highest. As above."""
    if precision not in nets.HIGHER:
        return torch.zeros(len(seeds), p.draws, len(lengths(p)), dtype=torch.float64)
    here, above = (nets.norm(endings(p, seeds, one, code)[..., 0, :]).double() for one in (precision, nets.HIGHER[precision]))
    return (here - above).abs().sum(-1)


def slope(distance: Tensor, at: Tensor) -> Tensor:
    """Least-squares slope of log10 distance [..., N] on log10 n, n = 32 ... 1024 (the last two lengths where those are absent)."""
    inside = (at >= 32) & (at <= 1024)
    inside = inside if inside.sum() > 1 else at >= at[-2]
    x = at[inside].double().log10()
    x = x - x.mean()
    return (distance[..., inside].clamp_min(1e-300).log10() * x).sum(-1) / x.square().sum()


def collapse(distance: Tensor, floor: Tensor, at: Tensor) -> Tensor:
    """log2 of the smallest n at which the distance [..., N] is at most the noise; that of the longest row where it never is."""
    within = distance <= floor
    first = torch.where(within.any(-1), within.double().argmax(-1), len(at) - 1)
    return at[first].double().log2()


def told(p: Params, seeds: tuple[int, ...], precision: str, code: str) -> list[dict[str, float]]:
    """The metrics of the untrained study, one dict a seed."""
    at, gap, floor = lengths(p), distances(p, seeds, precision, code), noise(p, seeds, precision, code)
    found = {
        "log_log_slope": slope(gap, at), "log2_collapse_length": collapse(gap, floor, at),
        "never_collapsed": (~(gap <= floor).any(-1)).double(),
        "log_log_slope_before_norm": slope(nets.apart(endings(p, seeds, precision, code)), at),
    }  # fmt: skip
    return [{name: float(value[i].mean()) for name, value in found.items()} for i in range(len(seeds))]


# ---- the trained model


class Network(Task):
    """One model for both formats and all three questions; every member gets rows of the same length at a step.

    Each model's learning rate is its best of 1e-3, 3e-3, 1e-2 on development seeds, by what it does within the trained lengths.
    """

    lr, batch_size = 3e-3, 32
    every = property(lambda self: max(1, self.steps // 12))
    sharp = False

    def init(self):
        return nets.Transformer(rows.WORDS, self.p.width, self.p.layers, code=self.p.position, sharp=self.sharp, outputs=3)

    def batch(self, net, rng, step):
        return rows.practice(step, self.p.max_train, self.p.comma_every, self.batch_size, rng)

    def schedule(self, step, steps):
        return min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))

    def loss(self, net, tokens, answer, ones):
        """Cross-entropy where a sign is asked for, squared error (in units of 8 ones) where the number of ones is."""
        told = net.answer(tokens, self.p.logit_gain)
        copied = cross_entropy(told[:, :2], answer, reduction="none")
        counted = (told[:, 2] - ones / rows.UNIT).square()
        return torch.where(tokens[:, -1] == rows.COUNT, counted, copied).mean()

    def metrics(self, net):
        few = rows.in_range(self.p.max_train)[1::4]
        found = examine(net, self.p, 0, few)
        return {"copy_accuracy_in_range": found["copy"].mean(), "count_error_in_range": found["count"].mean()}


class Sharp(Network):
    """Logits times the logarithm of the number of tokens that a query sees."""

    sharp = True


class Recurrent(Network):
    lr = 1e-2

    def init(self):
        return nets.Recurrent(rows.WORDS, sum(w.numel() for w in super().init().blocks.parameters()), 3)


def rounded(net: nn.Module, p: Params, precision: str = "") -> nn.Module:
    """A copy in another number format, by default that of the knob."""
    return copy.deepcopy(net).eval().to(nets.PRECISIONS[precision or p.precision])


@torch.no_grad()
def examine(net: nn.Module, p: Params, every: int, at: list[int]) -> dict[str, np.ndarray]:
    """At each length of `at`, separators after `every` signs: balanced accuracy of repeating the first and the last sign on the
    lone-zero row and on 1^n, copy [2, N], and mean absolute error of the rounded count on the three rows, count [N]."""
    net, copied, counted = rounded(net, p), [], []
    for n in at:
        lone = rows.lone(n)
        tokens = torch.cat([rows.asked(lone[[0, 2]], rows.FIRST, every), rows.asked(lone[[1, 2]], rows.LAST, every),
                            rows.asked(lone, rows.COUNT, every)])  # fmt: skip
        told = net.answer(tokens, p.logit_gain).double()
        right = told[:4, :2].argmax(1) == torch.tensor([0, 1, 0, 1])
        copied.append(right.double().view(2, 2).mean(1))
        counted.append(((told[4:, 2] * rows.UNIT).round() - lone.sum(1)).abs().mean())
    return {"copy": torch.stack(copied, 1).numpy(), "count": torch.stack(counted).numpy()}


@torch.no_grad()
def separation(net: nn.Module, p: Params, every: int, at: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """L1 distance of the last states of 1^(n-1) 0 and 1^(n-1) 0 0 at each length of `at`: after the final norm, and before it."""
    net = rounded(net, p)
    pairs = [torch.stack([net(rows.punctuate(rows.ending(n, again), every), p.logit_gain)[0, -1] for again in (False, True)]) for n in at]
    return tuple(nets.apart(torch.stack([f(pair) for pair in pairs])).numpy() for f in (nets.norm, lambda x: x))


# ---- the arms that only read


@dataclass(frozen=True)
class Reading:
    """An arm of one tick that reads the members of a finished arm; `measure(p, seeds, source)` gives one dict a seed."""

    measure: Callable[[Params, list[int], Any], list[dict[str, float]]]
    after: str | None = None

    def __call__(self, p: Params, seeds: list[int], source: Any = None) -> Read:
        return Read(self.measure, p, seeds, source)


class Read:
    total, step = 1, 0

    def __init__(self, measure, p, seeds, source):
        self.measure, self.p, self.seeds, self.source = measure, p, seeds, source
        self.members = list(getattr(source, "members", []))

    def ticks(self):
        self.found = self.measure(self.p, self.seeds, self.source)
        self.step = 1
        yield Tick(1, self.found)


@dataclass(frozen=True)
class Few:
    """Makes the training of the first FEW seeds, an arm that is drawn and not judged."""

    task: type[Task]

    def __call__(self, p: Params, seeds: list[int]) -> Fewer:
        return Fewer(self.task(p), seeds)


class Fewer(Stepwise):
    def __init__(self, task: Task, seeds: list[int]):
        self.run, self.rest = Run(task, seeds[:FEW]), [{}] * len(seeds[FEW:])
        self.total, self.members = self.run.total, self.run.members

    step = property(lambda self: self.run.step)
    budget = property(lambda self: self.run.budget)

    def stepwise(self):
        for tick in self.run.stepwise():
            found = tick and [*tick.metrics, *self.rest]
            if tick and self.run.step == self.total:
                extra = [answers(net, self.run.task.p, 0) for net in self.members]
                found = [known | more for known, more in zip(found, [*extra, *self.rest], strict=True)]
            yield tick and Tick(tick.step, found)


def answers(net: nn.Module, p: Params, every: int) -> dict[str, float]:
    """What a trained model makes of one format, in range and beyond, and how far apart its states are at AT signs."""
    found = {}
    for name, at in (("in_range", rows.in_range(p.max_train)), ("long", rows.beyond(p.max_train))):
        seen = examine(net, p, every, at)
        first, last = seen["copy"].mean(1)
        found |= {f"first_{name}": first, f"last_{name}": last, f"count_error_{name}": seen["count"].mean()}
    after, before = separation(net, p, every, [AT])
    return found | {"log10_distance_256": math.log10(max(after[0], 1e-300)),
                    "log10_distance_256_before_norm": math.log10(max(before[0], 1e-300))}  # fmt: skip


def plain(p: Params, seeds: list[int], network: Run) -> list[dict[str, float]]:
    """The trained model on rows without separators, and the untrained draws."""
    trained = [answers(net, p, 0) for net in network.members]
    return [a | b for a, b in zip(trained, told(p, tuple(seeds), p.precision, p.position), strict=True)]


def commas(p: Params, seeds: list[int], network: Run) -> list[dict[str, float]]:
    return [answers(net, p, p.comma_every) for net in network.members]


def bf16(p: Params, seeds: list[int], _source) -> list[dict[str, float]]:
    return told(p, tuple(seeds), "bfloat16", p.position)


def copied(which: str) -> Callable:
    """Accuracy on one of the two test sets of the arm `plain`."""

    def measure(p: Params, seeds: list[int], source: Read) -> list[dict[str, float]]:
        return [{f"copy_accuracy_{name}": one[f"{which}_{name}"] for name in ("in_range", "long")} for one in source.found]

    return measure


@lru_cache(maxsize=16)
def path_profile(p: Params, seed: int, n: int = 32, draws: int = 3) -> tuple[Tensor, Tensor]:
    """Sensitivity of the last state to each token, measured and bound [draws, n], for a row of fair bits; float64."""
    row = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    few = nets.chosen(untrained(seed, p), torch.arange(min(draws, p.draws)))
    return nets.paths(nets.cast(few, torch.float64), row, code=p.position, gain=p.logit_gain)


def frozen_attention(p: Params, seeds: list[int], _source) -> list[dict[str, float]]:
    def judged(measured: Tensor, bound: Tensor) -> dict[str, float]:
        return {"bound_violation": float(((measured - bound) / bound).max()), "bound_over_measured": float((bound / measured).median())}

    return [judged(*path_profile(p, seed)) for seed in seeds]


ARMS = {
    "network": Network, "plain": Reading(plain, "network"), "bf16": Reading(bf16), "commas": Reading(commas, "network"),
    "copy_first": Reading(copied("first"), "plain"), "copy_last": Reading(copied("last"), "plain"),
    "sharp_attention": Few(Sharp), "frozen_attention": Reading(frozen_attention), "recurrent": Few(Recurrent),
    "text": text.Arm(),
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "distance of the last states": beside(__name__, "distance_view"),
    "attention over a long row": beside(__name__, "attention_view"),
}
