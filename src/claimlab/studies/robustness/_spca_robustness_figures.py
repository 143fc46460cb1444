"""Figures and live views of the study `spca-robustness`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab import figures as draw
from claimlab.claims import interval
from claimlab.data.drawing import drawn
from claimlab.figures import INK, colours, faded, style
from claimlab.studies.robustness import _spca_robustness_attacks as attacks
from claimlab.studies.robustness import _spca_robustness_method as method
from claimlab.studies.robustness import spca_robustness as study
from claimlab.studies.robustness._spca_robustness_data import enlarged

NETS = [name for name in study.ARMS if name not in ("linear_heads", "penalties")]
COLOURS = colours(NETS, "pca", "spca")
MAIN = ("pca", "spca", "raw", "random_sparse")
NAMES = {"pgd": "PGD", "fgsm": "one FGSM step", "mim": "momentum steps", "square": "the Square attack"}
AXIS = {"inf": "largest change of a pixel [share of the pixel range]",
        "2": "root mean square change of a pixel [share of the pixel range]"}  # fmt: skip
SCALE = [[0.0, "#2166AC"], [0.5, "#FFFFFF"], [1.0, "#B2182B"]]  # white in the middle, where a pixel has no weight


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if {"pca", "spca"} <= set(lab.arms):
        found = {"attack size": curves(lab), "components": components(lab), "who keeps what": everybody(lab)}
    if "linear_heads" in lab.arms:
        found["certified radii"] = radii(lab)
    if "penalties" in lab.arms:
        found["the penalty"] = penalty(lab)
    return found | ({"one attacked image": album(lab)} if set(NETS) & set(lab.arms) else {})


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of a metric, a number a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed")["value"].last().to_numpy()


# ---- figures


def curves(lab) -> go.Figure:
    """Accuracy against the size of the attack: the paper's main curves; ablations at three sizes, dotted."""
    p, figure = lab.params, go.Figure()
    for arm in [name for name in NETS if name in lab.arms]:
        spec = lab.arms[arm].task
        sizes = np.array(study.FACTORS if (p.attack, p.norm) != ("pgd", "inf") else spec.factors)
        values = np.array([last(lab, arm, f"held_{f:g}") for f in sizes])
        x, main = sizes * p.eps, arm in MAIN
        if main:
            low, high = np.array([interval(row) for row in values]).T
            figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(COLOURS[arm], 0.2),
                               line_width=0, hoverinfo="skip", showlegend=False, legendgroup=arm)  # fmt: skip
        pen = dict(color=COLOURS[arm], width=3 if main else 1.5, dash="solid" if main else "dot")
        figure.add_scatter(x=x, y=values.mean(1), mode="lines+markers", marker_size=6 if main else 5, line=pen, name=arm,
                           legendgroup=arm)  # fmt: skip
    where = 0.6 * p.eps
    means = {arm: last(lab, arm, "held_0.6").mean() for arm in ("pca", "spca")}
    title = f"At size {where:.3g} {NAMES[p.attack]} leaves PCA an accuracy of {means['pca']:.2f}, sparse PCA {means['spca']:.2f}"
    figure.update_yaxes(range=[-0.02, 1.02])
    return style(figure, title, height=500, x=AXIS[p.norm], y="accuracy under attack [share of images]")


def components(lab, count: int = 12) -> go.Figure:
    """The first components of both front ends as pictures, zero pixels white."""
    nets = {arm: lab.arms[arm].members[0] for arm in ("pca", "spca")}
    zeros = {arm: last(lab, arm, "zero_share").mean() for arm in nets}
    title = f"{zeros['spca']:.0%} of the numbers in sparse PCA's rows are zero (white), {zeros['pca']:.0%} in PCA's"
    return pictured({"PCA": nets["pca"].rows, "SPCA": nets["spca"].rows}, title, count)


