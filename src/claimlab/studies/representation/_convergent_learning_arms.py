"""Arms of the study convergent-learning: ways to compare the two networks of a pair. `p` are the study's Params."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from claimlab.studies.representation import _convergent_learning_method as method
from claimlab.studies.representation._convergent_learning_data import LAYERS, Pair, capture
from claimlab.training import Run, Stepwise, Tick

GRID = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)  # prices of the sparse mapping, beside the knob's own
DEAR = (0.2, 0.3, 0.5, 0.9)  # for units that at a price of 0.1 still keep more than a handful
FEW = 6  # weights that are a handful
DRAWS = 20  # random groups for each shared cluster


@dataclass
class Seen:
    """What the networks of one pair answer: units by layer. `images` [M, C, S, S] are those of the judging half."""

    seed: int
    first: dict[str, method.Units]
    second: dict[str, method.Units]
    untrained: dict[str, method.Units] | None = None
    images: Tensor | None = None

    def rng(self, use: str) -> np.random.Generator:
        """The generator for one use at this seed: the same in every arm."""
        return np.random.default_rng([self.seed, zlib.crc32(use.encode())])


def units(a: np.ndarray) -> method.Units:
    """The units of a layer from its activations [images, places, units]: the first half of the images chooses partners, the
    second half judges."""
    flat = [part.reshape(-1, a.shape[2]).astype(float) for part in np.split(a, [len(a) // 2])]
    return method.standardised(*flat)


def see(run: Run, p) -> list[Seen]:
    """The units of all pairs at the layers that are compared."""
    found = []
    for seed, pair, task in zip(run.seeds, run.members, run.tasks, strict=True):
        x = task.test[0].cpu()
        every = [capture(net.eval(), x, seed) for net in (pair.first, pair.second, pair.untrained)]
        every = [{layer: units(one[layer]) for layer in {"conv1", p.layer}} for one in every]
        found.append(Seen(seed, *every, images=x[len(x) // 2 :]))
    return found


def glance(pair: Pair, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Accuracy of a pair on some images, and held-out correlation of one-to-one partners, mean over the units, layer by layer."""
    nets, found = (pair.first, pair.second), {}
    seen = [capture(net, x, seed) for net in nets]
    told = [net.out(torch.from_numpy(one["dense"][:, 0]).to(y.device)).argmax(1) for net, one in zip(nets, seen, strict=True)]
    for layer in LAYERS:
        try:
            first, second = (units(one[layer]) for one in seen)
        except ValueError:  # a layer that has died
            continue
        found[f"matched_{layer}"] = float(method.matching(first, second).one.mean())
    return {"test_accuracy": float((torch.stack(told) == y).float().mean())} | found


