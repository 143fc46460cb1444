"""The report: what stands in the index and on the pages, which runs are reused, and what comes first when something failed."""

import csv
import json
import os
import re
import signal
import threading
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import nbformat
import pytest

from claimlab import cells, job
from claimlab.ledger import Ledger
from claimlab.reports import making
from claimlab.reports import writing as reports_writing
from claimlab.study import StudyError

LIGHT = (Path(__file__).parents[1] / "fixtures" / "light.py").read_text(encoding="utf-8")
SCHEMA = json.loads((files("claimlab") / "templates" / "report.schema.json").read_text(encoding="utf-8"))


def lines(path):
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def index(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_verdicts_stand_beside_those_of_the_control(study, in_process, out):
    making.report(["light"], out=out)
    found = {row["claim"]: row for row in lines(out / "verdicts.csv")}
    assert found["adds"]["verdict"] == "supported" and float(found["adds"]["effect"]) == pytest.approx(1.0)
    assert found["adds"]["control"] == "refuted" and found["adds"]["says_nothing"] == "no"
    assert found["is-positive"]["control"] == "supported" and found["is-positive"]["says_nothing"] == "yes"
    assert found["is-large"]["control"] == "" and found["is-large"]["says_nothing"] == "no"  # it need not vanish
    page = index(out)
    assert page.count("says nothing</span>") == 1 and "need not vanish there" in page and "1 supported claims say nothing" in page
    assert "Light &lt;study&gt;" in page and "<study>" not in page
    assert "All studies" in (out / "light.html").read_text(encoding="utf-8")
    assert (out / "plotly.min.js").stat().st_size > 1_000_000
    assert all((out / link).exists() for link in re.findall(r'href="([^"#]+)"', page))
    ledger = Ledger()
    main = next(r for r in ledger.runs() if not r["control"])
    assert sorted(v["control"] for v in ledger.verdicts(main["id"])) == [False] * 3 + [True] * 3
    ledger.close()


def test_the_document_keeps_to_its_schema_and_the_folder_holds_nothing_else(study, in_process, out, own_studies):
    (own_studies / "blobs" / "broken.py").write_text('raise RuntimeError("half written")\n', encoding="utf-8")
    found = making.report(["light", "broken"], out=out)
    kept = json.loads((out / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(kept, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert kept == json.loads(json.dumps(found)) and kept["counts"]["supported"] == 3 and kept["counts"]["failures"] == 1
    assert json.loads((out / "history" / f"{kept['id']}.json").read_text(encoding="utf-8")) == kept
    names = {p.name for p in out.iterdir()} - {".lock"}
    assert names == {"index.html", "light.html", "plotly.min.js", "verdicts.csv", "report.json", "summary.md", "history"}
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "3 supported, 0 refuted, 0 undecided" in summary and "**broken**: failed" in summary and "✔ adds" in summary


def test_fresh_runs_are_reused_and_stale_ones_run_again_and_say_why(study, in_process, out):
    def again(**how):
        in_process.clear()
        found = making.report(["light"], out=out, **how)
        return sorted(in_process), [one["kind"] for one in found["studies"][0]["why"]]

    both = [("light", False), ("light", True)]
    assert again() == (both, ["missing"])
    first = (out / "verdicts.csv").read_bytes()
    assert again() == ([], []) and (out / "verdicts.csv").read_bytes() == first
    assert "nothing has changed" in index(out)
    assert again(force=True) == (both, ["forced"])
    assert again(profile="smoke") == (both, ["missing"])  # the same knobs, but another profile
    notebook = study.path.with_suffix(".ipynb")
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("four of them", "4 of them"), encoding="utf-8")
    assert again() == (both[:1], ["notebook"])  # the control does not depend on the notebook
    study.path.write_text(LIGHT + "\n# a remark\n", encoding="utf-8")
    assert again() == (both, ["source"])
    assert "<strong>source</strong>: light.py" in index(out)


def test_a_changed_verdict_is_told_with_its_cause_and_the_trend_goes_on(study, in_process, write_study, out):
    making.report(["light"], out=out)
    first = making.report(["light"], out=out)
    assert first["changes"] == [] and first["verdicts"][0]["trend"] == []  # the same run again is no trend
    write_study("light", LIGHT.replace('shift: float = knob(1.0, "what', 'shift: float = knob(0.01, "what'))
    second = making.report(["light"], out=out)
    (change,) = second["changes"]
    assert (change["claim"], change["was"], change["now"]) == ("adds", "supported", "refuted")
    assert {one["kind"] for one in change["why"]} == {"knobs", "source", "notebook"}
    assert any(one["text"] == "shift 1.0 → 0.01" for one in change["why"])
    row = next(v for v in second["verdicts"] if v["claim"] == "adds")
    assert [(t["verdict"], round(t["effect"], 3)) for t in row["trend"]] == [("supported", 1.0)]
    page = index(out)
    assert "shift 1.0 → 0.01" in page and page.count('class="trail"') == 3 and "What changed since" in page
    assert len(list((out / "history").iterdir())) == 3
    third = making.report(["light"], out=out)
    assert third["changes"] == [] and "No verdict has changed" in index(out)


def test_failures_stand_first_with_their_reason_and_stop_no_other(study, in_process, own_studies, write_study, out):
    (own_studies / "blobs" / "broken.py").write_text('raise RuntimeError("half written")\n', encoding="utf-8")
    write_study("breaks", LIGHT.replace("yield Tick(", "raise ZeroDivisionError('no data <here>')\n            yield Tick("))
    making.report(["breaks", "broken", "light"], out=out, jobs=1)
    page = index(out)
    failed = page.index("What did not finish")
    assert failed < page.index("the module raises on import") < page.index("<h2>Verdicts")
    assert failed < page.index("no data &lt;here&gt;") < page.index("<h2>Verdicts")
    assert {row["study"] for row in lines(out / "verdicts.csv")} == {"light"}
    assert sorted(in_process) == [("breaks", False), ("light", False), ("light", True)]  # no control of what failed


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_ends_the_report_with_what_there_is(study, own_studies, out, jobs):
    parameters = cells.generated(study)["parameters"]
    for name in ("light", "late"):
        (own_studies / "blobs" / f"{name}.py").write_text(LIGHT, encoding="utf-8")
        slow = nbformat.v4.new_code_cell("import time\ntime.sleep(60)")
        head = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        (own_studies / "blobs" / f"{name}.ipynb").write_text(cells.dumps([head, slow]), encoding="utf-8")

    def strike():
        while sum(1 for one in job.ACTIVE if (one.cell or 0) >= 2) < jobs:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=strike, daemon=True).start()
    found = making.report(["light", "late"], out=out, jobs=jobs)
    ledger = Ledger()
    assert [row["status"] for row in ledger.runs()] == ["stopped"] * jobs
    ledger.close()
    assert found["interrupted"] and [one["status"] for one in found["studies"]] == ["stopped"] * 2
    page = index(out)
    assert page.count('class="box stopped"') == 4 and page.count("was interrupted before it ran") == 4 - jobs  # controls too
    assert "interrupted: the same command goes on" in page and (out / making.NOTE).exists()


def test_an_interrupted_report_leaves_a_whole_one_as_it_was(study, in_process, out, monkeypatch):
    making.report(["light"], out=out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(making.Hands, "run", lambda hands, entries: hands.over.set())
        assert making.report(["light"], out=out, force=True)["interrupted"]
    assert {name: (out / name).read_bytes() for name in before} == before and (out / making.NOTE).exists()
    assert not making.report(["light"], out=out, force=True)["interrupted"] and not (out / making.NOTE).exists()


def test_studies_side_by_side_come_out_as_one_after_the_other(study, write_study, out):
    write_study("late")
    pages = {}
    for jobs in (1, 2):
        making.report(["light", "late"], out=out / str(jobs), jobs=jobs, force=True, control=False)
        pages[jobs] = (out / str(jobs) / "verdicts.csv").read_bytes()
    assert pages[1] == pages[2] and pages[1].count(b"light") == 3
    ledger = Ledger()
    measured = ledger.latest("resources", [row["id"] for row in ledger.runs()])
    assert len(measured) == 4 and all(one["bytes"] > 50 << 20 for one in measured.values())  # an interpreter with torch
    ledger.close()


def test_an_unknown_study_is_refused_before_anything_starts(study, in_process, out):
    with pytest.raises(StudyError, match="did you mean light"):
        making.report(["light", "lihgt"], out=out)
    assert not in_process and not out.exists()


def test_one_report_at_a_time_writes_into_a_folder(study, in_process, out):
    out.mkdir()
    with making._alone(out):
        with pytest.raises(StudyError, match="another report is being written there"):
            making.report(["light"], out=out)
    assert not in_process


def test_a_report_that_dies_while_it_is_laid_down_is_the_old_one_or_the_new_one(study, in_process, out, monkeypatch):
    making.report(["light"], out=out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    class Death(BaseException):
        pass

    def dies(*_):
        raise Death

    with monkeypatch.context() as patched:  # before the list of moves is there: the old one stays
        patched.setattr(reports_writing, "index", dies)
        with pytest.raises(Death):
            making.report(["light"], out=out, force=True)
    assert {n: (out / n).read_bytes() for n in before} == before
    real, left = os.replace, [2]

    def replace(*how):  # two files have been moved, then nothing more
        left[0] -= 1
        return real(*how) if left[0] >= 0 else dies()

    with monkeypatch.context() as patched:
        patched.setattr(reports_writing.os, "replace", replace)
        with pytest.raises(Death):
            making.report(["light"], out=out, force=True)
    assert (out / "index.html").read_bytes() == before["index.html"]
    reports_writing.settle(out)
    kept = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert kept["studies"][0]["run"] in index(out) and kept["studies"][0]["run"] in (out / "light.html").read_text(encoding="utf-8")
    assert not (out / reports_writing.STAGE).exists() and kept["id"] == sorted(p.stem for p in (out / "history").iterdir())[-1]


def test_pages_of_studies_that_are_no_longer_in_the_report_go(study, write_study, in_process, out):
    write_study("late")
    making.report(["light", "late"], out=out, control=False)
    (out / "notes.html").write_text("somebody's own", encoding="utf-8")
    making.report(["light"], out=out, control=False)
    assert not (out / "late.html").exists() and (out / "light.html").exists() and (out / "notes.html").exists()


def test_a_report_through_the_kernel_has_a_page_with_figures(study, out):
    states = []
    making.report(["light"], out=out, single_file=True, show=lambda s: states.append((s.share, s.over, len(s.items), s.going)))
    page = (out / "light.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert body.count("Plotly.newPlot(") == 4  # the live chart, one for each verdict
    assert "<script src" not in page and len(page) > 4_000_000 and not (out / "plotly.min.js").exists()
    assert "negative control with shift = 0.0: nothing is added" in page
    shares = [share for share, *_ in states]
    assert states[0][1:3] == (0, 2) and states[-1][:3] == (1.0, 2, 2) and min(shares) >= 0
    assert any(one.control for *_, going in states for one in going)
