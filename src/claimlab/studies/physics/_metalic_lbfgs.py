"""L-BFGS for many independent minimisations at once, each with its own direction, step length and memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MEMORY, ARMIJO, TRIES = 10, 1e-4, 10


class Descent:
    """Minimises P functions side by side. `value` gives their losses [P] at x [P, n]; no function knows of another.

    One call of `step` is one evaluation of loss and gradient for every member. A member whose trial point falls enough
    (Armijo) goes there and finds a new direction (two-loop recursion, Nocedal and Wright, Numerical Optimization, alg. 7.4);
    any other stays where it is and tries a shorter step next time. So the budget is equal whatever happens.
    """

    def __init__(self, value: Callable[[Tensor], Tensor], x: Tensor):
        self.value, self.x = value, x.clone()
        self.f, self.g = self._both(self.x)
        self.s = x.new_zeros(MEMORY, *x.shape)
        self.y, self.rho = torch.zeros_like(self.s), x.new_zeros(MEMORY, len(x))
        self.d, self.t = self._steepest(), x.new_ones(len(x))
        self.refused = torch.zeros(len(x), dtype=torch.long)
        self.accepted = torch.zeros(len(x), dtype=torch.long)

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        f = self.value(x)
        (g,) = torch.autograd.grad(f.sum(), x)
        return f.detach(), g

    def _steepest(self) -> Tensor:
        return -self.g / self.g.abs().sum(1, keepdim=True).clamp(min=1.0)

    def step(self) -> Tensor:
        """One evaluation of every member; the losses [P] where they are now."""
        trial = self.x + self.t[:, None] * self.d
        f, g = self._both(trial)
        slope = (self.g * self.d).sum(1)
        good = torch.isfinite(f) & torch.isfinite(g).all(1) & (f <= self.f + ARMIJO * self.t * slope)
        self._remember(good, trial - self.x, g - self.g)
        self.x, self.g = torch.where(good[:, None], trial, self.x), torch.where(good[:, None], g, self.g)
        shorter = self._shorter(f, slope)
        self.f = torch.where(good, f, self.f)
        self.refused = torch.where(good, 0, self.refused + 1)
        lost = self.refused >= TRIES  # the direction is useless: forget, and go down the slope
        self.rho[:, lost], self.refused[lost] = 0.0, 0
        self.d = torch.where((good | lost)[:, None], self._direction(), self.d)
        self.t = torch.where(good | lost, 1.0, shorter)
        self.accepted += good
        return self.f

    def _shorter(self, f: Tensor, slope: Tensor) -> Tensor:
        """The lowest point of the parabola through both losses and the slope, between a tenth and a half of the step."""
        best = -slope * self.t / (2 * ((f - self.f) / self.t - slope))
        return self.t * (best / self.t).nan_to_num(0.1, 0.1, 0.1).clamp(0.1, 0.5)

    def _remember(self, good: Tensor, s: Tensor, y: Tensor) -> None:
        bend = (s * y).sum(1)
        keep = good & (bend > 1e-10 * (y * y).sum(1))
        for held, new in ((self.s, s), (self.y, y), (self.rho, 1 / bend)):
            held[:, keep] = torch.cat([held[1:, keep], new[None, keep]])

    def _direction(self) -> Tensor:
        """-H g; a slot that was never filled, or was forgotten, has rho = 0 and changes nothing."""
        q, a = self.g.clone(), []
        for k in reversed(range(MEMORY)):
            a.append(self.rho[k] * (self.s[k] * q).sum(1))
            q -= a[-1][:, None] * self.y[k]
        known = self.rho[-1] > 0
        size = 1 / (self.rho[-1] * (self.y[-1] * self.y[-1]).sum(1))
        q = torch.where(known[:, None], q * size[:, None], -self._steepest())
        for k, alpha in enumerate(reversed(a)):
            b = self.rho[k] * (self.y[k] * q).sum(1)
            q += (alpha - b)[:, None] * self.s[k]
        return -q
