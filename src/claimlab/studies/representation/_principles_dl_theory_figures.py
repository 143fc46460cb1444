"""Figures of the study principles-dl-theory. Each takes the finished lab; the titles say what was found, computed from it."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, bars, faded, style
from claimlab.studies.representation._principles_method import (
    ACTIVATIONS,
    Chain,
    chi_perpendicular,
    critical_point,
    next_kernel,
)

DARK = "#222222"
TINT = {"relu": BLUE, "tanh": OTHERS[0], "linear": OTHERS[1], "gelu": OTHERS[2], "swish": OTHERS[4], "sin": OTHERS[6]}
WIDTHS = (BLUE, OTHERS[0], OTHERS[1], OTHERS[2], OTHERS[3])
WORDS = {"relu": "ReLU", "gelu": "GELU", "swish": "SWISH"}
LEARNERS = {"critical_deep": "critical", "default_deep": "PyTorch's default", "default_layernorm": "default + layer norm",
            "off_critical_low": "below critical", "off_critical_high": "above critical", "critical_very_deep": "critical, deeper",
            "residual_very_deep": "residual, deeper"}  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run is left out."""
    drawn = {"plane": plane(lab)}
    if {"wide_ensemble", "tanh_critical"} <= set(lab.arms):
        drawn["kernels"] = kernel_lines(lab)
    if "narrow_ensemble" in lab.arms:
        drawn |= {"fluctuation": fluctuation(lab), "histogram": histogram(lab)}
    if ran := [name for name in LEARNERS if name in lab.arms]:
        drawn["accuracy"] = accuracy(lab, ran)
    if "depth_grid" in lab.arms:
        drawn["depth"] = depth_grid(lab)
        drawn["tangent"] = tangent_change(lab)
    return drawn


# ---- theory


