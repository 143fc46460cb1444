"""The metalic study against scikit-learn, scipy, automatic differentiation, closed forms and brute force."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from torch.func import hessian, jacfwd, jvp, vmap

from claimlab.experiment import Experiment
from claimlab.study import find

STUDY = find("metalic")
method = STUDY.module


def sibling(name):
    return __import__(f"claimlab.studies.physics._metalic_{name}", fromlist=["x"])


physics, bandit, data, descent = (sibling(name) for name in ("physics", "bandit", "data", "lbfgs"))
FAMILIES = {"advection": (physics.Advection, [0.4, 1.7]), "poisson": (physics.Poisson, [3.0, 6.5])}


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def random_pairs(count, seed=0):
    return 0.7 * torch.randn(count, 2, physics.weights_of(1), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the equations, the networks and the conditions


def exact(family, beta):
    """The solution as a function of one point [2], in torch."""

    def u(z):
        if family == "advection":
            return torch.sin(2 * math.pi * (z[0] - beta * z[1]))
        steps = torch.erf(beta * (z[0] - 0.25)) - torch.erf(beta * (z[0] - 0.75))
        return steps / 2 * torch.sin(math.pi * z[1])

    return u


def jets_of(family, betas):
    """Stands for `every`: the exact solution in place of both networks, its derivatives by nested forward mode."""

    def one(beta, z, direction, third):
        u = exact(family, beta)

        def slope(w):
            return jvp(u, (w,), (direction,))[1]

        def bend(w):
            return jvp(slope, (w,), (direction,))[1]

        last = (jvp(bend, (z,), (torch.tensor([1.0, 0.0], dtype=z.dtype),))[1],) if third else ()
        return torch.stack([u(z), slope(z), bend(z), *last])

    def every(flat, x, along=None, *, third=False):
        rows = []
        for k, beta in enumerate(betas):
            direction = torch.tensor([1.0, 0.0], dtype=x.dtype) if along is None else along[k].to(x)
            found = [vmap(lambda z, b=beta, d=direction: one(b, z, d, third), out_dims=1)(half) for half in x]
            rows.append(torch.stack(found, 1))
        found = torch.stack(rows, 1)  # [3 or 4, P, 2, N]
        return found[0] if along is None else tuple(found)

    return every


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_solution_has_no_loss_whatever_the_conditions(family, monkeypatch):
    make, betas = FAMILIES[family]
    setting = physics.Setting(make(betas))
    monkeypatch.setattr(physics, "every", jets_of(family, betas))
    points = physics.inside(torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    chosen, which = torch.ones(2, 5, dtype=torch.float64), torch.tensor([0, 1])
    flat = torch.zeros(2, 2, 1, dtype=torch.float64)
    loss = physics.losses(flat, setting, which, chosen, points, setting.source(points), 5.0)
    assert loss.max() < 1e-16  # data, residual and all five conditions are squares of less than 1e-8
    wrong = physics.losses(flat, setting, which.flip(0), chosen, points, setting.source(points), 5.0)
    assert wrong.min() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_the_networks_are_those_of_jacfwd_and_hessian(family):
    flat, beta = random_pairs(2), torch.tensor([0.7, 2.0], dtype=torch.float64)
    line = torch.stack([torch.full((3,), 0.5), torch.tensor([0.1, 0.5, 0.8])], -1).double().expand(2, -1, -1)
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    at = physics.fields(flat, line, beta, family, zero, seam=3, pool=5, f_x=zero)
    for p in range(2):
        for k in range(2):

            def u(z, p=p, k=k):
                return physics.apply(flat[p, k], z[None])[0]

            def residual(z, u=u, b=beta[p]):
                if family == "advection":
                    return jacfwd(u)(z) @ torch.stack([b, torch.ones_like(b)])
                return hessian(u)(z).trace()

            for j, z in enumerate(line[k]):
                slope = jacfwd(u)(z)
                flux = beta[p] * u(z) if family == "advection" else slope[0]
                wanted = {"u": u(z), "u_x": slope[0], "u_y": slope[1], "flux": flux, "F": residual(z)}
                wanted["F_x"] = jacfwd(residual)(z)[0]
                for name, value in wanted.items():
                    assert at[name][p, k, j] == pytest.approx(float(value), abs=1e-9), name


def test_each_condition_is_its_formula_in_plain_numbers():
    rng = np.random.default_rng(0)
    at = {name: rng.normal(size=(1, 2, 4)) for name in ("u", "F", "u_x", "u_y", "flux", "F_x")}
    found = physics.conditions({name: torch.from_numpy(v) for name, v in at.items()}, 5)[0].numpy()
    one, two = ({name: v[0, k] for name, v in at.items()} for k in (0, 1))
    average = (one["u"] + two["u"]) / 2
    assert found == pytest.approx([
        np.mean((one["u"] - average) ** 2 + (two["u"] - average) ** 2), np.mean((one["F"] - two["F"]) ** 2),
        np.mean((one["u_x"] - two["u_x"]) ** 2 + (one["u_y"] - two["u_y"]) ** 2), np.mean((one["flux"] - two["flux"]) ** 2),
        np.mean(one["F_x"] ** 2 + two["F_x"] ** 2),
    ])  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_without_interface_weight_every_choice_is_the_same_training(family):
    make, betas = FAMILIES[family]
    setting, bits = physics.Setting(make(betas)), physics.actions(3)
    flat = random_pairs(1).expand(len(bits), -1, -1)
    points = physics.inside(torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(2)))
    which = torch.zeros(len(bits), dtype=torch.long)

    def loss(weight):
        return physics.losses(flat, setting, which, bits, points, setting.source(points), weight)

    assert torch.equal(loss(0.0), loss(0.0)[:1].expand(len(bits)))
    assert len(torch.unique(loss(1.0))) == len(bits)


def test_the_choices_are_all_non_empty_subsets_and_share_their_start(smoke):
    assert sorted(map(tuple, physics.actions(3).tolist())) == sorted(
        (a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1) if a + b + c
    )
    task = method.Adam(STUDY.make())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        starts = task.init().weights.detach().unflatten(0, (15, 7))
    assert torch.equal(starts, starts[:, :1].expand_as(starts))
    assert not torch.equal(starts[0, 0], starts[1, 0])


def test_the_error_is_that_of_plain_numpy(smoke):
    """The table's error again, from the weights, by a forward pass in numpy and the closed form of the solution."""
    table = smoke.arms["lbfgs"]
    (i, b, one, two), (error, flat) = next(iter(sorted(table.known.items(), key=lambda item: item[0])))
    axis, sizes = np.linspace(0, 1, 41), [(2, 16), (16, 16), (16, 1)]
    x, t = np.meshgrid(axis, axis, indexing="ij")
    sheets = []
    for weights in flat.double().numpy():
        h, place = np.stack([x, t], -1), 0
        for k, (inside, outside) in enumerate(sizes):
            w = weights[place : place + inside * outside].reshape(outside, inside)
            h = h @ w.T + weights[place + inside * outside : place + (inside + 1) * outside]
            h, place = (np.tanh(h) if k < 2 else h), place + (inside + 1) * outside
        sheets.append(h[..., 0])
    field = np.where(x < 0.49, sheets[0], np.where(x > 0.51, sheets[1], (sheets[0] + sheets[1]) / 2))
    truth = np.sin(2 * np.pi * (x - table.stream.setting.betas[b] * t))
    assert error == pytest.approx(math.log10(np.linalg.norm(field - truth) / np.linalg.norm(truth)), abs=1e-5)


