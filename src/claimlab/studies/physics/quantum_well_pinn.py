"""quantum-well PINN: a small tanh network solves the Schroedinger equation in one dimension, and learns the energy as well.

How much of the answer hangs on the normalisation term, on the form of the trial function and on the energy's first guess?
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.claims import Claim
from claimlab.models import mlp
from claimlab.params import knob
from claimlab.parts.derivatives import taylor
from claimlab.parts.schedules import cosine
from claimlab.studies.physics._quantum_well_figures import fates, figures, residual_view, wave_view
from claimlab.studies.physics._quantum_well_potentials import Potential, compare, load, potential, solve, source
from claimlab.study import Control, Paper
from claimlab.training import Task, Tick

PAPER = Paper(
    title="Physics-Informed Neural Networks for One-Dimensional Quantum Well Problems", authors="Soumyadip Sarkar", year=2025,
    url="https://arxiv.org/abs/2504.05367", theme="sensitivity", system="quantum-well PINN",
    question="Can a small network find the ground state of a quantum well AND its energy at once, and how much does the answer "
    "depend on where the energy starts?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    v0: float = knob(20.0, "height of the step; higher makes the residual stiffer and the tails shorter", low=5.0, high=200.0)
    e_start: float = knob(5.0, "first guess of the energy; move it towards an excited level and watch which level wins",
                          low=0.0, high=200.0)  # fmt: skip
    w_norm: float = knob(10.0, "weight of the normalisation; 0 lets psi shrink to nothing", low=0.0, high=100.0, live=True)
    lr_energy: float = knob(0.1, "step size of the energy alone", low=0.0001, high=0.5, live=True)
    smooth: float = knob(0.0, "width of the potential's edge; 0 is a true jump", low=0.0, high=0.1, unit="box length")
    width: int = knob(50, "hidden units a layer", low=8, high=128)
    points: int = knob(128, "collocation points, drawn afresh at each step", low=8, high=1024)
    heights: bool = knob(False, "also train finite wells of height 10 and 50")
    polish: int = knob(0, "L-BFGS iterations of an extra arm that goes on where Adam stops; 0 leaves it out", low=0, high=1000)
    steps: int = knob(2000, "optimiser steps", low=40, high=20000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(steps=40, seeds=2, points=32)
    FULL = dict(steps=15000, seeds=10, heights=True, polish=200)
    CONTROL = Control(
        set=dict(w_norm=0.0), vanishes=("normalisation-needed",),
        why="Trivial control: without the term both arms are the same program. No causal control exists, since the trivial "
        "solution psi = 0 belongs to the equation itself.",
    )  # fmt: skip


CLAIMS = (
    Claim("matches-infinite-well", "With the exact energy pi^2 held fixed, the trial wavefunction x(1-x)N(x) ends within 1 % "
          "(relative L2) of sqrt(2) sin(pi x).", kind="bound", metric="psi_error", arm="infinite", better="lower", margin=0.01,
          source="abstract; infinite-well experiment"),
    Claim("learns-finite-well-energy", "With the energy trainable, the finite well's ground-state energy is learned to within "
          "2 %.", kind="bound", metric="energy_error", arm="finite", better="lower", margin=0.02,
          source="abstract; finite-well experiment"),
    Claim("learns-barrier-energy", "The same recipe finds the lowest energy of a box with a central barrier to within 5 %.",
          kind="bound", metric="energy_error", arm="barrier", better="lower", margin=0.05,
          source="abstract; barrier experiment"),
    Claim("normalisation-needed", "Without the normalisation term the wavefunction slides to the trivial solution, so its norm "
          "is further from 1.", kind="paired", metric="norm_defect", arm="finite", baseline="no_norm", better="lower",
          margin=0.2, source="abstract, discussion of the scaling ambiguity"),
    Claim("start-matters", "Starting the energy near the third level instead of below the first gives a larger error of the "
          "reported ground-state energy.", kind="paired", metric="energy_error", arm="far_start", baseline="finite",
          better="higher", margin=0.1,
          source="abstract: convergence to the correct eigenvalue, sensitivity to initialisation"),
)  # fmt: skip
HONESTY = (
    "This problem already is laptop scale, so little is hidden; but one dimension flatters nobody: finite differences win by "
    "orders of magnitude in time and in error, and the study shows it. Higher dimension and time dependence, which the paper "
    "names as outlook, are not tested."
)


# ---- the method. The box is x in [0, 1]; E and V are in units of hbar^2 / (2 m L^2), so that the equation reads
#      -psi''(x) + V(x) psi(x) = E psi(x), psi(0) = psi(1) = 0, and the empty box has E_n = (n pi)^2


def walled(x: Tensor, n: Tensor, n_x: Tensor, n_xx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """psi, psi', psi'' of psi(x) = x (1 - x) N(x), by the product rule; all [B]."""
    g, g_x = x * (1 - x), 1 - 2 * x
    return g * n, g_x * n + g * n_x, -2 * n + 2 * g_x * n_x + g * n_xx


