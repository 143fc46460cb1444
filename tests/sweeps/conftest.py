"""The study `toy-plane`, whose effects have a closed form, and a ledger that knows sweeps."""

import json
import shutil
from pathlib import Path

import pytest

from claimlab import claims
from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.sweeps.book import Book

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture
def plane(own_studies, home):
    """The study `toy-plane`, imported."""
    (own_studies / "planes").mkdir()
    shutil.copy(FIXTURES / "toy_plane.py", own_studies / "planes" / "toy_plane.py")
    found = find("toy-plane")
    assert found.module
    return found


@pytest.fixture
def book(home):
    """The ledger of the home, with sweeps."""
    opened = Book()
    yield opened
    opened.close()


@pytest.fixture
def answered():
    """Run a plan in this process and give its points as a finished sweep has them."""

    def run(study, made, only=None):
        found = []
        for i in range(len(made.points)):
            arms = [arm for arm in (only.arm, only.baseline) if arm] if only else None
            lab = Experiment(study, study.make(made.values(i)), made.seeds, arms).run()
            judged = {c.id: json.loads(json.dumps(claims.judge(c, lab.table).as_dict())) for c in ([only] if only else study.claims)}
            found.append({"number": i, "params": made.values(i), "run": f"run-{i}", "status": "finished", "reason": "", "judged": judged})
        return found

    return run
