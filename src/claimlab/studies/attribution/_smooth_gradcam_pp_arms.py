"""Arms of the study smooth-gradcam-pp: the images that are explained, and the ways to explain them. `p` are its Params."""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from claimlab.parts.attribution import enlarge, gradcam, ranks, smoothgrad
from claimlab.parts.faithfulness import energy_inside, points_inside
from claimlab.studies.attribution import _smooth_gradcam_pp_method as method
from claimlab.studies.attribution._smooth_gradcam_pp_data import CUTS
from claimlab.training import Run, Stepwise, Tick

STAGES = (1, 2, 5, 10, 20, 50, 100)  # copies after which the maps are looked at
LEVELS, SWEPT = (0.05, 0.1, 0.25, 0.4, 0.6), 40  # noise of the sweep, and its images: the first with several instances
PIXELS = 20  # images of each kind for SmoothGrad, whose every copy costs a whole backward pass


def stages(p) -> list[int]:
    """Copies after which one looks. Without noise all copies are the image itself, and one is enough."""
    last = p.copies if p.noise else 1
    return [n for n in STAGES if n < last] + [last]


def generator(seed: int, use: str) -> torch.Generator:
    """The generator for one use at one seed: the same in every arm."""
    return torch.Generator().manual_seed(zlib.crc32(f"{use} {seed}".encode()))


@dataclass
class Subject:
    """One classifier and the test images x [N, C, H, W] of classes y on which it is explained; masks [N, m, H, W] of their
    objects, and which of them have several [N]. `clean` is (A, g, S); `maps` holds [N, h, w] by method and copies."""

    seed: int
    net: nn.Sequential
    x: Tensor
    y: Tensor
    masks: Tensor
    multi: Tensor
    clean: tuple[Tensor, Tensor, Tensor]
    maps: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    swept: dict[float, dict[str, Tensor]] = field(default_factory=dict)


def subjects(run: Run, p) -> list[Subject]:
    """The networks of all seeds with their test images. The map is asked for the class of the objects."""
    found = []
    for seed, net, task in zip(run.seeds, run.members, run.tasks, strict=True):
        x, y = task.test
        masks, multi = task.masks.to(x.device), task.multi.to(x.device)
        found.append(Subject(seed, net.eval(), x, y, masks, multi, method.slopes(net, x, y, CUTS[p.layer])))
    return found


# ---- what a map is worth


def both_found(maps: Tensor, masks: Tensor, rng: torch.Generator) -> Tensor:
    """1 where the map [n, H, W], cut so that as many pixels stay as the masks [n, m, H, W] have together, keeps at least half
    of each mask. A map that lights up everywhere gains nothing. Equal values stay in random order. [n]"""
    room = masks.any(1).sum((1, 2))
    kept = ranks(maps, rng) >= (maps[0].numel() - room)[:, None, None]
    inside = (kept[:, None] & masks).sum((2, 3))
    return (2 * inside >= masks.sum((2, 3))).all(1).float()


