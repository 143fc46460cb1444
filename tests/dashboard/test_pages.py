"""The two pages in Streamlit's own test harness, with a quick study and a ledger filled by hand."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import claims, cli, params
from claimlab.ledger import Ledger
from claimlab.study import find

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
SLUG = "toy-blobs"
SETTINGS = dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5)


@pytest.fixture
def lab(home, own_studies):
    """A home and a study of one's own; nothing cached from the test before."""
    st.cache_data.clear()
    st.cache_resource.clear()
    return own_studies


def catalogue(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60)
    at.query_params.update(query)
    return sound(at.run())


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update({"study": SLUG, **query})
    return sound(at.switch_page("app_pages/study.py").run())


def sound(at: AppTest) -> AppTest:
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    """All text of a page, without the marks that keep Markdown from reading it."""
    kinds = (at.title, at.header, at.subheader, at.markdown, at.caption, at.error, at.warning, at.info)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def points(gap=0.3, seeds=5, steps=(0, 10, 20, 30)):
    """Rows of two arms whose accuracies differ by `gap` and a little noise."""
    return [(arm, seed, step, "accuracy", 0.4 + step / 100 + 0.01 * seed * (1 + up) + up * gap)
            for arm, up in (("slow", 0), ("fast", 1)) for seed in range(seeds) for step in steps]  # fmt: skip


def judged(rows):
    """The verdicts that the study's claims get on these rows."""
    table = pd.DataFrame([("toy-blobs", *row) for row in rows], columns=["study", "arm", "seed", "step", "metric", "value"])
    return [claims.judge(claim, table).as_dict() for claim in find(SLUG).claims]


def finished(book, rows, *, control=False, **changes):
    run = book.start_run(SLUG, {**SETTINGS, **changes}, seeds=range(5), control=control)
    book.set_status(run, "running")
    book.log(run, rows)
    book.record_verdicts(run, judged(rows))
    book.finish(run)
    book.set_status(run, "finished")
    return run


# ---- catalogue


def test_every_question_is_a_headline_and_a_broken_study_says_why(lab):
    (lab / "blobs" / "halfway.py").write_text('"""Half a study."""\nimport nosuchpackage\n')
    at = catalogue(family="blobs")
    headlines = [h.value.replace("\\", "") for h in at.subheader]
    assert find(SLUG).paper.question in headlines and "halfway" in headlines
    assert headlines[-1] == "halfway"
    assert "does not declare PAPER" in words(at)
    assert "1 broken" in words(at)


@pytest.mark.parametrize("q", ["blobs sooner", "blobs often not", "TEST blobs", "toy-blobs", "distance of the blobs"])
def test_search_reads_question_claims_authors_name_and_knobs(lab, q):
    assert [h.value.replace("\\", "") for h in catalogue(q=q).subheader] == [find(SLUG).paper.question]


def test_filters_and_search_come_back_from_the_address(lab):
    at = catalogue(q="blobs", family="blobs", theme="stages")
    assert at.text_input(key="q").value == "blobs"
    assert at.selectbox(key="family").value == "blobs" and at.selectbox(key="theme").value == "stages"


def test_an_empty_result_names_the_filter_that_emptied_it(lab):
    at = catalogue(q="blobs sooner", family="blobs", theme="sensitivity")
    assert not at.subheader
    assert "Without the theme 'sensitivity' there is 1." in words(at)
    assert "Without the family" not in words(at) and "Without the search" not in words(at)
    sound(at.button(key="clear_filters").click().run())
    assert at.text_input(key="q").value == "" and len(at.subheader) > 10


def test_a_search_that_nothing_passes_is_blamed(lab):
    shown = words(catalogue(q="zebra crossing"))
    assert "Nothing passes" not in shown and "Without the search for 'zebra crossing' there are" in shown
    shown = words(catalogue(q="zebra crossing", theme="representations", family="blobs"))
    assert "Nothing passes the search for 'zebra crossing'" in shown


