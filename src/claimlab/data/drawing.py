"""A drawing of the reader's own, brought to the form of the data sets of digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def drawn(rows: Any, size: int) -> Tensor:
    """Rows of ink in [0, 1] (bright on dark, any size) as one digit [size, size], as MNIST and scikit-learn's digits have it.

    The stroke is cut out, fitted into a box with its proportions kept, and set with its centre of mass in the middle: a box
    of 20 pixels in MNIST's 28, and the whole height of scikit-learn's 8. A drawing without ink stays empty. ValueError where
    `rows` is no rectangle of numbers in [0, 1] or larger than 512 x 512.
    """
    try:
        ink = torch.tensor(np.asarray(rows, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a drawing is given as rows of numbers in [0, 1]: {error}") from None
    if ink.dim() != 2 or not 1 <= min(ink.shape) <= max(ink.shape) <= 512 or not ((ink >= 0) & (ink <= 1)).all():
        raise ValueError(f"a drawing is rows of numbers in [0, 1], at most 512 x 512; this has the shape {tuple(ink.shape)}")
    page = torch.zeros(size, size)
    there = (ink > 0.05 * ink.max()).nonzero()
    if not len(there) or ink.max() == 0:
        return page
    (top, left), (bottom, right) = there.amin(0).tolist(), there.amax(0).tolist()
    stroke = ink[top : bottom + 1, left : right + 1]
    scale = (size if size <= 8 else size * 20 / 28) / max(stroke.shape)
    shape = [max(1, round(side * scale)) for side in stroke.shape]
    small = interpolate(stroke[None, None], shape, mode="bilinear", antialias=True, align_corners=False)[0, 0].clamp(0, 1)
    weight = small.sum()
    places = [float((small.sum(1 - axis) * torch.arange(shape[axis])).sum() / weight) for axis in (0, 1)]
    y, x = (min(max(0, round((size - 1) / 2 - place)), size - side) for place, side in zip(places, shape, strict=True))
    page[y : y + shape[0], x : x + shape[1]] = small
    return page
