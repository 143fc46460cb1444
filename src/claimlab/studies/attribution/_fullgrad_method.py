"""The method of the study fullgrad: the full-gradient decomposition, the map painted from it, its rivals, and the test of a map.

Nothing here knows the data set. f is the logit of class `target` [B] of a network in evaluation mode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.attribution import enlarge, gradcam, gradient, integrated, predicted, smoothgrad

SMOOTH = (nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


class Parts(NamedTuple):
    """f(x) = input.sum() + sum over the terms, for each of B images; `terms` are (kind, bias-gradient [B, C, h, w] or [B, C])."""

    logit: Tensor  # [B]
    input: Tensor  # [B, C, H, W]: gradient times input, with its sign
    terms: list[tuple[str, Tensor]]  # kind: conv, norm, smooth or linear, in the order of the network

    def bias(self, kinds=("conv", "norm", "smooth", "linear")) -> Tensor:
        """Sum of the bias parts of these kinds. [B]"""
        return sum((t.flatten(1).sum(1) for kind, t in self.terms if kind in kinds), torch.zeros_like(self.logit))


def additive(layer: nn.Module, inside: Tensor, outside: Tensor) -> tuple[str, Tensor] | None:
    """Kind and value of the constant that `layer` adds, in the shape of its output [B, C, ...]; None where it adds nothing.

    convolution, linear: b.  Batch norm in evaluation mode is the scale gamma / sqrt(var + eps) with the bias
    beta - mean gamma / sqrt(var + eps).  A smooth activation eta at z adds eta(z) - eta'(z) z.
    """
    if isinstance(layer, nn.BatchNorm2d):
        scale = (1 if layer.weight is None else layer.weight) / torch.sqrt(layer.running_var + layer.eps)
        return "norm", ((0 if layer.bias is None else layer.bias) - layer.running_mean * scale)[:, None, None].expand_as(outside)
    if isinstance(layer, SMOOTH):
        z = inside.detach().requires_grad_()
        return "smooth", outside - torch.autograd.grad(layer(z).sum(), z)[0] * inside
    if layer.__class__ not in (nn.Conv2d, nn.Linear) or layer.bias is None:
        return None
    kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
    return kind, (layer.bias[:, None, None] if kind == "conv" else layer.bias).expand_as(outside)


def full_gradient(net: nn.Module, x: Tensor, target: Tensor) -> Parts:
    """f(x; b) = grad_x f . x + grad_b f . b, one backward pass; f is the logit `target` [B] of `net` in evaluation mode.

    Exact for a piecewise-linear net, because ReLU, pooling and addition are positively homogeneous in (x, b) jointly: b runs
    over all additive constants. A convolution's bias acts at every position, so its part is a map. Source: sections 3 and 4.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *SMOOTH))]
    hooks = [m.register_forward_hook(lambda m, given, out: calls.append((m, given[0], out))) for m in layers]
    try:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logit = net(x).gather(1, target[:, None])[:, 0]
            slopes = torch.autograd.grad(logit.sum(), [x, *(out for _, _, out in calls)])
    finally:
        for hook in hooks:
            hook.remove()
    with torch.enable_grad():  # after the hooks are gone: a smooth activation is called once more for its slope
        found = [(additive(*call), slope) for call, slope in zip(calls, slopes[1:], strict=True)]
    terms = [(one[0], (slope * one[1]).detach()) for one, slope in found if one is not None]
    return Parts(logit.detach(), slopes[0] * x.detach(), terms)


def psi(term: Tensor, post: str) -> Tensor:
    """abs, then to [0, 1] over the layer or each channel of one image, then summed over channels. [B, C, h, w] -> [B, h, w]"""
    if post == "none":
        return term.sum(1)
    if post == "relu":
        return term.relu().sum(1)
    size = term.abs()
    if post == "abs":
        return size.sum(1)
    over = (1, 2, 3) if post == "abs_rescale_layer" else (2, 3)
    low = size.amin(over, keepdim=True)
    span = size.amax(over, keepdim=True) - low
    return torch.where(span < 1e-8, 0.0, (size - low) / span.clamp(min=1e-8)).sum(1)  # a dead channel stays dark


