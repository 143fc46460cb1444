"""Figures of the study gcav. Each takes plain arrays, tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, style

PALETTE = (BLUE, *OTHERS)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down")
WORDS = {"cav": "separate vectors (TCAV)", "mean_score": "mean of scores", "best_layer": "best layer",
         "mean_code": "mean code", "no_variance": "no variance term", "gcav": "GCAV"}  # fmt: skip


def score_bars(plain: np.ndarray, whole: np.ndarray | None, concepts: Sequence[str], layers: Sequence[str], of: str) -> go.Figure:
    """TCAV and TGCAV scores by layer, a panel a concept, the last of which is random: [S, concepts, L] each; dots are seeds."""
    fig = make_subplots(1, len(concepts), subplot_titles=list(concepts), shared_yaxes=True, horizontal_spacing=0.03)
    shown = [("separate vectors", GREY, plain, 0.0)]
    if whole is not None:
        shown = [("separate vectors", GREY, plain, -0.2), ("global vector", BLUE, whole, 0.2)]
    place = np.arange(len(layers))
    for k in range(len(concepts)):
        for name, colour, values, shift in shown:
            fig.add_bar(x=place + shift, y=values[:, k].mean(0), name=name, marker_color=faded(colour, 0.45), showlegend=k == 0,
                        width=0.38, row=1, col=k + 1)  # fmt: skip
            beside = np.linspace(-0.12, 0.12, len(values) + 2)[1:-1, None] + place + shift
            fig.add_scatter(x=beside.ravel(), y=values[:, k].ravel(), mode="markers", marker=dict(color=colour, size=5),
                            showlegend=False, name=name, row=1, col=k + 1)  # fmt: skip
        fig.add_hline(y=0.5, line=dict(color=INK, dash="dot", width=1), row=1, col=k + 1)
    told = [f"spread over layers {v.std(-1).mean():.2f}, random pictures {np.abs(v[:, -1] - 0.5).mean():.2f} from one half"
            for *_, v, _ in shown]  # fmt: skip
    fig.update_yaxes(range=[-0.02, 1.02]).update_yaxes(title_text="share of images whose logit grows", col=1)
    fig.update_xaxes(tickvals=place, ticktext=list(layers), tickangle=45)
    words = f"; with the global vector {told[1]}" if whole is not None else ""
    return style(fig, f"The class {of} with separate vectors: {told[0]}{words}", x="layer", height=460)


def axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two principal axes of points [N, e] of unit length: places [N, 2], and the shares of variance [2]."""
    points = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    centred = points - points.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2], s[:2] ** 2 / (s**2).sum()


def codes(parts: Mapping[str, np.ndarray], concepts: Sequence[str], layers: Sequence[str], title: str) -> go.Figure:
    """Codes [M, R, L, e] on their two principal axes, a panel a stage: colours are concepts, symbols layers."""
    fig = make_subplots(1, len(parts), subplot_titles=list(parts), horizontal_spacing=0.1)
    for column, u in enumerate(parts.values(), 1):
        m, r, layer = u.shape[:3]
        places, share = axes(u.reshape(-1, u.shape[-1]))
        places = places.reshape(m, r, layer, 2)
        marks = [SYMBOLS[i % len(SYMBOLS)] for _ in range(r) for i in range(layer)]
        told = [layers[i] for _ in range(r) for i in range(layer)]
        for k, name in enumerate(concepts):
            x, y = places[k].reshape(-1, 2).T
            colour = GREY if k == m - 1 else PALETTE[k % len(PALETTE)]
            fig.add_scatter(x=x, y=y, mode="markers", name=name, legendgroup=name, showlegend=column == 1, text=told, row=1, col=column,
                            marker=dict(color=faded(colour, 0.7), symbol=marks, size=7),
                            hovertemplate="%{text}<extra>" + name + "</extra>")  # fmt: skip
        for k, name in enumerate(layers if column == 1 else ()):
            fig.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=dict(color=INK, symbol=SYMBOLS[k % len(SYMBOLS)]))
        fig.update_xaxes(title_text=f"first axis ({share[0]:.0%} of variance)", col=column)
        fig.update_yaxes(title_text=f"second axis ({share[1]:.0%})", col=column)
    return style(fig, title, height=540).update_layout(margin_b=130)


def attention(weight: np.ndarray, concepts: Sequence[str], layers: Sequence[str]) -> go.Figure:
    """How much the fusion looks at each layer for each concept: [M, L], rows sum to 1."""
    top = layers[int(weight.mean(0).argmax())]
    fig = go.Figure(go.Heatmap(z=weight, x=list(layers), y=list(concepts), colorscale="Cividis", texttemplate="%{z:.2f}",
                               colorbar_title="weight"))  # fmt: skip
    fig.update_yaxes(autorange="reversed")
    title = f"On average the fusion looks most at {top} ({weight.mean(0).max():.2f}; even would be {1 / len(layers):.2f})"
    return style(fig, title, x="layer", y="concept")


