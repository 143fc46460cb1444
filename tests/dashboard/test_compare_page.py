"""The page Compare in Streamlit's own test harness, with runs of a quick study put into the ledger by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from scipy import stats
from streamlit.testing.v1 import AppTest

from claimlab import claims, cli, params
from claimlab.ledger import Ledger
from claimlab.study import find

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
SLUG = "toy-blobs"
SETTINGS = dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5)


@pytest.fixture
def book(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    opened = Ledger()
    yield opened
    opened.close()


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update(query)
    return sound(at.switch_page("app_pages/compare.py").run())


def sound(at: AppTest) -> AppTest:
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.title, at.header, at.markdown, at.caption, at.error, at.warning, at.info)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def asked(at: AppTest, name: str) -> str:
    found = at.query_params[name]
    return found[0] if isinstance(found, list) else found


def ran(book, ahead=0.3, seeds=range(5), *, control=False, **changes):
    """A finished run whose fast arm ends `ahead` above its slow one, up to a little that differs from seed to seed."""
    rows = [(arm, seed, step, "accuracy", 0.4 + step / 100 + 0.01 * seed * (1 + up) + up * ahead)
            for arm, up in (("slow", 0), ("fast", 1)) for seed in seeds for step in (0, 10, 20, 30)]  # fmt: skip
    run = book.start_run(SLUG, {**SETTINGS, **changes}, seeds=seeds, control=control)
    book.set_status(run, "running")
    book.log(run, rows)
    table = pd.DataFrame([(SLUG, *row) for row in rows], columns=["study", "arm", "seed", "step", "metric", "value"])
    book.record_verdicts(run, [claims.judge(claim, table).as_dict() for claim in find(SLUG).claims])
    book.finish(run)
    book.set_status(run, "finished")
    return run


def test_without_a_run_the_page_says_what_to_do(book):
    assert "No study has been run here yet" in words(page())


def test_a_study_without_runs_says_so_beside_one_that_has_some(book, own_studies):
    ran(book)
    other = (own_studies / "blobs" / "toy_blobs.py").read_text()
    (own_studies / "blobs" / "other_blobs.py").write_text(other)
    assert "This study has no runs here yet" in words(page(study="other-blobs"))


def test_the_best_stands_on_top_under_the_pinned_baseline_and_the_address_keeps_what_was_chosen(book):
    low, paper, high = ran(book, 0.1, rate=0.01), ran(book, 0.2), ran(book, 0.5, rate=0.5)
    at = page()
    table = at.dataframe[0].value
    assert list(table["run"]) == [paper, high, low] and list(table[""]) == ["baseline", "", ""]
    assert list(table["knobs"]) == ["the paper's setting", "rate = 0.5", "rate = 0.01"]
    assert set(asked(at, "runs").split(",")) == {high, paper} and asked(at, "study") == SLUG
    at = page(study=SLUG, runs=f"{low},{high}", baseline=low)
    assert at.dataframe[0].value["run"][0] == low and set(asked(at, "runs").split(",")) == {low, high}


def test_the_filter_keeps_rows_with_all_words_and_says_when_none_is_left(book):
    ran(book, 0.2)
    ran(book, 0.5, rate=0.5)
    third = ran(book, 0.5, rate=0.5, gap=4.0)
    at = page()
    at.text_input(key="compare-filter").input("rate = 0.5 gap").run()
    assert third in list(at.dataframe[0].value["run"]) and len(at.dataframe[0].value) == 2  # and the baseline
    at.text_input(key="compare-filter").input("nonsense").run()
    assert "None of the 3 runs has all of these words" in words(at)


def test_only_knobs_that_differ_are_shown(book):
    one, two = ran(book, 0.2), ran(book, 0.4, rate=0.5, steps=80)
    at = page(runs=f"{one},{two}")
    frame = at.dataframe[1].value
    assert list(frame.index) == ["rate", "steps"]
    assert frame.to_numpy().tolist() == [["0.05", "0.5"], ["40", "80"]] and "(baseline)" in frame.columns[0]


def test_curves_are_laid_over_each_other_one_chart_an_arm_the_baseline_grey_and_solid(book):
    one, two = ran(book, 0.2), ran(book, 0.45, rate=0.5)
    at = page(runs=f"{one},{two}")
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    thick = {t["name"]: t["line"] for t in figure["data"] if t["line"].get("width", 0) > 2}
    assert set(thick) == {"rate = 0.05", "rate = 0.5"}
    assert thick["rate = 0.05"]["color"] == "#888888" and thick["rate = 0.05"]["dash"] == "solid"
    assert thick["rate = 0.5"]["color"] != "#888888" and thick["rate = 0.5"]["dash"] != "solid"
    assert "fast: rate = 0.5 ends 0.25 above rate = 0.05 in accuracy (n = 5)" in words(at)


def test_paired_differences_match_a_paired_t_interval_over_common_seeds(book):
    from panels import compare

    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 8))

    def table(values, seeds):
        rows = [("a", s, step, "m", values[s] * step) for s in seeds for step in (0, 1)]
        return pd.DataFrame(rows, columns=["arm", "seed", "step", "metric", "value"])

    gap = compare.paired(table(noise[0], range(8)), table(noise[1], range(2, 8)), "m", "a")
    expected = noise[0, 2:] - noise[1, 2:]
    assert list(gap.index) == list(range(2, 8)) and gap.to_numpy() == pytest.approx(expected)
    figure, title = compare.picture({"r": gap}, {"r": "mine"}, {"r": "#0072B2"}, "m", "a", "base")
    low, high = figure.data[0].x
    t_low, t_high = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
    assert low <= t_low + 1e-9 and high >= t_high - 1e-9  # the hull of Student's interval and a skewness-corrected one
    assert f"{expected.mean():+.3g}" in title and "n = 6" in title


def test_a_diverged_seed_is_left_out_of_the_pairs_and_n_says_so(book):
    from panels import compare

    columns = ["arm", "seed", "step", "metric", "value"]
    whole = pd.DataFrame([("a", s, 1, "m", 1.0 + s) for s in range(3)], columns=columns)
    hurt = whole.assign(value=[math.nan, 2.0, 3.0])
    assert list(compare.paired(hurt, whole, "m", "a").index) == [1, 2]


def test_the_share_of_settings_counts_each_once_and_leaves_controls_out(book):
    ran(book, 0.0, rate=0.5)
    ran(book, 0.5, rate=0.5)  # the same setting again: its newest run counts
    ran(book, -0.3, rate=0.9)
    ran(book, 0.5, gap=0.0, control=True)
    at = page()
    assert "The claim holds in 1 of 2 settings (50 %); refuted in 1" in words(at) and "n = 3 runs" in words(at)


def test_the_claim_is_drawn_over_its_knobs_with_interval_margin_and_heat_map(book):
    for rate in (0.01, 0.1, 0.9):
        for gap in (1.0, 4.0):
            ran(book, 0.5 * rate + 0.01 * gap, rate=rate, gap=gap)
    at = page(knob="rate")
    shown = words(at)
    assert "The effect grows most with rate: rank correlation +0." in shown
    assert "The effect goes from +0.05 at rate = 0.01 to +0.495 at rate = 0.9, n = 6 runs" in shown
    specs = [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]
    kinds = [{trace["type"] for trace in spec["data"]} for spec in specs]
    assert {"parcoords"} in kinds and {"heatmap", "contour"} in kinds
    (heat,) = [spec for spec in specs if spec["data"][0]["type"] == "heatmap"]
    assert heat["data"][1]["contours"]["start"] == heat["data"][1]["contours"]["end"] == 0.05
    (points,) = [s for s in specs if any(t.get("error_y") for t in s["data"])]
    assert sum(len(t["text"]) for t in points["data"] if t.get("error_y")) == 6  # each with the interval of its verdict
    at.toggle(key="compare-fixed").set_value(True)
    sound(at.run())
    assert "n = 3 runs" in words(at)  # those that have the baseline's gap


def test_the_rank_correlation_is_spearmans(book):
    from panels import picking, response

    study, rng = find(SLUG), np.random.default_rng(1)
    rates = rng.uniform(0.001, 1, 12)
    effects = 0.3 * rates + 0.1 * rng.normal(size=12)
    rows = [{"params": {**SETTINGS, "rate": float(r)}, "control": False, "judged": {"fast-wins": {"effect": float(e)}}}
            for r, e in zip(rates, effects, strict=True)]  # fmt: skip
    claim = study.claims[0]
    told = response.strongest(rows, response.varying(study, rows), claim)
    assert f"rank correlation {stats.spearmanr(rates, effects).statistic:+.2f}" in told
    assert [picking.effect_of(r, claim) for r in picking.ranked(rows, claim)] == sorted(effects.tolist(), reverse=True)


def test_the_command_of_a_run_makes_the_same_run(book):
    from panels import commands

    study = find(SLUG)
    row = {"id": "x", "params": {**SETTINGS, "rate": 1 / 3, "gap": 0.5}, "profile": "default", "control": False}
    import shlex

    given = cli.parser().parse_args(shlex.split(commands.run(study, row["params"], row["profile"], row["control"]))[1:])
    assert params.values(params.make(study.Params, params.pairs(given.knob), given.profile)) == row["params"]


def test_a_thousand_runs_are_read_without_their_points(book, monkeypatch):
    verdict = {"claim": "fast-wins", "verdict": "supported", "effect": 0.1, "low": 0.05, "high": 0.15, "n": 5, "values": []}
    for k in range(1000):
        run = book.start_run(SLUG, {**SETTINGS, "rate": k / 1000}, seeds=range(5), status="finished")
        book.record_verdicts(run, [{**verdict, "effect": k / 1000}])
    asked_for, since = [], Ledger.points_since
    monkeypatch.setattr(Ledger, "points_since", lambda self, run, *a: asked_for.append(run) or since(self, run, *a))
    at = page()
    assert len(at.dataframe[0].value) == 1000 and "1,000 of 1,000 runs" in words(at)
    assert len(set(asked_for)) <= 3  # those that are laid over each other, and no other
