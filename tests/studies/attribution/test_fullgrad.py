"""FullGrad against its theorem, against captum's rivals, and against cases worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.parts.attribution import ranks, remove, smoothgrad
from claimlab.studies.attribution import _fullgrad_data as source
from claimlab.studies.attribution import _fullgrad_method as method
from claimlab.studies.attribution import fullgrad

torch.set_num_threads(1)


def network(seed: int, layers=None, colours: int = 1, double: bool = True) -> nn.Module:
    """A net with random weights and random batch statistics, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = source.build(layers or source.plan("plain", colours, 5, 4))
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                for t, low in ((m.running_mean, -1), (m.running_var, 0.3), (m.weight.data, 0.5), (m.bias.data, -1)):
                    t.uniform_(low, 1.5)
    return (net.double() if double else net).eval()


def images(n: int, seed: int = 0, colours: int = 1, side: int = 12) -> torch.Tensor:
    return torch.rand(n, colours, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smoke(**values):
    return fullgrad.Params(**(fullgrad.Params.SMOKE | values))


@pytest.fixture(scope="module")
def lab():
    return Experiment(study.find("fullgrad"), smoke()).run()


# ---- the decomposition


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 5), width=st.integers(1, 5), residual=st.booleans(), pool=st.booleans())
def test_parts_sum_to_the_output_for_relu_nets_of_any_depth(seed, depth, width, residual, pool):
    body = [one for _ in range(depth) for one in (("conv", width, width), ("norm", width), ("relu",))]
    body += [("residual", width)] * residual + [("pool",)] * pool
    net = network(seed, [("conv", 2, width), ("relu",), *body, ("mean",), ("linear", width, 3)])
    x = images(3, seed, colours=2) - 0.4
    target = method.predicted(net, x)
    parts = method.full_gradient(net, x, target)
    f = net(x).gather(1, target[:, None])[:, 0].detach()
    assert torch.allclose(parts.input.flatten(1).sum(1) + parts.bias(), f, rtol=1e-9, atol=1e-9)


def test_smooth_activations_bring_implicit_biases_and_without_them_the_sum_is_wrong():
    net = network(1, [("conv", 1, 4), ("gelu",), ("conv", 4, 4), ("gelu",), ("mean",), ("linear", 4, 3)])
    x = images(4)
    parts = method.full_gradient(net, x, torch.tensor([0, 1, 2, 0]))
    f, own = parts.logit, parts.input.flatten(1).sum(1)
    assert torch.allclose(own + parts.bias(), f, rtol=1e-9)
    assert ((own + parts.bias(("conv", "linear")) - f).abs() > 1e-3).all()


def test_without_batch_norm_biases_completeness_fails():
    f, total = method.sums("explicit_bias_only", network(2), images(6))
    assert ((f - total).abs() / f.abs()).max() > 0.01
    assert torch.allclose(*method.sums("fullgrad", network(2), images(6)), rtol=1e-9)


def test_a_net_without_biases_is_its_gradient_times_its_input_and_fullgrad_is_gradient_x_input():
    net = network(3)
    for m in net.modules():
        if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            m.bias.data.zero_()
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.zero_()
    x, p = images(5), smoke(post="abs")
    parts = method.full_gradient(net, x, method.predicted(net, x))
    assert parts.bias().abs().max() == 0
    assert torch.allclose(parts.input.flatten(1).sum(1), parts.logit, rtol=1e-9)
    assert torch.equal(*(method.saliency(name, net, x, p, None) for name in ("fullgrad", "grad_x_input")))


def test_weak_dependence_two_points_of_one_linear_region_share_both_gradients():
    net = network(4)
    x = images(1)
    step = 1e-9 * torch.sign(images(1, 9) - 0.5)
    c = method.predicted(net, x)
    near, far = (method.full_gradient(net, one, c) for one in (x, x + step))
    for (_, a), (_, b) in zip(near.terms, far.terms, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)  # b is fixed: equal terms are equal gradients
    assert torch.allclose(near.input / x, far.input / (x + step), rtol=1e-9, atol=1e-12)


