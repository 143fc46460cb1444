"""Every notebook of the lab at the smoke profile, cell by cell, in this warm process; and its form."""

import ast
import re
import sys

import nbformat
import pytest

from claimlab import params
from claimlab.study import PACKAGE, catalogue

STUDIES = [s for s in catalogue() if s.path.is_relative_to(PACKAGE)]
HEADINGS = ("the idea", "by hand", "the method", "predict", "run", "what we see", "verdict", "what the scale hides", "exercises")


@pytest.fixture(params=STUDIES, ids=lambda s: s.slug)
def study(request):
    return request.param


def cells(study, kind: str) -> list:
    return [c for c in nbformat.read(study.notebook, 4).cells if c.cell_type == kind]


@pytest.fixture
def main():
    """IPython takes the place of the main module; whoever starts processes later needs the real one."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


def test_a_notebook_runs_at_smoke(study, home, main):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    sys.modules["__main__"] = shell.user_module
    shell.reset(new_session=False)
    for cell in cells(study, "code"):
        source = cell.source
        if "parameters" in cell.metadata.get("tags", []):
            source = params.cell(study.Params, params.preset(study.Params, "smoke"))
        with capture_output():
            done = shell.run_cell(source)
        assert done.success, f"{done.error_before_exec or done.error_in_exec!r} in\n{cell.source}"
    assert shell.user_ns["lab"].verdicts()


def test_a_notebook_has_the_skeleton_in_order(study):
    text = "\n".join(c.source for c in cells(study, "markdown")).lower()
    found = re.findall(r"^##+\s+(.*)$", text, flags=re.M)
    places = [next((i for i, line in enumerate(found) if name in line), None) for name in HEADINGS]
    assert None not in places, f"missing: {[n for n, p in zip(HEADINGS, places, strict=True) if p is None]}"
    assert places == sorted(places)


def test_a_notebook_keeps_its_budgets(study):
    code = cells(study, "code")
    own = [c.source for c in code if "claimlab" not in c.metadata]
    prose = re.sub(r"\$[^$]*\$|\(https?:[^)]*\)", " ", "\n".join(c.source for c in cells(study, "markdown")))
    words = len(re.findall(r"[A-Za-z][A-Za-z'’-]*", prose))
    assert 8 <= len(code) <= 14
    assert max(len(source.splitlines()) for source in own) <= 12
    assert sum(len(source.splitlines()) for source in own) <= 100
    assert 600 <= words <= 1500
    figures = sum(source.count("figure(") for source in own)
    assert 3 <= figures <= 6


def test_a_notebook_defines_no_method_and_asserts_by_hand(study):
    trees = [ast.parse(re.sub(r"^[%!].*$", "", c.source, flags=re.M)) for c in cells(study, "code")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert not [n for n in nodes if isinstance(n, ast.ClassDef)]
    assert all(n.end_lineno - n.lineno < 6 for n in nodes if isinstance(n, ast.FunctionDef))
    assert [n for n in nodes if isinstance(n, ast.Assert)], "the numbers done by hand are asserted"


def test_a_notebook_says_how_many_designs_were_tried(study):
    text = "\n".join(c.source for c in cells(study, "markdown")).lower()
    assert re.search(r"\b(designs?|settings?)\b", text) and "development seeds" in text
