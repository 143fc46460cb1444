"""DP-GNN: bounded readers, gradients against single backward passes, removals by brute force, accounting against scipy."""

import math
import warnings
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from claimlab import study, views
from claimlab.experiment import Experiment
from claimlab.parts.privacy import spent
from claimlab.studies.graphs import _dp_gnn_data as data
from claimlab.studies.graphs import _dp_gnn_method as method
from claimlab.training import Run

STUDY = study.find("dp-gnn")
M = STUDY.module
SMOKE = {"profile": "smoke"}
PLANS = [method.Plan(how, hops, 2) for how in ("mean", "gcn", "linear", "none") for hops in (1, 2)]
NAMES = [f"{plan.how}-{plan.hops}" for plan in PLANS]


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(**SMOKE), seeds=[1000, 1001]).run()


def crowd(seed, nodes=12, k=2, degree=4.0):
    """A small graph in float64, its bounded lists and what is read."""
    rng = np.random.default_rng(seed)
    graph = data.block_model(nodes, 0.5, 1.0, degree, rng)
    kept = method.bound_readers(graph.edges, nodes, k, rng)
    return graph, kept, method.slots(kept, nodes, k, rng)


def network(plan, seed=0, features=16, classes=5):
    net = method.Net(plan, features, classes, 8, torch.Generator().manual_seed(seed)).double()
    return {name: value.detach() for name, value in net.named().items()}


def answer(w, plan, x, table, root, removed=-1):
    """Logits of one node by recursion over lists of neighbours: plain torch, one node at a time."""

    def read(node):
        return [u for u in table[node] if u >= 0 and u != removed]

    def value(node, depth):
        if depth == 0:
            return x[node] if plan.how == "linear" else F.relu(w["encoder"] @ x[node] + w["encoder_bias"])
        own, theirs = value(node, depth - 1), [value(u, depth - 1) for u in read(node)]
        total = sum(theirs, torch.zeros_like(own))
        if plan.how == "linear":
            return total / max(len(theirs), 1)
        joined = {"mean": torch.cat([own, total / max(len(theirs), 1)]), "gcn": (own + total) / (1 + len(theirs)), "none": own}
        return F.relu(w[f"layer{depth - 1}"] @ joined[plan.how] + w[f"layer{depth - 1}_bias"])

    h = value(root, plan.hops)
    h = torch.cat([x[root], h]) if plan.how == "linear" else h
    return w["decoder"] @ h + w["decoder_bias"]


def single(w, plan, x, y, table, root, removed=-1):
    """The gradient of one node's loss by one backward pass, as one vector."""
    leaves = {name: value.clone().requires_grad_() for name, value in w.items()}
    F.cross_entropy(answer(leaves, plan, x, table, root, removed)[None], y[root : root + 1]).backward()
    return torch.cat([leaf.grad.flatten() for leaf in leaves.values()])


# ---- the degree bound


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 5), st.floats(0.5, 12))
def test_no_node_has_more_than_k_readers_or_reads_more_than_k(seed, k, degree):
    graph, kept, table = crowd(seed, 40, k, degree)
    assert set(map(tuple, kept.T)) <= set(map(tuple, graph.edges.T))
    assert np.bincount(kept[1], minlength=40).max(initial=0) <= k
    pairs = {(v, u) for v, row in enumerate(table) for u in row if u >= 0}
    assert pairs <= set(map(tuple, kept.T)) and (table >= 0).sum() == len(pairs)
    asked = np.bincount(kept[0], minlength=40)
    assert ((table >= 0).sum(1) == np.minimum(asked, k)).all()  # cut, but never below what there is room for
    for hops in (1, 2):  # hence the bound on the number of subgraphs that hold a node, by networkx
        found = nx.DiGraph(list(pairs))
        found.add_nodes_from(range(40))
        for node in range(40):
            holding = nx.single_source_shortest_path_length(found.reverse(), node, cutoff=hops)
            assert set(method.readers_of(table, node, hops)) == set(holding)
            assert len(holding) <= method.occurrences(k, hops)


def test_readers_are_kept_by_the_law_of_the_paper():
    """Node 0 has 20 readers and K = 3: binomial with 3 / 40, and nothing where more than 3 remain."""
    edges, rng = np.stack([np.arange(1, 21), np.zeros(20, int)]), np.random.default_rng(0)
    left = np.array([method.bound_readers(edges, 21, 3, rng).shape[1] for _ in range(4000)])
    law = stats.binom(20, 3 / 40).pmf(np.arange(4))
    law[0] += 1 - law.sum()
    assert stats.chisquare(np.bincount(left, minlength=4), 4000 * law).pvalue > 1e-3


