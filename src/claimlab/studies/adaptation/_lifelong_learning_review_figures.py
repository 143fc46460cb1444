"""Figures and live views of the study of lifelong learning."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.adaptation._lifelong_learning_review_arms import SHORT
from claimlab.studies.adaptation._lifelong_learning_review_data import STREAMS, stream

METHODS = ["finetune", "ewc", "lwf", "generative_replay", "gdm", "replay", "progressive", "nearest_mean", "joint"]
NAMES = {"finetune": "plain training", "ewc": "EWC", "lwf": "LwF", "generative_replay": "generative replay", "gdm": "growing memory",
         "replay": "rehearsal", "progressive": "progressive", "nearest_mean": "nearest mean", "joint": "joint training"}  # fmt: skip
COLOURS = colours(METHODS, "finetune", "ewc")
SAID = {"permuted": "permuted inputs", "new_classes": "new classes", "new_tasks": "new tasks"}
TASKS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800", "#7F5FA8", "#A6761D", "#888888"]


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"staircase of forgetting": staircase(lab), "measures": measures(lab), "price of memory": price(lab)}
    if {"lambda_sweep", "memory_sweep"} <= set(lab.arms):
        found["stability against plasticity"] = dilemma(lab)
    if {"finetune", "ewc"} <= set(lab.arms):
        found["distance from the old optimum"] = distance(lab)
    return found


# ---- helpers


def _shown(lab) -> list[str]:
    return [arm for arm in METHODS if arm in lab.arms]


def _last(lab, arm: str, metric: str) -> np.ndarray:
    """Values after the last step, one a seed; empty where the arm has none."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows[rows.step == rows.step.max()].sort_values("seed")["value"].to_numpy()


def _mean(lab, arm: str, metric: str) -> float:
    values = _last(lab, arm, metric)
    return float(values.mean()) if len(values) else float("nan")


