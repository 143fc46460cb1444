"""Figures and live views of the study modular-addition. Titles say what was found, computed from the lab."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, band, bars, curve, faded, style
from claimlab.studies.representation import _modular_addition_data as data
from claimlab.studies.representation import _modular_addition_method as method
from claimlab.studies.representation import modular_addition as study

ORANGE, RED = OTHERS[0], OTHERS[3]
STAGES = ("memorises", "generalises", "cleans up")
LEARNED, QUIET = 0.99, 0.1  # train accuracy that ends stage 1; share of its peak at which the gradient ends stage 2
FRAMES = 12
SWEEP = ("grok_no_decay", "grok_decay_quarter", "grok_decay_half", "grok_decay", "grok_decay_twice")


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run, and what a table without frequencies cannot have, is left out."""
    p, drawn = lab.params, {}
    if data.fourier(p.p):
        if "full_data" in lab.arms:
            drawn |= {"spectrum": sharpening(lab), "phases": phases(lab)}
        if "lottery" in lab.arms:
            drawn["race"] = races(lab)
        if "construct_diverse" in lab.arms:
            drawn["vote"] = vote(lab)
        for metric, start, what in (("winner_hit_rate", "predict_", "Live neurons whose winner was named at step 0"),
                                    ("logit_margin", "construct_", "Margin of the right answer in hand-built nets")):  # fmt: skip
            if arms := [a for a in lab.arms if a.startswith(start)]:
                drawn[metric] = _last_values(lab, metric, arms, what)
    if {"grok_decay", "grok_no_decay"} <= set(lab.arms):
        drawn["grokking"] = grokking(lab)
    if swept := [a for a in SWEEP if a in lab.arms and "grok_decay_half" in lab.arms]:
        said = ", ".join(f"{a} {last(lab, a, 'test_accuracy'):.2f}" for a in swept)
        drawn["sweep"] = curve(lab.table, "test_accuracy", arms=swept, baseline="grok_no_decay", method="grok_decay", height=420,
                               title=f"Test accuracy at the end: {said}",
                               y_title="test accuracy [share of held-out cells]")  # fmt: skip
    return drawn


