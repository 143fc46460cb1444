"""ROOT: orthogonalise every momentum matrix with numbers fitted to its shape, and shave its outliers first. Is it worth it?"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.training import _root_optimizer_data as data
from claimlab.studies.training import _root_optimizer_method as method
from claimlab.study import Control, Paper, Trial, beside
from claimlab.training import Run, Task

PAPER = Paper(
    title="ROOT: Robust Orthogonalized Optimizer for Neural Network Training", authors="He, Han, Zhou, Chen, Liu, Chen, Wang",
    year=2025, url="https://arxiv.org/abs/2511.20626", theme="sensitivity", system="ROOT",
    question="Muon turns every momentum matrix into an orthogonal one with fixed numbers: is it worth fitting those numbers to "
    "each matrix shape and shaving off outliers first?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    quantile: float = knob(0.95, "entries above this quantile are shaved; 1 shaves nothing", low=0.5, high=1.0, live=True)
    iterations: int = knob(5, "Newton-Schulz iterations", low=1, high=12, live=True)
    coefficients: str = knob("shape", "numbers of ROOT's polynomial; classic_cubic is (1.5, -0.5, 0)",
                             choices=("muon", "shape", "per_iteration", "classic_cubic"), live=True)  # fmt: skip
    outlier_rate: float = knob(0.001, "share of gradient entries hit", low=0.0, high=0.05, live=True)
    outlier_size: float = knob(50.0, "size of the hits", low=0.0, high=1000.0, unit="sd", live=True)
    lr: float = knob(0.06, "learning rate of the orthogonalised arms; AdamW alone takes a sixth", low=0.0001, high=0.1, live=True)
    momentum: float = knob(0.95, "longer memory keeps an outlier alive longer", low=0.0, high=0.99, live=True)
    width: int = knob(64, "numbers a character in the transformer", low=16, high=256)
    layers: int = knob(2, "blocks of the transformer", low=1, high=6)
    batch: int = knob(12, "windows of 32 characters a step", low=1, high=64)
    digits: bool = knob(False, "train a perceptron on digits beside it")
    rivals: bool = knob(True, "train clipped Muon, the two ablations and the exact polar factor too")
    fit_steps: int = knob(400, "Adam steps of the fit of the numbers", low=1, high=5000)
    steps: int = knob(120, "optimiser steps", low=4, high=10000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(width=32, layers=1, steps=8, seeds=2, fit_steps=20, rivals=False)
    FULL = dict(steps=800, seeds=10, digits=True)
    CONTROL = Control(
        set=dict(outlier_rate=0.0), vanishes=("robust-to-outliers", "clipping-not-enough"),
        why="Without injected outliers there is nothing to shave off; a lead of ROOT that remains is a general one (better "
        "coefficients, sign-like steps) and must not be sold as robustness. Precision of the polar factor is measured without "
        "outliers anyway.",
    )  # fmt: skip

    def __post_init__(self):
        if self.width % 4:
            raise ValueError(f"width = {self.width} does not divide into 4 heads")


CLAIMS = (
    Claim("more-precise", "For momentum matrices met in training, five iterations with shape-tuned coefficients end nearer to "
          "the true polar factor than with Muon's fixed coefficients (relative Frobenius error).", kind="paired",
          metric="orthogonality_error", arm="root", baseline="muon", better="lower", margin=0.03,
          source="abstract; orthogonalization-error table"),
    Claim("robust-to-outliers", "With heavy-tailed outliers added to 0.1 % of the gradient entries, ROOT ends at a lower "
          "validation loss than Muon.", kind="paired", metric="val_loss_outliers", arm="root", baseline="muon", better="lower",
          margin=0.01, source="abstract (noisy scenarios)"),
    Claim("no-harm-when-clean", "On clean gradients it is not worse than Muon.", kind="paired", metric="val_loss_clean",
          arm="root", baseline="muon", better="lower", margin=-0.01, source="abstract (faster convergence)"),
    Claim("beats-adam", "And it ends below AdamW, each with its own tuned learning rate.", kind="paired",
          metric="val_loss_clean", arm="root", baseline="adamw", better="lower", margin=0.02, source="abstract"),
    Claim("clipping-not-enough", "Elementwise shaving before orthogonalization beats global norm clipping before Muon under "
          "outliers.", kind="paired", metric="val_loss_outliers", arm="root", baseline="muon_clip", better="lower",
          margin=0.005, source="lab addition: the honest simple rival"),
)  # fmt: skip
HONESTY = (
    "A 0.1M-parameter character model for 150 steps replaces billion-parameter pre-training in bfloat16; artificial outliers "
    "replace those of real training. Threshold rule and the sampling of singular values for the coefficient fit follow the "
    "paper's idea; exact constants may differ."
)
DEVELOPMENT = 1000  # the seed whose momentum the coefficients are fitted to
RECORDS = 20  # steps between two recorded momenta


# ---- momentum met in training, and the numbers fitted to it


def text() -> data.Corpus:
    """The lab's text, or the file that CLAIMLAB_DATA names."""
    return data.corpus(os.environ.get("CLAIMLAB_DATA", ""))


