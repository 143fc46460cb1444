"""Which knob moves a claim: Sobol' or Morris indices of its effect over the study's knobs, by SALib, and what they mean in words.

Sobol' (1993) splits the variance of the effect over the knob space among the knobs: the first-order index is the share that one knob
explains by itself, the total index (Homma and Saltelli 1996) the share that would vanish if that knob were held. Morris (1991)
needs fewer runs: mu* is the mean size of the change of the effect when one knob is moved over its whole range, sigma how much that
change differs from place to place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claimlab.claims import Claim
from claimlab.params import KnobError
from claimlab.study import Study, StudyError
from claimlab.sweeps import plan as plans
from claimlab.sweeps import results
from claimlab.sweeps.plan import Plan
from claimlab.sweeps.space import Axis

if TYPE_CHECKING:
    import plotly.graph_objects as go

METHODS = ("sobol", "morris")
LEVELS = 4  # of Morris' grid
RESAMPLES = 500
LEAST = 4  # base points or trajectories that an analysis needs
NOISY = 0.1
WIDE = 0.3


@dataclass(frozen=True)
class Influence:
    """One knob. Sobol': `first` and `total` index; Morris: `total` is mu* and `first` sigma, both in the unit of the effect.
    `first_error` and `total_error` are half widths of the 95 % bootstrap interval (sigma has none)."""

    knob: str
    first: float
    total: float
    first_error: float
    total_error: float


@dataclass(frozen=True)
class Indices:
    """The indices of one claim, largest first. `runs` were analysed; `dropped` base points or trajectories had a run without an
    effect. `noise` is the share of the variance of the effect that is left to the choice of seeds."""

    claim: str
    method: str
    influences: tuple[Influence, ...]
    mean: float
    spread: float
    runs: int
    dropped: int
    noise: float
    words: str

    @property
    def sentences(self) -> list[str]:
        """What the indices say, knob by knob, and how far to trust them."""
        spread = f"{self.mean:+.3g} on average over the knob space, with a standard deviation of {self.spread:.3g}"
        told = [f"The effect of {self.claim} is {spread}."] + [_told(one, self.method, self.spread) for one in self.influences]
        top = self.influences[0]
        if top.total_error > WIDE * abs(top.total):
            told.append("The intervals are wide: a larger --size narrows them.")
        if self.noise > NOISY:
            told.append(f"About {100 * self.noise:.0f} % of its variance is the luck of the seeds, which blurs every index; "
                        "use more seeds.")  # fmt: skip
        if self.dropped:
            told.append(f"{self.dropped} {'base points' if self.method == 'sobol' else 'trajectories'} had a run without an effect "
                        "and are left out.")  # fmt: skip
        return [*told, f"The space: {self.words}."]


def design(study: Study, drawn: Sequence[Axis], method: str = "sobol", *, size: int = 32, seeds: int = 5,
           fixed: dict[str, Any] | None = None, profile: str = "default", design_seed: int = 0) -> Plan:  # fmt: skip
    """The runs of an analysis: size x (knobs + 2) for Sobol' (Saltelli's design), size x (knobs + 1) for Morris' trajectories.

    KnobError for a knob that the method cannot take: Morris moves a knob up and down, so that choices without an order have no
    place in it. StudyError where the study refuses a point, since every point of a design is needed.
    """
    if method not in METHODS:
        raise StudyError(f"method = {method!r} is not allowed: one of {', '.join(METHODS)}")
    if size < LEAST:
        raise StudyError(f"size = {size} is not allowed: it must be at least {LEAST}")
    if len(drawn) < 2:
        raise StudyError("an analysis of sensitivity compares knobs: it needs two or more")
    names = [axis.knob.name for axis in drawn]
    if method == "morris" and (bad := [a.knob.name for a in drawn if a.values and not _ordered(a)]):
        raise KnobError(f"{', '.join(bad)}: Morris moves a knob up and down, and these choices have no order; "
                        f"use --method sobol, or hold them with -p {bad[0]}=...")  # fmt: skip
    shares = _design(len(drawn), method, size, design_seed)
    points = [{a.knob.name: a.at(float(u)) for a, u in zip(drawn, row, strict=True)} for row in shares]
    about = {"method": method, "size": size, "design_seed": design_seed, "drawn": names, "grid": {}, "sample": len(points),
             "block": len(drawn) + (2 if method == "sobol" else 1),
             "moved": _moved(drawn, shares) if method == "morris" else []}  # fmt: skip
    made = plans.listed(study, points, kind="sensitivity", seeds=seeds, fixed=fixed, profile=profile, about=about,
                        words=plans.space_in_words(study, (), drawn, profile, plans.checked(study, fixed or {})))  # fmt: skip
    if made.left_out:
        raise StudyError(f"{made.left_out} of {len(points)} points of the design contradict the study's own rules, and the analysis needs "
                         "all of them; hold one of the knobs with -p, or narrow one with --over")  # fmt: skip
    return made


def _ordered(axis: Axis) -> bool:
    return axis.knob.type is not str or len(axis.values) == 2


def _moved(drawn: Sequence[Axis], shares: Any) -> list[float]:
    """The part of each knob's range that Morris' trajectories move it by, on average: two thirds, or what few values allow."""
    import numpy as np

    places = np.array([[axis.place(float(u)) for axis, u in zip(drawn, row, strict=True)] for row in shares])
    ways = places.reshape(-1, len(drawn) + 1, len(drawn))  # each knob is moved once
    return np.abs(ways[:, -1] - ways[:, 0]).mean(axis=0).tolist()


def _design(dimensions: int, method: str, size: int, seed: int) -> Any:
    """Points of the unit cube; a whole analysis is made again from size and seed alone."""
    import warnings

    from SALib.sample import morris, sobol

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes that are no power of two: less even, as the help text says
        if method == "sobol":
            return sobol.sample(_cube(dimensions), size, calc_second_order=False, seed=seed)
        return morris.sample(_cube(dimensions), size, num_levels=LEVELS, seed=seed)


def _cube(dimensions: int) -> dict[str, Any]:
    return {"num_vars": dimensions, "names": [f"x{i}" for i in range(dimensions)], "bounds": [[0.0, 1.0]] * dimensions}


def analyse(claim: Claim, found: Sequence[dict[str, Any]], kept: dict[str, Any]) -> Indices:
    """The indices of a claim from the points of a finished design, `kept` being its plan as plain data.

    A base point or trajectory with a run that has no effect (failed, diverged, steered) is left out as a whole. StudyError where too
    few are left, or where the effect is the same everywhere.
    """
    import numpy as np

    about = kept["about"]
    names, method = about["drawn"], about["method"]
    shares = _design(len(names), method, about["size"], about["design_seed"])
    effects = np.array([results.effect(row, claim.id) for row in sorted(found, key=lambda row: row["number"])])
    block = about["block"]
    whole = np.isfinite(effects.reshape(-1, block)).all(axis=1)
    if whole.sum() < LEAST:
        raise StudyError(f"{claim.id}: {int(np.isnan(effects).sum())} of {len(effects)} runs gave no effect, too few are left to analyse")
    use = np.repeat(whole, block)
    if np.ptp(effects[use]) == 0:
        raise StudyError(f"{claim.id}: the effect is {effects[use][0]:+.3g} at every point, so no knob moves it")
    if method == "sobol":
        influences = _sobol(names, effects[use], about["design_seed"])
    else:
        influences = _morris(names, shares[use], effects[use], about["design_seed"], about["moved"])
    errors = [_squared_error(row["judged"][claim.id]) for row, here in zip(found, use, strict=True) if here]
    noise = float(np.mean(errors) / effects[use].var()) if errors else math.nan
    order = sorted(influences, key=lambda one: -one.total)
    return Indices(claim.id, method, tuple(order), float(effects[use].mean()), float(effects[use].std()), int(use.sum()),
                   int((~whole).sum()), min(noise, 1.0), kept["words"])  # fmt: skip


def _sobol(names: list[str], effects: Any, seed: int) -> list[Influence]:
    from SALib.analyze import sobol

    found = sobol.analyze(_cube(len(names)), effects, calc_second_order=False, num_resamples=RESAMPLES, seed=seed)
    return [Influence(name, *(float(found[k][i]) for k in ("S1", "ST", "S1_conf", "ST_conf"))) for i, name in enumerate(names)]


def _morris(names: list[str], shares: Any, effects: Any, seed: int, moved: list[float]) -> list[Influence]:
    from SALib.analyze import morris

    found = morris.analyze(_cube(len(names)), shares, effects, num_levels=LEVELS, num_resamples=RESAMPLES, seed=seed)
    part = LEVELS / (2 * (LEVELS - 1))  # of the range, by which SALib divides; a knob of few values is moved by another one
    return [Influence(name, *(float(found[k][i]) * part / moved[i] for k in ("sigma", "mu_star")), math.nan,
                      float(found["mu_star_conf"][i]) * part / moved[i]) for i, name in enumerate(names)]  # fmt: skip


def _squared_error(verdict: dict[str, Any]) -> float:
    """The squared standard error of an effect over its seeds; 0 for a theorem's worst case, which is no mean."""
    import numpy as np

    values = [value for _, value in verdict["values"]]
    return float(np.var(values, ddof=1) / len(values)) if len(values) > 1 else 0.0


