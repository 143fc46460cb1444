"""tRSA: describe a representation by who is near whom, and level the largest and smallest distances. Is the layer still named?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _trsa_figures as drawn
from claimlab.studies.representation import _trsa_method as method
from claimlab.studies.representation._trsa_arms import STATISTICS
from claimlab.studies.representation._trsa_data import LAYERS, Instances, OwnRecording, Recording, load, own_regions
from claimlab.studies.representation._trsa_data import voxel_weights as voxel_weights  # shown in the notebook
from claimlab.studies.representation._trsa_method import dissimilarity, geo_topological
from claimlab.studies.representation._trsa_method import geodesic as geodesic
from claimlab.study import Control, Paper
from claimlab.training import Supervised

if TYPE_CHECKING:
    import pandas as pd

PAPER = Paper(
    title="The Topology and Geometry of Neural Representations",
    authors="Baihan Lin, Nikolaus Kriegeskorte", year=2023, url="https://arxiv.org/abs/2309.11028",
    theme="sensitivity", system="tRSA",
    question="Can we tell which layer of which network a noisy recording came from if we look only at who is near whom, ignoring "
    "how far apart the rest are?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    lower: float = knob(0.1, "everything nearer counts as the same place", low=0.0, high=0.95, unit="quantile", live=True)
    upper: float = knob(0.5, "everything further counts as just far", low=0.05, high=1.0, unit="quantile", live=True)
    snr: float = knob(0.07, "signal to noise of the simulated recording", low=0.02, high=20.0, live=True)
    voxels: int = knob(40, "measurement channels", low=4, high=500)
    stimuli: int = knob(60, "rows of the matrices", low=10, high=200)
    comparison: str = knob("pearson", "how two matrices are compared", choices=("pearson", "cosine", "spearman"), live=True)
    distance: str = knob("euclidean", "between two patterns: squared Euclidean, or one minus correlation",
                         choices=("euclidean", "correlation"))  # fmt: skip
    grid: int = knob(11, "quantiles on each side of the triangle from which thresholds are chosen", low=2, high=21)
    levels: int = knob(4, "signal-to-noise ratios: the one above, a fifth of it, then others for the curve", low=2, high=6)
    draws: int = knob(10, "noise draws of each layer, each with voxels of its own", low=1, high=40)
    instances: int = knob(6, "networks of one set, which differ in how they began", low=3, high=16)
    steps: int = knob(120, "optimiser steps of every network", low=2, high=2000)
    seeds: int = knob(6, "independent sets of networks", low=2, high=64)
    SMOKE = dict(instances=3, stimuli=15, steps=5, draws=2, grid=3, levels=2, seeds=2)
    FULL = dict(instances=8, stimuli=100, levels=6, seeds=20)
    CONTROL = Control(
        set=dict(snr=20.0), vanishes=("robust-to-noise", "more-than-ranks"),
        why="With next to no measurement noise (the noisy condition is then at 4) there is nothing to be robust against, and all "
        "statistics name nearly every layer. A gain that remains would speak of individual networks and not of noise. The claims "
        "on individuals and on topology alone do not hang on noise.",
    )  # fmt: skip

    def __post_init__(self):
        if self.lower > self.upper:
            raise ValueError(f"lower = {self.lower} lies above upper = {self.upper}: the lower threshold must not be the higher one")


CLAIMS = (
    Claim("as-sensitive-as-geometry", "Identifying the generating layer across instances with the geo-topological matrix is not "
          "worse than with the full dissimilarity matrix (no more than 2 points).", kind="paired", metric="layer_accuracy",
          arm="rgtm", baseline="rdm", better="higher", margin=-0.02, source="abstract (excellent sensitivity retained)"),
    Claim("robust-to-noise", "At high measurement noise it is better than the full matrix.", kind="paired",
          metric="layer_accuracy_noisy", arm="rgtm", baseline="rdm", better="higher", margin=0.01,
          source="abstract (robust to noise)"),
    Claim("robust-to-individuals", "The statistic of the same layer in two independently trained networks correlates more, "
          "relative to different layers (difference of mean correlations in units of their pooled spread), than with the full "
          "matrix.", kind="paired", metric="same_layer_dprime", arm="rgtm", baseline="rdm", better="higher", margin=0.1,
          source="abstract (interindividual variability)"),
    Claim("topology-alone", "The purely binary neighbourhood matrix (one threshold, no geometry left) still identifies the layer "
          "far above chance 1/6.", kind="bound", metric="layer_accuracy", arm="adjacency", better="higher", margin=0.4,
          source="family of statistics, topological end"),
    Claim("more-than-ranks", "At high noise it is also better than comparing full matrices by rank correlation, which needs no "
          "thresholds.", kind="paired", metric="layer_accuracy_noisy", arm="rgtm", baseline="rdm_rank", better="higher",
          margin=0.01, source="not in the paper; the strong simple rival that is monotone-invariant as well"),
)  # fmt: skip

HONESTY = (
    "Simulated voxels over tiny digit networks replace CIFAR networks and human fMRI; the results say whether the statistics "
    "separate layers, not brain regions. Despite the name, no persistent homology is needed or computed in the method studied "
    "here."
)

# ---- the networks that are recorded


class Networks(Supervised):
    """Sets of networks that differ in initial weights and in the order of the images; every statistic looks at them."""

    lr = 5e-3
    vectorize = False  # convolutions of this size are no faster stacked
    ahead = 10

    @property
    def batch_size(self) -> int:
        return 64 * self.p.instances

    @property
    def every(self) -> int:
        return max(1, self.steps // 4)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.x, bound.y, *bound.test, bound.stimuli = load(seed, self.p.stimuli)
        bound.test = tuple(bound.test)
        return bound

    def init(self):
        return Instances(self.p.instances, self.stimuli)

    def loss(self, net, x, y):
        """The mean over instances, each with its own 64 images: no gradient reaches another."""
        shares = zip(net.nets, x.chunk(len(net.nets)), y.chunk(len(net.nets)), strict=True)
        return sum(nn.functional.cross_entropy(one(a), b) for one, a, b in shares) / len(net.nets)

    def schedule(self, step, steps):
        """Up within the first fifth of the steps, then down to nothing, both straight."""
        return min(1.0, (step + 1) / (0.2 * steps)) * min(1.0, (1 - step / steps) / 0.8)

    def metrics(self, net, count=200):
        """Of the first 200 test images; of all of them after the last step."""
        x, y = (part[:count] for part in self.test)
        right = (net(x).argmax(-1) == y).float().mean(1)
        return {"test_accuracy": right.mean(), "test_accuracy_worst": right.min()}

    def final(self, net):
        return self.metrics(net, len(self.test[0]))


ARMS = {"networks": Networks, **STATISTICS}


# ---- recordings of one's own


def identify(folder: str | Path, p: Params) -> pd.DataFrame:
    """Name the region of every subject from the other subjects' regions, with every statistic.

    `folder` holds `<subject>_<region>.npz` (see `own_regions`). Rows: statistic, share right, chance, d' of equal regions.
    ValueError names the file that does not fit.
    """
    import pandas as pd

    _, regions, responses = own_regions(folder)
    p = replace(p, levels=2)  # what was recorded has one level of noise
    before = SimpleNamespace(p=p, members=[], recordings=[OwnRecording(responses, p)])
    rows = []
    for name, spec in STATISTICS.items():
        arm = spec(p, [0], before)
        found = list(arm.ticks())[-1].metrics[0]
        rows.append((name, found["layer_accuracy"], 1 / len(regions), found["same_layer_dprime"]))
    return pd.DataFrame(rows, columns=["statistic", "accuracy", "chance", "dprime"]).set_index("statistic")


# ---- figures


def figures(lab) -> dict[str, go.Figure]:
    """The figures of a finished experiment; matrices and distances are those of its first seed."""
    arms, found = lab.arms, {}
    if "rgtm" in arms:
        found["triangle"] = drawn.triangle(arms["rgtm"].triangles, arms["rgtm"].ratios)
    if "rdm" in arms:
        p, ratio, alone = arms["rdm"].p, arms["rdm"].ratios[0], arms["rdm"].recordings[0].alone
        found["noise"] = drawn.against_noise(lab.table, p.snr)
        found["instances"] = drawn.same_layer(alone.d[:3], 4, p.lower, p.upper)
        voted = {name: [drawn.confusion(one[ratio]) for one in arms[name].voted] for name in ("rdm", "rgtm") if name in arms}
        found["confusion"] = drawn.confusions(voted, LAYERS, ratio)
        unit = "response²" if p.distance == "euclidean" else "1 − r"
        found["transform"] = drawn.transform(alone.d[0], LAYERS, p.lower, p.upper, unit)
    return found


def view_matrices(net: nn.Module, params: Params) -> go.Figure:
    """Distances of the dense layer in two instances, and below them the same after the transform."""
    d = dissimilarity(net.layers(2)[4].cpu(), kind=params.distance)
    return drawn.same_layer(d[:, None], 0, params.lower, params.upper)


def view_neighbours(net: nn.Module, params: Params) -> go.Figure:
    """The stimuli in the dense layer of the first instance, in two dimensions, joined where they are near."""
    x = net.layers(1)[4][0].cpu()
    labels = [i for c in range(10) for i in [c] * (params.stimuli // 10 + (c < params.stimuli % 10))]
    return drawn.neighbours(x, dissimilarity(x, kind=params.distance), params.upper, labels)


def view_confusion(net: nn.Module, params: Params) -> go.Figure:
    """Layers that are taken for each other, by full and by transformed matrices with the thresholds of the knobs.

    Three instances and one draw; voxels and noise follow from a number that is always the same, so that only networks move.
    """
    few = replace(params, draws=1, voxels=min(params.voxels, 40))
    one = Recording(0, [x.cpu() for x in net.layers(3)], few, many=100)
    data, found = one.measure(params.snr), {}
    for name in ("rdm", "rgtm_fixed"):
        pair = (0.0, 1.0) if name == "rdm" else (params.lower, params.upper)
        first, second = (geo_topological(part.d, *pair, part.ordered) for part in (data, one.models))
        voted = method.votes(method.compare(first, second, params.comparison))
        found[name] = [drawn.confusion(voted)]
    return drawn.confusions(found, LAYERS, params.snr)


VIEWS = {
    "one layer in two instances": view_matrices, "neighbours among the stimuli": view_neighbours, "layers taken for others": view_confusion,
}  # fmt: skip
