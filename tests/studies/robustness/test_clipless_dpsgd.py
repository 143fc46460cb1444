"""Clipless DP-SGD: privacy against other accountants, bounds against autograd and an attacker, clipping by two routes."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch.nn import functional

from claimlab import study, views
from claimlab.experiment import Experiment
from claimlab.studies.robustness import _clipless_dpsgd_cost as cost
from claimlab.studies.robustness import _clipless_dpsgd_data as rows_of
from claimlab.studies.robustness import _clipless_dpsgd_method as method
from claimlab.studies.robustness._clipless_dpsgd_net import Network, plan
from claimlab.training import Run

STUDY = study.find("clipless-dpsgd")
M = STUDY.module
SMALL = STUDY.Params.SMOKE


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


def network(kind, depth, activation, seed=0, side=12):
    """A float64 network with random weights, and the shape of its inputs."""
    shape = (side, side, 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network(*plan(kind, depth, 16, shape, 4, activation), shape).double(), shape


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_ball(x):
    return x / x.flatten(1).norm(dim=1).clamp_min(1).view(-1, *[1] * (x.dim() - 1))


def autograd(net, x, y, loss):
    """Gradient of every example by plain autograd, one backward pass each: [D] of [B, out, in]."""
    each = [torch.autograd.grad(loss(net(one[None]), k[None]).sum(), list(net.weights)) for one, k in zip(x, y, strict=True)]
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


def cross_entropy(z, y):
    return functional.cross_entropy(8 * z, y, reduction="none") / 8


def slopes_of(z, y):
    return method.logit_slopes("softmax", z, y, 8.0)


# ---- privacy


def test_both_strategies_cost_the_same_and_agree_on_equal_bounds():
    """Jointly, mechanisms of sensitivity Delta_d and noise s_d are one of multiplier (sum_d (Delta_d / s_d)^2)^(-1/2)."""
    bounds, sums = torch.tensor([1.0, 3.0, 0.5]), [torch.zeros(2, 3), torch.zeros(4, 2), torch.zeros(1, 5)]
    noise = 0.7 * torch.ones(19)  # sigma on every entry: what comes out is the standard deviation
    for strategy in ("global", "local"):
        found = method.released(sums, noise, bounds, 1.0, strategy)
        units = bounds.norm().expand(3) if strategy == "global" else 3**0.5 * bounds
        spread = torch.stack([g.max() for g in found]) * units  # of the sum of gradients
        assert (bounds / spread).square().sum() ** -0.5 == pytest.approx(0.7, rel=1e-6)
    sums = [torch.rand(2, 2, generator=torch.Generator().manual_seed(1))] * 3
    one, other = (method.released(sums, torch.arange(12.0), torch.full((3,), 1.4), 64, s) for s in ("global", "local"))
    assert all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


def test_poisson_batches_take_each_row_on_its_own():
    rows, mask = method.poisson(4000, 300, 0.1, torch.Generator().manual_seed(0))
    taken = torch.zeros(4000, 300).scatter(1, rows, mask)
    assert (torch.stack([r.unique().numel() * torch.ones(()) for r in rows[:50]]) == rows.shape[1]).all()
    assert stats.kstest(taken.sum(0).numpy() + 0.5, stats.binom(4000, 0.1).cdf).statistic < 0.1
    sizes = taken.sum(1)
    assert sizes.mean() == pytest.approx(30, abs=0.4) and sizes.var() == pytest.approx(27, rel=0.1)  # not of one size
    pairs = np.corrcoef(taken[:, :40].T.numpy())[np.triu_indices(40, 1)]
    assert abs(pairs.mean()) < 0.005


def test_a_full_batch_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(method.math, "ceil", lambda value: 5)
        with pytest.raises(RuntimeError, match="privacy account"):
            method.poisson(3, 1000, 0.2, torch.Generator().manual_seed(0))


# ---- layers


def test_group_sort_permutes_and_keeps_gradients():
    x = normals(0, 8)
    assert torch.equal(method.group_sort(x).sort()[0], x.sort()[0])
    jacobian = torch.autograd.functional.jacobian(method.group_sort, x)
    assert torch.allclose(jacobian.T @ jacobian, torch.eye(8, dtype=x.dtype)) and set(jacobian.unique().tolist()) == {0.0, 1.0}


def test_pooling_keeps_the_norm_and_is_one_lipschitz():
    x, z = normals(1, 1, 4, 6, 2), normals(2, 1, 4, 6, 2)
    assert method.l2_pool(x).norm() == pytest.approx(float(x.norm()), rel=1e-4)
    assert (method.l2_pool(x) - method.l2_pool(z)).norm() <= (x - z).norm()
    at_zero = torch.autograd.functional.jacobian(lambda v: method.l2_pool(v).flatten(), torch.zeros(1, 2, 2, 1))
    assert torch.isfinite(at_zero).all()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (5, 5)])
def test_bjorck_gives_the_nearest_orthogonal_matrix(shape):
    w = normals(3, *shape) + 2 * torch.eye(*shape, dtype=torch.float64)
    found = method.orthogonal(w.float(), 15).double()
    assert torch.allclose(found, torch.from_numpy(linalg.polar(w.numpy())[0]), atol=1e-5)
    assert torch.equal(method.bjorck(w, 0), w)


@given(seed=st.integers(0, 10**6), rounds=st.sampled_from([0, 3, 8, 15]), tall=st.booleans())
@settings(max_examples=25, deadline=None)
def test_norm_bound_is_never_below_the_norm(seed, rounds, tall):
    w = method.orthogonal(normals(seed, *((9, 4) if tall else (4, 9))).float(), rounds)
    assert method.norm_bound(w, rounds) >= torch.linalg.matrix_norm(w.double(), 2) - 1e-7


def test_patches_are_those_of_torch():
    x, w = normals(4, 3, 9, 9, 2), normals(5, 4, 2, 3, 3)
    ours = method.patches(x, 3, 2) @ w.permute(0, 2, 3, 1).flatten(1).mT
    assert torch.allclose(ours.permute(0, 3, 1, 2), functional.conv2d(x.permute(0, 3, 1, 2), w, stride=2))


# ---- losses


def test_losses_are_those_of_torch_and_their_constants_hold():
    z, y, tau = 0.3 * normals(6, 500, 5), torch.arange(500) % 5, 4.0
    ours = {name: loss(z, y, tau) for name, loss in method.LOSSES.items()}
    assert torch.allclose(ours["softmax"], functional.cross_entropy(tau * z, y, reduction="none") / tau)
    assert torch.allclose(ours["hinge"], functional.multi_margin_loss(z, y, margin=1 / tau, reduction="none") * 5 / 4)
    long = z.norm(dim=1) > 1 / tau
    cosine = functional.cosine_similarity(z, functional.one_hot(y, 5).double(), dim=1)
    assert torch.allclose(ours["cosine"][long], 1 - cosine[long]) and 0 < long.sum() < 500
    for name, scale in (("softmax", 50.0), ("hinge", 50.0), ("cosine", 0.01)):
        slopes = method.logit_slopes(name, torch.cat([z, scale * z]), y.repeat(2), tau)[1].norm(dim=1)
        bound = method.loss_slope(name, 5, tau)
        assert 0.9 * bound < slopes.max() <= bound + 1e-9  # holds, and is not idle
        short = method.logit_slopes(name, z, y, tau, most=0.1)[1].norm(dim=1)
        assert short.max() <= 0.1 + 1e-12


# ---- bounds


@pytest.mark.parametrize("activation", [method.group_sort, torch.relu])
@pytest.mark.parametrize("kind, depth", [("dense", 1), ("dense", 4), ("conv", 2), ("conv", 5)])
def test_ghost_norms_are_those_of_autograd(kind, depth, activation):
    net, shape = network(kind, depth, activation)
    x, y = normals(7, 6, *shape), torch.arange(6) % 4
    losses, _, inputs, cotangents = method.ghost_parts(net.steps, list(net.weights), x, y, net.outputs, slopes_of)
    each = autograd(net, x, y, cross_entropy)
    assert torch.allclose(losses, cross_entropy(net(x), y))
    assert torch.allclose(method.ghost_norms(inputs, cotangents), torch.stack([g.flatten(1).norm(dim=1) for g in each]))
    assert torch.allclose(method.example_gradients(net.steps, net.weights, x, y, slopes_of)[1][-1], each[-1])


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["dense", "conv"]), depth=st.integers(1, 5), scale=st.floats(0.3, 3))
@settings(max_examples=12, deadline=None)
def test_no_gradient_passes_its_bound(seed, kind, depth, scale):
    """200 random inputs, then gradient ascent on the norm itself; weights of any norm, float64, gradients by autograd."""
    net, shape = network(kind, depth, method.group_sort, seed)
    with torch.no_grad():
        for weight in net.weights:
            weight *= scale
    norms = [torch.linalg.matrix_norm(w.detach(), 2) for w in net.weights]
    bounds = method.sensitivities(net.steps, norms, 1.0, math.sqrt(2))
    x, y = in_ball(10 * normals(seed + 1, 200, *shape)), torch.arange(200) % 4

    def norms_at(z, labels):
        parts = method.ghost_parts(net.steps, [w.detach() for w in net.weights], z, labels, net.outputs, slopes_of)[2:]
        return method.ghost_norms(*parts) / torch.tensor([float(b) for b in bounds], dtype=torch.float64)[:, None]

    assert norms_at(x, y).max() <= 1 + 1e-9
    worst = norms_at(x, y).sum(0).argsort()[-4:]
    z, labels = x[worst], y[worst]
    for _ in range(15):
        slope = torch.func.grad(lambda v, k=labels: norms_at(v, k).sum())(z)
        z = in_ball(z + 0.3 * slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1))
    each = autograd(net, z, labels, cross_entropy)
    for g, bound in zip(each, bounds, strict=True):
        assert g.flatten(1).norm(dim=1).max() <= bound * (1 + 1e-9)


def test_one_layer_attains_its_bound():
    """An input on the ball's edge that the layer gives wholly to the wrong class."""
    net, shape = network("dense", 1, method.group_sort)
    with torch.no_grad():
        net.weights[0].copy_(method.bjorck(net.weights[0] / torch.linalg.matrix_norm(net.weights[0], 2), 30))
    x, wrong = net.weights[0].detach()[2].view(1, *shape), torch.tensor([0])
    (g,) = autograd(net, x, wrong, lambda z, y: functional.cross_entropy(64 * z, y, reduction="none") / 64)
    (bound,) = method.sensitivities(net.steps, [1.0], 1.0, method.loss_slope("softmax", 4, 64.0))
    assert x.norm() == pytest.approx(1) and g.norm() == pytest.approx(bound, rel=1e-6) and bound == pytest.approx(math.sqrt(2))


