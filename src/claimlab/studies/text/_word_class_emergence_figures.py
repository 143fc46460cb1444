"""Figures and live views of word-class-emergence. Titles say what was found, computed from the lab."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, band, bars, faded, matrix, style
from claimlab.studies.text import _word_class_emergence_method as method

PALETTE = (BLUE, *OTHERS[:5], OTHERS[6], INK, OTHERS[7], OTHERS[5])  # two yellows would be hard to tell apart in a cloud
GDV = "GDV (0: no structure, −1: separate)"


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what needs an arm that the lab left out is left out, too."""
    drawn = {"layers": by_layer(lab), "class_or_topic": class_or_topic(lab), "accuracy": accuracy(lab)}
    if "trained" in lab.arms:
        drawn = {"scaling": before_and_after(lab), "over_time": over_time(lab)} | drawn | {"confusion": confusion(lab)}
    return drawn


def ends(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed; empty where there is none."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.sort_values("step", kind="stable").groupby("seed")["value"].last().to_numpy()


def said(lab, metric: str, arms, form: str = ".2f") -> str:
    """`arm value` of some arms, for a title."""
    return ", ".join(f"{arm.replace('_', ' ')} {values.mean():{form}}" for arm in arms if len(values := ends(lab, arm, metric)))


def layer_names(count: int) -> list[str]:
    """Names of the layers that a network reports."""
    return ["word vectors", *[f"hidden {k}" for k in range(1, count)]]


# ---- clouds of contexts


def cloud(fig: go.Figure, plane: np.ndarray, roles: np.ndarray, classes, *, legend: bool, **place) -> None:
    """Points [N, 2] in the colour of the next word's class."""
    for k, name in enumerate(classes):
        here = plane[roles == k]
        fig.add_scatter(x=here[:, 0], y=here[:, 1], mode="markers", name=name, legendgroup=name, showlegend=legend,
                        marker=dict(color=PALETTE[k % len(PALETTE)], size=4.5, opacity=0.7), hoverinfo="name", **place)  # fmt: skip


def activations(net) -> list[np.ndarray]:
    """What every layer answers to the contexts that the network carries, [N, D] each."""
    with torch.no_grad():
        return [layer.cpu().double().numpy() for layer in net.layers(net.contexts)]


def before_and_after(lab) -> go.Figure:
    """The last layer of one seed in the plane, by classical scaling, before training and after."""
    run = lab.arms["trained"]
    nets = [run.fresh(0).to(run.device), run.members[0]]
    fig = make_subplots(1, 2, subplot_titles=["before training", f"after {run.step} steps"], horizontal_spacing=0.06)
    scores = []
    for column, net in enumerate(nets, 1):
        x, roles = activations(net)[-1], net.roles.cpu()
        scores.append(float(method.gdv(torch.from_numpy(x), roles)))
        cloud(fig, method.scaling(x), roles.numpy(), net.classes, legend=column == 2, row=1, col=column)
    style(fig, f"Contexts in the last layer, coloured by the class of the word to come: GDV {scores[0]:.3f} before and {scores[1]:.3f} "
          f"after training (seed {lab.seeds[0]})", height=520, x="first coordinate of the scaling")  # fmt: skip
    return fig.update_yaxes(title_text="second coordinate", col=1).update_layout(margin_b=110)


# ---- scores


def by_layer(lab) -> go.Figure:
    """GDV of every layer after training, a line an arm, with the 95 % interval over seeds."""
    fig, tints = go.Figure(), arm_colours(lab)
    count = lab.params.layers + 1
    for arm in lab.arms:
        values = np.array([v for k in range(count) if len(v := ends(lab, arm, f"gdv_layer_{k}"))])
        if not len(values):
            continue
        bounds = np.array([interval(v) if len(v) > 1 else (v.mean(), v.mean()) for v in values])
        x = np.arange(len(values))
        fig.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[bounds[:, 1], bounds[::-1, 0]], fill="toself", line_width=0, hoverinfo="skip",
                        fillcolor=faded(tints[arm], 0.18), showlegend=False, legendgroup=arm, mode="lines")  # fmt: skip
        fig.add_scatter(x=x, y=values.mean(1), mode="lines+markers", name=arm, legendgroup=arm, line=dict(color=tints[arm], width=2.5))
    drop = ends(lab, "trained", "gdv_slope_over_layers")
    told = f"a layer deeper changes the score of the trained network by {drop.mean():+.3f}" if len(drop) else "score of every layer"
    fig.update_xaxes(tickvals=list(range(count)), ticktext=layer_names(count))
    return style(fig, f"Sorting by the class to come, layer by layer: {told} ({len(lab.seeds)} seeds)", height=460, x="layer", y=GDV)


