"""A user's own files, parsed as data only (nothing in them can run code) and refused with the reason where they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np

CIFAR_ROW = 1 + 3 * 32 * 32  # CIFAR-10's binary version: a label byte, then the red, green and blue planes


def own_images(path: str | Path, least: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, H, W, C] float32 in [0, 1] and labels [N] int64 from an .npz (x uint8, y int) or a CIFAR-10 .bin file.

    Labels are 0, 1, ... without a gap, at least two, each with `least` images or more, and no image occurs twice (a test
    image could be in the training set). ValueError names the file, what is wrong and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; an .npz with x and y, or a CIFAR-10 .bin file, is needed")
    x, y = _cifar(file) if file.suffix == ".bin" else _npz(file)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3) or not len(x):
        raise ValueError(f"{file.name}: x is {x.dtype} of shape {x.shape}; allowed is uint8 of N x H x W x C, C 1 or 3, N > 0")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{file.name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} images")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(f"{file.name}: y holds labels {found[:12].tolist()}; allowed are 0, 1, ... without a gap, at least two")
    if count.min() < least:
        raise ValueError(f"{file.name}: label {found[count.argmin()]} has {count.min()} images; at least {least} are needed")
    if twice := len(x) - len(np.unique(x.reshape(len(x), -1), axis=0)):
        raise ValueError(f"{file.name}: {twice} images occur again; each may occur once, or a test image could be trained on")
    return x.astype(np.float32) / 255, y.astype(np.int64)


def _cifar(file: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(file, dtype=np.uint8)
    if not len(raw) or len(raw) % CIFAR_ROW:
        raise ValueError(f"{file.name}: {len(raw):,} bytes are not a whole number of CIFAR-10 rows of {CIFAR_ROW:,} bytes")
    rows = raw.reshape(-1, CIFAR_ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]


def _npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = arrays(file, ("x", "y"), "CIFAR-10: use the binary version; its python batches are pickles, which can run code and are "
                  "never opened here")  # fmt: skip
    return x, y


def arrays(path: str | Path, names: Sequence[str], wanted: str = "",
           hint: Callable[[Container[str]], str] | None = None) -> list[np.ndarray]:  # fmt: skip
    """The arrays of these names in an .npz, as plain numbers. ValueError names the file, what is wrong and what is allowed:
    `wanted` says so for what is no .npz at all, `hint` for a file that holds other arrays."""
    import zipfile

    file, told = Path(path), " and ".join(names)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file.name} is not an .npz file; " + (wanted or f"allowed is an .npz with {told}"))
    with np.load(file, allow_pickle=False) as held:
        if missing := [name for name in names if name not in held]:
            raise ValueError(f"{file.name} has no array {' and no '.join(missing)}; it must hold {told}" + (hint(held) if hint else ""))
        try:
            return [held[name] for name in names]
        except ValueError as error:
            raise ValueError(f"{file.name}: {told} must be plain numbers: {error}") from None


def read_table(path: str | Path):
    """A CSV in UTF-8 as a pandas.DataFrame; ValueError where there is none or it is something else."""
    import pandas as pd

    file = Path(path)
    if not file.is_file() or file.suffix.lower() != ".csv":
        raise ValueError(f"CLAIMLAB_DATA names {path}, which is not a .csv file")
    try:
        return pd.read_csv(file, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise ValueError(f"{file.name} is not a CSV file in UTF-8: {error}") from None


def labelled_table(path: str | Path, least: int = 40, most: int = 20_000, features: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [N, D] and labels [N] of a CSV in UTF-8 with a column `label` and numbers in all others.

    ValueError names the file, what is wrong and what is allowed: `least` to `most` rows, at most `features` columns of finite
    numbers, two classes or more with at least ten rows each. Labels may be words; they are numbered in sorted order.
    """
    file = Path(path)
    table = read_table(file)
    if "label" not in table or table.shape[1] < 2:
        raise ValueError(f"{file.name} needs a column label and one column of numbers or more; it has {', '.join(table.columns)}")
    if not least <= len(table) <= most or table.shape[1] - 1 > features:
        raise ValueError(f"{file.name} has {len(table)} rows of {table.shape[1] - 1} numbers; {least} to {most:,} rows and at "
                         f"most {features} numbers are allowed")  # fmt: skip
    x = table.drop(columns="label")
    if words := [name for name in x if x[name].dtype.kind not in "iuf"]:
        raise ValueError(f"{file.name}: the column {words[0]} holds other things than numbers; only label may")
    if bad := (~np.isfinite(x.to_numpy(float))).any(1).nonzero()[0].tolist():
        raise ValueError(f"{file.name}: row {bad[0] + 1} holds a number that is missing or not finite ({len(bad)} such rows)")
    if table["label"].isna().any():
        raise ValueError(f"{file.name}: row {int(table['label'].isna().argmax()) + 1} has no label")
    names, y, count = np.unique(table["label"].astype(str), return_inverse=True, return_counts=True)
    if len(names) < 2 or count.min() < 10:
        said = ", ".join(f"{n} ({c})" for n, c in list(zip(names, count, strict=True))[:8])
        raise ValueError(f"{file.name} has the labels {said}; two or more with at least ten rows each are needed")
    return x.to_numpy(float), y.astype(np.int64)
