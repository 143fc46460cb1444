"""The modular-addition study against numpy's transform, scipy's integrator, autograd, closed forms and symmetries."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import solve_ivp

from claimlab.contract import _exact
from claimlab.experiment import Experiment
from claimlab.study import find

STUDY = find("modular-addition")
study = STUDY.module
method = __import__("claimlab.studies.representation._modular_addition_method", fromlist=["flow"])
data = __import__("claimlab.studies.representation._modular_addition_data", fromlist=["lesson"])
drawing = __import__("claimlab.studies.representation._modular_addition_figures", fromlist=["stages"])
P = 23


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(theta, xi, activation="square"):
    p = theta.shape[1]
    return method.Network(theta, xi, activation, torch.from_numpy(data.addition(p)), torch.ones(p, p, dtype=torch.bool))


def even_net(p, n, activation="square"):
    """Every frequency with n evenly spaced phases and an offset of its own."""
    k = torch.arange(1, (p - 1) // 2 + 1).repeat_interleave(n)
    phases = 2 * math.pi * torch.arange(n, dtype=torch.float64).repeat((p - 1) // 2) / n + 0.3 * k
    return network(*method.built(phases, k, p), activation)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


# ---- spectra


@pytest.mark.parametrize("p", [7, 12, 23])
def test_spectrum_is_numpys_and_its_waves_give_the_weights_back(p):
    w = normal(p, 5, p)
    c = method.spectrum(w).numpy()
    theirs = np.fft.rfft(w.numpy())[:, 1:] * 2 / p
    theirs[:, -1] /= 1 + (p % 2 == 0)
    assert np.abs(c - theirs).max() < 1e-12
    x = np.arange(p)
    omega = 2 * np.pi / p * np.arange(1, p // 2 + 1)
    by_cosines = (np.abs(c)[:, :, None] * np.cos(omega[:, None] * x + np.angle(c)[:, :, None])).sum(1)
    centred = (w - w.mean(1, keepdim=True)).numpy()
    assert np.abs(by_cosines - centred).max() < 1e-12


def test_a_frequency_and_its_mirror_image_are_one():
    x = torch.arange(P, dtype=torch.float64)
    one, other = (method.spectrum(torch.cos(2 * math.pi * k * x / P + s * 0.7)) for k, s in ((4, 1), (P - 4, -1)))
    assert torch.allclose(one, other, atol=1e-12)
    assert one.abs().argmax() == 3 and one[3].angle() == pytest.approx(0.7)


def test_angles_are_wrapped_to_the_half_open_circle():
    got = method.wrap(torch.tensor([math.pi, -math.pi, 3.5 * math.pi, 0.0, 2 * math.pi + 0.1], dtype=torch.float64))
    assert got.tolist() == pytest.approx([math.pi, math.pi, -0.5 * math.pi, 0.0, 0.1])


def test_random_phases_are_half_pi_apart_and_aligned_ones_not():
    a, b = (method.spectrum(normal(s, 20000, P)) for s in (1, 2))
    weighed = float(method.misalignment(a, b))
    assert weighed == pytest.approx(math.pi / 2, abs=0.03)  # standard error 0.006 or so
    assert float(method.misalignment(a, a**2)) < 1e-6
    assert float(method.misalignment(a, -(a**2))) == pytest.approx(math.pi)


def test_dead_neurons_do_not_weigh():
    a, b = method.spectrum(normal(3, 2, P)), method.spectrum(normal(4, 2, P))
    b[0] = a[0] ** 2
    a[1] *= 1e-9
    assert float(method.misalignment(a, b)) < 1e-6


def test_frequencies_are_counted():
    pure, flat = torch.zeros(6, 11, dtype=torch.complex128), torch.ones(6, 11, dtype=torch.complex128)
    pure[:, 2] = 1j
    assert float(method.effective_frequencies(pure)) == pytest.approx(1)
    assert float(method.effective_frequencies(flat)) == pytest.approx(11)
    assert method.shares(method.spectrum(normal(5, 9, P))).sum(1).tolist() == pytest.approx([1] * 9)


def test_the_third_harmonic_is_found_where_it_was_put():
    x = torch.arange(P, dtype=torch.float64)
    w = torch.stack([torch.cos(2 * math.pi * k * x / P + k) + 0.5 * torch.cos(2 * math.pi * 3 * k * x / P) for k in range(1, 12)])
    assert float(method.overtone(method.spectrum(w), P)) == pytest.approx(0.25 / 1.25)
    assert float(method.overtone(method.spectrum(w), P, 2)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(float(method.overtone(method.spectrum(normal(0, 3, 9)), 9)))


def test_diversity_of_symmetric_and_of_bunched_phases():
    spread = method.diversity(method.spectrum(even_net(P, 5).theta.detach()))
    assert float(spread["phase_order_2"]) < 1e-9 and float(spread["phase_order_4"]) < 1e-9
    assert float(spread["frequency_entropy"]) == pytest.approx(1)
    bunched = torch.zeros(8, 11, dtype=torch.complex128)
    bunched[:, 3] = torch.exp(torch.tensor(0.4j))
    found = {k: float(v) for k, v in method.diversity(bunched).items()}
    assert found == pytest.approx({"phase_order_2": 1, "phase_order_4": 1, "frequency_entropy": 0})


# ---- the network and its loss


@pytest.mark.parametrize("activation", ["relu", "square", "abs"])
def test_logits_are_the_formula_cell_by_cell(activation):
    theta, xi = normal(6, 4, 7), normal(7, 4, 7)
    act = {"relu": lambda z: max(z, 0.0), "square": lambda z: z * z, "abs": abs}[activation]
    found = method.logits(network(theta, xi, activation)).detach()
    for x, y in [(0, 0), (2, 5), (5, 2), (6, 6)]:
        for j in range(7):
            wanted = sum(float(xi[m, j]) * act(float(theta[m, x] + theta[m, y])) for m in range(4))
            assert float(found[x, y, j]) == pytest.approx(wanted)


@pytest.mark.parametrize("values", [{}, {"table_noise": 0.7}])
def test_the_loss_is_the_mean_cross_entropy_over_shown_cells(values):
    p = STUDY.make({"p": 11, "width": 16, **values})
    task = study.GrokDecay(p).bind(3)
    net, lesson = task.init(), task.lesson
    every = method.logits(net)[lesson.shown]
    wanted = torch.nn.functional.cross_entropy(every, lesson.table[lesson.shown])
    assert float(task.loss(net, *task.batch(net, None, 0)).detach()) == pytest.approx(wanted.item(), rel=1e-5)


def test_both_orders_of_a_pair_lie_on_one_side_and_the_share_is_kept():
    lessons = [data.lesson(seed, P, 0.0, 0.8) for seed in range(4)]
    for one in lessons:
        assert torch.equal(one.shown, one.shown.T)
        assert len(one.pairs) == int(torch.triu(one.shown).sum()) == round(0.8 * 276)
        assert float(one.target.sum()) == pytest.approx(1)
    assert not torch.equal(lessons[0].shown, lessons[1].shown)


def test_noise_redraws_cells_alone():
    table = data.lesson(0, 97, 0.5, 1.0).table.numpy()
    kept = (table == data.addition(97)).mean()
    assert kept == pytest.approx(0.5 + 0.5 / 97, abs=0.01)
    alone = data.lesson(0, 97, 1.0, 1.0).table.numpy()
    assert (alone == alone.T).mean() == pytest.approx(2 / 97, abs=0.01)  # the diagonal, and chance
    assert np.bincount(alone.ravel(), minlength=97).min() > 50


def test_translation_leaves_the_accuracy_unchanged():
    net = study.Construct(arc=math.pi / 2).build(STUDY.make({"p": 23, "width": 66}), 0)
    for s in (1, 9):
        moved = network(net.theta.detach().roll(s, 1), net.xi.detach().roll(2 * s, 1))
        assert torch.equal(study.right(moved), study.right(net).roll((s, s), (0, 1)))
    assert 0.1 < float(study.right(net).float().mean()) < 0.99


def test_without_decay_the_two_grokking_arms_are_the_same():
    lab = Experiment(STUDY, STUDY.make({"weight_decay": 0.0}, profile="smoke"), arms=["grok_decay", "grok_no_decay"]).run()
    for one, other in zip(lab.arms["grok_decay"].members, lab.arms["grok_no_decay"].members, strict=True):
        assert torch.equal(one.theta, other.theta) and torch.equal(one.xi, other.xi)


def test_decay_shrinks_what_the_loss_leaves_alone():
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), arms=["grok_decay", "grok_no_decay"]).run()
    ends = {arm: study.norm(*lab.arms[arm].members[0].parameters()) for arm in lab.arms}
    assert ends["grok_decay"] < ends["grok_no_decay"]


# ---- the vote


@pytest.mark.parametrize(("p", "n"), [(7, 5), (11, 7), (23, 5)])
def test_evenly_spaced_phases_give_the_flawed_indicator(p, n):
    found = method.logits(even_net(p, n)).detach()
    assert (found - method.flawed_indicator(p, 1.0, n)).abs().max() < 1e-9
    x, y = 1, 3
    assert found[x, y].argsort(descending=True)[:3].tolist()[0] == 4
    assert set(found[x, y].argsort(descending=True)[1:3].tolist()) == {2, 6}  # the ghosts at 2x and 2y


def test_relu_is_half_of_abs_where_phases_come_in_opposite_pairs():
    net = even_net(11, 6)  # phi and phi + pi share psi = 2 phi, so that the odd part of the activation cancels
    assert (2 * method.logits(net, "relu") - method.logits(net, "abs")).abs().max() < 1e-9


def test_margin_is_counted_by_hand_and_has_no_scale():
    f, table = normal(8, 5, 5, 5), torch.from_numpy(data.addition(5))
    gaps = [float(f[x, y, (x + y) % 5]) - max(float(f[x, y, j]) for j in range(5) if j != (x + y) % 5) for x in range(5) for y in range(5)]
    assert float(method.margin(f, table)) == pytest.approx(np.mean(gaps) / np.std(f.numpy(), ddof=1))
    assert float(method.margin(100 * f + 7, table)) == pytest.approx(float(method.margin(f, table)))


def test_only_the_quarter_circle_breaks_the_symmetry():
    p = STUDY.make({"width": 1024})
    found = {arm: study.ARMS[arm](p, [0]) for arm in ("construct_diverse", "construct_quarter_phase", "construct_few_freq")}
    last = {arm: next(one.ticks()).metrics[0] for arm, one in found.items()}
    assert last["construct_diverse"]["phase_order_2"] < 0.15  # sqrt(pi / 4 n), n = 93, is 0.09
    assert last["construct_quarter_phase"]["phase_order_2"] == pytest.approx(2 / math.pi, abs=0.05)  # mean of exp(2 i phi)
    assert last["construct_few_freq"]["frequency_entropy"] == pytest.approx(math.log(2) / math.log(11))
    assert last["construct_diverse"]["logit_margin"] > last["construct_quarter_phase"]["logit_margin"] + 0.5


# ---- the lottery


def polar(_t, z, p):
    """The flow as the paper writes it, in amplitudes and phases of one frequency."""
    alpha, beta, phi, psi = z
    lag = 2 * phi - psi
    return [2 / p * alpha * beta * math.cos(lag), alpha**2 * math.cos(lag) / p, -2 / p * beta * math.sin(lag),
            alpha**2 / beta * math.sin(lag) / p]  # fmt: skip


def test_flow_is_the_gradient_of_the_first_order_loss():
    theta, xi = normal(9, 6, P).requires_grad_(), normal(10, 6, P).requires_grad_()
    net = network(theta, xi, "square")
    f = method.logits(net)
    first_order = f.mean() - f.gather(-1, net.table[..., None]).mean()  # of the cross-entropy, around f = 0
    slopes = torch.autograd.grad(first_order, (net.theta, net.xi))
    a, b = (method.spectrum(w.detach()).numpy() for w in (theta, xi))
    for mine, slope in zip(method.flow(a, b, P), slopes, strict=True):
        assert np.abs(mine + method.spectrum(slope).numpy()).max() < 1e-12


def test_tiny_networks_follow_the_flow_under_the_true_loss():
    task = study.Lottery(STUDY.make({"init_scale": 0.001, "width": 8})).bind(0)
    net = task.init().double()
    slopes = torch.autograd.grad(task.loss(net, *(t.double() for t in task.batch(net, None, 0))), (net.theta, net.xi))
    a, b = (method.spectrum(w.detach()).numpy() for w in (net.theta, net.xi))
    for mine, slope in zip(method.flow(a, b, P), slopes, strict=True):
        assert np.abs(mine + method.spectrum(slope).numpy()).max() < 1e-4 * np.abs(mine).max()


@pytest.mark.parametrize("seed", range(4))
def test_flow_follows_solve_ivp_in_amplitudes_and_phases(seed):
    rng = np.random.default_rng(seed)
    alpha, beta, phi = rng.uniform(0.2, 1, 3), rng.uniform(0.2, 1, 3), rng.uniform(-np.pi, np.pi, 3)
    psi = 2 * phi - rng.uniform(-1.5, 1.5, 3)
    times = np.linspace(0, 8, 9)
    mine = method.follow(alpha * np.exp(1j * phi), beta * np.exp(1j * psi), P, times)
    for k in range(3):
        theirs = solve_ivp(polar, (0, 8), [alpha[k], beta[k], phi[k], psi[k]], t_eval=times, args=(P,), rtol=1e-11, atol=1e-13)
        assert np.abs(mine[:, k] - theirs.y[0]).max() < 1e-6


def test_output_amplitudes_may_pass_through_zero():
    """Opposed phases: b starts at -0.5, reaches 0 and grows; on the real line it is a pair of real equations."""
    theirs = solve_ivp(lambda t, z: [2 / P * z[0] * z[1], z[0] ** 2 / P], (0, 40), [1.0, -0.5], t_eval=[10, 40], rtol=1e-10, atol=1e-12)
    assert theirs.y[1, 0] < 0 < theirs.y[1, 1]
    mine = method.follow(np.array([1.0 + 0j]), np.array([-0.5 + 0j]), P, np.array([10.0, 40.0]))
    assert np.abs(mine[:, 0] - theirs.y[0]).max() < 1e-6


def test_what_the_flow_conserves():
    a, b = (method.spectrum(normal(s, 40, P)).numpy() for s in (11, 12))
    kept = [abs(a) ** 2 - 2 * abs(b) ** 2, (a**2 * b.conj()).imag]
    for _ in range(200):
        a, b = method.step(a, b, P, method.stride(a, b, P))
    assert np.abs(kept[0] - (abs(a) ** 2 - 2 * abs(b) ** 2)).max() < 1e-8 * np.abs(a).max() ** 2
    assert np.abs(kept[1] - (a**2 * b.conj()).imag).max() < 1e-8 * np.abs(a).max() ** 3


def test_the_first_to_arrive_is_the_one_that_scipy_sees_arrive():
    a, b = (method.spectrum(normal(s, 6, P)).numpy() for s in (13, 14))
    winner, time = method.race(a, b, P)
    for m in range(6):
        arrivals, level = [], method.LEVEL * np.abs(a[m]).max()

        def there(_t, z, level=level):
            return np.hypot(z[0], z[1]) - level

        there.terminal = True

        def real(_t, z):
            da, db = 2 / P * complex(z[0], -z[1]) * complex(z[2], z[3]), complex(z[0], z[1]) ** 2 / P
            return [da.real, da.imag, db.real, db.imag]

        for k in range(11):
            z0 = [a[m, k].real, a[m, k].imag, b[m, k].real, b[m, k].imag]
            found = solve_ivp(real, (0, 3 * time[m]), z0, events=there, rtol=1e-9, atol=1e-12)
            arrivals.append(found.t_events[0][0] if len(found.t_events[0]) else math.inf)
        assert int(np.argmin(arrivals)) == winner[m]
        assert min(arrivals) <= time[m] * (1 + 1e-6) and time[m] < 1.05 * min(arrivals)


def test_a_neuron_does_not_notice_its_company_in_the_race():
    a, b = (method.spectrum(normal(s, 30, P)).numpy() for s in (15, 16))
    together, alone = method.race(a, b, P), method.race(a[7:8], b[7:8], P)
    assert together[0][7] == alone[0][0] and together[1][7] == alone[1][0]


def test_predictors_on_a_race_that_can_be_told_by_eye():
    a = np.array([[1.0, 1.3 * np.exp(1j), 0.1]])
    b = np.array([[1.0 + 0j, -np.exp(2j), 0.1]])  # the largest is opposed, the second aligned, the third aligned and small
    assert [int(rule(a, b, P)[0]) for rule in (study.by_flow, study.by_magnitude)] == [0, 1]
    assert int(study.by_phase(a * [1, 1, 1j], b, P)[0]) == 0


def test_the_flow_names_the_winners_of_a_trained_network():
    lab = Experiment(STUDY, STUDY.make({"p": 11, "width": 128, "seeds": 2, "steps": 4000}),
                     arms=["predict_ode", "predict_magnitude", "predict_phase"]).run()  # fmt: skip
    hits = lab.table[lab.table["metric"] == "winner_hit_rate"].groupby("arm")["value"].mean()
    assert hits["predict_ode"] > 0.8 > hits["predict_phase"]
    assert hits["predict_ode"] > hits["predict_magnitude"]


# ---- training


@pytest.mark.parametrize("task", [study.FullData, study.Lottery])
def test_filmed_arms_keep_the_contract_of_trained_arms(task):
    assert _exact(task, STUDY.make(profile="smoke")) == []


def test_a_film_goes_on_where_its_run_was_saved():
    p = STUDY.make(profile="smoke")
    whole, cut = (study.ARMS["full_data"](p, [0, 1]) for _ in range(2))
    for _ in whole.ticks():
        pass
    for tick in cut.ticks():
        if tick.step >= 12:
            break
    again = study.ARMS["full_data"](p, [0, 1])
    again.load(cut.state())
    for _ in again.ticks():
        pass
    assert again.film.keys() == whole.film.keys()
    assert all(torch.equal(again.film[s], whole.film[s]) for s in whole.film)


def test_a_finished_experiment_comes_back_with_nets_that_were_built_and_predictions(smoke):
    again = Experiment(STUDY, smoke.params)
    again.load(smoke.state())
    assert list(again.ticks()) == [] and again.table.equals(smoke.table)
    for arm in ("construct_few_freq", "lottery", "predict_ode"):
        for one, other in zip(again.arms[arm].members, smoke.arms[arm].members, strict=True):
            assert torch.equal(one.theta, other.theta)


def test_stages_are_found_on_curves_whose_borders_are_known():
    steps = np.arange(0, 101, 10)
    curves = {"train_accuracy": np.minimum(1, steps / 30), "gradient_norm": np.where(steps < 70, 5.0, 0.4)}
    rows = pd.DataFrame([{"metric": m, "step": s, "seed": 0, "value": v} for m, c in curves.items() for s, v in zip(steps, c, strict=True)])
    assert drawing.stages(rows) == (30.0, 70.0)
    rows.loc[rows["metric"] == "train_accuracy", "value"] = 0.5
    assert all(math.isnan(border) for border in drawing.stages(rows))


# ---- a table of one's own


def write(path, table):
    path.write_text("\n".join(",".join(map(str, row)) for row in table))
    return str(path)


@pytest.mark.parametrize(("text", "why"), [
    ("0,1,2\n1,2,0", "square"), ("", "square"), ("0,1\n1,x", "whole number"), ("0,1\n1,0.5", "whole number"),
    ("0,1\n1,2", "allowed are 0 to 1"), ("0,1\n0,1", "column 0"), ("1,1\n0,0", "row 0"), ("0,1,2\n1,2,0\n2,0,1", "set p = 3"),
])  # fmt: skip
def test_a_table_that_does_not_fit_is_refused_with_the_reason(tmp_path, text, why):
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=why) as refusal:
        data.load_table(str(file), 2)
    assert "table.csv" in str(refusal.value)
    with pytest.raises(ValueError, match="not a file"):
        data.load_table(str(tmp_path / "none.csv"), 2)


def test_a_cyclic_group_in_other_words_is_relabelled(tmp_path):
    names = np.random.default_rng(0).permutation(11)
    place = np.argsort(names)
    table = names[data.addition(11)[np.ix_(place, place)]]
    assert not np.array_equal(table, data.addition(11))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(data.load_table(write(tmp_path / "words.csv", table), 11), data.addition(11))


def test_a_group_in_which_order_matters_is_named(tmp_path):
    turns = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)]  # the permutations of three things
    table = [[turns.index(tuple(a[b[i]] for i in range(3))) for b in turns] for a in turns]
    with pytest.warns(UserWarning, match="nor is it commutative"):
        data.load_table(write(tmp_path / "three.csv", table), 6)


def test_another_group_is_learned_without_fourier_figures(tmp_path, monkeypatch):
    klein = np.bitwise_xor.outer(np.arange(8), np.arange(8))  # every element is its own inverse: not cyclic
    monkeypatch.setenv("CLAIMLAB_DATA", write(tmp_path / "xor.csv", klein))
    with pytest.warns(UserWarning, match="not a cyclic group"):
        lab = Experiment(STUDY, STUDY.make({"p": 8}, profile="smoke"), arms=["full_data", "grok_decay", "grok_no_decay"]).run()
    assert np.array_equal(lab.arms["full_data"].members[0].table.numpy(), klein)
    assert set(lab.figures()) == {"grokking"}


# ---- figures and views


def test_figures_at_smoke_hold_what_was_measured(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"spectrum", "phases", "race", "vote", "winner_hit_rate", "logit_margin", "grokking"}
    assert np.allclose(np.array(drawn["spectrum"].data[-1].z).sum(1), 1, atol=1e-5)
    assert not study.live(smoke.arms["lottery"], 0).any() and "no neuron" in drawn["race"].layout.title.text
    film, end = smoke.arms["full_data"].film, drawn["phases"].data[3]
    share, k = method.shares(film[max(film)][0]).max(-1)
    b = film[max(film)][1].gather(-1, k[:, None])[:, 0]
    assert np.allclose(np.sin(end.y), b.angle().sin().numpy(), atol=1e-5) and np.array_equal(end.customdata, k.numpy() + 1)
    curve = next(t for t in drawn["grokking"].data if t.name == "grok_decay, test")
    rows = smoke.table[(smoke.table["arm"] == "grok_decay") & (smoke.table["metric"] == "test_accuracy")]
    assert np.allclose(curve.y, rows.groupby("step")["value"].mean())


def test_contributions_of_neurons_sum_to_the_logits(smoke):
    net = smoke.arms["grok_decay"].members[1]
    assert np.allclose(drawing.contributions(net, 2, 7).sum(0), method.logits(net).detach()[2, 7], atol=1e-5)


def test_views_of_every_arm_show_the_member_itself(smoke):
    for arm in smoke.arms:
        for view in study.VIEWS.values():
            assert view(smoke.arms[arm].members[-1], smoke.params).data
    net = smoke.arms["grok_decay"].members[1]
    answers, held, wrong = study.VIEWS["answers"](net, smoke.params).data
    assert len(held.x) == int((~net.shown).sum()) and all(not net.shown[y, x] for y, x in zip(held.y, held.x, strict=True))
    z = np.array(answers.z)
    assert all(z[y, x] != (x + y) % 11 for y, x in zip(wrong.y, wrong.x, strict=True))
    assert len(wrong.x) == (z != data.addition(11)).sum()
