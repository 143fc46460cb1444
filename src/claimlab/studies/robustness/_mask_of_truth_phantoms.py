"""Chest phantoms of the study mask-of-truth: what lies inside the organs knows the sign of a finding, what lies outside knows
the hospital, and nothing else knows anything. Lengths are in pixels of a picture of 40 x 40 and grow with the picture's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from claimlab.parts.attribution import smooth_noise

FINDINGS = ("opacity", "effusion", "cardiomegaly")
RIGHT = 0.8  # q: how often a visible sign says what the disease is
GROWTH = 1.25  # of an enlarged heart, and so of the outline
NOISE = 0.08  # standard deviation of the smooth noise
OPACITY, EFFUSION = 0.65, 0.50  # contrast of the true signs at inside_contrast = 1 (the third of three designs)
SLOPE, MARKER, ARM, BORDER = 0.12, 0.35, 0.18, 0.5  # contrast of the hospital's traces at outside_contrast = 1
RIBS = 0.05
BODY = {
    "height": (21, 23), "width": (17, 18.5), "lung_height": (8.0, 9.0), "lung_width": (3.9, 4.6), "apart": (6.4, 7.0),
    "heart_height": (3.6, 4.4), "heart_width": (4.0, 4.8),
}  # half axes of the patient's ellipses, and how far the lungs lie off the middle: lowest and highest
SPILL = 2  # pixels by which a blob may reach beyond M


class Patients(NamedTuple):
    """Of each patient: `site` S [P] in {0, 1}, `disease` D and `sign` V [P, 3] in {0, 1}."""

    site: np.ndarray
    disease: np.ndarray
    sign: np.ndarray


@dataclass(frozen=True)
class Phantoms:
    """`image` [N, H, W] uint8, `mask` M [N, H, W] bool, `centre` [N, 2] of the body (row, column), `reach` of the largest M
    from the centre (up, down, left, right), the row of the patient of each image [N], and `position` [N]: which way the body
    lies off the middle."""

    image: np.ndarray
    mask: np.ndarray
    centre: np.ndarray
    reach: tuple[int, int, int, int]
    patient: np.ndarray
    position: np.ndarray


def patients(n: int, rho: float, rng: np.random.Generator) -> Patients:
    """S is a fair coin; P(D = 1 | S) = 1/2 +- rho/2 for each finding on its own; V = D with probability RIGHT."""
    site = rng.integers(0, 2, n)
    disease = rng.random((n, 3)) < 0.5 + rho * (site[:, None] - 0.5)
    missed = rng.random((n, 3)) >= RIGHT
    return Patients(site, disease.astype(np.int64), (disease ^ missed).astype(np.int64))


def ellipse(row, column, centre_row, centre_column, half_height, half_width) -> np.ndarray:
    """(distance from the centre)^2, 1 on the rim; every argument broadcasts. float32: half the time, and pixels need no more."""
    down, right = ((row - centre_row) / half_height).astype(np.float32), ((column - centre_column) / half_width).astype(np.float32)
    return down**2 + right**2


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A mask [N, H, W] widened by `by` pixels in each of the four directions, step by step."""
    for _ in range(by):
        wider = mask.copy()
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        wider[:, :, 1:] |= mask[:, :, :-1]
        wider[:, :, :-1] |= mask[:, :, 1:]
        mask = wider
    return mask


def reach_of(mask: np.ndarray, centre: np.ndarray) -> tuple[int, int, int, int]:
    """How far the largest mask goes from its body's centre: up, down, left, right."""
    found = []
    for axis in (1, 2):
        line = mask.any(3 - axis)
        first, last = line.argmax(1), line.shape[1] - 1 - line[:, ::-1].argmax(1)
        found += [int((centre[:, axis - 1] - first).max()), int((last - centre[:, axis - 1]).max())]
    return tuple(found)


