"""GCAV against scikit-learn, captum, scipy, finite differences, closed forms of linear networks, and cases worked out by hand."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from captum.concept import TCAV, Concept
from captum.concept._utils.classifier import Classifier
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from claimlab import contract, study, views
from claimlab.experiment import Experiment
from claimlab.studies.attribution import _gcav_arms as arms
from claimlab.studies.attribution import _gcav_data as source
from claimlab.studies.attribution import _gcav_held as held
from claimlab.studies.attribution import _gcav_method as method
from claimlab.studies.attribution import gcav as own

torch.set_num_threads(1)


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("gcav"), smoke()).run()


def random_net(colours=3, classes=4, layers=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = source.network(layers, colours, classes)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 1.5)
    return net.eval()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def last(lab, metric):
    rows = lab.table[lab.table["metric"] == metric]
    return rows.groupby(["arm", "seed"])["value"].last()


# ---- concept vectors and their scores


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_newton_finds_the_logistic_regressions_of_scikit_learn(penalty):
    x = normal(2, 40, 70, dtype=torch.float64)
    y = torch.arange(40) < 15
    x[:, y] += 0.5
    w, b = method.logistic(x, y, penalty)
    for k in range(2):
        theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(x[k].numpy(), y.numpy())
        assert np.allclose(w[k].numpy(), theirs.coef_[0], atol=1e-5)
        assert b[k].item() == pytest.approx(theirs.intercept_[0], rel=1e-4)


def test_the_directional_derivative_is_the_finite_difference_of_the_logit_along_the_lifted_vector():
    net, x = random_net().double(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = source.tapped_layers(net, 3)
    slope = method.slopes(net, x, 2, names)
    for k, name in enumerate(names):
        at = list(dict(net.named_children())).index(name) + 1
        a = net[:at](x).detach().requires_grad_()
        pooled = method.pool(a)
        v = normal(pooled.shape[1], seed=k, dtype=torch.float64)
        lifted = torch.autograd.grad(pooled, a, v.expand_as(pooled))[0]  # P^T v
        step = 1e-6
        found = (net[at:](a + step * lifted) - net[at:](a - step * lifted))[:, 2] / (2 * step)
        assert torch.allclose(slope[:, k, : len(v)] @ v, found, rtol=1e-3, atol=1e-9)
        assert found.abs().min() > 1e-5


def test_in_a_linear_network_a_score_is_0_or_1_as_the_weights_say():
    first, second = normal(5, 12), normal(4, 5, seed=1)
    net = nn.Sequential(OrderedDict(flat=nn.Flatten(), first=nn.Linear(12, 5), second=nn.Linear(5, 4)))
    net.first.weight.data, net.second.weight.data = first, second
    images, v = torch.rand(9, 3, 2, 2), normal(6, 1, 1, 5, seed=2)
    for target in range(4):
        found = method.score(method.slopes(net, images, target, ["first"])[None], v[None])[0, :, 0, 0]
        assert found.tolist() == [float(second[target] @ one > 0) for one in v[:, 0, 0]]
    assert 0 < np.mean([(second[t] @ v[:, 0, 0].T > 0).float().mean() for t in range(4)]) < 1


class Given(Classifier):
    """Hands out vectors made elsewhere, layer after layer."""

    def __init__(self, vectors):
        self.vectors = iter(vectors)

    def train_and_eval(self, dataloader):
        self.now = next(self.vectors)

    def weights(self):
        return torch.stack([self.now, -self.now])

    def classes(self):
        return [0, 1]


def test_captum_gives_the_same_scores_on_the_same_vectors(tmp_path):
    net, x = random_net(), torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    names = ["block2", "block3", "block4"]
    slope = method.slopes(net, x, 1, names)
    v = method.unit(slope[3] - slope.mean(0))[None, None]  # a direction on which the images disagree
    lifted = []
    for k, a in enumerate(method.tapped(net, x[:1], names)[1]):
        a = a.detach().requires_grad_()
        pooled = method.pool(a)
        lifted.append(torch.autograd.grad(pooled, a, v[0, :, k, : pooled.shape[1]])[0].flatten())
    concepts = [Concept(k, name, [x[:2]]) for k, name in enumerate(("one", "other"))]
    theirs = TCAV(net, names, classifier=Given(lifted), save_path=str(tmp_path)).interpret(x, [concepts], target=1)["0-1"]
    ours = method.score(slope[None], v[None])[0, 0, 0]
    assert [theirs[name]["sign_count"][0].item() for name in names] == pytest.approx(ours.tolist())
    assert 0 < ours.min() < ours.max() < 1


def test_pooling_is_a_mean_over_squares_that_leaves_at_most_256_numbers():
    a = normal(2, 16, 16, 16)
    assert torch.allclose(method.pool(a), F.avg_pool2d(a, 4).flatten(1), atol=1e-6)
    sizes = [method.pool(torch.zeros(1, c, s, s)).shape[1] for c, s in ((8, 32), (16, 8), (32, 8), (300, 4))]
    assert sizes == [128, 256, 128, 300]


def test_significance_is_the_two_sided_t_test_of_scipy():
    scores = torch.rand(3, 5, 10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, 0] += 0.8
    s = scores.numpy()
    theirs = np.array([[stats.ttest_ind(s[k, m], s[k, -1], axis=0).pvalue < 0.05 for m in range(4)] for k in range(3)])
    assert (method.significant(scores) == theirs).all() and theirs[:, 0].all() and not theirs.all()
    assert not method.significant(torch.ones(1, 2, 5, 1)).any()  # two concepts that never vary and agree
    assert method.significant(torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 5, 1)).all()


# ---- the three stages


def test_info_nce_is_cross_entropy_in_both_directions():
    a, b = normal(7, 20), normal(7, 20, seed=1)
    cos = F.cosine_similarity(a[:, None], b[None], dim=2) / 0.3
    theirs = (F.cross_entropy(cos, torch.arange(7)) + F.cross_entropy(cos.T, torch.arange(7))) / 2
    assert method.info_nce(a, b, 0.3).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_straight_through_score_has_the_hard_value_and_the_gradient_of_the_sigmoid():
    slope, v = method.unit(normal(2, 30, 3, 8)), method.unit(normal(2, 4, 2, 3, 8, seed=1))
    ours, soft = v.clone().requires_grad_(), v.clone().requires_grad_()
    found = method.soft_score(slope, ours, 5.0)
    assert torch.allclose(found, method.score(slope, v), atol=1e-6)
    by_hand = torch.einsum("knld,kmrld->knmrl", slope, soft).mul(5).sigmoid().mean(1)
    (found.square().sum() / 2).backward()
    by_hand.backward(found.detach())
    assert torch.allclose(ours.grad, soft.grad, atol=1e-6) and soft.grad.abs().max() > 0


def test_the_fusion_loss_by_hand():
    scores = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]])
    decoded, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert method.fusion_loss(scores, decoded, target, 3.0, 2.0).item() == pytest.approx(3 * 0.125 + 2 * 0.5)


def test_coders_are_two_linear_maps_a_layer_and_the_padding_stays_empty():
    coders = method.Coders([4, 6], 3, hidden=5)
    z = normal(9, 2, 3)
    out = coders.decode(z)
    assert (out[:, 0, 4:] == 0).all() and (out[:, 1] != 0).any(0).all()
    layers = [F.linear(z[:, 1], coders.d1[1].T, coders.d1_bias[1]).relu(), coders.d2[1].T, coders.d2_bias[1]]
    assert torch.allclose(out[:, 1], F.linear(*layers), atol=1e-6)


def test_attention_is_torchs_and_the_nets_of_the_classes_share_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = method.Fusion(3, 4, 8)
    u = normal(5, 2, 4, 8)
    c, weight = fusion.attend(u)
    assert torch.allclose(weight.sum(-1), torch.ones(3, 5, 2), atol=1e-5)
    x = F.layer_norm(u[0, 0], (8,)) + fusion.place[1]
    q, k, v = (x @ fusion.qkv[1] + fusion.qkv_bias[1]).chunk(3, -1)
    x = F.layer_norm(x + F.scaled_dot_product_attention(q[None], k[None], v[None])[0], (8,))
    x = F.layer_norm(x + (x @ fusion.inner[1] + fusion.inner_bias[1]).relu() @ fusion.outer[1] + fusion.outer_bias[1], (8,))
    assert torch.allclose(c[1, 0, 0], x.mean(0) @ fusion.last[1] + fusion.last_bias[1, 0], atol=1e-5)
    grads = torch.autograd.grad(c[1].sum(), list(fusion.parameters()))
    assert all((g[[0, 2]] == 0).all() for g in grads) and all(g[1].abs().sum() > 0 for g in grads[:2])


def test_later_stages_leave_the_earlier_ones_as_they_were(lab):
    for first, then in (("codes", "aligned"), ("aligned", "gcav")):
        for before, after in zip(lab.arms[first].members, lab.arms[then].members, strict=True):
            new = after.state_dict()
            assert all(torch.equal(value, new[name]) for name, value in before.state_dict().items())
    assert lab.arms["gcav"].members[0].fusion.place.shape[1] == 3


@pytest.mark.parametrize("spec, before", [(arms.Codes, "cav"), (arms.Aligned, "codes"), (arms.Gcav, "aligned")])
def test_stages_train_the_same_stacked_alone_and_resumed(lab, spec, before):
    assert contract._exact(spec, smoke(), lab.arms[before].members) == []


def test_alignment_brings_layers_together_for_one_concept_and_not_for_others(lab):
    same, other = (last(lab, f"{kind}_concept_after")["aligned"] - last(lab, f"{kind}_concept_before")["aligned"]
                   for kind in ("same", "other"))  # fmt: skip
    assert (same > 0.02).all() and (other < same).all()


def test_a_decoder_that_ignores_its_code_is_found_out(lab):
    import copy

    net = copy.deepcopy(lab.arms["mean_code"].members[0])
    honest = net.measure(smoke())["alike_decoded"]
    torch.nn.init.zeros_(net.coders.d1)
    found = net.measure(smoke())
    assert honest < 0.9 and found["alike_decoded"] == pytest.approx(1, abs=1e-4)
    assert found["alike_own"] < 0.9


# ---- the experiment


def test_without_mixing_and_attack_the_global_scores_are_the_separate_ones(lab):
    control = smoke(**own.Params.CONTROL.set)
    p = smoke(mix=0.0)
    for net in lab.arms["gcav"].members:
        assert torch.equal(net.scores(net.held.vectors, p.mix), net.held.plain)
        assert not torch.equal(net.scores(net.held.vectors, 1.0), net.held.plain)
    still = held.Held(lab.arms["network"].members[0].eval(), 0, control)
    assert torch.equal(still.attacked, still.vectors) and torch.equal(still.moved, still.plain)
    assert not torch.equal(lab.arms["cav"].members[0].held.moved, lab.arms["cav"].members[0].held.plain)


def test_the_attack_stays_in_its_ball_and_turns_the_classifier_down():
    net, x = random_net(), torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    w = normal(300)
    found = held.attack(net, x, "block4", w, 0.03)
    assert (found - x).abs().max() <= 0.03 + 1e-6 and found.min() >= 0 and found.max() <= 1
    before, after = (method.features(net, t, ["block4"])[0][:, 0] @ w[:256] for t in (x, found))
    assert (after < before - 0.1).all()


def test_one_number_for_all_layers_has_no_spread_whatever_the_scores_are(lab):
    for arm in ("mean_score", "best_layer"):
        assert (last(lab, "score_std_over_layers")[arm] == 0).all()
    assert (last(lab, "score_std_over_layers")["cav"] > 0.01).all()
    assert (last(lab, "concept_auroc")["mean_score"] == last(lab, "concept_auroc")["cav"]).all()


def test_the_metrics_by_hand():
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 0] = torch.tensor([[1.0, 0.5], [1.0, 0.5]])  # relevant: mean 0.75, spread 0.25
    scores[0, 1] = torch.tensor([[0.2, 0.2], [0.4, 0.4]])  # not: mean 0.3, no spread
    scores[0, 2] = torch.tensor([[1.0, 0.0], [0.8, 0.0]])  # random pictures: 0.9 and 0
    moved = scores.clone()
    moved[0, 0, 0, 0], moved[0, 2] = 0.2, 0.0  # what becomes of the random concept does not count
    found = arms.measured(scores, moved, np.array([[True, False]]))
    assert found["score_std_over_layers"] == pytest.approx(0.125)
    assert found["relevant_minus_irrelevant"] == pytest.approx(0.45) and found["concept_auroc"] == 1
    assert found["null_score_deviation"] == pytest.approx(0.45)
    assert found["score_shift_under_attack"] == pytest.approx(0.8 / 8)


def test_another_texture_changes_the_shape_s_inside_alone_and_the_last_class_has_every_texture():
    rng = np.random.default_rng(0)
    d = source.draw(4, rng)
    one, other = (source.render(d, np.full(4, t), np.arange(4)) for t in (0, 3))
    for k, name in enumerate(source.SHAPES):
        mask = source._mask(name, source.Drawn(*(t[k : k + 1] for t in d)))[0]
        assert np.array_equal(one[k][:, ~mask], other[k][:, ~mask]) and 0.1 < mask.mean() < 0.7
        assert (one[k][:, mask] != other[k][:, mask]).mean() > 0.5
    y = np.repeat(np.arange(6), 200)
    _, texture, shape = source.pictured(y, rng)
    for k, (form, kind) in enumerate(source.CLASSES.values()):
        assert set(texture[y == k]) == ({kind} if kind is not None else set(range(6)))
        assert (shape[y == k] == form).mean() > 0.6 and (k == 5 or (shape[y == k] != 3).all())
    assert source.relevance(6).sum(1).tolist() == [1, 1, 1, 1, 1, 0]


def test_smoke_gives_every_claim_its_metric_every_figure_its_data_and_every_view_its_picture(lab):
    for claim in own.CLAIMS:
        for arm in filter(None, (claim.arm, claim.baseline)):
            assert len(last(lab, claim.metric)[arm]) == 2
    pictures = lab.figures()
    assert set(pictures) == {"scores", "codes", "attention", "maps", "price", "trade"}
    bars = [t for t in pictures["scores"].data if t.type == "bar"]
    held_scores = lab.arms["cav"].members[0].held.plain
    assert len(bars) == 6 and np.isfinite([t.y for t in bars]).all() and held_scores.shape == (6, 4, 3, 3)
    assert np.allclose(np.array(pictures["attention"].data[0].z).sum(1), 1, atol=1e-4)
    line = next(t for t in pictures["price"].data if t.name == "global vector, mean")
    assert list(line.x) == [0, 1, 3, 10, 20] and np.isfinite(line.y).all()
    assert views.trouble(lab) == []


def test_a_concept_map_of_one_channel_is_that_channel():
    net, x = random_net(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    v = torch.zeros(1, 256)
    v[0, 5 * 16 : 6 * 16] = 2.0  # sixteen places of channel 5 of block 3
    a = method.tapped(net, x, ["block3"])[1][0].detach()
    assert torch.allclose(method.concept_maps(net, x, v, ["block3"])[0], 2 * F.interpolate(a[:, 5:6], size=32, mode="bilinear")[0, 0])


# ---- data of one's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    row = np.arange(16)
    for part, names in (("concepts", ("lines", "dots", "random")), ("classes", ("dark", "lined"))):
        for name in names:
            (top / part / name).mkdir(parents=True)
            for k in range(120 if name == "random" else 30):
                x = rng.integers(0, 120, (16, 16))
                x = x + 100 * (row % 4 < 2) if "line" in name else x + 100 * (rng.random((16, 16)) < 0.1) * (name == "dots")
                Image.fromarray(x.astype(np.uint8)).save(top / part / name / f"{k:03}.png")
    return top


def fresh(folder, monkeypatch):
    for cached in (source.own_folder, source.own_network, source.pictures, source.sets):
        cached.cache_clear()
    monkeypatch.setenv("CLAIMLAB_DATA", str(folder))


def test_a_folder_of_one_s_own_is_studied_without_the_truth_and_with_one_s_own_network(folder, monkeypatch, tmp_path):
    fresh(folder, monkeypatch)
    p = smoke(images=10)
    net = random_net(1, 2)
    torch.save(net.state_dict(), folder / "network.pt")
    (folder / "layers.txt").write_text("block3\nblock6\n")
    try:
        lab = Experiment(study.find("gcav"), p, seeds=[0]).run()
    finally:
        (folder / "network.pt").unlink()
        (folder / "layers.txt").unlink()
    assert torch.equal(lab.arms["network"].members[0].head.weight, net.head.weight)
    assert lab.arms["gcav"].members[0].held.concepts == ("dots", "lines", "random pictures")
    assert lab.arms["cav"].members[0].held.plain.shape == (2, 3, 3, 2)
    assert "concept_auroc" not in set(lab.table["metric"]) and "score_std_over_layers" in set(lab.table["metric"])
    assert all(figure.data for figure in lab.figures().values())
    train, staged = source.pictures(0, 10, 0, str(folder)), source.pictures(0, 10, 0, str(folder)).held
    seen = {t.numpy().tobytes() for t in train.x}
    assert not any(t.numpy().tobytes() in seen for t in staged.flatten(0, 1))  # judged images were not trained on


def spoil(top, path, array):
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


@pytest.mark.parametrize("path, array, message", [
    ("concepts/dots/000.png", np.zeros((20, 16), np.uint8), "one size and one mode"),
    ("concepts/dots/000.png", np.zeros((16, 16, 3), np.uint8), "one size and one mode"),
    ("classes/dark/000.png", None, "must not share any"),
    ("concepts/few/000.png", np.zeros((16, 16), np.uint8), "holds 1 PNG images"),
    ("classes/dark/000.png", b"text", "not a readable PNG"),
])  # fmt: skip
def test_pictures_that_do_not_fit_are_refused(folder, tmp_path, path, array, message):
    import shutil

    top = shutil.copytree(folder, tmp_path / "copy")
    if isinstance(array, bytes):
        (top / path).write_bytes(array)
    elif array is None:
        shutil.copy(top / "concepts/dots/000.png", top / path)
    else:
        spoil(top, path, array)
    with pytest.raises(ValueError, match=message):
        source.own_folder(str(top))


def test_too_few_random_pictures_missing_layers_and_strange_networks_are_refused(folder, tmp_path):
    import shutil

    top = shutil.copytree(folder, tmp_path / "copy")
    for file in sorted((top / "concepts/random").iterdir())[100:]:
        file.unlink()
    with pytest.raises(ValueError, match="holds 100 PNG images: at least 120"):
        source.own_folder(str(top))
    (top / "layers.txt").write_text("block3 mixed5a")
    with pytest.raises(ValueError, match="no layer mixed5a; its layers: block1"):
        source.tapped_layers(random_net(), 3, str(top))
    torch.save(random_net(3, 4).state_dict(), top / "network.pt")
    with pytest.raises(ValueError, match="does not hold weights of the network with 1 colours, 2 classes"):
        source.own_network(str(top), 3, 1, 2)
    torch.save({"run": print}, top / "network.pt")  # a program in a pickle is not opened
    with pytest.raises(ValueError, match="does not hold weights"):
        source.own_network(str(top), 3, 1, 2)
