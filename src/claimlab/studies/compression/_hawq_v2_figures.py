"""Figures and live views of the study `hawq-v2`: curvature by layer, the frontier, and what the chosen bits are worth."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.compression import _hawq_v2_method as rule
from claimlab.studies.compression import _hawq_v2_net as nets
from claimlab.studies.compression import hawq_v2 as study

NAMES = [name.replace(" ", "<br>") for name in nets.LAYERS]


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    report = lab.arms["full"].members[0]
    found = {"curvature by layer": curvature(report, lab.params, lab.seeds[0]), "frontier": pareto(report, lab.params, lab.seeds[0]),
             "predicted and true": predicted(lab), "probes": probes(report, lab.seeds[0])}  # fmt: skip
    return found | ({"accuracy and size": sizes(lab)} if {"trace", "uniform"} <= set(lab.arms) else {})


# ---- helpers


def _weights(report) -> np.ndarray:
    return np.array([w.numel() for w in report.weights])


def _omega(report, curvature: np.ndarray) -> np.ndarray:
    return rule.sensitivity(curvature, report.errors.double().cpu().numpy())


def _last(lab, arm: str, metric: str) -> np.ndarray:
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step", kind="stable").groupby("seed")["value"].last().to_numpy(float)


def _positive(values) -> np.ndarray:
    return np.maximum(np.asarray(values, float), 1e-12)


# ---- figures


def curvature(report, params, seed: int) -> go.Figure:
    """Average trace and top eigenvalue by layer, with the bits that each of them chooses."""
    panels = {"average Hessian trace": (study.average_trace(report), BLUE),
              "top eigenvalue": (report.eigenvalues.double().cpu().numpy(), OTHERS[0])}  # fmt: skip
    figure = make_subplots(1, 2, subplot_titles=list(panels), horizontal_spacing=0.12)
    spread = report.traces.double().std(0).cpu().numpy() / len(report.traces) ** 0.5 / _weights(report)
    picked = []
    for column, (values, colour) in enumerate(panels.values(), 1):
        bits = rule.choose(_omega(report, values), _weights(report), params.budget)
        picked.append(bits)
        error = dict(type="data", array=spread, color=INK) if column == 1 else None
        figure.add_bar(x=NAMES, y=_positive(values), marker_color=faded(colour, 0.7), error_y=error, showlegend=False, row=1, col=column)
        above = _positive(values) * 1.25 + (spread if column == 1 else 0)
        figure.add_scatter(x=NAMES, y=above, mode="text", text=[f"{b} bits" for b in bits], textposition="top center",
                           showlegend=False, cliponaxis=False, row=1, col=column)  # fmt: skip
        span = np.log10(_positive(values).min()) - 0.3, np.log10(above.max()) + 0.35
        figure.update_yaxes(range=span, row=1, col=column)
    same = int((picked[0] == picked[1]).sum())
    figure.update_yaxes(type="log", dtick=1, exponentformat="power").update_yaxes(title_text="curvature [loss per squared weight]", col=1)
    title = f"Trace and eigenvalue choose the same bits for {same} of 8 layers at {params.budget:g} bits a weight (seed {seed})"
    return style(figure, title, height=460)


def pareto(report, params, seed: int, shown: int = 3000) -> go.Figure:
    """Size against Omega: random settings as dots, the frontier as a line, the chosen point."""
    n, omega = _weights(report), _omega(report, study.average_trace(report))
    rng = np.random.default_rng(0)
    places = rng.integers(len(rule.BITS), size=(shown, 8))
    size = (np.array(rule.BITS)[places] * n).sum(1) / n.sum()
    cost = omega[np.arange(8), places].sum(1)
    total, best, _ = rule.frontier(omega, n)
    figure = go.Figure()
    figure.add_scattergl(x=size, y=_positive(cost), mode="markers", marker=dict(size=3, color=faded(GREY, 0.5)), name=f"{shown:,} settings")
    figure.add_scatter(x=total / n.sum(), y=_positive(best), mode="lines", name="frontier",
                       line=dict(color=BLUE, width=2.5, shape="hv"))
    at = np.flatnonzero(total <= params.budget * n.sum() + 1e-6)[-1]
    figure.add_scatter(x=[total[at] / n.sum()], y=[max(best[at], 1e-12)], mode="markers", name="chosen",
                       marker=dict(symbol="diamond", size=13, color=OTHERS[3]))  # fmt: skip
    near = cost[np.abs(size - params.budget) < 0.25]
    ratio = np.median(near) / max(best[at], 1e-12) if len(near) else np.nan
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    told = f": {ratio:.0f} times less predicted damage than the middle setting of about that size" if np.isfinite(ratio) else ""
    return style(figure, f"The frontier at {params.budget:g} bits{told} (seed {seed})", x="average size [bits a weight]",
                 y="Omega [predicted rise of the loss]")  # fmt: skip


def predicted(lab) -> go.Figure:
    """True rise of the loss when one layer alone is quantised, against what trace and eigenvalue predict; all seeds."""
    figure = make_subplots(1, 2, subplot_titles=("average trace", "top eigenvalue"), shared_yaxes=True, horizontal_spacing=0.06)
    for column, arm in enumerate(("trace", "top_eigenvalue"), 1):
        for k, bits in enumerate((2, 3, 4)):
            points = [(_curvature(report, arm)[i] * float(report.errors[i, k]), float(report.rises[i, k]), f"{nets.LAYERS[i]}, seed {seed}")
                      for report, seed in zip(lab.arms["full"].members, lab.seeds, strict=True) for i in range(8)]  # fmt: skip
            x, y, names = zip(*[p for p in points if p[0] > 0 and p[1] > 0] or [(np.nan, np.nan, "")], strict=True)
            figure.add_scatter(x=x, y=y, mode="markers", marker=dict(size=6, color=OTHERS[k], opacity=0.75), name=f"{bits} bits",
                               hovertext=names, legendgroup=str(bits), showlegend=column == 1, row=1, col=column)  # fmt: skip
    mean = {arm: _last(lab, arm, "rank_correlation").mean() for arm in ("trace", "top_eigenvalue") if arm in lab.arms}
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", title_text="predicted sensitivity")
    figure.update_yaxes(type="log", dtick=1, exponentformat="power").update_yaxes(title_text="true rise of the loss [nats]", col=1)
    told = " and ".join(f"{value:.2f} ({arm.replace('_', ' ')})" for arm, value in mean.items())
    return style(figure, f"One layer quantised alone: rank correlation of prediction and truth {told}", height=460)


def _curvature(report, arm: str) -> np.ndarray:
    return study.average_trace(report) if arm == "trace" else report.eigenvalues.double().cpu().numpy()


def probes(report, seed: int) -> go.Figure:
    """Running mean of Hutchinson's estimate, in units of the final one."""
    rows = report.traces.double().cpu().numpy()
    count = np.arange(1, len(rows) + 1)
    figure, palette = go.Figure(), [BLUE, *OTHERS]
    running = rows.cumsum(0) / count[:, None]
    for i, name in enumerate(nets.LAYERS):
        share = running[:, i] / (running[-1, i] or 1.0)
        figure.add_scatter(x=count, y=share, mode="lines", line=dict(color=palette[i], width=2), name=name)
    error = rows.std(0, ddof=1) / len(rows) ** 0.5 / np.maximum(np.abs(running[-1]), 1e-12) if len(rows) > 1 else np.full(8, np.nan)
    figure.add_hline(y=1, line=dict(color=INK, dash="dash", width=1))
    title = f"After {len(rows)} probes the standard error is {error.min():.0%} to {error.max():.0%} of a layer's trace (seed {seed})"
    return style(figure, title, x="Hutchinson probes", y="running mean of the trace [final mean is 1]", height=460)


