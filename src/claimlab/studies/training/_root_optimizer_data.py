"""What root_optimizer trains on and what it trains: characters of a text and a small transformer, digits and a perceptron."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.data import digits, stratified
from claimlab.data import text as texts
from claimlab.models import transformer

CONTEXT = 32  # characters that the model reads
PASSAGE = 200  # characters that training and validation text must not share
HELD_OUT = 0.1  # share at the end that validates


# ---- the text


@dataclass(frozen=True)
class Corpus:
    """A text as numbers of its V distinct characters: `train` [n], and fixed, evenly spaced windows [k, CONTEXT + 1] of the
    last tenth: `judged` for the claims, `watched` for the curves; `tuning` are windows of the training text."""

    letters: str
    train: Tensor
    judged: Tensor
    watched: Tensor
    tuning: Tensor


@lru_cache(maxsize=2)
def corpus(path: str = "") -> Corpus:
    """The help topics, or the text file `path`; ValueError where that file does not serve."""
    text = own_text(path) if path else texts.topics()
    letters, whole = texts.numbered(text)
    train, held = whole[: border(text)], whole[border(text) :]
    judged, watched, tuning = (texts.windows(*pair, CONTEXT + 1) for pair in ((held, 400), (held, 48), (train, 400)))
    return Corpus(letters, train, judged, watched, tuning)


def border(text: str) -> int:
    """Where training ends and validation begins."""
    return round(len(text) * (1 - HELD_OUT))


def own_text(path: str | Path) -> str:
    """A UTF-8 text as `claimlab.data.text.own_text` reads it, with 30 distinct characters or more, whose last tenth repeats no
    passage of 200 characters of what comes before. ValueError names the file and what is wrong with it."""
    text = texts.own_text(path, kinds=(30, 2000))
    if twice := repeated(text):
        raise ValueError(f"{Path(path).name}: {twice:,} passages of {PASSAGE} characters stand both in the first 90 % (training) "
                         "and in the last 10 % (validation); remove what occurs twice")  # fmt: skip
    return text


def repeated(text: str) -> int:
    """How many windows of PASSAGE characters of the training part also stand in the validation part."""
    return texts.repeated(text[border(text) :], text[: border(text)], PASSAGE)


# ---- the model


class CharTransformer(transformer.CharTransformer):
    """The lab's small transformer. `hidden` are the matrices that an orthogonalised optimiser moves; `draw` is no weight: its
    gradient carries the random numbers of a step to the optimiser, and nothing moves it."""

    def __init__(self, letters: int, d: int, layers: int):
        super().__init__(letters, d, layers, context=CONTEXT)
        self.draw = nn.Parameter(torch.zeros(2))


def loss_on(net: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy [nats a character] of the windows [k, CONTEXT + 1]."""
    windows = windows.to(net.head.device)
    logits = torch.cat([net(few[:, :-1]) for few in windows.split(50)])  # few at a time stay in the cache
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


# ---- the second task


@lru_cache(maxsize=1)
def digit_parts() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1,400 digits to train on and 397 to test: pixels [n, 64] in [0, 1] and labels [n]; the same split for every seed."""
    images, labels = digits()
    rows = stratified(labels, 1400, np.random.default_rng(0))
    return tuple((torch.from_numpy(images[part].reshape(-1, 64)), torch.from_numpy(labels[part])) for part in rows)


class DigitNet(nn.Module):
    """64 pixels -> d -> d -> d -> 10 with ReLU; the two square matrices are `hidden`. [B, 64] -> [B, 10]."""

    def __init__(self, d: int):
        super().__init__()
        self.first, self.head = nn.Parameter(torch.randn(d, 64) / 8), nn.Parameter(torch.randn(10, d) / math.sqrt(d))
        self.hidden = nn.ParameterList(nn.Parameter(torch.randn(d, d) * math.sqrt(2 / d)) for _ in range(2))
        self.bias, self.draw = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        for weight in (self.first, *self.hidden):
            x = (x @ weight.mT).relu()
        return x @ self.head.mT + self.bias
