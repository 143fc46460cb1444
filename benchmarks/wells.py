"""The infinite quantum well to an error of 0.1 % against DeepXDE: same network, points, loss, optimiser and schedule.

`python benchmarks/wells.py`
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from table import Row, absent, keep
from torch import Tensor

from claimlab.study import find
from claimlab.training import Run

AREA, CASE, GOAL = "physics", "infinite well to 0.1 %", 0.3
EVERY, ERROR, SEEDS, PEERS = 50, 0.001, 16, 5
STUDY = find("quantum-well-pinn")
NODES = torch.linspace(0, 1, 201)[:, None]


def error(psi: Callable[[Tensor], Tensor]) -> float:
    """Relative L2 distance to sqrt(2) sin(pi x), whichever sign psi has."""
    with torch.no_grad():
        found, exact = psi(NODES).flatten(), math.sqrt(2) * torch.sin(math.pi * NODES[:, 0])
        return float(min((found - exact).norm(), (found + exact).norm()) / exact.norm())


def ours(seeds: list[int]) -> tuple[float, list[int]]:
    """Seconds until every seed is there, and the steps that each took."""
    task = STUDY.module.Infinite(STUDY.make())
    run, spent, reached = Run(task, seeds, every=10**9, device="cpu"), 0.0, [0] * len(seeds)
    while run.step < run.total and not all(reached):
        began = time.perf_counter()
        for _ in range(EVERY):
            run.advance()
        spent += time.perf_counter() - began
        for i, net in enumerate(run.members):
            if not reached[i] and error(lambda x, net=net: net(x[:, 0])) <= ERROR:
                reached[i] = run.step
    return spent if all(reached) else math.nan, reached


def deepxde(seed: int) -> tuple[float, int]:
    """Seconds and steps until DeepXDE is there, by its own training loop; looking is not counted."""
    os.environ["DDE_BACKEND"] = "pytorch"
    import deepxde as dde

    dde.config.set_random_seed(seed)
    p = STUDY.make()

    def equation(x, psi):
        return -dde.grad.hessian(psi, x) - math.pi**2 * psi

    def mass(_inputs, outputs, _x):
        square = outputs[: len(NODES), 0] ** 2  # points of conditions come first
        return ((square.sum() - (square[0] + square[-1]) / 2) / (len(NODES) - 1)).expand(len(outputs), 1)

    norm = dde.icbc.PointSetOperatorBC(NODES.numpy(), 1.0, mass)
    box = dde.data.PDE(dde.geometry.Interval(0, 1), equation, [norm], num_domain=p.points, train_distribution="pseudo")
    net = dde.nn.FNN([1, p.width, p.width, 1], "tanh", "Glorot normal")
    net.apply_output_transform(lambda x, value: x * (1 - x) * value)
    model = dde.Model(box, net)
    model.compile("adam", lr=5e-3, loss_weights=[1, p.w_norm], decay=("cosine", p.steps, 0.0), verbose=0)
    watch = _watch(dde, net, p.steps)
    resample = dde.callbacks.PDEPointResampler(period=1)
    model.train(iterations=p.steps, display_every=10**9, callbacks=[resample, watch], verbose=0)
    return watch.spent if watch.reached else math.nan, watch.reached


def _watch(dde, net, steps: int):
    """A callback that looks at the error now and then, with the clock stopped."""

    class Watch(dde.callbacks.Callback):
        spent, reached, step = 0.0, 0, 0

        def on_train_begin(self):
            self.began = time.perf_counter()

        def on_batch_end(self):
            self.step += 1
            if self.step % EVERY == 0:
                self.spent += time.perf_counter() - self.began
                if error(net) <= ERROR:
                    self.reached, self.model.stop_training = self.step, True
                self.began = time.perf_counter()

    return Watch()


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    alone = [ours([seed]) for seed in range(PEERS)]
    together, steps = ours(list(range(SEEDS)))
    one = statistics.median(seconds for seconds, _ in alone)
    told = f"{statistics.median(reached[0] for _, reached in alone):.0f} steps"
    try:
        every = [deepxde(seed) for seed in range(PEERS)]
    except ImportError as missing:
        yield absent(AREA, CASE, "DeepXDE", missing)
        yield Row(AREA, CASE, "claimlab", 1e3 * one, "ms a seed", note=told)
        return
    peer = statistics.median(seconds for seconds, _ in every)
    yield Row(AREA, CASE, "DeepXDE", 1e3 * peer, "ms a seed", note=f"{statistics.median(n for _, n in every):.0f} steps")
    yield Row(AREA, CASE, "claimlab, one seed", 1e3 * one, "ms a seed", "DeepXDE", one / peer, GOAL, told)
    note = f"{max(steps)} steps until all are there"
    each = together / SEEDS
    yield Row(AREA, CASE, f"claimlab, {SEEDS} seeds at once", 1e3 * each, "ms a seed", "DeepXDE", each / peer, GOAL, note)


if __name__ == "__main__":
    keep(rows())
