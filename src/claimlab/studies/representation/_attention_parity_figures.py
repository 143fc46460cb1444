"""Figures and live views of the study attention-parity. Titles say what was found, computed from the lab."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import INK, OTHERS, arm_colours, curve, style
from claimlab.parts.boolean import sensitivity as flip_rate
from claimlab.studies.representation import attention_parity as study

TRAINED = ("learned_attention", "free_scores", "fixed_attention", "fixed_many", "ffnn_matched", "ffnn_wide", "ffnn_pruned")
PANELS = 8  # heads shown, at most
SEEN = dict(zmin=0, zmax=1, colorscale="Cividis")


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run is left out."""
    drawn, trained = {}, [arm for arm in TRAINED if arm in lab.arms]
    if trained:
        drawn["accuracy"] = accuracy(lab, trained)
    if "learned_attention" in lab.arms:
        drawn["attention"] = attention(lab)
    if "ffnn_smallest" in lab.arms:
        drawn["parameters"] = parameters(lab)
    if trained:
        drawn["sensitivity"] = sensitivity(lab, trained)
    return drawn


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed, in the order of the seeds; NaN where there is none."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    ends = rows.sort_values("step").groupby("seed")["value"].last()
    return ends.reindex(lab.seeds).to_numpy(dtype=float)


def numbered(places) -> str:
    """Positions as text, counted from 0."""
    return ", ".join(str(int(place)) for place in places)


# ---- figures


def accuracy(lab, trained: list[str]) -> go.Figure:
    """Test accuracy over steps, every arm that is trained at the length n: a thin line a seed, a thick one for the mean.

    No interval is drawn: a seed is at a coin toss or has found the bits, and an interval over such values says nothing.
    """
    said = ", ".join(f"{arm} {last(lab, arm, 'test_accuracy').mean():.2f}" for arm in trained)
    figure = curve(lab.table, "test_accuracy", arms=trained, palette=arm_colours(lab), height=540,
                   title=f"Test accuracy after the last step: {said}", y_title="test accuracy [share of fresh inputs]",
                   references={"95 % (the claim)": study.GOOD, "guessing": 0.5})  # fmt: skip
    figure.data = [trace for trace in figure.data if "95 % interval" not in trace.name]
    figure.for_each_trace(lambda trace: trace.update(opacity=0.7, line_width=1.2) if trace.line.width < 1 else ())
    return figure.update_yaxes(range=[0.42, 1.03]).update_layout(margin_b=120)


