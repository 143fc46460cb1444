"""Figures and views of the study metalic; titles say what was found, computed from it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, INK, OTHERS, arm_colours, curve, faded, style
from claimlab.studies.physics._metalic_bandit import Surrogate
from claimlab.studies.physics._metalic_data import stream
from claimlab.studies.physics._metalic_physics import GRID, SECOND, actions, every, joined, log_error

WORDS = {"random": "random", "single_ucb": "bandit", "seq_ucb": "bandit, two stages", "all_conditions": "all conditions",
         "best_fixed": "best fixed", "no_context": "bandit without context", "oracle": "oracle"}  # fmt: skip
REWARD = "reward, -log10 relative error (1)"
PARAMETER = {"advection": "wave speed β (1)", "poisson": "sharpness β (1)"}
AXIS = np.linspace(0, 1, GRID)


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name."""
    return {"plays": plays(lab), "table": table(lab), "solutions": solutions(lab), "choices": choices(lab),
            "surrogate": surrogate(lab)}  # fmt: skip


def label(bits) -> str:
    """The name of a choice, such as `c0 c2`."""
    return " ".join(f"c{j}" for j, bit in enumerate(bits) if bit)


def _labels(lab) -> list[str]:
    return [label(one) for one in actions(lab.params.conditions).tolist()]


def plays(lab) -> go.Figure:
    """What each arm has lost to the oracle so far: its log10 errors minus the oracle's on the same equations, summed over plays.

    The difference takes away what a stream of easy or hard equations does to all arms of a seed alike."""
    rows = lab.table[lab.table["metric"] == "log10_error"]
    wide = {arm: rows[rows["arm"] == arm].pivot(index="step", columns="seed", values="value") for arm in WORDS if arm in lab.arms}
    lost = [(wide[arm] - wide["oracle"]).cumsum().melt(ignore_index=False).reset_index().assign(arm=arm) for arm in wide]
    found = pd.concat(lost).assign(metric="lost")
    ends = found[found["step"] == found["step"].max()].groupby("arm")["value"].mean()
    title = (f"In {lab.params.plays} plays random choice loses {ends['random']:.3g} decimal digits to the oracle, the bandit "
             f"{ends['single_ucb']:.3g}, without the parameter {ends['no_context']:.3g}")  # fmt: skip
    return curve(found, "lost", arms=list(wide), title=title, x_title="play", palette=arm_colours(lab), names=WORDS, height=520,
                 y_title="log10 error lost to the oracle, summed (digits)")  # fmt: skip


def table(lab) -> go.Figure:
    """The table of the first seed, both stages alike, and what the bandit played."""
    known, net = lab.arms["lbfgs"].single()[0], lab.arms["single_ucb"].members[0]
    held = lab.arms["lbfgs"].stream.held
    betas = [f"{b:.3g}" for b in lab.arms["lbfgs"].stream.setting.betas]
    bar = {"title": {"text": "log10<br>relative<br>error"}, "x": 1.0}
    fig = go.Figure(go.Heatmap(z=known.T, colorscale="Cividis", colorbar=bar))
    found = net.history.numpy()
    late = 1 + np.arange(len(found))
    spread = np.random.default_rng(0).uniform(-0.33, 0.33, (2, len(found)))
    marker = {"color": late, "colorscale": "Reds", "size": 7, "line": {"color": "white", "width": 1},
              "colorbar": {"title": {"text": "play"}, "x": 1.14}}  # fmt: skip
    fig.add_scatter(x=found[:, 0] + spread[0], y=found[:, 1] + spread[1], mode="markers", marker=marker, showlegend=False)
    best = known.argmin(1)
    wins = np.bincount(best, minlength=known.shape[1])
    ticks = [b + (" test" if h else "") for b, h in zip(betas, held, strict=True)]
    fig.update_xaxes(tickvals=list(range(len(betas))), ticktext=ticks, tickangle=-45)
    fig.update_yaxes(tickvals=list(range(known.shape[1])), ticktext=_labels(lab))
    title = f"First seed: {_labels(lab)[wins.argmax()]} is best for {wins.max()} of {len(betas)} equations"
    title += f"; {(wins > 0).sum()} choices are best somewhere" if (wins > 0).sum() > 1 else ""
    return style(fig, title, x=PARAMETER[lab.params.family], y="conditions imposed", height=470)


