"""What was done to a run, done again: the same changes at the same steps, for the same seeds or for others.

The same seeds give the same numbers. Other seeds answer whether it was luck: the changed arms are judged, seed by seed,
against the same arms left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from claimlab import claims, live
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError, values
from claimlab.runner import provenance
from claimlab.study import Study, find
from claimlab.verbs import CHANGES

CHANGED, ALONE = "with the changes", "left alone"


def script(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The changes among the events of a run that no rollback has undone: verb, payload, arm, step, seed."""
    kept: list[dict[str, Any]] = []
    at: dict[str, int] = {}  # how many changes stood when a checkpoint was written
    for event in events:
        if event["kind"] in CHANGES:
            payload = {k: v for k, v in event["payload"].items() if k in ("name", "value", "layer")}
            kept.append({"verb": event["kind"], "payload": payload, **{k: event[k] for k in ("arm", "step", "seed")}})
        elif event["kind"] == "checkpoint":
            at[event["payload"]["name"]] = len(kept)
        elif event["kind"] == "rollback":
            del kept[at[event["payload"]["checkpoint"]] :]
    return kept


def replay(ledger: Ledger, run: str, seeds: Sequence[int] | None = None) -> tuple[str, list[claims.Verdict]]:
    """Run again what happened to `run`; the new run, and for other seeds what the changes did to each claim's metric.

    KnobError for a run that was never changed, or that is a fork and so has no beginning of its own.
    """
    row, events = ledger.run(run), ledger.events(run)
    if any(e["kind"] == "forked" for e in events):
        raise KnobError(f"the run {run} is a fork of {row['parent']}; replay that one")
    todo = script(events)
    if not todo:
        raise KnobError(f"nothing was changed in the run {run}, so there is nothing to replay")
    study = find(row["study"])
    params, chosen = study.make(row["params"]), list(seeds if seeds is not None else row["seeds"])
    new = ledger.start_run(study.slug, values(params), profile=row["profile"], seeds=chosen, source_hash=study.source_hash,
                           versions=provenance(study), parent=run, branch="replay")  # fmt: skip

    def begin(driver) -> None:
        driver.script = [dict(one) for one in todo]

    lab = live.execute(study, params, ledger, new, seeds=chosen, begin=begin)
    verdicts = [] if chosen == row["seeds"] else _compare(study, params, lab, chosen, {one["arm"] for one in todo})
    ledger.event(new, "replayed", payload={"of": run, "verdicts": [v.as_dict() for v in verdicts]})
    ledger.finish(new)
    ledger.set_status(new, "finished")
    return new, verdicts


def _compare(study: Study, params: Any, lab: Experiment, seeds: list[int], arms: set[str]) -> list[claims.Verdict]:
    """For each metric of a claim: the changed arms against the same ones left alone, margin 0."""
    plain = Experiment(study, params, seeds, sorted(arms)).run()
    found = []
    for metric, arm, better in dict.fromkeys((c.metric, a, c.better) for c in study.claims for a in (c.arm, c.baseline) if a in arms):
        both = [t[t["arm"] == arm].assign(arm=name) for name, t in ((CHANGED, lab.table), (ALONE, plain.table))]
        question = claims.Claim(f"{arm}-{metric}", f"The changes make {metric} of {arm} better.", kind="paired", metric=metric,
                                arm=CHANGED, baseline=ALONE, margin=0.0, better=better or "higher")  # fmt: skip
        found.append(claims.judge(question, pd.concat(both)))
    return found
