"""Mask of truth: cut the organ out of the images and train again. What is left that tells the disease, and who relies on it?"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.attribution import fast
from claimlab.parts.ranking import auc
from claimlab.studies.robustness import _mask_of_truth_method as method
from claimlab.studies.robustness._mask_of_truth_data import MASKS, Data, Part, load, own_images
from claimlab.studies.robustness._mask_of_truth_method import VERSIONS, ideal_auc, masked, swapped
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Series, Stepwise, Supervised, Tick

PAPER = Paper(
    title="Mask of truth: model sensitivity to unexpected regions of medical images",
    authors="Sourget, Hestbek-Moller, Jimenez-Sanchez, Xu, Cheplygina", year=2024, url="https://arxiv.org/abs/2412.04030",
    theme="sensitivity", system="region-masking audit",
    question="If we cut the lungs out of a chest image, can a network still diagnose the lungs, and what does that say about the "
    "network trained on whole images?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    rho: float = knob(0.6, "link between hospital and disease; 0 is an unbiased collection", low=0.0, high=1.0)
    inside_contrast: float = knob(1.0, "strength of the true signs", low=0.0, high=3.0, unit="x calibrated")
    outside_contrast: float = knob(1.0, "strength of the hospital's traces", low=0.0, high=3.0, unit="x calibrated")
    dilation: int = knob(2, "widening of the mask's box; too small leaves true signs outside", low=0, high=10, unit="pixels")
    fill: str = knob("zero", "what replaces removed pixels", choices=("zero", "mean", "noise", "blur"), live=True)
    rebalance: float = knob(0.0, "weight of the correction that makes hospital and disease independent", low=0.0, high=1.0, live=True)
    network: str = knob("small", "three convolutions, or five", choices=("small", "deep"))
    side: int = knob(40, "height and width of the pictures", low=24, high=96, unit="pixels")
    patients: int = knob(900, "training patients, with two pictures each", low=30, high=10000)
    path: int = knob(1, "seeds at which other links are tried, for the figures", low=0, high=64)
    steps: int = knob(200, "optimiser steps", low=2, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(patients=50, path=0, steps=6, seeds=2)
    FULL = dict(network="deep", side=64, patients=4000, seeds=10)
    CONTROL = Control(
        set=dict(rho=0.0), vanishes=("diagnosis-without-organ", "full-model-leans-outside"),
        why="No link between hospital and disease: nothing outside the organ knows the label, so that the box-masked network must "
        "fall to chance and the full one has no reason to look outside. mask-shape-tells stays, since the enlarged heart changes "
        "its own outline.",
    )  # fmt: skip


CLAIMS = (
    Claim("diagnosis-without-organ", "A network trained and tested with the organ's bounding box blacked out still reaches AUC above "
          "0.6 when hospitals differ in disease share.", kind="bound", metric="auc_own_mask", arm="no_roi_box", better="higher",
          margin=0.6, source="abstract (all models above random)"),
    Claim("full-model-leans-outside", "The network trained on full images does better on images without the organ than on images of "
          "the organ only, although both parts carry equally good cues (same Bayes AUC by construction).", kind="bound",
          metric="auc_no_roi_minus_only_roi", arm="full", better="higher", margin=0.02,
          source="abstract (superior without the ROI)"),
    Claim("mask-shape-tells", "Cutting along the organ's outline leaves more diagnosis of the enlarged-heart class than cutting its "
          "bounding box: the hole's shape is itself a sign.", kind="paired", metric="auc_cardiomegaly", arm="no_roi",
          baseline="no_roi_box", better="higher", margin=0.03, source="design with outline and bounding-box masks"),
    Claim("control-is-clean", "Without any link between hospital and disease, the box-masked network falls to chance (AUC below "
          "0.55).", kind="bound", metric="auc_own_mask", arm="no_roi_box_unlinked", better="lower", margin=0.55,
          source="lab control (the Chaksu-like, unbiased case)"),
)  # fmt: skip

HONESTY = (
    "Phantoms with planted hospital traces cannot show which traces PadChest holds; they show how the audit reads when the answer "
    "is known. There are no pretrained networks, no radiologist and no real fundus images here."
)

# ---- the network


def network(kind: str, findings: int) -> nn.Sequential:
    """Convolutions 3 x 3 with stride 2, batch norm and ReLU, 12-24-48 channels; global mean; one logit a finding. "deep" has
    one more convolution in the second and in the third block. [B, 1, H, W] -> [B, findings]"""
    layers: list[nn.Module] = []
    inside = 1
    for width, stride in [(12, 2), (24, 2), *[(24, 1)] * (kind == "deep"), (48, 2), *[(48, 1)] * (kind == "deep")]:
        layers += [nn.Conv2d(inside, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, findings))


def source() -> str:
    """The folder of one's own images, or nothing."""
    return os.environ.get("CLAIMLAB_DATA", "")


