"""Population based training: members that copy the winners and mutate their hyperparameters while they train. For the same
compute, is that better than as many independent trainings, and is the schedule it finds the reason?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.schedules import cosine
from claimlab.studies.training import _pbt_data as data
from claimlab.studies.training import _pbt_gan as gan
from claimlab.studies.training._pbt_method import (
    ancestry,
    comparable,
    exploit,
    explore,
    prior,
    stream,
    toy,
    true_score,
    truncation,
)
from claimlab.studies.training._pbt_population import NOISE, SMOOTHING, Company, Members, MemberSGD, Rounds, losses
from claimlab.study import Control, Paper, beside
from claimlab.training import Task, Tick

PAPER = Paper(
    title="Population Based Training of Neural Networks",
    authors="Jaderberg, Dalibard, Osindero, Czarnecki, Donahue, Razavi, Vinyals, Green, Dunning, Simonyan, Fernando, Kavukcuoglu",
    year=2017, url="https://arxiv.org/abs/1711.09846", theme="sensitivity", system="PBT",
    question="For the same compute, does a population that copies its winners and mutates their hyperparameters while training "
    "beat an equal number of independent trainings, and is the discovered schedule the reason?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    population: int = knob(16, "below ~10 PBT turns greedy and loses diversity", low=2, high=80, unit="members")
    ready: int = knob(30, "steps between rounds; too short picks lucky beginnings", low=2, high=300, unit="steps", live=True)
    truncation: float = knob(0.2, "share that is replaced by copies of the best", low=0.05, high=0.5, live=True)
    factor: float = knob(1.2, "perturbation factor; 1 is no exploration", low=1.0, high=3.0, live=True)
    resample: float = knob(0.25, "chance of a fresh draw from the prior", low=0.0, high=1.0, live=True)
    exploit: str = knob("truncation", "who copies whom", choices=("truncation", "tournament", "t_test", "none"))
    label_noise: float = knob(0.2, "wrong training labels; makes regularisation schedules worth finding", low=0.0, high=0.5)
    blind: float = knob(0.0, "share of rounds whose ranking is drawn by lot; 1 is copying without selection", low=0.0, high=1.0,
                        unit="fraction", live=True)  # fmt: skip
    variants: bool = knob(False, "also the two other exploit rules, and GANs on a ring of eight Gaussians")
    steps: int = knob(600, "optimiser steps of every member", low=8, high=20000)
    seeds: int = knob(10, "independent repetitions, each with its own split and populations", low=2, high=64)
    SMOKE = dict(population=4, steps=24, ready=6, seeds=2)
    FULL = dict(population=40, steps=2000, ready=50, seeds=10, variants=True)
    CONTROL = Control(
        set=dict(blind=1.0), vanishes=("beats-random-search", "copying-weights-matters"),
        why="The ranking of every round is drawn by lot: copies, mutations, number of looks and the honest choice of the final "
        "member stay, selection is gone. A win that remains is due to mutation or to the final choice. schedule-is-real is not "
        "listed: the member that happens to end best had a fitting past whatever led there, and its last values alone may be poor.",
    )  # fmt: skip

    def __post_init__(self):
        if self.steps < 2 * self.ready:
            raise ValueError(f"steps = {self.steps} and ready = {self.ready}: members are compared between two intervals, so "
                             f"steps must be at least {2 * self.ready}")  # fmt: skip


CLAIMS = (
    Claim("beats-random-search", "The best member of PBT, chosen on validation, has lower test loss than the best of an equally "
          "large random search.", kind="paired", metric="test_loss", arm="pbt", baseline="random_search", better="lower",
          margin=0.01, source="abstract; all three domains"),
    Claim("schedule-is-real", "A fresh network trained alone with the replayed schedule of PBT's winner beats a fresh network with "
          "the winner's final hyperparameters held constant.", kind="paired", metric="test_loss", arm="replay_schedule",
          baseline="replay_final", better="lower", margin=0.01, source="abstract (discovers a schedule); ablation section"),
    Claim("copying-weights-matters", "Exploiting weights and hyperparameters beats exploiting hyperparameters only.",
          kind="paired", metric="test_loss", arm="pbt", baseline="hypers_only", better="lower", margin=0.005,
          source="ablation section (weights, hyperparameters, both)"),
    Claim("toy-quadratic", "On the two-parameter toy problem a population of two reaches the true optimum 1.2 within 0.1, which "
          "grid search with the same two surrogate weights cannot (its members end at 0.39). A check of the implementation; the "
          "explore-only ablation gets there too.", kind="bound", metric="toy_best_q", arm="pbt", better="higher", margin=1.1,
          source="toy example figure"),
)  # fmt: skip
HONESTY = (
    "Small supervised nets with 20 rounds, not A3C on DeepMind Lab, Transformers or large GANs; rounds are synchronous, so "
    "wall-clock claims of asynchrony are untested. The gain of PBT on a task that a cosine schedule solves may be nil: "
    "random_cosine shows this. With wrong labels part of PBT's gain is early selection of not yet overfitted members, which "
    "random_early separates."
)


# ---- the populations: S seeds times M members train as one program, each member on minibatches of its own


def smoothed(logits: Tensor, y: Tensor, amount: Tensor) -> Tensor:
    """Mean cross-entropy [M] against (1 - s) one-hot + s / C with s = `amount` [M]; logits [M, C, B], y [M, B]."""
    logp = log_softmax(logits, -2)
    right = logp.gather(-2, y.unsqueeze(-2)).squeeze(-2)
    return -((1 - amount) * right.mean(-1) + amount * logp.mean((-2, -1)))


class Population(Task):
    """M members of one seed with hyperparameters drawn from the prior and kept: random search. A subclass says what a round
    copies from the better member (`copies`: weights with their velocity, hypers) and who explores (`explores`: copied or all).

    Initial weights, prior draws and minibatches of slot m follow from (seed, m), so that every arm starts with the same
    members and no member depends on how many others there are.
    """

    copies: tuple[str, ...] = ()
    explores = ""
    rule = ""  # "" is the knob's
    lr, batch_size, hidden, ahead = 1.0, 64, 96, 10  # lr is a factor on the members' own rates

    every = property(lambda self: self.p.ready)
    slots = property(lambda self: range(self.p.population))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, bound.space = seed, data.space(os.environ.get("CLAIMLAB_PRIORS", ""))
        bound.split = data.split(seed, self.p.label_noise, os.environ.get("CLAIMLAB_DATA", ""))
        bound.x, bound.y, bound.validation, bound.test = (getattr(bound.split, k) for k in ("x", "y", "validation", "test"))
        return bound

    def init(self):
        """Weights and biases U(-1/sqrt(in), 1/sqrt(in)), torch's own law."""
        sizes = (self.x.shape[1], self.hidden, self.split.classes)
        layers, drawn = [], []
        for slot in self.slots:
            rng = stream(self.seed, "init", slot)
            shapes = [shape for a, b in zip(sizes, sizes[1:], strict=False) for shape in ((b, a, a), (b, 1, a))]
            layers.append([(2 * torch.rand(rows, columns, generator=rng) - 1) / math.sqrt(a) for rows, columns, a in shapes])
            drawn.append(torch.rand(len(self.space), generator=stream(self.seed, "prior", slot)))
        return Members(layers, prior(self.space, torch.stack(drawn)), self.x, self.y)

    def block(self, net, rng, step, n):
        """Indices of training rows [n, M, B] and noise N(0, 1) [n, B, D], which the members of a seed share."""
        shape = n, self.batch_size
        rows = [torch.randint(len(self.x), shape, generator=stream(self.seed, "batch", m, step)) for m in self.slots]
        return torch.stack(rows, 1), torch.randn(*shape, self.x.shape[1], generator=stream(self.seed, "noise", step))

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, rows, noise):
        """Sum over members of their own smoothed loss on noisy rows: each follows its own gradient."""
        hypers = net.hypers.detach()
        logits = net(net.x[rows] + hypers[:, NOISE, None, None] * noise)
        return smoothed(logits, net.y[rows], hypers[:, SMOOTHING]).sum()

    def groups(self):
        return {"hypers": {}}

    def optimizer(self, groups):
        return MemberSGD(groups)

    def turn(self, net: Company, step: int) -> Tensor:
        """One round: new hyperparameters are written into `net` and its trail; returns whose weights each slot continues."""
        trail, p, stay = net.trail, self.p, torch.arange(len(net.trail["parents"][-1]))
        source = stay
        if self.copies:
            slots = ancestry(trail["parents"], stay)
            history = -torch.stack(trail["losses"]).gather(1, slots)
            source = exploit(self.rule or p.exploit, history, stream(self.seed, "exploit", step), p.truncation, p.blind)
        hypers = trail["hypers"][-1][source if "hypers" in self.copies else stay]
        moved = explore(self.space, hypers, stream(self.seed, "explore", step), p.factor, p.resample)
        who = {"": stay < 0, "copied": source != stay, "all": stay >= 0}[self.explores]
        parents = source if "weights" in self.copies else stay
        return begin(net, step, parents, torch.where(who[:, None], moved, hypers))

    def metrics(self, net):
        """Of the member that is best on validation now; all validation losses go to the trail."""
        found, tested = losses(net, *self.validation).cpu(), partial(losses, net, *self.test)
        best, test, validation = self.look(net, found, tested)
        return {"test_loss": test, "validation_loss": validation, "founders": len(net.trail["founders"][-1].unique()),
                "learning_rate": net.trail["hypers"][-1][best, 0]}  # fmt: skip

    def look(self, net: Company, found: Tensor, tested: Callable[[slice], Tensor]) -> tuple[int, float, float]:
        """The best member by the losses `found` [M], its test loss and its validation loss; `net` remembers what was seen."""
        best = int(comparable(-found).argmax())
        net.seen = found, self.counted(tested(slice(best, best + 1)))
        return best, net.seen[1], self.counted(found[best])

    def counted(self, loss: Tensor) -> float:
        """A loss as it enters the table: one that is not finite counts as log of the number of classes."""
        return float(loss) if bool(torch.isfinite(loss)) else math.log(self.split.classes)


