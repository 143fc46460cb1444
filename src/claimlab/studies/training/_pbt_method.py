"""Exploit, explore and the toy problem of population based training, as pure functions of scores, hyperparameters and chance.

M members, H hyperparameters, T rounds. A score is to be maximised; a member whose score is not finite ranks last.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

RECENT = 10  # scores that the t-test compares


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter and its prior: log-uniform or uniform on [low, high]. A `complement` is perturbed as 1 - value, so
    that a factor of 1.2 moves a momentum of 0.9 to 0.88 and not out of its range."""

    name: str
    low: float
    high: float
    log: bool = False
    complement: bool = False


Space = tuple[Hyper, ...]


def stream(*key: object) -> torch.Generator:
    """A generator of its own for each key, such as (seed, "batch", member, step): no draw depends on who else is there."""
    parts = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1))


def prior(space: Space, u: Tensor) -> Tensor:
    """Quantiles u [..., H] in [0, 1] of the prior as hyperparameters [..., H]."""
    ends = torch.tensor([[math.log(h.low), math.log(h.high)] if h.log else [h.low, h.high] for h in space])
    value = ends[:, 0] + u * (ends[:, 1] - ends[:, 0])
    return clipped(space, torch.where(torch.tensor([h.log for h in space]), value.exp(), value))


def clipped(space: Space, h: Tensor) -> Tensor:
    """Hyperparameters [..., H] inside their ranges."""
    return torch.maximum(torch.minimum(h, torch.tensor([one.high for one in space])), torch.tensor([one.low for one in space]))


def explore(space: Space, h: Tensor, rng: torch.Generator, factor: float = 1.2, resample: float = 0.25) -> Tensor:
    """Each entry of h [M, H] times `factor` or 2 - factor (the paper's 1.2 and 0.8; at least 0.1) with equal chance, or with
    chance `resample` a fresh draw from its prior; clipped to its range."""
    side, fresh, u = torch.rand(3, *h.shape, generator=rng)
    times = torch.where(side < 0.5, factor, max(2 - factor, 0.1))
    flipped = torch.tensor([one.complement for one in space])
    moved = torch.where(flipped, 1 - (1 - h) * times, h * times)
    return torch.where(fresh < resample, prior(space, u), clipped(space, moved))


# ---- exploit: for each member the member that it continues, itself where it copies nobody


def comparable(scores: Tensor) -> Tensor:
    """Scores with what is not finite at the very bottom, so that a diverged member poisons no ranking."""
    return torch.where(torch.isfinite(scores), scores, -math.inf)


