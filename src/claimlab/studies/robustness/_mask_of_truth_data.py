"""Data of the study mask-of-truth: phantoms of a seed, or a folder of one's own images with organ masks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.attribution import png
from claimlab.studies.robustness._mask_of_truth_method import by_patient
from claimlab.studies.robustness._mask_of_truth_phantoms import FINDINGS, patients, phantoms, reach_of

VALIDATION, TEST = 200, 500  # patients at most
MASKS = "cardiomegaly"  # the finding that changes the mask, and is reported apart
LEAST = 30


@dataclass(frozen=True)
class Part:
    """Images of some patients: `image` [N, H, W] uint8, organ `mask` [N, H, W] bool, `centre` [N, 2] of the box, diseases `y`
    [N, K], `site` [N] or None, `position` [N] or None, `patient` [N]."""

    image: Tensor
    mask: Tensor
    centre: Tensor
    y: Tensor
    site: Tensor | None
    position: Tensor | None
    patient: Tensor

    def of(self, rows: np.ndarray) -> Part:
        """The same for some of the images."""
        values = (getattr(self, field.name) for field in fields(self))
        return Part(*(None if t is None else t[torch.from_numpy(rows)] for t in values))

    def x(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Images in [0, 1]. [n, 1, H, W]"""
        return self.image[rows, None].float() / 255


class Data(NamedTuple):
    """Training, validation and test part; `reach` [4] of the box from its centre (up, down, left, right); names of findings."""

    train: Part
    validation: Part
    test: Part
    reach: Tensor
    findings: tuple[str, ...]


@lru_cache(maxsize=24)
def load(seed: int, count: int, side: int, rho: float, inside: float, outside: float, folder: str = "") -> Data:
    """The data of a seed: phantoms of `count` training patients and of up to VALIDATION + TEST others, or the own folder.

    Draws do not depend on rho: at two links a seed has the same patients, hospitals and noise, and other diseases.
    """
    rng = np.random.default_rng(seed)
    if folder:
        whole, reach, names = own_images(folder)
        train, validation, test = by_patient(whole.patient.numpy(), (0.6, 0.15), rng)
    else:
        others = min(VALIDATION, -(-count * 2 // 9)), min(TEST, -(-count * 5 // 9))
        who = patients(count + sum(others), rho, rng)
        p = phantoms(who, side, inside, outside, rng)
        arrays = (p.image, p.mask, p.centre, who.disease[p.patient], who.site[p.patient], p.position, p.patient)
        whole, reach, names = Part(*map(torch.from_numpy, arrays)), p.reach, FINDINGS
        train, validation, test = np.split(np.arange(len(p.patient)), 2 * np.cumsum([count, others[0]]))
    return Data(whole.of(train), whole.of(validation), whole.of(test), torch.tensor(reach), names)


# ---- images of one's own


@lru_cache(maxsize=2)
def own_images(folder: str) -> tuple[Part, tuple[int, int, int, int], tuple[str, ...]]:
    """`folder/images/*.png` and `folder/masks/*.png` (grey, one size, same names) with `folder/labels.csv`: image, patient, one
    column of 0 and 1 for each finding, perhaps `site` (0 or 1).

    Returns all images, the reach of a box that holds every mask and stands at the same place in all images, the findings.
    ValueError names the file, what is wrong and what is allowed.
    """
    table, names = labels(Path(folder) / "labels.csv")
    images, masks = [], []
    for name in table["image"]:
        image, mask = (grey(Path(folder) / kind / name) for kind in ("images", "masks"))
        if image.shape != mask.shape:
            raise ValueError(f"masks/{name} is {_size(mask)} and images/{name} {_size(image)}: a mask has the size of its image")
        if images and image.shape != images[0].shape:
            raise ValueError(f"images/{name} is {_size(image)}, the others {_size(images[0])}: all images have one size")
        if not mask.any():
            raise ValueError(f"masks/{name} is empty: pixels of the organ are those above 0")
        images.append(image)
        masks.append(mask > 0)
    side, mask = images[0].shape, np.stack(masks)
    if not all(16 <= s <= 256 for s in side):
        raise ValueError(f"images/{table['image'][0]} is {_size(images[0])}: sides from 16 to 256 pixels are allowed")
    centre = np.tile(np.array(side) // 2, (len(images), 1))
    y = table[list(names)].to_numpy(dtype=np.int64)
    site = torch.tensor(table["site"].to_numpy(dtype=np.int64)) if "site" in table else None
    patient = torch.from_numpy(np.unique(table["patient"].astype(str), return_inverse=True)[1])
    part = Part(*map(torch.tensor, (np.stack(images), mask, centre, y)), site, None, patient)
    return part, reach_of(mask, centre), names


def labels(path: Path):
    """The table of labels.csv, looked at, and the names of its findings. ValueError where it does not fit."""
    import pandas as pd

    if not path.is_file():
        raise ValueError(f"{path} is not there: it lists image, patient and one column of 0 and 1 for each finding")
    try:
        table = pd.read_csv(path, encoding="utf-8", dtype={"image": str, "patient": str})
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can not be read as a table in UTF-8: {error}") from None
    if missing := {"image", "patient"} - set(table):
        raise ValueError(f"{path} has no column {' and no '.join(sorted(missing))}; it must hold image, patient and findings")
    names = tuple(c for c in table if c not in ("image", "patient", "site"))
    if not len(table) or not names:
        raise ValueError(f"{path} has {len(table)} rows and {len(names)} findings: at least one finding and {LEAST} of each are needed")
    if table["image"].duplicated().any() or table[["image", "patient"]].isna().any(axis=None):
        raise ValueError(f"{path}: every image stands in one row, with its patient")
    if bad := [name for name in table["image"] if Path(name).name != name]:
        raise ValueError(f"{path}: {bad[0]} is no plain file name")
    for name in (*names, *({"site"} & set(table))):
        if not table[name].isin([0, 1]).all():
            raise ValueError(f"{path}: the column {name} holds something other than 0 and 1")
        few = table.groupby(table[name])["patient"].nunique() if name == "site" else table[name].value_counts()
        if len(few) < 2 or few.min() < LEAST:
            what = "patients" if name == "site" else "images"
            raise ValueError(f"{path}: {name} needs at least {LEAST} {what} with 1 and as many with 0, not {few.to_dict()}")
    return table, names


def grey(path: Path) -> np.ndarray:
    """A grey PNG [H, W] uint8; ValueError where it is none."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: each image of labels.csv needs images/<name> and masks/<name>")
    return png(path, ("L",))


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
