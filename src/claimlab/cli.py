"""The command `claimlab`. Exit codes: 0 a run finished whatever its verdicts, 1 a study failed, 2 bad input.

Only the standard library and declarations are imported to list the lab; everything heavier is imported by the command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import claimlab
from claimlab import commands as found_by_file
from claimlab import remote
from claimlab import study as studies
from claimlab.params import PROFILES, KnobError, pairs
from claimlab.strict import finite
from claimlab.study import StudyError


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.act(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as in `claimlab list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KnobError, StudyError) as wrong:
        print(f"claimlab: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if type(error).__name__ != "LedgerError":
            raise
        print(f"claimlab: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The command line and its help."""
    top = argparse.ArgumentParser(prog="claimlab", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, act, text: str, *, reads: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(act=act)
        if reads:
            one.add_argument("--json", action="store_true", help="machine-readable output")
        return one

    add("list", list_studies, "list the studies and their questions", reads=True)
    add("show", show, "question, claims and knobs of one study", reads=True).add_argument("study")
    _add_run(add("run", run, "run one study through its notebook and judge its claims", reads=True))
    tour_parser = add("tour", tour, "three quick studies, a report, and the dashboard until Ctrl-C")
    tour_parser.add_argument("--no-serve", action="store_true", help="end when the report is written")
    tour_parser.add_argument("--port", type=int, default=8501)
    tour_parser.add_argument("--profile", choices=PROFILES, default="default")
    _add_dashboard(add("dashboard", dashboard, "start the dashboard on this machine"))
    sync_parser = add("sync", sync, "write the generated cells of notebooks and the README's table")
    sync_parser.add_argument("studies", nargs="*", help="the notebooks of these studies alone")
    check_parser = add("check", check, "run the contract of one study, or of all, and say what is missing", reads=True)
    check_parser.add_argument("study", nargs="?")
    new_parser = add("new", new, "write the three files of a new study")
    new_parser.add_argument("slug")
    new_parser.add_argument("--family", required=True, choices=sorted(studies.FAMILIES))
    new_parser.add_argument("--folder", type=Path, help="a folder of your own, named by CLAIMLAB_STUDIES (default: this project)")
    runs_parser = add("runs", remote.runs, "list the runs, or show one: `claimlab runs show ID`", reads=True)
    runs_parser.add_argument("what", nargs="*", metavar="show ID")
    runs_parser.add_argument("--study")
    remote.add_steer(add("steer", remote.steer, "change a run that goes on: `steer ID set lr=1e-3`, `steer ID pause`", reads=True))
    add("resume", remote.resume, "go on with a run that ended early, from its last checkpoint").add_argument("run")
    remote.add_look(add("look", remote.look, "a live view of a run, now or at a checkpoint; or its answers to an input of your own"))
    again = add("replay", remote.replay, "run again with the changes that were made to a run, at the same steps")
    again.add_argument("run")
    again.add_argument("--seeds", help="other seeds, as 5..9 or 3,4,8: was it luck?")
    found_by_file.register(add)
    return top


def _add_dashboard(one: argparse.ArgumentParser) -> None:
    one.add_argument("--port", type=int, default=8501)
    one.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                     help="where to listen; what others can reach needs a password, or OIDC in .streamlit/secrets.toml")  # fmt: skip
    one.add_argument("--name", action="append", default=[], help="another host name it is reached under, as behind a proxy")
    one.add_argument("--set-password", action="store_true", help="ask for the password, store its hash, and end")


def _add_run(one: argparse.ArgumentParser) -> None:
    one.add_argument("study")
    one.add_argument("-p", "--knob", action="append", default=[], metavar="KNOB=VALUE", help="set a knob; repeat for more")
    one.add_argument("--profile", choices=PROFILES, default="default")
    one.add_argument("--seeds", metavar="N", help="number of seeds: 0 ... N - 1")
    one.add_argument("--no-kernel", action="store_true", help="without a notebook; the same numbers")
    one.add_argument("--control", action="store_true", help="under the study's negative control")
    one.add_argument("--single-file", action="store_true", help="plotly inside the report page")
    one.add_argument("--until-decided", action="store_true",
                     help="add seeds until every claim is decided; intervals corrected for looking often; without a notebook")  # fmt: skip
    one.add_argument("--max-seeds", metavar="N", help="with --until-decided: 5, 10, 20, 40 or 80 (default) at most")
    one.add_argument("--run-id", help=argparse.SUPPRESS)


# ---- reading


def tell(found: Any, indent: int | None = 1) -> None:
    """Print strict JSON; see `finite`."""
    print(json.dumps(finite(found), indent=indent, allow_nan=False))


