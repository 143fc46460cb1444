"""Chosen runs beside each other: what differs, their curves laid over each other, and paired differences from a baseline run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, glance
from panels.wording import humanised, number, plain, setting

from claimlab import figures
from claimlab.claims import interval

HEIGHT, LINE, TOLD = 320, 46, 3
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "8px,2px", "2px,6px")


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The points of each run, by id."""
    return {row["id"]: glance.at(row["id"]).table for row in rows}


def colours(runs: Sequence[str], baseline: str) -> dict[str, str]:
    """One colour a run, the baseline grey; a chart shows one arm, so that no colour stands for an arm here."""
    rest = [run for run in runs if run != baseline]
    return {run: (figures.BLUE, *figures.OTHERS)[i % 9] for i, run in enumerate(rest)} | {baseline: figures.GREY}


# ---- what differs


def differences(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> pd.DataFrame:
    """The knobs and circumstances in which the runs differ: one line each, one column a run."""
    facts = {row["id"]: {**row["params"], "profile": row["profile"], "negative control": bool(row["control"]),
                         "seeds used": ", ".join(map(str, row["seeds"])), "version of the code": (row["source_hash"] or "")[:8]}
             for row in rows}  # fmt: skip
    keys = list(dict.fromkeys(key for one in facts.values() for key in one))
    keys = [k for k in keys if len({str(one.get(k)) for one in facts.values()}) > 1]
    if "seeds" in keys and "seeds used" in keys:
        keys.remove("seeds used")
    body = {names[run]: [setting(one[k]) if k in one else "" for k in keys] for run, one in facts.items()}
    return pd.DataFrame(body, index=pd.Index([humanised(k) for k in keys], name="knob"))


def what_differs(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> None:
    frame = differences(rows, names)
    if frame.empty:
        st.caption(
            "These runs have the same knobs, profile and code; what differs between them is chance and what was done to them."
        )
        return
    st.dataframe(frame, alt="Knobs in which the chosen runs differ", key="differs")


# ---- curves


def overlay(rows: Sequence[dict[str, Any]], points: dict[str, pd.DataFrame], metric: str, arms: Sequence[str], names: dict[str, str],
            baseline: str) -> None:  # fmt: skip
    """One chart an arm: the runs over each other, each in its colour and its own kind of line."""
    palette = {names[run]: colour for run, colour in colours([row["id"] for row in rows], baseline).items()}
    with st.grid(2, min_column_width=340, gap="medium"):
        for arm in arms:
            parts = [_of(points[row["id"]], metric, arm).assign(arm=names[row["id"]]) for row in rows]
            whole = pd.concat(parts)
            with st.container():
                if whole.empty:
                    st.caption(f"None of these runs recorded {humanised(metric)} of {plain(arm)}.")
                    continue
                figure = figures.curve(
                    charts.thinned(whole, metric), metric, title="", y_title=humanised(metric), palette=palette
                )
                _dashes(figure, list(palette))
                title = ended(points, metric, arm, names, baseline)
                charts.show(charts.legend_below(figure, HEIGHT), key=f"overlay-{arm}", title=title, margin=14, alt=title)


def _dashes(figure: go.Figure, names: Sequence[str]) -> None:
    order = sorted(names, key=lambda n: n != names[-1])  # the baseline run is the solid one
    for trace in figure.data:
        name = trace.legendgroup
        if trace.line.width and name in order:
            trace.line.dash = DASHES[order.index(name) % len(DASHES)]


def ended(points: dict[str, pd.DataFrame], metric: str, arm: str, names: dict[str, str], baseline: str) -> str:
    """What one sees: the run that ends farthest from the baseline run."""
    found = {run: gap for run in points if run != baseline and len(gap := paired(points[run], points[baseline], metric, arm))}
    if not found:
        last = final(points[baseline], metric, arm)
        return f"{arm}: {humanised(metric)} ends at {number(last.mean())} (n = {len(last)})"
    run = max(found, key=lambda r: abs(found[r].mean()))
    mean = found[run].mean()
    side = "above" if mean > 0 else "below"
    return f"{arm}: {names[run]} ends {number(abs(mean))} {side} {names[baseline]} in {humanised(metric)} (n = {len(found[run])})"


def _of(table: pd.DataFrame, metric: str, arm: str) -> pd.DataFrame:
    return table[(table["metric"] == metric) & (table["arm"] == arm)]


# ---- paired differences


def final(table: pd.DataFrame, metric: str, arm: str) -> pd.Series:
    """The last value of each seed, by seed; only finite ones."""
    rows = _of(table, metric, arm).sort_values("step")
    last = rows.groupby("seed")["value"].agg(lambda v: v.iloc[-1]).astype(float)
    return last[np.isfinite(last)]


def paired(table: pd.DataFrame, baseline: pd.DataFrame, metric: str, arm: str) -> pd.Series:
    """Difference of the last values from the baseline run over the seeds that both have, by seed."""
    one, other = final(table, metric, arm), final(baseline, metric, arm)
    common = one.index.intersection(other.index)
    return one[common] - other[common]


def paired_plot(rows: Sequence[dict[str, Any]], points: dict[str, pd.DataFrame], metric: str, arms: Sequence[str], names: dict[str, str],
                baseline: str) -> None:  # fmt: skip
    """For each arm, a line a run: its difference from the baseline run with the 95 % interval, and a mark a seed."""
    others = [row["id"] for row in rows if row["id"] != baseline]
    palette = colours([row["id"] for row in rows], baseline)
    with st.grid(2, min_column_width=340, gap="medium"):
        for arm in arms:
            gaps = {run: gap for run in others if len(gap := paired(points[run], points[baseline], metric, arm))}
            with st.container():
                if not gaps:
                    st.caption(f"No seed of {plain(arm)} is in the baseline run and in another one, so nothing can be paired.")
                    continue
                figure, title = picture(gaps, names, palette, metric, arm, names[baseline])
                charts.show(figure, key=f"paired-{arm}", title=title, margin=10, alt=title, height=90 + LINE * len(gaps))


def picture(
    gaps: dict[str, pd.Series], names: dict[str, str], palette: dict[str, str], metric: str, arm: str, against: str
) -> tuple[go.Figure, str]:
    """The figure of the differences and the sentence that says them."""
    figure, told = go.Figure(), []
    for place, (run, gap) in enumerate(gaps.items()):
        mean = gap.mean()
        low, high = interval(gap.to_numpy()) if len(gap) > 1 else (mean, mean)
        told.append(f"{names[run]}: {mean:+.3g} [{low:.3g}, {high:.3g}], n = {len(gap)}")
        line = {"color": palette[run], "width": 4}
        figure.add_scatter(x=[low, high], y=[place, place], mode="lines", line=line, showlegend=False, hoverinfo="skip")
        figure.add_scatter(x=[mean], y=[place], mode="markers", marker={"color": palette[run], "size": 12}, showlegend=False,
                           hovertemplate=f"{told[-1]}<extra></extra>")  # fmt: skip
        figure.add_scatter(x=gap, y=[place + 0.28] * len(gap), mode="markers", showlegend=False, text=[f"seed {s}" for s in gap.index],
                           marker={"color": palette[run], "size": 9, "symbol": "line-ns-open", "line": {"width": 2}},
                           hovertemplate="%{text}: %{x:+.4g}<extra></extra>")  # fmt: skip
    figure.add_vline(x=0, line={"color": figures.INK, "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(gaps))),
        ticktext=["<br>".join(textwrap.wrap(names[run], 22)) for run in gaps],
        range=[-0.6, len(gaps) - 0.3],
    )
    figures.style(figure, "", x=f"{humanised(metric)}, difference", height=90 + LINE * len(gaps))
    more = f"; {len(told) - TOLD} more" if len(told) > TOLD else ""
    return figure.update_layout(margin_b=50), f"{arm}, minus {against}: " + "; ".join(told[:TOLD]) + more
