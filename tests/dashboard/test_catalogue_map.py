"""The catalogue's map, its search with the places that matched, and its limit in minutes."""

import importlib.util
import json
import shutil
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import streamlit as st
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from claimlab import schema
from claimlab.ledger import Ledger
from claimlab.study import FAMILIES, THEMES, find
from claimlab.study import catalogue as everything

DASHBOARD = Path(__file__).resolve().parents[2] / "dashboard"
CHROMIUM = shutil.which("chromium")
WORDS = ("supported", "refuted", "undecided")
SOURCE = '''
"""Study number {n}. The method counts {word}."""

from dataclasses import dataclass

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.study import Paper

PAPER = Paper(title="Paper {n}", authors="Author{n}", year=2000, url="https://example.org", theme="{theme}", system="system-{n}",
              question="Is <b>number</b> {n} held?")

@dataclass(frozen=True)
class Params:
    steps: int = knob(40, "optimiser steps", low=2, high=100)
    seeds: int = knob(5, "repetitions", low=2, high=64)

CLAIMS = tuple(Claim(f"claim-{{i}}", f"Sentence {{i}}.", kind="bound", metric="m", arm="a", margin=0.0, better="higher")
               for i in range({claims}))
'''


@pytest.fixture
def lab(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    return own_studies


@pytest.fixture
def many(lab):
    """136 generated studies beside those that there are, in all families and themes; two thirds of them with a run."""
    book = Ledger()
    for n in range(136):
        family, theme = FAMILIES[n % len(FAMILIES)], THEMES[n % 3]
        (lab / family).mkdir(exist_ok=True)
        text = SOURCE.format(n=n, word="zebras" if n == 7 else "sheep", theme=theme, claims=1 + n % 5)
        (lab / family / f"made_{n}.py").write_text(textwrap.dedent(text).lstrip())
        if n % 3:
            ended(book, f"made-{n}", {f"claim-{i}": WORDS[(n + i) % 3] for i in range(1 + n % 5)}, seconds=n)
    return lab


def ended(book, slug, verdicts, seconds=1.0, profile="default"):
    run = book.start_run(slug, {}, profile=profile, seeds=range(5))
    facts = {"effect": 0.1, "low": 0.0, "high": 0.2, "n": 5, "values": [], "sentence": "", "reason": ""}
    book.record_verdicts(run, [{"claim": c, "verdict": w, **facts} for c, w in verdicts.items()])
    book.set_status(run, "finished")
    stop = book.run(run)["ended"]
    with book._writing() as connection:
        connection.execute(update(schema.run).where(schema.run.c.id == run).values(started=stop - seconds))
    return run


def catalogue(**query) -> AppTest:
    at = AppTest.from_file(str(DASHBOARD / "app.py"), default_timeout=90)
    at.query_params.update(query)
    at.run()
    assert [e.value for e in at.exception] == []
    return at


def figure(at: AppTest) -> dict:
    return json.loads(at.get("plotly_chart")[0].proto.spec)


def bars(drawn: dict) -> list[dict]:
    return [trace for trace in drawn["data"] if trace["type"] == "bar"]


def words(at: AppTest) -> str:
    kinds = (at.title, at.subheader, at.markdown, at.caption, at.info)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def test_every_study_has_one_tile_in_the_column_of_its_family_divided_as_its_claims_came_out(many):
    drawn = figure(catalogue())
    titles = drawn["layout"]["xaxis"]["ticktext"]
    book, share, column = Ledger(), Counter(), {}
    for trace in bars(drawn):
        word = trace["name"].split(" ", 1)[1]
        for slug, base, width in zip(trace["customdata"], trace["base"], trace["x"], strict=True):
            share[slug, word] += width
            column[slug] = round(base + width / 2)
    whole = {s.slug: s for s in everything()}
    assert set(column) == set(whole) and len(whole) > 136
    for slug, place in column.items():
        assert titles[place] == whole[slug].family.replace("-", " ")
        full = sum(share[slug, w] for w in (*WORDS, "not run yet"))
        assert full == pytest.approx(0.92)
        for row in book.runs(study=slug):
            verdicts = Counter(v["verdict"] for v in book.verdicts(row["id"]))
            for word in WORDS:
                assert share[slug, word] / full == pytest.approx(verdicts[word] / verdicts.total())


def test_tiles_do_not_cover_each_other_and_say_their_counts_in_signs(many):
    drawn = figure(catalogue())
    spots = {}
    for trace in bars(drawn):
        for slug, base, y in zip(trace["customdata"], trace["base"], trace["y"], strict=True):
            spots.setdefault(slug, set()).add((round(base), y))
    assert all(len(found) == 1 for found in spots.values())
    assert len(set.union(*spots.values())) == len(spots)
    (texts,) = [t["text"] for t in drawn["data"] if t.get("mode") == "text"]
    held = Ledger().verdicts(Ledger().runs(study="made-4")[0]["id"])
    n = Counter(v["verdict"] for v in held)
    wanted = f"✔{n['supported']}", f"✘{n['refuted']}"
    (tile,) = [text for text in texts if text.startswith("system-4<br>")]
    assert all(part in tile for part in wanted if not part.endswith("0"))
    themes = {t["name"]: t["marker"]["symbol"] for t in drawn["data"] if t.get("mode") == "markers"}
    assert set(themes) == set(THEMES) and len(set(themes.values())) == 3


def test_hovering_shows_the_question_as_text_and_never_as_markup(many):
    hover = dict(pair for t in bars(figure(catalogue())) for pair in zip(t["customdata"], t["hovertext"], strict=True))
    assert "Is &lt;b&gt;number&lt;/b&gt; 4 held?" in hover["made-4"] and "takes about 4 s" in hover["made-4"]


def test_what_does_not_pass_a_filter_fades_and_loses_its_name(many):
    drawn = figure(catalogue(q="zebras"))
    (texts,) = [t["text"] for t in drawn["data"] if t.get("mode") == "text"]
    assert len(texts) == 1 and texts[0].startswith("system-7")
    strong = [slug for t in bars(drawn) for slug, o in zip(t["customdata"], t["marker"]["opacity"], strict=True) if o > 0.06]
    assert set(strong) == {"made-7"}


def test_many_cards_are_divided_into_pages_that_the_address_knows(many):
    first, second = catalogue(), catalogue(page="2")
    cards = [{h.value for h in at.subheader} for at in (first, second)]
    assert len(cards[0]) == 24 and not cards[0] & cards[1]


@pytest.mark.parametrize(
    ("q", "place", "shown"),
    [("than not", "claim beats chance", "The faster arm is right more often **than** **not**"),
     ("LINE", "method", "told apart by a **line**"), ("distance", "knob gap", "**distance** of the blobs"),
     ("test 2024", "author", "**Test**")],
)  # fmt: skip
def test_a_result_says_where_it_matched(lab, q, place, shown):
    text = words(catalogue(q=q, family="blobs"))
    assert f"{place}: " in text and shown in text


def test_the_question_is_in_sight_and_comes_first(lab):
    (lab / "blobs" / "made_1.py").write_text(SOURCE.format(n=1, word="sooner", theme="stages", claims=1).lstrip())
    at = catalogue(q="blobs sooner")
    assert [h.value.replace("\\", "") for h in at.subheader] == [find("toy-blobs").paper.question, "Is <b>number</b> 1 held?"]
    assert "method: " in words(at) and "question: " not in words(at)


def test_the_limit_in_minutes_reads_past_runs_and_says_what_has_none(lab):
    text = words(catalogue(family="blobs", minutes="2"))
    assert "Without the limit of 2 min there is 1" in text and "have not yet" in text
    for seconds in (30, 50, 7200):
        ended(Ledger(), "toy-blobs", {"fast-wins": "supported"}, seconds=seconds)
    ended(Ledger(), "toy-blobs", {"fast-wins": "supported"}, seconds=9999, profile="full")
    at = catalogue(family="blobs", minutes="1")
    assert len(at.subheader) == 1 and "takes about 50 s" in words(at)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing (on Debian: apt-get install chromium)")
def test_a_click_on_a_tile_opens_its_study(many):
    from playwright.sync_api import sync_playwright

    spec = importlib.util.spec_from_file_location("screenshots", DASHBOARD / "screenshots.py")
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    with screenshots.server() as (address, _), sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, **screenshots.BROWSER)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator(".js-plotly-plot .textpoint text").filter(has_text="system-4").first.wait_for()
        screenshots.settled(page)
        box = page.locator(".js-plotly-plot .textpoint text").filter(has_text="system-4✔").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] + 6, box["y"] + 4)
        page.wait_for_url("**/study?study=made-4")
        page.get_by_role("heading", name="4 held?").wait_for()
        page.go_back()
        page.get_by_label("Search").wait_for()
        browser.close()
