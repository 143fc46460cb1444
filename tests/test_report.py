"""The report: what stands in the index and on the pages, which runs are reused, and what comes first when something failed."""

import csv
import os
import re
import signal
import threading
import time

import nbformat
import pytest

from claimlab import cells, job, report, runner
from claimlab.ledger import Ledger
from claimlab.study import StudyError, find

LIGHT = """
import torch
from dataclasses import dataclass
from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.study import Control, Paper
from claimlab.training import Tick

PAPER = Paper(title="Light <study>", authors="Test", year=2024, url="https://example.org", theme="stages", system="x",
              question="Is it so?")

@dataclass(frozen=True)
class Params:
    shift: float = knob(1.0, "what the arm adds", low=-5.0, high=5.0)
    steps: int = knob(3, "steps", low=1, high=10)
    seeds: int = knob(6, "repetitions", low=2, high=20)
    CONTROL = Control(set=dict(shift=0.0), vanishes=("adds", "is-positive"), why="nothing is added")

CLAIMS = (
    Claim("adds", "The arm adds.", kind="paired", metric="value", arm="new", baseline="old", margin=0.2, better="higher"),
    Claim("is-positive", "The arm is positive.", kind="bound", metric="value", arm="new", margin=0.0, better="higher"),
    Claim("is-large", "The arm is large.", kind="bound", metric="value", arm="new", margin=0.1, better="higher"),
)
HONESTY = "It hides nothing."

class Old:
    shift = False
    def __init__(self, params, seeds):
        self.p, self.seeds = params, seeds
    def ticks(self):
        for step in range(self.p.steps):
            yield Tick(step, [{"value": 10 + 0.01 * s + self.shift * self.p.shift} for s in self.seeds])

class New(Old):
    shift = True

ARMS = {"old": Old, "new": New}
def figures(lab):
    return {}
"""


@pytest.fixture
def study(home, own_studies):
    (own_studies / "blobs" / "light.py").write_text(LIGHT, encoding="utf-8")
    found = find("light")
    found.path.with_suffix(".ipynb").write_text(cells.template(found), encoding="utf-8")
    return found


@pytest.fixture
def in_process(monkeypatch):
    """Runs without a kernel that leave a notebook behind, so that the report's own logic is tested quickly."""
    real, begun = runner.run, []

    def run(slug, values=None, **how):
        begun.append((slug, how.get("control", False)))
        outcome = real(slug, values, **{**how, "kernel": False})
        book = how["ledger"]
        if not how.get("control"):
            copy = outcome.table.parent / "notebook.ipynb"
            copy.write_text(find(slug).notebook.read_text(encoding="utf-8"), encoding="utf-8")
            book.artifact(outcome.run, "notebook", str(copy))
            outcome = runner.Outcome(**{**vars(outcome), "notebook": copy})
        return outcome

    monkeypatch.setattr(runner, "run", run)
    return begun


