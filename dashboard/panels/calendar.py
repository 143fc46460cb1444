"""Reports on a calendar: when each schedule is due, what came of it, and to let it rest, go on, or run now."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from panels import launch, reporting, store
from panels.wording import STATUS, ago, plain

from claimlab.schedules import plan
from claimlab.schedules.calendar import Calendar
from claimlab.schedules.plan import Schedule
from claimlab.study import StudyError

EVERY = 5.0
EXAMPLE = '[nightly]\ncron = "30 2 * * mon-fri"\ntimezone = "Europe/Berlin"\nall = true\nemail = ["ann@example.org"]\n'
CHILDREN: dict[str, subprocess.Popen] = {}


def book() -> Calendar:
    """The calendar of the ledger that the pages show."""
    return _book(store.ledger().url)


@st.cache_resource(max_entries=4, show_spinner=False)
def _book(url: str) -> Calendar:
    return Calendar(url)


def panel() -> None:
    """All schedules of the file; renews itself while one runs."""
    file = plan.where()
    with st.expander("Schedules", icon=":material/calendar_month:", expanded=file.exists(), key="schedules"):
        if not file.exists():
            st.caption(f"No report is on a calendar yet. Write {plain(file.name)}, then type `claimlab schedule run`.")
            st.code(EXAMPLE, language="toml")
            return
        try:
            schedules = read(str(file), file.stat().st_mtime)
        except StudyError as error:
            st.error(plain(error), title="The schedules cannot be read", icon=":material/error:")
            return
        going = any(last and last["status"] == "running" for last in map(latest, schedules))
        st.fragment(_draw, run_every=EVERY if going else None, key="calendar")(schedules)


@st.cache_resource(max_entries=4, ttl=60, show_spinner=False)
def read(file: str, stamp: float) -> dict[str, Schedule]:
    """The schedules of a file, checked; read again when it, or what it is checked against, may have changed."""
    return plan.read(Path(file))


def latest(name: str) -> dict[str, Any] | None:
    """What came of a schedule the last time."""
    return next(iter(book().firings(name, 1)), None)


def _draw(schedules: dict[str, Schedule]) -> None:
    alive = len(book().schedulers())
    st.caption(f"{alive} scheduler{' serves' if alive == 1 else 's serve'} this ledger." if alive else
               "No scheduler runs, so that nothing starts by itself: type `claimlab schedule run`.")  # fmt: skip
    resting = book().paused()
    for one in schedules.values():
        _one(one, one.name in resting)


def _one(one: Schedule, rests: bool) -> None:
    last, moment = latest(one.name), one.cron.next(datetime.now(UTC))
    runs = last is not None and last["status"] == "running"
    with st.container(border=True):
        due = "paused" if rests else "never due again" if moment is None else f"next {local(one, moment)}"
        st.markdown(f"**{plain(one.name)}**  `{one.cron.text}` {plain(one.cron.zone)}: {plain(due)}")
        studies = f"{len(one.slugs)} {'study' if len(one.slugs) == 1 else 'studies'}, profile {one.profile}"
        st.caption(plain(f"{studies}, into {one.out.name}" + (f", to {', '.join(one.email)}" if one.email else "")))
        if last is not None:
            sign = ":material/hourglass_top:" if runs else STATUS.get(last["status"], STATUS["lost"])
            told = f"{last['status']}, begun {ago(last['began'])}" + (f": {last['reason']}" if last["reason"] else "")
            st.markdown(f"{sign} {plain(told)}")
        if runs:
            reporting.bar(one.out)
        with st.container(horizontal=True):
            st.button("Go on" if rests else "Pause", icon=":material/play_arrow:" if rests else ":material/pause:",
                      key=f"rest-{one.name}", on_click=book().pause, args=(one.name, not rests))  # fmt: skip
            st.button("Run now", icon=":material/bolt:", key=f"now-{one.name}", disabled=runs, on_click=start, args=(one,))
        _history(one)


def _history(one: Schedule) -> None:
    past = book().firings(one.name)
    if not past:
        return
    with st.expander("What came of it", icon=":material/history:", key=f"history-{one.name}"):
        lines = [{"due": local(one, datetime.fromtimestamp(row["due"], UTC)), "status": row["status"], "attempts": row["attempts"],
                  "exit code": row["code"], "reason": row["reason"]} for row in past]  # fmt: skip
        st.dataframe(pd.DataFrame(lines), hide_index=True, alt=f"Runs of the schedule {one.name}, newest first")


def local(one: Schedule, moment: datetime) -> str:
    """A time by the clock of the schedule's zone."""
    from zoneinfo import ZoneInfo

    return f"{moment.astimezone(ZoneInfo(one.cron.zone)):%a %d %b %Y, %H:%M %Z}"


def start(one: Schedule) -> None:
    """Run a schedule now, in a process of its own that outlives this server; one that runs already is not started twice."""
    one.out.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "claimlab.cli", "schedule", "run", one.name, "--file", str(plan.where().absolute())]
    with (one.out / "schedule.log").open("ab") as log:
        CHILDREN[one.name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                              start_new_session=True, env=launch.environment(store.ledger()))  # fmt: skip
