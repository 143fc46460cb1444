"""neuralcsa: sharp bounds against scipy and a linear program, the KL dual, the flow against autograd, admissibility, own files."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.causality import _neuralcsa_arms as arms
from claimlab.studies.causality import _neuralcsa_method as method
from claimlab.studies.causality import _neuralcsa_nets as nets
from claimlab.studies.causality import _neuralcsa_two as two
from claimlab.training import Run

STUDY = study.find("neuralcsa")
M = STUDY.module


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(dict(dose=True, outcomes=2), "smoke"), seeds=[1000, 1001]).run()


MINE = dict(rows=600, points=5, steps=60, samples=64, outer_rounds=8, inner=30)


@pytest.fixture(scope="module")
def naive():
    """Stage 1 of one seed, trained briefly."""
    return trained(Run(arms.Naive(STUDY.make(MINE)), [1000]))


def trained(run):
    for _ in run:
        pass
    return run


def solved(naive, mixed, **problems):
    """Stage 2 for several (model, Gamma) side by side, with or without the mixture; names of problems in the order of P."""
    task = type("Mine", (arms.Csa,), {"mixed": mixed, "problems": lambda self: problems})
    return trained(Run(task(STUDY.make(MINE)), [1000], start=naive.members)).members[0].requires_grad_(False)


@pytest.fixture(scope="module")
def several(naive):
    net = solved(naive, True, none=("msm", 1.0), small=("msm", 1.5), usual=("msm", 2.0), large=("msm", 4.0), kl=("kl", 0.17))
    return net, dict(zip(net.names, net.four(4000)[0], strict=True))


def midpoints(m, kind=torch.float64):
    return (torch.arange(m, dtype=kind) + 0.5) / m


# ---- what the marginal model allows


@pytest.mark.parametrize("gamma", [1.0, 1.7, 6.0])
def test_sharp_bound_of_a_gaussian_outcome_is_the_integral_over_its_two_parts(gamma):
    """For N(mean, sd) the part above the quantile tau has mean sd phi(z) / (1 - tau), by scipy."""
    mean, sd, pi = 0.4, 1.3, 0.35
    low, high = pi + (1 - pi) / gamma, pi + (1 - pi) * gamma
    tau = (high - 1) / (high - low) if gamma > 1 else 0.5
    assert tau == pytest.approx(gamma / (1 + gamma))
    z = stats.norm.ppf(tau)
    want = mean + (high - low) * sd * stats.norm.pdf(z)  # E Y w = mean + sd (w_hi - w_lo) phi(z), since E w = 1
    values = torch.from_numpy(stats.norm.ppf(midpoints(200_000).numpy(), mean, sd))
    upper, lower = method.sharp(values, torch.tensor(pi), gamma)
    assert float(upper) == pytest.approx(want, abs=2e-4)
    assert float(lower) == pytest.approx(2 * mean - want, abs=2e-4)


def test_sharp_bound_is_the_optimum_of_a_linear_program():
    rng = np.random.default_rng(3)
    y, pi, gamma = rng.normal(size=40), 0.6, 2.5
    limits = [((pi + (1 - pi) / gamma) / 40, (pi + (1 - pi) * gamma) / 40)] * 40
    found = [optimize.linprog(sign * y, A_eq=np.ones((1, 40)), b_eq=[1], bounds=limits).fun for sign in (-1, 1)]
    upper, lower = method.sharp(torch.from_numpy(y), torch.tensor(pi, dtype=torch.float64), gamma)
    assert float(upper) == pytest.approx(-found[0], abs=1e-9) and float(lower) == pytest.approx(found[1], abs=1e-9)


def test_learned_marginal_bounds_reach_the_sharp_ones_and_never_pass_them(several):
    net, four, best = several[0], several[1]["usual"], several[0].best
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    short = sign * (best - four)
    assert float(short.mean()) < 0.03 and float(short.max()) < 0.08 and float(short.min()) > -2e-3  # below zero: quadrature
    moved = (sign * (best - net.centre)).mean()
    assert float(moved) > 0.1  # the reach is not trivial


# ---- f-models


def kl_dual(y, gamma):
    """max E_p Y over KL(p || even law) <= gamma, by its dual in one variable: min_t t log E exp(Y / t) + t gamma."""
    dual = lambda t: t * (np.log(np.mean(np.exp((y - y.max()) / t))) + gamma) + y.max()  # noqa: E731
    return optimize.minimize_scalar(dual, bounds=(1e-3, 50), method="bounded", options={"xatol": 1e-8}).fun


def test_kl_dual_is_exponential_tilting():
    """For a Gaussian the tilted law is a shift: the optimum is sd sqrt(2 gamma)."""
    y = stats.norm.ppf(midpoints(100_000).numpy()) * 1.5
    assert kl_dual(y, 0.08) == pytest.approx(1.5 * np.sqrt(0.16), abs=1e-3)


def kl_room(net, four):
    """What the one-sided dual allows above the unshifted means of both arms, and what was learned of it, [2, n]."""
    u = method.latent(midpoints(4000, torch.float32))
    values = method.forward(net.knots, u.expand(4, 5, -1)).double().numpy()
    dual = np.array([[kl_dual(y, 0.17) for y in values[k]] for k in (0, 2)])
    return dual - net.centre[[0, 2]].numpy(), (four - net.centre)[[0, 2]].numpy()


def test_learned_kl_bound_comes_close_to_the_one_sided_dual_where_nothing_is_mixed_in(naive):
    net = solved(naive, False, kl=("kl", 0.17))
    room, learned = kl_room(net, net.four(4000)[0][0])
    assert np.all(learned <= room + 2e-3)
    assert np.all(learned >= 0.75 * room)  # the second direction of the divergence costs the rest


def test_learned_kl_bound_with_the_mixture_lies_inside_the_one_sided_dual(several):
    room, learned = kl_room(several[0], several[1]["kl"])
    assert np.all(learned <= room + 2e-3) and np.all(learned > 0.1 * room)


@pytest.mark.parametrize("model", ["kl", "tv", "hellinger", "chi2"])
def test_divergences_of_two_normal_laws_agree_with_scipy_quadrature(model):
    pi, shift = 0.3, 0.7
    f = {"kl": lambda t: t * np.log(t), "tv": lambda t: abs(t - 1) / 2, "hellinger": lambda t: (np.sqrt(t) - 1) ** 2,
         "chi2": lambda t: (t - 1) ** 2}[model]  # fmt: skip
    phi, other = stats.norm.pdf, lambda u: stats.norm.pdf(u, shift)
    r = lambda u: pi + (1 - pi) * other(u) / phi(u)  # noqa: E731
    one = integrate.quad(lambda u: phi(u) * f(r(u)), -9, 9)[0]
    back = integrate.quad(lambda u: phi(u) * r(u) * f(1 / r(u)), -9, 9)[0]
    u = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weight = torch.from_numpy(phi(u.numpy())) * (u[1] - u[0])
    q = torch.exp(shift * u - shift**2 / 2)
    assert float(method.strength(model, q, torch.tensor([pi]).double(), weight)) == pytest.approx(max(one, back), rel=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 8.0])
def test_strength_of_a_binary_cause_by_its_definition(gamma):
    e = torch.tensor([0.2, 0.5, 0.9])
    assert M.cause_strength("msm", e, gamma) == pytest.approx(gamma)
    assert M.cause_strength("rosenbaum", e, gamma) == pytest.approx(gamma**2)
    worst = 0.0
    for one in e.tolist():
        odds = one / (1 - one)
        p = np.array([odds / gamma, odds * gamma])
        p = p / (1 + p)
        share = 0.5 if gamma == 1 else (one - p[0]) / (p[1] - p[0])
        prior = np.array([1 - share, share])
        for chance, marginal in ((p, one), (1 - p, 1 - one)):
            given = prior * chance / marginal
            worst = max(worst, stats.entropy(prior, given), stats.entropy(given, prior))
    assert M.cause_strength("kl", e, gamma) == pytest.approx(worst, abs=1e-7)


# ---- the flow and the shift


@pytest.fixture(scope="module")
def knot():
    rng = torch.Generator().manual_seed(1)
    return method.knots(torch.randn(6, 27, generator=rng, dtype=torch.float64))


def test_flow_inverse_and_log_determinant(knot):
    u = torch.linspace(-6, 6, 400, dtype=torch.float64).expand(6, -1)
    y = method.forward(knot, u)
    back, slope = method.inverse(knot, y)
    assert torch.allclose(back, u, atol=1e-8)
    (grad,) = torch.autograd.grad(method.forward(knot, (v := u.clone().requires_grad_())).sum(), v)
    assert torch.allclose(slope, grad.log(), atol=1e-6) and bool((grad > 0).all())


def test_flow_density_integrates_to_one(knot):
    y = torch.linspace(-60, 60, 40_001, dtype=torch.float64)
    density = torch.exp(-method.negative_log_likelihood(knot, y.expand(6, -1)))
    assert torch.allclose(torch.trapezoid(density, y), torch.ones(6, dtype=torch.float64), atol=1e-3)


def test_spline_with_zero_parameters_is_the_identity():
    u = torch.linspace(-6, 6, 50)
    assert torch.allclose(method.forward(method.knots(torch.zeros(27)), u), u, atol=1e-3)


def test_shift_is_a_monotone_map_of_the_unit_interval_with_its_slope():
    raw = 2 * torch.randn(5, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ends = method.shift(raw, torch.tensor([0.0, 1.0], dtype=torch.float64).expand(5, -1))[0]
    assert torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64).expand(5, -1), atol=1e-9)
    t = midpoints(500).expand(5, -1).clone().requires_grad_()
    reached, slope = method.shift(raw, t)
    (grad,) = torch.autograd.grad(reached.sum(), t)
    assert torch.allclose(grad, slope, atol=1e-8) and bool((slope > 0).all())


def test_no_shift_leaves_an_outcome_behind_altogether():
    """Total variation pays for a far tail that gets all the mass; the slope must not underflow there."""
    raw = torch.zeros(13)
    raw[0], raw[1:5], raw[5:9], raw[9:] = -90.0, -80.0, 0.0, -80.0
    _, slope = method.shift(raw, midpoints(2000, torch.float32))
    assert float((1 / slope).max()) == pytest.approx(1 / method.FLOOR, rel=1e-3)
    assert float(slope.mean()) == pytest.approx(1.0, abs=2e-3)


def test_ratio_of_densities_is_the_inverse_slope():
    """p_h by the law of 400,000 shifted draws against phi / g, on intervals of u."""
    raw = torch.randn(13, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t = midpoints(400_000)
    reached, slope = method.shift(raw, t)
    edges = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    share = torch.histogram(reached, edges).hist / len(t)
    middle = (edges[1:] + edges[:-1]) / 2
    q = torch.from_numpy(np.interp(middle.numpy(), reached.numpy(), (1 / slope).numpy()))
    assert torch.allclose(share / (edges[1] - edges[0]), q, rtol=0.02)


# ---- limits and admissibility


def test_gamma_one_returns_the_stage_one_mean(naive, several):
    net = several[0]
    assert torch.allclose(several[1]["none"], nets.plain(net.first, 4000), atol=2e-6)
    assert torch.allclose(nets.closed(net.first, 1.0), net.centre, atol=2e-3)


def test_bounds_grow_with_gamma(several):
    small, large = several[1]["small"], several[1]["large"]
    assert bool((large[[0, 2]] > small[[0, 2]]).all() and (large[[1, 3]] < small[[1, 3]]).all())


@pytest.mark.parametrize("model", M.MODELS)
def test_repair_gives_an_admissible_law_and_no_more_of_the_identity_than_needed(model):
    raw = 2 * torch.randn(3, 13, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    _, slope = method.shift(raw, midpoints(500).expand(3, -1))
    q, weight, pi = 1 / slope, slope / slope.sum(-1, keepdim=True), torch.full((3, 1), 0.4, dtype=torch.float64)
    before = method.strength(model, q, pi, weight)
    still = method.strength(model, torch.ones_like(q), pi, weight)  # 1 or 0
    gamma = still + 0.4 * (before - still)
    w = method.repair(model, q, pi, weight, gamma)
    after = lambda w: method.strength(model, q + w[:, None] * (1 - q), pi, weight)  # noqa: E731
    assert bool((after(w) <= gamma).all() and (after(w - 1e-3) > gamma).all())
    assert bool((method.repair(model, q, pi, weight, before * 1.01) == 0).all())


def test_reported_bounds_are_admissible_on_a_finer_grid_than_they_were_mended_on(naive):
    run = Run(arms.Csa(STUDY.make(MINE)), [1000], start=naive.members)
    for _ in range(20):  # far from done
        run.advance()
    net = run.members[0].requires_grad_(False)
    t = midpoints(20_000, torch.float32).expand(5, -1)
    _, q, weight = net.shifted(t)
    w = net.four(2000)[2]
    mended = q + w[..., None] * (1 - q)
    assert float(torch.maximum(mended, 1 / mended).max()) < 2.01
    assert float(net.excess(q, weight).max()) > 0.05  # so that there was something to mend


def test_untreated_rows_take_their_own_propensity(naive):
    net = naive.members[0]
    chances = net.chances()
    assert torch.allclose(chances[0] + chances[2], torch.ones(5)) and torch.equal(chances[0], chances[1])


# ---- the worlds


def test_simulated_world_has_the_propensity_and_the_strength_it_names():
    x, s, _, u = M.draw(7, 200_000, 4.0, False)
    near = (x[:, 0] - 0.5).abs() < 0.1
    treated = s[near] > 0
    assert float(treated.double().mean()) == pytest.approx(1 / (1 + np.exp(-0.875)), abs=0.02)
    odds = [float(treated[u[near] == k].double().mean()) for k in (0, 1)]
    assert odds[1] / (1 - odds[1]) / (odds[0] / (1 - odds[0])) == pytest.approx(16, rel=0.15)


@pytest.mark.parametrize("query", ["cate", "mean_do_1", "prob_above"])
def test_true_answers_are_what_an_intervention_in_the_simulated_world_gives(query):
    """The same u, but the treatment set by hand."""
    rng = np.random.default_rng(0)
    x, gamma, scale = torch.tensor([0.9], dtype=torch.float64), 3.0, (0.3, 2.0)
    e = 1 / (1 + np.exp(-(0.75 * 0.9 + 0.5)))
    p0, p1 = 1 / (gamma / e + 1 - gamma), 1 / (1 / (gamma * e) + 1 - 1 / gamma)
    u = rng.random(400_000) < (e - p0) / (p1 - p0)
    y = {s: s * 0.9 + s - 2 * np.sin(2 * s * 0.9) - 2 * (2 * u - 1) * 1.45 + rng.normal(size=len(u)) for s in (-1, 1)}
    want = {"cate": (y[1].mean() - y[-1].mean()) / 2, "mean_do_1": (y[1].mean() - 0.3) / 2, "prob_above": (y[1] > 0.3).mean()}
    assert float(M.answer(query, x, (1.0, -1.0), gamma, False, scale)[0]) == pytest.approx(want[query], abs=0.01)


def test_closed_form_on_the_true_law_covers_the_truth():
    """With the true density in place of the flow: the theorem without any estimation error."""
    for x in np.linspace(-1.8, 1.8, 7):
        e = 1 / (1 + np.exp(-(0.75 * x + 0.5)))
        ends = {}
        for s, chance in ((1, e), (-1, 1 - e)):
            p0, p1 = 1 / (2 / e - 1), 1 / (0.5 / e + 0.5)
            share = (e - p0) / (p1 - p0)
            likely = share * (p1 if s > 0 else 1 - p1) / chance
            base, pull = s * x + s - 2 * np.sin(2 * s * x), 2 * (1 + 0.5 * x)
            z = stats.norm.ppf(midpoints(20_000).numpy())
            count = round(likely * 20_000)
            values = np.concatenate([base - pull + np.resize(z, count) if count == 20_000 else base - pull + stats.norm.ppf(
                (np.arange(count) + 0.5) / count), base + pull + stats.norm.ppf((np.arange(20_000 - count) + 0.5) / (20_000 - count))])
            ends[s] = method.sharp(torch.from_numpy(values), torch.tensor(chance), 2.0)
        truth = 2 * x + 2 - 4 * np.sin(2 * x)
        assert float(ends[1][1] - ends[-1][0]) - 2e-3 <= truth <= float(ends[1][0] - ends[-1][1]) + 2e-3


# ---- arms, figures, two outcomes


def test_single_stage_counts_the_steps_of_both_stages(smoke):
    total = smoke.arms["naive"].total + smoke.arms["neuralcsa_msm"].total
    assert smoke.arms["single_stage"].total == total


def test_multipliers_rise_only_where_the_constraint_is_broken(smoke):
    net, task = smoke.arms["no_bernoulli"].members[0], smoke.arms["no_bernoulli"].tasks[0]
    t = nets.nodes(32, net.pi).expand(5, -1)
    _, q, weight = net.shifted(t)
    net.clock.fill_(task.round - 1)
    found = task.project(net)["multiplier"]
    c = torch.maximum(q, 1 / q).sort(-1).values[..., -1] - 2.0
    assert torch.allclose(found, (net.multiplier + c).clamp(min=0), atol=1e-4)


def test_figures_and_views_at_smoke(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"effects", "shift", "widths", "rounds", "gaps"}
    for view in M.VIEWS.values():
        for arm in ("naive", "neuralcsa_kl", "single_stage", "dose"):
            figure = view(smoke.arms[arm].members[0], smoke.params)
            assert any(np.isfinite(np.asarray(t.y if t.y is not None else t.x, float)).any() for t in figure.data)


def test_two_outcomes_start_at_the_flow_and_keep_its_joint_mean(smoke):
    """Without a shift the lattice's mean of y1 + y2 is that of plain draws."""
    net = smoke.arms["two_outcomes"].members[0]
    z = torch.randn(2, 1, len(net.first.points), 40_000, generator=torch.Generator().manual_seed(0)).expand(-1, 4, -1, -1)
    with torch.no_grad():
        drawn = net.first.both(*z).mean(-1)
    assert torch.allclose(net.centre, drawn, atol=0.03)


