"""A population as one program: M perceptrons a seed, each with hyperparameters of its own, and the rounds between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.studies.training import _pbt_method as method
from claimlab.training import Run, Task, Tick

RATE, MOMENTUM, NOISE, SMOOTHING, DECAY = range(5)  # columns of the hyperparameters
PARAMETER = "hypers"  # a parameter without a gradient, so that stacks, states and optimisers carry it along


class Company(nn.Module):
    """M members of one seed and what has become of them. A subclass holds their networks and their hyperparameters [M, H].

    `trail` grows by a row a round: first step of the interval, `parents` [M] (whom each slot continues), `founders` [M] (whose
    descendant it is), `hypers` [M, H]; at its end `ended`, validation loss `losses` [M], and the best one's test loss.
    """

    def __init__(self, hypers: Tensor):
        super().__init__()
        slots = torch.arange(len(hypers))
        self.trail: dict[str, list] = {"step": [0], "parents": [slots], "founders": [slots], "hypers": [hypers.clone()],
                                       "ended": [], "losses": [], "tested": []}  # fmt: skip

    @property
    def winner(self) -> int:
        """The slot with the lowest validation loss of the last round; a loss that is not finite counts as infinite."""
        return int(method.comparable(-self.trail["losses"][-1]).argmax())

    @torch.no_grad()
    def assign(self, hypers: Tensor) -> None:
        """Give the members the hyperparameters [M, H]."""
        self.hypers.copy_(hypers)


class Members(Company):
    """M perceptrons side by side: weights [M, out, in], biases [M, out, 1], `hypers` [M, H]. Activations lie in columns
    [M, units, B], which a processor multiplies and normalises faster than rows. Training rows ride along as buffers."""

    def __init__(self, layers: list[list[Tensor]], hypers: Tensor, x: Tensor, y: Tensor):
        super().__init__(hypers)
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("y", y, persistent=False)
        self.weights = nn.ParameterList(torch.stack([one[k] for one in layers]) for k in range(0, len(layers[0]), 2))
        self.biases = nn.ParameterList(torch.stack([one[k] for one in layers]) for k in range(1, len(layers[0]), 2))
        self.hypers = nn.Parameter(hypers.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Rows [M, B, D], or [N, D] for all members, to logits in columns [M, C, B]."""
        return through(self.weights, self.biases, x)


def through(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    """x [M, B, D] or [B, D] through layers [M, out, in] with ReLU between them, to columns [M, out, B]."""
    h = x.expand(len(weights[0]), -1, -1).mT
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias, weight, h)
        h = h.relu() if i < len(weights) - 1 else h
    return h


@torch.no_grad()
def losses(net: Members, x: Tensor, y: Tensor, members: slice = slice(None)) -> Tensor:
    """Mean cross-entropy of each member on clean rows x [N, D], y [N]: no noise, no smoothing; [M]."""
    logits = through(*([part[members] for part in parts] for parts in (net.weights, net.biases)), x)
    return cross_entropy(logits, y.expand(len(logits), -1), reduction="none").mean(1)


class MemberSGD(torch.optim.Optimizer):
    """SGD with momentum where every member has its own settings: v <- m v + g + d w and w <- w - a v, with learning rate a,
    momentum m and weight decay d of shape [members]. The group's lr is a factor on all of them, such as a cosine."""

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        (hypers,) = next(g["params"] for g in self.param_groups if g["key"] == PARAMETER)
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None and w is not hypers):
                shape = *hypers.shape[:-1], *(1,) * (w.dim() - hypers.dim() + 1)
                rate, momentum, decay = (hypers[..., k].reshape(shape) for k in (RATE, MOMENTUM, DECAY))
                velocity = self.state[w].setdefault("velocity", torch.zeros_like(w))
                velocity.mul_(momentum).add_(w.grad).addcmul_(w, decay)
                w.addcmul_(velocity, rate, value=-group["lr"])


class Rounds(Run):
    """A run whose members are whole populations: every `ready` steps they are scored, and before the next step they turn."""

    def __init__(self, task: Task, seeds: Sequence[int], before: Rounds | None = None, **options: Any):
        super().__init__(task, seeds, stacked=True, **{"chunk": 5, **options})
        for i in range(len(self.seeds)) if before else ():
            self.tasks[i].follow(before.members[i], self.members[i])

    def advance(self) -> None:
        if self.step and self.step % self.every == 0:
            self.turn()
        super().advance()
        self.losses = None  # a sum over members says nothing, and one that has diverged would spoil it

    def turn(self) -> None:
        """Exploit and explore: weights and velocities are gathered from the parents, then each task says the new settings."""
        if self.members[0].trail["ended"][-1:] != [self.step]:
            self.tick()
        parents = [self.tasks[i].turn(net, self.step) for i, net in enumerate(self.members)]
        for ensemble, chunk in zip(self.ensembles, self.chunks, strict=True):
            source = torch.stack(parents[chunk]).to(self.device)
            place = torch.arange(len(source), device=self.device)[:, None]
            states = [state for pairs in ensemble.optimizers.values() for opt, _ in pairs for state in opt.state.values()]
            moved = [leaf.data for name, leaf in ensemble.leaves.items() if not name.endswith(PARAMETER)]
            for stack in moved + [part for state in states for part in state.values() if isinstance(part, Tensor)]:
                if stack.dim() > 1:
                    stack.copy_(stack[place, source])

    def tick(self) -> Tick:
        """At the end of an interval what was measured joins the trail, before the state is remembered."""
        self.due = self.step > 0 and (self.step % self.every == 0 or self.step == self.total)
        return super().tick()

    def _measure(self, i: int) -> dict[str, float]:
        net, trail = self.members[i], self.members[i].trail
        found = super()._measure(i)
        if self.due and trail["ended"][-1:] != [self.step]:
            for name, value in zip(("ended", "losses", "tested"), (self.step, net.seen[0], net.seen[1]), strict=True):
                trail[name].append(value)
        return found

    # ---- control and state

    def check(self, name: str, value: Any, member: int | None = None) -> None:
        if name in ("lr", "momentum", "weight_decay"):
            raise ValueError(f"{name} can not be set here: every member of a population has its own, and the rounds change it")
        super().check(name, value, member)

    def set(self, member: int | None = None, **changes: Any) -> dict[str, tuple[Any, Any]]:
        answer = super().set(member, **changes)
        self.every = self.task.every
        return answer

    def state(self) -> dict[str, Any]:
        return super().state() | {"trails": [{k: list(v) for k, v in net.trail.items()} for net in self.members]}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.every = self.task.every
        for net, saved in zip(self.members, state["trails"], strict=True):
            net.trail = {name: list(rows) for name, rows in saved.items()}

    def past(self, step: int) -> tuple[int, list[nn.Module]]:
        found, members = super().past(step)
        for one, trail in zip(members, self.history[found]["trails"], strict=True):
            one.trail = copy.deepcopy(trail)
        return found, members
