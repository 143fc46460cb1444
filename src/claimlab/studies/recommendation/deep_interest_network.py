"""Deep Interest Network: should the summary of what you clicked before depend on the ad that is to be shown next?"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts import validated
from claimlab.parts.ranking import auc
from claimlab.studies.recommendation._deep_interest_network_shop import Part, Shop, gauc, own, simulated
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="Deep Interest Network for Click-Through Rate Prediction",
    authors="Zhou, Song, Zhu, Fan, Zhu, Ma, Yan, Jin, Li, Gai", year=2017, url="https://arxiv.org/abs/1706.06978",
    theme="representations", system="DIN",
    question="Should the summary of what you clicked before depend on the ad that is to be shown next?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    interests: int = knob(3, "interest groups a user has; with one, pooling loses nothing", low=1, high=8)
    embed_dim: int = knob(8, "width of the fixed-length bottleneck", low=2, high=32)
    lam: float = knob(0.1, "strength of the mini-batch aware regulariser", low=0.0, high=10.0, live=True)
    history: int = knob(20, "length of the behaviour history", low=5, high=50, unit="clicks")
    normalise: str = knob("none", "keep or remove the strength of the interest; constant weights are plain sum pooling",
                          choices=("none", "softmax", "constant"))  # fmt: skip
    zipf: float = knob(1.1, "how uneven item popularity is: steeper means rarer ids and more overfitting", low=0.5, high=2.0)
    items: int = knob(2000, "items of the simulated shop, in 60 categories", low=200, high=20000)
    users: int = knob(3000, "users of the simulated shop; 20 candidates of each are for training", low=60, high=20000)
    steps: int = knob(600, "optimiser steps of 256 impressions", low=20, high=6000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(items=200, users=100, steps=20, seeds=2)
    FULL = dict(items=8000, users=8000, history=30, steps=1500, seeds=10)
    CONTROL = Control(
        set=dict(interests=1), vanishes=("local-activation-wins", "beats-counting"),
        why="With one interest the whole history points the same way and a fixed pool loses nothing.",
    )  # fmt: skip


CLAIMS = (
    Claim("local-activation-wins", "DIN ranks ads better for each user than a model that pools the whole history into one fixed "
          "vector.", kind="paired", metric="test_gauc", arm="din", baseline="base_pool", better="higher", margin=0.005,
          source="Tables on Amazon, MovieLens, Alibaba"),
    Claim("beats-counting", "DIN also beats a wide-and-deep model that is given the hand-made count of past clicks in the "
          "candidate's category.", kind="paired", metric="test_gauc", arm="din", baseline="wide_count", better="higher",
          margin=0.003, source="comparison with Wide&Deep"),
    Claim("more-interests-more-gain", "The advantage over fixed pooling grows with the number of interests a user has (slope of "
          "gain over interests).", kind="rate", metric="gain_slope_over_interests", arm="din", better="higher", margin=0.0,
          source="diversity argument, section on DIN"),
    Claim("regulariser-stops-overfitting", "With sparse fine-grained item ids, mini-batch aware regularisation gives a higher "
          "final GAUC than none.", kind="paired", metric="final_test_gauc", arm="din", baseline="din_noreg", better="higher",
          margin=0.005, source="overfitting figure, regularisation table"),
    Claim("attention-finds-cause", "Activation weights separate the past clicks that share an interest with the candidate from "
          "the rest.", kind="bound", metric="attention_auc", arm="din", better="higher", margin=0.75,
          source="activation visualisation figure"),
)  # fmt: skip
HONESTY = (
    "Two thousand items and a simulator that contains similarity-driven clicks favour the idea; the gain in the shop's revenue "
    "and the behaviour at hundreds of millions of parameters cannot be tested. Only the mechanism and its dependence on "
    "interest diversity are judged."
)


SHOWN = 10  # candidates of one user that a network carries along for its pictures


# ---- the method: B impressions, H past clicks, D = 2 * embed_dim numbers an item; 0 is padding


def dice(s: Tensor, alpha: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-8) -> Tensor:
    """Section 5.3: f(s) = p s + (1 - p) alpha s, p = sigmoid((s - mean) / sqrt(var + eps)); s [..., C], the rest [C]."""
    scale = (var + eps).rsqrt()
    return s * torch.addcmul(alpha, 1 - alpha, torch.sigmoid(torch.addcmul(-mean * scale, s, scale)))


def prelu(s: Tensor, alpha: Tensor) -> Tensor:
    """s where it is positive, alpha s elsewhere."""
    return torch.addcmul(alpha * s, 1 - alpha, s.relu())


def moments(s: Tensor, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of the minibatch s [..., C]; only where `there` [...] is 1, so that padding has no say."""
    s = s.flatten(0, -2)
    weight = torch.ones_like(s[:, 0]) if there is None else there.flatten()
    weight = weight / weight.sum()
    mean = weight @ s
    return mean, (weight @ s.square() - mean.square()).clamp_min(0)


