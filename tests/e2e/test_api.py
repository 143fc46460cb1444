"""The API on a real server: a run of another process is followed, steered, and rescued by the agent of examples/."""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from claimlab import access
from claimlab.ledger import ALIVE, ENDED, Ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(home, own_studies, screenshots):
    """The address of a dashboard, and its process."""
    shutil.copy(ROOT / "tests" / "fixtures" / "toy_steep.py", own_studies / "blobs" / "toy_steep.py")
    with screenshots.server() as (address, process):
        yield address, process


@pytest.fixture
def training(home, own_studies):
    """Starts runs in processes of their own; ends them with the test."""
    begun = []

    def start(study, *knobs, commands=()):
        book = Ledger()
        run = book.start_run(study, dict(k.split("=") for k in knobs))
        for verb in commands:
            book.command(run, verb, {})
        book.close()
        words = [word for knob in knobs for word in ("-p", knob)]
        command = [sys.executable, "-m", "claimlab.cli", "run", study, "--no-kernel", "--run-id", run, *words]
        begun.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return run

    yield start
    for one in begun:
        one.kill()
        one.wait()


def ask(address, path, body=None, timeout=60):
    headers = {"Authorization": f"Bearer {access.token()}", "Content-Type": "application/json"}
    request = urllib.request.Request(address + path, body and json.dumps(body).encode(), headers)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as refused:
        answer = refused
    return answer.status, answer if path.partition("?")[0].endswith("/stream") else json.load(answer)


def until(found, within=120):
    """The first value of `found()` that counts as true."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it never came")


def messages(stream):
    """Server-sent events as they come, as (event, data)."""
    kind = ""
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        kind = value if name == "event" else kind
        if name == "data":
            yield kind, json.loads(value)


def test_a_run_is_followed_and_steered_while_the_pages_and_other_requests_are_served(served, training):
    address, _ = served
    run = training("toy-blobs", "steps=100000", "seeds=2")
    status, stream = ask(address, f"/api/runs/{run}/stream")
    assert status == 200 and stream.headers["Content-Type"].startswith("text/event-stream")
    told, applied = [], None
    for kind, data in messages(stream):
        told.append((kind, data))
        if applied is None and kind == "points":  # the run goes on, and the stream is open
            with urllib.request.urlopen(address, timeout=30) as page:
                assert "text/html" in page.headers["Content-Type"]
            assert ask(address, "/api/runs")[1]["runs"][0]["id"] == run
            slower = {"verb": "set", "arm": "fast", "payload": {"name": "lr", "value": 0.01}}
            status, applied = ask(address, f"/api/runs/{run}/commands", slower)
            assert status == 200 and (applied["old"], applied["new"]) == (0.05, 0.01), applied
        if kind == "event" and data["kind"] == "set":
            assert data["step"] == applied["step"] and data["payload"]["new"] == 0.01
            assert ask(address, f"/api/runs/{run}/commands", {"verb": "stop"})[0] == 200
    assert told[-1][0] == "end" and told[-1][1]["status"] == "stopped"
    book = Ledger()
    points = [point for kind, data in told if kind == "points" for point in data["points"]]
    assert [tuple(p) for p in points] == book.points_since(run)[0]
    assert [data["id"] for kind, data in told if kind == "event"] == [e["id"] for e in book.events(run)]
    assert ask(address, f"/api/runs/{run}/commands", {"verb": "pause"})[0] == 409


def test_the_server_keeps_a_path_that_climbs_to_itself_and_ends_although_a_stream_is_open(served, training):
    address, process = served
    host = address.removeprefix("http://")
    for path in ("/api/runs/../../etc/passwd", "/api/runs/..%2f..%2fapi_token", "/api/../api_token", "/app/static/../../runs/api_token"):
        line = http.client.HTTPConnection(host, timeout=30)
        line.putrequest("GET", path, skip_host=True)  # as it is: a client would tidy it up
        line.putheader("Host", host)
        line.putheader("Authorization", f"Bearer {access.token()}")
        line.endheaders()
        answer = line.getresponse()
        text = answer.read().decode()
        assert "root:" not in text and access.token() not in text and (answer.status in (400, 404) or "<html" in text), path
    run = training("toy-blobs", "steps=100000", "seeds=2")
    _, stream = ask(address, f"/api/runs/{run}/stream")
    assert next(messages(stream))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)


@pytest.mark.slow
def test_the_agent_goes_back_before_an_explosion_and_trains_on_with_less(served, training, tmp_path):
    address, _ = served
    run = training("toy-steep", "steps=1000000", commands=["pause"])
    book = Ledger()
    until(lambda: book.run(run)["status"] == "paused")
    command = [sys.executable, str(ROOT / "examples" / "agent.py"), run, "--url", address, "--token-file", str(access.token_file())]
    with (tmp_path / "said").open("w") as said:
        agent = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        happened = lambda kind: [e for e in book.events(run) if e["kind"] == kind]  # noqa: E731
        (safe,) = until(lambda: happened("checkpoint"))
        assert happened("drive")[-1]["payload"]["holder"] == "api agent"
        status, refused = ask(address, f"/api/runs/{run}/commands", {"verb": "resume", "by": "somebody"})
        assert status == 409 and "api agent drives" in refused["reason"]
        assert ask(address, f"/api/runs/{run}/commands", {"verb": "resume", "by": "agent"})[0] == 200
        cut = until(lambda: happened("set"))[0]
        (back,) = happened("rollback")
        assert back["payload"]["checkpoint"] == safe["payload"]["name"] and back["payload"]["by"] == "api agent"
        assert cut["payload"]["old"] == 2.001 and cut["payload"]["new"] == pytest.approx(0.6003) and cut["step"] == safe["step"]
        undone = [p for p in book.points_since(run)[0] if p[0] <= back["payload"]["cursor"]]
        assert max(p[5] for p in undone) > 3 * undone[0][5]  # it did explode
        now = until(lambda: [p for p in book.points_since(run, back["payload"]["cursor"])[0] if p[3] > 2000])
        assert max(p[5] for p in now) < undone[0][5] and book.run(run)["status"] in ALIVE
        agent.send_signal(signal.SIGINT)
        agent.wait(timeout=60)
        assert happened("drive")[-1]["payload"]["until"] <= time.time()  # and gives the wheel back
        assert ask(address, f"/api/runs/{run}/commands", {"verb": "stop", "by": "somebody"})[0] == 200
        until(lambda: book.run(run)["status"] in ENDED)
    finally:
        agent.kill()
        print((tmp_path / "said").read_text())
        book.close()