def price(table: pd.DataFrame, weight: float) -> go.Figure:
    """Gap and spread over layers against the variance weight, for the seeds that all weights share; dotted: separate vectors."""
    gaps = {"relevant_minus_irrelevant": "relevant minus irrelevant", "score_std_over_layers": "std over layers"}
    last = table.sort_values("step", kind="stable").groupby(["arm", "metric", "seed"])["value"].last()
    other = [key for key in last.index if key[0] == "weights" and key[1].endswith("score_std_over_layers")]
    seeds = sorted({key[2] for key in other})
    weights = sorted({float(key[1].split("=")[1].split(":")[0]) for key in other})
    rows: dict[str, dict[float, np.ndarray]] = {metric: {} for metric in gaps}
    for metric, by in rows.items():
        asked = {0.0: ("no_variance", metric), weight: ("gcav", metric)}
        asked = {w: ("weights", f"weight={w:g}: {metric}") for w in weights} | asked
        for w, (arm, name) in sorted(asked.items()):
            found = [last.get((arm, name, s), np.nan) for s in seeds]
            if found and not np.isnan(found).all():
                by[w] = np.array(found)
    fig = make_subplots(1, 2, subplot_titles=list(gaps.values()), horizontal_spacing=0.12)
    for column, (metric, by) in enumerate(rows.items(), 1):
        x = list(by)
        for k in range(len(seeds)):
            fig.add_scatter(x=x, y=[v[k] for v in by.values()], mode="lines+markers", row=1, col=column, showlegend=False,
                            line=dict(color=faded(BLUE, 0.4), width=1), name=f"seed {seeds[k]}")  # fmt: skip
        fig.add_scatter(x=x, y=[v.mean() for v in by.values()], mode="lines+markers", row=1, col=column, name="global vector, mean",
                        showlegend=column == 1, line=dict(color=BLUE, width=3))  # fmt: skip
        plain = np.nanmean([last.get(("cav", metric, s), np.nan) for s in seeds]) if ("cav", metric) in last.index.droplevel(2) else np.nan
        fig.add_scatter(x=[0, max(x, default=1)], y=[plain, plain], mode="lines", name="separate vectors", showlegend=column == 1,
                        line=dict(color=INK, dash="dot"), row=1, col=column)  # fmt: skip
    fig.update_yaxes(title_text="difference of scores", col=1, rangemode="tozero")
    fig.update_yaxes(title_text="standard deviation of scores", col=2, rangemode="tozero")
    return style(fig, _price_title(rows), x="variance weight")


def _price_title(rows) -> str:
    spread, gap = ({w: v.mean() for w, v in rows[m].items()} for m in ("score_std_over_layers", "relevant_minus_irrelevant"))
    if not spread:
        return "Gap and spread against the variance weight"
    a, b = min(spread), max(spread)
    title = f"From weight {a:g} to {b:g} the spread over layers goes from {spread[a]:.2f} to {spread[b]:.2f}"
    return title + (f", the gap from {gap[a]:.2f} to {gap[b]:.2f}" if gap else "")


def maps(image: np.ndarray, rows: Mapping[str, np.ndarray], layers: Sequence[str], told: str) -> go.Figure:
    """One image [C, H, W] and its concept maps [L, H, W] under each kind of vectors, each map scaled by its own peak."""
    columns = len(layers) + 1
    fig = make_subplots(len(rows), columns, column_titles=["image", *layers], row_titles=list(rows), horizontal_spacing=0.01,
                        vertical_spacing=0.04)  # fmt: skip
    colour = np.repeat(image, 3, 0) if len(image) == 1 else image
    for i, found in enumerate(rows.values(), 1):
        fig.add_image(z=(255 * colour.transpose(1, 2, 0)).astype(np.uint8), row=i, col=1)
        for j, one in enumerate(found, 2):
            peak = float(np.abs(one).max()) or 1.0
            fig.add_heatmap(z=one / peak, zmin=-1, zmax=1, colorscale="RdBu_r", showscale=i == 1 and j == columns, row=i, col=j,
                            colorbar=dict(title="share of<br>peak", len=0.9, x=1.06))  # fmt: skip
    fig.update_xaxes(visible=False, constrain="domain")
    fig.update_yaxes(visible=False, autorange="reversed")
    for k in range(1, len(rows) * columns + 1):
        fig.update_yaxes(scaleanchor=f"x{k if k > 1 else ''}", selector=dict(anchor=f"x{k if k > 1 else ''}"))
    style(fig, told, height=130 + 115 * len(rows))
    return fig.update_layout(margin=dict(l=10, r=30, b=10))


def trade(table: pd.DataFrame) -> go.Figure:
    """Spread over layers against the gap between relevant and irrelevant concepts: small dots are seeds, large ones means."""
    last = table.sort_values("step", kind="stable").groupby(["arm", "metric", "seed"])["value"].last().unstack("metric")
    fig, gap = go.Figure(), "relevant_minus_irrelevant"
    upright = gap if gap in last else "null_score_deviation"
    for k, (arm, name) in enumerate(WORDS.items()):
        if arm not in last.index.get_level_values(0):
            continue
        rows = last.loc[arm]
        colour = {"cav": GREY, "gcav": BLUE}.get(arm, OTHERS[k % len(OTHERS)])
        x, y = rows["score_std_over_layers"], rows[upright]
        fig.add_scatter(x=x, y=y, mode="markers", marker=dict(color=faded(colour, 0.4), size=7), showlegend=False, name=name)
        fig.add_scatter(x=[x.mean()], y=[y.mean()], mode="markers", marker=dict(color=colour, size=14), name=name)
    words = {gap: "score of relevant minus irrelevant concepts", "null_score_deviation": "random concept: distance from one half"}
    best = last.groupby("arm")[upright].mean().reindex(list(WORDS)).idxmax()
    title = f"Low spread is cheap, and one number has none: the largest gap is that of the arm {WORDS[best]}"
    if upright != gap:
        title = "Low spread is cheap, and one number has none"
    return style(fig, title, x="standard deviation of the score over layers", y=words[upright])
