"""Smooth Grad-CAM++ against repeated autograd, captum, pytorch-grad-cam where it is installed, scikit-learn, and cases by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from captum import attr
from PIL import Image
from sklearn.metrics import jaccard_score, precision_score, recall_score
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.parts.attribution import enlarge, gradcam
from claimlab.studies.attribution import _smooth_gradcam_pp_arms as arms
from claimlab.studies.attribution import _smooth_gradcam_pp_data as source
from claimlab.studies.attribution import _smooth_gradcam_pp_method as method
from claimlab.studies.attribution import smooth_gradcam_pp as own

torch.set_num_threads(1)
CUT = source.CUTS["last"]


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("smooth-gradcam-pp"), smoke()).run()


def random_net(seed=0, colours=1, size=(16, 16), classes=4):
    """A network with scores of a few units, so that no derivative is next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = source.network(colours, size, classes)
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    return net.eval()


def drawn(*shape, seed=5):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- derivatives and coefficients


@pytest.mark.parametrize("cut", source.CUTS.values(), ids=source.CUTS)
def test_three_derivatives_of_exp_score_by_autograd_are_powers_of_the_slope(cut):
    net, x = random_net().double(), drawn(1, 1, 16, 16).double()
    with torch.no_grad():
        net[-1].weight *= 0.2
    a, g, s = method.slopes(net, x, torch.tensor([2]), cut)
    d = method.Derivatives()
    d.add(g, s)
    places = g.flatten().abs().argsort(descending=True)[:12].tolist()
    leaf = a.clone().requires_grad_()
    with torch.enable_grad():
        y = net[cut:](leaf)[0, 2].exp()
        first = torch.autograd.grad(y, leaf, create_graph=True)[0].flatten()
        for k in places:
            second = torch.autograd.grad(first[k], leaf, create_graph=True)[0].flatten()[k]
            third = torch.autograd.grad(second, leaf, retain_graph=True)[0].flatten()[k]
            for theirs, ours in zip((first[k], second, third), d.means(), strict=True):
                assert (theirs / y).item() == pytest.approx(ours.flatten()[k].item(), rel=1e-5)


@pytest.mark.parametrize("exp_score", [True, False])
def test_the_running_means_are_those_of_all_copies_at_once_whatever_their_order(exp_score):
    g, s = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 8 * drawn(6, 2) - 4
    for order in (range(6), reversed(range(6))):
        running = method.Derivatives(exp_score)
        for k in order:
            running.add(g[k], s[k])
        factor = (s - s.max(0).values).exp() if exp_score else torch.ones_like(s)
        for power, ours in enumerate(running.means(), start=1):
            assert torch.allclose(ours, (factor[:, :, None, None, None] * g**power).mean(0), atol=1e-6)


def test_scores_that_would_overflow_leave_alpha_and_map_as_they_are():
    g, a = drawn(3, 1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1)
    maps = []
    for shift in (0.0, 500.0):
        running = method.Derivatives()
        for k in range(3):
            running.add(g[k], torch.tensor([shift + k]))
        maps.append(method.cam(method.weights(*running.means(), a), a))
    assert torch.isfinite(maps[1]).all() and torch.equal(*maps)


def test_a_constant_slope_gives_the_closed_form_of_alpha():
    a, g = drawn(2, 3, 5, 5), torch.tensor([0.7, -0.2, 0.0])[None, :, None, None].expand(2, 3, 5, 5)
    alpha = method.coefficients(*method.once(g)[1:], a)
    total = a.sum((2, 3))
    for k, slope in enumerate((0.7, -0.2)):
        assert torch.allclose(alpha[:, k], (1 / (2 + slope * total[:, k]))[:, None, None].expand(2, 5, 5), rtol=1e-4)
    assert (alpha[:, 2] == 0).all()  # 0 / 0


def test_two_by_two_by_hand_with_the_sum_outside_the_place():
    a = torch.tensor([[[[1.0, 0.0], [2.0, 1.0]]]])  # sum 4
    g = torch.tensor([[[[1.0, 0.5], [-1.0, -0.5]]]])  # at -0.5 the denominator 2/4 - 4/8 is exactly 0
    alpha = method.coefficients(*method.once(g)[1:], a)[0, 0]
    assert torch.allclose(alpha, torch.tensor([[1 / 6, 1 / 4], [-1 / 2, 0.0]]))
    w = method.weights(*method.once(g), a)
    assert w.item() == pytest.approx(1 / 6 + 1 / 8)  # where g is negative ReLU(D1) takes alpha out
    assert torch.allclose(method.gradcam_pp(a, g), (1 / 6 + 1 / 8) * a[0])


