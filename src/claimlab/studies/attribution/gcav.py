"""GCAV: one concept vector for all layers of a network. Do its layers then agree, and at whose expense?"""

from __future__ import annotations

import os
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import predicted
from claimlab.parts.schedules import cosine
from claimlab.studies.attribution import _gcav_arms as arms
from claimlab.studies.attribution import _gcav_data as source
from claimlab.studies.attribution import _gcav_figures as drawn
from claimlab.studies.attribution._gcav_method import concept_maps, fusion_loss, info_nce, logistic, mixed, score, soft_score  # noqa: F401 - the notebook shows them
from claimlab.study import Control, Paper
from claimlab.training import Supervised

PAPER = Paper(
    title="GCAV: A Global Concept Activation Vector Framework for Cross-Layer Consistency in Interpretability",
    authors="He, Sinha, Xiong, Zhang", year=2025, url="https://arxiv.org/abs/2508.21197", theme="sensitivity", system="GCAV",
    question="Different layers disagree on how much a class depends on a concept. Can one shared concept vector make them agree "
    "without inventing importance?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    variance_weight: float = knob(3.0, "pressure to agree over layers; too much makes every concept look the same", low=0.0, high=20.0,
                                  live=True)  # fmt: skip
    similarity_weight: float = knob(1.0, "stay close to each layer's own vector", low=0.0, high=10.0, live=True)
    consistency_weight: float = knob(3.0, "stay close to the code before alignment", low=0.0, high=10.0, live=True)
    temperature: float = knob(0.5, "InfoNCE temperature", low=0.05, high=2.0, live=True)
    code_dim: int = knob(64, "size of the shared code", low=8, high=256)
    mix: float = knob(1.0, "share of the decoded global vector in v'_l, rest is the layer's own vector; 0 is ordinary TCAV",
                      low=0.0, high=1.0, live=True)  # fmt: skip
    attack_eps: float = knob(0.05, "size of the attack on concept pictures", low=0.0, high=0.3)
    concepts: int = knob(6, "textures that are asked about", low=2, high=10)
    layers: int = knob(5, "layers that are looked at, the last ones", low=2, high=9)
    sets: int = knob(10, "random sets, each with a vector of its own", low=2, high=30)
    pictures: int = knob(60, "pictures of a concept, and of a random set, to fit with", low=12, high=300)
    images: int = knob(100, "images of a class in stage 3, and as many held out", low=8, high=500)
    stage_steps: int = knob(200, "steps of stages 1 and 2 each; stage 3 takes three quarters of them", low=4, high=2000)
    steps: int = knob(400, "optimiser steps of the explained network", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)

    @property
    def shown(self) -> int:
        """Training images: 3,000, or as many as the steps can use."""
        return min(3000, 32 * self.steps)

    SMOKE = dict(concepts=3, layers=3, sets=3, pictures=15, images=12, stage_steps=20, steps=20, seeds=2)
    FULL = dict(concepts=10, layers=9, sets=30, seeds=10)
    CONTROL = Control(
        set=dict(mix=0.0, attack_eps=0.0), vanishes=("layers-agree", "steadier-under-attack"),
        why="Without an attack no score can be steadier; with mix 0 the global vector is the layer's own (that half is trivial).",
    )  # fmt: skip


CLAIMS = (
    Claim("layers-agree", "On unseen images of the class the scores from the global vector vary less over layers than the scores of "
          "separate vectors.", kind="paired", metric="score_std_over_layers", arm="gcav", baseline="cav", better="lower", margin=0.05,
          source="abstract; variance tables"),
    Claim("relevance-kept", "The gap between a concept that the class needs and one that it does not stays at least as large.",
          kind="paired", metric="relevant_minus_irrelevant", arm="gcav", baseline="cav", better="higher", margin=-0.05,
          source="abstract: relevance preserved"),
    Claim("beats-plain-average", "It separates relevant from irrelevant concepts better than simply averaging the per-layer scores.",
          kind="paired", metric="concept_auroc", arm="gcav", baseline="mean_score", better="higher", margin=0.02,
          source="not in the paper; the honest simple rival"),
    Claim("steadier-under-attack", "When the concept pictures are attacked at one layer, the global scores move less.",
          kind="paired", metric="score_shift_under_attack", arm="gcav", baseline="cav", better="lower", margin=0.05,
          source="adversarial robustness section"),
    Claim("null-stays-null", "For a concept made of random pictures the global score stays within 0.2 of one half.", kind="bound",
          metric="null_score_deviation", arm="gcav", better="lower", margin=0.2, source="statistical test of TCAV"),
)  # fmt: skip

