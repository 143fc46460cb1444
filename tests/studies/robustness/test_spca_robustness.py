"""spca-robustness: certificates against brute force and scikit-learn, attacks against closed forms, equal arms at the limits."""

import gzip
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.robustness import _spca_robustness_attacks as attacks
from claimlab.studies.robustness import _spca_robustness_data as pictures
from claimlab.studies.robustness import _spca_robustness_method as method

STUDY = study.find("spca-robustness")
M = STUDY.module
PLACE = (1000, 300, 16, "digits")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def centred():
    return M.centred(*PLACE)


@pytest.fixture(scope="module")
def sparse():
    return M.sparse(8, 1.0, *PLACE)


@pytest.fixture(scope="module")
def heads(centred, sparse):
    """scikit-learn's logistic regression on scaled sparse codes, and the same as our net in double precision."""
    data = M.load(*PLACE)
    x, mean = centred
    sd = method.deviations(x, sparse)
    fitted = LogisticRegression(max_iter=300).fit(x @ sparse.T / sd, data.y.numpy())
    net = method.Projected(*(torch.from_numpy(a) for a in (sparse, mean, sd)), nn.Linear(8, 10).double())
    with torch.no_grad():
        net.head.weight.copy_(torch.from_numpy(fitted.coef_))
        net.head.bias.copy_(torch.from_numpy(fitted.intercept_))
    return fitted, net, data.test[0][:200].double()


# ---- certificates


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_the_optimal_attack_flips_at_the_radius_and_not_before(heads, norm):
    _, net, x = heads
    with torch.no_grad():
        radius, way = method.certificate(net(x), method.pulls(net), norm)
        before, short, past = (net(x + f * radius[:, None] * way).argmax(1) for f in (0, 0.999, 1.001))
        found = method.flip_distance(lambda z: net(z).argmax(1), x, way)
    assert torch.equal(before, short) and not (before == past).any()
    length = way.abs().amax(1) if norm == "inf" else way.norm(dim=1)
    assert torch.allclose(length, torch.ones_like(length), atol=1e-12)
    assert ((found - radius).abs() / radius).max() < 1e-8


def test_radii_follow_from_the_coefficients_of_scikit_learn(heads, centred, sparse):
    fitted, net, x = heads
    z = (x.numpy() - centred[1]) @ sparse.T / method.deviations(centred[0], sparse)
    f, pull = fitted.decision_function(z), fitted.coef_ / method.deviations(centred[0], sparse) @ sparse
    assert (fitted.predict(z) == net(x).argmax(1).numpy()).all()
    for norm, dual in (("inf", 1), ("2", 2)):
        radius = method.certificate(net(x), method.pulls(net), norm)[0].detach().numpy()
        for i in range(0, 200, 17):
            y = f[i].argmax()
            rivals = [(f[i, y] - f[i, j]) / np.linalg.norm(pull[y] - pull[j], ord=dual) for j in range(10) if j != y]
            assert radius[i] == pytest.approx(min(rivals), rel=1e-9)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_no_direction_flips_inside_the_radius(heads, norm):
    _, net, x = heads
    with torch.no_grad():
        radius = method.certificate(net(x), method.pulls(net), norm)[0]
        ways = torch.randn(50, *x.shape, generator=generator(1), dtype=torch.float64)
        ways = ways.sign() if norm == "inf" else ways / ways.norm(dim=-1, keepdim=True)
        assert (net(x + 0.999 * radius[:, None] * ways).argmax(-1) == net(x).argmax(-1)).all()


def test_bisection_finds_a_known_distance():
    x, way = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    found = method.flip_distance(lambda z: ((z > 0.7) | (z < -3.0)).flatten().long(), x, way)
    assert found.tolist() == pytest.approx([0.7, 0.35, 3.0], rel=1e-12)


