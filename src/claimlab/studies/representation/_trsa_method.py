"""Distance matrices of representations, the geo-topological transform, and how a layer is named by comparing matrices.

A matrix of m stimuli is kept as its upper triangle [..., P], P = m (m - 1) / 2, in the order of numpy.triu_indices.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TINY = 1e-12

# ---- distance matrices


def dissimilarity(x: Tensor, again: Tensor | None = None, kind: str = "euclidean") -> Tensor:
    """Distances of all pairs of stimuli, from responses x [..., m, n] of n channels: the upper triangle [..., P].

    d_ij = |x_i - x_j|^2 / n. With a second measurement `again` of the same shape it is cross-validated,
    d_ij = (x_i - x_j) . (again_i - again_j) / n: independent noise cancels in the mean, and values below 0 are possible.
    kind = "correlation": one minus the correlation of two patterns over channels (cross-validated in the same way).
    """
    if kind == "correlation":
        return dissimilarity(*(None if r is None else _scaled(r - r.mean(-1, keepdim=True)) * (x.shape[-1] / 2) ** 0.5
                               for r in (x, again)))  # fmt: skip
    x = x - x.mean(-2, keepdim=True)  # a shift changes nothing but rounding
    other = x if again is None else again - again.mean(-2, keepdim=True)
    g = x @ other.transpose(-1, -2) / x.shape[-1]
    own = g.diagonal(dim1=-2, dim2=-1)
    i, j = pairs(x.shape[-2])
    return own[..., i] + own[..., j] - g[..., i, j] - g[..., j, i]


def pairs(m: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the upper triangle of an m x m matrix."""
    i, j = torch.triu_indices(m, m, 1)
    return i, j


def square(triangle: Tensor) -> Tensor:
    """Symmetric matrices [..., m, m] with diagonal 0 from their upper triangles [..., P]."""
    m = round((1 + (1 + 8 * triangle.shape[-1]) ** 0.5) / 2)
    i, j = pairs(m)
    full = triangle.new_zeros(*triangle.shape[:-1], m, m)
    full[..., i, j] = full[..., j, i] = triangle
    return full


# ---- from geometry to topology