def begin(net: Company, step: int, parents: Tensor, hypers: Tensor) -> Tensor:
    """Open an interval in the trail and set the members' hyperparameters; returns `parents`."""
    rows = {"step": step, "parents": parents, "founders": net.trail["founders"][-1][parents], "hypers": hypers}
    for name, row in rows.items():
        net.trail[name].append(row)
    net.assign(hypers)
    return parents


def schedule(net: Members) -> tuple[list[int], Tensor]:
    """First steps of the intervals, and the winner's hyperparameters in each of them [T, H], along its line of ancestors."""
    slots = ancestry(net.trail["parents"], net.winner)
    return net.trail["step"], torch.stack([h[slot] for h, slot in zip(net.trail["hypers"], slots, strict=True)])


class Cosine(Population):
    schedule = staticmethod(cosine)


class Pbt(Population):
    copies, explores = ("weights", "hypers"), "copied"

    def final(self, net):
        theta, _ = toy(stream(self.seed, "toy"))
        return {"toy_best_q": float(true_score(theta[-1]).max())}


class Tournament(Pbt):
    rule = "tournament"


class TTest(Pbt):
    rule = "t_test"


class ExploitOnly(Population):
    copies = ("weights", "hypers")


class ExploreOnly(Population):
    explores = "all"


