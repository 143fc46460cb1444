"""Remedies against forgetting as functions of tensors, the networks that they need, and the measures of continual learning."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

OUT = -1e9  # stands for an output that may not answer; finite, so that 0 times it is 0


def masked(logits: Tensor, heads: Tensor) -> Tensor:
    """Logits [..., C] with the outputs outside `heads` [..., C] (bool) ruled out."""
    return logits.masked_fill(~heads, OUT)


# ---- elastic weight consolidation: (lambda / 2) sum_t sum_i F_t,i (theta_i - theta*_t,i)^2


def fisher(net: nn.Module, x: Tensor, heads: Tensor, rng: torch.Generator, chunk: int = 64) -> Tensor:
    """Diagonal of the Fisher information, [P]: mean over x [n, D] of (d log p(y~ | x) / d theta)^2, y~ drawn from the net itself.

    Per-example gradients (torch.func). The squared gradient of a batch, or the true labels (the empirical Fisher), would be
    other numbers.
    """
    params = {name: p.detach() for name, p in net.named_parameters()}
    total = torch.zeros(sum(p.numel() for p in params.values()), device=x.device)
    with torch.no_grad():
        chances = masked(net(x), heads).softmax(1).cpu()
    if not torch.isfinite(chances).all():  # training diverged
        return total.fill_(math.nan)
    drawn = torch.multinomial(chances, 1, generator=rng)[:, 0].to(x.device)

    def log_chance(params, x, y, heads):
        return -F.cross_entropy(masked(functional_call(net, params, (x[None],)), heads), y[None])

    for part in torch.arange(len(x)).split(chunk):
        found = vmap(grad(log_chance), in_dims=(None, 0, 0, 0))(params, x[part], drawn[part], heads[part])
        total += torch.cat([g.square().sum(0).flatten() for g in found.values()])
    return total / len(x)


def anchored(before: tuple[Tensor, Tensor, Tensor], importance: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A sum of quadratics F_t (theta - theta*_t)^2 is one quadratic A (theta - C)^2 + rest: its (A, C, rest) with one more term."""
    a, c, rest = before
    total = a + importance
    safe = total.clamp_min(1e-30)
    centre = torch.where(total > 0, (a * c + importance * theta) / safe, theta)
    return total, centre, rest + (a * importance / safe * (c - theta) ** 2).sum()


def penalty(theta: Tensor, a: Tensor, c: Tensor, rest: Tensor) -> Tensor:
    """1/2 (sum_i A_i (theta_i - C_i)^2 + rest)."""
    return 0.5 * ((a * (theta - c).square()).sum() + rest)


def drawn_back(theta: Tensor, a: Tensor, c: Tensor, reach: Tensor | float) -> Tensor:
    """The minimum over z of reach * penalty(z) + |z - theta|^2 / 2: an implicit step, which no strength can make overshoot."""
    return (theta + reach * a * c) / (1 + reach * a)


# ---- learning without forgetting


