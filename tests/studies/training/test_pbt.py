"""PBT: the toy problem's closed form, members against plain torch loops, exact copies, rankings, limits at which it is random
search, lineage and replay, exact resume, own files, the control."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.training import _pbt_data as D
from claimlab.studies.training import _pbt_method as method
from claimlab.studies.training._pbt_population import losses

STUDY = study.find("pbt")
M = STUDY.module
SMALL = dict(population=4, steps=24, ready=6, seeds=2)
DEV = [1000, 1001]


def run(arm, seeds=DEV, before=None, done=True, **values):
    one = M.ARMS[arm](STUDY.make({**SMALL, **values}), seeds, before)
    return finish(one) if done else one


def finish(one):
    for _ in one:
        pass
    return one


def weights(net) -> torch.Tensor:
    """All weights of each member, [M, numbers]."""
    return torch.cat([w.detach().flatten(1) for w in (*net.weights, *net.biases)], 1)


def alike(one, other) -> bool:
    pairs = list(zip(one.members, other.members, strict=True))
    same_weights = all(torch.equal(weights(a), weights(b)) for a, b in pairs)
    return same_weights and all(torch.equal(torch.stack(a.trail["hypers"]), torch.stack(b.trail["hypers"])) for a, b in pairs)


def rng(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=DEV).run()


# ---- the toy problem


def test_toy_without_copies_has_its_closed_form():
    path, h = M.toy(rng(), steps=200, lr=0.01, copy=False, mutate=False)
    t = torch.arange(201, dtype=torch.float64)
    shrunk = 0.9 * (1 - 2 * 0.01) ** t
    assert torch.allclose(path[:, 0], torch.stack([torch.full_like(t, 0.9), shrunk], 1), atol=1e-12)
    assert torch.allclose(path[:, 1], path[:, 0].flip(1), atol=1e-12)
    assert float(M.true_score(path[-1]).max()) == pytest.approx(1.2 - 0.81, abs=1e-3)
    assert torch.equal(h[0], h[-1])


def test_toy_with_copies_follows_the_published_rule():
    path, h = M.toy(rng(3))
    for t in range(1, 201):
        stepped = path[t - 1] - 0.02 * h[t - 1] * path[t - 1]
        if t % 4:
            assert torch.equal(path[t], stepped) and torch.equal(h[t], h[t - 1])
            continue
        q = 1.2 - stepped.square().sum(1)
        loser = 1 if q[0] >= q[1] else 0
        assert torch.equal(path[t], stepped[1 - loser].expand(2, 2))  # both have the better parameters now
        assert torch.equal(h[t, 1 - loser], h[t - 1, 1 - loser]) and ((h[t] >= 0) & (h[t] <= 1)).all()
    reached = [float(M.true_score(M.toy(method.stream(s, "toy"))[0][-1]).max()) for s in range(1000, 1010)]
    assert np.mean(reached) > 1.1 and max(reached) <= 1.2


# ---- members


def test_a_member_is_a_torch_network_trained_by_torch_sgd():
    """Every member against nn.Linear layers, cross_entropy with label smoothing and torch.optim.SGD, on the same draws."""
    task = M.Population(STUDY.make(SMALL)).bind(1000)
    start, trained = task.init(), run("random_search", [1000], steps=24)
    rows, noise = (torch.cat(parts) for parts in zip(*(task.block(start, None, k, 10) for k in (0, 10, 20)), strict=True))
    for m in range(4):
        rate, momentum, sd, smoothing, decay = start.hypers[m].tolist()
        net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        with torch.no_grad():
            for k, layer in enumerate((net[0], net[2])):
                layer.weight.copy_(start.weights[k][m])
                layer.bias.copy_(start.biases[k][m, :, 0])
        sgd = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
        for step in range(24):
            sgd.zero_grad()
            x, y = task.x[rows[step, m]] + sd * noise[step], task.y[rows[step, m]]
            cross_entropy(net(x), y, label_smoothing=smoothing).backward()
            sgd.step()
        found, x = trained.members[0], task.split.test[0]
        assert torch.allclose(found(x)[m].T, net(x), atol=2e-4)
        assert float(losses(found, *task.split.test)[m]) == pytest.approx(cross_entropy(net(x), task.split.test[1]).item(), abs=2e-4)


def test_first_members_have_torch_s_own_law():
    task = M.Population(STUDY.make({**SMALL, "population": 40})).bind(1000)
    first = task.init().weights[0].flatten().detach().double().numpy() * 8  # inputs 64, so that the bound is 1 / 8
    assert stats.kstest(first[::7], stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_a_member_does_not_notice_its_company():
    company, alone = run("random_search", population=8), run("random_search", population=2)
    for a, b in zip(company.members, alone.members, strict=True):
        assert torch.allclose(weights(a)[:2], weights(b), atol=1e-5)
    one = run("pbt", seeds=[1001])
    both = run("pbt")
    assert torch.allclose(weights(one.members[0]), weights(both.members[1]), atol=1e-5)
    assert torch.equal(torch.stack(one.members[0].trail["parents"]), torch.stack(both.members[1].trail["parents"]))


def test_a_copy_is_exact_with_its_velocity():
    one = run("exploit_only", done=False, truncation=0.5)
    for tick in one:
        if tick.step == 6:
            break
    before = {name: leaf.detach().clone() for name, leaf in one.ensembles[0].leaves.items() if name != "hypers"}
    speeds = {name: one.ensembles[0].optimizers[""][0][0].state[leaf]["velocity"].clone()
              for name, leaf in one.ensembles[0].leaves.items() if name != "hypers"}  # fmt: skip
    one.turn()
    for i, (net, task) in enumerate(zip(one.members, one.tasks, strict=True)):
        parents = net.trail["parents"][-1]
        assert (parents != torch.arange(4)).sum() == 2
        loss = losses(net, *task.split.validation)
        donors = net.trail["losses"][-1][parents]
        assert torch.allclose(loss, donors, atol=1e-6)  # the clone's loss on fixed rows is the donor's
        for name, leaf in one.ensembles[0].leaves.items():
            if name != "hypers":
                velocity = one.ensembles[0].optimizers[""][0][0].state[leaf]["velocity"]
                assert torch.equal(leaf[i], before[name][i][parents]) and torch.equal(velocity[i], speeds[name][i][parents])
        assert torch.equal(net.hypers, net.trail["hypers"][0][parents])


def test_hypers_only_keeps_its_weights_and_explore_only_its_ancestors():
    for arm in ("hypers_only", "explore_only"):
        for net in run(arm).members:
            assert all(torch.equal(row, torch.arange(4)) for row in net.trail["parents"])
            assert not torch.equal(net.trail["hypers"][0], net.trail["hypers"][-1])
    for net in run("exploit_only").members:  # no mutation: every setting is one of the first draws
        first = net.trail["hypers"][0]
        assert all((row[:, None] == first[None]).all(-1).any(1).all() for row in net.trail["hypers"])


def test_a_diverged_member_is_replaced_and_spoils_nobody():
    one = run("pbt", done=False)
    with torch.no_grad():
        one.members[0].weights[0][2] = math.nan
    ticks = list(one)
    assert all(math.isfinite(v) for tick in ticks for found in tick.metrics for v in found.values())
    trail = one.members[0].trail
    assert not math.isfinite(trail["losses"][0][2]) and trail["parents"][1][2] != 2
    assert torch.isfinite(weights(one.members[0])).all()


# ---- exploit and explore


def test_truncation_replaces_the_bottom_by_the_top():
    scores = torch.randperm(20, generator=rng(1)).float()
    counts = torch.zeros(20)
    for seed in range(300):
        parents = M.truncation(scores, rng(seed), 0.2)
        moved = parents != torch.arange(20)
        assert set(scores[moved].tolist()) == {0.0, 1.0, 2.0, 3.0} and (scores[parents[moved]] >= 16).all()
        counts += torch.bincount(parents[moved], minlength=20)
    assert stats.chisquare(counts[scores >= 16].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("value", [1.0, math.nan, -math.inf])
def test_nobody_copies_at_a_tie(value):
    same = torch.full((10, 6), value)
    for rule in ("truncation", "tournament", "t_test", "none"):
        assert torch.equal(method.exploit(rule, same, rng(0)), torch.arange(6))


def test_nan_ranks_last():
    parents = M.truncation(torch.tensor([math.nan, 1.0, 2.0, 3.0, 0.5]), rng(0), 0.2)
    assert parents.tolist() == [3, 1, 2, 3, 4]


def test_tournament_and_t_test_copy_better_ones_only():
    history = torch.randn(14, 30, generator=rng(2)) + torch.linspace(0, 3, 30)
    for seed in range(20):
        parents = method.tournament(history[-1], rng(seed))
        assert (history[-1][parents] >= history[-1]).all() and (parents != torch.arange(30)).any()
        parents, rival = method.t_test(history, rng(seed)), method.rivals(30, rng(seed))
        assert (rival != torch.arange(30)).all()
        for m in range(30):
            mine, other = history[-10:, m].double().numpy(), history[-10:, rival[m]].double().numpy()
            copies = stats.ttest_ind(other, mine, equal_var=False).pvalue < 0.05 and other.mean() > mine.mean()
            assert int(parents[m]) == (int(rival[m]) if copies else m)


def test_blind_rounds_copy_as_often_without_selection():
    scores, moved, gain = torch.arange(10.0)[None], [], []
    for seed in range(400):
        parents = method.exploit("truncation", scores, rng(seed), 0.2, blind=1.0)
        moved.append(int((parents != torch.arange(10)).sum()))
        gain.append(float((scores[0][parents] - scores[0]).sum()))
    assert set(moved) == {2}
    assert abs(np.mean(gain)) < 4 * np.std(gain) / 20  # copies are as often worse as better
    seeing = M.truncation(scores[0], rng(0), 0.2)
    assert float((scores[0][seeing] - scores[0]).sum()) >= 14


def test_explore_moves_by_the_factors_and_draws_from_the_prior():
    space, h = D.SPACE, torch.tensor([0.05, 0.9, 0.5, 0.2, 1e-4]).expand(20_000, 5)
    moved = M.explore(space, h, rng(), 1.2, 0.0)
    assert torch.allclose(moved[:, 0].unique(), torch.tensor([0.04, 0.06]), rtol=1e-5)
    assert torch.allclose(moved[:, 1].unique(), torch.tensor([0.88, 0.92]), rtol=1e-5)  # 1 - 0.9 is moved
    assert abs(float((moved[:, 0] > 0.05).float().mean()) - 0.5) < 0.02
    fresh = M.explore(space, h, rng(), 1.2, 1.0)
    assert stats.kstest(fresh[:, 0].log10().double().numpy(), stats.uniform(-4, 4).cdf).pvalue > 1e-3
    assert stats.kstest(fresh[:, 1].double().numpy(), stats.uniform(0.5, 0.49).cdf).pvalue > 1e-3
    share = float((M.explore(space, h, rng(), 1.0, 0.25) != h).float().mean())
    assert share == pytest.approx(0.25, abs=0.01)
    wild = M.explore(space, moved, rng(1), 3.0, 0.5)
    ends = torch.tensor([[one.low, one.high] for one in space])
    assert (wild >= ends[:, 0]).all() and (wild <= ends[:, 1]).all()


# ---- limits, lineage, replay


def test_without_copies_pbt_is_random_search_bit_for_bit():
    plain = run("random_search")
    assert alike(plain, run("pbt", exploit="none", factor=1.0, resample=0.0))
    assert alike(plain, run("explore_only", factor=1.0, resample=0.0))
    assert not alike(plain, run("pbt"))


def test_founders_never_increase_and_follow_the_parents():
    for net in run("pbt", steps=96, population=8).members:
        founders, parents = net.trail["founders"], net.trail["parents"]
        alive = [len(row.unique()) for row in founders]
        assert alive == sorted(alive, reverse=True) and alive[-1] < 8
        for slot in range(8):  # walk back by hand
            at = slot
            for row in reversed(parents[1:]):
                at = int(row[at])
            assert at == founders[-1][slot]


def test_the_schedule_belongs_to_the_ancestors():
    trail = {"step": [0, 5, 10], "parents": [torch.arange(3), torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1])],
             "hypers": [torch.full((3, 1), 10.0 * k) + torch.arange(3)[:, None] for k in range(3)],
             "losses": [torch.tensor([9.0, math.nan, 1.0])]}  # fmt: skip
    net = type("Net", (), {"trail": trail, "winner": 2})
    assert M.schedule(net)[1].flatten().tolist() == [0.0, 11.0, 22.0]  # slot 2 came from 1, which came from 0


def test_replays_share_everything_but_the_schedule():
    pbt = run("pbt", steps=48, truncation=0.5, factor=2.0)
    schedule, last = (run(arm, before=pbt, done=False, steps=48) for arm in ("replay_schedule", "replay_final"))
    for i, winner in enumerate(pbt.members):
        assert torch.equal(weights(schedule.members[i]), weights(last.members[i]))
        assert not any(torch.equal(weights(schedule.members[i])[0], w) for w in weights(pbt.tasks[i].init()))
        plan = M.schedule(winner)[1]
        finish(schedule), finish(last)
        assert torch.equal(torch.cat(schedule.members[i].trail["hypers"]), plan)
        assert torch.equal(torch.cat(last.members[i].trail["hypers"]), plan[-1:].expand(len(plan), 5))


def test_early_is_the_best_of_all_looks(smoke):
    table = smoke.table.query("arm == 'random_early'").pivot_table(index=["seed", "step"], columns="metric", values="value")
    for i, seed in enumerate(DEV):
        net = smoke.arms["random_search"].members[i]
        best = min(range(4), key=lambda k: float(net.trail["losses"][k].min()))
        row = table.loc[(seed, 24)]
        assert row.validation_loss == pytest.approx(float(net.trail["losses"][best].min()))
        assert row.test_loss == pytest.approx(net.trail["tested"][best])


def test_cosine_is_torch_s_own():
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference, task = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=24), M.Cosine(STUDY.make(SMALL))
    for step in range(24):
        assert task.schedule(step, 24) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-6)
        sgd.step()
        reference.step()
    fast, slow = run("random_search"), run("random_cosine")
    assert not torch.equal(weights(fast.members[0]), weights(slow.members[0]))


# ---- the experiment


@pytest.mark.parametrize("stop", [6, 9])
def test_resume_is_exact(stop):
    whole, first = run("pbt"), run("pbt", done=False)
    for _ in first.stepwise():
        if first.step == stop:
            break
    second = run("pbt", done=False)
    second.load(first.state())
    assert alike(whole, finish(second)) and alike(whole, finish(first))
    assert second.members[0].trail["tested"] == whole.members[0].trail["tested"]


def test_live_knobs_act_and_own_rates_cannot_be_set():
    one = run("pbt", done=False)
    one.set(ready=4, factor=2.0)
    steps = [tick.step for tick in one]
    assert steps == [0, 4, 8, 12, 16, 20, 24] and len(one.members[0].trail["hypers"]) == 6
    with pytest.raises(ValueError, match="member of a population has its own"):
        one.set(lr=0.1)


def test_contradictory_knobs_are_refused():
    with pytest.raises(ValueError, match="steps = 24 and ready = 20"):
        STUDY.make(dict(steps=24, ready=20))


def test_smoke_records_every_claim_and_draws_every_figure(smoke):
    for claim in STUDY.claims:
        for arm in filter(None, (claim.arm, claim.baseline)):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert rows.step.max() == 24 and set(rows.seed) == set(DEV)
    figures = smoke.figures()
    assert set(figures) == {"lineage", "schedules", "toy plane", "test loss", "diversity"}
    for figure in figures.values():
        drawn = [t for t in figure.data if t.type == "scatter" and t.x is not None and len(t.x)]
        assert drawn and figure.layout.title.text
        heights = [np.asarray(t.y, dtype=float) for t in drawn]  # NaN is a gap in a line
        assert all(np.isfinite(y).any() and not np.isinf(y).any() for y in heights)
    budget = smoke.budgets.set_index("arm")
    assert budget.loc["pbt", "samples"] == budget.loc["random_search", "samples"]


def test_views_of_any_population(smoke):
    for view in M.VIEWS.values():
        for arm in ("pbt", "random_search", "replay_final"):
            assert len(view(smoke.arms[arm].members[0], smoke.params).data) >= 2
    copies = sum(int((row != torch.arange(4)).sum()) for row in smoke.arms["pbt"].members[0].trail["parents"])
    jumps = M.VIEWS["members and copies"](smoke.arms["pbt"].members[0], smoke.params).data[1]
    assert jumps.x.count(None) == copies > 0


def test_control_takes_selection_away():
    lab = Experiment(STUDY, STUDY.make({**SMALL, "population": 8, "steps": 120, **STUDY.control.set}), seeds=range(1000, 1005),
                     arms=["pbt", "random_search", "hypers_only"]).run()  # fmt: skip
    found = {v.claim: v.verdict for v in lab.verdicts()}
    assert all(found[name] != "supported" for name in STUDY.control.vanishes)
    worse = [float(row[parents[m]] - row[m]) for net in lab.arms["pbt"].members
             for row, parents in zip(net.trail["losses"], net.trail["parents"][1:], strict=False)
             for m in range(8) if parents[m] != m and torch.isfinite(row).all()]  # fmt: skip
    assert 0.25 < np.mean(np.array(worse) > 0) < 0.75  # a copy takes a worse one as often as a better one


def test_splits_are_disjoint_and_labels_wrong_by_the_knob():
    one = D.split(1000, 0.2)
    assert (one.y != one.true).sum() == 100 and torch.equal(one.x, D.split(1000, 0.0).x)
    rows = np.concatenate([one.x, one.validation[0], one.test[0]])
    assert [len(one.x), len(one.validation[0]), len(one.test[0])] == [500, 400, 897]
    assert len(np.unique(rows, axis=0)) == 1797


# ---- a user's own files


def good(n=120, classes=3):
    x = np.random.default_rng(0).normal(size=(n, 7)) * 50
    return {"X": x, "y": np.arange(n) % classes}


def test_own_file_runs(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **good())
    (tmp_path / "priors.json").write_text(json.dumps({"learning_rate": {"low": 0.01, "high": 0.02}}))
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "mine.npz"))
    monkeypatch.setenv("CLAIMLAB_PRIORS", str(tmp_path / "priors.json"))
    one = run("pbt")
    assert one.members[0].weights[0].shape == (4, 96, 7) and one.members[0].weights[1].shape[1] == 3
    assert float(one.tasks[0].x.min()) >= 0 and float(one.tasks[0].x.max()) <= 1
    rates = torch.stack(one.members[0].trail["hypers"])[..., 0]
    assert float(rates.min()) >= 0.01 - 1e-7 and float(rates.max()) <= 0.02 + 1e-7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("y"), "no array y"),
        (lambda d: d["X"].__setitem__((3, 2), np.nan), "1 rows of X hold NaN"),
        (lambda d: d.update(X=d["X"][:0], y=d["y"][:0]), "N >= 60"),
        (lambda d: d.update(X=d["X"].astype(str)), "allowed are numbers"),
        (lambda d: d.update(y=d["y"] * 1.0), "y is float64"),
        (lambda d: d.update(y=d["y"][:-1]), "each of 120 rows"),
        (lambda d: d.update(y=d["y"] * 0), "at least two"),
        (lambda d: d.update(y=d["y"] * 2), "without a gap"),
        (lambda d: d.update(y=(np.arange(120) < 4) * 1), "label 1 has 4 rows"),
        (lambda d: d.update(y=np.array([{}] * 120, dtype=object)), "plain numbers"),
    ],
)
def test_own_file_that_does_not_fit_is_refused(tmp_path, change, words):
    arrays = good()
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"(?s)bad.npz.*{words}"):
        D.own_examples(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable JSON"),
        ("[1]", "holds no names"),
        ('{"depth": {"low": 1, "high": 2}}', "depth is none of them"),
        ('{"momentum": {"low": 0.9}}', "momentum is"),
        ('{"momentum": {"low": 0.9, "high": 0.8}}', "0.5 <= a < b <= 0.99"),
        ('{"learning_rate": {"low": 0.1, "high": 7}}', "0.0001 <= a < b <= 1"),
        ('{"input_noise": {"low": "0", "high": 1}}', "input_noise is"),
    ],
)
def test_priors_that_do_not_fit_are_refused(tmp_path, text, words):
    (tmp_path / "priors.json").write_text(text)
    with pytest.raises(ValueError, match=f"(?s)priors.json.*{words}"):
        D.space(str(tmp_path / "priors.json"))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("1,2,3")
    with pytest.raises(ValueError, match="not an .npz"):
        D.own_examples(tmp_path / "rows.csv")


# ---- the GANs of the full profile


def test_mmd_is_the_double_sum():
    points, real = torch.randn(2, 5, 2, generator=rng(1)).double(), torch.randn(7, 2, generator=rng(2)).double()

    def k(a, b):
        return np.mean([math.exp(-float((a - b).square().sum()) / (2 * w**2)) for w in (0.1, 0.3, 1.0, 3.0)])

    for m in range(2):
        x = points[m]
        inside = [np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, real)]
        across = np.mean([k(a, b) for a in x for b in real])
        assert float(M.gan.mmd(points, real)[m]) == pytest.approx(sum(inside) - 2 * across, abs=1e-6)
    same = [float(M.gan.mmd(M.gan.ring(300, rng(s))[None], M.gan.ring(300, rng(s + 50)))) for s in range(30)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(30)  # no bias where the laws agree


def test_gans_are_trained_by_torch_s_adam():
    task = M.Gans(STUDY.make(SMALL)).bind(1000)
    start = task.init()
    trained = finish(M.Rounds(M.Gans(STUDY.make({**SMALL, "steps": 12})), [1000]))
    real, z = (torch.cat(parts) for parts in zip(*(task.block(start, None, k, 10) for k in (0, 10)), strict=True))
    for m in (0, 3):
        sides = {}
        for name in ("critic", "generator"):
            side = getattr(start, name)
            leaves = [p.detach()[m].clone().requires_grad_() for pair in zip(side.weights, side.biases, strict=True) for p in pair]
            sides[name] = leaves, torch.optim.Adam(leaves, lr=side.hypers[m].item(), betas=(0.5, 0.999))

        def through(name, x, sides=sides):
            leaves, h = sides[name][0], x
            for k in range(0, 6, 2):
                h = nn.functional.linear(h, leaves[k], leaves[k + 1][:, 0])
                h = h.relu() if k < 4 else h
            return h

        bce, one = nn.functional.binary_cross_entropy_with_logits, torch.ones(64, 1)
        for step in range(12):
            x, fake = real[step, m], through("generator", z[step, m])
            for name in ("critic", "generator"):
                d = through("critic", fake.detach() if name == "critic" else fake)
                loss = bce(through("critic", x), one) + bce(d, 0 * one) if name == "critic" else bce(d, one)
                sides[name][1].zero_grad()
                loss.backward()
                sides[name][1].step()
        assert torch.allclose(trained.members[0].generator(z[0])[m], through("generator", z[0, m]), atol=1e-3)


def test_variants_run_and_are_drawn():
    lab = Experiment(STUDY, STUDY.make({**SMALL, "variants": True}), seeds=DEV,
                     arms=["gan_random", "gan_pbt", "pbt_tournament", "pbt_t_test"]).run()  # fmt: skip
    assert lab.figures()["GANs on a ring"].data
    for view in M.VIEWS.values():
        assert len(view(lab.arms["gan_pbt"].members[0], lab.params).data) >= 2
    net = lab.arms["gan_pbt"].members[0]
    assert torch.equal(torch.cat([net.critic.hypers, net.generator.hypers], 1), net.trail["hypers"][-1])
    assert any(not torch.equal(row, torch.arange(4)) for row in net.trail["parents"])
