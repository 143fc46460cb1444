"""mixup: train on blends of two examples and of their labels. Does it stop a network from memorising wrong labels?"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from claimlab import data
from claimlab.claims import Claim
from claimlab.data.own import own_images
from claimlab.params import knob
from claimlab.study import Control, Paper, Trial, beside
from claimlab.training import Supervised, Task

PAPER = Paper(
    title="mixup: Beyond Empirical Risk Minimization", authors="Zhang, Cisse, Dauphin, Lopez-Paz", year=2018,
    url="https://arxiv.org/abs/1710.09412", theme="sensitivity", system="mixup",
    question="Does training on blends of two examples and of their labels keep a network from memorising wrong labels "
    "and from breaking under small attacks?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    alpha: float = knob(8.0, "Beta(a, a) blending strength; 0 is plain training", low=0.0, high=32.0, live=True)
    noise: float = knob(0.4, "share of training labels replaced at random", low=0.0, high=0.8, unit="fraction")
    weight_decay: float = knob(0.0001, "decay; each arm multiplies it by its own factor", low=0.0, high=0.01, live=True)
    fgsm_eps: float = knob(0.1, "size of the single-step attack on pixels in [0,1]", low=0.0, high=0.4)
    steps: int = knob(1500, "optimiser steps; longer training gives plain training time to memorise", low=20, high=10000)
    per_pair_lambda: bool = knob(False, "one lambda a minibatch (paper) or one a pair")
    images: int = knob(900, "training images, 4 of 9 of them in the clean setting", low=100, high=1500)
    target: str = knob("ring", "where the GAN's eight modes lie", choices=("ring", "spiral"))
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=30, seeds=2, images=200)
    FULL = dict(steps=6000, seeds=10, target="spiral")
    CONTROL = Control(
        set=dict(noise=0.0), vanishes=("memorises-less", "fits-fewer-wrong-labels"),
        why="Without wrong labels there is nothing to memorise; a gain of the same size here would be plain regularisation.",
    )  # fmt: skip


CLAIMS = (
    Claim("memorises-less", "With 40 percent wrong labels in the training set mixup tests better at the end of training than "
          "plain training.", kind="paired", metric="test_accuracy_last", arm="mixup", baseline="erm", better="higher",
          margin=0.03, source="abstract; Table 2"),
    Claim("fits-fewer-wrong-labels", "mixup agrees with fewer of the wrong training labels at the end of training.",
          kind="paired", metric="wrong_label_fit", arm="mixup", baseline="erm", better="lower", margin=0.10,
          source="Table 2, training error on corrupted labels"),
    Claim("blunts-fgsm", "Trained on clean labels, mixup keeps more accuracy under a white-box single-step attack.",
          kind="paired", metric="fgsm_accuracy", arm="mixup", baseline="erm", better="higher", margin=0.03, source="Table 3 (a)"),
    Claim("labels-must-mix", "Blending the inputs but keeping one label is worse than blending both.",
          kind="paired", metric="test_accuracy_clean", arm="mixup", baseline="inputs_only", better="higher", margin=0.01,
          source="ablation Table 5 (clean labels), input-only rows"),
    Claim("steadier-gan", "A discriminator trained on blends of real and generated points yields generators that cover the "
          "target better.", kind="paired", metric="gan_coverage", arm="gan_mixup", baseline="gan", better="higher", margin=0.05,
          source="section 3.8; Figure 5"),
)  # fmt: skip
HONESTY = (
    "Digits and a small perceptron stand in for CIFAR and deep residual networks; the size of the effect is not the paper's, "
    "and the ImageNet, speech and tabular results are not tested. FGSM only: stronger attacks would lower both arms, and "
    "mixup is no defence against them."
)


# ---- the method: B examples a minibatch, D numbers an image, C classes; any axes in front


def beta(alpha: float, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """lambda ~ Beta(alpha, alpha): G / (G + G') of two Gamma(alpha) draws. alpha = 0 gives 1, which is plain training."""
    if alpha == 0:
        return torch.ones(shape)
    g = torch._standard_gamma(torch.full((2, *shape), alpha, dtype=torch.float64), generator=rng)
    return (g[0] / (g[0] + g[1]).clamp_min(1e-300)).float()


def mix(x: Tensor, y: Tensor, order: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's equation, section 2: x~ = lam x_i + (1 - lam) x_j and y~ = lam y_i + (1 - lam) y_j with j = order[i].

    x [..., B, D], y [..., B, C] one-hot, order [..., B], lam [..., 1] (one a minibatch) or [..., B] (one a pair).
    """
    lam, partner = lam.unsqueeze(-1), order.unsqueeze(-1)
    x_j, y_j = torch.take_along_dim(x, partner, -2), torch.take_along_dim(y, partner, -2)
    return lam * x + (1 - lam) * x_j, lam * y + (1 - lam) * y_j


def mix_inputs(x: Tensor, y: Tensor, order: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Ablation: the blended image keeps the one-hot label of its larger part."""
    return mix(x, y, order, lam)[0], mix(x, y, order, (lam >= 0.5).to(lam.dtype))[1]


def mix_same_class(x: Tensor, y: Tensor, order: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Ablation: partners of the same class only. `order` becomes a random permutation inside each class."""
    labels = y.argmax(-1)
    place = labels.argsort(dim=-1, stable=True)  # k-th in class order
    shuffled = torch.take_along_dim(order, torch.take_along_dim(labels, order, -1).argsort(dim=-1, stable=True), -1)
    return mix(x, y, torch.zeros_like(order).scatter(-1, place, shuffled), lam)


def smooth(x: Tensor, y: Tensor, order: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Label smoothing 0.1, inputs untouched."""
    return x, 0.9 * y + 0.1 / y.shape[-1]


def plain(x: Tensor, y: Tensor, order: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Empirical risk minimisation: the minibatch as it is."""
    return x, y


def fgsm(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """x_adv = clip(x + eps sign(grad_x CE(net(x), y)), 0, 1) (Goodfellow 2015); x [N, D] in [0, 1], y [N] labels.

    In float64: the float32 gradient of a very sure network rounds to zero, which would pass for robustness.
    """
    with torch.enable_grad():
        exact = x.detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(copy.deepcopy(net).double()(exact), y), exact)
    return (x + eps * slope.sign().to(x.dtype)).clamp(0, 1)


def blended_critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, lam: Tensor) -> Tensor:
    """Section 3.8: bce(d(lam x + (1 - lam) g(z)), lam), one lam a point. real, fake [..., B, 2], lam [..., B, 1]."""
    return binary_cross_entropy_with_logits(critic(lam * real + (1 - lam) * fake), lam)


def plain_critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, lam: Tensor) -> Tensor:
    """The ordinary discriminator: real points are 1, generated points are 0."""
    one, zero, bce = torch.ones_like(lam), torch.zeros_like(lam), binary_cross_entropy_with_logits
    return bce(critic(real), one) + bce(critic(fake), zero)


class Perceptron(nn.Module):
    """`copies` perceptrons of equal `sizes` side by side, torch's default initial law: [*copies, B, in] -> [*copies, B, out].

    Weights lie as [in, out], which spares a transposed copy of every gradient. `masks` (dropout) multiply the hidden layers.
    """

    def __init__(self, *sizes: int, copies: tuple[int, ...] = ()):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.empty(*copies, a, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)
        self.biases = nn.ParameterList(torch.empty(*copies, 1, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < len(self.weights) - 1:
                x = x.relu() * masks[i] if masks else x.relu()
        return x


# ---- data: all of a seed follows from (seed, images, noise, file); CLAIMLAB_DATA names your own .npz or CIFAR-10 .bin file


@lru_cache(maxsize=2)
def pictures(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, D] float32 in [0, 1] and labels [N]: the digits, or your own file (ValueError where it does not fit)."""
    x, y = own_images(path) if path else data.digits()
    return x.reshape(len(x), -1), y


@dataclass(frozen=True)
class Split:
    """One seed's data as tensors. `given` are the training labels that the noisy setting shows, `true` the right ones."""

    x: Tensor
    given: Tensor
    true: Tensor
    test: tuple[Tensor, Tensor]
    classes: int


@lru_cache(maxsize=32)
def split(seed: int, images: int, noise: float, path: str = "") -> Split:
    """Stratified training and test images of `seed`; a share `noise` of the training labels is redrawn from all classes."""
    x, y = pictures(path)
    rng = np.random.default_rng(seed)
    train, test = data.stratified(y, images, rng)
    given, classes = y[train].copy(), int(y.max()) + 1
    redrawn = rng.permutation(images)[: round(noise * images)]
    given[redrawn] = rng.integers(classes, size=len(redrawn))
    test = test[:2000]  # enough for an accuracy, where an own file is large
    return Split(*map(torch.from_numpy, (x[train], given, y[train])), tuple(map(torch.from_numpy, (x[test], y[test]))), classes)


def modes(target: str) -> Tensor:
    """Centres [8, 2] of the GAN's target: a ring of radius 2, or a spiral that opens from 0.5 to 2.25."""
    turn = torch.arange(8) * (2 * torch.pi / 8 if target == "ring" else 0.9)
    radius = torch.full((8,), 2.0) if target == "ring" else 0.5 + 0.25 * torch.arange(8)
    return radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1)


# ---- the arms


class Classifier(Supervised):
    """A noisy and a clean classifier of one seed, trained side by side as two players. All arms see the same minibatches,
    partners and lambdas; an arm is its `blend`, its dropout rate and the factors by which it multiplies the weight decay.

    The factors are each arm's best of 1, 100 and 10,000 on the development seeds 1000 to 1002, by test accuracy.
    """

    every = property(lambda self: max(5, self.steps // 25))
    settings: tuple[str, ...] = ("noisy", "clean")
    blend = staticmethod(plain)
    dropout = 0.0
    decay = {"noisy": 1e4, "clean": 1.0}

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.split = split(seed, self.p.images, self.p.noise, os.environ.get("CLAIMLAB_DATA", ""))
        few = slice(round(self.p.images * 4 / 9))
        bound.noisy = (bound.split.x, bound.split.given)
        bound.clean = (bound.split.x[few], bound.split.true[few])
        bound.test = bound.split.test
        return bound

    def init(self):
        width, classes = self.noisy[0].shape[1], self.split.classes
        nets = {name: Perceptron(width, 256, 256, classes) for name in ("noisy", "clean")}
        return nn.ModuleDict({name: nets[name] for name in self.settings})

    def groups(self):
        # at most 1, the end of the grid: a tenth of a percent of every weight a step
        return {name: {"weight_decay": min(1.0, self.p.weight_decay * self.decay[name])} for name in self.settings}

    def block(self, net, rng, step, n):
        # a generator of its own for each setting and block: arms that draw more or less still share every common draw
        seeds = torch.randint(2**62, (2,), generator=rng).tolist()
        rngs = {name: torch.Generator().manual_seed(seed) for name, seed in zip(("noisy", "clean"), seeds, strict=True)}
        return tuple(part for name in self.settings for part in self.draw(name, rngs[name], n))

    def draw(self, name, rng, n):
        """n minibatches of one setting: blended images [n, B, D], soft targets [n, B, C], dropout masks [n, B, 256]."""
        x, y = getattr(self, name)
        rows = torch.randint(len(x), (n, self.batch_size), generator=rng)
        order = torch.rand(n, self.batch_size, generator=rng).argsort(1)
        alpha = self.p.alpha if name == "noisy" else min(self.p.alpha, 0.4)  # strong blends for noise, weak for clean labels
        lam = beta(alpha, (n, self.batch_size if self.p.per_pair_lambda else 1), rng)
        rows, order, lam = (part.to(x.device) for part in (rows, order, lam))
        blended = self.blend(x[rows], one_hot(y[rows], self.split.classes).float(), order, lam)
        kept = [torch.rand(n, self.batch_size, 256, generator=rng) >= self.dropout for _ in range(2)] if self.dropout else []
        return *blended, *(mask / (1 - self.dropout) for mask in kept)

    def players(self):
        return {name: partial(self.soft_loss, name) for name in self.settings}

    def soft_loss(self, name, net, *batch):
        """Cross-entropy with soft targets, - sum_c y~_c log softmax(f(x~))_c, on this setting's part of the batch."""
        size, at = len(batch) // len(self.settings), self.settings.index(name)
        x, target, *masks = batch[at * size : (at + 1) * size]
        return cross_entropy(net[name](x, *masks), target)

    def metrics(self, net):
        x, y = self.test
        answer = net["noisy"](self.noisy[0]).argmax(1)
        wrong = self.noisy[1] != self.split.true.to(answer.device)
        fit = ((answer == self.noisy[1]) & wrong).sum() / wrong.sum().clamp_min(1)  # 0 where no label is wrong
        found = {"test_accuracy": accuracy(net["noisy"], x, y), "wrong_label_fit": fit}
        return found | ({"test_accuracy_clean": accuracy(net["clean"], x, y)} if "clean" in self.settings else {})

    def final(self, net):
        x, y = self.test
        nets = {"test_accuracy_last": (net["noisy"], x)}
        if "clean" in self.settings:
            nets["fgsm_accuracy"] = (net["clean"], fgsm(net["clean"], x, y, self.p.fgsm_eps))
        return {name: accuracy(*asked, y) for name, asked in nets.items()}


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Share of x [N, D] that `net` gives the label y [N]."""
    return (net(x).argmax(1) == y).float().mean()


class Erm(Classifier):
    decay = {"noisy": 1e4, "clean": 1e4}


class Dropout(Classifier):
    dropout = 0.5


class Smoothing(Classifier):
    settings = ("noisy",)
    blend = staticmethod(smooth)


class InputsOnly(Classifier):
    decay = {"noisy": 1e4, "clean": 1e2}
    blend = staticmethod(mix_inputs)


class SameClass(Classifier):
    settings = ("noisy",)
    blend = staticmethod(mix_same_class)


class Mixup(Classifier):
    blend = staticmethod(mix)


class MixupDropout(Classifier):
    decay = {"noisy": 1e2}
    settings = ("noisy",)
    blend = staticmethod(mix)
    dropout = 0.5


class Gan(Task):
    """Four independent pairs of critic and generator a seed, as one stacked net; their coverage is averaged."""

    lr, batch_size, ahead, pairs, alpha = 1e-3, 64, 20, 4, 0.2
    critic_loss = staticmethod(plain_critic_loss)

    steps = property(lambda self: self.p.steps * 5 // 3)
    every = property(lambda self: max(5, self.steps // 25))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.modes = modes(self.p.target)
        bound.probe = torch.randn(self.pairs, 2000, 2, generator=torch.Generator().manual_seed(seed))
        return bound

    def init(self):
        sizes = {"critic": (2, 64, 64, 1), "generator": (2, 64, 64, 2)}
        return nn.ModuleDict({name: Perceptron(*size, copies=(self.pairs,)) for name, size in sizes.items()})

    def optimizer(self, groups):
        return torch.optim.Adam(groups, betas=(0.5, 0.999), fused=True)

    def block(self, net, rng, step, n):
        shape = n, self.pairs * self.batch_size
        side = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        lam = beta(self.alpha, (*shape, 1), side)
        centre = self.modes.cpu()[torch.randint(8, shape, generator=rng)]
        real = centre + 0.05 * torch.randn(*shape, 2, generator=rng)
        return real, lam, torch.randn(*shape, 2, generator=rng), torch.randn(*shape, 2, generator=rng)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def by_pair(self, *batch):
        """Every pair's own 64 points: [256, .] -> [4, 64, .]."""
        return [part.unflatten(0, (self.pairs, self.batch_size)) for part in batch]

    def players(self):
        return {"critic": self.judge_loss, "generator": self.fool_loss}

    def judge_loss(self, net, *batch):
        real, lam, z, _ = self.by_pair(*batch)
        return self.pairs * self.critic_loss(net["critic"], real, net["generator"](z), lam)

    def fool_loss(self, net, *batch):
        """The ordinary non-saturating loss: bce(d(g(z)), 1)."""
        answer = net["critic"](net["generator"](self.by_pair(*batch)[3]))
        return self.pairs * binary_cross_entropy_with_logits(answer, torch.ones_like(answer))

    def metrics(self, net):
        return {"gan_coverage": coverage(net["generator"](self.probe), self.modes).mean()}


def coverage(points: Tensor, centres: Tensor) -> Tensor:
    """Share of the 8 modes that hold at least 1.25 % of `points` [K, N, 2] within 0.2 of their centre; [K]."""
    held = (torch.cdist(points, centres.expand(len(points), -1, -1)) < 0.2).float().mean(1)
    return (held >= 0.0125).float().mean(1)


class GanMixup(Gan):
    critic_loss = staticmethod(blended_critic_loss)


ARMS = {
    "erm": Erm, "dropout": Dropout, "smoothing": Smoothing, "inputs_only": InputsOnly, "same_class": SameClass, "mixup": Mixup,
    "mixup_dropout": MixupDropout, "gan": Gan, "gan_mixup": GanMixup,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "decision boundary": beside(__name__, "boundary"),
    "between two images": beside(__name__, "between_two"),
    "generated points": beside(__name__, "generated"),
}
TRY = {
    "draw a digit": Trial("image", answer=beside(__name__, "answer"), shape=(28, 28),
                          help="Each network was trained with wrong labels; do they agree on your digit?",
                          arms=("erm", "dropout", "smoothing", "inputs_only", "same_class", "mixup", "mixup_dropout")),
}  # fmt: skip
