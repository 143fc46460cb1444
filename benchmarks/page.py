"""`results.html`: what `results.csv` holds, as plots and tables. `python benchmarks/page.py`"""

from __future__ import annotations

import html
from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from table import FOLDER, Row, read

from claimlab.figures import BLUE, GREY, OTHERS, style

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2933 }
table { border-collapse: collapse; width: 100%; font-size: 14px } td, th { padding: .25rem .6rem; text-align: left; vertical-align: top }
tr + tr td { border-top: 1px solid #d9dee4 } td.n { text-align: right; font-variant-numeric: tabular-nums }
.missed { color: #a3360b } .reached { color: #1b6e3c } div.wide { overflow-x: auto }"""


def goals(rows: list[Row]) -> go.Figure:
    """Every judged row as a share of its goal: left of the line is reached."""
    judged = [row for row in rows if row.met is not None and row.goal]
    shares = [(row.value if row.ratio is None else row.ratio) / row.goal for row in judged]
    names = [f"{row.case}: {row.program}" for row in judged]
    colours = [BLUE if row.met else OTHERS[0] for row in judged]
    told = "%{y}: %{x:.2f} of the goal<extra></extra>"
    figure = go.Figure(go.Bar(x=shares, y=names, orientation="h", marker_color=colours, hovertemplate=told))
    figure.add_vline(x=1, line={"color": GREY, "dash": "dash"})
    title = f"{sum(bool(row.met) for row in judged)} of {len(judged)} goals are reached (left of the line)"
    figure = style(figure, title, height=120 + 26 * len(judged), x="measured, as a share of the goal")
    return figure.update_yaxes(autorange="reversed", automargin=True).update_xaxes(type="log")


def growth(rows: list[Row]) -> go.Figure:
    """Cost against size, both axes logarithmic; titles say the fitted exponent."""
    cases = list(dict.fromkeys(row.case for row in rows))
    told = {case: next(row.note for row in reversed(rows) if row.case == case) for case in cases}
    lines, titles = (len(cases) + 1) // 2, [f"{case}<br>{told[case]}" for case in cases]
    figure = make_subplots(lines, 2, subplot_titles=titles, vertical_spacing=0.4 / lines)
    for k, case in enumerate(cases):
        part = [row for row in rows if row.case == case]
        place = {"row": k // 2 + 1, "col": k % 2 + 1}
        figure.add_scatter(x=[int(row.program) for row in part], y=[row.value for row in part], mode="lines+markers",
                           line_color=BLUE, showlegend=False, **place)  # fmt: skip
        figure.update_yaxes(title_text=part[0].unit, **place)
    figure = style(figure, "How cost grows with size", height=120 + 280 * lines).update_layout(margin_t=110)
    return figure.update_xaxes(type="log").update_yaxes(type="log").update_annotations(font_size=13)


def table(rows: Iterable[Row]) -> str:
    """The rows of one area."""
    lines = []
    for row in rows:
        value = "not there" if row.value is None else f"{row.value:{',.0f' if row.value >= 1000 else '.3g'}} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3f} of {row.against}"
        mark = "" if row.met is None else "reached" if row.met else "missed"
        goal = "" if row.goal is None else f'<span class="{mark}">{row.goal:.3g}, {mark}</span>'
        cells = (row.case, row.program, value, ratio, goal, row.note)
        lines.append("".join(f"<td>{cell if 'span' in cell else html.escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{name}</th>" for name in ("case", "program", "value", "ratio", "goal", "note"))
    return f'<div class="wide"><table><tr>{head}</tr>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def write() -> None:
    rows = list(read())
    areas = list(dict.fromkeys(row.area for row in rows))
    parts = [goals(rows).to_html(full_html=False, include_plotlyjs=True)]
    if grown := [row for row in rows if row.area == "growth"]:
        parts.append(growth(grown).to_html(full_html=False, include_plotlyjs=False))
    parts += [f"<h2>{html.escape(area)}</h2>{table(row for row in rows if row.area == area)}" for area in areas]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Speed</title><style>{STYLE}</style>'
    text = head + "<h1>Speed, measured side by side</h1>"
    (FOLDER / "results.html").write_text(text + "\n".join(parts), encoding="utf-8")
    print(f"wrote {FOLDER / 'results.html'}")


if __name__ == "__main__":
    write()
