"""OSA-DAS: hide a part of an image, look how far a bundle of augmented features turns. Is that a better map than one score's drop?"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import predicted
from claimlab.parts.schedules import one_cycle
from claimlab.studies.attribution import _osa_das_figures as drawn
from claimlab.studies.attribution._osa_das_arms import EXPLANATIONS, Explanation, maps_of
from claimlab.studies.attribution._osa_das_data import MARK, load, own_images, own_network
from claimlab.studies.attribution._osa_das_data import network as build
from claimlab.studies.attribution._osa_das_method import augment, draw_views, ordered
from claimlab.studies.attribution._osa_das_method import heat as heat  # shown in the notebook
from claimlab.studies.attribution._osa_das_method import orthogonal_degree as orthogonal_degree
from claimlab.studies.attribution._osa_das_method import subspace as subspace
from claimlab.studies.attribution._osa_das_misled import Misled
from claimlab.studies.attribution._osa_das_subject import choose, subject
from claimlab.study import Control, Paper
from claimlab.training import Supervised

PAPER = Paper(
    title="Occlusion Sensitivity Analysis with Augmentation Subspace Perturbation in Deep Feature Space",
    authors="Pedro H. V. Valois, Koichiro Niinuma, Kazuhiro Fukui", year=2023,
    url="https://arxiv.org/abs/2311.15022", theme="sensitivity", system="OSA-DAS",
    question="Is the change of a whole bundle of augmented features under occlusion a better map of what a network looks at than "
    "the drop of one class score?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    views: int = knob(12, "augmented copies that span the subspace", low=2, high=128)
    dimension: int = knob(3, "m, subspace dimension, cut at the rank of the views; 1 is nearly a cosine distance", low=1, high=10)
    window: int = knob(10, "side of the occluding patch; it moves in strides of half a side", low=3, high=20, unit="pixels")
    strength: float = knob(1.0, "multiplier of all augmentations; 0 makes every view the same", low=0.0, high=3.0)
    feature: str = knob("logits", "which vector spans the subspace", choices=("logits", "probabilities", "penultimate"))
    fill: str = knob("mean", "what the patch is replaced by", choices=("mean", "zero", "blur", "noise"))
    cue: str = knob("digit", "what decides the label: the digit, or a corner marker while the digit is drawn at random",
                    choices=("digit", "marker"))  # fmt: skip
    masks: str = knob("window", "occluders: a sliding window, or as many soft random grids", choices=("window", "grid"))
    share: float = knob(1.0, "share of the occluders that is evaluated, those over the largest input gradient", low=0.05, high=1.0)
    flip: bool = knob(False, "mirror every other view, where that leaves the class alone (digits do not)")
    network: str = knob("cnn", "three convolutions, or a small vision transformer", choices=("cnn", "vit"))
    images: int = knob(80, "test images that are explained: the first that are classified correctly", low=2, high=300)
    sweep: bool = knob(False, "score the subspace maps at five dimensions as well")
    steps: int = knob(500, "optimiser steps of the explained network", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(images=4, window=20, views=4, steps=30, seeds=2)
    FULL = dict(images=120, window=8, views=32, sweep=True, seeds=10)
    CONTROL = Control(
        set=dict(cue="marker"), vanishes=("better-localisation",),
        why="If the corner marker alone decides the label and the digit is drawn at random, an honest map has no reason to light "
        "up the digit's box. A gain in mass on the digit that remains shows a map of edges and contrast, not of what the network "
        "looks at. The other claims score maps by the network's own output and need not vanish.",
    )  # fmt: skip


CLAIMS = (
    Claim("better-localisation", "The subspace map puts more of its positive mass on the object that decides the label than "
          "classical occlusion sensitivity.", kind="paired", metric="mass_on_object", arm="osa_das", baseline="osa",
          better="higher", margin=0.02, source="abstract; comparison with interpreters"),
    Claim("smaller-sufficient-region", "A smaller share of the top-ranked pixels suffices to keep the predicted class (minimal "
          "size).", kind="paired", metric="minimal_size", arm="osa_das", baseline="osa", better="lower", margin=0.01,
          source="metric section; main table"),
    Claim("beats-gradcam", "Its deletion/insertion overall score (insertion AUC minus deletion AUC) exceeds Grad-CAM's.",
          kind="paired", metric="overall_score", arm="osa_das", baseline="gradcam", better="higher", margin=0.01,
          source="abstract (commonly used interpreters)"),
    Claim("augmentation-needed", "Subspaces from augmented views explain better than a single feature vector (cosine distance) "
          "under the same masks.", kind="paired", metric="overall_score", arm="osa_das", baseline="single_vector",
          better="higher", margin=0.005, source="method; ablation of the key ingredient"),
    Claim("beats-averaged-drop", "At the same number of forward passes the subspaces explain better than the class-probability "
          "drop averaged over the same augmented views.", kind="paired", metric="overall_score", arm="osa_das",
          baseline="osa_averaged", better="higher", margin=0.005,
          source="not in the paper; the equal-compute rival of the headline claim"),
)  # fmt: skip

HONESTY = (
    "Grey 40x40 composites and a three-layer net replace ImageNet and ResNet, ViT and Swin; with ten logits the output space is "
    "small and subspaces of dimension 3 are already a third of it. Insertion and deletion leave the data manifold. The "
    "class-agnostic map cannot separate two classes in one picture, which the paper's metrics do not probe."
)

# ---- the networks that are explained


def _own() -> str:
    return os.environ.get("CLAIMLAB_DATA", "")


class Network(Supervised):
    """The classifier, trained once a seed on augmented images; every other arm explains it."""

    lr = 3e-2
    weight_decay = 0.0
    vectorize = False  # convolutions of this size are no faster stacked

    @property
    def cue(self) -> str:
        return self.p.cue

    @property
    def steps(self) -> int:
        return 0 if self.given else self.p.steps

    @property
    def every(self) -> int:
        return max(1, self.steps // 10)

    @property
    def given(self) -> dict[str, Tensor] | None:
        """Weights of one's own network, which is explained as it is."""
        if not (folder := _own()):
            return None
        x, _, _, names = own_images(folder)
        return own_network(folder, self.p.network, x.shape[1], len(names), tuple(x.shape[-2:]))

    def bind(self, seed):
        bound = type(self)(self.p)
        d = load(seed, self.cue, _own())
        bound.x, bound.y, bound.test, bound.box, bound.bare, bound.says = d.x, d.y, (d.test_x, d.test_y), d.box, d.bare, d.says
        return bound

    def init(self):
        net = build(self.p.network, self.x.shape[1], int(max(self.y.max(), self.test[1].max())) + 1, tuple(self.x.shape[-2:]))
        if self.given:
            net.load_state_dict(self.given)
            if not (predicted(net.eval(), self.test[0]) == self.test[1]).any():
                raise ValueError("network.pt names the class of no picture: is the order of its classes that of the folders' names?")
        return net.to(memory_format=torch.channels_last)

    def block(self, net, rng, step, n):
        x, y = super().block(net, rng, step, n)
        return augment(x.flatten(0, 1), draw_views(y.numel(), 1.0, tuple(x.shape[-2:]), rng, self.p.flip)).view_as(x), y

    schedule = staticmethod(one_cycle)

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy": (predicted(net, x) == y).float().mean()}


