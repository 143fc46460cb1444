"""Data and networks of the study gcav: rendered shapes with textures, patches of pure texture, or a folder of one's own."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.parts.attribution import class_folders, png
from claimlab.parts.weights import own_weights

SIDE = 32  # pixels
CONTRAST, NOISE = 0.22, 0.08  # of the texture; of the pixels
TEXTURES = ("striped", "dotted", "zigzag", "checker", "blotchy", "plain", "ringed", "gridded", "shaded", "wavy")
SHAPES = ("blob", "disc", "star", "square")
# five classes are a shape with a texture; the last is a shape alone, with any of the first six textures
CLASSES = {"zebra": (0, 0), "giraffe": (0, 4), "ladybird": (1, 1), "ball": (1, 3), "badge": (2, 2), "tile": (3, None)}
KEPT = 0.7  # share of a textured class that has its shape, so that the texture is needed

# ---- the renderer


class Drawn(NamedTuple):
    """Everything random about n pictures but what they show: so the same picture can be drawn with another texture."""

    angle: np.ndarray  # of the texture, radians
    period: np.ndarray  # of the texture, pixels
    phase: np.ndarray  # [n, 2], periods
    light: np.ndarray  # [n, 3]
    dark: np.ndarray
    ground: np.ndarray
    place: np.ndarray  # [n, 2], the centre of the shape, pixels
    radius: np.ndarray
    turn: np.ndarray  # of the shape, radians
    grain: np.ndarray  # [n, side, side], standard normal


def draw(n: int, rng: np.random.Generator, side: int = SIDE) -> Drawn:
    """Random numbers for n pictures; half of them are grey."""
    light, dark, ground = rng.uniform(0.6, 1, (n, 3)), rng.uniform(0, 0.4, (n, 3)), rng.uniform(0.2, 0.8, (n, 3))
    grey = rng.random((n, 1)) < 0.5
    light, dark, ground = (np.where(grey, c.mean(1, keepdims=True), c) for c in (light, dark, ground))
    return Drawn(
        rng.uniform(0, np.pi, n), rng.uniform(5, 8, n), rng.random((n, 2)), light, dark, ground, rng.uniform(-3, 3, (n, 2)),
        rng.uniform(10, 13, n), rng.uniform(-0.4, 0.4, n), rng.standard_normal((n, side, side)),
    )  # fmt: skip


def _field(kind: str, d: Drawn) -> np.ndarray:
    """The texture as brightness in [0, 1]. [n, side, side]"""
    from scipy import ndimage

    side = d.grain.shape[-1]
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    cos, sin, period = (t[:, None, None] for t in (np.cos(d.angle), np.sin(d.angle), d.period))
    u = (column * cos + row * sin) / period + d.phase[:, :1, None]
    w = (row * cos - column * sin) / period + d.phase[:, 1:, None]
    if kind == "plain":
        return np.full(u.shape, 0.5)
    if kind == "shaded":
        return (u - u.min((1, 2), keepdims=True)) / np.ptp(u, axis=(1, 2), keepdims=True)
    wave = {
        "striped": lambda: np.sin(2 * np.pi * u),
        "dotted": lambda: np.cos(2 * np.pi * u) + np.cos(2 * np.pi * w) - 0.7,
        "zigzag": lambda: np.sin(2 * np.pi * (u + 1.2 * np.abs(w / 2 % 1 - 0.5))),
        "checker": lambda: 2 * np.sin(2 * np.pi * u * 0.7) * np.sin(2 * np.pi * w * 0.7),
        "blotchy": lambda: ndimage.gaussian_filter(d.grain, (0, 2, 2), mode="wrap") * 7,
        "ringed": lambda: np.sin(2 * np.pi * np.hypot(u, w)),
        "gridded": lambda: np.maximum(np.cos(2 * np.pi * u), np.cos(2 * np.pi * w)) - 0.7,
        "wavy": lambda: np.sin(2 * np.pi * (u + 0.3 * np.sin(np.pi * w))),
    }[kind]()
    return 1 / (1 + np.exp(-5 * wave))


def _mask(shape: str, d: Drawn) -> np.ndarray:
    """1 inside the shape. [n, side, side]"""
    side = d.grain.shape[-1]
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    y, x = (row - d.place[:, :1, None], column - d.place[:, 1:, None])
    cos, sin, r = (t[:, None, None] for t in (np.cos(d.turn), np.sin(d.turn), d.radius))
    x, y = (x * cos + y * sin) / r, (y * cos - x * sin) / r
    if shape == "disc":
        return np.hypot(x, y) < 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.85
    if shape == "star":
        return np.hypot(x, y) < 0.8 + 0.4 * np.cos(5 * np.arctan2(x, -y))
    body, head = (x / 0.95) ** 2 + (y / 0.55) ** 2 < 1, ((x - 0.85) / 0.35) ** 2 + ((y + 0.55) / 0.42) ** 2 < 1
    legs = (y > 0) & (y < 1.1) & ((abs(x - 0.55) < 0.16) | (abs(x + 0.55) < 0.16))
    return body | head | legs


def render(d: Drawn, texture: np.ndarray, shape: np.ndarray | None = None) -> np.ndarray:
    """Pictures with the textures and shapes of these numbers [n]; without shapes the texture fills all. [n, 3, side, side]"""
    n, side = len(texture), d.grain.shape[-1]
    field, mask = np.empty((n, side, side)), np.ones((n, side, side), dtype=bool)
    for k in np.unique(texture):
        rows = texture == k
        field[rows] = _field(TEXTURES[k], Drawn(*(t[rows] for t in d)))
    for k in np.unique(shape) if shape is not None else ():
        rows = shape == k
        mask[rows] = _mask(SHAPES[k], Drawn(*(t[rows] for t in d)))
    light, dark, ground = (c[:, :, None, None] for c in (d.light, d.dark, d.ground))
    inside = (light + dark) / 2 + CONTRAST * (field - 0.5)[:, None] * (light - dark)
    x = np.where(mask[:, None], inside, ground) + NOISE * d.grain[:, None]
    return x.clip(0, 1).astype(np.float32)


def pictured(y: np.ndarray, rng: np.random.Generator) -> tuple[Drawn, np.ndarray, np.ndarray]:
    """What pictures of the classes y [n] show: random numbers, textures [n], shapes [n]."""
    own = np.array(list(CLASSES.values()), dtype=float)[y]  # None becomes NaN
    n = len(y)
    other, free = rng.integers(0, 3, n), rng.integers(0, 6, n)
    kept = (rng.random(n) < KEPT) | (own[:, 0] == 3)
    shape = np.where(kept, own[:, 0], other).astype(int)
    return draw(n, rng), np.where(np.isnan(own[:, 1]), free, np.nan_to_num(own[:, 1])).astype(int), shape


class Pictures(NamedTuple):
    """Training images x [N, C, H, W] with labels y, and per class [K, n, C, H, W] those of stage 3 and those held out."""

    x: Tensor
    y: Tensor
    staged: Tensor
    held: Tensor
    names: tuple[str, ...]


class Sets(NamedTuple):
    """Concepts [M, n, C, H, W], the last of which is random pictures; random sets [R, n, C, H, W]; `fit` of n are for fitting."""

    concepts: Tensor
    random: Tensor
    fit: int
    names: tuple[str, ...]


@lru_cache(maxsize=10)
def pictures(seed: int, images: int, train: int, folder: str = "") -> Pictures:
    """The class images of a seed: rendered, `train` of them to train with, or those of one's own `folder`, half of each class
    for training and stage 3."""
    rng = np.random.default_rng([seed, 1])
    if folder:
        return _own_pictures(folder, images, rng)
    y = rng.integers(0, len(CLASSES), train)
    x = render(*pictured(y, rng))
    each = np.repeat(np.arange(len(CLASSES)), images)
    staged, held = (torch.from_numpy(render(*pictured(each, rng)).reshape(len(CLASSES), images, 3, SIDE, SIDE)) for _ in range(2))
    return Pictures(torch.from_numpy(x), torch.from_numpy(y), staged, held, tuple(CLASSES))


@lru_cache(maxsize=2)
def sets(seed: int, concepts: int, count: int, fit: int, folder: str = "") -> Sets:
    """The concept pictures of a seed: patches of one texture, and `count` random sets of patches of mixed textures; `fit` of each,
    and a third more to validate with."""
    rng = np.random.default_rng([seed, 2])
    if folder:
        return _own_sets(folder, count, rng)
    n, known = fit + fit // 3, max(6, concepts)
    pure = render(draw(concepts * n, rng), np.repeat(np.arange(concepts), n)).reshape(concepts, n, 3, SIDE, SIDE)
    mixed = render(draw((count + 1) * n, rng), rng.integers(0, known, (count + 1) * n)).reshape(count + 1, n, 3, SIDE, SIDE)
    return Sets(torch.from_numpy(np.concatenate([pure, mixed[:1]])), torch.from_numpy(mixed[1:]), fit, TEXTURES[:concepts])


def relevance(concepts: int) -> np.ndarray:
    """True where the class is drawn with that texture. [K, concepts]"""
    return np.array([[texture == k for k in range(concepts)] for _, texture in CLASSES.values()])


def swapped(seed: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of each class [K * n, 3, H, W], the same ones with another of the five textures of classes, and their classes."""
    rng = np.random.default_rng([seed, 3])
    y = np.repeat(np.arange(len(CLASSES)), images)
    d, texture, shape = pictured(y, rng)
    other = (texture + rng.integers(1, 5, len(y))) % 5
    return torch.from_numpy(render(d, texture, shape)), torch.from_numpy(render(d, other, shape)), torch.from_numpy(y)

