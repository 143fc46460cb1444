"""Figures and live views of the study `deep-interest-network`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.recommendation import deep_interest_network as study

COLOURS = colours(list(study.ARMS), "base_pool", "din")


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if "din" in lab.arms:
        net = study.best(lab.arms["din"].members[0])
        found = {"activation weights": weights(net, 3), "gain by interests": gain(lab), "Dice over training": dice_curves(lab)}
    if {"din", "din_noreg"} <= set(lab.arms):
        found["loss over epochs"] = losses(lab)
    return found | ({"all arms": ranking(lab)} if "base_pool" in lab.arms else {})


def _last(lab, arm: str, metric: str) -> np.ndarray:
    """Last values [seeds] of a metric; empty where there are none."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed")["value"].last().to_numpy(float)


def chosen(net, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """History [H] and `count` candidates of the user kept in the net: of the groups most clicked, the last of a rare one."""
    history = net.demo[: -study.SHOWN]
    history, candidates = history[history > 0], net.demo[-study.SHOWN :]
    candidates = candidates[candidates > 0]
    often = [int((net.shop_group[history] == g).sum()) for g in net.shop_group[candidates]]
    picked: list[int] = []
    for i in np.argsort(-np.array(often), kind="stable"):  # one a group
        if net.shop_group[candidates[i]] not in [net.shop_group[candidates[j]] for j in picked]:
            picked.append(int(i))
    picked = [*picked[: count - 1], *picked[-1:]] if len(picked) >= count else picked
    return history[net.shop_group[history].argsort(stable=True)], candidates[picked]


@torch.no_grad()
def weights(net, count: int) -> go.Figure:
    """Weights of one user's past clicks for a few candidates; dark bars share the candidate's interest group."""
    history, candidates = chosen(net, count)
    groups, x = net.shop_group[history], np.arange(1, len(history) + 1)
    titles = [f"candidate of group {int(net.shop_group[c]) + 1}" for c in candidates]
    figure = make_subplots(len(candidates), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.12)
    for row, candidate in enumerate(candidates, 1):
        a = net.weights(history[None], candidate[None])[0]
        for g in groups.unique().tolist():
            here = (groups == g).numpy()
            own = g == int(net.shop_group[candidate])
            colour = (BLUE, *OTHERS)[groups.unique().tolist().index(g) % 9]
            shade = colour if own else faded(colour, 0.35)
            figure.add_bar(x=x[here], y=a.numpy()[here], marker_color=shade, showlegend=False, row=row, col=1)
            if row == 1:  # the legend in full colour
                figure.add_scatter(x=[None], y=[None], mode="markers", marker=dict(color=colour, symbol="square", size=10),
                                   name=f"group {g + 1}")  # fmt: skip
    figure.update_layout(bargap=0.15)
    figure.update_xaxes(title_text="past click, sorted by interest group", row=len(candidates))
    figure.update_yaxes(title_text="weight", zeroline=True)
    title = ("Every past click has weight 1, whatever the candidate" if net.unit is None else
             "The same clicks weighed for different candidates; full colour: same interest group as the candidate")  # fmt: skip
    return style(figure, title, height=170 + 150 * len(candidates))


def gain(lab) -> go.Figure:
    """GAUC of din minus base_pool by number of interests, a thin line a seed."""
    rows = {}
    for k in range(1, 10):
        a, b = (_last(lab, arm, f"gauc_interests_{k}") for arm in ("din", "base_pool"))
        if len(a) == len(b) == len(lab.seeds):
            rows[k] = a - b
    x, values = list(rows), np.array(list(rows.values()))
    figure = go.Figure()
    for s, one in enumerate(values.T):
        figure.add_scatter(x=x, y=one, mode="lines", line=dict(color=BLUE, width=1), opacity=0.4, name="one seed",
                           legendgroup="seed", showlegend=s == 0)  # fmt: skip
    low, high = np.array([interval(v) for v in values]).T if len(x) else ([], [])
    mean = values.mean(1) if len(x) else np.array([])
    figure.add_scatter(x=x, y=mean, mode="lines+markers", line=dict(color=BLUE, width=3),
                       name=f"mean and 95 % interval (n = {len(lab.seeds)})",
                       error_y=dict(type="data", symmetric=False, array=high - mean, arrayminus=mean - low))  # fmt: skip
    figure.add_hline(y=0, line=dict(color=INK, dash="dash", width=1))
    slopes = _last(lab, "din", "gain_slope_over_interests")
    told = f"changes by {slopes.mean():+.4f} with each further interest" if len(slopes) else "at one number of interests"
    figure.update_xaxes(dtick=1)
    return style(figure, f"The lead of DIN over fixed pooling {told}", x="interest groups of the user",
                 y="GAUC of din minus base_pool")  # fmt: skip


def losses(lab) -> go.Figure:
    """Training and validation loss over epochs with and without the regulariser."""
    figure, gaps = go.Figure(), {}
    size = len(lab.arms["din"].tasks[0].shop.train.y)
    for arm, colour in (("din", BLUE), ("din_noreg", COLOURS["din_noreg"])):
        ends = []
        for metric, dash in (("train_loss", "solid"), ("validation_loss", "dash")):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
            mean = rows.groupby("step")["value"].mean()
            figure.add_scatter(x=mean.index * study.Click.batch_size / size, y=mean, mode="lines",
                               line=dict(color=colour, dash=dash, width=2.5),
                               name=f"{arm}, {metric.replace('_', ' ')}")  # fmt: skip
            ends.append(mean.iloc[-1])
        gaps[arm] = ends[1] - ends[0]
    for epoch in range(1, int(lab.params.steps * study.Click.batch_size / size) + 1):
        figure.add_vline(x=epoch, line=dict(color=INK, dash="dot", width=1))
    title = (f"At the end validation loss lies {gaps['din']:+.3f} from training loss with the regulariser, "
             f"{gaps['din_noreg']:+.3f} without (means of {len(lab.seeds)} seeds)")  # fmt: skip
    return style(figure, title, x="epochs (dotted: each impression has been seen once more)", y="cross-entropy [nats]", height=460)


def ranking(lab) -> go.Figure:
    """Test GAUC of all arms with 95 % intervals, and RelaImpr over base_pool."""
    figure, base = go.Figure(), _last(lab, "base_pool", "test_gauc")
    found = {arm: _last(lab, arm, "test_gauc") for arm in lab.arms}
    order = sorted(found, key=lambda a: found[a].mean())
    for arm in order:
        v = found[arm]
        low, high = interval(v)
        label = f"{v.mean():.3f}, RelaImpr {(v.mean() - 0.5) / (base.mean() - 0.5) - 1:+.1%}"
        figure.add_scatter(x=[v.mean()], y=[arm], mode="markers+text", text=[label], textposition="top center", showlegend=False,
                           marker=dict(size=11, color=COLOURS[arm]), error_x=dict(type="data", symmetric=False, array=[high - v.mean()],
                           arrayminus=[v.mean() - low]))  # fmt: skip
        figure.add_scatter(x=v, y=[arm] * len(v), mode="markers", marker=dict(size=6, color=faded(COLOURS[arm], 0.45)), showlegend=False)
    bayes = _last(lab, "base_pool", "bayes_gauc").mean()
    figure.add_vline(x=bayes, line=dict(color=GREY, dash="dash", width=1))
    figure.add_annotation(x=bayes, y=1, yref="paper", yanchor="top", xanchor="right", showarrow=False,
                          text=f"true probabilities: {bayes:.3f} ")  # fmt: skip
    figure.update_yaxes(range=[-0.5, len(order) - 0.1])
    return style(figure, f"Best test GAUC: {order[-1]}; lowest: {order[0]} (mean of {len(base)} seeds, 95 %)",
                 x="GAUC on test candidates", height=480)  # fmt: skip


def dice_curves(lab) -> go.Figure:
    """p(s) of the first four channels of the activation unit, at four moments of training."""
    net = lab.arms["din"].members[0]
    trace = net.trace[torch.isfinite(net.trace[:, 0])].numpy()
    s = np.linspace(-3, 3, 121)
    figure = make_subplots(1, 4, shared_yaxes=True, subplot_titles=[f"channel {c + 1}" for c in range(4)], horizontal_spacing=0.03)
    moments = np.unique(np.linspace(0, len(trace) - 1, 4).round().astype(int))
    for shade, i in enumerate(moments, 1):
        for c in range(4):
            mean, var = trace[i, 3 + c], trace[i, 7 + c]
            p = 1 / (1 + np.exp(-(s - mean) / np.sqrt(var + 1e-8)))
            figure.add_scatter(x=s, y=p, mode="lines", line=dict(color=faded(BLUE, shade / len(moments)), width=2.5), legendgroup=str(i),
                               name=f"step {trace[i, 0]:.0f}", showlegend=c == 0, row=1, col=c + 1)  # fmt: skip
    figure.update_xaxes(title_text="input s")
    figure.update_yaxes(title_text="p(s), share that passes", col=1)
    spread = trace[[0, -1], 7] ** 0.5
    return style(figure, f"The switch of Dice follows its inputs: spread of channel 1 from {spread[0]:.2f} to {spread[1]:.2f}", height=400)


# ---- live views


def bars_of_weight(net, params) -> go.Figure:
    """Weights of one user's past clicks for two different candidates; the user is kept in the network."""
    was = net.training
    try:
        return weights(net.eval(), 2)
    finally:
        net.train(was)


def over_steps(net, params) -> go.Figure:
    """GAUC on validation candidates over steps, as far as it went."""
    trace = net.trace[torch.isfinite(net.trace[:, 0])].numpy()
    figure = go.Figure(go.Scatter(x=trace[:, 0], y=trace[:, 1], mode="lines+markers", line=dict(color=BLUE, width=2.5)))
    title = f"Validation GAUC, best so far {trace[:, 1].max():.3f}" if len(trace) else "Validation GAUC: nothing measured yet"
    return style(figure, title, x="optimiser step", y="GAUC on validation candidates")
