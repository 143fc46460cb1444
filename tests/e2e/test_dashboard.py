"""The dashboard in a real Chromium: a run survives a reload and a restart of the server, and can be stopped."""

import re
import time

import pytest

from claimlab.ledger import ENDED, Ledger

pytestmark = pytest.mark.browser
SLUG = "toy-blobs"
RUN = re.compile(r"^(New run|Run)\b")  # its shortcut follows


@pytest.fixture
def page(browser):
    one = browser.new_page(viewport={"width": 1440, "height": 900})
    one.set_default_timeout(60_000)
    yield one
    one.close()


def started(page, address, steps=40):
    """Open the study, choose a number of steps, press Run; the id of the run."""
    page.goto(f"{address}/study?study={SLUG}")
    page.get_by_role("button", name=RUN).wait_for()
    if steps != 40:
        slider = page.get_by_role("slider", name="steps")
        slider.focus()
        slider.press("End")
        page.wait_for_url("**p.steps=*")
    page.get_by_role("button", name=RUN).click()
    page.wait_for_url("**run=*")
    return re.search(r"run=([\w-]+)", page.url)[1]


def ended(run, within=90):
    until = time.monotonic() + within
    while time.monotonic() < until:
        row = Ledger().run(run)
        if row["status"] in ENDED:
            return row
        time.sleep(0.2)
    raise AssertionError(f"the run is still {row['status']} at step {row['done']}")


def assert_nothing_is_missing(run):
    """Both arms hold each of their ticks, for every seed, up to the last one."""
    table = Ledger().table(run).query("metric == 'accuracy' and arm in ['slow', 'fast']")
    assert {(arm, seed) for arm in ("slow", "fast") for seed in range(5)} == set(table.groupby(["arm", "seed"]).groups)
    for _, rows in table.groupby(["arm", "seed"]):
        steps = sorted(rows["step"])
        assert steps == list(range(0, steps[-1] + 1, 100_000 // 25))


def test_a_run_survives_reload_and_restart_of_the_server_and_can_be_stopped(home, own_studies, page, screenshots):
    port = screenshots.free_port()
    with screenshots.server(port) as (address, _):
        run = started(page, address, steps=100_000)
        page.locator(".js-plotly-plot").first.wait_for()
        page.reload()
        page.get_by_role("button", name="Stop run").wait_for()
        assert page.url.endswith(run)
        before = Ledger().run(run)["done"]
    time.sleep(1)
    row = Ledger().run(run)
    assert row["status"] == "running" and row["done"] > before  # nobody serves, the run goes on
    with screenshots.server(port) as (address, _):
        page.goto(f"{address}/study?study={SLUG}&run={run}")
        page.get_by_text("running", exact=True).first.wait_for()
        page.get_by_role("link", name="Catalogue").wait_for()  # the navigation is there for a first visit by a deep link
        assert "100,000" in page.inner_text("[data-testid=stSidebar]")
        page.get_by_role("button", name="Stop run").click()
        assert ended(run)["status"] == "stopped"
        page.get_by_text("stopped", exact=True).first.wait_for()
        page.locator(".js-plotly-plot").first.wait_for()
        page.goto(f"{address}/study?study={SLUG}")
        page.get_by_text("Past runs").click()
        page.get_by_test_id("stDataFrame").wait_for()
    assert_nothing_is_missing(run)


def test_a_run_ends_with_verdicts_while_one_watches_and_the_catalogue_shows_them(home, own_studies, page, screenshots):
    with screenshots.server() as (address, _):
        run = started(page, address)
        page.get_by_text("finished", exact=True).first.wait_for()
        assert ended(run)["status"] == "finished"
        page.get_by_role("button", name="Just show me").last.click()
        page.get_by_text("n = 5", exact=False).first.wait_for()
        for verdict in (v for v in Ledger().verdicts(run)):
            page.get_by_text(verdict["sentence"]).first.wait_for()
        page.goto(f"{address}/?q=blobs+sooner")
        card = page.get_by_test_id("stMain")
        card.get_by_text("Last run just now").first.wait_for()
        for verdict in Ledger().verdicts(run):
            assert verdict["verdict"] in card.inner_text()
        page.get_by_role("link", name="Open the study").click()
        page.get_by_role("button", name=RUN).wait_for()
        assert f"study={SLUG}" in page.url


def test_a_search_goes_into_the_address(home, own_studies, page, screenshots):
    with screenshots.server() as (address, _):
        page.goto(address)
        page.get_by_role("link", name="Open the study").first.wait_for()
        page.get_by_label("Search").fill("blobs sooner")
        page.get_by_label("Search").press("Enter")
        page.wait_for_url(re.compile(r"q=blobs(\+|%20)sooner"))
        page.reload()
        page.get_by_text("Does a larger learning rate separate two blobs sooner?").first.wait_for()
        page.get_by_role("link", name="Open the study").wait_for()  # strict: exactly one card


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out_of_a_phone(home, own_studies, browser, screenshots, theme):
    Ledger().close()
    with screenshots.server() as (address, _):
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=theme)
        for where in ("", f"study?study={SLUG}"):
            page.goto(f"{address}/{where}")
            screenshots.settled(page)
            main = page.get_by_test_id("stMain")
            assert main.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
            # a list of tabs may be scrolled by itself
            wide = "t => t.getBoundingClientRect().right > 401 && !t.closest('[role=tablist]')"
            assert main.evaluate(f"e => [...e.querySelectorAll('p, h1, h2, h3')].filter({wide}).map(t => t.innerText)") == []
        page.close()


def test_a_run_is_paused_changed_undone_and_goes_on_to_the_same_end(home, own_studies, page, screenshots):
    with screenshots.server() as (address, _):
        run = started(page, address, steps=100_000)
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("paused", exact=True).first.wait_for()
        page.get_by_text("Change a setting").click()
        page.get_by_role("textbox", name="New value").fill("0.5")
        page.get_by_role("textbox", name="New value").press("Enter")
        page.get_by_role("button", name="Change this run").click()
        page.get_by_text("set lr = 0.5, took effect at step", exact=False).first.wait_for()
        book = Ledger()
        assert [e["payload"]["new"] for e in book.events(run) if e["kind"] == "set"]
        page.get_by_role("button", name="Undo last change").click()
        page.get_by_text(re.compile("rollback .* took effect")).first.wait_for()
        assert [e for e in book.events(run) if e["kind"] == "rollback"]
        page.get_by_role("button", name="Go on").click()
        page.get_by_text("running", exact=True).first.wait_for()
        page.get_by_role("button", name="Stop run").click()
        assert ended(run)["status"] == "stopped"
