"""Token-wise sensitivity against brute force, scipy, scikit-image and torch's own layers; equal limits; own files; figures."""

import importlib
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import hadamard
from skimage.filters import gaussian
from skimage.transform import downscale_local_mean
from torch import nn
from torch.nn.functional import cross_entropy

from claimlab.experiment import Experiment
from claimlab.parts.boolean import every_input
from claimlab.study import find
from claimlab.training import Run

STUDY = find("transformer-low-sensitivity")
study = STUDY.module
method, nets, data, bad, drawing = (
    importlib.import_module(f"claimlab.studies.robustness._transformer_low_sensitivity_{part}")
    for part in ("method", "nets", "data", "corruptions", "figures")
)
FORM = nets.Form(9, 4, inputs=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh(kind, form, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nets.build(kind, form).eval()


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- Boolean functions


@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_is_the_sum_of_degree_times_fourier_weight(seed):
    values = torch.randn(64, generator=generator(seed), dtype=torch.float64)
    weights, total = method.by_degree(lambda x: values[((x < 0) * 2 ** torch.arange(6)).sum(1)], 6)
    signs = np.where(values.numpy() > 0, 1, -1)
    coefficients, degree = hadamard(64) @ signs / 64, np.array([bin(a).count("1") for a in range(64)])
    expected = [(coefficients[degree == k] ** 2).sum() for k in range(7)]
    assert np.allclose(weights, expected, atol=1e-12)
    flips = sum(signs[row] != signs[row ^ 2**i] for row in range(64) for i in range(6)) / 64
    assert float(total) == pytest.approx(flips) == pytest.approx(float((weights * torch.arange(7)).sum()))


def test_known_functions_have_their_sensitivity():
    known = {
        7.0: lambda x: x.prod(1),
        1.0: lambda x: x[:, 2],
        0.0: lambda x: x[:, 0] * 0 + 1,
        7 * comb(6, 3) / 2**6: lambda x: x.sum(1),  # a bit of the majority counts where the other six are split
    }
    for expected, f in known.items():
        assert float(method.by_degree(f, 7)[1]) == pytest.approx(expected)
    assert method.by_degree(lambda x: x.prod(1), 7)[0].tolist() == [0] * 7 + [1]


def test_an_untrained_network_is_profiled_on_every_input():
    task = study.Bits(STUDY.make(profile="smoke"), "mlp", 6)
    net = Run(task, [3], device="cpu").members[0]
    weights, total = task.profile(net)
    with torch.no_grad():
        margin = net((every_input(6) < 0).long()).diff(dim=1)[:, 0].numpy()
    above = margin > np.median(margin)
    assert above.sum() == 32 and float(weights[0]) == pytest.approx(0)  # both answers are equally frequent
    flips = np.mean([above[r] != above[r ^ 2**i] for r in range(64) for i in range(6)]) * 6
    assert float(total) == pytest.approx(flips) == pytest.approx(float((weights * torch.arange(7)).sum()))


# ---- token sensitivity


def test_monte_carlo_agrees_with_all_replacements_of_a_vocabulary_of_five():
    table = torch.randn(5, 5, 5, 3, generator=generator(1))
    net = lambda x: table[x[:, 0], x[:, 1], x[:, 2]]  # noqa: E731
    x = torch.cartesian_prod(*[torch.arange(5)] * 3)
    own, exact = table.argmax(-1), []
    for i in range(3):
        turned = [own != own.roll(shift, i) for shift in range(5)]  # every token is replaced by each of the five once
        exact.append(torch.stack(turned).float().mean().item())
    draws = torch.randint(5, (200, *x.shape), generator=generator(2))
    found = method.token_sensitivity(net, x, draws)
    assert found.tolist() == pytest.approx(exact, abs=5 * 0.5 / np.sqrt(200 * 125))
    every = torch.arange(5)[:, None, None].expand(5, *x.shape)  # all replacements instead of draws
    assert method.token_sensitivity(net, x, every).tolist() == pytest.approx(exact, abs=1e-6)


def test_only_one_token_is_changed_at_a_time():
    x, other = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    changed = method.one_changed(x, other)
    assert torch.equal(changed.sum((2, 3)), torch.full((4, 2), 3.0))
    assert torch.equal(changed[:, 0, :, 0], torch.eye(4))


def test_without_a_change_nothing_turns():
    lesson = data.lesson(1000, "digits", 100, 0.0)
    net = fresh("cnn", lesson.form)
    with torch.no_grad():
        assert method.token_sensitivity(net, lesson.x[:25], lesson.others).abs().max() == 0
        moved = data.lesson(1000, "digits", 100, 5.0)
        assert method.token_sensitivity(net, moved.x[:25], moved.others).mean() > 0.01
    scale = (data.lesson(1000, "digits", 100, 0.5).others - lesson.others).std() / (moved.others - lesson.others).std()
    assert float(scale) == pytest.approx(0.1, rel=1e-3)


def test_without_positions_a_permutation_of_tokens_changes_nothing():
    x, others = torch.randn(20, 9, 4, generator=generator()), torch.randn(2, 20, 9, 4, generator=generator(1))
    order = torch.randperm(9, generator=generator(2))
    blind, sighted = fresh("transformer_nopos", FORM).double(), fresh("transformer", FORM).double()
    x, others = x.double(), others.double()
    with torch.no_grad():
        assert torch.allclose(blind(x), blind(x[:, order]), atol=1e-10)
        assert (sighted(x) - sighted(x[:, order])).abs().max() > 1e-2
        flips = method.token_sensitivity(blind, x, others)
        assert torch.equal(method.token_sensitivity(blind, x[:, order], others[:, :, order]), flips[order])


# ---- penalty, match, flatness


def test_penalty_of_a_linear_network_has_its_closed_form():
    """For F(x) = W x and noise N(0, s^2) the mean of ||F(x) - F(x~)||^2 is s^2 ||W||_F^2."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(20000, 6, 2, generator=generator())
    with torch.no_grad():
        clean, moved = method.penalty(net, x, data.disturbed(x, 0.7, 0, generator(1)))
        assert torch.allclose(clean, net(x), atol=1e-6)
    assert float(moved) == pytest.approx(0.49 * float(net[1].weight.detach().square().sum()), rel=0.03)


def test_a_tenth_of_the_words_is_replaced():
    x = torch.zeros(2000, 10, dtype=torch.long)
    assert float((data.disturbed(x, 1.0, 5, generator()) != 0).float().mean()) == pytest.approx(0.08, abs=0.01)  # a fifth by itself
    assert torch.equal(data.disturbed(x, 0.0, 5, generator()), x)


def test_penalty_zero_is_the_plain_transformer():
    small = dict(images=100, strings=200, length=8, steps=10, seeds=2, layers=1)
    pupils = []
    for arm, values in (("transformer", {}), ("transformer_reg", {"penalty": 0.0}), ("transformer_reg", {"penalty": 1.0})):
        run = Run(study.ARMS[arm](STUDY.make({**small, **values})), [1000, 1001], device="cpu")
        run.task.pace = 1.0  # the learning rates of the arms may differ; the method may not
        while run.step < 6:
            run.advance()
        pupils.append(torch.cat([p.detach().flatten() for net in run.members for p in net.pictures.parameters()]))
    assert torch.equal(pupils[0], pupils[1])
    assert (pupils[0] - pupils[2]).abs().max() > 1e-4


def test_the_match_lies_on_the_line_between_its_two_ticks():
    p = STUDY.make(dict(images=200, strings=200, length=8, steps=60, seeds=2, match_accuracy=0.85))
    run = Run(study.Mlp(p), [1000, 1001], device="cpu")
    ticks = list(run)
    for i, net in enumerate(run.members):
        told = [(t.metrics[i]["train_accuracy"], t.metrics[i]["sensitivity"]) for t in ticks if "sensitivity" in t.metrics[i]]
        after = next(k for k, (accuracy, _) in enumerate(told) if accuracy >= 0.85)
        (a, s), (b, t) = told[after - 1], told[after]
        assert a < 0.85 <= b
        assert ticks[-1].metrics[i]["sensitivity_at_match"] == pytest.approx(np.interp(0.85, [a, b], [s, t]), abs=1e-6)
        assert float(net.match) == pytest.approx(ticks[-1].metrics[i]["sensitivity_at_match"])


def test_loss_rise_at_a_minimum_is_half_the_curvature():
    """Mean rise = s^2 / 2 times the sum over weights of (root mean square of the tensor)^2 times the Hessian's diagonal."""
    x, net = torch.randn(60, 3, generator=generator(), dtype=torch.float64), nn.Linear(3, 2).double()
    y = (x[:, 0] + torch.randn(60, generator=generator(1)) > 0).long()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    optimizer.step(lambda: (optimizer.zero_grad(), (loss := cross_entropy(net(x), y)).backward(), loss)[2])
    loss = lambda w, b: cross_entropy(x @ w.T + b, y)  # noqa: E731
    at = (net.weight.detach(), net.bias.detach())
    hessian = torch.autograd.functional.hessian(loss, at)
    curvature = sum(w.square().mean() * hessian[k][k].reshape(w.numel(), -1).diagonal().sum() for k, w in enumerate(at))
    with torch.no_grad():
        rise = method.loss_rise(net, x, y, 0.1, generator(2), draws=1500)
        assert method.loss_rise(net, x, y, 0.0, generator(2)).abs() < 1e-12
    assert float(rise) == pytest.approx(0.005 * float(curvature), rel=0.15)


# ---- networks


def test_a_block_is_torchs_encoder_layer():
    block = nets.Block(8, 2, 12).double()
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).double()
    pairs = {layer.self_attn.in_proj_weight: block.into.weight, layer.self_attn.in_proj_bias: block.into.bias}
    for theirs, ours in ((layer.self_attn.out_proj, block.out), (layer.linear1, block.mlp[0]), (layer.linear2, block.mlp[2])):
        pairs |= {theirs.weight: ours.weight, theirs.bias: ours.bias}
    with torch.no_grad():
        for theirs, ours in pairs.items():
            theirs.copy_(ours)
        h = torch.randn(3, 5, 8, generator=generator(), dtype=torch.float64)
        layer.train()  # its evaluation mode takes a fused path
        assert torch.allclose(block(h), layer(h), atol=1e-12)


@pytest.mark.parametrize("form", [nets.Form(16, 10, inputs=4), nets.Form(49, 10, inputs=16), nets.Form(32, 2, words=data.WORDS)])
def test_architectures_have_similar_sizes(form):
    sizes = [nets.count(fresh(kind, form)) for kind in drawing.KINDS]
    assert max(sizes) / min(sizes) < 1.5


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_go_back_to_their_places(channels):
    x = np.random.default_rng(0).random((5, 8, 8, channels), dtype=np.float32)
    form = nets.Form(16, 2, inputs=4 * channels, channels=channels)
    tokens = data.patches(x, 2)
    assert np.array_equal(tokens[3, 6].reshape(2, 2, channels), x[3, 2:4, 4:6])  # second row, third column
    assert np.array_equal(form.picture(torch.from_numpy(tokens)).numpy(), x.transpose(0, 3, 1, 2))


# ---- data


def test_corruptions_against_scikit_image_and_their_moments():
    rng, x = np.random.default_rng(0), np.random.default_rng(1).random((40, 8, 8, 1))
    for k in bad.SEVERITIES:
        theirs = np.stack([gaussian(one[..., 0], bad.BLUR[k - 1] * 8, mode="nearest") for one in x])
        assert np.allclose(bad.blur(x, k, rng)[..., 0], theirs, atol=1e-6)
        assert np.allclose(bad.contrast(x, k, rng).std((1, 2, 3)), bad.CONTRAST[k - 1] * x.std((1, 2, 3)))
        grey = np.full((200, 16, 16, 1), 0.5)
        assert bad.shot_noise(grey, k, rng).std() < np.sqrt(0.5 / bad.COUNTS[k - 1])  # clipping takes a little away
        middle = np.quantile(bad.gaussian_noise(grey, k, rng), [0.25, 0.75])  # where nothing is clipped
        assert middle == pytest.approx(stats.norm.ppf([0.25, 0.75], 0.5, bad.NOISE[k - 1]), abs=0.01)
        for change in bad.CORRUPTIONS.values():
            assert change(x, k, rng).min() >= 0 and change(x, k, rng).max() <= 1
            assert not np.allclose(change(x, k, rng), x, atol=0.01)
    dim = np.full((200, 16, 16, 1), 0.25)
    assert bad.shot_noise(dim, 1, rng).var() == pytest.approx(0.025, rel=0.05)  # a Poisson count's variance is its mean
    halves = np.stack([downscale_local_mean(one[..., 0], (2, 2)) for one in x]).repeat(2, 1).repeat(2, 2)
    assert np.allclose(bad.pixelation(x, 3, rng)[..., 0], halves)


def test_strings_hold_what_they_promise():
    row, y = (part.numpy() for part in data.strings(6000, 32, 3, 0.8, np.random.default_rng(0)))
    positive, negative = (np.isin(row, group).sum(1) for group in (data.POSITIVE, data.NEGATIVE))
    lead = np.where(y == 1, positive - negative, negative - positive)
    assert (positive + negative == 9).all() and lead.min() == 3 and y.mean() == pytest.approx(0.5, abs=0.03)
    law = stats.binom.pmf(np.arange(6, 10), 9, 0.5)
    counted = [(lead == 2 * agree - 9).sum() for agree in range(6, 10)]
    assert stats.chisquare(counted, law / law.sum() * 6000).pvalue > 1e-3
    sparse = np.isin(row, list(data.SPARSE.values()))
    assert (sparse.sum(1) == 1).all() and stats.chisquare(sparse.sum(0)).pvalue > 1e-3  # any place is as likely
    agrees = (row == np.where(y == 1, data.SPARSE[1], data.SPARSE[-1])[:, None]).any(1)
    assert agrees.mean() == pytest.approx(0.8, abs=0.03)


def test_contradictory_strings_contradict_and_plain_ones_have_no_sparse_word():
    _, (against, y), (plain, _) = data.reading(1000, 200, 16, 1, 1.0)
    told = (against == data.SPARSE[1]).any(1)
    assert torch.equal(told.long(), 1 - y)
    assert not torch.isin(plain, torch.tensor(list(data.SPARSE.values()))).any()


@pytest.mark.parametrize(("content", "reason"), [
    ("words,label\na b,1\n", "no column text"), ("text,label\n" + "a b,1\n" * 30, "1: 30"), ("text,label\n", "none"),
    ("text,label\n" + "a b,1\nc,0\n" * 20 + ",1\n", "text of row 42 is empty"),
    ("text,label\n" + "a b,1\nc,0\n" * 20 + "d,\n", "label of row 42 is empty"),
    (b"text,label\n\xff\xfe\xfa,1\n", "UTF-8"), ("", "cannot be read"),
])  # fmt: skip
def test_texts_that_do_not_fit_are_refused(tmp_path, content, reason):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=reason):
        data.texts(str(path))


