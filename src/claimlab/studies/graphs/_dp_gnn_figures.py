"""Figures and live views of the study `dp-gnn`: accuracy for a budget, what a removal changes, and what a network sees."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy.stats import hypergeom

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.graphs import _dp_gnn_method as method
from claimlab.studies.graphs._dp_gnn_data import Graph, block_model, both_ways, graphs, own_path

COLOURS = colours(["dp_mlp", "dp_gnn", "no_amplification", "smoothed_linear", "naive_dpsgd", "mlp", "gnn"], "dp_mlp", "dp_gnn")
NAMES = {"dp_gnn": "DP-GNN", "dp_mlp": "DP-MLP", "no_amplification": "DP-GNN, no amplification", "mlp": "MLP, not private",
         "smoothed_linear": "private logistic regression, averaged x", "gnn": "GNN, not private"}  # fmt: skip
CLASS_COLOURS = [BLUE, *OTHERS]
SEEN = 400  # nodes of the graph in a view


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"amplification": amplification(lab.params, _nodes(lab))}
    if "dp_gnn" in lab.arms:
        found = {"removal": removal(lab)} | found
        if {"by_epsilon", "dp_mlp", "mlp", "gnn"} <= set(lab.arms):
            found["accuracy over epsilon"] = over_epsilon(lab)
        if {"by_degree", "dp_mlp"} <= set(lab.arms):
            found["epsilon over K"] = over_degree(lab)
        if {"by_homophily", "dp_mlp", "mlp"} <= set(lab.arms):
            found["accuracy over homophily"] = over_homophily(lab)
    return found


def _nodes(lab) -> int:
    p = lab.params
    return len(graphs(lab.seeds[0], p.nodes, p.homophily, p.feature_signal, own_path())[0].y)


def _last(lab, arm: str, metric: str = "test_accuracy") -> np.ndarray:
    """The last value of each seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed").value.last().to_numpy()


