"""Parity of k hidden bits among n: which network finds them with the fewest parameters, and must its attention be learned?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.boolean import every_input, walsh
from claimlab.studies.representation import _attention_parity_data as data
from claimlab.studies.representation import _attention_parity_method as method
from claimlab.studies.representation._attention_parity_method import Attention, Hidden, Network, parity, zigzag
from claimlab.studies.representation._attention_parity_search import Search, slope
from claimlab.study import Control, Paper, beside
from claimlab.training import Task, Tick

PAPER = Paper(
    title="Attention Learning is Needed to Efficiently Learn Parity Function", authors="Han, Ghoshdastidar", year=2025,
    url="https://arxiv.org/abs/2502.07553", theme="sensitivity", system="attention parity",
    question="Which network finds the k switches that matter among n with the fewest parameters, and does it have to learn where "
    "to look?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    n: int = knob(32, "length of the input", low=8, high=256, unit="bits")
    k: int = knob(3, "how many bits decide; each one makes the signal fainter", low=1, high=5, unit="bits")
    heads: int = knob(3, "attention heads; fewer than k cannot see all bits", low=1, high=16)
    final_sharpness: float = knob(256.0, "how sharply a head may focus at the end; n squared over 4 singles out one position",
                                  low=1.0, high=4096.0, live=True)  # fmt: skip
    attention_lr: float = knob(0.01, "learning rate of the heads; 0 freezes them, 0.1 already lets two heads settle on one bit",
                               low=0.0, high=0.3, live=True)  # fmt: skip
    train_ffn: bool = knob(True, "train the zig-zag read-out as well")
    flip_noise: float = knob(0.0, "share of wrong training labels", low=0.0, high=0.4, unit="fraction")
    steps: int = knob(1500, "optimiser steps of a trained arm; each trial of the width search takes 2/5 of them", low=20, high=10000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(n=8, k=2, heads=2, final_sharpness=16.0, steps=100, seeds=2)
    FULL = dict(n=64, k=4, heads=4, final_sharpness=1024.0, steps=3000, seeds=10)
    CONTROL = Control(
        set=dict(k=1), vanishes=("cheaper-than-ffnn",),
        why="With one relevant bit the task is linear and any small network learns it at once.",
    )  # fmt: skip


CLAIMS = (
    Claim("attention-finds-the-bits", "A transformer with k trainable heads and fixed positions learns k-parity to at least 95 "
          "percent test accuracy.", kind="bound", metric="test_accuracy", arm="learned_attention", better="higher", margin=0.95,
          source="main theorem on trainable heads"),
    Claim("heads-must-learn", "With the same number of heads frozen at random, training the feed-forward part alone does much "
          "worse.", kind="paired", metric="test_accuracy", arm="learned_attention", baseline="fixed_attention", better="higher",
          margin=0.15, source="theorem on fixed heads"),
    Claim("cheaper-than-ffnn", "At equal parameter count the transformer beats a one-hidden-layer network.", kind="paired",
          metric="test_accuracy", arm="learned_attention", baseline="ffnn_matched", better="higher", margin=0.15,
          source="abstract; lower bound for feed-forward networks"),
    Claim("ffnn-grows-with-n", "The smallest feed-forward network that reaches 95 percent needs parameters growing at least like "
          "n.", kind="rate", metric="slope_params_vs_n", arm="ffnn_smallest", better="higher", margin=0.8, source="Omega(n) theorem"),
    Claim("hand-set-exact", "With hand-set heads the O(k) construction computes parity on every one of the 2^n inputs.",
          kind="equality", metric="max_error_all_inputs", arm="hand_set", better="lower", margin=0.001,
          source="expressivity construction"),
)  # fmt: skip
HONESTY = (
    "The theorems are about existence and about idealised gradient steps; here ordinary Adam runs at n up to 64, and the lower "
    "bound for feed-forward networks follows partly from counting one weight per input and neuron. The exact embedding of the "
    "paper may differ; only a fixed one of constant dimension is needed for the count."
)
WIDTHS = (2, 4, 8, 16, 32, 64, 128, 256)
GOOD = 0.95


# ---- the arms that train


class Learner(Task):
    """Hinge loss on fresh bits; every arm of a seed sees the same bits. An arm is its network and its learning rate.

    The rate of the read-out was chosen for each arm from 1e-2, 3e-3, 1e-3 on development seeds.
    """

    lr, ahead, batch_size = 3e-3, 20, 1024
    annealed = False
    steps = property(lambda self: self.p.steps)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.lesson = data.lesson(seed, self.p.n, self.p.k, data.source())
        bound.test = bound.lesson.test
        return bound

    def init(self):
        return Network(self.lesson.secret, *self.parts())

    def parts(self):
        """Read-out, and attention if there is one."""
        raise NotImplementedError

    def sharpness(self, step: int) -> float:
        """tau_t = tau_end^(t / T) where heads are learned, from 1 to tau_end = final_sharpness; else tau_end throughout."""
        return self.p.final_sharpness ** (step / self.steps if self.annealed else 1.0)

    def block(self, net, rng, step, n):
        x, y = self.draw(rng, n)
        wrong = torch.rand(n, self.batch_size, generator=rng) < self.p.flip_noise
        return x, torch.where(wrong, -y, y), torch.tensor([self.sharpness(step + i) for i in range(n)])

    def draw(self, rng, n):
        """n minibatches of bits [n, B, bits] with their parities [n, B]."""
        if self.lesson.rows:
            x, y = self.lesson.rows
            rows = torch.randint(len(x), (n, self.batch_size), generator=rng)
            return x[rows], y[rows]
        x = torch.randint(2, (n, self.batch_size, self.p.n), generator=rng, dtype=torch.float32).mul_(2).sub_(1)
        return x, parity(x, self.lesson.secret)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y, tau):
        """Mean of max(0, 1 - y f(x))."""
        return (1 - y * net(x, tau)).relu().mean()

    def metrics(self, net):
        x, y = self.test
        right = (net(x, self.p.final_sharpness) * y > 0).float().mean()
        known = net.attention is not None and len(net.secret)
        return {"test_accuracy": right} | ({"bits_found": method.found(net, self.p.final_sharpness)} if known else {})

    def final(self, net):
        return {"parameters": method.count(net)}


class FixedAttention(Learner):
    """k heads at random angles, as sharp as they will ever be; only the network on the vector of what they see is trained."""

    lr = 1e-2

    def count_heads(self) -> int:
        return self.p.heads

    def width(self) -> int:
        """Ten times the parameters of learned_attention, or a little more."""
        return -(-10 * learned_size(self.p.heads) // (self.p.heads + 2))

    def parts(self):
        heads = random_heads(self.count_heads(), self.p.n, trained=False)
        return Hidden(self.count_heads(), self.width()), heads


class FixedMany(FixedAttention):
    """n such heads."""

    lr = 3e-3

    def count_heads(self):
        return self.p.n

    def width(self):
        return WIDTHS[-1]


class LearnedAttention(Learner):
    annealed = True

    def parts(self):
        heads = self.heads()
        return zigzag(self.p.heads).requires_grad_(self.p.train_ffn), heads

    def init(self):
        return Network(self.lesson.secret, *self.parts(), add=True)

    def heads(self):
        return random_heads(self.p.heads, self.p.n)

    def groups(self):
        return {"attention": {"lr": self.p.attention_lr}}


class FreeScores(LearnedAttention):
    """The same heads at the start, with a score of its own for each position: positions are one-hot codes."""

    def heads(self):
        start = random_heads(self.p.heads, self.p.n)
        return Attention((start.query @ start.codes.T).detach(), torch.eye(self.p.n))


class FfnnWide(Learner):
    width = WIDTHS[-1]

    def parts(self):
        return (Hidden(self.p.n, self.width),)


class FfnnMatched(FfnnWide):
    @property
    def width(self):
        return max(1, -(-(learned_size(self.p.heads) - 1) // (self.p.n + 2)))


class FfnnPruned(FfnnWide):
    """L1 on the first layer; after the last step its small weights are set to zero and the rest is counted."""

    lr, penalty, share = 1e-2, 1e-4, 0.3  # share: weights below this part of the largest are small

    def loss(self, net, x, y, tau):
        return super().loss(net, x, y, tau) + self.penalty * net.readout.weight.abs().sum()

    def final(self, net):
        x, y = self.test
        small, left = method.pruned(net.readout, self.share)
        return super().final(net) | {"pruned_accuracy": (small(x) * y > 0).float().mean(), "parameters_left": left}


def random_heads(h: int, n: int, trained: bool = True) -> Attention:
    """h heads whose a_i are uniform on the unit circle, drawn from torch's generator (which holds the member's seed)."""
    a = torch.randn(h, 2)
    return Attention(a / a.norm(dim=1, keepdim=True), method.positions(n), trained)


def learned_size(h: int) -> int:
    """Parameters of learned_attention: 2 h for the heads, 3 (2 h + 2) + 1 for the read-out; n does not occur."""
    return 2 * h + 3 * (2 * h + 2) + 1


# ---- the smallest feed-forward network, and the heads set by hand


class Trial(FfnnWide):
    """One width at one length in the search."""

    lr, batch_size = 1e-2, 512
    steps = property(lambda self: max(1, self.p.steps * 2 // 5))
    every = property(lambda self: self.steps)

    def __init__(self, params, width):
        super().__init__(params)
        self.width = width

    def bind(self, seed):
        bound = Trial(self.p, self.width)
        bound.lesson = data.lesson(seed, self.p.n, self.p.k)
        bound.test = bound.lesson.test
        return bound


def lengths(p: Params) -> list[int]:
    """8, 16, ... up to twice n, and at most 256; simulated bits whatever file the other arms learn from."""
    return [n for n in (8, 16, 32, 64, 128, 256) if n <= max(16, 2 * p.n)]


def ffnn_smallest(p: Params, seeds: list[int]) -> Search:
    """Parameters of the first of WIDTHS that reaches 95 percent, for each length; slope on log-log axes, NaN if none did."""

    def sums_up(smallest, seed):
        sizes = {n: width[seed] and width[seed] * (n + 2) + 1 for n, width in smallest.items()}
        each = {f"parameters_at_{n}": float("nan") if size is None else size for n, size in sizes.items()}
        return each | {"slope_params_vs_n": slope(list(sizes), list(sizes.values()))}

    return Search(lambda n, width: Trial(replace(p, n=n), width), lengths(p), WIDTHS, seeds, metric="test_accuracy", good=GOOD,
                  sums_up=sums_up)  # fmt: skip


def construct(secret: torch.Tensor, n: int) -> Network:
    """The O(k) construction in float64: head i points at the i-th secret position, and the zig-zag reads the sum."""
    codes = method.positions(n)
    return Network(secret, zigzag(len(secret)).double(), Attention(codes[secret], codes), add=True)


class HandSet:
    """No training: `construct` on every input of min(n, 12) bits, with tau = n^2. One tick."""

    total = 1

    def __init__(self, p: Params, seeds: list[int]):
        self.n = min(p.n, 12)
        self.members = [construct(data.hidden(seed, self.n, p.k), self.n) for seed in seeds]
        self.step, self.seconds = 0, 0.0

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, "samples": self.step * 2**self.n, "forward_calls": self.step, "seconds": self.seconds}

    def ticks(self):
        if not self.step:
            began = time.perf_counter()
            with torch.no_grad():
                told = [self.measure(net) for net in self.members]
            self.step, self.seconds = 1, time.perf_counter() - began
            yield Tick(1, told)

    def measure(self, net: Network) -> dict[str, float]:
        x = every_input(self.n)
        f, y = net(x, self.n**2), parity(x, net.secret)
        at = int((1 << net.secret).sum())
        return {"max_error_all_inputs": float((f - y).abs().max()), "test_accuracy": float((f * y > 0).double().mean()),
                "walsh_on_secret": float(walsh(f)[at]), "parameters": method.count(net)}  # fmt: skip

    def state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.seconds}

    def load(self, state: dict[str, float]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


ARMS = {
    "learned_attention": LearnedAttention, "fixed_attention": FixedAttention, "fixed_many": FixedMany, "ffnn_matched": FfnnMatched,
    "ffnn_wide": FfnnWide, "ffnn_smallest": ffnn_smallest, "ffnn_pruned": FfnnPruned, "free_scores": FreeScores,
    "hand_set": HandSet,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "attention over the positions": beside(__name__, "attention_view"),
    "sensitivity by position": beside(__name__, "sensitivity_view"),
}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Attention", "Network", "Params", "construct", "figures", "learned_size",
           "parity", "zigzag"]  # fmt: skip
