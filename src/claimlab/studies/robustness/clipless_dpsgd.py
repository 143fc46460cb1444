"""Clipless DP-SGD: train privately without clipping, on layers that bound every gradient. Is it faster, and unbiased?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.privacy import noise_for
from claimlab.studies.robustness import _clipless_dpsgd_cost as cost
from claimlab.studies.robustness import _clipless_dpsgd_method as bounded
from claimlab.studies.robustness._clipless_dpsgd_data import RADIUS, load, own_path
from claimlab.studies.robustness._clipless_dpsgd_net import Network, plan
from claimlab.study import Control, Paper, Trial, beside
from claimlab.training import Run, Stepwise, Task, Tick

PAPER = Paper(
    title="DP-SGD Without Clipping: The Lipschitz Neural Network Way",
    authors="Bethune, Massena, Boissin, Bellet, Mamalet, Prudent, Friedrich, Serrurier, Vigouroux", year=2023,
    url="https://arxiv.org/abs/2305.16202", theme="sensitivity", system="Clipless DP-SGD (lip-dp)",
    question="If every layer is Lipschitz by construction, the gradient of any example is bounded in advance: can one then "
    "train privately without per-example clipping, faster and without bias?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    epsilon: float = knob(8.0, "privacy budget; noise follows from it", low=0.5, high=50.0)
    batch: int = knob(256, "expected batch; larger means better ratio and more privacy cost a step", low=32, high=2000)
    temperature: float = knob(8.0, "tau of the loss: Lipschitz networks need it to fit", low=1.0, high=64.0, live=True)
    lr: float = knob(1.0, "step size in units of the bound; each arm multiplies it by its own factor", low=0.01, high=10.0,
                     live=True)  # fmt: skip
    strategy: str = knob("global", "one noise level or one for each layer", choices=("global", "local"))
    bjorck_rounds: int = knob(15, "0 leaves spectral normalisation only; fewer rounds are faster, below 8 the bound then uses the "
                              "measured norm", low=0, high=40)  # fmt: skip
    depth: int = knob(3, "layers; bounds stay flat for orthogonal layers and sag for others", low=1, high=8)
    loss: str = knob("softmax", "cross-entropy, multiclass hinge or cosine similarity", choices=("softmax", "hinge", "cosine"))
    clip_logits: float = knob(0.0, "longest slope of the loss at the logits, shortened example by example; 0 leaves them",
                              low=0.0, high=10.0)  # fmt: skip
    data: str = knob("digits", "5,000 of MNIST, or a simulated mixture in 20 dimensions", choices=("digits", "mixture"))
    rows: int = knob(4000, "private rows; the digits have 4,000 at most", low=300, high=20000)
    side: int = knob(14, "height and width of a digit", choices=(14, 28), unit="pixels")
    network: str = knob("dense", "dense layers, or small convolutions", choices=("dense", "conv"))
    width: int = knob(128, "units of the first hidden layer, twice those of the next; eight times the first channels", low=16, high=512)
    budgets: bool = knob(True, "also train for other epsilons, two seeds each, for the figure")
    timed: int = knob(100, "steps that are timed", low=3, high=1000)
    steps: int = knob(250, "optimiser steps", low=10, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(rows=400, batch=64, width=16, timed=3, budgets=False, steps=10, seeds=2)
    FULL = dict(side=28, network="conv", steps=500, seeds=10)
    CONTROL = Control(
        set=dict(depth=1), vanishes=("gnp-tightens",),
        why="With a single layer no gradient has to travel through anything: kept gradient is the input's norm in both arms, "
        "orthogonal or not. A difference here would be an error of measurement. Bounds, speed and accuracy stay as they are.",
    )  # fmt: skip

    def __post_init__(self):
        if self.batch > self.rows:
            raise ValueError(f"batch = {self.batch} and rows = {self.rows} do not go together: a batch is drawn from the rows")
        if self.network == "conv" and self.data == "mixture":
            raise ValueError("network = conv and data = mixture do not go together: the mixture has no pixels")
        if self.width % 16:
            raise ValueError(f"width = {self.width} is not allowed: 16 must divide it, so that every layer can be sorted in pairs")


CLAIMS = (
    Claim("bound-never-broken", "No per-example gradient norm of any layer exceeds its computed bound during training (largest "
          "ratio).", kind="bound", metric="max_norm_over_bound", arm="clipless", better="lower", margin=1.0001,
          source="theorem on parameter-wise Lipschitz constants"),
    Claim("faster-step", "A clipless step takes less time than a step that forms and clips per-example gradients, same widths and "
          "batch.", kind="paired", metric="log_step_time", arm="clipless", baseline="dpsgd", better="lower", margin=0.2,
          source="abstract; runtime figures"),
    Claim("faster-than-ghost-clipping", "It is also faster than clipping done cleverly, where per-example norms come from "
          "activations and cotangents and no per-example gradient is formed.", kind="paired", metric="log_step_time",
          arm="clipless", baseline="dpsgd_ghost", better="lower", margin=0.2,
          source="abstract (clipping is costly), put to the strongest rival"),
    Claim("gnp-tightens", "Gradient-norm-preserving layers (orthogonal weights, GroupSort) keep more of the gradient on its way "
          "back than merely 1-Lipschitz ones (spectral normalisation, ReLU).", kind="paired", metric="kept_gradient",
          arm="clipless", baseline="spectral_relu", better="higher", margin=0.05,
          source="abstract (maximise the gradient-to-noise ratio)"),
    Claim("competitive-accuracy", "At equal epsilon it is at most three points less accurate than DP-SGD with a tuned clipping "
          "norm.", kind="paired", metric="test_accuracy", arm="clipless", baseline="dpsgd", better="higher", margin=-0.03,
          source="privacy-utility figures"),
)  # fmt: skip
HONESTY = (
    "With 4000 private rows a budget of 8 is generous and accuracies are far below those of large data sets. Speed is compared "
    "with vmap and ghost clipping of dense layers on a CPU, not with tuned GPU libraries; for convolutions ghost norms cost "
    "more. Hyper-parameter search is not charged to the budget in any arm."
)
PROBE = 1000  # training examples whose gradients are looked at
KEPT = 300  # of them for kept_gradient


# ---- the arms: all of a seed begin with the same draw, see the same Poisson batches and the same standard normal noise


class Clipless(Task):
    """Orthogonal layers and GroupSort; the bound of every gradient is computed, and nothing is clipped.

    `keep` says how weights are kept 1-Lipschitz: orthogonal, spectral, free (bounds from current norms), or none (no bounds).
    `clip` is the clipping norm of the arms that clip, `pace` the factor on lr, `tau` the temperature of an arm that does not
    take the knob's. All were chosen on the development seeds 1000 and 1001.
    """

    ahead, keep, activation, private = 10, "orthogonal", staticmethod(bounded.group_sort), True
    clip, pace, tau = None, 1.0, None
    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(1, self.steps // 10))
    strategy = property(lambda self: self.p.strategy)

    def bind(self, seed):
        bound = type(self)(self.p)
        rows = load(seed, self.p.data, self.p.rows, self.p.side, own_path())
        bound.seed, bound.x, bound.y, bound.test, bound.classes = seed, rows.x, rows.y, rows.test, rows.classes
        if self.p.batch > (n := len(rows.x)):
            raise ValueError(f"batch = {self.p.batch} is not allowed: there are {n} private rows")
        bound.share, bound.delta = self.p.batch / n, 1 / (10 * n)
        bound.sigma = noise_for(self.p.epsilon, bound.share, self.steps, bound.delta) if self.private else 0.0
        return bound

    def optimizer(self, groups):
        return torch.optim.SGD(groups)

    def init(self):
        shape = tuple(self.x.shape[1:])
        net = Network(*plan(self.p.network, self.p.depth, self.p.width, shape, self.classes, self.activation), shape)
        net.maker = type(self)  # for views, which get the network alone
        if self.keep != "none":
            with torch.no_grad():
                for name, value in self.kept(net, "orthogonal" if self.keep == "free" else self.keep).items():
                    net.get_parameter(name).copy_(value)
        return net

    def kept(self, net, how):
        """The weights made 1-Lipschitz: of a convolution that is where sqrt(reads) ||W|| = 1."""
        fixed = [bounded.orthogonal(w.detach(), self.p.bjorck_rounds) if how == "orthogonal" else
                 w.detach() / bounded.power_norm(w.detach(), 40) for w in net.weights]  # fmt: skip
        return {f"weights.{k}": w / layer.reads**0.5 for k, (w, layer) in enumerate(zip(fixed, net.layers, strict=True))}

    def project(self, net):
        return self.kept(net, self.keep) if self.keep in ("orthogonal", "spectral") else {}

    def block(self, net, rng, step, n):
        # generators of their own for batches and noise: arms that need no noise see the same batches
        draw, normal = (torch.Generator().manual_seed(k) for k in torch.randint(2**62, (2,), generator=rng).tolist())
        rows, mask = bounded.poisson(n, len(self.x), self.share, draw)
        noise = torch.stack([self.noise(net, normal) for _ in range(n)])
        return self.x[rows.to(self.x.device)], self.y[rows.to(self.x.device)], mask, noise

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def noise(self, net, rng):
        """sigma times a standard normal number for each weight."""
        count = sum(weight.numel() for weight in net.weights)
        return self.sigma * torch.randn(count, generator=rng) if self.private else torch.zeros(count)

    def slopes_of(self, logits, y):
        return bounded.logit_slopes(self.p.loss, logits, y, self.tau or self.p.temperature, self.p.clip_logits)

    def bounds(self, net) -> Tensor:
        """How far one example can move the sum of gradients of each weight, [D]; from the norms as they are now."""
        if self.clip is not None:  # all weights together; in equal parts, so that both strategies come to the same
            return net.worst.new_full((len(net.weights),), self.clip / len(net.weights) ** 0.5)
        certain = self.p.bjorck_rounds if self.keep == "orthogonal" else 0
        roots = [layer.reads**0.5 for layer in net.layers]
        norms = [bounded.norm_bound(w.detach() * root, certain) / root for w, root in zip(net.weights, roots, strict=True)]
        slope = bounded.loss_slope(self.p.loss, net.outputs[-1][0], self.tau or self.p.temperature)
        slope = min(slope, self.p.clip_logits) if self.p.clip_logits else slope
        return torch.stack(bounded.sensitivities(net.steps, norms, net.worst.new_full((), RADIUS), slope))

    def summed(self, net, x, y, mask):
        """Losses [B] and the sum of gradients of each weight, clipped where the arm clips."""
        if self.clip is None:
            return bounded.plain_sum(net.steps, _weights(net), x, y, mask, self.slopes_of)
        return bounded.ghost_sum(net.steps, _weights(net), x, y, mask, net.outputs, self.slopes_of, self.clip)

    def gradients(self, net, x, y, mask, noise):
        losses, sums = self.summed(net, x, y, mask)
        found = bounded.released(sums, noise, self.bounds(net), self.p.batch, self.strategy)
        loss = (losses * mask).sum() / mask.sum().clamp_min(1)
        return loss, {f"weights.{k}": self.pace * g for k, g in enumerate(found)}

    # ---- what is measured; nothing of it is private

    @torch.no_grad()
    def accuracy(self, net) -> Tensor:
        """Share of test rows that `net` classifies right."""
        return (net(self.test[0]).argmax(1) == self.test[1]).float().mean()

    def metrics(self, net):
        weights, values = _weights(net), [torch.linalg.svdvals(w * k.reads**0.5) for w, k in zip(net.weights, net.layers, strict=True)]
        probe = self.x[:PROBE], self.y[:PROBE]
        _, slopes, inputs, cotangents = bounded.ghost_parts(net.steps, weights, *probe, net.outputs, self.slopes_of)
        norms = bounded.ghost_norms(inputs, cotangents)
        few = slopes[:KEPT].norm(dim=1).clamp_min(bounded.TINY) * RADIUS
        found = {"test_accuracy": self.accuracy(net), "kept_gradient": (norms[:, :KEPT] / few).mean()}
        for k, one in enumerate(values):
            found |= {f"largest_{k}": one.max(), f"median_{k}": one.median(), f"smallest_{k}": one.min()}
        return found | self.judged(net, norms, inputs, cotangents)

    def judged(self, net, norms, inputs, cotangents):
        """Norms against bounds, what clipping does to the mean, and the signal in the noise."""
        found, bounds = {}, self.bounds(net)
        if self.clip is None:
            net.worst.copy_(torch.maximum(net.worst, (norms / bounds[:, None]).max()))
            found["max_norm_over_bound"] = net.worst
            shares = norms.new_ones(norms.shape[1])
        else:
            shares = bounded.shortening(norms.square().sum(0).sqrt(), self.clip)
        mean, kept = (bounded.weighted(inputs, cotangents, part / len(shares)) for part in (torch.ones_like(shares), shares))
        if self.clip is not None:
            one, other = (torch.cat([g.flatten() for g in part]) for part in (mean, kept))
            found |= {"clipped_share": (shares < 1).float().mean(), "cosine": torch.cosine_similarity(one, other, 0)}
        if self.private:
            units = bounds.norm().expand(len(bounds)) if self.strategy == "global" else len(bounds) ** 0.5 * bounds
            for k, (g, unit) in enumerate(zip(kept, units, strict=True)):
                found[f"signal_to_noise_{k}"] = g.norm() * self.p.batch / (self.sigma * unit * g.numel() ** 0.5)
        return found

    def final(self, net):
        name = next((arm for arm in TIMED if ARMS[arm] is type(self)), "")
        return {"log_step_time": step_times(self.seed, self.p)[name]} if name else {}


def _weights(net) -> list[Tensor]:
    return [weight.detach() for weight in net.weights]


class NonPrivate(Clipless):
    private, pace, tau = False, 3.0, 32.0


class Local(Clipless):
    strategy = "local"


class SpectralRelu(Clipless):
    keep, activation, tau = "spectral", staticmethod(torch.relu), 32.0


class NoProjection(Clipless):
    keep = "free"


class Ghost(Clipless):
    keep, activation, clip, pace, tau = "none", staticmethod(torch.relu), 3.0, 3.0, 1.0


class PerExample(Ghost):
    """A step that forms the gradient of every example: what is timed."""

    def summed(self, net, x, y, mask):
        return bounded.clipped_sum(net.steps, _weights(net), x, y, mask, self.slopes_of, self.clip)


class Dpsgd(Ghost):
    """Trained through norms, which gives the same update; how far the two routes differ is recorded. Timed as PerExample."""

    def metrics(self, net):
        some = self.x[:64], self.y[:64], torch.ones_like(self.x[:64].flatten(1)[:, 0])
        ours, formed = (torch.cat([g.flatten() for g in one.summed(self, net, *some)[1]]) for one in (Ghost, PerExample))
        return super().metrics(net) | {"route_gap": (ours - formed).norm() / formed.norm().clamp_min(bounded.TINY)}


class DpsgdLipschitz(Clipless):
    clip, tau = 0.1, 32.0


# ---- what steps cost

TIMED = {"clipless": Clipless, "dpsgd": PerExample, "dpsgd_ghost": Ghost}


@lru_cache(maxsize=64)
def step_times(seed: int, p: Params) -> dict[str, float]:
    """log of the median seconds of a step of each arm in TIMED, on one thread, taken in turn."""
    found = cost.seconds({name: task(p) for name, task in TIMED.items()}, seed, p.batch, p.timed)
    return {name: math.log(sorted(times)[len(times) // 2]) for name, times in found.items()}


class Cost:
    """Milliseconds and peak bytes of a step at one batch after the other, of the first seed; a tick for each batch."""

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.step = p, seeds, 0
        n = len(load(seeds[0], p.data, p.rows, p.side, own_path()).x)
        self.batches = [b for b in (32, 64, 128, 256, 512, 1024) if b <= n and (b <= 64 or p.timed >= 20)]
        self.total = len(self.batches)

    def ticks(self):
        for batch in self.batches:
            tasks = {name: task(self.p) for name, task in TIMED.items()}
            found = {"batch": float(batch)}
            for name, times in cost.seconds(tasks, self.seeds[0], batch, max(3, self.p.timed // 10), 3).items():
                found[f"milliseconds_{name}"] = 1000 * sorted(times)[len(times) // 2]
                found[f"megabytes_{name}"] = cost.peak_bytes(tasks[name], self.seeds[0], batch) / 2**20
            self.step += 1
            yield Tick(self.step, [found, *[{} for _ in self.seeds[1:]]])


class Budgets(Stepwise):
    """The first two seeds at other epsilons, one after the other, with the settings chosen for 8; a tick for each."""

    trained = {"dpsgd": Ghost, "clipless": Clipless}

    when = staticmethod(lambda p: p.budgets)
    epsilons = (1.0, 3.0, 20.0)

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.step = p, seeds, 0
        self.total = len(self.epsilons) * len(self.trained) * p.steps

    def stepwise(self):
        for k, epsilon in enumerate(self.epsilons, 1):
            found = [{"epsilon": epsilon} for _ in self.seeds[:2]]
            for name, task in self.trained.items():
                run = Run(task(replace(self.p, epsilon=epsilon)), self.seeds[:2], every=self.p.steps)
                while run.step < run.total:
                    run.advance()
                    self.step += 1
                    yield None
                for metrics, member, bound in zip(found, run.members, run.tasks, strict=True):
                    metrics[f"test_accuracy_{name}"] = float(bound.accuracy(member))
            yield Tick(k, found + [{} for _ in self.seeds[2:]])


ARMS = {
    "non_private": NonPrivate, "dpsgd": Dpsgd, "dpsgd_ghost": Ghost, "dpsgd_lipschitz": DpsgdLipschitz, "clipless": Clipless,
    "clipless_local": Local, "spectral_relu": SpectralRelu, "no_projection": NoProjection, "cost": Cost,
    "budgets": Budgets,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"gradient norms under the bound": beside(__name__, "violins_of"), "singular values": beside(__name__, "singular_values_of"),
         "first-layer filters": beside(__name__, "filters_of")}  # fmt: skip
TRY = {
    "draw a digit": Trial("image", answer=beside(__name__, "answer"), shape=(28, 28),
                          help="How much surer of your digit is a network that was trained without noise?",
                          arms=("non_private", "dpsgd", "clipless", "spectral_relu")),
}  # fmt: skip
