"""DeepLOB: convolutions that follow the layout of an order book, then an LSTM, forecast where the mid price goes.

Can one network read the order book of a stock that it has never seen, and which price levels does it look at?
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.validated import best, keep, track
from claimlab.studies.timeseries import _deeplob_data as data
from claimlab.studies.timeseries import _deeplob_method as method
from claimlab.study import Control, Paper, beside
from claimlab.training import Stepwise, Supervised, Tick

PAPER = Paper(
    title="DeepLOB: Deep Convolutional Neural Networks for Limit Order Books", authors="Zihao Zhang, Stefan Zohren, Stephen Roberts",
    year=2018, url="https://arxiv.org/abs/1808.03668", theme="sensitivity", system="DeepLOB",
    question="Can one network read the order book of a stock that it has never seen, and which price levels does it look at?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    horizon: int = knob(20, "how far ahead the smoothed mid price is predicted", low=5, high=100, unit="events")
    window: int = knob(50, "how much of the past is read", low=10, high=100, unit="events")
    levels: int = knob(5, "depth of the book that is shown", low=1, high=10)
    memory: float = knob(0.85, "persistence of order signs in the simulator; 0 leaves only queue imbalance to learn", low=0.0, high=0.95)
    channels: int = knob(16, "filters a layer", low=4, high=32)
    lr: float = knob(0.001, "learning rate of every network", low=0.0001, high=0.01, live=True)
    steps: int = knob(200, "optimiser steps", low=10, high=5000)
    events: int = knob(20000, "length of each simulated book", low=2800, high=200000, unit="events")
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=10, events=3000, seeds=2)
    FULL = dict(steps=600, window=100, levels=10, events=60000)
    CONTROL = Control(
        set=dict(memory=0.0), vanishes=("beats-recurrent", "beats-handmade", "structured-filters-matter"),
        why="Order flow without memory leaves nothing to predict but queue imbalance and the part of the label that lies in the past, "
        "so that reading long stretches of the book gains nothing.",
    )  # fmt: skip

    def __post_init__(self):
        least = 2100 + 3 * self.window + 6 * max(self.window, self.horizon)
        if self.events < least:
            raise ValueError(f"events = {self.events} are too few for window = {self.window} and horizon = {self.horizon}: "
                             f"at least {least} leave a test part behind the gaps")  # fmt: skip


CLAIMS = (
    Claim("beats-recurrent", "On later data of the training instruments DeepLOB's macro-F1 exceeds that of an LSTM on the raw book "
          "rows.", kind="paired", metric="f1_test", arm="deeplob", baseline="lstm", better="higher", margin=0.02,
          source="abstract; FI-2010 tables"),
    Claim("beats-handmade", "It also exceeds a logistic regression on order-flow imbalance, queue imbalance and past returns.",
          kind="paired", metric="f1_test", arm="deeplob", baseline="logistic", better="higher", margin=0.01,
          source="abstract (outperforms earlier algorithms)"),
    Claim("transfers", "On instruments that were not in training, macro-F1 falls by no more than 0.05.", kind="bound",
          metric="transfer_gap", arm="deeplob", better="lower", margin=0.05,
          source="abstract (universal features); transfer experiment on other LSE stocks"),
    Claim("structured-filters-matter", "Filters that first join price with volume, then bid with ask, then levels, beat a plain "
          "convolution of the same size.", kind="paired", metric="f1_test", arm="deeplob", baseline="flat_conv", better="higher",
          margin=0.01, source="section on the architecture"),
    Claim("top-of-book-matters", "Perturbation importance puts at least 40 % of its weight on the first of five levels (chance "
          "20 %).", kind="bound", metric="share_level1", arm="deeplob", better="higher", margin=0.4,
          source="section on sensitivity analysis (LIME)"),
)  # fmt: skip
HONESTY = (
    "The book is simulated, so its regularities are ours: the transfer claim tests invariance to tick, depth and rates, not to a "
    "real market's regime changes, and nothing here says that a strategy would earn money. FI-2010 and the LSE year are not shipped."
)
CHECK, TEST, CHUNK = 12, 8, 64  # every how many events a validation or test window ends; windows in one forward pass


def load(p: Params, seed: int) -> data.Market:
    """The market of `seed`, or the books of the folder that CLAIMLAB_DATA names."""
    return data.market(seed, p.window, p.horizon, p.levels, p.memory, p.events, os.environ.get("CLAIMLAB_DATA", ""))


# ---- networks: what is judged is the state of the best validation accuracy


def answers(net: nn.Module, x: Tensor) -> Tensor:
    """The class answered to each window [n, T, 4 L], a few windows at a time."""
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in x.split(CHUNK)])


class Forecaster(Supervised):
    """A network trained by Adam on windows drawn from the training parts of all training instruments."""

    vectorize = False  # nn.LSTM has no batching rule
    batch_size, ahead = 32, 10

    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(1, self.steps // 5))

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.market = load(self.p, seed)
        stocks, train = bound.market.stocks[: bound.market.seen], torch.from_numpy(bound.market.train)
        length = len(stocks[0].z)
        bound.z, bound.label = torch.cat([s.z for s in stocks]), torch.cat([s.label for s in stocks])
        bound.moments = (train + length * torch.arange(len(stocks))[:, None]).flatten()
        checks = [bound.market.windows(i, bound.market.validation[::CHECK]) for i in range(len(stocks))]
        bound.check = tuple(map(torch.cat, zip(*checks, strict=True)))
        return bound

    def net(self) -> nn.Module:
        raise NotImplementedError

    def init(self):
        return track(self.net())

    def optimizer(self, groups):
        return torch.optim.Adam(groups, fused=True)

    def block(self, net, rng, step, n):
        at = self.moments[torch.randint(len(self.moments), (n, self.batch_size), generator=rng).to(self.moments.device)]
        span = torch.arange(1 - self.p.window, 1, device=at.device)
        return self.z[at[..., None] + span], self.label[at]

    def metrics(self, net):
        x, truth = self.check
        answer = answers(net, x)
        accuracy = float((answer == truth).float().mean())
        keep(net, accuracy)
        return {"accuracy_check": accuracy, "f1_check": method.macro_f1(truth, answer)}

    def answered(self, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """(truth, answer) of the remembered weights on the test windows of each instrument."""
        kept, found = best(net).eval(), []
        for i in range(len(self.market.stocks)):
            x, truth = self.market.windows(i, self.market.test[::TEST])
            found.append((truth, answers(kept, x.to(net.score.device)).cpu()))
        return found

    def final(self, net):
        self.told = self.answered(net)  # kept for the figures
        return judged(self.told, self.market.seen)


def judged(found: list[tuple[Tensor, Tensor]], seen: int) -> dict[str, float]:
    """Metrics of (truth, answer) for each instrument, the `seen` ones first; `majority` is the share of the commonest class."""
    f1 = [method.macro_f1(*pair) for pair in found]
    accuracy = [float((truth == answer).float().mean()) for truth, answer in found]
    common = [float(truth.bincount(minlength=3).max() / len(truth)) for truth, _ in found]
    test, unseen = float(np.mean(f1[:seen])), float(np.mean(f1[seen:]))
    return {"f1_test": test, "f1_unseen": unseen, "transfer_gap": test - unseen, "accuracy_test": float(np.mean(accuracy[:seen])),
            "accuracy_unseen": float(np.mean(accuracy[seen:])), "majority": float(np.mean(common[:seen]))}  # fmt: skip


class DeepLob(Forecaster):
    def net(self):
        c = self.p.channels
        return method.deeplob(self.p.levels, c, c, 2 * c)

    def final(self, net):
        self.weight = explained(best(net).eval(), self.market)  # kept for the figures
        return super().final(net) | {"share_level1": float(method.level_shares(self.weight, self.p.levels)[:, 0].mean())}


def explained(net: nn.Module, market: data.Market, masks: int = 200) -> Tensor:
    """LIME weights [n, G] for 40 test windows (fewer where the test part is short), spread evenly over the training instruments."""
    count = min(40, len(market.test) // 50)
    each = -(-count // market.seen)
    x = [market.windows(i, market.test[np.linspace(0, len(market.test) - 1, each).astype(int)])[0] for i in range(market.seen)]
    group = method.groups(market.window, market.stocks[0].rows.shape[1] // 4)
    drawn = torch.rand(masks, int(group.max()) + 1, generator=torch.Generator().manual_seed(0)) < 0.5
    device = next(net.parameters()).device
    with torch.no_grad():
        return method.lime(lambda w: net(w.to(device)).cpu(), torch.cat(x)[:count], group, drawn.float())


class FlatConv(Forecaster):
    def net(self):
        c = self.p.channels
        return method.flat_conv(self.p.levels, c, c, 2 * c)


class NoInception(Forecaster):
    def net(self):
        c = self.p.channels
        return method.Reader([method.Structured(self.p.levels, c)], c, 2 * c)


class Lstm(Forecaster):
    def net(self):
        return method.Reader([], 4 * self.p.levels, 64)


class Perceptron(Forecaster):
    def net(self):
        sizes = 4 * self.p.levels * self.p.window, 128, 128
        return nn.Sequential(nn.Flatten(), nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]), nn.ReLU(), nn.Linear(128, 3))


class Logistic(Stepwise):
    """Logistic regression on the handmade features of each seed's training instruments, scaled by their training part."""

    c = 1.0

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.total, self.step, self.seconds = p, list(seeds), 1, 0, 0.0
        self.models: list = []

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": self.step, "samples": self.step and self.samples, "forward_calls": self.step, "seconds": self.seconds}

    def stepwise(self):
        began, found = time.perf_counter(), []
        for seed in self.seeds:
            market = load(self.p, seed)
            self.models.append(fitted(market, self.c))
            self.samples = market.seen * len(market.train)
            found.append(judged(handmade_answers(self.models[-1], market, market.test[::TEST]), market.seen))
        self.step, self.seconds = 1, time.perf_counter() - began
        yield Tick(self.p.steps, found)


def fitted(market: data.Market, c: float, columns: slice = slice(None)):
    """scikit-learn's scaling and logistic regression, fitted to these handmade features of every training moment."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    stocks = market.stocks[: market.seen]
    x, y = np.concatenate([s.hand[market.train, columns] for s in stocks]), np.concatenate([s.label.numpy()[market.train] for s in stocks])
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500)).fit(x, y)


def handmade_answers(model, market: data.Market, moments: np.ndarray, columns: slice = slice(None)) -> list[tuple[Tensor, Tensor]]:
    """(truth, answer) at these moments for each instrument."""
    return [(s.label[moments], torch.from_numpy(model.predict(s.hand[moments, columns]))) for s in market.stocks]


ARMS = {
    "logistic": Logistic, "mlp": Perceptron, "lstm": Lstm, "flat_conv": FlatConv, "no_inception": NoInception, "deeplob": DeepLob,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"order book and forecast": beside(__name__, "forecast"), "confusion of down, still and up": beside(__name__, "confused")}
