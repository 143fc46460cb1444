"""Figures and live views of interactive_training."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.claims import interval
from claimlab.figures import BLUE, GREY, colours, faded, style
from claimlab.studies.training import _interactive_training_data as data
from claimlab.studies.training import _interactive_training_tasks as tasks

TEXT = ["static", "static_cosine", "plateau_clip", "agent", "agent_blind", "agent_no_rollback", "best_checkpoint",
        "expert_replay"]  # fmt: skip
COLOURS = colours(TEXT, "static", "agent") | {"live_data": BLUE, "stale_data": GREY, "restart": "#E69F00"}
ALARM = "#D55E00"
TICKS = ["0.00001", "0.0001", "0.001", "0.01", "0.1", "1"]
ROWS = 16  # of the agent's diary that are shown


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {}
    if {"static", "agent"} <= set(lab.arms):
        found = {"steered and untouched": steered(lab), "final loss by initial rate": by_rate(lab), "rates driven": rates(lab)}
    if {"live_data", "stale_data"} <= set(lab.arms):
        found["old and new inputs"] = domains(lab)
    return found | ({"log, decision, effect": decisions(lab)} if "agent" in lab.arms else {})


# ---- one session as curves


def looks(branch) -> tuple[list[float], list[float]]:
    """Steps and validation losses of a branch, its start included."""
    pairs = [(branch.began, branch.value), *((r[0], r[4]) for r in branch.records)]
    known = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in known], [value for _, value in known]


def draw(figure: go.Figure, session: dict, colour: str, name: str) -> None:
    """Training loss (thin) and validation loss (dots) by branch, dotted ways back, and a numbered flag for each command."""
    for k, branch in enumerate(session["branches"]):
        steps, losses = [r[0] for r in branch.records], [r[2] for r in branch.records]
        same = dict(legendgroup=name, mode="lines")
        figure.add_scatter(x=steps, y=losses, line=dict(color=faded(colour, 0.35), width=1), showlegend=False, hoverinfo="skip",
                           **same)  # fmt: skip
        x, y = looks(branch)
        figure.add_scatter(x=x, y=y, line=dict(color=colour, width=3), marker=dict(color=colour, size=6), name=name,
                           showlegend=not k, **same | {"mode": "lines+markers"})  # fmt: skip
        if k:
            figure.add_scatter(x=[branch.origin, branch.began], y=[branch.value] * 2, showlegend=False,
                               line=dict(color=colour, dash="dot", width=1.5), hoverinfo="skip", **same)  # fmt: skip


def flags(figure: go.Figure, session: dict, colour: str, top: float) -> list[str]:
    """A numbered flag for each obeyed command, and its text."""
    obeyed, said = [note for note in session["commands"] if note["ok"]], []
    for k, note in enumerate(obeyed, 1):
        figure.add_vline(x=note["step"], line=dict(color=faded(colour, 0.5), width=1, dash="dash"))
        figure.add_annotation(x=note["step"], y=top, yref="y", text=str(k), showarrow=False, font=dict(color="white", size=11),
                              bgcolor=ALARM if note["command"]["verb"] == "rollback" else colour, borderpad=2)  # fmt: skip
        reason = f" ({note['reason']})" if note.get("reason") else ""
        said.append(f"{k}: step {note['step']}, {note['effect']}{reason}")
    return said


def _below(figure: go.Figure, lines: list[str]) -> None:
    """A legend of the flags under the axis."""
    figure.add_annotation(text="<br>".join(lines), x=0, xref="paper", y=0, yref="paper", yshift=-58, xanchor="left",
                          yanchor="top", align="left", showarrow=False, font_size=11)  # fmt: skip
    figure.update_layout(margin_b=96 + 16 * len(lines))


def steered(lab) -> go.Figure:
    """The key figure: both runs of the first seed, commands flagged, rollbacks as branches."""
    figure, last = go.Figure(), {}
    for arm in ("static", "agent"):
        session = lab.arms[arm].members[0].session
        draw(figure, session, COLOURS[arm], arm)
        last[arm] = _last(lab, arm, "val_loss_bad_start")[lab.seeds[0]]
    top = _top(figure)
    said = flags(figure, lab.arms["agent"].members[0].session, COLOURS["agent"], top) or ["The agent gave no command."]
    _below(figure, said)
    figure.update_yaxes(range=[_low(figure) - 0.1, top * 1.04])
    title = (f"Seed {lab.seeds[0]} from a learning rate of {lab.params.lr:g}: on the judged text the untouched run ends at "
             f"{last['static']:.2f} nats a character, the agent's at {last['agent']:.2f}")  # fmt: skip
    style(figure, title, x="gradient steps taken", y="loss [nats a character]", height=470 + 18 * len(said))
    return figure.update_layout(margin_b=110 + 16 * len(said))


def _values(figure: go.Figure) -> np.ndarray:
    return np.array([v for trace in figure.data for v in trace.y if v is not None and math.isfinite(v)])


def _top(figure: go.Figure) -> float:
    return min(float(_values(figure).max()), tasks.text().uniform * 1.5)


def _low(figure: go.Figure) -> float:
    return float(_values(figure).min())


def _last(lab, arm: str, metric: str) -> dict[int, float]:
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].sort_values("step", kind="stable")
    return rows.groupby("seed").value.last().to_dict()


# ---- over rates, seeds and domains


def by_rate(lab) -> go.Figure:
    """Final judged loss against the initial learning rate: mean and 95 % interval over seeds."""
    figure, spread = go.Figure(), {}
    arms = [a for a in ("static", "static_cosine", "plateau_clip", "best_checkpoint", "agent") if a in lab.arms]
    for k, arm in enumerate(arms):
        names = [m for m in lab.table[lab.table.arm == arm].metric.unique() if m.startswith("loss_from_")]
        grid = sorted(float(name.removeprefix("loss_from_")) for name in names)
        values = np.array([list(_last(lab, arm, f"loss_from_{rate:g}").values()) for rate in grid])
        bounds = np.array([interval(row) for row in values])
        x = np.array(grid) * 1.04 ** (k - len(arms) / 2)  # side by side, so that no bar hides another
        main, mean = arm in ("static", "agent"), values.mean(1)
        figure.add_scatter(x=x, y=mean, name=arm, mode="lines+markers", marker=dict(size=8 if main else 6),
                           line=dict(color=COLOURS[arm], width=3 if main else 1.5, dash="solid" if main else "dot"),
                           error_y=dict(array=bounds[:, 1] - mean, arrayminus=mean - bounds[:, 0], width=4))  # fmt: skip
        spread[arm] = np.mean(list(_last(lab, arm, "loss_spread_over_lr").values()))
    for arm in [a for a in ("agent_blind", "agent_no_rollback", "expert_replay") if a in lab.arms]:
        values = list(_last(lab, arm, "val_loss_bad_start").values())
        figure.add_scatter(x=[lab.params.lr * 1.3], y=[np.mean(values)], name=arm, mode="markers",
                           marker=dict(color=COLOURS[arm], size=11, symbol="diamond"))  # fmt: skip
    figure.add_vline(x=lab.params.lr, line=dict(dash="dash", width=1))
    ends = [math.log10(rate) for rate in (min([*lab.arms["static"].rates]) / 1.6, max([*lab.arms["static"].rates]) * 1.6)]
    figure.add_annotation(text="bad start", x=math.log10(lab.params.lr), y=1, yref="paper", xanchor="right", xshift=-6,
                          showarrow=False)  # fmt: skip
    figure.update_xaxes(type="log", range=ends, tickvals=[float(tick) for tick in TICKS], ticktext=TICKS)
    title = (f"Mean gap between the worst and the best initial rate: {spread['static']:.2f} nats untouched, "
             f"{spread['agent']:.2f} with the agent (bars: 95 % interval over seeds)")  # fmt: skip
    return style(figure, title, x="initial learning rate", y="judged loss at the end [nats a character]", height=500)


def rates(lab) -> go.Figure:
    """Learning rate over time as the agent drove it from the bad start, a line a seed."""
    figure, back = go.Figure(), []
    for k, (net, seed) in enumerate(zip(lab.arms["agent"].members, lab.seeds, strict=True)):
        records = [r for branch in net.session["branches"] for r in branch.records]
        x, y = np.array([r[0] for r in records]), np.array([r[1] for r in records])
        colour = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#B8A800", "#7F5FA8")[k % 8]
        figure.add_scatter(x=x, y=y * 1.02 ** (k - len(lab.seeds) / 2), mode="lines", name=f"seed {seed}",
                           line=dict(color=colour, width=2, shape="vh"))  # fmt: skip
        obeyed = [n["step"] for n in net.session["commands"] if n["ok"] and n["command"]["verb"] == "rollback"]
        back += [(obeyed, y[0] * 0.84 ** (k + 1), colour)] if obeyed else []
    for steps, height, colour in back:  # above all lines
        marker = dict(color=colour, size=11, symbol="triangle-left", line=dict(color="white", width=1))
        figure.add_scatter(x=steps, y=[height] * len(steps), mode="markers", showlegend=False, hoverinfo="x", marker=marker)
    figure.update_yaxes(type="log", tickvals=[v * 10.0**k for k in range(-6, 1) for v in (1, 3)],
                        ticktext=[f"{v * 10.0**k:g}" for k in range(-6, 1) for v in (1, 3)])  # fmt: skip
    title = f"The agent stepped back at least once on {len(back)} of {len(lab.seeds)} seeds (triangles: steps back)"
    return style(figure, title, x="gradient steps taken", y="learning rate", height=420)


def domains(lab) -> go.Figure:
    """Accuracy on both domains over the training of the digits."""
    figure = make_subplots(1, 2, subplot_titles=("The users' new inputs", "Upright digits, as before"), shared_yaxes=True,
                           horizontal_spacing=0.06)  # fmt: skip
    arms, means = [a for a in ("stale_data", "restart", "live_data") if a in lab.arms], {}
    for column, domain in enumerate(("new", "old"), 1):
        for arm in arms:
            rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == f"{domain}_domain_accuracy")]
            wide = rows.pivot_table(index="step", columns="seed", values="value", aggfunc="last")
            low, high = np.clip(np.array([interval(row) for row in wide.to_numpy()]), 0, 1).T
            x, at = wide.index.to_numpy(), dict(row=1, col=column, legendgroup=arm)
            figure.add_scatter(x=np.r_[x, x[::-1]], y=np.r_[high, low[::-1]], fill="toself", fillcolor=faded(COLOURS[arm], 0.2),
                               line_width=0, hoverinfo="skip", showlegend=False, **at)  # fmt: skip
            figure.add_scatter(x=x, y=wide.mean(axis=1), mode="lines", line=dict(color=COLOURS[arm], width=3), name=arm,
                               showlegend=column == 1, **at)  # fmt: skip
            means[arm, domain] = wide.iloc[-1].mean()
    total = lab.arms["live_data"].total
    figure.add_vline(x=2 * total // 5, line=dict(dash="dash", width=1), annotation_text="new inputs arrive",
                     annotation_position="bottom left")  # fmt: skip
    new, old = ([f"{means[arm, domain]:.0%}" for arm in ("live_data", "stale_data")] for domain in ("new", "old"))
    title = (f"At the end the network with live data reads {new[0]} of the new inputs, the one without {new[1]}; "
             f"of the old ones {old[0]} and {old[1]}")  # fmt: skip
    figure.update_xaxes(title_text="optimiser step")
    figure.update_yaxes(title_text="accuracy [share of 300 images]", range=[-0.02, 1.02], col=1)
    return style(figure, title, height=460)


def decisions(lab) -> go.Figure:
    """What the agent read, what it decided, and the validation loss 20 steps later: all seeds from the bad start."""
    rows, falls = [], []
    for net, seed in zip(lab.arms["agent"].members, lab.seeds, strict=True):
        for note in net.session["commands"]:
            before, after = value_at(net.session, note["step"], False), value_at(net.session, note["step"] + 20, True)
            line = next((r for b in net.session["branches"] for r in b.records if r[0] == note["step"]), None)
            read = f"step {line[0]:.0f}: loss {line[2]:.2f}, gradient {line[3]:.2f}, validation {line[4]:.2f}" if line else ""
            said = note["effect"] if note["ok"] else f"refused: {note['refusal'][:60]}"
            rows.append((seed, read, f"{said}<br>{note.get('reason', '')}", _number(before), _number(after)))
            falls += [after < before] if math.isfinite(after) else []
    head = ["seed", "last line of the log", "decision and reason", "validation", "20 steps<br>later"]
    shown = rows[:ROWS] or [("", "no command was given", "", "", "")]
    table = go.Table(columnwidth=[9, 44, 72, 17, 14], header=dict(values=head, align="left", font_color="#222222"),
                     cells=dict(values=[*zip(*shown, strict=True)], align="left", height=38, font_color="#222222"))  # fmt: skip
    title = (f"{sum(falls)} of {len(falls)} commands with 20 steps to come were followed by a lower validation loss"
             if falls else "No command had 20 steps to come")  # fmt: skip
    title += f" ({ROWS} of {len(rows)} commands shown)" if len(rows) > ROWS else ""
    return style(go.Figure(table), title, height=150 + 49 * len(shown)).update_layout(margin_b=20)


def value_at(session: dict, step: int, later: bool) -> float:
    """Validation loss of the look at `step`: the first one there, or for `later` the next look from there on; NaN if none."""
    found = [(r[0], r[4]) for b in session["branches"] for r in b.records if math.isfinite(r[4])]
    fit = [value for at, value in found if (at >= step if later else at == step)]
    return fit[0] if fit else math.nan


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


# ---- live views: one net of any arm


def _nothing(what: str) -> go.Figure:
    return style(go.Figure(), f"This arm has no {what}")


def story(net, params) -> go.Figure:
    """The loss of this run, its commands flagged, its rollbacks as branches. The net carries its own log."""
    session = getattr(net, "session", None)
    if session is None or not any(b.records for b in session["branches"]):
        return _nothing("log of commands" if session is None else "step yet")
    figure = go.Figure()
    draw(figure, session, BLUE, "this run")
    said = flags(figure, session, BLUE, _top(figure))[-12:]
    if said:
        _below(figure, said)
    style(figure, f"{len(said)} commands so far", x="gradient steps taken", y="loss [nats a character]")
    figure.update_layout(height=440 + 16 * len(said))
    return figure.update_layout(margin_b=96 + 16 * len(said))


@torch.no_grad()
def written(net, count: int = 3, length: int = 32) -> list[str]:
    """`length` characters after each of `count` windows of the seen text; the draws are always the same."""
    rng, letters = torch.Generator().manual_seed(0), tasks.text().letters
    device = net.head.weight.device
    seen = tasks.text().windows["seen"][:: 128 // count][:count, :-1].to(device)
    found = []
    for _ in range(length):
        chances = torch.nan_to_num(net(seen)[:, -1].cpu(), nan=0.0, posinf=50.0, neginf=-50.0).softmax(1)
        drawn = torch.multinomial(chances, 1, generator=rng).to(device)
        seen = torch.cat([seen[:, 1:], drawn], 1)
        found.append(drawn)
    return ["".join(letters[k] for k in row) for row in torch.cat(found, 1).tolist()]


def sampled(net, params) -> go.Figure:
    """Text that this run writes now, after fixed beginnings."""
    if not isinstance(net, tasks.Transformer):
        return _nothing("text to write")
    broken = not all(bool(torch.isfinite(p).all()) for p in net.parameters())
    corpus = tasks.text()
    starts = ["".join(corpus.letters[k] for k in row[:-1]) for row in corpus.windows["seen"][:: 128 // 3][:3].tolist()]
    cells = [[_visible(one) for one in starts], [_visible(one) for one in written(net)]]
    typed = dict(family="monospace", color="#222222")
    table = go.Table(header=dict(values=["beginning", "written now"], align="left", font_color="#222222"),
                     cells=dict(values=cells, align="left", height=30, font=typed))  # fmt: skip
    title = "The weights are no numbers any more" if broken else "What this network writes (spaces as dots, line ends as ¶)"
    return style(go.Figure(table), title, height=280).update_layout(margin_b=20)


def _visible(text: str) -> str:
    return text.replace("\n", "¶").replace(" ", "·").replace("<", "&lt;")


def confusion(net, params) -> go.Figure:
    """Given labels against answers on the users' new inputs, with the test digits of seed 0."""
    if isinstance(net, tasks.Transformer):
        return _nothing("digits to read")
    x, y = data.domains(0, params.domain_shift).new
    with torch.no_grad():
        answer = net(x.to(next(net.parameters()).device)).argmax(1).cpu()
    counts = torch.zeros(10, 10).index_put_((y, answer), torch.ones(len(y)), accumulate=True).numpy()
    names = [str(k) for k in range(10)]
    figure = go.Figure(go.Heatmap(z=counts, x=names, y=names, colorscale="Cividis", colorbar_title="images",
                                  texttemplate="%{z:.0f}"))  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    right = float((answer == y).float().mean())
    return style(figure, f"{right:.0%} of the users' new inputs are read correctly", x="answer", y="true digit", height=440)
