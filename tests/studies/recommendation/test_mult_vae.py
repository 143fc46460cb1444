"""mult-vae: the method against scipy, torch.distributions, sklearn, autograd and brute force; limits; own files; figures."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import ndcg_score

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.recommendation import _mult_vae_data as data
from claimlab.studies.recommendation import _mult_vae_method as method
from claimlab.training import Run

STUDY = study.find("mult-vae")
M = STUDY.module
SMALL = dict(steps=12, anneal_steps=8, seeds=2, users=150, items=80, hidden=16, latent=6, search=False)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_clicks(users=30, items=40, seed=0):
    return (random(users, items, seed=seed) > 0.8).double()


def trained(arm, start=None, seeds=(1000, 1001), **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), list(seeds), start=start)
    run.last = [tick for tick in run][-1]
    return run


@pytest.fixture(scope="module")
def lab():
    return Experiment(STUDY, STUDY.make({**SMALL, "search": True}), seeds=[1000, 1001]).run()


# ---- likelihoods and KL


def test_multinomial_is_scipys_without_its_constant():
    f, x = random(5, 9), torch.tensor(np.random.default_rng(0).integers(0, 3, (5, 9))).double()
    n = x.sum(1).numpy()
    constant = [math.lgamma(a + 1) - sum(math.lgamma(v + 1) for v in row) for a, row in zip(n, x.tolist(), strict=True)]
    expected = stats.multinomial.logpmf(x.numpy(), n, f.softmax(1).numpy()) - constant
    assert np.allclose(M.multinomial(f, x).numpy(), expected)


def test_logistic_is_the_bernoulli_law_summed_over_items():
    f, x = 3 * random(4, 7), some_clicks(4, 7)
    assert torch.allclose(M.logistic(f, x), torch.distributions.Bernoulli(logits=f).log_prob(x).sum(1))


def test_gaussian_is_the_normal_law_with_a_precision_for_each_item():
    f, x = random(4, 7), some_clicks(4, 7)
    precision = torch.where(x > 0, 1 + method.CONFIDENCE, 1.0).double()
    law = torch.distributions.Normal(f, precision**-0.5)
    expected = (law.log_prob(x) - law.log_prob(f)).sum(1)  # without the constant of the normal law
    assert torch.allclose(M.gaussian(f, x), expected)


def test_kl_is_that_of_torch():
    mu, log_var = random(6, 5), random(6, 5, seed=1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (log_var / 2).exp()), torch.distributions.Normal(0.0 * mu, torch.ones_like(mu))
    )
    assert torch.allclose(M.divergence(mu, log_var), expected)


@pytest.mark.parametrize("ramp, ceiling", [(300, 1.0), (300, 0.2), (0, 0.4)], ids=["to 1", "stopped", "no ramp"])
def test_annealing_is_a_line_that_stops(ramp, ceiling):
    step = torch.arange(500.0)
    expected = np.minimum(np.arange(500) / ramp, ceiling) if ramp else np.full(500, ceiling)
    assert np.allclose(M.annealed(step, ramp, ceiling).numpy(), expected)


# ---- the network


def test_the_loss_is_the_mean_over_users_of_sums_over_items():
    """By hand from the weights, with torch.distributions for both terms."""
    task = M.Vae(STUDY.make(SMALL)).bind(1000)
    net = task.init()
    x, kept, noise, beta = task.batch(net, torch.Generator().manual_seed(1), 5)
    assert float(beta) == pytest.approx(5 / 8)
    hidden = torch.tanh((x / x.norm(dim=1, keepdim=True) * kept) @ net.inward.weight.T + net.inward.bias)
    mu, log_var = (hidden @ net.code.weight.T + net.code.bias).split(6, 1)
    q = torch.distributions.Normal(mu, (log_var / 2).exp())
    f = torch.tanh((mu + q.scale * noise) @ net.outward.weight.T + net.outward.bias) @ net.items.weight.T + net.items.bias
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(6), torch.ones(6))).sum(1)
    seen = -torch.distributions.Multinomial(1, logits=f, validate_args=False).logits.mul(x).sum(1)
    assert torch.allclose(task.loss(net, x, kept, noise, beta), (seen + beta * kl).mean(), rtol=1e-5)


def test_without_noise_and_kl_the_gradient_is_that_of_the_plain_autoencoder():
    params = STUDY.make(SMALL)
    vae, dae = M.Vae(params).bind(1000), M.MultDae(params).bind(1000)
    net, plain = vae.init(), dae.init()
    with torch.no_grad():  # the same weights, and a sigma of exactly 0
        for name in ("inward", "outward", "items"):
            getattr(plain, name).load_state_dict(getattr(net, name).state_dict())
        plain.code.weight.copy_(net.code.weight[:6])
        plain.code.bias.copy_(net.code.bias[:6])
        net.code.weight[6:], net.code.bias[6:] = 0, -torch.inf
    x, kept, noise, _ = vae.batch(net, torch.Generator().manual_seed(1), 0)
    shared = [[n.items.weight, n.outward.weight, n.inward.bias, n.code.weight] for n in (net, plain)]
    # a KL with sigma = 0 is infinite: with beta = 0 the objective is the first term alone
    first = -vae.scored(net.decode(net.encode(x, kept)[0] + (net.encode(x, kept)[1] / 2).exp() * noise), x).mean()
    ours = torch.autograd.grad(first, shared[0])
    theirs = torch.autograd.grad(dae.loss(plain, x, kept, noise, torch.zeros(())), shared[1])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one[: len(other)], other, atol=1e-6) and float(other.abs().max()) > 0


def test_beta_zero_takes_the_kl_out():
    task = M.Vae(STUDY.make(SMALL)).bind(1000)
    net = task.init()
    x, kept, noise, _ = task.batch(net, torch.Generator().manual_seed(1), 0)
    mu, log_var = net.encode(x, kept)
    z = mu + (log_var / 2).exp() * noise
    assert torch.allclose(task.loss(net, x, kept, noise, torch.zeros(())), -M.multinomial(net.decode(z), x).mean())


def test_permuted_items_give_permuted_scores():
    torch.manual_seed(0)
    net, order = M.Autoencoder(40, 16, 6), torch.randperm(40)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved.inward.weight.copy_(net.inward.weight[:, order])
        moved.items.weight.copy_(net.items.weight[order])
        moved.items.bias.copy_(net.items.bias[order])
    x = some_clicks().float()
    assert torch.allclose(moved(x[:, order]), net(x)[:, order], atol=1e-6)


def test_prediction_draws_nothing():
    net, x = trained("mult_vae", trained("vae_beta1").members).members[0], some_clicks(5, 80).float()
    before = torch.get_rng_state()
    assert torch.equal(net(x), net(x)) and torch.equal(torch.get_rng_state(), before)


# ---- ranking


def test_ndcg_is_that_of_sklearn():
    scores, hidden = random(20, 150), some_clicks(20, 150, seed=2)
    expected = [ndcg_score([h], [s], k=100) for h, s in zip(hidden.numpy(), scores.numpy(), strict=True)]
    assert np.allclose(M.ndcg(scores, hidden).numpy(), expected)


@pytest.mark.parametrize("r", [3, 20])
def test_recall_divides_by_what_could_be_found(r):
    scores, hidden = random(20, 60), some_clicks(20, 60, seed=2)
    for mine, s, h in zip(M.recall(scores, hidden, r), scores.tolist(), hidden.tolist(), strict=True):
        best = sorted(range(60), key=lambda i: -s[i])[:r]
        assert float(mine) == pytest.approx(sum(h[i] for i in best) / min(r, sum(h)))


def test_shown_clicks_are_never_recommended():
    shown = some_clicks()
    top = M.ranked(random(30, 40) + 100 * shown, shown).topk(10).indices
    assert float(shown.gather(1, top).sum()) == 0


# ---- linear recommenders


def test_a_half_step_is_where_the_gradient_of_the_weighted_loss_is_zero():
    x, y = some_clicks(), random(40, 5)
    p = M.half_step(x, y, 10.0, 0.7).requires_grad_()
    loss = ((1 + 10 * x) * (x - p @ y.T) ** 2).sum() + 0.7 * (p**2).sum()
    (gradient,) = torch.autograd.grad(loss, p)
    assert float(gradient.abs().max()) < 1e-9 < float(p.detach().abs().max())


def test_ease_solves_each_item_from_the_others_by_ridge_regression():
    from sklearn.linear_model import Ridge

    x, lam = some_clicks(), 3.0
    b = M.ease(x, lam).b
    assert torch.equal(b.diagonal(), torch.zeros(40, dtype=b.dtype))
    for item in (0, 17):
        others = np.delete(np.arange(40), item)
        ridge = Ridge(alpha=lam, fit_intercept=False).fit(x[:, others].numpy(), x[:, item].numpy())
        assert np.allclose(b[others, item].numpy(), ridge.coef_)


# ---- the simulator


def test_pairs_alone_move_the_utility():
    with_pairs, phi = data.utility(np.random.default_rng(3), 50, 40, 3.0)
    without, same = data.utility(np.random.default_rng(3), 50, 40, 0.0)
    assert np.array_equal(phi, same) and np.allclose(phi.sum(1), 1)
    assert (with_pairs >= without - 1e-12).all() and (with_pairs - without).max() > 1
    assert np.linalg.matrix_rank(without - without.mean(0), tol=1e-8) <= data.GENRES


def test_clicks_follow_plackett_luce():
    """Shares of the first of one click among four items against softmax."""
    s = np.tile(np.log([1.0, 2.0, 3.0, 4.0]), (40_000, 1))
    rng = np.random.default_rng(0)
    picked = data.top(s + rng.gumbel(size=s.shape), np.ones(len(s), dtype=int))
    assert picked.sum(0) / len(s) == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_noise_replaces_clicks_and_keeps_their_number(noise):
    s = np.tile(np.where(np.arange(100) < 50, 1000.0, 0.0), (300, 1))  # without noise only the first half is clicked
    clicked = data.clicks(np.random.default_rng(0), s, noise)
    same = data.clicks(np.random.default_rng(0), s, 0.0)
    assert np.array_equal(clicked.sum(1), same.sum(1))
    strangers = clicked[:, 50:].sum() / clicked.sum()
    assert strangers == 0 if noise == 0 else 0.25 < strangers < 0.5


def test_users_are_split_and_clicks_hidden_once():
    world = data.world(7, 200, 80, 3.0, 0.05)
    assert (len(world.train), len(world.shown["validation"]), len(world.shown["test"])) == (140, 30, 30)
    for part in ("validation", "test"):
        shown, hidden = world.shown[part], world.hidden[part]
        assert float((shown * hidden).sum()) == 0 and float(hidden.sum(1).min()) >= 1 and float(shown.sum(1).min()) >= 4
        assert torch.equal(hidden.sum(1), (0.2 * (shown + hidden).sum(1)).round().clamp_min(1))


# ---- arms and their limits


def test_a_ceiling_of_one_is_the_full_objective():
    full = trained("vae_beta1")
    ours = trained("mult_vae", full.members, beta=1.0)
    for one, other in zip(ours.members, full.members, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    lower = trained("mult_vae", full.members, beta=0.1)
    assert not torch.equal(lower.members[0].items.weight, full.members[0].items.weight)


def test_the_knob_turns_the_method_into_the_logistic_arm(monkeypatch):
    for arm in (M.LogisticBeta1, M.LogisticVae):
        monkeypatch.setattr(arm, "lr", M.MultVae.lr)
    ours = trained("mult_vae", trained("vae_beta1", likelihood="logistic").members, likelihood="logistic")
    theirs = trained("logistic_vae", trained("logistic_beta1").members)
    plain = trained("mult_vae", trained("vae_beta1").members)
    assert torch.equal(ours.members[0].items.weight, theirs.members[0].items.weight)
    assert not torch.equal(ours.members[0].items.weight, plain.members[0].items.weight)


def test_the_ceiling_is_where_validation_users_were_ranked_best(lab):
    rows = lab.table[(lab.table.arm == "vae_beta1") & lab.table.metric.isin(["validation_ndcg100", "beta"])]
    for seed, mine in rows.groupby("seed"):
        wide = mine.pivot(index="step", columns="metric", values="value")
        expected = wide.beta[wide.validation_ndcg100.idxmax()]
        found = lab.table[(lab.table.arm == "mult_vae") & (lab.table.seed == seed) & (lab.table.metric == "beta_star")]
        assert float(found.value.iloc[0]) == pytest.approx(expected, abs=1e-6)


def test_test_users_have_no_say_in_the_ceiling():
    task = M.Vae(STUDY.make(SMALL)).bind(1000)
    first = task.init()
    second = copy.deepcopy(first)
    task.metrics(first)
    task.test = (1 - task.test[0], 1 - task.test[1])
    task.metrics(second)
    assert torch.equal(first.best, second.best) and float(first.best[0]) > 0


def test_low_activity_users_are_those_with_the_fewest_clicks_shown():
    shown, hidden = torch.zeros(10, 30), torch.zeros(10, 30)
    for user in range(10):
        shown[user, : user + 1] = 1
    hidden[:, 29] = 1
    scores = torch.zeros(10, 30)
    scores[:2, 29] = 1.0  # perfect for the two users who showed least
    scores[2:, 20:29] = 1.0
    found = M.quality(lambda _: scores, shown, hidden)
    assert float(found["ndcg100_low_activity"]) == 1.0 and float(found["ndcg100"]) < 0.7


def test_figures_show_what_was_measured(lab):
    figures = lab.figures()
    assert set(figures) == {"arms", "annealing", "live dimensions", "by activity", "one user"}
    bars = {dot.name: dot.x[0] for dot in figures["arms"].data if dot.name and dot.xaxis == "x3"}
    rows = lab.table[lab.table.metric == "ndcg100"].groupby("arm").value.mean()
    assert set(bars) == set(M.ARMS) and all(bars[arm] == pytest.approx(rows[arm]) for arm in bars)
    gaps = figures["by activity"].data[0].y
    low = lab.table[lab.table.metric == "ndcg100_low_activity"].groupby("arm").value.mean()
    assert gaps[0] == pytest.approx(low["mult_vae"] - low["mult_dae"], abs=1e-5)


def test_views_say_when_there_is_nothing_to_see(lab):
    kl = M.VIEWS["KL of every dimension"]
    assert len(kl(lab.arms["mult_vae"].members[0], lab.params).data[0].y) == SMALL["latent"]
    assert "no posterior" in kl(lab.arms["ease"].members[0], lab.params).layout.title.text


# ---- own files


def write(tmp_path, text):
    file = tmp_path / "ratings.csv"
    file.write_text(text)
    return str(file)


def own_rows(users=60, items=40, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(users) for i in rng.permutation(items)[:12]]
    return pairs, rng.integers(3, 6, len(pairs))


@pytest.mark.parametrize(
    "text, said",
    [("user\n1\n", "1 column"), ("user,item\n1,a\n", "item must hold whole numbers"), ("user,item\n1,2\n1,2\n", "occur again"),
     ("user,item,rating\n1,2,x\n", "no number in column rating"), ("user,item,rating\n1,2,5\n", "0 users have at least 5")],
    ids=["one column", "words", "twice", "no value", "few"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        M.ratings(write(tmp_path, text))


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="nowhere.csv"):
        M.ratings("nowhere.csv")


def test_own_ratings_keep_what_is_liked_and_train(tmp_path, monkeypatch):
    pairs, values = own_rows()
    lines = "\n".join(f"{10 * u + 3},{i},{v},99" for (u, i), v in zip(pairs, values, strict=True))
    path = write(tmp_path, "userId,movieId,rating,timestamp\n" + lines)
    user, item = M.ratings(path)
    liked = [(u, i) for (u, i), v in zip(pairs, values, strict=True) if v >= 4]
    often = {u for u, _ in liked if sum(1 for v, _ in liked if v == u) >= 5}
    assert len(user) == len(item) == sum(u in often for u, _ in liked)
    monkeypatch.setenv("CLAIMLAB_DATA", path)
    held = M.world(3, STUDY.make(SMALL))
    for part in ("validation", "test"):
        assert not ((held.train.sum(0) == 0) & ((held.shown[part] + held.hidden[part]).sum(0) > 0)).any()
    assert np.isfinite(trained("vae_beta1", seeds=(3,)).last.metrics[0]["ndcg100"])
