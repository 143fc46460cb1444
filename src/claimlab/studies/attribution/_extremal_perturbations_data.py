"""Data and networks of the study extremal-perturbations: two digits on a texture, or a folder of one's own."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.parts.attribution import crops, png, scattered
from claimlab.parts.weights import own_weights

SIDE, TARGET, SPARE, CONTRAST = 32, 14, 8, 0.5  # pixels of the picture, of the digit that counts, of the other; texture's peak
SUFFIXES = (".png", ".jpg", ".jpeg")
COLUMNS = ("file", "class", "x0", "y0", "x1", "y1")


class Data(NamedTuple):
    """Pictures [N, C, H, W] float32 in [0, 1], labels [N], and the boxes of the test pictures' objects [M, H, W]."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    box: Tensor


@lru_cache(maxsize=16)
def load(seed: int, size: int = 1, folder: str = "") -> Data:
    """The data of a seed: 1,500 scenes of 32 `size` pixels to train and 297 to test, or the pictures of `folder`, split 1 : 1."""
    rng = np.random.default_rng(seed)
    x, y, box = own_pictures(folder) if folder else scenes(rng, size)
    train, test = data.stratified(y, len(y) // 2 if folder else 1500, rng)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    return Data(x[train], y[train], x[test], y[test], torch.from_numpy(box[test]))


def scenes(rng: np.random.Generator, size: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A digit of 14 pixels and a smaller one of 8 pixels and another class, apart from each other, on a piece of brick, grass or
    gravel: pictures [N, 1, 32, 32], labels of the larger digits, their boxes [N, 32, 32]. All lengths times `size`."""
    from scipy import ndimage
    from skimage import data as photographs

    small, y = data.digits()
    side, large, spare = SIDE * size, TARGET * size, SPARE * size
    textures = [np.asarray(getattr(photographs, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel")]
    ground = CONTRAST * crops(textures, len(y), side, rng)
    ink, corner = scattered(ndimage.zoom(small, (1, large / 8, large / 8), order=1), side, rng)
    other = rng.integers(0, len(y), len(y))
    while (same := y[other] == y).any():
        other[same] = rng.integers(0, len(y), same.sum())
    digits = ndimage.zoom(small[other], (1, size, size), order=1)
    second, place = scattered(digits, side, rng)
    while (near := _overlap(corner, large, place, spare)).any():
        second[near], place[near] = scattered(digits[near], side, rng)
    ink = np.maximum(ink, second)
    box = np.zeros((len(y), side, side), dtype=bool)
    for i, (a, b) in enumerate(corner):
        box[i, a : a + large, b : b + large] = True
    return (ground * (1 - ink) + ink).astype(np.float32)[:, None], y, box


def _overlap(a: np.ndarray, height: int, b: np.ndarray, other: int) -> np.ndarray:
    """Whether squares with corners a and b [N, 2] and these sides share a pixel. [N]"""
    return ((a < b + other) & (b < a + height)).all(1)

# ---- data of one's own


@lru_cache(maxsize=2)
def own_pictures(folder: str, least: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures listed in `folder/pictures.csv` (columns file, class, x0, y0, x1, y1; the box holds the pixels x0 <= x < x1,
    y0 <= y < y1): arrays [N, C, H, W] in [0, 1], classes [N], boxes [N, H, W].

    PNG or JPEG, grey or RGB, all of one size with sides from 16 to 128; classes are 0, 1, ... without a gap, each with `least`
    pictures. ValueError names file and line, what is wrong and what is allowed.
    """
    rows = _rows(Path(folder) / "pictures.csv")
    x, y, box = [], [], []
    for line, row in enumerate(rows, start=2):
        where = f"pictures.csv, line {line}"
        picture = _picture(Path(folder), row["file"], where)
        if x and picture.shape != x[0].shape:
            raise ValueError(f"{where}: {row['file']} has the shape {picture.shape}, the others {x[0].shape}: one size and one mode")
        x.append(picture)
        y.append(_whole(row["class"], where))
        box.append(_box([_whole(row[name], where) for name in COLUMNS[2:]], picture.shape[:2], where))
    if not all(16 <= side <= 128 for side in x[0].shape[:2]):
        raise ValueError(f"the pictures are {x[0].shape[1]} x {x[0].shape[0]} pixels: sides from 16 to 128 are allowed")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] or found[-1] != len(found) - 1 or count.min() < least:
        told = ", ".join(f"{k} ({n})" for k, n in zip(found[:12], count, strict=False))
        raise ValueError(f"pictures.csv has the classes (pictures) {told}: allowed are 0, 1, ... without a gap, {least} pictures each")
    stack = np.stack(x).astype(np.float32) / 255
    return (stack.transpose(0, 3, 1, 2) if stack.ndim == 4 else stack[:, None]), np.array(y, dtype=np.int64), np.stack(box)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file: a table with the columns {', '.join(COLUMNS)} is needed")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows, names = list(table), table.fieldnames or []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text: {error}") from None
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}; it must have {', '.join(COLUMNS)}")
    if not rows:
        raise ValueError(f"{path.name} lists no picture")
    return rows


def _picture(folder: Path, name: str, where: str) -> np.ndarray:
    path = folder / (name or "")
    if path.suffix.lower() not in SUFFIXES or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where}: {name!r} is not allowed: a .png or .jpg file inside the folder is needed")
    try:
        return png(path)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).replace('PNG', 'PNG or JPEG')}") from None


def _whole(text: str | None, where: str) -> int:
    try:
        number = int(text or "")
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a whole number") from None
    if number < 0:
        raise ValueError(f"{where}: {number} is below 0")
    return number


def _box(edges: list[int], size: tuple[int, int], where: str) -> np.ndarray:
    x0, y0, x1, y1 = edges
    if not (x0 < x1 <= size[1] and y0 < y1 <= size[0]):
        raise ValueError(f"{where}: the box x {x0} to {x1}, y {y0} to {y1} is empty or leaves the picture of {size[1]} x {size[0]}")
    found = np.zeros(size, dtype=bool)
    found[y0:y1, x0:x1] = True
    return found

# ---- the network


def network(colours: int, classes: int) -> nn.Sequential:
    """Convolutions 3 x 3 with 8, 16, 32 channels, the last two with stride 2, each with batch norm and ReLU; global mean, linear.
    [B, C, H, W] -> [B, classes]"""
    layers: list[nn.Module] = []
    for inside, width, stride in ((colours, 8, 1), (8, 16, 2), (16, 32, 2)):
        layers += [nn.Conv2d(inside, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


@lru_cache(maxsize=4)
def own_network(folder: str, name: str, colours: int, classes: int) -> dict[str, Tensor] | None:
    """The weights in `folder/<name>.pt`, a file `torch.save(network(colours, K).state_dict())` with K >= `classes`, or None.

    It is read as data only (weights_only=True). ValueError says what does not fit: layers, colours, or classes that the
    pictures have and the network does not know.
    """
    path, last = Path(folder) / f"{name}.pt", "11.bias"  # of the layer that names the classes
    if not folder:
        return None
    state = own_weights(path, lambda found: network(colours, len(found[last])), f"the network with {colours} colours")
    if state is not None and len(state[last]) < classes:
        raise ValueError(f"{path} knows {len(state[last])} classes, but pictures.csv has {classes}")
    return state
