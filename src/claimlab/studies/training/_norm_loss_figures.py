"""Figures and live views of the study norm-loss."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, arm_colours, faded, style
from claimlab.studies.training import norm_loss as study
from claimlab.studies.training._norm_loss_net import LAYERS

MAIN = ("weight_decay", "norm_loss")
NAMES = {"weight_decay": "weight decay", "norm_loss": "norm loss", "none": "no regulariser"}
LOOK = 300  # test images that a live view asks


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if set(MAIN) <= set(lab.arms):
        found = {"accuracy against lambda": sensitivity(lab), "accuracy against batch size": batches(lab),
                 "row norms": violins(lab), "effective rate": rates(lab)}  # fmt: skip
    if "norm_loss" in lab.arms:
        found["step time"] = step_time(lab)
    return found | {"all arms": overview(lab)}


# ---- helpers


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last values of one metric, a number a seed; empty where the arm has none."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed").value.last().to_numpy(dtype=float)


def edges(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return interval(known) if len(known) > 1 else (np.nan, np.nan)


def band(figure: go.Figure, x, columns: list[np.ndarray], colour: str, name: str) -> None:
    """Mean of each column (a number a seed) with its 95 % interval, and a thin line a seed."""
    low, high = np.array([edges(column) for column in columns]).T
    for seed in np.array(columns).T:
        figure.add_scatter(x=x, y=seed, mode="lines", line=dict(color=colour, width=0.7), opacity=0.3, hoverinfo="skip",
                           showlegend=False, legendgroup=name)  # fmt: skip
    figure.add_scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=faded(colour, 0.2), line_width=0, mode="lines",
                       hoverinfo="skip", showlegend=False, legendgroup=name)  # fmt: skip
    figure.add_scatter(x=x, y=[column.mean() for column in columns], mode="lines+markers", line=dict(color=colour, width=3),
                       name=name, legendgroup=name)  # fmt: skip


def axis_of(p, scales) -> tuple[list[float], str]:
    """Where copies stand on the axis of coefficients, and its title; at strength 0 all are plain training."""
    if p.strength == 0:
        return list(scales), "coefficient [units of strength, which is 0: all are plain training]"
    return [min(1.0, p.strength * scale) for scale in scales], "coefficient lambda"


# ---- figures


def sensitivity(lab) -> go.Figure:
    """The paper's sensitivity figure: test accuracy against the coefficient."""
    colours, figure = arm_colours(lab), go.Figure()
    scales = study.HALVES if lab.params.variants else study.SCALES
    x, title = axis_of(lab.params, scales)
    for arm in MAIN:
        columns = [last(lab, arm, f"test_accuracy_at_{scale:g}") for scale in scales]
        band(figure, x, columns, colours[arm], NAMES[arm])
    if "none" in lab.arms:
        plain = last(lab, "none", "test_accuracy").mean()
        figure.add_scatter(x=[x[0], x[-1]], y=[plain, plain], mode="lines", name=NAMES["none"],
                           line=dict(color=INK, dash="dash", width=1.5))  # fmt: skip
    judged = [at for at, scale in zip(x, scales, strict=True) if scale <= max(study.JUDGED)]
    figure.add_vrect(x0=judged[-1] * 1.5, x1=max(x[-1], judged[-1] * 1.5) * 1.5, fillcolor=faded(GREY, 0.15), line_width=0)
    figure.add_annotation(x=np.log10(judged[-1] * 1.6), y=0.02, yref="paper", xanchor="left", yanchor="bottom", text="not judged",
                          showarrow=False)  # fmt: skip
    figure.update_xaxes(type="log", title_text=title, exponentformat="power", dtick=1)
    figure.update_yaxes(title_text="accuracy [share of test images]")
    spread = {arm: last(lab, arm, "accuracy_range_lambda").mean() for arm in MAIN}
    return style(figure, f"Over the judged coefficients test accuracy spreads by {spread['weight_decay']:.3f} with weight decay and "
                 f"by {spread['norm_loss']:.3f} with norm loss (max - min of a seed, mean over seeds)", height=460)  # fmt: skip