def sizes(lab) -> go.Figure:
    """Test accuracy against average size, an arm a line, with 95 % intervals over seeds."""
    palette = colours(list(study.ARMS), "uniform", "trace")
    figure, ends = go.Figure(), {}
    shown = [arm for arm in study.ARMS if arm in lab.arms and arm != "full"]
    at = np.array(study.Uniform(lab.params).budgets)
    for place, arm in enumerate(shown):
        rows = np.array([_last(lab, arm, f"test_accuracy_{name}") for name in ("small", "middle", "large")])
        low, high = np.array([interval(row) for row in rows]).T
        mean, x = rows.mean(1), at + (place - len(shown) / 2) * 0.006 * (at[-1] - at[0])
        dash = "dot" if arm.startswith("trace_") else "solid"
        figure.add_scatter(x=x, y=mean, mode="lines+markers", name=arm.replace("_", " "),
                           line=dict(color=palette[arm], width=3 if arm in ("trace", "uniform") else 1.5, dash=dash),
                           error_y=dict(type="data", array=high - mean, arrayminus=mean - low, width=2))  # fmt: skip
        ends[arm] = mean.mean()
    full = _last(lab, "full", "test_accuracy").mean()
    figure.add_hline(y=full, line=dict(color=INK, dash="dash", width=1), annotation_text="32 bits", annotation_position="top left")
    best = max(ends, key=ends.get)
    title = (f"Mean over the three sizes: trace {ends['trace']:.3f}, uniform {ends['uniform']:.3f}; the best arm is "
             f"{best.replace('_', ' ')} with {ends[best]:.3f} (full precision {full:.3f})")  # fmt: skip
    return style(figure, title, x="average size [bits a weight]", y="test accuracy [share of test images]", height=520)


# ---- live views


def probes_come_in(net, params) -> go.Figure:
    """Each layer's trace as probes come in; from the network of the arm `full`, once it has been measured."""
    if not getattr(net, "measured", torch.zeros(())):
        return style(go.Figure(), "Traces are measured when the full network has been trained")
    return probes(net, 0).update_layout(title_text=f"Each layer's trace as {len(net.traces)} probes come in")


def bits_against_trace(net, params) -> go.Figure:
    """Bits of each layer against its average trace, at the size of the knob budget."""
    if isinstance(net, study.Settings):
        bits, trace = net.bits[-1].cpu().numpy(), net.trace.cpu().numpy()
    elif net.measured:
        trace = study.average_trace(net)
        bits = rule.choose(_omega(net, trace), _weights(net), params.budget)
    else:
        return style(go.Figure(), "Bits are chosen when the full network has been trained")
    where = ["top center", "bottom center"] * 4  # neighbours' names apart
    figure = go.Figure(go.Scatter(x=_positive(trace), y=bits, mode="markers+text", text=list(nets.LAYERS), textposition=where,
                                  marker=dict(size=12, color=BLUE), name="layer"))  # fmt: skip
    figure.update_xaxes(type="log", dtick=1, exponentformat="power").update_yaxes(range=[1, 9], tickvals=list(rule.BITS))
    return style(figure, f"Bits of the {len(bits)} layers at {params.budget:g} bits a weight", x="average Hessian trace", y="bits")
