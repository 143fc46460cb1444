"""Rows of zeros and ones with a question at the end: how many ones, which sign came first, which last?"""

from __future__ import annotations

import torch
from torch import Tensor

ZERO, ONE, COMMA, COUNT, FIRST, LAST = range(6)
WORDS = 6
LEAST = 8  # signs of the shortest training row
UNIT = 8.0  # ones that make up one unit of the count which the network gives


def punctuate(rows: Tensor, every: int, comma: int = COMMA) -> Tensor:
    """A separator after every `every`-th sign, never at the end of the row; 0 leaves rows [..., n] as they are."""
    n = rows.shape[-1]
    if every == 0 or n <= every:
        return rows
    place = torch.arange(n, device=rows.device)
    found = torch.full((*rows.shape[:-1], n + (n - 1) // every), comma, dtype=rows.dtype, device=rows.device)
    found[..., place + place // every] = rows
    return found


def asked(rows: Tensor, question: Tensor | int, every: int) -> Tensor:
    """Rows [B, n], punctuated, with the question's token [B] at the end."""
    question = torch.as_tensor(question, device=rows.device).expand(len(rows))
    return torch.cat([punctuate(rows, every), question[:, None]], 1)


def form(step: int, longest: int) -> tuple[int, bool]:
    """Length of the rows of a step and whether they are punctuated: the same for all members, from the step alone."""
    rng = torch.Generator().manual_seed(7919 * step + 1)
    return int(torch.randint(LEAST, longest + 1, (), generator=rng)), bool(torch.rand((), generator=rng) < 0.5)


def practice(step: int, longest: int, every: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One batch: tokens [B, T], answer to the copy questions [B] (0 or 1), ones in the row [B].

    The share of ones is uniform on [1/2, 1) for each row, so that rows of nearly nothing but ones occur at every length.
    """
    n, commas = form(step, longest)
    share = 0.5 + 0.5 * torch.rand(size, 1, generator=rng)
    rows = (torch.rand(size, n, generator=rng) < share).long()
    question = torch.randint(COUNT, LAST + 1, (size,), generator=rng)
    answer = torch.where(question == FIRST, rows[:, 0], rows[:, -1])
    return asked(rows, question, every if commas else 0), answer, rows.sum(1)


def lone(n: int) -> Tensor:
    """0 1^(n-1), 1^(n-1) 0 and 1^n: [3, n]."""
    rows = torch.ones(3, n, dtype=torch.long)
    rows[0, 0] = rows[1, -1] = ZERO
    return rows


def ending(n: int, repeated: bool = False) -> Tensor:
    """The row 1^(n-1) 0, or the same with its last sign `repeated`: [1, n] or [1, n + 1]."""
    return torch.tensor([[ONE] * (n - 1) + [ZERO] * (1 + repeated)])


def in_range(longest: int) -> list[int]:
    """The upper third of the lengths seen in training: 33 ... 48."""
    return list(range(2 * longest // 3 + 1, longest + 1))


def beyond(longest: int) -> list[int]:
    """Lengths from 4/3 to 4 times the longest training row: 64, 72, ..., 192."""
    return list(range(4 * longest // 3, 4 * longest + 1, max(1, longest // 6)))
