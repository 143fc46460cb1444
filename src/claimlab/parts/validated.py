"""The weights with which a network did best on held-out examples so far, in buffers, so that they are resumed and undone with it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def track(net: nn.Module) -> nn.Module:
    """Give `net` the buffers `score` and `kept` and return it; all its parameters must be there and have one type."""
    net.register_buffer("score", torch.tensor(-torch.inf))
    net.register_buffer("kept", parameters_to_vector(net.parameters()).detach().clone())
    return net


@torch.no_grad()
def keep(net: nn.Module, score: float) -> None:
    """Remember the present weights if `score` is higher than all before; the first of equal ones stays."""
    if score > float(net.score):
        net.score.fill_(score)
        net.kept.copy_(parameters_to_vector(net.parameters()))


@torch.no_grad()
def best(net: nn.Module) -> nn.Module:
    """A copy of `net` with the weights that did best; the present ones where nothing was scored yet. Other buffers stay."""
    found = copy.deepcopy(net)
    if net.score.isfinite():
        vector_to_parameters(net.kept.clone(), found.parameters())
    return found
