"""Arms of the study osa-das: what is explained, and the ways to explain it. `p` are the study's Params."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.attribution import gradcam, gradient, integrated, rise_map, rise_masks
from claimlab.parts.faithfulness import area, curves, points_inside
from claimlab.studies.attribution import _osa_das_method as method
from claimlab.studies.attribution._osa_das_subject import Subject, stream, subjects
from claimlab.training import Stepwise, Tick

STEPS = 20  # of the insertion and deletion curves
GRID = 7  # cells a side of RISE, as its authors have it
SWEPT = (1, 2, 3, 5, 8)  # dimensions in the sweep


def occluders(p, size: tuple[int, int], seed: int) -> Tensor:
    """The K occluders of a seed, shared by all its images and all arms that hide one thing at a time. [K, H, W]"""
    found = method.windows(size, p.window)
    return found if p.masks == "window" else method.random_grids(len(found), size, p.window, stream(seed, "grids"))


def views(p, size: tuple[int, int], seed: int) -> method.Views:
    """The N views of a seed, shared by all its images."""
    return method.draw_views(p.views, p.strength, size, torch.Generator().manual_seed(zlib.crc32(f"views {seed}".encode())), p.flip)


# ---- one image through all occluders


def occluded(x: Tensor, hidden: Tensor, filler: Tensor) -> Tensor:
    """x (1 - h) + filler h: N images [N, C, H, W], each under its own K occluders [N, K, H, W]. [N, K, C, H, W]"""
    return torch.lerp(x[:, None], filler[:, None], hidden[:, :, None])


def feature(logits: Tensor, penultimate: Tensor, kind: str) -> Tensor:
    """The vector that spans subspaces. [..., d]"""
    return {"logits": logits, "probabilities": logits.softmax(-1), "penultimate": penultimate}[kind]


def passes(s: Subject, p, x: Tensor, target: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Views x [N, C, H, W] of one image, whole (row 0) and under their K occluders `moved` [N, K, H, W]: the probability of the
    class [1 + K, N] and the features [1 + K, N, d]."""
    parts = torch.cat([x[:, None], occluded(x, moved, s.hidden_by(p, x))], 1)
    logits, penultimate = s.asked(parts.flatten(0, 1))
    shape = parts.shape[:2]
    found = feature(logits, penultimate, p.feature).unflatten(0, shape).transpose(0, 1)
    return logits.softmax(1)[:, target].unflatten(0, shape).T.contiguous(), found.contiguous()


class Explanation(Stepwise):
    """One way to explain the networks of all seeds. A tick for each budget of forward calls an image; its step is that budget."""

    after = "network"
    name = ""

    def __init__(self, p, seeds: list[int], before):
        self.p, self.before = p, before
        self.subjects = before.subjects if hasattr(before, "subjects") else subjects(before, p)
        self.size = tuple(self.subjects[0].x.shape[-2:])
        self.count = len(method.windows(self.size, p.window))
        self.asked = max(1, round(p.share * self.count))  # occluders that are evaluated
        self.total, self.step, self.seconds = len(self.stages), 0, 0.0
        self.found: list = []
        self.maps: list[Tensor] = [None] * len(self.subjects)
        self.ranks: list[Tensor] = [None] * len(self.subjects)
        self.curves: list[tuple[Tensor, Tensor]] = [None] * len(self.subjects)
        self.sizes: list[Tensor] = [None] * len(self.subjects)

    @property
    def stages(self) -> list[int]:
        """Views after which the map is looked at."""
        return [1]

    @property
    def budget(self) -> dict[str, float]:
        """Forward calls of a member; seconds of all."""
        return {"steps": 0, "samples": 0, "forward_calls": self.calls(self.stages[-1]) * len(self.subjects[0].x), "seconds": self.seconds}

    def calls(self, count: int) -> int:
        """Forward calls an image with so many views."""
        return 1

    def prepare(self, s: Subject) -> Iterator:
        """Everything that takes forward calls; yields between images and returns what `draw` needs."""
        return
        yield

    def draw(self, i: int, count: int) -> Tensor:
        """The maps of seed number `i` from the first `count` views. [n, H, W]"""
        raise NotImplementedError

    def more(self, i: int) -> dict[str, float]:
        """Metrics of this method alone."""
        return {}

    def stepwise(self):
        began = time.perf_counter()
        for s in self.subjects:
            self.found.append((yield from self.prepare(s)))
            yield None
        for count in self.stages:
            metrics = [self._measure(i, count) for i in range(len(self.subjects))]
            self.step += 1
            self.seconds = time.perf_counter() - began
            yield Tick(self.calls(count), metrics)

    def _measure(self, i: int, count: int) -> dict[str, float]:
        s, maps = self.subjects[i], self.draw(i, count)
        rank = method.ordered(maps, zlib.crc32(f"ties {s.seed}".encode()))
        self.maps[i], self.ranks[i] = maps, rank
        self.sizes[i] = method.minimal_size(s.asked.logits, s.x, s.y, rank, s.middle)
        found = {"minimal_size": float(self.sizes[i].mean())}
        if s.box is not None:
            found |= {"mass_on_object": float(method.mass_inside(maps, s.box).mean()),
                      "pointing_game": float(points_inside(maps, s.box).mean())}  # fmt: skip
        if count != self.stages[-1]:
            return found
        self.curves[i] = curves(s.asked.logits, s.x, s.y, rank, s.middle, s.middle, STEPS)
        gone, back = (float(area(c).mean()) for c in self.curves[i])
        return found | {"deletion_auc": gone, "insertion_auc": back, "overall_score": back - gone} | self.more(i)


