"""Figures and live views of the study `numerical-precision`: what the formats did to training, and what the probe measured."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, matrix, style
from claimlab.studies.compression import numerical_precision as study

COLOURS = {"truncate": BLUE, "nearest": OTHERS[0], "stochastic": OTHERS[1], "update_only": OTHERS[2], "float32": GREY}
DEPTHS = {1: ("truncate_1", OTHERS[1]), 4: ("truncate_4", OTHERS[0]), 8: ("truncate_deep", OTHERS[3])}
FACTORS = {"narrow": "width 32", "wide": "width 256", "batch_8": "batches of 8", "batch_128": "batches of 128", "tanh": "tanh",
           "sigmoid": "sigmoid", "exponent_5": "5 exponent bits", "exponent_4": "4 exponent bits",
           "exponent_3": "3 exponent bits"}  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"the cliff": cliff(lab), "depth": depth(lab), "error against bits": rates(lab), "vanishing and shrinking": stuck(lab),
             "error by layer": layers(lab)}  # fmt: skip
    return found | ({"other factors": factors(lab)} if "narrow" in lab.arms else {})


# ---- helpers


def _last(lab, arm: str, metric: str) -> np.ndarray:
    """Last value of each seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step", kind="stable").groupby("seed")["value"].last().to_numpy(float)


def _by_bits(lab, arm: str, kind: str, bits) -> np.ndarray:
    """Last values of `kind` at each of `bits`: [bits, seeds]."""
    return np.array([_last(lab, arm, f"{kind}_{m}bit") for m in bits])


def _bounds(rows: np.ndarray) -> np.ndarray:
    """95 % interval over seeds of each row: [2, rows]."""
    return np.array([interval(row) if np.isfinite(row).all() else (np.nan, np.nan) for row in rows]).T


def _band(figure, x, rows: np.ndarray, name: str, colour: str, *, dash="solid", shown=True, **at) -> None:
    """Mean of `rows` [points, seeds] with its 95 % band."""
    low, high = _bounds(rows)
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(colour, 0.18), line_width=0,
                       mode="lines", hoverinfo="skip", showlegend=False, legendgroup=name, **at)  # fmt: skip
    figure.add_scatter(x=x, y=rows.mean(1), mode="lines+markers", line=dict(color=colour, width=2.5, dash=dash), marker_size=5,
                       name=name, legendgroup=name, showlegend=shown, **at)  # fmt: skip


# ---- figures


def cliff(lab) -> go.Figure:
    """Test accuracy against mantissa bits, a band a way of rounding."""
    bits, figure, ends = np.array(study.GRID[:-1]), go.Figure(), {}
    for arm in ("update_only", "nearest", "stochastic", "truncate"):
        rows = _by_bits(lab, arm, "accuracy", bits)
        _band(figure, bits, rows, arm.replace("_", " "), COLOURS[arm])
        ends[arm] = rows.mean(1)
    reference = _last(lab, "truncate", "accuracy_float32").mean()
    for lost, name, dash in ((0.0, "float32", "dash"), (0.05, "5 points less", "dot"), (0.20, "20 points less", "dot")):
        figure.add_scatter(x=[bits[0], bits[-1]], y=[reference - lost] * 2, mode="lines", name=name,
                           line=dict(color=GREY, dash=dash, width=1.5))  # fmt: skip
    four = {arm: values[list(bits).index(4)] for arm, values in ends.items()}
    title = (f"At 4 mantissa bits truncated weights test at {four['truncate']:.2f}, rounded to nearest at {four['nearest']:.2f}, "
             f"stochastically at {four['stochastic']:.2f}; with only the update truncated {four['update_only']:.2f}")  # fmt: skip
    figure.update_yaxes(range=[0, 1.02]).update_xaxes(dtick=1)
    return style(figure, title, x="stored mantissa bits", y="test accuracy [share of test images]", height=460)


def depth(lab) -> go.Figure:
    """Accuracy against mantissa bits for 1, 2, 4 and 8 hidden layers, each with its own float32 line."""
    bits, figure, six = np.array(study.FEW[:-1]), go.Figure(), {}
    nets = dict(sorted((DEPTHS | {lab.params.layers: ("truncate", BLUE)}).items()))
    for hidden, (arm, colour) in nets.items():
        name = f"{hidden} hidden layer{'s' * (hidden > 1)}"
        _band(figure, bits, _by_bits(lab, arm, "accuracy", bits), name, colour)
        value = _last(lab, arm, "accuracy_float32").mean()
        figure.add_scatter(x=[bits[0], bits[-1]], y=[value, value], mode="lines", showlegend=False, legendgroup=name,
                           name=f"{name}, float32", line=dict(color=colour, dash="dash", width=1))  # fmt: skip
        six[hidden] = _last(lab, arm, "accuracy_drop_6bit").mean()
    told = ", ".join(f"{hidden}: {drop:+.3f}" for hidden, drop in six.items())
    figure.update_yaxes(range=[0, 1.02]).update_xaxes(dtick=1)
    title = f"Accuracy lost at 6 bits, by hidden layers: {told} (dashed: float32 at that depth)"
    return style(figure, title, x="stored mantissa bits", y="test accuracy [share of test images]", height=460)


