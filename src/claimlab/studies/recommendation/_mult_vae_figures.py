"""Figures and live views of the study `mult-vae`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab import figures as common
from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, faded
from claimlab.studies.recommendation import mult_vae as study

METRICS = {"recall20": "Recall@20", "recall50": "Recall@50", "ndcg100": "NDCG@100"}
SHADES = [*OTHERS[:6], BLUE, GREY, "#7F3C8D", "#A5AA99", "#4B4B8F", "#80BA5A"]  # a genre each


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if {"vae_beta1", "mult_vae"} <= set(lab.arms):
        found = {"annealing": annealing(lab), "live dimensions": dimensions(lab)}
    if {"mult_vae", "mult_dae"} <= set(lab.arms):
        found["by activity"] = by_activity(lab)
    return {"arms": arms(lab), **found, "one user": story(lab)}


def style(figure: go.Figure, title: str, **more) -> go.Figure:
    """The common look, with the title from the left edge on: names of arms take much of the margin."""
    return common.style(figure, title, **more).update_layout(title_x=0.02, title_xref="container")


def _wide(table, arm: str, metric: str):
    """Values of one metric: a row a step, a column a seed."""
    rows = table[(table.arm == arm) & (table.metric == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


def _band(figure, x, values: np.ndarray, name: str, colour: str, secondary: bool | None = None, dash: str = "solid") -> None:
    """Mean over seeds of `values` [points, seeds] with its 95 % interval."""
    low, high = np.array([interval(row) for row in values]).T
    at = {} if secondary is None else {"secondary_y": secondary}
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(colour, 0.2), line_width=0,
                       hoverinfo="skip", showlegend=False, legendgroup=name, **at)  # fmt: skip
    figure.add_scatter(x=x, y=values.mean(1), mode="lines+markers", marker_size=4, line=dict(color=colour, width=2.5, dash=dash),
                       name=name, legendgroup=name, **at)  # fmt: skip


def _mean(lab, arm: str, metric: str) -> float:
    return float(_wide(lab.table, arm, metric).iloc[-1].mean())


# ---- figures


def annealing(lab) -> go.Figure:
    """Validation NDCG over training, with beta on the second axis, of the run to 1 and of the one that stops."""
    figure, colour = make_subplots(specs=[[{"secondary_y": True}]]), arm_colours(lab)
    for arm, name in (("vae_beta1", "beta climbs to 1"), ("mult_vae", "beta stops")):
        score, beta = (_wide(lab.table, arm, metric) for metric in ("validation_ndcg100", "beta"))
        _band(figure, score.index[1:], score.to_numpy()[1:], f"NDCG, {name}", colour[arm], False)
        figure.add_scatter(x=beta.index, y=beta.mean(axis=1), mode="lines", line=dict(color=colour[arm], dash="dot", width=1.5),
                           name=f"beta, {name}", secondary_y=True)  # fmt: skip
    best = _wide(lab.table, "vae_beta1", "validation_ndcg100")
    figure.update_yaxes(title_text="NDCG@100 on validation users", secondary_y=False)
    figure.update_yaxes(title_text="beta, weight of the KL term", range=[0, 1.05], tickmode="linear", tick0=0, dtick=0.25,
                       secondary_y=True, showgrid=False)  # fmt: skip
    title = (f"The annealing run peaks at {best.max().mean():.3f} and ends at {best.iloc[-1].mean():.3f}; with beta stopped at "
             f"{_mean(lab, 'mult_vae', 'beta_star'):.2f} on average the end is "
             f"{_mean(lab, 'mult_vae', 'validation_ndcg100'):.3f}")  # fmt: skip
    return style(figure, title, x="optimiser step", height=480)


def arms(lab) -> go.Figure:
    """Recall and NDCG of all arms on the test users: mean and 95 % interval, a small dot a seed. Bars from 0 would hide the gaps."""
    figure = make_subplots(1, 3, subplot_titles=list(METRICS.values()), horizontal_spacing=0.05, shared_yaxes=True)
    colour, means = arm_colours(lab), {arm: _mean(lab, arm, "ndcg100") for arm in lab.arms}
    shown = sorted(lab.arms, key=means.get)
    for column, metric in enumerate(METRICS, 1):
        for arm in shown:
            values = _wide(lab.table, arm, metric).iloc[-1].to_numpy()
            low, high = interval(values)
            spread = dict(type="data", symmetric=False, array=[high - values.mean()], arrayminus=[values.mean() - low])
            figure.add_scatter(x=values, y=[arm] * len(values), mode="markers", marker=dict(size=4, color=INK), opacity=0.6,
                               showlegend=False, row=1, col=column)  # fmt: skip
            figure.add_scatter(x=[values.mean()], y=[arm], mode="markers", name=arm, error_x=spread, showlegend=False,
                               marker=dict(size=11, color=colour.get(arm, GREY)), row=1, col=column)  # fmt: skip
        figure.update_xaxes(title_text="share, test users", row=1, col=column)
    figure.update_yaxes(title_text="arm", col=1)
    title = f"{shown[-1]} ranks the hidden clicks best (NDCG@100 {means[shown[-1]]:.3f}), then {shown[-2]} ({means[shown[-2]]:.3f})"
    return style(figure, title, height=480)


def _by_user(lab, arm: str) -> list[torch.Tensor]:
    """NDCG of every test user, for each seed."""
    found = []
    for net, seed in zip(lab.arms[arm].members, lab.seeds, strict=True):
        shown, hidden = _test(net, study.world(seed, lab.params))
        with torch.no_grad():
            found.append(study.ndcg(study.ranked(net.eval()(shown), shown), hidden).cpu())
    return found


def _test(net, held, part: str = "test"):
    device = next(iter(net.state_dict().values())).device
    return held.shown[part].to(device), held.hidden[part].to(device)


def by_activity(lab) -> go.Figure:
    """NDCG of the VAE minus that of the autoencoder without posterior, in five equal groups of test users by clicks shown."""
    gaps, sizes = [], []
    for vae, dae, seed in zip(_by_user(lab, "mult_vae"), _by_user(lab, "mult_dae"), lab.seeds, strict=True):
        clicks = study.world(seed, lab.params).shown["test"].sum(1)
        groups = clicks.argsort(stable=True).tensor_split(5)
        gaps.append([float((vae - dae)[group].mean()) for group in groups])
        sizes.append([float(clicks[group].mean()) for group in groups])
    gaps, names = np.array(gaps), [f"{i}: {size:.0f} clicks" for i, size in enumerate(np.mean(sizes, 0), 1)]
    spans = np.array([interval(column) for column in gaps.T])
    figure, middle = go.Figure(), gaps.mean(0)
    spread = dict(type="data", symmetric=False, array=spans[:, 1] - middle, arrayminus=middle - spans[:, 0])
    figure.add_bar(x=names, y=middle, error_y=spread, marker_color=BLUE, opacity=0.7, name="mean, 95 % interval")
    figure.add_scatter(x=np.tile(names, len(gaps)), y=gaps.ravel(), mode="markers", marker=dict(size=5, color=INK), name="a seed")
    figure.add_hline(y=0, line=dict(color=INK, width=1))
    title = (f"mult_vae minus mult_dae: {middle[0]:+.3f} for the users with the fewest clicks, "
             f"{middle[-1]:+.3f} for those with the most")  # fmt: skip
    return style(figure, title, x="fifth of the test users, with mean clicks shown", y="difference in NDCG@100")


def _kl(net, held) -> np.ndarray:
    """Mean KL of each latent number over validation users, largest first [nats]."""
    with torch.no_grad():
        found = study.divergence(*net.eval().encode(_test(net, held, "validation")[0])).mean(0)
    return found.sort(descending=True).values.cpu().numpy()


def dimensions(lab) -> go.Figure:
    """Left: KL of each latent dimension at the end; right: how many carry something, against beta."""
    heads, colour = ("At the end of training", "While beta climbs to 1"), arm_colours(lab)
    figure = make_subplots(1, 2, subplot_titles=heads, horizontal_spacing=0.13)
    for arm in ("vae_beta1", "mult_vae"):
        values = np.mean([_kl(n, study.world(s, lab.params)) for n, s in zip(lab.arms[arm].members, lab.seeds, strict=True)], 0)
        figure.add_scatter(x=np.arange(1, len(values) + 1), y=values, mode="lines+markers", marker_size=4, name=arm,
                           line_color=colour[arm], row=1, col=1)  # fmt: skip
    beta, alive = (_wide(lab.table, "vae_beta1", m) for m in ("beta", "alive"))
    figure.add_scatter(x=beta.mean(axis=1)[1:], y=alive.mean(axis=1)[1:], mode="lines+markers", showlegend=False,
                       line_color=colour["vae_beta1"], row=1, col=2)  # fmt: skip
    figure.update_xaxes(title_text="latent dimension, sorted by KL", col=1)
    figure.update_yaxes(title_text="mean KL [nats]", rangemode="tozero", col=1)
    figure.update_xaxes(title_text="beta", col=2)
    figure.update_yaxes(title_text="dimensions above 0.01 nats", rangemode="tozero", col=2)
    total = {arm: _mean(lab, arm, "kl") for arm in ("mult_vae", "vae_beta1")}
    left = {arm: _mean(lab, arm, "alive") for arm in ("mult_vae", "vae_beta1")}
    title = (f"At its ceiling mult_vae tells {total['mult_vae']:.1f} nats about a user in {left['mult_vae']:.0f} live dimensions; "
             f"with beta = 1 it is {total['vae_beta1']:.1f} nats in {left['vae_beta1']:.0f}")  # fmt: skip
    return style(figure, title, height=440)


def story(lab) -> go.Figure:
    """One test user of the first seed: the ten best new items of each arm, by main genre, with the hits marked."""
    held = study.world(lab.seeds[0], lab.params)
    user = int(held.hidden["test"].sum(1).argsort(stable=True)[-len(held.hidden["test"]) // 10])
    shown, hidden = (part["test"][user] for part in (held.shown, held.hidden))
    names = [a for a in lab.arms if not a.endswith("_beta1") or a == "vae_beta1"]
    found = {arm: _best(lab.arms[arm].members[0], shown, 10) for arm in names}
    figure = go.Figure()
    clicked = (held.train.sum(0) * shown).topk(min(10, int(shown.sum()))).indices
    for row, (name, items) in enumerate([("clicks shown", clicked), *found.items()]):
        _strip(figure, name, items, held.genre, hidden if row else None)
    hits = {arm: int(hidden[items].sum()) for arm, items in found.items()}
    title = (f"Test user {user} of seed {lab.seeds[0]}, {int(shown.sum())} clicks shown (the 10 most popular are drawn) and "
             f"{int(hidden.sum())} hidden; the top tens hold {min(hits.values())} to {max(hits.values())} of them")  # fmt: skip
    figure.update_yaxes(autorange="reversed", title_text="arm").update_xaxes(dtick=1)
    title += ". Colour and letter: main genre; star: a hidden click"
    return style(figure, title, x="rank", height=480).update_layout(showlegend=False)


def _best(net, shown: torch.Tensor, count: int) -> torch.Tensor:
    device = next(iter(net.state_dict().values())).device
    with torch.no_grad():
        scores = study.ranked(net.eval()(shown[None].to(device)), shown[None].to(device))[0]
    return scores.topk(count).indices.cpu()


def _strip(figure, name: str, items: torch.Tensor, genre: np.ndarray, hidden=None) -> None:
    """One row of items, a square each with its genre's letter; hits are stars with a dark rim."""
    hit = np.zeros(len(items), dtype=bool) if hidden is None else hidden[items].numpy() > 0
    marker = dict(size=np.where(hit, 26, 20), color=[SHADES[genre[i]] for i in items], symbol=np.where(hit, "star", "square"),
                  line=dict(color="black", width=np.where(hit, 2, 0)))  # fmt: skip
    figure.add_scatter(x=np.arange(1, len(items) + 1), y=[name] * len(items), mode="markers+text", marker=marker,
                       text=[chr(65 + genre[i]) for i in items], textfont=dict(color="white", size=11),
                       hovertext=[f"item {i}" for i in items.tolist()], hoverinfo="text")  # fmt: skip


