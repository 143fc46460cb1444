"""SR-RNN: a recurrent network that moves between a few learned states. Can its automaton be read, and does it remember better?"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.representation import _state_regularized_rnn_cells as cells
from claimlab.studies.representation import _state_regularized_rnn_words as words
from claimlab.studies.representation._state_regularized_rnn_cells import Recurrent
from claimlab.studies.representation._state_regularized_rnn_words import TOMITA, Dfa, Words, minimal, same_language
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Task
from claimlab.training.series import Series
from claimlab.training.task import Stepwise, Tick

PAPER = Paper(
    title="State-Regularized Recurrent Neural Networks to Extract Automata and Explain Predictions",
    authors="Wang, Lawrence, Niepert", year=2022, url="https://arxiv.org/abs/2212.05178", theme="stages", system="SR-RNN",
    question="If a recurrent network may only move between a few learnable states, can we read the automaton it has learned, and "
    "does it remember better?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    language: str = knob("tomita4", "which regular language must be learned",
                         choices=("tomita1", "tomita2", "tomita3", "tomita4", "tomita5", "tomita6", "tomita7"))  # fmt: skip
    states: int = knob(10, "how many states the network may use; below the minimal automaton it must fail", low=2, high=40,
                       unit="centroids")  # fmt: skip
    snap: float = knob(1.0, "share of the centroid mixture in a new state; 0 is the plain cell", low=0.0, high=1.0, live=True)
    temperature: float = knob(1.0, "tau: small makes transitions hard, large blends the states", low=0.01, high=10.0, live=True)
    hidden: int = knob(32, "size of the recurrent state; twice as many for brackets", low=8, high=128, unit="units")
    train_length: int = knob(16, "longest training word", low=6, high=40, unit="symbols")
    train_depth: int = knob(5, "deepest nesting in training (brackets)", low=2, high=10, unit="levels")
    steps: int = knob(500, "optimiser steps; a fifth more for brackets", low=20, high=10000)
    extras: bool = knob(False, "also learn the six other regular languages, palindromes, and digits row by row")
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(language="tomita1", steps=40, train_length=8, train_depth=2, hidden=8, seeds=2)
    FULL = dict(steps=2500, seeds=10, extras=True)
    CONTROL = Control(set=dict(language="tomita1"), vanishes=("faithful-automaton",),
                      why="The language 1* has two states that any clustering finds.")  # fmt: skip


CLAIMS = (
    Claim("faithful-automaton", "The automaton read off a state-regularised GRU agrees with its network on long unseen words better "
          "than the automaton obtained by clustering the hidden states of a plain GRU.", kind="paired", metric="fidelity",
          arm="sr_gru", baseline="gru_kmeans", better="higher", margin=0.02, source="abstract (a); Sec. automata extraction"),
    Claim("true-language", "The extracted automaton accepts the true regular language: its accuracy on words three times as long "
          "as those in training.", kind="bound", metric="dfa_accuracy", arm="sr_gru", better="higher", margin=0.97,
          source="Tomita experiments"),
    Claim("extrapolates-depth", "On balanced parentheses nested deeper than in training, a state-regularised LSTM with peepholes "
          "makes fewer errors than a plain LSTM.", kind="paired", metric="deep_accuracy", arm="sr_lstm_p", baseline="lstm",
          better="higher", margin=0.02, source="abstract (b); balanced-parentheses tables"),
    Claim("low-drift", "State-regularised hidden states do not drift with length: the distance of hidden states at equal automaton "
          "state, late against early in a word, is smaller.", kind="paired", metric="drift", arm="sr_gru", baseline="gru",
          better="lower", margin=0.05, source="Sec. on hidden-state drift"),
)  # fmt: skip
HONESTY = (
    "Languages with a handful of states and brackets are the whole test: sentiment, images and text categorisation of the paper "
    "are left out at default settings. A language learned to perfection by the plain GRU leaves the fidelity claim little room; "
    "which language is hard depends on seed and length."
)


# ---- data: all of a seed follows from the seed and the knobs


@lru_cache(maxsize=32)
def words_of(seed: int, language: str, longest: int) -> tuple[Words, Words]:
    """1,000 training words of lengths 1..longest and 1,000 test words of lengths longest + 1 .. 3 longest + 2."""
    rng = np.random.default_rng([seed, *language.encode()])
    return words.regular(language, 1, longest, 1000, rng), words.regular(language, longest + 1, 3 * longest + 2, 1000, rng)


@lru_cache(maxsize=32)
def nested_of(seed: int, nesting: str, depth: int) -> tuple[Words, Words]:
    """1,000 training and 1,000 test words: brackets nested 1..depth (length <= 8 depth) and depth + 1 .. 2 depth + 2 (twice
    as long), or palindromes with halves of 1..2 depth and 2 depth + 1 .. 4 depth symbols."""
    rng = np.random.default_rng([seed, *nesting.encode()])
    if nesting == "palindromes":
        return words.palindromes(1, 2 * depth, 1000, rng), words.palindromes(2 * depth + 1, 4 * depth, 1000, rng)
    return words.brackets(1, depth, 8 * depth, 1000, rng), words.brackets(depth + 1, 2 * depth + 2, 16 * depth, 1000, rng)


@lru_cache(maxsize=32)
def cut(longest: int, parts: int = 4) -> list[int]:
    """Lengths at which training words are divided, so that a batch holds words of about one length and little padding."""
    return [0, *sorted({-(-longest * k // parts) for k in range(1, parts + 1)})]


# ---- the arms


class Reading(Task):
    """Learn to accept or reject words from the last hidden state, with Adam. Subclasses say which words and which cell.

    All arms of a seed see the same words in the same order and start from the same weights; no term is added to the loss.
    """

    lr, batch_size, kind, embedding, classes = 3e-3, 64, "gru", 8, 2
    regularised = peepholes = False
    every = property(lambda self: max(20, self.steps // 12))
    temperature = property(lambda self: self.p.temperature)

    def data(self, seed) -> tuple[Words, Words]:
        return words_of(seed, self.p.language, self.p.train_length)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.train, bound.test = self.data(seed)
        bound.x, bound.last, bound.y = bound.train.tensors()
        bound.long, bound.watched = bound.test.tensors(), bound.test.tensors(slice(200))
        ends = cut(bound.train.words.shape[1])
        bound.groups_by_length = [(end, rows) for low, end in zip(ends, ends[1:], strict=False)
                                  if len(rows := ((bound.last >= low) & (bound.last < end)).nonzero().flatten())]  # fmt: skip
        return bound

    def init(self):
        return Recurrent(self.kind, self.symbols, self.width, embedding=self.embedding, classes=self.classes,
                         states=self.p.states * self.regularised, peepholes=self.peepholes)  # fmt: skip

    symbols = property(lambda self: 2)
    width = property(lambda self: self.p.hidden)

    def batch(self, net, rng, step):
        end, rows = self.groups_by_length[step % len(self.groups_by_length)]
        rows = rows[torch.randint(len(rows), (self.batch_size,), generator=rng)].to(self.x.device)
        return self.x[rows, :end], self.last[rows], self.y[rows]

    def loss(self, net, x, last, y):
        return cross_entropy(net(x, last, self.p.snap, self.temperature), y)

    def accuracy(self, net, x, last, y):
        return (net(x, last, self.p.snap, self.temperature).argmax(1) == y).float().mean()

    def metrics(self, net):
        """Accuracy on 200 of the test words; with centroids also how spread alpha is and how many states matter."""
        found = {"watched_accuracy": self.accuracy(net, *self.watched)}
        if self.regularised:
            alpha, inside = self.alphas(net)
            found["entropy"] = -(alpha * np.log(alpha.clip(1e-30))).sum(2)[inside].mean()
            found["states_used"] = (np.bincount(alpha.argmax(2)[inside]) >= 0.005 * inside.sum()).sum()
        return found

    def alphas(self, net, count=200):
        """alpha [N, T, k] along the first training words, and where these words are [N, T]."""
        first, lengths = self.train.words[:count], self.train.lengths[:count]
        return cells.traced(net, first, self.p.snap, self.temperature)[1], np.arange(first.shape[1]) < lengths[:, None]


class Gru(Reading):
    """The plain GRU on a regular language."""

    def final(self, net):
        return {"long_accuracy": self.accuracy(net, *self.long), "drift": self.drift(net)}

    def drift(self, net) -> float:
        """How far hidden states late in a word lie from the mean early state, at the same state of the true automaton.

        Mean distance at positions > 2 (longest training word) - 2 from the mean at positions below that length, over the
        overall sd of hidden states (the root of their total variance); automaton states without an early visit are left out.
        """
        test, longest = self.test, self.p.train_length
        h = cells.traced(net, test.words, self.p.snap, self.temperature)[0]
        true, place = TOMITA[self.p.language].path(test.words), np.arange(h.shape[1])
        inside = (place <= test.lengths[:, None]) & (place > 0)
        early, late = inside & (place < longest), inside & (place > 2 * longest - 2)
        spread = np.sqrt(h[inside].var(0).sum())
        moved = [np.linalg.norm(h[late & (true == q)] - h[early & (true == q)].mean(0), axis=1)
                 for q in np.unique(true) if (early & (true == q)).any()]  # fmt: skip
        return float(np.concatenate(moved).mean() / max(spread, 1e-12))

    def judged(self, net, dfa: Dfa) -> dict[str, float]:
        """What an automaton read off this network is worth on the long test words."""
        test, answer = self.test, dfa.accepts(self.test.words, self.test.lengths)
        said = net(*self.long[:2], self.p.snap, self.temperature).argmax(1).cpu().numpy() == 1
        return {"fidelity": (answer == said).mean(), "dfa_accuracy": (answer == test.labels).mean(),
                "dfa_states": len(minimal(dfa).step), "exact": float(same_language(dfa, TOMITA[self.p.language]))}  # fmt: skip


class SrGru(Gru):
    """The state-regularised GRU."""

    regularised = True

    def read(self, net) -> Dfa:
        return cells.read_off(net, self.train.words, self.train.lengths, self.p.snap, self.temperature)

    def final(self, net):
        return super().final(net) | self.judged(net, self.read(net))


class SrGruHot(SrGru):
    """Ablation: tau = 10 blends the states, so that there is hardly a bottleneck."""

    temperature = 10.0


class GruKmeans(Stepwise):
    """The plain GRU's automaton, by k-means with as many clusters as the other network has states; nothing is trained."""

    after = "gru"
    total = step = 1

    def __init__(self, params, seeds, gru):
        self.gru = gru
        self.automata = []

    def stepwise(self):
        found = []
        with torch.no_grad():
            for net, task, seed in zip(self.gru.members, self.gru.tasks, self.gru.seeds, strict=True):
                self.automata.append(cells.clustered(net, task.train.words, task.train.lengths, task.p.states, seed))
                found.append(task.judged(net, self.automata[-1]))
        yield Tick(self.gru.total, found)