# ---- gradients


@pytest.mark.parametrize("plan", PLANS, ids=NAMES)
def test_gradients_of_all_nodes_equal_single_backward_passes(plan):
    graph, _, table = crowd(3)
    w, x, y = network(plan), torch.from_numpy(graph.x).double(), torch.from_numpy(graph.y)
    nodes, alive = method.trees(torch.from_numpy(table), torch.arange(12), plan.hops)
    each, losses = method.node_gradients(w, plan, x[nodes], alive, y)
    flat = torch.cat([each[name].flatten(1) for name in w], 1)
    for root in range(12):
        assert torch.allclose(flat[root], single(w, plan, x, y, table, root), atol=1e-12)
        assert losses[root] == pytest.approx(float(F.cross_entropy(answer(w, plan, x, table, root)[None], y[root : root + 1])))


@pytest.mark.parametrize("plan", PLANS, ids=NAMES)
def test_inference_reads_the_whole_neighbourhood(plan):
    graph, w = crowd(4, degree=5.0)[0], network(plan)
    full = [list(nx.Graph(list(map(tuple, graph.edges.T))).adj.get(v, {})) for v in range(12)]
    x = torch.from_numpy(graph.x).double()
    found = method.over_graph(w, plan, x, *graph.lists())
    if plan.how != "linear":
        rows = torch.tensor([7, 0, 7, 11])
        assert torch.allclose(method.over_graph(w, plan, x, *graph.lists(), rows=rows), found[rows], atol=1e-12)
    assert torch.allclose(found, torch.stack([answer(w, plan, x, full, v) for v in range(12)]), atol=1e-12)


def test_clipping_shortens_what_is_too_long_and_turns_nothing():
    each = {"a": torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)), "b": torch.linspace(0, 2, 50)[:, None]}
    each["a"][7], each["b"][7] = 0.0, 0.0
    flat = torch.cat([g.flatten(1) for g in each.values()], 1)
    cut = torch.cat([g.flatten(1) for g in method.clipped(each, {"": 1.5}).values()], 1)
    short = flat.norm(dim=1) <= 1.5
    assert short.any() and (~short).any() and torch.equal(cut[short], flat[short]) and torch.isfinite(cut).all()
    assert torch.allclose(cut[~short], 1.5 * F.normalize(flat[~short]), atol=1e-6)
    parts = method.clipped(each, {"a": 1.2, "b": 0.9})  # 3-4-5: together no longer than 1.5
    assert parts["a"].flatten(1).norm(dim=1).max() == pytest.approx(1.2) and parts["b"].max() == pytest.approx(0.9)


def test_limits_of_layers_sum_to_the_same_c():
    p = STUDY.make(dict(clipping="layers", clip=0.7))
    found = M.limits(p, method.Plan("mean", 1, 3))
    assert set(found) == {"encoder", "layer0", "decoder"} and math.hypot(*found.values()) == pytest.approx(0.7)
    norms = M.public_norms(p.feature_signal, p.homophily, method.Plan("mean", 1, 3))
    assert np.allclose(norms[""] ** 2, sum(norms[name] ** 2 for name in found), rtol=1e-4)


# ---- removals


@pytest.mark.parametrize("hops", [1, 2], ids=["one-hop", "two-hops"])
def test_no_removal_passes_the_bound_on_small_graphs(hops):
    """Every removal on eight graphs of 12 nodes, both sums over all nodes, by single backward passes on the sampled lists."""
    plan, clip, worst = method.Plan("mean", hops, 2), 0.05, []
    for seed in range(8 if hops == 1 else 3):
        graph, _, table = crowd(seed)
        w, x, y = network(plan, seed), torch.from_numpy(graph.x).double(), torch.from_numpy(graph.y)

        def total(removed, roots, known=(w, plan, x, y, table)):
            each = [single(*known, root, removed) for root in roots]
            return sum(g * min(1.0, clip / g.norm()) for g in each)

        before = total(-1, range(12))
        worst += [float((before - total(v, [u for u in range(12) if u != v])).norm()) for v in range(12)]
    assert max(worst) <= 2 * clip * method.occurrences(2, hops)
    assert max(worst) > 1.05 * clip  # more than the removal of one record from a table without edges


