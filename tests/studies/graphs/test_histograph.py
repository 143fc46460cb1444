"""HistoGraph: read-outs against torch's own attention and norm, graphs against networkx, over-smoothing against eigenvalues."""

import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import nn

from claimlab import study, views
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.parts.graphs import propagation
from claimlab.studies.graphs import _histograph_data as data
from claimlab.studies.graphs import _histograph_method as method
from claimlab.training import Run

STUDY = study.find("histograph")
M = STUDY.module


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def some():
    """Noise-free graphs of both kinds of motif."""
    return {kind: data.simulate(100, kind, 0.0, np.random.default_rng(3)) for kind in ("clique", "cycle")}


def net_of(head, depth=3, **options):
    torch_rng = torch.random.get_rng_state()
    torch.manual_seed(1)
    net = method.Net(4, 4, depth, head, **options).double()
    torch.random.set_rng_state(torch_rng)
    return net


def inputs(source, conv="gcn"):
    return torch.from_numpy(source.x).double(), data.operator(source.a, conv).double(), torch.from_numpy(source.mask)


# ---- read-outs


@pytest.mark.parametrize("head", method.HEADS)
def test_order_and_padding_of_nodes_change_nothing(some, head):
    net, (x, op, mask) = net_of(head), (part[:6] for part in inputs(some["clique"]))
    order = torch.from_numpy(np.random.default_rng(0).permutation(data.MOST))
    wide = torch.eye(50).double().repeat(6, 1, 1)
    wide[:, :40, :40] = op
    longer = (nn.functional.pad(x, (0, 0, 0, 10), value=7.0), wide, nn.functional.pad(mask, (0, 10)))
    with torch.no_grad():
        expected = net(x, op, mask)
        assert torch.allclose(net(x[:, order], op[:, order][:, :, order], mask[:, order]), expected, atol=1e-10)
        assert torch.allclose(net(*longer), expected, atol=1e-10)
        assert not torch.allclose(net(x.roll(1, 1), op, mask), expected, atol=1e-4)


def test_all_weight_on_the_last_layer_and_no_second_stage_is_the_baseline(some, monkeypatch):
    """The limit: maps the identity, no layer code, alpha = (0, ..., 0, 1), attention and norm of stage 2 off."""
    base, net, (x, op, mask) = net_of("last"), net_of("both"), inputs(some["clique"])
    net.backbone.load_state_dict(base.backbone.state_dict())
    net.classifier.load_state_dict(base.classifier.state_dict())
    head = net.histograph
    with torch.no_grad():
        head.maps.copy_(torch.eye(32).expand_as(head.maps))
        for gone in (head.shifts, head.code, head.attention.out_proj.weight, head.attention.out_proj.bias):
            gone.zero_()
    head.norm = nn.Identity()
    assert not torch.allclose(net(x, op, mask), base(x, op, mask), atol=1e-3)
    one_hot = torch.tensor([0.0, 0, 0, 1])[:, None].double().expand(4, len(x))
    monkeypatch.setattr(method, "layer_weights", lambda c, mask, normaliser: (one_hot, c.sum(0)))
    assert torch.equal(net(x, op, mask), base(x, op, mask))


def test_node_attention_is_torchs(some):
    net, mask = net_of("both"), torch.from_numpy(some["clique"].mask[:5])
    z, held = torch.randn(5, 40, 32, generator=torch.Generator().manual_seed(0)).double(), net.histograph.attention
    found, weights = method.node_attention(z, mask, held.in_proj_weight, held.in_proj_bias, held.out_proj.weight, held.out_proj.bias, 4)
    expected, theirs = held(z, z, z, key_padding_mask=~mask, average_attn_weights=False)
    assert torch.allclose(found, expected, atol=1e-10) and torch.allclose(weights, theirs, atol=1e-10)
    assert torch.allclose(net.histograph.stage2(z, mask)[0], net.histograph.norm(z + expected), atol=1e-10)


@pytest.mark.parametrize("normaliser", ["sum", "softmax"])
def test_layer_attention_node_by_node(some, normaliser):
    net, (x, op, mask) = net_of("layers", normaliser=normaliser), (part[:3] for part in inputs(some["clique"]))
    head, h = net.histograph, net.backbone(x, op, mask)
    with torch.no_grad():
        z, alpha, _, total = head.stage1(h, mask)
        for g in range(3):
            real = mask[g]
            v = [h[k, g, real] @ head.maps[k] + head.shifts[k] + head.code[k] for k in range(4)]
            c = torch.stack([((head.query(v[3]) * head.key(one)).sum(1) / math.sqrt(32)).mean() for one in v])
            weights = c / c.sum() if normaliser == "sum" else c.softmax(0)
            assert weights.abs().max() < 5 and torch.allclose(alpha[:, g], weights) and torch.allclose(total[g], c.sum())
            assert torch.allclose(z[g, real], sum(w * one for w, one in zip(weights, v, strict=True)))


