"""Words, icons and numbers that all pages share. A verdict is never shown by its colour alone."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

from claimlab.reports.timing import span

VERDICTS = {
    "supported": ("green", ":material/check:"),
    "refuted": ("red", ":material/close:"),
    "undecided": ("gray", ":material/question_mark:"),
    "not run yet": ("gray", ":material/remove:"),
}
STATUS = {
    "queued": ":material/hourglass_empty:", "starting": ":material/hourglass_top:", "running": ":material/play_circle:",
    "paused": ":material/pause_circle:", "finished": ":material/check_circle:", "failed": ":material/error:",
    "stopped": ":material/stop_circle:", "timed out": ":material/timer_off:", "lost": ":material/link_off:",
}  # fmt: skip
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|$~:])")


def plain(text: object) -> str:
    """Text that Markdown shows as it is, so that a message or a name cannot format or link anything."""
    return _MARKS.sub(r"\\\1", str(text))


def badge(verdict: str) -> str:
    """A verdict as icon and word, as inline Markdown."""
    colour, icon = VERDICTS.get(verdict, VERDICTS["undecided"])
    return f":{colour}-badge[{icon} {verdict}]"


def humanised(name: str) -> str:
    """The id of a claim or metric as words."""
    return name.replace("-", " ").replace("_", " ")


def measured(verdict: Mapping[str, Any]) -> str:
    """Effect, interval and number of seeds: `+0.041 [0.028, 0.054], n = 5`; the number of seeds alone where there is no effect."""
    n = f"n = {verdict['n']}"
    if verdict.get("effect") is None:
        return n
    low, high = (_side(verdict.get(side), sign) for side, sign in (("low", "−"), ("high", "+")))
    return f"{verdict['effect']:+.3g} [{low}, {high}], {n}"


def _side(value: float | None, sign: str) -> str:
    return f"{sign}∞" if value is None or not math.isfinite(value) else f"{value:.3g}"


def number(value: float) -> str:
    """A number with three digits that says NaN in words."""
    return f"{value:.3g}" if math.isfinite(value) else "not a number"


def setting(value: Any) -> str:
    """A knob's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def ago(moment: float) -> str:
    """How long ago a time stamp was."""
    gone = time.time() - moment
    if gone < 60:
        return "just now"
    if gone < 172_800:
        return f"{span(gone - gone % 60)} ago"
    return time.strftime("on %d %B %Y", time.localtime(moment))


def changed(params: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """The knobs that differ from the usual setting, as `alpha = 2, noise = 0`."""
    found = [f"{name} = {setting(value)}" for name, value in params.items() if name in usual and usual[name] != value]
    return ", ".join(found) or "the paper's setting"
