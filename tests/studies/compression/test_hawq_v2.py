"""HAWQ-V2: torch's own quantisers and exact Hessians, brute force for the frontier, folding, equal arms at the limits, own files."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy, linear

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.compression import _hawq_v2_data as files
from claimlab.studies.compression import _hawq_v2_method as rule
from claimlab.studies.compression import _hawq_v2_net as nets
from claimlab.training import Run

STUDY = study.find("hawq-v2")
M = STUDY.module
TINY = dict(steps=20, probes=4, hessian_batch=32, tune_steps=0, iterations=2, images=100, seeds=2)
WEIGHT_ARMS = ("uniform", "front_loaded", "trace", "top_eigenvalue", "error_only", "reversed", "random")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def small():
    """Weights and biases of a trained-size network for images of 4 x 4, such images, and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nets.Cnn(1, 3, "relu", 40)
    x, y = torch.randn(12, 1, 4, 4, generator=rng(1)), torch.arange(12) % 3
    return net, x, y


# ---- the quantiser


@pytest.mark.parametrize("bits", rule.BITS)
def test_quantiser_is_torchs_fake_quantisation(bits):
    w = torch.randn(6, 4, 3, 3, generator=rng())
    top = 2 ** (bits - 1) - 1
    scale = w.abs().flatten(1).amax(1) / top
    wanted = torch.fake_quantize_per_channel_affine(w, scale, torch.zeros(6, dtype=torch.int32), 0, -top, top)
    assert torch.allclose(rule.quantize(w, bits), wanted, atol=1e-6)
    a = torch.randn(500, generator=rng(1)).relu()
    high = a.quantile(0.9)
    wanted = torch.fake_quantize_per_tensor_affine(a, float(high) / (2**bits - 1), 0, 0, 2**bits - 1)
    assert torch.allclose(rule.quantize_activation(a, bits, high), wanted, atol=1e-6)


def test_two_bits_are_minus_zero_and_plus_and_a_dead_channel_stays():
    w = torch.tensor([[0.9, -1.0, 0.2, -0.4], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(rule.quantize(w, 2), torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


def test_straight_through_has_the_gradient_of_the_full_precision_weight():
    w = torch.randn(3, 4, generator=rng()).requires_grad_()
    goal = torch.randn(3, 4, generator=rng(1))
    value = rule.straight_through(w, rule.quantize(w, 3))
    assert torch.allclose(value, rule.quantize(w, 3), atol=1e-6)
    (slope,) = torch.autograd.grad((value * goal).sum(), w)
    assert torch.equal(slope, goal)


# ---- curvature


def two_layers():
    x, y = torch.randn(20, 5, generator=rng(2)).double(), torch.randint(3, (20,), generator=rng(3))
    w = [torch.randn(7, 5, generator=rng(4)).double(), torch.randn(3, 7, generator=rng(5)).double()]

    def loss(first, second):
        return cross_entropy(linear(torch.nn.functional.silu(linear(x, first)), second), y)

    return w, loss


def blocks(w, loss):
    rows = torch.func.jacrev(torch.func.jacrev(loss, argnums=(0, 1)), argnums=(0, 1))(*w)
    return [rows[i][i].reshape(v.numel(), v.numel()) for i, v in enumerate(w)]


def test_hutchinson_agrees_with_the_exact_hessian():
    w, loss = two_layers()
    exact = torch.stack([h.trace() for h in blocks(w, loss)])
    parts = [v.clone().requires_grad_() for v in w]
    rows = rule.hutchinson(loss(*parts), parts, 300, rng(6))
    error = rows.std(0) / 300**0.5
    assert ((rows.mean(0) - exact).abs() <= 3 * error).all() and (error < 0.1 * exact.abs()).all()


def test_power_iteration_agrees_with_the_exact_eigenvalue():
    w, loss = two_layers()
    for i, h in enumerate(blocks(w, loss)):
        values = torch.linalg.eigvalsh(h)
        wanted = values[values.abs().argmax()]
        found = rule.top_eigenvalue(lambda part, i=i: loss(*[part if k == i else v for k, v in enumerate(w)]), w[i], 200, rng(7))
        assert float(found) == pytest.approx(float(wanted), rel=1e-3)


def test_average_trace_is_the_mean_rise_of_a_quadratic_loss():
    """The theorem behind the lemma, with its factor 1/2: over all signs of a step the rise is Tr(D) / 2n times its square."""
    a = torch.randn(9, 9, generator=rng(8)).double()
    d = a @ a.T
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=9))).double()
    rises = 0.5 * ((0.3 * signs) @ d * (0.3 * signs)).sum(1)
    omega = rule.sensitivity(np.array([float(d.trace()) / 9]), np.array([[9 * 0.3**2]]))
    assert float(rises.mean()) == pytest.approx(0.5 * omega[0, 0])


