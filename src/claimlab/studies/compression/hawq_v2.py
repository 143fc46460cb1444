"""HAWQ-V2: give each layer the bits that its average curvature asks for. Does the curvature know, without trying?"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.compression import _hawq_v2_data as files
from claimlab.studies.compression import _hawq_v2_method as rule
from claimlab.studies.compression import _hawq_v2_net as nets
from claimlab.study import Control, Paper, beside
from claimlab.training import Supervised

PAPER = Paper(
    title="HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
    authors="Dong, Yao, Cai, Arfeen, Gholami, Mahoney, Keutzer", year=2019, url="https://arxiv.org/abs/1911.03852",
    theme="sensitivity", system="HAWQ-V2",
    question="Does the average curvature of a layer tell how many bits it needs, without trying the exponentially many settings?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    budget: float = knob(3.0, "average size; 2 leaves every arm the same network, the frontier is read at this point", low=2.0,
                         high=8.0, unit="bits a weight")  # fmt: skip
    probes: int = knob(50, "Hutchinson vectors; few make the order noisy", low=1, high=500)
    hessian_batch: int = knob(256, "images behind the Hessian", low=16, high=1000, unit="images")
    activation_bits: int = knob(4, "average bits of activations", low=2, high=8)
    tune_steps: int = knob(20, "fine-tuning after quantisation; 0 shows the raw damage", low=0, high=1000)
    convergence: int = knob(400, "training before measuring: stop early and watch the theory fail", low=20, high=5000, unit="steps")
    images: int = knob(1000, "training images, and test images at most", low=100, high=1000)
    iterations: int = knob(15, "power iterations for the top eigenvalue of a layer", low=1, high=100)
    activation: str = knob("relu", "ReLU, or SiLU with smooth second derivatives", choices=("relu", "silu"))
    steps: int = knob(5000, "upper limit on the training steps", low=20, high=5000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=20, probes=4, hessian_batch=32, tune_steps=0, iterations=2, images=100, seeds=2)
    FULL = dict(convergence=2000, probes=200, tune_steps=100, seeds=10, budget=4.0)
    CONTROL = Control(
        set=dict(convergence=20, budget=8.0), vanishes=("trace-ranks-layers", "beats-uniform", "beats-error-only"),
        why="Far from a minimum the second-order expansion has no ground to stand on; at eight bits everywhere every arm is the "
        "same network.",
    )  # fmt: skip


CLAIMS = (
    Claim("trace-ranks-layers", "Average Hessian trace times squared quantisation error orders layers by the true loss increase "
          "(Spearman) better than the top eigenvalue times the same error does.", kind="paired", metric="rank_correlation",
          arm="trace", baseline="top_eigenvalue", better="higher", margin=0.05,
          source="abstract point (i); Lemma on average trace"),
    Claim("beats-uniform", "At equal size the automatically chosen mixed precision tests better than bits spread as evenly as the "
          "size allows, after equal fine-tuning.", kind="paired", metric="test_accuracy", arm="trace", baseline="uniform",
          better="higher", margin=0.01, source="abstract point (ii); result tables"),
    Claim("beats-error-only", "It also beats choosing bits by quantisation error alone (no curvature) at the same size.",
          kind="paired", metric="test_accuracy", arm="trace", baseline="error_only", better="higher", margin=0.005,
          source="section on the sensitivity metric"),
    Claim("activations-gain", "Choosing activation bits by the trace of the Hessian with respect to activations beats uniform "
          "activation bits at the same average.", kind="paired", metric="test_accuracy", arm="trace_activations",
          baseline="trace_uniform_act", better="higher", margin=0.005, source="abstract point (iii)"),
)  # fmt: skip
HONESTY = (
    "A 40,000-weight CNN on noisy digits stands in for ResNet-50, Inception, SqueezeNext and RetinaNet; latency and ImageNet "
    "accuracy are not tested, and at this size fine-tuning repairs much of any choice, so the ranking claim carries most of the "
    "evidence."
)


class Full(Supervised):
    """The 32-bit reference: trained to a plateau with Adam and a falling step; after the last step everything is measured."""

    batch_size, vectorize = 64, False
    steps = property(lambda self: min(self.p.convergence, self.p.steps))
    every = property(lambda self: max(10, self.steps // 4))
    lr = property(lambda self: 0.0 if files.own_state(path()) else 3e-3)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, (bound.x, bound.y, bound.test_x, bound.test_y) = seed, files.split(seed, self.p.images, path())
        return bound

    def init(self):
        net = nets.Cnn(self.x.shape[1], int(self.y.max()) + 1, self.p.activation, self.p.probes)
        if state := files.own_state(path()):
            files.fill(net, state)
            files.check_chance(float(self.metrics(net)["test_accuracy"]), int(self.y.max()) + 1)
        return net

    def schedule(self, step, steps):
        return 0.5 * (1 + np.cos(np.pi * step / steps))

    def optimizer(self, groups):
        return torch.optim.Adam(groups)

    def metrics(self, net):
        weights, biases = net.fold(self.x)
        logits = nets.answer(weights, biases, self.test_x, self.p.activation)
        return {"test_accuracy": (logits.argmax(1) == self.test_y).double().mean(),
                "train_loss": nets.loss_of(weights, biases, self.x, self.y, self.p.activation)}  # fmt: skip

    def measure(self, net):
        rng = torch.Generator().manual_seed(self.seed)
        nets.measure(net, self.x, self.y, self.p.probes, self.p.hessian_batch, self.p.iterations, rng)

    def final(self, net):
        self.measure(net)
        return {"gradient_norm": net.slope, "negative_traces": (net.traces.mean(0) < 0).sum()}


def path() -> str:
    return os.environ.get("CLAIMLAB_DATA", "")


KEPT = 8
MEASURED: dict[tuple, nn.Module] = {}  # the last networks that were measured without being trained to the end


class Settings(nn.Module):
    """K quantised copies of one folded network, a setting of bits each; the full-precision copies are what is updated."""

    def __init__(self, weights, biases, bits: np.ndarray, activation_bits: np.ndarray, budget: np.ndarray, high: Tensor):
        super().__init__()
        k = len(bits)
        self.weights = nn.ParameterList(w.expand(k, *w.shape).clone() for w in weights)
        self.biases = nn.ParameterList(b.expand(k, *b.shape).clone() for b in biases)
        for name, value in (("bits", bits), ("activation_bits", activation_bits), ("budget", budget)):
            self.register_buffer(name, torch.as_tensor(np.array(value), dtype=torch.int64))
        self.register_buffer("high", high.clone())
        self.register_buffer("rank", torch.zeros(3))  # correlations at 2, 3 and 4 bits
        self.register_buffer("trace", torch.zeros(8))  # average Hessian trace of each layer

    def logits(self, x: Tensor, activation: str) -> list[Tensor]:
        """What each copy answers, with weights and activations quantised; K tensors [B, classes]."""
        found = []
        for k, (bits, inner) in enumerate(zip(self.bits.tolist(), self.activation_bits.tolist(), strict=True)):
            weights = [rule.straight_through(w[k], rule.quantize(w[k], b)) for w, b in zip(self.weights, bits, strict=True)]
            found.append(nets.answer(weights, [b[k] for b in self.biases], x, activation, bits=inner, high=self.high))
        return found


class Uniform(Full):
    """Bits spread as evenly as the size allows; fine-tuned on the same minibatches as every other arm."""

    after, orders = "full", 3
    steps = property(lambda self: self.p.tune_steps)
    every = property(lambda self: max(1, self.p.tune_steps))
    lr = 1e-3

    @property
    def budgets(self) -> list[float]:
        """A quarter and a half of the way from 2 bits to the knob, and the knob: 2.25, 2.5 and 3 bits a weight."""
        return [2 + (self.p.budget - 2) * part for part in (0.25, 0.5, 1.0)]

    def schedule(self, step, steps):
        return 1.0

    def begin(self, start):
        start = start if start.measured else self.cut_short(start)
        weights, biases = start.fold(self.x)
        sizes = np.array([w.numel() for w in weights])
        found = [(i, bits) for i, budget in enumerate(self.budgets) for bits in self.choose(start, sizes, budget)]
        net = Settings(weights, biases, [bits for _, bits in found], [self.inner(start)] * len(found), [i for i, _ in found], start.high)
        net.rank.copy_(torch.tensor(ranks(self.curvature(start), start)))
        net.trace.copy_(torch.tensor(average_trace(start)))
        return net

    def cut_short(self, start):
        """A network whose training did not come to its end, measured; those of the same weights once, for all arms."""
        key = self.p, self.seed, *(t.cpu().numpy().tobytes() for t in start.state_dict().values())
        if key not in MEASURED:
            MEASURED.clear() if len(MEASURED) >= KEPT else None
            MEASURED[key] = copy.deepcopy(start)
            self.measure(MEASURED[key])
        return MEASURED[key]

    def curvature(self, report) -> np.ndarray:
        """What the arm knows of each layer's curvature; a constant for those that ask nothing."""
        return np.zeros(8)

    def choose(self, report, sizes, budget):
        rng = np.random.default_rng(self.seed)
        found = [rule.raised(rng.permutation(8), sizes, budget) for _ in range(self.orders)]
        return found[:1] if np.ptp(found, axis=0).max() == 0 else found

    def inner(self, report) -> list[int]:
        return [0] * 7

    def loss(self, net, x, y):
        return sum(cross_entropy(logits, y) for logits in net.logits(x, self.p.activation))

    def metrics(self, net):
        return {"rank_correlation": net.rank.mean()} | {f"rank_{b}bit": net.rank[i] for i, b in enumerate((2, 3, 4))}

    def final(self, net):
        right = torch.stack([(z.argmax(1) == self.test_y).double().mean() for z in net.logits(self.test_x, self.p.activation)])
        by_budget = [right[net.budget == i].mean() for i in range(3)]
        found = {f"test_accuracy_{name}": value for name, value in zip(("small", "middle", "large"), by_budget, strict=True)}
        return found | {"test_accuracy": sum(by_budget) / 3}