def shrinkage(table: Tensor, ids: Tensor, count: Tensor, least: float = 1.0) -> Tensor:
    """Half of sum_j (alpha_mj / n_j) |w_j|^2, section 5.2: its gradient is alpha_mj w_j / n_j, and 0 for rows not in the batch.

    table [J, d], ids [...] of the minibatch, count [J] training impressions that hold the row (infinite for padding). A smaller
    count is taken as `least`: with least = rate * lambda no step carries a row past zero.
    """
    seen = torch.zeros_like(count).scatter(0, ids.flatten(), torch.ones_like(count[0]).expand(ids.numel()))
    return 0.5 * ((seen / count.clamp_min(least))[:, None] * table.square()).sum()


class Ranker(nn.Module):
    """Embeddings, a history pooled with or without an activation unit, and a perceptron 200-80-2. Without the unit the first
    layer is wider, so that there are as many parameters. `unit`: None (weights 1), "none" or "softmax"; `act`: dice or prelu.

    The running averages of Dice are parameters whose gradient is (average - value of this minibatch): a step of SGD with rate r
    is then the usual average that forgets with 1 - r. Buffers: facts of the shop, the best parameters so far, a trace.
    """

    def __init__(self, shop: Shop, size: int, unit: str | None, act: str, wide: bool, ticks: int):
        super().__init__()
        d = 2 * size
        extra = 0 if unit else round((36 * (4 * d + 3) + 1) / (2 * d + 82))  # the unit has as many parameters as these columns
        self.unit, self.act = unit, act
        self.item = nn.Parameter(0.1 * torch.randn(len(shop.item_count), size))
        self.category = nn.Parameter(0.1 * torch.randn(len(shop.category_count), size))
        widths = {"first": 200 + extra, "second": 80, "unit": 36}
        self.first, self.second, self.out = nn.Linear(2 * d, 200 + extra), nn.Linear(200 + extra, 80), nn.Linear(80, 2)
        self.wide = nn.Linear(2, 2, bias=False) if wide else None
        if wide:
            nn.init.zeros_(self.wide.weight)  # no opinion about the two counts at the start
        if unit:
            self.parts = nn.ModuleList(nn.Linear(d, 36, bias=k == 0) for k in range(4))  # of e_j, e_j - v, e_j v, v
            for part in self.parts:
                nn.init.uniform_(part.weight, -((4 * d) ** -0.5), (4 * d) ** -0.5)  # one layer on 4 D numbers, in four pieces
            self.last = nn.Linear(36, 1)
        used = [name for name in widths if unit or name != "unit"]
        self.alpha = nn.ParameterDict({name: torch.full((widths[name],), 0.25) for name in used})
        self.running = nn.ParameterDict({"loss": torch.full((1,), 0.6931)})
        if act == "dice":
            for name in used:
                self.running[name] = torch.stack([torch.zeros(widths[name]), torch.ones(widths[name])])
        for name in ("category", "group", "item_count", "category_count"):
            self.register_buffer("shop_" + name, getattr(shop, name))
        self.register_buffer("rival", torch.full((10,), torch.nan))  # GAUC of base_pool by number of interests
        self.register_buffer("trace", torch.full((ticks, 11), torch.nan))  # step, GAUC, loss, mean and variance of 4 channels
        shown = shop.test.users[shop.test.many.argmax(), :SHOWN]  # one user with the most interests, for pictures
        shown = torch.nn.functional.pad(shown, (0, SHOWN - len(shown)), value=-1)
        self.register_buffer("demo", torch.cat([shop.histories[shop.test.row[shown[0]]], shop.test.candidate[shown] * (shown >= 0)]))
        validated.track(self)

    def activate(self, name: str, s: Tensor, seen: dict, there: Tensor | None = None) -> Tensor:
        """Dice with the moments of the minibatch in training (noted in `seen`) and running ones at test; or PReLU."""
        if self.act == "prelu":
            return prelu(s, self.alpha[name])
        mean, var = moments(s, there) if self.training else self.running[name].unbind(0)
        seen[name] = torch.stack([mean, var]).detach()
        return dice(s, self.alpha[name], mean, var)

    def embed(self, history: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """e = [item ; category] of past clicks [B, H, D] and candidates [B, D], from the tables that both share."""
        table = torch.cat([self.item, nn.functional.embedding(self.shop_category, self.category)], 1)
        e = nn.functional.embedding(torch.cat([history, candidate.unsqueeze(-1)], -1), table)
        return e[:, :-1], e[:, -1]

    def weights(self, history: Tensor, candidate: Tensor, seen: dict | None = None) -> Tensor:
        """a(e_j, v_A) [B, H] of past clicks [B, H] for candidates [B]; exactly 0 at padding."""
        return self.activation(*self.embed(history, candidate), (history > 0).to(self.item.dtype), {} if seen is None else seen)

    def activation(self, e: Tensor, v: Tensor, there: Tensor, seen: dict) -> Tensor:
        """MLP([e ; e - v ; e v ; v]) of e [B, H, D], v [B, D]: the first layer is summed from its four pieces, which spares the
        concatenation: W1 e + W2 (e - v) + W3 (e v) + W4 v = (W1 + W2) e + W3 (e v) + (W4 - W2) v."""
        if self.unit is None:
            return there
        one, minus, times, single = (part.weight for part in self.parts)
        about = v @ (single - minus).T + self.parts[0].bias
        s = torch.cat([e, e * v.unsqueeze(-2)], -1) @ torch.cat([one + minus, times], 1).T + about.unsqueeze(-2)
        a = self.last(self.activate("unit", s, seen, there)).squeeze(-1)
        if self.unit == "softmax":
            return a.masked_fill(there == 0, -torch.inf).softmax(-1)
        return a * there

    def forward(self, history: Tensor, candidate: Tensor, wide: Tensor, seen: dict | None = None) -> Tensor:
        """Logits [B, 2] for not clicking and clicking; history [B, H], candidate [B], wide [B, 2]."""
        seen = {} if seen is None else seen
        e, v = self.embed(history, candidate)
        a = self.activation(e, v, (history > 0).to(e.dtype), seen)
        pooled = (a.unsqueeze(-2) @ e).squeeze(-2)  # v_U(A) = sum_j a(e_j, v_A) e_j
        h = self.activate("first", self.first(torch.cat([pooled, v], -1)), seen)
        h = self.out(self.activate("second", self.second(h), seen))
        return h if self.wide is None else h + self.wide(wide)


class SgdAndAdam(torch.optim.Adam):
    """Adam, but plain SGD for groups with rule = "sgd": inside Adam the shrinkage of the embeddings would be normalised away."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group.get("rule") == "sgd":
                for one in group["params"]:
                    if one.grad is not None:
                        one.sub_(group["lr"] * one.grad)
                        one.grad = None
        return super().step(closure)


# ---- what is asked of a ranker


def best(net: Ranker) -> Ranker:
    """A copy in eval mode with the parameters of the best validation GAUC."""
    return validated.best(net).eval()


@torch.no_grad()
def scores(net: Ranker, shop: Shop, part: Part, count: int | None = None, chunk: int = 256) -> Tensor:
    """Log odds of a click [N] for the first `count` impressions of a part, in pieces that stay in a processor's cache."""
    rows = torch.arange(len(part.y) if count is None else min(count, len(part.y)))
    found = [net(shop.histories[part.row[r]], part.candidate[r], part.wide[r]) for r in rows.split(chunk)]
    return torch.cat([f[:, 1] - f[:, 0] for f in found])


def by_interests(part: Part, score: Tensor) -> Tensor:
    """GAUC [10] of users with 0, 1, ... 9 interests; NaN where there is none with both labels."""
    return torch.stack([gauc(part.y, score, part.users[part.many == k]) for k in range(10)])


@torch.no_grad()
def attention_aucs(net: Ranker, shop: Shop, part: Part, count: int = 600) -> float:
    """Mean over impressions of the ROC AUC of activation weights against `same interest group as the candidate`.

    The first `count` impressions, those whose candidate's group occurs in the history, but not everywhere.
    """
    history, candidate = shop.histories[part.row[:count]], part.candidate[:count]
    weight, there = net.weights(history, candidate), history > 0
    same = (shop.group[history] == shop.group[candidate][:, None]) & there
    mixed = (same.sum(1) > 0) & (same.sum(1) < there.sum(1))
    rows = zip(*(each[mixed].numpy() for each in (same, weight, there)), strict=True)
    found = [auc(s[t], w[t]) for s, w, t in rows]
    return float(np.mean(found)) if found else float("nan")


# ---- the arms


class Click(Task):
    """Cross-entropy on minibatches of a shuffled pass through the training impressions; all arms see the same ones.

    The rate of the embeddings was tuned once, for all arms together (see the notebook).
    """

    lr, batch_size, ahead, rate = 2e-3, 256, 25, 10.0
    unit: str | None = "none"
    act, wide, regularised = "dice", False, True
    every = property(lambda self: 50 if self.steps >= 200 else max(5, self.steps // 5))

    def bind(self, seed):
        bound, p = type(self)(self.p), self.p
        file = os.environ.get("CLAIMLAB_DATA", "")
        bound.shop = own(file, p.history) if file else simulated(seed, p.items, p.users, p.history, p.interests, p.zipf)
        bound.seed = seed
        return bound

    def init(self):
        unit = {"constant": None, "softmax": "softmax", "none": self.unit}[self.p.normalise] if self.unit else None
        return Ranker(self.shop, self.p.embed_dim, unit, self.act, self.wide, self.steps // self.every + 2)

    def groups(self):
        table = {"rule": "sgd", "lr": self.rate}
        return {"item": table, "category": table, "running": {"rule": "sgd", "lr": 0.05}}

    def optimizer(self, groups):
        return SgdAndAdam(groups, fused=True)

    def block(self, net, rng, step, n):
        size = len(self.shop.train.y)
        at = torch.arange(step * self.batch_size, (step + n) * self.batch_size)
        order = {k: torch.as_tensor(np.random.default_rng((self.seed, k, 7)).permutation(size)) for k in (at // size).unique().tolist()}
        rows = torch.cat([order[k][at[at // size == k] % size] for k in order]).view(n, self.batch_size)
        part = self.shop.train
        return self.shop.histories[part.row[rows]], part.candidate[rows], part.wide[rows], part.y[rows]

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, history, candidate, wide, y):
        seen = {}
        plain = cross_entropy(net(history, candidate, wide, seen), y)
        seen["loss"] = plain.detach().unsqueeze(0)
        aside = sum(0.5 * (net.running[name] - value).square().sum() for name, value in seen.items())
        if self.regularised:
            ids = torch.cat([history.flatten(), candidate])
            least = max(1.0, self.rate * self.p.lam)  # 1 at the default: then the written update, word for word
            aside = aside + self.p.lam * (shrinkage(net.item, ids, net.shop_item_count, least)
                                          + shrinkage(net.category, net.shop_category[ids], net.shop_category_count, least))  # fmt: skip
        return plain + (aside - aside.detach())  # for their gradients alone

    def metrics(self, net):
        part = self.shop.validation
        users = part.users[: len(part.users) // 2]
        count = int(users.max()) + 1
        score = scores(net, self.shop, part, count)
        found = gauc(part.y, score, users)
        validated.keep(net, float(found))
        held = nn.functional.binary_cross_entropy_with_logits(score, part.y[:count].float())
        dice4 = net.running["unit"][:, :4].flatten() if "unit" in net.running else torch.zeros(8)
        tick = int(torch.isfinite(net.trace[:, 0]).sum())
        net.trace[min(tick, len(net.trace) - 1)] = torch.cat([torch.tensor([tick * self.every, found, held]), dice4])
        return {"validation_gauc": found, "validation_loss": held, "train_loss": net.running["loss"]}

    def final(self, net):
        shop, chosen = self.shop, best(net)
        score = scores(chosen, shop, shop.test)
        found = {"test_gauc": gauc(shop.test.y, score, shop.test.users),
                 "final_test_gauc": gauc(shop.test.y, scores(net, shop, shop.test), shop.test.users),
                 "bayes_gauc": gauc(shop.test.y, shop.test.logit, shop.test.users)}  # fmt: skip
        if net.unit is not None:
            flip = 1 if attention_aucs(chosen, shop, shop.validation) >= 0.5 else -1
            found["attention_auc"] = 0.5 + flip * (attention_aucs(chosen, shop, shop.test) - 0.5)
        groups = by_interests(shop.test, score)
        found |= {f"gauc_interests_{k}": groups[k] for k in range(10) if torch.isfinite(groups[k])}
        gain = (groups - net.rival).numpy()
        if (known := np.isfinite(gain)).sum() > 1:
            found["gain_slope_over_interests"] = np.polyfit(np.flatnonzero(known), gain[known], 1)[0]
        return found


class BasePool(Click):
    unit, act = None, "prelu"


class WideCount(BasePool):
    wide = True


class Din(Click):
    """The method. It starts afresh after base_pool, of which it only notes the GAUC by number of interests."""

    after = "base_pool"

    def begin(self, start):
        net = self.init()
        net.rival.copy_(by_interests(self.shop.test, scores(best(start), self.shop, self.shop.test)))
        return net


class DinSoftmax(Click):
    unit = "softmax"


class DinNoreg(Click):
    regularised = False


class DinPrelu(Click):
    act = "prelu"


ARMS = {"base_pool": BasePool, "wide_count": WideCount, "din": Din, "din_softmax": DinSoftmax, "din_noreg": DinNoreg,
        "din_prelu": DinPrelu}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"weights of past clicks": beside(__name__, "bars_of_weight"), "GAUC over steps": beside(__name__, "over_steps")}
