"""Figures and live views of the study `state-regularized-rnn`: automata as graphs, hidden states, transitions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, INK, OTHERS, faded, style
from claimlab.studies.representation import state_regularized_rnn as study
from claimlab.studies.representation._state_regularized_rnn_cells import clustered, read_off, traced
from claimlab.studies.representation._state_regularized_rnn_words import MEANING, TOMITA, Dfa, _reached, minimal

COLOURS = {"gru": GREY, "gru_kmeans": OTHERS[5], "sr_gru": BLUE, "sr_gru_hot": OTHERS[0], "lstm": GREY, "sr_lstm": OTHERS[1],
           "sr_lstm_p": BLUE}  # fmt: skip
NAMES = {2: "01", 3: "01#", 6: "()abcd"}
NESTING = {3: "palindromes", 6: "brackets"}
STATES = (*OTHERS, BLUE, GREY, "#000000")


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    have, found = set(lab.arms), {}
    if {"sr_gru", "gru_kmeans"} <= have:
        found["automata"] = automata(lab)
    if {"sr_gru", "gru"} <= have:
        found["hidden states"] = hidden(lab)
    if {"sr_gru", "gru", "lstm", "sr_lstm_p"} <= have:
        found["length and depth"] = reach(lab)
    if {"sr_gru", "sr_lstm_p"} <= have:
        found |= {"transitions": transitions(lab), "states used": used(lab)}
    found |= {"a digit, row by row": digit(lab)} if "digits_sr_gru" in have else {}
    return {name: figure.update_layout(title_font_size=15) for name, figure in found.items()}


# ---- automata as graphs


def graph(figure: go.Figure, dfa: Dfa, letters: str, *, colour: str = BLUE, row=None, col=None) -> None:
    """Draw an automaton's states on a circle, the start on the left; a double ring accepts, an arrow bears its symbols."""
    order = _reached(dfa.step, dfa.start)
    turn = np.pi - 2 * np.pi * np.arange(len(order)) / len(order)
    spot = {int(q): np.array([np.cos(a), np.sin(a)]) for q, a in zip(order, turn, strict=True)}
    at = dict(row=row, col=col) if row else {}
    lines, labels, heads = [], [], []
    for q in order:
        for target in dict.fromkeys(dfa.step[q].tolist()):
            said = [letters[s] for s in range(len(letters)) if dfa.step[q, s] == target]
            curve, place = _edge(spot[int(q)], spot[target], len(order) == 1)
            lines += [*curve, (None, None)]
            labels.append((*place, "any" if 2 < len(letters) == len(said) else ",".join(said)))
            (x, y), (before_x, before_y) = curve[-1], curve[-3]
            heads.append((x, y, np.degrees(np.arctan2(x - before_x, y - before_y))))
    figure.add_scatter(x=[p[0] for p in lines], y=[p[1] for p in lines], mode="lines", line=dict(color=INK, width=1.3),
                       hoverinfo="skip", showlegend=False, **at)  # fmt: skip
    figure.add_scatter(x=[x for x, _, _ in heads], y=[y for _, y, _ in heads], mode="markers", hoverinfo="skip", showlegend=False,
                       marker=dict(symbol="arrow", size=9, color=INK, angle=[a for *_, a in heads]), **at)  # fmt: skip
    rings = [q for q in order if dfa.accept[q]]
    figure.add_scatter(x=[spot[q][0] for q in rings], y=[spot[q][1] for q in rings], mode="markers", showlegend=False,
                       hoverinfo="skip", marker=dict(size=31, color="rgba(0,0,0,0)", line=dict(color=colour, width=2)), **at)  # fmt: skip
    figure.add_scatter(x=[spot[q][0] for q in order], y=[spot[q][1] for q in order], mode="markers+text",
                       text=[str(q + 1) for q in order], textfont=dict(color="#222222", size=12),
                       marker=dict(size=23, color="#FFFFFF", line=dict(color=colour, width=2)),
                       hovertext=["accepts" if dfa.accept[q] else "rejects" for q in order], hoverinfo="text", showlegend=False,
                       **at)  # fmt: skip
    figure.add_scatter(x=[x for x, _, _ in labels], y=[y for _, y, _ in labels], mode="text", text=[t for *_, t in labels],
                       textfont=dict(color="#D55E00", size=13), cliponaxis=False, hoverinfo="skip", showlegend=False, **at)  # fmt: skip


