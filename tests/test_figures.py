"""Figures show what the data say: bands, thinning, colours, verdicts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimlab import figures
from claimlab.claims import Claim, interval, judge


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    rows = [
        ("s", arm, seed, step, "accuracy", 0.5 + 0.01 * step + lift + rng.normal() / 50)
        for arm, lift in (("old", 0.0), ("new", 0.2), ("other", 0.1))
        for seed in range(5)
        for step in range(0, 21, 5)
    ]
    return pd.DataFrame(rows, columns=["study", "arm", "seed", "step", "metric", "value"])


CLAIM = Claim(
    "c", "The new one is better.", kind="paired", metric="accuracy", arm="new", baseline="old", margin=0.05, better="higher"
)


@given(st.integers(10, 400), st.integers(0, 10**6), st.sampled_from([20, 64]))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_every_extreme_and_the_order(n, seed, limit):
    rng = np.random.default_rng(seed)
    x, y = np.arange(n), rng.standard_normal(n)
    y[rng.integers(n)] = np.nan
    thin_x, thin_y = figures.thin(x, y, limit)
    assert len(thin_x) <= max(limit, min(n, limit))
    assert (np.diff(thin_x) > 0).all()
    assert np.nanmax(thin_y) == np.nanmax(y) and np.nanmin(thin_y) == np.nanmin(y)
    assert all(b == y[a] or np.isnan(b) for a, b in zip(thin_x, thin_y, strict=True))


def test_the_band_is_the_interval_of_the_claims(table):
    rows = table[table["arm"] == "new"]
    band = figures.band(rows)
    for step in (0, 20):
        values = rows[rows["step"] == step]["value"].to_numpy()
        assert (band.loc[step, "low"], band.loc[step, "high"]) == pytest.approx(interval(values))
        assert band.loc[step, "mean"] == pytest.approx(values.mean())


def test_a_missing_seed_leaves_the_band_of_the_others(table):
    rows = table[table["arm"] == "new"].copy()
    rows.loc[(rows["seed"] == 2) & (rows["step"] == 10), "value"] = np.nan
    values = rows[(rows["step"] == 10)]["value"].dropna().to_numpy()
    assert len(values) == 4 and figures.band(rows).loc[10, "mean"] == pytest.approx(values.mean())


def test_a_curve_has_a_line_a_seed_a_band_and_a_mean_for_each_arm(table):
    figure = figures.curve(table, "accuracy", title="t", y_title="accuracy (share)", baseline="old", method="new")
    assert len(figure.data) == 3 * (1 + 1 + 1)
    for arm, seeds in zip(("old", "new", "other"), figure.data[::3], strict=True):
        rows = table[(table["arm"] == arm) & (table["metric"] == "accuracy")]
        lines = np.split(np.asarray(seeds.y), np.flatnonzero(np.isnan(seeds.y)) + 1)[:5]
        assert [line[:-1].tolist() for line in lines] == [one["value"].tolist() for _, one in rows.groupby("seed")]
    named = {trace.name: trace for trace in figure.data if trace.showlegend is not False}
    assert set(named) == {"old (n = 5)", "new (n = 5)", "other (n = 5)"}
    assert named["old (n = 5)"].line.color == figures.GREY and named["new (n = 5)"].line.color == figures.BLUE
    mean = table[(table["arm"] == "new") & (table["step"] == 20)]["value"].mean()
    assert named["new (n = 5)"].y[-1] == pytest.approx(mean)
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text == "accuracy (share)"


def test_an_arm_keeps_its_colour_and_no_two_share_one():
    arms = ["old", "new", *"abcdef"]
    chosen = figures.colours(arms, "old", "new")
    assert chosen["old"] == figures.GREY and chosen["new"] == figures.BLUE
    assert len(set(chosen.values())) == len(arms)


def test_colours_are_told_apart_by_the_colour_blind():
    """Okabe and Ito's published palette (2008); ours are those colours, with two darkened for white ground."""
    published = {"#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}
    assert published <= {figures.BLUE, *figures.OTHERS}


@pytest.mark.parametrize("lift", [0.0, 0.05, 0.3])
def test_the_picture_of_a_verdict_holds_its_numbers(table, lift):
    moved = table.copy()
    moved.loc[moved["arm"] == "new", "value"] += lift - 0.2
    verdict = judge(CLAIM, moved)
    figure = figures.paired(verdict, CLAIM)
    dots = [t.x[0] for t in figure.data[:5]]
    assert dots == [value for _, value in verdict.values]
    assert figure.data[5].x == (verdict.low, verdict.high) and figure.data[6].x == (verdict.effect,)
    low, high = figure.layout.xaxis.range
    assert low < min(*dots, verdict.low, 0.05, 0.0) and high > max(*dots, verdict.high, 0.05)
    assert verdict.verdict in figure.layout.title.text and figures.VERDICT_ICONS[verdict.verdict] in figure.layout.title.text
    assert {line.x0 for line in figure.layout.shapes} == {0.05, 0}


def test_a_verdict_without_data_is_drawn_with_its_margin_alone():
    empty = pd.DataFrame(columns=["study", "arm", "seed", "step", "metric", "value"])
    figure = figures.paired(judge(CLAIM, empty), CLAIM)
    assert len(figure.data) == 0 and "undecided" in figure.layout.title.text


def test_bars_reach_the_mean_of_the_last_values(table):
    figure = figures.bars(table, "accuracy", title="t", y_title="accuracy")
    bar = next(t for t in figure.data if t.type == "bar" and t.name == "other")
    last = table[(table["arm"] == "other") & (table["step"] == 20)]["value"].to_numpy()
    low, high = interval(last)
    assert bar.y[0] == pytest.approx(last.mean())
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(high) and bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(low)


def test_images_stand_upright_with_their_outline():
    image = np.arange(12.0).reshape(3, 4)
    mask = image > 8
    figure = figures.images([image, image], ["a", "b"], title="t", columns=2, outlines=[mask, None])
    assert (np.asarray(figure.data[0].z)[-1] == image[0]).all()  # the first row is on top, and plotly counts from below
    assert (np.asarray(figure.data[1].z)[0] == mask[2]).all() and len(figure.data) == 3


def test_long_titles_are_wrapped_and_get_room():
    short = figures.style(figures.go.Figure(), "short")
    long = figures.style(figures.go.Figure(), "many words " * 30)
    assert max(len(line) for line in long.layout.title.text.split("<br>")) <= figures.WIDTH
    assert long.layout.margin.t > short.layout.margin.t


def test_thinning_keeps_both_ends():
    x, y = figures.thin(np.arange(5001), np.sin(np.arange(5001) / 900), 100)
    assert len(x) <= 100 and (x[0], x[-1]) == (0, 5000)


def test_a_thinned_band_has_one_step_for_both_edges_and_covers_the_whole():
    rng = np.random.default_rng(1)
    steps = 3001
    wide = pd.DataFrame({"low": rng.normal(-2, 0.1, steps), "high": rng.normal(2, 0.1, steps)}, index=np.arange(steps) * 10)
    x, low, high = figures._hull(wide, 200)
    assert len(x) == len(low) == len(high) == 200 and (x[0], x[-1]) == (0, 30000) and (np.diff(x) > 0).all()
    assert low.min() == wide["low"].min() and high.max() == wide["high"].max()
    assert (low[-1], high[-1]) == (wide["low"].iloc[-1], wide["high"].iloc[-1])


def test_on_a_log_axis_the_label_of_a_reference_lies_at_its_line(table):
    linear = figures.curve(table, "accuracy", title="t", y_title="y", references={"chance": 0.1})
    log = figures.curve(table, "accuracy", title="t", y_title="y", references={"chance": 0.1}, log_y=True)
    assert linear.layout.annotations[0].y == 0.1 and log.layout.annotations[0].y == pytest.approx(-1)
    assert linear.layout.shapes[0].y0 == log.layout.shapes[0].y0 == 0.1


def test_no_seed_hides_another_and_all_stay_within_their_bar(table):
    figure = figures.bars(table, "accuracy", title="t", y_title="accuracy")
    dots = next(t for t in figure.data if t.type == "scatter" and t.name == "other")
    place = list(figure.layout.xaxis.ticktext).index("other")
    assert len(set(dots.x)) == 5 and all(abs(x - place) < 0.4 for x in dots.x)


def test_headings_of_panels_get_room_below_the_title():
    from plotly.subplots import make_subplots

    plain, headed = make_subplots(1, 2), make_subplots(1, 2, subplot_titles=["a", "b"])
    assert figures.style(headed, "t").layout.margin.t > figures.style(plain, "t").layout.margin.t
