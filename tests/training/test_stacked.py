"""One call for all members gives what vmap over functional_call gives, and leaves the skeleton as it was."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from claimlab.training.stacked import Stacked

S, B = 3, 5


class Tied(nn.Module):
    """Two layers with one weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.shift


@pytest.fixture
def stacked():
    torch.manual_seed(0)
    nets = [Tied() for _ in range(S)]
    named = [dict(net.named_parameters()) | dict(net.named_buffers()) for net in nets]
    tensors = {k: torch.stack([one[k].detach() for one in named]).requires_grad_(k != "shift") for k in named[0]}
    return Stacked(nets[0], tensors, S), tensors, torch.randn(S, B, 4)


def loss(net, x):
    return net(x).square().mean(), {"of_first": net.first(x).sum(0)}


def test_values_and_gradients_are_those_of_vmap_with_tied_weights_and_buffers(stacked):
    every, tensors, x = stacked
    net = Tied()
    theirs = vmap(lambda named, one: functional_call(net, named, (one,), tie_weights=True).square().mean())(tensors, x)
    ours, more = every(loss, x)
    torch.testing.assert_close(ours, theirs)
    assert more["of_first"].shape == (S, 4)
    leaves = [one for one in tensors.values() if one.requires_grad]
    for a, b in zip(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_a_constant_is_given_to_every_member(stacked):
    every, _, x = stacked
    assert every(lambda net, one: torch.tensor(2.0), x).tolist() == [2.0] * S


def test_random_numbers_are_refused_and_an_error_leaves_the_skeleton_empty(stacked):
    every, _, x = stacked
    with pytest.raises(RuntimeError, match="randomness"):
        every(lambda net, one: torch.rand_like(one).sum() + net(one).sum(), x)
    assert all(p.is_meta for p in every.net.parameters()) and all(b.is_meta for b in every.net.buffers())
    assert every(lambda net, one: net(one).sum(), x).shape == (S,)  # and it can be called again
