"""The parts of DeepLOB: moving z-scores, smoothed labels, structured filters, the Inception module, and LIME over groups of cells.

T snapshots a window, L levels, 4 L columns (ask price, ask volume, bid price, bid volume for each level), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = ("down", "still", "up")


# ---- what comes in and what is to be said


def zscored(rows: np.ndarray, past: int, every: int) -> np.ndarray:
    """Each column of rows [N, D] less its mean, over its standard deviation, both of the `past` rows before the present block.

    A block is `every` rows long. The first `past` rows have no such past and come out as NaN. No row is scaled by later ones.
    """
    out = np.full(rows.shape, np.nan, dtype=np.float32)
    for start in range(past, len(rows), every):
        before = rows[start - past : start].astype(float)
        spread = before.std(0)
        out[start : start + every] = (rows[start : start + every] - before.mean(0)) / np.where(spread > 0, spread, 1)
    return out


def smoothed_move(mid: np.ndarray, k: int) -> np.ndarray:
    """l(t) = (m+ - m-) / m-: m- is the mean of mid prices t-k+1 ... t, m+ that of t+1 ... t+k. mid [N]; NaN where they do not reach."""
    total = np.cumsum(np.r_[0.0, mid - mid[0]])
    mean = (total[k:] - total[:-k]) / k + mid[0]  # mean[i] of i ... i + k - 1
    move = np.full(len(mid), np.nan)
    move[k - 1 : len(mid) - k] = (mean[k:] - mean[:-k]) / mean[:-k]
    return move


def labels(move: np.ndarray, alpha: float) -> np.ndarray:
    """0 (down) where move < -alpha, 2 (up) where move > alpha, else 1 (still)."""
    return 1 + (move > alpha).astype(np.int64) - (move < -alpha)


def macro_f1(truth: Tensor, answer: Tensor) -> float:
    """Mean over the three classes of 2 TP / (2 TP + FP + FN); 0 for a class that neither occurs nor is answered."""
    table = confusion(truth, answer).double()
    return float((2 * table.diagonal() / (table.sum(0) + table.sum(1)).clamp_min(1)).mean())


def confusion(truth: Tensor, answer: Tensor) -> Tensor:
    """Counts [3 true, 3 answered]."""
    return torch.bincount(3 * truth + answer, minlength=9).reshape(3, 3)


def imbalance(rows: np.ndarray) -> np.ndarray:
    """Queue imbalance (bid volume - ask volume) / (bid volume + ask volume) of every level: rows [N, 4 L] -> [N, L]."""
    ask, bid = rows[:, 1::4], rows[:, 3::4]
    return (bid - ask) / (bid + ask)


def order_flow(rows: np.ndarray) -> np.ndarray:
    """Order-flow imbalance of each event at the best prices (Cont, Kukanov and Stoikov 2014): what came to the bid and left
    the ask, less what came to the ask and left the bid. rows [N, 4 L] -> [N]; the first is 0."""
    ask, ask_volume, bid, bid_volume = rows[:, :4].astype(float).T
    flow = (bid[1:] >= bid[:-1]) * bid_volume[1:] - (bid[1:] <= bid[:-1]) * bid_volume[:-1]
    flow += (ask[1:] >= ask[:-1]) * ask_volume[:-1] - (ask[1:] <= ask[:-1]) * ask_volume[1:]
    return np.r_[0.0, flow]


def handmade(rows: np.ndarray, lookbacks: Sequence[int]) -> np.ndarray:
    """What the logistic regression sees: L queue imbalances, then order flow and return of the mid price over each lookback."""
    flow, mid = np.cumsum(order_flow(rows)), rows[:, [0, 2]].astype(float).mean(1)
    columns = [imbalance(rows)]
    for h in lookbacks:
        before = np.maximum(np.arange(len(rows)) - h, 0)
        columns += [(flow - flow[before])[:, None], (mid / mid[before] - 1)[:, None]]
    return np.concatenate(columns, 1)


# ---- the networks: a window [B, T, 4 L] -> logits [B, 3]


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.01, inplace=True)


class Structured(nn.Module):
    """Three blocks that join first the price and volume of a side, then ask and bid of a level, then the levels: -> [B, C, T].

    After each joining filter two of four snapshots. Zeros pad the time: two before and two after for the first filter of a
    pair, one and one for the second, so that a window leaves as long as it came.
    """

    def __init__(self, levels: int, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in ((1, 2), (channels, 2), (channels, levels)):
            layers += [nn.Conv2d(inputs, channels, (1, width), stride=(1, width)), leaky()]
            for padding in (2, 1):
                layers += [nn.Conv2d(channels, channels, (4, 1), padding=(padding, 0)), leaky()]
        self.layers, self.channels = nn.Sequential(*layers), channels

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, None]).squeeze(3)


class Flat(nn.Module):
    """As many convolutions, all 3 x 3 on the image T x 4 L; strides where `Structured` joins. -> [B, C * ceil(L / 2), T]."""

    def __init__(self, levels: int, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(9):
            stride = (1, 2) if k % 3 == 0 else 1
            layers += [nn.Conv2d(1 if k == 0 else channels, channels, 3, stride=stride, padding=1), leaky()]
        self.layers, self.channels = nn.Sequential(*layers), channels * -(-levels // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, None]).transpose(2, 3).flatten(1, 2)


class Inception(nn.Module):
    """Three views of a sequence side by side, [B, in, T] -> [B, 3 width, T]: 1 -> 3, 1 -> 5, and the maximum of three -> 1."""

    def __init__(self, inputs: int, width: int):
        super().__init__()

        def step(a: int, b: int, size: int) -> list[nn.Module]:
            return [nn.Conv1d(a, b, size, padding=size // 2), leaky()]

        self.short = nn.Sequential(*step(inputs, width, 1), *step(width, width, 3))
        self.long = nn.Sequential(*step(inputs, width, 1), *step(width, width, 5))
        self.peak = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), *step(inputs, width, 1))
        self.channels = 3 * width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.short(x), self.long(x), self.peak(x)], 1)


class Reader(nn.Module):
    """`stages` turn the window into a sequence [B, C, T], an LSTM reads it, its last state is answered for."""

    def __init__(self, stages: Sequence[nn.Module], inputs: int, hidden: int):
        super().__init__()
        self.stages, self.lstm, self.head = nn.Sequential(*stages), nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x).transpose(1, 2) if len(self.stages) else x
        return self.head(self.lstm(x)[0][:, -1])


def deeplob(levels: int, channels: int, inception: int, hidden: int) -> Reader:
    """DeepLOB: structured filters, Inception module of `inception` channels a branch, LSTM of `hidden` units."""
    stages = [Structured(levels, channels), Inception(channels, inception)]
    return Reader(stages, stages[-1].channels, hidden)


def flat_conv(levels: int, channels: int, inception: int, hidden: int) -> Reader:
    """The same with plain filters, of that width which brings the number of weights nearest to DeepLOB's."""

    def made(width: int) -> Reader:
        flat = Flat(levels, width)
        return Reader([flat, Inception(flat.channels, inception)], 3 * inception, hidden)

    with torch.device("meta"):  # counted only: no draw is spent
        wanted = weights(deeplob(levels, channels, inception, hidden))
        width = min(range(2, 2 * channels), key=lambda c: abs(weights(made(c)) - wanted))
    return made(width)


