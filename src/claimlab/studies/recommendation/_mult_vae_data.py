"""Clicks of the study `mult-vae`: a simulator that belongs to none of the compared likelihoods, and a loader of own ratings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.data.own import read_table

GENRES, MOST, LEAST, TASTE = 12, 100, 5, 12.0
PAIRS = tuple((g, (g + 5) % GENRES) for g in range(8))  # genres that some users like together more than each alone


@dataclass(frozen=True)
class World:
    """One seed's users, split by user. Clicks are 0/1 float [users, I]; a held-out user shows some and hides the others."""

    train: Tensor
    shown: dict[str, Tensor]  # "validation" and "test"
    hidden: dict[str, Tensor]
    genre: np.ndarray  # main genre of each item [I]; 0 everywhere where none is known


def utility(rng: np.random.Generator, users: int, items: int, nonlinearity: float) -> tuple[np.ndarray, np.ndarray]:
    """s_ui = b_i + 12 (theta_u . phi_i + nonlinearity * sum over pairs of sqrt(theta_ug theta_uh phi_ig phi_ih)).

    b_i = -log(rank of popularity), phi ~ Dirichlet(0.2), theta ~ Dirichlet(0.15) over 12 genres. [users, items] and phi [items, 12].
    """
    popular = -np.log(1.0 + rng.permutation(items))
    phi, theta = rng.dirichlet(np.full(GENRES, 0.2), items), rng.dirichlet(np.full(GENRES, 0.15), users)
    g, h = np.array(PAIRS).T
    both = np.sqrt(theta[:, g] * theta[:, h]) @ np.sqrt(phi[:, g] * phi[:, h]).T
    return popular + TASTE * (theta @ phi.T + nonlinearity * both), phi


def top(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which entries are the counts[u] largest of their row; bool [U, I]."""
    place = np.argsort(np.argsort(-keys, axis=1), axis=1)
    return place < counts[:, None]


def clicks(rng: np.random.Generator, s: np.ndarray, noise: float) -> np.ndarray:
    """Plackett-Luce draws without replacement: the N_u largest of s + Gumbel noise, N_u = 5 + floor(LogNormal(2.6, 0.7)) at
    most 100; then a share `noise` of each user's clicks is replaced by items drawn uniformly from the others. bool [U, I]."""
    counts = np.minimum(LEAST + np.floor(rng.lognormal(2.6, 0.7, len(s))).astype(int), min(MOST, s.shape[1] // 2))
    clicked = top(s + rng.gumbel(size=s.shape), counts)
    dropped = clicked & (rng.random(s.shape) < noise)
    fresh = top(np.where(clicked, -1.0, rng.random(s.shape)), dropped.sum(1))
    return (clicked & ~dropped) | fresh


def hide(rng: np.random.Generator, clicked: np.ndarray, share: float = 0.2) -> np.ndarray:
    """A random `share` of each user's clicks, at least one and never all: the ones to be ranked. bool [U, I]."""
    count = np.maximum(1, np.round(share * clicked.sum(1)).astype(int))
    return top(np.where(clicked, rng.random(clicked.shape), -1.0), count)


@lru_cache(maxsize=16)
def world(seed: int, users: int, items: int, nonlinearity: float, noise: float, path: str = "") -> World:
    """Everything of one seed; 70 % of the users train, 15 % validate, 15 % test. With `path`, your own clicks instead."""
    rng = np.random.default_rng(seed)
    if path:
        clicked, genre = sampled(rng, *ratings(path), users, items)
    else:
        s, phi = utility(rng, users, items, nonlinearity)
        clicked, genre = clicks(rng, s, noise), phi.argmax(1)
    edges = np.array([0, round(0.7 * len(clicked)), round(0.85 * len(clicked)), len(clicked)])
    parts = [clicked[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    hidden = {name: hide(rng, part) for name, part in zip(("validation", "test"), parts[1:], strict=True)}
    shown = {name: part & ~hidden[name] for name, part in zip(hidden, parts[1:], strict=True)}
    number = lambda found: {name: torch.from_numpy(part.astype(np.float32)) for name, part in found.items()}  # noqa: E731
    return World(torch.from_numpy(parts[0].astype(np.float32)), number(shown), number(hidden), genre)


# ---- own ratings


@lru_cache(maxsize=1)
def ratings(path: str) -> tuple[np.ndarray, np.ndarray]:
    """User and item numbers of every liked pair in a CSV of user, item[, value, ...] with a header line, as MovieLens' ratings.csv.

    Where there is a third column, a value of 4 or more is a click. ValueError for ids that are no whole numbers, for pairs that
    occur twice, and where fewer than 40 users have at least 5 clicks.
    """
    import pandas as pd

    file = Path(path)
    table = read_table(file)
    if table.shape[1] < 2:
        raise ValueError(f"{file.name} has {table.shape[1]} column; user, item[, value] are needed")
    for name in table.columns[:2]:
        if table[name].dtype.kind not in "iu":
            raise ValueError(f"{file.name}: the column {name} must hold whole numbers, one id a row")
    if twice := int(table.duplicated(list(table.columns[:2])).sum()):
        raise ValueError(f"{file.name}: {twice} pairs of user and item occur again; each may occur once")
    if table.shape[1] > 2:
        value = pd.to_numeric(table.iloc[:, 2], errors="coerce")
        if value.isna().any():
            raise ValueError(f"{file.name}: row {int(value.isna().argmax()) + 1} has no number in column {table.columns[2]}")
        table = table[value >= 4]
    table = table[table.groupby(table.columns[0])[table.columns[1]].transform("size") >= LEAST]
    if (found := table.iloc[:, 0].nunique()) < 40:
        raise ValueError(f"{file.name}: {found} users have at least {LEAST} clicks (a value of 4 or more); 40 are needed")
    return np.unique(table.iloc[:, 0], return_inverse=True)[1], np.unique(table.iloc[:, 1], return_inverse=True)[1]


def sampled(rng, user: np.ndarray, item: np.ndarray, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `users` users and the `items` items most clicked by those that train, so that no item is known from held-out users
    alone; users left with fewer than 5 clicks go. bool [users, items] in random order, and no genres."""
    chosen = rng.permutation(user.max() + 1)[:users]
    place = np.full(user.max() + 1, -1)
    place[chosen] = np.arange(len(chosen))
    row = place[user]
    fit = (row >= 0) & (row < round(0.7 * len(chosen)))
    count = np.bincount(item[fit], minlength=item.max() + 1)
    kept = np.argsort(-count, kind="stable")[: min(items, int((count > 0).sum()))]
    column = np.full(item.max() + 1, -1)
    column[kept] = np.arange(len(kept))
    there = (row >= 0) & (column[item] >= 0)
    clicked = np.zeros((len(chosen), len(kept)), dtype=bool)
    clicked[row[there], column[item[there]]] = True
    few = np.arange(len(chosen)) < round(0.7 * len(chosen))
    stays = clicked.sum(1) >= LEAST
    train, rest = clicked[few & stays], clicked[~few & stays]
    rest = rest[: round(len(train) * 3 / 7)]  # the split by user at 70 % falls between the two
    alone = train.any(0)
    clicked = np.concatenate([train, rest])[:, alone]
    return clicked[clicked.sum(1) >= LEAST], np.zeros(int(alone.sum()), dtype=int)
