"""The page Sweeps in Streamlit's own test harness, with the runs of a sweep put into the ledger by hand."""

from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import claims
from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.sweeps import plan, sensitivity, space, tuning
from claimlab.sweeps.book import Book

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "toy_plane.py"


@pytest.fixture
def book(home, own_studies, monkeypatch, tmp_path):
    monkeypatch.setenv("CLAIMLAB_ROOT", str(tmp_path / "project"))
    st.cache_data.clear()
    st.cache_resource.clear()
    (own_studies / "planes").mkdir()
    (own_studies / "planes" / "toy_plane.py").write_text(FIXTURE.read_text())
    opened = Book()
    yield opened
    opened.close()


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update(query)
    at = at.switch_page("app_pages/sweeps.py").run()
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.title, at.header, at.markdown, at.caption, at.error, at.info, at.code)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def done(book, name, made, status="finished"):
    """Enter a sweep whose points have been run in this process."""
    study = made.study
    book.enter(name, made, {"sources": "x"})
    for point in book.points(name):
        table = Experiment(study, study.make(point["params"]), made.seeds).run().table
        run = book.start_run(study.slug, point["params"], seeds=made.seeds, branch=f"sweep {name}", status="running")
        book.attach(point["key"], run)
        book.log(run, table.drop(columns="study").itertuples(index=False))
        judged = [claims.judge(c, table).as_dict() for c in study.claims]
        book.record_verdicts(run, judged if made.judged else [])
        book.finish(run)
        book.set_status(run, status)
    book.drive(name, "elsewhere:1:a", "local")
    book.conclude(name, None, status)


def test_without_a_sweep_the_page_says_how_to_begin_one(book):
    assert "claimlab sweep" in words(page())


def test_a_sampled_sweep_says_in_what_share_of_which_space_the_claim_holds(book):
    study = find("toy-plane")
    done(book, "space", plan.make(study, (), [space.over(study, "x1"), space.over(study, "x2=-1..1")], sample=16))
    at = page(sweep="space", claim="tilts")
    shown = words(at)
    assert "16 of 16 settings finished" in shown and "x1 in [-3.14159, 3.14159]; x2 in [-1, 1]" in shown
    held = {m.label: m.value for m in at.metric}
    truth = sum(3 * p["params"]["x1"] + 2 * p["params"]["x2"] > 0 for p in book.points("space"))
    assert held["Holds in"] == f"{100 * truth / 16:.0f} %" and "–" in held["95 % interval"]
    most = max(3 * p["params"]["x1"] + 2 * p["params"]["x2"] for p in book.points("space"))
    assert at.dataframe[0].value["effect"].iloc[0] == pytest.approx(most, rel=1e-4)
    charts = at.get("plotly_chart")
    assert len(charts) >= 2  # parallel coordinates and a response curve
    assert [s.label for s in at.selectbox][:3] == ["Sweep", "Claim", "Knob"]


def test_an_analysis_is_explained_and_an_unfinished_one_says_what_is_missing(book):
    study = find("toy-plane")
    made = sensitivity.design(study, [space.over(study, "x1"), space.over(study, "x3")], "morris", size=4)
    book.enter("waiting", made, {"sources": "y"})
    assert "No setting has been judged yet" in words(page(sweep="waiting"))
    done(book, "moves", made)
    shown = words(page(sweep="moves", claim="tilts"))
    assert "x1 moves the claim most" in shown and "changes the effect by 18.8" in shown


def test_a_tuning_shows_each_arms_best_value_and_whether_that_is_equal(book):
    study = find("toy-plane")
    made = tuning.design(study, "rate", "0.01,0.1")
    done(book, "rates", made)
    tables = {p["params"]["rate"]: book.table(p["run"]) for p in book.points("rates")}
    tuning.record(tuning.scores(study, "rate", tables, made.seeds), {})
    at = page(sweep="rates")
    shown = words(at)
    assert "ground at 0.01, plane at 0.1" in shown and "Tuned equally: no." in shown and "never judged" in shown
    assert isinstance(at.dataframe[0].value, pd.DataFrame) and list(at.dataframe[0].value["best"]) == ["0.01", "0.1"]


def test_what_was_left_undone_is_told(book):
    study = find("toy-plane")
    made = plan.make(study, [space.grid(study, "x1=0,1")])
    done(book, "broken", made, status="failed")
    shown = words(page(sweep="broken"))
    assert "2 not finished: failed" in shown
    assert "goes on where it stopped" in shown
