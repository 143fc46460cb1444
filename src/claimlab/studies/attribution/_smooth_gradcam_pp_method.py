"""The method of the study smooth-gradcam-pp: class activation maps from first, second and third derivatives, averaged over noise.

A [B, K, h, w] are the maps of the explained layer, S [B] the score (logit) of the class, g = dS/dA. The part of the network
after the layer is piecewise linear (convolutions, ReLU, maxima, sums), so the derivatives of Y = exp(S) are powers of g:
D_p = exp(S) g^p. Nothing here knows the data set. Sources: Selvaraju et al. 2017 (Grad-CAM); Chattopadhay et al. 2018
(Grad-CAM++); Omeiza et al. 2019 (the average over noise); Jiang et al. 2021 (LayerCAM).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from claimlab.parts.attribution import SPLIT


def slopes(net: nn.Sequential, x: Tensor, target: Tensor, cut: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, g = dS/dA and S for images x [B, C, H, W], where A is what enters layer number `cut`. [B, K, h, w] twice, and [B]"""
    parts = [_slopes(net, a, b, cut) for a, b in zip(x.split(SPLIT), target.split(SPLIT), strict=True)]
    return tuple(torch.cat(one) for one in zip(*parts, strict=True))


def _slopes(net, x, target, cut):
    with torch.no_grad():
        a = net[:cut](x)
    with torch.enable_grad():
        s = net[cut:](a.requires_grad_()).gather(1, target[:, None])[:, 0]
        g = torch.autograd.grad(s.sum(), a)[0]
    return a.detach(), g, s.detach()


class Derivatives:
    """Means over copies of D_p = exp(S - largest S) g^p, p = 1, 2, 3, each [B, K, h, w]; without `exp_score` D_p = g^p.

    exp(S) overflows and its size says nothing about the map, so the largest score among the copies is taken off. When a
    copy with a larger score comes in, what was summed before shrinks accordingly.
    """

    def __init__(self, exp_score: bool = True):
        self.exp_score, self.copies, self.top, self.sums = exp_score, 0, None, None

    def add(self, g: Tensor, s: Tensor) -> None:
        """Take in one copy: g [B, K, h, w], s [B]."""
        s = s if self.exp_score else torch.zeros_like(s)
        top = s if self.top is None else torch.maximum(self.top, s)
        own = (s - top).exp().view(-1, 1, 1, 1) * g
        new = [own, own * g, own * g * g]
        if self.sums is not None:
            shrunk = (self.top - top).exp().view(-1, 1, 1, 1)
            new = [old * shrunk + more for old, more in zip(self.sums, new, strict=True)]
        self.sums, self.top, self.copies = new, top, self.copies + 1

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """D1, D2, D3 averaged over the copies so far."""
        return tuple(one / self.copies for one in self.sums)


def coefficients(d2: Tensor, d3: Tensor, a: Tensor) -> Tensor:
    """alpha_ij = D2_ij / (2 D2_ij + (sum_ab A_ab) D3_ij), 0 where that is 0 / 0 or worse. [B, K, h, w]

    The sum runs over the whole map and multiplies D3 at the SAME place ij. The denominator keeps its sign.
    """
    below = 2 * d2 + a.sum((2, 3), keepdim=True) * d3
    return torch.where(below == 0, 0.0, d2 / torch.where(below == 0, 1.0, below))


def cam(w: Tensor, a: Tensor) -> Tensor:
    """L = ReLU(sum_k w_k A_k): weights [B, K], maps [B, K, h, w] of the clean image. [B, h, w]"""
    return (w[:, :, None, None] * a).sum(1).relu()


def weights(d1: Tensor, d2: Tensor, d3: Tensor, a: Tensor) -> Tensor:
    """w_k = sum_ij alpha_ij ReLU(D1_ij). [B, K]"""
    return (coefficients(d2, d3, a) * d1.relu()).sum((2, 3))


def subset_cam(d: Sequence[Tensor], a: Tensor, keep: Sequence[int] | None = None, neurons: Tensor | None = None) -> Tensor:
    """The map from D1, D2, D3 (means or of one copy) and the clean A, for the whole layer or for a part of it. [B, h, w]

    `keep` are the feature maps k that count, `neurons` [h, w] (bool) the places ij, both in the weights and in the map.
    The sum of a whole map in alpha stays the sum of the whole map.
    """
    shown = torch.ones_like(a)
    if keep is not None:
        shown = torch.zeros_like(a)
        shown[:, list(keep)] = 1
    if neurons is not None:
        shown = shown * neurons.to(a)
    w = (coefficients(d[1], d[2], a) * d[0].relu() * shown).sum((2, 3))
    return cam(w, a * shown)


def once(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D1, D2, D3 of a single copy: exp(S - S) = 1 times the powers of g."""
    first = Derivatives()
    first.add(g, g.new_zeros(len(g)))
    return first.means()


def gradcam_pp(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM++: one copy without noise. [B, h, w]"""
    return cam(weights(*once(g), a), a)


def layercam(a: Tensor, g: Tensor) -> Tensor:
    """LayerCAM: ReLU(sum_k ReLU(g) A), a weight for each place. [B, h, w]"""
    return (g.relu() * a).sum(1).relu()


def scaled(maps: Tensor) -> Tensor:
    """Each map to [0, 1]; a constant one becomes 0. [B, h, w]"""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def copies(x: Tensor, noise: float, rng: torch.Generator) -> Iterator[Tensor]:
    """Noisy copies of x [B, C, H, W] without end: x + N(0, sigma^2), sigma = noise (max x - min x) of each image."""
    spread = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    while True:
        yield x + noise * spread * torch.randn(x.shape, generator=rng).to(x) if noise else x


class Smoothed:
    """What all methods that average over noise need from the same noisy passes. `clean` is (A, g, S) of the images."""

    def __init__(self, net: nn.Sequential, target: Tensor, cut: int, clean: tuple[Tensor, Tensor, Tensor], exp_score: bool):
        self.net, self.target, self.cut, self.a = net, target, cut, clean[0]
        self.derivatives, self.powers = Derivatives(exp_score), Derivatives(exp_score=False)
        self.finished = torch.zeros_like(self.a[:, 0])

    def add(self, noisy: Tensor) -> None:
        """One more noisy copy of all images [B, C, H, W]."""
        a, g, s = slopes(self.net, noisy, self.target, self.cut)  # the class stays that of the clean image
        self.derivatives.add(g, s)
        self.powers.add(g, s)
        self.finished = self.finished + scaled(gradcam_pp(a, g))

    def maps(self) -> dict[str, Tensor]:
        """The map of each method after the copies so far. [B, h, w] each"""
        d1 = self.powers.means()[0]
        return {
            "smooth_gradcam_pp": cam(weights(*self.derivatives.means(), self.a), self.a),
            "smooth_powers": cam(weights(*self.powers.means(), self.a), self.a),
            "smooth_gradcam": cam(d1.mean((2, 3)), self.a),
            "mean_of_maps": self.finished / self.powers.copies,
        }
