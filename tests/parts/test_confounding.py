"""Worlds of a known hidden confounding against their definition, and worst cases against linear programming."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from claimlab.parts.confounding import hidden_cause, ratio_limits, worst_case


@settings(max_examples=40, deadline=None)
@given(e=st.floats(0.02, 0.98), gamma=st.floats(1.01, 10))
def test_the_hidden_cause_changes_the_odds_by_gamma_and_leaves_the_propensity(e, gamma):
    p0, p1, share = (float(v) for v in hidden_cause(torch.tensor(e, dtype=torch.float64), gamma))
    odds = e / (1 - e)
    assert p1 / (1 - p1) == pytest.approx(gamma * odds) and p0 / (1 - p0) == pytest.approx(odds / gamma)
    assert 0 <= share <= 1 and share * p1 + (1 - share) * p0 == pytest.approx(e)


@settings(max_examples=40, deadline=None)
@given(e=st.floats(0.02, 0.98), gamma=st.floats(1, 10), a=st.sampled_from([0, 1]))
def test_what_bayes_makes_of_the_hidden_cause_touches_the_limits_and_stays_inside(e, gamma, a):
    p0, p1, share = (float(v) for v in hidden_cause(torch.tensor(e, dtype=torch.float64), gamma))
    pi = e if a else 1 - e
    ratios = [pi / (p if a else 1 - p) for p in (p0, p1)]  # P(u) / P(u | a)
    low, high = (float(v) for v in ratio_limits(torch.tensor(pi, dtype=torch.float64), gamma))
    assert min(ratios) == pytest.approx(low) and max(ratios) == pytest.approx(high)


def test_without_confounding_the_cause_says_nothing():
    e = torch.tensor([0.1, 0.5, 0.9])
    p0, p1, share = hidden_cause(e, 1.0)
    assert torch.allclose(p0, e) and torch.allclose(p1, e) and torch.equal(share, torch.full((3,), 0.5))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 8), gamma=st.floats(1, 8), ties=st.booleans())
def test_the_worst_case_is_the_optimum_of_the_linear_programme(seed, d, gamma, ties):
    rng = np.random.default_rng(seed)
    q, pi = rng.dirichlet(np.ones(d), 3), rng.uniform(0.05, 0.95, 3)
    v = rng.integers(0, 3, (3, d)).astype(float) if ties else rng.standard_normal((3, d))
    low, high = ratio_limits(torch.tensor(pi), gamma)
    found = worst_case(torch.tensor(v), torch.tensor(q), low, high)
    for k in range(3):
        box = [(float(low[k]) * one, float(high[k]) * one) for one in q[k]]
        best = linprog(-v[k], A_eq=np.ones((1, d)), b_eq=[1.0], bounds=box)
        assert float((found[k] * torch.tensor(v[k])).sum()) == pytest.approx(-best.fun, abs=1e-8)
        assert float(found[k].sum()) == pytest.approx(1)
        assert all(a - 1e-9 <= p <= b + 1e-9 for p, (a, b) in zip(found[k].tolist(), box, strict=True))


def test_the_least_comes_from_the_negative_values_and_gamma_one_changes_nothing():
    q, v = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, 3.0, 2.0])
    one = torch.tensor(1.0)
    assert torch.allclose(worst_case(v, q, one, one), q)
    low, high = ratio_limits(torch.tensor(0.4), 3.0)  # 0.6 and 2.2
    assert torch.allclose(worst_case(-v, q, low, high), torch.tensor([0.44, 0.3, 0.26]))
