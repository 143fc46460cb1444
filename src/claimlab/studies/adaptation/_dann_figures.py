"""Figures and live views of the study `dann`: features, decision regions, curves and settings."""

from __future__ import annotations

import copy

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.data.drawing import drawn
from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, band, faded, style
from claimlab.studies.adaptation import dann as study
from claimlab.studies.adaptation._dann_data import domains

DOMAINS = {"source": OTHERS[3], "target": BLUE}  # colours of domains, not of arms
PAIR = ("source_only", "dann")


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if set(PAIR) <= set(lab.arms):
        found = {"features": side_by_side(lab), "during training": training(lab)}
    if "moons" in lab.arms:
        found["two moons"] = two_moons(lab)
    if {*PAIR, "sweep"} <= set(lab.arms):
        found["settings"] = settings(lab)
    return found | {"distance and error": bound(lab)}


def _last(table, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed."""
    rows = table[(table["arm"] == arm) & (table["metric"] == metric)].sort_values("step")
    return rows.groupby("seed")["value"].last().to_numpy()


def _still(net) -> torch.nn.Module:
    """A copy on the CPU, so that drawing does not touch a net in training."""
    return copy.deepcopy(net).cpu().eval()


def _parts(task) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Test part of both domains, on the CPU."""
    return {"source": tuple(v.cpu() for v in task.test_source), "target": tuple(v.cpu() for v in task.test_target)}


# ---- features of both domains


def _features(net, task) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with torch.no_grad():
        return {name: (net["features"](x).numpy(), y.numpy()) for name, (x, y) in _parts(task).items()}


def _plane(figure, net, task, at: dict, shown: bool, each: int = 150) -> float:
    """Both domains on the two main components of all features, written as their classes; the share of variance shown."""
    parts = _features(_still(net), task)
    every = np.concatenate([x for x, _ in parts.values()])
    _, size, axes = np.linalg.svd(every - every.mean(0), full_matrices=False)
    for name, (x, y) in parts.items():
        u, v = ((x[:each] - every.mean(0)) @ axes[:2].T).T
        figure.add_scatter(x=u, y=v, mode="text", text=[str(k) for k in y[:each]], textfont={"color": DOMAINS[name], "size": 12},
                           name=name, showlegend=False, hovertemplate=f"{name}, class %{{text}}<extra></extra>", **at)  # fmt: skip
        if shown:
            figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": DOMAINS[name], "size": 10}, name=name, **at)
    return float((size[:2] ** 2).sum() / max((size**2).sum(), 1e-30))


def side_by_side(lab) -> go.Figure:
    """The features of source_only and dann, first seed."""
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for column, arm in enumerate(PAIR, 1):
        share = _plane(figure, lab.arms[arm].members[0], lab.arms[arm].tasks[0], {"row": 1, "col": column}, column == 1)
        figure.update_xaxes(title_text=f"{arm}: first component ({share:.0%} of variance in the plane)", col=column)
    figure.update_yaxes(title_text="second component")
    near = {arm: _last(lab.table, arm, "proxy_a_distance").mean() for arm in PAIR}
    title = (f"Features of test images of seed {lab.seeds[0]}, written as their class. All seeds: a fresh classifier finds the "
             f"domains {near['source_only']:.2f} apart for source_only, {near['dann']:.2f} for dann (0 alike, 2 apart)")  # fmt: skip
    return style(figure, title, height=520)


# ---- two moons


def _regions(figure, net, task, at: dict, shown: bool) -> None:
    """Decision of the label head as ground colour, the domain head's border as a line, test points of both domains."""
    net, parts = _still(net), _parts(task)
    points = torch.cat([x for x, _ in parts.values()])
    (low_u, low_v), (high_u, high_v) = (points.amin(0) - 0.3).tolist(), (points.amax(0) + 0.3).tolist()
    u, v = np.linspace(low_u, high_u, 90), np.linspace(low_v, high_v, 90)
    grid = torch.tensor(np.stack(np.meshgrid(u, v), -1).reshape(-1, 2), dtype=torch.float32)
    with torch.no_grad():
        features = net["features"](grid)
        answer = net["label"](features).softmax(1)[:, 1].reshape(90, 90).numpy()
        told = net["domain"](features).reshape(90, 90).numpy()
    ground = [[0, faded(OTHERS[0], 0.45)], [0.5, "rgba(255,255,255,0)"], [1, faded(OTHERS[1], 0.45)]]
    figure.add_heatmap(x=u, y=v, z=answer, zmin=0, zmax=1, colorscale=ground, showscale=False, hoverinfo="skip", **at)
    figure.add_contour(x=u, y=v, z=told, contours={"start": 0, "end": 0, "coloring": "none"}, showscale=False, showlegend=False,
                       line={"color": INK, "width": 3, "dash": "dash"}, hoverinfo="skip", **at)  # fmt: skip
    for name, (x, y) in parts.items():
        for label in (0, 1):
            one, symbol = x[y == label], "circle" if name == "source" else "circle-open"
            marker = {"size": 6, "color": OTHERS[label], "symbol": symbol, "line": {"width": 1.2}}
            figure.add_scatter(x=one[:, 0].numpy(), y=one[:, 1].numpy(), mode="markers", marker=marker, showlegend=shown,
                               name=f"{name}, class {label}", **at)  # fmt: skip
    if shown:
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": INK, "dash": "dash", "width": 3},
                           name="domain head undecided", **at)  # fmt: skip


