"""One firing of a schedule: tried again with longer and longer pauses, alone, told to the ledger and by e-mail."""

import dataclasses
import email
import email.policy
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller

from claimlab.reports import making
from claimlab.schedules import firing, plan
from claimlab.schedules.calendar import Calendar, owner

LIGHT = (Path(__file__).parents[1] / "fixtures" / "light.py").read_text(encoding="utf-8")
BAD = LIGHT.replace("            yield Tick(", "            import os\n            if os.path.exists(os.environ['BROKEN']):\n"
                    "                raise RuntimeError('no luck today')\n            yield Tick(")  # fmt: skip
TOML = """
[nightly]
cron = "30 2 * * *"
studies = ["light", "bad"]
jobs = 1
retries = 2
backoff = 60
"""


@pytest.fixture
def nightly(study, write_study, schedules, in_process, tmp_path, monkeypatch):
    """The schedule `nightly` of `light` and of `bad`, which fails while the file `broken` is there; and that file."""
    broken = tmp_path / "broken"
    broken.touch()
    monkeypatch.setenv("BROKEN", str(broken))
    write_study("bad", BAD)
    return plan.read(schedules(TOML))["nightly"], broken


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between attempts, which are not waited for; a function called after each."""
    found = []

    def rest(this, seconds):
        found.append(seconds)
        return rest.then() if len(found) == rest.after else False

    rest.then, rest.after = (lambda: False), 0
    monkeypatch.setattr(firing, "_rest", rest)
    found_rest = rest
    return found, found_rest


def kinds():
    book = Calendar()
    try:
        return [event["kind"] for event in book.events("schedule:nightly")], book.firings("nightly")
    finally:
        book.close()


def test_a_failure_is_tried_again_after_longer_and_longer_pauses_and_only_what_failed_runs_again(nightly, pauses, in_process):
    one, broken = nightly
    found, rest = pauses
    rest.after, rest.then = 2, lambda: broken.unlink()
    assert firing.fire(one, 1000.0, lambda text: None) == 0
    assert found == [60, 120]
    events, (row,) = kinds()
    assert events == ["started", "retry", "retry", "finished"]
    assert (row["status"], row["attempts"], row["code"], row["due"]) == ("finished", 3, 0, 1000.0)
    assert sorted(in_process) == [("bad", False)] * 3 + [("bad", True), ("light", False), ("light", True)]
    assert (one.out / "report.json").exists()


def test_what_fails_for_good_is_told_by_exit_code_event_and_reason(nightly, pauses):
    one, _ = nightly
    said = []
    assert firing.fire(one, 1000.0, said.append) == 1
    events, (row,) = kinds()
    assert events[-1] == "failed" and row["reason"] == "1 of 2 studies did not finish: bad" and row["attempts"] == 3
    assert said[-1] == "nightly: failed: 1 of 2 studies did not finish: bad"
    assert "no luck today" in (one.out / "summary.md").read_text(encoding="utf-8")


def test_a_signal_between_two_attempts_ends_it(nightly, pauses):
    one, _ = nightly
    found, rest = pauses
    rest.after, rest.then = 1, lambda: True
    assert firing.fire(one, 1000.0, lambda text: None) == 130 and kinds()[1][0]["status"] == "stopped"


@pytest.fixture
def post(monkeypatch):
    letters = []

    class Box:
        async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
            letters.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            return "250 OK"

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    for name, value in {"HOST": "127.0.0.1", "PORT": str(port), "FROM": "lab@example.org", "SECURITY": "none"}.items():
        monkeypatch.setenv(f"CLAIMLAB_SMTP_{name}", value)
    server = Controller(Box(), hostname="127.0.0.1", port=port)
    server.start()
    yield letters
    server.stop()


def test_a_failure_is_sent_once_with_the_report_that_there_is(nightly, pauses, post):
    one = dataclasses.replace(nightly[0], email=("ann@example.org",))
    assert firing.fire(one, 1000.0, lambda text: None) == 1
    (letter,) = post
    assert letter["Subject"].strip() == "claimlab nightly: failed after 3 attempts: 1 of 2 studies did not finish: bad"
    assert "no luck today" in letter.get_body(("plain",)).get_content()
    assert "image/png" in [part.get_content_type() for part in letter.walk()]


def test_a_report_that_is_refused_is_not_tried_again_and_sent_without_one(nightly, pauses, post):
    one = dataclasses.replace(nightly[0], email=("ann@example.org",))
    one.out.mkdir(parents=True)
    with making._alone(one.out):
        assert firing.fire(one, 1000.0, lambda text: None) == 2
    (letter,) = post
    assert not pauses[0] and "failed after 1 attempts" in letter["Subject"]
    assert "another report is being written there" in letter.get_content()


def test_of_many_who_would_begin_the_same_schedule_one_does(store):
    books = [Calendar() for _ in range(8)]
    barrier = threading.Barrier(8)

    def race(n):
        barrier.wait()
        return books[n].claim("nightly", 1000.0 + n % 2)  # two times that are due, and none may overlap

    with ThreadPoolExecutor(8) as pool:
        won = [one for one in pool.map(race, range(8)) if one is not None]
    assert len(won) == 1
    books[0].end(won[0], "finished", 0, "", 1)
    assert books[1].claim("nightly", books[0].firings("nightly")[0]["due"]) is None  # not again for the same time
    assert books[1].claim("nightly", 2000.0) is not None and books[2].claim("weekly", 2000.0) is not None
    for book in books:
        book.close()


def test_a_firing_is_lost_when_its_process_has_died_here_or_is_silent_elsewhere(store):
    book = Calendar()
    here, dead, away = (book.claim(name, 1.0) for name in ("here", "dead", "away"))
    host = owner().rpartition(":")[0]
    book._change(dead, owner=f"{host}:{2**22 - 1}")
    book._change(away, owner="elsewhere:1")
    assert book.lost() == ["dead"] and book.lost() == []
    book._change(away, heartbeat=1.0)
    assert book.lost() == ["away"] and book.firings("here")[0]["status"] == "running"
    assert book.claim("dead", 2.0) is not None  # the way is free again
    book.close()


def test_what_takes_too_long_is_stopped_and_told(study, write_study, schedules, in_process, monkeypatch):
    write_study("endless", LIGHT.replace("range(self.p.steps)", "__import__('itertools').count()").replace(
        "            yield Tick(", "            __import__('time').sleep(0.01)\n            yield Tick("))  # fmt: skip
    one = plan.read(schedules('[nightly]\ncron = "@daily"\nstudies = ["endless"]\n'))["nightly"]
    monkeypatch.setattr(firing, "BEAT", 0.2)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does
    try:
        assert firing.fire(dataclasses.replace(one, hours=0), 1000.0, lambda text: None) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    (row,) = kinds()[1]
    assert row["status"] == "timed out" and "it took longer than 0 h" in row["reason"]
