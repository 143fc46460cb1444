"""Pictures, networks and pairs of the study `lst-blind-spots`: digits on textures, or one's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.data.own import own_images
from claimlab.parts.attribution import class_folders, crops, enlarge, png, scattered

TRAIN, TEST, LEAST = 1200, 500, 20
CONTRAST, SURE = 0.3, 0.8


class Pictures(NamedTuple):
    """One seed's flattened pictures [N, D] in [0, 1] with labels [N]; `shape` is (channels, height, width)."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    shape: tuple[int, int, int]
    classes: int


@lru_cache(maxsize=16)
def load(seed: int, side: int, colour: bool, path: str = "") -> Pictures:
    """1,200 training and 500 test pictures of a seed; `path` names one's own file or folder, split 70 : 30."""
    rng = np.random.default_rng(seed)
    x, y = own(path)[:2] if path else scenes(side, colour, rng)
    train, test = data.stratified(y, round(0.7 * len(y)) if path else TRAIN, rng)
    shape, classes = x.shape[1:], int(y.max()) + 1
    x, y = torch.from_numpy(x.reshape(len(x), -1)), torch.from_numpy(y)
    return Pictures(x[train], y[train], (x[test[:TEST]], y[test[:TEST]]), shape, classes)


def scenes(side: int, colour: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Digits of 3/4 side, moved by up to a pixel, on brick, grass or gravel of contrast 0.3: [1797, 1 or 3, side, side]."""
    from skimage import data as photographs

    small, y = data.digits()
    large = enlarge(torch.from_numpy(small), (side * 3 // 4, side * 3 // 4)).numpy()
    rim = (side - side * 3 // 4 - 2) // 2
    ink = np.pad(scattered(large, side * 3 // 4 + 2, rng)[0], ((0, 0), (rim, rim), (rim, rim)))[:, None]
    grounds = [np.asarray(getattr(photographs, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel")]
    ground = CONTRAST * crops(grounds, len(y), side, rng)[:, None]
    pen = np.ones((1, 1, 1, 1))
    if colour:  # each scene has its own colour of ground and of pen
        ground = ground * rng.uniform(0.3, 1, (len(y), 3, 1, 1))
        pen = rng.uniform(0.5, 1, (len(y), 3, 1, 1))
    return (ground * (1 - ink) + pen * ink).astype(np.float32), y


# ---- one's own pictures and network


@lru_cache(maxsize=2)
def own(path: str) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor] | None]:
    """Pictures [N, C, H, W] in [0, 1], labels [N] and, if there is one, the state_dict of one's own network.

    A folder `<class>/*.png` (8 bits, grey or RGB, all of one size) with `network.pt` beside the classes, an .npz with x and
    y, or a file of CIFAR-10's binary version with the network in `<name>.pt`. At least two classes of 20 pictures, sides of
    8 to 64 pixels, multiples of 4. ValueError says which file does not fit, and why.
    """
    place = Path(path)
    if place.is_dir():
        x, y = folder(place)
    else:
        x, y = own_images(place, LEAST)
        x = x.transpose(0, 3, 1, 2)
    if any(side % 4 or not 8 <= side <= 64 for side in x.shape[2:]):
        raise ValueError(f"{place.name}: pictures of {x.shape[2]} x {x.shape[3]}; sides must be multiples of 4 from 8 to 64")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(f"{place.name}: pixels from {x.min():g} to {x.max():g}; allowed are 0 to 1")
    weights = place / "network.pt" if place.is_dir() else place.with_suffix(".pt")
    return np.ascontiguousarray(x), y, network(weights, x.shape[1:], int(y.max()) + 1) if weights.is_file() else None


def folder(top: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures `top/<class>/*.png` as [N, C, H, W] in [0, 1], and their labels."""
    files, y, _ = class_folders(top, LEAST)
    x: list[np.ndarray] = []
    for file in files:
        array = png(file)
        if x and array.shape != x[0].shape:
            raise ValueError(f"{file} has the shape {array.shape}, the first picture {x[0].shape}; all must be of one size and mode")
        x.append(array)
    stacked = np.stack(x).astype(np.float32) / 255
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2), y


def network(file: Path, shape: tuple[int, int, int], classes: int) -> dict[str, Tensor]:
    """The state_dict of a `convnet` of this size, read as data only; ValueError where it does not fit."""
    try:
        state = dict(torch.load(file, weights_only=True, map_location="cpu"))
        convnet(shape, classes).load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{file} is no state_dict of convnet({tuple(shape)}, {classes}): {str(error)[:300]}") from None
    if bad := [name for name, part in state.items() if not torch.isfinite(part).all()]:
        raise ValueError(f"{file}: {bad[0]} holds a value that is not a number")
    return state


# ---- networks of flattened pictures


def convnet(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Convolutions 8, 16, 32 with stride 2, group norm, ReLU, one linear layer. [N, D] -> [N, classes]"""
    layers: list[nn.Module] = [nn.Unflatten(1, tuple(shape))]
    inside, (height, width) = shape[0], shape[1:]
    for outside in (8, 16, 32):
        layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(4, outside), nn.ReLU()]
        inside, height, width = outside, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside * height * width, classes))


class Transformer(nn.Module):
    """A small vision transformer: patches of 4 x 4 as d = 48 numbers, two blocks of four heads, the mean, a linear layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int, d: int = 48):
        super().__init__()
        self.patches = nn.Sequential(nn.Unflatten(1, tuple(shape)), nn.Conv2d(shape[0], d, 4, stride=4), nn.Flatten(2))
        self.place = nn.Parameter(0.02 * torch.randn(shape[1] // 4 * (shape[2] // 4), d))
        options = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(d, 4, 2 * d, **options) for _ in range(2)))
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, classes))

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).mT + self.place).mean(1))


# ---- pairs


class Pairs(NamedTuple):
    """Rows of test pictures [n]: a source, and two targets of other classes; `confident` test pictures could be drawn."""

    source: Tensor
    first: Tensor
    second: Tensor
    confident: int


def pairs(nets: list[nn.Module], x: Tensor, y: Tensor, n: int, rng: np.random.Generator) -> Pairs:
    """n sources and two targets each among the pictures to whose label all `nets` give more than 0.8.

    Where fewer than 2 n pass, the surest 2 n stand in; where those are of one class, all pictures.
    """
    with torch.no_grad():
        sure = torch.stack([net(x).softmax(1).gather(1, y[:, None])[:, 0] for net in nets]).amin(0).cpu().numpy()
    label, confident = y.cpu().numpy(), int((sure > SURE).sum())
    pool = np.sort(np.argsort(-sure, kind="stable")[: max(confident, 2 * n)])
    pool = pool if len(np.unique(label[pool])) > 1 else np.arange(len(label))
    rows = []
    for source in rng.choice(pool, n, replace=len(pool) < n):
        others = pool[label[pool] != label[source]]
        rows.append([source, *rng.choice(others, 2, replace=len(others) < 2)])
    return Pairs(*torch.tensor(np.array(rows), device=x.device).T, confident)
