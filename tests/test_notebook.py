"""Generated cells and their drift, and what the calls of a notebook do outside a kernel and in one."""

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest
from papermill import inspect_notebook

from claimlab import cells, export, notebook
from claimlab.ledger import Ledger
from claimlab.live import Stopped
from claimlab.params import values
from claimlab.study import find


@pytest.fixture
def study(home, own_studies):
    return find("toy-blobs")


@pytest.fixture
def path(study):
    made = study.path.with_suffix(".ipynb")
    made.write_text(notebook.template(study), encoding="utf-8")
    return made


def test_a_new_notebook_is_valid_in_sync_and_holds_every_part_of_the_skeleton(path):
    node = nbformat.read(path, 4)
    nbformat.validate(node)
    assert notebook.stale(path) == [] and notebook.sync([path]) == []
    titles = re.findall(r"(?m)^## (.+)$", "\n".join(c.source for c in node.cells if c.cell_type == "markdown"))
    assert titles == [
        "The idea",
        "By hand",
        "The method",
        "Predict",
        "Run",
        "What we see",
        "Verdict",
        "What the scale hides",
        "Exercises",
    ]
    assert len({c.id for c in node.cells}) == len(node.cells)
    assert all(c.outputs == [] and c.execution_count is None for c in node.cells if c.cell_type == "code")


def test_papermill_reads_the_knobs_back_from_the_parameters_cell(path, study):
    read = inspect_notebook(str(path))
    assert {n: ast.literal_eval(f["default"]) for n, f in read.items()} == values(study.make())
    assert read["gap"]["inferred_type_name"] == "float" and "in [0, 10]" in read["gap"]["help"]


def test_the_knobs_cell_builds_the_parameters_that_the_cells_above_hold(path, study):
    scope, source = {}, {c.metadata.get("claimlab"): c.source for c in nbformat.read(path, 4).cells}
    exec(source["parameters"], scope)
    exec("gap = 3.5", scope)  # what papermill injects
    exec(source["knobs"], scope)
    assert scope["p"] == scope["study"].module.Params(gap=3.5)


def test_generated_code_is_what_ruff_would_write(path, tmp_path):
    wide = tmp_path / "wide.py"
    names = [f"quite_a_long_knob_name_{i}" for i in range(9)]
    for count in (1, 4, 5, 9):

        class Knobs:
            slug = "wide"
            knobs = [type("K", (), {"name": n}) for n in names[:count]]

        command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "130", "--check", str(wide)]
        wide.write_text(cells._knobs_cell(Knobs) + "\n", encoding="utf-8")
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + wide.read_text()


@pytest.mark.parametrize("name", cells.GENERATED)
def test_a_drifted_cell_is_seen_and_written_anew_while_the_rest_stays(path, name):
    good = path.read_text(encoding="utf-8")
    node = nbformat.reads(good, 4)
    next(c for c in node.cells if c.metadata.get("claimlab") == name).source += "\n# drift"
    node.cells[-1].source = "## Exercises\n\nmine"
    path.write_text(nbformat.writes(node), encoding="utf-8")
    assert any(name in reason for reason in notebook.stale(path))
    assert notebook.sync([path]) == [path] and notebook.stale(path) == []
    healed = nbformat.read(path, 4)
    assert healed.cells[-1].source == "## Exercises\n\nmine"
    assert [c.id for c in healed.cells] == [c.id for c in nbformat.reads(good, 4).cells]


def test_outputs_counts_and_strange_metadata_are_stripped(path):
    good = path.read_text(encoding="utf-8")
    node = nbformat.reads(good, 4)
    code = next(c for c in node.cells if c.cell_type == "code")
    code.outputs, code.execution_count = [nbformat.v4.new_output("stream", text="x")], 3
    code.metadata["collapsed"] = True
    node.metadata["widgets"] = {"a": 1}
    path.write_text(nbformat.writes(node), encoding="utf-8")
    assert any("outputs" in r for r in notebook.stale(path))
    notebook.sync([path])
    assert path.read_text(encoding="utf-8") == good


