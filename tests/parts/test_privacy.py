"""The privacy accountant against two libraries, and against the integral that it computes."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from claimlab.parts import privacy

# q, sigma, steps, delta; epsilon of opacus 1.6.0 at these orders; of dp_accounting 0.6.0 (RdpAccountant, Poisson-sampled
# Gaussian, add or remove one) at the orders 2 to 63, where both agree (its values at broken orders are larger than the integral)
SPENT = [
    (0.064, 0.6, 250, 2.5e-5, 22.962569233183807, 24.197251208651416), (0.064, 0.8, 250, 2.5e-5, 11.6369615186227, 12.98428917708623),
    (0.064, 1.0, 250, 2.5e-5, 7.282291081301308, 7.401594345413633), (0.064, 2.0, 250, 2.5e-5, 2.3931327391709893, 2.3963120760808554),
    (0.01, 1.1, 1000, 1e-5, 1.7117700912203435, 1.7252908180449444), (0.0128, 0.7, 250, 5e-6, 4.587716482414597, 4.622402422140079),
    (1.0, 5.0, 10, 1e-5, 2.8136532471298397, 2.814109167845533), (0.25, 1.5, 100, 1e-4, 9.362305673998401, 9.421550037808775),
]  # fmt: skip


@pytest.mark.parametrize("q, sigma, steps, delta, opacus, google", SPENT)
def test_epsilon_is_that_of_two_other_accountants(q, sigma, steps, delta, opacus, google):
    assert privacy.spent(q, sigma, steps, delta) == pytest.approx(opacus, abs=1e-3)
    a = np.arange(2.0, 64.0)
    whole = steps * privacy._renyi(q, sigma, a) + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    assert whole.min() == pytest.approx(google, abs=1e-3)


@pytest.mark.parametrize("order", [1.3, 2.7, 7.0])
def test_renyi_divergence_is_the_integral(order):
    q, sigma = 0.1, 0.9
    base, moved = stats.norm(0, sigma), stats.norm(1, sigma)
    ratio = lambda z: (1 - q + q * moved.pdf(z) / base.pdf(z)) ** order * base.pdf(z)  # noqa: E731
    moment = integrate.quad(ratio, -10, 16, points=[0, order], limit=200)[0]
    assert privacy._renyi(q, sigma, np.array([order]))[0] == pytest.approx(math.log(moment) / (order - 1), rel=1e-7)


@pytest.mark.parametrize("epsilon", [0.5, 8.0, 50.0])
def test_noise_spends_its_budget_and_no_more(epsilon):
    sigma = privacy.noise_for(epsilon, 0.064, 250, 2.5e-5)
    assert epsilon - 1e-3 * epsilon < privacy.spent(0.064, sigma, 250, 2.5e-5) <= epsilon


def test_a_budget_that_no_noise_reaches_is_refused():
    with pytest.raises(ValueError, match="epsilon = 0.01 is too small for 250 steps"):
        privacy.noise_for(0.01, 0.064, 250, 2.5e-5)