def lines(path):
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_verdicts_stand_beside_those_of_the_control(study, in_process, tmp_path):
    index = report.report(["light"], out=tmp_path / "out")
    found = {row["claim"]: row for row in lines(tmp_path / "out" / "verdicts.csv")}
    assert found["adds"]["verdict"] == "supported" and float(found["adds"]["effect"]) == pytest.approx(1.0)
    assert found["adds"]["control"] == "refuted" and found["adds"]["says_nothing"] == "no"
    assert found["is-positive"]["control"] == "supported" and found["is-positive"]["says_nothing"] == "yes"
    assert found["is-large"]["control"] == "" and found["is-large"]["says_nothing"] == "no"  # it need not vanish
    page = index.read_text(encoding="utf-8")
    assert page.count("says nothing</span>") == 1 and "need not vanish there" in page and "1 supported claims say nothing" in page
    assert "Light &lt;study&gt;" in page and "<study>" not in page
    assert "All studies" in (tmp_path / "out" / "light.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "plotly.min.js").stat().st_size > 1_000_000
    assert all((tmp_path / "out" / link).exists() for link in re.findall(r'href="([^"#]+)"', page))
    ledger = Ledger()
    main = next(r for r in ledger.runs() if not r["control"])
    assert sorted(v["control"] for v in ledger.verdicts(main["id"])) == [False] * 3 + [True] * 3
    ledger.close()


def test_fresh_runs_are_reused_and_stale_ones_run_again(study, in_process, tmp_path):
    def again(**how):
        in_process.clear()
        report.report(["light"], out=tmp_path / "out", **how)
        return list(in_process)

    both = [("light", False), ("light", True)]
    assert again() == both
    first = (tmp_path / "out" / "verdicts.csv").read_bytes()
    assert again() == [] and (tmp_path / "out" / "verdicts.csv").read_bytes() == first
    assert "nothing has changed" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert again(force=True) == both
    assert again(profile="smoke") == both  # the same knobs, but another profile
    notebook = study.path.with_suffix(".ipynb")
    notebook.write_text(notebook.read_text(encoding="utf-8").replace("four of them", "4 of them"), encoding="utf-8")
    assert again() == both[:1]  # the control does not depend on the notebook
    study.path.write_text(LIGHT + "\n# a remark\n", encoding="utf-8")
    assert again() == both


def test_steered_runs_and_lost_notebooks_are_not_reused(study, in_process, tmp_path):
    report.report(["light"], out=tmp_path / "out", control=False)
    ledger = Ledger()
    (row,) = ledger.runs()
    p = study.make()
    assert report.fresh(ledger, study, p, "default").run == row["id"]
    assert report.fresh(ledger, study, study.make({"shift": 2.0}), "default") is None
    ledger.event(row["id"], "set", step=1)
    assert report.fresh(ledger, study, p, "default") is None
    ledger.close()


def test_a_changed_verdict_is_told(study, in_process, tmp_path):
    report.report(["light"], out=tmp_path / "out")
    kept = tmp_path / "out" / "verdicts.csv"
    kept.write_text(kept.read_text().replace("light,adds,paired,supported", "light,adds,paired,undecided"))
    page = report.report(["light"], out=tmp_path / "out").read_text(encoding="utf-8")
    assert "light, adds: undecided before, supported now" in page and page.count("before,") == 1


def test_failures_stand_first_with_their_reason(study, in_process, own_studies, tmp_path):
    (own_studies / "blobs" / "broken.py").write_text('raise RuntimeError("half written")\n', encoding="utf-8")
    bad = LIGHT.replace("yield Tick(", "raise ZeroDivisionError('no data <here>')\n            yield Tick(")
    (own_studies / "blobs" / "breaks.py").write_text(bad, encoding="utf-8")
    found = find("breaks")
    found.path.with_suffix(".ipynb").write_text(cells.template(found), encoding="utf-8")
    page = report.report(["light", "broken", "breaks"], out=tmp_path / "out").read_text(encoding="utf-8")
    failed = page.index("What did not finish")
    assert failed < page.index("broken.py does not declare") < page.index("<h2>Verdicts")
    assert failed < page.index("no data &lt;here&gt;") < page.index("<h2>Verdicts")
    assert {row["study"] for row in lines(tmp_path / "out" / "verdicts.csv")} == {"light"}
    assert [study for study, _ in in_process] == ["light", "light", "breaks"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_ends_the_report_with_what_there_is(study, own_studies, tmp_path, jobs):
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
    page = report.report(["light", "late"], out=tmp_path / "out", jobs=jobs).read_text(encoding="utf-8")
    ledger = Ledger()
    assert [row["status"] for row in ledger.runs()] == ["stopped"] * jobs
    ledger.close()
    assert page.count('class="box stopped"') == 2 and page.count("was interrupted before it ran") == 2 - jobs


def test_studies_side_by_side_come_out_as_one_after_the_other(study, own_studies, tmp_path):
    (own_studies / "blobs" / "late.py").write_text(LIGHT, encoding="utf-8")
    found = find("late")
    found.path.with_suffix(".ipynb").write_text(cells.template(found), encoding="utf-8")
    told, pages = [], {}
    for jobs in (1, 2):
        report.report(["light", "late"], out=tmp_path / str(jobs), jobs=jobs, force=True, told=told.append)
        pages[jobs] = (tmp_path / str(jobs) / "verdicts.csv").read_bytes()
    assert pages[1] == pages[2] and pages[1].count(b"light") == 3
    assert sorted((one.study, one.status) for one in told) == [("late", "finished")] * 2 + [("light", "finished")] * 2


def test_an_unknown_study_is_refused_before_anything_starts(study, in_process, tmp_path):
    with pytest.raises(StudyError, match="did you mean light"):
        report.report(["light", "lihgt"], out=tmp_path / "out")
    assert not in_process and not (tmp_path / "out").exists()


def test_a_report_through_the_kernel_has_a_page_with_figures(study, tmp_path):
    told = []
    report.report(["light"], out=tmp_path / "out", single_file=True, progress=lambda *what: told.append(what))
    page = (tmp_path / "out" / "light.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") :]
    assert body.count("Plotly.newPlot(") == 4  # the live chart, one for each verdict
    assert "<script src" not in page and len(page) > 4_000_000 and not (tmp_path / "out" / "plotly.min.js").exists()
    assert any(text.startswith("light (control)") for _, _, text in told)
    assert "negative control with shift = 0.0: nothing is added" in page
