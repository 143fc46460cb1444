"""The network of the study `mtgnn`: graph learning layer, mix-hop propagation, dilated inception, and how they are stacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.graphs import propagation
from claimlab.parts.ranking import auc
from claimlab.parts.validated import track
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


def walks(a: Tensor, beta: float, depth: int) -> Tensor:
    """[2, K+1, N, N]: H_k = walks[., k] @ H on the graph A [N, N] and on the reversed graph, for any H."""
    unit = torch.eye(len(a), device=a.device)
    return torch.stack([torch.stack(hops(unit, propagation(edges, symmetric=False), beta, depth)) for edges in (a, a.mT)])


def _uniform(*shape: int, inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-(inputs**-0.5), inputs**-0.5))  # torch's own law for layers


class Inception(nn.Module):
    """Two dilated inceptions, tanh(first) * sigmoid(second): [B, N, T, C] -> [B, N, T - 6 dilation, C].

    Kernels of 2, 3, 6 and 7 moments, C / 4 channels each, end at the same moment: that is one kernel of 7 in which the
    shorter ones begin with zeros (`mask`).
    """

    def __init__(self, dilation: int):
        super().__init__()
        self.dilation, each = dilation, CHANNELS // len(KERNELS)
        sizes = [k for _ in range(2) for k in KERNELS for _ in range(each)]
        mask = torch.stack([(torch.arange(max(KERNELS)) >= max(KERNELS) - k).float().expand(CHANNELS, 1, -1) for k in sizes])
        self.register_buffer("mask", mask)
        self.weight = nn.Parameter(mask * torch.stack([_uniform(CHANNELS, 1, max(KERNELS), inputs=CHANNELS * k) for k in sizes]))
        self.bias = nn.Parameter(torch.cat([_uniform(1, inputs=CHANNELS * k) for k in sizes]))

    def forward(self, h: Tensor) -> Tensor:
        image = h.flatten(0, 1).unsqueeze(1).permute(0, 3, 1, 2)  # channels stay last in memory, which spares copies
        both = F.conv2d(image, self.weight * self.mask, self.bias, dilation=(1, self.dilation)).permute(0, 2, 3, 1)
        first, second = both.reshape(*h.shape[:2], -1, 2 * CHANNELS).chunk(2, -1)
        return first.tanh() * second.sigmoid()


class MixHop(nn.Module):
    """sum_k H_k W_k on the graph plus the same, with weights of its own, on the reversed graph: [B, N, T, C] -> [B, N, T, C].

    Concatenated hops through a 1x1 convolution are that sum. `last=True` is the ablation that keeps H_K alone. Hops move
    between nodes, W_k [C, C] between channels, so that W_k may go first; H_0 stays where it is, in both modules.
    """

    def __init__(self, depth: int, last: bool = False):
        super().__init__()
        kept = [depth] if last else list(range(depth + 1))
        self.kept, inputs = kept, len(kept) * CHANNELS
        self.weight, self.bias = _uniform(2, len(kept), CHANNELS, CHANNELS, inputs=inputs), _uniform(2, CHANNELS, inputs=inputs)

    def forward(self, h: Tensor, moves: Tensor) -> Tensor:
        """`moves` [2, K+1, N, N] as from `walks`."""
        total = self.bias.sum(0)
        if self.kept[0] == 0:
            total = F.linear(h, self.weight[:, 0].sum(0), total)
        far = [(move[k], one[i]) for move, one in zip(moves, self.weight, strict=True) for i, k in enumerate(self.kept) if k]
        moved = torch.zeros((), device=h.device)
        for move, weight in far:
            moved = torch.baddbmm(moved, move.expand(len(h), -1, -1), F.linear(h, weight).flatten(2))
        return total + moved.view(h.shape) if far else total


class PerNode(nn.Linear):
    """Ablation: a 1x1 convolution in place of both graph modules."""

    def forward(self, h: Tensor, moves: Tensor | None) -> Tensor:
        return super().forward(h)


class Forecaster(nn.Module):
    """Past [B, N, 24] -> future [B, N, Q], both standardised. Each layer: temporal module, skip, graph module, residual, norm.

    `learner` gives the adjacency, unless one is `given` [N, N]. The weights that validated best are tracked.
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
        track(self)

    def adjacency(self, p: Any) -> Tensor | None:
        """A [N, N] as the graph modules read it, before it is normalised: A_ij is how much node i reads of node j."""
        return self.learner(p) if self.learner else self.given

    def forward(self, past: Tensor, p: Any, masks: tuple[Tensor, ...] = (), nodes: Tensor | None = None) -> Tensor:
        """`masks` [B, N, T', C] are dropout, already scaled; `nodes` picks the rows of the network that `past` holds."""
        a = self.adjacency(p)
        if nodes is not None and a is not None:
            a = a[nodes][:, nodes]
        moves = None if a is None else walks(a, p.beta, p.depth)
        x = F.pad(past, (self.length - past.shape[-1], 0))
        h, total = self.start(x[..., None]), self.skips[0](x)
        for i, (temporal, mixer, t) in enumerate(zip(self.temporal, self.mixers, self.lengths, strict=True)):
            gain, shift = (one[i] if nodes is None else one[i][nodes] for one in (self.gains, self.shifts))
            g = temporal(h) * masks[i] if masks else temporal(h)
            total = total + self.skips[i + 1](g.flatten(2))
            mixed = mixer(g, moves) + h[:, :, -t:]
            h = F.layer_norm(mixed, mixed.shape[1:], gain, shift)
        return self.out(total + self.skips[-1](h.flatten(2)))


def dropout(shapes: list[tuple[int, ...]], share: float, rng: torch.Generator) -> list[Tensor]:
    """A mask of each shape: 0 for a share of the entries, rounded to a 256th, and for the others what keeps the mean at 1.

    One random byte an entry, eight to a draw: a uniform number each would take a tenth of the training time.
    """
    sizes, edge = [int(np.prod(shape)) for shape in shapes], round(256 * share)
    drawn = torch.empty(-(-sum(sizes) // 8), dtype=torch.int64).random_(-(2**63), None, generator=rng).view(torch.uint8)
    masks = (drawn[: sum(sizes)] >= edge).float().mul_(256 / (256 - edge)).split(sizes)
    return [mask.view(shape) for mask, shape in zip(masks, shapes, strict=True)]


def edges_found(a: Tensor, graph: np.ndarray) -> dict[str, float]:
    """AUC of max(A_ij, A_ji) for pairs linked in either direction, and of A_ij for "j drives i". Nodes are no own neighbours."""
    a, upper, off = a.detach().cpu().numpy(), np.triu_indices(len(graph), 1), ~np.eye(len(graph), dtype=bool)
    either = np.maximum(graph, graph.T)[upper]
    return {"edge_auc": float(auc(either, np.maximum(a, a.T)[upper])), "directed_auc": float(auc(graph[off], a[off]))}
