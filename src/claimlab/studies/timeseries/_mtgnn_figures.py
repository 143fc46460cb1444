"""Figures and live views of the study `mtgnn`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, colours, faded, style
from claimlab.parts.validated import best
from claimlab.studies.timeseries import mtgnn as study

ARMS = ["last_hop", "undirected", "true_graph", "var_ridge", "seasonal_naive", "simulator", "no_graph", "mtgnn"]
COLOURS = colours(ARMS, "no_graph", "mtgnn")
SCALE = [[0, "rgba(128,128,128,0.12)"], [1, BLUE]]


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow; matrices and forecasts are those of its first seed."""
    found = {}
    if "mtgnn" in lab.arms:
        found = {"graphs": graphs(lab), "training": training(lab)}
    if {"mtgnn", "no_graph"} <= set(lab.arms):
        found["forecasts"] = forecasts(lab)
    return found | {"horizons": by_horizon(lab)}


def _last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed [S]; empty where the arm records no such metric."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


def _matrix(values: np.ndarray) -> go.Heatmap:
    labels = np.arange(1, len(values) + 1)
    return go.Heatmap(z=values, x=labels, y=labels, zmin=0, zmax=1, colorscale=SCALE, colorbar=dict(title="A", len=0.8),
                      hovertemplate="row %{y}, column %{x}: %{z:.2f}<extra></extra>")  # fmt: skip


def _pair(learned: np.ndarray, truth: np.ndarray | None, title: str) -> go.Figure:
    known = truth is not None
    figure = make_subplots(1, 1 + known, horizontal_spacing=0.12,
                           subplot_titles=["Learned A", "True graph"][: 1 + known])  # fmt: skip
    figure.add_trace(_matrix(learned), row=1, col=1)
    if known:
        figure.add_trace(_matrix(truth), row=1, col=2)
    figure.update_xaxes(title_text="series that is read (driver)", constrain="domain")
    figure.update_yaxes(title_text="series that reads", autorange="reversed", col=1)
    for k in range(1 + known):
        figure.update_yaxes(autorange="reversed", scaleanchor=f"x{k + 1 if k else ''}", constrain="domain", col=k + 1)
    return style(figure, title, height=440)


def _facts(learned: np.ndarray, truth: np.ndarray | None) -> str:
    edges = int((learned > 0).sum())
    if truth is None:
        return f"{edges} edges; nobody knows the true graph"
    found = study.edges_found(torch.from_numpy(learned), truth)
    return f"{edges} edges, AUC {found['edge_auc']:.2f} without and {found['directed_auc']:.2f} with direction"


def graphs(lab) -> go.Figure:
    """Learned and true adjacency, directions kept."""
    net, task = lab.arms["mtgnn"].members[0], lab.arms["mtgnn"].tasks[0]
    with torch.no_grad():
        learned = best(net).adjacency(lab.params).cpu().numpy()
    title = f"Seed {lab.seeds[0]}: {_facts(learned, task.series.graph)}"
    if len(found := _last(lab, "mtgnn", "edge_auc")):
        title += f". Over all seeds the AUC without direction is {found.mean():.2f} (0.5 is chance)"
    return _pair(learned, task.series.graph, title)


def forecasts(lab) -> go.Figure:
    """Three test series: the truth, and what was forecast `horizon` steps before, with the graph and without."""
    both = {arm: (lab.arms[arm].members[0], lab.arms[arm].tasks[0]) for arm in ("no_graph", "mtgnn")}
    one = both["mtgnn"][1].series
    k, starts = one.horizons.index(lab.params.horizon), one.test[:96]
    with torch.no_grad():
        found = {arm: task.forecast(best(net), starts) for arm, (net, task) in both.items()}
    truth = found["mtgnn"][0][..., k]
    shown = np.linspace(0, truth.shape[1] - 1, min(3, truth.shape[1])).round().astype(int)
    figure = make_subplots(len(shown), 1, shared_xaxes=True, vertical_spacing=0.06, row_titles=[f"series {i + 1}" for i in shown])
    when = np.arange(len(truth))
    for row, i in enumerate(shown, 1):
        first = row == 1
        figure.add_scatter(x=when, y=truth[:, i].numpy(), mode="lines", line=dict(color="#000000", width=1), name="truth",
                           opacity=0.6, showlegend=first, legendgroup="truth", row=row, col=1)  # fmt: skip
        for arm, (_, guess) in found.items():
            pen = dict(color=COLOURS[arm], width=2, dash="solid" if arm == "mtgnn" else "dot")
            figure.add_scatter(x=when, y=guess[:, i, k].numpy(), mode="lines", line=pen, name=arm, showlegend=first,
                               legendgroup=arm, row=row, col=1)  # fmt: skip
    figure.update_xaxes(title_text="moment in the test part [steps]", row=len(shown))
    figure.update_yaxes(title_text="value [sd]")
    apart = (found["mtgnn"][1] - found["no_graph"][1])[..., k].square().mean().sqrt()
    return style(figure, f"{lab.params.horizon} steps ahead (seed {lab.seeds[0]}): with and without the graph the forecasts lie "
                 f"{apart:.2f} standard deviations apart, the truth {(truth - found['mtgnn'][1][..., k]).square().mean().sqrt():.2f} "
                 "from mtgnn", height=560)  # fmt: skip