# ---- arms


def trained(task, **values):
    run = Run(task(STUDY.make(SMALL | values)), [1000, 1001])
    for _ in range(4):
        run.advance()
    return run.members


def far(ones, others):
    """The largest distance between two members' weights, in units of the weight's norm."""
    pairs = [(a, b) for one, other in zip(ones, others, strict=True) for a, b in zip(one.weights, other.weights, strict=True)]
    return max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)


def test_without_noise_the_arm_is_the_non_private_one(monkeypatch):
    same = type("Same", (M.Clipless,), {"pace": M.NonPrivate.pace, "tau": M.NonPrivate.tau})
    plain = trained(M.NonPrivate)
    assert far(trained(same), plain) > 1e-3
    monkeypatch.setattr(M, "noise_for", lambda *_: 0.0)
    assert far(trained(same), plain) == 0.0


def test_ghost_clipping_is_clipping_update_by_update():
    for values in ({}, {"network": "conv", "depth": 3}):
        assert far(trained(M.Ghost, **values), trained(M.PerExample, **values)) < 1e-6


def test_a_clipping_norm_above_every_gradient_is_no_clipping():
    task = M.Clipless(STUDY.make(SMALL)).bind(1000)
    net = Run(task, [1000]).members[0]
    x, y, mask, _ = task.batch(net, torch.Generator().manual_seed(0), 0)
    plain = task.summed(net, x, y, mask)[1]
    for route in (method.ghost_sum, None):
        arguments = (net.steps, [w.detach() for w in net.weights], x, y, mask)
        sums = route(*arguments, net.outputs, task.slopes_of, 10.0)[1] if route else \
            method.clipped_sum(*arguments, task.slopes_of, 10.0)[1]  # fmt: skip
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(sums, plain, strict=True))