def _edge(start: np.ndarray, end: np.ndarray, alone: bool) -> tuple[list, np.ndarray]:
    """Points of the arrow between two states, ending at the ring, and the place of its label."""
    if (start == end).all():
        outward = start / np.linalg.norm(start)
        side, radius = np.array([-outward[1], outward[0]]), 0.2
        angle = np.linspace(-2.5, 2.5, 24)[:, None]
        loop = start + outward * 0.28 + radius * (outward * np.cos(angle) + side * np.sin(angle))
        return list(map(tuple, loop)), start + outward * (0.28 + radius + 0.14)
    along = end - start
    across = np.array([along[1], -along[0]]) / np.linalg.norm(along)
    middle = (start + end) / 2 + across * 0.16 * np.linalg.norm(along)
    t = np.linspace(0, 1, 41)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    clear = (np.linalg.norm(curve - start, axis=1) > 0.25) & (np.linalg.norm(curve - end, axis=1) > 0.25)
    return list(map(tuple, curve[clear])), curve[14] + across * 0.1  # nearer to the start, where lines lie further apart


def _bare(figure: go.Figure, axes: int) -> None:
    for k in range(1, axes + 1):
        mark = "" if k == 1 else str(k)
        figure.layout[f"xaxis{mark}"].update(visible=False, range=[-1.8, 1.8], constrain="domain")
        figure.layout[f"yaxis{mark}"].update(visible=False, range=[-1.8, 1.8], scaleanchor=f"x{mark}", constrain="domain")


def automata(lab) -> go.Figure:
    """The two automata that were read off, the true one, and the words that the first gets wrong; first seed."""
    net, task = lab.arms["sr_gru"].members[0], lab.arms["sr_gru"].tasks[0]
    with torch.no_grad():
        own, other, true = task.read(net), lab.arms["gru_kmeans"].automata[0], TOMITA[lab.params.language]
        said = net(*task.long[:2], lab.params.snap, lab.params.temperature).argmax(1).numpy() == 1
    answer = own.accepts(task.test.words, task.test.lengths)
    wrong = np.flatnonzero(answer != task.test.labels)
    sizes = [len(minimal(one).step) for one in (own, other, true)]
    figure = make_subplots(1, 3, horizontal_spacing=0.02,
                           subplot_titles=("read off sr_gru", "read off gru by k-means", "true, minimal"))  # fmt: skip
    for k, (dfa, arm) in enumerate(((own, "sr_gru"), (other, "gru_kmeans"), (true, "lstm")), 1):
        graph(figure, dfa, NAMES[2], colour=COLOURS[arm], row=1, col=k)
    _bare(figure, 3)
    shown = ["".join(map(str, task.test.words[r, : task.test.lengths[r]])) for r in wrong[:3]]
    shown = [f"{w[:44]}{'…' if len(w) > 44 else ''} ({'accepted' if answer[r] else 'rejected'})"
             for w, r in zip(shown, wrong, strict=False)]  # fmt: skip
    text = "<br>".join([f"Long test words that the left automaton gets wrong: {len(wrong):,} of {len(answer):,}", *shown])
    figure.add_annotation(text=text, x=0, y=-0.02, xref="paper", yref="paper", xanchor="left", yanchor="top", showarrow=False,
                          align="left", font=dict(family="monospace", size=11))  # fmt: skip
    title = (f"The left automaton agrees with its own network on {(answer == said).mean():.0%} of long words; smallest forms have "
             f"{sizes[0]}, {sizes[1]} and {sizes[2]} states ({lab.params.language}: {MEANING[lab.params.language]}; "
             f"seed {lab.seeds[0]})")  # fmt: skip
    return style(figure, title, height=460).update_layout(margin_b=100)


# ---- hidden states


