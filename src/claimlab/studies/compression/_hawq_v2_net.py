"""The networks of the study hawq-v2: a small CNN with unequal layers, trained with batch norm and measured with it folded in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, linear

from claimlab.studies.compression import _hawq_v2_method as rule

CONVOLUTIONS = ((1, 8, 1), (8, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2))  # in, out, stride; all 3 x 3
LAYERS = ("conv 1-8", "conv 8-16", "conv 16-16", "conv 16-32", "conv 32-32", "conv 32-64", "linear 64-64", "linear 64-10")
EPSILON = 1e-5
ACTIVATION_BITS = (2, 4, 8)


class Cnn(nn.Module):
    """Six convolutions with batch norm, mean over the picture, two linear layers: x [B, C, H, W] -> logits [B, classes].

    In training the batch's own statistics; `fold` puts those of a whole data set into weights and biases. The buffers hold
    what `measure` found, and how far that is: `measured` is 0 or 1.
    """

    def __init__(self, channels: int, classes: int, activation: str, probes: int):
        super().__init__()
        self.activation = activation
        shapes = [(b, channels if i == 0 else a, 3, 3) for i, (a, b, _) in enumerate(CONVOLUTIONS)] + [(64, 64), (classes, 64)]
        self.weights = nn.ParameterList(torch.randn(s) * math.sqrt(2 / math.prod(s[1:])) for s in shapes)
        self.biases = nn.ParameterList(torch.zeros(s[0]) for s in shapes)
        self.gains = nn.ParameterList(torch.ones(b) for _, b, _ in CONVOLUTIONS)
        sizes = {"traces": (probes, 8), "eigenvalues": (8,), "errors": (8, 5), "rises": (8, 3), "activation_traces": (probes, 7),
                 "activation_errors": (7, 3), "high": (7,), "handed": (7,), "slope": (), "measured": ()}  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        for i, (_, _, stride) in enumerate(CONVOLUTIONS):
            x = conv2d(x, self.weights[i], stride=stride, padding=1)
            x = batch_norm(x, None, None, self.gains[i], self.biases[i], training=True, eps=EPSILON)
            x = act(x, self.activation)
        x = act(linear(x.mean((2, 3)), self.weights[6], self.biases[6]), self.activation)
        return linear(x, self.weights[7], self.biases[7])

    @torch.no_grad()
    def fold(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the network without batch norm that answers alike, with the statistics of x."""
        weights, biases = [w.detach().clone() for w in self.weights], [b.detach().clone() for b in self.biases]
        for i, (_, _, stride) in enumerate(CONVOLUTIONS):
            h = conv2d(x, weights[i], stride=stride, padding=1)
            var, mean = torch.var_mean(h, (0, 2, 3), correction=0)
            scale = self.gains[i] * (var + EPSILON).rsqrt()
            weights[i], biases[i] = weights[i] * scale.view(-1, 1, 1, 1), biases[i] - mean * scale
            x = act((h - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + self.biases[i].view(-1, 1, 1), self.activation)
        return weights, biases


def act(x: Tensor, name: str) -> Tensor:
    return getattr(torch.nn.functional, name)(x)


def answer(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, activation: str = "relu", *,
           shift: Sequence[Tensor] | None = None, bits: Sequence[int] | None = None, high: Tensor | None = None,
           seen: list | None = None) -> Tensor:  # fmt: skip
    """Logits of the folded network. `shift` [7] is added to what each layer hands on; `bits` [7] quantises that (0: not),
    with `high` [7] the top of its range; `seen` collects it."""
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if i < len(CONVOLUTIONS):
            x = conv2d(x, w, b, stride=CONVOLUTIONS[i][2], padding=1)
        else:
            x = linear(x.mean((2, 3)) if i == len(CONVOLUTIONS) else x, w, b)
        if i == len(weights) - 1:
            return x
        x = act(x, activation)
        x = x if shift is None else x + shift[i]
        if bits is not None and bits[i]:
            x = rule.straight_through(x, rule.quantize_activation(x, bits[i], high[i]))
        if seen is not None:
            seen.append(x)


@torch.no_grad()
def loss_of(weights, biases, x: Tensor, y: Tensor, activation: str, **options) -> Tensor:
    return cross_entropy(answer(weights, biases, x, activation, **options), y)


def measure(net: Cnn, x: Tensor, y: Tensor, probes: int, batch: int, iterations: int, rng: torch.Generator) -> None:
    """Everything that the choice of bits needs, and what it is compared with, into the buffers of `net`.

    Curvature on the first `batch` of x, after folding; the true rise of the loss on all of x.
    """
    weights, biases = net.fold(x)
    some, labels, name = x[:batch], y[:batch], net.activation
    with torch.enable_grad():
        parts = [w.requires_grad_() for w in weights]
        loss = cross_entropy(answer(parts, biases, some, name), labels)
        net.traces.copy_(rule.hutchinson(loss, parts, probes, rng))
        net.slope.copy_(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parts)]).norm())
        weights = [w.detach() for w in weights]

        def around(i: int):
            return lambda part: cross_entropy(answer([*weights[:i], part, *weights[i + 1 :]], biases, some, name), labels)

        net.eigenvalues.copy_(torch.stack([rule.top_eigenvalue(around(i), w, iterations, rng) for i, w in enumerate(weights)]))
        handed: list[Tensor] = []
        answer(weights, biases, some, name, seen=handed)
        shift = [torch.zeros_like(a, requires_grad=True) for a in handed]
        # the sum over images: the Hessian is block diagonal in them, so that one probe serves all; then the mean
        total = cross_entropy(answer(weights, biases, some, name, shift=shift), labels, reduction="sum")
        net.activation_traces.copy_(rule.hutchinson(total, shift, probes, rng) / len(some))
    with torch.no_grad():
        _errors(net, weights, biases, handed, x, y)
    net.measured.fill_(1)


def _errors(net: Cnn, weights, biases, handed: list[Tensor], x: Tensor, y: Tensor) -> None:
    before = loss_of(weights, biases, x, y, net.activation)
    for i, w in enumerate(weights):
        cut = {b: rule.quantize(w, b) for b in rule.BITS}
        net.errors[i] = torch.stack([(q - w).square().sum() for q in cut.values()])
        rises = [loss_of([*weights[:i], cut[b], *weights[i + 1 :]], biases, x, y, net.activation) - before for b in (2, 3, 4)]
        net.rises[i] = torch.stack(rises)
    net.handed.copy_(torch.tensor([a[0].numel() for a in handed]))
    for i, a in enumerate(handed):
        net.high[i] = a.flatten()[:: max(1, a.numel() // 1_000_000)].quantile(0.999).clamp_min(1e-6)
        off = [(rule.quantize_activation(a, b, net.high[i]) - a).square().sum() / len(a) for b in ACTIVATION_BITS]
        net.activation_errors[i] = torch.stack(off)