def _sweep(lab, arm: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Settings [k] of a sweep and a metric there, [k, seeds]."""
    wide = [lab.table[(lab.table.arm == arm) & (lab.table.metric == m)].pivot(index="step", columns="seed", values="value").to_numpy()
            for m in ("at", metric)]  # fmt: skip
    return wide[0].mean(1), wide[1]


def _add_level(figure, lab, arm: str, x: tuple[float, float], dash: str = "dash", **at) -> None:
    """A horizontal line at the mean accuracy of an arm that the axis does not touch."""
    mean = _last(lab, arm).mean()
    figure.add_scatter(x=list(x), y=[mean, mean], mode="lines", line=dict(color=COLOURS[arm], dash=dash, width=2),
                       name=NAMES[arm], **at)  # fmt: skip


def _add_seeds(figure, x, values: np.ndarray, arm: str, name: str, **at) -> None:
    """The mean over seeds as a line with markers, each seed as a small dot."""
    figure.add_scatter(x=x, y=values.mean(1), mode="lines+markers", line=dict(color=COLOURS[arm], width=2.5), marker_size=7,
                       name=name, legendgroup=name, **at)  # fmt: skip
    figure.add_scatter(x=np.repeat(x, values.shape[1]), y=values.ravel(), mode="markers", marker=dict(color=COLOURS[arm], size=4),
                       opacity=0.6, showlegend=False, hoverinfo="skip", legendgroup=name, **at)  # fmt: skip


# ---- figures


def over_epsilon(lab) -> go.Figure:
    """Accuracy of the private arms at several budgets; the point with an interval is the run that is judged."""
    figure, found = go.Figure(), {}
    here = float(np.exp(_last(lab, "dp_gnn", "log_epsilon")[0]))
    for arm in ("dp_mlp", "no_amplification", "smoothed_linear", "dp_gnn"):
        x, values = _sweep(lab, "by_epsilon", f"test_accuracy_{arm}")
        found[arm] = values.mean(1)
        _add_seeds(figure, x, values, arm, NAMES[arm])
        if arm in lab.arms:
            _add_point(figure, lab, arm, here)
    if "naive_dpsgd" in lab.arms:
        proved = float(np.exp(_last(lab, "naive_dpsgd", "log_epsilon_proved")[0]))
        _add_point(figure, lab, "naive_dpsgd", here, "circle-open", f"GNN with ordinary DP-SGD: proved is ε = {proved:,.0f} only")
    edges = (min(x[0], here), max(x[-1], here))
    _add_level(figure, lab, "mlp", edges, "dot")
    _add_level(figure, lab, "gnn", edges)
    paying = [f"{e:g}" for e in x[found["dp_gnn"] > found["dp_mlp"]]]
    title = "Of the budgets tried, DP-GNN is more accurate than the private MLP at " + (
        f"ε = {', '.join(paying)}" if paying else "none")
    ticks = [0.3, 1, 3, 6, 12, 30, 100, 300]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return style(figure, title, x=f"privacy budget ε (δ = 1 / {10 * _nodes(lab):,})", y="accuracy [share of test nodes]", height=560)


def _add_point(figure, lab, arm: str, x: float, symbol: str = "diamond", name: str = "") -> None:
    values = _last(lab, arm)
    low, high = interval(values)
    mean = values.mean()
    figure.add_scatter(x=[x], y=[mean], mode="markers", showlegend=bool(name),
                       marker=dict(color=COLOURS[arm], size=20 if name else 11, symbol=symbol, line_width=2.5 if name else 0),
                       error_y=dict(array=[high - mean], arrayminus=[mean - low], color=COLOURS[arm]), name=name or NAMES[arm],
                       legendgroup=name or NAMES[arm])  # fmt: skip


def removal(lab) -> go.Figure:
    """How far the clipped sum moves when one node is struck out, in units of C, at the end of training."""
    run, clip = lab.arms["dp_gnn"], lab.params.clip
    values, high = [], []
    for net, task in zip(run.members, run.tasks, strict=True):
        with torch.no_grad():
            values.append(task.changes(net).cpu().numpy() / clip)
        degree = task.world.degree[task.removal[0].cpu().numpy()]
        high.append(degree >= np.sort(task.world.degree)[-max(1, lab.params.removals // 2)])
    values, high, bound = np.concatenate(values), np.concatenate(high), 2 * run.tasks[0].count
    figure, bins = go.Figure(), dict(start=-0.05, end=bound + 0.05, size=0.1)
    for chosen, name, colour in ((~high, "nodes drawn at random", GREY), (high, "nodes of the highest degree", BLUE)):
        figure.add_histogram(x=values[chosen], xbins=bins, name=name, marker_color=faded(colour, 0.75))
    for at, text, side in ((1, "C: ordinary DP-SGD", "right"), (bound, "2 C N(K, r): the lemma", "left")):
        figure.add_vline(x=at, line=dict(color=OTHERS[3], dash="dash", width=2), annotation_text=text, annotation_position=f"top {side}")
    figure.update_layout(barmode="stack").update_xaxes(range=[-0.1, bound * 1.04])
    title = f"{(values > 1.001).mean():.0%} of the removals move the sum by more than C; the farthest {values.max():.2f} C"
    return style(figure, title, x="change of the clipped sum of gradients [units of C]", y="removals (all seeds)", height=420)


def over_degree(lab) -> go.Figure:
    """What K costs and brings: epsilon at the knob's noise, signal and noise at equal epsilon, accuracy at equal epsilon."""
    p, n = lab.params, _nodes(lab)
    k, accuracy = _sweep(lab, "by_degree", "test_accuracy_dp_gnn")
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.07, subplot_titles=(
        f"ε at noise λ = {p.noise:g}", "Mean gradient of a step, and its noise, at equal ε", "Accuracy at equal ε"))  # fmt: skip
    grid = np.arange(0, 11)
    costs = [method.epsilon(n, method.occurrences(int(one), p.hops), p.batch, p.noise, p.steps) for one in grid]
    figure.add_scatter(x=grid, y=costs, mode="lines+markers", line_color=INK, name="ε", showlegend=False, row=1, col=1)
    for metric, colour, name in (("signal", OTHERS[1], "length of the clipped mean gradient"), ("noise", OTHERS[3], "length of the noise")):
        values = _sweep(lab, "by_degree", f"{metric}_dp_gnn")[1].mean(1)
        figure.add_scatter(x=k, y=values, mode="lines+markers", line_color=colour, name=name, row=2, col=1)
    _add_seeds(figure, k, accuracy, "dp_gnn", NAMES["dp_gnn"], row=3, col=1)
    _add_level(figure, lab, "dp_mlp", (0, 10), row=3, col=1)
    figure.update_yaxes(title_text="ε", row=1, col=1, rangemode="tozero")
    figure.update_yaxes(title_text="length", rangemode="tozero", row=2, col=1)
    figure.update_yaxes(title_text="share of test nodes", row=3, col=1)
    figure.update_xaxes(title_text="K, readers that a node may have", row=3, col=1)
    best = int(k[accuracy.mean(1).argmax()])
    return style(figure, f"At the same ε the private graph network is most accurate at K = {best}, of the five tried", height=720)


