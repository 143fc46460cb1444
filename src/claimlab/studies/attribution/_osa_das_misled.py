"""The second condition of the study osa-das: a marker in the corner that a network may take for the class."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from claimlab.studies.attribution import _osa_das_method as method
from claimlab.studies.attribution._osa_das_arms import mapping
from claimlab.studies.attribution._osa_das_data import MARK
from claimlab.studies.attribution._osa_das_subject import Asked, Subject, subject
from claimlab.training import Run, Stepwise, Tick


class Misled(Stepwise):
    """Networks that learnt with a corner marker which agrees with nine digits of ten, and the share of every method's map that
    lies on the marker, on images where taking the marker away changes the predicted class."""

    def __init__(self, task, p, seeds: list[int]):
        self.p, self.run, self.arms = replace(p, images=min(p.images, 10)), Run(task, seeds), {}
        self.total, self.subjects = self.run.total, []

    members = property(lambda self: self.run.members)
    tasks = property(lambda self: self.run.tasks)
    step = property(lambda self: self.run.step)
    budget = property(lambda self: self.run.budget)

    def stepwise(self):
        last = None
        for tick in self.run.stepwise():
            last = tick or last
            yield tick if self.run.step < self.total else None
        self.subjects = [self._subject(*one) for one in zip(self.run.seeds, self.members, self.tasks, strict=True)]
        self.arms = yield from mapping(self.subjects, self.p)
        spot = torch.zeros(self.subjects[0].x.shape[-2:], device=self.subjects[0].x.device)
        spot[:MARK, :MARK] = 1
        metrics = [m | self._found(i, spot) for i, m in enumerate(last.metrics)]
        yield Tick(self.step, metrics, last.losses, diverged=last.diverged)

    def _subject(self, seed: int, net: nn.Module, task) -> Subject:
        """Images whose marker names the class, those first whose predicted class changes without it."""
        (x, y), ask = task.test, Asked(net).logits
        there = ask(x).argmax(1)
        fits = (there == y) & (task.says == y)
        order = (fits.int() + (fits & (ask(task.bare).argmax(1) != there)).int()).argsort(descending=True, stable=True)
        return subject(seed, net, x, order[: self.p.images], task.box, task.bare)

    def _found(self, i: int, spot: Tensor) -> dict[str, float]:
        s = self.subjects[i]
        decided = s.asked.logits(s.bare).argmax(1) != s.y
        found = {"marker_decides": float(decided.float().mean())}
        for name, arm in self.arms.items() if decided.any() else ():
            share = method.mass_inside(arm.maps[i], spot.expand(len(s.x), -1, -1))
            found[f"mass_on_marker, {name}"] = float(share[decided].mean())
        return found
