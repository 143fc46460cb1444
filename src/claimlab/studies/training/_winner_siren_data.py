"""Targets of the study winner-siren: sums of sines, images, and a file of one's own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.attribution import png
from claimlab.studies.training._winner_siren_method import centroid

LOW, TOP, WIDTH = (0.0, 0.1), 0.8, 0.3  # band of `low`, upper end of `mixed`, width of the band of `high`: shares of Nyquist
SIDE = 64  # of the images
LEAST, LONGEST, SECONDS = 512, 32768, 4  # samples of a file of one's own that are needed, and that are used
RATES = (8000, 44100)


@dataclass(frozen=True)
class Target:
    """Values y [N] at points x [N, d], float32; `sides` says how many points an axis has, psi is the centroid.

    `between` is the same function half a sample further, where it is known; `clean` is what a noisy target was made of.
    """

    x: Tensor
    y: Tensor
    sides: tuple[int, ...]
    psi: float
    between: tuple[Tensor, Tensor] | None = None
    clean: Tensor | None = None


def grid(n: int) -> np.ndarray:
    """The middles of n equal cells of [-1, 1]: samples are 2/n apart, so that Nyquist is at pi n / 2 rad per unit."""
    return (2 * np.arange(n) + 1) / n - 1


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


@dataclass(frozen=True)
class Tones:
    """sum_k amplitude_k sin(pi bin_k x + phase_k): whole numbers of periods on [-1, 1], of variance 1."""

    bins: np.ndarray
    amplitudes: np.ndarray
    phases: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.sin(np.pi * np.outer(x, self.bins) + self.phases) @ self.amplitudes

    @classmethod
    def drawn(cls, rng: np.random.Generator, n: int, band: tuple[float, float], count: int = 0, slope: float = 0.0) -> Tones:
        """`count` different bins of n samples inside the band (all for 0), with power ~ 1 / f^slope and random phases."""
        first, last = max(1, round(band[0] * n / 2)), min(n // 2 - 1, round(band[1] * n / 2))
        bins = np.arange(first, last + 1)
        if 0 < count < len(bins):
            bins = np.sort(rng.choice(bins, count, replace=False))
        amplitudes = bins ** (-slope / 2)
        return cls(bins, amplitudes * np.sqrt(2 / (amplitudes**2).sum()), rng.uniform(0, 2 * np.pi, len(bins)))


def tones(name: str, seed: int, n: int, band_low: float) -> Tones:
    """low: 20 sinusoids in 0-10 % of Nyquist; mixed: pink noise, 0-80 %; high: 30 sinusoids in a band that begins at band_low."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name == "low":
        return Tones.drawn(rng, n, LOW, 20)
    if name == "mixed":
        return Tones.drawn(rng, n, (0.0, TOP), slope=1.0)
    return Tones.drawn(rng, n, (band_low, min(1.0, band_low + WIDTH)), 30)


@lru_cache(maxsize=256)
def target(name: str, seed: int, points: int, band_low: float, path: str = "") -> Target:
    """The target `name` of a seed; it follows from the arguments alone. `own` reads the file `path`."""
    if name == "own":
        return own(path)[0]
    if name in IMAGES:
        return image(name, seed)
    function, x = tones(name, seed, points, band_low), grid(points)
    shifted = x + 1 / points
    pair = tensor(shifted)[:, None], tensor(function(shifted))
    y = function(x)
    return Target(tensor(x)[:, None], tensor(y), (points,), centroid(y), pair)


# ---- images


def photograph() -> np.ndarray:
    """A piece of scikit-image's photograph, means of 2 x 2 pixels: [64, 64] in [-1, 1]."""
    from skimage.data import camera

    piece = camera()[60 : 60 + 2 * SIDE, 170 : 170 + 2 * SIDE] / 127.5 - 1
    return piece.reshape(SIDE, 2, SIDE, 2).mean((1, 3))


def fine() -> np.ndarray:
    """The photograph without what a Gaussian of two pixels keeps, scaled to [-1, 1]."""
    from scipy.ndimage import gaussian_filter

    rest = photograph() - gaussian_filter(photograph(), 2, mode="wrap")
    return rest / np.abs(rest).max()


def grass() -> np.ndarray:
    from skimage.data import grass as texture

    return texture()[:SIDE, :SIDE] / 127.5 - 1


IMAGES = {"photograph": photograph, "fine": fine, "grass": grass, "noisy": photograph}


def image(name: str, seed: int) -> Target:
    """One of IMAGES as a target; `noisy` has Gaussian noise of a tenth of the grey range, drawn from the seed."""
    clean = IMAGES[name]()
    if name == "noisy":
        return _flat(clean + 0.2 * np.random.default_rng(seed).standard_normal(clean.shape), clean)
    return _flat(clean)


def _flat(y: np.ndarray, clean: np.ndarray | None = None) -> Target:
    x = np.stack(np.meshgrid(*map(grid, y.shape), indexing="ij"), -1).reshape(-1, y.ndim)
    return Target(tensor(x), tensor(y.ravel()), y.shape, centroid(y), clean=None if clean is None else tensor(clean.ravel()))


# ---- a file of one's own


@lru_cache(maxsize=2)
def own(path: str) -> tuple[Target, str]:
    """A mono .wav (8 to 44.1 kHz) or an image .png as a target, and a sentence on what was found: length, clipping, centroid.

    Of a sound the first seconds are used, of an image its middle square. ValueError names the file, what is wrong and what
    is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a mono .wav or an image .png is needed")
    if file.suffix.lower() not in (".wav", ".png"):
        raise ValueError(f"{file.name} is of another kind; a mono .wav or an image .png is needed")
    y, what = _sound(file) if file.suffix.lower() == ".wav" else _picture(file)
    if y.size < LEAST:
        raise ValueError(f"{file.name} holds {y.size} samples; at least {LEAST} are needed")
    if not np.isfinite(y).all():
        raise ValueError(f"{file.name} holds {int((~np.isfinite(y)).sum())} values that are not finite numbers; none is allowed")
    if np.ptp(y) < 1e-4:
        raise ValueError(f"{file.name} is silent: all its values are the same; a signal is needed")
    clipped = float((np.abs(y) >= 1 - 1e-4).mean())
    found = _flat(y / max(1.0, np.abs(y).max()))
    return found, f"{file.name}: {what}, {clipped:.2%} clipped, centroid at {found.psi:.3f} of Nyquist"


def _sound(file: Path) -> tuple[np.ndarray, str]:
    from scipy.io import wavfile

    try:
        rate, y = wavfile.read(file)
    except Exception as error:
        raise ValueError(f"{file.name} is not a .wav that can be read: {error}") from None
    if y.ndim != 1:
        raise ValueError(f"{file.name} has {y.shape[1]} channels; allowed is one (mono)")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{file.name} has {rate} samples a second; allowed are {RATES[0]} to {RATES[1]}")
    used = y[: min(SECONDS * rate, LONGEST)]
    zero = 128.0 if y.dtype == np.uint8 else 0.0  # the only kind of .wav whose numbers have no sign
    full = {"u": 128.0, "f": 1.0}.get(y.dtype.kind) or -float(np.iinfo(y.dtype).min)
    return (used - zero) / full, f"{len(used)} of {len(y)} samples at {rate} Hz"


def _picture(file: Path) -> tuple[np.ndarray, str]:
    pixels = png(file)
    grey = pixels if pixels.ndim == 2 else pixels @ np.array([0.2125, 0.7154, 0.0721])
    side = min(*grey.shape, 2 * SIDE)
    top, left = ((n - side) // 2 for n in grey.shape)
    found = grey[top : top + side, left : left + side] / 127.5 - 1
    return found, f"the middle {side} x {side} of {grey.shape[0]} x {grey.shape[1]} pixels"
