"""Figures and live views of the study `root_optimizer`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from scipy.stats import norm
from torch import Tensor

from claimlab.claims import interval
from claimlab.figures import GREY, INK, OTHERS, colours, faded, style
from claimlab.studies.training import _root_optimizer_data as data
from claimlab.studies.training import _root_optimizer_method as method
from claimlab.studies.training import root_optimizer as study

COLOURS = colours(["adamw", "muon_clip", "root_ns", "root_soft", "exact_svd", "muon", "root"], "muon", "root")
SHAPES = {1: "#0072B2", 2: "#56B4E9", 4: "#009E73", 8: "#CC79A7"}  # colour of an aspect ratio
PLAIN = ("adamw", "muon", "muon_clip", "root")
KIND = {"clean": "no outliers", "outliers": "outliers in the gradients"}


def figures(lab) -> dict[str, go.Figure]:
    """All figures of a finished experiment."""
    return {"loss": losses(lab), "polynomials": polynomials(lab), "error by shape": by_shape(lab), "momentum": momentum(lab),
            "outlier rate": rates(lab)}  # fmt: skip


def _last(lab, metric: str) -> dict[str, np.ndarray]:
    """Values of all seeds at the last step, by arm."""
    rows = lab.table[lab.table.metric == metric].sort_values("step")
    found = rows.groupby(["arm", "seed"])["value"].last().unstack("seed")
    return {arm: found.loc[arm].to_numpy(float) for arm in study.ARMS if arm in found.index}


def losses(lab) -> go.Figure:
    """Validation loss over steps, one panel a setting."""
    found = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(KIND.values()), horizontal_spacing=0.05)
    shown, best = set(), {}
    for column, setting in enumerate(KIND, 1):
        rows = lab.table[(lab.table.metric == f"curve_{setting}") & (lab.table.step > 0)]
        for arm in [arm for arm in COLOURS if (rows.arm == arm).any()]:
            wide = rows[rows.arm == arm].pivot(index="step", columns="seed", values="value")
            at = dict(row=1, col=column)
            if arm in PLAIN:
                low, high = np.array([interval(v) for v in wide.to_numpy()]).T
                found.add_scatter(x=np.r_[wide.index, wide.index[::-1]], y=np.r_[high, low[::-1]], fill="toself", line_width=0,
                                  mode="lines", fillcolor=faded(COLOURS[arm], 0.18), hoverinfo="skip", showlegend=False,
                                  legendgroup=arm, **at)  # fmt: skip
            pen = dict(color=COLOURS[arm], width=2.6 if arm in PLAIN else 1.6, dash="solid" if arm in PLAIN else "dot")
            found.add_scatter(x=wide.index, y=wide.mean(axis=1), mode="lines+markers", marker_size=4, line=pen, name=arm,
                              legendgroup=arm, showlegend=arm not in shown, **at)  # fmt: skip
            shown.add(arm)
            best.setdefault(setting, {})[arm] = wide.mean(axis=1).iloc[-1]
    first = {KIND[setting]: min(ends, key=ends.get) for setting, ends in best.items()}
    title = "Lowest at the end: " + "; ".join(f"{arm} with {kind}" for kind, arm in first.items())
    style(found, title, height=470, x="optimiser step")
    return found.update_yaxes(title_text="validation loss [nats a character]", row=1, col=1)


# ---- orthogonalization


def _spectra(lab, aspect: int) -> list[Tensor]:
    """Singular values of the recorded momenta of each seed, scaled as the iteration begins; at most five seeds."""
    return [method.scaled_values(study.recorded(seed, lab.params)[aspect]) for seed in lab.seeds[:5]]


def _numbers(p, aspect: int) -> method.Coefficients:
    return study.coefficients(p, (p.width, p.width * aspect))


def _curves(figure: go.Figure, p, aspects, row: int) -> None:
    """s -> p_K(s) of Muon and of the numbers of each shape, on a log axis."""
    s = np.logspace(-4, 0, 400)
    muon = method.polynomial(s, (method.MUON,) * p.iterations)
    figure.add_hline(y=1, line={"color": INK, "dash": "dash", "width": 1}, row=row, col=1)
    figure.add_scatter(x=s, y=muon, mode="lines", line={"color": GREY, "width": 2.5}, name="Muon, all shapes", row=row, col=1)
    for aspect in aspects:
        figure.add_scatter(x=s, y=method.polynomial(s, _numbers(p, aspect)), mode="lines", row=row, col=1,
                           line={"color": SHAPES[aspect], "width": 2}, name=f"ROOT, {p.width} × {p.width * aspect}")  # fmt: skip


def _histogram(figure: go.Figure, values: Tensor, name: str, colour: str, row: int, shown: bool = False) -> None:
    edges = np.linspace(-4, 0, 61)
    share, _ = np.histogram(np.log10(values.double().clamp_min(1e-30).numpy()).ravel(), edges)
    figure.add_scatter(x=10 ** ((edges[:-1] + edges[1:]) / 2), y=share / max(1, values.numel()), mode="lines", fill="tozeroy",
                       line={"color": colour, "shape": "hvh", "width": 1.5}, fillcolor=faded(colour, 0.2), name=name,
                       showlegend=shown, row=row, col=1)  # fmt: skip


def polynomials(lab) -> go.Figure:
    """The polynomials over the singular values that they meet."""
    p, found = lab.params, make_subplots(2, 1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.06)
    aspects = (1, 4)
    _curves(found, p, aspects, 1)
    met = {aspect: torch.cat([s.flatten() for s in _spectra(lab, aspect)]) for aspect in aspects}
    for aspect in aspects:
        name = f"met in training, {p.width} × {p.width * aspect}"
        _histogram(found, met[aspect], name, SHAPES[aspect], 2, True)
    square = met[1].double()
    ends = {"Muon": (method.MUON,) * p.iterations, "ROOT": _numbers(p, 1)}
    far = {name: float(((method.polynomial(square, one) - 1).abs() > 0.3).double().mean()) for name, one in ends.items()}
    title = (f"Of the singular values of square momenta, Muon leaves {far['Muon']:.0%} further than 0.3 from 1, "
             f"the numbers fitted to the shape {far['ROOT']:.0%}")  # fmt: skip
    style(found, title, height=560).update_layout(margin_b=110)
    found.update_xaxes(type="log", range=[-4, 0], dtick=1, exponentformat="power")
    found.update_xaxes(title_text="singular value s of B / ‖B‖", row=2, col=1)
    found.update_yaxes(title_text=f"after {p.iterations} iterations", range=[0, 1.6], row=1, col=1)
    return found.update_yaxes(title_text="share of values", row=2, col=1)


def by_shape(lab) -> go.Figure:
    """Relative Frobenius error for four aspect ratios, fixed and fitted numbers, a dot a seed."""
    p, found, mean = lab.params, go.Figure(), {}
    for k, name in enumerate(("Muon's numbers", "fitted to the shape")):
        for place, aspect in enumerate(SHAPES):
            numbers = _numbers(p, aspect) if k else (method.MUON,) * p.iterations
            off = [method.polynomial(s, numbers) - 1 for s in _spectra(lab, aspect)]
            errors = np.array([float(one.square().mean(-1).sqrt().mean()) for one in off])
            low, high = interval(errors) if len(errors) > 1 else (errors[0], errors[0])
            colour, x = _colour(k), place + 0.4 * k - 0.2
            mean[k, aspect] = errors.mean()
            found.add_bar(x=[x], y=[errors.mean()], width=0.36, marker_color=faded(colour, 0.6), name=name, legendgroup=name,
                          showlegend=place == 0, error_y={"array": [high - errors.mean()], "arrayminus": [errors.mean() - low],
                          "color": INK}, hovertemplate="%{y:.3f}")  # fmt: skip
            found.add_scatter(x=x + np.linspace(-0.12, 0.12, len(errors)), y=errors, mode="markers", showlegend=False, name=name,
                              marker={"color": colour, "size": 5})  # fmt: skip
    cut = {aspect: 1 - mean[1, aspect] / mean[0, aspect] for aspect in SHAPES}
    title = (f"Fitted numbers cut the distance from the true polar factor by {cut[1]:.0%} for square momenta and by {cut[8]:.0%} "
             "for the longest ones")  # fmt: skip
    style(found, title, x="shape of the momentum", y="relative Frobenius error")
    return found.update_xaxes(tickvals=list(range(4)), ticktext=[f"{p.width} × {p.width * aspect}" for aspect in SHAPES])


def _colour(fitted: int) -> str:
    """Grey for Muon's numbers, blue for the fitted ones."""
    return COLOURS["root"] if fitted else COLOURS["muon"]


