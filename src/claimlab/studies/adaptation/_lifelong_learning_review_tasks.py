"""Methods of continual learning as tasks of training, one task of the stream at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from claimlab.studies.adaptation import _lifelong_learning_review_memory as memory
from claimlab.studies.adaptation import _lifelong_learning_review_method as rule
from claimlab.studies.adaptation._lifelong_learning_review_data import Source, keyed, own_path, stream
from claimlab.training import Task

MOMENTUM = 0.9
FISHER = 300  # examples, at most, over which the Fisher information is a mean


@dataclass(frozen=True)
class Case:
    """One network: its seed, its stream, the strength of the remedy and the size of a rehearsal memory."""

    seed: int
    stream: str
    strength: float = 0.0
    memory: int = 100

    def source(self, p: Any) -> Source:
        return Source(self.seed, self.stream, p.tasks, p.similarity, p.images, own_path())


class Finetune(Task):
    """Task after task with no remedy. Member i is `cases[i]`; `t` counts tasks from 0.

    Everything random is keyed by seed, stream, task and step: all methods start and see new data alike.
    """

    lr, batch_size, ahead, traced, parts = 0.05, 64, 20, True, 5
    steps = property(lambda self: self.p.steps)
    every = property(lambda self: max(1, self.steps // self.parts))

    def __init__(self, params, t: int = 0, cases: Sequence[Case] = ()):
        super().__init__(params)
        self.t, self.cases = t, cases

    def bind(self, seed):
        bound = type(self)(self.p, self.t, self.cases)
        bound.case = self.cases[seed]
        bound.source = bound.case.source(self.p)
        bound.data = stream(bound.source)
        return bound

    def key(self, use: str, *more: int) -> torch.Generator:
        return keyed(self.case.seed, self.case.stream, use, self.t, *more)

    def optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=MOMENTUM, fused=True)

    # -- from task to task

    def init(self):
        net = self.fresh()
        self.equip(net)
        self.grade(net, 0)
        return net

    def fresh(self):
        return rule.Learner(self.case, self.data, self.p.width, keyed(self.case.seed, "start"))

    def equip(self, net) -> None:
        """Register what the method keeps."""
        if self.traced:
            for name in ("first", "fisher"):
                net.register_buffer(name, torch.zeros_like(rule.flat(net.body)).detach())

    def begin(self, start):
        net = copy.deepcopy(start)
        with torch.no_grad():
            self.consolidate(net)
        return net

    def consolidate(self, net) -> None:
        """What happens between two tasks, while the data of the last one are still there."""
        if self.traced and self.t == 1:
            net.first.copy_(rule.flat(net.body))
            net.fisher.copy_(self.fisher(net))

    def fisher(self, net):
        """Fisher information at the end of the last task, on its data."""
        x, _, heads = (part[:FISHER].to(net.scores.device) for part in self.data.all_of(self.t - 1))
        return rule.fisher(net.body, x, heads, self.key("fisher"))

    # -- training

    def rows(self, n: int, rng: torch.Generator):
        """(tasks, rows) [n, B] of the new data."""
        chosen = self.data.rows[self.t][torch.randint(len(self.data.rows[self.t]), (n, self.batch_size), generator=rng)]
        return torch.full_like(chosen, self.t), chosen

    def block(self, net, rng, step, n):
        return self.data.take(*self.rows(n, self.key("batch", step)))

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y, heads):
        return cross_entropy(rule.masked(net(x), heads), y)

    # -- what is measured

    def grade(self, net, row: int) -> None:
        """Accuracy on every task, also on those to come, into row `row` of the scores."""
        with torch.no_grad():
            net.scores[row] = torch.tensor(self.accuracies(net, self.p.tasks))

    def accuracies(self, net, count: int) -> list[float]:
        found = []
        for j in range(count):
            x, y = (part.to(net.scores.device) for part in self.data.test(j))
            found.append(float((net.logits(x, j).argmax(1) == y).double().mean()))
        return found

    def metrics(self, net):
        found = {f"task {j + 1}": value for j, value in enumerate(self.accuracies(net, self.t + 1))}
        if self.traced and self.t:
            alive = net.fisher > 0
            size, way = net.fisher[alive], (rule.flat(net.body) - net.first)[alive].abs()
            order = size.argsort()
            tenth = max(1, len(order) // 10)
            high, low = (float(way[part].square().mean().sqrt()) for part in (order[-tenth:], order[: 5 * tenth]))
            found |= {"moved_high": high, "moved_low": low}
        return found

    def final(self, net):
        self.grade(net, self.t + 1)
        if self.case.stream == "new_tasks":
            self.compare(net)
        return {}

    def compare(self, net) -> None:
        """Keep the answers to the task just finished; against what was kept, how far have those to earlier ones moved?"""
        for j in range(self.t + 1):
            rows, x = self.data.test_rows[j].to(net.scores.device), self.data.test(j)[0].to(net.scores.device)
            said = net.logits(x, j)
            if j == self.t:
                net.answers[rows] = said
            else:
                net.moved.copy_(torch.maximum(net.moved, (said - net.answers[rows]).abs().max()))

    def stored(self, net) -> float:
        """Numbers that have to be kept at the end: parameters, and what the method remembers."""
        return float(sum(p.numel() for p in net.parameters()))


class Joint(Finetune):
    """All data so far at once: after each task a fresh network, with as many steps as the others have had by then."""

    traced = False
    steps = property(lambda self: (self.t + 1) * self.p.steps)

    def begin(self, start):
        net = self.fresh()
        for name in ("scores", "answers", "moved"):
            net.get_buffer(name).copy_(start.get_buffer(name))
        return net

    def rows(self, n, rng):
        tasks = torch.cat([torch.full_like(rows, t) for t, rows in enumerate(self.data.rows[: self.t + 1])])
        chosen = torch.randint(len(tasks), (n, self.batch_size), generator=rng)
        return tasks[chosen], torch.cat(self.data.rows[: self.t + 1])[chosen]

    def stored(self, net):
        return super().stored(net) + sum(map(len, self.data.rows)) * (self.data.x.shape[1] + 1)


class Ewc(Finetune):
    """Elastic weight consolidation: a gradient step on the cross-entropy, then an implicit step on the penalty.

    An explicit step on the penalty diverges as soon as lr * lambda * F passes 4. The strength multiplies the knob `lam`.
    """

    lam = property(lambda self: self.p.lam)
    project = property(lambda self: self.draw_back if self.t else None)

    def equip(self, net):
        super().equip(net)
        for name in ("importance", "centre"):
            net.register_buffer(name, torch.zeros_like(net.first))
        net.register_buffer("rest", torch.zeros(()))

    def consolidate(self, net):
        super().consolidate(net)
        kept = net.importance, net.centre, net.rest
        importance = net.fisher if self.t == 1 else self.fisher(net)
        for old, new in zip(kept, rule.anchored(kept, importance, rule.flat(net.body)), strict=True):
            old.copy_(new)

    def draw_back(self, net):
        # a gradient moves a weight by lr / (1 - momentum) in all; with that reach the two steps rest where CE + penalty does
        reach = self.lam * net.strength * self.lr / (1 - MOMENTUM)
        found, start = {}, 0
        for name, p in net.named_parameters():
            a, c = (part[start : start + p.numel()].view_as(p) for part in (net.importance, net.centre))
            found[name], start = rule.drawn_back(p, a, c, reach), start + p.numel()
        return found

    def metrics(self, net):
        pulled = rule.penalty(rule.flat(net.body), net.importance, net.centre, net.rest)
        return super().metrics(net) | {"penalty": self.lam * net.strength * pulled}

    def stored(self, net):
        return super().stored(net) + 2 * net.centre.numel()


class EwcSwept(Ewc):
    lam = 1.0


class Lwf(Finetune):
    """Learning without forgetting: the old network's softened answers to the new data are targets, too."""

    traced = False

    def equip(self, net):
        net.register_buffer("old", rule.flat(net.body).detach().clone())

    def consolidate(self, net):
        net.old.copy_(rule.flat(net.body))

    def block(self, net, rng, step, n):
        x, y, heads = super().block(net, rng, step, n)
        if not self.t:
            return x, y, heads
        with torch.no_grad():
            old = rule.answer(net.body, net.old, x.to(net.old.device))
        return x, y, heads, old, self.finished().expand(n, -1, -1)

    def finished(self):
        """Rows of outputs that share a softmax, [T, C]: the heads of finished tasks, or the one head that all tasks share."""
        if self.case.stream != "new_tasks":
            return self.data.heads & (torch.arange(self.p.tasks) == 0)[:, None]
        return self.data.heads & (torch.arange(self.p.tasks) < self.t)[:, None]

    def loss(self, net, x, y, heads, old=None, finished=None):
        said = net(x)
        loss = cross_entropy(rule.masked(said, heads), y)
        return loss if old is None else loss + net.strength * rule.distillation(said, old, finished)

    def stored(self, net):
        return super().stored(net) + net.old.numel()