def _curve(lab, arm: str, metric: str):
    """A row a step, a column a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


# ---- figures of the experiment


def staircase(lab) -> go.Figure:
    """Accuracy on each task over training, a panel a method, on the stream of the knob."""
    which = lab.params.stream
    shown = [arm for arm in _shown(lab) if arm != "joint" and len(_curve(lab, arm, f"{which}: task 1"))]
    columns = min(4, len(shown))
    figure = make_subplots(-(-len(shown) // columns), columns, subplot_titles=[NAMES[arm] for arm in shown], shared_yaxes=True,
                           horizontal_spacing=0.03, vertical_spacing=0.17)  # fmt: skip
    for k, arm in enumerate(shown):
        at = dict(row=k // columns + 1, col=k % columns + 1)
        for j in range(lab.params.tasks):
            values = _curve(lab, arm, f"{which}: task {j + 1}").mean(axis=1)
            figure.add_scatter(x=values.index, y=100 * values, mode="lines" if len(values) > 1 else "markers", name=f"task {j + 1}",
                               line=dict(color=TASKS[j % len(TASKS)], width=2), marker_color=TASKS[j % len(TASKS)],
                               legendgroup=str(j), showlegend=not k, **at)  # fmt: skip
    ends = {arm: 100 * _mean(lab, arm, f"final_accuracy_{SHORT[which]}") for arm in shown}
    best = max(ends, key=ends.get)
    title = f"The stream of {SAID[which]}: plain training ends at {ends['finetune']:.0f} % over all tasks, the best ({NAMES[best]}) at "
    style(figure, title + f"{ends[best]:.0f} %", height=560)
    figure.update_yaxes(range=[-3, 103], dtick=25).update_yaxes(title_text="accuracy [%]", col=1)
    figure.update_xaxes(title_text="optimiser step", row=-(-len(shown) // columns))
    return figure


def measures(lab) -> go.Figure:
    """Omega_base, Omega_new and Omega_all of all methods and streams."""
    shown = _shown(lab)
    columns = [(kind, which) for which in STREAMS for kind in ("base", "new", "all")]
    z = np.array([[_mean(lab, arm, f"omega_{kind}_{SHORT[which]}") for kind, which in columns] for arm in shown])
    text = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in z]
    names = [[SAID[which] for _, which in columns], [f"Ω {kind}" for kind, _ in columns]]
    figure = go.Figure(go.Heatmap(z=z, x=names, y=[NAMES[arm] for arm in shown], text=text, texttemplate="%{text}", zmin=0, zmax=1,
                                  colorscale="Cividis", colorbar=dict(title="Ω", thickness=12), hoverongaps=False))  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    first = {}
    for which in STREAMS:
        scores = {arm: _mean(lab, arm, f"omega_all_{SHORT[which]}") for arm in shown if arm not in ("joint", "nearest_mean")}
        first[which] = NAMES[max((arm for arm in scores if not np.isnan(scores[arm])), key=scores.get)]
    title = "Best network by Ω all: " + ", ".join(f"{first[which]} ({SAID[which]})" for which in STREAMS)
    return style(figure, title, x="", y="", height=470).update_layout(margin_b=64)


def price(lab) -> go.Figure:
    """Numbers kept at the end of the stream against Omega_all, a panel a stream."""
    figure = make_subplots(1, 3, subplot_titles=[SAID[s] for s in STREAMS], shared_yaxes=True, horizontal_spacing=0.03)
    named = set()
    for column, which in enumerate(STREAMS, 1):
        for arm in _shown(lab):
            size, omega = _mean(lab, arm, f"stored_{SHORT[which]}"), _last(lab, arm, f"omega_all_{SHORT[which]}")
            if not len(omega):
                continue
            low, high = interval(omega) if len(omega) > 1 else (omega[0], omega[0])
            bar = dict(array=[high - omega.mean()], arrayminus=[omega.mean() - low], color=COLOURS[arm], thickness=1.2)
            figure.add_scatter(x=[size], y=[omega.mean()], mode="markers", marker=dict(color=COLOURS[arm], size=11), error_y=bar,
                               name=NAMES[arm], legendgroup=arm, showlegend=arm not in named, row=1, col=column)  # fmt: skip
            named.add(arm)
    ticks = {1e3: "1k", 1e4: "10k", 1e5: "100k", 1e6: "1M", 1e7: "10M"}
    figure.update_xaxes(type="log", title_text="numbers kept", tickvals=list(ticks), ticktext=list(ticks.values()))
    figure.update_yaxes(title_text="Ω all (joint training is 1)", col=1)
    figure.add_hline(y=1, line=dict(color=INK, dash="dot", width=1))
    plain = _mean(lab, "finetune", "stored_classes")
    sizes = {arm: _mean(lab, arm, "stored_classes") / plain for arm in ("replay", "gdm") if arm in lab.arms}
    kept = " and ".join(f"{NAMES[arm]} {size:.1f}" for arm, size in sizes.items())
    return style(figure, f"What is kept against what is known, with new classes: {kept} times the numbers of plain training", height=470)


def dilemma(lab) -> go.Figure:
    """Accuracy on new against old tasks while lambda, or the size of the rehearsal memory, is swept; a panel a stream."""
    streams = lab.arms["lambda_sweep"].streams
    figure = make_subplots(1, len(streams), subplot_titles=[SAID[which] for which in streams], shared_yaxes=True, horizontal_spacing=0.04)
    swept, said = {"lambda_sweep": ("EWC, labelled with λ", BLUE, "left"),
                   "memory_sweep": ("rehearsal, labelled with examples", OTHERS[3], "right")}, []  # fmt: skip
    for column, which in enumerate(streams, 1):
        best = []
        for arm, (name, colour, side) in swept.items():
            settings, at = [f"{value:g}" for value in lab.study.module.ARMS[arm].grid], dict(row=1, col=column)
            x, y = ([100 * _last(lab, arm, f"{which}: {s}: {part}") for s in settings] for part in ("new", "old"))
            for k in range(len(x[0])):
                figure.add_scatter(x=[v[k] for v in x], y=[v[k] for v in y], mode="lines", line=dict(color=faded(colour, 0.35), width=1),
                                   showlegend=False, hoverinfo="skip", **at)  # fmt: skip
            x, y = ([float(v.mean()) for v in part] for part in (x, y))
            pen = dict(line=dict(color=colour, width=2.5), marker=dict(color=colour, size=9))
            figure.add_scatter(x=x, y=y, mode="lines+markers+text", text=_apart(settings, x, y), textposition=f"middle {side}",
                               name=name, showlegend=column == 1, **pen, **at)  # fmt: skip
            best.append(max(min(pair) for pair in zip(x, y, strict=True)))
        said.append(f"{best[0]:.0f} % for EWC and {best[1]:.0f} % for rehearsal ({SAID[which]})")
    style(figure, "The worse of old and new accuracy, at the best setting: " + ", ".join(said), y="old tasks at the end [%]", height=480)
    figure.update_xaxes(range=[-5, 138], tickvals=[0, 25, 50, 75, 100], title_text="each task right after it was learnt [%]")
    return figure.update_yaxes(range=[-5, 108]).update_yaxes(title_text="", col=2)


def _apart(labels: list[str], x: list[float], y: list[float]) -> list[str]:
    """Labels of points, where those that would lie on one another stand as one: `1 to 100`."""
    found, first = [*labels[:1], *[""] * (len(labels) - 1)], 0
    for k in range(1, len(labels)):
        if abs(x[k] - x[first]) > 14 or abs(y[k] - y[first]) > 6:
            first = k
        else:
            found[k - 1] = ""
        found[k] = labels[k] if k == first else f"{labels[first]} to {labels[k]}"
    return [f"  {label}  " if label else "" for label in found]


def distance(lab) -> go.Figure:
    """How far weights have moved from the optimum of task 1, along high and along low Fisher information."""
    figure, which, ends = go.Figure(), lab.params.stream, {}
    for arm in ("finetune", "ewc"):
        for side, dash, words in (("high", "solid", "the tenth with most information"), ("low", "dot", "the half with least")):
            values = _curve(lab, arm, f"{which}: moved_{side}")
            middle = values.median(axis=1)  # distances differ by powers of ten between seeds
            ends[arm, side] = middle.iloc[-1]
            for seed in values:
                figure.add_scatter(x=values.index, y=values[seed], mode="lines", line=dict(color=COLOURS[arm], width=0.8, dash=dash),
                                   opacity=0.3, showlegend=False, hoverinfo="skip")  # fmt: skip
            figure.add_scatter(x=middle.index, y=middle, mode="lines+markers", line=dict(color=COLOURS[arm], width=3, dash=dash),
                               name=f"{NAMES[arm]}, {words}")  # fmt: skip
    shares = [ends["ewc", side] / ends["finetune", side] for side in ("high", "low")]
    title = (f"Stream of {SAID[which]}: EWC moves important weights {shares[0]:.2f} times as far as plain training does, unimportant ones "
             f"{shares[1]:.2f} times")  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return style(figure, title, x="optimiser step", y="distance from θ* of task 1 (rms)", height=460)


# ---- live views: one network as it is now. It carries its seed and stream, from which its data follow


def _now(net, params) -> tuple[int, object]:
    """How many tasks it has begun, and its stream."""
    finished = int(torch.isfinite(net.scores[1:, 0]).sum())
    return min(net.tasks, finished + (type(net).__name__ != "Means")), stream(net.case.source(params))


@torch.no_grad()
def staircase_now(net, params) -> go.Figure:
    """Accuracy on every task so far: a row a task, a column after each task, and now."""
    count, data = _now(net, params)
    now = [(net.logits(x, j).argmax(1) == y).double().mean().item() for j in range(max(1, count)) for x, y in [data.test(j)]]
    z = np.full((net.tasks, net.tasks + 1), np.nan)
    z[:, :-1] = np.where(np.tri(net.tasks).T > 0, net.scores[1:].T.cpu().numpy(), np.nan)
    z[: len(now), -1] = now
    text = [["" if np.isnan(v) else f"{100 * v:.0f}" for v in row] for row in z]
    names = [f"after {t + 1}" for t in range(net.tasks)] + ["now"]
    figure = go.Figure(go.Heatmap(z=100 * z, x=names, y=[f"task {j + 1}" for j in range(net.tasks)], text=text, texttemplate="%{text}",
                                  zmin=0, zmax=100, colorscale="Cividis", colorbar_title="%", hoverongaps=False))  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    sizes = data.sizes.numpy()[: len(now)]
    return style(figure, f"{SAID[net.case.stream].capitalize()}: {100 * np.average(now, weights=sizes):.0f} % right over the tasks so far",
                 x="moment", y="")  # fmt: skip


@torch.no_grad()
def features_now(net, params) -> go.Figure:
    """Last hidden layer on two principal components: test examples of the newest task against those of earlier ones."""
    count, data = _now(net, params)
    count = max(1, count)
    parts = [data.test(j)[0][: 300 // count] for j in range(count)]
    features = net.features(torch.cat(parts)).double()
    features = features - features.mean(0)
    _, values, axes = torch.linalg.svd(features, full_matrices=False)
    places = (features @ axes[:2].T).cpu().numpy()
    figure, split = go.Figure(), len(places) - len(parts[-1])
    for name, part, colour in (("earlier tasks", places[:split], GREY), (f"task {count}", places[split:], BLUE)):
        if len(part):
            figure.add_scatter(x=part[:, 0], y=part[:, 1], mode="markers", marker=dict(color=faded(colour, 0.6), size=6), name=name)
    share = float(values[:2].square().sum() / values.square().sum().clamp_min(1e-12))
    return style(figure, f"Features of old and new tasks: two components hold {share:.0%} of the variance", x="first component",
                 y="second component")  # fmt: skip