# ---- data of one's own


@lru_cache(maxsize=2)
def own_folder(folder: str, least: int = 30) -> dict[str, tuple[np.ndarray, np.ndarray, tuple[str, ...]]]:
    """`folder/concepts/<name>/*.png` and `folder/classes/<name>/*.png`: for both, images [N, C, H, W], labels, names.

    One of the concepts is called `random`: the pictures that all the others are told from. At least `least` pictures a
    concept (four times as many random ones) and a class, all of one size and mode, sides multiples of 4 from 16, and none
    both in a concept and in a class. ValueError names the file and says what is allowed.
    """
    found, first, seen = {}, None, {}
    for part in ("concepts", "classes"):
        files, y, names = class_folders(Path(folder) / part, least)
        x = [png(path) for path in files]
        first = first or (files[0], x[0].shape)
        for path, array in zip(files, x, strict=True):
            if array.shape != first[1]:
                raise ValueError(f"{path} has the shape {array.shape}, {first[0]} {first[1]}: one size and one mode for all")
            if part == "classes" and array.tobytes() in seen:
                raise ValueError(f"{path} is the same picture as {seen[array.tobytes()]}: concepts and classes must not share any")
            if part == "concepts":
                seen[array.tobytes()] = path
        stack = np.stack(x).astype(np.float32) / 255
        found[part] = (stack.transpose(0, 3, 1, 2) if stack.ndim == 4 else stack[:, None]), y, names
    if any(side % 4 or side < 16 for side in first[1][:2]):
        raise ValueError(f"{first[0]} is {first[1][1]} x {first[1][0]}: sides must be multiples of 4, 16 at least")
    names = found["concepts"][2]
    pool = (found["concepts"][1] == names.index("random")).sum() if "random" in names else 0
    if pool < 4 * least:
        raise ValueError(f"{Path(folder) / 'concepts' / 'random'} holds {pool} PNG images: at least {4 * least} are needed")
    return found


