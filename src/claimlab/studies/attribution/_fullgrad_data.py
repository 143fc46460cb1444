"""Data and networks of the study fullgrad: digits on textures, or a folder of one's own; layers that completeness holds for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.parts.attribution import class_folders, crops, pngs, scattered, smooth_noise


class Data(NamedTuple):
    """Images [N, C, H, W] float32 in [0, 1], labels [N], and the object masks [M, H, W] of the test images (or None)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    test_mask: Tensor | None


@lru_cache(maxsize=16)
def load(seed: int, clutter: float, folder: str = "") -> Data:
    """The data of a seed: cluttered digits, 1,300 to train, 497 to test; or the images of `folder`, split 72 : 28."""
    rng = np.random.default_rng(seed)
    x, y, mask = own_images(folder)[:3] if folder else cluttered(rng, clutter)
    train, test = data.stratified(y, 1300 if not folder else round(0.7234 * len(y)), rng)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    return Data(x[train], y[train], x[test], y[test], None if mask is None else torch.from_numpy(mask[test]))


def cluttered(rng: np.random.Generator, clutter: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits enlarged to 12 x 12, pasted at a random place of a 20 x 20 background: half smooth noise, half texture."""
    from scipy import ndimage
    from skimage import data as pictures

    small, y = data.digits()
    digit = ndimage.zoom(small, (1, 1.5, 1.5), order=1)
    textures = [np.asarray(getattr(pictures, name)(), dtype=np.float32) for name in ("brick", "grass", "gravel")]
    smooth = smooth_noise(len(y), 20, 2, rng)
    ground = clutter * (smooth + crops(textures, len(y), 20, rng)) / 2
    ink, _ = scattered(digit, 20, rng)
    mask = ndimage.binary_dilation(ink > 0.25, np.ones((1, 3, 3)))
    return (ground * (1 - ink) + ink).astype(np.float32)[:, None], y, mask


@lru_cache(maxsize=2)
def own_images(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Images `folder/images/<class>/*.png` (RGB, one size, sides multiples of 4) and, if given for all, object masks of the
    same names under `folder/masks/`: arrays in [0, 1], labels, masks, class names. ValueError says which file is wrong."""
    top = Path(folder) / "images"
    files, y, names = class_folders(top, 4)
    x = pngs(files, 8, 256, 4, ("RGB",))
    masks = _masks([Path(folder) / "masks" / p.relative_to(top) for p in files], x.shape[-2:])
    return x, y, masks, names


def _masks(paths: list[Path], size: tuple[int, int]) -> np.ndarray | None:
    from PIL import Image

    if not paths[0].parent.parent.is_dir():
        return None
    if missing := [p for p in paths if not p.is_file()]:
        raise ValueError(f"{missing[0]} is missing: give a mask for every image, or leave the folder masks out")
    found = [np.asarray(Image.open(p).convert("L")) > 127 for p in paths]
    if bad := [p for p, m in zip(paths, found, strict=True) if m.shape != size or not m.any()]:
        raise ValueError(f"{bad[0]} must have the size of its image and mark at least one pixel of the object (above 127)")
    return np.stack(found)


# ---- the network


class Residual(nn.Module):
    """relu(x + body(x)); addition and ReLU are positively homogeneous, so completeness holds."""

    def __init__(self, width: int):
        super().__init__()
        self.body = build((_block(width, width) + _block(width, width))[:-1])
        self.out = nn.ReLU()

    def forward(self, x):
        return self.out(x + self.body(x))


LAYERS = {
    "conv": lambda i, o: nn.Conv2d(i, o, 3, padding=1), "norm": nn.BatchNorm2d, "relu": nn.ReLU, "gelu": nn.GELU,
    "pool": lambda: nn.MaxPool2d(2), "residual": Residual, "linear": nn.Linear,
    "mean": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}  # fmt: skip


def _block(inside: int, outside: int) -> list[tuple]:
    return [("conv", inside, outside), ("norm", outside), ("relu",)]


def plan(kind: str, colours: int, classes: int, w: int) -> list[tuple]:
    """The layers of the plain network (convolutions w, w, pool, 2w, 2w, pool, 3w) or of the residual one, in LAYERS' words."""
    if kind == "plain":
        first, second = _block(colours, w) + _block(w, w), _block(w, 2 * w) + _block(2 * w, 2 * w)
    else:
        first, second = [*_block(colours, w), ("residual", w)], [*_block(w, 2 * w), ("residual", 2 * w)]
    return [*first, ("pool",), *second, ("pool",), *_block(2 * w, 3 * w), ("mean",), ("linear", 3 * w, classes)]


def build(layers: list[tuple]) -> nn.Sequential:
    """The network of these layers; ValueError for one that completeness is not known to hold for."""
    if bad := [one for one in layers if one[0] not in LAYERS]:
        raise ValueError(f"the layer {bad[0][0]!r} is not allowed: one of {', '.join(LAYERS)}")
    return nn.Sequential(*(LAYERS[kind](*sizes) for kind, *sizes in layers))


@lru_cache(maxsize=2)
def own_network(folder: str, colours: int, classes: int) -> tuple[tuple[tuple, ...], dict[str, Tensor]] | None:
    """Layers and weights of `folder/network.pt`, a file `torch.save(dict(layers=[["conv", 3, 8], ...], state=net.state_dict()))`.

    It is read as data only (weights_only=True). A network trained on normalised colours begins with a "norm" layer that
    holds their mean and variance. None where there is no such file; ValueError says what does not fit.
    """
    path = Path(folder) / "network.pt"
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        layers, state = tuple(tuple(one) for one in saved["layers"]), dict(saved["state"])
    except Exception as error:
        raise ValueError(f"{path} must hold layers (a list of lists) and state (tensors): {type(error).__name__}") from None
    kinds = [one[0] for one in layers]
    if kinds.count("mean") != 1 or kinds[-1] != "linear":
        raise ValueError(f"{path}: the layers must hold one 'mean' and end with 'linear'")
    try:
        net = build(layers)
        net.load_state_dict(state)
        out = net.eval()(torch.zeros(1, colours, 64, 64))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: layers, weights and {colours} colours do not fit together: {str(error)[:200]}") from None
    if out.shape[1] != classes:
        raise ValueError(f"{path} has {out.shape[1]} outputs, but the folder images holds {classes} classes")
    if bad := [name for name, t in state.items() if not torch.isfinite(t).all()]:
        raise ValueError(f"{path}: {bad[0]} holds a value that is not a number")
    return layers, state
