"""Figures and live views of the study `causal-fairness-sensitivity`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import INK, OTHERS, colours, faded, style
from claimlab.studies.causality import _causal_fairness_sensitivity_method as method
from claimlab.studies.causality._causal_fairness_sensitivity_nets import Predictor

NAMES = ("unconstrained", "naive_fair", "blind", "robust_fair", "robust_de_only", "penalty_only")
COLOURS = colours(NAMES, "naive_fair", "robust_fair")
PAIR = ("naive_fair", "robust_fair")
SYMBOLS = dict(zip(NAMES, ("square", "circle", "diamond", "circle", "triangle-up", "x"), strict=True))
FINE = np.round(np.arange(1, 6.001, 0.1), 2)


def figures(lab) -> dict[str, go.Figure]:
    """All figures, if naive and robust have been trained."""
    if not set(PAIR) <= set(lab.arms):
        return {}
    return {"intervals": sensitivity(lab), "fairness and accuracy": trade(lab), "constraints": constraints(lab),
            "refutation": refutation(lab)}  # fmt: skip


# ---- helpers


def _last(lab, arm: str, metric: str):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed").value.last()


@torch.no_grad()
def swept(net: Predictor, params, strengths=FINE) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest effects [strengths, 3] on the test half, at each strength of the own world."""
    found = [net.interval(float(s), params.conditional, scaled=False) for s in strengths]
    return tuple(torch.stack([pair[k] for pair in found]).cpu().numpy() for k in (0, 1))


@torch.no_grad()
def _truth(net: Predictor, params) -> np.ndarray | None:
    return net.true_effects(params.conditional).cpu().numpy() if hasattr(net, "true_share") else None


def _insured(net: Predictor, params) -> float:
    return float(method.level(params.gamma, net.factor[0]))


