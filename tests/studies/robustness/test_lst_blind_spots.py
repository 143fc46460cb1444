"""lst-blind-spots: walks against closed forms and autograd, triangles against geometry, what the arms and loaders promise."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from claimlab import study, views
from claimlab.experiment import Experiment
from claimlab.parts import adversarial
from claimlab.studies.robustness import _lst_blind_spots_data as source
from claimlab.studies.robustness import _lst_blind_spots_method as method
from claimlab.studies.robustness import lst_blind_spots as M
from claimlab.training import Run

torch.set_num_threads(1)
STUDY = study.find("lst-blind-spots")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, d, generator=generator(seed), dtype=torch.float64)


def network(seed: int, d: int = 12, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(d, 20), nn.Tanh(), nn.Linear(20, classes)).double()


def planes(d: int = 30) -> tuple[nn.Linear, torch.Tensor]:
    """A two-class linear model in float64, and the difference of its two rows, along which its log-odds rise."""
    net = nn.Linear(d, 2).double()
    net.weight.data = 2 * torch.randn(2, d, generator=generator(5), dtype=torch.float64)
    net.bias.data = torch.zeros(2, dtype=torch.float64)
    return net, net.weight.data[1] - net.weight.data[0]


@pytest.fixture(scope="module")
def lab():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


def labels(lab, i: int) -> torch.Tensor:
    """First answers of the sources of member i."""
    whole = lab.arms["networks"]
    return whole.tasks[i].test[1][M.chosen(whole.members[i], whole.tasks[i]).source]


# ---- one step


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(2, 40), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e4]))
def test_the_step_is_across_the_gradient_of_any_length(seed, d, scale):
    way, gradient = points(3, d, seed) - 0.5, scale * (points(3, d, seed + 1) - 0.5)
    kept = method.tangent(way, gradient)
    unit = gradient / gradient.norm(dim=1, keepdim=True)
    assert ((kept * unit).sum(1).abs() <= 1e-6 * way.norm(dim=1)).all()
    assert torch.allclose(kept + (way * unit).sum(1, keepdim=True) * unit, way, atol=1e-12)


def test_without_a_gradient_the_full_step_is_taken():
    way = points(2, 5)
    assert torch.equal(method.tangent(way, torch.zeros_like(way)), way)


def test_the_loss_changes_to_second_order():
    net, x, y, target = network(1), points(8, 12), torch.arange(8) % 4, points(8, 12, 1)

    def change(eta):
        m, gradient = adversarial.slope(lambda z: adversarial.log_odds(net(z), y), x)
        moved, _ = method.onward(x, target, m, gradient, torch.zeros_like(x), eta, 0.0)
        with torch.no_grad():
            return (cross_entropy(net(moved), y, reduction="none") - cross_entropy(net(x), y, reduction="none")).abs()

    ratio = change(1e-3) / change(5e-4)
    assert ((ratio > 3.9) & (ratio < 4.1)).all()  # halving the step quarters the change


def test_confidence_and_correction_are_those_of_cross_entropy():
    net, x, y = network(2), points(6, 12), torch.arange(6) % 4
    m, gradient = adversarial.slope(lambda z: adversarial.log_odds(net(z), y), x)
    assert torch.allclose(method.confidence(m), net(x).softmax(1).gather(1, y[:, None])[:, 0])
    free = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(net(free), y, reduction="sum"), free)
    _, pull = method.onward(x, x, m, gradient, torch.zeros_like(x), 0.01, 0.5)
    assert torch.allclose(pull, (-0.5 * g).clamp(-0.5, 0.5))
    for _ in range(50):  # it adds up, and never beyond eps
        _, pull = method.onward(x, x, m, gradient, pull, 0.01, 0.5)
    assert pull.abs().max() <= 0.5 and (pull.sign() == -g.sign()).all()


# ---- whole walks


def test_a_linear_walk_ends_at_the_foot_of_the_target_on_the_plane():
    net, w = planes()
    x, target = points(5, 30), points(5, 30, 1)
    walk = method.Traversal(method.odds_between(net, torch.zeros(5).long(), torch.ones(5).long()), x, target, 0.2, 0.05, 0.0, clip=False)
    for _ in range(600):
        walk.advance()
    foot = target - ((target - x) @ w)[:, None] * w / (w @ w)  # the plane w . z = w . x
    assert torch.allclose(walk.x, foot, atol=1e-9) and torch.allclose(walk.sure, walk.start)
    assert torch.allclose(method.projected(x, target, w.expand(5, -1)), foot)


def test_a_target_on_the_same_level_is_reached_exactly():
    net, w = planes()
    x, y = 0.3 + 0.4 * points(4, 30), torch.zeros(4).long()
    aside = points(4, 30, 1) - 0.5
    target = x + 0.3 * (aside - (aside @ w)[:, None] * w / (w @ w))
    for walk in (method.Traversal(method.odds_against(net, y), x, target, 0.01, 0.1, 0.0),
                 method.Straight(method.odds_against(net, y), x, target, 0.01, 400)):  # fmt: skip
        for _ in range(400):
            walk.advance()
        assert len(walk.rows) == 4 and torch.allclose(walk.x, target, atol=1e-12) and walk.left().max() < 1e-12


def test_penalty_descent_finds_the_nearest_point_within_the_tolerance_of_a_linear_model():
    net, w = planes()
    net.weight.data *= 0.3
    w = 0.3 * w
    x = torch.full((1, 30), 0.5, dtype=torch.float64) - 0.02 * w.sign()
    net.bias.data[0] = x[0] @ w + 2  # sure of class 0 at x
    target = (0.5 + 0.1 * w.sign() + 0.1 * (points(1, 30, 3) - 0.5)).clamp(0.2, 0.8)
    walk = method.PenaltyDescent(method.odds_against(net, torch.zeros(1).long()), x, target, 0.2, 20.0, lr=0.002)
    for _ in range(500):
        walk.advance()
    limit = torch.log(1 / (walk.start - 0.2) - 1) + net.bias.data[0]  # w . z at the tolerance
    foot = target - ((target @ w) - limit)[:, None] * w / (w @ w)
    best = ((foot - target).norm() / (x - target).norm()).item()
    assert best > 0.2 and best <= walk.left().item() <= 1.1 * best


def test_the_straight_line_stops_at_the_last_good_of_its_points():
    net, w = planes()
    x, target, y = points(6, 30), points(6, 30, 1), torch.zeros(6).long()
    net.bias.data[0] = (x @ w).mean() + 1
    walk = method.Straight(method.odds_against(net, y), x, target, 0.2, 50)
    for _ in range(50):
        walk.advance()
    with torch.no_grad():
        p = net(method.segment(x, target, 51)).softmax(-1)[..., 0]
    good = p >= p[:, :1] - 0.2
    count = good.int().cumprod(1).sum(1) - 1  # points before the first bad one, without the source
    assert torch.allclose(walk.left(), 1 - count.double() / 50) and 0 < count.double().mean() < 50


def test_every_walk_ends_within_the_tolerance(lab):
    p, checked = lab.params, 0
    for arm in set(lab.arms) - {"networks", "lst_linear"}:
        for i, walk in enumerate(lab.arms[arm].walks):
            net = copy.deepcopy(lab.arms[arm].members[i].net).double()
            y = labels(lab, i).repeat(len(walk.source) // p.pairs)
            with torch.no_grad():
                first, last = (net(z.double()).softmax(1).gather(1, y[:, None])[:, 0] for z in (walk.source, walk.x))
            assert (first - last <= p.delta + 1e-5).all() and torch.allclose(last.float(), walk.sure, atol=1e-5)
            assert walk.x.min() >= 0 and walk.x.max() <= 1
            checked += len(y)
    assert checked > 80


def walked(lab, arm: str, **knobs):
    """Another walk on the networks of `lab`, done to its end; its last tick too."""
    walks = M.ARMS[arm](dataclasses.replace(lab.params, **knobs), lab.seeds, lab.arms["networks"])
    return walks, list(walks.ticks())[-1]


def test_without_correction_and_with_eps_zero_are_one_walk(lab):
    one, other = (walked(lab, arm, eps=0.0)[0].walks[0] for arm in ("lst", "no_correction"))
    assert torch.equal(one.x, other.x) and not torch.equal(one.x, one.source)


# ---- segments and triangles


def test_areas_are_those_of_the_cross_product():
    a, b, c = (points(5, 3, k) for k in range(3))
    want = np.linalg.norm(np.cross((b - a).numpy(), (c - a).numpy()), axis=1) / 2
    assert np.allclose(method.area(a, b, c).numpy(), want)
    assert method.area(a, b, b).max() < 1e-9


def test_the_grid_of_a_triangle_has_66_points_on_and_in_it():
    a, b, c = (torch.tensor([one], dtype=torch.float64) for one in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    grid = method.triangle(a, b, c)[0]
    assert {(round(10 * u), round(10 * v)) for u, v in grid.tolist()} == {(i, j) for i in range(11) for j in range(11 - i)}
    assert torch.allclose(method.segment(a, b)[0, :, 0], torch.linspace(0, 1, 21).double())


def test_confident_area_of_a_linear_model_is_its_share_of_the_triangle():
    net, w = planes(2)
    corner = torch.zeros(1, 2, dtype=torch.float64)
    along, aside = w / w.norm(), torch.stack([-w[1], w[0]]) / w.norm()
    level = float(np.log(1 / 0.3 - 1) / w.norm())  # p falls from 0.5 to 0.3 there
    grid = method.triangle(corner, (2 * level * along)[None], (2 * level * along + aside)[None], 301)
    share = (method.sureness(method.odds_against(net, torch.zeros(1).long()), grid) >= 0.3).double().mean()
    assert share == pytest.approx(1 / 4, abs=0.005)  # similar triangle at half the height


def test_recorded_shares_are_those_of_the_walks(lab):
    arm = lab.arms["lst"]
    walk, net, n = arm.walks[1], arm.members[1].net, lab.params.pairs
    last = lab.table[(lab.table.arm == "lst") & (lab.table.seed == 1001)].sort_values("step").groupby("metric").value.last()
    total, y = 0.0, labels(lab, 1)
    for k in range(n):
        s, a, b, t, r = walk.source[k], walk.x[k], walk.x[n + k], walk.target[k], walk.target[n + k]
        grid = torch.stack([s + i / 10 * (a - s) + j / 10 * (b - s) for i in range(11) for j in range(11 - i)])
        with torch.no_grad():
            p, first = net(grid).softmax(1)[:, y[k]], net(s[None]).softmax(1)[0, y[k]]
        size = [torch.linalg.det(torch.stack([u, v]) @ torch.stack([u, v]).T).sqrt() for u, v in ((a - s, b - s), (t - s, r - s))]
        total += float((p >= first - lab.params.delta).float().mean() * size[0] / size[1]) / n
    assert last["hull_confident_area"] == pytest.approx(total, rel=0.02)
    left = np.linalg.norm(walk.x - walk.target, axis=1) / np.linalg.norm(walk.source - walk.target, axis=1)
    assert last["relative_distance"] == pytest.approx(left[:n].mean(), rel=1e-5)


# ---- attacks and pairs


def test_the_training_attack_climbs_a_linear_model_inside_its_ball():
    task = M.Networks(STUDY.make(dict(pgd_radius=0.05)))
    net, w = planes()
    x, y = 0.3 + 0.4 * points(6, 30), torch.zeros(6).long()
    uphill = (task.attacked(net, x, y, generator()) - x) * w.sign() / 0.05
    assert uphill.min() >= 0.5 - 1e-6 and uphill.max() <= 1 + 1e-6  # one and a half radii from a start no worse than -1
    assert 0.7 < (uphill > 1 - 1e-6).double().mean() < 0.8  # all starts above -1/2 reach the corner
    free = adversarial.inside(x + 1, x, torch.tensor([[0.1]] * 3 + [[0.2]] * 3, dtype=torch.float64), "2")
    assert torch.allclose((free - x).norm(dim=1), torch.tensor([0.1] * 3 + [0.2] * 3, dtype=torch.float64))


def test_robust_and_standard_begin_alike_and_part():
    task = M.Networks(STUDY.make(profile="smoke"))
    run = Run(task, [3])
    standard, robust = (run.members[0][name] for name in ("standard", "robust"))
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), robust.parameters(), strict=True))
    run.advance()
    assert not any(torch.equal(a, b) for a, b in zip(standard.parameters(), robust.parameters(), strict=True))
    alone = Run(M.Robust(task.p), [3])
    alone.advance()
    assert all(torch.equal(a, b) for a, b in zip(robust.parameters(), alone.members[0]["robust"].parameters(), strict=True))


def test_pairs_are_confident_and_of_different_classes():
    y = torch.arange(60) % 3
    logits = 8.0 * nn.functional.one_hot(y, 3).float()
    logits[40:] = 0
    drawn = source.pairs([nn.Identity(), nn.Identity()], logits, y, 15, np.random.default_rng(0))
    assert drawn.confident == 40 and max(part.max() for part in drawn[:3]) < 40 and len(set(drawn.source.tolist())) == 15
    assert (y[drawn.source] != y[drawn.first]).all() and (y[drawn.source] != y[drawn.second]).all() and (drawn.first != drawn.second).all()
    few = source.pairs([nn.Identity()], logits, y, 25, np.random.default_rng(0))
    assert few.confident == 40 and few.source.max() >= 40  # 40 for 25 pairs: the surest 50 stand in
    assert source.pairs([nn.Identity()], 0 * logits, y, 4, np.random.default_rng(0)).confident == 0


# ---- pictures and own files


def test_digits_lie_in_the_middle_on_a_faint_ground():
    found = source.load(1000, 24, False)
    pictures = torch.cat([found.x, found.test[0]]).view(-1, 24, 24)
    rim = torch.ones(24, 24, dtype=torch.bool)
    rim[2:22, 2:22] = False  # 18 pixels, moved by one
    assert pictures[:, rim].max() <= source.CONTRAST + 1e-6 and pictures[:, 3:21, 3:21].amax((1, 2)).min() > 0.8
    assert len(found.x) == 1200 and len(found.test[1]) == 500
    colour = source.load(1000, 32, True)
    assert colour.shape == (3, 32, 32) and (colour.x.view(-1, 3, 32, 32).std(1) > 0.01).any()


def folder(top, classes=2, n=24, side=12, mode="L", shape=None):
    rng = np.random.default_rng(0)
    for c in range(classes):
        (top / f"c{c}").mkdir(parents=True)
        for k in range(n):
            size = (shape or (side, side)) + ((3,) if mode == "RGB" else (4,) if mode == "RGBA" else ())
            array = np.clip(rng.integers(0, 60, size) + 150 * c, 0, 255).astype(np.uint8)
            Image.fromarray(array).save(top / f"c{c}" / f"{k}.png")
    return top


def test_own_pictures_and_own_network_are_walked_on(tmp_path, monkeypatch):
    top = folder(tmp_path / "mine", mode="RGB")
    torch.manual_seed(0)
    state = source.convnet((3, 12, 12), 2).state_dict()
    torch.save(state, top / "network.pt")
    monkeypatch.setenv("CLAIMLAB_DATA", str(top))
    lab = Experiment(STUDY, STUDY.make({**STUDY.Params.SMOKE, "steps": 10, "walk_steps": 10}), seeds=[0, 1], arms=["lst"]).run()
    kept = lab.arms["networks"].members[1]["standard"].state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in state)  # as it is, while the others were trained
    assert (lab.table.metric == "confident_sources").sum() == 2 and lab.arms["lst"].walks[0].source.shape == (8, 3 * 12 * 12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: folder(t, classes=1), "1 class folders"),
        (lambda t: folder(t, n=5), "5 PNG images"),
        (lambda t: folder(t, side=10), "multiples of 4"),
        (lambda t: folder(t, mode="RGBA"), "colour mode RGBA"),
        (lambda t: Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder(t) / "c1" / "9.png"), "all must be of one size"),
        (lambda t: (folder(t) / "c0" / "3.png").write_bytes(b"no picture"), "not a readable PNG"),
        (lambda t: torch.save(source.convnet((1, 24, 24), 2).state_dict(), folder(t) / "network.pt"), "no state_dict of convnet"),
        (lambda t: (folder(t) / "network.pt").write_bytes(b"no weights"), "no state_dict of convnet"),
        (lambda t: torch.save({k: v * np.nan for k, v in source.convnet((1, 12, 12), 2).state_dict().items()},
                              folder(t) / "network.pt"), "not a number"),
    ],
)  # fmt: skip
def test_own_files_that_do_not_fit_are_refused(tmp_path, make, words):
    make(tmp_path / "mine")
    with pytest.raises(ValueError, match=words):
        source.own(str(tmp_path / "mine"))


def test_knobs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="side = 28"):
        STUDY.make(dict(side=28))


# ---- the experiment


def test_smoke_records_every_claim_and_draws_every_figure(lab):
    have = set(zip(lab.table.arm, lab.table.metric, strict=True))
    assert {(a, c.metric) for c in STUDY.claims for a in (c.arm, c.baseline) if a} <= have
    gap = lab.table[lab.table.metric == "closed_form_gap"].value
    assert len(gap) == 2 and gap.max() < 1e-5
    figures = lab.figures()
    assert set(figures) == {"blind spots", "walks", "where they end", "triangles", "segments", "training radius"}
    for figure in figures.values():
        shown = [np.asarray(t.z if t.type in ("heatmap", "image") else t.y, float) for t in figure.data]
        assert shown and all(np.isfinite(one).any() for one in shown) and figure.layout.title.text
    assert views.trouble(lab) == []


def test_further_radii_and_the_transformer_run_when_asked():
    p = STUDY.make({**STUDY.Params.SMOKE, "steps": 10, "walk_steps": 10, "radii": True, "transformer": True})
    lab = Experiment(STUDY, p, seeds=[0], arms=["lst", "lst_robust", "lst_transformer", "radii"]).run()
    rows = lab.table[(lab.table.arm == "radii") & (lab.table.metric == "radius")]
    assert sorted(rows.value.round(3)) == [0.02, 0.1] and set(rows.seed) == {0}
    (dots, *_) = lab.figures()["training radius"].data
    assert len(dots.x) == 2 + 2
    assert (lab.table.arm == "lst_transformer").any() and lab.done == lab.total


def test_control_lets_the_straight_line_arrive(lab):
    straight, lst = (walked(lab, arm, **STUDY.control.set)[1].metrics for arm in ("straight_line", "lst"))
    assert all(one["relative_distance"] < 1e-6 < other["relative_distance"] for one, other in zip(straight, lst, strict=True))