def pictured(rows, title: str, count: int = 12) -> go.Figure:
    """The first rows of projections as pictures, one projection below the other."""
    arrays, titles = [], []
    count = min(count, *(len(matrix) // 6 * 6 or len(matrix) for matrix in rows.values()))  # whole lines of six
    for name, matrix in rows.items():
        kept = matrix[:count].cpu().numpy()
        side = round(kept.shape[1] ** 0.5)
        arrays += list(kept.reshape(-1, side, side))
        titles += [f"{name} {k + 1}" for k in range(len(kept))]
    return draw.images(arrays, titles, title=title, columns=min(6, count), scale=SCALE, symmetric=True)


def everybody(lab) -> go.Figure:
    """pgd_accuracy of every arm: what is left of the gain where scaling, number of components or basis are changed."""
    arms = [name for name in NETS if name in lab.arms]
    means = {arm: last(lab, arm, "pgd_accuracy").mean() for arm in arms}
    rest = {k: means[k] for k in ("spca_dense_rotation", "pca_unscaled") if k in means}
    title = f"Accuracy under PGD: spca {means['spca']:.2f}, pca {means['pca']:.2f}" + "".join(
        f", {name} {value:.2f}" for name, value in rest.items()
    )
    figure = draw.bars(lab.table, "pgd_accuracy", arms=arms, title=title, y_title="accuracy [share, mean of three sizes]",
                       palette=COLOURS, names={arm: arm.replace("_", "<br>") for arm in arms})  # fmt: skip
    return figure.update_yaxes(range=[0, 1])


def radii(lab) -> go.Figure:
    """Certified radius of every test image of the first seed, SPCA against PCA, linear heads."""
    net, task = lab.arms["linear_heads"].members[0], lab.arms["linear_heads"].tasks[0]
    x, y = task.test
    figure = make_subplots(1, 2, subplot_titles=("largest change of a pixel", "Euclidean length"), horizontal_spacing=0.14)
    shares = []
    for column, norm in enumerate(("inf", "2"), 1):
        both, right = {}, torch.ones_like(y, dtype=torch.bool)
        with torch.no_grad():
            for name, one in net.items():
                logits = one(x)
                both[name] = method.certificate(logits, method.pulls(one), norm)[0].cpu().numpy()
                right &= logits.argmax(1) == y
        right = right.cpu().numpy()
        shares.append((both["spca"] > both["pca"])[right].mean() if right.any() else np.nan)
        for chosen, name, colour in ((right, "both right", COLOURS["spca"]), (~right, "at least one wrong", "#D55E00")):
            dot = dict(size=4, color=colour, opacity=0.6)
            figure.add_scatter(x=both["pca"][chosen], y=both["spca"][chosen], mode="markers", marker=dot, name=name,
                               legendgroup=name, showlegend=column == 1, row=1, col=column)  # fmt: skip
        end = float(max(both["pca"].max(), both["spca"].max())) * 1.03
        figure.add_scatter(x=[0, end], y=[0, end], mode="lines", line=dict(color=INK, dash="dash", width=1), name="equal",
                           legendgroup="equal", showlegend=column == 1, row=1, col=column)  # fmt: skip
    figure.update_xaxes(title_text="radius behind PCA", rangemode="tozero")
    figure.update_yaxes(title_text="radius behind sparse PCA", rangemode="tozero")
    title = (f"Certified radii of linear heads, seed {lab.seeds[0]}: where both are right, sparse PCA's is larger for "
             f"{shares[0]:.0%} (largest change) and {shares[1]:.0%} (length) of the images")  # fmt: skip
    return style(figure, title, height=480)


def penalty(lab) -> go.Figure:
    """Accuracy with and without attack, and the operator norm, against alpha."""
    rows = lab.table[lab.table.arm == "penalties"].pivot_table(index=["step", "seed"], columns="metric", values="value")
    mean = rows.groupby("step").mean()
    figure = make_subplots(1, 2, subplot_titles=("accuracy", "how far the code can move"),
                           horizontal_spacing=0.14)  # fmt: skip
    parts = (("test_accuracy", "without attack", 1, INK), ("pgd_accuracy", "under PGD", 1, COLOURS["spca"]),
             ("operator_norm", "operator norm", 2, "#D55E00"), ("zero_share", "zeros", 0, ""))  # fmt: skip
    for metric, name, column, colour in parts:
        if column:
            figure.add_scatter(x=rows.alpha, y=rows[metric], mode="markers", marker=dict(size=6, color=colour, opacity=0.5),
                               showlegend=False, name=name, row=1, col=column)  # fmt: skip
            figure.add_scatter(x=mean.alpha, y=mean[metric], mode="lines", line=dict(color=colour, width=2.8), name=name, row=1,
                               col=column)  # fmt: skip
    for metric, column in (("pgd_accuracy", 1), ("operator_norm", 2)):
        level = last(lab, "pca", metric).mean() if "pca" in lab.arms else np.nan
        figure.add_scatter(x=[mean.alpha.min(), mean.alpha.max()], y=[level, level], mode="lines", showlegend=column == 1,
                           line=dict(color=COLOURS["pca"], dash="dash", width=1.5), name="PCA, under PGD and norm", row=1,
                           col=column)  # fmt: skip
    figure.update_xaxes(title_text="penalty alpha", type="log", tickvals=list(study.ALPHAS), ticktext=[f"{a:g}" for a in study.ALPHAS])
    figure.update_yaxes(title_text="accuracy [share of images]", range=[-0.02, 1.02], col=1)
    figure.update_yaxes(title_text="operator norm of DW (upper bound)", rangemode="tozero", col=2)
    best = mean.loc[mean.pgd_accuracy.idxmax()]
    zeros = [f"{mean.zero_share.iloc[k]:.0%}" for k in (0, -1)]
    title = (f"Of these penalties alpha {best.alpha:g} keeps most accuracy under PGD ({best.pgd_accuracy:.2f}); from "
             f"{mean.alpha.iloc[0]:g} to {mean.alpha.iloc[-1]:g} the share of zeros goes from {zeros[0]} to {zeros[1]}")  # fmt: skip
    return style(figure, title, height=460)


def album(lab) -> go.Figure:
    """One test image under the same budget behind each front end: what was added, and the picture that the head sees."""
    arms = [name for name in NETS if name in lab.arms]
    added, seen, titles, answers = [], [], [], []
    nets = [lab.arms[arm].members[0].eval() for arm in arms]
    x, y = legible(nets, *lab.arms[arms[0]].tasks[0].test)
    for arm, net in zip(arms, nets, strict=True):
        moved = attacked(net, x, y, lab.params)
        with torch.no_grad():
            sure, said = (part.item() for part in net(moved).softmax(1).max(1))
        side = round(x.shape[1] ** 0.5)
        added.append((moved - x).cpu().numpy().reshape(side, side))
        seen.append(moved.cpu().numpy().reshape(side, side))
        titles.append(arm.replace("_", "<br>") + f"<br><b>{said}</b> ({sure:.0%})")
        answers.append(said != y.item())
    figure = make_subplots(2, len(arms), subplot_titles=titles, horizontal_spacing=0.01, vertical_spacing=0.03,
                           row_titles=["picture", "what was added"])  # fmt: skip
    for column, (one, extra) in enumerate(zip(seen, added, strict=True), 1):
        figure.add_heatmap(z=one[::-1], colorscale="gray", zmin=0, zmax=1, showscale=False, row=1, col=column)
        peak = max(float(np.abs(extra).max()), 1e-6)
        figure.add_heatmap(z=extra[::-1], colorscale=SCALE, zmin=-peak, zmax=peak, showscale=False, row=2, col=column)
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False)
    for k in range(2 * len(arms)):
        figure.update_yaxes(scaleanchor=f"x{k + 1}" if k else "x", row=k // len(arms) + 1, col=k % len(arms) + 1)
    title = (f"A {y.item()} of seed {lab.seeds[0]} moved by {lab.params.eps:g} a pixel: {sum(answers)} of {len(arms)} networks now "
             "say something else (in brackets: how sure)")  # fmt: skip
    figure.update_annotations(font_size=11)
    return style(figure, title, height=380).update_layout(margin_t=160, margin_r=40, margin_b=20)


def legible(nets, x, y):
    """The first image that all networks read right, with its label; the first of all where there is none."""
    with torch.no_grad():
        right = torch.stack([net(x).argmax(1) == y for net in nets]).all(0)
    first = int(right.int().argmax())
    return x[first : first + 1], y[first : first + 1]


def attacked(net, x, y, p):
    """x under the attack of the knobs at eps, one try, PGD from x itself."""
    if p.eps == 0:
        return x
    rng, steps = torch.Generator().manual_seed(0), min(p.pgd_steps, 20)
    eps = p.eps * x.shape[-1] ** 0.5 if p.norm == "2" else p.eps

    def loss(z):
        return attacks.log_odds(net(z), y)

    if p.attack == "square":
        return attacks.square(loss, x, eps, min(p.queries, 100), rng)
    if p.attack == "pgd":
        return attacks.pgd(loss, x, eps, p.norm, steps)
    return attacks.fgsm(loss, x, eps, p.norm) if p.attack == "fgsm" else attacks.momentum(loss, x, eps, p.norm)


# ---- live views: one net of any arm, on the data of seed 0


def _one(net):
    """The sparse one of the two linear heads, any other net itself."""
    return net["spca"] if isinstance(net, torch.nn.ModuleDict) else net


def under_attack(net, params) -> go.Figure:
    """The first test image of seed 0 that the head reads right, at most 20 steps of PGD, and what the head says of both."""
    net, found = _one(net), study.pictures(0, params)
    x, y = legible([net], *(part.to(net.rows.device) for part in found.test))
    moved = attacked(net, x, y, params)
    with torch.no_grad():
        before, after = (net(z).softmax(1)[0].cpu().numpy() for z in (x, moved))
    side = round(x.shape[1] ** 0.5)
    figure = make_subplots(1, 4, column_widths=[0.19, 0.19, 0.19, 0.43], horizontal_spacing=0.075,
                           subplot_titles=("picture", "what is added", "together", "probability of each class"))  # fmt: skip
    for column, (one, scale, low) in enumerate(((x, "gray", 0), (moved - x, SCALE, -max(params.eps, 1e-6)), (moved, "gray", 0)), 1):
        high = 1 if low == 0 else -low
        z = one.cpu().numpy().reshape(side, side)[::-1]
        figure.add_heatmap(z=z, colorscale=scale, zmin=low, zmax=high, showscale=False, row=1, col=column)
        figure.update_yaxes(scaleanchor=f"x{column}" if column > 1 else "x", visible=False, row=1, col=column)
        figure.update_xaxes(visible=False, constrain="domain", row=1, col=column)
    for values, name, colour in ((before, "before", COLOURS["pca"]), (after, "under attack", "#D55E00")):
        figure.add_bar(x=list(range(len(values))), y=values, name=name, marker_color=colour, row=1, col=4)
    figure.update_xaxes(title_text="class", dtick=1, row=1, col=4).update_yaxes(range=[0, 1.02], row=1, col=4)
    title = f"A {y.item()} moved by {params.eps:g} a pixel: the head said {before.argmax()} and now says {after.argmax()}"
    return style(figure, title, height=340)


def components_of(net, params) -> go.Figure:
    """The first six rows of this arm's projection beside the principal components of seed 0."""
    rows = _one(net).rows
    dense = leading(*study.where(0, params))
    title = f"This arm's rows ({(rows[:6] == 0).float().mean():.0%} of the first six are zero) above, PCA's below"
    return pictured({"this arm": rows, "PCA": dense}, title, 6)


@lru_cache(maxsize=4)
def leading(*place) -> torch.Tensor:
    """The six leading principal components, from the covariance, which is quicker than from the images. [6, d]"""
    x, _ = study.centred(*place)
    return torch.from_numpy(np.linalg.eigh(x.T @ x)[1][:, :-7:-1].T.astype(np.float32))


def answer(net, params, value) -> dict[str, float]:
    """What one network says of a drawn digit: {digit: probability}. ValueError where it was trained on other pictures."""
    if params.data != "digits" or study.where(0, params)[-1]:
        raise ValueError("these networks were trained on pictures of another kind")
    page = torch.from_numpy(enlarged(drawn(value, 8).numpy()[None], params.side)).flatten(1).to(net.rows.device)
    return {str(c): share for c, share in enumerate(net(page).softmax(1)[0].tolist())}