# ---- limits and other people's libraries


def test_without_noise_the_method_is_grad_cam_pp_bit_by_bit():
    net, x, y = random_net(1), drawn(3, 1, 16, 16), torch.tensor([0, 3, 1])
    clean = method.slopes(net, x, y, CUT)
    running = method.Smoothed(net, y, CUT, clean, exp_score=True)
    running.add(next(method.copies(x, 0.0, torch.Generator())))
    found, wanted = running.maps(), method.gradcam_pp(*clean[:2])
    assert torch.equal(found["smooth_gradcam_pp"], wanted) and torch.equal(found["smooth_powers"], wanted)
    assert torch.equal(found["mean_of_maps"], method.scaled(wanted)) and wanted.max() > 0
    assert torch.allclose(enlarge(found["smooth_gradcam"], (16, 16)), gradcam(net, x, y, net[CUT]), atol=1e-6)


@pytest.mark.parametrize("layer", ["middle", "last"])
def test_grad_cam_and_layer_activations_are_captums(layer):
    net, x, y = random_net(2, 3), drawn(3, 3, 16, 16), torch.tensor([1, 2, 3])
    cut = source.CUTS[layer]
    theirs = attr.LayerGradCam(net, net[cut - 1]).attribute(x, y, relu_attributions=True).detach()[:, 0]
    a, g, _ = method.slopes(net, x, y, cut)
    assert torch.allclose(method.cam(g.mean((2, 3)), a), theirs, atol=1e-6)
    slope = attr.LayerGradientXActivation(net, net[cut - 1], multiply_by_inputs=False).attribute(x, y).detach()
    active = attr.LayerActivation(net, net[cut - 1]).attribute(x).detach()
    assert torch.allclose(g, slope, atol=1e-6) and torch.allclose(a, active, atol=1e-6)
    assert torch.allclose(method.layercam(a, g), (slope.clamp(min=0) * active).sum(1), atol=1e-5)


def test_grad_cam_pp_is_that_of_pytorch_grad_cam():
    library = pytest.importorskip("pytorch_grad_cam")
    net, x, y = random_net(3), drawn(2, 1, 16, 16), torch.tensor([1, 2])
    with torch.no_grad():
        net[-1].weight *= 30  # the library adds 1e-6 to its denominator
    a, g, _ = method.slopes(net, x, y, CUT)
    cam = library.GradCAMPlusPlus(model=net, target_layers=[net[CUT - 1]])
    theirs = cam.get_cam_weights(x, None, None, a.numpy(), g.numpy())
    ours = method.weights(*method.once(g), a).numpy()
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-5) and np.abs(ours).max() > 0.1


def test_before_a_global_mean_the_smoothed_map_is_the_plain_one_and_with_a_single_map_all_three_agree():
    for channels in (6, 1):
        with torch.random.fork_rng():
            torch.manual_seed(channels)
            net = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                nn.Linear(channels, 3))  # fmt: skip
        with torch.no_grad():
            net[-1].weight[1, 0] = 2.0  # at least one map speaks for the class
        x, y = drawn(2, 1, 12, 12), torch.tensor([1, 1])
        a, g, s = method.slopes(net, x, y, 2)
        assert (g.amax((2, 3)) == g.amin((2, 3))).all()
        running = method.Smoothed(net, y, 2, (a, g, s), exp_score=True)
        noisy = method.copies(x, 0.3, torch.Generator().manual_seed(0))
        for _ in range(8):
            running.add(next(noisy))
        maps = [running.maps()["smooth_gradcam_pp"], method.gradcam_pp(a, g)]
        maps += [method.cam(g.mean((2, 3)), a)] if channels == 1 else []
        for other in maps[1:]:
            for one, two in zip(maps[0], other, strict=True):
                assert np.corrcoef(one.flatten(), two.flatten())[0, 1] == pytest.approx(1, abs=1e-5)


