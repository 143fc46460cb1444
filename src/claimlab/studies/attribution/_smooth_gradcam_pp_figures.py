"""Figures of the study smooth-gradcam-pp. Each takes tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.claims import interval
from claimlab.figures import INK, band, faded, images, style
from claimlab.parts.attribution import enlarge

STYLE = {
    "smooth_gradcam_pp": ("#0072B2", "solid"), "gradcam": ("#888888", "solid"), "gradcam_pp": ("#E69F00", "solid"),
    "smooth_gradcam": ("#888888", "dash"), "mean_of_maps": ("#CC79A7", "dash"), "smooth_powers": ("#56B4E9", "dash"),
    "layercam": ("#009E73", "solid"), "smoothgrad": ("#D55E00", "dot"), "centre_prior": ("#7F5FA8", "dot"),
}  # fmt: skip
WORDS = {
    "smooth_gradcam_pp": "Smooth Grad-CAM++", "gradcam": "Grad-CAM", "gradcam_pp": "Grad-CAM++", "layercam": "LayerCAM",
    "smooth_gradcam": "smooth Grad-CAM", "mean_of_maps": "mean of maps", "smooth_powers": "smooth, powers of g",
    "smoothgrad": "SmoothGrad (pixels)", "centre_prior": "centre prior",
}  # fmt: skip
SHOWN = ("gradcam", "gradcam_pp", "smooth_gradcam_pp")
METRICS = {"both_found": "every object found", "energy_in_object": "energy in objects", "iou": "IoU, one object",
           "sharpness": "sharpness"}  # fmt: skip
METRIC_UNITS = {"both_found": "share of images", "energy_in_object": "share of map", "iou": "share", "sharpness": "1 / pixel"}


def _grey(fig: go.Figure, places: list[int]) -> go.Figure:
    heat = [t for t in fig.data if t.type == "heatmap"]
    for k in places:
        heat[k].colorscale = [[0, "black"], [1, "white"]]
    return fig


def grid(s, maps: dict[str, Tensor], chosen: list[int]) -> go.Figure:
    """A row for each of the `chosen` images of subject s: the image and its maps [N, H, W], objects outlined."""
    arrays, titles, outlines = [], [], []
    for i in chosen:
        mask = s.masks[i].any(0).cpu().numpy()
        own = {name: m[i].cpu().numpy() for name, m in maps.items()}
        arrays += [s.x[i].mean(0).cpu().numpy(), *own.values()]
        inside = {name: (m * mask).sum() / max(m.sum(), 1e-30) for name, m in own.items()}
        titles += [f"class {int(s.y[i])}", *(f"{WORDS[name]}<br>{share:.0%} inside" for name, share in inside.items())]
        outlines += [mask] * (1 + len(own))
    mean = {name: ((m * s.masks.any(1)).sum((1, 2)) / m.sum((1, 2)).clamp(min=1e-30)).mean() for name, m in maps.items()}
    said = ", ".join(f"{WORDS[name]} {float(value):.0%}" for name, value in mean.items())
    title = f"Share of the map inside the objects' boxes, mean of {len(s.x)} images: {said}"
    fig = _grey(images(arrays, titles, title=title, columns=1 + len(maps), scale="Viridis", outlines=outlines),
                [k * (1 + len(maps)) for k in range(len(chosen))])  # fmt: skip
    return fig.update_layout(height=fig.layout.margin.t + 40 + 200 * len(chosen), margin_t=fig.layout.margin.t + 14, margin_b=16)


def bars(table: pd.DataFrame) -> go.Figure:
    """The claims' metrics by arm: a bar to the mean of the seeds, its 95 % interval, a dot a seed."""
    last = table[table["metric"].isin(METRICS)].sort_values("step").groupby(["metric", "arm", "seed"])["value"].last()
    shown = [m for m in METRICS if m in last.index.get_level_values("metric")]
    arms = [a for a in STYLE if a in last.index.get_level_values("arm")]
    fig = make_subplots(1, len(shown), subplot_titles=[METRICS[m] for m in shown], shared_yaxes=True, horizontal_spacing=0.03)
    for column, metric in enumerate(shown, start=1):
        top = 1.12 * max(last[metric, a].max() for a in arms if (a, metric) != ("smoothgrad", "sharpness"))  # grains leave the panel
        for place, arm in enumerate(arms):
            _bar(fig, column, place, arm, last[metric, arm].to_numpy(), top)
        fig.update_xaxes(range=[0, max(top, 1e-3)], nticks=4, title_text=METRIC_UNITS[metric], row=1, col=column)
    means = last.groupby(["metric", "arm"]).mean()
    said = [f"{METRICS[m]} {means[m, 'smooth_gradcam_pp'] - means[m, 'gradcam_pp']:+.3f}" for m in shown
            if {"smooth_gradcam_pp", "gradcam_pp"} <= set(arms)]  # fmt: skip
    style(fig, "What the noise adds, Smooth Grad-CAM++ minus Grad-CAM++: " + ", ".join(said), height=470)
    fig.update_yaxes(autorange="reversed", tickvals=list(range(len(arms))), ticktext=[WORDS[a] for a in arms])
    return fig.update_layout(margin_b=60, bargap=0.25, title_x=0.01, title_xref="container")  # the names of the arms are wide