def test_missing_generated_cells_are_put_at_the_top(path, study):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("## Mine", id="mine")])
    path.write_text(nbformat.writes(node), encoding="utf-8")
    assert len(notebook.stale(path)) == 3
    notebook.sync([path])
    healed = nbformat.read(path, 4).cells
    assert [c.metadata.get("claimlab") for c in healed] == [*cells.GENERATED, None]
    assert healed[1].metadata.tags == ["parameters"] and healed[0].source.startswith("# Two blobs")


def test_show_gives_the_source_as_it_stands(capsys):
    notebook.show(cells.sync)
    assert capsys.readouterr().out.startswith("def sync(paths: Iterable[Path]) -> list[Path]:\n")


def test_run_by_hand_enters_the_ledger_and_prints_progress(study, capsys):
    lab = notebook.run("toy-blobs", study.make({"steps": 10}))
    notebook.verdicts(lab)
    said = capsys.readouterr().out
    ledger = Ledger()
    (row,) = ledger.runs()
    assert row["status"] == "finished" and row["seeds"] == [0, 1, 2, 3, 4] and row["params"]["steps"] == 10
    assert f"{lab.total:,} of {lab.total:,} steps, 5 seeds" in said and row["id"] in said
    assert all(v.sentence in said for v in lab.verdicts())
    assert len(ledger.table(row["id"])) == len(lab.table) and len(ledger.verdicts(row["id"])) == 2
    ledger.close()


def test_a_run_of_a_kernel_joins_the_run_it_was_given_once_and_only_with_its_knobs(study, monkeypatch):
    ledger = Ledger()
    p = study.make({"steps": 8, "seeds": 2})
    given = ledger.start_run("toy-blobs", values(p), status="starting")
    monkeypatch.setenv("CLAIMLAB_RUN", given)
    other = study.make({"steps": 6, "seeds": 2})
    notebook.run(study, other)
    assert ledger.run(given)["status"] == "starting"
    notebook.run(study, p)
    notebook.run(study, p)
    assert ledger.run(given)["status"] == "running" and len(ledger.table(given)) > 0  # the runner closes it, not the notebook
    children = [r for r in ledger.runs() if r["id"] != given]
    assert [r["parent"] for r in children] == [given, given] and {r["status"] for r in children} == {"finished"}
    ledger.close()


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped("enough"), "stopped"), (ValueError("broken"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_run_by_hand_that_ends_early_says_how(study, monkeypatch, error, status):
    def fail(study, p, ledger, run, **_):
        ledger.log(run, [("fast", 0, 0, "loss", 1.0)])
        raise error

    monkeypatch.setattr("claimlab.live.execute", fail)
    with pytest.raises(type(error)):
        notebook.run(study, study.make())
    ledger = Ledger()
    (row,) = ledger.runs()
    assert row["status"] == status and type(error).__name__ in row["reason"] and len(ledger.table(row["id"])) == 1
    ledger.close()


def test_a_figure_is_one_plot_for_the_page_and_one_for_jupyterlab():
    import plotly.graph_objects as go

    fig = go.Figure(go.Scatter(y=[1.0, 3.0]), layout=dict(title="two"))
    bundle = notebook._bundle(fig)
    assert bundle["text/html"].count("Plotly.newPlot(") == 1 and "<script src" not in bundle["text/html"]
    assert json.loads(json.dumps(bundle["application/vnd.plotly.v1+json"]))["data"][0]["type"] == "scatter"
    assert bundle["text/plain"] == "[two]"


def test_equations_become_mathml_and_unreadable_ones_stay_as_source():
    import xml.etree.ElementTree as ElementTree

    made = export.markdown("Let $x_i$ be\n\n$$\\begin{aligned} a &= \\frac{1}{2} \\\\ b &= 3 \\end{aligned}$$\n\nand \\$5.")
    found = re.findall(r"<math.*?</math>", made, re.S)
    assert len(found) == 2 and "$" not in made.replace("$5", "")
    space = "{http://www.w3.org/1998/Math/MathML}"
    rows = ElementTree.fromstring(found[1]).findall(f".//{space}mtr")
    assert len(rows) == 2 and ElementTree.fromstring(found[1]).find(f".//{space}mfrac") is not None
    assert "\\" not in export.math(r"\arg\min_\theta L")
    assert "⟨" in export.math(r"\big\langle r \big\rangle") and "langle" not in export.math(r"\big\langle r \big\rangle")
    assert export.math(r"a<\frac{") == '<code class="tex">a&lt;\\frac{</code>'
