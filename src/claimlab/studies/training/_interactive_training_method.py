"""The method of interactive_training: a session (log, checkpoints, commands as data) that an agent or a script drives.

A session is what the paper's control server keeps for one training run. Commands use the verbs of the lab's own live control
(claimlab.verbs), and the same function checks them.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from claimlab import verbs
from claimlab.params import KnobError
from claimlab.studies.training import _interactive_training_data as data
from claimlab.study import Study, find
from claimlab.training import Run, surgery

OWN = ("lr", "momentum", "weight_decay", "clip")  # what belongs to one member and can be set for it alone
OBEYED = ("set", "rollback", "checkpoint", "evaluate", "reset", "freeze", "unfreeze")
ANSWER = 10_000  # characters; a longer answer is no command
HEAD = "step lr loss gradient validation"


# ---- an optimiser that says how large the gradient was


class Measured:
    """Mixed into an optimiser: `norm` is the gradient norm of the last step, before it was cut to `clip` (0: not cut)."""

    norm, clip = math.nan, 0.0

    def step(self, closure):
        loss = closure()
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        total = torch.nn.utils.get_total_norm([p.grad for p in moved])
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(moved, self.clip, total)
        self.norm = float(total)
        super().step()
        return loss


class MeasuredAdamW(Measured, torch.optim.AdamW):
    """AdamW with the norm of its gradient."""


# ---- commands as data


@lru_cache(maxsize=1)
def _study() -> Study:
    return find("interactive-training")


def parse(answer: str) -> dict[str, Any] | None:
    """The command in an answer, or None for a no-op. ValueError where the answer is not one JSON object with a verb."""
    if answer.strip() in ("", "{}", "null", "no-op"):
        return None
    if len(answer) > ANSWER:
        raise ValueError(f"an answer of {len(answer):,} characters is no command")
    try:
        command = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError("the answer is not JSON") from None
    if not isinstance(command, dict) or not isinstance(command.get("verb"), str):
        raise ValueError("the answer is not one JSON object with a verb")
    return None if command["verb"] == "no-op" else command


def plan(command: dict[str, Any]) -> dict[str, Any]:
    """A command with checked values; ValueError says what is wrong. `rollback` may carry a `change`, as a fork does."""
    verb = command["verb"]
    if verb in verbs.VERBS and verb not in OBEYED:
        raise ValueError(f"{verb} is for whoever watches the run; a judged run uses all of its steps")
    if not isinstance(command.get("name", ""), str):
        raise ValueError(f"{command['name']!r} is not the name of a setting")
    checked = {"verb": verb, **verbs.validate(_study(), verb, command)}
    if verb == "rollback":
        if "checkpoint" in checked:
            raise ValueError("a session's checkpoints are named by their step")
        if command.get("change") is not None:
            change = verbs.validate(_study(), "fork", {"change": command["change"]})["change"]
            checked["change"] = plan(change)
    elif verb == "set" and checked["name"] == "lr":
        knob = next(k for k in _study().knobs if k.name == "lr")  # narrower than what the live control allows
        checked["value"] = knob.check(checked["value"])
    return checked


def script(path: str | Path = data.RECORDED) -> list[dict[str, Any]]:
    """The interventions of a file as [{step, command}], every command checked; ValueError names the entry."""
    found = []
    for k, one in enumerate(data.interventions(path)):
        try:
            found.append({"step": one["step"], "command": plan({**one["args"], "verb": str(one["command"])})})
        except ValueError as refusal:
            raise ValueError(f"{Path(path).name}: entry {k} (step {one['step']}): {refusal}") from None
    return found


def recording(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The commands that a session obeyed as [{step, command, args}], the form that `script` reads."""
    kept = [(note["step"], dict(note["command"])) for note in notes if note["ok"]]
    return [{"step": step, "command": command.pop("verb"), "args": command} for step, command in kept]


# ---- the state of one member


def snapshot(run: Run, i: int) -> dict[str, Any]:
    """A copy of member i: parameters, optimiser, generator (with a batch a draw, the data cursor too) and settings."""
    (optimizer, _) = run.ensembles[0].optimizers[""][i]
    tensors = {k: v.detach().clone() for k, v in run.members[i].state_dict().items()}
    return {"net": tensors, "optimizer": copy.deepcopy(optimizer.state_dict()), "rng": run.rngs[i].get_state(),
            "settings": dict(run.overrides[i])}  # fmt: skip


