"""mixup: the paper's identities against torch, scipy and brute force; equal arms at the limits; own files; the control."""

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy, one_hot

from claimlab import study
from claimlab.data.own import own_images
from claimlab.experiment import Experiment
from claimlab.training import Run

STUDY = study.find("mixup")
M = STUDY.module
SMALL = dict(steps=20, seeds=2, images=200)


def trained(arm, **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), [1000, 1001])
    for _ in run:
        pass
    return run


def weights(run, part):
    return [torch.cat([p.detach().flatten() for p in member[part].parameters()]) for member in run.members]


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- the method


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 8.0])
def test_lambda_has_the_law_of_scipy(alpha):
    lam = M.beta(alpha, (100_000,), torch.Generator().manual_seed(3)).double().numpy()
    assert abs(lam.mean() - 0.5) < 5 * lam.std() / np.sqrt(len(lam))
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    inside = lam[(lam > 1e-6) & (lam < 1 - 1e-6)]  # float32 rounds the far ends to 0 and 1
    low, high = stats.beta.cdf([1e-6, 1 - 1e-6], alpha, alpha)
    law = lambda v: (stats.beta.cdf(v, alpha, alpha) - low) / (high - low)  # noqa: E731
    assert stats.kstest(inside, law).pvalue > 1e-3


def test_soft_label_loss_is_the_two_term_loss():
    rng = torch.Generator().manual_seed(0)
    x, logits_of = torch.rand(32, 5, generator=rng), torch.nn.Linear(5, 4)
    y, order, lam = torch.randint(4, (32,), generator=rng), torch.randperm(32, generator=rng), torch.rand(32, generator=rng)
    blend, target = M.mix(x, one_hot(y, 4).float(), order, lam)
    parts = [cross_entropy(logits_of(blend), labels, reduction="none") for labels in (y, y[order])]
    two_terms = (lam * parts[0] + (1 - lam) * parts[1]).mean()
    assert torch.allclose(two_terms, cross_entropy(logits_of(blend), target), atol=1e-6)


def test_training_minimises_the_two_term_loss():
    task = M.Mixup(STUDY.make(SMALL)).bind(1000)
    net = task.init()
    x, target, *_ = task.batch(net, torch.Generator().manual_seed(1), 0)
    own = task.players()["noisy"](net, *task.batch(net, torch.Generator().manual_seed(1), 0))
    assert torch.allclose(own, -(target * net["noisy"](x).log_softmax(1)).sum(1).mean(), atol=1e-6)
    assert torch.allclose(target.sum(1), torch.ones(64), atol=1e-6) and (target > 0).sum(1).max() == 2


@pytest.mark.parametrize("alpha", [0.4, 2.0])
def test_expected_squared_loss_of_a_linear_model(alpha):
    """Mean over all partners and over lambda (quadrature) against ((a+1) mean(r^2) + a mean(r)^2) / (2a+1)."""
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(7, 3, generator=rng).double(), torch.randn(7, 1, generator=rng).double()
    w, b = torch.randn(3, 1, generator=rng).double(), 0.7
    every = torch.stack([torch.arange(7).roll(k) for k in range(7)])  # each i meets each j once
    nodes, shares = np.polynomial.legendre.leggauss(400)
    quantiles = stats.beta.ppf((nodes + 1) / 2, alpha, alpha)
    total = 0.0
    for share, lam in zip(shares / 2, quantiles, strict=True):
        blend, target = M.mix(x.expand(7, 7, 3), y.expand(7, 7, 1), every, torch.full((7, 1), lam).double())
        total += share * ((blend @ w + b - target) ** 2).mean().item()
    r = (x @ w + b - y).flatten()
    theory = ((alpha + 1) * (r**2).mean() + alpha * r.mean() ** 2) / (2 * alpha + 1)
    assert total == pytest.approx(theory.item(), rel=1e-4)


