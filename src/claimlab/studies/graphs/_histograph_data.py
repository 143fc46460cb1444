"""Graphs for the study `histograph`: simulated ones with labels at three depths, or a folder of TU files of your own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.graphs import propagation

TYPES, LEAST, MOST = 4, 20, 40  # node types A B C D; nodes of a graph
NEAR, FAR = 3, 6  # steps between the two nodes of type D
TASKS = ("local", "motif", "global")
LARGEST = 500


@dataclass(frozen=True)
class Graphs:
    """N padded graphs: adjacency [N, n, n], features [N, n, F], mask [N, n] of real nodes, labels [N], planted motif [N, n]."""

    a: np.ndarray
    x: np.ndarray
    mask: np.ndarray
    y: np.ndarray
    motif: np.ndarray
    attributes: np.ndarray  # [N, 3] local, motif, global; empty for your own graphs


# ---- simulated


def steps_between(a: np.ndarray) -> np.ndarray:
    """Shortest paths [n, n] in a [n, n]; n where there is none."""
    n = len(a)
    reached, step = np.eye(n, dtype=np.float32), (a + np.eye(n)).astype(np.float32)
    far = np.zeros((n, n), dtype=int)
    for _ in range(n):
        missing = reached == 0
        far += missing
        grown = np.minimum(reached @ step, 1)
        if (grown > 0).sum() == (~missing).sum():
            break
        reached = grown
    return np.where(missing, n, far)


def cycles5(a: np.ndarray) -> float:
    """Number of 5-cycles of a simple graph: (tr A^5 - 5 tr A^3 - 5 sum_i (d_i - 2) (A^3)_ii) / 10 (Harary, Manvel 1971)."""
    a = a.astype(float)
    two = a @ a
    three = two @ a
    loops = three.diagonal()
    return ((two @ three).trace() - 5 * loops.sum() - 5 * ((a.sum(0) - 2) * loops).sum()) / 10


def planted(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, list, list]:
    """A motif on the first nodes, a random tree that grows from it, two more edges; adjacency, motif edges, other edges."""
    size = 6 if kind == "clique" else 5
    ring = [(i, (i + 1) % 5) for i in range(5)]
    inside = [(i, j) for i in range(6) for j in range(i) if (i, j) != (5, 0)] if kind == "clique" else ring
    back = np.ceil(rng.random(n) * np.minimum(np.arange(n), 3)).astype(int)
    outside = [(i, i - int(back[i])) for i in range(size, n)]
    more = size + rng.integers(n - size - 4, size=2)
    outside += [(int(i), int(i) + 3 + int(k)) for i, k in zip(more, rng.integers(2, size=2), strict=True)]
    a = np.zeros((n, n), dtype=bool)
    outside = list({(max(e), min(e)) for e in outside} - {(max(e), min(e)) for e in inside})
    for u, v in inside + sorted(outside):
        a[u, v] = a[v, u] = True
    return a, inside, sorted(outside)


def rewired(a: np.ndarray, inside: list, outside: list, rng: np.random.Generator) -> np.ndarray:
    """The same degrees without the motif: each motif edge changes ends with an edge outside, (u,v),(c,d) -> (u,d),(c,v)."""
    a, others = a.copy(), list(outside)
    for u, v in inside:
        for draw in rng.random((30, 2)):
            at = int(draw[0] * len(others))
            c, d = others[at] if draw[1] < 0.5 else others[at][::-1]
            if len({u, v, c, d}) == 4 and not a[u, d] and not a[c, v]:
                for s, t, value in ((u, v, False), (c, d, False), (u, d, True), (c, v, True)):
                    a[s, t] = a[t, s] = value
                others[at : at + 1] = [(u, d), (c, v)]
                break
    return a


def gone(kind: str, a: np.ndarray) -> bool:
    """No motif is left: no 5-cycle; no edge whose ends share more than two neighbours, as a 6-clique less an edge would need."""
    return cycles5(a) == 0 if kind == "cycle" else bool(((a.astype(int) @ a) * a).max() <= 2)


def pair(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A graph with the motif and its twin of equal degrees without; drawn again until both have near and far pairs of nodes."""
    while True:
        n = int(rng.integers(LEAST, MOST + 1))
        whole, inside, outside = planted(kind, n, rng)
        twin = rewired(whole, inside, outside, rng)
        if gone(kind, twin) and all(FAR <= steps_between(a).max() < n for a in (whole, twin)):
            return whole, twin


