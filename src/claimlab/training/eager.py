"""Optimisers without torch's compiler, which takes two seconds to load and which nothing here uses.

torch loads it at the first optimiser, to have it pass over four methods, and at its first step, to break its graph there.
Both is undone before the first optimiser is made; numbers are the same. Where a torch does this in other ways nothing changes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def spare_the_compiler() -> None:
    """Let the optimisers of torch.optim run as they are, unless the compiler is there already."""
    if "torch._dynamo" in sys.modules:
        return
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        if (plain := getattr(method, "__wrapped__", None)) is not None:
            vars(plain).setdefault("__dynamo_disable", plain)  # where torch keeps what the compiler made of it
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if isinstance(kind, type) and issubclass(kind, Optimizer) else None
        if getattr(getattr(step, "__code__", None), "co_name", "") == "_use_grad":
            kind.step = _without_gradients(step.__wrapped__)


def _without_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of an optimiser, recorded by autograd only where it is to be differentiable."""

    @functools.wraps(step)
    def take(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return take
