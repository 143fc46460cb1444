"""Continual learning: remedies against closed forms, torch and brute force; each at its limit against plain training; streams,
memories, own tables, courses that resume exactly."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F

from claimlab import contract, study
from claimlab.experiment import Experiment
from claimlab.studies.adaptation import _lifelong_learning_review_data as D
from claimlab.studies.adaptation import _lifelong_learning_review_memory as memory
from claimlab.studies.adaptation import _lifelong_learning_review_method as R
from claimlab.studies.adaptation import _lifelong_learning_review_tasks as T
from claimlab.training import Run

STUDY = study.find("lifelong-learning-review")
M = STUDY.module
DEV = 1000
SMALL = dict(tasks=2, steps=6, width=16, seeds=2)


def course(name, seeds=(DEV,), before=None, **values):
    made = M.ARMS[name](STUDY.make({**SMALL, **values}), list(seeds), before)
    made.before = before
    return made


def driven(name, stages=2, **values):
    """All networks of a course after so many tasks, without its summary."""
    made = course(name, **values)
    made.summary = lambda: [{} for _ in made.of]
    while made.index < stages - 1 or made.run.step < made.run.total:
        next(iter_of(made))
    return made


def iter_of(made):
    if not hasattr(made, "iterator"):
        made.iterator = made.stepwise()
    return made.iterator


def bodies(made):
    return [R.flat(net.body).detach() for net in made.run.members]


def method(cls, which="new_classes", t=0, memory=100, **values):
    case = T.Case(DEV, which, strength=0.5, memory=memory)
    return cls(STUDY.make({**SMALL, **values}), t, (case,)).bind(0)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[DEV, DEV + 1]).run()


# ---- limits


def test_without_strength_ewc_is_plain_training_and_without_memory_replay_is():
    plain = bodies(driven("finetune"))
    for name, values in (("ewc", {"lam": 0.0}), ("replay", {"memory": 0})):
        assert all(map(torch.equal, plain, bodies(driven(name, **values))))
    for name, values in (("ewc", {"lam": 100.0}), ("replay", {"memory": 20}), ("lwf", {}), ("gdm", {}), ("generative_replay", {})):
        assert not any(map(torch.equal, plain, bodies(driven(name, **values))))


def test_with_one_task_all_perceptrons_are_equal():
    plain = bodies(driven("finetune", stages=1))
    for name in ("ewc", "lwf", "replay", "generative_replay", "gdm"):
        assert all(map(torch.equal, plain, bodies(driven(name, stages=1))))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, bodies(driven("joint", stages=1)), strict=True))


def test_a_memory_of_everything_makes_replay_joint_training():
    task = method(T.Replay, "permuted", t=1, memory=5000)
    net = task.fresh()
    old, new = task.store(), task.data.all_of(1)
    assert sorted(memory.rehearsal(task.source, 1, 5000)) == [(0, row) for row in range(1297)]
    everything = [torch.cat(pair) for pair in zip(task.data.all_of(0), new, strict=True)]
    union = F.cross_entropy(net(everything[0]), everything[1])
    assert torch.allclose(task.loss(net, *new, *old), union, atol=1e-5)  # two tasks of one size, a share of a half
    joint = method(T.Joint, "permuted", t=1)
    tasks, rows = joint.rows(200, torch.Generator().manual_seed(0))
    assert chisquare(np.bincount((tasks * 1297 + rows).flatten(), minlength=2594)).pvalue > 1e-3


def test_joint_training_begins_anew_and_takes_all_steps():
    made = driven("joint", tasks=3, stages=3)
    alone = Run(partial(T.Joint, t=2, cases=made.cases)(made.run.task.p), range(3))
    for _ in alone:
        pass
    assert alone.total == 18
    assert all(torch.equal(a, R.flat(b.body)) for a, b in zip(bodies(made), alone.members, strict=True))
    assert torch.isfinite(made.run.members[0].scores).all()


# ---- elastic weight consolidation


def test_fisher_of_softmax_regression_is_its_closed_form():
    net = nn.Linear(3, 2, bias=False)
    points = torch.tensor([[1.0, 0.5, -1.0], [0.2, 2.0, 0.3]])
    x = points.repeat(6000, 1)
    found = M.fisher(net, x, torch.ones(len(x), 2, dtype=torch.bool), torch.Generator().manual_seed(0), chunk=4000).view(2, 3)
    p = net(points).softmax(1).detach()
    wanted = torch.einsum("nc,nd->cd", p * (1 - p), points.square()) / 2
    assert torch.allclose(found, wanted, rtol=0.06)


def test_fisher_is_a_mean_of_squared_gradients_of_single_examples():
    task = method(T.Ewc)
    net, (x, _, heads) = task.fresh().body, [part[:7] for part in task.data.all_of(0)]
    heads = heads & (torch.arange(10) < 6)
    found = M.fisher(net, x, heads, torch.Generator().manual_seed(1), chunk=3)
    chance = net(x).detach().masked_fill(~heads, -torch.inf).softmax(1)
    drawn = torch.multinomial(chance, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    squares = []
    for k in range(7):
        logits = net(x[k : k + 1])[:, heads[k]]
        gradients = torch.autograd.grad(logits.log_softmax(1)[0, drawn[k]], list(net.parameters()))
        squares.append(torch.cat([g.flatten() for g in gradients]).square())
    assert torch.allclose(found, torch.stack(squares).mean(0), atol=1e-7)


def test_one_quadratic_stands_for_all_and_its_gradient_is_right():
    rng = torch.Generator().manual_seed(2)
    terms = [(torch.rand(6, generator=rng, dtype=torch.double), torch.randn(6, generator=rng, dtype=torch.double)) for _ in range(4)]
    kept = torch.zeros(6).double(), torch.zeros(6).double(), torch.zeros(()).double()
    for importance, theta in terms:
        kept = M.anchored(kept, importance, theta)
    at = torch.randn(6, generator=rng, dtype=torch.double, requires_grad=True)
    naive = sum((f * (at - c) ** 2).sum() for f, c in terms) / 2
    assert torch.allclose(M.penalty(at, *kept), naive)
    assert torch.autograd.gradcheck(lambda z: M.penalty(z, *kept), (at,))
    back = R.drawn_back(at.detach(), *kept[:2], 3.0).requires_grad_()
    (gradient,) = torch.autograd.grad(3.0 * M.penalty(back, *kept) + 0.5 * (back - at.detach()).square().sum(), back)
    assert gradient.abs().max() < 1e-12


def test_ewc_with_the_full_hessian_lands_on_the_joint_least_squares_solution():
    rng = np.random.default_rng(3)
    (x1, y1), (x2, y2) = ((rng.normal(size=(n, 4)), rng.normal(size=n)) for n in (12, 9))
    wanted = np.linalg.lstsq(np.concatenate([x1, x2]), np.concatenate([y1, y2]), rcond=None)[0]
    values, turn = np.linalg.eigh(x1.T @ x1)  # in these axes the full Hessian of task 1 is diagonal
    a, c = torch.from_numpy(values), torch.from_numpy(turn.T @ np.linalg.lstsq(x1, y1, rcond=None)[0])
    x, y, theta = torch.from_numpy(x2 @ turn), torch.from_numpy(y2), torch.zeros(4, dtype=torch.double, requires_grad=True)
    sgd = torch.optim.SGD([theta], lr=0.002, momentum=T.MOMENTUM)
    for _ in range(4000):  # as the arm does: a gradient step on the new task alone, then the implicit step
        sgd.zero_grad()
        (0.5 * (x @ theta - y).square().sum()).backward()
        sgd.step()
        with torch.no_grad():
            theta.copy_(R.drawn_back(theta, a, c, 0.002 / (1 - T.MOMENTUM)))
    assert np.allclose(turn @ theta.detach().numpy(), wanted, atol=1e-6)


def test_a_huge_strength_holds_what_matters_and_nothing_diverges():
    made, plain = (driven("ewc", lam=lam, steps=30) for lam in (10000.0, 0.0))
    for held, free in zip(made.run.members, plain.run.members, strict=True):
        order = held.importance.argsort(descending=True)[:50]
        way = [(R.flat(net.body) - net.first).abs()[order].mean() for net in (held, free)]
        assert torch.equal(held.first, free.first)
        assert way[0] < 0.2 * way[1]


# ---- distillation, autoencoder, progressive columns


def test_distillation_is_torch_s_kl_and_an_empty_head_adds_nothing():
    rng = torch.Generator().manual_seed(4)
    now, old = (3 * torch.randn(5, 6, generator=rng) for _ in range(2))
    heads = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0] * 6], dtype=torch.bool)

    def torch_kl(now, old):
        return 4 * F.kl_div((now / 2).log_softmax(1), (old / 2).log_softmax(1), reduction="batchmean", log_target=True)

    assert torch.allclose(M.distillation(now, old, torch.ones(1, 6, dtype=torch.bool)), torch_kl(now, old), rtol=1e-5)
    wanted = torch_kl(now[:, :2], old[:, :2]) + torch_kl(now[:, 2:5], old[:, 2:5])
    assert torch.allclose(M.distillation(now, old, heads), wanted, rtol=1e-5)


def test_the_bound_of_the_autoencoder_is_that_of_torch_distributions():
    net = R.Autoencoder(9, 12, torch.Generator().manual_seed(5))
    x, noise = torch.rand(4, 9, generator=torch.Generator().manual_seed(6)).round(), torch.randn(4, 16)
    mean, log_var = net.encoder(x).chunk(2, -1)
    q = Normal(mean, (0.5 * log_var).exp())
    said = Bernoulli(logits=net.decoder(q.mean + q.stddev * noise)).log_prob(x).sum(1)
    assert torch.allclose(net.loss(x, noise), kl_divergence(q, Normal(0, 1)).sum(1) - said, rtol=1e-4)


def test_progressive_columns_are_the_formula_and_grow_with_the_square_of_the_tasks():
    task = method(T.Progressive, tasks=4)
    net, x = task.fresh(), torch.rand(3, 64)
    before, count = [net(x)], [sum(p.numel() for p in net.parameters())]
    for t in (1, 2, 3):
        net.grow(D.keyed("column", t))
        before.append(net(x))
        count.append(sum(p.numel() for p in net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(net.outputs(x)[0], before, strict=True))
    assert len(set(np.diff(count, 2))) == 1 and np.diff(count, 2)[0] > 0
    assert all(p.requires_grad == name.startswith("columns.3.") for name, p in net.named_parameters())
    relu, (a, b) = torch.relu, net.columns[:2]
    h = [relu(c["own"][0](x)) for c in (a, b)]
    g = [relu(a["own"][1](h[0])), relu(b["own"][1](h[1]) + b["side"][0][0](h[0]))]
    assert torch.allclose(net.outputs(x)[0][1], b["own"][2](g[1]) + b["side"][1][0](g[0]), atol=1e-6)
    said = torch.stack(net.outputs(x)[0], 1).softmax(-1)  # the task is not named: the surest column answers
    surest = torch.distributions.Categorical(said).entropy().argmin(1)
    assert torch.equal(net.logits(x, 0).softmax(-1), said[range(3), surest])


def test_finished_columns_answer_as_before_while_the_perceptron_changes(smoke):
    last = smoke.table[smoke.table.metric == "max_output_change_old_tasks"].groupby("arm").value.max()
    assert last["progressive"] == 0 and last["finetune"] > 1e-3


# ---- memories


def test_a_reservoir_keeps_each_example_with_the_same_chance():
    rng, count = torch.Generator().manual_seed(7), np.zeros(30)
    for _ in range(2000):
        first = M.reservoir([], 0, list(range(11)), 6, rng)
        count[M.reservoir(first, 11, list(range(11, 30)), 6, rng)] += 1
    assert count.sum() == 2000 * 6
    assert chisquare(count).pvalue > 1e-3
    assert M.reservoir([], 0, list(range(4)), 6, rng) == [0, 1, 2, 3] and M.reservoir([], 0, [1, 2], 0, rng) == []


def test_a_growing_network_tires_inserts_and_names_its_nodes():
    h = 1.0
    for _ in range(200):
        h = memory.habituate(h, memory.TAU_WINNER)
    assert h == pytest.approx(1 - 1 / 1.05)
    same = memory.begun(np.zeros((2, 3)), np.array([0, 1]), 2)
    assert len(M.grow(same, np.zeros((300, 3)), np.zeros(300, int)).w) == 2  # what is known well needs no node
    two, point = np.array([[0.0] * 3, [10.0] * 3]), np.array([[1.0, 0.0, 0.0]])
    count = [len(M.grow(memory.begun(two, np.array([0, 1]), 2), np.tile(point, (n, 1)), np.zeros(n, int)).w) for n in (4, 5)]
    assert count == [2, 3]  # 1, 0.7, 0.49, 0.35, 0.26: tired after four wins, and the point is still far away
    rng = np.random.default_rng(8)
    y = rng.integers(2, size=400)
    x = 5.0 * y[:, None] + 0.3 * rng.normal(size=(400, 3))
    net = M.grow(memory.begun(x, y, 2), x, y)
    far = np.linalg.norm(net.w[:, None] - np.array([[0.0] * 3, [5.0] * 3])[None], axis=2)
    clear = np.abs(far[:, 0] - far[:, 1]) > 5  # nodes between the clusters belong to nobody
    assert 10 < len(net.w) < 200 and clear.mean() > 0.9
    assert (net.labels == far.argmin(1))[clear].all()
    assert all(age <= memory.OLDEST and net.edges[j][i] == age for i, e in enumerate(net.edges) for j, age in e.items())


def test_old_data_are_gone_except_in_the_memory():
    task = method(T.Replay, t=1, memory=20)
    x, y, *_ = task.store()
    whole = {row.numpy().tobytes() for row in task.data.all_of(0)[0]}
    assert len(x) == 20 and {row.numpy().tobytes() for row in x} <= whole
    assert set(y.tolist()) <= set(task.data.y[task.data.rows[0]].tolist())
    _, new, _ = task.block(None, None, 0, 5)[:3]
    assert not set(new.flatten().tolist()) & set(y.tolist())


# ---- streams and measures


def test_streams_are_what_they_say():
    p = STUDY.make()
    split, named, mixed = (D.stream(T.Case(DEV, which).source(p)) for which in ("new_classes", "new_tasks", "permuted"))
    assert torch.cat(split.rows).sort().values.equal(torch.arange(1297)) and int(split.sizes.sum()) == 500
    groups = [set(split.y[rows].tolist()) for rows in split.rows]
    assert [len(g) for g in groups] == [2] * 5 and len(set.union(*groups)) == 10
    assert split.heads.all() and named.heads.sum(1).tolist() == [2] * 5
    assert all(set(h.nonzero().flatten().tolist()) == g for h, g in zip(named.heads, groups, strict=True))
    assert torch.equal(mixed.pixels.sort(1).values, torch.arange(64).expand(5, -1)) and len(mixed.pixels.unique(dim=0)) == 5
    assert torch.equal(mixed.all_of(3)[0], mixed.x[:, mixed.pixels[3]])


@pytest.mark.parametrize(("similarity", "least"), [(1.0, 64), (0.75, 48), (0.0, 0)])
def test_similarity_leaves_its_share_of_pixels_in_place(similarity, least):
    found = M.permutations(64, 4, similarity, np.random.default_rng(9))
    stay = (found == np.arange(64)).sum(1)
    assert stay[0] == 64 and (stay[1:] >= least).all() and (stay[1:] <= least + 8).all()


def test_measures_by_hand():
    scores = np.array([[0.1, 0.2, 0.0], [1.0, 0.3, 0.1], [0.5, 0.8, 0.4], [0.2, 0.4, 0.9]])
    joint, sizes = np.full((4, 3), 0.8), np.array([1, 1, 2])
    found = M.transfers(scores)
    assert found["backward"] == pytest.approx(((0.2 - 1.0) + (0.4 - 0.8)) / 2)
    assert found["forward"] == pytest.approx(((0.3 - 0.2) + (0.4 - 0.0)) / 2)
    omega = M.omegas(scores, joint, sizes)
    assert omega["base"] == pytest.approx((0.5 + 0.2) / 2 / 0.8)
    assert omega["new"] == pytest.approx((0.8 + 0.9) / 2)
    assert omega["all"] == pytest.approx((0.65 + (0.2 + 0.4 + 1.8) / 4) / 2 / 0.8)


def test_nearest_means_are_scikit_learn_s_and_forget_nothing_of_their_classes(smoke):
    from sklearn.neighbors import NearestCentroid

    net = next(n for n in smoke.arms["nearest_mean"].nets if n.case.stream == "new_classes")
    data = D.stream(net.case.source(smoke.params))
    known = NearestCentroid().fit(data.x.numpy(), data.y.numpy())
    right = (known.predict(data.test_x.numpy()) == data.test_y.numpy()).mean()
    rows = smoke.table[(smoke.table.arm == "nearest_mean") & (smoke.table.metric == "final_accuracy_classes")]
    assert rows[rows.seed == DEV].value.item() == pytest.approx(right, abs=0.005)


# ---- training, the experiment


@pytest.mark.parametrize("name", ["finetune", "joint", "ewc", "lwf", "replay", "gdm", "generative_replay", "progressive"])
def test_stacked_is_the_loop_company_does_not_matter_and_resume_is_exact(name):
    made = course(name, seeds=(DEV,))
    cases = made.cases[:2]
    for t, start in ((0, None), (1, Run(made.tasks_by_stage["task 1"], [0, 1]).members)):
        assert contract._exact(lambda p, t=t: M.ARMS[name].method(p, t, cases), made.run.task.p, start) == []


def test_a_course_resumes_across_tasks_bit_for_bit():
    first, second = (driven("generative_replay", stages=1) for _ in range(2))
    for _ in range(4):
        next(first.iterator)  # into the second task
    second.load(first.state())
    second.iterator = second.stepwise()
    for one in (first, second):
        while one.run.step < one.run.total:
            next(iter_of(one))
    assert first.index == second.index == 1
    assert all(torch.equal(a, b) for x, y in zip(first.run.members, second.run.members, strict=True)
               for a, b in zip(x.state_dict().values(), y.state_dict().values(), strict=True) if not a.isnan().any())  # fmt: skip


def test_control_leaves_nothing_to_forget():
    moved, same = (driven("finetune", steps=60, similarity=s) for s in (0.0, 1.0))
    assert M.transfers(moved.run.members[0].scores.numpy())["backward"] < -0.2
    assert M.transfers(same.run.members[0].scores.numpy())["backward"] > -0.05
    assert len(D.stream(same.cases[0].source(same.run.task.p)).pixels.unique(dim=0)) == 1


def test_figures_and_views_show_what_the_table_says(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"staircase of forgetting", "measures", "price of memory", "stability against plasticity",
                          "distance from the old optimum"}  # fmt: skip
    ends = smoke.table[smoke.table.step == smoke.table.groupby("arm").step.transform("max")]
    means = ends.groupby(["arm", "metric"]).value.mean()
    z = drawn["measures"].data[0].z
    assert z[0, 5] == pytest.approx(means["finetune", "omega_all_classes"]) and np.isnan(z[6, 2])  # progressive has no stream 1
    curves = [t for t in drawn["stability against plasticity"].data if t.text]
    assert [t.y[0] for t in curves] == pytest.approx([100 * means[arm, f"{which}: {least}: old"] for which in ("permuted", "new_classes")
                                                      for arm, least in (("lambda_sweep", 1), ("memory_sweep", 10))])  # fmt: skip
    moved = next(t for t in drawn["distance from the old optimum"].data if t.name and t.name.startswith("EWC, the tenth"))
    assert moved.y[-1] == pytest.approx(means["ewc", "new_classes: moved_high"])
    net = smoke.arms["replay"].members[0]
    assert net.case == T.Case(DEV, "new_classes", 0.5, 100)
    now = M.VIEWS["accuracy on every task"](net, smoke.params).data[0].z
    assert now[:, -1] == pytest.approx(now[:, -2]) and np.isnan(now[1, 0])
    places = M.VIEWS["features of old and new classes"](net, smoke.params).data
    assert sum(len(t.x) for t in places) == 300


# ---- own tables


def write(folder, x=None, labels=None):
    rng = np.random.default_rng(10)
    np.save(folder / "features.npy", rng.normal(size=(120, 5)) * 9 if x is None else x)
    labels = "label\n" + "\n".join("abcd"[k % 4] for k in range(120)) if labels is None else labels
    (folder / "labels.csv").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    return folder


@pytest.mark.parametrize(("change", "reason"), [
    (dict(x=np.zeros(120)), "examples x dims"), (dict(x=np.full((120, 5), np.nan)), "120 rows hold NaN"),
    (dict(x=np.array([[object()]])), "can not be read"), (dict(x=np.zeros((0, 5))), "examples x dims"),
    (dict(x=np.zeros((120, 5)).astype(str)), "numbers"), (dict(labels="class\na"), "a column label"),
    (dict(labels="label\na\nb"), "equally long"), (dict(labels="label\n" + "a\n" * 120), "1 labels"),
    (dict(labels="label\n" + "a\nb\nc\n" * 37 + "d\n" * 9), "rarest on 9"), (dict(labels=b"label\n\xff\xfe"), "can not be read"),
    (dict(labels="label,order\n" + "a,1\nb,2\nc,3\nd,4\n" * 29 + "a,2\nb,2\nc,3\nd,4\n"), "the same for all rows"),
    (dict(labels="label,x\n" + "a,1\nb,1\nc,1\n,1\n" * 30), "no label"),
])  # fmt: skip
def test_own_tables_that_do_not_fit_are_refused(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        M.own_table(write(tmp_path, **change))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"features\.npy is missing"):
        M.own_table(tmp_path)


def test_an_own_table_with_a_stated_order_runs(tmp_path, monkeypatch):
    order = {"a": 3, "b": 1, "c": 4, "d": 2}
    write(tmp_path, labels="label,order\n" + "\n".join(f"{'abcd'[k % 4]},{order['abcd'[k % 4]]}" for k in range(120)))
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    p = STUDY.make(SMALL)
    data = D.stream(T.Case(DEV, "new_classes").source(p))
    assert [sorted(set(data.y[rows].tolist())) for rows in data.rows] == [[1, 3], [0, 2]]
    assert float(data.x.min()) == 0 and float(data.x.max()) == 1
    lab = Experiment(STUDY, p, arms=["finetune", "nearest_mean"]).run()
    found = lab.table[lab.table.metric == "final_accuracy_classes"].value
    assert len(found) == 4 + 2 and found.between(0, 1).all()
    with pytest.raises(ValueError, match="4 classes"):
        D.stream(T.Case(DEV, "new_tasks").source(STUDY.make()))
