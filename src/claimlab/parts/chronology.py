"""Splits of what happens in time."""

from __future__ import annotations

from collections.abc import Sequence


def in_time(n: int, shares: Sequence[float], gap: int = 0) -> list[range]:
    """The moments 0 ... n - 1 cut in their order into parts of the given shares; `gap` moments are left out between two parts.

    With a gap as long as window and horizon together no moment is read or predicted in two parts.
    Raises ValueError where the shares exceed 1 or a part would be empty.
    """
    if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares = {list(shares)}: each must be above 0, all together at most 1")
    free = n - gap * (len(shares) - 1)
    parts, start = [], 0
    for share in shares:
        length = int(share * free + 1e-9)
        if length < 1:
            raise ValueError(f"{n} moments are too few for parts of {list(shares)} with a gap of {gap}")
        parts.append(range(start, start + length))
        start += length + gap
    return parts
