"""Indices of a study whose effects are formulas, against the closed forms of those formulas."""

import math

import numpy as np
import pytest

from claimlab import cli
from claimlab.params import KnobError
from claimlab.study import StudyError
from claimlab.sweeps import results, sensitivity, space

PI2 = math.pi**2
# variances of the parts of the height: uniform on an interval, on four steps, on three choices, on two
PARTS = {"x1": 9 * PI2 / 3, "x2": 4 * PI2 / 3, "x3": 0.0, "level": np.var([0, 1, 2]), "shape": np.var([0, 1, 4]), "flag": np.var([0, 2])}


def axes(study, *texts):
    return [space.over(study, text) for text in texts]


@pytest.fixture
def analysed(answered):
    def run(study, made, claim=0):
        found = answered(study, made, study.claims[claim])
        return sensitivity.analyse(study.claims[claim], found, made.as_dict()), found

    return run


def test_sobol_indices_of_the_ishigami_function(plane, analysed):
    made = sensitivity.design(plane, axes(plane, "x1", "x2", "x3"), "sobol", size=128, seeds=2)
    assert len(made.points) == 128 * 5
    indices, _ = analysed(plane, made, 1)
    a, b, pi = 7, 0.1, math.pi  # Ishigami and Homma (1990)
    whole = a**2 / 8 + b * pi**4 / 5 + b**2 * pi**8 / 18 + 0.5
    first = {"x1": (0.5 * (1 + b * pi**4 / 5) ** 2) / whole, "x2": a**2 / 8 / whole, "x3": 0.0}
    total = {"x1": first["x1"] + b**2 * pi**8 * 8 / 225 / whole, "x2": first["x2"], "x3": b**2 * pi**8 * 8 / 225 / whole}
    for one in indices.influences:
        assert abs(one.first - first[one.knob]) < 1.5 * one.first_error + 0.02 and one.first_error < 0.5
        assert abs(one.total - total[one.knob]) < 1.5 * one.total_error + 0.02
    assert [one.knob for one in indices.influences] == ["x1", "x2", "x3"]
    assert indices.spread**2 == pytest.approx(whole, rel=0.1) and indices.noise == 0
    told = " ".join(indices.sentences)
    assert "x3: 0 %" in told and "much of it is interplay" in told


def test_sobol_indices_of_a_sum_over_knobs_of_every_kind(plane, analysed):
    made = sensitivity.design(plane, axes(plane, "x1", "x2", "x3", "level=0..2", "shape", "flag"), "sobol", size=32)
    indices, _ = analysed(plane, made)
    whole = sum(PARTS.values())
    for one in indices.influences:
        expected = PARTS[one.knob] / whole
        assert abs(one.total - expected) < 1.5 * one.total_error + 0.01 and abs(one.first - expected) < 1.5 * one.first_error + 0.01
    assert "x3: no influence that can be told from nothing" in " ".join(indices.sentences)
    assert 0 < indices.noise < 1e-3


def test_morris_measures_of_a_plane_are_its_slopes(plane, analysed):
    made = sensitivity.design(plane, axes(plane, "x1", "x2", "x3", "level=0..2", "flag"), "morris", size=16)
    assert len(made.points) == 16 * 6
    indices, _ = analysed(plane, made)
    found = {one.knob: one for one in indices.influences}
    for name, slope in {"x1": 6 * math.pi, "x2": 4 * math.pi, "x3": 0.0, "flag": 2.0}.items():
        assert found[name].total == pytest.approx(slope, abs=1e-4) and found[name].first == pytest.approx(0, abs=1e-4)
    assert found["level"].total == pytest.approx(2)  # two steps up, moved by one or by two
    assert "x3: moving it" in indices.sentences[-2] and "not told apart from nothing" in indices.sentences[-2]


def test_the_share_counts_the_base_points_of_a_design_once(plane, answered):
    for method, interval in (("sobol", True), ("morris", False)):
        made = sensitivity.design(plane, axes(plane, "x1", "x2"), method, size=8)
        one = results.share(plane.claims[0], answered(plane, made, plane.claims[0]), made.as_dict())
        assert one.judged == len(made.points) and (one.low is not None) == interval
        if interval:
            assert (one.low, one.high) == pytest.approx(results.wilson(one.share * 8, 8))


def test_a_run_without_an_effect_takes_its_block_with_it(plane, analysed):
    made = sensitivity.design(plane, axes(plane, "x1", "x2"), "sobol", size=16)
    whole, found = analysed(plane, made)
    found[5]["judged"] = {}
    less = sensitivity.analyse(plane.claims[0], found, made.as_dict())
    assert (less.runs, less.dropped) == (60, 1) and less.influences[0].total == pytest.approx(whole.influences[0].total, abs=0.15)
    assert "1 base points had a run without an effect" in " ".join(less.sentences)
    for row in found:
        row["judged"] = {}
    with pytest.raises(StudyError, match="too few are left"):
        sensitivity.analyse(plane.claims[0], found, made.as_dict())


def test_what_cannot_be_analysed_is_refused(plane, analysed):
    with pytest.raises(KnobError, match="shape: Morris moves a knob up and down"):
        sensitivity.design(plane, axes(plane, "x1", "shape"), "morris")
    with pytest.raises(StudyError, match="two or more"):
        sensitivity.design(plane, axes(plane, "x1"))
    with pytest.raises(StudyError, match="contradict"):
        sensitivity.design(plane, axes(plane, "level", "flag"))
    with pytest.raises(StudyError, match="no knob moves it"):
        analysed(plane, sensitivity.design(plane, axes(plane, "x3", "rate"), size=4))


def test_the_command_runs_the_design_and_explains_it(plane, home, capsys):
    assert cli.main(["sensitivity", "toy-plane", "--claim", "tilts", "--method", "morris", "--over", "x1", "--over", "x2", "--size", "4",
                     "--jobs", "2"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "x1: moving it over its whole range changes the effect by 18.8" in said and "x2: moving it" in said
    page = next(home.glob("sweeps/*/sensitivity-tilts.html"))
    assert "plotly" in page.read_text()
    assert cli.main(["sensitivity", "toy-plane", "--claim", "tilt"]) == 2
    assert "did you mean tilts" in capsys.readouterr().err