def rates(lab) -> go.Figure:
    """Relative error of logits and gradient of the probed network against m, with fitted slopes and the bound."""
    bits = np.array(study.PROBED)
    figure = make_subplots(1, 2, subplot_titles=("Trained network cut once: output and gradient", "Two sources of the gradient's error"),
                           horizontal_spacing=0.12)  # fmt: skip
    panels = {"forward": ("logits", BLUE, 1), "backward": ("gradient", OTHERS[3], 1), "stored": ("forward pass cut", OTHERS[1], 2),
              "transposed": ("way back cut", OTHERS[2], 2)}  # fmt: skip
    slopes = {}
    for kind, (name, colour, column) in panels.items():
        rows = np.log2(_by_bits(lab, "probe", kind, bits))
        slopes[kind] = _last(lab, "probe", f"{kind}_slope").mean()
        _band(figure, bits, rows, f"{name}, slope {slopes[kind]:.2f}", colour, row=1, col=column)
    bound = np.log2(_by_bits(lab, "probe", "bound", bits)).mean(1)
    figure.add_scatter(x=bits, y=bound, mode="lines", line=dict(color=INK, dash="dash"), name="bound on the logits' error", row=1, col=1)
    gap = (bound - np.log2(_by_bits(lab, "probe", "forward", bits)).mean(1))[bits == 10][0]
    title = (f"The logits' error falls with slope {slopes['forward']:.2f} a bit, the gradient's with {slopes['backward']:.2f}; "
             f"the bound lies {gap:.0f} powers of two above the logits' error")  # fmt: skip
    figure.update_xaxes(title_text="stored mantissa bits m", dtick=2)
    figure.update_yaxes(title_text="log2 of the relative error", col=1)
    return style(figure, title, height=480)


def stuck(lab) -> go.Figure:
    """Share of weights that a step leaves where they are, and mean |w|, over training at 4 bits."""
    figure = make_subplots(1, 2, subplot_titles=("Weights that a step does not move", "Mean size of a weight"), horizontal_spacing=0.12)
    ends, m = {}, 4
    for arm in ("update_only", "nearest", "stochastic", "truncate"):
        for column, kind in enumerate(("unmoved", "size"), 1):
            wide = _over_time(lab, arm, f"{kind}_{m}bit")
            ends[arm, kind] = wide.iloc[-1].mean()
            _band(figure, wide.index.to_numpy(), wide.to_numpy(), arm.replace("_", " "), COLOURS[arm], shown=column == 1, row=1, col=column)
    for column, kind in enumerate(("unmoved", "size"), 1):
        wide = _over_time(lab, "truncate", f"{kind}_float32")
        ends["float32", kind] = wide.iloc[-1].mean()
        _band(figure, wide.index.to_numpy(), wide.to_numpy(), "float32", GREY, dash="dash", shown=column == 1, row=1, col=column)
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="share of the weights with a gradient", range=[-0.02, 1.02], col=1)
    figure.update_yaxes(title_text="mean |w|", rangemode="tozero", col=2)
    title = (f"At {m} bits and the last step {ends['nearest', 'unmoved']:.0%} of the weights rounded to nearest stand still; truncation "
             f"leaves weights {ends['truncate', 'size'] / ends['float32', 'size']:.0%} as large as float32's")  # fmt: skip
    return style(figure, title, height=480)


def _over_time(lab, arm: str, metric: str):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.pivot_table(index="step", columns="seed", values="value")


