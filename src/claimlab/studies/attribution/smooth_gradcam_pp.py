"""Smooth Grad-CAM++: average three orders of derivatives over noisy copies of the image. Does the heat map find both objects?"""

from __future__ import annotations

import os
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import enlarge, gradcam, predicted
from claimlab.parts.schedules import one_cycle
from claimlab.parts.weights import above_chance
from claimlab.studies.attribution import _smooth_gradcam_pp_figures as drawn
from claimlab.studies.attribution import _smooth_gradcam_pp_method as method
from claimlab.studies.attribution._smooth_gradcam_pp_arms import EXPLANATIONS, generator, precision_recall, stages
from claimlab.studies.attribution._smooth_gradcam_pp_arms import both_found as both_found  # shown in the notebook
from claimlab.studies.attribution._smooth_gradcam_pp_data import CUTS, load, own_images, own_network
from claimlab.studies.attribution._smooth_gradcam_pp_data import network as build
from claimlab.studies.attribution._smooth_gradcam_pp_method import Derivatives as Derivatives  # shown in the notebook
from claimlab.studies.attribution._smooth_gradcam_pp_method import coefficients as coefficients
from claimlab.studies.attribution._smooth_gradcam_pp_method import subset_cam, weights
from claimlab.study import Control, Paper
from claimlab.training import Supervised

