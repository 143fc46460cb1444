"""Studies are found by file, read without being imported, and a broken one leaves the others alone."""

import subprocess
import sys

import pytest

from claimlab import study as studies
from claimlab.study import StudyError, beside


def test_a_study_of_ones_own_is_found_and_runs_its_own_module(own_studies):
    one = studies.find("toy_blobs")
    assert one.slug == "toy-blobs" and one.family == "blobs"
    assert one.paper.question.startswith("Does a larger") and [c.id for c in one.claims] == ["fast-wins", "beats-chance"]
    assert one.control.set == {"gap": 0.0}
    params = one.make({"rate": "0.1"}, "smoke")
    assert (params.rate, params.steps) == (0.1, 6)
    assert set(one.module.ARMS) == {"slow", "fast", "halves", "tuned", "probe"}
    assert isinstance(one.make(), one.module.Params)


def test_an_unknown_study_gets_the_nearest_names(own_studies):
    with pytest.raises(StudyError, match="did you mean toy-blobs"):
        studies.find("toy-blob")


BROKEN = {
    "raises": ("raise RuntimeError('no luck')\n", "raises on import"),
    "syntax": ("def (:\n", "SyntaxError"),
    "nameless": ("x = 1\n", "does not declare PAPER, Params, CLAIMS"),
    "needy": ("import a_package_that_nobody_has\n", "a_package_that_nobody_has, which is not installed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_study_is_shown_with_its_reason_and_the_others_work(own_studies, name):
    text, words = BROKEN[name]
    good = (own_studies / "blobs" / "toy_blobs.py").read_text()
    body = text if name in ("syntax", "nameless") else good + "\n" + text
    (own_studies / "blobs" / f"{name}.py").write_text(body)
    found = {s.slug: s for s in studies.catalogue()}
    assert words in found[name].broken
    assert not found["toy-blobs"].broken
    with pytest.raises(StudyError, match="is broken"):
        studies.find(name)


def test_a_study_that_fails_only_when_imported_says_so(own_studies):
    path = own_studies / "blobs" / "late.py"
    path.write_text((own_studies / "blobs" / "toy_blobs.py").read_text() + "\nTABLE = {}['absent']\n")
    with pytest.raises(StudyError, match="late cannot be imported: KeyError"):
        assert studies.find("late").module


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('theme="stages"', 'theme="magic"', "theme 'magic'"),
        ('vanishes=("fast-wins",)', 'vanishes=("slow-wins",)', "slow-wins"),
        ("SMOKE = dict(steps=6", "SMOKE = dict(steps=-6", "steps = -6"),
        ('"beats-chance"', '"fast-wins"', "same id"),
    ],
)
def test_declarations_are_checked(own_studies, old, new, words):
    path = own_studies / "blobs" / "toy_blobs.py"
    path.write_text(path.read_text().replace(old, new))
    assert words in studies.read(path, "blobs").broken


def test_listing_imports_no_heavy_library(own_studies):
    code = (
        "import sys\nfrom claimlab.study import catalogue\nlisted = [s.as_dict() for s in catalogue() if not s.broken]\n"
        "assert len(listed) >= 1, listed\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'streamlit', 'sqlalchemy', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_drawing_beside_a_study_is_loaded_when_it_is_called(tmp_path, monkeypatch):
    package = tmp_path / "family"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    drawing = beside("family.toy", "double")
    (package / "_toy_figures.py").write_text("def double(value):\n    return 2 * value\n")
    assert drawing(21) == 42
    with pytest.raises(AttributeError, match="triple"):
        beside("family.toy", "triple")(1)


def test_declarations_are_kept_beside_the_compiled_module_and_follow_its_source(own_studies, monkeypatch):
    from claimlab import declarations

    def fresh():
        declarations._read.cache_clear()
        return studies.find("toy-blobs")

    def unread(*_):
        raise AssertionError("the source was read again")

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = own_studies / "blobs" / "toy_blobs.py"
    first = fresh()
    kept = declarations._place(path)
    assert kept.is_file() and not path.with_suffix(".declared").exists()
    with monkeypatch.context() as patched:
        patched.setattr(declarations, "parse", unread)
        again = fresh()
    assert again.as_dict() == first.as_dict() and again.declared["doc"] == first.declared["doc"]
    assert (again.views, again.trials, again.honesty) == (first.views, first.trials, first.honesty)

    kept.write_bytes(kept.read_bytes()[:40])
    assert fresh().as_dict() == first.as_dict(), "half a file is as good as none"
    path.write_text(path.read_text().replace('theme="stages"', 'theme="magic"'))
    with pytest.raises(StudyError, match="theme 'magic'"):
        fresh()
    with pytest.raises(StudyError, match="theme 'magic'"):
        fresh()