# ---- outliers


def _momentum(run, setting: str, name: str) -> Tensor:
    """The momentum buffer of the first member's matrix `name`."""
    ensemble = run.ensembles[0]
    ((optimizer, _), *_) = ensemble.optimizers[setting]
    held = optimizer.state[ensemble.tensors(f"{setting}.hidden.{name}")[0]]["momentum"]
    return held[0] if held.dim() == 3 else held


def momentum(lab) -> go.Figure:
    """Histogram and normal Q-Q plot of one momentum matrix before and after shaving, clean and with outliers."""
    found = make_subplots(1, 2, subplot_titles=["entries", "against a normal law"], horizontal_spacing=0.13)
    far = {}
    for setting, colour in (("clean", COLOURS["muon"]), ("outliers", OTHERS[3])):
        raw = _momentum(lab.arms["muon"], setting, "0.up").cpu()
        base, _ = method.soft_threshold(raw, lab.params.quantile)
        unit = float(raw.abs().median()) / norm.ppf(0.75)
        far[setting] = float(raw.abs().max()) / unit
        for name, values, dash, tone in (("raw", raw, "solid", colour), ("shaved", base, "dot", COLOURS["root"])):
            z = np.sort((values / unit).numpy().ravel())
            count, edges = np.histogram(np.log10(np.abs(z).clip(1e-30)), np.linspace(-2, 4, 61))
            label, where = f"{setting}, {name}", count > 0
            pen = dict(color=tone if setting == "outliers" or name == "raw" else faded(tone, 0.6), dash=dash, width=2)
            found.add_scatter(x=10 ** ((edges[:-1] + edges[1:])[where] / 2), y=count[where], mode="lines+markers", line=pen,
                              name=label, marker_size=4, legendgroup=label, row=1, col=1)  # fmt: skip
            keep = np.unique(np.r_[np.arange(40), np.linspace(0, len(z) - 1, 400).astype(int), np.arange(len(z) - 40, len(z))])
            keep = keep[(keep >= 0) & (keep < len(z))]
            normal = norm.ppf((keep + 0.5) / len(z))
            found.add_scatter(x=normal, y=z[keep], mode="lines", line=pen, name=label, legendgroup=label, showlegend=False,
                              row=1, col=2)  # fmt: skip
    title = (f"The largest entry of a momentum matrix is {far['outliers']:.0f} robust standard deviations from zero with "
             f"outliers and {far['clean']:.0f} without; shaving leaves no tail")  # fmt: skip
    style(found, title, height=450).update_yaxes(type="log", dtick=1, title_text="entries of the matrix", row=1, col=1)
    found.update_xaxes(type="log", title_text="size of the entry [robust sd]", row=1, col=1)
    found.update_xaxes(title_text="quantile of N(0, 1)", row=1, col=2)
    return found.update_yaxes(title_text="entry [robust sd]", row=1, col=2)