def distillation(now: Tensor, old: Tensor, heads: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(old_T || now_T) of logits [B, C], summed over the rows of `heads` [H, C] (bool); an empty row adds nothing."""
    now_t, old_t = (F.log_softmax(masked(z[None], heads[:, None]) / temperature, -1) for z in (now, old))
    return temperature**2 * (old_t.exp() * (old_t - now_t)).sum(-1).mean(1).sum()


# ---- networks. Every one answers `logits(x, j)`: x [n, D] as examples of task j


class Continual(nn.Module):
    """What every network carries: which stream it lives in, and what it could do after each task."""

    def carry(self, case, shape: Stream) -> None:  # noqa: F821 - _data.Stream
        tasks, classes = shape.heads.shape
        self.case, self.tasks = case, tasks
        self.register_buffer("strength", torch.tensor(float(case.strength)))
        self.register_buffer("heads", shape.heads.clone())
        self.register_buffer("scores", torch.full((tasks + 1, tasks), math.nan))  # R: row 0 before all training
        self.register_buffer("answers", torch.full((len(shape.test_y), classes), math.nan))
        self.register_buffer("moved", torch.zeros(()))  # largest change of an answer to a finished task

    def logits(self, x: Tensor, j: int) -> Tensor:
        return masked(self(x), self.heads[j])


def perceptron(sizes: tuple[int, ...], rng: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU in between; weights and biases uniform in +-1 / sqrt(inputs), from `rng`."""
    layers: list[nn.Module] = []
    for inside, outside in zip(sizes, sizes[1:], strict=False):
        layers += [drawn_linear(inside, outside, rng), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def drawn_linear(inside: int, outside: int, rng: torch.Generator, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inside, outside, bias=bias)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-1, 1, generator=rng).div_(math.sqrt(inside))
    return layer


class Learner(Continual):
    """The perceptron that all gradient methods share."""

    def __init__(self, case, shape, width: int, rng: torch.Generator):
        super().__init__()
        self.body = perceptron((shape.x.shape[1], width, width, shape.heads.shape[1]), rng)
        self.carry(case, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer."""
        return self.body[:-1](x)


def flat(net: nn.Module) -> Tensor:
    """All parameters as one vector [P]."""
    return torch.cat([p.flatten() for p in net.parameters()])


def answer(net: nn.Module, theta: Tensor, x: Tensor) -> Tensor:
    """What `net` would say with the parameters theta [P]."""
    named, start = {}, 0
    for name, p in net.named_parameters():
        named[name] = theta[start : start + p.numel()].view_as(p)
        start += p.numel()
    return functional_call(net, named, (x,))


class Columns(Continual):
    """Progressive network: a column a task. h_l^k = ReLU(W_l^k h_(l-1)^k + sum_(j<k) U_l^(k:j) h_(l-1)^j); old columns are frozen.

    The number of parameters grows with the square of the tasks. Asked for a task j it answers with column j where the task is
    known; else with the column whose output has the lowest entropy.
    """

    def __init__(self, case, shape, width: int, rng: torch.Generator):
        super().__init__()
        self.sizes = (shape.x.shape[1], width, width, shape.heads.shape[1])
        self.columns = nn.ModuleList()
        self.carry(case, shape)
        self.grow(rng)

    def grow(self, rng: torch.Generator) -> None:
        """Freeze what is there and add a column."""
        self.columns.requires_grad_(False)
        own = [drawn_linear(a, b, rng) for a, b in zip(self.sizes, self.sizes[1:], strict=False)]
        side = [[drawn_linear(a, b, rng, bias=False) for _ in self.columns]
                for a, b in zip(self.sizes[1:], self.sizes[2:], strict=False)]  # fmt: skip
        self.columns.append(nn.ModuleDict({"own": nn.ModuleList(own), "side": nn.ModuleList(map(nn.ModuleList, side))}))

    def outputs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of every column, and their last hidden layers."""
        below = [column["own"][0](x).relu() for column in self.columns]
        for layer in range(1, len(self.sizes) - 1):
            sums = []
            for k, column in enumerate(self.columns):
                sideways = zip(column["side"][layer - 1], below[:k], strict=True)
                sums.append(column["own"][layer](below[k]) + sum(u(h) for u, h in sideways))
            hidden, below = below, [s.relu() for s in sums]
        return sums, hidden

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the newest column, the one that trains."""
        return self.outputs(x)[0][-1]

    def logits(self, x: Tensor, j: int) -> Tensor:
        said = self.outputs(x)[0]
        if self.case.stream == "new_tasks":
            return masked(said[min(j, len(said) - 1)], self.heads[j])
        said = torch.stack(said, 1)  # [n, K, C]
        entropy = -(said.softmax(-1) * said.log_softmax(-1)).sum(-1)
        return said[torch.arange(len(x)), entropy.argmin(1)]

    def features(self, x: Tensor) -> Tensor:
        return self.outputs(x)[1][-1]


class Means(Continual):
    """Nearest class mean on the raw inputs: sums [C, D] and counts [C], updated example by example."""

    def __init__(self, case, shape):
        super().__init__()
        self.carry(case, shape)
        self.register_buffer("sums", torch.zeros(shape.heads.shape[1], shape.x.shape[1], dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(shape.heads.shape[1]))

    def see(self, x: Tensor, y: Tensor) -> None:
        self.sums.index_add_(0, y, x.double())
        self.counts.index_add_(0, y, torch.ones(len(y)))

    def forward(self, x: Tensor) -> Tensor:
        """Minus the squared distances to the means; a class that never came is ruled out."""
        distance = torch.cdist(x.double(), self.sums / self.counts.clamp_min(1)[:, None]).square()
        return masked(-distance, self.counts > 0).to(x)

    def features(self, x: Tensor) -> Tensor:
        return x


class Autoencoder(nn.Module):
    """Variational autoencoder of inputs in [0, 1]: D - 2w' - z - 2w' - D with z = 16, one hidden layer of `width` each way."""

    hidden = 16

    def __init__(self, inputs: int, width: int, rng: torch.Generator):
        super().__init__()
        self.encoder = perceptron((inputs, width, 2 * self.hidden), rng)
        self.decoder = perceptron((self.hidden, width, inputs), rng)

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """Minus the evidence bound of x [B, D] with noise [B, 16], [B]: binary cross-entropy plus KL(q(z | x) || N(0, 1))."""
        mean, log_var = self.encoder(x).chunk(2, -1)
        said = self.decoder(mean + noise * (0.5 * log_var).exp())
        wrong = F.softplus(said) - x * said  # binary cross-entropy of a logit, also for grey pixels
        return wrong.sum(-1) + 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)


# ---- measures: R [T + 1, T] accuracy on task i after task t (row 0: untrained), sizes [T] test examples a task


def overall(scores: np.ndarray, sizes: np.ndarray, t: int) -> float:
    """Accuracy on the test examples of tasks 1..t after task t."""
    return float(np.average(scores[t, :t], weights=sizes[:t]))


def omegas(scores: np.ndarray, joint: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """After Kemker et al., means over t = 2..T: base (task 1, relative to joint at the same t), new (the task just learnt, not
    relative), all (all tasks so far, relative to joint at the same t)."""
    later = range(2, scores.shape[1] + 1)
    return {
        "base": float(np.mean([_ratio(scores[t, 0], joint[t, 0]) for t in later])),
        "new": float(np.mean([scores[t, t - 1] for t in later])),
        "all": float(np.mean([_ratio(overall(scores, sizes, t), overall(joint, sizes, t)) for t in later])),
    }


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan  # joint training that is never right is nothing to compare with


def transfers(scores: np.ndarray) -> dict[str, float]:
    """Backward: mean over i < T of R_T,i - R_i,i. Forward: mean over i > 1 of R_(i-1),i - R_0,i."""
    last = scores.shape[1]
    return {
        "backward": float(np.mean([scores[last, i] - scores[i + 1, i] for i in range(last - 1)])),
        "forward": float(np.mean([scores[i, i] - scores[0, i] for i in range(1, last)])),
    }
