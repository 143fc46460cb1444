"""Drawing for the study of variance between runs: the figures of a finished experiment, own matrices, and the live views."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import beta

from claimlab.figures import BLUE, GREY, INK, OTHERS, bars, colours, curve, faded, style
from claimlab.studies.training import calibrated_chaos as study

SOURCES = ("all_sources", "init_only", "order_only", "augment_only", "one_weight")
COLOURS = colours(list(study.ARMS), "all_sources", "order_only") | {"short": OTHERS[0], "binary": OTHERS[1]}
ORANGE, GREEN = OTHERS[3], OTHERS[1]


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    drawn = {
        "luck or quality": (histograms, ("all_sources", "binary")), "halves": (halves, ("short", "all_sources")),
        "share over training": (shares, ("short", "all_sources")), "sources": (sources, ("all_sources", "one_weight")),
        "nudged twins": (twins, ("one_weight",)), "calibration": (votes, ("binary",)), "simulated": (check, ("synthetic",)),
        "sweep": (sweep, ("width_16", "all_sources")),
    }  # fmt: skip
    return {name: draw(lab) for name, (draw, needs) in drawn.items() if set(needs) <= set(lab.arms)}


# ---- what the figures share


def _right(lab, arm: str) -> list[np.ndarray]:
    """The matrices c [R, n] of an arm, one a seed."""
    return [net.right() for net in lab.arms[arm].members]


def _last(lab, arm: str, metric: str) -> np.ndarray:
    """Values of the last step, one a seed."""
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows[rows.step == rows.step.max()].sort_values("seed")["value"].to_numpy()


def _spread(values: list[np.ndarray]) -> np.ndarray:
    """Accuracies of several ensembles as percentage points around the mean of each, in one array."""
    return 100 * np.concatenate([v - v.mean() for v in values])


def _histogram(figure, matrices: list[np.ndarray], sd: float | None, at: dict, legend: bool) -> None:
    """Observed runs as bars, independent coins as a stepped line, a normal curve of width `sd` [points] as a dashed one.

    Accuracies are multiples of 1 / n, so that a bin is a whole number of such steps wide: others would hold now two, now three.
    """
    observed, simulated = _spread([c.mean(1) for c in matrices]), _spread(_coins(matrices))
    n = matrices[0].shape[1]
    reach = max(np.abs(observed).max(), 3.5 * simulated.std(), 3.5 * (sd or 0), 0.05)
    width = 100 / n * max(1, round(reach / 14 / (100 / n)))
    edges = width * (np.arange(-math.ceil(reach / width) - 1, math.ceil(reach / width) + 1) + 0.5)
    middle = (edges[1:] + edges[:-1]) / 2
    heights = [np.histogram(v, edges)[0] / len(v) / width for v in (observed, simulated)]
    figure.add_bar(x=middle, y=heights[0], width=width, marker_color=faded(BLUE, 0.55), name="runs", showlegend=legend, **at)
    figure.add_scatter(x=middle, y=heights[1], mode="lines", line=dict(color=INK, width=2, shape="hvh"),
                       name="independent coins", showlegend=legend, **at)  # fmt: skip
    if sd:
        x = np.linspace(-reach, reach, 200)
        y = np.exp(-0.5 * (x / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        figure.add_scatter(x=x, y=y, mode="lines", line=dict(color=ORANGE, width=2.5, dash="dash"),
                           name="normal curve of variance err / (2n)", **at)  # fmt: skip
    figure.update_xaxes(title_text="run minus mean of its split [points]", **at)


def _cloud(figure, matrices: list[np.ndarray], colour: str, at: dict, name: str) -> float:
    """A dot a run: accuracy on one random half of the test set against the other, around the mean of each split. The
    correlation over all dots."""
    pairs = []
    for k, c in enumerate(matrices):
        order, half = np.random.default_rng(k).permutation(c.shape[1]), c.shape[1] // 2
        pairs.append([100 * (v - v.mean()) for v in (c[:, order[:half]].mean(1), c[:, order[half : 2 * half]].mean(1))])
    x, y = np.concatenate(pairs, axis=1)
    marker = dict(color=faded(colour, 0.5), size=6)
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, showlegend=False, hoverinfo="skip", **at)
    reach = 1.08 * max(np.abs(x).max(), np.abs(y).max(), 0.05)
    figure.update_xaxes(range=[-reach, reach], title_text="first half [points]", **at)
    figure.update_yaxes(range=[-reach, reach], title_text="second half [points]", **at)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else math.nan


def _coins(matrices: list[np.ndarray]) -> list[np.ndarray]:
    return [study.independent_errors(c, np.random.default_rng((k, 1))) for k, c in enumerate(matrices)]


# ---- figures of the experiment


def histograms(lab) -> go.Figure:
    """Key figure: accuracies of all runs against independent coins, and for two classes against err / (2n)."""
    figure = make_subplots(1, 2, subplot_titles=("ten classes", "odd against even"), horizontal_spacing=0.1)
    found = {arm: _right(lab, arm) for arm in ("all_sources", "binary")}
    formula = 100 * math.sqrt((_last(lab, "binary", "formula_sd") ** 2).mean())
    for column, (arm, sd) in enumerate((("all_sources", None), ("binary", formula)), 1):
        _histogram(figure, found[arm], sd, dict(row=1, col=column), column == 1)
    figure.update_yaxes(title_text="density [1 / point]", col=1)
    sd = {arm: 100 * _last(lab, arm, "sd").mean() for arm in found}
    coin = {arm: 100 * _last(lab, arm, "coin_sd").mean() for arm in found}
    title = (f"Standard deviation of runs against coins: {sd['all_sources']:.2f} against {coin['all_sources']:.2f} points (ten "
             f"classes), {sd['binary']:.2f} against {coin['binary']:.2f} (odd or even; the formula says {formula:.2f})")  # fmt: skip
    return style(figure, title, height=460).update_layout(bargap=0)


def halves(lab) -> go.Figure:
    """Accuracy on one half of the test set against the other: a diagonal is quality, a round cloud is luck."""
    arms = {"short": "a tenth of the steps", "all_sources": "all steps"}
    figure = make_subplots(1, 2, subplot_titles=list(arms.values()), horizontal_spacing=0.12)
    seen = {}
    for column, arm in enumerate(arms, 1):
        seen[arm] = _cloud(figure, _right(lab, arm), COLOURS[arm], dict(row=1, col=column), arm)
    title = (f"Two halves of the test set agree about a run with correlation {seen['short']:.2f} after a tenth of the steps and "
             f"{seen['all_sources']:.2f} after all")  # fmt: skip
    return style(figure, title, height=470)


def shares(lab) -> go.Figure:
    """true_variance_share while training goes on, of long and short runs."""
    rows = lab.table[(lab.table.metric == "true_variance_share") & lab.table.arm.isin(("all_sources", "short"))]
    rows = rows[np.isfinite(rows.value)]
    means = {arm: _last(lab, arm, "true_variance_share").mean() for arm in ("all_sources", "short")}
    title = (f"Share of the variance that is true: {means['all_sources']:.2f} at the end of long runs, {means['short']:.2f} at the "
             "end of short ones")  # fmt: skip
    first = rows[rows.step > 0].step.min()
    figure = curve(rows[rows.step > 0], "true_variance_share", arms=["all_sources", "short"], palette=COLOURS, title=title,
                   y_title="true variance / variance between runs", references={"margin of the claim: 0.35": 0.35})  # fmt: skip
    figure.add_hline(y=0, line=dict(color=INK, width=1))
    steps = [s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if s >= first]
    figure.update_yaxes(range=[max(min(-0.2, rows.value.min() - 0.05), -1), 1.2])
    return figure.update_xaxes(type="log", tickvals=steps, ticktext=[f"{s:,}" for s in steps])


def sources(lab) -> go.Figure:
    """Standard deviation of accuracy by what differs between the runs."""
    shown = [arm for arm in SOURCES if arm in lab.arms]
    table = lab.table.copy()
    table.loc[table.metric == "sd", "value"] *= 100
    everything, luck = (100 * _last(lab, "all_sources", m).mean() for m in ("sd", "luck_sd"))
    parts = [f"{arm.replace('_', ' ')} {100 * _last(lab, arm, 'sd').mean() / everything:.0%}" for arm in shown[1:]]
    title = f"Scatter between runs, in percent of all sources together: {', '.join(parts)}"
    figure = bars(table, "sd", arms=shown, palette=COLOURS, title=title, y_title="standard deviation of accuracy [points]",
                  names={arm: arm.replace("_", " ") for arm in shown})  # fmt: skip
    figure.add_hline(y=luck, line=dict(color=INK, dash="dash", width=1.5))
    figure.add_annotation(x=1, xref="paper", y=luck, text="luck alone: sqrt(P/n)", showarrow=False, xanchor="right",
                          yanchor="bottom", font_color=INK)  # fmt: skip
    return figure.update_xaxes(title_text="what differs between the runs")


def twins(lab) -> go.Figure:
    """Distance of nudged runs from the original, in weights and in predictions, against steps."""
    rows = lab.table[lab.table.arm == "one_weight"]
    figure = go.Figure()
    names = {"weight_distance": ("weights [share of their length]", BLUE), "prediction_distance": ("class probabilities [rms]", ORANGE)}
    ends = []
    for metric, (name, colour) in names.items():
        wide = rows[rows.metric == metric].pivot(index="step", columns="seed", values="value")
        wide = wide.where(wide > 0)  # a log axis has no place for runs that are equal
        for seed in wide:
            figure.add_scatter(x=wide.index, y=wide[seed], mode="lines", line=dict(color=colour, width=0.8), opacity=0.4,
                               showlegend=False, hoverinfo="skip")  # fmt: skip
        middle = np.exp(np.log(wide).mean(axis=1))
        figure.add_scatter(x=middle.index, y=middle, mode="lines", line=dict(color=colour, width=3), name=name)
        ends.append(middle.iloc[-1])
    begin = f"nudge {lab.params.nudge:g}"
    title = ("Without a nudge the runs stay equal" if not np.isfinite(ends).all() else
             f"One weight moved by a relative {begin.removeprefix('nudge ')}: at the end the weights differ by {ends[0]:.1e} of "
             f"their length and the class probabilities by {ends[1]:.1e}")  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power")
    return style(figure, title, x="optimiser step", y="median distance from the original run", height=440)


def votes(lab) -> go.Figure:
    """Share of runs that vote odd against the frequency of odd digits, all splits together."""
    pairs = [(net.votes(net.test_x).double().mean(0).cpu().numpy(), net.test_y.cpu().numpy()) for net in lab.arms["binary"].members]
    q, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    rows, error = study.calibration(q, y)
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=dict(color=GREY, dash="dash"), name="calibrated"))
    odd, count = rows[:, 1] * rows[:, 2], rows[:, 2]
    low, high = (beta.ppf(tail, odd + 0.5, count - odd + 0.5) for tail in (0.025, 0.975))  # Jeffreys' interval
    bars_up_down = dict(array=high - rows[:, 1], arrayminus=rows[:, 1] - low, color=GREEN)
    figure.add_scatter(x=rows[:, 0], y=rows[:, 1], mode="markers+text", text=[f"{int(n):,}" for n in rows[:, 2]],
                       textposition="bottom right", marker=dict(color=GREEN, size=10), error_y=bars_up_down,
                       name="test images by share of votes (their number beside)")  # fmt: skip
    figure.update_xaxes(range=[-0.04, 1.12]).update_yaxes(range=[-0.08, 1.08])
    unsure = ((q > 0.05) & (q < 0.95)).mean()
    title = (f"The vote against the truth: calibration error {error:.3f}; {unsure:.0%} of the test images divide the runs by more "
             "than 5 %")  # fmt: skip
    return style(figure, title, x="share of runs that vote odd", y="share of odd digits among these images", height=470)


def check(lab) -> go.Figure:
    """Simulated data: the estimate from 1,200 test points against the variance seen on 50,000 fresh ones."""
    estimate, direct = (1e4 * _last(lab, "synthetic", m) for m in ("true_variance", "direct_true_variance"))
    total = 1e4 * _last(lab, "synthetic", "sd") ** 2
    figure = go.Figure()
    for name, values, colour in (("all variance on 1,200 test points", total, GREY), ("true part, estimated from the same points",
                                 estimate, BLUE), ("true part, seen on 50,000 fresh points", direct, ORANGE)):  # fmt: skip
        figure.add_bar(x=[f"split {seed}" for seed in lab.seeds], y=values, name=name, marker_color=colour)
    title = f"Simulated data: estimated true variance {estimate.mean():.3f}, seen directly {direct.mean():.3f} squared points"
    return style(figure, title, x="ensemble", y="variance of accuracy [squared points]", height=420)


def sweep(lab) -> go.Figure:
    """Share of true variance of wider and narrower nets, other learning rates, a convolutional net."""
    shown = ["all_sources", *[arm for arm in study.ARMS if issubclass(study.ARMS[arm], study.Extra) and arm in lab.arms]]
    best = min(shown, key=lambda arm: _last(lab, arm, "true_variance_share").mean())
    title = f"Of these recipes {best.replace('_', ' ')} has the smallest share of true variance"
    return bars(lab.table, "true_variance_share", arms=shown, title=title, y_title="true variance / variance between runs",
                names={arm: arm.replace("_", " ") for arm in shown})  # fmt: skip


# ---- a matrix of one's own


def own(c: np.ndarray) -> go.Figure:
    """The matrix c [runs, examples] of finished trainings: histogram against coins, and one half against the other."""
    facts = study.analyse(c)
    figure = make_subplots(1, 2, subplot_titles=("accuracies", "one half against the other"), horizontal_spacing=0.12)
    c = np.asarray(c, dtype=float)
    _histogram(figure, [c], None, dict(row=1, col=1), True)
    figure.update_yaxes(title_text="density [1 / point]", row=1, col=1)
    _cloud(figure, [c], BLUE, dict(row=1, col=2), "runs")
    title = (f"{c.shape[0]} runs, {c.shape[1]:,} examples: standard deviation {100 * facts['sd']:.2f} points, of the variance "
             f"{facts['true_variance_share']:.0%} is true")  # fmt: skip
    return style(figure, title, height=460).update_layout(bargap=0)


# ---- live views: one ensemble as it is now


def halves_now(net, params) -> go.Figure:
    """Accuracy on one half of the test set against the other, a dot a run."""
    figure = make_subplots(1, 1)
    seen = _cloud(figure, [net.right()], BLUE, dict(row=1, col=1), "runs")
    return style(figure, f"{len(net.weights[0])} runs: the two halves of the test set agree with correlation {seen:.2f}")


def flicker(net, params) -> go.Figure:
    """Test images x runs, right and wrong as two colours, sorted by how many runs fail."""
    c = net.right()
    rows, runs = c.mean(0).argsort(kind="stable"), c.mean(1).argsort(kind="stable")
    shown = rows[: max(20, int((c.mean(0) < 1).sum()) + 10)]  # the images that no run gets wrong would fill the page
    figure = go.Figure(go.Heatmap(z=c[runs][:, shown].T, zmin=0, zmax=1, colorscale=[[0, ORANGE], [1, "#D7E6F1"]], showscale=False))
    unsure = ((c.mean(0) > 0) & (c.mean(0) < 1)).sum()
    figure.update_yaxes(autorange="reversed")
    title = f"{unsure} of {c.shape[1]:,} test images are right in some runs and wrong (orange) in others; the rest is settled"
    return style(figure, title, x="runs, the worst first", y=f"the {len(shown)} test images that fail most", height=520)


def twins_now(net, params) -> go.Figure:
    """Distance of the nudged runs from the original at every tick so far."""
    trace = net.trace.cpu().numpy()
    trace = trace[np.isfinite(trace[:, 0])]
    if not len(trace):
        return style(go.Figure(), "The runs of this arm are not nudged twins")
    steps = np.arange(len(trace)) * study.OneWeight(params).every
    figure = go.Figure()
    for k, (name, colour) in enumerate((("weights [share of their length]", BLUE), ("class probabilities [rms]", ORANGE))):
        figure.add_scatter(x=steps, y=np.where(trace[:, k] > 0, trace[:, k], np.nan), mode="lines+markers", line_color=colour, name=name)
    figure.update_yaxes(type="log", exponentformat="power")
    return style(figure, f"{len(net.weights[0]) - 1} nudged runs after {steps[-1]:,} steps", x="optimiser step",
                 y="median distance from the original run")  # fmt: skip
