"""Surfaces with and without a defect, masks as a hurried annotator draws them, and a user's own folder of parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

KINDS = ("crack", "spot", "texture break")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


# ---- the simulator: grey surfaces [n, size, size] in units of the texture's standard deviation


def texture(rng: np.random.Generator, n: int, size: int, exponent: float = 1.2, stretch: float = 1.5) -> np.ndarray:
    """White noise with amplitude 1/k^exponent, longer by `stretch` along a random direction: [n, size, size], unit variance."""
    noise = np.fft.rfft2(rng.standard_normal((n, size, size)))
    v, u = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    turn = rng.uniform(0, np.pi, (n, 1, 1))
    k = np.hypot(np.cos(turn) * u + np.sin(turn) * v, stretch * (np.cos(turn) * v - np.sin(turn) * u))
    k[:, 0, 0] = np.inf  # no mean
    found = np.fft.irfft2(noise * k**-exponent, s=(size, size))
    return found / found.std((1, 2), keepdims=True)


def surfaces(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Sound parts: texture, a linear ramp of light along each axis, and 0 to 3 stains or hot pixels that mean nothing."""
    x = texture(rng, n, size)
    ramp = np.linspace(-0.5, 0.5, size)
    slope = rng.uniform(-0.5, 0.5, (2, n, 1, 1))
    x += slope[0] * ramp[:, None] + slope[1] * ramp
    for image in x:
        for _ in range(rng.integers(4)):
            centre, sign = rng.uniform(0, size, 2), rng.choice((-1, 1))
            if rng.random() < 0.5:
                image += sign * 0.8 * np.exp(-_square(size, centre) / (2 * rng.uniform(8, 12) ** 2))
            else:
                image[tuple(centre.astype(int))] += sign * 3.0
    return x


def _square(size: int, centre: np.ndarray) -> np.ndarray:
    """Squared distance of each pixel [size, size] from a point."""
    at = np.arange(size)
    return (at[:, None] - centre[0]) ** 2 + (at - centre[1]) ** 2


