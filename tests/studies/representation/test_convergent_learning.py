import copy
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats
from sklearn.linear_model import Lasso
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.representation import _convergent_learning_arms as arms
from claimlab.studies.representation import _convergent_learning_data as source
from claimlab.studies.representation import _convergent_learning_method as method
from claimlab.studies.representation import convergent_learning as own
from claimlab.training import Run


def smoke(**values):
    return study.find("convergent-learning").make(values, profile="smoke")


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("convergent-learning"), smoke()).run()


def answers(n=400, p=6, seed=0, latent=4):
    """Rectified mixtures of a few common causes, as units of a network are: [n, p]."""
    rng = np.random.default_rng(seed)
    return np.maximum(np.random.default_rng(99).standard_normal((n, latent)) @ rng.standard_normal((latent, p)) + 0.3, 0)


def of(x):
    return method.standardised(x[: len(x) // 2], x[len(x) // 2 :])


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


# ---- one to one


def test_correlations_are_those_of_numpy_and_zero_for_a_unit_that_stands_still():
    x, y = answers(p=5), answers(p=7, seed=1)
    y[:, 3] = 0.7
    with np.errstate(invalid="ignore"):
        theirs = np.corrcoef(x.T, y.T)[:5, 5:]
    theirs[:, 3] = 0
    assert np.allclose(method.correlations(x, y), theirs)


def test_information_is_that_of_the_binned_values_and_sees_what_correlation_misses():
    x = answers(p=2)
    y = np.stack([(x[:, 0] - x[:, 0].mean()) ** 2, np.random.default_rng(5).random(len(x)), x[:, 1]], axis=1)
    found = method.information(x, y)

    def binned(a):
        return np.digitize(a, np.linspace(a.min(), a.max(), 21)[1:-1])

    theirs = [[mutual_info_score(binned(a), binned(b)) for b in y.T] for a in x.T]
    assert np.allclose(found, theirs, atol=1e-6)
    z = np.random.default_rng(0).uniform(-1, 1, (4000, 1))
    assert abs(method.correlations(z, z**2)) < 0.05 and method.information(z, z**2) > 1


@pytest.mark.parametrize("similarity", ["correlation", "mutual_information"])
def test_the_matching_is_the_best_of_all_permutations(similarity):
    x, y = of(answers()), of(answers(seed=1))
    m = method.matching(x, y, similarity)
    alike = (method.correlations if similarity == "correlation" else method.information)(x.fit, y.fit)
    best = max(sum(alike[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert sorted(m.columns) == list(range(6)) and alike[m.rows, m.columns].sum() == pytest.approx(best)
    theirs = [stats.pearsonr(x.held[:, i], y.held[:, j])[0] for i, j in zip(m.rows, m.columns, strict=True)]
    assert np.allclose(m.one, theirs)
    assert all(alike[i, j] == alike[i].max() for i, j in enumerate(m.best))


@pytest.mark.parametrize("similarity", ["correlation", "mutual_information"])
def test_a_network_with_its_units_in_another_order_is_found_out(similarity):
    x, order = answers(p=12), np.random.default_rng(3).permutation(12)
    m = method.matching(of(x), of(2.5 * x[:, order]), similarity)
    assert (order[m.columns] == m.rows).all() and np.allclose(m.one, 1) and np.allclose(m.many, 1)


def test_unequal_widths_leave_units_over():
    m = method.matching(of(answers(p=5)), of(answers(p=3, seed=1)))
    assert len(m.one) == 3 and sorted(m.columns) == [0, 1, 2] and len(m.many) == 5


def test_dead_units_are_dropped_and_counted_and_scores_use_the_first_half_alone():
    x = answers(n=1000, p=5)
    x[:, 1], x[:, 3] = 0, 4.0
    x[:, 4] = 0
    x[::250, 4] = 1  # on 0.4 % of the samples
    found = of(x)
    assert found.dead == 3 and found.index.tolist() == [0, 2]
    assert np.allclose(found.fit, stats.zscore(x[:500, [0, 2]]))
    assert np.allclose(found.held, (x[500:, [0, 2]] - x[:500, [0, 2]].mean(0)) / x[:500, [0, 2]].std(0))
    with pytest.raises(ValueError, match="1 of 4 units are alive: at least 2"):
        of(x[:, [0, 1, 3, 4]])


def test_a_rotation_keeps_the_subspace_and_loses_the_units():
    x = of(np.random.default_rng(1).gamma(0.3, size=(600, 8)))  # sparse and independent: a local code
    turned = method.rotated(x, np.random.default_rng(0))
    assert linalg.subspace_angles(x.held - x.held.mean(0), turned.held - turned.held.mean(0)).max() < 1e-6
    assert np.allclose(method.cosines(x.held, turned.held), 1) and np.allclose(turned.fit.std(0), 1)
    assert method.matching(x, x).one.mean() == pytest.approx(1) and method.matching(x, turned).one.mean() < 0.8
    q = method.haar(5, np.random.default_rng(2))
    assert np.allclose(q @ q.T, np.eye(5))
    many = np.array([method.haar(3, np.random.default_rng(k))[0, 0] for k in range(400)])
    assert stats.kstest(many, "uniform", (-1, 2)).pvalue > 0.01  # a coordinate of a random point on the sphere


def test_cosines_are_those_of_the_principal_angles():
    x, y = (np.random.default_rng(k).standard_normal((50, 3 + k)) for k in (0, 1))
    angles = linalg.subspace_angles(x - x.mean(0), y - y.mean(0))
    assert np.allclose(np.sort(method.cosines(x, y)), np.sort(np.cos(angles)))
    assert method.overlap(x, y) == pytest.approx(np.cos(angles).mean()) and method.overlap(x, np.ones((50, 2))) == 0


# ---- few to one


def test_lasso_is_that_of_sklearn_and_at_price_zero_least_squares():
    x, y = of(answers(p=8, latent=9)).fit, of(answers(p=3, seed=4, latent=9)).fit
    prices = [0.0, 1e-3, 0.02, 0.1, 0.5]
    found = method.lasso(x.T @ x / len(x), x.T @ y / len(x), prices, sweeps=20000, tolerance=1e-9)
    for k, price in enumerate(prices[1:], 1):
        theirs = Lasso(price, fit_intercept=False, tol=1e-10, max_iter=100000).fit(x, y)
        assert np.allclose(found[k], theirs.coef_.T, atol=1e-5), price
    assert np.allclose(found[0], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-6)
    assert (np.diff(method.active(found).sum(1)) <= 0).all() and method.active(found)[1].sum() == (np.abs(found[1]) > 1e-3).sum()


def test_the_smallest_price_that_leaves_a_handful():
    count = np.array([[9, 5, 9], [7, 4, 8], [6, 3, 7]])
    assert method.cheapest(count, 6).tolist() == [2, 0, 2]


def test_one_partner_predicts_with_the_slope_of_the_first_half():
    x, y = of(answers(p=4)), of(answers(p=2, seed=1))
    partner = np.array([3, 1])
    wanted = []
    for j, i in enumerate(partner):
        slope = stats.linregress(x.fit[:, i], y.fit[:, j]).slope
        wanted.append(((y.held[:, j] - slope * x.held[:, i]) ** 2).mean())
    assert np.allclose(arms._error(x, y, partner), wanted)


# ---- groups


def grouped(seed, sizes=(4, 3, 5)):
    """Units that answer to one of three causes each, with a little noise; and whose they are."""
    rng, cause = np.random.default_rng(seed), np.random.default_rng(7).standard_normal((500, 3))
    truth = np.repeat(np.arange(3), sizes)
    return cause[:, truth] * rng.choice([-1, 1], len(truth)) + 0.3 * rng.standard_normal((500, len(truth))), truth


def test_both_clusterings_find_the_common_causes():
    (x, a), (y, b) = grouped(0), grouped(1, (3, 4, 4))
    truth = np.concatenate([a, b])
    spectral = method.spectral(method.correlations(x, y), 3, np.random.default_rng(0))
    tree = method.agglomerated(x, y, 3)
    for first, second in (spectral, tree):
        assert adjusted_rand_score(truth, np.concatenate([first, second])) == 1 and len(method.shared(first, second)) == 3


def test_a_cluster_is_shared_where_both_networks_have_about_as_much_of_it():
    first = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    second = np.array([0, 0, 1, 1, 1, 1, 1, 3, 4])
    assert method.shared(first, second) == [0, 3]


# ---- patches and activations


def test_the_three_parts_of_a_picture_share_no_pixel():
    row, column = np.mgrid[:200, :250]
    picture = np.stack([row, column, row * 0], axis=2)
    seen = {}
    for part in ("train", "fit", "held"):
        cut = source.patches(picture, 400, part, np.random.default_rng(0))
        seen[part] = {(int(r), int(c)) for r, c in cut[..., :2].reshape(-1, 2)}
        assert cut.shape == (400, 16, 16, 3) and (np.diff(cut[..., 0], axis=1) == 1).all()
    assert not seen["train"] & seen["fit"] and not seen["fit"] & seen["held"] and not seen["train"] & seen["held"]
    assert max(c for _, c in seen["train"]) < 175 <= min(c for _, c in seen["fit"] | seen["held"])


def test_every_network_is_looked_at_in_the_same_places():
    torch.manual_seed(0)
    net = source.Net(3, 16, 10, 4)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.conv2.weight *= 2
        other.conv2.bias *= 2
    x = torch.rand(30, 3, 16, 16)
    one, two = source.capture(net, x, 5), source.capture(other, x, 5, split=7)
    assert np.allclose(2 * one["conv2"], two["conv2"], atol=1e-5) and np.allclose(one["conv1"], two["conv1"], atol=1e-6)
    with torch.no_grad():
        maps = net.layers(x)["conv2"].flatten(2).transpose(1, 2).numpy()  # [30, 64, 10]
    near = np.abs(maps[:, :, None] - one["conv2"][:, None]).max(3).min(1)
    assert near.max() < 1e-5 and not np.allclose(one["conv2"][:, 0], one["conv2"][:, 1])
    assert np.allclose(net(x).detach(), net.out(torch.from_numpy(one["dense"][:, 0])).detach(), atol=1e-5)


def test_batches_are_shared_only_where_asked_and_a_mirrored_dimmed_image_is_still_itself():
    for same in (False, True):
        task = own.Networks(smoke(shared_batches=same)).bind(0)
        x, y = task.batch(None, torch.Generator().manual_seed(1), 0)
        assert x.shape == (2, 64, 3, 16, 16) and torch.equal(x[0], x[1]) == torch.equal(y[0], y[1]) == same
    shape = task.x.flatten(1)
    for image, label in zip(x[0, :5], y[0, :5], strict=True):
        known = [shape @ one.flatten() / shape.norm(dim=1).clamp_min(1e-6) / one.norm() for one in (image, image.flip(2))]
        best = torch.stack(known).max(0).values
        ratio = image.norm() / shape[best.argmax()].norm()
        assert best.max() > 0.9999 and 0.8 <= ratio <= 1.2 and task.y[best.argmax()] == label


# ---- the experiment


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline) if arm)
    pictures = lab.figures()
    assert set(pictures) == {"matrix", "matches", "filters", "sparse", "clusters", "training"}
    views = {name: f(lab.arms["networks"].members[0], lab.params) for name, f in own.VIEWS.items()}
    for name, fig in (pictures | views).items():
        filled = [np.size(t.z if t.type in ("heatmap", "image") else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name
    after = np.asarray(pictures["matrix"].data[1].z)
    one = lab.arms["trained_pair"].found[0].one
    assert len(views) == 2 and np.allclose(np.diag(after)[: len(one)], np.sort(one)[::-1], atol=1e-3)


def test_the_layer_of_the_first_claim_at_conv1_is_the_first_layer(lab):
    p = dataclasses.replace(lab.params, layer="conv1")
    at_conv1 = arms.TrainedPair(p, lab.seeds, lab.arms["networks"])
    found = [tick.metrics for tick in at_conv1.ticks()][-1]
    for metric in ("matched_correlation", "matched_correlation_p10", "subspace_cosine"):
        assert [one[metric] for one in found] == last(lab, "first_layer", metric).tolist()
        assert (last(lab, "trained_pair", metric) != last(lab, "first_layer", metric)).all()


def test_the_rotated_pair_keeps_the_angle_of_the_pair_and_the_floor_is_zero(lab):
    kept = last(lab, "rotated_pair", "subspace_cosine")
    assert np.allclose(kept, last(lab, "trained_pair", "subspace_cosine"), atol=1e-6)
    assert (last(lab, "rotated_pair", "matched_correlation") < last(lab, "trained_pair", "matched_correlation")).all()
    assert (last(lab, "permuted_samples", "matched_correlation").abs() < 0.05).all()


def test_a_network_and_its_copy_match_perfectly_in_every_arm(lab):
    pair = copy.deepcopy(lab.arms["networks"].members[0])
    pair.second = pair.untrained = pair.first
    run = SimpleNamespace(seeds=[0], members=[pair], tasks=lab.arms["networks"].tasks[:1])
    found = {}
    for name in ("trained_pair", "trained_vs_random", "sparse_mapping", "one_to_one_mapping", "joint_clusters"):
        found[name] = next(iter(arms.COMPARISONS[name](lab.params, [0], run).ticks())).metrics[0]
    assert found["trained_pair"] == found["trained_vs_random"] and found["trained_pair"]["matched_correlation"] == pytest.approx(1)
    assert found["one_to_one_mapping"]["prediction_mse"] < 1e-12 and found["sparse_mapping"]["prediction_mse_all"] < 1e-6
    assert found["joint_clusters"]["cluster_cosine"] > 0.99


def test_without_training_the_pair_matches_no_better_than_chance(lab):
    p = dataclasses.replace(lab.params, **own.Params.CONTROL.set)
    control = Experiment(lab.study, p, seeds=range(4), arms=["trained_pair", "trained_vs_random"]).run()
    gain = last(control, "trained_pair", "matched_correlation") - last(control, "trained_vs_random", "matched_correlation")
    assert abs(gain.mean()) < 0.1 and set(control.table.step) == {0, 1}


def test_the_untrained_network_stays_as_it_was_drawn_and_the_starts_differ(lab):
    run = lab.arms["networks"]
    drawn = run.fresh(0)
    moved = [not torch.equal(a, b) for a, b in zip(run.members[0].parameters(), drawn.parameters(), strict=True)]
    third = len(moved) // 3
    assert all(moved[: 2 * third]) and not any(moved[2 * third :])
    assert not torch.allclose(drawn.first.conv1.weight, drawn.second.conv1.weight)


def test_a_network_does_not_notice_the_other_of_its_pair():
    alone = Run(own.Networks(smoke(steps=3)), [0])
    frozen = Run(own.Networks(smoke(steps=3)), [0])
    with torch.no_grad():
        for weight in frozen.members[0].second.parameters():
            weight.zero_()
    for run in (alone, frozen):
        for _ in range(3):
            run.advance()
    for a, b in zip(alone.members[0].first.parameters(), frozen.members[0].first.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("arm, knob, metric", [
    ("trained_pair", dict(similarity="mutual_information"), "matched_correlation"),
    ("sparse_mapping", dict(lasso_lambda=0.15), "prediction_mse"), ("joint_clusters", dict(clusters=4), "shared_clusters"),
])  # fmt: skip
def test_knobs_of_the_comparison_act(lab, arm, knob, metric):
    other = arms.COMPARISONS[arm](dataclasses.replace(lab.params, **knob), lab.seeds, lab.arms["trained_pair"])
    told = [tick.metrics for tick in other.ticks()][-1]
    assert [one[metric] for one in told] != last(lab, arm, metric).tolist()


def test_no_unit_keeps_more_than_a_handful_and_the_width_is_the_middle_layers(lab):
    assert (last(lab, "sparse_mapping", "most_active_units") <= 6).all()
    pair = own.Networks(smoke(width=20)).bind(0).init()
    assert pair.first.conv2.out_channels == 20 and pair.first.conv3.out_channels == 48
    with pytest.raises(ValueError, match="clusters = 40 is more than two nets of width = 8"):
        own.Params(width=8, clusters=40)


# ---- images and activations of one's own


def write(folder, classes=("bar", "dot"), n=40, shape=(16, 16), mode="RGB"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 100, shape, dtype=np.uint8)
            pixels[2 : 6 + 6 * label, 3:5] = 250
            Image.fromarray(pixels).convert(mode).save(folder / "images" / name / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("mode, chosen", [("L", None), ("RGB", ["trained_pair"])])
def test_own_images_run_the_whole_study(tmp_path, monkeypatch, mode, chosen):
    monkeypatch.setenv("CLAIMLAB_DATA", write(tmp_path, shape=(8, 8), mode=mode))
    lab = Experiment(study.find("convergent-learning"), smoke(steps=2), arms=chosen).run()
    colours = lab.arms["networks"].members[0].first.conv1.in_channels
    assert np.isfinite(last(lab, "trained_pair", "matched_correlation")).all() and colours == {"L": 1, "RGB": 3}[mode]
    assert chosen or len(lab.figures()) == 6


@pytest.mark.parametrize("case, message", [
    (dict(classes=("bar",)), "holds 1 class folders"), (dict(n=39), "holds 39 PNG images: at least 40"),
    (dict(mode="RGBA"), "colour mode RGBA"), (dict(shape=(18, 16)), "is 16 x 18: images must be square"),
    (dict(shape=(18, 18)), "multiple of 4 from 8 to 64"),
])  # fmt: skip
def test_unfit_folders_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_images(write(tmp_path, **case), np.random.default_rng(0), 100)


def test_an_image_of_another_size_is_named(tmp_path):
    folder = write(tmp_path)
    Image.new("RGB", (24, 24)).save(tmp_path / "images" / "dot" / "2.png")
    with pytest.raises(ValueError, match=r"2.png has the shape \(24, 24, 3\), the others \(16, 16, 3\)"):
        source.own_images(folder, np.random.default_rng(0), 100)


def test_saved_activations_of_any_two_networks_are_compared(tmp_path):
    x, samples = answers(p=8, latent=8), np.arange(400.0)
    for name, a in (("one", x), ("two", x[:, ::-1])):
        (tmp_path / name).mkdir()
        own.save_activations(tmp_path / name / "activations.npz", {"conv2": a, "dense": a[:, :3]}, samples)
    first, second = own.own_activations(tmp_path / "one", tmp_path / "two", "conv2")
    assert np.array_equal(first, x) and np.array_equal(second, x[:, ::-1])
    found = own.compare(first, second, smoke(clusters=3))
    assert found["trained_pair"].results["matched_correlation"] == pytest.approx(1) and "trained_vs_random" not in found
    assert found["rotated_pair"].results["matched_correlation"] < 0.9 and found["one_to_one_mapping"].results["prediction_mse"] < 1e-9


def nan(x):
    return np.where(x > x.max() - 1e-9, np.nan, x)


@pytest.mark.parametrize("change, samples, message", [
    (lambda x: x[:300], slice(300), "holds 400 samples and .*two.npz 300"), (lambda x: x, slice(None, None, -1), "bear different hashes"),
    (nan, slice(None), "two.npz: conv2 is float64 .* allowed are finite numbers"), (lambda x: x[:, 0], slice(None), r"of shape \(400,\)"),
    (lambda x: x.astype(int), slice(None), "conv2 is int64"), (lambda x: 0 * x, slice(None), "400 samples and 0 units that are alive"),
    (lambda x: x[:30], slice(30), "has 30 samples; at least 40"),
])  # fmt: skip
def test_unfit_activations_are_refused(tmp_path, change, samples, message):
    x, seen = answers(), np.arange(400.0)
    own.save_activations(tmp_path / "one.npz", {"conv2": x}, seen)
    own.save_activations(tmp_path / "two.npz", {"conv2": change(x)}, seen[samples])
    with pytest.raises(ValueError, match=message):
        own.own_activations(tmp_path / "one.npz", tmp_path / "two.npz", "conv2")


def test_files_without_the_layer_or_of_another_kind_are_named(tmp_path):
    own.save_activations(tmp_path / "one.npz", {"conv2": answers()}, np.arange(400.0))
    with pytest.raises(ValueError, match="one.npz has no array dense"):
        own.own_activations(tmp_path / "one.npz", tmp_path / "one.npz", "dense")
    (tmp_path / "two.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="two.npz is not an .npz file"):
        own.own_activations(tmp_path / "one.npz", tmp_path / "two.npz", "conv2")
    np.savez(tmp_path / "three.npz", conv2=np.array([{}, {}], dtype=object), samples=np.array("x"))
    with pytest.raises(ValueError, match="must be plain numbers"):
        own.own_activations(tmp_path / "three.npz", tmp_path / "one.npz", "conv2")
