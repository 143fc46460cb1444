"""The method of the study extremal-perturbations: perturbations, smooth masks, the area loss, rewards, and masks that form.

Nothing here knows the data set. A mask m [B, H, W] in [0, 1] says how sharp each pixel stays: 1 is the picture, 0 fully perturbed.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

LEVELS, BLUR = 8, 5.0  # levels of the pyramid; strongest blur in pixels, for 32 pixels
FEW = 4  # masks in one pass: more fall out of the processor's cache
TEMPERATURE, REACH = 1 / 20, 1.5  # of the smooth maximum; where the kernel is cut off, in units of sigma
MARGIN = 1  # nodes beyond each border

# ---- what happens outside the mask


def gaussian(side: int, sigma: float) -> Tensor:
    """Matrix [side, side] that blurs a line by a Gaussian of `sigma` pixels, cut off at 4 sigma, mirrored at the ends."""
    reach = int(4 * sigma + 0.5)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight = torch.exp(-at.square() / (2 * sigma * sigma)) if sigma else torch.ones(1, dtype=torch.float64)
    place = (torch.arange(side)[:, None] + at.long()).remainder(2 * side)
    place = torch.minimum(place, 2 * side - 1 - place)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, place, (weight / weight.sum()).expand(side, -1)).float()


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of the last two axes. [..., H, W]"""
    rows, columns = (gaussian(side, sigma).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def pyramid(x: Tensor, kind: str = "blur", strongest: float = BLUR) -> Tensor:
    """Pictures [B, C, H, W] from fully perturbed (level 0) to untouched (last level). [B, L, C, H, W]

    blur: sigma_l = `strongest` (1 - l / (L - 1)) with L = 8; fade: black and the picture.
    """
    if kind == "fade":
        return torch.stack([torch.zeros_like(x), x], dim=1)
    return torch.stack([blur(x, strongest * (1 - k / (LEVELS - 1))) for k in range(LEVELS)], dim=1)


def perturb(levels: Tensor, m: Tensor) -> Tensor:
    """m (x) x: each pixel read from its pyramid [B, L, C, H, W] at height m [B, H, W], linear between levels. [B, C, H, W]"""
    height = m * (levels.shape[1] - 1)
    low = height.detach().floor().clamp(0, levels.shape[1] - 2)
    at = low.long()[:, None, None].expand(-1, 1, levels.shape[2], -1, -1)
    below, above = levels.gather(1, at)[:, 0], levels.gather(1, at + 1)[:, 0]
    return below + (height - low)[:, None] * (above - below)

# ---- the smooth family of masks


def smooth_maximum(z: Tensor, temperature: float = TEMPERATURE, dim: int = -1) -> Tensor:
    """sum z exp(z/T) / sum exp(z/T): between the mean (T large) and the maximum (T to 0)."""
    return (z * (z / temperature).softmax(dim)).sum(dim)


class MaxConvolution(torch.autograd.Function):
    """smax over k of weight[p, k] nodes[b, k, c], for nodes [B, K, C] and weight [P, K]. [B, P, C]

    With z the product, w the softmax of z/T and M its smooth maximum, dM/dz = w (1 + (z - M)/T); kept from the way forward.
    """

    @staticmethod
    def forward(ctx, nodes, weight, temperature):
        slope = nodes.new_empty(len(nodes), *weight.shape, nodes.shape[2])
        top = nodes.new_empty(len(nodes), len(weight), nodes.shape[2])
        for b in range(0, len(nodes), FEW):
            z = weight[..., None] * nodes[b : b + FEW, None]
            w = (z - 1).div_(temperature).exp_()  # z <= 1: nothing overflows
            share = 1 / w.sum(2)
            top[b : b + FEW] = m = (z * w).sum(2) * share
            z.sub_(m[:, :, None]).div_(temperature).add_(1).mul_(w)
            torch.mul(z, share[:, :, None] * weight[..., None], out=slope[b : b + FEW])
        ctx.save_for_backward(slope)
        return top

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        parts = [(grad[b : b + FEW, :, None] * slope[b : b + FEW]).sum(1) for b in range(0, len(grad), FEW)]
        return torch.cat(parts), None, None


class Smooth:
    """Masks m(u) = smax_i k(|u - u_i|) mbar_i on pictures of `size`, from parameters mbar on a grid of `step` pixels.

    k(r) = exp(-2 max(r/sigma - 1/2, 0)^2), cut off at REACH sigma. The grid goes on for MARGIN nodes beyond the border, so that
    masks can leave the picture; nodes further out are zero. Source: section 3.2 of the paper.
    """

    def __init__(self, size: tuple[int, int], sigma: float):
        self.size, self.sigma = size, sigma
        self.step = max(1, round(0.6 * sigma))
        self.around = math.ceil(REACH * sigma / self.step)
        self.cells = [math.ceil(side / self.step) for side in size]
        self.nodes = tuple(side + 2 * MARGIN for side in self.cells)
        inside = torch.arange(self.step)[:, None] - self.step * torch.arange(-self.around, self.around + 1)  # pixel - node
        square = inside.square()
        far = (square[:, None, :, None] + square[None, :, None, :]).double().sqrt().flatten(2).flatten(0, 1) / sigma  # [P, K]
        kernel = torch.where(far <= REACH, torch.exp(-2 * (far - 0.5).clamp(min=0).square()), 0.0)
        self.felt = kernel.amax(0) > 0
        self.weight = kernel[:, self.felt].float()

    def masks(self, nodes: Tensor, temperature: float = TEMPERATURE) -> Tensor:
        """[B, *self.nodes] -> [B, H, W]"""
        around = F.unfold(nodes[:, None], 2 * self.around + 1, padding=self.around - MARGIN)  # [B, offsets, cells]
        around = around[:, self.felt.to(nodes.device)]
        found = MaxConvolution.apply(around, self.weight.to(nodes), temperature)
        found = found.view(-1, self.step, self.step, *self.cells).permute(0, 3, 1, 4, 2)
        return found.reshape(len(nodes), self.step * self.cells[0], -1)[:, : self.size[0], : self.size[1]]


class Free:
    """The family without smoothness: a parameter a pixel."""

    def __init__(self, size: tuple[int, int]):
        self.nodes = size

    def masks(self, nodes: Tensor) -> Tensor:
        return nodes


class Coarse(Free):
    """The family of 2017: a grid of `step` pixels, enlarged bilinearly."""

    def __init__(self, size: tuple[int, int], step: int):
        self.size, self.nodes = size, tuple(-(-side // step) for side in size)

    def masks(self, nodes: Tensor) -> Tensor:
        return F.interpolate(nodes[:, None], size=self.size, mode="bilinear")[:, 0]

# ---- what a mask should do


def wanted(m: Tensor, area: Tensor) -> Tensor:
    """The reference r_a at the place of each value of m [B, n]: 1 for the round(area n) largest, 0 for the others. [B, n]

    Equal values at the threshold share what is left: the mean over all orders in which a sort could put them.
    """
    count = (area * m.shape[1]).round().long().clamp(1, m.shape[1])[:, None]
    rising = torch.from_numpy(np.sort(m.numpy(force=True), axis=1)).to(m.device)  # thirty times as fast as torch.sort
    edge = rising.gather(1, m.shape[1] - count)
    above, equal = m > edge, m == edge
    share = (count - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True)
    return torch.where(equal, share, above.to(m))


def area_loss(m: Tensor, area: Tensor) -> Tensor:
    """R_a(m) = mean (sort(m) - r_a)^2 of each mask, m [B, ...] flattened, area [B] in (0, 1]. [B]

    Written without the sort: (m - 1)^2 where the reference is 1, m^2 where it is 0. The gradient 2 (m - r_a) / n is that of the
    sorted form; where values are equal (at the start all are) no place is favoured, as it is by an order that a sort invents.
    """
    m = m.flatten(1)
    r = wanted(m.detach(), area)
    return (r * (m - 1).square() + (1 - r) * m.square()).mean(1)


def reward(logits: Tensor, target: Tensor, kind: str = "logit") -> Tensor:
    """Phi_c: the logit of the class [B], or what it has over the best of the others (contrastive). [B]"""
    own = logits.gather(1, target[:, None])[:, 0]
    if kind == "logit":
        return own
    return own - logits.scatter(1, target[:, None], -math.inf).amax(1)


def played(logits, levels: Tensor, m: Tensor, target: Tensor, game: str, kind: str = "logit") -> Tensor:
    """The reward of a game: preserve Phi(m), delete -Phi(1 - m), dual both added. [B]"""
    parts = {"preserve": [m], "delete": [1 - m], "dual": [m, 1 - m]}[game]
    score = reward(logits(torch.cat([perturb(levels, part) for part in parts])), target.repeat(len(parts)), kind)
    if game == "dual":
        return score[: len(m)] - score[len(m) :]
    return score if game == "preserve" else -score


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Pictures moved by at most one pixel, their edge repeated. [B, C, H, W]"""
    height, width = x.shape[-2:]
    return F.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def extremal_area(kept: Tensor, full: Tensor, areas: list[float], share: float) -> Tensor:
    """a*: the smallest of `areas` (rising) whose preserved score kept [n, A] reaches `share` of the whole picture's, full [n].

    Infinite where none does. [n]
    """
    reached = torch.where(kept >= share * full[:, None], torch.tensor(areas, dtype=kept.dtype, device=kept.device), math.inf)
    return reached.amin(1)


def frozen(net: nn.Sequential) -> nn.Sequential:
    """A copy of `net` in evaluation mode for gradients of its input alone: batch norm folded in, parameters fixed."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(net).eval():
        if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False).to(memory_format=torch.channels_last)


def shares(area: float, count: int) -> list[float]:
    """`count` areas around `area`, rising: half of it, itself, twice itself (six: steps of the square root of two).

    Near the whole picture it is what is left out that is doubled and halved: 0.9 gives 0.8, 0.9, 0.95.
    """
    turns = [(k - count // 2) * (1 if count <= 3 else 0.5) for k in range(count)]
    away = [(area * 2**t, 1 - (1 - area) / 2**t) for t in turns]
    return [min(pair) if t > 0 else max(pair) for t, pair in zip(turns, away, strict=True)]


def redrawn(net: nn.Sequential, depth: int, x: Tensor, rng: torch.Generator) -> nn.Sequential:
    """A copy of `net` whose last `depth` layers with weights are drawn anew, as they began; batch norm behind such a layer
    measures the pictures x again."""
    new, fresh = copy.deepcopy(net).eval(), False
    weighted = [layer for layer in new if isinstance(layer, nn.Conv2d | nn.Linear)][-depth:] if depth else []
    for layer in new:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fresh = any(layer is one for one in weighted)
            bound = layer.weight[0].numel() ** -0.5
            for weights in layer.parameters() if fresh else ():
                drawn = torch.rand(weights.shape, generator=rng).to(weights)
                weights.data.copy_((2 * drawn - 1) * bound)
        elif isinstance(layer, nn.BatchNorm2d) and fresh:
            layer.reset_parameters()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        new(x)
    return new.eval()


def inverted(front: nn.Module, goal: Tensor, size: tuple[int, ...], steps: int = 150, smooth: float = 5e-4) -> Tensor:
    """A picture x in [0, 1] whose features front(x) come near `goal`: |front(x) - goal|^2 / |goal|^2 + `smooth` TV(x), from
    grey, by Adam. `size` is [B, C, H, W]. Source: Mahendran, Vedaldi 2015."""
    raw = torch.zeros(size, device=goal.device, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=0.1)
    norm = goal.flatten(1).square().sum(1).clamp(min=1e-12)
    with torch.enable_grad():
        for _ in range(steps):
            x = raw.sigmoid()
            apart = (front(x) - goal).flatten(1).square().sum(1) / norm
            adam.zero_grad()
            (apart.sum() + smooth * variation(x).sum()).backward()
            adam.step()
    return raw.detach().sigmoid()


def variation(x: Tensor) -> Tensor:
    """Total variation: sum of the absolute differences of neighbours down and across. [B, ...] -> [B]"""
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)