def batches(lab) -> go.Figure:
    """Test accuracy against batch size, as many images in all."""
    colours, figure, p = arm_colours(lab), go.Figure(), lab.params
    sizes = sorted({*(study.MORE_SIZES if p.variants else study.SIZES), p.batch})
    for arm in MAIN:
        columns = [last(lab, arm, f"test_accuracy_batch_{size}") for size in sizes]
        known = [k for k, column in enumerate(columns) if len(column)]
        band(figure, [sizes[k] for k in known], [columns[k] for k in known], colours[arm], NAMES[arm])
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[str(size) for size in sizes], title_text="batch size [images]")
    figure.update_yaxes(title_text="accuracy [share of test images]")
    spread = {arm: last(lab, arm, "accuracy_range_batch").mean() for arm in MAIN}
    return style(figure, f"Over batch sizes test accuracy spreads by {spread['weight_decay']:.3f} with weight decay and by "
                 f"{spread['norm_loss']:.3f} with norm loss; lambda {min(1, p.strength * study.BATCH_SCALE):g}, equal epochs")  # fmt: skip


def violins(lab) -> go.Figure:
    """Row norms of every layer at the end, at lambda = strength, all seeds together."""
    colours, figure, typical = arm_colours(lab), go.Figure(), {}
    for arm, side in zip(MAIN, ("negative", "positive"), strict=True):
        nets = lab.arms[arm].members
        norms = [torch.cat([at_strength(net, i) for net in nets]).numpy() for i in range(len(LAYERS))]
        typical[arm] = np.median(np.concatenate(norms))
        x = np.repeat(LAYERS, [len(n) for n in norms])
        figure.add_violin(x=x, y=np.concatenate(norms), side=side, line_color=colours[arm], name=NAMES[arm], points=False,
                          spanmode="hard", scalegroup=arm, scalemode="width", width=0.9, meanline_visible=True)  # fmt: skip
    mark(figure, lab.params.target)
    figure.update_layout(violinmode="overlay", violingap=0)
    figure.update_yaxes(title_text="row norm", rangemode="tozero").update_xaxes(title_text="layer")
    return style(figure, f"At lambda {lab.params.strength:g} the median row norm ends at {typical['weight_decay']:.2f} with weight "
                 f"decay and at {typical['norm_loss']:.2f} with norm loss", height=460)  # fmt: skip


@torch.no_grad()
def at_strength(net, i: int) -> torch.Tensor:
    """Row norms [out] of layer i in the copy whose coefficient is `strength`, or nearest below."""
    place = int((net.scales <= 1.0).nonzero().max())
    return study.norms_of(net, i)[place].cpu()


def mark(figure: go.Figure, target: float) -> None:
    figure.add_hline(y=target, line=dict(dash="dash", color=INK, width=1.2), annotation_text="target",
                     annotation_position="top right", annotation_font_color=INK)  # fmt: skip


def rates(lab) -> go.Figure:
    """rate * mean 1 / ||w_c||^2 of every layer over training, at lambda = strength; mean over seeds."""
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[NAMES[arm] for arm in MAIN])
    shades = ["#332288", "#117733", "#44AA99", "#88CCEE", "#DDCC77", "#CC6677", "#AA4499", "#882255"]
    ratio = {}
    for column, arm in enumerate(MAIN, 1):
        ends = []
        for name, colour in zip(LAYERS, shades, strict=True):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == f"effective_rate: {name}")]
            mean = rows.groupby("step").value.mean()
            start = mean.index.min()
            figure.add_scatter(x=mean.index - start, y=mean, mode="lines", line=dict(color=colour, width=2), name=name,
                               legendgroup=name, showlegend=column == 1, row=1, col=column)  # fmt: skip
            ends.append(mean.iloc[-1])
        ratio[arm] = float(np.mean(ends[:-1])) / max(study.Residual(lab.params).schedule(1, 1) * lab.params.lr, 1e-30)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1).update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="effective rate eta / ||w||² [1 / step]", col=1)
    return style(figure, f"At the end a filter turns {ratio['weight_decay']:.1f} times as fast as a unit filter would with weight "
                 f"decay, {ratio['norm_loss']:.1f} times with norm loss (lambda {lab.params.strength:g})", height=480)  # fmt: skip


