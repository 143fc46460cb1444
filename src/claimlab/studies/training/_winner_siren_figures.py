"""Figures and live views of the study winner-siren."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.training import _winner_siren_method as method
from claimlab.studies.training import winner_siren as study

NAMES = {"siren": "SIREN", "siren_tuned": "SIREN, tuned ω₀", "winner": "WINNER", "fixed_noise": "fixed noise",
         "first_layer_only": "first layer only", "fourier_features": "Fourier features",
         "siren_slow": "SIREN, slow", "winner_slow": "WINNER, slow"}  # fmt: skip
COLOURS = colours(list(NAMES), "siren", "winner")
FAST = [arm for arm in NAMES if not arm.endswith("slow")]
MAIN, SLOW = ("siren", "winner"), ("siren_slow", "winner_slow")
BAND = "rgba(230,159,0,0.16)"
SAMPLES, FINER = 24, 16  # of the piece that is drawn, and points drawn a sample
FLOOR = -60.0  # dB, of spectra


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if set(MAIN) <= set(lab.arms):
        found = {"spectra of the layers": layers(lab), "kernel": kernels(lab), "over steps": course(lab),
                 "between the points": between(lab), "signal against signal": silence(lab, MAIN)}  # fmt: skip
    if set(SLOW) <= set(lab.arms):
        found = {"silence against signal": silence(lab, SLOW)} | found
    return found | ({"band": bands(lab)} if "edges" in lab.arms else {})


# ---- helpers


def values(table, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed that has one."""
    rows = table[(table.arm == arm) & (table.metric == metric)].sort_values("step").groupby("seed").value.last()
    return rows.dropna().to_numpy(float)


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR / 10)))


