"""`claimlab data check` on a study with a loader of its own, and on studies of the lab: what is wrong is said in their words."""

import json

import numpy as np
import pytest

from claimlab import cli

LOADER = '''
import os
import warnings
import numpy as np


def own(path):
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] != 2:
        raise ValueError(f"{path} has {table.shape[1]} columns; allowed are 2")
    if len(table) < 50:
        warnings.warn("few rows", stacklevel=2)
    return torch.tensor(table, dtype=torch.float32)


class Slow(Supervised):
'''


@pytest.fixture
def reads(own_studies):
    """The toy study, now with a loader: its blobs come from the CSV file that CLAIMLAB_DATA names, where it names one."""
    path = own_studies / "blobs" / "toy_blobs.py"
    text = path.read_text().replace("class Slow(Supervised):\n", LOADER.lstrip("\n"))
    text = text.replace("        if seed == self.p.poison:", '        if os.environ.get("CLAIMLAB_DATA"):\n'
                        '            bound.x = own(os.environ["CLAIMLAB_DATA"])\n'
                        "            bound.y = torch.arange(len(bound.x)) % 2\n        if seed == self.p.poison:")  # fmt: skip
    text = text.replace("class Half(Slow):", 'class Mine(Slow):\n    @staticmethod\n    def when(params):\n'
                        '        return bool(os.environ.get("CLAIMLAB_DATA"))\n\n\nclass Half(Slow):')  # fmt: skip
    path.write_text(text.replace('ARMS = {"slow": Slow,', 'ARMS = {"slow": Slow, "mine": Mine,'))
    return path


def checked(capsys, file, *options, study="toy-blobs"):
    code = cli.main(["data", "check", str(file), "--study", study, *options])
    return code, capsys.readouterr()


def test_a_fitting_file_is_described_with_the_arms_that_it_brings(reads, home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", "something-else")
    file = tmp_path / "mine.csv"
    np.savetxt(file, np.random.default_rng(0).standard_normal((20, 2)), delimiter=",")
    code, said = checked(capsys, file, "-p", "gap=3", "--json")
    found = json.loads(said.out)
    assert code == 0 and found["new"] == ["mine"] and "slow" in found["arms"] and found["notes"] == ["few rows"]
    assert "20 rows" in found["holds"] or "19 rows" in found["holds"]
    import os

    assert os.environ["CLAIMLAB_DATA"] == "something-else" and not (home / "ledger.db").exists()  # nothing was run
    code, said = checked(capsys, file)
    assert code == 0 and f"CLAIMLAB_DATA={file} claimlab run toy-blobs" in said.out


@pytest.mark.parametrize(
    ("content", "said"), [("1,2,3\n" * 60, "3 columns; allowed are 2"), ("a,b\n", "could not convert string"), (None, "is not there")]
)
def test_what_is_wrong_is_said_in_the_words_of_the_loader(reads, tmp_path, capsys, content, said):
    file = tmp_path / "mine.csv"
    if content is not None:
        file.write_text(content)
    code, shown = checked(capsys, file)
    assert code == 2 and said in shown.err and str(file) in shown.err and shown.out == ""


def test_a_file_that_training_fails_on_is_refused_too(reads, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text("1,2\n")  # one row: no minibatch can be drawn
    before = '        return {"accuracy"'
    reads.write_text(reads.read_text().replace(before, "        assert len(self.x) > 1, 'too few'\n" + before))
    code, shown = checked(capsys, file)
    assert code == 2 and "fails on it: AssertionError: too few" in shown.err


def test_a_study_without_a_loader_is_named_with_those_that_have_one(own_studies, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text("1,2\n")
    code, shown = checked(capsys, file)
    assert code == 2 and "takes no file of yours" in shown.err and "quantum-well-pinn" in shown.err


def well(rows):
    return "x,V\n" + "\n".join(f"{i / 79},{v}" for i, v in rows)


def test_a_study_of_the_lab_names_column_and_row(tmp_path, capsys):
    file = tmp_path / "well.csv"
    file.write_text(well((i, "nan" if i == 7 else 1.0) for i in range(80)))
    code, shown = checked(capsys, file, study="quantum-well-pinn")
    assert code == 2 and "well.csv: V in row 8 is not a finite number" in shown.err
    file.write_text(well((i, 1.0) for i in range(80)).replace("x,V", "x,U"))
    assert "column V is missing" in checked(capsys, file, study="quantum-well-pinn")[1].err


def test_a_knob_that_the_file_needs_is_given_with_it(tmp_path, capsys):
    file = tmp_path / "z7.csv"
    file.write_text("\n".join(",".join(str((i + j) % 7) for j in range(7)) for i in range(7)))
    code, shown = checked(capsys, file, study="modular-addition")
    assert code == 2 and "set p = 7" in shown.err
    code, shown = checked(capsys, file, "-p", "p=7", study="modular-addition")
    assert code == 0 and "claimlab run modular-addition -p p=7" in shown.out


@pytest.mark.parametrize(("name", "words"), [("a.npz", "x uint8 4 x 2"), ("a.npy", "array float64 3"), ("folder", "cats: 2 files")])
def test_what_a_file_holds(tmp_path, name, words):
    from claimlab.exchange.own import holds

    file = tmp_path / name
    if name == "a.npz":
        np.savez(file, x=np.zeros((4, 2), dtype=np.uint8))
    elif name == "a.npy":
        np.save(file, np.zeros(3))
    else:
        (file / "cats").mkdir(parents=True)
        for one in "ab":
            (file / "cats" / one).write_text("")
    assert words in holds(file)
