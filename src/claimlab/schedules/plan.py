"""schedules.toml: which reports are made when. Everything in it is checked before anything starts.

    timezone = "Europe/Berlin"          # of all schedules that name no other; without it UTC

    [nightly]
    cron = "30 2 * * mon-fri"
    all = true                          # or studies = ["mixup", "pbt"], family = "training", theme = "stages"
    profile = "default"                 # smoke, default or full
    email = ["ann@example.org"]
    retries = 2                         # after a failure, 1, 2, 4 ... times `backoff` seconds later
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claimlab.database import home
from claimlab.params import PROFILES
from claimlab.reports import mail, planning
from claimlab.schedules.cron import Cron, CronError
from claimlab.study import THEMES, StudyError, root

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,58}")
# what a schedule may say: its type, the default, and in words what is allowed
KEYS: dict[str, tuple[type, Any, str]] = {
    "cron": (str, "", "a time in cron syntax"), "timezone": (str, "UTC", "the name of a time zone"),
    "studies": (list, [], "a list of studies"), "all": (bool, False, "true or false"), "family": (str, None, "a family of studies"),
    "theme": (str, None, f"one of {', '.join(THEMES)}"), "profile": (str, "default", f"one of {', '.join(PROFILES)}"),
    "out": (str, "", "a folder, seen from the home of runs"), "jobs": (int, None, "a whole number of at least 1"),
    "force": (bool, False, "true or false"), "single_file": (bool, False, "true or false"),
    "email": (list, [], "a list of addresses"), "retries": (int, 2, "a whole number in [0, 10]"),
    "backoff": (int, 60, "seconds in [1, 86400]"), "hours": (int, 24, "a whole number in [1, 168], after which it is stopped"),
}  # fmt: skip
BOUNDS = {"jobs": (1, 1024), "retries": (0, 10), "backoff": (1, 86_400), "hours": (1, 168)}


@dataclass(frozen=True)
class Schedule:
    """A report on a calendar: when (`cron`), of which studies, how, where to, whom to tell, how often to try again."""

    name: str
    cron: Cron
    slugs: tuple[str, ...]
    profile: str
    out: Path
    jobs: int | None
    force: bool
    single_file: bool
    email: tuple[str, ...]
    retries: int
    backoff: int
    hours: int


def where(file: Path | None = None) -> Path:
    """The file of schedules: the one that is named, CLAIMLAB_SCHEDULES, else schedules.toml here or at the top of the project."""
    if file is not None or os.environ.get("CLAIMLAB_SCHEDULES"):
        return file or Path(os.environ["CLAIMLAB_SCHEDULES"])
    here = Path("schedules.toml")
    return here if here.exists() else root() / "schedules.toml"


def read(file: Path) -> dict[str, Schedule]:
    """The schedules of a file by name; StudyError names the schedule, the key, its value and what is allowed."""
    try:
        held = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"the schedules {file} cannot be read: {error.strerror}; --file names another file") from None
    except ValueError as error:
        raise StudyError(f"the schedules {file} cannot be read: {error}") from None
    zone = held.pop("timezone", "UTC")
    if stray := [name for name, value in held.items() if not isinstance(value, dict)]:
        raise StudyError(f"{file.name}: {stray[0]} is not a key here; there are timezone, and a table [NAME] for each schedule")
    found = {name: _schedule(f"{file.name}, {name}", name, {"timezone": zone, **value}) for name, value in held.items()}
    folders: dict[Path, str] = {}
    for one in found.values():
        if (other := folders.setdefault(one.out, one.name)) != one.name:
            raise StudyError(f"{file.name}, {one.name}: out = {str(one.out)!r} is not allowed: {other} writes there")
    if any(one.email for one in found.values()):
        mail.settings([to for one in found.values() for to in one.email])
    return found


def _schedule(at: str, name: str, given: dict[str, Any]) -> Schedule:
    if not NAME.fullmatch(name):
        raise StudyError(f"{at}: the name is not allowed: it must be small letters, digits and hyphens, 59 at most")
    for key, value in given.items():
        _check(at, key, value)
    held = {key: given.get(key, default) for key, (_, default, _) in KEYS.items()}
    if "cron" not in given:
        raise StudyError(f"{at}: cron is missing: {KEYS['cron'][2]}")
    chosen = [key for key in ("studies", "all", "family", "theme") if held[key]]
    if not chosen or "studies" in chosen and len(chosen) > 1:
        raise StudyError(f"{at}: it must say which studies: studies = [...], or all = true, family or theme")
    try:
        cron = Cron(held["cron"], held["timezone"])
        slugs = planning.select(held["studies"], held["all"], held["family"], held["theme"])
        for to in held["email"]:
            mail.checked("email", to)
    except (CronError, StudyError) as error:
        what = "" if isinstance(error, CronError) or held["email"] and "email" in str(error) else f"{chosen[0]} = {held[chosen[0]]!r}: "
        raise StudyError(f"{at}: {what}{error}") from None
    out = home() / (held["out"] or f"reports/{name}")
    return Schedule(name, cron, tuple(slugs), held["profile"], out, held["jobs"], held["force"], held["single_file"],
                    tuple(held["email"]), held["retries"], held["backoff"], held["hours"])  # fmt: skip


def _check(at: str, key: str, value: Any) -> None:
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise StudyError(f"{at}: {key} = {value!r}: {key} is not a key of a schedule{hint} Keys: {', '.join(KEYS)}")
    kind, _, allowed = KEYS[key]
    low, high = BOUNDS.get(key, (None, None))
    wrong = not isinstance(value, kind) or isinstance(value, bool) and kind is not bool
    wrong = wrong or kind is list and not all(isinstance(one, str) for one in value)
    wrong = wrong or low is not None and not low <= value <= high
    wrong = wrong or key == "profile" and value not in PROFILES or key == "theme" and value not in THEMES
    if wrong:
        raise StudyError(f"{at}: {key} = {value!r} is not allowed: it must be {allowed}")
