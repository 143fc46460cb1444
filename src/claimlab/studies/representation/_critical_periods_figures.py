"""Figures of the study critical-periods-linear. Each takes the finished lab; the titles say what was found, computed from it."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, bars, faded, images, style, thin
from claimlab.studies.representation import _critical_periods_data as data
from claimlab.studies.representation._critical_periods_method import DEFICITS, follow, slope

A, B = BLUE, OTHERS[3]  # the two pathways
SHADE = faded(OTHERS[0], 0.25)
DEPTH_COLOURS = {1: OTHERS[7], 2: OTHERS[1], 3: OTHERS[2], 4: BLUE, 5: OTHERS[0], 6: OTHERS[4], 7: OTHERS[5], 8: OTHERS[6]}
DASHES = {"linear": "solid", "relu": "dot", "tanh": "dashdot"}
STRONG, LATE = 10.0, 2.0


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; what the lab did not run is left out."""
    p = lab.params
    drawn = {"portrait": portrait(lab, p), "critical_period": critical_period(lab, p)}
    if {"early_depth4", "late_depth4"} & set(lab.arms):
        drawn["strengths"] = strengths_over_time(lab)
    if "long_pretrain" in lab.arms:
        drawn |= {"completion": completion(lab, p), "spectra": spectra(lab, p)}
    for metric, names in {"share_of_b": ("own_early", "own_late"), "completion_test_error": ("own_scratch", "own_pretrained")}.items():
        if ran := [n for n in names if n in lab.arms]:
            title = "Your own data: " + ", ".join(f"{n} {last(lab, n, metric).mean():.3g}" for n in ran)
            drawn["own"] = bars(lab.table, metric, arms=ran, title=title, y_title=metric.replace("_", " "))
    return drawn


def last(lab, arm: str, metric: str) -> np.ndarray:
    """The last value of each seed."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


# ---- the race


def path(p, depth: int, first: np.ndarray, onset, deficit: str, *, all_steps: bool = True):
    """K [T, 2, ..., P] of the strongest mode with a deficit from `onset` (number or array [O, 1]) convergence times, the step
    dt, and the deficit's first and last step. first [2, P] are the strengths at the start."""
    latest = max(2.0, float(np.max(onset))) + 1
    converged, half = p.time_to(0.99, depth), p.time_to(0.5, depth)
    time = latest * converged + p.duration * half
    steps = max(1000, math.ceil(time * depth * STRONG ** (2 - 2 / depth) / 1.5))
    dt = time / steps
    begin = np.round(np.asarray(onset) * converged / dt).astype(int)
    end = begin + math.ceil(p.duration * half / dt)
    gain, learns = DEFICITS[deficit]
    s = np.full(np.broadcast_shapes(begin.shape, first.shape[1:]), STRONG)
    start = first if s.ndim == 1 else first[:, None]
    return follow(start, s, depth, dt, steps, (begin, end), gain, learns, every=1 if all_steps else steps), dt, (begin, end)


def arrows(depth: int, n: int = 9) -> tuple[list, list, list, list]:
    """Directions of the undisturbed flow on a grid over [0, 1.05 s]^2: lines with gaps between them, and their tips."""
    grid = (np.arange(n) + 0.5) / n * 1.05 * STRONG
    k = np.stack(np.meshgrid(grid, grid))
    flow = depth * k ** (1 - 1 / depth) * slope(k ** (1 / depth), STRONG, depth)
    flow /= np.hypot(*flow)
    tips = k + flow * 0.55 * grid[0]
    tails = k - flow * 0.55 * grid[0]
    gaps = np.full(k[0].size, None)
    x, y = (np.stack([tails[i].ravel(), tips[i].ravel(), gaps], 1).ravel().tolist() for i in (0, 1))
    return x, y, tips[0].ravel().tolist(), tips[1].ravel().tolist()


