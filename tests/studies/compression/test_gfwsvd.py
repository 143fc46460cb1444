"""GFWSVD: the explicit Fisher and numpy's SVD, closed forms of every cut, autograd one sequence at a time, own files."""

import copy
import json
import struct

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn.functional import cross_entropy

from claimlab import study
from claimlab.data.text import repeated, topics
from claimlab.experiment import Experiment
from claimlab.models.transformer import CharTransformer
from claimlab.studies.compression import _gfwsvd_data as files
from claimlab.studies.compression import _gfwsvd_method as rule
from claimlab.studies.compression import _gfwsvd_net as nets
from claimlab.training import Run

STUDY = study.find("gfwsvd")
M = STUDY.module
N, OUT, IN = 30, 8, 6


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def positive(k, seed):
    root = drawn(k, k, seed=seed)
    return root @ root.T + 0.1 * torch.eye(k, dtype=torch.float64)


@pytest.fixture(scope="module")
def gradients():
    """30 gradients of an 8 x 6 map, with rows and columns of unequal size that go together."""
    return drawn(OUT, OUT, seed=1) @ drawn(N, OUT, IN) @ drawn(IN, IN, seed=2)


@pytest.fixture(scope="module")
def fisher(gradients):
    """The explicit F [48, 48], vec stacking columns."""
    rows = np.stack([g.numpy().flatten(order="F") for g in gradients])
    return rows.T @ rows / N


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CharTransformer(20, 16, 2, context=12)


# ---- the Kronecker fit


def test_power_iteration_finds_numpys_first_singular_pair_of_the_rearranged_fisher(gradients, fisher):
    a, b, errors = rule.kronecker_fit(gradients, 60, still=0.0)
    blocks = fisher.reshape(IN, OUT, IN, OUT)  # [j, i, l, k]: entry (i, j) of one gradient times (k, l) of the other
    rearranged = blocks.transpose(0, 2, 1, 3).reshape(IN * IN, OUT * OUT)
    u, s, v = np.linalg.svd(rearranged)
    best = s[0] * np.kron(u[:, 0].reshape(IN, IN), v[0].reshape(OUT, OUT))
    c = np.vdot(fisher, np.kron(a, b))
    assert np.allclose(c * np.kron(a, b), best, atol=1e-6 * np.abs(best).max())
    assert float(errors[-1]) == pytest.approx(np.sqrt(1 - s[0] ** 2 / (s**2).sum()), abs=1e-6)
    assert (errors.diff() <= 1e-9).all()
    for side in (a, b):
        assert torch.equal(side, side.T) and torch.linalg.eigvalsh(side).min() > -1e-12


def test_error_and_norm_agree_with_the_explicit_fisher(gradients, fisher):
    a, b = positive(IN, 3), positive(OUT, 4)
    product = np.kron(a, b)
    c = np.linalg.lstsq(product.reshape(-1, 1), fisher.flatten(), rcond=None)[0][0]
    wanted = np.linalg.norm(fisher - c * product) / np.linalg.norm(fisher)
    assert float(rule.fit_error(gradients, a, b)) == pytest.approx(wanted, rel=1e-9)
    assert float(rule.fisher_square(gradients)) == pytest.approx(np.linalg.norm(fisher) ** 2, rel=1e-9)


def test_no_other_product_fits_better(gradients):
    a, b, errors = rule.kronecker_fit(gradients, 60, still=0.0)
    for k in range(40):
        near = [side + 10.0 ** -(k % 4) * side.abs().max() * positive(len(side), 5 + 2 * k + i) for i, side in enumerate((a, b))]
        assert float(rule.fit_error(gradients, *near)) > float(errors[-1])


def test_a_true_kronecker_product_is_found_whole():
    """Gradients L_B E_k L_A^T over a full basis E_k have the Fisher A (x) B exactly."""
    a, b = positive(IN, 6), positive(OUT, 7)
    basis = torch.eye(OUT * IN, dtype=torch.float64).view(-1, OUT, IN)
    g = torch.linalg.cholesky(b) @ basis @ torch.linalg.cholesky(a).T
    found_a, found_b, errors = rule.kronecker_fit(g, 5)
    assert torch.allclose(found_a, a / a.norm(), atol=1e-10) and torch.allclose(found_b, b / b.norm(), atol=1e-10)
    assert float(errors[-1]) < 1e-6