def amplification(p, nodes: int) -> go.Figure:
    """How many of a node's terms fall in a batch, and what that saves at every order."""
    count = method.occurrences(p.max_degree, p.hops)
    rho = np.arange(min(count, 12) + 1)
    chance = hypergeom(nodes, min(count, nodes), p.batch).pmf(rho)
    figure = make_subplots(1, 2, horizontal_spacing=0.14, subplot_titles=("Terms of one node in a batch", f"Loss after {p.steps} steps"))
    figure.add_bar(x=rho, y=chance, marker_color=BLUE, showlegend=False, name="chance", row=1, col=1)
    show = method.ORDERS <= 32
    for name, batch, colour in (("all terms in every batch", nodes, GREY), ("hypergeometric", p.batch, BLUE)):
        loss = p.steps * method.renyi(nodes, count, batch, p.noise)[show]
        figure.add_scatter(x=method.ORDERS[show], y=loss, line=dict(color=colour, width=2.5), name=name, row=1, col=2)
    both = [method.epsilon(nodes, count, batch, p.noise, p.steps) for batch in (p.batch, nodes)]
    figure.update_xaxes(title_text="ρ, terms in the batch", dtick=1, row=1, col=1)
    figure.update_xaxes(title_text="order a", row=1, col=2)
    figure.update_yaxes(title_text="probability", row=1, col=1)
    figure.update_yaxes(title_text="T γ(a) [nats]", type="log", exponentformat="power", dtick=1, row=1, col=2)
    title = (f"With probability {chance[0]:.2f} none of the {count} terms of a node is in the batch; counting this, ε is "
             f"{both[0]:.2f} and not {both[1]:.1f}")  # fmt: skip
    return style(figure, title, height=430)


def over_homophily(lab) -> go.Figure:
    """Accuracy over the share of same-class edges, at the run's epsilon."""
    x, values = _sweep(lab, "by_homophily", "test_accuracy_dp_gnn")
    figure = go.Figure()
    _add_seeds(figure, x, values, "dp_gnn", NAMES["dp_gnn"])
    _add_point(figure, lab, "dp_gnn", lab.params.homophily)
    for arm, dash in (("dp_mlp", "dash"), ("mlp", "dot")):
        _add_level(figure, lab, arm, (x[0], x[-1]), dash)
    below = values.mean(1) < _last(lab, "dp_mlp").mean()
    title = f"DP-GNN is {'below' if below.all() else 'above'} the private MLP at every homophily"
    if below.any() and not below.all():
        title = f"DP-GNN passes the private MLP between a homophily of {x[below].max():g} and {x[~below].min():g}"
    figure.update_yaxes(title_text="accuracy [share of test nodes]")
    return style(figure, title, x="share of edges inside a class (0.2: the graph says nothing)", height=460)


# ---- views: a graph that follows from the parameters alone, or the first test nodes of your own


@lru_cache(maxsize=8)
def _small(signal: float, homophily: float, path: str, count: int) -> Graph:
    if not path:
        return block_model(count, homophily, signal, 8.0 if count > 100 else 3.0, np.random.default_rng(40))
    _, test = graphs(0, 0, 0.0, 0.0, path)
    inside = test.edges[:, (test.edges < count).all(0)]
    return Graph(test.x[:count], test.y[:count], both_ways(*inside))


def _view(net, p, count: int):
    """The small graph, its tensors and the network's weights."""
    graph = _small(p.feature_signal, p.homophily, own_path(), count)
    w = {name: value.detach() for name, value in net.named().items()}
    return graph, torch.from_numpy(graph.x), torch.from_numpy(graph.y), w


@lru_cache(maxsize=8)
def _places(signal: float, homophily: float, path: str, count: int) -> np.ndarray:
    """Nodes in the plane, [n, 2]: neighbours attract, all others repel (Fruchterman, Reingold 1991)."""
    edges = _small(signal, homophily, path, count).edges
    at, near = np.random.default_rng(3).normal(size=(count, 2)), count**-0.5
    for heat in np.linspace(0.3, 0.01, 80):
        gap = at[:, None] - at[None]
        far = np.maximum(np.linalg.norm(gap, axis=2), 0.01)
        push = (gap * (near**2 / far**2)[..., None]).sum(1) - 0.3 * at
        pull = np.zeros_like(at)
        np.add.at(pull, edges[0], -gap[edges[0], edges[1]] * (far[edges[0], edges[1]] / near)[:, None])
        step = push + pull
        at = at + heat * step / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), heat)
    return at