def spectrum(y: np.ndarray, parts: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (shares of Nyquist) and power in dB, each the sum over one of `parts` equal parts of the band."""
    power = method.power(y)
    groups = np.array_split(np.arange(len(power)), min(parts, len(power)))
    return np.array([g.mean() for g in groups]) / (len(power) - 1), decibels(np.array([power[g].sum() for g in groups]))


def _band(task) -> tuple[float, float]:
    p = task.p
    return p.band_low, min(1.0, p.band_low + study.data.WIDTH)


@torch.no_grad()
def _answer(net, x: np.ndarray) -> np.ndarray:
    weight = next(net.parameters())
    return net(torch.from_numpy(x).to(weight)[:, None]).cpu().numpy()


def _number(value: float) -> str:
    return f"{value:.0f}".replace("-0", "0").replace("-", "−")


# ---- the figures


def silence(lab, arms) -> go.Figure:
    """High target and fit of the first seed: a piece in time, between the samples too, and both spectra."""
    heads = [f"{NAMES[arm]}: {what}" for arm in arms for what in ("in time", "spectrum")]
    fig = make_subplots(2, 2, subplot_titles=heads, horizontal_spacing=0.12, vertical_spacing=0.22)
    n, seed = lab.params.points, lab.seeds[0]
    function, grid = study.data.tones("high", seed, n, lab.params.band_low), study.data.grid(n)
    near = grid[n // 2 - SAMPLES // 2 :][:SAMPLES]
    fine = np.linspace(near[0], near[-1], (SAMPLES - 1) * FINER + 1)
    for row, (arm, colour) in enumerate(zip(arms, (GREY, BLUE), strict=True), 1):
        net = lab.arms[arm].members[0].nets["high"]
        pens = {"target": dict(color=INK, width=1.2, dash="dot"), "fit": dict(color=colour, width=2)}
        for name, y, whole in (("target", function(fine), function(grid)), ("fit", _answer(net, fine), _answer(net, grid))):
            told = name if name == "target" else f"fit of {NAMES[arm]}"
            pen = dict(mode="lines", line=pens[name], name=told, legendgroup=told, row=row)
            fig.add_scatter(x=fine, y=y, showlegend=False, col=1, **pen)
            x, power = spectrum(whole)
            fig.add_scatter(x=x, y=power, showlegend=name == "fit" or row == 1, col=2, **pen)
        fig.add_scatter(x=near, y=function(near), mode="markers", marker=dict(color=INK, size=5), showlegend=row == 1,
                        name="samples that are trained on", row=row, col=1)  # fmt: skip
    fig.update_xaxes(title_text="x", col=1).update_xaxes(title_text="frequency (share of Nyquist)", col=2, range=[0, 1])
    fig.update_yaxes(title_text="y", col=1).update_yaxes(title_text="power (dB)", range=[FLOOR - 3, 3], col=2)
    r2 = [_number(100 * values(lab.table, arm, "r2_high").mean()) for arm in arms]
    rate = lab.params.lr * lab.arms[arms[0]].task.rate
    told = f"With a learning rate of {rate:g} SIREN explains {r2[0]} % of the high target's variance on the samples, "
    return style(fig, f"{told}WINNER {r2[1]} % (seed {seed} drawn)", height=580)


@torch.no_grad()
def _inner(net, x) -> list[np.ndarray]:
    """What enters the layers from the second on, and the answer: power [f, units] of each, by a Hann window."""
    one = net.nets["high"]
    window = torch.hann_window(len(x), periodic=False, dtype=torch.float64)[:, None].numpy() * (8 / 3) ** 0.5  # of mean square 1
    found = [part.cpu().double().numpy() for part in (*one.phases(x)[1:], one(x)[:, None])]
    return [method.power((part - part.mean(0)) * window) for part in found]


def layers(lab) -> go.Figure:
    """Mean power spectrum of what enters each layer but the first, at the start and at the end; the target's band is shaded."""
    depth = lab.params.layers
    heads = [f"into layer {k}" for k in range(2, depth + 1)] + ["answer"]
    fig = make_subplots(1, depth, shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.03)
    inside = {}
    low, high = _band(lab.arms["siren"].task)
    for arm in MAIN:
        run = lab.arms[arm]
        x = run.tasks[0].x
        for when, net in (("start", run.fresh(0).to(x.device)), ("end", run.members[0])):
            pen = dict(color=COLOURS[arm], width=2.4 if when == "start" else 1.4, dash="solid" if when == "start" else "dot")
            for k, each in enumerate(_inner(net, x), 1):
                power = each.mean(1)
                f = np.linspace(0, 1, len(power))
                inside[arm, when] = power[(f >= low) & (f <= high)].sum() / power.sum()
                groups = np.array_split(np.arange(len(power)), min(64, len(power)))
                total = np.array([power[g].sum() for g in groups])
                fig.add_scatter(x=[f[g].mean() for g in groups], y=decibels(total), mode="lines", line=pen, row=1, col=k,
                                name=f"{NAMES[arm]}, {when}", legendgroup=arm + when, showlegend=k == 1)  # fmt: skip
    for k in range(1, depth + 1):
        fig.add_vrect(x0=low, x1=high, fillcolor=BAND, line_width=0, layer="below", row=1, col=k)
    fig.update_xaxes(title_text="share of Nyquist", range=[0, 1]).update_yaxes(title_text="power (dB re 1 rad²)", col=1)
    shares = {arm: 100 * inside[arm, "start"] for arm in MAIN}
    told = " and ".join(f"{NAMES[arm]} {'under 0.01' if s < 0.01 else f'{s:.2g}'} %" for arm, s in shares.items())
    return style(fig, f"Power of the untrained answer inside the target's band (shaded): {told}", height=430)


def kernels(lab) -> go.Figure:
    """How much of the high target's energy the leading eigenvectors of the tangent kernel hold at the start."""
    fig = go.Figure()
    for arm in (a for a in FAST if a in lab.arms and a != "siren_tuned"):  # its kernel here is SIREN's
        sums = np.stack([np.cumsum(net.shares.cpu().double().numpy()) for net in lab.arms[arm].members])
        share = np.arange(1, sums.shape[1] + 1) / sums.shape[1]
        if arm in MAIN:
            low, high = np.array([interval(column) for column in sums.T]).T.clip(0, 1)
            fig.add_scatter(x=np.r_[share, share[::-1]], y=np.r_[high, low[::-1]], fill="toself", line_width=0, hoverinfo="skip",
                            fillcolor=faded(COLOURS[arm], 0.2), showlegend=False, legendgroup=arm)  # fmt: skip
        fig.add_scatter(x=share, y=sums.mean(0), mode="lines", line=dict(color=COLOURS[arm], width=3 if arm in MAIN else 1.6),
                        name=NAMES[arm], legendgroup=arm)  # fmt: skip
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=INK, dash="dot", width=1), name="directions at random")
    fig.add_vline(x=0.1, line=dict(color=INK, dash="dash", width=1))
    fig.update_yaxes(range=[-0.02, 1.02]).update_xaxes(range=[0, 1])
    told = {arm: 100 * values(lab.table, arm, "ntk_energy_top10").mean() for arm in MAIN}
    title = f"Before training, the first tenth of the kernel's eigenvectors holds {told['siren']:.2g} % of the target with SIREN, "
    return style(fig, f"{title}{told['winner']:.2g} % with WINNER", x="share of the eigenvectors, largest eigenvalue first",
                 y="share of the high target's energy", height=460)  # fmt: skip


