"""Data and networks of the study osa-das: digits among shapes on textures, with or without a corner marker, or one's own."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab import data
from claimlab.parts.attribution import class_folders, crops, pngs, scattered
from claimlab.parts.weights import own_weights

SIDE, DIGIT, MARK, SHAPE = 40, 16, 6, 11
CONTRAST, BRIGHT = 0.25, 0.4  # of the texture, of the shapes; a digit has 1
TRAIN, TEST = 3000, 500
AGREES = 0.9  # how often a spurious marker says the class
LETTERS = {"H": "0070 3030 0767", "L": "0070 7077", "T": "0007 0373", "X": "0077 0770", "N": "0070 0077 0777", "V": "0053 5307"}


class Data(NamedTuple):
    """Images [N, C, H, W] float32 in [0, 1], labels [N]; of the test images also the object's box [M, H, W] (or None) and the
    same images without their marker [M, C, H, W] (or None where there is none)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    box: Tensor | None
    bare: Tensor | None
    says: Tensor | None  # the class that the marker names [M]


@lru_cache(maxsize=24)
def load(seed: int, cue: str, folder: str = "") -> Data:
    """The data of a seed. `cue`: digit (no marker), marker (it alone decides) or both (the marker agrees with nine digits of
    ten); or the images of `folder`, split 3 : 1."""
    rng = np.random.default_rng(seed)
    if folder:
        x, y, box, _ = own_images(folder)
        train, test = data.stratified(y, round(0.75 * len(y)), rng)
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        return Data(x[train], y[train], x[test], y[test], None if box is None else torch.from_numpy(box[test]), None, None)
    images, digit = data.mnist()
    train, test = data.stratified(digit, TRAIN, rng)
    rows = np.concatenate([train, test[:TEST]])
    bare, box = compose(images[rows], rng)
    y = torch.from_numpy(digit[rows])
    says = torch.from_numpy(rng.integers(0, 10, len(rows)))
    if cue == "both":
        says = torch.where(torch.from_numpy(rng.random(len(rows)) < AGREES), y, says)
    x = bare if cue == "digit" else marked(bare, says)
    if cue == "marker":
        y = says
    known = (None, None) if cue == "digit" else (bare[TRAIN:], says[TRAIN:])
    return Data(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], box[TRAIN:], *known)


