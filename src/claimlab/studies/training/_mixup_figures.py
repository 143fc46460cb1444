"""Figures and live views of the study `mixup`: pictures of what the arms recorded and of what their networks answer."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.claims import interval
from claimlab.data.drawing import drawn
from claimlab.figures import BLUE, GREY, colours, faded, style
from claimlab.studies.training import mixup as study

COLOURS = colours(["dropout", "smoothing", "inputs_only", "same_class", "mixup_dropout", "erm", "mixup"], "erm", "mixup")
COLOURS |= {"gan": GREY, "gan_mixup": BLUE}
GRID = np.linspace(0, 1, 21)


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if {"erm", "mixup"} <= set(lab.arms):
        found = {"memorisation": memorisation(lab), "answer on the line": line(lab), "between images": between(lab),
                 "attack size": attacked(lab)}  # fmt: skip
    return found | ({"generated points": album(lab)} if {"gan", "gan_mixup"} <= set(lab.arms) else {})


# ---- helpers


def _wide(table, arm: str, metric: str):
    """Values of one metric: a row a step, a column a seed."""
    rows = table[(table.arm == arm) & (table.metric == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


def _band(figure, arm, x, values: np.ndarray, at: dict, shown: bool, thin=False) -> None:
    """Mean of `values` [points, seeds] with its 95 % interval over seeds."""
    if not thin:
        low, high = np.array([interval(row) for row in values]).T
        figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(COLOURS[arm], 0.2),
                           line_width=0, hoverinfo="skip", showlegend=False, legendgroup=arm, **at)  # fmt: skip
    pen = dict(color=COLOURS[arm], width=1.5 if thin else 3, dash="dot" if thin else "solid")
    figure.add_scatter(x=x, y=values.mean(1), mode="lines", line=pen, name=arm, legendgroup=arm, showlegend=shown, **at)


def _jury(lab, setting: str):
    """(arm, member index, net, task) of erm and mixup."""
    for arm in ("erm", "mixup"):
        for net, task in zip(lab.arms[arm].members, lab.arms[arm].tasks, strict=True):
            yield arm, net[setting].eval(), task


def _partners(task, count: int = 200) -> tuple[Tensor, ...]:
    """Pairs of clean training images of different classes: x_i, x_j, y_i, y_j."""
    x, y = task.clean
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, second = order[: len(x) // 2], order[len(x) // 2 : len(x) // 2 * 2]
    differ = (y[first] != y[second]).nonzero().flatten()[:count]
    first, second = first[differ], second[differ]
    return x[first], x[second], y[first], y[second]


# ---- figures


def memorisation(lab) -> go.Figure:
    """Test accuracy and share of wrong labels fitted, over training."""
    figure = make_subplots(1, 2, subplot_titles=("Accuracy on clean test images", "Wrong training labels that are fitted"),
                           horizontal_spacing=0.1)  # fmt: skip
    for column, metric in enumerate(("test_accuracy", "wrong_label_fit"), 1):
        for arm in [a for a in study.ARMS if a in lab.arms and not a.startswith("gan")]:
            wide, main = _wide(lab.table, arm, metric), arm in ("erm", "mixup")
            _band(figure, arm, wide.index.to_numpy(), wide.to_numpy(), dict(row=1, col=column), column == 1, thin=not main)
            if column == 1 and main:
                best, pen = wide.max().mean(), dict(dash="dash", color=COLOURS[arm], width=1.5)
                figure.add_scatter(x=[0, wide.index.max()], y=[best, best], mode="lines", line=pen,
                                   name=f"{arm} at its best step", row=1, col=1)  # fmt: skip
    last = {a: [_wide(lab.table, a, m).iloc[-1].mean() for m in ("test_accuracy", "wrong_label_fit")] for a in ("erm", "mixup")}
    title = (f"At the last step erm tests at {last['erm'][0]:.2f} and fits {last['erm'][1]:.0%} of its wrong labels; "
             f"mixup tests at {last['mixup'][0]:.2f} and fits {last['mixup'][1]:.0%}")  # fmt: skip
    figure.update_xaxes(title_text="optimiser step")
    late = lab.table[(lab.table.metric == "test_accuracy") & (lab.table.step >= lab.arms["erm"].total / 10)]
    figure.update_yaxes(title_text="accuracy [share of test images]", range=[late.value.min() - 0.05, 1.01], col=1)
    figure.update_yaxes(title_text="fit [share of wrong labels]", range=[-0.02, 1.02], col=2)
    return style(figure, title, height=520)


def line(lab) -> go.Figure:
    """A blended digit at five weights, and what both networks answer along the line."""
    task = lab.arms["erm"].tasks[0]
    nets = {arm: net for arm, net, one in _jury(lab, "clean") if one.split is task.split}
    return _along(nets, task, f"alpha = {min(lab.params.alpha, 0.4):g}, clean labels, seed {lab.seeds[0]}")


def _along(nets, task, about: str) -> go.Figure:
    x_i, x_j, y_i, y_j = (part[0] for part in _partners(task))
    shape = _shape(len(x_i))
    shown = (1, 0.75, 0.5, 0.25, 0)
    figure = make_subplots(2, 5, row_heights=[0.3, 0.7], specs=[[{}] * 5, [{"colspan": 5}, *[None] * 4]], vertical_spacing=0.12,
                           subplot_titles=[f"{w:.0%} of a {y_i} + {1 - w:.0%} of a {y_j}" for w in shown])  # fmt: skip
    for column, weight in enumerate(shown, 1):
        picture = (weight * x_i + (1 - weight) * x_j).reshape(shape)[..., 0].numpy()
        figure.add_heatmap(z=picture, colorscale="gray", zmin=0, zmax=1, showscale=False, hoverinfo="skip", row=1, col=column)
        anchor = f"x{column}" if column > 1 else "x"
        figure.update_yaxes(autorange="reversed", scaleanchor=anchor, visible=False, row=1, col=column)
        figure.update_xaxes(visible=False, row=1, col=column)
    weights = torch.linspace(1, 0, 101)[:, None]
    along = weights[:, 0].numpy()
    figure.add_scatter(x=along, y=along, line=dict(color="#000000", dash="dash", width=1), mode="lines",
                       name=f"label of the blend: {y_i}", row=2, col=1)  # fmt: skip
    for arm, net in nets.items():
        with torch.no_grad():
            answer = net(weights * x_i + (1 - weights) * x_j).softmax(1)
        for label, dash in ((int(y_i), "solid"), (int(y_j), "dot")):
            pen = dict(color=COLOURS[arm], dash=dash, width=2.5)
            figure.add_scatter(x=along, y=answer[:, label].numpy(), line=pen, mode="lines", name=f"{arm}: {label}", row=2, col=1)
    figure.update_xaxes(title_text="weight of the first image", autorange="reversed", row=2, col=1)
    figure.update_yaxes(title_text="probability of the label", range=[-0.02, 1.02], row=2, col=1)
    figure.update_annotations(font_size=11)
    return style(figure, f"From a {y_i} to a {y_j}: the answer along the line ({about})", height=600)


def between(lab) -> go.Figure:
    """The paper's Figure 2: misses and gradient norms at points between two training images."""
    found = {arm: ([], []) for arm in ("erm", "mixup")}
    for arm, net, task in _jury(lab, "clean"):
        missed, slope = probed(net, *_partners(task))
        found[arm][0].append(missed)
        found[arm][1].append(slope)
    figure = make_subplots(1, 2, subplot_titles=("Answers that are neither label", "Steepness of the largest logit"),
                           horizontal_spacing=0.12)  # fmt: skip
    means = {}
    for arm, parts in found.items():
        for column, values in enumerate(parts, 1):
            _band(figure, arm, GRID, np.array(values).T, dict(row=1, col=column), column == 1)
        means[arm] = [np.mean(part) for part in parts]
    figure.update_xaxes(title_text="weight of the first image")
    figure.update_yaxes(title_text="misses [share of blends]", rangemode="tozero", col=1)
    figure.update_yaxes(title_text="gradient norm [logit per unit of pixel]", rangemode="tozero", col=2)
    title = (f"Between training images erm misses {means['erm'][0]:.1%} and mixup {means['mixup'][0]:.1%}; "
             f"mean gradient norm {means['erm'][1]:.1f} and {means['mixup'][1]:.1f}")  # fmt: skip
    return style(figure, title, height=460)


