"""Figures of the study quantum-well-pinn. Each takes the finished lab; the titles say what was found, computed from it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from claimlab.figures import BLUE, INK, arm_colours, style
from claimlab.studies.physics._quantum_well_potentials import Potential, solve

SHADE = "rgba(128,128,128,0.2)"
WORDS = {"infinite": "infinite well", "finite": "finite well", "barrier": "barrier", "own": "your potential"}
ENERGY = "energy E (ħ²/2mL²)"


def figures(lab) -> dict[str, go.Figure]:
    """The study's pictures by name; arms that the lab did not run are left out."""
    drawn = {"wavefunctions": wavefunctions(lab), "energies": energies(lab), "normalisation": normalisation(lab),
             "residuals": residuals(lab), "cost": cost(lab)}  # fmt: skip
    return {name: fig for name, fig in drawn.items() if fig.data}


def fate(found: dict[str, float], potential: Potential) -> str:
    """Where a member ended: `psi = 0`, `E1`, `E2`, `E3` (within 5 %, of norm 1 within 0.5), or `elsewhere`."""
    if not found["norm_defect"] < 0.5:
        return "psi = 0"
    near = np.abs(found["energy"] / solve(potential)[1] - 1)
    return f"E{near.argmin() + 1}" if near.min() < 0.05 else "elsewhere"


def fates(lab, arm: str) -> list[str]:
    """The fate of each member of an arm that learns an energy."""
    rows = last(lab, arm)
    return [fate(row, lab.arms[arm].task.potential) for row in rows.to_dict("records")]


def last(lab, arm: str) -> pd.DataFrame:
    """What an arm recorded last: one row a seed, one column a metric."""
    rows = lab.table[lab.table["arm"] == arm]
    return rows.sort_values("step").groupby(["seed", "metric"])["value"].last().unstack()


def curves(lab, arm: str, metric: str) -> pd.DataFrame:
    """One metric of an arm over its run: one row a step, one column a seed."""
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.pivot(index="step", columns="seed", values="value")


# ---- parts of a figure


def _lines(fig, x, each, colour, name, *, row=1, col=1, dash=None, legend=True) -> None:
    """A thin line for each row of `each` [S, N] and a thick one for their mean."""
    for one in each:
        fig.add_scatter(x=x, y=one, mode="lines", line={"color": colour, "width": 1, "dash": dash}, opacity=0.4,
                        showlegend=False, hoverinfo="skip", row=row, col=col)  # fmt: skip
    fig.add_scatter(x=x, y=np.mean(each, 0), mode="lines", line={"color": colour, "width": 2.5, "dash": dash}, name=name,
                    legendgroup=name, showlegend=legend, row=row, col=col)  # fmt: skip


def _shade(fig, x, v, top: float, *, row=1, col=1, legend=False) -> None:
    """The potential as a grey ground of height `top`."""
    span = v.max() - v.min()
    if span > 0:
        fig.add_scatter(x=x, y=(v - v.min()) / span * top, mode="lines", line={"width": 0}, fill="tozeroy", fillcolor=SHADE,
                        name="V, not to scale", showlegend=legend, hoverinfo="skip", row=row, col=col)  # fmt: skip


def _number(value: float) -> str:
    """Two significant digits without an exponent where that is short."""
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.0e}"


def _percent(value: float) -> str:
    return f"{_number(100 * value)} %"


# ---- the figures


def wavefunctions(lab) -> go.Figure:
    """psi of every member over the exact ground state, the potential behind."""
    arms = [arm for arm in WORDS if arm in lab.arms]
    worst = {arm: last(lab, arm)["psi_error"].max() for arm in arms}
    heads = [f"{WORDS[arm]}: worst {_percent(worst[arm])}" for arm in arms]
    fig = make_subplots(1, max(1, len(arms)), shared_yaxes=True, subplot_titles=heads, horizontal_spacing=0.03)
    for k, arm in enumerate(arms, 1):
        run, task = lab.arms[arm], lab.arms[arm].task
        x, _, states = task.exact
        thin = slice(None, None, 10)
        with torch.no_grad():
            each = [task.report(net)[0].double().cpu().numpy() for net in run.members]
        each = [psi * (np.sign(psi @ states[0]) or 1) for psi in each]
        _shade(fig, x, task.potential(x), 1.2 * states[0].max(), col=k, legend=k == 2)
        _lines(fig, x[thin], [psi[thin] for psi in each], BLUE, f"network, {len(each)} seeds", col=k, legend=k == 1)
        fig.add_scatter(x=x[thin], y=states[0][thin], mode="lines", line={"color": INK, "dash": "dot", "width": 2},
                        name="exact ground state", showlegend=k == 1, row=1, col=k)  # fmt: skip
    fig.update_xaxes(title="x (box lengths L)").update_yaxes(title="ψ (L<sup>-1/2</sup>)", col=1)
    close = sum(w < 0.05 for w in worst.values())
    return style(fig, f"In {close} of {len(arms)} potentials every seed ends within 5 % of the exact ψ")


