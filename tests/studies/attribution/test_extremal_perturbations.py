"""Extremal perturbations against scipy, captum, autograd of the literal formulas, brute force, and cases worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.attribution import _extremal_perturbations_arms as arms
from claimlab.studies.attribution import _extremal_perturbations_data as source
from claimlab.studies.attribution import _extremal_perturbations_masks as masks
from claimlab.studies.attribution import _extremal_perturbations_method as method
from claimlab.studies.attribution import extremal_perturbations as own

torch.set_num_threads(1)


def smoke(**values):
    return own.Params(**(own.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("extremal-perturbations"), smoke()).run()


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sorted_form(m, area):
    """The formula as the paper writes it, for one mask."""
    n = m.numel()
    reference = torch.zeros(n, dtype=m.dtype)
    reference[n - round(area * n) :] = 1
    return (m.flatten().sort().values - reference).square().mean()


# ---- the area loss


@pytest.mark.parametrize("area", [0.04, 0.25, 0.9])
def test_a_binary_mask_of_the_area_costs_nothing_in_any_arrangement(area):
    for seed in range(5):
        m = (uniform(100, seed=seed).argsort() < round(100 * area)).float()
        assert method.area_loss(m.view(1, 10, 10), torch.tensor([area])).item() == 0
        assert method.area_loss(1 - m.view(1, 10, 10), torch.tensor([area])).item() > 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), area=st.sampled_from([0.1, 0.33, 0.5, 0.95]), levels=st.sampled_from([2, 4, 1000]))
def test_the_area_loss_is_that_of_the_sorted_values_with_and_without_ties(seed, area, levels):
    m = (uniform(1, 6, 7, seed=seed, dtype=torch.float64) * levels).round() / levels
    assert torch.allclose(method.area_loss(m, torch.tensor([area]))[0], sorted_form(m[0], area), atol=1e-12)


def test_the_gradient_of_the_area_loss_passes_gradcheck_and_is_that_of_the_sorted_form():
    area = torch.tensor([0.2, 0.7])
    m = uniform(2, 25, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: method.area_loss(t, area), (m,))
    mine = torch.autograd.grad(method.area_loss(m, area).sum(), m)[0]
    theirs = torch.autograd.grad(sum(sorted_form(one, a) for one, a in zip(m, (0.2, 0.7), strict=True)), m)[0]
    assert torch.allclose(mine, theirs)


def test_where_all_values_are_equal_no_place_is_favoured():
    m = torch.ones(1, 40, requires_grad=True)
    slope = torch.autograd.grad(method.area_loss(m, torch.tensor([0.1])).sum(), m)[0]
    assert torch.allclose(slope, torch.full((1, 40), 2 * 0.9 / 40))  # the mean over all orders of 2 (1 - r) / n


# ---- the smooth family


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 10))
def test_the_smooth_maximum_lies_between_mean_and_maximum(values, temperature):
    z = torch.tensor(values, dtype=torch.float64)
    assert z.mean() - 1e-12 <= method.smooth_maximum(z, temperature) <= z.max() + 1e-12


def test_the_smooth_maximum_tends_to_the_maximum_and_to_the_mean():
    z = uniform(5, 9, dtype=torch.float64)
    assert torch.allclose(method.smooth_maximum(z, 1e-4), z.amax(1), atol=1e-9)
    assert torch.allclose(method.smooth_maximum(z, 1e6), z.mean(1), atol=1e-6)


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_masks_are_the_smooth_maximum_over_nodes_pixel_by_pixel(sigma):
    family = method.Smooth((11, 14), sigma)
    nodes = uniform(2, *family.nodes)
    found = family.masks(nodes)
    at = [family.step * (np.arange(n) - method.MARGIN) for n in family.nodes]
    for row, column in [(0, 0), (4, 7), (10, 13), (5, 0)]:
        far = np.hypot(at[0][:, None] - row, at[1] - column)
        kernel = np.where(far <= method.REACH * sigma, np.exp(-2 * np.maximum(far / sigma - 0.5, 0) ** 2), 0)
        near = torch.from_numpy(far <= method.REACH * sigma)
        z = torch.from_numpy(kernel).float()[near] * nodes[1][near]
        absent = len(family.weight[0]) - len(z)  # beyond the margin, or felt by other pixels of a cell only: zeros here
        assert torch.allclose(found[1, row, column], method.smooth_maximum(torch.cat([z, torch.zeros(absent)])), atol=1e-5)


def test_the_gradient_of_the_max_convolution_passes_gradcheck():
    nodes, weight = uniform(5, 4, 3, dtype=torch.float64).requires_grad_(), uniform(2, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: method.MaxConvolution.apply(t, weight, 0.2), (nodes,))


def test_masks_are_smooth_and_can_leave_the_picture():
    family = method.Smooth((32, 32), 5.0)
    nodes = torch.zeros(1, *family.nodes)
    nodes[0, 0, 9] = 1  # a node above the upper border
    mask = family.masks(nodes)[0]
    assert mask[0].max() > 0.5 and mask[12:].max() < 0.01
    full = torch.zeros(1, *family.nodes)
    full[0, 8:10, 8:10] = 1
    assert family.masks(full)[0].diff(dim=0).abs().max() < 0.5  # a free mask could jump by 1


def scene_net(classes=3, seed=3):
    net = source.network(1, classes)
    rng = torch.Generator().manual_seed(seed)
    for weights in net.parameters():
        weights.data += 0.3 * torch.randn(weights.shape, generator=rng)
    return net.eval()


def test_without_reach_the_smooth_family_is_the_free_mask():
    p = dataclasses.replace(smoke(), sigma=0.5)  # below the knob's range: a node is felt by its own pixel only
    x, y, net = uniform(2, 1, 16, 16), torch.tensor([0, 2]), method.frozen(scene_net())
    x, p = x.repeat(1, 1, 2, 2), dataclasses.replace(p, mask_steps=12)
    one, two = masks.Forming(net, x, y, p), masks.Forming(net, x, y, p, "free")
    for rngs in zip(*[[arms.stream(0, "shifts")] * 12] * 2, strict=True):
        state = rngs[0].get_state()
        one(rngs[0])
        rngs[0].set_state(state)
        two(rngs[0])
    assert torch.allclose(one.masks(), two.masks(), atol=1e-4) and one.masks().std() > 0.05


# ---- what happens outside the mask


@pytest.mark.parametrize("sigma", [0.0, 0.7, 2.0, 5.0])
def test_the_blur_is_scipys(sigma):
    x = uniform(2, 3, 12, 17)
    theirs = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma)) if sigma else x.numpy()
    assert np.allclose(method.blur(x, sigma), theirs, atol=1e-6)


def test_mask_one_gives_the_picture_back_and_mask_zero_the_most_blurred():
    x = uniform(3, 1, 20, 20)
    levels = method.pyramid(x)
    assert torch.allclose(method.perturb(levels, torch.ones(3, 20, 20)), x, atol=1e-6)
    blurred = ndimage.gaussian_filter(x.double().numpy(), (0, 0, 5, 5))
    assert np.allclose(method.perturb(levels, torch.zeros(3, 20, 20)), blurred, atol=1e-6)
    half = method.perturb(levels, torch.full((3, 20, 20), 1.5 / 7))  # halfway between levels 1 and 2
    assert torch.allclose(half, (levels[:, 1] + levels[:, 2]) / 2, atol=1e-6)
    m = uniform(3, 20, 20, seed=4)
    assert torch.allclose(method.perturb(method.pyramid(x, "fade"), m), x * m[:, None], atol=1e-6)


def test_shifts_move_by_a_pixel_and_repeat_the_edge():
    x = uniform(1, 1, 6, 5)
    moved = method.shifted(x, 1, -1)
    assert torch.equal(moved[..., 1:, :-1], x[..., :-1, 1:]) and torch.equal(moved[..., 0, :-1], x[..., 0, 1:])
    assert torch.equal(method.shifted(x, 0, 0), x)


# ---- rewards, games, areas


def test_rewards_and_games_by_hand():
    out, target = torch.tensor([[1.0, 4.0, 3.0], [2.0, -1.0, 5.0]]), torch.tensor([1, 0])
    assert method.reward(out, target).tolist() == [4, 2]
    assert method.reward(out, target, "contrastive").tolist() == [1, -3]
    levels, m = method.pyramid(torch.ones(1, 1, 4, 4), "fade"), torch.full((1, 4, 4), 0.25)

    def bright(x):
        return x.mean((1, 2, 3))[:, None] * torch.tensor([8.0, 0.0])

    score = {game: method.played(bright, levels, m, torch.tensor([0]), game).item() for game in ("preserve", "delete", "dual")}
    assert score == {"preserve": 2.0, "delete": -6.0, "dual": -4.0}


def test_areas_lie_around_the_wanted_one():
    assert method.shares(0.1, 3) == pytest.approx([0.05, 0.1, 0.2]) and method.shares(0.9, 3) == pytest.approx([0.8, 0.9, 0.95])
    for area in (0.02, 0.3, 0.5, 0.9):
        six = method.shares(area, 6)
        assert six == sorted(six) and six[0] > 0 and six[-1] < 1 and min(abs(a - area) for a in six) < 1e-12


def test_the_extremal_area_is_the_first_that_is_enough():
    kept = torch.tensor([[1.0, 5.0, 9.0], [0.0, 1.0, 2.0], [9.5, 9.0, 9.9]])
    found = method.extremal_area(kept, torch.full((3,), 10.0), [0.05, 0.1, 0.2], 0.9)
    assert found.tolist() == [pytest.approx(0.2), math.inf, pytest.approx(0.05)]


def test_regions_have_the_area_and_ties_are_broken_at_random():
    maps = torch.zeros(2, 1, 10, 10)
    maps[0, 0, 3, :5] = 1
    found = arms.hard(maps, [0.05, 0.3], 0)
    assert found.sum((2, 3)).tolist() == [[5, 30], [5, 30]] and found[0, 0, 3, :5].sum() == 5
    assert len({tuple(m.nonzero()[0].tolist()) for m in found[1]}) and found[1, 1, :3].sum() not in (0, 30)


class Window(nn.Module):
    """Logit of class 0: forty times the mean brightness of a square."""

    def __init__(self, row, column, side):
        super().__init__()
        self.place = slice(row, row + side), slice(column, column + side)

    def forward(self, x):
        bright = 40 * x[:, :, self.place[0], self.place[1]].mean((1, 2, 3))
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)


@pytest.mark.parametrize("row, column", [(6, 15), (20, 3)])
def test_the_mask_finds_the_square_that_a_toy_score_looks_at(row, column):
    side = 10
    p = smoke(area=side * side / 1024, areas=1, mask_steps=100, perturbation="fade", sigma=3.0)
    made, rng = masks.Forming(Window(row, column, side), torch.ones(1, 1, 32, 32), torch.tensor([0]), p), arms.stream(0, "toy")
    for _ in range(100):
        made(rng)
    mask = made.masks()[0, 0]
    inside = {(a, b): float(mask[a : a + side, b : b + side].sum()) for a in range(23) for b in range(23)}
    best = max(inside, key=inside.get)
    assert max(abs(best[0] - row), abs(best[1] - column)) <= 1 and abs(mask.mean() - p.area) < 0.03
    assert inside[row, column] > 0.7 * mask.sum()


# ---- networks and rivals


def test_the_gradient_of_the_arm_is_captums_saliency():
    net, x, y = scene_net(), uniform(3, 1, 32, 32), torch.tensor([0, 1, 2])
    s = arms.Subject(0, net, method.frozen(net), method.frozen(net), x, y, x[:, 0] > 2, method.pyramid(x), x.mean((0, 2, 3)))
    theirs = attr.Saliency(net).attribute(x.clone(), target=y)
    assert torch.allclose(arms.Gradient.draw(None, s), theirs.amax(1), atol=1e-6)
    whole = s.probability(torch.ones(3, 2, 32, 32))
    with torch.no_grad():
        assert torch.allclose(whole, net(x).softmax(1).gather(1, y[:, None]).expand(-1, 2), atol=1e-5)


def test_layers_are_drawn_anew_from_the_end_and_from_the_generator_alone():
    net, x = scene_net(), uniform(8, 1, 32, 32)
    two = method.redrawn(net, 2, x, arms.stream(0, "w"))
    for k in (0, 1, 3, 4):
        assert all(torch.equal(a, b) for a, b in zip(net[k].state_dict().values(), two[k].state_dict().values(), strict=True))
    assert not torch.allclose(net[6].weight, two[6].weight) and not torch.allclose(net[11].weight, two[11].weight)
    again = method.redrawn(net, 2, x, arms.stream(0, "w"))
    assert all(torch.equal(a, b) for a, b in zip(two.state_dict().values(), again.state_dict().values(), strict=True))
    with torch.no_grad():
        assert torch.equal(method.redrawn(net, 0, x, arms.stream(0, "w"))(x), net(x))


def test_squares_of_occlusion_cover_every_pixel_equally_and_find_what_counts(lab):
    squares = arms.Occlusion.squares(None, (32, 32))
    assert squares.sum(0).unique().tolist() == [16]
    x = torch.ones(1, 1, 32, 32)
    net = Window(8, 20, 6)
    s = arms.Subject(0, net, net, net, x, torch.tensor([0]), x[:, 0] > 2, method.pyramid(x), torch.zeros(1))
    arm = arms.Occlusion(smoke(), [0], type("Before", (), {"subjects": [s]}))
    found = arm.draw(s)[0]
    row, column = divmod(int(found.argmax()), 32)
    assert 8 <= row < 14 and 20 <= column < 26 and arm.calls == len(squares) + 1


def test_correlation_is_numpys():
    a, b = uniform(2, 5, 6), uniform(2, 5, 6, seed=1)
    wanted = [np.corrcoef(a[i].flatten(), b[i].flatten())[0, 1] for i in range(2)]
    assert np.allclose(arms.similarity(a, b), wanted, atol=1e-6) and arms.similarity(a, 0 * b).tolist() == [0, 0]


def test_inversion_of_the_pixels_themselves_is_the_picture():
    goal = 0.2 + 0.6 * uniform(2, 1, 8, 8)
    assert (method.inverted(lambda x: x, goal, goal.shape, smooth=0.0) - goal).abs().max() < 0.02


# ---- the experiment


def last(lab, arm, metric):
    return lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)].groupby("seed").value.last()


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    for claim in lab.study.claims:
        assert all(np.isfinite(last(lab, arm, claim.metric)).all() for arm in (claim.arm, claim.baseline) if arm)
    pictures = lab.figures()
    assert set(pictures) == {"growing", "pointing", "kept", "randomised", "channels"}
    views = {f"{name} {arm}": f(lab.arms[arm].members[0], lab.params) for name, f in own.VIEWS.items() for arm in ("network", "extremal")}
    for name, fig in (pictures | views).items():
        filled = [len(t.z if t.type in ("heatmap", "contour") else t.y) > 0 for t in fig.data]
        assert filled and all(filled) and fig.layout.title.text, name


def test_the_second_network_has_another_start_and_the_same_test_pictures(lab):
    one, two = (lab.arms[name] for name in ("network", "second"))
    assert not torch.allclose(one.fresh(0)[0].weight, two.fresh(0)[0].weight)
    assert torch.equal(one.tasks[0].test[0], two.tasks[0].test[0]) and not torch.equal(one.tasks[0].x, two.tasks[0].x)


def test_the_same_shifts_give_the_same_masks_and_other_shifts_do_not(lab):
    before, p = lab.arms["extremal"], dataclasses.replace(lab.params, mask_steps=40)
    main = masks.Extremal(p, lab.seeds, before)
    same, other = masks.Repeat(p, lab.seeds, main), masks.Repeat(p, lab.seeds, main)
    same.rngs = [arms.stream(seed, "shifts") for seed in lab.seeds]
    for arm in (main, same, other):
        list(arm.ticks())
    assert all(torch.equal(a, b) for a, b in zip(main.maps, same.maps, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(main.maps, other.maps, strict=True))


def test_under_the_control_any_region_keeps_the_answer(lab):
    p = dataclasses.replace(lab.params, **own.Params.CONTROL.set)
    control = Experiment(lab.study, p, arms=["gradient", "free_mask"], seeds=[0]).run()
    for s, arm in ((control.arms[n].subjects[0], control.arms[n]) for n in ("gradient", "free_mask", "extremal")):
        whole = s.probability(torch.ones(len(s.x), 1, 32, 32)).mean()
        assert arm.areas[0] == pytest.approx(0.8) and abs(float(arm.kept[0].mean() - whole)) < 0.05


KNOBS = [dict(area=0.3), dict(sigma=2.0), dict(game="delete"), dict(game="dual"), dict(perturbation="fade"), dict(reward="contrastive"),
         dict(area_weight=300.0), dict(mask_steps=30)]  # fmt: skip


@pytest.mark.parametrize("knob", KNOBS, ids=str)
def test_every_knob_acts_on_the_masks(lab, knob):
    s = lab.arms["extremal"].subjects[0]
    found = []
    for p in (lab.params, dataclasses.replace(lab.params, **knob)):
        made, rng = masks.Forming(s.net, s.x, s.y, p), arms.stream(0, "knobs")
        for _ in range(p.mask_steps):
            made(rng)
        found.append(made.masks())
    assert torch.isfinite(found[1]).all() and not torch.allclose(*found, atol=1e-3)


def test_a_live_knob_reaches_every_mask_and_others_are_refused(lab):
    arm = masks.FreeMask(lab.params, lab.seeds, lab.arms["extremal"])
    assert arm.set(area_weight=7.0) == {"area_weight": (40.0, 7.0)} and {one.p.area_weight for one in arm.members} == {7.0}
    with pytest.raises(ValueError, match="only for all members: area_weight"):
        arm.set(sigma=2.0)


@pytest.mark.parametrize("size", [1, 2])
def test_scenes_hold_the_large_digit_in_its_box_and_a_smaller_one_outside(size):
    x, y, box = source.scenes(np.random.default_rng(0), size)
    assert x.shape[2:] == (32 * size, 32 * size) and x.min() >= 0 and x.max() <= 1 and (box.sum((1, 2)) == (14 * size) ** 2).all()
    bright = x[:, 0] > 0.75  # texture ends at 0.5
    assert (bright & box).any((1, 2)).all() and (bright & ~box).any((1, 2)).all()
    assert (bright & box).sum() > 1.5 * (bright & ~box).sum()


# ---- data of one's own


def write(folder, n=12, mode="L", shape=(24, 20), suffix="png", rows=None, header="file,class,x0,y0,x1,y1"):
    rng, lines = np.random.default_rng(0), [header]
    for k in range(2 * n):
        pixels = rng.integers(0, 90, shape, dtype=np.uint8)
        top = 2 + 10 * (k % 2)
        pixels[top : top + 8, 4:14] = 250
        Image.fromarray(pixels).convert(mode).save(folder / f"{k}.{suffix}")
        lines.append(f"{k}.{suffix},{k % 2},4,{top},14,{top + 8}")
    for at, text in (rows or {}).items():
        lines[at] = text
    (folder / "pictures.csv").write_text("\n".join(lines), encoding="utf-8")
    source.own_pictures.cache_clear()
    source.own_network.cache_clear()
    source.load.cache_clear()
    return str(folder)


@pytest.mark.parametrize("suffix, mode", [("png", "RGB"), ("jpg", "L")])
def test_own_pictures_with_own_networks_run_the_whole_study(tmp_path, monkeypatch, suffix, mode):
    folder = write(tmp_path, mode=mode, suffix=suffix)
    torch.save(source.network(3 if mode == "RGB" else 1, 5).state_dict(), tmp_path / "network.pt")  # knows more classes
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    found = Experiment(study.find("extremal-perturbations"), smoke(seeds=2), arms=["gradient"], seeds=[0]).run()
    state = torch.load(tmp_path / "network.pt", weights_only=True)
    assert all(torch.equal(v, state[k]) for k, v in found.arms["network"].members[0].state_dict().items())
    assert found.arms["second"].step == 20 and np.isfinite(last(found, "extremal", "transfer_probability")).all()
    x, y = found.arms["network"].tasks[0].test
    with torch.no_grad():
        right = int((found.arms["network"].members[0].eval()(x).argmax(1) == y).sum())
    assert last(found, "network", "classified_right").item() == right and x.shape[2:] == (24, 20)


@pytest.mark.parametrize("case, message", [
    (dict(header="file,class,x0,y0,x1"), "has no column y1"), (dict(n=9), r"0 \(9\), 1 \(9\): allowed"),
    (dict(mode="RGBA"), "line 2: .*colour mode RGBA"), (dict(shape=(12, 20)), "leaves the picture of 20 x 12"),
    (dict(rows={3: "2.png,zero,4,2,14,10"}), "line 4: 'zero' is not a whole number"),
    (dict(rows={3: "2.png,-1,4,2,14,10"}), "line 4: -1 is below 0"), (dict(rows={3: "2.png,0,4,2,21,10"}), "line 4: the box"),
    (dict(rows={3: "2.png,0,4,2,4,10"}), "line 4: the box .* is empty"),
    (dict(rows={3: "99.png,0,4,2,14,10"}), "not a readable PNG or JPEG"),
    (dict(rows={3: "../2.png,0,4,2,14,10"}), "inside the folder"), (dict(rows={3: "2.gif,0,4,2,14,10"}), "a .png or .jpg file"),
    (dict(rows={3: "2.png,7,4,2,14,10"}), "allowed are 0, 1, ... without a gap"),
])  # fmt: skip
def test_unfit_pictures_are_refused_by_file_and_line(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_pictures(write(tmp_path, **case))


def test_unfit_tables_and_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        source.own_pictures(str(tmp_path))
    folder = write(tmp_path)
    Image.new("L", (30, 24)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match="line 5: 3.png has the shape"):
        source.own_pictures(folder)
    (tmp_path / "pictures.csv").write_bytes(b"file,class,x0,y0,x1,y1\n\xff\xfe,0,0,0,1,1")
    with pytest.raises(ValueError, match="not UTF-8"):
        source.own_pictures(folder)
    (tmp_path / "pictures.csv").write_text("file,class,x0,y0,x1,y1\n")
    with pytest.raises(ValueError, match="lists no picture"):
        source.own_pictures(folder)


@pytest.mark.parametrize("made, message", [
    (lambda: source.network(1, 2).state_dict(), "with 3 colours"), (lambda: nn.Linear(2, 2), "does not hold weights"),
    (lambda: source.network(3, 1).state_dict(), "knows 1 classes, but pictures.csv has 2"),
    (lambda: {k: v * math.nan if v.is_floating_point() else v for k, v in source.network(3, 2).state_dict().items()}, "not a number"),
])  # fmt: skip
def test_unfit_weights_are_refused(tmp_path, made, message):
    source.own_network.cache_clear()
    torch.save(made(), tmp_path / "network.pt")
    with pytest.raises(ValueError, match=message):
        source.own_network(str(tmp_path), "network", 3, 2)
