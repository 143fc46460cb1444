"""Texts of word-class-emergence: a seed's own text of the grammar, Python's help topics with a rule tagger, or text of one's own."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.data.text import own_text, topics
from claimlab.studies.text import _word_class_emergence_grammar as grammar

PAD, UNKNOWN = 0, 1  # word numbers; the text's own words follow
WINDOW = 9  # words before the target by which a test context counts as new
LONGEST = 15
DRAWS, FITTED, JUDGED, SECTIONS, BLOCK = 5, 4000, 3000, 6, 5000
LEAST_TOKENS, LEAST_CONTEXTS = 50_000, 100
TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[.!?,;:]")
ENDS = {".", "!", "?"}
CLOSED = {
    "determiner": "the a an this that these those each every some any no another either neither both all such its their his her "
                  "your our my whose which what enough several many few much most",
    "pronoun": "i you he she it we they me him us them one someone anyone everyone something anything everything nothing nobody "
               "itself themselves himself herself yourself who whom none oneself others",
    "preposition": "of in to for with on by from at as into through between after before without under within against during about "
                   "above below over across behind beyond except inside like near onto outside since toward towards until upon via "
                   "along among around beside besides despite per unlike",
    "verb": "is are was were be been being am has have had having do does did done can could may might must shall should will would "
            "cannot isn't aren't doesn't don't can't won't didn't get gets got make makes made use uses give gives see let",
    "adverb": "not also only then never always often just even still already again too very here there however thus therefore "
              "perhaps instead else otherwise now yet soon rather quite almost ever later away together once twice",
    "conjunction": "and or but if because although though while whereas unless than so nor whether when where",
}  # fmt: skip
SUFFIXES = (
    ("adverb", "ly"), ("noun", "tion tions sion sions ment ments ness ity ities ism ance ence ances ences ship er ers or ors"),
    ("adjective", "ous ful ive able ible al ic less"), ("verb", "ing ed ize izes ized ify ifies"),
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Word numbers, roles (-1: no class) and topics of a training and a test text, [n] each; `classes` names the roles."""

    words: tuple[str, ...]
    classes: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray, np.ndarray]
    ends: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.words)


def corpus(seed: int, p) -> Corpus:
    """The text of one seed: follows from the seed, the knobs and the environment variable CLAIMLAB_DATA (a text of one's own)."""
    path = os.environ.get("CLAIMLAB_DATA", "")
    if path or p.text == "english":
        return _prose(path, p.vocabulary, seed % 5)
    return _grammatical(seed, p.words, p.tokens, p.ambiguity, p.topic_strength)


