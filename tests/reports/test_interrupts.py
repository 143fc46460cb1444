"""A report that is killed, or stopped with Ctrl-C: the same command goes on where it stopped. A real process, real kernels."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from claimlab.ledger import Ledger
from claimlab.reports import document, making

SLOW = (Path(__file__).parents[1] / "fixtures" / "light.py").read_text(encoding="utf-8").replace(
    "            yield Tick(", '            import os, time\n            while step and os.path.exists(os.environ["HELD"]):\n'
    "                time.sleep(0.05)\n            yield Tick(")  # fmt: skip


@pytest.fixture
def report(study, write_study, tmp_path, monkeypatch):
    """Starts the command on `light`, which runs freely, and `slow`, which waits while the file HELD is there."""
    held = tmp_path / "held"
    held.touch()
    monkeypatch.setenv("HELD", str(held))
    write_study("slow", SLOW)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "claimlab.cli", "report", "light", "slow", "--jobs", "2", "--force", "-o", str(out)]
    started = []

    def start():
        (out.parent / "log").touch()
        with (out.parent / "log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        return started[-1]

    yield start, out, held
    for one in started:
        one.kill()


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_where_it_stopped(report, blow, until):
    start, out, held = report
    ledger = Ledger()

    def half():
        rows = ledger.runs()
        ended = [r for r in rows if r["study"] == "light" and r["status"] == "finished"]
        return len(ended) == 2 and any(r["study"] == "slow" and r["status"] == "running" for r in rows)

    first = start()
    until(half)
    kernels = [p for p in psutil.Process(first.pid).children(recursive=True) if {"claimlab.warm", "ipykernel_launcher"} & set(p.cmdline())]
    assert kernels
    first.send_signal(blow)
    code = first.wait(timeout=200)
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in kernels))
    found = document.read(out / "report.json")
    if blow == signal.SIGKILL:
        assert code == -signal.SIGKILL and found is None and (out / making.NOTE).exists()  # nothing half written
    else:
        assert code == 130 and found["interrupted"] and {one["study"] for one in found["verdicts"]} == {"light"}
    held.unlink()
    assert start().wait(timeout=400) == 0, (out.parent / "log").read_text()
    found = document.read(out / "report.json")
    assert not found["interrupted"] and not (out / making.NOTE).exists()
    assert {one["study"]: one["reused"] for one in found["studies"]} == {"light": True, "slow": False}
    rows = ledger.runs()
    assert sum(r["study"] == "light" for r in rows) == 2  # its run and its control, each once
    going = ("running", "starting", "queued")
    until(lambda: (ledger.reap(), not [r for r in ledger.runs() if r["status"] in going])[1])
    log = (out.parent / "log").read_text()
    assert "4 runs: 2 are fresh and reused, 2 to run" in log and os.linesep + "[4/4] slow" in log
    ledger.close()
