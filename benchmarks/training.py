"""Training speed as ratios measured in one run: `python benchmarks/training.py`.

A bare loop is PyTorch as people write it: one net, `torch.optim.Adam`, index a tensor, backward, step. Every pair of programs
is timed alternately, several rounds; the median round counts. A ratio below 1 means that claimlab needs less time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import jvp

from claimlab import data
from claimlab.models import mlp
from claimlab.training import Run, Supervised, Task

IMAGES, LABELS = (torch.from_numpy(part) for part in data.digits())
IMAGES = IMAGES.flatten(1)


@dataclass(frozen=True)
class Params:
    steps: int = 10**9


class Digits(Supervised):
    sizes: tuple[int, ...] = (64, 64, 10)
    x, y = IMAGES, LABELS

    def init(self):
        return mlp(*self.sizes)

    def optimizer(self, groups):
        return torch.optim.Adam(groups, fused=True)


class Wide(Digits):
    sizes = (64, 256, 256, 10)


class Deep(Digits):
    """About half a millisecond a step."""

    sizes = (64, 128, 128, 128, 10)
    batch_size = 128


class Pinn(Task):
    """-u'' = pi^2 sin(pi x) at 128 fresh points, boundary by construction, 2 x 32 tanh."""

    ahead = 20

    def init(self):
        return mlp(1, 32, 32, 1, activation=nn.Tanh)

    def block(self, net, rng, step, n):
        return (torch.rand(n, 128, 1, generator=rng),)

    def loss(self, net, x):
        return residual(net, x).square().mean()

    def optimizer(self, groups):
        return torch.optim.Adam(groups, fused=True)


def residual(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    def u(z):
        return z * (1 - z) * net(z)

    one = torch.ones_like(x)
    second = jvp(lambda z: jvp(u, (z,), (one,))[1], (x,), (one,))[1]
    return second + torch.pi**2 * torch.sin(torch.pi * x)


def bare(task: Task, seed: int, fused: bool = False) -> Callable[[], None]:
    """One step of a loop without any library but torch."""
    torch.manual_seed(seed)
    net, rng = task.init(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)

    def step():
        if isinstance(task, Digits):
            rows = torch.randint(len(task.x), (task.batch_size,), generator=rng)
            loss = nn.functional.cross_entropy(net(task.x[rows]), task.y[rows])
        else:
            loss = residual(net, torch.rand(128, 1, generator=rng)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(task: Task, members: int) -> Callable[[], None]:
    run = Run(task, range(members), every=10**9, device="cpu")
    next(run.stepwise())
    return run.advance


def compare(programs: dict[str, Callable[[], None]], steps: int, rounds: int) -> dict[str, float]:
    """Median milliseconds a call of each program, timed alternately."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        for _ in range(max(3, steps // 10)):
            program()
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            for _ in range(steps):
                program()
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
    return {name: statistics.median(spent) for name, spent in times.items()}


def overhead(task: Task, steps: int, rounds: int) -> tuple[float, float]:
    """(milliseconds of a bare Run step, of the same step with polling for commands and logging to the ledger)."""
    import tempfile

    from claimlab.ledger import Ledger

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        run_id = ledger.start_run("benchmark", {})
        plain, logged = ours(task, 1), ours(task, 1)
        count = 0

        def step():
            nonlocal count
            logged()
            ledger.pending(run_id)
            count += 1
            if count % 20 == 0:
                ledger.log(run_id, [("arm", 0, count, "loss", 0.5), ("arm", 0, count, "accuracy", 0.5)])

        times = compare({"plain": plain, "logged": step}, steps, rounds)
        ledger.close()
    return times["plain"], times["logged"]


CASES = (  # name, task, members, goal
    ("Run, one seed, MLP 64-64-10", Digits, 1, 1.10),
    ("Run, one seed, MLP 64-256-256-10", Wide, 1, 1.10),
    ("16 seeds, MLP 64-64-10", Digits, 16, 0.40),
    ("64 seeds, MLP 64-64-10", Digits, 64, 0.20),
    ("16 seeds, MLP 64-256-256-10", Wide, 16, 1.00),
    ("16 seeds, PINN", Pinn, 16, 0.20),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {options.rounds} rounds\n")
    print(f"{'case':36} {'bare ms':>9} {'ours ms':>9} {'ratio':>7} {'to fused':>9} {'goal':>6}")
    for name, make, members, goal in CASES:
        task = make(Params())
        programs = {"bare": bare(task, 0), "fused": bare(task, 0, fused=True), "ours": ours(task, members)}
        times = compare(programs, options.steps, options.rounds)
        ratio, fused = (times["ours"] / (members * times[k]) for k in ("bare", "fused"))
        print(f"{name:36} {members * times['bare']:9.3f} {times['ours']:9.3f} {ratio:7.3f} {fused:9.3f} {goal:6.2f}")
    plain, logged = overhead(Deep(Params()), options.steps * 5, options.rounds)
    print(f"\npolling and logging on a step of {plain:.2f} ms: {100 * (logged / plain - 1):+.2f} % (goal 2 %)")


if __name__ == "__main__":
    main()