def _told(one: Influence, method: str, spread: float) -> str:
    if method == "morris":
        change = f"{one.knob}: moving it over its whole range changes the effect by {one.total:.3g} (+/- {one.total_error:.2g}) on average"
        if one.total - one.total_error <= 0.02 * spread:
            return change + ", which is not told apart from nothing."
        bent = "; the change differs from place to place, so it bends or interacts" if one.first > 0.5 * one.total else ""
        return change + bent + "."
    if one.total - one.total_error <= 0:
        return f"{one.knob}: no influence that can be told from nothing (total {one.total:.2f} +/- {one.total_error:.2f})."
    alone = f"{one.knob}: {100 * min(max(one.first, 0), 1):.0f} % of the variance by itself (+/- {100 * one.first_error:.0f}), "
    beyond = one.total - one.first
    with_others = f"{100 * min(one.total, 1):.0f} % together with the other knobs (+/- {100 * one.total_error:.0f})"
    return alone + with_others + (": much of it is interplay." if beyond > one.first_error + one.total_error else ".")


def figure(indices: Indices) -> go.Figure:
    """The indices as bars with their 95 % intervals, the knob that matters most on top."""
    import plotly.graph_objects as go

    from claimlab import figures

    drawn, shown = go.Figure(), indices.influences[::-1]
    names = [one.knob.replace("_", " ") for one in shown]
    kinds = [("total", "total: with the other knobs", figures.BLUE), ("first", "first order: by itself", figures.OTHERS[0])]
    if indices.method == "morris":
        kinds = [("total", "mu*: mean size of the change", figures.BLUE), ("first", "sigma: how it differs by place", figures.GREY)]
    for kind, label, colour in kinds:
        errors = [getattr(one, f"{kind}_error") for one in shown]
        bars = {"array": errors, "color": figures.INK, "thickness": 1.5} if all(map(math.isfinite, errors)) else None
        drawn.add_bar(y=names, x=[getattr(one, kind) for one in shown], orientation="h", name=label, marker_color=colour, error_x=bars)
    unit = "share of the variance of the effect" if indices.method == "sobol" else "change of the effect over the knob's whole range"
    figures.style(drawn, "", x=unit, y="knob", height=140 + 52 * len(names))
    return drawn.update_layout(barmode="group", legend={"traceorder": "reversed"})
