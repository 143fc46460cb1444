"""Node-level privacy: lists of bounded readers, subgraphs as trees, clipped sums of gradients, and what a step costs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import hypergeom
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

ORDERS = np.array([1 + k / 10 for k in range(1, 311)] + list(range(33, 65)) + [96, 128, 256, 512])
TINY = 1e-12


# ---- the degree bound: every u may be read by K nodes at most


def occurrences(k: int, hops: int) -> int:
    """N(K, r) = sum_i K^i, i = 0 .. r: the most training subgraphs in which one node can occur."""
    return sum(k**i for i in range(hops + 1))


def bound_readers(edges: np.ndarray, nodes: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Edges [2, E] = (reader v, read u) -> those that stay: each reader of u with probability min(1, K / (2 deg u)), and
    none at all where more than K remain. deg u counts the readers of u."""
    reads = edges[1]
    degree = np.bincount(reads, minlength=nodes)
    kept = rng.random(edges.shape[1]) < k / (2 * np.maximum(degree, 1))[reads]
    left = np.bincount(reads[kept], minlength=nodes)
    return edges[:, kept & (left <= k)[reads]]


def slots(kept: np.ndarray, nodes: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """What each node reads, [nodes, K], -1 where a slot is empty. A list that is longer is cut to K by a random draw."""
    order = np.lexsort((rng.random(kept.shape[1]), kept[0]))
    readers, read = kept[:, order]
    place = np.arange(len(readers)) - np.searchsorted(readers, readers)
    table = np.full((nodes, k), -1)
    table[readers[place < k], place[place < k]] = read[place < k]
    return table


def trees(table: Tensor, roots: Tensor, hops: int, removed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The subgraph of each root [B] as a tree: nodes [B, N(K, r)] level by level (root, its K slots, their K slots each, ...)
    and a mask of those that are there. `removed` [B] takes one node out of each tree, with all that hangs on it."""
    gone = roots.new_full((len(roots),), -1) if removed is None else removed
    level, alive = roots[:, None], (roots != gone)[:, None]
    nodes, masks = [level], [alive]
    for _ in range(hops):
        below = table[level.clamp_min(0)]  # [B, K^i, K]
        alive = (alive[..., None] & (below >= 0) & (below != gone[:, None, None])).flatten(1)
        level = below.flatten(1).clamp_min(0)
        nodes, masks = [*nodes, level], [*masks, alive]
    return torch.cat(nodes, 1), torch.cat(masks, 1)


def readers_of(table: np.ndarray, node: int, hops: int) -> np.ndarray:
    """All roots in whose tree `node` occurs, itself among them."""
    found = np.array([node])
    for _ in range(hops):
        found = np.union1d(found, np.isin(table, found).any(1).nonzero()[0])
    return found


# ---- the network: encoder, r layers of aggregation, decoder


class Plan(NamedTuple):
    """`how` is mean, gcn, none (no graph) or linear (a logistic regression on x and what the neighbours' x average to);
    hops is r and k the slots of a node in a tree."""

    how: str
    hops: int
    k: int


class Net(nn.Module):
    """The weights of a plan, torch's default initial law; F features, `width` hidden units a layer."""

    def __init__(self, plan: Plan, features: int, classes: int, width: int, rng: torch.Generator | None = None):
        super().__init__()
        self.register_buffer("worst", torch.zeros(()))  # largest change by a removal so far, in units of C
        self.plan, (how, hops, _) = plan, plan
        twice = 1 + (how in ("mean", "linear"))
        middle = {f"layer{k}": (twice * width, width) for k in range(hops)}
        sizes = {"encoder": (features, width), **middle, "decoder": (width, classes)}
        if how == "linear":
            sizes = {"decoder": (twice * features, classes)}
        self.weights = nn.ParameterDict()
        for name, (a, b) in sizes.items():
            self.weights[name] = torch.empty(b, a).uniform_(-(a**-0.5), a**-0.5, generator=rng)
            self.weights[name + "_bias"] = torch.empty(b).uniform_(-(a**-0.5), a**-0.5, generator=rng)

    def named(self) -> dict[str, Tensor]:
        return {name: self.weights[name] for name in self.weights}


def joined(how: str, own: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """[h_v || mean_u h_u], or for gcn (h_v + sum_u h_u) / (1 + n_v). The symmetric 1 / sqrt(d_u d_v) is not allowed: d_u
    depends on readers of u that v never sees, and the bound would not hold."""
    if how == "gcn":
        return (own + total) / (1 + count)
    return torch.cat([own, total / count.clamp_min(1)], -1)


def dense(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[name], w[name + "_bias"])


def over_trees(w: dict[str, Tensor], plan: Plan, x: Tensor, alive: Tensor) -> Tensor:
    """Logits [..., C] of the roots of trees: x [..., N(K, r), F], alive [..., N(K, r)]."""
    how, hops, k = plan
    h = x if how == "linear" else dense(w, "encoder", x).relu()
    if how == "none":
        h = h[..., 0, :]
        for k in range(hops):
            h = dense(w, f"layer{k}", h).relu()
        return dense(w, "decoder", h)
    sizes = [k**i for i in range(hops + 1)]
    levels, masks = list(h.split(sizes, -2)), [m.to(h.dtype) for m in alive.split(sizes, -1)]
    for layer in range(hops):
        found = []
        for i in range(hops - layer):
            there = masks[i + 1].unflatten(-1, (sizes[i], k))[..., None]
            total = (levels[i + 1].unflatten(-2, (sizes[i], k)) * there).sum(-2)
            if how == "linear":
                found.append(total / there.sum(-2).clamp_min(1))
            else:
                found.append(dense(w, f"layer{layer}", joined(how, levels[i], total, there.sum(-2))).relu())
        levels = found
    out = torch.cat([h[..., 0, :], levels[0][..., 0, :]], -1) if how == "linear" else levels[0][..., 0, :]
    return dense(w, "decoder", out)


def some_lists(reads: Tensor, starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The lists of some nodes only, in the same form."""
    count = torch.diff(starts, append=starts.new_tensor([len(reads)]))[rows]
    begins = count.cumsum(0) - count
    return reads[torch.arange(int(count.sum())) + (starts[rows] - begins).repeat_interleave(count)], begins


def over_graph(w: dict[str, Tensor], plan: Plan, x: Tensor, reads: Tensor, starts: Tensor, *, rows: Tensor | None = None,
               hidden: bool = False) -> Tensor | list[Tensor]:  # fmt: skip
    """Logits [n, C] of all nodes, or of `rows`, each of which reads all its neighbours: `reads` [E] lists them node by node,
    `starts` [n] says where each list begins. With `hidden` what each layer gives, [n, width], encoder first."""
    how, hops, k = plan

    def total(h: Tensor) -> Tensor:
        return F.embedding_bag(reads, h, starts, mode="sum")

    def number() -> Tensor:
        return torch.diff(starts, append=starts.new_tensor([len(reads)]))[:, None].to(x.dtype)

    count = number()
    if how == "linear":
        h = x
        for _ in range(hops):
            h = total(h) / count.clamp_min(1) if k else torch.zeros_like(h)
        if hidden:
            return [x, h]
        return dense(w, "decoder", torch.cat([x, h], -1))
    h = dense(w, "encoder", x).relu()
    given = [h]
    for layer in range(hops):
        own = h
        if rows is not None and layer == hops - 1:  # only what is asked for
            own, (reads, starts) = h[rows], some_lists(reads, starts, rows)
            count = number()
        h = dense(w, f"layer{layer}", own if how == "none" else joined(how, own, total(h), count)).relu()
        given.append(h)
    return given if hidden else dense(w, "decoder", h)


# ---- the gradient of every node, clipped


def node_gradients(w: dict[str, Tensor], plan: Plan, x: Tensor, alive: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of each node's own loss, {name: [B, ...]}, and the losses [B]."""

    def loss(w, x, alive, y):
        return F.cross_entropy(over_trees(w, plan, x, alive), y)

    return vmap(grad_and_value(loss), (None, 0, 0, 0))(w, x, alive, y)


def clipped(each: dict[str, Tensor], limits: dict[str, float]) -> dict[str, Tensor]:
    """Each node's gradient cut to its limits: a limit holds for all parameters whose name begins with its key ('' is all)."""
    found = {}
    for start, limit in limits.items():
        names = [n for n in each if n.startswith(start)]
        norm = sum(each[n].flatten(1).square().sum(1) for n in names).clamp_min(TINY).sqrt()
        scale = (limit / norm).clamp_max(1)
        found |= {n: each[n] * scale.view(-1, *[1] * (each[n].dim() - 1)) for n in names}
    return found


def private_sum(each: dict[str, Tensor], limits: dict[str, float], taken: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """sum_v clip(g_v) over the nodes that were taken, plus C noise, C = |limits|. noise [P] has the standard deviation
    2 lambda N(K, r), one number a weight."""
    c, at, found = math.hypot(*limits.values()), 0, {}
    cut = clipped(each, limits)
    for name, g in cut.items():
        total = torch.tensordot(taken, g, 1)
        found[name] = total + c * noise[at : at + total.numel()].view(total.shape)
        at += total.numel()
    return found


# ---- what it costs


def renyi(nodes: int, count: int, batch: int, noise: float) -> np.ndarray:
    """gamma(a) of one step at every order: log E_rho[exp(a (a - 1) rho^2 / (2 lambda^2 N^2))] / (a - 1), where rho ~
    Hypergeometric(nodes, N, batch) of the N = `count` terms that a node touches fall in the batch. From the paper's
    exp(a (a - 1) 2 rho^2 C^2 / sigma^2) with sigma = lambda 2 C N. batch = nodes is the Gaussian mechanism, a / (2 lambda^2)."""
    count = min(count, nodes)
    rho = np.arange(max(0, batch + count - nodes), min(batch, count) + 1)
    a = ORDERS[:, None]
    inside = a * (a - 1) * (rho / (count * noise)) ** 2 / 2 + hypergeom(nodes, count, batch).logpmf(rho)
    return logsumexp(inside, axis=1) / (ORDERS - 1)


def epsilon(nodes: int, count: int, batch: int, noise: float, steps: int) -> float:
    """min_a T gamma(a) + log(1 / delta) / (a - 1) at delta = 1 / (10 nodes)."""
    return float((steps * renyi(nodes, count, batch, noise) + math.log(10 * nodes) / (ORDERS - 1)).min())


@lru_cache(maxsize=256)
def noise_within(target: float, nodes: int, count: int, batch: int, steps: int) -> float:
    """lambda at which `steps` steps cost `target`."""

    def excess(log_noise: float) -> float:
        return math.log(epsilon(nodes, count, batch, math.exp(log_noise), steps) / target)

    return math.exp(brentq(excess, math.log(0.02), math.log(1e4), xtol=1e-6))
