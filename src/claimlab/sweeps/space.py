"""The knob space of a sweep: axes over a study's knobs, read from texts, with values listed or drawn from a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from claimlab.params import Knob, KnobError
from claimlab.study import Study

BUDGET = ("seeds", "steps")  # repetitions and length of training: what a run costs, and no setting of the method
WIDE = 100.0  # a positive range this many times as wide as its low end is gone over in factors
DIGITS = 6


@dataclass(frozen=True)
class Axis:
    """One knob of a sweep: the listed `values` (of a grid, or the choices to draw from), or a range [low, high] to draw from.
    `log`: equal factors count as equal distances."""

    knob: Knob
    values: tuple = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1] of the axis; equal shares are equal lengths (of the logarithm, where `log`)."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.knob.type is int and not self.log:
            return min(int(self.low + share * (self.high - self.low + 1)), int(self.high))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.knob.type is int else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def place(self, share: float) -> float:
        """Where on the axis, in [0, 1], the value at a share lies: `share` itself, but for a knob of few values."""
        if self.values:
            return self.values.index(self.at(share)) / max(len(self.values) - 1, 1)
        if self.knob.type is int and not self.log:
            return (self.at(share) - self.low) / (self.high - self.low)
        return share

    def spread(self, count: int) -> Axis:
        """The same range as `count` values of a grid, both ends included."""
        shares = [i / max(count - 1, 1) for i in range(count)]
        if self.knob.type is int and not self.log:
            found = [round(self.low + s * (self.high - self.low)) for s in shares]
        else:
            found = [self.at(s) for s in shares]
        return Axis(self.knob, tuple(dict.fromkeys(found)), log=self.log)

    @property
    def words(self) -> str:
        """`rate in [0.001, 1] (log scale)` or `order one of least, most`."""
        if self.values:
            return f"{self.knob.name} one of {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in self.values)}"
        return f"{self.knob.name} in [{self.low:g}, {self.high:g}]" + (" (log scale)" if self.log else "")


def grid(study: Study, text: str) -> Axis:
    """The axis of `knob=a,b,c` or `knob=low..high:n` (n values, both ends included); KnobError for anything else."""
    name, sign, said = text.partition("=")
    knob = knob_of(study, name.strip())
    if not sign or not said.strip():
        raise KnobError(f"{text!r} is not of the form knob=a,b,c or knob=low..high:n")
    if ".." in said:
        ends, colon, count = said.partition(":")
        if not colon or not count.strip().isdigit() or int(count) < 2:
            raise KnobError(f"{text!r} needs the number of values after the range, as {knob.name}={ends.strip()}:5")
        return _range(knob, ends).spread(int(count))
    return Axis(knob, tuple(dict.fromkeys(knob.check(one) for one in said.split(","))), log=logarithmic(knob, knob.low))


def over(study: Study, text: str) -> Axis:
    """The axis of `knob` (all that it may be), `knob=low..high` (a part of its range) or `knob=a,b` (some of its choices).
    `:log` or `:linear` at the end says how a range is gone over; otherwise a wide positive one is gone over in factors."""
    said, colon, scale = text.partition(":")
    if colon and scale.strip() not in ("log", "linear"):
        raise KnobError(f"{text!r}: after the colon stands log or linear")
    name, sign, part = said.partition("=")
    knob = knob_of(study, name.strip())
    if sign and ".." not in part:
        return Axis(knob, tuple(dict.fromkeys(knob.check(one) for one in part.split(","))))
    if knob.choices is not None:
        if sign:
            raise KnobError(f"{text!r}: {knob.name} has no range; it is {knob.allowed}")
        return Axis(knob, knob.choices)
    return _range(knob, part if sign else f"{knob.low}..{knob.high}", {"log": True, "linear": False}.get(scale.strip()))


def knob_of(study: Study, name: str) -> Knob:
    """The knob of that name; KnobError names the nearest one. The number of seeds is set by --seeds."""
    import difflib

    known = {one.name: one for one in study.knobs}
    if name == "seeds":
        raise KnobError("seeds is the number of repetitions of each setting: say it with --seeds")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise KnobError(f"{name} is not a knob of {study.slug}" + (f"; did you mean {near[0]}?" if near else "")
                        + f" Knobs: {', '.join(known)}")  # fmt: skip
    return known[name]


def free(study: Study, taken: Sequence[str] | Mapping[str, Any]) -> list[Axis]:
    """An axis for each knob that is neither taken nor part of what a run costs (seeds, steps)."""
    found = [over(study, one.name) for one in study.knobs if one.name not in (*taken, *BUDGET)]
    if not found:
        raise KnobError(f"no knob of {study.slug} is left to draw: all of them are given a value")
    return found


def logarithmic(knob: Knob, low: float | None) -> bool:
    """Whether a knob's range from `low` on spans so many factors that equal factors are equal distances."""
    return bool(knob.choices is None and low and low > 0 and knob.high / low >= WIDE)


def _range(knob: Knob, text: str, log: bool | None = None) -> Axis:
    if knob.choices is not None:
        raise KnobError(f"{knob.name} has no range; it is {knob.allowed}")
    low, high = (knob.check(part.strip()) for part in text.split("..", 1))
    if not low < high:
        raise KnobError(f"{knob.name} = {text} is no range: {low} is not below {high}")
    if log is None:
        log = bool(low > 0 and high / low >= WIDE)
    if log and low <= 0:
        raise KnobError(f"{knob.name} = {text} cannot be gone over in factors, since it reaches {low:g}; give a low end above 0")
    return Axis(knob, (), low, high, log)
