"""Norm loss: pull the norm of every filter towards one. Is that a better and calmer regulariser than a pull towards zero?"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.threads import one_thread
from claimlab.studies.training import _norm_loss_data as data
from claimlab.studies.training._norm_loss_method import (
    cost_ratio,
    norm_loss,
    norm_loss_gradient,
    row_norms,
    soft_orthogonal,
    to_sphere,
    weight_decay,
)
from claimlab.studies.training._norm_loss_net import LAYERS, ResNet
from claimlab.study import Control, Paper, beside
from claimlab.training import Chain, Stages, Task

PAPER = Paper(
    title="Norm Loss: An efficient yet effective regularization method for deep neural networks",
    authors="Theodoros Georgiou, Sebastian Schmitt, Thomas Bäck, Wei Chen, Michael Lew", year=2021,
    url="https://arxiv.org/abs/2103.06583", theme="sensitivity", system="Norm Loss",
    question="Is pulling every filter's norm towards ONE a better and calmer regulariser than pulling it towards zero?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    strength: float = knob(0.01, "lambda of the regulariser, the middle of the coefficients that are compared; 0 is plain training",
                           low=0.0, high=1.0, live=True)  # fmt: skip
    target: float = knob(1.0, "norm that rows are pulled to; 0 turns norm loss into an L2 pull", low=0.0, high=4.0, live=True)
    batch: int = knob(64, "batch size at equal epochs", low=8, high=256, unit="images")
    lr: float = knob(0.1, "learning rate; too high shows who survives", low=0.003, high=1.0, live=True)
    noise: float = knob(0.3, "pixel noise: difficulty of the task", low=0.0, high=0.8, unit="share of the pixel range")
    width: int = knob(8, "channels of the first layer", low=4, high=64)
    steps: int = knob(150, "optimiser steps of 64 images; other batch sizes see as many images", low=15, high=5000)
    pictures: str = knob("digits", "what is classified", choices=("digits", "textures"))
    variants: bool = knob(False, "nine coefficients and five batch sizes, and the two methods on textures and in a wide network")
    seeds: int = knob(10, "independent repetitions, each with its own split, noise and initial weights", low=2, high=64)
    SMOKE = dict(steps=15, seeds=2, width=4, batch=256)
    FULL = dict(steps=450, seeds=10, variants=True)
    CONTROL = Control(
        set=dict(noise=0.0), vanishes=("beats-weight-decay",),
        why="Clean digits are easy: with nearly every test image right under either method there is little left to regularise, "
        "so the way in which weights are held should hardly matter.",
    )  # fmt: skip


CLAIMS = (
    Claim("beats-weight-decay", "At each method's best coefficient on a validation split, norm loss tests better than weight "
          "decay.", kind="paired", metric="test_accuracy", arm="norm_loss", baseline="weight_decay", better="higher",
          margin=0.005, source="abstract; CIFAR tables"),
    Claim("calm-in-lambda", "Over coefficients from 1e-4 to 0.1 the spread (max - min) of test accuracy is smaller.",
          kind="paired", metric="accuracy_range_lambda", arm="norm_loss", baseline="weight_decay", better="lower", margin=0.01,
          source="abstract (less sensitive to the regularization factor); sensitivity figure"),
    Claim("calm-in-batch", "Over batch sizes 32, 64, 256 at equal epochs the spread of test accuracy is smaller.",
          kind="paired", metric="accuracy_range_batch", arm="norm_loss", baseline="weight_decay", better="lower", margin=0.005,
          source="abstract (less sensitive to batch size)"),
    Claim("cheap", "A step costs at most 10 % more than with weight decay (median of 200 timed steps).", kind="bound",
          metric="step_time_ratio", arm="norm_loss", better="lower", margin=1.1, source="abstract (negligible overhead)"),
)  # fmt: skip
HONESTY = (
    "Noisy 8x8 digits and textures stand in for CIFAR and ImageNet, and networks are a thousand times smaller, so half-percent "
    "gains like the paper's may drown in seed noise; the sensitivity claims are what this scale can show. ImageNet results are "
    "not tested."
)

SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)  # coefficients in units of `strength`: 1e-4, 1e-3, 1e-2, 1e-1 and 1 by default
HALVES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
JUDGED = (0.01, 0.1, 1.0, 10.0)  # at 100 a step takes a fifth of every weight off: drawn, never judged
BATCH_SCALE = 0.1  # of the runs that compare batch sizes: 1e-3 by default
SIZES, MORE_SIZES = (32, 256), (16, 32, 128, 256)
IMAGES_A_STEP = 64  # of the knob `steps`
TIMED = 100  # steps of each method, in turn: 200 in all


class Residual(Task):
    """A small residual network with a penalty on its weight tensors, as many copies side by side as there are coefficients.

    Copies share initial weights and minibatches. `size` is the batch size of a run that is compared with others, None that
    of the knob. Biases, gains and shifts are never pulled.
    """

    ahead = 20
    penalty = staticmethod(weight_decay)
    scales: tuple[float, ...] = (1.0,)
    spheres, wider, shown = False, 1, ""

    def __init__(self, params, size: int | None = None):
        super().__init__(params)
        self.size = size

    lr = property(lambda self: self.p.lr)
    batch_size = property(lambda self: self.size or self.p.batch)
    steps = property(lambda self: max(2, round(self.p.steps * IMAGES_A_STEP / self.batch_size)))
    every = property(lambda self: self.steps if self.size else max(1, self.steps // 15))

    def bind(self, seed):
        bound = copy.copy(self)
        path = "" if self.shown else os.environ.get("CLAIMLAB_DATA", "")
        bound.seed = seed
        bound.train, bound.validation, bound.test = data.split(seed, self.shown or self.p.pictures, self.p.noise, path)
        return bound

    def coefficients(self) -> list[float]:
        """lambda of each copy; at most 1, where two steps of SGD could still meet."""
        return [min(1.0, self.p.strength * scale) for scale in self.of_copies()]

    def of_copies(self) -> tuple[float, ...]:
        if self.size:
            return (BATCH_SCALE,)
        return HALVES if self.p.variants and len(self.scales) > 1 and not self.shown else self.scales

    def init(self):
        x, y = self.train
        net = ResNet(x.shape[1], int(y.max()) + 1, self.p.width * self.wider, len(self.of_copies()), self.spheres)
        told = {"seed": self.seed, "done": 0, "scales": self.of_copies(), "textures": self.shown == "textures"}
        for name, value in told.items():  # what a live view needs to know of the member that it looks at
            net.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        net.register_buffer("accuracy", torch.full((net.copies,), torch.nan))  # on the test images, after the last step
        net.register_buffer("by_batch", torch.full((256 + 1,), torch.nan))  # the same by batch size, at one coefficient
        return net

    def begin(self, start):
        """A stage begins afresh and only keeps what the stages before have found."""
        net = self.init()
        net.by_batch.copy_(start.by_batch)
        return net

    def optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)

    def schedule(self, step, steps):
        return 0.01 if step >= 0.75 * steps else 0.1 if step >= 0.5 * steps else 1.0

    def block(self, net, rng, step, n):
        x, y = self.train
        rows = torch.randint(len(x), (n, self.batch_size), generator=rng).to(x.device)
        return x[rows], y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        """Cross-entropy + lambda * penalty, summed over copies, so that none feels another."""
        logp = net(x).log_softmax(-1)
        entropy = -logp.gather(-1, y[:, None, None].expand(-1, net.copies, 1)).mean(0).sum()
        pulled = sum(self.penalty(w, w.dim() - 2, self.p.target) for w in net.weights)
        return entropy + (x.new_tensor(self.coefficients()) * pulled).sum()

    def project(self, net):
        return {"done": net.done + 1}

    def metrics(self, net):
        """Of the copy at `strength`: mean row norm of each layer and its effective step, rate * mean of 1 / ||w_c||^2."""
        if self.size:
            return {}
        rate = self.p.lr * self.schedule(min(int(net.done), self.steps - 1), self.steps)
        norms = [norms_of(net, i)[self.middle()] for i in range(len(LAYERS))]
        found = {f"row_norm: {name}": n.mean() for name, n in zip(LAYERS, norms, strict=True)}
        steps = {f"effective_rate: {name}": rate * (n.clamp_min(1e-8) ** -2).mean() for name, n in zip(LAYERS, norms, strict=True)}
        return found | steps

    def middle(self) -> int:
        return self.of_copies().index(BATCH_SCALE if self.size else 1.0)

    def final(self, net):
        valid, test = accuracies(net, self.train, self.validation, self.test)
        net.accuracy.copy_(test)
        if self.size:
            net.by_batch[self.size] = test[0]
            return {f"test_accuracy_batch_{self.size}": test[0]}
        scales = self.of_copies()
        judged = [k for k, scale in enumerate(scales) if scale in JUDGED]
        found = {"test_accuracy": test[judged[int(valid[judged].argmax())]]}  # the first best: the smaller coefficient
        if len(scales) > 1:
            found |= {f"test_accuracy_at_{scale:g}": test[k] for k, scale in enumerate(scales)}
            found["chosen_scale"] = scales[judged[int(valid[judged].argmax())]]
            found["accuracy_range_lambda"] = test[judged].max() - test[judged].min()
            found |= self.over_batches(net, test[scales.index(BATCH_SCALE)])
        return found

    def over_batches(self, net, own) -> dict[str, Tensor]:
        """The spread over batch sizes 32, 256 and the knob's; empty where the stages before did not run."""
        net.by_batch[self.p.batch] = own
        known = net.by_batch[[*SIZES, self.p.batch]]
        if known.isnan().any():
            return {}
        return {f"test_accuracy_batch_{self.p.batch}": own, "accuracy_range_batch": known.max() - known.min()}


