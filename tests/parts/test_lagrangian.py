"""The augmented Lagrangian on a problem with a known solution and a known multiplier."""

import pytest
import torch

from claimlab.parts.lagrangian import penalty, raised


@pytest.mark.parametrize("limit, solution, price", [(1.0, 1.0, 4.0), (5.0, 3.0, 0.0)], ids=["binding", "slack"])
def test_rounds_end_at_the_constrained_least_and_at_its_multiplier(limit, solution, price):
    """min (x - 3)^2 subject to x <= limit; where it binds the multiplier is -f'(limit) = 2 (3 - limit)."""
    x, multiplier, mu = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64), 1.0
    for _ in range(25):
        for _ in range(200):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((x - 3) ** 2 + penalty(x - limit, multiplier, mu), x)
            x = x.detach() - slope / (2 + mu)
        multiplier, mu = raised(x - limit, multiplier, mu), min(1.5 * mu, 50.0)
    assert float(x) == pytest.approx(solution, abs=1e-5) and float(multiplier) == pytest.approx(price, abs=1e-4)
