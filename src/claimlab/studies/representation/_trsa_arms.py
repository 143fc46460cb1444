"""Arms of the study trsa: statistics by which the layer behind a recording is named. `p` are the study's Params."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from claimlab.studies.representation import _trsa_method as method
from claimlab.studies.representation._trsa_data import FACTORS, Distances, Recording
from claimlab.training import Run, Stepwise, Tick


class Statistic(Stepwise):
    """One way to describe a representation. A tick for each noise draw: its step is how many draws are counted."""

    after: str | None = "rdm"

    def __init__(self, p, seeds, before):
        self.p, self.seeds, self.before = getattr(before, "p", p), list(seeds), before
        self.members = before.members
        self.recordings: list = getattr(before, "recordings", [])
        self.total, self.step, self.seconds = len(self.seeds), 0, 0.0
        self.voted: list[dict[float, Tensor]] = []  # for each seed, by signal-to-noise ratio: [instances, layers, draws, layers]
        self.apart: list[float] = []

    @property
    def budget(self) -> dict[str, float]:
        """No step is taken; seconds of all seeds."""
        return {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": self.seconds}

    @property
    def ratios(self) -> list[float]:
        """Signal-to-noise ratios: the default one, a fifth of it, then those that only figures show."""
        return [self.p.snr * factor for factor in FACTORS[: self.p.levels]]

    def statistic(self, one: Distances) -> Tensor:
        """What is compared, from distance matrices [..., P]."""
        return one.d

    def similar(self, data: Distances, models: Distances) -> Tensor:
        """Similarity of data matrices [...] to the models [I, L]: [..., I, L]"""
        return method.compare(self.statistic(data), self.statistic(models), self.p.comparison)

    def vote(self, i: int, snr: float) -> Tensor:
        """Votes for each layer at seed number `i`: [instances, layers, draws, layers]"""
        recording = self.recordings[i]
        return method.votes(self.similar(recording.measure(snr), recording.models))

    def separation(self, i: int) -> float:
        """d' of equal layers in different instances, without noise."""
        alone = self.recordings[i].alone
        return method.separation(self.similar(alone, alone))

    def prepare(self, i: int) -> None:
        """What has to be there before seed number `i` is measured."""

    def stepwise(self):
        for i in range(len(self.seeds)):
            began = time.perf_counter()
            with torch.no_grad():
                self.prepare(i)
                self.voted.append({snr: self.vote(i, snr) for snr in self.ratios})
                self.apart.append(self.separation(i))
            self.step += 1
            self.seconds += time.perf_counter() - began
            yield None
        draws = next(iter(self.voted[0].values())).shape[2]
        for count in range(1, draws + 1):
            yield Tick(count, [self._metrics(i, count, draws) for i in range(len(self.seeds))])

    def _metrics(self, i: int, count: int, draws: int) -> dict[str, float]:
        share = {snr: float(method.right(v)[:, :, :count].float().mean()) for snr, v in self.voted[i].items()}
        values = list(share.values())
        found = {"layer_accuracy": values[0]} | ({"layer_accuracy_noisy": values[1]} if len(values) > 1 else {})
        if count < draws:
            return found
        curve = {f"accuracy at {snr:.4g}": value for snr, value in share.items()}
        return found | curve | {"same_layer_dprime": self.apart[i]}


class Rdm(Statistic):
    """The distance matrix as it is. This arm makes the recordings, which all others share."""

    after = "networks"

    def __init__(self, p, seeds, before):
        super().__init__(p, seeds, before)
        if isinstance(before, Run):
            self.p = before.task.p  # a knob that was turned while the networks learned counts from here on

    def prepare(self, i):
        if len(self.recordings) == i:
            self.recordings.append(Recording(self.seeds[i], [x.cpu() for x in self.members[i].layers()], self.p))


class Ranks(Statistic):
    """The distance matrix, compared by ranks."""

    def similar(self, data, models):
        return method.compare(data.d, models.d, "spearman")


class Fixed(Statistic):
    """The geo-topological matrix with thresholds set in advance, the same for all."""

    def pair(self) -> tuple[float, float]:
        """Quantiles of the lower and the upper threshold."""
        return self.p.lower, self.p.upper

    def statistic(self, one):
        return method.geo_topological(one.d, *self.pair(), one.ordered)


class Adjacency(Fixed):
    """Who is nearer than the median, and nothing else."""

    def pair(self):
        return 0.5, 0.5


class UpperOnly(Fixed):
    """Large distances are levelled, small ones are kept."""

    def pair(self):
        return 0.0, self.p.upper


class LowerOnly(Fixed):
    """Small distances are levelled, large ones are kept."""

    def pair(self):
        return self.p.lower, 1.0


class Geodesic(Fixed):
    """Shortest paths through neighbours."""

    def statistic(self, one):
        return method.geodesic(one.d, *self.pair(), one.ordered)


class Nested(Statistic):
    """The geo-topological matrix; each instance gets the thresholds that name layers best among the other instances."""

    def __init__(self, p, seeds, before):
        super().__init__(p, seeds, before)
        self.chosen: list[dict[float, list[tuple[float, float]]]] = []
        self.triangles: list[dict[float, np.ndarray]] = []  # accuracy of every pair [upper, lower], NaN where lower > upper

    @property
    def grid(self) -> list[tuple[float, float]]:
        """All pairs of quantiles, lower <= upper."""
        ends = np.linspace(0, 1, self.p.grid)
        return [(float(low), float(high)) for low in ends for high in ends if low <= high]

    def prepare(self, i):
        self.chosen.append({})
        self.triangles.append({})

    def _similar(self, data: Distances, models: Distances, pair: tuple[float, float]) -> Tensor:
        first, second = (method.geo_topological(one.d, *pair, one.ordered) for one in (data, models))
        return method.compare(first, second, self.p.comparison)

    def vote(self, i, snr):
        recording = self.recordings[i]
        data, grid = recording.measure(snr), self.grid
        found = torch.stack([self._similar(data, recording.models, pair) for pair in grid])
        picked, voted = method.chosen(found)
        self.chosen[i][snr] = [grid[k] for k in picked]
        ends = list(np.linspace(0, 1, self.p.grid))
        self.triangles[i][snr] = table = np.full((self.p.grid, self.p.grid), np.nan)
        for (low, high), one in zip(grid, found, strict=True):
            table[ends.index(high), ends.index(low)] = float(method.right(method.votes(one)).float().mean())
        return voted

    def separation(self, i):
        alone = self.recordings[i].alone
        each = [self._similar(alone, alone, pair)[a] for a, pair in enumerate(self.chosen[i][self.ratios[0]])]
        return method.separation(torch.stack(each))


class Cka(Statistic):
    """Linear CKA of the noisy responses with the layers themselves."""

    def similar(self, data, models):
        return method.compare(data.gram, models.gram, "cosine")


STATISTICS = {
    "rdm": Rdm, "rdm_rank": Ranks, "rgtm": Nested, "rgtm_fixed": Fixed, "adjacency": Adjacency, "upper_only": UpperOnly,
    "lower_only": LowerOnly, "rgdm": Geodesic, "cka": Cka,
}  # fmt: skip
