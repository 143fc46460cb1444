"""Pieces of the study `mult-vae`: likelihoods, KL term, annealing, ranking metrics, and the two linear recommenders.

B users a batch, I items, d latent numbers. Clicks x are 0/1 [B, I], f the decoder's outputs [B, I].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

CONFIDENCE = 2.0  # alpha of the Gaussian likelihood, best of 2, 10 and 40 on development seeds


def multinomial(f: Tensor, x: Tensor) -> Tensor:
    """sum_i x_i log softmax(f)_i, section 2.1: items compete for one unit of probability. The constant of the counts is left out. [B]"""
    return (x * f.log_softmax(-1)).sum(-1)


def logistic(f: Tensor, x: Tensor) -> Tensor:
    """sum_i x_i log s(f_i) + (1 - x_i) log(1 - s(f_i)): every item answers for itself. [B]"""
    return (logsigmoid(f) - (1 - x) * f).sum(-1)


def gaussian(f: Tensor, x: Tensor) -> Tensor:
    """- sum_i c_i / 2 (x_i - f_i)^2 with c = 1 for items not clicked and 1 + alpha for clicked ones. [B]"""
    return -((1 + CONFIDENCE * x) / 2 * (x - f).square()).sum(-1)


LIKELIHOODS = {"multinomial": multinomial, "logistic": logistic, "gaussian": gaussian}


def divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of every latent number: (sigma^2 + mu^2 - 1 - log sigma^2) / 2. [B, d]"""
    return 0.5 * (log_var.exp() + mu.square() - 1 - log_var)


def annealed(step: Tensor, ramp: int, ceiling: float) -> Tensor:
    """beta at `step`: a straight line that would reach 1 after `ramp` steps, cut off at `ceiling`; section 2.2.2."""
    return (step / ramp).clamp(max=ceiling) if ramp else torch.full_like(step, ceiling)


class Autoencoder(nn.Module):
    """Clicks -> tanh -> mean and log variance of z; z -> tanh -> one output an item. Without `posterior`, z is the mean.

    Buffers: `clock` counts steps, `best` is the highest validation NDCG so far and the beta at which it was seen, `ceiling` is
    where beta stops.
    """

    def __init__(self, items: int, hidden: int, latent: int, posterior: bool = True, ceiling: float = 1.0):
        super().__init__()
        self.posterior = posterior
        self.inward, self.code = nn.Linear(items, hidden), nn.Linear(hidden, latent * (2 if posterior else 1))
        self.outward, self.items = nn.Linear(latent, hidden), nn.Linear(hidden, items)
        for layer in (self.inward, self.code, self.outward, self.items):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)
        self.register_buffer("clock", torch.zeros(()))
        self.register_buffer("best", torch.tensor([-1.0, 0.0]))
        self.register_buffer("ceiling", torch.tensor(float(ceiling)))

    def encode(self, x: Tensor, kept: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 [B, d] of clicks of length 1; `kept` [B, I] is dropout's mask, already divided by its mean."""
        code = self.code(self.inward(normalize(x, dim=-1) * kept).tanh())
        return code.chunk(2, -1) if self.posterior else (code, torch.zeros_like(code))

    def decode(self, z: Tensor) -> Tensor:
        """[B, d] -> [B, I]"""
        return self.items(self.outward(z).tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all items, from the mean of z and never from a draw. [B, I] -> [B, I]"""
        return self.decode(self.encode(x)[0])

    def factors(self) -> Tensor:
        """One row an item: its weights in the last layer. [I, hidden]"""
        return self.items.weight.detach()


# ---- ranking


def ranked(scores: Tensor, shown: Tensor) -> Tensor:
    """Scores with the items that the user has already clicked put last. [U, I]"""
    return scores.masked_fill(shown > 0, -torch.inf)


def ndcg(scores: Tensor, hidden: Tensor, k: int = 100) -> Tensor:
    """sum over the top k of [hidden] / log2(1 + rank), divided by its value with all hidden clicks in front. [U]"""
    k = min(k, scores.shape[-1])
    weight = 1 / torch.arange(2, k + 2, device=scores.device).log2()
    gained = (hidden.gather(-1, scores.topk(k).indices) * weight).sum(-1)
    return gained / weight.cumsum(0)[hidden.sum(-1).long().clamp(1, k) - 1]


def recall(scores: Tensor, hidden: Tensor, r: int) -> Tensor:
    """Hidden clicks among the top r, as a share of min(r, all hidden clicks). [U]"""
    found = hidden.gather(-1, scores.topk(min(r, scores.shape[-1])).indices).sum(-1)
    return found / hidden.sum(-1).clamp(1, r)


# ---- linear recommenders


def half_step(x: Tensor, other: Tensor, alpha: float, lam: float) -> Tensor:
    """Alternating least squares (Hu, Koren and Volinsky): (Y' C_u Y + lam I)^-1 Y' C_u x_u of every row u, with c = 1 + alpha x.

    x [U, I] clicks, other [I, k] the factors Y that stay; [U, k]. It is the minimum of
    sum_i c_ui (x_ui - p_u . y_i)^2 + lam |p_u|^2.
    """
    k = other.shape[1]
    outer = (other[:, :, None] * other[:, None, :]).flatten(1)
    left = other.T @ other + lam * torch.eye(k, dtype=x.dtype, device=x.device) + alpha * (x @ outer).unflatten(1, (k, k))
    return torch.cholesky_solve(((1 + alpha) * x @ other)[..., None], torch.linalg.cholesky(left))[..., 0]


class Factors(nn.Module):
    """Weighted matrix factorisation: item factors stay, a user's factor is solved from the clicks shown."""

    def __init__(self, y: Tensor, alpha: float, lam: float):
        super().__init__()
        self.alpha, self.lam = alpha, lam
        self.register_buffer("y", y)

    def forward(self, x: Tensor) -> Tensor:
        return half_step(x, self.y, self.alpha, self.lam) @ self.y.T

    def factors(self) -> Tensor:
        return self.y


def factorise(x: Tensor, k: int, alpha: float, lam: float, rng: torch.Generator, sweeps: int = 8) -> Factors:
    """`sweeps` alternations on the training clicks x [U, I], from small random item factors [I, k]."""
    y = 0.1 * torch.randn(x.shape[1], k, generator=rng).to(x)
    for _ in range(sweeps):
        y = half_step(x.T, half_step(x, y, alpha, lam), alpha, lam)
    return Factors(y, alpha, lam)


class Neighbours(nn.Module):
    """A linear map from clicks to scores, B [I, I] with a diagonal of 0: no item recommends itself."""

    def __init__(self, b: Tensor):
        super().__init__()
        self.register_buffer("b", b)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.b

    def factors(self) -> Tensor:
        return self.b.T


def ease(x: Tensor, lam: float) -> Neighbours:
    """B = I - P diag(1 / diag P) with P = (X'X + lam I)^-1 (Steck 2019), the least squares with a diagonal held at 0."""
    exact = x.double()
    p = torch.linalg.inv(exact.T @ exact + lam * torch.eye(x.shape[1], dtype=torch.float64, device=x.device))
    b = -p / p.diagonal()
    b.fill_diagonal_(0)
    return Neighbours(b.to(x.dtype))
