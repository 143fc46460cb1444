"""Looks: how often the data may be judged while seeds are added, without buying a false verdict.

The looks are at 5, 10, 20, 40 and 80 seeds. Every one of them uses the same level, wider than 95 %, found so that the intervals of
all looks hold together as well as a single one does: the constant boundary of Pocock (Biometrika 64, 1977, 191-199), worked out
here for looks at doubling numbers by the recursive integration of Armitage, McPherson and Rowe (J. R. Statist. Soc. A 132, 1969,
235-244) and applied as a level, as Jennison and Turnbull do for repeated confidence intervals (J. R. Statist. Soc. B 51, 1989,
305-361). Such intervals allow any rule for when to stop.

What is controlled: for each claim by itself, the chance that it comes out *supported* at any of the looks although its effect is
only the margin. It is that of a single look: 2.5 % (bounds, which are one-sided: 5 %) for normal differences, and below 5 % for a
skewness up to 1 (bounds: 8 %). Between the claims of a study nothing is corrected, with these looks or without. The price is
wider intervals: at five seeds, where the correction for skewness weighs most, twice Student's at the same level on average, at
80 seeds 1.3 times the ordinary one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from claimlab import claims
from claimlab.params import KnobError

if TYPE_CHECKING:
    import pandas as pd

LOOKS = (5, 10, 20, 40, 80)
MARK = ", looks"  # in the profile of such a run: its intervals are not those of an ordinary run with as many seeds
GRID = 401  # points of the integration, an odd number; the bound is then exact to 1e-4
FAR = 8.0  # standard errors beyond which nothing is left


def planned(most: Any) -> tuple[int, ...]:
    """The looks up to `most` seeds, which must be one of LOOKS; KnobError otherwise.

    The level is always that of all five: who ends at 20 seeds may go on to 80 later.
    """
    known = {str(n): n for n in LOOKS}
    if str(most).strip() not in known:
        raise KnobError(f"max-seeds = {most} is not allowed: max-seeds must be one of {', '.join(known)}, where the data are judged")
    return tuple(n for n in LOOKS if n <= known[str(most).strip()])


def crossing(bound: float, times: Sequence[float], sided: int = 2) -> float:
    """The chance that a standardised sum of independent normal values, looked at after `times` of them, passes `bound` once.

    `sided` 2: on either side; 1: upwards.
    """
    import numpy as np

    z = np.linspace(-bound if sided == 2 else -FAR, bound, GRID)
    weights = np.full(GRID, 2 / 3)
    weights[1::2], weights[[0, -1]] = 4 / 3, 1 / 3  # Simpson's rule
    weights *= z[1] - z[0]
    inside = _density(z)
    for before, now in zip(times, times[1:], strict=False):
        kept, spread = math.sqrt(before / now), math.sqrt(1 - before / now)
        inside = _density((z[:, None] - kept * z) / spread) / spread @ (weights * inside)
    return float(1 - weights @ inside)


def _density(z: Any) -> Any:
    import numpy as np

    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def constant(times: Sequence[float], alpha: float = 1 - claims.LEVEL, sided: int = 2) -> float:
    """The bound that is passed at any look with the chance `alpha`."""
    from scipy.optimize import brentq

    return float(brentq(lambda bound: crossing(bound, times, sided) - alpha, 1.0, 6.0, xtol=1e-7))


@lru_cache(maxsize=2)
def level(sided: int = 2) -> float:
    """The level of the interval at each look: 98.7 % in place of 95 %."""
    from scipy.stats import norm

    return float(1 - sided * norm.sf(constant(LOOKS, sided=sided)))


def judge(declared: Iterable[claims.Claim], table: pd.DataFrame) -> list[claims.Verdict]:
    """Every claim judged at one look. A theorem has no sampling error and needs no correction."""
    return [claims.judge(claim, table, level=level(1 if claim.kind == "bound" else 2)) for claim in declared]


def open_claims(verdicts: Iterable[claims.Verdict]) -> list[str]:
    """The claims that more seeds could decide: those whose interval contains the margin. One with a diverged member is not."""
    return [v.claim for v in verdicts if v.verdict == "undecided" and v.low is not None]


def facts(verdict: claims.Verdict, claim: claims.Claim, seeds: int) -> dict[str, Any]:
    """A verdict at a look as the ledger keeps it: its sentence says how wide the interval is and why."""
    found = verdict.as_dict()
    if verdict.low is None or claim.kind == "equality":
        return found
    width = level(1 if claim.kind == "bound" else 2)
    said = f" The interval is at {100 * width:.1f} %, so that looking at {', '.join(map(str, LOOKS))} seeds buys no verdict."
    return {**found, "sentence": verdict.sentence + said, "level": width, "look": seeds}
