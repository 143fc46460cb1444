"""DP-GNN: train a graph network so that no single node can be told from it. Is it still better than ignoring the graph?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.privacy import noise_for, spent
from claimlab.studies.graphs import _dp_gnn_method as method
from claimlab.studies.graphs._dp_gnn_data import block_model, graphs, own_path, world
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Stepwise, Task, Tick

PAPER = Paper(
    title="Node-Level Differentially Private Graph Neural Networks", authors="Daigavane, Madan, Sinha, Thakurta, Aggarwal, Jain",
    year=2021, url="https://arxiv.org/abs/2111.15521", theme="sensitivity", system="DP-GNN",
    question="When one person's record feeds the predictions of all neighbours, how much noise does privacy need, and is a "
    "private graph network still better than ignoring the graph?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    max_degree: int = knob(3, "K: more neighbours, more signal and more noise; 0 ignores the graph", low=0, high=10, unit="neighbours")
    noise: float = knob(2.0, "lambda: noise in units of the sensitivity; epsilon is shown beside it", low=0.3, high=10.0)
    batch: int = knob(1000, "nodes a step", low=50, high=5000, unit="nodes")
    homophily: float = knob(0.7, "share of edges inside a class; 0.2 means that the graph says nothing", low=0.2, high=0.95,
                            unit="fraction")  # fmt: skip
    feature_signal: float = knob(1.2, "how well features alone tell the class", low=0.0, high=4.0)
    clip: float = knob(1.0, "C, norm to which each node's gradient is cut", low=0.05, high=10.0, live=True)
    lr: float = knob(0.02, "Adam step size; each arm multiplies it by its own factor", low=0.0005, high=0.2, live=True)
    clipping: str = knob("whole", "one C for the whole gradient, or a part of it for each layer", choices=("whole", "layers"))
    aggregation: str = knob("mean", "mean of the neighbours beside the node, or the normalised sum of both", choices=("mean", "gcn"))
    hops: int = knob(1, "r, layers of aggregation; a node then occurs in 1 + K + ... + K^r subgraphs", low=1, high=2)
    nodes: int = knob(20000, "private training nodes; the test graph has a fifth of it", low=300, high=100000)
    removals: int = knob(200, "nodes whose removal is tried, half of them those of the highest degree", low=2, high=2000)
    sweep_seeds: int = knob(2, "repetitions of the sweeps over epsilon, K and homophily; 0 leaves them out", low=0, high=10)
    steps: int = knob(150, "optimiser steps; each one spends privacy", low=4, high=2000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(nodes=400, batch=50, steps=5, removals=10, sweep_seeds=1, seeds=2)
    FULL = dict(nodes=100000, hops=2, seeds=10)
    CONTROL = Control(
        set=dict(homophily=0.2), vanishes=("beats-private-mlp", "beats-nonprivate-mlp"),
        why="With five classes a share of 0.2 same-class edges is chance: neighbours say nothing, and the private graph network pays "
        "for its neighbours with noise and must not win. The three claims on sensitivity and accounting are arithmetic and hold on "
        "any graph.",
    )  # fmt: skip

    def __post_init__(self):
        if self.batch > self.nodes:
            raise ValueError(f"batch = {self.batch} is not allowed: nodes = {self.nodes} are fewer")


CLAIMS = (
    Claim("beats-private-mlp", "At the same epsilon and delta the private one-layer GNN is more accurate than a private MLP without "
          "the graph.", kind="paired", metric="test_accuracy", arm="dp_gnn", baseline="dp_mlp", better="higher", margin=0.01,
          source="abstract; main table"),
    Claim("beats-nonprivate-mlp", "It is even more accurate than the MLP trained without privacy.", kind="paired",
          metric="test_accuracy", arm="dp_gnn", baseline="mlp", better="higher", margin=0.01, source="abstract; main table"),
    Claim("sensitivity-bound-holds", "Removing one node changes the clipped sum of gradients by at most 2 C N(K,r), over many nodes "
          "and steps (largest ratio to the bound).", kind="bound", metric="change_over_bound", arm="dp_gnn", better="lower",
          margin=1.0001, source="sensitivity lemma"),
    Claim("naive-sensitivity-wrong", "The sensitivity that ordinary DP-SGD assumes for the removal of one record (C) is exceeded on "
          "the same graphs: largest change divided by C.", kind="bound", metric="change_over_naive", arm="dp_gnn", better="higher",
          margin=1.05, source="introduction (why standard DP-SGD does not apply)"),
    Claim("amplification-helps", "The hypergeometric accounting gives a smaller epsilon for the same noise than assuming that all "
          "N(K,r) terms fall in every batch (log of the ratio).", kind="paired", metric="log_epsilon", arm="dp_gnn",
          baseline="no_amplification", better="lower", margin=0.3, source="privacy amplification theorem"),
)  # fmt: skip
HONESTY = (
    "Graphs are simulated with 20,000 nodes; the paper's benchmarks have up to millions, where amplification is stronger and "
    "results better. Only training is protected: predictions for a test node still read its neighbours. The features are weak by "
    "design, which favours graphs; a knob shows the opposite regime."
)
PROBE = 500  # training nodes whose gradients are looked at


# ---- a public draw, from which the clipping norm is chosen


@lru_cache(maxsize=16)
def public_norms(signal: float, homophily: float, plan: method.Plan) -> dict[str, np.ndarray]:
    """Norms of the gradients of 500 simulated nodes that are nobody's, at a fresh network: whole ('') and by layer, [500]."""
    rng = np.random.default_rng(2111_15521)
    graph = block_model(PROBE, homophily, signal, 8.0, rng)
    net = method.Net(plan, graph.x.shape[1], 5, 16, torch.Generator().manual_seed(2111))
    kept = method.bound_readers(graph.edges, PROBE, plan.k, rng)
    table = torch.from_numpy(method.slots(kept, PROBE, plan.k, rng))
    rows, alive = method.trees(table, torch.arange(PROBE), plan.hops)
    w = {name: value.detach() for name, value in net.named().items()}
    each, _ = method.node_gradients(w, plan, torch.from_numpy(graph.x)[rows], alive, torch.from_numpy(graph.y))
    layers = [name for name in w if not name.endswith("_bias")]
    return {start: torch.cat([g.flatten(1) for n, g in each.items() if n.startswith(start)], 1).norm(dim=1).numpy()
            for start in ("", *layers)}  # fmt: skip