def two_moons(lab) -> go.Figure:
    """Decision regions and the domain head's border, before and after adaptation."""
    figure = make_subplots(1, 2, subplot_titles=PAIR, horizontal_spacing=0.08)
    runs, means = lab.arms["moons"].runs, {}
    for column, arm in enumerate(PAIR, 1):
        _regions(figure, runs[arm].members[0], runs[arm].tasks[0], {"row": 1, "col": column}, column == 1)
        means[arm] = _last(lab.table, "moons", f"{arm}: target_accuracy").mean()
    figure.update_xaxes(title_text="x").update_yaxes(title_text="y", col=1)
    title = (f"Two moons, the target turned by {35 * lab.params.severity:g} degrees: {means['source_only']:.2f} of the target is "
             f"right without adaptation, {means['dann']:.2f} with it (mean over seeds; drawn: seed {lab.seeds[0]})")  # fmt: skip
    return style(figure, title, height=500)


# ---- curves


def _curve(figure, rows, name: str, colour: str, at: dict, shown: bool, main: bool) -> None:
    middle = band(rows)
    x = middle.index.to_numpy()
    if main:
        figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[middle["high"], middle["low"][::-1]], fill="toself", line_width=0,
                           fillcolor=faded(colour, 0.2), hoverinfo="skip", showlegend=False, legendgroup=name, **at)  # fmt: skip
    pen = {"color": colour, "width": 3 if main else 1.5, "dash": "solid" if main else "dot"}
    figure.add_scatter(x=x, y=middle["mean"], mode="lines", line=pen, name=name, legendgroup=name, showlegend=shown, **at)


