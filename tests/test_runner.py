"""Running a study through a real kernel: status, numbers, files, and what is kept when something dies on the way."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from claimlab import cells, runner
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.study import StudyError, find

VALUES = {"steps": 12, "seeds": 5}


def write_notebook(study, *sources, parameters=True):
    head = [v4.new_code_cell("steps: int = 40", metadata={"tags": ["parameters"]})] if parameters else []
    body = [v4.new_markdown_cell("## The middle"), *(v4.new_code_cell(s) for s in sources)]
    path = study.path.with_suffix(".ipynb")
    path.write_text(cells.dumps(head + body), encoding="utf-8")
    return path


@pytest.fixture
def study(home, own_studies):
    return find("toy-blobs")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of the skeleton notebook through a kernel: (outcome, what progress was told, ledger)."""
    folder = tmp_path_factory.mktemp("lab")
    source = Path(__file__).parent / "fixtures" / "toy_blobs.py"
    (folder / "studies" / "blobs").mkdir(parents=True)
    (folder / "studies" / "blobs" / "toy_blobs.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAIMLAB_HOME", str(folder / "runs"))
        patch.setenv("CLAIMLAB_STUDIES", str(folder / "studies"))
        patch.delenv("CLAIMLAB_LEDGER", raising=False)
        study = find("toy-blobs")
        study.path.with_suffix(".ipynb").write_text(cells.template(study), encoding="utf-8")
        told = []
        outcome = runner.run("toy-blobs", VALUES, progress=lambda *what: told.append(what))
        ledger = Ledger()
        yield outcome, told, ledger
        ledger.close()


def test_a_run_through_the_notebook_is_finished_and_judged(done):
    outcome, _, ledger = done
    assert outcome.status == "finished", outcome.reason
    assert [v["claim"] for v in outcome.verdicts] == ["fast-wins", "beats-chance"]
    assert outcome.params["steps"] == 12 and outcome.params["gap"] == 2.0
    assert all(path.exists() for path in (outcome.notebook, outcome.report, outcome.table))
    row = ledger.run(outcome.run)
    assert row["status"] == "finished" and row["done"] == row["total"] > 0
    assert json.loads(json.dumps(outcome.as_dict()))["table"] == str(outcome.table)


def test_the_bare_experiment_gives_the_same_numbers(done, home, own_studies):
    bare = runner.run("toy-blobs", VALUES, kernel=False)
    assert bare.status == "finished" and bare.notebook is None and bare.report is None
    columns = ["arm", "seed", "step", "metric"]
    both = [pd.read_parquet(o.table).sort_values(columns).reset_index(drop=True) for o in (done[0], bare)]
    pd.testing.assert_frame_equal(*both, check_exact=True)


def test_the_ledger_knows_each_cell_and_progress_counts_steps(done):
    outcome, told, ledger = done
    events = ledger.events(outcome.run)
    node = nbformat.read(outcome.notebook, 4)
    code = [c for c in node.cells if c.cell_type == "code"]
    for kind in ("cell_start", "cell_end"):
        assert len([e for e in events if e["kind"] == kind]) == len(code)
    assert any(e["payload"].get("name", "").endswith("(Run)") for e in events)
    done_steps = [d for d, _, _ in told]
    assert done_steps == sorted(done_steps) and told[-1][0] == told[-1][1] == ledger.run(outcome.run)["total"]


def test_every_figure_of_the_page_is_drawn_once_and_nothing_comes_from_the_network(done):
    outcome, _, _ = done
    page = outcome.report.read_text(encoding="utf-8")
    shown = [
        [o for o in c.get("outputs", []) if "application/vnd.plotly.v1+json" in o.get("data", {})]
        for c in nbformat.read(outcome.notebook, 4).cells
    ]
    by_cell = [len(outputs) for outputs in shown if outputs]
    assert by_cell == [1, 1, 2]  # the live chart (updated in place), the study's figure, a picture for each verdict
    assert page.count("Plotly.newPlot(") == sum(by_cell)
    for outputs in shown:
        assert all(o["data"]["text/html"].count("Plotly.newPlot(") == 1 for o in outputs)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"'>]*(?:\.js|\.css|mjs|cdn)""", page)
    assert not re.search(r"import\(|@import|cdnjs|jsdelivr|unpkg", page)
    assert (outcome.report.parent / re.search(r'<script src="([^"]+)"', page)[1]).exists()
    assert len(page) < 400_000


