"""The best weights so far: against a search over all weights that were seen, undone and resumed with their network."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from claimlab.parts.validated import best, keep, track


@given(scores=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8))
def test_what_is_kept_is_the_first_maximum_of_all_that_was_seen(scores):
    net, seen = track(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))), []
    for score in scores:
        with torch.no_grad():
            for p in net.parameters():
                p.normal_()
        seen.append([p.detach().clone() for p in net.parameters()])
        keep(net, score)
    now = [p.detach().clone() for p in net.parameters()]
    wanted = seen[max(range(len(scores)), key=lambda k: (scores[k], -k))]
    assert all(torch.equal(a, b) for a, b in zip(best(net).parameters(), wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), now, strict=True))  # the network itself is left alone


def test_before_any_score_the_present_weights_are_the_best_and_a_state_carries_what_is_kept():
    net, other = track(nn.Linear(2, 2)), track(nn.Linear(2, 2))
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(best(net).weight, net.weight)
    keep(net, 0.3)
    kept = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    other.load_state_dict(net.state_dict())
    keep(other, 0.2)
    assert torch.equal(best(other).weight, kept) and not torch.equal(other.weight, kept)