def list_studies(options) -> int:
    found = studies.catalogue()
    if options.json:
        tell([s.as_dict() for s in found if not s.broken])
    else:
        for one in found:
            print(f"{one.slug:24} {one.family:14} " + (f"BROKEN: {one.broken}" if one.broken else one.paper.question))
    for one in found:
        if one.broken:
            print(f"claimlab: the study {one.slug} is broken: {one.broken}", file=sys.stderr)
    return 0


def show(options) -> int:
    one = studies.find(options.study)
    if options.json:
        tell({**one.as_dict(), "honesty": one.honesty, "source": str(one.path), "notebook": str(one.notebook)})
        return 0
    print(f"{one.paper.question}\n\n{one.paper.title} ({one.paper.authors}, {one.paper.year})\n\nClaims")
    for claim in one.claims:
        print(f"  {claim.id}: {claim.text} [{claim.kind}, margin {claim.margin:g}]")
    print("\nKnobs")
    for knob in one.knobs:
        live = ", can be changed while it runs" if knob.live else ""
        print(f"  {knob.name} = {knob.default}: {knob.help}; {knob.allowed} {knob.unit}{live}")
    print(f"\nWhat the scale hides\n  {one.honesty}")
    return 0


# ---- running


def run(options) -> int:
    if not claimlab.THREADS_CHOSEN:  # the matrices of one study alone may have all cores
        os.environ["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
    from claimlab import console

    values = pairs(options.knob)
    if options.seeds is not None:
        values["seeds"] = options.seeds
    if options.until_decided or options.max_seeds is not None:
        outcome = _until_decided(options, values)
    else:
        outcome = console.run_with_bar(
            options.study, values, profile=options.profile, control=options.control, kernel=not options.no_kernel,
            single_file=options.single_file, run_id=options.run_id,
        )  # fmt: skip
    if options.json:
        tell(outcome.as_dict(), indent=None)
    else:
        console.tell(outcome)
    return 1 if outcome.status == "failed" else 0


def _until_decided(options, values: dict[str, str]) -> Any:
    from claimlab import console
    from claimlab.sweeps import decided, looks

    if not options.until_decided:
        raise KnobError("--max-seeds goes with --until-decided; --seeds sets the number of seeds of an ordinary run")
    most = looks.LOOKS[-1] if options.max_seeds is None else options.max_seeds
    return console.run_with_bar(options.study, values, decided.run, most=most, profile=options.profile, control=options.control,
                                told=lambda text: console.ERRORS.print(text, highlight=False))  # fmt: skip


def tour(options) -> int:
    from claimlab import console

    return console.tour(options.port, options.profile, serve=not options.no_serve)


def dashboard(options) -> int:
    from claimlab import console

    if options.set_password:
        return set_password()
    process, address = console.start_dashboard(options.port, options.host, options.name)
    print(f"Dashboard: {address} (Ctrl-C ends it)", flush=True)
    print(f"API: {address}/api, with the token in {console.access.token_file()}", flush=True)
    return console.wait(process)


def set_password() -> int:
    from getpass import getpass

    from claimlab import access

    password = getpass("Password for the dashboard: ")
    access.hashed(password)  # refuses a short one before it is asked for again
    if not access.same(getpass("Once more: "), password):
        raise KnobError("the two passwords differ; nothing has been changed")
    print(f"The hash of the password is in {access.set_password(password)}")
    return 0


# ---- writing


def sync(options) -> int:
    from claimlab import readme
    from claimlab.cells import sync as sync_cells

    chosen = [studies.find(name) for name in options.studies] or studies.catalogue()
    changed = [str(path) for path in sync_cells(s.notebook for s in chosen if not s.broken and s.notebook.exists())]
    changed += [] if options.studies else [str(path) for path in readme.sync(studies.root())]
    print("\n".join(changed) or "everything is in sync")
    return 0


def check(options) -> int:
    from claimlab import contract

    found = [studies.find(options.study)] if options.study else studies.catalogue()
    reports = {one.slug: contract.missing(one) for one in found}
    if options.json:
        tell(reports)
    for slug, missing in {} if options.json else reports.items():
        print(f"{slug}: " + ("everything is there" if not missing else f"{len(missing)} to mend"))
        for one in missing:
            print(f"  - {one}")
    return 1 if any(reports.values()) else 0


def new(options) -> int:
    from claimlab import scaffold

    for path in scaffold.write(options.slug, options.family, studies.root(), options.folder):
        print(path)
    print(f"Write the method and the experiment, then: claimlab check {options.slug}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
