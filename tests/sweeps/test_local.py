"""Sweeps on this machine with real processes: what they compute, and what a kill leaves behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from claimlab import admission
from claimlab.ledger import ENDED
from claimlab.study import StudyError, find
from claimlab.sweeps import conduct, local, plan, results, space


def planned(study, *grids, **facts):
    return plan.make(study, [space.grid(study, text) for text in grids], **facts)


def command(*words):
    return subprocess.Popen([sys.executable, "-m", "claimlab.cli", "sweep", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)  # fmt: skip


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def test_a_sweep_gives_the_effects_of_the_formula_and_is_not_run_twice(plane, book):
    made = planned(plane, "x1=-1,0.5", "shape=flat,steep")
    tally = conduct.conduct(made, book, jobs=2)
    assert (tally.status, tally.done, tally.total) == ("finished", 4, 4)
    found = results.rows(book, tally.name)
    assert [results.effect(row, "tilts") for row in found] == pytest.approx([-3, 1, 1.5, 5.5])
    kept = [row["run"] for row in found]
    assert {book.run(run)["branch"] for run in kept} == {f"sweep {tally.name}"[:80]}
    assert book.run(kept[0])["seeds"] == [0, 1, 2, 3, 4] and not book.table(kept[0]).empty
    again = conduct.conduct(made, book, jobs=2)
    assert [p["run"] for p in book.points(again.name)] == kept and len(book.runs()) == 4
    wider = conduct.conduct(planned(plane, "x1=-1,0.5", "shape=flat,ramp,steep"), book, name="wider", jobs=2)
    assert wider.done == 6 and len(book.runs()) == 6  # four of them were there already
    with pytest.raises(StudyError, match="another plan"):
        conduct.conduct(planned(plane, "x1=-1,0"), book, name="wider")


def test_a_run_that_is_killed_or_raises_fails_alone(plane, own_studies, book, until):
    path = own_studies / "planes" / "toy_plane.py"
    path.write_text(path.read_text().replace("time.sleep(self.p.wait)", "time.sleep(self.p.wait / (self.p.x2 != 2))"))
    study = find("toy-plane")
    made = planned(study, "x2=0,1,2", fixed={"wait": 0.02, "steps": 60})

    def kill():
        going = until(lambda: [r for r in book.runs(status="running") if r["params"]["x2"] == 1 and r["done"] is not None])
        os.kill(going[0]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    tally = conduct.conduct(made, book, jobs=2)
    killer.join()
    found = {row["params"]["x2"]: row for row in results.rows(book, tally.name)}
    assert (tally.status, tally.done) == ("failed", 1) and found[0]["status"] == "finished"
    assert found[1]["status"] == "failed" and "signal 9" in found[1]["reason"]
    assert found[2]["status"] == "failed" and "ZeroDivisionError" in found[2]["reason"]
    first = found[0]["run"]
    assert conduct.conduct(made, book, jobs=2).done == 2  # the killed one is made again, the other raises again
    assert book.points(tally.name)[0]["run"] == first and len(book.runs()) == 5


def test_a_sweep_whose_driver_is_killed_goes_on_where_it_stopped(plane, book, until):
    words = ["toy-plane", "--grid", "x1=0,1,2", "-p", "wait=0.02", "-p", "steps=50", "--jobs", "1", "--name", "cut"]
    driver = command(*words)
    until(lambda: [r for r in book.runs(status="finished")])
    until(lambda: [r for r in book.runs(status="running")])
    driver.kill()
    driver.communicate()
    orphan = book.runs()[0]["pid"]
    until(lambda: gone(orphan))  # a run does not outlive whoever asked for it
    assert book.sweeps()[0]["status"] == "interrupted"
    kept = [p["run"] for p in book.points("cut") if p["status"] == "finished"]
    again = command(*words)
    said = again.communicate()[0]
    assert again.returncode == 0 and "finished already" in said and "holds in" in said
    assert [p["status"] for p in book.points("cut")] == ["finished"] * 3
    assert [p["run"] for p in book.points("cut")][: len(kept)] == kept
    assert all(r["status"] in ENDED for r in book.runs()) and len(book.runs(status="finished")) == 3


def test_ctrl_c_stops_what_runs_and_keeps_it(plane, book, until):
    words = ["toy-plane", "--grid", "x1=0,1", "-p", "wait=0.05", "-p", "steps=10000", "--name", "long"]
    driver = command(*words, "--jobs", "2")
    until(lambda: len([r for r in book.runs(status="running") if book.cursor(r["id"])]) == 2)
    with pytest.raises(StudyError, match="goes on already"):
        conduct.conduct(planned(find("toy-plane"), "x1=0,1", fixed={"wait": 0.05, "steps": 10000}), book, name="long")
    os.killpg(driver.pid, signal.SIGINT)
    said = driver.communicate()[0]
    assert driver.returncode == 130 and "the same command goes on" in said
    assert [(r["status"], book.table(r["id"]).empty) for r in book.runs()] == [("stopped", False)] * 2
    assert book.sweep("long")["status"] == "stopped" and all(gone(r["pid"]) for r in book.runs())


def test_a_run_that_was_steered_is_not_judged(study, book, until):
    made = planned(study, "rate=0.01,0.02", fixed={"steps": 400})

    def steer():
        going = until(lambda: [r for r in book.runs(status="running") if r["params"]["rate"] == 0.01 and book.cursor(r["id"])])
        book.command(going[0]["id"], "set", {"name": "lr", "value": 0.3}, arm="fast")

    hand = threading.Thread(target=steer)
    hand.start()
    tally = conduct.conduct(made, book, jobs=2)
    hand.join()
    found = results.rows(book, tally.name)
    assert tally.done == 2 and "steered" in found[0]["judged"]["fast-wins"]["reason"]
    one = results.share(study.claims[0], found, book.sweep(tally.name)["plan"])
    assert (one.judged, one.silent) == (1, 1)
    other = conduct.conduct(made, book, name="another", jobs=2)  # what was steered answers no other sweep
    assert book.points(other.name)[0]["run"] != found[0]["run"] and book.points(other.name)[1]["run"] == found[1]["run"]


class Idle:
    """A child as the pool sees it."""

    class process:  # noqa: N801
        pid = 1


def test_a_run_is_admitted_where_cores_and_memory_are_free(monkeypatch):
    pool = local.Local(None, jobs=3)
    here = {"free": 0, "held": 100 << 20}
    monkeypatch.setattr(admission, "free", lambda: here["free"])
    monkeypatch.setattr(admission, "resident", lambda pid: here["held"])
    assert pool.room()  # one run is always tried
    pool.children = [Idle()]
    assert not pool.room()
    # enough for one more, and for what the first will still take
    here["free"] = admission.SPARE + 2 * admission.USUAL - here["held"]
    assert pool.room()
    here["free"] -= 1 << 20
    assert not pool.room()
    pool.need = 100 << 20  # seen to be small
    assert pool.room()
    pool.children = [Idle()] * 3
    assert not pool.room()
