"""What the study extremal-perturbations explains, how an explanation is measured, and the rivals that need no steps.

`p` are the study's Params.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.parts.attribution import gradcam, gradient, ranks, rise_map, rise_masks
from claimlab.parts.faithfulness import points_inside
from claimlab.studies.attribution import _extremal_perturbations_method as method
from claimlab.training import Run, Stepwise, Tick

POINT = 2.0  # pixels: blur of a map before its largest value is looked for
RISE, CELLS = 6, 8  # random masks for each step of the masks that form (600 at 100 steps), and cells a side
PATCH, STRIDE = 8, 2  # pixels: the grey square of occlusion


@dataclass
class Subject:
    """One network, the pictures [n, C, H, W] on which it is explained, and a second network; `grey` [C] is the mean colour."""

    seed: int
    trained: nn.Sequential
    net: nn.Sequential
    second: nn.Sequential
    x: Tensor
    y: Tensor
    box: Tensor
    levels: Tensor
    grey: Tensor

    def probability(self, masks: Tensor, second: bool = False) -> Tensor:
        """Softmax probability of the class of the first n pictures under masks [n, A, H, W]. [n, A]"""
        return self.answer(masks, lambda out: out.softmax(1), self.second if second else self.net)

    def answer(self, masks: Tensor, read=lambda out: out, net: nn.Module | None = None) -> Tensor:
        """What is read from the logits for the class, by default the logit itself, under masks [n, A, H, W]. [n, A]"""
        n, count = masks.shape[:2]
        with torch.no_grad():
            seen = method.perturb(self.levels[:n].repeat_interleave(count, 0), masks.flatten(0, 1))
            out = torch.cat([read((net or self.net)(part)) for part in seen.split(128)])
        return out.gather(1, self.y[:n].repeat_interleave(count)[:, None]).view(n, count)


def stream(seed: int, use: str) -> torch.Generator:
    """The generator for one use at one seed: the same in every arm."""
    return torch.Generator().manual_seed(zlib.crc32(f"{use} {seed}".encode()))


def chosen(net: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The first `count` pictures that are classified correctly; where they are too few, then the likeliest. Rows [count]"""
    with torch.no_grad():
        p = net(x).softmax(1)
    own = p.gather(1, y[:, None])[:, 0]
    return torch.argsort(torch.where(p.argmax(1) == y, 2.0, own), descending=True, stable=True)[:count]


def strongest(size: tuple[int, ...]) -> float:
    """The strongest blur of pictures [..., H, W], pixels."""
    return method.BLUR * min(size[-2:]) / 32


def subjects(run: Run, p) -> list[Subject]:
    """The networks of all seeds (`run.start`, and as second ones `run.members`) with the pictures that are explained."""
    found = []
    for seed, net, second, task in zip(run.seeds, run.start, run.members, run.tasks, strict=True):
        ready = method.frozen(net)
        kept = chosen(ready, *task.test, p.images)
        x, y = (part[kept] for part in task.test)
        levels = method.pyramid(x, p.perturbation, strongest(x.shape))
        found.append(Subject(seed, net, ready, method.frozen(second), x, y, task.box.to(x.device)[kept], levels, task.x.mean((0, 2, 3))))
    return found


def hard(maps: Tensor, areas: list[float], seed: int) -> Tensor:
    """Binary masks of the `areas` largest pixels of maps [n, A or 1, H, W]; ties in random order. [n, A, H, W]"""
    rank = [ranks(m, stream(seed, "ties")) for m in maps.unbind(1)]
    pixels = rank[0][0].numel()
    rank = rank * len(areas) if len(rank) == 1 else rank
    return torch.stack([(r >= pixels - max(1, round(a * pixels))).float() for r, a in zip(rank, areas, strict=True)], dim=1)


