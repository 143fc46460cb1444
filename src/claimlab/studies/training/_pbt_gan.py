"""M small GANs side by side on a ring of eight Gaussians, each with two learning rates of its own, and the distance of points."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from claimlab.studies.training._pbt_method import Hyper, Space
from claimlab.studies.training._pbt_population import Company, through

LATENT, HIDDEN = 8, 64
SPACE: Space = (Hyper("critic_rate", 1e-5, 1e-1, log=True), Hyper("generator_rate", 1e-5, 1e-1, log=True))
WIDTHS = (0.1, 0.3, 1.0, 3.0)  # of the kernels, in units of the plane


class Side(nn.Module):
    """The critics or the generators of all members: weights [M, out, in], biases [M, out, 1], learning rates [M, 1]."""

    def __init__(self, sizes: tuple[int, ...], rates: Tensor, rngs: list[torch.Generator]):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        drawn = [[(2 * torch.rand(b, a + 1, generator=rng) - 1) / math.sqrt(a) for a, b in pairs] for rng in rngs]
        layers = [torch.stack(same) for same in zip(*drawn, strict=True)]
        self.weights = nn.ParameterList(layer[..., :-1].contiguous() for layer in layers)
        self.biases = nn.ParameterList(layer[..., -1:].contiguous() for layer in layers)
        self.hypers = nn.Parameter(rates.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Rows [M, B, in] or [B, in] to rows [M, B, out]."""
        return through(self.weights, self.biases, x).mT


class Gans(Company):
    """The GANs of one seed; `hypers` [M, 2] are the learning rates of critic and generator."""

    def __init__(self, hypers: Tensor, rngs: list[torch.Generator]):
        super().__init__(hypers)
        self.critic = Side((2, HIDDEN, HIDDEN, 1), hypers[:, :1], rngs)
        self.generator = Side((LATENT, HIDDEN, HIDDEN, 2), hypers[:, 1:], rngs)

    @torch.no_grad()
    def assign(self, hypers: Tensor) -> None:
        for side, column in ((self.critic, hypers[:, :1]), (self.generator, hypers[:, 1:])):
            side.hypers.copy_(column)


class MemberAdam(torch.optim.Optimizer):
    """Adam with a learning rate for each member, betas 0.5 and 0.999; the group's lr is a factor on all of them."""

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        (rates,) = next(g["params"] for g in self.param_groups if g["key"].endswith("hypers"))
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None and w is not rates):
                state = self.state[w]
                if not state:
                    state |= {"count": torch.zeros(()), "first": torch.zeros_like(w), "second": torch.zeros_like(w)}
                state["count"] += 1
                first, second = state["first"].lerp_(w.grad, 0.5), state["second"].lerp_(w.grad.square(), 0.001)
                count, rate = float(state["count"]), rates.reshape(*rates.shape[:-1], *(1,) * (w.dim() - rates.dim() + 1))
                size = (second / (1 - 0.999**count)).sqrt_().add_(1e-8)
                w.addcdiv_(first * rate, size, value=-group["lr"] / (1 - 0.5**count))


def critic_loss(net: Gans, real: Tensor, z: Tensor) -> Tensor:
    """Sum over members of -log d(x) - log(1 - d(g(z))), means over rows; real [M, B, 2], z [M, B, LATENT]."""
    fake = net.generator(z).detach()
    return (softplus(-net.critic(real)) + softplus(net.critic(fake))).mean((1, 2)).sum()


def generator_loss(net: Gans, real: Tensor, z: Tensor) -> Tensor:
    """Sum over members of -log d(g(z)), the non-saturating loss."""
    return softplus(-net.critic(net.generator(z))).mean((1, 2)).sum()


def ring(n: int, rng: torch.Generator) -> Tensor:
    """n points [n, 2] of eight Gaussians with sd 0.05, equally likely, on a circle of radius 1."""
    angle = torch.randint(8, (n,), generator=rng) * (math.pi / 4)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=rng)


def mmd(points: Tensor, real: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, unbiased, with the mean of Gaussian kernels of four widths: points [M, n, 2] and
    real [m, 2] to [M]. 0 where both come from the same law; may be slightly below by chance."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        square = torch.cdist(a, b).square()
        return sum(torch.exp(-square / (2 * width**2)) for width in WIDTHS) / len(WIDTHS)

    def within(a: Tensor) -> Tensor:
        n = a.shape[-2]
        return (kernel(a, a).sum((-2, -1)) - n) / (n * (n - 1))  # a point has kernel 1 with itself

    return within(points) + within(real) - 2 * kernel(points, real.expand(len(points), -1, -1)).mean((-2, -1))
