"""Figures and live views of the study transformer-low-sensitivity. Titles say what was found, computed from the lab."""

from __future__ import annotations

from math import comb, isqrt

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy.stats import spearmanr

from claimlab.claims import interval
from claimlab.figures import INK, arm_colours, curve, faded, style
from claimlab.studies.robustness import _transformer_low_sensitivity_data as data
from claimlab.studies.robustness import transformer_low_sensitivity as study
from claimlab.studies.robustness._transformer_low_sensitivity_nets import Transformer
from claimlab.training import Run

KINDS = ("transformer", "mlp", "cnn", "lstm")
DASHES = {"transformer_aug": "dash", "transformer_reg": "dot", "transformer_nopos": "dashdot"}
GROUPS = {"sparse": "#D55E00", "class of the majority": "#0072B2", "other class": "#E69F00", "neutral": "#BBBBBB"}


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run is left out."""
    drawn = {"sensitivity path": paths(lab), "robustness": robustness(lab), "flip maps": maps(lab)}
    if any("strings" in lab.arms[arm].task.settings for arm in lab.arms):
        drawn["frequent share"] = strings(lab)
    return drawn | {"random networks": random_networks(lab.params)}


def wide(lab, arm: str, metric: str):
    """Values of one metric: a row a step, a column a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.pivot_table(index="step", columns="seed", values="value", dropna=False)


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of a metric, a number a seed."""
    return wide(lab, arm, metric).iloc[-1].to_numpy()


# ---- figures


def along(lab, arm: str, metric: str, grid: np.ndarray) -> np.ndarray:
    """Sensitivity of each seed [len(grid), seeds] where its path passes the values `grid` of another metric; NaN outside."""
    sensitivity, other = wide(lab, arm, "sensitivity"), wide(lab, arm, metric)
    found = []
    for seed in sensitivity:
        both = np.column_stack([other[seed].reindex(sensitivity.index), sensitivity[seed]])
        both = both[np.isfinite(both).all(1)]
        both = both[both[:, 0].argsort()]
        found.append(np.interp(grid, both[:, 0], both[:, 1], left=np.nan, right=np.nan) if len(both) else np.full(len(grid), np.nan))
    return np.stack(found, 1)


def paths(lab) -> go.Figure:
    """The key picture: sensitivity against training accuracy and against training loss."""
    figure = make_subplots(1, 2, subplot_titles=("Against training accuracy", "Against training loss"), shared_yaxes=True,
                           horizontal_spacing=0.06)  # fmt: skip
    palette = arm_colours(lab)
    grids = {"train_accuracy": np.linspace(0.2, 1, 81), "train_loss": np.geomspace(0.03, 2.5, 80)}
    for column, (metric, grid) in enumerate(grids.items(), 1):
        for arm in lab.arms:
            values = along(lab, arm, metric, grid)
            known = np.isfinite(values).sum(1) == values.shape[1]
            x, values, main = grid[known], values[known], arm in KINDS
            if main and len(x) and values.shape[1] > 1:
                low, high = np.array([interval(row) for row in values]).T
                figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", line_width=0, hoverinfo="skip",
                                   fillcolor=faded(palette[arm], 0.18), showlegend=False, legendgroup=arm, row=1, col=column)  # fmt: skip
            pen = dict(color=palette[arm], width=3 if main else 1.5, dash=DASHES.get(arm, "solid"))
            figure.add_scatter(x=x, y=values.mean(1), mode="lines", line=pen, name=arm, legendgroup=arm, showlegend=column == 1,
                               row=1, col=column)  # fmt: skip
    match = lab.params.match_accuracy
    figure.add_vline(x=match, line=dict(color=INK, dash="dash", width=1), row=1, col=1)
    figure.update_xaxes(title_text="training accuracy (dashed: compared here)", range=[0.3, 1.0], col=1)
    figure.update_xaxes(title_text="training loss [nats, falls to the right]", type="log", range=[0.4, -1.5], col=2,
                        tickvals=(marks := [2, 1, 0.5, 0.2, 0.1, 0.05]), ticktext=[str(mark) for mark in marks])  # fmt: skip
    top = max((np.nanmax(trace.y) for trace in figure.data if trace.fill is None and np.isfinite(trace.y).any()), default=0.1)
    figure.update_yaxes(range=[0, 1.1 * top]).update_yaxes(title_text="sensitivity [share of changes that turn the answer]", col=1)
    told = {arm: np.nanmean(v) for arm in KINDS if arm in lab.arms and np.isfinite(v := last(lab, arm, "sensitivity_at_match")).any()}
    said = ", ".join(f"{arm} {value:.3f}" for arm, value in told.items()) or "no network got there"
    return style(figure, f"Sensitivity at a training accuracy of {match:g}: {said}", height=500)


def robustness(lab) -> go.Figure:
    """Corrupted accuracy against sensitivity at the end, one dot a run."""
    figure, palette, every = go.Figure(), arm_colours(lab), []
    for arm in lab.arms:
        x, y = last(lab, arm, "sensitivity"), last(lab, arm, "corrupted_accuracy")
        calm = last(lab, arm, "calm_accuracy")
        every += list(zip(x, y, strict=True))
        told = [f"{arm}: {a:.3f} turned, {b:.3f} right (without noise {c:.3f})" for a, b, c in zip(x, y, calm, strict=True)]
        figure.add_scatter(x=x, y=y, mode="markers", name=arm, marker=dict(size=10, color=palette[arm]), hovertext=told,
                           hoverinfo="text")  # fmt: skip
    order = spearmanr(*np.array(every).T).statistic if len(every) > 2 else np.nan
    title = f"Corrupted accuracy against sensitivity after training, one dot a run: rank correlation {order:+.2f} over {len(every)} runs"
    if {"transformer", "transformer_reg"} <= set(lab.arms):
        plain, reg = (last(lab, arm, "corrupted_accuracy").mean() for arm in ("transformer", "transformer_reg"))
        calm, calm_reg = (last(lab, arm, "calm_accuracy").mean() for arm in ("transformer", "transformer_reg"))
        title += f". The penalty takes the transformer from {plain:.2f} to {reg:.2f}"
        title += f" (blur, contrast, pixelation: {calm:.2f} to {calm_reg:.2f})"
    if min(x for x, _ in every) > 0:
        marks = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
        figure.update_xaxes(type="log", tickvals=marks, ticktext=[str(mark) for mark in marks])
    return style(figure, title, height=480, x="sensitivity on training inputs [share of changes that turn the answer]",
                 y="accuracy on corrupted test inputs")  # fmt: skip


def strings(lab) -> go.Figure:
    """Share of contradictory strings that follow the majority, over steps."""
    arms = [arm for arm in KINDS if arm in lab.arms]
    told = ", ".join(f"{arm} {value:.2f}" for arm in arms if np.isfinite(value := last(lab, arm, "frequent_share").mean()))
    left = [arm for arm in arms if not np.isfinite(last(lab, arm, "frequent_share")).all()]
    title = f"Strings whose cues disagree: the majority of the frequent tokens is followed by {told or 'nobody'} at the last step"
    if left:
        title += f" (training strings not learned to 0.99 by every seed of {', '.join(left)})"
    figure = curve(lab.table, "frequent_share", arms=arms, title=title, y_title="answers that follow the majority [share]",
                   palette=arm_colours(lab), references={"a coin toss": 0.5}, height=460)  # fmt: skip
    return figure.update_yaxes(range=[-0.03, 1.03])


def grid_of(flips: np.ndarray) -> np.ndarray:
    """Flip rates [T] laid out as the patches lie, or in one row where T is no square number or texts are read."""
    side = isqrt(len(flips))
    return flips.reshape(side, side) if side * side == len(flips) and not data.source().endswith(".csv") else flips[None]


def maps(lab) -> go.Figure:
    """Mean flip rate of each position at the end of training, all arms on one colour scale."""
    shown = {arm: np.mean([net.flips.cpu().numpy() for net in lab.arms[arm].members], 0) for arm in lab.arms}
    columns = 4
    rows = -(-len(shown) // columns)
    figure = make_subplots(rows, columns, horizontal_spacing=0.03, vertical_spacing=0.14,
                           subplot_titles=[f"{arm}<br>mean {flips.mean():.3f}" for arm, flips in shown.items()])  # fmt: skip
    for k, flips in enumerate(shown.values()):
        figure.add_heatmap(z=grid_of(flips), coloraxis="coloraxis", hovertemplate="row %{y}, column %{x}: %{z:.3f}<extra></extra>",
                           row=k // columns + 1, col=k % columns + 1)  # fmt: skip
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False, autorange="reversed")
    for k in range(len(shown)):
        figure.update_yaxes(scaleanchor=f"x{k + 1}" if k else "x", constrain="domain", row=k // columns + 1, col=k % columns + 1)
    top = max(flips.max() for arm, flips in shown.items() if arm != "transformer_nopos" or len(shown) == 1)  # it would drown all
    figure.update_layout(coloraxis=dict(colorscale="Cividis", cmin=0, cmax=float(top), colorbar_title="flips [share]"))
    peak = {arm: float(flips.max() / max(flips.mean(), 1e-9)) for arm, flips in shown.items()}
    most = max(peak, key=peak.get)
    title = "How often a change of one patch turns the answer. Most uneven: "
    title += f"{most}, whose touchiest patch has {peak[most]:.1f} times its mean (colours end at {top:.2f})"
    figure = style(figure, title, height=120 + 190 * rows)
    return figure.update_layout(margin_t=figure.layout.margin.t + 26, margin_b=24)


def random_networks(params) -> go.Figure:
    """Fourier weight by degree of untrained networks on 10 bits; black: a Boolean function drawn uniformly, in expectation."""
    n, figure, told = 10, go.Figure(), {}
    palette = arm_colours(_Names)
    for kind in KINDS:
        task = study.Bits(params, kind, n)
        found = [task.profile(net) for net in Run(task, range(4 * params.seeds), device="cpu").members]
        values = torch.stack([weights for weights, _ in found]).numpy()
        low, high = np.array([interval(column) for column in values.T]).T
        told[kind] = float(np.mean([s for _, s in found]))
        bars = dict(array=high - values.mean(0), arrayminus=values.mean(0) - low, color=INK, thickness=1)
        figure.add_bar(x=np.arange(n + 1), y=values.mean(0), name=kind, marker_color=palette[kind], error_y=bars)
    uniform = [comb(n, k) / 2**n for k in range(n + 1)]
    figure.add_scatter(x=np.arange(n + 1), y=uniform, mode="lines+markers", name="uniform Boolean function",
                       line=dict(color=INK, dash="dash"))  # fmt: skip
    said = ", ".join(f"{kind} {value:.1f}" for kind, value in told.items())
    figure = style(figure, f"Before any training, on {n} bits: flips that change the answer, of {n}: {said}; a random function {n / 2:g}",
                   height=440, x="degree k of the Fourier term", y="Fourier weight W<sub>k</sub> [share]")  # fmt: skip
    return figure.update_xaxes(dtick=1)


class _Names:
    """Enough of an experiment for the colours of its arms."""

    study = type("Declared", (), {"claims": study.CLAIMS, "module": study})


# ---- live views: one net of any arm, on the data of seed 0


def message(what: str) -> go.Figure:
    return style(go.Figure(), what).update_xaxes(visible=False).update_yaxes(visible=False)


def first_input(params) -> tuple[torch.Tensor, np.ndarray]:
    """A test input [1, T, D] of seed 0, and its patches' mean brightness (or words) laid out as they lie."""
    lesson = data.lesson(0, params.data, params.images, params.sigma, data.source())
    x = lesson.test[0][:1]
    return x, (lesson.form.picture(x)[0, 0].numpy() if not lesson.form.words else x.numpy())