def probed(net, x_i, x_j, y_i, y_j) -> tuple[list[float], list[float]]:
    """At each weight of GRID: share of blends answered with neither label, and mean norm of the gradient of the top logit."""
    missed, slope = [], []
    for weight in GRID:
        x = (float(weight) * x_i + (1 - float(weight)) * x_j).requires_grad_()
        with torch.enable_grad():
            top, answer = net(x).max(1)
            (gradient,) = torch.autograd.grad(top.sum(), x)
        missed.append(((answer != y_i) & (answer != y_j)).float().mean().item())
        slope.append(gradient.norm(dim=1).mean().item())
    return missed, slope


def attacked(lab) -> go.Figure:
    """Accuracy on test images against the size of the single-step attack, clean setting."""
    sizes = np.linspace(0, max(0.2, lab.params.fgsm_eps), 11)
    figure, means = go.Figure(), {}
    for arm in [a for a in ("erm", "dropout", "inputs_only", "mixup") if a in lab.arms]:
        pairs = zip(lab.arms[arm].members, lab.arms[arm].tasks, strict=True)
        values = np.array([_curve(net["clean"].eval(), *task.test, sizes) for net, task in pairs]).T
        _band(figure, arm, sizes, values, {}, True, thin=arm not in ("erm", "mixup"))
        means[arm] = _wide(lab.table, arm, "fgsm_accuracy").iloc[-1].mean()
    figure.add_vline(x=lab.params.fgsm_eps, line=dict(dash="dash", width=1), annotation_text="the claim is judged here",
                     annotation_position="top right", annotation_xshift=8)  # fmt: skip
    figure.update_xaxes(title_text="size of the step on every pixel [share of the pixel range]")
    figure.update_yaxes(title_text="accuracy under attack [share of test images]", range=[-0.02, 1.02])
    title = f"One FGSM step of {lab.params.fgsm_eps:g} leaves erm {means['erm']:.2f}, mixup {means['mixup']:.2f} (clean labels)"
    return style(figure, title, height=440)


