"""The simulated shop of the study `deep-interest-network`, interactions of one's own, and the ranking metric of both.

Items and categories are numbered from 1; 0 fills up histories that are shorter than the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.data.own import read_table

CATEGORIES, GROUPS, SIZE = 60, 12, 6  # categories, interest groups, numbers that describe an item
TRAIN, TEST, VALIDATION = 20, 10, 4  # candidates shown to each user
COLUMNS = ("user", "item", "category", "timestamp", "label")


@dataclass(frozen=True)
class Part:
    """Impressions: `row` [N] of the history, `candidate` [N], two hand-made features `wide` [N, 2], click `y` [N], true `logit` [N].

    users [U, C]: the impressions of each user, -1 where there are fewer; many [U]: how many interests the user has.
    """

    row: Tensor
    candidate: Tensor
    wide: Tensor
    y: Tensor
    logit: Tensor
    users: Tensor
    many: Tensor


@dataclass(frozen=True)
class Shop:
    """histories [R, H] of items; category and group of each item and count (training impressions that hold it) [items + 1];
    the same count for categories; three parts."""

    histories: Tensor
    category: Tensor
    group: Tensor
    item_count: Tensor
    category_count: Tensor
    train: Part
    validation: Part
    test: Part


def gauc(y: Tensor, score: Tensor, users: Tensor) -> Tensor:
    """GAUC = sum_u n_u AUC_u / sum_u n_u over the users who clicked on something and passed over something; ties count half.

    y, score [N]; users [U, C] impressions of each user, -1 where there are fewer. All users at once, as pairs [U, C, C].
    """
    there = users >= 0
    shown, s = y[users] == 1, score[users]
    good, bad = (shown & there).double(), (~shown & there).double()
    won = (s[:, :, None] > s[:, None, :]).double() + 0.5 * (s[:, :, None] == s[:, None, :]).double()
    pairs, size = good.sum(1) * bad.sum(1), there.sum(1) * ((good.sum(1) > 0) & (bad.sum(1) > 0))
    each = torch.einsum("uc,ucd,ud->u", good, won, bad) / pairs.clamp_min(1)
    return (size * each).sum() / size.sum()


def holding(rows: np.ndarray, size: int) -> np.ndarray:
    """How many of `rows` [N, K] hold each id below `size` at least once; infinite for the padding 0, which is never shrunk."""
    rows = np.sort(rows, 1)
    first = np.c_[np.ones(len(rows), bool), rows[:, 1:] != rows[:, :-1]]
    found = np.bincount(rows[first], minlength=size).astype(np.float32)
    found[0] = np.inf
    return found


def assemble(histories, category, group, parts: dict, many) -> Shop:
    """Shop from arrays; parts: name -> (row, candidate, y, logit, user). Counts and the scale of `wide` come from training."""
    held = {name: np.c_[histories[row], candidate] for name, (row, candidate, *_) in parts.items()}
    item_count = holding(held["train"], len(category))
    category_count = holding(category[held["train"]], int(category.max()) + 1)
    popularity = np.log1p(np.bincount(histories[np.unique(parts["train"][0])].ravel(), minlength=len(category)))
    wide = {name: np.c_[np.log1p((category[row[:, :-1]] == category[row[:, -1:]]).sum(1)), popularity[row[:, -1]]]
            for name, row in held.items()}  # fmt: skip
    middle, spread = wide["train"].mean(0), wide["train"].std(0) + 1e-6
    made = {}
    for name, (row, candidate, y, logit, user) in parts.items():
        users = by_user(user)
        arrays = (row, candidate, ((wide[name] - middle) / spread).astype(np.float32), y.astype(int), logit, users, many[user[users[:, 0]]])
        made[name] = Part(*map(torch.as_tensor, arrays))
    tensors = (torch.as_tensor(a) for a in (histories, category, group, item_count, category_count))
    return Shop(*tensors, **made)


def by_user(user: np.ndarray) -> np.ndarray:
    """Impressions of each user [U, C], -1 where a user has fewer than the most; user [N]."""
    order = np.argsort(user, kind="stable")
    _, start, size = np.unique(user[order], return_index=True, return_counts=True)
    found = np.full((len(start), size.max()), -1)
    for column in range(size.max()):
        has = size > column
        found[has, column] = order[start[has] + column]
    return found


# ---- the simulated shop


@lru_cache(maxsize=12)
def simulated(seed: int, items: int, users: int, history: int, interests: int, zipf: float) -> Shop:
    """One seed's shop. A user has 1 to interests + 1 interest groups (just one where interests = 1), all equally often."""
    rng = np.random.default_rng(seed)
    category = np.r_[0, rng.permutation(np.arange(items) % CATEGORIES) + 1]
    group = np.r_[-1, (category[1:] - 1) % GROUPS]
    centre = rng.normal(size=(GROUPS, SIZE))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    q = centre[group] + 0.2 * rng.normal(size=(CATEGORIES + 1, SIZE))[category] + 0.1 * rng.normal(size=(items + 1, SIZE))
    appeal = np.r_[-np.inf, -zipf * np.log(rng.permutation(items) + 1.0)]  # log popularity
    many = rng.integers(1, interests + 2, users) if interests > 1 else np.ones(users, int)
    liked = rng.random((users, GROUPS)).argsort(1).argsort(1) < many[:, None]
    weight = np.where(liked, rng.exponential(size=(users, GROUPS)), 0)  # normalised: a Dirichlet draw
    weight /= weight.sum(1, keepdims=True)
    clicks, candidates = [], []
    for some in np.array_split(np.arange(users), max(1, users * items // 2_000_000)):
        clicks.append(past(rng, weight[some], group, appeal, history))
        candidates.append(shown(rng, liked[some], group, appeal, TRAIN + TEST + VALIDATION))
    clicks, candidates = np.concatenate(clicks), np.concatenate(candidates)
    logit = click_logit(rng, q, clicks, candidates, appeal)
    y = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    parts, start = {}, 0
    for name, size in (("train", TRAIN), ("test", TEST), ("validation", VALIDATION)):
        cut = slice(start, start := start + size)
        row = np.repeat(np.arange(users), size)
        parts[name] = (row, candidates[:, cut].ravel(), y[:, cut].ravel(), logit[:, cut].ravel(), row)
    return assemble(clicks, category, group, parts, many)


def past(rng, weight, group, appeal, length: int) -> np.ndarray:
    """Past clicks [users, length]: an interest drawn by `weight` [users, GROUPS], an item of it by popularity; 15 % from all."""
    chosen = (rng.random((len(weight), length, 1)) > weight.cumsum(1)[:, None]).sum(2).clip(0, GROUPS - 1)
    chosen[rng.random(chosen.shape) < 0.15] = GROUPS
    found = np.empty(chosen.shape, int)
    for g in range(GROUPS + 1):
        chance = np.exp(appeal) * ((group == g) | (g == GROUPS))
        found[chosen == g] = rng.choice(len(appeal), (chosen == g).sum(), p=chance / chance.sum())
    return found


def shown(rng, liked, group, appeal, count: int) -> np.ndarray:
    """Candidates [users, count], no item twice: half from the user's groups, half from the whole shop, each by popularity.

    The highest of log popularity plus Gumbel noise are a draw without replacement.
    """
    def draw(scores, k):
        return np.argpartition(-(scores - np.log(rng.standard_exponential(scores.shape, dtype=np.float32) + 1e-30)), k - 1, 1)[:, :k]

    inside = np.c_[liked, np.zeros(len(liked), bool)][:, group]
    own = draw(np.where(inside, appeal, -np.inf).astype(np.float32), min(count // 2, int((group >= 0).sum() // GROUPS)))
    rest = np.repeat(appeal[None].astype(np.float32), len(liked), 0)
    np.put_along_axis(rest, own, -np.inf, 1)
    return rng.permuted(np.c_[own, draw(rest, count - own.shape[1])], axis=1)


def click_logit(rng, q, clicks, candidates, appeal) -> np.ndarray:
    """-0.5 + 1.5 z(log(1 + sum_j exp(q_j.q_A / 0.5) / H)) + 0.7 z(log popularity_A) + 0.5 mean_j q_j.q_A + 0.5 noise; z standardises."""
    strength, taste = np.empty(candidates.shape), np.empty(candidates.shape)
    for some in np.array_split(np.arange(len(clicks)), max(1, len(clicks) // 500)):
        inner = np.einsum("ujd,uad->uaj", q[clicks[some]], q[candidates[some]])
        strength[some], taste[some] = np.log1p(np.exp(inner / 0.5).mean(2)), inner.mean(2)

    def z(v):
        return (v - v.mean()) / v.std()

    return -0.5 + 1.5 * z(strength) + 0.7 * z(appeal[candidates]) + 0.5 * taste + 0.5 * rng.normal(size=candidates.shape)


# ---- interactions of one's own


@lru_cache(maxsize=2)
def own(path: str, length: int) -> Shop:
    """Shop from a CSV with the columns user, item, category, timestamp, label (1 clicked, 0 shown and not clicked).

    The history of an impression are the user's last `length` clicks before its timestamp; impressions before the first click
    are left out. The first 70 % of the time are for training, the next 10 % for validation, the rest for testing. Categories
    take the place of interest groups. ValueError names the file, what is wrong and what is allowed.
    """
    table = read(path)
    name = Path(path).name
    user, item, category = (np.unique(table[c].astype(str), return_inverse=True)[1] for c in ("user", "item", "category"))
    item, category, time, label = item + 1, category + 1, table["timestamp"].to_numpy(), table["label"].to_numpy(int)
    kind = np.zeros(item.max() + 1, int)
    kind[item] = category
    histories = np.zeros((len(table), length), int)
    for one in range(user.max() + 1):
        at = np.flatnonzero(user == one)  # in time already
        clicked = at[label[at] == 1]
        for i in at:
            before = clicked[: np.searchsorted(time[clicked], time[i])][-length:]  # strictly earlier
            histories[i, : len(before)] = item[before]
    known = histories[:, 0] > 0
    cuts = np.quantile(time[known], [0.7, 0.8])
    era = np.searchsorted(cuts, time, side="left")  # what happens at one time lies on one side
    parts = {}
    for k, part in enumerate(("train", "validation", "test")):
        at = np.flatnonzero(known & (era == k))
        parts[part] = (at, item[at], label[at], np.zeros(len(at)), user[at])
        if len(at) == 0 or not any(0 < label[at][user[at] == u].mean() < 1 for u in np.unique(user[at])):
            raise ValueError(f"{name}: no user has both labels in the {part} part of the time ({len(at)} impressions); "
                             "the metric ranks what a user clicked above what the same user passed over")  # fmt: skip
    many = np.array([len(np.unique(kind[item[(user == u) & (label == 1)]])) for u in range(user.max() + 1)])
    return assemble(histories, kind, np.r_[-1, kind[1:] - 1], parts, many)


def read(path: str):
    """The checked table of interactions, in time; five clicks a user at least, both labels, one known category an item."""
    file = Path(path)
    table = read_table(file)
    if missing := [c for c in COLUMNS if c not in table]:
        raise ValueError(f"{file.name} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    if not len(table):
        raise ValueError(f"{file.name} holds no interaction")
    if bad := table[list(COLUMNS)].isna().any(axis=1).to_numpy().nonzero()[0].tolist():
        raise ValueError(f"{file.name}: row {bad[0] + 1} lacks a value ({len(bad)} such rows); each item needs a known category")
    for column in ("timestamp", "label"):
        if table[column].dtype.kind not in "iuf" or not np.isfinite(table[column]).all():
            raise ValueError(f"{file.name}: {column} must be a finite number in each row")
    if set(table["label"]) != {0, 1}:
        found = sorted(set(table["label"]))[:8]
        raise ValueError(f"{file.name}: label holds {found}; both 0 (shown) and 1 (clicked) must occur, and no other")
    if (several := table.groupby("item")["category"].nunique()).max() > 1:
        raise ValueError(f"{file.name}: item {several.idxmax()} has {several.max()} categories; one is allowed")
    few = table.groupby("user")["label"].sum()
    if few.min() < 5:
        raise ValueError(f"{file.name}: user {few.idxmin()} has {int(few.min())} clicks; at least 5 a user are needed")
    return table.sort_values("timestamp", kind="stable").reset_index(drop=True)
