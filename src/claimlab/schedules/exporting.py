"""The schedules for other schedulers: lines for cron, units for systemd, a workflow for GitHub. All of them run
`claimlab schedule run NAME`, which makes one report with the schedule's retries and lets none overlap itself.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from claimlab.database import home
from claimlab.schedules.cron import DAYS, Cron
from claimlab.schedules.plan import Schedule
from claimlab.study import StudyError

KINDS = ("cron", "systemd", "github")


def export(kind: str, schedules: Iterable[Schedule], file: Path, now: datetime) -> dict[str, str]:
    """Texts by file name. StudyError where a schedule cannot be said in another scheduler's words."""
    found = list(schedules)
    if kind == "cron":
        return {"claimlab.crontab": crontab(found, file)}
    if kind == "systemd":
        return {name: text for one in found for name, text in units(one, file).items()}
    return {f"claimlab-{one.name}.yml": workflow(one, file, now) for one in found}


def command(one: Schedule, file: Path) -> list[str]:
    """The words that run a schedule once."""
    return [sys.executable, "-m", "claimlab.cli", "schedule", "run", one.name, "--unless-paused", "--file",
            str(file.absolute())]  # fmt: skip


# ---- cron


def crontab(schedules: Iterable[Schedule], file: Path) -> str:
    """Lines for `crontab`; a percent sign is escaped, since cron ends the command there."""
    lines = ["# Reports of claimlab; written by `claimlab schedule export cron`, for `crontab FILE`.",
             "# CRON_TZ is obeyed by cronie. Debian's cron takes the machine's zone for all lines: use systemd there.", ""]  # fmt: skip
    for one in schedules:
        words = shlex.join(command(one, file))
        act = f"cd {shlex.quote(str(Path.cwd()))} && CLAIMLAB_HOME={shlex.quote(str(home()))} {words}".replace("%", "\\%")
        lines += [f"# {one.name}", f"CRON_TZ={one.cron.zone}", f"{' '.join(one.cron.words)} {act}", ""]
    return "\n".join(lines)


# ---- systemd


def on_calendar(cron: Cron) -> list[str]:
    """The times as systemd's calendar expressions: two where cron takes either kind of day, for systemd takes both together."""
    minutes, hours, days, months, weekdays = cron.fields
    clock = f"{_listed(hours, 24)}:{_listed(minutes, 60)}:00 {cron.zone}"
    week = "" if len(weekdays) == 7 else ",".join(DAYS[n].capitalize() for n in sorted(weekdays)) + " "
    date, any_day = f"*-{_listed(months, 12)}-{_listed(days, 31)}", f"*-{_listed(months, 12)}-*"
    return [f"{date} {clock}", f"{week}{any_day} {clock}"] if cron.either else [f"{week}{date} {clock}"]


def _listed(values: frozenset[int], most: int) -> str:
    return "*" if len(values) == most else ",".join(f"{n:02d}" for n in sorted(values))


def units(one: Schedule, file: Path) -> dict[str, str]:
    """A service and the timer that starts it; a time that was missed is made up for once."""
    words = " ".join(_quoted(word) for word in command(one, file))
    shown = {"name": one.name, "folder": str(Path.cwd()).replace("%", "%%"), "home": _quoted(f"CLAIMLAB_HOME={home()}"),
             "words": words, "times": on_calendar(one.cron)}  # fmt: skip
    return {f"claimlab-{one.name}.{kind}": _filled(f"{kind}.j2", **shown) for kind in ("service", "timer")}


def _quoted(word: str) -> str:
    for mark, plain in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(mark, plain)
    return f'"{word}"'


# ---- GitHub


def in_utc(cron: Cron, offset: timedelta) -> str:
    """The same times of day in UTC while the zone is `offset` ahead of it; StudyError where that would need other dates."""
    minutes, hours, days, months, weekdays = cron.fields
    shifted = {(60 * h + m - round(offset.total_seconds() / 60)) for h in hours for m in minutes}
    moved = {one // 1440 for one in shifted}
    clock = {(one // 60 % 24, one % 60) for one in shifted}
    every = {h for h, _ in clock}, {m for _, m in clock}
    bound = len(days) < 31 or len(months) < 12
    if len(clock) < len(every[0]) * len(every[1]) or len(hours) < 24 and (len(moved) > 1 or moved != {0} and bound):
        raise StudyError(f"cron = {cron.text!r} in {cron.zone} cannot be written for GitHub, whose times are UTC on the same day; "
                         "choose other hours, or the zone UTC")  # fmt: skip
    day = 0 if len(hours) == 24 else next(iter(moved))
    if len(weekdays) < 7:
        weekdays = frozenset((n + day) % 7 for n in weekdays)
    return " ".join([_numbers(every[1], 60), _numbers(every[0], 24), _numbers(days, 31), _numbers(months, 12), _numbers(weekdays, 7)])


def _numbers(values: Iterable[int], most: int) -> str:
    found = sorted(values)
    return "*" if len(found) == most else ",".join(map(str, found))


def offsets(cron: Cron, now: datetime) -> list[timedelta]:
    """How far the zone is ahead of UTC within the year to come: one number, or two where the clock is put forward and back."""
    zone = ZoneInfo(cron.zone)
    return sorted({(now + timedelta(days=n)).astimezone(zone).utcoffset() for n in range(366)})


def workflow(one: Schedule, file: Path, now: datetime) -> str:
    """A workflow whose times are in UTC: one for winter and one for summer time, of which the one that does not apply ends at once."""
    times = [(in_utc(one.cron, offset), _sign(offset)) for offset in offsets(one.cron, now)]
    inside = file.absolute()
    shown = inside.relative_to(Path.cwd()) if inside.is_relative_to(Path.cwd()) else Path(file.name)
    words = shlex.join(["claimlab", "schedule", "run", one.name, "--file", shown.as_posix()])
    cases = "|".join(f"'{line} {sign}'" for line, sign in times)
    return _filled("workflow.yml.j2", one=one, times=dict(times), cases=cases, words=words)


def _sign(offset: timedelta) -> str:
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"


def _filled(template: str, **shown: object) -> str:
    from jinja2 import Environment, PackageLoader

    made = Environment(loader=PackageLoader("claimlab", "templates/schedules"), keep_trailing_newline=True, trim_blocks=True)
    return made.get_template(template).render(**shown)
