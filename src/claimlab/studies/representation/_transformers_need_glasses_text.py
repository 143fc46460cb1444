"""The same rows for a model of letters: a small one trained on a text, or one of your own as a TorchScript file.

The text is Python's help topics, or a file named by the environment variable CLAIMLAB_DATA. `model.pt` there needs
`model.json` beside it, {"tokens": ["0", "1", ",", ...], "longest": 512}; it takes token numbers [B, T] (int64, places in that
list) and returns the last layer's states [B, T, d]. TorchScript holds tensors and torch operations; load only files you trust.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from claimlab.data.text import numbered, own_text, topics
from claimlab.studies.representation import _transformers_need_glasses_net as nets
from claimlab.studies.representation import _transformers_need_glasses_rows as rows
from claimlab.training import Run, Stepwise, Task, Tick

NEEDED = ("0", "1", ",")
WINDOW, SEEDS, FED = 128, 2, 700


def path() -> str:
    return os.environ.get("CLAIMLAB_DATA", "")


@dataclass(frozen=True)
class Letters:
    """A text as numbers [N], its distinct characters in order."""

    numbers: Tensor
    tokens: tuple[str, ...]


@lru_cache(maxsize=2)
def letters(file: str = "") -> Letters:
    """The help topics or the text in `file`; ValueError where it is short or lacks one of the signs 0, 1 and comma."""
    text = own_text(file, least=20_000, kinds=(4, 500)) if file else topics()
    tokens, numbers = numbered(text)
    check_tokens(tokens, Path(file).name)
    return Letters(numbers, tuple(tokens))


def check_tokens(tokens: Any, name: str) -> None:
    """ValueError names the signs that are absent."""
    if absent := [repr(sign) for sign in NEEDED if sign not in tokens]:
        raise ValueError(f"{name}: no token for {' and '.join(absent)}; the rows are made of 0, 1 and comma, each one token")


class Foreign:
    """A causal language model from a TorchScript file: tokens, longest row, states. ValueError where it does not fit."""

    def __init__(self, file: str):
        name, notes = Path(file).name, Path(file).with_suffix(".json")
        if not Path(file).is_file() or not notes.is_file():
            raise ValueError(f"{name}: the model and beside it {notes.name} with its tokens are needed; one of them is absent")
        try:
            found = json.loads(notes.read_text(encoding="utf-8"))
            self.tokens, self.longest = list(found["tokens"]), int(found["longest"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{notes.name} must hold a list 'tokens' and a whole number 'longest': {error}") from None
        check_tokens(self.tokens, notes.name)
        if self.longest < 16:
            raise ValueError(f"{notes.name}: longest is {self.longest}; rows of at least 16 tokens are needed")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self.net = torch.jit.load(file, map_location="cpu").eval()
            first, other = (self.states(torch.tensor([row])) for row in ([0, 1, 0, 1], [0, 1, 0, 0]))
        except RuntimeError as error:
            raise ValueError(f"{name} does not run as TorchScript on tokens [B, T]: {str(error).splitlines()[-1]}") from None
        if first.dim() != 3 or first.shape[:2] != (1, 4) or not first.is_floating_point() or not first.isfinite().all():
            raise ValueError(f"{name} returns {list(first.shape)} for tokens [1, 4]; finite states [1, 4, d] are needed")
        if not torch.allclose(first[:, :3], other[:, :3], atol=1e-5):
            raise ValueError(f"{name} is not causal: the states of the first three tokens change with the fourth")

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, d]; ValueError for a row longer than the model takes."""
        if tokens.shape[1] > self.longest:
            raise ValueError(f"a row of {tokens.shape[1]} tokens is longer than the model's {self.longest}")
        return self.net(tokens)