def _bar(fig: go.Figure, column: int, place: int, arm: str, values: np.ndarray, top: float) -> None:
    """One arm in one panel; where the mean lies beyond `top` it is written down instead."""
    low, high = interval(values) if len(values) > 1 else (values.mean(), values.mean())
    colour, mean, panel = STYLE[arm][0], values.mean(), {"row": 1, "col": column, "showlegend": False}
    fig.add_bar(x=[mean], y=[place], orientation="h", marker_color=faded(colour, 0.55),
                error_x={"array": [high - mean], "arrayminus": [mean - low], "color": INK, "thickness": 1.2},
                hovertemplate=f"{WORDS[arm]}: %{{x:.3f}}<extra></extra>", **panel)  # fmt: skip
    fig.add_scatter(x=values, y=place + np.linspace(-0.25, 0.25, len(values)), mode="markers", marker={"color": colour, "size": 4},
                    hoverinfo="x", **panel)  # fmt: skip
    if mean > top:
        fig.add_scatter(x=[0.95 * top], y=[place], mode="text", text=f"{mean:.1f} →", textposition="middle left", hoverinfo="skip",
                        textfont_color=INK, **panel)  # fmt: skip


def sweeps(table: pd.DataFrame, noise: float) -> go.Figure:
    """Share of images with every object found against the noise, and against the copies: mean of the seeds, 95 % interval."""
    fig = make_subplots(1, 2, subplot_titles=["the first images, by noise", "all images, by copies"], shared_yaxes=True,
                        horizontal_spacing=0.05)  # fmt: skip
    rows = table[table["metric"].str.startswith("both_found_noise_")]
    rows = rows.assign(step=rows["metric"].str.rsplit("_", n=1).str[-1].astype(float))
    told = {}
    for arm in [a for a in STYLE if a in set(rows["arm"])]:
        panels = (rows[rows["arm"] == arm], table[(table["arm"] == arm) & (table["metric"] == "both_found")])
        for column, one in enumerate(panels, start=1):
            middle, (colour, dash) = band(one), STYLE[arm]
            bars = {"array": middle["high"] - middle["mean"], "arrayminus": middle["mean"] - middle["low"], "thickness": 1, "width": 3}
            method = arm == "smooth_gradcam_pp"
            fig.add_scatter(x=middle.index, y=middle["mean"], mode="lines+markers", name=WORDS[arm], legendgroup=arm, row=1, col=column,
                            error_y=bars if method else None, showlegend=column == 1,
                            line={"color": colour, "dash": dash, "width": 3.5 if method else 2})  # fmt: skip
            if method and column == 1:
                told = middle["mean"]
    best = told.idxmax()
    title = f"Smooth Grad-CAM++ finds every object in {told.iloc[0]:.0%} of images without noise, in {told[best]:.0%} at its best "
    title += f"(noise {best:g}); the copies at the right have a noise of {noise:g}"
    copies = sorted(set(table["step"][(table["arm"] == "smooth_gradcam_pp") & (table["metric"] == "both_found")]))
    for arm in ("gradcam", "gradcam_pp", "layercam"):
        values = table[(table["arm"] == arm) & (table["metric"] == "both_found")]["value"]
        if len(values):
            fig.add_scatter(x=[copies[0], copies[-1]], y=[values.mean()] * 2, mode="lines", name=f"{WORDS[arm]} (right)", row=1, col=2,
                            line={"dash": "dot", "color": STYLE[arm][0], "width": 2})  # fmt: skip
    style(fig, title, height=460)
    fig.update_xaxes(title_text="noise [share of the input's range]", col=1)
    fig.update_xaxes(title_text="noisy copies (log axis)", type="log", tickvals=copies, ticktext=[str(c) for c in copies], col=2)
    fig.update_yaxes(range=[0, 1.02])
    fig.update_yaxes(title_text="share with every object found", col=1)
    return fig.update_layout(margin_b=130)


