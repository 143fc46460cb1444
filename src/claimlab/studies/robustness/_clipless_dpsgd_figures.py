"""Figures and live views of the study `clipless-dpsgd`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.data.drawing import drawn
from claimlab.figures import BLUE, GREY, OTHERS, colours, faded, images, style
from claimlab.parts.privacy import spent
from claimlab.studies.robustness import _clipless_dpsgd_method as method
from claimlab.studies.robustness import clipless_dpsgd as study
from claimlab.studies.robustness._clipless_dpsgd_data import CENTRE, into_ball, own_path

COLOURS = colours(list(study.ARMS), "dpsgd", "clipless")
SHOWN = 4  # layers that have a panel of their own


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    needs = {
        "gradients under the bound": (violins, ("clipless", "spectral_relu")), "accuracy and privacy": (budgets, ("clipless", "dpsgd")),
        "what a step costs": (costs, ("cost",)), "singular values": (singular_values, ("clipless", "no_projection")),
        "clipping bias": (bias, ("dpsgd", "dpsgd_lipschitz")), "first-layer filters": (filters, ("clipless", "non_private")),
    }  # fmt: skip
    return {name: draw(lab) for name, (draw, arms) in needs.items() if set(arms) <= set(lab.arms)}


# ---- helpers


def _wide(lab, arm: str, metric: str):
    """Values of one metric: a row a step, a column a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


def _band(figure, arm, x, values: np.ndarray, at: dict, name: str | None = None, shown=True, dash="solid") -> None:
    """Mean of `values` [points, seeds] with its 95 % interval over seeds."""
    colour = COLOURS[arm]
    low, high = np.array([interval(row) if len(row) > 1 else (row[0], row[0]) for row in values]).T
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(colour, 0.15), line_width=0,
                       hoverinfo="skip", showlegend=False, legendgroup=arm, **at)  # fmt: skip
    pen = dict(color=colour, width=3 if arm in ("clipless", "dpsgd") else 2, dash=dash)
    figure.add_scatter(x=x, y=values.mean(1), mode="lines", line=pen, name=name or arm, legendgroup=arm, showlegend=shown, **at)


def shares(net, task) -> np.ndarray:
    """Per-example gradient norms of the task's first training rows over their bounds (for an arm that clips: over the clipping
    norm), [D, 300]."""
    some = task.x[: study.KEPT], task.y[: study.KEPT]
    with torch.no_grad():
        weights = [w.detach() for w in net.weights]
        _, _, inputs, cotangents = method.ghost_parts(net.steps, weights, *some, net.outputs, task.slopes_of)
        bounds = task.bounds(net) if task.clip is None else torch.full((len(weights),), float(task.clip))
        return (method.ghost_norms(inputs, cotangents) / bounds[:, None]).numpy()


def _violins(figure, values: np.ndarray, name: str, colour: str, place: str) -> None:
    for k, row in enumerate(values):
        figure.add_violin(x=np.full(len(row), f"layer {k + 1}"), y=row, name=name, legendgroup=name, scalegroup=f"{name}{k}", points=False,
                          offsetgroup=place, alignmentgroup="all", showlegend=k == 0, line_color=colour, fillcolor=faded(colour, 0.35),
                          meanline_visible=True, spanmode="hard")  # fmt: skip


def _line_at_one(figure, text: str) -> None:
    figure.add_hline(y=1, line=dict(dash="dash", color="#D55E00", width=2), annotation_text=text, annotation_position="top left",
                     annotation_font_color="#D55E00")  # fmt: skip


# ---- figures


def violins(lab) -> go.Figure:
    """Norms of the gradients of single examples, layer by layer, over the bound that was computed without looking at them."""
    figure, middle, most = go.Figure(), {}, 0.0
    for arm in ("clipless", "spectral_relu"):
        pairs = zip(lab.arms[arm].members, lab.arms[arm].tasks, strict=True)
        values = np.concatenate([shares(net, task) for net, task in pairs], 1)
        _violins(figure, values, arm, COLOURS[arm], arm)
        middle[arm], most = float(np.median(values)), max(most, float(values.max()))
    figure.update_layout(violinmode="group", violingap=0.15)
    _line_at_one(figure, "the bound")
    figure.update_yaxes(rangemode="tozero", range=[0, 1.12])
    title = (f"The longest gradient reaches {most:.0%} of its bound; the median one {middle['clipless']:.0%} in orthogonal layers and "
             f"{middle['spectral_relu']:.0%} in layers that are merely 1-Lipschitz")  # fmt: skip
    return style(figure, title, height=460, x="layer, from the input on", y="gradient norm of one example [share of its bound]")


