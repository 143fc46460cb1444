"""Commands to a run that goes on: checked before they are queued, checked again where they are applied, answered either way.

A Driver sits between two steps of an Experiment. What changes training is preceded by a checkpoint, so that it can be
undone; a refusal leaves the run as it is.
"""

from __future__ import annotations

import time
from typing import Any

from claimlab import checkpoints
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.study import Study
from claimlab.training import surgery
from claimlab.verbs import CHANGES, validate
from claimlab.views import Gallery

NAP = 0.01  # seconds between two looks at the commands of a paused run
LOOK = 0.02  # and of one that goes on: a look costs 0.1 ms, as it finds the processor's caches cold


class Stopped(RuntimeError):
    """The run obeyed a stop command; what was recorded is kept."""


class Driver:
    """Obeys the commands of one run between two steps of its experiment; call `between` after every step."""

    def __init__(self, study: Study, lab: Experiment, ledger: Ledger, run: str):
        self.study, self.lab, self.ledger, self.run = study, lab, ledger, run
        self.shelf, self.gallery = checkpoints.Shelf(ledger, run), Gallery(lab, ledger, run)
        self.paused, self.left = False, 0  # left: steps to go until the run pauses again
        self.holder, self.until = "", 0.0
        self.next = 0.0  # when to look at the commands again
        self.script: list[dict[str, Any]] = []  # changes to come: verb, payload, arm, step, seed

    def between(self) -> None:
        """Do what has been asked since the last step; while the run is paused, wait for what comes. Stopped after a stop."""
        if self.left:
            self.left -= 1
            if not self.left:
                self._pause()
        if self.script:
            self._follow()
        if self.paused or time.monotonic() >= self.next:
            self.obey()
            self.gallery.between()
            while self.paused:
                time.sleep(NAP)
                self.obey()
                self.gallery.between()
            self.shelf.regular(self.lab)
            self.next = time.monotonic() + LOOK

    def _follow(self) -> None:
        """Apply what the script has for the step at which an arm is now."""
        due = [one for one in self.script if getattr(self.lab.arms.get(one["arm"]), "step", -1) >= one["step"]]
        for one in due:
            self.script.remove(one)
            plan = self.plan(one["verb"], one["payload"], one["arm"], one["seed"])
            self.act(plan, one["verb"], one["payload"], {"seed": one["seed"], "by": "replay"})

    def obey(self) -> None:
        """Apply or refuse every command that waits."""
        for command in self.ledger.pending(self.run):
            by, verb = command.get("by") or "", command["verb"]
            try:
                if by != self.holder and time.time() < self.until:
                    left = self.until - time.time()
                    raise ValueError(f"{self.holder or 'somebody'} drives this run for another {left:.0f} s")
                payload = validate(self.study, verb, command["payload"])
                answer = self._change(command, verb, payload) if verb in CHANGES else getattr(self, f"_{verb}")(command, payload)
                self.ledger.answer(command["id"], True, **{"step": self.lab.done, **(answer or {})})
            except (KnobError, ValueError) as refusal:
                self.ledger.answer(command["id"], False, step=self.lab.done, reason=str(refusal))

    def _change(self, command: dict, verb: str, payload: dict) -> dict:
        plan = self.plan(verb, payload, command.get("arm"), command.get("seed"))
        before = self.shelf.put(self.lab, f"before {verb}", exact=False)
        return self.act(plan, verb, payload, command, before)

    def plan(self, verb: str, payload: dict, arm: str | None, seed: int | None) -> dict[str, Any]:
        """The trainings that a change would meet, after every check; ValueError where one of them would refuse."""
        member = None
        if seed is not None:
            if seed not in self.lab.seeds:
                raise ValueError(f"there is no seed {seed} in this run")
            member = self.lab.seeds.index(seed)
        runs = self.lab.running(arm)
        if verb == "set":
            for run in runs.values():
                run.check(payload["name"], payload["value"], member)
            return runs
        if seed is not None:
            raise ValueError(f"{verb} changes all seeds of an arm: a layer is shared by the program that trains them")
        refusals, found = [], {}
        for name, run in runs.items():
            try:
                names = surgery.parameters(run, payload["layer"])
                if verb == "unfreeze" and not run.frozen & set(names):
                    raise ValueError(f"the layer {payload['layer']} is not frozen")
                found[name] = run
            except ValueError as refusal:
                refusals.append(refusal)
        if not found:
            raise refusals[0]
        return found

    def act(self, plan: dict, verb: str, payload: dict, command: dict, before: str = "") -> dict:
        """Apply a planned change and record it for each arm; the answer to the command."""
        seed = command.get("seed")
        member = None if seed is None else self.lab.seeds.index(seed)
        self.lab.steered = self.shelf.changed = True
        answer: dict[str, Any] = {}
        for arm, run in plan.items():
            old, new = None, payload.get("layer")
            if verb == "set":
                old, new = run.set(member, **{payload["name"]: payload["value"]})[payload["name"]]
            elif verb == "reset":
                surgery.reset(run, payload["layer"])
            else:
                surgery.freeze(run, payload["layer"], verb == "freeze")
            step = self.lab.arms[arm].step
            facts = {**payload, "old": old, "new": new, "by": command.get("by", ""), "checkpoint": before}
            self.ledger.event(self.run, verb, step=step, arm=arm, seed=seed, payload=facts)
            answer = answer or {"step": step, "old": old, "new": new}
        return answer

    # ---- the other verbs

    def _pause(self, _command=None, _payload=None) -> None:
        self.paused, self.left = True, 0
        self.ledger.flush()
        self.ledger.set_status(self.run, "paused")

    def _resume(self, _command, _payload) -> None:
        if not self.paused and not self.left:
            raise ValueError("the run is not paused")
        self._go()
        self.left = 0

    def _step(self, _command, payload) -> dict:
        self._go()
        self.left = payload["n"]
        return {"old": self.lab.done, "new": self.lab.done + payload["n"]}

    def _go(self) -> None:
        if self.paused:
            self.paused = False
            self.ledger.set_status(self.run, "running")

    def _checkpoint(self, _command, _payload) -> dict:
        name = self.shelf.put(self.lab, "asked for")
        self.shelf.settle()  # who asks for it may count on it from the answer on
        return {"new": name}

    def _rollback(self, command, payload) -> dict:
        name = payload.get("checkpoint") or self.shelf.at(payload["step"], command.get("arm"))
        old = self.lab.done
        self.shelf.take(self.lab, name, by=command.get("by", ""))
        return {"old": old, "new": name}

    def _fork(self, command, payload) -> dict:
        change = payload["change"]
        if change is not None:
            self.plan(change["verb"], change, command.get("arm"), command.get("seed"))
        before = self.shelf.put(self.lab, "before fork")
        return {"new": self.shelf.branch(before, change and {**change, "arm": command.get("arm"), "seed": command.get("seed")})}

    def _evaluate(self, command, _payload) -> dict:
        from claimlab.live import record

        found = self.lab.evaluate(command.get("arm"))
        for arm, tick in found:
            record(self.lab, self.ledger, self.run, arm, tick)
        self.ledger.flush()
        return {"new": {arm: tick.step for arm, tick in found}}

    def _drive(self, command, payload) -> dict:
        self.until = time.time() + payload["seconds"]
        self.holder = (payload["to"] or command.get("by") or "") if payload["seconds"] else ""
        self.ledger.event(self.run, "drive", payload={"holder": self.holder, "until": self.until})
        return {"new": self.holder}

    def _stop(self, command, _payload) -> None:
        done = self.lab.done
        self.ledger.answer(command["id"], True, step=done)
        self.ledger.event(self.run, "stop", step=done, payload={"by": command.get("by", "")})
        raise Stopped(f"stopped at step {done} of {self.lab.total}")
