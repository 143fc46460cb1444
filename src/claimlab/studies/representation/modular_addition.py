"""Modular addition by a two-layer network: one-frequency neurons that win a lottery, align their phases, and vote.

How do neurons that are each wrong by themselves add up to an exact sum, and which frequency will each of them end with?
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _modular_addition_data as data
from claimlab.studies.representation import _modular_addition_method as method
from claimlab.studies.representation._modular_addition_data import load_table
from claimlab.studies.representation._modular_addition_method import Network, built, flawed_indicator, flow, race, spectrum
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Task, Tick

PAPER = Paper(
    title="On the Mechanism and Dynamics of Modular Addition: Fourier Features, Lottery Ticket, and Grokking",
    authors="He, Wang, Chen, Yang", year=2026, url="https://arxiv.org/abs/2602.16849", theme="stages",
    system="two-layer network on modular addition",
    question="How do hundreds of one-frequency neurons, each of them wrong by itself, add up to an exact modular sum, and can one "
    "tell at initialisation which frequency each neuron will end with?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    p: int = knob(23, "modulus (odd prime is best)", low=7, high=97)
    width: int = knob(256, "neurons; too few cannot hold all frequencies and phases", low=8, high=1024)
    weight_decay: float = knob(2.0, "AdamW decay; 0 memorises and may never generalise", low=0.0, high=5.0, live=True)
    train_fraction: float = knob(0.8, "share of the unordered pairs of the addition table that is shown", low=0.2, high=0.95,
                                 unit="fraction")  # fmt: skip
    init_scale: float = knob(0.02, "small: a clean lottery between frequencies; large: lazy training (grok arms use 5 times this "
                             "value)", low=0.001, high=1.0)  # fmt: skip
    activation: str = knob("relu", "even part of the activation does the work", choices=("relu", "square", "abs"))
    lr: float = knob(0.001, "step size", low=0.0001, high=0.02, live=True)
    table_noise: float = knob(0.0, "share of the table's entries whose answer is redrawn at random, each alone; 1 leaves no "
                              "addition to find", low=0.0, high=1.0, unit="fraction")  # fmt: skip
    sweep: bool = knob(False, "also train with a quarter, a half and twice the weight decay")
    steps: int = knob(5000, "steps of the grokking arms; full_data takes 3/5 of them, lottery 4/25", low=25, high=100000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(p=11, width=32, steps=60, seeds=2)
    FULL = dict(p=31, steps=10000, seeds=10, sweep=True)
    CONTROL = Control(
        set=dict(table_noise=1.0), vanishes=("single-frequency", "phase-alignment", "lottery-ticket", "decay-drives-grokking"),
        why="In a table of random answers there is no addition: no frequency is worth winning, no phases to align and nothing that "
        "decay could generalise to, while width, initialisation and optimiser stay. The hand-built nets (diversification-votes) "
        "are not trained and do not count here.",
    )  # fmt: skip


CLAIMS = (
    Claim("single-frequency", "After training the median neuron holds almost all of its spectral power at one frequency.",
          kind="bound", metric="median_dominant_share", arm="full_data", better="higher", margin=0.9,
          source="abstract; empirical observations"),
    Claim("phase-alignment", "Output phase equals twice the input phase: the power-weighted mean of |wrap(2 phi - psi)| is small.",
          kind="bound", metric="phase_misalignment", arm="full_data", better="lower", margin=0.2,
          source="phase alignment observation and theorem"),
    Claim("lottery-ticket", "The winner of each neuron is predicted better by magnitude and phase together (integrating the "
          "decoupled ODE from the initial values) than by magnitude alone.", kind="paired", metric="winner_hit_rate",
          arm="predict_ode", baseline="predict_magnitude", better="higher", margin=0.05,
          source="lottery ticket section; ODE comparison"),
    Claim("diversification-votes", "A net with all frequencies and symmetric phases has a larger correct-class margin than one of "
          "the same width whose phases fill only a quarter circle.", kind="paired", metric="logit_margin", arm="construct_diverse",
          baseline="construct_quarter_phase", better="higher", margin=0.5,
          source="diversification condition; flawed-indicator proposition"),
    Claim("decay-drives-grokking", "On a partial table, test accuracy at equal steps is higher with weight decay than without.",
          kind="paired", metric="test_accuracy", arm="grok_decay", baseline="grok_no_decay", better="higher", margin=0.05,
          source="grokking section; three stages"),
)  # fmt: skip
HONESTY = (
    "The network has no embedding, attention or depth and the modulus is small, so nothing here shows that large transformers "
    "compute this way. The flow equations hold for tiny initial weights and the square activation; for ReLU and AdamW they are a "
    "prediction that the lottery claim tests, not a theorem. Stage boundaries are thresholds that we chose."
)


# ---- networks that train: full batch, no randomness beyond first weights, table and split


class Addition(Task):
    """Softmax cross-entropy over all shown cells of the table. An arm is its activation, first scale, decay and share shown."""

    scale, part = 1.0, 1.0  # times init_scale; of the knob `steps`
    activation = property(lambda self: self.p.activation)
    shown = 1.0
    lr = property(lambda self: self.p.lr)
    steps = property(lambda self: max(4, round(self.part * self.p.steps)))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.lesson = data.lesson(seed, self.p.p, self.p.table_noise, self.shown, data.source())
        bound.pairs, bound.target = bound.lesson.pairs, bound.lesson.target
        return bound

    def init(self):
        theta, xi = self.scale * self.p.init_scale * torch.randn(2, self.p.width, self.p.p)
        return Network(theta, xi, self.activation, self.lesson.table, self.lesson.shown)

    def batch(self, net, rng, step):
        return self.pairs, self.target

    def loss(self, net, pairs, target):
        """- sum over shown pairs and answers of target * log softmax(f). pairs [B, p] two-hot, target [B, p] summing to 1."""
        return -(target * net(pairs).log_softmax(-1)).sum()

    def metrics(self, net):
        return {"train_accuracy": right(net)[net.shown].float().mean()}


class FullData(Addition):
    part = 0.6

    @property
    def every(self):
        return max(1, self.steps // 60)

    def metrics(self, net):
        a, b = spectrum(net.theta), spectrum(net.xi)
        found = {"median_dominant_share": method.shares(a).amax(-1).median(), "phase_misalignment": method.misalignment(a, b),
                 "frequencies_per_neuron": method.effective_frequencies(a)}  # fmt: skip
        return super().metrics(net) | found

    def final(self, net):
        """The trained net with its activation exchanged, the diversification condition, and what is not at one frequency."""
        swapped = {f"accuracy_with_{name}": right(net, name).float().mean() for name in method.ACTIVATIONS}
        a = spectrum(net.theta)
        return swapped | method.diversity(a) | {"share_at_triple_frequency": method.overtone(a, self.p.p)}


class Lottery(Addition):
    """Plain gradient descent: Adam would rescale every gradient and so blur the race."""

    lr, part, activation = 3.0, 0.16, "square"

    @property
    def every(self):
        return max(1, self.steps // 100)

    def optimizer(self, groups):
        return torch.optim.SGD(groups)

    def metrics(self, net):
        a = spectrum(net.theta)
        return super().metrics(net) | {"median_dominant_share": method.shares(a).amax(-1).median()}


class GrokNoDecay(Addition):
    scale = 5.0
    shown = property(lambda self: self.p.train_fraction)

    @property
    def every(self):
        return max(1, self.steps // 100)

    def metrics(self, net):
        answer = right(net).float()
        with torch.enable_grad():
            slopes = torch.autograd.grad(self.loss(net, self.pairs, self.target), (net.theta, net.xi))
        return {"train_accuracy": answer[net.shown].mean(), "test_accuracy": answer[~net.shown].mean(),
                "weight_norm": norm(net.theta, net.xi), "gradient_norm": norm(*slopes),
                "frequencies_per_neuron": method.effective_frequencies(spectrum(net.theta))}  # fmt: skip


class GrokDecay(GrokNoDecay):
    factor = 1.0
    weight_decay = property(lambda self: self.factor * self.p.weight_decay)


class GrokQuarter(GrokDecay):
    factor = 0.25
    when = staticmethod(lambda p: p.sweep)


class GrokHalf(GrokQuarter):
    factor = 0.5


class GrokTwice(GrokQuarter):
    factor = 2.0


def right(net: Network, activation: str = "") -> Tensor:
    """Which cells of its table a net answers as the table says, [p, p]."""
    return method.logits(net, activation).argmax(-1) == net.table


def norm(*parts: Tensor) -> Tensor:
    """Length of several tensors as one vector."""
    return torch.stack([part.detach().norm() for part in parts]).norm()


class Filmed(Run):
    """A run that keeps the spectra a, b [2, M, K] of its first member at every tick."""

    def __init__(self, *given, **options):
        self.film: dict[int, Tensor] = {}
        super().__init__(*given, **options)

    def tick(self):
        net = self.members[0]
        with torch.no_grad():
            self.film[self.step] = torch.stack([spectrum(net.theta), spectrum(net.xi)]).cpu()
        return super().tick()

    def state(self):
        return super().state() | {"film": dict(self.film)}

    def load(self, state):
        super().load(state)
        self.film = dict(state["film"])


@dataclass(frozen=True)
class Film:
    """An arm that trains `task` and keeps its film."""

    task: type[Task]

    def __call__(self, p: Params, seeds: list[int]) -> Filmed:
        return Filmed(self.task(p), seeds)


# ---- arms that do not train: predictions of the lottery, and nets built by hand


class Measured:
    """An arm with one tick: what `measure` says of each member."""

    total = 1

    def __init__(self, members: list[Network], measure: Callable[[], list[dict[str, float]]], spent: dict[str, int]):
        self.members, self.measure, self.step, self.seconds, self.spent = members, measure, 0, 0.0, spent

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, **self.spent, "seconds": self.seconds}

    def ticks(self):
        if self.step:
            return
        began = time.perf_counter()
        with torch.no_grad():
            found = self.measure()
        self.step, self.seconds = 1, time.perf_counter() - began
        yield Tick(1, found)

    def state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.seconds}

    def load(self, state: dict[str, float]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


def by_flow(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    return race(a, b, p)[0]


def by_magnitude(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    return (abs(a) ** 2 * abs(b)).argmax(-1)


def by_phase(a: np.ndarray, b: np.ndarray, p: int) -> np.ndarray:
    return abs(np.angle(a**2 * b.conj())).argmin(-1)


@dataclass(frozen=True)
class Predict:
    """Names each neuron's winner from its spectrum at step 0 by `rule(a, b, p)`; asked of the network when it is trained."""

    rule: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    after = "lottery"

    def __call__(self, p: Params, seeds: list[int], before: Run) -> Measured:
        def measure() -> list[dict[str, float]]:
            return [{"winner_hit_rate": self.hits(p, before, i), "live_neurons": float(live(before, i).sum())} for i in range(len(seeds))]

        return Measured(before.members, measure, {"samples": 0, "forward_calls": 0})

    def hits(self, p: Params, before: Run, i: int) -> float:
        """Share of the live neurons of member i whose winner was named; NaN where none is live."""
        judged = live(before, i)
        won = spectrum(before.members[i].theta).abs().argmax(-1).cpu().numpy()
        return float((self.rule(*start(before, i), p.p) == won)[judged].mean()) if judged.any() else math.nan


