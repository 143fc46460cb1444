"""Training on a device that is not the processor, without one at hand: tensors without content refuse to tell it, so that a step
that ends has asked for no number and made every tensor where it belongs."""

import pytest
import torch
from torch import nn
from torch.func import jvp

from claimlab.models import mlp
from claimlab.training import Run, Supervised, Task

X, Y = torch.randn(90, 6, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3


class Classifier(Supervised):
    x, y, batch_size, ahead = X, Y, 8, 5

    def init(self):
        return mlp(6, 8, 3)


class Normed(Classifier):
    def init(self):
        return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.LayerNorm(4), nn.Flatten(), nn.Linear(16, 3))


class Equation(Task):
    def init(self):
        return mlp(1, 8, 1, activation=nn.Tanh)

    def batch(self, net, rng, step):
        return (torch.rand(16, 1, generator=rng),)

    def loss(self, net, x):
        one = torch.ones_like(x)
        return jvp(lambda z: jvp(net, (z,), (one,))[1], (x,), (one,))[1].square().mean()


class Clipped(Classifier):
    """Gradients of its own, and weights that are projected after each step."""

    def gradients(self, net, x, y):
        return self.loss(net, x, y), {name: weight.detach().clamp(-0.1, 0.1) for name, weight in net.named_parameters()}

    def project(self, net):
        return {"0.weight": net[0].weight.clamp(-1, 1)}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("make", [Classifier, Normed, Equation, Clipped], ids=lambda m: m.__name__)
def test_a_step_asks_the_device_for_no_number(make, seeds, monkeypatch):
    monkeypatch.setattr(make, "optimizer", lambda self, groups: torch.optim.Adam(groups, fused=False))  # fused has no such device
    run = Run(make(None), range(seeds), 12, 12, device="meta", chunk=2)
    for _ in range(12):
        run.advance()
    assert run.step == 12 and run.losses.device.type == "meta" and run.losses.shape == (seeds,)
    assert {p.device.type for member in run.members for p in member.parameters()} == {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        run.losses.tolist()  # the check can fail: asking is refused


def test_far_from_the_processor_chunks_are_large(monkeypatch):
    monkeypatch.setattr("claimlab.training.run.CHUNK_BYTES", 10_000)
    near, far = (Run(Classifier(None), range(30), 1, 1, device=device) for device in ("cpu", "meta"))
    assert len(near.chunks) > 1 and len(far.chunks) == 1