def test_cards_show_the_last_finished_run_and_before_it_the_reference_results(lab, tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data" / "verdicts.csv").write_text(
        "study,claim,kind,verdict,effect,low,high,n,margin,control,says_nothing,profile\n"
        "toy-blobs,fast-wins,paired,refuted,-0.2,-0.3,-0.1,7,0.05,undecided,no,default\n"
    )
    monkeypatch.setenv("CLAIMLAB_ROOT", str(root))
    shown = words(catalogue(q="blobs sooner"))
    assert "refuted" in shown and "-0.2 [-0.3, -0.1], n = 7" in shown and "Reference results" in shown
    assert "not run yet" in shown
    rows = points()
    finished(Ledger(), rows)
    shown = words(catalogue(q="blobs sooner"))
    effect = judged(rows)[0]["effect"]
    assert "supported" in shown and f"{effect:+.3g} [" in shown and "Reference results" not in shown


def test_the_verdict_filter_follows_the_ledger(lab):
    assert not catalogue(q="blobs sooner", verdict="supported").subheader
    finished(Ledger(), points())
    assert catalogue(q="blobs sooner", verdict="supported").subheader


# ---- study page


def test_the_form_has_one_widget_a_knob_with_its_declared_range(lab):
    at = page()
    for knob in find(SLUG).knobs:
        widget = at.get_by_key(f"{SLUG}-knob-{knob.name}")
        assert widget.value == knob.default
        if widget.type == "slider":
            assert (widget.min, widget.max) == (knob.low, knob.high)
        else:
            assert {f"{int(knob.low):,}", f"{int(knob.high):,}"} <= set(widget.options)
    assert find(SLUG).paper.question == at.title[0].value


def test_presets_and_profiles_set_the_knobs(lab):
    at = page()
    at.get_by_key(f"{SLUG}-profile").set_value("smoke").run()
    assert at.get_by_key(f"{SLUG}-knob-steps").value == 6 and at.get_by_key(f"{SLUG}-knob-seeds").value == 2
    at.get_by_key(f"{SLUG}-preset").set_value("control").run()
    assert at.get_by_key(f"{SLUG}-knob-gap").value == 0.0
    assert "Blobs in one place cannot be told apart" in words(at)


class Born(list):
    """Stands in for subprocess.Popen and keeps what was to be started."""

    def __call__(self, command, **options):
        self.append((command, options))
        return type("Child", (), {"poll": lambda self: None})()


def test_run_starts_a_process_of_its_own_with_the_values_as_data(lab, monkeypatch):
    at, born = page(), Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    at.get_by_key(f"{SLUG}-knob-rate").set_value(0.2)
    sound(at.get_by_key(f"{SLUG}-submit").click().run())
    (command, options), (row,) = *born, Ledger().runs()
    assert options["start_new_session"] and not options.get("shell")
    given = cli.parser().parse_args(command[3:])
    assert command[1:3] == ["-m", "claimlab.cli"] and given.run_id == row["id"] and given.no_kernel and not given.control
    asked = params.make(find(SLUG).Params, params.pairs(given.knob), given.profile)
    assert params.values(asked) == row["params"] == {**SETTINGS, "rate": 0.2}
    assert at.query_params["run"] in (row["id"], [row["id"]])
    assert at.get_by_key(f"{SLUG}-preset").value == "mine"


def test_the_control_preset_runs_as_negative_control(lab, monkeypatch):
    at, born = page(), Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    at.get_by_key(f"{SLUG}-preset").set_value("control").run()
    sound(at.get_by_key(f"{SLUG}-submit").click().run())
    assert "--control" in born[0][0]
    assert Ledger().runs()[0]["control"] and Ledger().runs()[0]["params"]["gap"] == 0.0


