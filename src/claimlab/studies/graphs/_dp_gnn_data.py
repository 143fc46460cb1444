"""Graphs for the study `dp-gnn`: a simulated block model with features, or CSV files of your own."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.data.own import read_table
from claimlab.studies.graphs._dp_gnn_method import bound_readers, slots

FEATURES, CLASSES, LEAST = 16, 5, 5000
SPREAD = 0.5  # of the logarithm of a node's weight
FILES = {"edges": ("source", "target"), "features": (), "labels": ("label",), "split": ("split",)}


@dataclass(frozen=True)
class Graph:
    """Features [n, F], labels [n], directed edges [2, E] = (reader, read), every edge in both directions."""

    x: np.ndarray
    y: np.ndarray
    edges: np.ndarray

    def lists(self) -> tuple[Tensor, Tensor]:
        """What each node reads, node by node [E], and where each list begins [n]."""
        order = np.lexsort((self.edges[1], self.edges[0]))
        starts = np.searchsorted(self.edges[0][order], np.arange(len(self.y)))
        return torch.from_numpy(self.edges[1][order]), torch.from_numpy(starts)


# ---- simulated


def centres() -> np.ndarray:
    """The class means mu [5, 16]: corners of a regular simplex, |mu| = 1, the same for every seed."""
    corners = np.linalg.qr(np.random.default_rng(16).normal(size=(FEATURES, CLASSES)))[0].T
    corners -= corners.mean(0)
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


def block_model(nodes: int, homophily: float, signal: float, degree: float, rng: np.random.Generator) -> Graph:
    """Contextual block model: x = signal mu_y + N(0, I), a Poisson number of edges whose ends are drawn by log-normal weight;
    with probability `homophily` both ends are of one class, else the other end is of one of the other classes."""
    y = np.sort(rng.permutation(nodes) % CLASSES)
    weight = np.cumsum(np.exp(SPREAD * rng.normal(size=nodes)))
    first, last = np.searchsorted(y, np.arange(CLASSES)), np.searchsorted(y, np.arange(CLASSES), side="right")
    low, high = np.r_[0, weight][first], weight[last - 1]
    count = rng.poisson(nodes * degree / 2)
    a = np.searchsorted(weight, rng.random(count) * weight[-1])
    other = (y[a] + rng.integers(1, CLASSES, size=count)) % CLASSES
    c = np.where(rng.random(count) < homophily, y[a], other)
    b = np.searchsorted(weight, low[c] + rng.random(count) * (high - low)[c]).clip(first[c], last[c] - 1)
    x = signal * centres()[y] + rng.normal(size=(nodes, FEATURES))
    shuffled = rng.permutation(nodes)  # numbers say nothing about classes
    x[shuffled], y[shuffled] = x.copy(), y.copy()
    return Graph(x.astype(np.float32), y, both_ways(shuffled[a], shuffled[b]))


def both_ways(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Undirected edges as [2, E] in both directions, each once, without self loops: a node reads itself anyway."""
    low, high = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
    pairs = np.unique(np.stack([low, high]), axis=1)
    return np.concatenate([pairs, pairs[::-1]], 1)


# ---- a seed's world


@dataclass(frozen=True)
class World:
    """Training nodes with what they may read, the neighbours of each, and a test graph that shares no node with them."""

    x: Tensor
    y: Tensor
    table: Tensor  # [n, K] slots, -1 where empty
    lists: tuple[Tensor, Tensor]
    degree: np.ndarray  # of the training nodes before any bound
    kept: np.ndarray  # [2, E'] edges that the degree bound left
    test: tuple[Tensor, Tensor, Tensor, Tensor]  # x, y, lists of all neighbours
    classes: int


def own_path() -> str:
    """The folder of your own graph, or nothing."""
    return os.environ.get("CLAIMLAB_DATA", "")


