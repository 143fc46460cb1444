"""The text variant of the study sobol-attribution: which words of a sentence cause the variance of a text classifier?"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.parts.faithfulness import area
from claimlab.studies.attribution import _sobol_attribution_method as method
from claimlab.training import Supervised

WORDS, TOPICS, WIDTH, EXPLAINED = 24, 8, 16, 40


@lru_cache(maxsize=1)
def passages() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Python's own help pages in passages of 24 words: word numbers [N, 24] (0 is any rare word), page [N], the words."""
    from pydoc_data.topics import topics

    longest = sorted(topics, key=lambda name: len(topics[name]), reverse=True)
    pages: list[list[str]] = []
    for name in longest:  # some pages are another page's chapter: take those that share little with the ones before
        words = re.findall(r"[a-z]{2,}", topics[name].lower())
        known = {" ".join(page[k : k + 8]) for page in pages for k in range(len(page))}
        if sum(" ".join(words[k : k + 8]) in known for k in range(0, len(words), 8)) < 0.05 * len(words) / 8:
            pages.append(words)
        if len(pages) == TOPICS:
            break
    counts: dict[str, int] = {}
    for word in (w for page in pages for w in page):
        counts[word] = counts.get(word, 0) + 1
    vocabulary = ["(rare)", *sorted(w for w, c in counts.items() if c >= 3)]
    number = {w: k for k, w in enumerate(vocabulary)}
    x, y = [], []
    for label, page in enumerate(pages):
        cut = [page[k : k + WORDS] for k in range(0, len(page) - WORDS + 1, WORDS)]
        x += [[number.get(w, 0) for w in one] for one in cut]
        y += [label] * len(cut)
    return np.array(x), np.array(y), vocabulary


class Bag(nn.Module):
    """Mean of the words' vectors, each times its mask in [0, 1]; a hidden layer; the page. [B, W] and [B, W] -> [B, pages]"""

    def __init__(self, words: int, pages: int):
        super().__init__()
        self.vectors = nn.Embedding(words, WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, pages))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found = self.vectors(x)
        return self.head((found if mask is None else found * mask[..., None]).mean(-2))


class Text(Supervised):
    """A bag of word vectors that tells Python's help pages apart; words are explained as cells of an image are."""

    lr = 1e-2
    weight_decay = 0.0

    @staticmethod
    def when(params) -> bool:
        return params.text

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed = seed
        x, y, _ = passages()
        train, test = data.stratified(y, round(0.8 * len(y)), np.random.default_rng(seed))
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        bound.x, bound.y, bound.test = x[train], y[train], (x[test], y[test])
        return bound

    def init(self):
        return Bag(len(passages()[2]), TOPICS)

    def metrics(self, net):
        x, y = self.test
        return {"test_accuracy": (net(x).argmax(1) == y).float().mean()}

    def final(self, net):
        """Area under the probability of the page while words go, ordered by three ways to rank them."""
        x, y = self.test
        p = net(x).softmax(1).gather(1, y[:, None])[:, 0]
        kept = torch.argsort(torch.where(p > 0.5, 1.0, p), descending=True, stable=True)[:EXPLAINED]
        x, y = x[kept], y[kept]
        rng = np.random.default_rng([self.seed, 7])
        maps = {"sobol": self.total(net, x, y, rng), "leave_one_out": self.left_out(net, x, y)}
        maps["random_order"] = torch.from_numpy(rng.random(x.shape)).to(x.device)
        return {f"text_deletion_{name}": deletion(net, x, y, one) for name, one in maps.items()}

    def total(self, net, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Total indices of the words of each passage. [n, W]"""
        drawn = method.design(self.p.designs, WORDS, self.p.sampler, rng)
        f = asked(net, x, y, drawn.rows().to(x.device), self.p.score)
        return method.total_index(method.answers(f, self.p.designs), self.p.estimator)

    def left_out(self, net, x: Tensor, y: Tensor) -> Tensor:
        """What the score loses without each word. [n, W]"""
        whole = torch.ones(1, WORDS, device=x.device)
        return asked(net, x, y, whole, self.p.score) - asked(net, x, y, 1 - torch.eye(WORDS, device=x.device), self.p.score)


def asked(net, x: Tensor, y: Tensor, masks: Tensor, kind: str) -> Tensor:
    """The score of the page y [n] for every passage [n, W] under every mask [K, W]. [n, K]"""
    out = torch.stack([net(one.expand(len(masks), -1), masks) for one in x])
    out = out.softmax(2) if kind == "probability" else out
    return out.gather(2, y[:, None, None].expand(-1, len(masks), 1))[..., 0]


def deletion(net, x: Tensor, y: Tensor, maps: Tensor) -> float:
    """Mean area under the probability of y [n] while the words of x [n, W] go, the largest of `maps` [n, W] first."""
    rank = maps.argsort(1, descending=True).argsort(1)  # 0 goes first
    left = torch.stack([(rank >= k).float() for k in range(WORDS + 1)], dim=1)  # [n, W + 1, W]
    p = net(x[:, None].expand(-1, WORDS + 1, -1), left).softmax(2)
    return float(area(p.gather(2, y[:, None, None].expand(-1, WORDS + 1, 1))[..., 0]).mean())
