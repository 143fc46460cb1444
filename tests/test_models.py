import pytest
import torch

from claimlab.models import mlp


def test_a_perceptron_is_affine_maps_with_activations_between():
    net = mlp(3, 5, 2)
    x = torch.randn(4, 3)
    first, last = net[0], net[2]
    by_hand = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    assert torch.allclose(net(x), by_hand, atol=1e-6)


def test_a_perceptron_needs_two_sizes():
    with pytest.raises(ValueError, match="input and an output"):
        mlp(3)
