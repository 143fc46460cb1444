"""Causal fairness under hidden confounding: bounds against scipy's linear programmes, effects against simulated interventions."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.metrics import accuracy_score, log_loss

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.parts.confounding import ratio_limits, worst_case
from claimlab.studies.causality import _causal_fairness_sensitivity_checks as checks
from claimlab.studies.causality import _causal_fairness_sensitivity_data as data
from claimlab.studies.causality import _causal_fairness_sensitivity_figures as drawn
from claimlab.studies.causality import _causal_fairness_sensitivity_method as method
from claimlab.studies.causality import _causal_fairness_sensitivity_nets as nets
from claimlab.training import Run

STUDY = study.find("causal-fairness-sensitivity")
M = STUDY.module
SMALL = dict(rows=400, rounds=2, steps=3, nuisance_steps=10, seeds=2)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def laws():
    run = Run(M.Laws(STUDY.make(SMALL)), [1000, 1001])
    for _ in run:
        pass
    return run.members


def trained(arm, laws, **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), [1000, 1001], start=laws)
    for _ in run:
        pass
    return run


def weights(run):
    return [torch.cat([p.detach().flatten() for p in member.parameters()]) for member in run.members]


def tables(seed=0, levels=5, d=4):
    """g, observed [2, K, d], pi [K] and share [2, K], at random."""
    rng = np.random.default_rng(seed)
    g, q, pi = rng.uniform(size=(2, levels, d)), rng.dirichlet(np.ones(d), size=(2, levels)), rng.uniform(0.1, 0.9, levels)
    return tuple(map(torch.tensor, (g, q, pi, rng.dirichlet(np.ones(levels), size=2))))


# ---- bounds


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.floats(0.02, 0.98), st.floats(1, 6), st.integers(0, 10**6))
def test_the_closed_form_is_the_linear_programme(d, pi, gamma, seed):
    rng = np.random.default_rng(seed)
    q, values = rng.dirichlet(np.full(d, 0.7)), rng.integers(-4, 5, d) / 4  # ties occur
    low, high = (float(side) for side in ratio_limits(torch.tensor(pi).double(), gamma))
    best = linprog(-values, A_eq=np.ones((1, d)), b_eq=[1], bounds=[(low * w, high * w) for w in q])
    ours = method.highest(*(torch.tensor(part, dtype=torch.float64) for part in (values, q, low, high)))
    assert ours.item() == pytest.approx(-best.fun, abs=1e-8)


@pytest.mark.parametrize("conditional", [False, True], ids=["of all", "of the units with that a"])
def test_bounds_are_the_optimum_of_the_whole_linear_programme(conditional):
    """One programme over the laws of all levels of z at once, with each law's own box."""
    g, q, pi, share = tables()
    low, high = method.limits(pi, 2.5, conditional)
    found = method.bounds(g, q, low, high, share)

    def extreme(sign, values, i, a, mean):  # sum over z, m of mean(z) v(z, m) P(m | do(i), z)
        cost = -sign * (mean[:, None] * values).flatten().numpy()
        box = [(lo * w, hi * w) for k in range(5) for w, lo, hi in [(v, low[a, i, k], high[a, i, k]) for v in q[i, k]]]
        best = linprog(cost, A_eq=np.kron(np.eye(5), np.ones((1, 4))), b_eq=np.ones(5), bounds=box)
        return -sign * best.fun

    for sign, ours in zip((-1, 1), found, strict=True):
        assert ours[0].item() == pytest.approx(extreme(sign, g[1] - g[0], 0, 0, share[0]), abs=1e-8)
        two_terms = extreme(sign, g[0], 1, 0, share[0]) - extreme(-sign, g[0], 0, 0, share[0])
        assert ours[1].item() == pytest.approx(two_terms, abs=1e-8)
        seen = float((share[0][:, None] * g[0] * q[0]).sum())
        assert ours[2].item() == pytest.approx(extreme(sign, g[0], 0, 1, share[1]) - seen, abs=1e-8)


