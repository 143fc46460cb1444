"""Figures and live views of the study lobster: what the arms recorded, and what their weights and gradients look like."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.data.drawing import drawn
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, images, style
from claimlab.studies.compression import lobster as study
from claimlab.studies.compression._lobster_method import insensitivity

RED = "#D55E00"
TENTHS = [v * 10**k for k in (-1, 0, 1, 2) for v in (1, 2, 5)]  # marks of a log axis
ORDER = ["magnitude", "lobster_scaled", "inverse_gate", "lobster_x30", "lobster_x1000", "l2_threshold", "lobster"]
COLOURS = colours(ORDER, "l2_threshold", "lobster") | {"dense": "#000000"}
WORDS = {"dense": "dense", "magnitude": "magnitude", "l2_threshold": "L2", "lobster": "LOBSTER", "lobster_scaled": "scaled gate",
         "inverse_gate": "inverse gate", "lobster_x30": "loss x 30", "lobster_x1000": "loss x 1000"}  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    have, found = set(lab.arms), {}
    found["accuracy and compression"] = trade(lab)
    if "lobster" in have:
        found["gradients and gate"] = histogram(lab)
        found["stages"] = stages(lab)
        found["first layer"] = pixels(lab)
    if {"lobster", "l2_threshold"} <= have:
        found["loss scale"] = loss_scale(lab)
    return found


# ---- helpers


def wide(lab, arm: str, metric: str) -> np.ndarray:
    """Values of a metric: [steps, seeds], the steps being those at which it was recorded."""
    return frame(lab, arm, metric).to_numpy()


def frame(lab, arm: str, metric: str):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed."""
    return wide(lab, arm, metric)[-1]


def gradients(net, task) -> list[np.ndarray]:
    """|dL/dw| of the mean loss on 100 training images, for the weights of each layer that are left."""
    with torch.enable_grad():
        found = torch.autograd.grad(task.loss(net, task.x[:100], task.y[:100]), list(net.weights))
    return [g[w != 0].abs().detach().cpu().numpy() for g, w in zip(found, net.weights, strict=True)]


# ---- figures of a finished experiment


def trade(lab) -> go.Figure:
    """Test accuracy against compression: a line through the checks, a diamond for the network that is judged."""
    figure, summary = go.Figure(), []
    for arm in [a for a in ORDER if a in lab.arms]:
        way = [wide(lab, arm, m)[1:] for m in ("compression_now", "accuracy_now")]
        main = arm in ("l2_threshold", "lobster", "magnitude")
        figure.add_scatter(x=10 ** np.log10(way[0]).mean(1), y=way[1].mean(1), mode="lines+markers", name=WORDS[arm],
                           marker_size=5, legendgroup=arm, opacity=1 if main else 0.6,
                           line=dict(color=COLOURS[arm], width=3 if main else 1.5, dash="solid" if main else "dot"))  # fmt: skip
        ratio, accuracy = last(lab, arm, "compression_ratio"), last(lab, arm, "test_accuracy")
        figure.add_scatter(x=ratio, y=accuracy, mode="markers", legendgroup=arm, showlegend=False, name=f"{WORDS[arm]}, judged",
                           marker=dict(symbol="diamond", size=9, color=faded(COLOURS[arm], 0.7)))  # fmt: skip
        if arm in ("l2_threshold", "lobster"):
            summary.append(f"{WORDS[arm]} {10 ** np.log10(ratio).mean():.3g} times")
    if "dense" in lab.arms:
        dense = last(lab, "dense", "test_accuracy").mean()
        figure.add_hline(y=dense, line=dict(color=INK, dash="dash", width=1), annotation_text=f"dense {dense:.3f}",
                         annotation_position="bottom right", annotation_font_color=INK)  # fmt: skip
    known = np.concatenate([np.asarray(t.y, float) for t in figure.data]) if figure.data else np.ones(1)
    top = max(known.max(), 0.5)
    figure.update_yaxes(range=[max(0, min(np.quantile(known, 0.1), top - 0.04) - 0.01), top + 0.008])
    figure.update_xaxes(type="log", tickvals=TENTHS, ticktext=[f"{v:g}" for v in TENTHS])
    title = "Accuracy while weights go (lines: mean over seeds; diamonds: the judged networks)"
    title += f". Judged: {', '.join(summary)} fewer weights" if summary else ""
    return style(figure, title, height=520, x="compression ratio [all weights / weights left]",
                 y="accuracy [share of test images]")  # fmt: skip


