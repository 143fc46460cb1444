"""The method of the study gcav: concept vectors, TCAV scores, and the three stages that make one vector of those of all layers.

Axes: K classes, n images, M concepts (the last is random pictures), R random sets, L layers, D numbers of a layer (pooled, and
padded with zeros to the longest layer), e numbers of a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIMIT, SPLIT = 256, 100  # numbers of a layer after pooling; images in one pass of the network

# ---- what a layer says of an image, and the gradient of a class's logit there


def tapped(net: nn.Module, x: Tensor, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, K] and the outputs of the named layers."""
    kept: dict[str, Tensor] = {}
    hooks = [net.get_submodule(n).register_forward_hook(lambda _, __, out, n=n: kept.__setitem__(n, out)) for n in names]
    try:
        return net(x), [kept[name] for name in names]
    finally:
        for hook in hooks:
            hook.remove()


def pool(a: Tensor, limit: int = LIMIT) -> Tensor:
    """P a: means over squares, so that at most `limit` numbers are left; a vector stays. [B, C, H, W] -> [B, d]"""
    if a.dim() < 4:
        return a.flatten(1)
    side = 1
    while 4 * side * side * a.shape[1] <= limit and 2 * side <= min(a.shape[2:]):
        side *= 2
    return F.adaptive_avg_pool2d(a, side).flatten(1)


def padded(parts: Sequence[Tensor]) -> Tensor:
    """[B, d_l] of each layer, with zeros up to the longest. [B, L, D]"""
    longest = max(t.shape[1] for t in parts)
    return torch.stack([F.pad(t, (0, longest - t.shape[1])) for t in parts], 1)


def features(net: nn.Module, x: Tensor, names: Sequence[str]) -> tuple[Tensor, list[int]]:
    """Pooled activations of images [B, C, H, W]: [B, L, D], and the length d of each layer."""
    with torch.no_grad():
        found = [[pool(a) for a in tapped(net, part, names)[1]] for part in x.split(SPLIT)]
    return torch.cat([padded(one) for one in found]), [t.shape[1] for t in found[0]]


def slopes(net: nn.Module, x: Tensor, target: int, names: Sequence[str]) -> Tensor:
    """P grad_a h(a_l), h the logit of class `target`, for images [B, C, H, W]: [B, L, D].

    A step of a along P^T v changes h by grad . P^T v = (P grad) . v: the gradient is pooled as the activations were.
    """
    found = []
    with torch.enable_grad():
        for part in x.split(SPLIT):
            logits, taps = tapped(net, part.requires_grad_(), names)
            found.append(padded([pool(g) for g in torch.autograd.grad(logits[:, target].sum(), taps)]))
    return torch.cat(found)

# ---- concept vectors and scores