@pytest.mark.parametrize("arm", ["clipless", "no_projection", "spectral_relu", "dpsgd", "dpsgd_lipschitz"])
def test_one_row_moves_a_sum_by_no_more_than_its_bound(arm):
    task = M.ARMS[arm](STUDY.make(SMALL)).bind(1000)
    net = Run(task, [1000]).members[0]
    x, y, bounds = task.x[:40], task.y[:40], task.bounds(net)
    whole = task.summed(net, x, y, torch.ones(40))[1]
    moved = []
    for k in range(40):
        less = task.summed(net, x, y, (torch.arange(40) != k).float())[1]
        moved.append(torch.stack([(a - b).norm() for a, b in zip(whole, less, strict=True)]))
    moved = torch.stack(moved)
    if task.clip is None:
        assert (moved <= bounds * 1.0001).all() and (moved > 0.01 * bounds).any()
    else:
        assert moved.norm(dim=1).max() <= task.clip * 1.0001 and bounds.norm() == pytest.approx(task.clip)


def test_forming_gradients_takes_the_memory_that_norms_save():
    p = STUDY.make(SMALL)
    weights = sum(w.numel() for w in Run(M.Ghost(p), [1000]).members[0].weights)
    formed, ghost = (cost.peak_bytes(task(p), 1000, 64) for task in (M.PerExample, M.Ghost))
    assert formed > 64 * weights * 4 > 2 * ghost


