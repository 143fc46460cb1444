"""Past runs of a study, and the files that a run left."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly
import streamlit as st
from panels import charts, drawings, knobs, store
from panels.wording import changed, humanised, span

from claimlab import ledger as ledgers
from claimlab.study import Study

FILES = {
    "notebook": ("Notebook of this run", ":material/menu_book:", "application/x-ipynb+json"),
    "report": ("Report of this run (HTML)", ":material/article:", "text/html"),
    "table": ("Table of this run (Parquet)", ":material/table:", "application/vnd.apache.parquet"),
    "log": ("Log of this run", ":material/terminal:", "text/plain"),
}


def runs(study: Study, shown: str | None) -> str | None:
    """A table of the study's runs; the id of the one that was picked."""
    rows = store.ledger().runs(study=study.slug, limit=200)
    if not rows:
        st.caption("No run yet. Set the knobs and press Run.")
        return None
    st.caption("Pick a row to open that run.")
    picked = st.dataframe(
        pd.DataFrame([_line(study, row, row["id"] == shown) for row in rows]), hide_index=True, key=f"{study.slug}-runs",
        on_select="rerun", selection_mode="single-row", alt="Past runs of this study",
        column_config={"started": st.column_config.DatetimeColumn(format="D MMM YYYY, HH:mm")},
    )  # fmt: skip
    chosen = picked.selection.rows
    return rows[chosen[0]]["id"] if chosen and chosen[0] < len(rows) else None


def _line(study: Study, row: dict[str, Any], shown: bool) -> dict[str, Any]:
    verdicts = [v["verdict"] for v in store.ledger().verdicts(row["id"]) if not v["control"]]
    counts = [f"{verdicts.count(word)} {word}" for word in ("supported", "refuted", "undecided") if word in verdicts]
    took = span(row["ended"] - row["started"]) if row["ended"] else ""
    usual = knobs.usual(study, row["profile"] if row["profile"] in ("smoke", "default", "full") else "default")
    return {
        "started": pd.Timestamp(row["started"], unit="s") + pd.Timedelta(seconds=time.localtime(row["started"]).tm_gmtoff),
        "status": row["status"] + (" (shown)" if shown else ""), "profile": row["profile"],
        "knobs": ("negative control: " if row["control"] else "") + changed(row["params"], usual),
        "n": len(row["seeds"]), "verdicts": ", ".join(counts), "took": took, "run": row["id"],
    }  # fmt: skip


def figures(run: str) -> None:
    """The figures that a run drew, two beside each other where there is room."""
    found = drawings_of(run)
    if not found:
        st.caption("Figures are drawn when a run has finished.")
    for name, path in found:
        figure = charts.load(path)
        if figure is None:
            st.caption(f"The figure {humanised(name)} cannot be read any more.")
        else:
            charts.show(figure, key=f"figure-{name}", title="" if figure.layout.title.text else humanised(name).capitalize())


def drawings_of(run: str) -> list[tuple[str, str]]:
    """Name and path of each figure that a run has left."""
    kind = "figure:"
    return [(a["kind"].removeprefix(kind), a["path"]) for a in store.ledger().artifacts(run) if a["kind"].startswith(kind)]


def executed(run: dict[str, Any] | None) -> Path | None:
    """The notebook that a run left, if it did."""
    files = [Path(a["path"]) for a in store.ledger().artifacts(run["id"]) if a["kind"] == "notebook"] if run else []
    return files[-1] if files else None


def downloads(study: Study, run: dict[str, Any] | None) -> None:
    """Buttons for what there is: notebook, report, table and log of the run; the study's own notebook always."""
    files = {a["kind"]: Path(a["path"]) for a in store.ledger().artifacts(run["id"])} if run else {}
    with st.container(horizontal=True):
        for kind, (label, icon, mime) in FILES.items():
            if kind in files and files[kind].exists():
                name = f"{run['id']}-{files[kind].name}"
                st.download_button(label, partial(content, kind, files[kind]), name, mime, icon=icon, on_click="ignore",
                                   key=f"download-{kind}")  # fmt: skip
        if run and run["status"] in ledgers.ENDED:
            st.download_button("Table of this run (CSV)", partial(as_csv, run["id"]), f"{run['id']}.csv", "text/csv",
                               icon=":material/csv:", on_click="ignore", key="download-csv")  # fmt: skip
        if study.notebook.exists():
            st.download_button("Notebook of the study", study.notebook.read_bytes, study.notebook.name, FILES["notebook"][2],
                               icon=":material/school:", on_click="ignore", key="download-study")  # fmt: skip
    if run and "report" not in files:
        st.caption("This run was made without its notebook. Turn on 'Write notebook and report' beside the knobs to get both.")
    if run and (found := drawings_of(run["id"])):
        drawings.panel(run["id"], found)


def as_csv(run: str) -> bytes:
    """All points of a run: study, arm, seed, step, metric, value."""
    return store.ledger().table(run).to_csv(index=False).encode()


def content(kind: str, path: Path) -> bytes:
    """A file as it is; a report page that points to a shared plotly.min.js gets it inside, so that it shows its figures anywhere."""
    data = path.read_bytes()
    link = b'<script src="../plotly.min.js"></script>'
    if kind == "report" and link in data:
        library = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
        data = data.replace(link, b"<script>" + library + b"</script>", 1)
    return data
