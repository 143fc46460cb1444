"""Reports that lie in the home of runs: what each says, what changed since the one before, what failed, and its files."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly
import streamlit as st
from panels import store
from panels.wording import ago, humanised, plain

from claimlab import ledger as ledgers
from claimlab.export import PLOTLY
from claimlab.reports import document as documents

TAIL = 60  # lines of a log that are shown


@dataclass(frozen=True)
class Report:
    """One report folder and what its report.json says."""

    folder: Path
    written: float
    said: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder seen from the home of runs."""
        return self.folder.relative_to(ledgers.home()).as_posix()

    @property
    def profile(self) -> str:
        return self.said["profile"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.said["verdicts"]

    @property
    def failures(self) -> list[dict[str, Any]]:
        return self.said["failures"]

    @property
    def counts(self) -> dict[str, int]:
        return self.said["counts"]


def found() -> list[Report]:
    """All reports under the home of runs, newest first."""
    home = ledgers.home()
    places = [*home.glob(f"*/{documents.NAME}"), *home.glob(f"*/*/{documents.NAME}")]
    read = ((path, _read(str(path), path.stat().st_mtime)) for path in places)
    known = [Report(path.parent, documents.moment(said["written"]), said) for path, said in read if said is not None]
    return sorted(known, key=lambda r: (r.written, r.said["id"]), reverse=True)


@st.cache_data(max_entries=200, show_spinner=False)
def _read(path: str, stamp: float) -> dict[str, Any] | None:
    return documents.read(Path(path))


def changes(one: Report, reports: Iterable[Report]) -> tuple[list[str], str]:
    """In words: the claims whose verdict is another one than before, and before what; nothing to compare with gives ''.

    Before is the last report in the same folder, else the last one anywhere that shows a claim of this one, else the runs before.
    """
    if one.said["before"]:
        return [documents.sentence(c) for c in one.said["changes"]], "the report before it in the same folder"
    claims = {(row["study"], row["claim"]) for row in one.rows}
    for other in sorted(reports, key=lambda r: r.written, reverse=True):
        shared = other.profile == one.profile and claims & {(row["study"], row["claim"]) for row in other.rows}
        if other.written < one.written and shared:
            return _against(one, [other.said]), f"the report {other.name}"
    before = _earlier(one)
    return (_against(one, [before]), "the runs before") if before["verdicts"] else ([], "")


def _against(one: Report, past: list[dict[str, Any]]) -> list[str]:
    studies = [{**study, "since": documents.since(study, past)} for study in one.said["studies"]]
    return [documents.sentence(c) for c in documents.changes(one.rows, studies, past)]


def _earlier(one: Report) -> dict[str, Any]:
    """What the run before each of the report's runs said, by the ledger: same study, knobs and profile."""
    book, rows, shown = store.ledger(), [], []
    for study in one.said["studies"]:
        try:
            this = book.run(study["run"])
        except ledgers.LedgerError:
            continue
        same = [r for r in book.runs(study=this["study"], status="finished") if r["started"] < this["started"]
                and r["params"] == this["params"] and r["profile"] == this["profile"] and not r["control"]]  # fmt: skip
        shown += [{"study": r["study"], "run": r["id"], "params": r["params"], "versions": r["versions"]} for r in same[:1]]
        said = [v for v in book.verdicts(same[0]["id"]) if not v["control"]] if same else []
        rows += [{"study": this["study"], "claim": v["claim"], "verdict": v["verdict"]} for v in said]
    return {"studies": shown, "verdicts": rows}


# ---- on the page


def listing(reports: list[Report]) -> Report:
    """The table of all reports; the one that was picked, else the one of the address, else the newest."""
    lines = []
    for one in reports:
        differ, against = changes(one, reports)
        told = "" if not against else f"{len(differ)} verdict{'' if len(differ) == 1 else 's'}"
        lines.append({"written": pd.Timestamp(one.written, unit="s") + pd.Timedelta(seconds=time.localtime(one.written).tm_gmtoff),
                      "profile": one.profile, "studies": one.counts["studies"], **{word: one.counts[word] for word in documents.WORDS},
                      "not finished": len(one.failures), "changed": told, "folder": one.name})  # fmt: skip
    if len(reports) > 1:
        st.caption("Pick a row to open that report.")
    picked = st.dataframe(pd.DataFrame(lines), hide_index=True, key="reports", on_select="rerun", selection_mode="single-row",
                          alt="Reports, newest first",
                          column_config={"written": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm")})  # fmt: skip
    row = next((n for n in picked.selection.rows if n < len(reports)), None)
    if row is not None:
        st.query_params["report"] = reports[row].name
    asked = st.query_params.get("report")
    return next((one for one in reports if one.name == asked), reports[0])


def show(one: Report, reports: list[Report]) -> None:
    """One report: what did not finish first, then what changed, its files, and every verdict."""
    st.header(f"Report of {time.strftime('%d %B %Y, %H:%M', time.localtime(one.written))}", anchor=False)
    facts = [f"{one.counts['studies']} studies", f"{len(one.rows)} claims: {documents.tally(one.counts)}", f"profile {one.profile}",
             f"written {ago(one.written)}"]  # fmt: skip
    st.caption(plain(" · ".join(facts + (["interrupted: the same command goes on"] if one.said["interrupted"] else []))))
    for failure in one.failures:
        _failure(failure)
    differ, against = changes(one, reports)
    if against:
        st.markdown(f"**{len(differ) or 'No'} verdict{'' if len(differ) == 1 else 's'} changed since {plain(against)}**")
        st.markdown("\n".join(f"- {plain(line)}" for line in differ))
    else:
        st.caption("There is no earlier report to compare with.")
    _files(one)
    st.dataframe(_verdicts(one), hide_index=True, alt="Verdicts of the report", height="content" if len(one.rows) < 16 else 560,
                 column_config={"trend": st.column_config.LineChartColumn(help="the effect in the reports before, and now at the right")})


def _failure(failure: dict[str, Any]) -> None:
    """A study that did not finish, with its reason and the end of its log."""
    name = f"{failure['study']} (negative control)" if failure["control"] else failure["study"]
    st.error(plain(failure["reason"]), title=f"{name}: {failure['status']}", icon=":material/error:")
    log = _log(failure["run"]) if failure["run"] else None
    if log is not None:
        with st.expander(f"Log of {plain(name)}", icon=":material/terminal:"):
            st.code(tail(log), language=None, height=240)


def _log(run: str) -> Path | None:
    kept = [Path(a["path"]) for a in store.ledger().artifacts(run) if a["kind"] == "log"]
    return next((p for p in (*kept, ledgers.home() / run / "worker.log") if p.is_file() and p.stat().st_size), None)


def tail(path: Path, lines: int = TAIL) -> str:
    """The last lines of a text file."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _verdicts(one: Report) -> pd.DataFrame:
    signs = {"supported": "✔ supported", "refuted": "✘ refuted", "undecided": "? undecided"}
    lines = [
        {"study": row["study"], "claim": humanised(row["claim"]), "verdict": signs.get(row["verdict"], row["verdict"]),
         "effect": _three(row["effect"]), "interval": _interval(row), "n": row["n"], "margin": row["margin"],
         "under the control": row["control"] or "–", "says nothing": "yes" if row["says_nothing"] else "",
         "trend": [t["effect"] for t in row["trend"] if t["effect"] is not None] + [row["effect"] or 0.0]}
        for row in one.rows
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _interval(row: dict[str, Any]) -> str:
    return f"[{_three(row['low']) or '−∞'}, {_three(row['high']) or '∞'}]" if row["effect"] is not None else ""


def _three(value: float | None) -> str:
    """A number with three digits; empty where there is none."""
    return "" if value is None else f"{value:+.3g}"


# ---- files


def _files(one: Report) -> None:
    pages = sorted(p.name for p in one.folder.glob("*.html") if p.name != "index.html")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.download_button("Whole report (HTML, zip)", partial(zipped, one.folder), f"{one.name.replace('/', '-')}.zip",
                           "application/zip", icon=":material/folder_zip:", on_click="ignore", key="report-zip")  # fmt: skip
        st.download_button("Verdicts (CSV)", (one.folder / "verdicts.csv").read_bytes, "verdicts.csv", "text/csv",
                           icon=":material/table:", on_click="ignore", key="report-csv")  # fmt: skip
        chosen = st.selectbox("Open the page of a study", pages, index=None, key=f"page-{one.name}", width=300,
                              format_func=lambda name: humanised(name.removesuffix(".html")),
                              placeholder="choose a study") if pages else None  # fmt: skip
    if chosen in pages:
        st.iframe(opened(one.folder / chosen), height=900, alt=f"Report page of {humanised(chosen.removesuffix('.html'))}")


def zipped(folder: Path) -> bytes:
    """The pages of a report, their plotly, its verdicts, its document and its summary as one zip file."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        kinds = (".html", ".js", ".csv", ".md")
        for path in sorted(p for p in folder.iterdir() if p.is_file() and (p.suffix in kinds or p.name == documents.NAME)):
            archive.write(path, f"{folder.name}/{path.name}")
    return held.getvalue()


def opened(path: Path) -> str:
    """A page of a report with its plotly inside, so that it shows its figures without its neighbours."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for link in (f'<script src="{PLOTLY}"></script>', f'<script src="../{PLOTLY}"></script>'):
        if link in text:
            library = (Path(plotly.__file__).parent / "package_data" / PLOTLY).read_text(encoding="utf-8")
            text = text.replace(link, f"<script>{library}</script>", 1)
    return text.replace('href="index.html"', 'href="reports" target="_top"')  # its index is the page that it is shown on