def test_pictures_must_be_cut_into_patches(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.integers(256, size=(40, 10, 10, 3), dtype=np.uint8), y=np.arange(40) % 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        data.pictures("digits", str(tmp_path / "mine.npz"))


def test_own_texts_are_learned_from(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name, longest in (("long", 90), ("short", 12)):
        words = [" ".join(rng.choice(["one", "two", "three"], rng.integers(3, longest))) for _ in range(60)]
        rows = [f"{'good' if k % 2 else 'bad'} {told},{k % 2}" for k, told in enumerate(words)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows))
    lesson = data.lesson(0, "digits", 100, 1.0, str(tmp_path / "long.csv"))
    assert lesson.x.shape == (45, data.CAP) and lesson.form.words == 7  # five words, the filler and the rare one
    assert data.texts(str(tmp_path / "long.csv"))[2] == "0 50%; 1 50%"
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "short.csv"))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[0, 1], arms=["transformer_reg", "cnn"]).run()
    assert np.isfinite(lab.table[lab.table.metric == "corrupted_accuracy"].value).all()
    flips = np.mean([net.flips.numpy() for net in lab.arms["cnn"].members], 0)
    assert np.allclose(drawing.maps(lab).data[list(lab.arms).index("cnn")].z, flips[None])  # in one row, as the words stand


