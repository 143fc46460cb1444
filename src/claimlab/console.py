"""What the command line shows while it waits: progress bars over training steps, verdicts as sentences, an address."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from claimlab import access, runner
from claimlab import study as studies
from claimlab.ledger import Ledger, home
from claimlab.params import KnobError

TOUR = ("mixup", "fullgrad", "quantum-well-pinn")  # the longest first
STYLES = {"supported": ("green", "✔"), "refuted": ("red", "✘"), "undecided": ("yellow", "?")}
ERRORS = Console(stderr=True)


def _bar() -> Progress:
    return Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=None),
                    TextColumn("{task.completed:.0f}/{task.total:.0f} steps"), TimeElapsedColumn(), TimeRemainingColumn(),
                    console=ERRORS, transient=not ERRORS.is_terminal)  # fmt: skip


def run_with_bar(slug: str, values: dict[str, Any], act: Callable[..., runner.Outcome] = runner.run, **options: Any) -> runner.Outcome:
    """Run one study with a bar over the optimiser steps of all arms, on the error stream."""
    with _bar() as bar:
        line = bar.add_task(slug, total=1)

        def progress(done: int, total: int, text: str = "") -> None:
            bar.update(line, completed=done, total=max(total, 1), description=f"{slug} {text}".strip())

        return act(slug, values, progress=progress, **options)


def tell(outcome: runner.Outcome) -> None:
    """Print what became of a run: each verdict as a sentence, and where the files lie."""
    out = Console()
    out.print(f"[bold]{outcome.study}[/] {outcome.status} in {outcome.seconds:.0f} s  [dim]{outcome.run}[/]", highlight=False)
    if outcome.reason:
        out.print(outcome.reason, style="red", markup=False)
    for verdict in outcome.verdicts:
        colour, icon = STYLES[verdict["verdict"]]
        out.print(f"  [{colour}]{icon}[/] [bold]{verdict['claim']}[/]: {verdict['sentence']}", highlight=False)
    for kind in ("report", "notebook", "table"):
        if path := getattr(outcome, kind):
            out.print(f"  [dim]{kind}[/] {_short(Path(path))}", highlight=False, soft_wrap=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def tour(port: int, profile: str, serve: bool = True) -> int:
    """The dashboard, three quick studies through papermill side by side, a report; then serve until Ctrl-C."""
    from claimlab.reports import making, progress

    process, address = start_dashboard(port) if serve else (None, "")
    if serve:
        ERRORS.print(f"Dashboard: {address}", highlight=False)
    outcomes: list[runner.Outcome] = []
    slugs = [s for s in TOUR if any(one.slug == s for one in studies.catalogue())]
    try:
        with progress.shown(ERRORS) as show:

            def told(state: making.State) -> None:
                show(state)
                for outcome in [i.outcome for i in state.items if i.ended and i.outcome is not None and i.outcome not in outcomes]:
                    outcomes.append(outcome)
                    tell(outcome)

            making.report(slugs, profile, Path("runs/report"), force=True, control=False, show=told)
        print(f"\nReport: {_short(Path('runs/report/index.html'))}", flush=True)
        if any(_interrupted(one.run) for one in outcomes if one.status == "stopped"):
            return 130
        failed = len(outcomes) < len(slugs) or any(one.status == "failed" for one in outcomes)
        if process is not None:
            print(f"Dashboard: {address}  (Ctrl-C ends it)", flush=True)
            failed |= wait(process) != 0
        return 1 if failed else 0
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(timeout=10)


def _interrupted(run: str) -> bool:
    """Whether the person at this terminal stopped the run, rather than a command from elsewhere."""
    book = Ledger()
    try:
        return any(event["kind"] == "interrupted" for event in book.events(run))
    finally:
        book.close()


def start_dashboard(port: int, host: str = "127.0.0.1", names: Sequence[str] = ()) -> tuple[subprocess.Popen, str]:
    """Start the pages and the API at an address; on the next free port where `port` is taken, and say so.

    `names` are further ones under which it is reached, as behind a proxy. KnobError where others could reach it unasked.
    """
    app = studies.root() / "dashboard" / "server.py"
    if not app.exists():
        raise KnobError(f"there is no dashboard at {app}; run this command in a checkout of the project")
    for one in (host, *names):
        access.require(one, studies.root())
    free = free_port(port, host)
    if free != port:
        ERRORS.print(f"Port {port} is in use; the dashboard takes {free}.", highlight=False)
    if not access.local(host):
        ERRORS.print("Others can read along on the way: put a proxy with HTTPS before it where the network is not your own.",
                     highlight=False)  # fmt: skip
    known = [*access.names_of(host), *names]
    command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.port", str(free), "--server.address", host,
               "--server.headless", "true", "--browser.gatherUsageStats", "false"]  # fmt: skip
    command += [word for name in known for word in ("--server.allowedHosts", name)]
    environment = os.environ | {"CLAIMLAB_HOME": str(home().absolute())}
    home().mkdir(parents=True, exist_ok=True)
    with _log().open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=studies.root(), stdout=log, stderr=log, env=environment)
    shown = next(iter([*names, *known[len(access.LOCAL) :]]), host)
    return process, f"http://{f'[{shown}]' if ':' in shown else shown}:{free}"


def _log() -> Path:
    return home() / "dashboard.log"


def free_port(port: int, host: str = "127.0.0.1") -> int:
    """The first free port of an address from `port` on; KnobError if the next hundred are taken."""
    if not 1 <= port <= 65535:
        raise KnobError(f"port = {port} is not allowed: it must be in [1, 65535]")
    try:
        family = socket.getaddrinfo(host or "?", None, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise KnobError(f"host = {host} is not allowed: it is no address") from None
    for candidate in range(port, min(port + 100, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise KnobError(f"host = {host} is not allowed: it is no address of this machine") from None
                continue
            return candidate
    raise KnobError(f"ports {port} to {port + 99} are all in use; name another one with --port")


def wait(process: subprocess.Popen) -> int:
    """Wait for the dashboard; Ctrl-C, or SIGTERM, ends it with 0. One that ends by itself has failed: its last words are shown."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the server would outlive this process
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(timeout=10)
        return 0
    last = "\n".join(_log().read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    ERRORS.print(f"The dashboard has ended by itself (code {code}). {_log()} says:\n{last}", markup=False, highlight=False)
    return 1
