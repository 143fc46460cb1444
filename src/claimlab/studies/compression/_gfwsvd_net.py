"""The networks of the study gfwsvd: the trained transformer with what was measured on it, and its low-rank cuts."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from claimlab.models.transformer import CharTransformer
from claimlab.studies.compression import _gfwsvd_method as method

MAPS = ("q", "k", "v", "o", "up", "down")
GROUP = 8  # sequences whose gradients are averaged into one sample when the Fisher's unit is a batch of tokens


def loss_on(net: nn.Module, windows: Tensor, **options) -> Tensor:
    """Mean cross-entropy [nats a character] of the windows [k, T + 1]."""
    windows = windows.to(next(net.parameters()).device)
    logits = torch.cat([net(few[:, :-1], **options) for few in windows.split(50)])  # few at a time stay in the cache
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Report(nn.Module):
    """What was measured on a trained network, by map (block, name): the fitted A and B, the second moments of inputs and of
    output slopes over characters, the mean |input|, the Fisher summed over rows and over columns; and `measured`, 0 or 1."""

    def __init__(self, shapes: dict[tuple[int, str], tuple[int, int]], rounds: int):
        super().__init__()
        self.maps = list(shapes)
        for key, (n, m) in shapes.items():
            sizes = {"a": (m, m), "b": (n, n), "inputs": (m, m), "slopes": (n, n), "activity": (m,), "columns": (m,), "rows": (n,),
                     "rounds": (rounds,), "fit": (3,)}  # fmt: skip
            for kind, size in sizes.items():
                self.register_buffer(self.name(key, kind), torch.zeros(size, dtype=torch.float64))
        self.register_buffer("loss", torch.zeros((), dtype=torch.float64))
        self.register_buffer("measured", torch.zeros(()))

    @staticmethod
    def name(key: tuple[int, str], kind: str) -> str:
        return f"{key[0]}_{key[1]}_{kind}"

    def get(self, key: tuple[int, str], kind: str) -> Tensor:
        return getattr(self, self.name(key, kind))


class Trained(nn.Module):
    """The transformer that all arms cut, and the report on it."""

    def __init__(self, net: CharTransformer, rounds: int):
        super().__init__()
        self.net = net
        shapes = {(i, name): tuple(weights[name].shape) for i, weights in enumerate(net.hidden) for name in MAPS}
        self.report = Report(shapes, rounds)

    def forward(self, x: Tensor, **options) -> Tensor:
        return self.net(x, **options)

    def weight(self, key: tuple[int, str]) -> Tensor:
        return self.net.hidden[key[0]][key[1]].detach()


def gradients(net: CharTransformer, windows: Tensor, unit: str = "sequence") -> dict[tuple[int, str], Tensor]:
    """Gradients [N, n, m] of every map: of the mean loss of each window [T + 1] at the text's own next characters, or averaged
    over GROUP neighbouring windows if `unit` is token_batch."""
    names = {(i, name): f"hidden.{i}.{name}" for i in range(len(net.hidden)) for name in MAPS}
    fixed = {k: v.detach() for k, v in net.state_dict(keep_vars=True).items()}
    weights = {name: fixed.pop(name) for name in names.values()}

    def loss(moved, window):
        logits = functional_call(net, fixed | moved, (window[None, :-1],))
        return cross_entropy(logits[0], window[1:])

    found = method.per_sample(loss, weights, windows.to(net.head.device))
    if unit == "token_batch":
        whole = max(1, len(windows) // GROUP)
        found = {name: torch.stack([part.mean(0) for part in g.tensor_split(whole)]) for name, g in found.items()}
    return {key: found[name] for key, name in names.items()}


@torch.enable_grad()
def moments(net: CharTransformer, windows: Tensor) -> dict[tuple[int, str], tuple[Tensor, Tensor, Tensor]]:
    """E[x x^T], E[g g^T] and E|x| of every map over all characters: x its input, g the slope of the summed loss in its output."""
    keys = [(i, name) for i in range(len(net.hidden)) for name in MAPS]
    sums: dict[tuple[int, str], list[Tensor]] = {}
    for few in windows.to(net.head.device).split(32):
        seen, shifts = {}, {}

        def through(h, i, name, seen=seen, shifts=shifts):
            out = net.product(h, i, name)
            seen[i, name], shifts[i, name] = h.detach(), torch.zeros_like(out, requires_grad=True)
            return out + shifts[i, name]

        loss = cross_entropy(net(few[:, :-1], through).flatten(0, 1), few[:, 1:].flatten(), reduction="sum")
        slopes = torch.autograd.grad(loss, [shifts[key] for key in keys])
        for key, g in zip(keys, slopes, strict=True):
            x, g = seen[key].flatten(0, 1).double(), g.flatten(0, 1).double()
            new = [x.T @ x, g.T @ g, x.abs().sum(0)]
            sums[key] = [a + b for a, b in zip(sums[key], new, strict=True)] if key in sums else new
    count = windows[:, 1:].numel()
    return {key: tuple(part / count for part in parts) for key, parts in sums.items()}


@torch.no_grad()
def measure(trained: Trained, calibration: Tensor, held: Tensor, rounds: int, unit: str) -> None:
    """Everything that the arms need, on the calibration windows, into the report; and the loss on the held-out windows."""
    net, report = trained.net, trained.report
    kfac = moments(net, calibration)
    for key, g in gradients(net, calibration, unit).items():
        inputs, slopes, activity = kfac[key]
        a, b, errors = method.kronecker_fit(g, rounds)
        square = method.fisher_square(g)
        pairs = [(a, b), (a.diagonal().diag(), b.diagonal().diag()), (inputs, slopes)]
        fits = torch.stack([method.fit_error(g, *(part.to(g.dtype) for part in pair), square) for pair in pairs])
        energy = g.square().mean(0)
        found = {"a": a, "b": b, "inputs": inputs, "slopes": slopes, "activity": activity, "columns": energy.sum(0),
                 "rows": energy.sum(1), "rounds": errors, "fit": fits}  # fmt: skip
        for kind, value in found.items():
            report.get(key, kind).copy_(value)
    report.loss.copy_(loss_on(net, held))
    report.measured.fill_(1)


class LowRank(nn.Module):
    """A transformer whose maps are products of two factors, n x r and r x m, ordered so that the first columns of one and the
    first rows of the other are the cut at any smaller rank. `ratio` is the share of each map that it lacks if nothing is said.

    Buffers for looking at it: `weighted` and `plain` singular values of each map, each padded with zeros to one length, the
    held-out `losses` at `ratios`, the `optimality` gap and the Fisher's `fit` error (0 where the arm has none).
    """

    def __init__(self, trained: Trained, cuts: dict[tuple[int, str], method.Cut], ratios: list[float], ratio: float):
        super().__init__()
        self.ratio, self.ratios, self.maps = ratio, list(ratios), list(cuts)
        self.trunk = copy.deepcopy(trained.net)
        self.trunk.hidden = nn.ModuleList(nn.Module() for _ in trained.net.hidden)
        self.shapes = {key: tuple(trained.weight(key).shape) for key in cuts}
        self.left, self.right = nn.ParameterDict(), nn.ParameterDict()
        width = max(min(shape) for shape in self.shapes.values())
        gaps, spectra = [], {"weighted": [], "plain": []}
        for key, found in cuts.items():
            most, now = (method.rank(r, *self.shapes[key]) for r in (min(ratios), ratio))
            self.left[self.name(key)] = nn.Parameter(found.left[:, :most].to(trained.net.head.dtype).contiguous())
            self.right[self.name(key)] = nn.Parameter(found.right[:most].to(trained.net.head.dtype).contiguous())
            gaps.append(method.gap(trained.weight(key), found, now))
            for kind, values in (("weighted", found.values), ("plain", torch.linalg.svdvals(trained.weight(key).double()))):
                spectra[kind].append(nn.functional.pad(values, (0, width - len(values))))
        for kind, rows in spectra.items():
            self.register_buffer(kind, torch.stack(rows))
        self.register_buffer("optimality", torch.stack(gaps).max())
        self.register_buffer("fit", torch.zeros((), dtype=torch.float64))
        self.register_buffer("losses", torch.zeros(len(ratios), dtype=torch.float64))
        self.register_buffer("uncut", trained.report.loss.clone())

    @staticmethod
    def name(key: tuple[int, str]) -> str:
        return f"{key[0]}_{key[1]}"

    def factors(self, key: tuple[int, str], ratio: float | None = None) -> tuple[Tensor, Tensor]:
        r = method.rank(self.ratio if ratio is None else ratio, *self.shapes[key])
        return self.left[self.name(key)][:, :r], self.right[self.name(key)][:r]

    def product(self, h: Tensor, block: int, name: str, ratio: float | None = None) -> Tensor:
        left, right = self.factors((block, name), ratio)
        return h @ right.mT @ left.mT

    def forward(self, x: Tensor, ratio: float | None = None) -> Tensor:
        return self.trunk(x, partial(self.product, ratio=ratio))
