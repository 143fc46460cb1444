"""What can be asked of a run that goes on: the verbs, and the check of a command before it is queued."""

from __future__ import annotations

import math
from typing import Any

from claimlab.params import SETTABLE, KnobError
from claimlab.study import Study

CHANGES = ("set", "reset", "freeze", "unfreeze")  # what changes training, and can be replayed
VERBS = (*CHANGES, "pause", "resume", "step", "checkpoint", "rollback", "fork", "evaluate", "drive", "stop")
LEASE = 3600.0


def validate(study: Study, verb: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of a command with values of the right type; KnobError names the setting, the value and what is allowed.

    set: name, value. reset, freeze, unfreeze: layer. step: n. rollback: step, or checkpoint. fork: change (a verb of
    CHANGES with its payload) or nothing for an exact copy. drive: seconds, and `to` for handing over. Others: nothing.
    """
    if verb not in VERBS:
        raise KnobError(f"the verb {verb!r} is not known; verbs: {', '.join(VERBS)}")
    check = {"set": _setting, "step": _count, "rollback": _target, "fork": _change, "drive": _lease}.get(verb)
    if check is not None:
        return check(study, payload)
    if verb in CHANGES:
        layer = payload.get("layer")
        if not isinstance(layer, str) or not layer:
            raise KnobError(f"{verb} needs the name of a layer, not {layer!r}")
        return {"layer": layer}
    return {}


def _number(name: str, value: Any, low: float, high: float) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise KnobError(f"{name} = {value} is not allowed: {name} must be in [{low:g}, {high:g}]")
    return number


def _setting(study: Study, payload: dict[str, Any]) -> dict[str, Any]:
    name, value = payload.get("name"), payload.get("value")
    if name in SETTABLE:
        return {"name": name, "value": _number(name, value, *SETTABLE[name])}
    knob = {k.name: k for k in study.knobs}.get(name)
    if knob is None or not knob.live:
        live = [k.name for k in study.knobs if k.live]
        raise KnobError(f"{name} cannot be changed while the run goes on; settings that can: {', '.join([*SETTABLE, *live])}")
    return {"name": name, "value": knob.check(value)}


def _count(_study: Study, payload: dict[str, Any]) -> dict[str, Any]:
    return {"n": int(_number("n", payload.get("n", 1), 1, 1_000_000))}


def _target(_study: Study, payload: dict[str, Any]) -> dict[str, Any]:
    if payload.get("checkpoint") is not None:
        return {"checkpoint": str(payload["checkpoint"])}
    return {"step": int(_number("step", payload.get("step"), 0, 10**9))}


def _change(study: Study, payload: dict[str, Any]) -> dict[str, Any]:
    change = payload.get("change")
    if change is None:
        return {"change": None}
    if not isinstance(change, dict) or change.get("verb") not in CHANGES:
        raise KnobError(f"a fork differs by one change, a verb of {', '.join(CHANGES)} with its payload, not by {change!r}")
    return {"change": {"verb": change["verb"], **validate(study, change["verb"], change)}}


def _lease(_study: Study, payload: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": _number("seconds", payload.get("seconds", 60), 0, LEASE), "to": str(payload.get("to") or "")}
