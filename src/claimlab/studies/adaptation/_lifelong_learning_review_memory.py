"""Memories that need no gradient: a reservoir of examples, and a network that grows when required."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from claimlab.studies.adaptation._lifelong_learning_review_data import Source, keyed, stream

ACTIVITY, HABITUATED = 0.85, 0.3  # a_T, h_T: below both a node is inserted
WINNER, NEIGHBOUR = 0.3, 0.003  # eps_b, eps_n
TAU_WINNER, TAU_NEIGHBOUR, RISE = 0.3, 0.1, 1.05
OLDEST = 50  # steps after which an edge that never won again is cut


# ---- reservoir sampling: after n offers each one is kept with probability min(1, size / n)


def reservoir(kept: list, seen: int, offered: list, size: int, rng: torch.Generator) -> list:
    """`kept` after `offered` went by, of which `seen` had gone by before: offer i replaces a random place with chance size / i."""
    kept = list(kept)
    for item in offered:
        seen += 1
        if len(kept) < size:
            kept.append(item)
        elif size and (place := int(torch.randint(seen, (), generator=rng))) < size:
            kept[place] = item
    return kept


@lru_cache(maxsize=512)
def rehearsal(source: Source, tasks: int, size: int) -> tuple[tuple[int, int], ...]:
    """(task, row) of what a memory of `size` examples holds after the first `tasks` tasks, each seen once."""
    if not tasks:
        return ()
    rows = stream(source).rows
    rng = keyed(source.seed, source.stream, "reservoir", tasks)
    offered = rows[tasks - 1][torch.randperm(len(rows[tasks - 1]), generator=rng)].tolist()
    seen = sum(len(part) for part in rows[: tasks - 1])
    return tuple(reservoir(rehearsal(source, tasks - 1, size), seen, [(tasks - 1, row) for row in offered], size, rng))


# ---- grow when required


@dataclass
class Growing:
    """Nodes w [n, D], habituation h [n] (1 when new), how often each won for each label [n, C], and edges with their ages."""

    w: np.ndarray
    h: np.ndarray
    wins: np.ndarray
    edges: list[dict[int, int]]

    @property
    def labels(self) -> np.ndarray:
        """The label for which a node won most often."""
        return self.wins.argmax(1)


def habituate(h, tau: float):
    """h + tau (1.05 (1 - h) - 1): from 1 down to 1 - 1 / 1.05."""
    return h + tau * (RISE * (1 - h) - 1)


def begun(x: np.ndarray, y: np.ndarray, classes: int) -> Growing:
    """Two nodes on the first two examples."""
    return Growing(x[:2].astype(np.float64), np.ones(2), np.eye(classes)[y[:2]], [{1: 0}, {0: 0}])


def grow(net: Growing, x: np.ndarray, y: np.ndarray) -> Growing:
    """The network after the examples x [N, D] with labels y [N] went by once; the one given stays as it was."""
    w, h, wins, edges = net.w, net.h, net.wins, [dict(e) for e in net.edges]
    size, room = len(w), len(w) + len(x)
    w, h, wins = (np.concatenate([part, np.zeros((len(x), *part.shape[1:]))]) for part in (w, h, wins))
    norms = np.concatenate([(w[:size] ** 2).sum(1), np.full(room - size, np.inf)])  # of nodes that are not there: never the winner
    for point, label in zip(x.astype(np.float64), y, strict=True):
        score = norms[:size] - 2 * w[:size] @ point
        b, s = np.argpartition(score, 1)[:2] if size > 2 else np.argsort(score)
        b, s = (int(b), int(s)) if score[b] <= score[s] else (int(s), int(b))
        edges[b][s] = edges[s][b] = 0
        activity = np.exp(-np.linalg.norm(point - w[b]))
        if activity < ACTIVITY and h[b] < HABITUATED:
            w[size], h[size], wins[size, label] = (w[b] + point) / 2, 1.0, 1
            del edges[b][s], edges[s][b]
            edges.append({b: 0, s: 0})
            edges[b][size] = edges[s][size] = 0
            norms[size] = w[size] @ w[size]
            size += 1
        else:
            wins[b, label] += 1
            near = list(edges[b])
            w[b] += WINNER * h[b] * (point - w[b])
            w[near] += NEIGHBOUR * h[near, None] * (point - w[near])
            norms[[b, *near]] = (w[[b, *near]] ** 2).sum(1)
        _age(b, h, norms, edges)
    alive = np.flatnonzero(np.isfinite(norms[:size]))
    place = {int(old): new for new, old in enumerate(alive)}
    return Growing(w[alive], h[alive], wins[alive], [{place[j]: age for j, age in edges[i].items()} for i in alive])


def _age(b: int, h: np.ndarray, norms: np.ndarray, edges: list[dict[int, int]]) -> None:
    """The winner's edges grow older and the oldest go, with nodes that lose their last one; winner and neighbours tire."""
    for j in list(edges[b]):
        edges[b][j] += 1
        edges[j][b] = edges[b][j]
        h[j] = habituate(h[j], TAU_NEIGHBOUR)
        if edges[b][j] > OLDEST:
            del edges[b][j], edges[j][b]
            if not edges[j]:
                norms[j] = np.inf
    h[b] = habituate(h[b], TAU_WINNER)


@lru_cache(maxsize=512)
def grown(source: Source, tasks: int) -> Growing | None:
    """The growing memory after the first `tasks` tasks, each seen once; None before the first."""
    if not tasks:
        return None
    x, y, heads = stream(source).all_of(tasks - 1)
    order = torch.randperm(len(x), generator=keyed(source.seed, source.stream, "growing", tasks))
    x, y = x[order].numpy(), y[order].numpy()
    return grow(grown(source, tasks - 1) or begun(x, y, heads.shape[1]), x, y)


def nodes(source: Source, tasks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The growing memory as examples: vectors [n, D], labels [n], heads [n, C]."""
    net, heads = grown(source, tasks), stream(source).heads
    labels = torch.from_numpy(net.labels)
    # where the task is named, a node belongs to the task whose head has its label
    owner = heads[:, labels].float().argmax(0)
    return torch.from_numpy(net.w).float(), labels, heads[owner]
