"""Arms of the study gcav: the three stages, and what needs no training. `p` are its Params."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.studies.attribution import _gcav_method as method
from claimlab.studies.attribution._gcav_held import Held
from claimlab.training import Run, Series, Stepwise, Task, Tick

GROUP, STAGED = 3, 40  # random sets and class images in one step of stage 3
NOISY = 64  # noisy vectors of each layer in one step of stage 1

# ---- what is measured


def measured(scores: Tensor, moved: Tensor, relevant: np.ndarray | None) -> dict[str, float]:
    """The metrics of an arm from its scores [K, M, R, L] on held-out images, and those after the attack."""
    from sklearn.metrics import roc_auc_score

    mean = scores.mean(2)
    known, null = mean[:, :-1], mean[:, -1]
    found = {
        "score_std_over_layers": known.std(-1, correction=0).mean(),
        "null_score_deviation": (null - 0.5).abs().mean(),
        "score_shift_under_attack": (scores - moved)[:, :-1].abs().mean(),
    }
    if relevant is not None:
        level = known.mean(-1).cpu().numpy()
        found["relevant_score"], found["irrelevant_score"] = level[relevant].mean(), level[~relevant].mean()
        found["relevant_minus_irrelevant"] = level[relevant].mean() - level[~relevant].mean()
        found["concept_auroc"] = roc_auc_score(relevant.ravel(), level.ravel())
        differs = method.significant(scores)
        found["significant_relevant"], found["significant_irrelevant"] = differs[relevant].mean(), differs[~relevant].mean()
    return {name: float(value) for name, value in found.items()}


class Pipeline(nn.Module):
    """Everything from the vectors of all layers to one global vector, as far as its stages have come."""

    def __init__(self, held: Held):
        super().__init__()
        self.held, self.known = held, {}
        self.coders = self.align = self.fusion = None

    def codes(self, v: Tensor) -> Tensor:
        """The code of each layer, aligned where that stage is done. [M, R, L, D] -> [M, R, L, e]"""
        z = self.coders.encode(v)
        return z if self.align is None else self.align(z)

    def fused(self, u: Tensor) -> Tensor:
        """One code for all layers: [M, R, L, e] -> [K or 1, M, R, e]; before stage 3 their mean, the same for all classes."""
        return u.mean(2)[None] if self.fusion is None else self.fusion(u)

    def decoded(self, c: Tensor) -> Tensor:
        """D_l(c) of every layer, of unit length. [K, M, R, e] -> [K, M, R, L, D]"""
        layers = len(self.coders.there)
        return method.unit(self.coders.decode(c[..., None, :].expand(*c.shape[:-1], layers, c.shape[-1])))

    def forward(self, v: Tensor) -> Tensor:
        """The decoded global vectors of [M, R, L, D]: [K or 1, M, R, L, D]"""
        return self.decoded(self.fused(self.codes(v)))

    def scores(self, v: Tensor, mix: float, part: str = "held") -> Tensor:
        """TGCAV scores. [M, R, L, D] -> [K, M, R, L]"""
        with torch.no_grad():
            return method.score(getattr(self.held, part), method.mixed(self(v), v[None], mix))

    def measure(self, p) -> dict[str, float]:
        """All metrics, and whether decoded vectors of different concepts are alike (1: the decoder ignores its input)."""
        h = self.held.to(self.coders.there.device)
        found = measured(self.scores(h.vectors, p.mix), self.scores(h.attacked, p.mix), h.relevant)
        with torch.no_grad():
            mean = method.unit(self(h.vectors).mean(2))[:, :-1].transpose(1, 2)  # [K, L, M, D]
            own = method.unit(h.vectors.mean(1))[:-1].transpose(0, 1)
        for name, v in (("alike_decoded", mean.flatten(0, 1)), ("alike_own", own)):
            found[name] = float((v @ v.mT)[:, ~torch.eye(v.shape[1], dtype=torch.bool, device=v.device)].mean())
        staged = self.scores(h.vectors, p.mix, "staged").mean(2)[:, :-1]
        return found | {"score_std_on_staged_images": float(staged.std(-1, correction=0).mean())}

# ---- arms that do not train


class Judged(Stepwise):
    """An arm without training: one tick with the metrics of all seeds."""

    after, total = "cav", 1

    def __init__(self, p, seeds: Sequence[int], before):
        self.p, self.seeds, self.before = p, list(seeds), before
        self.step, self.seconds, self.members = 0, 0.0, []

    @property
    def budget(self) -> dict[str, float]:
        return {"steps": 0, "samples": 0, "forward_calls": 0, "seconds": self.seconds}

    def member(self, i: int) -> nn.Module:
        return self.before.members[i]

    def measure(self, net: nn.Module) -> dict[str, float]:
        raise NotImplementedError

    def stepwise(self):
        found = []
        for i in range(len(self.seeds)):
            began = time.perf_counter()
            self.members.append(self.member(i))
            found.append(self.measure(self.members[i]))
            self.seconds += time.perf_counter() - began
            yield None
        self.step = 1
        yield Tick(1, found)


class Vectors(nn.Module):
    """The separate vectors of all layers, as a network to look at."""

    def __init__(self, held: Held):
        super().__init__()
        self.held = held


class Cav(Judged):
    """TCAV: a vector a layer."""

    after = "network"

    def member(self, i):
        net = self.before.members[i].eval()
        return Vectors(Held(net, self.seeds[i], self.p))

    def measure(self, net):
        h = net.held
        return measured(h.plain, h.moved, h.relevant) | {"validation_accuracy": float(h.accuracy[:-1].mean())}


class MeanScore(Judged):
    """The mean of the scores of all layers: one number, so there is nothing that could vary over layers."""

    def measure(self, net):
        h = net.held
        return measured(h.plain.mean(-1, keepdim=True), h.moved.mean(-1, keepdim=True), h.relevant)


class BestLayer(Judged):
    """The scores of the layer where the concept's classifiers are right most often on validation pictures."""

    def measure(self, net):
        h = net.held
        best = h.accuracy.argmax(1)[None, :, None, None].expand(*h.plain.shape[:3], 1)
        return measured(h.plain.gather(3, best), h.moved.gather(3, best), h.relevant)


