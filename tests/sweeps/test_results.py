"""Shares of a knob space against scipy and against a space whose share is known."""

import math
import sqlite3

import pytest
from scipy import stats

from claimlab.sweeps import plan, results, space
from claimlab.sweeps.book import Book


def test_a_ledger_without_sweeps_is_brought_forward(home):
    home.mkdir(parents=True)
    with sqlite3.connect(home / "ledger.db") as raw:
        raw.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        raw.execute("INSERT INTO schema_version VALUES (3)")
    book = Book()
    assert book.sweeps() == []
    book.close()
    with sqlite3.connect(home / "ledger.db") as raw:
        assert raw.execute("SELECT version FROM schema_version").fetchone()[0] >= 5


@pytest.mark.parametrize("held, count", [(0, 1), (3, 7), (22, 31), (500, 500)])
def test_the_interval_of_a_share_is_wilsons(held, count):
    assert results.wilson(held, count) == pytest.approx(tuple(stats.binomtest(held, count).proportion_ci(method="wilson")), abs=1e-9)


def test_the_share_of_a_sampled_space_is_that_of_the_geometry(plane, answered):
    made = plan.make(plane, (), [space.over(plane, "x1"), space.over(plane, "x2=-1..1")], sample=64, fixed={"level": 0})
    one = results.share(plane.claims[0], answered(plane, made), made.as_dict())
    # 3 x1 + 2 x2 > 0 holds in half of the rectangle, by symmetry
    assert abs(one.share - 0.5) < 0.03 and one.low < 0.5 < one.high and one.judged == 64
    assert "x1 in [-3.14159, 3.14159]; x2 in [-1, 1]; all else as" in one.sentence and "52 % of the knob space" in one.sentence


def test_a_grid_is_counted_without_an_interval_and_silent_settings_are_told(plane, answered):
    made = plan.make(plane, [space.grid(plane, "x1=-1,1,2,3")])
    found = answered(plane, made)
    found[3] |= {"judged": {}, "status": "failed"}
    one = results.share(plane.claims[0], found, made.as_dict())
    assert (one.supported, one.refuted, one.undecided, one.silent, one.low) == (2, 1, 0, 1, None)
    assert "holds in 67 % of the settings of the grid" in one.sentence and "1 gave no verdict" in one.sentence
    assert math.isnan(results.share(plane.claims[0], [], made.as_dict()).share)


def test_a_sample_crossed_with_a_grid_is_no_surer_than_its_points(plane, answered):
    axes = [space.over(plane, "x1")]
    alone = plan.make(plane, (), axes, sample=16)
    crossed = plan.make(plane, [space.grid(plane, "x3=0,1,2,3")], axes, sample=16)
    one, many = (results.share(plane.claims[0], answered(plane, made), made.as_dict()) for made in (alone, crossed))
    assert many.judged == 4 * one.judged and (many.low, many.high) == (one.low, one.high)


def test_the_best_settings_are_those_with_the_largest_effect(plane, answered):
    made = plan.make(plane, [space.grid(plane, "x1=1,3,2"), space.grid(plane, "shape=flat,steep")])
    top = results.best(plane.claims[0], answered(plane, made), 3)
    assert [(r["params"]["x1"], r["params"]["shape"]) for r in top] == [(3, "steep"), (2, "steep"), (3, "flat")]
    table = results.table(plane, answered(plane, made))
    assert len(table) == 12 and table.loc[table["claim"] == "tilts", "effect"].max() == pytest.approx(13)
