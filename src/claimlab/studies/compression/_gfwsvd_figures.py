"""Figures and live views of the study `gfwsvd`: what each cut costs, what the norms look like, and how well they predict."""

from __future__ import annotations

from functools import partial

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, colours, faded, style
from claimlab.studies.compression import _gfwsvd_method as rule
from claimlab.studies.compression import _gfwsvd_net as nets
from claimlab.studies.compression import gfwsvd as study

CUTS = [name for name in study.ARMS if name != "uncut"]
SHOWN = "o"  # the map of the heat maps, 64 x 64 at the default width
PROBE = 100  # held-out windows on which one map at a time is cut


def figures(lab) -> dict[str, go.Figure]:
    """All figures of a finished experiment."""
    trained = lab.arms["uncut"].members[0]
    found = {"loss and ratio": loss_and_ratio(lab), "norms": norms(trained, lab.seeds[0]), "convergence": convergence(lab)}
    return found | {"predicted and measured": predicted(lab)}


# ---- helpers


def _last(lab, arm: str, metric: str) -> np.ndarray:
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step", kind="stable").groupby("seed")["value"].last().to_numpy(float)


def _name(arm: str) -> str:
    return arm.replace("_", " ")


def _label(key: tuple[int, str]) -> str:
    return f"‘{key[1]}’ of block {key[0] + 1}"


def _key(trained) -> tuple[int, str]:
    return len(trained.net.hidden) - 1, SHOWN


# ---- figures


