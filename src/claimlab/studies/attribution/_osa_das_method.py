"""The method of the study osa-das: occluders, augmented views, subspaces of features and the angles between them.

Nothing here knows the data set. An occluder h [H, W] in [0, 1] says how much of each pixel is hidden; K occluders, N views,
features of d numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from claimlab.parts.attribution import ranks, remove, rise_masks

LEVELS = 40  # shares of pixels that the minimal size is looked for among
RANK = 1e-4  # singular values below this share of the largest are rounding

# ---- what is hidden


def windows(size: tuple[int, int], side: int) -> Tensor:
    """Square windows of `side` pixels in strides of half a side, cut at the border; they cover every pixel. [K, H, W] in {0, 1}"""
    stride = max(1, side // 2)
    starts = [range(0, math.ceil(max(0, length - side) / stride) * stride + 1, stride) for length in size]
    found = torch.zeros(len(starts[0]) * len(starts[1]), *size)
    for k, (a, b) in enumerate((a, b) for a in starts[0] for b in starts[1]):
        found[k, a : a + side, b : b + side] = 1
    return found


def random_grids(count: int, size: tuple[int, int], side: int, rng: np.random.Generator) -> Tensor:
    """Soft random grids whose cells are about `side` pixels wide, half of them hidden. [count, H, W]"""
    return 1 - rise_masks(count, max(2, round(min(size) / side)), size, rng)[:, 0]


def fill(x: Tensor, kind: str, noise: Tensor | None = None) -> Tensor:
    """What a hidden pixel becomes: the image's own mean colour, black, the image blurred, or uniform noise. As x [B, C, H, W]"""
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "blur":
        far = torch.arange(-9, 10, dtype=x.dtype, device=x.device)
        weights = torch.exp(-far.square() / 18)
        weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
        wide = F.conv2d(F.pad(x, (9, 9, 9, 9), mode="reflect"), weights, groups=x.shape[1])
        return F.conv2d(wide, weights.mT, groups=x.shape[1])
    return noise.expand_as(x) if kind == "noise" else x.mean((2, 3), keepdim=True).expand_as(x)


# ---- augmented views


class Views(NamedTuple):
    """N augmentations: `theta` [N, 2, 3] from places of the view to places of the image; contrast, brightness, blur [N]."""

    theta: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor


def draw_views(count: int, strength: float, size: tuple[int, int], rng: torch.Generator, flip: bool = False) -> Views:
    """Shifts of up to 2 pixels, rotations of up to 10 degrees, brightness and contrast of +-20 %, a blur that gives up to a fifth
    of a pixel to each neighbour, all times `strength`; `flip` mirrors every other view."""
    one = strength * (2 * torch.rand(count, 5, generator=rng) - 1)
    blur = (strength * 0.2 * torch.rand(count, generator=rng)).clamp(max=1 / 3)
    (height, width), angle = size, math.radians(10) * one[:, 0]
    sign = torch.where(torch.arange(count) % 2 == 1, -1.0, 1.0) if flip else torch.ones(count)
    across, down = 4 * one[:, 1] / width, 4 * one[:, 2] / height  # two pixels, where a picture is two units wide
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([sign * cos, -sign * sin * height / width, across, sin * width / height, cos, down], 1).view(-1, 2, 3)
    return Views(theta, 1 + 0.2 * one[:, 3], 1 + 0.2 * one[:, 4], blur)


def warp(x: Tensor, theta: Tensor) -> Tensor:
    """Each image [N, C, H, W] moved by its own theta; what enters over the border is the mirrored image."""
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def augment(x: Tensor, views: Views) -> Tensor:
    """Each image [N, C, H, W] in [0, 1] changed by its own view."""
    contrast, bright, w = (v.to(x)[:, None, None, None] for v in views[1:])
    x = warp(x, views.theta)
    for axis in (2, 3):
        ends = [x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)]
        wide = torch.cat([ends[0], x, ends[1]], axis)
        x = (1 - 2 * w) * x + w * (wide.narrow(axis, 0, x.shape[axis]) + wide.narrow(axis, 2, x.shape[axis]))
    x = x * bright
    middle = x.mean((1, 2, 3), keepdim=True)
    return (middle + contrast * (x - middle)).clamp(0, 1)


def move(hidden: Tensor, views: Views) -> Tensor:
    """Occluders [K, H, W] moved as each view moves the image, so that the same content is hidden. [N, K, H, W]"""
    return warp(hidden.expand(len(views.theta), -1, -1, -1), views.theta).clamp(0, 1)