def training(lab) -> go.Figure:
    """Target accuracy, accuracy of the domain head, and lambda, over training."""
    metrics = {"target_accuracy": "target accuracy", "domain_accuracy": "domain head's accuracy"}
    figure = make_subplots(1, 3, subplot_titles=[*metrics.values(), "lambda of dann"], horizontal_spacing=0.11)
    palette, table = arm_colours(lab), lab.table
    for column, metric in enumerate(metrics, 1):
        for arm in [a for a in study.ARMS if a in lab.arms and ((table.arm == a) & (table.metric == metric)).any()]:
            rows = table[(table.arm == arm) & (table.metric == metric)]
            _curve(figure, rows, arm, palette[arm], {"row": 1, "col": column}, column == 1, arm in PAIR)
    steps = np.linspace(0, lab.arms["dann"].total, 101)
    lam = study.Dann(lab.params).strength(torch.from_numpy(steps / steps[-1])).numpy()
    figure.add_scatter(x=steps, y=lam, mode="lines", line={"color": palette["dann"], "width": 3}, showlegend=False, row=1, col=3)
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(range=[0, 1.02], title_text="share of test images", col=1)
    figure.update_yaxes(range=[0, 1.02], col=2).update_yaxes(title_text="lambda", rangemode="tozero", col=3)
    ends = {arm: {m: _last(table, arm, m).mean() for m in metrics} for arm in PAIR}
    title = (f"At the end dann is right on {ends['dann']['target_accuracy']:.2f} of the target and its domain head on "
             f"{ends['dann']['domain_accuracy']:.2f} of the images; source_only {ends['source_only']['target_accuracy']:.2f} "
             f"and {ends['source_only']['domain_accuracy']:.2f}")  # fmt: skip
    return style(figure, title, height=480)


# ---- settings


def settings(lab) -> go.Figure:
    """Target accuracy against lambda_max and against class_skew, with the interval over seeds."""
    table, p = lab.table, lab.params
    few = len(next(iter(lab.arms["sweep"].runs.values())).seeds)  # the same seeds at every setting
    main = {arm: _last(table, arm, "target_accuracy")[:few] for arm in PAIR}
    found = {name: _last(table, "sweep", f"{name}: target_accuracy") for name in lab.arms["sweep"].runs}
    strength = {0.0: main["source_only"], p.lambda_max: main["dann"]}
    strength |= {float(n.split("=")[1]): v for n, v in found.items() if n.startswith("lambda_max")}
    skews = {arm: {p.class_skew: main[arm]} for arm in PAIR}
    for name, values in found.items():
        if name.startswith("class_skew"):
            skew, arm = name.removeprefix("class_skew=").split()
            skews[arm][float(skew)] = values
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    _points(figure, strength, "dann", BLUE, {"row": 1, "col": 1}, False)
    for arm, colour in zip(PAIR, (GREY, BLUE), strict=True):
        _points(figure, skews[arm], arm, colour, {"row": 1, "col": 2}, True)
    figure.update_xaxes(title_text="lambda_max (0: source_only)", col=1)
    figure.update_xaxes(title_text="class_skew [share of the upper classes left out]", col=2)
    figure.update_yaxes(title_text="target accuracy [share of test images]", rangemode="tozero", col=1)
    best = max(strength, key=lambda v: strength[v].mean())
    ends = {skew: skews["dann"][skew].mean() - skews["source_only"][skew].mean() for skew in sorted(skews["dann"])}
    told = ", ".join(f"{skew:g}: {gain:+.2f}" for skew, gain in ends.items())
    title = f"{few} seeds: target accuracy is highest at lambda_max = {best:g}; the gain of dann by class_skew: {told}"
    return style(figure, title, height=460)


def _points(figure, values: dict[float, np.ndarray], name: str, colour: str, at: dict, shown: bool) -> None:
    x = sorted(values)
    mean = np.array([values[v].mean() for v in x])
    low, high = np.array([interval(values[v]) for v in x]).T
    figure.add_scatter(x=x, y=mean, mode="lines+markers", line={"color": colour, "width": 2.5}, name=name, showlegend=shown,
                       error_y={"array": high - mean, "arrayminus": mean - low, "color": colour}, **at)  # fmt: skip


