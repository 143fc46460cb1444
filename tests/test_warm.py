"""Forked kernels: what they start with, how they end, and that none outlives whoever asked for it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager

import psutil
import pytest

from claimlab import warm
from claimlab.engine import OwnInterpreter

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernels are forked on Linux only")


@pytest.fixture(scope="module")
def pool():
    with warm.kernels():
        yield warm._running[-1]


@asynccontextmanager
async def kernel(folder, **env):
    manager = OwnInterpreter()
    with (folder / "log.txt").open("ab") as log:
        await manager.start_kernel(env={**os.environ, **env}, cwd=str(folder), stdout=log, stderr=log)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def said(client, code: str) -> str:
    """What a cell prints."""
    parts = []
    reply = await client.execute_interactive(
        code, timeout=60, output_hook=lambda message: parts.append(message["content"].get("text", ""))
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(parts).strip()


def test_a_forked_kernel_has_imported_and_its_folder_environment_and_log_are_its_own(pool, tmp_path):
    code = "import os, sys, random; print('torch' in sys.modules, os.getcwd(), os.environ['ANSWER'], random.random(), os.getppid())"

    async def ask(folder, answer):
        folder.mkdir()
        async with kernel(folder, ANSWER=answer) as (manager, client):
            assert isinstance(manager.provisioner.process, warm.Forked)
            found = (await said(client, code)).split()
            await said(client, f"os.write(1, b'past Python {answer}\\n');")
            return found

    one, other = (asyncio.run(ask(tmp_path / name, name)) for name in ("one", "other"))
    assert one[:3] == ["True", str(tmp_path / "one"), "one"] and other[:3] == ["True", str(tmp_path / "other"), "other"]
    assert one[3] != other[3] and one[4] == other[4] == str(pool.process.pid)
    assert "past Python one" in (tmp_path / "one" / "log.txt").read_text()
    assert "past Python" not in (tmp_path / "other" / "log.txt").read_text().replace("past Python other", "")


def test_without_a_pool_a_kernel_starts_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_running", [])

    async def ask():
        async with kernel(tmp_path) as (manager, client):
            assert isinstance(manager.provisioner.process, subprocess.Popen)
            return await said(client, "import sys; print('torch' in sys.modules)")

    assert asyncio.run(ask()) == "False"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_how_a_kernel_ended_is_known(pool, tmp_path, number):
    async def ask():
        async with kernel(tmp_path) as (manager, _):
            process = manager.provisioner.process
            assert process.poll() is None
            process.send_signal(number)
            return process.wait(20), process.poll(), await manager.is_alive()

    assert asyncio.run(ask()) == (-number, -number, False)


def test_an_interrupt_reaches_the_cell_and_the_kernel_goes_on(pool, tmp_path):
    begun = asyncio.Event()

    def heard(message):
        if message["content"].get("text", "").startswith("begun"):
            begun.set()

    async def ask():
        async with kernel(tmp_path) as (manager, client):
            waiting = asyncio.ensure_future(client.execute_interactive("import time; print('begun', flush=True); time.sleep(60)",
                                                                       timeout=60, output_hook=heard))  # fmt: skip
            await asyncio.wait_for(begun.wait(), 30)
            manager.provisioner.process.send_signal(signal.SIGINT)
            reply = await waiting
            return reply["content"]["ename"], await said(client, "print(6 * 7)")

    assert asyncio.run(ask()) == ("KeyboardInterrupt", "42")


def test_no_kernel_outlives_the_process_that_forked_it(tmp_path, until):
    async def ask():
        async with kernel(tmp_path) as (manager, _):
            process = manager.provisioner.process
            warm._running[-1].process.kill()
            return process.wait(20), process.pid

    with warm.kernels():
        code, pid = asyncio.run(ask())
    assert code == -signal.SIGKILL
    until(lambda: not psutil.pid_exists(pid), 30)


def test_no_kernel_outlives_the_one_who_asked_for_it(tmp_path, until):
    script = tmp_path / "asks.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time
        from claimlab import warm
        with warm.kernels():
            with open(os.devnull, "wb") as nothing:
                one = warm.fork(sys.argv[1], env=dict(os.environ), cwd="/", stdout=nothing, stderr=nothing)
            print(one.pid, warm._running[-1].process.pid, flush=True)
            time.sleep(60)
        """)
    )
    asking = subprocess.Popen([sys.executable, str(script), str(tmp_path / "connection.json")], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in asking.stdout.readline().split()]
    assert len(pids) == 2
    asking.kill()
    asking.wait()
    asking.stdout.close()
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)


def test_a_pool_that_can_not_fork_is_no_obstacle(monkeypatch, tmp_path):
    with warm.kernels():
        warm._running[-1].process.kill()
        warm._running[-1].process.wait()
        with open(os.devnull, "wb") as nothing:
            assert warm.fork(str(tmp_path / "none"), env={}, cwd="/", stdout=nothing, stderr=nothing) is None
            monkeypatch.setattr(warm, "_running", [])
            assert warm.fork(str(tmp_path / "none"), env={}, cwd="/", stdout=nothing, stderr=nothing) is None
            monkeypatch.undo()
