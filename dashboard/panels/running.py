"""Every run that is queued or under way as a card: sparkline, share done, rate, time left, who drives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import streamlit as st
from panels import lease, store
from panels.wording import STATUS, humanised, number, plain, span

from claimlab.study import Study

WINDOW = 10.0  # seconds over which a rate is taken
STEADY = 1.0  # a shorter time says nothing of it
POINTS = 60  # of a sparkline


def cards(going: Sequence[dict[str, Any]], known: dict[str, Study], shown: str) -> None:
    """One card a run; the one that is shown below says so."""
    leases = store.ledger().latest("drive", [row["id"] for row in going])
    line = [row["id"] for row in reversed(going) if row["status"] == "queued"]
    with st.grid(3, min_column_width=300, gap="small"):
        for row in going:
            with st.container(border=True, height="stretch", key=f"running-{row['id']}"):
                _card(row, known.get(row["study"]), leases.get(row["id"]), line, row["id"] == shown)


def _card(row: dict[str, Any], study: Study | None, last: dict[str, Any] | None, line: list[str], shown: bool) -> None:
    st.markdown(f"**{plain(row['study'])}** · {STATUS[row['status']]} {row['status']}" + (" · shown below" if shown else ""))
    if row["status"] == "queued":
        before = line.index(row["id"])
        st.caption(
            "Next in line; its process is starting." if not before else f"Number {before + 1} in line, {before} before it."
        )
    elif study is not None:
        _spark(row, study)
    share = min(1.0, (row["done"] or 0) / row["total"]) if row["total"] else 0.0
    st.progress(share, text=f"{100 * share:.0f} % of {row['total']:,} steps" if row["total"] else "starting")
    facts = [_pace(row), _driver(last), plain(row["id"][-6:])]
    st.caption(" · ".join(filter(None, facts)))
    if not shown:
        st.page_link("app_pages/live.py", label="Open this run", icon=":material/monitoring:", query_params={"run": row["id"]})


def _driver(last: dict[str, Any] | None) -> str:
    name = lease.holder(last)
    return "nobody drives" if not name else "you drive" if name == lease.me() else f"{plain(name)} drives"


def _pace(row: dict[str, Any]) -> str:
    """Steps a second over the last seconds, and the time that is left at that rate."""
    rate = rate_of(row)
    if not rate:
        return ""
    shown = f"{rate:,.0f}" if rate >= 10 else number(rate)
    return f"{shown} steps/s · about {span((row['total'] - row['done']) / rate)} left"


def rate_of(row: dict[str, Any]) -> float:
    """Steps a second that this run does now; 0 while it is paused or has just begun."""
    if row["status"] != "running" or not row["done"] or not row["total"]:
        return 0.0
    return pace(st.session_state.setdefault("paces", {}).setdefault(row["id"], []), row["heartbeat"], row["done"])


def pace(seen: list[tuple[float, int]], now: float, done: int) -> float:
    """Steps a second from the (time, steps) seen in the last seconds; 0 until there is a stretch to tell it by."""
    if seen and done < seen[-1][1]:  # it was set back
        seen.clear()
    if not seen or now > seen[-1][0]:
        seen.append((now, done))
    while len(seen) > 2 and seen[1][0] < now - WINDOW:
        del seen[0]
    passed = now - seen[0][0]
    return (done - seen[0][1]) / passed if passed >= STEADY else 0.0


def _spark(row: dict[str, Any], study: Study) -> None:
    """The mean of the first claim's metric that grows over steps, as the method's arm has it."""
    kept = st.session_state.setdefault("sparks", {}).setdefault(row["id"], {"cursor": 0, "lines": {}})
    wanted = dict.fromkeys([(c.arm, c.metric) for c in study.claims] + [(c.arm, "loss") for c in study.claims])
    new, kept["cursor"] = store.ledger().means(row["id"], {metric for _, metric in wanted}, kept["cursor"])
    for arm, metric, step, mean in new:
        kept["lines"].setdefault((arm, metric), {})[step] = mean
    grown = [key for key in wanted if len(kept["lines"].get(key, ())) > 1] or [k for k, v in kept["lines"].items() if len(v) > 1]
    if not grown:
        st.caption("The first points come in a few seconds.")
        return
    arm, metric = grown[0]
    line = [line for _, line in sorted(kept["lines"][grown[0]].items()) if line is not None]
    if line:
        st.metric(f"{humanised(metric)} of {plain(arm)}, n = {len(row['seeds'])}", number(line[-1]), chart_data=thinned(line))


def thinned(line: list[float], points: int = POINTS) -> list[float]:
    """About `points` values of a line, its last one among them."""
    stride = max(1, -(-len(line) // points))
    return line[::-1][::stride][::-1]


def today(counts: dict[str, int]) -> str:
    """What has ended since midnight, in words."""
    ended = [f"{counts[word]} {word}" for word in ("finished", "failed", "stopped", "timed out", "lost") if counts.get(word)]
    return "Today: " + (" · ".join(ended) if ended else "no run has ended yet")


def midnight() -> float:
    """The beginning of the day, as a time stamp."""
    now = time.localtime()
    return time.mktime((now.tm_year, now.tm_mon, now.tm_mday, 0, 0, 0, 0, 0, -1))