def compose(digits: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Digits [N, 28, 28] shrunk to 16 x 16, at random places of pieces of brick, grass, gravel and a photograph, with two shapes
    behind each: images [N, 1, 40, 40], boxes of the digits [N, 40, 40]. The upper left corner is kept free of digits."""
    from skimage import data as pictures

    small = F.interpolate(torch.from_numpy(digits)[:, None], (DIGIT, DIGIT), mode="bilinear", antialias=True)[:, 0]
    small = small / small.amax((1, 2), keepdim=True)
    textures = [np.asarray(getattr(pictures, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel", "camera")]
    ground = CONTRAST * crops(textures, len(digits), SIDE, rng)
    bank = shapes(200, rng)
    for _ in range(2):
        ground = np.maximum(ground, BRIGHT * scattered(bank[rng.integers(0, len(bank), len(digits))], SIDE, rng)[0])
    corner = rng.integers(0, SIDE - DIGIT + 1, (len(digits), 2))
    corner[(corner < MARK + 2).all(1), 0] += DIGIT
    x, box = torch.from_numpy(ground), torch.zeros(len(digits), SIDE, SIDE, dtype=torch.bool)
    for i, (a, b) in enumerate(corner):
        place = np.s_[i, a : a + DIGIT, b : b + DIGIT]
        x[place] = x[place] * (1 - small[i]) + small[i]
        box[place] = True
    return x[:, None], box


def shapes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Filled polygons and letters made of lines as thick as a digit's, in turn. [count, 11, 11] in {0, 1}"""
    from scipy import ndimage
    from skimage import draw

    bank = np.zeros((count, SHAPE, SHAPE), dtype=np.float32)
    for i in range(count):
        if i % 2:
            angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            far = rng.uniform(2, 5, len(angle))
            bank[i][draw.polygon(5 + far * np.sin(angle), 5 + far * np.cos(angle), (SHAPE, SHAPE))] = 1
        else:
            for stroke in LETTERS[rng.choice(list(LETTERS))].split():
                bank[i][draw.line(*(1 + int(c) for c in stroke))] = 1
            bank[i] = ndimage.binary_dilation(bank[i], np.ones((2, 2)))
    return bank


def codes() -> Tensor:
    """Ten markers of 3 x 3 black or white fields, each of 2 x 2 pixels, any two at least two fields apart. [10, 6, 6]"""
    bits = [k for k in range(512) if bin(k).count("1") == 4][::13][:10]
    fields = torch.tensor([[k >> i & 1 for i in range(9)] for k in bits], dtype=torch.float32)
    return fields.view(10, 3, 3).repeat_interleave(MARK // 3, 1).repeat_interleave(MARK // 3, 2)


def marked(x: Tensor, says: Tensor) -> Tensor:
    """The images [N, 1, H, W] with the marker of the class `says` [N] in the upper left corner."""
    x = x.clone()
    x[:, 0, :MARK, :MARK] = codes()[says]
    return x

# ---- the networks


class Patches(nn.Module):
    """Pieces of 5 x 5 pixels as tokens with learnt positions. [B, C, H, W] -> [B, L, width]"""

    def __init__(self, colours: int, width: int, size: tuple[int, int], piece: int = 5):
        super().__init__()
        self.cut = nn.Conv2d(colours, width, piece, piece)
        self.place = nn.Parameter(0.02 * torch.randn(1, (size[0] // piece) * (size[1] // piece), width))

    def forward(self, x: Tensor) -> Tensor:
        return self.cut(x).flatten(2).mT + self.place


class Grid(nn.Module):
    """Tokens back in their places. [B, L, width] -> [B, width, h, w]"""

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x.mT.unflatten(2, (self.rows, -1))


def network(kind: str, colours: int, classes: int, size: tuple[int, int] = (SIDE, SIDE)) -> nn.Sequential:
    """cnn: three convolutions 16-32-64, 3 x 3, stride 2, with batch norm and ReLU; vit: a transformer of two layers on pieces
    of 5 x 5. Then global mean and linear. [B, C, H, W] -> [B, classes]"""
    if kind == "vit":
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        body = [Patches(colours, 64, size), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), Grid(size[0] // 5)]
    else:
        body = []
        for a, b in ((colours, 16), (16, 32), (32, 64)):
            body += [nn.Conv2d(a, b, 3, 2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))

# ---- data of one's own


@lru_cache(maxsize=2)
def own_images(folder: str, least: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Images `folder/<class>/<name>.png` (grey or RGB, one size, sides of 32 or more): arrays [N, C, H, W] in [0, 1], labels,
    boxes [N, H, W] from `folder/boxes.csv` (or None), class names. ValueError names the file and says what is allowed."""
    files, y, names = class_folders(Path(folder), least)
    x = pngs(files, 32, 256)
    return x, y, own_boxes(Path(folder), files, x.shape[-2:]), names


def own_boxes(folder: Path, files: list[Path], size: tuple[int, int]) -> np.ndarray | None:
    """The boxes of `folder/boxes.csv` with columns file (class/name.png), x0, y0, x1, y1 in pixels, x1 and y1 exclusive:
    [N, H, W], or None without such a file. ValueError where one lacks, is no number or leaves the picture."""
    path = folder / "boxes.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as held:
        rows = list(csv.DictReader(held))
    columns = ("file", "x0", "y0", "x1", "y1")
    if not rows or set(columns) - set(rows[0]):
        raise ValueError(f"{path} must hold the columns {', '.join(columns)} and a row for each picture")
    given = {row["file"]: row for row in rows}
    box = np.zeros((len(files), *size), dtype=bool)
    for i, file in enumerate(files):
        name = f"{file.parent.name}/{file.name}"
        if name not in given:
            raise ValueError(f"{path} has no row for {name}: each picture needs a box")
        try:
            x0, y0, x1, y1 = (int(given[name][c]) for c in columns[1:])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: the box of {name} must be four whole numbers") from None
        if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
            raise ValueError(f"{path}: the box ({x0}, {y0}, {x1}, {y1}) of {name} must lie in a picture of {size[1]} x {size[0]}")
        box[i, y0:y1, x0:x1] = True
    return box


@lru_cache(maxsize=2)
def own_network(folder: str, kind: str, colours: int, classes: int, size: tuple[int, int]) -> dict[str, Tensor] | None:
    """The weights in `folder/network.pt`, a file `torch.save(net.state_dict())` of `network(...)`, or None without one.

    Read as data only (weights_only=True). ValueError says what does not fit, such as another number of classes.
    """
    described = f"the {kind} network with {colours} colours and {classes} classes"
    return own_weights(Path(folder) / "network.pt", lambda _: network(kind, colours, classes, size), described) if folder else None
