"""The small networks: propensity and mediator law of every world side by side, and the predictor with its tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from claimlab.models import mlp
from claimlab.studies.causality import _causal_fairness_sensitivity_method as method
from claimlab.studies.causality._causal_fairness_sensitivity_data import Cases

CLIP = (0.02, 0.98)


class Side(nn.Module):
    """`copies` perceptrons of equal `sizes` for the same rows x [N, in]: [copies, N, out]; torch's default initial law."""

    def __init__(self, copies: int, *sizes: int):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:], strict=False))
        self.weights = nn.ParameterList(torch.empty(copies, a, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)
        self.biases = nn.ParameterList(torch.empty(copies, 1, b).uniform_(-(a**-0.5), a**-0.5) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x.tanh() if k else x) @ weight + bias
        return x


class Nuisance(nn.Module):
    """g_A(z) = P(a = 1 | z) and g_M(z, a) = P(m | a, z) for each of W tables: 16-16 and 32 hidden units."""

    def __init__(self, z: Tensor, d: int, tables: int):
        super().__init__()
        levels, features = z.shape
        self.register_buffer("z", z.float())
        both = torch.cat([z.repeat(2, 1), torch.arange(2.0).repeat_interleave(levels)[:, None] * 2 - 1], 1)
        self.register_buffer("both", both.float())
        self.treatment, self.mediator = Side(tables, features, 16, 16, 1), Side(tables, features + 1, 32, d)

    def loss(self, counts: Tensor) -> Tensor:
        """Mean cross-entropies of a and of m, summed over the tables; counts [W, K, 2, d, 2]."""
        rows = counts.sum((1, 2, 3, 4))
        of_a, of_m = counts.sum((3, 4)), counts.sum(4).transpose(1, 2)
        score, law = self.treatment(self.z)[..., 0], self.mediator(self.both).log_softmax(-1).reshape(of_m.shape)
        signed = torch.stack([-score, score], -1)
        return -(((of_a * nn.functional.logsigmoid(signed)).sum((1, 2)) + (of_m * law).sum((1, 2, 3))) / rows).sum()

    @torch.no_grad()
    def laws(self) -> tuple[Tensor, Tensor]:
        """pi [W, K] and observed [W, 2, K, d], clipped to [0.02, 0.98]; the latter sums to 1 again."""
        pi = self.treatment(self.z)[..., 0].double().sigmoid().clamp(*CLIP)
        q = self.mediator(self.both).double().softmax(-1).clamp(*CLIP)
        return pi, (q / q.sum(-1, keepdim=True)).unflatten(1, (2, len(self.z)))


class Predictor(nn.Module):
    """f(a, z, m) on all cells, and as buffers what judges it: frozen laws, counts, the truth, multipliers and mu."""

    def __init__(self, cases: Cases, laws: tuple[Tensor, Tensor], mu: float, blind: bool = False):
        super().__init__()
        pi, observed = laws
        _, _, levels, d = observed.shape
        self.body = mlp(cases.z.shape[1] + 1 + d, 32, 32, 1)
        a, z, m = torch.meshgrid(torch.arange(2), torch.arange(levels), torch.arange(d), indexing="ij")
        told = torch.zeros_like(a) if blind else 2 * a - 1
        inputs = torch.cat([told[..., None], cases.z[z], one_hot(m, d)], -1)
        known = {"inputs": inputs.float(), "pi": pi, "observed": observed, "seen": cases.train, "held": cases.test}
        truth = [(w.law(), w.law(True), w.share, observed_law(w.joint.sum(0))) for w in cases.worlds]
        for name, parts in zip(("law", "own_law", "true_share", "true_observed"), zip(*truth, strict=True), strict=False):
            known[name] = torch.stack(parts)
        factors = torch.tensor([w.factor for w in cases.worlds] or [1.0], dtype=torch.float64)
        known |= {"factor": factors, "multiplier": torch.zeros(3, dtype=torch.float64), "count": torch.zeros((), dtype=torch.long),
                  "mu": torch.tensor(mu, dtype=torch.float64)}  # fmt: skip
        for name, value in known.items():
            self.register_buffer(name, value)

    def scores(self) -> Tensor:
        """Logits [2, K, d]."""
        return self.body(self.inputs)[..., 0]

    def forward(self) -> Tensor:
        """f(a, z, m) [2, K, d] in double precision."""
        return self.scores().double().sigmoid()

    def cross_entropy(self) -> Tensor:
        """Mean over the training rows."""
        counts = self.seen[0].transpose(0, 1)
        score = self.scores().double()
        sides = [binary_cross_entropy_with_logits(score, torch.full_like(score, y), reduction="none") for y in (0.0, 1.0)]
        return (counts * torch.stack(sides, -1)).sum() / counts.sum()

    def limits(self, gamma: float, conditional: bool = False, scaled: bool = True) -> tuple[Tensor, Tensor]:
        """Ratio limits in the own world, insured at gamma times its factor, or at gamma itself."""
        strength = method.level(gamma, self.factor[0]) if scaled else gamma
        return method.limits(self.pi[0], strength, conditional)

    def interval(self, gamma: float, conditional: bool = False, *, half: str = "test", scaled: bool = True) -> tuple[Tensor, Tensor]:
        """Least and greatest effects [3], with P(z | a) of the rows of one half."""
        counts = self.held if half == "test" else self.seen[0]
        return method.bounds(self(), self.observed[0], *self.limits(gamma, conditional, scaled), shares(counts))

    def true_effects(self, conditional: bool = False, back: bool = False) -> Tensor:
        """Exact effects [3] in the own world: DE_01(0), IE_01(0), SE_01, or `back` from a = 1: DE_10(1), IE_10(1), SE_10."""
        law, (i, j) = self.own_law if conditional else self.law, (1, 0) if back else (0, 1)
        return method.effects(self(), law[0], self.true_observed[0], self.true_share[0], i, j, a=i)

    def accuracy(self) -> Tensor:
        """Share of the test rows with round(f) = y."""
        counts, said = self.held.transpose(0, 1), self().round()
        return (counts[..., 1] * said + counts[..., 0] * (1 - said)).sum() / counts.sum()


def shares(counts: Tensor) -> Tensor:
    """P(z | a) [..., 2, K] of counts [..., K, 2, d, 2]."""
    both = counts.sum((-1, -2)).transpose(-1, -2)
    return both / both.sum(-1, keepdim=True)


def observed_law(counts: Tensor, prior: float = 0.0) -> Tensor:
    """P(m | a, z) [..., 2, K, d] counted; `prior` rows are added to each cell."""
    found = counts.sum(-1).transpose(-2, -3) + prior
    return found / found.sum(-1, keepdim=True)
