"""Live views: drawn only while somebody looks, without a trace in training; networks of the past, and one's own input."""

import io
import json
import threading
import time

import plotly.graph_objects as go
import pytest
import torch

from claimlab import checkpoints, live, views
from claimlab.cli import main
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.study import find
from claimlab.watching import PATIENCE

VIEW = "line between the blobs"


def begun(ledger, study, **knobs):
    knobs = {"steps": 200, "seeds": 2, **knobs}
    return study.make(knobs), ledger.start_run(study.slug, knobs, seeds=list(range(knobs["seeds"])))


def direction(figure):
    return torch.tensor([figure["data"][0]["x"][1], figure["data"][0]["y"][1]])


def test_a_watched_run_gives_the_same_numbers_as_one_that_nobody_watches(ledger, study, monkeypatch):
    monkeypatch.setattr(views, "EVERY", 0.0)
    monkeypatch.setattr(views, "SHARE", 1e9)
    params, run = begun(ledger, study)
    for name in study.module.VIEWS:
        for arm in study.module.ARMS:
            assert ledger.watch(run, name, arm, 1, seconds=60) is None
    before = torch.random.get_rng_state()
    lab = live.execute(study, params, ledger, run)
    assert torch.equal(torch.random.get_rng_state(), before)
    alone = Experiment(study, params).run()
    assert lab.table.equals(alone.table)
    for mine, theirs in zip(*(one.state()["arms"]["fast"]["rngs"] for one in (lab, alone)), strict=True):
        assert torch.equal(mine, theirs)
    drawn = {one["arm"]: ledger.watch(run, VIEW, one["arm"], 1) for one in ledger.watched(run) if one["view"] == VIEW}
    assert drawn["probe"]["figure"] is None and "no network" in drawn["probe"]["reason"]
    net = lab.arms["fast"].members[1]
    torch.testing.assert_close(direction(json.loads(drawn["fast"]["figure"])), (net.weight[1] - net.weight[0]).detach())


def test_nothing_is_drawn_for_nobody_and_no_more_than_its_share(ledger, study, monkeypatch):
    drawn = []
    monkeypatch.setattr(views, "draw", lambda *asked: drawn.append(asked) or time.sleep(0.005) or go.Figure())
    params, run = begun(ledger, study)
    lab = Experiment(study, params)
    gallery = views.Gallery(lab, ledger, run)
    for _ in range(20):
        gallery.next = 0.0
        gallery.between()
    assert drawn == []
    ledger.watch(run, VIEW, "fast", 0)
    now = time.monotonic()
    gallery.next = 0.0
    gallery.between()
    gallery.between()  # too soon
    assert len(drawn) == 1 and gallery.next - now >= max(views.EVERY, 0.005 / views.SHARE)
    gallery.next = 0.0
    gallery.between()  # the arm has not moved since
    assert len(drawn) == 1


def test_who_stops_looking_stops_the_drawing(ledger, home):
    ledger.watch("a-run", VIEW, "fast", 0, seconds=-1)
    assert ledger.watched("a-run") == []
    ledger.watch("a-run", VIEW, "fast", 0)
    (one,) = ledger.watched("a-run")
    assert (one["view"], one["arm"], one["seed"]) == (VIEW, "fast", 0) and PATIENCE < 60
    other = Ledger()
    assert other.watch("a-run", VIEW, "fast", 0) is None  # a second viewer shares the picture
    ledger.show(one["id"], 7, "{}")
    assert [v.watch("a-run", VIEW, "fast", 0)["step"] for v in (ledger, other)] == [7, 7] and len(ledger.watched("a-run")) == 1
    other.close()


def test_a_view_is_drawn_while_the_run_is_paused_and_a_broken_one_says_why(ledger, study, monkeypatch):
    params, run = begun(ledger, study, steps=50_000)
    monkeypatch.setitem(study.module.VIEWS, "broken", lambda net, params: net.nothing)
    thread = threading.Thread(target=lambda: pytest.raises(live.Stopped, live.execute, study, params, Ledger(), run))
    thread.start()
    ledger.command(run, "pause", {})
    found = {}
    try:
        until = time.monotonic() + 60
        while not (len(found) == 2 and all(found.values())) and time.monotonic() < until:
            found = {name: ledger.watch(run, name, "slow", 0) for name in (VIEW, "broken")}
            time.sleep(0.02)
        assert ledger.run(run)["status"] == "paused" and found[VIEW]["figure"]
        assert found["broken"]["figure"] is None and "nothing" in found["broken"]["reason"]
    finally:
        ledger.command(run, "stop", {})
        thread.join(60)


