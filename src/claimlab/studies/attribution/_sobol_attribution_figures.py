"""Figures of the study sobol-attribution. Each takes arrays, tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.figures import INK, band, faded, images, style

STYLE = {
    "sobol": ("#0072B2", "solid"), "rise": ("#888888", "solid"), "sobol_random": ("#56B4E9", "dash"),
    "sobol_first": ("#56B4E9", "dot"), "sobol_signed": ("#0072B2", "dash"),
    "occlusion": ("#009E73", "solid"), "integrated_gradients": ("#CC79A7", "solid"),
    "gradcam": ("#E69F00", "solid"), "input_gradient": ("#D55E00", "dash"), "random_map": ("#7F5FA8", "dot"),
}  # fmt: skip
WORDS = {
    "sobol": "Sobol", "rise": "RISE", "sobol_random": "Sobol, random points", "sobol_first": "Sobol, first order",
    "sobol_signed": "Sobol, signed", "occlusion": "occlusion", "integrated_gradients": "integrated gradients", "gradcam": "Grad-CAM",
    "input_gradient": "input gradient", "random_map": "smooth noise",
}  # fmt: skip
DESIGNED = ("sobol", "rise", "sobol_random", "sobol_first", "sobol_signed", "occlusion")
SHOWN = ("sobol", "sobol_first", "rise", "occlusion", "integrated_gradients", "gradcam")


def row_of_maps(image: Tensor, maps: dict[str, Tensor], inside: dict[str, float], box: Tensor | None) -> go.Figure:
    """One image [C, H, W] and the maps [H, W] of it; `inside` is each map's share of energy in the box [H, W]."""
    titles = ["image", *(f"{WORDS[a].replace(', ', '<br>').replace('integrated ', 'integrated<br>')}" for a in maps)]
    arrays = [image.mean(0).cpu().numpy(), *(m.cpu().numpy() for m in maps.values())]
    outline = None if box is None else box.cpu().numpy()
    shares = ", ".join(f"{WORDS[a]} {inside[a]:.0%}" for a in ("sobol", "rise", "gradcam") if a in inside)
    said = f"share of the positive part that lies in the object's box: {shares}" if shares else "bright is what counts most"
    fig = images(arrays, titles, title=f"One image, {len(maps)} explanations; {said}", columns=len(arrays), scale="Viridis",
                 outlines=[outline] * len(arrays))  # fmt: skip
    next(t for t in fig.data if t.type == "heatmap").colorscale = [[0, "black"], [1, "white"]]
    top = fig.layout.margin.t
    return fig.update_layout(height=top + 150, margin_b=20, margin_t=top + 12)


def removal(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], seeds: list[int]) -> go.Figure:
    """Deletion and insertion curves {arm: per seed (deletion [K], insertion [K])}: mean of the seeds and its 95 % band."""
    fig = make_subplots(1, 2, subplot_titles=["deletion: lower is better", "insertion: higher is better"], shared_yaxes=True,
                        horizontal_spacing=0.05)  # fmt: skip
    areas: dict[int, dict[str, float]] = {1: {}, 2: {}}
    for arm, found in curves.items():
        for column in (1, 2):
            values = np.stack([one[column - 1] for one in found])
            x = np.linspace(0, 100, values.shape[1])
            rows = pd.DataFrame({"seed": np.repeat(seeds, values.shape[1]), "step": np.tile(x, len(seeds)), "value": values.ravel()})
            middle = band(rows)
            areas[column][arm] = values.mean()
            look = {"row": 1, "col": column, "legendgroup": arm}
            fig.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([middle["high"], middle["low"][::-1]]), mode="lines",
                            fill="toself", fillcolor=faded(STYLE[arm][0], 0.12), line_width=0, showlegend=False, hoverinfo="skip",
                            **look)  # fmt: skip
            fig.add_scatter(x=x, y=middle["mean"], mode="lines", name=WORDS[arm], showlegend=column == 1,
                            line=dict(color=STYLE[arm][0], dash=STYLE[arm][1], width=3.5 if arm == "sobol" else 2), **look)  # fmt: skip
    low, high = min(areas[1], key=areas[1].get), max(areas[2], key=areas[2].get)
    title = f"Taking the pixels of {WORDS[low]} hurts most; bringing back those of {WORDS[high]} helps most"
    style(fig, title, height=520, x="most salient pixels taken [%]")
    fig.update_xaxes(title_text="most salient pixels brought back [%]", col=2)
    fig.update_yaxes(range=[0, 1.02])
    fig.update_yaxes(title_text="probability of the true class", row=1, col=1)
    return fig.update_layout(margin_b=150)


