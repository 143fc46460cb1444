"""Reports that lie in the home of runs: what each says, what changed since the one before, what failed, and its files."""

from __future__ import annotations

import io
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly
import streamlit as st
from panels import store
from panels.wording import ago, humanised, plain

from claimlab import ledger as ledgers
from claimlab import report as core
from claimlab.export import PLOTLY

WORDS = ("supported", "refuted", "undecided")
TAIL = 60  # lines of a log that are shown


@dataclass(frozen=True)
class Report:
    """One report folder. `rows`: its verdicts.csv; `failures`: study, status and reason of what did not finish; `runs`: the
    runs that it shows."""

    folder: Path
    written: float
    rows: tuple[dict[str, str], ...]
    failures: tuple[dict[str, str], ...]
    runs: tuple[str, ...]
    studies: int

    @property
    def name(self) -> str:
        """The folder seen from the home of runs."""
        return self.folder.relative_to(ledgers.home()).as_posix()

    @property
    def profile(self) -> str:
        return self.rows[0]["profile"] if self.rows else ""

    @property
    def counts(self) -> Counter[str]:
        return Counter(row["verdict"] for row in self.rows)


class _Index(HTMLParser):
    """Reads what the index of a report says beside its verdicts: what did not finish, and which run each study shows."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[dict[str, str]] = []
        self.runs: list[str] = []
        self.studies = 0
        self._into = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        kind = (dict(attributes).get("class") or "").split()
        if tag == "div" and kind[:1] == ["box"]:
            self.failures.append({"status": " ".join(kind[1:]), "study": "", "reason": ""})
            self._into = "status"
        elif tag == "code":
            self.studies += 1
            self._into = "run"
        elif self.failures and self._into in ("status", "control") and tag in ("strong", "br"):
            self._into = "study" if tag == "strong" else "reason"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "code"):
            self._into = ""
        elif tag == "strong" and self._into == "study":
            self._into = "control"

    def handle_data(self, data: str) -> None:
        if self._into == "run":
            self.runs.append(data.strip())
        elif self._into in ("study", "reason"):
            self.failures[-1][self._into] += data.strip()
        elif self._into == "control":
            self.failures[-1]["study"] += f" {data.strip()}" if data.strip() else ""


def found() -> list[Report]:
    """All reports under the home of runs, newest first."""
    home = ledgers.home()
    places = [*home.glob("*/index.html"), *home.glob("*/*/index.html")]
    stamps = [(path, path.stat().st_mtime) for path in places if path.with_name("verdicts.csv").exists()]
    return sorted((_read(str(path), stamp) for path, stamp in stamps), key=lambda r: r.written, reverse=True)


@st.cache_data(max_entries=200, show_spinner=False)
def _read(path: str, stamp: float) -> Report:
    index, folder = _Index(), Path(path).parent
    index.feed(Path(path).read_text(encoding="utf-8", errors="replace"))
    return Report(folder, stamp, tuple(core.read_csv(folder / "verdicts.csv")), tuple(index.failures), tuple(filter(None, index.runs)),
                  index.studies)  # fmt: skip


def changes(one: Report, reports: Iterable[Report]) -> tuple[list[str], str]:
    """In words: the claims whose verdict is another one than before, and before what; nothing to compare with gives ''."""
    claims = {(row["study"], row["claim"]) for row in one.rows}
    for other in sorted(reports, key=lambda r: r.written, reverse=True):
        shared = other.profile == one.profile and claims & {(row["study"], row["claim"]) for row in other.rows}
        if other.written < one.written and shared:
            return core.changed(list(other.rows), list(one.rows), one.profile), f"the report {other.name}"
    before = _earlier(one)
    return (core.changed(before, list(one.rows), one.profile), "the runs before") if before else ([], "")


def _earlier(one: Report) -> list[dict[str, str]]:
    """What the run before each of the report's runs said, by the ledger: same study, knobs and profile."""
    book, rows = store.ledger(), []
    for run in one.runs:
        try:
            shown = book.run(run)
        except ledgers.LedgerError:
            continue
        same = [r for r in book.runs(study=shown["study"], status="finished") if r["started"] < shown["started"]
                and r["params"] == shown["params"] and r["profile"] == shown["profile"] and not r["control"]]  # fmt: skip
        said = [v for v in book.verdicts(same[0]["id"]) if not v["control"]] if same else []
        rows += [{"study": shown["study"], "claim": v["claim"], "verdict": v["verdict"], "profile": one.profile} for v in said]
    return rows


# ---- on the page


def listing(reports: list[Report]) -> Report:
    """The table of all reports; the one that was picked, else the one of the address, else the newest."""
    lines = []
    for one in reports:
        differ, against = changes(one, reports)
        told = "" if not against else f"{len(differ)} verdict{'' if len(differ) == 1 else 's'}"
        lines.append({"written": pd.Timestamp(one.written, unit="s") + pd.Timedelta(seconds=time.localtime(one.written).tm_gmtoff),
                      "profile": one.profile, "studies": one.studies, **{word: one.counts[word] for word in WORDS},
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
    tally = ", ".join(f"{one.counts[word]} {word}" for word in WORDS)
    st.caption(
        plain(f"{one.studies} studies, {len(one.rows)} claims: {tally} · profile {one.profile} · written {ago(one.written)}")
    )
    for failure in one.failures:
        _failure(one, failure)
    differ, against = changes(one, reports)
    if against:
        st.markdown(f"**{len(differ) or 'No'} verdict{'' if len(differ) == 1 else 's'} changed since {plain(against)}**")
        st.markdown("\n".join(f"- {plain(line)}" for line in differ))
    else:
        st.caption("There is no earlier report to compare with.")
    _files(one)
    st.dataframe(_verdicts(one), hide_index=True, alt="Verdicts of the report", height="content" if len(one.rows) < 16 else 560)


def _failure(one: Report, failure: dict[str, str]) -> None:
    """A study that did not finish, with its reason and the end of its log."""
    st.error(plain(failure["reason"]), title=f"{failure['study']}: {failure['status']}", icon=":material/error:")
    slug = failure["study"].split(" ")[0]
    log = next((path for run in one.runs if f"-{slug}-" in run and (path := _log(run))), None)
    if log is not None:
        with st.expander(f"Log of {plain(failure['study'])}", icon=":material/terminal:"):
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
         "under the control": row["control"] or "–", "says nothing": "yes" if row["says_nothing"] == "yes" else ""}
        for row in one.rows
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _interval(row: dict[str, str]) -> str:
    return f"[{_three(row['low']) or '−∞'}, {_three(row['high']) or '∞'}]" if row["effect"] else ""


def _three(text: str) -> str:
    """A number of the file with three digits; empty where there is none."""
    try:
        return f"{float(text):+.3g}"
    except ValueError:
        return ""


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
    """The pages of a report, their plotly and its verdicts as one zip file."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".html", ".js", ".csv")):
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
