"""The page Live in a real Chromium: watch, intervene, undo, fork, hand over, kill and resume; and the page Compare after it."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from claimlab.ledger import ENDED, Ledger

pytestmark = pytest.mark.browser
SLUG = "toy-blobs"
LONG = 100_000


@pytest.fixture
def someone(browser):
    """Opens a browser of its own each time it is called, as another person has one."""
    opened = []

    def open_one(width=1440):
        opened.append(browser.new_context(viewport={"width": width, "height": 1400}))
        page = opened[-1].new_page()
        page.set_default_timeout(60_000)
        return page

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def long_run(home, own_studies):
    """A run in a process of its own, as `claimlab run` starts it; (its id, the process)."""
    book = Ledger()
    command = [sys.executable, "-m", "claimlab.cli", "run", SLUG, "--no-kernel", "-p", f"steps={LONG}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any(r["status"] == "running" and r["done"] for r in book.runs()))
    yield book.runs()[0]["id"], child
    for row in book.runs():
        if row["status"] not in ENDED:
            book.command(row["id"], "drive", {"seconds": 0.0, "to": ""}, by="nobody")
            os.kill(row["pid"], signal.SIGKILL)
    child.kill()
    child.wait()


def until(true, within=60):
    end = time.monotonic() + within
    while not (found := true()):
        if time.monotonic() > end:
            raise AssertionError("it did not come about")
        time.sleep(0.1)
    return found


def test_watch_drive_intervene_undo_fork_and_hand_over(long_run, someone, screenshots):
    run, _ = long_run
    book = Ledger()
    with screenshots.server() as (address, _):
        page = someone()
        page.goto(f"{address}/live")
        page.get_by_role("button", name="Drive").click()
        page.get_by_text("You drive", exact=True).first.wait_for()
        assert page.url.endswith(run)  # the address names what is shown
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("paused", exact=True).first.wait_for()
        page.reload()
        page.get_by_text("You drive", exact=True).first.wait_for()  # a reload keeps the wheel

        slider = page.get_by_role("slider", name="rate")
        slider.focus()
        slider.press("End")
        page.get_by_text(f"claimlab steer {run} set rate=1.0").first.wait_for()
        page.get_by_role("button", name="Apply to this run").click()
        page.get_by_text(re.compile("set rate = 1, took effect at step")).first.wait_for()
        changes = [e for e in book.events(run) if e["kind"] == "set"]
        assert changes and all(e["payload"]["new"] == 1.0 for e in changes)
        page.get_by_role("button", name="Fork as it is").click()
        page.get_by_role("link", name=re.compile("fork, took effect at step")).wait_for()
        page.get_by_role("button", name="Undo last change").click()
        page.get_by_text(re.compile("rollback .* took effect")).first.wait_for()
        assert [c["ok"] for c in book.commands(run)] == [1] * len(book.commands(run))

        other = someone()
        other.goto(f"{address}/live?run={run}")
        other.get_by_text("you watch", exact=False).first.wait_for()
        assert other.get_by_role("button", name="Stop run").is_disabled()
        other.get_by_role("button", name="Ask for the wheel").click()
        page.get_by_role("button", name="Hand over").click()
        other.get_by_text("You drive", exact=True).first.wait_for()
        page.get_by_text("you watch", exact=False).first.wait_for()

        other.get_by_role("tab", name="Layers").click()
        other.get_by_role("button", name="Hold bias").click()
        other.get_by_role("button", name="Free bias").wait_for()
        other.get_by_role("tab", name="Lineage").click()
        other.get_by_role("link", name=re.compile("fork: no change")).wait_for()
        other.get_by_role("button", name="Stop run").click()
        until(lambda: book.run(run)["status"] == "stopped")
        other.get_by_role("button", name="Resume this run").wait_for()


def test_a_killed_worker_is_lost_and_resumed_from_its_checkpoint(long_run, someone, screenshots):
    run, child = long_run
    book = Ledger()
    with screenshots.server() as (address, _):
        page = someone(width=400)
        page.goto(f"{address}/live?run={run}")
        page.get_by_role("button", name="Checkpoint").click()
        page.get_by_text(re.compile("checkpoint, took effect")).first.wait_for()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        # one that is made now and then may have followed the one that was asked for
        at = max(sum(e["payload"]["arms"].values()) for e in book.events(run) if e["kind"] == "checkpoint")
        page.get_by_text("This run was lost", exact=False).first.wait_for()
        page.get_by_role("button", name="Resume this run").click()
        until(lambda: book.run(run)["status"] == "running" and book.run(run)["done"] > at)
        page.get_by_text("running", exact=True).first.wait_for()
        (back,) = [e["payload"] for e in book.events(run) if e["kind"] == "rollback"]
        assert back["by"] == "resume" and sum(back["to"].values()) == at
        main = page.get_by_test_id("stMain")
        assert main.evaluate("e => e.scrollWidth <= e.clientWidth + 1")


def test_a_change_is_replayed_on_other_seeds_and_compared(home, own_studies, someone, screenshots):
    from claimlab import live
    from claimlab.study import find

    book, study = Ledger(), find(SLUG)
    params = study.make({"steps": 300})
    run = book.start_run(study.slug, {**study.make({}).__dict__, "steps": 300}, seeds=range(5))
    sent = []

    def change(_lab, _arm, tick):
        if tick.step >= 100 and not sent:
            sent.append(book.command(run, "set", {"name": "lr", "value": 0.05}, arm="slow", by="test"))

    live.execute(study, params, book, run, on_tick=change)
    book.finish(run)
    book.set_status(run, "finished")
    with screenshots.server() as (address, _):
        page = someone()
        page.goto(f"{address}/live?run={run}")
        page.get_by_role("button", name="Replay on these seeds").click()
        until(lambda: any(e["kind"] == "replayed" for r in book.runs() for e in book.events(r["id"])), within=120)
        page.get_by_text("Replay on seeds 5..9", exact=False).first.wait_for()
        (answer,) = [e["payload"]["verdicts"] for r in book.runs() for e in book.events(r["id"]) if e["kind"] == "replayed"]
        page.get_by_text(answer[0]["sentence"]).first.wait_for()
        page.goto(f"{address}/compare?study={SLUG}")
        page.get_by_role("heading", name="What differs").wait_for()
        page.locator(".js-plotly-plot").first.wait_for()
