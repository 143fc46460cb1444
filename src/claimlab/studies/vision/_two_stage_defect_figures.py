"""Figures and live views of the study two-stage-defect."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab import figures as draw
from claimlab.claims import interval
from claimlab.studies.vision import _two_stage_defect_data as data
from claimlab.studies.vision import two_stage_defect as study

NAMES = {"classifier_only": "classifier only", "sequential": "one after the other", "e2e_open_gradient": "open gradient",
         "e2e_flat_weights": "flat weights", "e2e_uniform_negatives": "uniform negatives", "e2e": "end to end"}  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"ranking over training": ranking(lab)}
    if "e2e" in lab.arms:
        found |= {"ablation": ablation(lab)} if len(lab.arms) > 1 else {}
        found |= {"negative use": use(lab)}
    found |= {f"worst parts, {NAMES[arm]}": gallery(lab, arm) for arm in ("e2e", "sequential") if arm in lab.arms}
    return found | ({"gradient at the border": border(lab)} if "e2e_open_gradient" in lab.arms else {})


# ---- figures


def last(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The last value of a metric: a row a seed, a column an arm."""
    return table[table["metric"] == metric].sort_values("step").groupby(["seed", "arm"])["value"].last().unstack("arm")


def ranking(lab) -> go.Figure:
    """Average precision over updates, and beneath it lambda, the share of the segmentation loss."""
    colours, shown = draw.arm_colours(lab), [arm for arm in NAMES if arm in lab.arms]
    curves = draw.curve(lab.table, "quick_ap", arms=shown, title="", y_title="", palette=colours, names=NAMES)
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.74, 0.26], vertical_spacing=0.06)
    figure.add_traces(curves.data, rows=[1] * len(curves.data), cols=[1] * len(curves.data))
    tasks, found = {arm: study.ARMS[arm](lab.params) for arm in shown}, last(lab.table, "test_ap").mean()
    for arm in [a for a in ("classifier_only", "sequential", "e2e") if a in shown]:
        at = np.arange(tasks[arm].steps)
        figure.add_scatter(x=at, y=[tasks[arm].balance(n) for n in at], mode="lines", line={"color": colours[arm], "width": 2.5},
                           name=NAMES[arm], legendgroup=NAMES[arm], showlegend=False, row=2, col=1)  # fmt: skip
    best = found.idxmax()
    title = (f"Ranking of defective images over training. At the end, on all test images, {NAMES[best]} ranks best "
             f"(average precision {found[best]:.2f}), {NAMES[found.idxmin()]} worst ({found.min():.2f})")  # fmt: skip
    draw.style(figure, title, height=600).update_yaxes(title_text="average precision,<br>80 test images", row=1, col=1)
    figure.update_yaxes(title_text="λ, share of<br>the mask loss", range=[-0.06, 1.06], row=2, col=1)
    return figure.update_xaxes(title_text="optimiser step", row=2, col=1).update_layout(margin_b=120)


def ablation(lab) -> go.Figure:
    """Average precision of each arm minus that of the full method, seed by seed."""
    values, colours = last(lab.table, "test_ap"), draw.arm_colours(lab)
    figure = go.Figure()
    arms = [a for a in NAMES if a in values and a != "e2e"]
    away = {arm: (values[arm] - values["e2e"]).dropna().to_numpy() for arm in arms}
    for place, arm in enumerate(arms):
        low, high = interval(away[arm]) if len(away[arm]) > 1 else (np.nan, np.nan)
        mean = away[arm].mean()
        bars = {"type": "data", "array": [high - mean], "arrayminus": [mean - low], "color": draw.INK}
        figure.add_bar(y=[place], x=[mean], orientation="h", marker_color=draw.faded(colours[arm], 0.6), error_x=bars, showlegend=False,
                       name=NAMES[arm])  # fmt: skip
        figure.add_scatter(y=place + np.linspace(-0.25, 0.25, len(away[arm])), x=away[arm], mode="markers", name=NAMES[arm],
                           marker={"color": colours[arm], "size": 6}, showlegend=False)  # fmt: skip
    figure.add_vline(x=0, line={"color": draw.INK, "width": 1})
    figure.update_yaxes(tickvals=list(range(len(arms))), ticktext=[NAMES[a] for a in arms], autorange="reversed")
    below = sum(one.mean() < 0 for one in away.values())
    title = f"{below} of {len(arms)} changes rank worse than end to end on average; a dot is a seed"
    return draw.style(figure, title, x="average precision minus that of end to end (95 % interval)", height=400)


def gallery(lab, arm: str, count: int = 6) -> go.Figure:
    """The test images that `arm` ranks worst: image, exact mask, weights of a coarse mask, and the map that the segmenter draws."""
    net, task, p = lab.arms[arm].members[0], lab.arms[arm].tasks[0], lab.params
    held, scores = task.held, study.scored(net, task.held.x)
    wrong = misranked(held.y.numpy(), scores)
    worst = np.argsort(-wrong, kind="stable")[:count]
    panels = [held.x[i, 0].numpy() for i in worst] + [held.masks[i].astype(float) for i in worst]
    given = [data.coarsen(held.masks[i], p.coarse) for i in worst]
    panels += [study.pixel_weights(torch.from_numpy(data.depth(mask)), p.p, p.w_pos).numpy() for mask in given]
    with torch.no_grad():
        panels += [drawn(s[None]) for s in net.segment(held.x[worst.copy()])[1]]
    lines = [None] * count + given + given + [held.masks[i] for i in worst]
    lines = [line if line is not None and line.any() else None for line in lines]
    titles = [data.KINDS[held.kinds[i]] if held.y[i] else "sound" for i in worst] + ["exact mask"] * count
    titles += ["pixel weights"] * count + [f"score {scores[i]:+.1f}" for i in worst]
    missed = int(held.y[worst].sum())
    title = (f"The {count} test images that {NAMES[arm]} ranks worst (seed {lab.seeds[0]}): {missed} missed, {count - missed} false "
             "alarms. Rows: image; exact mask, outlined the coarse one; weights that it would get; "
             "the map S with the exact mask outlined")  # fmt: skip
    figure = draw.images(panels, titles, title=title, columns=count, outlines=lines)
    for row, top in ((1, 1.0), (2, max(1.0, p.w_pos)), (3, float(np.max(panels[3 * count :])))):  # one scale for a row
        for k in range(row * count, (row + 1) * count):
            figure.update_traces({"zmin": 0.0, "zmax": top}, {"type": "heatmap", "xaxis": f"x{k + 1}"})
    return figure