class Reader(Task):
    """Next letter of windows of WINDOW letters."""

    lr, ahead, batch_size = 3e-3, 20, 8
    every = property(lambda self: max(1, self.steps // 12))

    def __init__(self, params):
        super().__init__(params)
        self.text = letters(path())

    def init(self):
        return nets.Transformer(len(self.text.tokens), self.p.width, self.p.layers, code=self.p.position, outputs=len(self.text.tokens))

    def block(self, net, rng, step, n):
        starts = torch.randint(len(self.text.numbers) - WINDOW, (n, self.batch_size, 1), generator=rng)
        return (self.text.numbers[starts + torch.arange(WINDOW + 1)],)

    def batch(self, net, rng, step):
        return (self.block(net, rng, step, 1)[0][0],)

    def loss(self, net, window):
        told = nets.norm(net(window[:, :-1], self.p.logit_gain)) @ net.read
        return cross_entropy(told.flatten(0, 1), window[:, 1:].flatten())


def translate(row: Tensor, tokens: Any) -> Tensor:
    """Rows of ZERO, ONE and COMMA in the numbers of another list of tokens."""
    return torch.tensor([list(tokens).index(sign) for sign in NEEDED])[row]


@torch.no_grad()
def separation(states, tokens: Any, every: int, at: list[int]) -> np.ndarray:
    """L1 distance of the normed last states of 1^(n-1) 0 and 1^(n-1) 0 0 for each n of `at`."""
    pairs = []
    for n in at:
        both = (translate(rows.punctuate(rows.ending(n, again), every), tokens) for again in (False, True))
        pairs.append(torch.stack([nets.norm(states(row)[0, -1]) for row in both]))
    return nets.apart(torch.stack(pairs)).numpy()


def lengths(longest: int, every: int) -> list[int]:
    """8, 16, ... signs while n + 1 of them and their separators fit into `longest` tokens."""
    return [2**k for k in range(3, 11) if 2**k + 1 + (2**k // every if every else 0) <= longest]


class Text(Stepwise):
    """Trains SEEDS readers and feeds them the rows, or feeds a model from a file; metrics distance_<n> and distance_<n>_commas."""

    def __init__(self, p: Any, seeds: list[int]):
        self.p, self.seeds = p, seeds
        self.foreign = Foreign(path()) if path().endswith(".pt") else None
        if not self.foreign:
            self.run = Run(Reader(p), seeds[:SEEDS])
        self.total = 1 if self.foreign else self.run.total
        self.nets = [] if self.foreign else self.run.members

    step = property(lambda self: 0 if self.foreign else self.run.step)

    def stepwise(self):
        if self.foreign:
            yield self.told(1, [self.measured(self.foreign.states, self.foreign.tokens, self.foreign.longest)])
            return
        for tick in self.run.stepwise():
            last, found = self.run.step == self.total, [{}] * len(self.nets)
            if tick and tick.losses is not None:
                found = [{"letter_loss": float(loss)} for loss in tick.losses]
            if tick and last:
                tokens = self.run.task.text.tokens
                seen = [self.measured(lambda t, net=net: net(t, self.p.logit_gain), tokens, FED) for net in self.nets]
                found = [known | more for known, more in zip(found, seen, strict=True)]
            yield tick and self.told(tick.step, found)

    def told(self, step: int, found: list[dict[str, float]]) -> Tick:
        return Tick(step, [*found, *[{}] * (len(self.seeds) - len(found))])

    def measured(self, states, tokens, longest: int) -> dict[str, float]:
        found = {}
        for name, every in (("", 0), ("_commas", self.p.comma_every)):
            at = lengths(longest, every)
            found |= {f"distance_{n}{name}": float(d) for n, d in zip(at, separation(states, tokens, every, at), strict=True)}
        return found


class Arm:
    """Runs where the knob `text` is on or CLAIMLAB_DATA names a file."""

    @staticmethod
    def when(p: Any) -> bool:
        return p.text or bool(path())

    def __call__(self, p: Any, seeds: list[int]) -> Text:
        return Text(p, seeds)
