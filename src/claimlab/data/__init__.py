"""Data that ship inside libraries; every split follows from its seed alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: images [1797, 8, 8] float32 in [0, 1], labels [1797] int64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


def stratified(labels: np.ndarray, train: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `train` examples with the class shares of all, and of the rest; both shuffled. ValueError if too many."""
    from sklearn.model_selection import train_test_split

    if not 0 < train < len(labels):
        raise ValueError(f"train = {train} is not allowed: it must be in [1, {len(labels) - 1}]")
    state = int(rng.integers(2**31))
    first, second = train_test_split(np.arange(len(labels)), train_size=train, stratify=labels, random_state=state)
    return first, second
