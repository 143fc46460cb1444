"""`claimlab schedule`: reports on a calendar."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from claimlab.study import StudyError


def register(add) -> None:
    one = add("schedule", act, "reports on a calendar: run, list, next, pause, resume, export", reads=True)
    one.add_argument("what", choices=list(ACTS))
    one.add_argument("names", nargs="*", metavar="NAME", help="of schedules; for export first cron, systemd or github")
    one.add_argument("--file", type=Path, help="the schedules (default: $CLAIMLAB_SCHEDULES, else schedules.toml)")
    one.add_argument("-n", type=int, default=5, metavar="N", help="next: so many times")
    one.add_argument("-o", "--out", type=Path, help="export: into this folder instead of on the screen")
    one.add_argument("--missed", action="store_true", help="run: make up for what was missed, then end")
    one.add_argument("--unless-paused", action="store_true", help="run NAME: not while it is paused, as for another scheduler")
    one.add_argument("--due", type=float, help=argparse.SUPPRESS)


def act(options: argparse.Namespace) -> int:
    from claimlab.schedules import plan

    options.file = plan.where(options.file)
    schedules = plan.read(options.file)
    names = options.names[1:] if options.what == "export" else options.names
    if stray := [name for name in names if name not in schedules]:
        raise StudyError(f"there is no schedule {stray[0]!r} in {options.file}; there are {', '.join(schedules) or 'none'}")
    options.chosen = {name: schedules[name] for name in names or schedules}
    return ACTS[options.what](options)


def run(options: argparse.Namespace) -> int:
    """One schedule now, in this process; without a name the scheduler, until Ctrl-C."""
    if len(options.names) > 1:
        raise StudyError("`schedule run NAME` runs one schedule now; without a name it waits for all of them")
    return _now(options) if options.names else _serve(options)


def _now(options: argparse.Namespace) -> int:
    import signal

    from rich.console import Console

    from claimlab.reports import progress
    from claimlab.schedules import firing

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it is told to the ledger where no run has begun yet
    (one,) = options.chosen.values()
    console = Console(stderr=True)
    if options.unless_paused and any(line["paused"] for line in lines(options)):
        console.print(f"{one.name}: it is paused; nothing was started", highlight=False)
        return 0
    with progress.shown(console) as show:
        return firing.fire(one, options.due or time.time(), lambda text: console.print(text, markup=False, highlight=False), show)


def _serve(options: argparse.Namespace) -> int:
    import signal

    from claimlab.schedules.service import Service

    def say(text: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)

    service, by = Service(options.file, say), []

    def obey(number, frame):
        by.append(number)
        service.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, obey)
    say(f"{len(service.schedules)} schedules of {options.file}; Ctrl-C ends it")
    code = service.run(until_idle=options.missed)
    return 130 if signal.SIGINT in by else code


def lines(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The schedules with when each is due next, what came of the last time, and whether it rests."""
    from datetime import UTC, datetime

    from claimlab.schedules.calendar import Calendar

    book, now, found = Calendar(), datetime.now(UTC), []
    try:
        paused = book.paused()
        for one in options.chosen.values():
            last = next(iter(book.firings(one.name, 1)), None)
            moment = one.cron.next(now)
            found.append({"name": one.name, "cron": one.cron.text, "timezone": one.cron.zone, "paused": one.name in paused,
                          "next": None if one.name in paused or moment is None else moment.isoformat(), "profile": one.profile,
                          "studies": list(one.slugs), "out": str(one.out), "email": list(one.email), "last": last})  # fmt: skip
    finally:
        book.close()
    return found


def listing(options: argparse.Namespace) -> int:
    from claimlab.cli import tell

    found = lines(options)
    if options.json:
        tell(found)
        return 0
    for one in found:
        last = one["last"]
        came = f"last {last['status']} {_clock(last['began'])}" + (f": {last['reason']}" if last["reason"] else "") if last else "never run"
        when = "paused" if one["paused"] else f"next {_local(one['next'], one['timezone'])}"
        print(f"{one['name']:20} {one['cron']:20} {one['timezone']:16} {when}; {came}; {len(one['studies'])} studies, {one['profile']}")
    return 0


def upcoming(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime
    from itertools import islice

    from claimlab.cli import tell

    if not 1 <= options.n <= 1000:
        raise StudyError(f"n = {options.n} is not allowed: it must be in [1, 1000]")
    now = datetime.now(UTC)
    chosen = options.chosen.values()
    found = sorted((t.isoformat(), one.name, one.cron.zone) for one in chosen for t in islice(one.cron.times(now), options.n))
    if options.json:
        tell([{"name": name, "time": moment, "timezone": zone} for moment, name, zone in found[: options.n]])
        return 0
    for moment, name, zone in found[: options.n]:
        print(f"{_local(moment, zone)}  {name}")
    return 0


def pausing(options: argparse.Namespace) -> int:
    from claimlab.schedules.calendar import Calendar

    if not options.names:
        raise StudyError(f"say which: `claimlab schedule {options.what} NAME`")
    book = Calendar()
    try:
        for name in options.names:
            book.pause(name, options.what == "pause")
            print(f"{name}: {'rests' if options.what == 'pause' else 'goes on'}")
    finally:
        book.close()
    return 0


def export(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from claimlab.schedules import exporting

    kind = options.names[0] if options.names else ""
    if kind not in exporting.KINDS:
        raise StudyError(f"export to {kind!r} is not allowed: one of {', '.join(exporting.KINDS)}")
    for name, text in exporting.export(kind, options.chosen.values(), options.file, datetime.now(UTC)).items():
        if options.out is None:
            print(f"# {name}\n{text}")
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / name).write_text(text, encoding="utf-8")
        print(options.out / name)
    return 0


def _local(moment: str | None, zone: str) -> str:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return "never" if moment is None else f"{datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)):%a %Y-%m-%d %H:%M %Z}"


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


ACTS = {"run": run, "list": listing, "next": upcoming, "pause": pausing, "resume": pausing, "export": export}
