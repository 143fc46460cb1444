"""Figures and live views of the study convergent-learning. Titles say what was found, computed from the lab."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, curve, faded, style
from claimlab.studies.representation._convergent_learning_arms import FEW, Seen, units
from claimlab.studies.representation._convergent_learning_data import LAYERS, Net, Pair, capture, load, source
from claimlab.studies.representation._convergent_learning_method import Match, Units, correlations, matching

MATCHED = {
    "trained_pair": ("trained pair", BLUE), "first_layer": ("trained pair at conv1", OTHERS[1]),
    "rotated_pair": ("rotated second net", OTHERS[0]), "trained_vs_random": ("untrained second net", GREY),
    "permuted_samples": ("samples in another order", OTHERS[2]),
}  # fmt: skip
GROUP = 4  # filters shown as best, median and worst
VIEWED = 200  # images of a live view
PATCHES = 6  # patches that drive a cluster


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; single pairs are those of the first seed."""
    arms, s = lab.arms, lab.arms["trained_pair"].seen[0]
    pair: Pair = arms["networks"].members[0]
    drawn = {"matrix": matrix(s.first[lab.params.layer], s.second[lab.params.layer], arms["trained_pair"].found[0], lab.params.layer)}
    if {"rotated_pair", "trained_vs_random"} <= set(arms):
        drawn["matches"] = matches({name: arms[name].found for name in MATCHED if name in arms}, lab.params.layer)
    if "first_layer" in arms:
        drawn["filters"] = filters(pair, s.first["conv1"], s.second["conv1"], arms["first_layer"].found[0])
    if {"sparse_mapping", "one_to_one_mapping"} <= set(arms):
        drawn["sparse"] = sparse(arms["sparse_mapping"].found[0], arms["one_to_one_mapping"].found[0])
    if "joint_clusters" in arms:
        drawn["clusters"] = clusters(s, arms["joint_clusters"].found[0], lab.params.layer)
    return drawn | {"training": training(lab.table)}


# ---- matrix and matches


def _order(m: Match) -> tuple[np.ndarray, np.ndarray]:
    """Units of both networks with partners side by side, the best first; units without a partner last."""
    best = np.argsort(-m.one)
    sides = ((m.rows[best], m.between.shape[0]), (m.columns[best], m.between.shape[1]))
    first, second = (np.concatenate([found, np.setdiff1d(np.arange(n), found)]) for found, n in sides)
    return first, second


