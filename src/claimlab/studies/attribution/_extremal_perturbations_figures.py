"""Figures of the study extremal-perturbations. Each takes arrays, tensors or a tidy table and says in its title what one sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.figures import BLUE, GREY, INK, OTHERS, band, bars, faded, images, style

WORDS = {
    "extremal": "extremal", "gradient": "input<br>gradient", "grad_cam": "Grad-CAM", "rise": "RISE", "occlusion": "occlusion",
    "meaningful_perturbation": "trade-off<br>of 2017", "free_mask": "free mask",
}  # fmt: skip
COLOURS = {
    "extremal": BLUE, "gradient": GREY, "grad_cam": OTHERS[0], "rise": OTHERS[2], "occlusion": OTHERS[1],
    "meaningful_perturbation": OTHERS[3], "free_mask": OTHERS[4],
}  # fmt: skip
LINES = ("extremal", "free_mask", "meaningful_perturbation")


def plain(name: str) -> str:
    return WORDS[name].replace("<br>", " ")


def grey(picture: Tensor) -> np.ndarray:
    """A picture [C, H, W] as one plane [H, W]."""
    return picture.mean(0).cpu().numpy()


def growing(picture: Tensor, box: Tensor, masks: Tensor, seen: Tensor, p: Tensor, areas: list[float], whole: float) -> go.Figure:
    """One picture [C, H, W] with its box [H, W]; masks [A, H, W], what they leave [A, C, H, W] and the class's probability [A]."""
    chances = p.tolist()
    titles = ["picture", *(f"area {100 * a:.3g} %" for a in areas), f"p = {whole:.2f}", *(f"p = {one:.2f}" for one in chances)]
    arrays = [grey(picture), *masks.cpu().numpy(), grey(picture), *(grey(one) for one in seen)]
    enough = next((a for a, one in zip(areas, chances, strict=True) if one >= 0.9 * whole), None)
    said = f"nine tenths of it are kept from area {100 * enough:.3g} % on" if enough else "no area here keeps nine tenths of it"
    outline = box.cpu().numpy()
    return images(arrays, titles, title=f"Masks of one picture at growing areas (above) and what they leave (below); the whole picture "
                  f"has probability {whole:.2f}, {said}", columns=1 + len(areas), outlines=[outline] * len(arrays))  # fmt: skip


def pointing(table: pd.DataFrame) -> go.Figure:
    """Pointing accuracy of all methods: a dot a seed, a bar the mean, its 95 % interval."""
    rows = table[table["metric"] == "pointing_accuracy"]
    means = rows.groupby("arm")["value"].mean()
    calls = table[table["metric"] == "network_calls"].groupby("arm")["value"].last()
    shown = [a for a in WORDS if a in means.index]
    best = max(shown, key=lambda a: means[a])
    title = f"{plain(best).capitalize()} points at the object most often, in {means[best]:.0%} of the pictures"
    if best != "extremal" and "extremal" in means.index:
        title += f"; extremal masks in {means['extremal']:.0%}"
    names = {a: f"{WORDS[a]}<br>{calls[a]:,.0f} call{'s' if calls[a] > 1 else ''}" for a in shown}
    fig = bars(table, "pointing_accuracy", arms=shown, title=title, y_title="share of pictures pointed at rightly", palette=COLOURS,
               names=names, height=460)  # fmt: skip
    fig.update_yaxes(range=[0, 1.05])
    return fig.update_xaxes(title_text="method, and how often it asks the network about a picture")


def kept(found: dict[str, tuple[list, list]], areas: list[float], seeds: list[int]) -> go.Figure:
    """Probability kept against area: {arm: (in the explained network, in the second), each a list over seeds of [A]}."""
    fig = make_subplots(1, 2, subplot_titles=["the explained network", "a second network"], shared_yaxes=True, horizontal_spacing=0.05)
    ends = {}
    for arm, pair in found.items():
        for column, values in enumerate(pair, start=1):
            table = np.stack([v.cpu().numpy() for v in values])
            rows = pd.DataFrame({"seed": np.repeat(seeds, len(areas)), "step": np.tile(np.array(areas) * 100, len(seeds)),
                                 "value": table.ravel()})  # fmt: skip
            middle = band(rows)
            ends[arm, column] = table.mean()
            bar = dict(array=middle["high"] - middle["mean"], arrayminus=middle["mean"] - middle["low"], thickness=1, width=3)
            fig.add_scatter(x=middle.index, y=middle["mean"], error_y=bar, mode="lines+markers", name=plain(arm), legendgroup=arm,
                            line=dict(color=COLOURS[arm], width=3.5 if arm == "extremal" else 2), showlegend=column == 1,
                            row=1, col=column)  # fmt: skip
    one, two = (ends["extremal", c] for c in (1, 2))
    title = f"The extremal region keeps a probability of {one:.2f}, and of {two:.2f} in a second network"
    if ("free_mask", 1) in ends:
        title += f"; the free mask keeps {ends['free_mask', 1]:.2f} and {ends['free_mask', 2]:.2f}"
    style(fig, title, height=440, x="area that stays sharp [% of the picture]")
    fig.update_yaxes(title_text="probability of the class", row=1, col=1)
    return fig.update_yaxes(range=[0, 1.05]).update_layout(margin_b=100)