def layers(lab) -> go.Figure:
    """Error by layer at 6 bits: activations grow from the input on, gradients from the output back."""
    names = {"probe": lab.params.layers, "probe_deep": 8}
    figure = make_subplots(1, 2, subplot_titles=[f"{hidden} hidden layers" for hidden in names.values()], shared_yaxes=True,
                           horizontal_spacing=0.06)  # fmt: skip
    growth = {}
    for column, (arm, hidden) in enumerate(names.items(), 1):
        place = np.arange(1, hidden + 2)
        for kind, name, colour in (("forward", "what a layer hands on", BLUE), ("backward", "gradient of a layer", OTHERS[3])):
            rows = np.array([_last(lab, arm, f"{kind}_layer_{n}") for n in place])
            _band(figure, place, rows, name, colour, shown=column == 1, row=1, col=column)
            growth[arm, kind] = rows.mean(1)
    deep = growth["probe_deep", "forward"]
    title = (f"At 6 bits and 8 hidden layers the relative error grows from {deep[0]:.3f} behind the first layer to {deep[-1]:.3f} at the "
             "logits")  # fmt: skip
    figure.update_xaxes(title_text="layer (the last one gives the logits)", dtick=1)
    figure.update_yaxes(title_text="relative error", col=1).update_yaxes(rangemode="tozero")
    return style(figure, title, height=440)


def factors(lab) -> go.Figure:
    """Accuracy lost against float32 with one factor changed at a time: a row a factor, a column a mantissa width."""
    bits, names = study.FEW[:-1], {"truncate": "as it is"} | FACTORS
    drops = np.array([_by_bits(lab, arm, "accuracy_drop", bits).mean(1) for arm in names])
    at, kept = bits.index(6), [_last(lab, arm, "accuracy_float32").mean() for arm in names]
    rows = [f"{name} (float32: {value:.2f})" for name, value in zip(names.values(), kept, strict=True)]
    title = (f"At 6 bits the least accuracy is lost with {_named(names, drops[:, at].argmin())}, "
             f"the most with {_named(names, drops[:, at].argmax())}")  # fmt: skip
    figure = matrix(drops, rows, [str(m) for m in bits], title=title, x="stored mantissa bits", y="", unit="accuracy<br>lost", height=480)
    return figure.update_layout(title_x=0.02, title_xref="container")  # the names of the rows take much of the width


def _named(names: dict[str, str], place: int) -> str:
    return list(names.values())[place]


# ---- live views: one member, all its copies


def weights_on_grid(net, params) -> go.Figure:
    """Histogram of the output layer's weights in the coarsest copy, with the numbers that its format has, and in float32."""
    mantissa, reference = int(net.mantissa[0]), net.weights[-1][-1].detach().flatten()
    cut = net.weights[-1][0].detach().flatten()
    figure = go.Figure()
    edge = float(torch.cat([cut, reference]).abs().max().clamp_min(1e-6))
    bins = dict(start=-edge, end=edge, size=edge / 60)
    figure.add_histogram(x=reference.cpu().numpy(), xbins=bins, marker_color=faded(GREY, 0.5), name="float32 copy")
    if mantissa < study.STORED:
        figure.add_histogram(x=cut.cpu().numpy(), xbins=bins, marker_color=faded(BLUE, 0.6), name=f"copy with {mantissa} mantissa bits")
        grid = representable(mantissa, edge)
        figure.add_scatter(x=np.r_[-grid[::-1], grid], y=np.zeros(2 * len(grid)), mode="markers", name="its largest numbers",
                           marker=dict(symbol="line-ns-open", size=14, color=OTHERS[3]))  # fmt: skip
        title = (f"Output layer: mean |w| is {cut.abs().mean():.3f} with {mantissa} mantissa bits and {reference.abs().mean():.3f} in "
                 "float32")  # fmt: skip
    else:
        title = "Output layer in float32: its numbers lie too close to be drawn"
    figure.update_layout(barmode="overlay")
    return style(figure, title, x="weight", y="number of weights")


def representable(mantissa: int, edge: float, octaves: int = 4) -> np.ndarray:
    """The positive numbers of a format in the `octaves` powers of two below `edge`, at most 2,000 of them."""
    top = int(np.floor(np.log2(edge)))
    fractions = 1 + np.arange(2**min(mantissa, 9)) / 2 ** min(mantissa, 9)
    found = np.concatenate([2.0**power * fractions for power in range(top - octaves + 1, top + 1)])
    return found[found <= edge][-2000:]


def loss_by_width(net, params) -> go.Figure:
    """Training loss of every copy now, on 256 training images of seed 0."""
    task = study.Float32(params).bind(0)
    with torch.no_grad():
        found = study.losses(net, task.x[:256], task.y[:256]).cpu().numpy()
    names = ["float32" if m == study.STORED else f"{int(m)} bits" for m in net.mantissa.tolist()]
    if len(names) > 1:
        names[-1] = "reference"
    figure = go.Figure(go.Bar(x=names, y=found, marker_color=[BLUE] * (len(names) - 1) + [GREY], name="training loss"))
    return style(figure, f"Training loss now: {found.min():.2f} to {found.max():.2f}", x="format of the copy",
                 y="cross-entropy [nats]")  # fmt: skip
