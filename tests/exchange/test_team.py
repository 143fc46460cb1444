"""What a team does on PostgreSQL: studies, queries, sweeps with processes of their own, schedules that no two machines run at once."""

import json

import pytest

from claimlab import cli
from claimlab.ledger import Ledger
from claimlab.schedules.calendar import Calendar


@pytest.fixture
def team(study, home, postgres, monkeypatch):
    """The URL of an empty ledger on PostgreSQL, which CLAIMLAB_LEDGER names."""
    url = postgres.database()
    monkeypatch.setenv("CLAIMLAB_LEDGER", url)
    return url


def test_a_study_runs_is_asked_and_read(team, home, capsys):
    assert cli.main(["run", "toy-blobs", "--no-kernel", "--profile", "smoke", "-p", "seeds=5", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["status"] == "finished" and not (home / "ledger.db").exists()
    assert cli.main(["sql", "select count(*) as n from metrics", "--csv"]) == 0
    assert int(capsys.readouterr().out.split()[1]) > 0
    assert cli.main(["runs", "show", run["run"], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["verdicts"]) == 2


def test_a_sweep_runs_in_processes_of_its_own(team, capsys):
    words = ["sweep", "toy-blobs", "--grid", "rate=0.01,0.1", "--profile", "smoke", "--seeds", "5", "--jobs", "1", "--json"]
    assert cli.main(words) == 0
    capsys.readouterr()
    book = Ledger(team)
    assert sorted((row["params"]["rate"], row["status"]) for row in book.runs()) == [(0.01, "finished"), (0.1, "finished")]
    book.close()


def test_a_schedule_that_is_due_is_run_by_one_of_two_schedulers(team):
    one, other = Calendar(), Calendar()
    first = one.claim("nightly", 100.0)
    assert first is not None and other.claim("nightly", 100.0) is None  # due once
    assert other.claim("nightly", 200.0) is None  # it still runs
    one.end(first, "finished", 0, "", 1)
    assert other.claim("nightly", 100.0) is None and (second := other.claim("nightly", 200.0)) is not None
    assert [f["id"] for f in one.firings("nightly")] == [second, first]
    one.pause("nightly")
    assert other.paused() == {"nightly"}
    one.close(), other.close()