def test_a_diverged_pair_counts_as_ten_and_is_not_dropped():
    setting = physics.Setting(physics.Advection([1.0]))
    flat = random_pairs(3)
    flat[1, 0, 0], flat[2] = math.nan, flat[2] * 1e6
    found = physics.log_error(flat, setting, torch.zeros(3, dtype=torch.long))
    assert found[1] == 1.0 and found[2] == 1.0 and found[0] < 1.0


# ---- L-BFGS side by side


def quadratic(seed, count=4, n=6):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(count, n, n))
    return torch.from_numpy(roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(n)), torch.from_numpy(rng.normal(size=(count, n)))


def test_the_direction_is_that_of_the_dense_inverse_hessian():
    """H is updated in full by the BFGS formula from the same pairs; minus H g must be the two-loop recursion's answer."""
    a, b = quadratic(0)
    run = descent.Descent(lambda x: torch.einsum("pi,pij,pj->p", x, a, x) / 2 - (b * x).sum(1), torch.ones_like(b))
    for _ in range(9):
        run.step()
    for p in range(len(b)):
        filled = [k for k in range(descent.MEMORY) if run.rho[k, p] > 0]
        s, y = run.s[-1, p], run.y[-1, p]
        h = torch.eye(len(s), dtype=torch.float64) * (s @ y) / (y @ y)
        for k in filled:
            s, y, rho = run.s[k, p], run.y[k, p], run.rho[k, p]
            left = torch.eye(len(s), dtype=torch.float64) - rho * torch.outer(s, y)
            h = left @ h @ left.T + rho * torch.outer(s, s)
        assert filled and torch.allclose(run._direction()[p], -h @ run.g[p], atol=1e-10)