def test_the_page_draws_its_figures_in_a_browser_without_network(done):
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("chromium is not installed: the page is not looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        context = browser.new_context(offline=True, color_scheme="dark")
        view, asked, wrong = context.new_page(), [], []
        view.on("request", lambda r: asked.append(r.url))
        view.on("pageerror", lambda e: wrong.append(str(e)))
        view.goto(done[0].report.as_uri())
        drawn = view.evaluate(
            "[...document.querySelectorAll('.plotly-graph-div')].map(f => f.querySelectorAll('.main-svg').length > 0)"
        )
        browser.close()
    assert drawn == [True] * 4 and not wrong
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def test_a_failing_cell_keeps_the_notebook_and_says_where(study):
    write_notebook(study, "reached = 6 * 7\nreached", "raise OverflowError('too much')", "print('never')")
    outcome = runner.run("toy-blobs", VALUES)
    assert outcome.status == "failed"
    assert outcome.reason == "cell 5 (The middle): OverflowError: too much"
    assert "42" in str(nbformat.read(outcome.notebook, 4).cells) and "never\n" not in str(outcome.notebook.read_text())
    page = outcome.report.read_text(encoding="utf-8")
    assert "OverflowError: too much" in page and "The notebook stopped here." in page
    with_ledger = Ledger()
    assert with_ledger.run(outcome.run)["status"] == "failed" and "too much" in with_ledger.run(outcome.run)["reason"]
    with_ledger.close()


def test_a_dead_kernel_is_a_failed_run_although_papermill_says_completed(study):
    write_notebook(
        study, "import os, signal\nos.write(2, b'a last word')\nos.kill(os.getpid(), signal.SIGKILL)", "print('never')"
    )
    outcome = runner.run("toy-blobs", VALUES)
    assert outcome.status == "failed" and "cell 4 (The middle): the kernel died" in outcome.reason
    states = [c.metadata.papermill.status for c in nbformat.read(outcome.notebook, 4).cells]
    assert states == ["completed", "completed", "completed", "failed", "pending"]
    assert "the kernel died" in outcome.report.read_text(encoding="utf-8")
    assert "a last word" in (outcome.notebook.parent / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_the_kernel_and_keeps_what_there_is(study, number):
    ready = study.path.parent / "ready"
    slow = f"import pathlib, time\nprint('begun')\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"
    write_notebook(study, slow, "print('never')")

    def strike():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=strike, daemon=True).start()
    outcome = runner.run("toy-blobs", VALUES)
    assert outcome.status == "stopped" and "cell 4" in outcome.reason and outcome.seconds < 50
    text = outcome.notebook.read_text(encoding="utf-8")
    assert "begun" in text and outcome.report.exists()
    assert signal.getsignal(number) is before


def test_a_notebook_that_never_runs_the_experiment_is_not_a_success(study):
    write_notebook(study, "1 + 1")
    outcome = runner.run("toy-blobs", VALUES)
    assert outcome.status == "failed" and "without running the experiment" in outcome.reason


def test_the_kernel_is_this_interpreter_and_knows_its_run(study, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/nowhere")
    names = "('CLAIMLAB_RUN', 'CLAIMLAB_HOME', 'CLAIMLAB_LEDGER')"
    write_notebook(study, f"import os, sys\nprint(sys.executable)\nprint([os.environ[n] for n in {names}])")
    outcome = runner.run("toy-blobs", VALUES)
    import sys

    said = nbformat.read(outcome.notebook, 4).cells[-1].outputs[0].text
    assert sys.executable in said and outcome.run in said and str(outcome.notebook.parent.parent) in said


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"gapp": 1}, "did you mean gap"),
        ({"gap": 99}, r"in \[0, 10\]"),
        ({"steps": "1.5"}, "whole number"),
        ({"rate": "nan"}, "rate"),
    ],
)
def test_a_bad_knob_is_refused_before_anything_starts(study, home, values, text):
    write_notebook(study, "1")
    with pytest.raises(KnobError, match=text):
        runner.run("toy-blobs", values)
    assert not home.exists()


def test_notebooks_that_would_ignore_a_knob_are_refused_before_anything_starts(study, home):
    with pytest.raises(StudyError, match="has no notebook"):
        runner.run("toy-blobs")
    path = write_notebook(study, "1", parameters=False)
    with pytest.raises(StudyError, match="no parameters cell"):
        runner.run("toy-blobs")
    path.write_text("{not json", encoding="utf-8")
    with pytest.raises(StudyError, match="cannot be read"):
        runner.run("toy-blobs")
    path.write_text(cells.template(study).replace("gap=gap, ", ""), encoding="utf-8")
    with pytest.raises(StudyError, match="knobs cell"):
        runner.run("toy-blobs")
    with pytest.raises(StudyError, match="did you mean toy-blobs"):
        runner.run("toy-blob")
    assert not home.exists()


def test_the_control_sets_the_knobs_of_the_control_on_top(study):
    outcome = runner.run("toy-blobs", {**VALUES, "gap": 5.0}, control=True, kernel=False)
    assert outcome.params["gap"] == 0.0 and outcome.params["steps"] == 12
    ledger = Ledger()
    assert ledger.run(outcome.run)["control"]
    ledger.close()


def test_a_run_stopped_from_outside_keeps_its_points(study):
    ledger = Ledger()
    sent = []

    def stop_once(done, total, text):
        if done > 20 and not sent:
            sent.append(ledger.command(ledger.runs()[0]["id"], "stop", {}))

    outcome = runner.run("toy-blobs", {"steps": 20000, "seeds": 2}, kernel=False, progress=stop_once)
    assert outcome.status == "stopped" and sent and not outcome.verdicts
    assert len(pd.read_parquet(outcome.table)) > 0 and ledger.run(outcome.run)["status"] == "stopped"
    ledger.close()


def test_what_a_result_depends_on_follows_the_imports(study):
    before = runner.provenance(study)
    study.path.write_text(study.path.read_text(encoding="utf-8") + "\n# a remark\n", encoding="utf-8")
    after = runner.provenance(find("toy-blobs"))
    assert before["sources"] != after["sources"]
    assert {k for k in before if before[k] != after[k]} == {"sources"}
