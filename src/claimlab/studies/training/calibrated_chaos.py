"""Calibrated Chaos: an ensemble of runs of one recipe on one split. Is the scatter of their accuracies quality, or luck with
this test set, and could it have been foretold from the error rate?"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.training._calibrated_chaos_data import Split, own_matrix, simulated, split, stream
from claimlab.studies.training._calibrated_chaos_runs import ConvRuns, Runs, distances
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="Calibrated Chaos: Variance Between Runs of Neural Network Training is Harmless and Inevitable", authors="Jordan",
    year=2023, url="https://arxiv.org/abs/2304.01910", theme="sensitivity", system="run-to-run variance decomposition",
    question="If the same training recipe scores 96.9 % today and 97.6 % tomorrow, is the second network really better, and "
    "could the scatter have been predicted from the error rate alone?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    runs: int = knob(96, "size of the ensemble; the relative error of a variance is sqrt(2/(runs-1))", low=16, high=1024)
    test_size: int = knob(1197, "the scatter falls as 1/sqrt(test size), true variance stays", low=100, high=1197)
    steps: int = knob(1500, "short training differs truly, long training only by luck", low=20, high=6000)
    lr: float = knob(0.1, "larger steps amplify tiny differences; very large ones differ truly", low=0.005, high=0.6, live=True)
    nudge: float = knob(1e-6, "size of the one-weight perturbation; 0 must give identical runs", low=0.0, high=0.1,
                        unit="relative")  # fmt: skip
    label_noise: float = knob(0.0, "share of wrong training labels", low=0.0, high=0.4)
    augment: bool = knob(False, "shift training images by up to one pixel, from a generator of its own")
    sweep: bool = knob(False, "further ensembles: widths, learning rates, a small convolutional net")
    seeds: int = knob(5, "train/test splits, each with an ensemble of its own", low=2, high=64)
    SMOKE = dict(runs=16, steps=20, seeds=2)
    FULL = dict(runs=160, seeds=10, augment=True, sweep=True)
    CONTROL = Control(
        set=dict(nudge=0.0, steps=150), vanishes=("harmless", "one-bit-suffices"),
        why="Without a nudge the runs are bit-identical and cannot scatter; runs stopped after a tenth of the steps have not "
        "settled and differ in true quality, so that their variance is not mere luck. The other claims compare sources at "
        "equal length or depend on calibration and need not vanish.",
    )  # fmt: skip


CLAIMS = (
    Claim("harmless", "Of the variance of test accuracy between runs, less than 35 % is variance of the true (distribution) "
          "accuracy; the rest is luck with this test set.", kind="bound", metric="true_variance_share", arm="all_sources",
          better="lower", margin=0.35, source="abstract (1); distribution-wise variance estimate"),
    Claim("inevitable-formula", "For two classes the standard deviation between runs equals sqrt(err / (2 n_test)) within a "
          "factor exp(0.2): |log(observed/predicted)| <= 0.2.", kind="equality", metric="abs_log_sd_ratio", arm="binary",
          better="lower", margin=0.2, source="abstract (3); class-calibration theorem, binary case"),
    Claim("any-source-suffices", "Changing only the data order scatters the runs about as much as changing everything (log "
          "standard deviation lower by no more than 0.25).", kind="paired", metric="log_sd", arm="order_only",
          baseline="all_sources", better="higher", margin=-0.25, source="abstract (3); single-source experiments"),
    Claim("one-bit-suffices", "So does nudging one weight of the initialisation by one part in a million (same order, same "
          "everything else).", kind="paired", metric="log_sd", arm="one_weight", baseline="all_sources", better="higher",
          margin=-0.25, source="abstract (3); sensitivity to initial conditions"),
    Claim("short-runs-differ-truly", "Runs stopped at a tenth of the steps do differ in true accuracy: their share of true "
          "variance is higher.", kind="paired", metric="true_variance_share", arm="short", baseline="all_sources",
          better="higher", margin=0.1, source="short- against long-training comparison"),
)  # fmt: skip
HONESTY = (
    "A 64-unit MLP on 8x8 digits is not ResNet on CIFAR or ImageNet, and 1500 steps leave less time for chaos to grow: the "
    "one-weight claim may fail here for that reason. A test set of 1,197 is also kinder to the first claim than the paper's "
    "10,000: the luck part of the variance falls as 1/n, the true part does not. Distribution shift, fine-tuning of language "
    "models and the ImageNet runs are not covered."
)


# ---- the method: c [R, n] is 1 where run r is right about test example i; A_r = mean_i c, p_i = mean_r c


@dataclass(frozen=True)
class Parts:
    """Variance of test accuracy between runs, `total`, and what of it is `luck` (P / n) and `true` (V_dist)."""

    total: float
    luck: float
    true: float

    @property
    def share(self) -> float:
        """V_dist / V_S with its sign, not clipped; NaN where the runs do not scatter at all."""
        return self.true / self.total if self.total > 0 else math.nan


def decompose(c: np.ndarray) -> Parts:
    """V_S = Var_r(A_r); P = mean_i p_i (1 - p_i) R / (R - 1); V_dist = (n V_S - P) / (n - 1). c [R, n].

    V_dist is the mean covariance of two different examples: examples that go right and wrong independently of each other
    have none, and a run that is truly better is right more often everywhere.
    """
    runs, n = c.shape
    p = c.mean(0)
    total = float(c.sum(1).var(ddof=1)) / n**2  # from whole counts, so that equal runs give 0 and no rounding
    diagonal = float((p * (1 - p)).mean()) * runs / (runs - 1)
    return Parts(total, diagonal / n, (n * total - diagonal) / (n - 1))


def half_covariance(c: np.ndarray, rng: np.random.Generator, splits: int = 50) -> float:
    """Cov_r of the accuracies on two random halves of the test set, averaged over `splits`; it estimates V_dist as well."""
    order = rng.random((splits, c.shape[1])).argsort(1)
    half = c.shape[1] // 2
    first, second = (c[:, part].mean(-1) for part in (order[:, :half], order[:, half : 2 * half]))  # [R, splits]
    return float(((first - first.mean(0)) * (second - second.mean(0))).sum(0).mean() / (len(c) - 1))


def independent_errors(c: np.ndarray, rng: np.random.Generator, draws: int = 2000) -> np.ndarray:
    """Accuracies [draws] as if each example were a coin of its own: sum_i Bernoulli(p_i) / n."""
    p = c.mean(0)
    unsure = p[(p > 0) & (p < 1)]  # the others are the same in every draw
    return ((rng.random((draws, len(unsure))) < unsure).sum(1) + (p == 1).sum()) / len(p)


def predicted_sd(error: float, n: int) -> float:
    """sqrt(err / (2 n)), two classes: with q_i the share of runs that vote for class 1, a calibrated ensemble has
    err = E[2 q (1 - q)], and each example adds a variance of q (1 - q), on average err / 2."""
    return math.sqrt(error / (2 * n))


def calibration(q: np.ndarray, y: np.ndarray, bins: int = 10) -> tuple[np.ndarray, float]:
    """Rows (mean share of votes, frequency of class 1, count) of the bins of q that are not empty, and the expected
    calibration error sum_b n_b / n |share - frequency|. q [n] in [0, 1], y [n] 0 or 1."""
    place = np.minimum((q * bins).astype(int), bins - 1)
    rows = np.array([(q[place == b].mean(), y[place == b].mean(), (place == b).sum()) for b in np.unique(place)])
    return rows, float((rows[:, 2] * np.abs(rows[:, 0] - rows[:, 1])).sum() / len(q))


def log_sd(c: np.ndarray) -> float:
    """ln of the standard deviation of accuracy between runs; the floor 1e-5 stands for runs that never part."""
    return math.log(max(c.mean(1).std(ddof=1), 1e-5))


def analyse(c: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Everything that the matrix c [runs, examples] alone can tell, of these ensembles or of your own trainings."""
    c = np.asarray(c, dtype=np.float64)
    parts, rng = decompose(c), np.random.default_rng((seed, 1))
    coins = independent_errors(c, rng)
    from scipy.stats import ks_2samp

    return {
        "mean_accuracy": c.mean(), "sd": math.sqrt(parts.total), "luck_sd": math.sqrt(parts.luck), "log_sd": log_sd(c),
        "true_variance": parts.true, "true_variance_share": parts.share, "half_covariance": half_covariance(c, rng),
        "coin_sd": coins.std(ddof=1), "ks_distance": ks_2samp(c.mean(1), coins).statistic,
    }  # fmt: skip


