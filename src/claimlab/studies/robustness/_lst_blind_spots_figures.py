"""Figures and live views of the study `lst-blind-spots`."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab import figures as draw
from claimlab.figures import INK, colours, faded, style
from claimlab.studies.robustness import _lst_blind_spots_method as method
from claimlab.studies.robustness import lst_blind_spots as study

WALKS = [name for name, spec in study.ARMS.items() if isinstance(spec, study.Walker)]
COLOURS = colours(WALKS, "straight_line", "lst")
ALBUM = {"straight_line": "straight line", "penalty_descent": "penalty descent", "lst": "lst, standard", "lst_robust": "lst, robust"}
DISTANCE = "relative distance to the target"
CONFIDENCE = "confidence in the first answer"
FILM_STEPS = 20  # of the short walk that a view takes by itself


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    here = set(lab.arms)
    walked = [name for name in WALKS if name in here]
    found = {"walks": walks(lab, walked), "where they end": ends(lab, walked)} if walked else {}
    if set(ALBUM) <= here:
        found = {"blind spots": album(lab)} | found
    if {"straight_line", "lst", "lst_robust"} <= here:
        found["triangles"] = triangles(lab)
    if {"lst", "lst_robust"} <= here:
        found |= {"segments": segments(lab), "training radius": radius(lab)}
    return found


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of a metric, a number a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step")
    return rows.groupby("seed")["value"].last().to_numpy()


# ---- figures


def photo(flat, shape) -> go.Image:
    """A flattened picture, grey or in colour; pixels beyond the range are shown at its ends."""
    pixels = (flat.view(*shape).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return go.Image(z=np.broadcast_to(pixels, (3, *shape[1:])).transpose(1, 2, 0), hoverinfo="skip")


def answer(net, flat) -> str:
    """What a network says of a picture, and how sure it is."""
    with torch.no_grad():
        sure, said = net(flat[None]).softmax(1).max(1)
    return f"<b>{said.item()}</b> ({sure.item():.0%})"


def album(lab) -> go.Figure:
    """Three pairs of the first seed: source, target, and where four walks end, each with its own network's answer."""
    count, arms = min(3, lab.params.pairs), {name: lab.arms[name] for name in ALBUM}
    first = arms["lst"].walks[0]
    net = arms["lst"].members[0].net
    columns = {"source": (net, first.source), "target": (net, first.target)}
    columns |= {label: (arms[name].members[0].net, arms[name].walks[0].x) for name, label in ALBUM.items()}
    titles = [f"{label}<br>{answer(one, x[k])}" for k in range(count) for label, (one, x) in columns.items()]
    figure = make_subplots(count, 6, subplot_titles=titles, horizontal_spacing=0.015, vertical_spacing=0.13)
    for k in range(count):
        for column, (_, x) in enumerate(columns.values(), 1):
            figure.add_trace(photo(x[k], arms["lst"].members[0].shape), row=k + 1, col=column)
    figure.update_xaxes(visible=False).update_yaxes(visible=False).update_annotations(font_size=11)
    gone = {name: 1 - float(arms[name].walks[0].left()[:count].mean()) for name in ("straight_line", "lst", "lst_robust")}
    title = (f"Of the way to these targets the straight line covers {gone['straight_line']:.0%}, level-set traversal {gone['lst']:.0%} "
             f"on the standard and {gone['lst_robust']:.0%} on the robust network (seed {lab.seeds[0]})")  # fmt: skip
    return style(figure, title, height=150 + 165 * count).update_layout(margin=dict(t=120, l=10, r=10, b=10))


def walks(lab, arms) -> go.Figure:
    """Distance and confidence over the steps, mean of pairs and seeds."""
    figure = make_subplots(1, 2, horizontal_spacing=0.13)
    for arm in arms:
        for column, metric in enumerate(("relative_distance", "confidence"), 1):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("step")["value"].mean()
            pen = dict(color=COLOURS[arm], width=3 if arm in ("lst", "straight_line", "lst_robust") else 1.6)
            figure.add_scatter(x=rows.index, y=rows, mode="lines", line=pen, name=arm, legendgroup=arm, showlegend=column == 1,
                               row=1, col=column)  # fmt: skip
    top = max(1.02, 1.02 * lab.table[lab.table.arm.isin(arms) & (lab.table.metric == "relative_distance")]["value"].max())
    figure.update_xaxes(title_text="walk step").update_yaxes(range=[0, top], col=1).update_yaxes(range=[0, 1.02], col=2)
    figure.update_yaxes(title_text=f"{DISTANCE} [1 at the source]", col=1).update_yaxes(title_text=f"{CONFIDENCE} [mean]", col=2)
    left = {arm: last(lab, arm, "relative_distance").mean() for arm in arms}
    nearest = min(left, key=left.get)
    rest = ", ".join(f"{arm} {left[arm]:.2f}" for arm in ("lst", "straight_line") if arm in left and arm != nearest)
    title = f"Nearest to its targets ends {nearest} ({left[nearest]:.2f} of the way is left)" + (f"; {rest}" if rest else "")
    return style(figure, title, height=520).update_layout(margin_b=130)


