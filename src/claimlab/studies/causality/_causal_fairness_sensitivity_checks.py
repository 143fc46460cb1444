"""What is asked of the bounds: do they hold the truth in fresh worlds, and are they what a linear programme finds?"""

from __future__ import annotations

import numpy as np
import torch
from scipy import optimize, sparse
from torch import Tensor

from claimlab.parts.confounding import ratio_limits
from claimlab.studies.causality import _causal_fairness_sensitivity_method as method
from claimlab.studies.causality._causal_fairness_sensitivity_data import World
from claimlab.studies.causality._causal_fairness_sensitivity_nets import Predictor, observed_law, shares

RESAMPLES, ERRORS, TABLES = 30, 2.0, 5


def coverage(net: Predictor, gamma: float, conditional: bool, seed: int) -> dict[str, Tensor]:
    """Shares of the true effects in fresh worlds that lie in their intervals, over worlds, effects and six predictors.

    `coverage` widens each end by two bootstrap standard errors, `coverage_bare` does not, `coverage_trusting` widens an
    interval at gamma = 1. The bootstrap draws the rows again and counts the laws instead of learning them.
    """
    rng = np.random.default_rng((seed, 7))
    fresh = slice(1, None)
    counts = net.seen[fresh]
    tables = torch.tensor(rng.uniform(size=(TABLES, *net().shape)), device=counts.device)
    g = torch.cat([tables, net()[None]])[:, None]
    truth = method.effects(g, (net.own_law if conditional else net.law)[fresh], net.true_observed[fresh], net.true_share[fresh])
    again = resampled(counts, rng)
    laws = (net.pi[fresh], net.observed[fresh], shares(counts))
    drawn = (counted(again), observed_law(again, 0.25), shares(again))
    found = {}
    for name, strength in (("", method.level(gamma, net.factor[fresh])), ("_trusting", torch.ones_like(net.factor[fresh]))):
        low, high = _interval(g, laws, strength, conditional)
        errors = [end.std(0) for end in _interval(g, tuple(part[:, None] for part in drawn), strength, conditional)]
        inside = (low - ERRORS * errors[0] <= truth) & (truth <= high + ERRORS * errors[1])
        found["coverage" + name] = inside.double().mean()
        if not name:
            found["coverage_bare"] = ((low <= truth) & (truth <= high)).double().mean()
            found["width"] = (high - low).mean()
    return found


def _interval(g: Tensor, laws: tuple[Tensor, ...], strength: Tensor, conditional: bool) -> tuple[Tensor, Tensor]:
    pi, observed, share = laws
    return method.bounds(g, observed, *method.limits(pi, strength, conditional), share)


def outcome(one: World, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Least, greatest and true effects [3] on the outcome y itself, from the exact table of a world.

    P(y | a, z, m) is shifted beside P(m | a, z). That covers a cause of a and y alone; where u moves m too, P(u | a, z, m) is
    another law than P(u | a, z), and nothing is promised.
    """
    seen = one.joint.sum(0)
    pi, observed = seen[:, 1].sum((1, 2)) / seen.sum((1, 2, 3)), observed_law(seen)
    y = (seen[..., 1] / seen.sum(-1)).transpose(0, 1)
    spread = method.outcome_limits(y, pi, gamma)
    low, high = method.bounds(y, observed, *method.limits(pi, gamma), one.share, spread=spread)
    true = method.effects(one.outcome(), one.law(), observed, one.share)
    true[2] += ((one.outcome()[0] - y[0]) * observed[0] * one.share[0][:, None]).sum()  # the second term of SE is as seen
    return low, high, true


@torch.no_grad()
def by_world(lab, arms: tuple[str, ...] = ("naive_fair", "robust_fair")):
    """A row a seed: strength of its world, where u pushes m, the largest true effect, and that seen from a = 1, which no arm
    constrains: |DE_10(1)|, |IE_10(1)|, |SE_10|. None for records, whose truth nobody knows."""
    import pandas as pd

    p, rows = lab.params, {}
    for k, seed in enumerate(lab.seeds):
        for arm in arms:
            net, known = lab.arms[arm].members[k], lab.arms[arm].tasks[k].cases.worlds
            if not known:
                return None
            way = ("down", "not", "up")[1 + int(np.sign(known[0].sign * p.confounder_to_mediator))]
            row = rows.setdefault(seed, {"strength": float(method.level(p.true_gamma, net.factor[0])), "u moves m": way})
            row[arm] = net.true_effects(p.conditional).abs().max().item()
            row[f"{arm}, from a = 1"] = net.true_effects(p.conditional, back=True).abs().max().item()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed").sort_values("strength", kind="stable")


def resampled(counts: Tensor, rng: np.random.Generator) -> Tensor:
    """Bootstrap tables [B, W, K, 2, d, 2]: as many rows again, drawn from each table."""
    flat = counts.flatten(1).cpu().numpy()
    drawn = [rng.multinomial(int(one.sum()), one / one.sum(), size=RESAMPLES) for one in flat]
    return torch.tensor(np.stack(drawn, 1).astype(float), device=counts.device).unflatten(-1, counts.shape[1:])


def counted(counts: Tensor) -> Tensor:
    """P(a = 1 | z) [..., K], half a row added to each side."""
    both = counts.sum((-1, -2)) + 0.5
    return both[..., 1] / both.sum(-1)


def lp_gap(seed: int, cells: int = 500, most: int = 6) -> float:
    """Largest |closed form - linear programme| over random cells of 2 to 6 values, both directions."""
    rng = np.random.default_rng((seed, 11))
    kept = np.arange(most) < rng.integers(2, most + 1, size=(cells, 1))
    q = rng.gamma(rng.uniform(0.2, 2, size=(cells, 1)), size=(cells, most)) * kept + 1e-300 * kept
    q /= q.sum(1, keepdims=True)
    values = rng.uniform(-1, 1, size=(cells, most))
    pi, gamma = torch.tensor(rng.uniform(0.02, 0.98, cells)), torch.tensor(rng.uniform(1, 6, cells))
    low, high = ratio_limits(pi, gamma)
    gaps = []
    for sign in (1, -1):
        closed = sign * method.highest(torch.tensor(sign * values), torch.tensor(q), low, high)
        gaps.append(np.abs(closed.numpy() - sign * programme(sign * values, q, low.numpy(), high.numpy())).max())
    return float(max(gaps))


def programme(values: np.ndarray, q: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Greatest mean of each row of values [N, d], by scipy: max sum P v with low q <= P <= high q and sum P = 1.

    One programme for all rows: they share no variable and no constraint, so its optimum is made of theirs.
    """
    rows, d = values.shape
    mass = sparse.kron(sparse.eye(rows), np.ones((1, d)), format="csr")
    box = np.stack([(low[:, None] * q).ravel(), (high[:, None] * q).ravel()], 1)
    found = optimize.linprog(-values.ravel(), A_eq=mass, b_eq=np.ones(rows), bounds=box, method="highs")
    if not found.success:
        raise RuntimeError(f"the linear programme has no optimum: {found.message}")
    return (found.x.reshape(rows, d) * values).sum(1)
