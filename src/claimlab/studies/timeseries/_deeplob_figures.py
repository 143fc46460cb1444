"""Figures and live views of the study `deeplob`: what the arms score, where DeepLOB errs, and which cells of the book it reads."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, faded, style
from claimlab.parts.validated import best
from claimlab.studies.timeseries import _deeplob_method as method
from claimlab.studies.timeseries import deeplob as study

NAMES = {"logistic": "logistic,<br>handmade", "mlp": "perceptron", "lstm": "LSTM", "flat_conv": "plain<br>filters",
         "no_inception": "no<br>Inception", "deeplob": "DeepLOB"}  # fmt: skip
TINTS = {0: OTHERS[3], 1: GREY, 2: BLUE}  # down, still, up
CHANCE = 1 / 3


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"scores": scores(lab)}
    if "deeplob" in lab.arms:
        run = lab.arms["deeplob"]
        nets, market = [best(m).eval().cpu() for m in run.members], run.tasks[0].market
        pairs = list(zip(run.tasks, run.members, strict=True))  # what was measured at the end is not measured again
        told = [getattr(task, "told", None) or task.answered(member) for task, member in pairs]
        weights = [task.weight if hasattr(task, "weight") else study.explained(best(m).eval().cpu(), task.market) for task, m in pairs]
        found |= {"confusion": confusion(told, market.seen), "levels": lime_map(torch.cat(weights), market, len(nets)),
                  "stretch": stretch(nets[0], market, lab.seeds[0]), "stable": stable(told, market)}  # fmt: skip
    return found


def _last(table, metric: str) -> dict[str, np.ndarray]:
    """The values of the seeds at the last step, by arm."""
    rows = table[table.metric == metric].sort_values("step").groupby(["arm", "seed"]).value.last()
    return {arm: rows[arm].to_numpy() for arm in rows.index.get_level_values(0).unique()}


def scores(lab) -> go.Figure:
    """Macro-F1 of every arm on later data of its own instruments and on unseen ones."""
    palette, arms = arm_colours(lab), [a for a in study.ARMS if a in lab.arms]
    parts = {"f1_test": "instruments of the training", "f1_unseen": "unseen instruments"}
    values, figure = {m: _last(lab.table, m) for m in parts}, go.Figure()
    for k, (metric, name) in enumerate(parts.items()):
        means = [values[metric][a].mean() for a in arms]
        ends = [interval(values[metric][a]) for a in arms]
        bars = {"array": [e[1] - m for e, m in zip(ends, means, strict=True)],
                "arrayminus": [m - e[0] for e, m in zip(ends, means, strict=True)], "color": INK}  # fmt: skip
        look = {"color": [faded(palette[a], 0.75 if k == 0 else 0.3) for a in arms], "line": {"color": INK, "width": 1}}
        figure.add_bar(x=np.arange(len(arms)) + 0.38 * k - 0.19, y=means, width=0.36, error_y=bars, marker=look, showlegend=False,
                       name=name, hovertemplate="%{y:.3f}")  # fmt: skip
        figure.add_scatter(x=[None], y=[None], mode="markers", name=f"{name} ({'dark' if k == 0 else 'pale'})", hoverinfo="skip",
                           marker={"symbol": "square", "size": 12, "color": faded(INK, 0.75 if k == 0 else 0.3)})  # fmt: skip
    figure.add_scatter(x=[-0.5, len(arms) - 0.5], y=[CHANCE, CHANCE], mode="lines", name="answering at random",
                       line={"dash": "dash", "color": INK, "width": 1.5})  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(arms))), ticktext=[NAMES[a] for a in arms])
    mean = {a: values["f1_test"][a].mean() for a in arms}
    best = max(arms, key=mean.get)
    title = f"Highest macro-F1: {NAMES[best].replace('<br>', ' ')} ({mean[best]:.2f})"
    if "deeplob" in mean and best != "deeplob":
        title += f"; DeepLOB {mean['deeplob']:.2f}, on unseen ones {values['f1_unseen']['deeplob'].mean():.2f}"
    return style(figure, title, x="arm", y="macro-F1 [0 to 1]", height=460)


def confusion(told, seen: int) -> go.Figure:
    """Shares of the answers given to each true class, all seeds together, for seen and unseen instruments."""
    figure = make_subplots(1, 2, subplot_titles=("instruments of the training", "unseen instruments"), horizontal_spacing=0.14)
    kept = []
    for column, part in enumerate((slice(0, seen), slice(seen, None)), 1):
        counts = sum(method.confusion(*pair) for one in told for pair in one[part]).double()
        shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).numpy()
        kept.append(shares)
        figure.add_heatmap(z=shares, x=method.CLASSES, y=method.CLASSES, zmin=0, zmax=1, colorscale="Cividis", texttemplate="%{z:.0%}",
                           colorbar={"title": "share", "tickformat": ".0%"}, showscale=column == 2, row=1, col=column)  # fmt: skip
    figure.update_xaxes(title_text="answered").update_yaxes(autorange="reversed")
    figure.update_yaxes(title_text="true direction of the mid price", col=1)
    wrong = [(s[0, 2] + s[2, 0]) / 2 for s in kept]
    title = f"DeepLOB takes a move for its opposite in {wrong[0]:.0%} of cases, on unseen instruments in {wrong[1]:.0%}"
    return style(figure, title, height=420)


def lime_map(weight, market, seeds: int) -> go.Figure:
    """Size of the LIME weights by level and age, all windows together, and beside it the volumes of one window of the first seed."""
    levels = market.stocks[0].rows.shape[1] // 4
    size = weight.abs().sum(0).unflatten(0, (-1, levels)).numpy()  # [block, level]
    share = method.level_shares(weight, levels).mean(0)
    window = market.windows(0, market.test[:1])[0][0].numpy()
    figure = make_subplots(1, 2, subplot_titles=("share of |weight|, by group", "volumes of one window, scaled"), horizontal_spacing=0.16)
    depth, ages = [str(k + 1) for k in range(levels)], [f"{10 * b}-{10 * b + 9}" for b in range(len(size))]
    figure.add_heatmap(z=size.T / size.sum(), x=ages, y=depth, colorscale="Cividis", zmin=0, showscale=False, row=1, col=1,
                       texttemplate="%{z:.0%}")  # fmt: skip
    volumes = np.concatenate([window[:, 1::4][:, ::-1], window[:, 3::4]], 1).T  # asks from deep to best, then bids
    names = [f"ask {k}" for k in range(levels, 0, -1)] + [f"bid {k}" for k in range(1, levels + 1)]
    figure.add_heatmap(z=volumes, x=np.arange(1 - len(window), 1), y=names, colorscale="RdBu", zmid=0, row=1, col=2,
                       colorbar={"title": "z-score"})  # fmt: skip
    figure.update_xaxes(title_text="age of the snapshots [events]", autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text="event, counted from the last one", row=1, col=2)
    figure.update_yaxes(title_text="level", autorange="reversed", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    title = (f"LIME puts {share[0]:.0%} of its weight on the first of {levels} levels "
             f"({len(weight)} windows, {seeds} seeds)")  # fmt: skip
    return style(figure, title, height=440)


def _coloured(net, market, which: int, moments: np.ndarray, what: str) -> go.Figure:
    """Mid price coloured by the class answered, and the label's smoothed move beneath."""
    stock = market.stocks[which]
    x, truth = market.windows(which, moments)
    answer = study.answers(net, x)
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.06)
    at, mid = moments - moments[0], stock.mid[moments]
    figure.add_scatter(x=at, y=mid, mode="lines", line={"color": faded(GREY, 0.5), "width": 1}, showlegend=False, row=1, col=1)
    for c, name in enumerate(method.CLASSES):
        here = (answer == c).numpy()
        figure.add_scatter(x=at[here], y=mid[here], mode="markers", marker={"color": TINTS[c], "size": 5}, name=f"answered {name}",
                           row=1, col=1)  # fmt: skip
    figure.add_scatter(x=at, y=1e4 * stock.move[moments], mode="lines", line={"color": INK, "width": 1.5}, showlegend=False, row=2, col=1)
    for edge in (-stock.alpha, stock.alpha):
        figure.add_hline(y=1e4 * edge, line={"dash": "dot", "color": INK, "width": 1}, row=2, col=1)
    figure.update_yaxes(title_text="mid price", row=1, col=1).update_yaxes(title_text="move [0.01 %]", row=2, col=1)
    figure.update_xaxes(title_text="event", row=2, col=1)
    right = float((answer == truth).float().mean())
    return style(figure, f"{what}: {right:.0%} of {len(moments)} answers are right", height=500)