def course(lab) -> go.Figure:
    """PSNR over steps on the three targets."""
    heads = [f"{name} target" for name in study.SOUNDS]
    fig = make_subplots(1, 3, shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.03)
    top = 0.0
    for col, target in enumerate(study.SOUNDS, 1):
        for arm in (a for a in reversed(NAMES) if a in lab.arms):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == f"psnr_{target}")]
            if rows.empty:
                continue
            wide = rows.pivot(index="step", columns="seed", values="value")
            x, (low, high) = wide.index.to_numpy(), np.array([interval(row) for row in wide.to_numpy()]).T
            top = max(top, wide.mean(axis=1).max())
            fig.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(COLOURS[arm], 0.15),
                            line_width=0, hoverinfo="skip", showlegend=False, legendgroup=arm, row=1, col=col)  # fmt: skip
            fig.add_scatter(x=x, y=wide.mean(axis=1), mode="lines", line=dict(color=COLOURS[arm], width=2.4), name=NAMES[arm],
                            legendgroup=arm, showlegend=target == "high", row=1, col=col)  # fmt: skip
    fig.update_xaxes(title_text="optimiser step").update_yaxes(range=[0, 1.1 * top])
    fig.update_yaxes(title_text="PSNR on the samples (dB)", col=1).update_layout(legend_traceorder="reversed")
    ends = {arm: values(lab.table, arm, "psnr_mean").mean() for arm in FAST[:4] if arm in lab.arms}
    told = ", ".join(f"{NAMES[arm]} {end:.0f}" for arm, end in ends.items())
    return style(fig, f"Mean PSNR over the three targets at the end, in dB: {told}", height=440)


def between(lab) -> go.Figure:
    """PSNR of the high target on the samples and half a step beside them."""
    fig = go.Figure()
    shown = [arm for arm in NAMES if arm in lab.arms]
    pairs = (("psnr_high", "on the samples", BLUE), ("psnr_between_high", "half a step beside them", OTHERS[0]))
    means = {}
    for k, (metric, name, colour) in enumerate(pairs):
        each = [values(lab.table, arm, metric) for arm in shown]
        means[metric] = dict(zip(shown, (v.mean() for v in each), strict=True))
        x = np.arange(len(shown)) + 0.4 * k - 0.2
        fig.add_bar(x=x, y=[v.mean() for v in each], width=0.38, marker_color=faded(colour, 0.6), name=name)
        for at, v in zip(x, each, strict=True):
            fig.add_scatter(x=at + np.linspace(-0.14, 0.14, len(v)), y=v, mode="markers", marker=dict(color=colour, size=5),
                            showlegend=False, hovertemplate="%{y:.3g}<extra></extra>")  # fmt: skip
    silent = np.mean([_silent(task) for task in lab.arms["siren"].tasks])
    fig.add_hline(y=silent, line=dict(color=INK, dash="dash", width=1), annotation_text="silence", annotation_font_color=INK)
    words = {a: NAMES[a].replace(" ", "<br>", 1) for a in shown}
    fig.update_xaxes(tickvals=list(range(len(shown))), ticktext=[words[a] for a in shown])
    ends = [means[metric]["winner"] for metric, *_ in pairs]
    title = f"WINNER reaches {ends[0]:.0f} dB on the samples and {ends[1]:.0f} dB between them; silence has {silent:.0f} dB"
    return style(fig, title, x="arm", y="PSNR of the high target (dB)", height=440)


def _silent(task) -> float:
    y = task.ys[task.targets.index("high")]
    return float(method.psnr(y, torch.zeros_like(y)))


