"""Joins an Experiment to the ledger: logs its ticks, obeys commands between two steps, records verdicts and figures."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from claimlab import experiment as experiments
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger, home
from claimlab.params import KnobError, values
from claimlab.study import Study
from claimlab.training import Tick
from claimlab.training.run import SETTABLE

BEAT = 0.5


class Stopped(RuntimeError):
    """The run obeyed a stop command; what was recorded is kept."""


def validate(study: Study, verb: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Check a command before it is queued, and again where it is applied; the payload with values of the right type.

    KnobError names the setting, the value and the allowed range; only knobs marked live can be set.
    """
    if verb == "stop":
        return {}
    if verb != "set":
        raise KnobError(f"the verb {verb!r} is not known here; verbs: set, stop")
    name, value = payload.get("name"), payload.get("value")
    if name in SETTABLE:
        low, high = SETTABLE[name]
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise KnobError(f"{name} = {value} is not allowed: {name} must be in [{low:g}, {high:g}]")
        return {"name": name, "value": number}
    knob = {k.name: k for k in study.knobs}.get(name)
    if knob is None or not knob.live:
        live = [k.name for k in study.knobs if k.live]
        raise KnobError(f"{name} cannot be changed while the run goes on; settings that can: {', '.join([*SETTABLE, *live])}")
    return {"name": name, "value": knob.check(value)}


def execute(study: Study, params: Any, ledger: Ledger, run: str, *, seeds: Sequence[int] | None = None,
            on_tick: Callable[[Experiment, str, Tick], None] | None = None) -> Experiment:  # fmt: skip
    """Drive the experiment of `study` as run `run` of the ledger and return it finished and judged.

    Raises Stopped after a stop command. Points are kept whatever happens. The status `finished` is the caller's to set.
    """
    params = study.module.Params(**values(params))
    lab = Experiment(study, params, seeds)
    ledger.set_status(run, "running")
    told: set[tuple[str, int]] = set()
    with _Heart(ledger, run, lab):
        try:
            for pair in lab.stepwise():
                _obey(study, lab, ledger, run)
                if pair is None:
                    continue
                _log(lab, ledger, run, *pair, told)
                if on_tick is not None:
                    on_tick(lab, *pair)
            _conclude(lab, ledger, run)
        finally:
            ledger.flush()
    return lab


def _log(lab: Experiment, ledger: Ledger, run: str, arm: str, tick: Tick, told: set[tuple[str, int]]) -> None:
    ledger.log(run, [row[1:] for row in experiments.rows(lab.study.slug, arm, lab.seeds, tick)])
    for member in tick.diverged:
        if (arm, member) not in told:
            told.add((arm, member))
            ledger.event(run, "diverged", step=tick.step, arm=arm, seed=lab.seeds[member])


def _conclude(lab: Experiment, ledger: Ledger, run: str) -> None:
    ledger.flush()
    ledger.record_verdicts(run, [v.as_dict() for v in lab.verdicts()])
    ledger.event(run, "budget", payload={"arms": lab.budgets.to_dict("records")})
    folder = home() / run / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in lab.figures().items():
        path = folder / f"{name}.json"
        path.write_text(figure.to_json(), encoding="utf-8")
        ledger.artifact(run, f"figure:{name}", str(path))


def _obey(study: Study, lab: Experiment, ledger: Ledger, run: str) -> None:
    """Apply what has been asked since the last step; a refusal leaves the run unharmed."""
    for command in ledger.pending(run):
        try:
            payload = validate(study, command["verb"], command["payload"])
            if command["verb"] == "stop":
                ledger.answer(command["id"], True, step=lab.done)
                ledger.event(run, "stop", step=lab.done, payload={"by": command.get("by", "")})
                raise Stopped(f"stopped at step {lab.done} of {lab.total}")
            _set(lab, ledger, run, command, payload)
        except (KnobError, ValueError) as refusal:
            ledger.answer(command["id"], False, reason=str(refusal))


def _set(lab: Experiment, ledger: Ledger, run: str, command: dict, payload: dict) -> None:
    seed = command.get("seed")
    if seed is not None and seed not in lab.seeds:
        raise ValueError(f"there is no seed {seed} in this run")
    member = None if seed is None else lab.seeds.index(seed)
    changed = lab.set(payload["name"], payload["value"], arm=command.get("arm"), member=member)
    for arm, (old, new) in changed.items():
        ledger.event(run, "set", step=lab.arms[arm].step, arm=arm, seed=seed,
                     payload={"name": payload["name"], "old": old, "new": new, "by": command.get("by", "")})  # fmt: skip
    arm, (old, new) = next(iter(changed.items()))
    ledger.answer(command["id"], True, step=lab.arms[arm].step, old=old, new=new)


class _Heart:
    """Beats from a thread of its own, so that a long step is not taken for a dead process."""

    def __init__(self, ledger: Ledger, run: str, lab: Experiment):
        self.url, self.run, self.lab = ledger.url, run, lab
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(timeout=5)

    def _beat(self) -> None:
        ledger = Ledger(self.url)
        while True:
            ledger.heartbeat(self.run, self.lab.done, self.lab.total)
            if self.over.wait(BEAT):
                break
        ledger.heartbeat(self.run, self.lab.done, self.lab.total)
        ledger.close()
