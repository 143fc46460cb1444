"""Figures and live views of the study mask-of-truth. Titles say what one sees, from the data."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, faded, images, style
from claimlab.studies.robustness import mask_of_truth as study
from claimlab.studies.robustness._mask_of_truth_method import VERSIONS, answers, expected_gradients

NAMES = dict(zip(VERSIONS, ("whole image", "outline cut out", "box cut out", "outline kept", "box kept"), strict=True))
SITES = {0: OTHERS[0], 1: BLUE}
STATES = {0: GREY, 1: OTHERS[3]}


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run is left out."""
    drawn = {"matrix": matrix(lab), "versions": versions(lab), "learning": learning(lab), "links": links(lab),
             "attribution": attribution(lab), "embeddings": embeddings(lab)}  # fmt: skip
    return {name: figure for name, figure in drawn.items() if figure is not None}


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of a metric, one a seed; empty where the arm did not run or does not report it."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


def mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


# ---- figures


def matrix(lab) -> go.Figure:
    """The key picture: the first finding's AUC, trained on (rows) by tested on (columns), with and without the link."""
    finding = lab.arms["full"].tasks[0].findings[0]
    linked = np.array([[mean(last(lab, row, f"{finding} on {column}")) for column in VERSIONS] for row in VERSIONS])
    free = np.array([[unlinked(lab, row, f"{finding} on {column}") for column in VERSIONS] for row in VERSIONS])
    panels = [(f"as collected (link {lab.params.rho:g})", linked), ("hospital and disease not linked", free)]
    panels = [(title, z) for title, z in panels if np.isfinite(z).any()] or panels[:1]
    figure = make_subplots(1, len(panels), subplot_titles=[t for t, _ in panels], shared_yaxes=True, horizontal_spacing=0.04)
    names = [NAMES[v].replace(" ", "<br>", 1) for v in VERSIONS]
    for k, (_, z) in enumerate(panels, 1):
        figure.add_heatmap(z=z, x=names, y=names, coloraxis="coloraxis", texttemplate="%{z:.2f}", row=1, col=k,
                           hovertemplate="trained: %{y}<br>tested: %{x}<br>AUC %{z:.3f}<extra></extra>")  # fmt: skip
    figure.update_layout(coloraxis=dict(colorscale="Cividis", cmin=0.4, cmax=0.9, colorbar_title="AUC"))
    figure.update_xaxes(title_text="tested on", tickangle=0, tickfont_size=11).update_yaxes(autorange="reversed", tickfont_size=11)
    figure.update_yaxes(title_text="trained on", col=1)
    title = f"AUC of {finding}: a network that never saw the organ's box reaches {linked[2, 2]:.2f}"
    if np.isfinite(free[2, 2]):
        title += f", and {free[2, 2]:.2f} where hospital and disease are not linked"
    return style(figure, title, height=470)


def unlinked(lab, version: str, metric: str) -> float:
    """Mean without the link: from the arm of all seeds where there is one, else from the first seeds' other links."""
    own = last(lab, f"{version}_unlinked", metric)
    return mean(own) if len(own) else mean(last(lab, "other_links", f"{version}, unlinked: {metric}"))


def versions(lab) -> go.Figure:
    """The five versions of one test image, the organ outlined."""
    task = lab.arms["full"].tasks[0]
    part = task.test
    k = int(part.y.sum(1).argmax())
    shown = [study.view(part, v, lab.params, task, study.stream(0), slice(k, k + 1))[0, 0].numpy() for v in VERSIONS]
    outline = part.mask[k].numpy()
    has = [name for name, y in zip(task.findings, part.y[k], strict=True) if y] or ["no finding"]
    share = [float((a == 0).mean()) for a in shown]
    title = f"One patient ({', '.join(has)}) in five versions; black pixels: {share[1]:.0%} without the organ, "
    title += f"{share[2]:.0%} without its box"
    return images(shown, [NAMES[v] for v in VERSIONS], title=title, columns=5, outlines=[outline] * 5)


