"""`claimlab export`: a run that has ended in the formats that people already use."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claimlab.exchange.closed import Closed, needs

BATCH = 1000  # metrics that mlflow takes at once
ENDS = {"finished": "FINISHED", "stopped": "KILLED"}  # in mlflow's words; the others have failed
EVENTS = "events.out.tfevents.*"


def as_csv(one: Closed, out: Path) -> tuple[Path, str]:
    """points.csv, verdicts.csv, events.csv and run.json in a folder of the run."""
    return _files(one, out, lambda frame, path: frame.to_csv(path.with_suffix(".csv"), index=False))


def as_parquet(one: Closed, out: Path) -> tuple[Path, str]:
    """points.parquet, verdicts.parquet, events.parquet and run.json in a folder of the run."""
    return _files(one, out, lambda frame, path: frame.to_parquet(path.with_suffix(".parquet"), index=False))


def _files(one: Closed, out: Path, write: Callable[[Any, Path], None]) -> tuple[Path, str]:
    folder = out / one.run
    folder.mkdir(parents=True, exist_ok=True)
    points = one.table.copy()
    points.insert(0, "run", one.run)
    for name, frame in (("points", points), ("verdicts", one.lines("verdicts")), ("events", one.lines("events"))):
        write(frame, folder / name)
    (folder / "run.json").write_text(json.dumps(one.row, indent=1), encoding="utf-8")
    return folder, f"{len(points)} points, {len(one.verdicts)} verdicts"


def as_tensorboard(one: Closed, out: Path) -> tuple[Path, str]:
    """Event files, a folder for each arm and seed; knobs, effects and verdicts beside them, for the tabs HParams and Text."""
    needs("tensorboard", "exports")
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder, ended = out / one.run, one.row["ended"]
    for old in folder.rglob(EVENTS):  # of an export before this one, which would be shown as well
        old.unlink()
    for (arm, seed), rows in one.table.groupby(["arm", "seed"], sort=False):
        with SummaryWriter(str(folder / _safe(arm) / f"seed-{seed}")) as writer:
            for metric, step, value in zip(rows["metric"], rows["step"], rows["value"], strict=True):
                writer.add_scalar(metric, value, step, walltime=ended)
    with SummaryWriter(str(folder)) as writer:
        for part in hparams(dict(one.row["params"]), one.effects):
            writer.file_writer.add_summary(part)
        for name, value in one.effects.items():
            writer.add_scalar(name, value, 0, walltime=ended)
        for name, text in one.tags.items():
            writer.add_text(name, text, 0, walltime=ended)
    return folder, f"{len(one.table)} points; see them with: tensorboard --logdir {out}"


def as_mlflow(one: Closed, out: Path) -> tuple[Path, str]:
    """A run of mlflow's in `out`/mlflow.db, experiment = study, and in it a run for each arm and seed.

    An earlier export of the same run is replaced.
    """
    needs("mlflow", "exports")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):  # they tell of every table they make
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    out.mkdir(parents=True, exist_ok=True)
    store = out / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{store.absolute()}")
    name = one.row["study"]
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=(out / "artifacts").as_uri())
    while old := client.search_runs([experiment], f"tags.`claimlab.run` = '{one.run}'"):
        for run in old:
            client.delete_run(run.info.run_id)
    parent = _mlflow_run(client, experiment, one, one.run, one.tags, [(k, v, 0) for k, v in one.effects.items()])
    for (arm, seed), rows in one.table.groupby(["arm", "seed"], sort=False):
        tags = {"mlflow.parentRunId": parent, "claimlab.run": one.run, "arm": arm, "seed": str(seed)}
        points = zip(rows["metric"], rows["value"], rows["step"], strict=True)
        _mlflow_run(client, experiment, one, f"{arm}, seed {seed}", tags, points)
    return store, f"{len(one.table)} points; see them with: mlflow ui --backend-store-uri sqlite:///{store}"


def _mlflow_run(client: Any, experiment: str, one: Closed, name: str, tags: dict[str, str], points: Any) -> str:
    from mlflow.entities import Metric, Param

    begun, ended = (int(1000 * one.row[k]) for k in ("started", "ended"))
    made = client.create_run(experiment, start_time=begun, tags=tags, run_name=name).info.run_id
    client.log_batch(made, params=[Param(k, str(v)) for k, v in one.row["params"].items()])
    metrics = [Metric(_safe(key), float(value), ended, int(step)) for key, value, step in points]
    for first in range(0, len(metrics), BATCH):
        client.log_batch(made, metrics=metrics[first : first + BATCH])
    client.set_terminated(made, ENDS.get(one.row["status"], "FAILED"), ended)
    return made


def _safe(name: str) -> str:
    """A name of letters, digits and the signs that both trackers and file systems take."""
    return re.sub(r"[^\w. /-]", "-", str(name))


FORMATS = {"csv": as_csv, "parquet": as_parquet, "tensorboard": as_tensorboard, "mlflow": as_mlflow}
