"""Text to train a character model on: Python's own help topics, or a file of the user's, parsed as data only."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor


@lru_cache(maxsize=2)
def topics(*, repeats: bool = False) -> str:
    """Python's help topics, some 0.6 MB of English, in the order of their names.

    Topics quote one another: a paragraph that has occurred before is left out, unless `repeats`.
    """
    from pydoc_data.topics import topics as found

    if repeats:
        return "\n".join(found[name] for name in sorted(found))
    first: dict[str, str] = {}
    for name in sorted(found):
        for paragraph in re.split(r"\n\s*\n", found[name]):
            first.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join(first.values())


def own_text(path: str | Path, least: int = 200_000, kinds: tuple[int, int] = (2, 2000)) -> str:
    """A UTF-8 text of more than `least` bytes, with a number of distinct characters in the range `kinds`.

    ValueError names the file, what is wrong with it and what is allowed.
    """
    file, (low, high) = Path(path), kinds
    if not file.is_file():
        raise ValueError(f"{file} is not a file; the text to train on is a UTF-8 text file")
    raw = file.read_bytes()
    if len(raw) <= least:
        raise ValueError(f"{file.name} has {len(raw):,} bytes; a text to train on has more than {least:,}")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8: byte {error.start:,} does not fit; save it again as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{file.name} holds zero bytes; it is no plain text")
    if not low <= (found := len(set(text))) <= high:
        raise ValueError(f"{file.name} has {found:,} distinct characters; between {low} and {high:,} can be modelled")
    return text


def numbered(text: str, letters: str = "") -> tuple[str, Tensor]:
    """The distinct characters of a text in order (or `letters`, which must hold them all), and the text as their numbers [n]."""
    letters = letters or "".join(sorted(set(text)))
    place = {c: k for k, c in enumerate(letters)}
    return letters, torch.tensor([place[c] for c in text])


def repeated(one: str, other: str, length: int) -> int:
    """How many passages of `length` characters of `other` also stand in `one`."""
    known = {hash(one[i : i + length]) for i in range(len(one) - length + 1)}  # the passages themselves would fill the memory
    return sum(hash(other[i : i + length]) in known for i in range(len(other) - length + 1))


def windows(part: Tensor, count: int, length: int) -> Tensor:
    """`count` evenly spaced windows of `length` entries of a sequence [n]: [count, length]."""
    starts = torch.linspace(0, len(part) - length, count).long()
    return part[starts[:, None] + torch.arange(length)]
