"""Networks of the study adaptive-mi-estimators that remember how they grew, and the arms that look at them again."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from claimlab.studies.representation import _adaptive_mi_estimators_method as method
from claimlab.training import Run, Stepwise, Tick

ACTIVATIONS = {
    "relu": torch.relu, "tanh": torch.tanh, "elu": nn.functional.elu, "softplus": nn.functional.softplus,
    "swish": nn.functional.silu, "abs": torch.abs, "sigmoid": torch.sigmoid,
}  # fmt: skip
SATURATED = {"relu": 0.0}  # where one value stands for many inputs
BOUNDS = {"relu": (0, None), "tanh": (-1, 1), "elu": (None, None), "softplus": (0, None), "swish": (None, None),
          "abs": (0, None), "sigmoid": (0, 1)}  # fmt: skip
FEW = 4  # networks a seed of every arm but the population
GLIMPSE, LOOKS = 1024, 6  # patterns and measurements of the kernel estimate


class Crowd(nn.Module):
    """K perceptrons side by side, theta [K, P], and what they were at each of T measurements: `film` [T, K, P], held-out
    `accuracy` [T, K], and `path` [T, K, L, 3] of every hidden layer: I(T; X), I(T; Y) in bits, and what the ruler says besides
    (share of distinct symbols; for kernels the lower bound). -1 is not measured yet."""

    def __init__(self, sizes: Sequence[int], count: int, activation: str, scale: float, moments: int):
        super().__init__()
        self.shapes, self.activation = list(zip(sizes, sizes[1:], strict=False)), activation

        def fresh(i: int, o: int) -> list[Tensor]:
            return [scale * torch.randn(i * o) / math.sqrt(i), torch.zeros(o)]

        # network by network, so that the first few are the same in a crowd of any size
        self.theta = nn.Parameter(torch.stack([torch.cat([part for shape in self.shapes for part in fresh(*shape)])
                                               for _ in range(count)]))  # fmt: skip
        self.register_buffer("film", torch.zeros(moments, *self.theta.shape))
        self.register_buffer("accuracy", torch.zeros(moments, count))
        self.register_buffer("path", torch.full((moments, count, len(sizes) - 2, 3), -1.0, dtype=torch.float64))

    def parts(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Weights [K, i * o] and biases [K, o] in turn, layer by layer."""
        return theta.split([n for i, o in self.shapes for n in (i * o, o)], -1)

    def weights(self) -> tuple[Tensor, ...]:
        """The weights of all layers, without biases."""
        return self.parts(self.theta)[::2]

    def layers(self, x: Tensor, theta: Tensor | None = None) -> list[Tensor]:
        """Activity of each hidden layer [K, N, d] and the logits, for x [N, D], or x [K, N, D] of each network's own."""
        parts, act = self.parts(self.theta if theta is None else theta), ACTIVATIONS[self.activation]
        h, found = x.expand(len(parts[0]), *x.shape[-2:]), []
        for j, shape in enumerate(self.shapes):
            h = torch.matmul(h, parts[2 * j].reshape(-1, *shape)) + parts[2 * j + 1].unsqueeze(1)
            h = act(h) if j < len(self.shapes) - 1 else h
            found.append(h)
        return found

    def first(self, count: int) -> Crowd:
        """A copy of the first networks with their past."""
        few = copy.copy(self)
        few._parameters, few._buffers = {"theta": nn.Parameter(self.theta.detach()[:count].clone())}, {}
        for name, held in self._buffers.items():
            few._buffers[name] = held[:, :count].clone()
        return few


def moments(p) -> list[int]:
    """Steps at which all layers are measured: the start, then log-spaced, and three close to the end."""
    last = [round(p.steps * share) for share in (0.96, 0.98, 1.0)]
    between = np.geomspace(max(1, p.steps / 300), 0.9 * p.steps, p.measurements - 4).round().astype(int).tolist()
    return sorted({0, *between, *last})


# ---- rulers on a crowd


@torch.no_grad()
def activity(net: Crowd, x: Tensor, t: int) -> list[np.ndarray]:
    """Hidden layers of all networks at measurement t on all inputs: [K, N, d] each."""
    return [h.cpu().numpy() for h in net.layers(x, net.film[t])[:-1]]


def spans(net: Crowd, x: Tensor, times: Sequence[int]) -> np.ndarray:
    """The range of each layer for fixed bins, [K, L, 2]: what bounds the activation, else the extremes over `times`."""
    seen = [[(h.min((1, 2)), h.max((1, 2))) for h in activity(net, x, t)] for t in times]  # [T][L](low, high)[K]
    low, high = (np.array([[layer[side] for layer in one] for one in seen]) for side in (0, 1))
    bound = BOUNDS[net.activation]
    low, high = (b if b is not None else found for b, found in zip(bound, (low.min(0), high.max(0)), strict=True))
    shape = (len(seen[0]), len(seen[0][0][0]))
    return np.stack([np.broadcast_to(side, shape).T for side in (low, high)], -1).astype(float)


def edges(values: np.ndarray, bins: int, binning: str, span: np.ndarray | None,
          activation: str) -> tuple[np.ndarray, float | None]:  # fmt: skip
    """Inner edges for the activity of one layer of one network, and the value that has a bin of its own."""
    if binning == "adaptive":
        saturated = SATURATED.get(activation)
        return method.quantile_edges(values, bins, saturated), saturated
    return method.equal_edges(*span, bins), None