def bound(lab) -> go.Figure:
    """Error on the target against proxy A-distance, a point a seed: the two sides of the bound that motivates the method."""
    figure, palette, table = go.Figure(), arm_colours(lab), lab.table
    found = {}
    for arm in [a for a in study.ARMS if a in lab.arms and ((table.arm == a) & (table.metric == "proxy_a_distance")).any()]:
        x, error = _last(table, arm, "proxy_a_distance"), 1 - _last(table, arm, "target_accuracy")
        figure.add_scatter(x=x, y=error, mode="markers", name=arm, marker={"color": palette[arm], "size": 8, "opacity": 0.75})
        found[arm] = x.mean()
    shown = np.concatenate([trace.x for trace in figure.data])
    figure.update_xaxes(range=[max(-0.05, shown.min() - 0.1), 2.03]).update_yaxes(range=[-0.02, 1.02])
    nearest = min(found, key=found.get)
    title = f"The closest domains, by a fresh classifier, are those of {nearest} ({found[nearest]:.2f} of 2 on average)"
    return style(figure, title, x="proxy A-distance of the features (0 alike, 2 apart)", y="error on the target [share]", height=440)


# ---- live views: one net of any arm, on the data of seed 0


def _task(params):
    return study.SourceOnly(params).bind(0)


def _suits(net, task) -> bool:
    try:
        with torch.no_grad():
            _still(net)["features"](_parts(task)["source"][0][:1])
    except (RuntimeError, KeyError):
        return False
    return True


def features(net, params) -> go.Figure:
    """Both domains on two principal components of the features."""
    task = _task(params)
    if not _suits(net, task):
        return style(go.Figure(), "This network takes other inputs than the present shift")
    figure = make_subplots(1, 1)
    share = _plane(figure, net, task, {"row": 1, "col": 1}, True)
    figure.update_xaxes(title_text="first component").update_yaxes(title_text="second component")
    return style(figure, f"Features of both domains, {share:.0%} of their variance in the plane")


def regions(net, params) -> go.Figure:
    """Decision regions on the moons with the domain head's border."""
    shape = domains(0, "moons", params.severity, params.class_skew, "8x8")
    task = study.SourceOnly(params)
    task.test_source, task.test_target = shape.test_source, shape.test_target
    if not _suits(net, task):
        return style(go.Figure(), "This network takes images; choose shift = moons to see decision regions")
    figure = make_subplots(1, 1)
    _regions(figure, net, task, {"row": 1, "col": 1}, True)
    figure.update_xaxes(title_text="x").update_yaxes(title_text="y")
    return style(figure, "Decisions of the label head (colours) and border of the domain head (dashed)", height=480)


def confusion(net, params) -> go.Figure:
    """True class against answer on source and on target."""
    task = _task(params)
    if not _suits(net, task):
        return style(go.Figure(), "This network takes other inputs than the present shift")
    net, parts, right = _still(net), _parts(task), []
    figure = make_subplots(1, 2, subplot_titles=list(parts), horizontal_spacing=0.1)
    for column, (x, y) in enumerate(parts.values(), 1):
        with torch.no_grad():
            answer = net["label"](net["features"](x)).argmax(1)
        classes = int(y.max()) + 1
        counts = torch.bincount(y * classes + answer, minlength=classes**2).reshape(classes, classes).numpy()
        right.append(counts.trace() / counts.sum())
        figure.add_heatmap(z=counts, colorscale="Cividis", showscale=False, texttemplate="%{z}", row=1, col=column)
    figure.update_xaxes(title_text="answer", dtick=1).update_yaxes(title_text="true class", dtick=1, autorange="reversed")
    return style(figure, f"Right answers: {right[0]:.0%} on the source, {right[1]:.0%} on the target", height=460)


def answer(net, params, value) -> dict[str, float]:
    """The share of each class that the label head gives to a drawing; ValueError where the shift has no images."""
    example = _task(params).source[0][0]
    if example.dim() != 3 or example.shape[1] != example.shape[2]:
        raise ValueError(f"with shift = {params.shift} the networks take no image")
    image = drawn(value, example.shape[1]).expand(1, *example.shape)
    shares = net["label"](net["features"](image)).softmax(1)[0]
    return {str(k): float(share) for k, share in enumerate(shares)}
