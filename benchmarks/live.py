"""Steering, ledger and pages under load, measured in one run: `python benchmarks/live.py [--only NAME]`.

Figures of time are medians or percentiles; figures of peers (the extra `bench` of pyproject.toml) come from the same
run on the same machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Row, command

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 4.0  # of writing by each set of writers
METRICS = ("loss", "accuracy", "norm", "rate", "gap")
FORK = multiprocessing.get_context("fork")  # no torch in this process, so that a child costs little


AREA = "live"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# ---- writers and readers of a store


def write_ledger(url: str, name: str, seconds: float) -> int:
    from claimlab.ledger import Ledger

    book, step = Ledger(url), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        book.log(name, [("arm", 0, step, metric, 0.5 + step) for metric in METRICS])
        step += 1
    book.close()
    return step * len(METRICS)


def write_mlflow(url: str, name: str, seconds: float) -> int:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client, step = MlflowClient(url), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        client.log_batch(name, [Metric(metric, 0.5 + step, int(1000 * time.time()), step) for metric in METRICS])
        step += 1
    return step * len(METRICS)


def write_tensorboard(url: str, name: str, seconds: float) -> int:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer, step = EventFileWriter(str(Path(url) / name)), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for metric in METRICS:
            value = Summary(value=[Summary.Value(tag=metric, simple_value=0.5 + step)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=value))
        step += 1
    writer.close()
    return step * len(METRICS)


def _told(write, url: str, name: str, counts) -> None:
    counts.put(write(url, name, SECONDS))


def writing(write, url: str, names: list[str], read) -> tuple[float, list[tuple[float, int]]]:
    """Points a second of all writers together; of each of the reader's looks meanwhile the seconds, and the points it brought."""
    counts = FORK.Queue()
    writers = [FORK.Process(target=_told, args=(write, url, name, counts)) for name in names]
    for one in writers:
        one.start()
    looks = []
    while any(one.is_alive() for one in writers):
        began = time.monotonic()
        if read is not None:
            brought = read()
            looks.append((time.monotonic() - began, brought))
        time.sleep(0.1)
    total = sum(counts.get() for _ in names)
    return total / SECONDS, looks


def stores(folder: Path) -> Iterator[Row]:
    """Points a second from 1, 2 and 8 writers, and how long a reader waits meanwhile."""
    for count in (1, 2, 8):
        for peer in (_ledger, _mlflow, _tensorboard):
            try:
                write, url, names, read = peer(folder, count)
            except ImportError as error:
                yield Row(AREA, f"points, {count} writer(s)", peer.__name__[1:], None, "a second", note=f"needs {error.name}")
                continue
            rate, looks = writing(write, url, names, read)
            yield Row(AREA, f"points, {count} writer(s)", peer.__name__[1:], rate, "a second", note=_looked(looks))


def _looked(looks: list[tuple[float, int]]) -> str:
    if not looks:
        return ""
    spent, brought = (statistics.median(part) for part in zip(*looks, strict=True))
    return f"a reader's look takes {1e3 * spent:.1f} ms and brings {brought:,.0f} points"


def _ledger(folder: Path, count: int):
    from claimlab.ledger import Ledger

    url = f"sqlite:///{folder}/ledger-{count}.db"
    book = Ledger(url)
    names, cursor = [book.start_run("benchmark", {}) for _ in range(count)], 0

    def read() -> int:
        nonlocal cursor
        points, cursor = book.points_since(names[0], cursor)
        return len(points)

    return write_ledger, url, names, read


def _mlflow(folder: Path, count: int):
    import logging

    logging.disable(logging.INFO)
    from mlflow import MlflowClient

    url = f"sqlite:///{folder}/mlflow-{count}.db"
    client = MlflowClient(url)
    experiment = client.create_experiment("benchmark")
    names = [client.create_run(experiment).info.run_id for _ in range(count)]
    return write_mlflow, url, names, lambda: len(client.get_metric_history(names[0], "loss"))


def _tensorboard(folder: Path, count: int):
    importlib.import_module("tensorboard.summary.writer.event_file_writer")
    return write_tensorboard, str(folder / f"board-{count}"), [f"run-{k}" for k in range(count)], None


# ---- kill -9


