"""The sum of clipped gradients of single examples against Opacus: same network, same batch, same sum.

`python benchmarks/private.py`
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from nets import IMAGES, LABELS
from table import Row, absent, keep, turns
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.models import mlp
from claimlab.studies.robustness import _clipless_dpsgd_method as private

AREA, GOAL, CLIP = "private", 0.7, 1.0
CASES = (("MLP 64-128-128-10, batch 256", (64, 128, 128, 10), 256), ("MLP 64-512-512-10, batch 256", (64, 512, 512, 10), 256))


def slopes(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return private.logit_slopes("softmax", logits, y, 1.0)


def opacus(net: nn.Module, x: Tensor, y: Tensor):
    """Opacus's gradients of single examples by its hooks, clipped and summed as its optimiser does."""
    from opacus import GradSampleModule

    module = GradSampleModule(net)

    def go() -> list[Tensor]:
        for p in module.parameters():
            p.grad_sample = None
        F.cross_entropy(module(x), y, reduction="sum").backward()
        every = [p.grad_sample for p in module.parameters()]
        norms = torch.stack([g.reshape(len(g), -1).norm(2, dim=-1) for g in every], dim=1).norm(2, dim=1)
        factor = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        return [torch.einsum("i,i...", factor, g) for g in every]

    return go


def opacus_ghost(net: nn.Module, x: Tensor, y: Tensor):
    """Opacus's clipping through norms: a pass for the norms, and one for the weighted loss."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    module = GradSampleModuleFastGradientClipping(net, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum")

    def go() -> list[Tensor]:
        module.zero_grad()
        losses = F.cross_entropy(module(x), y, reduction="none")
        losses.sum().backward(retain_graph=True)
        factor = module.get_clipping_coef()
        module.zero_grad()
        module.disable_hooks()
        (factor * losses).sum().backward()
        module.enable_hooks()
        return [p.grad for p in module.parameters()]

    return go


def rows(rounds: int = 7) -> Iterator[Row]:
    """Two routes of ours: through norms alone, by which the lab trains, and with the gradient of every example formed."""
    torch.set_num_threads(1)
    for case, sizes, batch in CASES:
        torch.manual_seed(0)
        net = mlp(*sizes)
        layers = [m for m in net if isinstance(m, nn.Linear)]
        for m in layers:
            m.bias = None  # the lab's private networks have none
        steps = tuple(one for k in range(len(layers)) for one in (private.Linear(k), torch.relu))[:-1]
        weights, shapes = [m.weight.detach() for m in layers], [(n,) for n in sizes[1:]]
        x, y, mask = IMAGES[:batch], LABELS[:batch], torch.ones(batch)

        def norms(w=weights, x=x, y=y, mask=mask, s=steps, shapes=shapes):
            return private.ghost_sum(s, w, x, y, mask, shapes, slopes, CLIP)[1]

        def formed(w=weights, x=x, y=y, mask=mask, s=steps):
            return private.clipped_sum(s, w, x, y, mask, slopes, CLIP)[1]

        programs = {"claimlab": norms, "claimlab, gradients formed": formed}
        try:
            programs |= {"opacus": opacus(copy.deepcopy(net), x, y), "opacus, ghost clipping": opacus_ghost(copy.deepcopy(net), x, y)}
        except ImportError as error:
            yield absent(AREA, case, "opacus", error)
        for program in programs.values():
            for one, other in zip(program(), norms(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        times = turns({name: (lambda p=p: (p(), None)[1]) for name, p in programs.items()}, 20, rounds)
        for name, spent in times.items():
            ratio = {"against": "opacus", "ratio": spent / times["opacus"]} if "opacus" in times else {}
            yield Row(AREA, case, name, spent, "ms", **ratio, goal=GOAL if name == "claimlab" and ratio else None)


if __name__ == "__main__":
    keep(rows())
