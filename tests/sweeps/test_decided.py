"""Seeds are added until every claim is decided: what is trained, joined, judged, taken from earlier runs, refused."""

import numpy as np
import pytest

from claimlab import cli
from claimlab.experiment import Experiment
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.sweeps import decided, looks

HARD = {"rate": 0.02, "gap": 1.0, "steps": 12}  # not decided by five seeds
EASY = {"rate": 0.004, "gap": 0.3, "steps": 12}  # decided by five: the arms are level


def run(book, **options):
    values = options.pop("values", HARD)
    return decided.run("toy-blobs", values, ledger=book, **{"most": 20, **options})


def companies(book, run):
    return [e["payload"]["seeds"] for e in book.events(run) if e["kind"] == "company"]


def test_what_is_decided_at_once_ends_at_the_first_look(study, ledger):
    outcome = run(ledger, values=EASY)
    assert outcome.status == "finished" and companies(ledger, outcome.run) == [[0, 1, 2, 3, 4]]
    assert all(v["verdict"] != "undecided" for v in outcome.verdicts)
    assert ledger.run(outcome.run)["seeds"] == [0, 1, 2, 3, 4]


def test_the_joined_table_is_that_of_all_seeds_in_one_company(study, ledger):
    heard = []
    outcome = run(ledger, told=heard.append)
    seeds = ledger.run(outcome.run)["seeds"]
    assert len(seeds) > 5 and sorted(s for one in companies(ledger, outcome.run) for s in one) == seeds
    key = ["arm", "seed", "step", "metric"]
    joined = ledger.table(outcome.run).set_index(key)["value"].sort_index()
    alone = Experiment(study, study.make(HARD), seeds).run().table.set_index(key)["value"].sort_index()
    assert list(joined.index) == list(alone.index) and np.allclose(joined, alone, atol=1e-5)
    looked = [e["payload"] for e in ledger.events(outcome.run) if e["kind"] == "look"]
    assert [one["seeds"] for one in looked] == [n for n in looks.LOOKS if n <= len(seeds)] and len(heard) == len(looked)
    widths = [one["claims"][0]["high"] - one["claims"][0]["low"] for one in looked]
    assert widths == sorted(widths, reverse=True)  # the interval shrinks
    judged = looks.judge(study.claims, ledger.table(outcome.run))
    assert [v.verdict for v in judged] == [v["verdict"] for v in ledger.verdicts(outcome.run)]
    assert any(a["kind"] == "figure:accuracy" for a in ledger.artifacts(outcome.run))


def test_seeds_that_have_been_run_are_not_run_again(study, ledger, monkeypatch):
    first = run(ledger, most=5)
    assert {v["verdict"] for v in first.verdicts} == {"undecided"}
    trained = []
    whole = decided.Experiment

    def watched(study, params, seeds=None):
        found = whole(study, params, seeds)
        monkeypatch.setattr(found, "stepwise", lambda kept=found.stepwise: trained.append(list(seeds)) or kept())
        return found

    monkeypatch.setattr(decided, "Experiment", watched)
    second = run(ledger)
    assert [s for one in trained for s in one] and min(s for one in trained for s in one) == 5
    trained.clear()
    third = run(ledger)
    assert trained == [] and third.verdicts == second.verdicts
    assert ledger.table(third.run).equals(ledger.table(second.run))
    assert run(ledger, values={**HARD, "steps": 10}, most=5).status == "finished" and trained  # other knobs: all anew


def test_a_member_that_diverges_ends_the_search(study, ledger):
    outcome = run(ledger, values={**HARD, "poison": 2}, most=80)
    assert companies(ledger, outcome.run) == [[0, 1, 2, 3, 4]]
    assert {v["verdict"] for v in outcome.verdicts} == {"undecided"} and "seed 2" in outcome.verdicts[0]["reason"]


def test_it_is_stopped_but_not_changed_and_goes_on_where_it_was(study, ledger):
    driver, sent = Ledger(ledger.url), []

    def interfere(_text):
        name = ledger.runs()[0]["id"]
        sent.extend(driver.command(name, verb, payload) for verb, payload in (("set", {"name": "lr", "value": 0.1}), ("stop", {})))

    stopped = run(ledger, told=interfere)
    changed, ended = driver.commands(stopped.run)
    assert not changed["ok"] and "would not be judged" in changed["reason"] and ended["ok"]
    assert stopped.status == "stopped" and companies(ledger, stopped.run) == [[0, 1, 2, 3, 4]]
    assert stopped.verdicts and {v["n"] for v in stopped.verdicts} == {5}  # those of the last look stand
    heard = []
    assert run(ledger, told=heard.append).status == "finished" and stopped.run in heard[0]
    driver.close()


def test_it_is_not_taken_for_an_ordinary_run(study, ledger):
    outcome = run(ledger, most=5)
    assert ledger.run(outcome.run)["profile"] == "default, looks"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--until-decided", "--max-seeds", "4"], "max-seeds = 4"),
        (["--until-decided", "--seeds", "9"], "seeds is not allowed"),
        (["--until-decided", "-p", "gap=99"], "gap = 99"),
        (["--max-seeds", "20"], "--until-decided"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(study, ledger, capsys, words, said):
    assert cli.main(["run", "toy-blobs", *words]) == 2
    assert said in capsys.readouterr().err and ledger.runs() == []


def test_a_study_whose_seeds_begin_above_the_first_look_is_refused(own_studies, ledger):
    path = own_studies / "blobs" / "toy_blobs.py"
    wider = path.read_text().replace('knob(5, "independent repetitions", low=2', 'knob(8, "independent repetitions", low=8')
    path.write_text(wider.replace("seeds=2", "seeds=8"))
    with pytest.raises(KnobError, match="seeds = 5"):
        run(ledger)