def _curve(net, x, y, sizes) -> list[float]:
    return [float(study.accuracy(net, study.fgsm(net, x, y, float(size)), y)) for size in sizes]


def album(lab) -> go.Figure:
    """Points of one generator at four moments, plain above and blended below."""
    total = lab.arms["gan"].total
    moments = [round(total * part) for part in (0.1, 0.3, 0.6, 1.0)]
    shots = {arm: [lab.arms[arm].past(step) for step in moments] for arm in ("gan", "gan_mixup")}
    figure = make_subplots(2, 4, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.02, vertical_spacing=0.08,
                           row_titles=["gan", "gan_mixup"],
                           subplot_titles=[f"step {step}" for step, _ in shots["gan"]])  # fmt: skip
    for row, arm in enumerate(shots, 1):
        for column, (_, members) in enumerate(shots[arm], 1):
            _cloud(figure, members[0], lab.arms[arm].tasks[0], arm, dict(row=row, col=column))
    figure.update_xaxes(range=[-3, 3], title_text="x", row=2)
    figure.update_yaxes(range=[-3, 3], title_text="y", col=1)
    last = {arm: _wide(lab.table, arm, "gan_coverage").iloc[-1].mean() for arm in shots}
    title = (f"First pair of seed {lab.seeds[0]} (crosses: modes of the target). Over all pairs the plain GAN "
             f"covers {last['gan']:.0%} of the modes at the end, with a blending critic {last['gan_mixup']:.0%}")  # fmt: skip
    return style(figure, title, height=620).update_layout(showlegend=False)


def _cloud(figure, net, task, arm, at) -> None:
    with torch.no_grad():
        points = net["generator"](task.probe)[0, :500]
    dot = dict(size=3, color=COLOURS[arm], opacity=0.5)
    cross = dict(symbol="x-thin", size=9, line=dict(width=1.5, color="#D55E00"))
    figure.add_scatter(x=points[:, 0].numpy(), y=points[:, 1].numpy(), mode="markers", marker=dot, name=arm, **at)
    figure.add_scatter(x=task.modes[:, 0].numpy(), y=task.modes[:, 1].numpy(), mode="markers", marker=cross, name="mode", **at)


