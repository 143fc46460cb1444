"""Figures and live views of the study `pbt`: lineages, discovered schedules, the toy plane, test loss and diversity."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, GREY, OTHERS, arm_colours, bars, curve, faded, style
from claimlab.studies.training import pbt as study
from claimlab.studies.training._pbt_method import ancestry, stream, toy, true_score

NAMES = {"learning_rate": "learning rate [log]", "momentum": "momentum", "input_noise": "input noise sd [pixel range]",
         "label_smoothing": "label smoothing", "weight_decay": "weight decay [log]"}  # fmt: skip
PALETTE = (BLUE, *OTHERS)
LABELS = {"random_search": "random search", "random_early": "random, best<br>of all rounds", "random_cosine": "random, cosine",
          "pbt": "PBT", "exploit_only": "copy only", "explore_only": "mutate only", "hypers_only": "copy hypers<br>only",
          "replay_schedule": "replay<br>schedule", "replay_final": "replay<br>last values", "pbt_tournament": "PBT,<br>tournament",
          "pbt_t_test": "PBT, t-test"}  # fmt: skip


def figures(lab) -> dict[str, go.Figure]:
    """All figures that the arms of `lab` allow."""
    found = {"toy plane": toy_plane(lab.seeds[0])}
    if "pbt" in lab.arms and lab.arms["pbt"].members[0].trail["ended"]:
        found |= {"lineage": lineage(lab.arms["pbt"].members[0], f"seed {lab.seeds[0]}"), "schedules": schedules(lab)}
    if len(lab.table):
        found |= {"test loss": tested(lab), "diversity": diversity(lab)}
    if {"gan_random", "gan_pbt"} <= set(lab.arms):
        found["GANs on a ring"] = curve(
            lab.table, "gan_mmd", title="Eight Gaussians: distance of the best GAN's points from the ring", height=420, log_y=True,
            y_title="squared MMD from test points [log]", baseline="gan_random", method="gan_pbt",
            names={"gan_random": "random search", "gan_pbt": "PBT"},
        )
    return found


# ---- one population


def lineage(net, where: str) -> go.Figure:
    """Validation loss of every slot after each round; a copy is a line from its parent; the best one's ancestors in bold."""
    trail = net.trail
    steps, parents = np.array(trail["ended"]), torch.stack(trail["parents"][: len(trail["ended"])]).numpy()
    height = np.nan_to_num(torch.stack(trail["losses"]).numpy(), nan=np.inf)
    height[~np.isfinite(height)] = np.nan
    stay, jump = ([], []), ([], [])
    for k in range(1, len(steps)):
        for slot, parent in enumerate(parents[k]):
            x, y = stay if parent == slot else jump
            x += [steps[k - 1], steps[k], None]
            y += [height[k - 1, parent], height[k, slot], None]
    figure = go.Figure()
    thin = dict(mode="lines", hoverinfo="skip")
    figure.add_scatter(x=stay[0], y=stay[1], line=dict(color=GREY, width=1), opacity=0.7, name="a member trains on", **thin)
    figure.add_scatter(x=jump[0], y=jump[1], line=dict(color=OTHERS[3], width=1.3, dash="dot"), name="a copy leaves its parent", **thin)
    line = ancestry([torch.from_numpy(row) for row in parents], net.winner).numpy()
    figure.add_scatter(x=steps, y=height[np.arange(len(steps)), line], mode="lines+markers", line=dict(color=BLUE, width=3.5),
                       marker_size=6, name="ancestors of the best member")  # fmt: skip
    copies = int((parents != np.arange(parents.shape[1])).sum())
    title = (f"{parents.shape[1]} members, {copies} copies, {where}: the best member at step {steps[-1]} "
             f"has ancestors in {len(set(line.tolist()))} slots")  # fmt: skip
    if not isinstance(net, study.Members):
        return style(figure, title, x="optimiser step", y="squared MMD from validation points", height=480)
    low, middle = np.nanmin(height), np.nanmedian(height)
    figure.update_yaxes(type="log", range=[math.log10(low) - 0.05, math.log10(max(3.0, middle))])
    return style(figure, title, x="optimiser step", y="validation cross-entropy [nats, log]", height=480)


