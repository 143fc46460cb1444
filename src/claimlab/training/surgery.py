"""Changes inside a run that goes on: layers set back or frozen; and, of a member that diverged, what came first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from claimlab.training.run import Run


def layers(run: Run) -> list[str]:
    """Names by which layers are addressed: modules that own parameters, and parameters of the net itself."""
    names = [name for name, _ in run.members[0].named_parameters()]
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def describe(run: Run, settings: Iterable[str]) -> dict[str, Any]:
    """What can be turned in a training: its layers with their numbers of parameters, those frozen, and the `settings` it has."""
    sizes = {name: parameter.numel() for name, parameter in run.members[0].named_parameters()}
    found = {layer: parameters(run, layer) for layer in layers(run)}
    values = {name: run.current(name) for name in settings}
    return {
        "layers": {layer: sum(sizes[name] for name in names) for layer, names in found.items()},
        "frozen": [layer for layer, names in found.items() if run.frozen >= set(names)],
        "settings": {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)},
    }


def parameters(run: Run, layer: str) -> list[str]:
    """The parameters of a layer, or of all layers within a module; ValueError names what there is."""
    found = [name for name, _ in run.members[0].named_parameters() if name == layer or name.startswith(f"{layer}.")]
    if not found or not layer:
        known = layers(run)
        near = difflib.get_close_matches(layer, known, n=1)
        raise ValueError(f"there is no layer {layer!r}" + (f"; did you mean {near[0]}?" if near else f"; layers: {', '.join(known)}"))
    return found


def reset(run: Run, layer: str) -> None:
    """Draw the layer of every member anew, from the member's seed and the present step; its optimiser state starts at zero."""
    names = set(parameters(run, layer))
    for i, member in enumerate(run.members):
        fresh = run.fresh(i, seed=run.seeds[i] * 1_000_003 + run.step + 1)
        tensors = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
        with torch.no_grad():
            for name, tensor in [*member.named_parameters(), *member.named_buffers()]:
                if name in names or name.startswith(f"{layer}."):
                    tensor.data.copy_(tensors[name])
    for ensemble in run.ensembles:
        owned = [t for name in names for t in ensemble.tensors(name)]
        for optimizer, _ in (pair for pairs in ensemble.optimizers.values() for pair in pairs):
            for state in (optimizer.state[t] for t in owned if t in optimizer.state):
                for value in state.values():
                    if isinstance(value, Tensor):
                        value.zero_()


def freeze(run: Run, layer: str, frozen: bool = True) -> None:
    """Hold a layer where it is, or let it learn again. ValueError for thawing what is not frozen."""
    names = set(parameters(run, layer))
    if not frozen and not names & run.frozen:
        raise ValueError(f"the layer {layer} is not frozen")
    run.frozen = run.frozen | names if frozen else run.frozen - names
    for ensemble in run.ensembles:
        ensemble.frozen = run.frozen


def explain(run: Run, member: int) -> dict[str, Any]:
    """What came first when `member` diverged: step, tensor, gradient norm before it, and the last good step.

    The stretch from the last good remembered state is trained once more beside the run, which is left alone.
    """
    good = max(step for step, state in run.history.items() if member not in state["diverged"])
    twin = Run(run.task, run.seeds, run.total, run.every, start=run.start, device=str(run.device), stacked=run.stacked)
    twin.load(run.history[good])
    norm, found = None, None
    while found is None and twin.step < run.step:
        twin.advance()
        broken = [n for n, p in twin.members[member].named_parameters() if not bool(torch.isfinite(p).all())]
        if broken or not bool(torch.isfinite(twin.losses[member])):
            found = broken[0] if broken else "loss"
        else:
            norm = _gradient_norm(twin, member)
    return {"step": twin.step, "tensor": found, "gradient_norm": norm, "last_good": good}


def _gradient_norm(run: Run, member: int) -> float:
    for ensemble, chunk in zip(run.ensembles, run.chunks, strict=True):
        if chunk.start <= member < chunk.stop:
            found = [ensemble.gradient(name, member - chunk.start) for name, _ in run.members[0].named_parameters()]
            known = [float(g.norm()) for g in found if g is not None]
            return float(torch.tensor(known).norm()) if known else 0.0
    raise IndexError(member)
