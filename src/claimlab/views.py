"""What one watches while a network learns: a study's VIEWS, drawn between two steps and only while somebody looks.

Afterwards, and for earlier moments, the networks come from checkpoints (`Looking`); the same networks answer an input of the
reader's own (a study's TRY). Nothing here changes training: a view gets a copy of the network.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from claimlab.checkpoints import Shelf
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.study import find

EVERY = 1.0  # seconds between two pictures of the same thing, at least
SHARE = 0.05  # of a run's time that may go into pictures
LOOK = 0.2  # seconds between two looks at who watches


def draw(lab: Experiment, view: str, arm: str, seed: int) -> Any:
    """The figure of one view for the network of one seed of an arm; KnobError where there is none, with the reason."""
    known = getattr(lab.study.module, "VIEWS", {})
    if view not in known:
        raise KnobError(f"{lab.study.slug} has no view {view!r}; its views: {', '.join(known) or 'none'}")
    net = copy.deepcopy(member(lab, arm, seed))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        return known[view](net.eval(), lab.params)


def member(lab: Experiment, arm: str, seed: int) -> Any:
    """The network of one seed of an arm as it is now; KnobError where there is none."""
    if arm not in lab.specs:
        raise KnobError(f"there is no arm {arm!r}; arms: {', '.join(lab.specs)}")
    if seed not in lab.seeds:
        raise KnobError(f"there is no seed {seed} in this run")
    if arm not in lab.arms:
        raise KnobError(f"the arm {arm} has not begun")
    if arm not in networks(lab):
        raise KnobError(f"the arm {arm} has no network to look at")
    return lab.arms[arm].members[lab.seeds.index(seed)]


def networks(lab: Experiment) -> list[str]:
    """The arms that have a network to look at."""
    members = {name: getattr(arm, "members", None) for name, arm in lab.arms.items()}
    return [n for n, found in members.items() if isinstance(found, list) and found and isinstance(found[0], torch.nn.Module)]


class Gallery:
    """The pictures of a run that somebody watches; call `between` after every step."""

    def __init__(self, lab: Experiment, ledger: Ledger, run: str):
        self.lab, self.ledger, self.run = lab, ledger, run
        self.next = 0.0

    def between(self) -> None:
        """Draw what is watched, unless it is too soon: at most once in EVERY seconds and for SHARE of the time."""
        began = time.monotonic()
        if began < self.next:
            return
        wanted = [one for one in self.ledger.watched(self.run) if one["reason"] or one["step"] != self._step(one["arm"])]
        for one in wanted:
            self._renew(one)
        spent = time.monotonic() - began
        self.next = began + (max(EVERY, spent / SHARE) if wanted else LOOK)

    def _step(self, arm: str) -> int:
        return int(getattr(self.lab.arms.get(arm), "step", 0))

    def _renew(self, wanted: dict[str, Any]) -> None:
        try:
            figure, reason = draw(self.lab, wanted["view"], wanted["arm"], wanted["seed"]).to_json(), ""
        except Exception as error:  # a picture that cannot be drawn must not end the run
            figure, reason = None, str(error) if isinstance(error, KnobError) else f"{type(error).__name__}: {error}"
        self.ledger.show(wanted["id"], self._step(wanted["arm"]), figure, reason)


class Looking:
    """The networks of a run at its checkpoints, by default the last one."""

    def __init__(self, ledger: Ledger, run: str):
        row = ledger.run(run)
        study = find(row["study"])
        self.shelf, self.at = Shelf(ledger, run), ""
        self.lab = Experiment(study, study.module.Params(**row["params"]), row["seeds"])

    def go(self, checkpoint: str = "") -> None:
        """Set the networks to a checkpoint, without a name the last one; KnobError where there is none."""
        known = [one["name"] for one in self.shelf.all()]
        if not known or checkpoint and checkpoint not in known:
            raise KnobError(f"there is no checkpoint {checkpoint!r}" if known else "this run has left no checkpoint to look at")
        name = checkpoint or known[-1]
        if name != self.at:
            self.lab.load(self.shelf.read(name), again=False)
            self.at = name


def answer(lab: Experiment, trial: str, value: Any) -> dict[str, dict[str, list[float]]]:
    """What every network answers to an input of one's own: {arm: {answer: [its share a seed]}}; KnobError for an unknown trial."""
    known = getattr(lab.study.module, "TRY", {})
    if trial not in known:
        raise KnobError(f"{lab.study.slug} has nothing to try called {trial!r}; there is: {', '.join(known) or 'nothing'}")
    one, found = known[trial], {}
    for arm in [name for name in one.arms if name in lab.specs] or networks(lab):
        nets = [copy.deepcopy(member(lab, arm, seed)) for seed in lab.seeds]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            answers = [one.answer(net.eval(), lab.params, value) for net in nets]
        keys = dict.fromkeys(key for answer in answers for key in answer)
        found[arm] = {key: [float(answer.get(key, 0.0)) for answer in answers] for key in keys}
    return found


def serve(looking: Looking, lines: Iterable[str]) -> Iterator[str]:
    """Answer requests, a line of JSON each, with a line of JSON each.

    {"view", "arm", "seed", "checkpoint"} gives {"figure", "checkpoint"}; {"trial", "value", "checkpoint"} gives {"answers"};
    anything that cannot be done gives {"reason"}.
    """
    for line in filter(str.strip, lines):
        try:
            request = json.loads(line)
            looking.go(request.get("checkpoint") or "")
            if "trial" in request:
                reply = {"answers": answer(looking.lab, request["trial"], request.get("value"))}
            else:
                figure = draw(looking.lab, request["view"], request["arm"], int(request["seed"]))
                reply = {"figure": json.loads(figure.to_json())}
            reply |= {"checkpoint": looking.at, "arms": networks(looking.lab)}
        except (KnobError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reply = {"reason": str(error) if isinstance(error, KnobError | ValueError) else f"{type(error).__name__}: {error}"}
        yield json.dumps(reply)


def trouble(lab: Experiment) -> list[str]:
    """What is wrong with the views and trials of a finished experiment: each must work for every arm that has a network."""
    found, arms = [], networks(lab)
    for view in getattr(lab.study.module, "VIEWS", {}):
        drawn = {}
        for arm in arms:
            try:
                drawn[arm] = draw(lab, view, arm, lab.seeds[0])
            except Exception as error:
                found.append(f"the view {view!r} of {arm} fails: {type(error).__name__}: {error}")
        found += [f"the view {view!r} of {arm} is empty" for arm, one in drawn.items() if not one.data and not one.layout.title.text]
        if not any(one.data for one in drawn.values()):
            found.append(f"the view {view!r} shows no arm")
    for name, trial in getattr(lab.study.module, "TRY", {}).items():
        if trial.kind == "image":
            try:
                answers = answer(lab, name, [[0.0] * trial.shape[1] for _ in range(trial.shape[0])])
            except ValueError:  # at this setting the networks take other inputs
                continue
            sums = [sum(shares) for one in answers.values() for shares in zip(*one.values(), strict=True)]
            found += [f"the shares that {name!r} answers do not add up to 1"] if any(abs(s - 1) > 1e-4 for s in sums) else []
    return found