def start(run: Run, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectra a, b [M, K] of member i at step 0, complex128."""
    net = run.fresh(i)
    return tuple(spectrum(w.detach().double()).numpy() for w in (net.theta, net.xi))


def live(run: Run, i: int) -> np.ndarray:
    """Neurons whose largest amplitude is now more than 3 times what it was at step 0, [M]."""
    now = spectrum(run.members[i].theta.detach()).abs().amax(-1).cpu().numpy()
    return now > 3 * abs(start(run, i)[0]).max(-1)


@dataclass(frozen=True)
class Construct:
    """A net of one-frequency neurons with aligned phases: `count` frequencies (0: all) with phases uniform on [0, arc)."""

    count: int = 0
    arc: float = 2 * math.pi

    def __call__(self, p: Params, seeds: list[int]) -> Measured:
        members, table = [self.build(p, seed) for seed in seeds], torch.from_numpy(data.addition(p.p))

        def measure() -> list[dict[str, float]]:
            found = [(method.logits(net), spectrum(net.theta)) for net in members]
            return [{"logit_margin": float(method.margin(f, table)), "accuracy": float((f.argmax(-1) == table).float().mean()),
                     **{k: float(v) for k, v in method.diversity(a).items()}} for f, a in found]  # fmt: skip

        return Measured(members, measure, {"samples": p.p * (p.p + 1) // 2, "forward_calls": 1})

    def build(self, p: Params, seed: int) -> Network:
        """All kinds draw the same numbers, so that nets of one seed differ only in arc or frequencies."""
        rng, every = np.random.default_rng(seed), (p.p - 1) // 2
        drawn, order = rng.random(p.width + every), rng.permutation(every) + 1
        kept = np.sort(order[: self.count or every])
        each = max(1, p.width // len(kept))
        phases = torch.from_numpy(self.arc * drawn[: each * len(kept)])
        theta, xi = built(phases, torch.from_numpy(np.repeat(kept, each)), p.p)
        return Network(theta, xi, "square", torch.from_numpy(data.addition(p.p)), torch.ones(p.p, p.p, dtype=torch.bool))


ARMS = {
    "full_data": Film(FullData), "lottery": Film(Lottery),
    "grok_decay": GrokDecay, "grok_no_decay": GrokNoDecay,
    "predict_ode": Predict(by_flow), "predict_magnitude": Predict(by_magnitude), "predict_phase": Predict(by_phase),
    "construct_diverse": Construct(), "construct_quarter_phase": Construct(arc=math.pi / 2), "construct_few_freq": Construct(2),
    "grok_decay_quarter": GrokQuarter, "grok_decay_half": GrokHalf, "grok_decay_twice": GrokTwice,
}  # fmt: skip
figures = beside(__name__, "figures")
spectrum_view, phase_view, table_view = (beside(__name__, name) for name in ("spectrum_view", "phase_view", "table_view"))
VIEWS = {"Fourier spectrum": spectrum_view, "phases": phase_view, "answers": table_view}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Network", "Params", "built", "figures", "flawed_indicator", "flow",
           "load_table", "race", "spectrum"]  # fmt: skip
