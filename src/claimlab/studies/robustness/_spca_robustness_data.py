"""Pictures of the study `spca-robustness`: digits, crops of brick and grass, or one's own; all of a seed follow from it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from claimlab import data
from claimlab.data.own import own_images
from claimlab.parts.attribution import crops

LEAST = 200  # images of a class in one's own file
TOTAL = 1797  # as many digits as there are; of textures as many are cut
TEST = 597
IDX = {"images": (b"\0\0\x08\x03", 3), "labels": (b"\0\0\x08\x01", 1)}  # MNIST's format: bytes, number of dimensions


@dataclass(frozen=True)
class Pictures:
    """One seed's flattened images in [0, 1] and their labels."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    classes: int


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Grey images [N, H, W] brought to [N, side, side], bilinear, smoothed first where they shrink."""
    grey = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
    return interpolate(grey, (side, side), mode="bilinear", antialias=True, align_corners=False)[:, 0].clamp(0, 1).numpy()


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every image [N, H, W] moved by -1, 0 or 1 pixel down and across; zeros come in."""
    n, height, width = images.shape
    page = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    corner = rng.integers(0, 3, (n, 2))
    return np.stack([page[i, a : a + height, b : b + width] for i, (a, b) in enumerate(corner)])


def textures(side: int, train: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Brick (0) and grass (1) in turn: `train` crops of the left halves of both photographs, the others of the right halves."""
    from skimage import data as photographs

    whole = [photographs.brick() / 255.0, photographs.grass() / 255.0]
    x, y = np.empty((TOTAL, side, side), dtype=np.float32), np.arange(TOTAL) % 2
    for label, picture in enumerate(whole):
        for half, part in ((picture[:, :256], slice(0, train)), (picture[:, 256:], slice(train, None))):
            mine = np.arange(TOTAL)[part][y[part] == label]
            x[mine] = crops([half], len(mine), side, rng)
    return x, y


@lru_cache(maxsize=32)
def load(seed: int, images: int, side: int, source: str, path: str = "") -> Pictures:
    """Training images (at most `images`) and up to 597 test images of a seed; `path` names one's own file and replaces `source`."""
    rng = np.random.default_rng(seed)
    if source == "textures" and not path:
        x, y = textures(side, images, rng)
        train, test = np.arange(images), np.arange(images, TOTAL)
    else:
        raw, y = own(path) if path else data.digits()
        x = enlarged(raw, side) if path else shifted(enlarged(raw, side), rng)
        train, test = data.stratified(y, min(images, len(y) * 2 // 3), rng)
    test, classes = test[:TEST], int(y.max()) + 1
    x, y = torch.from_numpy(x.reshape(len(x), -1)), torch.from_numpy(y.astype(np.int64))
    return Pictures(x[train], y[train], (x[test], y[test]), classes)


# ---- one's own files


@lru_cache(maxsize=2)
def own(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Grey images [N, H, W] float32 in [0, 1] and labels [N] of one's own file; ValueError where it does not fit.

    A folder with MNIST's idx files (train-images-idx3-ubyte, train-labels-idx1-ubyte, packed with gzip or not), an .npz with
    x and y, or a file of CIFAR-10's binary version; at least 200 images a class. Colours are averaged.
    """
    if not Path(path).is_dir():
        x, y = own_images(path, least=LEAST)
        return x.mean(-1), y
    x, y = (idx(Path(path), kind) for kind in IDX)
    name = Path(path).name
    if len(x) != len(y) or not len(x):
        raise ValueError(f"{name}: {len(x):,} images and {len(y):,} labels; allowed is one label for each, at least one")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[-1] != len(found) - 1:
        raise ValueError(f"{name}: the labels are {found[:12].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < LEAST:
        raise ValueError(f"{name}: label {found[count.argmin()]} has {count.min()} images; at least {LEAST} are needed")
    return x.astype(np.float32) / 255, y.astype(np.int64)


def idx(folder: Path, kind: str) -> np.ndarray:
    """The numbers of `train-<kind>-idx...` in a folder, uint8; ValueError where the file is absent, cut or something else."""
    magic, dimensions = IDX[kind]
    stem = f"train-{kind}-idx{dimensions}-ubyte"
    file = next((folder / n for n in (stem, stem + ".gz") if (folder / n).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} holds no {stem}, packed or not")
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file.name} cannot be unpacked: {error}") from None
    if raw[:4] != magic or len(raw) < 4 + 4 * dimensions:
        raise ValueError(f"{file.name} begins with {raw[:4].hex()}; an idx file of {kind} begins with {magic.hex()}")
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4).astype(int)
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if len(body) != shape.prod():
        raise ValueError(f"{file.name} announces {shape.tolist()} numbers and holds {len(body):,}")
    return body.reshape(shape)
