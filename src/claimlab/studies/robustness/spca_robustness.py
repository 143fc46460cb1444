"""sparse PCA front end: a classifier sees an image only through a few sparse projections. Has an attacker less leverage?"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.models import mlp
from claimlab.params import knob
from claimlab.parts.threads import one_thread
from claimlab.studies.robustness import _spca_robustness_attacks as attacks
from claimlab.studies.robustness import _spca_robustness_method as fronts
from claimlab.studies.robustness._spca_robustness_data import Pictures, load
from claimlab.studies.robustness._spca_robustness_method import Projected, Unprojected
from claimlab.study import Control, Paper, Trial, beside
from claimlab.training import Run, Stepwise, Supervised, Tick

PAPER = Paper(
    title="Sparse Representations Improve Adversarial Robustness of Neural Network Classifiers",
    authors="Killian Steunou, Sigurd Saue, Théo Druilhe", year=2025, url="https://arxiv.org/abs/2509.21130",
    theme="sensitivity", system="SPCA front end",
    question="If a classifier sees an image only through a sparse projection, does an attacker have less leverage?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    alpha: float = knob(1.0, "L1 penalty of sparse PCA; 0 is dense", low=0.0, high=5.0)
    components: int = knob(30, "k, numbers that the head sees", low=5, high=100)
    eps: float = knob(0.1, "attack budget a pixel: the claims are judged at 0.3, 0.6 and 1 times this", low=0.0, high=0.4,
                      unit="share of the pixel range", live=True)  # fmt: skip
    attack: str = knob("pgd", "how the attacker of the curves searches", choices=("fgsm", "pgd", "mim", "square"))
    norm: str = knob("inf", "how the budget of the curves is measured: largest change of a pixel, or root mean square (2)",
                     choices=("inf", "2"))  # fmt: skip
    scaler: bool = knob(True, "standardise the codes, which amplifies components of small variance")
    data: str = knob("digits", "pictures: ten digits, or crops of two textures", choices=("digits", "textures"))
    side: int = knob(16, "height and width of a picture", low=12, high=28, unit="pixels")
    images: int = knob(1200, "training images", low=200, high=1200)
    attacked: int = knob(300, "test images under attack; Square gets two thirds of them", low=30, high=597)
    pgd_steps: int = knob(40, "steps of PGD", low=1, high=200)
    restarts: int = knob(5, "random starts of PGD", low=1, high=20)
    queries: int = knob(500, "queries of the Square attack", low=1, high=10000)
    alphas: bool = knob(True, "also train with other penalties, for the figure of the trade-off")
    steps: int = knob(400, "optimiser steps of every head", low=20, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(components=8, steps=20, images=200, attacked=64, pgd_steps=3, restarts=1, queries=20, alphas=False, seeds=2)
    FULL = dict(side=28, components=50, pgd_steps=100, restarts=10, queries=5000, seeds=10)
    CONTROL = Control(
        set=dict(eps=0.0), vanishes=("degrades-gracefully", "black-box-too", "sparsity-itself"),
        why="Without an attack robustness is clean accuracy, where no code should have an edge.",
    )  # fmt: skip

    def __post_init__(self):
        if self.attack == "square" and self.norm == "2":
            raise ValueError("attack = square and norm = 2 do not go together: Square is written for norm = inf")


CLAIMS = (
    Claim("degrades-gracefully", "With equal component count and the same small head, accuracy under a strong white-box "
          "L-infinity attack is higher behind sparse PCA than behind PCA.", kind="paired", metric="pgd_accuracy", arm="spca",
          baseline="pca", better="higher", margin=0.03, source="abstract; robustness curves"),
    Claim("black-box-too", "The same holds for the Square attack, which uses no gradients.", kind="paired",
          metric="square_accuracy", arm="spca", baseline="pca", better="higher", margin=0.02,
          source="abstract (black-box attacks)"),
    Claim("clean-competitive", "Clean accuracy is at most 3 points below PCA's.", kind="bound", metric="clean_loss_vs_pca",
          arm="spca", better="lower", margin=0.03, source="abstract (competitive clean accuracy)"),
    Claim("certificate-exact", "For a linear head the certified radius margin / ||W^T u||_dual is exactly the distance at which "
          "the optimal attack flips the answer.", kind="equality", metric="certificate_gap", arm="linear_heads", better="lower",
          margin=0.0001, source="theorem on certificates, linear heads"),
    Claim("sparsity-itself", "It is the sparsity: codes of the same subspace, turned so that the rows of the projection are "
          "dense and rescaled in the same way, are attacked more easily.", kind="paired", metric="pgd_accuracy", arm="spca",
          baseline="spca_dense_rotation", better="higher", margin=0.03,
          source="abstract (the theory names sparser projections as the mechanism); Lipschitz composition argument"),
)  # fmt: skip
HONESTY = (
    "Digits of 16x16 pixels and small heads; MNIST and CIFAR-10 numbers are not reproduced. Any fixed front end can be "
    "circumvented by adaptive attacks, which here is avoided by differentiating through it; sparsity's gain may be an effect of "
    "scaling and lost variance, which two control arms measure."
)
LADDER = (0.3, 0.6, 1.0)  # of eps: where pgd_accuracy is measured
FACTORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)  # of eps: where the four main curves are measured
ALPHAS = (0.1, 0.3, 1.0, 2.0, 5.0)  # penalties of the figure of the trade-off
WIDTH = 128


# ---- the front ends of a seed, shared by all arms


def where(seed: int, p: Params) -> tuple:
    """The arguments of `load` for a seed; CLAIMLAB_DATA names one's own file or folder."""
    return seed, p.images, p.side, p.data, os.environ.get("CLAIMLAB_DATA", "")