def _cloud(net, words, lengths, true: Dfa | None, pull, temperature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two principal components of the hidden states along words, a label for each, and the centroids in the same plane."""
    h, _ = traced(net, words, pull, temperature)
    inside = np.arange(h.shape[1]) <= lengths[:, None]
    label = true.path(words) if true else np.broadcast_to(np.arange(h.shape[1]), inside.shape)
    points, mean = h[inside], h[inside].mean(0)
    axes = np.linalg.svd(points - mean, full_matrices=False)[2][:2]
    held = np.zeros((0, h.shape[2])) if net.centroids is None else net.centroids.detach().cpu().numpy()
    return (points - mean) @ axes.T, label[inside], (held - mean) @ axes.T


def _scatter(figure, cloud, name: str, shown: bool, at: dict) -> None:
    points, label, held = cloud
    for q in np.unique(label):
        one = points[label == q]
        figure.add_scattergl(x=one[:, 0], y=one[:, 1], mode="markers", name=f"{name} {q + 1}", legendgroup=str(q), showlegend=shown,
                             marker=dict(size=5, color=STATES[q % len(STATES)], opacity=0.5), **at)  # fmt: skip
    if len(held):
        figure.add_scatter(x=held[:, 0], y=held[:, 1], mode="markers", name="centroid", showlegend=True,
                           marker=dict(symbol="x-thin", size=11, line=dict(color=INK, width=2.5)), **at)  # fmt: skip


def hidden(lab, count: int = 60) -> go.Figure:
    """Hidden states on long test words in two principal components, plain against state-regularised; first seed."""
    figure = make_subplots(1, 2, subplot_titles=("gru", "sr_gru"), horizontal_spacing=0.14)
    for col, arm in enumerate(("gru", "sr_gru"), 1):
        net, test = lab.arms[arm].members[0], lab.arms[arm].tasks[0].test
        cloud = _cloud(net, test.words[:count], test.lengths[:count], TOMITA[lab.params.language], lab.params.snap,
                       lab.params.temperature)  # fmt: skip
        _scatter(figure, cloud, "true state", col == 1, dict(row=1, col=col))
    drift = {arm: _last(lab, arm, "drift").mean() for arm in ("gru", "sr_gru")}
    title = (f"Late in a word, states of the plain GRU lie {drift['gru']:.2f} from where they lay early at the same true state, "
             f"those of the state-regularised one {drift['sr_gru']:.2f} (in units of the overall sd, mean over seeds; "
             f"pictured: seed {lab.seeds[0]})")  # fmt: skip
    return style(figure, title, x="first component", y="second component", height=480).update_layout(margin_b=110)


def _last(lab, arm, metric):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last()


# ---- accuracy against length and depth


@torch.no_grad()
def _right(net, task, part, count: int) -> np.ndarray:
    x, last, y = part.tensors(slice(count))
    return (net(x, last, task.p.snap, task.temperature).argmax(1) == y).float().numpy()


def reach(lab, count: int = 400) -> go.Figure:
    """Accuracy by word length (regular language) and by depth (nested words), from training words to long test words."""
    figure = make_subplots(1, 2, subplot_titles=(lab.params.language, "brackets"), horizontal_spacing=0.12)
    for col, arms in ((1, ("gru", "sr_gru_hot", "sr_gru")), (2, ("lstm", "sr_lstm", "sr_lstm_p"))):
        for arm in [a for a in arms if a in lab.arms]:
            found = []
            for net, task in zip(lab.arms[arm].members, lab.arms[arm].tasks, strict=True):
                right = np.concatenate([_right(net, task, part, count) for part in (task.train, task.test)])
                size = np.concatenate([(part.lengths if col == 1 else part.depth)[:count] for part in (task.train, task.test)])
                found.append((size, right))
            _by_size(figure, arm, found, 4 if col == 1 else 1, dict(row=1, col=col))
    for col, limit in enumerate((lab.params.train_length, lab.params.train_depth), 1):
        figure.add_vline(x=limit + 0.5, line=dict(color=INK, dash="dash", width=1.5), row=1, col=col)
    figure.add_hline(y=0.5, line=dict(color=INK, dash="dot", width=1))
    means = {arm: _last(lab, arm, "deep_accuracy").mean() for arm in ("lstm", "sr_lstm_p")}
    title = (f"Right of the dashed line (longest or deepest in training): deeper brackets are judged rightly in "
             f"{means['lstm']:.0%} of cases by the LSTM and in {means['sr_lstm_p']:.0%} by sr_lstm_p; dotted: guessing")  # fmt: skip
    figure.update_xaxes(title_text="word length [symbols]", col=1).update_xaxes(title_text="depth [levels]", col=2)
    figure.update_yaxes(title_text="accuracy [share of words]", col=1)
    figure.update_yaxes(range=[0.2, 1.03])
    return style(figure, title, height=480).update_layout(margin_b=110)


def _by_size(figure, arm: str, found: list, width: int, at: dict) -> None:
    """A line of the mean over seeds, with its 95 % interval, of (size, right) of each seed in bins of `width`."""
    bins = np.unique(np.concatenate([(size - 1) // width for size, _ in found]))
    rows = [np.array([right[(size - 1) // width == b].mean() for size, right in found if ((size - 1) // width == b).any()]) for b in bins]
    x, mean = bins * width + (width + 1) / 2, np.array([row.mean() for row in rows])
    low, high = np.array([interval(row) if len(row) > 1 else (row[0], row[0]) for row in rows]).T
    figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]].clip(0, 1), fill="toself", mode="lines",
                       fillcolor=faded(COLOURS[arm], 0.15), line_width=0, hoverinfo="skip", showlegend=False, **at)  # fmt: skip
    figure.add_scatter(x=x, y=mean, mode="lines+markers", line=dict(color=COLOURS[arm], width=2.5), marker_size=5, name=arm, **at)


# ---- transitions


def transitions(lab) -> go.Figure:
    """alpha over time for one word of the regular language and one nested word, first seed."""
    figure = make_subplots(2, 1, vertical_spacing=0.2, subplot_titles=("sr_gru", "sr_lstm_p"))
    peak = {}
    for row, arm in enumerate(("sr_gru", "sr_lstm_p"), 1):
        net, task = lab.arms[arm].members[0], lab.arms[arm].tasks[0]
        pick = next((k for k in range(len(task.test.labels)) if task.test.labels[k] and task.test.lengths[k] <= 40), 0)
        length = int(task.test.lengths[pick])
        alpha = traced(net, task.test.words[[pick], :length], lab.params.snap, task.temperature)[1][0]
        peak[arm] = alpha.max(1).mean()
        letters = [NAMES[net.symbols][s] for s in task.test.words[pick, :length]]
        figure.add_heatmap(z=alpha.T, x=list(range(1, length + 1)), y=list(range(1, alpha.shape[1] + 1)), zmin=0, zmax=1, row=row, col=1,
                           colorscale="Cividis", showscale=row == 1, colorbar=dict(title="probability", len=0.9))  # fmt: skip
        figure.update_xaxes(tickvals=list(range(1, length + 1)), ticktext=letters, tickangle=0, row=row, col=1)
        figure.update_yaxes(title_text="state", dtick=max(1, alpha.shape[1] // 5), row=row, col=1)
    figure.update_xaxes(title_text="symbols of the word, one step each", row=2, col=1)
    title = (f"The likeliest state holds {peak['sr_gru']:.0%} of the probability on average in the GRU's word and "
             f"{peak['sr_lstm_p']:.0%} in the LSTM's (seed {lab.seeds[0]})")  # fmt: skip
    return style(figure, title, height=520)


def used(lab) -> go.Figure:
    """How many states hold at least half a percent of the steps, and how spread alpha is, while the networks learn."""
    figure = make_subplots(1, 2, subplot_titles=("states really used", "entropy of alpha"), horizontal_spacing=0.12)
    last = {}
    for arm in [a for a in ("sr_gru_hot", "sr_lstm", "sr_lstm_p", "sr_gru") if a in lab.arms]:
        for col, metric in enumerate(("states_used", "entropy"), 1):
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
            wide = rows.pivot(index="step", columns="seed", values="value")
            colour = OTHERS[3] if arm == "sr_lstm_p" else COLOURS[arm]
            low, high = np.array([interval(row) for row in wide.to_numpy()]).T
            x = wide.index.to_numpy()
            figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", mode="lines", fillcolor=faded(colour, 0.15),
                               line_width=0, hoverinfo="skip", showlegend=False, row=1, col=col)  # fmt: skip
            figure.add_scatter(x=x, y=wide.mean(axis=1), mode="lines", line=dict(color=colour, width=2.5), name=arm, showlegend=col == 1,
                               row=1, col=col)  # fmt: skip
            last[arm, metric] = wide.iloc[-1].mean()
    top = float(np.log(lab.params.states))
    figure.add_hline(y=top, line=dict(color=INK, dash="dash", width=1), row=1, col=2)
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="states [count]", range=[0, lab.params.states + 0.5], col=1)
    figure.update_yaxes(title_text="entropy [nat]", range=[0, top * 1.08], col=2)
    title = (f"Of {lab.params.states} states sr_gru ends with {last['sr_gru', 'states_used']:.1f} in use and an entropy of "
             f"{last['sr_gru', 'entropy']:.2f} nat; dashed: all states equally likely, {top:.2f}")  # fmt: skip
    return style(figure, title, height=440).update_layout(margin_b=100)


def digit(lab) -> go.Figure:
    """A digit and the transition probabilities along its rows."""
    net, task = lab.arms["digits_sr_gru"].members[0], lab.arms["digits_sr_gru"].tasks[0]
    figure = make_subplots(1, 2, subplot_titles=(f"a {task.test.labels[0]}", "alpha after each row"))
    alpha = traced(net, task.test.words[:1], lab.params.snap, lab.params.temperature)[1][0]
    figure.add_heatmap(z=task.test.words[0], colorscale="Greys_r", showscale=False, y=list(range(1, 9)), row=1, col=1)
    figure.add_heatmap(z=alpha, colorscale="Cividis", zmin=0, zmax=1, y=list(range(1, 9)), x=list(range(1, alpha.shape[1] + 1)), row=1,
                       col=2, colorbar_title="probability")  # fmt: skip
    figure.update_yaxes(autorange="reversed", title_text="row").update_xaxes(title_text="column", col=1)
    figure.update_xaxes(title_text="state", col=2)
    right = _last(lab, "digits_sr_gru", "digit_accuracy").mean()
    return style(figure, f"Read row by row, digits are told apart with an accuracy of {right:.1%} (mean over seeds)", height=420)


# ---- live views: words follow from the knobs alone (those of seed 0)


def _words(net, params, count: int = 150):
    """Training words for what this network reads, their true automaton where it is regular, or None for other inputs."""
    if net.symbols not in NAMES or net.embed is None:
        return None
    train = study.words_of(0, params.language, params.train_length) if net.symbols == 2 else study.nested_of(
        0, NESTING[net.symbols], params.train_depth)  # fmt: skip
    return SimpleNamespace(words=train[0].words[:count], lengths=train[0].lengths[:count],
                           true=TOMITA[params.language] if net.symbols == 2 else None)  # fmt: skip


def _reading(net, params, seen) -> Dfa:
    if net.centroids is not None:
        return read_off(net, seen.words, seen.lengths, params.snap, params.temperature)
    return clustered(net, seen.words, seen.lengths, params.states, tries=1)


def automaton_view(net, params) -> go.Figure:
    """The automaton that can be read off this network now, from 150 training words."""
    seen = _words(net, params)
    if seen is None:
        return style(go.Figure(), "This network reads no small alphabet: no automaton can be drawn")
    dfa, figure = _reading(net, params, seen), go.Figure()
    graph(figure, dfa, NAMES[net.symbols])
    _bare(figure, 1)
    how = "its centroids" if net.centroids is not None else "k-means on its hidden states"
    return style(figure, f"The automaton by {how}: {len(minimal(dfa).step)} states in its smallest form", height=460)


def states_view(net, params) -> go.Figure:
    """Hidden states along 150 training words in two principal components, with the centroids."""
    seen = _words(net, params)
    if seen is None:
        return style(go.Figure(), "This network reads no words of the study's languages")
    figure = go.Figure()
    cloud = _cloud(net, seen.words, seen.lengths, seen.true, params.snap, params.temperature)
    if seen.true:
        _scatter(figure, cloud, "true state", True, {})
    else:
        points, place, held = cloud
        figure.add_scattergl(x=points[:, 0], y=points[:, 1], mode="markers", showlegend=False,
                             marker=dict(size=5, color=place, colorscale="Viridis", colorbar_title="symbols read"))  # fmt: skip
        if len(held):
            figure.add_scatter(x=held[:, 0], y=held[:, 1], mode="markers", name="centroid",
                               marker=dict(symbol="x-thin", size=11, line=dict(color=INK, width=2.5)))  # fmt: skip
    title = "Hidden states along training words" + (", coloured by the state of the true automaton" if seen.true else "")
    return style(figure, title, x="first component", y="second component", height=440)
