"""Figures and live views of the study `histograph`: depth, layer weights, over-smoothing, paths through the layers, node attention."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, style
from claimlab.studies.graphs import _histograph_data as data
from claimlab.studies.graphs import _histograph_method as method
from claimlab.studies.graphs import histograph as study

LINES = {"last_mean": ("mean of the last layer", GREY), "jk_concat": ("jumping knowledge", OTHERS[0]), "histograph": ("HistoGraph", BLUE)}
TASK_COLOURS = {"local": OTHERS[1], "motif": OTHERS[0], "global": OTHERS[2], "mixed": BLUE}
TYPE_COLOURS = (OTHERS[3], BLUE, GREY, OTHERS[1])


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if {"last_mean", "last_mean_deep", "histograph", "histograph_deep", "jk_concat_deep"} <= set(lab.arms):
        found = {"accuracy over depth": over_depth(lab), "smoothing": smoothing(lab)}
    if "histograph_deep" in lab.arms:
        found |= {"layer weights": layer_weights(lab), "paths": paths(lab), "node attention": node_attention(lab)}
    return found


def _last(lab, arm: str, metric: str = "test_accuracy") -> np.ndarray:
    """The last value of each seed that has one."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed").value.last().to_numpy()


def over_depth(lab) -> go.Figure:
    """Test accuracy of the three read-outs: judged runs with an interval, the sweep with its seeds."""
    figure, p, means = go.Figure(), lab.params, {}
    for beside, (name, (text, colour)) in zip((0.96, 1, 1.04), LINES.items(), strict=True):
        at = {d: _last(lab, f"{name}_deep" if d == p.depth else name) for d in (4, p.depth) if d == p.depth or name != "jk_concat"}
        judged = list(at)
        for depth in study.DEPTHS.get(p.sweep, ()) if "by_depth" in lab.arms else ():
            at.setdefault(depth, _last(lab, "by_depth", f"{name} {depth}: test_accuracy"))
        means[name] = {depth: at[depth].mean() for depth in sorted(at)}
        figure.add_scatter(x=list(means[name]), y=list(means[name].values()), mode="lines+markers", name=text, legendgroup=name,
                           line=dict(color=colour, width=2.5), marker_size=6)  # fmt: skip
        low, high = np.array([interval(at[d]) for d in judged]).T
        mid = np.array([means[name][d] for d in judged])
        figure.add_scatter(x=beside * np.array(judged), y=mid, mode="markers", showlegend=False,
                           marker=dict(color=colour, size=11, symbol="diamond"),
                           error_y=dict(array=high - mid, arrayminus=mid - low, color=colour), legendgroup=name)  # fmt: skip
    _add_others(figure, lab)
    gap = means["histograph"][p.depth] - means["last_mean"][p.depth]
    title = (f"With {p.depth} layers HistoGraph is right {abs(gap):.3f} {'more' if gap > 0 else 'less'} often than the mean of the last "
             f"layer ({means['histograph'][p.depth]:.2f} against {means['last_mean'][p.depth]:.2f})")  # fmt: skip
    shown = sorted({d for line in means.values() for d in line})
    figure.update_xaxes(type="log", tickvals=shown, ticktext=[str(d) for d in shown])
    return style(figure, title, x="layers (diamonds: judged runs with a 95 % interval)", y="test accuracy [share of graphs]",
                 height=440 + 90 * ("by_gin" in lab.arms))  # fmt: skip


def _add_others(figure: go.Figure, lab) -> None:
    """GIN backbones, heads on a frozen backbone and softmax weights, where they were trained."""
    for name, (text, colour) in LINES.items():
        if "by_gin" in lab.arms:
            at = [int(key.split()[1]) for key in lab.arms["by_gin"].runs if key.startswith(name)]
            y = [_last(lab, "by_gin", f"{name} {depth}: test_accuracy").mean() for depth in at]
            figure.add_scatter(x=at, y=y, mode="lines+markers", line=dict(color=colour, dash="dot"), name=f"GIN, {text}")
        if "frozen" in lab.arms and name in lab.arms["frozen"].runs:
            figure.add_scatter(x=[lab.params.depth], y=[_last(lab, "frozen", f"{name}: test_accuracy").mean()], mode="markers",
                               marker=dict(color=colour, size=13, symbol="square-open"), name=f"frozen, {text}")  # fmt: skip
    if "softmax_layers" in lab.arms:
        figure.add_scatter(x=[lab.params.depth], y=[_last(lab, "softmax_layers").mean()], mode="markers", name="HistoGraph, softmax",
                           marker=dict(color=BLUE, size=13, symbol="x-open"))  # fmt: skip


