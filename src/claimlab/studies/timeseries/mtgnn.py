"""MTGNN: a forecaster of many series that learns, while it learns to forecast, a directed graph of which one reads which.

When nobody tells us which series drives which, can the graph be learned on the side, and does it help?
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.validated import best, keep
from claimlab.studies.timeseries import _mtgnn_data as data
from claimlab.studies.timeseries._mtgnn_net import (
    CHANNELS,
    KERNELS,
    Forecaster,
    GraphLearner,
    Inception,
    MixHop,
    PerNode,
    dropout,
    edges_found,
    hops,
    receptive_field,
    strongest,
    uni_directed,
    walks,
)  # fmt: skip
from claimlab.study import Control, Paper, beside
from claimlab.training import Task, Tick

PAPER = Paper(
    title="Connecting the Dots: Multivariate Time Series Forecasting with Graph Neural Networks",
    authors="Wu, Pan, Long, Jiang, Chang, Zhang", year=2020, url="https://arxiv.org/abs/2005.11650", theme="stages", system="MTGNN",
    question="When nobody tells us which series drives which, can a forecaster learn the directed graph while it learns to "
    "forecast?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    neighbours: int = knob(5, "k kept edges a node", low=1, high=20, unit="edges", live=True)
    depth: int = knob(2, "K, how far information travels a layer", low=1, high=5, unit="hops")
    beta: float = knob(0.05, "share of the original state kept a hop; 1 switches the graph off", low=0.0, high=1.0, live=True)
    saturation: float = knob(3.0, "a in tanh; large makes edges nearly binary", low=0.5, high=10.0)
    coupling: float = knob(1.0, "strength of true links; at 0 the graph cannot help", low=0.0, high=1.5)
    horizon: int = knob(3, "how far ahead", low=1, high=24, unit="steps")
    steps: int = knob(200, "training steps", low=20, high=10000)
    outputs: str = knob("multi", "forecast all horizons 1 to 6 (or to the judged one) at once, or the judged one alone",
                        choices=("multi", "single"))  # fmt: skip
    curriculum: int = knob(0, "steps after which one more horizon joins the loss; 0 trains all from the start", low=0, high=1000)
    groups: int = knob(1, "random parts into which the nodes are cut; a step trains on one part", low=1, high=4)
    spread: float = knob(0.3, "deviation of the first node embeddings; 1, the authors' start, saturates most edges",
                         low=0.01, high=2.0)  # fmt: skip
    nodes: int = knob(20, "series in the simulated network", low=4, high=60)
    points: int = knob(2000, "simulated moments", low=200, high=20000)
    links: str = knob("tanh", "how a driver acts: it saturates, or not", choices=("tanh", "linear"))
    lags: int = knob(6, "longest lag of a true link", low=1, high=6, unit="steps")
    layers: int = knob(3, "temporal and graph modules, one behind the other", low=1, high=6)
    dilation: int = knob(1, "q, the factor by which dilation grows a layer", low=1, high=2)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(nodes=6, points=200, steps=20, seeds=2)
    FULL = dict(nodes=60, points=6000, layers=4, steps=800, curriculum=40, groups=3, seeds=6)
    CONTROL = Control(
        set=dict(coupling=0.0), vanishes=("graph-helps", "mix-hop", "finds-drivers"),
        why="Uncoupled series have no graph to learn.",
    )  # fmt: skip

    def __post_init__(self):
        if self.curriculum and self.outputs == "single":
            raise ValueError("curriculum needs outputs: multi; a single horizon leaves nothing to add")
        if self.links == "linear" and self.coupling > 1:
            raise ValueError("coupling above 1 with links: linear lets the series grow without bound")


CLAIMS = (
    Claim("graph-helps", "The full model forecasts better than the same temporal network without graph convolution.",
          kind="paired", metric="rse", arm="mtgnn", baseline="no_graph", better="lower", margin=0.01,
          source="ablation (without graph convolution)"),
    Claim("beats-var", "It forecasts better than a vector autoregression with ridge penalty.", kind="paired", metric="rse",
          arm="mtgnn", baseline="var_ridge", better="lower", margin=0.01, source="main tables (VAR-type baselines)"),
    Claim("mix-hop", "Keeping every hop's information (mix-hop) beats using the last hop only.", kind="paired", metric="rse",
          arm="mtgnn", baseline="last_hop", better="lower", margin=0.005, source="ablation (without mix-hop)"),
    Claim("finds-drivers", "Learned edges rank truly linked pairs above others: AUC of the learned adjacency against the "
          "simulator's graph, direction ignored.", kind="bound", metric="edge_auc", arm="mtgnn", better="higher", margin=0.65,
          source="abstract (extracts uni-directed relations)"),
)  # fmt: skip
HONESTY = (
    "The true graph exists here by construction, while in traffic or finance nobody can check the learned one; learned edges "
    "are predictive, not causal. Public benchmarks and hundreds of series are not at hand. If the links are nearly linear a "
    "vector autoregression is optimal and will win."
)


# ---- the arms


def horizons(p: Params) -> tuple[int, ...]:
    return (p.horizon,) if p.outputs == "single" else tuple(range(1, max(6, p.horizon) + 1))


def laws(p: Params) -> tuple:
    return p.nodes, p.points, p.lags, p.links == "linear", p.coupling


def load(seed: int, p: Params) -> data.Series:
    """The series of a seed, or of the file that CLAIMLAB_DATA names."""
    return data.series(seed, *laws(p), horizons(p), os.environ.get("CLAIMLAB_DATA", ""))


class Mtgnn(Task):
    """The full model: L1 loss in the series' own units, Adam with weight decay, gradients clipped to norm 5, dropout 0.3."""

    lr, weight_decay, batch_size, clip, dropout = 3e-3, 1e-4, 12, 5.0, 0.3
    vectorize = False  # its convolutions gain nothing from stacking: vmap takes three times as long

    @property
    def every(self):
        return max(20, self.steps // 50)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.series = load(seed, self.p)
        return bound

    def init(self):
        return Forecaster(self.p, self.series, self.mixer, self.learner, self.given())

    def mixer(self):
        return MixHop(self.p.depth)

    def learner(self):
        return GraphLearner(self.series.x.shape[1], self.p.spread)

    def given(self):
        return None

    def optimizer(self, groups):
        return torch.optim.Adam(groups, fused=True)

    def batch(self, net, rng, step):
        """Past, future, which horizons count yet [Q], the nodes of this step, and dropout masks."""
        starts = torch.randint(len(self.series.train), (self.batch_size,), generator=rng)
        past, future = self.series.windows(starts)
        count = past.shape[1]
        nodes = torch.randperm(count, generator=rng)[: count // self.p.groups].sort()[0]
        reached = 1 + step // self.p.curriculum if self.p.curriculum else future.shape[-1]
        active = (torch.arange(future.shape[-1]) < reached).float()
        shapes = [(self.batch_size, len(nodes), t, CHANNELS) for t in net.lengths]
        masks = dropout(shapes, self.dropout, rng)
        return past[:, nodes], future[:, nodes], active, nodes, *masks

    def loss(self, net, past, future, active, nodes, *masks):
        """Mean absolute error in the series' own units, over the horizons that count yet."""
        guess = net(past, self.p, masks, nodes if self.p.groups > 1 else None)
        return ((guess - future).abs() * net.scale[nodes, None] * (active / active.sum())).sum(-1).mean()

    def gradients(self, net, *batch):
        with torch.enable_grad():
            loss, named = self.loss(net, *batch), dict(net.named_parameters())
            found = torch.autograd.grad(loss, named.values(), allow_unused=True, materialize_grads=True)
        size = torch.stack(torch._foreach_norm(found)).norm()
        return loss.detach(), dict(zip(named, torch._foreach_mul(found, (self.clip / size).clamp(max=1.0)), strict=True))

    def forecast(self, net, starts) -> tuple[Tensor, Tensor]:
        """Truth and forecast [B, N, Q], standardised, in bites that fit the cache."""
        parts = (self.series.windows(part) for part in torch.as_tensor(starts).split(32))
        both = [(y, net(x.to(net.scale), self.p).cpu()) for x, y in parts]
        return tuple(torch.cat(part) for part in zip(*both, strict=True))

    def metrics(self, net):
        """Validation loss on every sixth window; `net` keeps the weights that did best."""
        truth, guess = self.forecast(net, self.series.valid[::6])
        loss = ((guess - truth).abs() * self.series.scale[:, None]).mean()
        keep(net, -float(loss))
        return {"validation_loss": loss} | self.edges(net)

    def edges(self, net) -> dict[str, float]:
        known = self.series.graph is not None and net.learner is not None
        return edges_found(net.adjacency(self.p), self.series.graph) if known else {}

    def final(self, net):
        """Of the weights that validated best: errors on the test windows, and the graph."""
        kept = best(net)
        return data.scores(self.series, *self.forecast(kept, self.series.test), self.p.horizon) | self.edges(kept)


class NoGraph(Mtgnn):
    learner = None

    def mixer(self):
        return PerNode(CHANNELS, CHANNELS)


class LastHop(Mtgnn):
    def mixer(self):
        return MixHop(self.p.depth, last=True)


class Undirected(Mtgnn):
    def learner(self):
        return GraphLearner(self.series.x.shape[1], self.p.spread, directed=False)


class TrueGraph(Mtgnn):
    """A frame: nobody has to learn the graph."""

    learner = None

    def given(self):
        return torch.from_numpy(self.series.graph).float()

    @staticmethod
    def when(params):
        path = os.environ.get("CLAIMLAB_DATA", "")
        return not path or data.own_series(path)[1] is not None


class Fixed:
    """What needs no training by gradient: `forecast` gives truth and guess [B, N, Q] on the test windows of a seed."""

    def __init__(self, params, seeds):
        self.p, self.tasks, self.seeds = params, [Mtgnn(params).bind(seed) for seed in seeds], seeds

    def ticks(self):
        yield Tick(1, [data.scores(t.series, *self.forecast(t.series), self.p.horizon) for t in self.tasks])


class VarRidge(Fixed):
    """Ridge vector autoregression, one for each horizon; number of lags and penalty by the validation windows."""

    def forecast(self, one):
        return data.ridge(one)[:2]


class SeasonalNaive(Fixed):
    """The value 24 steps before."""

    def forecast(self, one):
        past, future = one.windows(one.test)
        return future, past[..., [h - 1 for h in one.horizons]]


class Simulator(Fixed):
    """A floor for all: the law that made the series, with its links and its season, goes on without noise."""

    def __init__(self, params, seeds):
        super().__init__(params, seeds)
        self.worlds = {id(task.series): data.world(seed, *laws(params)) for task, seed in zip(self.tasks, seeds, strict=True)}

    @staticmethod
    def when(params):
        return not os.environ.get("CLAIMLAB_DATA", "")

    def forecast(self, one):
        links, _, tide = self.worlds[id(one)]
        return one.windows(one.test)[1], data.foretold(one, self.p.coupling * links, tide, self.p.links == "linear")


ARMS = {
    "mtgnn": Mtgnn, "no_graph": NoGraph, "last_hop": LastHop, "undirected": Undirected, "true_graph": TrueGraph,
    "var_ridge": VarRidge, "seasonal_naive": SeasonalNaive, "simulator": Simulator,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "learned and true graph": beside(__name__, "graph_view"),
    "forecasts of four series": beside(__name__, "forecast_view"),
}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "KERNELS", "PAPER", "VIEWS", "Params", "figures", "hops", "receptive_field", "strongest",
    "uni_directed", "walks", "Inception",
]  # fmt: skip
