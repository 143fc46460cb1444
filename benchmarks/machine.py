"""What this machine allows, how cost grows, and what memory a seed takes. `python benchmarks/machine.py [--only CASE]`

The roofline of a training step is the time that its multiplications take at the measured peak, or its parameters' way through
memory at the measured bandwidth, whichever is longer (Williams, Waterman, Patterson 2009).
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from nets import Digits, Params, Wide, ours
from table import FOLDER, Row, command, turns

SEEDS, WIDTHS, STEPS, RUNS = (1, 4, 16, 64, 256), (16, 32, 64, 128, 256, 512), (100, 300, 1000, 3000), (10, 100, 1000, 10_000)
ADAM = 7  # reads and writes of one number for each parameter: gradient, two means and itself


def peak() -> tuple[float, float]:
    """GFLOP/s of a matrix product and GB/s of an addition in place, on one thread."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    long = torch.rand(64 * 2**20)
    times = turns({"product": lambda: (a @ b, None)[1], "add": lambda: (long.add_(1.0), None)[1]}, 5, 7)
    return 2 * 1024**3 / times["product"] / 1e6, 2 * 4 * long.numel() / times["add"] / 1e6


def roofline(_rounds: int) -> Iterator[Row]:
    """The least time of a step of the judged cases, and how near a Run comes to it."""
    flops, bandwidth = peak()
    yield Row("machine", "peak of one thread", "matrix product", flops, "GFLOP/s")
    yield Row("machine", "peak of one thread", "addition in place", bandwidth, "GB/s")
    for name, make, seeds in (("64 seeds, MLP 64-64-10", Digits, 64), ("16 seeds, MLP 64-256-256-10", Wide, 16)):
        task = make(Params())
        weights = sum(a * b for a, b in zip(task.sizes, task.sizes[1:], strict=False))
        count = seeds * (weights + sum(task.sizes[1:]))
        multiplied = seeds * 2 * task.batch_size * (3 * weights - task.sizes[0] * task.sizes[1])  # images need no gradient
        least = max(multiplied / flops, 4 * ADAM * count / bandwidth) / 1e6
        spent = turns({"claimlab": ours(task, seeds)}, 30, 7)["claimlab"]
        note = f"{multiplied / 1e6:.0f} MFLOP, {4 * ADAM * count / 1e6:.1f} MB"
        yield Row("machine", f"roofline, {name}", "roofline", least, "ms a step", note=note)
        yield Row("machine", f"roofline, {name}", "claimlab", spent, "ms a step", "roofline", spent / least)


def where(_rounds: int) -> Iterator[Row]:
    """A profile of the case whose goal is the hardest: the operators that take most."""
    step = ours(Digits(Params()), 64)
    for _ in range(20):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(50):
            step()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    for one in events[:8]:
        share = one.self_cpu_time_total / total
        yield Row("profile", "64 seeds, MLP 64-64-10", one.key, one.self_cpu_time_total / 50e3, "ms a step", "all operators", share)


# ---- growth


def exponent(rows: list[Row], sizes: tuple[int, ...]) -> list[Row]:
    """The same rows with the exponent of a power law fitted to the upper half of the sizes in the last one's note."""
    some = len(sizes) // 2
    slope = np.polyfit(np.log(sizes[some:]), np.log([row.value for row in rows[some:]]), 1)[0]
    return [*rows[:-1], replace(rows[-1], note=f"cost ~ size^{slope:.2f} from {sizes[some]:,} on")]


def growth(rounds: int) -> Iterator[Row]:
    """Cost against seeds, width, steps and the number of runs."""

    class Broad(Digits):
        width = 64
        sizes = property(lambda self: (64, self.width, self.width, 10))

    found = []
    for seeds in SEEDS:
        spent = turns({"step": ours(Digits(Params()), seeds)}, 20, rounds)["step"]
        found.append(Row("growth", "seeds of MLP 64-64-10", f"{seeds}", spent, "ms a step"))
    yield from exponent(found, SEEDS)
    found = []
    for width in WIDTHS:
        task = Broad(Params())
        type(task).width = width
        spent = turns({"step": ours(task, 16)}, 10, rounds)["step"]
        found.append(Row("growth", "width of two hidden layers, 16 seeds", f"{width}", spent, "ms a step"))
    yield from exponent(found, WIDTHS)
    found = []
    for steps in STEPS:
        step = ours(Digits(Params()), 16)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        found.append(Row("growth", "steps, 16 seeds of MLP 64-64-10", f"{steps}", 1e3 * (time.perf_counter() - began), "ms"))
    yield from exponent(found, STEPS)
    yield from _ledger(rounds)


PAGES = {"catalogue": ("", ""), "live": ("live", ""), "compare": ("compare", "study=mixup"), "reports": ("reports", "")}


def _ledger(rounds: int) -> Iterator[Row]:
    """Looking for the newest runs, reading one run's points, and each page of the dashboard, among ever more runs of 100 points."""
    from claimlab.ledger import Ledger

    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CLAIMLAB_HOME"] = folder
        book, there = Ledger(), 0
        for count in RUNS:
            while there < count:
                run = book.start_run("mixup", {"alpha": 0.1 + there % 32}, seeds=range(5))
                book.log(run, [("mixup", k % 5, k // 5, "loss", 0.5) for k in range(100)])
                book.set_status(run, "finished")
                there += 1
            book.flush()
            looks = {"the newest 50 of runs": lambda: (book.runs(limit=50), None)[1],
                     "the table of one of runs": lambda run=run: (book.points_since(run), None)[1]}  # fmt: skip
            for name, spent in (turns(looks, 5, rounds) | _pages(rounds)).items():
                found.setdefault(name, []).append(Row("growth", name, f"{count}", spent, "ms"))
        book.close()
    for rows in found.values():
        yield from exponent(rows, RUNS)


def _pages(rounds: int) -> dict[str, float]:
    """Median milliseconds of each page, warm, in a dashboard of its own."""
    import live

    def looks(page: str, query: str) -> list[float]:
        return [1e3 * asyncio.run(live.visited(address, page, query)) for _ in range(rounds)]

    with live.server() as (address, _):
        return {f"page {name} over runs": statistics.median(looks(*where)[1:]) for name, where in PAGES.items()}


# ---- memory

PROBE = "import resource, sys; from nets import *; step = ours(Digits(Params()), {}); [step() for _ in range(5)]; " \
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # fmt: skip


def memory(_rounds: int) -> Iterator[Row]:
    """The most memory that a process of so many seeds holds, and how many fit into a gigabyte; each in a process of its own."""
    unit = 1024 if sys.platform != "darwin" else 1
    sizes, found = (1, 256, 1024, 4096), []
    for seeds in sizes:
        done = subprocess.run([sys.executable, "-c", PROBE.format(seeds)], cwd=FOLDER, capture_output=True, text=True)
        found.append(int(done.stdout) * unit / 2**20 if done.returncode == 0 else math.nan)
        yield Row("memory", "MLP 64-64-10", f"{seeds} seeds", found[-1], "MiB at most")
    each = (found[-1] - found[0]) / (sizes[-1] - sizes[0])
    yield Row("memory", "MLP 64-64-10", "each further seed", 1024 * each, "KiB")
    yield Row("memory", "MLP 64-64-10", "seeds in 1 GiB", (1024 - found[0]) / each + 1, "seeds")


CASES = {"roofline": roofline, "where": where, "growth": growth, "memory": memory}


def rows(rounds: int = 7, only: str | None = None) -> Iterator[Row]:
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if only in (None, name):
            yield from case(rounds)


if __name__ == "__main__":
    command(__doc__, CASES, rows)
