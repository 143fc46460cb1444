"""The quantum-well study against closed forms, finite differences, automatic differentiation and theorems."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.func import jvp

from claimlab.experiment import Experiment
from claimlab.models import mlp
from claimlab.study import find
from claimlab.training import Run

STUDY = find("quantum-well-pinn")
method = STUDY.module
drawing = __import__("claimlab.studies.physics._quantum_well_figures", fromlist=["figures"])
wells = __import__("claimlab.studies.physics._quantum_well_potentials", fromlist=["Step"])


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def double_net(seed=0, width=7):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(1, width, width, 1, activation=nn.Tanh).double()


# ---- the method


def test_the_closed_form_of_the_infinite_well_has_no_residual():
    x = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)

    def inner(at):  # N with x (1 - x) N = sqrt(2) sin(pi x)
        return math.sqrt(2) * torch.sin(math.pi * at) / (at * (1 - at))

    def slope(at):
        return jvp(inner, (at,), (torch.ones_like(at),))[1]

    n_x, n_xx = jvp(slope, (x,), (torch.ones_like(x),))
    psi, psi_x, psi_xx = method.walled(x, inner(x), n_x, n_xx)
    assert method.residual(psi, psi_xx, torch.zeros_like(x), math.pi**2).abs().max() < 1e-8
    assert torch.allclose(psi_x, math.sqrt(2) * math.pi * torch.cos(math.pi * x), atol=1e-10)


def test_the_energy_that_zeroes_the_gradient_is_the_closed_form():
    """dL/dE = 0 at E = mean(psi H psi) / mean(psi^2), since L is a parabola in E at fixed psi."""
    task = method.Finite(STUDY.make())
    net = task.init().double()
    x = torch.rand(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    v = torch.from_numpy(task.potential(x.numpy()))
    with torch.no_grad():
        psi, _, psi_xx = net.jet(x)
        best = (psi * (-psi_xx + v * psi)).mean() / (psi**2).mean()
        net.energy.copy_(best)
    (at_best,) = torch.autograd.grad(task.losses(net, x, v)[0], net.energy)
    with torch.no_grad():
        net.energy.add_(1.0)
    (beside,) = torch.autograd.grad(task.losses(net, x, v)[0], net.energy)
    assert abs(at_best) < 1e-12
    assert beside == pytest.approx(2 * float((psi**2).mean()) / task.scale**2, rel=1e-9)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_little_of_a_level_grows_only_inside_the_trap_radius(level):
    """Near psi = 0 the loss is w + m [(E_n - E)^2 / s^2 - 2 w] for a piece of level n of squared size m (all of them sums)."""
    task = method.Finite(STUDY.make())
    _, levels, states = task.exact
    h, w, energy, m = 1 / (len(states[0]) + 1), 10.0, 60.0, 1e-6
    psi = math.sqrt(m) * torch.from_numpy(np.array([0, *states[level], 0]))
    psi_xx = (psi[2:] - 2 * psi[1:-1] + psi[:-2]) / h**2
    r = method.residual(psi[1:-1], psi_xx, torch.from_numpy(task.potential(task.exact[0], h)), energy)
    loss = float((r / task.scale).square().sum() * h + w * (method.integral(psi**2) - 1) ** 2)
    expected = (levels[level] - energy) ** 2 / task.scale**2 - 2 * w
    assert (loss - w) / m == pytest.approx(expected, abs=1e-3)
    assert (expected < 0) == (abs(levels[level] - energy) < task.scale * math.sqrt(2 * w))


def test_the_walls_are_exact_zeros_whatever_the_network():
    ends = torch.tensor([0.0, 1.0])
    net = method.Finite(STUDY.make()).init()
    assert net(ends).tolist() == [0.0, 0.0]
    assert method.SoftBoundary(STUDY.make()).init()(ends)[1].abs() > 1e-3


def test_rayleighs_quotient_is_e1_at_the_ground_state_and_above_it_elsewhere():
    v = wells.potential("finite", 20.0)
    x, levels, states = wells.solve(v)
    h = x[1] - x[0]
    full = torch.from_numpy(np.array([0, *states[0], 0]))
    slope = torch.from_numpy(np.gradient(full.numpy(), h))
    nodes = np.linspace(0, 1, len(full))
    assert method.quotient(full, slope, torch.from_numpy(v(nodes, h))) == pytest.approx(levels[0], rel=1e-4)
    task = method.Rayleigh(STUDY.make())
    for seed in range(20):
        torch.manual_seed(seed)
        psi, psi_x, _ = task.init().jet(task.nodes)
        assert method.quotient(psi, psi_x, task.v_nodes) > levels[0] * (1 - 1e-3)


# ---- exact answers


def test_finite_differences_converge_to_n_pi_squared_at_second_order():
    empty = wells.potential("infinite", 20.0)
    exact = (np.arange(1, 4) * math.pi) ** 2
    errors = np.array([abs(wells.solve(empty, n)[1] - exact) for n in (99, 199, 399)])
    assert np.log2(errors[:-1] / errors[1:]) == pytest.approx(np.full((2, 3), 2.0), abs=0.01)
    x, _, states = wells.solve(empty)
    assert np.abs(states[0] - math.sqrt(2) * np.sin(math.pi * x)).max() < 1e-5


@pytest.mark.parametrize("v0", [20.0, 50.0, 200.0])
def test_the_finite_well_solves_its_transcendental_equation(v0):
    """cos(k (x - 1/2)) inside and sinh tails that vanish at the walls: k tan(k / 4) = kappa coth(kappa / 4)."""

    def mismatch(energy):
        k, kappa = math.sqrt(energy), math.sqrt(v0 - energy)
        return k * math.sin(k / 4) - kappa / math.tanh(kappa / 4) * math.cos(k / 4)

    # below the smaller of V0 and the level of an empty well of width 1/2, where k / 4 = pi / 2
    exact = brentq(mismatch, 1e-6, min(v0, (2 * math.pi) ** 2) - 1e-9)
    assert wells.solve(wells.potential("finite", v0))[1][0] == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("name", ["infinite", "finite", "barrier"])
def test_states_oscillate_as_sturm_says(name):
    _, levels, states = wells.solve(wells.potential(name, 20.0))
    assert [wells.interior_zeros(s) for s in states] == [0, 1, 2]
    assert np.diff(levels).min() > 0


@pytest.mark.parametrize(("name", "share"), [("finite", 0.5), ("barrier", 0.2)])
def test_cell_means_keep_the_area_of_the_step(name, share):
    for n in (40, 201, 1000):
        x = (np.arange(n) + 0.5) / n
        assert wells.potential(name, 20.0)(x, 1 / n).mean() == pytest.approx(20 * share, rel=1e-12)


def test_a_narrow_logistic_edge_tends_to_the_jump():
    x = np.linspace(0, 1, 1001)
    x = x[np.abs(np.abs(x - 0.5) - 0.25) > 0.005]
    assert np.abs(wells.potential("finite", 20.0, 1e-4)(x) - wells.potential("finite", 20.0)(x)).max() < 1e-10


def test_comparison_frees_the_sign_and_keeps_the_size():
    v = wells.potential("finite", 20.0)
    _, levels, states = wells.solve(v)
    assert wells.compare(-states[0], levels[0], v)["psi_error"] == pytest.approx(0, abs=1e-12)
    assert wells.compare(2 * states[0], None, v)["psi_error"] == pytest.approx(1)
    other = wells.compare(states[2], levels[2], v)  # an exact solution of the equation, and the wrong one
    assert other["psi_error"] == pytest.approx(math.sqrt(2)) and other["nodes"] == 2
    assert other["energy_error"] == pytest.approx(levels[2] / levels[0] - 1)


def test_fates_are_named_after_the_levels():
    v = wells.potential("finite", 20.0)
    levels = wells.solve(v)[1]
    for k, level in enumerate(levels, 1):
        assert drawing.fate({"norm_defect": 0.01, "energy": level * 1.01}, v) == f"E{k}"
    assert drawing.fate({"norm_defect": 1.0, "energy": levels[0]}, v) == "psi = 0"
    assert drawing.fate({"norm_defect": float("nan"), "energy": levels[0]}, v) == "psi = 0"
    assert drawing.fate({"norm_defect": 0.0, "energy": 2 * levels[0]}, v) == "elsewhere"


# ---- the arms


def test_without_the_normalisation_weight_the_method_is_the_ablation():
    """The control: at w_norm = 0 both arms are one program, number for number, and the claim is not supported."""
    p = STUDY.make({**STUDY.control.set, "steps": 40, "points": 16, "seeds": 5})
    lab = Experiment(STUDY, p, arms=["finite", "no_norm"]).run()
    one, other = (lab.table.query("arm == @a").drop(columns="arm").reset_index(drop=True) for a in ("finite", "no_norm"))
    assert len(one) and one.equals(other)
    assert {v.claim: v.verdict for v in lab.verdicts()}["normalisation-needed"] != "supported"


def test_arms_of_a_seed_share_first_weights_and_points():
    p = STUDY.make(profile="smoke")
    near, far = Run(method.Finite(p), [4]), Run(method.FarStart(p), [4])
    for (name, a), (_, b) in zip(near.members[0].named_parameters(), far.members[0].named_parameters(), strict=True):
        assert torch.equal(a, b) != (name == "energy")
    assert far.members[0].energy.item() == pytest.approx(0.95 * near.task.exact[1][2])
    near.advance(), far.advance()
    assert all(torch.equal(a, b) for a, b in zip(near._block[0][0], far._block[0][0], strict=True))


def test_the_energy_has_its_own_rate_and_both_decay_to_zero():
    task = method.Finite(STUDY.make({"lr_energy": 0.3}))
    run = Run(task, [0], steps=10)
    run.advance()
    rates = {g["key"]: g["lr"] for g in run.ensembles[0].optimizers[""][0][0].param_groups}
    assert rates == {"": pytest.approx(5e-3), "energy": pytest.approx(0.3)}
    assert task.schedule(5, 10) == pytest.approx(0.5) and task.schedule(10, 10) == pytest.approx(0)


def test_the_known_energy_stays():
    run = Run(method.Infinite(STUDY.make(profile="smoke")), [0, 1], steps=5)
    last = list(run)[-1]
    assert all(float(net.energy) == pytest.approx(math.pi**2) for net in run.members)
    assert "energy_error" not in last.metrics[0]  # nothing was learned, so there is nothing to be proud of


def test_polish_goes_on_from_finite_and_lowers_its_loss_for_each_member_alone():
    p = STUDY.make({"steps": 100, "points": 32, "seeds": 2, "polish": 20})
    lab = Experiment(STUDY, p, arms=["polished"]).run()
    pde = drawing.curves(lab, "polished", "loss_pde") + 10 * drawing.curves(lab, "polished", "loss_norm")
    assert (pde.iloc[-1] < 0.6 * pde.iloc[0]).all() and (pde.diff().dropna() <= 0).all().all()
    start = drawing.curves(lab, "finite", "energy").iloc[-1]
    assert drawing.curves(lab, "polished", "energy").iloc[0].tolist() == pytest.approx(start.tolist())
    alone = Run(method.Polish(p), [1], start=lab.arms["finite"].members[1:])
    assert list(alone)[-1].metrics[0]["energy"] == drawing.curves(lab, "polished", "energy").loc[20, 1]


def test_finite_differences_need_few_points(smoke):
    error = drawing.curves(smoke, "finite_difference", "energy_error")
    assert error.index.tolist() == [8, 16, 32, 64]
    assert (error.diff().dropna() < 0).all().all() and (error.loc[64] < 2e-4).all()
    assert (drawing.curves(smoke, "finite_difference", "seconds") < 0.1).all().all()


def test_a_changed_weight_acts_from_the_next_step():
    run = Run(method.Finite(STUDY.make(profile="smoke")), [0, 1])
    run.advance()
    run.set(w_norm=0.0)
    net, batch = run.members[0], run._batches()
    x, v = (part[0] for part in batch[0])
    assert run.task.loss(net, x, v) == run.task.losses(net, x, v)[0]


# ---- figures


def test_every_figure_of_a_smoke_run_holds_numbers(smoke):
    drawn = method.figures(smoke)
    assert list(drawn) == ["wavefunctions", "energies", "normalisation", "residuals", "cost"]
    for name, fig in drawn.items():
        assert fig.layout.title.text and "nan" not in fig.layout.title.text, name
        for trace in fig.data:
            assert len(trace.y) > 1 and np.isfinite(np.asarray(trace.y, float)).all(), (name, trace.name)
    exact = [t for t in drawn["wavefunctions"].data if t.name == "exact ground state"]
    assert max(exact[0].y) == pytest.approx(math.sqrt(2), rel=1e-3)
    assert "all 2 seeds end" in drawn["energies"].layout.title.text


def test_figures_leave_out_arms_that_did_not_run():
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), arms=["barrier", "finite_difference"]).run()
    assert set(method.figures(lab)) == {"wavefunctions", "residuals", "cost"}


@pytest.mark.parametrize("arm", ["finite", "rayleigh", "infinite"])
def test_views_show_the_energy_of_the_member(smoke, arm):
    net = smoke.arms[arm].members[0]
    expected = drawing.last(smoke, arm).get("energy", {}).get(0, math.pi**2)
    assert drawing.energy_of(net) == pytest.approx(expected, rel=2e-3)
    for view in method.VIEWS.values():
        fig = view(net, smoke.params)
        assert len(fig.data) and fig.layout.title.text


# ---- a potential of one's own


def csv(path, rows, head="x,V", encoding="utf-8"):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]), encoding=encoding)
    return str(path)


def oscillator(n=401, omega=60.0, low=-2.0, high=6.0):
    x = np.linspace(low, high, n)
    return [(a, omega**2 * ((a - low) / (high - low) - 0.5) ** 2) for a in x]


def test_an_own_potential_is_rescaled_and_has_its_known_levels(tmp_path):
    """-psi'' + (omega x)^2 psi = E psi has the levels omega (2 n + 1)."""
    levels = wells.solve(wells.load(csv(tmp_path / "well.csv", oscillator())))[1]
    assert levels == pytest.approx([60, 180, 300], rel=2e-3)


def test_the_recipe_runs_on_an_own_potential(tmp_path, monkeypatch):
    assert "own" not in Experiment(STUDY, STUDY.make(profile="smoke")).specs
    monkeypatch.setenv("CLAIMLAB_DATA", csv(tmp_path / "well.csv", oscillator()))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), arms=["own"]).run()
    assert lab.arms["own"].task.exact[1][0] == pytest.approx(60, rel=2e-3)
    assert np.isfinite(drawing.last(lab, "own")["energy_error"]).all()
    assert set(method.figures(lab)) == {"wavefunctions", "residuals"}


ROWS = oscillator(60)


@pytest.mark.parametrize(
    ("rows", "head", "encoding", "told"),
    [
        (ROWS, "x,U", "utf-8", "column V is missing"),
        (ROWS, "a,b", "utf-8", "column x and V is missing"),
        ([], "x,V", "utf-8", "0 rows"),
        (ROWS[:49], "x,V", "utf-8", "49 rows; at least 50"),
        ([*ROWS[:7], (ROWS[7][0], "nan"), *ROWS[8:]], "x,V", "utf-8", "V in row 8 is not a finite"),
        ([*ROWS[:7], (ROWS[7][0], "inf"), *ROWS[8:]], "x,V", "utf-8", "V in row 8 is not a finite"),
        ([*ROWS[:7], (ROWS[7][0], "high"), *ROWS[8:]], "x,V", "utf-8", "column V holds text"),
        ([*ROWS[:7], (True, 1.0), *ROWS[8:]], "x,V", "utf-8", "column x holds text"),
        ([*ROWS[:7], ROWS[6], *ROWS[8:]], "x,V", "utf-8", "row 8 does not lie above row 7"),
        (ROWS[::-1], "x,V", "utf-8", "x must ascend"),
        (ROWS, "x,V,größe", "latin-1", "not a CSV file in UTF-8"),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path, rows, head, encoding, told):
    with pytest.raises(ValueError, match=told) as refusal:
        wells.load(csv(tmp_path / "bad.csv", rows, head, encoding))
    assert "bad.csv" in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="CLAIMLAB_DATA names .*nowhere.csv, which is not a file"):
        wells.load(str(tmp_path / "nowhere.csv"))