def portrait(lab, p) -> go.Figure:
    """Phase portraits of the strongest mode: early deficit on top, late below, a column for each depth."""
    depths = sorted({2, 3, p.depth})
    names = [f"depth {d}" for d in depths]
    fig = make_subplots(2, len(depths), subplot_titles=names, horizontal_spacing=0.04, vertical_spacing=0.06, shared_xaxes=True,
                        shared_yaxes=True)  # fmt: skip
    first, shares = data.first_strengths(lab.seeds[0], p.init, p.pairs), {}
    for column, depth in enumerate(depths, 1):
        for row, onset in enumerate((p.onset, LATE), 1):
            k, _, (begin, end) = path(p, depth, first, onset, p.deficit)
            shares[depth, row] = float((k[-1, 1] / k[-1].sum(0)).mean())
            _portrait_panel(fig, k, int(begin), int(end), depth, row, column, legend=row == column == 1)
    for arm, row in (("early_depth2", 1), ("early_depth4", 1), ("late_depth4", 2)):
        if arm in lab.arms:
            run = lab.arms[arm]
            dots = np.stack([k[:, 0, 0, 0] for k in run.records.values()])
            fig.add_scatter(x=dots[:, 0], y=dots[:, 1], mode="markers", marker={"color": INK, "size": 5}, name="trained matrices",
                            showlegend=arm == "early_depth4", row=row, col=depths.index(run.depth) + 1)  # fmt: skip
    said = " and ".join(f"{shares[depths[0], row]:.2f} at depth {depths[0]}, {shares[depths[-1], row]:.2f} at depth {depths[-1]} "
                        f"({word})" for row, word in ((1, "early"), (2, "late")))  # fmt: skip
    style(fig, f"Mean final share of pathway b, {p.pairs} pairs of seed {lab.seeds[0]}: {said}", height=620)
    fig.update_xaxes(range=[-0.2, 1.05 * STRONG]).update_yaxes(range=[-0.2, 1.05 * STRONG])
    for column in range(1, len(depths) + 1):
        fig.update_xaxes(title_text="strength of pathway a", row=2, col=column)
    for row, word in ((1, "early deficit"), (2, "late deficit")):
        fig.update_yaxes(title_text=f"{word}<br>strength of pathway b", row=row, col=1)
    return fig.update_layout(margin_b=110)


def _portrait_panel(fig, k, begin: int, end: int, depth: int, row: int, col: int, *, legend: bool) -> None:
    x, y, tip_x, tip_y = arrows(depth)
    place = {"row": row, "col": col}
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": faded(GREY, 0.55), "width": 1}, name="flow, dots ahead", hoverinfo="skip",
                    showlegend=legend, connectgaps=False, **place)  # fmt: skip
    fig.add_scatter(x=tip_x, y=tip_y, mode="markers", marker={"color": faded(GREY, 0.8), "size": 3}, hoverinfo="skip",
                    showlegend=False, **place)  # fmt: skip
    fig.add_scatter(x=[0, STRONG], y=[STRONG, 0], mode="lines", line={"color": INK, "dash": "dash", "width": 1.5},
                    name="target: a + b = s", showlegend=legend, **place)  # fmt: skip
    keep = np.unique(np.r_[np.linspace(0, len(k) - 1, 150).astype(int), np.linspace(begin, end, 10).astype(int)].clip(0, len(k) - 1))
    for name, colour, some in (("undisturbed learning", A, keep), ("deficit of b", B, keep[(keep >= begin) & (keep <= end)])):
        if end == begin and colour == B:
            continue
        x, y = (np.concatenate([[*k[some, i, j], None] for j in range(k.shape[2])]).tolist() for i in (0, 1))
        look = {"mode": "lines", "line": {"color": colour, "width": 1.2}}
        if colour == B:  # a short stretch, so that its ends are marked
            look = {"mode": "lines+markers", "line": {"color": colour, "width": 3}, "marker": {"color": colour, "size": 4}}
        fig.add_scatter(x=x, y=y, **look, name=name, showlegend=legend, connectgaps=False, hoverinfo="skip", **place)  # fmt: skip