def test_shift_of_two_latents_has_unit_mass():
    p = STUDY.make(dict(outcomes=2), "smoke")
    run = Run(two.TwoCsa(p), [1000], start=Run(two.TwoNaive(p), [1000]).members)
    net = run.members[0].requires_grad_(False)
    with torch.no_grad():
        for leaf in net.make2.parameters():
            leaf += 0.5
    _, q, _ = net.shifted(two.lattice(20_000, net.pi).expand(-1, net.pi.shape[1], -1))
    assert torch.allclose((1 / q).mean(-1), torch.ones_like(net.pi), atol=0.02)  # phi integrates to one under p_h


# ---- a table of one's own


def write(path, n=200, **columns):
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    a = (rng.random(n) < 1 / (1 + np.exp(-x))).astype(float)
    table = {"treatment": a, "outcome": 5 + 3 * a + x + rng.normal(size=n), "age": x} | columns
    names = [k for k, v in table.items() if v is not None]
    lines = [",".join(map(str, row)) for row in zip(*(table[k] for k in names), strict=True)]
    path.write_text("\n".join([",".join(names), *lines]))
    return str(path)


@pytest.mark.parametrize(("columns", "said"), [
    (dict(treatment=None), "needs the columns treatment, outcome"),
    (dict(age=None), "one covariate or more"),
    (dict(age=["old"] * 200), "column age holds other things"),
    (dict(outcome=[1.0] * 199 + ["nan"]), "row 200 has a value that is missing"),
    (dict(outcome=[1.0] * 200), "column outcome is 1 in every row"),
    (dict(treatment=[0, 1, 2, 3] * 50), "allowed are 0 and 1, or real numbers"),
    (dict(age=[-30.0] * 100 + [30.0] * 100, treatment=[0] * 100 + [1] * 100), "no overlap in 200 rows"),
], ids=["no treatment", "no covariate", "words", "missing", "constant", "levels", "overlap"])  # fmt: skip
def test_own_table_is_refused_with_the_reason(tmp_path, columns, said):
    with pytest.raises(ValueError, match=said):
        M.own(write(tmp_path / "mine.csv", **columns), 5)


def test_short_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="100 or more are needed"):
        M.own(write(tmp_path / "short.csv", 40), 5)
    with pytest.raises(ValueError, match="not a .csv file"):
        M.own(str(tmp_path / "none.csv"), 5)


def test_own_table_runs_and_its_truth_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", write(tmp_path / "mine.csv"))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001], arms=["neuralcsa_msm"]).run()
    task = lab.arms["naive"].tasks[0]
    assert task.data.scale[0] == pytest.approx(np.loadtxt(tmp_path / "mine.csv", delimiter=",", skiprows=1)[:, 1].mean(), rel=1e-5)
    last = lab.table[lab.table["arm"] == "neuralcsa_msm"].groupby("metric")["value"].last()
    assert np.isnan(last["coverage"]) and last["width"] > 0
    assert {v.verdict for v in lab.verdicts() if v.claim == "valid-bounds"} == {"undecided"}
