"""How long a run will take, from past runs on this machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from panels import store
from panels.wording import span

from claimlab.study import Study

LAST = 5
START = 8.0  # seconds of a run that pass before its first step, whatever its length
NEAR = 4.0  # times as many steps or seeds as a past run had: beyond that an estimate is a guess


def estimate(study: Study, values: Mapping[str, Any], profile: str) -> str:
    """In words how long a run with these knobs takes; empty if none has finished here.

    The past runs nearest in their number of steps and seeds are scaled to the number that is asked for.
    """
    finished = store.ledger().runs(study=study.slug, status="finished", limit=100)
    past = [
        (_more(values, r["params"]), r["ended"] - r["started"], r) for r in finished if r["ended"] and r["ended"] > r["started"]
    ]
    if not past:
        return ""
    near = sorted(past, key=lambda one: (round(abs(math.log(one[0])), 6), one[2]["profile"] != profile))[:LAST]
    near = [one for one in near if one[0] == near[0][0]]
    seconds = statistics.median(min(START, took) + max(0.0, took - START) * more for more, took, _ in near)
    if max(near[0][0], 1 / near[0][0]) > NEAR:
        return f"perhaps {span(seconds)}, a guess from much {'shorter' if near[0][0] > 1 else 'longer'} runs"
    return f"about {span(seconds)}, by {len(near)} past {'run' if len(near) == 1 else 'runs'} on this machine"


def _more(values: Mapping[str, Any], past: Mapping[str, Any]) -> float:
    """How many times the work of a past run is asked for: by steps and seeds, where the study has such knobs."""
    return math.prod(values[k] / past[k] for k in ("steps", "seeds") if values.get(k) and past.get(k))
