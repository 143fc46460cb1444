"""Networks, stimuli and simulated recordings of the study trsa, and recordings of one's own."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from claimlab import data
from claimlab.data.own import arrays
from claimlab.studies.representation._trsa_method import dissimilarity, gram

LAYERS = ("conv 1", "conv 2", "conv 3", "conv 4", "dense", "logits")
WINDOW = 0.25  # standard deviation of a voxel's window, in sides of the map
MANY = 400  # voxels without noise through which the candidates are seen
FACTORS = (1.0, 0.2, 5.0, 25.0, 0.04, 125.0)  # of the signal-to-noise ratio; the first two are judged
KEPT = 400 << 20  # bytes of distances that are kept rather than simulated again

# ---- networks


class ConvNet(nn.Module):
    """Digits [B, 1, 8, 8] to six layers: conv 32, conv 32, conv 64 (stride 2), conv 64, dense 128, each rectified, and 10 logits."""

    def __init__(self):
        super().__init__()
        sizes = ((1, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride, padding=1) for a, b, stride in sizes)
        self.dense, self.logits = nn.Linear(1024, 128), nn.Linear(128, 10)

    def read(self, x: Tensor) -> list[Tensor]:
        """What every layer says of x, first layer first."""
        found = []
        for conv in self.convs:
            x = conv(x).relu()
            found.append(x)
        dense = self.dense(x.flatten(1)).relu()
        return [*found, dense, self.logits(dense)]

    def forward(self, x):
        return self.read(x)[-1]


class Instances(nn.Module):
    """Networks of one architecture that differ in how they began, and the stimuli [m, 1, 8, 8] on which they are compared."""

    def __init__(self, count: int, stimuli: Tensor):
        super().__init__()
        self.nets = nn.ModuleList(ConvNet() for _ in range(count))
        self.register_buffer("stimuli", stimuli.clone())

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets])

    @torch.no_grad()
    def layers(self, count: int | None = None) -> list[Tensor]:
        """Responses of all networks, or of the first `count`, to the stimuli, layer by layer: [instances, m, ...]"""
        return [torch.stack(same) for same in zip(*(net.read(self.stimuli) for net in self.nets[:count]), strict=True)]


@lru_cache(maxsize=32)
def load(seed: int, stimuli: int) -> tuple[Tensor, ...]:
    """x, y to train (1,200 digits), x, y to test, and `stimuli` test images, as many of each class as go."""
    images, labels = data.digits()
    train, test = data.stratified(labels, 1200, np.random.default_rng(seed))
    turn = [np.flatnonzero(labels[test] == c) for c in range(10)]
    picked = np.concatenate([turn[c][: stimuli // 10 + (c < stimuli % 10)] for c in range(10)])
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    return x[train], y[train], x[test], y[test], x[test][picked]


# ---- simulated measurement


def voxel_weights(shape: tuple[int, ...], voxels: int, rng: torch.Generator) -> Tensor:
    """Weights [voxels, units], none negative, each row of sum 1, with which voxels pool the units of a layer of this shape.

    (C, H, W): an exponential weight a channel, times a Gaussian window around a random place; (units,): exponential weights.
    """
    w = torch.empty(voxels, shape[0]).exponential_(generator=rng)
    if len(shape) == 3:
        for side in shape[1:]:
            away = (torch.arange(side) + 0.5) / side - torch.rand(voxels, 1, generator=rng)
            w = w[..., None] * torch.exp(-((away / WINDOW) ** 2) / 2).view(voxels, *[1] * (w.dim() - 1), side)
    w = w.flatten(1)
    return w / w.sum(1, keepdim=True)


def noisy(signal: Tensor, snr: float, noise: Tensor) -> Tensor:
    """Responses [..., m, v] plus white noise, whose variance is that of the signal over stimuli (mean of voxels) over `snr`."""
    spread = signal.var(-2, unbiased=False).mean(-1)[..., None, None]
    return signal + noise * (spread / snr).sqrt()


class Distances(NamedTuple):
    """Upper triangles [..., P] of distance matrices, the same sorted, and centred products [..., m * m] for CKA."""

    d: Tensor
    ordered: Tensor
    gram: Tensor


def distances(x: Tensor, again: Tensor | None, kind: str) -> Distances:
    """All that statistics are made of, from responses [..., m, n] and perhaps a second measurement."""
    d = dissimilarity(x, again, kind)
    return Distances(d, d.sort(-1).values, gram(x if again is None else (x + again) / 2))


class Recording:
    """Layers of several instances: `alone` as they are, `models` through many voxels without noise, `measure(snr)` through few.

    Each draw has its own voxels and its own noise, the same for every signal-to-noise ratio.
    """

    def __init__(self, seed: int, layers: list[Tensor], p, many: int = MANY):
        self.seed, self.layers, self.p = seed, layers, p
        rng = torch.Generator().manual_seed(seed * 7919 + 11)
        self.alone = _stacked([distances(x.flatten(2), None, p.distance) for x in layers])
        self.models = _stacked([distances(pooled(x, 1, many, rng)[:, 0], None, p.distance) for x in layers])
        self.known: dict[float, Distances] = {}

    @torch.no_grad()
    def measure(self, snr: float) -> Distances:
        """Cross-validated distances [instances, layers, draws, P] of the recording at this signal-to-noise ratio."""
        if snr in self.known:
            return self.known[snr]
        rng, p, found = torch.Generator().manual_seed(self.seed * 7919 + 13), self.p, []
        for x in self.layers:
            signal = pooled(x, p.draws, p.voxels, rng)
            twice = [noisy(signal, snr, torch.randn(signal.shape, generator=rng)) for _ in range(2)]
            found.append(distances(*twice, p.distance))
        one = _stacked(found)
        if p.seeds * p.levels * sum(t.numel() * t.element_size() for t in one) < KEPT:
            self.known[snr] = one
        return one


def pooled(x: Tensor, draws: int, voxels: int, rng: torch.Generator) -> Tensor:
    """Voxels of a layer [instances, m, ...] without noise, anew for every instance and draw: [instances, draws, m, voxels]."""
    w = voxel_weights(tuple(x.shape[2:]), len(x) * draws * voxels, rng).view(len(x), draws, voxels, -1)
    return x.flatten(2)[:, None] @ w.transpose(-1, -2)


def _stacked(parts: list[Distances], axis: int = 1) -> Distances:
    return Distances(*(torch.stack(same, axis) for same in zip(*parts, strict=True)))


# ---- recordings of one's own


class OwnRecording:
    """Regions of several subjects from files; every half of the repeats is a measurement, and no noise is added."""

    def __init__(self, regions: list[list[np.ndarray]], p):
        rng, repeats = np.random.default_rng(0), len(regions[0][0])
        splits = [rng.permutation(repeats) for _ in range(p.draws if repeats > 2 else 1)]

        def measured(order: np.ndarray, x: np.ndarray) -> Distances:
            halves = [torch.from_numpy(x[part].mean(0).astype(np.float32)) for part in np.array_split(order, 2)]
            return distances(*halves, p.distance)

        each = [_stacked([_stacked([measured(s, x) for s in splits], 0) for x in one], 0) for one in regions]
        self.data = _stacked(each, 0)
        each = [_stacked([measured(np.arange(repeats), x) for x in one], 0) for one in regions]
        self.models = self.alone = _stacked(each, 0)

    def measure(self, snr: float) -> Distances:
        """The same whatever the ratio: what was recorded has its own noise."""
        return self.data


def own_regions(folder: str | Path) -> tuple[list[str], list[str], list[list[np.ndarray]]]:
    """Subjects, regions and responses [repeats, stimuli, channels] of the files `<subject>_<region>.npz` in `folder`.

    Each file holds `responses` (numbers) and `stimuli` (their names or numbers [stimuli], in the same order everywhere).
    At least 3 subjects with the same 2 or more regions, 2 repeats and 4 stimuli. ValueError names the file and what is wrong.
    """
    files = sorted(Path(folder).glob("*.npz"))
    named = {f: re.fullmatch(r"([^_]+)_(.+)", f.stem) for f in files}
    if bad := [f.name for f, match in named.items() if not match]:
        raise ValueError(f"{bad[0]}: the name must be <subject>_<region>.npz")
    place = {match.groups(): f for f, match in named.items()}
    subjects, regions = sorted({s for s, _ in place}), sorted({r for _, r in place})
    if len(subjects) < 3 or len(regions) < 2:
        raise ValueError(f"{folder} holds {len(subjects)} subjects and {len(regions)} regions: at least 3 and 2 are needed")
    if lacking := [f"{s}_{r}.npz" for s in subjects for r in regions if (s, r) not in place]:
        raise ValueError(f"{lacking[0]} is missing: every subject needs the same regions")
    found: dict[tuple[str, str], np.ndarray] = {}
    first = None
    for key, file in sorted(place.items()):
        x, names = arrays(file, ("responses", "stimuli"))
        _fits(file.name, x, names)
        first = first or (file.name, names, len(x))
        if not np.array_equal(names, first[1]):
            raise ValueError(f"{file.name}: its stimuli are not those of {first[0]}, in the same order")
        if len(x) != first[2]:
            raise ValueError(f"{file.name} has {len(x)} repeats, {first[0]} has {first[2]}: one number for all")
        found[key] = x
    return subjects, regions, [[found[s, r] for r in regions] for s in subjects]


def _fits(name: str, x: np.ndarray, names: np.ndarray) -> None:
    if x.ndim != 3 or x.dtype.kind not in "fiu":
        raise ValueError(f"{name}: responses are {x.dtype} of shape {x.shape}; allowed are numbers of repeats x stimuli x channels")
    if x.shape[0] < 2 or x.shape[1] < 4 or x.shape[2] < 2:
        raise ValueError(f"{name}: responses have the shape {x.shape}; at least 2 repeats, 4 stimuli and 2 channels are needed")
    if names.shape != x.shape[1:2]:
        raise ValueError(f"{name}: stimuli have the shape {names.shape}; one name for each of {x.shape[1]} is needed")
    if len(np.unique(names)) != len(names):
        raise ValueError(f"{name}: a stimulus occurs twice; repeats belong on the first axis of responses")
    if not np.isfinite(x).all():
        channel = int(np.flatnonzero(~np.isfinite(x).all((0, 1)))[0])
        raise ValueError(f"{name}: channel {channel} holds a value that is not a number; leave such channels out")
