"""Figures of the study fullgrad. Each takes plain arrays, tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from claimlab.figures import INK, style
from claimlab.studies.attribution import _fullgrad_method as method

# colours that most colour-blind readers can tell apart (Okabe and Ito); rivals that need no network are dotted
STYLE = {
    "fullgrad": ("#0072B2", "solid"), "bias_only": ("#56B4E9", "dash"), "explicit_bias_only": ("#56B4E9", "dot"),
    "input_gradient": ("#D55E00", "solid"), "grad_x_input": ("#D55E00", "dash"), "smoothgrad": ("#E69F00", "solid"),
    "integrated_gradients": ("#CC79A7", "solid"), "gradcam": ("#009E73", "solid"), "random": ("#888888", "dot"),
    "edge": ("#7F5FA8", "longdashdot"),
}  # fmt: skip
WORDS = {name: name.replace("_", " ") for name in STYLE} | {
    "fullgrad": "FullGrad", "gradcam": "Grad-CAM", "smoothgrad": "SmoothGrad", "edge": "edges",
    "grad_x_input": "gradient x input",
}  # fmt: skip


def removal(table: pd.DataFrame, order: str) -> go.Figure:
    """Relative change of the output against the share of pixels removed: mean of the seeds, bars their standard error."""
    rows = table[table["metric"] == "output_change"]
    fig, means = go.Figure(), {}
    for arm in [a for a in STYLE if a in set(rows["arm"])]:
        curve = rows[rows["arm"] == arm].groupby("step")["value"].agg(["mean", "sem"])
        means[arm] = curve["mean"].mean()
        colour, dash = STYLE[arm]
        fig.add_scatter(x=curve.index, y=curve["mean"], error_y=dict(array=curve["sem"], thickness=1, width=2), name=WORDS[arm],
                        line=dict(color=colour, dash=dash, width=4 if arm == "fullgrad" else 2))  # fmt: skip
    ranked = sorted(means, key=means.get, reverse=order == "most")
    title = f"Without the {order} salient pixels: {WORDS[ranked[0]]} changes the output {order}"
    if "fullgrad" in ranked:
        title += f", FullGrad is number {ranked.index('fullgrad') + 1} of {len(ranked)}"
    fig.update_yaxes(rangemode="tozero")
    return style(fig, title, height=520, x=f"{order} salient pixels removed [% of pixels]",
                 y="change of f relative to f, mean of images")  # fmt: skip


def grid(images: Tensor, rows: dict[str, Tensor], masks: Tensor | None, title: str) -> go.Figure:
    """One row an image [n, C, H, W], one column a map {name: [n, H, W]}; the outline is the object's mask [n, H, W]."""
    columns = {"image": images.mean(1), **rows}
    n, names = len(images), list(columns)
    fig = make_subplots(n, len(names), horizontal_spacing=0.008, vertical_spacing=0.02,
                        column_titles=[WORDS.get(name, name).replace(" ", "<br>") for name in names])  # fmt: skip
    for i in range(n):
        for j, name in enumerate(names, 1):
            z = columns[name][i].cpu().numpy()
            fig.add_heatmap(z=z, row=i + 1, col=j, colorscale="Greys_r" if name == "image" else "Viridis", showscale=False,
                            hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>")  # fmt: skip
            if masks is not None:
                outline = dict(start=0.5, end=0.5, size=1, coloring="none")
                fig.add_contour(z=masks[i].cpu().float().numpy(), row=i + 1, col=j, contours=outline, showscale=False,
                                hoverinfo="skip", line=dict(color="#ff5050", width=1.5))  # fmt: skip
    fig.update_xaxes(visible=False, constrain="domain")
    fig.update_yaxes(visible=False, autorange="reversed")
    for k in range(1, n * len(names) + 1):
        fig.update_yaxes(scaleanchor=f"x{k if k > 1 else ''}", selector=dict(anchor=f"x{k if k > 1 else ''}"))
    style(fig, title, height=130 + 100 * n)
    fig.update_layout(showlegend=False, margin=dict(l=10, r=10, t=120, b=10))
    fig.update_annotations(font_size=11)
    return fig


def sources(net: nn.Module, images: Tensor) -> go.Figure:
    """Signed parts of the predicted logit of each image: input, each layer's biases; the diamond is the logit itself."""
    parts = method.full_gradient(net, images, method.predicted(net, images))
    bars = {"input": parts.input.flatten(1).sum(1)}
    bars |= {f"{k + 1} {kind} bias": t.flatten(1).sum(1) for k, (kind, t) in enumerate(parts.terms)}
    fig = go.Figure()
    names = [f"image {i + 1}" for i in range(len(images))]
    shades = {"input": "#D55E00", "conv": "#0072B2", "norm": "#56B4E9", "smooth": "#009E73", "linear": INK}
    for name, value in bars.items():
        kind = name.split()[min(1, len(name.split()) - 1)]
        look = dict(color=shades[kind], line=dict(color="white", width=1))
        fig.add_bar(x=names, y=value.cpu().tolist(), name=name, marker=look)
    fig.add_scatter(x=names, y=parts.logit.cpu().tolist(), name="logit f", mode="markers",
                    marker=dict(symbol="diamond", size=13, color="#F0E442", line=dict(color="black", width=1.5)))  # fmt: skip
    share = ", ".join(f"{v:.0%}" for v in (bars["input"] / parts.logit).tolist())
    fig.update_layout(barmode="relative")
    return style(fig, f"Where the output comes from: the input gives {share} of the logit", height=520, x="test image",
                 y="part of the logit")  # fmt: skip


def retraining(table: pd.DataFrame) -> go.Figure:
    """Accuracy of networks retrained without the most salient pixels: a dot a seed, means as lines (or dashes at one share)."""
    rows = table[table["metric"].str.fullmatch(r"roar_accuracy_\d+")]
    rows = rows.assign(share=rows["metric"].str.rsplit("_", n=1).str[-1].astype(int))
    fig, means = go.Figure(), {}
    present = [a for a in STYLE if a in set(rows["arm"])]
    one = rows["share"].nunique() == 1
    for arm in present:
        own, colour = rows[rows["arm"] == arm], STYLE[arm][0]
        curve = own.groupby("share")["value"].mean()
        means[arm] = curve.mean()
        mark = dict(size=34, symbol="line-ew-open", line=dict(width=3)) if one else dict(size=7)
        fig.add_scatter(x=[WORDS[arm]] * len(own) if one else own["share"], y=own["value"], mode="markers", legendgroup=arm,
                        marker=dict(color=colour, size=7, opacity=0.5), showlegend=False)  # fmt: skip
        fig.add_scatter(x=[WORDS[arm]] if one else curve.index, y=curve, mode="markers" if one else "lines+markers",
                        name=WORDS[arm], legendgroup=arm, showlegend=not one, line=dict(color=colour, dash=STYLE[arm][1]),
                        marker=dict(color=colour, **mark))  # fmt: skip
    lowest = WORDS[min(means, key=means.get)]
    title = f"Remove and retrain: the pixels of {lowest} cost most accuracy"
    if {"fullgrad", "random"} <= set(means):
        title += f"; FullGrad {means['fullgrad'] - means['random']:+.3f} against random pixels"
    gone = "most salient pixels replaced by the training mean"
    x = f"{rows['share'].iloc[0]} % {gone}, by method" if one else f"{gone} [% of pixels]"
    return style(fig, title, x=x, y="test accuracy of a new network")


def diagonal(pairs: dict[str, tuple[Tensor, Tensor]]) -> go.Figure:
    """Sum of the known parts against the logit, a dot an image; {arm: (f, sum)}."""
    fig = go.Figure()
    ends = [float(min(f.min() for f, _ in pairs.values())), float(max(f.max() for f, _ in pairs.values()))]
    fig.add_scatter(x=ends, y=ends, mode="lines", name="sum = f", line=dict(color="#888888", dash="dash"))
    for arm, (f, total) in pairs.items():
        dot = dict(color=STYLE[arm][0], size=6, opacity=0.7, symbol="circle" if arm == "fullgrad" else "x")
        fig.add_scatter(x=f.tolist(), y=total.tolist(), mode="markers", name=WORDS[arm], marker=dot)
    worst = [f"{WORDS[arm]} {float(((f - s).abs() / f.abs()).max()):.1e}" for arm, (f, s) in pairs.items()]
    return style(fig, "Sum of the parts, worst relative error: " + ", ".join(worst), x="logit f of the predicted class",
                 y="sum of the parts")  # fmt: skip


def assembly(net: nn.Module, image: Tensor, p) -> go.Figure:
    """One image [1, C, H, W]: psi of the input part, of each layer's bias map, and their sum."""
    parts = method.full_gradient(net, image, method.predicted(net, image))
    size, rng = image.shape[-2:], torch.Generator().manual_seed(0) if p.shuffle_bias else None
    steps = {"input": method.psi(parts.input, p.post)}
    for k, (kind, t) in enumerate(parts.terms):
        if t.dim() == 4:
            own = t if rng is None else method.scatter(t, rng)
            steps[f"{k + 1} {kind}"] = method.enlarge(method.psi(own, p.post), size)
    steps["sum"] = method.picture(parts, p.post, p.layers, shuffle=rng)
    peak = {name: float(m.abs().amax()) for name, m in steps.items() if name != "sum"}
    brightest = max(peak, key=peak.get)
    return grid(image, steps, None, f"The picture is put together from {len(steps) - 1} maps; brightest: {brightest}, "
                f"{peak[brightest] / np.median(list(peak.values())):.1f} times the median map")  # fmt: skip