def test_operator_norm_bounds_the_exact_one_and_is_it_for_one_row():
    matrix = torch.randn(5, 9, generator=generator(2), dtype=torch.float64)
    exact = method.exact_operator_norm(matrix)
    corners = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1)
    assert exact.item() == pytest.approx(np.linalg.norm(matrix.numpy() @ corners, axis=0).max(), rel=1e-12)
    assert exact < method.operator_norm(matrix)
    row = matrix[:1]
    assert method.exact_operator_norm(row) == pytest.approx(method.operator_norm(row).item(), rel=1e-12) == row.abs().sum()
    with pytest.raises(ValueError, match="15 columns"):
        method.exact_operator_norm(torch.zeros(2, 15))


def test_lipschitz_bound_holds_for_a_trained_net(smoke):
    net, task = smoke.arms["spca"].members[0], smoke.arms["spca"].tasks[0]
    x, eps = task.test[0][:200], 0.05
    moved = attacks.random_start(x, eps, generator(3))
    bound = method.operator_norm(net.rows / net.sd[:, None]) * method.head_lipschitz(net.head) * eps
    with torch.no_grad():
        assert ((net(moved) - net(x)).norm(dim=1) <= bound).all()


# ---- front ends


def test_a_vanishing_penalty_spans_the_principal_subspace():
    rng = np.random.default_rng(0)  # five strong directions, then a clear gap
    x = rng.standard_normal((300, 5)) @ rng.standard_normal((5, 40)) + 0.05 * rng.standard_normal((300, 40))
    x -= x.mean(0)
    rows, exact = method.sparse_rows(x, 5, 1e-4, seed=0), PCA(5).fit(x)
    assert np.degrees(subspace_angles(rows.T, exact.components_.T)).max() < 1
    assert method.explained(x, rows) == pytest.approx(exact.explained_variance_ratio_.sum(), abs=1e-4)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(5))
    dense, thin = (np.mean(method.sparse_rows(x, 5, a, seed=0) == 0) for a in (1e-4, 20.0))
    assert dense < 0.02 and thin > 0.3


def test_fronts_are_what_their_names_say(centred, sparse):
    x, ratio = centred[0], PCA().fit(centred[0]).explained_variance_ratio_.cumsum()
    rows = {f: method.projection(f, x, sparse, np.random.default_rng(0)) for f in method.FRONTS}
    assert subspace_angles(rows["pca"].T, PCA(8).fit(x).components_.T).max() < 1e-6
    fewer = rows["pca_fewer"].any(1).sum()
    share = method.explained(x, sparse)
    assert ratio[fewer - 1] >= share > ratio[fewer - 2] and fewer < 8
    assert ((rows["random_sparse"] != 0).sum(1) == (sparse != 0).sum(1)).all()
    assert np.linalg.norm(rows["random_sparse"], axis=1) == pytest.approx(np.ones(8))
    assert not rows["random_sparse"][:, ~x.any(0)].any()
    assert subspace_angles(rows["spca_dense_rotation"].T, sparse.T).max() < 1e-6
    assert (sparse[:, x.any(0)] != 0).mean() < 0.3 < (rows["spca_dense_rotation"][:, x.any(0)] != 0).mean()


def test_without_the_scaler_a_rotated_head_on_rotated_codes_is_the_same(heads, sparse):
    _, net, x = heads
    live = sparse.any(1)
    dense = method.turned(sparse, np.random.default_rng(4))
    q = dense @ np.linalg.pinv(sparse)
    assert live.all() and q @ q.T == pytest.approx(np.eye(8), abs=1e-9)
    u, one = net.head.weight.detach(), torch.ones(8, dtype=torch.float64)
    pair = [method.Projected(torch.from_numpy(r), net.mean, one, nn.Linear(8, 10).double()) for r in (sparse, dense)]
    with torch.no_grad():
        pair[0].head.weight.copy_(u)
        pair[1].head.weight.copy_(u @ torch.from_numpy(q).T)
        pair[1].head.bias.copy_(pair[0].head.bias)
        assert torch.allclose(pair[0](x), pair[1](x), atol=1e-9)
        for norm in ("inf", "2"):
            radii = [method.certificate(one(x), method.pulls(one), norm)[0] for one in pair]
            assert torch.allclose(*radii, rtol=1e-8)