class Trial(nn.Module):
    """psi(x) = x (1 - x) N(x): zero at both walls whatever the network does, so that no boundary loss exists.

    `energy` is one trainable number, or a constant where `learn` is false, or None. With `hard=False`, psi(x) = N(x).
    """

    def __init__(self, width: int, potential: Potential, energy: float | None, *, learn: bool = True, hard: bool = True):
        super().__init__()
        self.net = mlp(1, width, width, 1, activation=nn.Tanh)
        for layer in self.net[::2]:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.potential, self.hard = potential, hard
        value = None if energy is None else torch.tensor(float(energy))
        if learn and value is not None:
            self.energy = nn.Parameter(value)
        else:
            self.register_buffer("energy", value)

    def forward(self, x: Tensor) -> Tensor:
        value = self.net(x[:, None])[:, 0]
        return x * (1 - x) * value if self.hard else value

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """psi, psi', psi'' at x [B]."""
        inner = taylor(self.net, x[:, None])
        return walled(x, *inner) if self.hard else inner


def residual(psi: Tensor, psi_xx: Tensor, v: Tensor, energy: Tensor) -> Tensor:
    """r(x) = -psi'' + (V - E) psi: zero everywhere if and only if psi solves the equation (psi = 0 does as well)."""
    return -psi_xx + (v - energy) * psi


def integral(f: Tensor) -> Tensor:
    """Trapezoid rule on equally spaced nodes that span [0, 1]."""
    return (f.sum() - (f[0] + f[-1]) / 2) / (len(f) - 1)


def quotient(psi: Tensor, psi_x: Tensor, v: Tensor) -> Tensor:
    """Rayleigh's (int psi'^2 + V psi^2) / int psi^2 on equally spaced nodes: never below E_1, equal to it at the ground state."""
    return integral(psi_x**2 + v * psi**2) / integral(psi**2)


# ---- the arms


