"""S members of one task trained side by side: as one stacked program, or one after the other, with the same results.

Stacked: leaves [S, ...] own the storage, the members are live views of them, one batched call gives the loss of all.
Loop: each member owns its parameters. An ensemble is a chunk of a run, small enough to stay in the cache.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from claimlab.training.eager import spare_the_compiler
from claimlab.training.stacked import Stacked
from claimlab.training.task import Task

spare_the_compiler()


class Ensemble:
    """Members, their optimisers and one training step. `stacked=False` runs the plain loop."""

    def __init__(self, task: Task, members: list[nn.Module], stacked: bool):
        self.task, self.members, self.stacked = task, members, stacked
        self.losses = dict(task.players())
        self.frozen: set[str] = set()  # names of parameters that stay where they are
        if stacked:
            self.leaves, self.constants = _stack(members)
            self.names = {id(leaf): name for name, leaf in self.leaves.items()}
            self.every = Stacked(members[0], self.leaves | self.constants, len(members))
        self.optimizers = {name: self._optimizers(name) for name in self.losses}
        self.owned = {name: [_owned(m, name) for m in members] for name in self.losses if not stacked}

    def _optimizers(self, player: str) -> list[tuple[torch.optim.Optimizer, list[int]]]:
        """The optimisers of one player, each with the indices of the members that it moves."""
        everyone = list(range(len(self.members)))
        if self.stacked:
            return [(self._optimizer(player, [self.leaves]), everyone)]
        trainable = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in self.members]
        if self.task.joint_optimizer:
            return [(self._optimizer(player, trainable), everyone)]
        return [(self._optimizer(player, [trainable[i]]), [i]) for i in everyone]

    def _optimizer(self, player: str, owned: list[dict[str, Tensor]]) -> torch.optim.Optimizer:
        special = self.task.groups()
        groups: dict[str, dict[str, Any]] = {}
        for named in owned:
            for name, leaf in named.items():
                if player and not name.startswith(player + "."):
                    continue
                key = next((k for k in special if name.startswith(k)), "")
                base = {"lr": self.task.lr, "weight_decay": self.task.weight_decay}
                group = groups.setdefault(key, {"params": [], "key": key, **base, **special.get(key, {})})
                group["params"].append(leaf)
        return self.task.optimizer(list(groups.values()))

    def tune(self, factor: float, overrides: list[dict[str, float]]) -> None:
        """Write learning rate times `factor`, weight decay and overrides (one dict a member) into the optimisers."""
        special = self.task.groups()
        for optimizer, owners in (pair for pairs in self.optimizers.values() for pair in pairs):
            override = overrides[owners[0]]
            for group in optimizer.param_groups:
                own = special.get(group.get("key", ""), {})
                lr = own["lr"] if "lr" in own else override.get("lr", self.task.lr)
                group["lr"] = lr * factor
                if "weight_decay" in group:
                    group["weight_decay"] = override.get("weight_decay", own.get("weight_decay", self.task.weight_decay))
                for name in {"momentum"} & set(override) & set(group):
                    group[name] = override[name]

    def step(self, batch: list[tuple[Tensor, ...]] | tuple[Tensor, ...]) -> Tensor:
        """One step of every player on the batch (stacked [S, ...], or one tuple a member); the summed losses [S]."""
        total = None
        for player, loss in self.losses.items():
            move = self._move_stacked if self.stacked else self._move_loop
            losses = move(player, loss, batch)
            total = losses if total is None else total + losses
        if self.task.project:
            self._project()
        return total

    def _move_stacked(self, player, loss, batch) -> Tensor:
        ((optimizer, _),) = self.optimizers[player]
        moved = [leaf for group in optimizer.param_groups for leaf in group["params"]]
        if self.task.gradients:
            with torch.no_grad():
                losses, named = self.every(self.task.gradients, *batch)
            found = [named.get(self.names[id(leaf)]) for leaf in moved]
        else:
            losses = self.every(loss, *batch)
            found = torch.autograd.grad(losses.sum(), moved, allow_unused=True)
        for leaf, gradient in zip(moved, found, strict=True):
            held = gradient is None or self.names[id(leaf)] in self.frozen  # an optimiser passes over what has no gradient
            # the fused optimisers read storage in order and take no notice of strides
            leaf.grad = None if held else gradient.contiguous()
        optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def _project(self) -> None:
        every = [(self.leaves | self.constants, self.every(self.task.project))] if self.stacked else [
            (m.state_dict(keep_vars=True), self.task.project(m)) for m in self.members]  # fmt: skip
        for held, found in every:
            for name in found.keys() - self.frozen:
                held[name].copy_(found[name])

    def _move_loop(self, player, loss, batch) -> Tensor:
        losses = [torch.empty(())] * len(self.members)

        def evaluate(i: int) -> Tensor:
            if self.task.gradients:
                losses[i] = self._given(self.members[i], batch[i])
            else:
                losses[i] = loss(self.members[i], *batch[i])
                losses[i].backward(inputs=owned[i])
            for name in self.frozen:
                self.members[i].get_parameter(name).grad = None
            return losses[i]

        owned = self.owned[player]
        for optimizer, owners in self.optimizers[player]:
            if self.task.joint_optimizer:
                optimizer.zero_grad()
                for i in owners:
                    evaluate(i)
                optimizer.step()
            else:  # a closure, so that L-BFGS and SAM can evaluate again
                optimizer.step(lambda o=optimizer, i=owners[0]: (o.zero_grad(), evaluate(i))[1])
        return torch.stack([one.detach() for one in losses])

    @torch.no_grad()
    def _given(self, member: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Write the gradients that the task computes itself; the loss."""
        loss, named = self.task.gradients(member, *batch)
        for name, gradient in named.items():
            member.get_parameter(name).grad = gradient
        return loss

    def tensors(self, name: str) -> list[Tensor]:
        """What the optimisers know as the parameter `name`: its stack, or one tensor a member."""
        if self.stacked:
            return [self.leaves[name]] if name in self.leaves else []
        return [m.get_parameter(name) for m in self.members]

    def gradient(self, name: str, member: int) -> Tensor | None:
        """The gradient of the last step for one member, if there was one."""
        if not self.stacked:
            return self.members[member].get_parameter(name).grad
        leaf = self.leaves.get(name)
        return None if leaf is None or leaf.grad is None else leaf.grad[member]

    def state(self) -> dict[str, Any]:
        """A copy of parameters, buffers and optimisers."""
        tensors = [{k: v.detach().clone() for k, v in m.state_dict(keep_vars=True).items()} for m in self.members]
        optimizers = {p: [copy.deepcopy(o.state_dict()) for o, _ in pairs] for p, pairs in self.optimizers.items()}
        return {"members": tensors, "optimizers": optimizers}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a copy made by `state`, in place, so that members stay views; without optimisers the networks alone."""
        with torch.no_grad():
            for member, tensors in zip(self.members, state["members"], strict=True):
                for name, tensor in member.state_dict(keep_vars=True).items():
                    tensor.copy_(tensors[name])
        for player, pairs in self.optimizers.items() if state["optimizers"] else ():
            for (optimizer, _), saved in zip(pairs, state["optimizers"][player], strict=True):
                optimizer.load_state_dict(copy.deepcopy(saved))


def _owned(member: nn.Module, player: str) -> list[Tensor]:
    prefix = player + "." if player else ""
    return [p for n, p in member.named_parameters() if p.requires_grad and n.startswith(prefix)]


def _stack(members: list[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack parameters and buffers [S, ...] and turn the members into views of the stacks."""
    leaves, constants = {}, {}
    for name, first in members[0].named_parameters():
        stack = torch.stack([m.get_parameter(name).detach() for m in members])
        for i, member in enumerate(members):
            member.get_parameter(name).data = stack[i]
        (leaves if first.requires_grad else constants)[name] = stack.requires_grad_(first.requires_grad)
    for name, _ in members[0].named_buffers():
        stack = torch.stack([m.get_buffer(name) for m in members])
        for i, member in enumerate(members):
            owner, _, short = name.rpartition(".")
            member.get_submodule(owner)._buffers[short] = stack[i]
        constants[name] = stack
    return leaves, constants