def misranked(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each image [N] the share of the other class that is on its wrong side."""
    bad, good = scores[y > 0], scores[y == 0]
    return np.array([(good >= s).mean() if one else (bad <= s).mean() for one, s in zip(y > 0, scores, strict=True)])


def drawn(s: torch.Tensor) -> np.ndarray:
    """Probability of a defect [H, W] at each pixel, from the map of logits S [1, 1, H/4, W/4] of one image."""
    return np.kron(s[0, 0].sigmoid().numpy(), np.ones((4, 4)))


def use(lab) -> go.Figure:
    """How often each sound training image was used, all seeds together."""
    figure, colours, told = go.Figure(), draw.arm_colours(lab), []
    for arm in [a for a in ("e2e_uniform_negatives", "e2e") if a in lab.arms]:
        counts = np.concatenate([task.negative_use for task in lab.arms[arm].tasks])
        name = "by use" if arm == "e2e" else "uniform"
        share = np.bincount(counts) / len(counts)
        figure.add_bar(x=np.arange(len(share)), y=share, name=name, marker_color=colours[arm])
        told.append(f"{name} {counts.std() / max(counts.mean(), 1e-9):.2f}")
        mean = counts.mean()
    title = (f"Uses of each sound training image, {mean:.1f} on average. Spread over mean: {', '.join(told)}; independent uniform draws "
             f"would give about {max(mean, 1e-9) ** -0.5:.2f}")  # fmt: skip
    return draw.style(figure, title, x="times used in training", y="share of the sound images").update_xaxes(dtick=1)


def border(lab) -> go.Figure:
    """Length of both losses' gradients where the stages meet, in the arm that lets the classifier's gradient through."""
    rows = lab.table[lab.table["arm"] == "e2e_open_gradient"]
    kinds = {"entry_gradient_cls": "classification loss", "entry_gradient_seg": "segmentation loss"}
    rows = rows[rows["metric"].isin(kinds)].assign(arm=lambda t: t["metric"].map(kinds), metric="length")
    mean = rows[rows["arm"] == "classification loss"].groupby("step")["value"].mean()
    early, late = mean.iloc[: max(1, len(mean) // 3)].mean(), mean.iloc[-max(1, len(mean) // 3) :].mean()
    more, less = ("first", "last") if early > late else ("last", "first")
    title = (f"Open gradient: the classifier's gradient at the border of the stages is {max(early, late) / min(early, late):.1f} "
             f"times as large in the {more} third of training as in the {less}")  # fmt: skip
    palette = {"classification loss": draw.OTHERS[3], "segmentation loss": draw.GREY}
    return draw.curve(rows, "length", title=title, y_title="length of the gradient, before λ and δ", palette=palette, log_y=True)


# ---- live views: of parts that no member has seen, drawn from the parameters alone


def _unseen(p) -> data.Parts:
    return data.parts(10**6, p.size, 12, 12, 60, p.contrast, os.environ.get("CLAIMLAB_DATA", ""))[1]


def part(net, p) -> go.Figure:
    """Image, exact mask, weights of its coarse mask and the map of the segmenter, for one defective part."""
    held = _unseen(p)
    mask = held.masks[0]
    coarse = data.coarsen(mask, p.coarse)
    weights = study.pixel_weights(torch.from_numpy(data.depth(coarse)), p.p, p.w_pos).numpy()
    with torch.no_grad():
        volume, s = net.segment(held.x[:1])
        score = float(net.decide(volume, s))
    chance = drawn(s)
    inside, outside = chance[mask].mean(), chance[~mask].mean()
    title = f"One part: probability {inside:.2f} on the defect and {outside:.2f} elsewhere; image score {score:+.2f}"
    return draw.images([held.x[0, 0].numpy(), mask.astype(float), weights, chance], ["image", "exact mask", "pixel weights", "map S"],
                       title=title, columns=4, outlines=[None, coarse, coarse, mask])  # fmt: skip


def histogram(net, p) -> go.Figure:
    """Scores of defective and of sound parts."""
    held = _unseen(p)
    y, scores = held.y.numpy(), study.scored(net, held.x)
    figure, width = go.Figure(), max(float(np.ptp(scores)) / 24, 1e-3)
    for name, chosen, colour in (("sound", y == 0, draw.GREY), ("defective", y > 0, draw.BLUE)):
        figure.add_histogram(x=scores[chosen], name=name, marker_color=colour, opacity=0.7, histnorm="probability",
                             xbins={"start": float(scores.min()), "size": width})  # fmt: skip
    title = f"Scores of {len(y)} unseen parts: average precision {study.average_precision(y, scores):.2f}"
    return draw.style(figure, title, x="image score (logit)", y="share of the class").update_layout(barmode="overlay")
