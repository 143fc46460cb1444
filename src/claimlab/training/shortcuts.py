"""Shorter ways through the two operations on which stacked networks spend most of their time, where `vmap` takes a longer one.

Inside `vmap` a member's tensor stands for a stack [S, ...]. Here the stacks themselves are taken, one kernel does what all
members ask for, and the answer goes back as a member's tensor. The numbers are those of the plain loop, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as stacks
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Shortcuts(TorchFunctionMode):
    """While it is active, linear layers and cross entropies of members are computed for all of them in one go."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = RULES.get(func)
        found = known(*args, **(kwargs or {})) if known else None
        return func(*args, **(kwargs or {})) if found is None else found


def _stack(one: Tensor | None) -> Tensor | None:
    """The stack [S, ...] that a member's tensor stands for; None where it is no stack of the innermost level along its front."""
    if one is None or not stacks.is_batchedtensor(one):
        return None
    if stacks.maybe_get_level(one) != stacks.maybe_current_level() or stacks.maybe_get_bdim(one) != 0:
        return None
    inner = stacks.get_unwrapped(one)
    return None if stacks.is_functorch_wrapped_tensor(inner) else inner


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """x [..., in] of each member times its weight [out, in], plus its bias [out]."""
    weights, biases, inputs = _stack(weight), _stack(bias), _stack(x)
    if weights is None or (bias is not None and biases is None) or x.dim() < 2:
        return None
    if inputs is None:
        if stacks.is_functorch_wrapped_tensor(x):
            return None
        inputs = x.expand(len(weights), *x.shape)
    level = stacks.maybe_current_level()
    with temporarily_pop_interpreter_stack():
        y = _Linear.apply(inputs.flatten(1, -2), weights, biases).unflatten(1, inputs.shape[1:-1])
    return stacks._add_batch_dim(y, 0, level)


class _Linear(torch.autograd.Function):
    """x [S, N, in], weight [S, out, in], bias [S, out] or None -> [S, N, out].

    By itself autograd gives the weight's gradient transposed, which the fused optimisers would have to copy.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        turned = weight.transpose(1, 2)
        return torch.bmm(x, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, turned)

    @staticmethod
    def backward(ctx, given):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(given, weight) if of_x else None,
            torch.bmm(given.transpose(1, 2), x) if of_weight else None,
            given.sum(1) if of_bias else None,
        )


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, size_average: None = None, ignore_index: int = -100,
                   reduce: None = None, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor | None:  # fmt: skip
    """The mean cross entropy of logits [B, C] with labels [B] of each member.

    The kernel along the last dimension takes several times as long for few classes as the one along another.
    """
    scores, labels = _stack(logits), _stack(target)
    usual = weight is None and size_average is None and reduce is None and reduction == "mean"
    if not usual or scores is None or labels is None or scores.dim() != 3 or labels.dim() != 2:
        return None
    level = stacks.maybe_current_level()
    with temporarily_pop_interpreter_stack():
        each = F.cross_entropy(scores.flatten(0, 1).T[None], labels.flatten()[None], ignore_index=ignore_index, reduction="none",
                               label_smoothing=label_smoothing)  # fmt: skip
        mean = each.view(labels.shape).sum(1) / (labels != ignore_index).sum(1)
    return stacks._add_batch_dim(mean, 0, level)


RULES = {F.linear: _linear, F.cross_entropy: _cross_entropy}