def over_time(lab) -> go.Figure:
    """GDV of the last layer and perplexity of the test text over steps, one time axis."""
    fig, tints = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06), arm_colours(lab)
    for arm in lab.arms:
        for row, metric in enumerate(("gdv_next_class", "perplexity"), 1):
            rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
            if rows["step"].nunique() < 2:
                continue
            middle = band(rows)
            x = middle.index.to_numpy()
            fig.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[middle["high"], middle["low"][::-1]], fill="toself", line_width=0, mode="lines",
                            fillcolor=faded(tints[arm], 0.18), hoverinfo="skip", showlegend=False, row=row, col=1)  # fmt: skip
            fig.add_scatter(x=x, y=middle["mean"], mode="lines", name=arm, showlegend=row == 1, legendgroup=arm,
                            line=dict(color=tints[arm], width=2.5), row=row, col=1)  # fmt: skip
    parts = {name: nearly(lab, metric) for name, metric in (("GDV", "gdv_next_class"), ("log perplexity", "perplexity"))}
    told = " and ".join(f"{name} after {step:.0f}" for name, step in parts.items() if math.isfinite(step))
    style(fig, f"The trained network has gone nine tenths of its way in {told} steps" if told else "GDV and perplexity", height=600)
    fig.update_yaxes(title_text="GDV, last layer", row=1).update_yaxes(title_text="perplexity [words]", type="log", row=2)
    fig.update_yaxes(tickvals=[10, 20, 50, 100, 200, 500, 1000, 2000, 5000], row=2)
    return fig.update_xaxes(title_text="optimiser step", row=2)


def nearly(lab, metric: str) -> float:
    """First recorded step at which the trained arm's mean has made nine tenths of its change; NaN where nothing changed."""
    rows = lab.table[(lab.table["arm"] == "trained") & (lab.table["metric"] == metric)]
    mean = rows.groupby("step")["value"].mean()
    if len(mean) < 2:
        return math.nan
    mean = np.log(mean) if metric == "perplexity" else mean
    way = (mean - mean.iloc[0]) / ((mean.iloc[-1] - mean.iloc[0]) or math.nan)
    there = way.index[way >= 0.9]
    return float(there[0]) if len(there) else math.nan


def class_or_topic(lab) -> go.Figure:
    """A dot a seed and arm: how far the last layer sorts by topic, and how far by class."""
    fig, tints = go.Figure(), arm_colours(lab)
    for arm in lab.arms:
        topic, kind = ends(lab, arm, "gdv_topic"), ends(lab, arm, "gdv_next_class")
        if len(topic):
            fig.add_scatter(x=topic, y=kind, mode="markers", name=arm, marker=dict(color=tints[arm], size=10, opacity=0.8))
    shown = np.concatenate([[0.0], *(np.r_[t.x, t.y] for t in fig.data)])
    low, room = float(np.nanmin(shown)), 0.06 * float(np.nanmax(shown) - np.nanmin(shown) or 1)
    fig.add_scatter(x=[low, 0], y=[low, 0], mode="lines", line=dict(color=INK, dash="dash", width=1), name="both alike", hoverinfo="skip")
    found = {name: ends(lab, "trained", metric) for name, metric in (("class", "gdv_next_class"), ("topic", "gdv_topic"))}
    told = " and ".join(f"{v.mean():.4f} by {name}" for name, v in found.items() if len(v))
    fig.update_xaxes(range=[low - room, room]).update_yaxes(range=[low - room, room])
    return style(fig, f"What the last layer sorts by: GDV of the trained network {told}" if told else "Class against topic", height=480,
                 x="GDV by topic of the sentence", y="GDV by class of the next word")  # fmt: skip