def by_horizon(lab) -> go.Figure:
    """RSE against the horizon, mean and 95 % interval over the seeds."""
    steps = study.horizons(lab.params)
    figure, means = go.Figure(), {}
    for arm in [a for a in ARMS if a in lab.arms]:
        values = np.array([_last(lab, arm, f"rse_{h}") for h in steps])
        if not values.size:
            continue
        means[arm], strong = values.mean(1), arm in ("mtgnn", "no_graph", "var_ridge")
        if strong and values.shape[1] > 1:
            low, high = np.array([interval(row) for row in values]).T
            figure.add_scatter(x=[*steps, *steps[::-1]], y=np.r_[high, low[::-1]], mode="lines", line_width=0, fill="toself",
                               fillcolor=faded(COLOURS[arm], 0.15), hoverinfo="skip", showlegend=False)  # fmt: skip
        pen = dict(color=COLOURS[arm], width=2.5 if strong else 1.5, dash="solid" if strong else "dot")
        figure.add_scatter(x=steps, y=means[arm], mode="lines+markers", line=pen, name=arm)
    at = steps.index(lab.params.horizon)
    low = min((arm for arm in means if arm != "simulator"), key=lambda arm: means[arm][at])
    figure.add_vline(x=lab.params.horizon, line=dict(dash="dash", width=1), annotation_text="judged", annotation_position="bottom right")
    if "seasonal_naive" in means and len(means) > 1:  # far above the rest: its line would press the others together
        rest = np.concatenate([v for arm, v in means.items() if arm != "seasonal_naive"])
        figure.update_yaxes(range=[rest.min() - 0.06, rest.max() + 0.06])
        figure.for_each_trace(lambda t: t.update(name=f"seasonal_naive ({means['seasonal_naive'][at]:.2f}, above the frame)"),
                              selector=dict(name="seasonal_naive"))  # fmt: skip
    title = f"At {lab.params.horizon} steps {low} errs least ({means[low][at]:.3f})"
    if {"mtgnn", "no_graph"} <= set(means):
        title += f"; mtgnn {means['mtgnn'][at]:.3f}, without the graph {means['no_graph'][at]:.3f}"
    if "simulator" in means:
        title += f"; with the law known {means['simulator'][at]:.3f}"
    return style(figure, title, x="horizon [steps ahead]", y="RSE [1: no better than the mean]", height=480)


def training(lab) -> go.Figure:
    """The learned graph at four moments of training, with a slider."""
    run = lab.arms["mtgnn"]
    one, shots, known = run.tasks[0].series, {}, sorted(run.history)
    for part in (0, 1 / 3, 2 / 3, 1):
        step, members = run.past(known[round(part * (len(known) - 1))])
        with torch.no_grad():
            shots[step] = members[0].adjacency(lab.params).cpu().numpy()
    labels = {step: f"Step {step}: {_facts(a, one.graph)}" for step, a in shots.items()}
    first, start, end = min(shots), shots[min(shots)], shots[max(shots)]
    figure = _pair(start, one.graph, "")
    figure.frames = [go.Frame(name=str(step), data=[_matrix(a)], traces=[0],
                              layout=dict(annotations=[dict(text=labels[step])])) for step, a in shots.items()]  # fmt: skip
    moves = [dict(method="animate", label=str(step), args=[[str(step)], dict(mode="immediate", frame=dict(duration=0, redraw=True))])
             for step in shots]  # fmt: skip
    changed = int(((start > 0) != (end > 0)).sum())
    style(figure, f"Between the first and the last step {changed} of {start.size - len(start)} places gain or lose an edge "
          f"(seed {lab.seeds[0]})", height=520)  # fmt: skip
    figure.layout.annotations[0].text = labels[first]
    figure.update_annotations(font_size=11)
    figure.update_layout(sliders=[dict(steps=moves, currentvalue=dict(prefix="optimiser step "), pad=dict(t=40), x=0, len=1)],
                         margin_b=130)  # fmt: skip
    return figure


# ---- live views, on the data of seed 0


def graph_view(net, params) -> go.Figure:
    """The adjacency that a network reads now, beside the true one."""
    truth = study.load(0, params).graph
    with torch.no_grad():
        a = net.adjacency(params)
    if a is None:
        return style(go.Figure(), "This arm has no graph")
    return _pair(a.cpu().numpy(), truth, f"{_facts(a.cpu().numpy(), truth)} (true graph: seed 0)")


def forecast_view(net, params) -> go.Figure:
    """Four series at one moment of the test part: their past, what came, and what the network says comes."""
    one = study.load(0, params)
    past, future = one.windows(one.test[:1])
    with torch.no_grad():
        guess = net(past.to(net.scale.device), params).cpu()
    shown = range(min(4, past.shape[1]))
    figure = make_subplots(2, 2, shared_xaxes=True, subplot_titles=[f"series {i + 1}" for i in shown], vertical_spacing=0.12)
    before, ahead = np.arange(1 - past.shape[-1], 1), list(one.horizons)
    for i in shown:
        at = dict(row=i // 2 + 1, col=i % 2 + 1)
        figure.add_scatter(x=before, y=past[0, i].numpy(), mode="lines", line=dict(color=GREY), name="past", showlegend=i == 0, **at)
        figure.add_scatter(x=ahead, y=future[0, i].numpy(), mode="lines+markers", line=dict(color="#000000", width=1), name="truth",
                           showlegend=i == 0, **at)  # fmt: skip
        figure.add_scatter(x=ahead, y=guess[0, i].numpy(), mode="lines+markers", line=dict(color=BLUE), name="forecast",
                           showlegend=i == 0, **at)  # fmt: skip
    figure.update_xaxes(title_text="steps from now", row=2).update_yaxes(title_text="value [sd]", col=1)
    return style(figure, "Four series of the test part: past, future and forecast (data of seed 0)", height=460)
