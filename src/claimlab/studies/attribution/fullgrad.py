"""FullGrad: explain an output by the gradient of every input and of every bias. Does the picture of what matters get truer?"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass, fields, replace

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import (
    predicted,
    ranks,
    remove,
)
from claimlab.studies.attribution import _fullgrad_figures as drawn
from claimlab.studies.attribution import _fullgrad_method as method
from claimlab.studies.attribution._fullgrad_data import Data, build, load, own_images, own_network, plan
from claimlab.studies.attribution._fullgrad_method import RIVALS, TERMS, saliency, shares
from claimlab.studies.attribution._fullgrad_method import full_gradient as full_gradient  # shown in the notebook
from claimlab.studies.attribution._fullgrad_method import picture as picture
from claimlab.studies.attribution._fullgrad_method import psi as psi
from claimlab.study import Control, Paper
from claimlab.training import Run, Stepwise, Supervised, Tick

PAPER = Paper(
    title="Full-Gradient Representation for Neural Network Visualization", authors="Srinivas, Fleuret", year=2019,
    url="https://arxiv.org/abs/1905.00780", theme="sensitivity", system="FullGrad",
    question="An output is explained exactly by input gradients plus bias gradients: does adding the biases make the picture "
    "of what matters more truthful?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    fraction: float = knob(0.3, "how much is blacked out", low=0.05, high=0.9, unit="share of pixels", live=True)
    order: str = knob("least", "remove the least or the most important pixels", choices=("least", "most"), live=True)
    post: str = knob("abs_rescale_layer", "psi: rescaled by layer (the authors' code) or by channel (the formula); with none "
                     "the maps keep sign and sum to f", live=True,
                     choices=("abs_rescale_layer", "abs_rescale_channel", "abs", "relu", "none"))  # fmt: skip
    layers: str = knob("all", "which layers' biases are painted", choices=("all", "first_half", "last_half"), live=True)
    clutter: float = knob(0.35, "background contrast", low=0.0, high=1.0)
    fill: str = knob("black", "what replaces a pixel (retraining always takes the mean)", choices=("black", "mean", "blur"),
                     live=True)  # fmt: skip
    shuffle_bias: bool = knob(False, "permute the positions of every bias-gradient map before the maps are added: biases "
                              "without place", live=True)  # fmt: skip
    network: str = knob("plain", "convolutions in a row, or with residual blocks", choices=("plain", "residual"))
    width: int = knob(8, "channels of the first convolution", low=4, high=64)
    images: int = knob(200, "test images that are explained", low=4, high=497)
    retrain: str = knob("four", "remove and retrain: four arms at one share, or all ten at 10, 20, ..., 90 %",
                        choices=("four", "all"))  # fmt: skip
    retrain_images: int = knob(600, "training images of each retrained network", low=16, high=1300)
    retrain_steps: int = knob(150, "optimiser steps of each retrained network", low=2, high=2000)
    steps: int = knob(250, "optimiser steps of the explained network", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=10, images=8, retrain_images=16, retrain_steps=2, seeds=2)
    FULL = dict(seeds=10, network="residual", width=16, retrain="all")
    CONTROL = Control(
        set=dict(shuffle_bias=True), vanishes=("least-salient-harmless", "beats-gradcam", "roar", "tight"),
        why="Every bias-gradient map keeps its values and its sum, so completeness still holds, but loses its places. If the "
        "picture is no worse, the biases did not make it better: what is left is gradient times input.",
    )  # fmt: skip


CLAIMS = (
    Claim("completeness", "Input part plus bias part sum to the network's output (relative error below 1e-4) for ReLU networks "
          "with batch norm in evaluation mode.", kind="equality", metric="completeness_error", arm="fullgrad",
          margin=0.0001, better="lower", source="proposition on full-gradient decomposition"),
    Claim("least-salient-harmless", "Blacking out the pixels FullGrad calls least important changes the output less than "
          "blacking out those input-gradient calls least important (mean over 10-50 %).", kind="paired",
          metric="output_change_least", arm="fullgrad", baseline="input_gradient", margin=0.02, better="lower",
          source="pixel-perturbation figure"),
    Claim("beats-gradcam", "It also does better than Grad-CAM in the same test.", kind="paired", metric="output_change_least",
          arm="fullgrad", baseline="gradcam", margin=0.01, better="lower", source="pixel-perturbation figure"),
    Claim("roar", "Networks retrained on images without the pixels FullGrad calls most important lose more accuracy than with "
          "integrated gradients.", kind="paired", metric="roar_accuracy", arm="fullgrad", baseline="integrated_gradients",
          margin=0.01, better="lower", source="remove-and-retrain figure"),
    Claim("tight", "More of its most salient pixels lie on the object than of those of input-gradient.", kind="paired",
          metric="top_on_object", arm="fullgrad", baseline="input_gradient", margin=0.05, better="higher",
          source="abstract (confined to object regions)"),
)  # fmt: skip

HONESTY = (
    "Digits on textures replace ImageNet and CIFAR-100; sharpness to the eye is replaced by the share of top pixels on a known "
    "object mask. FullGrad's psi breaks completeness: only the pair is complete, the picture is an approximation, as the "
    "paper says."
)

# ---- the arms: one network a seed, ten ways to explain it

RETRAINED = ("fullgrad", "integrated_gradients", "gradcam", "random")


class Network(Supervised):
    """The network that is explained, and the way every retrained one is trained."""

    lr = 3e-3
    weight_decay = 1e-2
    vectorize = False  # convolutions of this size: the plain loop takes 8.8 ms a step and member, vmap 17 ms (one core)

    @property
    def steps(self) -> int:
        return 0 if self.given else self.p.steps

    @property
    def every(self) -> int:
        return max(1, self.steps // 10)

    @property
    def given(self):
        """Layers and weights of one's own network, which is explained as it is; else None."""
        folder = os.environ.get("CLAIMLAB_DATA", "")
        if not folder:
            return None
        names = own_images(folder)[3]
        return own_network(folder, 3, len(names))

    def bind(self, seed):
        bound = type(self)(self.p)
        d = load(seed, self.p.clutter, os.environ.get("CLAIMLAB_DATA", ""))
        bound.x, bound.y, bound.test, bound.mask = d.x, d.y, (d.test_x, d.test_y), d.test_mask
        bound.classes = int(max(d.y.max(), d.test_y.max())) + 1
        return bound

    def init(self):
        if self.given:
            net = build(self.given[0])
            net.load_state_dict(self.given[1])
            return net
        return build(plan(self.p.network, self.x.shape[1], self.classes, self.p.width))

    def schedule(self, step, steps):
        return min(1.0, 2 * (1 - step / steps))  # the rate falls to zero over the second half

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy": (predicted(net, x) == y).float().mean()}


