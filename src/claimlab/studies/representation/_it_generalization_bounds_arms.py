"""Arms of the study it-generalization-bounds that train nothing: closed forms, distances by layer, contraction, Gibbs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from claimlab.studies.representation import _it_generalization_bounds_data as data
from claimlab.studies.representation import _it_generalization_bounds_method as method
from claimlab.training import Run, Stepwise, Tick

WIDE, DEEP = (3, 3, 1), (3, 2, 2, 1)  # 9 + 3 and 6 + 4 + 2 binary weights
STARTS = 20  # random pairs of the search for the largest contraction
DIMENSIONS = (1, 2, 3, 4)


class Measured(Stepwise):
    """What is computed once for each seed. `found` keeps it for the figures; `measure` gives it and its metrics."""

    def __init__(self, p, seeds: Sequence[int], before=None):
        self.p, self.seeds, self.before = p, list(seeds), before
        self.total, self.step, self.seconds, self.found = 1, 0, 0.0, []

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": self.seconds}

    def measure(self, i: int) -> tuple[object, dict[str, float]]:
        raise NotImplementedError

    def stepwise(self):
        told, self.found = [], []
        for i in range(len(self.seeds)):
            began = time.perf_counter()
            kept, metrics = self.measure(i)
            self.found.append(kept)
            told.append({name: float(value) for name, value in metrics.items()})
            self.seconds += time.perf_counter() - began
            yield None
        self.step = 1
        yield Tick(1, told)


# ---- closed forms


class ClosedForm(nn.Module):
    """What the closed forms give for one seed: dimensions, KL bounds and mean W_2 of the layers, and the true gap."""

    def __init__(self, r: list[int], layers: method.Layers):
        super().__init__()
        self.gap = layers.gap
        self.register_buffer("dimensions", torch.tensor(r))
        self.register_buffer("bound", torch.from_numpy(layers.bound))
        self.register_buffer("distance", torch.from_numpy(layers.w2.mean(0)))


class GaussianLinear(Measured):
    """Linear layers of the binary Gaussian model; one draw of the weights w serves all layers."""

    def measure(self, i):
        p, rng = self.p, np.random.default_rng((self.seeds[i], 10))
        r = method.ranks(p.d, p.depth)
        layers = method.binary_gaussian(p.n, r, p.draws, rng)
        bound = layers.bound
        closed = -p.d / 2 * np.log1p(-1 / p.n)
        return ClosedForm(r, layers), {
            "max_layer_increase": np.diff(bound).max(), "min_slack": (bound - abs(layers.gap)).min(), "true_gap": layers.gap,
            "bound_input": bound[0], "bound_output": bound[-1], "bound_input_closed": np.sqrt(2 * method.SIGMA**2 * closed),
            "test_error": layers.test.mean(),
        }  # fmt: skip

    @property
    def members(self) -> list[ClosedForm]:
        return self.found


# ---- distances in trained networks


class Distances(NamedTuple):
    """Normalised W_1 by layer, input first and logits last: of the training set from each half of the fresh points [2, L + 2],
    and of as many fresh points from the first half [L + 2]; the share of given training labels that the net repeats."""

    halves: np.ndarray
    reference: np.ndarray
    train_accuracy: float

    @property
    def funnels(self) -> tuple[int, int]:
        """The hidden layer with the smallest distance, by each half."""
        first, second = (1 + int(half[1:-1].argmin()) for half in self.halves)
        return first, second


def representations(net: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    """Input, hidden layers and logits [N, units] as float64."""
    with torch.no_grad():
        return [t.double().cpu().numpy() for t in net.layers_of(x)]


def halves(task, points: int) -> tuple[list[slice], slice]:
    """Rows of the two halves of the fresh points, and of as many as there are training points, taken from their end."""
    n, m = len(task.x), len(task.test[0])
    left = m - n if m >= 3 * n else m  # where there are few, the reference shares points with the second half
    size = method.partners(n, left // 2, points)
    return [slice(0, size), slice(size, 2 * size)], slice(m - n, m)


def distances(net: nn.Module, task, points: int, reference: bool = True) -> Distances:
    """All distances of one network from its training set to the population."""
    parts, rest = halves(task, points)
    train, fresh = representations(net, task.x), representations(net, task.test[0])
    y, fresh_y = task.y.cpu().numpy(), task.test[1].cpu().numpy()
    both = np.stack([method.by_layer(train, [t[part] for t in fresh], y, fresh_y[part]) for part in parts])
    second = np.full(both.shape[1], np.nan)
    if reference:
        second = method.by_layer([t[rest] for t in fresh], [t[parts[0]] for t in fresh], fresh_y[rest], fresh_y[parts[0]])
    return Distances(both, second, float((train[-1].argmax(1) == y).mean()))


class InputLayer(Measured):
    """W_1 at the input of mlp_plain; measures all layers for the arms below."""

    after = "mlp_plain"

    def measure(self, i):
        run: Run = self.before
        found = distances(run.members[i].eval(), run.tasks[i], self.p.points)
        metrics = {f"w1_layer_{k}": v for k, v in enumerate(found.halves.mean(0))}
        metrics |= {f"reference_layer_{k}": v for k, v in enumerate(found.reference)}
        return found, {"w1_train_population": found.halves[:, 0].mean(), "train_accuracy": found.train_accuracy} | metrics


class FunnelLayer(Measured):
    """W_1 at the hidden layer that is nearest by one half of the fresh points, scored on the other half."""

    after = "input_layer"

    def measure(self, i):
        found: Distances = self.before.found[i]
        first, second = found.funnels
        value = (found.halves[1, first] + found.halves[0, second]) / 2
        over = found.halves[:, -1].mean() - value  # below 0 the logits are nearer than the funnel: a slope, not a funnel
        return found, {"w1_train_population": value, "funnel_layer": (first + second) / 2, "output_minus_funnel": over,
                       "train_accuracy": found.train_accuracy}  # fmt: skip


class OutputLayer(Measured):
    """W_1 at the logits."""

    after = "input_layer"

    def measure(self, i):
        found: Distances = self.before.found[i]
        return found, {"w1_train_population": found.halves[:, -1].mean(), "train_accuracy": found.train_accuracy}


# ---- contraction


class DropoutChannel(Measured):
    """The largest KL contraction that random pairs and gradient ascent find, for one to four dropped units; all seeds at once."""

    def stepwise(self):
        began = time.perf_counter()
        rngs = [torch.Generator().manual_seed(7919 * seed + 3) for seed in self.seeds]
        self.clouds = {}
        for d in DIMENSIONS:
            self.clouds[d] = method.search(d, self.p.delta, STARTS, self.p.ascent, rngs)
            yield None
        told = []
        for i in range(len(self.seeds)):
            most = {d: float(torch.maximum(*(part[i] for part in cloud)).max()) for d, cloud in self.clouds.items()}
            over = {d: most[d] - method.dropout_factor(d, self.p.delta) for d in most}
            told.append({"contraction_minus_bound": max(over.values())} | {f"largest_contraction_{d}": most[d] for d in most})
        self.step, self.seconds = 1, time.perf_counter() - began
        yield Tick(1, told)


# ---- Gibbs


class GibbsArm(Measured):
    """Exact sums over all binary weights of one shape, averaged over data sets that both shapes share."""

    shape = WIDE

    def measure(self, i):
        seed = self.seeds[i]
        answers, prior = method.functions(self.shape, data.cube())
        losses = data.risks(answers, *data.gibbs_sets(seed, self.p.sets))
        risk = data.population_risk(answers, data.teacher(seed))
        g = method.gibbs(losses, prior, self.p.gamma, risk)
        return (losses, prior, risk), {
            "expected_gen_gap": g.test - g.train, "test_error": g.test, "train_error": g.train, "functions": len(prior),
            "information_over_gamma": g.information / self.p.gamma, "crossed_gap": g.crossed - g.train,
        }  # fmt: skip


class GibbsWide(GibbsArm):
    """3-3-1."""


class GibbsDeepNarrow(GibbsArm):
    """3-2-2-1; at depth 1 there is one hidden layer, and the shape is the wide one."""

    shape = property(lambda self: DEEP if self.p.depth > 1 else WIDE)