def pointed(maps: Tensor) -> Tensor:
    """A map for the pointing game: masks [n, A, H, W] added up and blurred. [n, H, W]"""
    return method.blur(maps.sum(1), POINT * min(maps.shape[-2:]) / 32)


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of the pixels of two maps [n, H, W]; 0 where one is flat. [n]"""
    a, b = (t.flatten(1) - t.flatten(1).mean(1, keepdim=True) for t in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)


class Explanation(Stepwise):
    """One way to explain the networks of all seeds; `maps[i]` [n, A or 1, H, W] is what it finds, `kept[i]` [A] and `passed[i]`
    [A] are the mean probabilities that its regions keep in the explained network and in the second one."""

    name, after, pictures = "", "extremal", None
    calls = 1  # of the network for a picture

    def __init__(self, p, seeds: list[int], before):
        self.p, self.before, self.seeds = p, before, seeds
        self.subjects = before.subjects if hasattr(before, "subjects") else subjects(before, p)
        self.areas = method.shares(p.area, p.areas)
        self.maps: list[Tensor | None] = [None] * len(self.subjects)
        self.kept, self.passed = ([None] * len(self.subjects) for _ in range(2))
        self.total, self.step, self.seconds = 1, 0, 0.0

    @property
    def budget(self) -> dict[str, float]:
        """Forward calls of a member; seconds of all."""
        return {"steps": self.total, "samples": 0, "forward_calls": self.calls * len(self.subjects[0].x), "seconds": self.seconds}

    def draw(self, s: Subject) -> Tensor:
        """The maps of a method that needs no steps. [n, H, W]"""
        raise NotImplementedError

    def stepwise(self):
        began = time.perf_counter()
        self.maps = [self.draw(s)[:, None] for s in self.subjects]
        found = [self.measured(i) for i in range(len(self.subjects))]
        self.step, self.seconds = 1, time.perf_counter() - began
        yield Tick(1, found)

    def measured(self, i: int) -> dict[str, float]:
        """The metrics that every method has."""
        s, maps = self.subjects[i], self.maps[i]
        regions = hard(maps, self.areas, s.seed)
        kept, passed = s.probability(regions), s.probability(regions, second=True)
        with torch.no_grad():
            known = s.second(s.x).argmax(1) == s.y
        known = known if known.any() else torch.ones_like(known)  # a second network that knows none of them: all are shown
        self.kept[i], self.passed[i] = kept.mean(0), passed[known].mean(0)
        return {
            "preserved_probability": float(kept.mean()),
            "transfer_probability": float(passed[known].mean()),
            "pointing_accuracy": float(points_inside(pointed(maps), s.box).mean()),
            "network_calls": self.calls,
        }

# ---- rivals without steps


class Gradient(Explanation):
    """|d f / d x|, the largest over the colours."""

    name = "gradient"

    def draw(self, s):
        return gradient(s.net, s.x, s.y).abs().amax(1)


class GradCam(Explanation):
    """The class-weighted maps of the last convolution."""

    name = "grad_cam"

    def draw(self, s):
        return gradcam(s.net, s.x, s.y)


class Rise(Explanation):
    """The mean of random masks, each weighed by the probability that it leaves; what is hidden is fully perturbed."""

    name = "rise"

    @property
    def calls(self):
        return RISE * self.p.mask_steps

    def draw(self, s):
        rng = np.random.default_rng([s.seed, zlib.crc32(b"rise")])
        masks = rise_masks(self.calls, CELLS, tuple(s.x.shape[-2:]), rng).to(s.x)
        found = []
        with torch.no_grad():
            for one, hidden, y in zip(s.x, s.levels[:, 0], s.y, strict=True):
                seen = hidden + masks * (one - hidden)
                found.append(torch.cat([s.net(part).softmax(1)[:, y] for part in seen.split(128)]))
        return rise_map(torch.stack(found), masks)


class Occlusion(Explanation):
    """A grey square slides over the picture: the mean loss of probability over the squares that hold a pixel."""

    name = "occlusion"

    def squares(self, size: tuple[int, ...]) -> Tensor:
        """1 inside the square, 0 outside, for every place of it. [K, H, W]"""
        side, stride = (round(n * min(size[-2:]) / 32) for n in (PATCH, STRIDE))
        at = [range(stride - side, n, stride) for n in size[-2:]]  # every pixel lies under equally many
        line = [[(torch.arange(n) >= a) & (torch.arange(n) < a + side) for a in starts] for n, starts in zip(size[-2:], at, strict=True)]
        return torch.stack([r[:, None] & c for r in line[0] for c in line[1]]).float()

    @property
    def calls(self):
        return len(self.squares(self.subjects[0].x.shape)) + 1

    def draw(self, s):
        inside = self.squares(s.x.shape).to(s.x)
        found = []
        with torch.no_grad():
            whole = s.net(s.x).softmax(1).gather(1, s.y[:, None])
            for one, y in zip(s.x, s.y, strict=True):
                seen = one + inside[:, None] * (s.grey[:, None, None] - one)
                found.append(torch.cat([s.net(part).softmax(1)[:, y] for part in seen.split(128)]))
        return torch.einsum("nk,khw->nhw", whole - torch.stack(found), inside) / inside.sum(0)
