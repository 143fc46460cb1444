"""The networks of the study numerical-precision: copies of one perceptron, a number format each; what their errors are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from claimlab.studies.compression._numerical_precision_format import to_format, uniform_bits

MEMO = 2.0**-40  # unit of the memo, small beside any weight: whoever compares networks over all parameters compares weights
SLOPES = {"relu": lambda a: (a > 0).to(a.dtype), "tanh": lambda a: 1 - a * a, "sigmoid": lambda a: a * (1 - a)}


class Copies(nn.Module):
    """K perceptrons that start alike: x [..., B, in] -> logits [K, B, out]. Weights [K, in, out], biases [K, 1, out] (0).

    He's initial law, or Glorot's for the activations that saturate. `mantissa` [K] tells each copy's format, 23 being
    float32. `memo` is no weight, no loss depends on it: a parameter so that the optimiser can read it (see `note`).
    """

    def __init__(self, sizes: list[int], mantissa: tuple[int, ...], activation: str = "relu"):
        super().__init__()
        self.activation, pairs, k = activation, list(zip(sizes, sizes[1:], strict=False)), len(mantissa)
        spread = [math.sqrt(2 / a if activation == "relu" else 2 / (a + b)) for a, b in pairs]
        first = [torch.randn(a, b) * s for (a, b), s in zip(pairs, spread, strict=True)]
        self.weights = nn.ParameterList(w.expand(k, -1, -1).clone() for w in first)
        self.biases = nn.ParameterList(torch.zeros(k, 1, b) for _, b in pairs)
        self.memo = nn.Parameter(torch.zeros(2))
        self.register_buffer("mantissa", torch.tensor(mantissa, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return states(list(self.weights), list(self.biases), x, self.activation)[-1]

    @torch.no_grad()
    def note(self, seed: int, due: bool) -> None:
        """Leave word for the coming step: the seed of its noise (24 bits, which float32 holds), and whether it is rounded."""
        self.memo[0] = MEMO * (seed if due else -1 - seed)

    @property
    def lr(self) -> float:
        """The learning rate of the last step; 0 before the first."""
        return float(self.memo.detach()[1]) / MEMO

    def one(self, k: int) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of copy k, detached, with K = 1 in front."""
        return [w[k][None].detach() for w in self.weights], [b[k][None].detach() for b in self.biases]


def states(weights: list[Tensor], biases: list[Tensor], x: Tensor, activation: str = "relu") -> list[Tensor]:
    """What every layer hands on, and at the end the logits: a_1 = f(x W_1 + b_1), ..., each [K, B, units]."""
    found = []
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w + b
        found.append(x := getattr(torch, activation)(x) if i < len(weights) - 1 else x)
    return found


def backward(inner: list[Tensor], weights: list[Tensor], x: Tensor, y: Tensor, activation: str = "relu") -> list[Tensor]:
    """Gradient of the mean cross-entropy by hand: for layer l the tensor [K, in + 1, out] of its weights and, below, biases.

    The stored states `inner` (from `states`) and the `weights` through which the error goes back may belong to different
    networks: so the two sources of a gradient's error can be told apart.
    """
    delta = (inner[-1].softmax(-1) - one_hot(y, inner[-1].shape[-1])) / len(y)
    found = []
    for i in range(len(weights) - 1, -1, -1):
        before = inner[i - 1] if i else x.expand(len(delta), *x.shape)
        found.append(torch.cat([before.mT @ delta, delta.sum(-2, keepdim=True)], -2))
        if i:
            delta = (delta @ weights[i].mT) * SLOPES[activation](before)
    return found[::-1]


def relative(changed: list[Tensor], exact: list[Tensor]) -> Tensor:
    """||changed - exact|| / ||exact|| of tensors [K, ...] taken together as one vector; [K]."""
    off = sum((c - e).square().flatten(1).sum(1) for c, e in zip(changed, exact, strict=True))
    return (off / sum(e.square().flatten(1).sum(1) for e in exact)).sqrt()