class Replay(Finetune):
    """Each step mixes a batch of new data with one from a reservoir of all data so far; the strength is the old data's share."""

    traced = False

    def store(self):
        """Remembered examples (x, y, heads) after the tasks before this one, or None."""
        kept = memory.rehearsal(self.source, self.t, self.case.memory)
        return self.data.take(*torch.tensor(kept).T) if kept else None

    def block(self, net, rng, step, n):
        new, kept = super().block(net, rng, step, n), self.store()
        if kept is None:
            return new
        rows = torch.randint(len(kept[1]), (n, self.batch_size), generator=self.key("memory", step))
        return *new, *(part[rows] for part in kept)

    def loss(self, net, x, y, heads, *old):
        if not old:
            return super().loss(net, x, y, heads)
        said = net(torch.cat([x, old[0]]))
        new, past = (cross_entropy(rule.masked(z, h), k) for z, h, k in zip(said.split(len(x)), (heads, old[2]), (y, old[1]), strict=True))
        return (1 - net.strength) * new + net.strength * past

    def stored(self, net):
        return super().stored(net) + self.case.memory * (self.data.x.shape[1] + 1)


class Gdm(Replay):
    """Growing dual memory: a network that grows when required remembers; its nodes are replayed to the slow perceptron."""

    def store(self):
        return memory.nodes(self.source, self.t) if self.t else None

    def stored(self, net):
        grown = memory.grown(self.source, self.p.tasks)
        return Finetune.stored(self, net) + grown.w.size + grown.wins.size


