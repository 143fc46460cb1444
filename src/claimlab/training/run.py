"""A Run trains S seeds of one task and hands control back at every recorded step: iterate over it, break to pause."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from claimlab.params import SETTABLE
from claimlab.training.ensemble import Ensemble
from claimlab.training.rows import Rows
from claimlab.training.task import Stepwise, Supervised, Task, Tick

CHUNK_BYTES = 24 << 20  # parameters, gradients and two moments of a chunk; larger stacks fall out of a processor's cache
CHUNK_BYTES_ELSEWHERE = 1 << 30  # an accelerator is fast when it has much to do
HISTORY_BYTES = 32 << 20


class Run(Stepwise):
    """Training of `task` for each of `seeds`. All state is in members, optimisers and generators.

    `members[i]` is an ordinary module, live while training goes on; `tasks[i]` is the task bound to seed i. `start` gives
    the members that a stage before left. `stacked=False` forces the plain loop; the default follows the task.
    """

    def __init__(self, task: Task, seeds: Sequence[int], steps: int | None = None, every: int | None = None, *,
                 start: Sequence[nn.Module] | None = None, device: str = "auto", stacked: bool | None = None,
                 chunk: int | None = None):  # fmt: skip
        self.task, self.seeds = task, [int(s) for s in seeds]
        self.total, self.every = steps or task.steps, every or task.every
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.tasks = [_move(task.bind(seed), self.device) for seed in self.seeds]
        self.start = start
        self.members = [self.fresh(i).to(self.device).train() for i in range(len(self.seeds))]
        self.rngs = [_generator(seed) for seed in self.seeds]
        wanted = task.vectorize and task.joint_optimizer
        self.stacked = len(self.seeds) > 1 and wanted if stacked is None else stacked
        count = -(-len(self.seeds) // (chunk or self._chunk_size()))
        self._divide([len(part) for part in torch.arange(len(self.seeds)).tensor_split(count)])  # of like sizes
        self.step, self.diverged = 0, {}
        self.overrides: list[dict[str, float]] = [{} for _ in self.seeds]
        self.frozen: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self.samples, self.seconds = 0, 0.0
        self._block, self._block_from, self._block_rng = None, 0, [g.get_state() for g in self.rngs]
        self.losses: torch.Tensor | None = None  # of the last step, [S]
        self.history: dict[int, dict[str, Any]] = {}  # states by step, for rollback
        self._factor = None

    def fresh(self, i: int, seed: int | None = None) -> nn.Module:
        """Member i as it is at the start, drawn from its own seed or another."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds[i] if seed is None else seed)
            return self.tasks[i].begin(self.start[i]) if self.start else self.tasks[i].init()

    def _divide(self, sizes: list[int]) -> None:
        """Train the members in chunks of these sizes."""
        self.chunks = [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
        self.ensembles = [Ensemble(self.task, self.members[c], self.stacked) for c in self.chunks]
        gathers = self.stacked and self.task.ahead > 1 and type(self.task).block is Supervised.block
        self.rows = [Rows(self.tasks[c], self.device) for c in self.chunks] if gathers else []

    def _chunk_size(self) -> int:
        if not self.stacked:
            return len(self.seeds)
        own = 16 * sum(p.numel() for p in self.members[0].parameters())
        room = CHUNK_BYTES if self.device.type == "cpu" else CHUNK_BYTES_ELSEWHERE
        return max(1, min(len(self.seeds), room // max(own, 1)))

    # ---- iteration

    def stepwise(self) -> Iterator[Tick | None]:
        """Yields after every step: a Tick where one is due, else None. Control is what the caller does in between."""
        if self.step == 0 and not self.history:
            yield self.tick()
        while self.step < self.total and len(self.diverged) < len(self.seeds):
            self.advance()
            due = self.step % self.every == 0 or self.step == self.total
            yield self.tick() if due else None

    def advance(self) -> None:
        """One optimiser step of every member."""
        began = time.perf_counter()
        batches = self._batches()
        if (factor := self.task.schedule(self.step, self.total)) != self._factor:
            self._tune(factor)
        losses = [e.step(batch) for e, batch in zip(self.ensembles, batches, strict=True)]
        self.losses = losses[0] if len(losses) == 1 else torch.cat(losses)
        self.step += 1
        self.seconds += time.perf_counter() - began

    def _tune(self, factor: float) -> None:
        self._factor = factor
        for ensemble, chunk in zip(self.ensembles, self.chunks, strict=True):
            ensemble.tune(factor, self.overrides[chunk])

    def _batches(self) -> list:
        """The batch of this step, for each chunk stacked [S, ...] or as one tuple a member."""
        if self._block is None or not self._block_from <= self.step < self._block_from + self.task.ahead:
            self._draw()
        k = self.step - self._block_from
        if self.stacked:
            chosen = [tuple(part[k] for part in block) for block in self._block]
            self.samples += chosen[0][0].shape[1] if chosen[0][0].dim() > 1 else 1
            return chosen
        chosen = [[tuple(part[k] for part in one) for one in block] for block in self._block]
        first = chosen[0][0][0]
        self.samples += first.shape[0] if first.dim() else 1
        return chosen

    def _draw(self) -> None:
        self._block_from, self._block_rng = self.step, [g.get_state() for g in self.rngs]
        self._block = [self._draw_chunk(k, chunk) for k, chunk in enumerate(self.chunks)]

    def _draw_chunk(self, k: int, chunk: slice) -> list | tuple:
        """The batches of a chunk's members: stacked, so that item k of each part is a step's [S, ...], or those of each member."""
        if self.rows and (drawn := self.rows[k].draw(self.rngs[chunk], self.task.ahead)):
            return drawn
        blocks = [self._draw_member(i) for i in range(len(self.seeds))[chunk]]
        return tuple(torch.stack(same, 1) for same in zip(*blocks, strict=True)) if self.stacked else blocks

    def _draw_member(self, i: int) -> tuple[torch.Tensor, ...]:
        task, net, rng = self.tasks[i], self.members[i], self.rngs[i]
        if task.ahead > 1:
            drawn = task.block(net, rng, self.step, task.ahead)
        else:
            drawn = tuple(part.unsqueeze(0) for part in task.batch(net, rng, self.step))
        return tuple(part.to(self.device) for part in drawn)

    def tick(self) -> Tick:
        """Measure every member where it is now, and remember the state."""
        losses = self.losses
        if losses is not None:
            for i in (~torch.isfinite(losses)).nonzero().flatten().tolist():
                self.diverged.setdefault(i, self.step)
        metrics = [self._measure(i) for i in range(len(self.seeds))]
        self._remember()
        return Tick(self.step, metrics, losses, diverged=tuple(sorted(self.diverged)))

    def _measure(self, i: int) -> dict[str, float]:
        net, task = self.members[i], self.tasks[i]
        net.eval()
        with torch.no_grad():
            found = {k: float(v) for k, v in task.metrics(net).items()}
            if self.step == self.total:
                found |= {k: float(v) for k, v in task.final(net).items()}
        net.train()
        return dict.fromkeys(found, math.nan) if i in self.diverged else found

    # ---- control

    def set(self, member: int | None = None, **changes: float) -> dict[str, tuple[Any, Any]]:
        """Change lr, weight_decay, momentum or a knob of the task from the next step on; {name: (old, new)}.

        ValueError for an unknown name or a value out of range; nothing is changed then. One member alone can be
        addressed only where members have optimisers of their own (joint_optimizer = False).
        """
        for name, value in changes.items():
            self.check(name, value, member)
        answer = {name: (self.current(name), value) for name, value in changes.items()}
        knobs = {n: v for n, v in changes.items() if n not in SETTABLE}
        for override in self.overrides if member is None else [self.overrides[member]]:
            override |= {n: v for n, v in changes.items() if n in SETTABLE}
        if knobs:
            for task in {id(t): t for t in (self.task, *self.tasks)}.values():
                task.p = dataclasses.replace(task.p, **knobs)
        self._block = None  # batches drawn ahead under the old settings are dropped
        self._tune(self.task.schedule(self.step, self.total))
        self.events.append({"step": self.step, "kind": "set", "member": member, **{n: v for n, v in changes.items()}})
        return answer

    def check(self, name: str, value: Any, member: int | None = None) -> None:
        """ValueError if `set` would refuse this."""
        if name in SETTABLE:
            low, high = SETTABLE[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} = {value} is not allowed: it must be in [{low:g}, {high:g}]")
        elif not (dataclasses.is_dataclass(self.task.p) and name in {f.name for f in dataclasses.fields(self.task.p)}):
            raise ValueError(f"{name} can not be set: it is neither {', '.join(SETTABLE)} nor a knob of the study")
        if member is not None and (self.task.joint_optimizer or name not in SETTABLE):
            raise ValueError(f"{name} can not be set for one member: the members of this run share it")

    def current(self, name: str) -> Any:
        """The value of a setting now (of the first member, where members differ); None for one that this training has not."""
        default = getattr(self.task, name, None) if name in SETTABLE else getattr(self.task.p, name, None)
        return self.overrides[0].get(name, default)

    def rollback(self, step: int) -> int:
        """Go back to the last remembered state at or before `step`; the step reached. ValueError where there is none."""
        reached = self._remembered(step)
        events = [*self.events, {"step": self.step, "kind": "rollback", "to": reached}]
        self.load(self.history[reached])
        self.events = events
        return reached

    def _remembered(self, step: int) -> int:
        known = [s for s in self.history if s <= step]
        if not known:
            raise ValueError(f"no state at or before step {step} is remembered")
        return max(known)

    def past(self, step: int) -> tuple[int, list[nn.Module]]:
        """Copies of the members as they were at the last remembered step at or before `step`, and that step.

        Training is not touched. Steps are remembered as for `rollback`; ValueError where none is early enough.
        """
        found = self._remembered(step)
        tensors = [saved for ensemble in self.history[found]["ensembles"] for saved in ensemble["members"]]
        copies = [copy.deepcopy(member) for member in self.members]
        for one, saved in zip(copies, tensors, strict=True):
            one.load_state_dict(saved)
        return found, copies

    def _remember(self) -> None:
        """Keep states for rollback within HISTORY_BYTES: step 0, and the older the sparser."""
        self.history[self.step] = self.state()
        size = 16 * sum(p.numel() for m in self.members for p in m.parameters())
        while len(self.history) > max(2, HISTORY_BYTES // max(size, 1)):
            steps = sorted(self.history)
            gaps = {b: (c - a) / (1 + steps[-1] - b) for a, b, c in zip(steps, steps[1:], steps[2:], strict=False)}
            del self.history[min(gaps, key=gaps.get)]

    # ---- state

    def state(self) -> dict[str, Any]:
        """A copy of everything that training depends on, as plain data and tensors."""
        inside = self._block is not None and self.step < self._block_from + self.task.ahead
        return {
            "step": self.step, "ensembles": [e.state() for e in self.ensembles],
            "block_from": self._block_from if inside else self.step,
            "rngs": [r.clone() for r in self._block_rng] if inside else [g.get_state() for g in self.rngs],
            "overrides": [dict(o) for o in self.overrides], "diverged": dict(self.diverged), "events": list(self.events),
            "frozen": sorted(self.frozen),
            "knobs": dataclasses.asdict(self.task.p) if dataclasses.is_dataclass(self.task.p) else None,
            "samples": self.samples, "seconds": self.seconds, "losses": None if self.losses is None else self.losses.clone(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken, in chunks as they were then."""
        if (sizes := [len(saved["members"]) for saved in state["ensembles"]]) != [len(e.members) for e in self.ensembles]:
            self._divide(sizes)
        for ensemble, saved in zip(self.ensembles, state["ensembles"], strict=True):
            ensemble.load(saved)
            ensemble.frozen = set(state["frozen"])
        for rng, saved in zip(self.rngs, state["rngs"], strict=True):
            rng.set_state(saved)
        if state["knobs"] is not None:
            for task in {id(t): t for t in (self.task, *self.tasks)}.values():
                task.p = dataclasses.replace(task.p, **state["knobs"])
        self.step, self._block = state["block_from"], None
        self.overrides, self.frozen = [dict(o) for o in state["overrides"]], set(state["frozen"])
        self.diverged, self.events = dict(state["diverged"]), list(state["events"])
        self.samples, self.seconds = state["samples"], state["seconds"]
        self.losses = None if state["losses"] is None else state["losses"].clone()
        if state["step"] > self.step:  # taken inside a block: draw it again, from the generators as they were at its start
            self._draw()
            self.step = state["step"]
        self._tune(self.task.schedule(self.step, self.total))
        self.history = {s: known for s, known in self.history.items() if s < self.step} | {self.step: state}

    def save(self, path: str | Path) -> None:
        """Write the state to a file that `Run.resume` reads."""
        torch.save({"seeds": self.seeds, "total": self.total, "every": self.every, "state": self.state()}, path)

    @classmethod
    def resume(cls, path: str | Path, task: Task, **options: Any) -> Run:
        """The run that was saved, ready to go on bit for bit."""
        saved = torch.load(path, weights_only=True)
        run = cls(task, saved["seeds"], saved["total"], saved["every"], **options)
        run.load(saved["state"])
        return run

    @property
    def budget(self) -> dict[str, float]:
        """What each member has used so far: steps, samples, forward calls; and the seconds of all together."""
        calls = self.step * len(self.task.players())
        return {"steps": self.step, "samples": self.samples, "forward_calls": calls, "seconds": self.seconds}


def _generator(seed: int) -> torch.Generator:
    # not the seed itself, or the first batch would repeat the draws of the initial weights
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 1) % 2**63)


def _move(task: Task, device: torch.device) -> Task:
    if device.type != "cpu":
        for name, value in vars(task).items():
            if isinstance(value, torch.Tensor):
                setattr(task, name, value.to(device))
            elif isinstance(value, tuple) and all(isinstance(v, torch.Tensor) for v in value):
                setattr(task, name, tuple(v.to(device) for v in value))
    return task
