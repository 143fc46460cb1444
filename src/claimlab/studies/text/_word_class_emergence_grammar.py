"""A stochastic grammar with eight word classes: a text in which the class of every word is known, because a rule put it there.

Every rule is right-linear, and case endings tell subject from object. So the state of the grammar is a first-order Markov chain,
and where each word has one class the last word says all that the past can say about the next class.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass

import numpy as np

CLASSES = ("noun", "verb", "adjective", "adverb", "determiner", "pronoun", "preposition", "name")
THEMES, STAY = 6, 0.8  # topics; chance that the next sentence keeps the topic
# slot: (class, words of 400, whether its words have a topic). Auxiliaries count as verbs; `that` and the full stop have no class.
SLOTS = {
    "det": ("determiner", 10, False), "adj": ("adjective", 60, True), "noun_sg": ("noun", 40, True), "noun_pl": ("noun", 40, True),
    "noun_obl": ("noun", 40, True), "name": ("name", 20, True), "name_obl": ("name", 20, True), "pron_sg": ("pronoun", 4, False),
    "pron_pl": ("pronoun", 4, False), "pron_obl": ("pronoun", 4, False), "verb_sg": ("verb", 50, True), "verb_pl": ("verb", 50, True),
    "aux_sg": ("verb", 4, False), "aux_pl": ("verb", 4, False), "adv": ("adverb", 33, True), "prep": ("preposition", 15, False),
    "that": ("", 1, False), ".": ("", 1, False),
}  # fmt: skip
# the second class of an ambiguous word, as in `walk`, `fast`, `this`, `can`
SECOND = {"noun": "verb", "verb": "noun", "adjective": "noun", "adverb": "adjective", "determiner": "pronoun",
          "pronoun": "determiner", "preposition": "adverb", "name": "noun"}  # fmt: skip
SUBJECT = {"det.s": 0.5, "pron_sg": 0.125, "pron_pl": 0.125, "name": 0.25}
OBJECT = {"det.o": 0.6, "pron_obl": 0.2, "name_obl": 0.2}
AFTER_VERB = {k: 0.5 * v for k, v in OBJECT.items()} | {"that": 0.1, "adv": 0.15, "prep": 0.1, ".": 0.15}
CLOSING = {"prep": 0.35, ".": 0.65}
SINGULAR, PLURAL = {"verb_sg": 0.7, "aux_sg": 0.3}, {"verb_pl": 0.7, "aux_pl": 0.3}
# state: chances of the next one. S -> NP VP (PP); NP -> Det (Adj) N | Pron | Name; VP -> (Aux) V (NP | that S | Adv | PP); verbs
# agree with their subject. A state is a slot, and for determiner and adjective also whether a subject or an object follows.
RULES = {
    ".": SUBJECT, "that": SUBJECT,
    "det.s": {"adj.s": 0.35, "noun_sg": 0.325, "noun_pl": 0.325}, "adj.s": {"noun_sg": 0.5, "noun_pl": 0.5},
    "noun_sg": SINGULAR, "name": SINGULAR, "pron_sg": SINGULAR, "noun_pl": PLURAL, "pron_pl": PLURAL,
    "aux_sg": {"verb_pl": 1.0}, "aux_pl": {"verb_pl": 1.0}, "verb_sg": AFTER_VERB, "verb_pl": AFTER_VERB,
    "det.o": {"adj.o": 0.35, "noun_obl": 0.65}, "adj.o": {"noun_obl": 1.0},
    "noun_obl": CLOSING, "name_obl": CLOSING, "pron_obl": CLOSING, "adv": CLOSING, "prep": OBJECT,
}  # fmt: skip
STATES = tuple(RULES)


def transitions() -> np.ndarray:
    """The chain's matrix [states, states]; rows sum to 1."""
    return np.array([[RULES[a].get(b, 0.0) for b in STATES] for a in STATES])


def slot(state: str) -> str:
    """The word list that a state draws from."""
    return state.split(".")[0] or "."


def role(state: str) -> int:
    """Index of the class of a state's words; -1 for `that` and the full stop."""
    name = SLOTS[slot(state)][0]
    return CLASSES.index(name) if name else -1