def _alphas(lab) -> dict[str, np.ndarray]:
    """Layer weights [L+1, graphs] on test graphs of the first seed, by what was trained."""
    p = lab.params
    runs = {f"{p.task}, {p.depth} layers": lab.arms["histograph_deep"]}
    if "histograph" in lab.arms:
        runs[f"{p.task}, 4 layers"] = lab.arms["histograph"]
    runs |= {f"{task}, 4 layers": run for task, run in lab.arms["by_task"].runs.items()} if "by_task" in lab.arms else {}
    found = {}
    for name, run in runs.items():
        net, world = study.chosen(run.members[0]), run.tasks[0].world
        part = slice(world.parts["test"].start, world.parts["test"].start + 100)
        with torch.no_grad():
            found[name] = net.histograph.stage1(study.history(net, world, part), world.mask[part])[1].numpy()
    return found


def layer_weights(lab) -> go.Figure:
    """Mean weight of each layer with the spread over test graphs: the deep network above, the 4-layer ones below."""
    found = _alphas(lab)
    few = len(found) - 1
    specs = [[{"colspan": max(few, 1)}, *[None] * (few - 1)]] + ([[{}] * few] if few else [])
    figure = make_subplots(len(specs), max(few, 1), specs=specs, vertical_spacing=0.3, shared_yaxes=True, subplot_titles=list(found))
    for k, (name, alpha) in enumerate(found.items()):
        figure.add_bar(x=np.arange(len(alpha)), y=alpha.mean(1), marker_color=TASK_COLOURS.get(name.split(",")[0], BLUE), showlegend=False,
                       error_y=dict(array=alpha.std(1), color=INK), name=name, row=1 + (k > 0), col=max(k, 1))  # fmt: skip
    figure.update_xaxes(title_text="layer (0: input)", dtick=1)
    figure.update_yaxes(title_text="weight α", col=1)
    deep = next(iter(found.values()))
    title = (f"In the deep network layer {int(np.abs(deep.mean(1)).argmax())} has the largest weight, and {float((deep < 0).mean()):.0%} "
             "of its weights are negative (bars: mean, whiskers: standard deviation over graphs)")  # fmt: skip
    return style(figure, title, height=300 + 260 * bool(few))


def _probe(h: torch.Tensor, world: data.World) -> float:
    """Test accuracy of ridge regression from the mean over nodes [N, d] of one layer to the classes."""
    train, test = world.parts["train"], world.parts["test"]
    h = torch.cat([(h - h[train].mean(0)) / h[train].std(0).clamp_min(1e-6), torch.ones(len(h), 1)], 1).double()
    target = torch.nn.functional.one_hot(world.y[train], world.classes).double()
    weights = torch.linalg.solve(h[train].T @ h[train] + torch.eye(h.shape[1]), h[train].T @ target)
    return float(((h[test] @ weights).argmax(1) == world.y[test]).double().mean())


def smoothing(lab) -> go.Figure:
    """Dirichlet energy and accuracy of a linear probe, layer by layer, in the backbones read by the mean of the last layer."""
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.1,
                           subplot_titles=("Dirichlet energy", "Linear probe on the mean over nodes"))  # fmt: skip
    for arm, colour, name in (("last_mean", OTHERS[0], "4 layers"), ("last_mean_deep", GREY, f"{lab.params.depth} layers")):
        task, net = lab.arms[arm].tasks[0], study.chosen(lab.arms[arm].members[0])
        world = task.world
        with torch.no_grad():
            h = study.history(net, world, slice(0, len(world.y)))
            a = torch.from_numpy(world.source.a).float()
            energy = method.dirichlet_energy(h, a, world.mask).mean(1).numpy()
            probe = [_probe(one, world) for one in method.node_mean(h, world.mask)]
        for row, y in ((1, energy), (2, probe)):
            figure.add_scatter(x=np.arange(len(y)), y=y, mode="lines+markers", line_color=colour, name=f"backbone of {name}",
                               legendgroup=arm, showlegend=row == 1, row=row, col=1)  # fmt: skip
    figure.update_yaxes(title_text="energy [mean |h|²]", type="log", row=1, col=1)
    ticks = [m * 10**k for k in range(-8, 3) for m in (1, 2, 5)]
    figure.update_yaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], row=1, col=1)
    figure.update_yaxes(title_text="test accuracy", row=2, col=1)
    figure.update_xaxes(title_text="layer (0: embedded input)", row=2, col=1)
    title = (f"Deep backbone, seed {lab.seeds[0]}: the energy goes from {energy[0]:.2f} to {energy[-1]:.2g}; the best layer for a probe "
             f"is {int(np.argmax(probe))} ({max(probe):.2f}), the last gives {probe[-1]:.2f}")  # fmt: skip
    return style(figure, title, height=560)


