"""Data and networks of the study sobol-attribution: digits among strokes on textures, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.parts.attribution import class_folders, crops, pngs, scattered, strokes
from claimlab.parts.weights import above_chance, own_weights

SIDE, DIGIT, CONTRAST = 32, 16, 0.4
STROKES, BRIGHT = 2, 0.7


class Data(NamedTuple):
    """Images [N, C, H, W] float32 in [0, 1], labels [N], and the boxes of the test images' objects [M, H, W] (or None)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    box: Tensor | None


@lru_cache(maxsize=16)
def load(seed: int, folder: str = "") -> Data:
    """The data of a seed: 1,500 cluttered digits to train and 297 to test, or the images of `folder`, split 3 : 1."""
    rng = np.random.default_rng(seed)
    x, y, box = (*own_images(folder)[:2], None) if folder else cluttered(rng)
    train, test = data.stratified(y, 1500 if not folder else round(0.75 * len(y)), rng)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    return Data(x[train], y[train], x[test], y[test], None if box is None else torch.from_numpy(box[test]))


def cluttered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits of 16 x 16 at a random place of a 32 x 32 piece of brick, grass or gravel, with two strokes behind it
    as distractors: images [N, 1, 32, 32], labels, boxes of the digits [N, 32, 32]."""
    from scipy import ndimage
    from skimage import data as pictures

    small, y = data.digits()
    textures = [np.asarray(getattr(pictures, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel")]
    ground = CONTRAST * crops(textures, len(y), SIDE, rng)
    for _ in range(STROKES):
        ground = np.maximum(ground, BRIGHT * scattered(strokes(len(y), rng), SIDE, rng)[0])
    ink, corner = scattered(ndimage.zoom(small, (1, 2, 2), order=1), SIDE, rng)
    box = np.zeros((len(y), SIDE, SIDE), dtype=bool)
    for i, (a, b) in enumerate(corner):
        box[i, a : a + DIGIT, b : b + DIGIT] = True
    return (ground * (1 - ink) + ink).astype(np.float32)[:, None], y, box

# ---- data of one's own


@lru_cache(maxsize=2)
def own_images(folder: str, least: int = 20) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images `folder/images/<class>/*.png` (grey or RGB, one size, sides multiples of 8): arrays in [0, 1], labels, class names.

    At least `least` a class. ValueError names the file and says what is allowed.
    """
    files, y, names = class_folders(Path(folder) / "images", least)
    x = pngs(files, 16, 256, 8)
    return x, y, names


def checked(score: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What one's own `score` says of the images x [N, C, H, W] in [0, 1] with labels y [N]: [N, classes], looked at first.

    ValueError where the images, the labels or the scores do not fit, or accuracy is not above chance.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 4 or x.dtype.kind != "f" or not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
        raise ValueError(f"x is {x.dtype} of shape {x.shape}: allowed are finite numbers in [0, 1] of shape N x C x H x W")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y) or y.min() < 0:
        raise ValueError(f"y is {y.dtype} of shape {y.shape}: allowed is a whole number from 0 for each of {len(x)} images")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or count.min() < 20:
        raise ValueError(f"y holds {len(found)} classes, the smallest with {count.min()} images: at least 2 with 20 are needed")
    said = np.asarray(score(x))
    if said.ndim != 2 or said.shape[0] != len(x) or said.shape[1] <= y.max() or not np.isfinite(said).all():
        raise ValueError(f"the score gave {said.shape}: it must give finite numbers, {len(x)} x at least {y.max() + 1}")
    above_chance(float((said.argmax(1) == y).mean()), y)
    return said

# ---- the network


def network(kind: str, colours: int, classes: int) -> nn.Sequential:
    """Three blocks 8-16-32 of convolution 3 x 3, batch norm, ReLU, pooling ("small"), or twice as wide with two convolutions a
    block ("deep"); global mean, linear. [B, C, H, W] -> [B, classes]"""
    depth, w = (1, 8) if kind == "small" else (2, 16)
    layers: list[nn.Module] = []
    inside = colours
    for width in (w, 2 * w, 4 * w):
        for _ in range(depth):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inside = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


@lru_cache(maxsize=2)
def own_network(folder: str, kind: str, colours: int, classes: int) -> dict[str, Tensor] | None:
    """The weights in `folder/network.pt`, a file `torch.save(net.state_dict())` of `network(kind, colours, classes)`, or None.

    It is read as data only (weights_only=True). ValueError says what does not fit.
    """
    described = f"the {kind} network with {colours} colours and {classes} classes"
    return own_weights(Path(folder) / "network.pt", lambda _: network(kind, colours, classes), described) if folder else None