class Marked(Network):
    """The same where a corner marker agrees with nine digits of ten: a short cut that a network may take."""

    cue = "both"

    @property
    def steps(self) -> int:
        return max(2, self.p.steps // 2)

    def final(self, net):
        return {"accuracy_without_marker": (predicted(net, self.bare) == self.test[1]).float().mean()}


def misled(params: Params, seeds: list[int]) -> Misled:
    """The arm of the networks that met the marker."""
    return Misled(Marked(params), params, seeds)


misled.when = lambda params: not _own()

ARMS = {"network": Network, **EXPLANATIONS, "misled": misled}


# ---- a network and images of one's own


def explain(net: nn.Module, x: np.ndarray, y: np.ndarray, p: Params, box: np.ndarray | None = None) -> dict[str, Explanation]:
    """All arms on any network `net` from images [N, C, H, W] in [0, 1] to logits [N, classes], as one of torchvision's is.

    Explains the first p.images images of class y [N] that it gets right; `box` [N, H, W] marks their objects. Grad-CAM needs an
    nn.AdaptiveAvgPool2d. Returns the finished arms, each with `maps` and `results`. ValueError says what does not fit.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 4 or x.dtype.kind != "f" or not np.isfinite(x).all() or x.min() < 0 or x.max() > 1 or min(x.shape[2:]) < 32:
        raise ValueError(f"x is {x.dtype} of shape {x.shape}: allowed are numbers in [0, 1] of shape N x C x H x W, sides from 32")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y) or y.min() < 0:
        raise ValueError(f"y is {y.dtype} of shape {y.shape}: allowed is a whole number from 0 for each of {len(x)} images")
    if box is not None and (np.shape(box) != (len(x), *x.shape[2:]) or not np.asarray(box, bool).any((1, 2)).all()):
        raise ValueError(f"box has the shape {np.shape(box)}: allowed is {(len(x), *x.shape[2:])}, with an object in each image")
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y.astype(np.int64))
    with torch.no_grad():
        classes = net.eval()(x[:1]).shape[1]
    if classes <= y.max():
        raise ValueError(f"the network tells {classes} classes apart, the labels go to {int(y.max())}: the map of labels does not fit")
    if not (predicted(net, x) == y).any():
        raise ValueError("the network names the class of no image: is the order of the classes the one it was trained with?")
    marks = None if box is None else torch.as_tensor(np.asarray(box, bool))
    found, arms = [subject(0, net, x, choose(net, x, y, p.images), marks)], {}
    for name, make in EXPLANATIONS.items():
        arms[name] = make(p, [0], arms.get(make.after) or SimpleNamespace(subjects=found))
        arms[name].results = [tick.metrics[0] for tick in arms[name].ticks()][-1]
    return arms


# ---- figures


def _gallery(net: nn.Module, x: Tensor, y: Tensor, box: Tensor | None, params: Params, right: int) -> dict:
    """Images of one network, the first `right` ones that it knows and one that it does not, with their maps."""
    said = predicted(net, x)
    wrong = (said != y).nonzero().flatten()[:1]
    rows = torch.cat([(said == y).nonzero().flatten()[:right], wrong]) if right < len(x) else torch.arange(len(x))
    found = subject(0, net, x, rows, box)
    arms = maps_of([found], params)
    notes = [f"right: {a}" if a == b else f"wrong: {a},<br>is {b}" for a, b in zip(said[rows].tolist(), y[rows].tolist(), strict=True)]
    return {"x": found.x, "box": found.box, "notes": notes, "maps": {name: arm.maps[0] for name, arm in arms.items()}}


def _marker(shown: dict, other: Misled) -> dict:
    """The gallery with the first image of a misled network added."""
    s = other.subjects[0]
    box = s.box[:1].clone()
    box[:, :MARK, :MARK] = True
    maps = {name: torch.cat([shown["maps"][name], arm.maps[0][:1]]) for name, arm in other.arms.items()}
    notes = [*shown["notes"], "marker"]
    return {"x": torch.cat([shown["x"], s.x[:1]]), "box": torch.cat([shown["box"], box]), "notes": notes, "maps": maps}


def figures(lab) -> dict[str, go.Figure]:
    """The figures of a finished experiment; pictures and angles are those of its first seed."""
    p, arms = lab.params, {name: arm for name, arm in lab.arms.items() if name in EXPLANATIONS}
    net, task = lab.arms["network"].members[0], lab.arms["network"].tasks[0]
    shown = _gallery(net, *task.test, task.box, replace(p, images=3), 2)
    if "misled" in lab.arms and lab.arms["misled"].arms:
        shown = _marker(shown, lab.arms["misled"])
    pairs = {name: [[c.mean(0).cpu().numpy() for c in pair] for pair in arm.curves] for name, arm in arms.items()}
    found = {"maps": drawn.gallery(**shown), "curves": drawn.removal(pairs, lab.seeds), "budget": drawn.sizes(lab.table)}
    if "osa_das" in arms:
        found["angles"] = drawn.walk(*_walk(arms["osa_das"], 0), p.dimension)
    return found


def _walk(arm: Explanation, image: int) -> tuple[np.ndarray, ...]:
    """Of one image of an arm's first seed: the image under every occluder [K, H, W], its features whole [N, d] and
    occluded [K, N, d], and the orthogonal degrees [K]."""
    s, found = arm.subjects[0], arm.found[0]
    hidden = found.hidden[found.chosen[image]][:, None]
    x = s.x[image : image + 1]
    pictures = torch.lerp(x, s.hidden_by(arm.p, x), hidden).mean(1)
    bundle, degree = found.features[image], arm.scores(0, arm.p.views)[image]
    return tuple(t.cpu().numpy() for t in (pictures, bundle[0], bundle[1:], degree))


def _light(params: Params) -> Params:
    """The same with few views, for pictures that are drawn while a run goes on."""
    return replace(params, views=min(params.views, 4), sweep=False, images=2)


def _pictures(net: nn.Module, params: Params) -> tuple[Tensor, Tensor, Tensor | None]:
    """Test images of seed 0, whichever seed the network has."""
    d, device = load(0, params.cue, _own()), next(net.parameters()).device
    return d.test_x[:40].to(device), d.test_y[:40].to(device), None if d.box is None else d.box[:40].to(device)


def view_maps(net: nn.Module, params: Params) -> go.Figure:
    """Three images that the network knows and one that it does not, with the map of every arm (at most four views)."""
    x, y, box = _pictures(net, params)
    return drawn.gallery(**_gallery(net, x, y, box, _light(params), 3))


def view_walk(net: nn.Module, params: Params) -> go.Figure:
    """The occluder's walk over one image, and what it does to the bundle of features."""
    x, y, box = _pictures(net, params)
    arm = EXPLANATIONS["osa_das"](params, [0], SimpleNamespace(subjects=[subject(0, net, x, choose(net, x, y, 1), box)]))
    work = arm.prepare(arm.subjects[0])
    while not arm.found:
        try:
            next(work)
        except StopIteration as done:
            arm.found.append(done.value)
    return drawn.walk(*_walk(arm, 0), params.dimension)


def view_kept(net: nn.Module, params: Params) -> go.Figure:
    """What is left of two images when only the pixels of the minimal size are kept, by three maps (at most four views)."""
    x, y, box = _pictures(net, params)
    s = subject(0, net, x, choose(net, x, y, 2), box)
    arms = maps_of([s], _light(params))
    found = {name: drawn.kept(s, ordered(arms[name].maps[0], 0)) for name in ("osa", "gradcam", "osa_das")}
    return drawn.remains(s.x, found)


VIEWS = {
    "maps of all methods": view_maps,
    "the occluder's walk": view_walk,
    "what must be kept": view_kept,
}
