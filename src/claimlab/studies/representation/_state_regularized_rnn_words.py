"""Words of regular and context-free languages with their labels, and the finite automata behind them.

Words are whole numbers [N, T], padded with 0 behind their end; lengths are [N], from 1 on. A symbol is its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# ---- automata


@dataclass(frozen=True)
class Dfa:
    """A complete finite automaton: `step` [Q, A] next state by state and symbol, `accept` [Q], `start`."""

    step: np.ndarray
    accept: np.ndarray
    start: int = 0

    def path(self, words: np.ndarray) -> np.ndarray:
        """States [N, T + 1] that words [N, T] pass through, the start state first."""
        found = np.full((len(words), words.shape[1] + 1), self.start)
        for t in range(words.shape[1]):
            found[:, t + 1] = self.step[found[:, t], words[:, t]]
        return found

    def accepts(self, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the automaton accepts each word; [N] bool."""
        return self.accept[self.path(words)[np.arange(len(words)), lengths]]


def minimal(dfa: Dfa) -> Dfa:
    """The smallest automaton of the same language (Hopcroft 1971), its states numbered as a search in breadth meets them.

    Two automata have the same language exactly if their minimal ones, numbered so, are equal.
    """
    step = dfa.step[_reached(dfa.step, dfa.start)]
    number = {int(q): k for k, q in enumerate(_reached(dfa.step, dfa.start))}
    step = np.vectorize(number.get, otypes=[int])(step)
    accept = dfa.accept[list(number)]
    block = _refined(step, accept)
    merged = np.zeros((block.max() + 1, step.shape[1]), int)
    merged[block] = block[step]  # all states of a block lead to the same block
    accepting = np.zeros(len(merged), bool)
    accepting[block] = accept
    order = _reached(merged, block[0])
    place = np.argsort(order)
    return Dfa(place[merged[order]], accepting[order])


def _reached(step: np.ndarray, start: int) -> np.ndarray:
    """States that can be reached, in breadth-first order."""
    order = [int(start)]
    for q in order:
        order += [int(r) for r in dict.fromkeys(step[q]) if r not in order]
    return np.array(order)


def _refined(step: np.ndarray, accept: np.ndarray) -> np.ndarray:
    """Hopcroft's partition refinement: the block [Q] of each state; states of one block cannot be told apart by any word."""
    parts = [set(np.flatnonzero(side)) for side in (accept, ~accept) if side.any()]
    waiting = [min(parts, key=len)]
    while waiting:
        splitter = waiting.pop()
        for symbol in range(step.shape[1]):
            leads = set(np.flatnonzero(np.isin(step[:, symbol], list(splitter))))
            for part in list(parts):
                inside, outside = part & leads, part - leads
                if not inside or not outside:
                    continue
                parts.remove(part)
                parts += [inside, outside]
                if part in waiting:
                    waiting.remove(part)
                    waiting += [inside, outside]
                else:
                    waiting.append(min(inside, outside, key=len))
    block = np.zeros(len(step), int)
    for k, part in enumerate(parts):
        block[list(part)] = k
    return block


def same_language(one: Dfa, other: Dfa) -> bool:
    """Whether both automata accept the same words."""
    a, b = minimal(one), minimal(other)
    return a.step.shape == b.step.shape and bool((a.step == b.step).all() and (a.accept == b.accept).all())


def _dfa(step: Sequence[Sequence[int]], accept: Sequence[int]) -> Dfa:
    return Dfa(np.array(step), np.isin(np.arange(len(step)), accept))


# Tomita 1982; each automaton is minimal, state 0 is the start
TOMITA = {
    "tomita1": _dfa([(1, 0), (1, 1)], [0]),
    "tomita2": _dfa([(2, 1), (0, 2), (2, 2)], [0]),
    "tomita3": _dfa([(0, 1), (2, 0), (3, 4), (2, 1), (4, 4)], [0, 1, 3]),
    "tomita4": _dfa([(1, 0), (2, 0), (3, 0), (3, 3)], [0, 1, 2]),
    "tomita5": _dfa([(1, 2), (0, 3), (3, 0), (2, 1)], [0]),
    "tomita6": _dfa([(1, 2), (2, 0), (0, 1)], [0]),
    "tomita7": _dfa([(0, 1), (2, 1), (2, 3), (4, 3), (4, 4)], [0, 1, 2, 3]),
}
MEANING = {
    "tomita1": "only 1s", "tomita2": "10 again and again", "tomita3": "no odd run of 1s before an odd run of 0s",
    "tomita4": "no three 0s in a row", "tomita5": "an even number of 0s and of 1s",
    "tomita6": "as many 0s as 1s, counted modulo 3", "tomita7": "at most two runs of 0s, each followed by 1s",
}  # fmt: skip


