"""Extremal perturbations: find the smallest smooth region that is enough for a network's answer. Does it point at the object?"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import plotly.graph_objects as go
import torch

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import predicted
from claimlab.parts.schedules import one_cycle
from claimlab.studies.attribution import _extremal_perturbations_figures as drawn
from claimlab.studies.attribution import _extremal_perturbations_method as method
from claimlab.studies.attribution._extremal_perturbations_arms import chosen, hard, similarity, stream
from claimlab.studies.attribution._extremal_perturbations_data import load, own_network, own_pictures
from claimlab.studies.attribution._extremal_perturbations_data import network as build
from claimlab.studies.attribution._extremal_perturbations_masks import CHANNELS, EXPLANATIONS, Forming
from claimlab.studies.attribution._extremal_perturbations_method import area_loss as area_loss  # shown in the notebook
from claimlab.studies.attribution._extremal_perturbations_method import frozen as frozen
from claimlab.studies.attribution._extremal_perturbations_method import smooth_maximum as smooth_maximum
from claimlab.study import Control, Paper
from claimlab.training import Supervised

PAPER = Paper(
    title="Understanding Deep Networks via Extremal Perturbations and Smooth Masks", authors="Fong, Patrick, Vedaldi", year=2019,
    url="https://arxiv.org/abs/1910.08485", theme="sensitivity", system="extremal perturbations",
    question="Which smallest, smooth part of a picture is enough for the network's answer, and does it point at the object?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    area: float = knob(0.1, "share of the picture that may stay sharp", low=0.02, high=0.9, unit="fraction")
    areas: int = knob(3, "areas around it: half, itself, twice (more than three: in smaller turns)", low=1, high=6)
    sigma: float = knob(3.0, "smoothness of the mask; small values find adversarial specks", low=1.0, high=12.0, unit="pixels")
    game: str = knob("preserve", "keep the answer, destroy it, or both", choices=("preserve", "delete", "dual"))
    perturbation: str = knob("blur", "what happens outside the mask", choices=("blur", "fade"))
    reward: str = knob("logit", "the class's logit, or what it has over the best of the others", choices=("logit", "contrastive"))
    area_weight: float = knob(40.0, "start weight of the area loss", low=1.0, high=3000.0, live=True)
    mask_steps: int = knob(100, "optimisation steps of the mask", low=10, high=1500)
    images: int = knob(30, "test pictures that are explained: the first that are classified correctly", low=2, high=200)
    size: int = knob(1, "pictures of 32 or 64 pixels a side", choices=(1, 2), unit="32 pixels")
    layers: str = knob("last", "inner layers whose channels are masked: the last, or the last two", choices=("last", "both"))
    steps: int = knob(350, "optimiser steps of the two networks", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(images=4, areas=2, mask_steps=15, steps=20, seeds=2)
    FULL = dict(images=60, areas=6, mask_steps=200, layers="both", seeds=10)
    CONTROL = Control(
        set=dict(area=0.9), vanishes=("preserves-better", "not-an-artefact"),
        why="A region of nine tenths of the image keeps any answer, wherever it lies.",
    )  # fmt: skip


CLAIMS = (
    Claim("area-is-met", "The mask ends with the requested area: the mean absolute gap is at most 0.03.", kind="bound",
          metric="area_error", arm="extremal", better="lower", margin=0.03, source="area constraint"),
    Claim("points-at-object", "The strongest point of the summed masks falls on the object more often than that of the input "
          "gradient.", kind="paired", metric="pointing_accuracy", arm="extremal", baseline="gradient", better="higher",
          margin=0.05, source="pointing game table"),
    Claim("preserves-better", "At equal area its region keeps a higher class probability than the region of the trade-off method "
          "of 2017.", kind="paired", metric="preserved_probability", arm="extremal", baseline="meaningful_perturbation",
          better="higher", margin=0.03, source="comparison with earlier perturbation work"),
    Claim("not-an-artefact", "The region also works on a second network trained from another start, better than a mask without "
          "the smooth family.", kind="paired", metric="transfer_probability", arm="extremal", baseline="free_mask",
          better="higher", margin=0.05, source="motivation of smooth masks"),
    Claim("follows-the-weights", "Randomising the last layers changes the masks: similarity to the original masks drops below "
          "that of repeated runs.", kind="paired", metric="mask_similarity", arm="randomised_net", baseline="repeat_run",
          better="lower", margin=0.10, source="sanity check with randomised weights"),
)  # fmt: skip

HONESTY = (
    "Small scenes with two digits replace PASCAL and COCO on VGG and ResNet; blur at 32 pixels is a weaker and more "
    "out-of-distribution perturbation than at 224. The ranking among saliency methods on natural photos is not tested."
)

# ---- the two networks


class Network(Supervised):
    """The classifier that is explained, trained once a seed."""

    lr = 2e-2
    vectorize = False  # convolutions of this size are no faster stacked
    weights = "network"

    @property
    def folder(self) -> str:
        return os.environ.get("CLAIMLAB_DATA", "")

    @property
    def steps(self) -> int:
        return 0 if self.given else self.p.steps

    @property
    def every(self) -> int:
        return max(1, self.steps // 5)

    @property
    def given(self) -> dict | None:
        """Weights of one's own network, which is taken as it is."""
        if not self.folder:
            return None
        x, y, _ = own_pictures(self.folder)
        return own_network(self.folder, self.weights, x.shape[1], int(y.max()) + 1)

    def bind(self, seed):
        bound = type(self)(self.p)
        d = load(seed, self.p.size, self.folder)
        bound.x, bound.y, bound.test, bound.box = d.x, d.y, (d.test_x, d.test_y), d.box
        return bound

    def init(self):
        classes = len(self.given["11.bias"]) if self.given else int(max(self.y.max(), self.test[1].max())) + 1
        net = build(self.x.shape[1], classes)
        if self.given:
            net.load_state_dict(self.given)
        return net.to(memory_format=torch.channels_last)

    schedule = staticmethod(one_cycle)

    def metrics(self, net):
        x, y = self.test
        right = predicted(net, x) == y
        return {"test_accuracy": right.float().mean(), "classified_right": right.sum()}


