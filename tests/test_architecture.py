"""Who may import whom, and the budgets on lines."""

import ast
from pathlib import Path

import pytest

from claimlab import contract
from claimlab.study import PACKAGE, catalogue

ROOT = PACKAGE.parent.parent
CORE = [p for p in sorted(PACKAGE.rglob("*.py")) if not {"studies", "parts"} & set(p.relative_to(PACKAGE).parts)]
# what runs, reports and schedules studies has a budget of its own: no study stands on it
OPERATIONS = {"admission.py", "commands", "exchange", "reports", "schedules", "sweeps"}
UPPER = ("study", "notebook", "cells", "export", "runner", "engine", "job", "provenance", "cli", "console", "contract", "scaffold", "live",
         "experiment", "readme", "remote", "replay", "checkpoints", "steering", "verbs", "views", *OPERATIONS)  # fmt: skip


def claimlab_imports(path: Path) -> set[str]:
    """First-level claimlab modules that a file imports anywhere."""
    names = contract.imports(ast.parse(path.read_text(encoding="utf-8")))
    return {n.split(".")[1] for n in names if n.startswith("claimlab.") and n.count(".") >= 1}


def others(path: Path) -> set[str]:
    names = contract.imports(ast.parse(path.read_text(encoding="utf-8")))
    return {n.split(".")[0] for n in names} - {"claimlab"}


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", CORE, ids=named)
def test_the_core_knows_no_study(path):
    assert "studies" not in claimlab_imports(path)


@pytest.mark.parametrize(
    "path", [PACKAGE / "params.py", PACKAGE / "claims.py", *sorted((PACKAGE / "training").glob("*.py"))], ids=named
)
def test_the_ground_stands_on_libraries_alone(path):
    import sys

    allowed = set(sys.stdlib_module_names) | {"numpy", "pandas", "scipy", "torch"}
    assert others(path) <= allowed
    assert claimlab_imports(path) <= ({"training", "params"} if path.parent.name == "training" else set())


@pytest.mark.parametrize("name", ["models", "data", "figures", "ledger", "schema", "database"])
def test_the_middle_does_not_look_up(name):
    paths = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).glob("*.py"))
    for path in paths:
        assert not claimlab_imports(path) & set(UPPER), path.name


@pytest.mark.parametrize("path", sorted((PACKAGE / "parts").glob("*.py")), ids=named)
def test_parts_know_methods_and_no_study(path):
    assert not claimlab_imports(path) & set(UPPER)


def test_every_public_name_in_parts_has_two_importing_studies():
    users: dict[tuple[str, str], set[str]] = {}
    for study in catalogue():
        if study.path.is_relative_to(PACKAGE):
            for name in {n for path in contract.parts(study) for n in contract.imports(ast.parse(path.read_text(encoding="utf-8")))}:
                if name.startswith("claimlab.parts.") and name.count(".") == 3:
                    users.setdefault(tuple(name.split(".")[2:]), set()).add(study.slug)
    for path in (PACKAGE / "parts").glob("[a-z]*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        for name in public:
            assert len(users.get((path.stem, name), ())) >= 2, f"{path.stem}.{name} has fewer than two importing studies"


def test_no_two_studies_share_a_file_of_their_own():
    owners: dict[Path, list[str]] = {}
    for study in catalogue():
        if study.path.is_relative_to(PACKAGE):
            for path in contract.parts(study):
                owners.setdefault(path, []).append(study.slug)
    assert {path.name: users for path, users in owners.items() if len(users) > 1} == {}
    nobody = {path for path in (PACKAGE / "studies").rglob("_*.py") if path.name != "__init__.py"} - set(owners)
    assert nobody == set(), "no study imports these"


@pytest.mark.parametrize("path", sorted((ROOT / "dashboard").rglob("*.py")), ids=lambda p: p.name)
def test_the_dashboard_names_no_study(path):
    text = path.read_text(encoding="utf-8")
    assert not [s.slug for s in catalogue() if s.path.is_relative_to(PACKAGE) and s.slug in text]
    assert "torch" not in others(path)


def test_functions_are_short():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "dashboard").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = {p.name: contract.long_functions(ast.parse(p.read_text(encoding="utf-8"))) for p in files}
    assert {name: long for name, long in found.items() if long} == {}


def test_files_are_short():
    over = [one for one in contract.budget_files(PACKAGE, 300) if not one.startswith("studies")]
    assert over == [] and contract.budget_files(PACKAGE / "studies", 400) == []
    above = [p for p in CORE if p.relative_to(PACKAGE).parts[0] in OPERATIONS]
    lines, operations = sum(statements(p) for p in CORE if p not in above), sum(map(statements, above))
    assert lines <= 5100, f"the core has {lines} lines of code"
    assert operations <= 4200, f"commands, reports, schedules and sweeps have {operations} lines of code"


def statements(path: Path) -> int:
    """Lines of code: neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    tree, documented = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and not line.strip().startswith("#") and number not in documented)
