"""A run joined to the ledger: what is logged, how commands are obeyed or refused, and that nothing recorded is lost."""

import threading
import time
from pathlib import Path

import pytest

from claimlab import live, verbs
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError


def start(ledger, study, **values):
    params = study.make(values)
    return params, ledger.start_run(study.slug, {**values}, seeds=list(range(params.seeds)))


def key(table):
    columns = ["arm", "metric", "seed", "step"]
    return table.sort_values(columns).set_index(columns)["value"]


def test_the_ledger_holds_the_table_of_the_experiment(ledger, study):
    params, run = start(ledger, study)
    lab = live.execute(study, params, ledger, run)
    plain = Experiment(study, params).run()
    stored = key(ledger.table(run))
    assert stored.equals(key(lab.table)) and stored.equals(key(plain.table))
    assert [v["verdict"] for v in ledger.verdicts(run)] == [v.verdict for v in plain.verdicts()]
    assert ledger.run(run)["done"] == lab.total


def test_figures_are_kept_as_data(ledger, study, home):
    params, run = start(ledger, study)
    live.execute(study, params, ledger, run)
    kept = {a["kind"]: a["path"] for a in ledger.artifacts(run)}
    import plotly.io

    figure = plotly.io.from_json(Path(kept["figure:accuracy"]).read_text())
    assert len(figure.data[0].x) > 0


def steer(ledger, study, verb, payload, *, arm=None, after=10):
    """Execute, and send one command when some points are there; (the command as answered, the error or None)."""
    params, run = start(ledger, study, steps=2500, seeds=2)
    sent = []

    def command(lab, name, tick):
        if tick.step >= after and not sent:
            sent.append(ledger.command(run, verb, payload, arm=arm, by="test"))
        if sent and tick.step >= 400 and not any(c["verb"] == "stop" for c in ledger.commands(run)):
            ledger.command(run, "stop", {})

    with pytest.raises(live.Stopped):
        live.execute(study, params, ledger, run, on_tick=command)
    return run, next(c for c in ledger.commands(run) if c["id"] == sent[0])


def test_stop_takes_effect_between_two_steps_and_keeps_the_points(ledger, study):
    run, command = steer(ledger, study, "stop", {})
    assert command["ok"]
    assert len(ledger.table(run)) > 0
    assert ledger.verdicts(run) == []
    assert [e["kind"] for e in ledger.events(run)].count("stop") == 1


def test_set_is_answered_with_step_old_and_new_value(ledger, study):
    run, command = steer(ledger, study, "set", {"name": "lr", "value": 0.0}, arm="slow")
    assert command["ok"] and command["old"] == 0.0005 and command["new"] == 0.0 and command["step"] > 0
    event = next(e for e in ledger.events(run) if e["kind"] == "set")
    assert event["arm"] == "slow" and event["payload"]["old"] == 0.0005
    losses = ledger.table(run).query("arm == 'slow' and metric == 'accuracy' and step > @command['step']")
    assert losses.groupby("seed")["value"].nunique().eq(1).all()  # the arm stands still from there on


@pytest.mark.parametrize(
    ("payload", "arm", "reason"),
    [
        ({"name": "lr", "value": -1}, None, "lr = -1"),
        ({"name": "lr", "value": "nan"}, None, "lr = nan"),
        ({"name": "lr", "value": 1e9}, None, "must be in"),
        ({"name": "gap", "value": 1.0}, None, "cannot be changed"),
        ({"name": "rate", "value": 7.0}, None, "rate = 7"),
        ({"name": "lr", "value": 0.1}, "quick", "no arm quick"),
        ({}, None, "cannot be changed"),
    ],
)
def test_a_refusal_says_why_and_leaves_the_run_unharmed(ledger, study, payload, arm, reason):
    run, command = steer(ledger, study, "set", payload, arm=arm)
    assert command["ok"] is False and reason in command["reason"]
    assert not [e for e in ledger.events(run) if e["kind"] == "set"]
    stored = key(ledger.table(run))
    quiet = Experiment(study, study.make({"steps": 2500, "seeds": 2}), arms=["slow", "fast"])
    for _ in range(3):
        for arm_name, tick in quiet.ticks():
            assert stored[arm_name, "accuracy", 0, tick.step] == tick.metrics[0]["accuracy"]
            break


def test_a_live_knob_can_be_set(ledger, study):
    run, command = steer(ledger, study, "set", {"name": "rate", "value": "0.5"}, arm="fast")
    assert command["ok"] and command["old"] == 0.05 and command["new"] == 0.5


@pytest.mark.parametrize("verb", ["explode", ""])
def test_an_unknown_verb_is_refused_before_it_is_queued(study, verb):
    with pytest.raises(KnobError, match="verbs"):
        verbs.validate(study, verb, {})


def test_divergence_is_an_event_and_the_others_go_on(ledger, study):
    params, run = start(ledger, study, poison=1)
    live.execute(study, params, ledger, run)
    told = [(e["arm"], e["seed"]) for e in ledger.events(run) if e["kind"] == "diverged"]
    assert ("slow", 1) in told and len(told) == len(set(told))
    assert {s for _, s in told} == {1}
    assert all(v["verdict"] == "undecided" and "seed 1" in v["reason"] for v in ledger.verdicts(run))
    table = ledger.table(run).query("metric == 'accuracy' and arm == 'slow'")
    assert table[table["seed"] == 1]["value"].tail(5).isna().all() and table[table["seed"] == 0]["value"].notna().all()


def test_a_failing_study_keeps_its_points(ledger, study, monkeypatch):
    params, run = start(ledger, study)

    def fail(lab):
        raise RuntimeError("the figure cannot be drawn")

    monkeypatch.setattr(study.module, "figures", fail)
    with pytest.raises(RuntimeError, match="cannot be drawn"):
        live.execute(study, params, ledger, run)
    assert len(ledger.table(run)) > 0 and len(ledger.verdicts(run)) == 2


def test_the_heart_beats_during_a_long_step(ledger, study, monkeypatch):
    params, run = start(ledger, study, seeds=2, steps=4)
    monkeypatch.setattr(live, "BEAT", 0.05)
    seen = []
    monkeypatch.setattr(study.module.Slow, "metrics", lambda self, net: (time.sleep(0.1), {"accuracy": 0.5})[1])

    def watch():
        other = Ledger(ledger.url)
        for _ in range(20):
            seen.append(other.run(run)["heartbeat"])
            time.sleep(0.05)
        other.close()

    thread = threading.Thread(target=watch)
    thread.start()
    live.execute(study, params, ledger, run)
    thread.join()
    assert len(set(seen)) >= 5