def test_ablations_do_what_they_say():
    rng = torch.Generator().manual_seed(2)
    x, y = torch.rand(4, 64, 6, generator=rng), one_hot(torch.randint(5, (4, 64), generator=rng), 5).float()
    order, lam = torch.rand(4, 64, generator=rng).argsort(1), torch.rand(4, 1, generator=rng)
    both, kept = M.mix(x, y, order, lam), M.mix_inputs(x, y, order, lam)
    assert torch.equal(both[0], kept[0]) and torch.equal(kept[1].argmax(-1), both[1].argmax(-1))
    assert set(kept[1].unique().tolist()) == {0.0, 1.0}
    same = M.mix_same_class(x, y, order, torch.zeros(4, 1))  # lambda = 0 shows the partner alone
    assert torch.equal(same[1], y)
    assert torch.equal(same[0].sort(1).values, x.sort(1).values)  # a permutation: every image is a partner once
    assert (same[0] != x).any(-1).float().mean() > 0.5
    x_same, target = M.smooth(x, y, order, lam)
    assert torch.equal(x_same, x)
    logits = torch.randn(64, 5, generator=rng)
    assert torch.allclose(cross_entropy(logits, target[0]), cross_entropy(logits, y[0].argmax(1), label_smoothing=0.1), atol=1e-6)


def test_same_class_permutations_are_uniform():
    y = one_hot(torch.tensor([0, 1, 0, 0, 1]), 2).float().expand(6000, 5, 2)
    x = torch.arange(5.0)[:, None].expand(6000, 5, 1)
    order = torch.rand(6000, 5, generator=torch.Generator().manual_seed(0)).argsort(1)
    partners = M.mix_same_class(x, y, order, torch.zeros(6000, 1))[0].squeeze(-1)
    found, count = partners.unique(dim=0, return_counts=True)
    assert len(found) == 12  # 3! * 2!
    assert stats.chisquare(count.numpy()).pvalue > 1e-3


def test_fgsm_is_the_worst_corner_of_a_linear_model():
    """For two classes the loss falls with the margin, which is linear: the sign step is the best attack of its size."""
    rng = torch.Generator().manual_seed(4)
    net, x, y = torch.nn.Linear(4, 2), 0.3 + 0.4 * torch.rand(9, 4, generator=rng), torch.randint(2, (9,), generator=rng)
    adversarial = M.fgsm(net, x, y, 0.1)
    corners = torch.cartesian_prod(*[torch.tensor([-0.1, 0.1])] * 4)
    worst = torch.stack([cross_entropy(net(x + c), y, reduction="none") for c in corners]).max(0).values
    assert torch.allclose(cross_entropy(net(adversarial), y, reduction="none"), worst, atol=1e-6)
    assert torch.equal(M.fgsm(net, x, y, 0.0), x)
    assert M.fgsm(net, x, y, 2.0).aminmax() == (0.0, 1.0)


def test_critic_losses_agree_at_the_ends():
    rng = torch.Generator().manual_seed(0)
    critic, real, fake = torch.nn.Linear(2, 1), torch.randn(8, 2, generator=rng), torch.randn(8, 2, generator=rng)
    ends = [M.blended_critic_loss(critic, real, fake, torch.full((8, 1), v)) for v in (1.0, 0.0)]
    assert torch.allclose(sum(ends), M.plain_critic_loss(critic, real, fake, torch.ones(8, 1)), atol=1e-6)


def test_coverage_counts_held_modes():
    centres = M.modes("ring")
    points = centres[:3].repeat_interleave(100, 0)
    stray = torch.zeros(700, 2)
    assert M.coverage(torch.cat([points, stray])[None], centres).item() == pytest.approx(3 / 8)
    assert torch.cdist(M.modes("spiral"), M.modes("spiral")).fill_diagonal_(9).min() > 0.4  # no point is near two modes


