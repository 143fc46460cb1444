"""The study of deep learning theory against closed forms, scipy's integrals, explicit matrices and automatic differentiation."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import nn

from claimlab import views
from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.training import Run

STUDY = find("principles-dl-theory")
study = STUDY.module
method = __import__("claimlab.studies.representation._principles_method", fromlist=["Chain"])
data = __import__("claimlab.studies.representation._principles_data", fromlist=["split"])
nets = __import__("claimlab.studies.representation._principles_nets", fromlist=["Networks"])
SMALL = {"steps": 10, "nets": 2, "depth": 6, "width": 8, "draws": 40, "wide": 30, "seeds": 2}


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- Gaussian averages and recursions


@pytest.mark.parametrize("k", [0.05, 1.0, 7.0])
def test_relu_averages_are_the_closed_forms(k):
    assert float(method.second("relu", k)) == pytest.approx(k / 2, rel=1e-11)
    assert float(method.fourth("relu", k)) == pytest.approx(3 * k**2 / 2, rel=1e-11)
    assert float(method.slope_square("relu", k)) == pytest.approx(0.5, rel=1e-11)


PLAIN = {
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2), "sin": (np.sin, np.cos),
    "gelu": (lambda z: z * (1 + erf(z / 2**0.5)) / 2,
             lambda z: (1 + erf(z / 2**0.5)) / 2 + z * np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5),
    "swish": (lambda z: z / (1 + np.exp(-z)), lambda z: 1 / (1 + np.exp(-z)) + z * np.exp(-z) / (1 + np.exp(-z)) ** 2),
}  # fmt: skip


def integral(f, k):
    edge = 12 * k**0.5
    return quad(lambda z: f(z) * math.exp(-(z**2) / (2 * k)), -edge, edge, epsabs=1e-13, limit=200)[0] / (2 * math.pi * k) ** 0.5


@pytest.mark.parametrize("name", list(PLAIN))
@pytest.mark.parametrize("k", [0.1, 0.5])
def test_quadrature_agrees_with_scipy_for_smooth_activations(name, k):
    s, ds = PLAIN[name]
    assert float(method.second(name, k)) == pytest.approx(integral(lambda z: s(z) ** 2, k), abs=1e-10)
    assert float(method.fourth(name, k)) == pytest.approx(integral(lambda z: s(z) ** 4, k), abs=1e-10)
    assert float(method.slope_square(name, k)) == pytest.approx(integral(lambda z: ds(z) ** 2, k), abs=1e-10)


def test_the_tanh_recursion_begins_with_its_series():
    for k in (1e-3, 1e-2):
        left = float(method.next_kernel("tanh", 0.0, 1.0, k)) - (k - 2 * k**2)
        assert left == pytest.approx(17 / 3 * k**3, rel=0.2)  # <tanh^2> = K - 2 K^2 + 17/3 K^3 - ...


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_chi_parallel_is_the_derivative_of_the_recursion(name):
    h, k = 1e-4, 0.8
    up, down = (float(method.next_kernel(name, 0.1, 1.7, k + step)) for step in (h, -h))
    assert float(method.chi_parallel(name, 1.7, k)) == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_chi_perpendicular_is_the_growth_of_a_small_difference():
    k, eps = 0.8, 1e-4
    aa, ab, bb = method.next_pair("tanh", 0.0, 1.5, (k, k - eps, k))
    assert (aa + bb - 2 * ab) / (2 * eps) == pytest.approx(float(method.chi_perpendicular("tanh", 1.5, k)), rel=1e-3)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.3, 0.95])
def test_two_relu_inputs_follow_the_arc_cosine_formula(rho):
    angle = math.acos(rho)
    wanted = math.sqrt(2 * 0.5) * (math.sin(angle) + (math.pi - angle) * rho) / math.pi  # C_W = 2, Cho and Saul 2009
    found = method.next_pair("relu", 0.0, 2.0, (2.0, rho, 0.5))
    assert found == pytest.approx((2.0, wanted, 0.5), abs=3e-5)


def test_critical_points_hold_both_conditions_at_a_fixed_point():
    assert method.critical_point("gelu")[2] == pytest.approx((3 + 17**0.5) / 2, abs=1e-6)  # the book's closed form
    for name in ("gelu", "swish"):
        c_b, c_w, k = method.critical_point(name)
        s, ds = PLAIN[name]
        assert c_b + c_w * integral(lambda z: s(z) ** 2, k) == pytest.approx(k, rel=1e-4)  # noqa: B023
        assert c_w * integral(lambda z: ds(z) ** 2, k) == pytest.approx(1, abs=1e-4)  # noqa: B023
        assert c_w * integral(lambda z: s(z) * ds(z) * z, k) / k == pytest.approx(1, abs=1e-4)  # noqa: B023 - by parts
    assert all(np.ptp(method.kernels(name, *method.critical_point(name)[:2], 40, 3.0)) < 1e-9 for name in ("relu", "linear"))
    tanh = method.kernels("tanh", 0.0, 1.0, 2000, 1.0)
    assert tanh[-1] * 2 * 2000 == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("name", "c_w", "plus", "minus", "first"), [("relu", 2.0, 1, 0, 5), ("linear", 1.0, 1, 1, 2)])
def test_the_vertex_recursion_gives_the_scale_invariant_slope(name, c_w, plus, minus, first):
    assert method.scale_invariant_vertex(plus, minus) == first
    assert method.vertex(name, 0.0, c_w, 9, 1.3) == pytest.approx(first * np.arange(9.0), abs=1e-9)


def test_the_first_slope_is_found_beside_a_second_order():
    r = np.linspace(0.01, 0.1, 30)
    assert method.first_order(r, 5 * r + 13 * r**2) == pytest.approx((5, 13))


# ---- random networks


def test_the_exact_law_is_that_of_explicit_matrices():
    n, draws, layers = 50, 4000, 4
    cases = [("relu", 0.0, 2.0), ("tanh", 0.1, 1.3)]
    chain, g = method.Chain(cases, n, draws, [0], 1), rng(5)
    drawn = torch.stack([chain.advance(moments=True)[0] for _ in range(layers)])  # [layers, cases, 2]
    for a, (name, c_b, c_w) in enumerate(cases):
        act = {"relu": torch.relu, "tanh": torch.tanh}[name]
        x = torch.ones(10)
        z = torch.einsum("dij,j->di", torch.randn(draws, n, 10, generator=g) * (c_w / 10) ** 0.5, x)
        z = z + c_b**0.5 * torch.randn(draws, n, generator=g)
        for layer in range(layers):
            square = z.square()
            pair = (square.sum(1) ** 2 - square.square().sum(1)) / (n * (n - 1))
            assert float(drawn[layer, a, 0]) == pytest.approx(float(square.mean()), rel=0.02)
            assert float(drawn[layer, a, 1]) == pytest.approx(float(pair.mean()), rel=0.05)
            w = torch.randn(draws, n, n, generator=g) * (c_w / n) ** 0.5
            z = torch.einsum("dij,dj->di", w, act(z)) + c_b**0.5 * torch.randn(draws, n, generator=g)


def test_the_fourth_moment_is_the_exact_power_and_not_only_its_first_order():
    n, draws = 20, 60000
    chain = method.Chain([("relu", 0.0, 2.0), ("linear", 0.0, 1.0)], n, draws, [0, 1], 7)
    for layer in range(6):
        found = chain.advance(moments=True)[..., 1].mean(0) / torch.tensor([4.0, 1.0])
        assert found.tolist() == pytest.approx([(1 + 5 / n) ** layer, (1 + 2 / n) ** layer], rel=0.03)
    assert float(found[0]) > 1 + 5 * 5 / n + 0.5  # the first order alone would be 2.25


def test_the_correlation_of_two_inputs_follows_the_recursion():
    for name, c_w in (("relu", 2.0), ("tanh", 1.0)):
        drawn = method.draw_pair(name, 0.0, c_w, 400, 400, 6, 0.5, rng(2))
        kernel = (c_w, c_w * 0.5, c_w)
        for layer in range(6):
            assert drawn[layer] == pytest.approx(kernel[1] / math.sqrt(kernel[0] * kernel[2]), abs=0.01)
            kernel = method.next_pair(name, 0.0, c_w, kernel)


def test_a_drawing_goes_on_from_its_state_and_a_seed_does_not_notice_its_company():
    p = STUDY.make({"wide": 20, "draws": 30})
    whole, first, second, alone = (study.ARMS["wide_ensemble"](p, seeds) for seeds in ([0, 1], [0, 1], [0, 1], [1]))
    wanted, ticks = list(whole.stepwise()), first.stepwise()
    head = [next(ticks) for _ in range(7)]
    second.load(copy.deepcopy(first.state()))
    assert [t.metrics for t in head + list(second.stepwise())] == [t.metrics for t in wanted]
    assert [t.metrics[0] for t in alone.stepwise()] == [t.metrics[1] for t in wanted]


def test_the_three_activations_see_the_same_draws():
    arm = study.ARMS["wide_ensemble"](STUDY.make({"wide": 20, "draws": 30}), [3])
    next(arm.stepwise())
    relu, tanh, linear = arm.members[0].sample
    assert torch.allclose(relu, linear * 2**0.5) and torch.equal(tanh, linear)


def test_a_kernel_off_criticality_is_measured_against_its_own_recursion():
    arm = study.ARMS["wide_ensemble"](STUDY.make({"wide": 400, "draws": 100, "c_w": 1.0}), [0])
    last = list(arm.stepwise())[-1]
    assert arm.measured[0][29, 0, 0, 0] == pytest.approx(2.0**-29, rel=0.3)  # ReLU halves at C_W = 1
    assert last.metrics[0]["kernel_relative_error"] < 0.3


# ---- tangent kernels


def test_the_empirical_tangent_kernel_is_the_product_of_jacobians():
    x = torch.randn(4, 5, generator=rng(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nets.Networks((5, 6, 3), 4, 2, (0.1, 2.0), x, gamma=0.3, activation="tanh")
    weights = dict(net.named_parameters())
    found = net.tangent(4)
    for r in range(2):
        total = 0
        for jacobian in torch.func.jacrev(lambda w, r=r: torch.func.functional_call(net, w, (x,))[r, :, 0])(weights).values():
            total = total + jacobian.flatten(1) @ jacobian.flatten(1).T
        assert torch.allclose(found[r], total, rtol=1e-4, atol=1e-5)


def test_wide_tangent_kernels_follow_their_recursion():
    n, x = 200, torch.ones(1, 200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nets.Networks((n, n, 1), 4, 12, (0.0, 2.0), x)
    wanted = method.tangent_kernels("relu", 0.0, 2.0, 4, 1.0, lambda_w=n, lambda_b=1.0)
    assert float(net.tangent(1).mean()) == pytest.approx(wanted[-1], rel=0.06)
    drawn = method.draw_tangent("tanh", 0.2, 1.2, 100, 60, 5, 1.0, rng(3))[:, 0]
    assert drawn == pytest.approx(method.tangent_kernels("tanh", 0.2, 1.2, 5, 1.4, 1.0), rel=0.05)


# ---- learning


def test_each_network_moves_at_the_full_rate_as_plain_gradient_descent_has_it():
    p = STUDY.make({**SMALL, "nets": 3})
    run = Run(study.ARMS["critical_deep"](p), [0, 1], stacked=False)
    before = copy.deepcopy(run.members[1])
    x, y = (part[0] for part in copy.deepcopy(run.tasks[1]).block(None, run.rngs[1].clone_state(), 0, 20))
    run.advance()
    for r in range(3):
        layers = [before.first[r], *before.hidden[:, r], before.last[r]]
        layers = [w.detach().clone().requires_grad_() for w in layers]
        z = x @ layers[0]
        for w in layers[1:]:
            z = torch.relu(z) @ w
        gradients = torch.autograd.grad(nn.functional.cross_entropy(z, y), layers)
        after = run.members[1]
        now = [after.first[r], *after.hidden[:, r], after.last[r]]
        rate = p.lr * study.ARMS["critical_deep"].rates[0]
        for w, g, new in zip(layers, gradients, now, strict=True):
            assert torch.allclose(new, w - rate * g, atol=1e-6)


def test_default_weights_have_the_law_of_linear_layers():
    from scipy.stats import ks_2samp

    net = study.DefaultDeep(STUDY.make({"width": 60, "depth": 4})).bind(0).init()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Linear(60, 60) for _ in range(8)]
    for mine, theirs in ((net.hidden, [m.weight for m in layers]), (net.hidden_bias, [m.bias for m in layers])):
        theirs = torch.cat([w.detach().flatten() for w in theirs])
        assert ks_2samp(mine.detach().flatten().numpy(), theirs.numpy()).pvalue > 1e-3
    assert float(net.hidden.detach().abs().max()) <= 60**-0.5


@pytest.mark.parametrize("gamma", [0.0, math.sqrt(0.9)])
def test_networks_start_on_the_line_of_their_theory(gamma):
    x = torch.randn(3, 40, generator=rng(4))
    x = x / x.square().mean(1, keepdim=True).sqrt()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = nets.Networks((40, 150, 150), 9, 40, (0.0, 2.0), x, gamma=gamma)
        off = nets.Networks((40, 150, 150), 9, 40, (0.0, 1.0), x)
        norm = nets.Networks((40, 150, 150), 5, 40, None, x, norm=True)
    assert net.theory() == pytest.approx([1.0] * 9)
    assert off.theory() == pytest.approx([0.5**layer for layer in range(9)])
    for one in (net, off, norm):
        measured = [float(z.detach().square().mean()) for z in one.layers(x)]
        assert measured == pytest.approx(one.theory(), rel=0.12)


def test_at_the_residual_arms_gamma_the_two_very_deep_arms_are_one():
    p = STUDY.make({**SMALL, "gamma_res": math.sqrt(0.9)})
    lab = Experiment(STUDY, p, arms=["critical_very_deep", "residual_very_deep"]).run()
    last = lab.table[lab.table["metric"] == "loss"].groupby(["arm", "seed"])["value"].last().unstack(0)
    same = study.CriticalVeryDeep.rates[1] == study.ResidualVeryDeep.rates[1]
    first = lab.table[(lab.table["metric"] == "test_accuracy") & (lab.table["step"] == 0)]
    first = first.groupby(["arm", "seed"])["value"].last().unstack(0)
    assert (first["critical_very_deep"] == first["residual_very_deep"]).all()
    assert not same or (last["critical_very_deep"] == last["residual_very_deep"]).all()


def test_one_step_moves_the_tangent_kernel_less_in_wider_networks():
    moved = {}
    for width in (16, 64):
        task = study.Cell(STUDY.make({"width": width, "depth": 4, "nets": 24})).bind(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            moved[width] = float(task.init().first_change.median())
    assert 2 < moved[16] / moved[64] < 8  # as 1 / n


def test_signals_of_the_default_start_die_and_critical_ones_live():
    p = STUDY.make({"depth": 24})
    out = {}
    for name in ("critical_deep", "default_deep", "off_critical_low"):
        task = study.ARMS[name](p).bind(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = task.init()
        x = task.test[0]
        hidden = net.layers(x)[-2].detach()
        out[name] = float((hidden - hidden.mean(1, keepdim=True)).square().mean())  # what still tells inputs apart
    assert out["default_deep"] < 1e-12 < out["off_critical_low"] < 0.2 * out["critical_deep"]


# ---- data


def test_inputs_have_equal_norm_and_a_tenth_of_the_labels_is_wrong():
    one = data.split(0, 0.1)
    true = data.split(0, 0.0)
    assert len(one.x) == 1297 and len(one.test[0]) == 500
    assert torch.allclose(torch.cat([one.x, one.test[0]]).square().mean(1), torch.ones(1797), atol=1e-5)
    assert int((one.given != true.given).sum()) == round(129.7) and torch.equal(one.x, true.x)
    assert not {row.tobytes() for row in one.x.numpy()} & {row.tobytes() for row in one.test[0].numpy()}


def table(path, rows, head="a,b,label", encoding="utf-8"):
    path.write_text("\n".join([head, *rows]), encoding=encoding)
    return str(path)


GOOD = [f"{i % 7},{(i * i) % 11},{'left' if i % 3 else 'right'}" for i in range(60)]


def test_a_table_of_ones_own_is_learned_from(tmp_path, monkeypatch):
    path = table(tmp_path / "own.csv", GOOD)
    x, y = data.load_table(path)
    assert x.shape == (60, 2) and y.tolist() == [int(i % 3 == 0) for i in range(60)]
    assert "60" not in data.describe(path) and "43 rows to train on and 17 to test, 2 numbers each, 2 classes" in data.describe(path)
    monkeypatch.setenv("CLAIMLAB_DATA", path)
    lab = Experiment(STUDY, STUDY.make(SMALL), arms=["critical_deep"]).run()
    assert lab.arms["critical_deep"].members[0].last.shape[-1] == 2
    assert lab.table["value"].notna().all()


@pytest.mark.parametrize(("rows", "head", "encoding", "told"), [
    (GOOD, "a,b,kind", "utf-8", "needs a column label"),
    ([row.split(",")[2] for row in GOOD], "label", "utf-8", "one column of numbers"),
    (GOOD[:30], "a,b,label", "utf-8", "30 rows of 2 numbers; 40"),
    ([], "a,b,label", "utf-8", "0 rows"),
    ([*GOOD, "1,good,left"], "a,b,label", "utf-8", "the column b holds other things"),
    ([*GOOD, "1,,left"], "a,b,label", "utf-8", "row 61 holds a number that is missing"),
    ([*GOOD, "inf,1,left"], "a,b,label", "utf-8", "row 61 holds a number"),
    ([*GOOD, "1,1,"], "a,b,label", "utf-8", "row 61 has no label"),
    ([row.replace("right", "left") for row in GOOD], "a,b,label", "utf-8", r"labels left \(60\); two or more"),
    ([*GOOD, "1,1,up"], "a,b,label", "utf-8", "at least ten rows each"),
    (GOOD, "größe,b,label", "latin-1", "not a CSV file in UTF-8"),
])  # fmt: skip
def test_bad_tables_are_refused_in_words(tmp_path, rows, head, encoding, told):
    with pytest.raises(ValueError, match=told) as refusal:
        data.load_table(table(tmp_path / "bad.csv", rows, head, encoding))
    assert "bad.csv" in str(refusal.value)


def test_other_files_are_refused(tmp_path):
    for name in ("nowhere.csv", "table.xlsx"):
        with pytest.raises(ValueError, match=f"{name}, which is not a .csv file"):
            data.load_table(str(tmp_path / name))


# ---- figures and views


def test_every_figure_of_a_smoke_run_holds_numbers(smoke):
    drawn = smoke.figures()
    assert list(drawn) == ["plane", "kernels", "fluctuation", "histogram", "accuracy", "depth", "tangent"]
    for name, fig in drawn.items():
        assert fig.layout.title.text and "nan" not in fig.layout.title.text, name
        held = [t.z if t.type in ("heatmap", "contour") else t.y for t in fig.data]
        assert all(np.isfinite(np.asarray(v, dtype=float)).any() for v in held), name
    relu = drawn["plane"].data[3]  # chi_perp = C_W / 2, whatever the bias
    wanted = np.clip(np.log2(np.asarray(relu.y) / 2), -1.5, 1.5)
    assert np.allclose(np.asarray(relu.z), wanted[:, None])


def test_figures_leave_out_arms_that_did_not_run():
    lab = Experiment(STUDY, STUDY.make(SMALL), arms=["default_deep"]).run()
    assert set(lab.figures()) == {"plane", "accuracy"}


def test_views_show_the_member(smoke):
    assert views.trouble(smoke) == []
    fig = views.draw(smoke, "kernel over layers", "critical_deep", 0)
    net = smoke.arms["critical_deep"].members[0]
    wanted = [float(z.detach().square().mean()) for z in net.layers(net.probe)]
    assert fig.data[1].y == pytest.approx(wanted)
    lines = views.draw(smoke, "kernel over layers", "wide_ensemble", 1).data
    assert lines[0].y == pytest.approx([2.0] * 30)
    bars = views.draw(smoke, "distribution of preactivations", "wide_ensemble", 0).data[0]
    assert sum(bars.y) * 0.2 == pytest.approx(1, abs=0.02)
