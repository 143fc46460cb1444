"""Sweeps on a real Dask scheduler with two worker processes, one of which is killed in mid-sweep."""

import signal
import socket
import subprocess
import sys
import threading

import pandas as pd
import pytest

from claimlab.ledger import ENDED
from claimlab.study import StudyError
from claimlab.sweeps import conduct, plan, space

distributed = pytest.importorskip("distributed")


def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def dask(*words):
    return subprocess.Popen([sys.executable, "-m", "dask", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


@pytest.fixture
def cluster(home, own_studies, until, tmp_path):
    """The address of a scheduler on the loopback address, and its two workers."""
    here = f"127.0.0.1:{port()}"
    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", here.split(":")[1], "--no-dashboard")
    workers = [dask("worker", here, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / f"w{i}"))
               for i in range(2)]  # fmt: skip

    def up():
        try:
            with distributed.Client(here, timeout=1, set_as_default=False) as client:
                return len(client.scheduler_info(n_workers=-1)["workers"]) == 2
        except (OSError, TimeoutError):
            return False

    until(up)
    yield here, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


def alike(one, other):
    key = ["arm", "seed", "step", "metric"]
    pd.testing.assert_frame_equal(one.sort_values(key, ignore_index=True), other.sort_values(key, ignore_index=True), check_exact=True)


def test_a_worker_that_dies_is_survived_and_the_numbers_are_those_of_this_machine(cluster, study, plane, book, until):
    address, workers = cluster
    made = plan.make(plane, [space.grid(plane, "x1=0,1,2,3")], fixed={"wait": 0.05, "steps": 40})

    def kill():
        until(lambda: len([r for r in book.runs(status="running") if book.cursor(r["id"])]) == 2)
        workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    tally = conduct.conduct(made, book, engine=f"dask://{address}", name="far")
    killer.join()
    assert (tally.status, tally.done) == ("finished", 4)
    assert sorted(r["status"] for r in book.runs()) in (["finished"] * 4 + ["lost"], ["finished"] * 4 + ["stopped"])
    blobs = plan.make(study, [space.grid(study, "rate=0.02,0.3")])
    far = conduct.conduct(blobs, book, engine=f"dask://{address}", name="blobs-far")
    runs = [p["run"] for p in book.points(far.name)]
    book._connection.exec_driver_sql("DELETE FROM sweep_point")  # so that the second sweep cannot take the runs of the first
    book._connection.commit()
    near = conduct.conduct(blobs, book, name="blobs-near", jobs=2)
    for run, point in zip(runs, book.points(near.name), strict=True):
        assert point["run"] != run
        alike(book.table(run), book.table(point["run"]))


def test_a_stopped_sweep_ends_its_runs_on_the_workers_and_goes_on_on_another_engine(cluster, plane, book, until):
    address, _ = cluster
    words = ["sweep", "toy-plane", "--grid", "x1=0,1,2", "-p", "wait=0.02", "-p", "steps=60", "--name", "moved"]
    driver = subprocess.Popen([sys.executable, "-m", "claimlab.cli", *words, "--engine", f"dask://{address}"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    until(lambda: len([r for r in book.runs(status="running") if book.cursor(r["id"])]) == 2)
    driver.send_signal(signal.SIGINT)
    said = driver.communicate()[0]
    assert driver.returncode == 130, said
    until(lambda: all(r["status"] in ENDED for r in book.runs()))
    assert len(book.runs(status="finished")) < 3
    made = plan.make(plane, [space.grid(plane, "x1=0,1,2")], fixed={"wait": 0.02, "steps": 60})
    assert conduct.conduct(made, book, name="moved", jobs=2).done == 3


def test_what_is_no_scheduler_is_refused_before_anything_starts(plane, book):
    made = plan.make(plane, [space.grid(plane, "x1=0,1")])
    with pytest.raises(StudyError, match="no Dask scheduler answers"):
        conduct.conduct(made, book, engine=f"dask://127.0.0.1:{port()}")
    with pytest.raises(StudyError, match="is not allowed: local, dask-local"):
        conduct.conduct(made, book, engine="ray")
    assert book.runs() == [] and book.sweeps() == []


@pytest.mark.slow
def test_workers_of_its_own(plane, book):
    made = plan.make(plane, [space.grid(plane, "x1=0,1")])
    assert conduct.conduct(made, book, engine="dask-local", jobs=1).done == 2
