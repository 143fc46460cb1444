"""Figures and live views of the study adaptive-mi-estimators. Titles say what was found, computed from the lab."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, style
from claimlab.studies.representation import _adaptive_mi_estimators_arms as arms
from claimlab.studies.representation import _adaptive_mi_estimators_data as data
from claimlab.studies.representation import _adaptive_mi_estimators_method as method
from claimlab.studies.representation import adaptive_mi_estimators as study

LAYERS = (BLUE, *OTHERS[:4])
SHOWN = 3  # the hidden layer whose histogram is drawn, as in the claim on fixed bins
DRAWS = 500
ASIDE = ((10, -10), (0, 13), (-6, -14), (0, -14), (0, -14))  # where a layer's number stands, so that early layers do not collide


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name."""
    drawn = {"planes": planes(lab), "rulers": rulers(lab), "histogram": histogram(lab), "l2": regularised(lab),
             "generalisation": generalisation(lab), "paths": paths(lab)}  # fmt: skip
    return drawn | ({"survey": survey(lab)} if "other_activations" in lab.arms else {})


def name_of(lab, arm: str) -> str:
    """The name of the networks of an arm: those called relu follow the knob."""
    return lab.arms[arm].members[0].activation if hasattr(lab.arms[arm], "members") else arm


def travelled(members) -> tuple[np.ndarray, np.ndarray]:
    """Which measurements were taken, and the mean path [T, L, 3] over all networks of all members."""
    every = np.concatenate([net.path.cpu().numpy() for net in members], 1)
    known = np.flatnonzero(every[:, 0, 0, 0] >= 0)
    return known, every[known].mean(1)


def score(members) -> np.ndarray:
    """Compression score of every network of all members, [K, L]."""
    every = np.concatenate([net.path.cpu().numpy() for net in members], 1)
    return method.compression(every[every[:, 0, 0, 0] >= 0][..., 0])


# ---- information planes


def _panels(titles: list[str]) -> go.Figure:
    return make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)


def _plane(fig: go.Figure, members, steps: list[int], column: int | None = None) -> None:
    place = {} if column is None else dict(row=1, col=column)
    known, path = travelled(members)
    at = np.array(steps)[known]
    shade = np.log10(at + 1)
    ticks = [s for s in (0, 10, 100, 1000, 10000) if s <= steps[-1]]
    bar = dict(title="optimiser<br>step", tickvals=[math.log10(s + 1) for s in ticks], ticktext=[str(s) for s in ticks], len=0.9)
    for layer in range(path.shape[1]):
        x, y = path[:, layer, 0], path[:, layer, 1]
        fig.add_scatter(x=x, y=y, mode="lines", line=dict(color=INK, width=1), hoverinfo="skip", showlegend=False, **place)
        look = dict(size=8, color=shade, colorscale="Viridis", cmin=0, cmax=math.log10(steps[-1] + 1), colorbar=bar,
                    showscale=layer == 0 and column in (None, 1), line=dict(color=INK, width=0.5))  # fmt: skip
        told = f"layer {layer + 1}, step %{{customdata}}: %{{x:.2f}}, %{{y:.2f}} bit<extra></extra>"
        fig.add_scatter(x=x, y=y, mode="markers", marker=look, customdata=at, showlegend=False, hovertemplate=told, **place)
        right, up = ASIDE[min(layer, len(ASIDE) - 1)]
        fig.add_annotation(x=x[-1], y=y[-1], text=f"<b>{layer + 1}</b>", showarrow=False, xshift=right, yshift=up, **place)


def planes(lab) -> go.Figure:
    """Information planes of three activations by the same ruler; means over all networks."""
    chosen = ("relu_ebab", "tanh_ebab", "elu_ebab")
    fig = _panels([name_of(lab, arm) for arm in chosen])
    for column, arm in enumerate(chosen, 1):
        _plane(fig, lab.arms[arm].members, lab.arms["relu_population"].times, column)
    lost = ", ".join(f"{name_of(lab, arm)} {score(lab.arms[arm].members)[:, -1].mean():.0%}" for arm in chosen)
    style(fig, f"What the last hidden layer has lost of its peak of I(T; X), by {_ruler(lab.params)}: {lost}", height=470,
          x="I(T; X) [bit]")  # fmt: skip
    return _same_axes(fig, lab)


