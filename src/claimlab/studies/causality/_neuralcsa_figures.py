"""Figures and views of the study neuralcsa. Everything drawn comes from the members; titles are computed from what they hold."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, faded, style
from claimlab.studies.causality import _neuralcsa_method as method
from claimlab.studies.causality._neuralcsa_nets import nodes, plain

WORDS = {"msm": "marginal", "kl": "KL", "tv": "total variation", "hellinger": "Hellinger", "chi2": "chi-squared",
         "rosenbaum": "Rosenbaum"}  # fmt: skip
QUERIES = {"cate": "effect of the treatment", "ate": "average effect", "mean_do_1": "mean outcome under do(1)",
           "prob_above": "P(outcome above its mean) under do(1)"}  # fmt: skip
BLACK = "#333333"


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; arms that the lab did not run are left out."""
    drawn = {"effects": effects(lab), "shift": shift(lab), "widths": widths(lab), "rounds": rounds(lab), "gaps": gaps(lab)}
    return {name: fig for name, fig in drawn.items() if fig.data}


def numbers(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def scaled(net, values) -> np.ndarray:
    """A query [n] in the outcome's own unit; probabilities stay as they are."""
    found, sd = numbers(values), float(net.scale[1])
    return found if net.query == "prob_above" else found * sd + (float(net.scale[0]) if net.query == "mean_do_1" else 0.0)


def unit(net) -> str:
    return f"{QUERIES[net.query]} ({'probability' if net.query == 'prob_above' else 'units of y'})"


def _band(fig, x, low, high, colour, name, col=1, dash=None) -> None:
    """An interval at each x, filled, with its edges drawn."""
    line = {"color": colour, "width": 1.6, "dash": dash}
    fig.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", line={"width": 0},
                    fillcolor=faded(colour, 0.16), hoverinfo="skip", showlegend=False, row=1, col=col)  # fmt: skip
    for k, edge in enumerate((low, high)):
        fig.add_scatter(x=x, y=edge, mode="lines", line=line, name=name, legendgroup=name, showlegend=k == 0, row=1, col=col)


def _effect(fig, first, learned, best, col=1, name="learned bounds", colour=BLUE) -> float:
    """Truth, plug-in, learned band and sharp band of one member into one panel; the share of x at which the truth is inside."""
    x = numbers(first.points)[:, 0]
    order = np.argsort(x)
    truth = scaled(first, first.truth)[order]
    with torch.no_grad():
        middle = method.ends(plain(first), first.query)[0]
    ends = [scaled(first, one.expand(len(x)))[order] for one in method.ends(learned, first.query)]
    x = x[order]
    if best is not None:
        sharp = [scaled(first, one.expand(len(x)))[order] for one in method.ends(best, first.query)]
        for k, edge in enumerate(sharp):
            fig.add_scatter(x=x, y=edge, mode="lines", line={"color": OTHERS[0], "width": 2.5, "dash": "dash"}, legendgroup="sharp",
                            name="sharp marginal bounds, closed form", showlegend=k == 0, row=1, col=col)  # fmt: skip
    _band(fig, x, *ends, colour, name, col)
    fig.add_scatter(x=x, y=scaled(first, middle.expand(len(x)))[order], mode="lines", line={"color": GREY, "width": 1.5},
                    name="without hidden confounding", legendgroup="naive", showlegend=col == 1, row=1, col=col)  # fmt: skip
    fig.add_scatter(x=x, y=truth, mode="lines", line={"color": BLACK, "width": 2, "dash": "dot"}, name="truth", legendgroup="truth",
                    showlegend=col == 1 and not np.isnan(truth).any(), row=1, col=col)  # fmt: skip
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


