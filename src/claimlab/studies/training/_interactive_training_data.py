"""Text, digits and recorded interventions of interactive_training; a seed's data follow from the seed and the knobs alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.text import numbered, own_text, topics
from claimlab.data.text import windows as spaced

CONTEXT = 32  # characters that the model reads
SHARES = {"first": 0.425, "second": 0.425, "seen": 0.05, "judged": 0.10}  # by position in the text
RECORDED = Path(__file__).with_name("_interactive_training_expert.json")


# ---- text


@dataclass(frozen=True)
class Corpus:
    """A text as numbers of its characters, in four parts. `windows[name]` [n, CONTEXT + 1] are fixed, evenly spaced windows of
    the part that agent and plateau rule see, and of the part that judges."""

    letters: str
    parts: dict[str, Tensor]
    windows: dict[str, Tensor]

    @property
    def uniform(self) -> float:
        """ln V, the loss of a predictor that finds each of the V distinct characters equally likely [nats a character]."""
        return math.log(len(self.letters))


@lru_cache(maxsize=2)
def corpus(path: str = "", looked: int = 128, judged: int = 256) -> Corpus:
    """Python's own help topics, or the text file `path`; ValueError where that file does not serve."""
    text = own_text(path) if path else topics(repeats=True)
    letters, whole = numbered(text)
    ends = [round(len(text) * share) for share in np.cumsum(list(SHARES.values()))]
    parts = dict(zip(SHARES, torch.tensor_split(whole, ends[:-1]), strict=True))
    windows = {name: spaced(parts[name], count, CONTEXT + 1) for name, count in (("seen", looked), ("judged", judged))}
    return Corpus(letters, parts, windows)


# ---- digits: upright ones are the source, turned and inverted ones are what the users bring


@dataclass(frozen=True)
class Domains:
    """One seed's digits as pixels [n, 64] in [0, 1] with labels [n]: to train on, to arrive, and two tests of 300."""

    source: tuple[Tensor, Tensor]
    stream: tuple[Tensor, Tensor]
    old: tuple[Tensor, Tensor]
    new: tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def domains(seed: int, shift: float) -> Domains:
    """The tests hold the same 300 digits in both domains; no digit of the stream is in the source."""
    images, labels = data.digits()
    rng = np.random.default_rng(seed)
    rest, test = data.stratified(labels, len(labels) - 300, rng)
    source, stream = rest[:-300], rest[-300:]

    def pair(rows: np.ndarray, how_far: float) -> tuple[Tensor, Tensor]:
        x = shifted(images[rows], how_far).reshape(len(rows), -1)
        return torch.from_numpy(x), torch.from_numpy(labels[rows])

    return Domains(pair(source, 0.0), pair(stream, shift), pair(test, 0.0), pair(test, shift))


def shifted(images: np.ndarray, share: float) -> np.ndarray:
    """Images [n, H, W] turned by share * 90 degrees, and x -> (1 - share) x + share (1 - x); 0 leaves them as they are."""
    if share == 0:
        return images
    if share == 1:
        turned = np.rot90(images, axes=(1, 2))
    else:
        from scipy.ndimage import rotate

        turned = rotate(images, 90 * share, axes=(2, 1), reshape=False, order=1)
    return np.ascontiguousarray((1 - share) * turned + share * (1 - turned), dtype=np.float32)


# ---- interventions that somebody recorded


def interventions(path: str | Path = RECORDED) -> list[dict[str, Any]]:
    """[{step, command, args}] of a file: a JSON list, or an object that says who recorded it and holds `interventions`.

    The names of commands and values are checked where a session obeys them (`method.plan`), the form is checked here.
    ValueError names the file, the entry and what is wrong.
    """
    file = Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} is no JSON file of interventions: {error}") from None
    entries = found.get("interventions") if isinstance(found, dict) else found
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file.name} holds no list of interventions; it looks like [{{step, command, args}}, ...]")
    last = 0
    for k, one in enumerate(entries):
        if not isinstance(one, dict) or set(one) != {"step", "command", "args"} or not isinstance(one["args"], dict):
            raise ValueError(f"{file.name}: entry {k} is not of the form {{step, command, args}}")
        step = one["step"]
        if isinstance(step, bool) or not isinstance(step, int) or step < max(last, 1):
            raise ValueError(f"{file.name}: entry {k} is at step {step!r}; steps are whole numbers from 1 on that do not fall")
        last = step
    return entries


def recorder(path: str | Path = RECORDED) -> str:
    """Who recorded the interventions of a file, as the file says itself."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return str(found.get("recorded_by", "unknown")) if isinstance(found, dict) else "unknown"
