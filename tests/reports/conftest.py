"""A study that takes no time and a report of it without kernels, so that a report's own logic is tested quickly."""

import threading
from pathlib import Path

import pytest

from claimlab import cells, runner
from claimlab.study import find

LIGHT = Path(__file__).parents[1] / "fixtures" / "light.py"


@pytest.fixture
def write_study(home, own_studies):
    """Writes a study of that name, with its notebook, and returns it."""

    def write(name: str, source: str = ""):
        (own_studies / "blobs" / f"{name}.py").write_text(source or LIGHT.read_text(encoding="utf-8"), encoding="utf-8")
        found = find(name)
        found.path.with_suffix(".ipynb").write_text(cells.template(found), encoding="utf-8")
        return find(name)

    return write


@pytest.fixture
def study(write_study):
    """The study `light`."""
    return write_study("light")


@pytest.fixture
def in_process(monkeypatch):
    """Runs without a kernel that leave a notebook behind; the list of what was run."""
    real, begun, lock = runner.run, [], threading.Lock()

    def run(slug, values=None, **how):
        begun.append((slug, how.get("control", False)))
        with lock:
            outcome = real(slug, values, **{**how, "kernel": False})
        book = how["ledger"]
        if not how.get("control"):
            copy = outcome.table.parent / "notebook.ipynb"
            copy.write_text(find(slug).notebook.read_text(encoding="utf-8"), encoding="utf-8")
            book.artifact(outcome.run, "notebook", str(copy))
            outcome = runner.Outcome(**{**vars(outcome), "notebook": copy})
        return outcome

    monkeypatch.setattr(runner, "run", run)
    return begun
