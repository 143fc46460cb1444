"""Agents of interactive_training: the text log of a session in, one JSON command or a no-op out."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
from dataclasses import dataclass

import numpy as np

from claimlab.studies.training._interactive_training_method import HEAD, parse


@dataclass(frozen=True)
class Seen:
    """A log read back. `records` [n, 5] has the columns of HEAD; validation is NaN between looks."""

    step: int
    total: int
    window: int
    cut: float
    alarm: float
    best: float
    best_step: int
    commands: tuple[tuple[int, str], ...]
    records: np.ndarray

    @property
    def lr(self) -> float:
        return float(self.records[-1, 1])

    @property
    def validations(self) -> np.ndarray:
        looked = self.records[:, 4]
        return looked[~np.isnan(looked) | (np.arange(len(looked)) == len(looked) - 1)]  # the last record is always a look


def read(text: str) -> Seen:
    """The inverse of Session.text."""
    lines = text.splitlines()
    first, best, split = lines[0].split(), lines[1].split(), lines.index(HEAD)
    said = [line.removeprefix("command at ").partition(": ")[::2] for line in lines[2:split]]
    records = np.array([[float(word) for word in line.split()] for line in lines[split + 1 :]]).reshape(-1, 5)
    return Seen(int(first[1]), int(first[3]), int(first[5]), float(first[7]), float(first[9]), float(best[1]), int(best[3]),
                tuple((int(step), what) for step, what in said), records)  # fmt: skip


def rules(text: str) -> str:
    """The default agent, deterministic: a text log in, one JSON command or a no-op out. The first rule that fits decides.

    Between two commands it waits for half a window; rules 2 to 4 need a whole window of the present branch.
    """
    seen = read(text)
    if seen.commands and seen.step - seen.commands[-1][0] < seen.window / 2:
        return "no-op"
    loss, now = seen.records[-1, 2], seen.validations[-1]
    if not math.isfinite(loss) or not now <= seen.alarm * seen.best:
        change = {"verb": "set", "name": "lr", "value": seen.lr * seen.cut}
        why = f"validation {now:.3g}, alarm at {seen.alarm * seen.best:.3g}"
        return json.dumps({"verb": "rollback", "step": seen.best_step, "change": change, "reason": f"runaway: {why}"})
    if len(seen.records) < seen.window or not np.isfinite(seen.records[:, 2]).all():
        return "no-op"
    factor, why = _trend(seen)
    return json.dumps({"verb": "set", "name": "lr", "value": seen.lr * factor, "reason": why}) if factor != 1 else "no-op"


def _trend(seen: Seen) -> tuple[float, str]:
    """Rules 2 to 4 as a factor on the learning rate (1: none fits) and a reason."""
    norms, looks = np.array_split(seen.records[:, 3], 2), np.diff(seen.validations[-3:])
    slope, noise = trend(seen.records[:, 2])
    if len(looks) == 2 and (looks > 0).all() and norms[1].var() > norms[0].var():
        return 0.5, "restless: gradients vary more, validation rose twice"
    recent = [step for step, what in seen.commands if "plateau" in what and seen.step - step < seen.window]
    if abs(slope) < 1e-3 and not (looks[-1:] > 0).any() and not recent:
        return 0.5, f"plateau: log loss changes by {slope:+.1e} a step"
    steady = seen.best_step == seen.step and (looks < 0).all()  # not on the way back from a crash
    if seen.step <= 3 * seen.window and slope < -1e-3 and steady and noise < 0.1:
        return 1.5, f"steady: log loss changes by {slope:+.1e} a step, noise {noise:.2f}"
    return 1.0, ""


def trend(losses: np.ndarray) -> tuple[float, float]:
    """Slope a step of the straight line through log losses [n], and the standard deviation around it."""
    x, y = np.arange(len(losses)), np.log(losses)
    slope, level = np.polyfit(x, y, 1)
    return float(slope), float((y - slope * x - level).std())


def rate_only(text: str) -> str:
    """The same agent without a way back: of a rollback it keeps the change of the rate alone."""
    command = parse(rules(text))
    if command is None or command["verb"] != "rollback":
        return "no-op" if command is None else json.dumps(command)
    return json.dumps({**command["change"], "reason": command["reason"]})


def plateau_cuts(losses: list[float], patience: int = 3, threshold: float = 1e-4) -> int:
    """How often torch's ReduceLROnPlateau (mode min, relative threshold) has cut the rate after these validation losses."""
    best, bad, cuts = math.inf, 0, 0
    for loss in losses:
        better = loss < best * (1 - threshold)
        best, bad = (loss, 0) if better else (best, bad + 1)
        if bad > patience:
            cuts, bad = cuts + 1, 0
    return cuts


def external(text: str) -> str:
    """Ask the program that CLAIMLAB_AGENT names (a command line): log on its standard input, JSON on its standard output."""
    command = os.environ.get("CLAIMLAB_AGENT", "")
    if not command:
        return json.dumps({"verb": "no agent: CLAIMLAB_AGENT is not set"})
    try:
        done = subprocess.run(shlex.split(command), input=text, capture_output=True, text=True, timeout=60)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return json.dumps({"verb": f"no answer: {type(error).__name__}"})
    return done.stdout if done.returncode == 0 else json.dumps({"verb": f"no answer: exit {done.returncode}"})