GUARDED = [((2.0, -1.0), (2.0, -1.0)), ((3e-4, -1e-4), (0.25, -1 / 12)), ((-3e-4, 1e-4), (0.25, -1 / 12)),
           ((1.0, -0.9999), (5.0, -5.0)), ((0.0, 0.0), (0.0, 0.0))]  # fmt: skip


@pytest.mark.parametrize(("scores", "expected"), GUARDED, ids=["signed", "near-zero", "near-zero-below", "cut", "nothing"])
def test_the_divisor_is_kept_away_from_zero(scores, expected):
    c = torch.tensor(scores).double()[:, None, None].expand(2, 1, 3)
    alpha, _ = method.layer_weights(c, torch.tensor([[True, True, False]]))
    assert alpha[:, 0].tolist() == pytest.approx(expected)


def test_the_layer_code_turns_by_a_fixed_angle():
    """<code_k, code_l> depends on k - l alone: sum over frequencies of cos((k - l) w)."""
    code = method.layer_code(20, 32).double()
    w = 10000.0 ** (-np.arange(0, 32, 2) / 32)
    k = np.arange(20)
    assert np.allclose((code @ code.T).numpy(), np.cos((k[:, None] - k)[..., None] * w).sum(-1), atol=1e-5)


# ---- backbone and smoothing


@pytest.mark.parametrize("conv", ["gcn", "gin"])
def test_a_layer_is_dense_algebra_and_torchs_norm(some, conv):
    net = net_of("last", conv=conv)
    (x, op, mask), layer = inputs(some["cycle"], conv), net.backbone.layers[0]
    with torch.no_grad():
        h = net.backbone.embed(x)
        given, rows = layer(h, op, mask), []
        for one, a, real in zip(h, some["cycle"].a, mask, strict=True):
            n = int(real.sum())
            a = a[:n, :n] + np.eye(n)
            root = np.diag(a.sum(1) ** -0.5)
            rows.append(torch.from_numpy(root @ a @ root if conv == "gcn" else a) @ one[:n])
        flat = torch.cat(rows)
        flat = layer.linear(layer.inner(flat).relu() if conv == "gin" else flat)
        expected = nn.BatchNorm1d(32).double().train()(flat).relu()
    assert torch.allclose(given[mask], expected, atol=1e-5)


def test_the_energy_is_its_definition_and_decays_at_the_second_eigenvalue():
    graph = nx.random_regular_graph(4, 24, seed=2)
    assert nx.is_connected(graph)
    a = torch.from_numpy(nx.to_numpy_array(graph))[None]
    p, mask = propagation(a), torch.ones(1, 24, dtype=torch.bool)
    h = torch.randn(1, 24, 6, generator=torch.Generator().manual_seed(0)).double()
    by_hand = np.mean([float((h[0, u] - h[0, v]).square().sum()) for u, v in graph.edges]) / float(h.square().sum(-1).mean())
    assert float(method.dirichlet_energy(h, a, mask)) == pytest.approx(by_hand)
    energies = []
    for _ in range(60):
        h = p @ h
        energies.append(float(method.dirichlet_energy(h, a, mask)))
    second = np.sort(np.abs(np.linalg.eigvalsh(p[0].numpy())))[-2]
    assert energies[45] / energies[44] == pytest.approx(second**2, rel=0.01)


def test_an_answer_depends_on_no_other_test_graph(smoke):
    run = smoke.arms["histograph_deep"]
    net, world = run.members[0].eval(), run.tasks[0].world
    start = world.parts["test"].start
    with torch.no_grad():
        together, alone = (M.history(net, world, slice(start, stop)) for stop in (start + 9, start + 1))
    assert torch.allclose(together[:, :1], alone, atol=1e-5)


# ---- graphs


@pytest.mark.parametrize("kind", ["clique", "cycle"])
def test_the_attributes_are_what_networkx_finds(some, kind):
    wanted = nx.complete_graph(6) if kind == "clique" else nx.cycle_graph(5)
    if kind == "clique":
        wanted.remove_edge(0, 5)
    for g in range(60):
        source, real = some[kind], some[kind].mask[g]
        graph = nx.from_numpy_array(source.a[g][real][:, real].astype(int))
        local, whole, near = source.attributes[g]
        letter = source.x[g, real].argmax(1)
        assert nx.is_connected(graph) and data.LEAST <= len(graph) <= data.MOST and (letter == 3).sum() == 2
        held = nx.isomorphism.GraphMatcher(graph, wanted).subgraph_is_monomorphic()
        assert held == whole and source.motif[g].sum() == whole * len(wanted)
        if kind == "clique" and whole:
            assert graph.subgraph(np.flatnonzero(source.motif[g, real])).number_of_edges() == 14
        far = nx.shortest_path_length(graph, *map(int, np.flatnonzero(letter == 3)))
        assert far <= 3 if near else far >= 6
        assert local == any(sum(letter[u] == 1 for u in graph[v]) >= 2 for v in graph if letter[v] == 0)


