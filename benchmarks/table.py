"""What a benchmark found, as rows: printed as they come, kept in `results.csv`, drawn on `results.html`.

Times are medians over rounds in which all programs take turns; only ratios within one run are compared with a goal.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One program in one case. `ratio` is its value by that of `against`; `goal` the largest ratio (or value, without one)."""

    area: str
    case: str
    program: str
    value: float | None
    unit: str
    against: str = ""
    ratio: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none or nothing was measured."""
        reached = self.value if self.ratio is None else self.ratio
        return None if self.goal is None or reached is None else reached <= self.goal

    def __str__(self) -> str:
        value = "not there" if self.value is None else f"{self.value:.3f} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:6.3f} of {self.against}"
        judged = {True: "reached", False: "missed", None: "not measured"}[self.met]
        goal = "" if self.goal is None else f"goal {self.goal:g}: {judged}"
        return f"{self.case:36} {self.program:22} {value:>16}  {ratio:26} {goal} {self.note}".rstrip()


def turns(programs: dict[str, Callable[[], float | None]], calls: int, rounds: int) -> dict[str, float]:
    """Median milliseconds a call of each program, in turns, after calls that do not count.

    A program that gives a number gives the seconds itself, and is called once a round.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        if program() is None:
            for _ in range(max(3, calls // 10)):
                program()
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            told = program()
            for _ in range(calls - 1 if told is None else 0):
                program()
            times[name].append(1e3 * ((time.perf_counter() - began) / calls if told is None else told))
    return {name: statistics.median(spent) for name, spent in times.items()}


def absent(area: str, case: str, program: str, error: ImportError) -> Row:
    """The row of a peer that is not there."""
    return Row(area, case, program, None, "ms", note=f"needs {error.name}")


def keep(rows: Iterable[Row], path: Path = FOLDER / "results.csv") -> list[Row]:
    """Print the rows as they come and write them with those of other areas that were measured before; all that stand now."""
    new = []
    for row in rows:
        print(row, flush=True)
        new.append(row)
    areas = {row.area for row in new}
    every = [row for row in read(path) if row.area not in areas] + new
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()} for row in every)
    return every


def command(doc: str, cases: Iterable[str], rows: Callable[..., Iterator[Row]]) -> None:
    """The command of an area's file: all its cases, kept, or with `--only` one of them, printed alone."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--only", choices=list(cases))
    only = parser.parse_args().only
    if only is None:
        keep(rows())
    for row in rows(only=only) if only else ():
        print(row, flush=True)


def read(path: Path = FOLDER / "results.csv") -> Iterator[Row]:
    """The rows of a file, or none where it is not there."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                numbers = {k: float(line[k]) if line[k] else None for k in ("value", "ratio", "goal")}
                yield Row(**(line | numbers))
