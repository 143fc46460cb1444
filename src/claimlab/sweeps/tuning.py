"""The same grid for every arm, so that no arm wins by a better tuned knob: on development seeds, which no verdict is made of.

Each value of the grid is one run, in which all arms have that value; the best value of each arm is read off the table. All scores
are kept in data/tuned.csv with the value of each seed, so that what a study's defaults cost an arm can be told at any time.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimlab import claims
from claimlab import study as studies
from claimlab.params import Knob, KnobError
from claimlab.study import Study, StudyError
from claimlab.sweeps import plan as plans
from claimlab.sweeps import space
from claimlab.sweeps.plan import Plan
from claimlab.sweeps.space import Axis

if TYPE_CHECKING:
    import pandas as pd

FIRST = 1000  # development seeds begin here
FACTORS = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)
FIELDS = ("study", "arm", "knob", "value", "metric", "score", "seeds", "grid", "date", "versions", "better", "best", "values", "at")
VALIDATION = re.compile(r"(^|_)val(id(ation)?)?(_|$)")
COST = re.compile(r"loss|error|mse|nll|mmd|perplexity|distance|regret")


@dataclass(frozen=True)
class Score:
    """How well one arm did at one value: the metric of each development seed at the last step, and the mean of them."""

    arm: str
    value: Any
    values: dict[int, float]

    @property
    def score(self) -> float:
        """NaN where a seed diverged or recorded nothing."""
        return sum(self.values.values()) / len(self.values) if self.values else math.nan


@dataclass(frozen=True)
class Tuning:
    """The scores of all arms over the grid of one knob. `why` says how the metric was chosen, `at` which other knobs, or which
    profile, are not the study's defaults ('' where all are)."""

    study: str
    knob: str
    metric: str
    better: str
    why: str
    seeds: tuple[int, ...]
    grid: tuple
    scores: tuple[Score, ...]
    at: str = ""

    def best(self, arm: str) -> Score | None:
        """The best value of an arm, the first of equals; None where it diverged at all of them."""
        known = [one for one in self.scores if one.arm == arm and math.isfinite(one.score)]
        return max(known, key=lambda one: one.score if self.better == "higher" else -one.score, default=None)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(one.arm for one in self.scores))


@dataclass(frozen=True)
class TunedEqually:
    """Whether the arms of a study are tuned equally: True, False, or None where nobody has looked; and why."""

    answer: bool | None
    sentence: str

    @property
    def word(self) -> str:
        return {True: "yes", False: "no", None: "not looked at"}[self.answer]


# ---- the runs


def design(study: Study, name: str, grid: str = "", *, seeds: int = 5, fixed: dict[str, Any] | None = None,
           profile: str = "default") -> Plan:  # fmt: skip
    """The runs of a tuning: each value of the grid of a knob, on the development seeds 1000, 1001, ..."""
    knob = space.knob_of(study, name)
    here = getattr(study.make(fixed or {}, profile), name)
    axis = space.grid(study, f"{name}={grid}") if grid else around(knob, here)
    if len(axis.values) < 2:
        raise KnobError(f"{name}: one value is no grid to choose from")
    return plans.make(study, [axis], seeds=range(FIRST, FIRST + seeds), fixed=fixed, profile=profile, kind="tune", judged=False)


def elsewhere(plan: Plan) -> str:
    """In what the runs of a tuning differ from the study's defaults, in words."""
    profile = [] if plan.profile == "default" else [f"profile {plan.profile}"]
    return ", ".join(profile + [f"{name} = {value}" for name, value in plan.fixed.items()])


def around(knob: Knob, here: Any) -> Axis:
    """The grid that a knob is tuned over where none is given: a tenth to ten times its value `here` in five equal factors, all of
    its choices, or five equal steps of its range where it is not positive; always with `here` among them."""
    if knob.choices is not None:
        return Axis(knob, knob.choices)
    if here > 0:
        found = [knob.type(float(f"{here * f:.3g}")) for f in FACTORS]
    else:
        found = list(Axis(knob, (), knob.low, knob.high).spread(5).values)
    return Axis(knob, tuple(sorted({min(max(v, knob.type(knob.low)), knob.type(knob.high)) for v in found} | {here})))


# ---- the scores