def forward_bound(weights: list[Tensor], biases: list[Tensor], inner: list[Tensor], x: Tensor, u: Tensor) -> Tensor:
    """Upper bound on the error of the logits, in the Frobenius norm over a batch, when all parameters err by at most u
    relatively; 1-Lipschitz activation. u [K]; weights, biases and states of the exact network [1, ...]; [K].

    d_{l+1} <= ||W|| d_l + u || |W| || (||a_l|| + d_l) + u ||b|| sqrt(B), spectral norms; to first order linear in u.
    """
    d, states_in = torch.zeros_like(u), [x[None], *inner[:-1]]
    for w, b, a in zip(weights, biases, states_in, strict=True):
        norm, norm_abs = (torch.linalg.matrix_norm(v, 2) for v in (w, w.abs()))
        d = norm * d + u * (norm_abs * (a.norm() + d) + b.norm() * math.sqrt(a.shape[-2]))
    return d


# ---- training: one step of gradient descent, and what the format does to it


def descend(w: Tensor, g: Tensor, lr: float, kind: str, mantissa: Tensor, exponent: int = 8, noise: Tensor | None = None,
            infinity: bool = False) -> Tensor:  # fmt: skip
    """w after one step on the gradient g, both [..., K, in, out]; the last copy is the float32 reference.

    kind: how the new weights are rounded (truncate, nearest, stochastic), `float32` (not at all), or `update_only`: the
    step is truncated and the weights stay float32. mantissa [K - 1, 1, 1].
    """
    if kind == "update_only":
        change = lr * g
        change[..., :-1, :, :] = to_format(change[..., :-1, :, :], mantissa, exponent, infinity=infinity)
        return w - change
    w = torch.add(w, g, alpha=-lr)
    if kind != "float32":
        cut = w[..., :-1, :, :]
        cut.copy_(to_format(cut, mantissa, exponent, kind, noise=noise, infinity=infinity))
    return w


class Rounded(torch.optim.Optimizer):
    """Plain SGD whose weights and biases are brought to the format of their copy after each step.

    Formats come from `task` (its knobs can be steered). Elementwise; noise is one draw a member, shared by its copies.
    """

    def __init__(self, groups, task):
        self.task = task
        super().__init__(groups, dict(lr=0.1))

    @torch.no_grad()
    def step(self, closure=None):
        by_name = {group["key"]: group for group in self.param_groups}
        memos = by_name.pop("memo")["params"]
        seeds = [(memo.reshape(-1, 2)[:, 0] / MEMO).int().tolist() for memo in memos]
        rngs = [[torch.Generator().manual_seed(abs(s)) for s in one] for one in seeds]
        for group in by_name.values():
            share = len(group["params"]) // len(memos)  # layers of a member, or of all members where they are stacked
            for i, w in enumerate(group["params"]):
                if w.grad is not None:
                    self.move(w, group["lr"], seeds[i // share], rngs[i // share])
            for memo in memos:
                memo[..., 1] = group["lr"] * MEMO

    def move(self, w: Tensor, lr: float, seeds: list[int], rngs: list[torch.Generator]) -> None:
        kind, due = self.task.kind, seeds[0] >= 0
        noise = None
        if kind == "stochastic":  # drawn even where it is not due, so that the stream does not depend on `every`
            noise = torch.stack([uniform_bits((1, *w.shape[-2:]), rng) for rng in rngs]).to(w.device)
            noise = noise if w.dim() == 4 else noise[0]
        mantissa = torch.tensor(self.task.widths[:-1], dtype=torch.int32, device=w.device)[:, None, None]
        kind = kind if due or kind == "update_only" else "float32"
        w.copy_(descend(w, w.grad, lr, kind, mantissa, self.task.exponent, noise, self.task.p.infinity))
