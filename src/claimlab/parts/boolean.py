"""Boolean functions: all inputs, Fourier (Walsh) coefficients, sensitivity. Bits are -1 or +1; an input is a row [n]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def every_input(n: int) -> Tensor:
    """All 2^n inputs, [2^n, n] float64. Bit j of row number r is -1 where the binary digit 2^j of r is 1."""
    return 1.0 - 2.0 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()


def walsh(values: Tensor) -> Tensor:
    """All Fourier coefficients of f: c(T) = mean over x of f(x) prod_{i in T} x_i, in n 2^n additions. [2^n] -> [2^n].

    `values` follow the rows of `every_input`; the coefficient of a set T stands at row sum_{i in T} 2^i.
    """
    n = len(values).bit_length() - 1
    for _ in range(n):
        even, odd = values.view(-1, 2).unbind(1)  # the lowest digit; it becomes the highest, so n rounds restore the order
        values = torch.cat([even + odd, even - odd]) / 2
    return values


def sensitivity(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Share of the inputs x [N, n] whose answer sign f(x) changes when bit j alone is flipped, for each j: [n]."""
    answer = f(x) > 0
    flipped = torch.stack([x * (1 - 2 * row) for row in torch.eye(x.shape[1], dtype=x.dtype, device=x.device)])
    return torch.stack([((f(one) > 0) != answer).float().mean() for one in flipped])
