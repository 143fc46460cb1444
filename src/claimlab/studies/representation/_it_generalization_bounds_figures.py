"""Figures and live views of the study it-generalization-bounds. Titles say what was found, computed from the lab."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, band, faded, style
from claimlab.studies.representation import _it_generalization_bounds_method as method
from claimlab.studies.representation._it_generalization_bounds_arms import DIMENSIONS, ClosedForm

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
GAMMAS = np.geomspace(0.1, 200, 14)
TRAINED = {"mlp_plain": ("plain", BLUE), "mlp_dropout": ("dropout", OTHERS[0]), "mlp_noise": ("Gaussian noise", OTHERS[1]),
           "mlp_digits": ("digits 3 and 8", OTHERS[2]), "mlp_ten_digits": ("ten digits", OTHERS[3])}  # fmt: skip

SHOWN = (("accuracy gap", "generalisation_gap", "circle"), ("loss gap", "soft_gap", "diamond"),
         ("bound at the output", "bound_output", "triangle-down"), ("bound at the input", "bound_input", "triangle-up"))  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name, of the arms that ran."""
    arms, drawn = lab.arms, {}
    if "gaussian_linear" in arms:
        drawn |= {"bound_by_layer": bound_by_layer(lab), "bound_by_n": bound_by_n(lab.params)}
    if "input_layer" in arms:
        drawn |= {"distance_by_layer": distance_by_layer(lab)}
    if shown := [name for name in TRAINED if name in arms]:
        drawn["trained_bounds"] = trained_bounds(lab, shown)
    if "dropout_channel" in arms:
        drawn["contraction"] = contraction(arms["dropout_channel"], lab.params)
    if {"gibbs_wide", "gibbs_deep_narrow"} <= set(arms):
        drawn["gibbs"] = gibbs(lab)
    return drawn


def names(count: int) -> list[str]:
    """Names of representations, input first."""
    return ["input", *(f"hidden {k}" for k in range(1, count - 1)), "output"]


def values(lab, arm: str, metric: str) -> np.ndarray:
    """Last value of each seed."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy(float)


# ---- closed forms


def bound_by_layer(lab) -> go.Figure:
    """KL bound and true gap by layer (mean and range over seeds), and what dropout on each layer could take away at most."""
    found: list[ClosedForm] = lab.arms["gaussian_linear"].found
    r, bound = found[0].dimensions.numpy(), np.stack([one.bound.numpy() for one in found])
    gap, x = np.array([abs(one.gap) for one in found]), [f"{k}: r = {one}" for k, one in enumerate(r)]
    factor = np.cumprod([1.0, *(method.dropout_factor(int(k), lab.params.delta) for k in r[1:])])
    loose = bound.mean(0) / gap.mean()
    fig = go.Figure()
    _ranged(fig, x, bound, "KL bound", BLUE)
    fig.add_scatter(x=x, y=bound[:, 0].mean() * np.sqrt(factor), mode="lines+markers", name="input bound times contraction by dropout",
                    line={"color": OTHERS[0], "dash": "dot"})  # fmt: skip
    _ranged(fig, x, np.repeat(gap[:, None], len(r), 1), "true gap", GREY)
    title = f"The bound is {loose[0]:.1f} times the true gap at the input and {loose[-1]:.1f} times at the last layer"
    style(fig, title, x="layer and its dimension", y="gap in 0-1 loss")
    return fig.update_yaxes(type="log", exponentformat="none")


def _ranged(fig: go.Figure, x: list[str], y: np.ndarray, name: str, colour: str) -> None:
    """Mean over seeds [S, X] with whiskers from the lowest to the highest."""
    mean = y.mean(0)
    fig.add_scatter(x=x, y=mean, mode="lines+markers", name=name, line={"color": colour, "width": 2.5},
                    error_y={"array": y.max(0) - mean, "arrayminus": mean - y.min(0), "color": faded(colour, 0.7)})  # fmt: skip


def bound_by_n(p, draws: int = 1000) -> go.Figure:
    """Bound at the input and at the last layer, and the true gap, against n: fresh draws at the knobs' d and depth."""
    r, found = method.ranks(p.d, p.depth), []
    for n in SIZES:
        one = method.binary_gaussian(n, r, min(draws, p.draws), np.random.default_rng(n))
        found.append((one.bound[0], one.bound[-1], abs(one.gap)))
    columns = np.array(found).T
    slopes = [np.polyfit(np.log(SIZES[4:]), np.log(np.maximum(c[4:], 1e-12)), 1)[0] for c in columns]
    fig = go.Figure()
    for name, y, colour, slope in zip(("bound at the input", "bound at the last layer", "true gap"), columns,
                                      (OTHERS[0], BLUE, GREY), slopes, strict=True):  # fmt: skip
        fig.add_scatter(x=SIZES, y=y, mode="lines+markers", name=f"{name} (slope {slope:.2f})", line={"color": colour})
    fig.add_vline(x=p.n, line={"color": INK, "dash": "dash", "width": 1})
    title = f"From n = {SIZES[4]} on the input bound falls like n to the power {slopes[0]:.2f}, the true gap like {slopes[2]:.2f}"
    style(fig, title, x=f"training examples n (dashed: the knob, {p.n})", y="gap in 0-1 loss")
    return fig.update_xaxes(type="log").update_yaxes(type="log", exponentformat="power")