def weights(net: nn.Module) -> int:
    """How many trained numbers a network has."""
    return sum(p.numel() for p in net.parameters())


# ---- LIME: which group of cells carries the answer


def groups(window: int, levels: int, block: int = 10) -> Tensor:
    """The group [T, 4 L] of every cell: level + L * (which `block` of snapshots, 0 the latest)."""
    age = torch.arange(window).flip(0) // block
    return age[:, None] * levels + torch.arange(4 * levels) // 4


def lime(net: Callable[[Tensor], Tensor], x: Tensor, group: Tensor, masks: Tensor, ridge: float = 1.0) -> Tensor:
    """Weights [N, G] of a ridge regression from the groups kept to the probability of the class answered to x [N, T, 4 L].

    masks [M, G] of 0 and 1; cells of a group left out become 0, the mean of their column. A mask weighs exp(-d^2 / 0.25^2) with
    d its cosine distance from the whole window, as in LIME for images; the intercept is not penalised.
    """
    chosen = net(x).argmax(1)
    told = torch.stack([net(one * masks[:, group]).softmax(1)[:, c] for one, c in zip(x, chosen.tolist(), strict=True)])
    distance = 1 - masks.mean(1).sqrt()
    share = torch.exp(-((distance / 0.25) ** 2)).double()
    design = masks.double() - (share @ masks.double()) / share.sum()
    target = told.double() - (told.double() @ share)[:, None] / share.sum()
    gram = design.T @ (share[:, None] * design) + ridge * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, design.T @ (share[:, None] * target.T)).T.float()


def level_shares(weight: Tensor, levels: int) -> Tensor:
    """Share of each level in the sum of |weight|, for weights [N, G] as `lime` gives them: [N, L]."""
    size = weight.abs().unflatten(1, (-1, levels)).sum(1)
    return size / size.sum(1, keepdim=True).clamp_min(1e-30)
