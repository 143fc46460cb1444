"""Next-word prediction and word classes: a network that only guesses the next word, and the classes its layers sort by.

Does it sort its inner states by noun, verb, adjective, though nobody told it that such classes exist?
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.text import _word_class_emergence_data as data
from claimlab.studies.text import _word_class_emergence_method as method
from claimlab.studies.text._word_class_emergence_method import KneserNey, Reader, gdv
from claimlab.study import Control, Paper, beside
from claimlab.training import Stepwise, Task, Tick

PAPER = Paper(
    title="Word class representations spontaneously emerge in a deep neural network trained on next word prediction",
    authors="Surendra, Schilling, Stoewer, Maier, Krauss", year=2023, url="https://arxiv.org/abs/2302.07588",
    theme="representations", system="next-word network with GDV analysis",
    question="Does a network that only guesses the next word sort its inner states by noun, verb, adjective, though nobody told it "
    "that such classes exist?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    context: int = knob(9, "how many words the network sees before it guesses", low=1, high=15, unit="words")
    ambiguity: float = knob(0.15, "share of words that belong to two classes: then the word alone does not tell the class", low=0.0,
                            high=0.6, unit="fraction")  # fmt: skip
    topic_strength: float = knob(0.5, "how strongly sentences stick to a topic: a rival way to cluster", low=0.0, high=1.0)
    layers: int = knob(3, "hidden layers", low=1, high=6)
    lr: float = knob(0.003, "learning rate at the start; it falls to 0 along half a cosine", low=0.0001, high=0.01, live=True)
    body: str = knob("mlp", "feed-forward or recurrent body", choices=("mlp", "lstm"))
    text: str = knob("grammar", "a text of the grammar with known classes, or Python's help topics tagged by rules",
                     choices=("grammar", "english"))  # fmt: skip
    words: int = knob(400, "words of the grammar", low=60, high=2000)
    tokens: int = knob(150000, "length of the grammar's training text; the test text is a quarter of it", low=2000, high=500000)
    vocabulary: int = knob(3000, "most frequent words of an English text that are kept; the rest become <unk>", low=100, high=10000)
    points: int = knob(100, "test contexts a class in the score, or as many as the rarest class has", low=10, high=400)
    steps: int = knob(1200, "optimiser steps", low=0, high=20000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(words=100, tokens=4000, points=30, steps=40, seeds=2)
    FULL = dict(text="english", body="lstm", steps=3000)
    CONTROL = Control(
        set=dict(ambiguity=0.0, topic_strength=0.0), vanishes=("more-than-last-word",),
        why="Where every word has one class and no topic runs through the text, the last word says nearly all there is to know about "
        "the next class.",
    )  # fmt: skip


CLAIMS = (
    Claim("classes-emerge", "In the last hidden layer, nine-word contexts cluster by the class of the tenth word more than in the "
          "untrained network (GDV is more negative).", kind="paired", metric="gdv_next_class", arm="trained", baseline="untrained",
          better="lower", margin=0.03, source="abstract; GDV figures"),
    Claim("needs-word-order", "The clustering comes from order: a network trained on the same sentences with shuffled words clusters "
          "less.", kind="paired", metric="gdv_next_class", arm="trained", baseline="shuffled_words", better="lower", margin=0.03,
          source="control implied by the argument"),
    Claim("deeper-is-cleaner", "GDV falls from layer to layer (slope of GDV over layer index is negative).", kind="rate",
          metric="gdv_slope_over_layers", arm="trained", better="lower", margin=-0.01, source="layer-wise GDV figure"),
    Claim("more-than-last-word", "Nine words of context give better separated classes than the last word alone.", kind="paired",
          metric="next_class_probe_accuracy", arm="trained", baseline="one_word_context", better="higher", margin=0.02,
          source="nine-word input design"),
)  # fmt: skip
HONESTY = (
    "A grammar written by hand contains word classes, so emergence here means recovery of known structure from co-occurrence; the "
    "step to children or brains is an analogy that no run can test. Real-text scores depend on a rule tagger, and the paper's German "
    "and English novels are not shipped."
)


# ---- a seed's text and questions, shared by its arms


def prepared(seed: int, p: Params) -> tuple[data.Corpus, data.Probes]:
    """The text of a seed and the contexts that its networks are measured on."""
    return _prepared(seed, p, os.environ.get("CLAIMLAB_DATA", ""))


@lru_cache(maxsize=16)
def _prepared(seed: int, p: Params, path: str) -> tuple[data.Corpus, data.Probes]:
    text = data.corpus(seed, p)
    return text, data.probes(text, p.context, p.points, seed)


# ---- the arms


class Trained(Task):
    """Softmax cross-entropy of the next word. Classes enter nowhere but in the measurements.

    All arms of a seed begin with the same weights and see the same places of the training text.
    """

    ahead, batch_size = 20, 128
    visible = 0  # last words that are seen; 0: all
    lr = property(lambda self: self.p.lr)
    every = property(lambda self: max(20, self.steps // 12))
    vectorize = property(lambda self: self.p.body == "mlp")

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed, (bound.corpus, bound.probes) = seed, prepared(seed, self.p)
        bound.stream = torch.from_numpy(self.reading(bound.corpus, seed))
        first = bound.probes.draws[0]
        both, back = torch.unique(torch.cat([first, bound.probes.themes]), return_inverse=True)
        bound.glimpse, bound.by_class, bound.by_topic = both, back[: len(first)], back[len(first) :]
        return bound

    def reading(self, corpus, seed) -> np.ndarray:
        """The training text as this arm reads it: word numbers [n]."""
        return corpus.train[0]

    def vectors(self) -> torch.Tensor | None:
        """Fixed word vectors [V, 48], or None for vectors that are learned."""
        return None

    def init(self):
        q, many = self.probes, len(self.corpus.classes) * self.p.points
        first = q.draws[0].repeat(-(-many // len(q.draws[0])))[:many]  # of one size in all members: some twice, where a class is rare
        looked = q.contexts[first], q.roles[first], q.topics[first]
        return Reader(self.corpus.size, self.p.context, self.p.layers, self.p.body, self.visible, self.vectors(), looked,
                      self.corpus.classes)  # fmt: skip

    def block(self, net, rng, step, n):
        at = torch.randint(data.LONGEST, len(self.stream), (n, self.batch_size), generator=rng).to(self.stream.device)
        seen = self.stream[at[..., None] + torch.arange(-self.p.context, 1, device=at.device)]
        return seen[..., :-1], seen[..., -1]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, context, word):
        return cross_entropy(net(context), word)

    def schedule(self, step, steps):
        """Half a cosine from 1 to 0, so that the last steps settle."""
        return (1 + math.cos(math.pi * step / max(steps, 1))) / 2

    def metrics(self, net):
        """GDV of each layer by next class and, in the last, by topic, on one balanced draw; perplexity on the test text."""
        q, at = self.probes, self.glimpse
        device = self.stream.device
        layers = [layer.cpu() for layer in net.layers(q.contexts[at].to(device))]
        found = {f"gdv_layer_{k}": gdv(x[self.by_class], q.roles[at][self.by_class]) for k, x in enumerate(layers)}
        found["gdv_next_class"] = found[f"gdv_layer_{len(layers) - 1}"]
        found["gdv_topic"] = gdv(layers[-1][self.by_topic], q.topics[at][self.by_topic])
        context, word = (part.to(device) for part in q.ahead)
        return found | {"perplexity": cross_entropy(net(context), word).exp()}

    def final(self, net):
        """GDV as the mean of five draws, its slope over layers, and the companion scores of the last layer."""
        q, device = self.probes, self.stream.device
        layers = [layer.cpu() for layer in net.layers(q.contexts.to(device))]
        scores = [float(np.mean([gdv(x[rows], q.roles[rows]) for rows in q.draws])) for x in layers]
        fit, judge = (net.layers(part[0].to(device))[-1].cpu().numpy() for part in (q.fit, q.judge))
        known, true = q.fit[1].numpy(), q.judge[1].numpy()
        first = q.draws[0]
        return {f"gdv_layer_{k}": score for k, score in enumerate(scores)} | {
            "gdv_next_class": scores[-1], "gdv_slope_over_layers": method.slope(scores),
            "next_class_probe_accuracy": (method.probe(fit, known, judge) == true).mean(),
            "next_class_centroid_accuracy": (method.centroids(fit, known, judge) == true).mean(),
            "rand_index": method.agreement(layers[-1][first].numpy(), q.roles[first].numpy(), self.seed),
        }  # fmt: skip


class Untrained(Trained):
    """The same network at initialisation, asked the same: random features of the input carry some class information, too."""

    steps = 0


class ShuffledWords(Trained):
    """Reads sentences with their words in random order; measured in the true order, as all arms are."""

    def reading(self, corpus, seed):
        return data.shuffled(corpus.train[0], corpus.ends, np.random.default_rng([seed, 2]))


class OneWordContext(Trained):
    visible = 1


class PretrainedVectors(Trained):
    """Word vectors from counts of neighbours in the training text stand fixed where the others learn theirs."""

    def vectors(self):
        return torch.from_numpy(_counted(self.seed, self.p, os.environ.get("CLAIMLAB_DATA", "")))


@lru_cache(maxsize=16)
def _counted(seed: int, p: Params, path: str) -> np.ndarray:
    text = _prepared(seed, p, path)[0]
    return method.ppmi_vectors(text.train[0], text.size, 48)


class Trigram(Stepwise):
    """Kneser-Ney trigrams tell a class: sum_w P(w | two words) P(class | w), with the classes that each word has in training."""

    total = 1

    def __init__(self, p: Params, seeds):
        self.p, self.seeds, self.step, self.seconds = p, list(seeds), 0, 0.0

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": self.seconds}

    def stepwise(self):
        if self.step:
            return
        began, found = time.perf_counter(), []
        for seed in self.seeds:
            found.append(self.judge(*prepared(seed, self.p)))
            yield None
        self.step, self.seconds = 1, time.perf_counter() - began
        yield Tick(1, found)

    def judge(self, text: data.Corpus, q: data.Probes) -> dict[str, float]:
        """Accuracy on next class, and perplexity on the same places (next words that have a class)."""
        words, roles, _ = text.train
        rated = roles >= 0
        tally = np.zeros((text.size, len(text.classes)))
        np.add.at(tally, (words[rated], roles[rated]), 1)
        share = tally / np.maximum(tally.sum(1, keepdims=True), 1)
        last, true = q.judge[2].numpy(), q.judge[1].numpy()
        chance = KneserNey(words, text.size)(last[:, :2])
        surprise = -np.log(chance[np.arange(len(last)), last[:, 2]]).mean()
        return {"next_class_probe_accuracy": float(((chance @ share).argmax(1) == true).mean()),
                "perplexity_rated": math.exp(surprise)}  # fmt: skip

    def state(self) -> dict[str, float]:
        return {"step": self.step, "seconds": self.seconds}

    def load(self, state: dict[str, float]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


ARMS = {
    "trained": Trained, "untrained": Untrained, "shuffled_words": ShuffledWords, "one_word_context": OneWordContext,
    "pretrained_vectors": PretrainedVectors, "trigram": Trigram,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "contexts on two principal components of each layer": beside(__name__, "contexts_view"),
    "GDV of every layer": beside(__name__, "gdv_view"),
}
