"""Four small classifiers of token sequences: transformer, perceptron, convolutions, LSTM, with about equally many parameters.

Tokens are patches x [..., B, T, D] (float) or words x [..., B, T] (whole numbers); every network answers with logits [..., B, C].
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor, nn

from claimlab.models import mlp

WIDTH, HEADS, HIDDEN = 48, 4, 96


@dataclass(frozen=True)
class Form:
    """What a network reads and answers: T tokens of `inputs` numbers, or of a vocabulary of `words`; C classes.

    Patches lie in rows on a square; `channels` is the number of colours, so that a patch has inputs / channels pixels.
    """

    tokens: int
    classes: int
    inputs: int = 0
    words: int = 0
    channels: int = 1

    def embedding(self) -> nn.Module:
        """Each token as WIDTH numbers."""
        return nn.Embedding(self.words, WIDTH) if self.words else nn.Linear(self.inputs, WIDTH)

    def picture(self, x: Tensor) -> Tensor:
        """Patches [B, T, D] put back in their places: [B, channels, side, side]."""
        across, patch = isqrt(self.tokens), isqrt(self.inputs // self.channels)
        x = x.unflatten(-1, (patch, patch, self.channels)).unflatten(-4, (across, across))  # [B, rows, columns, p, p, channels]
        return x.movedim(-1, -5).movedim(-2, -3).flatten(-2).flatten(-3, -2)


class Block(nn.Module):
    """Pre-norm encoder layer: h + attention(norm(h)), then h + mlp(norm(h)). [B, T, d] -> [B, T, d]"""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, hidden: int = HIDDEN):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp(width, hidden, width, activation=nn.GELU)

    def parts(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Attention [B, heads, T, T], each row a distribution over tokens, and values [B, heads, T, d / heads]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.into(self.first(h)).chunk(3, -1))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1), v

    def forward(self, h: Tensor) -> Tensor:
        attention, v = self.parts(h)
        h = h + self.out((attention @ v).transpose(-2, -3).flatten(-2))
        return h + self.mlp(self.second(h))


class Transformer(nn.Module):
    """Embedding plus learned positions (unless `places` is False), `layers` blocks, mean over tokens, linear read-out."""

    def __init__(self, form: Form, layers: int = 2, places: bool = True):
        super().__init__()
        self.embed = form.embedding()
        self.places = nn.Parameter(0.3 * torch.randn(form.tokens, WIDTH)) if places else None
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm, self.read = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, form.classes)

    def embedded(self, x: Tensor) -> Tensor:
        return self.embed(x) if self.places is None else self.embed(x) + self.places

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedded(x)
        for block in self.blocks:
            h = block(h)
        return self.read(self.norm(h).mean(-2))

    def attention(self, x: Tensor) -> Tensor:
        """How much the mean that decides looks at each token in the last block: mean over queries and heads, [B, T]."""
        h = self.embedded(x)
        for block in self.blocks[:-1]:
            h = block(h)
        return self.blocks[-1].parts(h)[0].mean((-2, -3))


class Flat(nn.Module):
    """Perceptron with two hidden layers on everything at once: the pixels themselves, or the embedded words in a row."""

    def __init__(self, form: Form, width: int):
        super().__init__()
        self.embed = form.embedding() if form.words else nn.Identity()
        self.net = mlp(form.tokens * (WIDTH if form.words else form.inputs), width, width, form.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.embed(x).flatten(-2))


class Local(nn.Module):
    """`layers` convolutions of width 3 on the picture or along the words, after the first one the maximum of 2 x 2 (2) places,
    linear read-out of all places."""

    def __init__(self, form: Form, width: int, layers: int = 2):
        super().__init__()
        self.form = form
        kind, pool = (nn.Conv1d, nn.MaxPool1d(2)) if form.words else (nn.Conv2d, nn.MaxPool2d(2))
        self.embed = form.embedding() if form.words else nn.Identity()
        ends = [WIDTH if form.words else form.channels] + [width] * layers
        filters = [layer for a, b in zip(ends, ends[1:], strict=False) for layer in (kind(a, b, 3, padding=1), nn.ReLU())]
        places = form.tokens // 2 if form.words else form.tokens * (form.inputs // form.channels) // 4
        self.net = nn.Sequential(*filters[:2], pool, *filters[2:], nn.Flatten(), nn.Linear(places * width, form.classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.embed(x).transpose(-1, -2) if self.form.words else self.form.picture(x))


class Recurrent(nn.Module):
    """One LSTM layer of `width` over the tokens in order; the last state answers."""

    def __init__(self, form: Form, width: int = 64):
        super().__init__()
        self.embed, self.lstm, self.read = form.embedding(), nn.LSTM(WIDTH, width, batch_first=True), nn.Linear(width, form.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.lstm(self.embed(x))[0][:, -1])


def count(net: nn.Module) -> int:
    """Numbers that a network may learn, the table of words apart: it is the same in all of them."""
    words = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Embedding))
    return sum(p.numel() for p in net.parameters()) - words


@lru_cache(maxsize=64)
def matched(kind: str, form: Form, layers: int) -> int:
    """The width, a multiple of 4, at which the perceptron or the convolutions have nearly as many parameters as the transformer."""
    with torch.device("meta"):  # sizes only: nothing is drawn
        target, widths = count(Transformer(form, layers)), range(8, 401, 4)
        above = bisect_left(widths, target, key=lambda width: count(rival(kind, form, layers, width)))
        near = widths[max(above - 1, 0) : above + 1] or widths[-1:]
        return min(near, key=lambda width: abs(count(rival(kind, form, layers, width)) - target))


def rival(kind: str, form: Form, layers: int, width: int) -> nn.Module:
    """A perceptron (mlp) or convolutions (cnn) of some width."""
    return Flat(form, width) if kind == "mlp" else Local(form, width, layers)


def build(kind: str, form: Form, layers: int = 2) -> nn.Module:
    """A fresh network of the kind transformer, transformer_nopos, mlp, cnn or lstm; mlp and cnn as large as the transformer."""
    if kind.startswith("transformer"):
        return Transformer(form, layers, kind != "transformer_nopos")
    return Recurrent(form) if kind == "lstm" else rival(kind, form, layers, matched(kind, form, layers))
