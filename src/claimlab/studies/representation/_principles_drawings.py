"""Arms of the study principles-dl-theory that draw ensembles of random networks and train nothing, a layer a step."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import nn

from claimlab.studies.representation._principles_method import (
    Chain,
    critical_point,
    draw_pair,
    draw_tangent,
    first_order,
    kernels,
    next_pair,
    tangent_kernels,
)
from claimlab.training import Tick

RELU = ("relu", 0.0, 2.0)


class Drawing:
    """Ensembles of random networks, drawn a layer a step for all seeds at once. A subclass owns `chains` and says what a layer
    gives: `found` is a list of metrics, one dict a seed."""

    def __init__(self, p, seeds: list[int], chains: list[Chain], layers: list[int], moments: bool = False):
        self.p, self.seeds, self.chains, self.depths, self.moments = p, seeds, chains, layers, moments
        self.total, self.step, self.seconds = max(layers), 0, 0.0
        self.measured = [np.full((n, len(seeds), len(c.cases), 2), np.nan) for c, n in zip(chains, layers, strict=True)]
        self.theory = [
            np.stack([kernels(a, b, w, n, b + w) for a, b, w in c.cases], 1) for c, n in zip(chains, layers, strict=True)
        ]

    def stepwise(self):
        while self.step < self.total:
            began = time.perf_counter()
            for chain, depth, measured in zip(self.chains, self.depths, self.measured, strict=True):
                if self.step < depth:
                    measured[self.step] = chain.advance(self.moments).numpy()
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield Tick(self.step, [self.found(i) for i in range(len(self.seeds))])

    def found(self, i: int) -> dict[str, float]:
        raise NotImplementedError

    @property
    def members(self) -> list[Drawn]:
        return [Drawn(self, i) for i in range(len(self.seeds))]

    @property
    def budget(self) -> dict[str, float]:
        drawn = sum(c.draws for c in self.chains)
        return {"steps": self.step, "samples": drawn, "forward_calls": drawn, "seconds": self.seconds}

    def state(self) -> dict:
        return {"step": self.step, "seconds": self.seconds, "measured": [m.copy() for m in self.measured],
                "chains": [c.state() for c in self.chains]}  # fmt: skip

    def load(self, state: dict) -> None:
        self.step, self.seconds, self.measured = state["step"], state["seconds"], [m.copy() for m in state["measured"]]
        for chain, saved in zip(self.chains, state["chains"], strict=True):
            chain.load(saved)


class Drawn(nn.Module):
    """What one seed of a drawing has given so far, of its last chain: kernels by layer and preactivations of the last layer."""

    def __init__(self, drawing: Drawing, i: int):
        super().__init__()
        chain, depth = drawing.chains[-1], min(drawing.step, drawing.depths[-1])
        self.names = [f"{a}, ({b:.3g}, {w:.3g})" for a, b, w in chain.cases]
        self.width, self.at = chain.width, depth
        self.register_buffer("measured", torch.from_numpy(drawing.measured[-1][:depth, i, :, 0].copy()))
        self.register_buffer("expected", torch.from_numpy(drawing.theory[-1][:depth]))
        self.register_buffer("sample", chain.sample[i].clone())


class WideEnsemble(Drawing):
    """ReLU, tanh and linear networks at their critical points, and those of the knobs: 30 layers."""

    judged = ("relu", "tanh", "linear")

    def __init__(self, p, seeds: list[int]):
        names = [*self.judged, *(("gelu", "swish") if p.variants else ())]
        cases = {name: (name, *critical_point(name)[:2]) for name in names} | {p.activation: (p.activation, p.c_b, p.c_w)}
        super().__init__(p, seeds, [Chain(list(cases.values()), p.wide, p.draws, seeds, 1)], [30])

    def found(self, i):
        off = abs(self.measured[0][: self.step, i, :, 0] / self.theory[0][: self.step] - 1)
        errors = {case[0]: float(off[:, a].max()) for a, case in enumerate(self.chains[0].cases)}
        return {"kernel_relative_error": max(errors[a] for a in self.judged)} | {f"error of {a}": e for a, e in errors.items()}


class TanhCritical(Drawing):
    """tanh at (0, 1), 100 layers: the exponent of K over layers 20 to 100."""

    first = 20

    def __init__(self, p, seeds: list[int]):
        super().__init__(p, seeds, [Chain([("tanh", 0.0, 1.0)], p.wide, max(10, p.draws * 3 // 40), seeds, 2)], [100])

    def found(self, i):
        k = self.measured[0][: self.step, i, 0, 0]
        found = {"log10_kernel": math.log10(k[-1])}
        if self.step < self.first + 2:
            return found
        return found | {"abs_exponent_error": abs(exponent(k, self.first) + 1)}


def exponent(k: np.ndarray, first: int) -> float:
    """Slope of log K^l on log l from layer `first` on; k [l] begins with layer 1."""
    layer = np.arange(first, len(k) + 1)
    return float(np.polyfit(np.log(layer), np.log(k[first - 1 :]), 1)[0])


class NarrowEnsemble(Drawing):
    """ReLU and linear networks at criticality, four widths: how the product of two neurons' squares outgrows K^2."""

    widths, shown, range = (20, 50, 100, 200), 0.15, (0.01, 0.1)

    def __init__(self, p, seeds: list[int]):
        cases, draws = [RELU, ("linear", 0.0, 1.0)], 5 * p.draws
        chains = [Chain(cases, n, draws, seeds, 10 + k) for k, n in enumerate(self.widths)]
        super().__init__(p, seeds, chains, [1 + int(self.shown * n) for n in self.widths], moments=True)

    def excess(self, i: int, case: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(n, ratio (l - 1) / n, excess) of each width, as far as drawn."""
        some = [slice(0, min(self.step, depth)) for depth in self.depths]
        return [(n, np.arange(s.stop) / n, m[s, i, case, 1] / t[s, case] ** 2 - 1)
                for n, s, m, t in zip(self.widths, some, self.measured, self.theory, strict=True)]  # fmt: skip

    def slope(self, i: int, case: int) -> float:
        """s1 of excess = s1 r + s2 r^2 over all widths and layers inside `range`."""
        ratio, excess = (np.concatenate(part) for part in list(zip(*self.excess(i, case), strict=True))[1:])
        inside = (ratio >= self.range[0] - 1e-9) & (ratio <= self.range[1] + 1e-9)
        return first_order(ratio[inside], excess[inside])[0]

    def found(self, i):
        if self.step < 3:
            return {}
        s1 = self.slope(i, 0)
        return {"vertex_relative_error": abs(s1 - 5) / 5, "slope of relu": s1, "slope of linear": self.slope(i, 1)}


class Side:
    """Smaller drawings beside the judged ones, all in one step: the correlation of two inputs, and the tangent kernel."""

    overlap, layers, pairs = 0.5, 30, (("relu", 0.0, 2.0), ("tanh", 0.0, 1.0))
    widths, total = (16, 32, 64), 1

    def __init__(self, p, seeds: list[int]):
        self.p, self.seeds, self.step = p, seeds, 0
        self.correlation = {a: self.foretold(a, b, w) for a, b, w in self.pairs}  # of infinite width
        self.measured: dict[str, np.ndarray] = {}  # [S, layers]
        self.tangent: dict[int, np.ndarray] = {}  # mean of Theta and of Theta^2, [S, layers, 2]

    def foretold(self, activation: str, c_b: float, c_w: float) -> np.ndarray:
        kernel, found = (c_b + c_w, c_b + c_w * self.overlap, c_b + c_w), []
        for _ in range(self.layers):
            found.append(kernel[1] / math.sqrt(kernel[0] * kernel[2]))
            kernel = next_pair(activation, c_b, c_w, kernel)
        return np.array(found)

    def ticks(self):
        p, rngs = self.p, [torch.Generator().manual_seed(s * 1_000_003 + 977) for s in self.seeds]
        for a, b, w in self.pairs:
            drawn = [draw_pair(a, b, w, p.wide, max(10, p.draws // 20), self.layers, self.overlap, g) for g in rngs]
            self.measured[a] = np.stack(drawn)
        for n in self.widths:
            drawn = [draw_tangent(*RELU, n, max(20, p.draws // 8), n // 4, 1.0, g) for g in rngs]
            self.tangent[n] = np.stack(drawn)
        self.step = 1
        yield Tick(1, [self.found(i) for i in range(len(self.seeds))])

    def found(self, i: int) -> dict[str, float]:
        off = max(abs(self.measured[a][i] - self.correlation[a]).max() for a in self.measured)
        mean = [abs(t[i, :, 0] / tangent_kernels(*RELU, n // 4, 2.0, 1.0) - 1).max() for n, t in self.tangent.items()]
        return {"correlation_error": float(off), "tangent_relative_error": float(max(mean))}