def phantoms(who: Patients, side: int, inside: float, outside: float, rng: np.random.Generator, each: int = 2) -> Phantoms:
    """`each` pictures of every patient, side by side. `inside` and `outside` multiply the contrasts of signs and of traces.

    The anatomy is the patient's; blobs, noise, exposure and position are the picture's.
    """
    unit, n = side / 40, len(who.site)
    who_is = np.repeat(np.arange(n), each)
    body = {name: np.repeat(unit * rng.uniform(low, high, n), each)[:, None, None] for name, (low, high) in BODY.items()}
    position = rng.integers(0, 2, n * each)
    off = np.stack([rng.integers(-1, 2, n * each), 3 * position - 2 + rng.integers(0, 2, n * each)], 1)
    centre = side // 2 + np.rint(unit * off).astype(np.int64)
    row, column = np.ogrid[:side, :side]
    row, column = row[None] - centre[:, :1, None], column[None] - centre[:, 1:, None]  # from the body's centre
    site, sign = who.site[who_is], who.sign[who_is]
    big = np.where(sign[:, 2] == 1, GROWTH, 1.0)[:, None, None]
    lungs = [ellipse(row, column, -unit, k * body["apart"], body["lung_height"], body["lung_width"]) <= 1 for k in (-1, 1)]
    heart = ellipse(row, column, 5 * unit, unit, body["heart_height"] * big, body["heart_width"] * big) <= 1
    lung, torso = lungs[0] | lungs[1], ellipse(row, column, 2 * unit, 0, body["height"], body["width"]) <= 1
    mask = grown(lung | heart, 1)
    reach = reach_of(mask, centre)

    ribs = np.sin(2 * np.pi * row / (4.5 * unit)).astype(np.float32)
    picture = np.where(torso, np.float32(0.5) + np.float32(RIBS) * ribs, np.float32(0.12))
    picture -= np.float32(0.2) * lung
    picture += blobs(inside * OPACITY * sign[:, 0], body, row, column, unit, mask, rng)
    picture += levels(inside * EFFUSION * sign[:, 1], lungs, row, body, unit, rng)
    picture[heart] = 0.62
    picture += outside * traces(site, centre, reach, side, rng)
    noise = smooth_noise(len(picture), side, 0.7 * unit, rng).astype(np.float32)
    noise -= noise.mean((1, 2), keepdims=True)
    picture += noise * (NOISE / noise.std((1, 2), keepdims=True))
    image = np.rint(255 * picture.clip(0, 1)).astype(np.uint8)
    return Phantoms(image, mask, centre, reach, who_is, position)


def blobs(contrast, body, row, column, unit: float, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sign of opacity: one to three soft blobs anywhere in the lungs, cut off SPILL pixels beyond M. [N, H, W]"""
    n, total = len(contrast), np.zeros(mask.shape, dtype=np.float32)
    count = rng.integers(1, 4, n)
    for k in range(3):
        lung, angle, radius = rng.choice((-1, 1), n), rng.uniform(0, 2 * np.pi, n), np.sqrt(rng.random(n))
        a, b, c, wide = (t[:, None, None] for t in (lung, radius * np.sin(angle), radius * np.cos(angle), rng.uniform(1.5, 2.2, n)))
        down = (row - b * body["lung_height"] + unit) / (unit * wide)
        right = (column - a * body["apart"] - c * body["lung_width"]) / (unit * wide)
        height = (k < count)[:, None, None] * np.exp(-(down**2) / 2)
        total += height.astype(np.float32) * np.exp(-(right**2) / 2).astype(np.float32)
    return contrast.astype(np.float32)[:, None, None] * total.clip(0, 1) * grown(mask, SPILL)


def levels(contrast, lungs, row, body, unit: float, rng: np.random.Generator) -> np.ndarray:
    """The sign of effusion: the lower end of one lung is bright up to a level. [N, H, W]"""
    left, level = rng.integers(0, 2, len(contrast)), rng.uniform(0.35, 0.6, len(contrast))[:, None, None]
    lung = np.where(left[:, None, None] == 1, *lungs)
    return contrast.astype(np.float32)[:, None, None] * (lung & (row >= level * body["lung_height"] - unit))


def traces(site, centre, reach, side: int, rng: np.random.Generator) -> np.ndarray:
    """What the hospital leaves outside: slope of the exposure, letter in the corner, angle of the arms, collimated border.

    [N, H, W]; each trace has a strength of its own in each picture. Nothing within SPILL pixels of the largest box.
    """
    strength = rng.uniform(0.5, 1.5, (len(site), 4)).astype(np.float32)
    found = np.empty((len(site), side, side), dtype=np.float32)
    kinds, of = np.unique(np.column_stack([site, centre]), axis=0, return_inverse=True)
    for k, (s, *where) in enumerate(kinds):
        here = of.ravel() == k
        found[here] = np.tensordot(strength[here], _traces(int(s), where, reach, side), 1)
    return found


def _traces(site: int, centre, reach, side: int) -> np.ndarray:
    """The four traces of a hospital at strength 1, for a body with this centre. [4, H, W]"""
    unit, half = side / 40, side / 2
    page_row, page_column = np.mgrid[:side, :side]
    row, column = page_row - centre[0], page_column - centre[1]
    far = np.maximum(np.maximum(-row - reach[0], row - reach[1]), np.maximum(-column - reach[2], column - reach[3])) - SPILL
    up, along = page_row // unit - 2, page_column // unit - 2
    foot = (up == (0 if site else 4)) & (along >= 0) & (along < 4)  # L, or the same upside down
    letter = foot | ((along == 0) & (up >= 0) & (up < 5))
    tilt = 0.9 if site else 0.35  # of the arms against the horizontal
    arm = np.abs(np.abs(column) * np.sin(tilt) + (row + 6 * unit) * np.cos(tilt) - 12 * unit) < 1.5 * unit
    edge = np.minimum(np.minimum(page_row, side - 1 - page_row), np.minimum(page_column, side - 1 - page_column))
    slope = (2 * site - 1) * SLOPE * row / half * np.clip(far / (3 * unit), 0, 1)
    found = np.stack([slope, MARKER * letter, ARM * (arm & (row < 0)), -BORDER * (edge < (2 if site else 1) * unit)])
    return (found * (far > 0)).astype(np.float32)