def test_noise_has_the_size_of_each_images_own_range():
    x = drawn(2, 1, 200, 200) * torch.tensor([1.0, 0.25])[:, None, None, None]
    noisy = next(method.copies(x, 0.2, torch.Generator().manual_seed(0)))
    assert np.allclose((noisy - x).std((1, 2, 3)).numpy(), [0.2, 0.05], rtol=0.02)


def test_a_subset_counts_only_its_maps_and_places_and_all_of_them_are_the_whole():
    net, x, y = random_net(4), drawn(2, 1, 16, 16), torch.tensor([0, 2])
    a, g, _ = method.slopes(net, x, y, CUT)
    d = method.once(g)
    assert torch.allclose(method.subset_cam(d, a), method.gradcam_pp(a, g))
    assert torch.allclose(method.subset_cam(d, a, keep=range(a.shape[1])), method.gradcam_pp(a, g))
    w = method.weights(*d, a)
    assert torch.allclose(method.subset_cam(d, a, keep=[3, 7]), (w[:, [3, 7], None, None] * a[:, [3, 7]]).sum(1).relu())
    place = torch.zeros(4, 4, dtype=torch.bool)
    place[1, 2] = True
    found = method.subset_cam(d, a, neurons=place)
    alpha = method.coefficients(*d[1:], a)
    by_hand = (alpha[:, :, 1, 2] * g[:, :, 1, 2].relu() * a[:, :, 1, 2]).sum(1).relu()
    assert torch.allclose(found[:, 1, 2], by_hand, atol=1e-6) and (found[:, ~place] == 0).all() and by_hand.max() > 0


# ---- metrics


def test_both_found_asks_half_of_each_object_at_their_common_area():
    masks = torch.zeros(1, 2, 4, 8, dtype=torch.bool)
    masks[0, 0, :2, :2] = masks[0, 1, 2:, 6:] = True  # four pixels each
    one, both, flat = torch.zeros(3, 4, 8)
    one[:2, :4] = 1  # all of the first, none of the second
    both[:2, 0] = both[2:, 7] = both[2:, 5] = both[:2, 5] = 1  # two of each, four elsewhere
    rng = torch.Generator().manual_seed(0)
    assert [arms.both_found(m[None], masks, rng).item() for m in (one, both)] == [0.0, 1.0]
    assert np.mean([arms.both_found(flat[None], masks, rng).item() for _ in range(200)]) < 0.2  # lit up everywhere
    one[:2, 2:4] = 0
    assert arms.both_found(one[None], masks * torch.tensor([True, False])[:, None, None], rng).item() == 1.0  # a single object


def test_overlap_is_scikit_learns_jaccard_and_an_empty_map_has_none():
    maps, mask = drawn(3, 9, 7), drawn(3, 9, 7, seed=6) > 0.6
    maps[2] = 0
    for threshold in (0.3, 0.8):
        ours = arms.overlap(maps, mask, threshold)
        for i in range(2):
            wanted = jaccard_score(mask[i].flatten(), (maps[i] >= threshold * maps[i].max()).flatten())
            assert ours[i].item() == pytest.approx(wanted)
        assert ours[2] == 0


def test_sharpness_of_a_bar_is_its_border_over_its_area():
    bar = torch.zeros(2, 10, 12)
    bar[0, 3:5, 2:6] = 7.0  # perimeter 12, area 8
    assert arms.sharpness(bar).tolist() == [1.5, 0.0]
    assert arms.sharpness(5 * bar + 1).tolist() == [1.5, 0.0]


def test_precision_and_recall_are_scikit_learns_at_every_threshold():
    maps, union = drawn(4, 8, 8), drawn(4, 8, 8, seed=9) > 0.7
    precision, recall = arms.precision_recall(maps, union, levels=11)
    m = method.scaled(maps).flatten()
    for k in range(10):
        kept = m > (9 - k) / 10
        assert recall[k].item() == pytest.approx(recall_score(union.flatten(), kept))
        assert precision[k].item() == pytest.approx(precision_score(union.flatten(), kept))


# ---- data