class Finite(Task):
    """The paper's recipe on the finite well: residual and normalisation, with the energy as one more parameter."""

    lr, ahead = 5e-3, 20
    well, learn, hard = "finite", True, True

    def __init__(self, params):
        super().__init__(params)
        self.potential = potential(self.well, self.height, params.smooth)
        self.scale = max(1.0, self.potential.height / 2)  # the plain residual would drown the normalisation
        self.exact = solve(self.potential)
        self.x = torch.from_numpy(self.exact[0])
        self.nodes, self.v_nodes = self._grid(np.linspace(0, 1, 201))
        self.middles, self.v_middles = self._grid((np.arange(256) + 0.5) / 256)

    def _grid(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(x).float(), torch.from_numpy(self.potential(x, x[1] - x[0])).float()

    @property
    def height(self) -> float:
        return self.p.v0

    @property
    def every(self):
        return max(1, self.steps // 20)

    def first_energy(self) -> float | None:
        return self.p.e_start

    def weight(self) -> float:
        return self.p.w_norm

    def init(self):
        return Trial(self.p.width, self.potential, self.first_energy(), learn=self.learn, hard=self.hard)

    def groups(self):
        return {"energy": {"lr": self.p.lr_energy}}

    schedule = staticmethod(cosine)

    def block(self, net, rng, step, n):
        x = torch.rand(n, self.p.points, generator=rng)
        return x, torch.from_numpy(self.potential(x.numpy())).float()

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def losses(self, net, x, v) -> tuple[Tensor, Tensor]:
        """L_pde = mean (r / s)^2 over the points x [B], and L_norm = (int psi^2 - 1)^2 on 201 fixed nodes."""
        psi, _, psi_xx = net.jet(x)
        pde = (residual(psi, psi_xx, v, net.energy) / self.scale).square().mean()
        return pde, (integral(net(self.nodes.to(x)) ** 2) - 1) ** 2

    def loss(self, net, x, v):
        pde, norm = self.losses(net, x, v)
        return pde + self.weight() * norm

    def report(self, net) -> tuple[Tensor, Tensor, float | None]:
        """What the arm reports: psi on the reference nodes, psi on the quadrature nodes, and E where it has learned one."""
        dtype = next(net.parameters()).dtype
        return net(self.x.to(dtype)), net(self.nodes.to(dtype)), net.energy.item() if self.learn else None

    def metrics(self, net):
        psi, at_nodes, energy = self.report(net)
        mass = float(integral(at_nodes**2))
        found = compare(psi.cpu().double().numpy(), energy, self.potential) | {"mass": mass, "norm_defect": abs(mass - 1)}
        if net.energy is not None:
            dtype = next(net.parameters()).dtype
            pde, norm = self.losses(net, self.middles.to(dtype), self.v_middles.to(dtype))
            found |= {"loss_pde": float(pde), "loss_norm": float(norm)}
        return found


class Infinite(Finite):
    """The energy is known, pi^2, and stays; only psi is learned."""

    well, learn = "infinite", False

    def first_energy(self):
        return math.pi**2


class Barrier(Finite):
    well = "barrier"


class NoNorm(Finite):
    """Ablation of the key term: L = L_pde."""

    def weight(self):
        return 0.0


class FarStart(Finite):
    """The first guess lies just below the third level."""

    def first_energy(self):
        return 0.95 * float(self.exact[1][2])


class SoftBoundary(Finite):
    """Ablation of the trial form: psi = N, and the walls are a penalty."""

    hard, penalty = False, 100.0

    def loss(self, net, x, v):
        return super().loss(net, x, v) + self.penalty * net(self.nodes[[0, -1]].to(x)).square().sum()


class Rayleigh(Finite):
    """The strongest simple neural baseline: the same trial form, but minimise Rayleigh's quotient. No energy parameter, no
    weight to choose; the quotient is blind to the size of psi, so psi is reported at norm 1. It prefers a larger
    rate than the recipe: the best of 2.5e-3, 5e-3, 1e-2 and 2e-2 on development seeds."""

    lr = 2e-2

    def first_energy(self):
        return None

    def groups(self):
        return {}

    def block(self, net, rng, step, n):
        return self.nodes.expand(n, -1), self.v_nodes.expand(n, -1)

    def loss(self, net, x, v):
        psi, psi_x, _ = net.jet(x)
        return quotient(psi, psi_x, v)

    def report(self, net):
        at_nodes = net(self.nodes)
        size = integral(at_nodes**2).sqrt()
        return net(self.x.float()) / size, at_nodes / size, float(self.loss(net, self.nodes, self.v_nodes))


class Low(Finite):
    height = 10.0

    @staticmethod
    def when(params):
        return params.heights


class High(Low):
    height = 50.0


class Own(Finite):
    """The recipe on the potential in the file that CLAIMLAB_DATA names."""

    well = "own"

    @staticmethod
    def when(params):
        return bool(source())


class Polish(Finite):
    """A second stage, which goes on where Adam stopped: L-BFGS in double precision on fixed points. Its line search mixes
    all entries of a tensor, so each member has an optimiser of its own."""

    lr, ahead, joint_optimizer, after = 1.0, 1, False, "finite"

    @staticmethod
    def when(params):
        return params.polish > 0

    @property
    def steps(self):
        return self.p.polish

    def begin(self, start):
        return super().begin(start).double()

    def groups(self):
        return {}  # L-BFGS knows one group only

    def schedule(self, step, steps):
        return 1.0

    def batch(self, net, rng, step):
        return self.middles.double(), self.v_middles.double()

    def optimizer(self, groups):
        leaves = [leaf for group in groups for leaf in group["params"]]
        # one iteration a step; max_eval is what the line search may spend, and its default of 1 lets it fail for ever
        return torch.optim.LBFGS(leaves, lr=self.lr, max_iter=1, max_eval=25, history_size=50, line_search_fn="strong_wolfe")


class FiniteDifferences:
    """The classical baseline on 8, 16, 32 and 64 points (the tick's step); nothing is trained and no seed matters."""

    def __init__(self, params, seeds):
        self.potential, self.members = potential("finite", params.v0, params.smooth), len(seeds)

    def ticks(self):
        x = solve(self.potential)[0]
        for n in (8, 16, 32, 64):
            seconds = min(self._time(n) for _ in range(20))
            nodes, energies, states = solve(self.potential, n)
            psi = np.interp(x, [0, *nodes, 1], [0, *states[0], 0])
            mass = (states[0] ** 2).sum() / (n + 1)
            found = compare(psi, energies[0], self.potential) | {"mass": mass, "norm_defect": abs(mass - 1), "seconds": seconds}
            yield Tick(n, [found] * self.members)

    def _time(self, n: int) -> float:
        began = time.perf_counter()
        solve.__wrapped__(self.potential, n, 1)
        return time.perf_counter() - began


ARMS = {
    "infinite": Infinite, "finite": Finite, "barrier": Barrier, "no_norm": NoNorm, "far_start": FarStart,
    "soft_boundary": SoftBoundary, "rayleigh": Rayleigh, "finite_difference": FiniteDifferences, "finite_10": Low,
    "finite_50": High, "polished": Polish, "own": Own,
}  # fmt: skip
VIEWS = {"wavefunction": wave_view, "residual": residual_view}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Params", "fates", "figures", "load"]