PAPER = Paper(
    title="Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional Neural Network Models",
    authors="Daniel Omeiza, Skyler Speakman, Celia Cintas, Komminist Weldermariam", year=2019,
    url="https://arxiv.org/abs/1908.01224", theme="sensitivity", system="Smooth Grad-CAM++",
    question="Two objects of the class are in the picture: which heat map finds both, and does averaging over noisy copies make "
    "it sharper?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    noise: float = knob(0.15, "standard deviation of the noise; 0 gives Grad-CAM++", low=0.0, high=0.6, unit="of input range",
                        live=True)  # fmt: skip
    copies: int = knob(20, "noisy copies that are averaged", low=1, high=100, live=True)
    layer: str = knob("last", "which convolution is explained: the 2nd, 4th or 5th", choices=("first", "middle", "last"))
    threshold: float = knob(0.5, "share of the maximum above which a pixel counts as found", low=0.1, high=0.9, live=True)
    exp_score: bool = knob(True, "derivatives of exp(score) or of the score", live=True)
    instances: int = knob(2, "objects of the class in an image", low=1, high=4)
    side: int = knob(40, "height and width of an image, a multiple of 4", low=40, high=64, unit="pixels")
    train_images: int = knob(2000, "training images, half of them with several objects", low=64, high=5000)
    images: int = knob(120, "test images of each kind: with one object, and with several", low=2, high=300)
    steps: int = knob(400, "optimiser steps of the explained network", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(copies=3, train_images=200, images=3, steps=15, seeds=2)
    FULL = dict(copies=100, instances=3, side=64, steps=2000, seeds=10)
    CONTROL = Control(
        set=dict(noise=0.0), vanishes=("better-than-pp", "sharper"),
        why="Trivial control: without noise the method is Grad-CAM++.",
    )  # fmt: skip

    def __post_init__(self):
        if self.side % 4:
            raise ValueError(f"side = {self.side} is no multiple of 4, and the network halves each side twice")


CLAIMS = (
    Claim("finds-both", "In images with two instances the map, cut at the area of both objects, covers at least half of each "
          "more often than Grad-CAM.", kind="paired", metric="both_found", arm="smooth_gradcam_pp", baseline="gradcam",
          better="higher", margin=0.03, source="abstract (multiple occurrences of objects)"),
    Claim("better-than-pp", "More of the map's energy falls on the objects than with Grad-CAM++ without noise.", kind="paired",
          metric="energy_in_object", arm="smooth_gradcam_pp", baseline="gradcam_pp", better="higher", margin=0.01,
          source="abstract (better localization)"),
    Claim("covers-object", "On single-object images the thresholded map overlaps the object mask more (IoU) than Grad-CAM's.",
          kind="paired", metric="iou", arm="smooth_gradcam_pp", baseline="gradcam", better="higher", margin=0.01,
          source="abstract (entire object in completeness)"),
    Claim("sharper", "The map is visually sharper (total variation of the normalised map a unit of its area above half "
          "maximum).", kind="paired", metric="sharpness", arm="smooth_gradcam_pp", baseline="gradcam_pp", better="higher",
          margin=0.01, source="abstract (visual sharpness)"),
)  # fmt: skip

HONESTY = (
    "The paper shows a few ImageNet pictures and no numbers; every metric here is ours, as are the pasted digits. So the study "
    "judges what the text asserts, on a small network, and says nothing about the look of maps on photographs."
)

# ---- the network that is explained


class Network(Supervised):
    """The classifier, trained once a seed; every other arm explains it."""

    lr = 6e-3
    weight_decay = 0.3
    batch_size = 32
    vectorize = False  # convolutions of this size are no faster stacked

    @property
    def steps(self) -> int:
        return 0 if self.given else self.p.steps

    @property
    def every(self) -> int:
        return max(1, self.steps // 10)

    @property
    def given(self) -> dict[str, torch.Tensor] | None:
        """Weights of one's own network, which is explained as it is."""
        if not (folder := os.environ.get("CLAIMLAB_DATA", "")):
            return None
        x, _, _, names = own_images(folder)
        return own_network(folder, x.shape[1], x.shape[-2:], len(names))

    def bind(self, seed):
        bound, p = type(self)(self.p), self.p
        d = load(seed, p.instances, p.side, p.train_images, p.images, os.environ.get("CLAIMLAB_DATA", ""))
        bound.x, bound.y, bound.test, bound.masks, bound.multi = d.x, d.y, (d.test_x, d.test_y), d.masks, d.multi
        return bound

    def init(self):
        net = build(self.x.shape[1], self.x.shape[-2:], int(max(self.y.max(), self.test[1].max())) + 1)
        if self.given:
            net.load_state_dict(self.given)
            above_chance((predicted(net.eval(), self.test[0]) == self.test[1]).float().mean().item(), self.test[1].numpy())
            return net
        for layer in list(net)[:-1]:  # without batch norm the default scales let the signal fade on its way
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        with torch.no_grad():  # as if the mean grey were taken off the images
            net[0].bias -= (self.x.mean((0, 2, 3))[None, :, None, None] * net[0].weight).sum((1, 2, 3))
        return net.to(memory_format=torch.channels_last)

    schedule = staticmethod(one_cycle)

    def metrics(self, net):
        x, y = self.test
        right = (predicted(net, x) == y).float()
        kinds = {"accuracy_one": ~self.multi, "accuracy_several": self.multi}
        return {"test_accuracy": right.mean()} | {name: right[own].mean() for name, own in kinds.items() if own.any()}


ARMS = {"network": Network, **EXPLANATIONS}


# ---- figures


def figures(lab) -> dict[str, go.Figure]:
    """The figures of a finished experiment; maps and channels are those of its first seed."""
    arms = {name: arm for name, arm in lab.arms.items() if name in EXPLANATIONS}
    s = next(iter(arms.values())).subjects[0]
    last = {name: arm.stages[-1] for name, arm in arms.items()}
    maps = {name: arms[name].draw(s, last[name]) for name in drawn.SHOWN if name in arms}
    curves = {
        name: [precision_recall(arm.draw(one, last[name]), one.masks.any(1)) for one in arm.subjects]
        for name, arm in arms.items() if name != "smoothgrad"
    }  # fmt: skip
    chosen = [i for kind in (False, True) for i in (s.multi == kind).nonzero()[: 1 + kind, 0].tolist()]
    found = {
        "maps": drawn.grid(s, maps, chosen),
        "bars": drawn.bars(lab.table),
        "precision_recall": drawn.precision_recall(curves),
        "channels": drawn.channels(s, chosen[-1], *_channels(s, chosen[-1], lab.params)),
    }
    swept = "both_found" in set(lab.table["metric"]) and len(s.swept) > 0
    return found | ({"sweeps": drawn.sweeps(lab.table, lab.params.noise)} if swept else {})


def _channels(s, i: int, p) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weights w_k [K] of the method for one image, and its maps [H, W] by what counts: the whole layer, or the 4 largest w_k."""
    running, draws = Derivatives(p.exp_score), method.copies(s.x[i : i + 1], p.noise, generator(s.seed, "channels"))
    for _ in range(stages(p)[-1]):
        _, g, score = method.slopes(s.net, next(draws), s.y[i : i + 1], CUTS[p.layer])
        running.add(g, score)
    d, a = running.means(), s.clean[0][i : i + 1]
    w = weights(*d, a)[0]
    some = {"whole layer": None, "4 largest w_k": w.argsort(descending=True)[:4].tolist()}
    return w, {name: enlarge(subset_cam(d, a, keep), s.x.shape[-2:])[0] for name, keep in some.items()}


def view_growth(net: nn.Sequential, params: Params) -> go.Figure:
    """Maps of one test image with several objects, for every method, as noisy copies are added."""
    folder = os.environ.get("CLAIMLAB_DATA", "")
    d = load(0, params.instances, params.side, params.train_images, params.images, folder)
    device, i = next(net.parameters()).device, int(d.multi.float().argmax())
    x, y, size = d.test_x[i : i + 1].to(device), d.test_y[i : i + 1].to(device), d.test_x.shape[-2:]
    clean = method.slopes(net, x, y, CUTS[params.layer])
    running = method.Smoothed(net, y, CUTS[params.layer], clean, params.exp_score)
    grown, seen = {}, stages(params)[-4:]
    for k, noisy in enumerate(method.copies(x, params.noise, generator(0, "view")), start=1):
        running.add(noisy)
        if k in seen:
            grown[k] = {name: enlarge(m, size)[0] for name, m in running.maps().items()}
        if k == seen[-1]:
            break
    still = {"gradcam": gradcam(net, x, y, net[CUTS[params.layer]])[0]}
    still |= {name: enlarge(make(*clean[:2]), size)[0] for name, make in
              (("gradcam_pp", method.gradcam_pp), ("layercam", method.layercam))}  # fmt: skip
    return drawn.growth(x[0], d.masks[i].any(0), still, grown)


VIEWS = {"maps of one image as noisy copies are added": view_growth}