def test_rounds_that_come_to_rest_early_give_the_same_pair_in_single_precision(gradients):
    exact, short = rule.kronecker_fit(gradients, 60, still=0.0), rule.kronecker_fit(gradients.float(), 20)
    assert all(torch.allclose(x, y.double(), atol=1e-3) for x, y in zip(exact[:2], short[:2], strict=True))
    assert len(short[2]) == 20 and float(short[2][-1]) == pytest.approx(float(exact[2][-1]), abs=1e-4)


# ---- the cut


def test_norm_is_the_quadratic_form_with_columns_stacked(gradients, fisher):
    a, b, d = positive(IN, 8), positive(OUT, 9), drawn(OUT, IN, seed=10)
    vec = d.numpy().flatten(order="F")
    found = rule.cut(drawn(OUT, IN, seed=11), a, b, 0.0)
    assert float(rule.own_loss(d, found.roots)) == pytest.approx(vec @ np.kron(a, b) @ vec, rel=1e-9)
    assert float(rule.predicted(gradients, d)) == pytest.approx(0.5 * vec @ fisher @ vec, rel=1e-9)


def test_identity_is_torchs_truncated_svd():
    w = drawn(OUT, IN, seed=12)
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    found = rule.cut(w, torch.eye(IN), torch.eye(OUT), 1e-3)
    assert torch.allclose(found.at(3), u[:, :3] * s[:3] @ v[:3], atol=1e-9)
    heavy = rule.cut(w, positive(IN, 13), positive(OUT, 14), 1e9)  # nothing but the ridge is left
    assert torch.allclose(heavy.at(3), found.at(3), atol=1e-6)


def test_inputs_alone_are_the_cut_that_keeps_the_outputs_best():
    """SVD-LLM minimises E||(W - W^) x||^2; by reduced-rank regression that projects W on eigenvectors of W E[x x^T] W^T."""
    w, x = drawn(OUT, IN, seed=15), drawn(200, IN, seed=16) @ drawn(IN, IN, seed=17)
    second = x.T @ x / len(x)
    ridge = second + 1e-3 * second.trace() / IN * torch.eye(IN, dtype=torch.float64)
    _, vectors = torch.linalg.eigh(w @ ridge @ w.T)
    top = vectors[:, -2:]
    assert torch.allclose(rule.cut(w, second, torch.eye(OUT), 1e-3).at(2), top @ top.T @ w, atol=1e-8)


def test_symmetric_roots_give_the_same_cut_as_cholesky():
    w, a, b = drawn(OUT, IN, seed=18), positive(IN, 19), positive(OUT, 20)
    half_a, half_b = (scipy.linalg.sqrtm(side.numpy()) for side in (a, b))
    u, s, v = np.linalg.svd(half_b @ w.numpy() @ half_a, full_matrices=False)
    wanted = np.linalg.inv(half_b) @ (u[:, :2] * s[:2] @ v[:2]) @ np.linalg.inv(half_a)
    found = rule.cut(w, a, b, 0.0)
    assert np.allclose(found.at(2), wanted, atol=1e-8) and np.allclose(found.values, s)
    assert float(rule.gap(w, found, 2)) < 1e-10


def test_random_search_never_beats_the_cut_in_its_own_norm():
    w, a, b = drawn(OUT, IN, seed=21), positive(IN, 22), positive(OUT, 23)
    found = rule.cut(w, a, b, 1e-3)
    least = float(rule.own_loss(w - found.at(2), found.roots))
    for k in range(200):
        step = 10.0 ** -(k % 5)
        left = found.left[:, :2] + step * drawn(OUT, 2, seed=100 + k)
        right = found.right[:2] + step * drawn(2, IN, seed=400 + k)
        assert float(rule.own_loss(w - left @ right, found.roots)) > least