@pytest.mark.parametrize("values", [dict(majority_margin=5, length=8), dict(images=1500)])
def test_contradictory_knobs_are_refused(values):
    with pytest.raises(ValueError, match="do not go together"):
        STUDY.make(values)


# ---- the experiment at smoke


def test_a_network_that_never_gets_there_has_no_match(smoke):
    rows = smoke.table[smoke.table.metric == "sensitivity_at_match"]
    reached = smoke.table[smoke.table.metric == "train_accuracy"].groupby(["arm", "seed"]).value.max() >= 0.95
    assert not reached.all()
    for one in rows.itertuples():
        assert np.isfinite(one.value) == reached[one.arm, one.seed]


def test_corrupted_accuracy_is_the_mean_of_fifteen(smoke):
    table = smoke.table.pivot_table(index=["arm", "seed"], columns="metric", values="value", aggfunc="last")
    names = [f"{kind} {k}" for kind in bad.CORRUPTIONS for k in bad.SEVERITIES]
    assert np.allclose(table[names].mean(axis=1), table["corrupted_accuracy"], atol=1e-6)
    calm = [name for name in names if "noise" not in name]
    assert len(calm) == 9 and np.allclose(table[calm].mean(axis=1), table["calm_accuracy"], atol=1e-6)


def test_figures_show_the_table(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"sensitivity path", "robustness", "frequent share", "flip maps", "random networks"}
    for arm, run in smoke.arms.items():
        dots = next(t for t in drawn["robustness"].data if t.name == arm)
        rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.step == run.total)]
        assert list(dots.y) == pytest.approx(rows[rows.metric == "corrupted_accuracy"].value.tolist())
    shown = [trace.z for trace in drawn["flip maps"].data]
    ends = [np.mean([net.flips.numpy() for net in run.members], 0) for run in smoke.arms.values()]
    assert len(shown) == len(ends) and all(np.allclose(z.ravel(), flips) for z, flips in zip(shown, ends, strict=True))
    bars = [trace for trace in drawn["random networks"].data if trace.type == "bar"]
    assert len(bars) == 4 and all(sum(bar.y) == pytest.approx(1) for bar in bars)  # Parseval
    reference = drawn["random networks"].data[-1].y
    assert list(reference) == pytest.approx(stats.binom.pmf(np.arange(11), 10, 0.5))


