"""The reports page: reports that claimlab itself has written, what changed, what failed, their files, and starting one."""

import io
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import cli
from claimlab.ledger import Ledger
from claimlab.params import KnobError
from claimlab.reports import document as documents
from claimlab.reports import writing

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
VERDICT = {"effect": 0.1, "low": 0.05, "high": 0.15, "n": 5, "threshold": 0.05, "values": [], "sentence": "", "reason": ""}
STUDY = {"family": "blobs", "title": "T", "question": "Q?", "page": "", "status": "finished", "seconds": 3.0, "reused": False, "why": [],
         "params": {}, "versions": {}, "control": {"run": "", "set": {}, "why": ""}, "since": []}


@pytest.fixture
def lab(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    return own_studies


def write(folder, verdicts, failures=(), runs=("",), profile="default", ago=0.0):
    """A report as the core writes it, of verdicts that are made up."""
    rows = [{**VERDICT, "study": study, "claim": claim, "verdict": word, "text": "T", "kind": "paired", "better": "higher", "margin": 0.05,
             "control": None, "control_note": "", "says_nothing": False, "page": f"{study}.html", "run": runs[0], "trend": []}
            for (study, claim), word in verdicts.items()]  # fmt: skip
    moment = time.time() - ago
    words = [row["verdict"] for row in rows]
    studies = [{**STUDY, "study": "toy-blobs", "run": run} for run in runs]
    fails = [{"page": "", "control": False, "run": "", "status": "failed", **one} for one in failures]
    found = {"schema": 1, "id": f"{moment:.6f}", "written": documents.stamp(moment), "began": documents.stamp(moment), "profile": profile,
             "interrupted": False, "before": None, "seconds": 1.0, "claimlab": "0", "failures": fails, "changes": [], "studies": studies,
             "verdicts": rows, "counts": {"studies": len(runs), "claims": len(rows), **{w: words.count(w) for w in documents.WORDS},
                                          "says_nothing": 0, "failures": len(fails), "changes": 0, "ran": 1}}  # fmt: skip

    def pages(stage):
        text = '<html><script src="plotly.min.js"></script><p>A page</p><a href="index.html">All</a></html>'
        (stage / "toy-blobs.html").write_text(text)
        (stage / "plotly.min.js").write_text("// plotly")

    folder.mkdir(parents=True)
    (folder / "plotly.min.js").write_text("// plotly")
    writing.write(found, folder, pages)
    return folder


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update(query)
    at.switch_page("app_pages/reports.py").run()
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.title, at.header, at.markdown, at.caption, at.error, at.info)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def test_without_a_report_the_page_says_what_to_do(lab):
    at = page()
    assert "Start one above" in words(at) and at.button(key="report-start")


def test_reports_are_listed_newest_first_with_what_changed_since_the_one_before(lab, home):
    claim = ("toy-blobs", "fast-wins")
    write(home / "report", {claim: "refuted", ("toy-blobs", "beats-chance"): "supported"}, ago=3000)
    write(home / "reports" / "quick", {claim: "undecided"}, profile="smoke", ago=2000)
    write(home / "reports" / "b", {claim: "supported", ("toy-blobs", "beats-chance"): "supported"})
    at = page()
    table = at.dataframe[0].value
    assert list(table["folder"]) == ["reports/b", "reports/quick", "report"]
    assert list(table["changed"]) == ["1 verdict", "", ""] and list(table["supported"]) == [2, 0, 1]
    assert "1 verdict changed since the report report" in words(at)
    assert "toy-blobs, fast-wins: refuted before, supported now" in words(at)
    assert list(at.dataframe[1].value["verdict"]) == ["✔ supported"] * 2


def test_the_address_opens_a_report_and_no_other_file(lab, home):
    write(home / "report", {("toy-blobs", "fast-wins"): "refuted"}, ago=100)
    write(home / "reports" / "b", {("toy-blobs", "fast-wins"): "supported"})
    assert "0 supported, 1 refuted" in words(page(report="report"))
    for crafted in ("../../etc", "/etc/passwd", "reports/../report", "<b>"):
        assert "1 supported, 0 refuted" in words(page(report=crafted))


def test_with_one_report_the_runs_before_tell_what_changed(lab, home):
    book, ids = Ledger(), []
    for word in ("refuted", "supported"):
        ids.append(book.start_run("toy-blobs", {"gap": 2.0}, seeds=range(5)))
        book.record_verdicts(ids[-1], [{**VERDICT, "claim": "fast-wins", "verdict": word}])
        book.set_status(ids[-1], "finished")
    write(home / "report", {("toy-blobs", "fast-wins"): "supported"}, runs=ids[1:])
    shown = words(page())
    assert "changed since the runs before" in shown and "fast-wins: refuted before, supported now" in shown