@pytest.mark.parametrize("a, b", [(None, None), (24, None), (None, 25), (26, 27)])
def test_full_rank_returns_the_matrix(a, b):
    w = drawn(OUT, IN, seed=28)
    sides = [torch.eye(k) if seed is None else positive(k, seed) for k, seed in ((IN, a), (OUT, b))]
    found = rule.cut(w, *sides, 1e-3)
    assert torch.allclose(found.left.float() @ found.right.float(), w.float(), atol=1e-5)


@pytest.mark.parametrize("n, m", [(64, 64), (256, 64), (32, 128), (7, 5)])
def test_rank_is_the_largest_that_the_ratio_allows(n, m):
    for ratio in (0.05, 0.2, 0.4, 0.6, 0.9):
        allowed = [r for r in range(1, min(n, m) + 1) if r * (n + m) <= (1 - ratio) * n * m + 1e-9]
        assert rule.rank(ratio, n, m) == max(allowed, default=1)


# ---- what is measured on a network


def test_gradients_are_those_of_one_sequence_at_a_time(net):
    rows = torch.randint(20, (5, 13), generator=rng(29))
    found = nets.gradients(net, rows)
    for k, row in enumerate(rows):
        weights = [net.hidden[i][name] for i, name in found]
        single = torch.autograd.grad(cross_entropy(net(row[None, :-1])[0], row[1:]), weights)
        assert all(torch.allclose(g[k], one, atol=1e-6) for g, one in zip(found.values(), single, strict=True))


def test_a_batch_of_tokens_is_the_mean_of_eight_sequences(net):
    rows = torch.randint(20, (16, 13), generator=rng(30))
    fine, coarse = nets.gradients(net, rows), nets.gradients(net, rows, "token_batch")
    for key, g in coarse.items():
        assert len(g) == 2 and torch.allclose(g[1], fine[key][8:].mean(0), atol=1e-7)


def test_moments_are_those_of_inputs_and_output_slopes(net):
    """Inputs of the first block's q by hand; output slopes of the last block's down from a hook on the norm that reads them."""
    rows, caught = torch.randint(20, (40, 13), generator=rng(31)), []
    found = nets.moments(net, rows)
    x = net.norms[0](net.letter[rows[:, :-1]] + net.place).detach().flatten(0, 1)
    inputs, _, activity = found[0, "q"]
    assert torch.allclose(inputs, (x.T @ x / len(x)).double(), atol=1e-5) and torch.allclose(activity, x.abs().mean(0).double(), atol=1e-5)
    handle = net.norms[-1].register_forward_pre_hook(lambda _, given: (given[0].retain_grad(), caught.append(given[0]))[0])
    cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    g = caught[0].grad.flatten(0, 1)
    assert torch.allclose(found[1, "down"][1], (g.T @ g / len(g)).double(), atol=1e-6)


def test_report_holds_the_fisher_summed_over_one_index(smoke):
    trained, p = smoke.arms["uncut"].members[0], smoke.params
    g = nets.gradients(trained.net, M.calibration(p.calibration))[0, "up"]
    diagonal = g.flatten(1).square().mean(0).view(g.shape[1:]).double()
    assert torch.allclose(trained.report.get((0, "up"), "columns"), diagonal.sum(0), rtol=1e-4)
    assert torch.allclose(trained.report.get((0, "up"), "rows"), diagonal.sum(1), rtol=1e-4)


# ---- the arms


def value(lab, arm, metric, seed=1000):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric) & (lab.table.seed == seed)]
    return float(rows.sort_values("step").value.iloc[-1])


