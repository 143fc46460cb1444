"""What a training with Poisson-sampled Gaussian noise costs: Renyi differential privacy, and noise for a given budget."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

ORDERS = np.array([1 + k / 10 for k in range(1, 100)] + list(range(11, 64)) + [128, 256])
STEP, TAIL = 6, 12  # points a standard deviation, and standard deviations beyond the last peak


def _renyi(q: float, sigma: float, orders: np.ndarray = ORDERS) -> np.ndarray:
    """RDP of one step at each order a, for adding or removing one row: log E[((1 - q) + q exp((2 z - 1) / (2 sigma^2)))^a] / (a - 1)
    with z ~ N(0, sigma^2) (Mironov, Talwar, Zhang 2019). q is the share that Poisson sampling takes, sigma the noise in units of
    the sensitivity. The trapezoid rule is exact to rounding for so smooth a bell."""
    z = np.arange(-TAIL * sigma, orders.max() + TAIL * sigma, sigma / STEP)
    with np.errstate(divide="ignore"):
        ratio = np.logaddexp(np.log1p(-q), math.log(q) + (2 * z - 1) / (2 * sigma**2))
    density = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(sigma / STEP)
    return logsumexp(orders[:, None] * ratio + density, axis=1) / (orders - 1)


@lru_cache(maxsize=4096)
def spent(q: float, sigma: float, steps: int, delta: float) -> float:
    """epsilon after `steps`: the least over orders of T rho(a) + log(1 - 1/a) - (log delta + log a) / (a - 1), the improved
    conversion of Canonne, Kamath and Steinke (2020)."""
    if steps == 0:
        return 0.0
    a = ORDERS
    found = steps * _renyi(q, sigma) + np.log1p(-1 / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return max(0.0, float(found.min()))


@lru_cache(maxsize=256)
def noise_for(epsilon: float, q: float, steps: int, delta: float) -> float:
    """The noise multiplier sigma at which `steps` steps spend `epsilon`; ValueError where no noise at these orders suffices."""

    def excess(log_sigma: float) -> float:
        return spent(q, math.exp(log_sigma), steps, delta) - epsilon

    low, high = math.log(0.2), math.log(4.0)
    while excess(low) < 0 and low > math.log(0.02):
        low -= 0.5
    while excess(high) > 0:
        high += 1.0
        if high > math.log(1e6):
            raise ValueError(f"epsilon = {epsilon} is too small for {steps} steps at delta = {delta}: no noise reaches it")
    return math.exp(brentq(excess, low, high, xtol=1e-5)) * (1 + 1e-5)