def accuracy(lab) -> go.Figure:
    """Accuracy of the linear probe in the last layer; for the trigram model its own."""
    metric, arms = "next_class_probe_accuracy", list(lab.specs)
    return bars(lab.table, metric, arms=arms, title=f"Next class told right from the last layer: {said(lab, metric, arms, '.3f')}",
                y_title="accuracy [share of new test contexts]", palette=arm_colours(lab),
                names={arm: arm.replace("_", "<br>") for arm in lab.arms})  # fmt: skip


def confusion(lab) -> go.Figure:
    """Shares of each true class that the probe on the trained network gives to each class, one seed."""
    run = lab.arms["trained"]
    net, q, classes = run.members[0], run.tasks[0].probes, run.tasks[0].corpus.classes
    with torch.no_grad():
        fit, judge = (net.layers(part[0].to(run.device))[-1].cpu().numpy() for part in (q.fit, q.judge))
    told, true = method.probe(fit, q.fit[1].numpy(), judge), q.judge[1].numpy()
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (true, told), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    return matrix(share, classes, classes, height=520, x="class that the probe tells", y="true class of the next word", unit="share",
                  title=f"The probe is right for {np.trace(counts) / counts.sum():.0%} of the contexts; most often it takes {classes[i]} "
                  f"for {classes[j]} (seed {lab.seeds[0]})")  # fmt: skip


# ---- live views: one net of any arm; contexts, classes and topics are those that the net itself carries


def contexts_view(net, params) -> go.Figure:
    """Contexts on the two leading principal components of every layer, coloured by the next word's class."""
    layers = activations(net)
    some = np.arange(0, len(layers[0]), 3)
    roles, names = net.roles.cpu().numpy()[some], layer_names(len(layers))
    across = 2 if len(layers) > 1 else 1
    down = -(-len(layers) // across)
    fig = make_subplots(down, across, subplot_titles=names, horizontal_spacing=0.08, vertical_spacing=0.3 / max(2, down))
    for k, x in enumerate(layers):
        cloud(fig, components(x[some]), roles, net.classes, legend=k == 0, row=k // across + 1, col=k % across + 1)
    score = float(method.gdv(torch.from_numpy(layers[-1][some]), torch.from_numpy(roles)))
    style(fig, f"Contexts by the class of the word to come; GDV of the last layer is {score:.2f}", height=180 + 250 * down)
    return fig.update_xaxes(showticklabels=False, title_text="component 1").update_yaxes(showticklabels=False, title_text="component 2")


def components(x: np.ndarray) -> np.ndarray:
    """Coordinates [N, 2] of points [N, D] on their two leading principal components."""
    from scipy.linalg import eigh

    if len(x) < x.shape[1]:
        return method.scaling(x)  # the same by the smaller matrix: scaling of Euclidean distances gives principal components
    centred = x - x.mean(0)
    square = centred.T @ centred
    axes = eigh(square, subset_by_index=[len(square) - 2, len(square) - 1])[1][:, ::-1]
    return centred @ axes


def gdv_view(net, params) -> go.Figure:
    """GDV of every layer now, by class of the next word and by topic of its sentence, on every second context."""
    layers, some = activations(net), slice(None, None, 2)
    fig, names = go.Figure(), layer_names(len(layers))
    for label, given, colour in (("by class of the next word", net.roles, BLUE), ("by topic of its sentence", net.topics, GREY)):
        values = [float(method.gdv(torch.from_numpy(x[some]), given.cpu()[some])) for x in layers]
        fig.add_scatter(x=names, y=values, name=label, mode="lines+markers", line=dict(color=colour, width=2.5))
    kinds = fig.data[0].y
    return style(fig, f"GDV by class runs from {kinds[0]:.2f} in the word vectors to {kinds[-1]:.2f} in the last layer", height=420,
                 x="layer", y=GDV).update_yaxes(rangemode="tozero")  # fmt: skip