@pytest.mark.parametrize("count, side", [(2, 40), (4, 40), (3, 64)])
def test_objects_do_not_overlap_and_are_different_examples_of_one_class(count, side):
    y = np.arange(300) % 10
    ink = np.zeros((300, 14 * 14), dtype=np.float32)  # every example has its number in binary digits as its ink
    ink[:, :9] = (np.arange(300)[:, None] >> np.arange(9)) & 1
    x, label, masks = source.scenes(ink.reshape(-1, 14, 14), y, np.repeat([1, count], 20), side, np.random.default_rng(0))
    assert (masks.sum(1) <= 1).all() and (masks.sum((2, 3))[20:] == 14 * 14).all() and (masks[:20, 1:] == 0).all()
    for i in range(40):
        codes = [x[i, 0][own_mask][:9] == 1 for own_mask in masks[i] if own_mask.any()]
        examples = [int((code * 2 ** np.arange(9)).sum()) for code in codes]
        assert len(set(examples)) == (1 if i < 20 else count) and {y[k] for k in examples} == {label[i]}
    assert x.min() >= 0 and x.max() <= 1 and len(set(label)) > 4


def test_a_seed_gives_its_own_data_and_test_digits_are_not_trained_on():
    a, b = source.load(3, 2, 40, 64, 4), source.load(4, 2, 40, 64, 4)
    assert a.multi.tolist() == [False] * 4 + [True] * 4 and (a.masks.any((2, 3)).sum(1) == torch.tensor([1] * 4 + [2] * 4)).all()
    assert not torch.equal(a.x, b.x) and len(a.x) == 64
    bright = a.test_x[:, 0][a.masks.any(1)].mean() / a.test_x[:, 0][~a.masks.any(1)].mean()
    assert bright > 1.3


