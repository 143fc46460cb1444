"""Operators of dense graphs."""

from __future__ import annotations

import torch
from torch import Tensor


def propagation(a: Tensor, symmetric: bool = True) -> Tensor:
    """D^-1/2 (A + I) D^-1/2, or D^-1 (A + I) whose rows sum to 1, with D the row sums of A + I.

    a [..., n, n] >= 0; a_ij is the weight with which node i reads node j. A node without edges reads itself. Sources: Kipf,
    Welling 2017 (symmetric); Wu et al. 2020 (rows).
    """
    a = a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    degree = a.sum(-1)
    if not symmetric:
        return a / degree[..., None]
    root = degree.rsqrt()
    return root[..., None] * a * root[..., None, :]
