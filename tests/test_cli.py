"""The command line as a person types it: output, exit codes, and refusals before anything starts."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from claimlab import admission, cli, console, contract, live, readme, remote, runner, scaffold
from claimlab import study as studies
from claimlab.cells import stale, template
from claimlab.ledger import Ledger
from claimlab.params import KnobError

LIST_KEYS = {"slug", "title", "theme", "family", "year", "question", "claims", "knobs", "control"}
CLAIM_KEYS = {"id", "text", "kind", "metric", "arm", "baseline", "better", "margin"}
KNOB_KEYS = {"name", "default", "low", "high", "choices", "unit", "help", "live"}
RUN_KEYS = {"run", "study", "status", "seconds", "params", "verdicts", "notebook", "report", "table"}
VERDICT_KEYS = {"claim", "verdict", "effect", "low", "high", "n", "sentence"}


def said(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_list_json_has_the_documented_keys(own_studies, capsys):
    code, out, _ = said(capsys, "list", "--json")
    listed = {one["slug"]: one for one in json.loads(out)}
    assert code == 0 and {"mixup", "quantum-well-pinn", "fullgrad", "toy-blobs"} <= set(listed)
    for one in listed.values():
        assert set(one) >= LIST_KEYS and set(one["control"]) == {"set", "vanishes", "why"}
        assert all(set(c) >= CLAIM_KEYS for c in one["claims"]) and all(set(k) >= KNOB_KEYS for k in one["knobs"])


def test_list_shows_a_broken_study_and_the_others(own_studies, capsys):
    (own_studies / "blobs" / "bad.py").write_text("raise RuntimeError('no luck')")
    code, out, err = said(capsys, "list")
    assert code == 0 and "BROKEN" in out and "toy-blobs" in out and "bad is broken" in err


def test_listing_needs_no_heavy_import(own_studies):
    code = (
        "import sys; from claimlab import cli; cli.main(['list'])\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    child = subprocess.Popen([sys.executable, "-m", "claimlab.cli", "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(timeout=30) == 0


def test_json_holds_no_nan(own_studies, home, capsys):
    book = Ledger()
    run = book.start_run("toy-blobs", {"rate": 0.1})
    book.event(run, "note", payload={"norm": float("inf"), "losses": [1.0, float("nan")]})
    book.close()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    shown = json.loads(said(capsys, "runs", "show", run, "--json")[1], parse_constant=refuse)
    (event,) = [e for e in shown["events"] if e["kind"] == "note"]
    assert event["payload"] == {"norm": None, "losses": [1.0, None]}


def test_show_prints_claims_and_knobs(own_studies, capsys):
    _, out, _ = said(capsys, "show", "toy-blobs")
    assert "fast-wins" in out and "rate = 0.05" in out and "can be changed while it runs" in out
    _, out, _ = said(capsys, "show", "toy_blobs", "--json")
    assert json.loads(out)["honesty"] == "Two blobs are no data set."


def test_run_json_is_the_last_line_of_stdout(own_studies, home, capsys):
    code, out, err = said(
        capsys, "run", "toy-blobs", "--no-kernel", "--json", "-p", "gap=3", "--seeds", "5", "--profile", "smoke"
    )
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and set(found) >= RUN_KEYS and found["status"] == "finished"
    assert found["params"]["gap"] == 3.0 and found["params"]["seeds"] == 5 and found["params"]["steps"] == 6
    assert all(set(v) >= VERDICT_KEYS for v in found["verdicts"]) and Path(found["table"]).exists()


def test_run_tells_verdicts_and_runs_lists_them(own_studies, home, capsys):
    assert said(capsys, "run", "toy-blobs", "--no-kernel", "--profile", "smoke", "--control")[0] == 0
    _, out, _ = said(capsys, "runs", "--json")
    (one,) = json.loads(out)
    assert one["control"] and one["status"] == "finished"
    _, out, _ = said(capsys, "runs", "show", one["id"])
    assert "fast-wins" in out and "table" in out
    assert "No run yet" in said(capsys, "runs", "--study", "other")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "toy-blob"], "did you mean toy-blobs"),
        (["run", "toy-blobs", "-p", "raet=1"], "did you mean rate"),
        (["run", "toy-blobs", "-p", "rate=7"], "rate must be in [0, 1]"),
        (["run", "toy-blobs", "-p", "rate=abc"], "rate = 'abc'"),
        (["run", "toy-blobs", "-p", "rate=nan"], "rate = nan"),
        (["run", "toy-blobs", "-p", "rate=inf"], "rate = inf"),
        (["run", "toy-blobs", "-p", "steps=1.5"], "a whole number"),
        (["run", "toy-blobs", "--seeds", "0"], "seeds = 0"),
        (["run", "toy-blobs", "--seeds", "two"], "seeds = 'two'"),
        (["run", "toy-blobs", "-p", "rate="], "knob=value"),
        (["run", "toy-blobs", "-p", "rate"], "knob=value"),
        (["show", "nothing-like-it"], "there is no study"),
        (["report"], "name studies"),
        (["report", "--family", "poetry"], "no study is of that family"),
        (["runs", "show", "never"], "there is no run"),
        (["runs", "never"], "is not known"),
        (["steer", "never", "stop"], "there is no run"),
    ],
)
def test_bad_input_ends_with_two_and_a_sentence_and_starts_nothing(own_studies, home, capsys, arguments, words):
    code, out, err = said(capsys, *arguments)
    assert code == 2 and words in err and out == ""
    book = Ledger()
    assert book.runs() == []
    book.close()


def test_a_failing_study_ends_with_one_and_keeps_its_points(own_studies, home, capsys):
    path = own_studies / "blobs" / "toy_blobs.py"
    path.write_text(path.read_text().replace("    last = lab", "    raise ValueError('no ink')\n    last = lab"))
    code, out, _ = said(capsys, "run", "toy-blobs", "--no-kernel", "--json", "--profile", "smoke")
    found = json.loads(out.splitlines()[-1])
    assert code == 1 and found["status"] == "failed" and "no ink" in found["reason"]
    book = Ledger()
    assert len(book.table(found["run"])) > 0
    book.close()


def test_a_run_in_another_process_is_steered_and_stopped(own_studies, home, capsys):
    command = [
        sys.executable,
        "-m",
        "claimlab.cli",
        "run",
        "toy-blobs",
        "--no-kernel",
        "--json",
        "-p",
        "steps=100000",
        "--seeds",
        "2",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    book = Ledger()
    try:
        until = time.monotonic() + 60
        while not [r for r in book.runs(status="running") if r["done"]] and time.monotonic() < until:
            time.sleep(0.1)
        (one,) = book.runs()
        code, out, _ = said(capsys, "steer", one["id"], "set", "lr=0.002")
        assert code == 0 and "applied at step" in out and "0.002" in out
        code, _, err = said(capsys, "steer", one["id"], "set", "lr=-1")
        assert code == 2 and "lr = -1" in err
        code, _, err = said(capsys, "steer", one["id"], "set", "gap=1")
        assert code == 2 and "cannot be changed" in err
        assert said(capsys, "steer", one["id"], "pause")[0] == 0 and book.run(one["id"])["status"] == "paused"
        code, out, _ = said(capsys, "steer", one["id"], "freeze", "weight", "--arm", "slow", "--json")
        assert code == 0 and json.loads(out)["new"] == "weight"
        code, _, err = said(capsys, "steer", one["id"], "step", "3", "4")
        assert code == 2 and "step takes n" in err
        assert said(capsys, "steer", one["id"], "step", "3")[0] == 0
        assert said(capsys, "steer", one["id"], "stop")[0] == 0
        found = json.loads(child.communicate(timeout=60)[0].splitlines()[-1])
    finally:
        child.kill()
    assert child.returncode == 0 and found["status"] == "stopped"
    assert len(book.table(one["id"])) > 0
    assert said(capsys, "steer", one["id"], "stop")[0] == 2
    book.close()


@pytest.mark.parametrize("text", ["9..5", "a", "1,1", "-1", ""])
def test_seeds_of_a_replay_are_whole_numbers_each_once(text):
    with pytest.raises(KnobError, match="write 5..9 or 3,4,8"):
        remote.seeds_of(text)


def test_a_stopped_run_is_resumed_and_a_changed_one_replayed(own_studies, home, capsys):
    assert remote.seeds_of("5..7") == [5, 6, 7] and remote.seeds_of("3,4,8") == [3, 4, 8]
    book, one = Ledger(), studies.find("toy-blobs")
    run = book.start_run(one.slug, {"steps": 40}, seeds=range(5))
    book.command(run, "set", {"name": "lr", "value": 0.5}, arm="slow")
    book.command(run, "stop", {})
    with pytest.raises(live.Stopped):
        live.execute(one, one.make({"steps": 40}), book, run)
    book.set_status(run, "stopped")
    code, out, _ = said(capsys, "resume", run)
    assert code == 0 and "finished" in out and book.run(run)["status"] == "finished"
    code, _, err = said(capsys, "replay", run)
    assert code == 2 and "nothing was changed" in err  # the last checkpoint lies before the change
    assert said(capsys, "resume", run)[0] == 2
    other = book.start_run(one.slug, {"steps": 40}, seeds=range(5))
    book.command(other, "set", {"name": "lr", "value": 0.5}, arm="slow")
    live.execute(one, one.make({"steps": 40}), book, other)
    code, out, _ = said(capsys, "replay", other, "--seeds", "5..9")
    assert code == 0 and "accuracy of with the changes minus left alone" in out and "n = 5" in out
    book.close()


@pytest.mark.parametrize(("chosen", "threads"), [(None, os.cpu_count()), ("1", 1)])
def test_a_run_by_itself_takes_all_cores_unless_told_otherwise(own_studies, home, chosen, threads):
    code = "import sys, claimlab.cli; claimlab.cli.main(sys.argv[1:]); import torch; print(torch.get_num_threads())"
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}  # Dask's workers set several of them
    environment = kept | ({"OMP_NUM_THREADS": chosen} if chosen else {})
    command = [sys.executable, "-c", code, "run", "toy-blobs", "--no-kernel", "--json", "--profile", "smoke"]
    assert int(subprocess.check_output(command, text=True, env=environment).splitlines()[-1]) == threads


def test_interrupt_stops_a_run_and_saves_what_there_is(own_studies, home):
    command = [
        sys.executable,
        "-m",
        "claimlab.cli",
        "run",
        "toy-blobs",
        "--no-kernel",
        "--json",
        "-p",
        "steps=100000",
        "--seeds",
        "2",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    book = Ledger()
    until = time.monotonic() + 60
    while not [r for r in book.runs(status="running") if r["done"]] and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    (one,) = book.runs()
    assert one["status"] == "stopped" and len(book.table(one["id"])) > 0
    book.close()


# ---- ports


def test_a_port_in_use_gives_the_next_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < console.free_port(port) <= port + 100


@pytest.mark.parametrize("port", [0, 70000])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(KnobError, match=f"port = {port}"):
        console.free_port(port)


# ---- the tour and the dashboard


@pytest.mark.slow
def test_the_tour_judges_three_studies_writes_the_report_and_ends(tmp_path, monkeypatch):
    for name in ("CLAIMLAB_HOME", "CLAIMLAB_LEDGER", "CLAIMLAB_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-m", "claimlab.cli", "tour", "--no-serve", "--profile", "smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "runs" / "report" / "index.html").read_text(encoding="utf-8")
    for slug in console.TOUR:
        assert f"{slug} finished" in done.stdout and f"{slug}.html" in text
        for claim in studies.find(slug).claims:
            assert f"{claim.id}: " in done.stdout
    assert Path("runs/report/index.html").as_posix() in done.stdout


def test_an_interrupt_ends_the_tour_and_starts_no_other_study(own_studies, home, monkeypatch, tmp_path):
    started = []

    def interrupted(slug, **options):
        started.append(slug)
        book = Ledger()
        run = book.start_run(slug, {})
        book.event(run, "interrupted")
        book.close()
        return runner.Outcome(run, slug, "stopped", 1.0, {}, [], None, None, None, "interrupted")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(admission, "abreast", lambda: 1)
    monkeypatch.setattr(runner, "run", interrupted)
    assert console.tour(8501, "smoke", serve=False) == 130 and started == [console.TOUR[0]]


def test_a_report_needs_a_job_at_least(own_studies, home, capsys):
    code, _, err = said(capsys, "report", "toy-blobs", "--jobs", "0")
    assert code == 2 and "jobs = 0" in err


def test_the_dashboard_takes_the_next_free_port_says_so_and_ends_with_an_interrupt(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "claimlab.cli", "dashboard", "--port", str(port)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            address = child.stdout.readline().split()[1]
            until = time.monotonic() + 60
            while not healthy(address) and time.monotonic() < until:
                time.sleep(0.1)
            assert healthy(address)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 0 and f"Port {port} is in use" in err and not healthy(address)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_dashboard_that_dies_shows_its_last_words(home, capsys):
    home.mkdir(parents=True)
    (home / "dashboard.log").write_text("no module named sunshine")
    assert console.wait(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])) == 1
    err = capsys.readouterr().err
    assert "code 3" in err and "sunshine" in err


def test_the_notebook_of_one_study_is_synced_alone(own_studies, capsys, monkeypatch):
    one = studies.find("toy-blobs")
    one.path.with_suffix(".ipynb").write_text(template(one).replace("rate: float", "pace: float"), encoding="utf-8")
    synced = []
    monkeypatch.setattr(readme, "sync", lambda root: synced.append(root) or [])
    assert stale(one.notebook)
    code, out, _ = said(capsys, "sync", "toy-blobs")
    assert code == 0 and out.strip() == str(one.notebook) and not stale(one.notebook) and synced == []
    assert said(capsys, "sync", "nobody")[0] == 2


# ---- a new study


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project whose studies lie in src/claimlab/studies, as in the real one."""
    monkeypatch.setenv("CLAIMLAB_ROOT", str(tmp_path))
    monkeypatch.setenv("CLAIMLAB_STUDIES", str(tmp_path / "src" / "claimlab" / "studies"))
    return tmp_path


