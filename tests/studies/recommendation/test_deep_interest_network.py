"""deep-interest-network: the unit, Dice, the regulariser and GAUC against torch, scikit-learn and slow loops; limits; own files."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.recommendation import _deep_interest_network_shop as shops
from claimlab.training import Run

STUDY = study.find("deep-interest-network")
M = STUDY.module
SMALL = dict(items=200, users=60, steps=20, seeds=2, history=8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(arm, **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), [1000, 1001])
    for _ in run:
        pass
    return run


@pytest.fixture(scope="module")
def shop():
    return shops.simulated(1000, 200, 60, 8, 3, 1.1)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture
def net(shop):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return M.Ranker(shop, 8, "none", "dice", False, 5)


# ---- Dice


def test_dice_in_its_limits():
    s, alpha = torch.randn(50, 3, generator=rng()), torch.tensor([0.0, 0.25, 0.8])
    flat = M.dice(s, alpha, torch.zeros(3), torch.full((3,), 1e12))
    assert torch.allclose(flat, s * (1 + alpha) / 2, atol=1e-5)
    sharp = M.dice(s, alpha, torch.zeros(3), torch.zeros(3), eps=1e-16)
    assert torch.allclose(sharp, nn.functional.prelu(s, alpha), atol=1e-6)
    assert torch.allclose(M.prelu(s, alpha), nn.functional.prelu(s, alpha))


def test_dice_stands_on_the_moments_of_batch_norm():
    s, alpha = 3 + 2 * torch.randn(64, 5, generator=rng()).double(), torch.full((5,), 0.1).double()
    p = torch.sigmoid(nn.BatchNorm1d(5, eps=1e-8, affine=False).double()(s))
    assert torch.allclose(M.dice(s, alpha, *M.moments(s)), p * s + (1 - p) * alpha * s, atol=1e-9)
    there = (torch.arange(64) % 3 > 0).double()
    for ours, theirs in zip(M.moments(s, there), M.moments(s[there > 0]), strict=True):
        assert torch.allclose(ours, theirs)


def test_dice_gradient():
    s, alpha = torch.randn(6, 3, generator=rng()).double(), torch.rand(3, generator=rng()).double()
    fixed = torch.zeros(3).double(), torch.ones(3).double()
    assert torch.autograd.gradcheck(lambda s, a: M.dice(s, a, *fixed), (s.requires_grad_(), alpha.requires_grad_()))
    assert torch.autograd.gradcheck(lambda s, a: M.dice(s, a, *M.moments(s)), (s, alpha))


def test_running_averages_are_those_of_batch_norm():
    task = M.Din(STUDY.make(SMALL))
    run = Run(task, [1000], start=[M.BasePool(task.p).bind(1000).init()], stacked=False)
    net, norm = run.members[0], nn.BatchNorm1d(36, affine=False, momentum=0.05)
    batch = run.tasks[0].batch(net, None, 0)
    e, v = net.embed(batch[0], batch[1])
    every = torch.cat([part.expand(-1, 8, -1) for part in (e, e - v[:, None], e * v[:, None], v[:, None])], -1)
    weight = torch.cat([part.weight for part in net.parts], 1)
    with torch.no_grad():
        norm((every @ weight.T + net.parts[0].bias).flatten(0, 1))
    run.advance()
    count = every.shape[0] * 8  # torch's running variance is the unbiased one
    assert torch.allclose(net.running["unit"][0], norm.running_mean, atol=1e-6)
    assert torch.allclose(net.running["unit"][1] - 0.95, (norm.running_var - 0.95) * (count - 1) / count, atol=1e-6)


# ---- the activation unit


def test_the_unit_is_a_perceptron_on_the_concatenation(net, shop):
    history, candidate = shop.histories[:10], shop.test.candidate[:10]
    net.eval()
    net.running["unit"].data = torch.stack([torch.randn(36, generator=rng()), torch.rand(36, generator=rng()) + 0.1])
    e, v = net.embed(history, candidate)
    v = v[:, None].expand_as(e)
    layer = nn.Linear(64, 36)
    layer.weight.data = torch.cat([part.weight for part in net.parts], 1).detach()
    layer.bias.data = net.parts[0].bias.detach()
    s = layer(torch.cat([e, e - v, e * v, v], -1))
    expected = net.last(M.dice(s, net.alpha["unit"], *net.running["unit"]))[..., 0]
    assert torch.allclose(net.weights(history, candidate), expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True], ids=["at test", "in training"])
def test_order_and_padding_do_not_matter(net, shop, training):
    net.train(training)
    history, candidate, wide = shop.histories[:40], shop.test.candidate[:40], shop.test.wide[:40]
    given = net(history, candidate, wide)
    shuffled = history[:, torch.randperm(8, generator=rng())]
    longer = nn.functional.pad(history, (2, 5))
    assert torch.allclose(net(shuffled, candidate, wide), given, atol=1e-5)
    assert torch.allclose(net(longer, candidate, wide), given, atol=1e-5)
    assert (net.weights(longer, candidate)[:, [0, 1, -1]] == 0).all()
    net.unit = "softmax"
    assert torch.allclose(net.weights(longer, candidate).sum(1), torch.ones(40))


def test_unit_fixed_to_one_is_sum_pooling(net, shop):
    net.eval()
    args = shop.histories[:20], shop.test.candidate[:20], shop.test.wide[:20]
    before = net(*args)
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.bias.fill_(1)
    pooled = net(*args)
    assert not torch.allclose(pooled, before)
    net.unit = None
    assert torch.equal(net(*args), pooled)


def test_constant_weights_train_to_the_very_same_network():
    plain, constant, free = (trained(arm, **knobs) for arm, knobs in (
        ("base_pool", {}), ("din_prelu", dict(normalise="constant")), ("din_prelu", {})))  # fmt: skip
    for one, other in zip(plain.members, constant.members, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    first, second = (sum(p.numel() for n, p in r.members[0].named_parameters() if "running" not in n) for r in (plain, free))
    assert abs(first - second) < 120  # less than one more column of the first layer


# ---- the regulariser and the optimiser


def test_shrinkage_against_a_loop_over_rows(shop):
    run = Run(M.DinPrelu(STUDY.make({**SMALL, "lam": 0.1})), [1000], stacked=False)
    bare = Run(M.DinPrelu(STUDY.make({**SMALL, "lam": 0.0})), [1000], stacked=False)
    net, task = run.members[0], run.tasks[0]
    history, candidate, *_ = task.batch(net, None, 0)
    item, category = net.item.detach().clone(), net.category.detach().clone()
    run.advance()
    bare.advance()
    for name, table, kind in (("item", item, lambda i: i), ("category", category, lambda i: int(shop.category[i]))):
        held = [{kind(int(i)) for i in [*row, c]} for row, c in zip(history, candidate, strict=True)]
        train = [{kind(int(i)) for i in [*shop.histories[r], c]} for r, c in zip(shop.train.row, shop.train.candidate, strict=True)]
        after, without = run.members[0].get_parameter(name), bare.members[0].get_parameter(name)
        for j in range(1, len(table)):
            n = sum(j in one for one in train)
            term = 0.1 * table[j] / n if any(j in one for one in held) else torch.zeros(8)
            assert torch.allclose(without[j] - after[j], task.rate * term, atol=2e-5)
            if not any(j in one for one in held):
                assert torch.equal(after[j], table[j])


def test_shrinkage_over_an_epoch():
    table = torch.ones(6, 2, requires_grad=True)
    batches = [torch.tensor(b) for b in ([[1, 2, 0], [1, 3, 0]], [[2, 2, 1], [4, 0, 0]], [[1, 1, 1], [1, 4, 4]])]
    count = torch.tensor(shops.holding(torch.cat(batches).numpy(), 6))
    assert count.tolist() == [np.inf, 5, 2, 1, 2, 0]
    total = sum(M.shrinkage(table, b, count) for b in batches)
    total.backward()
    assert torch.allclose(table.grad[1:5, 0], torch.tensor([3 / 5, 2 / 2, 1 / 1, 2 / 2]))
    assert (table.grad[0] == 0).all()


def test_optimiser_is_sgd_for_tables_and_adam_for_the_rest():
    target = torch.randn(5, generator=rng())
    ours, theirs = ([torch.zeros(5, requires_grad=True) for _ in range(2)] for _ in range(2))
    joint = M.SgdAndAdam([dict(params=ours[:1], rule="sgd", lr=0.3), dict(params=ours[1:], lr=0.01)], fused=True)
    apart = torch.optim.SGD(theirs[:1], lr=0.3), torch.optim.Adam(theirs[1:], lr=0.01)
    for _ in range(5):
        for pair, optimizers in ((ours, [joint]), (theirs, apart)):
            for one in optimizers:
                one.zero_grad()
            sum(((p - target) ** 2).sum() for p in pair).backward()
            for one in optimizers:
                one.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


# ---- metrics and data


def test_gauc_against_scikit_learn_for_each_user():
    user = np.random.default_rng(0).integers(30, size=200)
    y = torch.randint(2, (200,), generator=rng())
    y[user == user[0]] = 1  # one class only: left out
    score = torch.randn(200, generator=rng()).mul(3).round()  # with ties
    top = bottom = 0.0
    for u in np.unique(user):
        if 0 < y[user == u].float().mean() < 1:
            top += (user == u).sum() * roc_auc_score(y[user == u], score[user == u])
            bottom += (user == u).sum()
    assert float(M.gauc(y, score, torch.as_tensor(shops.by_user(user)))) == pytest.approx(top / bottom)


def test_attention_auc_against_scikit_learn(net, shop):
    net.eval()
    found = []
    for r, c in zip(shop.test.row[:100], shop.test.candidate[:100], strict=True):
        same = shop.group[shop.histories[r]] == shop.group[c]
        if 0 < same.sum() < 8:
            found.append(roc_auc_score(same, net.weights(shop.histories[r][None], c[None])[0].detach()))
    assert M.attention_aucs(net, shop, shop.test, 100) == pytest.approx(np.mean(found), abs=0.02)


def test_true_probabilities_are_an_upper_bound(smoke):
    last = smoke.table.sort_values("step").groupby(["arm", "metric", "seed"])["value"].last().groupby(level=[0, 1]).mean()
    for arm in M.ARMS:
        assert 0.4 < last[arm, "test_gauc"] < last[arm, "bayes_gauc"]
        assert last[arm, "final_test_gauc"] < last[arm, "bayes_gauc"]


def test_slope_is_that_of_a_line_through_the_recorded_gains(smoke):
    last = smoke.table.sort_values("step").groupby(["metric", "arm", "seed"])["value"].last()
    for seed in (1000, 1001):
        gains = [last[f"gauc_interests_{k}", "din", seed] - last[f"gauc_interests_{k}", "base_pool", seed] for k in range(1, 5)]
        assert last["gain_slope_over_interests", "din", seed] == pytest.approx(np.dot([-0.3, -0.1, 0.1, 0.3], gains), abs=1e-6)


def test_simulated_users_click_on_their_interests():
    one = shops.simulated(1000, 400, 300, 20, 1, 1.1)
    top = torch.stack([(one.group[one.histories] == g).double().mean(1) for g in range(shops.GROUPS)], 1).max(1).values
    assert 0.83 < top.mean() < 0.95  # 85 % of the one interest, and what falls there by chance
    seen = [set(zip(part.row.tolist(), part.candidate.tolist(), strict=True)) for part in (one.train, one.validation, one.test)]
    assert [len(s) for s in seen] == [6000, 1200, 3000] and len(set.union(*seen)) == 10200
    p = torch.sigmoid(one.train.logit)
    assert abs(one.train.y.double().mean() - p.mean()) < 5 * 0.5 / 6000**0.5


# ---- figures


def test_figures_and_views_show_what_was_measured(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"activation weights", "gain by interests", "Dice over training", "loss over epochs", "all arms"}
    din = M.best(smoke.arms["din"].members[0])
    view = M.VIEWS["weights of past clicks"](din, smoke.params)
    assert not np.allclose(*[np.concatenate([t.y for t in view.data if t.type == "bar" and t.yaxis == axis]) for axis in ("y", "y2")])
    flat = M.VIEWS["weights of past clicks"](smoke.arms["base_pool"].members[0], smoke.params)
    assert all((np.asarray(t.y) == 1).all() for t in flat.data if t.type == "bar")
    rows = smoke.table[(smoke.table.arm == "din") & (smoke.table.metric == "validation_gauc") & (smoke.table.seed == 1000)]
    over = M.VIEWS["GAUC over steps"](smoke.arms["din"].members[0], smoke.params).data[0]
    assert np.allclose(over.y, rows.sort_values("step")["value"], atol=1e-6) and list(over.x) == sorted(rows["step"])


# ---- own files


def interactions(users=12, each=40):
    draw = np.random.default_rng(0)
    n = users * each
    item = draw.integers(30, size=n)
    return pd.DataFrame(dict(user=np.arange(n) % users, item=item, category=item % 4, timestamp=np.arange(n) // 2,
                             label=draw.integers(2, size=n)))  # fmt: skip


def test_own_file_is_split_in_time(tmp_path, monkeypatch):
    table = interactions()
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "mine.csv", index=False)
    table = table.sort_values("timestamp", kind="stable")
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "mine.csv"))
    task = M.BasePool(STUDY.make(SMALL)).bind(0)
    ids = np.unique(table["item"].astype(str), return_inverse=True)[1] + 1
    times = shops.read(str(tmp_path / "mine.csv"))["timestamp"].to_numpy()
    last = -1
    for part in (task.shop.train, task.shop.validation, task.shop.test):
        assert times[part.row].min() > last
        last = times[part.row].max()
    shown = shops.read(str(tmp_path / "mine.csv"))
    for r in task.shop.test.row[:20].tolist():
        row = shown.iloc[r]
        clicks = table[(table.user == row.user) & (table.label == 1) & (table.timestamp < row.timestamp)]
        expected = sorted(ids[table.index.get_indexer(clicks.index)][-8:])
        assert sorted(i for i in task.shop.histories[r].tolist() if i) == expected
    net = task.init()
    loss = task.loss(net, *task.batch(net, None, 0))
    assert 0 < loss.item() < 2


def changed(**columns):
    return interactions().assign(**columns)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (interactions().drop(columns="category"), "no column category"),
        (interactions().iloc[:0], "no interaction"),
        (changed(category=[np.nan, *[1] * 479]), "row 1 lacks.*known category"),
        (changed(label=1), "label holds"),
        (changed(label=0.5), "label holds"),
        (changed(timestamp="noon"), "timestamp must be"),
        (changed(timestamp=np.inf), "timestamp must be"),
        (changed(category=np.arange(480)), "item .* categories"),
        (changed(label=(interactions().user > 0) * 1), "user 0 has 0 clicks"),
        (changed(label=(np.arange(480) < 330) * 1), "both labels in the (validation|test) part"),
    ],
    ids=["column", "empty", "gap", "one class", "half", "words", "infinite", "two categories", "few", "late"],
)
def test_own_file_that_does_not_fit_is_refused(tmp_path, table, words):
    table.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=f"(?s)bad.csv.*{words}"):
        shops.own(str(tmp_path / "bad.csv"), 8)


def test_absent_and_binary_files_are_refused(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"user,item\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="bad.csv.*UTF-8"):
        shops.own(str(tmp_path / "bad.csv"), 8)
    with pytest.raises(ValueError, match="not a .csv file"):
        shops.own(str(tmp_path / "none.csv"), 8)
