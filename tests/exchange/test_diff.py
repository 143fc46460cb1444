"""What differs between two runs or reports, against differences that were put there by hand."""

import json
import math
import shutil

import pandas as pd
import pytest

from claimlab import cli
from claimlab.exchange.difference import parted

VERDICT = {"claim": "better", "verdict": "supported", "effect": 0.25, "low": 0.1, "high": 0.4, "n": 2, "sentence": "It is."}
VERSIONS = {"torch": "2.13", "notebook": "n1", "sources": {"toy.py": "s1", "claims.py": "c1"}, "data": {}}


def made(ledger, change=(), params=None, versions=VERSIONS, verdict=VERDICT, study="toy"):
    """A closed run of one arm, two seeds and two metrics; `change` alters points by (seed, step, metric)."""
    run = ledger.start_run(study, params or {"alpha": 1.0}, seeds=[0, 1], versions=versions)
    points = {(s, t, m): t / 10 + s for s in (0, 1) for t in (0, 10, 20) for m in ("loss", "accuracy")}
    points[0, 20, "loss"] = math.nan
    ledger.log(run, [("new", s, t, m, v) for (s, t, m), v in {**points, **dict(change)}.items()])
    ledger.record_verdicts(run, [verdict])
    ledger.finish(run)
    ledger.set_status(run, "finished")
    return run


def compared(capsys, a, b):
    assert cli.main(["diff", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cli.main(["diff", str(a), str(b)]) == 0
    return found, capsys.readouterr().out


def test_equal_runs_do_not_differ(ledger, capsys):
    found, text = compared(capsys, made(ledger), made(ledger))
    assert found["studies"] == {} and text.strip() == "no difference"


def test_the_first_step_at_which_numbers_part_is_found_for_each_curve(ledger, capsys):
    change = {(1, 10, "loss"): 9.0, (1, 20, "loss"): 8.0, (0, 20, "accuracy"): math.nextafter(2.0, 3.0)}
    found, text = compared(capsys, made(ledger), made(ledger, change.items()))
    assert found["studies"]["toy"]["numbers"]["first"] == [
        {"arm": "new", "seed": 1, "metric": "loss", "step": 10, "a": 2.0, "b": 9.0},
        {"arm": "new", "seed": 0, "metric": "accuracy", "step": 20, "a": 2.0, "b": math.nextafter(2.0, 3.0)},
    ]
    assert "part first at step 10; 2 curves differ" in text and "new, seed 1, loss: step 10: 2 -> 9" in text


def test_a_number_that_is_nan_in_one_run_alone_differs(ledger, capsys):
    found, _ = compared(capsys, made(ledger), made(ledger, [((1, 20, "loss"), math.nan)]))
    (first,) = found["studies"]["toy"]["numbers"]["first"]
    assert (first["step"], first["a"], first["b"]) == (20, 3.0, None)


def test_curves_of_one_run_and_longer_ones_are_named():
    def table(rows):
        return pd.DataFrame([("s", *row) for row in rows], columns=["study", "arm", "seed", "step", "metric", "value"])

    one = table([("a", 0, 0, "m", 1.0), ("a", 0, 5, "m", 2.0), ("b", 0, 0, "m", 1.0)])
    other = table([("a", 0, 0, "m", 1.0), ("a", 1, 0, "m", 1.0)])
    assert parted(one, other) == {"first": [], "only_a": [["b", 0, "m"]], "only_b": [["a", 1, "m"]], "longer": [["a", 0, "m", 5, 0]]}


def test_of_a_step_written_twice_the_later_value_counts():
    def table(*values):
        return pd.DataFrame([("s", "a", 0, 0, "m", v) for v in values], columns=["study", "arm", "seed", "step", "metric", "value"])

    assert parted(table(1.0, 2.0), table(2.0)) == {}


def test_knobs_source_versions_and_verdicts_are_told(ledger, capsys):
    versions = {**VERSIONS, "torch": "2.14", "sources": {"toy.py": "s1", "claims.py": "c2"}}
    verdict = {**VERDICT, "verdict": "undecided", "low": -0.1}
    found, text = compared(capsys, made(ledger), made(ledger, (), {"alpha": 2.0}, versions, verdict))
    facts = found["studies"]["toy"]
    assert facts["settings"] == {"alpha": [1.0, 2.0]} and facts["versions"] == {"torch": ["2.13", "2.14"]}
    assert list(facts["source"]) == ["claims.py"] and facts["numbers"] == {}
    assert "better: supported (+0.25 [+0.1, +0.4], n = 2) -> undecided (+0.25 [-0.1, +0.4], n = 2)" in text
    assert "alpha 1.0 -> 2.0" in text and "source: claims.py" in text


@pytest.fixture
def report(ledger, own_studies, tmp_path):
    """The folder of a report that `claimlab report` wrote about the toy study."""
    from claimlab.reports import document
    from claimlab.reports.verdicts import as_csv

    run = made(ledger)
    folder = tmp_path / "one"
    folder.mkdir()
    line = {**VERDICT, "study": "toy", "kind": "paired", "margin": 0.1, "control": None, "says_nothing": False}
    (folder / "verdicts.csv").write_text(as_csv([line], "default"))
    study = {"study": "toy", "run": run, "params": {"alpha": 1.0}, "versions": VERSIONS}
    (folder / document.NAME).write_text(json.dumps({"profile": "default", "studies": [study], "verdicts": [line]}))
    return folder


@pytest.mark.parametrize("kept", ["report.json", "verdicts.csv"])
def test_reports_are_compared_by_what_they_hold(ledger, report, tmp_path, capsys, kept):
    other = tmp_path / "two"
    shutil.copytree(report, other)
    for folder in (report, other):
        for file in folder.iterdir():
            if file.name != kept:
                file.unlink()
    assert compared(capsys, report, other)[0]["studies"] == {}
    text = (other / kept).read_text()
    (other / kept).write_text(text.replace("supported", "refuted"))
    found, said = compared(capsys, report, other)
    was, now = found["studies"]["toy"]["verdicts"]["better"]
    assert (was["verdict"], now["verdict"], was["effect"]) == ("supported", "refuted", 0.25) and "-> refuted" in said


def test_the_numbers_behind_two_reports_are_compared_where_the_runs_are_there(ledger, report, tmp_path, capsys):
    other = tmp_path / "two"
    shutil.copytree(report, other)
    said = json.loads((other / "report.json").read_text())
    for run, expected in ((made(ledger, [((0, 0, "loss"), 7.0)]), {"first"}), ("gone", {"unknown"})):
        said["studies"][0]["run"] = run
        (other / "report.json").write_text(json.dumps(said))
        found, _ = compared(capsys, report, other)
        numbers = found["studies"]["toy"]["numbers"]
        assert {k for k, v in numbers.items() if v} == expected


def test_what_cannot_be_compared_is_refused(ledger, report, tmp_path, capsys):
    empty, wrong, table = (tmp_path / name for name in ("empty", "wrong", "table"))
    for folder in (empty, wrong, table):
        folder.mkdir()
    (wrong / "report.json").write_text("[]")
    (table / "verdicts.csv").write_text("a,b\n1,2\n")
    run, elsewhere = made(ledger), made(ledger, study="other")
    for a, b, said in (
        (run, "no-such-run", "there is no run"),
        (run, empty, "neither report.json nor verdicts.csv"),
        (run, elsewhere, "no study to compare"),
        (wrong, report, "is no report"),
        (table, report, "are needed"),
    ):
        assert cli.main(["diff", str(a), str(b)]) == 2
        assert said in capsys.readouterr().err
