"""A small causal transformer of characters, of plain matrices without biases, so that a study can move, cut or watch each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class CharTransformer(nn.Module):
    """Characters [B, T] -> logits of the next one [B, T, V]. Pre-norm blocks x + attention(norm(x)), x + mlp(norm(x)).

    d numbers a character, at most `context` characters, ReLU. `hidden` holds the matrices of each block: q, k, v, o [d, d],
    up [4d, d], down [d, 4d]; all else is vectors, tables and the output layer. First weights N(0, 1 / inputs), tables
    N(0, 0.09), output layer N(0, 0.0004).
    """

    def __init__(self, letters: int, d: int, layers: int, heads: int = 4, context: int = 64):
        super().__init__()
        self.heads = heads
        self.letter = nn.Parameter(0.3 * torch.randn(letters, d))
        self.place = nn.Parameter(0.3 * torch.randn(context, d))
        shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (4 * d, d), "down": (d, 4 * d)}
        self.hidden = nn.ModuleList(
            nn.ParameterDict({name: nn.Parameter(torch.randn(a, b) / math.sqrt(b)) for name, (a, b) in shapes.items()})
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * layers + 1))
        self.head = nn.Parameter(0.02 * torch.randn(letters, d))
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1), persistent=False)

    def forward(self, x: Tensor, through: Callable[[Tensor, int, str], Tensor] | None = None) -> Tensor:
        """`through(h, block, name)`, if given, stands in for the product of h [..., inputs] with a matrix of `hidden`."""
        through = through or self.product
        h = self.letter[x] + self.place[: x.shape[-1]]
        for i in range(len(self.hidden)):
            h = h + self.attention(self.norms[2 * i](h), i, through)
            h = h + through(through(self.norms[2 * i + 1](h), i, "up").relu(), i, "down")
        return self.norms[-1](h) @ self.head.mT

    def product(self, h: Tensor, block: int, name: str) -> Tensor:
        return h @ self.hidden[block][name].mT

    def attention(self, x: Tensor, block: int, through: Callable[[Tensor, int, str], Tensor] | None = None) -> Tensor:
        """Every place attends to itself and to what came before; [B, T, d] -> [B, T, d]."""
        (t, d), through = x.shape[-2:], through or self.product
        q, k, v = (through(x, block, name).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for name in "qkv")
        attended = (q @ k.mT * (d // self.heads) ** -0.5 + self.mask[:t, :t]).softmax(-1) @ v
        return through(attended.transpose(-2, -3).flatten(-2), block, "o")