def last(lab, arm: str, metric: str) -> float:
    """Mean over seeds of the last value; NaN where there is none."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return float(rows.sort_values("step").groupby("seed")["value"].last().mean())


def _last_values(lab, metric: str, arms: list[str], what: str) -> go.Figure:
    said = ", ".join(f"{a.partition('_')[2].replace('_', ' ')} {last(lab, a, metric):.2f}" for a in arms)
    unit = "hits [share of live neurons]" if metric == "winner_hit_rate" else "margin [sd of all logits]"
    names = {a: a.partition("_")[2].replace("_", " ") for a in arms}
    method_, baseline = (("predict_ode", "predict_magnitude") if metric == "winner_hit_rate" else
                         ("construct_diverse", "construct_quarter_phase"))  # fmt: skip
    return bars(lab.table, metric, arms=arms, title=f"{what}: {said}", y_title=unit, names=names,
                method=method_, baseline=baseline, height=360)  # fmt: skip


# ---- spectrum and phases of the network that sees the whole table


def _order(a: torch.Tensor) -> np.ndarray:
    """Neurons by dominant frequency, the purest first."""
    share, k = method.shares(a).max(-1)
    return np.lexsort((-share.numpy(), k.numpy()))


def _power(a: torch.Tensor, rows: np.ndarray, shown: bool = True, bar: bool = True) -> go.Heatmap:
    share = method.shares(a).numpy()[rows]
    place = dict(title="share of the<br>neuron's power", len=0.9) if bar else None
    return go.Heatmap(z=share, x=np.arange(1, share.shape[1] + 1), zmin=0, zmax=1, colorscale="Viridis", visible=shown,
                      showscale=bar, colorbar=place, hovertemplate="neuron %{y}, frequency %{x}: %{z:.2f}<extra></extra>")  # fmt: skip


def sharpening(lab) -> go.Figure:
    """Share of each frequency in each neuron's power: at the start on the left, over training on the right (slider)."""
    film = lab.arms["full_data"].film
    steps = sorted(film)
    steps = [steps[i] for i in np.unique(np.round(np.linspace(0, 1, FRAMES) ** 2 * (len(steps) - 1)).astype(int))]
    rows = _order(film[steps[-1]][0])
    fig = make_subplots(1, 2, subplot_titles=("step 0", "at the step of the slider"), horizontal_spacing=0.08, shared_yaxes=True)
    fig.add_trace(_power(film[steps[0]][0], rows, bar=False), row=1, col=1)
    for step in steps:
        fig.add_trace(_power(film[step][0], rows, shown=step == steps[-1]), row=1, col=2)
    shown = [[True] + [other == step for other in steps] for step in steps]
    moves = [dict(method="restyle", args=[{"visible": v}], label=f"{s}") for s, v in zip(steps, shown, strict=True)]
    median = [float(method.shares(film[s][0]).amax(-1).median()) for s in (steps[0], steps[-1])]
    style(fig, f"Strongest frequency of the median neuron: {median[0]:.2f} of its power at step 0, {median[1]:.2f} at step "
          f"{steps[-1]} (seed {lab.seeds[0]}, rows sorted by the frequency at the end)", height=620, x="frequency k")  # fmt: skip
    fig.update_yaxes(title_text="neuron", col=1).update_xaxes(dtick=max(1, len(film[steps[0]][0][0]) // 10))
    slider = dict(active=len(steps) - 1, steps=moves, currentvalue=dict(prefix="optimiser step "), pad=dict(t=50), len=1.0)
    return fig.update_layout(sliders=[slider], margin_b=120)


def phases(lab) -> go.Figure:
    """Output phase against twice the input phase of every neuron at its dominant frequency, start and end."""
    film = lab.arms["full_data"].film
    ends = (min(film), max(film))
    found = [float(method.misalignment(*film[s])) for s in ends]
    fig = make_subplots(1, 2, subplot_titles=[f"step {s}" for s in ends], horizontal_spacing=0.1)
    for column, step in enumerate(ends, 1):
        _cloud(fig, *film[step], row=1, col=column, bar=column == 2)
    style(fig, f"Mean distance of psi from 2 phi: {found[0]:.2f} rad at the start (random is {math.pi / 2:.2f}), {found[1]:.2f} rad "
          f"at the end (seed {lab.seeds[0]}, size by amplitude)", height=480)  # fmt: skip
    return fig.update_layout(showlegend=False)


def _cloud(fig: go.Figure, a: torch.Tensor, b: torch.Tensor, *, bar: bool = True, **place) -> None:
    top, k = a.abs().max(-1)
    phi, psi = (c.gather(-1, k[:, None])[:, 0].angle().numpy() for c in (a, b))
    full, size = 2 * math.pi, (top / top.max().clamp_min(1e-30)).numpy()
    look = dict(size=3 + 7 * size, color=k.numpy() + 1, colorscale="Turbo", cmin=1, cmax=a.shape[-1], opacity=0.75,
                showscale=bar, colorbar=dict(title="frequency k"), line_width=0)  # fmt: skip
    fig.add_scatter(x=[0, full], y=[0, full], mode="lines", line=dict(color=INK, dash="dash", width=1), hoverinfo="skip", **place)
    fig.add_scatter(x=2 * phi % full, y=psi % full, mode="markers", marker=look, customdata=k.numpy() + 1,
                    hovertemplate="k = %{customdata}: 2 phi %{x:.2f}, psi %{y:.2f}<extra></extra>", **place)  # fmt: skip
    ticks = dict(tickvals=[0, math.pi / 2, math.pi, 1.5 * math.pi, full], ticktext=["0", "π/2", "π", "3π/2", "2π"], range=[-0.2, 6.5])
    fig.update_xaxes(title_text="2 phi, twice the input phase [rad]", **ticks, **place)
    fig.update_yaxes(title_text="psi, output phase [rad]" if place.get("col", 1) == 1 else "", **ticks, **place)


# ---- the lottery


def races(lab) -> go.Figure:
    """Two neurons' races: all frequencies of the network (solid) and of the flow (dashed), with the predicted winner."""
    run = lab.arms["lottery"]
    a, b = study.start(run, 0)
    won, times = method.race(a, b, lab.params.p)
    favourite = study.by_magnitude(a, b, lab.params.p)
    grown = study.live(run, 0)
    judged = grown if grown.any() else np.ones_like(grown)
    every, sizes = np.arange(len(a)), abs(a)
    easy, hard = judged & (won == favourite), judged & (sizes[every, won] < sizes[every, favourite])
    steps = np.array(sorted(run.film))
    path = torch.stack([run.film[s][0] for s in steps.tolist()]).abs().numpy()
    end = path[-1].argmax(-1)
    lead = path[-1, every, won] / path[-1, every, favourite]  # 1 where the largest start is also the predicted winner
    chosen = [int(np.flatnonzero(easy if easy.any() else judged)[0]), int(np.argmax(np.where(hard if hard.any() else judged, lead, 0)))]
    names = [f"neuron {m}: largest start k = {favourite[m] + 1}, flow k = {won[m] + 1}, network k = {end[m] + 1}" for m in chosen]
    fig = make_subplots(1, 2, subplot_titles=names, horizontal_spacing=0.08)
    for column, m in enumerate(chosen, 1):
        _one_race(fig, lab, (a[m], b[m]), (int(won[m]), float(times[m]), int(favourite[m])), steps, path[:, m], column)
    said = (f"The flow, started from step 0, names the winner of {np.mean((won == end)[grown]):.0%} of the {grown.sum()} live neurons "
            f"of seed {lab.seeds[0]}; here are two of them" if grown.any() else
            f"Until step {steps[-1]} no neuron of seed {lab.seeds[0]} has tripled its largest amplitude; two of them")  # fmt: skip
    style(fig, said, height=480, x="gradient step")
    fig.update_yaxes(type="log", exponentformat="power", dtick=1).update_yaxes(title_text="amplitude alpha_k of the input weights", col=1)
    return fig.update_annotations(font_size=11)


def _one_race(fig, lab, start, predicted, steps, path, column) -> None:
    winner, arrival, favourite = predicted
    lr, (a, b) = lab.arms["lottery"].task.lr, start
    ahead_at = np.linspace(0, steps[-1], 200)
    ahead = method.follow(a, b, lab.params.p, ahead_at * lr)
    ceiling = max(2 * path.max(), 1.2 * method.LEVEL * abs(a).max())
    for k in sorted(range(len(a)), key=lambda k: k in (winner, favourite)):
        colour = BLUE if k == winner else ORANGE if k == favourite else faded(GREY, 0.6)
        name = "predicted winner" if k == winner else "largest alpha² beta at step 0" if k == favourite else "other frequencies"
        first = column == 2 if k in (winner, favourite) else column == 2 and k == min(set(range(len(a))) - {winner, favourite})
        look = dict(color=colour, width=2.5 if k in (winner, favourite) else 1)
        fig.add_scatter(x=steps, y=path[:, k], mode="lines", line=look, name=name, showlegend=first, row=1, col=column)
        fig.add_scatter(x=ahead_at, y=np.where(ahead[:, k] < ceiling, ahead[:, k], np.nan), mode="lines", line=dict(look, dash="dash"),
                        name="the same, by the flow", showlegend=first and k == winner, row=1, col=column)  # fmt: skip
    if arrival / lr <= steps[-1]:
        fig.add_scatter(x=[arrival / lr], y=[method.LEVEL * abs(a).max()], mode="markers", name="flow declares the winner",
                        marker=dict(symbol="star", size=13, color=BLUE, line=dict(color=INK, width=1)),
                        showlegend=column == 2, row=1, col=column)  # fmt: skip


# ---- the vote


def vote(lab) -> go.Figure:
    """Logits of one pair: single neurons, frequency groups, the whole hand-built net, and the trained one."""
    p, net = lab.params.p, lab.arms["construct_diverse"].members[0]
    x, y = p // 5, 2 * p // 5
    parts = contributions(net, x, y)
    group = method.spectrum(net.theta.detach()).abs().argmax(-1).numpy()
    kinds = sorted(set(group.tolist()))[:3]
    fig = make_subplots(2, 2, subplot_titles=("Single neurons of three frequencies", "All neurons of each of these frequencies",
                        "All neurons of the hand-built net", "The network trained on the whole table"),
                        horizontal_spacing=0.09, vertical_spacing=0.14)  # fmt: skip
    for k, colour in zip(kinds, (ORANGE, OTHERS[1], OTHERS[2]), strict=False):
        for column, values in ((1, parts[group == k][0]), (2, parts[group == k].sum(0))):
            fig.add_scatter(x=np.arange(p), y=values, line=dict(color=colour, width=1.5), name=f"k = {k + 1}", mode="lines+markers",
                            marker_size=4, showlegend=column == 2, row=1, col=column)  # fmt: skip
    fig.add_scatter(x=np.arange(p), y=parts.sum(0), line=dict(color=BLUE), name="sum of all neurons", row=2, col=1)
    if p % 2:
        formula = method.flawed_indicator(p, 1.0, len(group) // len(set(group.tolist())))[x, y].numpy()
        fig.add_scatter(x=np.arange(p), y=formula, mode="markers", marker=dict(symbol="circle-open", color=INK, size=8),
                        name="flawed indicator (evenly spaced phases)", row=2, col=1)  # fmt: skip
    if "full_data" in lab.arms:
        trained = contributions(lab.arms["full_data"].members[0], x, y).sum(0)
        fig.add_scatter(x=np.arange(p), y=trained, line=dict(color=BLUE), showlegend=False, name="trained", row=2, col=2)
    marks = (((x + y) % p, "solid", "x + y"), (2 * x % p, "dot", "2x"), (2 * y % p, "dot", "2y"))
    for place, dash, name in marks:
        label = dict(annotation_text=name, annotation_position="top right", annotation_font_size=11)
        fig.add_vline(x=place, line=dict(color=RED, dash=dash, width=1), row=2, **label)
        fig.add_vline(x=place, line=dict(color=RED, dash=dash, width=1), row=1)
    alone = np.mean([part.argmax() == (x + y) % p for part in parts])
    style(fig, f"The vote on {x} + {y}: single neurons have their peak at {(x + y) % p} in {alone:.0%} of the cases, their sum at "
          f"{parts.sum(0).argmax()} (seed {lab.seeds[0]})", height=680)  # fmt: skip
    fig.update_xaxes(title_text="answer j", row=2).update_yaxes(title_text="contribution to the logit", row=1, col=1)
    return fig.update_yaxes(title_text="logit", row=2, col=1).update_layout(margin_b=110)


def contributions(net, x: int, y: int) -> np.ndarray:
    """What each neuron adds to the logits of the pair (x, y), [M, p]."""
    theta, xi = net.theta.detach().cpu(), net.xi.detach().cpu()
    return (method.ACTIVATIONS[net.activation](theta[:, x] + theta[:, y])[:, None] * xi).numpy()


# ---- grokking


def stages(table) -> tuple[float, float]:
    """Steps at which memorising and generalising end, from the mean curves of one arm; NaN for what has not come.

    Stage 1 ends when train accuracy reaches LEARNED. Stage 2 ends when the norm of the loss gradient has fallen to QUIET of its
    peak: from then on the loss is nearly still and decay does what is left. Both thresholds are ours.
    """
    mean = {m: table[table["metric"] == m].groupby("step")["value"].mean() for m in ("train_accuracy", "gradient_norm")}
    learned = mean["train_accuracy"].index[mean["train_accuracy"] >= LEARNED]
    if not len(learned):
        return math.nan, math.nan
    slope = mean["gradient_norm"]
    quiet = slope.index[(slope <= QUIET * slope.max()) & (slope.index > max(learned[0], slope.idxmax()))]
    return float(learned[0]), float(quiet[0]) if len(quiet) else math.nan


def grokking(lab) -> go.Figure:
    """Accuracy, frequencies a neuron, weight norm and gradient norm over training, with and without decay."""
    panels = (("train_accuracy", "accuracy<br>[share of cells]"), ("frequencies_per_neuron", "frequencies<br>a neuron"),
              ("weight_norm", "weight norm"), ("gradient_norm", "norm of the<br>loss gradient"))  # fmt: skip
    fig = make_subplots(4, 1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.4, 0.2, 0.2, 0.2])
    for arm, colour in (("grok_no_decay", GREY), ("grok_decay", BLUE)):
        rows = lab.table[lab.table["arm"] == arm]
        for row, (metric, _) in enumerate(panels, 1):
            _mean(fig, rows, metric, colour, f"{arm}, train" if row == 1 else "", "dot" if row == 1 else "solid", row)
        _mean(fig, rows, "test_accuracy", colour, f"{arm}, test", "solid", 1)
    for row, (_, name) in enumerate(panels, 1):
        fig.update_yaxes(title_text=name, row=row)
    _shade(fig, lab)
    fig.update_yaxes(type="log", exponentformat="power", row=4).update_yaxes(range=[-0.03, 1.05], row=1)
    fig.update_xaxes(title_text="optimiser step", row=4)
    test = [last(lab, arm, "test_accuracy") for arm in ("grok_decay", "grok_no_decay")]
    return style(fig, f"Held-out cells right at the end: {test[0]:.0%} with decay, {test[1]:.0%} without ({len(lab.seeds)} seeds)",
                 height=760)  # fmt: skip


def _mean(fig, rows, metric: str, colour: str, name: str, dash: str, row: int) -> None:
    middle = band(rows[rows["metric"] == metric])
    x = middle.index.to_numpy()
    fig.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[middle["high"], middle["low"][::-1]], fill="toself", fillcolor=faded(colour, 0.18),
                    line_width=0, hoverinfo="skip", showlegend=False, row=row, col=1)  # fmt: skip
    fig.add_scatter(x=x, y=middle["mean"], mode="lines", line=dict(color=colour, width=2.5, dash=dash), name=name or metric,
                    showlegend=bool(name), row=row, col=1)  # fmt: skip


def _shade(fig, lab) -> None:
    rows = lab.table[lab.table["arm"] == "grok_decay"]
    end, borders = float(rows["step"].max()), stages(rows)
    edges = [0.0, *(b for b in borders if b == b), end]
    tints = (faded(ORANGE, 0.12), faded(OTHERS[1], 0.12), faded(OTHERS[2], 0.12))
    for i, (left, right) in enumerate(zip(edges, edges[1:], strict=False)):
        fig.add_vrect(x0=left, x1=right, fillcolor=tints[i], line_width=0, layer="below", row="all", col=1)
        narrow = right - left < 0.08 * end
        fig.add_annotation(text=f"{i + 1}" if narrow else f"{i + 1}: {STAGES[i]}", x=(left + right) / 2, xref="x", y=1.0,
                           yref="y domain", yanchor="bottom", showarrow=False, font=dict(size=11, color=INK))  # fmt: skip


# ---- live views: one net of any arm; table and split are those that the net itself carries


def _spectra(net) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(method.spectrum(w.detach()).cpu() for w in (net.theta, net.xi))


def spectrum_view(net, params) -> go.Figure:
    """Share of each frequency in each neuron's power, neurons sorted by their strongest frequency."""
    a, _ = _spectra(net)
    median = float(method.shares(a).amax(-1).median())
    return style(go.Figure(_power(a, _order(a))), f"The median neuron has {median:.0%} of its power at one frequency", height=520,
                 x="frequency k", y="neuron, sorted by its strongest frequency")  # fmt: skip


def phase_view(net, params) -> go.Figure:
    """Output phase against twice the input phase at each neuron's strongest frequency."""
    fig, (a, b) = go.Figure(), _spectra(net)
    _cloud(fig, a, b)
    return style(fig, f"psi lies {float(method.misalignment(a, b)):.2f} rad from 2 phi (random: {math.pi / 2:.2f})",
                 height=520).update_layout(showlegend=False)  # fmt: skip


def table_view(net, params) -> go.Figure:
    """The answer to every cell as colour; wrong answers are ringed, held-out cells framed. Table and split of this member."""
    with torch.no_grad():
        answer = method.logits(net).argmax(-1).cpu().numpy()
    table, shown = net.table.cpu().numpy(), net.shown.cpu().numpy()
    p, wrong = len(table), answer != table
    size = 360 / p
    fig = go.Figure(go.Heatmap(z=answer, zmin=0, zmax=p - 1, colorscale="Twilight", colorbar_title="answer", xgap=1, ygap=1,
                               customdata=table, hovertemplate="%{y} + %{x}: %{z}, right is %{customdata}<extra></extra>"))  # fmt: skip
    for cells, symbol, colour, name in ((~shown, "square-open", INK, "held out"), (wrong, "circle-open", RED, "wrong")):
        y, x = np.nonzero(cells)
        look = dict(symbol=symbol, color=colour, size=size * (0.9 if symbol[0] == "s" else 0.6), line_width=2)
        fig.add_scatter(x=x, y=y, mode="markers", marker=look, name=f"{name} ({len(x)})", hoverinfo="skip")
    fig.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False)
    fig.update_xaxes(constrain="domain", showgrid=False)
    parts = [f"{1 - wrong[cells].mean():.0%} of the {cells.sum()} {name} cells" for cells, name in ((shown, "shown"), (~shown, "held-out"))
             if cells.any()]  # fmt: skip
    return style(fig, "Right are " + " and ".join(parts), height=560, x="y", y="x")