# ---- words


def weights_by_length(dfa: Dfa, longest: int, accepted: bool, share: np.ndarray) -> np.ndarray:
    """Weight of the words of each length 0..longest that lead from each state to an accepting (or rejecting) one; a word
    weighs the product of its symbols' shares [A]. [longest + 1, Q]."""
    found = [(dfa.accept == accepted).astype(float)]
    for _ in range(longest):
        found.append((found[-1][dfa.step] * share).sum(1))
    return np.array(found)


def draw(dfa: Dfa, lengths: np.ndarray, accepted: bool, rng: np.random.Generator, share: np.ndarray | None = None) -> np.ndarray:
    """A word of each length [N], uniformly among the accepted (or rejected) ones, or by the symbols' shares; [N, T]."""
    share = np.ones(dfa.step.shape[1]) if share is None else share
    weight = weights_by_length(dfa, int(lengths.max()), accepted, share)
    words, state = np.zeros((len(lengths), lengths.max()), int), np.full(len(lengths), dfa.start)
    for t in range(lengths.max()):
        on = np.flatnonzero(lengths > t)
        odds = (weight[lengths[on] - t - 1][np.arange(len(on))[:, None], dfa.step[state[on]]] * share).cumsum(1)
        words[on, t] = (rng.random(len(on))[:, None] * odds[:, -1:] >= odds).sum(1)
        state[on] = dfa.step[state[on], words[on, t]]
    return words


