"""Joins an Experiment to the ledger: logs its ticks, lets it be steered between two steps, records verdicts and figures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from claimlab import experiment as experiments
from claimlab.checkpoints import Shelf
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger, home
from claimlab.params import SETTABLE, KnobError, values
from claimlab.steering import Driver, Stopped
from claimlab.study import Study, find
from claimlab.training import Run, Tick, surgery

__all__ = ["Stopped", "execute", "record", "resume"]
BEAT = 0.5
END = object()


def execute(study: Study, params: Any, ledger: Ledger, run: str, *, seeds: Sequence[int] | None = None,
            on_tick: Callable[[Experiment, str, Tick], None] | None = None,
            begin: Callable[[Driver], None] | None = None) -> Experiment:  # fmt: skip
    """Drive the experiment of `study` as run `run` of the ledger and return it finished and judged.

    Raises Stopped after a stop command. Points are kept whatever happens. The status `finished` is the caller's to set.
    `begin` may set the experiment to a state before its first step.
    """
    params = study.module.Params(**values(params))
    lab = Experiment(study, params, seeds)
    driver, known = Driver(study, lab, ledger, run), {}
    ledger.set_status(run, "running")
    with _Heart(ledger, run, lab):
        try:
            if begin is not None:
                begin(driver)
            while (pair := next(lab.stepwise(), END)) is not END:  # looked up each time: a rollback begins it anew
                if pair is not None:
                    record(lab, ledger, run, *pair)
                    if on_tick is not None:
                        on_tick(lab, *pair)
                known = _introduce(lab, ledger, run, known)
                driver.between()
            _conclude(lab, ledger, run, whole=begin is None)
            driver.shelf.end(lab)
        finally:
            ledger.flush()
            driver.shelf.settle()
    return lab


def resume(ledger: Ledger, run: str) -> Experiment:
    """Go on with a run that has ended early, from its last checkpoint, or begin a fork; the notebook is not run.

    KnobError for a run that goes on or is finished, or that has no checkpoint.
    """
    row = ledger.run(run)
    study, shelf = find(row["study"]), Shelf(ledger, run)
    born = next((e["payload"] for e in ledger.events(run) if e["kind"] == "forked"), None)
    if row["status"] not in ("queued", "failed", "stopped", "timed out", "lost"):
        raise KnobError(f"the run {run} is {row['status']}; only one that has ended early can be resumed")
    known = shelf.all()
    if not known and born is None:
        raise KnobError(f"the run {run} has no checkpoint to go on from; start it again: claimlab run {study.slug}")

    def begin(driver: Driver) -> None:
        if known:
            return driver.shelf.take(driver.lab, known[-1]["name"], by="resume")
        driver.lab.load(Shelf(ledger, born["parent"]).read(born["checkpoint"]))
        ledger.log(run, [tuple(one[1:]) for one in driver.lab.table.itertuples(index=False)])
        if change := born["change"]:
            plan = driver.plan(change["verb"], change, change["arm"], change["seed"])
            driver.act(plan, change["verb"], change, {"seed": change["seed"], "by": "fork"})
        return None

    lab = execute(study, study.make(row["params"]), ledger, run, seeds=row["seeds"], begin=begin)
    ledger.finish(run)
    ledger.set_status(run, "finished")
    return lab


def record(lab: Experiment, ledger: Ledger, run: str, arm: str, tick: Tick) -> None:
    """Log one tick; a member that has diverged since the last one is explained."""
    ledger.log(run, [row[1:] for row in experiments.rows(lab.study.slug, arm, lab.seeds, tick)])
    for member in set(tick.diverged) - lab.told.get(arm, set()):
        lab.told.setdefault(arm, set()).add(member)
        chain = lab.arms[arm]
        trained = getattr(chain, "run", chain)
        facts = surgery.explain(trained, member) if isinstance(trained, Run) else {}
        ledger.event(run, "diverged", step=tick.step, arm=arm, seed=lab.seeds[member], payload=facts)


def _introduce(lab: Experiment, ledger: Ledger, run: str, known: dict[str, int]) -> dict[str, int]:
    """Record the layers and settings of each arm that has come up, or entered another stage, since `known`."""
    here = {name: getattr(arm, "index", 0) for name, arm in lab.arms.items()}
    for name in here if here != known else ():
        trained = getattr(lab.arms[name], "run", lab.arms[name])
        if here[name] != known.get(name) and isinstance(trained, Run):
            settings = (*SETTABLE, *(k.name for k in lab.study.knobs if k.live))
            ledger.event(run, "layers", step=lab.arms[name].step, arm=name, payload=surgery.describe(trained, settings))
    return here


def _conclude(lab: Experiment, ledger: Ledger, run: str, whole: bool) -> None:
    ledger.flush()
    ledger.record_verdicts(run, [v.as_dict() for v in lab.verdicts()])
    ledger.event(run, "budget", payload={"arms": lab.budgets.to_dict("records")})
    folder = home() / run / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        drawn = lab.figures()
    except Exception as error:  # a study may draw from what training remembers, and what goes on elsewhere remembers less
        if whole:
            raise
        return ledger.event(run, "error", payload={"text": f"no figures: {type(error).__name__}: {error}"})
    for name, figure in drawn.items():
        path = folder / f"{name}.json"
        path.write_text(figure.to_json(), encoding="utf-8")
        ledger.artifact(run, f"figure:{name}", str(path))


class _Heart:
    """Beats from a thread of its own, so that a long step is not taken for a dead process."""

    def __init__(self, ledger: Ledger, run: str, lab: Experiment):
        self.url, self.run, self.lab = ledger.url, run, lab
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(timeout=5)

    def _beat(self) -> None:
        ledger = Ledger(self.url)
        while True:
            ledger.heartbeat(self.run, self.lab.done, self.lab.total)
            if self.over.wait(BEAT):
                break
        ledger.heartbeat(self.run, self.lab.done, self.lab.total)
        ledger.close()
