"""Front ends and certificates of the study `spca-robustness`: fixed projections, their scaler, exact radii of linear heads.

n images, d pixels, k rows of a projection W, C classes. A row of zeros stands for a component that was dropped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

FRONTS = ("pca", "spca", "pca_fewer", "random_sparse", "spca_dense_rotation", "raw")


# ---- projections: x [n, d] are centred training images in double precision


def principal_rows(x: np.ndarray, k: int) -> np.ndarray:
    """The k leading eigenvectors of the covariance of x [n, d], as orthonormal rows [k, d], largest variance first."""
    return np.linalg.svd(x, full_matrices=False)[2][:k]


def sparse_rows(x: np.ndarray, k: int, alpha: float, seed: int) -> np.ndarray:
    """Rows V [k, d] of  min |x - U V|^2 / 2 + alpha |V|_1  with unit-norm codes (Mairal et al. 2009), each of length 1.

    Used as a plain linear map z = V x, not through the ridge regression of scikit-learn's `transform`. Rows are ordered by
    the variance of their code; those that the penalty has emptied come last and stay zero.
    """
    from sklearn.decomposition import MiniBatchSparsePCA

    rows = MiniBatchSparsePCA(k, alpha=alpha, random_state=seed).fit(x).components_.astype(float)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return rows[np.argsort(-(x @ rows.T).var(0), kind="stable")]


def explained(x: np.ndarray, rows: np.ndarray) -> float:
    """Share of the variance of x [n, d] that lies in the subspace spanned by `rows` [k, d] (QR)."""
    basis = np.linalg.qr(rows[rows.any(1)].T)[0]
    return float(((x @ basis) ** 2).sum() / (x**2).sum())


def fewest(x: np.ndarray, share: float) -> int:
    """The smallest number of principal components that explain at least `share` of the variance of x."""
    variance = np.linalg.svd(x, compute_uv=False) ** 2
    return min(int(np.searchsorted(variance.cumsum() / variance.sum(), share)) + 1, len(variance))


def scattered_rows(like: np.ndarray, alive: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of length 1 with as many non-zeros as those of `like` [k, d], normal numbers at random places where `alive` [d]."""
    rows = np.zeros_like(like)
    for row, count in zip(rows, (like != 0).sum(1), strict=True):
        places = rng.choice(np.flatnonzero(alive), min(count, alive.sum()), replace=False)
        row[places] = rng.standard_normal(len(places))
        row /= np.linalg.norm(row) or 1.0
    return rows


def turned(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Q rows with Q a random rotation (Haar) of the rows that are not zero: the same subspace, dense rows. [k, d]"""
    live = rows.any(1)
    q, r = np.linalg.qr(rng.standard_normal((live.sum(), live.sum())))
    rows = rows.copy()
    rows[live] = (q * np.sign(np.diag(r))) @ rows[live]
    return rows


def projection(front: str, x: np.ndarray, sparse: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """W [k, d] of a front end. All but `raw` have at most as many rows as `sparse` [k, d] has that are not zero."""
    if front == "raw":
        return np.eye(x.shape[1])
    if front == "spca":
        return sparse
    if front == "random_sparse":
        return scattered_rows(sparse, x.any(0), rng)
    if front == "spca_dense_rotation":
        return turned(sparse, rng)
    live = sparse.any(1).sum()
    count = min(live, fewest(x, explained(x, sparse))) if front == "pca_fewer" else live
    rows = np.zeros_like(sparse)
    rows[:count] = principal_rows(x, count)
    return rows


def deviations(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Standard deviation of every training code [k]; 1 for a code that never changes."""
    sd = (x @ rows.T).std(0)
    return np.where(sd > 1e-6, sd, 1.0)


class Projected(nn.Module):
    """logits = head(D W (x - mean)), D = 1 / sd: everything before the head is fixed. [..., d] -> [..., C]"""

    def __init__(self, rows: Tensor, mean: Tensor, sd: Tensor, head: nn.Module):
        super().__init__()
        self.head = head
        for name, value in (("rows", rows), ("mean", mean), ("sd", sd)):
            self.register_buffer(name, value.clone())

    def codes(self, x: Tensor) -> Tensor:
        """Scaled codes, [..., d] -> [..., k]."""
        return (x - self.mean) @ self.rows.mT / self.sd

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.codes(x))


