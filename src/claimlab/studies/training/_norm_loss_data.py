"""Pictures of the study norm-loss: noisy digits, pieces of five photographs, CIFAR's python batches or an .npz of one's own.

Everything of a seed follows from (seed, name, noise, path). Pictures are [N, C, H, W] float32 in [0, 1] before the noise.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import arrays

TRAIN, VALIDATION, TEST = 500, 300, 1000  # at most; the digits leave 997 for the test
TILE, A_CLASS, LEAST = 12, 360, 20
TEXTURES = ("brick", "grass", "gravel", "temple", "flower")


@lru_cache(maxsize=64)
def split(seed: int, name: str, noise: float, path: str = "") -> tuple[tuple[Tensor, Tensor], ...]:
    """(x, y) for training, validation and test, stratified; Gaussian noise of size `noise` is added once to every pixel."""
    x, y = own_images(path) if path else {"digits": digits, "textures": textures}[name]()
    rng = np.random.default_rng(seed)
    train, rest = data.stratified(y, min(TRAIN, len(y) // 2), rng)
    first, second = data.stratified(y[rest], min(VALIDATION, len(rest) // 3), rng)
    x = x + noise * rng.standard_normal(x.shape, dtype=np.float32)
    return tuple((torch.from_numpy(x[k]), torch.from_numpy(y[k])) for k in (train, rest[first], rest[second][:TEST]))


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = data.digits()
    return x[:, None], y


@lru_cache(maxsize=1)
def textures() -> tuple[np.ndarray, np.ndarray]:
    """1,800 grey pieces of 12 x 12 pixels, 360 of each of five photographs; no two pieces overlap."""
    from skimage import data as photographs
    from sklearn.datasets import load_sample_images

    grey = [getattr(photographs, name)() / 255.0 for name in TEXTURES[:3]]
    grey += [photo @ np.array([0.299, 0.587, 0.114]) / 255.0 for photo in load_sample_images().images]
    rng, pieces = np.random.default_rng(0), []
    for photo in grey:
        height, width = (side // TILE for side in photo.shape)
        tiles = photo[: height * TILE, : width * TILE].reshape(height, TILE, width, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
        pieces.append(tiles[rng.permutation(len(tiles))[:A_CLASS]])
    x = np.concatenate(pieces).astype(np.float32)[:, None]
    return x, np.repeat(np.arange(len(TEXTURES)), A_CLASS)


# ---- pictures of one's own


def own_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, C, H, W] float32 in [0, 1] and labels [N] of an .npz with x and y, of one CIFAR python batch, or of a
    folder with `data_batch_*` or `train`. ValueError names the file, what is wrong and what is allowed.
    """
    place = Path(path)
    files = sorted([*place.glob("data_batch_*"), *place.glob("train")]) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"{place}: no such pictures; an .npz with x and y, a CIFAR python batch, or a folder with data_batch_* "
                         "or train is needed")  # fmt: skip
    parts = [tuple(arrays(file, ("x", "y"))) if file.suffix == ".npz" else cifar_batch(file) for file in files]
    if len({part[0].shape[1:] for part in parts}) > 1:
        raise ValueError(f"{place}: the files hold pictures of different shapes")
    x, y = (np.concatenate(same) for same in zip(*parts, strict=True))
    check(place.name, x, y)
    return x.astype(np.float32) / 255, y.astype(np.int64)


def check(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """ValueError where x, y do not serve: uint8 pictures, labels 0, 1, ... without a gap, each at least LEAST times."""
    if x.dtype != np.uint8 or x.ndim != 4 or not 1 <= x.shape[1] <= 4 or min(x.shape[2:]) < 4:
        raise ValueError(f"{name}: x is {x.dtype} of shape {x.shape}; allowed is uint8 of N x C x H x W, C 1 to 4, sides at least 4")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} pictures")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(f"{name}: labels {found[:12].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < LEAST:
        raise ValueError(f"{name}: label {found[count.argmin()]} has {count.min()} pictures; at least {LEAST} are needed")


class Restricted(pickle.Unpickler):
    """Reads the pickles of CIFAR: dicts, lists, numbers, strings and numpy arrays. Anything else is refused before it runs."""

    def find_class(self, module: str, name: str):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return lambda text, _codec: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")


def cifar_batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 3, 32, 32] uint8 and labels [N] of a python batch: `data` [N, 3072], `labels` or `fine_labels`."""
    try:
        with file.open("rb") as stream:
            held = Restricted(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"{file.name} is no CIFAR batch: {error}") from None
    found = {k.decode() if isinstance(k, bytes) else k: v for k, v in held.items()} if isinstance(held, dict) else {}
    labels = found.get("labels", found.get("fine_labels"))
    rows = found.get("data")
    if labels is None or not isinstance(rows, np.ndarray):
        raise ValueError(f"{file.name} holds {', '.join(map(str, found)) or 'no dict'}; a CIFAR batch has data and labels")
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise ValueError(f"{file.name}: data is {rows.dtype} of shape {rows.shape}; allowed is uint8 of N x 3072")
    y = np.asarray(labels)
    if y.dtype.kind not in "iu" or y.shape != rows.shape[:1]:
        raise ValueError(f"{file.name}: labels are no whole number for each of {len(rows)} pictures")
    return rows.reshape(-1, 3, 32, 32), y