def critical_period(lab, p) -> go.Figure:
    """Final share of b against the onset of the deficit, by the equation; trained matrices as dots."""
    onsets = np.unique(np.r_[np.linspace(0, 0.5, 5), np.linspace(0.6, 1.2, 13), 1.6, LATE, 2.2, p.onset])
    first = np.concatenate([data.first_strengths(seed, p.init, p.pairs) for seed in lab.seeds], 1)
    fig, told = go.Figure(), {}
    second = "blocked" if p.deficit != "blocked" else "frozen"
    for depth in sorted({2, 3, p.depth}):
        for deficit, dash in ((p.deficit, "solid"), (second, "dot")):
            k = path(p, depth, first, onsets[:, None], deficit, all_steps=False)[0][-1]
            share = (k[1] / k.sum(0)).mean(1)
            told[depth, deficit] = share
            fig.add_scatter(x=onsets, y=share, mode="lines", line={"color": DEPTH_COLOURS[depth], "dash": dash, "width": 2.5},
                            name=f"depth {depth}, {deficit}")  # fmt: skip
    for arm in ("early_depth4", "late_depth4", "early_depth2", "early_blocked", "late_blocked"):
        if arm in lab.arms:
            y, depth = last(lab, arm, "share_of_b"), lab.arms[arm].depth
            onset, open_mark = (LATE if "late" in arm else p.onset), "blocked" in arm and p.deficit != "blocked"
            x = onset + 0.012 * (np.arange(len(y)) - (len(y) - 1) / 2)
            look = {"color": DEPTH_COLOURS[depth], "size": 8, "symbol": "circle-open" if open_mark else "circle"}
            fig.add_scatter(x=x, y=y, mode="markers", name=f"trained{', blocked' if open_mark else ''}, a dot a seed", marker=look,
                            showlegend=arm.startswith("early") and depth == p.depth)  # fmt: skip
    said = ", ".join(f"{told[d, p.deficit][0]:.2f} to {told[d, p.deficit][-1]:.2f} at depth {d}" for d in sorted({2, 3, p.depth}))
    style(fig, f"Share of b from the earliest to the latest onset ({p.deficit}): {said}", height=460,
          x="onset of the deficit (convergence times)", y="final share of pathway b")  # fmt: skip
    return fig.update_yaxes(range=[-0.03, 0.8]).update_layout(margin_b=130)


def strengths_over_time(lab) -> go.Figure:
    """Strengths of all modes in both pathways, first seed and pair: the equation as lines, trained matrices as dots."""
    names = [n for n in ("early_depth4", "late_depth4") if n in lab.arms]
    fig = make_subplots(1, len(names), subplot_titles=[n.split("_")[0] + " deficit" for n in names], shared_yaxes=True,
                        horizontal_spacing=0.04)  # fmt: skip
    for column, name in enumerate(names, 1):
        _pathways(fig, lab.arms[name].members[0], row=1, col=column)
    worst = max(last(lab, n, "max_relative_deviation").max() for n in names)
    style(fig, f"Trained matrices lie on the lines of the equation: at most {worst:.1%} of a target off", height=440,
          x="time (step size times steps)")  # fmt: skip
    fig.update_yaxes(title_text="strength K of a mode", col=1)
    return fig.update_layout(margin_b=110)


def _pathways(fig, net, **place) -> None:
    t, fine = net.steps * net.dt, place.get("col", 1) == 1
    for i, (name, colour) in enumerate((("pathway a", A), ("pathway b", B))):
        for m in range(net.measured.shape[2]):
            fade = 1.0 - 0.5 * m / max(1, net.measured.shape[2] - 1)
            common = {"showlegend": m == 0 and fine, "opacity": fade, **place}
            x, y = thin(net.theory_steps * net.dt, net.theory[:, i, m], 300)
            fig.add_scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 1.5}, name=f"{name}, equation",
                            **common)  # fmt: skip
            fig.add_scatter(x=t, y=net.measured[:, i, m], mode="markers", marker={"color": colour, "size": 5}, name=f"{name}, trained",
                            hovertemplate=f"s = {net.s[m]:.3g}: %{{y:.3g}}<extra></extra>", **common)  # fmt: skip
    if net.window[1] > net.window[0]:  # after the traces: plotly draws no rectangle into an empty panel
        mark = {"annotation_text": "deficit", "annotation_position": "top left", "annotation_font_color": INK}
        fig.add_vrect(x0=net.window[0] * net.dt, x1=net.window[1] * net.dt, fillcolor=SHADE, line_width=0, layer="below", **mark, **place)


# ---- completion


def lengths(lab) -> dict[tuple[int, str], dict[int, str]]:
    """Arms of completion by (depth, shape of the layers) and by length of pre-training in steps."""
    found: dict[tuple[int, str], dict[int, str]] = {}
    for name, arm in lab.arms.items():
        if hasattr(arm, "switch") and not name.startswith("own"):
            found.setdefault((arm.depth, arm.shape), {})[arm.switch] = name
    return dict(sorted(found.items()))