class Generative(Replay):
    """Pseudo-rehearsal: an autoencoder learns task after task, from new data and its own samples; the old network labels them."""

    def players(self):
        return {"body": self.loss, "vae": self.bound}

    def groups(self):
        return {"vae": {"lr": 3e-3}}

    def optimizer(self, groups):
        if groups[0]["key"] == "vae":
            return torch.optim.Adam(groups, fused=True)
        return super().optimizer(groups)

    def equip(self, net):
        net.vae = rule.Autoencoder(self.data.x.shape[1], self.p.width, keyed(self.case.seed, "vae"))
        for name, part in (("old", net.body), ("old_decoder", net.vae.decoder)):
            net.register_buffer(name, rule.flat(part).detach().clone())

    def consolidate(self, net):
        net.old.copy_(rule.flat(net.body))
        net.old_decoder.copy_(rule.flat(net.vae.decoder))

    def block(self, net, rng, step, n):
        new, own = Finetune.block(self, net, rng, step, n), self.key("dreams", step)
        noise = torch.randn(n, self.batch_size * (1 + bool(self.t)), rule.Autoencoder.hidden, generator=own)
        return (*new, *(self.dreams(net, n, own) if self.t else ()), noise)

    @torch.no_grad()
    def dreams(self, net, n: int, rng: torch.Generator):
        """Samples of the old autoencoder with labels of the old network; where tasks are named, for a random finished one."""
        z = torch.randn(n, self.batch_size, rule.Autoencoder.hidden, generator=rng)
        tasks = torch.randint(self.t, z.shape[:2], generator=rng)
        x = rule.answer(net.vae.decoder, net.old_decoder, z.to(net.old.device)).sigmoid()
        heads = self.data.heads[tasks].to(x.device)
        return x, rule.masked(rule.answer(net.body, net.old, x), heads).argmax(-1), heads

    def loss(self, net, x, y, heads, *old):
        return super().loss(net, x, y, heads, *old[:-1])

    def bound(self, net, x, y, heads, *old):
        *dreams, noise = old
        if not dreams:
            return net.vae.loss(x, noise).mean()
        new, past = net.vae.loss(torch.cat([x, dreams[0]]), noise).split(len(x))
        return (1 - net.strength) * new.mean() + net.strength * past.mean()

    def stored(self, net):
        return Finetune.stored(self, net) + net.old.numel() + net.old_decoder.numel()


class Progressive(Finetune):
    """A column a task; what is finished is frozen."""

    traced = False

    def fresh(self):
        return rule.Columns(self.case, self.data, max(1, self.p.width // 2), keyed(self.case.seed, "start"))

    def consolidate(self, net):
        net.grow(keyed(self.case.seed, "column", self.t))