def _ruler(p) -> str:
    return {"adaptive": "adaptive bins", "fixed_run": "fixed bins", "fixed_epoch": "bins with one range an epoch"}[p.binning]


def rulers(lab) -> go.Figure:
    """The same networks in three planes that differ in the ruler alone."""
    chosen = {"relu_fixed_bins": "fixed bins", "relu_ebab": _ruler(lab.params), "relu_akde": "adaptive kernels"}
    fig = _panels(list(chosen.values()))
    for column, arm in enumerate(chosen, 1):
        _plane(fig, lab.arms[arm].members, lab.arms["relu_population"].times, column)
    found = ", ".join(f"{name} {score(lab.arms[arm].members)[:, -1].mean():.0%}" for arm, name in chosen.items())
    style(fig, f"The same {name_of(lab, 'relu_ebab')} networks under three rulers; compression of the last hidden layer: {found}",
          height=470, x="I(T; X) [bit]")  # fmt: skip
    return _same_axes(fig, lab)


def _same_axes(fig: go.Figure, lab) -> go.Figure:
    ceiling = math.log2(len(lab.arms["relu_population"].tasks[0].x))
    fig.update_xaxes(range=[-0.4, 1.08 * ceiling]).update_yaxes(title_text="I(T; Y) [bit]", col=1)
    return fig.update_layout(margin_b=70)


def paths(lab) -> go.Figure:
    """I(T; X) of each layer over training by adaptive bins, with the fixed ones below."""
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[_ruler(lab.params), "fixed bins"])
    steps = np.array(lab.arms["relu_population"].times)
    for column, arm in enumerate(("relu_ebab", "relu_fixed_bins"), 1):
        every = np.concatenate([net.path.cpu().numpy() for net in lab.arms[arm].members], 1)[..., 0]
        for layer in range(every.shape[2]):
            for line in every[:, :, layer].T:
                fig.add_scatter(x=steps + 1, y=line, mode="lines", line=dict(color=faded(LAYERS[layer], 0.25), width=0.8),
                                showlegend=False, hoverinfo="skip", row=1, col=column)  # fmt: skip
            fig.add_scatter(x=steps + 1, y=every[:, :, layer].mean(1), mode="lines", line=dict(color=LAYERS[layer], width=3),
                            name=f"hidden layer {layer + 1}", showlegend=column == 1, row=1, col=column)  # fmt: skip
    ends = [f"{score(lab.arms[arm].members).mean():.0%}" for arm in ("relu_ebab", "relu_fixed_bins")]
    style(fig, f"I(T; X) of {every.shape[1]} {name_of(lab, 'relu_ebab')} networks (thin) and their mean: compression is {ends[0]} by "
          f"{_ruler(lab.params)} and {ends[1]} by fixed bins, mean over layers", height=440, x="optimiser step + 1")  # fmt: skip
    return fig.update_xaxes(type="log", dtick=1, exponentformat="power").update_yaxes(title_text="I(T; X) [bit]", col=1)


# ---- what the bins cut


def _bars(fig: go.Figure, values: np.ndarray, found: dict[str, tuple[np.ndarray, str]], **place) -> None:
    count, cuts = np.histogram(values, 60)
    fig.add_bar(x=(cuts[1:] + cuts[:-1]) / 2, y=count / len(values), width=np.diff(cuts), marker_color=faded(GREY, 0.5),
                name="activity", showlegend=place.get("col", 1) == 1, **place)  # fmt: skip
    top = count.max() / len(values)
    for row, (name, (at, colour)) in enumerate(found.items()):
        x = np.repeat(at, 3)
        x[2::3] = np.nan
        low, high = top * (1.06 + 0.1 * row), top * (1.14 + 0.1 * row)
        fig.add_scatter(x=x, y=np.tile([low, high, np.nan], len(at)), mode="lines", line=dict(color=colour, width=1.5), name=name,
                        showlegend=place.get("col", 1) == 1, hoverinfo="x", **place)  # fmt: skip