def scores(study: Study, knob: str, tables: dict[Any, pd.DataFrame], seeds: Sequence[int], metric: str = "",
           better: str = "", at: str = "") -> Tuning:  # fmt: skip
    """The scores of every arm that records the metric, from the table of the run at each value of the knob.

    The metric is the study's validation metric where it has one, else that of its first paired claim, unless one is given.
    """
    recorded: dict[str, set[str]] = {}
    for table in tables.values():
        for arm, name in table[["arm", "metric"]].drop_duplicates().itertuples(index=False):
            recorded.setdefault(name, set()).add(arm)
    metric, better, why = _metric(study, recorded, metric, better)
    arms = [arm for arm in dict.fromkeys(a for t in tables.values() for a in t["arm"].unique()) if arm in recorded[metric]]
    found = [Score(arm, value, _last(table, arm, metric, seeds)) for arm in arms for value, table in tables.items()]
    return Tuning(study.slug, knob, metric, better, why, tuple(seeds), tuple(tables), tuple(found), at)


def _metric(study: Study, recorded: dict[str, set[str]], metric: str, better: str) -> tuple[str, str, str]:
    """The metric, which way is better, and how both were chosen."""
    claim = next((c for c in study.claims if c.kind == "paired"), study.claims[0])
    known = {c.metric: c.better for c in study.claims if c.kind == "paired"}
    compared = {claim.arm, claim.baseline} - {None}
    if metric and metric not in recorded:
        near = difflib.get_close_matches(metric, recorded, n=1, cutoff=0.4)
        raise StudyError(f"no arm of {study.slug} records {metric}" + (f"; did you mean {near[0]}?" if near else "")
                         + f" Metrics: {', '.join(sorted(recorded))}")  # fmt: skip
    why = "as asked for"
    if not metric:
        valid = [name for name in sorted(recorded) if VALIDATION.search(name) and compared <= recorded[name]]
        metric = max(valid, key=lambda n: difflib.SequenceMatcher(None, n, claim.metric).ratio(), default=claim.metric)
        why = "the study's validation metric" if valid else f"the metric of the claim {claim.id}, since no arm records a validation metric"
    if metric not in recorded:
        raise StudyError(f"no run recorded {metric}, so that no value can be chosen")
    return metric, better or known.get(metric) or ("lower" if COST.search(metric) else "higher"), why


def _last(table: pd.DataFrame, arm: str, metric: str, seeds: Sequence[int]) -> dict[int, float]:
    rows = table[(table["arm"] == arm) & (table["metric"] == metric)].sort_values("step", kind="stable")
    last = rows.groupby("seed").tail(1).set_index("seed")["value"]
    return {seed: float(last.get(seed, math.nan)) for seed in seeds}


# ---- what is kept


def file() -> Path:
    """Where tunings are kept."""
    return studies.root() / "data" / "tuned.csv"


def record(one: Tuning, versions: dict[str, str], path: Path | None = None) -> Path:
    """Write a tuning in the place of an older one of the same study and knob; the path of the file."""
    path = path or file()
    kept = [row for row in read(path) if (row["study"], row["knob"]) != (one.study, one.knob)]
    shared = {"study": one.study, "knob": one.knob, "metric": one.metric, "better": one.better, "date": time.strftime("%Y-%m-%d"),
              "seeds": " ".join(map(str, one.seeds)), "grid": " ".join(map(str, one.grid)), "at": one.at,
              "versions": _in_short({k: v for k, v in versions.items() if k != "notebook"})}  # fmt: skip
    kept += [{**shared, "arm": s.arm, "value": s.value, "score": f"{s.score:.6g}", "best": s is one.best(s.arm),
              "values": " ".join(f"{v:.6g}" for v in s.values.values())} for s in one.scores]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept, key=lambda row: (row["study"], row["knob"])))
    part.replace(path)
    return path


def _in_short(versions: dict[str, Any]) -> str:
    """Libraries with their versions, and one hash each for all sources and for all data."""
    told = []
    for name, found in versions.items():
        if isinstance(found, dict):
            found = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12] if found else ""
        told += [f"{name}={found}"] if found else []
    return " ".join(told)


