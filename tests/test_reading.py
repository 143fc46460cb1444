"""Reading over many runs at once: the same answers as reading each run by itself."""

import time

import pytest

from claimlab import live
from claimlab.ledger import Ledger
from claimlab.study import find


@pytest.fixture
def ledger(home):
    opened = Ledger()
    yield opened
    opened.close()


def test_the_verdicts_of_a_study_are_those_of_each_of_its_runs(ledger):
    runs = [ledger.start_run("one", {}) for _ in range(3)]
    other = ledger.start_run("other", {})
    for k, run in enumerate([*runs, other]):
        ledger.record_verdicts(run, [{"claim": c, "verdict": "supported", "effect": k} for c in ("a", "b")])
    ledger.record_verdicts(runs[0], [{"claim": "a", "verdict": "refuted", "effect": 9}], control=True)
    found = ledger.verdicts_of("one")
    assert found == {run: ledger.verdicts(run) for run in runs} and len(found[runs[0]]) == 3
    assert ledger.verdicts_of("nothing") == {}


def test_the_latest_event_of_a_kind_by_run(ledger):
    one, two, three = (ledger.start_run("s", {}) for _ in range(3))
    for run, holder in ((one, "a"), (two, "b"), (one, "c"), (three, "d")):
        ledger.event(run, "drive", payload={"holder": holder})
    ledger.event(one, "ask", payload={"by": "x"})
    assert ledger.latest("drive", [one, two]) == {one: {"holder": "c"}, two: {"holder": "b"}}


def test_runs_that_ended_since_a_time_are_counted_by_status(ledger):
    for status in ("finished", "finished", "lost"):
        ledger.set_status(ledger.start_run("s", {}), status)
    ledger.start_run("s", {})
    assert ledger.ended_since(time.time() - 60) == {"finished": 2, "lost": 1}
    assert ledger.ended_since(time.time() + 60) == {}


def test_means_are_those_of_the_table_and_come_on_from_a_cursor(ledger):
    run = ledger.start_run("s", {})
    rows = [("a", seed, step, m, seed * step + len(m)) for step in range(4) for seed in range(3) for m in ("x", "yy", "zzz")]
    ledger.log(run, rows[:18])
    ledger.flush()
    first, cursor = ledger.means(run, ["x", "yy"])
    ledger.log(run, [*rows[18:], ("a", 9, 3, "x", float("nan"))])
    ledger.flush()
    then, last = ledger.means(run, ["x", "yy"], cursor)
    table = ledger.table(run).query("metric != 'zzz'").groupby(["arm", "metric", "step"])["value"].mean()
    assert {row[:3]: row[3] for row in first + then} == pytest.approx(table.to_dict())
    assert {row[2] for row in first} == {0, 1} and ledger.means(run, ["x"], last) == ([], last)


def test_a_family_is_the_whole_tree_from_any_of_its_runs_parents_first(ledger):
    root = ledger.start_run("s", {})
    left, right = (ledger.start_run("s", {}, parent=root) for _ in range(2))
    leaf = ledger.start_run("s", {}, parent=left)
    ledger.start_run("s", {})
    for run in (root, left, right, leaf):
        found = ledger.family(run)
        assert set(found) == {root, left, right, leaf} and len(found) == 4
        assert found.index(root) < min(found.index(left), found.index(right)) and found.index(left) < found.index(leaf)


def test_a_parent_that_is_gone_ends_the_climb(ledger):
    orphan = ledger.start_run("s", {}, parent="nobody")
    child = ledger.start_run("s", {}, parent=orphan)
    assert ledger.family(child) == ledger.family(orphan) == [orphan, child]


def test_each_arm_tells_its_layers_and_settings_when_it_begins(ledger, own_studies):
    study = find("toy-blobs")
    params = study.make({"steps": 20, "seeds": 2})
    run = ledger.start_run(study.slug, {}, seeds=[0, 1])
    live.execute(study, params, ledger, run)
    told = [e for e in ledger.events(run) if e["kind"] == "layers"]
    assert [e["arm"] for e in told].count("halves") == 2  # once a stage
    fast = next(e["payload"] for e in told if e["arm"] == "fast")
    assert sum(fast["layers"].values()) == 2 * 2 + 2 and fast["frozen"] == []
    assert fast["settings"]["lr"] == fast["settings"]["rate"] == 0.05
    assert not [e for e in told if e["arm"] == "probe"]  # it does not train