def pictures(seed: int, p: Params) -> Pictures:
    """Images of a seed."""
    return load(*where(seed, p))


@lru_cache(maxsize=32)
def centred(*place) -> tuple[np.ndarray, np.ndarray]:
    """Training images less their mean [n, d], and the mean [d], in double precision; `place` is what `where` gives."""
    x = load(*place).x.double().numpy()
    return x - x.mean(0), x.mean(0)


@lru_cache(maxsize=64)
def sparse(components: int, alpha: float, *place) -> np.ndarray:
    """Sparse rows [k, d] of a seed."""
    return fronts.sparse_rows(centred(*place)[0], components, alpha, seed=place[0])


def front_end(front: str, scaled: bool, seed: int, p: Params) -> tuple[Tensor, Tensor, Tensor]:
    """W [k, d], mean [d] and deviations of the codes [k] of one arm and seed."""
    x, mean = centred(*where(seed, p))
    rows = fronts.projection(front, x, sparse(p.components, p.alpha, *where(seed, p)), np.random.default_rng([seed, 1]))
    sd = fronts.deviations(x, rows) if scaled else np.ones(len(rows))
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in (rows, mean, sd))


# ---- the attacker


def attacker(name: str, norm: str, p: Params, rng: torch.Generator):
    """`attack(loss, x, eps)` of the lab's knobs, and how often it tries. The radius of norm 2 is eps sqrt(d), so that eps is
    the root mean square change of a pixel."""

    def attack(loss, x, eps):
        eps = eps * x.shape[-1] ** 0.5 if norm == "2" else eps
        if name == "pgd":
            return attacks.pgd(loss, x, eps, norm, p.pgd_steps, attacks.random_start(x, eps, rng, norm))
        if name == "square":
            return attacks.square(loss, x, eps, p.queries, rng)
        return attacks.fgsm(loss, x, eps, norm) if name == "fgsm" else attacks.momentum(loss, x, eps, norm)

    return attack, p.restarts if name == "pgd" else 1


@one_thread()
def endured(net, x: Tensor, y: Tensor, sizes: list[float], attack, tries: int = 1) -> Tensor:
    """Which images [n] are still answered with y after every try, for each of the ascending `sizes`: [len(sizes), n].

    Whoever has fallen at one size is in the ball of the next one with the same picture, and is not attacked again.
    """
    up, kept = net(x).argmax(-1) == y, []
    for eps in sizes:
        for _ in range(tries if eps > 0 else 0):
            rows = up.nonzero().flatten()
            if len(rows):
                moved = attack(lambda z, rows=rows: attacks.log_odds(net(z), y[rows]), x[rows], eps)
                up[rows] = net(moved).argmax(-1) == y[rows]
        kept.append(up.clone())
    return torch.stack(kept)


# ---- the arms: one front end each; heads of one seed begin alike and see the same minibatches