# ---- the arms; CLAIMLAB_DATA names your own .npz with X and y


class Recipe(Task):
    """One ensemble a seed. What is in `varies` differs from run to run; the rest is the same in all of its runs.

    Each use of chance has a stream for each (seed, use, run): initialisation, order of the data, shifts of the images. Run r
    starts and orders its data alike in every arm that lets it, and does not depend on how many runs there are.
    """

    varies = ("init", "order", "augment")
    sizes: tuple[int, ...] = (48, 48)
    net: type[Runs] = Runs
    binary = False
    ticks = 3
    limit = 1024
    rate = None
    batch_size, weight_decay, ahead = 32, 5e-4, 150
    vectorize = False  # the runs of a seed are one program already

    lr = property(lambda self: self.rate or self.p.lr)
    every = property(lambda self: max(1, self.steps // self.ticks))
    runs = property(lambda self: min(self.p.runs, self.limit))

    def data(self, seed: int) -> Split:
        path = os.environ.get("CLAIMLAB_DATA", "")
        return split(seed, self.p.test_size, self.p.label_noise, self.binary, self.p.augment, path)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, bound.split = seed, self.data(seed)
        bound.fresh = bound.split.fresh  # a tensor pair of the task's own moves to the device with it
        return bound

    def stream(self, use: str, run: int, *more: int) -> torch.Generator:
        return stream(self.seed, use, run if use in self.varies else 0, *more)

    def init(self):
        """He initialisation: weights N(0, 2 / in), biases 0."""
        drawn = []
        for run in range(self.runs):
            rng = self.stream("init", run)
            drawn.append([torch.randn(shape, generator=rng) * math.sqrt(2 / shape[1]) for shape in self.shapes()])
        return self.net([torch.stack(layer) for layer in zip(*drawn, strict=True)], self.split)

    def shapes(self) -> list[tuple[int, int]]:
        widths = (self.split.x.shape[1], *self.sizes, self.split.classes)
        return [(outside, inside) for inside, outside in zip(widths, widths[1:], strict=False)]

    def block(self, net, rng, step, n):
        """Rows [n, R * B] of the training set: every epoch is a new permutation, and a batch may reach across two epochs."""
        size = self.batch_size
        rows = len(self.split.x) // self.split.versions
        epochs = range(step * size // rows, ((step + n) * size - 1) // rows + 1)
        start = step * size - epochs[0] * rows
        chosen = []
        for run in range(self.runs if {"order", "augment"} & set(self.varies) else 1):
            order = torch.cat([torch.randperm(rows, generator=self.stream("order", run, e)) for e in epochs])
            if self.split.versions > 1:
                shifts = (torch.randint(self.split.versions, (rows,), generator=self.stream("augment", run, e)) for e in epochs)
                order = order + rows * torch.cat(list(shifts))
            chosen.append(order[start : start + n * size].view(n, size))
        return (torch.stack(chosen, 1).expand(-1, self.runs, -1).flatten(1),)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, rows):
        """Sum over runs of their mean cross-entropy: each run follows its own gradient."""
        shape = -1, self.batch_size
        logits = net(net.x.index_select(0, rows).unflatten(0, shape))
        return cross_entropy(logits, net.y.index_select(0, rows).unflatten(0, shape), reduction="sum") / self.batch_size

    def optimizer(self, groups):
        # the fused program rounds what is left after the last whole vector of 16 in another way: a run there would part by itself
        return torch.optim.SGD(groups, momentum=0.9, fused=self.runs % 16 == 0)

    def schedule(self, step, steps):
        return 1 - step / steps

    def metrics(self, net):
        c = net.right()
        parts = decompose(c)
        return {"mean_accuracy": c.mean(), "sd": math.sqrt(parts.total), "true_variance_share": parts.share, "log_sd": log_sd(c)}

    def final(self, net):
        return analyse(net.right(), self.seed)


class AllSources(Recipe):
    ticks = 15


class InitOnly(Recipe):
    varies = ("init",)


class OrderOnly(Recipe):
    varies = ("order",)


class AugmentOnly(Recipe):
    varies = ("augment",)
    when = staticmethod(lambda p: p.augment)


class OneWeight(Recipe):
    """Run 0 is the original. Every other run has one weight w of the first layer replaced by w (1 + nudge), each another one,
    among those of inputs that vary in the training set."""

    varies = ()
    ticks = 15

    def init(self):
        net = super().init()
        first = net.weights[0]
        alive = self.split.varying.nonzero().flatten()
        choice = torch.randperm(len(alive) * first.shape[1], generator=self.stream("nudge", 0))
        for run in range(1, len(first)):
            place, again = choice[(run - 1) % len(choice)], 1 + (run - 1) // len(choice)
            with torch.no_grad():
                first[run, place % first.shape[1], alive[place // first.shape[1]]] *= 1 + again * self.p.nudge
        return net

    def metrics(self, net):
        apart = dict(zip(("weight_distance", "prediction_distance"), distances(net), strict=True))
        row = int((~net.trace[:, 0].isnan()).sum())
        net.trace[min(row, len(net.trace) - 1)] = torch.tensor(list(apart.values()))
        return super().metrics(net) | apart


class Short(Recipe):
    """All sources, a tenth of the steps; the learning rate reaches 0 within them."""

    ticks = 10
    steps = property(lambda self: max(2, self.p.steps // 10))


class Binary(Recipe):
    """Odd against even digits, on the split of the other arms."""

    binary = True

    def final(self, net):
        found, q = super().final(net), net.votes(net.test_x).double().mean(0).cpu().numpy()
        return found | against_formula(found, 1 - found["mean_accuracy"], q, net.test_y.cpu().numpy())


def against_formula(found: dict[str, float], error: float, q: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Observed standard deviation against sqrt(err / (2 n)), and against sqrt(P / n), which needs no calibration."""
    plain = predicted_sd(error, len(y))
    ratio, corrected = (math.log(max(found["sd"], 1e-5) / max(by, 1e-5)) for by in (plain, found["luck_sd"]))
    return {"abs_log_sd_ratio": abs(ratio), "log_sd_ratio": ratio, "corrected_log_sd_ratio": corrected, "formula_sd": plain,
            "calibration_error": calibration(q, y)[1]}  # fmt: skip


class Synthetic(Recipe):
    """Simulated points, with so many fresh ones that the variance of true accuracy is seen directly."""

    def data(self, seed):
        return simulated(seed, self.p.label_noise)

    def final(self, net):
        x, y = self.fresh
        far = decompose((net.votes(x) == y).double().cpu().numpy())
        return super().final(net) | {"direct_true_variance": far.total - far.luck}


class Extra(Recipe):
    """An ensemble of at most 64 runs that only the sweep trains."""

    limit = 64
    when = staticmethod(lambda p: p.sweep)


class Conv(Extra):
    net, limit = ConvRuns, 32

    def shapes(self):
        side = round(self.split.x.shape[1] ** 0.5)
        return [(12, 9), (self.split.classes, ((side - 2) // 2) ** 2 * 12)]


def _extra(name: str, **changes) -> type[Extra]:
    return type(name, (Extra,), changes)


ARMS = {
    "all_sources": AllSources, "init_only": InitOnly, "order_only": OrderOnly, "augment_only": AugmentOnly,
    "one_weight": OneWeight, "short": Short, "binary": Binary, "synthetic": Synthetic,
    "width_16": _extra("Width16", sizes=(16, 16)), "width_256": _extra("Width256", sizes=(256, 256), limit=32),
    "lr_0.02": _extra("Slow", rate=0.02), "lr_0.5": _extra("Fast", rate=0.5), "conv": Conv,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "one half against the other": beside(__name__, "halves_now"),
    "right and wrong": beside(__name__, "flicker"),
    "distance of nudged twins": beside(__name__, "twins_now"),
}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "figures", "own_matrix"]
