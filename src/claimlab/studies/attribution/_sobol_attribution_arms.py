"""Arms of the study sobol-attribution: what is explained, and the ways to explain it. `p` are the study's Params."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.parts.attribution import enlarge, fast, gradcam, gradient, integrated, ranks, rise_map, rise_masks, smooth_noise
from claimlab.parts.faithfulness import area, curves, energy_inside
from claimlab.studies.attribution import _sobol_attribution_method as method
from claimlab.training import Run, Stepwise, Tick

CONVERGED, COMPARED = 16, 6  # the converged map: times the calls; on so many images
REGRESSED, MASKS = 8, 1024  # interactions: images, and masks for each
PAIRED = 8192  # masks of the one image whose pairs of cells are drawn
LEVELS = 8  # intensities of the additive stand-in
ROWS = 8192  # masks made at a time, for memory's sake


@dataclass
class Subject:
    """One classifier and the images [n, C, H, W] on which it is explained; `hidden` is mu, for masks and for deletion alike."""

    seed: int
    logits: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    hidden: Tensor
    blurred: Tensor
    box: Tensor | None = None
    net: nn.Module | None = None

    def ask(self, p, masks: Tensor, images: int | None = None) -> Tensor:
        """f under every mask, of cells [K, d] or of pixels [K, 1, H, W], for the first `images`. [n, K]"""
        x, y, mu = self.x[:images], self.y[:images], self.hidden[:images]
        parts = (m.to(x) if m.dim() == 4 else method.spread(m.to(x), x.shape[-2:]) for m in masks.split(ROWS))
        return torch.cat([method.ask(self.logits, x, y, m, mu, p.score) for m in parts], dim=1)


def choose(logits, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The first `count` images with probability over one half for the true class; where they are too few, then the likeliest."""
    p = logits(x).softmax(1).gather(1, y[:, None])[:, 0]
    return torch.argsort(torch.where(p > 0.5, 1.0, p.clamp(max=0.5)), descending=True, stable=True)[:count]


def subject(seed: int, logits, x: Tensor, y: Tensor, mean: Tensor, p, **more) -> Subject:
    """The images x [n, C, H, W] with their mu: black, the mean colour [C] of the training images, or the image blurred."""
    from scipy import ndimage

    blurred = torch.from_numpy(ndimage.gaussian_filter(x.cpu().numpy(), (0, 0, 3, 3))).to(x)
    plain = torch.zeros_like(mean) if p.baseline == "zero" else mean
    hidden = blurred if p.baseline == "blur" else plain[None, :, None, None].to(x).expand(len(x), -1, -1, -1)
    return Subject(seed, logits, x, y, hidden, blurred, **more)


def subjects(run: Run, p) -> list[Subject]:
    """The networks of all seeds, each with the test images on which it is explained."""
    found = []
    for seed, net, task in zip(run.seeds, run.members, run.tasks, strict=True):
        logits, (x, y) = fast(net.eval()), task.test
        kept = choose(logits, x, y, p.images)
        box = None if task.box is None else task.box.to(x.device)[kept]
        found.append(subject(seed, logits, x[kept], y[kept], task.x.mean((0, 2, 3)), p, box=box, net=net))
    return found


def stream(seed: int, use: str) -> np.random.Generator:
    """The generator for one use at one seed: the same in every arm."""
    return np.random.default_rng([seed, zlib.crc32(use.encode())])


