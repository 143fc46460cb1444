"""Layers reset and frozen in a run that goes on, against what a plain loop would do; and divergence explained."""

import copy

import pytest
import torch
from torch import nn

from claimlab.models import mlp
from claimlab.training import Run, Supervised, surgery


class Fit(Supervised):
    lr, batch_size = 0.01, 8

    def bind(self, seed):
        bound = type(self)(self.p)
        rng = torch.Generator().manual_seed(seed)
        bound.x, bound.y = torch.randn(64, 4, generator=rng), torch.randint(3, (64,), generator=rng)
        return bound

    def init(self):
        return mlp(4, 8, 3)


class Alone(Fit):
    joint_optimizer = False


class Explodes(Fit):
    """Gradient descent on w^2 / 2 with a step of 4: w is multiplied by -3 each step, until it overflows."""

    lr = 4.0

    def init(self):
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        return net

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.x, bound.y = torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)
        bound.steep = 1.0 if seed == 1 else 1e-3
        return bound

    def block(self, net, rng, step, n):
        return (torch.full((n, 1), self.steep),)

    def loss(self, net, steep):
        return steep.mean() * net.weight.square().sum() / 2

    def optimizer(self, groups):
        return torch.optim.SGD(groups)


def run_of(task, stacked=True, seeds=(0, 1), steps=40):
    return Run(task(None), seeds, steps, 10, stacked=stacked)


def advance(run, n):
    for _ in range(n):
        run.advance()


@pytest.mark.parametrize(("task", "stacked"), [(Fit, True), (Fit, False), (Alone, False)])
def test_a_frozen_layer_stays_and_the_others_learn_until_it_thaws(task, stacked):
    run = run_of(task, stacked)
    advance(run, 5)
    first = [copy.deepcopy(m.state_dict()) for m in run.members]
    surgery.freeze(run, "0")
    advance(run, 5)
    for member, before in zip(run.members, first, strict=True):
        after = member.state_dict()
        assert torch.equal(after["0.weight"], before["0.weight"]) and torch.equal(after["0.bias"], before["0.bias"])
        assert not torch.equal(after["2.weight"], before["2.weight"])
    surgery.freeze(run, "0", frozen=False)
    advance(run, 1)
    assert not torch.equal(run.members[0].state_dict()["0.weight"], first[0]["0.weight"])


def test_freezing_is_what_a_gradient_of_zero_does():
    run = run_of(Fit)
    surgery.freeze(run, "0")
    plain = run_of(Fit, stacked=False)
    for member in plain.members:
        for p in member[0].parameters():
            p.register_hook(torch.zeros_like)  # zero gradient, and AdamW without decay does not move it
    advance(run, 8)
    advance(plain, 8)
    for a, b in zip(run.members, plain.members, strict=True):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_reset_layer_is_drawn_anew_the_same_each_time_and_its_moments_start_at_zero(stacked):
    found = []
    for _ in range(2):
        run = run_of(Fit, stacked)
        advance(run, 6)
        before = [copy.deepcopy(m.state_dict()) for m in run.members]
        surgery.reset(run, "2")
        after = [copy.deepcopy(m.state_dict()) for m in run.members]
        assert torch.equal(after[0]["0.weight"], before[0]["0.weight"])
        assert not torch.equal(after[0]["2.weight"], before[0]["2.weight"])
        assert not torch.equal(after[0]["2.weight"], after[1]["2.weight"])
        bound = 1 / run.members[0][2].in_features ** 0.5  # that of torch's own initialisation
        assert after[0]["2.weight"].abs().max() <= bound
        for ensemble in run.ensembles:
            ((optimizer, _),) = ensemble.optimizers[""]
            for leaf in ensemble.tensors("2.weight"):
                assert float(optimizer.state[leaf]["exp_avg"].abs().max()) == 0
            for leaf in ensemble.tensors("0.weight"):
                assert float(optimizer.state[leaf]["exp_avg"].abs().max()) > 0
        advance(run, 3)
        found.append([m.state_dict()["2.weight"].clone() for m in run.members])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_frozen_layer_survives_save_and_rollback(tmp_path):
    run = run_of(Fit)
    list(zip(range(11), run.stepwise(), strict=False))
    surgery.freeze(run, "0")
    held = run.members[0].state_dict()["0.weight"].clone()
    run.save(tmp_path / "run.pt")
    again = Run.resume(tmp_path / "run.pt", Fit(None), stacked=True)
    advance(again, 4)
    assert torch.equal(again.members[0].state_dict()["0.weight"], held)
    run.rollback(0)
    advance(run, 1)
    assert run.frozen == set() and not torch.equal(run.members[0].state_dict()["0.weight"], held)


def test_an_unknown_layer_is_refused_with_the_nearest_name():
    run = run_of(Fit)
    assert surgery.layers(run) == ["0", "2"]
    with pytest.raises(ValueError, match="no layer '1'"):
        surgery.reset(run, "1")
    with pytest.raises(ValueError, match="no layer ''"):
        surgery.freeze(run, "")
    with pytest.raises(ValueError, match="not frozen"):
        surgery.freeze(run, "2", frozen=False)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_divergence_is_explained_by_its_first_step_and_the_gradient_before_it(stacked):
    """w is (-3)^t: its square overflows float32, whose largest number is 3.4e38, at the first t with 9^t / 2 above that."""
    run = run_of(Explodes, stacked, seeds=(0, 1), steps=200)
    ticks = [tick for tick in run if tick.diverged]
    assert ticks[0].diverged == (1,)
    facts = surgery.explain(run, 1)
    largest = torch.finfo(torch.float32).max
    first = next(t for t in range(200) if 3.0 ** (2 * t) > largest)
    assert facts["step"] == first + 1 and facts["tensor"] == "loss" and facts["last_good"] == first // 10 * 10
    assert facts["gradient_norm"] == pytest.approx(3.0 ** (first - 1), rel=1e-4)
    assert torch.isfinite(run.members[0].weight).all()
