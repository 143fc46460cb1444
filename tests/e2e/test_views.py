"""Watching a network and trying an input of one's own in a real Chromium; and two people in front of one run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from playwright.sync_api import expect

from claimlab import live
from claimlab.ledger import Ledger
from claimlab.study import find

pytestmark = pytest.mark.browser
SLUG = "toy-blobs"


@pytest.fixture
def page(browser):
    one = browser.new_page(viewport={"width": 1440, "height": 1400})
    one.set_default_timeout(60_000)
    yield one
    one.close()


@pytest.fixture
def going(home, own_studies):
    """The id of a run in a process of its own."""
    book = Ledger()
    command = [sys.executable, "-m", "claimlab.cli", "run", SLUG, "--no-kernel", "-p", "steps=100000"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not any(row["done"] for row in book.runs(status="running")) and time.monotonic() < until:
        time.sleep(0.05)
    yield book.runs()[0]["id"]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_the_picture_moves_while_one_looks_and_stands_still_while_the_run_is_paused(going, page, screenshots):
    with screenshots.server() as (address, _):
        page.goto(f"{address}/study?study={SLUG}&run={going}")
        page.get_by_text("renewed once a second while you look").first.wait_for()
        frame = page.locator(".st-key-picture")
        frame.locator(".js-plotly-plot").first.wait_for()
        told = frame.get_by_text("seed 0, step", exact=False).first
        first = told.inner_text()
        page.wait_for_function("old => !document.body.innerText.includes(old)", arg=first)
        page.get_by_role("button", name="Checkpoint").click()
        page.get_by_text("checkpoint, took effect", exact=False).first.wait_for()
        page.get_by_text("Which network").click()
        slider = page.get_by_role("slider", name="Moment")
        slider.focus()
        slider.press("Home")
        frame.get_by_text("at a checkpoint").first.wait_for()
        expect(frame.locator(".js-plotly-plot")).to_have_count(1, timeout=60_000)  # the picture of before may be there for a moment


def test_networks_of_a_finished_run_answer_a_table_of_ones_own(home, own_studies, page, screenshots, tmp_path):
    study, book, values = find(SLUG), Ledger(), dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=2)
    assert study.module
    run = book.start_run(SLUG, values, seeds=range(2))
    live.execute(study, study.make(values), book, run)
    book.finish(run)
    book.set_status(run, "finished")
    (tmp_path / "point.csv").write_text("x,y\n2.5,2.5\n")
    (tmp_path / "song.csv").write_text("x,y\nla,la\n")
    with screenshots.server() as (address, _):
        page.goto(f"{address}/study?study={SLUG}&run={run}")
        page.get_by_role("tab", name="Try it yourself").click()
        page.locator("input[type=file]").set_input_files(tmp_path / "song.csv")
        page.get_by_text("line 2", exact=False).first.wait_for()
        page.locator("input[type=file]").set_input_files(tmp_path / "point.csv")
        page.get_by_text("of 4 members)", exact=False).or_(page.get_by_text("of 2 members)", exact=False)).first.wait_for()


def test_a_drawing_by_pointer_and_by_keyboard_is_told_to_the_page(home, own_studies, page, screenshots):
    path = own_studies / "blobs" / "toy_blobs.py"
    ink = 'Trial("image", answer=inked, shape=(28, 28), arms=("slow",))}\n'
    answer = "\n\ndef inked(net, params, value):\n    share = sum(map(sum, value)) / 784\n"
    answer += "    return {'ink': share, 'dark': 1 - share}\n\n\n"
    path.write_text(path.read_text().split("TRY = ")[0] + answer + 'TRY = {"draw": ' + ink)
    study, book, values = find(SLUG), Ledger(), dict(rate=0.05, gap=2.0, poison=-1, steps=10, seeds=2)
    run = book.start_run(SLUG, values, seeds=range(2))
    live.execute(study, study.make(values), book, run)
    book.finish(run)
    book.set_status(run, "finished")
    with screenshots.server() as (address, _):
        page.goto(f"{address}/study?study={SLUG}&run={run}")
        page.get_by_role("tab", name="Try it yourself").click()
        pad = page.get_by_role("application")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
        page.mouse.up()
        page.get_by_text("slow says dark (2 of 2 members)").first.wait_for()
        page.get_by_role("button", name="Clear the pad").click()
        page.get_by_text("slow says dark", exact=False).first.wait_for(state="detached")
        pad.focus()
        pad.press("ArrowUp")
        pad.press("Space")
        page.get_by_text("slow says dark (2 of 2 members)").first.wait_for()