def basis(p: Params, steps: int) -> Params:
    """The knobs on which a plain Muon run of `steps` depends; all others at their defaults."""
    return Params(width=p.width, layers=p.layers, batch=p.batch, lr=p.lr, momentum=p.momentum, steps=max(4, min(steps, p.steps)))


@lru_cache(maxsize=64)
def _recorded(seed: int, plain: Params, every: int, path: str) -> dict[int, Tensor]:
    """Momenta of a run by aspect ratio r, [N, d, r d]: q, k, v, o (1); q beside k and v beside o (2); up turned and down (4);
    both of them side by side (8)."""
    with torch.enable_grad():
        run, found = Run(Recorder(plain), [seed], device="cpu"), {1: [], 2: [], 4: [], 8: []}
        names = list(run.members[0]["clean"].hidden[0].keys())
        ((optimizer, _),) = run.ensembles[0].optimizers["clean"]
        for step in range(1, plain.steps + 1):
            run.advance()
            if step % every:
                continue
            for layer in range(plain.layers):
                met = dict(zip(names, optimizer.last[6 * layer : 6 * layer + 6], strict=True))
                q, k, v, o, up, down = (met[name].clone() for name in ("q", "k", "v", "o", "up", "down"))
                found[1] += [q, k, v, o]
                found[2] += [torch.cat([q, k], 1), torch.cat([v, o], 1)]
                found[4] += [up.mT, down]
                found[8] += [torch.cat([up.mT, down], 1)]
    return {aspect: torch.stack(matrices) for aspect, matrices in found.items()}