def average_trace(report: nets.Cnn) -> np.ndarray:
    """Hutchinson's estimate of Tr(H_i) / n_i, the mean eigenvalue of layer i's Hessian; [8]."""
    return report.traces.mean(0).double().cpu().numpy() / np.array([w.numel() for w in report.weights])


def ranks(curvature: np.ndarray, report: nets.Cnn) -> list[float]:
    """Spearman correlation over layers of predicted sensitivity and true rise of the loss at 2, 3 and 4 bits; 0 for a constant."""
    predicted = np.maximum(curvature, 0)[:, None] * report.errors[:, :3].double().cpu().numpy()
    rises = report.rises.double().cpu().numpy()
    return [float(spearmanr(p, r).statistic) if np.ptp(p) > 0 and np.ptp(r) > 0 else 0.0 for p, r in zip(predicted.T, rises.T, strict=True)]


class FrontLoaded(Uniform):
    """The rule of thumb: early layers are raised first."""

    def choose(self, report, sizes, budget):
        return [rule.raised(range(8), sizes, budget)]


class Random(Uniform):
    """Random settings of equal size: layers are raised one candidate at a time, at random, until nothing fits any more."""

    def choose(self, report, sizes, budget):
        rng = np.random.default_rng([self.seed, round(100 * budget)])
        return [rule.filled(sizes, budget, rng) for _ in range(4 if budget == self.budgets[0] else 3)]