# ---- trained networks


def distance_by_layer(lab) -> go.Figure:
    """Left: W_1 of small samples in every layer while mlp_plain learns; right: the large matching at the end, the funnel marked."""
    found = lab.arms["input_layer"].found
    train, reference = (np.stack(part) for part in ([f.halves.mean(0) for f in found], [f.reference for f in found]))
    layers, fig = names(train.shape[1]), make_subplots(1, 2, subplot_titles=["in training, small samples", "at the end, large samples"],
                                                       horizontal_spacing=0.12)  # fmt: skip
    tint = [INK, *(OTHERS[k % len(OTHERS)] for k in range(len(layers) - 2)), BLUE]
    rows = lab.table[lab.table["arm"] == "mlp_plain"]
    for k, name in enumerate(layers):
        one = band(rows[rows["metric"] == f"w1_tick_{k}"])
        fig.add_scatter(x=one.index, y=one["mean"], mode="lines+markers", name=name, line={"color": tint[k]}, marker={"size": 4},
                        row=1, col=1)  # fmt: skip
    for y, name, colour in ((train, "training set to population", BLUE), (reference, "fresh set to population", GREY)):
        mean = y.mean(0)
        dash = "solid" if y is train else "dash"
        fig.add_scatter(x=layers, y=mean, mode="lines+markers", name=name, line={"color": colour, "dash": dash},
                        error_y={"array": y.max(0) - mean, "arrayminus": mean - y.min(0), "color": faded(colour, 0.7)},
                        row=1, col=2)  # fmt: skip
    chosen = [k for f in found for k in f.funnels]
    least = max(set(chosen), key=chosen.count)
    fig.add_scatter(x=[layers[least]], y=[train.mean(0)[least]], mode="markers", name="funnel", row=1, col=2,
                    marker={"symbol": "star", "size": 15, "color": OTHERS[3]})  # fmt: skip
    right = np.mean([f.train_accuracy for f in found])
    title = (f"Training set and population are nearest in {layers[least]} ({chosen.count(least)} of {len(chosen)} choices): "
             f"{train.mean(0)[least]:.2f} against {train.mean(0)[0]:.2f} at the input; training accuracy {right:.1%}")  # fmt: skip
    style(fig, title, height=480, y="normalised W_1")
    return fig.update_xaxes(title_text="optimiser step", col=1).update_xaxes(title_text="representation", col=2)


def trained_bounds(lab, shown: list[str]) -> go.Figure:
    """Measured gap of every trained network, in accuracy and in the Lipschitz loss, beside its Wasserstein bounds."""
    fig = go.Figure()
    for k, (name, metric, symbol) in enumerate(SHOWN):
        points = [(place, v) for place, arm in enumerate(shown) for v in values(lab, arm, metric) if v > 0]
        x, y = zip(*points, strict=True) if points else ((), ())
        fig.add_scatter(x=[place + 0.16 * (k - 1.5) for place in x], y=y, mode="markers", name=name,
                        marker={"symbol": symbol, "size": 9, "opacity": 0.8})  # fmt: skip
    one = shown[0]
    ratio = values(lab, one, "bound_output").mean() / max(1e-9, abs(values(lab, one, "soft_gap").mean()))
    gaps = ", ".join(f"{TRAINED[a][0]} {values(lab, a, 'generalisation_gap').mean():.2f}" for a in shown)
    title = f"Accuracy gaps: {gaps}. In the {TRAINED[one][0]} net the bound at the output is {ratio:.1f} times the gap in loss"
    style(fig, title, x="network", y="gap or bound (a dot a seed)")
    fig.update_xaxes(tickvals=list(range(len(shown))), ticktext=[TRAINED[a][0] for a in shown])
    return fig.update_yaxes(type="log", exponentformat="power", dtick=1)


# ---- contraction and Gibbs


