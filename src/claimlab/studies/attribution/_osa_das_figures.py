"""Figures of the study osa-das. Each takes arrays, tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.figures import INK, band, faded, images, style
from claimlab.studies.attribution import _osa_das_method as method

STYLE = {
    "osa_das": ("#0072B2", "solid"), "osa": ("#888888", "solid"), "osa_averaged": ("#888888", "dash"),
    "single_vector": ("#56B4E9", "dash"), "rise": ("#009E73", "solid"), "gradcam": ("#E69F00", "solid"),
    "integrated_gradients": ("#CC79A7", "solid"), "random_map": ("#7F5FA8", "dot"),
}  # fmt: skip
WORDS = {
    "osa_das": "OSA-DAS", "osa": "occlusion", "osa_averaged": "averaged drop", "single_vector": "single vector", "rise": "RISE",
    "gradcam": "Grad-CAM", "integrated_gradients": "integrated gradients", "random_map": "noise",
}  # fmt: skip
GREY = [[0, "black"], [1, "white"]]
ANGLES = ("#D55E00", "#E69F00", "#CC79A7", "#7F5FA8")  # the smallest angle first
FRAMES = 64  # of the film, at most


def gallery(x: Tensor, box: Tensor | None, notes: list[str], maps: dict[str, Tensor]) -> go.Figure:
    """A row an image [n, C, H, W]: the image, then the map [n, H, W] of every arm, each scaled to its own range; boxes drawn."""
    order = [name for name in STYLE if name in maps]
    arrays, titles, outlines = [], [], []
    for i, note in enumerate(notes):
        outline = None if box is None else box[i].cpu().numpy()
        arrays += [x[i].mean(0).cpu().numpy(), *(maps[name][i].cpu().numpy() for name in order)]
        titles += [note, *(WORDS[name].replace(" ", "<br>") if i == 0 else "" for name in order)]
        outlines += [outline] * (1 + len(order))
    said = f"{len(notes)} images and the maps of {len(order)} methods, bright is important"
    if box is not None and {"osa", "osa_das"} <= set(maps):
        share = {name: float(method.mass_inside(maps[name], box).mean()) for name in ("osa_das", "osa")}
        said += f"; in the outlines lies {share['osa_das']:.0%} of OSA-DAS, {share['osa']:.0%} of plain occlusion"
    fig = images(arrays, titles, title=said, columns=1 + len(order), scale="Viridis", outlines=outlines)
    heat = [t for t in fig.data if t.type == "heatmap"]
    for t in heat[:: 1 + len(order)]:
        t.colorscale = GREY
    top = fig.layout.margin.t
    return fig.update_layout(height=top + 30 + 108 * len(notes), margin_t=top + 16, margin_b=12, margin_l=8, margin_r=8)


def removal(curves: dict[str, list[tuple[np.ndarray, np.ndarray]]], seeds: list[int]) -> go.Figure:
    """Deletion and insertion curves {arm: per seed (deletion [K], insertion [K])}: mean of the seeds and its 95 % band."""
    fig = make_subplots(1, 2, subplot_titles=["deletion: lower is better", "insertion: higher is better"], shared_yaxes=True,
                        horizontal_spacing=0.05)  # fmt: skip
    score = {arm: np.mean([np.trapezoid(two - one, dx=1 / (len(one) - 1)) for one, two in found]) for arm, found in curves.items()}
    for arm, found in curves.items():
        colour, dash = STYLE[arm]
        for column in (1, 2):
            values = np.stack([one[column - 1] for one in found])
            x = np.linspace(0, 100, values.shape[1])
            rows = pd.DataFrame({"seed": np.repeat(seeds, values.shape[1]), "step": np.tile(x, len(seeds)), "value": values.ravel()})
            middle, look = band(rows), {"row": 1, "col": column, "legendgroup": arm}
            fig.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([middle["high"], middle["low"][::-1]]), mode="lines",
                            fill="toself", fillcolor=faded(colour, 0.12), line_width=0, showlegend=False, hoverinfo="skip",
                            **look)  # fmt: skip
            fig.add_scatter(x=x, y=middle["mean"], mode="lines", name=WORDS[arm], showlegend=column == 1,
                            line=dict(color=colour, dash=dash, width=3.5 if arm == "osa_das" else 2), **look)  # fmt: skip
    best = max(score, key=score.get)
    title = f"{WORDS[best]} parts insertion from deletion most: overall score {score[best]:.2f}"
    if "osa_das" in score and best != "osa_das":
        title += f", OSA-DAS {score['osa_das']:.2f}"
    style(fig, title, height=520, x="most salient pixels taken [%]")
    fig.update_xaxes(title_text="most salient pixels brought back [%]", col=2)
    fig.update_yaxes(range=[0, 1.02])
    fig.update_yaxes(title_text="probability of the class", row=1, col=1)
    return fig.update_layout(margin_b=130)


def sizes(table: pd.DataFrame) -> go.Figure:
    """Minimal size against forward passes an image: mean of the seeds and its 95 % interval."""
    rows = table[table["metric"] == "minimal_size"]
    fig, last = go.Figure(), {}
    for arm in [a for a in STYLE if a in set(rows["arm"])]:
        middle, (colour, dash) = band(rows[rows["arm"] == arm]), STYLE[arm]
        bars = dict(array=middle["high"] - middle["mean"], arrayminus=middle["mean"] - middle["low"], thickness=1, width=4)
        fig.add_scatter(x=np.maximum(middle.index, 1), y=100 * middle["mean"], name=WORDS[arm], mode="lines+markers",
                        error_y={k: 100 * v if k.startswith("array") else v for k, v in bars.items()},
                        line=dict(color=colour, dash=dash, width=3.5 if arm == "osa_das" else 2), marker_size=9)  # fmt: skip
        last[arm] = 100 * middle["mean"].iloc[-1]
    low = min(last, key=last.get)
    title = f"Fewest pixels that keep the class: {last[low]:.1f} %, by {WORDS[low]}"
    if {"osa", "osa_das"} <= set(last):
        title += f"; OSA-DAS {last['osa_das']:.1f} %, plain occlusion with far fewer passes {last['osa']:.1f} %"
    style(fig, title, height=460, x="forward passes an image (log axis; noise and Grad-CAM drawn at 1)",
          y="minimal size [% of pixels, log axis]")  # fmt: skip
    fig.update_xaxes(type="log", tickvals=sorted({max(1, int(s)) for s in rows["step"]}), tickformat=",d")
    fig.update_yaxes(type="log", tickvals=[2.5, 5, 10, 20, 40, 80])
    return fig.update_layout(margin_b=120)


# ---- the film


def walk(pictures: np.ndarray, whole: np.ndarray, bundle: np.ndarray, degree: np.ndarray, m: int) -> go.Figure:
    """A film over the occluders of one image: the image under each [K, H, W]; the bundle of features whole [N, d] and
    occluded [K, N, d] on the two directions in which all of them vary most; canonical angles, and o [K]."""
    flat, plane = _plane(whole, bundle)
    base = method.subspace(torch.from_numpy(whole.T.copy()), m)
    cosines, count = method.canonical(base[None], method.subspace(torch.from_numpy(bundle).mT, m))
    angles = np.degrees(np.arccos(cosines.numpy()))[:, : int(count.max())]
    shown = np.unique(np.linspace(0, len(pictures) - 1, FRAMES).round().astype(int))
    start = int(shown[degree[shown].argmax()])
    fig = make_subplots(1, 3, column_widths=[0.26, 0.37, 0.37], horizontal_spacing=0.09,
                        subplot_titles=["the image", "bundle of features", "canonical angles"])  # fmt: skip
    fig.add_heatmap(z=pictures[start][::-1], colorscale=GREY, zmin=0, zmax=1, showscale=False, hoverinfo="skip", row=1, col=1)
    dots = {"mode": "markers", "row": 1, "col": 2}
    fig.add_scatter(x=flat[:, 0], y=flat[:, 1], name="whole image", marker=dict(color="#888888", size=9), **dots)
    fig.add_scatter(x=plane[start, :, 0], y=plane[start, :, 1], name="occluded", marker=dict(color="#0072B2", size=9), **dots)
    for i in range(angles.shape[1]):
        fig.add_scatter(x=np.arange(len(angles)), y=angles[:, i], mode="lines", name=f"angle {i + 1}", row=1, col=3,
                        line=dict(color=ANGLES[i % len(ANGLES)], width=2))  # fmt: skip
    fig.add_scatter(x=[start, start], y=[0, 90], mode="lines", line=dict(color=INK, dash="dot"), showlegend=False, row=1, col=3)
    moving = [0, 2, len(fig.data) - 1]
    fig.frames = [go.Frame(name=str(k), traces=moving, data=[go.Heatmap(z=pictures[k][::-1]),
                  go.Scatter(x=plane[k, :, 0], y=plane[k, :, 1]), go.Scatter(x=[k, k])]) for k in shown]  # fmt: skip
    title = (f"Occluder {start} of {len(degree)} turns the bundle most: orthogonal degree {degree[start]:.2f}, "
             f"median of all {np.median(degree):.2f}")  # fmt: skip
    style(fig, title, height=500)
    still = dict(mode="immediate", frame=dict(duration=0, redraw=True))
    steps = [dict(method="animate", label=str(k), args=[[str(k)], still]) for k in shown]
    fig.update_layout(sliders=[dict(active=int(np.flatnonzero(shown == start)[0]), steps=steps, currentvalue_prefix="occluder ",
                                    y=-0.24, pad_t=10)], margin_b=170)  # fmt: skip
    fig.update_xaxes(visible=False, constrain="domain", col=1).update_yaxes(visible=False, scaleanchor="x", col=1)
    fig.update_xaxes(title_text="1st component", col=2).update_yaxes(title_text="2nd component", col=2)
    fig.update_xaxes(title_text="occluder, row by row", col=3)
    return fig.update_yaxes(title_text="angle [degrees]", range=[0, 92], col=3)


def _plane(whole: np.ndarray, bundle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features scaled to length 1 on their first two principal components (centred: only for the drawing)."""
    joined = np.concatenate([whole[None], bundle]).astype(np.float64)
    joined /= np.maximum(np.linalg.norm(joined, axis=-1, keepdims=True), 1e-12)
    joined -= joined.mean((0, 1))
    axes = np.linalg.svd(joined.reshape(-1, joined.shape[-1]), full_matrices=False)[2][:2]
    found = joined @ axes.T
    return found[0], found[1:]


