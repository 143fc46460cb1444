"""Predict first, the setting in the address, presets, mid-run offers and command lines of the study page."""

import json
import math
import shlex
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from hypothesis import given
from hypothesis import strategies as some
from streamlit.testing.v1 import AppTest

from claimlab import claims, cli, params
from claimlab.ledger import Ledger
from claimlab.study import find

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
SLUG = "toy-blobs"
SETTINGS = dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5)


@pytest.fixture
def lab(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    return own_studies


@pytest.fixture
def born(monkeypatch):
    """Stands in for the process that would train; the runs stay queued until the test ends them."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command) or _Child())
    return started


class _Child:
    def poll(self):
        return None


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update({"study": SLUG, **query})
    return sound(at.switch_page("app_pages/study.py").run())


def sound(at: AppTest) -> AppTest:
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.title, at.header, at.markdown, at.caption, at.warning, at.info)
    labels = [e.label for e in at.expander]
    return "\n".join([*(str(e.value) for kind in kinds for e in kind), *labels]).replace("\\", "")


def finish(run, gap=0.3):
    """Points of both arms, `gap` apart but for a little noise, and the verdicts that they get; the first verdict."""
    book = Ledger()
    rows = [(arm, seed, step, "accuracy", 0.4 + 0.01 * seed * (1 + up) + up * gap)
            for arm, up in (("slow", 0), ("fast", 1)) for seed in range(5) for step in (0, 10)]  # fmt: skip
    book.set_status(run, "running")
    book.log(run, rows)
    table = pd.DataFrame([(SLUG, *row) for row in rows], columns=["study", "arm", "seed", "step", "metric", "value"])
    verdicts = [claims.judge(claim, table).as_dict() for claim in find(SLUG).claims]
    book.record_verdicts(run, verdicts)
    book.finish(run)
    book.set_status(run, "finished")
    return verdicts[0]


def finished(**changes):
    run = Ledger().start_run(SLUG, {**SETTINGS, **changes}, seeds=range(5))
    finish(run)
    return run


def diamonds(at: AppTest) -> list[list[float]]:
    """The places of the diamonds in all verdict pictures of the page."""
    drawn = [t for chart in at.get("plotly_chart") for t in json.loads(chart.proto.spec)["data"]]
    return [list(t["x"]) for t in drawn if t.get("marker", {}).get("symbol") == "diamond-open"]


def started(at: AppTest) -> str:
    sound(at.get_by_key(f"{SLUG}-submit").click().run())
    return Ledger().runs(study=SLUG)[0]["id"]


# ---- predict first


def test_the_verdicts_of_a_run_of_ones_own_wait_for_the_expectation_which_is_then_drawn_beside_them(lab, born):
    at = page()
    verdict = finish(started(at))
    sound(at.run())
    assert verdict["sentence"] not in words(at) and at.button(key="show-me") and not diamonds(at)
    at.get_by_key(f"{SLUG}-expect-arm").set_value("slow")
    at.get_by_key(f"{SLUG}-expect-by").set_value(0.1)
    sound(at.get_by_key(f"{SLUG}-expect-set").click().run())
    assert verdict["sentence"] in words(at) and diamonds(at) == [[-0.1]]
    assert "You expected -0.1, the data say" in words(at) and "the opposite direction" in words(at)
    assert at.query_params["expect"] in ("-0.1", ["-0.1"])


def test_who_wants_to_see_at_once_is_asked_no_more(lab, born):
    at = page()
    first = finish(started(at))
    sound(sound(at.run()).button(key="show-me").click().run())
    assert first["sentence"] in words(at)
    second = finish(started(at), gap=0.2)
    assert second["sentence"] in words(sound(at.run()))


def test_a_finished_run_that_one_opens_shows_its_verdicts_with_the_question_folded(lab):
    run = finished()
    at = page(run=run)
    assert "Supported: " in words(at) and "Predict first" in [e.label for e in at.expander]
    assert not diamonds(at)


def test_an_expectation_comes_back_from_the_address(lab):
    run = finished()
    at = page(run=run, expect="0.25")
    assert diamonds(at) == [[0.25]] and "You expected +0.25" in words(at)
    assert "You expect fast 0.25 above slow in accuracy" in words(at)


@pytest.mark.parametrize("crafted", ["nan", "inf", "1e9", "<script>", "0.1;drop", ""])
def test_a_crafted_expectation_is_none(lab, crafted):
    assert not diamonds(page(run=finished(), expect=crafted))


@given(value=some.floats(-1, 1), effect=some.floats(-1, 1), half=some.floats(0, 0.5))
def test_the_comparison_says_where_the_number_lies(value, effect, half):
    from panels.predict import compared

    low, high = effect - half, effect + half
    said = compared(value, {"effect": effect, "low": low, "high": high, "n": 5})
    assert ("within the interval" in said) == (low <= value <= high)
    if "too strong" in said:
        assert abs(value) > abs(effect) and (value > 0) == (effect > 0) and not low <= 0 <= high
    if "opposite" in said:
        assert math.copysign(1, value) != math.copysign(1, effect)


def test_the_slider_reaches_past_ten_margins_and_all_that_was_seen(lab):
    from panels.predict import asked, reach

    claim = asked(find(SLUG))
    assert claim.id == "fast-wins" and reach(claim) == pytest.approx(0.5)
    assert reach(claim, [None, -6.2]) == pytest.approx(10.0)


def test_lower_is_better_turns_the_sign(lab, born):
    path = lab / "blobs" / "toy_blobs.py"
    text = path.read_text().replace('margin=0.05, better="higher"', 'margin=0.05, better="lower"')
    path.write_text(text)
    at = page(run=finished())
    at.get_by_key(f"{SLUG}-expect-arm").set_value("fast")
    at.get_by_key(f"{SLUG}-expect-by").set_value(0.2)
    sound(at.get_by_key(f"{SLUG}-expect-set").click().run())
    assert diamonds(at) == [[-0.2]]


# ---- the setting in the address


def test_a_setting_goes_into_the_address_and_comes_back(lab):
    at = page()
    at.get_by_key(f"{SLUG}-knob-rate").set_value(0.2)
    sound(at.run())
    assert at.query_params["p.rate"] in ("0.2", ["0.2"]) and "p.gap" not in at.query_params
    again = page(**{"p.rate": "0.2", "p.steps": "100", "profile": "full"})
    assert again.get_by_key(f"{SLUG}-knob-rate").value == 0.2 and again.get_by_key(f"{SLUG}-knob-steps").value == 100
    assert again.get_by_key(f"{SLUG}-knob-seeds").value == 8 and again.get_by_key(f"{SLUG}-profile").value == "full"
    assert again.get_by_key(f"{SLUG}-preset").value == "mine"


def test_the_setting_that_breaks_it_is_recognised(lab):
    assert page(**{"p.gap": "0"}).get_by_key(f"{SLUG}-preset").value == "control"


@pytest.mark.parametrize("crafted", [{"p.gap": "99"}, {"p.rate": "nan"}, {"p.steps": "__import__('os')"}, {"p.nothing": "1"}])
def test_what_the_address_may_not_ask_for_is_said_and_dropped(lab, crafted):
    at = page(**crafted)
    assert next(iter(crafted)).removeprefix("p.") in at.sidebar.warning[0].value
    assert {k: at.get_by_key(f"{SLUG}-knob-{k}").value for k in SETTINGS} == SETTINGS
    assert not any(name.startswith("p.") for name in at.query_params)


def test_the_readers_own_setting_is_kept_beside_the_presets(lab):
    at = page()
    at.get_by_key(f"{SLUG}-knob-rate").set_value(0.3).run()
    at.get_by_key(f"{SLUG}-preset").set_value("paper").run()
    assert at.get_by_key(f"{SLUG}-knob-rate").value == 0.05
    at.get_by_key(f"{SLUG}-preset").set_value("mine").run()
    assert sound(at).get_by_key(f"{SLUG}-knob-rate").value == 0.3


# ---- in mid-run


def test_a_knob_turned_in_mid_run_steers_it_or_takes_a_new_run(lab):
    book = Ledger()
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "running")
    at = page(run=run)
    assert not [b for b in at.button if b.key == "knobs-steer"]
    at.get_by_key(f"{SLUG}-knob-gap").set_value(3.0)
    at.get_by_key(f"{SLUG}-knob-rate").set_value(0.2)
    sound(at.run())
    assert "gap cannot change in mid-run" in words(at) and at.get_by_key(f"{SLUG}-submit").label == "New run"
    sound(at.button(key="knobs-steer").click().run())
    assert [(c["verb"], c["payload"]) for c in book.commands(run)] == [("set", {"name": "rate", "value": 0.2})]
    assert not [b for b in at.button if b.key == "knobs-steer"]


# ---- what one would type, and how long it takes


def test_the_command_makes_the_run_that_the_form_would(lab):
    from panels import commands

    study = find(SLUG)
    for values, profile, control in (
        (SETTINGS, "default", False), ({**SETTINGS, "rate": 1 / 3, "steps": 70}, "full", False),
        ({**SETTINGS, "gap": 0.0}, "default", True),
    ):  # fmt: skip
        typed = shlex.split(commands.run(study, values, profile, control))
        given_ = cli.parser().parse_args(typed[1:])
        asked = params.pairs(given_.knob) | (study.control.set if given_.control else {})
        assert typed[0] == "claimlab" and given_.study == SLUG
        assert params.values(params.make(study.Params, asked, given_.profile)) == values
    assert commands.run(study, SETTINGS, "default") == "claimlab run toy-blobs --profile default"


def test_jupyter_is_linked_where_one_answers_and_serves_the_folder(lab, tmp_path, monkeypatch):
    import socket

    from panels import commands

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        facts = {"url": f"http://127.0.0.1:{port}/", "root_dir": str(lab), "token": "secret"}
        (tmp_path / "jpserver-1.json").write_text(json.dumps(facts))
        (tmp_path / "jpserver-2.json").write_text("{broken")
        (server,) = commands.running.__wrapped__()
    assert commands.address(server, lab / "blobs" / "a b.ipynb") == f"http://127.0.0.1:{port}/lab/tree/blobs/a%20b.ipynb"
    assert commands.address(server, tmp_path.parent / "else.ipynb") == "" and "secret" not in str(server)
    assert commands.running.__wrapped__() == []


def test_the_time_comes_from_past_runs_nearest_in_length(lab, monkeypatch):
    from panels import timing

    book, clock = Ledger(), [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for steps, seconds in ((40, 30.0), (40, 40.0), (40, 50.0), (80, 100.0)):
        run = book.start_run(SLUG, {**SETTINGS, "steps": steps}, seeds=range(5))
        clock[0] += seconds
        book.set_status(run, "finished")
    study = find(SLUG)
    assert timing.estimate(study, SETTINGS, "default").startswith("about 40 s, by 3 past runs")
    assert timing.estimate(study, {**SETTINGS, "steps": 80}, "default").startswith("about 1 min 40 s, by 1 past run")
    assert timing.estimate(study, {**SETTINGS, "steps": 8000}, "default").startswith("perhaps 2 h 33 min")


# ---- files of a run


def test_the_table_and_the_figures_come_as_files_that_other_programs_read(lab, home):
    import io

    from panels import drawings, history

    run = finished()
    table = pd.read_csv(io.BytesIO(history.as_csv(run)))
    pd.testing.assert_frame_equal(table, Ledger().table(run), check_dtype=False)
    path = home / run / "figures" / "gap.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {"height": 300}}')
    Ledger().artifact(run, "figure:gap", str(path))
    at = page(run=run)
    at.session_state[f"{SLUG}-tab"] = "Files"
    sound(at.run())
    labels = [b.label for b in at.get("download_button")]
    assert "Table of this run (CSV)" in labels and "Table of this run (Parquet)" in labels and "Download figure" in labels
    assert drawings.drawn(str(path), "HTML").lstrip().lower().startswith(b"<!doctype html>")
    with pytest.raises(FileNotFoundError):
        drawings.drawn(str(path.with_name("none.json")), "HTML")


@pytest.mark.browser
def test_a_figure_becomes_a_picture(lab, tmp_path):
    from panels import drawings

    drawings.cannot.clear()
    if why := drawings.cannot():
        pytest.skip(f"pictures cannot be drawn here: {why}")
    path = tmp_path / "f.json"
    path.write_text('{"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {"height": 300}}')
    png, svg = (drawings.drawn(str(path), kind) for kind in ("PNG", "SVG"))
    assert (
        png[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(png[16:20], "big") == 2000 and int.from_bytes(png[20:24], "big") == 600
    )
    assert svg.lstrip().startswith(b"<svg")


def test_without_kaleido_the_page_says_so(lab, monkeypatch):
    import importlib.util

    from panels import drawings

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "kaleido" else real(name, *a))
    drawings.cannot.clear()
    try:
        assert "kaleido is not installed" in drawings.cannot()
    finally:
        drawings.cannot.clear()