def test_descent_reaches_the_solutions_and_nobody_notices_its_company():
    a, b = quadratic(1)
    best = torch.linalg.solve(a, b)

    def value(a, b):
        return lambda x: torch.einsum("pi,pij,pj->p", x, a, x) / 2 - (b * x).sum(1)

    together = descent.Descent(value(a, b), torch.ones_like(b))
    alone = descent.Descent(value(a[2:3], b[2:3]), torch.ones_like(b[:1]))
    before = together.f
    for _ in range(60):
        after = together.step()
        assert (after <= before).all()
        before = after
        alone.step()
    assert torch.allclose(together.x, best, atol=1e-6)
    assert torch.allclose(together.x[2:3], alone.x, atol=1e-12)


def test_a_valley_and_a_wall_of_no_numbers():
    """Rosenbrock's valley against scipy's L-BFGS, beside a function that is no number on the far side of a wall."""

    def value(x):
        valley = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
        wall = torch.where(x[:, 0] < 2, (x[:, 0] - 1.9) ** 2 + x[:, 1] ** 2, torch.nan)
        return torch.stack([valley[0], wall[1]])

    run = descent.Descent(value, torch.tensor([[-1.2, 1.0], [-30.0, 3.0]], dtype=torch.float64))
    for _ in range(80):
        run.step()
    theirs = minimize(lambda z: (1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2, [-1.2, 1.0], method="L-BFGS-B")
    assert np.allclose(run.x[0], theirs.x, atol=1e-4)
    assert np.allclose(run.x[1], [1.9, 0.0], atol=1e-5)


# ---- the bandit


class Mixed(Kernel):
    """The study's kernel, written out in loops."""

    def __init__(self, logs=None, size=None):
        self.logs, self.size = logs, size

    def get_params(self, deep=True):
        return {"logs": self.logs, "size": self.size}

    def __call__(self, x, y=None, eval_gradient=False):
        y = x if y is None else y
        signal, length, *etas, _ = np.exp(self.logs)
        found = np.empty((len(x), len(y)))
        for i, one in enumerate(x):
            for j, two in enumerate(y):
                value = signal * math.exp(-((one[0] - two[0]) ** 2) / (2 * length**2))
                for k, eta in enumerate(etas):
                    part = slice(1 + k * self.size, 1 + (k + 1) * self.size)
                    value *= math.exp(-np.mean(one[part] != two[part]) / eta)
                found[i, j] = value
        return found

    def diag(self, x):
        return np.diag(self(x))

    def is_stationary(self):
        return False


def observed(choices=1, plays=12, seed=0):
    rng = np.random.default_rng(seed)
    found = bandit.Surrogate(choices)
    for _ in range(plays):
        found.add(rng.uniform(), rng.integers(0, 2, (choices, 3)), rng.normal())
    return found


@pytest.mark.parametrize("choices", [1, 2])
def test_the_posterior_is_that_of_scikit_learn(choices):
    found = observed(choices).fit()
    rng = np.random.default_rng(9)
    b, a = rng.uniform(size=7), rng.integers(0, 2, (7, choices, 3)).astype(float)
    mean, covariance = found.predict(b, a)

    def flat(b, a):
        return np.column_stack([b, a.reshape(len(b), -1)])

    theirs = GaussianProcessRegressor(Mixed(found.theta, 3), alpha=math.exp(found.theta[-1]), optimizer=None)
    theirs.fit(flat(found.b, found.a), found.r - found.r.mean())
    expected, spread = theirs.predict(flat(b, a), return_cov=True)
    assert np.abs(mean - found.r.mean() - expected).max() < 1e-8
    assert np.abs(covariance - spread).max() < 1e-8
    parts = found.parts(found.b, found.a, found.b, found.a)
    y = found.r - found.r.mean()
    density = multivariate_normal(np.zeros(len(y)), Mixed(found.theta, 3)(flat(found.b, found.a)) + theirs.alpha * np.eye(len(y)))
    assert found._evidence(found.theta, parts, y)[0] == pytest.approx(-density.logpdf(y), abs=1e-8)


def test_the_gradient_of_the_evidence_and_its_maximum():
    found = observed(2)
    parts, y = found.parts(found.b, found.a, found.b, found.a), found.r - found.r.mean()
    theta = found.theta + np.random.default_rng(1).normal(size=len(found.theta)) * 0.3
    slopes = [(found._evidence(theta + e, parts, y)[0] - found._evidence(theta - e, parts, y)[0]) / 2e-6
              for e in 1e-6 * np.eye(len(theta))]  # fmt: skip
    assert found._evidence(theta, parts, y)[1] == pytest.approx(slopes, rel=1e-5, abs=1e-6)
    start = found._evidence(found.theta, parts, y)[0]
    assert found._evidence(found.fit().theta, parts, y)[0] < start - 0.1
    assert all(low <= t <= high for t, (low, high) in zip(found.theta, (bandit.BOUNDS[n] for n in found.names), strict=True))


def filled(context=True, seed=3):
    """A bandit that has seen a whole table without noise."""
    rng = np.random.default_rng(seed)
    one, table = bandit.Single(physics.actions(3).numpy(), context), rng.normal(size=(6, 7))
    for b in range(6):
        for a in range(7):
            one.surrogate.add(b / 5, one.bits[[a]], table[b, a])
    one.surrogate.theta[-1] = math.log(1e-10)
    return one, table


def test_the_greedy_choice_on_a_full_table_is_its_best_entry():
    one, table = filled()
    one.surrogate.theta[1] = math.log(0.1)
    rng = np.random.default_rng(0)
    for b in range(6):
        assert one.play(b / 5, "ucb", 0.0, rng)[0] == one.best(b / 5)[0] == table[b].argmax()


def test_without_context_and_with_a_long_length_the_parameter_does_not_count():
    blind, table = filled(context=False)
    long, _ = filled()
    blind.surrogate.theta[-1] = long.surrogate.theta[-1] = math.log(0.1)
    long.surrogate.theta[1] = math.log(1e6)
    assert np.allclose(blind.ask(0.1)[0], long.ask(0.9)[0], atol=1e-7)
    assert blind.best(0.3)[0] == long.best(0.7)[0] == blind.best(0.9)[0]


def test_thompson_draws_have_the_posterior_as_their_law():
    """With two actions the first is drawn with probability Phi((m1 - m2) / sd(difference))."""
    mean, covariance = np.array([0.3, 0.0]), np.array([[1.0, 0.4], [0.4, 0.5]])
    rng = np.random.default_rng(0)
    share = np.mean([bandit.choose(mean, covariance, "thompson", 1.0, rng) == 0 for _ in range(8000)])
    expected = 0.5 * (1 + math.erf(0.3 / math.sqrt(1.0 + 0.5 - 0.8) / math.sqrt(2)))
    assert share == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(8000))
    assert bandit.choose(mean, covariance, "ucb", 0.0, rng) == 0
    assert bandit.choose(mean, np.diag([0.0, 1.0]), "ucb", 1.0, rng) == 1