def solutions(lab) -> go.Figure:
    """Solution, error and both subdomains for the best and the worst choice at the training equation where they differ most."""
    arm = lab.arms["lbfgs"]
    known = arm.single()[0]
    b = int(np.where(arm.stream.held, -1, np.ptp(known, axis=1)).argmax())
    shown, heads = [int(known[b].argmin()), int(known[b].argmax())], []
    for word, a in zip(("best", "worst"), shown, strict=True):
        name = f"{word}: {_labels(lab)[a]}"
        heads += [f"{name}, u", f"{name}, error", f"at {SECOND[lab.params.family]} {AXIS[GRID // 2]:g}"]
    fig = make_subplots(2, 3, subplot_titles=heads, horizontal_spacing=0.17, vertical_spacing=0.22)
    for row, a in enumerate(shown, 1):
        _panels(fig, arm.known[0, b, a, a][1][None], arm.stream.setting, b, row, legend=row == 1)
    fig.update_annotations(font_size=12)
    gap = known[b].max() - known[b].min()
    word = PARAMETER[lab.params.family].split(" β")[0]
    title = f"At {word} {arm.stream.setting.betas[b]:.2g} the best choice has {10**gap:.2g} times less error than the worst"
    return style(fig, title, height=620)


def _panels(fig, flat, setting, b: int, row: int, legend: bool = True) -> None:
    """Field, error and a cut through the middle of one pair [1, 2, K], side by side; the interface is a line."""
    with torch.no_grad():
        halves = every(flat, setting.grid).double()
    field, truth = joined(halves)[0].numpy(), setting.truth[b].numpy()
    second = SECOND[setting.family]
    middle = np.mean(fig.layout[f"yaxis{3 * row - 2 if row > 1 else ''}"].domain)
    length = float(np.ptp(fig.layout.yaxis.domain))
    place = {"len": length, "y": middle, "thickness": 7, "tickfont": {"size": 9}, "nticks": 5}
    for col, (values, scale) in enumerate(((field, "Viridis"), (field - truth, "RdBu")), 1):
        peak = float(np.abs(values).max())
        fig.add_heatmap(x=AXIS, y=AXIS, z=values.T, colorscale=scale, zmin=-peak, zmax=peak, row=row, col=col,
                        colorbar=place | {"x": fig.layout[f"xaxis{col}" if col > 1 else "xaxis"].domain[1]})  # fmt: skip
        fig.add_vline(0.5, line={"color": "white" if col == 1 else INK, "dash": "dot", "width": 1.5}, row=row, col=col)
        fig.update_yaxes(title_text=f"{second} (1)", title_standoff=2, row=row, col=col)
        fig.update_xaxes(range=[0, 1], row=row, col=col)
    side, middle = GRID // 2 + 1, GRID // 2
    fig.add_scatter(x=AXIS, y=truth[:, middle], mode="lines", line={"color": INK, "dash": "dot"}, name="exact", showlegend=legend,
                    row=row, col=3)  # fmt: skip
    for k, (name, colour) in enumerate((("u1", BLUE), ("u2", OTHERS[0]))):
        line = halves[0, k].view(side, GRID)[:, middle].numpy()
        fig.add_scatter(x=AXIS[middle * k : middle * k + side], y=line, mode="lines", line={"color": colour}, name=name,
                        showlegend=legend, row=row, col=3)  # fmt: skip
    fig.add_vline(0.5, line={"color": GREY, "dash": "dot", "width": 1}, row=row, col=3)
    fig.update_yaxes(title_text="u (1)", title_standoff=2, row=row, col=3)
    fig.update_xaxes(title_text="x (1)", row=row)