def ends(a: np.ndarray, near: bool, rng: np.random.Generator) -> tuple[int, int] | None:
    """Two nodes within NEAR steps or at least FAR apart. The far end u-v is drawn first; near is u with a node of v's degree."""
    far, degree = steps_between(a), a.sum(0)
    for u, v in rng.permutation(np.argwhere(far >= FAR))[:10]:
        close = np.flatnonzero((far[u] <= NEAR) & (far[u] > 0) & (degree == degree[v]))
        if len(close):
            return (int(u), int(rng.choice(close))) if near else (int(u), int(v))
    return None


def types(a: np.ndarray, d: tuple[int, int], local: bool, rng: np.random.Generator) -> np.ndarray | None:
    """Types [n]: D for the two ends, n // 6 of A, n // 4 of B, else C; some A reads two B exactly if `local`."""
    n = len(a)
    free = np.setdiff1d(np.arange(n), d)
    for _ in range(80):
        order, found = rng.permutation(free), np.full(n, 2)
        found[order[: n // 6]], found[order[n // 6 : n // 6 + n // 4]], found[list(d)] = 0, 1, 3
        if ((a @ (found == 1).astype(int))[found == 0] >= 2).any() == local:
            return found
    return None


def simulate(count: int, kind: str, noise: float, rng: np.random.Generator) -> Graphs:
    """Graphs whose number of attributes is uniform on 0..3; which ones, and everything else, is independent of it."""
    a, x = np.zeros((count, MOST, MOST), bool), np.zeros((count, MOST, TYPES), np.float32)
    mask, motif = np.zeros((count, MOST), bool), np.zeros((count, MOST), bool)
    known = rng.random((count, 3)).argsort(1) < rng.integers(4, size=(count, 1))
    for g, (local, whole, near) in enumerate(known):
        kinds = None
        while kinds is None:
            one = pair(kind, rng)[0 if whole else 1]
            d = ends(one, near, rng)
            kinds = types(one, d, local, rng) if d else None
        n = len(one)
        order = rng.permutation(n)  # numbers say nothing
        a[g, :n, :n], x[g, :n], mask[g, :n] = one[order][:, order], np.eye(TYPES)[kinds[order]], True
        motif[g, :n] = whole & (order < (6 if kind == "clique" else 5))
    x += noise * rng.normal(size=x.shape) * mask[..., None]
    return Graphs(a, x.astype(np.float32), mask, known.sum(1), motif, known)


# ---- a seed's world


@dataclass(frozen=True)
class World:
    """Training, validation and test graphs as tensors (features, operator, mask, labels), all in one order; slices say which."""

    x: Tensor
    op: Tensor
    mask: Tensor
    y: Tensor
    parts: dict[str, slice]
    classes: int
    source: Graphs


def own_path() -> str:
    """The folder of your own graphs, or nothing."""
    return os.environ.get("CLAIMLAB_DATA", "")


def operator(a: np.ndarray, conv: str) -> Tensor:
    """What a layer multiplies with: D^-1/2 (A + I) D^-1/2 for GCN, A + I for GIN."""
    a = torch.from_numpy(a.astype(np.float32))
    return propagation(a) if conv == "gcn" else a + torch.eye(a.shape[-1])


@lru_cache(maxsize=12)
def graphs(seed: int, count: int, motif: str, noise: float, path: str) -> Graphs:
    """The graphs of a seed, whatever is asked of them: simulated ones, or your own in an order of the seed's own."""
    rng = np.random.default_rng([seed, 9073])
    if not path:
        return simulate(2 * count, motif, noise, rng)
    own = own_graphs(path)
    order = rng.permutation(len(own.y))
    return Graphs(*(getattr(own, name)[order] for name in Graphs.__dataclass_fields__))


@lru_cache(maxsize=40)
def world(seed: int, count: int, motif: str, noise: float, task: str, conv: str, path: str) -> World:
    """`count` training graphs, a third as many for validation, two thirds as many for the test; of your own graphs 1/2, 1/6, 1/3."""
    source = graphs(seed, count, motif, noise, path)
    y = source.y if path or task == "mixed" else source.attributes[:, TASKS.index(task)].astype(int)
    total = len(y)
    first, second = total // 2, total // 2 + total // 6
    parts = {"train": slice(0, first), "validation": slice(first, second), "test": slice(second, total)}
    x, mask = torch.from_numpy(source.x), torch.from_numpy(source.mask)
    classes = int(y.max()) + 1 if path else 4 if task == "mixed" else 2
    return World(x, operator(source.a, conv), mask, torch.from_numpy(y.astype(np.int64)), parts, classes, source)


# ---- your own


def own_graphs(path: str | Path) -> Graphs:
    """A TU data set: DS_A.txt (edges, two node numbers a line), DS_graph_indicator.txt (the graph of each node),
    DS_graph_labels.txt and DS_node_labels.txt, all numbered from 1. ValueError names the file, what is wrong and what is
    allowed: index ranges, edges in both directions, graph numbers in order without gap, counts of labels, at most 500 nodes."""
    folder = Path(path)
    found = sorted(folder.glob("*_A.txt"))
    if len(found) != 1:
        raise ValueError(f"{folder.name} holds {len(found)} files DS_A.txt; exactly one is needed")
    name = found[0].name.removesuffix("_A.txt")
    edges, of, labels, kinds = (_numbers(folder / f"{name}_{part}.txt", 2 if part == "A" else 1)
                                for part in ("A", "graph_indicator", "graph_labels", "node_labels"))  # fmt: skip
    n, of = len(of), of[:, 0]
    if of[0] != 1 or not np.isin(np.diff(of), (0, 1)).all():
        raise ValueError(f"{name}_graph_indicator.txt: the graphs must be numbered 1, 2, ... in order and without a gap")
    for part, table, wanted in (("graph_labels", labels, of[-1]), ("node_labels", kinds, n)):
        if len(table) != wanted:
            raise ValueError(f"{name}_{part}.txt has {len(table):,} lines; {wanted:,} are needed")
    if (sizes := np.bincount(of)[1:]).max() > LARGEST:
        raise ValueError(f"{name}: a graph has {sizes.max():,} nodes; dense matrices allow {LARGEST}")
    if edges.min() < 1 or edges.max() > n:
        raise ValueError(f"{name}_A.txt: node numbers must lie in [1, {n}]")
    pairs = set(map(tuple, edges.tolist()))
    if any((v, u) not in pairs for u, v in pairs):
        raise ValueError(f"{name}_A.txt: every edge must stand there in both directions")
    if (of[edges[:, 0] - 1] != of[edges[:, 1] - 1]).any():
        raise ValueError(f"{name}_A.txt: an edge joins two graphs")
    if len(classes := np.unique(labels)) < 2 or len(labels) < 12:
        raise ValueError(f"{name}_graph_labels.txt: at least 12 graphs of at least two classes are needed")
    return _padded(edges - 1, of - 1, np.searchsorted(classes, labels[:, 0]), np.unique(kinds, return_inverse=True)[1], sizes)


def _numbers(file: Path, columns: int) -> np.ndarray:
    if not file.is_file():
        raise ValueError(f"{file.name} is not there")
    try:
        rows = [[int(part) for part in line.split(",")] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file.name}: whole numbers with commas in between are needed, in UTF-8: {error}") from None
    if not rows or any(len(row) != columns for row in rows):
        raise ValueError(f"{file.name}: {columns} numbers a line and at least one line are needed")
    return np.array(rows)


def _padded(edges, of, labels, kinds, sizes) -> Graphs:
    most, count = int(sizes.max()), len(sizes)
    place = np.arange(len(of)) - np.r_[0, np.cumsum(sizes)[:-1]][of]
    a, x = np.zeros((count, most, most), bool), np.zeros((count, most, int(kinds.max()) + 1), np.float32)
    inside = edges[edges[:, 0] != edges[:, 1]]  # a node reads itself anyway
    a[of[inside[:, 0]], place[inside[:, 0]], place[inside[:, 1]]] = True
    x[of, place, kinds.ravel()] = 1
    mask = np.arange(most) < sizes[:, None]
    return Graphs(a, x, mask, labels, np.zeros_like(mask), np.zeros((count, 3), bool))
