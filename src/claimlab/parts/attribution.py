"""Pieces of studies that explain an image classifier: white-box maps, ranking and removing pixels, objects on backgrounds.

Networks are in evaluation mode, f is the logit of the class `target` [B], maps are [B, H, W]. All randomness comes from the
generator that is passed in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

SPLIT = 32  # images in one pass of the network: more fall out of the processor's cache

# ---- what a network says of an image, and its gradients


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of each image. [B, C, H, W] -> [B]"""
    with torch.no_grad():
        return net(x).argmax(1)


def gradient(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """d f / d x, signed. [B, C, H, W]. Source: Simonyan, Vedaldi, Zisserman 2013 (saliency is its absolute value)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(net(x).gather(1, target[:, None]).sum(), x)[0]


def integrated(net: nn.Module, x: Tensor, target: Tensor, points: int = 32, base: Tensor | float = 0.0) -> Tensor:
    """(x - base) times the mean gradient on the straight way from base to x (midpoint rule), signed. [B, C, H, W]

    Its sum tends to f(x) - f(base) as `points` grows. `base` broadcasts against x. Source: Sundararajan, Taly, Yan 2017.
    """
    way, net, total = x - base, _folded(net), torch.zeros_like(x)
    for shares in ((torch.arange(points) + 0.5) / points).to(x).split(max(1, SPLIT // len(x))):
        along = (base + way * shares.view(-1, 1, 1, 1, 1)).flatten(0, 1)
        slopes = gradient(net, along.contiguous(memory_format=torch.channels_last), target.repeat(len(shares)))
        total += slopes.unflatten(0, (len(shares), -1)).sum(0)
    return way * total / points


def gradcam(net: nn.Module, x: Tensor, target: Tensor, layer: nn.Module | None = None) -> Tensor:
    """relu(sum over channels of mean(d f / d A_c) A_c), enlarged to the image. [B, H, W]

    A are the maps that enter `layer`, by default the network's global mean. Source: Selvaraju et al. 2017.
    """
    kept: list[Tensor] = []
    last = layer or next(m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    hook = last.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        with torch.enable_grad():
            f = net(x.detach().requires_grad_()).gather(1, target[:, None]).sum()
            slope = torch.autograd.grad(f, kept[0])[0]
    finally:
        hook.remove()
    return enlarge((slope.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).relu(), x.shape[-2:])


def enlarge(small: Tensor, size: tuple[int, int], keep_sum: bool = False) -> Tensor:
    """Bilinear, [B, h, w] -> [B, *size]; `keep_sum` divides by the growth in area (exact for whole factors)."""
    large = F.interpolate(small[:, None], size=tuple(size), mode="bilinear")[:, 0]
    return large * (small[0].numel() / large[0].numel()) if keep_sum else large


def smoothgrad(net: nn.Module, x: Tensor, target: Tensor, rng: torch.Generator, copies: int = 15, sd: float = 0.15) -> Tensor:
    """|mean gradient over noisy copies|, summed over colours. [B, H, W]. Source: Smilkov et al. 2017."""
    noisy = (x + sd * torch.randn(x.shape, generator=rng).to(x) for _ in range(copies))
    return (sum(gradient(net, one, target) for one in noisy) / copies).abs().sum(1)


# ---- a network that only answers, and random masks on its images


def fast(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same function as `net` in evaluation mode, to rounding: batch norm folded into the convolutions before it, inputs
    in pieces of SPLIT images with channels last (2 to 4 times as fast)."""
    whole = _folded(net)

    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([whole(part.contiguous(memory_format=torch.channels_last)) for part in x.split(SPLIT)])

    return logits


def _folded(net: nn.Module) -> nn.Sequential:
    """A copy in evaluation mode, channels last, whose parameters need no gradient, with batch norm folded where it follows a
    convolution."""
    folded: list[nn.Module] = []
    whole = copy.deepcopy(net).eval()
    for layer in whole if isinstance(whole, nn.Sequential) else [whole]:
        if isinstance(layer, nn.BatchNorm2d) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    return nn.Sequential(*folded).to(memory_format=torch.channels_last).requires_grad_(False)


def rise_masks(count: int, grid: int, size: tuple[int, int], rng: np.random.Generator, p: float = 0.5) -> Tensor:
    """Random binary grids, enlarged smoothly and shifted by up to a cell. [count, 1, H, W]. Source: Petsiuk, Das, Saenko 2018."""
    cell = [-(-side // grid) for side in size]
    shown = torch.from_numpy((rng.random((count, grid, grid)) < p).astype(np.float32))
    large = enlarge(shown, [(grid + 1) * side for side in cell])
    shift = np.stack([rng.integers(0, side, count) for side in cell], axis=1)
    return torch.stack([one[a : a + size[0], b : b + size[1]] for one, (a, b) in zip(large, shift, strict=True)])[:, None]


def rise_map(f: Tensor, masks: Tensor, p: float = 0.5) -> Tensor:
    """sum_k f_k M_k / (K p), f [n, K], masks [K, 1, H, W]. [n, H, W]"""
    return torch.einsum("nk,khw->nhw", f, masks[:, 0]) / (len(masks) * p)


# ---- rank the pixels of a map, take some away


def ranks(maps: Tensor, rng: torch.Generator) -> Tensor:
    """Rank of each pixel, 0 the least salient; equal values in random order, or ties would favour a corner. [N, H, W]"""
    flat = maps.flatten(1)
    shuffled = torch.rand(flat.shape, generator=rng).argsort(1).to(maps.device)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, stable=True))
    return order.argsort(1).view(maps.shape)


def remove(x: Tensor, rank: Tensor, share: float, order: str, filler: Tensor) -> Tensor:
    """`x` [N, C, H, W] with the `share` least or most salient pixels replaced by those of `filler` (broadcast)."""
    pixels = rank[0].numel()
    count = round(share * pixels)
    gone = rank < count if order == "least" else rank >= pixels - count
    return torch.where(gone[:, None], filler, x)


# ---- small objects on backgrounds


def _stretch(pictures: np.ndarray) -> np.ndarray:
    """Each picture scaled to [0, 1]; a flat one becomes 0. [N, H, W]"""
    low, high = pictures.min((1, 2), keepdims=True), pictures.max((1, 2), keepdims=True)
    return (pictures - low) / np.maximum(high - low, 1e-8)


def smooth_noise(n: int, side: int, sd: float, rng: np.random.Generator) -> np.ndarray:
    """White noise blurred by a Gaussian of `sd` pixels, each picture in [0, 1]. [n, side, side]"""
    from scipy import ndimage

    return _stretch(ndimage.gaussian_filter(rng.standard_normal((n, side, side)), (0, sd, sd)))


def crops(pictures: list[np.ndarray], n: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """`n` square pieces of randomly chosen pictures (grey, all of one size), each stretched to [0, 1]. [n, side, side]"""
    corner = rng.integers(0, min(pictures[0].shape) - side, (n, 2))
    chosen = zip(rng.integers(0, len(pictures), n), corner, strict=True)
    return _stretch(np.stack([pictures[k][a : a + side, b : b + side] for k, (a, b) in chosen]))


def scattered(objects: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each object [N, h, h] at a random place of an empty canvas: canvases [N, side, side] float32, corners [N, 2]."""
    n, height = objects.shape[:2]
    canvas, corner = np.zeros((n, side, side), dtype=np.float32), rng.integers(0, side - height + 1, (n, 2))
    for i, (a, b) in enumerate(corner):
        canvas[i, a : a + height, b : b + height] = objects[i]
    return canvas, corner


def strokes(n: int, rng: np.random.Generator, side: int = 10) -> np.ndarray:
    """Arcs as thick as a digit's line through three random points of a small square. [n, side, side] in [0, 1]"""
    ends = rng.uniform(1, side - 2, (n, 3, 2))
    t = np.linspace(0, 1, 16)[:, None]
    path = (1 - t) ** 2 * ends[:, :1] + 2 * t * (1 - t) * ends[:, 1:2] + t**2 * ends[:, 2:]  # [n, 16, 2]
    row, column = np.mgrid[:side, :side]
    far = (row[None, None] - path[..., 0, None, None]) ** 2 + (column[None, None] - path[..., 1, None, None]) ** 2
    return np.exp(-far.min(1) / 2).astype(np.float32)


def png(path: Path, modes: Sequence[str] = ("L", "RGB")) -> np.ndarray:
    """A PNG image with 8 bits a colour as it is stored, [H, W] (L, grey) or [H, W, 3] (RGB). ValueError names the file where it
    is no image, or of another mode."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, array = image.mode, np.asarray(image)
    except OSError as error:
        raise ValueError(f"{path} is not a readable PNG image: {error}") from None
    if mode not in modes:
        raise ValueError(f"{path} has the colour mode {mode}: only {' or '.join(modes)} with 8 bits a colour is allowed")
    return array


def pngs(files: Sequence[Path], low: int, high: int, multiple: int = 1, modes: Sequence[str] = ("L", "RGB")) -> np.ndarray:
    """PNG images of one size and mode, sides from `low` to `high` and divisible by `multiple`: [N, C, H, W] float32 in [0, 1].

    ValueError names the file and says what is allowed.
    """
    found: list[np.ndarray] = []
    for path in files:
        array = png(path, modes)
        if found and array.shape != found[0].shape:
            raise ValueError(f"{path} has the shape {array.shape}, the others {found[0].shape}: one size and one mode for all")
        found.append(array)
    height, width = found[0].shape[:2]
    if any(side % multiple or not low <= side <= high for side in (height, width)):
        allowed = f"multiples of {multiple} from {low} to {high}" if multiple > 1 else f"from {low} to {high}"
        raise ValueError(f"{files[0]} is {width} x {height}: sides must be {allowed}")
    stack = np.stack(found).astype(np.float32) / 255
    return np.ascontiguousarray(stack.transpose(0, 3, 1, 2)) if stack.ndim == 4 else stack[:, None]


def class_folders(top: Path, least: int) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The images `top/<class>/*.png`, their labels [N], the names of the classes. ValueError where there are too few."""
    names = sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else []
    if len(names) < 2:
        raise ValueError(f"{top} holds {len(names)} class folders: at least 2 are needed, one a class, with PNG images in them")
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted((top / name).glob("*.png"))
        if len(found) < least:
            raise ValueError(f"{top / name} holds {len(found)} PNG images: at least {least} a class are needed")
        files, labels = files + found, labels + [label] * len(found)
    return files, np.array(labels), tuple(names)
