"""Figures on a page: titles as text that wraps at any width, ink that suits the theme, curves thinned on the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels.wording import plain

from claimlab import figures

INK = {"light": "#3d4852", "dark": "#c3cbd3"}
FONT = "Source Sans, sans-serif"  # the type family of the pages, shipped with Streamlit
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
PANELS = 680  # pixels that a figure of several panels needs
POINTS = 6000  # of all lines of one chart together
LEGEND_ROW, CHARACTER, NARROW = 22, 7.0, 300


class Drawn(go.Figure):
    """A figure in the ink of the page, ready to be sent again and again: what the browser gets is worked out once.

    `text` is its title, which goes above it; `least` the pixels that it needs in width.
    """

    def __init__(self, figure: go.Figure, *, height: int | None = None, margin: int = 34):
        for name, value in _dressed(figure, height, margin).items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        return self._sent


def _dressed(figure: go.Figure, height: int | None, margin: int) -> dict[str, Any]:
    # on plain data: plotly's own updates look at every path and value anew, which costs more than all the rest
    sent, ink = figure.to_dict(), INK.get(st.context.theme.type or "light", INK["light"])
    layout = sent["layout"]
    text = " ".join((layout.get("title", {}).pop("text", None) or "").replace("<br>", " ").split())
    _update(layout, "font", color=ink, family=FONT)
    _update(layout, "margin", t=margin)
    layout["template"] = figures.template().to_plotly_json()
    for axis in (part for name, part in layout.items() if name.startswith(("xaxis", "yaxis"))):
        _update(axis, "tickfont", color=ink)
        _update(axis.setdefault("title", {}), "font", color=ink)
    for note in layout.get("annotations", ()):
        if note.get("font", {}).get("color") in (None, figures.INK):
            _update(note, "font", color=ink)
    if height is not None:
        layout["height"] = height
    # panels beside each other need their width: a narrow page scrolls them instead of crushing them
    panels = len([name for name in layout if name.startswith("xaxis")])
    return {"_sent": sent, "text": text, "least": PANELS if panels > 1 else 0}


def _update(part: dict[str, Any], name: str, **values: Any) -> None:
    part[name] = part.get(name, {}) | values


def show(figure: go.Figure, key: str, *, title: str = "", height: int | None = None, margin: int = 34, alt: str = "",
         least: int = 0, on_select: str = "ignore") -> Any:  # fmt: skip
    """Draw a figure under its title. The title becomes text, which a narrow page wraps instead of cutting it off.

    `least`: pixels that the figure needs in width; a narrower page scrolls it. With `on_select="rerun"` a click on a point
    runs the page again and the selection is returned.
    """
    drawn = figure if isinstance(figure, Drawn) else Drawn(figure, height=height, margin=margin)
    text = title or drawn.text
    if text:
        st.markdown(f"**{plain(text)}**")
    least = max(least, drawn.least)
    place = st.grid(1, min_column_width=least, wrap=False) if least else st
    selects = {"on_select": on_select, "selection_mode": "points"} if on_select != "ignore" else {}
    return place.plotly_chart(drawn, key=key, theme=None, config=CONFIG, alt=alt or text or None, **selects)


def load(path: str) -> go.Figure | None:
    """A figure that a run left as plotly's JSON; None if the file is gone or is no figure."""
    try:
        return go.Figure(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def curves(table: pd.DataFrame) -> list[str]:
    """Metrics that were recorded at more than one step, in the order in which they came."""
    if table.empty:
        return []
    counts = table.groupby("metric", sort=False)["step"].nunique()
    return list(counts.index[counts > 1])


def thinned(table: pd.DataFrame, metric: str, points: int = POINTS) -> pd.DataFrame:
    """The rows of one metric at so few steps that all lines of the chart together have about `points` points.

    All seeds of an arm keep the same steps, so that mean and interval stay those of all n; of each stretch the steps with
    the lowest and the highest value stay, so that spikes do.
    """
    rows = table[table["metric"] == metric]
    arms = [part for _, part in rows.groupby("arm", sort=False)]
    lines = sum(part["seed"].nunique() + 3 for part in arms)
    limit = max(40, points // max(1, lines))
    return pd.concat([_at_fewer_steps(part, limit) for part in arms]) if arms else rows


def _at_fewer_steps(part: pd.DataFrame, limit: int) -> pd.DataFrame:
    if part["step"].nunique() <= limit:
        return part
    wide = part.pivot_table(index="step", columns="seed", values="value", dropna=False)
    values = wide.to_numpy(dtype=float)
    low = np.where(np.isfinite(values), values, np.inf).min(axis=1)
    high = np.where(np.isfinite(values), values, -np.inf).max(axis=1)
    keep = {0, len(wide) - 1}
    for stretch in np.array_split(np.arange(len(wide)), limit // 2):
        keep |= {stretch[low[stretch].argmin()], stretch[high[stretch].argmax()]}
    return part[part["step"].isin(wide.index[sorted(keep)])]


def legend_below(figure: go.Figure, height: int) -> go.Figure:
    """Make room below a chart of this height for its legend; where all arms have the same n, the title alone says it."""
    names = [t.name for t in figure.data if t.showlegend is not False and t.name]
    counts = {name.rpartition(" (n = ")[2] for name in names}
    if len(counts) == 1:
        figure.for_each_trace(lambda t: t.update(name=t.name.rpartition(" (n = ")[0] or t.name) if t.name else None)
        names = [name.rpartition(" (n = ")[0] or name for name in names]
    # plotly sets the entries in columns as wide as the longest one
    columns = max(1, int(NARROW / (46 + CHARACTER * max(map(len, names), default=0))))
    room = LEGEND_ROW * -(-len(names) // columns)
    return figure.update_layout(height=height + room, margin_b=56 + room, legend_maxheight=0.9)


def padded(figure: go.Figure, *values: float | None) -> go.Figure:
    """Give the x axis room on both sides of these values, so that what is written at the outermost one is not cut off."""
    known = [v for v in values if v is not None and np.isfinite(v)]
    spread = (max(known) - min(known)) or abs(known[0]) or 1.0
    return figure.update_xaxes(range=[min(known) - 0.32 * spread, max(known) + 0.32 * spread])