def stretch(net, market, seed: int) -> go.Figure:
    """A stretch of the first unseen instrument."""
    return _coloured(net, market, market.seen, market.test[:400], f"DeepLOB on an unseen instrument, seed {seed}")


def stable(told, market) -> go.Figure:
    """Accuracy on each unseen instrument, a box over seeds."""
    figure, shown, names = go.Figure(), [], [s.name for s in market.stocks]
    for k in range(market.seen, len(names)):
        right = [float((truth == answer).float().mean()) for truth, answer in (one[k] for one in told)]
        shown += right
        figure.add_box(y=right, name=names[k], boxpoints="all", jitter=0.4, pointpos=0, marker_color=BLUE, showlegend=False)
    common = [float(one[k][0].bincount(minlength=3).max() / len(one[k][0])) for one in told for k in range(market.seen, len(names))]
    figure.add_hline(y=float(np.mean(common)), line={"dash": "dash", "color": INK, "width": 1})
    figure.add_annotation(x=0, xref="paper", y=float(np.mean(common)), yanchor="bottom", xanchor="left", showarrow=False,
                          text="always the commonest class")  # fmt: skip
    title = f"Accuracy on unseen instruments lies between {min(shown):.2f} and {max(shown):.2f} over {len(told)} seeds"
    return style(figure, title, x="unseen instrument", y="accuracy [share of test windows]", height=420)