def test_a_worst_case_turns_all_readers_round():
    """Nodes 1, 2, 3 read the mean of node 0 (+100) and node 4 (-60). Without node 0 each clipped gradient turns round: 2 C a
    reader, and C for its own term at a right angle, so 6.08 C where K = 3 allows 8 C and a table without edges C."""
    plan, clip = method.Plan("linear", 1, 3), 0.01
    table = torch.tensor([[-1] * 3, [0, 4, -1], [4, 0, -1], [0, -1, 4], [-1] * 3])
    w = {"decoder": torch.zeros(2, 2), "decoder_bias": torch.zeros(2)}
    x, y, sums = torch.tensor([[100.0], [0.0], [0.0], [0.0], [-60.0]]), torch.tensor([0, 1, 1, 1, 0]), []
    for gone in (None, torch.zeros(5, dtype=torch.long)):
        nodes, alive = method.trees(table, torch.arange(5), 1, gone)
        each, _ = method.node_gradients(w, plan, x[nodes], alive, y)
        flat = torch.cat([g.flatten(1) for g in method.clipped(each, {"": clip}).values()], 1)
        sums.append((flat * alive[:, :1]).sum(0))
    assert float((sums[0] - sums[1]).norm()) / clip == pytest.approx(math.sqrt(37), abs=0.1)


def test_removals_of_the_study_equal_the_full_sums(smoke):
    """The study computes the touched subgraphs only; here both sums over all 400 nodes, on lists rebuilt without the node."""
    task, net = smoke.arms["dp_gnn"].tasks[0], smoke.arms["dp_gnn"].members[0]
    w = {name: value.detach() for name, value in net.named().items()}
    chosen, found = task.removal[0].numpy(), task.changes(net).detach()
    assert len(chosen) >= 8 and np.argmax(task.world.degree) in chosen

    def total(table, roots):
        nodes, alive = method.trees(table, roots, 1)
        each, _ = method.node_gradients(w, net.plan, task.x[nodes], alive, task.y[roots])
        return torch.cat([g.sum(0).flatten() for g in method.clipped(each, {"": smoke.params.clip}).values()])

    everyone = torch.arange(task.n)
    for node, change in zip(chosen.tolist(), found.tolist(), strict=True):
        without = task.world.table.masked_fill(task.world.table == node, -1)
        gap = (total(task.world.table, everyone) - total(without, everyone[everyone != node])).norm()
        assert change == pytest.approx(float(gap), abs=2e-4)


# ---- accounting


@pytest.mark.parametrize(("nodes", "count", "batch", "noise"), [(20000, 4, 1000, 2.0), (60, 13, 25, 0.7), (10, 4, 8, 1.0)],
                         ids=["paper", "dense", "nearly-all"])  # fmt: skip
def test_the_expectation_is_scipys(nodes, count, batch, noise):
    law, found = stats.hypergeom(nodes, count, batch), method.renyi(nodes, count, batch, noise)
    for place in (0, 7, 40, 95):
        a = method.ORDERS[place]
        with np.errstate(over="ignore"):
            mean = law.expect(lambda rho, a=a: np.exp(a * (a - 1) * rho**2 / (2 * noise**2 * count**2)))
        assert found[place] == pytest.approx(math.log(mean) / (a - 1), rel=1e-6)


@given(st.integers(1, 40), st.floats(0.3, 10))
def test_all_terms_in_every_batch_is_the_gaussian_mechanism(count, noise):
    assert np.allclose(method.renyi(1000, count, 1000, noise), method.ORDERS / (2 * noise**2))


def test_reference_values():
    assert method.epsilon(20000, method.occurrences(3, 1), 1000, 2.0, 150) == pytest.approx(4.47, abs=0.005)
    assert method.epsilon(20000, method.occurrences(5, 1), 1000, 2.0, 150) == pytest.approx(3.66, abs=0.005)
    rate, gain = 150 / (2 * 2.0**2), math.log(10 * 20000)  # min_a of c a + L / (a - 1) is c + 2 sqrt(c L)
    assert method.epsilon(20000, 4, 20000, 2.0, 150) == pytest.approx(rate + 2 * math.sqrt(rate * gain), rel=1e-3)
    noise = method.noise_within(1.7, 20000, 4, 1000, 150)
    assert method.epsilon(20000, 4, 1000, noise, 150) == pytest.approx(1.7, rel=1e-4)


# ---- arms


