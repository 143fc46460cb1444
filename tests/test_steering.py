"""Steering: every verb on a run that goes on and on one that is paused, exact undo, forks, replays, refusals that do no harm."""

import threading
import time

import pytest
import torch

from claimlab import checkpoints, live, replay, steering
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError

KNOBS = {"steps": 200, "seeds": 2}


def key(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    columns = ["arm", "metric", "seed", "step"]
    return table.sort_values(columns).set_index(columns)["value"]


class Scripted:
    """Sends commands at given numbers of steps of the whole experiment, and keeps the answers."""

    def __init__(self, ledger, study, commands, **knobs):
        self.ledger, self.study, self.todo = ledger, study, list(commands)
        self.params = study.make({**KNOBS, **knobs})
        self.run = ledger.start_run(study.slug, {**KNOBS, **knobs}, seeds=list(range(self.params.seeds)))
        self.numbers = []

    def drive(self):
        between = steering.Driver.between

        def watched(driver):
            while self.todo and driver.lab.done >= self.todo[0][0]:
                _, verb, payload, *arm = self.todo.pop(0)
                self.numbers.append(self.ledger.command(self.run, verb, payload, arm=arm[0] if arm else None, by="test"))
            driver.next = 0.0  # look at them now
            between(driver)

        steering.Driver.between = watched
        try:
            return live.execute(self.study, self.params, self.ledger, self.run)
        finally:
            steering.Driver.between = between

    @property
    def answers(self):
        found = {c["id"]: c for c in self.ledger.commands(self.run)}
        return [found[n] for n in self.numbers]


def test_a_run_that_goes_on_looks_at_its_commands_fifty_times_a_second_at_most(ledger, study, monkeypatch):
    looks, pending = [], Ledger.pending
    monkeypatch.setattr(Ledger, "pending", lambda self, run: looks.append(time.monotonic()) or pending(self, run))
    live.execute(study, study.make(KNOBS), ledger, ledger.start_run(study.slug, KNOBS, seeds=[0, 1]))
    gaps = [b - a for a, b in zip(looks, looks[1:], strict=False)]
    assert gaps and min(gaps) >= steering.LOOK


def test_what_is_asked_after_the_last_look_is_refused_when_the_run_ends(ledger, study, monkeypatch):
    monkeypatch.setattr(steering, "LOOK", 1e9)
    run = ledger.start_run(study.slug, KNOBS, seeds=[0, 1])
    asked = []

    def ask(lab, *_):
        if lab.done == lab.total:
            asked.append(ledger.command(run, "set", {"name": "rate", "value": 0.5}, by="test"))

    live.execute(study, study.make(KNOBS), ledger, run, on_tick=ask)
    ledger.set_status(run, "finished")
    (answer,) = ledger.commands(run)
    assert asked == [answer["id"]] and not answer["ok"] and "the run is finished" in answer["reason"]


def test_a_change_undone_leaves_the_run_as_if_it_had_never_come(ledger, study):
    one = Scripted(ledger, study, [
        (300, "set", {"name": "lr", "value": 1.0}), (500, "reset", {"layer": "weight"}), (700, "rollback", {"checkpoint": "000000300"}),
    ])  # fmt: skip
    lab = one.drive()
    assert [a["ok"] for a in one.answers] == [1, 1, 1]
    plain = Experiment(study, one.params).run()
    assert key(lab.table).equals(key(plain.table)) and not lab.steered
    assert key(ledger.table(one.run)).equals(key(plain.table))
    assert [v["verdict"] for v in ledger.verdicts(one.run)] == [v.verdict for v in plain.verdicts()]
    points, _ = ledger.points_since(one.run)
    assert len(points) > len(plain.table)  # what was undone is still recorded


@pytest.mark.parametrize(
    ("verb", "payload"), [("set", {"name": "lr", "value": 0.2}), ("reset", {"layer": "bias"}), ("freeze", {"layer": "weight"})]
)
def test_a_change_changes_its_arm_from_its_step_on_and_no_other(ledger, study, verb, payload):
    one = Scripted(ledger, study, [(301, verb, payload, "slow")])
    lab = one.drive()
    (answer,) = one.answers
    plain = Experiment(study, one.params).run()
    ours, theirs = key(lab.table, arm="slow", metric="loss"), key(plain.table, arm="slow", metric="loss")
    before = ours.index.get_level_values("step") <= answer["step"]
    assert answer["ok"] and ours[before].equals(theirs[before]) and not ours[~before].equals(theirs[~before])
    assert key(lab.table, arm="halves").equals(key(plain.table, arm="halves"))
    assert lab.steered and all(v["verdict"] == "undecided" for v in ledger.verdicts(one.run))


def test_a_paused_run_stands_still_obeys_every_verb_and_goes_on(ledger, study):
    long = {**KNOBS, "steps": 1000}
    params = study.make(long)
    run = ledger.start_run(study.slug, long, seeds=[0, 1])
    thread = threading.Thread(target=lambda: live.execute(study, params, Ledger(), run), daemon=True)
    thread.start()

    def ask(verb, **payload):
        number = ledger.command(run, verb, payload, by="test")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = next(c for c in ledger.commands(run) if c["id"] == number)
            if found["answered"]:
                return found
            time.sleep(0.005)
        raise AssertionError(f"no answer to {verb}")

    while (ledger.run(run)["done"] or 0) < 1:
        time.sleep(0.01)
    assert ask("pause")["ok"] and ledger.run(run)["status"] == "paused"
    first = ask("evaluate")["step"]
    time.sleep(0.1)
    assert ask("checkpoint")["step"] == first
    stepped = ask("step", n=7)
    assert stepped["new"] == first + 7
    while ledger.run(run)["status"] != "paused":
        time.sleep(0.01)
    assert ask("set", name="lr", value=0.01)["step"] is not None
    assert ask("freeze", layer="weight")["ok"] and ask("unfreeze", layer="weight")["ok"] and ask("reset", layer="bias")["ok"]
    refused = ask("unfreeze", layer="weight")
    assert not refused["ok"] and "not frozen" in refused["reason"] and refused["step"] == first + 7
    assert ask("rollback", checkpoint=ask("checkpoint")["new"])["ok"] and ledger.run(run)["status"] == "paused"
    assert ask("resume")["ok"] and not ask("resume")["ok"]
    thread.join(60)
    assert not thread.is_alive() and not [e for e in ledger.events(run) if e["kind"] == "error"]
    assert len(ledger.verdicts(run)) == 2


@pytest.mark.parametrize(
    ("verb", "payload", "arm", "reason"),
    [
        ("set", {"name": "lr", "value": -1}, None, "lr = -1"),
        ("set", {"name": "lr", "value": float("nan")}, None, "lr = nan"),
        ("set", {"name": "lr", "value": 1e9}, None, "must be in"),
        ("freeze", {"layer": "head"}, None, "no layer 'head'"),
        ("reset", {"layer": ""}, None, "name of a layer"),
        ("reset", {}, None, "name of a layer"),
        ("rollback", {"step": 5}, None, "no checkpoint"),
        ("rollback", {"checkpoint": "../../etc/passwd"}, None, "no checkpoint"),
        ("rollback", {}, None, "step = None"),
        ("step", {"n": 0}, None, "n = 0"),
        ("fork", {"change": {"verb": "stop"}}, None, "differs by one change"),
        ("fork", {"change": {"verb": "set", "name": "lr", "value": 99}}, None, "lr = 99"),
        ("fork", {"change": {"verb": "freeze", "layer": "head"}}, None, "no layer 'head'"),
        ("evaluate", {}, "quick", "no arm quick"),
        ("evaluate", {}, "probe", "not in training"),
        ("drive", {"seconds": -4}, None, "seconds = -4"),
        ("fly", {}, None, "verbs:"),
    ],
)
def test_a_refusal_gives_its_reason_and_does_no_harm(ledger, study, verb, payload, arm, reason):
    one = Scripted(ledger, study, [(302, verb, payload, arm)])
    lab = one.drive()
    (answer,) = one.answers
    assert answer["ok"] == 0 and reason in answer["reason"]
    assert not lab.steered and key(lab.table).equals(key(Experiment(study, one.params).run().table))


def test_a_thousand_commands_in_a_burst_are_all_answered_and_cost_one_checkpoint(ledger, study):
    burst = [(300, "set", {"name": "lr", "value": 1e-3 + k * 1e-6}, "slow") for k in range(1000)]
    one = Scripted(ledger, study, burst)
    one.drive()
    answers = one.answers
    assert all(a["ok"] for a in answers) and [a["new"] for a in answers] == [p["value"] for _, _, p, _ in burst]
    written = [e["payload"]["why"] for e in ledger.events(one.run) if e["kind"] == "checkpoint"]
    assert written == ["before set", "end"]


def test_the_first_of_two_drivers_keeps_the_lease_until_it_ends_or_is_handed_over(ledger, study):
    params = study.make({**KNOBS})
    run = ledger.start_run(study.slug, KNOBS, seeds=[0, 1])
    driver = steering.Driver(study, Experiment(study, params), ledger, run)

    def ask(by, verb, **payload):
        number = ledger.command(run, verb, payload, by=by)
        driver.obey()
        return next(c for c in ledger.commands(run) if c["id"] == number)

    assert ask("ann", "drive", seconds=60)["ok"]
    refused = ask("bob", "checkpoint")
    assert not refused["ok"] and "ann drives this run" in refused["reason"]
    assert ask("ann", "checkpoint")["ok"]
    assert ask("ann", "drive", seconds=60, to="bob")["new"] == "bob"
    assert not ask("ann", "checkpoint")["ok"] and ask("bob", "checkpoint")["ok"]
    driver.until = time.time() - 1
    assert ask("ann", "checkpoint")["ok"]


def test_regular_checkpoints_are_few_and_those_of_changes_stay(ledger, study, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.02)
    monkeypatch.setattr(checkpoints, "SHARE", 1.0)
    asked = [(300, "set", {"name": "lr", "value": 0.01}), (350, "checkpoint", {})]
    one = Scripted(ledger, study, [*asked, (801, "stop", {})], steps=20_000)
    with pytest.raises(live.Stopped):
        one.drive()
    kept = checkpoints.Shelf(ledger, one.run).all()
    assert [c["why"] for c in kept if c["why"] != "regular"] == ["before set", "asked for"]
    assert sum(c["why"] == "regular" for c in kept) == checkpoints.LAST
    assert len(list((checkpoints.Shelf(ledger, one.run).folder).iterdir())) == len(kept)


def test_a_run_that_is_done_keeps_its_networks_and_no_optimiser(ledger, study, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.02)
    one = Scripted(ledger, study, [])
    lab = one.drive()
    shelf = checkpoints.Shelf(ledger, one.run)
    (last,) = shelf.all()
    state = shelf.read(last["name"])
    assert last["why"] == "end" and all(e["optimizers"] is None for e in state["arms"]["fast"]["ensembles"])
    again = Experiment(study, one.params)
    again.load(state, again=False)
    assert "probe" not in again.arms  # it has no state of its own
    for arm in ("slow", "fast", "halves", "tuned"):
        for mine, theirs in zip(again.arms[arm].members, lab.arms[arm].members, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_a_killed_run_goes_on_from_its_last_checkpoint_with_the_same_numbers(ledger, study):
    class Killed(BaseException):
        pass

    params = study.make({**KNOBS})
    run = ledger.start_run(study.slug, {**KNOBS}, seeds=[0, 1])
    number = []

    def die(lab, arm, tick):
        if lab.done > 250 and not number:
            number.append(ledger.command(run, "checkpoint", {}))
        if lab.done > 500:
            raise Killed

    with pytest.raises(Killed):
        live.execute(study, params, ledger, run, on_tick=die)
    with pytest.raises(KnobError, match="is running"):
        live.resume(ledger, run)
    ledger.set_status(run, "lost")
    lab = live.resume(ledger, run)
    plain = Experiment(study, params).run()
    assert key(ledger.table(run)).equals(key(plain.table)) and key(lab.table).equals(key(plain.table))
    assert ledger.run(run)["status"] == "finished"
    with pytest.raises(KnobError, match="is finished"):
        live.resume(ledger, run)


def test_a_run_without_checkpoint_says_that_it_must_start_again(ledger, study):
    run = ledger.start_run(study.slug, KNOBS, seeds=[0, 1])
    ledger.set_status(run, "lost")
    with pytest.raises(KnobError, match="claimlab run toy-blobs"):
        live.resume(ledger, run)


@pytest.mark.parametrize("change", [None, {"verb": "set", "name": "lr", "value": 0.02}])
def test_a_fork_starts_from_the_exact_state_and_the_original_goes_on(ledger, study, monkeypatch, change):
    monkeypatch.setattr(checkpoints, "start", lambda run: None)
    one = Scripted(ledger, study, [(250, "fork", {"change": change}, "slow")])
    one.drive()
    (answer,) = one.answers
    assert answer["ok"]
    child = ledger.run(answer["new"])
    assert (child["parent"], child["status"]) == (one.run, "queued") and child["branch"] == "000000250"
    live.resume(ledger, child["id"])
    plain = key(Experiment(study, one.params).run().table)
    assert key(ledger.table(one.run)).equals(plain)  # the original knows of no change
    forked = key(ledger.table(child["id"]))
    at = ledger.events(child["id"])[-1]
    if change is None:
        assert forked.equals(plain)
    else:
        at = next(e for e in ledger.events(child["id"]) if e["kind"] == "set")
        same = (forked.index.get_level_values("arm") != "slow") | (forked.index.get_level_values("step") <= at["step"])
        assert forked[same].equals(plain[same]) and not forked[~same].equals(plain[~same])


def test_a_fork_runs_in_a_process_of_its_own(ledger, study):
    one = Scripted(ledger, study, [(250, "fork", {})])
    one.drive()
    child, until = one.answers[0]["new"], time.monotonic() + 90
    while ledger.run(child)["status"] not in ("finished", "failed", "lost") and time.monotonic() < until:
        time.sleep(0.2)
    assert ledger.run(child)["status"] == "finished"
    assert key(ledger.table(child)).equals(key(ledger.table(one.run)))


def test_a_replay_gives_the_same_numbers_and_other_seeds_say_whether_it_was_luck(ledger, study):
    one = Scripted(ledger, study, [
        (150, "set", {"name": "lr", "value": 0.5}), (200, "rollback", {"checkpoint": "000000150"}),  # undone: not replayed
        (301, "set", {"name": "lr", "value": 0.05}, "slow"), (303, "reset", {"layer": "weight"}, "slow"),
        (420, "freeze", {"layer": "bias"}),
    ])  # fmt: skip
    one.drive()
    assert all(a["ok"] for a in one.answers)
    again, verdicts = replay.replay(ledger, one.run)
    assert verdicts == [] and key(ledger.table(again)).equals(key(ledger.table(one.run)))
    assert ledger.run(again)["parent"] == one.run
    _, verdicts = replay.replay(ledger, one.run, seeds=[5, 6, 7, 8, 9])
    found = {v.claim: v for v in verdicts}
    assert found["slow-accuracy"].n == 5 and found["slow-accuracy"].effect > 0  # a hundredfold rate helps the slow arm


def test_what_was_never_changed_cannot_be_replayed(ledger, study):
    one = Scripted(ledger, study, [], steps=40)
    one.drive()
    with pytest.raises(KnobError, match="nothing was changed"):
        replay.replay(ledger, one.run)


def test_a_divergence_is_explained_where_it_happened(ledger, study):
    one = Scripted(ledger, study, [], poison=1, steps=100)
    one.drive()
    told = {(e["arm"], e["seed"]): e["payload"] for e in ledger.events(one.run) if e["kind"] == "diverged"}
    facts = told["slow", 1]  # its inputs are NaN: the very first step
    assert facts["step"] == 1 and facts["last_good"] == 0 and facts["gradient_norm"] is None and facts["tensor"]


def test_checkpoints_are_read_as_data_only(ledger, study, tmp_path):
    one = Scripted(ledger, study, [(100, "checkpoint", {})], steps=200)
    one.drive()
    shelf = checkpoints.Shelf(ledger, one.run)
    name = shelf.all()[0]["name"]

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save(Evil(), shelf.path(name))
    with pytest.raises(Exception, match="[Ww]eights"):
        shelf.read(name)
