"""Arms of the study extremal-perturbations: what is explained, masks that form, and the rivals. `p` are the study's Params."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.parts.attribution import gradcam, gradient, ranks, rise_map, rise_masks
from claimlab.parts.faithfulness import points_inside
from claimlab.studies.attribution import _extremal_perturbations_method as method
from claimlab.training import Run, Stepwise, Tick

RATE, GROWTH = 0.05, 1.03  # of the parameters; of the area's weight in a step; both for 100 steps
ADAM, SPARSE, EVEN, CELL = 0.1, 3.0, 0.1, 4  # the trade-off method: rate, lambda 1, lambda 2, pixels of a cell (of 32)
POINT = 2.0  # pixels: blur of a map before its largest value is looked for
SHARE = 0.9  # phi_0: a region is enough where it keeps this share of the logit
REPEATED = 10  # pictures on which masks are compared with each other
RISE, CELLS = 6, 8  # random masks for each step of the masks that form (600 at 100 steps), and cells a side
PATCH, STRIDE = 8, 2  # pixels: the grey square of occlusion
CHANNELS = 0.25  # share of the channels that is kept


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

# ---- masks that form


class Forming(nn.Module):
    """Masks of pictures [n, C, H, W] for several areas while they form: n x A masks, the areas of a picture together."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, p, kind: str = "smooth"):
        super().__init__()
        self.net, self.p, size = net, p, tuple(x.shape[-2:])
        areas = method.shares(p.area, p.areas) if kind != "coarse" else [p.area]
        scale = min(size) / 32
        self.family = {"smooth": lambda: method.Smooth(size, p.sigma * scale), "free": lambda: method.Free(size),
                       "coarse": lambda: method.Coarse(size, round(CELL * scale))}[kind]()  # fmt: skip
        levels = method.pyramid(x, p.perturbation, strongest(size))
        self.register_buffer("levels", levels.repeat_interleave(len(areas), 0))
        self.register_buffer("target", y.repeat_interleave(len(areas)))
        self.register_buffer("area", torch.tensor(areas).repeat(len(x)).to(x.device))
        self.nodes = nn.Parameter(torch.ones(len(self.target), *self.family.nodes, device=x.device))
        self.count, self.done = len(areas), 0
        if kind == "coarse":
            self.moved_by = torch.optim.Adam([self.nodes], lr=ADAM)
        else:
            self.moved_by = torch.optim.SGD([self.nodes], lr=rate(p.mask_steps), momentum=0.9, dampening=0.9)

    def masks(self) -> Tensor:
        """[n, A, H, W]"""
        return self.family.masks(self.nodes.detach().clone()).unflatten(0, (-1, self.count))

    def penalty(self, m: Tensor) -> Tensor:
        """What the area costs at this step. [n A]"""
        return self.p.area_weight * GROWTH ** (100 / self.p.mask_steps * self.done) * method.area_loss(m, self.area)

    def forward(self, rng: torch.Generator) -> None:
        """One step; the pictures are moved by up to a pixel in every second one."""
        down, right = torch.randint(-1, 2, (2,), generator=rng).tolist() if self.done % 2 else (0, 0)
        p = self.p
        with torch.enable_grad():
            m = self.family.masks(self.nodes)

            def seen(x: Tensor) -> Tensor:
                return self.net(method.shifted(x, down, right))

            score = method.played(seen, self.levels, m, self.target, p.game, p.reward)
            self.moved_by.zero_grad()
            (self.penalty(m) - score).sum().backward()
        self.moved_by.step()
        with torch.no_grad():
            self.nodes.clamp_(0, 1)
        self.done += 1


class Traded(Forming):
    """The method of 2017, its preserve version: lambda 1 |m|_1 + lambda 2 TV(m) - Phi, one mask a picture and no area."""

    sparse, even = SPARSE, EVEN

    def penalty(self, m: Tensor) -> Tensor:
        n = m[0].numel() / 100  # in hundredths of the picture
        sign = 1 if self.p.game != "delete" else -1
        size = m if sign > 0 else 1 - m
        return self.sparse * size.flatten(1).sum(1) / n + self.even * method.variation(m)