def budgets(lab) -> go.Figure:
    """Accuracy against the budget: along the run as it is spent, and of separate trainings."""
    figure, last = go.Figure(), {}
    for arm in [a for a in study.ARMS if a in lab.arms and a not in ("cost", "budgets", "non_private")]:
        task, wide = lab.arms[arm].tasks[0], _wide(lab, arm, "test_accuracy")
        wide = wide[wide.index > 0]
        epsilon = [spent(task.share, task.sigma, int(step), task.delta) for step in wide.index]
        _band(figure, arm, np.array(epsilon), wide.to_numpy(), {}, dash="dot" if arm in ("dpsgd_ghost", "clipless_local") else "solid")
        last[arm] = wide.iloc[-1].mean()
    if "budgets" in lab.arms:
        table = lab.table[lab.table.arm == "budgets"]
        epsilon = table[table.metric == "epsilon"].groupby("step").value.first()
        for arm in study.Budgets.trained:
            mean = table[table.metric == f"test_accuracy_{arm}"].groupby("step").value.mean()
            marker = dict(color=COLOURS[arm], size=12, symbol="diamond", line=dict(color="#FFFFFF", width=1))
            figure.add_scatter(x=epsilon.to_numpy(), y=mean.to_numpy(), mode="markers", marker=marker,
                               name=f"{arm}, trained for this epsilon")  # fmt: skip
    if "non_private" in lab.arms:
        ceiling = _wide(lab, "non_private", "test_accuracy").iloc[-1].mean()
        figure.add_hline(y=ceiling, line=dict(dash="dash", color="#6F7680"), annotation_text="non_private, at the end")
    figure.update_xaxes(type="log", tickvals=[0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 20, 50])
    title = (f"At epsilon {lab.params.epsilon:g} clipless tests at {last['clipless']:.1%}, DP-SGD at {last['dpsgd']:.1%} "
             "(lines: one training, as its budget is spent; diamonds: trainings of their own)")  # fmt: skip
    return style(figure, title, height=560, x="epsilon spent (privacy loss)", y="accuracy [share of test rows]").update_layout(margin_b=150)


def costs(lab) -> go.Figure:
    """Milliseconds and memory of a step against the batch."""
    table = lab.table[lab.table.arm == "cost"].pivot_table(index="step", columns="metric", values="value")
    figure = make_subplots(1, 2, subplot_titles=("Time of a step", "Peak of live tensors"), horizontal_spacing=0.12)
    names = {"clipless": "clipless", "dpsgd": "dpsgd, forming gradients", "dpsgd_ghost": "dpsgd_ghost, norms only"}
    for column, unit in enumerate(("milliseconds", "megabytes"), 1):
        for arm, name in names.items():
            figure.add_scatter(x=table["batch"], y=table[f"{unit}_{arm}"], mode="lines+markers", line=dict(color=COLOURS[arm], width=2.5),
                               name=name, legendgroup=arm, showlegend=column == 1, row=1, col=column)  # fmt: skip
    figure.update_xaxes(type="log", tickvals=list(table["batch"]), title_text="batch [examples]")
    ticks = [m * 10.0**k for k in range(-2, 5) for m in (1, 3)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    figure.update_yaxes(title_text="milliseconds, one thread", col=1).update_yaxes(title_text="megabytes", col=2)
    last = table.iloc[-1]
    title = (f"At batch {last['batch']:.0f} a step takes {last['milliseconds_clipless']:.1f} ms clipless, "
             f"{last['milliseconds_dpsgd']:.1f} ms with gradients formed and {last['milliseconds_dpsgd_ghost']:.1f} ms through "
             "norms")  # fmt: skip
    return style(figure, title, height=440)


def singular_values(lab) -> go.Figure:
    """Largest, middle and smallest singular value of each layer during training, with projection and without."""
    layers = min(SHOWN, lab.params.depth)
    figure = make_subplots(1, layers, subplot_titles=[f"Layer {k + 1}" for k in range(layers)], horizontal_spacing=0.08)
    for arm in ("clipless", "no_projection"):
        for k in range(layers):
            for which, dash in (("largest", "solid"), ("median", "dash"), ("smallest", "dot")):
                wide = _wide(lab, arm, f"{which}_{k}")
                _band(figure, arm, wide.index.to_numpy(), wide.to_numpy(), dict(row=1, col=k + 1), f"{arm}, {which}", k == 0, dash)
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="singular value", col=1)
    ends = [_wide(lab, "no_projection", f"{which}_0").iloc[-1].mean() for which in ("smallest", "largest")]
    title = (f"Projection holds every singular value at 1; without it the first layer's spread from {ends[0]:.2f} to {ends[1]:.2f} "
             "by the last step")  # fmt: skip
    return style(figure, title, height=500).update_layout(margin_b=150, legend_traceorder="normal")


def bias(lab) -> go.Figure:
    """How many examples are clipped, and what that does to the direction of the mean gradient."""
    heads = ("Examples that are clipped", "Clipped and unclipped mean gradient")
    figure = make_subplots(1, 2, subplot_titles=heads, horizontal_spacing=0.12)
    ends = {}
    for arm in ("dpsgd", "dpsgd_lipschitz"):
        for column, metric in enumerate(("clipped_share", "cosine"), 1):
            wide = _wide(lab, arm, metric)
            _band(figure, arm, wide.index.to_numpy(), wide.to_numpy(), dict(row=1, col=column), shown=column == 1)
            ends[arm, metric] = wide.iloc[-1].mean()
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="share of 1,000 training rows", range=[-0.02, 1.02], col=1)
    figure.update_yaxes(title_text="cosine of the angle between both", col=2)
    title = (f"DP-SGD clips {ends['dpsgd', 'clipped_share']:.0%} of the rows at the end; the cosine between clipped and unclipped mean "
             f"is {ends['dpsgd', 'cosine']:.2f} ({ends['dpsgd_lipschitz', 'cosine']:.2f} on the Lipschitz network)")  # fmt: skip
    return style(figure, title, height=440)