def test_a_new_study_keeps_the_contract_up_to_what_a_person_must_write(project, capsys):
    assert cli.main(["new", "my_paper", "--family", "training"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    left = contract.missing(studies.find("my-paper"))
    assert left and all(one.startswith("still to write") for one in left)


def test_a_new_study_runs_and_its_test_passes(project, home):
    module, notebook, test = scaffold.write("my-paper", "training", project)
    assert notebook.exists()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)], capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("slug", ["My Paper", "../x", "2fast", "mixup", ""])
def test_a_bad_or_taken_name_is_refused(project, slug):
    with pytest.raises(studies.StudyError):
        scaffold.write(slug, "training", project)
    assert not list(project.rglob("*.py"))


# ---- what is generated


def test_the_readme_is_in_sync_with_the_reference_results():
    root = studies.PACKAGE.parent.parent
    assert (root / "README.md").read_text(encoding="utf-8") == readme.fresh(root)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_what_a_page_links_to_is_there(name):
    path = studies.PACKAGE.parent.parent / name
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link.partition("#")[0]).exists()] == []


def test_reference_results_replace_those_of_the_same_study_and_reach_the_readme(tmp_path, monkeypatch):
    root = studies.PACKAGE.parent.parent
    own = tmp_path / "src"  # studies that lie inside of the project whose results are recorded
    for slug in ("aa", "bb"):
        (own / "blobs").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "tests" / "fixtures" / "toy_blobs.py", own / "blobs" / f"{slug}.py")
    monkeypatch.setenv("CLAIMLAB_STUDIES", str(own))
    (tmp_path / "README.md").write_text(f"{readme.BEGIN}\n{readme.END}\n", encoding="utf-8")
    head = "study,claim,kind,verdict,effect,low,high,n,margin,control,says_nothing,profile"
    old = "aa,fast-wins,paired,undecided,0.1,0,0.2,5,0.05,,no,default\nbb,fast-wins,paired,refuted,0,0,0,5,0.05,,no,default"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "verdicts.csv").write_text(f"{head}\n{old}\n", encoding="utf-8")
    new = "aa,fast-wins,paired,supported,0.3,0.2,0.4,5,0.05,,yes,default\nmixup,x,paired,supported,1,1,1,5,0,,no,default"
    (tmp_path / "new.csv").write_text(f"{head}\n{new}\n", encoding="utf-8")
    readme.record(tmp_path, tmp_path / "new.csv")
    kept = (tmp_path / "data" / "verdicts.csv").read_text(encoding="utf-8").splitlines()
    assert kept == [head, new.splitlines()[0], old.splitlines()[1]]
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "✔ fast-wins: supported (also under its control: says nothing)" in text and "✘ fast-wins: refuted" in text


def test_a_reference_needs_the_default_profile(own_studies, home, capsys):
    code, out, err = said(capsys, "report", "toy-blobs", "--profile", "smoke", "--reference")
    assert code == 2 and "default profile" in err and out == ""


def test_a_stale_readme_is_written_anew(tmp_path):
    root = studies.PACKAGE.parent.parent
    (tmp_path / "data").mkdir()
    shutil.copy(root / "README.md", tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text.replace("|---|---|---|", "|---|"), encoding="utf-8")
    assert readme.sync(tmp_path) and not readme.sync(tmp_path)
