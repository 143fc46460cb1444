"""SQL over closed runs: the answers against pandas, what a query cannot reach, what is said of a wrong one."""

import io
import json
import math

import pandas as pd
import pytest

from claimlab import cli
from claimlab.ledger import Ledger

VERDICT = {"claim": "better", "verdict": "supported", "effect": 0.25, "low": 0.1, "high": None, "n": 2, "sentence": "It is.",
           "threshold": 0.0}  # fmt: skip


@pytest.fixture
def runs(ledger):
    """Two closed runs and one that goes on; the ids of the closed ones."""
    found = []
    for alpha in (1.0, 2.0):
        run = ledger.start_run("toy", {"alpha": alpha}, seeds=[0, 1])
        ledger.log(run, [("new", seed, step, "loss", alpha * step + seed) for seed in (0, 1) for step in range(4)])
        ledger.log(run, [("new", 0, 9, "loss", math.nan)])
        ledger.event(run, "set", step=2, arm="new", payload={"name": "lr"})
        ledger.record_verdicts(run, [{**VERDICT, "effect": alpha}])
        ledger.finish(run)
        ledger.set_status(run, "finished")
        found.append(run)
    going = ledger.start_run("toy", {"alpha": 9.0}, status="running")
    ledger.log(going, [("new", 0, 0, "loss", 1.0)])
    ledger.flush()
    return found


def asked(capsys, text, *options):
    assert cli.main(["sql", text, *options]) == 0
    return capsys.readouterr().out


def test_metrics_are_those_of_the_closed_runs(runs, ledger, capsys):
    text = "select run, max(step) as last, avg(value) as mean from metrics where isfinite(value) group by run"
    found = pd.read_csv(io.StringIO(asked(capsys, text, "--csv"))).set_index("run")
    assert sorted(found.index) == sorted(runs)
    for run in runs:
        table = ledger.table(run).dropna()
        assert found.loc[run, "mean"] == pytest.approx(table["value"].mean()) and found.loc[run, "last"] == table["step"].max()


def test_runs_verdicts_and_events_join(runs, capsys):
    text = """select r.params->>'alpha' as alpha, r.n, v.verdict, v.effect, v.high, e.kind, year(r.started) > 2000 as dated
              from runs r join verdicts v using (run) join events e using (run) order by alpha"""
    found = json.loads(asked(capsys, text, "--json"))
    one = {"n": 2, "verdict": "supported", "high": None, "kind": "set", "dated": True}
    assert found == [{"alpha": "1.0", **one, "effect": 1.0}, {"alpha": "2.0", **one, "effect": 2.0}]


def test_the_default_is_a_table_and_without_a_query_the_columns_are_told(runs, capsys):
    lines = asked(capsys, "select study, count(*) as n from runs group by study").splitlines()
    assert [line.split() for line in lines] == [["study", "n"], ["toy", "2"]]
    assert cli.main(["sql"]) == 0
    assert "metrics: run VARCHAR" in capsys.readouterr().out


def test_an_empty_lab_has_empty_tables(home, capsys):
    assert "no rows; columns: run" in asked(capsys, "select run from metrics")


def test_a_home_with_a_quote_in_its_name_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLAIMLAB_HOME", str(tmp_path / "it's mine"))
    book = Ledger()
    run = book.start_run("toy", {})
    book.log(run, [("new", 0, 0, "loss", 1.0)])
    book.finish(run)
    book.set_status(run, "finished")
    book.close()
    assert asked(capsys, "select value from metrics", "--csv").split() == ["value", "1.0"]


def test_a_damaged_table_is_left_out_and_the_others_answer(runs, home, capsys):
    (home / runs[0] / "table.parquet").write_bytes(b"PAR1 the disk was full")
    assert asked(capsys, "select distinct run from metrics", "--csv").split() == ["run", runs[1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("selec 1", "syntax error"),
        ("select nope from runs", "nope"),
        ("select * from run", "Tables: runs, verdicts, events, metrics"),
        ("drop table runs", "one SELECT"),
        ("select 1; select 2", "one SELECT"),
        ("", "one SELECT"),
        ("copy (select 1) to 'stolen.csv'", "one SELECT"),
        ("set enable_external_access = true", "one SELECT"),
        ("attach 'other.db'", "one SELECT"),
        ("select * from read_csv('/etc/passwd')", "file system operations are disabled"),
        ("select * from read_text('/etc/passwd')", "file system operations are disabled"),
        ("select * from '/etc/passwd'", "does not exist"),
        ("select * from glob('/*')", "file system operations are disabled"),
        ("select * from read_parquet('/etc/passwd')", "file system operations are disabled"),
        ("select * from book", "does not exist"),  # a variable of the program that asks
        ("select cast('x' as integer)", "Could not convert"),
    ],
)
def test_a_wrong_or_prying_query_is_a_sentence_and_code_two(runs, capsys, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["sql", text]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.out == "" and "Traceback" not in shown.err and len(shown.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
