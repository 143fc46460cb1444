"""The two networks of the study neuralcsa: what the data say, and the worst shifts that a sensitivity model allows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from claimlab.studies.causality import _neuralcsa_method as method
from claimlab.studies.causality._neuralcsa_data import Data

UPPER = (0, 2)  # the four bounds are: upper and lower for the first treatment, upper and lower for the second
SOFT = 10.0  # sharpness of the step that stands for an event while h is trained


class Observed(nn.Module):
    """What the data say: P(A = 1 | x) and f(u; x, a). Carries the query points [n, d], so that it can be asked by itself."""

    def __init__(self, data: Data, bins: int, query: str):
        super().__init__()
        width, out = data.x.shape[1], 3 * bins + 3
        self.propensity, self.flow = method.Maker(width, 16, 16, 1), method.Maker(width + 1, 32, 32, out)
        self.binary, self.query = data.binary, query
        middle = data.points[len(data.points) // 2]
        near = (data.x - middle).norm(dim=1) + 10 * (data.a - data.levels[0]).abs()
        kept = {"points": data.points, "levels": torch.tensor(data.levels), "truth": data.truth, "scale": torch.tensor(data.scale),
                "nearby": data.y[near.argsort()[: max(20, len(near) // 20)]]}  # fmt: skip
        for name, value in kept.items():
            self.register_buffer(name, value)

    def chances(self) -> Tensor:
        """P(a | x) of the treatment in question at the query points, for the four bounds [4, n]; 0 for a real treatment."""
        one = torch.sigmoid(self.propensity(self.points))[:, 0]
        return torch.stack([one, one, 1 - one, 1 - one]) * self.binary

    def curves(self, flow: nn.Module) -> Tensor:
        """Knots of f for the four bounds at the query points, [4, n, 3, K + 1]; `flow` is one, or a copy for each bound."""
        levels = self.levels.repeat_interleave(2)[:, None, None].expand(-1, len(self.points), 1)
        context = torch.cat([self.points.expand(4, -1, -1), levels], -1)
        return method.knots(flow(context))


def fit(flow: nn.Module, x: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """Mean negative log-likelihood of the outcomes; summed over the copies of a flow that has several."""
    knots = method.knots(flow(torch.cat([x, a[:, None]], -1)))
    return method.negative_log_likelihood(knots, y[:, None]).mean((-2, -1)).sum()


def chance(net: Observed, x: Tensor, a: Tensor) -> Tensor:
    """Cross-entropy of the propensity; nothing where the treatment is real."""
    return nn.functional.binary_cross_entropy_with_logits(net.propensity(x)[:, 0], (a > 0).to(x)) * float(net.binary)


def nodes(m: int, like: Tensor) -> Tensor:
    """Midpoints of m equal parts of (0, 1)."""
    return (torch.arange(m, dtype=like.dtype, device=like.device) + 0.5) / m


def payoff(knots: Tensor, u: Tensor, query: str, soft: bool = False) -> Tensor:
    """What is averaged over the latent law: the outcome f(u), or the event that it is above the mean of the table."""
    knots = knots.expand(*u.shape[:-1], *knots.shape[-2:])
    if query != "prob_above":
        return method.forward(knots, u)
    start = method.inverse(knots, torch.zeros_like(u[..., :1]))[0]
    return torch.sigmoid(SOFT * (u - start)) if soft else (u > start).to(u)


def plain(net: Observed, m: int = 2000) -> Tensor:
    """The four means without any shift, [4, n]."""
    knots = net.curves(net.flow)
    u = method.latent(nodes(m, net.points))
    return payoff(knots, u.expand(*knots.shape[:2], -1), net.query).mean(-1)


def closed(net: Observed, gamma: float, m: int = 20_000, flow: nn.Module | None = None) -> Tensor:
    """The sharp marginal bounds on m samples of the flow (or of another one), [4, n]."""
    knots = net.curves(flow or net.flow)[::2]
    u = method.latent(nodes(m, net.points))
    values = payoff(knots, u.expand(*knots.shape[:2], -1), net.query)
    upper, lower = method.sharp(values, net.chances()[::2], gamma)
    return torch.stack([upper, lower], 1).flatten(0, 1)


def report(four: Tensor, best: Tensor, net: Observed) -> dict[str, Tensor]:
    """Coverage, width and gap to the sharp marginal bound of four bounds [4, n], in standard deviations of the outcome."""
    low, high = method.ends(four, net.query)
    inside = ((low <= net.truth) & (net.truth <= high)).float().mean()
    inside = torch.where(net.truth.isnan().any(), torch.nan, inside)  # of one's own table nobody knows the truth
    gap = (four - best)[list(UPPER)].abs().mean()
    return {"coverage": inside, "width": (high - low).mean(), "gap_to_closed_form": gap, "upper": four[list(UPPER)].mean()}


class Bounds(nn.Module):
    """Four shifts for each of P problems (a sensitivity model and its Gamma), over a frozen stage 1.

    Multipliers [P, 4, n] and the count of steps are buffers: the augmented Lagrangian's state travels with the member.
    """

    def __init__(self, first: Observed, problems: dict[str, float], models: tuple[str, ...], gamma: float, mixed: bool):
        super().__init__()
        self.first, self.models, self.names = first.requires_grad_(False), models, tuple(problems)
        self.query = first.query
        self.make = method.Maker(first.points.shape[1], 32, 1 + 3 * method.BUMPS, copies=(len(models), 4))
        with torch.no_grad():
            kept = {"knots": first.curves(first.flow), "pi": first.chances(), "best": closed(first, gamma),
                    "centre": plain(first)}  # fmt: skip
        kept["mix"] = kept["pi"] * mixed
        kept |= {"gamma": torch.tensor(list(problems.values())).to(kept["pi"])[:, None, None], "clock": torch.zeros(()).to(kept["pi"])}
        kept["multiplier"] = torch.zeros(len(models), *kept["pi"].shape).to(kept["pi"])
        for name, value in kept.items():
            self.register_buffer(name, value)

    def shifted(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At t [n, m]: G(t), q = p_h / phi at the shifted latents and the law phi on these nodes, each [P, 4, n, m]."""
        reached, slope = method.shift(self.make(self.first.points), t)
        return reached, 1 / slope, slope / slope.sum(-1, keepdim=True)

    def excess(self, q: Tensor, weight: Tensor, share: float = 1.0) -> Tensor:
        """c = D - Gamma of every problem, bound and point, [P, 4, n]."""
        found = [method.strength(m, q[i], self.mix[..., None], weight[i], share) for i, m in enumerate(self.models)]
        return torch.stack(found) - self.gamma

    def repaired(self, q: Tensor, weight: Tensor) -> Tensor:
        """The least weight of the identity that makes each shift admissible, [P, 4, n]."""
        found = [method.repair(m, q[i], self.mix[..., None], weight[i], self.gamma[i]) for i, m in enumerate(self.models)]
        return torch.stack(found)

    def four(self, m: int, knots: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The admissible bounds [P, 4, n] on m nodes, D - Gamma before the repair, and the weight that the repair took."""
        knots = self.knots if knots is None else knots
        t = nodes(m, self.pi).expand(self.pi.shape[1], -1)
        reached, q, weight = self.shifted(t)
        w = self.repaired(q, weight)
        still, moved = (payoff(knots, method.latent(at), self.query).mean(-1) for at in (t.expand_as(reached[0]), reached))
        keep = self.mix + (1 - self.mix) * w
        return keep * still + (1 - keep) * moved, self.excess(q, weight), w