# ---- live views: one net of any arm, on the data of seed 0


def _task(params):
    return study.Erm(params).bind(0)


def _shape(numbers: int) -> tuple[int, int, int]:
    channels = 1 if round(numbers**0.5) ** 2 == numbers else 3
    side = round((numbers / channels) ** 0.5)
    return side, side, channels


def _nothing(what: str) -> go.Figure:
    return style(go.Figure(), f"This arm has no {what}")


def boundary(net, params) -> go.Figure:
    """The noisy classifier's decisions on the plane through three training images; wrongly labelled corners are ringed."""
    if "noisy" not in net:
        return _nothing("classifier")
    task = _task(params)
    (x, given), true = task.noisy, task.split.true
    wrong = (given != true).nonzero().flatten()
    corners = _corners(given, int(wrong[0]) if len(wrong) else 0)
    u, v = np.meshgrid(np.linspace(-0.3, 1.3, 60), np.linspace(-0.3, 1.3, 60))
    weights = torch.tensor(np.stack([1 - u - v, u, v], -1).reshape(-1, 3), dtype=torch.float32)
    with torch.no_grad():
        answer = net["noisy"](weights @ x[corners]).argmax(1).reshape(60, 60).numpy()
    figure = go.Figure(go.Heatmap(x=u[0], y=v[:, 0], z=answer, zmin=0, zmax=int(task.split.classes) - 1, colorscale="Portland",
                                  colorbar_title="answer"))  # fmt: skip
    names = [f"given {given[i]}, true {true[i]}" for i in corners]
    ring = [4 if given[i] != true[i] else 0 for i in corners]
    marker = dict(size=16, color="white", line=dict(color="black", width=ring))
    figure.add_scatter(x=[0, 1, 0], y=[0, 0, 1], mode="markers", marker=marker, hovertext=names, hoverinfo="text")
    for across, up, name in zip((0, 1, 0), (0, 0, 1), names, strict=True):
        figure.add_annotation(x=across, y=up, text=name, yshift=22, showarrow=False, font_color="black", bgcolor="rgba(255,255,255,0.8)")
    return style(figure, "Decisions on the plane through three training images (ring: wrong label)",
                 x="weight of the second image", y="weight of the third image")  # fmt: skip


def _corners(given: Tensor, first: int) -> list[int]:
    """`first` and two more images, all three of different given labels."""
    chosen = [first]
    for i, label in enumerate(given.tolist()):
        if len(chosen) < 3 and label not in {int(given[k]) for k in chosen}:
            chosen.append(i)
    return chosen if len(chosen) == 3 else [first, *[i for i in range(3) if i != first][:2]]


def between_two(net, params) -> go.Figure:
    """The answer along the line between two training images of different classes."""
    if "noisy" not in net:
        return _nothing("classifier")
    setting = "clean" if "clean" in net else "noisy"
    return _along({"mixup": net[setting]}, _task(params), f"{setting} setting, data of seed 0").for_each_trace(
        lambda trace: trace.update(name=trace.name.replace("mixup", "answer")) if trace.name else None
    )


def generated(net, params) -> go.Figure:
    """Points of the first generator against the target's modes."""
    if "generator" not in net:
        return _nothing("generator")
    figure = make_subplots(1, 1)
    _cloud(figure, net, study.Gan(params).bind(0), "gan_mixup", dict(row=1, col=1))
    figure.update_xaxes(range=[-3, 3], title_text="x").update_yaxes(range=[-3, 3], title_text="y", scaleanchor="x")
    return style(figure, "Generated points (crosses: the target's modes)").update_layout(showlegend=False)


def answer(net, params, value) -> dict[str, float]:
    """The share of each class that the classifier trained with wrong labels gives to a drawing."""
    width = _task(params).noisy[0].shape[1]
    side, _, channels = _shape(width)
    shares = net["noisy"](drawn(value, side).flatten().repeat(channels)[None]).softmax(1)[0]
    return {str(k): float(share) for k, share in enumerate(shares)}
