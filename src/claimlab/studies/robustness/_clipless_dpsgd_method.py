"""Networks whose gradients are bounded in advance: layers, projections, bounds, losses, and four ways to sum gradients.

A network is a tuple of steps over a list of weights. B examples, D weights, K classes. Everything is a function of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap
from torch.nn.functional import cross_entropy

TINY = 1e-12
CERTAIN = 8  # rounds of Bjorck from which on W W^T is so close to I that the distance gives the norm


# ---- layers


@dataclass(frozen=True)
class Linear:
    """Weight `index` [out, in] on the last axis, without bias. kernel > 1: a convolution without padding of [B, H, W, C], its
    weight on patches of kernel x kernel pixels that lie `stride` apart."""

    index: int
    kernel: int = 1
    stride: int = 1

    @property
    def reads(self) -> int:
        """How many patches hold one pixel at most: (kernel / stride)^2, rounded up on each axis; 1 for a dense layer."""
        return math.ceil(self.kernel / self.stride) ** 2


@dataclass(frozen=True)
class Residual:
    """x -> (x + f(x)) / 2, which is 1-Lipschitz where f is."""

    inner: tuple


def group_sort(x: Tensor) -> Tensor:
    """GroupSort2 (Anil et al. 2019) on the last axis [..., n], n even: entries i and i + n/2 in order. A permutation of each
    input, so neither activations nor gradients change their norm."""
    first, second = x.chunk(2, -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def l2_pool(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, H // 2, W // 2, C], the Euclidean norm of each 2 x 2 block: 1-Lipschitz."""
    h, w = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
    blocks = x[..., :h, :w, :].unflatten(-3, (h // 2, 2)).unflatten(-2, (w // 2, 2)).square().sum((-4, -2))
    return (blocks + TINY).sqrt() - TINY**0.5  # steep at 0 otherwise


def flat(x: Tensor) -> Tensor:
    """[B, ...] -> [B, n]."""
    return x.flatten(1)


def patches(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[B, H, W, C] -> [B, h, w, kernel kernel C]."""
    h, w = ((size - kernel) // stride * stride + 1 for size in x.shape[1:3])
    return torch.cat([x[:, i : i + h : stride, j : j + w : stride] for i in range(kernel) for j in range(kernel)], -1)


def forward(steps: tuple, weights: Sequence[Tensor], x: Tensor, taps=None, seen: dict | None = None) -> Tensor:
    """The answer of the network. `taps` are added to the outputs of the linear layers (their cotangents are the layers');
    `seen` collects the layers' inputs."""
    for step in steps:
        if isinstance(step, Linear):
            x = patches(x, step.kernel, step.stride) if step.kernel > 1 else x
            if seen is not None:
                seen[step.index] = x
            x = x @ weights[step.index].mT
            x = x if taps is None else x + taps[step.index]
        elif isinstance(step, Residual):
            x = 0.5 * (x + forward(step.inner, weights, x, taps, seen))
        else:
            x = step(x)
    return x


# ---- projections: for weights of any shape [out, in]; where out > in, the columns are meant


def bjorck(w: Tensor, rounds: int) -> Tensor:
    """W <- 1.5 W - 0.5 W W^T W (Bjorck and Bowie 1971). Each singular value s in (0, sqrt 3) moves to 1.5 s - 0.5 s^3, which
    is never above 1, and in the end to 1."""
    wide = w if w.shape[-2] <= w.shape[-1] else w.mT
    for _ in range(rounds):
        wide = 1.5 * wide - 0.5 * (wide @ wide.mT) @ wide
    return wide if w.shape[-2] <= w.shape[-1] else wide.mT


def power_norm(w: Tensor, rounds: int = 10) -> Tensor:
    """The spectral norm by power iteration from a fixed start: never more than the true one."""
    v = torch.linspace(1, 2, w.shape[-1], dtype=w.dtype, device=w.device)
    for _ in range(rounds):
        v = w.mT @ (w @ v)
        v = v / (v.norm() + TINY)
    return (w @ v).norm() + TINY


def orthogonal(w: Tensor, rounds: int) -> Tensor:
    """Spectral normalisation, then Bjorck: the rows (or columns) become orthonormal."""
    return bjorck(w / power_norm(w), rounds)


def norm_bound(w: Tensor, rounds: int) -> Tensor:
    """A number that the spectral norm does not exceed. After `rounds` of Bjorck ||W||^2 <= 1 + ||W W^T - I||_F, which needs one
    product; otherwise the largest singular value, plus what rounding may hide."""
    gram = w @ w.mT if w.shape[-2] <= w.shape[-1] else w.mT @ w
    if rounds < CERTAIN:
        return torch.linalg.eigvalsh(gram)[..., -1].clamp_min(TINY).sqrt() * (1 + 1e-5)
    eye = torch.eye(gram.shape[-1], dtype=w.dtype, device=w.device)
    return (1 + (gram - eye).norm()).sqrt()


# ---- bounds on gradients


def gain(step, norms: Sequence) -> Tensor | float:
    """Lipschitz constant of a step in its input; `norms` [D] are the spectral norms of the weights."""
    if isinstance(step, Linear):
        return norms[step.index] * math.sqrt(step.reads)
    if isinstance(step, Residual):
        return 0.5 * (1 + math.prod(gain(inner, norms) for inner in step.inner))
    return 1.0


def sensitivities(steps: tuple, norms: Sequence, radius, slope) -> list:
    """The bound of ||dL/dW_d||_F for each weight: G_d X_{d-1} sqrt(reads), with inputs in a ball of `radius` = X_0, layer
    outputs X_d = l_d X_{d-1}, and cotangents G_d = G_{d+1} l_{d+1} that start from the loss's constant `slope` in the logits."""
    found: dict[int, Tensor | float] = {}

    def walk(part: tuple, x, g) -> None:
        gains = [gain(step, norms) for step in part]
        for k, step in enumerate(part):
            before, after = x * math.prod(gains[:k]), g * math.prod(gains[k + 1 :])
            if isinstance(step, Linear):
                found[step.index] = after * before * math.sqrt(step.reads)
            elif isinstance(step, Residual):
                walk(step.inner, before, 0.5 * after)

    walk(steps, radius, slope)
    return [found[i] for i in range(len(found))]


# ---- losses of one example in its logits [K], with temperature tau, and their Lipschitz constants


def softmax_loss(logits: Tensor, y: Tensor, tau: float) -> Tensor:
    """CE(tau z, y) / tau: its slope is softmax(tau z) - e_y, at most sqrt 2 long."""
    return cross_entropy(tau * logits, y, reduction="none") / tau


def hinge_loss(logits: Tensor, y: Tensor, tau: float) -> Tensor:
    """Mean over the other classes k of max(0, 1 / tau - (z_y - z_k))."""
    gaps = (logits - logits.gather(-1, y[..., None]) + 1 / tau).clamp_min(0)
    return (gaps.sum(-1) - 1 / tau) / (logits.shape[-1] - 1)


def cosine_loss(logits: Tensor, y: Tensor, tau: float) -> Tensor:
    """1 - z_y / max(||z||, 1 / tau): its slope is at most 1 / min norm = tau."""
    length = (logits.square().sum(-1) + TINY).sqrt().clamp_min(1 / tau)
    return 1 - logits.gather(-1, y[..., None])[..., 0] / length


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"softmax": softmax_loss, "hinge": hinge_loss, "cosine": cosine_loss}


def loss_slope(loss: str, classes: int, tau: float) -> float:
    """Lipschitz constant of a loss in the logits. Hinge with a violated margins: sqrt(a^2 + a) / (K - 1), largest at a = K - 1."""
    return {"softmax": math.sqrt(2), "hinge": math.sqrt(classes / (classes - 1)), "cosine": tau}[loss]


def logit_slopes(loss: str, logits: Tensor, y: Tensor, tau: float, most: float = 0.0) -> tuple[Tensor, Tensor]:
    """Losses [B] and their slopes [B, K] in the logits; `most` > 0 shortens each slope to at most that length."""

    def total(z):
        each = LOSSES[loss](z, y, tau)
        return each.sum(), each

    slopes, (_, each) = grad_and_value(total, has_aux=True)(logits)
    if most > 0:
        slopes = slopes * (most / slopes.norm(dim=-1, keepdim=True).clamp_min(TINY)).clamp_max(1)
    return each, slopes


# ---- sums of gradients. `slopes_of(logits, y)` gives losses [B] and slopes [B, K]; mask [B] is 1 for examples that count


def plain_sum(steps, weights, x, y, mask, slopes_of) -> tuple[Tensor, list[Tensor]]:
    """One forward and one backward pass: losses [B], and the sum of gradients of each weight."""
    logits, pull = vjp(lambda w: forward(steps, w, x), list(weights))
    losses, slopes = slopes_of(logits, y)
    return losses, pull(slopes * mask[:, None])[0]


def ghost_parts(steps, weights, x, y, shapes, slopes_of) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Losses [B], slopes [B, K], and of every linear layer the inputs [B, P, in] and cotangents [B, P, out], P patches (1 for a
    dense layer): an example's gradient is the sum over patches of cotangent times input. shapes: of the layers' outputs."""
    taps = [x.new_zeros(len(x), *shape) for shape in shapes]

    def tapped(taps):
        seen: dict[int, Tensor] = {}
        return forward(steps, weights, x, taps, seen), [seen[i] for i in range(len(shapes))]

    logits, pull, seen = vjp(tapped, taps, has_aux=True)
    losses, slopes = slopes_of(logits, y)
    inputs, cotangents = ([part.reshape(len(x), -1, part.shape[-1]) for part in parts] for parts in (seen, pull(slopes)[0]))
    return losses, slopes, inputs, cotangents


def ghost_norms(inputs: list[Tensor], cotangents: list[Tensor]) -> Tensor:
    """Norms [D, B] of every example's gradient of every weight. For one patch ||cotangent|| ||input||; for several the sum over
    pairs of patches of the products of both inner products (Li et al. 2022), or the gradient itself where that is smaller."""
    squares = []
    for a, c in zip(inputs, cotangents, strict=True):
        if a.shape[1] == 1:
            squares.append(a.square().sum((1, 2)) * c.square().sum((1, 2)))
        elif a.shape[1] ** 2 > a.shape[2] * c.shape[2]:
            squares.append((c.mT @ a).square().sum((1, 2)))
        else:
            squares.append(((a @ a.mT) * (c @ c.mT)).sum((1, 2)).clamp_min(0))
    return torch.stack(squares).sqrt()


def shortening(norms: Tensor, most: float) -> Tensor:
    """The factor min(1, C / norm) by which clipping to norm C = `most` shortens."""
    return (most / norms.clamp_min(TINY)).clamp_max(1)


def weighted(inputs: list[Tensor], cotangents: list[Tensor], share: Tensor) -> list[Tensor]:
    """Sum over examples of share [B] times gradient, of each weight: one product, with the cotangents shortened before it."""
    return [(c * share[:, None, None]).flatten(0, 1).mT @ a.flatten(0, 1) for c, a in zip(cotangents, inputs, strict=True)]


def ghost_sum(steps, weights, x, y, mask, shapes, slopes_of, most: float) -> tuple[Tensor, list[Tensor]]:
    """The sum of gradients clipped to norm `most`, through norms only: each example's cotangents are shortened instead."""
    losses, _, inputs, cotangents = ghost_parts(steps, weights, x, y, shapes, slopes_of)
    return losses, weighted(inputs, cotangents, mask * shortening(ghost_norms(inputs, cotangents).square().sum(0).sqrt(), most))


def example_gradients(steps, weights, x, y, slopes_of) -> tuple[Tensor, list[Tensor]]:
    """Losses [B], and the gradient of every example, [B, out, in] for each weight."""

    def of_one(w, one, label):
        logits, pull = vjp(lambda v: forward(steps, v, one[None]), w)
        losses, slopes = slopes_of(logits, label[None])
        return losses[0], pull(slopes)[0]

    return vmap(of_one, (None, 0, 0))(list(weights), x, y)


def clipped_sum(steps, weights, x, y, mask, slopes_of, most: float) -> tuple[Tensor, list[Tensor]]:
    """DP-SGD (Abadi et al. 2016): form every example's gradient, shorten it to norm `most`, add up."""
    losses, each = example_gradients(steps, weights, x, y, slopes_of)
    share = mask * shortening(sum(g.square().sum((1, 2)) for g in each).sqrt(), most)
    return losses, [(share @ g.flatten(1)).view(g.shape[1:]) for g in each]


def released(sums: list[Tensor], noise: Tensor, bounds: Tensor, batch: float, strategy: str) -> list[Tensor]:
    """What leaves the private step: noisy mean gradients in units of the bound. `noise` is sigma times a standard normal vector
    of all entries, `bounds` [D] how far one example moves the sum of each weight's gradients, `batch` the expected batch.

    global: one noise, sigma Delta with Delta^2 = sum_d Delta_d^2. local: noise of each weight in proportion to its own Delta_d;
    D mechanisms at once count as one with sigma / sqrt D, so each takes sqrt D sigma Delta_d.
    """
    whole = bounds.norm().expand(len(bounds)) if strategy == "global" else len(bounds) ** 0.5 * bounds
    pieces = noise.split([g.numel() for g in sums])
    return [(g / unit + z.view(g.shape)) / batch for g, z, unit in zip(sums, pieces, whole, strict=True)]


def poisson(n: int, count: int, share: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """n batches in which each of `count` rows is with probability `share`, on its own: rows [n, places] and mask [n, places] that
    is 0 where a place is empty. Places are seven standard deviations more than a batch needs on average."""
    places = min(count, math.ceil(count * share + 7 * math.sqrt(count * share * (1 - share)) + 1))
    drawn, rows = torch.rand(n, count, generator=rng).topk(places, largest=False)
    mask = (drawn < share).float()
    if places < count and mask[:, -1].any():
        raise RuntimeError(f"a batch of {places} places is full: cutting it would break the privacy account")
    return rows, mask
