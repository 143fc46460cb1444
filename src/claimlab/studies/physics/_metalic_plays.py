"""The arms of the study metalic that play: how a play goes, what is kept of it, and the policies that are no bandits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from claimlab.studies.physics._metalic_bandit import Sequential, Single
from claimlab.studies.physics._metalic_physics import weights_of
from claimlab.training import Stepwise, Tick

if TYPE_CHECKING:
    from claimlab.studies.physics.metalic import Table


class Played(nn.Module):
    """What one seed of an arm has played: for each play equation, both choices, reward and what its surrogate was told, NaN
    before it; the weights of the last one; and the fitted numbers of the surrogate, NaN without one."""

    def __init__(self, plays: int, theta: int):
        super().__init__()
        self.register_buffer("history", torch.full((plays, 5), torch.nan, dtype=torch.float64))
        self.register_buffer("last", torch.zeros(2, weights_of(1)))
        self.register_buffer("theta", torch.full((theta,), torch.nan, dtype=torch.float64))
        self.register_buffer("context", torch.tensor(True))


class Player(Stepwise):
    """An arm of plays: at each the equation is drawn anew, the same for every arm of a seed, and the choice is looked up in the
    table. `policy(table, member)` makes an object with play, best and learn."""

    def __init__(self, policy, params: Any, seeds: Sequence[int], table: Table):
        self.p, self.table, self.step, self.total = params, table, 0, params.plays
        self.policies = [policy(table, i) for i in range(len(seeds))]
        train = np.flatnonzero(~table.stream.held)
        self.drawn = np.array([np.random.default_rng([seed, 1]).choice(train, params.plays) for seed in seeds])
        self.rngs = [np.random.default_rng([seed, 2]) for seed in seeds]
        self.errors = np.zeros((len(seeds), params.plays))
        self.members = [Played(params.plays, len(p.surrogate.theta) if p.surrogate else 1) for p in self.policies]

    def stepwise(self) -> Iterator[Tick | None]:
        for k in range(self.p.plays):
            self._play(k)
            self.step = k + 1
            found = [{"mean_log10_error": e[: k + 1].mean(), "log10_error": e[k]} for e in self.errors]
            if self.step == self.total:
                found = [one | {"test_log10_error": mean} for one, mean in zip(found, self.tested(), strict=True)]
            yield Tick(self.step, found)

    def _play(self, k: int) -> None:
        scaled, rows = self.table.stream.scaled, []
        for i, policy in enumerate(self.policies):
            b = self.drawn[i, k]
            rows.append((i, b, *policy.play(scaled[b], self.p.rule, self.p.exploration, self.rngs[i])))
        self.errors[:, k] = self.table.ask(rows)
        for (i, b, one, two), late in zip(rows, self.errors[:, k], strict=True):
            self.policies[i].learn(scaled[b], one, two, -self.table.early[i, b, one], -late)
            net, surrogate = self.members[i], self.policies[i].surrogate
            net.history[k] = torch.tensor([b, one, two, -late, surrogate.r[-1] if surrogate else -late])
            net.last.copy_(self.table.known[i, b, one, two][1])
            if surrogate:
                net.theta.copy_(torch.from_numpy(surrogate.theta))
                net.context.fill_(surrogate.context)

    def tested(self) -> np.ndarray:
        """Mean log10 error of the recommended choice over the held-out equations, of each seed."""
        held, scaled = np.flatnonzero(self.table.stream.held), self.table.stream.scaled
        rows = [(i, b, *policy.best(scaled[b])) for i, policy in enumerate(self.policies) for b in held]
        return np.array(self.table.ask(rows)).reshape(len(self.policies), len(held)).mean(1)


class Fixed:
    """Plays by a list: the choice of each equation, [B]; learns nothing."""

    surrogate = None

    def __init__(self, choices: np.ndarray, scaled: np.ndarray):
        self.choices, self.scaled = choices, scaled

    def best(self, b):
        one = int(self.choices[np.abs(self.scaled - b).argmin()])
        return one, one

    def play(self, b, rule, exploration, rng):
        return self.best(b)

    def learn(self, *_):
        pass


class Random(Fixed):
    """A non-empty subset drawn uniformly, in play and at the test."""

    def __init__(self, count: int, rng: np.random.Generator):
        self.count, self.rng = count, rng

    def best(self, b):
        one = int(self.rng.integers(self.count))
        return one, one


def random(table: Table, i: int) -> Random:
    return Random(len(table.bits), np.random.default_rng([table.seeds[i], 3]))


def all_conditions(table: Table, i: int) -> Fixed:
    return _fixed(table, len(table.bits) - 1)


def single(table: Table, i: int, context: bool = True) -> Single:
    return Single(table.bits.numpy(), context)


def sequential(table: Table, i: int) -> Sequential:
    return Sequential(table.bits.numpy())


def _fixed(table: Table, choices) -> Fixed:
    return Fixed(np.broadcast_to(choices, len(table.stream.scaled)), table.stream.scaled)


def best_fixed(table: Table, i: int) -> Fixed:
    """The choice with the lowest mean over the training equations of this seed: known only afterwards."""
    return _fixed(table, table.single()[i][~table.stream.held].mean(0).argmin())


def oracle(table: Table, i: int) -> Fixed:
    """The best choice of each equation by the mean over the other seeds: this seed's own minimum would win by luck alone."""
    return _fixed(table, np.delete(table.single(), i, 0).mean(0).argmin(1))


@dataclass(frozen=True)
class Arm:
    """Makes the player of a policy once the table stands."""

    policy: Any
    after: str = "lbfgs"

    def __call__(self, params, seeds, table):
        return Player(self.policy, params, seeds, table)