class Hiding(Explanation):
    """Explanations from K occluders: `scores` says how much each one changes."""

    def scores(self, i: int, count: int) -> Tensor:
        """Of the occluders that were evaluated, [n, K']."""
        raise NotImplementedError

    def calls(self, count):
        return count * (self.asked + 1)

    def selected(self, s: Subject, hidden: Tensor) -> Tensor:
        """The occluders that are evaluated for each image, [n, K']: all, or those over the largest input gradient."""
        if self.p.share == 1:
            return torch.arange(len(hidden), device=s.x.device).expand(len(s.x), -1)
        return method.promising(gradient(s.net, s.x, s.y).abs().sum(1), hidden, self.asked)

    def prepare(self, s):
        hidden = occluders(self.p, self.size, s.seed).to(s.x)
        chosen = self.selected(s, hidden)
        looks = self.looks(s, hidden)
        rows = []
        for i in range(len(s.x)):
            rows.append(passes(s, self.p, *looks(i, chosen[i])))
            if i % 8 == 7:
                yield None
        f, v = (torch.stack(part) for part in zip(*rows, strict=True))
        return SimpleNamespace(hidden=hidden, chosen=chosen, probability=f, features=v)

    def looks(self, s: Subject, hidden: Tensor) -> Callable:
        """What `passes` is given for image i and its occluders: here the image itself."""
        return lambda i, rows: (s.x[i : i + 1], s.y[i], hidden[rows][None])

    def draw(self, i, count):
        found = self.found[i]
        scores = self.scores(i, count)
        return method.heat(method.spread(scores, found.chosen, len(found.hidden)), found.hidden)


class Classical(Hiding):
    """Occlusion sensitivity: what the probability of the class loses."""

    name = "osa"

    def scores(self, i, count):
        f = self.found[i].probability[:, :, :count]
        return (f[:, :1] - f[:, 1:]).mean(2)


class Vector(Hiding):
    """How far the feature vector turns: 1 - cosine. From the passes of `osa`."""

    name, after = "single_vector", "osa"

    def prepare(self, s):
        return self.before.found[self.subjects.index(s)]
        yield

    def scores(self, i, count):
        v = self.found[i].features[:, :, 0]
        return 1 - torch.cosine_similarity(v[:, :1], v[:, 1:], dim=2)


