"""The page Sweeps in Streamlit's own test harness, with the runs of a sweep put into the ledger by hand."""

from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import claims
from claimlab.experiment import Experiment
from claimlab.runner import provenance
from claimlab.study import find
from claimlab.sweeps import conduct, plan, sensitivity, space, tuning
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
    assert "goes on from here" in shown


# ---- started from the page


def test_a_sweep_is_started_from_the_page_as_its_command_would(book, until):
    at = page()
    at.selectbox(key="plan-study").select("toy-plane").run()
    at.multiselect(key="plan-knobs-toy-plane").set_value(["x1"]).run()
    at.selectbox(key="plan-size-sweep").select(8).run()
    at.number_input(key="plan-seeds").set_value(3).run()
    (command,) = [c.value for c in at.code if c.value.startswith("claimlab sweep toy-plane")]
    assert command == "claimlab sweep toy-plane --over x1 --sample 8 --profile smoke --seeds 3"
    made = plan.make(find("toy-plane"), drawn=[space.over(find("toy-plane"), "x1")], sample=8, seeds=3, profile="smoke")
    name = conduct.name_of(made)
    assert f"8 runs of toy-plane with 3 seeds each, as {name}" in words(at) and book.sweeps() == []
    at.button(key="plan-start").click().run()
    assert f"{name} starts" in words(at) or "settings finished" in words(at)
    until(lambda: [row["status"] for row in book.sweeps()] == ["finished"], 60)
    # the child made the same plan from its words, or it would have another name
    assert book.sweeps()[0]["name"] == name and [p["status"] for p in book.points(name)] == ["finished"] * 8
    at.run()
    assert "8 of 8 settings finished" in words(at)


def test_what_cannot_be_swept_is_said_before_anything_starts(book, monkeypatch):
    monkeypatch.setattr("panels.planning.MOST", 7)
    at = page()
    at.selectbox(key="plan-study").select("toy-plane").run()
    at.selectbox(key="plan-size-sweep").select(8).run()
    assert at.button(key="plan-start").disabled and "At most 7 runs" in words(at) and book.sweeps() == []


def test_a_sweep_that_does_not_come_up_says_why(book, until, monkeypatch, home):
    from panels import planning

    at = page()
    monkeypatch.setattr(planning.launch.sys, "executable", "/bin/false")
    at.selectbox(key="plan-study").select("toy-plane").run()
    at.button(key="plan-start").click().run()
    until(lambda: all(child.poll() is not None for child in planning.CHILDREN.values()))
    if not at.error:  # it had not ended yet when the page was drawn
        at.run()
    assert "it left no message" in words(at) and "did not start" in at.error[0].proto.title


def test_a_sweep_that_was_stopped_goes_on_from_the_page(book, until):
    study = find("toy-plane")
    made = plan.make(study, drawn=[space.over(study, "x1")], sample=4, seeds=3, profile="smoke")
    name = conduct.name_of(made)
    book.enter(name, made, provenance(study))
    book.drive(name, "elsewhere:1:a", "local")
    at = page(sweep=name)
    at.button(key="plan-stop").click().run()
    assert book.sweep(name)["status"] == "stopped"
    assert "claimlab sweep toy-plane --over x1 --sample 4 --profile smoke --seeds 3" in words(at)
    at.button(key="plan-on").click().run()
    until(lambda: book.sweep(name)["status"] == "finished", 60)
    assert {p["status"] for p in book.points(name)} == {"finished"}


def test_a_plan_that_the_page_cannot_tell_again_offers_no_button(book):
    study = find("toy-plane")
    made = plan.make(study, drawn=[space.over(study, "x1=0..1")], sample=4, seeds=3, profile="smoke")
    book.enter("mine", made, {"sources": "x"})
    book.drive("mine", "elsewhere:1:a", "local")
    book.conclude("mine", None, "stopped")
    at = page(sweep="mine")
    assert not [b for b in at.button if b.key == "plan-on"]