def test_activation_trace_is_the_mean_over_images_of_exact_traces(small):
    net, x, y = small
    nets.measure(net, x, y, 40, 12, 2, rng(9))
    weights, biases = net.fold(x)
    handed: list = []
    nets.answer(weights, biases, x, "relu", seen=handed)
    exact = []
    for a, label in zip(handed[6], y, strict=True):
        h = torch.func.jacrev(torch.func.jacrev(lambda v, k=label: cross_entropy(linear(v, weights[7], biases[7]), k)))(a)
        exact.append(h.trace())
    rows = net.activation_traces[:, 6]
    assert abs(float(rows.mean() - torch.stack(exact).mean())) <= 4 * float(rows.std()) / 40**0.5
    assert net.handed.tolist() == [a[0].numel() for a in handed]


def test_folding_is_batch_norm_with_the_statistics_of_the_data(small):
    net, x, _ = small
    with torch.no_grad():
        for part in (*net.gains, *net.biases):
            part.add_(0.3 * torch.randn(part.shape, generator=rng(10)))
    assert torch.allclose(nets.answer(*net.fold(x), x), net(x), atol=1e-4)
    layer = torch.nn.functional.conv2d(x, net.weights[0].detach(), padding=1)
    mean, var = layer.mean((0, 2, 3)), layer.var((0, 2, 3), correction=0)
    wanted = batch_norm(layer, mean, var, net.gains[0], net.biases[0], eps=nets.EPSILON)
    weights, biases = net.fold(x)
    assert torch.allclose(torch.nn.functional.conv2d(x, weights[0], biases[0], padding=1), wanted, atol=1e-5)


def test_measured_rises_are_those_of_one_quantised_layer(small):
    net, x, y = small
    nets.measure(net, x, y, 40, 12, 2, rng())
    weights, biases = net.fold(x)
    before = cross_entropy(nets.answer(weights, biases, x), y)
    weights[3] = rule.quantize(weights[3], 2)
    assert float(net.rises[3, 0]) == pytest.approx(float(cross_entropy(nets.answer(weights, biases, x), y) - before), abs=1e-5)


# ---- the frontier


def made_up(layers, seed=0):
    draw = np.random.default_rng(seed)
    errors = np.sort(draw.exponential(size=(layers, 5)))[:, ::-1]
    return rule.sensitivity(draw.exponential(size=layers), errors), draw.integers(10, 200, layers)


def test_frontier_is_that_of_all_settings():
    omega, sizes = made_up(5)
    places = np.array(list(itertools.product(range(5), repeat=5)))
    size, cost = (np.array(rule.BITS)[places] * sizes).sum(1), omega[np.arange(5), places].sum(1)
    total, best, chosen = rule.frontier(omega, sizes)
    for at, value in zip(total, best, strict=True):
        assert value == pytest.approx(cost[size <= at].min())
    assert (np.diff(total) > 0).all() and (np.diff(best) < 0).all()
    assert np.allclose((chosen * sizes).sum(1), total)
    for budget in (2.0, 2.3, 3.0, 5.5, 8.0):
        picked = rule.choose(omega, sizes, budget)
        assert (picked * sizes).sum() <= budget * sizes.sum() + 1e-6
        found = omega[np.arange(5), [rule.BITS.index(b) for b in picked]].sum()
        assert found == pytest.approx(cost[size <= budget * sizes.sum() + 1e-6].min())


