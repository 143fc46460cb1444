"""HistoGraph: two attentions over all that a graph network computed; the backbone, the plain read-outs, and over-smoothing.

Shapes: B graphs, n nodes with padding, width d, L layers; a history h is [L+1, B, n, d], layer 0 the embedded input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.validated import track

HEADS = ("last", "concat", "layers", "both")  # mean of the last layer; mean of every layer; stage 1; stages 1 and 2
FLOOR, CLIP = 1e-3, 5.0


# ---- the backbone


def batch_norm(h: Tensor, counted: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Each feature of h [B, n, d] to mean 0 and variance 1 over the nodes that are `counted` [B, n], then scale and shift [d].

    In training all real nodes count. To ask a network something, training graphs are put beside the asked ones and they alone
    count, so that an answer depends on no other test graph.
    """
    flat, share = h.flatten(0, 1), counted.flatten().to(h.dtype)
    share = (share / share.sum().clamp_min(1))[None]
    centred = flat - share @ flat
    root = (share @ centred.square() + eps).rsqrt()
    return (centred * (root * scale) + shift).unflatten(0, h.shape[:2])


class Layer(nn.Module):
    """relu(norm(P h W)) with P = D^-1/2 (A + I) D^-1/2 (GCN, Kipf and Welling 2017), or relu(norm(MLP((A + I) h))) (GIN)."""

    def __init__(self, width: int, conv: str):
        super().__init__()
        self.inner = nn.Linear(width, width) if conv == "gin" else None
        self.linear = nn.Linear(width, width, bias=False)  # the shift of the norm takes its place
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, op: Tensor, counted: Tensor) -> Tensor:
        h = op @ h
        if self.inner is not None:
            h = self.inner(h).relu()
        return batch_norm(self.linear(h), counted, self.scale, self.shift).relu()


class Backbone(nn.Module):
    """L message-passing layers without residual connections; gives the whole history."""

    def __init__(self, features: int, width: int, depth: int, conv: str):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.layers = nn.ModuleList(Layer(width, conv) for _ in range(depth))

    def forward(self, x: Tensor, op: Tensor, counted: Tensor) -> Tensor:
        found = [self.embed(x)]
        for layer in self.layers:
            found.append(layer(found[-1], op, counted))
        return torch.stack(found)


# ---- stage 1: which layers


def layer_code(count: int, width: int) -> Tensor:
    """Sinusoidal encoding of the layer index l [count, width]: sin and cos of l / 10000^(2i / width) (Vaswani et al. 2017)."""
    angle = torch.arange(count)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]


