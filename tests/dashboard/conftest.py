"""Makes the dashboard's modules importable, as `streamlit run` does, and serves its API in this process."""

import sys
import threading
import time
from pathlib import Path

import anyio
import httpx
import pytest

from claimlab import access, live
from claimlab.ledger import Ledger
from claimlab.study import find

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dashboard"))


class Client:
    """Sends requests to the API in this process, each to its end; with the token unless told otherwise."""

    def __init__(self, app):
        self.app, self.token = app, {"authorization": f"Bearer {access.token()}"}

    def request(self, method, path, *, token=True, **options):
        headers = (self.token if token else {}) | options.pop("headers", {})

        async def send():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8501", timeout=60) as one:
                return await one.request(method, path, headers=headers, **options)

        return anyio.run(send)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)


@pytest.fixture
def client(home, own_studies):
    """A client of the API; the runs are those of an empty home."""
    import api
    from starlette.applications import Starlette

    api._book.cache_clear()
    yield Client(Starlette(routes=api.routes()))
    api._book.cache_clear()


@pytest.fixture
def book(home):
    """The ledger of the home."""
    opened = Ledger()
    yield opened
    opened.close()


@pytest.fixture
def going(book, own_studies):
    """The id of a run of `toy-blobs` that goes on in a thread until the test ends."""
    study, knobs = find("toy-blobs"), {"steps": 100_000, "seeds": 2}
    run = book.start_run(study.slug, knobs, seeds=[0, 1])

    def train():
        try:
            live.execute(study, study.make(knobs), Ledger(), run)
        except live.Stopped as stopped:
            Ledger().set_status(run, "stopped", str(stopped))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while (book.run(run)["done"] or 0) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    yield run
    book.command(run, "drive", {"seconds": 0.0, "to": ""}, by="api ann")
    book.command(run, "stop", {})
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A page shows what was written just now, and not what was read a moment before for somebody else."""
    from panels import glance

    monkeypatch.setattr(glance, "AGE", 0.0)
    monkeypatch.setattr(glance, "FEW", 0.0)
    monkeypatch.setattr(glance, "MANY", 0.0)