def data(seed: int, p: Params, rho: float | None = None) -> Data:
    """The data of a seed at the knobs, or at another link."""
    return load(seed, p.patients, p.side, p.rho if rho is None else rho, p.inside_contrast, p.outside_contrast, source())


def view(part: Part, version: str, p: Params, d: SimpleNamespace, rng: torch.Generator, rows: Tensor | slice = slice(None)) -> Tensor:
    """Images of a part in one version, removed pixels filled as the knob says. [n, 1, H, W]"""
    x = part.x(rows)
    box = method.box_masks(part.centre[rows], d.reach, p.dilation, x.shape[2:])
    return masked(x, method.kept(version, part.mask[rows], box), p.fill, d.grey, rng)


def stream(*key: int) -> torch.Generator:
    """A generator for one use at one seed: the same in every arm."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


# ---- the arms


class Audit(Supervised):
    """A network trained on one version of the images and tested on all of them. All arms of a seed draw the same patients."""

    version, linked, balanced, lean = "full", True, False, False
    lr = 3e-3
    vectorize = False

    @property
    def every(self) -> int:
        return self.steps if self.lean else max(5, self.steps // 8)

    def bind(self, seed):
        bound = type(self)(self.p)
        d = data(seed, self.p, None if self.linked else 0.0)
        bound.seed, bound.findings, bound.reach = seed, d.findings, d.reach
        bound.train, bound.validation, bound.test = d.train, d.validation, d.test
        bound.grey = float(d.train.image.float().mean() / 255)
        site = d.train.site
        weight = np.ones(d.train.y.shape) if site is None else method.independent(site.numpy(), d.train.y.numpy())
        bound.weight = torch.from_numpy(weight).float()
        return bound

    def init(self):
        return network(self.p.network, len(self.findings)).to(memory_format=torch.channels_last)

    def block(self, net, rng, step, n):
        # a generator of its own for the noise of a fill: whatever the fill, all arms see the same patients in the same order
        rows = torch.randint(len(self.train.y), (n * self.batch_size,), generator=rng)
        noise = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        x = view(self.train, self.version, self.p, self, noise, rows)
        weight = 1 + (1.0 if self.balanced else self.p.rebalance) * (self.weight.cpu()[rows] - 1)
        return tuple(t.view(n, self.batch_size, *t.shape[1:]) for t in (x, self.train.y[rows].float(), weight))

    def loss(self, net, x, y, weight):
        """Binary cross-entropy of one sigmoid an output, mean over findings; weights [B, K] are 1 unless rebalanced."""
        return nn.functional.binary_cross_entropy_with_logits(net(x), y, weight)

    # ---- what is measured

    def aucs(self, part: Part, scores: np.ndarray, rows=slice(None)) -> dict[str, float]:
        """AUC of each finding."""
        y = part.y.numpy()[rows]
        return {name: float(auc(y[:, k], scores[:, k])) for k, name in enumerate(self.findings)}

    def shown(self, part: Part, version: str) -> Tensor:
        return view(part, version, self.p, self, stream(self.seed, 1)).to(self.weight.device)

    def swaps(self, part: Part) -> tuple[Tensor, np.ndarray]:
        """Images with the box of a donor pasted in, and the donors' rows."""
        donor = method.donors(part.patient.numpy(), np.random.default_rng([self.seed, 2]))
        x = swapped(part.x(), torch.from_numpy(donor), part.centre, self.reach.cpu(), self.p.dilation)
        return x.to(self.weight.device), donor

    def reliance(self, score, part: Part) -> dict[str, float]:
        """Mean AUC for what lies outside and for what lies inside, from the same images: outside of one patient, box of another."""
        x, donor = self.swaps(part)
        said = method.answers(score, x)
        return {"outside": mean_auc(self.aucs(part, said)), "inside": mean_auc(self.aucs(part, said, donor))}

    def metrics(self, net):
        score = fast(net)
        own = self.aucs(self.validation, method.answers(score, self.shown(self.validation, self.version)))
        found = {"validation_auc": mean_auc(own)}
        if self.version == "full" and not self.lean:
            found |= {f"validation_{name}": value for name, value in self.reliance(score, self.validation).items()}
        return found

    def final(self, net):
        body, head = fast(net[:-1]), net[-1]
        features = {v: body(self.shown(self.test, v)) for v in VERSIONS}
        said = {v: head(z).cpu().numpy().astype(float) for v, z in features.items()}
        table = {v: self.aucs(self.test, s) for v, s in said.items()}
        found = {f"{name} on {v}": value for v, row in table.items() for name, value in row.items()}
        own = table[self.version]
        found |= {"auc_own_mask": mean_auc(own), "auc_cardiomegaly": own.get(MASKS, float("nan"))}
        if self.version == "full":
            found |= {f"swap_{name}": value for name, value in self.reliance(fast(net), self.test).items()}
            found["auc_no_roi_minus_only_roi"] = found["swap_outside"] - found["swap_inside"]
            found["zero_fill_difference"] = mean_auc(table["no_roi_box"]) - mean_auc(table["only_roi_box"])
        return found if self.lean else found | self.more(net, body, features[self.version], said[self.version])

    def more(self, net, body, features: Tensor, said: np.ndarray) -> dict[str, float]:
        """Bootstrap over patients, share of attribution in the organ, linear probes of the embeddings."""
        y, patient = self.test.y.numpy(), self.test.patient.numpy()
        found = {"attribution_inside": float(self.attribution(net))}
        for k, name in enumerate(self.findings):
            low, high = method.bootstrap(y[:, k], said[:, k], patient, np.random.default_rng([self.seed, 3, k]))
            found |= {f"{name}_low": low, f"{name}_high": high}
        known = {"hospital": "site", "position": "position"}
        learned = body(self.shown(self.validation, self.version)).cpu().numpy()
        for name, field in known.items():
            if (label := getattr(self.validation, field)) is not None:
                wanted = getattr(self.test, field)
                found[f"probe_{name}"] = method.probe(learned, label.numpy(), features.cpu().numpy(), wanted.numpy())
        first = self.validation.y.numpy()[:, 0]
        return found | {f"probe_{self.findings[0]}": method.probe(learned, first, features.cpu().numpy(), y[:, 0])}

    def attribution(self, net, images: int = 24, draws: int = 12) -> Tensor:
        """Mean share of expected gradients in the organ on test images of the own version; findings take turns as f."""
        x, rng = self.shown(self.test, self.version)[:images], stream(self.seed, 4)
        base = view(self.train, self.version, self.p, self, rng, slice(0, 200)).to(x.device)
        target = torch.arange(len(x), device=x.device) % len(self.findings)
        maps = method.expected_gradients(net, x, target, base, rng, draws)
        return method.share_inside(maps, self.test.mask[: len(x)].to(x.device)).mean()