def learning(lab) -> go.Figure:
    """How soon the whole-image networks learn the outside and the inside; dashed: the networks that see one part only."""
    figure, when = go.Figure(), {}
    curves = [("full", "validation_outside", "whole-image network, outside", BLUE, "solid"),
              ("full", "validation_inside", "whole-image network, inside", OTHERS[0], "solid"),
              ("no_roi_box", "validation_auc", "trained on the outside alone", BLUE, "dash"),
              ("only_roi_box", "validation_auc", "trained on the inside alone", OTHERS[0], "dash")]  # fmt: skip
    for arm, metric, name, colour, dash in curves:
        rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
        wide = rows.pivot_table(index="step", columns="seed", values="value")
        middle, x = wide.mean(axis=1), wide.index.to_numpy()
        if dash == "solid" and wide.shape[1] > 1 and len(x):
            low, high = np.array([interval(row) for row in wide.to_numpy()]).T
            figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", mode="lines", line_width=0,
                               hoverinfo="skip", fillcolor=faded(colour, 0.18), showlegend=False)  # fmt: skip
        figure.add_scatter(x=x, y=middle, name=name, line=dict(color=colour, dash=dash, width=2.5))
        passed = middle[middle >= 0.7]
        when[metric] = f"at step {passed.index[0]}" if len(passed) else "not at all"
    figure.add_hline(y=0.5, line=dict(color=INK, dash="dot", width=1))
    title = "The whole-image network passes AUC 0.7 from what lies outside "
    title += f"{when['validation_outside']}, from what lies inside {when['validation_inside']}"
    figure = style(figure, title, height=460, x="optimiser step", y="validation AUC, mean of opacity and effusion")
    return figure.update_layout(margin_b=110).update_yaxes(range=[0.4, 0.95])


