"""The method of root_optimizer: Newton-Schulz iterations with fixed or fitted numbers, the soft threshold, outliers, the step.

Matrices are [..., m, n] with any axes in front; nothing here mixes two matrices, so that members trained side by side in one
tensor stay apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Coefficients = Sequence[Sequence[float]]  # (a, b, c) of each iteration
MUON = (3.4445, -4.7750, 2.0315)
CUBIC = (1.5, -0.5, 0.0)
GUARDS = (1.0, 1.05)  # a polynomial fitted to small values alone may run away above 1


# ---- orthogonalization


def newton_schulz(b: Tensor, coefficients: Coefficients) -> Tensor:
    """X_0 = B / ||B||_F and X <- a X + b (X X') X + c (X X')^2 X, once for each (a, b, c). Tall matrices are turned first.

    It keeps the singular vectors of B and sends each singular value s of X_0 to `polynomial(s)`.
    """
    if b.shape[-2] > b.shape[-1]:
        return newton_schulz(b.mT, coefficients).mT
    x = b / torch.linalg.matrix_norm(b)[..., None, None].clamp_min(1e-20)
    for first, third, fifth in coefficients:
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * (gram @ gram)) @ x
    return x


def polynomial(s: Tensor, coefficients: Coefficients | Tensor) -> Tensor:
    """p_K(s): the odd polynomial s -> a s + b s^3 + c s^5, once for each (a, b, c)."""
    for first, third, fifth in coefficients:
        square = s * s
        s = s * (first + square * (third + square * fifth))
    return s


def polar(b: Tensor) -> Tensor:
    """The polar factor U V' of B = U diag(s) V': the nearest matrix whose singular values are all 1."""
    u, _, v = torch.linalg.svd(b, full_matrices=False)
    return u @ v


def polar_error(x: Tensor, exact: Tensor) -> Tensor:
    """||X - U V'||_F / sqrt(min(m, n)), the root mean square of p_K(s) - 1; [..., m, n] -> [...]."""
    return torch.linalg.matrix_norm(x - exact) / math.sqrt(min(x.shape[-2:]))


def scaled_values(b: Tensor) -> Tensor:
    """Singular values of B / ||B||_F, largest first; [..., m, n] -> [..., min(m, n)]."""
    s = torch.linalg.svdvals(b)
    return s / s.norm(dim=-1, keepdim=True)


def fit(samples: Sequence[Tensor], iterations: int, steps: int, separate: bool = False) -> Coefficients:
    """Numbers (a, b, c) that bring the singular values `samples` (several sets of equal weight) close to 1.

    Adam (rate 0.01, gradient clipped at norm 1) on the mean of (p_K(s) - 1)^2, from Muon's numbers; the best found is
    returned. One triple for all K iterations, or one for each if `separate`. The guards count as a 32nd part of every set.
    """
    sets = [s.detach().double().flatten().cpu() for s in samples]
    guards = torch.tensor(GUARDS, dtype=torch.float64)
    with torch.enable_grad():
        theta = torch.tensor([MUON] * (iterations if separate else 1), dtype=torch.float64, requires_grad=True)
        adam, best, found = torch.optim.Adam([theta], lr=1e-2), math.inf, theta.detach().clone()
        for _ in range(steps + 1):
            errors = [(polynomial(s, theta.expand(iterations, 3)) - 1).square().mean() for s in (*sets, guards)]
            loss = sum(errors[:-1]) / len(sets) + errors[-1] / 32
            if loss.item() < best:
                best, found = loss.item(), theta.detach().clone()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([theta], 1.0)
            adam.step()
    return tuple(tuple(row) for row in found.expand(iterations, 3).tolist())


# ---- outliers: cut off, or put in