def histogram(lab) -> go.Figure:
    """|dL/dw| of LOBSTER's networks before and after training, with the gate over it."""
    run = lab.arms["lobster"]
    before, after = run.past(0)[1], run.members
    cases = {"before training": (before, GREY), "after training": (after, BLUE)}
    found = {k: np.concatenate([np.concatenate(gradients(n, t)) for n, t in zip(nets, run.tasks, strict=True)])
             for k, (nets, _) in cases.items()}  # fmt: skip
    scale = lab.params.loss_scale
    task = run.tasks[0]
    q = {k: float(np.quantile(v, 0.999)) if len(v) else 0.0 for k, v in found.items()}
    title = (f"999 of 1,000 weights have |dL/dw| below {q['before training']:.1g} before training and below "
             f"{q['after training']:.1g} after it; the gate closes at {1 / scale:g}")  # fmt: skip
    return gate_picture({k: (v, cases[k][1]) for k, v in found.items()}, task, title)


def gate_picture(found: dict[str, tuple[np.ndarray, str]], task, title: str) -> go.Figure:
    """Histograms of gradient sizes on a log axis; gates of the losses times 1, 30 and 1,000 on the right-hand axis."""
    edges = np.linspace(-8, 1, 73)
    middle = 10 ** ((edges[1:] + edges[:-1]) / 2)
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    for name, (values, colour) in found.items():
        seen = values[values >= 1e-8].astype(float)
        count = np.histogram(np.log10(seen), edges)[0] / max(len(values), 1)
        below = 1 - len(seen) / max(len(values), 1)
        figure.add_scatter(x=middle, y=count, mode="lines", line=dict(color=colour, width=2, shape="hvh"), fill="tozeroy",
                           fillcolor=faded(colour, 0.25), name=f"{name} ({below:.0%} are below 1e-8)")  # fmt: skip
    x = np.logspace(-8, 1, 181)
    for factor, dash in ((1, "solid"), (30, "dash"), (1000, "dot")):
        gate = insensitivity(torch.from_numpy(x), task.p.loss_scale * factor).numpy()
        name = "gate" if factor == 1 else f"gate, loss x {factor}"
        figure.add_scatter(x=x, y=gate, mode="lines", line=dict(color=OTHERS[0], dash=dash, width=2), name=name, secondary_y=True)
    figure.update_xaxes(type="log", range=[-8, 1], dtick=1, exponentformat="power")
    style(figure, title, height=480, x="size of the derivative, |dL/dw|")
    figure.update_yaxes(title_text="share of the weights left [per eighth of a decade]", secondary_y=False, rangemode="tozero")
    return figure.update_yaxes(title_text="gate", range=[0, 1.05], dtick=0.25, secondary_y=True, showgrid=False)