def test_networks_of_earlier_moments_come_from_checkpoints(ledger, study):
    params, run = begun(ledger, study)
    lines, kept = [], {}

    def keep(lab, arm, tick):
        if arm == "fast" and tick.step in (40, 80):
            net = lab.arms["fast"].members[0]
            shelf = checkpoints.Shelf(ledger, run)
            name = shelf.put(lab, "asked for")
            shelf.settle()
            kept[name] = (net.weight[1] - net.weight[0]).detach().clone()
            lines.append(json.dumps({"view": VIEW, "arm": "fast", "seed": 0, "checkpoint": name}))

    lab = live.execute(study, params, ledger, run, on_tick=keep)
    net = lab.arms["fast"].members[0]
    kept["end"] = (net.weight[1] - net.weight[0]).detach()
    lines.append(json.dumps({"view": VIEW, "arm": "fast", "seed": 0}))
    answers = [json.loads(a) for a in views.serve(views.Looking(ledger, run), [lines[1], lines[0], lines[2]])]
    expected = list(kept.values())
    for answer, want in zip(answers, (expected[1], expected[0], expected[2]), strict=True):
        torch.testing.assert_close(direction(answer["figure"]), want)
    assert set(answers[0]["arms"]) >= {"slow", "fast"} and "probe" not in answers[0]["arms"]


def test_every_trained_network_answers_an_input_of_ones_own(ledger, study):
    params, run = begun(ledger, study)
    lab = live.execute(study, params, ledger, run)
    request = {"trial": "a point", "value": [[1.5, -0.5]]}
    (answer,) = (json.loads(a) for a in views.serve(views.Looking(ledger, run), [json.dumps(request)]))
    point = torch.tensor([1.5, -0.5])
    for arm in ("slow", "fast"):
        want = [(net.weight @ point + net.bias).softmax(0)[1].item() for net in lab.arms[arm].members]
        assert answer["answers"][arm]["right"] == pytest.approx(want)
        assert [a + b for a, b in zip(*answer["answers"][arm].values(), strict=True)] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"view": "nowhere", "arm": "fast", "seed": 0}, "no view 'nowhere'"),
        ({"view": VIEW, "arm": "middle", "seed": 0}, "no arm 'middle'"),
        ({"view": VIEW, "arm": "fast", "seed": 9}, "no seed 9"),
        ({"view": VIEW, "arm": "fast"}, "seed"),
        ({"view": VIEW, "arm": "fast", "seed": 0, "checkpoint": "../../etc"}, "no checkpoint"),
        ({"trial": "a song", "value": 1}, "nothing to try called 'a song'"),
        ({"trial": "a point", "value": [[1, 2, 3]]}, "one row of two numbers"),
        ([], "list"),
    ],
)
def test_what_cannot_be_shown_is_answered_with_its_reason(ledger, study, request_, words):
    params, run = begun(ledger, study, steps=10)
    live.execute(study, params, ledger, run)
    bad, good = views.serve(views.Looking(ledger, run), [json.dumps(request_), json.dumps({"view": VIEW, "arm": "fast", "seed": 0})])
    assert words in json.loads(bad)["reason"]
    assert "figure" in json.loads(good)


def test_a_run_without_a_checkpoint_has_nothing_to_look_at(ledger, study):
    _, run = begun(ledger, study)
    with pytest.raises(KnobError, match="no checkpoint"):
        views.Looking(ledger, run).go()


def test_a_page_knows_views_and_trials_without_importing_the_study(own_studies):
    study = find("toy-blobs")
    assert study.views == (VIEW, "spoilt") and "module" not in study.__dict__
    assert study.trials == {"a point": {"kind": "table", "help": "two numbers", "shape": (0, 0), "arms": ("slow", "fast")}}


def test_the_command_draws_one_picture_or_answers_line_by_line(ledger, study, tmp_path, monkeypatch, capsys):
    params, run = begun(ledger, study, steps=10)
    lab = live.execute(study, params, ledger, run)
    path = tmp_path / "line.json"
    assert main(["look", run, VIEW, "--arm", "slow", "--seed", "1", "-o", str(path)]) == 0
    net = lab.arms["slow"].members[1]
    torch.testing.assert_close(direction(json.loads(path.read_text())), (net.weight[1] - net.weight[0]).detach())
    assert main(["look", run, VIEW, "--arm", "slow", "--seed", "5"]) == 2
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"trial": "a point", "value": [[0, 0]]}) + "\n"))
    assert main(["look", run]) == 0
    assert "answers" in json.loads(capsys.readouterr().out)