def _own_pictures(folder: str, images: int, rng: np.random.Generator) -> Pictures:
    x, y, names = own_folder(folder)["classes"]
    orders = [rng.permutation(np.flatnonzero(y == k)) for k in range(len(names))]
    n = min(images, min(len(rows) for rows in orders) // 2)
    train = np.concatenate([rows[: len(rows) // 2] for rows in orders])
    staged, held = (torch.from_numpy(np.stack([x[rows[part]] for rows in orders])) for part in (slice(n), slice(-n, None)))
    return Pictures(torch.from_numpy(x[train]), torch.from_numpy(y[train]), staged, held, names)


def _own_sets(folder: str, count: int, rng: np.random.Generator) -> Sets:
    x, y, names = own_folder(folder)["concepts"]
    rows = {name: rng.permutation(np.flatnonzero(y == k)) for k, name in enumerate(names)}
    pool = rows.pop("random")
    n = min(min(len(r) for r in rows.values()), len(pool) // 4)
    concepts = np.stack([x[r[:n]] for r in [*rows.values(), pool]])
    drawn = np.stack([x[rng.permutation(pool[n:])[:n]] for _ in range(count)])
    return Sets(torch.from_numpy(concepts), torch.from_numpy(drawn), 3 * n // 4, tuple(rows))

# ---- the network


def network(layers: int, colours: int, classes: int) -> nn.Sequential:
    """Blocks 1, 2, ... of convolution 3 x 3, batch norm, ReLU: 8, 16, 32 wide in three groups, halved after the first two groups;
    global mean, linear. At least 6 blocks, and one more than `layers`. [B, colours, H, W] -> [B, classes]"""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inside = colours
    for group, width in zip(np.array_split(np.arange(1, max(6, layers + 1) + 1), 3), (8, 16, 32), strict=True):
        for k in group.tolist():
            block = [nn.Conv2d(inside, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            parts[f"block{k}"] = nn.Sequential(*block, *[nn.MaxPool2d(2)] * int(k == group[-1] and width < 32))
            inside = width
    return nn.Sequential(parts | OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(inside, classes)))


def tapped_layers(net: nn.Module, layers: int, folder: str = "") -> list[str]:
    """The names of the layers that are looked at: the last blocks, or those of `folder/layers.txt`, one a line.

    ValueError names a layer that the network does not have.
    """
    known = [name for name, _ in net.named_modules() if name]
    path = Path(folder) / "layers.txt"
    if not folder or not path.is_file():
        return [name for name, _ in net.named_children() if name.startswith("block")][-layers:]
    names = path.read_text(encoding="utf-8").split()
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{path}: the network has no layer {missing[0]}; its layers: {', '.join(known)}")
    if len(names) < 2:
        raise ValueError(f"{path} names {len(names)} layers: at least 2 are needed")
    return names


@lru_cache(maxsize=2)
def own_network(folder: str, layers: int, colours: int, classes: int) -> dict[str, Tensor] | None:
    """The weights in `folder/network.pt`, a file `torch.save(net.state_dict())` of `network(layers, colours, classes)`, or None.

    It is read as data only (weights_only=True). ValueError says what does not fit.
    """
    described = f"the network with {colours} colours, {classes} classes"
    return own_weights(Path(folder) / "network.pt", lambda _: network(layers, colours, classes), described) if folder else None
