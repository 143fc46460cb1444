"""Watching a network and trying an input of one's own: the picture of now, of a checkpoint, and what a file may hold."""

import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from panels import glance, looker, trial
from PIL import Image
from streamlit.testing.v1 import AppTest

from claimlab import live
from claimlab.ledger import Ledger
from claimlab.study import find

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
SLUG, VIEW = "toy-blobs", "line between the blobs"


@pytest.fixture
def book(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    opened = Ledger()
    yield opened
    st.cache_resource.clear()  # ends the processes that hold networks
    opened.close()


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=90).run()
    at.query_params.update(query)
    at = at.switch_page("app_pages/study.py").run()
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    return "\n".join(str(e.value) for kind in (at.markdown, at.caption, at.warning, at.info) for e in kind).replace("\\", "")


def pictures(at: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def going(book):
    run = book.start_run(SLUG, dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5), seeds=range(5))
    book.set_status(run, "running")
    book.heartbeat(run, 40, 160)
    book.log(run, [(arm, seed, step, "accuracy", 0.5) for arm in ("slow", "fast") for seed in range(5) for step in (0, 10)])
    book.flush()
    return run


@pytest.fixture
def done(book):
    study = find(SLUG)
    assert study.module
    values = dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=2)
    run = book.start_run(SLUG, values, seeds=range(2))
    lab = live.execute(study, study.make(values), book, run)
    book.finish(run)
    book.set_status(run, "finished")
    return run, lab


def test_a_page_asks_for_the_picture_and_shows_it_when_the_run_has_drawn_it(book):
    run = going(book)
    at = page(study=SLUG, run=run)
    (wanted,) = book.watched(run)
    assert (wanted["view"], wanted["arm"], wanted["seed"]) == (VIEW, "fast", 0)
    assert "between its next two steps" in words(at)
    before = len(pictures(at))
    figure = find(SLUG).module.line(find(SLUG).module.Slow(find(SLUG).make()).init(), find(SLUG).make())
    book.show(wanted["id"], 30, figure.to_json())
    book.heartbeat(run, 60, 160)
    at.run()
    assert len(pictures(at)) == before + 1 and "fast, seed 0, step 30" in words(at)


def test_a_view_that_fails_says_why_and_nobody_asks_when_it_is_switched_off(book):
    run = going(book)
    at = page(study=SLUG, run=run)
    book.show(book.watched(run)[0]["id"], 30, None, "ValueError: no such thing")
    at.run()
    assert "Nothing to show: ValueError: no such thing" in words(at)
    at.toggle(key=f"{SLUG}-watch-True").set_value(False).run()
    with sqlite3.connect(book.path) as raw:
        raw.execute("UPDATE view SET until = 0")  # time goes by
    at.run()
    assert book.watched(run) == []
    assert "Live view" not in [box.label for box in at.selectbox]


def test_the_networks_of_a_finished_run_are_drawn_from_its_checkpoint_on_request(book, done):
    run, lab = done
    at = page(study=SLUG, run=run)
    assert "Live view" not in [box.label for box in at.selectbox]  # loading them takes seconds
    at.toggle(key=f"{SLUG}-watch-False").set_value(True).run()
    assert [e.value for e in at.exception] == []
    net = lab.arms["fast"].members[0]
    across = (net.weight[1] - net.weight[0]).detach()
    drawn = [p for p in pictures(at) if len(p["data"]) == 1 and p["data"][0].get("type") == "scatter" and len(p["data"][0]["x"]) == 2]
    assert drawn and [drawn[0]["data"][0][axis][1] for axis in "xy"] == pytest.approx(across.tolist())


def test_the_trained_members_of_each_arm_answer_and_their_disagreement_is_told(book, done):
    run, lab = done
    answer = looker.ask(run, {"trial": "a point", "value": [[2.0, 2.0]]})["answers"]
    assert set(answer) == {"slow", "fast"} and len(answer["fast"]["right"]) == 2
    figure = trial.picture(find(SLUG), answer)
    bars = {bar.name: dict(zip(bar.x, bar.y, strict=True)) for bar in figure.data if bar.type == "bar"}
    assert bars["fast"]["right"] == pytest.approx(np.mean(answer["fast"]["right"]))
    split = {"a": {"x": [0.9, 0.2, 0.1], "y": [0.1, 0.8, 0.9]}, "b": {"x": [0.6, 0.7, 0.8], "y": [0.4, 0.3, 0.2]}}
    assert trial.sentence(split) == "a says y (2 of 3 members); b says x (3 of 3 members)"
    three = {arm: split["a"] for arm in "abc"}
    assert trial.sentence(three) == "All 3 arms say y (6 of 9 members)"


def test_a_process_that_died_is_told_and_started_anew(book, done):
    run, _ = done
    url = book.url
    first = looker._looker(run, url)
    first.process.kill()
    first.process.wait()
    assert "figure" in looker.ask(run, {"view": VIEW, "arm": "slow", "seed": 1})
    gone = looker.Looker("no-such-run")
    assert "there is no run 'no-such-run'" in gone.ask({"view": VIEW})["reason"]


def test_checkpoints_are_those_whose_files_are_there(book, done):
    run, _ = done
    assert len(glance.at(run).kept) == 1
    for path in (Path(book.path).parent / run / "checkpoints").glob("*.pt"):
        path.unlink()
    assert glance.at(run).kept == {}


# ---- files, parsed as data only


def png(array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_a_photograph_of_ink_on_paper_becomes_bright_ink_on_dark():
    page_, ink = np.full((90, 60), 230.0), np.zeros((90, 60))
    page_[30:60, 20:30] = 15
    ink[30:60, 20:30] = 1
    for array in (page_, 255 - page_):
        rows = np.array(trial.picture_file(png(array)))
        small = np.array(Image.fromarray((255 * ink).astype(np.uint8)).resize((56, 56)), dtype=float) / 255
        assert np.corrcoef(rows.ravel(), small.ravel())[0, 1] > 0.98 and rows.min() >= 0 and rows.max() <= 1


CUT = png(np.zeros((4, 4)))[:40]


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95pickle", b"<script>alert(1)</script>", b"GIF89a" + b"\0" * 40, CUT])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(ValueError, match="no PNG or JPEG"):
        trial.picture_file(content)


def test_a_table_is_read_as_numbers_and_a_heading_is_left_out():
    assert trial.table(b"x,y\n1,2.5\n-3,4e1\n") == [[1.0, 2.5], [-3.0, 40.0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"1,2\n3,=cmd()", "line 2"), (b"", "0 rows"), (b"\xff\xfe\x00", "UTF-8"), (b"1\n" * 500, "500 rows"), (b"x,y\n", "0 rows")],
)
def test_a_table_that_does_not_fit_is_refused_with_its_reason(content, said):
    with pytest.raises(ValueError, match=said):
        trial.table(content)
