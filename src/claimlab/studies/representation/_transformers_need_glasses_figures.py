"""Figures and live views of the study `transformers-need-glasses`: distance, path bound, accuracy by length, attention, commas."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, style
from claimlab.studies.representation import _transformers_need_glasses_net as nets
from claimlab.studies.representation import _transformers_need_glasses_rows as rows
from claimlab.studies.representation import transformers_need_glasses as study

CODE_COLOURS = dict(zip(("rotary", "none", "sinusoidal", "alibi"), (BLUE, *OTHERS), strict=False))
MODELS = {"network": ("transformer", BLUE), "sharp_attention": ("logits times log n", OTHERS[0]), "recurrent": ("GRU", GREY)}


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    p, seeds = lab.params, tuple(lab.seeds)
    found = {"collapse": collapse(p, seeds), "paths": paths(p, seeds)}
    models = {name: list(lab.arms[name].members) for name in MODELS if name in lab.arms}
    if "network" in models:
        seen = {arm: [study.examine(net, p, 0, _lengths(p)) for net in members] for arm, members in models.items()}
        found |= {"by_length": by_length(seen, p), "attention": attention(models["network"][0], p, lab.seeds[0]),
                  "commas": formats(models["network"], seen["network"], p)}  # fmt: skip
    return found | ({"letters": letters(lab.table, p)} if "text" in lab.arms else {})


# ---- helpers


def _lines(figure, x, values, colour, name, at, *, shown=True, dash="solid", log=False, top=None) -> None:
    """Mean over seeds of values [S, N] (of logarithms if `log`), each seed thin; from five on a 95 % band, cut at `top`."""
    values = np.asarray(values, float)
    inside = np.log10(np.maximum(values, 1e-300)) if log else values
    out = (lambda v: 10**v) if log else (lambda v: v)
    pen = dict(mode="lines", legendgroup=name, hoverinfo="skip", showlegend=False, **at)
    if len(values) >= 5 and dash == "solid":
        low, high = np.array([interval(column) for column in inside.T]).T
        edge = [*np.minimum(out(high), top or np.inf), *out(low)[::-1]]
        figure.add_scatter(x=[*x, *x[::-1]], y=edge, fill="toself", fillcolor=faded(colour, 0.2), **pen | dict(line_width=0))
    if len(values) > 1 and dash == "solid":
        gaps = np.concatenate([np.append(row, np.nan) for row in values])
        figure.add_scatter(x=np.tile([*x, np.nan], len(values)), y=gaps, line=dict(color=colour, width=0.7), opacity=0.35, **pen)
    figure.add_scatter(x=x, y=out(inside.mean(0)), mode="lines", line=dict(color=colour, width=2.6, dash=dash), name=name,
                       legendgroup=name, showlegend=shown, **at)  # fmt: skip


def _log_axes(figure, **at) -> None:
    figure.update_xaxes(type="log", dtick=math.log10(4), **at)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, **at)


# ---- figures


def collapse(p, seeds) -> go.Figure:
    """Untrained networks: distance of the two last states against n, by position code and by precision."""
    n = study.lengths(p).numpy()
    figure = make_subplots(1, 2, subplot_titles=(f"Position codes, {p.precision}", f"Precisions, {p.position}"), horizontal_spacing=0.1)
    slopes = {}
    for code, colour in CODE_COLOURS.items():
        gap = study.distances(p, seeds, p.precision, code, draws=p.draws if code == p.position else 1)
        slopes[code] = float(study.slope(gap, study.lengths(p)).mean())
        _lines(figure, n, _mean_of_logs(gap), colour, code, dict(row=1, col=1), log=True)
        if code == p.position:
            start = float(_mean_of_logs(gap)[:, -min(7, len(n))].mean())
    falling = start * n[-min(7, len(n))] / n
    figure.add_scatter(x=n, y=falling, mode="lines", line=dict(color=INK, dash="dash", width=1.5), name="slope -1", row=1, col=1)
    for precision, colour in zip(("float32", "bfloat16"), (BLUE, OTHERS[3]), strict=True):
        gap, floor = (_mean_of_logs(f(p, seeds, precision, p.position)) for f in (study.distances, study.noise))
        _lines(figure, n, gap, colour, precision, dict(row=1, col=2), log=True)
        _lines(figure, n, floor, colour, f"rounding noise of {precision}", dict(row=1, col=2), dash="dot", log=True)
    _log_axes(figure)
    figure.update_xaxes(title_text="row length n [signs]").update_yaxes(title_text="L1 distance of the last states", col=1)
    told = ", ".join(f"{code} {slopes[code]:.2f}" for code in CODE_COLOURS)
    return style(figure, f"Untrained networks: slope of log distance on log n by position code: {told}", height=500)


def _mean_of_logs(values: torch.Tensor) -> np.ndarray:
    """Geometric mean over draws: [S, D, N] -> [S, N]."""
    return 10 ** values.clamp_min(1e-300).log10().mean(1).numpy()


def paths(p, seeds) -> go.Figure:
    """How the last state reacts to each token, and the bound from the sum over paths; each averaged over draws."""
    measured, bound = (torch.stack([study.path_profile(p, seed)[k] for seed in seeds]) for k in (0, 1))
    i = np.arange(1, measured.shape[-1] + 1)
    figure = go.Figure()
    _lines(figure, i, _mean_of_logs(bound), GREY, "bound from the paths", {}, log=True)
    _lines(figure, i, _mean_of_logs(measured), BLUE, "measured", {}, log=True)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    ratio, tilt = float((bound / measured).median()), float(measured[..., :4].mean() / measured[..., -5:-1].mean())
    title = (f"Untrained networks, {p.position}: the bound holds with a factor of {ratio:,.0f} to spare; the first four tokens weigh "
             f"{tilt:.1f} times as much as the four before the last")  # fmt: skip
    return style(figure, title, x="token i of the row [place]", y="reaction of the last state [spectral norm]", height=460)


def _lengths(p) -> list[int]:
    """From the shortest training row to four times the longest."""
    return list(range(rows.LEAST, 4 * p.max_train + 1, max(1, p.max_train // 6)))


def by_length(seen, p) -> go.Figure:
    """Balanced accuracy of both copy questions and the error of the count, against the length of the row; `seen` by arm."""
    at = _lengths(p)
    heads = ("Repeat the first sign", "Repeat the last sign", "Count the ones")
    figure, ends = make_subplots(1, 3, subplot_titles=heads, horizontal_spacing=0.12), {}
    for arm, members in seen.items():
        name, colour = MODELS[arm]
        for column in (1, 2, 3):
            values = np.stack([one["copy"][column - 1] if column < 3 else one["count"] for one in members])
            ends[arm, column] = values[:, np.array(at) > p.max_train].mean()
            _lines(figure, np.array(at), values, colour, name, dict(row=1, col=column), shown=column == 1,
                   top=1.0 if column < 3 else None)  # fmt: skip
    figure.add_vline(x=p.max_train, line=dict(color=INK, dash="dash", width=1))
    figure.update_xaxes(title_text="row length n [signs]").update_yaxes(range=[0.2, 1.04], row=1, col=1)
    figure.update_yaxes(range=[0.2, 1.04], row=1, col=2).update_yaxes(title_text="balanced accuracy [share]", row=1, col=1)
    figure.update_yaxes(title_text="mean error [ones]", rangemode="tozero", row=1, col=3)
    title = (f"Beyond the dashed line (the longest training row) the transformer repeats the first sign with accuracy "
             f"{ends['network', 1]:.2f}, the last with {ends['network', 2]:.2f}, and miscounts by {ends['network', 3]:.0f}")  # fmt: skip
    return style(figure, title, height=460)


@torch.no_grad()
def asked(net, n: int, p) -> list[np.ndarray]:
    """Attention of the token that asks for the last sign over a row of n ones: a matrix [heads, n + 1] a layer."""
    kept: list[torch.Tensor] = []
    net(rows.asked(torch.ones(1, n, dtype=torch.long), rows.LAST, 0), p.logit_gain, kept)
    return [weights[0, :, -1].double().cpu().numpy() for weights in kept]


def attention(net, p, seed: int) -> go.Figure:
    """Attention of the question over 64 and over 256 ones, each head a line."""
    figure = make_subplots(1, 2, subplot_titles=("64 ones", "256 ones"), horizontal_spacing=0.1)
    share = {}
    for column, n in enumerate((64, 256), 1):
        weights = asked(net, n, p)
        share[n] = weights[0][:, n - 1].max()
        _heads(figure, weights, dict(row=1, col=column), column == 1)
        even = dict(x=[0, n], y=[1 / (n + 1)] * 2, mode="lines", line=dict(color=INK, dash="dash", width=1.5))
        figure.add_scatter(**even, name="even share", showlegend=column == 1, row=1, col=column)
    figure.update_yaxes(rangemode="tozero").update_yaxes(title_text="attention [share]", col=1)
    figure.update_xaxes(title_text="place in the row; the question is the last")
    title = (f"In the first layer the most attentive head gives the last sign {share[64]:.3f} of its attention in a row of 64 and "
             f"{share[256]:.3f} in a row of 256 (seed {seed})")  # fmt: skip
    return style(figure, title, height=460)


def _heads(figure, weights, at, shown) -> None:
    for layer, each in enumerate(weights):
        for head, line in enumerate(each):
            figure.add_scatter(x=np.arange(len(line)), y=line, mode="lines", name=f"layer {layer + 1}",
                               line=dict(color=(BLUE, *OTHERS)[layer % 7], width=1.3), legendgroup=str(layer), opacity=0.85,
                               showlegend=shown and head == 0, **at)  # fmt: skip


def formats(members, unmarked, p) -> go.Figure:
    """With and without separators: distance of the last states, and accuracy of both copy questions, against the length."""
    figure = make_subplots(1, 2, subplot_titles=("Distance of the last states", "Accuracy, mean of both copy questions"),
                           horizontal_spacing=0.12)  # fmt: skip
    n, at, ends = 2 ** np.arange(3, 10), _lengths(p), {}
    marked = [study.examine(net, p, p.comma_every, at) for net in members]
    for name, every, seen, colour in (("plain", 0, unmarked, GREY), ("commas", p.comma_every, marked, BLUE)):
        gap = np.stack([study.separation(net, p, every, n.tolist())[0] for net in members])
        right = np.stack([one["copy"].mean(0) for one in seen])
        ends[name] = np.log10(np.maximum(gap[:, n == study.AT], 1e-300)).mean()
        _lines(figure, n, gap, colour, name, dict(row=1, col=1), log=True)
        _lines(figure, np.array(at), right, colour, name, dict(row=1, col=2), shown=False, top=1.0)
    figure.update_xaxes(type="log", dtick=math.log10(2), row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, title_text="L1 distance", row=1, col=1)
    figure.update_yaxes(title_text="balanced accuracy [share]", range=[0.2, 1.04], row=1, col=2)
    figure.update_xaxes(title_text="row length n [signs, separators not counted]")
    figure.add_vline(x=p.max_train, line=dict(color=INK, dash="dash", width=1), row=1, col=2)
    title = (f"One trained model, two formats: at {study.AT} signs separators change the distance by a factor of "
             f"{10 ** (ends['commas'] - ends['plain']):.2f}")  # fmt: skip
    return style(figure, title, height=460)


def letters(table, p) -> go.Figure:
    """A model of letters fed with the rows, with and without commas."""
    figure, part = go.Figure(), table[table.arm == "text"]
    ends = {}
    for name, colour in (("plain", GREY), ("commas", BLUE)):
        known = [m for m in part.metric.unique() if m.startswith("distance") and m.endswith("commas") == (name == "commas")]
        found = {int(m.split("_")[1]): m for m in known}
        values = np.array([part[part.metric == found[n]].sort_values("seed").value.to_numpy() for n in sorted(found)]).T
        _lines(figure, np.array(sorted(found)), values, colour, name, {}, log=True)
        ends[name] = np.polyfit(np.log10(sorted(found)), np.log10(np.maximum(values, 1e-300)).mean(0), 1)[0]
    _log_axes(figure)
    figure.update_yaxes(dtick="D2")
    title = f"A model of letters: slope of log distance on log n {ends['plain']:.2f} plain, {ends['commas']:.2f} with commas"
    return style(figure, title, x="row length n [signs, separators not counted]", y="L1 distance of the last states")


# ---- live views: the rows follow from the parameters alone


def distance_view(net, params) -> go.Figure:
    """Distance of the two last states against length, both formats, over the rounding noise of the chosen precision."""
    n, p = [8, 16, 32, 64, *([] if isinstance(net, nets.Recurrent) else [128])], params
    figure = go.Figure()
    for name, every, colour in (("plain", 0, GREY), ("commas", p.comma_every, BLUE)):
        figure.add_scatter(x=n, y=study.separation(net, p, every, n)[0], mode="lines+markers", name=name, line_color=colour)
    if p.precision in nets.HIGHER:
        pair = [_ends(net, p, one, n) for one in (p.precision, nets.HIGHER[p.precision])]
        floor = nets.apart(torch.stack(pair, 1)).clamp_min(1e-12).numpy()
        figure.add_scatter(x=n, y=floor, mode="lines", name="rounding noise", line=dict(color=INK, dash="dot"))
    _log_axes(figure)
    figure.update_xaxes(dtick=math.log10(2))
    return style(figure, f"How far the state of 1...10 lies from that of 1...100 ({p.precision})", x="row length n [signs]",
                 y="L1 distance of the last states")  # fmt: skip


@torch.no_grad()
def _ends(net, p, precision: str, n: list[int]) -> torch.Tensor:
    """Normed last states of 1^(k-1) 0 for k in n, [N, d] in float64."""
    exact = study.rounded(net, p, precision)
    return torch.stack([nets.norm(exact(rows.ending(k), p.logit_gain)[0, -1]).double() for k in n])


def attention_view(net, params) -> go.Figure:
    """Attention of the question over a row of 128 ones; for a recurrent network, what changing each sign does to its last state."""
    n, figure = 128, go.Figure()
    if isinstance(net, nets.Recurrent):
        return _flips(net, params, 64)
    weights = asked(net, n, params)
    _heads(figure, weights, {}, True)
    figure.add_scatter(x=[0, n], y=[1 / (n + 1)] * 2, mode="lines", line=dict(color=INK, dash="dash"), name="even share")
    figure.update_yaxes(rangemode="tozero")
    top = max(float(each[:, n - 1].max()) for each in weights)
    return style(figure, f"Of {n} ones the last gets {top:.3f} of a head's attention at most", x="place in the row", y="attention [share]")


@torch.no_grad()
def _flips(net, params, n: int) -> go.Figure:
    """L1 change of the last state when one sign of a row of n ones is turned to 0."""
    row = torch.ones(n + 1, n, dtype=torch.long)
    row[torch.arange(n), torch.arange(n)] = rows.ZERO
    states = nets.norm(net(rows.asked(row, rows.LAST, 0))[:, -1])
    change = (states[:-1] - states[-1]).abs().sum(-1).numpy()
    figure = go.Figure(go.Bar(x=np.arange(n), y=change, name="change"))
    return style(figure, f"No attention here: what turning one of {n} ones to 0 does to the last state", x="place of the sign",
                 y="L1 change of the last state")  # fmt: skip