def test_emptied_rows_are_dropped_in_every_arm():
    p = STUDY.make(dict(alpha=5.0, components=30, images=300))
    live = {f: M.front_end(f, True, 1000, p)[0].any(1).sum().item() for f in ("spca", "pca", "spca_dense_rotation")}
    assert live["spca"] == live["pca"] == live["spca_dense_rotation"] < 30
    assert all(torch.isfinite(part).all() for part in M.front_end("spca", True, 1000, p))
    x, nothing = np.random.default_rng(0).standard_normal((20, 9)), np.zeros((4, 9))
    for front in ("pca", "pca_fewer", "random_sparse", "spca_dense_rotation"):  # a penalty that leaves no row at all
        assert not method.projection(front, x, nothing, np.random.default_rng(0)).any()


def test_without_the_scaler_scaled_and_unscaled_arms_are_one():
    p = STUDY.make(dict(steps=20, components=8, images=200, attacked=30, pgd_steps=2, restarts=1, queries=2, scaler=False))
    lab = Experiment(STUDY, p, seeds=[1000], arms=["pca", "pca_unscaled", "spca", "spca_unscaled"]).run()
    weights = {arm: lab.arms[arm].members[0].head[0].weight for arm in lab.arms}
    assert torch.equal(weights["pca"], weights["pca_unscaled"]) and torch.equal(weights["spca"], weights["spca_unscaled"])
    assert not torch.equal(weights["pca"], weights["spca"])


# ---- attacks


def test_log_odds_and_cross_entropy_agree_until_rounding_hides_the_gradient():
    logits, y = 3 * torch.randn(40, 6, generator=generator()), torch.randint(6, (40,), generator=generator(1))
    m = attacks.log_odds(logits, y)
    assert torch.allclose(softplus(m), cross_entropy(logits, y, reduction="none"), atol=1e-5)
    weight = torch.randn(6, 9, generator=generator(2))
    x = torch.rand(40, 9, generator=generator(3), dtype=torch.float64)
    one = attacks.slope(lambda z: attacks.log_odds(z @ weight.double().T, y), x)[1]
    other = attacks.slope(lambda z: cross_entropy(z @ weight.double().T, y, reduction="none"), x)[1]
    assert torch.allclose(attacks.steepest(one, "2"), attacks.steepest(other, "2"), atol=1e-9)
    sure = torch.tensor([[200.0, 0.0]])
    gone = attacks.slope(lambda z: cross_entropy(z, torch.tensor([0]), reduction="none"), sure)[1]
    kept = attacks.slope(lambda z: attacks.log_odds(z, torch.tensor([0])), sure)[1]
    assert not gone.any() and kept.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("name", ["pgd", "fgsm", "momentum"])
