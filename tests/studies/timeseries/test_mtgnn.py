"""MTGNN: graph learning, mix-hop, dilated inception, the simulated network, the linear baseline, own files, the arms at smoke."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from statsmodels.tsa.api import VAR
from torch.nn import functional as F

from claimlab.experiment import Experiment
from claimlab.parts.graphs import propagation
from claimlab.parts.validated import best, keep
from claimlab.study import find
from claimlab.training import Run

STUDY = find("mtgnn")
M = STUDY.module
D = M.data
SMOKE = STUDY.make(profile="smoke")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(make, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@pytest.fixture(scope="module")
def lab():
    return Experiment(STUDY, SMOKE).run()


# ---- the graph


@pytest.mark.parametrize("spread", [0.05, 1.0, 3.0], ids=["flat", "usual", "saturated"])
def test_an_edge_has_one_direction_and_a_row_at_most_k(spread):
    for k in (1, 3, 7):
        p = STUDY.make(dict(neighbours=k))
        a = built(lambda: M.GraphLearner(12, spread), seed=k)(p)
        assert (a * a.T == 0).all() and (a >= 0).all() and a.sum() > 0
        assert ((a > 0).sum(1) <= k).all()


def test_strongest_keeps_the_largest_entries_of_each_row():
    a = torch.rand(9, 9, generator=generator())
    kept = M.strongest(a, 4).numpy()
    for row, left in zip(a.numpy(), kept, strict=True):
        assert np.array_equal(np.sort(left)[-4:], np.sort(row)[-4:]) and (left > 0).sum() == 4
    assert torch.equal(M.strongest(a, 50), a)


def test_undirected_ablation_is_symmetric_before_the_cut():
    a = built(lambda: M.GraphLearner(8, 1.0, directed=False))(STUDY.make(dict(neighbours=20))).detach()
    assert torch.allclose(a, a.T, atol=1e-6) and (a.diagonal() > 0.9).all()


def test_edges_are_scored_as_by_sklearn():
    rng = np.random.default_rng(1)
    a, graph = torch.from_numpy(rng.random((10, 10)) * (rng.random((10, 10)) < 0.4)), (rng.random((10, 10)) < 0.2).astype(int)
    pairs = [(i, j) for i in range(10) for j in range(i)]
    linked, score = zip(*[(graph[i, j] | graph[j, i], max(a[i, j], a[j, i])) for i, j in pairs], strict=True)
    ordered = [(i, j) for i in range(10) for j in range(10) if i != j]
    found = M.edges_found(a, graph)
    assert found["edge_auc"] == pytest.approx(roc_auc_score(linked, score))
    assert found["directed_auc"] == pytest.approx(roc_auc_score([graph[p] for p in ordered], [a[p] for p in ordered]))


# ---- mix-hop propagation


def test_hops_without_memory_are_powers_of_the_propagation():
    p = propagation(torch.rand(6, 6, generator=generator(), dtype=torch.float64), symmetric=False)
    h = torch.randn(2, 6, 5, generator=generator(1), dtype=torch.float64)
    for k, found in enumerate(M.hops(h, p, 0.0, 4)):
        assert np.allclose(found, np.linalg.matrix_power(p.numpy(), k) @ h.numpy())


@pytest.mark.parametrize("last", [False, True], ids=["all-hops", "last-hop"])
def test_mix_hop_is_concatenation_and_a_convolution_of_width_one(last):
    mix, a, beta, depth = built(lambda: M.MixHop(2, last)), torch.rand(5, 5, generator=generator()), 0.3, 2
    h = torch.randn(3, 5, 4, M.CHANNELS, generator=generator(1))
    total = 0
    for weight, bias, edges in zip(mix.weight, mix.bias, (a, a.T), strict=True):
        edges = edges + torch.eye(5)
        walk, states = edges / edges.sum(1, keepdim=True), [h]
        for _ in range(depth):
            states.append(beta * h + (1 - beta) * torch.einsum("ij,bjtc->bitc", walk, states[-1]))
        joined = torch.cat(states[-1:] if last else states, -1).permute(0, 3, 1, 2)
        total = total + F.conv2d(joined, torch.cat(list(weight), 1)[:, :, None, None], bias)
    assert torch.allclose(mix(h, M.walks(a, beta, depth)), total.permute(0, 2, 3, 1), atol=1e-5)


def test_beta_one_and_depth_zero_see_no_graph():
    h = torch.randn(3, 5, 4, M.CHANNELS, generator=generator())
    first, second = (torch.rand(5, 5, generator=generator(seed)) for seed in (1, 2))
    mix = built(lambda: M.MixHop(2))
    assert torch.equal(mix(h, M.walks(first, 1.0, 2)), mix(h, M.walks(second, 1.0, 2)))
    assert not torch.allclose(mix(h, M.walks(first, 0.05, 2)), mix(h, M.walks(second, 0.05, 2)), atol=1e-3)
    flat = built(lambda: M.MixHop(0))
    weight, bias = flat.weight.sum((0, 1))[:, :, None, None], flat.bias.sum(0)
    expected = F.conv2d(h.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)
    assert torch.allclose(flat(h, M.walks(first, 0.05, 0)), expected, atol=1e-5)


# ---- the temporal module


@pytest.mark.parametrize("dilation", [1, 2], ids=["dense", "dilated"])
def test_inception_is_four_convolutions_cut_to_equal_length(dilation):
    module, h = built(lambda: M.Inception(dilation)), torch.randn(2, 3, 20, M.CHANNELS, generator=generator())
    series = h.flatten(0, 1).transpose(1, 2)
    with torch.no_grad():
        parts = zip(module.weight.squeeze(2).split(4), module.bias.split(4), 2 * M.KERNELS, strict=True)
        outs = [F.conv1d(series, weight[..., 7 - k :], bias, dilation=dilation) for weight, bias, k in parts]
        halves = [torch.cat([o[..., -(20 - 6 * dilation) :] for o in outs[part]], 1) for part in (slice(4), slice(4, 8))]
        expected = (halves[0].tanh() * halves[1].sigmoid()).transpose(1, 2).unflatten(0, (2, 3))
        assert torch.allclose(module(h), expected, atol=1e-5)


@pytest.mark.parametrize(("layers", "q"), [(1, 1), (3, 1), (2, 2), (3, 2)], ids=["1-1", "3-1", "2-2", "3-2"])
def test_receptive_field_is_where_the_gradient_lives(layers, q):
    stack = built(lambda: torch.nn.ModuleList(M.Inception(q**i).double() for i in range(layers)))
    x = torch.randn(1, 1, 60, M.CHANNELS, generator=generator(), dtype=torch.float64, requires_grad=True)
    h = x
    for layer in stack:
        h = layer(h)
    (slope,) = torch.autograd.grad(h[:, :, -1].sum(), x)
    reached = (slope.abs().sum(-1)[0, 0] > 0).nonzero().flatten()
    closed = 1 + 6 * layers if q == 1 else 1 + 6 * (q**layers - 1) // (q - 1)
    assert 60 - int(reached[0]) == len(reached) == closed == M.receptive_field(layers, q)


def test_a_short_past_is_padded_on_the_left():
    p = STUDY.make(dict(dilation=2), profile="smoke")
    task = M.NoGraph(p).bind(0)
    net, past = built(task.init), task.series.windows([0, 1])[0]
    assert net.length == 43 and net.lengths[-1] == 1
    assert torch.equal(net(past, p), net(F.pad(past, (19, 0)), p))


def test_dropout_hits_its_share_and_keeps_the_mean():
    first, second = M.dropout([(50, 41), (99, 7)], 0.3, generator())
    for mask in (first, second):
        assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=0.01)]
        assert mask.mean().item() == pytest.approx(1, abs=0.12)
    rows = (first[:40] > 0).float()
    assert np.abs(np.corrcoef(rows.T)[np.triu_indices(41, 1)]).mean() < 0.17  # independent entries: about 0.13


# ---- the simulated network, windows and scores


def test_linearised_map_decays_at_the_promised_rate():
    links = D.network(8, 4, np.random.default_rng(3))
    x = list(np.random.default_rng(0).standard_normal((4, 8)))
    for _ in range(600):  # the slowest mode is all that is left
        x.append(0.5 * x[-1] + sum(1.5 * links[tau] @ x[-1 - tau] for tau in range(4)))
    size = np.log([np.abs(np.array(x[t : t + 100])).max() for t in (300, 500)])
    assert np.exp((size[1] - size[0]) / 200) == pytest.approx(0.9, abs=0.01)
    assert ((links != 0).any(0).sum(1) == 3).all() and not (links != 0).any(0).diagonal().any()


def test_statsmodels_recovers_linear_links_and_is_the_lower_frame():
    rng = np.random.default_rng(5)
    links = D.network(5, 1, rng)
    x, _ = D.simulate(links, 6000, rng, linear=True, season=0.0)
    phi = 0.5 * np.eye(5) + 1.5 * links[0]
    fitted = VAR(x[:4000]).fit(1, trend="n")
    assert np.allclose(fitted.coefs[0], phi, atol=0.06)
    assert np.allclose(np.sqrt(np.diag(fitted.sigma_u)), D.NOISE, atol=0.02)
    one = D.prepare(x, None, (1,))
    truth, guess, _ = D.ridge(one)
    past, _ = one.windows(one.test)
    centre, scale = x[: one.train.stop + 24].mean(0), x[: one.train.stop + 24].std(0)
    theirs = ((past[..., -1].double().numpy() * scale + centre) @ fitted.coefs[0].T - centre) / scale
    floor = float(D.rse(truth[..., 0], torch.from_numpy(theirs)))
    assert floor == pytest.approx(float(D.rse(truth[..., 0], guess[..., 0])), abs=0.01)
    assert floor < float(D.rse(truth[..., 0], past[..., -1])) - 0.02


def test_ridge_is_that_of_sklearn():
    one = D.series(0, 6, 400, 6, False, 1.0, (1, 3))
    (past, y), (past_t, _) = one.windows(one.train), one.windows(one.test)
    _, guess, chosen = D.ridge(one, lags=(3,), penalties=(20.0,))
    known = Ridge(alpha=20.0, fit_intercept=False).fit(past[..., -3:].flatten(1).double(), y[..., 1].double())
    assert chosen == [(3, 20.0)] * 2
    assert np.allclose(guess[..., 1], known.predict(past_t[..., -3:].flatten(1).double()), atol=1e-4)


def test_uncoupled_series_do_not_hear_one_another():
    links = D.network(6, 3, np.random.default_rng(0))
    alone, _ = D.simulate(0 * links, 300, np.random.default_rng(1))
    assert np.array_equal(alone, D.simulate(0 * links[:, ::-1], 300, np.random.default_rng(1))[0])
    assert not np.allclose(alone, D.simulate(links, 300, np.random.default_rng(1))[0], atol=0.05)


@pytest.mark.parametrize("linear", [False, True], ids=["tanh", "linear"])
def test_the_simulator_foretells_a_world_without_noise(linear, monkeypatch):
    monkeypatch.setattr(D, "NOISE", 0.0)
    rng = np.random.default_rng(2)
    links = D.network(6, 6, rng)
    x, tide = D.simulate(links, 300, rng, linear=linear)
    one = D.prepare(x, None, (1, 4))
    assert torch.allclose(D.foretold(one, links, tide, linear), one.windows(one.test)[1], atol=1e-4)


def test_windows_are_the_series_and_no_moment_serves_two_parts():
    x = np.random.default_rng(0).standard_normal((300, 4)).cumsum(0)
    one = D.prepare(x, None, (1, 3))
    past, future = one.windows([7])
    known = x[: one.train.stop + 26]
    z = (x - known.mean(0)) / known.std(0)
    assert np.allclose(past[0], z[7:31].T, atol=1e-5) and np.allclose(future[0], z[[31, 33]].T, atol=1e-5)
    touched = [set(range(part.start, part.stop + 26)) for part in (one.train, one.valid, one.test)]
    assert not touched[0] & touched[1] and not touched[1] & touched[2] and max(touched[2]) < 300
    x[one.valid.start :] += 100  # what comes later changes nothing in the training part
    assert torch.equal(D.prepare(x, None, (1, 3)).windows(one.train)[0], one.windows(one.train)[0])


def test_scores_are_those_of_sklearn_and_numpy():
    one = D.series(0, 6, 300, 6, False, 1.0, (1, 3))
    y, g = torch.randn(2, 50, 6, 2, generator=generator())
    found = D.scores(one, y, g, 3)
    assert found["rse"] ** 2 == pytest.approx(1 - r2_score(y[..., 1].flatten(), g[..., 1].flatten()), rel=1e-4)
    assert found["correlation"] == pytest.approx(np.mean([np.corrcoef(y[:, i, 1], g[:, i, 1])[0, 1] for i in range(6)]), abs=1e-5)
    assert found["mae_1"] == pytest.approx(np.abs((y - g)[..., 0].numpy() * one.scale.numpy()).mean(), rel=1e-5)


# ---- the arms


def test_without_propagation_every_graph_gives_the_same_forecast():
    p = STUDY.make(dict(beta=1.0), profile="smoke")
    found = Experiment(STUDY, p, arms=["mtgnn", "undirected", "true_graph"]).run().table
    rse = found[found.metric == "rse"].pivot(index="seed", columns="arm", values="value")
    assert (rse["mtgnn"] == rse["true_graph"]).all() and (rse["mtgnn"] == rse["undirected"]).all()


def test_gradients_are_clipped_as_by_torch():
    task = M.Mtgnn(SMOKE).bind(0)
    task.clip = 0.05
    net = built(task.init)
    batch = task.batch(net, generator(), 0)
    _, found = task.gradients(net, *batch)
    task.loss(net, *batch).backward()
    assert torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05) > 0.05
    for name, value in net.named_parameters():
        assert torch.allclose(found[name], value.grad, atol=1e-6)


def test_curriculum_adds_one_horizon_at_a_time():
    task = M.Mtgnn(STUDY.make(dict(curriculum=10), profile="smoke")).bind(0)
    net = built(task.init)
    for step, count in ((0, 1), (9, 1), (10, 2), (35, 4), (500, 6)):
        batch = task.batch(net, generator(), step)
        _, found = task.gradients(net, *batch)
        rows = found["out.3.weight"].abs().sum(1) > 0
        assert rows.tolist() == [k < count for k in range(6)]


def test_a_group_of_nodes_is_its_part_of_the_network():
    p = STUDY.make(dict(groups=2, neighbours=2), profile="smoke")
    task = M.Mtgnn(p).bind(0)
    net = built(task.init)
    past, future, _, nodes, *masks = task.batch(net, generator(), 0)
    assert past.shape[1] == len(nodes) == 3 and masks[0].shape[1] == 3
    everyone = task.series.windows([3])[0]
    assert torch.allclose(net(everyone, p), net(everyone, p, nodes=torch.arange(6)))
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.allclose(net(everyone, p)[:, order], net(everyone[:, order], p, nodes=order), atol=1e-5)


def test_the_weights_that_validated_best_are_kept():
    run = Run(M.NoGraph(SMOKE), [0])
    net, name = run.members[0], "start.weight"
    run.tick()
    first = net.get_parameter(name).detach().clone()
    keep(net, -1e-9)  # nothing will be better
    run.advance()
    run.tick()
    assert not torch.equal(net.get_parameter(name), first) and torch.equal(best(net).get_parameter(name), first)
    keep(net, 0.0)
    assert torch.equal(best(net).get_parameter(name), net.get_parameter(name))


def test_seasonal_naive_is_perfect_where_the_season_is_all(tmp_path, monkeypatch):
    t, lines = np.arange(400), []
    x = np.stack([np.sin(2 * np.pi * t / 24), np.cos(2 * np.pi * t / 24) + 3], 1)
    lines = [",".join(f"{v:.6f}" for v in row) for row in x]
    (tmp_path / "season.txt").write_text("\n".join(lines))
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "season.txt"))
    (tick,) = M.SeasonalNaive(SMOKE, [0]).ticks()
    assert tick.metrics[0]["rse"] < 1e-4
    assert not M.TrueGraph.when(SMOKE) and "edge_auc" not in M.Mtgnn(SMOKE).bind(0).edges(built(M.Mtgnn(SMOKE).bind(0).init))


def test_every_arm_reports_what_is_judged_and_figures_hold_it(lab):
    last = lab.table[lab.table.metric == "rse"].pivot(index="seed", columns="arm", values="value")
    assert set(last) == set(M.ARMS) and np.isfinite(last).all(axis=None)
    auc = lab.table[lab.table.metric == "edge_auc"].groupby("arm").value.last()
    assert set(auc.index) == {"mtgnn", "last_hop", "undirected"} and auc.between(0, 1).all()
    pictures = lab.figures()
    assert set(pictures) == {"graphs", "training", "forecasts", "horizons"}
    net, one = lab.arms["mtgnn"].members[0], lab.arms["mtgnn"].tasks[0].series
    assert np.array_equal(pictures["graphs"].data[1].z, one.graph)
    assert len(pictures["training"].frames) == len(pictures["training"].layout.sliders[0].steps) >= 2
    lines = {trace.name: trace for trace in pictures["horizons"].data if trace.name}
    assert lines["mtgnn"].y[2] == pytest.approx(last["mtgnn"].mean())
    views = {name: draw(net, SMOKE) for name, draw in M.VIEWS.items()}
    assert np.allclose(views["learned and true graph"].data[0].z, net.adjacency(SMOKE).detach())
    past = views["forecasts of four series"].data[0]
    assert np.allclose(past.y, one.windows([one.test[0]])[0][0, 0])


@pytest.mark.parametrize("knobs", [dict(curriculum=5, outputs="single"), dict(coupling=1.2, links="linear")],
                         ids=["curriculum", "coupling"])  # fmt: skip
def test_knobs_that_contradict_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        STUDY.make(knobs)


# ---- own files


ROWS = [f"{i % 7}.5,{i % 5}" for i in range(60)]
BAD = {
    "empty": ("", "no rows"),
    "ragged": ("\n".join([*ROWS, "1"]), "row 61 has 1"),
    "header": ("a,b\n" + "\n".join(ROWS), "header"),
    "word": ("\n".join([*ROWS, "1,x"]), "'x', which is no number"),
    "infinite": ("\n".join([*ROWS, "1,inf"]), "'inf'"),
    "constant": ("\n".join("3," + str(i) for i in range(60)), "series 1 is constant"),
    "one series": ("\n".join(str(i) for i in range(60)), "two or more"),
    "missing": ("\n".join([*ROWS, *["1,"] * 9]), "missing"),
    "first missing": ("1,\n" + "\n".join(ROWS), "row 1 misses"),
    "backwards": ("2024-01-02,1,2\n2024-01-01,2,3", "row 2 is not later"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, said):
    (tmp_path / "own.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        D.own_series(tmp_path / "own.txt")


def test_own_files_wrong_encoding_short_or_absent(tmp_path):
    file = tmp_path / "own.txt"
    with pytest.raises(ValueError, match="not a file"):
        D.own_series(file)
    file.write_bytes(b"1,2\n\xff\xfe")
    with pytest.raises(ValueError, match="UTF-8"):
        D.own_series(file)
    file.write_text("\n".join(ROWS))
    with pytest.raises(ValueError, match="too few"):
        D.series(0, 6, 200, 6, False, 1.0, (3,), str(file))


def test_an_own_file_with_dates_gaps_and_a_graph_is_read(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("\n".join(f"2024-01-01T{i // 60:02d}:{i % 60:02d},{row}" for i, row in enumerate(ROWS)).replace("09,2.5,4", "09,,4"))
    (tmp_path / "own.graph.csv").write_text("0,1\n0,0")
    x, graph = D.own_series(file)
    assert x.shape == (60, 2) and x[9].tolist() == [1.5, 4.0] and graph.tolist() == [[0, 1], [0, 0]]
    (tmp_path / "own.graph.csv").write_text("0,1\n0,2")
    with pytest.raises(ValueError, match="zeros and ones"):
        D.own_series(file)
