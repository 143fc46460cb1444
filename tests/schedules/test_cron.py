"""Times in cron syntax, against zoneinfo's arithmetic, systemd's calendar and APScheduler's own trigger where clocks stand still."""

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from claimlab.schedules import exporting
from claimlab.schedules.cron import DAYS, Cron, CronError

BERLIN = ZoneInfo("Europe/Berlin")


def utc(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def some(text, after, n, zone="Europe/Berlin"):
    return [one.isoformat()[:16] for one in islice(Cron(text, zone).times(after), n)]


def test_a_time_that_the_clock_skips_in_spring_is_run_an_hour_later_once():
    found = some("30 2 * * *", utc("2026-03-28T00:00"), 3)
    assert found == ["2026-03-28T01:30", "2026-03-29T01:30", "2026-03-30T00:30"]
    skipped = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)  # PEP 495: with the offset from before the gap
    assert skipped.astimezone(UTC).isoformat()[:16] == found[1]
    assert datetime.fromisoformat(found[1] + "+00:00").astimezone(BERLIN).strftime("%H:%M") == "03:30"
    assert some("0 2,3 * * *", utc("2026-03-29T00:00"), 2) == ["2026-03-29T01:00", "2026-03-30T00:00"]  # 02:00 and 03:00 are one


def test_a_time_that_comes_twice_in_autumn_is_run_once_and_every_hour_in_both():
    assert some("30 2 * * *", utc("2026-10-24T12:00"), 2) == ["2026-10-25T00:30", "2026-10-26T01:30"]
    hourly = some("0 * * * *", utc("2026-10-24T23:30"), 4)
    assert hourly == ["2026-10-25T00:00", "2026-10-25T01:00", "2026-10-25T02:00", "2026-10-25T03:00"]
    local = [datetime.fromisoformat(t + "+00:00").astimezone(BERLIN).strftime("%H") for t in hourly]
    assert local == ["02", "02", "03", "04"]


@pytest.mark.parametrize(("month", "day"), [(3, 29), (10, 25)])
@pytest.mark.parametrize(("text", "a_day"), [("30 2 * * *", 1), ("*/15 4 * * *", 4), ("15 0,2,5 * * *", 3)])
def test_a_day_of_a_clock_change_has_as_many_runs_as_any_other(month, day, text, a_day):
    start = datetime(2026, month, day - 2, tzinfo=BERLIN).astimezone(UTC)
    days = [one.astimezone(BERLIN).date().day for one in islice(Cron(text, "Europe/Berlin").times(start), 4 * a_day)]
    assert days == [n for n in range(day - 2, day + 2) for _ in range(a_day)]


def entry(low, high):
    """A field: a star, a step, numbers, a range."""
    number = st.integers(low, high)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    return st.one_of(st.just("*"), st.integers(2, 5).map(lambda n: f"*/{n}"), number.map(str), span,
                     st.lists(number, min_size=2, max_size=3).map(lambda many: ",".join(map(str, many))))  # fmt: skip


def theirs(text):
    """The same times by APScheduler: its days of the week begin with Monday, and it lets both kinds of days be needed."""
    minute, hour, day, month, week = text.split()
    named = re.sub(r"\d+", lambda n: DAYS[int(n[0])], week.partition("/")[0]) if not week.startswith("*/") else ",".join(
        DAYS[n] for n in range(0, 7, int(week[2:])))  # fmt: skip
    if "-" in named:
        low, high = (int(n) for n in week.split("-"))
        named = ",".join(DAYS[n] for n in range(low, high + 1))

    def made(**days):
        return CronTrigger(minute=minute, hour=hour, month=month, timezone=UTC, **days)

    if not day.startswith("*") and not week.startswith("*"):
        return OrTrigger([made(day=day), made(day_of_week=named)])
    return made(day=day, day_of_week=named)


@settings(max_examples=60, deadline=None)
@given(st.tuples(entry(0, 59), entry(0, 23), entry(1, 28), entry(1, 12), entry(0, 6)), st.integers(0, 3 * 365 * 24 * 60))
def test_where_clocks_stand_still_the_times_are_those_of_apscheduler(fields, minutes):
    text = " ".join(fields)
    after = utc("2025-01-01T00:00") + timedelta(minutes=minutes)
    trigger, found, now = theirs(text), [], after + timedelta(microseconds=1)
    for _ in range(4):
        found.append(trigger.get_next_fire_time(None, now))
        now = found[-1] + timedelta(microseconds=1)
    assert list(islice(Cron(text).times(after), 4)) == found
    assert Cron(text).last(found[-1]) == found[-1] and Cron(text).last(found[3] - timedelta(seconds=1)) == found[2]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
@pytest.mark.parametrize(
    "text", ["30 2 * * 1-5", "*/20 6,18 * * *", "0 12 1 */3 *", "5 4 29 2 *", "0 9 13 * 5", "@weekly", "0 0 * jan,jul sun"]
)
def test_the_times_are_those_of_systemd(text):
    after, found = utc("2026-11-01T12:00"), set()
    lines = exporting.on_calendar(Cron(text, "Europe/Berlin"))
    for line in lines:
        said = subprocess.run(
            ["systemd-analyze", "calendar", "--iterations=6", "--base-time=2026-11-01 12:00:00 UTC", line],
            capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
        ).stdout  # fmt: skip
        found |= {t.replace(" ", "T") for t in re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ (\d+-\d+-\d+ \d+:\d+):00 UTC", said)}
    ours = some(text, after, 6)
    assert len(ours) >= 2 and ours == sorted(found)[: len(ours)]


def test_an_alias_with_a_month_without_that_day():
    assert some("0 0 31 * *", utc("2026-01-31T00:00"), 3, "UTC") == ["2026-03-31T00:00", "2026-05-31T00:00", "2026-07-31T00:00"]
    assert some("@yearly", utc("2026-01-31T00:00"), 1, "UTC") == ["2027-01-01T00:00"]
    assert Cron("0 0 * * 7").fields == Cron("0 0 * * sun").fields


@pytest.mark.parametrize(
    ("text", "zone", "message"),
    [
        ("30 2 * *", "UTC", "five fields"),
        ("61 2 * * *", "UTC", r"minute '61' must be \*, a number in \[0, 59\]"),
        ("0 2 * * mo", "UTC", "day of the week 'mo' must be .* or a name"),
        ("0 5-2 * * *", "UTC", "hour '5-2'"),
        ("0 */0 * * *", "UTC", r"hour '\*/0'"),
        ("5/10 * * * *", "UTC", "minute '5/10'"),
        ("0 0 30 2 *", "UTC", "no year has such a day"),
        ("0 0 * * *", "Europe/Berlln", "timezone = 'Europe/Berlln' is not allowed: .*did you mean Europe/Berlin"),
        ("0 -1 * * *", "UTC", "hour '-1'"),
        ("", "UTC", "five fields"),
    ],
)
def test_what_is_no_time_is_named_with_what_is_allowed(text, zone, message):
    with pytest.raises(CronError, match=message):
        Cron(text, zone)
