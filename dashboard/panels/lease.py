"""Who drives a run: one driver for some minutes, any number of viewers, and how to ask for the wheel."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import streamlit as st
from panels import glance, store
from panels.wording import plain, span

MINUTES = 10.0
COOKIE = "_streamlit_xsrf"  # the same for all tabs of a browser, also after a reload
ASKED = 600.0  # seconds that a question stays on the driver's page


def me() -> str:
    """The name under which this browser sends commands, as `dashboard 3f2a`."""
    if "driver" not in st.session_state:
        mark = _token(st.context.cookies.get(COOKIE) or "")
        st.session_state["driver"] = f"dashboard {hashlib.sha256(mark).hexdigest()[:4] if mark else secrets.token_hex(2)}"
    return st.session_state["driver"]


def _token(cookie: str) -> bytes:
    """The lasting part of Streamlit's cookie `2|mask|masked token|time`: it goes out under another mask each time."""
    try:
        _, mask, masked, _ = cookie.split("|")
        key = bytes.fromhex(mask)
        return bytes(c ^ key[i % len(key)] for i, c in enumerate(bytes.fromhex(masked)))
    except (ValueError, ZeroDivisionError):
        return b""


def holder(lease: dict[str, Any] | None) -> str:
    """Who drives now by the payload of the last `drive` event; empty if nobody does."""
    return lease["holder"] if lease and lease["until"] > time.time() else ""


def barred(events: Sequence[dict[str, Any]]) -> str:
    """Why this browser may not steer, empty if it may: where nobody drives, anybody may."""
    lease = _last(events)
    driver = holder(lease)
    return "" if driver in ("", me()) else f"{driver} drives for another {span(lease['until'] - time.time())}"


def driver(events: Sequence[dict[str, Any]]) -> str:
    """Who drives now; empty if nobody does."""
    return holder(_last(events))


def _last(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((e["payload"] for e in reversed(events) if e["kind"] == "drive"), None)


def askers(events: Sequence[dict[str, Any]]) -> list[str]:
    """Who has asked for the wheel since it last changed hands, oldest first."""
    asked: dict[str, None] = {}
    for event in events:
        if event["kind"] == "drive":
            asked.clear()
        elif event["kind"] == "ask" and event["time"] > time.time() - ASKED:
            asked[event["payload"]["by"]] = None
    return list(asked)


def panel(run: str, events: Sequence[dict[str, Any]]) -> None:
    """Who drives, in words, and what this browser can do about it."""
    lease, asked = _last(events), askers(events)
    driver = holder(lease)
    with st.container(horizontal=True, vertical_alignment="center"):
        if not driver:
            st.markdown(f"Nobody drives: anybody may steer. You are {plain(me())}.", width="content")
            _button("Drive", "drive", run, {"seconds": 60 * MINUTES}, f"only you can steer, for {MINUTES:g} minutes")
        elif driver == me():
            st.markdown(f"**You drive** for another {span(lease['until'] - time.time())}.", width="content")
            for name in (name for name in asked if name != me()):
                _button(
                    f"Hand over to {name}",
                    f"hand-{name}",
                    run,
                    {"seconds": 60 * MINUTES, "to": name},
                    f"{name} asks for the wheel",
                )
            _button("Leave the wheel", "leave", run, {"seconds": 0.0}, "anybody may steer then")
        else:
            st.markdown(
                f"**{plain(driver)} drives** for another {span(lease['until'] - time.time())}; you watch.", width="content"
            )
            waits = me() in asked
            st.button("You have asked" if waits else "Ask for the wheel", key="ask", icon=":material/pan_tool:", disabled=waits,
                      on_click=_ask, args=(run,), help="the driver sees it and can hand over")  # fmt: skip
    for name in (n for n in asked if driver == me() and n != me()):
        st.info(f"{plain(name)} asks for the wheel.", icon=":material/pan_tool:")


def _button(text: str, key: str, run: str, payload: dict[str, Any], help: str) -> None:
    st.button(
        plain(text), key=key, icon=":material/swap_driving_apps_wheel:", on_click=_drive, args=(run, payload), help=plain(help)
    )


def _drive(run: str, payload: dict[str, Any]) -> None:
    store.ledger().command(run, "drive", payload, by=me())
    glance.forget(run)


def _ask(run: str) -> None:
    store.ledger().event(run, "ask", payload={"by": me()})
    glance.forget(run)