def test_knobs_that_contradict_each_other_are_told_beside_the_form_and_start_nothing(lab, monkeypatch):
    path = lab / "blobs" / "toy_blobs.py"
    refuse = "    def __post_init__(self):\n        if 0 < self.gap < self.rate:\n"
    refuse += "            raise ValueError('rate must not exceed gap')\n"
    check = refuse + "\n\nCLAIMS"
    path.write_text(path.read_text().replace("\nCLAIMS", check))
    at, born = page(), Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    at.get_by_key(f"{SLUG}-knob-rate").set_value(0.5)
    at.get_by_key(f"{SLUG}-knob-gap").set_value(0.2)
    sound(at.get_by_key(f"{SLUG}-submit").click().run())
    assert [e.value for e in at.sidebar.error] == ["rate must not exceed gap"]
    assert not born and not Ledger().runs()
    assert at.get_by_key(f"{SLUG}-knob-rate").value == 0.5


@pytest.mark.parametrize(
    "crafted", [{"gap": 99.0}, {"seeds": 2.5}, {"rate": float("nan")}, {"steps": "; rm -rf /"}, {"__class__": 1}]
)
def test_what_a_crafted_client_sends_is_refused_before_anything_starts(lab, monkeypatch, crafted):
    from panels import launch
    from panels.knobs import Request

    born = Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    with pytest.raises(params.KnobError, match=next(iter(crafted))):
        launch.start(find(SLUG), Request({**SETTINGS, **crafted}, "default", False, False), Ledger())
    assert not born and not Ledger().runs()


def test_every_setting_of_the_form_reaches_the_child_unchanged(lab, monkeypatch):
    from panels import launch
    from panels.knobs import Request

    study = find(SLUG)
    for values in (
        SETTINGS,
        {**SETTINGS, "rate": 1e-7, "gap": 0.1 + 0.2, "poison": 64},
        {**SETTINGS, "steps": 100000, "rate": 1 / 3},
    ):
        command = launch.command(study, "some-run", values, Request(values, "full", False, True))
        given = cli.parser().parse_args(command[3:])
        assert params.values(params.make(study.Params, params.pairs(given.knob), given.profile)) == values
        assert given.profile == "full" and given.single_file and not given.no_kernel


def test_unknown_study_and_unknown_run_name_the_nearest(lab):
    run = finished(Ledger(), points())
    assert "did you mean toy-blobs" in words(page(study="toy-blob"))
    at = page(run=run[:-1])
    assert f"did you mean {run}" in words(at) and at.get_by_key(f"{SLUG}-submit")


def test_a_name_from_the_address_cannot_write_markup(lab):
    at = page(study="[click](https://example.org)<b>")
    assert at.error and "[click](" not in at.error[0].value


def test_a_running_run_shows_progress_curves_and_stops_on_request(lab):
    book = Ledger()
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "running")
    book.heartbeat(run, 40, 160)
    at = page(run=run)
    assert at.progress[0].value == 25 and "step 40 of 160" in at.progress[0].text
    assert not at.get("plotly_chart")
    book.log(run, points())
    book.flush()
    sound(at.run())
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    lines = [t for t in figure["data"] if t["name"].startswith("fast")]
    assert len(lines) == 1 + 1 + 1 and "n = 5" in words(at)
    assert "fast is 0.32 above slow in accuracy at step 30 (n = 5)" in words(at)
    sound(at.button(key="stop").click().run())
    assert [(c["verb"], c["by"].split()[0]) for c in book.commands(run)] == [("stop", "dashboard")]
    assert at.button(key="stop").disabled


def running(book, **knobs):
    """A run that goes on, as the ledger knows it, with points of two arms."""
    run = book.start_run(SLUG, SETTINGS | knobs, seeds=range(5))
    book.set_status(run, "running")
    book.heartbeat(run, 40, 160)
    book.log(run, points())
    book.flush()
    return run


