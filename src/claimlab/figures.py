"""Figures of studies, notebooks, reports and dashboard: one look, colour-blind safe, readable on light and dark pages.

The baseline is always grey and the paper's method always blue; other arms take the rest of the Okabe-Ito colours in order.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from claimlab.claims import Claim, Verdict, interval

if TYPE_CHECKING:
    import pandas as pd

BLUE, GREY = "#0072B2", "#888888"
OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800", "#7F5FA8", "#A6761D")
VERDICT_COLOURS = {"supported": "#009E73", "refuted": "#D55E00", "undecided": "#888888"}
VERDICT_ICONS = {"supported": "✔", "refuted": "✘", "undecided": "?"}
INK, GRID = "#6F7680", "rgba(128,128,128,0.25)"  # legible on white and on black
WIDTH = 88  # characters of a title line at 700 px


@cache
def template() -> go.layout.Template:
    """The common look: transparent ground, neutral ink, legend below the plot."""
    axis = {"gridcolor": GRID, "linecolor": INK, "zerolinecolor": GRID, "automargin": True, "ticks": "outside", "tickcolor": INK,
            "title": {"standoff": 10}}  # fmt: skip
    return go.layout.Template(layout={
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "colorway": [BLUE, *OTHERS],
        "font": {"family": "Helvetica, Arial, Liberation Sans, sans-serif", "size": 13, "color": INK},
        "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left",
                  "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 24}},
        "xaxis": axis, "yaxis": axis, "margin": {"l": 64, "r": 24, "t": 64, "b": 84}, "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
    })  # fmt: skip


def colours(arms: Sequence[str], baseline: str | None = None, method: str | None = None) -> dict[str, str]:
    """A colour for each arm that does not depend on which others are shown beside baseline and method."""
    rest = [a for a in arms if a not in (baseline, method)]
    chosen = {arm: OTHERS[i % len(OTHERS)] for i, arm in enumerate(rest)}
    return chosen | {a: c for a, c in ((baseline, GREY), (method, BLUE)) if a is not None and a in arms}


def arm_colours(lab: Any) -> dict[str, str]:
    """Colours of an experiment's arms: the first paired claim says which one is the method and which the baseline."""
    first = next((c for c in lab.study.claims if c.baseline), None)
    return colours(list(lab.study.module.ARMS), first and first.baseline, first and first.arm)


def style(figure: go.Figure, title: str, *, height: int = 420, x: str | None = None, y: str | None = None) -> go.Figure:
    """Give any figure the common look, a wrapped title that says what one sees, and axis titles with units."""
    lines = textwrap.wrap(title, WIDTH)
    headings = any(a.yref == "paper" and a.yanchor == "bottom" and a.y == 1 for a in figure.layout.annotations)  # of panels
    top = 42 + 22 * max(1, len(lines)) + 22 * headings
    figure.update_layout(template=template(), height=height, title_text="<br>".join(lines), margin_t=top)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    return figure


def thin(x: np.ndarray, y: np.ndarray, limit: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve [n]: its ends, and lowest and highest of each stretch, so that spikes stay."""
    x, y = np.asarray(x), np.asarray(y)
    if len(x) <= limit:
        return x, y
    keep = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), limit // 2 - 1):
        finite = part[np.isfinite(y[part])]
        keep |= {finite[y[finite].argmin()], finite[y[finite].argmax()]} if len(finite) else {part[0]}
    return x[sorted(keep)], y[sorted(keep)]


def band(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval over seeds at each step, of the rows of one arm and metric: columns mean, low, high."""
    wide = table.groupby(["step", "seed"])["value"].mean().unstack("seed")
    rows = []
    for values in wide.to_numpy(dtype=float):
        known = values[np.isfinite(values)]
        low, high = interval(known) if len(known) > 1 else (np.nan, np.nan)
        rows.append((known.mean() if len(known) else np.nan, low, high))
    import pandas as pd

    return pd.DataFrame(rows, index=wide.index, columns=["mean", "low", "high"])


def curve(table: pd.DataFrame, metric: str, *, arms: Sequence[str] | None = None, title: str, y_title: str,
          x_title: str = "optimiser step", baseline: str | None = None, method: str | None = None, log_y: bool = False,
          references: Mapping[str, float] | None = None, palette: Mapping[str, str] | None = None, height: int = 420,
          names: Mapping[str, str] | None = None) -> go.Figure:  # fmt: skip
    """Thin line a seed, thick mean and 95 % band of each arm over steps; `references` are dashed horizontal lines."""
    rows = table[table["metric"] == metric]
    shown = [a for a in (arms or rows["arm"].unique()) if (rows["arm"] == a).any()]
    palette = palette or colours(shown, baseline, method)
    figure = go.Figure()
    for arm in shown:
        _arm_curve(figure, rows[rows["arm"] == arm], (names or {}).get(arm, arm), palette.get(arm, OTHERS[0]))
    for name, value in (references or {}).items():
        figure.add_hline(y=value, line={"dash": "dash", "color": INK, "width": 1})
        height_on_axis = math.log10(value) if log_y else value  # plotly wants the exponent, for labels alone
        figure.add_annotation(text=name, x=1, xref="x domain", y=height_on_axis, xanchor="right", yanchor="bottom",
                              showarrow=False, font_color=INK)  # fmt: skip
    if log_y:
        figure.update_yaxes(type="log", exponentformat="power")
    figure.update_layout(uirevision=metric)
    return style(figure, title, x=x_title, y=y_title, height=height)


def _arm_curve(figure: go.Figure, rows: pd.DataFrame, name: str, colour: str) -> None:
    lines = [thin(one["step"].to_numpy(float), one["value"].to_numpy(float)) for _, one in rows.groupby("seed")]
    x, y = (np.concatenate([np.append(line[axis], np.nan) for line in lines]) for axis in (0, 1))  # a gap after each seed
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 0.8}, opacity=0.35, legendgroup=name,
                       showlegend=False, hoverinfo="skip", name=name)  # fmt: skip
    middle = band(rows)
    if rows["seed"].nunique() > 1:
        edge = {"mode": "lines", "line": {"width": 0}, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
        x, low, high = _hull(middle)
        figure.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself",
                           fillcolor=faded(colour, 0.18), name=f"{name}, 95 % interval", **edge)  # fmt: skip
    x, mean = thin(middle.index.to_numpy(), middle["mean"].to_numpy())
    figure.add_scatter(x=x, y=mean, mode="lines", line={"color": colour, "width": 2.8}, legendgroup=name,
                       name=f"{name} (n = {rows['seed'].nunique()})")  # fmt: skip