def limits(p: Params, plan: method.Plan) -> dict[str, float]:
    """What each part of a gradient is cut to; the squares sum to C^2. Layers share C as their public medians say."""
    if p.clipping == "whole":
        return {"": p.clip}
    medians = {name: float(np.median(norms)) for name, norms in public_norms(p.feature_signal, p.homophily, plan).items() if name}
    return {name: p.clip * value / math.hypot(*medians.values()) for name, value in medians.items()}


# ---- the arms: all of a seed share graph, lists, initial draw and the order in which nodes are taken


class Mlp(Task):
    """Features only, without privacy. `pace` is the arm's factor on lr, the best of 0.5, 1, 2 and 4 on development seeds."""

    ahead, graph, pace = 10, False, 0.5
    every = property(lambda self: max(1, self.steps // 10))
    lr = property(lambda self: self.p.lr * self.pace)
    plan = property(lambda self: method.Plan(self.how, self.p.hops, self.k))
    how = property(lambda self: self.p.aggregation if self.k else "none")
    k = property(lambda self: self.p.max_degree if self.graph else 0)

    def bind(self, seed):
        bound, p = type(self)(self.p), self.p
        bound.seed, bound.world = seed, world(seed, p.nodes, p.homophily, p.feature_signal, p.max_degree, own_path())
        bound.x, bound.y, bound.test = bound.world.x, bound.world.y, bound.world.test
        bound.n, bound.lists, bound.table = len(bound.y), bound.world.lists, bound.world.table
        if p.batch > bound.n:
            raise ValueError(f"batch = {p.batch} is not allowed: there are {bound.n} training nodes")
        bound.prepare()
        return bound

    def prepare(self):
        pass

    def init(self):
        return method.Net(self.plan, self.x.shape[1], self.world.classes, 16)

    def order(self, rng, n, count):
        """The first `count` nodes of n random orders, [n, count]; the same for all arms of a seed."""
        return torch.stack([torch.randperm(self.n, generator=rng)[:count] for _ in range(n)])

    def block(self, net, rng, step, n):
        order = self.order(_apart(rng)[0], n, self.p.batch).to(self.x.device)
        return self.x[order].unsqueeze(-2), self.y[order]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return cross_entropy(method.over_trees(net.named(), net.plan, x, x[..., 0] == x[..., 0]), y)

    def metrics(self, net):
        x, y, *lists = self.test
        answer = method.over_graph(net.named(), net.plan, x, *lists).argmax(1)
        return {"test_accuracy": (answer == y).float().mean()}


def _apart(rng: torch.Generator) -> list[torch.Generator]:
    """Generators for the order of nodes, batch sizes and noise: an arm that draws less still shares what is common."""
    return [torch.Generator().manual_seed(seed) for seed in torch.randint(2**62, (3,), generator=rng).tolist()]


class Gnn(Mlp):
    """The ceiling: every node reads all its neighbours, nothing is sampled, cut or noised."""

    graph, vectorize = True, False

    def block(self, net, rng, step, n):
        if self.plan.how == "none":
            return super().block(net, rng, step, n)
        order = self.order(_apart(rng)[0], n, self.p.batch).to(self.x.device)
        return order, self.y[order], *(part.expand(n, *part.shape) for part in (self.x, *self.lists))  # views, no copies

    def loss(self, net, order, y, *graph):
        return cross_entropy(method.over_graph(net.named(), net.plan, *graph, rows=order), y) if graph else super().loss(net, order, y)


class DpGnn(Mlp):
    """Algorithm of the paper: bounded readers, trees of K slots, clipped gradients of m nodes, noise 2 lambda C N(K, r)."""

    graph, poisson, pace = True, False, 1.0

    def prepare(self):
        p = self.p
        self.count = method.occurrences(self.k, p.hops)  # N(K, r)
        self.trees = method.trees(self.world.table, torch.arange(self.n), p.hops) if self.k else _alone(self.n)
        self.epsilon = method.epsilon(self.n, method.occurrences(p.max_degree, p.hops), p.batch, p.noise, p.steps)
        self.share, self.delta = p.batch / self.n, 1 / (10 * self.n)
        self.sigma = self.deviation()  # of the noise on the sum, in units of C
        self.removal = self.removed() if type(self) is DpGnn else None

    def deviation(self):
        return 2 * self.p.noise * self.count

    def log_epsilon(self):
        return math.log(self.epsilon)

    def block(self, net, rng, step, n):
        nodes, sizes, normal = _apart(rng)
        most = min(self.n, math.ceil(self.p.batch + 8 * self.p.batch**0.5)) if self.poisson else self.p.batch
        order = self.order(nodes, n, most)
        count = torch.full((n,), float(self.p.batch))
        if self.poisson:  # each node on its own with probability m / N, as the accounting of one-record terms assumes
            count = torch.binomial(torch.full((n,), float(self.n)), torch.full((n,), self.share), generator=sizes)
            if count.max() > most:
                raise RuntimeError("a batch is larger than the room for it; the privacy account would not hold")
        taken = (torch.arange(most) < count[:, None]).float()
        weights = sum(value.numel() for value in net.parameters())
        noise = self.sigma * torch.stack([torch.randn(weights, generator=normal) for _ in range(n)])
        return *self.subgraphs(order), taken, noise

    def subgraphs(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [..., S, F] and masks [..., S] of the trees of some nodes, and their labels."""
        nodes, alive = (part[order] for part in self.trees)
        return self.x[nodes.to(self.x.device)], alive, self.y[order.to(self.y.device)]

    def gradients(self, net, x, alive, y, taken, noise):
        each, losses = method.node_gradients(net.named(), net.plan, x, alive, y)
        found = method.private_sum(each, limits(self.p, net.plan), taken, noise)
        loss = (losses * taken).sum() / taken.sum().clamp_min(1)
        return loss, {f"weights.{name}": total / self.p.batch for name, total in found.items()}

    def metrics(self, net):
        """Accuracy, epsilon, and how the mean gradient of some nodes compares with the noise; nothing of it is private."""
        w, c = net.named(), limits(self.p, net.plan)
        each, _ = method.node_gradients(w, net.plan, *self.subgraphs(torch.arange(min(PROBE, self.n))))
        cut = method.clipped(each, c)
        signal = torch.cat([g.mean(0).flatten() for g in cut.values()]).norm()
        whole = sum(g.flatten(1).square().sum(1) for g in each.values()).sqrt()
        noise = self.sigma * math.hypot(*c.values()) * sum(g[0].numel() for g in each.values()) ** 0.5 / self.p.batch
        found = {"log_epsilon": self.log_epsilon(), "signal": signal, "noise": noise}
        found["clipped_share"] = (whole > self.p.clip).float().mean()
        if self.removal:
            net.worst.copy_(torch.maximum(net.worst, self.changes(net).max() / self.p.clip))
            found |= {"change_over_bound": net.worst / (2 * self.count), "change_over_naive": net.worst}
        return super().metrics(net) | found

    # ---- what the removal of a node changes

    def removed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes that are tried [R], and for all subgraphs that hold one: the root [M] and the place of the removed node [M]."""
        half, rng = self.p.removals // 2, np.random.default_rng([self.seed, 200])
        chosen = np.unique(np.r_[np.argsort(-self.world.degree, kind="stable")[:half], rng.choice(self.n, min(half, self.n), False)])
        table = self.world.table.numpy()
        roots = [method.readers_of(table, node, self.p.hops) for node in chosen]
        place = np.repeat(np.arange(len(chosen)), [len(r) for r in roots])
        return torch.from_numpy(chosen), torch.from_numpy(np.concatenate(roots)), torch.from_numpy(place)

    def changes(self, net) -> Tensor:
        """|sum of clipped gradients with v - without v| over all training nodes, for each v that is tried, [R]. The lists stay
        as they were sampled, with v struck out; only the subgraphs that hold v change, so only these are computed."""
        chosen, roots, place = self.removal
        w, c, sums = net.named(), limits(self.p, net.plan), []
        for gone in (None, chosen[place]):
            nodes, alive = method.trees(self.table, roots, self.p.hops if self.k else 0, gone)
            each, _ = method.node_gradients(w, net.plan, self.x[nodes], alive, self.y[roots])
            flat = torch.cat([g.flatten(1) for g in method.clipped(each, c).values()], 1) * alive[:, :1]
            sums.append(flat.new_zeros(len(chosen), flat.shape[1]).index_add(0, place, flat))
        return (sums[0] - sums[1]).norm(dim=1)


def _alone(n: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n)[:, None], torch.ones(n, 1, dtype=torch.bool)


class DpMlp(DpGnn):
    """Features only: a node touches its own term alone, so ordinary DP-SGD and its tight accounting are right here."""

    graph, poisson, pace = False, True, 0.5

    def deviation(self):
        return noise_for(self.epsilon, self.share, self.p.steps, self.delta)

    def log_epsilon(self):
        return math.log(spent(self.share, self.sigma, self.p.steps, self.delta))


class NoAmplification(DpGnn):
    """The noise that the same epsilon would need if all N(K, r) terms fell in every batch; log_epsilon is at the knob's noise."""

    pace = 0.5

    def deviation(self):
        return 2 * self.count * method.noise_within(self.epsilon, self.n, self.count, self.n, self.p.steps)

    def log_epsilon(self):
        return math.log(method.epsilon(self.n, self.count, self.n, self.p.noise, self.p.steps))


class NaiveDpsgd(DpMlp):
    """The graph network with the noise of ordinary DP-SGD. It is NOT private at node level; what it spends is recorded too."""

    graph = True

    def metrics(self, net):
        proved = method.epsilon(self.n, self.count, self.p.batch, self.sigma / (2 * self.count), self.p.steps)
        return super().metrics(net) | {"log_epsilon_proved": math.log(proved)}


class SmoothedLinear(DpGnn):
    """Private logistic regression on x and the mean of at most K neighbours' x; same lists, same noise a weight, few weights."""

    how = "linear"


# ---- sweeps: other budgets, other K, other graphs


class Sweep(Stepwise):
    """The first seeds at other settings, one after the other; a tick for each setting."""

    trained: dict[str, type[Task]] = {"dp_gnn": DpGnn}
    when = staticmethod(lambda p: p.sweep_seeds > 0)

    def __init__(self, p: Params, seeds: list[int]):
        self.p, self.seeds, self.step, self.few = p, seeds, 0, seeds[: p.sweep_seeds]
        self.n = len(graphs(seeds[0], p.nodes, p.homophily, p.feature_signal, own_path())[0].y)
        self.points = self.settings(method.epsilon(self.n, method.occurrences(p.max_degree, p.hops), p.batch, p.noise, p.steps))
        self.total = len(self.points) * len(self.trained) * p.steps

    def within(self, epsilon: float, p: Params) -> Params:
        """p with the noise at which it costs `epsilon`."""
        return replace(p, noise=method.noise_within(epsilon, self.n, method.occurrences(p.max_degree, p.hops), p.batch, p.steps))

    def stepwise(self):
        for k, (at, p) in enumerate(self.points.items(), 1):
            found = [{"at": at} for _ in self.few]
            for name, task in self.trained.items():
                run = Run(task(p), self.few, every=p.steps)
                while run.step < run.total:
                    run.advance()
                    self.step += 1
                    yield None
                for metrics, member, bound in zip(found, run.members, run.tasks, strict=True):
                    with torch.no_grad():
                        seen = bound.metrics(member)
                    metrics |= {f"{m}_{name}": float(seen[m]) for m in ("test_accuracy", "log_epsilon", "signal", "noise")}
            yield Tick(k, found + [{} for _ in self.seeds[len(self.few) :]])


class ByEpsilon(Sweep):
    trained = {"dp_mlp": DpMlp, "dp_gnn": DpGnn, "no_amplification": NoAmplification, "smoothed_linear": SmoothedLinear}

    def settings(self, epsilon):
        return {e: self.within(e, self.p) for e in (1.0, 3.0, 6.0, 12.0)}


class ByDegree(Sweep):
    def settings(self, epsilon):
        return {float(k): self.within(epsilon, replace(self.p, max_degree=k)) for k in (1, 2, 3, 5, 7)}


class ByHomophily(Sweep):
    when = staticmethod(lambda p: p.sweep_seeds > 0 and not own_path())

    def settings(self, epsilon):
        return {h: replace(self.p, homophily=h) for h in (0.2, 0.35, 0.5, 0.8, 0.95)}


ARMS = {
    "mlp": Mlp, "dp_mlp": DpMlp, "gnn": Gnn, "dp_gnn": DpGnn, "no_amplification": NoAmplification, "naive_dpsgd": NaiveDpsgd,
    "smoothed_linear": SmoothedLinear, "by_epsilon": ByEpsilon, "by_degree": ByDegree, "by_homophily": ByHomophily,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"a patch of the graph": beside(__name__, "patch"), "gradient norms and noise": beside(__name__, "norms_and_noise"),
         "nodes before and after aggregation": beside(__name__, "layers")}  # fmt: skip
