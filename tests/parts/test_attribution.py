"""The shared pieces of attribution against captum, scipy, closed forms, and cases worked out by hand."""

import numpy as np
import pytest
import torch
from captum import attr
from scipy import ndimage
from torch import nn

from claimlab.parts import attribution

torch.set_num_threads(1)


def network(seed: int = 0, colours: int = 3) -> nn.Sequential:
    """A small convolutional net in float64, in evaluation mode, with random batch statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(colours, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.3, 1.5)
    return net.double().eval()


def pictures(n: int = 4, colours: int = 3, side: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, colours, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- maps from gradients


def test_gradient_is_captums_saliency_with_its_sign():
    net, x = network(), pictures()
    c = attribution.predicted(net, x)
    assert torch.equal(c, net(x).argmax(1))
    lit = x.clone().requires_grad_()
    assert torch.allclose(attribution.gradient(net, x, c), attr.Saliency(net).attribute(lit, c, abs=False))


@pytest.mark.parametrize("base", ["black", "mean"])
def test_integrated_gradients_equal_captums_and_sum_to_the_difference_of_outputs(base):
    net, x = network(1), pictures()
    c = attribution.predicted(net, x)
    start = torch.zeros_like(x) if base == "black" else x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
    own = attribution.integrated(net, x, c, 32, start)
    captums = attr.IntegratedGradients(net).attribute(x, start, target=c, n_steps=32, method="riemann_middle")
    assert torch.allclose(own, captums, atol=1e-12)
    ends = (net(x) - net(start)).gather(1, c[:, None])[:, 0]
    many = attribution.integrated(net, x, c, 2000, start).flatten(1).sum(1)
    assert torch.allclose(many, ends, rtol=5e-3, atol=5e-3)


def test_integrated_gradients_of_a_quadratic_are_its_closed_form():
    class Square(nn.Module):  # f = sum a x^2: the way from b to x gives a (x^2 - b^2) to each pixel; the midpoint rule is exact
        def forward(self, x):
            return (torch.arange(1.0, 5.0, dtype=x.dtype) * x.flatten(1) ** 2).sum(1, keepdim=True)

    x, base = torch.tensor([[[[0.2, -1.0], [3.0, 0.5]]]]), torch.full((1, 1, 2, 2), 0.3)
    found = attribution.integrated(Square(), x, torch.tensor([0]), 3, base)
    assert torch.allclose(found.flatten(), torch.arange(1.0, 5.0) * (x**2 - base**2).flatten(), atol=1e-6)


@pytest.mark.parametrize("layer, name", [(5, "last pooling"), (6, None)])
def test_gradcam_equals_captums_at_the_layer_before(layer, name):
    net, x = network(2), pictures()
    c = attribution.predicted(net, x)
    cam = attr.LayerGradCam(net, net[layer]).attribute(x, c, relu_attributions=True).detach()
    wanted = attr.LayerAttribution.interpolate(cam, (12, 12), "bilinear")[:, 0]
    assert torch.allclose(attribution.gradcam(net, x, c, net[6] if name else None), wanted)
    assert wanted.max() > 0 and not net[6]._forward_pre_hooks


def test_enlarging_keeps_constants_and_on_demand_the_sum():
    small = pictures(2, 1, 3)[:, 0]
    assert torch.allclose(attribution.enlarge(torch.full((1, 3, 3), 2.5), (12, 12)), torch.full((1, 12, 12), 2.5))
    assert torch.allclose(attribution.enlarge(small, (12, 12), keep_sum=True).sum((1, 2)), small.sum((1, 2)))
    inner = ndimage.zoom(small[0].numpy(), 4, order=1, mode="nearest", grid_mode=True)
    assert np.allclose(attribution.enlarge(small, (12, 12))[0].numpy(), inner)


# ---- ranking and removing


def test_ranks_are_positions_in_the_order_and_ties_fall_at_random():
    maps = pictures(3, 1, 6)[:, 0]
    assert np.array_equal(attribution.ranks(maps, generator()).flatten(1).numpy(),
                          np.argsort(np.argsort(maps.flatten(1).numpy(), axis=1), axis=1))  # fmt: skip
    rng = generator()
    tied = torch.stack([attribution.ranks(torch.zeros(1, 4, 4), rng)[0] for _ in range(400)]).double()
    assert (tied.mean(0) - 7.5).abs().max() < 1.2  # mean rank 7.5, standard error 0.23
    assert sorted(tied[7].flatten().tolist()) == list(range(16))


def test_removal_takes_exactly_the_share_from_the_end_that_was_asked_for():
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    rank = attribution.ranks(x[:, 0], generator())
    black, grey = torch.zeros(1, 1, 1), torch.full((1, 1, 4, 4), 9.0)
    assert attribution.remove(x, rank, 0.25, "least", black).flatten().tolist() == [0, 0, 0, 0, *range(5, 17)]
    assert attribution.remove(x, rank, 0.5, "most", grey).flatten().tolist() == [*range(1, 9), *[9] * 8]
    assert torch.equal(attribution.remove(x, rank, 0.0, "most", black), x)
    assert torch.equal(attribution.remove(x, rank, 1.0, "least", grey), grey)


# ---- objects on backgrounds


def test_smooth_noise_is_blurred_noise_that_fills_the_range():
    found = attribution.smooth_noise(200, 24, 2, np.random.default_rng(0))
    assert np.allclose(found.min((1, 2)), 0) and np.allclose(found.max((1, 2)), 1)
    centred = found - found.mean((1, 2), keepdims=True)
    for gap in (1, 2, 4):  # the autocorrelation of white noise under a Gaussian of sd s is exp(-gap^2 / 4 s^2), less the mean
        measured = (centred[:, :, gap:] * centred[:, :, :-gap]).mean() / (centred**2).mean()
        assert abs(measured - np.exp(-(gap**2) / 16)) < 0.1


def test_crops_are_stretched_pieces_of_the_pictures():
    rng = np.random.default_rng(1)
    whole = [rng.random((40, 40)), 5 + 100 * rng.random((40, 40))]
    windows = np.concatenate([np.lib.stride_tricks.sliding_window_view(w, (8, 8)).reshape(-1, 8, 8) for w in whole])
    low, high = windows.min((1, 2), keepdims=True), windows.max((1, 2), keepdims=True)
    scaled = (windows - low) / (high - low)
    found = attribution.crops(whole, 30, 8, rng)
    nearest = [np.abs(scaled - one).max((1, 2)).argmin() for one in found]
    assert all(np.abs(scaled[k] - one).max() < 1e-9 for k, one in zip(nearest, found, strict=True))
    assert len({k >= len(scaled) // 2 for k in nearest}) == 2  # from both pictures


def test_scattered_objects_lie_whole_and_unchanged_at_their_corner_everywhere_on_the_canvas():
    rng = np.random.default_rng(2)
    objects = rng.random((500, 5, 5)).astype(np.float32)
    canvas, corner = attribution.scattered(objects, 9, rng)
    assert all(np.array_equal(c[a : a + 5, b : b + 5], o) for c, o, (a, b) in zip(canvas, objects, corner, strict=True))
    assert np.allclose(canvas.sum((1, 2)), objects.sum((1, 2)), rtol=1e-5)
    assert {tuple(one) for one in corner} == {(a, b) for a in range(5) for b in range(5)}


def test_class_folders_are_listed_in_order_and_thin_ones_refused(tmp_path):
    for name, count in (("dog", 3), ("cat", 4)):
        (tmp_path / name).mkdir()
        for k in range(count):
            (tmp_path / name / f"{k}.png").touch()
    (tmp_path / "cat" / "notes.txt").touch()
    files, labels, names = attribution.class_folders(tmp_path, 3)
    assert names == ("cat", "dog") and labels.tolist() == [0] * 4 + [1] * 3
    assert [f.parent.name for f in files] == ["cat"] * 4 + ["dog"] * 3
    with pytest.raises(ValueError, match="dog holds 3 PNG images: at least 4 a class"):
        attribution.class_folders(tmp_path, 4)
    with pytest.raises(ValueError, match="holds 0 class folders"):
        attribution.class_folders(tmp_path / "missing", 1)