def rate(steps: int) -> float:
    """The rate of SGD: RATE at 100 steps and the paper's 0.01 at 800, on a power law between and beyond."""
    return RATE * (100 / steps) ** (np.log(RATE / 0.01) / np.log(8))


class Masked(Explanation):
    """Masks by gradient steps, all seeds side by side. `members` are the forming masks, alive while they form."""

    kind, made, use = "smooth", Forming, "shifts"

    def __init__(self, p, seeds, before):
        super().__init__(p, seeds, before)
        self.total = p.mask_steps
        self.rngs = [stream(s.seed, self.use) for s in self.subjects]
        self.members = [self.start(s) for s in self.subjects]

    def start(self, s: Subject) -> Forming:
        return self.made(s.net, s.x[: self.pictures], s.y[: self.pictures], self.p, self.kind)

    @property
    def calls(self):
        return self.p.mask_steps * self.members[0].count * (2 if self.p.game == "dual" else 1)

    def set(self, member: int | None = None, **changes) -> dict[str, tuple]:
        """Change a knob marked live for all members. ValueError for anything else."""
        live = {f.name for f in fields(self.p) if f.metadata["knob"]["live"]}
        if member is not None or not set(changes) <= live:
            raise ValueError(f"{', '.join(changes)} cannot be set here, only for all members: {', '.join(sorted(live))}")
        answer = {name: (getattr(self.p, name), value) for name, value in changes.items()}
        self.p = replace(self.p, **changes)
        for one in self.members:
            one.p = self.p
        return answer

    def stepwise(self):
        every = max(1, self.total // 10)
        while self.step < self.total:
            began = time.perf_counter()
            for one, rng in zip(self.members, self.rngs, strict=True):
                one(rng)
            self.step += 1
            self.seconds += time.perf_counter() - began
            if self.step == self.total:
                self.maps = [one.masks() for one in self.members]
                yield Tick(self.step, [self.progress(i) | self.measured(i) for i in range(len(self.members))])
            else:
                yield Tick(self.step, [self.progress(i) for i in range(len(self.members))]) if self.step % every == 0 else None

    def progress(self, i: int) -> dict[str, float]:
        one = self.members[i]
        return {"area_error": float((one.masks().mean((2, 3)).flatten() - one.area).abs().mean())}


class Extremal(Masked):
    """The method; it also reports the extremal area, where one of the areas was enough."""

    name, after = "extremal", "second"

    def measured(self, i):
        s, found = self.subjects[i], super().measured(i)
        kept = s.answer(hard(self.maps[i], self.areas, s.seed))
        full = s.answer(torch.ones_like(self.maps[i][:, :1]))[:, 0]
        smallest = method.extremal_area(kept, full, self.areas, SHARE)
        enough = smallest.isfinite()
        found["enough"] = float(enough.float().mean())
        return found | ({"extremal_area": float(smallest[enough].mean())} if enough.any() else {})


class FreeMask(Masked):
    """The ablation: the same loss, a parameter a pixel."""

    name, kind = "free_mask", "free"


class TradeOff(Masked):
    """The trade-off method of 2017."""

    name, kind, made = "meaningful_perturbation", "coarse", Traded

    def progress(self, i):
        return {"mask_area": float(self.members[i].masks().mean())}


class Compared(Masked):
    """Masks on the first pictures that are compared with those of the method."""

    pictures = REPEATED

    def measured(self, i):
        a, b = self.maps[i].sum(1), self.before.maps[i][: self.pictures].sum(1)
        return {"mask_similarity": float(similarity(a, b).mean())}


class Repeat(Compared):
    """The method once more with other shifts."""

    name, use = "repeat_run", "other shifts"


class Randomised(Compared):
    """The method on the network with its last two layers drawn anew; for the first seed also with one, three and four."""

    name, use, layers = "randomised_net", "other shifts", 2
    shown = 3  # pictures that are drawn with every number of layers

    def start(self, s):
        net = method.frozen(method.redrawn(s.trained, self.layers, s.x, stream(s.seed, "weights")))
        return Forming(net, s.x[: self.pictures], s.y[: self.pictures], self.p)

    def stepwise(self):
        s, more = self.subjects[0], {}
        for depth in (1, 3, 4):
            net = method.frozen(method.redrawn(s.trained, depth, s.x, stream(s.seed, "weights")))
            more[depth] = Forming(net, s.x[: self.shown], s.y[: self.shown], self.p), stream(s.seed, self.use)
        for tick in super().stepwise():
            for one, rng in more.values():
                one(rng)
            yield tick
        self.series = {0: self.before.maps[0], self.layers: self.maps[0]} | {d: one.masks() for d, (one, _) in more.items()}
        self.series = {d: self.series[d][: self.shown].sum(1) for d in sorted(self.series)}

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

# ---- channels


class Channels(Explanation):
    """Masks over the channels of an inner layer: the same area loss, scaling as perturbation; kept channels are inverted."""

    name = "channels"

    def __init__(self, p, seeds, before):
        super().__init__(p, seeds, before)
        self.cuts = {"last": [6], "both": [4, 6]}[p.layers]  # layers of the frozen network before the cut
        self.total = p.mask_steps * len(self.cuts)
        self.share: list[dict[int, Tensor]] = [{} for _ in self.subjects]

    def stepwise(self):
        found: list[dict[str, float]] = [{} for _ in self.subjects]
        for cut in self.cuts:
            for i, s in enumerate(self.subjects):
                began = time.perf_counter()
                self.share[i][cut] = m = channel_masks(s, cut, self.p)
                found[i] |= self.judged(s, cut, m)
                self.seconds += time.perf_counter() - began
                yield None
            self.step += self.p.mask_steps
        yield Tick(self.step, found)

    def judged(self, s: Subject, cut: int, m: Tensor) -> dict[str, float]:
        """Probability with the kept channels alone, and with as many channels at random."""
        count = max(1, round(CHANNELS * m.shape[1]))
        luck = torch.rand(m.shape, generator=stream(s.seed, "channels")).to(m)
        found = {}
        with torch.no_grad():
            inner = s.net[:cut](s.x)
            for name, order in (("channel_probability", m), ("random_channel_probability", luck)):
                top = torch.zeros_like(m).scatter_(1, order.topk(count, dim=1).indices, 1.0)
                p = s.net[cut:](inner * top[:, :, None, None]).softmax(1)
                found[f"{name}_{cut}" if cut != self.cuts[-1] else name] = float(p.gather(1, s.y[:, None]).mean())
        return found


def channel_masks(s: Subject, cut: int, p) -> Tensor:
    """m [n, K] over the channels behind layer `cut`, keeping CHANNELS of them; a channel is pulled as hard as a pixel is."""
    with torch.no_grad():
        inner = s.net[:cut](s.x)
    m = torch.ones(inner.shape[:2], device=inner.device, requires_grad=True)
    weight = p.area_weight * m.shape[1] / s.x[0, 0].numel()
    area = torch.full((len(m),), CHANNELS, device=m.device)
    sgd = torch.optim.SGD([m], lr=rate(p.mask_steps), momentum=0.9, dampening=0.9)
    for k in range(p.mask_steps):
        with torch.enable_grad():
            score = method.reward(s.net[cut:](inner * m[:, :, None, None]), s.y, p.reward)
            sgd.zero_grad()
            (weight * GROWTH ** (100 / p.mask_steps * k) * method.area_loss(m, area) - score).sum().backward()
        sgd.step()
        with torch.no_grad():
            m.clamp_(0, 1)
    return m.detach()


EXPLANATIONS = {one.name: one for one in (Gradient, GradCam, Rise, Occlusion, TradeOff, FreeMask, Extremal, Randomised, Repeat,
                                          Channels)}  # fmt: skip