class Lstm(Reading):
    """The plain LSTM on brackets, whose depth it has to count. 0.01 and batches of 32 suit all three LSTMs better."""

    kind, nesting, lr, batch_size = "lstm", "brackets", 1e-2, 32
    steps = property(lambda self: self.p.steps * 6 // 5)
    symbols = property(lambda self: 3 if self.nesting == "palindromes" else 6)
    width = property(lambda self: 2 * self.p.hidden)

    def data(self, seed):
        return nested_of(seed, self.nesting, self.p.train_depth)

    def final(self, net):
        return {"deep_accuracy": self.accuracy(net, *self.long), "train_accuracy": self.accuracy(net, self.x, self.last, self.y)}


class SrLstm(Lstm):
    """Ablation: without peepholes the gates learn of the count in c only through what is left of it in h."""

    regularised = True


class SrLstmP(SrLstm):
    """The state-regularised LSTM with peepholes: h is one of a few states, c is free memory, and the gates see it."""

    peepholes = True


# ---- further data: digits row by row, the other languages, and texts of one's own (CLAIMLAB_DATA names the file)


@dataclass(frozen=True)
class Rows:
    """Digits as eight rows of eight numbers."""

    words: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    tensors = Words.tensors


class Digits(Reading):
    """scikit-learn's digits, read from the top row down: ten classes after eight rows."""

    embedding, classes = 0, 10
    symbols = property(lambda self: 8)
    when = staticmethod(lambda params: params.extras)

    def data(self, seed):
        from claimlab import data

        images, labels = data.digits()
        train, test = data.stratified(labels, 1000, np.random.default_rng(seed))
        rows = images.reshape(len(images), 8, 8)
        return tuple(Rows(rows[part], np.full(len(part), 8), labels[part]) for part in (train, test))

    def final(self, net):
        return {"digit_accuracy": self.accuracy(net, *self.long)}


class SrDigits(Digits):
    regularised = True


class Texts(Reading):
    """Lines of a file of one's own, with one of two labels each."""

    when = staticmethod(lambda params: bool(os.environ.get("CLAIMLAB_DATA")))
    symbols = property(lambda self: self.found[2])

    @property
    def found(self):
        return words.own_split(os.environ["CLAIMLAB_DATA"], np.random.default_rng(0))

    def data(self, seed):
        return self.found[:2]

    def final(self, net):
        return {"text_accuracy": self.accuracy(net, *self.long)}


class SrTexts(Texts):
    regularised = True


class Palindromes(Lstm):
    nesting = "palindromes"


class SrPalindromes(SrLstmP):
    nesting = "palindromes"


def others(params, seeds):
    """The six other regular languages, and palindromes, for the first three seeds."""
    runs = {name: SrGru(replace(params, language=name)) for name in TOMITA if name != params.language}
    runs |= {"palindromes, lstm": Palindromes(params), "palindromes, sr_lstm_p": SrPalindromes(params)}
    return Series({name: Run(task, list(seeds)[:3]) for name, task in runs.items()}, seeds)


others.when = lambda params: params.extras

ARMS = {
    "gru": Gru, "gru_kmeans": GruKmeans, "sr_gru": SrGru, "sr_gru_hot": SrGruHot, "lstm": Lstm, "sr_lstm": SrLstm,
    "sr_lstm_p": SrLstmP, "digits_gru": Digits, "digits_sr_gru": SrDigits, "text_gru": Texts, "text_sr_gru": SrTexts,
    "others": others,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "automaton at this step": beside(__name__, "automaton_view"),
    "hidden states and centroids": beside(__name__, "states_view"),
}
