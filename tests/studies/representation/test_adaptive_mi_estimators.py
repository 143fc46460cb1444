import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.io import savemat
from scipy.spatial.transform import Rotation
from scipy.special import expit, sph_harm_y
from sklearn.metrics import mutual_info_score
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.representation import _adaptive_mi_estimators_arms as arms
from claimlab.studies.representation import _adaptive_mi_estimators_data as data
from claimlab.studies.representation import _adaptive_mi_estimators_figures as drawing
from claimlab.studies.representation import _adaptive_mi_estimators_method as method
from claimlab.studies.representation import adaptive_mi_estimators as own
from claimlab.training import Run

TINY = dict(steps=24, patterns=200, measurements=5, networks=2, seeds=2)


def make(**values):
    return study.find("adaptive-mi-estimators").make(values, profile="smoke")


def experiment(only=None, **values):
    return Experiment(study.find("adaptive-mi-estimators"), make(**values), arms=only).run()


@pytest.fixture(scope="module")
def lab():
    return experiment()


def layer(n=800, d=4, seed=0):
    """Rectified mixtures of a few causes, with exact zeros: activity [n, d] float32."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((n, 3)) @ rng.standard_normal((3, d)) + 0.2, 0).astype(np.float32)


def labels(n=800, seed=5):
    return (np.random.default_rng(seed).random(n) < 0.4).astype(np.int64)


def read(t, bins=30, saturated=None):
    return method.codes(t, method.quantile_edges(t, bins, saturated), saturated)


# ---- the task


def test_the_points_are_an_icosahedron():
    r = data.icosahedron()
    cosine = np.round(r @ r.T, 6)
    assert np.allclose((r**2).sum(1), 1) and len(np.unique(r.round(6), axis=0)) == 12
    for row in cosine:
        values, count = np.unique(row, return_counts=True)
        assert np.allclose(values, [-1, -(5**-0.5), 5**-0.5, 1], atol=1e-6) and count.tolist() == [1, 5, 5, 1]


def test_the_rule_is_the_sum_over_spherical_harmonics_and_feels_no_rotation():
    x = np.random.default_rng(0).integers(0, 2, (40, 12)).astype(float)
    a, r = np.random.default_rng(1).standard_normal(7), data.icosahedron()
    polar, azimuth = np.arccos(r[:, 2]), np.arctan2(r[:, 1], r[:, 0])
    theirs = sum(a[k] * abs(x @ sph_harm_y(k, m, polar, azimuth)) ** 2 for k in range(7) for m in range(-k, k + 1))
    assert np.allclose(data.invariant(x, a, r), theirs)
    assert np.allclose(data.invariant(x, a, Rotation.random(random_state=3).apply(r)), theirs)


def test_labels_are_balanced_and_a_pattern_tells_99_hundredths_of_a_bit():
    found = data.rule()
    f = data.invariant(found.x, found.a, data.icosahedron())
    p = expit(found.gamma * (f - found.theta))
    both = stats.entropy(np.stack([p, 1 - p]), base=2, axis=0)
    assert stats.entropy([p.mean(), 1 - p.mean()], base=2) - both.mean() == pytest.approx(0.99, abs=1e-6)
    assert abs((f > found.theta).mean() - 0.5) < 0.06 and abs(f - found.theta).min() > 1e-3  # no pattern sits on the threshold
    table = data.table(4096)
    assert len(np.unique(table.x, axis=0)) == 4096 and 0.44 < table.y.float().mean() < 0.56
    with pytest.raises(ValueError, match="halves"):
        data.steepness(np.repeat([0.0, 1.0], [10, 90]), 0.5)


# ---- bins


@pytest.mark.parametrize(("d", "bins"), [(1, 3), (4, 30), (12, 200)])
def test_information_is_the_entropy_of_unique_rows(d, bins):
    t, y = layer(d=d), labels()
    c = read(t, bins, 0.0)
    _, kind, count = np.unique(c, axis=0, return_inverse=True, return_counts=True)
    found = method.binned_information(c, y)
    assert found.ixt == pytest.approx(stats.entropy(count, base=2)) and found.ixt <= math.log2(len(t)) + 1e-9
    assert found.ity == pytest.approx(mutual_info_score(kind.ravel(), y) / math.log(2), abs=1e-9)
    assert found.ity <= stats.entropy(np.bincount(y), base=2) + 1e-12 and found.distinct == len(count) / len(t)


def test_many_fine_symbols_do_not_collide():
    c = np.random.default_rng(0).integers(0, 201, (500, 14))
    c[250:] = c[:250]
    c[0, 0] += 1
    assert len(np.unique(method.symbols(c))) == len(np.unique(c, axis=0)) == 251


def test_every_input_of_its_own_is_the_ceiling_and_a_dead_layer_tells_nothing():
    x = data.table(4096).x.numpy()
    full = method.binned_information(method.codes(x, method.equal_edges(0, 1, 2)), labels(4096))
    assert full.ixt == pytest.approx(12) and full.distinct == 1
    dead = method.binned_information(read(np.zeros((100, 3)), 30, 0.0), labels(100))
    assert dead.ixt == dead.ity == 0 and dead.distinct == 0.01


def test_merging_bins_never_adds_information():
    for seed in range(5):
        t, y = layer(seed=seed), labels()
        fine = method.equal_edges(0, t.max(), 64)
        found = [method.binned_information(method.codes(t, fine[k - 1 :: k]), y) for k in (1, 2, 4, 8, 16)]
        for a, b in itertools.pairwise(found):
            assert a.ixt >= b.ixt - 1e-12 and a.ity >= b.ity - 1e-12
        assert found[0].ixt > found[-1].ixt


def test_adaptive_bins_hold_equally_many_unique_values_and_the_saturated_value_has_its_own():
    t = layer(n=1000)
    c = method.codes(t, method.quantile_edges(t, 30, 0.0), 0.0)
    assert (c[t == 0] == 0).all() and (c[t != 0] > 0).all() and (t == 0).mean() > 0.1
    first = np.unique(t, return_index=True)[1]
    count = np.bincount(c.ravel()[first])
    assert count[0] == 1 and len(count) == 31 and np.ptp(count[1:]) <= 1
    mixed = np.concatenate([np.zeros(900), np.arange(1.0, 101)])[:, None]  # zeros do not eat the bins, whoever they belong to
    assert len(np.unique(method.codes(mixed, method.quantile_edges(mixed, 10)))) == 10
    assert len(np.unique(read(np.array([[1.0], [2], [3]]), 30))) == 3  # fewer values than bins


def test_adaptive_bins_do_not_feel_an_increasing_map_and_fixed_ones_do():
    t = layer().astype(np.float64)
    maps = (lambda v: 7 * v, lambda v: v**3, np.expm1, lambda v: v / (1 + v))
    for grow in maps:
        assert (read(grow(t), 30, 0.0) == read(t, 30, 0.0)).all()
    at = method.equal_edges(0, t.max(), 30)
    assert (method.codes(t**3, method.equal_edges(0, (t**3).max(), 30)) != method.codes(t, at)).mean() > 0.2


# ---- kernels


def test_separated_points_give_log_p_and_identical_ones_nothing():
    y = torch.arange(64) % 2
    apart = torch.arange(64.0)[:, None] * 10
    upper, lower, ity = method.kernel_information(apart, y, 1e-3)
    assert upper == pytest.approx(6) and lower == pytest.approx(6) and ity == pytest.approx(1)
    assert method.kernel_information(torch.ones(64, 3), y, 1e-3) == (0, 0, 0)
    assert method.kernel_information(torch.zeros(64, 3), y, method.kernel_variance(torch.zeros(64, 3), 1e-3)) == (0, 0, 0)


@pytest.mark.parametrize("variance", [1e-3, 0.02, 0.3, 5.0])
def test_the_entropy_of_a_gaussian_mixture_lies_between_the_bounds(variance):
    centres = np.array([-1.3, -0.2, 0.0, 0.1, 1.5])
    spread = math.sqrt(variance)

    def integrand(v):
        density = stats.norm.pdf(v, centres, spread).mean()
        return -density * math.log2(density) if density > 0 else 0.0

    whole = integrate.quad(integrand, -1.3 - 8 * spread, 1.5 + 8 * spread, points=centres, limit=500)[0]
    true = whole - 0.5 * math.log2(2 * math.pi * math.e * variance)
    y = torch.tensor([0, 1, 0, 1, 0])
    upper, lower, _ = method.kernel_information(torch.tensor(centres)[:, None], y, variance)
    assert lower <= true + 1e-6 and true <= upper + 1e-6 and upper - lower > 1e-3 * (variance > 1e-3)


def test_kernels_agree_with_the_formula_pair_by_pair_and_the_lower_bound_is_lower():
    for seed, variance in itertools.product(range(3), (1e-3, 0.1)):
        t, y = layer(n=120, seed=seed).astype(np.float64), labels(120)
        square = ((t[:, None] - t[None]) ** 2).sum(-1)
        theirs = [-np.log2(np.exp(-square / (2 * v)).mean(1)).mean() for v in (variance, 4 * variance)]
        within = sum((y == k).mean() * -np.log2(np.exp(-square[y == k][:, y == k] / (2 * variance)).mean(1)).mean() for k in (0, 1))
        upper, lower, ity = method.kernel_information(torch.tensor(t), torch.tensor(y), variance)
        assert (upper, lower) == pytest.approx(theirs, abs=1e-6) and ity == pytest.approx(max(0, theirs[0] - within), abs=1e-6)
        assert lower <= upper and ity <= stats.entropy(np.bincount(y), base=2) + 1e-9


def test_the_noise_follows_the_layer_only_where_it_adapts():
    t = torch.tensor([[1.0, -8.0], [2.0, 3.0]])
    assert method.kernel_variance(t, 0.01) == pytest.approx(0.08) and method.kernel_variance(t, 0.01, False) == 0.01


def test_compression_by_hand():
    ixt = np.array([[4.0, 0, 0], [8, 0, 2], [7, 0, 0], [6, 0, 0], [5, 0, 0]])
    assert method.compression(ixt).tolist() == [0.25, 0, 1]


# ---- networks


def test_a_network_of_a_crowd_is_an_ordinary_perceptron():
    torch.manual_seed(0)
    net, x = arms.Crowd((12, 10, 7, 2), 3, "tanh", 1.0, 5), torch.randn(9, 12)
    for k in range(3):
        w = net.parts(net.theta)
        linear = [nn.Linear(i, o) for i, o in net.shapes]
        for j, one in enumerate(linear):
            one.weight.data, one.bias.data = w[2 * j][k].view(*net.shapes[j]).T, w[2 * j + 1][k]
        plain = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2])
        assert torch.allclose(net.layers(x)[-1][k], plain(x), atol=1e-6)
    assert float(net.weights()[0].detach().std()) == pytest.approx(12**-0.5, rel=0.1)


def train(steps=24, count=2, seeds=(0, 1), l2=None, **options):
    return Run(own.Networks(make(**TINY), l2=l2, count=count), seeds, steps, 10**9, **options)


def finish(run):
    while run.step < run.total:
        run.advance()
    return run


def test_the_penalty_is_the_sum_of_squared_weights_of_all_layers():
    task = own.Networks(make(**TINY), l2=0.03).bind(0)
    torch.manual_seed(1)
    net = task.init()
    batch = task.batch(net, torch.Generator().manual_seed(0), 0)
    free = own.Networks(make(**TINY)).bind(0).loss(net, *batch)
    theirs = sum(nn.functional.cross_entropy(net.layers(batch[0])[-1][k], batch[1][k]) for k in range(2))
    assert free.item() == pytest.approx(theirs.item(), rel=1e-5)
    squares = sum(float((w.detach() ** 2).sum()) for w in net.weights())
    assert (task.loss(net, *batch) - free).item() == pytest.approx(0.03 * squares, rel=1e-4)


def test_training_does_not_depend_on_company_stacking_or_a_pause():
    together, loop, alone, single = (finish(train(**o)) for o in ({}, dict(stacked=False), dict(seeds=(1,)), dict(count=1)))
    way = (together.members[1].theta - train().members[1].theta).norm()
    assert way > 0.1
    for other, mine in ((loop, together.members[1].theta), (alone, together.members[1].theta), (single, together.members[1].theta[:1])):
        assert (other.members[-1].theta - mine).norm() < 1e-3 * way
    first = arms.Measured(own.Networks(make(**TINY)), [0, 1])
    ticks, second = first.stepwise(), arms.Measured(own.Networks(make(**TINY)), [0, 1])
    for _ in range(12):
        next(ticks)
    second.load(copy.deepcopy(first.state()))
    for run in (first, second):
        assert list(run.stepwise())[-1].step == 24
    for one, other in zip(first.members, second.members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_networks_of_a_seed_hold_out_different_patterns_and_never_train_on_them():
    task = own.Networks(make(**TINY)).bind(0)
    assert task.train.shape == (2, 160) and task.held.shape == (2, 40) and not torch.equal(*task.held)
    for k in range(2):
        assert sorted([*task.train[k].tolist(), *task.held[k].tolist()]) == list(range(200))
    x, y = task.block(None, torch.Generator().manual_seed(0), 0, 3)
    place = {tuple(row): i for i, row in enumerate(task.x.tolist())}
    for k in range(2):
        rows = [place[tuple(row)] for row in x[:, k].flatten(0, 1).tolist()]
        assert set(rows) <= set(task.train[k].tolist()) and torch.equal(task.y[rows], y[:, k].flatten())


def test_measurements_begin_at_the_start_and_three_lie_at_the_end():
    times = arms.moments(study.find("adaptive-mi-estimators").make())
    assert len(times) == 12 and times[0] == 0 and times[-3:] == [1440, 1470, 1500]


# ---- arms


def same(one, other):
    return all(torch.equal(a.path, b.path) for a, b in zip(one.members, other.members, strict=True))


def test_with_fixed_bins_the_method_is_the_baseline():
    lab = experiment(["relu_ebab", "relu_fixed_bins"], **TINY, binning="fixed_run")
    assert same(lab.arms["relu_ebab"], lab.arms["relu_fixed_bins"])
    lab = experiment(["relu_ebab", "relu_fixed_bins"], **TINY)
    assert not same(lab.arms["relu_ebab"], lab.arms["relu_fixed_bins"])


def test_with_the_same_penalty_the_regularised_arm_is_the_plain_one():
    lab = experiment(["relu_ebab", "relu_l2_ebab"], **TINY, l2=own.L2)
    assert same(lab.arms["relu_ebab"], lab.arms["relu_l2_ebab"])
    assert torch.equal(lab.arms["relu_population"].members[0].theta, lab.arms["relu_l2_ebab"].members[0].theta)


def test_the_range_of_fixed_bins_is_that_of_the_whole_run_or_the_activation():
    run = arms.Measured(own.Networks(make(**TINY)), [0])
    list(run.ticks())
    net, x = run.members[0], run.tasks[0].x
    found = arms.spans(net, x, range(len(run.times)))
    tops = [[float(h[k].max()) for h in net.layers(x, net.film[t])[:-1]] for t in range(len(run.times)) for k in range(2)]
    assert (found[..., 0] == 0).all() and np.allclose(found[..., 1], np.reshape(tops, (len(run.times), 2, 5)).max(0))
    net.activation = "tanh"
    assert (arms.spans(net, x, [0]) == [-1, 1]).all()


def test_all_rulers_see_the_same_networks_and_metrics_follow_from_their_paths(lab):
    grown = lab.arms["relu_population"]
    for arm in ("relu_ebab", "relu_fixed_bins", "relu_akde", "relu_kde"):
        assert torch.equal(lab.arms[arm].members[1].theta, grown.members[1].theta[: arms.FEW])
    net, task = lab.arms["relu_ebab"].members[0], grown.tasks[0]
    with torch.no_grad():
        hidden = net.layers(task.x, net.film[2])[2][0].numpy()
    kinds = np.unique(read(hidden, 30, 0.0), axis=0, return_counts=True)[1]
    assert float(net.path[2, 0, 2, 0]) == pytest.approx(stats.entropy(kinds, base=2))
    ixt = net.path[..., 0].numpy()
    rows = lab.table[(lab.table.arm == "relu_ebab") & (lab.table.seed == 0)].groupby("metric").value.last()
    c = (ixt.max(0) - ixt[-3:].mean(0)) / ixt.max(0).clip(1e-9)
    assert rows["max_compression"] == pytest.approx(c.mean(0).max()) and rows["mean_compression"] == pytest.approx(c.mean())
    assert rows["final_ixt_layer3"] == pytest.approx(ixt[-3:, :, 2].mean())
    right = [(net.layers(task.x)[-1][k].argmax(-1) == task.y)[task.held[k]].float().mean() for k in range(2)]
    assert rows["test_accuracy"] == pytest.approx(float(np.mean([float(r) for r in right])))
    for arm in ("relu_akde", "relu_kde"):
        path = torch.stack([net.path for net in lab.arms[arm].members])
        assert (path[..., 2] <= path[..., 0] + 1e-9).all() and path[..., 0].max() <= 9


def test_correlation_over_a_population_is_spearmans_and_dead_layers_count_as_zero():
    net = arms.Crowd((3, 4, 3, 2, 2), 6, "relu", 1.0, 4)
    net.path[...] = torch.rand(net.path.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net.path[:, 2, -1, 0], net.path[1, 4, -1, 0], net.path[2:, 4, -1, 0] = 0, 2.0, 0.1
    net.accuracy[-1] = torch.tensor([0.5, 0.9, 0.4, 0.7, 0.95, 0.6])
    found = arms.summary(net, population=True)
    ixt = net.path[..., -1, 0].numpy()
    c = [0 if not i.max() else (i.max() - i[-3:].mean()) / i.max() for i in ixt.T]
    assert c[2] == 0 and found["spearman_last_layer"] == pytest.approx(stats.spearmanr(c, net.accuracy[-1]).statistic)
    assert found["dead_last_layer"] == 1 and found["silent_networks"] == 1
    assert math.isnan(arms.rank_correlation(np.zeros(4), np.arange(4)))


def test_figures_of_the_smoke_profile_hold_data(lab):
    drawn = lab.figures()
    assert set(drawn) == {"planes", "rulers", "histogram", "l2", "generalisation", "paths"}
    dots = [trace for trace in drawn["generalisation"].data if trace.xaxis == "x"][0]
    assert len(dots.x) == 4 and np.allclose(sorted(dots.y), sorted(drawing.pooled(lab)[1]))
    boxes = {box.name: np.mean(box.y) for box in drawn["l2"].data}
    assert boxes["relu, L2 = 0 (n = 4)"] == pytest.approx(lab.table[(lab.table.arm == "relu_ebab") & (
        lab.table.metric == "mean_compression")].groupby("seed").value.last().mean())  # fmt: skip
    value, low, high = drawing.bootstrap(np.arange(30.0) + np.random.default_rng(0).normal(0, 9, 30), np.arange(30.0), 200)
    assert low < value < high <= 1


def test_the_survey_adds_activations_and_penalties():
    lab = experiment(["relu_population", "relu_ebab", "other_activations", "l2_grid"], **TINY, survey=True)
    told = set(lab.table.metric)
    assert {"swish: mean_compression", "l2=0.025: mean_compression", "sigmoid: ixt_layer5"} <= told
    assert drawing.survey(lab).data[0].y is not None and "l2_grid" not in experiment(["relu_ebab"], **TINY).arms


# ---- one's own table


def test_own_tables_are_read_and_trained_on(tmp_path, monkeypatch):
    x = data.rule().x[:300]
    y = (x.sum(1) > x.sum(1).mean()).astype(int)
    savemat(tmp_path / "var_u.mat", {"F": x, "y": y})
    np.savez(tmp_path / "mine.npz", x=np.concatenate([x, x[:7]]), y=np.concatenate([y, y[:7]]))
    assert (own.data.own_table(tmp_path / "var_u.mat")[0] == x).all()
    with pytest.warns(UserWarning, match="7 rows repeat"):
        again, told = own.data.own_table(tmp_path / "mine.npz")
    assert len(again) == 300 and sorted(map(tuple, again)) == sorted(map(tuple, x)) and told.sum() == y.sum()
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "var_u.mat"))
    lab = experiment(["relu_ebab"], **TINY)
    assert lab.arms["relu_population"].tasks[0].x.shape == (200, 12) and data.table(4096).told == "var_u.mat"


@pytest.mark.parametrize(("change", "said"), [
    (dict(x=None), "no array x"), (dict(y=None), "no array y"), (dict(x=np.full((200, 3), np.nan)), "NaN"),
    (dict(y=np.zeros(200, int)), "at least two"), (dict(y=np.arange(200) % 2 * 2), "without a gap"),
    (dict(y=np.arange(200) // 190), "at least a tenth"), (dict(x=np.arange(198).reshape(99, 2)), "one label a row"),
    (dict(x=np.zeros((0, 2)), y=np.zeros(0, int)), "100 to 20,000"), (dict(x=np.full((200, 2), "a")), "allowed are numbers"),
    (dict(x=np.arange(200)), "rows x columns"), (dict(x=np.full((200, 2), None)), "plain numbers"),
])  # fmt: skip
def test_own_tables_that_do_not_fit_are_refused_with_the_reason(tmp_path, change, said):
    held = dict(x=np.arange(400.0).reshape(200, 2), y=np.arange(200) % 2) | change
    np.savez(tmp_path / "mine.npz", **{k: v for k, v in held.items() if v is not None})
    with pytest.raises(ValueError, match=said):
        data.own_table(tmp_path / "mine.npz")


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a file"):
        data.own_table(tmp_path / "nowhere.mat")
    (tmp_path / "a.mat").write_text("no matrix at all, only words" * 20)
    with pytest.raises(ValueError, match="cannot be read as a MATLAB file"):
        data.own_table(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"G": np.ones(3)})
    with pytest.raises(ValueError, match="no array F and no y"):
        data.own_table(tmp_path / "b.mat")


def test_too_few_steps_for_the_measurements_are_refused():
    with pytest.raises(ValueError, match="steps = 30 .* measurements = 12"):
        make(steps=30, measurements=12)
