"""What a training step costs: seconds, measured side by side, and the peak of live tensors."""

from __future__ import annotations

import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from claimlab.parts.threads import one_thread
from claimlab.training import Run


class Stepper:
    """One member of an arm, apart from any training, that takes steps on the same `batch` examples: noise, gradients, clipping,
    update and projection are in a step, the loading of data is not."""

    def __init__(self, task, seed: int, batch: int):
        self.run = Run(task, [seed], 1, device="cpu")
        bound = self.run.tasks[0]
        rows = torch.arange(batch) % len(bound.x)
        self.fixed = bound.x[rows], bound.y[rows], torch.ones(batch)
        self.noise, self.rng = bound.noise, torch.Generator().manual_seed(seed)

    def step(self) -> None:
        self.run.ensembles[0].step([(*self.fixed, self.noise(self.run.members[0], self.rng))])


@one_thread()
def seconds(tasks: dict, seed: int, batch: int, repeats: int, first: int = 10) -> dict[str, list[float]]:
    """Seconds of `repeats` steps of each task, one of each in turn so that all meet the same machine; `first` ones are dropped."""
    steppers = {name: Stepper(task, seed, batch) for name, task in tasks.items()}
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for k in range(first + repeats):
        for name, one in steppers.items():
            began = time.perf_counter()
            one.step()
            if k >= first:
                found[name].append(time.perf_counter() - began)
    return found


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still alive; `peak` is the most at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.known:
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(task, seed: int, batch: int) -> int:
    """The most bytes of tensors that one step holds at once, weights and data of before not counted."""
    one = Stepper(task, seed, batch)
    one.step()
    with Live() as live:
        one.step()
    return live.peak
