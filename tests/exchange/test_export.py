"""Runs that have ended in other tools' formats, read back by mlflow, tensorboard and pandas themselves."""

import json
import math

import pandas as pd
import pytest

from claimlab import cli

ROWS = [(arm, seed, step, metric, step / 10 + seed + (arm == "new"))
        for arm in ("old one", "new") for seed in (0, 3) for step in (0, 5, 10) for metric in ("loss", "accuracy")]  # fmt: skip
VERDICT = {"claim": "better", "verdict": "supported", "effect": 0.25, "low": 0.1, "high": None, "n": 5, "sentence": "It is: really.",
           "reason": "", "threshold": 0.0, "values": [[0, 0.2], [3, 0.3]]}  # fmt: skip


@pytest.fixture
def run(ledger):
    """A finished run with a NaN, an event and a verdict; its id."""
    name = ledger.start_run("toy", {"alpha": 8.0, "way": "short"}, seeds=[0, 3], source_hash="abc")
    ledger.log(name, [*ROWS, ("new", 3, 15, "loss", math.nan)])
    ledger.event(name, "set", step=5, arm="new", payload={"name": "lr", "new": 0.1})
    ledger.record_verdicts(name, [VERDICT])
    ledger.record_verdicts(name, [{**VERDICT, "verdict": "undecided"}], control=True)
    ledger.finish(name)
    ledger.set_status(name, "finished")
    return name


def exported(run, kind, out, capsys):
    assert cli.main(["export", run, kind, "-o", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def points(frame):
    return [tuple(row) for row in frame[["arm", "seed", "step", "metric", "value"]].itertuples(index=False)]


@pytest.mark.parametrize(("kind", "read"), [("csv", pd.read_csv), ("parquet", pd.read_parquet)])
def test_files_hold_points_verdicts_events_and_knobs(run, tmp_path, capsys, kind, read):
    found = exported(run, kind, tmp_path, capsys)
    assert found["path"] == str(tmp_path / run)
    table = read(tmp_path / run / f"points.{kind}")
    assert points(table)[:-1] == ROWS and math.isnan(table["value"].iloc[-1]) and set(table["run"]) == {run}
    (verdict,) = read(tmp_path / run / f"verdicts.{kind}").to_dict("records")
    assert verdict["verdict"] == "supported" and json.loads(verdict["values"]) == VERDICT["values"]
    (event,) = read(tmp_path / run / f"events.{kind}").to_dict("records")
    assert (event["kind"], event["step"], json.loads(event["payload"])["new"]) == ("set", 5, 0.1)
    assert json.loads((tmp_path / run / "run.json").read_text())["params"] == {"alpha": 8.0, "way": "short"}


def test_tensorboard_reads_each_arm_and_seed_as_a_run_of_its_own(run, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    for _ in range(2):  # the second export replaces the first
        exported(run, "tensorboard", tmp_path, capsys)
    found = []
    for arm in ("old one", "new"):
        for seed in (0, 3):
            read = EventAccumulator(str(tmp_path / run / arm / f"seed-{seed}")).Reload()
            for metric in read.Tags()["scalars"]:
                found += [(arm, seed, e.step, metric, e.value) for e in read.Scalars(metric)]
    kept = sorted(row for row in found if not math.isnan(row[-1]))
    assert len(found) == len(ROWS) + 1
    assert [row[:-1] for row in kept] == [row[:-1] for row in sorted(ROWS)]
    assert [row[-1] for row in kept] == pytest.approx([row[-1] for row in sorted(ROWS)])
    whole = EventAccumulator(str(tmp_path / run)).Reload()
    assert whole.Scalars("claim/better/effect")[0].value == 0.25
    said = whole.Tensors("verdict.better/text_summary")[0].tensor_proto.string_val
    assert list(said) == [b"supported"]
    knobs = plugin_data_pb2.HParamsPluginData.FromString(whole.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert knobs.session_start_info.hparams["alpha"].number_value == 8.0


def test_mlflow_reads_runs_of_arms_and_seeds_under_one_with_the_verdicts(run, tmp_path, capsys):
    for _ in range(2):
        found = exported(run, "mlflow", tmp_path, capsys)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{found['path']}")
    experiment = client.get_experiment_by_name("toy").experiment_id
    runs = client.search_runs([experiment])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(parents) == 1 and len(children) == 4
    (parent,) = parents
    assert parent.info.status == "FINISHED" and parent.data.params == {"alpha": "8.0", "way": "short"}
    assert parent.data.tags["verdict.better"] == "supported" and parent.data.tags["sentence.better"] == "It is: really."
    assert parent.data.metrics == {"claim/better/effect": 0.25, "claim/better/low": 0.1}
    read = []
    for one in children:
        assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for metric in one.data.metrics:
            read += [(one.data.tags["arm"], int(one.data.tags["seed"]), m.step, metric, m.value)
                     for m in client.get_metric_history(one.info.run_id, metric)]  # fmt: skip
    assert sorted(row for row in read if not math.isnan(row[-1])) == sorted(ROWS) and len(read) == len(ROWS) + 1


def test_a_run_that_goes_on_is_empty_or_unknown_is_refused(ledger, tmp_path, capsys):
    going, empty = (ledger.start_run("toy", {}, status=s) for s in ("running", "failed"))
    for run, said in ((going, "is running"), (empty, "no points"), ("nothing", "no run 'nothing'")):
        assert cli.main(["export", run, "csv", "-o", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "module"), [("mlflow", "mlflow"), ("tensorboard", "tensorboard")])
def test_a_missing_library_is_named_with_its_extra(run, tmp_path, capsys, monkeypatch, kind, module):
    import importlib.util

    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else whole(name, *rest))
    assert cli.main(["export", run, kind, "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'claimlab[exports]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
