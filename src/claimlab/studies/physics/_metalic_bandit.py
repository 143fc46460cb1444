"""The contextual bandit of the study metalic: a Gaussian process over (parameter, choices) and two rules that play by it."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

# natural logarithms of: signal variance, length over the parameter (its range is 1), one eta a choice, noise variance
START = {"signal": 0.0, "length": math.log(0.3), "eta": 0.0, "noise": math.log(0.01)}
BOUNDS = {"signal": (math.log(1e-2), math.log(10)), "length": (math.log(0.05), math.log(10)),
          "eta": (math.log(0.05), math.log(10)), "noise": (math.log(1e-4), math.log(1.0))}  # fmt: skip


class Surrogate:
    """GP regression with k = sig^2 exp(-(b-b')^2 / 2 l^2) prod_k exp(-(1/s) sum_j [a_kj != a'_kj] / eta_k), noise added.

    Parameters b [n] lie in [0, 1]; `choices` blocks of bits a [n, choices, s], each with an eta of its own. Without `context`
    the factor in b is left out. The mean of the rewards is taken off first. `theta` holds the logarithms of what is fitted.
    """

    def __init__(self, choices: int = 1, context: bool = True):
        self.context, self.names = context, ["signal", *(["length"] if context else []), *["eta"] * choices, "noise"]
        self.theta = np.array([START[name] for name in self.names])
        self.b, self.a, self.r = np.empty(0), None, np.empty(0)

    def add(self, b: float, a: np.ndarray, r: float) -> None:
        """One more play with choices a [choices, s] and reward r."""
        a = np.asarray(a, dtype=float)[None]
        self.b, self.r = np.append(self.b, b), np.append(self.r, r)
        self.a = a if self.a is None else np.concatenate([self.a, a])

    def parts(self, b, a, b2, a2) -> list[np.ndarray]:
        """What the fitted numbers but the first and the last divide: squared distances / 2, shares of bits that differ."""
        far = [(b[:, None] - b2[None]) ** 2 / 2] if self.context else []
        return far + [np.abs(a[:, None, k] - a2[None, :, k]).mean(-1) for k in range(a.shape[1])]

    def kernel(self, b, a, b2, a2) -> np.ndarray:
        """k between plays (b [n], a [n, choices, s]) and others, without noise."""
        return self._kernel(self.parts(b, a, b2, a2), self.theta)

    def _kernel(self, parts, theta) -> np.ndarray:
        powers = self._powers()
        return math.exp(theta[0]) * np.exp(-sum(p / math.exp(c * t) for p, c, t in zip(parts, powers, theta[1:-1], strict=True)))

    def _powers(self) -> list[int]:
        return [2 if name == "length" else 1 for name in self.names[1:-1]]

    def fit(self) -> Surrogate:
        """Maximise the marginal likelihood within BOUNDS, from where the last fit ended. Fewer than three plays fit nothing."""
        if len(self.r) > 2:
            parts = self.parts(self.b, self.a, self.b, self.a)
            found = minimize(self._evidence, self.theta, args=(parts, self.r - self.r.mean()), jac=True, method="L-BFGS-B",
                             bounds=[BOUNDS[name] for name in self.names], options={"maxiter": 25})  # fmt: skip
            self.theta = found.x
        return self

    def _evidence(self, theta, parts, y) -> tuple[float, np.ndarray]:
        """Minus the log marginal likelihood and its gradient in theta."""
        signal, noise = self._kernel(parts, theta), math.exp(theta[-1])
        root = np.linalg.cholesky(signal + noise * np.eye(len(y)))
        inverse = cho_solve((root, True), np.eye(len(y)))
        alpha = inverse @ y
        value = y @ alpha / 2 + np.log(np.diag(root)).sum() + len(y) * math.log(2 * math.pi) / 2
        outer = np.outer(alpha, alpha) - inverse
        slopes = [signal] + [signal * p * c / math.exp(c * t) for p, c, t in zip(parts, self._powers(), theta[1:-1], strict=True)]
        gradient = [-(outer * slope).sum() / 2 for slope in slopes] + [-np.trace(outer) * noise / 2]
        return float(value), np.array(gradient)

    def predict(self, b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean [m] and covariance [m, m] of the reward without noise, at b [m], a [m, choices, s]."""
        prior = self.kernel(b, a, b, a)
        if not len(self.r):
            return np.zeros(len(b)), prior
        across, mean = self.kernel(b, a, self.b, self.a), self.r.mean()
        own = self.kernel(self.b, self.a, self.b, self.a) + math.exp(self.theta[-1]) * np.eye(len(self.r))
        root = np.linalg.cholesky(own)
        half = solve_triangular(root, across.T, lower=True)
        return mean + half.T @ solve_triangular(root, self.r - mean, lower=True), prior - half.T @ half


def choose(mean: np.ndarray, covariance: np.ndarray, rule: str, exploration: float, rng: np.random.Generator) -> int:
    """The action to play. ucb: the largest mean + exploration * sd; thompson: the largest entry of one draw from the posterior,
    its deviation from the mean times `exploration`. Ties are broken by rng."""
    if rule == "ucb":
        score = mean + exploration * np.sqrt(np.clip(np.diag(covariance), 0, None))
    else:
        values, vectors = np.linalg.eigh(covariance)
        score = mean + exploration * vectors @ (np.sqrt(np.clip(values, 0, None)) * rng.standard_normal(len(mean)))
    return int(rng.choice(np.flatnonzero(score >= score.max() - 1e-9)))


class Single:
    """One choice for both stages."""

    def __init__(self, bits: np.ndarray, context: bool = True):
        self.bits, self.surrogate = bits, Surrogate(1, context)

    def ask(self, b: float, of=None, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance over all actions at the parameter b; in the second surrogate of Sequential, after `first`."""
        of = of or self.surrogate
        blocks = [self.bits] if first is None else [np.broadcast_to(self.bits[first], self.bits.shape), self.bits]
        return of.predict(np.full(len(self.bits), b), np.stack(blocks, 1))

    def play(self, b, rule, exploration, rng) -> tuple[int, int]:
        one = choose(*self.ask(b), rule, exploration, rng)
        return one, one

    def best(self, b) -> tuple[int, int]:
        """The recommendation: the largest posterior mean, without exploration."""
        one = int(self.ask(b)[0].argmax())
        return one, one

    def learn(self, b: float, one: int, two: int, early: float, late: float) -> None:
        """`early` and `late` are the rewards after the first and after the second stage."""
        self.surrogate.add(b, self.bits[[one]], late)
        self.surrogate.fit()


class Sequential(Single):
    """A choice a stage. GP1 (b, a1) models the reward after the first stage plus GAMMA times what the second adds; GP2
    (b, a1, a2) models what the second adds."""

    GAMMA = 0.5  # the best of 0.5, 0.9 and 1 on the development seeds

    def __init__(self, bits):
        super().__init__(bits)
        self.second = Surrogate(2)

    def play(self, b, rule, exploration, rng):
        one = choose(*self.ask(b), rule, exploration, rng)
        return one, choose(*self.ask(b, self.second, one), rule, exploration, rng)

    def best(self, b):
        one = int(self.ask(b)[0].argmax())
        return one, int(self.ask(b, self.second, one)[0].argmax())

    def learn(self, b, one, two, early, late):
        self.surrogate.add(b, self.bits[[one]], early + self.GAMMA * (late - early))
        self.second.add(b, self.bits[[one, two]], late - early)
        self.surrogate.fit()
        self.second.fit()