def read(path: Path | None = None) -> list[dict[str, str]]:
    """The rows of the file; none where there is none."""
    path = path or file()
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def tuned_equally(study: Study, path: Path | None = None) -> TunedEqually:
    """Whether no arm of a study wins by a better tuned knob: every arm that a claim compares was tried over the same grid on the
    same development seeds, and none of them does better at another value than at the study's default, beyond the luck of the seeds.
    """
    rows = [row for row in read(path) if row["study"] == study.slug]
    if not rows:
        return TunedEqually(None, f"No grid has been run for {study.slug}: claimlab tune {study.slug} --knob NAME.")
    names = dict.fromkeys(row["knob"] for row in rows)
    found = [_equally(study, name, [row for row in rows if row["knob"] == name]) for name in names]
    return TunedEqually(all(one.answer for one in found), " ".join(one.sentence for one in found))


def _equally(study: Study, name: str, rows: list[dict[str, str]]) -> TunedEqually:
    first, knobs = rows[0], {k.name: k for k in study.knobs}
    pairs = {arm for c in study.claims if c.kind == "paired" for arm in (c.arm, c.baseline)}
    compared = sorted(pairs or {row["arm"] for row in rows})
    what = f"{name} over {first['grid'].replace(' ', ', ')} on the seeds {_span(first['seeds'])} by {first['metric']}"
    if missing := [arm for arm in compared if arm not in {row["arm"] for row in rows}]:
        return TunedEqually(False, f"{name}: {', '.join(missing)} has no score in {first['metric']}, so that not all arms were tuned.")
    if any((row["grid"], row["seeds"], row["metric"]) != (first["grid"], first["seeds"], first["metric"]) for row in rows):
        return TunedEqually(False, f"{name}: the arms were tuned on different grids, seeds or metrics.")
    if name not in knobs or min(map(int, first["seeds"].split())) < FIRST:
        return TunedEqually(False, f"{name}: it is no knob any more, or was tuned on seeds that are judged.")
    if first["at"]:
        return TunedEqually(False, f"{name}: it was tuned at {first['at']}, and not at the study's defaults.")
    here = knobs[name].default
    if not any(_same(row["value"], here) for row in rows):
        return TunedEqually(False, f"{name}: the study runs at {here}, which is not on the grid {first['grid'].replace(' ', ', ')}.")
    worse = [told for arm in compared if (told := _loss(arm, [r for r in rows if r["arm"] == arm], here))]
    if worse:
        return TunedEqually(False, f"Tuned {what}: at the default {here}, " + "; ".join(worse) + ".")
    return TunedEqually(True, f"Tuned {what}: no arm does better at another value than at the default {here}.")


def _loss(arm: str, rows: list[dict[str, str]], here: Any) -> str:
    """In words how much better an arm does at its best value than at `here`, if that is more than the luck of the seeds."""
    at, top = (next((r for r in rows if test(r)), None) for test in (lambda r: _same(r["value"], here), lambda r: r["best"] == "True"))
    if top is None:
        return f"{arm} diverges at every value"
    if at is top:
        return ""
    one, other = ([float(v) for v in row["values"].split()] for row in (top, at))
    sign = 1.0 if top["better"] == "higher" else -1.0
    gains = [sign * (a - b) for a, b in zip(one, other, strict=True)]
    if not all(map(math.isfinite, gains)):
        return f"{arm} diverges, and does not at {top['value']}"
    low, high = claims.interval(gains) if len(gains) > 1 else (min(gains), max(gains))
    told = f"{arm} does worse than at {top['value']} by {sum(gains) / len(gains):.3g} [{low:.3g}, {high:.3g}], n = {len(gains)}"
    return told if low > 0 else ""


def at_the_end(one: Tuning, arm: str) -> bool:
    """Whether the best value of an arm is the first or last of a grid of numbers, so that a better one may lie beyond."""
    best, numbers = one.best(arm), [v for v in one.grid if isinstance(v, int | float) and not isinstance(v, bool)]
    return bool(best and len(numbers) == len(one.grid) and best.value in (min(numbers), max(numbers)))


def _same(text: str, value: Any) -> bool:
    try:
        return math.isclose(float(text), float(value), rel_tol=1e-9)
    except (TypeError, ValueError):
        return text == str(value)


def _span(seeds: str) -> str:
    numbers = seeds.split()
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else seeds