# ---- what must be kept


def kept(s, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The images of a subject with only the pixels of the minimal size left, and that size. [n, C, H, W], [n]"""
    size = method.minimal_size(s.asked.logits, s.x, s.y, rank, s.middle)
    count = (size * rank[0].numel()).round()[:, None, None]
    return torch.where((rank >= rank[0].numel() - count)[:, None], s.x, s.middle), size


def remains(x: Tensor, found: dict[str, tuple[Tensor, Tensor]]) -> go.Figure:
    """A row an image: whole, and with what each method keeps of it."""
    arrays, titles = [], []
    for i in range(len(x)):
        arrays += [x[i].mean(0).cpu().numpy(), *(pictures[i].mean(0).cpu().numpy() for pictures, _ in found.values())]
        titles += ["image", *(f"{WORDS[name]}, {float(size[i]):.1%}" for name, (_, size) in found.items())]
    means = {name: float(size.mean()) for name, (_, size) in found.items()}
    said = ", ".join(f"{WORDS[name]} {share:.0%}" for name, share in means.items())
    fig = images(arrays, titles, title=f"The smallest share of pixels that keeps the class, mean of {len(x)} images: {said}",
                 columns=1 + len(found))  # fmt: skip
    return fig.update_traces(zmin=0, zmax=1).update_layout(height=fig.layout.margin.t + 30 + 160 * len(x), margin_b=12)
