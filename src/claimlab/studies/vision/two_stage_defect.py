"""Two-stage defect detection, trained end to end: a segmenter of defects and the classifier that reads it learn together.

Does it work when only a few dozen defects and only coarse masks of them exist?
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.vision import _two_stage_defect_data as data
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="End-to-end training of a two-stage neural network for defect detection", authors="Božič, Tabernik, Skočaj", year=2020,
    url="https://arxiv.org/abs/2007.07676", theme="stages", system="SegDec-Net (end-to-end)",
    question="Can a defect segmenter and the classifier that reads it be trained together, instead of one after the other, when only "
    "a few dozen defects and only coarse masks exist?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    gradient_multiplier: float = knob(
        0.0, "share of the classifier's gradient that reaches the segmenter; 1 lets a raw classifier disturb its features",
        low=0.0, high=1.0, live=True)  # fmt: skip
    delta: float = knob(1.0, "weight of the classification loss", low=0.01, high=3.0, live=True)
    p: float = knob(2.0, "how sharply pixel weights fall towards the mask border; 0 is flat", low=0.0, high=4.0, live=True)
    w_pos: float = knob(3.0, "extra weight of positive pixels", low=1.0, high=10.0, live=True)
    coarse: int = knob(4, "how much the annotator's mask exceeds the defect", low=0, high=8, unit="px")
    positives: int = knob(24, "defective training images", low=6, high=96)
    contrast: float = knob(1.2, "visibility of the defects", low=0.5, high=2.5, unit="sigma")
    negatives: int = knob(300, "sound training images", low=8, high=2000)
    test: int = knob(400, "test images, a quarter of them defective", low=40, high=2000)
    size: int = knob(48, "side of an image", choices=(24, 48, 64), unit="px")
    steps: int = knob(200, "optimiser steps of each arm", low=10, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=20, positives=8, negatives=16, test=40, size=24, seeds=2)
    FULL = dict(steps=800, size=64, seeds=10)
    CONTROL = Control(set=dict(coarse=0), vanishes=("distance-weights",),
                      why="Exact masks have no uncertain border for the distance to weigh down.")  # fmt: skip


CLAIMS = (
    Claim("joint-beats-sequential", "With the same number of updates, joint training with a shifting loss balance ranks defective "
          "images better than training the segmenter first and the classifier after it.", kind="paired", metric="test_ap",
          arm="e2e", baseline="sequential", better="higher", margin=0.01,
          source="abstract; ablation table (dynamically balanced loss)"),
    Claim("gradient-stop", "Blocking the classifier's gradient at the entry of the segmenter beats letting it through.",
          kind="paired", metric="test_ap", arm="e2e", baseline="e2e_open_gradient", better="higher", margin=0.01,
          source="ablation table (gradient-flow adjustment)"),
    Claim("distance-weights", "With coarse masks, distance-transform weights on the positive pixels beat equal weights.",
          kind="paired", metric="test_ap", arm="e2e", baseline="e2e_flat_weights", better="higher", margin=0.01,
          source="ablation table (distance transform)"),
    Claim("even-use", "Frequency-of-use sampling of the negatives ranks defective images better than uniform draws.",
          kind="paired", metric="test_ap", arm="e2e", baseline="e2e_uniform_negatives", better="higher", margin=0.005,
          source="abstract; ablation table (frequency-of-use sampling)"),
)  # fmt: skip
HONESTY = (
    "The real textures, 100 % detection on DAGM and KolektorSDD and the saved training time on large images cannot be judged here. "
    "The trunk is 300 times smaller and images are 48 px; what is tested is the direction of each of the four ingredients under few "
    "positives and coarse masks."
)


# ---- the method


def share_gradient(x: Tensor, multiplier: float) -> Tensor:
    """x itself forward; backward `multiplier` times its gradient, 0 a stop (the paper's choice) and 1 none."""
    return x.detach() if multiplier == 0 else x.detach() + multiplier * (x - x.detach())


def pixel_weights(depth: Tensor, p: float, w_pos: float) -> Tensor:
    """w_i = w_pos (D_i / max D)^p where a pixel lies in a mask (depth = D / max D > 0), 1 where it does not. Any shape."""
    return torch.where(depth > 0, w_pos * depth**p, torch.ones_like(depth))


def segmentation_loss(logits: Tensor, depth: Tensor, weights: Tensor) -> Tensor:
    """L_seg = mean_i w_i BCE(S_i, mask_i); the mask is where depth > 0. logits, depth, weights of one shape."""
    return F.binary_cross_entropy_with_logits(logits, (depth > 0).float(), weight=weights)


def by_use(rng: np.random.Generator, used: np.ndarray, n: int) -> np.ndarray:
    """`n` different negatives, j with probability proportional to 1 / (1 + u_j); `used` [N] counts them on, in place."""
    chance = 1 / (1 + used)
    drawn = rng.choice(len(used), n, replace=False, p=chance / chance.sum())
    used[drawn] += 1
    return drawn


def plan(rng: np.random.Generator, positives: int, negatives: int, draws: int, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which positives and which negatives [draws] come one after the other, epoch by epoch.

    An epoch holds every positive once and as many negatives: by their use, or uniformly with replacement.
    """
    order, other = rng.spawn(2)  # so that both ways of sampling see the positives in the same order
    used, epochs = np.zeros(negatives), -(-draws // positives)
    bad = [order.permutation(positives) for _ in range(epochs)]
    most = min(positives, negatives)
    drawn = -(-draws // most)
    good = [by_use(other, used, most) for _ in range(drawn)] if even else [other.integers(negatives, size=most) for _ in range(drawn)]
    return np.concatenate(bad)[:draws], np.concatenate(good)[:draws]


def average_precision(y: np.ndarray, score: np.ndarray) -> float:
    """AP = sum_k (R_k - R_{k-1}) P_k over falling thresholds; equal scores enter together. y [N] in {0, 1}, score [N]."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    hits = np.cumsum(y[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / max(hits[-1], 1))


def block(inside: int, outside: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution, normalisation over groups of channels (batches are small), ReLU; the image keeps its size."""
    room = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, outside, kernel, padding=room, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(4, outside), nn.ReLU())


class SegDec(nn.Module):
    """Segmenter and classifier: images [B, 1, H, W] -> map of logits S [B, 1, H/4, W/4] and one logit an image [B]."""

    def __init__(self, c: int = 8):
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.trunk = nn.Sequential(block(1, c), block(c, c), pool, block(c, 2 * c), block(2 * c, 2 * c), pool,
                                   block(2 * c, 4 * c, 5), block(4 * c, 4 * c, 5, dilation=2))  # fmt: skip
        self.head = nn.Conv2d(4 * c, 1, 1)
        self.decision = nn.Sequential(pool, block(4 * c + 1, 8), pool, block(8, 16))
        self.linear = nn.Linear(2 * 16 + 2, 1)

    def segment(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Feature volume F [B, 4c, H/4, W/4] and map S."""
        volume = self.trunk(x)
        return volume, self.head(volume)

    def decide(self, volume: Tensor, s: Tensor) -> Tensor:
        """The logit [B] from F and S; the largest and the mean value of S go straight to the last layer."""
        found = self.decision(torch.cat([volume, s], 1))
        return self.linear(torch.cat([g for z in (found, s) for g in (z.amax((2, 3)), z.mean((2, 3)))], 1))[:, 0]

    def forward(self, x: Tensor, multiplier: float = 1.0) -> tuple[Tensor, Tensor]:
        volume, s = self.segment(x)
        return s, self.decide(share_gradient(volume, multiplier), share_gradient(s, multiplier))


# ---- the experiment: all arms of a seed see the same images, start with the same weights and take the positives in the same order


def load(p: Params, seed: int) -> tuple[data.Parts, data.Parts]:
    """Training and test parts of `seed`; CLAIMLAB_DATA names a folder of your own."""
    return data.parts(seed, p.size, p.positives, p.negatives, p.test, p.contrast, os.environ.get("CLAIMLAB_DATA", ""))


def drawn_depth(parts: data.Parts, coarse: int) -> Tensor:
    """depth [N, 1, H/4, W/4] of the masks as the annotator drew them; a cell takes its deepest pixel, so that a thin defect stays."""
    given = 0 if os.environ.get("CLAIMLAB_DATA") else coarse  # masks of your own are taken as they are
    deep = np.stack([data.depth(data.coarsen(mask, given)) if mask.any() else np.zeros(mask.shape) for mask in parts.masks])
    return F.max_pool2d(torch.from_numpy(deep).float()[:, None], 4)


class EndToEnd(Task):
    """Both losses from the first step on; lambda, the share of the segmentation loss, falls from 1 to 0.

    Every arm's learning rate is its best of 0.03, 0.1 and 0.3 on the development seeds 1000 to 1002, by test_ap.
    """

    vectorize = False  # convolutions gain nothing from stacking on a processor
    lr, half, quick = 0.3, 4, 80
    even, weighted = True, True

    every = property(lambda self: max(5, self.steps // 8))

    @property
    def multiplier(self) -> float:
        return self.p.gradient_multiplier

    def balance(self, step: int) -> float:
        """lambda = 1 - n / n_total."""
        return 1 - step / self.steps

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.train, bound.held = load(self.p, seed)
        bound.depth = drawn_depth(bound.train, self.p.coarse)
        count, total = int(bound.train.y.sum()), len(bound.train.y)
        bad, good = plan(np.random.default_rng([seed, 7]), count, total - count, self.half * self.steps, self.even)
        bound.negative_use = np.bincount(good, minlength=total - count)
        rows = torch.from_numpy(np.stack([bad, good + count], 1))  # one of each in turn
        bound.rows = rows.reshape(self.steps, 2 * self.half)
        return bound

    def init(self):
        return SegDec().to(memory_format=torch.channels_last)  # a third faster on a processor

    def optimizer(self, groups):
        return torch.optim.SGD(groups)

    def batch(self, net, rng, step):
        rows = self.rows[step % len(self.rows)]
        return self.train.x[rows], self.depth[rows], self.train.y[rows], torch.tensor(self.balance(step))

    def weights(self, depth: Tensor) -> Tensor:
        return pixel_weights(depth, self.p.p, self.p.w_pos) if self.weighted else torch.ones_like(depth)

    def loss(self, net, x, depth, y, balance):
        """L = lambda L_seg + delta (1 - lambda) L_cls."""
        s, logit = net(x, self.multiplier)
        told = F.binary_cross_entropy_with_logits(logit, y)
        return balance * segmentation_loss(s, depth, self.weights(depth)) + self.p.delta * (1 - balance) * told

    def metrics(self, net):
        parts, count = self.held, int(self.held.y.sum())
        few = torch.cat([torch.arange(self.quick // 4), count + torch.arange(3 * self.quick // 4)])
        few = few[few < len(parts.y)]
        volume, s = net.segment(parts.x[few])
        ap = average_precision(parts.y[few].numpy(), net.decide(volume, s).numpy())
        return {"quick_ap": ap, **self.entry(net)}

    def entry(self, net: SegDec) -> dict[str, float]:
        """Length of each loss's gradient at the border of the two stages (F and S), on the batch of step 0; raw, before lambda."""
        rows = self.rows[0]
        volume, s = (z.detach().requires_grad_() for z in net.segment(self.train.x[rows]))
        with torch.enable_grad():
            told = F.binary_cross_entropy_with_logits(net.decide(volume, s), self.train.y[rows])
            drawn = segmentation_loss(net.head(volume), self.depth[rows], self.weights(self.depth[rows]))
            slopes = torch.autograd.grad(told, (volume, s)), torch.autograd.grad(drawn, volume)
        length = [float(sum(g.square().sum() for g in slope).sqrt()) for slope in slopes]
        return {"entry_gradient_cls": length[0], "entry_gradient_seg": length[1]}

    def final(self, net):
        use = self.negative_use
        ap = average_precision(self.held.y.numpy(), scored(net, self.held.x))
        return {"test_ap": ap, "negative_use_cv": float(use.std() / max(use.mean(), 1e-9))}


@torch.no_grad()
def scored(net: SegDec, x: Tensor) -> np.ndarray:
    """Image scores [N], a few images at a time."""
    return torch.cat([net(part)[1] for part in x.split(50)]).numpy()


class Sequential(EndToEnd):
    """First half of the steps the segmenter alone, second half the classifier alone: its loss moves nothing else."""

    lr, multiplier = 0.03, 0.0

    def balance(self, step):
        return 1.0 if step < self.steps / 2 else 0.0


class OpenGradient(EndToEnd):
    lr, multiplier = 0.03, 1.0


class FlatWeights(EndToEnd):
    weighted = False


class UniformNegatives(EndToEnd):
    lr, even = 0.1, False


class ClassifierOnly(EndToEnd):
    """The same network from image labels alone, all of it moved by the classification loss."""

    lr, multiplier = 0.1, 1.0

    def balance(self, step):
        return 0.0


ARMS = {
    "classifier_only": ClassifierOnly, "sequential": Sequential, "e2e_open_gradient": OpenGradient, "e2e_flat_weights": FlatWeights,
    "e2e_uniform_negatives": UniformNegatives, "e2e": EndToEnd,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"one part": beside(__name__, "part"), "scores": beside(__name__, "histogram")}