@pytest.mark.parametrize(("verb", "payload"), [("pause", {}), ("step", {"n": 10}), ("evaluate", {}), ("checkpoint", {})])
def test_a_button_sends_its_verb(lab, verb, payload):
    book = Ledger()
    run = running(book)
    at = page(run=run)
    assert at.button(key="rollback").disabled  # nothing to undo yet
    sound(at.button(key=verb).click().run())
    assert [(c["verb"], c["payload"]) for c in book.commands(run)] == [(verb, payload)]
    assert "waiting for the next step" in words(at)
    book.set_status(run, "paused")
    assert at.run().button(key="resume")


def test_a_setting_is_checked_before_it_is_sent_to_this_run_or_to_a_fork(lab):
    book = Ledger()
    run = running(book)
    at = page(run=run)
    at.session_state[f"{run}-change"] = True  # the form is drawn where it is unfolded
    at.run().selectbox(key="steer-arm").select("fast")
    at.text_input(key="steer-value").input("-1")
    at.button(key="steer-set").click().run()
    assert not at.exception and "lr = -1 is not allowed" in words(at) and book.commands(run) == []
    at.text_input(key="steer-value").input("0.01")
    sound(at.button(key="steer-set").click().run())
    sound(at.button(key="steer-fork").click().run())
    change = {"name": "lr", "value": 0.01}
    assert [(c["verb"], c["payload"], c["arm"]) for c in book.commands(run)] == [
        ("set", change, "fast"), ("fork", {"change": {"verb": "set", **change}}, "fast"),
    ]  # fmt: skip


def test_the_answer_to_a_command_and_the_mark_on_the_curve_are_shown_and_undo_names_its_checkpoint(lab):
    book = Ledger()
    run = running(book)
    first, second = (book.command(run, "set", {"name": "lr", "value": v}, arm="fast", by="ann") for v in (0.02, 9.0))
    book.event(run, "set", step=20, arm="fast", payload={"name": "lr", "value": 0.02, "old": 0.05, "new": 0.02, "checkpoint": "000000040"})
    book.answer(first, True, step=20, old=0.05, new=0.02)
    book.answer(second, False, reason="lr = 9 would harm")
    at = page(run=run)
    assert "took effect at step 20" in words(at) and "lr = 9 would harm" in words(at)
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    assert [a["text"] for a in figure["layout"]["annotations"]] == ["lr 0.05 → 0.02"]
    sound(at.button(key="rollback").click().run())
    assert book.commands(run)[-1]["payload"] == {"checkpoint": "000000040"}


def test_what_a_rollback_has_undone_leaves_the_curve(lab):
    book = Ledger()
    run = running(book)
    at = page(run=run)
    before = json.loads(at.get("plotly_chart")[0].proto.spec)["data"]
    book.event(run, "rollback", payload={"checkpoint": "x", "to": {"fast": 10, "slow": 30}, "cursor": book.cursor(run)})
    sound(at.run())
    after = json.loads(at.get("plotly_chart")[0].proto.spec)["data"]

    def longest(data, arm):
        return max(len(t["x"]["bdata"]) if isinstance(t["x"], dict) else len(t["x"]) for t in data if t["name"] == arm)

    assert longest(after, "fast") < longest(before, "fast") and longest(after, "slow") == longest(before, "slow")


def test_curves_are_drawn_anew_only_when_points_have_come(lab, monkeypatch):
    from claimlab import figures

    book, drawn, draw = Ledger(), [], figures.curve
    monkeypatch.setattr(figures, "curve", lambda *a, **k: drawn.append(a[1]) or draw(*a, **k))
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "running")
    book.log(run, points())
    book.flush()
    at = page(run=run)
    assert drawn == ["accuracy"]
    book.heartbeat(run, 50, 160)
    sound(at.run())
    assert drawn == ["accuracy"]
    book.log(run, points(steps=(40,)))
    book.flush()
    sound(at.run())
    assert drawn == ["accuracy"] * 2


