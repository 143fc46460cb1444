"""LOBSTER: gates by hand, torch's own SGD, pruning and convolutions, brute force for every search; exact state; idx files."""

import copy
import gzip
import math
import struct

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d
from torch.nn.utils import prune

from claimlab import study
from claimlab.data import idx as files
from claimlab.experiment import Experiment
from claimlab.studies.compression import _lobster_data as splits
from claimlab.studies.compression import _lobster_method as method
from claimlab.training import Run

STUDY = study.find("lobster")
M = STUDY.module
SMALL = dict(images="digits", steps=120, patience=1, scales=2, seeds=2, tolerance=0.2)  # long enough for plateaus and prunings


def run_of(arm, steps=None, seeds=(1000, 1001), **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), list(seeds))
    while run.step < (steps or run.total):
        run.advance()
    return run


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def same(ones, others):
    return all(torch.equal(flat(a), flat(b)) for a, b in zip(ones, others, strict=True))


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def pruned():
    return run_of("lobster", lr=0.2)


# ---- the rule


def stepped(w, grads, group="weights", lr=0.1, lam=0.01, **options):
    """`w` after the gradients, through the optimiser."""
    w = torch.nn.Parameter(torch.tensor(w).reshape(1, -1))
    groups = [{"params": [w], "key": group, "lr": lr, "weight_decay": lam, "momentum": 0.9}]
    optimizer = method.Lobster(groups, **options)
    for g in grads:
        w.grad = torch.tensor(g).reshape(1, -1)
        optimizer.step()
    return w.detach().flatten()


def test_one_step_by_hand():
    assert torch.allclose(method.insensitivity(torch.tensor([0.3, 1.5])), torch.tensor([0.7, 0.0]))
    free = torch.tensor([1 - 0.1 * 0.3, -2 - 0.1 * 1.5])
    assert torch.allclose(stepped([1.0, -2.0], [[0.3, 1.5]], lam=0.0), free, atol=1e-7)
    shrunk = stepped([1.0, -2.0], [[0.3, 1.5]], lam=0.01)
    assert torch.allclose(free - shrunk, torch.tensor([0.01 * 0.7 * free[0], 0.0]), atol=1e-7)
    assert torch.allclose(stepped([1.0, -2.0], [[0.3, 1.5]], kind="none"), free * 0.99, atol=1e-7)
    assert torch.allclose(stepped([1.0, -2.0], [[0.3, 1.5]], group="biases"), free, atol=1e-7)


def test_the_shrinking_does_not_scale_with_the_step_size_nor_gather_momentum():
    """With no loss gradient all that is left is w (1 - lam) each step, whatever lr and momentum."""
    for lr in (0.001, 0.5):
        w = stepped([1.0, -2.0], [[0.0, 0.0]] * 10, lr=lr, lam=0.01)
        assert torch.allclose(w, torch.tensor([1.0, -2.0]) * 0.99**10, atol=1e-6)


@pytest.mark.parametrize("kind", ["literal", "scaled", "inverse", "none"])
def test_without_lambda_it_is_torchs_sgd(kind):
    rng = torch.Generator().manual_seed(0)
    start, grads = torch.randn(12, generator=rng), torch.randn(7, 12, generator=rng)
    w = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for g in grads:
        w.grad = g.clone()
        sgd.step()
    assert torch.equal(stepped(start.tolist(), grads.tolist(), lam=0.0, kind=kind), w.detach())


def test_without_a_gate_it_is_sgd_with_decoupled_decay():
    """Against w (1 - lam) after each step of torch's SGD, which knows nothing of the decay."""
    rng = torch.Generator().manual_seed(1)
    start, grads = torch.randn(12, generator=rng), torch.randn(7, 12, generator=rng)
    w = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for g in grads:
        w.grad = g.clone()
        sgd.step()
        w.data *= 1 - 0.01
    assert torch.allclose(stepped(start.tolist(), grads.tolist(), lam=0.01, kind="none"), w.detach(), atol=1e-6)


def test_gates():
    g = torch.linspace(-3, 3, 61)[None]
    q = torch.full((1, 1), 1.5)
    assert torch.equal(method.gate_of("literal", g, scale=30.0), method.insensitivity(30 * g))
    scaled, inverse = (method.gate_of(kind, g, q) for kind in ("scaled", "inverse"))
    assert torch.allclose(scaled + inverse, torch.ones_like(g), atol=1e-6)  # the ablation shrinks what the method spares
    assert scaled[g.abs() >= 1.5].max() == 0 and inverse[g.abs() >= 1.5].min() == 1


