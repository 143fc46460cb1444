"""The ledger: nothing acknowledged is lost, many processes write, damage and disagreement are reported and never overwritten.

All of it on SQLite and on PostgreSQL, but for what is about SQLite's files or PostgreSQL's server.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import create_engine, text

from claimlab import schema
from claimlab.ledger import Ledger, LedgerError


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, home, monkeypatch):
    """The URL of an empty ledger; CLAIMLAB_LEDGER names it."""
    found = f"sqlite:///{home / 'ledger.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres").database()
    monkeypatch.setenv("CLAIMLAB_LEDGER", found)
    home.mkdir()
    return found


@pytest.fixture
def ledger(url):
    opened = Ledger()
    yield opened
    opened.close()


@pytest.fixture
def file(home):
    """A ledger in SQLite's file."""
    opened = Ledger()
    yield opened
    opened.close()


def raw(url, statement, **values):
    """The rows of a statement that goes to the database past the ledger."""
    engine = create_engine(url)
    with engine.begin() as connection:
        found = connection.execute(text(statement), values)
        rows = [tuple(row) for row in found] if found.returns_rows else []
    engine.dispose()
    return rows


def awaited(ledger, run):
    """The commands that a run sees once word of them has come; PostgreSQL sends it after the commit."""
    until = time.monotonic() + 30
    while not (found := ledger.pending(run)) and time.monotonic() < until:
        pass
    return found


def fill(ledger, run, steps, arm="a"):
    for step in range(steps):
        ledger.log(run, [(arm, seed, step, "loss", seed + step / 7) for seed in range(2)])
    ledger.flush()


def test_points_come_back_as_they_were_nan_included(ledger):
    run = ledger.start_run("s", {"alpha": 8.0})
    ledger.log(run, [("a", 0, 1, "loss", 0.1), ("a", 1, 1, "loss", math.nan), ("b", 0, 2, "acc", math.inf)])
    table = ledger.table(run)
    assert table["value"][0] == 0.1 and table["value"][1:].isna().all()
    assert table[["study", "arm", "seed", "step", "metric"]].values.tolist() == [
        ["s", "a", 0, 1, "loss"], ["s", "a", 1, 1, "loss"], ["s", "b", 0, 2, "acc"],
    ]  # fmt: skip


def test_points_are_buffered_and_committed_within_fifty_calls(ledger, monkeypatch):
    monkeypatch.setattr("claimlab.ledger.SECONDS", 1e9)
    run, other = ledger.start_run("s", {}), Ledger(ledger.url)
    for step in range(49):
        ledger.log(run, [("a", 0, step, "loss", 0.0)])
    assert other.points_since(run) == ([], 0)
    ledger.log(run, [("a", 0, 49, "loss", 0.0)])
    assert len(other.points_since(run)[0]) == 50
    other.close()


def test_a_cursor_sees_each_point_once(ledger):
    run = ledger.start_run("s", {})
    fill(ledger, run, 3)
    first, cursor = ledger.points_since(run)
    fill(ledger, run, 2)
    second, end = ledger.points_since(run, cursor)
    assert (len(first), len(second)) == (6, 4) and ledger.points_since(run, end) == ([], end)


def test_a_closed_run_is_parquet_and_a_summary(ledger, home):
    import pandas as pd

    run = ledger.start_run("s", {})
    fill(ledger, run, 20)
    live = ledger.table(run)
    ledger.finish(run)
    pd.testing.assert_frame_equal(pd.read_parquet(home / run / "table.parquet"), live)
    pd.testing.assert_frame_equal(ledger.table(run), live)
    (line,) = ledger.summary(run)
    assert (line["last"], line["low"], line["high"], line["n"]) == pytest.approx((0.5 + 19 / 7, 0.0, 1 + 19 / 7, 2))
    if ledger.path is not None:
        assert (home / "ledger.db-wal").stat().st_size == 0


