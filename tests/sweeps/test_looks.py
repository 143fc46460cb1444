"""Looks: the boundary against published tables and another integration; false support with all looks by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from claimlab.claims import Claim, Verdict, interval
from claimlab.params import KnobError
from claimlab.sweeps import looks

DRAWS = 2000
DIFFERENCES = {  # mean 0, that is: the effect is exactly the margin
    "normal": lambda rng: rng.standard_normal(looks.LOOKS[-1]),
    "skewed to the right": lambda rng: rng.gamma(4, size=looks.LOOKS[-1]) - 4,
    "skewed to the left": lambda rng: 4 - rng.gamma(4, size=looks.LOOKS[-1]),
    "heavy tails": lambda rng: rng.standard_t(3, size=looks.LOOKS[-1]),
}


@pytest.mark.parametrize(
    ("alpha", "number", "published"),  # Jennison and Turnbull, Group Sequential Methods (2000), table 2.1
    [(0.05, 2, 2.178), (0.05, 3, 2.289), (0.05, 4, 2.361), (0.05, 5, 2.413), (0.05, 10, 2.555), (0.01, 5, 2.986), (0.1, 5, 2.122)],
)
def test_for_looks_at_equal_distances_the_constant_is_pococks(alpha, number, published):
    assert looks.constant(range(1, number + 1), alpha) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("sided", [1, 2])
def test_for_our_looks_it_is_that_of_the_multivariate_normal(sided):
    bound = looks.constant(looks.LOOKS, sided=sided)
    times = np.array(looks.LOOKS, dtype=float)
    correlation = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    joint = stats.multivariate_normal(np.zeros(5), correlation, seed=0, abseps=1e-6, maxpts=2_000_000)
    inside = joint.cdf(np.full(5, bound), lower_limit=np.full(5, -bound if sided == 2 else -np.inf))
    assert 1 - inside == pytest.approx(0.05, abs=2e-4)


def support(draw, level, sided=2) -> float:
    """Share of draws in which the interval of at least one look lies wholly above the true mean."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(DRAWS):
        values = draw(rng)
        found += any(interval(values[:n], level, sided)[0] > 0 for n in looks.LOOKS)
    return found / DRAWS


@pytest.mark.parametrize("name", DIFFERENCES)
def test_with_all_looks_a_true_null_is_supported_in_at_most_five_percent(name):
    assert support(DIFFERENCES[name], looks.level()) <= 0.05


def test_without_the_correction_it_would_be_supported_more_often():
    corrected, plain = (support(DIFFERENCES["normal"], level) for level in (looks.level(), 0.95))
    assert corrected <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / DRAWS) and plain > 0.05


@pytest.mark.parametrize(("name", "most"), [("normal", 0.05), ("skewed to the right", 0.05), ("skewed to the left", 0.08)])
def test_bounds_are_one_sided_and_as_good_as_the_docstring_says(name, most):
    assert support(DIFFERENCES[name], looks.level(1), sided=1) <= most + 2 * math.sqrt(0.05 * 0.95 / DRAWS)


PAIRED = Claim("c", "text", kind="paired", metric="m", arm="new", baseline="old", margin=0.0, better="higher")
BOUND = Claim("b", "text", kind="bound", metric="m", arm="new", margin=0.0, better="higher")
THEOREM = Claim("t", "text", kind="equality", metric="m", arm="old", margin=0.1, better="lower")


def table(new) -> pd.DataFrame:
    arms = {"old": [0.0] * len(new), "new": new}
    rows = [("s", arm, seed, 9, "m", value) for arm, values in arms.items() for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "metric", "value"])


def test_a_claim_is_judged_by_the_wider_interval_of_its_kind():
    values = np.array([0.1, 0.2, 0.35, 0.3, 0.25, 0.15])
    paired, bound, theorem = looks.judge((PAIRED, BOUND, THEOREM), table(values))
    assert (paired.low, paired.high) == interval(values, looks.level())
    assert (bound.low, bound.high) == interval(values, looks.level(1), sided=1)
    assert theorem.verdict == "supported"
    assert "98.7 %" in looks.facts(paired, PAIRED, 6)["sentence"] and "%" not in looks.facts(theorem, THEOREM, 6)["sentence"]


def test_only_a_claim_whose_interval_contains_the_margin_waits_for_more_seeds():
    diverged = Verdict("gone", "undecided", None, None, None, 4, "", "arm new diverged")
    wide = Verdict("wide", "undecided", 0.1, -1.0, 1.0, 5, "")
    assert looks.open_claims([diverged, wide, Verdict("done", "refuted", 0.1, 0.0, 0.2, 5, "")]) == ["wide"]


@pytest.mark.parametrize(("most", "planned"), [(5, (5,)), ("40", (5, 10, 20, 40)), (80, looks.LOOKS)])
def test_looks_end_at_the_most_seeds(most, planned):
    assert looks.planned(most) == planned


@pytest.mark.parametrize("most", [4, 7, 160, "many", 5.5, ""])
def test_other_numbers_of_seeds_are_refused(most):
    with pytest.raises(KnobError, match="5, 10, 20, 40, 80"):
        looks.planned(most)