def ends(lab, arms) -> go.Figure:
    """Relative distance at the end of every walk."""
    left = {arm: last(lab, arm, "relative_distance").mean() for arm in arms}
    said = ", ".join(f"{arm} {left[arm]:.2f}" for arm in ("straight_line", "penalty_descent", "lst") if arm in left)
    figure = draw.bars(lab.table, "relative_distance", arms=arms, title=f"What is left of the way: {said}", y_title=DISTANCE,
                       palette=COLOURS, names={arm: arm.replace("_", "<br>") for arm in arms})  # fmt: skip
    return figure.update_xaxes(tickangle=0, tickfont_size=11)


def sureness(member, points):
    """Confidence in the first answer at `points` [K, D], against all classes or against the member's rival: [K]."""
    with torch.no_grad():
        logits = member.net(points)
    if member.rival is not None:
        return logits[:, [member.label, member.rival]].softmax(1)[:, 0]
    return logits.softmax(1)[:, member.label]


def plane(member):
    """The plane of a member's triangle: its source, two unit vectors [D], and the outline [4, 2] in their coordinates, which
    are Euclidean lengths. None where the triangle has no area."""
    a, b, c = member.corners.double()
    u, v = b - a, c - a
    along = u / u.norm().clamp_min(1e-12)
    height = v - (v @ along) * along
    if u.norm() < 1e-6 or height.norm() < 1e-6:
        return None
    outline = np.array([[0, 0], [float(u.norm()), 0], [float(v @ along), float(height.norm())], [0, 0]])
    return a, along, height / height.norm(), outline