def rates(lab) -> go.Figure:
    """Final validation loss against the share of entries hit."""
    rate = lab.params.outlier_rate
    ends = {setting: _last(lab, f"val_loss_{setting}") for setting in ("clean", "outliers", "heavy")}
    found = go.Figure()
    for arm in [arm for arm in PLAIN if arm in lab.arms]:
        trained = [k for k, setting in enumerate(ends) if arm in ends[setting]]
        values = [values[arm] for values in ends.values() if arm in values]
        means = np.array([v.mean() for v in values])
        low, high = np.array([interval(v) for v in values]).T
        found.add_scatter(x=trained, y=means, mode="lines+markers", line={"color": COLOURS[arm], "width": 2.5}, name=arm,
                          error_y={"array": high - means, "arrayminus": means - low, "color": COLOURS[arm]})  # fmt: skip
    rise = {arm: ends["heavy"][arm].mean() - ends["clean"][arm].mean() for arm in ("muon", "root")}
    title = f"From no outliers to the most, Muon's loss changes by {rise['muon']:+.2f} and ROOT's by {rise['root']:+.2f} nats"
    style(found, title, x="share of gradient entries hit at every step", y="final loss [nats a character]")
    ticks = ["0", f"{rate:.2%}", f"{min(0.05, 10 * rate):.2%}"]
    return found.update_xaxes(tickvals=[0, 1, 2], ticktext=ticks, range=[-0.2, 2.2])


# ---- live views; `net` holds one transformer a setting


def _chosen(net, *wanted: str):
    """(setting, transformer): the first wanted setting that this arm trains, else any."""
    setting = next((name for name in wanted if name in net), next(iter(net)))
    return setting, net[setting]


def _rebuilt(net, p, setting: str, batches: int = 3) -> dict[str, Tensor]:
    """Momentum of the first block's matrices, rebuilt from a few minibatches at the present weights: the buffer itself lies in
    the optimiser, which a view does not see. Windows and outliers follow from a fixed number, so that pictures compare."""
    rng, arm = torch.Generator().manual_seed(0), study.Muon(p)
    weights = [w for name, w in net.named_parameters() if name != "draw"]
    device, held = net.draw.device, [torch.zeros_like(w) for w in weights]
    for _ in range(batches):
        x, y, code, _ = (part.to(device) for part in arm.batch(None, rng, 0))
        with torch.enable_grad():
            loss = torch.nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())
            gradients = torch.autograd.grad(loss, weights)
        arrived = arm.received(setting, [g[None] for g in gradients], code[None])
        held = [p.momentum * m + g[0] for m, g in zip(held, arrived, strict=True)]
    names = [name for name, _ in net.named_parameters() if name != "draw"]
    return {n.removeprefix("hidden.0."): m for n, m in zip(names, held, strict=True) if n.startswith("hidden.0.")}