@torch.no_grad()
def effects(lab) -> go.Figure:
    """The effect against x for the first seed: marginal model left, KL model right."""
    arms = [arm for arm in ("neuralcsa_msm", "neuralcsa_kl") if arm in lab.arms]
    if not arms:
        return go.Figure()
    fig = make_subplots(1, len(arms), shared_yaxes=True, horizontal_spacing=0.04)
    told = []
    for k, arm in enumerate(arms, 1):
        net, word = lab.arms[arm].members[0], WORDS[arm[-2:] if arm.endswith("kl") else "msm"]
        colour = arm_colours(lab)[arm]
        share = _effect(fig, net.first, net.four(2000)[0][0], net.best if k == 1 else None, k, f"learned, {word} model", colour)
        told.append(f"{share:.0%} of the query points with the {word} model")
        fig.update_xaxes(title="first covariate x (1)", row=1, col=k)
    fig.update_yaxes(title=unit(lab.arms[arms[0]].members[0].first), col=1)
    known = not bool(lab.arms[arms[0]].members[0].first.truth.isnan().any())
    title = f"The learned interval holds the truth at {' and at '.join(told)} (first seed)" if known else "Bounds (first seed)"
    return style(fig, title, height=480).update_layout(margin_b=120)


def _latent(net, bound: int = 0, point: int | None = None, m: int = 1000):
    """x, u, phi(u), P(u | x, do(a)), ratio q and the knot of one bound at one query point."""
    point = int(net.pi.shape[1] * 0.75) if point is None else point
    t = nodes(m, net.pi).expand(net.pi.shape[1], -1)
    reached, q, _ = net.shifted(t)
    u, q = method.latent(reached)[0, bound, point], q[0, bound, point]
    phi = torch.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    pi = net.mix[bound, point]
    return float(net.first.points[point, 0]), *(numbers(v) for v in (u, phi, phi * (pi + (1 - pi) * q), q)), point


def _draw_shift(net, gamma: float) -> go.Figure:
    with torch.no_grad():
        x, u, phi, after, q, _ = _latent(net)
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    line = {"color": GREY, "width": 2, "dash": "dot"}
    fig.add_scatter(x=u, y=phi, mode="lines", line=line, name="before: u given x and a = 1", row=1, col=1)
    fig.add_scatter(x=u, y=after, mode="lines", line={"color": BLUE, "width": 2.5}, name="after: u given x, do(a = 1)", row=1, col=1)
    fig.add_scatter(x=u, y=q, mode="lines", line={"color": BLUE, "width": 2.5}, name="ratio", showlegend=False, row=2, col=1)
    for level, name in ((1 / gamma, "1/Γ"), (gamma, "Γ")):
        fig.add_hline(y=level, line={"color": INK, "dash": "dash", "width": 1}, annotation_text=name, row=2, col=1)
    place = float(torch.special.ndtri(torch.tensor(gamma / (1 + gamma))))
    fig.add_vline(x=place, line={"color": OTHERS[0], "dash": "dash", "width": 1.5}, row=2, col=1)
    fig.add_annotation(x=place, y=gamma, text="sharp step", showarrow=False, xanchor="right", yanchor="top", font_color=OTHERS[0],
                       row=2, col=1)  # fmt: skip
    middle = math.sqrt(float(q.min()) * float(q.max()))
    crossed = u[np.abs(q - middle).argmin()]
    fig.update_xaxes(title="latent u (standard deviations)", range=[-3.5, 3.5], row=2, col=1)
    fig.update_xaxes(range=[-3.5, 3.5], row=1, col=1)
    fig.update_yaxes(title="density", row=1, col=1)
    fig.update_yaxes(title="ratio of densities (1)", range=[0, max(gamma * 1.2, float(q.max()) * 1.05)], row=2, col=1)
    flat = q.max() - q.min() < 0.05
    told = "the law is not moved" if flat else f"the ratio goes from {q[0]:.2f} to {q[-1]:.2f} and crosses its middle at u = {crossed:.2f}"
    return style(fig, f"Worst case for a = 1 at x = {x:.2g}: {told}; the sharp step is at u = {place:.2f}", height=560).update_layout(
        margin_b=110
    )


def shift(lab) -> go.Figure:
    """The latent density before and after the learned shift, and the ratio with its limits, for the first seed."""
    if "neuralcsa_msm" not in lab.arms:
        return go.Figure()
    return _draw_shift(lab.arms["neuralcsa_msm"].members[0], lab.params.gamma)