def test_arms_pay_for_what_they_say():
    p = STUDY.make(dict(nodes=2000, batch=200))
    arm = {name: M.ARMS[name](p).bind(1000) for name in ("dp_gnn", "dp_mlp", "no_amplification", "naive_dpsgd", "smoothed_linear")}
    budget = method.epsilon(2000, 4, 200, p.noise, p.steps)
    assert arm["dp_gnn"].sigma == arm["smoothed_linear"].sigma == 2 * p.noise * 4
    assert spent(0.1, arm["dp_mlp"].sigma, p.steps, 1 / 20000) == pytest.approx(budget, rel=1e-3)
    assert method.epsilon(2000, 4, 2000, arm["no_amplification"].sigma / 8, p.steps) == pytest.approx(budget, rel=1e-3)
    assert arm["naive_dpsgd"].sigma == arm["dp_mlp"].sigma < arm["dp_gnn"].sigma
    net = arm["dp_gnn"].init()
    *_, noise = arm["dp_gnn"].block(net, torch.Generator().manual_seed(0), 0, 30)
    assert noise.std() == pytest.approx(arm["dp_gnn"].sigma, rel=0.02)
    assert stats.kstest(noise.flatten().numpy() / arm["dp_gnn"].sigma, "norm").pvalue > 1e-3
    zero = {"w": torch.zeros(7, noise.shape[1])}  # nothing but noise comes out, C times what was drawn
    assert torch.allclose(method.private_sum(zero, {"": 0.3}, torch.ones(7), noise[0])["w"], 0.3 * noise[0])


def test_batches_are_drawn_as_their_accounting_assumes():
    p = STUDY.make(dict(nodes=500, batch=60))
    fixed, poisson = M.DpGnn(p).bind(1000), M.DpMlp(p).bind(1000)
    first, other = (task.block(task.init(), torch.Generator().manual_seed(5), 0, 400) for task in (fixed, poisson))
    assert (first[3] == 1).all() and first[0].shape[1] == 60  # always m
    assert len(torch.unique(first[0][0, :, 0], dim=0)) == 60  # without replacement
    sizes = other[3].sum(1)
    assert sizes.mean() == pytest.approx(60, abs=1.5) and sizes.var() == pytest.approx(60 * 0.88, rel=0.2)
    assert torch.equal(first[0][:, :60, 0], other[0][:, :60, 0])  # the same order of nodes in both arms


def test_at_k_zero_the_graph_networks_are_the_perceptrons():
    """The limit knob: gnn = mlp, and dp_gnn = a private MLP with the same draws of nodes and noise, bit for bit."""

    class Plain(M.DpGnn):
        graph = False

    p = STUDY.make(dict(nodes=400, batch=50, steps=5, max_degree=0, removals=2))
    for arm, baseline in ((M.Gnn, M.Mlp), (M.DpGnn, Plain)):
        runs = [Run(task(p), [1000], stacked=False) for task in (arm, baseline)]
        for run in runs:
            list(run)
        one, other = (run.members[0].state_dict() for run in runs)
        assert all(torch.equal(one[name], other[name]) for name in other if name != "worst")
    Run(M.SmoothedLinear(replace(p, hops=2)), [1000]).advance()


def test_two_hops_and_layers_train(smoke):
    p = replace(smoke.params, hops=2, clipping="layers", aggregation="gcn", sweep_seeds=0)
    lab = Experiment(STUDY, p, seeds=[1000], arms=["dp_gnn", "gnn", "smoothed_linear"]).run()
    found = lab.table[(lab.table.metric == "change_over_bound")].value
    assert 0 < found.max() <= 1 and lab.arms["dp_gnn"].tasks[0].count == 13


# ---- data


def test_the_block_model_has_the_homophily_and_degrees_that_it_says():
    graph = data.block_model(6000, 0.7, 1.2, 8.0, np.random.default_rng(0))
    found = nx.Graph(list(map(tuple, graph.edges.T)))
    degree = np.array([found.degree(v) if v in found else 0 for v in range(6000)])
    assert degree.mean() == pytest.approx(8, rel=0.03) and nx.number_of_selfloops(found) == 0
    assert degree.var() == pytest.approx(8 + 64 * (math.exp(0.25) - 1), rel=0.1)  # Poisson mixed with a log-normal
    names = dict(enumerate(graph.y.tolist()))
    nx.set_node_attributes(found, names, "y")
    assert np.mean([names[a] == names[b] for a, b in found.edges]) == pytest.approx(0.7, abs=0.015)
    means = np.stack([graph.x[graph.y == k].mean(0) for k in range(5)]) / 1.2
    assert np.allclose(np.linalg.norm(means, axis=1), 1, atol=0.1) and abs(graph.x.var(0).mean() - 1) < 0.15
    chance = data.block_model(6000, 0.2, 1.2, 8.0, np.random.default_rng(1))
    table = np.zeros((5, 5))
    np.add.at(table, (chance.y[chance.edges[0]], chance.y[chance.edges[1]]), 1)
    assert stats.chi2_contingency(table / 2).pvalue > 1e-3  # the control: edges and classes are independent