def test_runs_are_listed_newest_first_with_their_facts(ledger):
    ids = [ledger.start_run(name, {"k": i}, seeds=[0, 1], control=i == 2) for i, name in enumerate("aba")]
    assert [r["id"] for r in ledger.runs()] == ids[::-1]
    assert [r["params"] for r in ledger.runs(study="a")] == [{"k": 2}, {"k": 0}]
    assert ledger.run(ids[2])["control"] and ledger.run(ids[0])["seeds"] == [0, 1]
    ledger.set_status(ids[1], "failed", "it broke")
    assert ledger.runs(status="failed")[0]["reason"] == "it broke" and ledger.run(ids[1])["ended"]
    with pytest.raises(LedgerError, match="did you mean"):
        ledger.run(ids[0][:-1])
    with pytest.raises(ValueError, match="not one of"):
        ledger.set_status(ids[0], "sleeping")


def test_verdicts_events_artifacts_come_back(ledger):
    run = ledger.start_run("s", {})
    ledger.record_verdicts(run, [{"claim": "c", "verdict": "supported", "effect": 0.1}])
    ledger.record_verdicts(run, [{"claim": "c", "verdict": "undecided", "effect": None}], control=True)
    ledger.record_verdicts(run, [{"claim": "c", "verdict": "refuted", "effect": -0.1}])
    assert sorted((v["verdict"], v["control"]) for v in ledger.verdicts(run)) == [("refuted", False), ("undecided", True)]
    ledger.event(run, "set", step=3, arm="a", payload={"old": 1})
    (event,) = ledger.events(run)
    assert event["payload"] == {"old": 1} and ledger.events(run, after=event["id"]) == []
    ledger.artifact(run, "report", "x.html")
    assert [(a["kind"], a["path"]) for a in ledger.artifacts(run)] == [("report", "x.html")]


@pytest.mark.parametrize(
    "verb", ["set", "pause", "resume", "step", "checkpoint", "rollback", "fork", "reset", "freeze", "evaluate", "stop"]
)
def test_a_command_of_any_verb_is_seen_by_the_run_and_answered(ledger, verb):
    run, driver = ledger.start_run("s", {}), Ledger(ledger.url)
    assert ledger.pending(run) == []
    number = driver.command(run, verb, {"name": "lr", "value": 0.1}, arm="a", by="me")
    (seen,) = awaited(ledger, run)
    assert (seen["verb"], seen["payload"], seen["arm"], seen["by"]) == (verb, {"name": "lr", "value": 0.1}, "a", "me")
    ledger.answer(number, True, step=7, old=0.2, new=0.1)
    (answered,) = driver.commands(run)
    assert answered["ok"] and (answered["step"], answered["old"], answered["new"]) == (7, 0.2, 0.1)
    assert ledger.pending(run) == []
    driver.close()


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", "timed out", "lost"])
def test_a_command_that_meets_no_run_any_more_is_refused_and_no_other(ledger, status):
    run, other = ledger.start_run("s", {}), ledger.start_run("s", {})
    done, late, elsewhere = ledger.command(run, "pause", {}), ledger.command(run, "stop", {}), ledger.command(other, "stop", {})
    ledger.answer(done, True, step=3)
    ledger.set_status(run, status)
    too_late = ledger.command(run, "resume", {})
    found = {c["id"]: (c["ok"], c["reason"]) for c in ledger.commands(run)}
    refusal = (False, f"the run is {status}; only a run that goes on can be steered")
    assert found == {done: (True, ""), late: refusal, too_late: refusal}
    assert [c["id"] for c in ledger.pending(other)] == [elsewhere]


def test_polling_costs_little_beside_a_step(ledger):
    run = ledger.start_run("s", {})
    ledger.pending(run)
    statement = {"n": 0}
    from sqlalchemy import event

    event.listen(ledger._engine, "before_cursor_execute", lambda *_: statement.__setitem__("n", statement["n"] + 1))
    for _ in range(1000):
        ledger.pending(run)
    assert statement["n"] == 0  # only SQLite's counter of changes is read, or PostgreSQL's notifications


def test_a_silent_run_is_lost_and_a_live_one_is_not(ledger):
    dead, alive, queued = (ledger.start_run("s", {}, status=s) for s in ("running", "running", "queued"))
    raw(ledger.url, "UPDATE run SET heartbeat = heartbeat - 10 WHERE id IN (:one, :other)", one=dead, other=queued)
    assert ledger.reap(3.0) == [dead]
    assert ledger.run(dead)["status"] == "lost" and "no sign of life" in ledger.run(dead)["reason"]
    assert ledger.run(alive)["status"] == "running" and ledger.run(queued)["status"] == "queued"