def completion(lab, p) -> go.Figure:
    """Final test error against the length of pre-training, a line a depth; mean, 95 % interval and a dot a seed."""
    fig, rise = go.Figure(), {}
    for place, ((depth, shape), arms) in enumerate(lengths(lab).items()):
        label = f"depth {depth}" if shape == "linear" else f"depth {depth}, {shape}"
        each = {length: last(lab, name, "completion_test_error") for length, name in sorted(arms.items())}
        if depth == 1:  # it never learns anything about an unknown entry
            each = {0: each[max(each)], **each}
        ends = {x: interval(y) for x, y in each.items()}
        means = {x: y.mean() for x, y in each.items()}
        rise[label] = means[max(means)] - means[min(means)]
        error = {"array": [ends[x][1] - means[x] for x in each], "arrayminus": [means[x] - ends[x][0] for x in each], "width": 4}
        colour = DEPTH_COLOURS[depth]
        fig.add_scatter(x=list(means), y=list(means.values()), mode="lines+markers", error_y=error, name=label,
                        line={"color": colour, "width": 2.5, "dash": DASHES.get(shape if depth > 1 else "", "dash")})  # fmt: skip
        aside = 0.008 * max(1, p.switch) * (place + 1)
        for x, y in each.items():
            fig.add_scatter(x=[x + aside] * len(y), y=y, mode="markers", marker={"color": colour, "size": 5}, opacity=0.6,
                            showlegend=False, hoverinfo="y")  # fmt: skip
    said = ", ".join(f"{r:+.3f} at {label}" for label, r in rise.items())
    return style(fig, f"Test error after the longest pre-training minus from scratch: {said}", height=460,
                 x="steps on the first matrix", y="mean squared error on unknown entries")  # fmt: skip


def spectra(lab, p) -> go.Figure:
    """Singular values of W at the switch and at the end, with and without a first task; means over seeds, first matrices."""
    by_depth = {depth: arms for (depth, shape), arms in lengths(lab).items() if depth in (2, 3) and shape == "linear"}
    fig = make_subplots(1, len(by_depth), subplot_titles=[f"depth {d}" for d in by_depth], shared_yaxes=True, horizontal_spacing=0.04)
    tails = {}
    for column, (depth, arms) in enumerate(by_depth.items(), 1):
        long, scratch = (lab.arms[arms[pick(arms)]] for pick in (max, min))
        truth = np.linalg.svd(long.tasks_[1][:: long.count].numpy(), compute_uv=False)
        curves = {
            "at the switch": (long.records[long.switch], B, "dash"),
            "at the end, with a first task": (long.records[long.total], B, "solid"),
            "at the end, from scratch": (scratch.records[scratch.total], A, "solid"), "the second matrix itself": (truth, INK, "dot"),
        }  # fmt: skip
        r = p.rank_second
        tails[depth] = [float(curves[n][0][:, r:].sum(1).mean()) for n in ("at the end, with a first task", "at the end, from scratch")]
        for name, (values, colour, dash) in curves.items():
            mean = values.mean(0)[:12]
            mean = np.where(mean > 1e-3, mean, np.nan)
            fig.add_scatter(x=np.arange(1, len(mean) + 1), y=mean, mode="lines+markers", name=name, showlegend=column == 1,
                            line={"color": colour, "dash": dash}, row=1, col=column)  # fmt: skip
    said = ", ".join(f"{a:.1f} against {b:.1f} at depth {d}" for d, (a, b) in tails.items())
    title = f"Singular values beyond rank {p.rank_second} at the end, summed, with a first task against from scratch: {said}"
    style(fig, title, height=460, x="rank of the singular value")
    fig.update_yaxes(type="log", title_text="singular value", col=1, dtick=1, exponentformat="power")
    fig.update_yaxes(type="log", col=2, dtick=1)
    return fig.update_layout(margin_b=110)


# ---- views


def _other(what: str) -> go.Figure:
    fig = go.Figure().add_annotation(text=what, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return style(fig, what, height=200).update_xaxes(visible=False).update_yaxes(visible=False)


def pathway_view(net, params) -> go.Figure:
    """Strengths of both pathways over time, the period of the deficit shaded."""
    if not hasattr(net, "theory"):
        return _other("This arm has no two pathways: it completes a matrix")
    fig = make_subplots(1, 1)
    _pathways(fig, net, row=1, col=1)
    k = net.measured[-1, :, 0]
    return style(fig, f"Strongest mode: {k[0]:.2f} in pathway a, {k[1]:.2f} in pathway b", x="time", y="strength K of a mode")


def matrix_view(net, params) -> go.Figure:
    """The recovered matrix, the true one, and what was known of it."""
    if not hasattr(net, "truth"):
        return _other("This arm completes no matrix: it runs the race of two pathways")
    truth, out, known = (x.cpu().numpy() for x in (net.truth, net.out, net.known))
    error = float(((out - truth) ** 2)[net.asked.cpu().numpy()].mean())
    shown = [np.where(known, truth, np.nan), out, truth]
    return images(shown, ["known entries", "recovered", "second matrix"], title=f"Mean squared error on the entries asked for: {error:.2f}",
                  columns=3, scale="RdBu", symmetric=True)  # fmt: skip