def _motif_graph(lab) -> tuple[torch.nn.Module, data.World, int]:
    """The network of the first seed, its world, and the first test graph that holds a motif (the first one in own data)."""
    run = lab.arms["histograph_deep"]
    world = run.tasks[0].world
    start = world.parts["test"].start
    held = world.source.motif[start:].any(1)
    return study.chosen(run.members[0]), world, start + int(held.argmax())


def _plane(points: np.ndarray) -> np.ndarray:
    """[..., d] in the two directions of largest variance."""
    flat = points.reshape(-1, points.shape[-1])
    flat = flat - flat.mean(0)
    return (flat @ np.linalg.svd(flat, full_matrices=False)[2][:2].T).reshape(*points.shape[:-1], 2)


def paths(lab) -> go.Figure:
    """Four nodes through the layers, and all nodes of the graph after stage 1, each in its own two principal directions."""
    net, world, g = _motif_graph(lab)
    part = slice(g, g + 1)
    with torch.no_grad():
        h = study.history(net, world, part)
        z = net.histograph.stage1(h, world.mask[part])[0][0]
    real = world.mask[g].numpy()
    kind = world.x[g].argmax(1).numpy()[real]
    before, after = _plane(h[:, 0].numpy()[:, real]), _plane(z.numpy()[real])
    few = np.unique(kind, return_index=True)[1][:4]
    figure = make_subplots(1, 2, horizontal_spacing=0.14,
                           subplot_titles=("One node of each type, layer by layer", "All nodes after stage 1"))  # fmt: skip
    for node in few:
        name, colour = _type(int(kind[node]))
        figure.add_scatter(x=before[:, node, 0], y=before[:, node, 1], mode="lines+markers", line_color=colour, name=name,
                           legendgroup=name, marker_size=np.linspace(4, 11, len(before)),
                           text=[f"layer {k}" for k in range(len(before))], row=1, col=1)  # fmt: skip
    for one in np.unique(kind):
        name, colour = _type(int(one))
        figure.add_scatter(x=after[kind == one, 0], y=after[kind == one, 1], mode="markers", marker=dict(color=colour, size=9),
                           name=name, legendgroup=name, showlegend=False, row=1, col=2)  # fmt: skip
    figure.update_xaxes(title_text="first direction").update_yaxes(title_text="second direction")
    moved = [float(np.linalg.norm(before[k + 1] - before[k], axis=1).mean()) for k in range(len(before) - 1)]
    title = (f"In this plane nodes move farthest on the way into layer {1 + int(np.argmax(moved))} (small markers: early layers; "
             f"test graph {g - world.parts['test'].start})")  # fmt: skip
    return style(figure, title, height=460)


def _type(k: int) -> tuple[str, str]:
    return f"type {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[k % 26]}", TYPE_COLOURS[k % len(TYPE_COLOURS)]


def node_attention(lab) -> go.Figure:
    """Weights of stage 2 in one graph, mean over heads, motif nodes first."""
    net, world, g = _motif_graph(lab)
    part = slice(g, g + 1)
    with torch.no_grad():
        z = net.histograph.stage1(study.history(net, world, part), world.mask[part])[0]
        weights = net.histograph.stage2(z, world.mask[part])[1][0].mean(0).numpy()
    motif, real = world.source.motif[g], world.mask[g].numpy()
    order = np.r_[np.flatnonzero(motif), np.flatnonzero(real & ~motif)]
    names = [f"{k}*" if motif[k] else str(k) for k in order]
    figure = go.Figure(go.Heatmap(z=weights[np.ix_(order, order)], x=names, y=names, colorscale="Cividis", colorbar_title="weight"))
    figure.update_xaxes(type="category", tickfont_size=9).update_yaxes(type="category", autorange="reversed", tickfont_size=9)
    if not motif.any():
        return style(figure, "Attention between the nodes of the first test graph", x="node that is read", y="node that reads", height=600)
    got, size = weights[real][:, motif].sum(1).mean(), motif.sum() / real.sum()
    figure.add_shape(type="rect", x0=-0.5, x1=motif.sum() - 0.5, y0=-0.5, y1=motif.sum() - 0.5, line=dict(color=OTHERS[3], width=2.5))
    title = f"The motif (framed) is {size:.0%} of this graph's nodes and gets {got:.0%} of the attention"
    return style(figure, title, x="node that is read (*: in the motif)", y="node that reads", height=600)