def test_a_run_whose_process_dies_before_our_eyes_is_lost_sooner_and_one_from_elsewhere_is_not(ledger):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here, elsewhere = (ledger.start_run("s", {}, status="running") for _ in range(2))
    for run, pid in ((here, child.pid), (elsewhere, 2**22 + 1)):
        raw(ledger.url, "UPDATE run SET pid = :pid, heartbeat = heartbeat - 1.5 WHERE id = :run", run=run, pid=pid)
    assert ledger.reap(8.0) == []
    child.kill()
    child.wait()
    assert ledger.reap(8.0) == [here] and ledger.run(here)["reason"] == "its process has died"
    assert ledger.run(elsewhere)["status"] == "running"


# ---- many processes, and death


WRITER = """
import sys
from claimlab.ledger import Ledger
book, run, arm = Ledger(sys.argv[1]), sys.argv[2], sys.argv[3]
step = 0
while step < int(sys.argv[4]):
    book.log(run, [(arm, 0, step, "loss", step)])
    if step % 20 == 19:
        book.flush()
        print(step + 1, flush=True)
    step += 1
book.flush()
"""


def writer(ledger, run, arm, steps):
    command = [sys.executable, "-c", WRITER, ledger.url, run, arm, str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_two_processes_write_at_the_same_time(ledger):
    run = ledger.start_run("s", {})
    both = [writer(ledger, run, arm, 2000) for arm in "ab"]
    assert [p.wait(timeout=60) for p in both if p.communicate()] == [0, 0]
    counts = ledger.table(run).groupby("arm")["step"].agg(["count", "nunique"])
    assert (counts == 2000).all().all()


def test_kill_in_mid_run_loses_nothing_that_was_acknowledged(ledger):
    for _ in range(3):
        run = ledger.start_run("s", {})
        child = writer(ledger, run, "a", 10**9)
        acknowledged = 0
        until = time.monotonic() + 0.5
        while time.monotonic() < until or not acknowledged:
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        acknowledged = int((child.communicate()[0].strip().splitlines() or [acknowledged])[-1])
        steps = ledger.table(run)["step"].tolist()
        assert steps == list(range(len(steps))) and len(steps) >= acknowledged > 0
    if ledger.path is not None:
        assert raw(ledger.url, "PRAGMA integrity_check") == [("ok",)]


def test_the_log_stays_bounded_while_it_is_read(file, home):
    run, reader = file.start_run("s", {}), Ledger(file.url)
    for step in range(4000):
        file.log(run, [("a", 0, step, "loss", 0.0)])
        if step % 500 == 0:
            reader.points_since(run)
    assert (home / "ledger.db-wal").stat().st_size < 8 << 20
    reader.close()


# ---- damage


def test_a_corrupt_file_is_moved_aside_and_never_overwritten(home):
    home.mkdir()
    for number, rubbish in enumerate((b"this is no database" * 100, b"nor is this" * 200), start=1):
        (home / "ledger.db").write_bytes(rubbish)
        opened = Ledger()
        assert opened.runs() == []
        opened.close()
        assert (home / f"ledger.db.corrupt-{number}").read_bytes() == rubbish


def test_a_newer_schema_is_refused_and_left_alone(ledger):
    run = ledger.start_run("s", {})
    ledger.close()
    raw(ledger.url, "UPDATE schema_version SET version = 999")
    with pytest.raises(LedgerError, match="schema 999"):
        Ledger(ledger.url)
    assert raw(ledger.url, "SELECT id FROM run") == [(run,)]


def test_a_ledger_of_version_one_is_brought_forward_with_its_runs(url):
    raw(url, "CREATE TABLE schema_version (version INTEGER NOT NULL)")
    raw(url, "INSERT INTO schema_version VALUES (1)")
    engine = create_engine(url)
    old = [f"{c.name} {c.type.compile(engine.dialect)}" for c in schema.run.columns if c.name not in ("parent", "branch")]
    engine.dispose()
    raw(url, f"CREATE TABLE run ({', '.join(old)})")
    raw(url, "INSERT INTO run (id, study, params, status, started) VALUES ('old-run', 's', '{}', 'finished', 1.0)")
    opened = Ledger()
    assert opened.run("old-run")["parent"] is None
    opened.start_run("s", {}, parent="old-run", branch="lr/2")
    opened.close()
    assert raw(url, "SELECT version FROM schema_version") == [(schema.VERSION,)]


def test_a_full_disk_fails_cleanly_and_keeps_what_was_written(file):
    ledger = file
    run = ledger.start_run("s", {})
    fill(ledger, run, 10)
    connection = ledger._connection.connection.driver_connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    with pytest.raises(LedgerError, match="full"):
        for _ in range(200):
            fill(ledger, run, 100)
    other = Ledger(ledger.url)
    assert len(other.table(run)) >= 20 and other.run(run)["id"] == run
    other.close()
    ledger._points = []


def test_a_home_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CLAIMLAB_HOME", str(tmp_path / "file" / "runs"))
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger()


def test_a_password_is_not_shown_in_an_error(monkeypatch):
    with pytest.raises(LedgerError) as error:
        Ledger("sqlite+nonsense://user:secret@host/db")
    assert "secret" not in str(error.value)


# ---- PostgreSQL's server


@pytest.fixture
def team(postgres, home, monkeypatch):
    """A ledger on PostgreSQL."""
    monkeypatch.setenv("CLAIMLAB_LEDGER", postgres.database())
    opened = Ledger()
    yield opened
    opened.close()


def test_a_server_that_crashes_is_a_sentence_and_what_was_buffered_is_written_when_it_is_back(team, postgres):
    run = team.start_run("s", {})
    fill(team, run, 3)
    assert team.pending(run) == []
    postgres.stop("immediate")
    try:
        with pytest.raises(LedgerError, match="cannot be written"):
            team.log(run, [("a", 0, 3, "loss", 1.0)])
            team.flush()
        with pytest.raises(LedgerError, match="cannot be read"):
            team.runs()
    finally:
        postgres.start()
    team.flush()
    assert len(team.points_since(run)[0]) == 7  # none twice, none lost
    driver = Ledger(team.url)
    number = driver.command(run, "stop", {})
    assert [c["id"] for c in awaited(team, run)] == [number]  # the bell rings again
    driver.close()


def test_many_processes_may_open_a_new_database_at_the_same_time(postgres, home):
    url = postgres.database()
    code = f"from claimlab.ledger import Ledger; print(len(Ledger({url!r}).runs()))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == ["0"] * 4


def test_a_reader_that_follows_the_last_number_misses_nothing_that_is_committed_late(team):
    """Numbers are given out when a row is written, and seen when it is committed: a second writer must wait for the first."""
    run, other = team.start_run("s", {}), Ledger(team.url)
    late = create_engine(team.url)
    with late.begin() as connection:
        team._alone(connection, run)
        values = {"run": run, "kind": "early", "time": 0.0, "payload": "{}"}
        connection.execute(schema.event.insert().values(**values))
        writer = threading.Thread(target=other.event, args=(run, "second"))
        writer.start()
        until = time.monotonic() + 30
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while raw(team.url, waiting) == [(0,)] and time.monotonic() < until:
            pass
        assert team.events(run) == []
    writer.join(timeout=30)
    late.dispose()
    other.close()
    assert [e["kind"] for e in team.events(run)] == ["early", "second"]


@pytest.mark.parametrize("spelling", ["postgresql", "postgres"])
def test_a_url_may_leave_out_the_driver(postgres, home, spelling):
    opened = Ledger(postgres.database().replace("postgresql+psycopg", spelling))
    assert opened.runs() == [] and opened.path is None
    opened.close()


def test_a_server_that_is_not_there_is_said_without_the_password(home):
    with pytest.raises(LedgerError, match="cannot be opened") as error:
        Ledger("postgresql+psycopg://me:secret@127.0.0.1:9/lab")
    assert "secret" not in str(error.value)


def test_a_missing_driver_is_named_with_its_extra(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LedgerError, match=r"pip install 'claimlab\[postgres\]'"):
        Ledger("postgresql+psycopg://me@127.0.0.1:9/lab")