def files(folder, n=5200, **changed):
    rng = np.random.default_rng(0)
    tables = {"edges": pd.DataFrame(rng.integers(0, 5100, (9000, 2)), columns=["source", "target"]),
              "features": pd.DataFrame(rng.normal(size=(n, 3))), "labels": pd.DataFrame({"label": rng.integers(0, 3, n)}),
              "split": pd.DataFrame({"split": ["train"] * 5100 + ["test"] * (n - 5100)})}  # fmt: skip
    for name, table in (tables | changed).items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_your_own_graph_is_read(tmp_path):
    edges = pd.DataFrame([[0, 1], [1, 0], [2, 2], [5100, 5101], [3, 5101]], columns=["source", "target"])
    with pytest.warns(UserWarning, match="1 edges of edges.csv touch a training and a test node"):
        train, test = data.own_graphs(files(tmp_path, edges=edges))
    assert train.edges.T.tolist() == [[0, 1], [1, 0]] and test.edges.T.tolist() == [[0, 1], [1, 0]]  # renumbered, each once
    assert len(train.y) == 5100 and train.x.shape[1] == 3


def test_the_study_runs_on_your_own_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", str(files(tmp_path)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lab = Experiment(STUDY, replace(STUDY.make(**SMOKE), removals=4), seeds=[1000], arms=["mlp", "dp_gnn"]).run()
    assert lab.arms["dp_gnn"].tasks[0].n == 5100 and lab.arms["dp_gnn"].tasks[0].world.classes == 3
    assert views.draw(lab, "a patch of the graph", "dp_gnn", 1000).data


BAD = {
    "ids": ("edges", pd.DataFrame({"source": [0], "target": [9999]}), r"lie in \[0, 5199\]"),
    "column": ("edges", pd.DataFrame({"from": [0], "to": [1]}), "no column source, target"),
    "nan": ("features", pd.DataFrame({"a": [1.0, np.nan] * 2600}), "finite numbers"),
    "words": ("features", pd.DataFrame({"a": ["x"] * 5200}), "finite numbers"),
    "rows": ("labels", pd.DataFrame({"label": [0, 1]}), "2 rows for 5,200 nodes"),
    "one class": ("labels", pd.DataFrame({"label": [0] * 5200}), "at least two"),
    "few": ("split", pd.DataFrame({"split": ["train"] * 4999 + ["test"] * 201}), "marks 4,999 nodes as train"),
    "no test": ("split", pd.DataFrame({"split": ["train"] * 5200}), "0 as test"),
    "empty": ("labels", pd.DataFrame({"label": []}), "no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_own_files_that_do_not_fit_are_refused(tmp_path, case):
    name, table, told = BAD[case]
    with pytest.raises(ValueError, match=told):
        data.own_graphs(files(tmp_path, **{name: table}))


def test_missing_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        data.own_graphs(tmp_path)
    (files(tmp_path) / "labels.csv").write_bytes(b"\xff\xfelabel")
    with pytest.raises(ValueError, match="UTF-8"):
        data.own_graphs(tmp_path)


def test_a_batch_larger_than_the_graph_is_refused():
    with pytest.raises(ValueError, match="batch = 1000 is not allowed: nodes = 900"):
        STUDY.module.Params(nodes=900)


# ---- what is shown


def test_figures_and_views_show_the_run(smoke):
    found = smoke.figures()
    assert set(found) == {"removal", "amplification", "accuracy over epsilon", "epsilon over K", "accuracy over homophily"}
    bars = np.concatenate([trace.x for trace in found["removal"].data])
    assert len(bars) == sum(len(task.removal[0]) for task in smoke.arms["dp_gnn"].tasks)
    last = smoke.table[(smoke.table.arm == "dp_gnn") & (smoke.table.metric == "change_over_naive")].value.max()
    assert bars.max() <= last * (1 + 1e-5)
    assert sum(found["amplification"].data[0].y) == pytest.approx(1)
    for view in M.VIEWS:
        assert views.draw(smoke, view, "dp_gnn", 1000).data and views.draw(smoke, view, "smoothed_linear", 1000).data
    none = replace(smoke.params, sweep_seeds=0)
    assert set(Experiment(STUDY, none, seeds=[1000], arms=["dp_gnn"]).run().figures()) == {"removal", "amplification"}


def test_the_largest_change_never_falls(smoke):
    rows = smoke.table[(smoke.table.arm == "dp_gnn") & (smoke.table.metric == "change_over_naive")].sort_values("step")
    assert rows.groupby("seed").value.apply(lambda v: v.is_monotonic_increasing and v.iloc[0] > 0).all()