class MeanCode(Judged):
    """The mean of the codes of stage 1, decoded."""

    after = "codes"

    def measure(self, net):
        return net.measure(self.p)

# ---- the three stages


class Stage(Task):
    """One stage; all before it is frozen."""

    weight_decay = 0.0

    @property
    def steps(self):
        return self.p.stage_steps

    @property
    def every(self):
        return max(1, self.steps // 5)

    def grown(self, start: nn.Module) -> Pipeline:
        """The member that the stage before left, its parameters frozen, and what is constant from here on in `known`."""
        net = Pipeline(start.held)
        for name in ("coders", "align", "fusion"):
            part = getattr(start, name, None)
            if part is not None:
                setattr(net, name, _frozen(part))
        return net


def _frozen(part: nn.Module) -> nn.Module:
    return copy.deepcopy(part).requires_grad_(False)


class Codes(Stage):
    """Stage 1: autoencoders of the vectors of each layer."""

    after, lr, ahead = "cav", 2e-3, 10

    def begin(self, start):
        net = self.grown(start)
        h = net.held
        net.coders = method.Coders(h.lengths, self.p.code_dim).to(h.vectors.device)
        flat = h.vectors.flatten(0, 1)
        there = net.coders.there
        net.known = {"flat": flat, "noise": 0.1 * torch.stack([flat[:, k][:, there[k]].std() for k in range(len(there))])}
        return net

    def block(self, net, rng, step, n):
        flat, noise = (t.cpu() for t in (net.known["flat"], net.known["noise"]))
        v = flat[torch.randint(len(flat), (n, NOISY), generator=rng)]
        return (v + noise[:, None] * torch.randn(v.shape, generator=rng) * net.coders.there.cpu(),)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, v):
        return method.apart(net.coders.decode(net.coders.encode(v)), v)

    def metrics(self, net):
        v = net.held.to(net.coders.there.device).vectors
        return {"reconstruction": method.apart(net.coders.decode(net.coders.encode(v)), v)}