def norms_of(net: ResNet, i: int) -> Tensor:
    """Row norms [K, out] of layer i as it acts."""
    w = net.weight(i)
    return row_norms(w, w.dim() - 2).flatten(1)


@torch.no_grad()
def accuracies(net: ResNet, train: tuple[Tensor, Tensor], *asked: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Share of right answers of each copy [K] on each (x, y); batch norm takes the statistics of all training images."""
    answer = net(torch.cat([train[0], *(x for x, _ in asked)]), seen=len(train[0])).argmax(-1)
    parts = answer[len(train[0]) :].split([len(x) for x, _ in asked])
    return [(part == y[:, None]).float().mean(0) for part, (_, y) in zip(parts, asked, strict=True)]


# ---- the arms


def nothing(w: Tensor, dims: int, target: float) -> Tensor:
    return w.new_zeros(len(w))


class Plain(Residual):
    penalty = staticmethod(nothing)


class WeightDecay(Residual):
    scales = SCALES


class NormLoss(Residual):
    scales = SCALES
    penalty = staticmethod(norm_loss)

    def final(self, net):
        found = super().final(net)
        if "accuracy_range_lambda" in found:
            found["step_time_ratio"] = self.cost()
        return found

    def cost(self) -> float:
        """step_time_ratio: one network alone on one thread, 64 images a step; fewer pairs where the run itself is short."""
        x, y = (part.cpu() for part in self.train)
        net = ResNet(x.shape[1], int(y.max()) + 1, self.p.width, 1)
        with one_thread():
            return cost_ratio(net, (x[:64], y[:64]), self.p.lr, self.p.strength, self.p.target, min(TIMED, self.p.steps))


class SoftOrthogonal(Residual):
    penalty = staticmethod(soft_orthogonal)


class WeightNorm(Plain):
    spheres = True


class HardProjection(Plain):
    """Rows set to unit norm after each step: the ablation of softness."""

    def project(self, net):
        rows = {f"weights.{i}": to_sphere(w, w.dim() - 2) for i, w in enumerate(net.weights)}
        return rows | super().project(net)


class BatchSizes(Stages):
    """Short stages at other batch sizes, then all coefficients: each stage begins afresh, from the same initial weights."""

    def __init__(self, arm: type[Residual]):
        super().__init__(**self.plan(arm, SIZES))
        self.arm = arm

    @staticmethod
    def plan(arm, sizes):
        return {f"batch of {n}": partial(arm, size=n) for n in sizes} | {"coefficients": arm}

    def __call__(self, params, seeds, **options):
        sizes = [n for n in (MORE_SIZES if params.variants else SIZES) if n != params.batch]
        return Chain(self.plan(self.arm, sizes), params, seeds, **options)


class Variant(Residual):
    when = staticmethod(lambda p: p.variants)


class DecayTextures(Variant, WeightDecay):
    shown = "textures"


class NormTextures(Variant, NormLoss):
    shown = "textures"


class DecayWide(Variant, WeightDecay):
    wider, scales = 4, (1.0,)


class NormWide(Variant, NormLoss):
    wider, scales = 4, (1.0,)


ARMS = {
    "none": Plain, "weight_decay": BatchSizes(WeightDecay), "norm_loss": BatchSizes(NormLoss), "soft_orthogonal": SoftOrthogonal,
    "weight_norm": WeightNorm, "hard_projection": HardProjection, "weight_decay_textures": DecayTextures,
    "norm_loss_textures": NormTextures, "weight_decay_wide": DecayWide, "norm_loss_wide": NormWide,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"row norms": beside(__name__, "norms_view"), "accuracy by coefficient": beside(__name__, "coefficient_view")}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "ResNet", "accuracies", "figures", "nn", "norm_loss", "norm_loss_gradient",
    "norms_of",
]  # fmt: skip