def randomised(pictures: Tensor, series: dict[int, Tensor], alike: dict[int, float]) -> go.Figure:
    """Pictures [n, C, H, W] and their masks summed over areas [n, H, W] by the number of layers drawn anew; `alike` is the mean
    correlation with the masks of the trained network."""
    arrays, titles = [], []
    for i, picture in enumerate(pictures):
        arrays += [grey(picture), *(m[i].cpu().numpy() for m in series.values())]
        first = [f"{d} layer{'s' * (d != 1)} anew<br>r = {alike[d]:.2f}" if d else "trained<br>network" for d in series]
        titles += ["picture", *first] if i == 0 else [""] * (1 + len(series))
    deepest = max(series)
    title = f"With all {deepest} layers drawn anew the masks have a correlation of {alike[deepest]:.2f} with those of the trained network"
    fig = images(arrays, titles, title=title, columns=1 + len(series))
    return fig.update_layout(margin_t=fig.layout.margin.t + 16, height=fig.layout.height + 16)


def channels(share: np.ndarray, count: int, pictures: list[np.ndarray], label: int, kept: float, luck: float) -> go.Figure:
    """Mean channel mask [K] of one class, sorted, and four pictures: original, inversion of all channels, of the `count` kept ones,
    of the others."""
    order = np.argsort(-share, kind="stable")
    fig = make_subplots(2, 4, specs=[[{"colspan": 4}, None, None, None], [{}] * 4], row_heights=[0.42, 0.58], vertical_spacing=0.24,
                        horizontal_spacing=0.02,
                        subplot_titles=["", "picture", "all channels<br>inverted", f"the {count} kept<br>channels",
                                        "the others"])  # fmt: skip
    top = np.arange(len(share)) < count
    fig.add_bar(x=[str(k) for k in order], y=share[order], marker_color=[BLUE if t else faded(INK, 0.5) for t in top], showlegend=False,
                row=1, col=1)  # fmt: skip
    for column, picture in enumerate(pictures, start=1):
        fig.add_heatmap(z=picture[::-1], colorscale="Greys_r", showscale=False, row=2, col=column, zmin=0, zmax=1)
    title = (f"Channels kept for class {label}; {count} of {len(share)} channels keep a probability of {kept:.2f}, as many at random "
             f"{luck:.2f} (mean over classes and seeds)")  # fmt: skip
    style(fig, title, height=540)
    fig.update_xaxes(visible=False, constrain="domain", row=2).update_yaxes(visible=False, row=2)
    for k in range(4):
        fig.update_yaxes(scaleanchor=f"x{k + 2}", row=2, col=k + 1)
    fig.update_xaxes(title_text="channel, most often kept first", type="category", row=1, col=1)
    fig.update_yaxes(title_text="mean mask", range=[0, 1.05], row=1, col=1)
    return fig.update_annotations(font_size=11).update_layout(margin_b=20)


def forming(seen: np.ndarray, mask: np.ndarray, area: float, step: int) -> go.Figure:
    """What a mask [H, W] leaves of its picture [H, W], the mask, and its sorted values against the wanted area."""
    fig = make_subplots(1, 3, subplot_titles=["what is left", "the mask", "its values, sorted"], horizontal_spacing=0.1,
                        column_widths=[0.3, 0.3, 0.4])  # fmt: skip
    for column, array in enumerate((seen, mask), start=1):
        fig.add_heatmap(z=array[::-1], colorscale="Greys_r", showscale=False, zmin=0, zmax=1, row=1, col=column)
        fig.update_yaxes(scaleanchor=f"x{column}" if column > 1 else "x", row=1, col=column)
        fig.update_xaxes(visible=False, constrain="domain", row=1, col=column).update_yaxes(visible=False, row=1, col=column)
    values = np.sort(mask.ravel())
    x = np.linspace(0, 100, len(values))
    fig.add_scatter(x=x, y=values, mode="lines", line=dict(color=BLUE, width=3), name="the mask", row=1, col=3)
    fig.add_scatter(x=[0, 100 * (1 - area), 100 * (1 - area), 100], y=[0, 0, 1, 1], mode="lines", line=dict(color=INK, dash="dash"),
                    name="wanted", row=1, col=3)  # fmt: skip
    style(fig, f"After {step} steps the mean of the mask is {values.mean():.3f}; wanted is {area:.3g}", height=380)
    fig.update_xaxes(title_text="share of pixels [%]", row=1, col=3)
    fig.update_yaxes(title_text="value of the mask", range=[-0.05, 1.05], row=1, col=3)
    return fig.update_layout(margin_b=90)


def against_area(areas: list[float], p: np.ndarray, wanted: list[float]) -> go.Figure:
    """The class's probability [n, A] on n pictures while their masks' largest pixels become sharp: thin a picture, thick the mean."""
    x = np.array(areas) * 100
    fig = go.Figure()
    for one in p:
        fig.add_scatter(x=x, y=one, mode="lines", line=dict(color=BLUE, width=0.8), opacity=0.35, showlegend=False, hoverinfo="skip")
    name = f"mean of {len(p)} pictures" if len(p) > 1 else "one picture"
    fig.add_scatter(x=x, y=p.mean(0), mode="lines+markers", line=dict(color=BLUE, width=3), name=name, showlegend=True)
    for a in wanted:
        fig.add_vline(x=100 * a, line=dict(color=INK, dash="dot", width=1))
    k = int(np.argmin(np.abs(x - 100 * wanted[len(wanted) // 2])))
    title = f"A sharp region of {x[k]:.3g} % keeps a probability of {p.mean(0)[k]:.2f}, the whole picture has {p.mean(0)[-1]:.2f}"
    style(fig, title, x="area that stays sharp [% of the picture]", y="probability of the class")
    return fig.update_yaxes(range=[0, 1.05])