def efficiency(table: pd.DataFrame) -> go.Figure:
    """Areas under both curves against forward calls an image: mean of the seeds and its 95 % interval; one-pass methods dotted."""
    fig = make_subplots(1, 2, subplot_titles=["deletion area: lower is better", "insertion area: higher is better"],
                        horizontal_spacing=0.1)  # fmt: skip
    last = {}
    for column, metric in ((1, "deletion_auc"), (2, "insertion_auc")):
        rows = table[table["metric"] == metric]
        ends = [int(rows["step"].loc[rows["arm"].isin(DESIGNED)].agg(side)) for side in ("min", "max")]
        for arm in [a for a in STYLE if a in set(rows["arm"])]:
            middle, (colour, dash) = band(rows[rows["arm"] == arm]), STYLE[arm]
            look = {"row": 1, "col": column, "legendgroup": arm, "name": WORDS[arm], "showlegend": column == 1}
            if arm in DESIGNED:
                bars = dict(array=middle["high"] - middle["mean"], arrayminus=middle["mean"] - middle["low"], thickness=1, width=3)
                fig.add_scatter(x=middle.index, y=middle["mean"], mode="lines+markers", error_y=bars,
                                line=dict(color=colour, dash=dash, width=3.5 if arm == "sobol" else 2), **look)  # fmt: skip
                last[arm, metric] = middle["mean"].iloc[-1]
            else:
                fig.add_scatter(x=ends, y=[middle["mean"].iloc[-1]] * 2, mode="lines", line=dict(color=colour, dash="dot"), **look)
        means = rows.groupby(["arm", "step"])["value"].mean()
        room = 0.02 + 0.15 * (means.max() - means.min())  # the interval of two seeds may be wider than the axis
        fig.update_yaxes(range=[max(0.0, means.min() - room), min(1.0, means.max() + room)], row=1, col=column)
    names = [a for a in DESIGNED if (a, "deletion_auc") in last]
    best = min(names, key=lambda a: last[a, "deletion_auc"])
    title = f"With all calls spent {WORDS[best]} has the lowest deletion area of the methods that only ask"
    if {"sobol", "rise"} <= set(names):
        title += f"; Sobol {last['sobol', 'deletion_auc'] - last['rise', 'deletion_auc']:+.3f} against RISE"
    style(fig, title, height=500, x="forward calls an image (log axis)")
    ticks = sorted(set(table["step"][table["arm"].isin(["sobol", "rise"])])) or None
    fig.update_xaxes(type="log", tickvals=ticks, tickformat=",d")
    fig.update_yaxes(title_text="area under the curve", row=1, col=1)
    return fig.update_layout(margin_b=140)


def pairs(image: Tensor, strength: np.ndarray, noise: float, share: float, most: int = 12) -> go.Figure:
    """The cells of one image [C, H, W] whose product matters most, joined by lines; full: they help each other, dashed: they
    replace each other. Only pairs beyond 4.5 times the noise level are drawn."""
    grid, (height, width) = round(len(strength) ** 0.5), image.shape[-2:]
    fig = go.Figure(go.Heatmap(z=image.mean(0).cpu().numpy(), colorscale=[[0, "black"], [1, "white"]], showscale=False, hoverinfo="skip"))
    first, second = np.triu_indices(len(strength), 1)
    order = np.argsort(-np.abs(strength[first, second]))
    real = int((np.abs(strength[first, second]) > 4.5 * noise).sum())
    peak = max(np.abs(strength).max(), 1e-12)
    for kind, colour, dash in (("help each other", "#E69F00", "solid"), ("replace each other", "#56B4E9", "dash")):
        named = False
        for k in order[: min(most, real)]:
            value = strength[first[k], second[k]]
            if (value > 0) == (kind == "help each other"):
                y, x = np.divmod(np.array([first[k], second[k]]), grid)
                fig.add_scatter(x=(x + 0.5) * width / grid - 0.5, y=(y + 0.5) * height / grid - 0.5, mode="lines+markers", name=kind,
                                legendgroup=kind, showlegend=not named, marker=dict(color=colour, size=7),
                                line=dict(color=colour, dash=dash, width=1.5 + 4 * abs(value) / peak),
                                hovertemplate=f"{value:+.3f}<extra></extra>")  # fmt: skip
                named = True
    shown = f"the {min(most, real)} strongest are drawn" if real > most else f"{'all' if real else 'none'} drawn"
    title = f"{share:.0%} of this image's variance is not additive; {real} of {len(first)} pairs of cells stand out of the noise, {shown}"
    style(fig, title, height=520)
    fig.update_xaxes(visible=False, constrain="domain")
    return fig.update_yaxes(visible=False, autorange="reversed", scaleanchor="x").update_layout(margin_b=70)


