"""Calibrated Chaos: the decomposition against brute force and closed forms, runs against plain torch loops, sources of chance
that are switched one by one, simulated truth, own files, the control."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import kstest
from sklearn.calibration import calibration_curve
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, max_pool2d

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.training import _calibrated_chaos_data as D
from claimlab.training import Run

STUDY = study.find("calibrated-chaos")
M = STUDY.module
DEV = 1000


def trained(arm, steps=20, runs=16, **values) -> Run:
    run = Run(M.ARMS[arm](STUDY.make(dict(steps=steps, runs=runs, seeds=2, **values))), [DEV], every=10**6)
    for _ in run:
        pass
    return run


def weights(net) -> torch.Tensor:
    """All weights of each run, [R, numbers]."""
    return torch.cat([w.detach().flatten(1) for w in (*net.weights, *net.biases)], 1)


def bound(arm, **values):
    return M.ARMS[arm](STUDY.make({"runs": 16, **values})).bind(DEV)


def rows(task, step=0, n=40) -> torch.Tensor:
    """Rows [n, R, B] that the runs see."""
    return task.block(None, None, step, n)[0].unflatten(1, (task.runs, -1))


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[DEV, DEV + 1]).run()


# ---- the decomposition


def test_true_variance_is_the_mean_covariance_of_two_different_examples():
    c = np.random.default_rng(0).random((30, 40)) < np.linspace(0.1, 0.95, 40)
    parts, covariance = M.decompose(c), np.cov(c.T.astype(float))
    brute = covariance[~np.eye(40, dtype=bool)].mean()
    assert parts.true == pytest.approx(brute, abs=1e-14)
    assert parts.total == pytest.approx(covariance.mean(), abs=1e-14)
    assert parts.luck == pytest.approx(np.trace(covariance) / 40**2, abs=1e-14)


@pytest.mark.parametrize("variance", [0.0, 0.01])
def test_coins_have_no_true_variance_and_a_common_shift_has_its_own(variance):
    rng, runs, p = np.random.default_rng(1), 16, np.linspace(0.3, 0.8, 50)
    found = []
    for _ in range(2000):
        shift = math.sqrt(variance) * rng.choice([-1, 1], size=(runs, 1))
        parts = M.decompose(rng.random((runs, 50)) < p + shift)
        found.append((parts.true, parts.total))
    mean, error = np.mean(found, 0), np.std(found, 0) / math.sqrt(2000)
    luck = ((p * (1 - p)).mean() - variance) / 50
    assert abs(mean[0] - variance) < 4 * error[0]
    assert abs(mean[1] - (variance + luck)) < 4 * error[1]
    assert error[0] < 0.001  # small enough for the two lines above to fail


def test_halves_estimate_the_same_variance():
    c = (np.random.default_rng(2).random((20, 8)) < 0.7).astype(float)
    halves = [half for half in itertools.combinations(range(8), 4)]
    exact = np.mean([np.cov(c[:, half].mean(1), np.delete(c, half, 1).mean(1))[0, 1] for half in halves])
    assert exact == pytest.approx(M.decompose(c).true, abs=1e-14)
    assert M.half_covariance(c, np.random.default_rng(3), splits=20_000) == pytest.approx(exact, abs=3e-4)


def test_coins_follow_the_poisson_binomial_law():
    c = np.random.default_rng(4).random((25, 60)) < np.linspace(0.5, 1.0, 60)
    p, law = c.mean(0), np.ones(1)
    for one in p:  # the exact law, a coin at a time
        law = np.convolve(law, [1 - one, one])
    draws = np.round(M.independent_errors(c, np.random.default_rng(5), draws=20_000) * 60)
    assert draws.mean() == pytest.approx(p.sum(), abs=0.1)
    assert draws.var() == pytest.approx((p * (1 - p)).sum(), rel=0.05)
    seen = np.bincount(draws.astype(int), minlength=61) / len(draws)
    assert np.abs(seen.cumsum() - law.cumsum()).max() < 0.015


def test_runs_that_do_not_scatter_give_no_share_and_the_floor():
    c = np.tile(np.arange(10) % 3 > 0, (5, 1))
    assert math.isnan(M.decompose(c).share)
    assert M.log_sd(c) == math.log(1e-5)


# ---- calibration and the formula


def test_calibrated_votes_give_the_formula():
    rng = np.random.default_rng(6)
    q = rng.beta(0.4, 0.6, size=4000)
    votes, y = rng.random((500, 4000)) < q, rng.random(4000) < q  # labels from the ensemble's own votes
    c = votes == y
    error = 1 - c.mean()
    assert error == pytest.approx((2 * q * (1 - q)).mean(), abs=0.01)
    assert c.mean(1).std(ddof=1) == pytest.approx(M.predicted_sd(error, 4000), rel=0.08)
    analysed = M.against_formula(M.analyse(c), error, votes.mean(0), y)
    assert analysed["abs_log_sd_ratio"] < 0.1
    assert analysed["calibration_error"] < 0.03
    turned = M.against_formula(M.analyse(~c), 1 - error, 1 - votes.mean(0), y)  # votes against the truth: same scatter
    assert turned["calibration_error"] > 0.3
    assert turned["log_sd_ratio"] == pytest.approx(0.5 * math.log(error / (1 - error)) + analysed["log_sd_ratio"])


def test_calibration_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(7)
    q, y = rng.random(500), rng.integers(2, size=500)
    found, error = M.calibration(q, y)
    frequency, mean = calibration_curve(y, q, n_bins=10)
    assert np.allclose(found[:, 0], mean)
    assert np.allclose(found[:, 1], frequency)
    assert error == pytest.approx((found[:, 2] / 500 * np.abs(frequency - mean)).sum())


# ---- runs side by side


def test_a_run_in_company_is_the_run_that_plain_torch_trains_alone():
    task = bound("all_sources", steps=30)
    with_company = trained("all_sources", steps=30).members[0]
    start = task.init()
    for r in (0, 7):
        layers = [nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 10)]
        for layer, w in zip(layers, start.weights, strict=True):
            layer.weight.data, layer.bias.data = w[r].detach().clone(), torch.zeros(len(w[r]))
        net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for step, batch in enumerate(rows(task, n=30)[:, r]):
            plain.param_groups[0]["lr"] = 0.1 * (1 - step / 30)
            plain.zero_grad()
            cross_entropy(net(task.split.x[batch]), task.split.y[batch]).backward()
            plain.step()
        for layer, w, b in zip(layers, with_company.weights, with_company.biases, strict=True):
            assert torch.allclose(layer.weight, w[r], atol=2e-5)
            assert torch.allclose(layer.bias, b[r, :, 0], atol=2e-5)


def test_a_run_does_not_depend_on_how_many_there_are():
    few, many = (weights(trained("all_sources", runs=runs).members[0]) for runs in (16, 33))
    assert torch.equal(few, many[:16])


@pytest.mark.parametrize("values", [{}, {"runs": 19, "label_noise": 0.2, "augment": True}])
def test_without_a_nudge_all_runs_are_bit_identical(values):
    net = trained("one_weight", **{"nudge": 0.0, "steps": 60, **values}).members[0]
    w, start = weights(net), weights(bound("one_weight", nudge=0.0).init())
    assert (w == w[:1]).all()
    assert not torch.equal(w[0], start[0])  # they did train
    assert M.decompose(net.right()).total == 0


def test_a_large_nudge_is_one_run_per_weight_and_parts_them():
    net = trained("one_weight", nudge=0.1, steps=60).members[0]
    assert M.decompose(net.right()).total > 0
    assert M.distances(net)[0] > 1e-4
    assert int((~net.trace[:, 0].isnan()).sum()) == 2  # a row a tick: start and end


def test_the_nudge_moves_one_living_weight_of_each_run_by_its_size():
    task = bound("one_weight")
    net = task.init()
    first = net.weights[0].detach().double()
    changed = (first != first[0]).nonzero()
    assert changed[:, 0].tolist() == list(range(1, 16))  # run 0 is the original, the others differ once
    assert len({tuple(place) for place in changed[:, 1:].tolist()}) == 15
    assert task.split.varying[changed[:, 2]].all()
    run, unit, pixel = changed.T
    assert torch.allclose(first[run, unit, pixel] / first[0, unit, pixel] - 1, torch.full((15,), 1e-6).double(), atol=1.3e-7)
    assert all((w == w[:1]).all() for w in net.weights[1:])


def test_sources_are_switched_one_by_one():
    everything, init, order = (bound(arm) for arm in ("all_sources", "init_only", "order_only"))
    started = [[w.detach() for w in task.init().weights] for task in (everything, init, order)]
    assert all(torch.equal(a, b) for a, b in zip(started[0], started[1], strict=True))
    assert all((w == w[:1]).all() and torch.equal(w[0], a[0]) for a, w in zip(started[0], started[2], strict=True))
    assert started[0][0].flatten(1).unique(dim=0).shape[0] == 16
    seen = [rows(task) for task in (everything, init, order)]
    assert torch.equal(seen[0], seen[2])
    assert (seen[1] == seen[1][:, :1]).all() and torch.equal(seen[1][:, 0], seen[0][:, 0])
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])


def test_shifts_are_a_source_of_their_own():
    only, everything = bound("augment_only", augment=True), bound("all_sources", augment=True)
    drawn = rows(only)
    assert (drawn % 600 == drawn[:, :1] % 600).all()  # the same digits in the same order
    assert not torch.equal(drawn[:, 0], drawn[:, 1])  # moved differently
    assert torch.equal(rows(everything) % 600, rows(bound("all_sources")))


def test_every_epoch_is_a_permutation_and_blocks_join():
    task = bound("order_only")
    epoch = rows(task, n=75).transpose(0, 1).flatten(1).unflatten(1, (4, 600))  # 75 steps of 32 are 4 epochs
    assert (epoch.sort(-1).values == torch.arange(600)).all()
    assert torch.equal(rows(task, n=75)[31:], rows(task, step=31, n=44))


def test_initial_weights_have_he_s_variance():
    for w in bound("all_sources", runs=200).init().weights:
        assert w.var().item() == pytest.approx(2 / w.shape[2], rel=0.03)


def test_the_convolutional_runs_are_torch_s_convolution():
    task = bound("conv", sweep=True)
    net, x = task.init(), task.split.x[:6]
    with torch.no_grad():
        for b in net.biases:
            b.normal_(generator=torch.Generator().manual_seed(0))
        for r in (0, 9):
            maps = conv2d(x.view(-1, 1, 8, 8), net.weights[0][r].view(12, 1, 3, 3), net.biases[0][r, :, 0]).relu()
            wanted = max_pool2d(maps, 2).flatten(1) @ net.weights[1][r].T + net.biases[1][r, :, 0]
            assert torch.allclose(net(x)[r].T, wanted, atol=1e-5)


def test_distances_are_what_they_say():
    net = bound("all_sources").init()
    with torch.no_grad():
        for w in net.weights:
            w[:] = w[0]
        net.weights[0][1:] *= 1.5
    w, chance = weights(net), net(net.test_x).softmax(1).detach()
    far, apart = M.distances(net)
    assert far == pytest.approx(float((w[1] - w[0]).norm() / w[0].norm()), rel=1e-5)
    assert apart == pytest.approx(float((chance[1] - chance[0]).square().mean().sqrt()), rel=1e-4)


# ---- simulated truth, data


def test_the_estimate_from_1200_points_is_the_variance_on_50000():
    run = Run(M.ARMS["synthetic"](STUDY.make(dict(steps=60, runs=48))), [DEV], every=10**6)
    last, net = list(run)[-1].metrics[0], run.members[0]
    x, y = run.tasks[0].fresh
    c = (net.votes(x) == y).double().numpy()
    others = np.array([M.decompose(part).true for part in np.split(c[:, :49_200], 41, axis=1)])  # 41 further test sets of 1,200
    direct = last["direct_true_variance"]
    assert direct == pytest.approx(c.mean(1).var(ddof=1), rel=0.05)  # luck is next to nothing on 50,000 points
    assert others.mean() == pytest.approx(direct, abs=4 * others.std() / math.sqrt(41))
    assert abs(last["true_variance"] - direct) < 4 * others.std()
    assert direct > 4 * others.std() / math.sqrt(41)  # there is something to find


def test_simulated_classes_have_the_moments_they_should():
    x, y = D.simulated(DEV, 0.0).fresh
    for label, mean, spread in ((0, 0.0, 1.0), (1, 0.6, 1.5)):
        part = x[y == label]
        assert part[:, :10].mean().item() == pytest.approx(mean, abs=0.01)
        assert part[:, :10].std().item() == pytest.approx(1.0, abs=0.01)
        assert part[:, 10:].std().item() == pytest.approx(spread, abs=0.01)


def test_splits_share_no_image_and_noise_is_always_wrong():
    clean, noisy, pairs = (D.split(DEV, 1197, noise, binary, False) for noise, binary in ((0, False), (0.4, False), (0, True)))
    whole = torch.from_numpy(D.examples("")[0])  # two of the 1,797 digits are equal
    together = torch.cat([clean.x, clean.test[0]])
    assert all(map(torch.equal, together.unique(dim=0, return_counts=True), whole.unique(dim=0, return_counts=True)))
    assert len(clean.x) == 600
    assert int((clean.y != noisy.y).sum()) == 240
    assert torch.equal(clean.x, pairs.x) and torch.equal(clean.y % 2, pairs.y)
    assert torch.equal(D.split(DEV, 100, 0, False, False).test[0], clean.test[0][:100])


def test_shifts_are_those_of_scipy():
    x = np.random.default_rng(8).random((3, 64)).astype(np.float32)
    wanted = [ndimage.shift(x.reshape(3, 8, 8), (0, i, j), order=0) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    found = D.shifted(x).reshape(9, 3, 8, 8)
    assert np.array_equal(found[0], x.reshape(3, 8, 8))
    assert {v.tobytes() for v in found} == {np.ascontiguousarray(w).tobytes() for w in wanted}
    with pytest.raises(ValueError, match="square images"):
        D.shifted(np.zeros((2, 63), np.float32))


# ---- own files


def good(rng=None):
    rng = rng or np.random.default_rng(9)
    return {"X": rng.normal(size=(400, 6)) * 50, "y": np.arange(400) % 3}


def broken(**changes):
    return {**good(), **changes}


@pytest.mark.parametrize(("arrays", "reason"), [
    ({"X": good()["X"]}, "no array y"), (broken(X=good()["X"][:, 0]), "N x D"), (broken(X=good()["X"].astype(str)), "numbers of shape"),
    (broken(X=np.where(np.arange(6) == 2, np.nan, good()["X"])), "400 rows of X hold NaN"), (broken(y=np.zeros(400, int)), "at least two"),
    (broken(y=np.arange(400) % 3 + 1), "without a gap"), (broken(y=good()["y"].astype(float)), "whole number"),
    (broken(y=(np.arange(400) < 5).astype(int)), "label 1 has 5 rows"), ({"X": np.zeros((0, 6)), "y": np.zeros(0, int)}, "N >= 300"),
    (broken(X=np.tile(good()["X"][:200], (2, 1))), "200 rows occur again"), (broken(y=np.array([object()] * 400)), "plain numbers"),
    ({"c": np.ones((70, 300))}, "analyse"),
])  # fmt: skip
def test_own_examples_that_do_not_fit_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(ValueError, match=reason) as refusal:
        D.own_examples(tmp_path / "mine.npz")
    assert "mine.npz" in str(refusal.value)


COINS = (np.random.default_rng(10).random((70, 300)) < 0.9).astype(np.int8)


@pytest.mark.parametrize(("matrix", "reason"), [
    (COINS[:63], "63 runs"), (COINS[:, :199], "199 examples"), (COINS * 2, "0 and 1"), (np.where(COINS, 1.0, np.nan), "0 and 1"),
    (COINS.astype(str), "0 and 1"), (COINS[0], "runs x examples"), (np.vstack([COINS, COINS[:2]]), "2 runs are identical"),
])  # fmt: skip
def test_own_matrices_that_do_not_fit_are_refused(tmp_path, matrix, reason):
    np.savez(tmp_path / "runs.npz", c=matrix)
    with pytest.raises(ValueError, match=reason):
        M.own_matrix(tmp_path / "runs.npz")


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "mine.npz").write_bytes(pickle.dumps({"c": COINS}))
    with pytest.raises(ValueError, match=r"not an \.npz"):
        M.own_matrix(tmp_path / "mine.npz")


def test_an_own_matrix_goes_through_the_whole_analysis(tmp_path):
    np.savez(tmp_path / "runs.npz", c=COINS)
    c = M.own_matrix(tmp_path / "runs.npz")
    found = M.analyse(c)
    assert found["mean_accuracy"] == pytest.approx(COINS.mean())
    assert found["sd"] == pytest.approx(COINS.mean(1).std(ddof=1))
    assert abs(found["true_variance_share"]) < 0.6  # independent coins: nothing true, within the error of 70 runs
    assert kstest((c.mean(1) - c.mean()) / found["sd"], "norm").pvalue > 1e-3
    from claimlab.studies.training._calibrated_chaos_figures import own

    heights = own(c).data[0]
    assert (np.array(heights.y) * heights.width).sum() == pytest.approx(1)  # every run is in the histogram


def test_own_examples_run(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **good())
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "mine.npz"))
    task = bound("all_sources", test_size=200)
    assert task.split.x.shape == (133, 6) and task.split.test[0].shape == (200, 6) and task.split.classes == 3
    assert float(task.split.x.min()) == 0 and float(task.split.x.max()) == 1
    arms = ["all_sources", "one_weight", "binary"]
    lab = Experiment(STUDY, STUDY.make(dict(runs=16, steps=60, seeds=2)), arms=arms).run()
    accuracy = lab.table[(lab.table.metric == "mean_accuracy") & (lab.table.arm == "all_sources")].groupby("step").value.mean()
    assert 0.2 < accuracy.iloc[-1] < 0.5  # labels that nothing foretells stay at chance
    assert {"sources", "nudged twins"} <= set(lab.figures()) and all(f.data for f in lab.figures().values())


# ---- the experiment


def test_control_stops_the_scatter_and_keeps_the_runs_short():
    p = STUDY.make(STUDY.control.set)
    assert (p.nudge, p.steps) == (0.0, 150)
    end = list(Run(M.ARMS["one_weight"](STUDY.make({**STUDY.control.set, "runs": 16})), [DEV], every=150))[-1].metrics[0]
    assert end["log_sd"] == math.log(1e-5) and end["weight_distance"] == 0


def test_figures_and_views_show_what_the_table_says(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"luck or quality", "halves", "share over training", "sources", "nudged twins", "calibration", "simulated"}
    last = smoke.table[smoke.table.step == 20]
    sd = last[(last.metric == "sd") & (last.arm == "order_only")].value.mean()
    bar = next(t for t in drawn["sources"].data if t.type == "bar" and t.name == "order only")
    assert bar.y[0] == pytest.approx(100 * sd)
    direct = last[last.metric == "direct_true_variance"].value.to_numpy()
    assert np.allclose(drawn["simulated"].data[2].y, 1e4 * direct)
    votes = drawn["calibration"].data[1]
    assert sum(int(n.replace(",", "")) for n in votes.text) == 2 * 1197
    net = smoke.arms["one_weight"].members[0]
    c = net.right()
    picture = M.VIEWS["right and wrong"](net, smoke.params).data[0].z
    assert np.array_equal(np.sort(np.asarray(picture).sum(1))[:5], np.sort(c.sum(0))[:5])
    assert np.isfinite(np.asarray(M.VIEWS["distance of nudged twins"](net, smoke.params).data[0].y, float)).sum() >= 20
    assert len(M.VIEWS["one half against the other"](net, smoke.params).data[0].x) == 16
    assert not M.VIEWS["distance of nudged twins"](smoke.arms["short"].members[0], smoke.params).data


def test_the_sweep_runs_and_draws():
    arms = ["all_sources", "width_16", "lr_0.5", "conv"]
    lab = Experiment(STUDY, STUDY.make(dict(runs=16, steps=20, seeds=2, sweep=True)), arms=arms).run()
    assert lab.arms["width_16"].members[0].weights[1].shape == (16, 16, 16)
    assert lab.arms["lr_0.5"].ensembles[0].optimizers[""][0][0].param_groups[0]["lr"] == pytest.approx(0.5 / 20)
    shown = [t.name for t in lab.figures()["sweep"].data if t.type == "bar"]
    assert shown == ["all sources", "width 16", "lr 0.5", "conv"]


def test_the_figure_of_shares_keeps_to_its_two_arms(smoke):
    figure = smoke.figures()["share over training"]
    assert {t.legendgroup for t in figure.data} == {"all_sources", "short"}
    low, high = figure.layout.yaxis.range
    assert -1 <= low < 0.35 < high == 1.2