class HypersOnly(Population):
    copies, explores = ("hypers",), "copied"


class Replay(Population):
    """One fresh network of a seed, same split, new initial weights and minibatches, with the winner's schedule."""

    slots = (10**6,)
    constant = False

    def follow(self, winner: Members, net: Members) -> None:
        self.starts, self.plan = schedule(winner)
        self.plan = self.plan[-1:].expand_as(self.plan) if self.constant else self.plan
        net.trail["hypers"][0] = self.plan[:1].clone()
        net.assign(self.plan[:1])

    def turn(self, net, step):
        row = max(k for k, start in enumerate(self.starts) if start <= step)
        return begin(net, step, torch.zeros(1, dtype=torch.long), self.plan[row : row + 1])


class ReplayFinal(Replay):
    constant = True


class Gans(Population):
    """Random search over GANs on the ring, at most 16 a seed: the score is the squared MMD from validation points."""

    slots = property(lambda self: range(min(16, self.p.population)))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, bound.space = seed, gan.SPACE
        bound.validation, bound.test = (gan.ring(n, stream(seed, use)) for n, use in ((200, "validation"), (1000, "test")))
        return bound

    def init(self):
        drawn = [torch.rand(2, generator=stream(self.seed, "gan prior", slot)) for slot in self.slots]
        return gan.Gans(prior(gan.SPACE, torch.stack(drawn)), [stream(self.seed, "gan init", slot) for slot in self.slots])

    def block(self, net, rng, step, n):
        """Points of the ring [n, M, B, 2] and latent normals [n, M, B, 8]."""
        rngs = [stream(self.seed, "gan batch", slot, step) for slot in self.slots]
        real = [gan.ring(n * self.batch_size, one).view(n, self.batch_size, 2) for one in rngs]
        z = [torch.randn(n, self.batch_size, gan.LATENT, generator=one) for one in rngs]
        return torch.stack(real, 1), torch.stack(z, 1)

    def players(self):
        return {"critic": gan.critic_loss, "generator": gan.generator_loss}

    def groups(self):
        return {"critic.hypers": {}, "generator.hypers": {}}

    def optimizer(self, groups):
        return gan.MemberAdam(groups)

    def metrics(self, net):
        z = torch.randn(len(self.test), gan.LATENT, generator=stream(self.seed, "gan look")).to(self.test.device)
        points = net.generator(z)
        found = gan.mmd(points[:, : len(self.validation)], self.validation).cpu()
        _, test, validation = self.look(net, found, lambda best: gan.mmd(points[best], self.test))
        return {"gan_mmd": test, "gan_validation_mmd": validation, "founders": len(net.trail["founders"][-1].unique())}

    def counted(self, loss):
        return float(loss) if bool(torch.isfinite(loss)) else 1.0  # two points at infinite distance


