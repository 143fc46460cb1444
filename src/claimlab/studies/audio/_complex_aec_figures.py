"""Figures, sounds and live views of the study `complex-aec`: what the arms make of test clips, and when."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from claimlab.claims import interval
from claimlab.figures import BLUE, INK, OTHERS, arm_colours, faded, style
from claimlab.studies.audio import _complex_aec_data as data
from claimlab.studies.audio import _complex_aec_method as method
from claimlab.studies.audio import complex_aec as study
from claimlab.studies.audio._complex_aec_data import DOUBLE, FAR, NEAR, RATE, Clips

TRAINED = ("nlms_plus_mask", "complex_dual", "complex_single", "real_dual", "single_dilation")
DELAYS = (0, 10, 20, 30, 45, 60)  # ms
BIN = 400  # samples (50 ms) over which energies are compared


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"gain by scenario": scenarios(lab)}
    if "complex_dual" in lab.arms:
        found["spectrograms"] = album(lab)
        if study.own_or_made(lab.seeds[0], lab.params)[1].change.max() >= 0:
            found["echo over time"] = reaction(lab)
        found["gain against delay"] = delays(lab)
        if lab.params.combine != "single":
            found["mask of a pure delay"] = delay_phase(lab)
    return found


# ---- helpers


def _inputs(lab, arm: str, i: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(wave[rows] for wave in lab.arms[arm].tasks[i].tested)


def _output(lab, arm: str, i: int, rows: Tensor) -> Tensor:
    """What an arm makes of test clips `rows` of the i-th seed, [len(rows), T]."""
    if arm == "nlms":
        return study.first_stage(lab.seeds[i], lab.params)[1][0][rows]
    return lab.arms[arm].members[i].eval().waves(*_inputs(lab, arm, i, rows))


def _decibel(wave: Tensor) -> np.ndarray:
    return (20 * torch.log10(method.stft(wave).abs() + 1e-4)).numpy().round(1)


def _panel(figure, wave: Tensor, top: float, row: int, column: int, bar: bool) -> None:
    times = np.arange(wave.shape[-1] // method.HOP + 1) * method.HOP / RATE
    khz = np.arange(method.WINDOW // 2 + 1) * RATE / method.WINDOW / 1000
    figure.add_heatmap(x=times.round(3), y=khz.round(3), z=_decibel(wave), zmin=top - 60, zmax=top, colorscale="Cividis",
                       showscale=bar, colorbar=dict(title="dB", len=0.9), hoverinfo="z", row=row, col=column)  # fmt: skip


def _grid(waves: dict[str, Tensor], title: str, columns: int) -> go.Figure:
    rows = -(-len(waves) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(waves), shared_xaxes=True, shared_yaxes=True,
                           horizontal_spacing=0.03, vertical_spacing=0.14)  # fmt: skip
    top = float(_decibel(next(iter(waves.values()))).max())
    for k, wave in enumerate(waves.values()):
        _panel(figure, wave, top, k // columns + 1, k % columns + 1, k == 0)
    figure.update_xaxes(title_text="time [s]", row=rows).update_yaxes(title_text="frequency [kHz]", col=1)
    return style(figure, title, height=180 + 190 * rows).update_annotations(font_size=12)


def _alike(wave: Tensor, model: Tensor) -> Tensor:
    """`wave` at the loudness of `model`: the loopback has other units than the microphone."""
    return wave * (model.square().mean().sqrt() / (wave.square().mean().sqrt() + 1e-9))


def _curves(figure, lab, arm: str, x, values: np.ndarray, colour: str) -> None:
    """Mean of `values` [seeds, points] with its 95 % band."""
    low, high = np.array([interval(column) if len(column) > 1 else (column[0],) * 2 for column in values.T]).T
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], mode="lines", fill="toself", fillcolor=faded(colour, 0.18),
                       line_width=0, hoverinfo="skip", showlegend=False, legendgroup=arm)  # fmt: skip
    figure.add_scatter(x=x, y=values.mean(0), mode="lines+markers", marker_size=5, line=dict(color=colour, width=2.5), name=arm,
                       legendgroup=arm)  # fmt: skip


# ---- spectrograms and sounds


def sounds(lab) -> dict[str, np.ndarray]:
    """One double-talk test clip of the first seed, whose path changes if any does: what came in, what each system made of
    it, and the clean speech; float32 [T] at 8 kHz, peak below 1."""
    test = study.own_or_made(lab.seeds[0], lab.params)[1]
    both = test.of(DOUBLE)
    moved = both[test.change[both] >= 0]
    pick = (moved if len(moved) else both)[:1]
    waves = {"microphone": test.mic[pick], "loopback": _alike(test.far[pick], test.mic[pick])}
    waves |= {arm: _output(lab, arm, 0, pick) for arm in ("nlms", "nlms_plus_mask", "complex_dual") if arm in lab.arms}
    waves = {name: wave[0] for name, wave in (waves | {"clean near-end speech": test.near[pick]}).items()}
    peak = max(float(wave.abs().max()) for wave in waves.values())
    return {name: (0.9 / peak * wave).numpy() for name, wave in waves.items()}


def album(lab) -> go.Figure:
    """What came in, what came out, and the clean speech, as spectrograms of one clip."""
    waves = {name: torch.from_numpy(wave) for name, wave in sounds(lab).items()}
    clean = waves["clean near-end speech"]
    told = [f"{name} {method.sisdr(waves[name], clean):.1f}" for name in ("microphone", "nlms_plus_mask", "complex_dual") if name in waves]
    return _grid(waves, f"Double talk, one clip of seed {lab.seeds[0]}. SI-SDR in dB: {', '.join(told)}", 3)


# ---- reaction to a path change


def erle_curve(mic: Tensor, out: Tensor) -> np.ndarray:
    """Echo removed in each 50 ms, mean over clips [C, T], dB."""
    return method.erle(mic.unfold(-1, BIN, BIN), out.unfold(-1, BIN, BIN)).mean(0).numpy()


def reaction(lab) -> go.Figure:
    """ERLE in 50 ms bins over far-end clips whose echo path changes half-way, mean over clips, band over seeds."""
    figure, palette, after = go.Figure(), arm_colours(lab), {}
    x = (np.arange(RATE // BIN) + 0.5) * BIN / RATE
    for arm in [a for a in ("nlms", *TRAINED[:4]) if a in lab.arms]:
        found = []
        for i, seed in enumerate(lab.seeds):
            test = study.own_or_made(seed, lab.params)[1]
            far, near = test.of(FAR), test.of(NEAR)[:12]
            moved = far[test.change[far] >= 0]
            scale = 1 / method.level(_output(lab, arm, i, near), test.near[near])
            found.append(erle_curve(test.mic[moved], scale * _output(lab, arm, i, moved)))
        _curves(figure, lab, arm, x, np.array(found), palette[arm])
        values = lab.table[(lab.table.arm == arm) & (lab.table.metric == "erle_after_change_db")].value
        after[arm] = values.mean()
    figure.add_vline(x=0.5, line=dict(dash="dash", width=1.5, color=INK), annotation_text="the room changes",
                     annotation_position="top right")  # fmt: skip
    figure.add_vrect(x0=0.5, x1=0.8, fillcolor="rgba(128,128,128,0.12)", line_width=0, layer="below")
    told = ", ".join(f"{arm} {after[arm]:.1f}" for arm in ("nlms", "nlms_plus_mask", "complex_dual") if arm in after)
    title = f"Echo removed after the change: {told} dB"
    return style(figure, title, x="time in the clip [s]", y="echo removed, ERLE [dB]", height=460)


# ---- delay


def delays(lab) -> go.Figure:
    """SI-SDR gain in double talk against the echo's delay, with the window's length."""
    figure, palette, ends = go.Figure(), arm_colours(lab), {}
    each = max(1, min(8, lab.params.tests // 15))
    steps = tuple(d * RATE // 1000 for d in DELAYS)
    for arm in [a for a in ("real_dual", "complex_dual") if a in lab.arms]:
        found = []
        for i, seed in enumerate(lab.seeds):
            clips = data.delayed(seed, steps, each, lab.params.nonlinearity, lab.params.ser_db)
            out = lab.arms[arm].members[i].eval().waves(clips.mic, clips.far)
            gain = method.sisdr(out, clips.near) - method.sisdr(clips.mic, clips.near)
            found.append(gain.unflatten(0, (len(DELAYS), each)).mean(1).numpy())
        _curves(figure, lab, arm, np.array(DELAYS), np.array(found), palette[arm])
        ends[arm] = np.mean(found, 0)
    figure.add_vline(x=16, line=dict(dash="dash", width=1.5, color=INK), annotation_text="length of the window, 16 ms",
                     annotation_position="top right")  # fmt: skip
    title = "Gain at 0 and 60 ms: " + "; ".join(f"{a} {v[0]:.1f} and {v[-1]:.1f} dB" for a, v in ends.items())
    return style(figure, title, x="delay of the echo [ms]", y="SI-SDR gain [dB]", height=430)


def fitted_mask(delay: int, steps: int = 300) -> Tensor:
    """One complex mask [K] for all frames, learned by gradient descent on |Y - M X|^2 for y = white x, `delay` samples late."""
    x = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    spectrum, wanted = method.stft(x)[0], method.stft(x.roll(delay, 1))[0]
    mask = torch.zeros(spectrum.shape[0], 1, 2, requires_grad=True)
    adam = torch.optim.Adam([mask], lr=0.03)
    with torch.enable_grad():
        for _ in range(steps):
            off = wanted - torch.view_as_complex(mask) * spectrum
            (slope,) = torch.autograd.grad((off.real.square() + off.imag.square()).mean(), [mask])
            mask.grad = slope
            adam.step()
    return torch.view_as_complex(mask.detach())[:, 0]


def network_mask(net, clip: Tensor, delay: int) -> Tensor:
    """The echo path [K] that a trained network's masks imply when all it hears is the loopback `clip` [T], `delay` samples
    late: the mean over frames of -M_x conj(M_y) (sum) or M_x (cascade), weighted by |X|^2."""
    x = method.stft(clip[None])
    with torch.no_grad():
        masks = net.net(method.stft(0.2 * clip.roll(delay)[None]), x)
    path = masks[1] if net.how == "cascade" else -masks[1] * masks[0].conj()
    return (path * x.abs().square()).mean(-1)[0]


def delay_phase(lab, delay: int = 12) -> go.Figure:
    """Phase of M_x against frequency for an echo that is nothing but a delay."""
    khz = np.arange(method.WINDOW // 2 + 1) * RATE / method.WINDOW / 1000
    k = np.arange(len(khz))
    learned = np.unwrap(np.angle(fitted_mask(delay).numpy()))
    slope = np.polyfit(k[2:-2], learned[2:-2], 1)[0]
    test = study.own_or_made(lab.seeds[0], lab.params)[1]
    clip = test.far[test.of(FAR)[0]]
    own = np.angle(network_mask(lab.arms["complex_dual"].members[0].eval(), clip, delay).numpy())
    line = -2 * np.pi * k * delay / method.WINDOW
    figure = make_subplots(1, 2, subplot_titles=("phase of the mask on the loopback", "distance from the line"), horizontal_spacing=0.13)
    figure.add_scatter(x=khz, y=line, mode="lines", line=dict(color=INK, dash="dash"), name=f"−2πkd/N, d = {delay} samples")
    off = {"mask learned for this delay": learned - line, "masks of the trained network": own - line}
    off = {name: np.angle(np.exp(1j * value)) for name, value in off.items()}  # a phase is known up to whole turns
    for (name, value), colour in zip(off.items(), (OTHERS[1], BLUE), strict=True):
        marker = dict(color=colour, size=5)
        figure.add_scatter(x=khz, y=value, mode="markers", marker=marker, name=name, legendgroup=name, row=1, col=2)
    figure.add_scatter(x=khz, y=learned, mode="markers", marker=dict(color=OTHERS[1], size=5), showlegend=False, row=1, col=1)
    figure.update_yaxes(title_text="radians", col=1).update_yaxes(range=[-np.pi - 0.2, np.pi + 0.2], col=2)
    title = (f"Learned for one delay, the phase falls {-slope:.3f} radians a bin (theory {2 * np.pi * delay / method.WINDOW:.3f}); "
             f"the trained network is {np.sqrt(np.mean(off['masks of the trained network'] ** 2)):.1f} off (chance: 1.8)")  # fmt: skip
    return style(figure, title, x="frequency [kHz]", height=430)


# ---- scenarios


def scenarios(lab) -> go.Figure:
    """Last values of every arm in the three scenarios, a dot a seed."""
    panels = {"erle_far_db": "far-end talk: ERLE", "sisdr_gain_db": "double talk: SI-SDR gain",
              "sisdr_gain_near_db": "near-end talk: SI-SDR gain"}  # fmt: skip
    figure = make_subplots(1, 3, subplot_titles=list(panels.values()), horizontal_spacing=0.08)
    palette, best = arm_colours(lab), {}
    arms = [a for a in study.ARMS if a in lab.arms]
    for column, metric in enumerate(panels, 1):
        for place, arm in enumerate(arms):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
            values = rows.sort_values("step").groupby("seed").value.last().to_numpy()
            figure.add_bar(x=[place], y=[values.mean()], marker_color=faded(palette[arm], 0.55), name=arm, legendgroup=arm,
                           showlegend=column == 1, row=1, col=column)  # fmt: skip
            beside = place + np.linspace(-0.28, 0.28, len(values) + 2)[1:-1]
            figure.add_scatter(x=beside, y=values, mode="markers", marker=dict(color=palette[arm], size=5), showlegend=False,
                               legendgroup=arm, row=1, col=column)  # fmt: skip
            best.setdefault(metric, {})[arm] = values.mean()
    figure.update_xaxes(showticklabels=False, ticks="").update_yaxes(title_text="dB", col=1)
    top = max(best["sisdr_gain_db"], key=best["sisdr_gain_db"].get)
    title = f"In double talk {top} gains most, {best['sisdr_gain_db'][top]:.1f} dB in SI-SDR (a dot a seed)"
    return style(figure, title, height=420).update_annotations(font_size=12)


# ---- live views: a scene of its own, from the parameters alone


@lru_cache(maxsize=4)
def _scene(delay_ms: float, nonlinearity: float, ser_db: float, length: int, mu: float) -> tuple[Clips, tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(0)
    kinds = np.array([FAR] * 8 + [DOUBLE] * 2 + [NEAR] * 2)
    clips = data.clips(rng, kinds, data.voices(rng, 20), data.World(delay_ms, nonlinearity, ser_db, data.SECOND // 2))
    return clips, study.cancelled(clips, length, mu)


def _heard(net, params, rows: Tensor) -> tuple[Clips, Tensor]:
    """The scene, and what `net` makes of its clips `rows`."""
    clips, stage = _scene(params.delay_ms, params.nonlinearity, params.ser_db, study.taps(params), params.nlms_mu)
    first, second = stage if net.two_stage else (clips.mic, clips.far)
    return clips, net.waves(first[rows], second[rows])


def spectrograms(net, params) -> go.Figure:
    """Microphone, echo with noise, the network's estimate and the clean speech: a synthetic scene that follows from the knobs."""
    row = torch.tensor([9])
    clips, out = _heard(net, params, row)
    mic, near = clips.mic[9], clips.near[9]
    waves = {"microphone": mic, "echo and noise": mic - near, "estimate": out[0], "clean speech": near}
    gain = method.sisdr(out[0], near) - method.sisdr(mic, near)
    return _grid(waves, f"Double talk, the room changes at 0.5 s; SI-SDR gain so far {gain:+.1f} dB", 2)


def echo_over_time(net, params) -> go.Figure:
    """Echo removed in each 50 ms of four synthetic far-end clips whose room changes at 0.5 s."""
    rows = torch.tensor([1, 3, 5, 7, 10, 11])
    clips, out = _heard(net, params, rows)
    scale = 1 / method.level(out[4:], clips.near[rows[4:]])
    curve = erle_curve(clips.mic[rows[:4]], scale * out[:4])
    figure = go.Figure(go.Scatter(x=(np.arange(len(curve)) + 0.5) * BIN / RATE, y=curve, mode="lines+markers", line_color=BLUE))
    figure.add_vline(x=0.5, line=dict(dash="dash", width=1.5, color=INK))
    return style(figure, f"Echo removed: {curve[:10].mean():.1f} dB before the room changes, {curve[10:].mean():.1f} dB after",
                 x="time in the clip [s]", y="echo removed, ERLE [dB]")  # fmt: skip