def widths(lab) -> go.Figure:
    """Interval width against the strength of the hidden cause, a line for each sensitivity model."""
    rows = lab.table[lab.table["arm"] == "widths"].dropna()
    fig = go.Figure()
    if rows.empty:
        return fig
    sd = float(lab.arms["naive"].members[0].scale[1]) if lab.params.query != "prob_above" else 1.0
    found: dict[str, dict[float, float]] = {}
    for name, value in zip(rows["metric"], rows["value"], strict=True):
        model, _, strength = name.rpartition("width of ")[2].partition(" at ")
        found.setdefault(model, {})[float(strength)] = value * sd
    for k, (model, line) in enumerate(found.items()):
        x = sorted(line)
        fig.add_scatter(x=x, y=[line[g] for g in x], mode="lines+markers", name=WORDS[model],
                        line={"color": BLUE if model == "msm" else OTHERS[k - 1], "width": 3 if model == "msm" else 1.8},
                        marker={"symbol": k, "size": 8})  # fmt: skip
    last = {model: line[max(line)] for model, line in found.items()}
    low, high = min(last, key=last.get), max(last, key=last.get)
    strongest = max(next(iter(found.values())))
    fig.update_xaxes(type="log", tickvals=sorted(next(iter(found.values()))))
    title = f"At strength {strongest:.3g} the {WORDS[low]} model gives the narrowest interval, the {WORDS[high]} model the widest"
    return style(fig, title, x="strength of the binary hidden cause that sets each model's Γ (1)",
                 y="mean width of the interval (units of y)").update_layout(margin_b=120)  # fmt: skip


def rounds(lab) -> go.Figure:
    """D - Gamma before the repair, and the upper bound, over the outer rounds; a thin line a seed."""
    arms = [arm for arm in ("neuralcsa_msm", "neuralcsa_kl", "no_bernoulli") if arm in lab.arms]
    colour = arm_colours(lab)
    fig = make_subplots(1, 2, horizontal_spacing=0.14, subplot_titles=("D − Γ, mean over points and bounds", "mean upper bound"))
    ended = []
    for arm in arms:
        for col, metric in enumerate(("excess", "upper"), 1):
            rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
            wide = rows.pivot(index="step", columns="seed", values="value")
            x = wide.index / lab.params.inner
            for seed in wide:
                fig.add_scatter(x=x, y=wide[seed], mode="lines", line={"color": colour[arm], "width": 1}, opacity=0.35, hoverinfo="skip",
                                showlegend=False, row=1, col=col)  # fmt: skip
            fig.add_scatter(x=x, y=wide.mean(axis=1), mode="lines", line={"color": colour[arm], "width": 2.5}, name=arm.replace("_", " "),
                            legendgroup=arm, showlegend=col == 1, row=1, col=col)  # fmt: skip
            if metric == "excess":
                ended.append(f"{wide.iloc[-1].mean():+.3f} ({arm.replace('_', ' ')})")
    fig.update_xaxes(title="outer round").update_yaxes(title="D − Γ (1)", col=1).update_yaxes(title="upper bound (sd of y)", col=2)
    return style(fig, f"The constraint ends at {', '.join(ended)}", height=440) if arms else go.Figure()