def _hull(middle: pd.DataFrame, limit: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, low and high of a band at no more than `limit` steps that both edges share: the widest of each stretch."""
    if len(middle) <= limit:
        return middle.index.to_numpy(), middle["low"].to_numpy(), middle["high"].to_numpy()
    place = np.minimum(np.arange(len(middle)) * (limit - 1) // (len(middle) - 1), limit - 1)  # the last step stands alone
    parts = middle.groupby(place)
    return (
        middle.index.to_numpy()[np.unique(place, return_index=True)[1]],
        parts["low"].min().to_numpy(),
        parts["high"].max().to_numpy(),
    )


def faded(colour: str, opacity: float) -> str:
    """A hex colour with opacity, as plotly wants it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def paired(verdict: Verdict | Mapping[str, Any], claim: Claim) -> go.Figure:
    """The picture of a verdict: a dot a seed, the interval, and the margin as a line."""
    facts = verdict.as_dict() if isinstance(verdict, Verdict) else dict(verdict)
    colour = VERDICT_COLOURS[facts["verdict"]]
    figure = go.Figure()
    for seed, value in facts["values"]:
        figure.add_scatter(x=[value], y=[0.35], mode="markers", marker={"color": faded(colour, 0.55), "size": 9, "symbol": "line-ns-open",
                           "line": {"width": 2}}, hovertemplate=f"seed {seed}: {value:+.4g}<extra></extra>", showlegend=False)  # fmt: skip
    if facts["effect"] is not None:
        low, high = (facts[k] if facts[k] is not None else facts["effect"] for k in ("low", "high"))
        figure.add_scatter(
            x=[low, high], y=[0, 0], mode="lines", line={"color": colour, "width": 4}, showlegend=False, hoverinfo="skip"
        )
        figure.add_scatter(x=[facts["effect"]], y=[0], mode="markers", marker={"color": colour, "size": 13}, showlegend=False,
                           hovertemplate="%{x:+.4g}<extra></extra>")  # fmt: skip
    shown = [v for _, v in facts["values"]] + [v for v in (facts["low"], facts["high"]) if v is not None] + [claim.threshold]
    shown += [0.0] if claim.kind == "paired" else []
    room = 0.06 * (max(shown) - min(shown) or 1.0)
    figure.update_xaxes(range=[min(shown) - room, max(shown) + room])
    side = "right" if claim.threshold < (min(shown) + max(shown)) / 2 else "left"  # the label stays inside
    mark = {"annotation_text": f"margin {claim.threshold:+g}", "annotation_position": f"top {side}", "annotation_font_color": INK}
    figure.add_vline(x=claim.threshold, line={"color": INK, "dash": "dash", "width": 1.5}, **mark)
    if claim.kind == "paired":
        figure.add_vline(x=0, line={"color": INK, "width": 1})
    what = f"{claim.metric}: {claim.arm}" + (f" − {claim.baseline}" if claim.baseline else "")
    title = f"{VERDICT_ICONS[facts['verdict']]} {facts['verdict']}: {claim.text}"
    figure.update_yaxes(visible=False, range=[-0.5, 0.8])
    return style(figure, title, x=what, height=210).update_layout(margin_b=56)


def bars(table: pd.DataFrame, metric: str, *, arms: Sequence[str] | None = None, title: str, y_title: str,
         palette: Mapping[str, str] | None = None, baseline: str | None = None, method: str | None = None,
         names: Mapping[str, str] | None = None, height: int = 420) -> go.Figure:  # fmt: skip
    """Last value of each arm: a dot a seed, a bar to the mean, its 95 % interval."""
    rows = table[table["metric"] == metric]
    shown = [a for a in (arms or rows["arm"].unique()) if (rows["arm"] == a).any()]
    palette = palette or colours(shown, baseline, method)
    figure = go.Figure()
    for place, arm in enumerate(shown):
        one = rows[rows["arm"] == arm]
        values = one.sort_values("step").groupby("seed")["value"].agg(lambda v: v.iloc[-1]).to_numpy()
        known, name = values[np.isfinite(values)], (names or {}).get(arm, arm)
        mean = known.mean() if len(known) else np.nan
        low, high = interval(known) if len(known) > 1 else (mean, mean)
        figure.add_bar(x=[place], y=[mean], marker_color=faded(palette.get(arm, OTHERS[0]), 0.6), name=name, showlegend=False,
                       error_y={"array": [high - mean], "arrayminus": [mean - low], "color": INK}, hovertemplate="%{y:.4g}")  # fmt: skip
        beside = place + np.linspace(-0.28, 0.28, len(values) + 2)[1:-1]  # seed by seed, so that no dot hides another
        figure.add_scatter(x=beside, y=values, mode="markers", marker={"color": palette.get(arm, OTHERS[0]), "size": 6}, name=name,
                           showlegend=False, hovertemplate="%{y:.4g}<extra></extra>")  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=[(names or {}).get(arm, arm) for arm in shown])
    return style(figure, title, y=y_title, x="arm", height=height)


