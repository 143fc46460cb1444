"""The network of the study `mtgnn`: graph learning layer, mix-hop propagation, dilated inception, and how they are stacked."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.graphs import propagation
from claimlab.parts.ranking import auc
from claimlab.studies.timeseries._mtgnn_data import WINDOW, Series

KERNELS = (2, 3, 6, 7)
CHANNELS, SKIP, END, EMBEDDING = 16, 32, 64, 16


# B windows, N nodes (series), T moments, C channels, Q horizons


def uni_directed(m1: Tensor, m2: Tensor, a: float) -> Tensor:
    """A = ReLU(tanh(a (M1 M2^T - M2 M1^T))) [N, N] of M1, M2 [N, d]: what is inside is antisymmetric, so an edge has one direction."""
    return (a * (m1 @ m2.mT - m2 @ m1.mT)).tanh().relu()


def strongest(a: Tensor, k: int) -> Tensor:
    """The k largest entries of each row of A [N, N]; the others are zero."""
    values, places = a.topk(min(k, a.shape[-1]), dim=-1)
    return torch.zeros_like(a).scatter(-1, places, values)


def hops(h: Tensor, p: Tensor, beta: float, depth: int) -> list[Tensor]:
    """H_0 = H and H_k = beta H + (1 - beta) P H_{k-1} up to K = depth, for H [B, N, F] and P [N, N] with rows that sum to 1."""
    found = [h]
    for _ in range(depth):
        found.append(beta * h + (1 - beta) * (p @ found[-1]))
    return found


def receptive_field(layers: int, q: int) -> int:
    """Moments that the last output of m layers can see, 1 + 6 (q^m - 1) / (q - 1), which is 1 + 6 m for q = 1."""
    return 1 + 6 * sum(q**layer for layer in range(layers))


class GraphLearner(nn.Module):
    """Node embeddings E1, E2 [N, d]; M = tanh(a E W). `directed=False` is the ablation ReLU(tanh(a M1 M1^T))."""

    def __init__(self, nodes: int, spread: float, directed: bool = True):
        super().__init__()
        shapes = {"e1": (nodes, EMBEDDING), "e2": (nodes, EMBEDDING)}
        self.e1, self.e2 = (nn.Parameter(spread * torch.randn(shape)) for shape in shapes.values())
        self.w1, self.w2 = (nn.Linear(EMBEDDING, EMBEDDING, bias=False) for _ in range(2))
        self.directed = directed

    def forward(self, p: Any) -> Tensor:
        a = p.saturation
        m1, m2 = (a * self.w1(self.e1)).tanh(), (a * self.w2(self.e2)).tanh()
        return strongest(uni_directed(m1, m2, a) if self.directed else (a * m1 @ m1.mT).tanh().relu(), p.neighbours)


class Inception(nn.Module):
    """Two dilated inceptions, tanh(first) * sigmoid(second): [B, N, T, C] -> [B, N, T - 6 dilation, C].

    Kernels of 2, 3, 6 and 7 moments, C / 4 channels each, end at the same moment; as one kernel of 7 with zeros in front they
    are a single convolution, with the same result.
    """

    def __init__(self, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.branches = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS // 4, k) for _ in range(2) for k in KERNELS)

    def forward(self, h: Tensor) -> Tensor:
        weight = torch.cat([F.pad(b.weight, (max(KERNELS) - b.kernel_size[0], 0)) for b in self.branches])
        bias = torch.cat([b.bias for b in self.branches])
        image = h.flatten(0, 1).unsqueeze(1).permute(0, 3, 1, 2)  # channels stay last in memory, which spares copies
        both = F.conv2d(image, weight.unsqueeze(2), bias, dilation=(1, self.dilation)).permute(0, 2, 3, 1)
        first, second = both.reshape(*h.shape[:2], -1, 2 * CHANNELS).chunk(2, -1)
        return first.tanh() * second.sigmoid()


class MixHop(nn.Module):
    """sum_k H_k W_k on the graph plus the same, with weights of its own, on the reversed graph: [B, N, T, C] -> [B, N, T, C].

    Concatenated hops through a 1x1 convolution are that sum. `last=True` is the ablation that keeps H_K alone. Hops move
    between nodes, W_k between channels, so W_k goes first, and one product with H_k of the unit matrix does all its hops.
    """

    def __init__(self, depth: int, last: bool = False):
        super().__init__()
        self.depth, self.kept = depth, slice(depth, None) if last else slice(None)
        self.mixes = nn.ModuleList(nn.Linear(CHANNELS * (1 if last else depth + 1), CHANNELS) for _ in range(2))

    def forward(self, h: Tensor, a: Tensor, beta: float) -> Tensor:
        unit, still, moved = torch.eye(len(a), device=h.device), 0.0, 0.0
        for mix, edges in zip(self.mixes, (a, a.mT), strict=True):
            moves = hops(unit, propagation(edges, symmetric=False), beta, self.depth)[self.kept]
            for move, weight in zip(moves, mix.weight.chunk(len(moves), 1), strict=True):
                if move is unit:  # H_0 stays where it is, in both modules
                    still = still + weight
                else:
                    moved = moved + torch.bmm(move.expand(len(h), -1, -1), F.linear(h, weight).flatten(2))
        bias = self.mixes[0].bias + self.mixes[1].bias
        own = bias if isinstance(still, float) else F.linear(h, still, bias)
        return own + (moved if isinstance(moved, float) else moved.view(h.shape))


class PerNode(nn.Linear):
    """Ablation: a 1x1 convolution in place of both graph modules."""

    def forward(self, h: Tensor, a: Tensor | None, beta: float) -> Tensor:
        return super().forward(h)


class Forecaster(nn.Module):
    """Past [B, N, 24] -> future [B, N, Q], both standardised. Each layer: temporal module, skip, graph module, residual, norm.

    `learner` gives the adjacency, unless one is `given` [N, N]. Buffers keep the weights that validated best so far.
    """

    def __init__(self, p: Any, one: Series, mixer, learner: nn.Module | None = None, given: Tensor | None = None):
        super().__init__()
        nodes, field = one.x.shape[1], receptive_field(p.layers, p.dilation)
        length = max(WINDOW, field)
        self.length, dilations = length, [p.dilation**i for i in range(p.layers)]
        self.lengths = [length - 6 * sum(dilations[: i + 1]) for i in range(p.layers)]
        self.start = nn.Linear(1, CHANNELS)
        self.temporal = nn.ModuleList(Inception(d) for d in dilations)
        ends = [(1, length), *((CHANNELS, t) for t in self.lengths), (CHANNELS, self.lengths[-1])]
        self.skips = nn.ModuleList(nn.Linear(channels * t, SKIP) for channels, t in ends)  # a kernel over all that is left
        self.gains = nn.ParameterList(torch.ones(nodes, t, CHANNELS) for t in self.lengths)
        self.shifts = nn.ParameterList(torch.zeros(nodes, t, CHANNELS) for t in self.lengths)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(SKIP, END), nn.ReLU(), nn.Linear(END, len(one.horizons)))
        self.mixers = nn.ModuleList(mixer() for _ in dilations)
        self.learner = learner() if learner else None  # the last to be drawn: the arms share what they have in common
        self.register_buffer("given", given)
        self.register_buffer("scale", one.scale.clone())
        self.register_buffer("lowest", torch.tensor(float("inf")))
        for name, value in list(self.named_parameters()):
            self.register_buffer(f"best_{name.replace('.', '_')}", value.detach().clone())

    def adjacency(self, p: Any) -> Tensor | None:
        """A [N, N] as the graph modules read it, before it is normalised: A_ij is how much node i reads of node j."""
        return self.learner(p) if self.learner else self.given

    def forward(self, past: Tensor, p: Any, masks: tuple[Tensor, ...] = (), nodes: Tensor | None = None) -> Tensor:
        """`masks` [B, N, T', C] are dropout, already scaled; `nodes` picks the rows of the network that `past` holds."""
        a = self.adjacency(p)
        if nodes is not None and a is not None:
            a = a[nodes][:, nodes]
        x = F.pad(past, (self.length - past.shape[-1], 0))
        h, total = self.start(x[..., None]), self.skips[0](x)
        for i, (temporal, mixer, t) in enumerate(zip(self.temporal, self.mixers, self.lengths, strict=True)):
            gain, shift = (one[i] if nodes is None else one[i][nodes] for one in (self.gains, self.shifts))
            g = temporal(h) * masks[i] if masks else temporal(h)
            total = total + self.skips[i + 1](g.flatten(2))
            mixed = mixer(g, a, p.beta) + h[:, :, -t:]
            h = F.layer_norm(mixed, mixed.shape[1:], gain, shift)
        return self.out(total + self.skips[-1](h.flatten(2)))

    def keep(self, loss: float) -> None:
        """Remember the weights if they validate better than all before."""
        if loss < self.lowest:
            self.lowest.fill_(loss)
            for name, value in self.named_parameters():
                self.get_buffer(f"best_{name.replace('.', '_')}").copy_(value.detach())

    def best(self) -> Forecaster:
        """A copy with the weights that validated best; the present ones where nothing has been validated yet."""
        found = copy.deepcopy(self)
        with torch.no_grad():
            for name, value in found.named_parameters() if self.lowest.isfinite() else ():
                value.copy_(self.get_buffer(f"best_{name.replace('.', '_')}"))
        return found


def edges_found(a: Tensor, graph: np.ndarray) -> dict[str, float]:
    """AUC of max(A_ij, A_ji) for pairs linked in either direction, and of A_ij for "j drives i". Nodes are no own neighbours."""
    a, upper, off = a.detach().cpu().numpy(), np.triu_indices(len(graph), 1), ~np.eye(len(graph), dtype=bool)
    either = np.maximum(graph, graph.T)[upper]
    return {"edge_auc": float(auc(either, np.maximum(a, a.T)[upper])), "directed_auc": float(auc(graph[off], a[off]))}