def test_no_map_that_depends_on_the_region_alone_is_complete():
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU()).double()
    net[0].weight.data = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[2.0, 2.0], [4.0, 4.0]], dtype=torch.float64)
    parts = method.full_gradient(net, x, torch.zeros(2, dtype=torch.long))
    assert parts.logit.tolist() == [8.0, 16.0]
    assert (parts.input / x).tolist() == [[3.0, 1.0], [3.0, 1.0]]


def test_batch_norm_constant_is_what_the_layer_gives_for_zero():
    layer = next(m for m in network(5).modules() if isinstance(m, nn.BatchNorm2d))
    zero = torch.zeros(1, layer.num_features, 2, 2, dtype=torch.float64)
    assert torch.allclose(method.additive(layer, zero, zero)[1], layer(zero))


# ---- the picture


def test_with_post_none_the_map_sums_to_the_output_even_with_shuffled_places():
    net, x = network(6), images(3)
    parts = method.full_gradient(net, x, method.predicted(net, x))
    for shuffle in (None, torch.Generator().manual_seed(0)):
        assert torch.allclose(method.picture(parts, "none", shuffle=shuffle).sum((1, 2)), parts.logit, rtol=1e-9)


def test_psi_scales_a_layer_or_each_channel_and_keeps_dead_channels_dark():
    term = torch.tensor([[[[-4.0, 0.0]], [[1.0, 0.5]], [[7e-9, 7e-9]]]])  # one image, three channels, the last one dead
    assert torch.allclose(method.psi(term, "abs_rescale_layer"), torch.tensor([[[1.25, 0.125]]]))
    assert torch.allclose(method.psi(term, "abs_rescale_channel"), torch.tensor([[[2.0, 0.0]]]))
    assert torch.allclose(method.psi(term, "relu"), torch.tensor([[[1.0, 0.5]]]), atol=1e-7)


def test_halves_of_the_layers_and_the_ablations_add_up():
    net, x = network(7), images(2)
    parts = method.full_gradient(net, x, method.predicted(net, x))
    one, two = (method.picture(parts, "abs", half) for half in ("first_half", "last_half"))
    own = method.psi(parts.input, "abs")
    assert torch.allclose(one + two - own, method.picture(parts, "abs"))
    assert torch.allclose(method.picture(parts, "abs", with_input=False) + own, method.picture(parts, "abs"))


def test_scatter_permutes_each_map_within_itself():
    maps = images(2, colours=3)
    moved = method.scatter(maps, torch.Generator().manual_seed(1))
    assert torch.equal(moved.flatten(2).sort(2)[0], maps.flatten(2).sort(2)[0]) and not torch.equal(moved, maps)


# ---- rivals against captum


def test_rivals_equal_captum():
    net, x = network(8, colours=3), images(4, colours=3)
    c = method.predicted(net, x)
    lit = x.clone().requires_grad_()
    assert torch.allclose(method.RIVALS["input_gradient"](net, x, c, None), attr.Saliency(net).attribute(lit, c).sum(1))
    product = attr.InputXGradient(net).attribute(lit, c).detach()
    assert torch.allclose(method.RIVALS["grad_x_input"](net, x, c, None), product.abs().sum(1))
    last = [m for m in net.modules() if isinstance(m, nn.ReLU)][-1]
    cam = attr.LayerGradCam(net, last).attribute(x, c, relu_attributions=True).detach()
    assert torch.allclose(method.gradcam(net, x, c), attr.LayerAttribution.interpolate(cam, (12, 12), "bilinear")[:, 0])
    path = attr.IntegratedGradients(net).attribute(x, target=c, n_steps=32, method="riemann_middle")
    assert torch.allclose(method.integrated(net, x, c), path)
    total, ends = method.integrated(net, x, c, points=2000).flatten(1).sum(1), net(x) - net(0 * x)
    assert torch.allclose(total, ends.gather(1, c[:, None])[:, 0], rtol=2e-3, atol=2e-3)