def test_the_sequential_bandit_divides_the_reward_between_its_surrogates():
    two = bandit.Sequential(physics.actions(2).numpy())
    two.learn(0.2, 0, 2, early=1.0, late=1.5)
    assert two.surrogate.r[0] == pytest.approx(1.0 + two.GAMMA * 0.5) and two.second.r[0] == pytest.approx(0.5)
    assert two.second.a[0].tolist() == [two.bits[0].tolist(), two.bits[2].tolist()]


# ---- the table and the arms


def invented(seeds=3, seed=5):
    table = np.random.default_rng(seed).normal(size=(seeds, 6, 3))
    held = np.arange(6) % 3 == 1
    return SimpleNamespace(single=lambda: table, bits=physics.actions(2), seeds=list(range(seeds)),
                           stream=SimpleNamespace(held=held, scaled=np.linspace(0, 1, 6)))  # fmt: skip


def test_the_oracle_does_not_look_at_the_seed_it_is_scored_on():
    table = invented()
    for b in range(6):
        others = [(table.single()[0, b, a] + table.single()[2, b, a]) / 2 for a in range(3)]
        assert method.oracle(table, 1).best(b / 5) == (int(np.argmin(others)),) * 2
    before = [method.oracle(table, 1).best(b / 5) for b in range(6)]
    table.single()[1] = -table.single()[1]
    assert [method.oracle(table, 1).best(b / 5) for b in range(6)] == before


