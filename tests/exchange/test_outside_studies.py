"""Studies from outside: a folder, an installed distribution with an entry point, and what is shown where they are broken."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from claimlab import cli, study

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "more-papers"
version = "0.1"
[project.entry-points."claimlab.studies"]
good = "more_papers.studies"
absent = "no_such_package"
bad = "failing_papers.studies"
module = "more_papers.studies.blobs.toy_plugged"
[tool.setuptools]
packages = ["more_papers", "more_papers.studies", "more_papers.studies.blobs", "failing_papers"]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder into which pip has really installed a little distribution of studies."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    for name in ("more_papers/studies/blobs", "failing_papers"):
        (source / name).mkdir(parents=True)
    for name in ("more_papers", "more_papers/studies", "more_papers/studies/blobs"):
        (source / name / "__init__.py").write_text("")
    shutil.copy(FIXTURES / "toy_blobs.py", source / "more_papers" / "studies" / "blobs" / "toy_plugged.py")
    (source / "more_papers" / "studies" / "blobs" / "toy_spoilt.py").write_text("PAPER = 1 / 0\n")
    (source / "failing_papers" / "__init__.py").write_text("raise RuntimeError('it does not load')\n")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
                    "--disable-pip-version-check", "--target", str(target), str(source)], check=True, timeout=300)  # fmt: skip
    return target


@pytest.fixture
def installed(site, monkeypatch):
    """The distribution is on the path, as after pip install."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("CLAIMLAB_STUDIES", raising=False)
    yield site
    for name in [n for n in sys.modules if n.partition(".")[0] in ("more_papers", "failing_papers")]:
        del sys.modules[name]


def test_studies_of_an_installed_distribution_are_there(installed):
    found = study.find("toy-plugged")
    assert found.path.is_relative_to(installed) and found.family == "blobs"
    assert found.module.ARMS and found.make({"steps": 10}).steps == 10


def test_what_is_broken_in_it_is_shown_broken_and_harms_no_other(installed, capsys):
    found = {one.slug: one.broken for one in study.catalogue()}
    assert "ZeroDivisionError" in found["toy-spoilt"]
    assert "no_such_package is no package" in found["absent"] and "it does not load" in found["bad"] and "no package" in found["module"]
    assert not found["toy-plugged"] and not found["mixup"]
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr()
    assert "BROKEN" in shown.out and "it does not load" in shown.err and "mixup" in shown.out
    assert cli.main(["list", "--json"]) == 0
    assert "toy-plugged" in {one["slug"] for one in json.loads(capsys.readouterr().out)}
    assert cli.main(["show", "bad"]) == 2
    assert "entry point leads nowhere" in capsys.readouterr().err


def test_it_runs_like_any_other(installed, home, capsys):
    assert cli.main(["run", "toy-plugged", "--no-kernel", "--profile", "smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"


def test_a_folder_that_is_not_there_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLAIMLAB_STUDIES", str(tmp_path / "nowhere"))
    assert cli.main(["list"]) == 0
    assert "is not a folder" in capsys.readouterr().err


def test_several_folders_and_a_broken_file_among_them(monkeypatch, tmp_path, own_studies, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "half.py").write_text("PAPER =")
    (other / "test_half.py").write_text("raise SystemExit")  # a test beside its study is no study
    monkeypatch.setenv("CLAIMLAB_STUDIES", f"{own_studies}:{other}")
    found = {one.slug: one for one in study.catalogue()}
    assert "SyntaxError" in found["half"].broken and not found["toy-blobs"].broken and "test-half" not in found


def test_a_new_study_in_a_folder_of_ones_own_lies_side_by_side(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "papers"
    monkeypatch.setenv("CLAIMLAB_STUDIES", str(folder))
    assert cli.main(["new", "my-paper", "--family", "training", "--folder", str(folder)]) == 0
    assert sorted(p.name for p in (folder / "training").iterdir()) == ["my_paper.ipynb", "my_paper.py", "test_my_paper.py"]
    found = study.find("my-paper")
    assert found.notebook == folder / "training" / "my_paper.ipynb" and found.family == "training"