def precision_recall(curves: dict[str, list[tuple[Tensor, Tensor]]]) -> go.Figure:
    """Precision against recall of object pixels {arm: per seed (precision [T], recall [T])}: the mean of the seeds."""
    fig, area = go.Figure(), {}
    for arm in [a for a in STYLE if a in curves]:
        recall = np.mean([r.cpu().numpy() for _, r in curves[arm]], axis=0)
        precision = np.mean([p.cpu().numpy() for p, _ in curves[arm]], axis=0)
        known = np.isfinite(precision)
        area[arm] = float(np.sum(np.diff(recall[known], prepend=0) * precision[known]))
        colour, dash = STYLE[arm]
        fig.add_scatter(x=recall, y=precision, mode="lines", name=WORDS[arm],
                        line={"color": colour, "dash": dash, "width": 3.5 if arm == "smooth_gradcam_pp" else 2})  # fmt: skip
    ranked = sorted(area, key=area.get, reverse=True)
    title = f"Object pixels, best on average over thresholds: {WORDS[ranked[0]]} ({area[ranked[0]]:.2f})"
    if "smooth_gradcam_pp" in ranked[1:]:
        title += f"; Smooth Grad-CAM++ ({area['smooth_gradcam_pp']:.2f}) is number {ranked.index('smooth_gradcam_pp') + 1} of {len(area)}"
    style(fig, title, height=500, x="recall: share of object pixels above the threshold",
          y="precision: share of them that is the object's")  # fmt: skip
    fig.update_xaxes(range=[0, 1.01])
    return fig.update_yaxes(range=[0, 1.02]).update_layout(margin_b=150)


def channels(s, i: int, w: Tensor, parts: dict[str, Tensor]) -> go.Figure:
    """One image i of subject s, single maps A_k of the layer with the weight w_k (largest, and smallest), and parts of the map."""
    a = enlarge(s.clean[0][i], s.x.shape[-2:])
    order = w.argsort(descending=True).tolist()
    picked = order[:4] + order[-2:]
    mask = s.masks[i].any(0).cpu().numpy()
    arrays = [s.x[i].mean(0).cpu().numpy(), *(m.cpu().numpy() for m in parts.values()), *(a[k].cpu().numpy() for k in picked)]
    titles = ["image", *parts, *(f"A_{k}, w = {float(w[k]):.2g}" for k in picked)]
    share = float(w[order[:4]].clamp(min=0).sum() / w.clamp(min=0).sum().clamp(min=1e-30))
    title = f"Four of {len(w)} feature maps hold {share:.0%} of the positive weight; {int((w < 0).sum())} weights are negative"
    fig = _grey(images(arrays, titles, title=title, columns=5, scale="Viridis", outlines=[mask] * len(arrays)), [0])
    return fig.update_layout(height=fig.layout.margin.t + 330, margin_b=16)


def growth(image: Tensor, mask: Tensor, still: dict[str, Tensor], grown: dict[int, dict[str, Tensor]]) -> go.Figure:
    """One image [C, H, W] with its objects [H, W], maps that need no noise, and the others after so many copies.

    All panels share one pair of axes and each is scaled to [0, 1]: that draws several times faster than an axis for each.
    """
    arms, (height, width) = list(next(iter(grown.values()))), mask.shape
    rows = [{WORDS[name]: m for name, m in still.items()}]
    rows += [{f"{WORDS[arm]}, {k}": maps[arm] for k, maps in grown.items()} for arm in arms]
    down, right, columns = height + 9, width + 4, max(len(row) for row in rows)
    whole = np.full((len(rows) * down, (columns + 1) * right), np.nan)
    outline, notes = np.zeros_like(whole), []
    cells = [(r, c, name, m) for r, row in enumerate(rows) for c, (name, m) in enumerate(row.items(), start=1)]
    for r, c, name, m in [*cells, (0, 0, "image", None)]:
        top, left = r * down + 8, c * right
        outline[top : top + height, left : left + width] = mask.cpu().numpy()
        if m is not None:
            whole[top : top + height, left : left + width] = (m / m.max().clamp(min=1e-30)).cpu().numpy()
        notes.append({"x": left + width / 2, "y": top - 4, "text": name, "showarrow": False, "font": {"size": 10}})
    fig = go.Figure(go.Heatmap(z=whole, colorscale="Viridis", showscale=False, hoverongaps=False, hoverinfo="z"))
    fig.add_heatmap(z=image.mean(0).cpu().numpy(), x0=0, y0=8, colorscale=[[0, "black"], [1, "white"]], showscale=False, hoverinfo="z")
    fig.add_contour(z=outline, contours={"start": 0.5, "end": 0.5, "coloring": "none"}, line={"color": "#E69F00", "width": 1.5},
                    showscale=False, hoverinfo="skip")  # fmt: skip
    last = grown[max(grown)]["smooth_gradcam_pp"]
    share = float((last * mask.to(last)).sum() / last.sum().clamp(min=1e-30))
    style(fig, f"{share:.0%} of Smooth Grad-CAM++ lies inside the objects after {max(grown)} noisy copies; numbers are copies",
          height=120 + 150 * len(rows))  # fmt: skip
    fig.update_xaxes(visible=False, constrain="domain")
    fig.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    return fig.update_layout(annotations=notes, margin_b=16)
