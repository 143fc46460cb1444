"""The method of the study gfwsvd: gradients of single sequences, the Kronecker fit of their Fisher, and the cut in its norm.

A map is W [n, m], n outputs by m inputs; G [N, n, m] holds the gradients of N sequences. vec stacks columns, so that
(A (x) B) vec(D) = vec(B D A^T) with A [m, m] on the input side and B [n, n] on the output side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def per_sample(loss: Callable[..., Tensor], weights: dict[str, Tensor], samples: Tensor, chunk: int = 32) -> dict[str, Tensor]:
    """Gradient of loss(weights, samples[i]) for every i by name, [N, n, m]; vectorised over `chunk` samples at a time."""
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), chunk_size=chunk)(weights, samples)


# ---- the Fisher F = mean_i vec(G_i) vec(G_i)^T, never formed


def fisher_square(g: Tensor) -> Tensor:
    """||F||^2 = mean_ij <G_i, G_j>^2."""
    flat = g.flatten(1)
    return (flat @ flat.T).square().mean()


def overlap(g: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """<F, A (x) B> = mean_i <G_i, B G_i A>."""
    return (g * (b @ g @ a)).sum((1, 2)).mean()


def fit_error(g: Tensor, a: Tensor, b: Tensor, square: Tensor | None = None) -> Tensor:
    """||F - c A (x) B|| / ||F|| at the best c, from 1 - <F, A (x) B>^2 / (||F||^2 ||A||^2 ||B||^2)."""
    square = fisher_square(g) if square is None else square
    share = overlap(g, a, b) ** 2 / (square * a.square().sum() * b.square().sum())
    return (1 - share).clamp_min(0).sqrt()


def input_side(g: Tensor, b: Tensor) -> Tensor:
    """mean_i G_i^T B G_i [m, m]."""
    return _even(torch.einsum("inm,ink->mk", b @ g, g) / len(g))


def output_side(g: Tensor, a: Tensor) -> Tensor:
    """mean_i G_i A G_i^T [n, n]."""
    return _even(torch.einsum("inm,ikm->nk", g @ a, g) / len(g))


def _even(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def kronecker_fit(g: Tensor, rounds: int, still: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """A [m, m], B [n, n] of unit norm that minimise ||F - c A (x) B||, and the fit error after each of `rounds` rounds.

    Van Loan and Pitsianis: the best A (x) B is the first singular pair of F with its entries rearranged to n^2 x m^2, which
    is mean_i G_i (x) G_i. Power steps need that matrix only as A <- mean G^T B G and B <- mean G A G^T, here from B = I. They
    end early when the explained share of F moves by less than `still`; the last round is in double precision.
    """
    square, b = fisher_square(g), torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
    errors, before = [], -1.0
    for k in range(rounds):
        last = k == rounds - 1
        g, b = (g.double(), b.double()) if last else (g, b)
        a = input_side(g, b)
        a = a / a.norm()
        b = output_side(g, a)
        size = b.norm()  # with both of unit norm this is <F, A (x) B>
        b, share = b / size, float(size**2 / square)
        errors.append(max(0.0, 1 - share) ** 0.5)
        if last or abs(share - before) < still:
            break
        before = share
    if not last:
        a = input_side(g.double(), b.double())
        a = a / a.norm()
        b = output_side(g.double(), a)
        b = b / b.norm()
    return a, b, torch.tensor(errors + errors[-1:] * (rounds - len(errors)), dtype=torch.float64)


def reordered(matrix: Tensor, rng: torch.Generator) -> Tensor:
    """Rows and columns in one random order: the same eigenvalues, with nothing to say about W. [k, k]"""
    order = torch.randperm(len(matrix), generator=rng).to(matrix.device)
    return matrix[order][:, order]


# ---- the cut


def rank(ratio: float, n: int, m: int) -> int:
    """The rank whose two factors n x r and r x m hold a share 1 - ratio of the n m entries, rounded down; 1 at least."""
    return max(1, int((1 - ratio) * n * m / (n + m) + 1e-9))


def root(matrix: Tensor, damping: float) -> Tensor:
    """Lower Cholesky factor of matrix + damping tr(matrix) / k I; [k, k] double."""
    matrix = matrix.double()
    ridge = damping * matrix.diagonal().mean().clamp_min(1e-30)
    return torch.linalg.cholesky(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device))


@dataclass(frozen=True)
class Cut:
    """W = left @ right at full rank; the first r columns and rows are the cut to rank r. `values` are the singular values in
    the norm of the cut, `roots` the Cholesky factors L_A and L_B that define it."""

    left: Tensor
    right: Tensor
    values: Tensor
    roots: tuple[Tensor, Tensor]

    def at(self, r: int) -> Tensor:
        return self.left[:, :r] @ self.right[:r]


def cut(w: Tensor, a: Tensor, b: Tensor, damping: float) -> Cut:
    """The cuts of W that minimise vec(D)^T (A (x) B) vec(D) = ||L_B^T D L_A||^2 of the error D, for every rank at once.

    A = L_A L_A^T and B = L_B L_B^T: truncate the SVD of W~ = L_B^T W L_A and go back with L_B^-T and L_A^-1; in double.
    """
    l_a, l_b = root(a, damping), root(b, damping)
    u, s, v = torch.linalg.svd(l_b.T @ w.double() @ l_a, full_matrices=False)
    left = torch.linalg.solve_triangular(l_b.T, u * s, upper=True)
    right = torch.linalg.solve_triangular(l_a, v, upper=False, left=False)
    return Cut(left, right, s, (l_a, l_b))


def own_loss(error: Tensor, roots: tuple[Tensor, Tensor]) -> Tensor:
    """||L_B^T D L_A||^2 of an error D [n, m]."""
    l_a, l_b = roots
    return (l_b.T @ error.double() @ l_a).square().sum()


def gap(w: Tensor, found: Cut, r: int) -> Tensor:
    """How far the loss of the cut in its own norm is from the sum of the discarded squared singular values, relative to that."""
    dropped = found.values[r:].square().sum()
    return (own_loss(w.double() - found.at(r), found.roots) - dropped).abs() / dropped.clamp_min(1e-300)


def predicted(g: Tensor, error: Tensor) -> Tensor:
    """1/2 mean_i <G_i, D>^2: the rise that the full Fisher of these gradients predicts for an error D of one map."""
    return 0.5 * (g.flatten(1) @ error.to(g.dtype).flatten()).square().mean()