def test_stacked_perceptrons_equal_torch_layers():
    stack = M.Perceptron(3, 5, 2, copies=(4,))
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.functional.linear
    for k in range(4):
        hidden = linear(x[k], stack.weights[0][k].T, stack.biases[0][k, 0]).relu()
        assert torch.allclose(stack(x)[k], linear(hidden, stack.weights[1][k].T, stack.biases[1][k, 0]), atol=1e-6)


# ---- the experiment


@pytest.mark.parametrize("arm", ["mixup", "inputs_only", "same_class"])
def test_without_blending_an_arm_is_plain_training(arm):
    erm, other = trained("erm", alpha=0, weight_decay=0), trained(arm, alpha=0, weight_decay=0)
    for part in other.task.settings:
        assert all(torch.equal(a, b) for a, b in zip(weights(erm, part), weights(other, part), strict=True))


def test_arms_share_batches_partners_and_lambdas():
    blocks = {}
    for arm in ("mixup", "mixup_dropout", "inputs_only"):
        task = M.ARMS[arm](STUDY.make(SMALL)).bind(1000)
        rng = torch.Generator().manual_seed(9)
        blocks[arm] = [task.block(None, rng, step, 20)[0] for step in (0, 20)]  # the second block would show a drift
    for arm in ("mixup_dropout", "inputs_only"):
        assert all(torch.equal(a, b) for a, b in zip(blocks["mixup"], blocks[arm], strict=True))


def test_one_lambda_a_minibatch_or_one_a_pair():
    for per_pair, kinds in ((False, 1), (True, 64)):
        task = M.Mixup(STUDY.make({**SMALL, "per_pair_lambda": per_pair})).bind(1000)
        target = task.batch(None, torch.Generator().manual_seed(0), 0)[1]
        larger = target.max(1).values
        assert len(larger[larger < 1].unique()) <= kinds and (per_pair is False or len(larger.unique()) > 20)


def test_share_of_wrong_labels_is_nine_tenths_of_the_noise():
    shares = [(s.given != s.true).float().mean().item() for s in (M.split(seed, 900, 0.4) for seed in range(1000, 1020))]
    assert np.mean(shares) == pytest.approx(0.36, abs=5 * np.sqrt(0.4 * 0.1 * 0.9 / 900 / 20))
    one = M.split(1000, 900, 0.4)
    assert torch.equal(M.split(1000, 900, 0.0).x, one.x)  # noise changes labels and nothing else
    rows = np.concatenate([one.x.numpy(), one.test[0].numpy()])
    assert len(np.unique(rows, axis=0)) == 1797 == len(rows)  # no test image is in the training set


