"""The cells of a notebook that are generated from its study: heading, parameters, knobs; and the skeleton of a new notebook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from claimlab import params as knob_views
from claimlab.study import Study, find

GENERATED = ("heading", "parameters", "knobs")
TO_WRITE = "To write:"
WIDTH = 130  # the line length that ruff formats notebooks to


def generated(study: Study) -> dict[str, str]:
    """Source of the generated cells: heading, parameters, knobs."""
    paper = study.paper
    facts = f"*{paper.authors}, {paper.year}* · [the paper]({paper.url}) · {study.family} · {paper.theme}"
    heading = f"# {paper.title}\n\n{facts}\n\n**{paper.question}**"
    return {"heading": heading, "parameters": knob_views.cell(study.Params), "knobs": _knobs_cell(study)}


def _knobs_cell(study: Study) -> str:
    names = [f"{k.name}={k.name}" for k in study.knobs]
    inner = f"dict({', '.join(names)})"
    if len(f"p = study.make({inner})") <= WIDTH:
        make = f"p = study.make({inner})"
    elif len(inner) + 4 <= WIDTH:
        make = f"p = study.make(\n    {inner}\n)"
    else:
        make = "p = study.make(\n    dict(\n" + "".join(f"        {name},\n" for name in names) + "    )\n)"
    return (
        "from claimlab.notebook import figure, run, show, verdicts\nfrom claimlab.study import find\n\n"
        f'study = find("{study.slug}")\nmethod = study.module\n{make}'
    )


def sync(paths: Iterable[Path]) -> list[Path]:
    """Write the generated cells of these notebooks anew, strip outputs and counts; the notebooks that changed."""
    changed = []
    for path in map(Path, paths):
        fresh = _fresh(path)
        if fresh != path.read_text(encoding="utf-8"):
            path.write_text(fresh, encoding="utf-8")
            changed.append(path)
    return changed


def stale(path: Path) -> list[str]:
    """Why a notebook is not what `sync` would write; empty when it is in sync."""
    from claimlab.lightly import nbformat

    path, study = Path(path), find(Path(path).stem)
    text = path.read_text(encoding="utf-8")
    node, want = nbformat.reads(text, 4), generated(study)
    held = {c.metadata.get("claimlab"): c.source for c in node.cells}
    reasons = [f"the generated cell {name!r} differs from the declarations" for name in GENERATED if held.get(name) != want[name]]
    if any(c.get("outputs") or c.get("execution_count") for c in node.cells):
        reasons.append("it holds outputs or execution counts")
    if not reasons and text != _fresh(path):
        reasons.append("its metadata or layout are not those that sync writes")
    return reasons


def _fresh(path: Path) -> str:
    from claimlab.lightly import nbformat

    node = nbformat.reads(path.read_text(encoding="utf-8"), 4)
    want = generated(find(path.stem))
    by_name = {c.metadata.get("claimlab"): c for c in node.cells if c.metadata.get("claimlab") in GENERATED}
    rest = [c for c in node.cells if c.metadata.get("claimlab") not in GENERATED]
    return dumps([_generated_cell(name, want[name], by_name.get(name)) for name in GENERATED] + rest)


def _generated_cell(name: str, source: str, old: Any = None) -> Any:
    from claimlab.lightly import nbformat

    make = nbformat.v4.new_markdown_cell if name == "heading" else nbformat.v4.new_code_cell
    made = make(source, id=old.get("id", name) if old else name, metadata={"claimlab": name})
    if name == "parameters":
        made.metadata["tags"] = ["parameters"]
    return made


def dumps(cells: list) -> str:
    """A notebook of these cells as it is committed: no outputs, no counts, stable ids, one trailing newline."""
    from claimlab.lightly import nbformat

    seen: set[str] = set()
    for position, one in enumerate(cells):
        if one.get("id", "") in seen or not one.get("id"):
            one["id"] = f"cell-{position}"
        seen.add(one["id"])
        if one.cell_type == "code":
            one.outputs, one.execution_count = [], None
        one.metadata = {k: one.metadata[k] for k in ("claimlab", "tags") if one.metadata.get(k)}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    node = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    node.nbformat_minor = 5
    return nbformat.writes(node).rstrip("\n") + "\n"


# ---- a new notebook

SKELETON = (
    ("## The idea", "one equation, and each of its symbols named.\n\n$$\\tilde{x} = \\lambda x_i + (1 - \\lambda) x_j$$", ""),
    ("## By hand", "three numbers through the method, worked out on paper and asserted here.",
     "lam, a, b = 0.25, 4.0, 8.0\nblend = lam * a + (1 - lam) * b\nassert blend == 7.0\nblend"),
    ("## The method", "what to look at in the source below.", "show(next(iter(method.ARMS.values())))"),
    ("## Predict", "what will happen when a knob goes to its limit? Write your guess down before you run the next cell.", ""),
    ("## Run", "what the curves below will show.", "lab = run(study, p)"),
    ("## What we see", "one sentence on each figure, after it.", "for picture in lab.figures().values():\n    figure(picture)"),
    ("## Verdict", "what the interval says, and what it does not say.", "verdicts(lab)"),
    ("## What the scale hides", "", ""),
    ("## Exercises", "four of them.\n\n1. Change a knob: ...\n2. Break an assumption: ...\n3. Use data of your own: ...\n"
     "4. Read a table of the paper: ...", ""),
)  # fmt: skip


def template(study: Study) -> str:
    """The text of a new notebook of `study`: generated cells and a skeleton that runs; what a person writes says so."""
    from claimlab.lightly import nbformat

    cells = [_generated_cell(name, source) for name, source in generated(study).items()]
    for title, text, code in SKELETON:
        name = title.removeprefix("## ").lower().replace(" ", "-")
        said = study.honesty if name == "what-the-scale-hides" and study.honesty else f"{TO_WRITE} {text}"
        cells.append(nbformat.v4.new_markdown_cell(f"{title}\n\n{said}", id=name))
        if code:
            cells.append(nbformat.v4.new_code_cell(code, id=f"{name}-code"))
    return dumps(cells)