def contraction(arm, p) -> go.Figure:
    """Contraction of random pairs and of what the search made of them, one cloud a dimension, with the bound."""
    rng, fig = np.random.default_rng(0), go.Figure()
    for k, (name, colour) in enumerate((("random pairs", GREY), ("after the search", BLUE))):
        y = {d: arm.clouds[d][k].numpy().ravel() for d in DIMENSIONS}
        x = np.concatenate([d + 0.18 * (2 * k - 1) + rng.uniform(-0.12, 0.12, len(v)) for d, v in y.items()])
        fig.add_scatter(x=x, y=np.concatenate(list(y.values())), mode="markers", name=name, marker={"color": faded(colour, 0.5), "size": 6})
    grid = [method.dropout_factor(d, p.delta) for d in DIMENSIONS]
    for k, (d, bound) in enumerate(zip(DIMENSIONS, grid, strict=True)):
        fig.add_scatter(x=[d - 0.4, d + 0.4], y=[bound, bound], mode="lines", line={"color": OTHERS[3], "width": 2.5},
                        name="1 − δ^d", showlegend=k == 0)  # fmt: skip
    most = max(float(arm.clouds[d][1].max()) - bound for d, bound in zip(DIMENSIONS, grid, strict=True))
    near = min(float(arm.clouds[d][1].max()) / bound for d, bound in zip(DIMENSIONS, grid, strict=True))
    over = f"no pair passes 1 − δ^d by more than {max(most, 0):.1g}" if most < 1e-4 else f"a pair passes 1 − δ^d by {most:.2g}"
    style(fig, f"At δ = {p.delta:g} {over}; the best pairs found reach {near:.1%} of it or more", x="dropped units d",
          y="KL after / KL before")  # fmt: skip
    return fig.update_xaxes(tickvals=list(DIMENSIONS)).update_yaxes(rangemode="tozero")


def gibbs(lab) -> go.Figure:
    """Expected gap, and the training and test error behind it, against the inverse temperature for both shapes."""
    fig, ends = make_subplots(1, 2, subplot_titles=["expected gap", "errors"], horizontal_spacing=0.12), {}
    for name, said, colour in (("gibbs_wide", "wide", GREY), ("gibbs_deep_narrow", "deep and narrow", BLUE)):
        found = [[method.gibbs(losses, prior, g, risk) for g in GAMMAS] for losses, prior, risk in lab.arms[name].found]
        test, train = (np.array([[getattr(g, part) for g in row] for row in found]) for part in ("test", "train"))
        gap, place = test - train, {"mode": "lines", "row": 1, "legendgroup": said}
        for one in gap:
            fig.add_scatter(x=GAMMAS, y=one, line={"color": faded(colour, 0.35), "width": 1}, showlegend=False, name=said, col=1, **place)
        fig.add_scatter(x=GAMMAS, y=gap.mean(0), line={"color": colour, "width": 3}, name=said, col=1, **place)
        for y, dash, what in ((test, "solid", "test"), (train, "dash", "training")):
            fig.add_scatter(x=GAMMAS, y=y.mean(0), line={"color": colour, "dash": dash}, name=f"{said}, {what}", col=2, **place)
        ends[said] = values(lab, name, "expected_gen_gap").mean(), values(lab, name, "functions")[0]
    fig.add_vline(x=lab.params.gamma, line={"color": INK, "dash": "dot", "width": 1})
    title = f"At γ = {lab.params.gamma:g} the expected gap is " + " and ".join(
        f"{gap:.3f} in the {said} shape ({count:.0f} different functions)" for said, (gap, count) in ends.items())  # fmt: skip
    style(fig, title, height=460, x="inverse temperature γ").update_xaxes(type="log", dtick=1)
    fig.update_yaxes(title_text="test minus training error", col=1)
    return fig.update_yaxes(title_text="0-1 error", col=2)


# ---- views


def bound_view(net, params) -> go.Figure:
    """Bound and true gap by layer: KL in the closed form; in a trained net the Wasserstein bound of the points that it keeps."""
    if isinstance(net, ClosedForm):
        x, bound, gap, kind = [f"r = {k}" for k in net.dimensions.tolist()], net.bound.tolist(), abs(net.gap), "KL bound"
    else:
        from claimlab.studies.representation.it_generalization_bounds import lipschitz

        gap, bound = lipschitz(net)
        x, kind, gap = names(len(bound)), "Wasserstein bound", abs(gap)
    fig = go.Figure(go.Scatter(x=x, y=bound, mode="lines+markers", name=kind, line={"color": BLUE}))
    fig.add_scatter(x=x, y=[gap] * len(x), mode="lines", name="true gap", line={"color": GREY, "dash": "dash"})
    title = f"{kind}: {bound[0]:.3g} at the input, {bound[-1]:.3g} at the last layer; true gap {gap:.3g}"
    return style(fig, title, x="layer", y="gap in loss").update_yaxes(type="log", exponentformat="none")


def distance_view(net, params) -> go.Figure:
    """Distance between training set and population by layer: mean W_2 in closed form, or normalised W_1 of the points kept."""
    if isinstance(net, ClosedForm):
        x, y, what = [f"r = {k}" for k in net.dimensions.tolist()], net.distance.tolist(), "W_2"
    else:
        from claimlab.studies.representation.it_generalization_bounds import by_layer, pair_of

        y = by_layer(*pair_of(net)).tolist()
        x, what = names(len(y)), "normalised W_1"
    least = int(np.argmin(y))
    fig = go.Figure(go.Scatter(x=x, y=y, mode="lines+markers", name=what, line={"color": BLUE}, showlegend=False))
    fig.add_scatter(x=[x[least]], y=[y[least]], mode="markers", name="smallest", marker={"symbol": "star", "size": 15, "color": OTHERS[3]})
    return style(fig, f"{what} is smallest at {x[least]}: {y[least]:.3g}", x="layer", y=what).update_yaxes(rangemode="tozero")