class Unprojected(Projected):
    """The same for W = identity without a scaler, which spares two multiplications."""

    def codes(self, x: Tensor) -> Tensor:
        return x - self.mean


# ---- certificates: theorem for linear heads


def pulls(net: Projected) -> Tensor:
    """W^T D u_c for every class of a linear head: the gradient of logit c with respect to the image. [C, d]"""
    return (net.head.weight / net.sd) @ net.rows


def certificate(logits: Tensor, pull: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Exact radius of every answer, min over j of (f_y - f_j) / |W^T D (u_y - u_j)|_dual, and the way there.

    logits [n, C], pull [C, d] -> radii [n] and optimal perturbations of norm 1 [n, d]: -sign(.) for "inf", whose dual norm is
    the sum of absolute values, and -(.) / |.| for "2", which is its own dual.
    """
    y = logits.argmax(1, keepdim=True)
    gap = logits.gather(1, y) - logits
    apart = pull[y] - pull  # [n, C, d]
    dual = apart.abs().sum(2) if norm == "inf" else apart.norm(dim=2)
    radius, rival = (gap / dual).scatter(1, y, torch.inf).min(1)
    way = apart[torch.arange(len(y)), rival]
    return radius, -way.sign() if norm == "inf" else -way / way.norm(dim=1, keepdim=True)


def flip_distance(answer: Callable[[Tensor], Tensor], x: Tensor, way: Tensor, halvings: int = 60) -> Tensor:
    """How far along `way` [n, d] the answer of x [n, d] changes, by doubling and bisection; it knows no certificate. [n]"""
    first, high = answer(x), torch.full((len(x),), 2.0**-20).to(x)
    for _ in range(40):
        high = torch.where(answer(x + high[:, None] * way) == first, 2 * high, high)
    low = torch.zeros_like(high)
    for _ in range(halvings):
        middle = (low + high) / 2
        same = answer(x + middle[:, None] * way) == first
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return high


def certified(net: Projected, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Radius by the theorem and distance found by bisection for x [n, d], by norm; both [n], in double precision."""
    net, x = copy.deepcopy(net).double(), x.double()
    found = {}
    for norm in ("inf", "2"):
        radius, way = certificate(net(x), pulls(net), norm)
        found[norm] = radius, flip_distance(lambda z: net(z).argmax(1), x, way)
    return found


# ---- how much a small change of the pixels can move the codes


def operator_norm(matrix: Tensor) -> Tensor:
    """Upper bound of |A|_{inf -> 2}: the sum of the lengths of the columns of A [k, d]."""
    return matrix.norm(dim=0).sum()


def exact_operator_norm(matrix: Tensor) -> Tensor:
    """|A|_{inf -> 2} = max over s in {-1, 1}^d of |A s|_2, by trying all of them. ValueError for more than 14 columns."""
    if matrix.shape[1] > 14:
        raise ValueError(f"{matrix.shape[1]} columns have too many sign vectors; at most 14 are tried")
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * matrix.shape[1]).view(-1, matrix.shape[1]).to(matrix)
    return (signs @ matrix.T).norm(dim=1).max()


def head_lipschitz(head: nn.Module) -> Tensor:
    """Upper bound of the Lipschitz constant L_g of a ReLU head, 2-norm to 2-norm: the product of its spectral norms."""
    norms = [torch.linalg.matrix_norm(layer.weight, 2) for layer in head.modules() if isinstance(layer, nn.Linear)]
    return torch.stack(norms).prod()
