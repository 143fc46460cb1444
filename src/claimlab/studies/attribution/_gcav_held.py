"""What the study gcav knows before its stages: concept vectors of a trained network, gradients, vectors after an attack."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from claimlab.parts.adversarial import pgd
from claimlab.studies.attribution import _gcav_data as source
from claimlab.studies.attribution import _gcav_method as method


class Held:
    """What is known before the first stage, for one seed; never changed, and shared by all copies of a network.

    `vectors`, `attacked` [M, R, L, D] of unit length, `staged`, `held` gradients [K, n, L, D], `lengths` of the layers,
    `accuracy` [M, L] of the classifiers on validation pictures, `relevant` [K, M - 1] or None, names of classes, concepts, layers.
    """

    def __init__(self, net: nn.Module, seed: int, p):
        folder = os.environ.get("CLAIMLAB_DATA", "")
        device = next(net.parameters()).device
        pictures, sets = source.pictures(seed, p.images, p.shown, folder), source.sets(seed, p.concepts, p.sets, p.pictures, folder)
        self.classes, self.concepts = pictures.names, (*sets.names, "random pictures")
        self.layers = source.tapped_layers(net, p.layers, folder)
        self.relevant = None if folder else source.relevance(p.concepts)
        self.staged, self.held = (
            torch.stack([method.slopes(net, x.to(device), k, self.layers) for k, x in enumerate(part)])
            for part in (pictures.staged, pictures.held)
        )
        self._fit(net, sets, device, p)
        self.plain, self.moved = (method.score(self.held, v[None]) for v in (self.vectors, self.attacked))

    def __deepcopy__(self, memo):
        return self

    def to(self, device) -> Held:
        """The same on another device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.device != device:
                setattr(self, name, value.to(device))
        return self

    def _fit(self, net, sets: source.Sets, device, p) -> None:
        concepts, random = sets.concepts.to(device), sets.random.to(device)
        known, self.lengths = method.features(net, concepts.flatten(0, 1), self.layers)
        other = method.features(net, random.flatten(0, 1), self.layers)[0].unflatten(0, random.shape[:2])
        known = known.unflatten(0, concepts.shape[:2])
        self.scale = (other - other.mean((0, 1))).square().sum((0, 1, 3)) / torch.tensor(self.lengths, device=device)
        self.scale = (self.scale / (other.shape[0] * other.shape[1])).sqrt()  # spread of a layer's numbers: one number a layer
        known, other = (t / self.scale[:, None] for t in (known, other))
        weights, offsets = fitted(known[:, : sets.fit], other[:, : sets.fit])
        self.vectors = method.unit(weights)
        self.accuracy = validated(weights, offsets, known[:, sets.fit :], other[:, sets.fit :])
        at = (len(self.layers) - 1) // 2
        concepts[:-1, : sets.fit] = torch.stack([
            attack(net, x[: sets.fit], self.layers[at], w / self.scale[at], p.attack_eps)
            for x, w in zip(concepts[:-1], weights[:-1, :, at].mean(1), strict=True)
        ])  # fmt: skip
        moved = method.features(net, concepts[:-1, : sets.fit].flatten(0, 1), self.layers)[0] / self.scale[:, None]
        refitted = method.unit(fitted(moved.unflatten(0, (-1, sets.fit)), other[:, : sets.fit])[0])
        self.attacked = torch.cat([refitted, self.vectors[-1:]])


def fitted(known: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Concepts [M, n, L, D] against random sets [R, n, L, D], layer by layer: weights [M, R, L, D], intercepts [M, R, L]."""
    (m, n), r = known.shape[:2], len(other)
    y = torch.arange(2 * n, device=known.device) < n
    found = []
    for one, rest in zip(known.unbind(2), other.unbind(2), strict=True):
        x = torch.cat([one[:, None].expand(m, r, -1, -1), rest.expand(m, r, -1, -1)], 2)
        w, b = method.logistic(x.flatten(0, 1), y)
        found.append((w.unflatten(0, (m, r)).float(), b.unflatten(0, (m, r)).float()))
    return torch.stack([w for w, _ in found], 2), torch.stack([b for _, b in found], 2)


def validated(w: Tensor, b: Tensor, known: Tensor, other: Tensor) -> Tensor:
    """Mean accuracy of the classifiers on pictures that they were not fitted to. [M, L]"""
    right = (torch.einsum("mnld,mrld->mrnl", known, w) + b[:, :, None] > 0).float().mean((1, 2))
    wrong = (torch.einsum("rnld,mrld->mrnl", other, w) + b[:, :, None] > 0).float().mean((1, 2))
    return (right + 1 - wrong) / 2


def attack(net: nn.Module, x: Tensor, layer: str, w: Tensor, eps: float) -> Tensor:
    """The pictures x [n, C, H, W], moved by at most eps so that the concept's classifier at `layer` takes them for random ones.

    Ten signed-gradient steps down w . P a, w [D]; the intercept does not count.
    """
    if not len(x):
        return x

    def unlike(flat: Tensor) -> Tensor:
        a = method.pool(method.tapped(net, flat.view_as(x), [layer])[1][0])
        return -(a @ w[: a.shape[1]])

    return pgd(unlike, x.flatten(1), eps, steps=10, step=1 / 4).view_as(x)
