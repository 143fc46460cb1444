"""Verdicts: coverage by simulation, the interval against libraries, and every reason not to judge."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from claimlab.claims import LEVEL, SKEWNESS, Claim, interval, judge, says_nothing

PAIRED = Claim("c", "text", kind="paired", metric="accuracy", arm="new", baseline="old", margin=0.1, better="higher")
DRAWS = 2000


def table(arms: dict[str, list[float]], metric="accuracy", step=100) -> pd.DataFrame:
    rows = [("s", arm, seed, step, metric, value) for arm, values in arms.items() for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "metric", "value"])


DIFFERENCES = {  # mean 0; the skewness of a gamma variable of shape k is 2 / sqrt(k)
    "normal": lambda rng, n: rng.standard_normal(n),
    "skewed to the right": lambda rng, n: rng.gamma(4, size=n) - 4,
    "skewed to the left": lambda rng, n: 4 - rng.gamma(4, size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
}


def false_support(draw, n: int, sided: int = 2) -> float:
    """Share of draws whose interval lies wholly above the true mean."""
    rng = np.random.default_rng(0)
    return sum(interval(draw(rng, n), sided=sided)[0] > 0 for _ in range(DRAWS)) / DRAWS


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_true_null_is_supported_in_at_most_five_percent(name, n):
    assert false_support(DIFFERENCES[name], n) <= 0.05


def test_judging_at_the_margin_is_the_same_as_the_interval():
    rng = np.random.default_rng(1)
    verdicts = []
    for _ in range(300):
        old = rng.standard_normal(5)
        verdicts.append(judge(PAIRED, table({"old": old, "new": old + 0.1 + rng.standard_normal(5)})).verdict)
    assert verdicts.count("supported") / 300 <= 0.05


def test_the_exponential_at_five_seeds_is_as_bad_as_the_docstring_says():
    def draw(rng, n):
        return 1 - rng.exponential(size=n)

    assert 0.05 < false_support(draw, 5) <= 0.09
    rng = np.random.default_rng(0)
    student = sum(stats.ttest_1samp(draw(rng, 5), 0, alternative="greater").pvalue < 0.025 for _ in range(DRAWS)) / DRAWS
    assert student > 0.10


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [
        (lambda rng, n: 2 - rng.gamma(2, size=n), 0.045, 0.065),  # skewness 1.4: the docstring says 5.5 %
        (lambda rng, n: 4 - rng.gamma(4, size=n), 0.03, 0.05),
    ],
)
def test_between_normal_and_exponential_the_docstring_holds(draw, low, high):
    assert low < false_support(draw, 5) <= high


def test_one_sided_bounds_are_as_good_as_the_docstring_says():
    noise = 2 * math.sqrt(0.05 * 0.95 / DRAWS)
    for name in ("normal", "skewed to the right", "heavy tails"):
        assert false_support(DIFFERENCES[name], 5, sided=1) <= 0.05 + noise
    assert false_support(DIFFERENCES["skewed to the left"], 5, sided=1) == pytest.approx(0.07, abs=0.012)
    assert false_support(lambda rng, n: 1 - rng.exponential(size=n), 5, sided=1) == pytest.approx(0.13, abs=0.018)


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=8), st.sampled_from([1e-20, 1e-9, 3.0, 1e12]), st.integers(-5, 5))
@settings(max_examples=60, deadline=None)
def test_the_unit_and_the_origin_of_a_metric_do_not_matter(whole, unit, origin):
    values = np.array(whole, dtype=float)
    expected = np.array(interval(values)) + origin
    assert np.array(interval((values + origin) * unit)) / unit == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_mirror_image_has_the_mirrored_interval(values):
    low, high = interval(np.array(values))
    mirrored = interval(-np.array(values))
    assert mirrored == pytest.approx((-high, -low), rel=1e-9, abs=1e-12)
    assert low <= np.mean(values) + 1e-12 and high >= np.mean(values) - 1e-12


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_of_symmetric_values_it_is_students_interval(steps, centre):
    values = np.array([centre - s for s in steps] + [centre + s for s in steps])
    low, high = stats.t.interval(LEVEL, len(values) - 1, values.mean(), stats.sem(values))
    assert interval(values) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_the_skewed_side_inverts_halls_transformation():
    values = np.array([0.0, 0.1, 0.15, 0.2, 0.9])
    n, mean, sd, skew = 5, values.mean(), values.std(ddof=1), SKEWNESS  # the sample's own skewness lies above the cap
    assert stats.skew(values, bias=False) > SKEWNESS
    q = stats.t.ppf(0.975, n - 1)

    def hall(w):
        return math.sqrt(n) * (w + skew * w**2 / 3 + skew**2 * w**3 / 27 + skew / (6 * n))

    w = optimize.brentq(lambda w: hall(w) + q, -8, 2)
    low, high = interval(values)
    assert high == pytest.approx(mean - sd * w) and high > mean + q * sd / math.sqrt(n)
    assert low == pytest.approx(mean - q * sd / math.sqrt(n))


def test_one_sided_bounds_are_those_of_the_one_sided_t_test():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    low, _ = interval(values, sided=1)
    assert stats.ttest_1samp(values, low, alternative="greater").pvalue == pytest.approx(0.05)


# ---- verdicts


@pytest.mark.parametrize(
    ("gain", "better", "verdict", "words"),
    [
        (0.5, "higher", "supported", "wholly above the margin +0.1"),
        (-0.5, "lower", "supported", "wholly below the margin -0.1"),
        (-0.5, "higher", "refuted", "the data say the opposite"),
        (0.5, "lower", "refuted", "the data say the opposite"),
        (0.05, "higher", "refuted", "too small to matter"),
        (0.0, "higher", "refuted", "no effect that would matter"),
        (0.1, "higher", "undecided", "contains the margin"),
    ],
)
def test_paired_claims(gain, better, verdict, words):
    noise = [-0.002, -0.001, 0.0, 0.001, 0.002]
    claim = Claim("c", "t", kind="paired", metric="accuracy", arm="new", baseline="old", margin=0.1, better=better)
    found = judge(
        claim,
        table(
            {
                "old": [0.1, 0.3, 0.2, 0.5, 0.4],
                "new": [b + gain + e for b, e in zip([0.1, 0.3, 0.2, 0.5, 0.4], noise, strict=True)],
            }
        ),
    )
    assert found.verdict == verdict and words in found.sentence
    assert found.effect == pytest.approx(gain) and found.n == 5
    assert dict(found.values)[3] == pytest.approx(gain + 0.001)


def test_a_negative_margin_allows_a_small_loss():
    claim = Claim("c", "t", kind="paired", metric="accuracy", arm="new", baseline="old", margin=-0.05, better="higher")
    assert judge(claim, table({"old": [0.5] * 5, "new": [0.48, 0.481, 0.479, 0.48, 0.48]})).verdict == "supported"


@pytest.mark.parametrize(
    ("values", "verdict"), [([0.7, 0.72, 0.71], "supported"), ([0.5, 0.52, 0.51], "refuted"), ([0.5, 0.7], "undecided")]
)
@pytest.mark.parametrize("kind", ["bound", "rate"])
def test_bounds_and_rates_compare_with_a_number(values, verdict, kind):
    claim = Claim("c", "t", kind=kind, metric="accuracy", arm="new", margin=0.6, better="higher")
    assert judge(claim, table({"new": values})).verdict == verdict


@pytest.mark.parametrize(("worst", "verdict"), [(1e-5, "supported"), (1e-4, "supported"), (2e-4, "refuted")])
def test_a_theorem_holds_in_all_cases_or_not_at_all(worst, verdict):
    claim = Claim("c", "t", kind="equality", metric="accuracy", arm="new", margin=1e-4, better="lower")
    found = judge(claim, table({"new": [1e-7, worst, 1e-8]}))
    assert found.verdict == verdict and found.effect == worst


def test_the_last_step_counts():
    early, late = table({"old": [0.0] * 5, "new": [1.0] * 5}, step=10), table({"old": [0.5] * 5, "new": [0.5] * 5}, step=20)
    assert judge(PAIRED, pd.concat([late, early])).effect == 0.0


# ---- reasons not to judge


def test_a_missing_seed_is_named():
    rows = table({"old": [0.1] * 5, "new": [0.5] * 5})
    found = judge(PAIRED, rows[~((rows["arm"] == "old") & (rows["seed"] == 2))])
    assert found.verdict == "undecided" and "old" in found.reason and "seed 2" in found.reason


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_member_is_named(value):
    found = judge(PAIRED, table({"old": [0.1] * 5, "new": [0.5, 0.5, value, 0.5, 0.5]}))
    assert found.verdict == "undecided" and "seed 2" in found.reason and "new" in found.reason


def test_nan_at_the_last_step_is_not_replaced_by_an_earlier_value():
    rows = pd.concat(
        [table({"old": [0.1] * 5, "new": [0.5] * 5}, step=10), table({"old": [0.1] * 5, "new": [math.nan] * 5}, step=20)]
    )
    assert judge(PAIRED, rows).verdict == "undecided"


def test_a_member_that_stopped_early_is_named():
    rows = pd.concat([table({"old": [0.1] * 5, "new": [0.5] * 5}, step=s) for s in (10, 20)])
    found = judge(PAIRED, rows[~((rows["arm"] == "new") & (rows["seed"] == 4) & (rows["step"] == 20))])
    assert found.verdict == "undecided" and "seed 4" in found.reason


def test_of_a_step_written_twice_the_later_row_counts():
    again = table({"old": [0.1] * 40, "new": [0.9] * 40})
    found = judge(PAIRED, pd.concat([table({"old": [0.1] * 40, "new": [0.5] * 40}), again]))
    assert found.effect == pytest.approx(0.8)


def test_a_seed_that_recorded_only_another_metric_is_missed():
    rows = pd.concat([table({"old": [0.1] * 5, "new": [0.5] * 5}), table({"old": [1.0] * 6, "new": [1.0] * 6}, metric="loss")])
    found = judge(PAIRED, rows)
    assert found.verdict == "undecided" and "seed 5" in found.reason


@pytest.mark.parametrize(
    ("arms", "words"), [({"old": [0.1] * 4, "new": [0.5] * 4}, "4 seeds are too few"), ({"old": [0.1] * 5}, "arm new")]
)
def test_too_little_is_said(arms, words):
    assert words in judge(PAIRED, table(arms)).reason


@given(st.lists(st.floats(-1, 1), min_size=5, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_does_not_matter(values, random):
    rows = table({"old": [0.0] * len(values), "new": values})
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = judge(PAIRED, rows), judge(PAIRED, rows.iloc[order])
    assert (one.verdict, one.sentence) == (other.verdict, other.sentence)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "guess"}, {"better": "bigger"}, {"baseline": None}, {"margin": math.nan}, {"kind": "bound"}],
)
def test_a_malformed_claim_is_refused_where_it_is_declared(wrong):
    good = dict(kind="paired", metric="m", arm="a", baseline="b", margin=0.1, better="higher")
    with pytest.raises(ValueError, match="claim c"):
        Claim("c", "t", **{**good, **wrong})


def test_support_under_the_control_says_nothing():
    assert says_nothing("supported", "supported")
    assert not says_nothing("supported", "undecided") and not says_nothing("refuted", "supported")
    assert not says_nothing("supported", None)
