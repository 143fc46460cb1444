"""Tuning on a study whose arms have their best rates at known places."""

import csv

import pytest

from claimlab import cli
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.study import find
from claimlab.sweeps import tuning

GRID = "0.001,0.01,0.1,1.0"


@pytest.fixture
def tables():
    """The table of each run of a plan, made in this process."""

    def run(study, made, knob):
        plans = [made.values(i) for i in range(len(made.points))]
        return {p[knob]: Experiment(study, study.make(p), made.seeds).run().table for p in plans}

    return run


def tuned(study, tables, path, grid=GRID, seeds=5, **chosen):
    made = tuning.design(study, "rate", grid, seeds=seeds)
    one = tuning.scores(study, "rate", tables(study, made, "rate"), made.seeds, **chosen)
    tuning.record(one, {"torch": "2", "notebook": "x"}, path)
    return one


def edited(own_studies, old, new):
    path = own_studies / "planes" / "toy_plane.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return find("toy-plane")


def test_each_arm_gets_its_own_best_value_on_seeds_that_are_never_judged(plane, tables, tmp_path):
    one = tuned(plane, tables, tmp_path / "tuned.csv")
    assert one.seeds == (1000, 1001, 1002, 1003, 1004) and one.metric == "validation_score" and one.better == "higher"
    assert one.why == "the study's validation metric" and one.arms == ["ground", "plane"]  # the water has none
    assert (one.best("ground").value, one.best("plane").value) == (0.01, 0.1)
    with (tmp_path / "tuned.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 8 and " ".join(list(rows[0])[:10]) == "study arm knob value metric score seeds grid date versions"
    assert [(r["arm"], r["value"]) for r in rows if r["best"] == "True"] == [("ground", "0.01"), ("plane", "0.1")]
    assert rows[0]["versions"] == "torch=2" and float(rows[1]["score"]) == pytest.approx(1 + 0.001 * (1 + 2 + 0 + 1 + 2) / 5)


def test_arms_that_want_different_values_are_not_tuned_equally(plane, tables, tmp_path):
    path = tmp_path / "tuned.csv"
    assert tuning.tuned_equally(plane, path).answer is None and "claimlab tune toy-plane" in tuning.tuned_equally(plane, path).sentence
    tuned(plane, tables, path)
    found = tuning.tuned_equally(plane, path)
    assert found.answer is False and found.word == "no"
    assert "at the default 0.01, plane does worse than at 0.1 by 1 [1, 1], n = 5." in found.sentence and "ground does" not in found.sentence


def test_arms_that_are_all_at_their_best_are_tuned_equally(plane, own_studies, tables, tmp_path):
    study = edited(own_studies, "top = 0.1", "top = 0.01")
    tuned(study, tables, tmp_path / "tuned.csv")
    found = tuning.tuned_equally(study, tmp_path / "tuned.csv")
    assert found.answer is True and "rate over 0.001, 0.01, 0.1, 1.0 on the seeds 1000 to 1004 by validation_score" in found.sentence


def test_a_default_that_was_not_tried_or_moves_away_is_told(plane, own_studies, tables, tmp_path):
    path = tmp_path / "tuned.csv"
    tuned(edited(own_studies, "top = 0.1", "top = 0.01"), tables, path)
    assert tuning.tuned_equally(edited(own_studies, "knob(0.01,", "knob(1.0,"), path).answer is False  # no run is needed to see that
    elsewhere = tuning.tuned_equally(edited(own_studies, "knob(1.0,", "knob(0.5,"), path)
    assert elsewhere.answer is False and "0.5, which is not on the grid" in elsewhere.sentence


def test_a_difference_within_the_luck_of_the_seeds_does_not_count(plane, own_studies, tables, tmp_path):
    study = edited(own_studies, "0.001 * (seed % 3)", "3 * (seed * 7 % 5) * (self.p.rate == 1.0) + 0.001 * (seed % 3)")
    study = edited(own_studies, "knob(0.01,", "knob(0.1,")  # of the plane best but for a few lucky seeds at 1
    one = tuned(study, tables, tmp_path / "tuned.csv", grid="0.1,1.0")
    assert one.best("plane").value == 1.0
    told = tuning.tuned_equally(study, tmp_path / "tuned.csv").sentence
    assert "plane does" not in told


def test_a_divergence_is_never_the_best(plane, own_studies, tables, tmp_path):
    study = edited(own_studies, "0.001 * (seed % 3)", "0.001 * (seed % 3) + (float('nan') if self.p.rate > 0.05 and seed == 1003 else 0)")
    one = tuned(study, tables, tmp_path / "tuned.csv")
    assert one.best("plane").value == 0.01 and tuning.tuned_equally(study, tmp_path / "tuned.csv").answer is True


def test_without_a_validation_metric_the_claims_metric_decides(plane, own_studies, tables, tmp_path):
    one = tuned(edited(own_studies, "validation_score", "final_score"), tables, tmp_path / "a.csv")
    assert one.metric == "height" and "since no arm records a validation metric" in one.why
    one = tuned(plane, tables, tmp_path / "b.csv", metric="height", better="lower")
    assert (one.metric, one.better, one.why) == ("height", "lower", "as asked for")
    assert tuning.at_the_end(one, "plane")


def test_the_grid_around_a_default(plane):
    rate, x1, flag = (next(k for k in plane.knobs if k.name == n) for n in ("rate", "x1", "flag"))
    assert tuning.around(rate, 0.01).values == (0.001, 0.00316, 0.01, 0.0316, 0.1)
    assert tuning.around(rate, 1.0).values == (0.1, 0.316, 1.0)  # within its range
    assert 0.0 in tuning.around(x1, 0.0).values and len(tuning.around(x1, 0.0).values) == 5
    assert tuning.around(flag, False).values == (False, True)
    with pytest.raises(KnobError):
        tuning.design(plane, "rate", "0.1")


def test_the_command_writes_the_file_and_judges_nothing(plane, book, home, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLAIMLAB_ROOT", str(tmp_path / "project"))
    assert cli.main(["tune", "toy-plane", "--knob", "rate", "--grid", "0.01,0.1", "--jobs", "2", "-p", "x1=1"]) == 0
    said = capsys.readouterr().out
    assert "the study's validation metric; development seeds 1000 to 1004, never judged" in said
    assert "Tuned equally: no. rate: it was tuned at x1 = 1.0, and not at the study's defaults." in said
    assert len(tuning.read(tmp_path / "project" / "data" / "tuned.csv")) == 4
    for run in book.runs():
        assert run["seeds"] == [1000, 1001, 1002, 1003, 1004]
        assert [(v["verdict"], v["effect"], v["values"]) for v in book.verdicts(run["id"])] == [("undecided", None, [])] * 2
        assert "never judged" in book.verdicts(run["id"])[0]["reason"]
    assert cli.main(["tune", "toy-plane", "--knob", "rat"]) == 2 and "did you mean rate" in capsys.readouterr().err