def test_random_settings_never_lie_below_the_frontier():
    omega, sizes = made_up(8, seed=1)
    total, best, _ = rule.frontier(omega, sizes)
    places = np.random.default_rng(2).integers(5, size=(500, 8))
    for size, cost in zip((np.array(rule.BITS)[places] * sizes).sum(1), omega[np.arange(8), places].sum(1), strict=True):
        assert cost >= best[total <= size][-1] - 1e-9


def test_sensitivity_never_rises_with_bits_and_clips_negative_traces():
    omega = rule.sensitivity(np.array([2.0, -1.0]), np.array([[3.0, 4.0, 1.0], [3.0, 2.0, 1.0]]))
    assert omega.tolist() == [[6, 6, 2], [0, 0, 0]]


@pytest.mark.parametrize("budget", [2.0, 2.25, 2.5, 3.0, 4.7, 8.0])
def test_baselines_use_the_size_and_not_more(budget):
    sizes = np.array([72, 1152, 2304, 4608, 9216, 18432, 4096, 640])
    even = rule.raised(range(8), sizes, budget)
    assert (even * sizes).sum() <= budget * sizes.sum() + 1e-6 and len(set(even)) <= 2
    filled = rule.filled(sizes, budget, np.random.default_rng(0))
    left = budget * sizes.sum() - (filled * sizes).sum()
    steps = [(rule.BITS[rule.BITS.index(b) + 1] - b) * n for b, n in zip(filled, sizes, strict=True) if b != 8]
    assert left >= -1e-6 and all(left < step for step in steps)


# ---- the arms


def run_of(arm, start, seeds=(1000, 1001), steps=None, **values):
    run = Run(M.ARMS[arm](STUDY.make({**TINY, **values})), list(seeds), start=start)
    while run.step < (steps or run.total):
        run.advance()
    return run


def test_at_two_bits_every_arm_is_the_same_network(smoke):
    start = smoke.arms["full"].members
    found = {arm: run_of(arm, start, budget=2.0) for arm in WEIGHT_ARMS}
    for run in found.values():
        for net, other in zip(run.members, found["uniform"].members, strict=True):
            assert (net.bits == 2).all() and torch.equal(net.weights[3][0], other.weights[3][0])
    assert len({run.tick().metrics[0]["test_accuracy"] for run in found.values()}) == 1


def test_arms_ask_what_their_names_say(smoke):
    start = smoke.arms["full"].members
    report, trace = start[0], M.average_trace(start[0])
    tasks = {arm: M.ARMS[arm](STUDY.make(TINY)).bind(1000) for arm in WEIGHT_ARMS}
    assert np.allclose(trace, report.traces.mean(0).numpy() / np.array([72, 1152, 2304, 4608, 9216, 18432, 4096, 640]))
    assert np.allclose(np.argsort(tasks["reversed"].curvature(report)), np.argsort(trace)[::-1])
    assert np.allclose(tasks["top_eigenvalue"].curvature(report), report.eigenvalues.numpy())
    assert [len(run_of(arm, start).members[0].bits) for arm in ("uniform", "trace", "random")] == [7, 3, 10]
    inner = M.TraceActivations(STUDY.make(TINY)).bind(1000).inner(report)
    assert (np.array(inner) * report.handed.numpy()).sum() <= 4 * report.handed.numpy().sum()


def test_fine_tuning_moves_the_full_precision_copies_alike_in_all_arms(smoke):
    start = [copy.deepcopy(net) for net in smoke.arms["full"].members]
    for net in start:
        net.traces.abs_()  # a layer whose trace is negative would cost nothing and get two bits
    runs = [run_of(arm, start, budget=8.0, tune_steps=2) for arm in ("trace", "error_only")]
    last = [run.members[0] for run in runs]
    assert (last[0].bits[-1] == 8).all() and (last[1].bits[-1] == 8).all()  # equal settings, equal minibatches
    assert torch.equal(last[0].weights[5][-1], last[1].weights[5][-1])
    assert not torch.equal(rule.quantize(last[0].weights[5][-1], 8), last[0].weights[5][-1])
    assert not torch.equal(last[0].weights[5][-1], start[0].fold(runs[0].tasks[0].x)[0][5])