def truncation(scores: Tensor, rng: torch.Generator, share: float = 0.2) -> Tensor:
    """A member of the bottom `share` copies one drawn uniformly from the top `share`. scores [M] -> parents [M].

    Of equal scores the earlier member ranks higher, and nobody copies a score that is not better than its own.
    """
    scores = comparable(scores)
    many = min(max(1, round(share * len(scores))), len(scores) // 2)
    ranked = scores.argsort(descending=True, stable=True)
    bottom, donors = ranked[len(ranked) - many :], ranked[torch.randint(many, (many,), generator=rng)]
    parents = torch.arange(len(scores))
    return parents.index_copy(0, bottom, torch.where(scores[donors] > scores[bottom], donors, bottom))


def rivals(members: int, rng: torch.Generator) -> Tensor:
    """For each member another one, uniformly: [M]."""
    return (torch.arange(members) + torch.randint(1, members, (members,), generator=rng)) % members


def tournament(scores: Tensor, rng: torch.Generator) -> Tensor:
    """Each member meets a random other one and copies it if that one's score is better. scores [M] -> parents [M]."""
    scores, rival = comparable(scores), rivals(len(scores), rng)
    return torch.where(scores[rival] > scores, rival, torch.arange(len(scores)))


def t_test(history: Tensor, rng: torch.Generator, level: float = 0.05) -> Tensor:
    """Each member meets a random other one and copies it if Welch's t-test on their last 10 scores has p < 0.05 and the other
    mean is better; a diverged member copies any that is finite. history [T, M] -> parents [M]."""
    recent, rival = history[-RECENT:].double(), rivals(history.shape[1], rng)
    alive, n = torch.isfinite(recent).all(0), len(recent)
    mean = recent.mean(0)
    error = (recent - mean).square().sum(0) / (n - 1) / n  # of the mean, squared; 0 / 0 for a single score: no evidence
    both = error + error[rival]
    t, degrees = (mean[rival] - mean) / both.sqrt(), (n - 1) * both**2 / (error**2 + error[rival] ** 2)
    p = torch.from_numpy(2 * stdtr(degrees.numpy(), -t.abs().numpy()))
    copies = alive[rival] & (~alive | (p < level) & (t > 0))
    return torch.where(copies, rival, torch.arange(len(rival)))


def exploit(rule: str, history: Tensor, rng: torch.Generator, share: float = 0.2, blind: float = 0.0) -> Tensor:
    """Parents [M] by one of the rules, from the scores history [T, M] that each member has along its ancestry. With chance
    `blind` the members' scores are dealt out anew first: copies happen as before, selection does not."""
    lot, order = torch.rand((), generator=rng), torch.randperm(history.shape[1], generator=rng)
    seen = history[:, order] if lot < blind else history
    if rule == "truncation":
        return truncation(seen[-1], rng, share)
    return {"tournament": lambda: tournament(seen[-1], rng), "t_test": lambda: t_test(seen, rng),
            "none": lambda: torch.arange(history.shape[1])}[rule]()  # fmt: skip


# ---- lineage: parents [T, M], row t says whom each member continues at the beginning of interval t


def ancestry(parents: list[Tensor], member: Tensor | int) -> Tensor:
    """Slots [T, ...] in which the ancestors of `member` lived, interval by interval, `member` itself last."""
    line = [torch.as_tensor(member)]
    for row in reversed(parents[1:]):
        line.append(row[line[-1]])
    return torch.stack(line[::-1])


# ---- the toy problem, exactly as published (two workers, two parameters, two hyperparameters)


def true_score(theta: Tensor) -> Tensor:
    """Q(theta) = 1.2 - theta_0^2 - theta_1^2, theta [..., 2]; its optimum 1.2 lies at 0."""
    return 1.2 - theta.square().sum(-1)


def toy(rng: torch.Generator, steps: int = 200, ready: int = 4, lr: float = 0.01, sd: float = 0.1, copy: bool = True,
        mutate: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two workers ascend Q^(theta | h) = 1.2 - h_0 theta_0^2 - h_1 theta_1^2 from (0.9, 0.9) with h = (0, 1) and (1, 0).

    Every `ready` steps the worker with the lower TRUE score copies theta of the other, keeps its own h and adds N(0, sd^2) to
    it, clipped to [0, 1]. At a tie it is the second one that copies: the start is a tie by symmetry, and without this rule
    nothing would ever happen. Returns theta [steps + 1, 2, 2] and h [steps + 1, 2, 2], (step, worker, entry), float64.
    """
    theta, h = torch.full((2, 2), 0.9, dtype=torch.float64), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    path, weights = [theta], [h]
    for step in range(1, steps + 1):
        theta = theta - lr * 2 * h * theta
        if step % ready == 0:
            q = true_score(theta)
            loser = int(q[0] >= q[1])
            noise = sd * torch.randn(2, generator=rng, dtype=torch.float64)
            mine = torch.arange(2)[:, None] == loser
            theta = torch.where(mine & copy, theta[1 - loser], theta)
            h = torch.where(mine & mutate, (h + noise).clamp(0, 1), h)
        path.append(theta)
        weights.append(h)
    return torch.stack(path), torch.stack(weights)