def test_the_best_fixed_choice_is_found_on_the_training_equations_alone():
    table = invented()
    train = [0, 2, 3, 5]
    means = [sum(table.single()[2, b, a] for b in train) for a in range(3)]
    assert {method.best_fixed(table, 2).best(b / 5)[0] for b in range(6)} == {int(np.argmin(means))}


def test_what_is_recorded_is_what_the_table_holds(smoke):
    rows, table = smoke.table, smoke.arms["lbfgs"]
    for arm in ("random", "single_ucb", "seq_ucb", "oracle"):
        for i, net in enumerate(smoke.arms[arm].members):
            each = [table.known[i, int(b), int(one), int(two)][0] for b, one, two in net.history[:, :3].tolist()]
            own = rows[(rows["arm"] == arm) & (rows["seed"] == i)].set_index(["metric", "step"])["value"]
            assert own["mean_log10_error"].loc[10] == pytest.approx(np.mean(each), abs=1e-12)
    drawn = {arm: smoke.arms[arm].members[1].history[:, 0].tolist() for arm in ("random", "seq_ucb", "best_fixed")}
    assert drawn["random"] == drawn["seq_ucb"] == drawn["best_fixed"]
    assert (smoke.arms["all_conditions"].members[0].history[:, 1:3] == 2).all()
    assert not set(drawn["random"]) & set(np.flatnonzero(table.stream.held))


def test_what_is_trained_on_demand_is_what_the_whole_table_holds(smoke):
    table = smoke.arms["lbfgs"]
    again = method.Table(smoke.params, smoke.seeds, smoke.arms["adam"])
    for row in [(1, 2, 0, 1), (0, 1, 2, 2)]:
        assert again.ask([row])[0] == pytest.approx(table.known[row][0], abs=1e-6)
    assert len(again.known) == 2 and len(table.known) == 2 * 3 * 3 * 3


def test_four_conditions_train_the_second_choices_that_are_played():
    p = STUDY.make({"conditions": 4, "family": "poisson", "rule": "thompson"}, profile="smoke")
    lab = Experiment(STUDY, p, seeds=[0, 1], arms=["seq_ucb"]).run()
    known, played = lab.arms["lbfgs"].known, lab.arms["seq_ucb"].members[0].history[:, 1:3]
    mixed = {row for row in known if row[2] != row[3]}
    assert 2 * 3 * 15 < len(known) < 2 * 3 * 15 * 15 and len(mixed) == len(known) - 2 * 3 * 15
    assert (played[:, 0] != played[:, 1]).any()
    assert not lab.table[lab.table["metric"] == "test_log10_error"]["value"].isna().any()


