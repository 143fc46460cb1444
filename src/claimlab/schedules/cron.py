"""Times in cron syntax: five fields, in a time zone whose clock is put forward and back.

A time that the clock skips in spring is run as much later as the clock was put forward: 02:30 becomes 03:30. A time that comes twice
in autumn is run once, at the first; where the hour is `*` every hour that passes counts, and both are run.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo, available_timezones

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = (
    ("minute", 0, 59, {}), ("hour", 0, 23, {}), ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: n for n, name in enumerate(MONTHS, start=1)}),
    ("day of the week", 0, 7, {name: n for n, name in enumerate(DAYS)}),
)  # fmt: skip
ALIASES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
           "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}  # fmt: skip
SHIFT = timedelta(hours=3)  # more than any clock is put forward or back
HORIZON = 9 * 366  # days that are looked through: 29 February comes at least every eighth year


class CronError(ValueError):
    """A text that is no time in cron syntax; the message says which field is wrong and what it may be."""


@dataclass(frozen=True)
class Cron:
    """When something is to happen: `text` in cron syntax, read by the clock of `zone`. CronError where either is no such thing."""

    text: str
    zone: str = "UTC"

    def __post_init__(self):
        if self.zone not in _zones():
            near = difflib.get_close_matches(self.zone, _zones(), n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise CronError(f"timezone = {self.zone!r} is not allowed: it must be a name such as Europe/Berlin or UTC{hint}")
        if not any(self._matches(date(2024, 1, 1) + timedelta(days=n)) for n in range(HORIZON)):
            raise CronError(f"cron = {self.text!r} is not allowed: no year has such a day")

    @cached_property
    def words(self) -> list[str]:
        """The five fields as they are written."""
        return ALIASES.get(self.text.strip().lower(), self.text).split()

    @cached_property
    def fields(self) -> tuple[frozenset[int], ...]:
        """The values of minute, hour, day of the month, month and day of the week (0 is Sunday)."""
        if len(self.words) != 5:
            names = ", ".join(field[0] for field in FIELDS)
            raise CronError(f"cron = {self.text!r} is not allowed: it must be five fields ({names}), or one of {', '.join(ALIASES)}")
        found = [self._field(word, *field) for word, field in zip(self.words, FIELDS, strict=True)]
        return (*found[:4], frozenset(n % 7 for n in found[4]))

    def _field(self, text: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
        found: set[int] = set()
        for part in text.split(","):
            whole, slash, step = part.partition("/")
            first, dash, last = whole.partition("-")
            ends = [names.get(end.lower(), int(end) if end.isdigit() else -1) for end in ((first, last) if dash else (first, first))]
            start, stop = (low, high) if whole == "*" else ends
            wide = whole == "*" or bool(dash)  # a step needs something to step through
            if not low <= start <= stop <= high or slash and not (wide and step.isdigit() and int(step) > 0):
                known = f" or a name ({', '.join(names)})" if names else ""
                raise CronError(f"cron = {self.text!r} is not allowed: {name} {part!r} must be *, a number in [{low}, {high}]{known}, "
                                "a range as 1-5, a step as */2, or several with commas")  # fmt: skip
            found |= set(range(start, stop + 1, int(step) if slash else 1))
        return frozenset(found)

    @property
    def either(self) -> bool:
        """Whether one of two kinds of days is enough: cron's rule where neither the day of the month nor of the week is `*`."""
        return not self.words[2].startswith("*") and not self.words[4].startswith("*")

    def _matches(self, day: date) -> bool:
        _, _, days, months, weekdays = self.fields
        of_month, of_week = day.day in days, day.isoweekday() % 7 in weekdays
        return day.month in months and (of_month or of_week if self.either else of_month and of_week)

    def _walls(self, start: datetime) -> Iterator[datetime]:
        """Readings of the clock from `start` on, ascending; a clock that was never put forward or back."""
        hours, minutes = sorted(self.fields[1]), sorted(self.fields[0])
        for n in range(HORIZON):
            day = start.date() + timedelta(days=n)
            if self._matches(day):
                for hour in hours:
                    for minute in minutes:
                        wall = datetime(day.year, day.month, day.day, hour, minute)
                        if wall >= start:
                            yield wall

    def _instants(self, wall: datetime) -> list[datetime]:
        zone = ZoneInfo(self.zone)
        first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        return [first, second] if first < second and self.words[1] == "*" else [first]

    def times(self, after: datetime) -> Iterator[datetime]:
        """Times (UTC) later than `after`, ascending, each once; they end after nine years."""
        waiting: list[datetime] = []
        last, zone = after, ZoneInfo(self.zone)
        for wall in self._walls(after.astimezone(zone).replace(tzinfo=None, fold=0) - SHIFT):
            for instant in self._instants(wall):
                heapq.heappush(waiting, instant)
            settled = wall.replace(tzinfo=zone).astimezone(UTC) - SHIFT  # nothing earlier than that comes any more
            while waiting and waiting[0] < settled:
                if (found := heapq.heappop(waiting)) > last:
                    last = found
                    yield found
        for found in sorted(set(waiting)):
            if found > last:
                yield found

    def next(self, after: datetime) -> datetime | None:
        """The first time after `after`; None if there is none in nine years."""
        return next(self.times(after), None)

    def last(self, until: datetime) -> datetime | None:
        """The last time up to and including `until`; None if there was none in nine years."""
        for hours in (2, 26, 24 * 32, 24 * 367, 24 * HORIZON):
            found = list(takewhile(lambda one: one <= until, self.times(until - timedelta(hours=hours))))
            if found:
                return found[-1]
        return None


@lru_cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())
