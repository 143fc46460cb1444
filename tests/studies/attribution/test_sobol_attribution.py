"""Sobol attribution against SALib, captum, closed forms of two test functions, and cases worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from SALib.analyze import sobol as salib
from scipy import stats
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.parts.attribution import enlarge, fast, ranks, rise_map, rise_masks
from claimlab.parts.faithfulness import area, curves, energy_inside, points_inside
from claimlab.studies.attribution import _sobol_attribution_arms as arms
from claimlab.studies.attribution import _sobol_attribution_data as source
from claimlab.studies.attribution import _sobol_attribution_method as method
from claimlab.studies.attribution import _sobol_attribution_text as words
from claimlab.studies.attribution import sobol_attribution as own

torch.set_num_threads(1)
FORMULAS = ("jansen", "homma", "janon", "saltelli")


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("sobol-attribution"), smoke(text=True)).run()


# ---- test functions with indices in closed form


def ishigami(u, a=7.0, b=0.1):
    x = np.pi * (2 * np.asarray(u, dtype=float) - 1)
    return np.sin(x[..., 0]) + a * np.sin(x[..., 1]) ** 2 + b * x[..., 2] ** 4 * np.sin(x[..., 0])


def ishigami_indices(a=7.0, b=0.1):
    one, two, both = (1 + b * np.pi**4 / 5) ** 2 / 2, a**2 / 8, b**2 * np.pi**8 * (1 / 18 - 1 / 50)
    whole = one + two + both
    return np.array([one, two, 0]) / whole, np.array([one + both, two, both]) / whole


WEIGHTS = np.array([0.0, 1.0, 4.5, 9.0, 99.0, 99.0])


def product(u):
    return np.prod((np.abs(4 * np.asarray(u, dtype=float) - 2) + WEIGHTS) / (1 + WEIGHTS), axis=-1)


def product_indices():
    own_part = 1 / (3 * (1 + WEIGHTS) ** 2)
    whole = np.prod(1 + own_part) - 1
    return own_part / whole, own_part * np.prod(1 + own_part) / (1 + own_part) / whole


def answered(f, cells, points=1024, sampler="qmc", seed=0):
    drawn = method.design(points, cells, sampler, np.random.default_rng(seed))
    return drawn, method.answers(torch.from_numpy(f(drawn.rows().numpy()))[None], points)


CASES = [(ishigami, 3, ishigami_indices), (product, 6, product_indices)]


@pytest.mark.parametrize("f, cells, truth", CASES, ids=["ishigami", "g-function"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_total_indices_are_those_of_the_closed_form(f, cells, truth, formula):
    _, found = answered(f, cells)
    assert np.abs(method.total_index(found, formula)[0].numpy() - truth()[1]).max() < 0.03


@pytest.mark.parametrize("f, cells, truth", CASES, ids=["ishigami", "g-function"])
def test_first_order_indices_are_those_of_the_closed_form(f, cells, truth):
    _, found = answered(f, cells)
    assert np.abs(method.first_index(found)[0].numpy() - truth()[0]).max() < 0.03


@pytest.mark.parametrize("f, cells, truth", CASES, ids=["ishigami", "g-function"])
def test_jansen_equals_salib_on_the_same_sample_up_to_the_variance_that_divides(f, cells, truth):
    drawn, found = answered(f, cells, 64)
    problem = {"num_vars": cells, "names": [str(i) for i in range(cells)], "bounds": [[0, 1]] * cells}
    blocks = torch.stack([drawn.a, *drawn.c, drawn.b], dim=1)  # SALib's order: a point's a, its c_1 ... c_d, its b
    y = f(blocks.flatten(0, 1).numpy())
    theirs = salib.analyze(problem, y, calc_second_order=False, num_resamples=2, print_to_console=False)["ST"]
    pooled = np.concatenate([found.a[0].numpy(), found.b[0].numpy()]).var()  # SALib pools a and b, and divides by n
    assert np.allclose(method.total_index(found)[0].numpy() * found.a[0].var().item() / pooled, theirs, rtol=1e-5)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_linear_score_gives_each_cell_its_share_of_the_squared_weights(formula):
    w = np.array([3.0, -2.0, 1.0, 0.0])
    _, found = answered(lambda m: m.astype(float) @ w, 4, 4096)
    for index in (method.total_index(found, formula), method.first_index(found)):
        assert np.allclose(index[0].numpy(), w**2 / (w @ w), atol=0.02)


@settings(max_examples=20, deadline=None)
@given(points=st.sampled_from([2, 4, 16, 64]), seed=st.integers(0, 10**6), sampler=st.sampled_from(["qmc", "latin", "random"]))
def test_inactive_cells_get_exactly_nothing_and_jansen_is_never_negative(points, seed, sampler):
    _, found = answered(lambda m: m[:, 0].astype(float) * m[:, 2] + np.sin(9.0 * m[:, 0]), 5, points, sampler, seed)
    index = method.total_index(found)[0]
    assert index[[1, 3, 4]].tolist() == [0, 0, 0] and (index >= 0).all()


def test_constant_scores_give_zeros_and_no_nan():
    _, found = answered(lambda m: np.full(len(m), 3.7), 4, 16)
    for formula in FORMULAS:
        assert method.total_index(found, formula).abs().max() == 0
    assert method.first_index(found).abs().max() == 0


def test_homma_and_saltelli_go_below_zero_where_points_are_few():
    index = [torch.cat([method.total_index(answered(lambda m: 5 + product(m), 6, 16, seed=s)[1], f) for s in range(20)])
             for f in FORMULAS]  # fmt: skip
    lowest = dict(zip(FORMULAS, (t.min().item() for t in index), strict=True))
    assert lowest["jansen"] >= 0 > max(lowest["homma"], lowest["saltelli"])


# ---- the design


def test_a_design_has_n_d_plus_2_rows_and_c_differs_from_a_in_one_column_that_is_b():
    drawn = method.design(16, 64, "qmc", np.random.default_rng(0))
    assert len(drawn.rows()) == 16 * 66 == 1056
    for i in range(64):
        others = torch.arange(64) != i
        assert torch.equal(drawn.c[i][:, others], drawn.a[:, others]) and torch.equal(drawn.c[i][:, i], drawn.b[:, i])
    sequence = stats.qmc.Sobol(128, scramble=True, rng=np.random.default_rng(0)).random(16)
    assert np.allclose(torch.cat([drawn.a, drawn.b], dim=1).numpy(), sequence, atol=1e-7)


def test_quasi_random_points_fill_each_sixteenth_of_every_axis_once_and_random_ones_do_not():
    def filled(sampler):
        drawn = method.design(16, 20, sampler, np.random.default_rng(3))
        return [len(set(column.tolist())) for column in (torch.cat([drawn.a, drawn.b], dim=1) * 16).floor().T]

    assert filled("qmc") == filled("latin") == [16] * 40
    assert max(filled("random")) < 16


def test_the_beginning_of_the_answers_is_the_smaller_design():
    large, found = answered(product, 6, 64)
    small = method.Design(large.a[:16], large.b[:16], large.c[:, :16])
    again = method.answers(torch.from_numpy(product(small.rows().numpy()))[None], 16)
    assert torch.equal(method.total_index(found.first(16)), method.total_index(again))


# ---- masks, scores, rivals


def random_net(seed=0, colours=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = source.network("small", colours, 4)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                for t, low in ((m.running_mean, -0.5), (m.running_var, 0.3), (m.weight.data, 0.5), (m.bias.data, -0.5)):
                    t.uniform_(low, 1.5)
    return net.eval()


def images(n=3, colours=1, side=16):
    return torch.rand(n, colours, side, side, generator=torch.Generator().manual_seed(5))


def test_masks_blend_image_and_baseline_cell_by_cell():
    x, mu = images(1, 3)[0], torch.full((3, 1, 1), 0.5)
    m = torch.tensor([[1.0, 0.0, 0.25, 1.0]])
    found = method.dim(x, method.spread(m, (16, 16)), mu)[0]
    assert torch.allclose(found[:, :8, :8], x[:, :8, :8]) and (found[:, :8, 8:] == 0.5).all()
    assert torch.allclose(found[:, 8:, :8], 0.25 * x[:, 8:, :8] + 0.75 * 0.5)


def test_the_fast_network_is_the_same_function_and_leaves_the_network_alone():
    net, x = random_net(), images(300)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        assert torch.allclose(fast(net)(x), net(x), atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_asking_many_masks_of_many_images_is_asking_one_by_one(kind):
    net, x, y = random_net(), images(), torch.tensor([0, 3, 1])
    masks = method.spread(torch.rand(7, 9, generator=torch.Generator().manual_seed(0)), (16, 16))
    mu = images(3).flip(3)
    found = method.ask(fast(net), x, y, masks, mu, kind)
    for i in range(3):
        for k in range(7):
            with torch.no_grad():
                out = net((x[i] * masks[k] + (1 - masks[k]) * mu[i])[None])[0]
            wanted = out.softmax(0)[y[i]] if kind == "probability" else out[y[i]]
            assert abs(found[i, k] - wanted) < 1e-5


def test_rise_masks_are_half_open_and_the_map_of_a_linear_score_finds_its_cell():
    rng = np.random.default_rng(0)
    masks = rise_masks(6000, 4, (16, 16), rng)
    assert abs(masks.mean() - 0.5) < 0.01 and masks.min() >= 0 and masks.max() <= 1
    place = torch.zeros(16, 16)
    place[5:8, 9:12] = 1
    f = (masks[:, 0] * place).sum((1, 2))[None]
    found = rise_map(f, masks)[0]
    direct = sum(f[0, k] * masks[k, 0] for k in range(300)) / (300 * 0.5)
    assert torch.allclose(rise_map(f[:, :300], masks[:300])[0], direct, rtol=1e-4)
    assert place[np.unravel_index(int(found.argmax()), (16, 16))] == 1


def test_levels_are_the_binary_van_der_corput_sequence():
    assert np.allclose(method.levels(16), stats.qmc.Halton(1, scramble=False).random(16)[:, 0])


def test_occlusion_of_an_additive_score_is_its_weights():
    w = torch.tensor([0.5, -1.0, 2.0, 0.0])
    f = method.one_at_a_time(8, 4) @ w
    lost = (w.sum() - f).view(8, 4).mean(0)
    assert torch.allclose(lost, w * (1 - np.mean(np.arange(8) / 8)), atol=1e-6)


def test_curves_follow_the_pixels_one_by_one():
    net, x, y = random_net(1), images(2), torch.tensor([2, 0])
    rank = ranks(images(2).flip(2)[:, 0], torch.Generator().manual_seed(0))
    mu, blurred = torch.full((2, 1, 16, 16), 0.4), torch.full((2, 1, 16, 16), 0.1)
    gone, back = curves(net, x, y, rank, mu, blurred, steps=8)
    for i in range(2):
        order = np.argsort(-rank[i].flatten().numpy())
        for k in range(9):
            one, two = x[i].flatten().clone(), blurred[i].flatten().clone()
            one[order[: 32 * k]] = 0.4
            two[order[: 32 * k]] = x[i].flatten()[order[: 32 * k]]
            with torch.no_grad():
                p = net(torch.stack([one, two]).view(2, 1, 16, 16)).softmax(1)[:, y[i]]
            assert abs(gone[i, k] - p[0]) < 1e-5 and abs(back[i, k] - p[1]) < 1e-5
    assert np.allclose(area(gone).numpy(), np.trapezoid(gone.numpy(), np.linspace(0, 1, 9), axis=1))


def test_distances_and_energies():
    a, b = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[0.0, 5.0, 5.0]])
    assert method.distance(a, 7 * a) == 0 and method.distance(a, b).item() == pytest.approx(0.25)
    maps, box = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]]), torch.tensor([[[True, True], [False, False]]])
    assert energy_inside(maps, box).item() == 0.75
    assert points_inside(torch.cat([maps, -maps]), box.expand(2, -1, -1)).tolist() == [1.0, 1.0]
    assert points_inside(maps, ~box).item() == 0.0


def test_integrated_gradients_of_the_arm_are_captums_from_the_same_baseline():
    net, x, y = random_net(2), images(), torch.tensor([1, 2, 3])
    s = own.subject(0, fast(net), x, y, torch.tensor([0.3]), smoke(), net=net)
    theirs = attr.IntegratedGradients(net).attribute(x, torch.full_like(x, 0.3), target=y, n_steps=32, method="riemann_middle")
    assert torch.allclose(arms.EXPLANATIONS["integrated_gradients"].way(s), theirs.sum(1), atol=1e-5)
    cam = attr.LayerGradCam(net, net[10]).attribute(x, y, relu_attributions=True).detach()
    assert torch.allclose(arms.EXPLANATIONS["gradcam"].way(s), enlarge(cam[:, 0], (16, 16)), atol=1e-6)


# ---- interactions


def test_an_additive_score_has_no_interactions_and_a_product_has_its_share():
    m = np.random.default_rng(0).random((1024, 16))
    additive = m @ np.arange(16) + 3 * m[:, 2] ** 2
    pair = 10 * (m[:, 1] - 0.5) * (m[:, 6] - 0.5) + m[:, 0]  # variances 100/144 and 1/12: 0.893 is not additive
    share = method.not_additive(m, np.stack([additive, pair], axis=1))
    assert share[0] < 1e-6 and share[1] == pytest.approx(0.893, abs=0.05)
    strength, noise = method.pair_strengths(m, pair)
    assert np.unravel_index(np.abs(strength).argmax(), strength.shape) in ((1, 6), (6, 1)) and strength[1, 6] > 0.9
    assert np.sort(np.abs(strength)[np.triu_indices(16, 1)])[-2] < 4.5 * noise


def test_the_stand_in_is_the_sum_of_what_cells_do_alone():
    at = np.array([0.0, 0.5, 0.25, 0.75, 1.0])
    profile = np.stack([at**2, -3 * at, 0 * at], axis=1)[None]
    m = np.array([[0.5, 0.25, 0.9], [0.125, 1.0, 0.0]])
    found = method.stand_in(m, profile, at)
    assert np.allclose(found[:, 0], [0.25 - 0.75, 0.03125 - 3.0])  # 0.125 lies halfway between 0 and 0.0625


# ---- the experiment


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline) if arm)
    pictures = lab.figures()
    assert set(pictures) == {"maps", "curves", "efficiency", "pairs", "sentences"}
    views = {name: f(lab.arms["network"].members[0], lab.params) for name, f in own.VIEWS.items()}
    for name, fig in (pictures | views).items():
        filled = [len(t.z if t.type in ("heatmap", "contour") else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name
    assert len(views) == 2 and not np.allclose(pictures["maps"].data[0].z, 0)


def test_equal_budgets_and_first_order_from_the_same_calls(lab):
    spent = lab.budgets.set_index("arm")["forward_calls"]
    assert spent["sobol"] == spent["rise"] == spent["sobol_random"] == 4 * 18 * 2
    assert lab.arms["sobol_first"].found[0].f is lab.arms["sobol"].found[0].f


def test_under_the_control_the_method_is_its_baseline_exactly(lab):
    other = dataclasses.replace(lab.params, text=False, **own.Params.CONTROL.set)
    control = Experiment(lab.study, other, arms=["sobol", "sobol_random", "rise"]).run()
    for metric in ("map_error", "deletion_auc"):
        assert last(control, "sobol", metric).equals(last(control, "sobol_random", metric))
    assert (last(lab, "sobol", "map_error") != last(lab, "sobol_random", "map_error")).all()
    assert last(control, "rise", "deletion_auc").equals(last(lab, "rise", "deletion_auc"))


@pytest.mark.parametrize("knob", [dict(grid=5), dict(designs=8), dict(baseline="zero"), dict(baseline="blur"), dict(score="probability"),
                                  dict(sampler="latin"), dict(mask="binary"), dict(network="deep"),
                                  *(dict(estimator=f) for f in FORMULAS[1:])], ids=str)  # fmt: skip
def test_every_knob_acts(lab, knob):
    other = Experiment(lab.study, dataclasses.replace(lab.params, text=False, **knob), arms=["sobol"], seeds=[0]).run()
    a, b = lab.arms["sobol"].maps[0], other.arms["sobol"].maps[0]
    assert torch.isfinite(b).all() and not torch.allclose(a, b)


def test_a_number_of_points_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="designs = 12 is not a power of two"):
        own.Params(designs=12)


def test_images_to_explain_are_the_first_sure_ones_then_the_likeliest():
    logits = torch.tensor([[0.2, 0.0], [-3.0, 0.0], [2.0, 0.0], [-0.1, 0.0], [1.0, 0.0]])
    assert own.choose(lambda x: logits, logits, torch.zeros(5, dtype=torch.long), 4).tolist() == [0, 2, 4, 3]


def test_digits_lie_in_their_boxes_and_strokes_outside_them():
    d = source.load(4)
    assert len(d.x) == 1500 and len(d.test_x) == 297 and d.test_x.min() >= 0 and d.test_x.max() <= 1
    bright = d.test_x[:, 0] > 0.5  # above all textures, below strokes and digits
    assert (d.box.sum((1, 2)) == 256).all() and bright[d.box].float().mean() > 4 * bright[~d.box].float().mean()
    assert ((bright & ~d.box).flatten(1).any(1)).float().mean() > 0.5


def test_words_that_decide_are_found_in_text(lab):
    net = words.Bag(5, 2)
    with torch.no_grad():
        net.vectors.weight.copy_(torch.eye(5, words.WIDTH))
        net.head[0].weight.copy_(torch.eye(32, words.WIDTH))
        for layer in (net.head[0].bias, net.head[2].weight, net.head[2].bias):
            layer.zero_()
        net.head[2].weight[0, 3] = 100.0  # only word number 3 speaks for page 0
        x = torch.tensor([[1] * 10 + [3] + [2] * 13])
        task = words.Text(smoke())
        total = task.total(net, x, torch.tensor([0]), np.random.default_rng(0))[0]
        assert total[10] > 0.5 and total[torch.arange(24) != 10].abs().max() == 0
        assert words.deletion(net, x, torch.tensor([0]), total[None]) < words.deletion(net, x, torch.tensor([0]), -total[None]) - 0.3
    assert {"text_deletion_sobol", "text_deletion_leave_one_out"} <= set(lab.table.metric)


# ---- data and classifiers of one's own


def write(folder, classes=("bar", "dot"), n=20, shape=(16, 16), mode="L"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 100, shape, dtype=np.uint8)
            pixels[2:14 if label else 5, 3:5] = 250
            Image.fromarray(pixels).convert(mode).save(folder / "images" / name / f"{i}.png")
    return str(folder)


def test_own_images_run_the_whole_study(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", write(tmp_path))
    lab = Experiment(study.find("sobol-attribution"), smoke()).run()
    assert np.isfinite(last(lab, "sobol", "deletion_auc")).all() and "energy_in_box" not in set(lab.table.metric)
    assert lab.figures()["maps"].data


def test_own_weights_are_explained_as_they_are_unless_they_know_nothing(tmp_path, monkeypatch):
    folder = write(tmp_path, shape=(16, 16))
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    torch.save(source.network("small", 1, 2).state_dict(), f"{folder}/network.pt")
    with pytest.raises(ValueError, match="no more than chance"):
        Experiment(study.find("sobol-attribution"), smoke()).run()
    monkeypatch.setattr(source, "above_chance", None)
    monkeypatch.setattr(own, "above_chance", lambda right, y: None)
    source.own_network.cache_clear()
    lab = Experiment(study.find("sobol-attribution"), smoke(), arms=["rise"]).run()
    state = torch.load(f"{folder}/network.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in lab.arms["network"].members[1].state_dict().items())


@pytest.mark.parametrize("case, message", [
    (dict(classes=("bar",)), "holds 1 class folders"), (dict(n=19), "holds 19 PNG images: at least 20"),
    (dict(mode="RGBA"), "colour mode RGBA"), (dict(mode="1"), "colour mode 1"),
    (dict(shape=(18, 16)), "16 x 18: sides must be multiples of 8"),
])  # fmt: skip
def test_unfit_folders_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_images(write(tmp_path, **case))


def test_a_file_that_is_no_image_and_one_of_another_size_are_named(tmp_path):
    folder = write(tmp_path / "a")
    (tmp_path / "a" / "images" / "dot" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="2.png is not a readable PNG"):
        source.own_images(folder)
    folder = write(tmp_path / "b")
    Image.new("L", (24, 16)).save(tmp_path / "b" / "images" / "dot" / "2.png")
    with pytest.raises(ValueError, match=r"2.png has the shape \(16, 24\), the others \(16, 16\)"):
        source.own_images(folder)


@pytest.mark.parametrize("made", [lambda: source.network("small", 1, 3).state_dict(), lambda: nn.Linear(2, 2), lambda: [1.0]])
def test_unfit_weights_are_refused(tmp_path, made):
    torch.save(made(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match="does not hold weights of the small network with 1 colours and 2 classes"):
        source.own_network(str(tmp_path), "small", 1, 2)


def bright_half(x):
    """Two logits: how bright the left half is, and the right."""
    x = np.asarray(x, dtype=float)
    middle = x.shape[3] // 2
    return 40 * np.stack([x[..., :middle].mean((1, 2, 3)), x[..., middle:].mean((1, 2, 3))], axis=1)


def two_halves(n=60):
    rng = np.random.default_rng(1)
    x, y = 0.2 * rng.random((n, 1, 12, 12)), np.arange(n) % 2
    for one, label in zip(x, y, strict=True):
        one[:, 4:8, 7:11] += 0.6 * label
        one[:, 4:8, 1:5] += 0.6 * (1 - label)
    return x, y


def test_any_function_of_an_array_can_be_explained_and_the_map_finds_what_it_looks_at():
    x, y = two_halves()
    found = own.explain(bright_half, x, y, smoke(designs=16, images=4))
    index = found["sobol"].index(0, 16).view(-1, 4, 4)
    for one, label in zip(index, found["sobol"].subjects[0].y, strict=True):
        assert one[1:3, 2:].sum() > 0.8 * one.sum() if label else one[1:3, :2].sum() > 0.8 * one.sum()
    after = {name: arm.curves[0][0][:, 4].mean() for name, arm in found.items()}  # an eighth of the pixels is gone
    assert after["sobol"] < after["random_map"] - 0.1 and set(found["rise"].results) == {"deletion_auc", "insertion_auc"}


@pytest.mark.parametrize("change, message", [
    (dict(x=lambda x: 255 * x), "allowed are finite numbers in"), (dict(x=lambda x: x[:, 0]), "shape N x C x H x W"),
    (dict(x=lambda x: np.where(x > 0.1, np.nan, x)), "allowed are finite numbers"), (dict(y=lambda y: y * 1.0), "y is float64"),
    (dict(y=lambda y: y[:-1]), "allowed is a whole number"), (dict(y=lambda y: 0 * y), "y holds 1 classes"),
    (dict(x=lambda x: x[:30], y=lambda y: y[:30]), "the smallest with 15 images"),
    (dict(score=lambda x: bright_half(x)[:, 0]), r"the score gave \(60,\)"),
    (dict(score=lambda x: bright_half(x)[:, ::-1]), "no more than chance"),
])  # fmt: skip
def test_unfit_arrays_and_scores_are_refused(change, message):
    x, y = two_halves()
    with pytest.raises(ValueError, match=message):
        own.explain(change.get("score", bright_half), change.get("x", lambda x: x)(x), change.get("y", lambda y: y)(y), smoke())
