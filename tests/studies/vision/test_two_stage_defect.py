"""two-stage-defect: weights against scipy, precision against scikit-learn, gradients against the rule; limits; own folders."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score
from torch.nn import functional as F  # noqa: N812

from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.training import Run

STUDY = find("two-stage-defect")
M = STUDY.module
SMALL = dict(steps=12, positives=8, negatives=16, test=40, size=24, seeds=2)
SEGMENTER = ("trunk.", "head.")


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return [M.data.coarsen(M.data.walk(rng, 48) | M.data.walk(rng, 48), px) for px in (0, 3, 6)]


def trained(task, steps, **values):
    run = Run(task(STUDY.make({**SMALL, **values})), [1000])
    start = {name: tensor.detach().clone() for name, tensor in run.members[0].named_parameters()}
    for _ in range(steps):
        run.advance()
    return start, dict(run.members[0].named_parameters())


def moved(start, end):
    return {name for name in start if not torch.equal(start[name], end[name])}


# ---- the method


@pytest.mark.parametrize(("p", "w_pos"), [(1.0, 3.0), (2.0, 10.0)])
def test_pixel_weights_are_the_distance_over_its_regional_maximum(masks, p, w_pos):
    for mask in masks:
        found = M.pixel_weights(torch.from_numpy(M.data.depth(mask)), p, w_pos).numpy()
        expected = np.ones(mask.shape)
        regions, count = ndimage.label(mask)
        for k in range(1, count + 1):
            far = ndimage.distance_transform_edt(mask)[regions == k]
            expected[regions == k] = w_pos * (far / far.max()) ** p
        assert count and np.allclose(found, expected, rtol=1e-12)


def test_depth_is_the_brute_force_distance_to_the_nearest_pixel_outside(masks):
    mask = masks[2]
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    far = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(-1)).min(1)
    assert ndimage.label(mask)[1] == 1 and np.allclose(M.data.depth(mask)[mask], far / far.max())


def test_flat_weights_are_the_plain_loss():
    rng = torch.Generator().manual_seed(0)
    logits, depth = torch.randn(4, 1, 6, 6, generator=rng), torch.rand(4, 1, 6, 6, generator=rng).sub(0.5).clamp_min(0)
    own = M.segmentation_loss(logits, depth, M.pixel_weights(depth, 0.0, 1.0))
    assert torch.equal(own, torch.nn.BCEWithLogitsLoss()(logits, (depth > 0).float()))


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for n, levels in ((40, 1000), (200, 7), (30, 1)):  # many ties, and nothing but ties
        y, score = rng.integers(2, size=n), rng.integers(levels, size=n).astype(np.float32)
        assert M.average_precision(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-12)


def test_share_of_the_gradient_is_exact_and_linear():
    net, x = M.SegDec(), torch.randn(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    found, logits = {}, {}
    for share in (0.0, 0.25, 0.5, 1.0):
        net.zero_grad()
        logits[share] = net(x, share)[1]
        F.binary_cross_entropy_with_logits(logits[share], torch.tensor([1.0, 0, 1, 0])).backward()
        grads = {name: p.grad for name, p in net.named_parameters() if name.startswith(SEGMENTER)}
        found[share] = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                                  for (name, g), p in zip(grads.items(), [net.get_parameter(n) for n in grads], strict=True)])  # fmt: skip
        assert net.linear.weight.grad.abs().max() > 0
    assert torch.equal(found[0.0], torch.zeros_like(found[0.0])) and found[1.0].abs().max() > 0
    assert all(torch.equal(logits[0.0], other) for other in logits.values())
    for share in (0.25, 0.5):
        assert torch.allclose(found[share], share * found[1.0], rtol=1e-4, atol=1e-8)


def test_the_map_has_its_own_way_to_the_score():
    net = M.SegDec().eval()
    with torch.no_grad():
        net.linear.weight.zero_()
        net.linear.weight[0, -2:] = torch.tensor([1.0, 10.0])
        net.linear.bias.zero_()
        x = torch.randn(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
        s, logit = net(x)
    assert s.shape[-1] == 12 and torch.allclose(logit, s.flatten(1).max(1).values + 10 * s.flatten(1).mean(1), atol=1e-5)


def test_one_negative_is_drawn_in_proportion_to_one_over_its_use():
    rng, counts = np.random.default_rng(0), np.zeros(4)
    for _ in range(6000):
        counts[M.by_use(rng, np.array([0.0, 1.0, 1.0, 3.0]), 1)] += 1
    assert stats.chisquare(counts, 6000 * np.array([4, 2, 2, 1]) / 9).pvalue > 1e-3


def test_use_evens_out_what_uniform_draws_leave_to_chance():
    found = {}
    for even in (True, False):
        bad, good = M.plan(np.random.default_rng(3), 24, 300, 960, even)
        found[even] = bad, np.bincount(good, minlength=300)
        assert all(len(set(bad[k : k + 24])) == 24 for k in range(0, 960, 24))
        drawn = [len(set(good[k : k + 24])) for k in range(0, 960, 24)]
        assert (min(drawn) == 24) is even
    assert np.array_equal(found[True][0], found[False][0])  # the positives come in the same order
    assert found[False][1].var() == pytest.approx(960 / 300, rel=0.3)  # nearly Poisson
    assert found[True][1].var() < 0.6 * found[False][1].var()


# ---- training


def test_at_lambda_one_the_update_is_pure_segmentation_bit_for_bit():
    class MasksOnly(M.EndToEnd):
        def loss(self, net, x, depth, y, balance):
            return M.segmentation_loss(net.segment(x)[1], depth, self.weights(depth))

    class AtOne(M.EndToEnd):
        def balance(self, step):
            return 1.0

    start, pure = trained(MasksOnly, 3)
    _, joint = trained(AtOne, 3)
    assert moved(start, pure) == {name for name in start if name.startswith(SEGMENTER)}
    assert all(torch.equal(pure[name], joint[name]) for name in start)


def test_one_after_the_other_moves_one_stage_at_a_time():
    start, half = trained(M.Sequential, 6, gradient_multiplier=1.0)
    _, end = trained(M.Sequential, 12, gradient_multiplier=1.0)
    assert moved(start, half) == {name for name in start if name.startswith(SEGMENTER)}
    assert moved(half, end) == {name for name in start if not name.startswith(SEGMENTER)}


@pytest.mark.parametrize(
    ("arm", "values"),
    [("e2e_open_gradient", dict(gradient_multiplier=1.0)), ("e2e_flat_weights", dict(p=0.0, w_pos=1.0))],
    ids=["open gradient", "flat weights"],
)
def test_at_its_limit_an_ingredient_is_gone(arm, values, monkeypatch):
    monkeypatch.setattr(M.ARMS[arm], "lr", M.EndToEnd.lr)
    _, method = trained(M.EndToEnd, 4, **values)
    _, without = trained(M.ARMS[arm], 4, **values)
    _, usual = trained(M.EndToEnd, 4)
    assert all(torch.equal(method[name], without[name]) for name in method)
    assert any(not torch.equal(method[name], usual[name]) for name in method)


def test_batches_alternate_and_carry_their_own_masks():
    task = M.EndToEnd(STUDY.make(SMALL)).bind(1000)
    x, depth, y, balance = task.batch(None, None, 2)
    assert y.tolist() == [1.0, 0.0] * 4 and float(balance) == pytest.approx(1 - 2 / 12)
    exact = F.max_pool2d(torch.from_numpy(task.train.masks).float()[:, None], 4)[task.rows[2]]
    assert ((depth > 0) >= (exact > 0)).all() and (depth[1::2] == 0).all() and (depth[::2].amax((1, 2, 3)) == 1).all()
    assert torch.equal(x, task.train.x[task.rows[2]])


# ---- data


def test_texture_has_the_spectrum_it_names():
    x = M.data.texture(np.random.default_rng(0), 200, 48, 1.2, stretch=1.0)
    power = (np.abs(np.fft.fft2(x)) ** 2).mean(0)
    k = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.fftfreq(48)).flatten()
    near = (k > 0) & (k < 0.4)
    slope = stats.linregress(np.log(k[near]), np.log(power.flatten()[near])).slope
    assert slope == pytest.approx(-2.4, abs=0.05)
    assert np.allclose(x.std((1, 2)), 1)


def test_coarse_masks_hold_the_defect_and_grow(masks):
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = M.data.walk(rng, 48)
        sizes = [(m := M.data.coarsen(mask, px)).sum() for px in (0, 2, 4, 8) if (M.data.coarsen(mask, px) >= mask).all()]
        assert len(sizes) == 4 and sizes == sorted(sizes) and sizes[0] == mask.sum() < sizes[1]
        grown = ndimage.distance_transform_edt(~mask) <= 8
        assert (m >= grown).all()  # the last ellipse holds all of the grown mask


def test_neither_extremes_nor_spread_of_brightness_tell_the_classes_apart():
    _, held = M.load(STUDY.make(), 1000)
    x, y = held.x.flatten(1).numpy(), held.y.numpy()
    assert y.mean() == 0.25 and set(held.kinds[y > 0]) == {0, 1, 2}
    for score in (x.max(1), -x.min(1), np.ptp(x, 1), x.std(1)):
        assert average_precision_score(y, score) < 0.45


def test_training_and_test_parts_differ_and_follow_from_the_seed():
    train, held = M.data.parts(1000, 24, 8, 16, 40, 1.2)
    again = M.data.parts.__wrapped__(1000, 24, 8, 16, 40, 1.2)[0]
    assert torch.equal(train.x, again.x) and not torch.equal(train.x, M.data.parts(1001, 24, 8, 16, 40, 1.2)[0].x)
    assert torch.cdist(train.x.flatten(1), held.x.flatten(1)).min() > 1


# ---- the experiment


def test_smoke_records_every_claim_with_equal_budgets(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert set(rows.seed) == {1000, 1001} and rows.value.between(0, 1).all() and set(rows.step) == {20}
    assert smoke.budgets[["steps", "samples", "forward_calls"]].nunique().max() == 1
    member, task = smoke.arms["e2e"].members[1], smoke.arms["e2e"].tasks[1]
    score = M.scored(member, task.held.x)
    told = smoke.table.query("arm == 'e2e' and metric == 'test_ap' and seed == 1001").value.item()
    assert told == pytest.approx(average_precision_score(task.held.y.numpy(), score), abs=1e-9)


def test_figures_and_views_hold_data(smoke):
    found = smoke.figures()
    assert set(found) == {"ranking over training", "ablation", "negative use", "worst parts, end to end",
                          "worst parts, one after the other", "gradient at the border"}  # fmt: skip
    bars = [t for t in found["ablation"].data if t.type == "bar"]
    last = smoke.table.query("metric == 'test_ap'").groupby("arm").value.mean()
    assert bars[0].x[0] == pytest.approx(last["classifier_only"] - last["e2e"])
    counts = [t for t in found["negative use"].data if t.name == "by use"][0]
    assert (np.array(counts.x) * counts.y).sum() == pytest.approx(80 / 16)  # 4 x 20 draws of 16 images
    assert sum(t.type == "heatmap" for t in found["worst parts, end to end"].data) == 24
    for view in M.VIEWS.values():
        picture = view(smoke.arms["sequential"].members[0], smoke.params)
        assert len(picture.data) >= 2 and picture.layout.title.text


# ---- a folder of one's own


def folder(tmp_path, items=6, views=3, side=60):
    rng = np.random.default_rng(0)
    for i in range(items):
        (tmp_path / f"part{i}").mkdir()
        for k in range(views):
            mask = np.zeros((side, side + 10), np.uint8)
            if k == 0 and i < 4:
                mask[20, 10:40] = 255
            grey = rng.integers(100, size=mask.shape).astype(np.uint8) + mask // 2
            Image.fromarray(grey).save(tmp_path / f"part{i}" / f"{k}.png")
            Image.fromarray(mask).save(tmp_path / f"part{i}" / f"{k}_label.png")
    return tmp_path


def test_own_folder_runs_and_no_item_is_on_both_sides(tmp_path, monkeypatch):
    folder(tmp_path)
    x, masks, items = M.data.own_parts(str(tmp_path), 24)
    assert len(x) == 18 and masks.any((1, 2)).sum() == 4 and len(set(items)) == 6
    marked = np.broadcast_to(np.unique(items, return_inverse=True)[1][:, None, None], x.shape)  # each image shows its item
    train, held = M.data.split(marked, masks, items, np.random.default_rng(0))
    assert not set(train.x.unique().tolist()) & set(held.x.unique().tolist())
    assert len(train.x) + len(held.x) == 18 and train.y.sum() == held.y.sum() == 2
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    start, end = trained(M.EndToEnd, 2)
    assert moved(start, end)


def damaged(change):
    def apply(path):
        one = path / "part0" / "0.png"
        change(path, one, one.with_name("0_label.png"))

    return apply


GREY = np.full((60, 70), 128, np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damaged(lambda path, one, mask: mask.unlink()), "0.png has no mask 0_label.png"),
        (damaged(lambda path, one, mask: Image.fromarray(GREY[:50]).save(mask)), "70 x 50.*70 x 60"),
        (damaged(lambda path, one, mask: Image.fromarray(GREY).save(mask)), "not binary: 100.0%"),
        (damaged(lambda path, one, mask: one.write_bytes(b"text")), "0.png cannot be read"),
        (damaged(lambda path, one, mask: [Image.fromarray(GREY[:9, :9]).save(f) for f in (one, mask)]), "9 x 9.*24 x 24"),
        (lambda path: [f.unlink() for f in path.rglob("*.png")], "holds no images"),
    ],
    ids=["mask missing", "mask size", "grey mask", "no image", "too small", "empty"],
)
def test_own_folder_that_does_not_fit_is_refused(tmp_path, change, words):
    change(folder(tmp_path, items=2, views=1))
    with pytest.raises(ValueError, match=f"(?s){words}"):
        M.data.own_parts(str(tmp_path), 24)


def test_a_class_that_is_missing_on_one_side_is_named(tmp_path):
    x, masks, items = M.data.own_parts(str(folder(tmp_path, items=2, views=2)), 24)
    with pytest.raises(ValueError, match="2 of 4 parts, in 2 of 2 items"):
        M.data.split(x, masks, items, np.random.default_rng(0))
    with pytest.raises(ValueError, match="not a folder"):
        M.data.own_parts(str(tmp_path / "none"), 24)


def test_masks_of_zero_and_one_and_hairlines_survive(tmp_path):
    mask = np.zeros((60, 70), np.uint8)
    mask[31, 5:60] = 1
    Image.fromarray(GREY).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_label.png")
    _, masks, _ = M.data.own_parts(str(tmp_path), 24)
    assert (masks[0].any(0).sum() >= 18) and masks[0].any(1).sum() in (1, 2)