class Explanation(Stepwise):
    """One way to explain the networks of all seeds. A tick for each budget of calls; its step is the calls an image."""

    after = "network"
    name = ""

    def __init__(self, p, seeds: list[int], before):
        self.p, self.before = p, before
        self.subjects = before.subjects if hasattr(before, "subjects") else subjects(before, p)
        self.size, self.cells = self.subjects[0].x.shape[-2:], p.grid**2
        self.total, self.step, self.seconds = len(self.stages), 0, 0.0
        self.found: list = []
        self.maps: list[Tensor] = [None] * len(self.subjects)
        self.curves: list[tuple[Tensor, Tensor]] = [None] * len(self.subjects)

    @property
    def stages(self) -> list[int]:
        """Points of the design after which the map is looked at: a quarter of them, half, all."""
        return [n for n in (self.p.designs // 4, self.p.designs // 2, self.p.designs) if n > 1]

    @property
    def budget(self) -> dict[str, float]:
        """Forward calls of a member; seconds of all."""
        calls = self.calls(self.stages[-1]) * len(self.subjects[0].x)
        return {"steps": 0, "samples": 0, "forward_calls": calls, "seconds": self.seconds}

    def calls(self, points: int) -> int:
        """Forward calls an image."""
        return points * (self.cells + 2)

    def prepare(self, s: Subject):
        """Everything that `draw` needs and that takes forward calls."""

    def draw(self, i: int, points: int) -> Tensor:
        """The maps of seed number `i` from the first `points` points of the design. [n, H, W]"""
        raise NotImplementedError

    def more(self, i: int, points: int) -> dict[str, float]:
        """Metrics of this method alone."""
        return {}

    def stepwise(self):
        for s in self.subjects:
            began = time.perf_counter()
            self.found.append(self.prepare(s))
            self.seconds += time.perf_counter() - began
            yield None
        for points in self.stages:
            began = time.perf_counter()
            metrics = [self._measure(i, points) for i in range(len(self.subjects))]
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield Tick(self.calls(points), metrics)

    def _measure(self, i: int, points: int) -> dict[str, float]:
        s, maps = self.subjects[i], self.draw(i, points)
        rank = ranks(maps, torch.Generator().manual_seed(zlib.crc32(f"ties {s.seed}".encode())))
        gone, back = curves(s.logits, s.x, s.y, rank, s.hidden, s.blurred)
        self.maps[i], self.curves[i] = maps, (gone, back)
        found = {"deletion_auc": float(area(gone).mean()), "insertion_auc": float(area(back).mean())}
        if s.box is not None:
            found["energy_in_box"] = float(energy_inside(maps, s.box).mean())
        return found | self.more(i, points)


class Sobol(Explanation):
    """Total indices."""

    name = "sobol"

    def design(self, seed: int, points: int, sampler: str, use: str = "design") -> method.Design:
        drawn = method.design(points, self.cells, sampler, stream(seed, use))
        return method.Design(*(t.round() for t in drawn)) if self.p.mask == "binary" else drawn

    def asked(self, s: Subject, drawn: method.Design, images: int | None = None) -> method.Answers:
        return method.answers(s.ask(self.p, drawn.rows(), images), len(drawn.a))

    def prepare(self, s):
        p = self.p
        f = self.asked(s, self.design(s.seed, p.designs, p.sampler))
        far = self.asked(s, self.design(s.seed, CONVERGED * p.designs, "qmc", "converged"), COMPARED)
        return SimpleNamespace(f=f, reference=method.total_index(far, p.estimator))

    def index(self, i: int, points: int) -> Tensor:
        return method.total_index(self.found[i].f.first(points), self.p.estimator)

    def draw(self, i, points):
        return enlarge(self.index(i, points).view(-1, self.p.grid, self.p.grid), self.size)

    def more(self, i, points):
        error = method.distance(self.index(i, points)[:COMPARED], self.found[i].reference)
        return {"map_error": float(error.mean())}


class Main(Sobol):
    """The method: total indices of a quasi-random design, and how much of the variance regions share."""

    def more(self, i, points):
        return super().more(i, points) | (self.interactions(i) if points == self.p.designs else {})

    def interactions(self, i: int) -> dict[str, float]:
        """1 - R^2 of an additive fit to the score, and to a stand-in that is additive; mean over the first images."""
        s, p = self.subjects[i], self.p
        m = stream(s.seed, "uniform masks").random((MASKS, self.cells)).astype(np.float32)
        f = s.ask(p, torch.from_numpy(m), REGRESSED).T.double().cpu().numpy()
        masks = torch.cat([method.one_at_a_time(LEVELS, self.cells), torch.ones(self.cells, self.cells)])
        profile = s.ask(p, masks, REGRESSED).view(-1, LEVELS + 1, self.cells).double().cpu().numpy()
        flat = method.stand_in(m, profile, np.array([*method.levels(LEVELS), 1.0]))
        share = method.not_additive(m, np.concatenate([f, flat], axis=1))
        count = f.shape[1]
        return {"interaction_share": float(share[:count].mean()), "additive_stand_in": float(share[count:].mean())}


def paired_cells(s: Subject, p) -> tuple[np.ndarray, float, float]:
    """Strength of every pair of cells of the first image [d, d], its noise level, and the share that is not additive."""
    m = stream(s.seed, "pairs").random((PAIRED, p.grid**2)).astype(np.float32)
    f = s.ask(p, torch.from_numpy(m), 1)[0].double().cpu().numpy()
    return *method.pair_strengths(m, f), float(method.not_additive(m, f[:, None])[0])


class Random(Sobol):
    """The same from pseudo-random points."""

    name, after = "sobol_random", "sobol"

    def prepare(self, s):
        before = self.before.found[self.subjects.index(s)]
        f = self.asked(s, self.design(s.seed, self.p.designs, "random"))
        return SimpleNamespace(f=f, reference=before.reference)


class First(Sobol):
    """First-order indices from the calls that the total indices took."""

    name, after = "sobol_first", "sobol"

    def prepare(self, s):
        return SimpleNamespace(f=self.before.found[self.subjects.index(s)].f)

    def index(self, i, points):
        return method.first_index(self.found[i].f.first(points))

    def more(self, i, points):
        return {}


class Signed(First):
    """Total indices with the sign of what the score loses when the cell is hidden: one more call a cell."""

    name = "sobol_signed"

    def calls(self, points):
        return super().calls(points) + self.cells + 1

    def prepare(self, s):
        lost = s.ask(self.p, torch.ones(1, self.cells)) - s.ask(self.p, 1 - torch.eye(self.cells))
        return SimpleNamespace(f=super().prepare(s).f, sign=lost.sign())

    def index(self, i, points):
        return Sobol.index(self, i, points) * self.found[i].sign


class Rise(Explanation):
    """The mean of random masks, each weighed by the score that it leaves."""

    name = "rise"

    def prepare(self, s):
        masks = rise_masks(self.calls(self.p.designs), self.p.grid, self.size, stream(s.seed, "rise"))
        return masks.to(s.x), s.ask(self.p, masks)

    def draw(self, i, points):
        (masks, f), k = self.found[i], self.calls(points)
        return rise_map(f[:, :k], masks[:k])


class Occlusion(Explanation):
    """What the score loses when one cell at a time is dimmed, mean over N intensities."""

    name = "occlusion"

    def calls(self, points):
        return points * self.cells

    def prepare(self, s):
        return s.ask(self.p, torch.ones(1, self.cells)) - s.ask(self.p, method.one_at_a_time(self.p.designs, self.cells))

    def draw(self, i, points):
        lost = self.found[i].view(len(self.found[i]), -1, self.cells)[:, :points].mean(1)
        return enlarge(lost.view(-1, self.p.grid, self.p.grid), self.size)


class Single(Explanation):
    """A method without a design: one map, one tick. `way(subject)` gives the maps, with `cost` forward calls an image."""

    cost, way = 1, None
    stages = property(lambda self: [1])

    def calls(self, points):
        return self.cost

    def draw(self, i, points):
        return type(self).way(self.subjects[i])


def _single(name: str, cost: int, way: Callable[[Subject], Tensor]) -> type[Single]:
    return type(name, (Single,), {"name": name, "cost": cost, "way": staticmethod(way)})


def last_maps(net: nn.Module) -> nn.Module:
    """The layer that the rectified maps of the last convolution enter."""
    return [m for m in net.modules() if isinstance(m, nn.MaxPool2d | nn.AdaptiveAvgPool2d)][-2]


def noise(s: Subject) -> Tensor:
    """Smooth noise: what a map that knows nothing scores. [n, H, W]"""
    size = s.x.shape[-2:]
    return torch.from_numpy(smooth_noise(len(s.x), max(size), 2, stream(s.seed, "noise"))[:, : size[0], : size[1]]).to(s.x)


EXPLANATIONS = {
    "sobol": Main, "rise": Rise, "sobol_random": Random, "sobol_first": First, "sobol_signed": Signed,
    "occlusion": Occlusion,
    "integrated_gradients": _single("integrated_gradients", 32, lambda s: integrated(s.net, s.x, s.y, 32, s.hidden).sum(1)),
    "gradcam": _single("gradcam", 1, lambda s: gradcam(s.net, s.x, s.y, last_maps(s.net))),
    "input_gradient": _single("input_gradient", 1, lambda s: gradient(s.net, s.x, s.y).abs().sum(1)),
    "random_map": _single("random_map", 0, noise),
}  # fmt: skip