# ---- the experiment


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline))
    pictures = lab.figures()
    assert set(pictures) == {"maps", "bars", "sweeps", "precision_recall", "channels"}
    views = {name: f(lab.arms["network"].members[0], lab.params) for name, f in own.VIEWS.items()}
    for name, fig in (pictures | views).items():
        filled = [len(t.z if t.type in ("heatmap", "contour") else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name
    assert {t.name for t in pictures["precision_recall"].data} > {"Grad-CAM", "Smooth Grad-CAM++", "LayerCAM"}


def test_the_arms_share_images_and_passes_and_the_centre_knows_nothing(lab):
    assert lab.arms["mean_of_maps"].subjects is lab.arms["smooth_gradcam_pp"].subjects
    s = lab.arms["smooth_gradcam_pp"].subjects[0]
    centre = lab.arms["centre_prior"].draw(s, 1)
    assert torch.equal(centre[0], centre[-1]) and torch.allclose(centre[0], centre[0].flip(0).flip(1).T)
    levels = [m for m in lab.table.metric.unique() if m.startswith("both_found_noise_")]
    assert len(levels) == len(arms.LEVELS) + 1


def test_under_the_control_the_method_is_its_baseline_exactly(lab):
    other = dataclasses.replace(lab.params, **own.Params.CONTROL.set)
    control = Experiment(lab.study, other).run()
    for metric in ("energy_in_object", "sharpness", "both_found", "iou"):
        assert last(control, "smooth_gradcam_pp", metric).equals(last(control, "gradcam_pp", metric))
    assert (last(lab, "smooth_gradcam_pp", "energy_in_object") != last(lab, "gradcam_pp", "energy_in_object")).all()
    assert last(control, "gradcam", "iou").equals(last(lab, "gradcam", "iou")) and control.figures()["maps"].data
    assert all(v.verdict != "supported" for v in control.verdicts() if v.claim in own.Params.CONTROL.vanishes)


@pytest.mark.parametrize("knob", [dict(noise=0.5), dict(copies=4), dict(layer="middle"), dict(layer="first"), dict(exp_score=False),
                                  dict(instances=3), dict(side=44), dict(train_images=64)], ids=str)  # fmt: skip
def test_every_knob_acts(lab, knob):
    other = Experiment(lab.study, dataclasses.replace(lab.params, **knob), arms=["smooth_gradcam_pp"], seeds=[0]).run()
    p = other.params
    a = lab.arms["smooth_gradcam_pp"].draw(lab.arms["smooth_gradcam_pp"].subjects[0], lab.params.copies)
    b = other.arms["smooth_gradcam_pp"].draw(other.arms["smooth_gradcam_pp"].subjects[0], p.copies)
    assert torch.isfinite(b).all() and (a.shape != b.shape or not torch.allclose(a, b, rtol=1e-6, atol=0))


def test_the_threshold_acts_on_iou_alone(lab):
    s = lab.arms["gradcam_pp"].subjects[0]
    maps = lab.arms["gradcam_pp"].draw(s, 1)
    low, high = (arms.measure(maps, s.masks, s.multi, t, torch.Generator().manual_seed(0)) for t in (0.1, 0.9))
    assert {name for name in low if low[name] != high[name]} == {"iou"}


def test_a_side_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(ValueError, match="side = 42 is no multiple of 4"):
        own.Params(side=42)


# ---- data and weights of one's own


def write(folder, classes=("bar", "dot"), n=20, shape=(16, 16), mode="L", mask=None):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        for part in ("images", "masks"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels, where = rng.integers(0, 100, shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
            pixels[2:8 if label else 5, 3:6], where[2:8, 3:6] = 250, 1
            if i % 2:
                pixels[9:14 if label else 11, 9:12], where[9:14, 9:12] = 250, 2
            Image.fromarray(pixels).convert(mode).save(folder / "images" / name / f"{i}.png")
            Image.fromarray(where if mask is None else mask).save(folder / "masks" / name / f"{i}.png")
    return str(folder)


def test_own_images_and_own_weights_run_the_whole_study(tmp_path, monkeypatch):
    folder = write(tmp_path)
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    lab = Experiment(study.find("smooth-gradcam-pp"), smoke()).run()
    assert np.isfinite(last(lab, "smooth_gradcam_pp", "both_found")).all() and lab.figures()["maps"].data
    torch.save(source.network(1, (16, 16), 2).state_dict(), f"{folder}/network.pt")
    source.own_network.cache_clear()
    with pytest.raises(ValueError, match="no more than chance"):
        Experiment(study.find("smooth-gradcam-pp"), smoke()).run()
    monkeypatch.setattr(own, "above_chance", lambda right, y: None)
    lab = Experiment(study.find("smooth-gradcam-pp"), smoke(), arms=["gradcam_pp"]).run()
    state = torch.load(f"{folder}/network.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in lab.arms["network"].members[1].state_dict().items())


def wrong(value, where=(slice(2, 8), slice(2, 8))):
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[where] = value
    return mask


@pytest.mark.parametrize("case, message", [
    (dict(classes=("bar",)), "holds 1 class folders"), (dict(n=19), "holds 19 PNG images: at least 20"),
    (dict(mode="RGBA"), "colour mode RGBA"), (dict(shape=(18, 16)), "16 x 18: sides must be multiples of 4"),
    (dict(mask=wrong(0)), r"holds the numbers \[\] beside 0"), (dict(mask=wrong(2)), r"holds the numbers \[2\] beside 0"),
    (dict(mask=wrong(1, ...)), "marks 100.0% of the image"), (dict(mask=wrong(1, (0, 0))), "marks 0.4% of the image"),
    (dict(mask=np.ones((8, 8), dtype=np.uint8)), "is 8 x 8, its image 16 x 16"),
])  # fmt: skip
def test_unfit_folders_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_images(write(tmp_path, **case))


def test_a_missing_mask_a_broken_image_and_one_of_another_size_are_named(tmp_path):
    folder = write(tmp_path / "a")
    (tmp_path / "a" / "masks" / "dot" / "2.png").unlink()
    with pytest.raises(ValueError, match="2.png is missing: every image needs a mask"):
        source.own_images(folder)
    folder = write(tmp_path / "b")
    (tmp_path / "b" / "images" / "dot" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="2.png is not a readable PNG"):
        source.own_images(folder)
    folder = write(tmp_path / "c")
    Image.new("L", (24, 16)).save(tmp_path / "c" / "images" / "dot" / "2.png")
    with pytest.raises(ValueError, match=r"2.png has the shape \(16, 24\), the others \(16, 16\)"):
        source.own_images(folder)


@pytest.mark.parametrize("made", [lambda: source.network(1, (16, 16), 3).state_dict(), lambda: nn.Linear(2, 2), lambda: [1.0]])
def test_unfit_weights_are_refused(tmp_path, made):
    torch.save(made(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match="does not hold weights of the network for 16 x 16 images, 1 colours and 2 classes"):
        source.own_network(str(tmp_path), 1, (16, 16), 2)
