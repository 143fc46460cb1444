"""The invariants of training: vectorised = loop, company, exact resume and rollback, randomness, state ownership."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from claimlab import data
from claimlab.models import mlp
from claimlab.training import Chain, Run, Series, Stages, Supervised, Task

IMAGES, LABELS = (torch.from_numpy(part) for part in data.digits())


@dataclasses.dataclass(frozen=True)
class P:
    steps: int = 40
    noise: float = 0.1


class Digits(Supervised):
    batch_size = 16
    ahead = 7  # no divisor of the steps between ticks

    def bind(self, seed):
        bound = copy.copy(self)
        rows = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(seed))[:300]
        bound.x, bound.y = IMAGES[rows].flatten(1), LABELS[rows]
        return bound

    def init(self):
        return mlp(64, 24, 10)

    def metrics(self, net):
        return {"accuracy": (net(self.x).argmax(1) == self.y).float().mean()}


class Normed(Digits):
    """A net with buffers that training updates."""

    def init(self):
        # no bias before the norm: its gradient is rounding noise, which Adam would blow up
        return nn.Sequential(nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


class Noisy(Digits):
    """A batch that depends on a knob of the run."""

    def block(self, net, rng, step, n):
        x, y = super().block(net, rng, step, n)
        return x + self.p.noise * torch.randn(x.shape, generator=rng), y


class Game(Task):
    """Two players that move their own half of the net."""

    def init(self):
        return nn.ModuleDict({"critic": mlp(2, 8, 1), "generator": mlp(2, 8, 2)})

    def batch(self, net, rng, step):
        return torch.randn(8, 2, generator=rng), torch.randn(8, 2, generator=rng)

    def players(self):
        return {"critic": self.criticise, "generator": self.deceive}

    def criticise(self, net, real, z):
        return (net["critic"](net["generator"](z)) - net["critic"](real)).mean() + net["critic"](real).square().mean()

    def deceive(self, net, real, z):
        return -net["critic"](net["generator"](z)).mean()


class Private(Digits):
    """Gradients of each example, clipped, summed, and disturbed by noise that comes in with the batch; rows kept at length 1."""

    def init(self):
        return nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 10, bias=False))

    def optimizer(self, groups):
        return torch.optim.SGD(groups)

    def block(self, net, rng, step, n):
        x, y = super().block(net, rng, step, n)
        return x, y, self.p.noise * torch.randn(n, 16, 64, generator=rng)

    def gradients(self, net, x, y, noise):
        named = dict(net.named_parameters())

        def one(named, x, y):
            return self.loss(lambda x: functional_call(net, named, (x,)), x[None], y[None])

        each, losses = vmap(grad_and_value(one), (None, 0, 0))(named, x, y)
        norm = sum(g.flatten(1).square().sum(1) for g in each.values()).sqrt()
        kept = {name: torch.einsum("b,b...->...", (0.5 / norm).clamp(max=1), g) for name, g in each.items()}
        return losses.mean(), kept | {"0.weight": kept["0.weight"] + noise}

    def project(self, net):
        return {"0.weight": nn.functional.normalize(net[0].weight, dim=1)}


class Clipped(Digits):
    """Norm clipping mixes the entries of a parameter, so each member has an optimiser of its own."""

    joint_optimizer = False

    def optimizer(self, groups):
        return NormalisedStep(groups)


class NormalisedStep(torch.optim.Optimizer):
    """A step of fixed length along the gradient of all parameters together."""

    def __init__(self, groups):
        super().__init__(groups, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        leaves = [p for g in self.param_groups for p in g["params"]]
        length = torch.sqrt(sum(p.grad.square().sum() for p in leaves))
        for group in self.param_groups:
            for leaf in group["params"]:
                leaf -= group["lr"] * leaf.grad / length
        return loss


TASKS = [Digits, Normed, Noisy, Game, Clipped]


def weights(run) -> list[torch.Tensor]:
    return [torch.cat([t.detach().flatten().double() for t in m.state_dict().values()]) for m in run.members]


def trained(task, seeds, steps=20, **options):
    run = Run(task(P(steps)), seeds, **options)
    ticks = list(run)
    return run, ticks


def assert_same(a, b, tolerance=0.0):
    for one, other in zip(weights(a), weights(b), strict=True):
        assert (one - other).abs().max() <= tolerance


@pytest.mark.parametrize("task", [Digits, Normed, Noisy, Game])
def test_vectorised_equals_the_plain_loop(task):
    fast, fast_ticks = trained(task, range(3), stacked=True)
    slow, slow_ticks = trained(task, range(3), stacked=False)
    assert_same(fast, slow, 2e-5)
    assert torch.allclose(fast_ticks[-1].losses, slow_ticks[-1].losses, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_a_member_does_not_notice_its_company(task):
    together, _ = trained(task, [5, 6, 7, 8])
    alone, _ = trained(task, [7])
    assert (weights(together)[2] - weights(alone)[0]).abs().max() < 2e-5


def test_chunks_do_not_change_the_result():
    assert_same(trained(Digits, range(5), chunk=2)[0], trained(Digits, range(5), chunk=5)[0], 2e-6)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_state_goes_on_bit_for_bit_in_a_run_that_was_divided_otherwise(tmp_path, stacked):
    task = Digits(P(20))
    before = Run(task, range(5), 20, 10, chunk=2, stacked=stacked, device="cpu")
    for _ in range(7):
        before.advance()
    before.save(tmp_path / "state.pt")
    after = Run.resume(tmp_path / "state.pt", task, chunk=5, stacked=stacked, device="cpu")
    for run in (before, after):
        for _ in range(13):
            run.advance()
    assert_same(before, after)
    assert [c.stop for c in after.chunks] == [2, 4, 5]


def test_one_seed_equals_a_loop_written_by_hand():
    run, _ = trained(Digits, [3], steps=30)
    task = Digits(P(30)).bind(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = mlp(64, 24, 10)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    rng = torch.Generator().manual_seed((3 * 0x9E3779B97F4A7C15 + 1) % 2**63)
    for start in range(0, 30, 7):
        rows = torch.randint(300, (7, 16), generator=rng)
        for row in rows[: 30 - start]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(task.x[row]), task.y[row]).backward()
            optimizer.step()
    ours = torch.cat([p.detach().flatten() for p in run.members[0].parameters()])
    assert torch.allclose(ours, torch.cat([p.detach().flatten() for p in net.parameters()]), atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("at", [0, 5, 14])  # 14 ends a block of 7, 5 lies inside one
def test_resume_is_bit_exact(task, at, tmp_path):
    whole = Run(task(P(25)), [1, 2])
    for _ in range(at):
        whole.advance()
    whole.save(tmp_path / "run.pt")
    rest = list(whole)
    resumed = Run.resume(tmp_path / "run.pt", task(P(25)))
    again = list(resumed)
    assert_same(whole, resumed)
    assert rest[-1].metrics == again[-1].metrics
    assert whole.budget["samples"] == resumed.budget["samples"]


@pytest.mark.parametrize("task", TASKS)
def test_rollback_is_exact(task):
    run = Run(task(P(24)), [1, 2], every=6)
    ticks = list(run)
    assert run.rollback(13) == 12
    again = list(run)
    assert [t.step for t in again] == [18, 24]
    assert ticks[-1].metrics == again[-1].metrics
    assert torch.equal(ticks[-1].losses, again[-1].losses)


def test_rollback_before_anything_is_refused():
    with pytest.raises(ValueError, match="no state at or before step 3"):
        Run(Digits(P()), [0]).rollback(3)


def test_history_stays_bounded_and_keeps_the_start(monkeypatch):
    monkeypatch.setattr("claimlab.training.run.HISTORY_BYTES", 16 * 1810 * 6)  # six states of this net
    run = Run(Digits(P(60)), [0], every=2)
    list(run)
    assert len(run.history) <= 6
    assert 0 in run.history and 60 in run.history


@pytest.mark.parametrize("task", TASKS)
def test_global_generators_are_untouched(task):
    torch.manual_seed(11)
    np.random.seed(11)
    before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, _ = trained(task, [1, 2])
    assert torch.equal(before, torch.random.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()
    torch.manual_seed(99)  # nor may the result depend on it
    assert_same(first, trained(task, [1, 2])[0])


@pytest.mark.parametrize("stacked", [True, False])
def test_state_is_owned_by_modules_optimisers_generators(stacked):
    """A fresh run that is given the state of another one goes on as that one: nothing else is remembered."""
    first = Run(Normed(P(20)), [1, 2], stacked=stacked)
    for _ in range(9):
        first.advance()
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    buffer.seek(0)
    second = Run(Normed(P(20)), [1, 2], stacked=stacked)
    second.load(torch.load(buffer, weights_only=True))
    list(first), list(second)
    assert_same(first, second)


def test_members_are_live_views():
    run = Run(Digits(P(10)), [0, 1])
    member = run.members[1]
    before = [p.detach().clone() for p in member.parameters()]
    list(run)
    assert all((p != b).any() for p, b in zip(member.parameters(), before, strict=True))
    with torch.no_grad():  # and writing to a member changes what is trained
        member[0].weight.zero_()
    leaf = run.ensembles[0].leaves["0.weight"]
    assert leaf[1].abs().max() == 0 and leaf[0].abs().max() > 0


def test_each_player_moves_its_own_submodule_only():
    class Critic(Game):
        def players(self):
            return {"critic": self.criticise}

    run = Run(Critic(P(5)), [0, 1])
    before = [p.detach().clone() for p in run.members[0]["generator"].parameters()]
    list(run)
    assert all(torch.equal(p, b) for p, b in zip(run.members[0]["generator"].parameters(), before, strict=True))


def test_groups_and_schedule_reach_the_optimiser():
    class Grouped(Digits):
        lr = 0.5

        def groups(self):
            return {"2.": {"lr": 0.25}}

        def schedule(self, step, steps):
            return 1 - step / steps

        def optimizer(self, groups):
            return torch.optim.SGD(groups)

    run = Run(Grouped(P(10)), [0, 1])
    for _ in range(6):
        run.advance()
    ((optimizer, _),) = run.ensembles[0].optimizers[""]
    assert {g["key"]: g["lr"] for g in optimizer.param_groups} == {"": 0.25, "2.": 0.125}  # factor 1 - 5/10


def test_lbfgs_minimises_a_quadratic_in_a_few_steps():
    class Quadratic(Task):
        lr = 1.0
        joint_optimizer = False
        target = torch.tensor([[3.0, -2.0]])

        def init(self):
            return nn.Linear(1, 2, bias=False)

        def batch(self, net, rng, step):
            return (torch.ones(1, 1),)

        def loss(self, net, one):
            return ((net(one) - self.target) * torch.tensor([1.0, 10.0])).square().sum()

        def optimizer(self, groups):
            return torch.optim.LBFGS([p for g in groups for p in g["params"]], lr=1.0, max_iter=40, line_search_fn="strong_wolfe")

        def groups(self):
            return {}

    run = Run(Quadratic(P(4)), [0, 1])
    list(run)
    for member in run.members:
        assert torch.allclose(member.weight.T, Quadratic.target, atol=1e-4)


# ---- steering


def test_set_changes_the_learning_rate_from_the_next_step():
    run = Run(Digits(P(10)), [0, 1])
    run.advance()
    assert run.set(lr=0.0) == {"lr": (1e-3, 0.0)}
    before = weights(run)
    run.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    assert run.events == [{"step": 1, "kind": "set", "member": None, "lr": 0.0}]


def test_a_live_knob_acts_on_the_next_batch_though_batches_are_drawn_ahead():
    run = Run(Noisy(P(10)), [0, 1])
    run.advance()
    run.set(noise=0.0)
    run.advance()
    shown = run._block[0][0][0, 0]  # first chunk, x, first step of the block, member 0
    rows = run.tasks[0].x
    assert torch.cdist(shown, rows).min(1).values.max() == 0  # every input is one of the images, without noise


@pytest.mark.parametrize("change", [{"lr": -1.0}, {"lr": float("nan")}, {"lr": 1e9}, {"nonsense": 1.0}, {"lr": True}])
def test_a_refused_change_harms_nothing(change):
    run, other = Run(Digits(P(10)), [0, 1]), Run(Digits(P(10)), [0, 1])
    for r in (run, other):
        r.advance()
    with pytest.raises(ValueError, match=next(iter(change))):
        run.set(**change)
    list(run), list(other)
    assert_same(run, other)
    assert run.events == []


def test_one_member_can_be_steered_where_it_has_an_optimiser_of_its_own():
    run, other = Run(Clipped(P(6)), [0, 1]), Run(Clipped(P(6)), [0, 1])
    run.set(member=1, lr=0.0)
    start = weights(run)[1].clone()
    list(run), list(other)
    assert torch.equal(weights(run)[1], start)
    assert torch.equal(weights(run)[0], weights(other)[0])
    with pytest.raises(ValueError, match="share"):
        Run(Digits(P()), [0, 1]).set(member=0, lr=0.1)


def test_a_diverging_member_is_reported_and_leaves_the_others_alone():
    class Fragile(Digits):
        def bind(self, seed):
            bound = super().bind(seed)
            if seed == 1:
                bound.x = bound.x.clone()
                bound.x[:] = float("nan")
            return bound

    run, ticks = trained(Fragile, [0, 1, 2])
    alone, _ = trained(Digits, [2])
    assert ticks[-1].diverged == (1,)
    assert np.isnan(ticks[-1].metrics[1]["accuracy"]) and np.isfinite(ticks[-1].metrics[0]["accuracy"])
    assert (weights(run)[2] - weights(alone)[0]).abs().max() < 2e-5


def test_a_run_whose_members_all_diverged_ends():
    class Hopeless(Digits):
        def loss(self, net, x, y):
            return super().loss(net, x, y) * float("nan")

    _, ticks = trained(Hopeless, [0, 1], steps=50)
    assert ticks[-1].step == 2 and ticks[-1].diverged == (0, 1)


# ---- stages


class Pretrain(Digits):
    @property
    def steps(self):
        return 9


class Widen(Digits):
    """The second stage changes the architecture that the first one left."""

    ahead = 1

    @property
    def steps(self):
        return 6

    def begin(self, start):
        net = copy.deepcopy(start)
        net.append(nn.Linear(10, 10))
        return net


def test_stages_count_steps_and_budget_over_all_stages():
    chain = Stages(first=Pretrain, second=Widen)(P(), [0, 1])
    ticks = list(chain)
    assert chain.total == 15 and ticks[-1].step == 15
    assert [t.stage for t in ticks if t.step == 9] == ["first", "second"]
    assert chain.budget["samples"] == 15 * 16


@pytest.mark.parametrize("at", [4, 9, 12])
def test_resume_is_exact_across_a_border(at):
    whole = Chain({"first": Pretrain, "second": Widen}, P(), [0, 1])
    steps = whole.stepwise()
    while whole.step < at:
        next(steps)
    resumed = Chain({"first": Pretrain, "second": Widen}, P(), [0, 1])
    resumed.load(copy.deepcopy(whole.state()))
    for _ in steps:
        pass
    list(resumed)
    assert_same(whole, resumed)
    assert resumed.budget["samples"] == whole.budget["samples"]


# ---- gradients that a task computes itself, and projections


def test_clipped_gradients_and_a_projection_are_those_of_a_plain_loop():
    run = Run(Private(P(steps=5, noise=0.1)), [3], stacked=False)
    net, bound, rng = copy.deepcopy(run.members[0]), run.tasks[0], copy.deepcopy(run.rngs[0])
    x, y, noise = bound.block(net, rng, 0, bound.ahead)
    for k in range(5):
        total = [torch.zeros_like(w) for w in net.parameters()]
        for i in range(16):
            found = torch.autograd.grad(nn.functional.cross_entropy(net(x[k, i : i + 1]), y[k, i : i + 1]), list(net.parameters()))
            factor = min(1.0, 0.5 / float(torch.cat([g.flatten() for g in found]).norm()))
            total = [t + factor * g for t, g in zip(total, found, strict=True)]
        with torch.no_grad():
            net[0].weight -= Private.lr * (total[0] + noise[k])
            net[2].weight -= Private.lr * total[1]
            net[0].weight /= net[0].weight.norm(dim=1, keepdim=True)
    for _ in run:
        pass
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), run.members[0].parameters(), strict=True))


def test_given_gradients_and_projections_are_the_same_stacked_and_after_a_rollback():
    loop, stacked = (Run(Private(P(steps=30)), [0, 1, 2], stacked=how) for how in (False, True))
    for run in (loop, stacked):
        for _ in run:
            pass
    for a, b in zip(loop.members, stacked.members, strict=True):
        assert torch.allclose(a[0].weight, b[0].weight, atol=1e-5) and torch.allclose(a[2].weight, b[2].weight, atol=1e-5)
        assert torch.allclose(b[0].weight.norm(dim=1), torch.ones(16))
    assert torch.allclose(loop.losses, stacked.losses, atol=1e-5)
    before = [m[0].weight.clone() for m in stacked.members]
    stacked.rollback(10)
    for _ in stacked:
        pass
    assert all(torch.equal(m[0].weight, w) for m, w in zip(stacked.members, before, strict=True))


def test_a_frozen_weight_is_neither_moved_nor_projected():
    run = Run(Private(P(steps=3)), [0, 1], stacked=True)
    for ensemble in run.ensembles:
        ensemble.frozen = {"0.weight"}
    before, other = run.members[1][0].weight.clone(), run.members[1][2].weight.clone()
    for _ in run:
        pass
    assert torch.equal(run.members[1][0].weight, before) and not torch.equal(run.members[1][2].weight, other)


# ---- a row of runs


def test_a_series_reports_the_end_of_each_run_under_its_name_and_spends_what_they_spend():
    def make():
        return {f"noise={noise:g}": Run(Noisy(P(steps=steps, noise=noise)), [4, 5]) for noise, steps in ((0.0, 9), (0.5, 6))}

    alone, row = make(), Series(make(), [4, 5, 6])
    ends = {name: list(run)[-1] for name, run in alone.items()}
    ticks = list(row)
    assert [tick.step for tick in ticks] == [9, 15] and row.step == row.total == 15
    for tick, (name, end) in zip(ticks, ends.items(), strict=True):
        assert tick.metrics[:2] == [{f"{name}: {key}": value for key, value in one.items()} for one in end.metrics]
        assert tick.metrics[2] == {}  # the third seed is not among its runs
    assert row.budget["samples"] == sum(run.budget["samples"] for run in alone.values()) == 15 * Noisy.batch_size