class Classifier(Supervised):
    """Fixed projection, fixed scaler, and a trained head k-128-C."""

    front, scaled, queried, factors = "pca", True, False, (0.0, *LADDER)
    lr = 1e-2

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, found = seed, pictures(seed, self.p)
        bound.x, bound.y, bound.test, bound.classes = found.x, found.y, found.test, found.classes
        bound.before = front_end(self.front, self.scaled and self.p.scaler, seed, self.p)
        return bound

    def init(self):
        kind = Unprojected if self.front == "raw" else Projected
        return kind(*self.before, mlp(len(self.before[0]), WIDTH, self.classes))

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy": (net(x).argmax(1) == y).float().mean()}

    def final(self, net):
        x, y = (part[: self.p.attacked] for part in self.test)
        rng = torch.Generator().manual_seed(2**40 + self.seed)
        white = endured(net, x, y, [f * self.p.eps for f in self.factors], *attacker("pgd", "inf", self.p, rng))
        shares = dict(zip(self.factors, white.float().mean(1), strict=True))
        found = {"pgd_accuracy": sum(shares[f] for f in LADDER) / len(LADDER)}
        if self.queried:
            few = slice(len(x) * 2 // 3)
            black = endured(net, x[few], y[few], [0.6 * self.p.eps], *attacker("square", "inf", self.p, rng))
            held = white[self.factors.index(0.6), few]
            found |= {"square_accuracy": black.float().mean(), "square_beats_pgd": (held & ~black[0]).float().mean()}
        if (self.p.attack, self.p.norm) != ("pgd", "inf"):
            sizes, chosen = [f * self.p.eps for f in self.factors], attacker(self.p.attack, self.p.norm, self.p, rng)
            shares = dict(zip(self.factors, endured(net, x, y, sizes, *chosen).float().mean(1), strict=True))
        return found | {f"held_{f:g}": share for f, share in shares.items()} | self.leverage(net, x, y)

    def leverage(self, net, x, y):
        """Sparsity, bounds of how far codes and logits can move, and how fast the log-odds do at the test images."""
        rows = net.rows
        norm, head = fronts.operator_norm(rows / net.sd[:, None]), fronts.head_lipschitz(net.head)
        slope = attacks.slope(lambda z: attacks.log_odds(net(z), y), x)[1]
        live, used = rows.any(1).sum(), (rows != 0).sum()
        return {"zero_share": 1 - used / (live * rows.shape[1]).clamp_min(1), "nonzeros_a_row": used / live.clamp_min(1),
                "live_rows": live, "operator_norm": norm, "head_lipschitz": head, "lipschitz_bound": norm * head,
                "gradient_l1": slope.abs().sum(1).mean()}  # fmt: skip


class Pca(Classifier):
    queried, factors = True, FACTORS


class Spca(Classifier):
    """Begins when `pca` is done, to know its clean accuracy."""

    front, queried, factors, after = "spca", True, FACTORS, "pca"

    def begin(self, start):
        net = self.init()
        net.register_buffer("rival", torch.as_tensor(self.metrics(start)["test_accuracy"]))
        return net

    def final(self, net):
        return super().final(net) | {"clean_loss_vs_pca": net.rival - self.metrics(net)["test_accuracy"]}


class Raw(Classifier):
    front, scaled, factors = "raw", False, FACTORS


class PcaFewer(Classifier):
    front, queried = "pca_fewer", True


class PcaUnscaled(Classifier):
    scaled = False


class SpcaUnscaled(Classifier):
    front, scaled = "spca", False


class RandomSparse(Classifier):
    front, factors = "random_sparse", FACTORS


class SpcaDenseRotation(Classifier):
    front, queried = "spca_dense_rotation", True


class LinearHeads(Classifier):
    """Logistic regression on PCA and on SPCA codes, for the certificates."""

    def bind(self, seed):
        bound = super().bind(seed)
        bound.sparse = front_end("spca", self.p.scaler, seed, self.p)
        return bound

    def init(self):
        ends = {"pca": self.before, "spca": self.sparse}
        return nn.ModuleDict({n: Projected(*f, nn.Linear(len(f[0]), self.classes)) for n, f in ends.items()})

    def loss(self, net, x, y):
        return super().loss(net["pca"], x, y) + super().loss(net["spca"], x, y)

    def metrics(self, net):
        return {f"test_accuracy_{name}": super(LinearHeads, self).metrics(one)["test_accuracy"] for name, one in net.items()}

    def final(self, net):
        found = {"certificate_gap": 0.0}
        for name, one in net.items():
            for norm, (radius, flip) in fronts.certified(one, self.test[0]).items():
                found["certificate_gap"] = max(found["certificate_gap"], float(((radius - flip).abs() / radius).max()))
                found[f"radius_{norm}_{name}"] = radius.mean()
        return found


class Penalised(Classifier):
    """Sparse PCA with another penalty, attacked from one random start."""

    front = "spca"


class OtherPenalties(Stepwise):
    """The first three seeds at each of ALPHAS, one after the other; a tick for each, at step 0, 1, ..."""

    when = staticmethod(lambda p: p.alphas)

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.step, self.total = p, seeds, 0, len(ALPHAS) * p.steps

    def stepwise(self):
        for k, alpha in enumerate(ALPHAS):
            last, run = None, Run(Penalised(replace(self.p, alpha=alpha, restarts=1)), self.seeds[:3])
            for tick in run.stepwise():
                self.step += run.step > 0
                last = tick or last
                yield None
            rest = [{} for _ in self.seeds[3:]]
            yield Tick(k, [{"alpha": alpha, **metrics} for metrics in last.metrics] + rest)


ARMS = {
    "pca": Pca, "spca": Spca, "raw": Raw, "pca_fewer": PcaFewer, "pca_unscaled": PcaUnscaled, "spca_unscaled": SpcaUnscaled,
    "random_sparse": RandomSparse, "spca_dense_rotation": SpcaDenseRotation, "linear_heads": LinearHeads,
    "penalties": OtherPenalties,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"one image under attack": beside(__name__, "under_attack"), "components": beside(__name__, "components_of")}
TRY = {
    "draw a digit": Trial("image", answer=beside(__name__, "answer"), shape=(28, 28),
                          help="Does a head that sees only a few sparse sums read your digit as well as one that sees all pixels?",
                          arms=("raw", "pca", "spca", "random_sparse")),
}  # fmt: skip
