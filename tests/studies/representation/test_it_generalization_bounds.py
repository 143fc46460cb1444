"""The study of information-theoretic bounds against simulation, scipy, brute force and identities."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.stats import entropy, norm, wasserstein_distance
from torch.distributions import MultivariateNormal, kl_divergence

from claimlab import views
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.study import find

STUDY = find("it-generalization-bounds")
study = STUDY.module
method, data, arms = study.method, study.data, study.arms
SMALL = {"steps": 10, "train": 24, "points": 48, "width": 8, "depth": 2, "seeds": 2}


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def last(lab, arm, metric):
    rows = lab.table[(lab.table["arm"] == arm) & (lab.table["metric"] == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


# ---- closed forms


def test_kl_of_gaussians_is_that_of_torch():
    a, b = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.5, 0.0])
    wanted = kl_divergence(*(MultivariateNormal(m, v * torch.eye(3)) for m, v in ((a, 0.7), (b, 1.9))))
    assert method.kl_gaussians(float((a - b).square().sum()), 0.7, 1.9, 3) == pytest.approx(float(wanted), rel=1e-5)


def test_the_mean_kl_at_the_input_is_its_closed_form_and_the_mutual_information():
    n, d = 16, 8
    found = method.binary_gaussian(n, [d, 3, 1], 60000, np.random.default_rng(0)).kl[:, 0].mean()
    assert found == pytest.approx(-d / 2 * math.log(1 - 1 / n), rel=0.01)
    joint = np.array([[1, 1 / n], [1 / n, 1 / n]])  # covariance of one coordinate of Y_i X_i and of w
    assert -d / 2 * math.log(1 - 1 / n) == pytest.approx(-d / 2 * math.log(np.linalg.det(joint) * n))


def test_the_exact_gap_is_that_of_simulated_data_sets():
    n, d, sets, rng = 4, 3, 100_000, np.random.default_rng(1)
    mu = np.array([1.0, 0.0, 0.0])
    signed = mu + rng.standard_normal((sets, n, d))  # Y_i X_i
    w = signed.mean(1)
    train = (np.einsum("snd,sd->sn", signed, w) < 0).mean()
    fresh = mu + rng.standard_normal((sets, n, d))
    test = (np.einsum("snd,sd->sn", fresh, w) < 0).mean()
    found = method.binary_gaussian(n, [d, 1], sets, rng)
    assert found.train.mean() == pytest.approx(train, abs=0.002) and found.test.mean() == pytest.approx(test, abs=0.004)
    assert found.gap == pytest.approx(test - train, abs=0.005)


def test_the_layers_are_those_of_explicit_random_projections():
    n, r, draws, rng = 3, [6, 3, 1], 4000, np.random.default_rng(2)
    mu, shifts = np.eye(6)[0], []
    for _ in range(draws):
        w = mu + rng.standard_normal(6) / math.sqrt(n)
        basis = np.linalg.qr(np.column_stack([w, rng.standard_normal((6, 5))]))[0]
        shifts.append([((basis[:, :k].T @ (w - mu)) ** 2).sum() for k in r])
    wanted = method.kl_gaussians(np.array(shifts), 1 - 1 / n, 1.0, np.array(r)).mean(0)
    found = method.binary_gaussian(n, r, 40000, rng)
    assert found.kl.mean(0) == pytest.approx(wanted, rel=0.05)
    assert (np.diff(found.kl, axis=1) <= 1e-12).all()  # draw by draw, not only on average


@pytest.mark.parametrize(("d", "depth"), list(product([2, 3, 9, 64, 512], [1, 4, 8])))
def test_dimensions_fall_to_one(d, depth):
    r = method.ranks(d, depth)
    assert r[0] == d and r[-1] == 1 and len(r) == 1 + min(depth, d - 1) and (np.diff(r) < 0).all()


# ---- Wasserstein


@pytest.mark.parametrize(("n", "m"), [(30, 30), (20, 50), (12, 30)])
def test_one_dimensional_distances_are_those_of_scipy(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal(n), 0.5 + 2 * rng.standard_normal(m)
    found = method.wasserstein(x[:, None], y[:, None], np.zeros(n), np.zeros(m))
    assert found == pytest.approx(wasserstein_distance(x, y), rel=1e-9)


def test_matching_copies_is_the_best_transport():
    rng = np.random.default_rng(3)
    x, y, a, b = rng.standard_normal((4, 2)), rng.standard_normal((6, 2)), rng.integers(0, 2, 4), rng.integers(0, 2, 6)
    cost = np.linalg.norm(x[:, None] - y[None], axis=2) + (a[:, None] != b[None])
    rows = np.kron(np.eye(4), np.ones(6)), np.kron(np.ones(4), np.eye(6))
    best = linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=[1 / 4] * 4 + [1 / 6] * 6)
    assert method.wasserstein(x, y, a, b) == pytest.approx(best.fun, rel=1e-7)


def test_w1_is_at_most_w2_for_gaussians():
    for shift, v0, v1 in ((1.0, 1.0, 1.0), (0.3, 0.2, 2.0), (0.0, 1.0, 4.0)):
        w1 = quad(lambda t, s=shift, a=v0, b=v1: abs(norm.cdf(t, s, a**0.5) - norm.cdf(t, 0, b**0.5)), -15, 15, limit=300)[0]
        w2 = float(method.w2_gaussians(shift**2, v0, v1, 1))
        assert w1 <= w2 + 1e-9
    assert float(method.w2_gaussians(1.0, 1.0, 1.0, 5)) == 1.0  # a shift alone


def test_layers_are_measured_in_units_of_their_mean_norm():
    rng = np.random.default_rng(4)
    x, y, of = rng.standard_normal((10, 3)), rng.standard_normal((20, 3)), (np.zeros(10), np.zeros(20))
    first = method.by_layer([x, 7 * x], [y, 7 * y], *of)
    assert first[0] == pytest.approx(first[1])
    both = method.scaled(x, y)
    assert sum(np.linalg.norm(one, axis=1).mean() for one in both) / 2 == pytest.approx(1)
    assert method.by_layer([np.zeros((4, 2))], [np.zeros((4, 2))], np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))[0] == 0.25


def test_sample_sizes_can_be_matched():
    assert method.partners(200, 1000, 1000) == 1000 and method.partners(120, 118, 1000) == 105
    for n, available, most in ((24, 100, 48), (37, 90, 40), (1, 5, 1)):
        m = method.partners(n, available, most)
        assert math.lcm(n, m) <= max(n, most) and m <= available


def test_the_wasserstein_bound_falls_layer_by_layer_and_lies_above_the_gap(smoke):
    nets = smoke.arms["mlp_plain"].members + smoke.arms["mlp_digits"].members
    for net in nets:
        gap, bounds = study.lipschitz(net)
        assert (np.diff(bounds) <= 1e-9).all() and abs(gap) <= bounds[-1]
        with torch.no_grad():
            x, y = (torch.linalg.svdvals(one.weight)[0] for one in net.linear[:2])
        assert net.norms()[:2] == pytest.approx([float(x), float(y)], rel=1e-5)


# ---- contraction


def test_one_dropped_unit_keeps_exactly_the_share_of_undropped_cases():
    logits = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for delta in (0.0, 0.3, 0.9):
        ratio, _ = method.contraction(logits[0], logits[1], method.dropout_channel(1, delta))
        assert torch.allclose(ratio, torch.full_like(ratio, 1 - delta), atol=1e-12)


def test_the_contraction_is_the_mean_kl_of_the_units_that_survive():
    delta, rng = 0.4, np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(8), 2)
    kept = 0.0
    for seen in product((0, 1), repeat=3):
        hidden = tuple(k for k in range(3) if not seen[k])
        laws = [one.reshape(2, 2, 2).sum(hidden).ravel() for one in (p, q)]
        kept += delta ** len(hidden) * (1 - delta) ** sum(seen) * entropy(*laws)
    ratio, before = method.contraction(*(torch.from_numpy(one).log() for one in (p, q)), method.dropout_channel(3, delta))
    assert float(before) == pytest.approx(entropy(p, q)) and float(ratio) == pytest.approx(kept / entropy(p, q))


def test_the_search_comes_near_the_bound_and_never_passes_it():
    for d in (1, 2, 3):
        first, best = method.search(d, 0.5, 20, 150, [torch.Generator().manual_seed(k) for k in range(2)])
        bound = 1 - 0.5**d
        assert (best.max(1).values > 0.95 * bound).all() and (best <= bound + 1e-9).all() and (best >= first).all()


def test_gaussian_noise_contracts_by_the_total_variation_of_its_farthest_inputs():
    tau, diameter = 0.7, 1.6
    total = quad(lambda t: abs(norm.pdf(t, 0, tau) - norm.pdf(t, diameter, tau)) / 2, -8, 10, limit=200)[0]
    assert method.noise_factor(diameter, tau) == pytest.approx(total, rel=1e-6)


# ---- Gibbs


def loop(shape, weights, x):
    """The answer of one network by plain loops; sign(0) = +1."""
    h, weights = list(x), list(weights)
    for a, b in zip(shape, shape[1:], strict=False):
        rows = [[weights.pop(0) for _ in range(b)] for _ in range(a)]
        h = [1 if sum(h[i] * rows[i][j] for i in range(a)) >= 0 else -1 for j in range(b)]
    return h[0]


@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 2, 2, 1)])
def test_networks_of_binary_weights_answer_as_plain_loops_do(shape):
    x = data.cube(shape[0])
    found = method.predictions(shape, x)
    every = list(product((-1, 1), repeat=sum(a * b for a, b in zip(shape, shape[1:], strict=False))))
    for k in range(0, len(every), 37):
        assert found[k].tolist() == [loop(shape, every[k], one) for one in x]


def test_both_shapes_have_twelve_weights_and_only_ties_break_the_symmetry():
    assert [sum(a * b for a, b in zip(s, s[1:], strict=False)) for s in (arms.WIDE, arms.DEEP)] == [12, 12]
    x = data.cube()
    opposite = [int(np.flatnonzero((x == -one).all(1))[0]) for one in x]
    wide, deep = (method.functions(shape, x) for shape in (arms.WIDE, arms.DEEP))
    assert (wide[0][:, opposite] == -wide[0]).all() and len(wide[0]) == 2**4  # all odd functions of three signs
    assert (deep[0][:, opposite] != -deep[0]).any() and wide[1].sum() == pytest.approx(1)
    for seed in range(5):  # a linear form is odd: the wide shape holds it, and the notebook says so
        held = [(answers == data.teacher(seed)).all(1).any() for answers, _ in (wide, deep)]
        assert held == [True, False]


def test_the_gap_is_the_symmetrised_information_over_gamma():
    x, gamma = data.cube(2), 7.0
    answers = method.predictions((2, 2, 1), x)  # 2^6 weight vectors, not grouped
    examples = list(product(range(4), (-1, 1)))
    sets = list(product(examples, repeat=2))
    losses = np.array([[np.mean([a[i] != y for i, y in one]) for a in answers] for one in sets])
    prior, risk = np.full(64, 1 / 64), np.array([np.mean([a[i] != y for i, y in examples]) for a in answers])
    found = method.gibbs(losses, prior, gamma, risk)
    joint = np.exp(-gamma * losses)
    joint /= joint.sum(1, keepdims=True) * len(sets)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = entropy(joint.ravel(), apart.ravel()) + entropy(apart.ravel(), joint.ravel())
    assert found.information == pytest.approx(information, abs=1e-10)
    assert found.test - found.train == pytest.approx(information / gamma, abs=1e-8)
    assert found.test == pytest.approx(found.crossed, abs=1e-12)


def test_functions_stand_for_all_their_weights():
    plus, minus = data.gibbs_sets(3, 20)
    truth, told = data.teacher(3), []
    grouped = method.functions(arms.DEEP, data.cube())
    for answers, prior in (grouped, (method.predictions(arms.DEEP, data.cube()), np.full(4096, 1 / 4096))):
        told.append(method.gibbs(data.risks(answers, plus, minus), prior, 20.0, data.population_risk(answers, truth)))
    assert told[0] == pytest.approx(told[1], abs=1e-10)


def test_gibbs_data_follow_a_noisy_teacher():
    plus, minus = data.gibbs_sets(0, 4000)
    truth = data.teacher(0)
    wrong = np.where(truth > 0, minus, plus).sum() / (plus + minus).sum()
    assert wrong == pytest.approx(data.TEACHER_NOISE, abs=0.006) and set((plus + minus).sum(1)) == {data.EXAMPLES}
    assert data.population_risk(truth[None], truth)[0] == pytest.approx(0.1) and (truth == -truth[::-1]).all()


# ---- networks and arms


def test_without_dropout_the_dropout_arm_is_the_plain_one():
    lab = Experiment(STUDY, STUDY.make({**SMALL, "delta": 0.0}), arms=["mlp_plain", "mlp_dropout"]).run()
    for one, other in zip(lab.arms["mlp_plain"].members, lab.arms["mlp_dropout"].members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert last(lab, "mlp_dropout", "contraction_factor").tolist() == [1.0, 1.0]


def test_the_funnel_is_chosen_on_one_half_and_scored_on_the_other():
    found = arms.Distances(np.array([[9.0, 1.0, 2.0, 0.1], [9.0, 5.0, 3.0, 0.2]]), np.zeros(4), 1.0)
    before = type("Before", (), {"found": [found]})()
    metrics = list(arms.FunnelLayer(STUDY.make(), [0], before).ticks())[0].metrics[0]
    assert found.funnels == (1, 2)  # hidden layers alone: the nearer logits are none
    assert metrics["w1_train_population"] == (5.0 + 2.0) / 2
    assert metrics["output_minus_funnel"] == pytest.approx(0.15 - 3.5)


def test_training_and_fresh_points_follow_one_law_and_the_input_cannot_tell_them_apart():
    one = data.sample(5, "mixture", 0.2, 2000, 6000)
    clean = data.sample(5, "mixture", 0.0, 2000, 6000)
    assert torch.equal(one.x, clean.x)
    for noisy, true in ((one.y, clean.y), (one.fresh_y, clean.fresh_y)):
        assert float((noisy != true).float().mean()) == pytest.approx(0.2, abs=0.03)
    centre = [float(x[y == 1].mean(0).norm()) for x, y in ((clean.x, clean.y), (clean.fresh_x, clean.fresh_y))]
    assert centre == pytest.approx([data.DISTANCE] * 2, abs=0.1)
    digits = data.sample(0, "digits 3 8", 0.0, 120, 2000)
    assert len(digits.x) == 120 and len(digits.fresh_x) == 357 - 120
    assert not {row.tobytes() for row in digits.x.numpy()} & {row.tobytes() for row in digits.fresh_x.numpy()}
    assert digits.x.mean(0).abs().max() < 1e-5


def test_closed_forms_keep_their_promises_at_smoke(smoke):
    assert (last(smoke, "gaussian_linear", "max_layer_increase") <= 1e-12).all()
    assert (last(smoke, "gaussian_linear", "min_slack") >= 0).all()
    assert (last(smoke, "dropout_channel", "contraction_minus_bound") < 1e-9).all()
    for arm in ("gibbs_wide", "gibbs_deep_narrow"):
        assert last(smoke, arm, "crossed_gap") == pytest.approx(last(smoke, arm, "information_over_gamma"), abs=1e-10)


def test_at_one_layer_deep_is_wide_and_there_is_one_layer_to_choose():
    lab = Experiment(STUDY, STUDY.make({**SMALL, "depth": 1, "sets": 50}), arms=["gibbs_wide", "gibbs_deep_narrow", "funnel_layer"])
    lab.run()
    gaps = [last(lab, arm, "expected_gen_gap") for arm in ("gibbs_wide", "gibbs_deep_narrow")]
    assert gaps[0].tolist() == gaps[1].tolist() and last(lab, "funnel_layer", "funnel_layer").tolist() == [1.0, 1.0]


def test_figures_and_views_hold_data(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"bound_by_layer", "bound_by_n", "distance_by_layer", "trained_bounds", "contraction", "gibbs"}
    for figure in drawn.values():
        assert any(len(trace.y) and np.isfinite(np.array(trace.y, float)).any() for trace in figure.data)
    for view in study.VIEWS:
        for arm in ("gaussian_linear", "mlp_plain", "mlp_noise"):
            figure = views.draw(smoke, view, arm, 0)
            assert np.isfinite(np.array(figure.data[0].y, float)).all()


def test_fewer_points_than_training_points_are_refused():
    with pytest.raises((KnobError, ValueError), match="points = 50 is less than train = 200"):
        STUDY.make({"points": 50})


# ---- a table of one's own


def table(path, rows, head="a,b,label"):
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    return str(path)


GOOD = [f"{i % 7},{i * i % 11 + 100},{'left' if i % 3 else 'right'}" for i in range(420)]


def test_a_table_of_ones_own_takes_the_place_of_the_mixture(tmp_path, monkeypatch):
    path = table(tmp_path / "own.csv", GOOD)
    one = data.sample(0, "mixture", 0.0, 300, 5000, path)
    assert len(one.x) == 210 and len(one.fresh_x) == 210 and one.classes == 2
    assert one.x.mean(0).abs().max() < 1e-5 and one.x.std(0, unbiased=False) == pytest.approx([1, 1], abs=1e-4)
    assert one.fresh_x.mean(0).abs().max() > 1e-4  # standardised on the training part only
    monkeypatch.setenv("CLAIMLAB_DATA", path)
    lab = Experiment(STUDY, STUDY.make(SMALL), arms=["funnel_layer"]).run()
    assert lab.arms["mlp_plain"].members[0].train_x.shape == (24, 2) and np.isfinite(last(lab, "funnel_layer", "w1_train_population")).all()


@pytest.mark.parametrize(("rows", "head", "told"), [
    (GOOD[:399], "a,b,label", "399 rows of 2 numbers; 400 to 20,000 rows"),
    (GOOD, "a,b,kind", "needs a column label"),
    ([*GOOD, "3,tall,left"], "a,b,label", "column b holds other things than numbers"),
    ([*GOOD, "3,,left"], "a,b,label", "row 421 holds a number that is missing"),
    ([row.replace("right", "left") for row in GOOD], "a,b,label", "two or more"),
])  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, head, told):
    with pytest.raises(ValueError, match=told):
        data.load_table(table(tmp_path / "own.csv", rows, head))


def test_what_is_no_csv_in_utf8_is_refused(tmp_path):
    (tmp_path / "own.csv").write_bytes(b"a,label\n\xff\xfe,\xff")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        data.load_table(str(tmp_path / "own.csv"))
    with pytest.raises(ValueError, match="not a .csv file"):
        data.load_table(str(tmp_path / "own.npy"))
