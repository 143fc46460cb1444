"""The method of the study lobster: gates, the optimiser that shrinks, the threshold by bisection, and the network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import hardshrink, max_pool2d, unfold

# ---- the method: weights w [..., in, out], with their gradient g = dL/dw of the mean loss of one minibatch


def insensitivity(g: Tensor, scale: float = 1.0) -> Tensor:
    """The paper's gate, ReLU(1 - |dL/dw|): 1 where the loss does not feel the weight, 0 from |dL/dw| = 1 on.

    `scale` multiplies the loss inside the gate only.
    """
    return g.abs().mul_(-scale).add_(1).clamp_min_(0)


def sensitivity(g: Tensor, q: Tensor) -> Tensor:
    """Ablation: min(1, |dL/dw| / q), which shrinks the weights that the loss needs. q [..., 1, 1] > 0."""
    return g.abs().div_(q).clamp_max_(1)


def gate_of(kind: str, g: Tensor, q: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """The gate of an arm: literal, scaled (ours: |g| in units of its 90 % quantile q in the layer), inverse; none is L2."""
    if kind == "none":
        return g.new_ones(())
    if kind == "literal":
        return insensitivity(g, scale)
    return insensitivity(g / q) if kind == "scaled" else sensitivity(g, q)


def update(w: Tensor, velocity: Tensor, gate: Tensor, lr: float, lam: float) -> None:
    """w <- w - eta v, then w <- w - lambda w gate: the shrinking is neither put through momentum nor scaled by eta."""
    w.add_(velocity, alpha=-lr)
    w.addcmul_(w, gate, value=-lam)


class Lobster(torch.optim.Optimizer):
    """SGD with momentum on the loss, and gated shrinking of the weights. A weight that is exactly 0 is pinned: it stays 0.

    `weight_decay` of a group is lambda; only the group "weights" shrinks and is pinned, biases are left alone. Every
    operation is elementwise, or within one layer of one member, so that stacked members do not touch.
    """

    def __init__(self, groups, kind: str = "literal", scale: float = 1.0, shuffle: bool = False, pin: bool = True):
        self.kind, self.scale, self.shuffle, self.pin = kind, scale, shuffle, pin
        super().__init__(groups, dict(lr=0.1, momentum=0.9, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.move(w, self.state[w], group)

    def move(self, w: Tensor, state: dict, group: dict) -> None:
        velocity = state.setdefault("velocity", torch.zeros_like(w)).mul_(group["momentum"]).add_(w.grad)
        if group.get("key") != "weights":
            w.add_(velocity, alpha=-group["lr"])
            return
        if self.pin:
            alive = torch.ne(w, 0, out=state.setdefault("alive", torch.empty_like(w)))
        if self.kind in ("scaled", "inverse"):
            follow_quantile(state, w.grad, w)
        gate = gate_of(self.kind, w.grad, state.get("q"), self.scale)
        if self.shuffle and self.kind != "none":
            gate = shuffled(gate, state)
        update(w, velocity, gate, group["lr"], group["weight_decay"])
        if self.pin:
            w.mul_(alive)


def follow_quantile(state: dict, g: Tensor, w: Tensor, share: float = 0.9) -> None:
    """Running estimate of the `share` quantile of |g| over the weights of a layer that are not pinned, in state["q"].

    It starts as the quantile itself; then q <- q exp(s - (1 - share)), s being the part of the weights with |g| > q.
    """
    size = g.abs()
    if "q" not in state:
        state["q"] = torch.quantile(size.flatten(-2), share, -1)[..., None, None].clamp_min(1e-12)
        return
    some = slice(None, None, max(1, size.shape[-2:].numel() // 20_000))  # a share is as good from every tenth weight
    size, alive = size.flatten(-2)[..., some], w.flatten(-2)[..., some].ne(0)
    above = (size > state["q"].squeeze(-1)).logical_and_(alive).sum(-1) / alive.sum(-1).clamp_min(1)
    state["q"].mul_((above - (1 - share)).exp()[..., None, None]).clamp_min_(1e-12)


def shuffled(gate: Tensor, state: dict) -> Tensor:
    """Each weight gets the gate of another weight of its layer: a fixed random order, turned by a random offset a step."""
    n = gate.shape[-2:].numel()
    state["turn"] = state.get("turn", 0) + 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    offset = int(torch.randint(n, (1,), generator=torch.Generator().manual_seed(state["turn"])))
    return gate.flatten(-2)[..., order.roll(offset).to(gate.device)].view_as(gate)


def magnitudes(weights: list[Tensor]) -> Tensor:
    """|w| of all weights that are left, in ascending order: one list for all layers, since they share one threshold."""
    sizes = torch.cat([w.detach().abs().flatten() for w in weights])
    return sizes[sizes > 0].sort().values


def cut(weights: list[Tensor], threshold: Tensor) -> list[Tensor]:
    """The weights with |w| < threshold set to 0 (hardshrink takes those at its bound as well, hence the float below)."""
    below = float(torch.nextafter(threshold, torch.zeros_like(threshold)))
    return [hardshrink(w, below) for w in weights]


def bisect(sizes: Tensor, loss: Callable[[Tensor], Tensor], bound: float, parts: int = 300) -> int:
    """How many of the smallest weights can go until loss(threshold) crosses `bound`: bisection over ascending `sizes` [n].

    Cutting at sizes[k] removes k weights. Exact where n <= `parts`, else to n / parts weights (on the safe side).
    """
    low, high = 0, len(sizes)
    while high - low > max(1, len(sizes) // parts):
        middle = (low + high) // 2
        low, high = (middle, high) if loss(sizes[middle]) <= bound else (low, middle)
    return low


# ---- the network; how far a member is in the stage loop lies in its buffers

STAGE = ("best", "bound", "waited", "prunings", "stopped", "checks", "readings", "target", "record", "record_accuracy")
READING = ("gate_mean", "gate_spread", "step_cosine", "gradient_median", "gradient_q90", "gradient_q99", "gradient_max")


class LeNet(nn.Module):
    """Layers of `shapes` (in, out) with ReLU, the first `convolutions` of them 5 x 5 convolutions with pooling, which are
    kept as matrices [channels * 25, out]. torch's initial law. `pinned_0`, ... hold the number of the pruning that took a
    weight (0: it is left)."""

    def __init__(self, shapes: list[tuple[int, int]], convolutions: int = 0):
        super().__init__()
        self.convolutions = convolutions
        self.weights = nn.ParameterList(torch.empty(a, b).uniform_(-(a**-0.5), a**-0.5) for a, b in shapes)
        self.biases = nn.ParameterList(torch.empty(b).uniform_(-(a**-0.5), a**-0.5) for a, b in shapes)
        for i, shape in enumerate(shapes):
            self.register_buffer(f"pinned_{i}", torch.zeros(shape, dtype=torch.uint8))
        for name in STAGE:
            self.register_buffer(name, torch.tensor({"best": math.inf, "target": math.nan}.get(name, 0.0)))
        self.register_buffer("reading", torch.zeros(len(READING)))
        self.register_buffer("spread", torch.zeros(()))

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """x [B, pixels] -> logits [B, classes], with `weights` in place of the net's own if given."""
        layers = list(zip(weights or self.weights, self.biases, strict=True))
        for w, b in layers[: self.convolutions]:
            side = round(math.sqrt(x.shape[1] * 25 // w.shape[0])) if x.dim() == 2 else x.shape[-1]
            image = x.unflatten(1, (w.shape[0] // 25, side, side)) if x.dim() == 2 else x
            maps = (unfold(image, 5).transpose(1, 2) @ w + b).transpose(1, 2).unflatten(2, (side - 4, side - 4))
            x = max_pool2d(maps.relu(), 2)
        x = x.flatten(1)
        for w, b in layers[self.convolutions : -1]:
            x = (x @ w + b).relu()
        return x @ layers[-1][0] + layers[-1][1]

    @property
    def size(self) -> int:
        return sum(w.numel() for w in self.weights)

    @property
    def left(self) -> int:
        """Weights that are not 0."""
        return sum(int(w.count_nonzero()) for w in self.weights)


def lenet(network: str, pixels: int, classes: int) -> LeNet:
    """LeNet-300 (784-300-100-10), its small form 64-32-10 for 8 x 8 digits, or LeNet-5 (20 and 50 maps, 500 units)."""
    if network == "lenet5":
        return LeNet([(25, 20), (20 * 25, 50), (50 * 16, 500), (500, classes)], convolutions=2)
    widths = (pixels, 300, 100, classes) if pixels > 64 else (pixels, 32, classes)
    return LeNet(list(zip(widths, widths[1:], strict=False)))
