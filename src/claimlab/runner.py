"""Runs one study: checks every knob, executes its notebook through papermill (or the bare experiment), keeps what there is.

The status of a run is the ledger's. papermill's own record is not trusted: after a dead kernel it says "completed".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from claimlab import params as knob_views
from claimlab.job import ANSI, Job, Progress, Pulse, mend, signals
from claimlab.provenance import provenance
from claimlab.study import Study, StudyError, find


@dataclass(frozen=True)
class Outcome:
    """What became of a run: status finished, failed or stopped (with its reason), verdicts and where its files lie."""

    run: str
    study: str
    status: str
    seconds: float
    params: dict[str, Any]
    verdicts: list[dict[str, Any]]
    notebook: Path | None
    report: Path | None
    table: Path | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The documented JSON of `claimlab run --json`."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in found.items()}


def run(slug: str, values: dict[str, Any] | None = None, *, profile: str = "default", seeds: int | None = None,
        control: bool = False, kernel: bool = True, ledger: Any = None, single_file: bool = False,
        progress: Progress | None = None, run_id: str | None = None, drive: Callable[[Job], Any] | None = None) -> Outcome:  # fmt: skip
    """Run one study and return its outcome; the partial notebook and all points of a failed or stopped run are kept.

    KnobError and StudyError are raised before anything starts. `control` sets the knobs of the study's negative control on
    top; `kernel=False` runs the experiment in this process without a notebook (the same numbers); `run_id` is a run that
    has been entered in the ledger already; `drive` takes the place of driving the bare experiment once.
    `progress(done, total, text)` is told the optimiser steps of all arms.
    """
    from claimlab import ledger as ledgers

    study, p = prepare(slug, values, profile=profile, seeds=seeds, control=control, kernel=kernel)
    book = ledger or ledgers.Ledger()
    try:
        name = run_id or book.start_run(
            study.slug, knob_views.values(p), profile=profile, seeds=list(range(p.seeds)), source_hash=study.source_hash,
            versions=provenance(study), control=control,
        )  # fmt: skip
        folder = (ledgers.home() / book.run(name)["id"]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(study, p, book, name, folder, progress, control, profile)
        book.set_status(name, "starting")
        with Pulse(job), signals(job, kernel):
            status, reason = _notebook(job) if kernel else _bare(job, drive or _execute)
            return _conclude(job, status, reason, kernel, single_file)
    finally:
        if ledger is None:
            book.close()


def prepare(slug: str, values=None, *, profile="default", seeds=None, control=False, kernel=True) -> tuple[Study, Any]:
    """The study and its checked parameters; KnobError or StudyError says what is wrong, before anything starts."""
    study = find(slug)
    chosen = dict(values or {}) if seeds is None else {**(values or {}), "seeds": seeds}
    if control and not study.control.set:
        raise StudyError(f"{study.slug} has no negative control to run: {study.control.why or 'it declares none'}")
    p = study.make({**chosen, **study.control.set} if control else chosen, profile)
    if kernel:
        check_notebook(study)
    return study, p


def check_notebook(study: Study) -> None:
    """StudyError if the notebook is absent, unreadable, without a parameters cell, or would ignore a knob."""
    from claimlab.cells import generated
    from claimlab.lightly import nbformat

    path = study.notebook
    if not path.exists():
        raise StudyError(f"{study.slug} has no notebook at {path}; run it with --no-kernel, or write one with `claimlab new`")
    try:
        cells = nbformat.read(path, 4).cells
    except Exception as error:
        raise StudyError(f"the notebook {path.name} cannot be read: {type(error).__name__}: {error}") from error
    if not any("parameters" in c.metadata.get("tags", []) for c in cells):
        raise StudyError(
            f"the notebook {path.name} has no parameters cell, so that knobs would not reach it: run `claimlab sync`"
        )
    held = next((c.source for c in cells if c.metadata.get("claimlab") == "knobs"), None)
    if held is not None and held != generated(study)["knobs"]:
        raise StudyError(f"the knobs cell of {path.name} is not that of the study's declarations: run `claimlab sync`")


# ---- the two ways of running


def _execute(job: Job) -> None:
    from claimlab import live

    live.execute(job.study, job.params, job.ledger, job.run, on_tick=job.heed)


def _bare(job: Job, drive: Callable[[Job], Any]) -> tuple[str, str]:
    from claimlab import live

    try:
        drive(job)
    except (live.Stopped, KeyboardInterrupt) as error:
        return "stopped", str(error) or "interrupted"
    except Exception as error:
        import traceback

        job.traceback = traceback.format_exc()
        return "failed", f"{type(error).__name__}: {error}"
    return "finished", ""


def _notebook(job: Job) -> tuple[str, str]:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from claimlab.engine import NAME

    log = job.folder / "log.txt"
    try:
        with log.open("w", encoding="utf-8") as text:
            papermill.execute_notebook(
                str(job.study.notebook), str(job.notebook), parameters=knob_views.values(job.params), engine_name=NAME,
                kernel_name="python3", language="python", progress_bar=False, autosave_cell_every=5, start_timeout=120,
                stdout_file=text, stderr_file=text, cwd=None, job=job,
            )  # fmt: skip
        return "finished", ""
    except PapermillExecutionError as error:
        job.traceback = ANSI.sub("", "\n".join(error.traceback))
        where = job.where(error.cell_index)
        if job.stopping or error.ename in ("Stopped", "KeyboardInterrupt"):
            return "stopped", f"stopped in {where}" + (f": {error.evalue}" if error.evalue else "")
        return "failed", f"{where}: {error.ename}: {error.evalue}"
    except (Exception, KeyboardInterrupt) as error:
        died = isinstance(error, DeadKernelError)
        what = "the kernel died (killed, or out of memory)" if died else f"{type(error).__name__}: {error}"
        mend(job)
        if job.stopping or isinstance(error, KeyboardInterrupt):
            return "stopped", f"stopped in {job.where(job.cell)}"
        return "failed", f"{job.where(job.cell)}: {what}"


# ---- what there is at the end


def _conclude(job: Job, status: str, reason: str, kernel: bool, single_file: bool) -> Outcome:
    if job.stopping:
        _try(lambda: job.ledger.event(job.run, "interrupted"))
    verdicts = [v for v in _try(lambda: job.ledger.verdicts(job.run))[0] or [] if not v["control"]]
    if status == "finished" and not verdicts:
        status, reason = "failed", "the notebook came to its end without running the experiment with these knobs"
    if trouble := _try(lambda: job.ledger.finish(job.run))[1]:
        status, reason = "failed", reason or f"the points could not be closed: {trouble}"
    report, trouble = _try(lambda: _report(job, status, reason, verdicts, single_file)) if kernel else (None, "")
    if trouble:
        _try(lambda: job.ledger.event(job.run, "error", payload={"text": f"no report: {trouble}"}))
    files = {"notebook": job.notebook, "report": report, "log": job.folder / "log.txt", "table": job.folder / "table.parquet"}
    found = {kind: path for kind, path in files.items() if path is not None and path.exists()}
    for kind in ("notebook", "report", "log"):
        if kind in found:
            _try(lambda kind=kind: job.ledger.artifact(job.run, kind, str(found[kind])))
    if trouble := _try(lambda: job.ledger.set_status(job.run, status, reason))[1]:
        status, reason = "failed", reason or trouble
    return Outcome(job.run, job.study.slug, status, round(time.monotonic() - job.begun, 3), knob_views.values(job.params),
                   verdicts, found.get("notebook"), found.get("report"), found.get("table"), reason)  # fmt: skip


def _try(act) -> tuple[Any, str]:
    """The result of `act`, or in words why there is none: at the end of a run each piece is kept as far as it can be."""
    try:
        return act(), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _report(job: Job, status: str, reason: str, verdicts: list[dict], single_file: bool) -> Path:
    from claimlab import export
    from claimlab.lightly import nbformat

    export.share_plotly(job.folder.parent)
    claims = {c.id: c for c in job.study.claims}
    facts = [f"run {job.run}", f"profile {job.profile}", f"{job.params.seeds} seeds", f"{time.monotonic() - job.begun:.0f} s"]
    shown = dict(
        title=job.study.paper.title, status=status, reason=reason, traceback=job.traceback,
        facts=facts + ([f"negative control: {job.study.control.why}"] if job.control else []),
        rows=[export.row(v, claims[v["claim"]]) for v in verdicts if v["claim"] in claims],
    )  # fmt: skip
    book = job.notebook if job.notebook.exists() else nbformat.v4.new_notebook()
    return export.page(book, job.folder / "report.html", shown, plotly=f"../{export.PLOTLY}", single_file=single_file)
