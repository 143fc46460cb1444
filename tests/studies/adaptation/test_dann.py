"""DANN: the reversal layer and the saddle-point step against explicit updates, the measures against libraries, equal arms at the limits."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import confusion_matrix
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.adaptation import _dann_data as source
from claimlab.studies.adaptation import dann as M
from claimlab.training import Run

torch.set_num_threads(1)
STUDY = study.find("dann")
TOY = dict(shift="moons", steps=20, seeds=2)


def trained(arm, seeds=(1000, 1001), **values):
    run = Run(M.ARMS[arm](STUDY.make({**TOY, **values})), list(seeds))
    for _ in run:
        pass
    return run


def weights(run):
    return [torch.cat([p.detach().flatten() for p in member.parameters()]) for member in run.members]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- the reversal


def test_the_reversal_is_the_identity_with_a_turned_gradient():
    """gradcheck compares with finite differences: of the identity, and of two reversals, whose signs cancel."""
    x, lam = torch.randn(4, 3, generator=rng(), dtype=torch.float64, requires_grad=True), torch.tensor([0.7], dtype=torch.float64)
    head = torch.nn.Linear(3, 2).double()

    def composed(x, first, second):
        return head(M.reverse(M.reverse(x, first), second).sin())

    assert torch.autograd.gradcheck(lambda x: composed(x, lam, 1 / lam), (x,))
    assert not torch.autograd.gradcheck(lambda x: composed(x, lam, -1 / lam), (x,), raise_exception=False)
    assert torch.equal(M.reverse(x, lam), x)
    (turned,) = torch.autograd.grad(head(M.reverse(x, lam).sin()).sum(), x)
    (straight,) = torch.autograd.grad(head(x.sin()).sum(), x)
    assert torch.equal(turned, -lam * straight)


def test_the_reversal_under_vmap_and_grad_is_the_loop():
    x, lam = torch.randn(5, 4, 3, generator=rng()), torch.rand(5, 1, generator=rng(1))

    def slope(x, lam):
        return torch.func.grad(lambda z: M.reverse(z, lam).square().sum())(x)

    assert torch.allclose(torch.func.vmap(slope)(x, lam), -2 * lam[:, None] * x)
    leaf = x.clone().requires_grad_()  # as the ensemble does it: vmap inside, autograd outside
    torch.func.vmap(lambda x, lam: M.reverse(x, lam).square().sum())(leaf, lam).sum().backward()
    assert torch.allclose(leaf.grad, -2 * lam[:, None] * x)


def test_the_ramp_is_a_hyperbolic_tangent():
    p = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(M.ramp(p, 10.0), torch.tanh(5 * p))  # 2 / (1 + exp(-2z)) - 1 = tanh z
    assert torch.equal(M.ramp(p, 0.0), torch.zeros(11, dtype=torch.float64))
    task = M.Dann(STUDY.make(TOY)).bind(1000)
    lam = task.block(None, rng(), 10, 4)[2]
    assert torch.allclose(lam.squeeze(1), 0.3 * torch.tanh(5 * torch.arange(10, 14) / 20), atol=1e-6)


def test_one_step_is_the_saddle_point_step_of_two_players():
    """Features descend L_y - lambda L_d, label head L_y, domain head L_d: gradients of three explicit losses."""
    task = M.Dann(STUDY.make(TOY)).bind(1000)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = task.init().double()
    x, y, _ = (part.double() if part.is_floating_point() else part for part in task.batch(None, rng(), 15))
    lam, rate = torch.tensor([0.8], dtype=torch.float64), 0.05

    def energy():
        features = net["features"](x)
        logit, truth = net["domain"](features).squeeze(1), torch.arange(64) >= 32
        halves = [binary_cross_entropy_with_logits(logit[h], truth[h].double()) for h in (slice(32), slice(32, 64))]
        return cross_entropy(net["label"](features[:32]), y), sum(halves)

    l_y, l_d = energy()
    wanted = {}
    for part, sign_y, sign_d in (("features", 1.0, -lam.item()), ("label", 1.0, 0.0), ("domain", 0.0, 1.0)):
        own = list(net[part].parameters())
        slopes = torch.autograd.grad(sign_y * l_y + sign_d * l_d, own, retain_graph=True)
        wanted |= {id(p): p.detach() - rate * g for p, g in zip(own, slopes, strict=True)}
    step = torch.optim.SGD(net.parameters(), lr=rate)
    task.loss(net, x, y, lam).backward()
    step.step()
    assert all(torch.allclose(p, wanted[id(p)], rtol=0, atol=1e-14) for p in net.parameters())


# ---- measures


def test_coral_is_the_distance_of_numpy_covariances():
    a, b = torch.randn(20, 5, generator=rng()).double(), 2 * torch.randn(30, 5, generator=rng(1)).double()
    wanted = np.linalg.norm(np.cov(a.T.numpy()) - np.cov(b.T.numpy()), "fro") ** 2 / (4 * 5**2)
    assert M.coral(a, b).item() == pytest.approx(wanted, rel=1e-12)
    assert M.coral(a, a.flip(0) + 3.0).item() == pytest.approx(0, abs=1e-25)  # means are not matched


def test_proxy_a_distance_of_equal_disjoint_and_overlapping_domains():
    draw = np.random.default_rng(0)
    halves = draw.standard_normal((2, 2000, 8))
    assert M.proxy_a_distance(*halves) < 0.15
    assert M.proxy_a_distance(halves[0], halves[0]) == 0  # twins in one half: no name can be learned
    assert M.proxy_a_distance(halves[0], halves[1] + 20) == 2
    for gap in (1.0, 2.0):  # the best error of two unit Gaussians `gap` apart is Phi(-gap / 2)
        moved = halves[1] + np.r_[gap, np.zeros(7)]
        assert M.proxy_a_distance(halves[0], moved) == pytest.approx(2 - 4 * stats.norm.cdf(-gap / 2), abs=0.12)


def test_domain_accuracy_counts_both_halves():
    run = trained("source_only")
    task, net = run.tasks[0], run.members[0]
    found = task.metrics(net)
    with torch.no_grad():
        told = [net["domain"](net["features"](x)).squeeze(1) > 0 for x, _ in (task.test_source, task.test_target)]
    truth = [0] * len(told[0]) + [1] * len(told[1])
    table = confusion_matrix(truth, torch.cat(told).int().numpy())
    assert float(found["domain_accuracy"]) == pytest.approx(np.mean(np.diag(table) / table.sum(1)), abs=1e-6)


# ---- the arms


@pytest.mark.parametrize("values", [{"lambda_max": 0.0}, {"gamma": 0.0}])
def test_without_reversed_gradient_dann_is_source_only(values):
    plain = trained("source_only", **values)
    for arm in ("dann", "no_reversal"):
        assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(trained(arm, **values)), strict=True))
    silent = trained("coral", coral_weight=0.0, **values)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(silent), strict=True))
    assert not torch.equal(weights(plain)[0], weights(trained("dann"))[0])


def test_arms_share_weights_and_batches():
    blocks, nets = {}, {}
    for name in ("source_only", "dann", "coral", "target_oracle", "no_schedule", "no_reversal"):
        task = M.ARMS[name](STUDY.make(TOY)).bind(1000)
        draws = rng(7)
        blocks[name] = [task.block(None, draws, step, 20)[0] for step in (0, 20)]
        nets[name] = Run(M.ARMS[name](STUDY.make(TOY)), [1000]).members[0]
    first = torch.nn.utils.parameters_to_vector(nets["dann"].parameters())
    for name in blocks:
        assert all(torch.equal(a, b) for a, b in zip(blocks["dann"], blocks[name], strict=True))
        assert torch.equal(first, torch.nn.utils.parameters_to_vector(nets[name].parameters()))


def test_a_batch_is_half_source_half_target_and_only_the_frame_sees_target_labels(monkeypatch):
    task = M.Dann(STUDY.make(TOY)).bind(1000)
    x, y, _ = task.block(None, rng(), 0, 20)
    known = {tuple(p): int(c) for p, c in zip(task.source[0].tolist(), task.source[1], strict=True)}
    assert [known[tuple(p)] for p in x[:, :32].reshape(-1, 2).tolist()] == y.flatten().tolist()
    there = {tuple(p) for p in task.target.tolist()}
    assert all(tuple(p) in there for p in x[:, 32:].reshape(-1, 2).tolist())
    before = {arm: weights(trained(arm))[0] for arm in ("dann", "coral", "target_oracle")}
    right = M.domains
    monkeypatch.setattr(M, "domains", lambda *asked: (d := right(*asked)) and M.replace(d, hidden=1 - d.hidden))
    for arm, old in before.items():
        assert torch.equal(old, weights(trained(arm))[0]) is (arm != "target_oracle")


def test_the_ablation_makes_domains_easier_to_tell_apart():
    values = dict(shift="rotated", steps=150, lambda_max=1.0)
    told = {arm: [m["domain_accuracy"] for m in list(Run(M.ARMS[arm](STUDY.make({**TOY, **values})), [1000, 1001]))[-1].metrics]
            for arm in ("dann", "source_only", "no_reversal")}  # fmt: skip
    assert np.mean(told["dann"]) < np.mean(told["source_only"]) < np.mean(told["no_reversal"])


def test_learning_rate_follows_the_paper():
    run = Run(M.SourceOnly(STUDY.make(TOY)), [1000, 1001])
    for _ in range(11):
        run.advance()
    ((optimizer, _),) = run.ensembles[0].optimizers[""]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / (1 + 10 * 10 / 20) ** 0.75)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_reverse_validation_finds_the_way_back_where_there_is_no_shift_only():
    p = STUDY.make(dict(shift="moons", steps=600))
    easy = M.reverse_validation(M.SourceOnly, M.replace(p, severity=0.0, lr=0.1), [1000, 1001])
    blind = M.reverse_validation(M.SourceOnly, M.replace(p, lr=0.0005, steps=20), [1000, 1001])
    assert min(easy) > 0.8 and np.mean(blind) < np.mean(easy) - 0.1


# ---- the data


def test_rotation_is_that_of_scipy():
    x = torch.rand(3, 1, 9, 9, generator=rng())
    quarter = source.rotate(x, torch.tensor([90.0, 180.0, 270.0]))
    for k in range(3):
        assert torch.allclose(quarter[k, 0], torch.rot90(x[k, 0], k + 1), atol=1e-5)
    smooth = torch.from_numpy(ndimage.gaussian_filter(x[0, 0].numpy(), 2))
    ours = source.rotate(smooth[None, None], torch.tensor([30.0]))[0, 0].numpy()
    theirs = ndimage.rotate(smooth.numpy(), 30, reshape=False, order=1)
    assert np.abs(ours - theirs)[2:-2, 2:-2].max() < 1e-5


@pytest.mark.parametrize("shift", ["rotated", "coloured", "noisy", "inverted", "moons", "text"])
def test_severity_is_the_size_of_the_shift(shift):
    x, _ = source.originals(shift, "8x8", 1000)
    x = x[:60]
    far = [(source.restyle(shift, x, s, np.random.default_rng(0)) - x).abs().mean().item() for s in (0.0, 0.3, 1.0)]
    assert far[0] < 1e-6 < far[1] < far[2]


def test_no_original_is_in_two_parts_and_skew_thins_the_target_alone():
    y = source.originals("rotated", "8x8", 0)[1]
    parts = source.cut(y, np.random.default_rng(5))
    assert [len(part) for part in parts] == [700, 700, 397] and len(torch.cat(parts).unique()) == 1797
    plain, skewed = (source.domains(1000, "rotated", 1.0, skew, "8x8") for skew in (0.0, 0.9))
    counts = torch.bincount(skewed.hidden, minlength=10) / torch.bincount(plain.hidden, minlength=10)
    assert torch.equal(counts[:5], torch.ones(5)) and counts[5:].mean() == pytest.approx(0.1, abs=0.06)
    assert torch.equal(plain.source[0], skewed.source[0]) and torch.equal(plain.test_target[0], skewed.test_target[0])
    assert torch.equal(plain.test_source[1], plain.test_target[1])


def test_translated_texts_keep_their_length_and_lose_the_special_words():
    x, _ = source.originals("text", "8x8", 0)
    there = source.translate(x, 1.0, np.random.default_rng(0))
    assert torch.allclose(x.expm1().sum(1), there.expm1().sum(1), atol=1e-3)
    assert x[:, 60:90].sum() == 0 and there[:, 30:60].sum() == 0
    assert torch.allclose(x[:, 30:60], there[:, 60:90], atol=1e-6) and torch.equal(x[:, :30], there[:, :30].clone())


def test_contradicting_knobs_are_named():
    with pytest.raises(ValueError, match="digits = 28x28 .* shift = moons"):
        STUDY.make(dict(shift="moons", digits="28x28"))


# ---- the experiment


def test_smoke_records_every_claim_and_draws_every_figure(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert rows.step.max() == 40 and set(rows.seed) == {1000, 1001}
    figures = smoke.figures()
    assert set(figures) == {"features", "two moons", "during training", "settings", "distance and error"}
    for figure in figures.values():
        drawn = [t for t in figure.data if t.type == "scatter" and t.x[0] is not None]
        assert drawn and all(len(t.x) == len(t.y) and np.isfinite(np.asarray(t.y, float)).all() for t in drawn)
    answers = smoke.arms["sweep"].runs["lambda_max=1"].members
    recorded = smoke.table[(smoke.table.arm == "sweep") & (smoke.table.metric == "lambda_max=1: target_accuracy")].value
    tasks = smoke.arms["sweep"].runs["lambda_max=1"].tasks
    own = [float(t.metrics(net.eval())["target_accuracy"]) for t, net in zip(tasks, answers, strict=True)]
    assert recorded.tolist() == pytest.approx(own)
    assert smoke.total == smoke.done


def test_views_of_nets_that_fit_and_of_nets_that_do_not(smoke):
    net, p = smoke.arms["dann"].members[0], smoke.params
    matrices = M.VIEWS["confusion matrices"](net, p).data
    assert [int(np.sum(one.z)) for one in matrices] == [len(smoke.arms["dann"].tasks[0].test_source[1])] * 2
    assert len(M.VIEWS["decision regions on the moons"](net, p).data) >= 6
    assert len(M.VIEWS["features of both domains"](net, p).data) >= 4
    other = STUDY.make(dict(steps=20))
    assert "other inputs" in M.VIEWS["confusion matrices"](net, other).layout.title.text


def test_under_the_control_the_domains_are_one():
    values = {**TOY, **STUDY.control.set, "seeds": 5}
    lab = Experiment(STUDY, STUDY.make(values), seeds=range(1000, 1005), arms=["source_only", "dann"]).run()
    found = {v.claim: v for v in lab.verdicts()}
    assert found["closer-domains"].effect == 0.0
    assert all(found[name].verdict != "supported" for name in STUDY.control.vanishes)


# ---- a user's own domains


def pair(folder, change=lambda files: None, side=12, n=60):
    draw = np.random.default_rng(0)
    files = {
        name: {"x": draw.integers(256, size=(n, size, size, c), dtype=np.uint8), "y": np.arange(n) % 3}
        for name, size, c in (("source", side, 1), ("target", 16, 3), ("target_test", 16, 3))
    }
    change(files)
    for name, arrays in files.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return str(folder)


def test_own_domains_get_one_size_and_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", pair(tmp_path))
    run = trained("dann", steps=20)
    task = run.tasks[0]
    assert task.source[0].shape[1:] == task.target.shape[1:] == (3, 12, 12)
    assert len(task.test_target[1]) == 60  # the file of its own
    assert run.members[0]["label"](run.members[0]["features"](task.target[:2])).shape[1] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("target"), "target.npz is not a file"),
        (lambda f: f["target"].pop("y"), "target.npz has no array y"),
        (lambda f: f["source"].update(x=f["source"]["x"] / 255), "source.npz.*float64.*uint8"),
        (lambda f: f["target"].update(x=np.full((60, 16, 16, 3), np.nan)), "target.npz.*uint8"),
        (lambda f: f["source"].update(x=f["source"]["x"][:0], y=f["source"]["y"][:0]), "source.npz.*N > 0"),
        (lambda f: f["source"].update(y=f["source"]["y"] * 0), "source.npz.*at least two"),
        (lambda f: f["target"].update(y=np.arange(60) % 2), "target.npz has the classes 0 to 1, source.npz 0 to 2"),
        (lambda f: f["target_test"]["x"].__setitem__(5, f["target"]["x"][7]), "target_test.npz: 1 images are in target.npz too"),
        (lambda f: f["source"].update(x=f["source"]["x"][:, :6, :6]), "6 x 6 are too small"),
        (lambda f: f["target"].update(y=np.array([{}] * 60, dtype=object)), "target.npz.*plain numbers"),
    ],
)
def test_own_domains_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        source.own_domains(pair(tmp_path, change))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder.*source.npz and target.npz"):
        source.own_domains(str(tmp_path / "mnist.npz"))