def test_running_quantile_finds_that_of_numpy_for_each_member():
    rng = torch.Generator().manual_seed(0)
    state, size = {}, torch.tensor([1.0, 0.01]).reshape(2, 1, 1)
    w = torch.ones(2, 50, 40)
    for k in range(300):
        g = torch.randn(2, 50, 40, generator=rng) * size * (4.0 if k < 5 else 1.0)
        method.follow_quantile(state, g, w)
    wanted = np.quantile(np.abs(np.random.default_rng(0).standard_normal(400_000)), 0.9)
    assert np.allclose(state["q"].flatten() / size.flatten(), wanted, rtol=0.05)


def test_quantile_heeds_only_weights_that_are_left():
    state, rng = {}, torch.Generator().manual_seed(0)
    w = torch.ones(1, 50, 40)
    w[:, :25] = 0
    for _ in range(300):
        g = torch.randn(1, 50, 40, generator=rng)
        g[:, :25] *= 100  # loud, but pinned
        method.follow_quantile(state, g, w)
    assert state["q"].item() == pytest.approx(1.645, rel=0.08)


def test_shuffled_gate_keeps_the_values_and_loses_the_places():
    gate, state = torch.rand(3, 30, 20, generator=torch.Generator().manual_seed(0)), {}
    first, second = method.shuffled(gate, state), method.shuffled(gate, state)
    for one in (first, second):
        assert torch.equal(one.flatten(1).sort().values, gate.flatten(1).sort().values)
        assert (one == gate).float().mean() < 0.02
    assert not torch.equal(first, second)
    assert torch.equal(method.shuffled(gate[1], {}), first[1])  # a member alone is shuffled as in company


# ---- pruning


@pytest.fixture(scope="module")
def trained():
    return run_of("dense", 60, seeds=(1000,))


def test_bisection_agrees_with_brute_force_over_all_magnitudes(trained):
    net, task = copy.deepcopy(trained.members[0]), trained.tasks[0]
    sizes = method.magnitudes(net.weights)
    with torch.no_grad():
        base = task.validation_loss(net)
        for more in (0.02, 0.05, 0.3):
            bound = base * (1 + more)
            every = torch.stack([task.validation_loss(net, method.cut(net.weights, t)) for t in sizes])
            found = method.bisect(sizes, lambda t: task.validation_loss(net, method.cut(net.weights, t)), bound, parts=len(sizes))
            fits = every <= bound
            assert fits[found] and not fits[found + 1]
            if fits.int().diff().abs().sum() == 1:  # one crossing only: the largest that fits
                assert found == fits.nonzero().max()
            coarse = method.bisect(sizes, lambda t: task.validation_loss(net, method.cut(net.weights, t)), bound, parts=100)
            assert fits[coarse] and abs(coarse - found) <= 0.1 * len(sizes)
    removed = lambda t: (sizes[sizes < t] ** 2).sum()  # noqa: E731  - a loss that can only grow
    bound = 0.1 * (sizes**2).sum()
    assert method.bisect(sizes, removed, bound, parts=10**6) == max(k for k in range(len(sizes)) if removed(sizes[k]) <= bound)
    assert method.bisect(sizes, lambda t: torch.tensor(1.0), torch.tensor(0.0)) == 0


def test_the_cut_is_that_of_torchs_pruning(trained):
    net, task = copy.deepcopy(trained.members[0]), trained.tasks[0]
    twins = [torch.nn.Linear(*w.shape[::-1], bias=False) for w in net.weights]
    for twin, w in zip(twins, net.weights, strict=True):
        twin.weight.data = w.detach().clone()
    with torch.no_grad():
        gone = task.prune(net, task.validation_loss(net))
    prune.global_unstructured([(twin, "weight") for twin in twins], prune.L1Unstructured, amount=gone)
    assert 0 < gone == sum(int((twin.weight_mask == 0).sum()) for twin in twins) == net.size - net.left
    for i, twin in enumerate(twins):
        assert torch.equal(twin.weight_mask == 0, net.get_buffer(f"pinned_{i}") == 1)
        assert torch.equal(twin.weight.detach(), net.weights[i].detach())
    with torch.no_grad():
        assert task.validation_loss(net) <= net.bound