def test_control_keeps_the_whole_gradient_in_both_arms():
    p = STUDY.make(SMALL | STUDY.control.set)
    table = Experiment(STUDY, p, seeds=[1000, 1001], arms=["clipless", "spectral_relu"]).run().table
    kept = table[(table.metric == "kept_gradient") & (table.step == p.steps)].value
    assert len(kept) == 4 and np.allclose(kept, 1, atol=1e-5)


# ---- the experiment


def test_smoke_covers_the_claims_and_keeps_its_bounds(smoke):
    last = smoke.table[smoke.table.step == smoke.params.steps]
    worst = last[last.metric == "max_norm_over_bound"]
    assert set(worst.arm) == {"non_private", "clipless", "clipless_local", "spectral_relu", "no_projection"}
    assert (worst.value > 0.05).all() and (worst.value <= 1.0001).all()
    over_time = smoke.table[(smoke.table.metric == "max_norm_over_bound") & (smoke.table.arm == "clipless")]
    assert (over_time.sort_values("step").groupby("seed").value.diff().dropna() >= 0).all()
    assert smoke.table[smoke.table.metric == "route_gap"].value.max() < 1e-5
    assert np.isfinite(last[last.metric == "log_step_time"].value).all() and len(last[last.metric == "log_step_time"]) == 6


