"""A run that adds seeds until its claims are decided: the interval of each claim at every look, shrinking towards its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from panels import charts
from panels.wording import badge, humanised, plain

from claimlab import figures
from claimlab.study import Study

HEIGHT = 210


def panel(study: Study, events: Sequence[dict[str, Any]]) -> None:
    """One small chart a claim: effect and interval against the number of seeds, with the margin. Nothing for other runs."""
    found = [e["payload"] for e in events if e["kind"] == "look"]
    if not found:
        return
    last, planned = found[-1], found[-1]["looks"]
    st.markdown(f"**Interval against seeds** · judged at {last['seeds']} of at most {planned[-1]} seeds")
    st.caption("Every look uses a wider interval than a single one would, so that looking often buys no false verdict.")
    with st.grid(2, min_column_width=300, gap="small"):
        for one in last["claims"]:
            with st.container(key=f"look-{one['claim']}"):
                st.markdown(f"{badge(one['verdict'])} {plain(humanised(one['claim']))}")
                _chart(study, one["claim"], found, planned)


def _chart(study: Study, claim: str, found: Sequence[dict[str, Any]], planned: Sequence[int]) -> None:
    seen = [(look["seeds"], one) for look in found for one in look["claims"] if one["claim"] == claim and one["effect"] is not None]
    if not seen:
        st.caption("Nothing that could be measured yet.")
        return
    metric = next((humanised(c.metric) for c in study.claims if c.id == claim), "effect")
    now = seen[-1][1]
    words = f"{now['effect']:+.3g} at {seen[-1][0]} seeds, margin {now['threshold']:+g}"
    charts.show(drawn(seen, planned, metric), key=f"looks-{claim}", height=HEIGHT, margin=8, alt=f"Interval of {claim} by seeds: {words}")


def drawn(seen: Sequence[tuple[int, dict[str, Any]]], planned: Sequence[int], metric: str) -> go.Figure:
    """Effect and interval of one claim by number of seeds; a side without bound ends at the outermost effect."""
    figure = go.Figure()
    edges = [one[side] for _, one in seen for side in ("effect", "low", "high", "threshold") if one[side] is not None]
    for seeds, one in seen:
        low, high = (edge if one[side] is None else one[side] for side, edge in (("low", min(edges)), ("high", max(edges))))
        colour = figures.VERDICT_COLOURS[one["verdict"]]
        figure.add_scatter(
            x=[str(seeds)], y=[one["effect"]], mode="markers", marker={"color": colour, "size": 10}, showlegend=False,
            error_y={"type": "data", "symmetric": False, "array": [high - one["effect"]], "arrayminus": [one["effect"] - low],
                     "color": colour, "thickness": 2.5},
            hovertemplate=f"{seeds} seeds: {one['effect']:+.4g} [{low:+.4g}, {high:+.4g}], {one['verdict']}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=seen[-1][1]["threshold"], line={"color": figures.INK, "dash": "dash", "width": 1.5})
    figures.style(figure, "", x="seeds", y=metric, height=HEIGHT)
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=[str(n) for n in planned],
                               range=[-0.5, len(planned) - 0.5]).update_layout(margin_b=48)  # fmt: skip
