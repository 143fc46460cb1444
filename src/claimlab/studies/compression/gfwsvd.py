"""GFWSVD: cut every matrix to low rank in the norm of its Kronecker-factored Fisher. Do errors that hurt together matter?"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.data.text import windows
from claimlab.models.transformer import CharTransformer
from claimlab.params import knob
from claimlab.studies.compression import _gfwsvd_data as files
from claimlab.studies.compression import _gfwsvd_method as rule
from claimlab.studies.compression import _gfwsvd_net as nets
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="Generalized Fisher-Weighted SVD: Scalable Kronecker-Factored Fisher Approximation for Compressing Large Language Models",
    authors="Chekalina, Moskovskiy, Cherniuk, Kurkin, Kuznetsov, Frolov", year=2025, url="https://arxiv.org/abs/2505.17974",
    theme="sensitivity", system="GFWSVD",
    question="When a weight matrix is cut to low rank, does it pay to know how errors in different entries hurt together, and not "
    "only one by one?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    ratio: float = knob(0.4, "share of parameters removed from every linear map", low=0.05, high=0.9, unit="fraction")
    calibration: int = knob(256, "gradients behind the Fisher; few make it noisy", low=16, high=2048, unit="sequences")
    rounds: int = knob(20, "power iterations of the Kronecker fit; 1 is close to a second-moment estimate", low=1, high=60)
    damping: float = knob(0.001, "ridge on both factors; large values turn the method into plain SVD", low=0.000001, high=0.1)
    train_steps: int = knob(350, "how well the model is trained before it is cut", low=50, high=5000)
    gradient_unit: str = knob("sequence", "what one sample of the Fisher is", choices=("sequence", "token_batch"))
    shuffled: bool = knob(False, "rows and columns of the fitted factors in random order: a Fisher that knows nothing")
    width: int = knob(64, "numbers a character in the transformer, a multiple of 4", low=16, high=256)
    layers: int = knob(2, "blocks of the transformer", low=1, high=6)
    steps: int = knob(5000, "upper limit on the training steps", low=20, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=30, width=32, layers=1, calibration=32, seeds=2)
    FULL = dict(layers=3, width=96, train_steps=1000, calibration=512, seeds=8)
    CONTROL = Control(
        set=dict(shuffled=True), vanishes=("beats-diagonal", "beats-activation-whitening", "two-sided-matters"),
        why="Factors whose rows and columns are in random order have the same eigenvalues and know nothing of which errors hurt "
        "together, so that a cut in their norm has no reason to be a good one.",
    )  # fmt: skip

    def __post_init__(self):
        if self.width % 4:
            raise ValueError(f"width = {self.width} is not allowed: the 4 heads of attention share it, so it must be a multiple of 4")


CLAIMS = (
    Claim("beats-diagonal", "At equal rank the Kronecker-weighted cut raises the held-out loss less than the diagonal Fisher cut.",
          kind="paired", metric="loss_increase", arm="gfwsvd", baseline="fwsvd", better="lower", margin=0.02,
          source="abstract; main tables"),
    Claim("beats-activation-whitening", "It also raises the loss less than whitening by activations (SVD-LLM).", kind="paired",
          metric="loss_increase", arm="gfwsvd", baseline="svd_llm", better="lower", margin=0.01, source="abstract; LLaMA table"),
    Claim("two-sided-matters", "The off-diagonal part carries the gain: keeping only the diagonals of both factors is worse.",
          kind="paired", metric="loss_increase", arm="gfwsvd", baseline="gfwsvd_diag", better="lower", margin=0.01,
          source="motivation; ablation"),
    Claim("best-kronecker", "The factors found by power iteration fit the empirical Fisher in Frobenius norm better than the K-FAC "
          "product of second moments.", kind="paired", metric="fisher_fit_error", arm="gfwsvd", baseline="kfac_svd",
          better="lower", margin=0.01, source="method section, rank-1 fit of the rearranged Fisher"),
    Claim("optimal-in-its-norm", "The cut is the exact minimiser of its own quadratic loss: its value equals the sum of the "
          "discarded squared singular values.", kind="equality", metric="optimality_gap", arm="gfwsvd", better="lower",
          margin=0.00001, source="theorem on the generalised cut"),
)  # fmt: skip
HONESTY = (
    "A two-layer character model stands in for BERT and LLaMA; task accuracies such as MMLU cannot be tested. Orderings at toy "
    "width may differ from those at width 4096, where the calibration set is far smaller than the matrix."
)


# ---- data: CLAIMLAB_DATA names a text of your own, or a folder with text.txt, config.json and model.safetensors

HELD = 200  # held-out sequences of the claims
GRID = (0.2, 0.4, 0.6)  # shares removed in the figures, besides the knob's


def path() -> str:
    return os.environ.get("CLAIMLAB_DATA", "")


def own_model() -> bool:
    return Path(path() or "-").is_dir()


def held_out(count: int = HELD) -> Tensor:
    """Evenly spaced held-out windows [count, 65]: 64 characters and the ones that follow them."""
    return windows(files.corpus(path()).held, count, files.CONTEXT + 1)


def calibration(count: int) -> Tensor:
    return windows(files.corpus(path()).calibration, count, files.CONTEXT + 1)


# ---- the arms


class Uncut(Task):
    """The model that every arm cuts: trained with Adam, and after the last step everything is measured on it."""

    ahead, batch_size, vectorize = 20, 32, False  # matrices of this size gain nothing from a stack of seeds
    steps = property(lambda self: min(self.p.train_steps, self.p.steps))
    every = property(lambda self: max(10, self.steps // 7))
    lr = property(lambda self: 0.0 if own_model() else 1e-3)

    def bind(self, seed):
        bound = copy.copy(self)
        bound.seed = seed
        return bound

    def init(self):
        own = files.config(path()) if own_model() else {"width": self.p.width, "layers": self.p.layers, "heads": 4}
        letters = len(files.corpus(path()).letters)
        net = CharTransformer(letters, own["width"], own["layers"], own["heads"], files.CONTEXT)
        if own_model():
            files.fill(net, path())
        return nets.Trained(net, self.p.rounds)

    def optimizer(self, groups):
        return torch.optim.Adam(groups, fused=True)

    def block(self, net, rng, step, n):
        text = files.corpus(path()).train
        starts = torch.randint(len(text) - files.CONTEXT, (n, self.batch_size, 1), generator=rng)
        drawn = text[starts + torch.arange(files.CONTEXT + 1)]
        return drawn[..., :-1], drawn[..., 1:]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return cross_entropy(net(x).flatten(0, 1), y.flatten())

    def metrics(self, net):
        return {"held_out_loss": nets.loss_on(net, held_out(48))}

    def measure(self, net):
        nets.measure(net, calibration(self.p.calibration), held_out(), self.p.rounds, self.p.gradient_unit)

    def final(self, net):
        self.measure(net)
        return {"held_out_loss": net.report.loss}


class Svd(Uncut):
    """Plain truncated SVD. An arm is the pair (A, B) in whose norm it cuts each map; None is the identity."""

    after, steps, fitted = "uncut", 0, None
    every = 1

    @property
    def ratios(self) -> list[float]:
        return sorted({*GRID, self.p.ratio})

    def begin(self, start):
        if not start.report.measured:  # training was cut short
            start = copy.deepcopy(start)
            self.measure(start)
        found = [self.built(start, pairs) for pairs in self.norms(start.report)]
        if len(found) == 1:
            return found[0]
        with torch.no_grad():
            return min(found, key=lambda net: float(nets.loss_on(net, calibration(128))))

    def built(self, start, pairs: dict) -> nets.LowRank:
        """The network cut in the norms of `pairs`, one (A, B) a map."""
        cuts = {}
        for key, (a, b) in pairs.items():
            n, m = start.weight(key).shape
            eye = torch.eye(max(n, m), dtype=torch.float64, device=start.weight(key).device)
            cuts[key] = rule.cut(start.weight(key), eye[:m, :m] if a is None else a, eye[:n, :n] if b is None else b, self.p.damping)
        net = nets.LowRank(start, cuts, self.ratios, self.p.ratio)
        if self.fitted is not None:
            net.fit.copy_(torch.stack([start.report.get(key, "fit")[self.fitted] for key in pairs]).mean())
        return net

    def norms(self, report) -> list[dict]:
        """The candidates {map: (A, B)}; of several the best on calibration text is taken."""
        return [{key: self.norm(lambda kind, key=key: report.get(key, kind)) for key in report.maps}]

    def norm(self, get) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def metrics(self, net):
        found = {"optimality_gap": net.optimality}
        return found | ({"fisher_fit_error": net.fit} if self.fitted is not None else {})

    def final(self, net):
        rises = {}
        for k, ratio in enumerate(net.ratios):
            net.losses[k] = nets.loss_on(net, held_out(), ratio=ratio)
            rises[f"loss_increase_{100 * ratio:g}"] = net.losses[k] - net.uncut
        return rises | {"loss_increase": rises[f"loss_increase_{100 * self.p.ratio:g}"]}


class Fwsvd(Svd):
    """Diagonal Fisher summed over one index: over outputs, which weighs inputs, or over inputs; the better orientation."""

    def norms(self, report):
        return [{key: (report.get(key, "columns").diag(), None) for key in report.maps},
                {key: (None, report.get(key, "rows").diag()) for key in report.maps}]  # fmt: skip


class Asvd(Svd):
    """Inputs scaled by the square root of their mean size."""

    def norm(self, get):
        return get("activity").diag(), None


class SvdLlm(Svd):
    """Whitening by activations: A = E[x x^T]."""

    def norm(self, get):
        return get("inputs"), None


class Kfac(Svd):
    """A = E[x x^T] and B = E[g g^T], as if inputs and slopes had nothing to do with each other."""

    fitted = 2

    def norm(self, get):
        return get("inputs"), get("slopes")


class Gfwsvd(Svd):
    """The method: the Kronecker product that fits the Fisher of the calibration sequences best."""

    fitted = 0

    def norms(self, report):
        pairs = {key: (report.get(key, "a"), report.get(key, "b")) for key in report.maps}
        if self.p.shuffled:
            rng = torch.Generator().manual_seed(self.seed)
            pairs = {key: tuple(rule.reordered(one, rng) for one in pair) for key, pair in pairs.items()}
        return [pairs]


class GfwsvdDiag(Gfwsvd):
    """Only the diagonals of both factors."""

    fitted = 1

    def norms(self, report):
        return [{key: (a.diagonal().diag(), b.diagonal().diag()) for key, (a, b) in super().norms(report)[0].items()}]


ARMS = {
    "uncut": Uncut, "svd": Svd, "fwsvd": Fwsvd, "asvd": Asvd, "svd_llm": SvdLlm, "kfac_svd": Kfac, "gfwsvd_diag": GfwsvdDiag,
    "gfwsvd": Gfwsvd,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"singular values": beside(__name__, "singular_values"), "loss against share removed": beside(__name__, "loss_and_share")}
