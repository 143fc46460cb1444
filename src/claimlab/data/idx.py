"""A folder with the idx files of MNIST or Fashion-MNIST, one's own copy, checked before it is used."""

from __future__ import annotations

import gzip
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np

PICTURES, LABELS = 2051, 2049  # magic numbers: unsigned bytes in three dimensions, and in one


@lru_cache(maxsize=2)
def idx_folder(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] in [0, 1] and labels [N] from the idx files of MNIST or Fashion-MNIST (*-images-idx3-ubyte and
    *-labels-idx1-ubyte, optionally .gz; of several pairs the one that begins with train). ValueError names what is wrong."""
    images, labels = (_file(folder, pattern) for pattern in ("*images*idx3*", "*labels*idx1*"))
    x, y = read(images, PICTURES, 3), read(labels, LABELS, 1)
    if x.shape[1:] != (28, 28):
        raise ValueError(f"{images.name}: images are {x.shape[1]} x {x.shape[2]}; allowed is 28 x 28")
    if len(x) != len(y):
        raise ValueError(f"{images.name} holds {len(x)} images, {labels.name} {len(y)} labels; their numbers must be equal")
    if len(y) < 500:
        raise ValueError(f"{images.name}: {len(x)} images are too few; at least 500 are needed")
    if y.max() > 9:
        raise ValueError(f"{labels.name}: label {y.max()} is not allowed; labels are 0 to 9")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 10 or count.min() < 10:
        few = next((k for k in range(10) if k not in found), int(found[count.argmin()]))
        raise ValueError(f"{labels.name}: label {few} has {(y == few).sum()} images; each of 0 to 9 needs at least 10")
    return x.astype(np.float32) / 255, y.astype(np.int64)


def _file(folder: str, pattern: str) -> Path:
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; a folder with idx files of images and labels is needed")
    found = sorted(Path(folder).glob(pattern), key=lambda file: (not file.name.startswith("train"), file.name))
    if not found:
        raise ValueError(f"{folder} holds no file {pattern}; MNIST's are train-images-idx3-ubyte and train-labels-idx1-ubyte")
    return found[0]


def read(file: Path, magic: int, dimensions: int) -> np.ndarray:
    """The bytes of an idx file (plain or .gz) as an array; ValueError where the head or the length is wrong."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file.name} is not a gzip file that can be read: {error}") from None
    head = 4 * (1 + dimensions)
    if len(raw) < head:
        raise ValueError(f"{file.name}: {len(raw)} bytes are less than the head of an idx file, {head} bytes")
    found, *shape = struct.unpack(f">{1 + dimensions}I", raw[:head])
    if found != magic:
        raise ValueError(f"{file.name}: the magic number is {found}; allowed is {magic}")
    if len(raw) - head != (wanted := int(np.prod(shape, dtype=object))):
        raise ValueError(f"{file.name}: the head promises {wanted:,} bytes ({shape}), the file holds {len(raw) - head:,}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)
