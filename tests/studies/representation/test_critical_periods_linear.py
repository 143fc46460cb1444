"""The critical-periods study against solve_ivp, closed forms, conservation laws, automatic differentiation and symmetries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.study import find

STUDY = find("critical-periods-linear")
study = STUDY.module
method = __import__("claimlab.studies.representation._critical_periods_method", fromlist=["forward"])
data = __import__("claimlab.studies.representation._critical_periods_data", fromlist=["target"])
SHORT = {"steps": 1200, "init": 0.4, "pairs": 3, "seeds": 2, "size": 12, "observed": 100, "rank_first": 1, "rank_second": 1,
         "switch": 100, "problems": 2}  # fmt: skip


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def race(values=None, arm="early_depth4", seeds=(0, 1)):
    run = study.ARMS[arm](STUDY.make({**SHORT, **(values or {})}), list(seeds))
    ticks = list(run.ticks())
    return run, ticks[-1].metrics


def strengths(run):
    """K of every recorded step, [T, 2, S, P, M]."""
    return np.stack(list(run.records.values()))


def reference(p, s, depth, times, learns=lambda t: 1.0, **options):
    """The race of one mode in layer strengths, written out again and given to scipy: K [T, 2]."""

    def rhs(t, p):
        left = s - p[0] ** depth - p[1] ** depth
        return [p[0] ** (depth - 1) * left, learns(t) * p[1] ** (depth - 1) * left]

    found = solve_ivp(rhs, (0, times[-1]), p, t_eval=times, rtol=1e-10, atol=1e-12, **options)
    return found.y.T**depth


# ---- the gradient by hand


@pytest.mark.parametrize("shape", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_step_is_the_gradient_that_autograd_finds(depth, shape):
    rng = torch.Generator().manual_seed(depth)
    weights = [torch.randn(4, 5, 5, generator=rng, dtype=torch.float64) for _ in range(depth)]
    goal = torch.randn(4, 5, 5, generator=rng, dtype=torch.float64)
    leaves = [w.clone().requires_grad_() for w in weights]
    f = {"linear": lambda x: x, "relu": torch.nn.functional.relu, "tanh": torch.nn.functional.tanh}[shape]
    out = leaves[0]
    for w in leaves[1:]:
        out = torch.einsum("bij,bjk->bik", w, f(out))
    wanted = torch.autograd.grad(0.5 * (out - goal).square().sum(), leaves)
    before = [w.clone() for w in weights]
    mine, received = method.forward(weights, shape)
    assert torch.allclose(mine, out)
    method.descend(weights, received, mine - goal, 0.1, shape)
    for old, new, gradient in zip(before, weights, wanted, strict=True):
        assert torch.allclose((old - new) / 0.1, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("deficit", ["frozen", "blocked", "blurred"])
def test_a_step_inside_the_deficit_descends_the_loss_that_b_sees(deficit):
    run = study.ARMS["early_depth4"](STUDY.make({**SHORT, "deficit": deficit, "aligned": False}), [0])
    assert run.window[0] == 0 < run.window[1]
    seen = {"frozen": lambda b: b, "blocked": torch.zeros_like}.get(deficit)
    if deficit == "blurred":  # the first feature of b's input at half its size
        v = run.right[:, :, :1]
        seen = lambda b: b - 0.5 * b @ v @ v.mT  # noqa: E731
    leaves = [w.clone().requires_grad_() for w in run.weights]
    out = leaves[0]
    for w in leaves[1:]:
        out = w @ out
    loss = 0.5 * (out[: run.count] + seen(out[run.count :]) - run.map).square().sum()
    wanted, before = torch.autograd.grad(loss, leaves), [w.clone() for w in run.weights]
    run.advance()
    for old, new, gradient in zip(before, run.weights, wanted, strict=True):
        moved = (old - new) / run.dt
        assert torch.allclose(moved[: run.count], gradient[: run.count], atol=1e-9)
        expected = gradient[run.count :] if deficit == "blurred" else torch.zeros_like(gradient[run.count :])
        assert torch.allclose(moved[run.count :], expected, atol=1e-9)


# ---- the equation


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_runge_kutta_follows_solve_ivp_through_a_deficit(depth):
    p, dt, steps, window = np.array([0.21, 0.2]), 1e-3, 1600, (100, 500)
    mine = method.follow(p, 10.0, depth, dt, steps, window, 1.0, False, every=100)
    learns = lambda t: float(not 0.1 <= t < 0.5)  # noqa: E731
    theirs = reference(p, 10.0, depth, np.arange(17) * 0.1, learns, max_step=2e-3)
    assert np.abs(mine - theirs).max() < 0.05  # solve_ivp blurs the two switches a little


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_runge_kutta_is_exact_without_a_switch(depth):
    p = np.array([0.52, 0.5])
    mine = method.follow(p, 10.0, depth, 5e-4, 2000, every=100)
    assert np.abs(mine - reference(p, 10.0, depth, np.arange(21) * 0.05)).max() < 1e-6


def test_the_strengths_obey_the_form_in_k():
    """dK/dt = D K^(2 - 2/D) (s - K_a - K_b), the chain rule of the form in p."""
    p = np.array([0.7, 1.1])
    for depth in range(1, 7):
        k = p**depth
        assert depth * p ** (depth - 1) * method.slope(p, 9.0, depth) == pytest.approx(depth * k ** (2 - 2 / depth) * (9.0 - k.sum()))


def test_one_pathway_of_two_layers_is_logistic():
    """K(t) = s e^(2 s t) / (e^(2 s t) - 1 + s / K_0)."""
    s, start, dt = 6.0, 0.04, 1e-3
    k = method.follow([math.sqrt(start), 0.0], s, 2, dt, 1000)[:, 0]
    grown = np.exp(2 * s * dt * np.arange(1001))
    assert np.abs(k - s * grown / (grown - 1 + s / start)).max() < 1e-6


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("deficit", ["frozen", "blocked"])
def test_what_is_conserved_and_the_closed_form_of_the_final_share(depth, deficit):
    gain, learns = method.DEFICITS[deficit]
    k = method.follow([0.5, 0.52], 10.0, depth, 4e-4, 8000 if depth > 1 else 20000, (0, 100), gain, learns, every=50)
    kept = method.conserved(k[2:, 0], k[2:, 1], depth)  # from the end of the deficit on
    assert np.ptp(kept) < 1e-6
    assert abs(kept[0] - method.conserved(k[0, 0], k[0, 1], depth)) > 1e-3  # the deficit itself moves it
    assert k[-1].sum() == pytest.approx(10.0, abs=1e-5)
    assert k[-1, 1] / 10 == pytest.approx(method.final_share(*k[2], 10.0, depth), abs=1e-6)


def test_final_share_is_fair_and_mirrors():
    for depth in range(1, 9):
        assert method.final_share(0.3, 0.3, 10.0, depth) == pytest.approx(0.5)
        one, other = method.final_share(0.3, 0.7, 10.0, depth), method.final_share(0.7, 0.3, 10.0, depth)
        assert one + other == pytest.approx(1.0) and one > 0.5
    shares = [float(method.final_share(0.3, 0.2, 10.0, depth)) for depth in range(1, 9)]
    assert np.diff(shares).max() < 0  # the deeper, the less is left to the one behind
    assert shares[1] == pytest.approx(0.4)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_learning_times_are_the_integral(depth, share):
    p = STUDY.make({"init": 0.6})
    end = (share * 5) ** (1 / depth)
    exact = quad(lambda q: 1 / (q ** (depth - 1) * (10 - 2 * q**depth)), 0.6, end, limit=200)[0]
    assert p.time_to(share, depth) == pytest.approx(exact, rel=2e-3)


# ---- full matrices against the equation


def test_trained_matrices_approach_the_equation_as_the_step_falls():
    off = {}
    for steps in (600, 1200, 2400):
        run, _ = race({"steps": steps}, arm="none_depth4", seeds=[0])
        times = np.array(list(run.records)) * run.dt
        p = data.first_strengths(0, 0.4, 3)[:, 0]
        exact = np.stack([reference(p, s, 4, times) for s in data.MODES], -1)
        off[steps] = (np.abs(strengths(run)[:, :, 0, 0] - exact) / data.MODES).max()
    assert off[2400] < 0.02 and 1.8 < off[600] / off[1200] < 2.4 and 1.8 < off[1200] / off[2400] < 2.4  # first order


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_undisturbed_matrices_keep_what_the_equation_keeps(depth):
    """At depth 2 even finite steps keep the ratio, since a step multiplies both strengths by the same factor; deeper, up to
    the first-order error of the step (the equation itself keeps it to 1e-6, above)."""
    drift = []
    for n in (1200, 4800):
        k = strengths(race({"steps": n, "depth": depth}, arm="none_depth4", seeds=[0])[0])[..., 0]
        drift.append(np.ptp(method.conserved(k[:, 0], k[:, 1], depth), 0).max())
    assert max(drift) < 1e-9 if depth == 2 else drift[0] < 0.02 and drift[1] < drift[0] / 3


def test_without_alignment_the_equation_fails():
    straight, crooked = (race({"aligned": flag})[1] for flag in (True, False))
    assert max(m["max_relative_deviation"] for m in straight) < 0.05
    assert min(m["max_relative_deviation"] for m in crooked) > 0.1


def test_exchanging_the_names_mirrors_everything():
    run, other = (study.ARMS["none_depth4"](STUDY.make(SHORT), [3]) for _ in range(2))
    for w in other.weights:
        w.copy_(torch.cat([w[other.count :], w[: other.count]]))
    for one in (run, other):
        list(one.ticks())
    assert np.abs(strengths(run) - strengths(other)[:, ::-1]).max() < 1e-9


def test_without_duration_every_arm_of_one_depth_is_the_undisturbed_run():
    runs = [race({"duration": 0.0}, arm)[0] for arm in ("early_depth4", "late_depth4", "none_depth4", "late_blocked")]
    assert runs[0].window == (0, 0) == runs[1].window
    for other in runs[1:]:
        assert np.array_equal(strengths(runs[0]), strengths(other))


def test_at_depth_two_the_two_early_arms_are_one_and_at_the_late_onset_early_is_late():
    two = [race({"depth": 2}, arm)[0] for arm in ("early_depth4", "early_depth2")]
    assert np.array_equal(*map(strengths, two))
    late = [race({"onset": 2.0}, arm)[0] for arm in ("early_depth4", "late_depth4")]
    assert np.array_equal(*map(strengths, late)) and late[0].window[0] > 0


def test_a_frozen_pathway_stands_still_and_a_late_deficit_changes_nothing():
    run, _ = race({"duration": 1.0})
    inside = [r for step, r in run.records.items() if step <= run.window[1]]
    assert len(inside) > 2 and all(np.abs(r[1] - inside[0][1]).max() < 1e-12 for r in inside)
    assert min(np.diff([r[0, ..., 0].min() for r in inside])) > 0
    late, none = (race(arm=arm)[1] for arm in ("late_depth4", "none_depth4"))
    assert [m["share_of_b"] for m in late] == pytest.approx([m["share_of_b"] for m in none], abs=0.02)


def test_the_share_is_read_when_the_feature_is_learned_after_the_deficit():
    run, last = race({"deficit": "blocked"}, arm="late_depth4")
    learned = [(step, k) for step, k in run.records.items() if step >= run.window[1]]
    for seed in range(2):
        read = []
        for pair in range(3):
            k = next(k[:, seed, pair, 0] for _, k in learned if abs(k[:, seed, pair, 0].sum() / 10 - 1) < 0.01)
            read.append(k[1] / k.sum())
        assert last[seed]["share_of_b"] == pytest.approx(np.mean(read))


def test_a_seed_does_not_notice_its_company():
    for arm in ("early_depth4", "long_pretrain"):
        (together, metrics), (alone, own) = race({"steps": 600}, arm, [0, 1]), race({"steps": 600}, arm, [1])
        assert own[0] == pytest.approx(metrics[1], rel=1e-4)
        n = alone.weights[0].shape[-1]  # pathways, seeds, problems, n, n
        second = together.weights[0].view(2 if arm == "early_depth4" else 1, 2, -1, n, n)[:, 1].flatten(0, 1)
        assert torch.allclose(alone.weights[0], second, atol=1e-6)


@pytest.mark.parametrize("arm", ["early_depth4", "long_pretrain"])
def test_a_run_goes_on_exactly_from_its_state(arm):
    p = STUDY.make({**SHORT, "steps": 400, "init": 0.7})
    whole, first, second = (study.ARMS[arm](p, [0, 1]) for _ in range(3))
    wanted = list(whole.ticks())
    ticks = first.ticks()
    head = [next(ticks) for _ in range(5)]
    second.load(first.state())
    tail = list(second.ticks())
    assert [t.metrics for t in head + tail] == [t.metrics for t in wanted]
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, second.weights, strict=True))


# ---- completion


def test_one_layer_never_touches_what_it_does_not_see():
    p = STUDY.make(SHORT)
    run = study.ARMS["long_pretrain_depth1"](p, [0, 1])
    start = run.weights[0].clone()
    ticks = list(run.ticks())
    unseen = ~run.known
    assert torch.equal(run.weights[0][unseen], start[unseen])
    assert not torch.isclose(run.weights[0][run.known], start[run.known]).any()
    assert len({t.metrics[0]["completion_test_error"] for t in ticks}) == 1


def test_the_first_task_is_learned_until_the_switch_and_the_second_after_it():
    run = study.ARMS["long_pretrain_depth2"](STUDY.make({**SHORT, "switch": 1200, "observed": 120}), [0, 1])
    by_step = {t.step: t for t in run.ticks()}
    at, end = by_step[run.switch], by_step[run.total]
    assert run.total == 2400 and at.losses.min() > 0.2  # measured on the second matrix from here on
    before = max(step for step in by_step if step < run.switch)
    assert by_step[before].losses.max() < 0.1 and end.losses.max() < 0.1


def test_without_a_first_task_the_arms_are_one():
    p = STUDY.make({**SHORT, **STUDY.control.set})
    runs = [study.ARMS[arm](p, [0]) for arm in ("no_pretrain", "short_pretrain", "long_pretrain")]
    assert all([t.metrics for t in r.ticks()] == [t.metrics for t in study.ARMS["no_pretrain"](p, [0]).ticks()] for r in runs)


def test_the_control_supports_no_claim_about_timing():
    p = replace(STUDY.make({**SHORT, **STUDY.control.set}), seeds=5)
    lab = Experiment(STUDY, p).run()
    found = {v.claim: v.verdict for v in lab.verdicts()}
    assert not {found[claim] for claim in STUDY.control.vanishes} & {"supported"}
    assert found["theory-holds"] == "supported"


def test_problems_have_their_rank_scale_and_entries():
    q = data.problem(0, 0, 20, (2, 3), 150)
    assert [np.linalg.matrix_rank(m) for m in (q.first, q.second)] == [2, 3]
    assert [(m**2).mean() for m in (q.first, q.second)] == pytest.approx([1, 1])
    assert q.known.sum() == 150 and not (q.known & q.asked).any() and (q.known | q.asked).all()
    for depth in (1, 2, 3):
        chain = [np.linalg.multi_dot([*w, np.eye(60)]) for w in (data.small_weights(0, k, 60, depth) for k in range(10))]
        assert np.std(chain) == pytest.approx(0.001 / math.sqrt(60), rel=0.1)


def test_first_weights_are_balanced_and_aligned():
    goal, p = data.target(4), np.array([[0.3, 0.2], [0.25, 0.4]])
    chain = data.first_weights(goal, p, 3, 4, True)
    for lower, upper in zip(chain[:-1], chain[1:], strict=True):
        assert torch.allclose(upper.mT @ upper, lower @ lower.mT)
    out = (chain[2] @ chain[1] @ chain[0]).numpy()
    assert goal.left.T @ out @ goal.right == pytest.approx((p.reshape(-1) ** 3)[:, None, None] * np.eye(4), abs=1e-12)


@pytest.mark.parametrize(("values", "told"), [
    ({"size": 20, "observed": 390}, "observed = 390 and size = 20"),
    ({"size": 12, "observed": 100, "rank_first": 15}, "rank_first and rank_second"),
    ({"depth": 8}, "depth = 8, init = 0.2 and steps = 8000"),
])  # fmt: skip
def test_contradictions_are_refused_in_words(values, told):
    with pytest.raises(KnobError, match=told):
        STUDY.make(values)


# ---- figures and views


def test_every_figure_of_a_smoke_run_holds_numbers(smoke):
    drawn = study.figures(smoke)
    assert list(drawn) == ["portrait", "critical_period", "strengths", "completion", "spectra"]
    for name, fig in drawn.items():
        assert fig.layout.title.text and "nan" not in fig.layout.title.text, name
        assert all(len(t.y) and any(v is not None and np.isfinite(v) for v in t.y) for t in fig.data), name
    curve = next(t for t in drawn["critical_period"].data if t.name == "depth 2, frozen")
    assert curve.y[0] < 0.45 and curve.y[-1] == pytest.approx(0.5, abs=0.03)
    flat = next(t for t in drawn["completion"].data if t.name == "depth 1")
    assert flat.y[0] == flat.y[-1]


def test_figures_leave_out_arms_that_did_not_run():
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), arms=["early_depth2"]).run()
    assert set(study.figures(lab)) == {"portrait", "critical_period"}


def test_views_show_the_member(smoke):
    net = smoke.arms["early_depth4"].members[1]
    x = torch.eye(8, dtype=torch.float64)
    k = smoke.arms["early_depth4"].records[200][:, 1, 0, 0]
    goal = data.target(1)
    assert goal.left[:, 0] @ net(x).T.numpy() @ goal.right[:, 0] == pytest.approx(k.sum())
    assert f"{k[0]:.2f} in pathway a" in study.VIEWS["both pathways over time"](net, smoke.params).layout.title.text
    done = smoke.arms["no_pretrain"].members[0]
    fig = study.VIEWS["recovered matrix"](done, smoke.params)
    assert np.allclose(fig.data[2].z[::-1], done.truth) and np.isnan(fig.data[0].z).any()
    assert "no two pathways" in study.VIEWS["both pathways over time"](done, smoke.params).layout.title.text
    assert "completes no matrix" in study.VIEWS["recovered matrix"](net, smoke.params).layout.title.text


# ---- one's own data

GRID = [(i, j, (i * j) % 7) for i in range(10) for j in range(12) if (i + j) % 3]


def csv(path, rows, head="row,col,value", encoding="utf-8"):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]), encoding=encoding)
    return str(path)


def test_own_entries_are_held_out_scaled_and_completed(tmp_path, monkeypatch):
    path = csv(tmp_path / "m.csv", GRID)
    table = data.load_entries(path)
    assert table["value"].mean() == pytest.approx(0, abs=1e-12) and (table["value"] ** 2).mean() == pytest.approx(1)
    q = data.own_problem(table, 0, 0, 2)
    assert q.asked.sum() == len(GRID) // 5 and q.known.sum() == len(GRID) - len(GRID) // 5 and not (q.known & q.asked).any()
    assert q.second.shape == (12, 12) and not q.known[10:].any()
    assert "own_scratch" not in Experiment(STUDY, STUDY.make(profile="smoke")).specs
    monkeypatch.setenv("CLAIMLAB_DATA", path)
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), arms=["own_scratch", "own_pretrained"]).run()
    assert "own" in study.figures(lab) and not lab.table["value"].isna().any()


def test_an_own_target_has_its_own_singular_values(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    found = rng.standard_normal((5, 3))
    np.save(tmp_path / "map.npy", found)
    goal = data.load_target(str(tmp_path / "map.npy"))
    s = np.linalg.svd(found, compute_uv=False)
    assert goal.s == pytest.approx(10 * s / s[0])
    assert (goal.left * goal.s @ goal.right.T)[:, :3] * s[0] / 10 == pytest.approx(found)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "map.npy"))
    lab = Experiment(STUDY, STUDY.make({**SHORT, "pairs": 2}), arms=["own_early", "own_late"]).run()
    early, late = (lab.table.query("arm == @a and metric == 'share_of_b'")["value"].iloc[-1] for a in ("own_early", "own_late"))
    assert early < late - 0.1 and lab.arms["own_early"].worst.max() < 0.05


@pytest.mark.parametrize(("rows", "head", "encoding", "told"), [
    (GRID, "row,col,rating", "utf-8", "column value is missing"),
    (GRID[:40], "row,col,value", "utf-8", "40 entries; at least 50"),
    ([*GRID, (1, 1, "good")], "row,col,value", "utf-8", "column value holds text"),
    ([(0, 3, "nan"), *GRID], "row,col,value", "utf-8", "value in row 1 is not a finite"),
    ([*GRID, (1, 500, 1)], "row,col,value", "utf-8", "col = 500 is out of range"),
    ([*GRID, (-1, 0, 1)], "row,col,value", "utf-8", "row = -1 is out of range"),
    ([*GRID, (0.5, 0, 1)], "row,col,value", "utf-8", "row = 0.5 is out of range"),
    ([*GRID, GRID[3]], "row,col,value", "utf-8", r"the entry \(0, 5\) occurs twice"),
    ([(i, j, i) for i in range(9) for j in range(9)], "row,col,value", "utf-8", "100.0% of the matrix is known"),
    ([(i, j, 3) for i, j, _ in GRID], "row,col,value", "utf-8", "all values are equal"),
    (GRID, "row,col,value,größe", "latin-1", "not a CSV file in UTF-8"),
])  # fmt: skip
def test_bad_entries_are_refused_in_words(tmp_path, rows, head, encoding, told):
    with pytest.raises(ValueError, match=told) as refusal:
        data.load_entries(csv(tmp_path / "bad.csv", rows, head, encoding))
    assert "bad.csv" in str(refusal.value)


@pytest.mark.parametrize(("array", "told"), [
    (np.ones(4), "one matrix"), (np.ones((2, 2), complex), "one matrix"), (np.array([["a"]]), "one matrix"),
    (np.ones((1, 4)), "1 x 4; 2 to 64"), (np.ones((65, 4)), "65 x 4; 2 to 64"), (np.full((3, 3), np.nan), "9 entries are not"),
    (np.zeros((3, 3)), "zeros only"), (np.array([[{}, 1], [1, 2]], object), "not a plain .npy"),
])  # fmt: skip
def test_bad_targets_are_refused_in_words(tmp_path, array, told):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=told):
        data.load_target(str(tmp_path / "bad.npy"))


def test_missing_files_and_other_kinds_are_named(tmp_path, monkeypatch):
    for load in (data.load_target, data.load_entries):
        with pytest.raises(ValueError, match="nowhere, which is not a file"):
            load(str(tmp_path / "nowhere"))
    monkeypatch.setenv("CLAIMLAB_DATA", "ratings.xlsx")
    with pytest.raises(ValueError, match="ratings.xlsx; allowed are"):
        Experiment(STUDY, STUDY.make(profile="smoke"))