def test_gradient_attacks_reach_the_worst_case_of_a_linear_model(name, norm):
    """For two classes the log-odds are linear, so that the worst case is their value plus eps times the dual norm."""
    w = torch.randn(12, generator=generator(5), dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(20, 12, generator=generator(6), dtype=torch.float64)
    attack = {"pgd": attacks.pgd, "fgsm": attacks.fgsm, "momentum": attacks.momentum}[name]
    moved = attack(lambda z: z @ w, x, 0.1, norm)
    worst = x @ w + 0.1 * (w.abs().sum() if norm == "inf" else w.norm())
    assert torch.allclose(moved @ w, worst, atol=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_attacks_stay_in_the_ball_and_in_the_picture(smoke, norm):
    net, (x, y) = smoke.arms["pca"].members[0], smoke.arms["pca"].tasks[0].test
    x, y = x[:40], y[:40]

    def loss(z):
        return attacks.log_odds(net(z), y)

    moved = [attacks.random_start(x, 0.2, generator(), norm), attacks.fgsm(loss, x, 0.2, norm)]
    moved += [attacks.pgd(loss, x, 0.2, norm, 5, moved[0]), attacks.momentum(loss, x, 0.2, norm)]
    moved += [attacks.square(loss, x, 0.2, 30, generator())] if norm == "inf" else []
    for one in moved:
        away = (one - x).abs().amax(1) if norm == "inf" else (one - x).norm(dim=1)
        assert (away <= 0.2 + 1e-6).all() and one.min() >= 0 and one.max() <= 1 and away.max() > 0.1
    assert (loss(moved[2]) >= loss(moved[0])).all()  # the best point on the way, the start included


def test_square_counts_its_queries_keeps_gains_and_nears_the_worst_case():
    w = torch.randn(6, 6, generator=generator(7)).cumsum(0).cumsum(1).flatten()  # smooth, as squares like it
    x, asked = torch.full((5, 36), 0.5), []

    def loss(z):
        asked.append(z)
        return z @ w

    found = attacks.square(loss, x, 0.1, 600, generator(8))
    assert len(asked) == 600
    values = torch.stack([z @ w for z in asked])
    assert torch.equal(found @ w, values.max(0).values)
    assert ((found @ w - x @ w) > 0.9 * 0.1 * w.abs().sum()).all()
    with pytest.raises(ValueError, match="35 numbers"):
        attacks.square(loss, torch.zeros(1, 35), 0.1, 5, generator())
    shares = [attacks.square_share(q, 10_000) for q in (0, 10, 11, 51, 8001)]
    assert shares == pytest.approx([0.8, 0.8, 0.4, 0.2, 0.8 / 512])


def test_no_attack_changes_nothing_and_larger_ones_do_not_help(smoke):
    table = smoke.table[smoke.table.step == smoke.params.steps]
    p = STUDY.make(dict(pgd_steps=20, restarts=2))
    for arm in ("pca", "spca", "raw", "random_sparse"):
        task, net = smoke.arms[arm].tasks[1], smoke.arms[arm].members[1]
        x, y = (part[: smoke.params.attacked] for part in task.test)
        rows = table[(table.arm == arm) & (table.seed == 1001)].set_index("metric").value
        held = [rows[f"held_{f:g}"] for f in M.FACTORS]
        assert held[0] == pytest.approx((net(x).argmax(1) == y).float().mean().item())
        assert all(a >= b for a, b in zip(held, held[1:], strict=False)) and held[-1] < held[0]
        alone = M.endured(net, x, y, [0.02, 0.1], *M.attacker("pgd", "inf", p, generator(1)))
        apart = M.endured(net, x, y, [0.1], *M.attacker("pgd", "inf", p, generator(2)))
        assert abs(alone[1].float().mean() - apart[0].float().mean()) <= 0.02  # nobody was spared who had fallen before


def test_agrees_with_the_adversarial_robustness_toolbox(smoke):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    net, (x, y) = smoke.arms["raw"].members[0], smoke.arms["raw"].tasks[0].test
    x, y = x[:150], y[:150]
    own = M.endured(net, x, y, [0.05], *M.attacker("pgd", "inf", STUDY.make(), generator()))[0]
    theirs = PyTorchClassifier(net, nn.CrossEntropyLoss(), (256,), 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescent(theirs, eps=0.05, eps_step=0.05 / 8, max_iter=40, num_random_init=5, verbose=False)
    moved = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    assert own.float().mean() == pytest.approx((net(moved).argmax(1) == y).float().mean().item(), abs=0.02)


def test_square_does_not_beat_pgd_by_much(smoke):
    found = smoke.table[smoke.table.metric == "square_beats_pgd"]
    assert set(found.arm) == {"pca", "spca", "pca_fewer", "spca_dense_rotation"} and found.value.max() <= 0.1


# ---- the experiment


def test_arms_begin_alike_and_see_the_same_images():
    p = STUDY.make(profile="smoke")
    tasks = {arm: M.ARMS[arm](p).bind(1000) for arm in ("pca", "spca", "spca_dense_rotation", "random_sparse")}
    heads, batches = [], []
    for task in tasks.values():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            heads.append(task.init().head[0].weight)
        batches.append(task.batch(None, generator(9), 0)[0])
    assert all(torch.equal(heads[0], one) for one in heads) and all(torch.equal(batches[0], one) for one in batches)


def test_smoke_records_every_claim_and_draws_every_figure(smoke):
    for claim in STUDY.claims:
        for arm in filter(None, (claim.arm, claim.baseline)):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert rows.step.max() == smoke.arms[arm].total and set(rows.seed) == {1000, 1001}
    last = smoke.table[smoke.table.step == 20].set_index(["arm", "seed", "metric"]).value
    loss = last["pca", 1000, "test_accuracy"] - last["spca", 1000, "test_accuracy"]
    assert last["spca", 1000, "clean_loss_vs_pca"] == pytest.approx(loss, abs=1e-6)
    figures = smoke.figures()
    assert set(figures) == {"attack size", "components", "who keeps what", "certified radii", "one attacked image"}
    for figure in figures.values():
        shown = [np.asarray(t.z if t.type == "heatmap" else t.y, float) for t in figure.data]
        assert shown and all(len(one) and np.isfinite(one).all() for one in shown if one.size) and figure.layout.title.text


def test_the_penalty_is_drawn_and_the_chosen_attack_measured(monkeypatch):
    monkeypatch.setattr(M, "ALPHAS", (1.0, 5.0))
    p = STUDY.make({**STUDY.Params.SMOKE, "alphas": True, "attack": "mim", "norm": "2", "seeds": 4})
    lab = Experiment(STUDY, p, arms=["penalties", "pca"]).run()
    drawn = lab.figures()["the penalty"]
    # of 200 images penalty 5 leaves no component
    (line,) = [t for t in drawn.data if t.mode == "lines" and t.name == "operator norm"]
    assert sorted(line.x) == pytest.approx([1.0, 5.0]) and np.isfinite(line.y).all()
    zeros = lab.table[lab.table.metric == "zero_share"].groupby("step").value.mean()
    assert zeros[1] == 1.0 > zeros[0] and set(lab.table[lab.table.arm == "penalties"].seed) == {0, 1, 2}
    held = lab.table[(lab.table.arm == "pca") & (lab.table.metric == "held_1")].value.mean()
    pgd = lab.table[(lab.table.arm == "pca") & (lab.table.metric == "pgd_accuracy")].value.mean()
    assert held < pgd  # the ball of norm 2 holds the cube, and 1 is the largest of the three sizes
    with pytest.raises(ValueError, match="attack = square and norm = 2"):
        STUDY.make(dict(attack="square", norm="2"))


def test_control_is_clean_accuracy():
    p = STUDY.make({**STUDY.Params.SMOKE, **STUDY.control.set, "seeds": 5})
    lab = Experiment(STUDY, p, seeds=range(1000, 1005), arms=["pca", "spca", "spca_dense_rotation"]).run()
    last = lab.table[lab.table.step == 20].pivot_table(index=["arm", "seed"], columns="metric", values="value")
    assert (last.pgd_accuracy - last.held_0).abs().max() < 1e-6 and len(last) == 15
    assert math.isclose(last.square_beats_pgd.max(), 0.0)


def test_a_drawing_is_read(smoke):
    shares = M.TRY["draw a digit"].answer(smoke.arms["spca"].members[0], smoke.params, np.eye(28).tolist())
    assert set(shares) == {str(c) for c in range(10)} and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="another kind"):
        M.TRY["draw a digit"].answer(None, STUDY.make(dict(data="textures")), np.eye(28).tolist())


# ---- pictures


def test_textures_of_training_and_test_come_from_different_halves():
    one = pictures.load(1000, 300, 16, "textures")
    again = pictures.load(1000, 300, 16, "textures")
    assert torch.equal(one.x, again.x) and one.classes == 2 and len(one.test[1]) == 597
    assert one.x.min() == 0 and one.x.max() == 1 and abs(one.y.float().mean() - 0.5) < 0.01


def test_digits_are_moved_by_at_most_one_pixel():
    page = np.zeros((200, 5, 5), dtype=np.float32)
    page[:, 2, 2] = 1
    moved = np.argwhere(pictures.shifted(page, np.random.default_rng(0)) == 1)[:, 1:]
    assert len(moved) == 200 and {tuple(place) for place in moved} == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    ramp = np.tile(np.arange(8, dtype=np.float32) / 8, (1, 8, 1))
    large = pictures.enlarged(ramp, 16)[0, 0]
    assert large[3] == pytest.approx((0.75 * 1 + 0.25 * 2) / 8)  # bilinear, a quarter of a pixel from its neighbour


def idx_files(folder, images=450, classes=2, packed=False):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(images, 28, 28), dtype=np.uint8), (np.arange(images) % classes).astype(np.uint8)
    parts = {"train-images-idx3-ubyte": (b"\0\0\x08\x03", x), "train-labels-idx1-ubyte": (b"\0\0\x08\x01", y)}
    for name, (magic, values) in parts.items():
        raw = magic + np.array(values.shape, ">u4").tobytes() + values.tobytes()
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(raw) if packed else raw)
    return x, y


