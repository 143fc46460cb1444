"""The networks and tasks that are timed, each as a Task of claimlab and as the bare loop that people write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F

from claimlab import data
from claimlab.models import mlp
from claimlab.training import Run, Supervised, Task

IMAGES, LABELS = (torch.from_numpy(part[:1437]) for part in data.digits())
IMAGES = IMAGES.flatten(1)


@dataclass(frozen=True)
class Params:
    steps: int = 10**9


def adam(groups) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, fused=True)


class Digits(Supervised):
    """Batches of 64 from 1,437 digits."""

    sizes: tuple[int, ...] = (64, 64, 10)
    x, y = IMAGES, LABELS

    def init(self):
        return mlp(*self.sizes)

    def optimizer(self, groups):
        return adam(groups)


class Wide(Digits):
    sizes = (64, 256, 256, 10)


class Deep(Digits):
    """About half a millisecond a step."""

    sizes = (64, 128, 128, 128, 10)
    batch_size = 128


class Conv(Digits):
    def init(self):
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


class Recurrent(nn.Module):
    """Reads a digit row by row."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unflatten(1, (8, 8)))[0][:, -1])


class Gru(Digits):
    vectorize = False

    def init(self):
        return Recurrent()


class Block(nn.Module):
    """Pre-norm attention of four heads and a two-layer network, d numbers a place."""

    def __init__(self, d: int):
        super().__init__()
        self.first, self.second = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.second(x))))


class Transformer(Digits):
    """Reads a digit as eight rows: d = 32, two blocks."""

    def init(self):
        return nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 32), Block(32), Block(32), nn.Flatten(), nn.Linear(256, 10))


class Pinn(Task):
    """-u'' = pi^2 sin(pi x) at 128 fresh points, boundary by construction, 2 x 32 tanh."""

    ahead = 20

    def init(self):
        return mlp(1, 32, 32, 1, activation=nn.Tanh)

    def block(self, net, rng, step, n):
        return (torch.rand(n, 128, 1, generator=rng),)

    def loss(self, net, x):
        return residual(net, x).square().mean()

    def optimizer(self, groups):
        return adam(groups)


def residual(net: nn.Module, x: Tensor) -> Tensor:
    def u(z):
        return z * (1 - z) * net(z)

    one = torch.ones_like(x)
    second = jvp(lambda z: jvp(u, (z,), (one,))[1], (x,), (one,))[1]
    return second + torch.pi**2 * torch.sin(torch.pi * x)


def bare(task: Task, seed: int = 0, fused: bool = False) -> Callable[[], None]:
    """One step of a loop without any library but torch: index a tensor, `torch.optim.Adam`, backward, step."""
    torch.manual_seed(seed)
    net, rng = task.init(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)

    def step():
        if isinstance(task, Digits):
            rows = torch.randint(len(task.x), (task.batch_size,), generator=rng)
            loss = F.cross_entropy(net(task.x[rows]), task.y[rows])
        else:
            loss = residual(net, torch.rand(128, 1, generator=rng)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(task: Task, members: int, device: str = "cpu") -> Callable[[], None]:
    """One step of a Run of so many seeds."""
    run = Run(task, range(members), every=10**9, device=device)
    next(run.stepwise())
    return run.advance