def images(arrays: Sequence[np.ndarray], titles: Sequence[str], *, title: str, columns: int = 6, scale: str = "Greys_r",
           outlines: Sequence[np.ndarray | None] | None = None, symmetric: bool = False) -> go.Figure:  # fmt: skip
    """A grid of images [H, W], each with its title; `outlines` draws the border of a mask; `symmetric` centres the colours on 0."""
    rows = -(-len(arrays) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(titles), horizontal_spacing=0.02, vertical_spacing=min(0.12, 0.3 / rows)
    )
    for k, array in enumerate(arrays):
        row, column = k // columns + 1, k % columns + 1
        peak = float(np.nanmax(np.abs(array))) or 1.0
        limits = {"zmin": -peak, "zmax": peak} if symmetric else {}
        figure.add_heatmap(
            z=np.asarray(array)[::-1], colorscale=scale, showscale=False, row=row, col=column, hoverinfo="z", **limits
        )
        if outlines is not None and outlines[k] is not None:
            figure.add_trace(_border(outlines[k]), row=row, col=column)
    height, width = np.asarray(arrays[0]).shape[:2]
    style(figure, title, height=int(110 + rows * (34 + 150 * height / width)))
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False)
    for k in range(len(arrays)):
        figure.update_yaxes(scaleanchor=f"x{k + 1}" if k else "x", row=k // columns + 1, col=k % columns + 1)
    return figure.update_annotations(font_size=11)


def _border(mask: np.ndarray) -> go.Contour:
    """The outline of a mask [H, W], drawn as the image is: first row on top."""
    return go.Contour(z=np.asarray(mask, dtype=float)[::-1], contours={"start": 0.5, "end": 0.5, "coloring": "none"},
                      line={"color": OTHERS[0], "width": 1.5}, showscale=False, showlegend=False, hoverinfo="skip")  # fmt: skip


def matrix(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, title: str, x: str, y: str, unit: str = "",
           height: int = 420) -> go.Figure:  # fmt: skip
    """A heat map [len(rows), len(columns)] with the values written in."""
    figure = go.Figure(go.Heatmap(z=values, x=list(columns), y=list(rows), colorscale="Cividis", colorbar_title=unit,
                                  texttemplate="%{z:.2g}"))  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return style(figure, title, x=x, y=y, height=height)


def overlay(image: np.ndarray, saliency: np.ndarray, outline: np.ndarray | None = None, *, title: str) -> go.Figure:
    """A saliency map [H, W] laid over its image [H, W], with the border of the object mask."""
    figure = go.Figure(go.Heatmap(z=np.asarray(image)[::-1], colorscale="Greys_r", showscale=False, hoverinfo="skip"))
    figure.add_heatmap(z=np.asarray(saliency)[::-1], colorscale="Viridis", opacity=0.55, colorbar_title="saliency")
    if outline is not None:
        figure.add_trace(_border(outline))
    style(figure, title, height=460).update_xaxes(visible=False, constrain="domain")
    return figure.update_yaxes(visible=False, scaleanchor="x")