@pytest.mark.parametrize("conditional", [False, True], ids=["of all", "of the units with that a"])
def test_strength_one_is_the_plug_in_estimate_and_widths_never_shrink(conditional):
    g, q, pi, share = tables(3)
    plain = method.effects(g, q.expand(2, -1, -1, -1), q, share)
    low, high = method.bounds(g, q, *method.limits(pi, 1.0, conditional), share)
    assert torch.allclose(low, plain, atol=1e-12) and torch.allclose(high, plain, atol=1e-12)
    before = (low, high)
    for gamma in (1.2, 1.7, 2.5, 4.0, 6.0):
        low, high = method.bounds(g, q, *method.limits(pi, gamma, conditional), share)
        assert (low <= before[0] + 1e-12).all() and (high >= before[1] - 1e-12).all()
        assert (low < high)[conditional:].all()  # whose own a is 0 has m under do(0) on record: DE_01(0) is then sharp
        before = (low, high)


def test_total_variation_is_spurious_plus_indirect_minus_direct():
    """Against the difference of two group means, row by row in pandas."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"z": rng.integers(0, 4, 900), "a": rng.integers(0, 2, 900), "m": rng.integers(0, 3, 900)})
    counts = data.table(*(frame[c].to_numpy() for c in "zam"), rng.integers(0, 2, 900))
    g = torch.tensor(rng.uniform(size=(2, 4, 3)))
    frame["g"] = g.numpy()[frame.a, frame.z, frame.m]
    mean = frame.groupby("a")["g"].mean()
    q, share = nets.observed_law(counts), nets.shares(counts)
    law = q.expand(2, -1, -1, -1)
    for i, j in ((0, 1), (1, 0)):
        _, indirect, spurious = method.effects(g, law, q, share, i, j, a=j).tolist()
        direct_back = method.effects(g, law, q, share, j, i, a=j)[0].item()
        assert spurious + indirect - direct_back == pytest.approx(mean[j] - mean[i], abs=1e-12)


def test_a_constant_predictor_is_fair_whatever_is_hidden():
    _, q, pi, share = tables(1)
    g = torch.full((2, 5, 4), 0.3, dtype=torch.float64)
    for bound in method.bounds(g, q, *method.limits(pi, 5.0), share):
        assert bound.abs().max() < 1e-12
    assert method.effects(g, q.flip(0).expand(2, -1, -1, -1), q, share).abs().max() < 1e-12


def test_outcome_limits_are_the_knapsack_of_two_values():
    g, _, pi, _ = tables(2)
    low, high = method.outcome_limits(g, pi, 3.0)
    sides = [side[..., None].expand(g.shape) for side in ratio_limits(torch.stack([1 - pi, pi]), 3.0)]
    pair = torch.stack([g, 1 - g], -1)
    for sign, ours in ((1.0, high), (-1.0, low)):
        values = torch.tensor([sign, 0.0], dtype=torch.float64).expand(pair.shape)
        assert torch.allclose(worst_case(values, pair, *sides)[..., 0], ours, atol=1e-12)


def test_a_spread_outcome_holds_every_outcome_between():
    g, q, pi, share = tables(4)
    sides, spread = method.limits(pi, 2.0), method.outcome_limits(g, pi, 2.0)
    low, high = method.bounds(g, q, *sides, share, spread=spread)
    inner = method.bounds(g, q, *sides, share)
    assert (low < inner[0]).all() and (inner[1] < high).all()
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):  # a law and an outcome of nature's choice; the observed term stays as it is
        some = spread[0] + (spread[1] - spread[0]) * torch.rand(g.shape, generator=rng, dtype=torch.float64)
        lean = worst_case(torch.randn(2, 2, 5, 4, generator=rng, dtype=torch.float64), q.expand(2, 2, 5, 4), *sides)
        found = method.effects(some, lean, q, share)
        found[2] += (share[0][:, None] * (some[0] - g[0]) * q[0]).sum()
        assert (low - 1e-12 <= found).all() and (found <= high + 1e-12).all()


# ---- worlds


@pytest.mark.parametrize("strength", [1.0, 2.0, 4.0])
def test_outcome_bounds_hold_where_the_cause_moves_a_and_y_alone(strength):
    one = data.world(strength, 0.0, 1.0, 1)
    low, high, true = checks.outcome(one, strength)
    assert (low <= true + 1e-12).all() and (true <= high + 1e-12).all()
    trusted = checks.outcome(one, 1.0)
    assert torch.allclose(trusted[0], trusted[1], atol=1e-12)
    assert torch.allclose(trusted[0], true, atol=1e-12) == (strength == 1)


@pytest.mark.parametrize("strength", [1.0, 2.0, 5.0])
def test_a_world_has_its_strength_and_its_propensity(strength):
    one = data.world(strength, 1.2, 1.0, 1)
    odds = one.a / (1 - one.a)
    e = 1 / (1 + np.exp(-0.6 * np.arange(-2, 3)))
    assert np.allclose((one.a * one.causes).sum(0), e, atol=1e-12)
    for u, power in ((0, -1), (1, 1)):
        assert np.allclose(odds[u], e / (1 - e) * strength**power)
    assert one.joint.sum().item() == pytest.approx(1) and torch.allclose(one.m.sum(-1), torch.ones(()).double())


@pytest.mark.parametrize("conditional", [False, True], ids=["of all", "of the units with that a"])
def test_true_effects_are_those_of_simulated_interventions(conditional):
    """A million units, u included; m is drawn again under do(0) and do(1), and nothing is read from the exact sums."""
    one, rng, n = data.world(3.0, 2.0, 1.0, -1), np.random.default_rng(0), 1_000_000
    z = rng.choice(5, p=one.z.numpy(), size=n)
    u = (rng.random(n) < one.u.numpy()[z]).astype(int)
    a = (rng.random(n) < one.a.numpy()[u, z]).astype(int)
    noise = rng.random(n)
    m = [(noise[:, None] > one.m.numpy()[u, i, z].cumsum(1)[:, :3]).sum(1) for i in (0, 1)]
    g = tables(7)[0].numpy()
    keys = pd.DataFrame({"z": z, "a": a, "own": g[0, z, np.where(a, m[1], m[0])]})
    values = {"jump": g[1, z, m[0]] - g[0, z, m[0]], "far": g[0, z, m[1]], "near": g[0, z, m[0]]}
    found = {name: keys.assign(v=v) for name, v in values.items()}

    def mean(name, of):  # over z as it is among a = of; the law given z of all units, or of theirs alone
        rows = found[name] if not conditional else found[name][a == of]
        return rows.groupby("z").v.mean() @ keys[a == of].z.value_counts(normalize=True).sort_index()

    expected = [mean("jump", 0), mean("far", 0) - mean("near", 0), mean("near", 1) - keys[a == 0].own.mean()]
    exact = method.effects(torch.tensor(g), one.law(conditional), nets.observed_law(one.joint.sum(0)), one.share)
    assert np.allclose(exact, expected, atol=4e-3)


@pytest.mark.parametrize("conditional", [False, True], ids=["of all", "of the units with that a"])
def test_true_laws_lie_within_the_limits_and_the_limits_hold_one(conditional):
    one = data.world(3.0, 3.0, 1.0, 1)
    seen = one.joint.sum(0)
    pi = seen[:, 1].sum((1, 2)) / seen.sum((1, 2, 3))
    low, high = method.limits(pi, 3.0, conditional)
    ratio = one.law(conditional) / nets.observed_law(seen)
    assert (low <= 1).all() and (high >= 1).all()
    assert (low[..., None] <= ratio + 1e-12).all() and (ratio <= high[..., None] + 1e-12).all()
    assert ratio.max() > 1 + 0.6 * (high.max() - 1)  # the limits are not idle: the world comes near them
    s_low, s_high = (1 / ((1 - g) * pi + g) for g in (3.0, 1 / 3.0))  # the paper's form, for a = 1
    if not conditional:
        assert torch.allclose(low[0, 1], 1 / s_high) and torch.allclose(high[0, 1], 1 / s_low)


def test_a_table_has_the_law_of_its_world():
    one = data.world(2.0, 1.2, 1.5, 1)
    counts = data.draw(one, 40_000, np.random.default_rng(1))
    expected = 40_000 * one.joint.sum(0).numpy()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert counts.sum() == 40_000 and abs(statistic - 79) < 5 * np.sqrt(2 * 79)


def test_seeds_have_their_own_worlds_and_keep_them():
    ones = [data.cases(seed, 400, 2.0, 1.2) for seed in range(12)]
    assert {c.worlds[0].factor for c in ones} == set(data.FACTORS) and {c.worlds[0].sign for c in ones} == {-1, 1}
    data.cases.cache_clear()
    assert torch.equal(data.cases(3, 400, 2.0, 1.2).train, ones[3].train) and not torch.equal(ones[3].train[0], ones[3].test)


# ---- networks and training


def test_predictor_and_laws_are_judged_as_rows_would_be(smoke):
    net = smoke.arms["robust_fair"].members[0]
    k, a, m, y = (part.numpy() for part in torch.cartesian_prod(*map(torch.arange, net.held.shape)).T)
    f = net().detach().numpy()[a, k, m]
    assert net.accuracy().item() == pytest.approx(accuracy_score(y, f.round(), sample_weight=net.held.flatten()))
    assert net.cross_entropy().item() == pytest.approx(log_loss(y, f, sample_weight=net.seen[0].flatten()), abs=1e-6)
    laws = smoke.arms["laws"].members[0]
    pi, observed = laws.laws()
    expected = 0.0
    for one_pi, law, counts in zip(pi.numpy(), observed.numpy(), net.seen, strict=True):
        expected += log_loss(a, one_pi[k], sample_weight=counts.flatten()) + log_loss(m, law[a, k], sample_weight=counts.flatten())
    assert laws.loss(net.seen.float()).item() == pytest.approx(expected, rel=1e-4)


def test_laws_come_near_the_counted_ones():
    run = Run(M.Laws(STUDY.make(dict(rows=50_000, nuisance_steps=400))), [1000, 1001])
    for _ in run:
        pass
    for net, task in zip(run.members, run.tasks, strict=True):
        pi, observed = net.laws()
        train = task.cases.train
        assert (pi - checks.counted(train)).abs().max() < 0.03
        assert (observed - nets.observed_law(train).clamp(*nets.CLIP)).abs().max() < 0.06


def test_gamma_one_is_naive_and_direct_alone_is_the_ablation(laws):
    for ours, other, values in (("robust_fair", "naive_fair", dict(gamma=1.0)), ("robust_fair", "robust_de_only", dict(effects="direct"))):
        same = zip(weights(trained(ours, laws, **values)), weights(trained(other, laws, **values)), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(weights(trained("robust_fair", laws))[0], weights(trained("naive_fair", laws))[0])


def test_multipliers_rise_at_the_end_of_a_round_alone(laws):
    task = M.Robust(STUDY.make({**SMALL, "tolerance": 0.0}))
    run = Run(task, [1000, 1001], start=laws)
    before, mu = [net.multiplier.clone() for net in run.members], 10.0
    assert all((b == 0).all() for b in before)
    for step in range(1, 7):
        run.advance()
        for k, net in enumerate(run.members):
            low, high = net.interval(2.0, half="train")
            c = torch.maximum(low.abs(), high.abs()).detach()
            expected = (before[k] + mu * c).clamp(min=0) if step % 3 == 0 else before[k]
            assert torch.allclose(net.multiplier, expected, atol=1e-9)
            before[k] = net.multiplier.clone()
        mu *= 1.5 if step % 3 == 0 else 1
        assert all(net.mu.item() == pytest.approx(mu) for net in run.members)


def test_who_is_blind_has_no_direct_effect(smoke):
    assert (smoke.table[(smoke.table.arm == "blind") & (smoke.table.metric == "true_direct")].value == 0).all()
    assert (smoke.table[(smoke.table.arm == "unconstrained") & (smoke.table.metric == "true_direct")].value != 0).any()


# ---- the checks


def test_one_programme_for_all_cells_is_one_for_each():
    rng = np.random.default_rng(2)
    values, q = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), size=5)
    low, high = rng.uniform(0.2, 1, 5), rng.uniform(1, 3, 5)
    each = [-linprog(-v, A_eq=np.ones((1, 4)), b_eq=[1], bounds=[(lo * w, hi * w) for w in p]).fun
            for v, p, lo, hi in zip(values, q, low, high, strict=True)]  # fmt: skip
    assert np.allclose(checks.programme(values, q, low, high), each, atol=1e-9)


def test_the_gap_sees_a_wrong_closed_form(monkeypatch):
    assert checks.lp_gap(0, cells=40) < 1e-9
    monkeypatch.setattr(checks.method, "highest", lambda v, q, low, high: (v * q).sum(-1) * high)
    assert checks.lp_gap(0, cells=40) > 0.01


def test_resampled_tables_spread_as_a_multinomial():
    counts = torch.tensor(data.draw(data.world(2.0, 1.2, 1.0, 1), 4000, np.random.default_rng(0)))[None]
    again = torch.cat([checks.resampled(counts, np.random.default_rng(k)) for k in range(20)])
    assert (again.flatten(2).sum(-1) == 4000).all()
    share = counts[0] / 4000
    expected = (4000 * share * (1 - share)).sqrt()
    big = share > 0.005
    assert torch.allclose(again.std(0)[0][big], expected[big], rtol=0.15)


def test_coverage_tells_an_insured_interval_from_a_trusting_one(smoke):
    last = smoke.table[smoke.table.arm == "robust_fair"].groupby("metric").value.min()
    assert last["coverage"] > last["coverage_trusting"] + 0.1
    assert last["coverage_bare"] <= last["coverage"]


def test_a_seed_is_shown_with_its_world_and_from_both_sides(smoke):
    found = checks.by_world(smoke)
    last = smoke.table[smoke.table.metric == "true_unfairness"].groupby(["arm", "seed"]).value.last()
    assert all(found.loc[s, "robust_fair"] == pytest.approx(last["robust_fair", s]) for s in (1000, 1001))
    assert found["strength"].to_dict() == {1000: 1.5, 1001: 3.0}
    net = smoke.arms["naive_fair"].members[0]
    turned = method.effects(net().flip(0), net.law[0].flip(0, 1), net.true_observed[0].flip(0), net.true_share[0].flip(0))
    assert found.loc[1000, "naive_fair, from a = 1"] == pytest.approx(turned.abs().max().item(), abs=1e-12)


# ---- records of one's own


def frame(**changes):
    rng = np.random.default_rng(0)
    base = {"a": np.tile([0, 1], 200), "z": np.repeat([10, 20], 200), "m": rng.integers(0, 3, 400), "y": rng.integers(0, 2, 400)}
    return pd.DataFrame({**base, **changes})


def test_records_take_the_place_of_the_simulation(tmp_path, monkeypatch, smoke):
    path = tmp_path / "sentences.csv"
    frame().rename(columns={"a": "race", "y": "prison"}).to_csv(path, index=False)
    monkeypatch.setenv("CLAIMLAB_DATA", str(path))
    monkeypatch.setenv("CLAIMLAB_ROLES", "a=race; z=z; m=m; y=prison")
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[0, 1], arms=["naive_fair", "robust_fair"]).run()
    metrics = set(lab.table[lab.table.arm == "robust_fair"].metric)
    assert "worst_case" in metrics and not {"true_unfairness", "coverage"} & metrics
    net = lab.arms["robust_fair"].members[0]
    assert net.seen.sum() + net.held.sum() == 400 and net.scores().shape == (2, 2, 3)
    assert set(lab.figures()) == set(smoke.figures()) and checks.by_world(lab) is None
    assert "possible" in lab.figures()["fairness and accuracy"].layout.yaxis.title.text
    assert all(view(net, lab.params).data for view in M.VIEWS.values())


WRONG = {
    "gap in m": (dict(m=np.tile([0, 2, 3, 5], 100)), "a=a; z=z; m=m; y=y", "whole numbers"),
    "halves in m": (dict(m=np.tile([0, 0.5], 200)), "a=a; z=z; m=m; y=y", "whole numbers"),
    "eleven mediators": (dict(m=np.tile(np.arange(20), 20)), "a=a; z=z; m=m; y=y", "two to ten"),
    "three outcomes": (dict(y=np.tile([0, 1, 2, 0], 100)), "a=a; z=z; m=m; y=y", "0 and 1"),
    "one group": (dict(a=np.zeros(400, int)), "a=a; z=z; m=m; y=y", "0 and 1"),
    "no overlap": (dict(z=np.r_[[5] * 19, [6] * 381]), "a=a; z=z; m=m; y=y", "at least 20"),
    "many z": (dict(z=np.arange(400)), "a=a; z=z; m=m; y=y", "at most 40"),
    "missing value": (dict(z=np.r_[[np.nan], np.ones(399)]), "a=a; z=z; m=m; y=y", "missing"),
    "words": (dict(z=["old"] * 400), "a=a; z=z; m=m; y=y", "other things than numbers"),
    "two roles": ({}, "a=a; z=a; m=m; y=y", "two roles"),
    "no role": ({}, "a=a; m=m; y=y", "must name"),
    "no column": ({}, "a=race; z=z; m=m; y=y", "no column race"),
}


@pytest.mark.parametrize(("changes", "roles", "said"), WRONG.values(), ids=list(WRONG))
def test_records_that_do_not_fit_are_refused(tmp_path, changes, roles, said):
    frame(**changes).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=said):
        data.case_records(str(tmp_path / "mine.csv"), roles)


def test_files_that_hold_no_table_are_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("a,z,m,y\n")
    (tmp_path / "latin.csv").write_bytes(b"a,z,m,y\n\xff,1,1,1\n")
    for name, said in (("empty.csv", "no rows"), ("latin.csv", "UTF-8"), ("absent.csv", "not a .csv"), ("empty.txt", "not a .csv")):
        with pytest.raises(ValueError, match=said):
            data.case_records(str(tmp_path / name))


def test_recidivism_comes_from_lifelines_or_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lifelines.datasets", None)
    with pytest.raises(ValueError, match="pip install lifelines"):
        data.recidivism()
    held = frame(prio=np.tile([0, 1, 4, 9, 2], 80), age=np.repeat([20, 30], 200)).rename(columns={"a": "race", "y": "arrest"})
    monkeypatch.setitem(sys.modules, "lifelines.datasets", SimpleNamespace(load_rossi=lambda: held))
    z, (place, a, m, y) = data.recidivism()
    assert m[:5].tolist() == [0, 1, 2, 3, 1] and (place == (held["age"] > 25)).all() and (y == held["arrest"]).all()
    assert z.flatten().tolist() == [-1, 1] and (a == held["race"]).all()


# ---- drawings and declarations


def test_figures_hold_what_was_measured(smoke):
    found = smoke.figures()
    assert set(found) == {"intervals", "fairness and accuracy", "constraints", "refutation"}
    dots = {t.name: t for t in found["fairness and accuracy"].data}
    last = smoke.table[(smoke.table.arm == "blind") & (smoke.table.metric == "true_unfairness")].groupby("seed").value.last()
    assert list(dots["blind"].y) == pytest.approx(list(last))
    net, p = smoke.arms["robust_fair"].members[0], smoke.params
    low, high = drawn.swept(net, p)
    assert np.allclose(low[0], high[0]) and (high[-1] > low[-1]).all()
    assert drawn.breaking(np.array([0.1, 0.2, 0.3]), 0.15) == 1 and drawn.breaking(np.array([0.1]), 0.15) is None
    for view in M.VIEWS.values():
        assert view(net, p).data and not view(smoke.arms["laws"].members[0], p).data


def test_the_control_takes_the_hidden_path_away():
    one = data.world(2.0, STUDY.control.set["confounder_to_mediator"], 1.0, 1)
    observed = nets.observed_law(one.joint.sum(0))
    assert torch.allclose(one.law(), observed.expand(2, -1, -1, -1)) and STUDY.control.set["tolerance"] == 0
    assert not torch.allclose(data.world(2.0, 1.2, 1.0, 1).law()[0], observed)