# ---- live views: one net of any arm, on the data of seed 0


def map_of_items(net, params) -> go.Figure:
    """Items in the plane of the first two principal axes of the net's item factors, coloured by main genre."""
    held, factors = study.world(0, params), net.factors().detach().cpu()
    factors = factors - factors.mean(0)
    axes = torch.linalg.eigh(factors.T @ factors).eigenvectors[:, -2:].flip(1)
    plane, figure = (factors @ axes).numpy(), go.Figure()
    for genre in np.unique(held.genre):
        mine = plane[held.genre == genre]
        dot = dict(size=5, color=SHADES[genre])
        figure.add_scatter(x=mine[:, 0], y=mine[:, 1], mode="markers", marker=dot, name=f"genre {chr(65 + genre)}")
    return style(figure, "Items by their factors, coloured by main genre", x="first principal axis", y="second principal axis")


def one_user(net, params) -> go.Figure:
    """Clicks shown and present top 10 of validation user 0 of seed 0; hits are stars, hidden clicks that were missed are ringed."""
    held, figure = study.world(0, params), go.Figure()
    shown, hidden = held.shown["validation"][0], held.hidden["validation"][0]
    items = _best(net, shown, 10)
    _strip(figure, "clicks shown", shown.nonzero().flatten()[:10], held.genre)
    _strip(figure, "top 10 now", items, held.genre, hidden)
    missed = [i for i in hidden.nonzero().flatten().tolist() if i not in items.tolist()][:10]
    if missed:
        ring = dict(size=20, color=[SHADES[held.genre[i]] for i in missed], symbol="circle", line=dict(color="black", width=2))
        figure.add_scatter(x=np.arange(1, len(missed) + 1), y=["hidden, missed"] * len(missed), mode="markers", marker=ring)
    figure.update_yaxes(autorange="reversed").update_xaxes(dtick=1)
    title = f"{int(hidden[items].sum())} of {int(hidden.sum())} hidden clicks in the top 10 of one validation user"
    return style(figure, title, x="rank, or number in the list", y="list").update_layout(showlegend=False)


def kl_by_dimension(net, params) -> go.Figure:
    """KL of every latent dimension on the validation users of seed 0, largest first."""
    if not getattr(net, "posterior", False):
        return style(go.Figure(), "This arm has no posterior")
    values = _kl(net, study.world(0, params))
    figure = go.Figure(go.Bar(x=np.arange(1, len(values) + 1), y=values, marker_color=BLUE))
    title = f"{(values > 0.01).sum()} of {len(values)} dimensions carry more than 0.01 nats"
    return style(figure, title, x="latent dimension, sorted", y="mean KL [nats]")