# ---- subspaces and the angles between them


def subspace(features: Tensor, m: int) -> Tensor:
    """The first m left singular vectors of F [..., d, N], its columns scaled to length 1 and NOT centred. [..., d, m]

    Columns beyond the numerical rank of F are zero: there is no such direction.
    """
    f = features.double()
    f = f / f.norm(dim=-2, keepdim=True).clamp(min=1e-12)
    u, s, _ = torch.linalg.svd(f, full_matrices=False)
    u = torch.where((s > RANK * s[..., :1]).unsqueeze(-2), u, 0.0)[..., :m]
    return F.pad(u, (0, m - u.shape[-1]))


def canonical(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """cos theta_1 >= ... >= cos theta_m of the subspaces with bases u, v [..., d, m], as the singular values of u^T v, and how
    many of them there are (the smaller rank of the two). [..., m], [...]"""
    count = torch.minimum(*((b.norm(dim=-2) > 0.5).sum(-1) for b in (u, v)))
    kept = torch.arange(u.shape[-1], device=u.device) < count[..., None]
    u, v = u * kept.unsqueeze(-2), v * kept.unsqueeze(-2)
    return torch.linalg.svdvals(u.mT @ v).clamp(max=1), count


def orthogonal_degree(u: Tensor, v: Tensor) -> Tensor:
    """o = 1 - (1/m) sum_i cos^2 theta_i: 0 for equal subspaces, 1 for orthogonal ones. [..., d, m] twice -> [...]"""
    count = torch.minimum(*((b.norm(dim=-2) > 0.5).sum(-1) for b in (u, v)))
    kept = (torch.arange(u.shape[-1], device=u.device) < count[..., None]).unsqueeze(-2)
    same = ((u * kept).mT @ (v * kept)).square().sum((-2, -1))  # the sum of squared singular values
    return (1 - same / count.clamp(min=1)).clamp(0, 1)


def heat(scores: Tensor, hidden: Tensor) -> Tensor:
    """S(p) = sum_k o_k h_k(p) / sum_k h_k(p), 0 where nothing was ever hidden. o [n, K], h [K, H, W] -> [n, H, W]"""
    cover = hidden.sum(0)
    total = torch.einsum("nk,khw->nhw", scores.to(hidden), hidden)
    return torch.where(cover > 1e-6, total / cover.clamp(min=1e-6), 0.0)


def promising(slope: Tensor, hidden: Tensor, count: int) -> Tensor:
    """The `count` occluders that hide most of the absolute gradient `slope` [n, H, W], the largest first. [n, count] indices"""
    inside = torch.einsum("nhw,khw->nk", slope, hidden)
    return inside.argsort(dim=1, descending=True, stable=True)[:, :count]


def spread(scores: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Scores [n, K'] of the chosen occluders [n, K'] among all `count`; the others get the smallest of their image. [n, count]"""
    return scores.amin(1, keepdim=True).repeat(1, count).scatter(1, chosen, scores)


# ---- what a map is worth


def mass_inside(maps: Tensor, box: Tensor) -> Tensor:
    """Share of each map [n, H, W] above its own median that lies in the box [n, H, W]; 0 where nothing is above. [n]"""
    above = (maps - maps.flatten(1).quantile(0.5, dim=1)[:, None, None]).clamp(min=0)
    total = above.sum((1, 2))
    return torch.where(total > 0, (above * box).sum((1, 2)) / total.clamp(min=1e-30), 0.0)


def minimal_size(logits, x: Tensor, target: Tensor, rank: Tensor, filler: Tensor) -> Tensor:
    """The smallest share of pixels (1/40, 2/40, ...), the most salient first, that alone on `filler` still give the class
    `target`. Every level is asked from below: keeping more need not help, so bisection could miss the smallest. [n]"""
    size = torch.ones(len(x), device=x.device)
    open_ = torch.arange(len(x), device=x.device)
    for level in range(1, LEVELS):
        if not len(open_):
            break
        kept = remove(x[open_], rank[open_], 1 - level / LEVELS, "least", filler[open_])
        with torch.no_grad():
            same = logits(kept).argmax(1) == target[open_]
        size[open_[same]] = level / LEVELS
        open_ = open_[~same]
    return size


def ordered(maps: Tensor, seed: int) -> Tensor:
    """Ranks of the pixels; ties, of which maps of windows have many, in an order that is fixed for a seed. [n, H, W]"""
    return ranks(maps, torch.Generator().manual_seed(seed))