def attention(lab) -> go.Figure:
    """Attention of each head over the positions through training, first seed: a row a step, a panel a head."""
    run, p = lab.arms["learned_attention"], lab.params
    steps = sorted(lab.table[lab.table["arm"] == "learned_attention"]["step"].unique())
    film = dict(run.past(step) for step in steps)
    weights = np.stack([shares(net[0], run.tasks[0].sharpness(step)) for step, net in film.items()])  # [ticks, h, n]
    shown = min(weights.shape[1], PANELS)
    columns = min(shown, 4)
    figure = make_subplots(-(-shown // columns), columns, shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.03,
                           subplot_titles=[f"head {i + 1}" for i in range(shown)])  # fmt: skip
    secret = run.members[0].secret.numpy()
    for i in range(shown):
        at = dict(row=i // columns + 1, col=i % columns + 1)
        bar = dict(title="attention [share]", thickness=14) if i == 0 else None
        figure.add_heatmap(z=weights[:, i], x=np.arange(p.n), y=list(film), showscale=i == 0, colorbar=bar, **SEEN, **at,
                           hovertemplate="position %{x}, step %{y}: %{z:.2f}<extra></extra>")  # fmt: skip
        top = np.full(len(secret), max(film) * 1.06)
        figure.add_scatter(x=secret, y=top, mode="markers", marker=dict(symbol="triangle-down", size=11, color=OTHERS[3]), **at,
                           name="bit that decides", showlegend=i == 0, hoverinfo="x")  # fmt: skip
    final = weights[-1].argmax(1)
    figure.update_xaxes(range=[-0.5, p.n - 0.5]).update_xaxes(title_text="position", row=-(-shown // columns))
    figure.update_yaxes(range=[0, max(film) * 1.12]).update_yaxes(title_text="optimiser step", col=1)
    decide = f"bits {numbered(secret)} decide" if len(secret) else "nobody knows which bits decide"
    title = f"Seed {lab.seeds[0]}: the heads end on positions {numbered(sorted(final))}; {decide}"
    return style(figure, title, height=440 if shown <= columns else 660)


def shares(net, tau: float) -> np.ndarray:
    """Attention [h, n] of a network at sharpness tau."""
    with torch.no_grad():
        return net.attention.weights(tau).cpu().numpy()


def parameters(lab) -> go.Figure:
    """Parameters of the smallest feed-forward network that reaches 95 percent, against n, and what attention needs."""
    ns, palette, figure = study.lengths(lab.params), arm_colours(lab), go.Figure()
    sizes = np.stack([last(lab, "ffnn_smallest", f"parameters_at_{n}") for n in ns])  # [lengths, seeds]
    colour = palette["ffnn_smallest"]
    beside = np.linspace(0.95, 1.05, sizes.shape[1])  # seed by seed, so that no dot hides another
    figure.add_scatter(x=np.outer(ns, beside).ravel(), y=sizes.ravel(), mode="markers", name="smallest ReLU network, a dot a seed",
                       marker=dict(color=colour, size=8, opacity=0.7))  # fmt: skip
    mean = np.array([np.exp(np.log(row).mean()) for row in sizes])
    figure.add_scatter(x=ns, y=mean, mode="lines", line=dict(color=colour, width=3), name="its geometric mean")
    known = np.flatnonzero(np.isfinite(mean))
    if len(known):
        line = mean[known[0]] * np.array(ns) / ns[known[0]]
        figure.add_scatter(x=ns, y=line, mode="lines", line=dict(color=INK, dash="dot"), name="proportional to n, for comparison")
    size = study.learned_size(lab.params.heads)
    figure.add_scatter(x=ns, y=[size] * len(ns), mode="lines", line=dict(color=palette["learned_attention"], dash="dash"),
                       name="size of learned_attention (n does not occur in it)")  # fmt: skip
    for arm, metric, label in (("learned_attention", "parameters", "learned_attention, trained"),
                               ("ffnn_pruned", "parameters_left", "ffnn_pruned, what is left")):  # fmt: skip
        if arm in lab.arms:
            good = last(lab, arm, "test_accuracy" if arm == "learned_attention" else "pruned_accuracy") >= study.GOOD
            signs = np.where(good, "diamond", "diamond-open")
            figure.add_scatter(x=lab.params.n * beside, y=last(lab, arm, metric), mode="markers", name=f"{label} (open: below 95 %)",
                               marker=dict(symbol=signs, size=10, color=palette[arm]))  # fmt: skip
    figure.update_xaxes(type="log", tickvals=ns, ticktext=[str(n) for n in ns], range=[math.log10(ns[0]) - 0.06, math.log10(ns[-1]) + 0.06])
    figure.update_yaxes(type="log", tickvals=[m * 10**e for e in range(7) for m in (1, 2, 5)], tickformat=",")
    slopes = last(lab, "ffnn_smallest", "slope_params_vs_n")
    lost = int(np.isnan(sizes).any(0).sum())
    said = f"the smallest ReLU network grows like n to the power {np.nanmean(slopes):.2f}" if lost < len(slopes) else "no slope"
    said += f" ({lost} of {len(slopes)} seeds found none)" if lost else ""
    style(figure, f"{lab.params.k}-parity at 95 % accuracy: {said}", x="length n of the input [bits]", y="parameters", height=540)
    return figure.update_layout(margin_b=150)


def sensitivity(lab, trained: list[str]) -> go.Figure:
    """For each position: share of test inputs whose answer changes when that bit alone is flipped, first seed."""
    rows = []
    for arm in trained:
        net, x = lab.arms[arm].members[0], lab.arms[arm].tasks[0].test[0][:1024]
        rows.append(reacts(net, x, lab.params.final_sharpness))
    secret = lab.arms[trained[0]].members[0].secret.cpu().numpy()
    figure = go.Figure(go.Heatmap(z=np.stack(rows), x=np.arange(lab.params.n), y=np.arange(len(trained)), colorbar_title="share", **SEEN,
                                  hovertemplate="position %{x}: %{z:.2f}<extra></extra>"))  # fmt: skip
    marks = dict(symbol="triangle-down", size=11, color=OTHERS[3])
    figure.add_scatter(x=secret, y=[-0.75] * len(secret), mode="markers", marker=marks, name="bit that decides", showlegend=True,
                       hoverinfo="x")  # fmt: skip
    figure.update_yaxes(range=[len(trained) - 0.5, -1.1], tickvals=np.arange(len(trained)), ticktext=trained, showgrid=False)
    total = ", ".join(f"{arm} {row.sum():.1f}" for arm, row in zip(trained, rows, strict=True))
    title = f"Seed {lab.seeds[0]}: flips of one bit that change the answer, summed over positions: {total}"
    if len(secret):
        title += f" (parity itself: {len(secret)})"
    return style(figure, title, x="position of the flipped bit", y="arm", height=480).update_yaxes(title_text="")


def reacts(net, x: torch.Tensor, tau: float) -> np.ndarray:
    """`boolean.sensitivity` of a network at sharpness tau, [n]."""
    with torch.no_grad():
        return flip_rate(lambda rows: net(rows, tau), x).cpu().numpy()


# ---- live views: a network carries the places of its bits that decide


def attention_view(net, params) -> go.Figure:
    """What each head would look at with the final sharpness; the bits that decide are ringed."""
    if net.attention is None:
        figure = style(go.Figure(), "This arm has no attention: every neuron reads every bit")
        return figure.update_xaxes(visible=False).update_yaxes(visible=False)
    n = net.attention.codes.shape[0]
    weights = shares(net, params.final_sharpness if n == params.n else n**2)
    figure = go.Figure()
    for i, row in enumerate(weights):
        figure.add_scatter(x=np.arange(n), y=row, mode="lines+markers", name=f"head {i + 1}", marker_size=5)
    secret = net.secret.cpu().numpy()
    figure.add_scatter(x=secret, y=weights.max(0)[secret], mode="markers", name="bit that decides",
                       marker=dict(symbol="circle-open", size=16, color=OTHERS[3], line_width=3))  # fmt: skip
    met = sum(weights[:, place].max() > 0.5 for place in secret)
    figure.update_yaxes(range=[-0.03, 1.08])
    title = f"{met} of {len(secret)} bits that decide get over half of a head's attention" if len(secret) else "Attention"
    figure.update_layout(showlegend=len(weights) <= PANELS)
    return style(figure, f"{title} (at the final sharpness)", x="position", y="attention [share]")


def sensitivity_view(net, params) -> go.Figure:
    """Share of 512 random inputs whose answer changes when one bit is flipped; the bits that decide are ringed."""
    n = params.n if net.attention is None else net.attention.codes.shape[0]
    dtype = net.readout.weight.dtype
    x = torch.randint(2, (512, n), generator=torch.Generator().manual_seed(0)).to(dtype) * 2 - 1
    share = reacts(net, x.to(net.readout.weight.device), params.final_sharpness if n == params.n else n**2)
    figure = go.Figure(go.Bar(x=np.arange(n), y=share, name="flips that change the answer"))
    secret = net.secret.cpu().numpy()
    figure.add_scatter(x=secret, y=share[secret], mode="markers", name="bit that decides",
                       marker=dict(symbol="circle-open", size=16, color=OTHERS[3], line_width=3))  # fmt: skip
    figure.update_yaxes(range=[-0.04, 1.08])
    title = f"Flips of one bit that change the answer, summed over positions: {share.sum():.1f}"
    title += f" (parity itself: {len(secret)})" if len(secret) else ""
    return style(figure, title, x="position of the flipped bit", y="answers that change [share]")