def frame(outlines) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of a window in which all outlines [4, 2] lie, with some room."""
    corners = np.concatenate(outlines)
    (left, low), (right, high) = corners.min(0), corners.max(0)
    room = 0.15 * max(right - left, high - low)
    return left - room, right + room, low - room, high + room


def heat(figure, member, seen, window, col: int, names, side: int = 41) -> None:
    """Confidence in the window of a plane, with the triangle drawn in."""
    a, along, up, outline = seen
    x, y = np.linspace(*window[:2], side), np.linspace(*window[2:], side)
    right, top = (torch.from_numpy(part).to(a)[..., None] for part in np.meshgrid(x, y))
    points = (a + right * along + top * up).flatten(0, 1).float()
    z = sureness(member, points).view(side, side).cpu().numpy()
    figure.add_heatmap(x=x, y=y, z=z, zmin=0, zmax=1, colorscale="Cividis", showscale=col == 1, row=1, col=col,
                       hovertemplate="%{z:.2f}<extra></extra>", colorbar=dict(title="confidence", len=0.9))  # fmt: skip
    places = ["bottom right", "bottom center", "top center", "top center"]
    figure.add_scatter(x=outline[:, 0], y=outline[:, 1], mode="lines+markers+text", line=dict(color="#D55E00", width=2),
                       text=[*names, ""], textposition=places, textfont=dict(color="#D55E00"),
                       showlegend=False, hoverinfo="skip", row=1, col=col)  # fmt: skip
    figure.update_xaxes(range=window[:2], constrain="domain", row=1, col=col)
    figure.update_yaxes(range=window[2:], scaleanchor=f"x{col}" if col > 1 else "x", constrain="domain", row=1, col=col)


def triangles(lab) -> go.Figure:
    """Confidence in the plane of source and two ends, first source of the first seed, three walks at one scale."""
    arms = ("straight_line", "lst", "lst_robust")
    figure = make_subplots(1, 3, subplot_titles=[arm.replace("_", " ") for arm in arms], horizontal_spacing=0.08)
    found = {arm: plane(lab.arms[arm].members[0]) for arm in arms}
    known = {arm: seen for arm, seen in found.items() if seen is not None}
    for column, arm in enumerate(arms, 1):
        if arm in known:
            window = frame([seen[3] for seen in known.values()])
            heat(figure, lab.arms[arm].members[0], known[arm], window, column, ("source", "1", "2"))
    figure.update_xaxes(title_text="distance [pixel values]").update_yaxes(title_text="distance [pixel values]", col=1)
    size = {arm: last(lab, arm, "hull_confident_area").mean() for arm in arms}
    title = (f"Confident share of the triangle source, target 1, target 2, by area: straight line {size['straight_line']:.2f}, "
             f"lst {size['lst']:.2f}, lst on the robust network {size['lst_robust']:.2f}; shown is one source")  # fmt: skip
    return style(figure, title, height=400)


def segments(lab) -> go.Figure:
    """Confidence along straight segments: mean and the range from the 10th to the 90th percentile of all pairs and seeds."""
    figure = make_subplots(1, 2, subplot_titles=("standard network", "robust network"), horizontal_spacing=0.1)
    shares = {}
    for column, arm in enumerate(("lst", "lst_robust"), 1):
        found = {"source to target": [], "source to blind spot": [], "blind spot to blind spot": []}
        for walk in lab.arms[arm].walks:
            n = lab.params.pairs
            s, a, b, t = walk.source[:n], walk.x[:n], walk.x[n:], walk.target[:n]
            for name, (one, other) in zip(found, ((s, t), (s, a), (a, b)), strict=True):
                found[name].append(method.sureness(walk.odds, method.segment(one, other)).cpu().numpy())
        for (name, rows), colour in zip(found.items(), (draw.GREY, draw.BLUE, draw.OTHERS[0]), strict=True):
            rows, t = np.concatenate(rows), np.linspace(0, 1, 21)
            low, high = np.quantile(rows, (0.1, 0.9), axis=0)
            figure.add_scatter(x=np.r_[t, t[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(colour, 0.18),
                               line_width=0, hoverinfo="skip", showlegend=False, legendgroup=name, row=1, col=column)  # fmt: skip
            figure.add_scatter(x=t, y=rows.mean(0), mode="lines", line=dict(color=colour, width=2.8), name=name, legendgroup=name,
                               showlegend=column == 1, row=1, col=column)  # fmt: skip
        shares[arm] = last(lab, arm, "path_share_confident").mean()
    figure.update_xaxes(title_text="share of the way").update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text=CONFIDENCE, col=1)
    title = (f"Between source and blind spot {shares['lst']:.0%} of the points keep the tolerance on the standard network, "
             f"{shares['lst_robust']:.0%} on the robust one")  # fmt: skip
    return style(figure, title, height=440)


def radius(lab) -> go.Figure:
    """Relative distance and the confidence in the sources against the radius of adversarial training."""
    metrics = {"relative_distance": f"{DISTANCE}", "confidence_source": "confidence in the sources"}
    points = [(r, m, seed, value) for arm, r in (("lst", 0.0), ("lst_robust", lab.params.pgd_radius)) for m in metrics
              for seed, value in zip(lab.seeds, last(lab, arm, m), strict=True)]  # fmt: skip
    if "radii" in lab.arms:
        wide = lab.table[lab.table.arm == "radii"].pivot_table(index=["step", "seed"], columns="metric", values="value")
        points += [(row.radius, m, seed, row[m]) for (_, seed), row in wide.iterrows() for m in metrics]
    figure, means = make_subplots(1, 2, horizontal_spacing=0.13), {}
    for column, (metric, label) in enumerate(metrics.items(), 1):
        mine = sorted((r, value) for r, m, _, value in points if m == metric)
        means[metric] = {r: np.mean([v for q, v in mine if q == r]) for r, _ in mine}
        figure.add_scatter(x=[r for r, _ in mine], y=[v for _, v in mine], mode="markers", name="a seed", showlegend=column == 1,
                           marker=dict(size=7, color=draw.BLUE, opacity=0.5), row=1, col=column)  # fmt: skip
        figure.add_scatter(x=list(means[metric]), y=list(means[metric].values()), mode="lines", name="mean", showlegend=column == 1,
                           line=dict(color=draw.BLUE, width=2.8), row=1, col=column)  # fmt: skip
        top = max(1.02, 1.05 * max(value for _, value in mine))
        figure.update_yaxes(title_text=label, range=[0, top], row=1, col=column)
    figure.update_xaxes(title_text="training radius [share of the pixel range]")
    left, sure = (list(means[m].items()) for m in metrics)
    title = (f"From radius {left[0][0]:g} to {left[-1][0]:g} the distance left goes from {left[0][1]:.2f} to {left[-1][1]:.2f}, the "
             f"confidence in the sources from {sure[0][1]:.2f} to {sure[-1][1]:.2f}")  # fmt: skip
    return style(figure, title, height=420)


# ---- live views: a network of any arm, with what its walks have found


def walked(net, params) -> study.Walked:
    """A walk arm's member as it is; for the networks themselves a short walk of the standard one, on the data of seed 0."""
    if isinstance(net, study.Walked):
        return net
    path = study.os.environ.get("CLAIMLAB_DATA", "")
    found = study.load(0, params.side, params.colour, path)
    x, y = (part.to(next(net.parameters()).device) for part in found.test)
    drawn = study.pairs([net["standard"]], x[:100], y[:100], 2, np.random.default_rng(0))
    source, target = drawn.source[:1].repeat(2), torch.stack([drawn.first[0], drawn.second[0]])
    eta = 1 - (1 - params.eta) ** (params.walk_steps / FILM_STEPS)  # as far as the whole walk would come
    walk = method.Traversal(method.odds_against(net["standard"], y[source]), x[source], x[target], params.delta, eta, params.eps)
    member = study.Walked(net["standard"], found.shape, int(y[source[0]]))
    for step in range(FILM_STEPS + 1):
        member.film.append((step, walk.x[0].clone(), float(walk.sure[0]), float(walk.left()[0])))
        walk.advance()
    member.corners = torch.stack([walk.source[0], *walk.x])
    return member


