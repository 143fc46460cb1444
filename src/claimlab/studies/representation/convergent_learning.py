"""Convergent learning: match the units of two networks that differ in their random start. Do they grow the same neurons?"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.schedules import cosine
from claimlab.studies.representation._convergent_learning_arms import COMPARISONS, glance
from claimlab.studies.representation._convergent_learning_arms import compare as compare
from claimlab.studies.representation._convergent_learning_data import Pair, load, source
from claimlab.studies.representation._convergent_learning_data import own_activations as own_activations
from claimlab.studies.representation._convergent_learning_data import save_activations as save_activations
from claimlab.studies.representation._convergent_learning_method import correlations as correlations  # shown in the notebook
from claimlab.studies.representation._convergent_learning_method import lasso as lasso
from claimlab.studies.representation._convergent_learning_method import matching as matching
from claimlab.studies.representation._convergent_learning_method import standardised as standardised
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="Convergent Learning: Do different neural networks learn the same representations?",
    authors="Li, Yosinski, Clune, Lipson, Hopcroft", year=2015, url="https://arxiv.org/abs/1511.07543", theme="representations",
    system="unit matching between networks",
    question="If two networks are trained from different random starts on the same pictures, do they grow the same neurons, the "
    "same subspaces, or neither?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    layer: str = knob("conv2", "which layer is compared", choices=("conv1", "conv2", "conv3", "dense"))
    similarity: str = knob("correlation", "how alike two units are", choices=("correlation", "mutual_information"))
    width: int = knob(48, "units of the middle layer; wide layers repeat features", low=8, high=256)
    lasso_lambda: float = knob(0.02, "price of each extra unit in the sparse mapping", low=0.0, high=0.2)
    clusters: int = knob(12, "groups in the joint spectral clustering", low=2, high=40)
    patches: int = knob(2000, "images on which units are compared; half of them choose partners", low=100, high=10000)
    shared_batches: bool = knob(False, "both nets see the same batches; only the start differs")
    steps: int = knob(400, "training length; at 0 both nets are random", low=0, high=5000)
    seeds: int = knob(5, "independent pairs of nets", low=2, high=64)
    SMOKE = dict(patches=300, steps=12, seeds=2)
    FULL = dict(width=128, patches=6000, steps=4000, seeds=6)
    CONTROL = Control(
        set=dict(steps=0), vanishes=("better-than-chance",),
        why="Two untrained networks have learned nothing in common, so their units should match no better than chance.",
    )  # fmt: skip

    def __post_init__(self):
        if self.layer == "conv2" and self.clusters > 2 * self.width:
            raise ValueError(f"clusters = {self.clusters} is more than two nets of width = {self.width} have units in conv2")


CLAIMS = (
    Claim("better-than-chance", "Best one-to-one partners in another trained network correlate more than best partners in an "
          "untrained network of the same architecture.", kind="paired", metric="matched_correlation", arm="trained_pair",
          baseline="trained_vs_random", better="higher", margin=0.1, source="section on one-to-one alignment"),
    Claim("some-features-only", "Some units have no partner: in the middle layer the worst tenth of one-to-one matches stays "
          "below a correlation of 0.5.", kind="bound", metric="matched_correlation_p10", arm="trained_pair", better="lower",
          margin=0.5, source="abstract insight (1)"),
    Claim("first-layer-converges-more", "The first layer matches better one to one than the middle layer.", kind="paired",
          metric="matched_correlation", arm="first_layer", baseline="trained_pair", better="higher", margin=0.05,
          source="layer-wise matching figures"),
    Claim("partly-local-code", "Units match much better than the same subspaces after a random rotation: the basis is not "
          "arbitrary (a code that is partly local).", kind="paired", metric="matched_correlation", arm="trained_pair",
          baseline="rotated_pair", better="higher", margin=0.1, source="abstract insight (3)"),
    Claim("few-to-one", "Predicting a unit from a handful of units of the other network (sparse regression, about 3-6 active) "
          "leaves less error than from its single best partner.", kind="paired", metric="prediction_mse", arm="sparse_mapping",
          baseline="one_to_one_mapping", better="lower", margin=0.05,
          source="section on sparse prediction; abstract insight (2)"),
)  # fmt: skip
HONESTY = (
    "Nets with 24-64 units a layer trained on patches of ten pictures stand in for AlexNet on ImageNet, so which features "
    "converge, and how the trend over eight layers runs, cannot be compared with the paper's numbers. Thresholds (0.5, 0.1) are "
    "the lab's. Correlation ignores non-linear one-to-one relations; mutual information is shown beside it."
)
GLIMPSE = 500  # images on which a pair is looked at while it trains


class Networks(Task):
    """A seed's pair: two networks side by side, each with its own start and, unless batches are shared, its own batches.

    One loss, the sum of both; Adam moves every weight by its own gradient alone, so that neither notices the other.
    """

    lr, ahead, batch_size = 3e-3, 10, 64
    vectorize = False  # convolutions of this size are no faster stacked

    @property
    def every(self) -> int:
        return max(1, -(-self.steps // 8))

    def bind(self, seed):
        bound = copy.copy(self)
        d = load(seed, self.p.patches, source())
        bound.seed, bound.x, bound.y, bound.test, bound.classes = seed, d.x, d.y, (d.test_x, d.test_y), len(d.names)
        half, k = len(d.test_x) // 2, min(GLIMPSE, len(d.test_x)) // 2
        bound.glimpse = torch.cat([torch.arange(k), half + torch.arange(k)])
        return bound

    def init(self):
        return Pair(self.x.shape[1], self.x.shape[2], self.p.width, self.classes)

    def block(self, net, rng, step, n):
        """Images [n, 2, B, ...] and labels [n, 2, B] for both networks: mirrored at random, brightness changed by up to a fifth."""
        size = (n, 1 if self.p.shared_batches else 2, self.batch_size)
        rows = torch.randint(len(self.x), size, generator=rng).to(self.x.device)
        mirrored = torch.rand(size, generator=rng).to(self.x.device) < 0.5
        light = (0.8 + 0.4 * torch.rand(size, generator=rng)).to(self.x.device)
        x, y = self.x[rows.flatten()], self.y[rows]
        x = torch.where(mirrored.flatten()[:, None, None, None], x.flip(3), x) * light.flatten()[:, None, None, None]
        return x.view(*size, *x.shape[1:]).expand(n, 2, *(-1,) * 4), y.expand(n, 2, -1)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return sum(nn.functional.cross_entropy(one(x[k]), y[k]) for k, one in enumerate((net.first, net.second)))

    schedule = staticmethod(cosine)

    def metrics(self, net):
        x, y = (part[self.glimpse.to(part.device)] for part in self.test)
        return glance(net, x, y, self.seed)


ARMS = {"networks": Networks, **COMPARISONS}
figures = beside(__name__, "figures")
VIEWS = {
    "matrix of correlations between the units of two networks, sorted by the matching": beside(__name__, "matrix_view"),
    "filters of matched pairs side by side": beside(__name__, "filters_view"),
}
