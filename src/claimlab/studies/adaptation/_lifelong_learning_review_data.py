"""Three streams of tasks over the same examples, and a reader's own table of features, for the study of lifelong learning."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data

STREAMS = ("permuted", "new_classes", "new_tasks")
TRAIN, TEST = {"digits": 1297, "mnist": 2000}, 1000
LEAST_CLASSES, LEAST_EXAMPLES = 4, 20


def keyed(*key: object) -> torch.Generator:
    """A generator of its own for each key, such as (seed, stream, task, step): what has the same key is drawn alike everywhere."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)


@dataclass(frozen=True)
class Source:
    """What the data of a stream depend on. `path` is a folder of one's own, or ''."""

    seed: int
    stream: str
    tasks: int
    similarity: float
    images: str
    path: str = ""


@dataclass(frozen=True)
class Stream:
    """T tasks over N training and n test examples with D inputs and C classes.

    x [N, D], y [N], test_x [n, D], test_y [n]; rows[t], test_rows[t]: the examples of task t; pixels [T, D]: the order in which
    a task sees the inputs; heads [T, C]: the outputs that may answer in a task (all, unless the task is named at test).
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    rows: tuple[Tensor, ...]
    test_rows: tuple[Tensor, ...]
    pixels: Tensor
    heads: Tensor

    def take(self, tasks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [..., D], labels [...] and heads [..., C] of training rows, each as its task sees it."""
        return self.x[rows].gather(-1, self.pixels[tasks]), self.y[rows], self.heads[tasks]

    def all_of(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Everything that task t trains on."""
        return self.take(torch.full_like(self.rows[t], t), self.rows[t])

    def test(self, t: int) -> tuple[Tensor, Tensor]:
        """Test inputs [n_t, D] as task t sees them, and labels."""
        return self.test_x[self.test_rows[t]][:, self.pixels[t]], self.test_y[self.test_rows[t]]

    @property
    def sizes(self) -> Tensor:
        """Test examples of each task, [T]."""
        return torch.tensor([len(rows) for rows in self.test_rows])


@lru_cache(maxsize=64)
def stream(source: Source) -> Stream:
    """The stream that follows from `source` alone. ValueError where there are fewer classes than tasks."""
    x, y, stated = _examples(source.images, source.path)
    rng, classes, count = np.random.default_rng(source.seed), int(y.max()) + 1, source.tasks
    train, test = data.stratified(y, round(0.7 * len(y)) if source.path else TRAIN[source.images], rng)
    test = test[:TEST]
    if source.path:  # inputs to [0, 1] by the training rows
        low, high = x[train].min(0), x[train].max(0)
        x = ((x - low) / np.where(high > low, high - low, 1)).clip(0, 1).astype(np.float32)
    parts = [torch.from_numpy(part) for part in (x[train], y[train], x[test], y[test])]
    every = torch.arange(x.shape[1]).expand(count, -1)
    if source.stream == "permuted":
        everyone = [tuple(torch.arange(len(labels)) for _ in range(count)) for labels in (y[train], y[test])]
        pixels = torch.from_numpy(permutations(x.shape[1], count, source.similarity, rng))
        return Stream(*parts, *everyone, pixels, torch.ones(count, classes, dtype=torch.bool))
    if count > classes:
        raise ValueError(f"tasks = {count} is not allowed: there are {classes} classes, and each task needs one of its own")
    groups = np.array_split(rng.permutation(classes) if stated is None else stated, count)
    rows = [tuple(torch.from_numpy(np.flatnonzero(np.isin(labels, g))) for g in groups) for labels in (y[train], y[test])]
    heads = torch.ones(count, classes, dtype=torch.bool)
    if source.stream == "new_tasks":
        heads = torch.stack([torch.isin(torch.arange(classes), torch.from_numpy(np.asarray(g))) for g in groups])
    return Stream(*parts, *rows, every.contiguous(), heads)


def permutations(inputs: int, tasks: int, similarity: float, rng: np.random.Generator) -> np.ndarray:
    """An order of the inputs a task, [T, D]: the first as they are; then a share `similarity` stays and the others are mixed."""
    found = np.tile(np.arange(inputs), (tasks, 1))
    for order in found[1:]:
        moved = rng.permutation(inputs)[: inputs - round(similarity * inputs)]
        order[moved] = order[rng.permutation(moved)]
    return found


@lru_cache(maxsize=4)
def _examples(images: str, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if path:
        return own_table(path)
    x, y = data.mnist() if images == "mnist" else data.digits()
    return x.reshape(len(x), -1), y, None


# ---- your own table


def own_path() -> str:
    """The folder that CLAIMLAB_DATA names, or ''."""
    return os.environ.get("CLAIMLAB_DATA", "")


def own_table(folder: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x [N, D] float32, y [N] int64 and the stated order of the classes (or None) from features.npy and labels.csv.

    labels.csv has a column `label` with one row an example, and may have a column `order`, a whole number that is the same for
    all rows of a label: classes then arrive by rising `order`. ValueError names the file, what is wrong and what is allowed.
    """
    import pandas as pd

    features, labels = (Path(folder) / name for name in ("features.npy", "labels.csv"))
    for file in (features, labels):
        if not file.is_file():
            raise ValueError(f"{file.name} is missing; the folder must hold features.npy and labels.csv")
    try:
        x = np.load(features, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"features.npy can not be read: {error}; allowed is an array of numbers, examples x dims") from None
    try:
        table = pd.read_csv(labels)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"labels.csv can not be read: {error}; allowed is UTF-8 with a column label") from None
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.dtype.kind not in "fiu" or not x.size:
        shape = getattr(x, "shape", "no array")
        raise ValueError(f"features.npy is {getattr(x, 'dtype', type(x).__name__)} of shape {shape}; allowed are numbers, examples x dims")
    if bad := int((~np.isfinite(x)).any(1).sum()):
        raise ValueError(f"features.npy: {bad} rows hold NaN or infinity; all must be finite")
    return x.astype(np.float32), *_labels(table, len(x))


def _labels(table, examples: int) -> tuple[np.ndarray, np.ndarray | None]:
    if "label" not in table:
        raise ValueError(f"labels.csv has the columns {', '.join(map(str, table.columns))}; a column label is needed")
    if len(table) != examples:
        raise ValueError(f"labels.csv has {len(table)} rows and features.npy {examples}; they must be equally long")
    if table["label"].isna().any():
        raise ValueError(f"labels.csv: {int(table['label'].isna().sum())} rows have no label; each needs one")
    count = table["label"].value_counts()
    if len(count) < LEAST_CLASSES or count.min() < LEAST_EXAMPLES:
        raise ValueError(f"labels.csv has {len(count)} labels, the rarest on {count.min() if len(count) else 0} rows; at least "
                         f"{LEAST_CLASSES} labels with {LEAST_EXAMPLES} rows each are needed")  # fmt: skip
    names = sorted(count.index)
    y = table["label"].map({name: k for k, name in enumerate(names)}).to_numpy(np.int64)
    if "order" not in table:
        return y, None
    order = table.groupby("label")["order"].agg(["min", "max", "count", "size"])
    if table["order"].dtype.kind not in "iu" or (order["min"] != order["max"]).any():
        raise ValueError("labels.csv: order must be a whole number that is the same for all rows of a label")
    return y, order["min"].loc[names].to_numpy().argsort(kind="stable")