def measure(net: Crowd, x: Tensor, y: np.ndarray, t: int, p, binning: str, span: np.ndarray | None = None) -> None:
    """Write row t of the path by bins, fixed ones on the ranges `span` [K, L, 2], without one on those of this moment."""
    span = spans(net, x, [t]) if span is None and binning != "adaptive" else span
    for layer, every in enumerate(activity(net, x, t)):
        for k, values in enumerate(every):
            cuts, own = edges(values, p.bins, binning, None if span is None else span[k, layer], net.activation)
            found = method.binned_information(method.codes(values, cuts, own), y)
            net.path[t, k, layer] = torch.tensor([found.ixt, found.ity, found.distinct])


def summary(net: Crowd, upto: int | None = None, third: str = "distinct", population: bool = False) -> dict[str, float]:
    """Metrics of a crowd from what has been measured so far (up to a measurement); {} where nothing has been."""
    known = (net.path[:, 0, 0, 0] >= 0).nonzero().flatten().tolist()
    known = known if upto is None else [t for t in known if t <= upto]
    if not known:
        return {}
    path, accuracy = net.path[known].cpu().numpy(), net.accuracy[known[-1]].cpu().numpy()
    ixt, c = path[..., 0], method.compression(path[..., 0])
    found = {"test_accuracy": accuracy.mean(), "max_compression": c.mean(0).max(), "mean_compression": c.mean()}
    speaks = ixt[-method.LAST :, :, -1].mean(0) > 0  # a network whose last hidden layer has gone silent scores c = 1 there
    found["silent_networks"] = (~speaks).sum()
    if speaks.any():
        found["mean_compression_speaking"] = c[speaks].mean()
    if ixt.shape[2] >= 3:
        found["final_ixt_layer3"] = ixt[-method.LAST :, :, 2].mean()
    for layer in range(ixt.shape[2]):
        values = *path[-1, :, layer].mean(0), c[:, layer].mean()
        found |= {f"{name}_layer{layer + 1}": v for name, v in zip(("ixt", "ity", third, "compression"), values, strict=True)}
        if population:
            found[f"spearman_layer{layer + 1}"] = rank_correlation(c[:, layer], accuracy)
    if population:
        found |= {"spearman_last_layer": rank_correlation(c[:, -1], accuracy), "dead_last_layer": (ixt.max(0)[:, -1] == 0).sum()}
    return {name: float(value) for name, value in found.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; NaN where one of them is the same everywhere, since nothing is ranked then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(spearmanr(a, b).statistic)


# ---- arms


class Measured(Run):
    """A run of crowds that is measured at `moments` instead of every so many steps."""

    def __init__(self, task, seeds, **options):
        super().__init__(task, seeds, **options)
        self.times = moments(task.p)

    def stepwise(self):
        if self.step == 0 and not self.history:
            yield self.tick()
        while self.step < self.total and len(self.diverged) < len(self.seeds):
            self.advance()
            yield self.tick() if self.step in self.times else None

    def tick(self):
        if self.step in self.times:
            for net, task in zip(self.members, self.tasks, strict=True):
                task.record(net, self.times.index(self.step), self.step == self.total)
        return super().tick()


class Look(Stepwise):
    """The first networks of the population seen once more, through another ruler, from their film; nothing is trained."""

    third = "distinct"

    def __init__(self, p, seeds: Sequence[int], before: Measured):
        self.p, self.seeds, self.tasks = p, list(seeds), before.tasks
        self.members = [net.first(FEW) for net in before.members]
        self.times, self.chosen = before.times, list(range(len(before.times)))
        self.total, self.step, self.seconds = len(before.times), 0, 0.0
        self.ranges: dict[int, np.ndarray] = {}  # of each member over the whole run
        self.clear()

    def clear(self) -> None:
        for net in self.members:
            net.path.fill_(-1)

    def write(self, net: Crowd, task, t: int) -> None:
        """Row t of the path."""
        if id(net) not in self.ranges:
            self.ranges[id(net)] = spans(net, task.x, self.chosen)
        measure(net, task.x, task.labels, t, self.p, "fixed_run", self.ranges[id(net)])

    @property
    def budget(self) -> dict[str, float]:
        """No training; seconds of all seeds."""
        return {"steps": 0, "samples": 0, "forward_calls": self.step, "seconds": self.seconds}

    def stepwise(self):
        for t in self.chosen[self.step :]:
            for net, task in zip(self.members, self.tasks, strict=True):
                began = time.perf_counter()
                self.write(net, task, t)
                self.seconds += time.perf_counter() - began
                yield None
            self.step += 1
            yield Tick(self.times[t], [summary(net, t, self.third) for net in self.members])


class Same(Look):
    """The ruler that measured the population while it grew: its own numbers, of the first networks."""

    def clear(self):
        pass

    def write(self, net, task, t):
        pass


class Kernels(Look):
    """Adaptive kernels on part of the patterns, at half of the measurements; the upper bound is I(T; X)."""

    third, adaptive = "lower", True

    def __init__(self, p, seeds, before):
        super().__init__(p, seeds, before)
        last = len(self.times) - 1
        self.chosen = sorted({*np.linspace(0, last, LOOKS - 2).astype(int).tolist(), *range(max(0, last - 2), last + 1)})
        self.total = len(self.chosen)
        some = np.random.default_rng(3).permutation(len(self.tasks[0].x))[:GLIMPSE]
        self.rows = torch.from_numpy(np.sort(some)).to(self.tasks[0].x.device)

    @torch.no_grad()
    def write(self, net, task, t):
        x, y = task.x[self.rows], task.y[self.rows]
        for layer, every in enumerate(net.layers(x, net.film[t])[:-1]):
            for k, values in enumerate(every):
                upper, lower, ity = method.kernel_information(
                    values, y, method.kernel_variance(values, self.p.noise, self.adaptive))  # fmt: skip
                net.path[t, k, layer] = torch.tensor([upper, ity, lower])


class PlainKernels(Kernels):
    """The same with one constant noise for all layers and times."""

    adaptive = False