def overlap(maps: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Intersection over union of {map >= threshold x maximum} with the mask, maps and mask [n, H, W]; an empty map has 0. [n]"""
    kept = (maps >= threshold * maps.amax((1, 2), keepdim=True)) & (maps > 0)
    return (kept & mask).sum((1, 2)) / (kept | mask).sum((1, 2))


def sharpness(maps: Tensor) -> Tensor:
    """Total variation of the map scaled to [0, 1] over the number of pixels above one half; an empty map has 0. [n]"""
    m = method.scaled(maps)
    variation = m.diff(dim=1).abs().sum((1, 2)) + m.diff(dim=2).abs().sum((1, 2))
    return variation / (m > 0.5).sum((1, 2)).clamp(min=1)


def measure(maps: Tensor, masks: Tensor, multi: Tensor, threshold: float, rng: torch.Generator) -> dict[str, float]:
    """Every metric of enlarged maps [n, H, W]; one that no image is fit for is left out."""
    union, found = masks.any(1), {}
    found["energy_in_object"] = energy_inside(maps, union).mean()
    found["pointing"] = points_inside(maps, union).mean()
    found["sharpness"] = sharpness(maps).mean()
    if (~multi).any():
        found["iou"] = overlap(maps[~multi], union[~multi], threshold).mean()
    if multi.any():
        found["both_found"] = both_found(maps[multi], masks[multi], rng).mean()
    return {name: float(value) for name, value in found.items()}


# ---- the arms


class Explanation(Stepwise):
    """One way to explain the networks of all seeds; every other one starts from the method's arm and shares its passes."""

    after = "smooth_gradcam_pp"
    name = ""

    def __init__(self, p, seeds: list[int], before):
        self.p, self.subjects = before.p, before.subjects
        self.total, self.step, self.seconds = len(self.stages), 0, 0.0

    @property
    def stages(self) -> list[int]:
        """Copies after which this arm reports."""
        return [1]

    @property
    def passes(self) -> int:
        """Forward passes an image."""
        return 1

    @property
    def budget(self) -> dict[str, float]:
        """Forward passes of a member over its test images; seconds of all."""
        return {"steps": 0, "samples": 0, "forward_calls": self.passes * len(self.subjects[0].x), "seconds": self.seconds}

    def draw(self, s: Subject, copies: int) -> Tensor:
        """The enlarged maps of all images. [N, H, W]"""
        return enlarge(s.maps[self.name, copies], s.x.shape[-2:])

    def more(self, s: Subject) -> dict[str, float]:
        """Metrics of this method alone, taken at the last stage."""
        return {}

    def measure(self, s: Subject, copies: int) -> dict[str, float]:
        found = measure(self.draw(s, copies), s.masks, s.multi, self.p.threshold, generator(s.seed, "ties"))
        return found | (self.more(s) if copies == self.stages[-1] else {})

    def stepwise(self):
        for copies in self.stages:
            began = time.perf_counter()
            found = [self.measure(s, copies) for s in self.subjects]
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield Tick(copies, found)


class Noisy(Explanation):
    """A method that averages over noisy copies: a tick for each of the stages."""

    @property
    def stages(self):
        return stages(self.p)

    @property
    def passes(self):
        return self.stages[-1]

    def more(self, s):
        large, seen = s.x.shape[-2:], s.multi.nonzero()[:SWEPT, 0]
        masks = s.masks[seen]
        return {
            f"both_found_noise_{level:g}": float(both_found(enlarge(maps[self.name], large), masks, generator(s.seed, "ties")).mean())
            for level, maps in s.swept.items()
        }


class Method(Noisy):
    """Smooth Grad-CAM++. It makes the noisy passes for all arms that average over noise."""

    after, name = "network", "smooth_gradcam_pp"

    def __init__(self, p, seeds, before: Run):
        self.p = before.task.p  # with what was set while the network trained
        self.subjects = subjects(before, self.p)
        self.total, self.step, self.seconds = len(self.stages), 0, 0.0

    def stepwise(self):
        for s in self.subjects:
            began = time.perf_counter()
            self.smooth(s)
            self.sweep(s)
            self.seconds += time.perf_counter() - began
            yield None
        yield from super().stepwise()

    def smooth(self, s: Subject) -> None:
        """The maps of all noisy arms at every stage."""
        cut, rng = CUTS[self.p.layer], generator(s.seed, "noise")
        running = method.Smoothed(s.net, s.y, cut, s.clean, self.p.exp_score)
        for k, noisy in enumerate(method.copies(s.x, self.p.noise, rng), start=1):
            running.add(noisy)
            if k in self.stages:
                s.maps |= {(name, k): maps for name, maps in running.maps().items()}
            if k == self.stages[-1]:
                return

    def sweep(self, s: Subject) -> None:
        """The maps of the first images with several instances at other levels of noise, with the same draws at each."""
        seen = s.multi.nonzero()[:SWEPT, 0]
        if not len(seen) or not self.p.noise:
            return
        x, y, clean = s.x[seen], s.y[seen], tuple(t[seen] for t in s.clean)
        for level in (0.0, *LEVELS):
            running = method.Smoothed(s.net, y, CUTS[self.p.layer], clean, self.p.exp_score)
            drawn = method.copies(x, level, generator(s.seed, "sweep"))
            for _ in range(self.p.copies if level else 1):
                running.add(next(drawn))
            s.swept[level] = running.maps()


class SmoothGrad(Explanation):
    """SmoothGrad on pixels, for the first images of each kind only: the map that looks like edges."""

    name = "smoothgrad"

    @property
    def passes(self):
        return stages(self.p)[-1]

    def measure(self, s, copies):
        own = torch.cat([(s.multi == kind).nonzero()[:PIXELS, 0] for kind in (False, True)])
        x, rng = s.x[own], generator(s.seed, "smoothgrad")
        sd = self.p.noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
        maps = smoothgrad(s.net, x, s.y[own], rng, self.passes, sd)
        return measure(maps, s.masks[own], s.multi[own], self.p.threshold, generator(s.seed, "ties"))


class GradCam(Explanation):
    name = "gradcam"

    def draw(self, s, copies):
        return gradcam(s.net, s.x, s.y, s.net[CUTS[self.p.layer]])


class GradCamPP(Explanation):
    name = "gradcam_pp"

    def draw(self, s, copies):
        a, g, _ = s.clean
        return enlarge(method.gradcam_pp(a, g), s.x.shape[-2:])


class LayerCam(Explanation):
    name = "layercam"

    def draw(self, s, copies):
        a, g, _ = s.clean
        return enlarge(method.layercam(a, g), s.x.shape[-2:])


class Centre(Explanation):
    """A Gaussian in the middle of every image, a quarter of its side wide: what a map that knows nothing scores."""

    name, passes = "centre_prior", 0

    def draw(self, s, copies):
        sides = [torch.linspace(-2, 2, n).square() for n in s.x.shape[-2:]]
        return torch.exp(-(sides[0][:, None] + sides[1]) / 2).to(s.x).expand(len(s.x), -1, -1)


def _noisy(name: str, says: str) -> type[Noisy]:
    return type("Noisy_" + name, (Noisy,), {"name": name, "__doc__": says})


EXPLANATIONS = {
    "smooth_gradcam_pp": Method, "gradcam": GradCam, "gradcam_pp": GradCamPP,
    "smooth_gradcam": _noisy("smooth_gradcam", "Grad-CAM's weights, averaged over noise: no higher orders."),
    "mean_of_maps": _noisy("mean_of_maps", "The mean of finished Grad-CAM++ maps of noisy images."),
    "layercam": LayerCam,
    "smooth_powers": _noisy("smooth_powers", "The method without the factor exp(S): powers of g alone."),
    "smoothgrad": SmoothGrad, "centre_prior": Centre,
}  # fmt: skip


def precision_recall(maps: Tensor, union: Tensor, levels: int = 101) -> tuple[Tensor, Tensor]:
    """Precision and recall of object pixels, pooled over images, of maps [n, H, W] scaled to [0, 1] and cut at `levels`
    thresholds from the highest to just above 0. Both [levels]; precision is NaN where nothing is left."""
    m = method.scaled(maps)
    place = (m * (levels - 1)).ceil().long()  # 0 is what no threshold keeps
    hits = torch.bincount(place[union], minlength=levels).flip(0).cumsum(0)[:-1]
    kept = torch.bincount(place.flatten(), minlength=levels).flip(0).cumsum(0)[:-1]
    precision = torch.where(kept > 0, hits / kept.clamp(min=1), math.nan)
    return precision, hits / union.sum()