def film(net, params, frames: int = 8) -> go.Figure:
    """The first walk of this member: pictures on the way, confidence and distance below."""
    member = walked(net, params)
    if not member.film:
        return style(go.Figure(), "The walk has not begun")
    shown = np.unique(np.linspace(0, len(member.film) - 1, frames).round().astype(int))
    titles = [f"step {member.film[k][0]}<br>{answer(member.net, member.film[k][1])}" for k in shown]
    specs = [[{}] * len(shown), [{"colspan": len(shown)}] + [None] * (len(shown) - 1)]
    figure = make_subplots(2, len(shown), specs=specs, subplot_titles=[*titles, ""], row_heights=[0.35, 0.65],
                           horizontal_spacing=0.01, vertical_spacing=0.08)  # fmt: skip
    for column, k in enumerate(shown, 1):
        figure.add_trace(photo(member.film[k][1], member.shape), row=1, col=column)
    figure.update_xaxes(visible=False, row=1).update_yaxes(visible=False, row=1).update_annotations(font_size=11)
    steps, _, sure, left = zip(*member.film, strict=True)
    for values, name, colour in ((sure, "confidence", draw.BLUE), (left, "distance to the target", draw.OTHERS[0])):
        figure.add_scatter(x=steps, y=values, mode="lines+markers", marker_size=4, line_color=colour, name=name, row=2, col=1)
    figure.add_hline(y=sure[0] - params.delta, line=dict(color=INK, dash="dash", width=1), row=2, col=1)
    figure.update_xaxes(title_text="walk step", row=2, col=1).update_yaxes(range=[0, 1.02], title_text="share", row=2, col=1)
    title = f"After {steps[-1]} steps {left[-1]:.0%} of the way is left; confidence in {member.words}: {sure[0]:.2f}, now {sure[-1]:.2f}"
    return style(figure, title, height=470).update_layout(margin_t=100)


def over_triangle(net, params) -> go.Figure:
    """Confidence over the triangle of the first source and what has been reached towards its two targets."""
    member = walked(net, params)
    seen = None if member.corners is None else plane(member)
    if seen is None:
        return style(go.Figure(), "No triangle yet, or an arm that walks to one target only")
    figure = make_subplots(1, 1)
    heat(figure, member, seen, frame([seen[3]]), 1, ("source", "blind spot 1", "blind spot 2"), 25)
    inner = method.triangle(*member.corners[:, None])[0]
    sure = sureness(member, inner)
    title = f"Over the triangle confidence in {member.words} lies between {sure.min():.2f} and {sure.max():.2f}"
    return style(figure, title, x="distance [pixel values]", y="distance [pixel values]", height=430)