def _both(values: np.ndarray, span: np.ndarray, p, activation: str) -> dict[str, tuple[np.ndarray, str]]:
    adaptive, _ = arms.edges(values, p.bins, "adaptive", None, activation)
    fixed, _ = arms.edges(values, p.bins, "fixed", span, activation)
    return {"edges of adaptive bins": (adaptive, BLUE), "edges of fixed bins": (fixed, OTHERS[3])}


def histogram(lab) -> go.Figure:
    """Activity of a whole layer of one network at the start and at the end, with both kinds of edges."""
    net, x = lab.arms["relu_fixed_bins"].members[0], data.table(lab.params.patterns).x
    times, layer = lab.arms["relu_population"].times, min(SHOWN, net.path.shape[2]) - 1
    span = arms.spans(net, x, range(len(times)))[0, layer]
    ends = (0, len(times) - 1)
    fig = make_subplots(1, 2, subplot_titles=[f"step {times[t]}" for t in ends], horizontal_spacing=0.1)
    used = []
    for column, t in enumerate(ends, 1):
        values = arms.activity(net, x, t)[layer][0].ravel()
        cuts = _both(values, span, lab.params, net.activation)
        _bars(fig, values[values != 0] if net.activation == "relu" and (values != 0).any() else values, cuts, row=1, col=column)
        used.append(len(np.unique(method.codes(values, cuts["edges of fixed bins"][0]))))
    axis = "activity (without exact zeros)" if net.activation == "relu" else "activity"
    style(fig, f"Hidden layer {layer + 1} of one {net.activation} network: of {lab.params.bins} fixed bins {used[0]} are used at the "
          f"start and {used[1]} at the end", height=430, x=axis)  # fmt: skip
    return fig.update_yaxes(title_text="share of values", col=1)


# ---- compression


def regularised(lab) -> go.Figure:
    """Compression by layer, with and without the penalty: a box and a point for each network."""
    fig, means = go.Figure(), {}
    for arm, name, colour in (("relu_ebab", f"{name_of(lab, 'relu_ebab')}, L2 = {lab.params.l2:g}", GREY),
                              ("relu_l2_ebab", f"{name_of(lab, 'relu_l2_ebab')}, L2 = {study.L2:g}", BLUE)):  # fmt: skip
        c = score(lab.arms[arm].members)
        means[arm] = c.mean()
        fig.add_box(x=np.tile(np.arange(1, c.shape[1] + 1), len(c)), y=c.ravel(), name=f"{name} (n = {len(c)})", boxpoints="all",
                    jitter=0.5, pointpos=0, marker=dict(color=colour, size=4), line_width=1.5)  # fmt: skip
    style(fig, f"Mean compression over hidden layers and networks: {means['relu_ebab']:.0%} without and "
          f"{means['relu_l2_ebab']:.0%} with the penalty", height=440, x="hidden layer",
          y="compression c [share of the peak of I(T; X)]")  # fmt: skip
    return fig.update_layout(boxmode="group").update_yaxes(range=[-0.03, 1.05], tickformat=".0%")


def pooled(lab) -> tuple[np.ndarray, np.ndarray]:
    """Compression [K, L] and held-out accuracy [K] of every network of the population, all seeds."""
    members = lab.arms["relu_population"].members
    return score(members), np.concatenate([net.accuracy[-1].cpu().numpy() for net in members])