class Second(Network):
    """Another network for the same pictures: another start, other batches."""

    after, weights = "network", "second"

    def bind(self, seed):
        bound = super().bind(seed)
        bound.x, bound.y = bound.x.flip(0), bound.y.flip(0)  # the same draws now mean other pictures
        return bound

    def begin(self, start):
        self.init()  # the draws of the first network are passed over
        return self.init()


ARMS = {"network": Network, "second": Second, **EXPLANATIONS}

# ---- figures


def figures(lab) -> dict[str, go.Figure]:
    """The five figures of a finished experiment; single pictures are of its first seed."""
    arms = {name: arm for name, arm in lab.arms.items() if name in EXPLANATIONS}
    main = arms["extremal"]
    found = {
        "growing": growing(main.subjects[0], lab.params),
        "pointing": drawn.pointing(lab.table),
        "kept": drawn.kept({n: (arms[n].kept, arms[n].passed) for n in drawn.LINES if n in arms}, main.areas, lab.seeds),
    }
    if random := arms.get("randomised_net"):
        series, alike = random.series, {}
        for depth, masks in series.items():
            alike[depth] = float(similarity(masks, series[0]).mean())
        found["randomised"] = drawn.randomised(main.subjects[0].x[: random.shown], series, alike)
    if "channels" in arms:
        found["channels"] = inner(arms["channels"], lab.table)
    return found


def surest(s) -> int:
    """The picture for which the whole picture's probability is highest."""
    return int(s.probability(torch.ones_like(s.x[:, :1])).argmax())


def growing(s, params: Params) -> go.Figure:
    """The surest picture under masks of six areas, made for this figure."""
    six, k = replace(params, areas=6), surest(s)
    one = replace(s, x=s.x[k : k + 1], y=s.y[k : k + 1], levels=s.levels[k : k + 1])
    made, rng = Forming(s.net, one.x, one.y, six), stream(s.seed, "shifts")
    for _ in range(six.mask_steps):
        made(rng)
    masks, areas = made.masks(), method.shares(six.area, 6)
    whole = float(one.probability(torch.ones_like(masks[:, :1])))
    binary = hard(masks, areas, s.seed)
    seen = method.perturb(made.levels, binary.flatten(0, 1))
    return drawn.growing(one.x[0], s.box[k], masks[0], seen, one.probability(binary)[0], areas, whole)


def inner(arm, table) -> go.Figure:
    """The channels that the class of the surest picture keeps at the last inner layer, and what they show of that picture."""
    s, cut = arm.subjects[0], arm.cuts[-1]
    k, m = surest(s), arm.share[0][cut]
    count = max(1, round(CHANNELS * m.shape[1]))
    mean = m[s.y == s.y[k]].mean(0)
    top = torch.zeros_like(m[k]).scatter_(0, m[k].topk(count).indices, 1.0)
    with torch.no_grad():
        goal = s.net[:cut](s.x[k : k + 1]) * torch.stack([torch.ones_like(top), top, 1 - top])[:, :, None, None]
    pictures = method.inverted(s.net[:cut], goal, (3, *s.x.shape[1:]))
    last = table[table["arm"] == "channels"].groupby("metric")["value"].mean()
    return drawn.channels(mean.cpu().numpy(), count, [drawn.grey(p) for p in (s.x[k], *pictures)], int(s.y[k]),
                          last["channel_probability"], last["random_channel_probability"])  # fmt: skip

# ---- what one can watch


def formed(net, params: Params) -> Forming:
    """Masks as they stand; for a network alone, masks of one test picture (of seed 0) after a few quick steps."""
    if isinstance(net, Forming):
        return net
    d = load(0, params.size, os.environ.get("CLAIMLAB_DATA", ""))
    ready, rng = method.frozen(net), stream(0, "view")
    x, y = (part[:20].to(next(net.parameters()).device) for part in (d.test_x, d.test_y))
    kept = chosen(ready, x, y, 1)
    made = Forming(ready, x[kept], y[kept], replace(params, mask_steps=10))
    for _ in range(10):
        made(rng)
    return made


def view_forming(net, params: Params) -> go.Figure:
    """The mask of the first picture for the middle area, what it leaves, and its sorted values."""
    made = formed(net, params)
    k = made.count // 2
    mask = made.masks()[0, k]
    seen = method.perturb(made.levels[k : k + 1], mask[None])[0]
    return drawn.forming(drawn.grey(seen), mask.cpu().numpy(), float(made.area[k]), made.done)


def view_area(net, params: Params) -> go.Figure:
    """The class's probability while the largest pixels of the summed masks become sharp, on up to five pictures."""
    made = formed(net, params)
    maps, areas = made.masks()[:5].sum(1, keepdim=True), [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0]
    levels = made.levels[:: made.count][: len(maps)].repeat_interleave(len(areas), 0)
    y = made.target[:: made.count][: len(maps)].repeat_interleave(len(areas))
    with torch.no_grad():
        p = made.net(method.perturb(levels, hard(maps, areas, 0).flatten(0, 1))).softmax(1).gather(1, y[:, None])
    return drawn.against_area(areas, p.view(-1, len(areas)).cpu().numpy(), made.area[: made.count].tolist())


VIEWS = {"the mask forming on one picture": view_forming, "class probability against area": view_area}
