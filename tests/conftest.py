"""A lab of its own for each test: a folder of studies, and a home for runs."""

import shutil
import signal
import time
from pathlib import Path

import pytest

import claimlab  # noqa: F401 - before torch: it says how many threads torch takes
from claimlab.ledger import Ledger
from claimlab.study import find

FIXTURES = Path(__file__).parent / "fixtures"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job that a shell runs in the background ignores Ctrl-C, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait(condition, seconds=400):
    """Wait for a condition and return what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)
    return found


@pytest.fixture
def until():
    return wait


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home for runs; the ledger of the test lies there."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("CLAIMLAB_HOME", str(folder))
    monkeypatch.delenv("CLAIMLAB_LEDGER", raising=False)
    return folder


@pytest.fixture
def own_studies(tmp_path, monkeypatch) -> Path:
    """A folder of studies outside the package that holds the study `toy-blobs` (family `blobs`)."""
    folder = tmp_path / "studies"
    (folder / "blobs").mkdir(parents=True)
    shutil.copy(FIXTURES / "toy_blobs.py", folder / "blobs" / "toy_blobs.py")
    monkeypatch.setenv("CLAIMLAB_STUDIES", str(folder))
    return folder


@pytest.fixture
def study(own_studies):
    """The study `toy-blobs`, imported."""
    found = find("toy-blobs")
    assert found.module
    return found


@pytest.fixture
def ledger(home):
    """The ledger of the home."""
    opened = Ledger()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgres():
    """A running PostgreSQL server; see tests/postgres.py."""
    from postgres import BINARIES, MISSING, Server

    if BINARIES is None:
        pytest.skip(MISSING)
    server = Server()
    yield server.start()
    server.remove()