def test_cycles_and_distances_are_networkx():
    graph = nx.gnp_random_graph(11, 0.35, seed=4)
    a = nx.to_numpy_array(graph).astype(bool)
    assert data.cycles5(a) == sum(len(c) == 5 for c in nx.simple_cycles(graph, length_bound=5)) > 0
    assert not data.gone("cycle", a)
    graph.add_node(11)
    found = data.steps_between(nx.to_numpy_array(graph).astype(bool))
    expected = dict(nx.all_pairs_shortest_path_length(graph))
    assert all(found[u, v] == expected[u].get(v, 12) for u in graph for v in graph)


def test_twins_have_equal_degrees():
    rng = np.random.default_rng(5)
    for kind in ("clique", "cycle"):
        for whole, twin in (data.pair(kind, rng) for _ in range(5)):
            assert (whole.sum(0) == twin.sum(0)).all() and (whole != twin).any()


def test_degrees_do_not_tell_the_labels():
    world = M._world(STUDY.make(), 1000)
    degree = np.where(world.source.mask, world.source.a.sum(2), -1)
    counts = np.stack([(degree == k).sum(1) for k in range(1, 9)], 1)
    for y, chance in ((world.y.numpy(), 0.25), *((one, 0.5) for one in world.source.attributes.T)):
        score = cross_val_score(LogisticRegression(max_iter=300), counts / counts.std(0).clip(1e-9), y, cv=4).mean()
        assert abs(score - chance) < 0.1
    assert np.bincount(world.y).min() > 250 and len(world.y) == 1200


# ---- arms


def test_arms_of_one_depth_share_backbone_and_batches(smoke):
    p = smoke.params
    tasks = [M.ARMS[name](p).bind(1000) for name in ("last_mean_deep", "jk_concat_deep", "histograph_deep", "layer_attention_only")]
    runs = [Run(type(task)(p), [1000]) for task in tasks]
    first = runs[0].members[0].backbone.state_dict()
    rows = [task.batch(None, torch.Generator().manual_seed(0), 0)[3] for task in tasks]
    for run, y in zip(runs, rows, strict=True):
        assert all(torch.equal(value, first[name]) for name, value in run.members[0].backbone.state_dict().items())
        assert torch.equal(y, rows[0])


def test_the_test_is_taken_at_the_best_validation_accuracy(smoke):
    for arm in ("last_mean", "histograph_deep", "jk_concat_deep"):
        run = smoke.arms[arm]
        best = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == "validation_accuracy")].groupby("seed").value.max()
        last = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == "test_accuracy")].groupby("seed").value.last()
        for seed, net, task in zip(smoke.seeds, run.members, run.tasks, strict=True):
            with torch.no_grad():
                assert float(task.accuracy(M.chosen(net), "validation")) == pytest.approx(best[seed], abs=1e-6)
                assert float(task.accuracy(M.chosen(net), "test")) == pytest.approx(last[seed], abs=1e-6)


def test_a_frozen_backbone_stays_and_its_cache_is_what_it_computes():
    p = STUDY.make(dict(frozen_backbone=True), profile="smoke")
    run = Run(M.HistographDeep(p), [1000, 1001])
    task, net = run.tasks[1], run.members[1]
    before = {name: value.clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        h = M.history(net, task.world, slice(3, 5))
    assert torch.allclose(task.given[0][3:5].transpose(0, 1), h, atol=1e-5)
    list(run)
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("backbone") for name in moved)
    assert any(name.startswith("histograph.maps") for name in moved)


def test_the_ablation_is_the_knob(smoke):
    soft = Run(M.SoftmaxLayers(smoke.params), [1000])
    knob = Run(M.HistographDeep(replace(smoke.params, normaliser="softmax")), [1000])
    signed = Run(M.HistographDeep(smoke.params), [1000])
    for run in (soft, knob, signed):
        run.advance()
    assert torch.equal(soft.losses, knob.losses) and not torch.equal(soft.losses, signed.losses)


def test_heads_must_divide_the_width():
    with pytest.raises(KnobError, match="multiple of heads"):
        STUDY.make(dict(heads=3))