def loss_and_ratio(lab) -> go.Figure:
    """Rise of the held-out loss against the share removed, a line an arm with its 95 % band over seeds."""
    palette, figure, now = arm_colours(lab), go.Figure(), {}
    shown = [arm for arm in CUTS if arm in lab.arms]
    ratios = lab.arms[shown[0]].members[0].ratios
    for arm in shown:
        rises = np.array([_last(lab, arm, f"loss_increase_{100 * ratio:g}") for ratio in ratios])
        mean = rises.mean(1)
        low, high = np.array([interval(row) for row in rises]).T
        strong = arm in ("gfwsvd", "fwsvd")
        low = np.maximum(low, 0.1 * np.abs(mean))  # for the logarithm
        figure.add_scatter(x=[*ratios, *ratios[::-1]], y=[*high, *low[::-1]], fill="toself", mode="lines", line_width=0, hoverinfo="skip",
                           fillcolor=faded(palette[arm], 0.12), legendgroup=arm, showlegend=False)  # fmt: skip
        figure.add_scatter(x=ratios, y=np.maximum(mean, 1e-5), mode="lines+markers", name=_name(arm), legendgroup=arm,
                           line=dict(color=palette[arm], width=3 if strong else 1.8))  # fmt: skip
        now[arm] = mean[ratios.index(lab.params.ratio)]
    figure.add_vline(x=lab.params.ratio, line=dict(color=INK, dash="dash", width=1))
    lines = np.log10(np.concatenate([trace.y for trace in figure.data if trace.showlegend is not False]))
    ticks = [digit * 10.0**k for k in range(-5, 2) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", range=[lines.min() - 0.3, lines.max() + 0.3], tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    order = sorted(now, key=now.get)
    told = ", ".join(f"{_name(arm)} {now[arm]:.3f}" for arm in order[:3])
    title = f"With {lab.params.ratio:.0%} removed the smallest rises are {told} nats; fwsvd {now['fwsvd']:.3f}, plain SVD {now['svd']:.3f}"
    return style(figure, title, x="share of parameters removed from every map", y="rise of the held-out loss [nats a character]",
                 height=500)  # fmt: skip


def norms(trained, seed: int) -> go.Figure:
    """A and B of one map as correlations, and beside each its diagonal, which is all that a diagonal method keeps."""
    key = _key(trained)
    figure = make_subplots(2, 2, column_widths=[0.6, 0.4], horizontal_spacing=0.12, vertical_spacing=0.2,
                           subplot_titles=("A, input side", "diagonal of A", "B, output side", "diagonal of B"))  # fmt: skip
    shares = {}
    for row, kind in enumerate("ab", 1):
        matrix = trained.report.get(key, kind).cpu().numpy()
        peak = np.quantile(np.abs(matrix), 0.99) or 1.0
        figure.add_heatmap(z=matrix, colorscale="RdBu", zmid=0, zmin=-peak, zmax=peak, showscale=False, row=row, col=1)
        figure.add_bar(y=matrix.diagonal(), marker=dict(color=BLUE, line_width=0), showlegend=False, row=row, col=2)
        shares[kind] = 1 - np.square(matrix.diagonal()).sum() / np.square(matrix).sum()
        side = "input" if kind == "a" else "output"
        figure.update_xaxes(title_text=side, row=row).update_yaxes(title_text=side, autorange="reversed", row=row, col=1)
        figure.update_yaxes(title_text="entry [norm is 1]", row=row, col=2)
    title = (f"In {_label(key)}, {shares['a']:.0%} of A (squared entries) and {shares['b']:.0%} of B lie off the diagonal "
             f"(seed {seed}; blue: positive, red: negative)")  # fmt: skip
    return style(figure, title, height=640)


def convergence(lab) -> go.Figure:
    """Error of the Kronecker fit after each round, a line a map: mean over seeds; dots: the K-FAC product."""
    reports = [one.report for one in lab.arms["uncut"].members]
    rounds, palette = lab.params.rounds, colours(list(nets.MAPS))
    figure, kfac, last = go.Figure(), [], []
    for key in reports[0].maps:
        errors = torch.stack([one.get(key, "rounds") for one in reports]).mean(0).cpu().numpy()
        rival = float(torch.stack([one.get(key, "fit")[2] for one in reports]).mean())
        line = dict(color=palette[key[1]], width=2, dash=("solid", "dot", "dash")[key[0] % 3])
        figure.add_scatter(x=np.arange(1, rounds + 1), y=errors, mode="lines+markers", marker_size=4, line=line, name=_label(key))
        figure.add_scatter(x=[1.2 * rounds], y=[rival], mode="markers", marker=dict(symbol="diamond", size=8, color=palette[key[1]]),
                           showlegend=False, hovertext=f"K-FAC, {_label(key)}", hoverinfo="text+y")  # fmt: skip
        kfac.append(rival)
        last.append(errors)
    ends = np.array(last).mean(0)
    early = int(np.argmax(ends <= ends[-1] + 0.001)) + 1
    title = (f"After round {early} of {rounds} the mean error of the fit moves by less than 0.001: {ends[-1]:.2f} of the Fisher's norm; "
             f"the K-FAC product misses {np.mean(kfac):.2f} (diamonds)")  # fmt: skip
    figure.update_xaxes(type="log", tickvals=[k for k in (1, 2, 3, 5, 10, 20, 40, 60) if k <= rounds])
    return style(figure, title, x="round of power iteration (diamonds: K-FAC)", y="fit error [share of the Fisher's norm]",
                 height=520)  # fmt: skip


@torch.no_grad()
def predicted(lab) -> go.Figure:
    """One map cut alone, a point a map and arm of the first seed: predicted against measured rise of the held-out loss."""
    trained, palette = lab.arms["uncut"].members[0], arm_colours(lab)
    g = nets.gradients(trained.net, study.calibration(lab.params.calibration), lab.params.gradient_unit)
    probe, figure = study.held_out(PROBE), make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06,
                                                         subplot_titles=("by the Fisher itself", "by its Kronecker fit"))  # fmt: skip
    before, pairs = float(nets.loss_on(trained.net, probe)), []
    # a gradient is the mean over k characters, whose own slopes are nearly uncorrelated: their Fisher is k times as large
    k = study.files.CONTEXT * (nets.GROUP if lab.params.gradient_unit == "token_batch" else 1)
    for arm in [name for name in CUTS if name in lab.arms]:
        points = []
        for key in trained.report.maps:
            left, right = lab.arms[arm].members[0].factors(key)
            error = trained.weight(key) - left @ right
            rise = float(nets.loss_on(trained.net, probe, through=partial(_replaced, trained.net, key, left, right))) - before
            guesses = float(rule.predicted(g[key], error)), _by_factors(trained, g[key], key, error)
            points.append((k * guesses[0], k * guesses[1], rise, _label(key)))
        full, fitted, rises, names = zip(*sorted(points, key=lambda point: -point[2]), strict=True)
        for column, x in enumerate((full, fitted), 1):
            figure.add_scatter(x=x, y=rises, mode="markers", name=_name(arm), hovertext=names, legendgroup=arm,
                               showlegend=column == 1, marker=dict(size=7, color=palette[arm], opacity=0.8), row=1, col=column)  # fmt: skip
        pairs += [(*values, rise) for values, rise in zip(zip(full, fitted, strict=True), rises, strict=True)]
    return _framed(figure, np.array(pairs), lab.seeds[0])