def logistic(x: Tensor, y: Tensor, penalty: float = 1.0, steps: int = 8) -> tuple[Tensor, Tensor]:
    """Logistic regressions side by side by Newton's method: x [B, n, d], y [n] of 0 and 1 -> weights [B, d], intercepts [B].

    Minimises sum_i log(1 + exp(-s_i f_i)) + penalty |w|^2 / 2, f = X w + b, b free. There w = X^T a, with a = (y - p) / penalty
    that sums to zero: each step solves for the n numbers a, since pictures are fewer than activations.
    """
    x, y = x.double(), y.double()
    kernel = x @ x.transpose(1, 2)
    one = torch.ones(len(x), len(y), 1, dtype=x.dtype, device=x.device)
    f = torch.zeros(len(x), len(y), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        p = f.sigmoid()
        w = (p * (1 - p)).clamp_min(1e-9)
        factor = torch.linalg.cholesky(kernel + torch.diag_embed(penalty / w))
        z = (f + (y - p) / w)[..., None]
        right = torch.cholesky_solve(torch.cat([z, one], 2), factor)
        b = right[..., 0].sum(1) / right[..., 1].sum(1)
        a = right[..., 0] - b[:, None] * right[..., 1]
        f = (kernel @ a[..., None])[..., 0] + b[:, None]
    return (a[:, None] @ x)[:, 0], b


def unit(v: Tensor) -> Tensor:
    """v / |v| along the last axis."""
    return F.normalize(v, dim=-1)


def score(slope: Tensor, v: Tensor) -> Tensor:
    """TCAV: the share of images whose logit grows along the vector. slope [K, n, L, D], v [K or 1, M, R, L, D] -> [K, M, R, L].

    Source: Kim et al. 2018, equation 2.
    """
    return (along(slope, v) > 0).float().mean(-2).unflatten(-1, v.shape[1:3]).movedim(1, -1)


def along(slope: Tensor, v: Tensor) -> Tensor:
    """slope . v for every image and vector: [K, n, L, D], [K or 1, M, R, L, D] -> [K, L, n, M * R]"""
    return slope.transpose(1, 2) @ v.flatten(1, 2).permute(0, 2, 3, 1)


def significant(scores: Tensor, level: float = 0.05) -> np.ndarray:
    """Where the scores over the random sets differ from those of random pictures (the last concept): two-sided t-test of each
    class, concept and layer. [K, M, R, L] -> [K, M - 1, L]"""
    from scipy import stats

    s = scores.double().cpu().numpy()
    mean, sd = s.mean(2), s.std(2, ddof=1)
    apart, error = mean[:, :-1] - mean[:, -1:], np.sqrt((sd[:, :-1] ** 2 + sd[:, -1:] ** 2) / s.shape[2])
    t = np.divide(apart, error, out=np.where(apart == 0, 0.0, np.inf), where=error > 0)
    return 2 * stats.t.sf(np.abs(t), 2 * s.shape[2] - 2) < level

# ---- stage 1: a code of one length for the vectors of every layer


class Coders(nn.Module):
    """Encoders and decoders of all layers, one hidden layer each: [..., L, D] -> [..., L, e] and back."""

    def __init__(self, lengths: Sequence[int], code: int, hidden: int = 128):
        super().__init__()
        layers, longest = len(lengths), max(lengths)
        for name, (a, b) in {"e1": (longest, hidden), "e2": (hidden, code), "d1": (code, hidden), "d2": (hidden, longest)}.items():
            self.register_parameter(name, nn.Parameter((2 * torch.rand(layers, a, b) - 1) * (3 / a) ** 0.5))
            self.register_parameter(name + "_bias", nn.Parameter(torch.zeros(layers, b)))
        with torch.no_grad():  # a unit vector has small entries: its padding does not count in them
            self.e1.mul_(longest**0.5)
        self.register_buffer("there", torch.arange(longest) < torch.tensor(lengths)[:, None])  # [L, D], false in the padding

    def encode(self, v: Tensor) -> Tensor:
        hidden = torch.einsum("...ld,ldh->...lh", v, self.e1) + self.e1_bias
        return torch.einsum("...lh,lhe->...le", hidden.relu(), self.e2) + self.e2_bias

    def decode(self, z: Tensor) -> Tensor:
        hidden = torch.einsum("...le,leh->...lh", z, self.d1) + self.d1_bias
        return (torch.einsum("...lh,lhd->...ld", hidden.relu(), self.d2) + self.d2_bias) * self.there


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 1 - cos(a, b)."""
    return 1 - F.cosine_similarity(a, b, dim=-1).mean()

# ---- stage 2: codes of one concept at two layers come together, those of others stay apart


class Align(nn.Module):
    """g(z) = z + W2 relu(W1 z), one for all layers."""

    def __init__(self, code: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(code, 2 * code), nn.Linear(2 * code, code)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.outer(self.inner(z).relu())


def info_nce(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """Row i of a belongs to row i of b and to no other: cross-entropy of cosines / temperature, mean of both directions.

    a, b [..., M, e]. Source: van den Oord, Li, Vinyals 2018.
    """
    logits = unit(a) @ unit(b).transpose(-1, -2) / temperature
    right = logits.diagonal(dim1=-2, dim2=-1)
    return (logits.logsumexp(-1) + logits.logsumexp(-2) - 2 * right).mean() / 2

# ---- stage 3: one code for all layers


class Fusion(nn.Module):
    """Attention over the layers of each concept, a net of its own for each of K classes: [M, R, L, e] -> codes [K, M, R, e].

    Layer embedding, one block of self-attention and feed-forward, mean over layers, linear.
    """

    def __init__(self, classes: int, layers: int, code: int):
        super().__init__()
        self.place = nn.Parameter(0.1 * torch.randn(classes, layers, code))
        for name, (a, b) in {"qkv": (code, 3 * code), "inner": (code, 2 * code), "outer": (2 * code, code), "last": (code, code)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(classes, a, b) / a**0.5))
            self.register_parameter(name + "_bias", nn.Parameter(torch.zeros(classes, 1, b)))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(getattr(self, name + "_bias"), x, getattr(self, name))

    def attend(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [K, M, R, e], and how much each layer is looked at [K, M, R, L] (mean over the layers that look)."""
        m, r, layers, code = u.shape
        k = len(self.place)
        x = F.layer_norm(u, (code,)).flatten(0, 1) + self.place[:, None]  # [K, M R, L, e]
        flat = (k, m * r * layers, code)
        q, key, value = self._linear("qkv", x.reshape(flat)).view(k, m * r, layers, 3 * code).chunk(3, -1)
        weight = (q @ key.transpose(-1, -2) / code**0.5).softmax(-1)
        x = F.layer_norm(x + weight @ value, (code,)).reshape(flat)
        x = F.layer_norm(x + self._linear("outer", self._linear("inner", x).relu()), (code,))
        c = self._linear("last", x.view(k, m * r, layers, code).mean(2))
        return c.view(k, m, r, code), weight.mean(2).view(k, m, r, layers)

    def forward(self, u: Tensor) -> Tensor:
        return self.attend(u)[0]


def soft_score(slope: Tensor, v: Tensor, sharpness: Tensor | float) -> Tensor:
    """sigmoid(T cos(slope, v)), mean over images, with the value of the hard step and the gradient of the soft one.

    slope [K, n, L, D] and v [K, M, R, L, D] have unit length. [K, M, R, L]
    """
    cos = along(slope, v)
    soft = (sharpness * cos).sigmoid()
    through = soft + ((cos > 0).to(soft) - soft).detach()
    return through.mean(-2).unflatten(-1, v.shape[1:3]).movedim(1, -1)


def fusion_loss(scores: Tensor, decoded: Tensor, own: Tensor, variance: float, similarity: float) -> Tensor:
    """variance * Var over layers of the scores [K, M, R, L] + similarity * mean(1 - cos(D_l(c), D_l(z_l))), both [.., L, D]."""
    return variance * scores.var(-1, correction=0).mean() + similarity * apart(decoded, own)


def mixed(decoded: Tensor, own: Tensor, mix: float) -> Tensor:
    """v'_l: a share `mix` of the decoded global vector, the rest the layer's own; all of unit length."""
    return mix * decoded + (1 - mix) * own


# ---- where in an image


def concept_maps(net: nn.Module, x: Tensor, v: Tensor, names: Sequence[str]) -> Tensor:
    """sum_c v_c a_c(place) at every layer, v_c the vector's mean over the places of channel c; enlarged to x [1, C, H, W].

    v [L, D] -> [L, H, W]. Its sign says whether a place looks like the concept or like random pictures.
    """
    found = []
    with torch.no_grad():
        for one, a in zip(v, tapped(net, x, names)[1], strict=True):
            channel = one[: pool(a).shape[1]].view(a.shape[1], -1).mean(1)
            found.append(F.interpolate(torch.einsum("c,bchw->bhw", channel, a)[:, None], size=x.shape[-2:], mode="bilinear")[0, 0])
    return torch.stack(found)