def test_smoke_records_every_claim_and_draws_every_figure(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert rows.step.max() == smoke.arms[arm].total and set(rows.seed) == {1000, 1001}
    figures = smoke.figures()
    assert set(figures) == {"memorisation", "answer on the line", "between images", "attack size", "generated points"}
    for figure in figures.values():
        curves = [trace for trace in figure.data if trace.type == "scatter"]
        assert curves and all(len(trace.x) and np.isfinite(np.asarray(trace.y, float)).all() for trace in curves)
        assert figure.layout.title.text
    budget = smoke.budgets.set_index("arm")
    assert budget.loc["erm", "samples"] == budget.loc["mixup", "samples"]
    assert budget.loc["erm", "forward_calls"] == budget.loc["mixup", "forward_calls"] == 2 * smoke.params.steps


def test_figures_of_few_arms_and_views_of_any_net(smoke):
    some = Experiment(STUDY, STUDY.make(SMALL), seeds=[1000, 1001], arms=["gan", "gan_mixup"]).run()
    assert set(some.figures()) == {"generated points"}
    for name, arm in (("decision boundary", "smoothing"), ("between two images", "erm"), ("generated points", "gan")):
        assert len(M.VIEWS[name](smoke.arms[arm].members[0], smoke.params).data) >= 2
        other = "gan" if arm != "gan" else "erm"
        assert "has no" in M.VIEWS[name](smoke.arms[other].members[0], smoke.params).layout.title.text


def test_control_has_no_wrong_label_to_fit():
    values = {**SMALL, **STUDY.control.set, "seeds": 5}
    lab = Experiment(STUDY, STUDY.make(values), seeds=range(1000, 1005), arms=["erm", "mixup"]).run()
    found = {v.claim: v for v in lab.verdicts()}
    assert found["fits-fewer-wrong-labels"].effect == 0.0
    assert all(found[name].verdict != "supported" for name in STUDY.control.vanishes)


def test_past_gives_the_members_of_that_step():
    run = Run(M.Gan(STUDY.make(SMALL)), [1000, 1001])
    seen = {}
    for tick in run:
        seen[tick.step] = weights(run, "generator")
    step, members = run.past(12)
    assert step == 10 and not torch.equal(seen[10][0], seen[run.total][0])
    for member, before in zip(members, seen[10], strict=True):
        assert torch.equal(torch.cat([p.detach().flatten() for p in member["generator"].parameters()]), before)
    assert torch.equal(weights(run, "generator")[0], seen[run.total][0])  # the run itself has not moved
    with pytest.raises(ValueError, match="no state"):
        run.past(-1)


# ---- a user's own file


def good(n=40, classes=2):
    rng = np.random.default_rng(0)
    return {"x": rng.integers(256, size=(n, 6, 6, 3), dtype=np.uint8), "y": np.arange(n) % classes}


def test_own_file_runs(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **good(240, 3))
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "mine.npz"))
    run = trained("mixup")
    assert run.members[0]["noisy"].weights[0].shape == (108, 256) and run.members[0]["noisy"].weights[-1].shape[-1] == 3
    view = M.VIEWS["between two images"](run.members[0], run.task.p)
    assert view.data[0].z is not None and np.shape(view.data[0].z) == (6, 6)


def test_cifar_binary_rows(tmp_path):
    rows = np.random.default_rng(0).integers(256, size=(30, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(30) % 3
    rows.tofile(tmp_path / "batch.bin")
    x, y = own_images(tmp_path / "batch.bin")
    assert x.shape == (30, 32, 32, 3) and y.tolist() == [i % 3 for i in range(30)]
    assert x[4, 5, 6, 2] == np.float32(rows[4, 1 + 2 * 1024 + 5 * 32 + 6] / 255)  # blue plane, row 5, column 6
    (tmp_path / "cut.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(ValueError, match="cut.bin.*3,073"):
        own_images(tmp_path / "cut.bin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("y"), "no array y"),
        (lambda d: d.update(x=d["x"] / 255), "float64.*uint8"),
        (lambda d: d.update(x=np.full((40, 6, 6, 3), np.nan)), "uint8"),
        (lambda d: d.update(x=d["x"][:, :, :, 0]), "N x H x W x C"),
        (lambda d: d.update(x=d["x"][:0], y=d["y"][:0]), "N > 0"),
        (lambda d: d.update(y=d["y"] * 1.0), "y is float64"),
        (lambda d: d.update(y=d["y"][:-1]), "each of 40 images"),
        (lambda d: d.update(y=d["y"] * 0), "at least two"),
        (lambda d: d.update(y=d["y"] * 2), "without a gap"),
        (lambda d: d.update(y=(np.arange(40) < 9) * 1), "label 1 has 9 images"),
        (lambda d: d["x"].__setitem__(1, d["x"][0]), "1 images occur again"),
        (lambda d: d.update(y=np.array([{}] * 40, dtype=object)), "plain numbers"),
    ],
)
def test_own_file_that_does_not_fit_is_refused(tmp_path, change, words):
    arrays = good()
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"(?s)bad.npz.*{words}"):
        own_images(tmp_path / "bad.npz")


def test_pickles_and_absent_files_are_refused_unopened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the file was executed",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="binary version"):
        own_images(tmp_path / "data_batch_1")
    with pytest.raises(ValueError, match="not a file"):
        own_images(tmp_path / "none.npz")