# ---- live views: the network as it is now, on the market of seed 0 (derived from the knobs alone)


def forecast(net, params) -> go.Figure:
    """Queues of the first unseen instrument over time as a picture, and beneath it what the network expects."""
    market = study.load(params, 0)
    moments, stock = market.test[:80], market.stocks[market.seen]
    x, truth = market.windows(market.seen, moments)
    with torch.no_grad():
        chances = net(x.to(next(net.parameters()).device)).softmax(1).cpu().numpy()
    rows, mid = stock.rows[moments], stock.mid[moments]
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.08)
    at = np.arange(len(moments))
    for column, scale, name in ((0, "Reds", "ask"), (2, "Blues", "bid")):
        price, volume = rows[:, column::4], rows[:, column + 1 :: 4]
        dots = {"size": 4 + 10 * np.minimum(volume.ravel() / 10, 1), "color": volume.ravel(), "colorscale": scale, "cmin": 0, "cmax": 10}
        figure.add_scatter(x=np.repeat(at, price.shape[1]), y=price.ravel(), mode="markers", marker={**dots, "symbol": "square"},
                           name=name, showlegend=False, row=1, col=1)  # fmt: skip
    figure.add_scatter(x=at, y=mid, mode="lines", line={"color": INK, "width": 2}, name="mid price", showlegend=False, row=1, col=1)
    for c, name in enumerate(method.CLASSES):
        figure.add_scatter(x=at, y=chances[:, c], mode="lines", stackgroup="one", line={"color": TINTS[c], "width": 0}, name=name,
                           row=2, col=1)  # fmt: skip
    figure.update_yaxes(title_text="price", row=1, col=1).update_yaxes(title_text="probability", range=[0, 1], row=2, col=1)
    figure.update_xaxes(title_text="event", row=2, col=1)
    right = float((torch.from_numpy(chances).argmax(1) == truth).float().mean())
    return style(figure, f"The book (asks red, bids blue) and the forecast of its mid price: {right:.0%} right", height=520)


def confused(net, params) -> go.Figure:
    """Confusion matrix on 240 test windows of the training instruments."""
    market = study.load(params, 0)
    moments = market.test[np.linspace(0, len(market.test) - 1, 80).astype(int)]
    pairs = [market.windows(i, moments) for i in range(market.seen)]
    x, truth = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    answer = study.answers(net, x.to(next(net.parameters()).device)).cpu()
    counts = method.confusion(truth, answer)
    figure = go.Figure(go.Heatmap(z=counts.numpy(), x=method.CLASSES, y=method.CLASSES, colorscale="Cividis", texttemplate="%{z}",
                                  colorbar_title="windows"))  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    title = f"Later data of training instruments: {float((truth == answer).float().mean()):.0%} of {len(truth)} windows are right"
    return style(figure, title, x="answered", y="true direction")
