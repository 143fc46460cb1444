"""HistoGraph: read a graph network's whole history, layer by layer and node by node. Is the last layer alone enough?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.validated import best, keep
from claimlab.studies.graphs import _histograph_data as data
from claimlab.studies.graphs import _histograph_method as method
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Task
from claimlab.training.series import Series

PAPER = Paper(
    title="Learning from Historical Activations in Graph Neural Networks", authors="Galron, Sinai, Maron, Eliasof", year=2026,
    url="https://arxiv.org/abs/2601.01123", theme="stages", system="HistoGraph",
    question="Should a graph classifier read only the last layer of its network, or the whole history of activations that led there?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    depth: int = knob(16, "layers of the backbone; plain pooling drowns as it grows", low=2, high=64)
    normaliser: str = knob("sum", "signed or only positive layer weights", choices=("sum", "softmax"))
    task: str = knob("mixed", "at which depth the label lives", choices=("local", "motif", "global", "mixed"))
    heads: int = knob(4, "heads of the node-wise attention", low=1, high=8)
    frozen_backbone: bool = knob(False, "train only the head on cached activations")
    feature_noise: float = knob(0.3, "noise on the node features", low=0.0, high=2.0)
    lr: float = knob(0.003, "learning rate", low=0.0003, high=0.03, live=True)
    steps: int = knob(150, "optimiser steps", low=5, high=2000)
    batch: int = knob(24, "graphs in a step", low=4, high=128)
    graphs: int = knob(600, "training graphs; a third as many for validation, two thirds for the test", low=24, high=2000)
    motif: str = knob("clique", "motif: a 6-clique less an edge, or a 5-cycle", choices=("clique", "cycle"))
    sweep: str = knob("few", "other depths and tasks, for the figures: none, few, or all with GIN", choices=("none", "few", "all"))
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=5, seeds=2, depth=3, graphs=40, batch=16, sweep="none")
    FULL = dict(steps=300, sweep="all")
    CONTROL = Control(
        set=dict(depth=2), vanishes=("deep-robust",),
        why="After two layers there is no oversmoothed end and hardly a history to look back on.",
    )  # fmt: skip

    def __post_init__(self):
        if 32 % self.heads:
            raise ValueError(f"heads = {self.heads} is not allowed: the width of 32 must be a multiple of heads (1, 2, 4 or 8)")


CLAIMS = (
    Claim("deep-robust", "In a deep network (16 layers) two-stage attention over the history classifies graphs better than mean "
          "pooling of the last layer.", kind="paired", metric="test_accuracy", arm="histograph_deep", baseline="last_mean_deep",
          better="higher", margin=0.03, source="abstract (robustness in deep GNNs); depth table"),
    Claim("shallow-gain", "At ordinary depth (4 layers) it is better than mean pooling too.", kind="paired",
          metric="test_accuracy", arm="histograph", baseline="last_mean", better="higher", margin=0.01, source="benchmark tables"),
    Claim("beats-jumping-knowledge", "It beats the simple use of history, jumping-knowledge concatenation with mean pooling, in "
          "the deep network.", kind="paired", metric="test_accuracy", arm="histograph_deep", baseline="jk_concat_deep",
          better="higher", margin=0.01, source="related work and comparison with JK"),
    Claim("node-stage-matters", "Dropping the node-wise attention (layer attention and mean only) costs accuracy.", kind="paired",
          metric="test_accuracy", arm="histograph_deep", baseline="layer_attention_only", better="higher", margin=0.005,
          source="ablation table"),
)  # fmt: skip
HONESTY = (
    "Small synthetic graphs with labels at known depths replace TU and OGB sets; a family of tasks with a known useful depth "
    "flatters any history-reading method, hence the jumping-knowledge baseline. Gains of one or two points on real benchmarks "
    "are below what five seeds can resolve."
)
REFERENCE = 64  # training graphs that give the statistics of batch norm when a network is asked


def history(net: nn.Module, world: data.World, part: slice) -> Tensor:
    """All activations of the graphs in `part` [L+1, B, n, d]; the nodes of the first training graphs alone count in the norm."""
    few = min(REFERENCE, world.parts["train"].stop)
    x, op, mask = (torch.cat([one[:few], one[part]]) for one in (world.x, world.op, world.mask))
    counted = mask.clone()
    counted[few:] = False
    return net.backbone(x, op, counted)[:, few:]


def chosen(net: nn.Module) -> nn.Module:
    """A copy of `net` with the parameters of its best validation accuracy."""
    return best(net).eval()


# ---- the arms


class Graph(Task):
    """One read-out on one depth. Arms of equal depth begin with the same backbone and see the same minibatches."""

    ahead, head, shallow, conv, soft = 5, "last", False, "gcn", False
    lr = property(lambda self: self.p.lr)
    depth = property(lambda self: 4 if self.shallow else self.p.depth)
    every = property(lambda self: min(25, self.steps))
    cached = property(lambda self: self.p.frozen_backbone and self.head != "last")

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.world = _world(self.p, seed, self.conv)
        train = bound.world.parts["train"]
        bound.given = tuple(part[train] for part in (bound.world.x, bound.world.op, bound.world.mask, bound.world.y))
        if self.cached:
            bound.frozen = pretrained(replace(self.p, depth=self.depth), seed, self.conv)
            with torch.no_grad():
                h = history(bound.frozen, bound.world, train).transpose(0, 1).contiguous()
            bound.given = (h, *bound.given[2:])
        return bound

    def init(self):
        p, w = self.p, self.world
        net = method.Net(w.x.shape[-1], w.classes, self.depth, self.head, heads=p.heads, conv=self.conv,
                         normaliser="softmax" if self.soft else p.normaliser)  # fmt: skip
        if self.cached:
            net.backbone.load_state_dict(self.frozen.backbone.state_dict())
            net.backbone.requires_grad_(False)
        return net

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.given[0]), (n, self.p.batch), generator=rng).to(self.given[0].device)
        return tuple(part[rows] for part in self.given)

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, *batch):
        """Mean cross entropy; with a frozen backbone the batch holds cached histories [B, L+1, n, d] in place of the graphs."""
        *inputs, mask, y = batch
        return cross_entropy(net.read(inputs[0].transpose(0, 1), mask) if self.cached else net(*inputs, mask), y)

    def accuracy(self, net, part: str) -> Tensor:
        where, w = self.world.parts[part], self.world
        return (net.read(history(net, w, where), w.mask[where]).argmax(1) == w.y[where]).float().mean()

    def metrics(self, net):
        found = self.accuracy(net, "validation")
        keep(net, float(found))
        return {"validation_accuracy": found}

    def final(self, net):
        """Test accuracy at the best validation accuracy; how close the divisor of stage 1 came to 0, and how often a weight was cut."""
        net, w, where = chosen(net), self.world, self.world.parts["test"]
        h, mask = history(net, w, where), w.mask[where]
        found = {"test_accuracy": (net.read(h, mask).argmax(1) == w.y[where]).float().mean()}
        if net.histograph and net.histograph.normaliser == "sum":
            _, alpha, _, total = net.histograph.stage1(h, mask)
            found |= {"smallest_sum": total.abs().min(), "cut_share": (alpha.abs() == method.CLIP).float().mean()}
        return found


def _world(p: Params, seed: int, conv: str = "gcn") -> data.World:
    return data.world(seed, p.graphs, p.motif, p.feature_noise, p.task, conv, data.own_path())


@lru_cache(maxsize=16)
def pretrained(p: Params, seed: int, conv: str) -> nn.Module:
    """A backbone trained with mean pooling, at its best validation accuracy: what a frozen head stands on."""
    task = type("Pretrained", (Graph,), {"conv": conv})(p)
    run = Run(task, [seed], device="cpu")
    for _ in run:
        pass
    return chosen(run.members[0])


class LastMeanDeep(Graph):
    pass


class LastMean(Graph):
    shallow = True


class HistographDeep(Graph):
    head = "both"


class Histograph(HistographDeep):
    shallow = True


class JkConcatDeep(Graph):
    head = "concat"


class LayerAttentionOnly(Graph):
    head = "layers"


class SoftmaxLayers(HistographDeep):
    soft = True
    when = staticmethod(lambda p: p.sweep == "all")


# ---- other depths and tasks, for the figures: the first seed (two with sweep = all)

READOUTS = {"last_mean": LastMeanDeep, "jk_concat": JkConcatDeep, "histograph": HistographDeep}
DEPTHS = {"few": (2, 8), "all": (2, 4, 8, 32, 64)}


def by_depth(p: Params, seeds: list[int], conv: str = "gcn") -> Series:
    """Every read-out at other depths."""
    few = seeds[: 2 if p.sweep == "all" else 1]
    tasks = {f"{name} {depth}": type(task.__name__, (task,), {"conv": conv})(replace(p, depth=depth))
             for depth in DEPTHS[p.sweep] for name, task in READOUTS.items() if conv == "gcn" or depth in (2, 8, 32)}  # fmt: skip
    return Series({name: Run(task, few) for name, task in tasks.items()}, seeds)


def by_task(p: Params, seeds: list[int]) -> Series:
    """The 4-layer HistoGraph trained on one attribute alone."""
    return Series({task: Run(Histograph(replace(p, task=task)), seeds[:1]) for task in data.TASKS}, seeds)


def frozen(p: Params, seeds: list[int]) -> Series:
    """Heads on a frozen backbone, the paper's cheap mode."""
    return Series({n: Run(READOUTS[n](replace(p, frozen_backbone=True)), seeds[:2]) for n in ("jk_concat", "histograph")}, seeds)


by_gin = partial(by_depth, conv="gin")
by_depth.when = lambda p: p.sweep != "none"
by_gin.when = frozen.when = lambda p: p.sweep == "all"
by_task.when = lambda p: p.sweep != "none" and not data.own_path()
ARMS = {
    "last_mean": LastMean, "histograph": Histograph, "last_mean_deep": LastMeanDeep, "histograph_deep": HistographDeep,
    "jk_concat_deep": JkConcatDeep, "layer_attention_only": LayerAttentionOnly, "softmax_layers": SoftmaxLayers,
    "by_depth": by_depth, "by_task": by_task, "by_gin": by_gin, "frozen": frozen,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {"attention over layers for one graph's nodes": beside(__name__, "attention_view"),
         "distance between node features, layer by layer": beside(__name__, "distance_view")}  # fmt: skip