def test_what_failed_stands_first_with_reason_and_log(lab, home):
    book = Ledger()
    run = book.start_run("toy-blobs", {}, seeds=range(5))
    book.set_status(run, "failed", "cell 3: ValueError")
    log = home / run / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("the last words of the run")
    book.artifact(run, "log", str(log))
    reason = "cell 3: ValueError: a < b & <script>"
    write(
        home / "report",
        {},
        failures=[{"study": "toy-blobs", "reason": reason, "run": run}, {"study": "gone", "reason": "broken"}],
        runs=[run, ""],
    )
    at = page()
    assert [e.value.replace("\\", "") for e in at.error] == [reason, "broken"]
    assert "the last words of the run" in [c.value for c in at.code]
    assert at.dataframe[0].value["not finished"][0] == 2


def test_a_page_opens_with_its_figures_and_all_files_come_as_one_zip(lab, home):
    from panels import reports

    folder = write(home / "report", {("toy-blobs", "fast-wins"): "supported"})
    (folder / "secret.pem").write_text("no part of a report")
    text = reports.opened(folder / "toy-blobs.html")
    assert 'href="index.html"' not in text  # which would lead out of the page that it is shown on
    assert "A page" in text and "plotly.min.js" not in text[:200] and len(text) > 1_000_000
    with zipfile.ZipFile(io.BytesIO(reports.zipped(folder))) as archive:
        assert set(archive.namelist()) == {
            f"report/{n}"
            for n in ("index.html", "toy-blobs.html", "plotly.min.js", "verdicts.csv", "report.json", "summary.md")
        }
    at = page()
    at.selectbox(key="page-report").select("toy-blobs.html").run()
    assert not at.exception and at.get("iframe")


class Born(list):
    """Stands in for subprocess.Popen and keeps what was to be started."""

    def __call__(self, command, **options):
        self.append((command, options))
        return Sleeper()


class Sleeper:
    pid = 2**22 - 1

    def poll(self):
        return None


def test_a_report_starts_in_a_process_of_its_own_with_what_was_chosen(lab, home, monkeypatch):
    born = Born()
    at = page()
    monkeypatch.setattr(subprocess, "Popen", born)
    at.multiselect(key="report-studies").select("toy-blobs")
    at.get_by_key("report-profile").set_value("smoke")
    at.button(key="report-start").click().run()
    assert not at.exception
    ((command, options),) = born
    given = cli.parser().parse_args(command[3:])
    assert command[1:3] == ["-m", "claimlab.cli"] and given.studies == ["toy-blobs"] and given.profile == "smoke"
    assert given.out.parent == home / "reports" and options["start_new_session"] and not options.get("shell")
    assert "A report is being written: 1 study, profile smoke" in words(at).replace("**", "")


def test_what_a_crafted_client_asks_for_starts_nothing(lab, monkeypatch):
    from panels import reporting

    born = Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    for slugs, profile in ((["--out=/"], "smoke"), (["toy-blobs"], "huge"), ([], "smoke")):
        with pytest.raises(KnobError):
            reporting.start(slugs, profile, ["toy-blobs"])
    assert not born


def test_a_report_that_ended_unwritten_says_its_last_words_and_can_be_put_away(lab, home):
    from panels import reporting

    folder = home / "reports" / "20260101-000000-aaaa"
    folder.mkdir(parents=True)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    (folder / reporting.FACTS).write_text(f'{{"pid": {done.pid}, "studies": ["a"], "profile": "smoke", "started": 1.0}}')
    (folder / reporting.LOG).write_text("Traceback\nMemoryError: too large\n\n")
    at = page()
    assert "MemoryError: too large" in [e.value.replace("\\", "") for e in at.error]
    at.button(key=f"away-{folder.name}").click().run()
    assert not at.exception and not at.error and (folder / reporting.LOG).exists()


def test_stop_interrupts_the_process_that_writes_this_folder_and_no_other(lab, home):
    from panels import reporting

    folder, other = (home / "reports" / name for name in ("20260101-000000-aaaa", "20260101-000000-bbbb"))
    waits = "import sys; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", waits, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()  # it has begun, so that the system knows its command line
    try:
        for one in (folder, other):
            one.mkdir(parents=True)
            (one / reporting.FACTS).write_text(f'{{"pid": {child.pid}, "studies": [], "profile": "smoke", "started": 1.0}}')
        if Path("/proc/self/cmdline").exists():
            assert reporting.alive(folder) and not reporting.alive(other)
            reporting.stop(other)
            assert child.poll() is None
        reporting.stop(folder)
        assert child.wait(timeout=30) == -signal.SIGTERM
    finally:
        child.kill()
