"""What the study osa-das explains: a network, asked for logits and features, and the images on which it is explained."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.parts.attribution import fast
from claimlab.studies.attribution import _osa_das_method as method


class Asked:
    """A network in evaluation mode that answers images [B, C, H, W] with logits [B, classes] and penultimate features [B, d]:
    what enters its last linear layer."""

    def __init__(self, net: nn.Module):
        self.net = net.eval()
        last = [m for m in net.modules() if isinstance(m, nn.Linear)]
        if isinstance(net, nn.Sequential) and last and net[-1] is last[-1]:
            self.body, self.head = fast(net[:-1]), net[-1]
        else:
            self.body, self.head = None, last[-1] if last else None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            if self.body:
                features = self.body(x)
                return self.head(features), features
            kept: list[Tensor] = []
            hook = self.head.register_forward_pre_hook(lambda _, given: kept.append(given[0])) if self.head else None
            out = [self.net(part) for part in x.split(64)]
            if hook:
                hook.remove()
            return torch.cat(out), torch.cat(kept if kept and kept[0].dim() == 2 else out)

    def logits(self, x: Tensor) -> Tensor:
        return self(x)[0]


@dataclass(eq=False)
class Subject:
    """One network and the images [n, C, H, W] on which it is explained, each for the class y that it predicts."""

    seed: int
    net: nn.Module
    x: Tensor
    y: Tensor
    box: Tensor | None = None
    bare: Tensor | None = None  # the same images without marker
    asked: Asked = field(init=False)

    def __post_init__(self):
        self.asked = Asked(self.net)
        self.middle = self.x.mean((2, 3), keepdim=True).expand_as(self.x)  # the ground of all tests, whatever p.fill is

    def hidden_by(self, p, x: Tensor) -> Tensor:
        """What a hidden pixel of x [B, C, H, W] becomes in all arms that hide: p.fill."""
        rng = torch.Generator().manual_seed(zlib.crc32(f"noise {self.seed}".encode()))
        return method.fill(x, p.fill, torch.rand(1, 1, *x.shape[2:], generator=rng).to(x) if p.fill == "noise" else None)


def choose(net: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """The first `count` images that are classified correctly; where they are too few, then others."""
    right = (Asked(net).logits(x).argmax(1) == y).to(torch.int8)
    return right.argsort(descending=True, stable=True)[:count]


def subject(seed: int, net: nn.Module, x: Tensor, rows: Tensor, box=None, bare=None) -> Subject:
    """The images `rows` of x, for the classes that the network predicts."""
    x = x[rows]
    bare = None if bare is None else bare.to(x.device)[rows]
    return Subject(seed, net, x, Asked(net).logits(x).argmax(1), None if box is None else box.to(x.device)[rows], bare)


def subjects(run, p) -> list[Subject]:
    """The networks of all seeds, each with the correctly classified test images on which it is explained."""
    found = []
    for seed, net, task in zip(run.seeds, run.members, run.tasks, strict=True):
        x, y = task.test
        found.append(subject(seed, net, x, choose(net, x, y, p.images), task.box))
    return found


def stream(seed: int, use: str) -> np.random.Generator:
    """The generator for one use at one seed: the same in every arm."""
    return np.random.default_rng([seed, zlib.crc32(use.encode())])