def test_a_run_that_ends_while_watched_shows_its_verdicts(lab):
    book = Ledger()
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "running")
    book.log(run, points())
    book.flush()
    at = page(run=run)
    assert words(at).count("not run yet") >= 2
    book.record_verdicts(run, judged(points()))
    book.finish(run)
    book.set_status(run, "finished")
    sound(at.run())
    verdict = judged(points())[0]
    assert verdict["sentence"] in words(at)
    assert f"{verdict['effect']:+.3g} [{verdict['low']:.3g}, {verdict['high']:.3g}], n = 5" in words(at)


def test_what_is_drawn_from_a_look_a_moment_ago_renews_itself(lab, monkeypatch):
    from panels import glance

    paces, fragment = {}, st.fragment

    def noted(function, *, run_every, key):
        paces[key] = run_every
        return fragment(function, run_every=run_every, key=key)

    monkeypatch.setattr(st, "fragment", noted)
    monkeypatch.setattr(glance, "AGE", 60.0)
    book = Ledger()
    run = running(book)
    at = page(run=run)
    book.set_status(run, "finished")
    sound(at.run())  # others have just looked: the page gets what they saw
    assert "**running**" in words(at) and not at.button(key="stop").disabled
    assert paces["live"] == 1.0
    glance.forget(run)
    sound(at.run())
    assert "**finished**" in words(at) and paces["live"] is None


def test_the_control_stands_beside_the_verdict_and_says_when_it_says_nothing(lab):
    book = Ledger()
    run = finished(book, points())
    assert "not run yet" in words(page(run=run))
    finished(book, points(gap=0.0), control=True, gap=0.0, rate=0.9)
    assert "Negative control (gap = 0): :gray-badge[:material/remove: not run yet]" in words(page(run=run))  # other knobs
    finished(book, points(gap=0.0), control=True, gap=0.0)
    shown = words(page(run=run))
    assert "Negative control (gap = 0): :red-badge[:material/close: refuted]" in shown and "says nothing" not in shown
    finished(book, points(gap=0.3), control=True, gap=0.0)
    assert "says nothing about its cause" in words(page(run=run))


def test_a_failed_and_a_silent_run_say_what_happened(lab):
    book = Ledger()
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "failed", "cell 4: ValueError: *loss* is [NaN](x)")
    assert "cell 4: ValueError: *loss* is [NaN](x)" in words(page(run=run))
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    book.set_status(run, "running")
    silent = time.time
    try:
        time.time = lambda: silent() + 60  # a minute later without a sign of life
        assert "no sign of life" in words(page(run=run))
    finally:
        time.time = silent
    assert book.run(run)["status"] == "lost"


def test_a_child_that_dies_before_it_speaks_is_failed_with_its_last_words(lab, home):
    from panels import launch

    book = Ledger()
    run = book.start_run(SLUG, SETTINGS, seeds=range(5))
    (home / run).mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    (home / run / "worker.log").write_text("Traceback\nImportError: no module named this\n\n")
    launch.CHILDREN[run] = child
    launch.settle(book)
    row = book.run(run)
    assert row["status"] == "failed" and "exit code 3: ImportError: no module named this" in row["reason"]


def test_past_runs_figures_and_text_of_the_study(lab, home):
    book = Ledger()
    run, other = finished(book, points()), finished(book, points(), rate=0.5)
    path = home / run / "figures" / "gap.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"data": [{"type": "bar", "x": ["a"], "y": [1]}], "layout": {"title": {"text": "What one<br>sees"}}}')
    book.artifact(run, "figure:gap", str(path))
    at = page(run=run)
    assert "**What one sees**" in words(at)
    at.session_state[f"{SLUG}-tab"] = "Past runs"
    sound(at.run())
    table = at.dataframe[0].value
    assert list(table["run"]) == [other, run] and list(table["knobs"]) == ["rate = 0.5", "the paper's setting"]
    at.session_state[f"{SLUG}-tab"] = "What the scale hides"
    assert find(SLUG).honesty in words(sound(at.run()))
    at.session_state[f"{SLUG}-tab"] = "How it works"
    assert find(SLUG).path.read_text().strip() in [c.value for c in sound(at.run()).code]


