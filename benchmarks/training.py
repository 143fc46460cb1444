"""Training speed: one seed against a bare PyTorch loop and other libraries, many seeds against as many loops and against JAX.

A bare loop is PyTorch as people write it, with `torch.optim.Adam`; the ratio to one with `fused=True` stands beside it.
`python benchmarks/training.py [--only CASE]`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import peers
import torch
from nets import Conv, Deep, Digits, Gru, Params, Pinn, Transformer, Wide, bare, ours
from table import Row, absent, keep, turns

AREA = "training"
ONE = (("MLP 64-64-10", Digits), ("CNN 16-32", Conv), ("GRU 48", Gru), ("transformer d32", Transformer))
MANY = (  # case, task, seeds, goal
    ("MLP 64-64-10", Digits, 16, None), ("MLP 64-64-10", Digits, 64, 0.12), ("MLP 64-256-256-10", Wide, 16, 0.55),
    ("PINN 2 x 32, u''", Pinn, 16, 0.15), ("CNN 16-32", Conv, 16, 0.8), ("transformer d32", Transformer, 16, 0.7),
)  # fmt: skip


def one_seed(calls: int, rounds: int) -> Iterator[Row]:
    """A Run of one seed; for the MLP also skorch, Lightning and Keras. The goal is 1.05 of a bare loop, and ahead of them all."""
    for case, make in ONE:
        task = make(Params())
        programs = {"bare loop": bare(task), "fused loop": bare(task, fused=True), "claimlab": ours(task, 1)}
        missing = []
        for peer in (peers.skorch, peers.lightning, peers.keras) if make is Digits else ():
            try:
                programs[peer.__name__] = peer(task)
            except ImportError as error:
                missing.append(absent(AREA, f"one seed, {case}", peer.__name__, error))
        times = turns(programs, calls, rounds)
        for name, spent in times.items():
            goal = 1.05 if name == "claimlab" else None
            yield Row(AREA, f"one seed, {case}", name, spent, "ms a step", "bare loop", spent / times["bare loop"], goal)
        yield from missing


def many_seeds(calls: int, rounds: int) -> Iterator[Row]:
    """S seeds in one Run against S bare loops, which are timed once and counted S times."""
    for case, make, seeds, goal in MANY:
        task, name = make(Params()), f"{seeds} seeds, {case}"
        programs = {"bare loop": bare(task), "fused loop": bare(task, fused=True), "claimlab": ours(task, seeds)}
        times = turns(programs, calls, rounds)
        loops = seeds * times["bare loop"]
        note = f"{times['claimlab'] / seeds / times['fused loop']:.3f} of fused loops"
        yield Row(AREA, name, "bare loops", loops, "ms a step")
        yield Row(AREA, name, "claimlab", times["claimlab"], "ms a step", "bare loops", times["claimlab"] / loops, goal, note)


def against_jax(rounds: int) -> Iterator[Row]:
    """The same seeds in `jit(vmap(step))`; compiling is counted apart."""
    for case, make, seeds in (("MLP 64-64-10", Digits, 64), ("MLP 64-256-256-10", Wide, 16)):
        name = f"{seeds} seeds, {case}, JAX"
        try:
            program, compiling = peers.jax(make.sizes, seeds)
        except ImportError as error:
            yield absent(AREA, name, "jax", error)
            continue
        times = turns({"jax": program, "claimlab": ours(make(Params()), seeds)}, 20, rounds)
        yield Row(AREA, name, "jax", times["jax"], "ms a step", note=f"and {compiling:.1f} s to compile")
        yield Row(AREA, name, "claimlab", times["claimlab"], "ms a step", "jax", times["claimlab"] / times["jax"], 1.2)


def overhead(calls: int, rounds: int) -> Iterator[Row]:
    """What a run does between two steps, and logging every twentieth, on a step of about half a millisecond.

    One training takes turns with itself, as two copies differ by more than is asked for. The median leaves out what is
    written to the disk five times a second: it stands in the note.
    """
    from claimlab.experiment import Experiment
    from claimlab.ledger import Ledger
    from claimlab.steering import Driver
    from claimlab.study import find

    with tempfile.TemporaryDirectory() as folder:
        ledger, study, count = Ledger(f"sqlite:///{folder}/ledger.db"), find("mixup"), 0
        run, plain = ledger.start_run(study.slug, {}), ours(Deep(Params()), 1)
        driver = Driver(study, Experiment(study, study.make({})), ledger, run)

        def logged():
            nonlocal count
            plain()
            driver.between()
            count += 1
            if count % 20 == 0:
                ledger.log(run, [("arm", 0, count, "loss", 0.5), ("arm", 0, count, "accuracy", 0.5)])

        times = turns({"alone": plain, "steered and logged": logged}, 2 * calls, 5 * rounds)
        ledger.flush()
        began = time.perf_counter()
        for _ in range(100):
            ledger.log(run, [("arm", 0, count, "loss", 0.5), ("arm", 0, count, "accuracy", 0.5)])
            ledger.flush()
        written = 10 * (time.perf_counter() - began)
        looked = statistics.median(_cold(plain, driver.obey) for _ in range(50))
        ledger.close()
    yield Row(AREA, "steering and ledger", "alone", times["alone"], "ms a step", "alone", 1.0)
    share = times["steered and logged"] / times["alone"]
    note = f"five times a second {written:.2f} ms to write, fifty times {looked:.2f} ms to look at commands"
    yield Row(AREA, "steering and ledger", "steered and logged", times["steered and logged"], "ms a step", "alone", share, 1.01, note)


def _cold(step: Callable[[], object], look: Callable[[], object]) -> float:
    """Milliseconds of a look after so many steps that the processor's caches have forgotten the last one."""
    for _ in range(20):
        step()
    began = time.perf_counter()
    look()
    return 1e3 * (time.perf_counter() - began)


def accelerator(calls: int, rounds: int) -> Iterator[Row]:
    """1,024 seeds there against 16 here; a row that says so where there is none."""
    case, task = "1,024 seeds on an accelerator", Digits(Params())
    if not torch.cuda.is_available():
        yield Row(AREA, case, "claimlab", None, "ms a step", goal=1.0, note="no accelerator on this machine")
        return
    far = ours(task, 1024, "cuda")

    def whole() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            far()
        torch.cuda.synchronize()  # once at the end: nothing in between waits for it
        return (time.perf_counter() - began) / calls

    times = turns({"16 seeds, processor": ours(task, 16), "claimlab": whole}, calls, rounds)
    yield Row(AREA, case, "16 seeds, processor", times["16 seeds, processor"], "ms a step")
    share = times["claimlab"] / times["16 seeds, processor"]
    yield Row(AREA, case, "claimlab", times["claimlab"], "ms a step", "16 seeds, processor", share, 1.0)


CASES = {
    "accelerator": accelerator, "one": one_seed, "many": many_seeds, "jax": lambda _calls, rounds: against_jax(rounds),
    "overhead": overhead,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    found = (row for name, case in CASES.items() if options.only in (None, name) for row in case(options.calls, options.rounds))
    if options.only:
        for row in found:
            print(row, flush=True)
    else:
        keep(found)


if __name__ == "__main__":
    main()