def layer_scores(h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """c_{v,l} = <W_Q h_v^(L), W_K h_v^(l)> / sqrt(d), [L+1, B, n]; h [L+1, B, n, d], query and key [d, d]."""
    asked = F.linear(F.linear(h[-1], query), key.T)  # W_K^T W_Q h_v^(L): one product for all layers
    return (h * asked).sum(-1) / math.sqrt(h.shape[-1])


def layer_weights(c: Tensor, mask: Tensor, normaliser: str = "sum") -> tuple[Tensor, Tensor]:
    """alpha [L+1, B], one weight a layer for all nodes of a graph, and the sum of the scores [B] by which they were divided.

    c [L+1, B, n] is averaged over real nodes, mask [B, n]. "sum" divides by the sum and lets weights be negative, so that layers
    can be subtracted; a sum below 1e-3 is moved away from 0 by 1e-3, and weights are cut to [-5, 5]. "softmax" is the ablation.
    """
    mean = (c * mask).sum(-1) / mask.sum(-1).clamp_min(1)
    total = mean.sum(0)
    if normaliser == "softmax":
        return mean.softmax(0), total
    side = torch.where(total < 0, -FLOOR, FLOOR)
    return (mean / torch.where(total.abs() < FLOOR, total + side, total)).clamp(-CLIP, CLIP), total


def mixed_layers(alpha: Tensor, h: Tensor) -> Tensor:
    """z_v = sum_l alpha_l h_v^(l), [B, n, d]: the values are the activations themselves."""
    return (alpha[..., None, None] * h).sum(0)


# ---- stage 2: which nodes


def node_attention(z: Tensor, mask: Tensor, into: Tensor, into_bias: Tensor, out: Tensor, out_bias: Tensor,
                   heads: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Self-attention over the nodes of each graph, without edges: [B, n, d] and weights [B, heads, n, n].

    Each node is a query; padding, where mask [B, n] is false, is no key. Weights as in torch.nn.MultiheadAttention.
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in F.linear(z, into, into_bias).chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask[..., None, None, :], -math.inf).softmax(-1)
    return F.linear((weights @ v).transpose(-3, -2).flatten(-2), out, out_bias), weights


class HistoGraph(nn.Module):
    """The head: every layer to the common width, stage 1, and with `nodes` stage 2, residual and layer norm."""

    def __init__(self, width: int, depth: int, heads: int, normaliser: str, nodes: bool):
        super().__init__()
        self.heads, self.normaliser, self.nodes = heads, normaliser, nodes
        linear = [nn.Linear(width, width) for _ in range(depth + 1)]
        self.maps = nn.Parameter(torch.stack([one.weight.detach().T for one in linear]))
        self.shifts = nn.Parameter(torch.stack([one.bias.detach() for one in linear]))
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.register_buffer("code", layer_code(depth + 1, width))
        if nodes:
            self.attention, self.norm = nn.MultiheadAttention(width, heads, batch_first=True), nn.LayerNorm(width)

    def stage1(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z [B, n, d], alpha [L+1, B], scores [L+1, B, n], their sum [B]."""
        flat = torch.baddbmm((self.shifts + self.code)[:, None], h.flatten(1, 2), self.maps)
        h = flat.unflatten(1, h.shape[1:3])
        c = layer_scores(h, self.query.weight, self.key.weight)
        alpha, total = layer_weights(c, mask, self.normaliser)
        return mixed_layers(alpha, h), alpha, c, total

    def stage2(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """LayerNorm(z + attention(z)) [B, n, d] and the attention's weights [B, heads, n, n]."""
        held = self.attention
        found, weights = node_attention(z, mask, held.in_proj_weight, held.in_proj_bias, held.out_proj.weight,
                                        held.out_proj.bias, self.heads)  # fmt: skip
        return self.norm(z + found), weights

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        z = self.stage1(h, mask)[0]
        return self.stage2(z, mask)[0] if self.nodes else z


# ---- the whole


def node_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over real nodes of h [..., B, n, d] -> [..., B, d]."""
    return (h * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)


class Net(nn.Module):
    """Backbone, one of the read-outs HEADS, and the same classifier for all: Linear, ReLU, Linear.

    The buffers keep the parameters of the best validation accuracy so far.
    """

    def __init__(self, features: int, classes: int, depth: int, head: str, *, width: int = 32, heads: int = 4,
                 normaliser: str = "sum", conv: str = "gcn"):  # fmt: skip
        super().__init__()
        self.head = head
        self.backbone = Backbone(features, width, depth, conv)
        self.classifier = nn.Sequential(nn.Linear(width * (depth + 1 if head == "concat" else 1), 32), nn.ReLU(), nn.Linear(32, classes))
        self.histograph = HistoGraph(width, depth, heads, normaliser, head == "both") if head in ("layers", "both") else None
        track(self)

    def read(self, h: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, C] from a history."""
        if self.head == "concat":
            return self.classifier(node_mean(h, mask).movedim(0, -2).flatten(-2))
        return self.classifier(node_mean(self.histograph(h, mask) if self.histograph else h[-1], mask))

    def forward(self, x: Tensor, op: Tensor, mask: Tensor, counted: Tensor | None = None) -> Tensor:
        return self.read(self.backbone(x, op, mask if counted is None else counted), mask)


# ---- over-smoothing


def dirichlet_energy(h: Tensor, a: Tensor, mask: Tensor) -> Tensor:
    """E = mean over edges |h_u - h_v|^2 / mean over nodes |h_v|^2, of each graph; h [..., B, n, d], a [B, n, n] 0 or 1 -> [..., B].

    sum over directed edges |h_u - h_v|^2 = 2 sum_v deg_v |h_v|^2 - 2 sum_uv a_uv <h_u, h_v>.
    """
    square = h.square().sum(-1) * mask
    edges = 2 * (a.sum(-1) * square).sum(-1) - 2 * (h * (a @ h)).sum((-1, -2))
    return edges / a.sum((-1, -2)).clamp_min(1) / (square.sum(-1) / mask.sum(-1)).clamp_min(1e-30)