def energies(lab) -> go.Figure:
    """The energy parameter along the run, for the near and the far start, with the three lowest exact levels."""
    fig, colour = go.Figure(), arm_colours(lab)
    arms = [arm for arm in ("finite", "far_start") if arm in lab.arms]
    for arm in arms:
        table = curves(lab, arm, "energy")
        one = make_subplots(1, 1)
        _lines(one, table.index, table.to_numpy().T, colour[arm], f"starts at {table.iloc[0].mean():.3g}")
        fig.add_traces(one.data)
    if not arms:
        return fig
    levels, steps = lab.arms[arms[0]].task.exact[1], table.index[[0, -1]]
    for k, level in enumerate(levels, 1):
        fig.add_scatter(x=steps, y=[level, level], mode="lines+text", line={"color": INK, "dash": "dot", "width": 1},
                        text=["", f"E{k} = {level:.3g}"], textposition="top left", showlegend=False)  # fmt: skip
    fig.update_yaxes(range=[0, 1.1 * max(levels[-1], table.to_numpy().max())])
    told = "; ".join(_ended(lab, arm) for arm in arms)
    return style(fig, told[0].upper() + told[1:], x="optimiser step", y=ENERGY)


def _ended(lab, arm: str) -> str:
    """Such as `from 5, all 5 seeds end at E1`."""
    ends = fates(lab, arm)
    start = curves(lab, arm, "energy").iloc[0].mean()
    told = [f"{'all ' if n == len(ends) else ''}{n} seeds end at {end}" for end, n in pd.Series(ends).value_counts().items()]
    return f"from {start:.3g}, {' and '.join(told)}".replace("at elsewhere", "elsewhere").replace("psi", "ψ")


def normalisation(lab) -> go.Figure:
    """Left: the two terms of the loss of the finite well. Right: int psi^2 with and without the term."""
    fig = make_subplots(1, 2, subplot_titles=("loss of the finite well, term by term", "∫ψ² dx along the run"),
                        horizontal_spacing=0.14)  # fmt: skip
    arms, colour = [arm for arm in ("finite", "no_norm", "soft_boundary") if arm in lab.arms], arm_colours(lab)
    if not {"finite", "no_norm"} <= set(arms):
        return go.Figure()
    for metric, dash, name in (("loss_pde", None, "residual term"), ("loss_norm", "dot", "normalisation term")):
        table = curves(lab, "finite", metric)
        _lines(fig, table.index, table.to_numpy().T, BLUE, name, dash=dash)
    for arm in arms:
        table = curves(lab, arm, "mass")
        _lines(fig, table.index, table.to_numpy().T, colour[arm], arm.replace("_", " "), col=2)
    fig.update_yaxes(type="log", exponentformat="power", dtick=2).update_xaxes(title="optimiser step")
    fig.update_yaxes(title="loss term (1)", col=1).update_yaxes(title="∫ψ² dx (1)", col=2)
    kept, free = (_number(last(lab, arm)["mass"].median()) for arm in ("finite", "no_norm"))
    return style(fig, f"With the normalisation term ∫ψ² ends at {kept}, without it at {free}")


def residuals(lab) -> go.Figure:
    """r(x) of every member at the end, with the places where V jumps."""
    arms = [arm for arm in ("finite", "barrier", "own") if arm in lab.arms]
    shares, drawn = [], {}
    for arm in arms:
        task = lab.arms[arm].task
        drawn[arm] = np.array([residual_of(net, task.potential) for net in lab.arms[arm].members])
        near = _near_jump(task.potential, 0.03)
        if near.any():
            share = (drawn[arm][:, near] ** 2).sum() / (drawn[arm] ** 2).sum()
            shares.append(f"{share:.0%} ({WORDS[arm]}, {near.mean():.0%} of the box)")
    fig = make_subplots(1, max(1, len(arms)), subplot_titles=[WORDS[arm] for arm in arms])
    for k, arm in enumerate(arms, 1):
        _lines(fig, GRID, drawn[arm], BLUE, f"network, {len(drawn[arm])} seeds", col=k, legend=k == 1)
        for jump in _jumps(lab.arms[arm].task.potential):
            fig.add_vline(jump, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=k)
    fig.update_xaxes(title="x (box lengths L)").update_yaxes(title="residual r (ψ × ħ²/2mL²)", col=1)
    return style(fig, "Share of the squared residual within 0.03 of a jump of V: " + (", ".join(shares) or "V has no jump"))