def growth(total: dict[int, np.ndarray], first: np.ndarray, image: Tensor) -> go.Figure:
    """Total indices {calls: [g, g]} of one image [C, H, W] as the design grows, the first-order indices [g, g] at its side."""
    arrays = [image.mean(0).cpu().numpy(), *total.values(), first]
    titles = ["image", *(f"total<br>{calls:,} calls" for calls in total), f"first order<br>{max(total):,} calls"]
    ends = [m / m.sum() if m.sum() else m for m in total.values()]
    moved = np.abs(ends[-1] - ends[-2]).sum() / 2 if len(ends) > 1 else 0.0
    title = f"The last doubling of the calls moves {moved:.0%} of the map; {(first < 0).mean():.0%} of the first-order indices are below 0"
    fig = images(arrays, titles, title=title, columns=len(arrays), scale="Viridis")
    fig.data[0].colorscale = [[0, "black"], [1, "white"]]
    top = fig.layout.margin.t
    return fig.update_layout(height=top + 200, margin_t=top + 16, margin_b=20)


def growing_curves(curves: dict[int, tuple[np.ndarray, np.ndarray]]) -> go.Figure:
    """Deletion and insertion curves {calls: (deletion [K], insertion [K])} of one image under its growing map."""
    fig = make_subplots(1, 2, subplot_titles=["deletion", "insertion"], shared_yaxes=True, horizontal_spacing=0.05)
    for k, (calls, pair) in enumerate(curves.items(), start=1):
        for column, values in enumerate(pair, start=1):
            fig.add_scatter(x=np.linspace(0, 100, len(values)), y=values, row=1, col=column, name=f"{calls:,} calls", legendgroup=calls,
                            showlegend=column == 1, line=dict(color=faded("#0072B2", k / len(curves)), width=1 + k))  # fmt: skip
    areas = [np.trapezoid(pair[0], dx=1 / (len(pair[0]) - 1)) for pair in curves.values()]
    style(fig, f"Deletion area of one image: {areas[0]:.3f} with {min(curves):,} calls, {areas[-1]:.3f} with {max(curves):,}",
          x="most salient pixels [% of pixels]")  # fmt: skip
    fig.update_yaxes(title_text="probability of the true class", range=[0, 1.02], col=1)
    return fig


def sentences(table: pd.DataFrame) -> go.Figure:
    """Area under the curve of the class's probability while the most important words go: a dot a seed, a bar the mean."""
    rows = table[table["metric"].str.startswith("text_deletion_")]
    means = rows.groupby("metric")["value"].mean().sort_values()
    names = {m: m.removeprefix("text_deletion_").replace("_", " ") for m in means.index}
    fig = go.Figure(go.Bar(x=[names[m] for m in means.index], y=means, marker_color=faded("#0072B2", 0.5), showlegend=False))
    fig.add_scatter(x=rows["metric"].map(names), y=rows["value"], mode="markers", marker=dict(color=INK, size=7), showlegend=False)
    title = f"Taking words out of sentences: {names[means.index[0]]} finds the words that count soonest"
    return style(fig, title, x="how words are ranked", y="area under the deletion curve")