def test_smoothgrad_without_noise_is_the_gradient_and_edges_are_sobels():
    from skimage.filters import sobel

    net, x = network(9), images(2)
    c = method.predicted(net, x)
    quiet = smoothgrad(net, x, c, torch.Generator().manual_seed(0), sd=0.0)
    assert torch.allclose(quiet, method.gradient(net, x, c).abs().sum(1))
    inner = (slice(1, -1), slice(1, -1))
    expected = sobel(x[0, 0].numpy())[inner] / np.sqrt(2)  # skimage: differences of two pixels, mean of the axes
    assert np.allclose(method.edge(x)[0].numpy()[inner], expected)


# ---- the two tests


def test_ranks_order_pixels_and_break_ties_at_random():
    maps = images(1, side=6)[:, 0]
    assert torch.equal(ranks(maps, torch.Generator().manual_seed(0)).flatten(), maps.flatten().argsort().argsort())
    rng = torch.Generator().manual_seed(0)
    tied = torch.stack([ranks(torch.zeros(1, 4, 4), rng)[0] for _ in range(400)]).double()
    assert (tied.mean(0) - 7.5).abs().max() < 1.2  # each place has mean rank 7.5, standard error 0.23
    assert sorted(tied[0].flatten().tolist()) == list(range(16))


def test_removal_takes_the_share_asked_for_and_output_change_is_relative():
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    rank = ranks(x[:, 0], torch.Generator().manual_seed(0))
    assert remove(x, rank, 0.25, "least", torch.zeros(1, 1, 1)).flatten().tolist() == [0, 0, 0, 0, *range(5, 17)]
    assert remove(x, rank, 0.25, "most", torch.full((1, 1, 1), 9.0)).flatten()[12:].tolist() == [9] * 4
    summed = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False))
    summed[1].weight.data.fill_(1.0)
    assert method.output_change(summed, x, remove(x, rank, 0.25, "least", torch.zeros(1, 1, 1))) == pytest.approx(10 / 136)


def test_fillings():
    x = images(2, colours=3)
    mean = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert method.filling(x, "black", mean).abs().max() == 0
    assert method.filling(x, "mean", mean).flatten().tolist() == mean.tolist()
    assert torch.allclose(method.filling(x, "blur", mean)[:, :, 6, 6], x[:, :, 3:10, 3:10].mean((2, 3)))


# ---- the experiment


def test_objects_lie_where_the_mask_says_and_clutter_is_what_surrounds_them():
    d, plain = source.load(3, 0.35), source.load(3, 0.0)
    assert len(d.x) == 1300 and len(d.test_x) == 497 and torch.equal(d.test_y, plain.test_y)
    outside = ~d.test_mask
    assert plain.test_x[:, 0][outside].max() <= 0.25 and d.test_x[:, 0][outside].std() > 0.03
    assert d.test_x.min() >= 0 and d.test_x.max() <= 1 and 0.1 < d.test_mask.float().mean() < 0.5


def test_smoke_gives_every_claim_its_metric_and_every_figure_its_data(lab):
    last = lab.table.groupby(["arm", "metric"])["value"].last()
    for claim in lab.study.claims:
        assert all(np.isfinite(last[arm, claim.metric]) for arm in (claim.arm, claim.baseline) if arm)
    assert last["fullgrad", "completeness_error"] < 1e-4 < 0.01 < last["explicit_bias_only", "completeness_error"]
    figures = lab.figures()
    assert set(figures) == {"removal", "maps", "sources", "retraining", "sum_of_parts"}
    views = {name: f(lab.arms["network"].members[0], lab.params) for name, f in fullgrad.VIEWS.items()}
    for name, fig in (figures | views).items():
        filled = [len(t.z if t.type in ("heatmap", "contour") else t.y) > 0 for t in fig.data]
        assert len(filled) >= 2 and all(filled) and fig.layout.title.text, name
    signed = [t for t in figures["sources"].data if t.type == "bar"]
    logit = next(t for t in figures["sources"].data if t.type == "scatter")
    assert np.allclose(np.sum([t.y for t in signed], axis=0), logit.y, rtol=1e-3)