def choices(lab) -> go.Figure:
    """How often each condition is among those chosen by the bandits, in the second half of the plays, all seeds."""
    bits, fig, shares = actions(lab.params.conditions).numpy(), go.Figure(), {}
    for arm, column, name, colour in (("single_ucb", 1, "bandit, both stages", GREY), ("seq_ucb", 1, "two stages: Adam", BLUE),
                                      ("seq_ucb", 2, "two stages: L-BFGS", OTHERS[0])):  # fmt: skip
        played = torch.stack([net.history for net in lab.arms[arm].members])[:, lab.params.plays // 2 :, column]
        shares[name] = bits[played.flatten().long().numpy()].mean(0)
        fig.add_bar(x=[f"c{j}" for j in range(bits.shape[1])], y=shares[name], name=name, marker_color=colour)
    fig.update_yaxes(range=[0, 1.05])
    one, two = shares["two stages: Adam"], shares["two stages: L-BFGS"]
    j = int(np.abs(one - two).argmax())
    title = f"The stages differ most in c{j}: chosen in {one[j]:.0%} of the Adam stages and {two[j]:.0%} of the L-BFGS stages"
    return style(fig, title, x="interface condition", y="share of the later half of the plays", height=400)


def _restored(net, params) -> Surrogate:
    """The surrogate of a member, from its plays and fitted numbers."""
    known = net.history[~net.history[:, 0].isnan()].numpy()
    bits, found = actions(params.conditions).numpy().astype(float), Surrogate(1, bool(net.context))
    if len(known):
        found.b, found.r = stream(params).scaled[known[:, 0].astype(int)], known[:, 4]
        found.a = bits[known[:, 1].astype(int)][:, None]
    found.theta = net.theta.numpy()
    return found


def _band(fig, net, params, which, limit: int = 60) -> None:
    """Posterior mean and 95 % band of choices over the parameter, and what was observed of them."""
    surrogate, bits = _restored(net, params), actions(params.conditions).numpy().astype(float)
    here, betas = stream(params).scaled, np.array(stream(params).setting.betas)
    fine = np.linspace(here.min(), here.max(), limit)
    x = np.interp(fine, here, betas)
    played = net.history[~net.history[:, 0].isnan()].numpy()
    for k, (a, filled) in enumerate(which):
        colour, name = (BLUE, *OTHERS)[k % 9], label(bits[a])
        mean, covariance = surrogate.predict(fine, np.broadcast_to(bits[a], (limit, 1, bits.shape[1])))
        wide = 1.96 * np.sqrt(np.clip(np.diag(covariance), 0, None))
        if filled:
            fig.add_scatter(x=np.concatenate([x, x[::-1]]), y=np.concatenate([mean + wide, (mean - wide)[::-1]]), fill="toself",
                            fillcolor=faded(colour, 0.18), line={"width": 0}, showlegend=False, hoverinfo="skip")  # fmt: skip
        fig.add_scatter(x=x, y=mean, mode="lines", line={"color": colour}, name=name)
        own = played[played[:, 1] == a]
        fig.add_scatter(x=betas[own[:, 0].astype(int)], y=own[:, 4], mode="markers", marker={"color": colour, "size": 7},
                        showlegend=False)  # fmt: skip


def surrogate(lab) -> go.Figure:
    """What the bandit of the first seed believes at the end: the choice it played most, and all conditions."""
    net, fig = lab.arms["single_ucb"].members[0], go.Figure()
    count = 2**lab.params.conditions - 1
    often = np.bincount(net.history[:, 1].long().numpy(), minlength=count)
    most = int(often.argmax())
    other = count - 1 if most != count - 1 else int(np.argsort(often)[-2])
    _band(fig, net, lab.params, [(most, True), (other, True)])
    title = f"First seed: {_labels(lab)[most]} was played {often[most]} times, {_labels(lab)[other]} {often[other]} times"
    return style(fig, f"{title}; bands are wide where little was seen", x=PARAMETER[lab.params.family], y=REWARD)


def surrogate_view(net, params) -> go.Figure:
    """Mean and band of the surrogate for each choice over the parameter, with the plays as dots."""
    fig = go.Figure()
    if not hasattr(net, "history") or bool(net.theta.isnan().any()):
        return style(fig, "This arm has no surrogate: it plays by a list or by lot" if hasattr(net, "history") else
                     "Nothing is played yet: these networks are the first stage of the table")  # fmt: skip
    count = 2**params.conditions - 1
    often = np.bincount(net.history[:, 1].nan_to_num(-1).long().numpy() + 1, minlength=count + 1)[1:]
    shown = np.argsort(-often, kind="stable")[:7]
    _band(fig, net, params, [(int(a), k < 2) for k, a in enumerate(shown)])
    lead = label(actions(params.conditions)[shown[0]].tolist())
    title = f"After {int(often.sum())} plays {lead} leads with {often[shown[0]]}; bands for the two played most"
    return style(fig, title, x=PARAMETER[params.family], y=REWARD)


def solution_view(net, params) -> go.Figure:
    """Solution, error and interface of the last play; before the plays, of all conditions at the middle equation."""
    setting, bits = stream(params).setting, actions(params.conditions)
    if hasattr(net, "history"):
        played = net.history[~net.history[:, 0].isnan()]
        if not len(played):
            return style(go.Figure(), "Nothing is played yet")
        b, one, two = (int(v) for v in played[-1, :3])
        flat, name = net.last[None], f"play {len(played)}: {label(bits[one].tolist())}"
        name += "" if one == two else f", then {label(bits[two].tolist())}"
    else:
        b = len(setting.betas) // 2
        flat, name = net.weights.detach()[(b + 1) * len(bits) - 1][None], "first stage, all conditions"
    fig = make_subplots(1, 3, horizontal_spacing=0.17, subplot_titles=("u", "error", f"at {SECOND[params.family]} 0.5"))
    _panels(fig, flat, setting, b, 1)
    error = 10 ** float(log_error(flat, setting, torch.tensor([b])))
    word = PARAMETER[params.family].split(" β")[0]
    return style(fig, f"{name}; {word} {setting.betas[b]:.3g}, relative error {error:.2g}", height=360)