class Retrained(Network):
    """A new network on altered images: `altered` holds (train x, y, test x, y) for each of the run's seeds."""

    given = None

    def __init__(self, p, altered):
        super().__init__(p)
        self.altered = altered

    def bind(self, seed):
        bound = type(self)(self.p, self.altered)
        bound.x, bound.y, *test = self.altered[seed]
        bound.test, bound.classes = tuple(test), int(bound.y.max()) + 1
        return bound

    @property
    def steps(self):
        return self.p.retrain_steps

    @property
    def every(self):
        return self.steps


class Explanation(Stepwise):
    """One way to explain the networks of all seeds: a tick for each share of pixels removed, a last one after retraining."""

    def __init__(self, name: str, p: Params, seeds: list[int], network: Run):
        self.name, self.seeds, self.p = name, seeds, network.task.p  # with what was set while the network trained
        self.nets, self.tasks = [net.eval() for net in network.members], network.tasks
        self.images = [t.test[0][: p.images] for t in self.tasks]
        self.total, self.step = len(shares(p.fraction)) + 1 + len(self.retrained) * p.retrain_steps, 0
        self.maps: list[Tensor] | None = None
        self.curves = {order: [[] for _ in seeds] for order in ("least", "most")}
        self.seconds = 0.0

    @property
    def retrained(self) -> list[float]:
        """The shares of pixels without which new networks are trained."""
        if self.p.retrain == "all":
            return sorted({*np.round(np.arange(0.1, 0.95, 0.1), 2).tolist(), self.p.fraction})
        return [self.p.fraction] if self.name in RETRAINED else []

    @property
    def budget(self) -> dict[str, float]:
        """Steps, samples and forward calls of the retrained networks of a member; seconds of everything, all members."""
        steps = len(self.retrained) * self.p.retrain_steps
        return {"steps": steps, "samples": steps * Network.batch_size, "forward_calls": steps, "seconds": self.seconds}

    def set(self, member: int | None = None, **changes) -> dict[str, tuple]:
        """Change a knob marked live; the maps are drawn anew. ValueError for anything else."""
        live = {f.name for f in fields(Params) if f.metadata["knob"]["live"]}
        if member is not None or not set(changes) <= live:
            raise ValueError(f"{', '.join(changes)} cannot be set here, only for all members: {', '.join(sorted(live))}")
        answer = {name: (getattr(self.p, name), value) for name, value in changes.items()}
        self.p, self.maps = replace(self.p, **changes), None
        return answer

    def _rng(self, seed: int, use: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.name} {seed} {use}".encode()))

    def stepwise(self):
        for k in range(len(shares(self.p.fraction))):
            began = time.perf_counter()
            if self.maps is None:
                self._draw()
            share = shares(self.p.fraction)[k]
            found = [self._remove(i, share) for i in range(len(self.seeds))]
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield Tick(round(100 * share), found)
        last = [self._summary(i) for i in range(len(self.seeds))]
        for share in self.retrained:
            accuracies = yield from self._retrain(share)
            for metrics, value in zip(last, accuracies, strict=True):
                metrics[f"roar_accuracy_{round(100 * share)}"] = value
                if share == self.p.fraction:
                    metrics["roar_accuracy"] = value
        self.step = self.total
        yield Tick(100, last)

    def _draw(self) -> None:
        self.maps, self.ranks = [], []
        for net, x, seed in zip(self.nets, self.images, self.seeds, strict=True):
            rng = self._rng(seed, "maps")
            self.maps.append(saliency(self.name, net, x, self.p, rng))
            self.ranks.append(ranks(self.maps[-1], rng))

    def _remove(self, i: int, share: float) -> dict[str, float]:
        x = self.images[i]
        filler = method.filling(x, self.p.fill, self.tasks[i].x.mean((0, 2, 3)))
        for order, curves in self.curves.items():
            curves[i].append(method.output_change(self.nets[i], x, remove(x, self.ranks[i], share, order, filler)))
        return {"output_change": self.curves[self.p.order][i][-1]}

    def _summary(self, i: int) -> dict[str, float]:
        found = {f"output_change_{order}": float(np.mean(curves[i])) for order, curves in self.curves.items()}
        mask = self.tasks[i].mask
        if mask is not None:
            top = self.ranks[i] >= 0.9 * self.ranks[i][0].numel()
            found["top_on_object"] = float(mask[: len(top)].to(top.device)[top].float().mean())
        if self.name in TERMS or self.name == "grad_x_input":
            f, total = method.sums(self.name, self.nets[i], self.images[i])
            found["completeness_error"] = float(((f - total).abs() / f.abs()).max())
        return found

    def _retrain(self, share: float):
        """Networks from new, independent initialisations on images without the most salient pixels; their test accuracy."""
        began, altered = time.perf_counter(), {}
        for net, task, seed in zip(self.nets, self.tasks, self.seeds, strict=True):
            rng, mean = self._rng(seed, "retrain maps"), task.x.mean((0, 2, 3))[:, None, None]
            n = self.p.retrain_images
            both = []
            for x, y in ((task.x[:n], task.y[:n]), (task.test[0][:n], task.test[1][:n])):
                rank = ranks(saliency(self.name, net, x, self.p, rng), rng)
                both += [remove(x, rank, share, "most", mean), y]
            altered[zlib.crc32(f"{self.name} {seed} {share}".encode())] = tuple(both)
        run = Run(Retrained(self.p, altered), list(altered))
        for tick in run.stepwise():
            self.step += run.step > 0
            if tick is None:
                yield None
        self.seconds += time.perf_counter() - began
        return [m["test_accuracy"] for m in tick.metrics]


