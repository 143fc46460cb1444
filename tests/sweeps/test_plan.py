"""Settings of grids and samples, against what the declarations allow and what an even sample is."""

import math

import numpy as np
import pytest
from scipy import stats

from claimlab.params import KnobError
from claimlab.study import StudyError
from claimlab.sweeps import plan, space


def test_a_grid_is_the_product_of_its_values(plane):
    made = plan.make(plane, [space.grid(plane, "x1=-1,0,1"), space.grid(plane, "shape=flat,steep")], seeds=5)
    assert [(p["x1"], p["shape"]) for p in made.points] == [(x, s) for x in (-1.0, 0.0, 1.0) for s in ("flat", "steep")]
    assert made.values(0)["seeds"] == 5 and made.seeds == (0, 1, 2, 3, 4)


def test_a_range_on_a_grid_has_both_ends_and_equal_steps_or_equal_factors(plane):
    assert space.grid(plane, "x1=-2..2:5").values == (-2.0, -1.0, 0.0, 1.0, 2.0)
    assert space.grid(plane, "level=0..3:4").values == (0, 1, 2, 3)
    factors = np.diff(np.log10(space.grid(plane, "rate=1e-4..1:5").values))
    assert factors == pytest.approx([1.0] * 4, abs=1e-6)


@pytest.mark.parametrize("text", ["x1", "x1=", "x1=a", "x1=9", "x1=1..2", "x1=2..1:3", "slope=1", "seeds=3,4", "shape=flat..steep:2"])
def test_a_grid_that_is_not_allowed_is_refused_before_anything_starts(plane, text):
    with pytest.raises(KnobError):
        space.grid(plane, text)


@pytest.mark.parametrize("text", ["shape=1..2", "x1=-1..1:log", "x1:cubic", "x1=0..9"])
def test_an_axis_that_cannot_be_drawn_is_refused(plane, text):
    with pytest.raises(KnobError):
        space.over(plane, text)


@pytest.mark.parametrize("method", ["sobol", "lhs"])
def test_drawn_values_fill_each_axis_evenly(plane, method):
    axes = [space.over(plane, text) for text in ("x1", "rate", "level=0..2", "shape", "flag")]
    made = plan.make(plane, (), axes, sample=256, method=method)
    drawn = {name: [p[name] for p in made.points] for name in made.points[0]}
    assert stats.kstest(drawn["x1"], stats.uniform(-math.pi, 2 * math.pi).cdf).statistic < 0.01  # 1 / 256 for even points
    assert stats.kstest(np.log10(drawn["rate"]), stats.uniform(-4, 4).cdf).statistic < 0.01
    for name, kinds in (("level", 3), ("shape", 3), ("flag", 2)):
        counts = np.unique(drawn[name], return_counts=True)[1]
        assert len(counts) == kinds and max(abs(counts - 256 / kinds)) <= 2


def test_a_sample_of_a_power_of_two_is_the_beginning_of_the_next(plane):
    axes = [space.over(plane, "x1"), space.over(plane, "x2")]
    small, large = (plan.make(plane, (), axes, sample=n).points for n in (8, 16))
    assert large[:8] == small and len({tuple(p.values()) for p in large}) == 16


def test_what_is_drawn_by_default_leaves_out_what_a_run_costs(plane):
    assert {a.knob.name for a in space.free(plane, ["wait"])} == {"x1", "x2", "x3", "level", "shape", "flag", "rate"}


def test_contradictions_are_refused_on_a_grid_and_left_out_of_a_sample(plane):
    grids = [space.grid(plane, "level=2,3"), space.grid(plane, "flag=true,false")]
    with pytest.raises(KnobError, match="level 3 has no flag"):
        plan.make(plane, grids)
    made = plan.make(plane, (), [space.over(plane, "level"), space.over(plane, "flag")], sample=64)
    assert made.left_out + len(made.points) == 64 and made.left_out == pytest.approx(8, abs=3)


def test_a_knob_given_twice_and_an_empty_plan_are_refused(plane):
    with pytest.raises(KnobError, match="twice"):
        plan.make(plane, [space.grid(plane, "x1=1,2")], fixed={"x1": "1"})
    with pytest.raises(KnobError, match="did you mean x1"):
        plan.make(plane, [space.grid(plane, "x2=1,2")], fixed={"x11": "1"})
    with pytest.raises(StudyError):
        plan.make(plane)


def test_the_key_of_a_run_holds_all_it_depends_on_and_no_more(plane):
    versions = {"sources": "a", "notebook": "b", "torch": "2"}
    made = plan.make(plane, [space.grid(plane, "x1=1,2")])
    other = plan.make(plane, [space.grid(plane, "x1=1,3")])
    assert made.key(0, versions) == other.key(0, versions) == made.key(0, versions | {"notebook": "c"})
    keys = {made.key(0, versions), made.key(1, versions), made.key(0, versions | {"sources": "c"}),
            plan.make(plane, [space.grid(plane, "x1=1,2")], seeds=6).key(0, versions),
            plan.make(plane, [space.grid(plane, "x1=1,2")], seeds=(5, 6, 7, 8, 9)).key(0, versions),
            plan.make(plane, [space.grid(plane, "x1=1,2")], fixed={"x2": 1}).key(0, versions)}  # fmt: skip
    assert len(keys) == 6 and made.mark != other.mark