class Trace(Uniform):
    """The method: average Hessian trace times squared error, and the best setting of the frontier at this size."""

    def curvature(self, report):
        return average_trace(report)

    def choose(self, report, sizes, budget):
        omega = rule.sensitivity(self.curvature(report), report.errors.double().cpu().numpy())
        return [rule.choose(omega, sizes, budget)]


class TopEigenvalue(Trace):
    def curvature(self, report):
        return report.eigenvalues.double().cpu().numpy()


class ErrorOnly(Trace):
    def curvature(self, report):
        return np.ones(8)


class Reversed(Trace):
    """Sanity check: the order of the traces turned round, the largest curvature given to the flattest layer."""

    def curvature(self, report):
        trace = super().curvature(report)
        found = np.empty_like(trace)
        found[trace.argsort()] = np.sort(trace)[::-1]
        return found


class TraceUniformAct(Trace):
    def inner(self, report):
        return [self.p.activation_bits] * 7


class TraceActivations(Trace):
    """Activation bits from 2, 4 and 8 by the trace of the Hessian over what a layer hands on for one image."""

    def inner(self, report):
        n = report.handed.cpu().numpy()
        omega = rule.sensitivity(report.activation_traces.mean(0).double().cpu().numpy() / n,
                                 report.activation_errors.double().cpu().numpy())  # fmt: skip
        return rule.choose(omega, n, self.p.activation_bits, nets.ACTIVATION_BITS).tolist()


ARMS = {
    "full": Full, "uniform": Uniform, "front_loaded": FrontLoaded, "trace": Trace, "top_eigenvalue": TopEigenvalue,
    "error_only": ErrorOnly, "reversed": Reversed, "random": Random, "trace_uniform_act": TraceUniformAct,
    "trace_activations": TraceActivations,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "traces as probes come in": beside(__name__, "probes_come_in"),
    "bits against trace": beside(__name__, "bits_against_trace"),
}