class Comparison(Stepwise):
    """One way to compare the pairs of all seeds. It takes one tick; `found` keeps what each seed gave, for the figures."""

    after = "trained_pair"

    def __init__(self, p, seeds: Sequence[int], before):
        self.p, self.seen = p, before.seen if hasattr(before, "seen") else see(before, p)
        self.total, self.step, self.seconds = 1, 0, 0.0
        self.found: list = []

    @property
    def budget(self) -> dict[str, float]:
        """No training; seconds of all seeds."""
        return {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": self.seconds}

    def sides(self, s: Seen) -> tuple[method.Units, method.Units]:
        """The units that are compared, of the first network and of the other."""
        return s.first[self.p.layer], s.second[self.p.layer]

    def compare(self, s: Seen) -> tuple[object, dict[str, float]]:
        """What one seed gives, and its metrics."""
        raise NotImplementedError

    def stepwise(self):
        told = []
        for s in self.seen:
            began = time.perf_counter()
            kept, metrics = self.compare(s)
            self.found.append(kept)
            told.append({name: float(value) for name, value in metrics.items()})
            self.seconds += time.perf_counter() - began
            yield None
        self.step = 1
        yield Tick(1, told)


# ---- unit for unit


class TrainedPair(Comparison):
    """Bipartite matching of the two trained networks; the other matching arms change what it is compared with."""

    after = "networks"

    def compare(self, s):
        x, y = self.sides(s)
        m = method.matching(x, y, self.p.similarity)
        pairs = zip(m.rows, m.columns, strict=True)
        bits = [method.information(x.held[:, [i]], y.held[:, [j]])[0, 0] for i, j in pairs]
        return m, {
            "matched_correlation": m.one.mean(), "matched_correlation_p10": np.percentile(m.one, 10),
            "best_correlation": m.many.mean(), "distinct_partners": len(set(m.best)) / len(m.best),
            "matched_information": np.mean(bits), "subspace_cosine": method.overlap(x.held, y.held),
            "dead_units": x.dead + y.dead,
        }  # fmt: skip


class FirstLayer(TrainedPair):
    """The same at conv1."""

    after = "trained_pair"

    def sides(self, s):
        return s.first["conv1"], s.second["conv1"]


class TrainedVsRandom(TrainedPair):
    """The other network has never been trained."""

    after = "trained_pair"

    def sides(self, s):
        return s.first[self.p.layer], s.untrained[self.p.layer]


class RotatedPair(TrainedPair):
    """The second network's units span the same space in a random basis."""

    after = "trained_pair"

    def sides(self, s):
        return s.first[self.p.layer], method.rotated(s.second[self.p.layer], s.rng("rotation"))


class PermutedSamples(TrainedPair):
    """The second network saw the samples in another order: the floor."""

    after = "trained_pair"

    def sides(self, s):
        return s.first[self.p.layer], method.shuffled(s.second[self.p.layer], s.rng("samples"))


# ---- predicting a unit


class OneToOneMapping(Comparison):
    """Each unit of the second network from its matched unit of the first. A unit that the matching leaves over (where the first
    network has fewer living units) takes its best partner."""

    def compare(self, s):
        x, y = self.sides(s)
        c = method.correlations(x.fit, y.fit)
        best = np.abs(c).argmax(0)
        m, partner = method.matching(x, y, self.p.similarity), best.copy()
        partner[m.columns] = m.rows
        errors = [_error(x, y, chosen) for chosen in (partner, best)]
        return errors[0], {"prediction_mse": errors[0].mean(), "prediction_mse_best": errors[1].mean(), "active_units": 1}


def _error(x: method.Units, y: method.Units, partner: np.ndarray) -> np.ndarray:
    """Held-out squared error of each unit of y from one unit of x, with the slope of the first half. [q]"""
    return ((y.held - method.slopes(x.fit[:, partner], y.fit) * x.held[:, partner]) ** 2).mean(0)


class SparseMapping(Comparison):
    """Each unit of the second network from a handful of the first. For each unit the smallest price at which at most six weights
    are active, among the grid's and the knob's own."""

    def prices(self) -> list[float]:
        return sorted({*GRID, *DEAR, self.p.lasso_lambda})

    def compare(self, s):
        x, y = self.sides(s)
        prices = self.prices()
        w = method.lasso(x.fit.T @ x.fit / len(x.fit), x.fit.T @ y.fit / len(x.fit), prices)
        errors = np.stack([((y.held - x.held @ one) ** 2).mean(0) for one in w])
        count = method.active(w)
        chosen = method.cheapest(count, FEW)
        at = (chosen, np.arange(len(chosen)))
        kept = SimpleNamespace(prices=prices, errors=errors, count=count, chosen=chosen, weights=w)
        return kept, {
            "prediction_mse": errors[at].mean(), "active_units": count[at].mean(), "most_active_units": count[at].max(),
            "prediction_mse_all": errors[0].mean(), "prediction_mse_at_0.1": errors[prices.index(0.1)].mean(),
        }  # fmt: skip


# ---- groups of units


class JointClusters(Comparison):
    """Spectral clusters of both networks' units, and whether the two halves of a shared cluster span the same space."""

    def compare(self, s):
        x, y = self.sides(s)
        c, rng, k = method.correlations(x.fit, y.fit), s.rng("clusters"), self.p.clusters
        first, second = method.spectral(c, k, rng)
        common = method.shared(first, second)
        size = {one: int(min((first == one).sum(), (second == one).sum())) for one in common}
        kept = SimpleNamespace(between=method.correlations(x.held, y.held), first=first, second=second, common=common)
        metrics = {"shared_units": _share(first, second, common), "shared_clusters": len(common)}
        chance = method.shuffled(y, s.rng("samples"))
        by_chance = method.spectral(method.correlations(x.fit, chance.fit), k, rng)
        metrics["shared_units_by_chance"] = _share(*by_chance, method.shared(*by_chance))
        tree = method.agglomerated(x.fit, y.fit, k)
        metrics["shared_units_tree"] = _share(*tree, method.shared(*tree))
        if common:
            weight = [size[one] for one in common]
            inside = [method.overlap(x.held[:, first == one], y.held[:, second == one]) for one in common]
            random = [_random_groups(x, y, (first == one).sum(), (second == one).sum(), rng) for one in common]
            metrics |= {"cluster_cosine": np.average(inside, weights=weight), "random_cosine": np.average(random, weights=weight)}
        return kept, metrics | {"agreement": _agreement(np.concatenate((first, second)), np.concatenate(tree))}


def _share(first: np.ndarray, second: np.ndarray, common: Sequence[int]) -> float:
    """Of all units, those that lie in a shared cluster."""
    return float(np.isin(np.concatenate([first, second]), common).mean())


def _random_groups(x: method.Units, y: method.Units, p: int, q: int, rng: np.random.Generator) -> float:
    """Mean cosine between the spans of p and q units chosen at random."""
    drawn = []
    for _ in range(DRAWS):
        spans = [one.held[:, rng.choice(one.held.shape[1], n, replace=False)] for one, n in ((x, p), (y, q))]
        drawn.append(method.overlap(*spans))
    return float(np.mean(drawn))


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one, other))


COMPARISONS = {
    "trained_pair": TrainedPair, "first_layer": FirstLayer, "trained_vs_random": TrainedVsRandom, "rotated_pair": RotatedPair,
    "permuted_samples": PermutedSamples, "sparse_mapping": SparseMapping, "one_to_one_mapping": OneToOneMapping,
    "joint_clusters": JointClusters,
}  # fmt: skip


def compare(first: np.ndarray, second: np.ndarray, p) -> dict[str, Comparison]:
    """All comparisons that need no untrained network, for activations [N, p] and [N, q] of any two networks on the same samples.

    A random half of the samples chooses, the other judges. The finished arms by name, each with `found` and `results`.
    """
    rows = np.array_split(np.random.default_rng(0).permutation(len(first)), 2)
    one, other = ({p.layer: method.standardised(a[rows[0]], a[rows[1]])} for a in (first, second))
    before, arms = SimpleNamespace(seen=[Seen(0, one, other)]), {}
    for name in ("trained_pair", "rotated_pair", "permuted_samples", "sparse_mapping", "one_to_one_mapping", "joint_clusters"):
        arms[name] = COMPARISONS[name](p, [0], before)
        arms[name].results = [tick.metrics[0] for tick in arms[name].ticks()][-1]
    return arms