def test_rank_correlation_by_hand(smoke):
    report = smoke.arms["full"].members[0]
    truth = report.rises[:, 1].double().numpy()
    exact = truth.clip(1e-9) / report.errors[:, 1].double().numpy()
    order = np.argsort(np.argsort(truth.clip(1e-9))), np.argsort(np.argsort(truth))
    wanted = np.corrcoef(*order)[0, 1]
    assert M.ranks(exact, report)[1] == pytest.approx(wanted, abs=0.15)  # ties where a rise is not positive
    assert M.ranks(np.zeros(8), report) == [0.0, 0.0, 0.0]


def test_smoke_measures_and_draws(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert set(rows.seed) == {1000, 1001} and rows.value.notna().all()
    drawn = smoke.figures()
    assert set(drawn) == {"curvature by layer", "frontier", "predicted and true", "probes", "accuracy and size"}
    for figure in drawn.values():
        assert all(np.isfinite(np.asarray(trace.y, float)).any() for trace in figure.data) and figure.layout.title.text
    net = smoke.arms["full"].members[0]
    curves = M.VIEWS["traces as probes come in"](net, smoke.params).data
    assert curves[2].y[0] == pytest.approx(float(net.traces[0, 2] / net.traces[:, 2].mean()), rel=1e-4)
    for arm in ("full", "trace"):
        points = M.VIEWS["bits against trace"](smoke.arms[arm].members[0], smoke.params).data[0]
        assert list(points.y) == smoke.arms["trace"].members[0].bits[-1].tolist()


# ---- data of one's own


def folder(path, state=None, **arrays):
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    arrays = {"x": (0.3 * draw.standard_normal((60, 2, 6, 6)) + y[:, None, None, None]).astype(np.float32), "y": y} | arrays
    np.savez(path / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
    if state is not None:
        torch.save(state, path / "net.pt")
    files.own_images.cache_clear()
    files.split.cache_clear()
    return str(path)


def test_a_trained_network_of_ones_own_is_measured_and_not_trained(tmp_path, monkeypatch):
    start = nets.Cnn(2, 3, "relu", 4)
    state = {name: p.detach().clone() for name, p in start.named_parameters()}
    monkeypatch.setenv("CLAIMLAB_DATA", folder(tmp_path, state))
    monkeypatch.setattr(files, "check_chance", lambda accuracy, classes: None)  # a fresh network may be no better
    run = Run(M.Full(STUDY.make(TINY)), [1000], 2)
    list(run)
    assert all(torch.equal(p, state[name]) for name, p in run.members[0].named_parameters())
    assert run.members[0].measured and run.tasks[0].x.shape[1:] == (2, 6, 6)


def test_files_that_do_not_fit_are_refused(tmp_path):
    x, y = np.ones((60, 2, 6, 6), np.float32), np.arange(60) % 3
    bad = x.copy()
    bad[0, 0, 0, 0] = np.nan
    for arrays, words in ((dict(y=None), "no array y"), (dict(x=x[:, 0]), "allowed is float of N x C x H x W"),
                          (dict(x=x.astype(int)), "x is int64"), (dict(x=bad), "1 numbers that are not finite"),
                          (dict(y=y[:-1]), "y is int64 of shape"), (dict(y=y * 2), "labels"), (dict(y=y * 0), "labels")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            files.own_images(folder(tmp_path, **arrays))
    with pytest.raises(ValueError, match="net.pt is not a file"):
        files.own_state(folder(tmp_path))
    (tmp_path / "net.pt").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        files.own_state(str(tmp_path))
    net = nets.Cnn(2, 3, "relu", 4)
    state = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(ValueError, match="biases.0 holds numbers that are not finite"):
        files.own_state(folder(tmp_path, state | {"biases.0": torch.full((8,), torch.inf)}))
    with pytest.raises(ValueError, match="weights.7 has shape none"):
        files.fill(net, {k: v for k, v in state.items() if k != "weights.7"})
    with pytest.raises(ValueError, match="biases.1 has shape .3,.; the network has .16,."):
        files.fill(net, state | {"biases.1": torch.zeros(3)})
    with pytest.raises(ValueError, match="tests at 0.30, chance is 0.33"):
        files.check_chance(0.3, 3)
