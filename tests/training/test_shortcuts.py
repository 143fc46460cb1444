"""The shorter ways give what torch gives member by member: values, gradients, and nothing where they do not apply."""

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from claimlab.training import shortcuts
from claimlab.training.shortcuts import Shortcuts

S = 4


def stacks(*shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(S, *shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.fixture
def taken(monkeypatch):
    """Which shortcuts were taken, in order."""
    found = []
    for func, rule in list(shortcuts.RULES.items()):
        def spied(*args, _rule=rule, **kwargs):
            answer = _rule(*args, **kwargs)
            if answer is not None:
                found.append(_rule.__name__)
            return answer

        monkeypatch.setitem(shortcuts.RULES, func, spied)
    return found


def both(f, *given):
    """(what each member gets by itself, gradients), (the same through the stack)."""
    leaves = [g for g in given if g.is_floating_point()]
    alone = torch.stack([f(*(g[i] for g in given)) for i in range(S)])
    with Shortcuts():
        together = vmap(f)(*given)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(9), dtype=alone.dtype)
    return [(y, *torch.autograd.grad((y * weights).sum(), leaves)) for y in (alone, together)]


@pytest.mark.parametrize("before", [(6,), (3, 6), (2, 3, 6)], ids=["batch", "sequence", "deeper"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(taken, before, bias):
    given = stacks((*before, 5), (7, 5), *([(7,)] if bias else []))
    alone, together = both(F.linear, *given)
    assert taken == ["_linear"]
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-12) and other.is_contiguous()


def test_an_input_that_all_members_share_is_not_copied_by_hand(taken):
    weight, bias = stacks((7, 5), (7,))
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with Shortcuts():
        found = vmap(lambda w, b: F.linear(x, w, b))(weight, bias)
    assert taken == ["_linear"] and torch.allclose(found, torch.stack([F.linear(x, w, b) for w, b in zip(weight, bias, strict=True)]))


@pytest.mark.parametrize("options", [{}, {"ignore_index": 2}, {"label_smoothing": 0.1}])
def test_cross_entropy(taken, options):
    (logits,) = stacks((12, 5))
    labels = torch.arange(S * 12).view(S, 12) % 5
    alone, together = both(lambda z, y: F.cross_entropy(z, y, **options), logits, labels)
    assert taken == ["_cross_entropy"]
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_what_has_no_shortcut_goes_the_usual_way(taken):
    (logits,), labels = stacks((12, 5)), torch.arange(S * 12).view(S, 12) % 5
    usual = [
        lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        lambda z, y: F.cross_entropy(z, z.detach().softmax(1)),
        lambda z, y: F.cross_entropy(z, y, weight=torch.ones(5, dtype=z.dtype)),
        lambda z, y: F.linear(z[0], z[1:3]).sum(),  # one vector is no batch
    ]
    for f in usual:
        (one, _), (other, _) = both(f, logits, labels)
        assert torch.allclose(one, other)
    assert taken == []


def test_derivatives_within_a_member(taken):
    """A transformation inside keeps torch's own rules: those of forward mode, of reverse mode, and of both."""
    x, weight, bias = stacks((6, 5), (1, 5), (1,))

    def second(x, w, b):
        def u(z):
            return F.linear(z, w, b).tanh()

        one = torch.ones_like(x)
        return jvp(lambda z: jvp(u, (z,), (one,))[1], (x,), (one,))[1].sum()

    def slope(x, w, b):
        return grad(lambda z: F.linear(z, w, b).tanh().sum())(x).square().sum()

    for f in (second, slope):
        for one, other in zip(*both(f, x, weight, bias), strict=True):
            assert torch.allclose(one, other, atol=1e-12)
    assert taken == []


def test_a_network_in_training(taken):
    nets = [nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)).double() for _ in range(S)]
    x, y = torch.randn(S, 9, 5, dtype=torch.float64), torch.arange(S * 9).view(S, 9) % 3
    named = {n: torch.stack([dict(m.named_parameters())[n].detach() for m in nets]).requires_grad_() for n, _ in nets[0].named_parameters()}
    with Shortcuts():
        losses = vmap(lambda p, a, b: F.cross_entropy(torch.func.functional_call(nets[0], p, a), b))(named, x, y)
    found = torch.autograd.grad(losses.sum(), list(named.values()))
    for i, net in enumerate(nets):
        F.cross_entropy(net(x[i]), y[i]).backward()
        for own, stacked in zip(net.parameters(), found, strict=True):
            assert torch.allclose(own.grad, stacked[i], atol=1e-12)
    assert taken == ["_linear", "_linear", "_cross_entropy"]
