"""Over all runs of a study: how the effect of a claim goes with the knobs, and in how many settings the claim holds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, knobs
from panels.picking import effect_of
from panels.wording import humanised, number, plain, setting

from claimlab import figures
from claimlab.claims import Claim, interval
from claimlab.params import Knob
from claimlab.study import Study

HEIGHT, WIDE, CELLS, MOST = 360, 680, 4, 12
EACH = 4  # runs that a bin holds at least where its mean is given an interval
CONTOUR = "#1f2933"  # on cells, whose colours are the same in both themes
MANY, LINES = 120, 400  # runs from which on intervals are those of bins; lines of parallel coordinates
SYMBOLS = {"supported": "circle", "refuted": "x", "undecided": "circle-open"}


def usable(rows: Sequence[dict[str, Any]], claim: Claim) -> list[dict[str, Any]]:
    """The runs that say something of a claim: judged with an effect, not under the negative control."""
    return [row for row in rows if effect_of(row, claim) is not None and not row["control"]]


def varying(study: Study, rows: Sequence[dict[str, Any]]) -> list[Knob]:
    """The knobs that take more than one value over these runs; the number of seeds is none of them."""
    return [k for k in study.knobs if k.name != "seeds" and len({str(row["params"].get(k.name)) for row in rows}) > 1]


# ---- share of settings


def settings(rows: Sequence[dict[str, Any]], claim: Claim) -> dict[str, str]:
    """The verdict of each setting of the knobs, seeds aside: that of its newest run. `rows` are newest first."""
    found: dict[str, str] = {}
    for row in rows:
        key = json.dumps({k: v for k, v in row["params"].items() if k != "seeds"}, sort_keys=True)
        found.setdefault(key, row["judged"][claim.id]["verdict"])
    return found


def share(rows: Sequence[dict[str, Any]], claim: Claim) -> str:
    """In how many of the settings that were tried the claim holds, in words."""
    found = list(settings(rows, claim).values())
    held = found.count("supported")
    rest = [f"{word} in {found.count(word)}" for word in ("refuted", "undecided") if word in found]
    part = f" ({100 * held / len(found):.0f} %)" if len(found) > 1 else ""
    return f"The claim holds in {held:,} of {len(found):,} settings{part}" + (f"; {', '.join(rest)}" if rest else "")


# ---- parallel coordinates


def axis(knob: Knob, values: Sequence[Any]) -> dict[str, Any]:
    """A knob as an axis: names get a tick each, wide knobs their logarithm."""
    if knob.type in (bool, str):
        names = [str(c) for c in knob.choices if c in values]
        return {"values": [names.index(str(v)) for v in values], "tickvals": list(range(len(names))), "ticktext": names}
    if 0 < knobs.WIDE * min(values) <= max(values):
        ticks = sorted(set(values))
        ticks = ticks[:: max(1, -(-len(ticks) // 6))]
        return {
            "values": [math.log10(v) for v in values],
            "tickvals": [math.log10(t) for t in ticks],
            "ticktext": [setting(t) for t in ticks],
        }
    return {"values": list(values)}


def scale(claim: Claim) -> list[tuple[float, str]]:
    """Colours of an effect around the margin: those of supported and refuted, grey between them; legible on light and dark."""
    ends = [figures.VERDICT_COLOURS[word] for word in ("refuted", "supported")]
    low, high = ends if claim.better == "higher" else ends[::-1]
    return [(0.0, low), (0.5, figures.GREY), (1.0, high)]


def strongest(rows: Sequence[dict[str, Any]], found: Sequence[Knob], claim: Claim) -> str:
    """The numeric knob with which the effect goes most, by Spearman's rank correlation, in words."""
    effects = pd.Series([effect_of(row, claim) for row in rows]).rank()
    ties = {
        k.name: pd.Series([row["params"][k.name] for row in rows]).rank().corr(effects) for k in found if k.type in (int, float)
    }
    ties = {name: r for name, r in ties.items() if math.isfinite(r)}
    if not ties or len(rows) < 3:
        return f"The effect over {len(rows)} runs"
    name = max(ties, key=lambda n: abs(ties[n]))
    side = "grows" if ties[name] > 0 else "falls"
    return f"The effect {side} most with {humanised(name)}: rank correlation {ties[name]:+.2f}, n = {len(rows):,} runs"