def test_figures_and_views_show_what_was_measured(smoke):
    drawn = smoke.figures()
    assert len(drawn) == 6
    for name, figure in drawn.items():
        numbers = [np.asarray(t.y if t.y is not None else t.z, dtype=float).ravel() for t in figure.data]
        assert numbers and all(len(n) and np.isfinite(n).all() for n in numbers), name
    assert views.trouble(smoke) == []


# ---- your own rows


def test_mixture_and_digits_lie_in_the_ball():
    for kind in ("digits", "mixture"):
        found = rows_of.load(1000, kind, 400, 14)
        lengths = torch.cat([found.x, found.test[0]]).flatten(1).double().norm(dim=1)
        assert lengths.max() <= 1 and found.classes == 10 and len(found.x) == 400
    x = rows_of.into_ball(np.array([[3.0, 4.0], [0.3, 0.4]]))
    assert np.allclose(x, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-5)


def saved(folder, name="mine.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


GOOD_X, GOOD_Y = np.random.default_rng(0).random((1200, 6)), np.arange(1200) % 3
WRONG = {
    "has no array y": dict(x=GOOD_X), "rows; at least 1000": dict(x=GOOD_X[:900], y=GOOD_Y[:900]),
    r"x lies in \[.*allowed are finite": dict(x=3 * GOOD_X, y=GOOD_Y), "x lies in .nan": dict(x=GOOD_X * np.nan, y=GOOD_Y),
    "a whole number for each of 1200": dict(x=GOOD_X, y=GOOD_Y[:-1]), "is float64": dict(x=GOOD_X, y=GOOD_Y * 1.0),
    "without a gap": dict(x=GOOD_X, y=2 * GOOD_Y), "at least two labels": dict(x=GOOD_X, y=0 * GOOD_Y),
    "of shape": dict(x=GOOD_X[:, 0], y=GOOD_Y), "plain numbers": dict(x=GOOD_X.astype(object), y=GOOD_Y),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_files_are_refused_with_the_reason(message, tmp_path):
    with pytest.raises(ValueError, match=message):
        rows_of.own_rows(str(saved(tmp_path, **WRONG[message])))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("1,2")
    for place, message in ((tmp_path / "mine.csv", "neither an .npz"), (tmp_path, "no file"), (tmp_path / "none", "neither an .npz")):
        with pytest.raises(ValueError, match=message):
            rows_of.own_rows(str(place))


def test_own_rows_train_and_say_what_would_leak(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", str(saved(tmp_path, x=GOOD_X, y=GOOD_Y)))
    with pytest.warns(UserWarning, match="private rows would itself leak"):
        task = M.Clipless(STUDY.make(SMALL | {"rows": 900})).bind(0)
    assert len(task.x) == 900 and task.delta == 1 / 9000 and task.classes == 3 and task.share == 64 / 900
    run = Run(M.Clipless(STUDY.make(SMALL)), [0, 1])
    run.advance()
    assert torch.isfinite(run.losses).all() and run.members[0].weights[0].shape[1] == 6
    with pytest.raises(ValueError, match="network = conv needs images"):
        Run(M.Clipless(STUDY.make(SMALL | {"network": "conv"})), [0])


def test_mnists_own_format_is_read(tmp_path):
    x = np.random.default_rng(1).integers(256, size=(1000, 28, 28), dtype=np.uint8)
    y = (np.arange(1000) % 10).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, *x.shape) + x.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 1000) + y.tobytes())
    with pytest.warns(UserWarning, match="public constant"):
        found = rows_of.load(0, "digits", 4000, 14, str(tmp_path))
    assert found.x.shape == (800, 14, 14, 1) and len(found.test[0]) == 200


def test_knobs_that_contradict_each_other_are_refused():
    for values, message in (({"batch": 500, "rows": 400}, "batch = 500 and rows = 400"), ({"width": 40}, "width = 40"),
                            ({"network": "conv", "data": "mixture"}, "network = conv and data = mixture")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            STUDY.make(values)
