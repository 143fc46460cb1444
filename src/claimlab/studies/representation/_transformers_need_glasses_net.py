"""A causal transformer of plain matrices with exchangeable position codes and stored attention, and a GRU of equal size.

Functions act on any object that holds the matrices of a layer, a `Block` or a stack of untrained draws [D, ...] alike.
Axes: B rows or D draws, T tokens, h heads, e = d / h numbers a head, d width, f hidden width.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import layer_norm, scaled_dot_product_attention

CODES = ("none", "sinusoidal", "rotary", "alibi")
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
HIGHER = {"bfloat16": "float32", "float32": "float64"}  # the format whose result counts as exact for the rounding noise
MATRICES = ("query", "key", "value", "out", "up", "up_bias", "down", "down_bias")


# ---- position codes


def angles(at: Tensor, width: int) -> Tensor:
    """t / 10000^(2i / width), i = 0 ... width/2 - 1, in float64: [T] -> [T, width/2]."""
    return at.double()[..., None] * 10000.0 ** (-torch.arange(0, width, 2, device=at.device).double() / width)


def sinusoids(at: Tensor, width: int) -> Tensor:
    """Sines and cosines of `angles`, side by side (Vaswani 2017): [T] -> [T, width]."""
    return torch.cat([angles(at, width).sin(), angles(at, width).cos()], -1)


def rotate(x: Tensor, at: Tensor) -> Tensor:
    """RoPE (Su 2021): entry i and entry i + e/2 of x [..., T, e] are turned together by angle i of position at [T]."""
    turn = angles(at, x.shape[-1])
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def alibi(heads: int, distance: Tensor) -> Tensor:
    """-m_h |i - j| with m_h = 2^(-8 h / heads), h = 1 ... heads (Press 2022): [...] -> [heads, ...]."""
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device=distance.device).double() / heads)
    return -slopes.view(-1, *[1] * distance.dim()) * distance


# ---- one layer


def norm(x: Tensor) -> Tensor:
    """Layer norm without gain or shift: the matrix behind it could hold both."""
    return layer_norm(x, x.shape[-1:])


def split(x: Tensor, heads: int) -> Tensor:
    """[..., T, d] -> [..., h, T, e]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join(x: Tensor) -> Tensor:
    """[..., h, T, e] -> [..., T, d]."""
    return x.transpose(-3, -2).flatten(-2)


def sharpened(q: Tensor, at: Tensor, gain: float, sharp: bool) -> Tensor:
    """Queries times gain / sqrt(e), and times log(number of visible tokens) if `sharp`."""
    q = q * (gain / math.sqrt(q.shape[-1]))
    return q * (at + 1).double().log().to(q.dtype)[..., None] if sharp else q


def scores(q: Tensor, k: Tensor, at: Tensor, seen: Tensor, code: str) -> Tensor:
    """Attention logits of scaled queries at positions `at` [T] on keys at positions `seen` [S]: [..., h, T, S]."""
    found = q @ k.transpose(-1, -2)
    if code != "alibi":
        return found
    heads = q.shape[-2 - at.dim()]
    return found + alibi(heads, (at[..., :, None] - seen[..., None, :]).double()).to(q.dtype)