def test_pinned_weights_stay_zero_through_momentum(pruned):
    assert all(int(net.prunings) >= 1 for net in pruned.members)
    before = [[net.get_buffer(f"pinned_{i}").clone() for i in range(2)] for net in pruned.members]
    twin = run_of("lobster", lr=0.2)
    for _ in range(7):
        twin.advance()
    for net, masks in zip(twin.members, before, strict=True):
        for w, mask in zip(net.weights, masks, strict=True):
            assert mask.any() and torch.equal(w == 0, mask > 0)
            velocity = twin.ensembles[0].optimizers[""][0][0].state
            assert any(s["velocity"].abs().max() > 0 for s in velocity.values())


def test_members_prune_at_their_own_time_and_company_does_not_matter():
    company = run_of("lobster", lr=0.2, seeds=(1000, 1001, 1002))
    alone = run_of("lobster", lr=0.2, seeds=(1001,))
    for name in ("prunings", "checks", "stopped"):
        assert float(getattr(company.members[1], name)) == float(getattr(alone.members[0], name))
    assert len({net.left for net in company.members}) == 3
    assert abs(company.members[1].left - alone.members[0].left) <= 0.05 * alone.members[0].size


def test_stage_loop_waits_and_stops(monkeypatch):
    net, task = (one := run_of("lobster", 1, seeds=(1000,), patience=2)).members[0], one.tasks[0]
    script = iter([1.0, 0.9, 0.95, 0.92])
    monkeypatch.setattr(M, "cross_entropy", lambda *seen: torch.tensor(next(script)))
    task.prune = lambda net, loss: net.bound.fill_(loss * 1.2) and net.prunings.add_(1) and net.best.fill_(math.inf) and 5
    with torch.no_grad():
        counts = [(task.look(net), int(net.prunings))[1] for _ in range(4)]
        assert counts == [0, 0, 0, 1] and not net.stopped  # 0.95 and 0.92 are two checks without improvement
        net.waited.zero_()
        script = iter([1.5, 1.6, 1.7])  # 1.5 is the best after pruning and lies above 0.92 * 1.2
        for _ in range(3):
            task.look(net)
        assert net.stopped and net.prunings == 1
    monkeypatch.undo()
    never = run_of("lobster", prunings=0)
    assert all(net.left == net.size and net.stopped for net in never.members)


# ---- what is measured


def test_sweep_finds_the_best_of_all_its_thresholds(trained):
    net, task = copy.deepcopy(trained.members[0]), trained.tasks[0]
    sizes = method.magnitudes(net.weights)
    kept = np.exp(np.linspace(math.log(net.size / 300), math.log(len(sizes)), 200)).round().astype(int)
    accuracy = {}
    with torch.no_grad():
        for left in kept:
            weights = [w * (w.abs() >= sizes[-left]) for w in net.weights]
            accuracy[left] = (net(task.valid[0], weights).argmax(1) == task.valid[1]).double().mean().item()
        for asked in (0.5, 0.8, accuracy[kept[-1]] + 0.005):
            net.record.zero_()
            net.target.fill_(asked)
            task.sweep(net)
            best = min(left for left in kept if accuracy[left] >= asked - task.slack - 1e-6)
            assert float(net.record) == pytest.approx(math.log10(net.size / best), abs=1e-6)
            weights = [w * (w.abs() >= sizes[-best]) for w in net.weights]
            asked_test = (net(task.test[0], weights).argmax(1) == task.test[1]).double().mean().item()
            assert float(net.record_accuracy) == pytest.approx(asked_test, abs=1e-6)
        net.record.zero_()
        net.target.fill_(1.1)
        task.sweep(net)
        assert net.record == 0  # nothing is accurate enough: no compression is counted


