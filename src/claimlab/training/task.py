"""What is trained: a Task says how a member starts, what a batch is and what loss moves it. It owns no training state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Stepwise:
    """What is advanced by a generator `stepwise`, which yields a Tick where one is due and None otherwise; iterating gives the ticks."""

    def __iter__(self) -> Iterator[Tick]:
        return (tick for tick in self.stepwise() if tick is not None)

    ticks = __iter__


@dataclass(frozen=True)
class Tick:
    """What a run reports at a recorded step: the loss of each member [S] and one dict of metrics a member."""

    step: int
    metrics: list[dict[str, float]]
    losses: Tensor | None = None
    stage: str = ""
    diverged: tuple[int, ...] = field(default=())


class Task:
    """One way of training, for any number of seeds. Subclass it in a study and override what differs.

    `loss` is pure in (net, batch), so that it can be vectorised over members; randomness enters through `batch` alone and
    comes from the generator given there. A layer that draws from torch's global generator (nn.Dropout) is not allowed:
    draw the mask in `batch`. What changes during training lives in the net (parameters, buffers).
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    vectorize: bool = True  # False where torch.func has no batching rule (LSTM, GRU, .item())
    joint_optimizer: bool = True  # False where a step mixes entries of a tensor (clipping, Muon, L-BFGS, SAM)
    ahead: int = 1  # batches drawn in one go by `block`; more than 1 only where a batch does not depend on the net. Arms that are
    # to see the same batches need the same number, since it decides in which order they are drawn
    after: str | None = None  # the arm whose members this one starts from

    def __init__(self, params: Any):
        self.p = params

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.p.steps

    @property
    def every(self) -> int:
        """Steps between two recorded ticks."""
        return max(1, self.steps // 25)

    def bind(self, seed: int) -> Task:
        """This task with the data that belong to `seed`; the data follow from parameters and seed alone."""
        return self

    def init(self) -> nn.Module:
        """A fresh member; called while torch's generator holds the member's seed, and restored afterwards."""
        raise NotImplementedError

    def begin(self, start: nn.Module) -> nn.Module:
        """The member with which a later stage begins, made from the one that the stage before left."""
        import copy

        return copy.deepcopy(start)

    def batch(self, net: nn.Module, rng: torch.Generator, step: int) -> tuple[Tensor, ...]:
        """One batch of one member as tensors; all randomness from `rng`."""
        raise NotImplementedError

    def block(self, net: nn.Module, rng: torch.Generator, step: int, n: int) -> tuple[Tensor, ...]:
        """The batches of `n` steps from `step` on, stacked in front: [n, ...]. Override it with one draw and set `ahead`."""
        drawn = [self.batch(net, rng, step + k) for k in range(n)]
        return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))

    def loss(self, net: nn.Module, *batch: Tensor) -> Tensor:
        """Scalar loss of one member on its batch."""
        raise NotImplementedError

    # Overridden where a step needs more than autograd of `loss`, as functions of their tensors alone, so that they can be
    # vectorised over members: `gradients(net, *batch)` gives the loss and the gradient by parameter name (clipping, private
    # noise, closed forms; what is random comes in through the batch), `project(net)` the new values by parameter name after
    # each optimiser step (constraints).
    gradients: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None
    project: Callable[[nn.Module], dict[str, Tensor]] | None = None

    def players(self) -> Mapping[str, Callable[..., Tensor]]:
        """Losses by the submodule that each one moves, in order; '' is the whole net."""
        return {"": self.loss}

    def groups(self) -> Mapping[str, Mapping[str, float]]:
        """Settings of parameters whose name starts with a key, such as {"energy": {"lr": 0.1}}."""
        return {}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over parameter groups that already hold lr and weight_decay."""
        return torch.optim.AdamW(groups, fused=True)

    def schedule(self, step: int, steps: int) -> float:
        """Factor on every learning rate at `step` of `steps`."""
        return 1.0

    def metrics(self, net: nn.Module) -> dict[str, float]:
        """Metrics of one member at a tick; eval mode, no gradients."""
        return {}

    def final(self, net: nn.Module) -> dict[str, float]:
        """Metrics taken after the last step only, where they cost much."""
        return {}


class Supervised(Task):
    """Minibatches drawn uniformly with replacement from the tensors x [N, ...] and y [N, ...] of a bound task."""

    batch_size: int = 64
    ahead = 20
    x: Tensor
    y: Tensor

    def rows(self, rng: torch.Generator, n: int) -> Tensor:
        """Which examples the next `n` batches hold: [n, batch_size]."""
        return torch.randint(len(self.x), (n, self.batch_size), generator=rng)

    def block(self, net, rng, step, n):
        rows = self.rows(rng, n)
        return self.x[rows], self.y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return nn.functional.cross_entropy(net(x), y)
