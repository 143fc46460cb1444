"""What a run's arms are set to now, read from its events: settings, layers, what is frozen, and which changes still stand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from claimlab import verbs


@dataclass
class Arm:
    """One arm in training: values of its settings, numbers of parameters by layer, and the layers that are held."""

    settings: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)


@dataclass
class Condition:
    """All arms by name, and the changes that no rollback has undone, oldest first."""

    arms: dict[str, Arm] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def undoable(self) -> str:
        """The checkpoint before the last change that stands; empty if there is none."""
        return self.changes[-1]["payload"].get("checkpoint", "") if self.changes else ""


def now(events: Sequence[dict[str, Any]]) -> Condition:
    """Follow the events of a run from its start; a rollback takes everything back to what its checkpoint found."""
    here, kept = Condition(), {}
    for event in events:
        kind, payload = event["kind"], event["payload"]
        if kind == "layers":
            here.arms[event["arm"]] = Arm(dict(payload["settings"]), dict(payload["layers"]), set(payload["frozen"]))
        elif kind == "checkpoint":
            kept[payload["name"]] = copy.deepcopy(here)
        elif kind == "rollback":
            here = copy.deepcopy(kept.get(payload["checkpoint"])) or _before(here, payload["checkpoint"])
        elif kind in verbs.CHANGES:
            # several changes at one step share the checkpoint before the first of them
            here.changes.append(event)
            _change(here.arms.setdefault(event["arm"], Arm()), event)
    return here


def _change(arm: Arm, event: dict[str, Any]) -> None:
    payload = event["payload"]
    if event["kind"] == "set":
        arm.settings[payload["name"]] = payload["new"]
        return
    inside = {name for name in arm.layers or [payload["layer"]] if _within(name, payload["layer"])}
    if event["kind"] == "freeze":
        arm.frozen |= inside
    elif event["kind"] == "unfreeze":
        arm.frozen -= inside


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _before(here: Condition, checkpoint: str) -> Condition:
    """The condition before the first change that names this checkpoint, where the checkpoint itself was not recorded."""
    names = [event["payload"].get("checkpoint") for event in here.changes]
    if checkpoint in names:
        here.changes = here.changes[: names.index(checkpoint)]
    return here


def where(events: Sequence[dict[str, Any]], checkpoint: str) -> dict[str, int]:
    """The step of each arm at a checkpoint; empty for one that is not recorded."""
    return next((e["payload"]["arms"] for e in events if e["kind"] == "checkpoint" and e["payload"]["name"] == checkpoint), {})