def spread(allowed: Sequence[int], count: int) -> np.ndarray:
    """`count` lengths, each of `allowed` as often as the others."""
    return np.array(allowed)[np.arange(count) * len(allowed) // count]


@dataclass(frozen=True)
class Words:
    """Words [N, T], lengths [N], labels [N], and for nested words the depth that each was drawn with [N]."""

    words: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    depth: np.ndarray | None = None

    def tensors(self, rows: slice | np.ndarray = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Words, place of the last symbol and labels as tensors."""
        return torch.from_numpy(self.words[rows]), torch.from_numpy(self.lengths[rows] - 1), torch.from_numpy(self.labels[rows])


def regular(language: str, low: int, high: int, count: int, rng: np.random.Generator) -> Words:
    """`count` words over {0, 1} of lengths low..high: half in the language, and of the others half near misses.

    A near miss is a word of the language with one symbol flipped, where that leads out of it. Only lengths that have words
    on both sides are used.
    """
    dfa = TOMITA[language]
    sides = [weights_by_length(dfa, high, side, np.ones(2))[:, dfa.start] for side in (True, False)]
    allowed = [n for n in range(low, high + 1) if all(side[n] for side in sides)]
    lengths = spread(allowed, count // 2)
    inside, outside = (draw(dfa, lengths, side, rng) for side in (True, False))
    near = draw(dfa, lengths, True, rng)
    near[np.arange(len(near)), rng.integers(lengths)] ^= 1
    missed = ~dfa.accepts(near, lengths) & (rng.random(len(near)) < 0.5)
    outside[missed] = near[missed]
    return _shuffled(Words(np.r_[inside, outside], np.r_[lengths, lengths], np.repeat([1, 0], count // 2)), rng)


def nested(depth: int) -> Dfa:
    """Balanced words over ( ) and four letters that nest exactly `depth` deep. States: height below the depth (0..depth),
    height after it was reached (depth + 1 .. 2 depth + 1), and the sink."""
    sink = 2 * depth + 2
    step = np.full((sink + 1, 6), sink)
    for height in range(depth + 1):
        for reached in (0, depth + 1):
            q = height + reached
            step[q, 2:] = q
            step[q, 0] = sink if height == depth else q + 1 if height < depth - 1 or reached else depth + 1 + depth
            step[q, 1] = q - 1 if height else sink
    return Dfa(step, np.arange(sink + 1) == depth + 1)


def brackets(low: int, high: int, longest: int, count: int, rng: np.random.Generator) -> Words:
    """`count` words of brackets and letters, nested low..high deep, at most `longest` long, half of them balanced.

    The others are such words with one bracket swapped for the other kind or dropped. Brackets make up about half a word.
    """
    depth = spread(range(low, high + 1), count)
    lengths = rng.integers(2 * depth, longest + 1)
    words, labels = np.zeros((count, longest), int), np.arange(count) % 2
    for d in range(low, high + 1):
        rows = np.flatnonzero(depth == d)
        drawn = draw(nested(d), lengths[rows], True, rng, np.array([2.0, 2.0, 0.5, 0.5, 0.5, 0.5]))
        words[rows, : drawn.shape[1]] = drawn
    for row in np.flatnonzero(labels == 0):
        place = rng.choice(np.flatnonzero(words[row, : lengths[row]] < 2))
        if rng.random() < 0.5:
            words[row, place] ^= 1
        else:
            words[row, place:-1] = words[row, place + 1 :]
            words[row, -1], lengths[row] = 0, lengths[row] - 1
    return _shuffled(Words(words, lengths, labels, depth), rng)


def palindromes(low: int, high: int, count: int, rng: np.random.Generator) -> Words:
    """`count` words w # reverse(w) over {0, 1} and # (symbol 2) with |w| in low..high, half of them with one symbol of the
    second part flipped. Their depth is |w|."""
    half = spread(range(low, high + 1), count)
    words, labels = np.zeros((count, 2 * high + 1), int), np.arange(count) % 2
    for row, n in enumerate(half):
        w = rng.integers(2, size=n)
        words[row, : 2 * n + 1] = np.r_[w, 2, w[::-1]]
        if not labels[row]:
            words[row, n + 1 + rng.integers(n)] ^= 1
    return _shuffled(Words(words, 2 * half + 1, labels, half), rng)


def _shuffled(found: Words, rng: np.random.Generator) -> Words:
    order = rng.permutation(len(found.labels))
    return Words(*(None if part is None else part[order] for part in (found.words, found.lengths, found.labels, found.depth)))


# ---- a text file of the user's own


@lru_cache(maxsize=2)
def own_lines(path: str, least: int = 40, longest: int = 2000) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Labels and words of a UTF-8 file with `label TAB text` a line, read as data only: two labels, each on ten lines or more.

    ValueError names the file, the line, what is wrong and what is allowed: `least` lines, at most `longest` words a line.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a UTF-8 text file with a line `label TAB text` for each example is needed")
    try:
        lines = [line for line in file.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8: byte {error.start:,} does not fit; save it again as UTF-8") from None
    labels, texts = [], []
    for number, line in enumerate(lines, 1):
        label, tab, text = line.partition("\t")
        if not (label.strip() and tab and text.split()):
            raise ValueError(f"{file.name}, line {number}: allowed is a label, a tab and a text of one word or more")
        if (length := len(text.split())) > longest:
            raise ValueError(f"{file.name}, line {number}: {length:,} words; at most {longest:,} are allowed")
        labels.append(label.strip())
        texts.append(tuple(text.lower().split()))
    if len(lines) < least:
        raise ValueError(f"{file.name} has {len(lines)} lines with text; at least {least} are needed")
    count = Counter(labels)
    if len(count) != 2 or min(count.values()) < 10:
        said = ", ".join(f"{name} ({n})" for name, n in sorted(count.items())[:6])
        raise ValueError(f"{file.name} has the labels {said}; exactly two are allowed, each on ten lines or more")
    return tuple(labels), tuple(texts)


def own_split(path: str, rng: np.random.Generator, vocabulary: int = 2000, cap: int = 60) -> tuple[Words, Words, int]:
    """Training and test part (3 to 1) of a file of the user's own, and the number of symbols. The vocabulary holds the most
    frequent words of the training part alone; 0 stands for every other word. A text is cut after `cap` words."""
    labels, texts = own_lines(path)
    names, order = sorted(set(labels)), rng.permutation(len(texts))
    train, test = order[: len(order) * 3 // 4], order[len(order) * 3 // 4 :]
    known = Counter(word for k in train for word in texts[k][:cap])
    number = {word: n for n, (word, _) in enumerate(sorted(known.items(), key=lambda one: (-one[1], one[0]))[:vocabulary], 1)}

    def part(rows):
        lengths = np.array([min(cap, len(texts[k])) for k in rows])
        words = np.zeros((len(rows), lengths.max()), int)
        for row, k in enumerate(rows):
            words[row, : lengths[row]] = [number.get(word, 0) for word in texts[k][:cap]]
        return Words(words, lengths, np.array([names.index(labels[k]) for k in rows]))

    return part(train), part(test), len(number) + 1
