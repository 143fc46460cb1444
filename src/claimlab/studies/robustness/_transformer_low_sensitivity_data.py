"""What one seed learns: pictures as patches (or a user's own images or texts), and strings with a sparse and a frequent cue."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab import data
from claimlab.data.own import own_images
from claimlab.studies.robustness._transformer_low_sensitivity_corruptions import CORRUPTIONS, SEVERITIES
from claimlab.studies.robustness._transformer_low_sensitivity_nets import Form

TEST, PROBE, DRAWS = 497, 200, 2
CAP, VOCABULARY, LEAST = 64, 5000, 20  # own texts: tokens of a text, different words, texts of a label
REPLACED = 0.1  # share of words that a disturbance of a whole text replaces


@dataclass(frozen=True)
class Lesson:
    """Tokens of one seed: training x [N, T, D] standardised (or [N, T] words), y [N], test pair, corrupted copies of the test
    tokens by name, and `others` [draws, probe, T, ...]: what each token of the first training inputs is replaced by."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor]
    corrupted: dict[str, Tensor]
    others: Tensor
    form: Form


def source() -> str:
    """The file that CLAIMLAB_DATA names, or empty."""
    return os.environ.get("CLAIMLAB_DATA", "")


# ---- pictures


@lru_cache(maxsize=2)
def pictures(name: str, path: str = "") -> tuple[np.ndarray, np.ndarray, int]:
    """Images [N, H, W, C] in [0, 1], labels [N] and the side of a patch; ValueError where an own file does not fit."""
    if path:
        x, y = own_images(path)
        patch = 2 if x.shape[1] <= 12 else 4
        if x.shape[1] != x.shape[2] or x.shape[1] % (2 * patch):
            raise ValueError(f"{Path(path).name}: images of {x.shape[1]} x {x.shape[2]} pixels; allowed are squares whose side is a "
                             f"multiple of {2 * patch}, since a patch has {patch} x {patch} pixels")  # fmt: skip
        return x, y, patch
    x, y = data.digits() if name == "digits" else data.mnist()
    return x[..., None], y, 2 if name == "digits" else 4


