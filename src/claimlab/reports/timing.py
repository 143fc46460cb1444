"""How long a run will take, from past runs on this machine, and how long a whole report has still to go."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LAST = 5
START = 8.0  # seconds of a run that pass before its first step, whatever its length
UNKNOWN = 60.0  # seconds that are assumed of a run while nothing at all is known


@dataclass(frozen=True)
class Estimate:
    """`seconds` a run will take, by `runs` past ones that had `1 / more` times its steps and seeds."""

    seconds: float
    runs: int
    more: float


def expected(past: Iterable[dict[str, Any]], values: Mapping[str, Any], profile: str) -> Estimate | None:
    """How long a run with these knobs takes, by finished runs of the same study; None if there is none.

    The past runs nearest in their number of steps and seeds are scaled to the number that is asked for.
    """
    known = [(_more(values, r["params"]), r["ended"] - r["started"], r) for r in past if r["ended"] and r["ended"] > r["started"]]
    if not known:
        return None
    near = sorted(known, key=lambda one: (round(abs(math.log(one[0])), 6), one[2]["profile"] != profile))[:LAST]
    near = [one for one in near if one[0] == near[0][0]]
    seconds = statistics.median(min(START, took) + max(0.0, took - START) * more for more, took, _ in near)
    return Estimate(seconds, len(near), near[0][0])


def _more(values: Mapping[str, Any], past: Mapping[str, Any]) -> float:
    """How many times the work of a past run is asked for: by steps and seeds, where the study has such knobs."""
    return math.prod(values[k] / past[k] for k in ("steps", "seeds") if values.get(k) and past.get(k))


@dataclass
class Work:
    """One run of a report as the clock sees it: seconds expected (None: unknown), seconds spent, share of its steps done."""

    expected: float | None
    spent: float = 0.0
    share: float = 0.0
    over: bool = False

    def total(self, otherwise: float) -> float:
        """Seconds of the whole run: what was expected, corrected by how fast it goes the further it is."""
        prior = max(otherwise if self.expected is None else self.expected, self.spent)
        if self.over:
            return max(self.spent, 0.01)
        told = (1 - self.share) * prior + self.spent if self.share > 0.02 else prior
        return max(told, 1.1 * self.spent + 1.0)  # what goes on is not done


def progress(works: list[Work], abreast: int) -> tuple[float, float | None]:
    """The share of all work that is done, and the seconds that are left when `abreast` runs go side by side; None while
    nothing is known of any run."""
    known = [w.total(0.0) for w in works if w.expected is not None or w.over]
    otherwise = statistics.mean(known) if known else UNKNOWN
    totals = [w.total(otherwise) for w in works]
    if not totals:
        return 1.0, 0.0
    left = [0.0 if w.over else max(0.0, t - w.spent) for w, t in zip(works, totals, strict=True)]
    share = 1 - sum(left) / sum(totals)
    if not any(left):
        return 1.0, 0.0
    return share, max(sum(left) / abreast, max(left)) if known else None


def span(seconds: float) -> str:
    """A duration: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
