"""A run as server-sent events: what is new in the ledger, read in a thread and written out as it comes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from claimlab.ledger import ENDED, Ledger, LedgerError
from claimlab.strict import finite

POINT = ("id", "arm", "seed", "step", "metric", "value")
PACE = 0.25  # seconds between two looks at the ledger
SILENCE = 8.0  # seconds without a sign of life after which a run is lost, as on the pages
BREATH = 15.0  # seconds of silence after which a comment keeps the connection open
PAGE = 1000
OVER = threading.Event()  # the server is about to end


async def follow(book: Ledger, run: str, cursor: int, after: int, limiter: CapacityLimiter) -> AsyncIterator[str]:
    """`points` {columns, points, cursor}, `event` (one of the ledger's), `status` {status, done, total} as it changes; `end` and no more
    when the run has ended and all of it has been told; `error` {reason} where the ledger cannot be read.

    The id of each message is CURSOR.AFTER: what to ask for to go on from there.
    """
    told, quiet = None, 0.0
    while not OVER.is_set():
        try:
            row, points, cursor, events = await to_thread.run_sync(partial(_news, book, run, cursor, after), limiter=limiter)
        except (LedgerError, SQLAlchemyError) as error:
            yield message("error", {"reason": str(getattr(error, "orig", None) or error)}, cursor, after)
            return
        status = {name: row[name] for name in ("status", "reason", "done", "total")}
        if points:
            yield message("points", {"columns": POINT, "points": points, "cursor": cursor}, cursor, after)
        for one in events:
            after = one["id"]
            yield message("event", one, cursor, after)
        if status != told:
            yield message("status", status, cursor, after)
        if row["status"] in ENDED and not points and not events:
            yield message("end", status, cursor, after)
            return
        quiet = 0.0 if points or events or status != told else quiet + PACE
        told = status
        if quiet >= BREATH:
            quiet = 0.0
            yield ": still there\n\n"
        await asyncio.sleep(0 if len(points) == PAGE else PACE)


def _news(book: Ledger, run: str, cursor: int, after: int) -> tuple[dict[str, Any], list[tuple], int, list[dict[str, Any]]]:
    """The run's row, then what is new: read in this order, a row that has ended has nothing after it."""
    book.reap(SILENCE)
    row = book.run(run)
    return row, *book.points_since(run, cursor, PAGE), book.events(run, after)


def message(kind: str, found: Any, cursor: int, after: int) -> str:
    """One server-sent event. JSON without line breaks is one line of data."""
    return f"id: {cursor}.{after}\nevent: {kind}\ndata: {json.dumps(finite(found), allow_nan=False)}\n\n"
