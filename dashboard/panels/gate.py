"""The way in where others than this machine can reach the dashboard: a password, or a login with an OIDC provider."""

from __future__ import annotations

import threading
from time import sleep

import streamlit as st

from claimlab import access
from claimlab import study as studies
from claimlab.params import KnobError

SLOWEST = 8.0  # seconds before another try is looked at
ONE_AT_A_TIME = threading.Lock()  # a guess costs memory and a core; many sessions guess no faster than one


def exposed() -> bool:
    """Whether others can reach this server, by the address and the names that it was started with; unset means that they can."""
    return not access.local(st.get_option("server.address")) or not all(map(access.local, st.get_option("server.allowedHosts")))


def passed() -> bool:
    """Whether this session may see the pages."""
    if not exposed():
        return True
    try:
        users = access.oidc(studies.root())
        stored = "" if users else access.stored_hash()
    except KnobError:
        return False
    if users:
        return st.user.is_logged_in and access.guest(_address(), users) and st.user.get("email_verified") is not False
    return bool(stored) and st.session_state.get("gate") == stored  # another password since asks everybody again


def enter() -> None:
    """Return for who may come in; else show how to, and nothing else of the page."""
    if passed():
        return
    st.title("claimlab")
    try:
        if access.oidc(studies.root()):
            _login()
        elif stored := access.stored_hash():
            _password(stored)
        else:
            _closed("No password is set. On the machine of the dashboard: `claimlab dashboard --set-password`")
    except KnobError as error:
        _closed(str(error))
    st.stop()


def _closed(why: str) -> None:
    st.error(why, title="Nobody can come in", icon=":material/lock:")


def _password(stored: str) -> None:
    with st.form("gate-form", width=400):
        given = st.text_input("Password", type="password", key="gate-password", autocomplete="current-password")
        sent = st.form_submit_button("Come in", icon=":material/login:")
    if sent and _right(given, stored):
        st.session_state["gate"] = stored
        st.rerun()
    elif sent:
        st.error("That is not the password.", icon=":material/lock:")


def _right(given: str, stored: str) -> bool:
    """Whether it is the password; each wrong one makes this session wait longer for the next answer."""
    wrong = st.session_state.get("gate-wrong", 0)
    if wrong:
        sleep(min(0.25 * 2**wrong, SLOWEST))
    with ONE_AT_A_TIME:
        right = access.matches(given, stored)
    st.session_state["gate-wrong"] = 0 if right else wrong + 1
    return right


def _login() -> None:
    if st.user.is_logged_in:
        st.error(f"{_address() or 'This account'} is not on the list of guests.", icon=":material/lock:")
        st.button("Log out", icon=":material/logout:", on_click=st.logout)
    else:
        st.button("Log in", icon=":material/login:", on_click=st.login, type="primary")


def _address() -> str:
    return str(st.user.get("email") or "")