@lru_cache(maxsize=16)
def _grammatical(seed: int, count: int, tokens: int, ambiguity: float, strength: float) -> Corpus:
    rng = np.random.default_rng(seed)
    lex = grammar.lexicon(count, ambiguity, rng)
    parts = []
    for length in (tokens, max(tokens // 4, 500)):
        words, roles, themes = grammar.text(lex, length, strength, rng)
        parts.append((words + 2, roles, themes))
    return Corpus(("<pad>", "<unk>", *lex.words), grammar.CLASSES, *parts, frozenset({lex.words.index(".") + 2}))


# ---- prose: tagged afterwards, by rules that the network never sees


def tokens(text: str) -> list[str]:
    """Words in small letters and marks of punctuation."""
    return TOKEN.findall(text.lower())


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, str]:
    return {word: kind for kind, words in CLOSED.items() for word in words.split()}


def tag(token: str) -> str:
    """Class of a word by the list of function words, else by its ending; '' where neither tells."""
    if found := _lexicon().get(token):
        return found
    fits = [(len(end), kind) for kind, ends in SUFFIXES for end in ends.split() if token.endswith(end) and len(token) > len(end) + 2]
    return max(fits)[1] if fits else ""


@lru_cache(maxsize=4)
def _prose(path: str, vocabulary: int, fold: int) -> Corpus:
    """Of each 5,000 tokens one fifth, the one numbered `fold`, is test text. Topic: the file, or the sixth of a single file."""
    files, tags = own(path) if path else ([("help topics", tokens(topics()))], None)
    flat = [word for _, one in files for word in one]
    tags = tags or [tag(word) for word in flat]
    if len(files) > 1:
        theme = np.repeat(np.arange(len(files)), [len(one) for _, one in files])
    else:
        theme = np.arange(len(flat)) * SECTIONS // len(flat)
    held = np.arange(len(flat)) % BLOCK // (BLOCK // 5) == fold
    counts = Counter(word for word, out in zip(flat, held, strict=True) if not out)
    words = ("<pad>", "<unk>", *(w for w, _ in counts.most_common(vocabulary)))
    words += ("<unused>",) * (vocabulary + 2 - len(words))  # networks of all seeds have one size
    known = {w: k for k, w in enumerate(words)}
    numbers = np.array([known.get(w, UNKNOWN) for w in flat])
    often = Counter(kind for kind in tags if kind)
    classes = tuple(sorted(kind for kind, n in often.items() if path or n >= 10 * LEAST_CONTEXTS))
    roles = np.array([classes.index(kind) if kind in classes else -1 for kind in tags])
    parts = [tuple(part[rows] for part in (numbers, roles, theme)) for rows in (~held, held)]
    found = Corpus(words, classes, *parts, frozenset(known[w] for w in ENDS if w in known))
    if path:
        _enough(Path(path).name, found)
    return found


def own(path: str) -> tuple[list[tuple[str, list[str]]], list[str] | None]:
    """(name, tokens) of each .txt of a folder, or of one .txt; and the tags of `tags.tsv` beside them, if there is one.

    tags.tsv holds a line `token<tab>tag` for each token of all files, in the order of their names; an empty tag means no class.
    ValueError names the file, what is wrong with it and what is allowed.
    """
    place = Path(path)
    found = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    if not found:
        raise ValueError(f"{place.name} holds no .txt file; allowed is one .txt or a folder of them, in UTF-8")
    files = [(file.name, tokens(own_text(file, least=0))) for file in found]
    flat = [word for _, one in files for word in one]
    if len(flat) < LEAST_TOKENS:
        raise ValueError(f"{place.name} has {len(flat):,} tokens; at least {LEAST_TOKENS:,} words and marks are needed")
    table = (place if place.is_dir() else place.parent) / "tags.tsv"
    return files, _tags(table, flat) if table.exists() else None


def _tags(table: Path, flat: list[str]) -> list[str]:
    rows = list(csv.reader(own_text(table, least=0, kinds=(1, 10_000)).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    for k, row in enumerate(rows):
        if len(row) != 2:
            raise ValueError(f"{table.name}: line {k + 1} has {len(row)} columns; each has a token, a tab and a tag")
    if len(rows) != len(flat):
        raise ValueError(f"{table.name} has {len(rows):,} lines for {len(flat):,} tokens; there must be one for each token")
    for k, (row, word) in enumerate(zip(rows, flat, strict=True)):
        if row[0].lower() != word:
            raise ValueError(f"{table.name}: line {k + 1} tags {row[0]!r}, and token {k + 1} of the text is {word!r}")
    return [row[1].strip() for row in rows]


def _enough(name: str, found: Corpus) -> None:
    """Refuse a text that has too few classes, or too few new test contexts of one."""
    if len(found.classes) < 2:
        raise ValueError(f"{name}: its words have {len(found.classes)} classes; at least two are needed")
    roles = found.test[1][new_contexts(found)]
    for k, kind in enumerate(found.classes):
        if (n := int((roles == k).sum())) < LEAST_CONTEXTS:
            raise ValueError(f"{name}: the class {kind!r} has {n} test contexts; each class needs at least {LEAST_CONTEXTS}")


# ---- what is trained on, and what is measured on


def shuffled(words: np.ndarray, ends: frozenset[int], rng: np.random.Generator) -> np.ndarray:
    """The text with the words of each sentence in random order; the mark that ends a sentence stays where it is. [n]"""
    stop = np.isin(words, list(ends))
    sentence = np.r_[0, np.cumsum(stop)[:-1]]
    order = np.lexsort((np.where(stop, 2.0, rng.random(len(words))), sentence))
    return words[order]


def before(words: np.ndarray, at: np.ndarray, length: int) -> np.ndarray:
    """The `length` words before each of the places `at` [n]: [n, length], oldest first."""
    return words[at[:, None] + np.arange(-length, 0)]


def new_contexts(c: Corpus) -> np.ndarray:
    """Places of the test text whose nine words before never occur in that order in the training text."""
    def known(words: np.ndarray) -> np.ndarray:
        at = np.arange(LONGEST, len(words))
        return np.ascontiguousarray(before(words, at, WINDOW)).view(f"V{8 * WINDOW}")[:, 0]

    return np.flatnonzero(~np.isin(known(c.test[0]), known(c.train[0]))) + LONGEST


@dataclass(frozen=True)
class Probes:
    """What a seed's networks are asked, the same in every arm. Contexts are [n, context] word numbers, oldest word first."""

    fit: tuple[Tensor, Tensor]  # training contexts and next class, for the linear probe
    judge: tuple[Tensor, Tensor, Tensor]  # new test contexts, next class, last two words and true next word
    contexts: Tensor  # [N, context] all contexts of the balanced draws
    roles: Tensor  # [N] their next class
    draws: Tensor  # [DRAWS, classes * points] rows of `contexts`, class by class
    themes: Tensor  # [topics * points] rows of `contexts`, topic by topic
    topics: Tensor  # [N] topic of the next word's sentence
    ahead: tuple[Tensor, Tensor]  # test contexts and next word, whatever its class


def probes(c: Corpus, context: int, points: int, seed: int) -> Probes:
    """Contexts in true word order: balanced by class (or topic) with `points` each, or as many as the rarest class has."""
    rng = np.random.default_rng([seed, 1])
    new, (words, roles, themes) = new_contexts(c), c.test
    rated = new[roles[new] >= 0]
    fit = np.flatnonzero(c.train[1] >= 0)
    fit = rng.permutation(fit[fit >= LONGEST])[:FITTED]
    judge, ahead = rng.permutation(rated)[:JUDGED], rng.permutation(np.arange(LONGEST, len(words)))[:JUDGED]
    draws = np.stack([_balanced(rated, roles[rated], points, rng) for _ in range(DRAWS)])
    topical = _balanced(rated, themes[rated], points, rng, most=SECTIONS)
    places, rows = np.unique(np.r_[draws.ravel(), topical], return_inverse=True)
    rows = torch.from_numpy(rows)
    take = lambda text, at: torch.from_numpy(before(text, at, context))  # noqa: E731
    number = lambda values: torch.from_numpy(values)  # noqa: E731
    return Probes(
        (take(c.train[0], fit), number(c.train[1][fit])),
        (take(words, judge), number(roles[judge]), number(before(words, judge + 1, 3))),
        take(words, places), number(roles[places]), rows[: draws.size].view(draws.shape), rows[draws.size :],
        number(themes[places]), (take(words, ahead), number(words[ahead])),
    )  # fmt: skip


def _balanced(places: np.ndarray, labels: np.ndarray, points: int, rng: np.random.Generator, most: int = 0) -> np.ndarray:
    """Equally many places of each label, label by label; of the `most` frequent labels where that is given."""
    kinds, counts = np.unique(labels, return_counts=True)
    if most:
        kinds, counts = (part[np.sort(np.argsort(-counts, kind="stable")[:most])] for part in (kinds, counts))
    each = min(points, int(counts.min()))
    return np.concatenate([rng.choice(places[labels == k], each, replace=False) for k in kinds])