def quantile(ordered: Tensor, q: float) -> Tensor:
    """The quantile q of sorted values [..., P], with linear interpolation: [..., 1]."""
    place = q * (ordered.shape[-1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[-1] - 1)
    low, high = ordered[..., below : below + 1], ordered[..., above : above + 1]
    return low + (place - below) * (high - low)


def transform(d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """g(d) = 0 for d <= low, (d - low) / (high - low) between, 1 for d >= high; for low = high two values are left, 0 and 1."""
    width = high - low
    return torch.where(width > 0, ((d - low) / width.clamp_min(TINY)).clamp(0, 1), (d > low).to(d.dtype))


def geo_topological(d: Tensor, lower: float, upper: float, ordered: Tensor | None = None) -> Tensor:
    """g of every matrix [..., P], with the quantiles `lower` <= `upper` of its own entries as thresholds.

    Quantiles, so that no unit matters. lower = 0 and upper = 1 only scale the matrix; lower = upper leaves neighbourhood alone.
    """
    ordered = d.sort(-1).values if ordered is None else ordered
    return transform(d, quantile(ordered, lower), quantile(ordered, upper))


def geodesic(d: Tensor, lower: float, upper: float, ordered: Tensor | None = None) -> Tensor:
    """Shortest paths [..., P] over neighbours, with the quantiles `lower` and `upper` of each matrix as thresholds."""
    ordered = d.sort(-1).values if ordered is None else ordered
    return paths(d, quantile(ordered, lower), quantile(ordered, upper))


def paths(d: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Shortest paths [..., P] in the graph whose edges are the pairs with d < high, each as long as g(d).

    Floyd and Warshall on all matrices at once. Pairs without a path get the longest path that there is (0 without any edge).
    """
    path = square(torch.where(d < high, transform(d, low, high), torch.inf))
    for k in range(path.shape[-1]):
        path = torch.minimum(path, path[..., :, k, None] + path[..., None, k, :])
    i, j = pairs(path.shape[-1])
    path = path[..., i, j]
    longest = path.masked_fill(path.isinf(), 0).amax(-1, keepdim=True)
    return torch.where(path.isinf(), longest, path)


# ---- comparing two representations


def _scaled(x: Tensor) -> Tensor:
    """Vectors [..., P] of length 1; a vector of zeros stays one."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(TINY)


def ready(x: Tensor, comparison: str = "pearson") -> Tensor:
    """Vectors [..., P] whose dot products are Pearson's or Spearman's correlations, or cosines. A constant one has correlation 0."""
    if comparison == "spearman":
        from scipy.stats import rankdata

        x = torch.from_numpy(rankdata(x.cpu().numpy(), axis=-1).astype(np.float32)).to(x.device)
    if comparison != "cosine":
        size = x.abs().amax(-1, keepdim=True)
        x = x - x.mean(-1, keepdim=True)
        x = torch.where(x.abs().amax(-1, keepdim=True) > 1e-6 * size, x, 0)  # what is left of a constant is rounding
    return _scaled(x)


def compare(data: Tensor, models: Tensor, comparison: str = "pearson") -> Tensor:
    """Similarity of every data matrix [..., P] to every model matrix [I, L, P]: [..., I, L]."""
    return torch.einsum("...p,ilp->...il", ready(data, comparison), ready(models, comparison))


def gram(x: Tensor) -> Tensor:
    """Centred products of all stimuli, from responses x [..., m, n]: [..., m * m]."""
    x = x - x.mean(-2, keepdim=True)
    return (x @ x.transpose(-1, -2)).flatten(-2)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of responses x [..., m, n] and y [..., m, k]: |Y'X|^2 / (|X'X| |Y'Y|), in [0, 1]."""
    return (_scaled(gram(x)) * _scaled(gram(y))).sum(-1)


# ---- naming the layer


def votes(similar: Tensor, without: int | None = None) -> Tensor:
    """Mean similarity to each layer of the OTHER instances: [I, L, draws, L] from `similar` [I, L, draws, I, L].

    The first two axes say where the data come from, the last two name the model. `without` leaves out one more instance.
    """
    count = len(similar)
    allowed = 1 - torch.eye(count, dtype=similar.dtype, device=similar.device)
    if without is not None:
        allowed[:, without] = 0
    return torch.einsum("alnbm,ab->alnm", similar, allowed / allowed.sum(1, keepdim=True))


def right(voted: Tensor) -> Tensor:
    """Whether the layer with the most votes is the one that the data come from. [I, L, draws]"""
    return voted.argmax(-1) == torch.arange(voted.shape[1], device=voted.device)[:, None]


def standing(voted: Tensor) -> Tensor:
    """Share of the wrong layers that get fewer votes than the right one: [I, L, draws]"""
    own = voted.diagonal(dim1=1, dim2=3).permute(0, 2, 1)[..., None]
    return (voted < own).float().sum(-1) / max(voted.shape[-1] - 1, 1)


def chosen(similar: Tensor) -> tuple[list[int], Tensor]:
    """For each instance the setting that names layers best among all the others, and the votes for it with that setting.

    similar: [settings, I, L, draws, I, L]. The instance itself is neither tested nor a candidate when its setting is chosen.
    Of settings that name equally many right, the one where the right layer stands higher on average; then the first.
    """
    count = similar.shape[1]
    settings, found = [], []
    for held in range(count):
        rest = [a for a in range(count) if a != held]
        score = []
        for one in similar:
            voted = votes(one, held)[rest]
            score.append(float(right(voted).float().mean() + 1e-3 * standing(voted).mean()))
        settings.append(int(np.argmax(score)))
        found.append(votes(similar[settings[-1]])[held])
    return settings, torch.stack(found)


def separation(similar: Tensor) -> float:
    """d': how much more alike equal layers of two instances are than unequal ones, in units of their pooled standard deviation.

    similar: [I, L, I, L] without noise; only pairs of different instances count.
    """
    count, layers = similar.shape[:2]
    other = ~torch.eye(count, dtype=torch.bool)[:, None, :, None].expand(similar.shape)
    equal = torch.eye(layers, dtype=torch.bool)[None, :, None, :].expand(similar.shape)
    same, unlike = similar[other & equal].double(), similar[other & ~equal].double()
    freedom = len(same) + len(unlike) - 2
    pooled = ((same.var() * (len(same) - 1) + unlike.var() * (len(unlike) - 1)) / freedom).sqrt()
    return float((same.mean() - unlike.mean()) / pooled.clamp_min(TINY))