def bands(lab) -> go.Figure:
    """PSNR on the samples of a high target against the lower edge of its band, first seed; small dots: all seeds."""
    fig, seed, here = go.Figure(), lab.seeds[0], lab.params.band_low
    ends = lab.table.sort_values("step").groupby(["arm", "metric", "seed"]).value.last()
    known = {}
    for arm in (a for a in NAMES if a in lab.arms and ("edges", f"{a} at 0: psnr_high", seed) in ends):
        known[arm] = {edge: ends["edges", f"{arm} at {edge:g}: psnr_high", seed] for edge in study.EDGES}
        known[arm][here] = ends[arm, "psnr_high", seed]
        x = sorted(known[arm])
        pen = dict(color=COLOURS[arm], width=3 if arm in (*MAIN, *SLOW) else 1.6)
        fig.add_scatter(x=x, y=[known[arm][edge] for edge in x], mode="lines+markers", name=NAMES[arm], legendgroup=arm, line=pen)
        every = ends[arm, "psnr_high"].to_numpy()
        fig.add_scatter(x=[here] * len(every), y=every, mode="markers", marker=dict(color=COLOURS[arm], size=5, opacity=0.5),
                        showlegend=False, legendgroup=arm, hoverinfo="y")  # fmt: skip
    slow = known["siren_slow"]
    title = f"From the lowest to the highest band the slow SIREN goes from {slow[min(slow)]:.0f} to {slow[max(slow)]:.0f} dB, "
    title += f"SIREN at the full rate from {known['siren'][min(slow)]:.0f} to {known['siren'][max(slow)]:.0f} dB (seed {seed})"
    return style(fig, title, x="lower edge of the band (share of Nyquist)", y="PSNR of the high target (dB)", height=460)


# ---- views: everything comes from the network, which carries its targets


def _shown(net) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, str]:
    """Network, points and values of the high target, or of the last one; of an image the middle row."""
    name = "high" if "high" in net.nets else list(net.nets)[-1]
    x, y = net.x, net.ys[list(net.nets).index(name)]
    if x.shape[1] == 2:
        side = math.isqrt(len(x))
        middle = slice(side // 2 * side, side // 2 * side + side)
        x, y = x[middle], y[middle]
    return net.nets[name], x, y, name


def fit_view(net, params) -> go.Figure:
    """Target and fit now: a piece of the signal, and the spectra of all of it."""
    one, x, y, name = _shown(net)
    with torch.no_grad():
        fit = one(x)
    fig = make_subplots(2, 1, vertical_spacing=0.22)
    first = max(0, (len(y) - 64) // 2)
    piece = slice(first, first + 64)
    for told, v, pen in (("target", y, dict(color=GREY, width=2)), ("fit", fit, dict(color=BLUE, width=1.6))):
        v = v.cpu().double().numpy()
        fig.add_scatter(x=x[piece, -1].cpu().numpy(), y=v[piece], mode="lines", line=pen, name=told, row=1, col=1)
        f, power = spectrum(v)
        fig.add_scatter(x=f, y=power, mode="lines", line=pen, name=told, showlegend=False, row=2, col=1)
    fig.update_xaxes(title_text="x", row=1).update_xaxes(title_text="frequency (share of Nyquist)", row=2)
    fig.update_yaxes(title_text="y", row=1).update_yaxes(title_text="power (dB)", row=2)
    return style(fig, f"{name} target: the fit explains {100 * float(method.explained(y, fit)):.0f} % of its variance", height=520)


def kernel_view(net, params) -> go.Figure:
    """Eigenvalues of the tangent kernel now, and the target's energy on its eigenvectors, summed up."""
    one, x, y, name = _shown(net)
    near, target = study.probe(x, y, study.PROBE // 2)  # a live picture has to be quick
    found, shares = method.energy_on(method.tangent_kernel(one, near), target)
    found, shares = found.cpu().numpy(), shares.cpu().numpy()
    fig = make_subplots(2, 1, vertical_spacing=0.12, shared_xaxes=True)
    place = np.arange(1, len(found) + 1)
    for row, y in enumerate((np.maximum(found, found[0] * 1e-9), np.cumsum(shares)), 1):
        fig.add_scatter(x=place, y=y, mode="lines", line=dict(color=BLUE), showlegend=False, row=row, col=1)
    fig.update_yaxes(type="log", exponentformat="power", title_text="eigenvalue", row=1)
    fig.update_yaxes(title_text="energy so far", range=[-0.02, 1.02], row=2)
    fig.update_xaxes(title_text="eigenvector, largest eigenvalue first", row=2)
    top = 100 * float(method.leading(torch.from_numpy(shares)))
    return style(fig, f"{name} target: the first tenth of the eigenvectors holds {top:.0f} % of its energy", height=520)
