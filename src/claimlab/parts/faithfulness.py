"""What a map of an image classifier is worth: deletion, insertion, share of its mass on the object, the pointing game.

Maps are [N, H, W], higher means more salient; the object's mask or box is [N, H, W].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from claimlab.parts.attribution import remove


def curves(logits: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, rank: Tensor, hidden: Tensor, blurred: Tensor,
           steps: int = 32) -> tuple[Tensor, Tensor]:
    """Probability of `target` while the most salient pixels go, and while they come back into a blurred image.

    `logits` maps [B, C, H, W] to [B, classes]; `rank` [n, H, W] is from `ranks`. Pixels go and come in `steps` equal parts;
    deletion puts `hidden` in their place, insertion begins with `blurred`. [n, steps + 1] each, asked in one batch.
    Source: Petsiuk, Das, Saenko 2018.
    """
    shares = [k / steps for k in range(steps + 1)]
    gone = [remove(x, rank, share, "most", hidden) for share in shares]
    back = [remove(x, rank, 1 - share, "least", blurred) for share in shares]
    with torch.no_grad():
        p = logits(torch.cat(gone + back)).softmax(1).view(2, steps + 1, len(x), -1)
    p = p.gather(3, target[None, None, :, None].expand(2, steps + 1, -1, 1))[..., 0]
    return p[0].T, p[1].T


def area(curve: Tensor) -> Tensor:
    """Area under curves over [0, 1] by trapezoids. [n, steps + 1] -> [n]"""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))


def energy_inside(maps: Tensor, box: Tensor) -> Tensor:
    """Share of the positive part of each map [n, H, W] that lies in the object's box [n, H, W]. [n]"""
    own = maps.clamp(min=0)
    return (own * box).sum((1, 2)) / own.sum((1, 2)).clamp(min=1e-30)


def points_inside(maps: Tensor, box: Tensor) -> Tensor:
    """The pointing game: 1 where the first largest value of the map lies in the object's box, else 0. [N]

    Source: Zhang, Lin, Brandt, Shen, Sclaroff 2016.
    """
    top = maps.flatten(1).argmax(1, keepdim=True)
    return box.flatten(1).gather(1, top)[:, 0].float()