class Subspaces(Hiding):
    """The method: how far the bundle of features of all views turns, as a subspace."""

    name = "osa_das"

    @property
    def stages(self):
        return sorted({max(1, self.p.views // 4), max(1, self.p.views // 2), self.p.views})

    def looks(self, s, hidden):
        drawn = views(self.p, self.size, s.seed)
        moved = method.move(hidden, drawn)

        def one(i: int, rows: Tensor):
            seen = method.augment(s.x[i].expand(self.p.views, -1, -1, -1), drawn)
            return seen, s.y[i], moved[:, rows] if len(rows) < len(hidden) else moved

        return one

    def bases(self, i: int, count: int, m: int) -> Tensor:
        """Bases of the subspaces of every image, whole (0) and under its occluders. [n, 1 + K', d, m]"""
        return method.subspace(self.found[i].features[:, :, :count].mT, m)

    def scores(self, i, count, m=None):
        u = self.bases(i, count, m or self.p.dimension)
        return method.orthogonal_degree(u[:, :1], u[:, 1:])

    def more(self, i):
        """The overall score at other dimensions, from the same passes, where p.sweep asks for it."""
        s, found, results = self.subjects[i], self.found[i], {}
        for m in SWEPT if self.p.sweep else ():
            maps = method.heat(method.spread(self.scores(i, self.p.views, m), found.chosen, len(found.hidden)), found.hidden)
            rank = method.ordered(maps, zlib.crc32(f"ties {s.seed}".encode()))
            gone, back = curves(s.asked.logits, s.x, s.y, rank, s.middle, s.middle, STEPS)
            results[f"overall_score, m {m}"] = float((area(back) - area(gone)).mean())
        return results


class Averaged(Classical):
    """The loss of probability, mean over the views. From the passes of `osa_das`."""

    name, after, stages = "osa_averaged", "osa_das", Subspaces.stages

    def prepare(self, s):
        return self.before.found[self.subjects.index(s)]
        yield


class Rise(Explanation):
    """The mean of random grids, each weighed by the probability that it leaves; as many calls as `osa_das`."""

    name, stages = "rise", Subspaces.stages

    def calls(self, count):
        return count * (self.asked + 1)

    def prepare(self, s):
        shown = rise_masks(self.calls(self.p.views), GRID, self.size, stream(s.seed, "rise"))[:, 0].to(s.x)
        rows = []
        for i in range(len(s.x)):
            x = s.x[i : i + 1]
            logits, _ = s.asked(occluded(x, 1 - shown[None], s.hidden_by(self.p, x))[0])
            rows.append(logits.softmax(1)[:, s.y[i]])
            if i % 8 == 7:
                yield None
        return shown[:, None], torch.stack(rows)

    def draw(self, i, count):
        (shown, f), k = self.found[i], self.calls(count)
        return rise_map(f[:, :k], shown[:k])


class Single(Explanation):
    """A method without occluders: `way(subject, params)` gives the maps, with `cost` forward calls an image."""

    cost, way = 1, None

    def calls(self, count):
        return self.cost

    def draw(self, i, count):
        return type(self).way(self.subjects[i], self.p)


def _single(name: str, cost: int, way: Callable[[Subject, object], Tensor]) -> type[Single]:
    return type(name, (Single,), {"name": name, "cost": cost, "way": staticmethod(way)})


def noise(s: Subject, _p) -> Tensor:
    """Uniform noise: what a map that knows nothing scores. [n, H, W]"""
    return torch.from_numpy(stream(s.seed, "uniform map").random((len(s.x), *s.x.shape[2:]), dtype=np.float32)).to(s.x)


def path(s: Subject, p) -> Tensor:
    """Integrated gradients from the image's fill, 32 points, absolute values. [n, H, W]"""
    return integrated(s.net, s.x, s.y, 32, s.hidden_by(p, s.x)).abs().sum(1)


EXPLANATIONS = {
    "random_map": _single("random_map", 0, noise),
    "gradcam": _single("gradcam", 1, lambda s, p: gradcam(s.net, s.x, s.y)),
    "integrated_gradients": _single("integrated_gradients", 32, path),
    "rise": Rise, "osa": Classical, "single_vector": Vector, "osa_das": Subspaces, "osa_averaged": Averaged,
}  # fmt: skip


def mapping(found: list[Subject], p) -> Generator[None, None, dict[str, Explanation]]:
    """All arms with their maps, not measured, on subjects of one's own; yields while it works."""
    arms: dict[str, Explanation] = {}
    for name, make in EXPLANATIONS.items():
        arm = arms[name] = make(p, [s.seed for s in found], arms.get(make.after) or SimpleNamespace(subjects=found))
        for i, s in enumerate(found):
            arm.found.append((yield from arm.prepare(s)))
            arm.maps[i] = arm.draw(i, arm.stages[-1])
    return arms


def maps_of(found: list[Subject], p) -> dict[str, Explanation]:
    """As `mapping`, to the end."""
    work = mapping(found, p)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value