def patch(net, p) -> go.Figure:
    """A patch of 40 nodes, coloured by the class that the network gives them; wrong ones are ringed."""
    graph, x, y, w = _view(net, p, 40)
    at = _places(p.feature_signal, p.homophily, own_path(), 40)
    with torch.no_grad():
        answer = method.over_graph(w, net.plan, x, *graph.lists()).argmax(1)
    figure, ends = go.Figure(), at[graph.edges.T].reshape(-1, 2, 2)
    lines = np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], 1).reshape(-1, 2)
    figure.add_scatter(x=lines[:, 0], y=lines[:, 1], mode="lines", line=dict(color=faded(GREY, 0.4), width=1), hoverinfo="skip",
                       showlegend=False)  # fmt: skip
    wrong = (answer != y).numpy()
    figure.add_scatter(x=at[wrong, 0], y=at[wrong, 1], mode="markers", name="wrong", hoverinfo="skip",
                       marker=dict(size=21, color="rgba(0,0,0,0)", line=dict(color=OTHERS[3], width=2.5)))  # fmt: skip
    for label in answer.unique().tolist():
        chosen = (answer == label).numpy()
        figure.add_scatter(x=at[chosen, 0], y=at[chosen, 1], mode="markers", name=f"class {label}",
                           text=[f"true: {k}" for k in y[chosen].tolist()],
                           marker=dict(size=13, color=CLASS_COLOURS[label % len(CLASS_COLOURS)]))  # fmt: skip
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return style(figure, f"{(~wrong).sum()} of 40 nodes get their class; the {wrong.sum()} wrong ones are ringed", height=500)


def norms_and_noise(net, p) -> go.Figure:
    """Norms of single nodes' gradients with C, and the noise that the knobs put on a step's mean gradient, on the same axis."""
    graph, x, y, w = _view(net, p, SEEN)
    n, plan, rng = len(y), net.plan, np.random.default_rng(41)
    table = torch.from_numpy(method.slots(method.bound_readers(graph.edges, n, plan.k, rng), n, plan.k, rng))
    nodes, alive = method.trees(table, torch.arange(n), plan.hops if plan.k else 0)
    each, _ = method.node_gradients(w, plan, x[nodes], alive, y)
    norms = torch.cat([g.flatten(1) for g in each.values()], 1).norm(dim=1).numpy()
    weights = sum(value.numel() for value in w.values())
    noise = 2 * p.noise * p.clip * method.occurrences(p.max_degree, p.hops) * weights**0.5 / p.batch
    cut = torch.cat([g.mean(0).flatten() for g in method.clipped(each, {"": p.clip}).values()]).norm()
    far = float(norms.max())
    figure = go.Figure(go.Histogram(x=norms, xbins=dict(start=0, end=1.03 * far, size=far / 40), marker_color=faded(BLUE, 0.7),
                                    name="one node", showlegend=False))  # fmt: skip
    top = np.histogram(norms, 40, (0, far))[0].max()
    marks = ((p.clip, "C", INK, 1.0), (float(cut), "mean, clipped", OTHERS[1], 0.88), (noise, "noise on it", OTHERS[3], 0.76))
    for at, text, colour, level in marks:
        figure.add_scatter(x=[at, at], y=[0, level * top], mode="lines+text", text=["", f" {text}"], textposition="top right",
                           line=dict(color=colour, width=2.5, dash="dash"), textfont_color=colour, name=text, showlegend=False)  # fmt: skip
    title = (f"{(norms > p.clip).mean():.0%} of the nodes are clipped; the noise is {noise / max(float(cut), 1e-12):.1f} times as "
             "long as the mean gradient")  # fmt: skip
    return style(figure, title, x="length of a gradient", y="nodes", height=420)


def layers(net, p) -> go.Figure:
    """Nodes in the two directions of largest variance, before and after the last aggregation."""
    graph, x, y, w = _view(net, p, SEEN)
    with torch.no_grad():
        given = method.over_graph(w, net.plan, x, *graph.lists(), hidden=True)
    figure = make_subplots(1, 2, horizontal_spacing=0.12, subplot_titles=("Before aggregation", "After the last layer"))
    for column, h in enumerate((given[0], given[-1]), 1):
        centred = (h - h.mean(0)).numpy()
        at = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        for label in range(int(y.max()) + 1):
            chosen = (y == label).numpy()
            figure.add_scatter(x=at[chosen, 0], y=at[chosen, 1], mode="markers", name=f"class {label}", legendgroup=str(label),
                               marker=dict(size=5, color=CLASS_COLOURS[label % len(CLASS_COLOURS)]), showlegend=column == 1,
                               row=1, col=column)  # fmt: skip
    figure.update_xaxes(title_text="first direction").update_yaxes(title_text="second direction")
    ratios = [_between(h, y) for h in (given[0], given[-1])]
    return style(figure, f"Classes make up {ratios[0]:.0%} of the variance before aggregation and {ratios[1]:.0%} after it", height=440)


def _between(h: torch.Tensor, y: torch.Tensor) -> float:
    """Share of the variance of h [n, width] that lies between the classes."""
    means = torch.stack([h[y == label].mean(0) for label in y.unique()])
    inside = sum(((h[y == label] - mean) ** 2).sum() for label, mean in zip(y.unique(), means, strict=True))
    return 1 - float(inside / ((h - h.mean(0)) ** 2).sum().clamp_min(1e-12))
