"""Images of the study hawq-v2: digits of 12 x 12 pixels with noise, or a trained network and images of your own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from claimlab import data
from claimlab.data.own import arrays

NOISE = 0.25  # standard deviation, on pixels in [0, 1]


@lru_cache(maxsize=64)
def split(seed: int, images: int, folder: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [N, C, H, W], y to train and x, y to test: `images` and at most as many others, class shares kept.

    Of 1,797 digits, or of your own (five ninths of them at most)."""
    rng = np.random.default_rng(seed)
    if folder:
        x, y = own_images(folder)
    else:
        pictures, y = data.digits()
        x = interpolate(torch.from_numpy(pictures)[:, None], (12, 12), mode="bilinear", align_corners=False).numpy()
        x = x + NOISE * rng.standard_normal(x.shape).astype(np.float32)
    train, test = data.stratified(y, min(images, len(y) * 5 // 9 + 2), rng)
    test = test[:images]
    return tuple(torch.from_numpy(part) for part in (x[train], y[train], x[test], y[test]))


@lru_cache(maxsize=2)
def own_images(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """x (N, C, H, W) float32 and y from `data.npz`; ValueError names what is wrong and what is allowed."""
    file = Path(folder) / "data.npz"
    x, y = arrays(file, ("x", "y"), "a folder with data.npz (x, y) and net.pt (a state dict) is needed")
    if x.ndim != 4 or x.dtype.kind != "f" or min(x.shape) < 1 or min(x.shape[2:]) < 4:
        raise ValueError(f"{file.name}: x is {x.dtype} of shape {x.shape}; allowed is float of N x C x H x W, H and W at least 4")
    if not np.isfinite(x).all():
        raise ValueError(f"{file.name}: x holds {int((~np.isfinite(x)).sum())} numbers that are not finite")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"{file.name}: y is {y.dtype} of shape {y.shape}; allowed is a whole number for each of {len(x)} images")
    found, count = np.unique(y, return_counts=True)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1 or count.min() < 5:
        raise ValueError(f"{file.name}: labels {found[:12].tolist()}; allowed are 0, 1, ... without a gap, two or more, 5 images each")
    return x.astype(np.float32), y.astype(np.int64)


def own_state(folder: str) -> dict[str, Tensor] | None:
    """The tensors of `net.pt` in the folder, read without running anything in it; None where no folder is given."""
    if not folder:
        return None
    file = Path(folder) / "net.pt"
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a state dict saved with torch.save is needed")
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(f"{file.name} cannot be read as tensors alone: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file.name} holds no state dict (names and tensors)")
    if bad := [name for name, v in state.items() if not v.isfinite().all()]:
        raise ValueError(f"{file.name}: {', '.join(bad[:3])} holds numbers that are not finite")
    return state


def fill(net: torch.nn.Module, state: dict[str, Tensor]) -> None:
    """Put `state` into the parameters of net; ValueError where names or shapes differ."""
    wanted = {name: tuple(p.shape) for name, p in net.named_parameters()}
    found = {name: tuple(v.shape) for name, v in state.items()}
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name) and (name in wanted or name not in net.state_dict()):
            raise ValueError(f"net.pt: {name} has shape {found.get(name, 'none')}; the network has {wanted.get(name, 'none')}")
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(state[name])


def check_chance(accuracy: float, classes: int) -> None:
    """ValueError where a trained network of one's own is no better than chance on the test images."""
    if accuracy <= 1.5 / classes:
        raise ValueError(f"net.pt tests at {accuracy:.2f}, chance is {1 / classes:.2f}: curvature of an untrained network says nothing")