def test_readings_against_numpy():
    one = run_of("lobster", 1, seeds=(1000,), loss_scale=30.0)
    net, task = one.members[0], one.tasks[0]
    net.weights[0].data[3] = 0
    before = float(net.spread)
    task.read(net, task.x[:100], task.y[:100])
    grads = torch.autograd.grad(cross_entropy(net(task.x[:100]), task.y[:100]), list(net.weights))
    w = np.concatenate([p.detach().numpy().ravel() for p in net.weights]).astype(float)
    gate = np.maximum(0, 1 - 30 * np.abs(np.concatenate([g.numpy().ravel() for g in grads])))[w != 0]
    w = w[w != 0]
    found = dict(zip(method.READING, net.reading.tolist(), strict=True))
    assert found["gate_mean"] == pytest.approx(gate.mean(), rel=1e-4)
    assert found["gate_spread"] == pytest.approx(gate.std(ddof=1), rel=1e-3)
    lobster, l2 = w * gate, w
    assert found["step_cosine"] == pytest.approx(lobster @ l2 / np.linalg.norm(lobster) / np.linalg.norm(l2), rel=1e-4)
    assert float(net.spread) - before == pytest.approx(gate.std(ddof=1), rel=1e-3)


def test_each_arm_is_asked_for_the_accuracy_of_the_dense_network_of_its_seed(smoke):
    for arm in ("lobster", "l2_threshold"):
        for dense, net, task in zip(smoke.arms["dense"].members, smoke.arms[arm].members, smoke.arms[arm].tasks, strict=True):
            right = (dense(task.valid[0]).argmax(1) == task.valid[1]).double().mean().item()
            assert float(net.target) == pytest.approx(right, abs=1e-6)


# ---- arms


def test_limits():
    plain = run_of("lobster", lr=0.2, gate="none", loss_scale=30.0)
    assert any(net.prunings > 0 for net in plain.members)
    assert same(plain.members, run_of("l2_threshold", lr=0.2).members)
    assert same(run_of("lobster", lam=0.0, prunings=0).members, run_of("dense").members)
    assert same(run_of("l2_threshold", lam=0.0).members, run_of("magnitude").members)
    assert same(run_of("lobster_x30", lr=0.2).members, run_of("lobster", lr=0.2, loss_scale=30.0).members)
    assert not same(run_of("lobster_x1000", 30).members, run_of("l2_threshold", 30).members)
    assert not same(run_of("lobster_x30", 30).members, run_of("lobster_x30", 30, shuffle_gate=True).members)


def test_resume_and_rollback_are_exact_across_prunings():
    straight = run_of("lobster_scaled", lr=0.2)
    for middle in (55, 60, 63):  # in a block, at a check, behind one
        first = run_of("lobster_scaled", middle, lr=0.2)
        second = run_of("lobster_scaled", 5, lr=0.2)
        second.load(copy.deepcopy(first.state()))
        while second.step < second.total:
            second.advance()
        for a, b in zip(straight.members, second.members, strict=True):
            assert all(np.array_equal(p, q, equal_nan=True) for p, q in zip(*(n.state_dict().values() for n in (a, b)), strict=True))
    rolled = Run(M.ARMS["lobster_scaled"](STUDY.make({**SMALL, "lr": 0.2})), [1000, 1001])
    ticks = iter(rolled)
    while rolled.step < 100:
        next(ticks)
    rolled.rollback(40)
    for _ in rolled:
        pass
    assert same(straight.members, rolled.members)


def test_lam_and_lr_can_be_turned_while_it_runs():
    run = run_of("l2_threshold", 10)
    run.set(lam=0.01, lr=0.0)
    before = [net.weights[0].detach().clone() for net in run.members]
    run.advance()
    lam = 0.01 * M.FACTORS["none"]
    for net, w in zip(run.members, before, strict=True):
        assert torch.allclose(net.weights[0], w * (1 - lam), atol=1e-7)


def test_lenet5_is_torchs_convolution():
    rng = torch.Generator().manual_seed(0)
    net = method.lenet("lenet5", 784, 10)
    x = torch.rand(3, 784, generator=rng)
    maps = x.view(3, 1, 28, 28)
    for w, b in list(zip(net.weights, net.biases, strict=True))[:2]:
        maps = max_pool2d(conv2d(maps, w.T.view(w.shape[1], -1, 5, 5), b).relu(), 2)
    hidden = linear(maps.flatten(1), net.weights[2].T, net.biases[2]).relu()
    assert torch.allclose(net(x), linear(hidden, net.weights[3].T, net.biases[3]), atol=1e-5)
    assert sum(p.numel() for p in method.lenet("lenet300", 784, 10).parameters()) == 266_610
    with pytest.raises(ValueError, match="lenet5.*digits"):
        STUDY.make(dict(network="lenet5", images="digits"))