@dataclass(frozen=True)
class Explain:
    """Makes the arm `name` once the network has been trained."""

    name: str
    after = "network"

    def __call__(self, p: Params, seeds: list[int], network: Run) -> Explanation:
        return Explanation(self.name, p, seeds, network)


ARMS = {"network": Network, **{name: Explain(name) for name in (*TERMS, *RIVALS)}}


# ---- figures


def figures(lab) -> dict[str, go.Figure]:
    """The five figures of a finished experiment; maps and parts are those of its first seed."""
    arms = {name: arm for name, arm in lab.arms.items() if name != "network"}
    first, table = next(iter(arms.values())), lab.table
    net, images, mask = first.nets[0], first.images[0], first.tasks[0].mask
    maps = {name: arm.maps[0][:4] for name, arm in arms.items() if arm.maps}
    title = f"{len(maps)} methods, four test images of seed {lab.seeds[0]}" + ("" if mask is None else ", object outlined")
    sums = {name: method.sums(name, net, images) for name in ("fullgrad", "explicit_bias_only")}
    found = {
        "removal": drawn.removal(table, first.p.order),
        "maps": drawn.grid(images[:4], maps, None if mask is None else mask[:4], title),
        "sources": drawn.sources(net, images[:4]),
        "sum_of_parts": drawn.diagonal(sums),
    }
    return found | ({"retraining": drawn.retraining(table)} if any(arm.retrained for arm in arms.values()) else {})


def _examples(params: Params) -> Data:
    return load(0, params.clutter, os.environ.get("CLAIMLAB_DATA", ""))


def view_maps(net: nn.Module, params: Params) -> go.Figure:
    """The maps of all methods for four test images, with the object outlined."""
    d, rng = _examples(params), torch.Generator().manual_seed(0)
    x = d.test_x[:4].to(next(net.parameters()).device)
    maps = {name: saliency(name, net, x, params, rng) for name in (*TERMS, *RIVALS)}
    return drawn.grid(x, maps, None if d.test_mask is None else d.test_mask[:4], "All methods, four test images")


def view_assembly(net: nn.Module, params: Params) -> go.Figure:
    """Input part, each layer's bias maps, and their sum, for one test image."""
    return drawn.assembly(net, _examples(params).test_x[:1].to(next(net.parameters()).device), params)


def view_sources(net: nn.Module, params: Params) -> go.Figure:
    """The logit of four test images as a stack of input part and bias parts."""
    return drawn.sources(net, _examples(params).test_x[:4].to(next(net.parameters()).device))


VIEWS = {"maps of all methods": view_maps, "how the picture is put together": view_assembly, "parts of the logit": view_sources}
