"""What interactive_training trains: a small transformer on text, in two stages, and a perceptron on digits with a stream."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.models import mlp
from claimlab.parts.threads import one_thread
from claimlab.studies.training import _interactive_training_data as data
from claimlab.studies.training import _interactive_training_method as method
from claimlab.training import Run, Task

FIRST, BATCH = 60, 16  # steps of the first stage; windows a batch


# ---- the model: B windows, T characters, d numbers a character, h heads, V letters


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + perceptron(norm(x)); each place sees itself and what came before."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (d // self.heads) ** -0.5 + mask[:t, :t]).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(self.up(self.between(x)).relu())


class Transformer(nn.Module):
    """Characters [B, T] -> logits of the next one [B, T, V]; learned positions, first weights N(0, 0.02) as in GPT-2."""

    def __init__(self, letters: int, d: int, layers: int, heads: int = 4):
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, d), nn.Parameter(0.02 * torch.randn(data.CONTEXT, d))
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, letters)
        ahead = torch.full((data.CONTEXT, data.CONTEXT), -math.inf).triu(1)
        self.register_buffer("mask", ahead, persistent=False)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear | nn.Embedding)):
            nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h, self.mask)
        return self.head(self.norm(h))


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))


def beside(act: Callable, items: list) -> list:
    """act(item) of every item, beside each other in as many threads as torch may take; the numbers do not depend on it."""
    workers = min(torch.get_num_threads(), len(items))
    with one_thread():
        return list(_pool(workers).map(act, items)) if workers > 1 else [act(item) for item in items]


def text() -> data.Corpus:
    """The lab's text, or the file that CLAIMLAB_DATA names."""
    return data.corpus(os.environ.get("CLAIMLAB_DATA", ""))


@torch.no_grad()
def loss_on(net: Transformer, windows: Tensor) -> float:
    """Cross-entropy [nats a character] of the windows [n, T + 1]."""
    windows = windows.to(net.head.weight.device)
    logits = torch.cat([net(few[:, :-1]) for few in windows.split(32)])  # few at a time stay in the cache
    return float(cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@one_thread()
def judged(net: Transformer) -> float:
    """The loss that counts: on text that nobody has looked at, ln V where it is larger or no number."""
    loss, most = loss_on(net, text().windows["judged"]), text().uniform
    return loss if loss < most else most


class Writer(Task):
    """The second stage: a half-trained model is trained on, with fresh optimiser state, at the rate that the arm chooses."""

    joint_optimizer = False  # every member has a rate, a clip and a way back of its own
    weight_decay = 0.01
    part = "second"
    lr = property(lambda self: self.p.lr)
    every = property(lambda self: self.p.look_every)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed = seed
        return bound

    def init(self):
        return copy.deepcopy(half_trained(self.seed, self.p.layers, self.p.width, os.environ.get("CLAIMLAB_DATA", "")))

    def batch(self, net, rng, step):
        whole = text().parts[self.part]
        start = torch.randint(len(whole) - data.CONTEXT, (BATCH, 1), generator=rng)
        rows = whole[start + torch.arange(data.CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(self, net, x, y):
        return cross_entropy(net(x).flatten(0, 1), y.flatten())

    def optimizer(self, groups):
        return method.MeasuredAdamW(groups, fused=True)

    def look(self, net) -> float:
        """Validation loss on the windows that agent and plateau rule may see."""
        return loss_on(net, text().windows["seen"])

    def metrics(self, net):
        return {"val_loss": self.look(net)}


class CosineWriter(Writer):
    def schedule(self, step, steps):
        warm = max(1, steps // 10)
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))


class FirstStage(Writer):
    lr, part = 3e-3, "first"

    def init(self):
        return Transformer(len(text().letters), self.p.width, self.p.layers)


@lru_cache(maxsize=64)
@one_thread()
def half_trained(seed: int, layers: int, width: int, path: str) -> Transformer:
    """The model after the first stage; every arm of a seed starts from a copy."""
    run = Run(FirstStage(SimpleNamespace(layers=layers, width=width)), [seed], FIRST, FIRST)
    for _ in range(FIRST):
        run.advance()
    return run.members[0].cpu()


# ---- digits: users' inputs arrive while the network trains


class StaleData(Task):
    """A perceptron trained on upright digits alone. Batches of all arms share their draws; `weight` is what the stream gets."""

    lr, offset = 0.02, 0
    ahead = 20
    steps = property(lambda self: 10 * self.p.steps // 3)
    every = property(lambda self: max(1, self.steps // 25))
    weight = property(lambda self: 0.0)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.data = data.domains(seed, self.p.domain_shift)
        return bound

    def init(self):
        return mlp(64, 96, 10)

    def arrived(self, step: Tensor) -> Tensor:
        """Examples of the stream at hand before each step: 20 from two fifths of the run on, 20 more every twentieth."""
        total = 10 * self.p.steps // 3
        batches = (step - 2 * total // 5).div(max(1, total // 20), rounding_mode="floor") + 1
        return (20 * batches).clamp(0, len(self.data.stream[0]))

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.data.source[0]), (n, 32), generator=rng)
        chance, which = torch.rand(2, n, 32, generator=rng)
        have = self.arrived(torch.arange(step, step + n) + self.offset)[:, None]
        fresh, newest = (chance < self.weight) & (have > 0), (which * have).long().clamp(max=len(self.data.stream[0]) - 1)
        (old_x, old_y), (new_x, new_y) = self.data.source, self.data.stream
        return torch.where(fresh[..., None], new_x[newest], old_x[rows]), torch.where(fresh, new_y[newest], old_y[rows])

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return cross_entropy(net(x), y)

    def optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=0.9)

    def metrics(self, net):
        device = next(net.parameters()).device
        tests = {name: [part.to(device) for part in getattr(self.data, name)] for name in ("old", "new")}
        return {f"{name}_domain_accuracy": (net(x).argmax(1) == y).float().mean() for name, (x, y) in tests.items()}


class LiveData(StaleData):
    weight = property(lambda self: self.p.stream_weight)


class Deployed(StaleData):
    """The first three fifths, until somebody decides to begin again."""

    steps = property(lambda self: 10 * self.p.steps // 3 * 3 // 5)


class Restart(LiveData):
    """From scratch, with everything that has come and still comes, for the steps that remain."""

    offset = property(lambda self: 10 * self.p.steps // 3 * 3 // 5)
    steps = property(lambda self: 10 * self.p.steps // 3 - self.offset)

    def begin(self, start):
        return self.init()
