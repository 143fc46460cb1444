"""What people wait for: a notebook through papermill, the list, the first page, a report over several studies.

`python benchmarks/commands.py [--only CASE]`
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Row, command

AREA = "commands"
QUICK = "quantum-well-pinn"
REPORTED = ("convergent-learning", "smooth-gradcam-pp", "trsa")


def clean() -> dict[str, str]:
    """The surroundings of an ordinary shell: Python may keep compiled files."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def listing(rounds: int) -> Iterator[Row]:
    """The catalogue in the terminal."""
    command, took = [sys.executable, "-m", "claimlab.cli", "list"], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=clean())
        took.append(time.perf_counter() - began)
    yield Row(AREA, "claimlab list", "claimlab", statistics.median(took[1:]), "s", goal=0.3)


def first_page(rounds: int) -> Iterator[Row]:
    """The catalogue's first run in a dashboard that has just come up."""
    import live

    took = []
    for _ in range(max(2, rounds // 2)):
        with live.server() as (address, _):
            took.append(asyncio.run(live.visited(address, "")))
    yield Row(AREA, "first dashboard page", "claimlab", statistics.median(took), "s", goal=2.5)


def notebook(rounds: int) -> Iterator[Row]:
    """A notebook at smoke through papermill, over what its cells take: with a kernel from nothing, and with a forked one.

    From the start of the kernel to the written notebook, without the HTML report.
    """
    from claimlab import warm

    for program, kernels, goal in (("kernel from nothing", contextlib.nullcontext, 3.0), ("forked kernel", warm.kernels, 0.5)):
        over, whole, inside = [], [], []
        with kernels():
            for _ in range(max(3, rounds // 2)):
                spent, cells, there = _papermill(QUICK)
                over.append(spent - cells)
                whole.append(spent)
                inside.append(there)
        spent, there = statistics.median(whole[1:]), statistics.median(inside[1:])
        note = f"of {spent:.1f} s in all, {there:.1f} s in the kernel's cells, {spent - there:.1f} s to start and end it"
        yield Row(AREA, f"{QUICK} at smoke, over its cells", program, statistics.median(over[1:]), "s", goal=goal, note=note)


def _papermill(slug: str) -> tuple[float, float, float]:
    """Seconds of papermill, those that the same cells take in a process that has run them before, and those in the kernel."""
    import nbformat

    from claimlab import params, runner, study
    from claimlab.job import Job
    from claimlab.ledger import Ledger, home

    book, wanted = Ledger(), study.find(slug)
    values = wanted.make(params.preset(wanted.Params, "smoke"))
    name = book.start_run(slug, {k: getattr(values, k) for k in values.__dataclass_fields__}, profile="smoke")
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    status, reason = runner._notebook(Job(wanted, values, book, name, folder, profile="smoke"))
    spent = time.perf_counter() - began
    book.close()
    if status != "finished":
        raise RuntimeError(reason)
    done = nbformat.read(folder / "notebook.ipynb", 4)
    return spent, _cells(done), sum(cell.metadata.papermill.duration or 0.0 for cell in done.cells)


def _cells(notebook) -> float:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, took = InteractiveShell.instance(), []
    for _ in range(2):  # the first time some imports are new
        shell.reset(new_session=False)
        began = time.perf_counter()
        with capture_output():
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    shell.run_cell(cell.source).raise_error()
        took.append(time.perf_counter() - began)
    return took[-1]


def report(_rounds: int) -> Iterator[Row]:
    """Several studies at default, one after the other, and in one report on this machine's cores."""
    begin = [sys.executable, "-m", "claimlab.cli"]

    def seconds(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run([*begin, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean())
        return time.perf_counter() - began

    alone = {f"{slug}{more}": seconds("run", slug, *more.split()) for slug in REPORTED for more in ("", " --control")}
    with tempfile.TemporaryDirectory() as out:
        together = seconds("report", *REPORTED, "--force", "-o", out)
    total, case = sum(alone.values()), f"report of {len(REPORTED)} studies at default"
    yield Row(AREA, case, "one after the other", total, "s", note=", ".join(f"{k} {v:.0f}" for k, v in alone.items()))
    yield Row(AREA, case, "claimlab report", together, "s", "one after the other", together / total, 0.6)


CASES = {"list": listing, "page": first_page, "notebook": notebook, "report": report}


def rows(rounds: int = 7, only: str | None = None) -> Iterator[Row]:
    for name, case in CASES.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["CLAIMLAB_HOME"] = str(Path(folder) / "runs")
                yield from case(rounds)


if __name__ == "__main__":
    command(__doc__, CASES, rows)