@pytest.mark.parametrize("packed", [False, True])
def test_own_idx_files_are_read_and_run(tmp_path, monkeypatch, packed):
    x, y = idx_files(tmp_path, packed=packed)
    images, labels = pictures.own(str(tmp_path))
    assert images.max() == 1 and images[3, 4, 5] == np.float32(x[3, 4, 5] / 255) and (labels == y).all()
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    p = STUDY.make(profile="smoke")
    task = M.Spca(p).bind(0)
    assert task.x.shape == (200, 256) and len(task.test[1]) == 250 and task.classes == 2
    assert len(M.VIEWS["components"](M.Pca(p).bind(0).init(), p).data) == 12


def cut(folder):
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def swap(folder):
    (folder / "train-images-idx3-ubyte").write_bytes((folder / "train-labels-idx1-ubyte").read_bytes())


def relabel(folder, change):
    path = folder / "train-labels-idx1-ubyte"
    raw = path.read_bytes()
    path.write_bytes(raw[:8] + change(np.frombuffer(raw[8:], np.uint8)).astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "announces .450, 28, 28. numbers and holds 352,799"),
        (swap, "begins with 00000801.*00000803"),
        (lambda f: (f / "train-labels-idx1-ubyte").unlink(), "holds no train-labels-idx1-ubyte"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b""), "begins with ;"),
        (lambda f: relabel(f, lambda y: y * 0), "labels are .0.*at least two"),
        (lambda f: relabel(f, lambda y: y * 2), "without a gap"),
        (lambda f: relabel(f, lambda y: np.arange(450) < 199), "label 1 has 199 images"),
        (lambda f: idx_files(f, images=0), "0 images and 0 labels"),
        (lambda f: [idx_files(f, packed=True), (f / "train-images-idx3-ubyte").unlink(),
                    (f / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")], "cannot be unpacked"),
    ],
)  # fmt: skip
def test_own_files_that_do_not_fit_are_refused(tmp_path, change, words):
    idx_files(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        pictures.own(str(tmp_path))


def test_too_few_own_images_of_a_class_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "few.npz", x=rng.integers(256, size=(300, 6, 6, 3), dtype=np.uint8), y=np.arange(300) % 2)
    with pytest.raises(ValueError, match="few.npz.*150 images.*200"):
        pictures.own(str(tmp_path / "few.npz"))