def stages(lab) -> go.Figure:
    """Validation loss and weights left over the steps; every pruning of every seed as a triangle."""
    figure = make_subplots(1, 2, subplot_titles=("Validation loss", "Weights left"), horizontal_spacing=0.12)
    texts = []
    for arm in [a for a in ("magnitude", "l2_threshold", "lobster") if a in lab.arms]:
        loss, ratio, count = (frame(lab, arm, m) for m in ("validation_loss", "compression_now", "prunings"))
        step = loss.index.to_numpy()
        for column, values in ((1, loss.to_numpy()), (2, 100 / ratio.to_numpy())):
            at = dict(row=1, col=column)
            pen = dict(color=COLOURS[arm], width=3)
            figure.add_scatter(x=step, y=values.mean(1), mode="lines", line=pen, name=WORDS[arm], legendgroup=arm,
                               showlegend=column == 1, **at)  # fmt: skip
            marked = np.argwhere(np.diff(count.to_numpy(), axis=0) > 0)  # recorded one check after it happened
            figure.add_scatter(x=step[marked[:, 0]], y=values[marked[:, 0], marked[:, 1]], mode="markers", legendgroup=arm,
                               showlegend=False, name=f"{WORDS[arm]}, pruning",
                               marker=dict(symbol="triangle-down", size=8, color=faded(COLOURS[arm], 0.6)), **at)  # fmt: skip
        texts.append(f"{WORDS[arm]} {count.to_numpy()[-1].mean():.1f}")
    figure.update_yaxes(type="log", title_text="mean cross-entropy [nats]", col=1)
    figure.update_yaxes(type="log", title_text="weights left [%]", col=2)
    figure.update_yaxes(tickvals=TENTHS, ticktext=[f"{v:g}" for v in TENTHS])
    title = f"Learn, wait for a plateau, prune (triangles: one pruning of one seed), learn again. Prunings: {', '.join(texts)}"
    return style(figure, title, height=480, x="optimiser step")


def pixels(lab) -> go.Figure:
    """First-layer weights as pictures of the input, |w| summed over neurons, mean over seeds."""
    arms = [a for a in ("magnitude", "l2_threshold", "lobster", "dense") if a in lab.arms]
    sums, kept = [], {}
    for arm in arms:
        nets = lab.arms[arm].members
        sums.append(np.mean([picture(net.weights[0].detach().abs().sum(1)) for net in nets], 0))
        kept[arm] = np.mean([picture((net.weights[0] != 0).float().mean(1)) for net in nets], 0)
    pruned = [a for a in arms if a != "dense"]
    words = [f"{WORDS[a]}, sum of |w|" for a in arms] + [f"{WORDS[a]}, share left" for a in pruned]
    title = "First layer by pixel. Weights left on the outermost ring and elsewhere: " + ", ".join(
        f"{WORDS[a]} {rim(kept[a]):.1%} and {centre(kept[a]):.1%}" for a in ("l2_threshold", "lobster") if a in kept
    )
    return images(sums + [kept[a] for a in pruned], words, title=title, columns=len(arms), scale="Viridis")


def picture(values: torch.Tensor) -> np.ndarray:
    """A number for each input as a square picture (LeNet-5: for each place of the kernel)."""
    side = round(len(values) ** 0.5)
    return values.reshape(side, side).detach().cpu().numpy()


def rim(square: np.ndarray) -> float:
    """Mean over the outermost ring."""
    return float(np.concatenate([square[0], square[-1], square[1:-1, 0], square[1:-1, -1]]).mean())


def centre(square: np.ndarray) -> float:
    """Mean inside the outermost ring."""
    return float(square[1:-1, 1:-1].mean())


