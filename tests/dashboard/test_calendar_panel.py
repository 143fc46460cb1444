"""Schedules on the reports page: when each is due, what came of it, and to let it rest, go on, or run now."""

import json
import subprocess
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import cli
from claimlab.reports import making
from claimlab.schedules.calendar import Calendar

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
TOML = '[nightly]\ncron = "30 2 * * mon"\ntimezone = "Europe/Berlin"\nstudies = ["toy-blobs"]\nprofile = "smoke"\n'


@pytest.fixture
def calendar(home, own_studies, tmp_path, monkeypatch):
    """The calendar of an empty home, and a file of one schedule."""
    st.cache_data.clear()
    st.cache_resource.clear()
    file = tmp_path / "schedules.toml"
    file.write_text(TOML, encoding="utf-8")
    monkeypatch.setenv("CLAIMLAB_SCHEDULES", str(file))
    book = Calendar()
    yield book, file
    book.close()


def page() -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.switch_page("app_pages/reports.py").run()
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.error, at.code)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def test_a_schedule_shows_when_it_is_due_and_what_came_of_it(calendar):
    book, _ = calendar
    book.end(book.claim("nightly", 1_000_000.0), "failed", 1, "1 of 1 studies did not finish: <toy>", 3)
    at = page()
    shown = words(at)
    assert "nightly" in shown and "next Mon" in shown and "02:30 CE" in shown and "1 study, profile smoke" in shown
    assert "failed, begun just now: 1 of 1 studies did not finish: <toy>" in shown
    assert "No scheduler runs" in shown
    book.serve()
    assert "1 scheduler serves this ledger" in words(at.run())


def test_a_schedule_rests_and_goes_on(calendar):
    book, _ = calendar
    at = page()
    at.button(key="rest-nightly").click().run()
    assert not at.exception and book.paused() == {"nightly"} and "paused" in words(at)
    at.button(key="rest-nightly").click().run()
    assert not at.exception and book.paused() == set() and "next Mon" in words(at)


def test_run_now_starts_a_process_that_the_command_line_understands(calendar, monkeypatch):
    _, file = calendar
    born = []

    def popen(command, **options):
        born.append((command, options))
        return subprocess.CompletedProcess(command, 0)

    at = page()
    monkeypatch.setattr(subprocess, "Popen", popen)
    at.button(key="now-nightly").click().run()
    assert not at.exception
    ((command, options),) = born
    given = cli.parser().parse_args(command[3:])
    assert (given.what, given.names, given.file) == ("run", ["nightly"], file)
    assert options["start_new_session"] and not options.get("shell")


def test_one_that_runs_shows_how_far_it_is_and_is_not_started_again(calendar, home):
    book, _ = calendar
    book.claim("nightly", 1_000_000.0)
    out = home / "reports" / "nightly"
    out.mkdir(parents=True)
    (out / making.NOTE).write_text(json.dumps({"share": 0.25, "over": 1, "runs": 4, "left": 90.0}))
    at = page()
    assert at.button(key="now-nightly").disabled
    assert [bar.proto.text for bar in at.get("progress")] == ["1 of 4 runs, about 1 min 30 s left"]


def test_without_a_file_the_panel_says_what_to_write_and_a_broken_one_is_told(calendar, own_studies):
    _, file = calendar
    file.write_text(TOML.replace("30 2", "30 25"), encoding="utf-8")
    assert "hour '25' must be" in words(page())
    file.unlink()
    at = page()
    example = next(c.value for c in at.code if "[nightly]" in c.value)
    file.write_text(example.replace('email = ["ann@example.org"]', ""), encoding="utf-8")
    assert "30 2 * * mon-fri" in words(page())  # the example is one that works
