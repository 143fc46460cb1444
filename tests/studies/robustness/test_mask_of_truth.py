"""Mask of truth against its theorems, scikit-learn, captum and scipy; equal limits; own files; figures."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum import attr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.training import Run

torch.set_num_threads(1)
STUDY = find("mask-of-truth")
study = STUDY.module
method, source, phantom = (
    importlib.import_module(f"claimlab.studies.robustness._mask_of_truth_{part}") for part in ("method", "data", "phantoms")
)
SMOKE = STUDY.make(profile="smoke")


@pytest.fixture(scope="module")
def lab():
    return Experiment(STUDY, SMOKE, seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def clean():
    """Phantoms of 400 patients without a link, and who they are."""
    rng = np.random.default_rng(0)
    who = phantom.patients(400, 0.0, rng)
    return who, phantom.phantoms(who, 40, 1.0, 1.0, rng)


def last(lab, arm, metric):
    rows = lab.table[(lab.table.arm == arm) & (lab.table.metric == metric)]
    return rows.sort_values("step").groupby("seed")["value"].last().to_numpy()


# ---- phantoms


def pair(who, other, **contrast):
    """The same patients with other signs or another hospital, drawn with the same random numbers."""
    given = {"inside": 1.0, "outside": 1.0} | contrast
    return [phantom.phantoms(one, 40, given["inside"], given["outside"], np.random.default_rng(5)) for one in (who, other)]


def boxes(p, dilation=2):
    return method.box_masks(torch.from_numpy(p.centre), torch.tensor(p.reach), dilation, p.image.shape[1:]).numpy()


def test_no_pixel_outside_the_box_depends_on_a_sign_and_none_inside_on_the_hospital():
    who = phantom.patients(150, 0.6, np.random.default_rng(1))
    flipped = who._replace(sign=np.column_stack([1 - who.sign[:, :2], who.sign[:, 2:]]))
    one, two = pair(who, flipped)
    changed = one.image != two.image
    assert np.array_equal(one.mask, two.mask) and changed.any((1, 2)).all()
    assert not changed[~boxes(one)].any()  # rho = 0: hence AUC = 0.5 for whatever reads the box-masked image
    one, two = pair(who, who._replace(site=1 - who.site))
    changed = one.image != two.image
    assert not changed[boxes(one)].any() and changed.any((1, 2)).all()


def test_an_enlarged_heart_changes_the_outline_and_neither_the_box_nor_what_lies_outside_it():
    who = phantom.patients(150, 0.6, np.random.default_rng(2))
    some = np.flatnonzero(who.sign[:, 2] == 0)[:10]
    sign = who.sign.copy()
    sign[some, 2] = 1
    one, two = pair(who, who._replace(sign=sign))
    grew = np.isin(one.patient, some)
    assert (two.mask.sum((1, 2)) > one.mask.sum((1, 2)))[grew].all() and np.array_equal(one.mask[~grew], two.mask[~grew])
    assert one.reach == two.reach and not (one.image != two.image)[~boxes(one)].any()


def test_contrasts_of_zero_leave_no_sign_and_no_trace():
    who = phantom.patients(80, 0.6, np.random.default_rng(3))
    one, two = pair(who, who._replace(sign=np.column_stack([1 - who.sign[:, :2], who.sign[:, 2:]])), inside=0.0)
    assert np.array_equal(one.image, two.image)
    one, two = pair(who, who._replace(site=1 - who.site), outside=0.0)
    assert np.array_equal(one.image, two.image)


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_links_and_signs_have_the_shares_that_are_asked_for(rho):
    who = phantom.patients(40_000, rho, np.random.default_rng(4))
    for k in range(3):
        assert who.disease[who.site == 1, k].mean() == pytest.approx(0.5 + rho / 2, abs=0.01)
        assert (who.sign[:, k] == who.disease[:, k]).mean() == pytest.approx(0.8, abs=0.01)
    same = [phantom.patients(50, r, np.random.default_rng(0)).site for r in (0.0, 1.0)]
    assert np.array_equal(*same)


def test_masks_grow_as_scipy_dilates_and_the_reach_holds_every_mask(clean):
    _, p = clean
    some = p.mask[:5]
    expected = [ndimage.binary_dilation(m, iterations=3) for m in some]
    assert np.array_equal(phantom.grown(some, 3), expected)
    assert not (p.mask & ~boxes(p, 0)).any()
    sizes = boxes(p, 0).sum((1, 2))
    assert (sizes == sizes[0]).all()  # one size for all: the box itself says nothing


def test_the_hospital_can_be_read_outside_and_permuting_it_breaks_the_link():
    """What a linear reader of the box-masked pixels knows of the disease, it knows through the hospital."""
    rng = np.random.default_rng(6)
    who = phantom.patients(600, 0.6, rng)
    p = phantom.phantoms(who, 40, 1.0, 1.0, rng, each=1)
    order = rng.permutation(len(who.site))
    moved = phantom.phantoms(who._replace(site=who.site[order]), 40, 1.0, 1.0, rng, each=1)
    found = []
    for one in (p, moved):
        pixels = np.where(boxes(one), 0, one.image)[:, ::2, ::2].reshape(len(one.image), -1) / 255.0
        read = LogisticRegression(C=0.1, max_iter=300).fit(pixels[:300], who.disease[:300, 0])
        found.append(roc_auc_score(who.disease[300:, 0], read.decision_function(pixels[300:])))
    assert found[0] > 0.7 and abs(found[1] - 0.5) < 0.1


# ---- versions


def test_outline_versions_add_up_to_the_image_and_boxes_contain_them(clean):
    _, p = clean
    x, organ = torch.from_numpy(p.image[:60])[:, None] / 255, torch.from_numpy(p.mask[:60])
    box = torch.from_numpy(boxes(p)[:60])
    shown = {v: method.masked(x, method.kept(v, organ, box)) for v in method.VERSIONS}
    assert torch.equal(shown["no_roi"] + shown["only_roi"], x) and torch.equal(shown["full"], x)
    assert torch.equal(shown["no_roi_box"] + shown["only_roi_box"], x)
    assert torch.equal(method.masked(shown["no_roi"], ~box), shown["no_roi_box"])
    assert torch.equal(method.masked(shown["only_roi_box"], organ), shown["only_roi"])


@pytest.mark.parametrize("fill", ["zero", "mean", "noise", "blur"])
def test_no_fill_lets_removed_pixels_through(clean, fill):
    _, p = clean
    keep = torch.from_numpy(~boxes(p)[:10])
    one = torch.from_numpy(p.image[:10])[:, None] / 255
    two = torch.where(keep[:, None], one, 1 - one)
    a, b = (method.masked(x, keep, fill, 0.4, torch.Generator().manual_seed(1)) for x in (one, two))
    assert torch.allclose(a, b, atol=1e-6) and torch.equal(a[keep[:, None]], one[keep[:, None]])


def test_smearing_is_scipys_gaussian_filter():
    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = method.smeared(torch.ones(1, 1, 49, 24, dtype=torch.float64))[0, 0, 24, 12]  # of the window, not scaled to 1
    assert weights > 1
    expected = ndimage.gaussian_filter(x[:, 0].numpy(), (0, 3, 3), mode="constant", truncate=8)
    assert np.allclose(method.smeared(x)[:, 0].numpy() / (2 * np.pi * 9), expected, atol=1e-4)


def test_a_swap_takes_the_box_from_the_donor_and_the_rest_from_the_receiver(clean):
    who, p = clean
    x, centre, reach = torch.from_numpy(p.image)[:, None] / 255, torch.from_numpy(p.centre), torch.tensor(p.reach)
    donor = method.donors(p.patient, np.random.default_rng(0))
    made = method.swapped(x, torch.from_numpy(donor), centre, reach, 2)
    box = torch.from_numpy(boxes(p))
    assert torch.equal(made[:, 0][~box], x[:, 0][~box])
    for k in (0, 7, 300):
        assert torch.equal(made[k, 0][box[k]], x[donor[k], 0][box[donor[k]]])
    assert (p.patient[donor] != p.patient).all()
    assert np.array_equal(np.sort(np.unique(p.patient[donor])), np.unique(p.patient))
    drawn = [method.donors(p.patient, np.random.default_rng([9, k])) for k in range(10)]
    same = [(who.site[p.patient] == who.site[p.patient[d]]).mean() for d in drawn]
    by_chance = (who.site.mean() ** 2) + (1 - who.site.mean()) ** 2
    assert np.mean(same) == pytest.approx(by_chance, abs=0.03)  # 400 patients, 10 draws: a standard error of 0.008


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(5, 40))
def test_no_patient_stands_on_two_sides_of_a_split(seed, count):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, count, 3 * count)
    parts = method.by_patient(patient, (0.6, 0.15), rng)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(3 * count))
    owners = [set(patient[rows].tolist()) for rows in parts]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])


# ---- AUC and the ideal observer


def test_auc_of_one_class_is_unknown():
    assert np.isnan(method.auc(np.ones(5), np.arange(5.0)))


def test_bootstrap_over_patients_is_wider_than_over_images_where_images_repeat():
    rng = np.random.default_rng(0)
    y, score = np.repeat(rng.integers(0, 2, 60), 8), np.repeat(rng.standard_normal(60), 8)
    low, high = method.bootstrap(y, score, np.repeat(np.arange(60), 8), np.random.default_rng(1))
    alone = method.bootstrap(y, score, np.arange(480), np.random.default_rng(1))
    assert low < method.auc(y, score) < high and high - low > 2 * (alone[1] - alone[0])


def test_ideal_observer_has_the_closed_form_and_the_simulated_value():
    assert method.ideal_auc(0.6, 0.8, False, True) == pytest.approx(0.8)
    assert method.ideal_auc(0.6, 0.8, True, False) == pytest.approx(0.8)
    assert method.ideal_auc(0.6, 0.8, True, True) == pytest.approx(0.896)
    assert method.ideal_auc(0.0, 0.8, True, False, 2) == pytest.approx(0.5)
    who = phantom.patients(60_000, 0.6, np.random.default_rng(7))
    cues = np.column_stack([who.sign, who.sign[:, :1] * who.sign[:, 1:], who.sign[:, 1:2] * who.sign[:, 2:]])  # enough for 8 patterns
    guess = LogisticRegression(max_iter=500).fit(cues, who.disease[:, 0]).predict_proba(cues)[:, 1]
    assert method.ideal_auc(0.6, 0.8, False, True, 2) == pytest.approx(roc_auc_score(who.disease[:, 0], guess), abs=0.006)


def test_rebalanced_weights_make_hospital_and_disease_independent():
    who = phantom.patients(500, 0.6, np.random.default_rng(8))
    weight = method.independent(who.site, who.disease)
    for k in range(3):
        cell = np.array([[weight[(who.site == s) & (who.disease[:, k] == d), k].sum() for d in (0, 1)] for s in (0, 1)]) / 500
        assert np.allclose(cell, np.outer(cell.sum(1), cell.sum(0)), atol=1e-12)
        assert np.allclose(cell.sum(1), [(who.site == s).mean() for s in (0, 1)])


# ---- attribution


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 25, 2)).double().eval()


def test_expected_gradients_are_captums_gradient_shap_and_complete():
    rng = torch.Generator().manual_seed(0)
    x, base = (torch.rand(n, 1, 11, 11, generator=rng, dtype=torch.float64) for n in (3, 6))
    net, target = small(), torch.tensor([0, 1, 1])
    own = method.expected_gradients(net, x, target, base, rng, draws=3000)
    with torch.no_grad():
        f, before = net(x).gather(1, target[:, None])[:, 0], net(base).mean(0)[target]
    assert torch.allclose(own.flatten(1).sum(1), f - before, atol=0.02 * float((f - before).abs().max()) + 0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = attr.GradientShap(net).attribute(x, base, n_samples=3000, stdevs=0.0, target=target).detach()
    assert float((own - theirs).abs().max()) < 0.1 * float(theirs.abs().max())
    assert np.corrcoef(own.flatten(), theirs.flatten())[0, 1] > 0.995


def test_for_a_linear_network_expected_gradients_are_weight_times_distance_from_the_one_baseline():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    base = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    found = method.expected_gradients(net, x, torch.zeros(2, dtype=torch.long), base, torch.Generator().manual_seed(0), draws=2)
    assert torch.allclose(found, (x - 0.3) * net[1].weight.detach().view(1, 1, 4, 4))
    organ = torch.zeros(2, 4, 4, dtype=torch.bool)
    organ[:, :2] = True
    size = found.abs()[:, 0]
    assert torch.allclose(method.share_inside(found, organ), size[:, :2].sum((1, 2)) / size.sum((1, 2)))


# ---- arms


def test_arms_equal_each_other_where_the_knob_removes_their_difference():
    def trained(arm, **values):
        run = Run(study.ARMS[arm](replace(SMOKE, **values)), [1000], steps=2, device="cpu")
        for _ in range(2):
            run.advance()
        return torch.cat([p.detach().flatten() for p in run.members[0].parameters()])

    full = trained("full")
    assert torch.equal(trained("full", rho=0.0), trained("full_unlinked"))
    assert torch.equal(trained("no_roi_box", rho=0.0), trained("no_roi_box_unlinked"))
    assert torch.equal(trained("full", rebalance=1.0), trained("full_rebalanced"))
    assert not torch.equal(full, trained("full_rebalanced")) and not torch.equal(full, trained("full_unlinked"))
    assert torch.equal(full, trained("full", fill="noise"))  # nothing is removed: the same patients in the same order


def test_numbers_of_the_run_are_those_that_scikit_learn_gives(lab):
    run = lab.arms["no_roi_box"]
    task, net = run.tasks[0], run.members[0].eval()
    box = method.box_masks(task.test.centre, task.reach, 2, (40, 40))
    x = (task.test.image.float() / 255 * ~box)[:, None]
    with torch.no_grad():
        said = net(x).numpy()
    y = task.test.y.numpy()
    expected = [roc_auc_score(y[:, k], said[:, k]) for k in range(3)]
    assert last(lab, "no_roi_box", "auc_own_mask")[0] == pytest.approx(np.mean(expected[:2]), abs=1e-3)
    assert last(lab, "no_roi_box", "auc_cardiomegaly")[0] == pytest.approx(expected[2], abs=1e-3)
    assert last(lab, "no_roi_box", "opacity on no_roi_box")[0] == pytest.approx(expected[0], abs=1e-3)
    both = [last(lab, "full", f"swap_{part}") for part in ("outside", "inside")]
    assert last(lab, "full", "auc_no_roi_minus_only_roi") == pytest.approx(both[0] - both[1])


def test_the_hospital_alone_reaches_what_the_link_says():
    d = study.data(1000, replace(SMOKE, patients=900))
    found = study.SiteOnly(SMOKE, [1000]).measure(d)
    assert found["auc_own_mask"] == pytest.approx(0.8, abs=0.03)
    y, site = d.test.y.numpy(), d.test.site.numpy()
    assert found["auc_cardiomegaly"] == pytest.approx(roc_auc_score(y[:, 2], site))


def test_every_arm_draws_the_same_patients(lab):
    ones = [lab.arms[a].tasks[0] for a in ("full", "no_roi_box", "only_roi")]
    drawn = [one.block(None, torch.Generator().manual_seed(3), 0, 2) for one in ones]
    assert all(torch.equal(drawn[0][1], other[1]) for other in drawn[1:])
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_figures_hold_what_the_run_found(lab):
    found = study.figures(lab)
    assert {"matrix", "versions", "learning", "links", "attribution", "embeddings"} <= set(found)
    heat = found["matrix"].data[0].z
    assert heat[2][2] == pytest.approx(last(lab, "no_roi_box", "opacity on no_roi_box").mean())
    assert heat[0][4] == pytest.approx(last(lab, "full", "opacity on only_roi_box").mean())
    free = found["matrix"].data[1].z
    assert free[0][0] == pytest.approx(last(lab, "full_unlinked", "opacity on full").mean()) and np.isnan(free[1][1])
    net = lab.arms["full"].members[0].eval()
    assert all(view(net, SMOKE).data for view in study.VIEWS.values())


def test_other_links_report_under_their_own_names():
    runs = study.other_links(replace(SMOKE, path=1), [1000, 1001])
    assert set(runs.runs) == {"rho=0.2", "rho=0.4", "rho=0.8", "no_roi, unlinked", "only_roi, unlinked", "only_roi_box, unlinked"}
    assert runs.runs["rho=0.8"].task.p.rho == 0.8 and runs.runs["only_roi, unlinked"].tasks[0].version == "only_roi"


# ---- images of one's own


def own_folder(path, n=80, side=24, **change):
    """A folder that fits, with `change` made to it."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
    lines = [change.get("header", "image,patient,site,nodule")]
    for k in range(n):
        label = (k // 2) % 2
        image = rng.integers(0, 120, (side, side)).astype(np.uint8)
        image[8:12, 8:12] += np.uint8(90 * label)
        mask = np.zeros((side, side), np.uint8)
        mask[6:16, 6:18] = 255
        for kind, array in (("images", image), ("masks", mask)):
            Image.fromarray(array).save(path / kind / f"{k}.png")
        lines.append(f"{k}.png,p{k // 2},{(k // 4) % 2},{label}")
    for name, array in change.get("files", {}).items():
        Image.fromarray(array).save(path / name)
    (path / "labels.csv").write_text("\n".join(change.get("lines", lines)), encoding=change.get("encoding", "utf-8"))
    return str(path)


def test_own_images_run_through_the_arms_that_suit_them(tmp_path, monkeypatch):
    folder = own_folder(tmp_path / "mine", n=160)
    monkeypatch.setenv("CLAIMLAB_DATA", folder)
    found = Experiment(STUDY, replace(SMOKE, steps=3), seeds=[0], arms=["full", "no_roi_box", "full_unlinked", "site_only"]).run()
    assert set(found.arms) == {"full", "no_roi_box", "site_only"}  # real images can not be taken again without the link
    assert 0 <= last(found, "no_roi_box", "auc_own_mask")[0] <= 1
    whole, reach, names = source.own_images(folder)
    assert names == ("nodule",) and reach == (6, 3, 6, 5)
    task = found.arms["full"].tasks[0]
    sides = [set(part.patient.tolist()) for part in (task.train, task.validation, task.test)]
    assert not (sides[0] & sides[2] or sides[0] & sides[1] or sides[1] & sides[2]) and len(set.union(*sides)) == 80


GREY = np.full((24, 24), 9, np.uint8)
REFUSED = {
    "a mask has the size of its image": {"files": {"masks/3.png": GREY[:20]}},
    "masks/3.png is empty": {"files": {"masks/3.png": 0 * GREY}},
    "all images have one size": {"files": {"images/3.png": GREY[:20], "masks/3.png": GREY[:20]}},
    "only L": {"files": {"images/3.png": np.dstack([GREY] * 3)}},
    "no column patient": {"header": "image,person,site,nodule"},
    "something other than 0 and 1": {"lines": ["image,patient,nodule", "0.png,p0,0.5"]},
    "at least 30 images": {"lines": ["image,patient,nodule"] + [f"{k}.png,p{k},{int(k < 9)}" for k in range(60)]},
    "0 rows": {"lines": ["image,patient,nodule"]},
    "1 findings": {"lines": ["image,patient,nodule"]},
    "every image stands in one row": {"lines": ["image,patient,nodule", "0.png,p0,0", "0.png,p0,1"]},
    "no plain file name": {"lines": ["image,patient,nodule", "../0.png,p0,0"]},
    "is not there": {"lines": ["image,patient,nodule"] + [f"x{k}.png,p{k},{k % 2}" for k in range(60)]},
    "in UTF-8": {"lines": ["image,patient,n\u00f6dule", "0.png,p0,0"], "encoding": "utf-16"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_own_images_that_do_not_fit_are_refused_with_the_reason(tmp_path, reason):
    folder = own_folder(tmp_path / "mine", n=128, **REFUSED[reason])
    with pytest.raises(ValueError, match=reason):
        source.own_images(folder)