def flip_map(net, params) -> go.Figure:
    """The latest measured flip rate of each position of this network."""
    flips = net.flips.cpu().numpy()
    if not np.isfinite(flips).all():
        return message("Not measured yet")
    figure = go.Figure(go.Heatmap(z=grid_of(flips), colorscale="Cividis", zmin=0, zmax=float(flips.max()) or 1.0,
                                  colorbar_title="flips [share]"))  # fmt: skip
    figure = style(figure, f"A change of one patch turns {flips.mean():.1%} of the answers; of the touchiest patch {flips.max():.1%}",
                   x="column of the patch", y="row of the patch")  # fmt: skip
    if len(grid_of(flips)) > 1:
        figure.update_xaxes(constrain="domain", dtick=1).update_yaxes(scaleanchor="x", constrain="domain", dtick=1)
    return figure.update_yaxes(autorange="reversed")


def attention_view(net, params) -> go.Figure:
    """Where the mean that decides looks, in the last block, for one test input of seed 0."""
    if not isinstance(net.pictures, Transformer):
        return message("This arm has no attention")
    x, picture = first_input(params)
    with torch.no_grad():
        weights = net.pictures.attention(x.to(net.flips.device))[0].cpu().numpy()
        answer = int(net.pictures(x.to(net.flips.device)).argmax())
    figure = make_subplots(1, 2, subplot_titles=("The input", "Attention of the last block"), horizontal_spacing=0.08)
    figure.add_heatmap(z=picture, colorscale="Greys_r", showscale=False, row=1, col=1)
    figure.add_heatmap(z=grid_of(weights), colorscale="Viridis", zmin=0, zmax=float(weights.max()), colorbar_title="share",
                       row=1, col=2)  # fmt: skip
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False, autorange="reversed", constrain="domain")
    if picture.shape[0] > 1:
        figure.update_yaxes(scaleanchor="x", col=1).update_yaxes(scaleanchor="x2", col=2)
    return style(figure, f"The network answers {answer}; its most watched token gets {weights.max():.0%} of the attention "
                 f"(an even share is {1 / len(weights):.0%})")  # fmt: skip


