"""Derivatives of networks against automatic differentiation and central differences."""

import torch
from torch import nn
from torch.func import hessian, jvp, vmap

from claimlab.models import mlp
from claimlab.parts.derivatives import taylor


def double_net(seed=0, width=7, inputs=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(inputs, width, width, 1, activation=nn.Tanh).double()


def test_taylor_mode_equals_nested_jvp_and_central_differences():
    net, x = double_net(), torch.linspace(0.01, 0.99, 23, dtype=torch.float64)

    def value(at):
        return net(at[:, None])[:, 0]

    def slope(at):
        return jvp(value, (at,), (torch.ones_like(at),))[1]

    found = taylor(net, x[:, None])
    nested = (value(x), *jvp(slope, (x,), (torch.ones_like(x),)))
    for one, other in zip(found, nested, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)
    h = 1e-4
    assert torch.allclose(found[1], (value(x + h) - value(x - h)) / (2 * h), atol=1e-7)
    assert torch.allclose(found[2], (value(x + h) - 2 * value(x) + value(x - h)) / h**2, atol=1e-5)


def test_second_derivative_passes_gradcheck_in_x_and_in_the_weights():
    net, x = double_net(1, width=3), torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda at: net(at[:, None]), (x,))
    assert torch.autograd.gradcheck(lambda at: taylor(net, at[:, None])[2], (x,))
    names, leaves = zip(*net.named_parameters(), strict=True)

    class Curvature(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, at):
            return taylor(self.net, at[:, None])[2]

    def of_weights(*values):
        given = {f"net.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(Curvature(), given, (x.detach(),))

    assert torch.autograd.gradcheck(of_weights, tuple(p.detach().requires_grad_() for p in leaves))


def test_along_a_direction_slope_and_curvature_are_those_of_gradient_and_hessian():
    net, rng = double_net(2, inputs=3), torch.Generator().manual_seed(0)
    x, along = torch.randn(5, 3, generator=rng, dtype=torch.float64), torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def value(at):
        return net(at)[0]

    _, slope, curvature = taylor(net, x, along)
    assert torch.allclose(slope, vmap(torch.func.grad(value))(x) @ along, atol=1e-12)
    assert torch.allclose(curvature, torch.einsum("i,bij,j->b", along, vmap(hessian(value))(x), along), atol=1e-12)
