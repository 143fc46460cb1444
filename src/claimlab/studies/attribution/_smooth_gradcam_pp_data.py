"""Data and network of the study smooth-gradcam-pp: one or more digits of a class on textures, or a folder of one's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.parts.attribution import class_folders, crops, png, pngs, scattered, strokes
from claimlab.parts.weights import own_weights

DIGIT, CONTRAST = 14, 0.4
STROKES, BRIGHT, HALF = 2, 0.7, 0.5
CUTS = {"first": 4, "middle": 9, "last": 12}  # the layer of the network that the explained maps enter


class Data(NamedTuple):
    """Images [N, C, H, W] float32 in [0, 1] and labels [N] to train; the same to test, `masks` [M, most instances, H, W] of
    the test images' objects (all False where there is none), and `multi` [M]: is it in the part with several instances?"""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    masks: Tensor
    multi: Tensor


@lru_cache(maxsize=16)
def load(seed: int, instances: int, side: int, train_images: int, images: int, folder: str = "") -> Data:
    """The data of a seed. Half of the training images and half of the 2 x `images` test images hold `instances` objects, the
    others one; test digits are drawn from 497 examples that no training image shows. Or the images of `folder`, 3 : 1."""
    rng = np.random.default_rng(seed)
    if folder:
        return _own(folder, images, rng)
    small, y = data.digits()
    train, test = data.stratified(y, 1300, rng)
    from scipy import ndimage

    ink = ndimage.zoom(small, (1, DIGIT / 8, DIGIT / 8), order=1).clip(0, 1)
    x, labels, _ = scenes(ink[train], y[train], np.repeat([1, instances], train_images // 2), side, rng)
    test_x, test_y, masks = scenes(ink[test], y[test], np.repeat([1, instances], images), side, rng)
    found = (torch.from_numpy(t) for t in (x, labels, test_x, test_y, masks))
    return Data(*found, torch.arange(2 * images) >= images)


@lru_cache(maxsize=1)
def textures() -> list[np.ndarray]:
    """Brick, grass and gravel, [512, 512] each."""
    from skimage import data as pictures

    return [np.asarray(getattr(pictures, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel")]


def places(count: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Corners of `count` [N] boxes an image that do not overlap, drawn uniformly among such placements. [N, most, 2]"""
    most = int(count.max())
    corner, waiting = np.zeros((len(count), most, 2), dtype=int), np.arange(len(count))
    first, second = np.triu_indices(most, 1)
    while len(waiting):  # draw again where boxes touch
        drawn = rng.integers(0, side - DIGIT + 1, (len(waiting), 64, most, 2))
        apart = (np.abs(drawn[:, :, first] - drawn[:, :, second]) >= DIGIT).any(3)
        unused = np.maximum(first, second)[None] >= count[waiting, None]
        good = (apart | unused[:, None]).all(2)
        done = good.any(1)
        corner[waiting[done]] = drawn[done, good[done].argmax(1)]
        waiting = waiting[~done]
    return corner


def scenes(ink: np.ndarray, y: np.ndarray, count: np.ndarray, side: int, rng: np.random.Generator):
    """Images with count[i] different examples of one class: images [N, 1, side, side], labels [N], boxes [N, most, side, side].

    Behind them two strokes and, with probability one half, a digit of another class at half contrast, on a piece of brick,
    grass or gravel. `ink` [M, 14, 14] and classes `y` [M] are what digits are drawn from.
    """
    ground = CONTRAST * crops(textures(), len(count), side, rng)
    for _ in range(STROKES):
        ground = np.maximum(ground, BRIGHT * scattered(strokes(len(count), rng), side, rng)[0])
    members = [np.flatnonzero(y == k) for k in range(int(y.max()) + 1)]
    label, corner = y[rng.integers(0, len(y), len(count))], places(count, side, rng)
    masks = np.zeros((len(count), corner.shape[1], side, side), dtype=bool)
    top, other = np.zeros((2, len(count), side, side), dtype=np.float32)
    for i, n in enumerate(count):
        for k, example in enumerate(rng.choice(members[label[i]], n, replace=False)):
            a, b = corner[i, k]
            top[i, a : a + DIGIT, b : b + DIGIT], masks[i, k, a : a + DIGIT, b : b + DIGIT] = ink[example], True
        if rng.random() < 0.5:
            a, b = _beside(corner[i, :n], side, rng)
            other[i, a : a + DIGIT, b : b + DIGIT] = HALF * ink[rng.choice(np.flatnonzero(y != label[i]))]
    ground = ground * (1 - other) + other
    return (ground * (1 - top) + top).astype(np.float32)[:, None], label, masks


def _beside(taken: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A corner [2] whose box overlaps none of the `taken` [n, 2], or little where there is no room."""
    drawn = rng.integers(0, side - DIGIT + 1, (64, 2))
    shared = (DIGIT - np.abs(drawn[:, None] - taken)).clip(0).prod(2).sum(1)
    return drawn[shared.argmin()]

# ---- data of one's own


@lru_cache(maxsize=2)
def own_images(folder: str, least: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images `folder/images/<class>/*.png` (grey or RGB, one size, sides multiples of 4 from 16 to 128) with masks of the same
    names under `folder/masks/` (0 background, 1, 2, ... the objects of the class): arrays in [0, 1], labels, masks
    [N, most instances, H, W], class names. At least `least` a class. ValueError says which file is wrong and what is allowed."""
    top = Path(folder) / "images"
    files, y, names = class_folders(top, least)
    x = pngs(files, 16, 128, 4)
    numbered = [_mask(Path(folder) / "masks" / path.relative_to(top), x.shape[-2:]) for path in files]
    most = max(int(m.max()) for m in numbered)
    masks = np.stack([[m == k for k in range(1, most + 1)] for m in numbered])
    return x, y, masks, names


def _mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The numbers of the instances [H, W]; ValueError where there is none, one is left out, or they cover too much."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: every image needs a mask of the same name, 0 background, 1, 2, ... its objects")
    found = png(path, ("L", "P"))
    if found.shape != size:
        raise ValueError(f"{path} is {found.shape[1]} x {found.shape[0]}, its image {size[1]} x {size[0]}: they must be alike")
    here = np.unique(found[found > 0])
    if not len(here) or len(here) > 16 or here[-1] != len(here):
        raise ValueError(f"{path} holds the numbers {here[:8].tolist()} beside 0: objects are 1, 2, ... up to 16, none left out")
    share = (found > 0).mean()
    if not 0.01 <= share <= 0.6:
        raise ValueError(f"{path} marks {share:.1%} of the image: objects may cover 1 % to 60 % of it")
    return found


def _own(folder: str, images: int, rng: np.random.Generator) -> Data:
    x, y, masks, _ = own_images(folder)
    train, test = data.stratified(y, round(0.75 * len(y)), rng)
    several = masks[test].any((2, 3)).sum(1) > 1
    test = np.concatenate([test[several == kind][:images] for kind in (False, True)])
    found = (torch.from_numpy(t) for t in (x[train], y[train], x[test], y[test], masks[test]))
    return Data(*found, torch.from_numpy(masks[test].any((2, 3)).sum(1) > 1))

# ---- the network


def network(colours: int, size: tuple[int, int], classes: int) -> nn.Sequential:
    """Convolutions 3 x 3 with ReLU: 8, 8, pooling, 16, 16, pooling, 32; then flatten, dense 64, dense. [B, C, H, W] -> [B, classes]

    No global mean: behind one, dS/dA would be the same at all places of a map.
    """
    layers: list[nn.Module] = []
    for inside, outside, pool in ((colours, 8, False), (8, 8, True), (8, 16, False), (16, 16, True), (16, 32, False)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    flat = 32 * (size[0] // 4) * (size[1] // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, classes))


@lru_cache(maxsize=2)
def own_network(folder: str, colours: int, size: tuple[int, int], classes: int) -> dict[str, Tensor] | None:
    """The weights in `folder/network.pt`, a file `torch.save(net.state_dict())` of `network(colours, size, classes)`, or None.

    It is read as data only (weights_only=True). ValueError says what does not fit.
    """
    described = f"the network for {size[0]} x {size[1]} images, {colours} colours and {classes} classes"
    return own_weights(Path(folder) / "network.pt", lambda _: network(colours, size, classes), described) if folder else None