@dataclass(frozen=True)
class Lexicon:
    """Words, the ranked list of word numbers of each slot, and each word's topic (-1: none)."""

    words: tuple[str, ...]
    lists: dict[str, np.ndarray]
    topic: np.ndarray


def lexicon(count: int, ambiguity: float, rng: np.random.Generator) -> Lexicon:
    """About `count` words, the share `ambiguity` of them also listed, at the same relative rank, in a slot of a second class.

    Frequent words have more meanings, about as the root of their frequency (Zipf 1945), and are chosen with such weights.
    """
    words, lists, topic, rank = [], {}, [], []
    for name, (_, size, themed) in SLOTS.items():
        size = 1 if size == 1 else max(2, round(size * count / 400))
        lists[name] = [len(words) + k for k in range(size)]
        words += [name if size == 1 else f"{name}{k + 1}" for k in range(size)]
        topic += rng.integers(THEMES, size=size).tolist() if themed else [-1] * size
        rank += [(k / size, (k + 1) ** -0.5) for k in range(size)]
    home = {w: SLOTS[name][0] for name, held in lists.items() for w in held}
    usable = np.array([w for w in home if home[w]])
    weight = np.array([rank[w][1] for w in usable])
    chosen = rng.choice(usable, round(ambiguity * len(words)), replace=False, p=weight / weight.sum())
    extra: dict[str, list[tuple[float, int]]] = {name: [] for name in SLOTS}
    for w in chosen.tolist():
        second = [name for name, (kind, _, _) in SLOTS.items() if kind == SECOND[home[w]] and not name.startswith("aux")]
        extra[second[rng.integers(len(second))]].append((rank[w][0], w))
    for name, held in lists.items():
        lists[name] = [w for _, w in sorted([(rank[w][0], w) for w in held] + extra[name])]
    return Lexicon(tuple(words), {name: np.array(held) for name, held in lists.items()}, np.array(topic))


def chain(length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` states of the chain, beginning after a full stop. [length]"""
    ladder = [row.tolist() for row in transitions().cumsum(1)]
    state, found, last = STATES.index("."), np.empty(length, dtype=np.int64), len(STATES) - 1
    for k, u in enumerate(rng.random(length).tolist()):
        state = found[k] = min(bisect(ladder[state], u), last)
    return found


def text(lex: Lexicon, length: int, strength: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Word numbers, roles (-1: no class) and topics of `length` tokens, [length] each.

    Within a slot the word of rank r has weight 1/r (Zipf). With chance `strength` a word that can have a topic is drawn from those
    of its slot that share the topic of the sentence.
    """
    states = chain(length, rng)
    sentence = np.r_[0, np.cumsum(states == STATES.index("."))[:-1]]
    themes = rng.integers(THEMES, size=sentence[-1] + 1)
    for k in np.flatnonzero(rng.random(len(themes)) < STAY):
        themes[k] = themes[k - 1] if k else themes[k]
    topic, sticks = themes[sentence], rng.random(length) < strength
    words = np.empty(length, dtype=np.int64)
    for number, state in enumerate(STATES):
        name = slot(state)
        held, here = lex.lists[name], states == number
        weight = 1 / np.arange(1, len(held) + 1)
        for theme in range(-1, THEMES):
            fits = (lex.topic[held] == theme) if theme >= 0 else np.ones(len(held), bool)
            bound = sticks & (topic == theme) if theme >= 0 else ~sticks
            if theme >= 0 and not (SLOTS[name][2] and fits.any()):
                fits = np.ones(len(held), bool)
            rows = np.flatnonzero(here & bound)
            p = np.where(fits, weight, 0.0)
            words[rows] = rng.choice(held, size=len(rows), p=p / p.sum())
    return words, np.array([role(s) for s in STATES])[states], topic


def best_accuracy() -> float:
    """Accuracy on the next word's class of a reader who knows the grammar and the last state, over next words that have a class.

    The known optimum where no word is ambiguous: sum_s pi_s max_c P(c | s) / sum_s pi_s sum_c P(c | s).
    """
    step = transitions()
    stay = np.linalg.matrix_power(step, 200)[0]
    shares = np.stack([step[:, [role(s) == c for s in STATES]].sum(1) for c in range(len(CLASSES))], 1)
    return float(stay @ shares.max(1) / (stay @ shares.sum(1)))
