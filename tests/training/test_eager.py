"""Optimisers without the compiler: it is not loaded, and every optimiser does what it does in a torch that was left alone."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
{first}
import torch

def trained(make):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=rng), torch.randn(40, 1, generator=rng)
    weight = torch.zeros(3, 1, requires_grad=True)
    optimizer = make([weight])
    def closure():
        optimizer.zero_grad()
        loss = (x @ weight - y).square().mean()
        loss.backward()
        return loss
    for _ in range(3):
        optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)
    return [value.hex() for value in weight.detach().flatten().double().tolist()]

kinds = {{n: k for n, k in vars(torch.optim).items() if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)}}
for name in sorted(kinds.keys() - {{"Optimizer", "SparseAdam"}}):
    print(name, *trained(lambda given: kinds[name](given, lr=0.01)))
print("fused", *trained(lambda given: torch.optim.Adam(given, lr=0.01, fused=True)))
rate = torch.tensor(0.1, requires_grad=True)  # a step that is to be differentiated with respect to its rate
weight = torch.ones(2, requires_grad=True) * 1.0
weight.grad = torch.tensor([1.0, -2.0])
torch.optim.SGD([weight], lr=rate, differentiable=True).step()
print("differentiable", *torch.autograd.grad(weight.sum(), rate)[0].flatten().tolist())
print("torch._dynamo" in sys.modules, file=sys.stderr)
"""


def outcome(first: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM.format(first=first)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.strip()


@pytest.fixture(scope="module")
def plain():
    return outcome("")


def test_the_compiler_is_not_loaded_and_the_numbers_are_those_of_torch_alone(plain):
    ours, loaded = outcome("import claimlab.training")
    assert (loaded, plain[1]) == ("False", "True")
    assert ours == plain[0]
    assert ours.count("\n") >= 12 and ours.endswith("differentiable 1.0\n")


def test_where_the_compiler_is_there_already_nothing_is_changed(plain):
    assert outcome("import torch._dynamo, claimlab.training") == plain