def test_a_cut_network_is_the_transformer_with_its_products_and_its_loss_is_the_one_in_the_table(smoke):
    trained, cut = smoke.arms["uncut"].members[0], smoke.arms["gfwsvd"].members[0]
    for ratio, metric in ((0.4, "loss_increase"), (0.6, "loss_increase_60")):
        whole = copy.deepcopy(trained.net)
        with torch.no_grad():
            for i, name in trained.report.maps:
                left, right = cut.factors((i, name), ratio)
                n, m = whole.hidden[i][name].shape
                assert left.numel() + right.numel() <= (1 - ratio) * n * m
                whole.hidden[i][name].copy_(left @ right)
            rows = M.held_out()
            x = rows[:7, :-1]
            assert torch.allclose(cut(x, ratio=ratio), whole(x), atol=1e-5)
            losses = [cross_entropy(one(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()) for one in (whole, trained.net)]
        assert value(smoke, "gfwsvd", metric) == pytest.approx(float(losses[0] - losses[1]), abs=1e-5)


def test_with_identities_for_factors_the_method_is_plain_svd(smoke):
    start = copy.deepcopy(smoke.arms["uncut"].members[0])
    for key in start.report.maps:
        for kind in "ab":
            matrix = start.report.get(key, kind)
            matrix.copy_(torch.eye(len(matrix)))
    p = smoke.params
    same, plain = M.Gfwsvd(p).begin(start), M.Svd(p).begin(start)
    assert all(torch.equal(x, y) for x, y in zip(same.parameters(), plain.parameters(), strict=True))
    other = smoke.arms["gfwsvd"].members[0]
    assert not all(torch.equal(x, y) for x, y in zip(other.parameters(), plain.parameters(), strict=True))


def test_factors_in_random_order_keep_their_eigenvalues_and_lose_what_they_knew(smoke):
    trained = smoke.arms["uncut"].members[0]
    arms = {name: M.ARMS[name](STUDY.make(dict(shuffled=True), profile="smoke")).bind(1000) for name in ("gfwsvd", "gfwsvd_diag")}
    found, again = arms["gfwsvd"].norms(trained.report)[0], arms["gfwsvd"].norms(trained.report)[0]
    for key, pair in found.items():
        for one, same, kind in zip(pair, again[key], "ab", strict=True):
            fitted = trained.report.get(key, kind)
            assert torch.equal(one, same) and not torch.equal(one, fitted)
            assert np.allclose(np.linalg.eigvalsh(one.numpy()), np.linalg.eigvalsh(fitted.numpy()), atol=1e-9)
            assert sorted(one.diagonal().tolist()) == sorted(fitted.diagonal().tolist())
    diagonal = arms["gfwsvd_diag"].norms(trained.report)[0]
    assert all(torch.equal(diagonal[key][0], found[key][0].diagonal().diag()) for key in found)
    arms["gfwsvd"].p = STUDY.make(profile="smoke")
    assert all(torch.equal(pair[0], trained.report.get(key, "a")) for key, pair in arms["gfwsvd"].norms(trained.report)[0].items())


def test_the_diagonal_fisher_takes_its_better_orientation(smoke):
    start, task = smoke.arms["uncut"].members[0], M.Fwsvd(smoke.params)
    with torch.no_grad():
        losses = [float(nets.loss_on(task.built(start, pairs), M.calibration(128))) for pairs in task.norms(start.report)]
        taken = float(nets.loss_on(smoke.arms["fwsvd"].members[0], M.calibration(128)))
    assert losses[0] != losses[1] and taken == pytest.approx(min(losses), abs=1e-6)


def test_theorems_hold_at_smoke(smoke):
    for seed in (1000, 1001):
        assert value(smoke, "gfwsvd", "fisher_fit_error", seed) < value(smoke, "kfac_svd", "fisher_fit_error", seed)
        assert value(smoke, "gfwsvd", "optimality_gap", seed) < 1e-9


def test_figures_and_views_hold_numbers(smoke):
    drawn_figures = smoke.figures()
    assert set(drawn_figures) == {"loss and ratio", "norms", "convergence", "predicted and measured"}
    points = [t for t in drawn_figures["predicted and measured"].data if t.mode == "markers"]
    assert len(points) == 2 * 7 and all(len(t.x) == 6 and min(t.x) > 0 and min(t.y) > 0 for t in points)
    lines = {t.name: t.y for t in drawn_figures["loss and ratio"].data if t.showlegend is None}
    assert lines["svd"][1] == pytest.approx(np.mean([value(smoke, "svd", "loss_increase", s) for s in (1000, 1001)]))
    net = smoke.arms["gfwsvd"].members[0]
    shares = M.VIEWS["singular values"](net, smoke.params).data[0].y
    assert sum(shares) == pytest.approx(1.0) and (np.diff(shares) <= 0).all()
    losses = M.VIEWS["loss against share removed"](net, smoke.params).data[0].y
    assert losses[0] + value(smoke, "gfwsvd", "loss_increase_20") == pytest.approx(losses[1], abs=1e-6)


# ---- text and models of one's own


def test_calibration_and_held_out_text_share_no_passage():
    text = topics()
    first, second = round(0.9 * len(text)), round(0.95 * len(text))
    assert repeated(text[first:second], text[second:], files.PASSAGE) == 0
    assert repeated(text[:1000], "-" + text[500:900], files.PASSAGE) == 201  # passages of 200 in 400 shared characters


def letters(count, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("abcdefgh "), count))