def test_the_control_moves_fullgrad_and_leaves_completeness_and_the_rivals_alone(lab):
    control = fullgrad.Params.CONTROL
    other = Experiment(lab.study, dataclasses.replace(lab.params, **control.set), arms=["fullgrad", "input_gradient"]).run()
    for arm, metric, same in (("fullgrad", "output_change_least", False), ("fullgrad", "completeness_error", True),
                              ("input_gradient", "output_change_least", True)):  # fmt: skip
        a, b = (t[(t.arm == arm) & (t.metric == metric)].value.to_numpy() for t in (lab.table, other.table))
        assert np.array_equal(a, b) == same, (arm, metric)
    assert set(control.vanishes) == {c.id for c in fullgrad.CLAIMS} - {"completeness"}
    assert other.figures()["removal"].data


@pytest.mark.parametrize("knob", [dict(post="none"), dict(layers="last_half"), dict(fill="blur"), dict(order="most"),
                                  dict(fraction=0.6), dict(clutter=0.9), dict(network="residual")], ids=str)  # fmt: skip
def test_every_knob_acts(lab, knob):
    other = Experiment(lab.study, dataclasses.replace(lab.params, **knob), arms=["fullgrad"], seeds=[0]).run()
    chosen = "arm == 'fullgrad' and metric == 'output_change' and seed == 0"
    a, b = (t.query(chosen)["value"].to_numpy() for t in (lab.table, other.table))
    assert not np.array_equal(a, b)


def test_a_live_knob_redraws_the_maps_and_anything_else_is_refused(lab):
    arm = fullgrad.Explanation("fullgrad", lab.params, [0, 1], lab.arms["network"])
    ticks = arm.ticks()
    next(ticks)
    before = arm.maps[0].clone()
    assert arm.set(post="abs") == {"post": ("abs_rescale_layer", "abs")}
    next(ticks)
    assert not torch.allclose(arm.maps[0], before)
    with pytest.raises(ValueError, match="clutter cannot be set here"):
        arm.set(clutter=0.0)


def test_retrained_networks_start_independently_and_see_the_mean_instead_of_salient_pixels(lab):
    arm, seen = lab.arms["fullgrad"], {}
    original, fullgrad.Run = fullgrad.Run, lambda task, seeds: seen.update(task=task, run=original(task, seeds)) or seen["run"]
    try:
        for _ in arm._retrain(0.3):
            pass
    finally:
        fullgrad.Run = original
    starts = [seen["task"].bind(s) for s in seen["task"].altered]
    weights = [m.state_dict()["0.weight"] for m in (seen["run"].members + arm.nets)]
    assert len({w.sum().item() for w in weights}) == len(weights)
    x, mean = starts[0].x, arm.tasks[0].x.mean()
    replaced = (x - mean).abs() < 1e-7
    assert torch.equal(replaced.flatten(1).sum(1), torch.full((len(x),), 120))


# ---- data of one's own


def write(folder, classes=("cat", "dog"), n=6, side=16, mode="RGB", masks=False):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        for part in ("images", "masks") if masks else ("images",):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 120, (side, side, 3), dtype=np.uint8)
            pixels[4:10, 4:10, label] = 250
            Image.fromarray(pixels).convert(mode).save(folder / "images" / name / f"{i}.png")
            if masks:
                Image.fromarray(np.pad(np.full((6, 6), 255, np.uint8), ((4, side - 10), (4, side - 10)))).save(
                    folder / "masks" / name / f"{i}.png")  # fmt: skip
    return str(folder)


