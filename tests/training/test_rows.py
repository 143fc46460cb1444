"""One gather for all members against each member's own draw."""

import pytest
import torch
from torch import nn

from claimlab.training import Run, Supervised
from claimlab.training.rows import Rows


class Linear(Supervised):
    """Random examples; `kind` says what the members' examples have in common."""

    kind, batch_size, ahead = "own", 5, 3
    params = None

    def bind(self, seed):
        bound = type(self)(None)
        shared = torch.Generator().manual_seed(0 if self.kind == "shared" else 1 + seed)
        count = 40 + seed if self.kind == "lengths" else 40
        bound.x, bound.y = torch.randn(count, 4, generator=shared), torch.randint(3, (count,), generator=shared)
        if self.kind == "shared":
            bound.x, bound.y = COMMON
        return bound

    def init(self):
        return nn.Linear(4, 3)


COMMON = torch.randn(40, 4, generator=torch.Generator().manual_seed(9)), torch.arange(40) % 3


def tasks(kind, seeds=(0, 1, 2)):
    made = type("Kind", (Linear,), {"kind": kind})(None)
    return [made.bind(seed) for seed in seeds]


def generators(count=3):
    return [torch.Generator().manual_seed(100 + k) for k in range(count)]


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_batches_are_those_that_each_member_draws(kind):
    every = tasks(kind)
    drawn = Rows(every, torch.device("cpu")).draw(generators(), 3)
    for i, (task, rng) in enumerate(zip(every, generators(), strict=True)):
        for part, own in zip(drawn, task.block(None, rng, 0, 3), strict=True):
            assert torch.equal(torch.stack([part[k][i] for k in range(3)]), own)


def test_examples_of_different_form_or_too_many_are_left_to_their_members(monkeypatch):
    assert Rows(tasks("lengths"), torch.device("cpu")).draw(generators(), 3) is None
    monkeypatch.setattr("claimlab.training.rows.LIMIT", 1000)
    assert Rows(tasks("own"), torch.device("cpu")).draw(generators(), 3) is None
    assert Rows(tasks("shared"), torch.device("cpu")).draw(generators(), 3) is not None


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_examples_that_change_in_mid_run_are_noticed(how):
    every = tasks("own")
    rows = Rows(every, torch.device("cpu"))
    rows.draw(generators(), 3)
    if how == "in place":
        every[1].x.mul_(-1)
    else:
        every[1].x = -every[1].x
    x, _ = rows.draw(generators(), 3)
    assert torch.equal(x[2][1], every[1].block(None, generators()[1], 0, 3)[0][2])


@pytest.mark.parametrize("kind", ["own", "shared", "lengths"])
def test_a_stacked_run_is_the_plain_loop(kind):
    task = type("Kind", (Linear,), {"kind": kind})(None)
    stacked, loop = (Run(task, range(3), 10, 10, stacked=s, chunk=2, device="cpu") for s in (True, False))
    for run in (stacked, loop):
        for _ in range(10):
            run.advance()
    for one, other in zip(stacked.members, loop.members, strict=True):
        assert torch.allclose(one.weight, other.weight, atol=1e-6)
    assert stacked.samples == loop.samples == 50