@pytest.mark.parametrize("content, wrong", [
    (b"too short", "9 bytes"), (b"\xff\xfe" * 40_000, "not UTF-8"), (b"a" * 60_000, "distinct characters"),
    ((letters(57_000) + 2 * letters(3000, 1)).encode(), "both in the calibration part"),
])  # fmt: skip
def test_a_text_that_does_not_serve_is_refused(tmp_path, content, wrong):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match=wrong) as refusal:
        files.corpus(str(tmp_path / "mine.txt"))
    assert "mine.txt" in str(refusal.value)


def tensors_as_file(tensors, dtype="F32"):
    """The .safetensors format, from its description."""
    header, at = {"__metadata__": {"made": "here"}}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(t.numpy().astype("<f4").tobytes() for t in tensors.values())


def folder(tmp_path, tensors=None, dtype="F32", **config):
    (tmp_path / "text.txt").write_text(letters(60_000))
    made = {"letters": "abcdefgh ", "width": 16, "layers": 1, "heads": 2} | config
    (tmp_path / "config.json").write_text(json.dumps(made))
    if tensors is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            tensors = CharTransformer(9, 16, 1, 2).state_dict()
    (tmp_path / "model.safetensors").write_bytes(tensors_as_file(tensors, dtype))
    return tensors


def test_a_model_of_ones_own_is_cut_untrained(tmp_path, monkeypatch):
    tensors = folder(tmp_path)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    p = STUDY.make(dict(steps=20), profile="smoke")
    run = Run(M.Uncut(p), [0, 1], 2)
    run.advance()
    assert all(torch.equal(run.members[1].net.state_dict()[name], tensor) for name, tensor in tensors.items())
    cut = M.Gfwsvd(p).begin(run.members[0])
    assert len(cut.maps) == 6 and torch.isfinite(nets.loss_on(cut, M.held_out(20)))


@pytest.mark.parametrize("change, wrong", [
    (dict(width=18, heads=4), "multiple of heads"), (dict(layers="two"), "layers is missing or is no int"),
    (dict(letters="aab"), "every character once"), (dict(letters="abcdefgh"), "does not know, such as \\[' '\\]"),
    (dict(dtype="BF16"), "only F32"), (dict(layers=2), "lacks hidden.1"), (dict(width=32), "config.json makes it"),
    (dict(tensors={"head": torch.zeros(9, 16)}), "lacks hidden"),
])  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(tmp_path, monkeypatch, change, wrong):
    folder(tmp_path, **change)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=wrong):
        M.Uncut(STUDY.make(profile="smoke")).init()


def test_broken_numbers_are_refused(tmp_path, monkeypatch):
    tensors = folder(tmp_path)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    folder(tmp_path, tensors | {"head": torch.full((9, 16), torch.nan)})
    with pytest.raises(ValueError, match="head holds values that are not finite"):
        M.Uncut(STUDY.make(profile="smoke")).init()
    (tmp_path / "model.safetensors").write_bytes(b"no header at all")
    with pytest.raises(ValueError, match="no readable .safetensors"):
        M.Uncut(STUDY.make(profile="smoke")).init()


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        STUDY.make(dict(width=30))