def bootstrap(c: np.ndarray, accuracy: np.ndarray, draws: int = DRAWS) -> tuple[float, float, float]:
    """Spearman's correlation and its 95 % percentile interval over networks drawn again; NaN where nothing is ranked."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(c), size=(draws, len(c)))
    again = [arms.rank_correlation(c[one], accuracy[one]) for one in picks]
    known = [value for value in again if math.isfinite(value)]
    low, high = np.percentile(known, [2.5, 97.5]) if known else (math.nan, math.nan)
    return arms.rank_correlation(c, accuracy), float(low), float(high)


def generalisation(lab) -> go.Figure:
    """Last-layer compression against held-out accuracy, and the rank correlation of every layer."""
    c, accuracy = pooled(lab)
    seed = np.repeat(lab.seeds, len(c) // len(lab.seeds))
    fig = make_subplots(1, 2, column_widths=[0.58, 0.42], horizontal_spacing=0.13,
                        subplot_titles=["last hidden layer, a dot a network", "Spearman by layer, all networks"])  # fmt: skip
    told = "seed %{customdata}: c %{x:.2f}, accuracy %{y:.3f}<extra></extra>"
    fig.add_scatter(x=c[:, -1], y=accuracy, mode="markers", marker=dict(color=faded(BLUE, 0.55), size=8), customdata=seed,
                    hovertemplate=told, showlegend=False, row=1, col=1)  # fmt: skip
    found = [bootstrap(c[:, layer], accuracy) for layer in range(c.shape[1])]
    value, low, high = np.array(found).T
    number = np.arange(1, len(value) + 1)
    fig.add_scatter(x=number, y=value, mode="markers", marker=dict(color=BLUE, size=9), showlegend=False, row=1, col=2,
                    error_y=dict(array=high - value, arrayminus=value - low, color=BLUE))  # fmt: skip
    for y, dash in ((0, "solid"), (0.2, "dash")):
        fig.add_hline(y=y, line=dict(color=INK, width=1, dash=dash), row=1, col=2)
    speaks = c[:, -1] < 1
    without = arms.rank_correlation(c[speaks, -1], accuracy[speaks])
    style(fig, f"Compression of the last hidden layer and held-out accuracy of {len(c)} networks: Spearman {value[-1]:+.2f} "
          f"[{low[-1]:+.2f}, {high[-1]:+.2f}]; {without:+.2f} without the {(~speaks).sum()} that have gone silent", height=440)  # fmt: skip
    fig.update_xaxes(title_text="compression c of hidden layer 5", tickformat=".0%", row=1, col=1)
    fig.update_yaxes(title_text="held-out accuracy at the end", row=1, col=1)
    fig.update_xaxes(title_text="hidden layer", dtick=1, range=[0.5, len(value) + 0.5], row=1, col=2)
    return fig.update_yaxes(title_text="Spearman, 95 % by bootstrap", range=[-1.05, 1.05], row=1, col=2)


def survey(lab) -> go.Figure:
    """Compression of every activation and penalty of the survey, layer by layer."""
    runs = {**lab.arms["other_activations"].runs, **lab.arms["l2_grid"].runs}
    fig = go.Figure()
    for k, (name, run) in enumerate(runs.items()):
        c = score(run.members).mean(0)
        fig.add_scatter(x=np.arange(1, len(c) + 1), y=c, name=name, mode="lines+markers", line_color=OTHERS[k % len(OTHERS)])
    return style(fig, "Compression by layer with other activations and penalties", x="hidden layer", y="compression c", height=440)


# ---- live views; the path is the network's own, the inputs are the study's table


def plane_view(net, params) -> go.Figure:
    """Each layer's way through the information plane so far, mean over the networks of this seed."""
    fig, steps = go.Figure(), arms.moments(params)
    if not (net.path[:, 0, 0, 0] >= 0).any():
        return style(fig, "Nothing has been measured yet", x="I(T; X) [bit]", y="I(T; Y) [bit]")
    _plane(fig, [net], steps)
    last = travelled([net])[1][-1, :, 0]
    return style(fig, "I(T; X) by layer now: " + ", ".join(f"{v:.1f}" for v in last) + " bit", x="I(T; X) [bit]", y="I(T; Y) [bit]")


def unit_view(net, params) -> go.Figure:
    """The most active unit of the third hidden layer of the first network, with both kinds of edges of that layer."""
    x = data.table(params.patterns).x
    layer = min(SHOWN, net.path.shape[2]) - 1
    values = net.layers(x)[layer][0].detach().cpu().numpy()
    unit = int(values.std(0).argmax())
    low, high = arms.BOUNDS[net.activation]
    span = np.array([values.min() if low is None else low, values.max() if high is None else high], dtype=float)
    fig = go.Figure()
    _bars(fig, values[:, unit], _both(values.ravel(), span, params, net.activation))
    zero = f", {np.mean(values[:, unit] == 0):.0%} exact zeros" if net.activation == "relu" else ""
    return style(fig, f"Unit {unit + 1} of hidden layer {layer + 1} of the first network{zero}", x="activity", y="share of patterns")
