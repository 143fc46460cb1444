"""`claimlab new`: the three files of a new study, complete up to the parts that a person must write."""

from __future__ import annotations

import re
from pathlib import Path

from claimlab.study import FAMILIES, StudyError, catalogue, read

MODULE = '''"""{slug}: To write: what it is in one sentence, and the question."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from claimlab import data
from claimlab import figures as draw
from claimlab.claims import Claim
from claimlab.models import mlp
from claimlab.params import knob
from claimlab.study import Control, Paper
from claimlab.training import Supervised

PAPER = Paper(
    title="To write: the title", authors="To write: the authors", year=2024, url="https://example.org", theme="stages",
    system="{slug}", question="To write: the question, in words that a student understands?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    strength: float = knob(0.0, "To write: what the knob does; 0 is the baseline", low=0.0, high=1.0, live=True)
    steps: int = knob(400, "optimiser steps", low=20, high=20000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=20, seeds=2)
    FULL = dict(steps=2000, seeds=10)
    CONTROL = Control(set=dict(strength=0.0), vanishes=("better",), why="To write: why the effect vanishes there.")


CLAIMS = (
    Claim("better", "To write: the claim, as a sentence that data can refute.", kind="paired", metric="test_accuracy",
          arm="method", baseline="baseline", better="higher", margin=0.01, source="To write: table or section"),
)  # fmt: skip
HONESTY = "To write: what the scale hides, in two sentences."


# ---- the method: pure functions and small modules, with equation, symbols, shapes and source


def blur(x: torch.Tensor, strength: float) -> torch.Tensor:
    """To write: the method. x [B, D] -> [B, D]; equal to x at strength 0."""
    return x * (1 - strength)


# ---- the experiment: one Task an arm


class Baseline(Supervised):
    """Plain training on digits."""

    def bind(self, seed):
        bound = copy.copy(self)
        images, labels = data.digits()
        train, test = data.stratified(labels, 900, np.random.default_rng(seed))
        x, y = torch.from_numpy(images).flatten(1), torch.from_numpy(labels)
        bound.x, bound.y, bound.test = x[train], y[train], (x[test], y[test])
        return bound

    def init(self):
        return mlp(64, 64, 10)

    def metrics(self, net):
        x, y = self.test
        return {{"test_accuracy": (net(x).argmax(1) == y).float().mean()}}


class Method(Baseline):
    """The paper's method in the same code path."""

    def loss(self, net, x, y):
        return super().loss(net, blur(x, self.p.strength), y)


ARMS = {{"baseline": Baseline, "method": Method}}


def figures(lab):
    return {{"accuracy": draw.curve(lab.table, "test_accuracy", title="To write: what one sees", y_title="test accuracy (share)",
                                   palette=draw.arm_colours(lab))}}  # fmt: skip
'''

TEST = '''"""To write: oracles of {slug}: something that was not written here."""

import torch

from claimlab.study import find
from claimlab.training import Run

STUDY = find("{slug}")


def test_at_the_limit_knob_the_method_is_the_baseline():
    params = STUDY.module.Params(strength=0.0, steps=20, seeds=2)
    runs = [Run(STUDY.module.ARMS[arm](params), range(2)) for arm in ("baseline", "method")]
    for run in runs:
        list(run)
    for one, other in zip(*(r.members for r in runs), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
'''


def write(slug: str, family: str, root: Path, folder: Path | None = None) -> list[Path]:
    """Write module, notebook and test of a new study under `root`, or side by side in a folder of studies of one's own; their
    paths. StudyError for a bad or taken name."""
    from claimlab.cells import template

    slug = slug.replace("_", "-").lower()
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        raise StudyError(f"{slug!r} is no name for a study: small letters, digits and hyphens, a letter first")
    if family not in FAMILIES:
        raise StudyError(f"{family!r} is not a family: one of {', '.join(FAMILIES)}")
    if slug in {s.slug for s in catalogue()}:
        raise StudyError(f"there is a study {slug} already")
    stem = slug.replace("-", "_")
    tops = ("src/claimlab/studies", "tests/studies", "notebooks")
    places = [root / top / family for top in tops] if folder is None else [folder / family] * 3
    module, test, notebook = (p / name for p, name in zip(places, (f"{stem}.py", f"test_{stem}.py", f"{stem}.ipynb"), strict=True))
    for path, text in ((module, MODULE), (test, TEST)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(slug=slug), encoding="utf-8")
    notebook.parent.mkdir(parents=True, exist_ok=True)
    notebook.write_text(template(read(module, family)), encoding="utf-8")
    return [module, notebook, test]
