"""What root_optimizer trains on and what it trains: characters of a text and a small transformer, digits and a perceptron."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.data import digits, stratified

CONTEXT = 32  # characters that the model reads
LEAST = 200_000  # bytes of a text of one's own
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
    text = own_text(path) if path else topics()
    letters = "".join(sorted(set(text)))
    place = {c: k for k, c in enumerate(letters)}
    whole = torch.tensor([place[c] for c in text])
    train, held = whole[: border(text)], whole[border(text) :]
    return Corpus(letters, train, _spaced(held, 400), _spaced(held, 48), _spaced(train, 400))


def border(text: str) -> int:
    """Where training ends and validation begins."""
    return round(len(text) * (1 - HELD_OUT))


@lru_cache(maxsize=1)
def topics() -> str:
    """The text of pydoc_data.topics. Topics quote one another, so a paragraph that has occurred before is left out."""
    from pydoc_data.topics import topics as found

    first: dict[str, str] = {}
    for name in sorted(found):
        for paragraph in re.split(r"\n\s*\n", found[name]):
            first.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join(first.values())


def _spaced(part: Tensor, count: int) -> Tensor:
    starts = torch.linspace(0, len(part) - CONTEXT - 1, count).long()
    return part[starts[:, None] + torch.arange(CONTEXT + 1)]


def own_text(path: str | Path) -> str:
    """A UTF-8 text of more than 200 kB with 30 to 2,000 distinct characters, whose last tenth repeats no passage of 200
    characters of what comes before. ValueError names the file and what is wrong with it."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a UTF-8 text file is needed")
    raw = file.read_bytes()
    if len(raw) <= LEAST:
        raise ValueError(f"{file.name} has {len(raw):,} bytes; more than {LEAST:,} are needed")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8: byte {error.start:,} does not fit; save it again as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{file.name} holds zero bytes; it is no plain text")
    if not 30 <= (kinds := len(set(text))) <= 2000:
        raise ValueError(f"{file.name} has {kinds:,} distinct characters; 30 to 2,000 are allowed")
    if twice := repeated(text):
        raise ValueError(f"{file.name}: {twice:,} passages of {PASSAGE} characters stand both in the first 90 % (training) and "
                         "in the last 10 % (validation); remove what occurs twice")  # fmt: skip
    return text


def repeated(text: str) -> int:
    """How many windows of PASSAGE characters of the training part also stand in the validation part."""
    cut = border(text)
    held = {hash(text[i : i + PASSAGE]) for i in range(cut, len(text) - PASSAGE + 1)}
    return sum(hash(text[i : i + PASSAGE]) in held for i in range(cut - PASSAGE + 1))


# ---- the model: B windows of T characters, d numbers a character, h heads, V letters


class CharTransformer(nn.Module):
    """Characters [B, T] -> logits of the next one [B, T, V]. Pre-norm blocks x + attention(norm(x)), x + mlp(norm(x)).

    `hidden` holds the matrices that an orthogonalised optimiser moves: q, k, v, o [d, d], up [4d, d], down [d, 4d] of each
    block; all else is vectors, tables and the output layer. First weights N(0, 1 / inputs), tables N(0, 0.09). `draw` is no
    weight: its gradient carries the random numbers of a step to the optimiser, and nothing moves it.
    """

    def __init__(self, letters: int, d: int, layers: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.letter = nn.Parameter(0.3 * torch.randn(letters, d))
        self.place = nn.Parameter(0.3 * torch.randn(CONTEXT, d))
        shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (4 * d, d), "down": (d, 4 * d)}
        self.hidden = nn.ModuleList(
            nn.ParameterDict({name: nn.Parameter(torch.randn(a, b) / math.sqrt(b)) for name, (a, b) in shapes.items()})
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * layers + 1))
        self.head, self.draw = nn.Parameter(0.02 * torch.randn(letters, d)), nn.Parameter(torch.zeros(2))
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -math.inf).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter[x] + self.place[: x.shape[-1]]
        for i, weights in enumerate(self.hidden):
            h = h + self.attention(self.norms[2 * i](h), weights)
            h = h + (self.norms[2 * i + 1](h) @ weights["up"].mT).relu() @ weights["down"].mT
        return self.norms[-1](h) @ self.head.mT

    def attention(self, x: Tensor, weights: nn.ParameterDict) -> Tensor:
        """Every place attends to itself and to what came before; [B, T, d] -> [B, T, d]."""
        t, d = x.shape[-2:]
        q, k, v = ((x @ weights[name].mT).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for name in "qkv")
        attended = (q @ k.mT * (d // self.heads) ** -0.5 + self.mask[:t, :t]).softmax(-1) @ v
        return attended.transpose(-2, -3).flatten(-2) @ weights["o"].mT


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