def project(w, x: Tensor, at: Tensor, heads: int, code: str, gain: float, sharp: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (scaled), keys and values [..., h, T, e] of the residual stream x [..., T, d] at positions at [T]."""
    x = norm(x)
    q, k, v = (split(x @ matrix, heads) for matrix in (w.query, w.key, w.value))
    if code == "rotary":
        q, k = rotate(q, at), rotate(k, at)
    return sharpened(q, at, gain, sharp), k, v


def psi(w, z: Tensor) -> Tensor:
    """The feed-forward part: relu(z U + b) D + c."""
    return (z @ w.up + w.up_bias).relu() @ w.down + w.down_bias


def leave(w, x: Tensor, mixed: Tensor) -> Tensor:
    """The layer's end: z = x + sum over heads of (mixed values) W_out, v' = z + psi(norm z)."""
    z = x + join(mixed) @ w.out
    return z + psi(w, norm(z))


def layer(w, x: Tensor, heads: int, code: str, gain: float, sharp: bool, kept: list | None = None) -> Tensor:
    """One pre-norm layer on x [..., T, d]; the attention matrix [..., h, T, T] is appended to `kept`."""
    at = torch.arange(x.shape[-2], device=x.device)
    q, k, v = project(w, x, at, heads, code, gain, sharp)
    unseen = torch.ones(len(at), len(at), dtype=torch.bool, device=x.device).triu(1)
    weights = scores(q, k, at, at, code).masked_fill(unseen, -math.inf).softmax(-1)
    if kept is not None:
        kept.append(weights)
    return leave(w, x, weights @ v)


class Block(nn.Module):
    """The matrices of one layer, N(0, 1 / fan_in), biases zero."""

    def __init__(self, width: int, hidden: int, rng: torch.Generator | None = None):
        super().__init__()
        shapes = {"query": (width, width), "key": (width, width), "value": (width, width), "out": (width, width),
                  "up": (width, hidden), "down": (hidden, width)}  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=rng) / math.sqrt(shape[0])))
        self.up_bias, self.down_bias = nn.Parameter(torch.zeros(1, hidden)), nn.Parameter(torch.zeros(1, width))


class Transformer(nn.Module):
    """Decoder-only: tokens [B, T] -> last-layer states [B, T, d] before the final norm; `answer` reads the last token."""

    def __init__(self, words: int, width: int, layers: int, *, heads: int = 4, hidden: int | None = None, code: str = "rotary",
                 sharp: bool = False, outputs: int = 0, rng: torch.Generator | None = None):  # fmt: skip
        super().__init__()
        self.heads, self.code, self.sharp = heads, code, sharp
        self.embed = nn.Parameter(torch.randn(words, width, generator=rng))
        self.blocks = nn.ModuleList(Block(width, hidden or 2 * width, rng) for _ in range(layers))
        self.read = nn.Parameter(torch.randn(width, outputs, generator=rng) / math.sqrt(width)) if outputs else None

    def forward(self, tokens: Tensor, gain: float = 1.0, kept: list | None = None) -> Tensor:
        x = embedded(self.embed, tokens, torch.arange(tokens.shape[-1], device=tokens.device), self.code)
        for block in self.blocks:
            x = layer(block, x, self.heads, self.code, gain, self.sharp, kept)
        return x

    def answer(self, tokens: Tensor, gain: float = 1.0) -> Tensor:
        """[B, T] -> [B, outputs] from the normed state of the last token."""
        return norm(self(tokens, gain)[:, -1]) @ self.read


def embedded(embed: Tensor, tokens: Tensor, at: Tensor, code: str) -> Tensor:
    """Rows of embed [V, d], plus sinusoids where the code says so."""
    x = embed[tokens]
    return x + sinusoids(at, embed.shape[-1]).to(x.dtype) if code == "sinusoidal" else x


class Recurrent(nn.Module):
    """A gated recurrent unit with about as many weights as a Transformer of `size` of them; same interface."""

    def __init__(self, words: int, size: int, outputs: int):
        super().__init__()
        width = round(math.sqrt(size / 6))
        self.embed = nn.Parameter(torch.randn(words, width))
        self.inside = nn.Parameter(torch.randn(width, 3 * width) / math.sqrt(width))
        self.across = nn.Parameter(torch.randn(width, 3 * width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.read = nn.Parameter(torch.randn(width, outputs) / math.sqrt(width))

    def forward(self, tokens: Tensor, gain: float = 1.0) -> Tensor:
        """h_t = (1 - u) c + u h_(t-1), u and r gates, c = tanh(x + r (h W)) (Cho 2014): states [B, T, d]."""
        given = self.embed[tokens] @ self.inside + self.bias
        state, states = torch.zeros_like(given[:, 0, : given.shape[-1] // 3]), []
        for t in range(tokens.shape[-1]):
            reset, update, fresh = given[:, t].chunk(3, -1)
            old_reset, old_update, old_fresh = (state @ self.across).chunk(3, -1)
            u = (update + old_update).sigmoid()
            state = (1 - u) * (fresh + (reset + old_reset).sigmoid() * old_fresh).tanh() + u * state
            states.append(state)
        return torch.stack(states, 1)

    answer = Transformer.answer


# ---- untrained draws: one prefill serves every length


def draw(count: int, words: int, width: int, layers: int, rng: torch.Generator) -> SimpleNamespace:
    """`count` untrained transformers as one stack: embed [D, V, d], blocks of matrices [D, ...]."""
    nets = [Transformer(words, width, layers, rng=rng) for _ in range(count)]
    blocks = [{n: torch.stack([getattr(net.blocks[i], n).detach() for net in nets]) for n in MATRICES} for i in range(layers)]
    return SimpleNamespace(embed=torch.stack([net.embed.detach() for net in nets]), blocks=[SimpleNamespace(**b) for b in blocks])


def cast(stack: SimpleNamespace, dtype: torch.dtype) -> SimpleNamespace:
    """The same weights rounded to another number format."""
    blocks = [SimpleNamespace(**{n: m.to(dtype) for n, m in vars(block).items()}) for block in stack.blocks]
    return SimpleNamespace(embed=stack.embed.to(dtype), blocks=blocks)


def joined(stacks: list[SimpleNamespace]) -> SimpleNamespace:
    """Several stacks of draws as one, first to last."""
    blocks = [SimpleNamespace(**{n: torch.cat([getattr(s.blocks[i], n) for s in stacks]) for n in MATRICES})
              for i in range(len(stacks[0].blocks))]  # fmt: skip
    return SimpleNamespace(embed=torch.cat([s.embed for s in stacks]), blocks=blocks)


def chosen(stack: SimpleNamespace, places: Tensor) -> SimpleNamespace:
    """Some draws of a stack."""
    blocks = [SimpleNamespace(**{n: m[places] for n, m in vars(block).items()}) for block in stack.blocks]
    return SimpleNamespace(embed=stack.embed[places], blocks=blocks)


def endings(w: SimpleNamespace, lengths: Tensor, same: int, last: int, *, heads: int = 4, code: str = "rotary", gain: float = 1.0,
            sharp: bool = False) -> Tensor:  # fmt: skip
    """Last states, before the final norm, of the rows (s, a) and (s, a, a) for every n of `lengths` [N]: [D, N, 2, d].

    s is `same` n - 1 times, a is `last`. Causality makes the states of s the same for all n: each layer is run once on the
    longest s, and its keys and values serve the two last tokens of all lengths.
    """
    prefix, count = int(lengths.max()) - 1, len(lengths)
    at, ends = torch.arange(prefix), torch.stack([lengths - 1, lengths], 1)  # positions count from 0
    x = embedded(w.embed.transpose(0, 1), torch.full((prefix,), same), at[:, None], code).transpose(0, 1)
    y = embedded(w.embed.transpose(0, 1), torch.full((2 * count,), last), ends.view(-1, 1), code).transpose(0, 1)
    for block in w.blocks:
        q, k, v = project(block, x, at, heads, code, gain, sharp)
        x = leave(block, x, causal(q, k, v, at, code))
        q, own_k, own_v = project(block, y, ends.view(-1), heads, code, gain, sharp)
        before = scores(q, k, ends.view(-1), at, code).masked_fill(at >= ends[:, :1].repeat_interleave(2, 0), -math.inf)
        q, own_k, own_v = (part.unflatten(-2, (count, 2)) for part in (q, own_k, own_v))
        own = scores(q, own_k, ends, ends, code).masked_fill(torch.ones(2, 2, dtype=torch.bool).triu(1), -math.inf)
        weights = torch.cat([before, own.flatten(-3, -2)], -1).softmax(-1)
        own_part = (weights[..., prefix:].unflatten(-2, (count, 2)) @ own_v).flatten(-3, -2)
        y = leave(block, y, weights[..., :prefix] @ v + own_part)
    return y.unflatten(1, (count, 2))


def causal(q: Tensor, k: Tensor, v: Tensor, at: Tensor, code: str) -> Tensor:
    """Attention of a whole row on itself without storing its weights; q is scaled already. [..., h, T, e]."""
    if code != "alibi":
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    found = []
    for some in at.split(128):
        seen = at[: some[-1] + 1]
        logits = scores(q[..., some, :], k[..., seen, :], some, seen, code)
        found.append(logits.masked_fill(seen > some[:, None], -math.inf).softmax(-1) @ v[..., seen, :])
    return torch.cat(found, -2)


def apart(y: Tensor) -> Tensor:
    """L1 distance of the two states y [..., 2, d], in float64: [...]."""
    return (y[..., 0, :].double() - y[..., 1, :].double()).abs().sum(-1)


# ---- the path bound: attention held fixed, norms replaced by the identity


def frozen(w, v: Tensor, stored: list[Tensor]) -> Tensor:
    """Last state [d] of the row with embeddings v [n, d] when every attention matrix is held at `stored` [h, n, n]."""
    for block, weights in zip(w.blocks, stored, strict=True):
        z = v + join(weights @ split(v @ block.value, len(weights))) @ block.out
        v = z + psi(block, z)
    return v[-1]


def sensitivity(w, v: Tensor, stored: list[Tensor]) -> Tensor:
    """||dy_n / dv_i||_2 of `frozen` for each token i: [n]."""
    slope = jacrev(lambda x: frozen(w, x, stored))(v)  # [d, n, d]
    return torch.linalg.matrix_norm(slope.transpose(0, 1), 2)


def path_bound(w, stored: list[Tensor]) -> Tensor:
    """The over-squashing theorem: row n of prod_l (1 + L_l)(I + ||W_l||_2 A_l), a sum over all paths i <= k_1 <= ... <= n.

    A_l is the attention summed over heads, ||W_l||_2 the largest norm of a head's value-output matrix, L_l the product of the
    spectral norms of the two matrices of psi. [n].
    """
    n = stored[0].shape[-1]
    row = torch.eye(n, dtype=stored[0].dtype)[-1]
    for block, weights in zip(reversed(w.blocks), reversed(stored), strict=True):
        lipschitz = torch.linalg.matrix_norm(block.up, 2) * torch.linalg.matrix_norm(block.down, 2)
        heads = split(block.value, len(weights)) @ block.out.unflatten(0, (len(weights), -1))  # [h, d, d]
        row = (1 + lipschitz) * (row + torch.linalg.matrix_norm(heads, 2).max() * (row @ weights.sum(0)))
    return row


def paths(w: SimpleNamespace, tokens: Tensor, *, heads: int = 4, code: str = "rotary", gain: float = 1.0,
          sharp: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Measured sensitivity and bound [D, n] of every draw of a stack for the row tokens [n]; attention as the real net has it."""
    at, stored = torch.arange(len(tokens)), []
    v = embedded(w.embed.transpose(0, 1), tokens, at[:, None], code).transpose(0, 1)
    x = v
    for block in w.blocks:
        x = layer(block, x, heads, code, gain, sharp, stored)

    def one(blocks, v, stored):
        net = SimpleNamespace(blocks=[SimpleNamespace(**block) for block in blocks])
        return sensitivity(net, v, stored), path_bound(net, stored)

    return vmap(one)([vars(block) for block in w.blocks], v, stored)