def test_figures_and_views_hold_data(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"plays", "table", "solutions", "choices", "surrogate"} and all(f.data for f in drawn.values())
    dots = next(trace for trace in drawn["table"].data if trace.type == "scatter")
    assert np.allclose(np.round(dots.y), smoke.arms["single_ucb"].members[0].history[:, 1])
    bars = {trace.name: trace.y for trace in drawn["choices"].data}
    late = torch.cat([net.history[5:, 2] for net in smoke.arms["seq_ucb"].members]).long()
    assert bars["two stages: L-BFGS"] == pytest.approx(physics.actions(2)[late].double().mean(0).numpy())
    view = method.VIEWS["surrogate"](smoke.arms["single_ucb"].members[0], smoke.params)
    surrogate, lines = smoke.arms["single_ucb"].policies[0], [t for t in view.data if t.mode == "lines" and t.name]
    at_start = {physics.actions(2)[a].tolist().__str__(): surrogate.ask(0.0)[0][a] for a in range(3)}
    assert sorted(line.y[0] for line in lines) == pytest.approx(sorted(at_start.values()), abs=1e-9)


# ---- data of one's own


def reference(folder, family="advection", betas=(0.5, 1.0, 2.0), nodes=25):
    make, axis = FAMILIES[family][0], np.linspace(0, 1, nodes)
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    for beta in betas:
        table = pd.DataFrame({"x": x, data.SECOND[family]: y, "u": make([beta]).u(beta, x, y)})
        table.sample(frac=1, random_state=0).to_csv(folder / f"beta_{beta:g}.csv", index=False)
    return folder


@pytest.mark.parametrize(("family", "betas"), [("advection", (0.5, 1.0, 2.0)), ("poisson", (3.0, 4.0, 5.0))])
def test_own_solutions_become_data_and_source(tmp_path, monkeypatch, family, betas):
    monkeypatch.setenv("CLAIMLAB_DATA", str(reference(tmp_path, family, betas)))
    found = data.stream(STUDY.make({"family": family}))
    known = physics.Setting(FAMILIES[family][0](betas))
    assert found.setting.betas == betas and found.held.tolist() == [False, True, False]
    assert (found.setting.truth - known.truth).abs().max() < 1e-3
    assert (found.setting.data - known.data).abs().max() < 1e-3
    points = physics.inside(torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(0)))
    assert (found.setting.source(points) - known.source(points)).abs().max() < 0.02 * (1 + known.source(points).abs().max())


def broken(name):
    return {
        "column": lambda t: t.rename(columns={"t": "y"}),
        "gap": lambda t: t.drop(index=7),
        "nan": lambda t: t.replace(t.u[3], np.nan),
        "words": lambda t: t.assign(u="high"),
        "twice": lambda t: pd.concat([t[1:], t[1:2]]),
        "short": lambda t: t[t.x < 0.4],
        "flat": lambda t: t.assign(u=1.0),
        "range": lambda t: t.assign(t=2 * t.t),
    }[name]


@pytest.mark.parametrize(("name", "said"), [
    ("column", "no column t"), ("gap", "no complete grid"), ("nan", "missing or no finite"), ("words", "missing or no finite"),
    ("twice", "no complete grid"), ("short", "must run from 0 to 1"), ("flat", "same everywhere"),
    ("range", "must run from 0 to 1"),
], ids=["column", "gap", "nan", "words", "twice", "short", "flat", "range"])  # fmt: skip
def test_a_table_that_does_not_fit_is_refused_with_the_reason(tmp_path, name, said):
    file = reference(tmp_path) / "beta_1.csv"
    broken(name)(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(ValueError, match=f"beta_1.csv.*{said}"):
        data.load(str(tmp_path), "advection")


@pytest.mark.parametrize(("old", "new", "said"), [
    ("beta_1.csv", "one.csv", "must end with the parameter"), ("beta_1.csv", "beta_9.csv", "outside of"),
    ("beta_1.csv", "again_0.5.csv", "has a file already"), ("beta_1.csv", "beta_1.txt", "2 .csv files"),
], ids=["no number", "out of range", "twice", "too few"])  # fmt: skip
def test_a_name_that_does_not_fit_is_refused_with_the_reason(tmp_path, old, new, said):
    (reference(tmp_path) / old).rename(tmp_path / new)
    with pytest.raises(ValueError, match=said):
        data.load(str(tmp_path), "advection")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (reference(tmp_path) / "beta_1.csv").write_bytes(b"\xff\xfe\x00\x81" * 50)
    with pytest.raises(ValueError, match="beta_1.csv is not a CSV file in UTF-8"):
        data.load(str(tmp_path), "advection")