def _framed(figure: go.Figure, pairs: np.ndarray, seed: int) -> go.Figure:
    from scipy.stats import spearmanr

    rises = pairs[:, 2]
    floor = rises[rises > 0].min(initial=1.0) / 2
    for trace in figure.data:  # a rise that is none has no logarithm: it is drawn below the rest, as a triangle
        none = np.array(trace.y) <= 0
        trace.y, trace.marker.symbol = np.where(none, floor, trace.y), np.where(none, "triangle-down", "circle")
    low, high = max(floor, pairs[:, :2].min()), pairs.max()
    for column in (1, 2):
        figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=dict(color=INK, dash="dash", width=1), showlegend=False,
                           hoverinfo="skip", row=1, col=column)  # fmt: skip
    both = [float(spearmanr(pairs[:, k], rises).statistic) for k in (0, 1)]
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", title_text="predicted rise [nats]")
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text="measured rise of the held-out loss [nats]", col=1)
    title = (f"One map cut alone: prediction and truth have a rank correlation of {both[0]:.2f} with the Fisher itself and {both[1]:.2f} "
             f"with its Kronecker fit (seed {seed}; dashed: equal; triangles: no rise)")  # fmt: skip
    return style(figure, title, height=500)


def _replaced(net, key, left, right, h, block, name):
    return h @ right.mT @ left.mT if (block, name) == key else net.product(h, block, name)


def _by_factors(trained, g, key, error) -> float:
    """1/2 c ||L_B^T D L_A||^2 with the c at which c A (x) B fits the Fisher best; A and B have unit norm, so c = <F, A (x) B>."""
    a, b = trained.report.get(key, "a"), trained.report.get(key, "b")
    scale = rule.overlap(g, a.to(g.dtype), b.to(g.dtype))
    return 0.5 * float(scale) * float((error.double() * (b @ error.double() @ a)).sum())


# ---- live views


def singular_values(net, params) -> go.Figure:
    """Squared singular values of one map (the last block's `up`) in the norm of the cut and in the plain one, as shares."""
    lines = {}
    if isinstance(net, nets.LowRank):
        key = net.maps[-2]
        shape, place = net.shapes[key], net.maps.index(key)
        lines = {"norm of the cut": net.weighted[place], "plain norm": net.plain[place]}
    else:
        key = net.report.maps[-2]
        weight = net.weight(key)
        shape, lines["plain norm"] = tuple(weight.shape), torch.linalg.svdvals(weight)
        if net.report.measured:
            pair = net.report.get(key, "a"), net.report.get(key, "b")
            lines = {"norm of the Kronecker fit": rule.cut(weight, *pair, params.damping).values} | lines
    r, figure, left = rule.rank(params.ratio, *shape), go.Figure(), []
    for (name, values), colour in zip(lines.items(), (BLUE, GREY) if len(lines) > 1 else (GREY,), strict=True):
        share = (values[: min(shape)].square() / values.square().sum()).cpu().numpy()
        figure.add_scatter(x=np.arange(1, len(share) + 1), y=np.maximum(share, 1e-12), mode="lines+markers", marker_size=4, name=name,
                           line_color=colour)  # fmt: skip
        left.append(f"{share[r:].sum():.1%} in the {name}")
    figure.add_vline(x=r + 0.5, line=dict(color=OTHERS[3], dash="dash"))
    figure.update_yaxes(type="log", exponentformat="power")
    return style(figure, f"Cut to rank {r}, {_label(key)} loses {' and '.join(left)}", x="place of the singular value",
                 y="share of the squared norm")  # fmt: skip


def loss_and_share(net, params) -> go.Figure:
    """Held-out loss of one network against the share removed; while it trains, of its plain truncation, on few windows."""
    if isinstance(net, nets.LowRank):
        ratios, losses = [0, *net.ratios], [float(net.uncut), *net.losses.tolist()]
        title = f"Held-out loss rises from {losses[0]:.2f} to {losses[-1]:.2f} nats with {ratios[-1]:.0%} removed"
    else:
        ratios, probe = [0, *study.GRID], study.held_out(4)
        with torch.no_grad():
            found = {key: torch.linalg.svd(net.weight(key), full_matrices=False) for key in net.report.maps}
            losses = [float(nets.loss_on(net.net, probe, through=partial(_truncated, net.net, found, ratio))) for ratio in ratios]
        title = f"Plain truncation now: {losses[0]:.2f} nats uncut, {losses[-1]:.2f} with {ratios[-1]:.0%} removed (4 windows)"
    figure = go.Figure(go.Scatter(x=ratios, y=losses, mode="lines+markers", line_color=BLUE, showlegend=False))
    return style(figure, title, x="share of parameters removed from every map", y="held-out loss [nats a character]")


def _truncated(net, found, ratio, h, block, name):
    u, s, v = found[block, name]
    r = rule.rank(ratio, len(u), v.shape[1]) if ratio else len(s)
    return (h @ v[:r].mT * s[:r]) @ u[:, :r].mT