def spectrum(net, p) -> go.Figure:
    """s -> p_K(s), fixed and fitted, over the singular values of the first block's square momenta as they are now."""
    setting, one = _chosen(net, "clean")
    met = _rebuilt(one, p, setting)
    s = method.scaled_values(torch.stack([met[name] for name in "qkvo"])).cpu()
    found = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.06)
    _curves(found, p, (1,), 1)
    _histogram(found, s, "now", SHAPES[1], 2)
    error = [float((method.polynomial(s, c) - 1).square().mean().sqrt()) for c in ((method.MUON,) * p.iterations, _numbers(p, 1))]
    title = f"Error on the momenta as they are now: {error[0]:.2f} with Muon's numbers, {error[1]:.2f} with ROOT's"
    style(found, title, height=460)
    found.update_xaxes(type="log", range=[-4, 0], dtick=1, exponentformat="power")
    found.update_xaxes(title_text="singular value s of B / ‖B‖", row=2, col=1)
    found.update_yaxes(title_text="after the iterations", range=[0, 1.6], row=1, col=1)
    return found.update_yaxes(title_text="share of values", row=2, col=1)


def one_matrix(net, p) -> go.Figure:
    """The momentum of the first block's q: raw, shaved and orthogonalised."""
    setting, one = _chosen(net, "outliers")
    raw = _rebuilt(one, p, setting)["q"].cpu()
    base, _ = method.soft_threshold(raw, p.quantile)
    x = method.newton_schulz(base, study.coefficients(p, base.shape))
    found = make_subplots(1, 3, subplot_titles=["raw", "shaved", "orthogonalised"], horizontal_spacing=0.03)
    for column, values in enumerate((raw, base, x), 1):
        peak = float(values.abs().max()) or 1.0
        found.add_heatmap(z=values.numpy(), colorscale="RdBu", zmin=-peak, zmax=peak, showscale=False, row=1, col=column)
    ratio = float(raw.abs().max() / base.abs().max().clamp_min(1e-30))
    title = f"The largest raw entry is {ratio:.1f} times the largest shaved one (each picture has its own scale)"
    style(found, title, height=320).update_layout(margin_b=16)
    return found.update_xaxes(visible=False).update_yaxes(visible=False, autorange="reversed")


def written(net, p) -> go.Figure:
    """Four lines sampled from the model, each after a piece of the validation text."""
    setting, one = _chosen(net, "clean")
    letters, rng = study.text().letters, torch.Generator().manual_seed(0)
    lines = study.text().watched[::12][:4, : data.CONTEXT]
    for _ in range(24):
        with torch.no_grad():
            shares = one(lines[:, -data.CONTEXT :].to(one.draw.device))[:, -1].softmax(-1).cpu()
        lines = torch.cat([lines, torch.multinomial(shares, 1, generator=rng)], 1)
    found = go.Figure()
    for k, line in enumerate(lines.tolist()):
        shown = "".join(letters[c] for c in line).replace("\n", "↵").replace("<", "‹").replace(">", "›")
        given, new = shown[: data.CONTEXT], shown[data.CONTEXT :]
        found.add_scatter(x=[0], y=[-k], mode="text", text=f"{given}<b>{new}</b>", textposition="middle right", showlegend=False,
                          hoverinfo="skip", textfont={"family": "monospace", "size": 12})  # fmt: skip
    style(found, f"Given text, and in bold what the model of the setting '{setting}' adds", height=210).update_layout(margin_b=16)
    return found.update_xaxes(visible=False, range=[0, 1]).update_yaxes(visible=False, range=[-3.6, 0.6])


def next_character(net, p, value: str) -> dict[str, float]:
    """Shares of the characters that the model expects after `value`; ValueError for text it has no letters for."""
    letters = study.text().letters
    if not value:
        raise ValueError("write at least one character")
    if unknown := sorted(set(value) - set(letters)):
        raise ValueError(f"the text that the network read has no {' '.join(unknown)}")
    _, one = _chosen(net, "clean")
    given = torch.tensor([[letters.index(c) for c in value[-data.CONTEXT :]]], device=one.draw.device)
    with torch.no_grad():
        shares = one(given)[0, -1].softmax(-1)
    return {repr(c)[1:-1] if c != " " else "space": float(s) for c, s in zip(letters, shares, strict=True)}