def _acknowledging(url: str, name: str, pipe) -> None:
    from claimlab.ledger import Ledger

    book, step = Ledger(url), 0
    while True:
        book.log(name, [("arm", 0, step, metric, float(step)) for metric in METRICS])
        step += 1
        if step % 7 == 0:
            book.flush()
            os.write(pipe, step.to_bytes(8, "little"))


def kills(folder: Path, count: int = 100) -> Iterator[Row]:
    """Kill a writer at a random moment, again and again; every step that it had been told is safe must be there."""
    from sqlalchemy import create_engine, text

    from claimlab.ledger import Ledger

    url, when, lost, steps = f"sqlite:///{folder}/killed.db", random.Random(0), 0, 0
    names = [Ledger(url).start_run("benchmark", {}) for _ in range(count)]
    for name in names:
        inside, outside = os.pipe()
        child = FORK.Process(target=_acknowledging, args=(url, name, outside))
        child.start()
        time.sleep(0.15 + 0.1 * when.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        os.close(outside)
        told = b"".join(iter(lambda end=inside: os.read(end, 1 << 16), b""))
        os.close(inside)
        safe = int.from_bytes(told[-8:], "little") if told else 0
        there = len({row[3] for row in Ledger(url).points_since(name)[0]})
        lost, steps = lost + max(0, safe - there), steps + safe
    with create_engine(url).connect() as connection:
        whole = connection.execute(text("PRAGMA integrity_check")).scalar()
    yield Row(AREA, f"acknowledged steps lost in {count} kills", "ledger", lost, "steps", goal=0, note=f"of {steps:,}; integrity {whole}")


# ---- steering


def effect(folder: Path, count: int = 30) -> Iterator[Row]:
    """From queueing a command to its effect, one a second, and how long a step takes, on a running study.

    A change is preceded by a checkpoint of all arms, here some 40 MB.
    """
    from claimlab.ledger import ALIVE, Ledger

    book = Ledger()
    worker = _worker("mixup")
    try:
        run = _begun(book)
        first, began = book.run(run)["done"], time.monotonic()
        time.sleep(3)
        step = (time.monotonic() - began) / max(1, book.run(run)["done"] - first)
        for verb, payload in (("drive", {"seconds": 0.0}), ("set", {"name": "lr", "value": 1e-3})):
            for _ in range(count):
                book.command(run, verb, payload, arm="mixup" if verb == "set" else None)
                time.sleep(1)
            while any(c["answered"] is None for c in book.commands(run)) and book.run(run)["status"] in ALIVE:
                time.sleep(0.05)
            waits = [c["answered"] - c["time"] for c in book.commands(run) if c["verb"] == verb and c["ok"]]
            note = f"p50 {1e3 * statistics.median(waits):.0f} ms; a step takes {1e3 * step:.0f} ms"
            worst = 1e3 * percentile(waits, 0.95)
            yield Row(AREA, f"command to effect: {verb}, p95", "claimlab", worst, "ms", goal=1e3 * step + 50, note=note)
    finally:
        worker.kill()
        worker.wait()


def _worker(slug: str, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "claimlab.cli", "run", slug, "--no-kernel", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _begun(book) -> str:
    while True:
        found = [row for row in book.runs(status="running", limit=1) if row["done"]]
        if found:
            return found[0]["id"]
        time.sleep(0.1)


# ---- pages: a browser that speaks Streamlit's protocol and draws nothing


class Visitor:
    """One session of the dashboard over its WebSocket."""

    def __init__(self, address: str, page: str, query: str):
        self.address, self.page, self.query, self.timers, self.hash = address, page, query, {}, ""

    async def __aenter__(self):
        import websockets

        where = self.address.replace("http", "ws") + "/_stcore/stream"
        self.socket = await websockets.connect(where, subprotocols=["streamlit"], max_size=None, origin=self.address)
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def run(self, fragment: str = "") -> tuple[float, int]:
        """Run the page, or one part of it: seconds until it has finished, and bytes received."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        ask = BackMsg()
        ask.rerun_script.query_string, ask.rerun_script.page_name = self.query, self.page
        ask.rerun_script.fragment_id, ask.rerun_script.is_auto_rerun = fragment, bool(fragment)
        ask.rerun_script.page_script_hash = self.hash  # else a page that begins anew would be the first one
        began, size, kind, told = time.monotonic(), 0, "", ForwardMsg()
        await self.socket.send(ask.SerializeToString())
        while kind != "script_finished" or told.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
            content = await asyncio.wait_for(self.socket.recv(), 60)
            size += len(content)
            told.ParseFromString(content)
            kind = told.WhichOneof("type")
            if kind == "navigation":
                self.hash = told.navigation.page_script_hash
            if kind == "auto_rerun":
                self.timers[told.auto_rerun.fragment_id] = told.auto_rerun.interval
        return time.monotonic() - began, size


async def visited(address: str, page: str, query: str = "") -> float:
    """Seconds that the first run of a page takes for somebody who has just come."""
    async with Visitor(address, page, query) as one:
        return (await one.run())[0]


def server():
    """The dashboard, served as for its screenshots: (address, process)."""
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "dashboard" / "screenshots.py")
    screenshots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshots)
    return screenshots.server()


def crowded(folder: Path, runs: int = 1000, points: int = 1_000_000) -> Iterator[Row]:
    """Each page over a ledger of many runs and points, warm."""
    from claimlab.ledger import Ledger
    from claimlab.study import find

    book, study = Ledger(), find("mixup")
    usual = {knob.name: knob.default for knob in study.knobs}
    for k in range(runs):
        run = book.start_run(study.slug, usual | {"alpha": k % 32}, seeds=range(5))
        rows = [("erm" if j % 2 else "mixup", j // 2 % 5, j // 10, "test_accuracy", 0.5 + j / 1e4) for j in range(points // runs)]
        book.log(run, rows)
        book.finish(run)
        known = {"effect": k / runs, "low": k / runs - 0.1, "high": k / runs + 0.1, "n": 5, "values": [], "sentence": "", "reason": ""}
        book.record_verdicts(run, [{"claim": c.id, "verdict": "undecided", **known} for c in study.claims])
        book.set_status(run, "finished")
    pages = {"": "", "study": f"study=mixup&run={run}", "live": "", "compare": "study=mixup", "reports": ""}

    async def visit(address: str) -> list[Row]:
        found = []
        for page, query in pages.items():
            took = [await visited(address, page, query) for _ in range(5)]
            case = f"page over {runs:,} runs and {points:,} points"
            found.append(Row(AREA, case, page or "catalogue", statistics.median(took[1:]), "s", goal=1.0))
        return found

    with server() as (address, _):
        yield from asyncio.run(visit(address))


def viewers(folder: Path, count: int = 30, seconds: int = 20) -> Iterator[Row]:
    """Many viewers of one run that goes on, each with a tick a second."""
    from claimlab.ledger import Ledger

    worker = _worker("mixup")
    try:
        run = _begun(Ledger())
        with server() as (address, process):
            ticks, spent = asyncio.run(_watched(address, process.pid, run, count, seconds))
    finally:
        worker.kill()
        worker.wait()
    note = f"a tick p50 {1e3 * statistics.median(ticks):.0f} ms, p95 {1e3 * percentile(ticks, 0.95):.0f} ms"
    yield Row(AREA, f"{count} viewers at 1 Hz: the server's share", "claimlab", 100 * spent / seconds, "% of a core", goal=25, note=note)


async def _watched(address: str, pid: int, run: str, count: int, seconds: int) -> tuple[list[float], float]:
    ticks: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        every = [await stack.enter_async_context(Visitor(address, "study", f"study=mixup&run={run}")) for _ in range(count)]
        for one in every:
            await one.run()

        async def watch(one: Visitor) -> None:
            for second in range(1, seconds + 1):
                began = time.monotonic()
                for part, interval in list(one.timers.items()):
                    if second % round(interval) == 0:
                        took, _ = await one.run(part)
                        ticks.append(took)
                await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))

        before = _cpu(pid)
        await asyncio.gather(*(watch(one) for one in every))
        return ticks, _cpu(pid) - before


def _cpu(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


CASES = {"stores": stores, "kills": kills, "effect": effect, "viewers": viewers, "crowded": crowded}


def rows(only: str | None = None) -> Iterator[Row]:
    for name, case in CASES.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["CLAIMLAB_HOME"] = folder
                yield from case(Path(folder))


if __name__ == "__main__":
    command(__doc__, CASES, rows)