def matrix(x: Units, y: Units, m: Match, layer: str) -> go.Figure:
    """Correlations between the networks before and after re-ordering by the matching, and inside each network in that order."""
    first, second = _order(m)
    panels = {
        "between, as they are numbered": m.between, "between, partners side by side": m.between[np.ix_(first, second)],
        "inside net 1, that order": correlations(x.held[:, first], x.held[:, first]),
        "inside net 2, that order": correlations(y.held[:, second], y.held[:, second]),
    }  # fmt: skip
    fig = make_subplots(2, 2, subplot_titles=list(panels), horizontal_spacing=0.12, vertical_spacing=0.16)
    for k, z in enumerate(panels.values()):
        at = dict(row=k // 2 + 1, col=k % 2 + 1)
        fig.add_heatmap(z=np.round(z, 3), coloraxis="coloraxis", hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>", **at)
        fig.update_xaxes(title_text=f"unit of net {1 if k == 2 else 2}", constrain="domain", **at)
        fig.update_yaxes(title_text=f"unit of net {2 if k == 3 else 1}", autorange="reversed", constrain="domain",
                         scaleanchor="x" + (str(k + 1) if k else ""), **at)  # fmt: skip
    rest = m.between.sum() - m.one.sum()
    others = rest / max(m.between.size - len(m.one), 1)
    title = f"Units of {layer} in two networks: partners correlate by {m.one.mean():.2f} on average, other pairs by {others:.2f}"
    style(fig, title, height=760)
    bar = dict(title="correlation", thickness=14)
    fig.update_annotations(yshift=4)
    return fig.update_layout(coloraxis=dict(colorscale="RdBu_r", cmin=-1, cmax=1, colorbar=bar), margin_b=60)


def matches(found: dict[str, list[Match]], layer: str) -> go.Figure:
    """Correlations with the partner, sorted, mean over the seeds; one partner each (full) and the best partner (dotted)."""
    fig, share = go.Figure(), np.linspace(0, 1, 60)
    for arm, every in found.items():
        name, colour = MATCHED[arm]
        for kind, dash in (("one", "solid"), ("many", "dot")):
            sorted_ = [np.sort(getattr(m, kind))[::-1] for m in every]
            lines = np.stack([np.interp(share, np.linspace(0, 1, len(line)), line) for line in sorted_])
            if kind == "one" and len(lines) > 1:
                edge = np.concatenate([lines.max(0), lines.min(0)[::-1]])
                fig.add_scatter(x=100 * np.concatenate([share, share[::-1]]), y=edge, fill="toself", fillcolor=faded(colour, 0.15),
                                line_width=0, mode="lines", legendgroup=name, showlegend=False, hoverinfo="skip")  # fmt: skip
            fig.add_scatter(x=100 * share, y=lines.mean(0), mode="lines", legendgroup=name, showlegend=kind == "one", name=name,
                            line=dict(color=colour, dash=dash, width=3 if arm == "trained_pair" else 2))  # fmt: skip
    said = ", ".join(f"{MATCHED[arm][0]} {np.mean([m.one.mean() for m in every]):.2f}" for arm, every in found.items())
    style(fig, f"Partners one to one (full lines) at {layer}, mean correlation: {said}. Dotted: partners may repeat", height=560,
          x="units of net 1, best matched first [%]", y="held-out correlation with the partner")  # fmt: skip
    return fig.update_layout(margin_b=120)


# ---- filters


def _tile(w: np.ndarray) -> np.ndarray:
    """A filter [C, k, k] as a picture [k, k, 3] uint8: grey is zero."""
    w = np.repeat(w, 3, axis=0) if len(w) == 1 else w
    return np.clip(128 + 127 * w / max(np.abs(w).max(), 1e-12), 0, 255).transpose(1, 2, 0).astype(np.uint8)


def filters(pair: Pair, x: Units, y: Units, m: Match) -> go.Figure:
    """Filters of conv1, net 1 above its partner in net 2: the best matched pairs, the middle ones, the worst."""
    best = np.argsort(-m.one)
    group = min(GROUP, len(best) // 3 or 1)
    middle = len(best) // 2 - group // 2
    shown = dict.fromkeys([*best[:group], *best[middle : middle + group], *best[-group:]])
    size = pair.first.conv1.kernel_size[0]
    step = size + 1
    canvas = np.full((2 * step + 1, len(shown) * step + 1, 3), 255, dtype=np.uint8)
    for place, k in enumerate(shown):
        for row, (net, index) in enumerate(((pair.first, x.index[m.rows[k]]), (pair.second, y.index[m.columns[k]]))):
            tile = _tile(net.conv1.weight[index].detach().cpu().numpy())
            canvas[row * step + 1 : row * step + 1 + size, place * step + 1 : place * step + 1 + size] = tile
    fig = go.Figure(go.Image(z=canvas, hoverinfo="skip"))
    style(fig, f"Filters of conv1 in net 1 and their partners in net 2: correlation of the answers from {m.one.max():.2f} (left) to "
          f"{m.one.min():.2f} (right)", height=300)  # fmt: skip
    middle_of = [step * k + 1 + size / 2 - 0.5 for k in range(len(shown))]
    fig.update_xaxes(tickvals=middle_of, ticktext=[f"{m.one[k]:.2f}" for k in shown], showgrid=False, constrain="domain",
                     title_text="correlation of the pair on held-out images: best, median, worst")  # fmt: skip
    fig.update_yaxes(tickvals=middle_of[:2], ticktext=["net 1", "net 2"], showgrid=False, constrain="domain")
    return fig.update_layout(margin_b=60)


# ---- sparse prediction and clusters


def sparse(found, single: np.ndarray) -> go.Figure:
    """Held-out error of predicting units of net 2 against the number of active units of net 1, as the price falls."""
    q = len(single)
    shown = np.unique(np.argsort(single)[np.linspace(0, q - 1, 6).round().astype(int)])
    shown = shown[np.argsort(single[shown])]
    fig = go.Figure()
    for k, unit in enumerate(shown):
        look = dict(legendgroup=str(unit), marker=dict(color=OTHERS[k], size=6))
        fig.add_scatter(x=found.count[:, unit], y=found.errors[:, unit], mode="lines+markers", name=f"unit {unit + 1}",
                        line=dict(color=OTHERS[k], width=1.3), customdata=found.prices,
                        hovertemplate="%{x} units, price %{customdata}: %{y:.3f}<extra></extra>", **look)  # fmt: skip
        fig.add_scatter(x=[1], y=[single[unit]], mode="markers", showlegend=False, legendgroup=str(unit),
                        marker=dict(color=OTHERS[k], size=11, symbol="star"), name=f"partner of unit {unit + 1}")  # fmt: skip
    few = [(found.count[found.chosen, np.arange(q)]).mean(), found.errors[found.chosen, np.arange(q)].mean()]
    fig.add_scatter(x=found.count.mean(1), y=found.errors.mean(1), mode="lines+markers", name="mean of all units",
                    line=dict(color=BLUE, width=3.5))  # fmt: skip
    fig.add_scatter(x=[1], y=[single.mean()], mode="markers", name="one partner, mean", marker=dict(color=GREY, size=15, symbol="star"))
    fig.add_vline(x=FEW, line=dict(color=INK, dash="dash", width=1), annotation_text=f"at most {FEW}", annotation_font_color=INK)
    style(fig, f"Predicting a unit of net 2: one partner leaves an error of {single.mean():.2f}, {few[0]:.1f} units leave {few[1]:.2f}, "
          f"all together {found.errors[0].mean():.2f} (mean over the units)", height=520,
          x="active units of net 1, one marker a price (stars: the matched unit alone)",
          y="held-out squared error [unit's variance]")  # fmt: skip
    return fig.update_yaxes(rangemode="tozero").update_layout(margin_b=120)


def _driving(s: Seen, layer: str, of: np.ndarray, units_: Units) -> np.ndarray:
    """The images that drive some units most, side by side [S, n (S + 1), 3] uint8; mean z-score over the units and places."""
    z = units_.held[:, of].mean(1).reshape(len(s.images), -1).mean(1)
    chosen = s.images[np.argsort(-z)[:PATCHES].copy()].permute(0, 2, 3, 1).numpy()
    chosen = np.repeat(chosen, 3, axis=3) if chosen.shape[3] == 1 else chosen
    framed = np.pad(np.clip(255 * chosen, 0, 255).astype(np.uint8), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)


def clusters(s: Seen, found, layer: str) -> go.Figure:
    """|c| with the units of both networks sorted by their joint cluster; the images that drive two shared clusters in each net."""
    x, y = s.first[layer], s.second[layer]
    size = {k: min((found.first == k).sum(), (found.second == k).sum()) for k in found.common}
    two = sorted(size, key=size.get, reverse=True)[:2]
    heads = [f"cluster {'AB'[i]} in net {net}" for i in range(len(two)) for net in (1, 2)]
    rows = max(2 * len(two), 1)
    specs = [[{"rowspan": rows} if r == 0 else None, {}] for r in range(rows)]
    fig = make_subplots(rows, 2, specs=specs, column_widths=[0.5, 0.5], vertical_spacing=0.1, horizontal_spacing=0.17,
                        subplot_titles=["|correlation| between the networks", *heads])  # fmt: skip
    place = {k: i for i, k in enumerate([*two, *np.setdiff1d(np.unique(found.first), two)])}
    rank = [np.array([place.get(k, len(place)) for k in labels]) for labels in (found.first, found.second)]
    first, second = (np.argsort(r, kind="stable") for r in rank)
    fig.add_heatmap(z=np.abs(found.between[np.ix_(first, second)]).round(3), colorscale="Cividis", zmin=0, zmax=1, row=1, col=1,
                    colorbar=dict(thickness=12, x=0.42, title="|c|"), hovertemplate="%{z:.2f}<extra></extra>")  # fmt: skip
    for k in range(len(place)):
        ends = [np.searchsorted(np.sort(r), [k, k + 1]) - 0.5 for r in rank]
        fig.add_shape(type="rect", y0=ends[0][0], y1=ends[0][1], x0=ends[1][0], x1=ends[1][1], line=dict(color="#FFFFFF", width=1.5),
                      row=1, col=1)  # fmt: skip
    for i, k in enumerate(two):
        for net, (units_, labels) in enumerate(((x, found.first), (y, found.second))):
            fig.add_image(z=_driving(s, layer, labels == k, units_), hoverinfo="skip", row=2 * i + net + 1, col=2)
    mean = [found.between[np.ix_(found.first == k, found.second == k)] for k in found.common]
    inside = np.mean(np.concatenate([np.abs(one).ravel() for one in mean])) if mean else 0.0
    every = len(np.union1d(found.first, found.second))
    style(fig, f"{len(found.common)} of {every} joint clusters at {layer} are shared by both networks; |c| is "
          f"{inside:.2f} inside them and {np.abs(found.between).mean():.2f} overall", height=540)  # fmt: skip
    fig.update_xaxes(title_text="unit of net 2, sorted by cluster", row=1, col=1, constrain="domain")
    fig.update_yaxes(title_text="unit of net 1, sorted by cluster", row=1, col=1, autorange="reversed")
    for r in range(2 * len(two)):
        fig.update_xaxes(visible=False, row=r + 1, col=2).update_yaxes(visible=False, row=r + 1, col=2)
    return fig.update_layout(margin_b=60)


# ---- training


def training(table) -> go.Figure:
    """Held-out correlation of partners, layer by layer, while both networks learn."""
    rows = table[(table["arm"] == "networks") & table["metric"].str.startswith("matched_")]
    rows = rows.assign(arm=rows["metric"].str.removeprefix("matched_"), metric="matched")
    ends = rows[rows["step"] == rows["step"].max()].groupby("arm")["value"].mean()
    starts = rows[rows["step"] == 0].groupby("arm")["value"].mean()
    shown = [layer for layer in LAYERS if layer in ends.index]
    said = ", ".join(f"{layer} {starts.get(layer, np.nan):.2f} to {ends[layer]:.2f}" for layer in shown)
    return curve(rows, "matched", arms=shown, palette=dict(zip(LAYERS, (OTHERS[1], BLUE, OTHERS[0], OTHERS[2]), strict=True)),
                 title=f"Correlation of one-to-one partners from before training to its end: {said}",
                 y_title="held-out correlation with the partner")  # fmt: skip


# ---- live views: the images are those of seed 0, which follow from the parameters


def _seen(net: Pair, params, layer: str) -> tuple[Units, Units, Match]:
    x = load(0, params.patches, source()).test_x
    half, few = len(x) // 2, min(VIEWED, len(x)) // 2
    x = torch.cat([x[:few], x[half : half + few]])

    def look(one: Net) -> Units:
        return units(capture(one.eval(), x, 0)[layer])

    first, second = look(net.first), look(net.second)
    return first, second, matching(first, second, params.similarity)


def matrix_view(net: Pair, params) -> go.Figure:
    """The matrix of a pair as it is now, on images of seed 0."""
    return matrix(*_seen(net, params, params.layer), params.layer)


def filters_view(net: Pair, params) -> go.Figure:
    """Filters of conv1 as they are now, matched on images of seed 0."""
    return filters(net, *_seen(net, params, "conv1"))