def recorded(seed: int, p: Params, steps: int | None = None) -> dict[int, Tensor]:
    """Nesterov momenta of a separate, clean Muon run with this seed, every 20th step (see `_recorded`)."""
    plain = basis(p, p.steps if steps is None else steps)
    return _recorded(seed, plain, min(RECORDS, max(1, plain.steps // 6)), os.environ.get("CLAIMLAB_DATA", ""))


@lru_cache(maxsize=256)
def _fitted(shape: tuple[int, int], plain: Params, iterations: int, steps: int, separate: bool, path: str) -> method.Coefficients:
    rows, columns = shape
    drawn = torch.randn(32, rows, columns, generator=torch.Generator().manual_seed(DEVELOPMENT))
    met = recorded(DEVELOPMENT, plain).get(columns // rows if rows == plain.width and columns % rows == 0 else 0)
    return method.fit([method.scaled_values(m) for m in (drawn, met) if m is not None], iterations, steps, separate)


def coefficients(p: Params, shape: tuple[int, int]) -> method.Coefficients:
    """ROOT's (a, b, c) of each iteration for matrices [m, n] with m <= n, as the knob `coefficients` says.

    Fitted once for each shape: half of the singular values are those of 32 Gaussian matrices, half those of momenta recorded
    in 60 steps of Muon on a development seed.
    """
    if p.coefficients in ("muon", "classic_cubic"):
        return (method.MUON if p.coefficients == "muon" else method.CUBIC,) * p.iterations
    path = os.environ.get("CLAIMLAB_DATA", "")
    return _fitted(tuple(shape), basis(p, 60), p.iterations, p.fit_steps, p.coefficients == "per_iteration", path)


# ---- the arms


class Adamw(Task):
    """One transformer a setting, from the same first weights, on the same windows and with the same draws of outliers: `clean`
    has none, `outliers` has the knob's rate, `heavy` ten times as many. An arm says how a gradient becomes a step."""

    ahead, weight_decay = 25, 0.01
    settings: tuple[str, ...] = ("clean", "outliers", "heavy")
    share: float | None = None  # of the rate, for what AdamW moves beside orthogonalised matrices; None: AdamW moves all
    clip: float | None = None
    shaves = tuned = exact = False
    lr = property(lambda self: self.p.lr / 6)
    every = property(lambda self: -(-self.steps // 6))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed = seed
        return bound

    def init(self):
        first = data.CharTransformer(len(text().letters), self.p.width, self.p.layers)
        nets = {name: copy.deepcopy(first) for name in self.settings}
        return nn.ModuleDict(nets | ({"digits": data.DigitNet(self.p.width)} if self.p.digits else {}))

    def groups(self):
        names = [*self.settings, *(["digits"] if self.p.digits else [])]
        special = {f"{name}.hidden": {"momentum": self.p.momentum} for name in names}
        return special | {f"{name}.draw": {} for name in names} | {f"{name}.": {} for name in names}

    def optimizer(self, groups):
        return method.Orthogonalised(groups, self)

    def schedule(self, step, steps):
        warm = min(20, max(1, steps // 4))
        return (step + 1) / warm if step < warm else (steps - step) / (steps - warm)

    def block(self, net, rng, step, n):
        """Windows and their next characters [n, B, 32], the code of each step's outliers [n, 2], rows of digits [n, 64]."""
        whole = text().train
        starts = torch.randint(len(whole) - data.CONTEXT, (n, self.p.batch, 1), generator=rng)
        code = torch.randint(1 << 24, (n, 2), generator=rng).float()  # whole numbers, exact in single precision
        rows = torch.randint(1400, (n, 64), generator=rng)
        windows = whole[starts + torch.arange(data.CONTEXT + 1)]
        return windows[..., :-1], windows[..., 1:], code, rows

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def players(self):
        found = {name: partial(self.text_loss, name) for name in self.settings}
        return found | ({"digits": self.digit_loss} if self.p.digits else {})

    def text_loss(self, name, net, x, y, code, rows):
        """Cross-entropy; the second term is zero, and its gradient hands the code of the outliers to the optimiser."""
        return cross_entropy(net[name](x).flatten(0, 1), y.flatten()) + (net[name].draw * code).sum()

    def digit_loss(self, net, x, y, code, rows):
        images, labels = (part.to(rows.device)[rows] for part in data.digit_parts()[0])
        return cross_entropy(net["digits"](images), labels) + (net["digits"].draw * code).sum()

    def received(self, setting: str, gradients: list[Tensor], codes: Tensor) -> list[Tensor]:
        """The gradients [S, ...] as they arrive at the optimiser: hit by the setting's outliers, then clipped by the arm."""
        rate = {"outliers": self.p.outlier_rate, "heavy": min(0.05, 10 * self.p.outlier_rate)}.get(setting, 0.0)
        gradients = method.with_outliers(gradients, codes, rate, self.p.outlier_size)
        return gradients if self.clip is None else method.norm_clipped(gradients, self.clip)

    def direction(self, b: Tensor) -> Tensor:
        """What B [N, m, n] becomes before the weights take a step along it."""
        if self.shaves:
            b, _ = method.soft_threshold(b, self.p.quantile)
        if self.exact:
            return method.polar(b)
        return method.newton_schulz(b, coefficients(self.p, b.shape[-2:]) if self.tuned else (method.MUON,) * self.p.iterations)

    def metrics(self, net):
        return {f"curve_{name}": data.loss_on(net[name], text().watched) for name in self.settings}

    def final(self, net):
        found = {f"val_loss_{name}": data.loss_on(net[name], text().judged) for name in self.settings}
        if self.p.digits:
            x, y = (part.to(net["digits"].bias.device) for part in data.digit_parts()[1])
            found["digit_accuracy"] = (net["digits"](x).argmax(1) == y).float().mean()
        return found | (self.precision() if type(self) in (Muon, Root) else {})

    def precision(self) -> dict[str, Tensor]:
        """Distance of this arm's numbers from the true polar factor on momenta of a Muon run, nothing shaved: mean over all
        hidden matrices of the relative Frobenius error, and of the largest |s - 1|."""
        errors, worst = [], []
        for aspect, b in recorded(self.seed, self.p).items():
            if aspect in (1, 4):  # the shapes of the transformer
                numbers = coefficients(self.p, b.shape[-2:]) if self.tuned else (method.MUON,) * self.p.iterations
                x = method.newton_schulz(b, numbers)
                errors.append(method.polar_error(x, method.polar(b)))
                worst.append((torch.linalg.svdvals(x) - 1).abs().amax(-1))
        return {"orthogonality_error": torch.cat(errors).mean(), "largest_deviation": torch.cat(worst).mean()}


class Muon(Adamw):
    share = 0.1
    lr = property(lambda self: self.p.lr)


class Rival(Muon):
    @staticmethod
    def when(params):
        return params.rivals


class MuonClip(Rival):
    settings = ("clean", "outliers")
    clip = 1.0


class Root(Muon):
    shaves = tuned = True


class RootNs(Rival):
    settings = ("outliers",)
    tuned = True


class RootSoft(Rival):
    settings = ("outliers",)
    shaves = True


class ExactSvd(Rival):
    settings = ("clean",)
    exact = True


class Recorder(Muon):
    """Plain Muon on clean gradients, nothing measured: its momenta are what the two sets of numbers are compared on."""

    settings = ("clean",)


ARMS = {
    "adamw": Adamw, "muon": Muon, "muon_clip": MuonClip, "root": Root, "root_ns": RootNs, "root_soft": RootSoft,
    "exact_svd": ExactSvd,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "singular values and polynomials": beside(__name__, "spectrum"),
    "one momentum matrix": beside(__name__, "one_matrix"),
    "text of the model": beside(__name__, "written"),
}
TRY = {
    "next character": Trial("text", answer=beside(__name__, "next_character"),
                            help="Write the beginning of a line; each network says what comes next."),
}  # fmt: skip