def mean_auc(found: dict[str, float]) -> float:
    """Mean over findings, without the one that changes the mask."""
    return float(np.mean([value for name, value in found.items() if name != MASKS or len(found) == 1]))


class NoRoi(Audit):
    version = "no_roi"


class NoRoiBox(Audit):
    version = "no_roi_box"


class OnlyRoi(Audit):
    version = "only_roi"


class OnlyRoiBox(Audit):
    version = "only_roi_box"


class FullUnlinked(Audit):
    linked = False
    when = staticmethod(lambda params: not source())  # real images can not be taken again without the link


class NoRoiBoxUnlinked(NoRoiBox):
    linked, when = False, FullUnlinked.when


class FullRebalanced(Audit):
    """Examples weighted so that hospital and disease are independent: the remedy."""

    balanced = True
    when = staticmethod(lambda params: not source() or own_images(source())[0].site is not None)


class SiteOnly(Stepwise):
    """Logistic regression of each finding on the hospital alone, no image: what the shortcut can reach."""

    when, total, step = FullRebalanced.when, 1, 0

    def __init__(self, params: Params, seeds):
        self.params, self.seeds = params, seeds

    def stepwise(self):
        yield Tick(0, [self.measure(data(seed, self.params)) for seed in self.seeds])
        self.step = 1

    def measure(self, d: Data) -> dict[str, float]:
        site = [part.site.numpy()[:, None].astype(float) for part in (d.train, d.test)]
        y = [part.y.numpy() for part in (d.train, d.test)]
        found = {n: method.probe(site[0], y[0][:, k], site[1], y[1][:, k]) for k, n in enumerate(d.findings)}
        return {"auc_own_mask": mean_auc(found), "auc_cardiomegaly": found.get(MASKS, float("nan"))}


def other_links(p: Params, seeds) -> Series:
    """For the figures, at the first `path` seeds: the full network at other links, the masked ones without a link."""
    runs = {f"rho={rho:g}": (Audit, rho) for rho in LINKS if rho not in (0.0, p.rho)}
    runs |= {f"{kind.version}, unlinked": (kind, 0.0) for kind in (NoRoi, OnlyRoi, OnlyRoiBox)}
    lean = {kind: type(f"Lean{kind.__name__}", (kind,), {"lean": True}) for kind, _ in runs.values()}
    return Series({name: Run(lean[kind](replace(p, rho=rho)), seeds[: p.path]) for name, (kind, rho) in runs.items()}, seeds)


LINKS = (0.0, 0.2, 0.4, 0.6, 0.8)
other_links.when = lambda params: params.path > 0 and not source()
ARMS = {
    "full": Audit, "no_roi": NoRoi, "no_roi_box": NoRoiBox, "only_roi": OnlyRoi, "only_roi_box": OnlyRoiBox,
    "full_unlinked": FullUnlinked, "no_roi_box_unlinked": NoRoiBoxUnlinked, "site_only": SiteOnly,
    "full_rebalanced": FullRebalanced, "other_links": other_links,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "saliency and the organ": beside(__name__, "saliency_view"),
    "this network's row of the matrix": beside(__name__, "matrix_view"),
    "embeddings": beside(__name__, "embedding_view"),
}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "figures", "ideal_auc"]