# ---- views: one graph beside 24 others that give the norm, drawn from the parameters alone (or the first of your own)


@lru_cache(maxsize=8)
def _few(kind: str, noise: float, conv: str, path: str) -> data.World:
    source = data.own_graphs(path) if path else data.simulate(25, kind, noise, np.random.default_rng(40))
    first = data.Graphs(*(getattr(source, name)[:25] for name in data.Graphs.__dataclass_fields__))
    x, mask = torch.from_numpy(first.x), torch.from_numpy(first.mask)
    parts = {"train": slice(0, 24), "test": slice(24, 25)}
    return data.World(x, data.operator(first.a, conv), mask, torch.from_numpy(first.y), parts, 0, first)


def _seen(net, p) -> tuple[torch.Tensor, data.World]:
    conv = "gcn" if net.backbone.layers[0].inner is None else "gin"
    world = _few(p.motif, p.feature_noise, conv, data.own_path())
    with torch.no_grad():
        return study.history(net, world, world.parts["test"]), world


def attention_view(net, p) -> go.Figure:
    """Scores of every node for every layer, and above them the one weight a layer that the graph's nodes share."""
    h, world = _seen(net, p)
    mask = world.mask[-1:]
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.3, 0.7], vertical_spacing=0.06)
    if net.histograph:
        with torch.no_grad():
            _, alpha, scores, _ = net.histograph.stage1(h, mask)
        title = f"Layer {int(alpha[:, 0].abs().argmax())} has the largest weight; {int((alpha < 0).sum())} of {len(h)} are negative"
    else:
        scores = (h * h[-1]).sum(-1) / h.shape[-1] ** 0.5
        alpha = torch.eye(len(h))[-1:].T if net.head == "last" else torch.full((len(h), 1), 1 / len(h))
        title = "This read-out has no layer attention; below: products of each layer with the last"
    figure.add_bar(x=np.arange(len(h)), y=alpha[:, 0].numpy(), marker_color=BLUE, showlegend=False, row=1, col=1)
    figure.add_heatmap(z=scores[:, 0, mask[0]].T.numpy(), colorscale="RdBu", zmid=0, colorbar_title="score", row=2, col=1)
    figure.update_yaxes(title_text="weight α", row=1, col=1).update_yaxes(title_text="node", row=2, col=1)
    figure.update_xaxes(title_text="layer", row=2, col=1)
    return style(figure, title, height=520)


def distance_view(net, p) -> go.Figure:
    """Cosine distance between nodes of one graph, and the Dirichlet energy, layer by layer."""
    h, world = _seen(net, p)
    real = h[:, 0, world.mask[-1]]
    unit = torch.nn.functional.normalize(real, dim=-1)
    far = 1 - unit @ unit.transpose(1, 2)
    upper = far[:, *torch.triu_indices(far.shape[1], far.shape[1], 1)]
    energy = method.dirichlet_energy(h, torch.from_numpy(world.source.a[-1:]).float(), world.mask[-1:])[:, 0]
    low, mid, high = np.quantile(upper.numpy(), (0.1, 0.5, 0.9), axis=1)
    x, figure = np.arange(len(h)), go.Figure()
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(BLUE, 0.2), line_width=0, mode="lines",
                       hoverinfo="skip", name="10 to 90 % of pairs")  # fmt: skip
    figure.add_scatter(x=x, y=mid, mode="lines+markers", line_color=BLUE, name="median distance")
    figure.add_scatter(x=x, y=energy.numpy(), mode="lines+markers", line_color=OTHERS[3], name="Dirichlet energy")
    figure.update_xaxes(dtick=max(1, len(h) // 8))
    title = f"The median distance of two nodes goes from {mid[0]:.2f} to {mid[-1]:.2f}"
    return style(figure, title, x="layer (0: embedded input)", y="cosine distance; energy [mean |h|²]", height=440)
