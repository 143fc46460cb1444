"""The dashboard as one server: its pages and the HTTP API on one port. `claimlab dashboard` starts it with `streamlit run`."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import api
import sse
import streamlit as st

from claimlab import access


@asynccontextmanager
async def ready(_app: st.App) -> AsyncIterator[None]:
    """The token lies there from the start, for whoever wants to use the API."""
    access.token()
    for number in (signal.SIGINT, signal.SIGTERM):
        _end_streams_at(number)
    yield


def _end_streams_at(number: int) -> None:
    """Let a signal end the streams before the server obeys it: it waits for open connections, and a stream is one."""
    before = signal.getsignal(number)

    def obey(number, frame):
        sse.OVER.set()
        before(number, frame)

    if callable(before):
        signal.signal(number, obey)


app = st.App("app.py", routes=api.routes(), lifespan=ready)
