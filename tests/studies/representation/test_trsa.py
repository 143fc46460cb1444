"""tRSA against scipy's distances, correlations, ranks and shortest paths, closed forms of noise, and planted shapes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, rankdata, spearmanr

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.studies.representation import _trsa_arms as arms
from claimlab.studies.representation import _trsa_data as source
from claimlab.studies.representation import _trsa_figures as drawn
from claimlab.studies.representation import _trsa_method as method
from claimlab.studies.representation import trsa as own

torch.set_num_threads(1)


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("trsa"), smoke()).run()


def responses(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


# ---- distances


def test_distances_are_scipys():
    x = responses(9, 7)
    assert np.allclose(method.dissimilarity(x), pdist(x, "sqeuclidean") / 7)
    assert np.allclose(method.dissimilarity(x, kind="correlation"), pdist(x, "correlation"))
    assert np.allclose(method.square(method.dissimilarity(x)), squareform(pdist(x, "sqeuclidean") / 7))


def test_a_crossed_distance_is_the_product_of_two_differences():
    x, again = responses(5, 4), responses(5, 4, seed=1)
    found = method.square(method.dissimilarity(x, again))
    for i in range(5):
        for j in range(5):
            assert found[i, j] == pytest.approx(float((x[i] - x[j]) @ (again[i] - again[j]) / 4))


def test_of_pure_noise_the_crossed_distance_has_mean_0_and_the_plain_one_2_variances():
    sigma = 1.7
    x, again = sigma * responses(400, 6, 30), sigma * responses(400, 6, 30, seed=1)
    crossed, plain = method.dissimilarity(x, again), method.dissimilarity(x)
    assert abs(crossed.mean()) < 0.02 * sigma**2 and crossed.min() < 0
    assert plain.mean() == pytest.approx(2 * sigma**2, rel=0.02)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), lower=st.floats(0, 0.4), upper=st.floats(0.5, 1))
def test_rotating_shifting_or_scaling_the_responses_changes_no_matrix(seed, scale, lower, upper):
    x = responses(8, 5, seed=seed)
    turn = torch.linalg.qr(responses(5, 5, seed=seed + 1)).Q
    first, second = method.dissimilarity(x), method.dissimilarity(scale * (x @ turn) + responses(1, 5, seed=seed + 2))
    assert np.allclose(first * scale**2, second)
    for statistic in (method.geo_topological, method.geodesic):
        assert np.allclose(statistic(first, lower, upper), statistic(second, lower, upper), atol=1e-7)


# ---- the transform


def test_the_transform_worked_out_by_hand():
    d = torch.tensor([-1.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    assert method.transform(d, torch.tensor(1.0), torch.tensor(4.0)).tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])
    assert method.transform(d, torch.tensor(2.0), torch.tensor(2.0)).tolist() == [0, 0, 0, 1, 1, 1]
    for q in (0.0, 0.13, 0.5, 0.99, 1.0):
        assert method.quantile(d, q).item() == pytest.approx(np.quantile(d.numpy(), q))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_transform_never_turns_an_order_round_and_stays_within_0_and_1(seed, ends):
    d = method.dissimilarity(responses(9, 3, seed=seed))
    g = method.geo_topological(d, min(ends), max(ends))
    assert (g[d.argsort()].diff() >= 0).all() and g.min() >= 0 and g.max() <= 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.integers(0, 35))
def test_neighbours_alone_are_the_same_for_any_monotone_map_of_the_distances(seed, place):
    d, q = method.dissimilarity(responses(9, 3, seed=seed)), place / 35  # a quantile that is one of the 36 entries
    binary = method.geo_topological(d, q, q)
    assert set(binary.tolist()) <= {0.0, 1.0}
    assert torch.equal(binary, method.geo_topological(d.sqrt(), q, q))
    assert torch.equal(binary, method.geo_topological(d.log() - 5, q, q))


def test_no_thresholds_give_the_matrix_back_up_to_scale():
    d = method.dissimilarity(responses(10, 4), responses(10, 4, seed=1))
    assert pearsonr(d, method.geo_topological(d, 0.0, 1.0)).statistic == pytest.approx(1)


# ---- geodesics


@pytest.mark.parametrize("lower, upper", [(0.0, 0.3), (0.2, 0.4), (0.0, 0.8), (0.3, 1.0)])
def test_geodesics_are_shortest_paths_of_scipy_and_of_a_search_by_hand(lower, upper):
    d = method.dissimilarity(responses(8, 2, seed=3))
    g, edge = method.square(method.geo_topological(d, lower, upper)), method.square(d) < np.quantile(d, upper)
    weights = np.where(edge, g, np.inf)
    np.fill_diagonal(weights, 0)
    slow = weights.copy()
    for k in range(8):
        for i in range(8):
            for j in range(8):
                slow[i, j] = min(slow[i, j], slow[i, k] + slow[k, j])
    rows, columns = np.nonzero(np.isfinite(weights) & ~np.eye(8, dtype=bool))
    theirs = shortest_path(csr_array((weights[rows, columns], (rows, columns)), shape=(8, 8)), "D")  # edges of length 0 stay
    slow[np.isinf(slow)] = slow[np.isfinite(slow)].max()
    theirs[np.isinf(theirs)] = theirs[np.isfinite(theirs)].max()
    found = method.square(method.geodesic(d, lower, upper)).numpy()
    assert np.allclose(found, slow) and np.allclose(found, theirs)


def test_a_ring_and_a_line_with_equal_steps_are_told_apart():
    m = 12
    angle = 2 * np.pi * np.arange(m) / m
    ring = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1) / (2 * np.sin(np.pi / m)))
    line = torch.stack([torch.arange(m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)], 1)
    low, high = torch.tensor(0.0), torch.tensor(0.6)  # a step is 0.5: squared, over two channels
    steps = [method.paths(method.dissimilarity(x), low, high) / (0.5 / 0.6) for x in (ring, line)]
    assert steps[0].max().item() == pytest.approx(m / 2) and steps[1].max().item() == pytest.approx(m - 1)
    i, j = np.triu_indices(m, 1)
    assert np.allclose(steps[0], np.minimum(j - i, m - j + i)) and np.allclose(steps[1], j - i)


def test_pairs_without_a_path_get_the_longest_one():
    x = torch.tensor([[0.0], [1.0], [2.1], [100.0], [101.2]], dtype=torch.float64)
    found = method.square(method.geodesic(method.dissimilarity(x), 0.0, 0.4))
    assert found[0, 3] == found[2, 4] == found.max() == found[3, 4] > found[0, 2] > 0
    assert method.geodesic(torch.ones(10), 0.5, 0.5).abs().max() == 0


# ---- comparison


def test_correlations_are_scipys_and_a_constant_matrix_has_none():
    data, models = responses(4, 15), responses(2, 3, 15, seed=1)
    ties = (models * 2).round()
    for k in range(4):
        for a in range(2):
            for b in range(3):
                x, y = data[k], models[a, b]
                assert method.compare(data, models)[k, a, b] == pytest.approx(pearsonr(x, y).statistic)
                assert method.compare(data, models, "cosine")[k, a, b] == pytest.approx(float(x @ y / x.norm() / y.norm()))
                rank = method.compare(data.float(), ties.float(), "spearman")[k, a, b]
                assert rank == pytest.approx(spearmanr(x, ties[a, b]).statistic, abs=1e-5)
    assert method.compare(torch.full((1, 15), 0.3), models.float()).abs().max() == 0


def test_linear_cka_is_the_kernel_formula_with_a_centring_matrix():
    x, y = responses(12, 5), responses(12, 8, seed=1)
    h = torch.eye(12, dtype=torch.float64) - 1 / 12
    one, other = h @ x @ x.T @ h, h @ y @ y.T @ h
    assert method.linear_cka(x, y) == pytest.approx(float((one * other).sum() / (one.norm() * other.norm())))
    turn = torch.linalg.qr(responses(5, 5, seed=2)).Q
    assert method.linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    one = arms.Cka.similar(None, source.Distances(None, None, method.gram(x)), source.Distances(None, None, method.gram(y)[None, None]))
    assert one.item() == pytest.approx(method.linear_cka(x, y).item())


# ---- naming


def brute(similar, a, layer, n, without=()):
    others = [b for b in range(len(similar)) if b != a and b not in without]
    return int(np.argmax([np.mean([similar[a, layer, n, b, m] for b in others]) for m in range(similar.shape[1])]))


def test_votes_take_the_other_instances_alone():
    similar = responses(4, 3, 2, 4, 3)
    for without in (None, 2):
        voted = method.votes(similar, without)
        for a in range(4):
            for layer in range(3):
                for n in range(2):
                    wanted = brute(similar.numpy(), a, layer, n, () if without is None else (without,))
                    assert voted[a, layer, n].argmax() == wanted
                    assert method.right(voted)[a, layer, n] == (wanted == layer)
                    beaten = sum(voted[a, layer, n, m] < voted[a, layer, n, layer] for m in range(3)) / 2
                    assert method.standing(voted)[a, layer, n] == beaten


def test_thresholds_are_chosen_without_the_instance_that_is_tested():
    similar = responses(5, 4, 3, 2, 4, 3)
    picked, voted = method.chosen(similar)
    for held in range(4):
        share = []
        for one in similar.numpy():
            hits = [brute(one, a, layer, n, (held,)) == layer for a in range(4) if a != held for layer in range(3) for n in range(2)]
            share.append(np.mean(hits))
        assert share[picked[held]] == max(share)
        assert torch.equal(voted[held], method.votes(similar[picked[held]])[held])
    spoilt = similar.clone()
    spoilt[:, 2] = responses(5, 3, 2, 4, 3, seed=9)  # data of instance 2, and what it says as a candidate
    spoilt[:, :, :, :, 2] = responses(5, 4, 3, 2, 3, seed=8)
    assert method.chosen(spoilt)[0][2] == picked[2]


def test_separation_is_the_difference_of_means_over_the_pooled_deviation():
    similar = responses(3, 2, 3, 2)
    same = [similar[a, k, b, k] for a in range(3) for b in range(3) for k in range(2) if a != b]
    unlike = [similar[a, k, b, 1 - k] for a in range(3) for b in range(3) for k in range(2) if a != b]
    pooled = np.sqrt((np.var(same, ddof=1) + np.var(unlike, ddof=1)) / 2)  # groups of equal size
    assert method.separation(similar) == pytest.approx((np.mean(same) - np.mean(unlike)) / pooled)


# ---- the simulated recording


def test_voxels_pool_without_negative_weights_and_look_at_one_place():
    w = source.voxel_weights((3, 16, 16), 50, torch.Generator().manual_seed(0)).view(50, 3, 16, 16)
    assert w.min() >= 0 and np.allclose(w.sum((1, 2, 3)), 1, atol=1e-5)
    seen = w.sum(1)
    row = torch.arange(16.0)
    middle = (seen.sum(2) * row).sum(1)
    spread = ((seen.sum(2) * (row - middle[:, None]) ** 2).sum(1)).sqrt() / 16
    assert spread.max() < source.WINDOW + 0.01 and spread.max() > 0.2 and middle.std() > 1  # windows are cut at the border
    ratio = w[0, 0] / w[0, 1]
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-3)  # one weight a channel
    assert source.voxel_weights((40,), 2000, torch.Generator().manual_seed(1)).std() == pytest.approx(1 / 40, rel=0.1)  # exponential


def test_noise_has_the_power_that_the_ratio_says():
    signal = responses(3, 200, 50) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1)
    got = source.noisy(signal, 0.25, responses(3, 200, 50, seed=1)) - signal
    power = signal.var(1, unbiased=False).mean(1)
    assert np.allclose(got.var((1, 2)) / power, 4, rtol=0.05)


def test_a_recording_without_noise_keeps_the_distances_of_its_voxels(lab):
    one = source.Recording(0, lab.arms["networks"].members[0].layers(), smoke(voxels=500))
    quiet, loud = one.measure(1e8), one.measure(0.01)
    close = method.compare(quiet.d, one.models.d)  # the own layer of the own instance, through other voxels
    assert all(close[a, k, 0, a, k] > 0.95 for a in range(3) for k in range(6))
    assert (quiet.d > -1e-4 * quiet.d.amax()).all() and loud.d.min() < 0
    again = source.Recording(0, one.layers, one.p).measure(0.01)
    assert torch.equal(again.d, loud.d)


# ---- the experiment


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline) if arm)
    pictures = lab.figures()
    assert set(pictures) == {"triangle", "noise", "instances", "confusion", "transform"}
    views = {name: f(lab.arms["networks"].members[0], lab.params) for name, f in own.VIEWS.items()}
    for name, fig in (pictures | views).items():
        filled = [len(t.z if t.type == "heatmap" else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name
    share = pictures["confusion"].data[0].z
    assert np.allclose(np.sum(share, axis=1), 1)
    assert np.trace(share) / 6 == pytest.approx(last(lab, "rdm", "layer_accuracy").mean())


@pytest.mark.parametrize("knobs, first, second", [
    (dict(lower=0.0, upper=1.0), "rdm", "rgtm_fixed"), (dict(comparison="spearman"), "rdm", "rdm_rank"),
    (dict(lower=0.5, upper=0.5), "adjacency", "rgtm_fixed"), (dict(upper=1.0), "lower_only", "rgtm_fixed"),
], ids=str)  # fmt: skip
def test_at_the_ends_of_the_family_two_statistics_are_one(lab, knobs, first, second):
    p = dataclasses.replace(lab.params, **knobs)
    before = lab.arms["rdm"]
    made = {}
    for name in (first, second):
        arm = arms.STATISTICS[name](p, lab.seeds, before)
        arm.p = p
        made[name] = arm
        assert list(arm.ticks())
    assert made[first].apart == pytest.approx(made[second].apart, rel=1e-4)
    for one, other in zip(made[first].voted, made[second].voted, strict=True):
        for snr in one:
            assert torch.equal(one[snr].argmax(-1), other[snr].argmax(-1))


def test_the_corner_of_the_triangle_is_the_full_matrix_and_one_pair_leaves_the_nested_choice_none(lab):
    for i, seed in enumerate(lab.seeds):
        corner = lab.arms["rgtm"].triangles[i][lab.params.snr][-1, 0]
        assert corner == pytest.approx(last(lab, "rdm", "layer_accuracy")[seed])
        assert np.isnan(lab.arms["rgtm"].triangles[i][lab.params.snr][0, 1:]).all()
    assert len(lab.arms["rgtm"].grid) == 6 and all(low <= high for low, high in lab.arms["rgtm"].grid)


def test_a_threshold_turned_while_the_networks_learn_counts_for_the_statistics():
    steered = Experiment(study.find("trsa"), smoke(steps=2), arms=["rgtm_fixed"])
    next(steered.ticks())
    steered.set("upper", 1.0, arm="networks")
    steered.set("lower", 0.0, arm="networks")
    steered.run()
    for one, other in zip(steered.arms["rgtm_fixed"].voted, steered.arms["rdm"].voted, strict=True):
        assert all(torch.allclose(one[snr], other[snr], atol=1e-4) for snr in other)
    assert "confusion" in steered.figures() and "triangle" not in steered.figures()


def test_instances_of_a_set_do_not_notice_each_other():
    task = own.Networks(smoke()).bind(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = task.init()
    x, y = task.block(net, torch.Generator().manual_seed(0), 0, 1)
    task.loss(net, x[0], y[0]).backward()
    alone = net.nets[1](x[0][64:128])
    theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(alone, y[0][64:128]) / 3, list(net.nets[1].parameters()))
    for p, g in zip(net.nets[1].parameters(), theirs, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-6)
    assert not torch.equal(net.nets[0].dense.weight, net.nets[1].dense.weight)
    assert torch.equal(net.layers()[-1][2], net.nets[2](net.stimuli))


def test_stimuli_are_test_images_with_as_many_of_each_digit():
    x, y, test_x, test_y, stimuli = source.load(3, 60)
    assert len(x) == 1200 and len(stimuli) == 60
    place = [int((test_x == s).flatten(1).all(1).nonzero()[0]) for s in stimuli]
    assert np.bincount(test_y[place], minlength=10).tolist() == [6] * 10
    assert not any((x == s).flatten(1).all(1).any() for s in stimuli)


def test_a_lower_threshold_above_the_upper_one_is_refused():
    with pytest.raises(KnobError, match="lower = 0.6 lies above upper = 0.5"):
        study.find("trsa").make(dict(lower=0.6))


# ---- recordings of one's own


def write(folder, subjects=("a", "b", "c"), regions=("v1", "it"), shape=(3, 12, 20), change=None):
    rng = np.random.default_rng(0)
    truth = {r: rng.normal(size=(shape[1], 6)) for r in regions}
    for s in subjects:
        for r in regions:
            x = truth[r] @ rng.normal(size=(6, shape[2])) + 0.5 * rng.normal(size=shape)
            parts = {"responses": x, "stimuli": np.array([f"picture {i}" for i in range(shape[1])])}
            if change and (s, r) == ("b", "it"):
                parts = change(parts)
            np.savez(folder / f"{s}_{r}.npz", **parts)
    return folder


def test_own_regions_are_named_by_every_statistic(tmp_path):
    found = own.identify(write(tmp_path), smoke())
    assert list(found.index) == list(arms.STATISTICS) and (found["chance"] == 0.5).all()
    assert found.loc[["rdm", "rdm_rank", "rgtm", "cka"], "accuracy"].min() == 1 and found.loc["rdm", "dprime"] > 2


def test_own_distances_cross_the_halves_of_the_repeats(tmp_path):
    _, _, each = source.own_regions(write(tmp_path, shape=(2, 12, 20)))
    one, x = source.OwnRecording(each, smoke()), each[1][0]
    assert one.data.d.shape[2] == 1
    assert np.allclose(one.models.d[1, 0], method.dissimilarity(*torch.from_numpy(x).float()), atol=1e-4)


def edited(**parts):
    return lambda old: {k: parts[k](v) if k in parts else v for k, v in old.items()}


@pytest.mark.parametrize("made, message", [
    (dict(subjects=("a", "b")), "2 subjects and 2 regions: at least 3 and 2"), (dict(regions=("it",)), "3 subjects and 1 regions"),
    (dict(shape=(1, 12, 20)), r"a_it.npz: .* at least 2 repeats"),
    (dict(change=edited(responses=lambda x: np.where(np.arange(20) == 7, np.nan, x))), "b_it.npz: channel 7 holds"),
    (dict(change=edited(responses=lambda x: x[:2])), "b_it.npz has 2 repeats, a_it.npz has 3"),
    (dict(change=edited(responses=lambda x: x[0])), "b_it.npz: responses are float64 of shape"),
    (dict(change=edited(responses=lambda x: x.astype(str))), "b_it.npz: responses are <U"),
    (dict(change=edited(stimuli=lambda s: s[::-1])), "b_it.npz: its stimuli are not those of a_it.npz"),
    (dict(change=edited(stimuli=lambda s: s[:-1])), "one name for each of 12"),
    (dict(change=edited(stimuli=lambda s: np.full(12, "same"))), "a stimulus occurs twice"),
    (dict(change=edited(responses=lambda x: np.array([[[None]]]))), "must be plain numbers"),
    (dict(change=lambda old: {"betas": old["responses"]}), "b_it.npz has no array responses and no stimuli"),
], ids=lambda one: one if isinstance(one, str) else "made")  # fmt: skip
def test_unfit_recordings_are_refused(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        source.own_regions(write(tmp_path, **made))


def test_missing_misnamed_and_unreadable_files_are_named(tmp_path):
    (write(tmp_path) / "c_it.npz").unlink()
    with pytest.raises(ValueError, match="c_it.npz is missing"):
        source.own_regions(tmp_path)
    (tmp_path / "c_it.npz").write_text("no archive")
    with pytest.raises(ValueError, match="c_it.npz is not an .npz file"):
        source.own_regions(tmp_path)
    (tmp_path / "nameless.npz").write_text("")
    with pytest.raises(ValueError, match="nameless.npz: the name must be"):
        source.own_regions(tmp_path)


def test_ranks_of_the_transform_tie_at_both_ends():
    d = method.dissimilarity(responses(8, 3))
    g = method.geo_topological(d, 0.25, 0.75).numpy()
    assert len(np.unique(rankdata(g))) == np.sum((g > 0) & (g < 1)) + 2
    assert drawn.confusion(torch.eye(3)[None, :, None].expand(2, 3, 4, 3)).tolist() == np.eye(3).tolist()
