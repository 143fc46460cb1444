"""Knobs: a study's parameters, declared once in a frozen dataclass and read back in five ways.

The declaration carries default, range, unit and help; the notebook's parameters cell, the dashboard form, the command
line, the sweep grid and the range check are all views of it. Standard library only, so that reading a declaration is cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROFILES = ("smoke", "default", "full")
SETTABLE = {"lr": (0.0, 10.0), "weight_decay": (0.0, 10.0), "momentum": (0.0, 0.9999)}  # while training goes on: low, high


class KnobError(ValueError):
    """A knob that does not exist, or a value that its declaration does not allow."""


@dataclass(frozen=True)
class Knob:
    """One declared parameter. `low` and `high` are inclusive; `choices` excludes a range."""

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple | None = None
    unit: str = ""
    live: bool = False

    @property
    def type(self) -> type:
        return type(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values in words: `in [0, 32]` or `one of least, most`."""
        if self.choices is not None:
            return "one of " + ", ".join(map(str, self.choices))
        kind = "a whole number " if self.type is int else ""
        return f"{kind}in [{self.low:g}, {self.high:g}]"

    def check(self, value: Any) -> Any:
        """Return `value` as this knob's type; KnobError names knob, value and allowed range."""
        value = self._parse(value) if isinstance(value, str) and self.type is not str else value
        if self.choices is not None:
            if value in self.choices and isinstance(value, bool) == isinstance(self.default, bool):
                return self.choices[self.choices.index(value)]  # 4.0 means the declared 4
            raise self._refusal(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not self.low <= value <= self.high:
            raise self._refusal(value)  # nan and inf lie in no range
        if self.type is int and value != int(value):
            raise self._refusal(value)
        return self.type(value)

    def _parse(self, text: str) -> Any:
        text = text.strip()
        if self.type is bool:
            return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
        try:
            number = float(text)
        except ValueError:
            raise self._refusal(text) from None
        return int(number) if math.isfinite(number) and number == int(number) else number

    def _refusal(self, value: Any) -> KnobError:
        shown = repr(value) if isinstance(value, str) else str(value)
        return KnobError(f"{self.name} = {shown} is not allowed: {self.name} must be {self.allowed} ({self.help})")


def knob(default: Any, help: str, *, low=None, high=None, choices=None, unit: str = "", live: bool = False) -> Any:
    """Declare a knob as a dataclass field. Numbers need finite `low` and `high`; names and switches need `choices`."""
    if isinstance(default, bool) and choices is None:
        choices = (False, True)
    if choices is None and (low is None or high is None):
        raise TypeError(f"the knob with help {help!r} needs low and high, or choices")
    if choices is None and not (math.isfinite(low) and math.isfinite(high)):
        raise TypeError(f"the knob with help {help!r} needs a finite range, not [{low}, {high}]")
    choices = None if choices is None else tuple(choices)
    facts = dict(help=help, low=low, high=high, choices=choices, unit=unit, live=live)
    return dataclasses.field(default=default, metadata={"knob": facts})


def knobs(params: type) -> tuple[Knob, ...]:
    """The knobs that a parameters dataclass declares, in order; each default is checked against its own range."""
    found = []
    for field in dataclasses.fields(params):
        if "knob" not in field.metadata:
            raise TypeError(f"{params.__name__}.{field.name} is not declared with knob(...)")
        one = Knob(field.name, field.default, **field.metadata["knob"])
        one.check(one.default)
        if one.type.__name__ != (written := getattr(field.type, "__name__", field.type)):
            raise TypeError(
                f"{params.__name__}.{one.name} is written as {written}, but its default {one.default!r} is another type"
            )
        found.append(one)
    return tuple(found)


def preset(params: type, profile: str = "default") -> dict[str, Any]:
    """The knob values that a profile changes: `Params.SMOKE` or `Params.FULL`; nothing for the default profile."""
    if profile not in PROFILES:
        raise KnobError(f"profile = {profile!r} is not allowed: one of {', '.join(PROFILES)}")
    return {} if profile == "default" else dict(getattr(params, profile.upper(), {}))


def make(params: type, values: Mapping[str, Any] | None = None, profile: str = "default") -> Any:
    """Build checked parameters: profile first, `values` (numbers or text) on top.

    Raises KnobError for an unknown name (with the nearest declared one), a wrong type, a value out of range, or a
    contradiction that the class reports from `__post_init__` as ValueError.
    """
    declared = {one.name: one for one in knobs(params)}
    chosen = {}
    for name, value in {**preset(params, profile), **(values or {})}.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise KnobError(f"{name} is not a knob of this study{hint} Knobs: {', '.join(declared)}")
        chosen[name] = declared[name].check(value)
    try:
        return params(**chosen)
    except KnobError:
        raise
    except ValueError as contradiction:
        raise KnobError(str(contradiction)) from None


def values(params: Any) -> dict[str, Any]:
    """The knob values of an instance as plain JSON-ready data."""
    return dataclasses.asdict(params)


def pairs(texts: list[str]) -> dict[str, str]:
    """Read `knob=value` texts from a command line; KnobError for one without a name, sign or value."""
    read = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise KnobError(f"{text!r} is not of the form knob=value")
        read[name.strip()] = value.strip()
    return read


def cell(params: type, chosen: Mapping[str, Any] | None = None) -> str:
    """Source of the notebook's parameters cell: one typed line a knob, its help and range as the comment."""
    lines = []
    for one in knobs(params):
        value = (chosen or {}).get(one.name, one.default)
        unit = f" [{one.unit}]" if one.unit else ""
        allowed = one.allowed.removeprefix("a whole number ")
        lines.append(f"{one.name}: {one.type.__name__} = {value!r}  # {one.help}{unit}, {allowed}")
    return "\n".join(lines)


def salib_problem(params: type) -> dict[str, Any]:
    """The numeric knobs as a SALib problem (names and bounds); repetitions (`seeds`) are no input of the study."""
    numeric = [one for one in knobs(params) if one.choices is None and one.name != "seeds"]
    return {"num_vars": len(numeric), "names": [k.name for k in numeric], "bounds": [[k.low, k.high] for k in numeric]}
