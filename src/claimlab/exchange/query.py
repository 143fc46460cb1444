"""`claimlab sql`: questions in SQL over all closed runs, asked of DuckDB.

metrics reads the Parquet files of the runs themselves; runs, verdicts and events come from the ledger. A query can read these
tables and nothing else: no other file, no network, no extension, and it cannot write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimlab.params import KnobError

if TYPE_CHECKING:
    import pandas as pd

TABLES = {
    "runs": "run VARCHAR, study VARCHAR, status VARCHAR, profile VARCHAR, control BOOLEAN, started TIMESTAMP, ended TIMESTAMP, "
            "seconds DOUBLE, n BIGINT, params JSON, versions JSON, parent VARCHAR, reason VARCHAR",
    "verdicts": "run VARCHAR, study VARCHAR, claim VARCHAR, verdict VARCHAR, effect DOUBLE, low DOUBLE, high DOUBLE, "
                "threshold DOUBLE, n BIGINT, control BOOLEAN, sentence VARCHAR",
    "events": "run VARCHAR, study VARCHAR, kind VARCHAR, step BIGINT, arm VARCHAR, seed BIGINT, time TIMESTAMP, payload JSON",
    "metrics": "run VARCHAR, study VARCHAR, arm VARCHAR, seed BIGINT, step BIGINT, metric VARCHAR, value DOUBLE",
}  # fmt: skip
READS = ("SELECT", "EXPLAIN", "MULTI")  # MULTI is a PIVOT whose columns come from the data


class Answers:
    """The closed runs of a ledger as tables of an own DuckDB in memory; `ask` as often as you like."""

    def __init__(self, book: Any):
        import duckdb

        self.duckdb = duckdb
        self.connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
        for name, columns in TABLES.items():
            if name != "metrics":
                self.connection.execute(f"CREATE TABLE {name} ({columns})")
        files = self._fill(book)
        self._metrics(files)
        for name, value in (("python_enable_replacements", "false"), ("allowed_paths", f"[{_listed(files)}]"),
                            ("enable_external_access", "false"), ("lock_configuration", "true")):  # fmt: skip
            self.connection.execute(f"SET {name} = {value}")

    def _fill(self, book: Any) -> dict[Path, str]:
        """Enter runs, verdicts and events; the Parquet files of the runs that have one."""
        from claimlab.ledger import ENDED

        closed = [row for row in book.runs(limit=None) if row["status"] in ENDED]
        verdicts, events, files = [], [], {}
        for row in closed:
            run, study = row["id"], row["study"]
            verdicts += [(run, study, *(v.get(k) for k in ("claim", "verdict", "effect", "low", "high", "threshold", "n")),
                          bool(v["control"]), v.get("sentence")) for v in book.verdicts(run)]  # fmt: skip
            events += [(run, study, e["kind"], e["step"], e["arm"], e["seed"], e["time"], json.dumps(e["payload"]))
                       for e in book.events(run)]  # fmt: skip
            files |= {Path(a["path"]): run for a in book.artifacts(run) if a["kind"] == "table" and _whole(Path(a["path"]))}
        self._enter("runs", [_run(row) for row in closed], times=("started", "ended"))
        self._enter("verdicts", verdicts)
        self._enter("events", events, times=("time",))
        return files

    def _enter(self, name: str, rows: list[tuple], times: tuple[str, ...] = ()) -> None:
        import pandas as pd

        names = [column.split()[0] for column in TABLES[name].split(", ")]
        frame = pd.DataFrame(rows, columns=names, dtype=object)
        self.connection.register("given", frame)
        shown = [f"make_timestamp(CAST(1e6 * CAST({n} AS DOUBLE) AS BIGINT))" if n in times else n for n in names]
        self.connection.execute(f"INSERT INTO {name} SELECT {', '.join(shown)} FROM given")
        self.connection.unregister("given")

    def _metrics(self, files: dict[Path, str]) -> None:
        self.connection.execute("CREATE TABLE file (filename VARCHAR, run VARCHAR)")
        if not files:
            self.connection.execute(f"CREATE TABLE metrics ({TABLES['metrics']})")
            return
        self.connection.executemany("INSERT INTO file VALUES (?, ?)", [[str(path), run] for path, run in files.items()])
        self.connection.execute(f"CREATE VIEW metrics AS SELECT run, study, arm, seed, step, metric, value "
                                f"FROM read_parquet([{_listed(files)}], filename=true) JOIN file USING (filename)")  # fmt: skip

    def ask(self, text: str) -> pd.DataFrame:
        """The answer to one query. KnobError says in DuckDB's words what is wrong with it."""
        try:
            found = self.connection.extract_statements(text)
            if len(found) != 1 or found[0].type.name not in READS:
                raise KnobError("the query must be one SELECT; runs are read here and never changed")
            return self.connection.execute(found[0]).df()
        except self.duckdb.Error as error:
            if isinstance(error, self.duckdb.InterruptException):
                raise KeyboardInterrupt from None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            hint = " ".join(line for line in lines[1:] if line.startswith(("Did you mean", "Candidate")))
            tables = f" Tables: {', '.join(TABLES)}." if "Table with name" in lines[0] else hint and f" {hint}"
            raise KnobError(f"the query cannot be answered: {lines[0]}{tables}") from None


def _listed(files: Iterable[Path]) -> str:
    """Paths as texts of SQL."""
    return ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)


def _whole(path: Path) -> bool:
    """Whether a Parquet file is there and ends as one does: a disk that was full leaves others, which no query should meet."""
    try:
        with path.open("rb") as file:
            file.seek(-4, 2)
            return file.read() == b"PAR1"
    except OSError:
        return False


def _run(row: dict[str, Any]) -> tuple:
    seconds = row["ended"] - row["started"] if row["ended"] else None
    return (row["id"], row["study"], row["status"], row["profile"], bool(row["control"]), row["started"], row["ended"], seconds,
            len(row["seeds"]), json.dumps(row["params"]), json.dumps(row["versions"]), row["parent"], row["reason"])  # fmt: skip


def shown(frame: pd.DataFrame, kind: str) -> str:
    """An answer as an aligned table, as CSV or as a JSON list of objects; what is not finite or absent is null there."""
    if kind == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    if kind == "json":
        return frame.to_json(orient="records", date_format="iso", indent=1)
    if frame.empty:
        return f"no rows; columns: {', '.join(frame.columns)}"
    return frame.to_string(index=False, na_rep="", max_colwidth=80)
