"""HTML of executed notebooks that needs no network: one shared plotly.min.js, equations as MathML, a style of its own."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
PLOTLY = "plotly.min.js"
DELIMITERS = {"langle": "⟨", "rangle": "⟩", "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|", "Vert": "‖", "vert": "|"}


def figure_html(figure) -> str:
    """A plotly figure as a piece of HTML with exactly one `Plotly.newPlot`, which expects plotly.min.js on its page."""
    height = figure.layout.height or 420
    inner = figure.to_html(full_html=False, include_plotlyjs=False, default_height=f"{height}px", config={"responsive": True})
    return f'<div class="figure">{inner}</div>'


def math(tex: str, display: str = "inline") -> str:
    """LaTeX as MathML, which browsers draw by themselves; what cannot be converted stays readable as its source."""
    from latex2mathml.converter import convert

    tex = tex.replace("{aligned}", "{align*}").strip()
    try:
        made = convert(tex, display=display)
    except Exception:  # the converter has no common base class for what it cannot read
        return f'<code class="tex">{html.escape(tex)}</code>'
    # what the converter leaves as a command is a delimiter after \big, or the name of an operator such as \arg
    return re.sub(r">\\([a-zA-Z]+)<", lambda left: f">{DELIMITERS.get(left[1], left[1])}<", made)


def markdown(source: str) -> str:
    """Markdown with equations as HTML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return math(body, "block")

        def inline_math(self, body: str) -> str:
            return math(body)

        def latex_environment(self, name: str, body: str) -> str:
            return math(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)


def share_plotly(folder: Path) -> Path:
    """Lay the one plotly.min.js that all pages of `folder` use beside them, unless it is there already."""
    source, target = _plotly_source(), folder / PLOTLY
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return target


def page(notebook, target: Path, facts: dict[str, Any], *, plotly: str = PLOTLY, single_file: bool = False) -> Path:
    """Write the HTML page of an executed notebook (a path or a node) with `facts` at its head.

    `facts`: title, status, reason, traceback, facts (short texts), rows (see `row`), back (an address). `plotly` is the
    address of plotly.min.js seen from the page; `single_file` writes it into the page instead (4.8 MB).
    """
    from claimlab.lightly import nbformat

    node = nbformat.read(notebook, 4) if isinstance(notebook, str | Path) else notebook
    node.cells = list(_mark(node.cells))
    source = _plotly_source().read_text(encoding="utf-8") if single_file else ""
    heading = any(c.metadata.get("claimlab") == "heading" for c in node.cells)
    shown = {**facts, "heading": heading, "plotly": plotly, "plotly_source": source, "style": style()}
    text, _ = _exporter().from_notebook_node(node, resources={"claimlab": shown})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def _mark(cells: Iterable) -> Iterable:
    """The cells with one plain mark where the notebook stopped, in place of papermill's two banners."""
    for cell in cells:
        if "papermill-error-cell-tag" not in cell.metadata.get("tags", []):
            yield cell
        elif 'id="papermill-error-cell"' in cell.source:
            cell.source = '<p id="stopped-here" class="word failed">The notebook stopped here.</p>'
            yield cell


def index(target: Path, **shown: Any) -> Path:
    """Write the index of a report from the template `report.html.j2`."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(loader=FileSystemLoader(TEMPLATES / "claimlab")).get_template("report.html.j2")
    target.write_text(made.render(style=style(), **shown), encoding="utf-8")
    return target


def row(verdict: dict, claim, control: str | None = None, control_note: str = "") -> dict[str, Any]:
    """One line of a table of verdicts: the verdict with the claim's text, its picture and its control beside it."""
    from claimlab.claims import says_nothing

    return {**verdict, "text": claim.text, "threshold": claim.threshold, "picture": picture(verdict, claim.threshold),
            "control": control, "control_note": control_note,
            "says_nothing": says_nothing(verdict["verdict"], control)}  # fmt: skip


def picture(verdict: dict, margin: float, width: float = 170.0) -> dict[str, float | None] | None:
    """Positions (in px) of effect, interval, margin and zero on a small drawing; None where nothing was measured."""
    if verdict["effect"] is None:
        return None
    ends = [v for v in (verdict["low"], verdict["high"], verdict["effect"], margin) if v is not None]
    low, high = min(ends), max(ends)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.1 * span, high + 0.1 * span

    def place(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else round((value - low) / (high - low) * (width - 10) + 5, 1)

    return {
        "effect": place(verdict["effect"], 0), "margin": place(margin, 0), "low": place(verdict["low"], 0.0),
        "high": place(verdict["high"], width), "zero": place(0.0, 0) if low < 0 < high else None,
    }  # fmt: skip


@lru_cache
def style() -> str:
    """The style of all pages, with the colours of code for a light and for a dark screen."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    clear = ".highlight { background: transparent !important; }"
    return (TEMPLATES / "claimlab" / "style.css").read_text(encoding="utf-8") + (
        f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{clear}"
    )


def _plotly_source() -> Path:
    import plotly

    return Path(plotly.__file__).parent / "package_data" / PLOTLY


@lru_cache
def _exporter():
    from nbconvert import HTMLExporter

    class Exporter(HTMLExporter):
        def default_filters(self):
            yield from super().default_filters()
            yield "markdown2html", markdown

    return Exporter(template_name="claimlab", extra_template_basedirs=[str(TEMPLATES)])