def patches(x: np.ndarray, side: int) -> np.ndarray:
    """Images [N, H, W, C] cut into squares, row by row: [N, (H / side) (W / side), side side C]."""
    n, height, width, channels = x.shape
    cut = x.reshape(n, height // side, side, width // side, side, channels).swapaxes(2, 3)
    return cut.reshape(n, -1, side * side * channels)


@lru_cache(maxsize=32)
def lesson(seed: int, name: str, images: int, sigma: float, path: str = "") -> Lesson:
    """Everything that a seed's classifier of pictures (or of an own file's texts) learns from and is asked."""
    rng = np.random.default_rng(seed)
    if path.endswith(".csv"):
        return read_texts(rng, images, path)
    x, y, side = pictures(name, path)
    train, test = data.stratified(y, min(images, len(x) * 3 // 4), rng)
    test = test[: min(TEST, images // 2)]
    mean, sd = x[train].mean(), x[train].std()

    def tokens(part: np.ndarray) -> Tensor:
        return torch.from_numpy(patches(((part - mean) / sd).astype(np.float32), side))

    bad = {f"{kind} {k}": tokens(change(x[test], k, rng)) for kind, change in CORRUPTIONS.items() for k in SEVERITIES}
    inside, form = tokens(x[train]), Form((x.shape[1] // side) ** 2, int(y.max()) + 1, side**2 * x.shape[3], channels=x.shape[3])
    probe = inside[: min(PROBE, images // 4)]
    noise = torch.from_numpy(rng.normal(0, 1, (DRAWS, *probe.shape)).astype(np.float32))
    labels = torch.from_numpy(y)
    return Lesson(inside, labels[train], (tokens(x[test]), labels[test]), bad, probe + sigma * noise, form)


def disturbed(x: Tensor, sigma: float, words: int, rng: torch.Generator) -> Tensor:
    """All patches plus N(0, sigma^2), or a tenth of the words replaced by random ones; nothing changes at sigma = 0."""
    if not words:
        return x + sigma * torch.randn(x.shape, generator=rng)
    other = torch.randint(words, x.shape, generator=rng)
    return torch.where(torch.rand(x.shape, generator=rng) < REPLACED * (sigma > 0), other, x)


# ---- own texts


@lru_cache(maxsize=2)
def texts(path: str) -> tuple[list[list[str]], np.ndarray, str]:
    """Words and labels 0, 1, ... of the rows of a CSV file with the columns text and label, and a line on their balance.

    ValueError names the file, what is wrong and what is allowed.
    """
    import pandas as pd

    name = Path(path).name
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{name} cannot be read as a CSV file in UTF-8: {error}") from None
    if lacks := [column for column in ("text", "label") if column not in rows]:
        raise ValueError(f"{name} has no column {' and no '.join(lacks)}; it must have text and label")
    if (empty := rows["text"].str.strip() == "").any() or (rows["label"].str.strip() == "").any():
        kind, row = ("text", int(empty.argmax())) if empty.any() else ("label", int((rows["label"].str.strip() == "").argmax()))
        raise ValueError(f"{name}: the {kind} of row {row + 2} is empty; every row needs a text and a known label")
    found = rows["label"].str.strip().value_counts().sort_index()
    if len(found) < 2 or found.min() < LEAST:
        told = ", ".join(f"{label}: {n}" for label, n in found.items()) or "none"
        raise ValueError(f"{name}: texts of each label: {told}; allowed are at least two labels of at least {LEAST} texts each")
    label = {value: i for i, value in enumerate(found.index)}
    report = "; ".join(f"{value} {n / len(rows):.0%}" for value, n in found.items())
    return [text.lower().split() for text in rows["text"]], rows["label"].str.strip().map(label).to_numpy(np.int64, copy=True), report


def read_texts(rng: np.random.Generator, limit: int, path: str) -> Lesson:
    """Own texts as words of a vocabulary counted on the training part; 0 fills short texts up, 1 is any rarer word."""
    from collections import Counter

    rows, y, _ = texts(path)
    train, test = data.stratified(y, min(limit, len(rows) * 3 // 4), rng)
    test = test[: min(TEST, limit // 2)]
    common = Counter(word for i in train for word in rows[i]).most_common(VOCABULARY - 2)
    code = {word: 2 + k for k, (word, _) in enumerate(common)}
    length = min(CAP, max(8, max(len(rows[i]) for i in train) + 1 & ~1))
    x = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        told = [code.get(word, 1) for word in row[:length]]
        x[i, : len(told)] = told
    every, words, labels = torch.from_numpy(x), len(code) + 2, torch.from_numpy(y)

    def swapped(part: np.ndarray, share: float) -> Tensor:
        other = rng.integers(words, size=part.shape)
        return torch.from_numpy(np.where(rng.random(part.shape) < share, other, part))

    bad = {f"replaced words {k}": swapped(x[test], 0.15 * k) for k in SEVERITIES}
    probe = x[train[: min(PROBE, len(train) // 4)]]
    others = torch.stack([swapped(probe, 1.0) for _ in range(DRAWS)])
    return Lesson(every[train], labels[train], (every[test], labels[test]), bad, others, Form(length, int(y.max()) + 1, words=words))


# ---- strings: a vocabulary of five groups

SPARSE = {1: 0, -1: 1}  # the rare word of either class
NEUTRAL = range(2, 18)
TYPES = 4  # frequent words of either class
POSITIVE, NEGATIVE = range(18, 18 + TYPES), range(18 + TYPES, 18 + 2 * TYPES)
WORDS = NEGATIVE.stop


def frequent(length: int) -> int:
    """Number of frequent words in a string, odd: 9 of 32."""
    return 2 * round((9 * length / 32 - 1) / 2) + 1


def strings(n: int, length: int, margin: int, sparse: float | None, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """n strings [n, length] and the classes 0 or 1 [n] of their frequent majority, which leads by `margin` words or more.

    The one sparse word agrees with the class with probability `sparse`; None leaves it out. All places are random.
    """
    from scipy.stats import binom

    y, often = rng.integers(2, size=n) * 2 - 1, frequent(length)
    agree = np.arange(often + 1)
    chance = binom.pmf(agree, often, 0.5) * (2 * agree - often >= margin)
    agreeing = rng.choice(agree, size=n, p=chance / chance.sum())
    sides = np.where(np.arange(often) < agreeing[:, None], 1, -1) * y[:, None]
    row = rng.integers(NEUTRAL.start, NEUTRAL.stop, size=(n, length))
    row[:, :often] = rng.integers(TYPES, size=(n, often)) + np.where(sides > 0, POSITIVE.start, NEGATIVE.start)
    if sparse is not None:
        told = np.where(rng.random(n) < sparse, y, -y)
        row[:, often] = np.where(told > 0, SPARSE[1], SPARSE[-1])
    return torch.from_numpy(rng.permuted(row, axis=1)), torch.from_numpy((y + 1) // 2)


@lru_cache(maxsize=32)
def reading(seed: int, n: int, length: int, margin: int, sparse: float) -> tuple[tuple[Tensor, Tensor], ...]:
    """A seed's n training strings, n / 2 strings whose cues contradict each other, and n / 2 without a sparse word."""
    rng = np.random.default_rng([seed, 1])
    return tuple(strings(m, length, margin, told, rng) for m, told in ((n, sparse), (n // 2, 0.0), (n // 2, None)))