def parallel(study: Study, rows: Sequence[dict[str, Any]], claim: Claim) -> None:
    """One line a run over its knobs and the effect; a stretch of an axis can be marked to pick out the runs within it."""
    found = varying(study, rows)
    if len(rows) < 2 or not found:
        st.caption("Parallel coordinates need two judged runs that differ in a knob.")
        return
    title = strongest(rows, found, claim)
    if len(rows) > LINES:  # every so many by rank, so that the spread of effects stays
        rows = sorted(rows, key=lambda row: effect_of(row, claim))[:: -(-len(rows) // LINES)]
        title += f"; {len(rows)} of them drawn"
    effects = [effect_of(row, claim) for row in rows]
    dimensions = [{"label": humanised(k.name), **axis(k, [row["params"][k.name] for row in rows])} for k in found]
    dimensions.append({"label": "effect", "values": effects})
    figure = go.Figure(go.Parcoords(dimensions=dimensions, labelangle=-15 if len(found) > 5 else 0,
                                    line={"color": effects, "cmid": claim.threshold, "colorscale": scale(claim)}))  # fmt: skip
    figures.style(figure, "", height=HEIGHT).update_layout(margin={"l": 70, "r": 50, "b": 30})
    charts.show(figure, key="parallel", title=title, margin=56, least=max(WIDE, 130 * len(dimensions)),
                alt=f"Parallel coordinates of {len(found)} knobs and the effect over {len(rows)} runs")  # fmt: skip


# ---- response over one knob


def alike(rows: Sequence[dict[str, Any]], baseline: dict[str, Any], free: Sequence[str]) -> list[dict[str, Any]]:
    """The runs that agree with the baseline run in every knob but those in `free` and the number of seeds."""
    skip = {*free, "seeds"}
    return [row for row in rows if all(row["params"].get(k) == v for k, v in baseline["params"].items() if k not in skip)]


def response(study: Study, rows: Sequence[dict[str, Any]], claim: Claim, knob: Knob) -> None:
    """The effect with its interval at each value of a knob, the margin as a line."""
    rows = sorted(rows, key=lambda row: _order(knob, row["params"][knob.name]))
    figure = go.Figure()
    for word, symbol in SYMBOLS.items():
        part = [row for row in rows if row["judged"][claim.id]["verdict"] == word]
        if part:
            _points(figure, part, claim, knob, word, symbol, len(rows))
    _middle(figure, rows, claim, knob)
    figure.add_hline(y=claim.threshold, line={"color": figures.INK, "dash": "dash", "width": 1.5})
    figure.add_annotation(text=f"margin {claim.threshold:+g}", x=1, xref="x domain", y=claim.threshold, xanchor="right", yanchor="bottom",
                          showarrow=False)  # fmt: skip
    unit = f" ({knob.unit})" if knob.unit else ""
    figures.style(figure, "", x=humanised(knob.name) + unit, y=f"effect on {humanised(claim.metric)}", height=HEIGHT)
    if knob.type in (bool, str):
        figure.update_xaxes(type="category")
    elif 0 < knobs.WIDE * rows[0]["params"][knob.name] <= rows[-1]["params"][knob.name]:
        figure.update_xaxes(type="log")
    title = said(rows, claim, knob)
    charts.show(charts.legend_below(figure, HEIGHT), key="response", title=title, margin=14, alt=title)


def _middle(figure: go.Figure, rows: Sequence[dict[str, Any]], claim: Claim, knob: Knob) -> None:
    """The mean effect over the knob; of many runs, in bins of the knob, with the 95 % interval over the runs of each."""
    places = binned(knob, [_place(knob, row) for row in rows])
    groups = pd.Series([effect_of(row, claim) for row in rows], index=places).groupby(level=0, sort=False)
    if groups.ngroups < 2:
        return
    sides = [interval(part.to_numpy()) if len(part) > 1 else (part.mean(), part.mean()) for _, part in groups]
    means = groups.mean()
    bars = {"array": [high - m for (_, high), m in zip(sides, means, strict=True)], "thickness": 2, "color": figures.INK,
            "arrayminus": [m - low for (low, _), m in zip(sides, means, strict=True)]}  # fmt: skip
    figure.add_scatter(
        x=list(means.index), y=means.to_numpy(), mode="lines", showlegend=False, name="mean", line={"color": figures.INK, "width": 2},
        hoverinfo="skip", error_y=bars if len(rows) > MANY or groups.size().min() >= EACH else None,
    )  # fmt: skip


def _place(knob: Knob, row: dict[str, Any]) -> Any:
    value = row["params"][knob.name]
    return str(value) if knob.type in (bool, str) else value


def _order(knob: Knob, value: Any) -> Any:
    return knob.choices.index(value) if knob.type in (bool, str) else value


def _points(
    figure: go.Figure, rows: Sequence[dict[str, Any]], claim: Claim, knob: Knob, word: str, symbol: str, total: int
) -> None:
    judged = [row["judged"][claim.id] for row in rows]
    effects = np.array([v["effect"] for v in judged], dtype=float)
    low, high = (
        np.array([v["effect"] if v.get(side) is None else v[side] for v in judged], dtype=float) for side in ("low", "high")
    )
    text = [f"{word}: {v['effect']:+.3g}, n = {v['n']}, run {row['id'][-6:]}" for row, v in zip(rows, judged, strict=True)]
    colour = figures.VERDICT_COLOURS[word]
    bars = {"array": high - effects, "arrayminus": effects - low, "color": figures.faded(colour, 0.55), "thickness": 1.5}
    figure.add_scatter(
        x=[_place(knob, row) for row in rows], y=effects, mode="markers", name=f"{figures.VERDICT_ICONS[word]} {word}", text=text,
        marker={"color": colour, "symbol": symbol, "size": 10, "line": {"width": 2, "color": colour}},
        error_y=bars if total <= MANY else None, opacity=1.0 if total <= MANY else 0.45,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def said(rows: Sequence[dict[str, Any]], claim: Claim, knob: Knob) -> str:
    """What one sees: the mean effect at the first and the last value, or bin, of the knob; `rows` go with its value."""
    means = _means(rows, claim, knob)
    name, (first, *_), (here, *_) = humanised(knob.name), means.index, means
    if len(means) < 2:
        return f"At {name} = {setting(first)} the effect is {here:+.3g}, n = {len(rows):,} runs"
    ends = f"from {here:+.3g} at {name} = {setting(first)} to {means.iloc[-1]:+.3g} at {name} = {setting(means.index[-1])}"
    return f"The effect goes {ends}, n = {len(rows):,} runs"


def _means(rows: Sequence[dict[str, Any]], claim: Claim, knob: Knob) -> pd.Series:
    places = binned(knob, [row["params"][knob.name] for row in rows])
    effects = pd.Series([effect_of(row, claim) for row in rows]).groupby(pd.Series(places, dtype=object), sort=False)
    return effects.mean()


# ---- heat map over two knobs


def binned(knob: Knob, values: Sequence[Any]) -> list[Any]:
    """The values of a knob for a heat map: as they are where few, else the middle value of one of up to MOST equally full bins."""
    if knob.type in (bool, str) or len(set(values)) <= MOST:
        return list(values)
    series = pd.Series(values)
    bins = pd.qcut(series, max(3, min(MOST, len(values) // (EACH + 1))), duplicates="drop")
    return series.groupby(bins, observed=True).transform("median").map(lambda v: float(f"{v:.3g}")).tolist()


def heat(rows: Sequence[dict[str, Any]], claim: Claim, across: Knob, up: Knob) -> None:
    """Mean effect in each cell of two knobs, with the margin as a contour."""
    columns = [binned(knob, [row["params"][knob.name] for row in rows]) for knob in (across, up)]
    frame = pd.DataFrame({"x": columns[0], "y": columns[1], "effect": [effect_of(row, claim) for row in rows]})
    grid = frame.pivot_table(index="y", columns="x", values="effect", aggfunc="mean")
    if min(grid.shape) < 2 or grid.notna().to_numpy().sum() < CELLS:
        here = f"{grid.shape[1]} of {plain(humanised(across.name))} and {grid.shape[0]} of {plain(humanised(up.name))}"
        st.caption(f"A heat map needs judged runs at two values or more of both knobs; here are {here}.")
        return
    z = grid.to_numpy(dtype=float)
    show_text = {"texttemplate": "%{z:.2g}"} if grid.size <= 80 else {}
    figure = go.Figure(
        go.Heatmap(
            z=z,
            colorscale=scale(claim),
            zmid=claim.threshold,
            colorbar={"title": "effect"},
            hovertemplate="%{z:+.3g}<extra></extra>",
            **show_text,
        )
    )
    line = {"color": CONTOUR, "width": 3}
    figure.add_contour(
        z=z,
        showscale=False,
        hoverinfo="skip",
        line=line,
        contours={"start": claim.threshold, "end": claim.threshold, "coloring": "none"},
    )
    figures.style(figure, "", x=humanised(across.name), y=humanised(up.name), height=HEIGHT + 40)
    for update, values in ((figure.update_xaxes, grid.columns), (figure.update_yaxes, grid.index)):
        update(tickvals=list(range(len(values))), ticktext=[setting(v.item() if hasattr(v, "item") else v) for v in values])
    past = (z >= claim.threshold) if claim.better == "higher" else (z <= claim.threshold)
    cells = int(np.isfinite(z).sum())
    title = f"Past the margin of {claim.threshold:+g} in {int((past & np.isfinite(z)).sum())} of {cells} cells, n = {len(rows):,} runs"
    charts.show(figure, key="heat", title=title, margin=14, alt=title + "; the line is the margin")


def summary(rows: Sequence[dict[str, Any]], claim: Claim) -> str:
    """The spread of the effect over all runs, in words."""
    effects = sorted(effect_of(row, claim) for row in rows)
    return f"effects from {number(effects[0])} to {number(effects[-1])}, n = {len(rows):,} runs"
