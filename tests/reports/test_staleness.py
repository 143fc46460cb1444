"""Why a run is stale: source by file, knobs, versions, notebook and own data; and how long a report will take, what it may hold."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimlab import admission, runner
from claimlab.ledger import Ledger
from claimlab.provenance import contents, provenance
from claimlab.reports import making, staleness, timing

LIGHT = (Path(__file__).parents[1] / "fixtures" / "light.py").read_text(encoding="utf-8")
WITH_DATA = LIGHT.replace("class Old:", "import os\nFILE = os.environ.get('CLAIMLAB_DATA', '')\n\nclass Old:", 1)


@pytest.fixture
def again(in_process, tmp_path):
    """Makes the report of `light` and says why it ran."""

    def report(**how):
        found = making.report(["light"], out=tmp_path / "out", control=False, **how)
        return [(one["kind"], one["text"]) for one in found["studies"][0]["why"]]

    return report


def test_own_data_count_by_their_contents_and_only_where_the_study_reads_them(study, write_study, again, tmp_path, monkeypatch):
    file = tmp_path / "well.csv"
    file.write_text("x,y\n1,2\n")
    again()
    monkeypatch.setenv("CLAIMLAB_DATA", str(file))
    assert again() == []  # `light` reads no data of one's own
    write_study("light", WITH_DATA)
    assert [kind for kind, _ in again()] == ["source", "data"]
    assert again() == []
    file.write_text("x,y\n1,3\n")
    assert again() == [("data", "CLAIMLAB_DATA names other contents")]
    moved = file.rename(tmp_path / "moved.csv")
    monkeypatch.setenv("CLAIMLAB_DATA", str(moved))
    assert again() == []  # the same bytes under another name
    monkeypatch.delenv("CLAIMLAB_DATA")
    assert again()[0][0] == "data"


def test_a_folder_of_own_data_is_hashed_with_the_names_of_its_files(tmp_path):
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text(text)
    first = contents(tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    assert contents(tmp_path) != first and contents(tmp_path / "none") == "absent"
    (tmp_path / "c").rename(tmp_path / "a")
    assert contents(tmp_path) == first


def test_knobs_and_versions_are_told_from_what_to_what(study, write_study, again, monkeypatch):
    again()
    write_study("light", LIGHT.replace("knob(1.0, ", "knob(1.5, "))
    told = dict(again())
    assert told["knobs"] == "shift 1.0 → 1.5" and told["source"] == "light.py" and "notebook" in told
    real = runner.provenance
    monkeypatch.setattr(runner, "provenance", lambda study: {**real(study), "torch": "9.9"})
    (told,) = again()
    assert told[0] == "versions" and told[1].startswith("torch ") and told[1].endswith("→ 9.9")


def test_a_library_that_a_study_imports_counts(study, write_study):
    import sklearn

    assert "scikit-learn" not in provenance(study)
    assert provenance(write_study("light", LIGHT + "\nimport sklearn.svm\n"))["scikit-learn"] == sklearn.__version__


def test_runs_that_were_steered_or_lost_their_notebook_or_took_other_seeds_are_not_reused(study, again):
    again()
    ledger = Ledger()
    (row,) = ledger.runs()
    wanted = staleness.want(study, study.make(), "default", False)
    assert staleness.fresh(ledger, [row], wanted).run == row["id"]
    assert staleness.fresh(ledger, [row], staleness.want(study, study.make({"shift": 2.0}), "default", False)) is None
    assert staleness.fresh(ledger, [{**row, "seeds": [5, 6, 7, 8, 9, 10]}], wanted) is None
    notebook = next(Path(a["path"]) for a in ledger.artifacts(row["id"]) if a["kind"] == "notebook")
    kept = notebook.read_bytes()
    notebook.unlink()
    assert staleness.fresh(ledger, [row], wanted) is None and again() == [("files", "the last run was steered, or its files are gone")]
    notebook.write_bytes(kept)
    ledger.event(row["id"], "set", step=1)
    assert staleness.fresh(ledger, [row], wanted) is None
    ledger.close()


# ---- how long


def past(steps, seconds, profile="default"):
    return {"params": {"steps": steps, "seeds": 5}, "started": 0.0, "ended": seconds, "profile": profile}


def test_a_run_of_twice_the_steps_is_expected_to_take_twice_as_long_after_its_start():
    assert timing.expected([past(100, 28.0)], {"steps": 200, "seeds": 5}, "default").seconds == pytest.approx(8 + 2 * 20)
    assert timing.expected([past(100, 28.0), past(200, 50.0)], {"steps": 200, "seeds": 5}, "default").seconds == 50.0
    assert timing.expected([], {"steps": 200}, "default") is None


works = st.builds(timing.Work, st.none() | st.floats(0.1, 1e4), st.floats(0, 1e4), st.floats(0, 1), st.booleans())


@given(st.lists(works, max_size=12), st.integers(1, 8))
def test_the_share_is_one_and_nothing_is_left_exactly_when_all_is_over(many, abreast):
    share, left = timing.progress(many, abreast)
    assert 0 <= share <= 1 and (left is None or left >= 0)
    if all(w.over for w in many):
        assert (share, left) == (1.0, 0.0)
    else:
        assert share < 1 and (left is None or left > 0)


def test_a_steady_run_is_estimated_exactly_and_two_side_by_side_take_half_as_long():
    half = timing.Work(expected=100.0, spent=50.0, share=0.5)
    assert timing.progress([half], 1) == (0.5, 50.0)
    waiting = [timing.Work(100.0), timing.Work(100.0)]
    assert timing.progress(waiting, 2)[1] == 100.0 and timing.progress(waiting, 1)[1] == 200.0
    slow = timing.Work(expected=100.0, spent=100.0, share=0.5)  # half done after what the whole should have taken
    assert timing.progress([slow], 1)[1] == pytest.approx(50.0)


# ---- memory

GB = 1 << 30


@given(st.integers(1, 4 * GB), st.lists(st.tuples(st.integers(1, 4 * GB), st.integers(0, 4 * GB)), max_size=8), st.integers(1, 8),
       st.integers(0, 16 * GB))  # fmt: skip
def test_nothing_is_admitted_that_would_take_more_than_there_is(need, going, abreast, left):
    admitted = admission.admits(need, going, abreast, left)
    if not going:
        assert admitted
    elif admitted:
        growth = sum(max(0, reserved - held) for reserved, held in going)
        assert len(going) < abreast and left - need - growth >= admission.SPARE
    else:
        assert len(going) >= abreast or left < need + admission.SPARE + sum(max(0, r - h) for r, h in going)


def test_what_a_process_holds_is_measured_with_its_children():
    code = ("import subprocess, sys; data = bytearray(80 << 20); data[::4096] = b'x' * len(data[::4096]);"
            "child = subprocess.Popen([sys.executable, '-c', \"import sys; d = bytearray(80 << 20); d[::4096] = b'x' * len(d[::4096]);"
            "print(1, flush=True); sys.stdin.read()\"], stdin=subprocess.PIPE, stdout=subprocess.PIPE); child.stdout.readline();"
            "print(1, flush=True); sys.stdin.read(); child.communicate()")  # fmt: skip
    one = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    one.stdout.readline()
    held = admission.resident(one.pid)
    one.communicate()
    assert 160 << 20 < held < 260 << 20 and admission.resident(one.pid) == 0


def test_a_container_with_a_limit_is_believed(tmp_path, monkeypatch):
    for name, text in (("cpu.max", "150000 100000"), ("memory.max", str(3 * GB)), ("memory.current", str(2 * GB)),
                       ("memory.stat", f"anon 1\ninactive_file {GB // 2}\n")):  # fmt: skip
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(admission, "CGROUP", tmp_path)
    assert admission.cores() == 1 and admission.free() <= 3 * GB // 2
    (tmp_path / "memory.max").write_text("max")
    (tmp_path / "cpu.max").write_text("max 100000")
    assert admission.free() > 0 and admission.cores() >= 1


def test_a_run_reserves_what_earlier_runs_of_its_study_took(study, again):
    from claimlab.reports import planning

    again()
    ledger = Ledger()
    (row,) = ledger.runs()
    ledger.event(row["id"], admission.EVENT, payload={"bytes": 3 * GB})
    choice = planning.Choice(force=True)
    (entry,) = planning.plan(ledger, [study], choice)
    assert entry.main.memory == 3 * GB and entry.control.memory == admission.USUAL
    ledger.close()
