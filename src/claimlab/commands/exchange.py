"""Commands that hand results on or take things in: export, sql, diff, ledger copy, data check."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from claimlab.params import PROFILES, KnobError

FORMATS = ("mlflow", "tensorboard", "csv", "parquet")


def register(add: Any) -> None:
    one = add("export", export, "write a run that has ended in the format of another tool", reads=True)
    one.add_argument("run")
    one.add_argument("format", choices=FORMATS)
    one.add_argument("-o", "--out", type=Path, default=Path("runs/export"), help="the folder (default: runs/export)")
    one = add("sql", sql, "ask all closed runs in SQL; without a query: the tables and their columns", reads=True)
    one.add_argument("query", nargs="?", metavar="QUERY", help="one SELECT over runs, metrics, verdicts and events")
    one.add_argument("--csv", action="store_true", help="comma-separated output")
    one = add("diff", diff, "what differs between two runs or two reports: knobs, source, versions, verdicts, numbers", reads=True)
    one.add_argument("a", metavar="A", help="a run, or the folder of a report")
    one.add_argument("b", metavar="B")
    one = add("ledger", ledger, "copy all runs into another database, as from SQLite to a team's PostgreSQL", reads=True)
    one.add_argument("what", choices=["copy"])
    one.add_argument("source", metavar="FROM", help="a ledger.db, or the URL of a database")
    one.add_argument("target", metavar="TO", help="an empty database, or one that this copy has begun to fill")
    one = add("data", data, "say what a study finds in a file of yours, or what is wrong with it", reads=True)
    one.add_argument("what", choices=["check"])
    one.add_argument("file", type=Path, help="a file, or a folder where the study asks for one")
    one.add_argument("--study", required=True)
    one.add_argument("-p", "--knob", action="append", default=[], metavar="KNOB=VALUE", help="a knob that the file needs")
    one.add_argument("--profile", choices=PROFILES, default="default")


def export(options) -> int:
    from claimlab.cli import tell
    from claimlab.exchange.closed import closed
    from claimlab.exchange.export import FORMATS as writers
    from claimlab.ledger import Ledger

    with closing(Ledger()) as book:
        one = closed(book, options.run)
    path, said = writers[options.format](one, options.out)
    tell({"run": one.run, "format": options.format, "path": str(path)}) if options.json else print(f"{path}: {said}")
    return 0


def sql(options) -> int:
    from claimlab.exchange import query
    from claimlab.ledger import Ledger

    if options.csv and options.json:
        raise KnobError("--csv and --json exclude each other")
    kind = "csv" if options.csv else "json" if options.json else "table"
    if options.query is None:
        for name, columns in query.TABLES.items():
            print(f"{name}: {columns}")
        return 0
    with closing(Ledger()) as book:
        print(query.shown(query.Answers(book).ask(options.query), kind))
    return 0


def diff(options) -> int:
    from claimlab.cli import tell
    from claimlab.exchange import difference
    from claimlab.ledger import Ledger

    with closing(Ledger()) as book:
        found = difference.diff(book, options.a, options.b)
    tell(found) if options.json else print(difference.told(found))
    return 0


def data(options) -> int:
    from claimlab.cli import tell
    from claimlab.exchange import own
    from claimlab.params import pairs

    found = own.check(options.study, options.file, pairs(options.knob), options.profile)
    tell(found) if options.json else print(own.told(found))
    return 0


def ledger(options) -> int:
    import sys

    from claimlab.cli import tell
    from claimlab.exchange import moving

    def progress(table: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{table} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    found = moving.copy(options.source, options.target, progress)
    tell(found) if options.json else print(moving.told(found))
    return 0