def links(lab) -> go.Figure | None:
    """AUC of the full network for what lies outside and what lies inside, against the link."""
    if "full_unlinked" not in lab.arms:
        return None
    kinds = {"outside, inside swapped": "swap_outside", "inside, outside swapped": "swap_inside",
             "outside, inside black": "no_roi_box", "inside, outside black": "only_roi_box"}  # fmt: skip
    at = {0.0: ("full_unlinked", ""), lab.params.rho: ("full", "")}
    for name in {m.split(": ")[0] for m in lab.table[lab.table.arm == "other_links"]["metric"]}:
        if found := re.fullmatch(r"rho=([\d.]+)", name):
            at.setdefault(float(found[1]), ("other_links", name + ": "))
    figure, curve = go.Figure(), {}
    for k, (label, metric) in enumerate(kinds.items()):
        points = []
        for rho, (arm, lead) in sorted(at.items()):
            if metric.startswith("swap"):
                values = last(lab, arm, lead + metric)
            else:
                values = np.mean([last(lab, arm, f"{lead}{f} on {metric}") for f in ("opacity", "effusion")], 0)
            ends = interval(values) if len(values) > 2 else (np.nan, np.nan)
            points.append((rho, mean(values), *ends, len(values)))
        x, y, low, high, n = np.array(points).T
        curve[metric] = (x, y)
        pen = dict(color=(BLUE, OTHERS[0])[k % 2], dash="solid" if k < 2 else "dash", width=3 - k // 2)
        figure.add_scatter(x=x, y=y, name=label, line=pen,
                           error_y=dict(array=high - y, arrayminus=y - low) if k < 2 else None, customdata=n,
                           hovertemplate="link %{x:g}: AUC %{y:.3f}, %{customdata} seeds<extra></extra>")  # fmt: skip
    figure.add_hline(y=0.5, line=dict(color=INK, dash="dot", width=1))
    where = crossing(*curve["swap_outside"], curve["swap_inside"][1])
    title = "What the whole-image network goes by: " + (
        f"the lines cross near a link of {where:.2f}" if where is not None else "no crossing among the links tried")
    figure = style(figure, title, height=470, x="link between hospital and disease, rho", y="AUC, mean of opacity and effusion")
    return figure.update_layout(margin_b=110)


def crossing(x: np.ndarray, one: np.ndarray, other: np.ndarray) -> float | None:
    """Where two lines first cross, or None."""
    gap = one - other
    turns = np.flatnonzero(np.sign(gap[:-1]) * np.sign(gap[1:]) < 0)
    if not len(turns):
        return None
    k = turns[0]
    return float(x[k] - gap[k] * (x[k + 1] - x[k]) / (gap[k + 1] - gap[k]))


def attribution(lab) -> go.Figure:
    """Share of absolute expected gradients in the organ, a dot a seed; grey: networks before training, and the organ's area."""
    figure, palette = go.Figure(), arm_colours(lab)
    run = lab.arms["full"]
    start = np.array([float(run.tasks[i].attribution(run.fresh(i).to(run.device).eval())) for i in range(len(run.seeds))])
    shown = {"untrained": start} | {a: last(lab, a, "attribution_inside") for a in lab.arms}
    shown = {name: values for name, values in shown.items() if len(values)}
    for place, (name, values) in enumerate(shown.items()):
        colour = palette.get(name, GREY)
        figure.add_bar(x=[place], y=[mean(values)], marker_color=faded(colour, 0.5), showlegend=False)
        figure.add_scatter(x=place + np.linspace(-0.25, 0.25, len(values)), y=values, mode="markers", showlegend=False,
                           marker=dict(color=colour, size=6))  # fmt: skip
    area = float(np.mean([task.test.mask.float().mean() for task in run.tasks]))
    figure.add_hline(y=area, line=dict(color=INK, dash="dash", width=1.5))
    names = [name.replace("_", "<br>") for name in shown]
    figure.update_xaxes(tickvals=list(range(len(shown))), ticktext=names, tickangle=0, tickfont_size=11)
    title = f"Share of the attribution inside the organ: {mean(shown['full']):.2f} for the whole-image network"
    if "full_unlinked" in shown:
        title += f", {mean(shown['full_unlinked']):.2f} for one trained without the link"
    title += f", {mean(start):.2f} before any training (dashed: the organ's share of the area, {area:.2f})"
    return style(figure, title, height=460, y="share of |expected gradients| in the organ")


def embeddings(lab) -> go.Figure:
    """Embeddings of test images by the whole-image and the box-masked network, coloured by hospital and by finding."""
    arms = [a for a in ("full", "no_roi_box") if a in lab.arms]
    run = {a: lab.arms[a] for a in arms}
    heads = [f"{NAMES[run[a].task.version]}: {what}" for a in arms for what in ("hospital", run[a].tasks[0].findings[0])]
    figure = make_subplots(1, len(heads), subplot_titles=heads, horizontal_spacing=0.03)
    for k, arm in enumerate(arms):
        task = run[arm].tasks[0]
        with torch.no_grad():
            z = flat(run[arm].members[0].eval()[:-1](task.shown(task.test, task.version)[:400]).cpu().numpy())
        clouds(figure, z, task, 400, first=2 * k + 1)
    figure.update_xaxes(showticklabels=False, title_text="first component").update_yaxes(showticklabels=False)
    figure.update_yaxes(title_text="second component", col=1)
    told = [f"{mean(last(lab, a, 'probe_hospital')):.2f} ({NAMES[run[a].task.version]})" for a in arms]
    return style(figure, "Embeddings of test images in two dimensions; a linear probe tells the hospital with AUC " + " and ".join(told),
                 height=400)  # fmt: skip


def flat(z: np.ndarray) -> np.ndarray:
    """Rows projected on their first two principal components. [N, d] -> [N, 2]"""
    z = z - z.mean(0)
    return z @ np.linalg.svd(z, full_matrices=False)[2][:2].T


def clouds(figure: go.Figure, z: np.ndarray, task, count: int, first: int = 1) -> None:
    """Two panels: the points [N, 2] by hospital, then by the first finding."""
    site, y = task.test.site, task.test.y[:count, 0]
    for col, (label, palette, names) in enumerate((
        (None if site is None else site[:count], SITES, ("hospital 0", "hospital 1")),
        (y, STATES, (f"no {task.findings[0]}", task.findings[0])),
    ), first):  # fmt: skip
        label = np.zeros(len(z)) if label is None else label.numpy()
        for value in np.unique(label):
            at, name, colour = label == value, names[int(value)], palette[int(value)]
            figure.add_scatter(x=z[at, 0], y=z[at, 1], mode="markers", name=name, legendgroup=name, showlegend=first == 1,
                               marker=dict(size=4, color=colour, opacity=0.6), row=1, col=col)  # fmt: skip


# ---- live views: one network, on the data of seed 0 (they follow from the knobs, and so does the picture)


@lru_cache(maxsize=2)
def sample(params, folder: str) -> study.Audit:
    """A task bound to seed 0; `folder` of one's own images, so that another one is another sample."""
    return study.Audit(params).bind(0)


def saliency_view(net, params) -> go.Figure:
    """Expected gradients of the first finding on one test image with that sign, shown as whole image, the organ outlined."""
    task = sample(params, study.source())
    k = int(task.test.y[:100, 0].argmax())
    device = next(net.parameters()).device
    x, base = task.test.x(slice(k, k + 1)).to(device), task.train.x(slice(0, 50)).to(device)
    maps = expected_gradients(net, x, torch.zeros(1, dtype=torch.long, device=device), base, study.stream(0, 5))
    share = float(study.method.share_inside(maps, task.test.mask[k : k + 1].to(device)))
    title = f"{task.findings[0].capitalize()}: {share:.0%} of the attribution lies inside the organ (outlined)"
    shown = [x[0, 0].cpu().numpy(), maps[0, 0].abs().sqrt().cpu().numpy()]
    outline = task.test.mask[k].numpy()
    return images(shown, ["the image", "|expected gradients| (root)"], title=title, columns=2, outlines=[outline] * 2).update_layout(
        height=400)


def matrix_view(net, params) -> go.Figure:
    """AUC of this network on the five versions of 100 test images: its row of the matrix, one line a finding."""
    task, device = sample(params, study.source()), next(net.parameters()).device
    part = task.test.of(np.arange(min(100, len(task.test.y))))
    score = study.fast(net)
    found = [task.aucs(part, answers(score, study.view(part, v, params, task, study.stream(0, 6)).to(device))) for v in VERSIONS]
    z = np.array([[one[name] for one in found] for name in task.findings])
    figure = go.Figure(go.Heatmap(z=z, x=[NAMES[v] for v in VERSIONS], y=list(task.findings), colorscale="Cividis", zmin=0.4, zmax=0.95,
                                  texttemplate="%{z:.2f}", colorbar_title="AUC"))  # fmt: skip
    best = VERSIONS[int(np.nanargmax(z.mean(0)))] if np.isfinite(z).any() else "full"
    title = f"This network on {len(part.y)} test images: best on those with the {NAMES[best]}" if best != "full" else (
        f"This network on {len(part.y)} test images: best on whole ones")
    return style(figure, title, x="tested on", y="finding", height=340)


def embedding_view(net, params) -> go.Figure:
    """Embeddings of 200 whole test images in two dimensions, by hospital and by finding."""
    task, device = sample(params, study.source()), next(net.parameters()).device
    with torch.no_grad():
        z = flat(net[:-1](task.test.x(slice(0, 200)).to(device)).cpu().numpy())
    figure = make_subplots(1, 2, subplot_titles=["by hospital", f"by {task.findings[0]}"], horizontal_spacing=0.06)
    clouds(figure, z, task, len(z))
    figure.update_xaxes(title_text="first component").update_yaxes(title_text="second component", col=1)
    y = task.test.y[:200, 0].numpy()
    labels = [y] if task.test.site is None else [task.test.site[:200].numpy(), y]
    gap = [abs(z[label == 1, 0].mean() - z[label == 0, 0].mean()) / max(z[:, 0].std(), 1e-9) for label in labels]
    told = f"the finding by {gap[-1]:.1f}" if len(gap) == 1 else f"the hospitals by {gap[0]:.1f} and the finding by {gap[1]:.1f}"
    return style(figure, f"The first component parts {told} standard deviations", height=400)