def picture(parts: Parts, post: str = "abs_rescale_layer", layers: str = "all", kinds=("conv", "norm", "smooth"),
            with_input: bool = True, shuffle: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """S(x) = psi(grad_x f * x) + sum over layers l and channels c of psi(f^b(l, c)), each enlarged to the image. [B, H, W]

    A linear layer's bias has no place: it is left out, except with post = "none", where it is spread evenly so that the map
    sums to f. `shuffle` permutes the positions of every bias map.
    """
    maps = [t for kind, t in parts.terms if t.dim() == 4]
    half = len(maps) // 2
    kept = {"all": range(len(maps)), "first_half": range(half), "last_half": range(half, len(maps))}[layers]
    kinds_of_maps = [kind for kind, t in parts.terms if t.dim() == 4]
    size = parts.input.shape[-2:]
    total = psi(parts.input, post) if with_input else torch.zeros_like(parts.input[:, 0])
    for i in kept:
        if kinds_of_maps[i] in kinds:
            small = psi(maps[i] if shuffle is None else scatter(maps[i], shuffle), post)
            total = total + enlarge(small, size, keep_sum=post == "none")
    return total + parts.bias(("linear",))[:, None, None] / size.numel() if post == "none" else total


def scatter(maps: Tensor, rng: torch.Generator) -> Tensor:
    """The same values at random places, independently for every image and channel. [B, C, h, w]"""
    flat = maps.flatten(2)
    places = torch.rand(flat.shape, generator=rng).argsort(2).to(maps.device)
    return flat.gather(2, places).view_as(maps)


# ---- the rivals, all for the same logit; absolute values are summed over colour. (net, x [B, C, H, W], target [B]) -> [B, H, W]


def edge(x: Tensor) -> Tensor:
    """Sobel magnitude summed over colour: a picture of the image alone."""
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).to(x) / 8
    kernel = torch.stack([across, across.T])[:, None]
    flat = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, kernel).norm(dim=1).view_as(x).sum(1)


# ---- every method by its name: the kinds of bias that are painted, or a rival

TERMS = {"fullgrad": ("conv", "norm", "smooth"), "bias_only": ("conv", "norm", "smooth"), "explicit_bias_only": ("conv",)}
RIVALS = {
    "input_gradient": lambda net, x, c, rng: gradient(net, x, c).abs().sum(1),
    "grad_x_input": lambda net, x, c, rng: (gradient(net, x, c) * x).abs().sum(1),
    "smoothgrad": smoothgrad,
    "integrated_gradients": lambda net, x, c, rng: integrated(net, x, c).abs().sum(1),
    "gradcam": lambda net, x, c, rng: gradcam(net, x, c),
    "random": lambda net, x, c, rng: torch.rand(x[:, 0].shape, generator=rng).to(x),
    "edge": lambda net, x, c, rng: edge(x),
}


def saliency(name: str, net: nn.Module, x: Tensor, p, rng: torch.Generator) -> Tensor:
    """The map of method `name` for the predicted class, a hundred images at a time. [B, C, H, W] -> [B, H, W]

    `p` holds post, layers and shuffle_bias; `rng` draws noise, random maps and permutations.
    """

    def one(x: Tensor) -> Tensor:
        c = predicted(net, x)
        if name in RIVALS:
            return RIVALS[name](net, x, c, rng)
        shuffle = rng if p.shuffle_bias else None
        return picture(full_gradient(net, x, c), p.post, p.layers, TERMS[name], name != "bias_only", shuffle)

    return torch.cat([one(part) for part in x.split(100)])


def sums(name: str, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the predicted class and the sum of the parts that method `name` knows. [B], [B]"""
    parts = full_gradient(net, x, predicted(net, x))
    kinds = {"grad_x_input": (), **TERMS}[name]
    own = parts.bias((*kinds, "linear")) if kinds else 0.0
    return parts.logit, own + (0.0 if name == "bias_only" else parts.input.flatten(1).sum(1))


# ---- the two tests of a map


def filling(x: Tensor, fill: str, mean: Tensor) -> Tensor:
    """What removed pixels become: black, the training mean of each colour [C], or the image blurred by a 7 x 7 box."""
    if fill == "blur":
        return F.avg_pool2d(x, 7, 1, 3, count_include_pad=False)
    return (mean if fill == "mean" else torch.zeros_like(mean))[:, None, None]


def output_change(net: nn.Module, x: Tensor, changed: Tensor) -> float:
    """Mean over images of |f_c(x) - f_c(x')| / |f_c(x)|, c the class predicted for x."""
    with torch.no_grad():
        before, after = net(x), net(changed)
        c = before.argmax(1, keepdim=True)
        f = before.gather(1, c)
        return float(((f - after.gather(1, c)).abs() / f.abs()).mean())


def shares(fraction: float) -> list[float]:
    """Five shares around `fraction`: 10, 20, 30, 40, 50 % for 0.3."""
    return np.linspace(fraction / 3, min(5 * fraction / 3, 0.95), 5).tolist()
