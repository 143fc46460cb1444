"""A plan: the settings of a sweep as points, by a grid, by a sample, or by both, each with the same seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from claimlab import params
from claimlab.params import KnobError
from claimlab.study import Study, StudyError
from claimlab.sweeps.space import Axis, knob_of

METHODS = ("sobol", "lhs")
MOST = 20_000


@dataclass(frozen=True)
class Plan:
    """What a sweep runs: every value of `points` (knob values, without what is fixed) for each of `seeds`.

    `about` says in plain data how the points came about; `words` is the knob space in a sentence; `left_out` counts drawn points
    that contradict the study's own rules. `judged` false: development seeds, whose numbers no verdict is made of.
    """

    study: Study
    kind: str
    profile: str
    fixed: dict[str, Any]
    seeds: tuple[int, ...]
    points: tuple[dict[str, Any], ...]
    about: dict[str, Any]
    words: str
    judged: bool = True
    left_out: int = 0
    _made: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def values(self, number: int) -> dict[str, Any]:
        """All knob values of a point, checked."""
        if number not in self._made:
            self._made[number] = setting(self.study, self.profile, self.fixed, self.points[number], len(self.seeds))
        return self._made[number]

    def as_dict(self) -> dict[str, Any]:
        """The plan as it is kept beside the sweep: everything but the points."""
        return {"study": self.study.slug, "kind": self.kind, "profile": self.profile, "fixed": self.fixed, "seeds": list(self.seeds),
                "about": self.about, "words": self.words, "judged": self.judged, "left_out": self.left_out}  # fmt: skip

    @property
    def mark(self) -> str:
        """A short hash of the plan with its points: the same command gives the same mark."""
        facts = {k: v for k, v in self.as_dict().items() if k != "words"}
        return hashlib.sha256(json.dumps([facts, self.points], sort_keys=True, default=str).encode()).hexdigest()[:8]

    def key(self, number: int, versions: dict[str, str]) -> str:
        """What the run of a point depends on, as a hash: study, knob values, seeds, sources and libraries."""
        facts = [self.study.slug, self.values(number), list(self.seeds), self.judged,
                 {k: v for k, v in versions.items() if k != "notebook"}]  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def setting(study: Study, profile: str, fixed: dict[str, Any], point: dict[str, Any], seeds: int) -> dict[str, Any]:
    """The knob values of one point; KnobError where the study does not allow them."""
    return params.values(study.make({**fixed, **point, "seeds": seeds}, profile))


def make(study: Study, grids: Sequence[Axis] = (), drawn: Sequence[Axis] = (), *, sample: int = 0, method: str = "sobol",
         seeds: int | Sequence[int] = 5, fixed: dict[str, Any] | None = None, profile: str = "default", design_seed: int = 0,
         kind: str = "sweep", judged: bool = True) -> Plan:  # fmt: skip
    """The plan of a sweep: the product of all grids, for each of `sample` points drawn over the axes `drawn`.

    KnobError for a grid that holds a setting which the study does not allow; such points of a sample are left out and counted.
    """
    import numpy as np

    fixed = checked(study, fixed or {})
    _refuse_twice([*grids, *drawn], fixed)
    if not grids and not drawn:
        raise StudyError("a sweep needs --grid knob=a,b,c or --sample N")
    squares = [dict(zip([a.knob.name for a in grids], row, strict=True)) for row in itertools.product(*(a.values for a in grids))]
    shares = draw(len(drawn), sample, method, np.random.default_rng(design_seed)) if drawn else np.zeros((1, 0))
    cloud = [{a.knob.name: a.at(float(u)) for a, u in zip(drawn, row, strict=True)} for row in shares]
    if len(squares) * len(cloud) > MOST:
        raise StudyError(f"{len(squares) * len(cloud):,} settings are too many for one sweep; at most {MOST:,}")
    points = [{**square, **one} for one in cloud for square in squares]
    about = {"grid": {a.knob.name: list(a.values) for a in grids}, "sample": sample if drawn else 0, "method": method if drawn else "",
             "drawn": [a.knob.name for a in drawn], "design_seed": design_seed if drawn else None}  # fmt: skip
    words = space_in_words(study, grids, drawn, profile, fixed)
    return listed(study, points, kind=kind, seeds=seeds, fixed=fixed, profile=profile, about=about, words=words, judged=judged,
                  whole=not drawn)  # fmt: skip


def listed(study: Study, points: Sequence[dict[str, Any]], *, kind: str, seeds: int | Sequence[int], fixed: dict[str, Any] | None,
           profile: str, about: dict[str, Any], words: str, judged: bool = True, whole: bool = False) -> Plan:  # fmt: skip
    """The plan of points that are given. Those that the study refuses are left out; KnobError if `whole` or if none is left."""
    fixed, numbers = checked(study, fixed or {}), tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    kept, refusals = _allowed(study, profile, fixed, points, len(numbers))
    if refusals and (whole or not kept):
        raise KnobError(f"{len(refusals)} of {len(points)} settings are not allowed; the first: {refusals[0]}")
    return Plan(study, kind, profile, fixed, numbers, tuple(kept), about, words, judged, len(refusals))


def draw(dimensions: int, count: int, method: str, rng: Any) -> Any:
    """`count` points of the unit cube [count, dimensions] that fill it evenly: scrambled Sobol' points or a Latin hypercube."""
    import warnings

    from scipy.stats import qmc

    if method not in METHODS:
        raise StudyError(f"method = {method!r} is not allowed: one of {', '.join(METHODS)}")
    if count < 1:
        raise StudyError(f"sample = {count} is not allowed: it must be at least 1")
    if method == "lhs":
        return qmc.LatinHypercube(dimensions, rng=rng).random(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no power of two: less even, and the help text says so
        return qmc.Sobol(dimensions, rng=rng).random(count)


def space_in_words(study: Study, grids: Sequence[Axis], drawn: Sequence[Axis], profile: str, fixed: dict[str, Any]) -> str:
    """Which settings the sweep stands for: what varies and where, and what does not."""
    varied = [a.words for a in (*grids, *drawn)]
    names = {a.knob.name for a in (*grids, *drawn)}
    usual = {k.name: k.default for k in study.knobs} | params.preset(study.Params, profile) | fixed
    rest = [f"{name} = {value}" for name, value in usual.items() if name not in names and name != "seeds"]
    return "; ".join(varied) + ("; all else as " + ", ".join(rest) if rest else "")


def checked(study: Study, fixed: dict[str, Any]) -> dict[str, Any]:
    """Knob values that all runs share, as the study declares them; KnobError for one that it does not allow."""
    return {name: knob_of(study, name).check(value) for name, value in fixed.items()}


def _refuse_twice(axes: Sequence[Axis], fixed: dict[str, Any]) -> None:
    names = [a.knob.name for a in axes] + list(fixed)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise KnobError(f"{', '.join(twice)} is given twice; a knob is fixed, or on a grid, or drawn")


def _allowed(study: Study, profile: str, fixed: dict, points: Sequence[dict], seeds: int) -> tuple[list[dict], list[str]]:
    kept, refusals = [], []
    for point in points:
        try:
            setting(study, profile, fixed, point, seeds)
            kept.append(point)
        except KnobError as error:
            refusals.append(str(error))
    return kept, refusals
