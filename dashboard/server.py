"""The dashboard as one server: its pages and the HTTP API on one port. `claimlab dashboard` starts it with `streamlit run`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import api
import streamlit as st

from claimlab import access


@asynccontextmanager
async def ready(_app: st.App) -> AsyncIterator[None]:
    """The token lies there from the start, for whoever wants to use the API."""
    access.token()
    yield


app = st.App("app.py", routes=api.routes(), lifespan=ready)
