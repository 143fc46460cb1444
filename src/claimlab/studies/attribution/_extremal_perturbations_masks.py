"""Arms of the study extremal-perturbations whose masks form step by step: the method, its ablations, the trade-off, channels.

`p` are the study's Params.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from claimlab.studies.attribution import _extremal_perturbations_method as method
from claimlab.studies.attribution._extremal_perturbations_arms import (
    Explanation,
    GradCam,
    Gradient,
    Occlusion,
    Rise,
    Subject,
    hard,
    similarity,
    stream,
    strongest,
)
from claimlab.training import Tick

RATE, GROWTH = 0.3, 1.03  # of the parameters; of the area's weight in a step; both for 100 steps
ADAM, SPARSE, EVEN, CELL = 0.1, 20.0, 0.03, 4  # the trade-off method: rate, lambda 1, lambda 2, pixels of a cell (of 32)
SHARE = 0.9  # phi_0: a region is enough where it keeps this share of the logit
REPEATED = 10  # pictures on which masks are compared with each other
CHANNELS = 0.25  # share of the channels that is kept

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
    """The method of 2017, its preserve version: lambda 1 |m|_1 + lambda 2 TV(m) - Phi, one mask a picture and no area (|m|_1 as a
    mean over pixels, TV as a sum)."""

    sparse, even = SPARSE, EVEN

    def penalty(self, m: Tensor) -> Tensor:
        return self.sparse * m.flatten(1).mean(1) + self.even * method.variation(m)


def rate(steps: int) -> float:
    """The rate of SGD: the same way in all, however many steps there are."""
    return RATE * 100 / steps


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
