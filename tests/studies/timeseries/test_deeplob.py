"""DeepLOB: labels, scales and books against brute force, statsmodels and scikit-learn; the split; LIME; own books; the figures."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from statsmodels.tsa.stattools import acf

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.parts.validated import best

STUDY = study.find("deeplob")
M = STUDY.module
METHOD, DATA, BOOK = M.method, M.data, M.data.book


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def market():
    return M.load(STUDY.make(profile="smoke"), 1000)


@pytest.fixture(scope="module")
def books():
    rng = np.random.default_rng(3)
    ones = BOOK.instruments(2, rng)
    return ones, [BOOK.simulate(one, 3000, memory, rng) for one, memory in zip(ones, (0.0, 0.85), strict=True)]


# ---- labels, scales, features


def test_labels_match_a_double_loop():
    mid = 100 + np.cumsum(np.random.default_rng(0).normal(size=60)) / 10
    for k in (1, 5, 12):
        move = METHOD.smoothed_move(mid, k)
        for t in range(60):
            if k - 1 <= t < 60 - k:
                past = sum(mid[t - i] for i in range(k)) / k
                future = sum(mid[t + i] for i in range(1, k + 1)) / k
                assert move[t] == pytest.approx((future - past) / past, abs=1e-12)
            else:
                assert np.isnan(move[t])


def test_reversing_time_or_sign_swaps_up_and_down():
    mid, k = 100 + np.cumsum(np.random.default_rng(1).normal(size=300)), 7
    move = METHOD.smoothed_move(mid, k)[k - 1 : -k]
    backwards = METHOD.smoothed_move(mid[::-1], k)[k - 1 : -k][::-1]
    assert np.allclose(backwards, -move / (1 + move))  # (m- - m+) / m+
    upside_down = METHOD.smoothed_move(1000 - mid, k)[k - 1 : -k]
    assert np.array_equal(METHOD.labels(upside_down, 0), 2 - METHOD.labels(move, 0))
    assert set(METHOD.labels(move, 0).tolist()) == {0, 2}
    still = METHOD.smoothed_move(np.full(50, 33.3), k)[k - 1 : -k]
    assert (METHOD.labels(still, 0.0) == 1).all()


def test_rows_are_scaled_by_their_past_alone():
    rows = np.random.default_rng(2).normal(5, 3, (90, 4))
    rows[:, 3] = 7  # a column that never moves
    z = METHOD.zscored(rows, past=30, every=10)
    assert np.isnan(z[:30]).all() and (z[30:, 3] == 0).all()
    for t in (30, 39, 40, 77):
        before = rows[t - t % 10 - 30 : t - t % 10, :3]
        assert np.allclose(z[t, :3], (rows[t, :3] - before.mean(0)) / before.std(0), atol=1e-5)
    later = rows.copy()
    later[60:] += 100
    assert np.array_equal(METHOD.zscored(later, 30, 10)[30:60], z[30:60])


def test_order_flow_counts_what_came_and_left():
    """Ask price, ask volume, bid price, bid volume; the changes are counted by hand."""
    rows = np.array([[101, 5, 99, 4], [101, 3, 99, 4], [101, 3, 99, 9], [102, 6, 99, 9], [102, 6, 98, 2], [101, 1, 100, 8]], float)
    assert METHOD.order_flow(rows).tolist() == [0, 2, 5, 3, -9, -1 + 8]
    assert METHOD.imbalance(rows)[:, 0].tolist() == pytest.approx([-1 / 9, 1 / 7, 6 / 12, 3 / 15, -4 / 8, 7 / 9])


def test_macro_f1_is_that_of_scikit_learn():
    rng = torch.Generator().manual_seed(0)
    truth, answer = torch.randint(3, (2, 200), generator=rng)
    assert METHOD.macro_f1(truth, answer) == pytest.approx(f1_score(truth, answer, average="macro"))
    only = torch.ones_like(truth)
    wanted = f1_score(truth, only, average="macro", zero_division=0)
    assert METHOD.macro_f1(truth, only) == pytest.approx(wanted)
    assert wanted < 0.2  # one answer for everything is far below a third


# ---- the simulator


def test_books_never_cross_and_levels_are_in_order(books):
    for one, (ask, bid, deep_a, deep_b, _) in zip(*books, strict=True):
        assert (ask > bid).all() and (deep_a[:, 0] > 0).all() and (deep_b[:, 0] > 0).all()
        rows = BOOK.levels(ask, bid, deep_a, deep_b, 10, one.tick)
        for t in (0, 1500, 2999):
            found = [(ask[t] + i, deep_a[t, i]) for i in range(BOOK.DEEP) if deep_a[t, i]][:10]
            assert np.allclose(rows[t, ::4] / one.tick, [price for price, _ in found])
            assert rows[t, 1::4].tolist() == [volume for _, volume in found]
        assert (np.diff(rows[:, ::4]) > 0).all() and (np.diff(rows[:, 2::4]) < 0).all()


def test_signs_without_memory_are_white_and_with_memory_fade_by_a_power():
    rng = np.random.default_rng(4)
    white = np.array(BOOK.signs(20_000, 0.0, rng))
    assert (np.abs(acf(white, nlags=10)[1:]) < 3 / np.sqrt(len(white))).all()
    kept = acf(np.array(BOOK.signs(40_000, 0.85, rng)), nlags=100)[1:]
    assert kept[:20].min() > 3 / np.sqrt(40_000)
    from scipy.stats import linregress

    fit = linregress(np.log(np.arange(1, 41)), np.log(np.maximum(kept[:40], 1e-3)))
    assert fit.slope < 0 and fit.pvalue < 1e-3


def test_orders_in_the_book_carry_the_memory(books):
    white, long = (state[-1] for state in books[1])
    assert abs(acf(white, nlags=1)[1]) < 3 / np.sqrt(len(white)) < acf(long, nlags=1)[1]


def test_a_market_order_eats_outwards_and_cancellations_follow_weight_times_length():
    queues = [0, 2, 0, 3, 4]
    BOOK._take(queues, 1, 4)
    assert queues == [0, 0, 0, 1, 4]
    weights, lengths, hits = [0.5, 0.25, 1.0], [2, 0, 3], [0, 0, 0]
    for left in (np.arange(400) + 0.5) / 400 * 4.0:  # 0.5 * 2 + 1 * 3
        queues = [9, *lengths]
        BOOK._leave(queues, 1, weights, left, 1)
        hits[int(np.argmax(np.array(lengths) - queues[1:]))] += 1
        assert sum(queues) == 9 + 5 - 1
    assert hits == [100, 0, 300]


# ---- the split in time


def test_nothing_is_read_or_predicted_in_two_parts(market):
    p = STUDY.make(profile="smoke")
    touched = [set() for _ in range(3)]
    for used, part in zip(touched, (market.train, market.validation, market.test), strict=True):
        for t in part:
            used |= set(range(t - p.window, t + p.horizon + 1))  # order flow over a window reads one row more
    assert max(touched[0]) < min(touched[1]) and max(touched[1]) < min(touched[2])
    assert p.events - 4 < max(touched[2]) < p.events and min(touched[0]) >= DATA.PAST - 1
    stock = market.stocks[0]
    assert (stock.label[market.train] == 1).float().mean() == pytest.approx(1 / 3, abs=0.05)
    x, y = market.windows(0, market.test[:3])
    assert torch.equal(x[1], stock.z[market.test[1] - p.window + 1 : market.test[1] + 1]) and torch.isfinite(x).all()
    assert torch.equal(y, stock.label[market.test[:3]])


# ---- the networks


def test_first_filters_join_price_and_volume_of_each_side_then_both_sides():
    rows = np.random.default_rng(5).uniform(1, 100, (1, 6, 8)).astype(np.float32)  # 2 levels
    block = METHOD.Structured(2, 4)
    first, second = block.layers[0], block.layers[6]
    with torch.no_grad():
        for layer, pair in ((first, [2.0, 0.5]), (second, [0.25, 0.75])):
            layer.weight.zero_()[:, 0, 0] = torch.tensor(pair)
            layer.bias.zero_()
        sides = first(torch.from_numpy(rows)[:, None])
        both = second(sides)
    wanted = 2.0 * rows[:, :, ::2] + 0.5 * rows[:, :, 1::2]
    assert np.allclose(sides[:, 0], wanted, rtol=1e-5)  # columns: ask 1, bid 1, ask 2, bid 2
    assert np.allclose(both[:, 0], 0.25 * wanted[:, :, ::2] + 0.75 * wanted[:, :, 1::2], rtol=1e-5)


def test_sizes_of_the_networks():
    assert 50_000 < METHOD.weights(METHOD.deeplob(10, 16, 32, 64)) < 70_000  # the published order: 60,000
    for levels, c in ((5, 16), (10, 16), (1, 8)):
        ours, flat = (METHOD.weights(make(levels, c, c, 2 * c)) for make in (METHOD.deeplob, METHOD.flat_conv))
        assert abs(flat / ours - 1) < 0.08
    x = torch.randn(2, 11, 12)
    for make in (METHOD.deeplob, METHOD.flat_conv):
        net = make(3, 4, 4, 8)
        assert net.stages(x).shape[2] == 11 and net(x).shape == (2, 3)  # as long as it came


def test_the_state_of_the_best_check_is_judged(smoke, market):
    table = smoke.table[(smoke.table.arm == "lstm") & (smoke.table.seed == 1000)]
    member = smoke.arms["lstm"].members[0]
    checks = table[table.metric == "accuracy_check"].set_index("step").value
    assert float(member.score) == pytest.approx(checks.max(), abs=1e-6)
    past = smoke.arms["lstm"].past(int(checks.idxmax()))[1][0]
    assert torch.equal(torch.nn.utils.parameters_to_vector(past.parameters()), member.kept)
    truth, answer = zip(*[(y, best(member).eval()(x).argmax(1)) for x, y in
                          (market.windows(i, market.test[:: M.TEST]) for i in range(market.seen))], strict=True)  # fmt: skip
    wanted = np.mean([f1_score(t, a, average="macro", zero_division=0) for t, a in zip(truth, answer, strict=True)])
    assert table[table.metric == "f1_test"].value.item() == pytest.approx(wanted)


def test_logistic_is_that_of_scikit_learn(smoke, market):
    parts = [(s.hand[market.train], s.label.numpy()[market.train]) for s in market.stocks[:3]]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    plain = LogisticRegression(max_iter=500).fit((x - x.mean(0)) / x.std(0), y)
    wanted = [f1_score(s.label.numpy()[market.test[:: M.TEST]],
                       plain.predict((s.hand[market.test[:: M.TEST]] - x.mean(0)) / x.std(0)), average="macro")
              for s in market.stocks]  # fmt: skip
    rows = smoke.table[(smoke.table.arm == "logistic") & (smoke.table.seed == 1000)].set_index("metric").value
    assert rows["f1_test"] == pytest.approx(np.mean(wanted[:3]), abs=1e-6)
    assert rows["transfer_gap"] == pytest.approx(np.mean(wanted[:3]) - np.mean(wanted[3:]), abs=1e-6)


@pytest.mark.parametrize("arm", list(M.ARMS))
def test_with_shuffled_labels_nobody_beats_guessing(arm, market, monkeypatch):
    rng = torch.Generator().manual_seed(6)
    stocks = [dataclasses.replace(s, label=s.label[torch.randperm(len(s.label), generator=rng)]) for s in market.stocks]
    shuffled = dataclasses.replace(market, stocks=tuple(stocks))
    monkeypatch.setattr(M, "load", lambda p, seed: shuffled)
    monkeypatch.setattr(M, "TEST", 2)
    monkeypatch.setattr(M, "explained", lambda *_: torch.ones(1, 25))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000], arms=[arm]).run()
    found = lab.table.set_index("metric").value
    assert (found["f1_test"] + found["f1_unseen"]) / 2 < 1 / 3 + 0.05
    if arm == "logistic":  # it answers with all classes
        assert found["f1_test"] > 1 / 3 - 0.1


# ---- LIME


def test_lime_is_a_weighted_ridge_regression():
    rng = torch.Generator().manual_seed(7)
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20 * 8, 3)), torch.randn(3, 20, 8, generator=rng)
    group, masks = METHOD.groups(20, 2), (torch.rand(60, 4, generator=rng) < 0.5).float()
    assert group.flatten().bincount().tolist() == [40] * 4 and group[-1, 0] == 0 and group[0, 7] == 3
    with torch.no_grad():
        found = METHOD.lime(net, x, group, masks)
        for one, weight in zip(x, found, strict=True):
            chosen = int(net(one[None]).argmax())
            told = [float(net((one * mask[group])[None]).softmax(1)[0, chosen]) for mask in masks]
            away = 1 - masks.sum(1) / (masks.norm(dim=1) * 2).clamp_min(1e-9)  # cosine distance from (1, 1, 1, 1)
            fit = Ridge(alpha=1.0).fit(masks, told, sample_weight=torch.exp(-((away / 0.25) ** 2)))
            assert np.allclose(weight, fit.coef_, atol=1e-4)


def test_lime_finds_the_level_that_matters():
    rng = torch.Generator().manual_seed(8)
    x, group = torch.randn(5, 20, 12, generator=rng), METHOD.groups(20, 3)
    masks = (torch.rand(200, 6, generator=rng) < 0.5).float()

    def second(w):
        score = w[:, -10:, 4:8].sum((1, 2))
        return torch.stack([score, -score, 0 * score], 1)

    weight = METHOD.lime(second, x, group, masks)
    assert (METHOD.level_shares(weight, 3)[:, 1] > 0.8).all() and (weight[:, 1].abs() > weight[:, 4].abs()).all()


# ---- knobs, figures, views


def test_contradictory_knobs_are_refused_by_name():
    with pytest.raises(KnobError, match="events = 2800 .* window = 100"):
        STUDY.make(dict(events=2800, window=100))


def test_figures_and_views_hold_data(smoke, market):
    found = smoke.figures()
    drawn = [task.__dict__.pop("weight") for task in smoke.arms["deeplob"].tasks]  # as in a lab that was loaded from a checkpoint
    again = M.figures(smoke)["levels"].data[0].z
    assert np.allclose(again, found["levels"].data[0].z) and len(drawn) == 2
    assert set(found) == {"scores", "confusion", "levels", "stretch", "stable"}
    for trace in found["confusion"].data:
        assert np.asarray(trace.z).sum(1) == pytest.approx(1)
    assert np.asarray(found["levels"].data[0].z).sum() == pytest.approx(1)
    shown = sum(len(t.x) for t in found["stretch"].data if t.mode == "markers")
    assert shown == min(400, len(market.test))
    for name, view in M.VIEWS.items():
        figure = view(smoke.arms["mlp"].members[0].eval(), smoke.params)
        if name.startswith("confusion"):
            assert np.asarray(figure.data[0].z).sum() == 240
        else:
            assert sum(np.asarray(t.y) for t in figure.data[-3:]) == pytest.approx(1, abs=1e-5)


# ---- one's own books


@pytest.fixture(scope="module")
def rows():
    return BOOK.levels(*BOOK.simulate(BOOK.Instrument(0.01), 2700, 0.5, np.random.default_rng(9))[:4], 10, 0.01)


def lobster(path, rows):
    whole = rows.copy()
    whole[:, ::2] *= 10_000
    np.savetxt(path, whole, delimiter=",", fmt="%.0f")


def test_own_books_of_both_kinds_are_read(tmp_path, rows, monkeypatch):
    lobster(tmp_path / "a_orderbook_10.csv", rows)
    np.savetxt(tmp_path / "a_message_10.csv", np.c_[34200 + np.arange(len(rows)), rows[:, :2]], delimiter=",")
    np.savetxt(tmp_path / "b.txt", np.r_[rows.T, np.ones((104, len(rows))), np.full((5, len(rows)), 2)], fmt="%.4f")
    (name, first), (_, second) = DATA.own(str(tmp_path), 3)
    assert name == "a_orderbook_10" and np.allclose(first, rows[:, :12]) and np.allclose(second, rows[:, :12])
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    market = M.load(STUDY.make(dict(window=10, horizon=5)), 0)
    assert market.seen == 1 and len(market.stocks) == 2 and len(rows) - 4 < market.test[-1] + 5 < len(rows)


def crossed(r):
    r[7, [0, 2]] = r[7, [2, 0]]


def unordered(r):
    r[7, [4, 8]] = r[7, [8, 4]]


def empty(r):
    r[7, 5] = 0


def hole(r):
    r[7, 2] = np.nan


def leap(r):
    r[1000:, ::2] *= 1.1


def negative(r):
    r[:, ::2] -= r[0, 0]


WRONG = {"crossed": (crossed, "row 8 has its best ask"), "unordered": (unordered, "row 8 has levels out of order"),
         "empty": (empty, "row 8 holds a volume"), "hole": (hole, "row 8 holds a number that is missing"),
         "leap": (leap, "row 1001 .* gap in time"), "normalised": (negative, "normalised prices")}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_rows_that_are_no_book_are_refused(case, rows, tmp_path):
    spoil, told = WRONG[case]
    bad = rows.copy()
    spoil(bad)
    with pytest.raises(ValueError, match=rf"mine.csv: {told}" if told.startswith("row") else told):
        DATA.checked(tmp_path / "mine.csv", bad, 10)


def test_files_that_do_not_fit_are_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        DATA.own(str(tmp_path / "nowhere"), 5)
    lobster(tmp_path / "a_orderbook_10.csv", rows[:2600])
    with pytest.raises(ValueError, match="1 order books .* at least 2"):
        DATA.own(str(tmp_path), 5)
    with pytest.raises(ValueError, match="has 2 levels; 5 are asked for"):
        DATA.checked(tmp_path / "x.csv", rows[:, :8], 5)
    with pytest.raises(ValueError, match="has 50 events"):
        DATA.checked(tmp_path / "x.csv", rows[:50], 5)
    np.savetxt(tmp_path / "z.txt", np.ones((40, 9)))
    with pytest.raises(ValueError, match="40 rows; FI-2010 has 149"):
        DATA._fi2010(tmp_path / "z.txt")
    np.savetxt(tmp_path / "z.txt", np.full((149, 9), 4))
    with pytest.raises(ValueError, match="other labels than 1, 2 and 3"):
        DATA._fi2010(tmp_path / "z.txt")
    (tmp_path / "w.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="w.csv is not a table of numbers"):
        DATA._lobster(tmp_path / "w.csv")
    times = np.arange(2600.0)
    times[1300:] += 700
    np.savetxt(tmp_path / "a_message_10.csv", times, delimiter=",")
    with pytest.raises(ValueError, match="more than 600 s lie between row 1300"):
        DATA._lobster(tmp_path / "a_orderbook_10.csv")