def cost(lab) -> go.Figure:
    """Relative error of the energy against seconds of computing, all seeds together; finite differences by number of points."""
    fig, told, colour = go.Figure(), [], arm_colours(lab)
    spent = lab.budgets.set_index("arm")["seconds"] if len(lab.budgets) else {}
    for arm, name in (("finite", "PINN"), ("rayleigh", "Rayleigh network"), ("finite_difference", "finite differences")):
        if arm not in lab.arms:
            continue
        error = curves(lab, arm, "energy_error")
        error = error[error.index > 0].mean(axis=1)
        classical = arm == "finite_difference"
        seconds = curves(lab, arm, "seconds").mean(axis=1) if classical else error.index / error.index[-1] * spent[arm]
        labels = [f"{n} points" for n in error.index] if classical else None
        fig.add_scatter(x=seconds, y=error, mode="lines+markers+text" if classical else "lines+markers", name=name, text=labels,
                        textposition="middle right", line={"color": colour[arm]})  # fmt: skip
        told.append(f"{name} {_percent(error.iloc[-1])} in {_duration(np.asarray(seconds)[-1])}")
    fig.update_xaxes(type="log", title="wall-clock time (s), all seeds together", exponentformat="power", dtick=1)
    fig.update_yaxes(type="log", title="relative error of E (1)", exponentformat="power", dtick=1)
    return style(fig, "Error of the energy: " + "; ".join(told))


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.0f} s"


# ---- r(x), where V jumps, and the views of one member

GRID = (np.arange(500) + 0.5) / 500


def residual_of(net, potential: Potential) -> np.ndarray:
    """r = -psi'' + (V - E) psi of one member on 500 places; where it has no energy, with its Rayleigh quotient."""
    x = torch.from_numpy(GRID).to(next(net.parameters()))
    with torch.no_grad():
        psi, _, psi_xx = (part.double().cpu().numpy() for part in net.jet(x))
    sign = 1 if psi.sum() >= 0 else -1  # that of psi is free
    return sign * (-psi_xx + (potential(GRID) - energy_of(net)) * psi)


def energy_of(net) -> float:
    """The energy that a member reports: its parameter, or the Rayleigh quotient of its psi."""
    if net.energy is not None:
        return net.energy.item()
    x = torch.from_numpy(GRID).to(next(net.parameters()))
    with torch.no_grad():
        psi, psi_x, _ = (part.double().cpu().numpy() for part in net.jet(x))
    return float((psi_x**2 + net.potential(GRID, 1 / 500) * psi**2).sum() / (psi**2).sum())


def _jumps(potential: Potential) -> list[float]:
    half = getattr(potential, "half", None)
    return [] if half is None or not potential.height else [0.5 - half, 0.5 + half]


def _near_jump(potential: Potential, reach: float) -> np.ndarray:
    return np.any([np.abs(GRID - jump) < reach for jump in _jumps(potential)] or [np.zeros(len(GRID), bool)], axis=0)


def wave_view(net, params) -> go.Figure:
    """psi of one member drawn on its energy, over the exact ground state drawn on E1; the potential in grey."""
    x, levels, states = solve(net.potential)
    x, ground = x[::10], states[0][::10]
    with torch.no_grad():
        psi = net(torch.from_numpy(x).to(next(net.parameters()))).double().cpu().numpy()
    psi, energy = psi * (np.sign(psi @ ground) or 1), energy_of(net)
    size = 0.25 * (levels[1] - levels[0])
    fig = go.Figure()
    fig.add_scatter(x=x, y=net.potential(x), mode="lines", line={"width": 0}, fill="tozeroy", fillcolor=SHADE, name="V")
    for y, level, colour, dash, name in ((ground, levels[0], INK, "dot", f"exact, E1 = {levels[0]:.4g}"),
                                         (psi, energy, BLUE, None, f"network, E = {energy:.4g}")):  # fmt: skip
        line = {"color": colour, "dash": dash}
        fig.add_scatter(x=[0, 1], y=[level, level], mode="lines", line={**line, "width": 1}, showlegend=False)
        fig.add_scatter(x=x, y=level + size * y, mode="lines", line=line, name=name)
    fig.update_xaxes(title="x (box lengths L)").update_yaxes(title=f"{ENERGY}; ψ on its level")
    return style(fig, f"E = {energy:.4g}, {abs(energy / levels[0] - 1):.1%} from the ground state")


def residual_view(net, params) -> go.Figure:
    """r(x) of one member."""
    r = residual_of(net, net.potential)
    fig = go.Figure(go.Scatter(x=GRID, y=r, mode="lines", line={"color": BLUE}, name="residual"))
    for jump in _jumps(net.potential):
        fig.add_vline(jump, line={"color": INK, "dash": "dot", "width": 1})
    fig.update_xaxes(title="x (box lengths L)").update_yaxes(title="residual r (ψ × ħ²/2mL²)")
    return style(fig, f"Residual of root mean square {math.sqrt((r**2).mean()):.2g}")