def test_a_ledger_of_a_newer_version_is_explained_on_both_pages(lab, home):
    from sqlalchemy import create_engine, text

    Ledger().close()
    with create_engine(f"sqlite:///{home / 'ledger.db'}").begin() as connection:
        connection.execute(text("UPDATE schema_version SET version = 999"))
    st.cache_resource.clear()
    for at in (catalogue(), page()):
        assert "schema 999" in words(at) and at.button(key="retry_ledger")


# ---- pieces


def test_thinning_keeps_spikes_and_the_same_steps_for_all_seeds():
    from panels import charts

    rows = [("a", seed, step, "loss", float((step * 7919 + seed) % 101)) for seed in range(4) for step in range(5000)]
    rows[3 * 5000 + 1234] = ("a", 3, 1234, "loss", 1e6)
    table = pd.DataFrame(rows, columns=["arm", "seed", "step", "metric", "value"])
    thin = charts.thinned(table, "loss", points=2000)
    assert len(thin) <= 2000 and thin["value"].max() == 1e6
    per_seed = thin.groupby("seed")["step"].agg(tuple)
    assert per_seed.nunique() == 1 and {0, 4999} <= set(per_seed.iloc[0])
    full = table.groupby("step")["value"].mean()
    assert thin.groupby("step")["value"].mean().equals(full.loc[sorted(set(thin["step"]))])


def test_every_knob_of_the_lab_can_show_its_default_and_both_ends(lab):
    from panels import knobs

    from claimlab.study import catalogue as everything

    for knob in (k for s in everything() if not s.broken for k in s.knobs if k.choices is None):
        if knobs.wide(knob):
            stops = knobs.steps(knob)
            assert {knob.low, knob.high, knob.default} <= set(stops) and stops == sorted(stops) and len(stops) < 80
            assert all(knob.check(stop) == stop for stop in stops)
        else:
            step, digits = knobs.grid(knob)
            place = (knob.default - knob.low) / step
            assert abs(place - round(place)) < 1e-6 and round(step, digits) == pytest.approx(step)


def test_numbers_are_written_with_interval_and_n():
    from panels.wording import measured

    claim = replace(find_claim(), id="x")
    table = pd.DataFrame([("s", "a", seed, 1, "m", 0.04 + 0.01 * seed) for seed in range(5)],
                         columns=["study", "arm", "seed", "step", "metric", "value"])  # fmt: skip
    verdict = claims.judge(claim, table).as_dict()
    assert measured(verdict) == f"+0.06 [{verdict['low']:.3g}, {verdict['high']:.3g}], n = 5"
    assert measured({**verdict, "high": None}) == f"+0.06 [{verdict['low']:.3g}, +∞], n = 5"
    assert measured({**verdict, "effect": None, "n": 2}) == "n = 2"


def find_claim():
    return claims.Claim("x", "x is large", kind="bound", metric="m", arm="a", margin=0.0, better="higher")


def test_the_dashboard_never_loads_torch(lab, tmp_path):
    script = tmp_path / "both_pages.py"
    script.write_text(
        "import sys\nfrom streamlit.testing.v1 import AppTest\n"
        f"at = AppTest.from_file({str(APP)!r}, default_timeout=60).run()\n"
        f"at.query_params['study'] = {SLUG!r}\n"
        "at.switch_page('app_pages/study.py').run()\n"
        "assert not at.exception and at.title\n"
        "print('torch' in sys.modules, 'papermill' in sys.modules)\n"
    )
    run = finished(Ledger(), points())
    assert run
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr
