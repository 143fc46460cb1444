"""The domains of the study `dann`: what is shifted, how it is shifted, and a user's own pair of image files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from claimlab import data
from claimlab.data.own import own_images

PARTS = 700, 700, 397  # of 1,797 digits: source training, target training, test; other sources are cut in the same shares
MOST = 2000, 2000, 1000
WORDS = {"shared": (0, 30), "special": (30, 60), "translated": (60, 90), "neutral": (90, 150)}  # even ids: class 0, odd: class 1


@dataclass(frozen=True)
class Domains:
    """One seed's data. `hidden` are the labels of the target's training part: only the upper frame may look at them."""

    source: tuple[Tensor, Tensor]  # x [N, ...], y [N]
    target: Tensor  # x [M, ...]
    hidden: Tensor  # y [M]
    test_source: tuple[Tensor, Tensor]  # where the shift is ours, the same originals as in test_target, in source style
    test_target: tuple[Tensor, Tensor]


@lru_cache(maxsize=64)
def domains(seed: int, shift: str, severity: float, class_skew: float, digits: str, path: str = "") -> Domains:
    """Everything of `seed`. No original is in two of the three parts; `class_skew` thins the target's training part alone."""
    rng = np.random.default_rng(seed)
    if path:
        found = _own(path, rng)
    else:
        x, y = originals(shift, digits, seed)
        a, b, c = cut(y, rng)
        found = Domains((x[a], y[a]), restyle(shift, x[b], severity, rng), y[b],
                        (x[c], y[c]), (restyle(shift, x[c], severity, rng), y[c]))  # fmt: skip
    kept = torch.from_numpy(rng.random(len(found.hidden)) >= class_skew) | (found.hidden < (int(found.source[1].max()) + 1) // 2)
    return Domains(found.source, found.target[kept], found.hidden[kept], found.test_source, found.test_target)


def cut(y: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of source training, target training and test part, each with the class shares of all."""
    first, second, _ = (len(y) * part // sum(PARTS) for part in PARTS)
    labels = y.numpy()
    taught, rest = data.stratified(labels, first + second, rng)
    a, b = data.stratified(labels[taught], first, rng)
    return tuple(torch.from_numpy(rows)[:most] for rows, most in zip((taught[a], taught[b], rest), MOST, strict=True))


# ---- originals: source style


def originals(shift: str, digits: str, seed: int) -> tuple[Tensor, Tensor]:
    """What both domains are made of, in source style: images [N, C, H, W] in [0, 1], points [N, 2] or word counts [N, 150]."""
    if shift == "moons":
        from sklearn.datasets import make_moons

        x, y = make_moons(900, noise=0.1, random_state=seed)
        return torch.from_numpy(x - x.mean(0)).float(), torch.from_numpy(y)
    if shift == "text":
        rng = np.random.default_rng([seed, 1])
        y = np.arange(1500) % 2
        return torch.from_numpy(_count(_write(y, rng))), torch.from_numpy(y)
    x, y = map(torch.from_numpy, data.digits() if digits == "8x8" else data.mnist())
    if shift == "coloured":
        return interpolate(x[:, None], (16, 16), mode="bilinear", antialias=True).expand(-1, 3, -1, -1).contiguous(), y
    return x[:, None], y


def _write(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Texts [N, 60] of word ids in the source's vocabulary: a quarter of the words leans to a class, 8 of 10 to the right one."""
    shape = len(y), 60
    kind = rng.random(shape)
    leaning = np.where(rng.random(shape) < 0.8, y[:, None], 1 - y[:, None])
    polar = np.where(rng.random(shape) < 0.4, WORDS["shared"][0], WORDS["special"][0]) + 2 * rng.integers(15, size=shape) + leaning
    usual = WORDS["neutral"][0] + np.floor(60 * rng.random(shape) ** 2).astype(int)
    return np.where(kind < 0.25, polar, usual)


def _count(words: np.ndarray) -> np.ndarray:
    return np.log1p(np.stack([np.bincount(row, minlength=150) for row in words])).astype(np.float32)


# ---- the shifts: source style -> target style; severity 0 changes nothing


def restyle(shift: str, x: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """The originals `x` in target style."""
    n, s = len(x), float(severity)
    if shift == "moons":
        turn = np.deg2rad(35 * s)
        return x @ torch.tensor([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], dtype=x.dtype)
    if shift == "text":
        return translate(x, s, rng)
    if shift == "rotated":
        return rotate(x, torch.from_numpy(s * rng.uniform(25, 45, n)).float())
    if shift == "noisy":
        noise = torch.from_numpy(rng.standard_normal(x.shape)).float()
        return ((1 - 0.4 * s) * x + 0.3 * s + 0.15 * s * noise).clamp(0, 1)
    if shift == "inverted":  # |s - x| is 1 - x at severity 1
        contrast = 1 - min(s, 1) * rng.uniform(0, 0.4, (n, 1, 1, 1))
        return (s - x).abs() * torch.from_numpy(contrast).float()
    return (s * patches(n, x.shape[-1], rng) - x).abs()


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Images [N, C, H, W] turned anticlockwise about their centre, bilinear, black outside; degrees [N]."""
    turn = degrees.deg2rad()
    zero = torch.zeros_like(turn)
    rows = torch.stack([turn.cos(), -turn.sin(), zero]), torch.stack([turn.sin(), turn.cos(), zero])
    grid = affine_grid(torch.stack(rows).permute(2, 0, 1), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


def patches(n: int, side: int, rng: np.random.Generator) -> Tensor:
    """Random colour patches [N, 3, side, side] in [0, 1] of scikit-image's photographs, seen at half their resolution."""
    photos, width = photographs(), 2 * side
    found = np.empty((n, 3, side, side), dtype=np.float32)
    for k in range(n):
        photo = photos[rng.integers(len(photos))]
        i, j = (rng.integers(size - width + 1) for size in photo.shape[:2])
        found[k] = photo[i : i + width : 2, j : j + width : 2].transpose(2, 0, 1)
    return torch.from_numpy(found)


@lru_cache(maxsize=1)
def photographs() -> list[np.ndarray]:
    """Four photographs that lie in scikit-image's package [H, W, 3] in [0, 1]."""
    from skimage import data as shipped

    return [getattr(shipped, name)()[..., :3].astype(np.float32) / 255 for name in ("astronaut", "chelsea", "coffee", "rocket")]


def translate(x: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Word counts in the target's vocabulary: a special word becomes its translation, with probability min(severity, 1), and
    a neutral word its mirror image in frequency, with half that probability."""
    counts, share = x.expm1().round().long().numpy(), min(severity, 1.0)
    for (low, high), (to, until), chance in (
        (WORDS["special"], WORDS["translated"], share), (WORDS["neutral"], WORDS["neutral"][::-1], share / 2),
    ):  # fmt: skip
        moved = rng.binomial(counts[:, low:high], chance)
        counts[:, low:high] -= moved
        if to < until:
            counts[:, to:until] += moved
        else:
            counts[:, low:high] += moved[:, ::-1]
    return torch.from_numpy(counts).float().log1p()


# ---- a user's own domains


def _own(path: str, rng: np.random.Generator) -> Domains:
    """Source and target of a folder, each cut into a training part (64 %) and a test part, or with its own test file."""
    source, target, test = own_domains(path)
    parts = []
    for x, y in (source, target):
        train, rest = data.stratified(y.numpy(), round(0.64 * len(y)), rng)
        parts.append(((x[train[: MOST[0]]], y[train[: MOST[0]]]), (x[rest[: MOST[2]]], y[rest[: MOST[2]]])))
    (taught, test_source), ((x, hidden), test_target) = parts
    if test is not None:
        test_target = test[0][: MOST[2]], test[1][: MOST[2]]
    return Domains(taught, x, hidden, test_source, test_target)


@lru_cache(maxsize=2)
def own_domains(path: str) -> tuple:
    """source.npz, target.npz and perhaps target_test.npz of the folder `path`, each x uint8 [N, H, W, C] and y: as pairs of
    x [N, C, H, W] in [0, 1] of the source's size and y. ValueError says which file does not fit, and what is allowed."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; CLAIMLAB_DATA must name one that holds source.npz and target.npz")
    raw = {name: own_images(folder / f"{name}.npz") for name in ("source", "target")}
    if (folder / "target_test.npz").exists():
        raw["target_test"] = own_images(folder / "target_test.npz")
    classes = {name: int(y.max()) + 1 for name, (_, y) in raw.items()}
    for name in raw:
        if classes[name] != classes["source"]:
            raise ValueError(f"{name}.npz has the classes 0 to {classes[name] - 1}, source.npz 0 to {classes['source'] - 1}; "
                             "both domains need the same classes")  # fmt: skip
    if "target_test" in raw and (shared := len(_rows(raw["target"][0]) & _rows(raw["target_test"][0]))):
        raise ValueError(f"target_test.npz: {shared} images are in target.npz too; a test image may not be trained on")
    channels = max(x.shape[-1] for x, _ in raw.values())
    size = raw["source"][0].shape[1:3]
    if min(size) < 8 or (channels == 3 and min(size) < 12):
        raise ValueError(f"source.npz: images of {size[0]} x {size[1]} are too small; 8 x 8 grey or 12 x 12 colour is the least")
    fit = {name: (_fitted(x, size, channels), torch.from_numpy(y)) for name, (x, y) in raw.items()}
    return fit["source"], fit["target"], fit.get("target_test")


def _rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


def _fitted(x: np.ndarray, size: tuple[int, int], channels: int) -> Tensor:
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    if images.shape[-2:] != size:
        images = interpolate(images, tuple(size), mode="bilinear", antialias=True)
    return images.expand(-1, channels, -1, -1).contiguous()
