"""A ledger in another database: every table as it was, from SQLite to PostgreSQL and back, after an interruption too."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from sqlalchemy import Boolean, Float, Integer, create_engine, func, insert, select, text

from claimlab import cli, schema
from claimlab.exchange import moving
from claimlab.ledger import Ledger

TABLES = [t for t in schema.metadata.sorted_tables if t.name != "schema_version"]


def filled(url, rows=7):
    """A ledger with rows in every table that there is, whatever its columns are."""
    Ledger(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(insert(table), [{c.name: value(c, number) for c in table.columns} for number in range(rows)])
        connection.execute(schema.run.update().values(status="finished", params="{}", seeds="[0]", versions="{}"))
        connection.execute(schema.event.update().values(payload="{}"))
    engine.dispose()
    return url


def value(column, number):
    """Something of the column's type, another one for each row, as it may occur."""
    if column.name == "id" and column.table.name != "run":
        return 3 * number + 5  # with gaps, as after a rollback of the database
    if isinstance(column.type, Boolean):
        return number % 2 == 0
    if isinstance(column.type, Integer):
        return number
    if isinstance(column.type, Float):
        return None if column.nullable and number == 3 else 0.1 * number + 1e-17 + 1e9
    if column.name == "id":
        return f"2026010{number}-120000-{'Zz aä-_'[number % 7]}"  # ids of runs begin with their time
    return f"run-{number}" if column.name == "run" else f"{'Zz aä-_'[number % 7]}{column.name[:6]} Ωß\n{number}"


def copied(source, target, capsys):
    code = cli.main(["ledger", "copy", str(source), str(target), "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if code == 0 else said.err


def contents(url):
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {t.name: sorted(map(tuple, connection.execute(select(t))), key=repr) for t in TABLES}
    engine.dispose()
    return found


@pytest.fixture
def source(home, tmp_path):
    return filled(f"sqlite:///{tmp_path / 'old.db'}")


def test_every_table_arrives_as_it_was_and_comes_back(source, postgres, tmp_path, capsys):
    team = postgres.database()
    code, said = copied(tmp_path / "old.db", team, capsys)
    assert code == 0 and {name: one["rows"] for name, one in said["tables"].items()} == {t.name: 7 for t in TABLES}
    assert contents(team) == contents(source)
    code, back = copied(team, tmp_path / "back.db", capsys)
    assert code == 0 and contents(f"sqlite:///{tmp_path / 'back.db'}") == contents(source)
    assert [one["checksum"] for one in back["tables"].values()] == [one["checksum"] for one in said["tables"].values()]


def test_what_is_written_afterwards_is_numbered_behind(source, postgres, capsys):
    team = postgres.database()
    assert copied(source, team, capsys)[0] == 0
    book = Ledger(team)
    run = book.start_run("s", {})
    book.log(run, [("a", 0, 0, "loss", math.nan)])
    book.flush()
    book.event(run, "new")
    book.command(run, "stop", {})
    assert book.points_since(run)[1] > 3 * 6 + 5 and book.events(run)[0]["id"] > 3 * 6 + 5
    book.close()


def test_again_it_copies_what_is_new_alone(source, postgres, capsys):
    team = postgres.database()
    copied(source, team, capsys)
    book = Ledger(source)
    run = book.start_run("s", {})
    book.event(run, "late")
    book.set_status(run, "finished")
    code, said = copied(source, team, capsys)
    assert code == 0 and {name: one["copied"] for name, one in said["tables"].items() if one["copied"]} == {"run": 1, "event": 1}
    book.set_status(run, "failed", "what is there already has changed")
    book.close()
    code, said = copied(source, team, capsys)
    assert code == 2 and "8 rows of run that are not the first" in said


def test_a_copy_that_was_killed_goes_on_where_it_was(home, postgres, tmp_path, capsys):
    url, team = f"sqlite:///{tmp_path / 'old.db'}", postgres.database()
    book = Ledger(url)
    run = book.start_run("s", {})
    book.log(run, [("a", 0, step, "loss", step / 7) for step in range(60_000)])
    book.set_status(run, "finished")
    book.close()
    child = subprocess.Popen([sys.executable, "-m", "claimlab.cli", "ledger", "copy", url, team], env=os.environ)
    engine = create_engine(team, isolation_level="AUTOCOMMIT")
    there = select(func.count()).select_from(schema.metric)
    with engine.connect() as connection:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            made = connection.execute(text("SELECT to_regclass('metric')")).scalar() is not None
            if made and (begun := connection.execute(there).scalar()):
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
        begun = connection.execute(there).scalar()
    engine.dispose()
    code, said = copied(url, team, capsys)
    assert code == 0 and 0 < begun < 60_000
    assert said["tables"]["metric"]["rows"] == 60_000 and said["tables"]["metric"]["copied"] == 60_000 - begun
    assert said["tables"]["run"]["copied"] in (0, 1)
    one, other = Ledger(url), Ledger(team)
    assert one.table(run).equals(other.table(run))
    one.close(), other.close()


def test_the_copy_is_compared_and_a_difference_is_said(source, tmp_path, capsys):
    target = f"sqlite:///{tmp_path / 'new.db'}"
    Ledger(target).close()
    engine = create_engine(target)
    with engine.begin() as connection:  # a database that changes what it is given
        connection.execute(text("CREATE TRIGGER spoil AFTER INSERT ON verdict BEGIN UPDATE verdict SET claim = 'other'; END"))
    engine.dispose()
    code, said = copied(source, target, capsys)
    assert code == 2 and "verdict differs after the copy" in said


def test_what_must_not_be_copied_over_is_refused_and_left_alone(source, postgres, tmp_path, capsys):
    other, strange = filled(f"sqlite:///{tmp_path / 'other.db'}", rows=3), postgres.database()
    engine = create_engine(other)
    with engine.begin() as connection:
        connection.execute(text("UPDATE metric SET arm = 'mine'"))
    engine.dispose()
    engine = create_engine(strange)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE accounts (name TEXT)"))
    before = contents(other)
    for target, said in ((other, "3 rows of metric"), (strange, "tables accounts"), (source, "the same ledger"),
                         ("nonsense://x", "cannot be opened")):  # fmt: skip
        code, words = copied(source, target, capsys)
        assert code == 2 and said in words
    assert contents(other) == before
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")).scalar() == 1
    engine.dispose()
    code, words = copied(tmp_path / "nowhere.db", other, capsys)
    assert code == 2 and "is not there" in words and not (tmp_path / "nowhere.db").exists()


def test_a_run_that_goes_on_is_waited_for(source, tmp_path, capsys):
    book = Ledger(source)
    book.start_run("s", {}, status="running")
    book.close()
    code, words = copied(source, tmp_path / "new.db", capsys)
    assert code == 2 and "1 runs go on" in words and not (tmp_path / "new.db").exists()


def test_the_schedulers_own_table_comes_along(source, postgres, capsys):
    engine = create_engine(source)
    moving.SCHEDULER.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(moving.SCHEDULER), [{"id": "nightly", "next_run_time": 1.5e9 + 0.25, "job_state": b"\x80\x04\x00"}])
    engine.dispose()
    team = postgres.database()
    code, said = copied(source, team, capsys)
    assert code == 0 and said["tables"]["schedule_job"]["rows"] == 1
    engine = create_engine(team)
    with engine.connect() as connection:
        assert connection.execute(select(moving.SCHEDULER)).one() == ("nightly", 1.5e9 + 0.25, b"\x80\x04\x00")
    engine.dispose()
