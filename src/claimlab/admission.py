"""Which run may start beside those that go on: a core for each, and the memory that it will need at its height.

Memory is what this process may still take: of the machine, and of the container where one sets a limit. What a run needs is
the most that earlier runs of its study took (each run's height is kept in the ledger), else 0.7 GB: of the kernels measured,
most took 0.55 to 0.65 GB (interpreter, torch, pandas and plotly), a few with large data sets more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from claimlab import THREADS_CHOSEN

EVENT = "resources"  # the ledger's event that keeps what a run took
USUAL = 700 << 20
SPARE = 300 << 20  # stays free for everything else on the machine
CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use: its affinity, and the share that its container is given."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def abreast() -> int:
    """Runs that the cores carry side by side: one a core, fewer where OMP_NUM_THREADS gives each more threads."""
    threads = os.environ.get("OMP_NUM_THREADS", "") if THREADS_CHOSEN else ""
    return max(1, cores() // (int(threads) if threads.isdigit() and int(threads) else 1))


def free() -> int:
    """Bytes that new processes may take before the machine, or the container, runs out of memory."""
    left = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(held.get("inactive_file", 0))
        left = min(left, int((CGROUP / "memory.max").read_text()) - used)
    return left


def needs(heights: Iterable[int]) -> int:
    """Bytes to reserve for a run whose earlier runs took `heights` at most."""
    return max(heights, default=USUAL)


def resident(pid: int) -> int:
    """Bytes that a process and its children hold now; 0 for one that has ended."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for one in family:
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total


def admits(need: int, going: Iterable[tuple[int, int]], abreast: int, left: int | None = None) -> bool:
    """Whether a run that needs `need` bytes may start beside those that go on, each given as (bytes reserved, bytes held).

    A run alone may always start: waiting for memory that nobody of ours will return would be for ever.
    """
    going = list(going)
    if not going:
        return True
    promised = sum(max(0, reserved - held) for reserved, held in going)
    return len(going) < abreast and need + promised + SPARE <= (free() if left is None else left)


def heights(book: Any, runs: Iterable[str]) -> list[int]:
    """The most bytes that each of these runs held, where it was measured."""
    return [int(one["bytes"]) for one in book.latest(EVENT, runs).values()]
