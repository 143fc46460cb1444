"""The scheduler: what was missed is made up for once, no schedule overlaps itself across processes, a dead firing is made up for."""

import os
import pickle
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from claimlab.schedules import service as services
from claimlab.schedules.calendar import Calendar
from claimlab.schedules.cron import Cron
from claimlab.schedules.service import ByTheClock, Service

LIGHT = (Path(__file__).parents[1] / "fixtures" / "light.py").read_text(encoding="utf-8")
HELD = LIGHT.replace("            yield Tick(", "            import os, time\n            while os.path.exists(os.environ['HELD']):\n"
                     "                time.sleep(0.05)\n            yield Tick(")  # fmt: skip
TOML = '[nightly]\ncron = "30 2 * * *"\ntimezone = "Europe/Berlin"\nstudies = ["held"]\nretries = 0\n'
LONG_AGO = datetime(2026, 1, 5, 1, 30, tzinfo=UTC)


def missed(file):
    """Leave in the store what a scheduler leaves that lived long ago: every job was due then."""
    one = Service(file, print)
    one.scheduler.start(paused=True)
    one._sync()
    for job in one.scheduler.get_jobs():
        job.modify(next_run_time=LONG_AGO)
    one._end()


@pytest.fixture
def serve(home, tmp_path):
    """Starts a scheduler process that makes up for what was missed and ends."""
    started = []

    def start(file, *words):
        log = (tmp_path / f"log-{len(started)}").open("wb")
        command = [sys.executable, "-m", "claimlab.cli", "schedule", "run", "--file", str(file), *words]
        started.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        log.close()
        return started[-1]

    yield start
    for one in started:
        one.kill()
    book = Calendar()
    for row in book.firings("nightly"):
        if row["status"] == "running":  # in a session of its own, it would outlive the test
            os.kill(int(row["owner"].rpartition(":")[2]), signal.SIGKILL)
    book.close()


@pytest.fixture
def held(store, study, write_study, schedules, tmp_path, monkeypatch):
    """The schedule `nightly` of a study that waits while a file is there; the file of schedules, and that file."""
    file = tmp_path / "held"
    file.touch()
    monkeypatch.setenv("HELD", str(file))
    write_study("held", HELD)
    return schedules(TOML), file


@pytest.mark.slow
def test_of_two_schedulers_one_makes_up_for_what_was_missed_and_a_killed_firing_is_made_up_for(held, serve, tmp_path, until):
    file, hold = held
    missed(file)
    book = Calendar()
    both = [serve(file), serve(file)]
    running = until(lambda: [row for row in book.firings("nightly") if row["status"] == "running"])
    assert len(running) == 1 and running[0]["due"] == Cron("30 2 * * *", "Europe/Berlin").last(datetime.now(UTC)).timestamp()
    until(lambda: any(row["status"] == "running" for row in book.runs(study="held")))
    assert len(book.schedulers()) == 2 and len(book.firings("nightly")) == 1
    os.kill(int(running[0]["owner"].rpartition(":")[2]), signal.SIGKILL)
    again = until(lambda: [r for r in book.firings("nightly") if r["status"] == "running" and r["id"] != running[0]["id"]])
    assert [row["status"] for row in book.firings("nightly")] == ["running", "lost"]
    for one in both:  # killed themselves, they leave the firing alone
        one.kill()
        one.wait()
    hold.unlink()
    (row,) = until(lambda: [r for r in book.firings("nightly") if r["id"] == again[0]["id"] and r["status"] != "running"])
    assert (row["status"], row["code"]) == ("finished", 0), (Path(row["out"]) / "schedule.log").read_text()
    assert (Path(row["out"]) / "index.html").exists()
    kinds = until(lambda: [k for k in [[event["kind"] for event in book.events("schedule:nightly")]] if k[-1] == "finished"])[0]
    assert kinds.count("lost") == 1 and kinds.count("started") == 2
    assert serve(file, "--missed").wait(timeout=400) == 0  # nothing is left to be made up for
    assert len(book.firings("nightly")) == 2
    book.close()


class Child:
    """Stands in for the process of a firing."""

    born: list = []

    def __init__(self, words, **options):
        self.born.append(words)

    def wait(self):
        return 0


@pytest.fixture
def lab(store, own_studies, schedules, monkeypatch):
    monkeypatch.setattr(Child, "born", [])
    monkeypatch.setattr(services.subprocess, "Popen", Child)
    return schedules(TOML.replace("held", "toy-blobs"))


def test_many_missed_times_make_one_run_and_the_next_is_in_the_future(lab):
    missed(lab)
    said = []
    assert Service(lab, said.append).run(until_idle=True) == 0
    ((*_, moment),) = Child.born
    assert datetime.fromtimestamp(float(moment), UTC) == Cron("30 2 * * *", "Europe/Berlin").last(datetime.now(UTC))
    assert Service(lab, said.append).run(until_idle=True) == 0 and len(Child.born) == 1


def test_a_first_scheduler_makes_up_for_nothing_and_a_paused_schedule_rests(lab):
    assert Service(lab, print).run(until_idle=True) == 0 and not Child.born
    missed(lab)
    book = Calendar()
    book.pause("nightly")
    assert Service(lab, print).run(until_idle=True) == 0 and not Child.born
    book.pause("nightly", False)
    assert Service(lab, print).run(until_idle=True) == 0 and not Child.born  # what was due while it rested is over
    assert [event["kind"] for event in book.events("schedule:nightly")] == ["paused", "resumed"]
    book.close()


def test_a_schedule_that_still_runs_is_left_out_and_told(lab):
    missed(lab)
    book, said = Calendar(), []
    book.claim("nightly", 1.0)
    assert Service(lab, said.append).run(until_idle=True) == 0 and not Child.born
    assert any("still runs" in line for line in said) and book.events("schedule:nightly")[-1]["kind"] == "skipped"
    book.close()


def test_an_edited_file_is_read_again_and_a_broken_one_changes_nothing(lab):
    said = []
    one = Service(lab, said.append)
    one.scheduler.start(paused=True)
    one._sync()
    due = one.scheduler.get_job("nightly").next_run_time
    more = lab.read_text() + '[extra]\ncron = "@daily"\nall = true\n'
    for text, expected in ((more, {"nightly", "extra"}), ("[nightly]\ncron = 3\n", None),
                           ('[extra]\ncron = "@weekly"\nall = true\n', {"extra"})):  # fmt: skip
        lab.write_text(text)
        os.utime(lab, (one.stamp + 10, one.stamp + 10))
        one._tend()
        jobs = {job.id: job for job in one.scheduler.get_jobs()}
        assert set(jobs) == (expected or {"nightly", "extra"})
        assert expected == {"extra"} or jobs["nightly"].next_run_time == due
    assert jobs["extra"].trigger.cron.text == "@weekly" and any("cron = 3 is not allowed" in line for line in said)
    one._end()


def test_the_trigger_survives_the_store_and_jumps_over_what_was_missed():
    kept = pickle.loads(pickle.dumps(ByTheClock(Cron("* * * * *", "Europe/Berlin"))))
    now = datetime(2026, 10, 25, 1, 30, 20, tzinfo=UTC)
    first = kept.get_next_fire_time(now - timedelta(days=200), now)
    assert first == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)  # the last of 288,000 minutes
    assert kept.get_next_fire_time(first, now) == datetime(2026, 10, 25, 1, 31, tzinfo=UTC)
    assert kept.get_next_fire_time(None, now) == datetime(2026, 10, 25, 1, 31, tzinfo=UTC)
