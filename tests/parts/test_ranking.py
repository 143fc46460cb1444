"""Measures of rankings against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from claimlab.parts import ranking


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ties=st.booleans(), n=st.integers(4, 60))
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(seed, ties, n):
    rng = np.random.default_rng(seed)
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    score = rng.integers(0, 5, n).astype(float) if ties else rng.standard_normal(n)
    assert ranking.auc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    weight = rng.integers(1, 4, (3, n))
    expected = [roc_auc_score(y, score, sample_weight=w) for w in weight]
    assert ranking.auc(y, score, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("y", [[0, 0, 0], [1, 1, 1]], ids=["no positive", "no negative"])
def test_auc_of_one_class_is_no_number(y):
    assert np.isnan(ranking.auc(np.array(y), np.array([0.3, 0.1, 0.2])))