HONESTY = (
    "Six small classes with known texture dependence replace ImageNet classes on GoogLeNet, ResNet50 and MobileNet. Known ground "
    "truth is an advantage here; whether natural concepts behave alike is not tested."
)

# ---- the network that is explained


class Network(Supervised):
    """The classifier, trained once a seed; every other arm explains it."""

    lr, batch_size = 2e-3, 32
    vectorize = False  # convolutions of this size are no faster stacked

    @property
    def folder(self) -> str:
        return os.environ.get("CLAIMLAB_DATA", "")

    @property
    def given(self) -> dict[str, torch.Tensor] | None:
        """Weights of one's own network, which is explained as it is."""
        if not self.folder:
            return None
        x, _, names = source.own_folder(self.folder)["classes"]
        return source.own_network(self.folder, self.p.layers, x.shape[1], len(names))

    @property
    def steps(self) -> int:
        return 0 if self.given else self.p.steps

    @property
    def every(self) -> int:
        return max(1, self.steps // 4)

    def bind(self, seed):
        bound = type(self)(self.p)
        d = source.pictures(seed, self.p.images, self.p.shown, self.folder)
        bound.x, bound.y, bound.seed = d.x, d.y, seed
        bound.test = d.held.flatten(0, 1), torch.arange(len(d.names)).repeat_interleave(d.held.shape[1])
        return bound

    def init(self):
        net = source.network(self.p.layers, self.x.shape[1], int(self.test[1].max()) + 1)
        if self.given:
            net.load_state_dict(self.given)
        return net.to(memory_format=torch.channels_last)

    schedule = staticmethod(cosine)

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy": (predicted(net, x) == y).float().mean()}

    def final(self, net):
        """What the class's logit loses when its picture is drawn with another texture: textured classes, and the one without."""
        if self.folder:
            return {}
        before, after, y = (t.to(self.test[1].device) for t in source.swapped(self.seed, 30))
        lost = (net(before) - net(after)).gather(1, y[:, None])[:, 0]
        textured = torch.tensor([texture is not None for _, texture in source.CLASSES.values()], device=y.device)[y]
        return {"swap_drop_textured": lost[textured].mean(), "swap_drop_untextured": lost[~textured].mean()}


ARMS = {
    "network": Network, "cav": arms.Cav, "mean_score": arms.MeanScore, "best_layer": arms.BestLayer, "codes": arms.Codes,
    "mean_code": arms.MeanCode, "aligned": arms.Aligned, "no_variance": arms.NoVariance, "gcav": arms.Gcav, "weights": arms.Weights,
}  # fmt: skip

# ---- figures


def pair(held: arms.Held) -> tuple[int, list[int]]:
    """A class, and a relevant, an irrelevant and the random concept for it; where relevance is not known, the extreme scores."""
    level = held.plain.mean((2, 3))[0, :-1]
    if held.relevant is None:
        return 0, [int(level.argmax()), int(level.argmin()), len(level)]
    return 0, [int(held.relevant[0].argmax()), int((~held.relevant[0]).argmax()), len(level)]


def score_figure(nets: list[arms.Pipeline | arms.Vectors], p: Params) -> go.Figure:
    """Scores of one class by layer, plain and (for nets with stages) global."""
    held = nets[0].held
    k, chosen = pair(held)
    plain = torch.stack([net.held.plain[k, chosen].mean(1) for net in nets])
    whole = None
    if isinstance(nets[0], arms.Pipeline):
        whole = torch.stack([net.scores(net.held.vectors, p.mix)[k, chosen].mean(1) for net in nets]).cpu().numpy()
    names = [held.concepts[i] for i in chosen]
    if held.relevant is not None:
        names = [f"{name} ({word})" for name, word in zip(names, ("relevant", "irrelevant", "no concept"), strict=True)]
    return drawn.score_bars(plain.cpu().numpy(), whole, names, held.layers, held.classes[k])


@torch.no_grad()
def code_figure(net: arms.Pipeline) -> go.Figure:
    """Codes of all layers and concepts before alignment, and after it where that stage is done."""
    z = net.coders.encode(net.held.vectors)
    same, other = (float(v) for v in arms.agreement(net.codes(net.held.vectors)))
    parts = {"codes of stage 1": z.cpu().numpy()}
    if net.align is not None:
        parts["after alignment"] = net.align(z).cpu().numpy()
    title = f"Between two layers, codes of one concept have the cosine {same:.2f}, those of different ones {other:.2f}"
    return drawn.codes(parts, net.held.concepts, net.held.layers, title)


@torch.no_grad()
def map_figure(classifier: nn.Module, net: arms.Pipeline, seed: int, p: Params) -> go.Figure:
    """Where a concept lies in one image, layer by layer, by separate and by decoded vectors."""
    held = net.held
    k, (concept, *_) = pair(held)
    x = source.pictures(seed, p.images, p.shown, os.environ.get("CLAIMLAB_DATA", "")).held[k, :1].to(held.vectors.device)
    own = held.vectors[concept].mean(0)
    whole = mixed(net(held.vectors)[min(k, len(net.fusion.place) - 1), concept].mean(0), own, p.mix)
    rows = {"separate": concept_maps(classifier, x, own, held.layers), "global": concept_maps(classifier, x, whole, held.layers)}
    a, b = (t.flatten(1) for t in rows.values())
    alike = torch.nn.functional.cosine_similarity(a, b).mean()
    told = f"Where one {held.classes[k]} looks {held.concepts[concept]}: maps of the two kinds of vectors have the mean cosine {alike:.2f}"
    return drawn.maps(x[0].cpu().numpy(), {n: t.cpu().numpy() for n, t in rows.items()}, held.layers, told)


def figures(lab) -> dict[str, go.Figure]:
    """The figures of a finished experiment; codes and maps are those of its first seed."""
    found = {}
    if "gcav" in lab.arms:
        nets = lab.arms["gcav"].members
        with torch.no_grad():
            looked = torch.stack([net.fusion.attend(net.codes(net.held.vectors))[1].mean((0, 2)) for net in nets]).mean(0)
        found = {"scores": score_figure(nets, lab.params), "codes": code_figure(nets[0]),
                 "attention": drawn.attention(looked.cpu().numpy(), nets[0].held.concepts, nets[0].held.layers),
                 "maps": map_figure(lab.arms["network"].members[0], nets[0], lab.seeds[0], lab.params)}  # fmt: skip
    if {"weights", "gcav"} <= set(lab.arms):
        found["price"] = drawn.price(lab.table, lab.params.variance_weight)
    return found | {"trade": drawn.trade(lab.table)}


def view_scores(net: nn.Module, params: Params) -> go.Figure:
    """Scores of a relevant, an irrelevant and the random concept over layers."""
    if not hasattr(net, "held"):
        return go.Figure().update_layout(title_text="The classifier has no concept vectors: look at cav, codes, aligned or gcav")
    return score_figure([net], params)


def view_codes(net: nn.Module, params: Params) -> go.Figure:
    """Concept vectors of all layers in the common space."""
    if not isinstance(net, arms.Pipeline):
        return go.Figure().update_layout(title_text="No common space before stage 1: look at codes, aligned or gcav")
    return code_figure(net)


VIEWS = {"scores over layers, plain and global": view_scores, "concept vectors in the common space": view_codes}