def string_view(net, params) -> go.Figure:
    """One contradictory string of seed 0, its tokens coloured by group, and the vote of this network."""
    if not hasattr(net, "strings"):
        return message("This arm reads no strings")
    p = params
    rows, classes = data.reading(0, p.strings, p.length, p.majority_margin, p.sparse_strength)[1]
    row, label = rows[0].numpy(), int(classes[0])
    with torch.no_grad():
        vote = float(net.strings(rows[:1].to(net.flips.device)).softmax(-1)[0, label])
    own, other = (data.POSITIVE, data.NEGATIVE) if label else (data.NEGATIVE, data.POSITIVE)
    group = np.select([row < data.NEUTRAL.start, np.isin(row, own), np.isin(row, other)], list(GROUPS)[:3], "neutral")
    figure = go.Figure()
    for name, colour in GROUPS.items():
        where = np.flatnonzero(group == name)
        figure.add_bar(x=where, y=[1] * len(where), name=f"{name} ({len(where)})", marker_color=colour,
                       hovertext=[f"token {row[i]}" for i in where])  # fmt: skip
    follows = "the majority" if vote > 0.5 else "the sparse token"
    title = f"This network follows {follows}: probability {vote:.2f} for the majority's class"
    figure = style(figure, title, x="place in the string", height=260)
    return figure.update_layout(bargap=0.1).update_yaxes(visible=False)
