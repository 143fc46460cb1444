"""Information-theoretic bounds layer by layer: KL in closed form, Wasserstein in trained networks, contraction by noise, Gibbs.

If the layers of a network blur training and test data together, can one read from that blur how well it will generalise?
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _it_generalization_bounds_arms as arms
from claimlab.studies.representation import _it_generalization_bounds_data as data
from claimlab.studies.representation import _it_generalization_bounds_method as method
from claimlab.studies.representation._it_generalization_bounds_data import load_table
from claimlab.studies.representation._it_generalization_bounds_method import (
    binary_gaussian,
    by_layer,
    contraction,
    dropout_factor,
    gibbs,
    kl_gaussians,
    ranks,
    wasserstein,
)
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Series, Supervised

PAPER = Paper(
    title="Information-Theoretic Generalization Bounds for Deep Neural Networks", authors="He, Goldfeld", year=2024,
    url="https://arxiv.org/abs/2404.03176", theme="representations", system="hierarchical KL and Wasserstein bounds",
    question="If the layers of a network blur training and test data together, can one read from that blur how well it will "
    "generalise, and does depth help?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    n: int = knob(16, "training set size; the bound falls like 1/sqrt(n)", low=2, high=1000, unit="examples")
    d: int = knob(64, "input dimension", low=2, high=512)
    depth: int = knob(4, "number of hidden layers", low=1, high=8)
    delta: float = knob(0.5, "dropout rate in the contraction factor", low=0.0, high=0.9, unit="probability", live=True)
    gamma: float = knob(20.0, "inverse temperature of the Gibbs algorithm: high fits harder", low=0.1, high=200.0)
    label_noise: float = knob(0.2, "flipped training labels: gives the gap something to show", low=0.0, high=0.5, unit="fraction")
    tau: float = knob(0.5, "deviation of the Gaussian noise on hidden units in mlp_noise", low=0.01, high=10.0)
    width: int = knob(64, "units of a hidden layer of the trained networks", low=2, high=256)
    train: int = knob(200, "training points of the trained networks", low=20, high=1000, unit="examples")
    points: int = knob(1000, "points a side in the matching; each half of the fresh points has as many", low=20, high=2000)
    draws: int = knob(10000, "draws of the weights in the closed forms", low=10, high=200000)
    ascent: int = knob(300, "steps of the search for the largest contraction", low=0, high=5000)
    sets: int = knob(2000, "data sets of the Gibbs algorithm", low=10, high=100000)
    variants: bool = knob(False, "also ten digits, and a grid of depths and widths")
    steps: int = knob(800, "optimiser steps", low=10, high=20000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(d=8, draws=20, steps=40, points=64, train=32, sets=100, ascent=20, seeds=2)
    FULL = dict(draws=50000, sets=10000, ascent=1000, variants=True, seeds=10)
    CONTROL = Control(
        set=dict(depth=1), vanishes=("funnel-layer", "deep-narrow-gibbs"),
        why="With one layer there is no funnel and deep is wide.",
    )  # fmt: skip

    def __post_init__(self):
        if self.points < self.train:
            raise ValueError(f"points = {self.points} is less than train = {self.train}: every training point must be matched")


CLAIMS = (
    Claim("kl-bound-shrinks", "The KL bound never grows from one layer to the next (largest increase at most rounding error).",
          kind="bound", metric="max_layer_increase", arm="gaussian_linear", better="lower", margin=0.000001,
          source="Theorem on the hierarchical KL bound; binary Gaussian example"),
    Claim("bound-holds", "At every layer the bound is above the true generalisation gap (smallest slack is not negative).",
          kind="bound", metric="min_slack", arm="gaussian_linear", better="higher", margin=0.0, source="same theorem"),
    Claim("funnel-layer", "In trained ReLU networks some hidden layer brings the training set and the population closer in "
          "normalised 1-Wasserstein distance than the input does.", kind="paired", metric="w1_train_population",
          arm="funnel_layer", baseline="input_layer", better="lower", margin=0.05,
          source="Wasserstein bound, generalisation funnel"),
    Claim("dropout-contracts", "The largest measured KL contraction of a dropout layer stays below 1 - delta^d.", kind="bound",
          metric="contraction_minus_bound", arm="dropout_channel", better="lower", margin=0.0001,
          source="SDPI section, dropout"),
    Claim("deep-narrow-gibbs", "With equal parameter count and the Gibbs algorithm, the deeper and narrower binary-weight network "
          "has the smaller expected gap.", kind="paired", metric="expected_gen_gap", arm="gibbs_deep_narrow",
          baseline="gibbs_wide", better="lower", margin=0.002, source="finite parameter space and Gibbs examples"),
)  # fmt: skip
HONESTY = (
    "Closed forms hold for one Gaussian family and a mean classifier; for trained networks only distances between finite samples "
    "are seen, not the conditional laws in the theorem, so the funnel result is evidence and not a bound. Whether deep and narrow "
    "generalises better at large is left open by the paper as well."
)


# ---- networks that learn


class Net(nn.Module):
    """A ReLU perceptron that keeps its training points and as many fresh ones, for the views. [B, inputs] -> [B, classes]"""

    def __init__(self, sample: data.Sample, width: int, depth: int):
        super().__init__()
        sizes = [sample.x.shape[1], *[width] * depth, sample.classes]
        self.linear = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        count = len(sample.x)
        for name in ("x", "y"):
            self.register_buffer(f"train_{name}", getattr(sample, name).clone())
            self.register_buffer(f"fresh_{name}", getattr(sample, f"fresh_{name}")[-count:].clone())

    def layers_of(self, x: Tensor, disturb=lambda h, layer: h) -> list[Tensor]:
        """Input, hidden layers after the ReLU (and after `disturb`), logits."""
        found = [x]
        for layer, linear in enumerate(self.linear[:-1]):
            found.append(disturb(linear(found[-1]).relu(), layer))
        return [*found, self.linear[-1](found[-1])]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers_of(x)[-1]

    def norms(self) -> list[float]:
        """Largest singular value of every weight matrix."""
        with torch.no_grad():
            return [float(torch.linalg.matrix_norm(one.weight, 2)) for one in self.linear]


class Plain(Supervised):
    """Trained without noise on the seed's points, wrong labels included."""

    kind = "mixture"
    most = 10000  # training points, at most
    matched = False  # whether the large matching of `distances` is made after the last step

    every = property(lambda self: max(1, self.steps // 10))

    def bind(self, seed):
        bound = copy.copy(self)
        n = min(self.p.train, self.most)
        s = data.sample(seed, self.kind, self.p.label_noise, n, 2 * self.p.points + n, data.own())
        bound.sample, bound.x, bound.y, bound.test = s, s.x, s.y, (s.fresh_x, s.fresh_y)
        return bound

    def init(self):
        return Net(self.sample, self.p.width, self.p.depth)

    def metrics(self, net):
        right = [float((net(x).argmax(1) == y).float().mean()) for x, y in ((self.x, self.y), self.test)]
        w1 = by_layer(*pair_of(net))
        found = {"train_accuracy": right[0], "test_accuracy": right[1], "generalisation_gap": right[0] - right[1]}
        return found | {f"w1_tick_{k}": v for k, v in enumerate(w1)}

    def final(self, net):
        gap, bounds = lipschitz(net)
        found = {"soft_gap": gap, "bound_input": bounds[0], "bound_output": bounds[-1]} | self.factor(net)
        if self.matched:
            seen = arms.distances(net, self, self.p.points, reference=False)
            first, second = seen.funnels
            found |= {f"w1_layer_{k}": v for k, v in enumerate(seen.halves.mean(0))}
            found["funnel_minus_input"] = (seen.halves[1, first] + seen.halves[0, second]) / 2 - seen.halves[:, 0].mean()
        return found

    def factor(self, net) -> dict[str, float]:
        """The product over hidden layers of their contraction factors; 1 without noise."""
        return {"contraction_factor": 1.0}


def pair_of(net: Net) -> tuple:
    """Representations and labels of the training points and the fresh points that a net keeps."""
    train, fresh = (arms.representations(net, x) for x in (net.train_x, net.fresh_x))
    return train, fresh, net.train_y.cpu().numpy(), net.fresh_y.cpu().numpy()


def lipschitz(net: Net) -> tuple[float, list[float]]:
    """Mean of 1 - p(right class) on the fresh points that the net keeps minus that on its training points, and its bound by
    the Wasserstein distance in each layer times the norms above."""
    with torch.no_grad():
        both = ((net.train_x, net.train_y), (net.fresh_x, net.fresh_y))
        risk = [1 - float(net(x).softmax(1).gather(1, y[:, None]).mean()) for x, y in both]
    return risk[1] - risk[0], method.lipschitz_bounds(*pair_of(net), net.norms()).tolist()


class Noisy(Plain):
    """Plain, with fresh noise on the hidden units at every step: the noise is the last tensor of a batch, [B, depth, width]."""

    matched = True

    def noise(self, size, rng: torch.Generator) -> Tensor:
        raise NotImplementedError

    def disturb(self, h: Tensor, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def block(self, net, rng, step, n):
        x, y = super().block(net, rng, step, n)
        return x, y, self.noise((n, self.batch_size, self.p.depth, self.p.width), rng).to(x.device)

    def loss(self, net, x, y, noise):
        logits = net.layers_of(x, lambda h, layer: self.disturb(h, noise[:, layer]))[-1]
        return nn.functional.cross_entropy(logits, y)


class Dropout(Noisy):
    """A unit is dropped with probability delta and scaled up otherwise, so that its mean stays."""

    def noise(self, size, rng):
        if not self.p.delta:  # nothing drawn: the batches are then those of plain training
            return torch.ones(size)
        return (torch.rand(size, generator=rng) >= self.p.delta) / (1 - self.p.delta)

    def disturb(self, h, noise):
        return h * noise

    def factor(self, net):
        return {"contraction_factor": dropout_factor(self.p.width, self.p.delta) ** self.p.depth}


class Noise(Noisy):
    """Gaussian noise of deviation tau on every hidden unit."""

    def noise(self, size, rng):
        return torch.randn(size, generator=rng)

    def disturb(self, h, noise):
        return h + self.p.tau * noise

    def factor(self, net):
        found = 1.0
        for t in net.layers_of(torch.cat([net.train_x, net.fresh_x]))[1:-1]:
            found *= method.noise_factor(float(torch.cdist(t, t).max()), self.p.tau)
        return {"contraction_factor": found}


class Digits(Plain):
    """Threes against eights, 120 of them to train."""

    kind, most, matched = "digits 3 8", 120, True


class TenDigits(Plain):
    kind, most, matched = "digits", 400, True
    when = staticmethod(lambda p: p.variants)


class Cell(Plain):
    matched = True
    every = property(lambda self: self.steps)


class Grid(Series):
    """Depths and widths of mlp_plain one after the other."""

    when = staticmethod(lambda p: p.variants)

    def __init__(self, p, seeds):
        shapes = [(depth, width) for depth in (1, 2, 4, 8) for width in (16, 64, 256)]
        made = {f"L={a} n={b}": Run(Cell(replace(p, depth=a, width=b)), seeds) for a, b in shapes}
        super().__init__(made, seeds)


ARMS = {
    "gaussian_linear": arms.GaussianLinear, "mlp_plain": Plain, "input_layer": arms.InputLayer,
    "funnel_layer": arms.FunnelLayer, "output_layer": arms.OutputLayer, "mlp_dropout": Dropout, "mlp_noise": Noise,
    "mlp_digits": Digits, "dropout_channel": arms.DropoutChannel, "gibbs_wide": arms.GibbsWide,
    "gibbs_deep_narrow": arms.GibbsDeepNarrow, "mlp_ten_digits": TenDigits, "depth_grid": Grid,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "bound and true gap, layer by layer": beside(__name__, "bound_view"),
    "distance between training set and population in each layer": beside(__name__, "distance_view"),
}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "binary_gaussian", "contraction", "dropout_factor", "figures", "gibbs",
    "kl_gaussians", "load_table", "ranks", "wasserstein",
]  # fmt: skip