def schedules(lab) -> go.Figure:
    """Each hyperparameter along the line of ancestors of the winner, a line a seed, as steps."""
    arm = lab.arms["pbt"]
    names = [one.name for one in arm.tasks[0].space]
    heads = [NAMES[n].replace(" [pixel range]", "") for n in names]
    figure = make_subplots(2, 3, subplot_titles=heads, horizontal_spacing=0.09, vertical_spacing=0.2)
    moved = []
    for i, net in enumerate(arm.members):
        steps, plan = study.schedule(net)
        moved.append(float(plan[-1, 0] / plan[0, 0]))
        for k in range(len(names)):
            pen = dict(shape="hv", width=1.8, color=PALETTE[i % 9], dash=("solid", "dot")[i // 9 % 2])
            figure.add_scatter(x=[*steps, arm.total], y=[*plan[:, k].tolist(), float(plan[-1, k])], mode="lines", line=pen,
                               name=f"seed {lab.seeds[i]}", legendgroup=str(i), showlegend=k == 0, row=k // 3 + 1,
                               col=k % 3 + 1)  # fmt: skip
    for k, one in enumerate(arm.tasks[0].space):
        figure.update_xaxes(title_text="optimiser step", row=k // 3 + 1, col=k % 3 + 1)
        if one.log:
            figure.update_yaxes(type="log", exponentformat="power", dtick=1, row=k // 3 + 1, col=k % 3 + 1)
    fell = sum(ratio < 1 for ratio in moved)
    title = f"Along the winners' lines of ancestors the learning rate fell in {fell} of {len(moved)} seeds"
    return style(figure, title, height=600)


# ---- all arms


def tested(lab) -> go.Figure:
    """Test loss of the member chosen on validation, at the last step."""
    shown = [a for a in study.ARMS if a in lab.arms]
    rows = lab.table[lab.table.metric == "test_loss"]
    means = rows.sort_values("step").groupby(["arm", "seed"]).value.last().groupby("arm").mean()
    best, named = means.idxmin(), lambda arm: f"{LABELS[arm].replace('<br>', ' ')} {means[arm]:.3f}"
    others = [named(arm) for arm in ("pbt", "random_search") if arm in means.index and arm != best]
    title = f"Mean test loss in nats: lowest {named(best)}; {', '.join(others)}"
    figure = bars(lab.table, "test_loss", arms=shown, title=title, y_title="test cross-entropy [nats]", palette=arm_colours(lab),
                  names=LABELS, height=480)  # fmt: skip
    return figure.update_xaxes(tickangle=-35)


def diversity(lab) -> go.Figure:
    """How many of the first members still have descendants."""
    shown = [a for a in ("random_search", "pbt", "exploit_only", "pbt_tournament", "pbt_t_test") if a in lab.arms]
    rows = lab.table[lab.table.metric == "founders"]
    last = rows[rows.arm == "pbt"].sort_values("step").groupby("seed").value.last().mean() if "pbt" in shown else math.nan
    title = f"Of {lab.params.population} founders {last:.1f} have descendants in PBT at the end, on average over seeds"
    return curve(lab.table, "founders", arms=shown, title=title, y_title="distinct founders alive [members]",
                 palette=arm_colours(lab), names={a: n.replace("<br>", " ") for a, n in LABELS.items()})  # fmt: skip


# ---- the toy problem


def toy_plane(seed: int, share: float = 1.0) -> go.Figure:
    """Both workers on contours of the true score, with copying and without, up to a `share` of the steps."""
    kinds = {"Population based training": {}, "Grid search (no copies)": {"copy": False, "mutate": False}}
    figure = make_subplots(1, 2, subplot_titles=list(kinds), horizontal_spacing=0.1)
    grid = np.linspace(-0.05, 1.0, 60)
    plane = 1.2 - grid[:, None] ** 2 - grid[None] ** 2
    best = []
    for column, settings in enumerate(kinds.values(), 1):
        path, _ = toy(stream(seed, "toy"), **settings)
        path = path[: max(1, round(share * (len(path) - 1))) + 1]
        best.append(float(true_score(path[-1]).max()))
        figure.add_contour(x=grid, y=grid, z=plane, colorscale="Greys", reversescale=True, showscale=column == 2, opacity=0.5,
                           contours=dict(start=-0.6, end=1.2, size=0.2), colorbar_title="true Q", row=1, col=column)  # fmt: skip
        for worker, colour in enumerate((BLUE, OTHERS[3])):
            x, y = path[:, worker].T.numpy()
            figure.add_scatter(x=x, y=y, mode="lines+markers", name=f"worker {worker}", marker_size=3, showlegend=column == 1,
                               line=dict(color=colour, width=1.5), row=1, col=column)  # fmt: skip
        figure.add_scatter(x=[0], y=[0], mode="markers", marker=dict(symbol="star", size=13, color=OTHERS[0]), name="optimum, Q = 1.2",
                           showlegend=column == 1, row=1, col=column)  # fmt: skip
    figure.update_xaxes(title_text="θ₀", range=[-0.05, 1.0]).update_yaxes(title_text="θ₁", range=[-0.05, 1.0])
    when = "at the end" if share >= 1 else f"at {share:.0%} of the way"
    title = f"Best score {when}: {best[0]:.2f} with copies, {best[1]:.2f} without (noise of seed {seed})"
    return style(figure, title, height=470)


# ---- live views of one population


def _empty(text: str) -> go.Figure:
    return style(go.Figure(), text)


def lineage_now(net, params) -> go.Figure:
    """Members as lines of validation loss, copies as jumps, the ancestors of the present best in bold."""
    return lineage(net, "so far") if net.trail["ended"] else _empty("No round is over yet")


def plane_now(net, params) -> go.Figure:
    """The population in the plane of two hyperparameters (learning rate and input noise; for GANs the two learning rates): how
    each member's ancestors came to where it is, coloured by founder."""
    trail, figure = net.trail, go.Figure()
    hypers, founders = torch.stack(trail["hypers"]).numpy(), trail["founders"][-1].tolist()
    space, other = (study.data.SPACE, 2) if isinstance(net, study.Members) else (study.gan.SPACE, 1)
    for slot, founder in enumerate(founders):
        colour, line = PALETTE[founder % 9], ancestry(trail["parents"], slot).numpy()
        x, y = hypers[np.arange(len(line)), line][:, [0, other]].T
        figure.add_scatter(x=x, y=y, mode="lines", line=dict(color=faded(colour, 0.35), width=1), showlegend=False, hoverinfo="skip")
        figure.add_scatter(x=x[-1:], y=y[-1:], mode="markers", marker=dict(color=colour, size=10), showlegend=False,
                           name=f"founder {founder}", hovertemplate="%{x:.3g}, %{y:.3g}")  # fmt: skip
    for one, update in ((space[0], figure.update_xaxes), (space[other], figure.update_yaxes)):
        if one.log:
            update(type="log", exponentformat="power", dtick=1, range=[math.log10(one.low) - 0.1, math.log10(one.high) + 0.1])
        else:
            update(range=[one.low - 0.03, one.high + 0.03])
    alive = len(set(founders))
    title = f"{len(founders)} members, descendants of {alive} founder{'s' * (alive > 1)} (a colour each), since step {trail['step'][-1]}"
    return style(figure, title, x=_axis(space[0]), y=_axis(space[other]), height=460)


def _axis(one) -> str:
    return NAMES.get(one.name, one.name.replace("_", " ") + " [log]")


def toy_now(net, params) -> go.Figure:
    """The toy problem as far as the training is; its noise is that of seed 0, since a network does not know its seed."""
    done = net.trail["ended"][-1] if net.trail["ended"] else 0
    return toy_plane(0, max(done / params.steps, 0.01))
