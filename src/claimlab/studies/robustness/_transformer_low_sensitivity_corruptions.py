"""Five corruptions of images at severities 1, 2, 3: pure functions of images [N, H, W, C] in [0, 1], severity and generator.

Lengths are shares of the height, so that pictures of any size suffer alike. The answer lies in [0, 1] again. The kinds follow
Hendrycks and Dietterich (2019); the strengths are set for pictures of 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

SEVERITIES = (1, 2, 3)
NOISE = (0.15, 0.25, 0.35)  # standard deviation
COUNTS = (10, 5, 3)  # photons of a white pixel
BLUR = (0.07, 0.10, 0.13)  # standard deviation, share of the height
CONTRAST = (0.5, 0.35, 0.2)  # share that is left
COARSE = (0.75, 0.625, 0.5)  # pixels that are left, share of the height


def gaussian_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """x + N(0, s^2) on every pixel."""
    return np.clip(x + rng.normal(0, NOISE[severity - 1], x.shape), 0, 1)


def shot_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Poisson(c x) / c: the noise of c photons from a white pixel."""
    photons = COUNTS[severity - 1]
    return np.clip(rng.poisson(x * photons) / photons, 0, 1)


def blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur; the rim is repeated outwards."""
    width = BLUR[severity - 1] * x.shape[1]
    return ndimage.gaussian_filter(x, (0, width, width, 0), mode="nearest")


def contrast(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Pulled towards the mean of each image."""
    mean = x.mean((1, 2, 3), keepdims=True)
    return mean + CONTRAST[severity - 1] * (x - mean)


def pixelation(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Averaged onto a coarser grid of pixels and shown at the old size."""
    rows, columns = (coarser(size, round(size * COARSE[severity - 1])) for size in x.shape[1:3])
    return np.clip(np.einsum("ai,nijc,bj->nabc", rows, x, columns), 0, 1)


def coarser(size: int, cells: int) -> np.ndarray:
    """[size, size] matrix: mean over each of `cells` equal cells (pixels in shares), then each pixel the cell at its centre."""
    edges = np.linspace(0, size, cells + 1)
    pixel = np.arange(size)
    shares = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    return (shares / shares.sum(1, keepdims=True))[((pixel + 0.5) * cells / size).astype(int)]


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": gaussian_noise, "shot noise": shot_noise, "blur": blur, "contrast": contrast, "pixelation": pixelation,
}  # fmt: skip
