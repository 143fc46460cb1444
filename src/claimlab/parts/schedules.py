"""Courses of the learning rate over a run, as factors on it."""

from __future__ import annotations

import math


def cosine(step: float, steps: float) -> float:
    """From 1 down to nothing along half a wave. Source: Loshchilov, Hutter 2016."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def one_cycle(step: int, steps: int) -> float:
    """Up from 1/25 within three tenths of the steps, then down to nothing, both along a cosine. Source: Smith, Topin 2017."""
    up = 0.3 * steps
    if step < up:
        return 1 - 0.48 * (1 + math.cos(math.pi * step / up))
    return cosine(step - up, steps - up)