class GansPbt(Gans):
    copies, explores = ("weights", "hypers"), "copied"


# ---- the arms; CLAIMLAB_DATA names your own .npz with X and y, CLAIMLAB_PRIORS a JSON file with your priors


class Early:
    """Random search that may return any member as it stood after any round: read off the finished random search."""

    def __init__(self, params, seeds, before: Rounds):
        self.before, self.total = before, before.total
        self.step = 0

    def ticks(self):
        trails = [(task, net.trail) for task, net in zip(self.before.tasks, self.before.members, strict=True)]
        best = [(math.inf, math.nan)] * len(trails)
        for k, step in enumerate(trails[0][1]["ended"]):
            looks = [(task.counted(trail["losses"][k].nan_to_num(math.inf).min()), trail["tested"][k]) for task, trail in trails]
            best, self.step = [min(pair, key=lambda one: one[0]) for pair in zip(best, looks, strict=True)], step
            yield Tick(step, [{"validation_loss": loss, "test_loss": test} for loss, test in best])


@dataclass(frozen=True)
class Arm:
    """An arm: populations of a task for all seeds, perhaps `after` another arm whose winners they follow."""

    task: type[Population]
    after: str | None = None
    variant: bool = False

    def when(self, p: Params) -> bool:
        return p.variants or not self.variant

    def __call__(self, p: Params, seeds: list[int], before: Rounds | None = None) -> Rounds:
        return Rounds(self.task(p), seeds, before)


class EarlyArm:
    after = "random_search"

    def __call__(self, p, seeds, before):
        return Early(p, seeds, before)


ARMS = {
    "random_search": Arm(Population), "random_early": EarlyArm(), "random_cosine": Arm(Cosine), "pbt": Arm(Pbt),
    "exploit_only": Arm(ExploitOnly), "explore_only": Arm(ExploreOnly), "hypers_only": Arm(HypersOnly),
    "replay_schedule": Arm(Replay, after="pbt"), "replay_final": Arm(ReplayFinal, after="pbt"),
    "pbt_tournament": Arm(Tournament, variant=True), "pbt_t_test": Arm(TTest, variant=True),
    "gan_random": Arm(Gans, variant=True), "gan_pbt": Arm(GansPbt, variant=True),
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "members and copies": beside(__name__, "lineage_now"),
    "hyperparameter plane": beside(__name__, "plane_now"),
    "toy plane": beside(__name__, "toy_now"),
}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Members", "MemberSGD", "Params", "Rounds", "data", "explore", "figures", "gan",
           "schedule", "smoothed", "toy", "true_score", "truncation"]  # fmt: skip
