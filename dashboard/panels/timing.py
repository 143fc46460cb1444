"""How long a run will take, from past runs on this machine, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panels import store
from panels.wording import span

from claimlab.reports import timing
from claimlab.study import Study

NEAR = 4.0  # times as many steps or seeds as a past run had: beyond that an estimate is a guess


def estimate(study: Study, values: Mapping[str, Any], profile: str) -> str:
    """In words how long a run with these knobs takes; empty if none has finished here."""
    found = timing.expected(store.ledger().runs(study=study.slug, status="finished", limit=100), values, profile)
    if found is None:
        return ""
    if max(found.more, 1 / found.more) > NEAR:
        return f"perhaps {span(found.seconds)}, a guess from much {'shorter' if found.more > 1 else 'longer'} runs"
    return f"about {span(found.seconds)}, by {found.runs} past {'run' if found.runs == 1 else 'runs'} on this machine"