def loss_scale(lab) -> go.Figure:
    """LOBSTER minus L2 in log10 of the compression, against the factor on the loss inside the gate."""
    arms = {a: lab.params.loss_scale * f for a, f in (("lobster", 1), ("lobster_x30", 30), ("lobster_x1000", 1000)) if a in lab.arms}
    base, figure, texts = last(lab, "l2_threshold", "log10_compression"), go.Figure(), []
    x, mean, error = list(arms.values()), [], []
    for arm, scale in arms.items():
        gain = last(lab, arm, "log10_compression") - base
        low, high = interval(gain)
        figure.add_scatter(x=[scale] * len(gain), y=gain, mode="markers", showlegend=False, hoverinfo="y", name=WORDS[arm],
                           marker=dict(color=faded(BLUE, 0.45), size=8))  # fmt: skip
        mean.append(gain.mean())
        error.append((high - gain.mean(), gain.mean() - low))
        texts.append(f"{last(lab, arm, 'gate_spread').mean():.2g}")
    figure.add_scatter(x=x, y=mean, mode="lines+markers", line=dict(color=BLUE, width=3), marker_size=11, name="mean, 95 % interval",
                       error_y=dict(array=[e[0] for e in error], arrayminus=[e[1] for e in error], width=6))  # fmt: skip
    margin = next(c.margin for c in lab.study.claims if c.id == "sparser-than-l2")
    figure.add_hline(y=margin, line=dict(color=INK, dash="dash", width=1.5), annotation_text=f"margin {margin:+g}",
                     annotation_font_color=INK, annotation_position="top right")  # fmt: skip
    figure.add_hline(y=0, line=dict(color=INK, width=1))
    figure.update_xaxes(type="log", range=[np.log10(x[0]) - 0.4, np.log10(x[-1]) + 0.9], tickvals=x, ticktext=[f"{v:g}" for v in x])
    title = f"LOBSTER minus L2 when the loss in the gate is scaled up: spread of the gate {', '.join(texts)}"
    return style(figure, title, height=440, x="factor on the loss inside the gate", y="difference in log10(compression ratio)")


# ---- live views: one net of any arm


def first_layer(net, params) -> go.Figure:
    """First-layer weights as a picture of the input, |w| summed over neurons."""
    title = f"Sum of |w| that leave each pixel; outermost ring {rim(picture((net.weights[0] != 0).float().mean(1))):.0%} left"
    return images([picture(net.weights[0].detach().abs().sum(1))], [""], title=title, columns=1, scale="Viridis").update_layout(height=560)


def gradient_view(net, params) -> go.Figure:
    """Histogram of |dL/dw| on images of seed 0, with the gate over it."""
    task = study.Literal(params).bind(0)
    values = np.concatenate(gradients(net, task))
    title = f"Nine of ten weights have |dL/dw| below {np.quantile(values, 0.9) if len(values) else 0:.1g}"
    return gate_picture({"now": (values, BLUE)}, task, title)


def survivors(net, params, limit: int = 6000) -> go.Figure:
    """Weights of each layer that are left as dots in its matrix, those of the last pruning in red (thinned to `limit`)."""
    count = len(net.weights)
    figure = make_subplots(1, count, subplot_titles=[f"{w.shape[0]} to {w.shape[1]}" for w in net.weights])
    now = int(net.prunings)
    for i, w in enumerate(net.weights):
        pinned = net.get_buffer(f"pinned_{i}").cpu()
        fresh = (pinned == now) & torch.tensor(now > 0)
        for name, mask, colour in (("left", w.detach().cpu() != 0, BLUE), ("pinned last", fresh, RED)):
            places = mask.nonzero()
            places = places[:: max(1, len(places) // limit)]
            figure.add_scattergl(x=places[:, 1].numpy(), y=places[:, 0].numpy(), mode="markers", name=name, legendgroup=name,
                                 marker=dict(size=3, color=colour), showlegend=i == 0, row=1, col=i + 1)  # fmt: skip
        figure.update_xaxes(title_text="output unit", range=[-1, w.shape[1]], row=1, col=i + 1)
        figure.update_yaxes(title_text="input" if i == 0 else None, range=[w.shape[0], -1], row=1, col=i + 1)
    return style(figure, f"{net.left:,} of {net.size:,} weights are left after {now} prunings", height=480)


def answer(net, params, value) -> dict[str, float]:
    """The share of each class that a network gives to a drawing."""
    side = round(study.Dense(params).bind(0).x.shape[1] ** 0.5)
    shares = net(drawn(value, side).flatten()[None]).softmax(1)[0]
    return {str(k): float(share) for k, share in enumerate(shares)}