def test_the_sweeps_train_what_they_name(smoke):
    p = replace(smoke.params, sweep="few", steps=5)
    sweep, tasks = M.by_depth(p, [1000]), M.by_task(p, [1000])
    assert {name: len(run.members[0].backbone.layers) for name, run in sweep.runs.items()} == {
        f"{arm} {depth}": depth for arm in ("last_mean", "jk_concat", "histograph") for depth in (2, 8)}  # fmt: skip
    gin = M.by_gin(replace(p, sweep="all"), [1000])
    assert "histograph 32" in gin.runs and all(run.members[0].backbone.layers[0].inner is not None for run in gin.runs.values())
    assert torch.equal(gin.runs["last_mean 2"].tasks[0].world.op[0].diagonal(), torch.ones(data.MOST))
    for k, (name, run) in enumerate(tasks.runs.items()):
        assert torch.equal(run.tasks[0].world.y, torch.from_numpy(run.tasks[0].world.source.attributes[:, k]).long()), name


# ---- your own graphs


def files(folder, **changed):
    """Twelve paths of 2 to 4 nodes in the TU format; the label is the parity of the size."""
    sizes, edges, indicator, kinds, first = [2, 3, 4] * 4, [], [], [], 1
    for g, size in enumerate(sizes, 1):
        for u in range(first, first + size - 1):
            edges += [f"{u}, {u + 1}", f"{u + 1}, {u}"]
        indicator += [g] * size
        kinds += [7, 3, 3, 9][:size]
        first += size
    tables = {"A": edges, "graph_indicator": indicator, "graph_labels": [-1 if s % 2 else 1 for s in sizes], "node_labels": kinds}
    for name, lines in (tables | changed).items():
        (folder / f"PATHS_{name}.txt").write_text("\n".join(map(str, lines)) + "\n")
    return folder


def test_your_own_graphs_are_read_and_run(tmp_path, monkeypatch):
    found = data.own_graphs(files(tmp_path))
    assert found.mask.sum(1).tolist() == [2, 3, 4] * 4 and found.y.tolist() == [1, 0, 1] * 4
    assert found.x[2].argmax(1).tolist() == [1, 0, 0, 2]
    assert found.a[1].astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0] * 4]
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()
    assert lab.arms["histograph_deep"].tasks[0].world.classes == 2 and all(f.data for f in lab.figures().values())
    assert "by_task" not in Experiment(STUDY, STUDY.make()).specs


BAD = {
    "range": (dict(A=["1, 99", "99, 1"]), r"lie in \[1, 36\]"),
    "one way": (dict(A=["1, 2"]), "both directions"),
    "across": (dict(A=["1, 3", "3, 1"]), "joins two graphs"),
    "gap": (dict(graph_indicator=[1] * 18 + [3] * 18), "without a gap"),
    "labels": (dict(graph_labels=[1, 2]), "has 2 lines; 12 are needed"),
    "nodes": (dict(node_labels=[1]), "has 1 lines; 36 are needed"),
    "one class": (dict(graph_labels=[1] * 12), "at least two classes"),
    "large": (dict(graph_indicator=[1] * 501, graph_labels=[1], node_labels=[1] * 501), "501 nodes; dense matrices allow 500"),
    "columns": (dict(A=["1 2"]), "whole numbers with commas"),
    "three": (dict(A=["1, 2, 3"]), "2 numbers a line"),
    "words": (dict(node_labels=["C"] * 36), "whole numbers"),
    "empty": (dict(graph_labels=[""]), "at least one line"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_own_files_that_do_not_fit_are_refused(tmp_path, case):
    changed, told = BAD[case]
    with pytest.raises(ValueError, match=told):
        data.own_graphs(files(tmp_path, **changed))


def test_missing_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="exactly one is needed"):
        data.own_graphs(tmp_path)
    (files(tmp_path) / "PATHS_node_labels.txt").unlink()
    with pytest.raises(ValueError, match="PATHS_node_labels.txt is not there"):
        data.own_graphs(tmp_path)
    (tmp_path / "PATHS_node_labels.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match="UTF-8"):
        data.own_graphs(tmp_path)


# ---- what is shown


def test_figures_and_views_show_the_run(smoke):
    found = smoke.figures()
    assert set(found) == {"accuracy over depth", "smoothing", "layer weights", "paths", "node attention"}
    table = smoke.table[(smoke.table.metric == "test_accuracy") & (smoke.table.arm == "histograph_deep")]
    line = next(t for t in found["accuracy over depth"].data if t.name == "HistoGraph")
    assert dict(zip(line.x, line.y, strict=True))[3] == pytest.approx(table.value.mean())
    assert np.sum(found["node attention"].data[0].z, 1) == pytest.approx(1, abs=1e-5)
    assert [len(trace.x) for trace in found["layer weights"].data] == [4, 5]
    for view in M.VIEWS:
        for arm in ("histograph_deep", "jk_concat_deep", "last_mean"):
            assert views.draw(smoke, view, arm, 1000).data
    alpha = views.draw(smoke, "attention over layers for one graph's nodes", "histograph", 1000).data[0].y
    assert sum(alpha) == pytest.approx(1, abs=1e-4) or max(map(abs, alpha)) == 5
