"""Claims and verdicts: a sentence of a paper with a margin set in advance, and the pure function that judges it on data.

The tidy table has the columns study, arm, seed, step, metric, value. A claim reads, for each seed, the value of its metric
at the last recorded step.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

KINDS = ("paired", "bound", "rate", "equality")
LEAST_PAIRS = 5
LEVEL = 0.95
SKEWNESS = 0.6


@dataclass(frozen=True)
class Claim:
    """One claim. `paired` compares arm with baseline over the same seeds; `bound` and `rate` compare the arm's value
    (a rate is a slope or exponent) with the number `margin`; `equality` is a theorem: every case within `margin`."""

    id: str
    text: str
    kind: str
    metric: str
    arm: str
    margin: float
    better: str
    baseline: str | None = None
    source: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"claim {self.id}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"claim {self.id}: better {self.better!r} is not higher or lower")
        if (self.kind == "paired") != (self.baseline is not None):
            raise ValueError(f"claim {self.id}: a paired claim names its baseline, the other kinds have none")
        if not math.isfinite(self.margin):
            raise ValueError(f"claim {self.id}: margin {self.margin} is not a number")

    @property
    def threshold(self) -> float:
        """The number that the effect has to pass, in the sign of the raw effect (arm - baseline, or value)."""
        return -self.margin if self.kind == "paired" and self.better == "lower" else self.margin


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim. `effect` with its interval [low, high] over `n` seeds is in the metric's unit;
    `values` holds the effect of each seed. An undecided verdict says why in `reason`."""

    claim: str
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    n: int
    sentence: str
    reason: str = ""
    threshold: float | None = None
    values: tuple[tuple[int, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: an unbounded side of an interval is None."""
        found = asdict(self)
        for name in ("effect", "low", "high"):
            if found[name] is not None and not math.isfinite(found[name]):
                found[name] = None
        found["values"] = [list(pair) for pair in self.values]
        return found


@lru_cache(maxsize=256)
def _quantile(share: float, freedom: int) -> float:
    """Student's quantile; a curve asks for the same one at every step."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, without the second that scipy.stats takes to load

    return float(stdtrit(freedom, share))


def interval(values: np.ndarray, level: float = LEVEL, sided: int = 2) -> tuple[float, float]:
    """Interval of the mean of `values` [n]: the hull of Student's interval and Hall's skewness-corrected one.

    Student's interval is exact for normal values and conservative for heavy symmetric tails (Student t with 3 degrees of
    freedom: false support below 2.5 %). A long tail on the far side breaks it at small n (exponential differences, n = 5:
    11 % instead of 2.5 %). Hall's cubic transformation (J. R. Statist. Soc. B 54, 1992, 221-228) corrects for skewness; the
    hull of both keeps false support at or below 5 % for a skewness up to about 1, at 5.5 % for 1.4 and at 8 % for the
    exponential at n = 5. The skewness used is capped at 0.6, where the transformation is still well inside its range, so
    that the interval is at most 1.5 times Student's at n = 5. No interval from five values is honest for a log-normal with
    sigma = 1: look at the lines of the seeds. `sided=1` gives both one-sided bounds at `level`: false support is then at or
    below 5 % for normal and heavy symmetric tails, but 7 % for a skewness of 1 and 13 % for the exponential at n = 5.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    n, mean, sd = len(values), values.mean(), values.std(ddof=1)
    if sd <= 1e-15 * abs(mean):  # relative, so that the unit of the metric does not matter
        return float(mean), float(mean)
    q = _quantile(1 - (1 - level) / sided, n - 1)
    low, high = mean - q * sd / math.sqrt(n), mean + q * sd / math.sqrt(n)
    if n < 3:
        return float(low), float(high)
    scaled = (values - mean) / sd
    skew = (scaled**3).mean() / (scaled**2).mean() ** 1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    skew = min(max(skew, -SKEWNESS), SKEWNESS)
    if abs(skew) < 1e-6:
        return float(low), float(high)

    def invert(quantile: float) -> float:
        inner = 1 + skew * (quantile / math.sqrt(n) - skew / (6 * n))
        return 3 / skew * (np.cbrt(inner) - 1)

    return float(min(low, mean - sd * invert(q))), float(max(high, mean - sd * invert(-q)))


def judge(claim: Claim, table: pd.DataFrame, level: float = LEVEL) -> Verdict:
    """Judge one claim on the tidy table: *supported* if the whole interval lies past the margin, *refuted* if it lies
    wholly short of it, else *undecided*. A missing, NaN or diverged member makes the claim undecided, with the reason."""
    effects, reason = _effects(claim, table)
    if reason:
        return _undecided(claim, effects, reason)
    import numpy as np

    per_seed = np.array(list(effects.values()))
    if claim.kind == "equality":
        worst = per_seed.max() if claim.better == "lower" else per_seed.min()
        effect, low, high = float(worst), float(per_seed.min()), float(per_seed.max())
    else:
        effect = float(per_seed.mean())
        low, high = interval(per_seed, level, sided=1 if claim.kind == "bound" else 2)
    decided = _decide(claim, low, high)
    sentence = _sentence(claim, decided, effect, low, high, len(per_seed))
    return Verdict(claim.id, decided, effect, low, high, len(per_seed), sentence,
                   reason="" if decided != "undecided" else "the interval contains the margin",
                   threshold=claim.threshold, values=tuple(effects.items()))  # fmt: skip


def _decide(claim: Claim, low: float, high: float) -> str:
    edge = claim.threshold
    if claim.kind == "equality":
        holds = high <= edge if claim.better == "lower" else low >= edge
        return "supported" if holds else "refuted"
    past, short = (low > edge, high < edge) if claim.better == "higher" else (high < edge, low > edge)
    return "supported" if past else "refuted" if short else "undecided"


def _effects(claim: Claim, table: pd.DataFrame) -> tuple[dict[int, float], str]:
    """The effect of each seed, and the reason why it cannot be judged ('' if it can)."""
    arms = [claim.arm] + ([claim.baseline] if claim.baseline else [])
    last: dict[str, dict[int, float]] = {}
    for arm in arms:
        rows = table[(table["arm"] == arm) & (table["metric"] == claim.metric)]
        if rows.empty:
            return {}, f"arm {arm} recorded no {claim.metric}"
        ends = rows.sort_values("step", kind="stable").groupby("seed").tail(1)  # of one step written twice the later row
        if early := sorted(ends.loc[ends["step"] < rows["step"].max(), "seed"]):
            return {}, f"arm {arm} ended early at seed {', '.join(map(str, early))}"
        last[arm] = ends.set_index("seed")["value"].to_dict()
    return _compare(claim, table, arms, last)


def _compare(claim, table, arms, last) -> tuple[dict[int, float], str]:
    # a seed that any arm trained counts as expected, whether or not it reached its last metric
    expected = sorted({int(s) for s in table.loc[table["arm"].isin(arms), "seed"].unique()})
    if len(expected) < (least := {"paired": LEAST_PAIRS, "equality": 1}.get(claim.kind, 2)):
        return {}, f"{len(expected)} seeds are too few: a {claim.kind} claim needs at least {least}"
    for arm in arms:
        if missing := [s for s in expected if s not in last[arm]]:
            return {}, f"arm {arm} has no {claim.metric} for seed {', '.join(map(str, missing))}"
        if bad := [s for s in expected if not math.isfinite(last[arm][s])]:
            return {}, f"arm {arm} diverged or gave no number for {claim.metric} at seed {', '.join(map(str, bad))}"
    sign = last[claim.baseline] if claim.baseline else dict.fromkeys(expected, 0.0)
    return {s: float(last[claim.arm][s] - sign[s]) for s in expected}, ""


def _undecided(claim: Claim, effects: dict, reason: str) -> Verdict:
    return Verdict(claim.id, "undecided", None, None, None, len(effects), f"Undecided: {reason}.", reason=reason,
                   threshold=claim.threshold, values=tuple(effects.items()))  # fmt: skip


def _sentence(claim: Claim, decided: str, effect: float, low: float, high: float, n: int) -> str:
    measured = f"{claim.metric} of {claim.arm}" + (f" minus {claim.baseline}" if claim.baseline else "")
    if claim.kind == "equality":
        within = "at most" if claim.better == "lower" else "at least"
        return f"{decided.capitalize()}: the worst {measured} is {effect:.3g} (n = {n}), and the claim needs {within} {claim.margin:g}."
    numbers = f"{measured} is {effect:+.3g} [{low:+.3g}, {high:+.3g}], n = {n}"
    side = "above" if claim.better == "higher" else "below"
    if decided == "supported":
        return f"Supported: {numbers}, wholly {side} the margin {claim.threshold:+g}."
    if decided == "undecided":
        return f"Undecided: {numbers}, which contains the margin {claim.threshold:+g}."
    return f"Refuted: {numbers}, wholly short of the margin {claim.threshold:+g}; {_how_refuted(claim, low, high)}."


def _how_refuted(claim: Claim, low: float, high: float) -> str:
    if claim.kind != "paired":
        return "the bound is missed"
    opposite = high < 0 if claim.better == "higher" else low > 0
    same = low > 0 if claim.better == "higher" else high < 0
    if opposite:
        return "the data say the opposite"
    return "the effect is real but too small to matter" if same else "no effect that would matter"


def says_nothing(verdict: str, under_control: str | None) -> bool:
    """A claim that is supported under its negative control as well says nothing about its cause."""
    return verdict == "supported" and under_control == "supported"
