"""OSA-DAS against scipy, captum, brute force, and networks whose explanation is known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import linalg, ndimage
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.parts.attribution import enlarge
from claimlab.studies.attribution import _osa_das_arms as arms
from claimlab.studies.attribution import _osa_das_data as source
from claimlab.studies.attribution import _osa_das_method as method
from claimlab.studies.attribution import _osa_das_subject as subjects
from claimlab.studies.attribution import osa_das as own

torch.set_num_threads(1)


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("osa-das"), smoke(steps=60, sweep=True)).run()


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n=3, side=40, colours=1, seed=5):
    return torch.rand(n, colours, side, side, generator=torch.Generator().manual_seed(seed))


def random_net(seed=0, kind="cnn", colours=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = source.network(kind, colours, 10)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                for t, low in ((m.running_mean, -0.2), (m.running_var, 0.05), (m.weight.data, 0.5), (m.bias.data, -0.5)):
                    t.uniform_(low, 1.0)
    return net.eval()


def finished(name, net, x, p, y=None):
    """The arm `name` on images x, with all that it stands on."""
    s = subjects.subject(0, net, x, torch.arange(len(x)))
    s.y = s.y if y is None else y
    before = SimpleNamespace(subjects=[s])
    for one in [*([arms.EXPLANATIONS[name].after] if arms.EXPLANATIONS[name].after != "network" else []), name]:
        before = arms.EXPLANATIONS[one](p, [0], before)
        before.results = [tick.metrics[0] for tick in before.ticks()][-1]
    return before


# ---- subspaces


@pytest.mark.parametrize("d, n, m", [(10, 12, 3), (64, 8, 5), (5, 20, 5)])
def test_canonical_angles_are_those_of_scipy(d, n, m):
    f, g = normal(d, n), normal(d, n, seed=1)
    u, v = method.subspace(f, m), method.subspace(g, m)
    unit = [(a / a.norm(dim=0)).numpy() for a in (f, g)]
    bases = [linalg.svd(a)[0][:, :m] for a in unit]
    wanted = np.cos(linalg.subspace_angles(*bases))[::-1]
    found, count = method.canonical(u, v)
    assert count == m and np.allclose(found.numpy(), wanted, atol=1e-6)
    assert abs(method.orthogonal_degree(u, v) - (1 - np.mean(wanted**2))) < 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), m=st.integers(1, 4))
def test_the_degree_knows_neither_the_basis_nor_the_axes(seed, m):
    u, v = (linalg.qr(normal(7, m, seed=seed + k).numpy(), mode="economic")[0] for k in (0, 1))
    turn, one, two = (linalg.qr(normal(k, k, seed=seed + 2 + k).numpy())[0] for k in (7, m, m))
    u, v, moved = (torch.from_numpy(a) for a in (u, v, turn @ u @ one))
    plain = method.orthogonal_degree(u, v)
    assert torch.allclose(plain, method.orthogonal_degree(moved, torch.from_numpy(turn) @ v @ torch.from_numpy(two)), atol=1e-9)
    assert 0 <= plain <= 1 and method.orthogonal_degree(u, u @ torch.from_numpy(one)) < 1e-12


def test_orthogonal_subspaces_have_degree_one_and_features_are_not_centred():
    axes = torch.eye(6, dtype=torch.float64)
    assert method.orthogonal_degree(axes[:, :3], axes[:, 3:]) == 1
    far = axes[:, :1] + 1e-3 * normal(6, 9)  # a bundle around an axis: centred, its first direction would be noise
    assert abs(method.subspace(far, 1)[0, 0]) > 0.999


def test_a_bundle_of_equal_views_has_rank_one_and_its_rounding_is_no_direction():
    f, g = normal(10, 1), normal(10, 1, seed=1)
    same = [a.repeat(1, 8) * (1 + 1e-7 * normal(10, 8, seed=k)) for k, a in enumerate((f, g), start=2)]
    degree = method.orthogonal_degree(*(method.subspace(a, 5) for a in same))
    cos = torch.cosine_similarity(f[:, 0], g[:, 0], dim=0)
    assert abs(degree - (1 - cos**2)) < 1e-5
    three = torch.cat([same[1], normal(10, 8, seed=9)], 1)  # a whole space against a line: only one angle to compare
    assert method.canonical(method.subspace(same[0], 5), method.subspace(three, 5))[1] == 1


# ---- occluders and views


@pytest.mark.parametrize("side", [7, 10, 20])
def test_the_occlusion_arm_is_captums(side):
    net, x = random_net(), images(2)
    arm = finished("osa", net, x, smoke(window=side))
    probability = nn.Sequential(net, nn.Softmax(1))
    for i in range(2):
        mean = x[i : i + 1].mean((2, 3), keepdim=True).expand(1, -1, 40, 40)
        theirs = attr.Occlusion(probability).attribute(x[i : i + 1], (1, side, side), (1, max(1, side // 2), max(1, side // 2)),
                                                       baselines=mean, target=int(arm.subjects[0].y[i]))  # fmt: skip
        assert torch.allclose(arm.maps[0][i], theirs[0, 0].float(), atol=1e-5)


def test_nothing_hidden_gives_a_map_of_zeros():
    net, x, nothing = random_net(), images(1), torch.zeros(4, 40, 40)
    s = subjects.subject(0, net, x, torch.arange(1))
    f, v = arms.passes(s, smoke(), x, s.y[0], nothing[None])
    degree = method.orthogonal_degree(method.subspace(v[:1].mT, 3), method.subspace(v[1:].mT, 3))
    assert degree.abs().max() < 1e-6 and (f[1:] - f[:1]).abs().max() < 1e-6
    assert method.heat(torch.ones(1, 4), nothing).abs().max() == 0


@pytest.mark.parametrize("name", ["osa", "osa_das", "single_vector", "osa_averaged", "rise", "integrated_gradients"])
def test_a_linear_network_that_reads_one_patch_is_found_out(name):
    patch = torch.zeros(40, 40)
    patch[5:20, 20:35] = 1
    net = nn.Sequential(nn.Flatten(), nn.Linear(1600, 10))
    with torch.no_grad():
        net[1].weight.copy_(normal(10, 1).float() * patch.flatten() / 50)  # every logit has its share of the patch's light
        net[1].bias.copy_(normal(10, seed=1))
    x = 0.2 * images(4) + 0.7 * patch
    arm = finished(name, net, x, smoke(window=10, views=8, strength=0.5, images=4))
    for m in arm.maps[0]:
        assert patch[np.unravel_index(int(m.argmax()), (40, 40))] == 1
    assert method.mass_inside(arm.maps[0], patch.expand(4, -1, -1)).min() > 3 * patch.mean()


def test_without_augmentation_the_method_is_a_squared_cosine_and_the_average_is_the_drop():
    net, x, p = random_net(1), images(2), smoke(strength=0.0, dimension=1, window=10)
    plain, vector, bundle, mean = (finished(n, net, x, p) for n in ("osa", "single_vector", "osa_das", "osa_averaged"))
    cos = 1 - vector.scores(0, 1)
    assert torch.allclose(bundle.scores(0, 4).float(), 1 - cos.square(), atol=2e-5)
    assert torch.allclose(mean.maps[0], plain.maps[0], atol=1e-5)
    wide = finished("osa_das", net, x, dataclasses.replace(p, dimension=3))  # more dimensions than there are
    assert torch.allclose(wide.maps[0], bundle.maps[0], atol=1e-4)


def test_views_turn_and_shift_as_scipy_does():
    x = torch.from_numpy(ndimage.gaussian_filter(images(1)[0, 0].numpy(), 3))[None, None]
    angle = np.radians(9.0)
    cos, sin = np.cos(angle), np.sin(angle)
    theta = torch.tensor([[[cos, -sin, 2 * 3 / 40], [sin, cos, -2 * 2 / 40]]], dtype=torch.float32)
    centre = np.array([19.5, 19.5])
    turn = np.array([[cos, sin], [-sin, cos]])  # rows and columns, where theta has columns and rows
    wanted = ndimage.affine_transform(x[0, 0].numpy(), turn, centre - turn @ centre + np.array([-2, 3]), order=1, mode="reflect")
    assert np.abs(method.warp(x, theta)[0, 0].numpy() - wanted).max() < 1e-4


def test_the_drawn_views_keep_to_their_ranges_and_vanish_without_strength():
    drawn = method.draw_views(500, 1.0, (40, 40), torch.Generator().manual_seed(0))
    angle = torch.atan2(drawn.theta[:, 1, 0], drawn.theta[:, 0, 0]).rad2deg()
    assert 9 < angle.abs().max() <= 10 and 1.9 < (drawn.theta[:, :, 2] * 20).abs().max() <= 2
    assert drawn.contrast.min() >= 0.8 and 1.19 < drawn.brightness.max() <= 1.2 and drawn.blur.min() >= 0
    x = images(6)
    still = method.draw_views(6, 0.0, (40, 40), torch.Generator().manual_seed(0))
    assert torch.allclose(method.augment(x, still), x, atol=1e-5)
    mirrored = method.augment(x, method.draw_views(6, 0.0, (40, 40), torch.Generator().manual_seed(0), flip=True))
    assert torch.allclose(mirrored[1::2], x[1::2].flip(3), atol=1e-5) and torch.allclose(mirrored[::2], x[::2], atol=1e-5)


def test_moved_occluders_hide_the_same_content():
    x, hidden = images(1), method.windows((40, 40), 10)
    drawn = method.draw_views(6, 2.0, (40, 40), torch.Generator().manual_seed(1))
    drawn = drawn._replace(contrast=torch.ones(6), brightness=torch.ones(6), blur=torch.zeros(6))
    many, black = x.expand(6, -1, -1, -1), torch.zeros(6, 1, 40, 40)
    before = torch.stack([method.augment(many * (1 - h), drawn) for h in hidden], 1)  # first hidden, then augmented
    after = arms.occluded(method.augment(many, drawn), method.move(hidden, drawn), black)
    unmoved = arms.occluded(method.augment(many, drawn), hidden.expand(6, -1, -1, -1), black)
    assert 10 * (after - before).abs().mean() < (unmoved - before).abs().mean()


@pytest.mark.parametrize("side", [3, 9, 10, 20])
def test_windows_reach_every_pixel(side):
    hidden = method.windows((40, 33), side)
    assert hidden.sum(0).min() > 0 and hidden.sum((1, 2)).max() == side**2


def test_the_blurred_fill_is_scipys_and_each_fill_is_what_it_says():
    x = images(2)
    wanted = ndimage.gaussian_filter(x.numpy(), (0, 0, 3, 3), truncate=3, mode="mirror")
    assert np.allclose(method.fill(x, "blur").numpy(), wanted, atol=1e-5)
    assert method.fill(x, "zero").abs().max() == 0 and torch.allclose(method.fill(x, "mean")[1], x[1].mean())


# ---- tests of maps


def test_minimal_size_is_the_first_level_of_a_search_through_all():
    net, x = random_net(2), images(3)
    y = net(x).argmax(1)
    rank, mu = method.ordered(images(3, seed=8)[:, 0], 0), x.mean((2, 3), keepdim=True).expand_as(x)
    found = method.minimal_size(net, x, y, rank, mu)
    for i in range(3):
        order = np.argsort(-rank[i].flatten().numpy())
        for level in range(1, 41):
            one = mu[i].flatten().clone()
            one[order[: 40 * level]] = x[i].flatten()[order[: 40 * level]]
            if level == 40 or int(net(one.view(1, 1, 40, 40)).argmax()) == y[i]:
                assert abs(found[i] - level / 40) < 1e-6
                break


def test_mass_is_counted_above_the_median():
    maps = torch.tensor([[[9.0, 1.0, 1.0], [3.0, 1.0, 0.0], [1.0, -7.0, 1.0]], [[2.0] * 3] * 3])
    box = torch.zeros(2, 3, 3, dtype=torch.bool)
    box[:, 0] = True
    assert method.mass_inside(maps, box).tolist() == pytest.approx([0.8, 0.0])  # 8 of 8 + 2; a flat map has no mass


def test_integrated_gradients_and_gradcam_are_captums():
    net, x = random_net(3), images(2)
    s = subjects.subject(0, net, x, torch.arange(2))
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    theirs = attr.IntegratedGradients(net).attribute(x, mean, target=s.y, n_steps=32, method="riemann_middle")
    assert torch.allclose(arms.EXPLANATIONS["integrated_gradients"].way(s, smoke()), theirs.abs().sum(1).float(), atol=1e-5)
    cam = attr.LayerGradCam(net, net[8]).attribute(x, s.y, relu_attributions=True).detach()
    assert torch.allclose(arms.EXPLANATIONS["gradcam"].way(s, smoke()), enlarge(cam[:, 0], (40, 40)), atol=1e-6)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_logits_and_penultimate_features_are_the_networks_own(kind):
    net, x = random_net(0, kind), images(70)
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner(x)

    for one in (net, Wrapped()):
        logits, features = subjects.Asked(one)(x)
        with torch.no_grad():
            assert torch.allclose(logits, net(x), atol=1e-5) and torch.allclose(features, net[:-1](x), atol=1e-5)


def test_only_the_promising_occluders_are_asked_and_the_rest_get_the_smallest_value():
    net, x, p = random_net(1), images(2), smoke(window=10, share=0.25)
    few, all_ = finished("osa", net, x, p), finished("osa", net, x, dataclasses.replace(p, share=1.0))
    chosen = few.found[0].chosen
    assert chosen.shape == (2, 12) and few.calls(1) == 13 and all_.calls(1) == 50
    kept, whole = few.scores(0, 1), all_.scores(0, 1).gather(1, chosen)
    assert torch.allclose(kept, whole, atol=1e-5)
    filled = method.spread(kept, chosen, 49)
    others = torch.ones(2, 49, dtype=torch.bool).scatter(1, chosen, False)
    assert all((filled[i][others[i]] == kept[i].min()).all() for i in range(2))
    y = few.subjects[0].y
    slope = torch.autograd.grad(net(x.requires_grad_()).gather(1, y[:, None]).sum(), x)[0].abs()[:, 0]
    inside = (slope[:, None] * few.found[0].hidden).sum((2, 3))
    assert (inside.gather(1, chosen).amin(1) >= inside[others].view(2, -1).amax(1)).all()


# ---- the experiment


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline))
    pictures = lab.figures()
    assert set(pictures) == {"maps", "curves", "budget", "angles"}
    views = {name: f(lab.arms["network"].members[0], lab.params) for name, f in own.VIEWS.items()}
    for name, fig in (pictures | views).items():
        filled = [len(t.z if t.type in ("heatmap", "contour") else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name
    assert len(views) == 3 and len(pictures["angles"].frames) == len(lab.arms["osa_das"].found[0].hidden) == 9


def test_the_rivals_of_equal_budget_have_it_and_share_their_passes(lab):
    spent = lab.budgets.set_index("arm")["forward_calls"]
    assert spent["osa_das"] == spent["osa_averaged"] == spent["rise"] == 4 * 10 * 4 and spent["osa"] == 10 * 4
    assert lab.arms["osa_averaged"].found[1] is lab.arms["osa_das"].found[1]
    assert lab.arms["single_vector"].found[0] is lab.arms["osa"].found[0]
    assert sorted(set(lab.table.step[lab.table.arm == "osa_das"])) == [10, 20, 40]


def test_the_sweep_holds_the_score_of_the_chosen_dimension(lab):
    assert np.allclose(last(lab, "osa_das", "overall_score, m 3"), last(lab, "osa_das", "overall_score"), atol=1e-6)
    assert not np.allclose(last(lab, "osa_das", "overall_score, m 1"), last(lab, "osa_das", "overall_score"), atol=1e-6)
    assert {f"overall_score, m {m}" for m in arms.SWEPT} <= set(lab.table.metric)


@pytest.mark.parametrize("knob", [dict(views=2), dict(dimension=1), dict(window=14), dict(strength=2.0), dict(feature="penultimate"),
                                  dict(feature="probabilities"), dict(fill="zero"), dict(fill="blur"), dict(fill="noise"),
                                  dict(masks="grid"), dict(share=0.3), dict(flip=True)], ids=str)  # fmt: skip
def test_every_knob_of_the_explanation_acts(lab, knob):
    net = lab.arms["network"].members[0]
    plain, other = (finished("osa_das", net, lab.arms["osa_das"].subjects[0].x, dataclasses.replace(lab.params, sweep=False, **more))
                    for more in ({}, knob))  # fmt: skip
    assert torch.isfinite(other.maps[0]).all() and not torch.allclose(plain.maps[0], other.maps[0])


def test_pictures_differ_between_cues_by_the_marker_alone():
    plain, marker, both = (source.load(0, cue) for cue in ("digit", "marker", "both"))
    corner = np.s_[..., : source.MARK, : source.MARK]
    assert torch.equal(marker.bare, plain.test_x) and torch.equal(plain.box, marker.box) and not plain.box[corner].any()
    assert torch.equal(marker.test_x[corner][:, 0], source.codes()[marker.test_y])
    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[corner] = False
    assert torch.equal(marker.test_x[:, 0, outside], plain.test_x[:, 0, outside])
    assert abs((both.says == both.test_y).float().mean() - 0.91) < 0.04 and (marker.says == plain.test_y).float().mean() < 0.2
    bright = plain.test_x[:, 0] > 0.7  # above textures and shapes
    assert not bright[~plain.box].any() and bright[plain.box].float().mean() > 0.1


def test_any_two_markers_differ_in_two_fields():
    fields = source.codes()[:, ::2, ::2].flatten(1)
    assert torch.cdist(fields, fields, p=1)[~torch.eye(10, dtype=torch.bool)].min() >= 2


def test_a_network_that_reads_the_marker_alone_is_shown_to_look_there():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1600, 10))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].weight.view(10, 40, 40)[:, :6, :6] = source.codes() - source.codes().mean(0)
        net[1].bias.zero_()
    d = source.load(0, "marker")
    assert (net(d.test_x).argmax(1) == d.test_y).float().mean() > 0.95
    for name in ("osa", "osa_das"):
        arm = finished(name, net, d.test_x[:6], smoke(window=8, strength=0.3))
        on_digit = method.mass_inside(arm.maps[0], d.box[:6])
        spot = torch.zeros(6, 40, 40)
        spot[:, :12, :12] = 1  # windows are wider than the marker
        assert method.mass_inside(arm.maps[0], spot).min() > 0.8 and on_digit.max() < 0.15


# ---- data and networks of one's own


def write(folder, classes=("bar", "dot"), n=20, shape=(36, 32), mode="L"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 100, shape, dtype=np.uint8)
            pixels[2:30 if label else 5, 3:9] = 250
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
    return str(folder)


def write_boxes(folder, change=lambda rows: rows):
    rows = [["file", "x0", "y0", "x1", "y1"]] + [[f"{c}/{i}.png", 3, 2, 9, 30] for c in ("bar", "dot") for i in range(20)]
    (folder / "boxes.csv").write_text("\n".join(",".join(map(str, row)) for row in change(rows)))


def test_own_images_with_boxes_and_weights_run_the_whole_study(tmp_path, monkeypatch):
    folder = write(tmp_path)
    write_boxes(tmp_path)
    torch.save(source.network("cnn", 1, 2).state_dict(), tmp_path / "network.pt")
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    lab = Experiment(study.find("osa-das"), smoke()).run()
    assert np.isfinite(last(lab, "osa_das", "mass_on_object")).all() and "misled" not in lab.arms
    box = lab.arms["osa"].subjects[0].box[0]
    assert box[2:30, 3:9].all() and box.sum() == 28 * 6
    state = torch.load(tmp_path / "network.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in lab.arms["network"].members[1].state_dict().items())
    assert lab.figures()["maps"].data
    monkeypatch.setattr(own, "predicted", lambda net, x: torch.full((len(x),), 7))
    with pytest.raises(ValueError, match="names the class of no picture"):
        Experiment(study.find("osa-das"), smoke(), arms=["network"]).run()


@pytest.mark.parametrize("case, message", [
    (dict(classes=("bar",)), "holds 1 class folders"), (dict(n=19), "holds 19 PNG images: at least 20"),
    (dict(mode="RGBA"), "colour mode RGBA"), (dict(shape=(31, 40)), "40 x 31: sides must be from 32 to 256"),
])  # fmt: skip
def test_unfit_folders_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_images(write(tmp_path, **case))


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows[:5], "no row for bar/10.png"), (lambda rows: [row[:4] for row in rows], "must hold the columns"),
    (lambda rows: [*rows[:-1], ["dot/19.png", 3, 2, 33, 30]], r"\(3, 2, 33, 30\) of dot/19.png must lie in a picture of 32 x 36"),
    (lambda rows: [*rows[:-1], ["dot/19.png", 9, 2, 9, 30]], "must lie in a picture"),
    (lambda rows: [*rows[:-1], ["dot/19.png", 3, 2, "wide", 30]], "dot/19.png must be four whole numbers"),
])  # fmt: skip
def test_unfit_boxes_are_refused(tmp_path, change, message):
    folder = write(tmp_path)
    write_boxes(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        source.own_images(folder)


@pytest.mark.parametrize("made", [lambda: source.network("cnn", 1, 3).state_dict(), lambda: nn.Linear(2, 2), lambda: [1.0]])
def test_unfit_weights_are_refused(tmp_path, made):
    torch.save(made(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match="does not hold weights of the cnn network with 1 colours and 2 classes"):
        source.own_network(str(tmp_path), "cnn", 1, 2, (36, 32))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = source.network("cnn", 1, 2).state_dict()
    state["0.weight"][0] = float("nan")
    torch.save(state, tmp_path / "network.pt")
    with pytest.raises(ValueError, match="0.weight holds a value that is not a number"):
        source.own_network(str(tmp_path), "cnn", 1, 2, (36, 32))


def test_any_network_of_colour_images_is_explained_and_unfit_calls_are_refused():
    net, x = random_net(4, colours=3), images(12, 40, 3).numpy()
    y = net(torch.from_numpy(x)).argmax(1).numpy()
    found = own.explain(net, x, y, smoke())
    assert set(found) == set(arms.EXPLANATIONS) and np.isfinite(found["osa_das"].results["overall_score"])
    for wrong, message in [((x[:, :, :30], y), "sides from 32"), ((x + 1, y), r"numbers in \[0, 1\]"), ((x, y[:3]), "each of 12 images"),
                           ((x, y + 10), "the map of labels does not fit"), ((x, (y + 1) % 10), "the class of no image")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            own.explain(net, *wrong, smoke())
    with pytest.raises(ValueError, match="box has the shape"):
        own.explain(net, x, y, smoke(), box=np.zeros((3, 40, 40)))