def plane(lab) -> go.Figure:
    """chi_perp after 60 layers over the plane of C_b and C_W, a panel an activation, with the critical point."""
    names = list(ACTIVATIONS)
    b, w = np.linspace(0, 1, 21), np.linspace(0.2, 4, 39)
    fig = make_subplots(2, 3, subplot_titles=[WORDS.get(n, n) for n in names], shared_xaxes=True, shared_yaxes=True,
                        horizontal_spacing=0.04, vertical_spacing=0.1)  # fmt: skip
    c_w, c_b = (torch.from_numpy(part) for part in np.meshgrid(w, b, indexing="ij"))
    for k, name in enumerate(names):
        kernel = c_b + c_w
        for _ in range(60):
            kernel = next_kernel(name, c_b, c_w, kernel).clamp(1e-30, 1e30)
        growth = torch.log2(chi_perpendicular(name, c_w, kernel)).clamp(-1.5, 1.5).numpy()
        place = {"row": k // 3 + 1, "col": k % 3 + 1}
        fig.add_heatmap(
            x=b, y=w, z=growth, coloraxis="coloraxis", hovertemplate="C_b %{x:.2f}, C_W %{y:.2f}<extra></extra>", **place
        )
        fig.add_contour(x=b, y=w, z=growth, contours={"start": 0, "end": 0, "coloring": "none"},
                        line={"color": DARK, "width": 1.5},
                        showscale=False, showlegend=False, hoverinfo="skip", **place)  # fmt: skip
        at = critical_point(name)
        fig.add_scatter(x=[at[0]], y=[at[1]], mode="markers", name="critical point", showlegend=k == 0, cliponaxis=False,
                        marker={"color": "#FFD400", "size": 13, "symbol": "star", "line": {"color": DARK, "width": 1}},
                        **place)  # fmt: skip
    said = ", ".join(f"{WORDS[n]} ({critical_point(n)[0]:.2f}, {critical_point(n)[1]:.2f})" for n in ("relu", "gelu", "swish"))
    style(fig, "A small difference grows from layer to layer (red) or dies (blue); on the black line it keeps its size. Stars: "
          f"critical points (C_b, C_W), such as {said}", height=560)  # fmt: skip
    for column in (1, 2, 3):
        fig.update_xaxes(title_text="bias variance C_b", row=2, col=column)
    fig.update_yaxes(title_text="weight variance C_W", col=1).update_xaxes(range=[0, 1]).update_yaxes(range=[0.2, 4])
    return fig.update_layout(coloraxis={"colorscale": "RdBu_r", "cmin": -1.5, "cmax": 1.5, "colorbar": {
        "title": {"text": "growth<br>per layer"}, "tickvals": [-1, 0, 1], "ticktext": ["x 1/2", "x 1", "x 2"]}})  # fmt: skip


def kernel_lines(lab) -> go.Figure:
    """Kernel by layer, theory as a line and ensembles as dots: three activations, tanh over 100 layers, and two inputs."""
    wide, tanh, side = (lab.arms.get(name) for name in ("wide_ensemble", "tanh_critical", "pairs_and_tangents"))
    fig = make_subplots(1, 3, subplot_titles=["one input", "tanh at (0, 1)", "two inputs"], horizontal_spacing=0.1)
    layer = np.arange(1, wide.total + 1)
    for a, case in enumerate(wide.chains[0].cases):
        _dots(fig, layer, wide.measured[0][:, :, a, 0].T, wide.theory[0][:, a], _name(case), TINT[case[0]], 1)
    far = np.arange(1, tanh.total + 1)
    _dots(fig, far, tanh.measured[0][:, :, 0, 0].T, tanh.theory[0][:, 0], "tanh", TINT["tanh"], 2, legend=False)
    fig.add_scatter(x=far[4:], y=0.5 / far[4:], mode="lines", line={"color": INK, "dash": "dot"}, name="1/(2l)", row=1, col=2)
    for name, found in side.measured.items() if side else ():
        _dots(fig, layer, found, side.correlation[name], name, TINT[name], 3, legend=False)
    off = lab.table[(lab.table["metric"] == "kernel_relative_error")].groupby("seed")["value"].last().max()
    slope = 1 + lab.table[lab.table["metric"] == "abs_exponent_error"].groupby("seed")["value"].last().mean()
    style(fig, f"Dots are ensembles, lines the theory: at most {off:.1%} apart on the left; in the middle the exponent "
          f"differs from -1 by {slope - 1:.2f}", height=430)  # fmt: skip
    fig.update_xaxes(title_text="layer l").update_yaxes(type="log", col=1).update_yaxes(type="log", col=2)
    fig.update_xaxes(type="log", col=2).update_yaxes(exponentformat="power", dtick=1)
    for column, title in enumerate(("mean squared preactivation K", "K", "correlation"), 1):
        fig.update_yaxes(title_text=title, col=column)
    return fig.update_yaxes(dtick=None, col=3)


def _name(case: tuple[str, float, float]) -> str:
    return f"{WORDS.get(case[0], case[0])} ({case[1]:.3g}, {case[2]:.3g})"


def _dots(fig, layer, found, theory, name: str, colour: str, col: int, *, legend: bool = True) -> None:
    """Theory as a line, the mean over seeds [S, layers] as dots, the range over seeds as a band."""
    place = {"row": 1, "col": col, "legendgroup": name}
    fig.add_scatter(x=np.r_[layer, layer[::-1]], y=np.r_[found.max(0), found.min(0)[::-1]], fill="toself", mode="lines",
                    line={"width": 0}, fillcolor=faded(colour, 0.25), showlegend=False, hoverinfo="skip", name=name,
                    **place)  # fmt: skip
    fig.add_scatter(x=layer, y=theory, mode="lines", line={"color": colour, "width": 2}, name=name, showlegend=legend, **place)
    fig.add_scatter(
        x=layer, y=found.mean(0), mode="markers", marker={"color": colour, "size": 5}, name=name, showlegend=False, **place
    )


# ---- fluctuations


def fluctuation(lab) -> go.Figure:
    """Excess of <z_i^2 z_j^2> over K^2 against (l - 1) / n, a colour a width, ReLU and linear."""
    arm, seeds = lab.arms["narrow_ensemble"], range(len(lab.seeds))
    fig, ratio = go.Figure(), np.linspace(0, arm.shown, 60)
    for case, (first, symbol) in enumerate(((5, "circle"), (2, "diamond"))):
        found = [arm.excess(i, case) for i in seeds]
        for k, n in enumerate(arm.widths):
            y = np.stack([one[k][2] for one in found])
            name = f"n = {n}" if case == 0 else f"linear, n = {n}"
            fig.add_scatter(x=found[0][k][1][1:], y=y.mean(0)[1:], mode="markers", name=name, showlegend=case == 0,
                            legendgroup=f"{n}", marker={"color": WIDTHS[k], "symbol": symbol, "size": 8},
                            error_y={"array": y.std(0)[1:], "color": faded(WIDTHS[k], 0.6), "thickness": 1})  # fmt: skip
        fig.add_scatter(x=ratio, y=first * ratio, mode="lines", line={"color": INK, "dash": "dash"},
                        name="first order: slopes 5 and 2", showlegend=case == 0)  # fmt: skip
        fig.add_scatter(x=ratio, y=np.expm1(first * ratio), mode="lines", line={"color": INK, "width": 1},
                        name="all orders, wide limit", showlegend=case == 0)  # fmt: skip
        fig.add_annotation(x=arm.shown, y=np.expm1(first * arm.shown), text=("ReLU", "linear")[case], showarrow=False,
                           xanchor="left", xshift=6, font_color=INK)  # fmt: skip
    slopes = [np.mean([arm.slope(i, case) for i in seeds]) for case in (0, 1)]
    title = (f"Fluctuation against depth counted in widths, four widths: the fitted first slopes are {slopes[0]:.2f} (ReLU) and "
             f"{slopes[1]:.2f} (linear)")  # fmt: skip
    style(fig, title, x="(l - 1) / n", y="excess of E[z_i² z_j²] / K² over 1", height=460)
    return fig.update_xaxes(range=[0, arm.shown * 1.08])


def histogram(lab, width: int = 50, draws: int = 20000) -> go.Figure:
    """Density of a preactivation over fresh draws of ReLU networks in two depths, Gaussian, and its first correction."""
    fig = make_subplots(1, 2, subplot_titles=[f"(l - 1) / n = {(at - 1) / width:g}" for at in (3, 11)], shared_yaxes=True,
                        horizontal_spacing=0.05)  # fmt: skip
    draws, edges = min(draws, 5 * lab.params.draws), np.linspace(-6, 6, 61)
    middle, tails = (edges[1:] + edges[:-1]) / 2, []
    for col, layer in enumerate((3, 11), 1):
        chain = Chain([("relu", 0.0, 2.0)], width, draws, [lab.seeds[0]], 99)
        for _ in range(layer - 1):
            chain.advance()
        z = torch.randn(draws, width, generator=chain.rngs[0]) * (chain.variance[0, 0] / 2).sqrt().float()[:, None]
        density = np.histogram(z.numpy(), edges, density=True)[0]
        tails.append(float((z.abs() > 4).double().mean() / 6.334e-5))  # P(|z| > 4) of the normal law
        gauss = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
        kurtosis = 3 * 5 * (layer - 1) / width
        corrected = gauss * (1 + kurtosis / 24 * (middle**4 - 6 * middle**2 + 3))
        shown = {"row": 1, "col": col}
        fig.add_bar(x=middle, y=density, marker_color=faded(BLUE, 0.5), name="networks drawn", showlegend=col == 1, **shown)
        for y, name, look in (
            (gauss, "Gaussian", {"color": GREY, "dash": "dash"}),
            (corrected, "with the first correction", {"color": OTHERS[3]}),
        ):
            fig.add_scatter(
                x=middle, y=np.where(y > 1e-6, y, np.nan), mode="lines", line=look, name=name, showlegend=col == 1, **shown
            )
    style(fig, f"ReLU, n = {width}: beyond four standard deviations lie {tails[0]:.0f} times (left) and {tails[1]:.0f} times "
          "(right) as many values as under a Gaussian", height=420, x="preactivation / √K")  # fmt: skip
    fig.update_yaxes(type="log", range=[-5.5, 0.3], exponentformat="power", dtick=1)
    return fig.update_yaxes(title_text="density", col=1).update_layout(bargap=0)


# ---- learning


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


def accuracy(lab, ran: list[str]) -> go.Figure:
    """Test accuracy of every arm at its best rate."""
    best = max(ran, key=lambda arm: np.nan_to_num(last(lab, arm, "test_accuracy")).mean())
    p = lab.params
    title = (f"Depth {p.depth}, deeper arms {round(p.depth * 4 / 3)}, width {p.width}: {LEARNERS[best]} learns best "
             f"({last(lab, best, 'test_accuracy').mean():.0%} right)")  # fmt: skip
    tint = dict(zip(LEARNERS, (BLUE, GREY, OTHERS[2], OTHERS[4], OTHERS[3], OTHERS[0], OTHERS[1]), strict=True))
    return bars(
        lab.table, "test_accuracy", arms=ran, title=title, y_title="share of test inputs right", names=LEARNERS, palette=tint
    )


def grid(lab, metric: str) -> dict[int, list[tuple[int, np.ndarray]]]:
    """{width: [(depth, a value a seed)]} of the depth grid."""
    found: dict[int, list] = {}
    for n, depth in lab.arms["depth_grid"].cells:
        values = last(lab, "depth_grid", f"n={n} L={depth}: {metric}")
        if len(values):
            found.setdefault(n, []).append((depth, values))
    return found


def depth_grid(lab) -> go.Figure:
    """Accuracy, and its spread over networks, against depth over width."""
    fig = make_subplots(
        1, 2, subplot_titles=["mean over networks and seeds", "standard deviation over networks"], horizontal_spacing=0.12
    )
    peaks = {}
    for col, metric in enumerate(("test_accuracy", "spread"), 1):
        for k, (n, cells) in enumerate(grid(lab, metric).items()):
            _line(fig, n, cells, WIDTHS[k], col)
            if col == 1:
                peaks[n] = max(cells, key=lambda cell: np.nan_to_num(cell[1]).mean())[0]
    said = ", ".join(f"{depth} layers at n = {n}" for n, depth in peaks.items())
    style(fig, f"Of the depths tried, the best in mean test accuracy: {said}", height=430, x="depth / width")
    fig.update_xaxes(type="log").update_yaxes(title_text="share of test inputs right", col=1, rangemode="tozero")
    return fig.update_yaxes(title_text="share of test inputs right", col=2, rangemode="tozero")


def _line(fig, n: int, cells: list[tuple[int, np.ndarray]], colour: str, col: int) -> None:
    x, name = [depth / n for depth, _ in cells], f"n = {n}"
    known = [v[np.isfinite(v)] for _, v in cells]
    mean = np.array([v.mean() if len(v) else np.nan for v in known])
    ends = np.array([interval(v) if len(v) > 1 else (np.nan, np.nan) for v in known])
    fig.add_scatter(x=x, y=mean, mode="lines+markers", line={"color": colour}, marker={"size": 7}, name=name, legendgroup=name,
                    showlegend=col == 1, text=[f"{depth} layers" for depth, _ in cells], row=1, col=col,
                    error_y={"array": ends[:, 1] - mean, "arrayminus": mean - ends[:, 0], "color": faded(colour, 0.6)},
                    )  # fmt: skip


def tangent_change(lab) -> go.Figure:
    """Change of the empirical tangent kernel by one step and in training, and its fluctuation over fresh networks."""
    fig = make_subplots(1, 3, subplot_titles=["change, one small step", "change, whole training", "fluctuation at the start"],
                        horizontal_spacing=0.1)  # fmt: skip
    x, y = [], []
    for k, (n, cells) in enumerate(grid(lab, "first_change").items()):
        _line(fig, n, cells, WIDTHS[k], 1)
        x, y = x + [depth / n for depth, _ in cells], y + [np.nanmean(v) for _, v in cells]
    for k, (n, cells) in enumerate(grid(lab, "kernel_change").items()):
        _line(fig, n, cells, WIDTHS[k], 2)
    side = lab.arms.get("pairs_and_tangents")
    for k, (n, found) in enumerate(side.tangent.items() if side else ()):
        ratio = np.arange(found.shape[1]) / n
        spread = (found[..., 1] / found[..., 0] ** 2 - 1).mean(0)
        fig.add_scatter(x=ratio[1:], y=spread[1:], mode="lines+markers", name=f"untrained, n = {n}",
                        line={"color": OTHERS[3 + k], "dash": "dot"}, row=1, col=3)  # fmt: skip
    power = np.polyfit(np.log(x), np.log(y), 1)[0] if np.isfinite(y).all() and len(set(x)) > 1 else np.nan
    tail = "" if np.isnan(power) else f": one step changes it as (depth / width) to the power {power:.2f}"
    style(fig, f"The tangent kernel against depth over width{tail}", height=430)
    for col in (1, 2):
        fig.update_xaxes(type="log", dtick=1, title_text="depth / width", col=col)
        fig.update_yaxes(type="log", dtick=1, exponentformat="power", col=col)
    fig.update_yaxes(title_text="|change of kernel| / |kernel|", col=1)
    fig.update_yaxes(title_text="variance / mean² of Θ", rangemode="tozero", col=3)
    return fig.update_xaxes(title_text="(l - 1) / n", col=3)


# ---- views


def kernel_view(net, params) -> go.Figure:
    """Measured mean square of each layer's preactivations on the theory's line; networks see their probe inputs."""
    fig = go.Figure()
    if hasattr(net, "expected"):
        for a, name in enumerate(net.names):
            _dots_view(fig, net.measured[:, a].cpu().numpy(), net.expected[:, a].cpu().numpy(), name, WIDTHS[a % len(WIDTHS)])
        said = f"{net.at} layers of width {net.width} drawn"
        return style(fig, f"{said}: dots are networks, lines the recursion", x="layer l", y="K").update_yaxes(
            type="log", exponentformat="power"
        )
    with torch.no_grad():
        found = np.array([float(z.square().mean()) for z in net.layers(net.probe)])
    expected = np.array(net.theory())
    _dots_view(fig, found, expected, "these networks now", BLUE)
    factor = found[-1] / expected[-1]
    title = f"{len(net.last)} networks of depth {net.depth}: the mean square of the last layer is {factor:.2g} times its start"
    return style(fig, title, x="layer l", y="mean squared preactivation").update_yaxes(type="log", exponentformat="power")


def _dots_view(fig, found, expected, name: str, colour: str) -> None:
    layer = np.arange(1, len(found) + 1)
    fig.add_scatter(
        x=layer, y=expected, mode="lines", line={"color": colour, "width": 1.5}, name=f"theory, {name}", showlegend=False
    )
    fig.add_scatter(x=layer, y=found, mode="markers", marker={"color": colour, "size": 6}, name=name)


def gauss_view(net, params) -> go.Figure:
    """Preactivations of the last layer drawn, or of the last hidden layer, in units of their own deviation."""
    if hasattr(net, "expected"):
        z, where = net.sample[0].cpu().numpy(), f"layer {net.at}, {net.names[0]}, width {net.width}"
    else:
        with torch.no_grad():
            layers = net.layers(net.probe)
        at = max(1, net.depth - 1)
        z, where = layers[at - 1].cpu().numpy().ravel(), f"layer {at} of {net.depth}"
    z = z / max(float(np.sqrt((z**2).mean())), 1e-30)
    edges = np.linspace(-5, 5, 51)
    middle = (edges[1:] + edges[:-1]) / 2
    fig = go.Figure(go.Bar(x=middle, y=np.histogram(z, edges)[0] / len(z) / (edges[1] - edges[0]), marker_color=faded(BLUE, 0.55),
                           name="preactivations"))  # fmt: skip
    fig.add_scatter(x=middle, y=np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), mode="lines", line={"color": INK}, name="Gaussian")
    return style(fig, f"{where}: fourth moment {np.mean(z**4):.2f}, a Gaussian has 3", x="preactivation / root mean square",
                 y="density").update_layout(bargap=0)  # fmt: skip
