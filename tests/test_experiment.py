"""Arms in lockstep: what is recorded, in which order, from whom, and what steering does."""

import math

import pytest

from claimlab.experiment import COLUMNS, Experiment
from claimlab.study import find
from claimlab.training import Run


@pytest.fixture
def study(own_studies):
    found = find("toy-blobs")
    assert found.module
    return found


def last(lab, arm, metric="accuracy"):
    rows = lab.table.query("arm == @arm and metric == @metric")
    return rows[rows["step"] == rows["step"].max()].set_index("seed")["value"].to_dict()


def test_the_table_holds_what_each_arm_alone_reports(study):
    lab = Experiment(study, study.make()).run()
    alone = list(Run(study.module.Fast(study.make()), range(5)))[-1]
    assert list(lab.table.columns) == COLUMNS
    assert last(lab, "fast") == {s: alone.metrics[s]["accuracy"] for s in range(5)}
    assert last(lab, "fast", "loss") == {s: pytest.approx(float(alone.losses[s]), abs=1e-6) for s in range(5)}


def test_arms_grow_side_by_side_and_dependents_wait(study):
    lab = Experiment(study, study.make())
    order = [(arm, tick.step) for arm, tick in lab.ticks()]
    slow, fast = ([i for i, (a, _) in enumerate(order) if a == name] for name in ("slow", "fast"))
    assert all(abs(i - j) <= 2 for i, j in zip(slow, fast, strict=True))
    done = max(fast)
    assert min(i for i, (a, _) in enumerate(order) if a in ("tuned", "probe")) > done


def test_an_arm_after_another_starts_from_its_members(study):
    lab = Experiment(study, study.make(), arms=["tuned"]).run()
    assert set(lab.arms) == {"tuned", "fast"}  # what it needs is run as well
    start = lab.table.query("arm == 'tuned' and metric == 'accuracy' and step == 0").set_index("seed")["value"].to_dict()
    assert start == last(lab, "fast")


def test_an_arm_that_does_not_train_measures_the_one_before(study):
    lab = Experiment(study, study.make()).run()
    lengths = [math.sqrt(sum(float(w) ** 2 for w in m.weight.detach().flatten())) for m in lab.arms["fast"].members]
    assert list(last(lab, "probe", "length").values()) == pytest.approx(lengths, rel=1e-6)
    assert "probe" not in Experiment(study, study.make({"gap": 0.0})).specs


def test_budgets_are_equal_where_the_design_says_so(study):
    lab = Experiment(study, study.make()).run()
    budgets = lab.budgets.set_index("arm")
    assert budgets.loc["slow", ["steps", "samples", "forward_calls"]].tolist() == [40, 320, 40]
    for arm in ("fast", "halves", "tuned"):
        assert budgets.loc[arm, ["steps", "samples"]].tolist() == [40, 320]
    assert lab.done == lab.total == 4 * 40 + 1


def test_verdicts_are_those_of_the_table(study):
    lab = Experiment(study, study.make(), seeds=range(12)).run()
    wins, chance = lab.verdicts()
    difference = [last(lab, "fast")[s] - last(lab, "slow")[s] for s in range(12)]
    assert wins.effect == pytest.approx(sum(difference) / 12)
    assert chance.verdict == "supported" and wins.verdict == "supported"


def test_the_control_takes_the_effect_away(study):
    lab = Experiment(study, study.make(study.control.set)).run()
    assert lab.verdicts()[0].verdict != "supported"


def test_a_poisoned_seed_makes_the_claims_undecided_and_says_which(study):
    lab = Experiment(study, study.make({"poison": 3})).run()
    for verdict in lab.verdicts():
        assert verdict.verdict == "undecided" and "seed 3" in verdict.reason


def test_development_seeds_leave_the_judged_ones_alone(study):
    lab = Experiment(study, study.make(), seeds=range(1000, 1003)).run()
    assert set(lab.table["seed"]) == {1000, 1001, 1002}


def test_steering_reaches_the_named_arm_and_unjudges_the_run(study):
    lab = Experiment(study, study.make())
    ticks = lab.ticks()
    for _ in range(6):
        next(ticks)
    assert lab.set("lr", 0.0, arm="slow") == {"slow": (0.0005, 0.0)}
    frozen = [m.weight.detach().clone() for m in lab.arms["slow"].members]
    moving = lab.arms["fast"].members[0].weight.detach().clone()
    for _ in ticks:
        pass
    assert all((m.weight == f).all() for m, f in zip(lab.arms["slow"].members, frozen, strict=True))
    assert (lab.arms["fast"].members[0].weight != moving).any()
    assert {v.verdict for v in lab.verdicts()} == {"undecided"}
    assert "steered" in lab.verdicts()[0].sentence


def test_what_nobody_can_take_is_refused(study):
    lab = Experiment(study, study.make())
    next(lab.ticks())
    with pytest.raises(ValueError, match="no arm quick"):
        lab.set("lr", 0.1, arm="quick")
    with pytest.raises(ValueError, match="nonsense"):
        lab.set("nonsense", 0.1)
    assert not lab.steered
    with pytest.raises(ValueError, match="no arm quick"):
        Experiment(study, study.make(), arms=["quick"])


def test_the_state_of_a_finished_arm_is_copied_once_and_anew_after_it_has_gone_back(study):
    """`tuned` goes on where `fast` ends: a state of before, of after, and the same end from either."""
    lab = Experiment(study, study.make(), arms=["tuned"])
    steps = lab.stepwise()
    while "fast" not in lab.arms or lab.arms["fast"].step < 20:
        next(steps)
    before = lab.state()
    while "tuned" not in lab.arms or lab.arms["tuned"].step < 20:
        next(steps)
    first, second = lab.state(), lab.state()
    assert first["arms"]["fast"] is second["arms"]["fast"] and first["arms"]["tuned"] is not second["arms"]["tuned"]
    end = lab.run().table
    lab.load(before)
    assert lab.state()["arms"]["fast"]["step"] == 20
    assert lab.run().table.equals(end)
    other = Experiment(study, study.make(), arms=["tuned"])
    other.load(first)
    assert other.run().table.equals(end)