@lru_cache(maxsize=32)
def graphs(seed: int, nodes: int, homophily: float, signal: float, path: str) -> tuple[Graph, Graph]:
    """A training graph and a disjoint test graph a fifth of its size."""
    if path:
        return own_graphs(path)
    rng = np.random.default_rng([seed, 2111])
    return tuple(block_model(n, homophily, signal, 8.0, rng) for n in (nodes, max(nodes // 5, 10)))


@lru_cache(maxsize=64)
def world(seed: int, nodes: int, homophily: float, signal: float, k: int, path: str) -> World:
    """What the arms of one seed share: the graphs, and one draw of bounded lists of readers."""
    train, test = graphs(seed, nodes, homophily, signal, path)
    rng = np.random.default_rng([seed, 15521, k])
    kept = bound_readers(train.edges, len(train.y), k, rng)
    table = torch.from_numpy(slots(kept, len(train.y), k, rng))
    classes = int(max(train.y.max(), test.y.max())) + 1
    x, y, tx, ty = (torch.from_numpy(part) for part in (train.x, train.y, test.x, test.y))
    degree = np.bincount(train.edges[1], minlength=len(train.y))
    return World(x, y, table, train.lists(), degree, kept, (tx, ty, *test.lists()), classes)


# ---- your own


def own_graphs(path: str | Path) -> tuple[Graph, Graph]:
    """Training and test graph from a folder with edges.csv (source, target), features.csv (a row of numbers a node),
    labels.csv (label: 0, 1, ...) and split.csv (split: train, test, or anything else for neither); nodes are numbered by row
    from 0. ValueError names the file, what is wrong and what is allowed; edges between the two parts are left out with a
    warning."""
    folder = Path(path)
    edges, x, labels, split = (_table(folder, name) for name in FILES)
    n, x = len(x), x.to_numpy()
    if x.dtype.kind not in "iuf" or not np.isfinite(x.astype(float)).all():
        raise ValueError("features.csv: all columns must hold finite numbers, without gaps")
    for name, table in (("labels", labels), ("split", split)):
        if len(table) != n:
            raise ValueError(f"{name}.csv has {len(table):,} rows for {n:,} nodes of features.csv; one row a node is needed")
    y, ends = labels["label"].to_numpy(), edges[["source", "target"]].to_numpy()
    if y.dtype.kind not in "iu" or y.min() < 0 or (found := np.unique(y)).size < 2 or found[-1] != len(found) - 1:
        raise ValueError("labels.csv: the labels must be 0, 1, ... without a gap, at least two")
    if ends.dtype.kind not in "iu" or (len(ends) and not 0 <= ends.min() <= ends.max() < n):
        raise ValueError(f"edges.csv: node numbers must be whole and lie in [0, {n - 1}]")
    parts = [(split["split"].astype(str) == name).to_numpy() for name in ("train", "test")]
    if parts[0].sum() < LEAST or not parts[1].any():
        raise ValueError(f"split.csv marks {parts[0].sum():,} nodes as train and {parts[1].sum():,} as test; at least {LEAST:,} "
                         "and 1 are needed")  # fmt: skip
    if across := int(sum((parts[0][a] & parts[1][b]).sum() for a, b in (ends.T, ends.T[::-1]))):
        warnings.warn(f"{across:,} edges of edges.csv touch a training and a test node; they are left out", stacklevel=2)
    return tuple(_induced(x.astype(np.float32), y.astype(np.int64), ends, part) for part in parts)


def _table(folder: Path, name: str):

    file = folder / f"{name}.csv"
    if not file.is_file():
        raise ValueError(f"{file} is not there; a folder with {', '.join(f'{n}.csv' for n in FILES)} is needed")
    table = read_table(file)
    if missing := [column for column in FILES[name] if column not in table]:
        raise ValueError(f"{file.name} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if not len(table) and name != "edges":
        raise ValueError(f"{file.name} has no rows")
    return table


def _induced(x: np.ndarray, y: np.ndarray, ends: np.ndarray, part: np.ndarray) -> Graph:
    number = np.cumsum(part) - 1
    inside = ends[part[ends[:, 0]] & part[ends[:, 1]]]
    return Graph(x[part], y[part], both_ways(*number[inside].T))
