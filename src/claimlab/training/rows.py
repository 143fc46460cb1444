"""The batches of several members in one gather, where each draws rows of its own examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claimlab.training.task import Supervised

LIMIT = 2**28  # bytes of examples that may be copied into one tensor


@dataclass(frozen=True)
class Gathered:
    """Batches whose examples are fetched when a step asks for them, while they fit into the cache: item k is [S, B, ...]."""

    examples: Tensor
    rows: Tensor  # [n, S B]
    shape: Sequence[int]

    def __getitem__(self, k: int) -> Tensor:
        return self.examples.index_select(0, self.rows[k]).unflatten(0, self.shape)


class Rows:
    """Examples of `tasks` side by side; they are laid out anew when a task has been given others."""

    def __init__(self, tasks: Sequence[Supervised], device: torch.device):
        self.tasks, self.device = tasks, device
        self.known: list[tuple] = []
        self.parts: tuple[Tensor, ...] | None = None

    def draw(self, rngs: Sequence[torch.Generator], n: int) -> tuple[Gathered, ...] | None:
        """The next `n` batches of all members as each task's own `block` gives them; None where examples differ in form or are
        too many to copy."""
        now = [(part, part._version) for task in self.tasks for part in (task.x, task.y)]
        if len(now) != len(self.known) or any(a is not b or v != w for (a, v), (b, w) in zip(now, self.known, strict=True)):
            self.known, self.parts = now, self._side_by_side()
        if self.parts is None:
            return None
        rows = torch.stack([task.rows(rng, n) for task, rng in zip(self.tasks, rngs, strict=True)], 1)
        flat = (rows + self.offsets).flatten(1).to(self.device)
        return tuple(Gathered(part, flat, rows.shape[1:]) for part in self.parts)

    def _side_by_side(self) -> tuple[Tensor, ...] | None:
        first, count = self.tasks[0], len(self.tasks)
        self.offsets = torch.zeros(count, 1, dtype=torch.int64)
        if all(task.x is first.x and task.y is first.y for task in self.tasks):
            return first.x.to(self.device), first.y.to(self.device)
        forms = {(t.x.shape, t.x.dtype, t.y.shape, t.y.dtype) for t in self.tasks}
        if len(forms) > 1 or count * (first.x.nbytes + first.y.nbytes) > LIMIT:
            return None
        self.offsets += len(first.x) * torch.arange(count)[:, None]
        return tuple(torch.cat([getattr(task, name) for task in self.tasks]).to(self.device) for name in ("x", "y"))