def test_views_show_the_network_that_they_are_given(smoke):
    net = smoke.arms["transformer"].members[0].eval()
    assert np.allclose(study.VIEWS["flip-rate map"](net, smoke.params).data[0].z.ravel(), net.flips)
    attention = study.VIEWS["attention of the decision"](net, smoke.params).data[1].z
    assert float(np.sum(attention)) == pytest.approx(1, abs=1e-5)
    vote = study.VIEWS["a contradictory string"](net, smoke.params)
    assert sum(len(trace.x) for trace in vote.data) == smoke.params.length and len(vote.data[0].x) == 1
    assert "no attention" in study.VIEWS["attention of the decision"](smoke.arms["mlp"].members[0], smoke.params).layout.title.text


def test_in_the_control_no_patch_moves_by_more_than_a_twentieth():
    p = replace(STUDY.make(profile="smoke"), **STUDY.control.set)
    task = study.Classifier(p).bind(1000)
    moved = task.others - task.train[0][: task.others.shape[1]]
    assert float(moved.std()) == pytest.approx(0.05, rel=0.05)
    told = torch.isin(task.read[0], torch.tensor(data.SPARSE[1])).any(1).long()
    assert float((told == task.read[1]).float().mean()) == pytest.approx(0.5, abs=0.12)