def test_smoke_records_every_claim_and_draws_every_figure(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert arm is None or (rows.step.max() == smoke.arms[arm].total and set(rows.seed) == {1000, 1001})
    budget = smoke.budgets.set_index("arm")
    assert budget["samples"].nunique() == 1 and budget["steps"].nunique() == 1
    figures = smoke.figures()
    assert set(figures) == {"accuracy and compression", "gradients and gate", "stages", "first layer", "loss scale"}
    for figure in figures.values():
        curves = [trace for trace in figure.data if trace.type in ("scatter", "heatmap")]
        assert any(np.size(trace.z if trace.type == "heatmap" else trace.y) for trace in curves) and figure.layout.title.text
    for view in M.VIEWS.values():
        assert len(view(smoke.arms["lobster"].members[0], smoke.params).data) >= 1


def test_figures_of_few_arms():
    lab = Experiment(STUDY, STUDY.make(SMALL), seeds=[1000, 1001], arms=["magnitude"]).run()
    assert set(lab.figures()) == {"accuracy and compression"}


def test_control_keeps_the_spread_and_the_claim_does_not_hold():
    values = {**SMALL, **STUDY.control.set, "seeds": 5, "steps": 100}
    lab = Experiment(STUDY, STUDY.make(values), seeds=range(1000, 1005), arms=["l2_threshold", "lobster"]).run()
    assert {v.claim: v.verdict for v in lab.verdicts()}["sparser-than-l2"] != "supported"


# ---- data


def test_split_is_disjoint_stratified_and_of_the_seed():
    parts = splits.split(1000, "digits")
    rows = np.concatenate([x.numpy() for x, _ in parts])
    assert [len(x) for x, _ in parts] == [1078, 359, 360] and len(np.unique(rows, axis=0)) == 1797
    shares = [np.bincount(y, minlength=10) / len(y) for _, y in parts]
    assert np.abs(shares[1] - shares[0]).max() < 0.01
    assert not torch.equal(splits.split(1001, "digits")[0][0], parts[0][0])


def write(folder, x, y, images=2051, labels=2049, zipped=False):
    heads = struct.pack(">4I", images, *x.shape), struct.pack(">2I", labels, len(y))
    for name, raw in (("train-images-idx3-ubyte", heads[0] + x.tobytes()), ("train-labels-idx1-ubyte", heads[1] + y.tobytes())):
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)


def good(n=600):
    return np.random.default_rng(0).integers(256, size=(n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10


@pytest.mark.parametrize("zipped", [False, True])
def test_own_idx_files(tmp_path, zipped, monkeypatch):
    x, y = good()
    write(tmp_path, x, y, zipped=zipped)
    found, labels = files.idx_folder(str(tmp_path))
    assert np.array_equal(np.round(found * 255), x) and np.array_equal(labels, y)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    run = run_of("lobster", 2, images="mnist")
    assert run.tasks[0].x.shape == (360, 784) and run.members[0].size == 784 * 300 + 300 * 100 + 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(images=2049), "magic number is 2049; allowed is 2051"),
        (dict(labels=2051), "magic number is 2051; allowed is 2049"),
        (dict(x=good()[0][:, :27]), "27 x 28; allowed is 28 x 28"),
        (dict(y=good()[1][:-1]), "600 images.*599 labels"),
        (dict(y=good()[1] + 1), "label 10"),
        (dict(y=np.minimum(good()[1], 8)), "label 9 has 0 images"),
        (dict(x=good(40)[0], y=good(40)[1]), "too few"),
        (dict(x=good()[0][:0], y=good()[1][:0]), "too few"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(tmp_path, change, words):
    x, y = good()
    write(tmp_path, **{"x": x, "y": y, **change})
    with pytest.raises(ValueError, match=f"(?s)idx.*{words}"):
        files.idx_folder(str(tmp_path))


def test_broken_and_absent_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        files.idx_folder(str(tmp_path))
    with pytest.raises(ValueError, match="not a folder"):
        files.idx_folder(str(tmp_path / "none"))
    for name, raw, words in (("a", b"\0\0", "less than the head"), ("b", struct.pack(">2I", 2049, 9) + b"12", "promises 9 bytes"),
                             ("c.gz", b"no gzip", "gzip")):  # fmt: skip
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=words):
            files.read(tmp_path / name, 2049, 1)