def _filters(net, task, count: int) -> tuple[list[np.ndarray], list[str]]:
    """The `count` longest rows of the first layer as pictures; a layer on plain numbers as one strip each."""
    weight, layer, shape = net.weights[0].detach(), net.layers[0], tuple(task.x.shape[1:])
    side = layer.kernel if layer.kernel > 1 else shape[0] if len(shape) == 3 else 1
    chosen = weight.norm(dim=1).argsort(descending=True, stable=True)[:count].tolist()
    channels = shape[-1] if len(shape) == 3 else 1
    if layer.kernel > 1:
        pictures = [weight[k].reshape(side, side, -1)[..., 0].numpy() for k in chosen]
    else:
        pictures = [weight[k].reshape(side, -1, channels)[..., 0].numpy() for k in chosen]
    return pictures, [f"unit {k}" for k in chosen]


def filters(lab) -> go.Figure:
    """First-layer weights as pictures: private above, non-private below; units that began as the same random rows."""
    private, plain = (lab.arms[arm] for arm in ("clipless", "non_private"))
    count = min(6, len(private.members[0].weights[0]))
    above, names = _filters(private.members[0], private.tasks[0], count)
    weight = plain.members[0].weights[0].detach()
    units = [int(name.split()[1]) for name in names]
    below = [weight[k].numpy().reshape(above[0].shape) for k in units] if above[0].size == weight.shape[1] else \
        _filters(plain.members[0], plain.tasks[0], count)[0]  # fmt: skip
    angle = torch.cosine_similarity(private.members[0].weights[0].detach(), weight, 1).mean()
    title = (f"First-layer weights with noise (above) and without (below), seed {lab.seeds[0]}: the cosine between partners is "
             f"{angle:.2f} on average")  # fmt: skip
    return images(above + below, [f"{n}, private" for n in names] + [f"{n}, not private" for n in names], title=title, symmetric=True,
                  scale="RdBu", columns=count)  # fmt: skip


# ---- views; a member is looked at with the rows of seed 0, since a view knows the knobs alone


def _task(net, params):
    return net.maker(params).bind(0)


def violins_of(net, params) -> go.Figure:
    """Norms of the gradients of single examples over their bound, of one network."""
    task, figure = _task(net, params), go.Figure()
    values = shares(net, task)
    _violins(figure, values, "examples", GREY if task.clip else BLUE, "0")
    _line_at_one(figure, "the bound" if task.clip is None else "the clipping norm")
    figure.update_layout(showlegend=False).update_yaxes(rangemode="tozero")
    what = "bound" if task.clip is None else "clipping norm"
    return style(figure, f"The longest gradient of the rows of seed 0 is {values.max():.2f} times the {what}", x="layer, from the input on",
                 y=f"gradient norm of one example [{what}]")  # fmt: skip


def singular_values_of(net, params) -> go.Figure:
    """All singular values of every layer, in order."""
    figure, widest = go.Figure(), 0.0
    for k, (weight, layer) in enumerate(zip(net.weights, net.layers, strict=True)):
        values = torch.linalg.svdvals(weight.detach() * layer.reads**0.5).numpy()
        widest = max(widest, abs(values - 1).max())
        figure.add_scatter(x=np.linspace(0, 1, len(values)), y=values, name=f"layer {k + 1}", line_color=[BLUE, *OTHERS][k % 9])
    figure.update_yaxes(rangemode="tozero")
    return style(figure, f"Singular values of every layer: at most {widest:.2g} away from 1", x="rank [share of the layer's values]",
                 y="singular value")  # fmt: skip


def filters_of(net, params) -> go.Figure:
    """First-layer weights of one network as pictures; look at the arm non_private beside it."""
    pictures, names = _filters(net, _task(net, params), min(12, len(net.weights[0])))
    return images(pictures, names, title="First-layer weights, the longest ones first", symmetric=True, scale="RdBu")


def answer(net, params, value) -> dict[str, float]:
    """What one network says of a drawn digit: {digit: probability}. ValueError where it was trained on other rows."""
    task = _task(net, params)
    if params.data != "digits" or own_path():
        raise ValueError("these networks were trained on rows of another kind")
    side = task.x.shape[1]
    page = into_ball(drawn(value, side).flatten()[None].numpy() - CENTRE).reshape(1, side, side, 1)
    logits = net(torch.from_numpy(page).to(net.weights[0].device))
    return {str(k): share for k, share in enumerate((logits * (task.tau or params.temperature)).softmax(1)[0].tolist())}
