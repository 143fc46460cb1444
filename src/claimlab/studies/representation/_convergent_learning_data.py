"""Pictures, networks and activations of the study convergent-learning, or the reader's own."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.data.own import arrays
from claimlab.parts.attribution import class_folders, png

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "brick", "grass", "gravel", "retina", "hubble_deep_field",
         "immunohistochemistry")  # fmt: skip
SIDE, TRAIN, SHARE = 16, 6000, 0.7
LAYERS = ("conv1", "conv2", "conv3", "dense")
POSITIONS = 4  # places of a feature map that are looked at, for each image


class Data(NamedTuple):
    """Images [N, C, S, S] float32 in [0, 1] with labels [N]: to train, and to analyse (the first half of the latter chooses
    partners, the second judges them); the names of the classes."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]


# ---- patches of photographs


@lru_cache(maxsize=1)
def pictures() -> list[np.ndarray]:
    """Ten pictures of scikit-image, [H, W, 3] uint8; the grey ones with three equal colours."""
    from skimage import data as photographs

    found = [getattr(photographs, name)() for name in NAMES]
    return [one if one.ndim == 3 else np.repeat(one[..., None], 3, axis=2) for one in found]


def patches(picture: np.ndarray, count: int, part: str, rng: np.random.Generator) -> np.ndarray:
    """Random squares of one picture: from the left 70 % of its columns ("train"), or from every other band of rows of the rest
    ("fit" and "held"), so that no two parts share a pixel. [count, SIDE, SIDE, 3]"""
    height, width = picture.shape[:2]
    border, band = round(SHARE * width), 2 * SIDE
    if part == "train":
        top, left = rng.integers(0, height - SIDE + 1, count), rng.integers(0, border - SIDE + 1, count)
    else:
        bands = np.arange(part == "held", height // band, 2)
        top = band * rng.choice(bands, count) + rng.integers(0, band - SIDE + 1, count)
        left = rng.integers(border, width - SIDE + 1, count)
    return np.stack([picture[a : a + SIDE, b : b + SIDE] for a, b in zip(top, left, strict=True)])


def photographs(rng: np.random.Generator, analysed: int) -> Data:
    """6,000 patches to train and two halves of `analysed` in all to analyse; the label is the picture."""

    def cut(part: str, count: int) -> tuple[Tensor, Tensor]:
        x = np.concatenate([patches(one, count // len(NAMES), part, rng) for one in pictures()])
        y, order = np.repeat(np.arange(len(NAMES)), count // len(NAMES)), rng.permutation(len(x))
        return _tensor(x[order]), torch.from_numpy(y[order])

    (x, y), (a, of_a), (b, of_b) = cut("train", TRAIN), cut("fit", analysed // 2), cut("held", analysed // 2)
    return Data(x, y, torch.cat([a, b]), torch.cat([of_a, of_b]), NAMES)


def _tensor(x: np.ndarray) -> Tensor:
    """[N, S, S, C] uint8 -> [N, C, S, S] float32 in [0, 1], channels last in memory (which halves the time of a step)."""
    x = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    return (x.float() / 255).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=8)
def load(seed: int, analysed: int, folder: str = "") -> Data:
    """The data of a seed: patches of the ten pictures, or the images of `folder`, split 3 : 1; at most `analysed` to analyse."""
    rng = np.random.default_rng(seed)
    return own_images(folder, rng, analysed) if folder else photographs(rng, analysed)


def source() -> str:
    """The folder of one's own that CLAIMLAB_DATA names, or nothing."""
    return os.environ.get("CLAIMLAB_DATA", "")


# ---- the network


class Net(nn.Module):
    """conv1 5 x 5 - pool - conv2 3 x 3 - pool - conv3 3 x 3 - dense - classes, all with ReLU. [B, C, S, S] -> [B, classes]"""

    def __init__(self, colours: int, side: int, width: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(colours, 24, 5, padding=2)
        self.conv2 = nn.Conv2d(24, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 48, 3, padding=1)
        self.dense = nn.Linear(48 * (side // 4) ** 2, 64)
        self.out = nn.Linear(64, classes)

    def layers(self, x: Tensor) -> dict[str, Tensor]:
        """Activations after the ReLU by layer: [B, units, H, W], for `dense` [B, units]."""
        found = {"conv1": self.conv1(4 * x - 2).relu()}
        found["conv2"] = self.conv2(nn.functional.max_pool2d(found["conv1"], 2)).relu()
        found["conv3"] = self.conv3(nn.functional.max_pool2d(found["conv2"], 2)).relu()
        return found | {"dense": self.dense(found["conv3"].flatten(1)).relu()}

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x)["dense"])


class Pair(nn.Module):
    """Two networks that are trained, and one that never is: same architecture, three independent starts."""

    def __init__(self, *shape: int):
        super().__init__()
        self.first, self.second, self.untrained = (Net(*shape).to(memory_format=torch.channels_last) for _ in range(3))
        self.untrained.requires_grad_(False)


# ---- activations


def capture(net: Net, x: Tensor, seed: int, split: int = 125) -> dict[str, np.ndarray]:
    """Activations of all layers on the images x. In a convolution each unit answers at every place of the image; POSITIONS
    places are looked at, drawn anew for each image from `seed`, the same for every network. {layer: [images, places, units]}"""
    found: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    rngs = {name: np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in LAYERS}
    with torch.no_grad():
        for part in x.to(next(net.parameters()).device).split(split):
            for name, a in net.layers(part.contiguous(memory_format=torch.channels_last)).items():
                a = a.cpu()
                if a.dim() == 4:
                    place = torch.from_numpy(rngs[name].integers(0, a[0, 0].numel(), (len(a), 1, POSITIONS)))
                    a = a.flatten(2).gather(2, place.expand(-1, a.shape[1], -1)).transpose(1, 2)
                found[name].append(a if a.dim() == 3 else a[:, None])
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


# ---- data of one's own


@lru_cache(maxsize=2)
def _own(folder: str, least: int) -> tuple[Tensor, np.ndarray, tuple[str, ...]]:
    files, y, names = class_folders(Path(folder) / "images", least)
    x: list[np.ndarray] = []
    for path in files:
        array = png(path)
        array = array if array.ndim == 3 else array[..., None]
        if x and array.shape != x[0].shape:
            raise ValueError(f"{path} has the shape {array.shape}, the others {x[0].shape}: one size and one mode for all")
        x.append(array)
    height, width = x[0].shape[:2]
    if height != width or height % 4 or not 8 <= height <= 64:
        raise ValueError(f"{files[0]} is {width} x {height}: images must be square, with a side that is a multiple of 4 from 8 to 64")
    return _tensor(np.stack(x)), y, names


def own_images(folder: str, rng: np.random.Generator, analysed: int, least: int = 40) -> Data:
    """Images `folder/images/<class>/*.png` (grey or RGB, square, one size, at least `least` a class), three quarters of each
    class to train, the rest to analyse. ValueError names the file and says what is allowed."""
    x, y, names = _own(folder, least)
    train, rest = data.stratified(y, round(0.75 * len(y)), rng)
    labels, rest = torch.from_numpy(y), rest[:analysed]
    return Data(x[train], labels[train], x[rest], labels[rest], names)


def save_activations(path: str | Path, layers: Mapping[str, np.ndarray], samples: np.ndarray) -> None:
    """Write activations {layer: [N, units]} of the samples [N, ...] to an .npz; a hash of the samples says what they were, and
    in which order."""
    mark = hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()
    np.savez_compressed(path, samples=np.array(mark), **layers)


def own_activations(first: str | Path, second: str | Path, layer: str, least: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """One layer's activations in two files of `save_activations` (`activations.npz`, where a folder is named): [N, p], [N, q].

    ValueError where a file does not hold plain finite numbers of shape N x units, N >= least, where the networks saw other
    samples or another order, or where fewer than two units are alive.
    """
    from claimlab.studies.representation._convergent_learning_method import living

    found, marks = [], []
    for path in (Path(one) / "activations.npz" if Path(one).is_dir() else Path(one) for one in (first, second)):
        x, mark = arrays(path, (layer, "samples"))
        if x.dtype.kind != "f" or x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(f"{path}: {layer} is {x.dtype} of shape {x.shape}; allowed are finite numbers of shape samples x units")
        if len(x) < least or (alive := int(living(x).sum())) < 2:
            raise ValueError(f"{path}: {layer} has {len(x)} samples" + ("" if len(x) < least else f" and {alive} units that are alive")
                             + f"; at least {least} samples and 2 living units are needed")  # fmt: skip
        found.append(x.astype(float))
        marks.append(str(mark))
    if len(found[0]) != len(found[1]):
        raise ValueError(f"{first} holds {len(found[0])} samples and {second} {len(found[1])}: both networks must see the same ones")
    if marks[0] != marks[1]:
        raise ValueError(f"{first} and {second} bear different hashes: both networks must see the same samples in the same order")
    return found[0], found[1]