def walk(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pixels [size, size] of a crack: 14 to 30 steps of one pixel whose direction drifts."""
    steps = int(rng.integers(14, 31))
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(0.3 * rng.standard_normal(steps))
    path = np.cumsum(np.stack([np.sin(angle), np.cos(angle)], 1), 0)
    path += rng.uniform(size / 4, 3 * size / 4, 2) - path.mean(0)
    row, column = np.round(path).astype(int).T
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    mask = np.zeros((size, size), bool)
    mask[row[inside], column[inside]] = True
    return mask


def damage(rng: np.random.Generator, image: np.ndarray, contrast: float) -> tuple[np.ndarray, int]:
    """Put one defect into `image` [size, size], in place; its exact mask and which of KINDS it is.

    Its contrast is 3/4 to 4/3 of `contrast`, with a random sign.
    """
    size, kind = len(image), int(rng.integers(3))
    strength = contrast * rng.uniform(0.75, 4 / 3) * rng.choice((-1, 1))
    near = _square(size, rng.uniform(min(8, size / 4), size - min(8, size / 4), 2))
    if kind == 0:
        mask = walk(rng, size)
        image[mask] += strength
    elif kind == 1:
        radius = rng.uniform(2, 4)
        mask = near <= radius**2
        image += strength * np.exp(-near / radius**2)
    else:
        mask = near <= rng.uniform(4, 7) ** 2
        image[mask] = image[mask].mean() + strength * texture(rng, 1, size, exponent=0.3)[0][mask]
    return mask, kind


# ---- masks


def coarsen(mask: np.ndarray, px: int) -> np.ndarray:
    """The mask [H, W] grown by `px` pixels and replaced by an ellipse that holds all of it; at 0 the mask as it is."""
    if not px or not mask.any():
        return mask
    grown = ndimage.distance_transform_edt(~mask) <= px
    points = np.argwhere(grown).astype(float)
    spread = np.linalg.inv(np.cov(points.T) + 0.1 * np.eye(2))
    reach = lambda at: np.einsum("...i,ij,...j", at - points.mean(0), spread, at - points.mean(0))  # noqa: E731
    return reach(np.moveaxis(np.indices(mask.shape), 0, -1).astype(float)) <= reach(points).max() + 1e-9


def depth(mask: np.ndarray) -> np.ndarray:
    """D / max D inside each connected region of the mask [H, W], D the distance to its border; 0 outside."""
    far = ndimage.distance_transform_edt(mask)
    regions, count = ndimage.label(mask)
    peak = np.ones(count + 1)
    if count:
        peak[1:] = ndimage.maximum(far, regions, np.arange(1, count + 1))
    return far / peak[regions]


# ---- one seed's parts


@dataclass(frozen=True)
class Parts:
    """Images x [N, 1, H, W], labels y [N], exact masks [N, H, W] and, where a test image is defective, its kind (else -1)."""

    x: Tensor
    y: Tensor
    masks: np.ndarray
    kinds: np.ndarray


def simulated(rng: np.random.Generator, positives: int, negatives: int, size: int, contrast: float) -> Parts:
    """Parts of which the first `positives` have a defect."""
    x = surfaces(rng, positives + negatives, size)
    masks, kinds = np.zeros(x.shape, bool), np.full(len(x), -1)
    for i in range(positives):
        masks[i], kinds[i] = damage(rng, x[i], contrast)
    return Parts(torch.from_numpy(x).float()[:, None], torch.from_numpy((kinds >= 0).astype(np.float32)), masks, kinds)


@lru_cache(maxsize=16)
def parts(seed: int, size: int, positives: int, negatives: int, test: int, contrast: float, path: str = "") -> tuple[Parts, Parts]:
    """Training and test parts of `seed`: a quarter of the `test` parts is defective. `path`: a folder of your own."""
    rng = np.random.default_rng([seed, 2020])
    if path:
        return split(*own_parts(path, size), rng)
    return simulated(rng, positives, negatives, size, contrast), simulated(rng, test // 4, test - test // 4, size, contrast)


# ---- a user's own folder


@lru_cache(maxsize=2)
def own_parts(path: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [N, size, size] (zero mean, unit variance), masks [N, size, size] and the item of each image, from a folder.

    An image NAME.png (.jpg, .bmp) needs its mask NAME_label.png (or .bmp) beside it: black, and white where the defect is; all
    black for a sound part. A subfolder is one item (several views of one product), and an image outside of one is its own.
    ValueError names the file, what is wrong and what is allowed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; a folder of images with masks NAME_label.png is needed")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and not f.stem.endswith("_label"))
    if not files:
        raise ValueError(f"{folder.name} holds no images; allowed are {', '.join(SUFFIXES)}, each with a mask NAME_label.png")
    pairs = [_pair(file, size) for file in files]
    items = np.array([str(f.parent if f.parent != folder else f) for f in files])
    x, masks = (np.stack(side) for side in zip(*pairs, strict=True))
    return x, masks, items


def _pair(file: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    beside = [file.with_name(f"{file.stem}_label{s}") for s in (".png", ".bmp", ".PNG", ".BMP")]
    if not (mask := next((one for one in beside if one.is_file()), None)):
        raise ValueError(f"{file.name} has no mask {file.stem}_label.png beside it; a sound part needs one that is all black")
    grey, drawn = _grey(file), _grey(mask)
    if grey.shape != drawn.shape:
        raise ValueError(f"{mask.name} has {drawn.shape[1]} x {drawn.shape[0]} pixels and {file.name} "
                         f"{grey.shape[1]} x {grey.shape[0]}; a mask has the size of its image")  # fmt: skip
    if min(grey.shape) < size:
        raise ValueError(f"{file.name} has {grey.shape[1]} x {grey.shape[0]} pixels; at least {size} x {size} are needed")
    drawn = drawn * 255 if drawn.max() <= 1 else drawn
    between = float(((drawn > 16) & (drawn < 239)).mean())
    if between > 0:
        raise ValueError(f"{mask.name} is not binary: {between:.1%} of its pixels are neither black nor white")
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grey)[None], size)[0].numpy()
    thin = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(drawn)[None], size)[0].numpy()  # keeps a hairline
    return (small - small.mean()) / max(float(small.std()), 1e-6), thin > 127


def _grey(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG", "BMP")) as image:
            return np.asarray(image.convert("L"), dtype=np.float32)
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read as an image: {error}") from None


def split(x: np.ndarray, masks: np.ndarray, items: np.ndarray, rng: np.random.Generator) -> tuple[Parts, Parts]:
    """Half of the items for training, half for test, so that no item is in both; ValueError where a class is missing in one."""
    bad = masks.any((1, 2))
    names = np.unique(items)
    hurt = np.array([bad[items == name].any() for name in names])
    train = np.concatenate([rng.permutation(names[hurt == side])[: int(np.ceil((hurt == side).sum() / 2))] for side in (True, False)])
    found = []
    for rows in (np.isin(items, train), ~np.isin(items, train)):
        rows = np.concatenate([np.flatnonzero(rows & bad), np.flatnonzero(rows & ~bad)])  # defective parts first
        if bad[rows].sum() < 2 or (~bad[rows]).sum() < 2:
            raise ValueError(f"{bad.sum()} of {len(bad)} parts, in {hurt.sum()} of {len(names)} items, are defective; training and "
                             "test, which share no item, need two defective and two sound parts each")  # fmt: skip
        y = torch.from_numpy(bad[rows].astype(np.float32))
        found.append(Parts(torch.from_numpy(x[rows])[:, None].float(), y, masks[rows], np.where(bad[rows], 0, -1)))
    return found[0], found[1]
