"""`claimlab report`: many studies run, judged, written down and sent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from claimlab import study as studies
from claimlab.params import PROFILES
from claimlab.study import StudyError


def register(add) -> None:
    one = add("report", report, "run what is missing or stale and write a report", reads=True)
    one.add_argument("studies", nargs="*", metavar="STUDY")
    one.add_argument("--all", action="store_true")
    one.add_argument("--family")
    one.add_argument("--theme", choices=studies.THEMES)
    one.add_argument("--profile", choices=PROFILES, default="default")
    one.add_argument("-o", "--out", type=Path, default=Path("runs/report"))
    one.add_argument("--single-file", action="store_true", help="plotly inside each page")
    one.add_argument("--force", action="store_true", help="reuse no earlier run")
    one.add_argument("--jobs", type=int, metavar="N", help="runs side by side at most (default: as cores and memory allow)")
    one.add_argument("--email", action="append", default=[], metavar="TO", help="send the report; repeat for more")
    one.add_argument("--reference", action="store_true", help="write data/verdicts.csv and the README's table as well")


def report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from claimlab.cli import tell
    from claimlab.reports import mail, making, planning, progress, summary

    slugs = planning.select(options.studies, options.all, options.family, options.theme)
    if options.reference and options.profile != "default":
        raise StudyError("reference results are those of the default profile")
    if options.jobs is not None and options.jobs < 1:
        raise StudyError(f"jobs = {options.jobs} is not allowed: it must be at least 1")
    server = mail.settings(options.email) if options.email else None
    with progress.shown(Console(stderr=True)) as show:
        found = making.report(slugs, options.profile, options.out, jobs=options.jobs, force=options.force,
                              single_file=options.single_file, show=show)  # fmt: skip
    if options.reference and not found["interrupted"]:
        from claimlab import readme

        readme.record(studies.root(), options.out / "verdicts.csv")
    interrupted = "interrupted; the same command goes on. Until now: " if found["interrupted"] else ""
    print(interrupted + summary.headline(found), file=sys.stderr)
    tell(found) if options.json else print(options.out / "index.html")
    unsent = mail.try_send(server, mail.letter(found, options.out), options.email) if server is not None else ""
    if unsent:
        print(f"claimlab: the report is written, but not sent: {unsent}", file=sys.stderr)
    return 130 if found["interrupted"] else 1 if found["failures"] or unsent else 0
