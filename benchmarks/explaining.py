"""Attribution maps against captum and against the loops in which other libraries make them: same network, same forward calls.

What both give is compared before it is timed. `python benchmarks/explaining.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from table import Row, absent, keep, turns
from torch import Tensor, nn
from torch.nn import functional as F

from claimlab.parts.attribution import fast, integrated, predicted
from claimlab.studies.attribution import _fullgrad_method as fullgrad
from claimlab.studies.attribution import _sobol_attribution_method as sobol
from claimlab.studies.attribution._sobol_attribution_data import network

AREA, GOAL = "explaining", 0.5
IMAGES, SIDE, GRID, POINTS, DESIGN, BATCH = 16, 32, 8, 32, 16, 64


def setting() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network with batch statistics of its own, images, and the classes that it gives them."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, x = network("deep", 3, 10), torch.rand(IMAGES, 3, SIDE, SIDE, generator=rng)
    for _ in range(20):
        net(torch.rand(64, 3, SIDE, SIDE, generator=rng))
    return net.eval(), x, predicted(net.eval(), x)


def side_by_side(case: str, calls: int, own: Callable, peers: dict[str, Callable], rounds: int) -> Iterator[Row]:
    """Times of the same maps made in several ways; the goal is one half of the first peer's."""
    made, programs, missing = own(), {"claimlab": own}, []
    for name, peer in peers.items():
        try:
            torch.testing.assert_close(peer(), made, rtol=1e-3, atol=1e-4)
            programs[name] = peer
        except ImportError as error:
            missing.append(absent(AREA, case, name, error))
    times = turns({name: (lambda p=p: (p(), None)[1]) for name, p in programs.items()}, 1, rounds)
    for name, spent in times.items():
        others = {} if name == "claimlab" else {"against": "", "ratio": None}
        first = next((n for n in times if n != "claimlab"), "")
        ratio = {"against": first, "ratio": spent / times[first], "goal": GOAL} if name == "claimlab" and first else others
        yield Row(AREA, case, name, spent, "ms", **ratio, note=f"{calls} forward calls an image" if name == "claimlab" else "")
    yield from missing


def integrated_gradients(rounds: int) -> Iterator[Row]:
    net, x, y = setting()

    def captum(at_once: int | None) -> Callable[[], Tensor]:
        def go() -> Tensor:
            from captum.attr import IntegratedGradients

            options = {"n_steps": POINTS, "method": "riemann_middle", "internal_batch_size": at_once}
            return IntegratedGradients(net).attribute(x, target=y, **options)

        return go

    peers = {"captum": captum(None), f"captum, {IMAGES} at once": captum(IMAGES)}
    yield from side_by_side("integrated gradients", POINTS, lambda: integrated(net, x, y, POINTS), peers, rounds)


def occlusion(rounds: int) -> Iterator[Row]:
    net, x, y = setting()
    masks, quick = sobol.spread(1 - torch.eye(GRID**2), (SIDE, SIDE)), fast(net)

    def own() -> Tensor:
        with torch.no_grad():
            whole = quick(x).gather(1, y[:, None])
        return whole - sobol.ask(quick, x, y, masks, torch.zeros(1, 1, 1, 1), "logit")

    def captum(at_once: int) -> Callable[[], Tensor]:
        def go() -> Tensor:
            from captum.attr import Occlusion

            cell = (3, SIDE // GRID, SIDE // GRID)
            made = Occlusion(net).attribute(x, cell, strides=cell, target=y, perturbations_per_eval=at_once)
            return made[:, 0, :: cell[1], :: cell[2]].flatten(1)

        return go

    peers = {"captum": captum(1), f"captum, {BATCH} at once": captum(BATCH)}
    yield from side_by_side("occlusion", GRID**2 + 1, own, peers, rounds)


def sobol_indices(rounds: int) -> Iterator[Row]:
    """Total indices of a grid's cells; the loop goes image by image through batches of masks."""
    net, x, y = setting()
    masks = sobol.design(DESIGN, GRID**2, "qmc", np.random.default_rng(0)).rows()
    quick, black = fast(net), torch.zeros(1, 1, 1, 1)

    def own() -> Tensor:
        f = sobol.ask(quick, x, y, sobol.spread(masks, (SIDE, SIDE)), black, "logit")
        return sobol.total_index(sobol.answers(f, DESIGN))

    def loop() -> Tensor:
        found = []
        with torch.no_grad():
            for one, label in zip(x, y.tolist(), strict=True):
                large = [F.interpolate(m.view(-1, 1, GRID, GRID), (SIDE, SIDE)) for m in masks.split(BATCH)]
                found.append(torch.cat([net(one * m)[:, label] for m in large]))
        return sobol.total_index(sobol.answers(torch.stack(found), DESIGN))

    yield from side_by_side("sobol-attribution", DESIGN * (GRID**2 + 2), own, {"loop over images": loop}, rounds)


def full_gradients(rounds: int) -> Iterator[Row]:
    """A map of every layer's bias; the loop goes image by image and takes the gradient of one layer after the other."""
    net, x, y = setting()

    def loop() -> Tensor:
        found = []
        for one, label in zip(x, y.tolist(), strict=True):
            seen: list[tuple[nn.Module, Tensor]] = []
            layers = [m for m in net if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
            hooks = [m.register_forward_hook(lambda m, _, out, into=seen: into.append((m, out))) for m in layers]
            given = one[None].clone().requires_grad_()
            logit = net(given)[0, label]
            total = fullgrad.psi((torch.autograd.grad(logit, given, retain_graph=True)[0] * given).detach(), "abs_rescale_layer")
            for m, out in seen:
                bias = m.bias if isinstance(m, nn.Conv2d) else m.bias - m.running_mean * m.weight / torch.sqrt(m.running_var + m.eps)
                term = torch.autograd.grad(logit, out, retain_graph=True)[0] * bias[:, None, None]
                small = fullgrad.psi(term.detach(), "abs_rescale_layer")
                total = total + F.interpolate(small[:, None], (SIDE, SIDE), mode="bilinear")[:, 0]
            for hook in hooks:
                hook.remove()
            found.append(total)
        return torch.cat(found)

    yield from side_by_side("fullgrad", 1, lambda: fullgrad.picture(fullgrad.full_gradient(net, x, y)), {"loop over images": loop}, rounds)


def rows(rounds: int = 7) -> Iterator[Row]:
    torch.set_num_threads(1)
    for case in (integrated_gradients, occlusion, sobol_indices, full_gradients):
        yield from case(rounds)


if __name__ == "__main__":
    keep(rows())