def restore(run: Run, i: int, saved: dict[str, Any]) -> None:
    """Put member i back to where `snapshot` was taken; its companions go on undisturbed."""
    (optimizer, _) = run.ensembles[0].optimizers[""][i]
    run.members[i].load_state_dict(saved["net"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    run.rngs[i].set_state(saved["rng"])
    run.overrides[i] = dict(saved["settings"])
    run.diverged.pop(i, None)


# ---- a session


@dataclass
class Branch:
    """The log of a stretch of training: the checkpoint that it came from, the step at which it began, the validation loss
    there, and its records with the columns of HEAD."""

    origin: int
    began: int
    value: float = math.nan
    records: list[list[float]] = field(default_factory=list)


class Session:
    """One member of a run as a person at the screen has it. The clock counts gradient steps and never goes back.

    A rollback opens a new branch with a log of its own; the old one stays in `branches`. The checkpoints on the shelf are the
    start, the best look so far, those of `pins`, and those asked for.
    """

    keeps = ("branches", "commands", "shelf", "asked", "best", "looked")

    def __init__(self, run: Run, member: int, look: Callable[[torch.nn.Module], float], pins: set[int] | None = None):
        self.run, self.member, self._look, self.pins = run, member, look, set(pins or ())
        self.branches, self.commands = [Branch(0, run.step)], []
        self.shelf: dict[int, dict[str, Any]] = {}
        self.asked: set[int] = set()
        self.best = (math.inf, 0)  # validation loss and its step
        self.looked: list[tuple[int, float]] = []  # step and validation loss of every look
        run.members[member].session = {"branches": self.branches, "commands": self.commands}  # for views of the net

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.run.ensembles[0].optimizers[""][self.member][0]

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def record(self) -> None:
        """Write the step just taken into the log."""
        loss = float(self.run.losses[self.member])
        norm = float(getattr(self.optimizer, "norm", math.nan))
        self.branches[-1].records.append([self.run.step, self.lr, loss, norm, math.nan])
        if self.run.step in self.pins:
            self.shelf[self.run.step] = snapshot(self.run, self.member)

    def look(self) -> float:
        """Validation loss now; the best one so far leaves a checkpoint."""
        value, now = self._look(self.run.members[self.member]), self.run.step
        self.looked.append((now, value))
        branch = self.branches[-1]
        if branch.records:
            branch.records[-1][4] = value
        else:
            branch.value = value
        if value < self.best[0] or not self.shelf:
            old, self.best = self.best[1], (value, now)
            self.shelf[now] = snapshot(self.run, self.member)
            if old not in {0, now} | self.pins | self.asked:
                self.shelf.pop(old, None)
        return value

    # ---- commands

    def obey(self, answer: str, by: str = "agent") -> dict[str, Any] | None:
        """Apply one answer, or refuse it and leave everything as it is. What is noted of it, or None for a no-op."""
        note: dict[str, Any] = {"step": self.run.step, "by": by, "said": answer.strip()[:300]}
        try:
            if (command := parse(answer)) is None:
                return None
            note["reason"] = str(command.get("reason", ""))[:200]
            checked = plan(command)
            effect = getattr(self, f"_{checked['verb']}" if checked["verb"] in OBEYED[:4] else "_surgery")(checked)
            note |= {"ok": True, "command": checked, "effect": effect}
        except (KnobError, ValueError, TypeError) as refusal:
            note |= {"ok": False, "refusal": str(refusal)}
        self.commands.append(note)
        return note

    def apply(self, command: dict[str, Any], by: str) -> dict[str, Any] | None:
        """Obey a command that is given as data."""
        return self.obey(json.dumps(command), by)

    def _set(self, command: dict[str, Any]) -> str:
        name, value = command["name"], command["value"]
        alone, group = len(self.run.seeds) == 1, self.optimizer.param_groups[0]
        if name == "clip":
            old, self.run.overrides[self.member]["clip"] = self.clip, value
        elif name in OWN:
            if name not in group:
                raise ValueError(f"{name} is no setting of this optimiser")
            old = float(group[name])
            self.run.set(None if alone else self.member, **{name: value})
        elif alone:
            (old, value) = self.run.set(**{name: value})[name]
        else:
            raise ValueError(f"{name} can not be set for one member: the members of this run share it")
        return f"{name} {old:.4g} -> {value:.4g}" if isinstance(value, float) else f"{name} {old} -> {value}"

    @property
    def clip(self) -> float:
        """Largest gradient norm, 0 for none: set for this member, else the knob."""
        return self.run.overrides[self.member].get("clip", getattr(self.run.task.p, "clip", 0.0))

    def _rollback(self, command: dict[str, Any]) -> str:
        known = [step for step in self.shelf if step <= command["step"]]
        if not known:
            raise ValueError(f"there is no checkpoint at or before step {command['step']}")
        change, target = command.get("change"), max(known)
        if change is not None and not (change["verb"] == "set" and change["name"] in OWN):
            raise ValueError(f"a rollback can be followed by a change of {', '.join(OWN)}")
        restore(self.run, self.member, self.shelf[target])
        self.branches.append(Branch(target, self.run.step))
        done = f"back to step {target}"
        done += f", {self._set(change)}" if change is not None else ""
        self.look()
        return done

    def _checkpoint(self, _command: dict[str, Any]) -> str:
        self.asked.add(self.run.step)
        self.shelf[self.run.step] = snapshot(self.run, self.member)
        return f"checkpoint {self.run.step}"

    def _evaluate(self, _command: dict[str, Any]) -> str:
        return f"validation {self.look():.4f}"

    def _surgery(self, command: dict[str, Any]) -> str:
        verb, layer = command["verb"], command["layer"]
        if len(self.run.seeds) > 1:
            raise ValueError(f"{verb} changes all seeds of an arm: a layer is shared by the program that trains them")
        if verb == "reset":
            surgery.reset(self.run, layer)
        else:
            surgery.freeze(self.run, layer, verb == "freeze")
        return f"{verb} {layer}"

    # ---- state, and what is shown

    def state(self) -> dict[str, Any]:
        return {name: copy.deepcopy(getattr(self, name)) for name in self.keeps if name != "branches"} | {
            "branches": [(b.origin, b.began, b.value, [list(r) for r in b.records]) for b in self.branches]
        }

    def load(self, state: dict[str, Any]) -> None:
        for name in self.keeps:
            setattr(self, name, copy.deepcopy(state[name]))
        self.branches = [Branch(*facts, [list(r) for r in records]) for *facts, records in state["branches"]]
        self.run.members[self.member].session = {"branches": self.branches, "commands": self.commands}

    @property
    def validations(self) -> list[float]:
        """Every look so far, in order, whatever became of its branch."""
        return [value for _, value in self.looked]

    @property
    def lost(self) -> int:
        """Gradient steps whose result a rollback threw away."""
        kept = sum(sum(r[0] <= end for r in branch.records) for branch, end in lineage(self.branches))
        return sum(len(branch.records) for branch in self.branches) - kept

    def text(self, total: int, window: int, cut: float, alarm: float) -> str:
        """What an agent gets to see: settings, best look, the last `window` records of this branch, all commands so far."""
        value, step = self.best
        lines = [f"at {self.run.step} of {total} window {window} cut {cut:g} alarm {alarm:g}", f"best {value:.6g} at {step}"]
        for note in self.commands:
            said = note["effect"] if note["ok"] else f"refused: {note['refusal']}"
            lines.append(f"command at {note['step']}: {said} ({note.get('reason', '')})".replace("\n", " "))
        rows = [" ".join(f"{value:.6g}" for value in record) for record in self.branches[-1].records[-window:]]
        return "\n".join([*lines, HEAD, *rows])


def lineage(branches: list[Branch]) -> list[tuple[Branch, float]]:
    """The branches that led to where the session is now, the last one first, each with the step up to which it counts."""
    at, end, found = len(branches) - 1, math.inf, []
    while True:
        found.append((branches[at], end))
        if at == 0:
            return found
        end = branches[at].origin
        at = max(k for k in range(at) if branches[k].began <= end)