def gaps(lab) -> go.Figure:
    """Gap to the sharp bound of every arm that claims one: a dot a seed, a line for the mean."""
    fig, colour, told = go.Figure(), arm_colours(lab), []
    arms = [a for a in ("naive", "neuralcsa_msm", "single_stage", "no_bernoulli", "neuralcsa_kl") if a in lab.arms]
    rows = lab.table[(lab.table["metric"] == "gap_to_closed_form") & lab.table["arm"].isin(arms)]
    last = rows.sort_values("step").groupby(["arm", "seed"])["value"].last().unstack("seed")
    for arm in [a for a in arms if a in last.index]:
        values, word = last.loc[arm].to_numpy(), arm.replace("_", " ")
        fig.add_scatter(x=[word] * len(values), y=values, mode="markers", marker={"color": colour[arm], "size": 8, "opacity": 0.6},
                        showlegend=False)  # fmt: skip
        fig.add_scatter(x=[word], y=[np.nanmean(values)], mode="markers", showlegend=False,
                        marker={"color": colour[arm], "symbol": "line-ew-open", "size": 34, "line": {"width": 3}})  # fmt: skip
        told.append(f"{word} {np.nanmean(values):.2g}")
    limit = next(c.margin for c in lab.study.claims if c.id == "matches-closed-form")
    fig.add_hline(y=limit, line={"color": INK, "dash": "dash", "width": 1}, annotation_text="margin of matches-closed-form")
    return style(fig, "Gap to the sharp upper bound: " + ", ".join(told), y="gap (sd of y)", x="arm").update_yaxes(
        rangemode="tozero"
    )


# ---- views of one member, from the member alone


def _parts(net):
    """Stage 1 of a member, its four bounds [4, n] and the sharp ones (None before stage 2)."""
    if hasattr(net, "first"):
        knots = net.first.curves(net.flow) if hasattr(net, "flow") else None
        return net.first, net.four(300, knots)[0][0], net.best
    return net, plain(net, 300), None


@torch.no_grad()
def effect_view(net, params) -> go.Figure:
    """Effect against x: truth, plug-in, learned band and the sharp marginal band."""
    first, learned, best = _parts(net)
    fig = make_subplots(1, 1)
    share = _effect(fig, first, learned, best)
    low, high = method.ends(learned, first.query)
    fig.update_xaxes(title="first covariate x (1)").update_yaxes(title=unit(first))
    width = float((high - low).mean())
    return style(fig, f"Mean width {width:.2f} sd of y; the truth is inside at {share:.0%} of the query points").update_layout(margin_b=110)


@torch.no_grad()
def latent_view(net, params) -> go.Figure:
    """Latent density before and after the shift; before stage 2 nothing is moved."""
    if hasattr(net, "first"):
        return _draw_shift(net, params.gamma)
    u = torch.linspace(-3.5, 3.5, 200)
    fig = go.Figure(go.Scatter(x=u.tolist(), y=(torch.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)).tolist(), line={"color": GREY}))
    return style(fig, "Stage 1 fixes this law; stage 2 moves it", x="latent u (standard deviations)", y="density")


@torch.no_grad()
def outcome_view(net, params) -> go.Figure:
    """Outcomes of the rows nearest the middle query point (kept with the member), density of the flow, and the worst case."""
    first = getattr(net, "first", net)
    flow = net.flow if hasattr(net, "flow") else first.flow
    point = len(first.points) // 2
    knot, y = first.curves(flow)[0, point], torch.linspace(-3, 3, 300)
    u, slope = method.inverse(knot, y)
    density = torch.exp(-(u**2) / 2 - slope) / math.sqrt(2 * math.pi)
    mean, sd = (float(v) for v in first.scale)
    own = mean + sd * numbers(y)
    fig = go.Figure(go.Histogram(x=mean + sd * numbers(first.nearby), histnorm="probability density", nbinsx=24, name="nearest rows",
                                 marker_color=faded(GREY, 0.5)))  # fmt: skip
    fig.add_scatter(x=own, y=numbers(density) / sd, mode="lines", line={"color": GREY, "width": 2.5}, name="flow")
    title = f"Outcomes of the treated at x = {float(first.points[point, 0]):.2g}"
    if first is not net:
        _, moved, _, _, q, _ = _latent(net, 0, point)
        order = np.argsort(moved)
        pi = float(net.mix[0, point])
        ratio = pi + (1 - pi) * np.interp(numbers(u), moved[order], q[order])
        fig.add_scatter(x=own, y=ratio * numbers(density) / sd, mode="lines", line={"color": BLUE, "width": 2.5}, name="worst case")
        title += f": the worst case moves the mean by {float(net.four(300)[0][0, 0, point] - net.centre[0, point]) * sd:+.2f}"
    return style(fig, title, x="outcome y", y="density (1 / unit of y)")