def save_network(folder, plan, **changes):
    net = source.build(plan)
    torch.save({"layers": [list(one) for one in plan], "state": net.state_dict()} | changes, f"{folder}/network.pt")
    return net


def test_own_images_and_own_network_run_the_whole_study(tmp_path, monkeypatch):
    folder = write(tmp_path, masks=True)
    layers = [("norm", 3), *source.plan("residual", 3, 2, 4)]
    net = save_network(folder, layers)
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    lab = Experiment(study.find("fullgrad"), smoke(images=4), arms=["fullgrad", "gradcam"]).run()
    assert torch.equal(lab.arms["network"].members[1].state_dict()["1.weight"], net.state_dict()["1.weight"])
    last = lab.table[lab.table.arm == "fullgrad"].groupby("metric").value.last()
    assert last["completeness_error"] < 1e-4 and 0 <= last["top_on_object"] <= 1 and np.isfinite(last["roar_accuracy"])


def test_without_masks_the_claim_about_the_object_is_undecided(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", write(tmp_path))
    lab = Experiment(study.find("fullgrad"), smoke(images=4), arms=["fullgrad", "input_gradient"]).run()
    tight = next(v for v in lab.verdicts() if v.claim == "tight")
    assert tight.verdict == "undecided" and "recorded no top_on_object" in tight.reason


@pytest.mark.parametrize("case, message", [
    (dict(classes=("cat",)), "holds 1 class folders"),
    (dict(n=0), "holds 0 PNG images"),
    (dict(mode="L"), "colour mode L: only RGB"),
    (dict(mode="RGBA"), "colour mode RGBA: only RGB"),
    (dict(side=18), "18 x 18: sides must be multiples of 4"),
])  # fmt: skip
def test_unfit_image_folders_are_refused(tmp_path, case, message):
    with pytest.raises(ValueError, match=message):
        source.own_images(write(tmp_path, **case))


def test_a_file_that_is_no_image_another_size_and_a_missing_mask_are_named(tmp_path):
    folder = write(tmp_path / "a")
    (tmp_path / "a" / "images" / "dog" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="2.png is not a readable PNG"):
        source.own_images(folder)
    folder = write(tmp_path / "b")
    Image.new("RGB", (20, 16)).save(tmp_path / "b" / "images" / "dog" / "2.png")
    with pytest.raises(ValueError, match="2.png has the shape .16, 20, 3., the others .16, 16, 3."):
        source.own_images(folder)
    folder = write(tmp_path / "c", masks=True)
    (tmp_path / "c" / "masks" / "dog" / "2.png").unlink()
    with pytest.raises(ValueError, match="2.png is missing"):
        source.own_images(folder)


FIT = [("conv", 3, 4), ("mean",), ("linear", 4, 2)]


@pytest.mark.parametrize("layers, changes, message", [
    (FIT, dict(layers=[["dropout"], ["mean"], ["linear", 4, 2]]), "'dropout' is not allowed"),
    ([("conv", 3, 4), ("mean",), ("linear", 4, 3)], {}, "has 3 outputs"),
    ([("conv", 1, 4), ("mean",), ("linear", 4, 2)], {}, "do not fit together"),
    ([("conv", 3, 4), ("linear", 4, 2)], {}, "one 'mean'"),
    (FIT, dict(state=[1, 2]), "must hold layers"),
    (FIT, dict(state=nn.Linear(2, 2)), "must hold layers"),
])  # fmt: skip
def test_unfit_networks_are_refused(tmp_path, layers, changes, message):
    save_network(tmp_path, layers, **changes)
    with pytest.raises(ValueError, match=message):
        source.own_network(str(tmp_path), 3, 2)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    net = save_network(tmp_path, FIT)
    net[0].weight.data[0] = float("nan")
    save_network(tmp_path, FIT, state=net.state_dict())
    with pytest.raises(ValueError, match="0.weight holds a value that is not a number"):
        source.own_network(str(tmp_path), 3, 2)