def step_time(lab) -> go.Figure:
    """What a step of norm loss costs, next to weight decay: a dot a seed."""
    values, colours = last(lab, "norm_loss", "step_time_ratio"), arm_colours(lab)
    low, high = edges(values)
    tints = [faded(colours.get(arm, GREY), 0.6) for arm in MAIN]
    figure = go.Figure(go.Bar(x=[0, 1], y=[1.0, values.mean()], marker_color=tints,
                              error_y=dict(array=[0, high - values.mean()], arrayminus=[0, values.mean() - low], color=INK)))  # fmt: skip
    figure.add_scatter(x=1 + np.linspace(-0.3, 0.3, len(values)), y=values, mode="markers", marker=dict(color=BLUE, size=6),
                       hovertemplate="%{y:.3f}<extra></extra>")  # fmt: skip
    figure.update_xaxes(tickvals=[0, 1], ticktext=["weight decay (the optimiser's own)", "norm loss (closed form)"])
    figure.add_hline(y=1.1, line=dict(dash="dash", color=INK, width=1.2), annotation_text="margin 1.1",
                     annotation_position="top left", annotation_font_color=INK)  # fmt: skip
    figure.update_yaxes(title_text="median time of a step [times weight decay's]", rangemode="tozero")
    figure.update_layout(showlegend=False)
    return style(figure, f"A step with norm loss takes {values.mean():.2f} times as long as one with weight decay, on one network "
                 f"and one thread", x="arm")  # fmt: skip


def overview(lab) -> go.Figure:
    """Test accuracy of every arm: a dot a seed, mean and interval."""
    colours, figure = arm_colours(lab), go.Figure()
    means = {}
    for place, arm in enumerate(lab.arms):
        values = last(lab, arm, "test_accuracy")
        if not len(values):
            continue
        low, high = edges(values)
        means[arm] = values.mean()
        figure.add_scatter(x=place + np.linspace(-0.2, 0.2, len(values)), y=values, mode="markers", showlegend=False,
                           marker=dict(color=colours[arm], size=6, opacity=0.6), name=arm)  # fmt: skip
        figure.add_scatter(x=[place], y=[values.mean()], mode="markers", showlegend=False, name=arm,
                           marker=dict(color=colours[arm], size=12, symbol="diamond"),
                           error_y=dict(array=[high - values.mean()], arrayminus=[values.mean() - low], color=INK))  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(lab.arms))), ticktext=[arm.replace("_", "<br>") for arm in lab.arms], title_text="arm")
    figure.update_yaxes(title_text="accuracy [share of test images]")
    best = max(means, key=means.get) if means else ""
    title = f"Highest mean test accuracy: {best}, {means[best]:.3f}" if means else "No arm has ended yet"
    return style(figure, f"{title}; weight decay and norm loss at their best coefficient on validation images", height=460)


# ---- live views: one net of any arm; its data follow from its seed and the knobs


def norms_view(net, params) -> go.Figure:
    """Norms of all filters of every layer, in the copy whose coefficient is `strength`."""
    figure = go.Figure()
    for i, name in enumerate(LAYERS):
        norms = at_strength(net, i).numpy()
        figure.add_scatter(x=i + np.linspace(-0.3, 0.3, len(norms)), y=np.sort(norms), mode="markers", name=name,
                           marker=dict(color=BLUE, size=6), showlegend=False, hovertemplate="%{y:.3f}")  # fmt: skip
    mark(figure, params.target)
    figure.update_xaxes(tickvals=list(range(len(LAYERS))), ticktext=LAYERS, title_text="layer")
    figure.update_yaxes(title_text="row norm", rangemode="tozero")
    spread = torch.cat([at_strength(net, i) for i in range(len(LAYERS))])
    return style(figure, f"Filter norms lie between {spread.min():.2f} and {spread.max():.2f}")


def coefficient_view(net, params) -> go.Figure:
    """Test accuracy of each copy: after the last step on all test images, before that on some of them."""
    x, title = axis_of(params, net.scales.tolist())
    accuracy, about = net.accuracy.cpu(), "all test images"
    if accuracy.isnan().any():
        arm = study.DecayTextures if net.textures else study.Residual
        task = arm(params).bind(int(net.seed))
        shown = tuple(part[:LOOK] for part in task.test)
        seen = tuple(part[:200] for part in task.train)
        device = net.scales.device
        pairs = [(a.to(device), b.to(device)) for a, b in (seen, shown)]
        accuracy, about = study.accuracies(net, *pairs)[0].cpu(), f"{len(shown[0])} test images"
    figure = go.Figure(go.Scatter(x=x, y=accuracy.numpy(), mode="lines+markers", line=dict(color=BLUE, width=3)))
    figure.update_xaxes(type="log", title_text=title, exponentformat="power", dtick=1)
    figure.update_yaxes(title_text=f"accuracy [share of {about}]", range=[0, 1.02])
    return style(figure, f"Test accuracy lies between {accuracy.min():.2f} and {accuracy.max():.2f}, by coefficient")
