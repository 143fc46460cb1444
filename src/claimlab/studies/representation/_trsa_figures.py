"""Figures of the study trsa. Each takes tensors, arrays or a tidy table and says in its title what one sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.figures import BLUE, GREY, INK, band, colours, faded, style
from claimlab.studies.representation import _trsa_method as method

WORDS = {
    "rdm": "distances", "rdm_rank": "distances by rank", "rgtm": "geo-topological, nested", "rgtm_fixed": "geo-topological, fixed",
    "adjacency": "neighbours only", "upper_only": "upper threshold only", "lower_only": "lower threshold only",
    "rgdm": "geodesic", "cka": "linear CKA",
}  # fmt: skip
DASHES = {"rdm_rank": "dash", "rgtm_fixed": "dash", "upper_only": "dot", "lower_only": "dot", "cka": "dashdot"}


def triangle(found: Sequence[dict[float, np.ndarray]], ratios: Sequence[float]) -> go.Figure:
    """Accuracy of every pair of thresholds, mean of the seeds, at the first two ratios; `found`: {ratio: [upper, lower]} a seed."""
    shown = list(ratios[:2])
    headings = [f"signal to noise {ratio:.3g}" for ratio in shown]
    fig = make_subplots(1, len(shown), subplot_titles=headings, horizontal_spacing=0.2, shared_yaxes=True)
    said = []
    for column, ratio in enumerate(shown, start=1):
        mean = np.mean([one[ratio] for one in found], axis=0)
        ends = np.round(np.linspace(0, 1, len(mean)), 3)
        place = {"x": 0.41 if column == 1 else 1.01, "len": 0.9, "thickness": 12, "tickformat": ".2f"}
        fig.add_heatmap(z=mean, x=ends, y=ends, colorscale="Viridis", colorbar=place, row=1, col=column, hoverongaps=False,
                        hovertemplate="lower %{x}, upper %{y}: %{z:.3f}<extra></extra>")  # fmt: skip
        high, low = np.unravel_index(np.nanargmax(mean), mean.shape)
        fig.add_scatter(x=[ends[low]], y=[ends[high]], mode="markers", row=1, col=column, showlegend=False, hoverinfo="skip",
                        marker={"symbol": "star", "size": 14, "color": "#D55E00", "line": {"color": "white", "width": 1}})  # fmt: skip
        corner = {"showarrow": True, "arrowcolor": INK, "arrowwidth": 1, "row": 1, "col": column}
        fig.add_annotation(text="geometry: all distances", x=0, y=1, ax=95, ay=-24, **corner)
        fig.add_annotation(text="topology: l = u", x=0.5, y=0.5, ax=52, ay=38, **corner)
        said.append(f"{mean[high, low]:.2f} at ({ends[low]:g}, {ends[high]:g}) against {mean[-1, 0]:.2f} for the full matrix")
    title = "Share of layers named by each pair of thresholds; the star is the best: " + "; ".join(said)
    style(fig, title, height=470, x="lower threshold l [quantile]")
    fig.update_layout(margin_t=fig.layout.margin.t + 22)
    for one in fig.layout.annotations[: len(shown)]:
        one.yshift = 18
    fig.update_yaxes(range=[-0.06, 1.14])
    fig.update_xaxes(range=[-0.06, 1.06])
    return fig.update_yaxes(title_text="upper threshold u [quantile]", col=1)


def against_noise(table: pd.DataFrame, snr: float) -> go.Figure:
    """Share of layers named against the signal-to-noise ratio, mean of the seeds with its 95 % interval."""
    rows = table[table["metric"].str.startswith("accuracy at ")]
    rows = rows.assign(step=rows["metric"].str.removeprefix("accuracy at ").astype(float))
    arms = [a for a in WORDS if (rows["arm"] == a).any()]
    palette, fig, noisy = colours(arms, "rdm", "rgtm"), go.Figure(), {}
    for k, arm in enumerate(arms):
        middle = band(rows[rows["arm"] == arm])
        bars = {"array": middle["high"] - middle["mean"], "arrayminus": middle["mean"] - middle["low"], "thickness": 1, "width": 3}
        fig.add_scatter(x=middle.index * 1.03 ** (k - len(arms) / 2), y=middle["mean"], mode="lines+markers", name=WORDS[arm],
                        error_y=bars, line={"color": palette[arm], "dash": DASHES.get(arm, "solid"),
                                            "width": 3.5 if arm in ("rdm", "rgtm") else 1.8})  # fmt: skip
        noisy[arm] = middle["mean"].iloc[(abs(middle.index - 0.2 * snr)).argmin()]
    fig.add_hline(y=1 / 6, line={"dash": "dash", "color": INK, "width": 1}, annotation_text="chance", annotation_font_color=INK,
                  annotation_position="bottom right")  # fmt: skip
    best = max(noisy, key=noisy.get)
    title = f"In the noisy condition ({0.2 * snr:.3g}) {WORDS[best]} names most layers: {noisy[best]:.0%}"
    if {"rdm", "rgtm"} <= set(noisy):
        title += f"; geo-topological {noisy['rgtm']:.0%}, distances {noisy['rdm']:.0%}"
    style(fig, title, height=540, x="signal-to-noise ratio (log axis)", y="share of layers named")
    ticks = sorted(set(rows["step"]))
    fig.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:.3g}" for t in ticks])
    return fig.update_yaxes(range=[0, 1.02]).update_layout(margin_b=150)


def same_layer(d: Tensor, layer: int, lower: float, upper: float) -> go.Figure:
    """Distances d [instances, L, P] of one layer in several networks above, the same after the transform below."""
    above = d[:, layer]
    below = method.geo_topological(above, lower, upper)
    count = len(above)
    titles = [f"network {k + 1}: distances" for k in range(count)] + [f"network {k + 1}: after g" for k in range(count)]
    fig = make_subplots(2, count, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.1)
    alike = []
    for row, part in enumerate((above / above.amax(-1, keepdim=True).clamp_min(method.TINY), below), start=1):
        full = method.square(part).cpu().numpy()
        bar = {"title": "of the largest" if row == 1 else "g", "len": 0.45, "y": 0.79 if row == 1 else 0.21}
        for k in range(count):
            fig.add_heatmap(z=full[k], zmin=0, zmax=1, colorscale="Viridis", showscale=k == count - 1, row=row, col=k + 1, colorbar=bar)
        similar = method.compare(part, part[:, None])[..., 0]
        alike.append(similar[~torch.eye(count, dtype=torch.bool)].mean().item())
    title = f"One layer in {count} networks, stimuli sorted by digit: mean correlation {alike[0]:.2f} of distances, {alike[1]:.2f} after g"
    style(fig, title, height=560)
    fig.update_xaxes(visible=False, constrain="domain")
    for axis in range(1, 2 * count + 1):
        fig.update_layout({f"yaxis{axis if axis > 1 else ''}": {"visible": False, "autorange": "reversed",
                                                                 "scaleanchor": f"x{axis if axis > 1 else ''}"}})  # fmt: skip
    return fig.update_annotations(font_size=12).update_layout(margin_b=24)


def confusion(voted: Tensor) -> np.ndarray:
    """How often data from each layer [row] are taken for each layer [column]: shares that sum to 1 in a row."""
    layers = voted.shape[1]
    named = torch.nn.functional.one_hot(voted.argmax(-1), layers).double()
    return named.mean((0, 2)).cpu().numpy()


def confusions(found: dict[str, list[np.ndarray]], layers: Sequence[str], ratio: float) -> go.Figure:
    """Confusion matrices of several statistics {arm: one [L, L] a seed}, mean of the seeds."""
    fig = make_subplots(1, len(found), subplot_titles=[WORDS[a] for a in found], horizontal_spacing=0.06, shared_yaxes=True)
    near = []
    for column, (arm, each) in enumerate(found.items(), start=1):
        mean = np.mean(each, axis=0)
        names = list(layers[: len(mean)])
        fig.add_heatmap(z=mean, x=names, y=names, colorscale="Cividis", zmin=0, zmax=1, texttemplate="%{z:.2f}", row=1, col=column,
                        showscale=column == len(found), colorbar_title="share")  # fmt: skip
        apart = np.abs(np.subtract.outer(np.arange(len(mean)), np.arange(len(mean))))
        wrong = mean[apart > 0].sum()
        near.append(f"{WORDS[arm]} {mean[apart == 1].sum() / wrong if wrong else 1:.0%}")
    title = f"At signal to noise {ratio:.3g} the errors that name a neighbouring layer are, of all errors: " + ", ".join(near)
    style(fig, title, height=450, x="layer named")
    fig.update_yaxes(autorange="reversed")
    return fig.update_yaxes(title_text="layer recorded", col=1)


def transform(d: Tensor, layers: Sequence[str], lower: float, upper: float, unit: str) -> go.Figure:
    """Histogram of the distances d [L, P], in `unit`, of three layers of one network, with g drawn over it."""
    shown = [0, len(d) // 2, len(d) - 2]
    fig = make_subplots(1, len(shown), subplot_titles=[layers[k] for k in shown], specs=[[{"secondary_y": True}] * len(shown)],
                        horizontal_spacing=0.09)  # fmt: skip
    for column, k in enumerate(shown, start=1):
        ordered = d[k].sort().values
        low, high = (method.quantile(ordered, q) for q in (lower, upper))
        count, edges = np.histogram(ordered.cpu().numpy(), bins=40)
        x = torch.cat([torch.linspace(0, float(ordered[-1]), 200), low, high, high + 1e-6 * ordered[-1]]).sort().values
        look = {"row": 1, "col": column, "showlegend": column == 1}
        fig.add_bar(x=(edges[1:] + edges[:-1]) / 2, y=count, width=np.diff(edges), marker_color=faded(GREY, 0.6),
                    name="pairs of stimuli", **look)  # fmt: skip
        fig.add_scatter(x=x.numpy(), y=method.transform(x, low, high).numpy(), mode="lines", line={"color": BLUE, "width": 3},
                        name="g(d)", secondary_y=True, **look)  # fmt: skip
    title = f"g levels the nearest {lower:.0%} and the furthest {1 - upper:.0%} of the pairs; {upper - lower:.0%} keep their order between"
    style(fig, title, height=400, x=f"distance d [{unit}]")
    fig.update_yaxes(title_text="pairs of stimuli", col=1, secondary_y=False)
    fig.update_yaxes(range=[0, 1.05], showgrid=False, tickvals=[0, 0.5, 1], showticklabels=False, secondary_y=True)
    fig.update_yaxes(title_text="g(d)", showticklabels=True, col=len(shown), secondary_y=True)
    return fig.update_layout(margin_b=100, bargap=0)


def neighbours(x: Tensor, d: Tensor, upper: float, labels: Sequence[int]) -> go.Figure:
    """Responses x [m, n] along their first two principal axes; pairs nearer than the quantile `upper` of d [P] are joined."""
    centred = (x - x.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    flat = (u[:, :2] * s[:2]).cpu().numpy()
    share = float((s[:2] ** 2).sum() / (s**2).sum().clamp_min(method.TINY))
    i, j = (part[(d < method.quantile(d.sort().values, upper)).cpu()].numpy() for part in method.pairs(len(x)))
    ends = np.stack([flat[i], flat[j], np.full((len(i), 2), np.nan)], axis=1).reshape(-1, 2)
    fig = go.Figure(go.Scatter(x=ends[:, 0], y=ends[:, 1], mode="lines", line={"color": faded(GREY, 0.2), "width": 1}, hoverinfo="skip",
                               showlegend=False))  # fmt: skip
    fig.add_scatter(x=flat[:, 0], y=flat[:, 1], mode="markers+text", text=[str(c) for c in labels], textfont={"color": "white", "size": 11},
                    marker={"size": 19, "color": list(labels), "colorscale": "Turbo"}, showlegend=False)  # fmt: skip
    title = f"{len(i)} of {len(d)} pairs of stimuli are neighbours; the two axes show {share:.0%} of the layer's variance"
    return style(fig, title, x="first principal axis [response]", y="second principal axis [response]", height=520)