class Aligned(Stage):
    """Stage 2: InfoNCE between two layers, close to the codes of stage 1."""

    after, lr = "codes", 1e-3

    def begin(self, start):
        net = self.grown(start)
        net.align = method.Align(self.p.code_dim).to(net.coders.there.device)
        with torch.no_grad():
            net.known = {"z": net.coders.encode(net.held.vectors).cpu()}
        return net

    def batch(self, net, rng, step):
        a, b = torch.randperm(net.known["z"].shape[2], generator=rng)[:2].tolist()
        z = net.known["z"].transpose(0, 1)  # [R, M, L, e]
        return z[:, :, a], z[:, :, b]

    def loss(self, net, za, zb):
        a, b, p = net.align(za), net.align(zb), self.p
        stay = (method.apart(a, za) + method.apart(b, zb)) / 2
        return method.info_nce(a, b, p.temperature) + p.consistency_weight * stay

    def metrics(self, net):
        z = net.held.to(net.coders.there.device) and net.coders.encode(net.held.vectors)
        found = {"moved_codes": method.apart(net.align(z), z)}
        for name, u in (("before", z), ("after", net.align(z))):
            found[f"same_concept_{name}"], found[f"other_concept_{name}"] = agreement(u)
        return found


def agreement(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine between two layers of one concept and of different ones, each mean of the random sets. [M, R, L, e]"""
    m, _, layers, _ = u.shape
    v = method.unit(u.mean(1)).flatten(0, 1)  # [M L, e]
    cos = (v @ v.T).view(m, layers, m, layers).permute(0, 2, 1, 3)
    same, other = (torch.eye(k, dtype=torch.bool, device=u.device) for k in (m, layers))
    crossed = cos[:, :, ~other]  # [M, M, pairs of layers]
    return crossed[same].mean(), crossed[~same].mean()


class Gcav(Stage):
    """Stage 3: fusion, for every class a net of its own."""

    after, lr = "aligned", 3e-3

    @property
    def steps(self):
        return max(1, 3 * self.p.stage_steps // 4)

    @property
    def variance(self) -> float:
        return self.p.variance_weight

    def begin(self, start):
        net = self.grown(start)
        h = net.held
        net.fusion = method.Fusion(len(h.classes), len(h.layers), self.p.code_dim).to(h.vectors.device)
        with torch.no_grad():
            z = net.coders.encode(h.vectors)
            known = {"u": net.align(z), "own": method.unit(net.coders.decode(z)), "slope": method.unit(h.staged)}
        net.known = {name: t.cpu() for name, t in known.items()}
        return net

    def batch(self, net, rng, step):
        u, own, slope = net.known["u"], net.known["own"], net.known["slope"]
        sets = torch.randperm(u.shape[1], generator=rng)[:GROUP]
        rows = torch.randperm(slope.shape[1], generator=rng)[:STAGED]
        return u[:, sets], own[:, sets], slope[:, rows], torch.tensor(min(1.2**step, 1000.0))

    def loss(self, net, u, own, slope, sharpness):
        decoded = net.decoded(net.fusion(u))
        scores = method.soft_score(slope, decoded, sharpness)
        return method.fusion_loss(scores, decoded, own, self.variance, self.p.similarity_weight)

    def metrics(self, net):
        return net.measure(self.p)


class NoVariance(Gcav):
    """The ablation without the variance term."""

    variance = 0.0


def Weights(p, seeds: Sequence[int], before: Run) -> Series:  # noqa: N802 - the name of an arm
    """Stage 3 at other variance weights, for the first two seeds: what agreement costs."""
    some = list(seeds)[:2]
    runs = {f"weight={w:g}": Run(_at(w)(p), some, start=before.members[: len(some)]) for w in (1.0, 10.0, 20.0)}
    return Series(runs, seeds)


Weights.after = "aligned"


def _at(weight: float) -> type[Gcav]:
    """The task at one weight; what its figure shows, after the last step only."""

    def final(self, net):
        found = net.measure(self.p)
        return {name: found[name] for name in ("score_std_over_layers", "relevant_minus_irrelevant") if name in found}

    return type("AtWeight", (Gcav,), {"variance": weight, "final": final, "metrics": lambda self, net: {}})
