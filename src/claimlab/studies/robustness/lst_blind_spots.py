"""Level Set Traversal: walk towards another picture where the network's confidence does not change. How far does one get?"""

from __future__ import annotations

import os
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.adversarial import log_odds, pgd, random_start
from claimlab.parts.threads import one_thread
from claimlab.studies.robustness import _lst_blind_spots_method as method
from claimlab.studies.robustness._lst_blind_spots_data import Transformer, convnet, load, own, pairs
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Stepwise, Supervised, Tick

PAPER = Paper(
    title="Exploring Geometry of Blind Spots in Vision Models", authors="Balasubramanian, Sriramanan, Sadasivan, Feizi",
    year=2023, url="https://arxiv.org/abs/2310.19889", theme="sensitivity", system="Level Set Traversal",
    question="How far can a picture be changed, until it looks like something else entirely, while the network goes on giving "
    "the first answer with the same confidence?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    delta: float = knob(0.2, "confidence the walk may lose", low=0.01, high=0.9)
    eta: float = knob(0.01, "step along the level set; large steps fall off it", low=0.001, high=0.2, unit="share of the rest",
                      live=True)  # fmt: skip
    eps: float = knob(0.008, "size of the correction that climbs back; 0 is no_correction, too large and it outweighs eta*d "
                      "(balance at pixel distance eps/eta)", low=0.0, high=0.1, unit="share of the pixel range", live=True)  # fmt: skip
    pgd_radius: float = knob(0.05, "adversarial training radius of the robust network", low=0.0, high=0.3,
                             unit="share of the pixel range")  # fmt: skip
    pgd_steps: int = knob(3, "attack steps of adversarial training", low=1, high=20)
    pairs: int = knob(20, "source-target pairs", low=2, high=200)
    walk_steps: int = knob(300, "steps of the traversal", low=10, high=2000)
    side: int = knob(24, "height and width of a picture", low=24, high=32, unit="pixels")
    colour: bool = knob(False, "coloured scenes")
    transformer: bool = knob(False, "also walk on a small vision transformer")
    radii: bool = knob(True, "also train at 0.4 and 2 times the radius, one seed, for a figure")
    steps: int = knob(400, "optimiser steps of each network", low=10, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=20, pairs=4, walk_steps=20, radii=False, seeds=2)
    FULL = dict(side=32, colour=True, transformer=True, pgd_steps=7, pairs=100, walk_steps=400, seeds=10)
    CONTROL = Control(
        set=dict(delta=0.9), vanishes=("reaches-the-target", "projection-matters"),
        why="If nearly all confidence may be lost, walking straight to the target is allowed as well.",
    )  # fmt: skip

    def __post_init__(self):
        if self.side % 8:
            raise ValueError(f"side = {self.side} does not go with steps of 8 pixels (three halvings): 24 or 32")


CLAIMS = (
    Claim("reaches-the-target", "At an equal confidence tolerance level-set traversal ends closer to the target picture than "
          "walking straight towards it.", kind="paired", metric="relative_distance", arm="lst", baseline="straight_line",
          better="lower", margin=0.10, source="method and main table"),
    Claim("star-shaped", "Along the straight segment from the source to the blind spot found, confidence stays high on nearly "
          "all points.", kind="bound", metric="path_share_confident", arm="lst", better="higher", margin=0.90,
          source="star-like structure; path confidence table"),
    Claim("robust-nets-see-less", "The adversarially trained network lets the walk come closer to the target than the standard "
          "one.", kind="paired", metric="relative_distance", arm="lst_robust", baseline="lst", better="lower", margin=0.05,
          source="comparison of normal and adversarially trained models"),
    Claim("flat-regions", "The triangle spanned by the source and two blind spots holds more confident area than the one reached "
          "by straight walks towards the same two targets.", kind="paired", metric="hull_confident_area", arm="lst",
          baseline="straight_line", better="higher", margin=0.20, source="triangular convex hull tables"),
    Claim("projection-matters", "Following the target without removing the gradient part ends farther away.", kind="paired",
          metric="relative_distance", arm="lst", baseline="no_projection", better="lower", margin=0.05,
          source="role of orthogonal components"),
)  # fmt: skip
HONESTY = (
    "24-pixel pictures have far fewer directions than 224-pixel ones, so that blind spots are smaller here and the images found "
    "are not perceptually equal to their targets. Distances replace the learned perceptual metric; ImageNet networks are not "
    "tested."
)
FACTORS = (0.4, 2.0)  # times pgd_radius: what else a robust network of the first seed is trained with
PENALTY = 1.0  # of {1, 5, 20}: the nearest ends on the development seeds 1000 to 1004


# ---- the networks of a seed


class Networks(Supervised):
    """All networks of a seed side by side, each moved by its own loss on the same minibatches; the robust one sees them
    after an attack on itself (Madry et al. 2018)."""

    lr = 1e-3
    ahead = 1  # the attacked pictures depend on the network
    vectorize = False  # a step and member take 27 ms in the loop and 25 ms stacked (one busy core)
    state = None
    every = property(lambda self: max(1, self.steps // 10))

    @property
    def names(self) -> list[str]:
        return ["standard", "robust", "linear"] + ["transformer"] * self.p.transformer

    def bind(self, seed):
        bound = type(self)(self.p)
        path = os.environ.get("CLAIMLAB_DATA", "")
        bound.seed, bound.state = seed, own(path)[2] if path else None
        found = load(seed, self.p.side, self.p.colour, path)
        bound.x, bound.y, bound.test, bound.shape, bound.classes = found
        return bound

    def init(self):
        first = convnet(self.shape, self.classes)  # standard and robust begin alike
        nets = {"standard": deepcopy(first), "robust": first, "linear": nn.Linear(self.x.shape[1], self.classes)}
        if self.state:
            nets["standard"].load_state_dict(self.state)
        if self.p.transformer:
            nets["transformer"] = Transformer(self.shape, self.classes)
        return nn.ModuleDict({name: nets[name] for name in self.names})

    @one_thread()
    def batch(self, net, rng, step):
        rows = torch.randint(len(self.x), (self.batch_size,), generator=rng)
        x, y = self.x[rows], self.y[rows]
        return x, y, self.attacked(net["robust"], x, y, rng)

    def attacked(self, net, x, y, rng):
        """PGD from a random start; its steps add up to one and a half radii."""
        radius, steps = self.p.pgd_radius, self.p.pgd_steps
        return pgd(lambda z: log_odds(net(z), y), x, radius, "inf", steps, random_start(x, radius, rng), step=1.5 / steps)

    def players(self):
        told = [name for name in self.names if not (name == "standard" and self.own)]
        return {name: partial(self.error, name, 2 if name == "robust" else 0) for name in told}

    @property
    def own(self) -> bool:
        """Whether the standard network is the reader's own, which stays as it is."""
        path = os.environ.get("CLAIMLAB_DATA", "")
        return bool(path and own(path)[2])

    def error(self, name, part, net, *batch):
        """Cross-entropy of one network on its part of the batch."""
        return cross_entropy(net[name](batch[part]), batch[1])

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy" if name == "standard" else f"test_accuracy_{name}": (one(x).argmax(1) == y).float().mean()
                for name, one in net.items()}  # fmt: skip

    @one_thread()
    def final(self, net):
        x, y = self.test
        found = {"confident_sources": chosen(net, self).confident}
        for name in ("standard", "robust"):
            moved = self.attacked(net[name], x, y, torch.Generator().manual_seed(self.seed))
            found[f"pgd_accuracy_{name}"] = (net[name](moved).argmax(1) == y).float().mean()
        return found


class Robust(Networks):
    """The robust network alone, from the same start."""

    names = ["robust"]

    def final(self, net):
        return {}


def chosen(net, task):
    """The pairs of a seed: those that the standard and the robust network both get right with confidence over 0.8."""
    return pairs([net["standard"], net["robust"]], *task.test, task.p.pairs, np.random.default_rng([task.seed, 7]))


# ---- the walks


@dataclass(frozen=True)
class Walker:
    """How an arm walks, on which network, with how many times the knob `eps`."""

    kind: str = "traversal"
    net: str = "standard"
    eps: float = 1.0
    project: bool = True
    triangles: bool = True  # whether it also walks to the second targets
    after = "networks"

    def when(self, p) -> bool:
        return self.net != "transformer" or p.transformer

    def __call__(self, p, seeds, networks):
        return Walks(self, p, seeds, networks)

    def begin(self, net: nn.Module, x, y, source, target, p) -> method.Walk:
        """The walkers of this arm from pictures x[source] to x[target]."""
        ends = x[source], x[target], p.delta
        if self.kind == "linear":  # exact: two classes, no curvature to correct, no border
            return method.Traversal(method.odds_between(net, y[source], y[target]), *ends, p.eta, 0.0, clip=False)
        odds = method.odds_against(net, y[source])
        if self.kind == "straight":
            return method.Straight(odds, *ends, p.walk_steps)
        if self.kind == "penalty":
            return method.PenaltyDescent(odds, *ends, PENALTY)
        return method.Traversal(odds, *ends, p.eta, self.eps * p.eps, self.project)


class Walked(nn.Module):
    """A network with what its walks have found so far: `film` of the first pair as (step, picture, confidence, distance), the
    `corners` [3, D] of the first triangle. `rival` is the one class that confidence is measured against, None for all."""

    def __init__(self, net: nn.Module, shape, label: int, rival: int | None = None):
        super().__init__()
        self.net, self.shape, self.label, self.rival = net, shape, label, rival
        self.film, self.corners = [], None

    @property
    def words(self) -> str:
        return f"{self.label}" if self.rival is None else f"{self.label} against {self.rival}"


class Walks(Stepwise):
    """The walks of one arm: every source to its first and to its second target, all seeds, side by side."""

    def __init__(self, spec: Walker, p: Params, seeds: list[int], networks):
        self.spec, self.p, self.seeds = spec, p, seeds
        self.total, self.step, self.seconds = p.walk_steps, 0, 0.0
        self.members, self.walks, self.tasks = [], [], networks.tasks
        for whole, task in zip(networks.members, networks.tasks, strict=True):
            drawn, (x, y) = chosen(whole.eval(), task), task.test
            ends = [drawn.first, drawn.second][: 1 + spec.triangles]
            source, target = drawn.source.repeat(len(ends)), torch.cat(ends)
            self.walks.append(spec.begin(whole[spec.net], x, y, source, target, p))
            rival = int(y[target[0]]) if spec.kind == "linear" else None
            self.members.append(Walked(whole[spec.net], task.shape, int(y[source[0]]), rival))

    @property
    def budget(self) -> dict[str, float]:
        """Steps of each walker, points looked at by the walkers of a member, seconds of all members together."""
        samples = int(sum(walk.taken.sum() for walk in self.walks) / len(self.walks))
        return {"steps": self.step, "samples": samples, "forward_calls": self.step + 1, "seconds": self.seconds}

    def stepwise(self):
        every = max(1, self.total // 25)
        yield Tick(0, self.look())
        while self.step < self.total:
            self.advance()
            due = self.step % every == 0 or self.step == self.total
            yield Tick(self.step, self.look()) if due else None

    @one_thread()
    def advance(self):
        began = time.perf_counter()
        for walk in self.walks:
            walk.advance()
        self.step += 1
        self.seconds += time.perf_counter() - began

    @one_thread()
    def look(self) -> list[dict[str, float]]:
        """Distance and confidence of the first targets' walks; after the last step everything else."""
        found = []
        for walk, member in zip(self.walks, self.members, strict=True):
            n, left = self.p.pairs, walk.left()
            member.film.append((self.step, walk.x[0].clone(), float(walk.sure[0]), float(left[0])))
            member.corners = torch.stack([walk.source[0], walk.x[0], walk.x[n if self.spec.triangles else 0]])
            now = {"relative_distance": left[:n].mean(), "confidence": walk.sure[:n].mean()}
            found.append(now | (self.summary(walk, member) if self.step == self.total else {}))
        return [{name: float(value) for name, value in one.items()} for one in found]

    def summary(self, walk, member) -> dict[str, float]:
        """What is found on segments and triangles of the finished walks of a seed."""
        n = self.p.pairs
        floor, s, a = walk.start[:n, None] - walk.delta, walk.source[:n], walk.x[:n]
        found = {
            "path_share_confident": (method.sureness(walk.odds, method.segment(s, a)) >= floor).float().mean(),
            "similarity": similarity(a, walk.target[:n], member.shape), "confidence_source": walk.start[:n].mean(),
            "steps_taken": walk.taken[:n].mean(),
        }  # fmt: skip
        if self.spec.triangles:
            b, grid = walk.x[n:], method.sureness(walk.odds, method.triangle(s, a, walk.x[n:]))
            share = (grid >= floor).float().mean(1)
            size = method.area(s, a, b) / method.area(s, walk.target[:n], walk.target[n:]).clamp_min(1e-12)
            found |= {"hull_confident_area": (share * size).mean(), "hull_share_confident": share.mean(),
                      "hull_confidence": grid.mean()}  # fmt: skip
        if self.spec.kind == "linear":
            gradient = method.slope(lambda z: walk.odds(z, torch.arange(n, device=z.device)), s)[1]
            foot, whole = method.projected(s, walk.target[:n], gradient), (walk.target[:n] - s).norm(dim=1)
            rest = (1 - self.p.eta) ** self.total * (foot - s)  # each step leaves 1 - eta of what was left along the plane
            found["closed_form_distance"] = ((foot - walk.target[:n]).norm(dim=1) / whole).mean()
            found["closed_form_gap"] = ((a - foot + rest).norm(dim=1) / whole).max()
        return found


class OtherRadii(Stepwise):
    """Robust networks of the first seed trained at FACTORS times the radius, and level-set traversal on the same pairs.
    A tick for each radius, at step 0, 1, ..."""

    after = "networks"
    when = staticmethod(lambda p: p.radii)

    def __init__(self, p, seeds, networks):
        self.p, self.seeds, self.networks = p, seeds, networks
        self.step, self.total = 0, len(FACTORS) * (p.steps + p.walk_steps)

    def stepwise(self):
        few = self.seeds[:1]
        for k, factor in enumerate(FACTORS):
            radius = factor * self.p.pgd_radius
            run = Run(Robust(replace(self.p, pgd_radius=radius)), few)
            yield from self.quietly(run)
            nets = [nn.ModuleDict({**whole, "other": net["robust"]})
                    for whole, net in zip(self.networks.members, run.members, strict=False)]  # fmt: skip
            walks = Walks(Walker(net="other", triangles=False), self.p, few,
                          SimpleNamespace(members=nets, tasks=self.networks.tasks[:1]))  # fmt: skip
            last = yield from self.quietly(walks)
            rest = [{} for _ in self.seeds[1:]]
            yield Tick(k, [{"radius": radius, **found} for found in last.metrics] + rest)

    def quietly(self, work):
        """Drive `work` to its end and return its last tick."""
        last = None
        for tick in work.stepwise():
            self.step += work.step > 0
            last = tick or last
            yield None
        return last


def similarity(a, b, shape) -> float:
    """Mean structural similarity of the pictures a and b [N, D] (Wang et al. 2004; windows of 7 x 7)."""
    from skimage.metrics import structural_similarity

    both = zip(*(part.view(-1, *shape).cpu().numpy() for part in (a, b)), strict=True)
    return float(np.mean([structural_similarity(u, v, data_range=1.0, channel_axis=0) for u, v in both]))


ARMS = {
    "networks": Networks,
    "straight_line": Walker("straight"),
    "no_projection": Walker(project=False),
    "no_correction": Walker(eps=0.0),
    "penalty_descent": Walker("penalty", triangles=False),
    "lst": Walker(),
    "lst_quarter_eps": Walker(eps=1 / 4, triangles=False),
    "lst_sixteenth_eps": Walker(eps=1 / 16, triangles=False),
    "lst_robust": Walker(net="robust"),
    "lst_transformer": Walker(net="transformer", triangles=False),
    "lst_linear": Walker("linear", net="linear"),
    "radii": OtherRadii,
}
figures = beside(__name__, "figures")
VIEWS = {"the walk as a film": beside(__name__, "film"), "confidence over the triangle": beside(__name__, "over_triangle")}