def _range(figure, low, high, arm: str, shown: bool, at: dict) -> None:
    figure.add_scatter(x=np.r_[FINE, FINE[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(COLOURS[arm], 0.25),
                       mode="lines", line=dict(color=COLOURS[arm], width=1), name=f"{arm}: interval", legendgroup=arm,
                       showlegend=shown, hoverinfo="skip", **at)  # fmt: skip


def _level(figure, value: float, line: dict, name: str, shown: bool, at: dict) -> None:
    figure.add_scatter(x=[1, FINE[-1]], y=[value] * 2, mode="lines", line=line, name=name, legendgroup=name, showlegend=shown,
                       hoverinfo="skip", **at)  # fmt: skip


# ---- figures


@torch.no_grad()
def sensitivity(lab) -> go.Figure:
    """Interval of each effect against the assumed strength: naive above, robust below, both of the first seed."""
    figure = make_subplots(2, 3, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.07,
                           subplot_titles=[f"{name} effect" for name in method.EFFECTS], row_titles=list(PAIR))  # fmt: skip
    p, widest = lab.params, {}
    for row, arm in enumerate(PAIR, 1):
        net = lab.arms[arm].members[0].eval()
        low, high = swept(net, p)
        truth, world = _truth(net, p), _insured(net, p)
        for k in range(3):
            at = dict(row=row, col=k + 1)
            _range(figure, low[:, k], high[:, k], arm, k == 0, at)
            _level(figure, low[0, k], dict(color=INK, dash="dot", width=1.5), "estimate at strength 1", row + k == 1, at)
            if truth is not None:
                _level(figure, truth[k], dict(color=OTHERS[3], width=2), "true effect", row + k == 1, at)
            figure.add_hline(y=0, line=dict(color=INK, width=0.5), **at)
            figure.add_vline(x=world, line=dict(color=INK, dash="dash", width=1), **at)
        widest[arm] = float(method.largest(*net.interval(p.gamma, p.conditional)).max())
    figure.update_xaxes(title_text="assumed strength", row=2)
    figure.update_yaxes(title_text="effect [probability]", col=1)
    title = (f"Seed {lab.seeds[0]}: at the insured strength {world:.3g} (dashed) an effect of naive_fair may be as large as "
             f"{widest['naive_fair']:.3f}, of robust_fair {widest['robust_fair']:.3f}")  # fmt: skip
    return style(figure, title, height=560)


def trade(lab) -> go.Figure:
    """Largest true effect against test accuracy, one dot a seed; of records the largest effect that their data allow."""
    known = (lab.table.metric == "true_unfairness").any()
    metric, what = ("true_unfairness", "largest true effect") if known else ("worst_case", "largest possible effect")
    figure = go.Figure()
    for arm in [a for a in NAMES if a in lab.arms]:
        x, y = _last(lab, arm, "test_accuracy"), _last(lab, arm, metric)
        mark = dict(color=COLOURS[arm], size=10, symbol=SYMBOLS[arm], opacity=0.8)
        figure.add_scatter(x=x, y=y, mode="markers", marker=mark, name=arm, hovertext=[f"seed {s}" for s in x.index])
    figure.add_hline(y=lab.params.tolerance, line=dict(color=INK, dash="dash", width=1.5), annotation_text="tolerance",
                     annotation_position="top right", annotation_font_color=INK)  # fmt: skip
    mean = {arm: [_last(lab, arm, name).mean() for name in (metric, "test_accuracy")] for arm in PAIR}
    title = (f"Mean {what}: naive_fair {mean['naive_fair'][0]:.3f}, robust_fair {mean['robust_fair'][0]:.3f}, "
             f"at accuracies of {mean['naive_fair'][1]:.3f} and {mean['robust_fair'][1]:.3f}")  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return style(figure, title, x="test accuracy [share of rows]", y=f"{what} [probability]", height=460)


def constraints(lab) -> go.Figure:
    """Excess over the tolerance on the training half, and the multipliers, by outer round; mean over seeds."""
    figure = make_subplots(2, 3, shared_xaxes=True, shared_yaxes="rows", horizontal_spacing=0.03, vertical_spacing=0.08,
                           subplot_titles=[f"{name} effect" for name in method.EFFECTS])  # fmt: skip
    arms = [a for a in ("naive_fair", "robust_fair", "penalty_only") if a in lab.arms]
    for column, effect in enumerate(method.EFFECTS, 1):
        for row, metric in enumerate((f"excess_{effect}", f"multiplier_{effect}"), 1):
            rows = lab.table[lab.table.metric == metric]
            for arm in arms:
                mean = rows[rows.arm == arm].groupby("step").value.mean()
                pen = dict(color=COLOURS[arm], width=2.5, dash="dot" if arm == "penalty_only" else "solid")
                figure.add_scatter(x=mean.index / lab.params.steps, y=mean, mode="lines+markers", marker_size=5, line=pen, name=arm,
                                   legendgroup=arm, showlegend=row * column == 1, row=row, col=column)  # fmt: skip
        figure.add_hline(y=0, line=dict(color=INK, width=1), row=1, col=column)
    figure.update_xaxes(title_text="outer round", row=2)
    figure.update_yaxes(title_text="worst case − tolerance", row=1, col=1)
    figure.update_yaxes(title_text="multiplier λ", row=2, col=1)
    left = {a: max(_last(lab, a, f"excess_{e}").max() for e in method.EFFECTS) for a in arms}
    told = ", ".join(f"{arm} {value:+.3f}" for arm, value in left.items())
    return style(figure, f"Largest excess over the tolerance after the last round (any effect, any seed): {told}", height=520)


def refutation(lab) -> go.Figure:
    """Largest effect that the data allow against the assumed strength, a line a seed; a cross where it leaves the tolerance."""
    figure, p, broken = go.Figure(), lab.params, {}
    for arm in PAIR:
        broken[arm] = []
        for k, net in enumerate(lab.arms[arm].members):
            worst = method.largest(*map(torch.tensor, swept(net.eval(), p))).max(1).values.numpy()
            figure.add_scatter(x=FINE, y=worst, mode="lines", line=dict(color=COLOURS[arm], width=1.5), name=arm, legendgroup=arm,
                               showlegend=k == 0, hovertext=f"seed {lab.seeds[k]}")  # fmt: skip
            if (at := breaking(worst, p.tolerance)) is not None:
                broken[arm].append(FINE[at])
                mark = dict(color=COLOURS[arm], symbol="x", size=9)
                figure.add_scatter(x=[FINE[at]], y=[worst[at]], mode="markers", marker=mark, showlegend=False, name=arm,
                                   legendgroup=arm)  # fmt: skip
    figure.add_hline(y=p.tolerance, line=dict(color=INK, dash="dash", width=1.5), annotation_text="tolerance",
                     annotation_position="bottom right", annotation_font_color=INK)  # fmt: skip
    told = [f"{arm} at {np.median(found):.2g} (median of {len(found)} of {len(lab.seeds)} seeds)" if found else f"{arm} on no seed"
            for arm, found in broken.items()]  # fmt: skip
    title = "Assumed strength at which the worst case leaves the tolerance: " + ", ".join(told)
    figure.update_yaxes(rangemode="tozero")
    return style(figure, title, x="assumed strength Γ", y="largest possible effect [probability]", height=460)


def breaking(worst: np.ndarray, tolerance: float) -> int | None:
    """Index of the first strength at which the worst case exceeds the tolerance."""
    over = np.flatnonzero(worst > tolerance)
    return int(over[0]) if len(over) else None


# ---- live views: everything but gamma and tolerance is in the net


def _no_predictor(net) -> go.Figure | None:
    return None if isinstance(net, Predictor) else style(go.Figure(), "This arm learns the laws; it has no predictor")


@torch.no_grad()
def intervals(net, params) -> go.Figure:
    """Interval of each effect of the present predictor, the true effect and the tolerance."""
    if (empty := _no_predictor(net)) is not None:
        return empty
    low, high = (side.cpu().numpy() for side in net.interval(params.gamma, params.conditional))
    figure = go.Figure()
    figure.add_hrect(y0=-params.tolerance, y1=params.tolerance, fillcolor=faded(OTHERS[1], 0.15), line_width=0)
    for k, name in enumerate(method.EFFECTS):
        figure.add_scatter(x=[name, name], y=[low[k], high[k]], mode="lines+markers", marker=dict(symbol="line-ew-open", size=22),
                           line=dict(color=COLOURS["robust_fair"], width=4), showlegend=k == 0, name="interval")  # fmt: skip
    if (truth := _truth(net, params)) is not None:
        figure.add_scatter(x=method.EFFECTS, y=truth, mode="markers", marker=dict(color=OTHERS[3], size=11), name="true effect")
    inside = sum(max(abs(a), abs(b)) <= params.tolerance for a, b in zip(low, high, strict=True))
    title = f"{inside} of 3 intervals lie within the tolerance (green) at strength {_insured(net, params):.3g}"
    return style(figure, title, x="causal effect", y="effect on the prediction [probability]")


@torch.no_grad()
def cells(net, params) -> go.Figure:
    """The predictor on the cells (z, m), for a = 0 and a = 1."""
    if (empty := _no_predictor(net)) is not None:
        return empty
    g = net().cpu().numpy()
    figure = make_subplots(1, 2, subplot_titles=("a = 0", "a = 1"), shared_yaxes=True, horizontal_spacing=0.05)
    for a in (0, 1):
        figure.add_heatmap(z=g[a], x=[str(m) for m in range(g.shape[2])], coloraxis="coloraxis", texttemplate="%{z:.2f}",
                           y=[str(k) for k in range(g.shape[1])], row=1, col=a + 1)  # fmt: skip
    figure.update_layout(coloraxis=dict(colorscale="Cividis", cmin=0, cmax=1, colorbar_title="f"))
    figure.update_xaxes(title_text="mediator m").update_yaxes(title_text="level of z", col=1)
    return style(figure, f"The two tables differ by {abs(g[1] - g[0]).mean():.3f} on average")


@torch.no_grad()
def bars(net, params) -> go.Figure:
    """Accuracy and largest true effect of the present predictor, between the best table for accuracy and a constant one."""
    if (empty := _no_predictor(net)) is not None:
        return empty
    counts = net.seen[0].transpose(0, 1)
    best, rate = (counts[..., 1] + 0.5) / (counts.sum(-1) + 1), counts[..., 1].sum() / counts.sum()
    found = {"best table": best, "this one": net(), "constant": torch.full_like(best, float(rate))}
    shade = dict(zip(found, (COLOURS["unconstrained"], COLOURS["robust_fair"], COLOURS["naive_fair"]), strict=True))
    figure = make_subplots(1, 2, horizontal_spacing=0.14)
    for name, g in found.items():
        said, held = g.round(), net.held.transpose(0, 1)
        accuracy = float((held[..., 1] * said + held[..., 0] * (1 - said)).sum() / held.sum())
        figure.add_bar(x=[name], y=[accuracy], marker_color=shade[name], showlegend=False, row=1, col=1)
        figure.add_bar(x=[name], y=[_unfair(net, g, params)], marker_color=shade[name], showlegend=False, row=1, col=2)
    figure.add_hline(y=params.tolerance, line=dict(color=INK, dash="dash"), row=1, col=2)
    what = "largest true effect" if hasattr(net, "true_share") else "largest plug-in effect"
    figure.update_yaxes(title_text="test accuracy [share of rows]", range=[0, 1], col=1)
    figure.update_yaxes(title_text=f"{what} [probability]", col=2)
    return style(figure, f"Between two extremes: accuracy, and {what} (dashed: tolerance)")


def _unfair(net: Predictor, g, params) -> float:
    if hasattr(net, "true_share"):
        law = net.own_law if params.conditional else net.law
        return float(method.effects(g, law[0], net.true_observed[0], net.true_share[0]).abs().max())
    from claimlab.studies.causality._causal_fairness_sensitivity_nets import shares

    law = net.observed[0]
    return float(method.effects(g, law.expand(2, -1, -1, -1), law, shares(net.held)).abs().max())
