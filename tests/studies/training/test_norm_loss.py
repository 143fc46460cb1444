"""norm-loss: closed forms against autograd, torch and recursions on paper; equal arms at the limits; own files; figures."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.training import _norm_loss_data as data
from claimlab.studies.training import _norm_loss_method as rule
from claimlab.training import Run

STUDY = study.find("norm-loss")
M = STUDY.module
SMALL = dict(steps=15, seeds=2, width=4, batch=16)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(*shape):
    return torch.randn(*shape, generator=rng(), dtype=torch.float64).requires_grad_()


def trained(arm, steps=6, **values):
    run = Run(arm(STUDY.make({**SMALL, **values})), [1000, 1001], steps, every=10**6)
    for _ in range(steps):
        run.advance()
    return run


def same(one, other):
    pairs = zip(one.members, other.members, strict=True)
    return all(torch.equal(p, q) for a, b in pairs for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- the method


@pytest.mark.parametrize("shape", [(2, 4, 3, 3, 3), (2, 5, 6)])
@pytest.mark.parametrize("target", [1.0, 0.0, 2.5])
def test_closed_form_is_the_gradient(shape, target):
    w, dims = tensors(*shape), len(shape) - 2
    assert torch.autograd.gradcheck(lambda v: rule.norm_loss(v, dims, target), w)
    (slope,) = torch.autograd.grad(rule.norm_loss(w, dims, target).sum(), w)
    assert torch.allclose(slope, rule.norm_loss_gradient(w, dims, target), rtol=1e-12, atol=1e-12)


def test_norms_are_taken_of_each_output_unit_of_a_torch_layer():
    layer = nn.Conv2d(3, 4, 3)
    by_hand = sum((1 - float(np.linalg.norm(layer.weight[c].detach().numpy()))) ** 2 for c in range(4))
    assert rule.norm_loss(layer.weight[None], 3).item() == pytest.approx(by_hand, rel=1e-5)
    one_norm_a_layer = (1 - layer.weight.norm()).square().item()  # the common wrong version
    assert abs(by_hand - one_norm_a_layer) > 1e-2


def test_penalties_of_the_rivals():
    w = tensors(1, 5, 4)
    (decay,) = torch.autograd.grad(rule.weight_decay(w, 1).sum(), w)
    assert torch.equal(decay, 2 * w)
    at_zero = rule.norm_loss_gradient(w, 1, target=0.0)
    assert torch.allclose(at_zero, decay, rtol=1e-12)
    square = np.linalg.norm(w[0].detach().numpy() @ w[0].detach().numpy().T - np.eye(5), "fro") ** 2
    assert rule.soft_orthogonal(w, 1).item() == pytest.approx(square)
    turned = torch.linalg.qr(tensors(6, 6).detach())[0][None]
    assert rule.soft_orthogonal(turned, 1).item() == pytest.approx(0, abs=1e-20)
    slanted = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])  # unit rows that are not orthogonal: norm loss is content
    assert rule.norm_loss(slanted, 1).item() == pytest.approx(0, abs=1e-12)
    assert rule.soft_orthogonal(slanted, 1).item() == pytest.approx(2 * 0.36, rel=1e-5)


def test_a_row_of_zeros_stays():
    w = torch.zeros(1, 2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(rule.norm_loss(w, 1).sum(), w)
    for found in (slope, rule.norm_loss_gradient(w, 1), rule.to_sphere(w, 1)):
        assert torch.equal(found, torch.zeros_like(w))


@pytest.mark.parametrize("start", [0.2, 3.0])
def test_descent_on_one_row_follows_the_recursion(start):
    """n <- n - 2 eta lambda (n - 1): the norm goes to 1, the direction stays."""
    way = torch.nn.functional.normalize(tensors(1, 1, 7).detach(), dim=-1)
    w, n, eta, strength = start * way, start, 0.1, 0.5
    for _ in range(60):
        w = w - eta * strength * rule.norm_loss_gradient(w, 1)
        n = n - 2 * eta * strength * (n - 1)
        assert w.norm().item() == pytest.approx(n, rel=1e-12)
    assert n == pytest.approx(1, abs=0.01) and torch.allclose(w / w.norm(), way, rtol=1e-12)


def test_gradient_before_the_optimiser_is_that_of_the_loss():
    weights = [nn.Parameter(w.detach()) for w in (tensors(1, 4, 3, 3, 3), tensors(1, 5, 6))]
    for w in weights:
        w.grad = torch.ones_like(w)
    rule.add_gradients(weights, 0.3, 1.5)
    for w in weights:
        (slope,) = torch.autograd.grad(rule.norm_loss(w, w.dim() - 2, 1.5).sum(), w)
        assert torch.allclose(w.grad, 1 + 0.3 * slope, rtol=1e-12)


def test_timed_steps_train_as_the_arms_do():
    """Both timed steps against plain gradient descent with momentum, written out on the total loss."""
    net, x = M.ResNet(1, 3, 4, 1), torch.rand(12, 1, 8, 8, generator=rng(1))
    y = torch.arange(12) % 3
    for target, penalty in ((1.0, rule.norm_loss), (None, rule.weight_decay)):
        step = rule.Step(net, 0.05, 0.02, target)
        free = rule.copy.deepcopy(net)
        plain = torch.optim.SGD(free.parameters(), 0.05, momentum=0.9, nesterov=True)
        for _ in range(3):
            assert step(x, y) > 0
            plain.zero_grad()
            pulled = sum(penalty(w, w.dim() - 2).sum() for w in free.weights)
            (cross_entropy(free(x)[:, 0], y) + 0.02 * pulled).backward()
            plain.step()
        for p, q in zip(step.net.parameters(), free.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-5)


# ---- the network


def torch_network(net, k):
    """Copy k of a ResNet, layer by layer in torch.nn."""

    def conv(i, stride=1):
        w = net.weight(i)[k]
        layer, norm = nn.Conv2d(w.shape[1], w.shape[0], 3, stride, 1, bias=False), nn.BatchNorm2d(w.shape[0])
        layer.weight.data, norm.weight.data, norm.bias.data = w.detach(), net.gains[i][k].detach(), net.shifts[i][k].detach()
        return nn.Sequential(layer, norm)

    layers = [conv(i, 2 if i == 3 else 1) for i in range(7)]

    def answer(x):
        x = layers[0](x).relu()
        for first in (1, 3, 5):
            inner = layers[first + 1](layers[first](x).relu())
            if inner.shape != x.shape:
                x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(inner[:, x.shape[1] :])], 1)
            x = (inner + x).relu()
        return nn.functional.linear(x.mean((2, 3)), net.weight(7)[k], net.shifts[7][k])

    return layers, answer


@torch.no_grad()
def test_every_copy_is_a_residual_network_of_torch():
    net, x = M.ResNet(2, 3, 4, 3), torch.rand(9, 2, 8, 8, generator=rng())
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=rng(p.numel()))
    for k in range(3):
        _, answer = torch_network(net, k)
        assert torch.allclose(net(x)[:, k], answer(x), atol=1e-5)
    seen, new, (layers, answer) = x[:6], x[6:], torch_network(net, 2)
    for _, norm in layers:  # running statistics of the seen images alone, at every depth
        norm.momentum = 1.0
        norm.register_forward_hook(biased)
    answer(seen)
    for layer in layers:
        layer.eval()
    assert torch.allclose(net(x, seen=6)[6:, 2], answer(new), atol=1e-4)


def biased(norm, given, _):
    """torch divides by n - 1 for its running variance, and by n where it trains."""
    if norm.training:
        norm.running_var.copy_(given[0].var((0, 2, 3), correction=0))


def test_batch_norm_makes_the_scale_of_a_row_invisible():
    net = M.ResNet(1, 3, 4, 1, eps=1e-30).double()  # torch refuses 0; this one vanishes beside any variance
    x, y = torch.rand(9, 1, 8, 8, generator=rng(), dtype=torch.float64), torch.arange(9) % 3
    before = net(x)
    (slope,) = torch.autograd.grad(cross_entropy(before[:, 0], y), net.weights[3])
    with torch.no_grad():
        net.weights[3][0, 2] *= 4.0
    after = net(x)
    (scaled,) = torch.autograd.grad(cross_entropy(after[:, 0], y), net.weights[3])
    assert torch.allclose(after, before, atol=1e-10)
    assert torch.allclose(scaled[0, 2], slope[0, 2] / 4, atol=1e-10) and torch.allclose(scaled[0, 1], slope[0, 1], atol=1e-10)


def test_weight_normalisation_is_torch_s():
    net = M.ResNet(1, 3, 4, 2, spheres=True)
    w = net.weights[2][1].detach()
    layer = weight_norm(nn.Conv2d(4, 4, 3, bias=False), dim=0)
    layer.parametrizations.weight.original1.data = w
    layer.parametrizations.weight.original0.data = 1.7 * net.lengths[2][1].detach()
    net.lengths[2].data *= 1.7
    assert torch.allclose(net.weight(2)[1], layer.weight, atol=1e-6)


# ---- the arms


def test_at_strength_zero_every_coefficient_is_no_regulariser():
    class One(M.NormLoss):
        scales = (1.0,)

    class Decay(M.WeightDecay):
        scales = (1.0,)

    plain = trained(M.Plain, strength=0.0)
    assert same(trained(One, strength=0.0), plain) and same(trained(Decay, strength=0.0), plain)
    assert not same(trained(One), plain)


def test_at_target_zero_norm_loss_is_weight_decay():
    ours, theirs = trained(M.NormLoss, target=0.0), trained(M.WeightDecay)
    far = trained(M.NormLoss)
    for a, b, c in zip(ours.members, theirs.members, far.members, strict=True):
        assert torch.allclose(a.weights[3], b.weights[3], atol=1e-4)
        assert not torch.allclose(c.weights[3], b.weights[3], atol=1e-3)


def test_copies_do_not_feel_each_other():
    """The copy at `strength` among five against a run of that coefficient alone."""

    class One(M.NormLoss):
        scales = (1.0,)

    many, one = trained(M.NormLoss), trained(One)
    for a, b in zip(many.members, one.members, strict=True):
        assert torch.allclose(a.weights[1][2], b.weights[1][0], atol=1e-5)
        assert not torch.allclose(a.weights[1][4], b.weights[1][0], atol=1e-3)


def test_hard_projection_ends_each_step_on_the_sphere():
    for net in trained(M.HardProjection, steps=3).members:
        norms = torch.cat([M.norms_of(net, i).flatten() for i in range(8)])
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6) and net.done == 3


def test_one_split_and_start_for_all_arms_and_nobody_twice():
    p = STUDY.make(SMALL)
    one, other = M.NormLoss(p).bind(7), M.Plain(p, size=32).bind(7)
    assert all(torch.equal(a[0], b[0]) for a, b in ((one.train, other.train), (one.test, other.test)))
    assert [len(y) for _, y in (one.train, one.validation, one.test)] == [500, 300, 997]
    clean = M.Plain(replace(p, noise=0.0)).bind(7)
    every = torch.cat([x for x, _ in (clean.train, clean.validation, clean.test)])
    assert np.array_equal(np.sort(every.flatten(1).sum(1)), np.sort(data.digits()[0].reshape(1797, -1).sum(1)))
    assert (one.test[0] - clean.test[0]).std().item() == pytest.approx(p.noise, rel=0.01)


def test_the_coefficient_is_chosen_on_validation_images_the_smaller_of_equals(monkeypatch):
    task = M.WeightDecay(STUDY.make(SMALL)).bind(1000)
    valid, test = torch.tensor([0.5, 0.7, 0.7, 0.6, 0.9]), torch.tensor([0.1, 0.4, 0.2, 0.3, 0.8])
    monkeypatch.setattr(M, "accuracies", lambda *_: [valid, test])
    net = task.init()
    net.by_batch[[32, 256]] = torch.tensor([0.9, 0.5])
    found = task.final(net)
    assert found["test_accuracy"] == test[1] and found["chosen_scale"] == 0.1
    assert float(found["accuracy_range_lambda"]) == pytest.approx(0.3)  # the fifth coefficient is not judged
    assert float(found["accuracy_range_batch"]) == pytest.approx(0.5)  # of 0.9, 0.5 and 0.4, that of batch 16 at 0.1


def test_batch_sizes_see_as_many_images():
    p = STUDY.make()
    seen = [task(p).steps * task(p).batch_size for task in M.ARMS["norm_loss"].stages.values()]
    assert seen[0] == seen[2] == 9600 and abs(seen[1] / 9600 - 1) < 0.02
    more = M.ARMS["norm_loss"](replace(p, variants=True, batch=128, width=4), [0])
    assert [task.batch_size for task in more.tasks_by_stage.values()] == [16, 32, 256, 128]
    assert [len(task.coefficients()) for task in more.tasks_by_stage.values()] == [1, 1, 1, 9]


# ---- the experiment


def test_smoke_run_records_what_the_claims_read(smoke):
    last = smoke.table.groupby(["arm", "metric", "seed"]).value.last()
    accuracies = [last["weight_decay", f"test_accuracy_at_{s:g}", 1000] for s in M.JUDGED]
    assert last["weight_decay", "accuracy_range_lambda", 1000] == pytest.approx(max(accuracies) - min(accuracies))
    sizes = [last["norm_loss", f"test_accuracy_batch_{n}", 1001] for n in (32, 256)]
    assert last["norm_loss", "accuracy_range_batch", 1001] == pytest.approx(max(sizes) - min(sizes))
    assert last["norm_loss", "test_accuracy_at_0.1", 1001] == last["norm_loss", "test_accuracy_batch_256", 1001]
    net, rate = smoke.arms["none"].members[0], 0.1 * 0.01
    norms = net.weights[0].detach().flatten(2).norm(dim=2)
    assert last["none", "effective_rate: conv 1", 1000] == pytest.approx(rate * float((norms**-2).mean()), rel=1e-4)
    # the same network in evaluation through its own answers
    task = smoke.arms["none"].tasks[0]
    together = net(torch.cat([task.train[0], task.test[0]]), seen=500).argmax(-1)[500:, 0]
    assert last["none", "test_accuracy", 1000] == pytest.approx((together == task.test[1]).float().mean().item())


def test_figures_and_views_hold_data(smoke):
    pictures = smoke.figures()
    assert len(pictures) == 6 and all(len(f.data) and f.layout.title.text for f in pictures.values())
    shown = {t.name: t for t in pictures["accuracy against lambda"].data if t.showlegend is not False}
    means = smoke.table[smoke.table.metric == "test_accuracy_at_1"].groupby("arm").value.mean()
    assert shown["norm loss"].y[2] == pytest.approx(means["norm_loss"])
    net = smoke.arms["norm_loss"].members[0]
    norms = np.concatenate([t.y for t in M.VIEWS["row norms"](net, smoke.params).data])
    expected = np.concatenate([M.norms_of(net, i)[2].detach().numpy() for i in range(8)])
    assert np.allclose(np.sort(norms), np.sort(expected))
    (line,) = M.VIEWS["accuracy by coefficient"](net, smoke.params).data
    assert np.allclose(line.y, net.accuracy) and np.allclose(line.x, [1e-4, 1e-3, 1e-2, 1e-1, 1])
    untested = M.NormLoss(smoke.params).bind(3).init()
    assert 0 <= min(M.VIEWS["accuracy by coefficient"](untested, smoke.params).data[0].y) <= 0.5


# ---- pictures


def test_textures_are_pieces_of_the_photographs():
    from skimage import data as photographs

    x, y = data.textures()
    assert np.bincount(y).tolist() == [360] * 5
    brick = np.lib.stride_tricks.sliding_window_view(photographs.brick() / 255.0, (12, 12))[::12, ::12].reshape(-1, 144)
    known = {tuple(np.round(row, 5)) for row in brick}
    assert all(tuple(np.round(row.reshape(144).astype(float), 5)) in known for row in x[y == 0])
    assert len(np.unique(x[y == 1].reshape(360, -1), axis=0)) == 360


def pictures(tmp_path, n=40, **other):
    kept = dict(x=np.random.default_rng(0).integers(256, size=(n, 3, 8, 8), dtype=np.uint8), y=np.arange(n) % 2) | other
    path = tmp_path / "mine.npz"
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})
    return path


@pytest.mark.parametrize("other, said", [
    (dict(y=None), "no array y"), (dict(x=np.zeros((40, 3, 8, 8))), "float64"), (dict(x=np.zeros((40, 64), np.uint8)), "N x C x H x W"),
    (dict(y=np.arange(39) % 2), "each of 40"), (dict(y=np.zeros(40, int)), "at least two"), (dict(y=np.arange(40) % 2 + 1), "without"),
    (dict(y=(np.arange(40) > 4).astype(int)), "at least 20"), (dict(y=np.linspace(0, 1, 40)), "whole number"),
    (dict(y=np.array(["a", {}] * 20, dtype=object)), "plain numbers"),
])  # fmt: skip
def test_own_npz_is_refused_with_the_reason(tmp_path, other, said):
    with pytest.raises(ValueError, match=said):
        data.own_images(pictures(tmp_path, **other))


def test_own_npz_is_what_one_trains_on(tmp_path, monkeypatch):
    path = pictures(tmp_path, 200)
    monkeypatch.setenv("CLAIMLAB_DATA", str(path))
    run = trained(M.NormLoss, steps=2, noise=0.0)
    assert run.members[0].weights[0].shape == (5, 4, 3, 3, 3) and run.members[0].weights[7].shape[1] == 2
    mine = np.load(path)["x"].astype(np.float32) / 255
    assert (mine == run.tasks[0].train[0][0].numpy()).all((1, 2, 3)).sum() == 1
    with pytest.raises(ValueError, match="no such pictures"):
        data.own_images(tmp_path / "none.npz")


def cifar(path, protocol=2, **other):
    rows = np.random.default_rng(1).integers(256, size=(40, 3072), dtype=np.uint8)
    held = {b"data": rows, b"labels": [i % 2 for i in range(40)], b"batch_label": b"one"} | {k.encode(): v for k, v in other.items()}
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    return rows


def test_cifar_batches_are_read(tmp_path):
    first, second = cifar(tmp_path / "data_batch_1"), cifar(tmp_path / "data_batch_2", 3)
    x, y = data.own_images(tmp_path)
    assert x.shape == (80, 3, 32, 32) and y.tolist() == [i % 2 for i in range(40)] * 2
    assert np.array_equal((x * 255).round().astype(np.uint8).reshape(80, 3072), np.concatenate([first, second]))


class Harm:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path):
    path, mark = tmp_path / "data_batch_1", tmp_path / "ran"
    path.write_bytes(pickle.dumps({b"data": Harm(mark), b"labels": []}))
    with pytest.raises(ValueError, match="asks for"):
        data.own_images(path)
    assert not mark.exists()
    for other, said in ((dict(data=np.zeros((40, 3072))), "float64"), (dict(labels=[0]), "each of 40"), (dict(data=[1]), "has data")):
        cifar(path, **other)
        with pytest.raises(ValueError, match=said):
            data.own_images(path)
    path.write_bytes(b"\x80\x02nonsense")
    with pytest.raises(ValueError, match="no CIFAR batch"):
        data.own_images(path)