def soft_threshold(m: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """M = B + O with O = sign(M) max(|M| - eps, 0); eps is the `quantile` of |M|, for each matrix on its own.

    O minimises 1/2 ||M - O||^2 + eps ||O||_1, and the base B = M - O is M clipped to [-eps, eps]. B is the clipped tensor
    itself, not a difference: at quantile 1 it is M to the last bit.
    """
    size = m.abs().flatten(-2)
    rank = max(1, math.ceil(quantile * size.shape[-1]))
    eps = size.kthvalue(rank, dim=-1).values[..., None, None]
    base = m.clamp(-eps, eps)
    return base, m - base


def hits(entries: int, count: int, code: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Places [count] among `entries` and draws [count] of Student's t with 2 degrees of freedom, all told by two numbers.

    t = z / sqrt(w / 2) with z normal and w chi-squared with 2 degrees of freedom; w / 2 is exponential.
    """
    rng = torch.Generator().manual_seed(int(code[0]) << 24 | int(code[1]))
    places, z = torch.randint(entries, (count,), generator=rng), torch.randn(count, generator=rng)
    return places, z / torch.empty(count).exponential_(generator=rng).sqrt()


def with_outliers(gradients: list[Tensor], codes: Tensor, rate: float, size: float) -> list[Tensor]:
    """A share `rate` of all entries gets `size` sd of its own tensor times a t(2) draw; members S lie in front of all.

    gradients [S, ...] each, codes [S, 2]: what a member is hit by follows from its code and the shapes alone.
    """
    lengths = torch.tensor([g[0].numel() for g in gradients])
    count = round(rate * int(lengths.sum()))
    if not count or not size:
        return gradients
    flat = torch.cat([g.flatten(1) for g in gradients], 1)
    owner = torch.arange(len(gradients)).repeat_interleave(lengths)
    sd = torch.stack([g.flatten(1).std(1, correction=0) for g in gradients], 1)
    for member, code in enumerate(codes.tolist()):
        places, draws = hits(flat.shape[1], count, code)
        hit = size * sd[member, owner[places].to(flat.device)] * draws.to(flat.device)
        flat[member].index_add_(0, places.to(flat.device), hit)
    parts = zip(flat.split(lengths.tolist(), 1), gradients, strict=True)
    return [part.contiguous().view_as(g) for part, g in parts]  # fused optimisers take no notice of strides


def norm_clipped(gradients: list[Tensor], limit: float) -> list[Tensor]:
    """All gradients of a member scaled down together where their joint norm is above `limit`; members S in front."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (limit / norm.clamp_min(1e-20)).clamp_max(1.0)
    return [g * factor.view(-1, *(1,) * (g.dim() - 1)) for g in gradients]


# ---- the step


def batched(act: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """act of every matrix [..., m, n]: all those of one shape, tall ones turned, in one call on [N, m, n] with m <= n."""
    wide = [m.mT if m.shape[-2] > m.shape[-1] else m for m in matrices]
    found: list[Tensor] = list(matrices)
    for shape in sorted({m.shape[-2:] for m in wide}):
        same = [i for i, m in enumerate(wide) if m.shape[-2:] == shape]
        stacks = [wide[i].reshape(-1, *shape) for i in same]
        for i, x in zip(same, act(torch.cat(stacks)).split([len(s) for s in stacks]), strict=True):
            x = x.view(wide[i].shape)
            found[i] = x.mT if wide[i] is not matrices[i] else x
    return found


class Orthogonalised(torch.optim.AdamW):
    """Muon's step for the group `hidden`, AdamW for all else, of any number of members side by side.

    M <- mu M + G; B = mu M + G (Nesterov) goes through `arm.direction`, which returns X; W <- W - lr (0.2 sqrt(max(m, n)) X
    + wd W). Before that `arm.received` makes of the gradients what arrives: outliers, clipping. An arm whose `share` is None
    leaves the matrices to AdamW; else AdamW works at that share of the rate. All settings are read from the groups at every
    step, and the random numbers come as the gradient of the group `draw`.
    """

    def __init__(self, groups: list[dict[str, Any]], arm: Any):
        super().__init__(groups, fused=True)
        self.arm = arm
        self.setting = groups[0]["key"].split(".")[0]
        self.last: list[Tensor] = []  # B of the last step, to be recorded

    @torch.no_grad()
    def step(self, closure=None):
        self._receive()
        for group in self.param_groups if self.arm.share is not None else ():
            if group["key"].endswith(".hidden"):
                self._turn(group)
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= self.arm.share or 1.0
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    def _receive(self) -> None:
        (draws,) = (group["params"] for group in self.param_groups if group["key"].endswith(".draw"))
        stacked = draws[0].dim() == 2  # one tensor [S, ...] for all members, else a tensor a member
        kinds = []
        for params in (group["params"] for group in self.param_groups if group["params"] is not draws):
            n = len(params) // (1 if stacked else len(draws))
            kinds += [params[k::n] for k in range(n) if params[k].grad is not None]
        codes, *gradients = ([w.grad for w in same] for same in (draws, *kinds))
        if codes[0] is None:  # held by hand: no draws, no outliers
            return
        join = (lambda parts: parts[0]) if stacked else torch.stack
        arrived = self.arm.received(self.setting, [join(g) for g in gradients], join(codes))
        for same, gradient in zip(kinds, arrived, strict=True):
            for k, w in enumerate(same):
                w.grad = gradient if stacked else gradient[k]
        for w in draws:
            w.grad = None

    def _turn(self, group: dict[str, Any]) -> None:
        moved = [w for w in group["params"] if w.grad is not None]
        self.last = []
        for w in moved:
            state = self.state[w]
            if not state:  # AdamW looks for a step when it loads a state
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(w)}
            momentum = state["momentum"].mul_(group["momentum"]).add_(w.grad)
            self.last.append(w.grad.add(momentum, alpha=group["momentum"]))
            w.grad = None
        for w, x in zip(moved, batched(self.arm.direction, self.last), strict=True):
            w.mul_(1 - group["lr"] * group["weight_decay"])
            w.add_(x, alpha=-group["lr"] * 0.2 * math.sqrt(max(w.shape[-2:])))
