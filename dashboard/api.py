"""The HTTP API on the dashboard's port: read runs, follow one while it goes on, and send it commands. JSON in and out.

TABLE is the one list of what there is: the routes, the index at /api and the description at /api/openapi.json come from it.
Every request passes `guard.check`. Ids and names are data: they are looked up in the ledger and never make up a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import guard
import openapi
import sse
from anyio import CapacityLimiter, to_thread
from openapi import Endpoint, Query
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from claimlab import remote
from claimlab.ledger import ENDED, STATUSES, Ledger, LedgerError, home
from claimlab.params import KnobError
from claimlab.strict import finite
from claimlab.study import StudyError

RUN = re.compile(r"[a-z0-9-]{1,80}")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# threads of their own: who waits for a run's answer keeps nobody from reading, and neither keeps the pages from being served
READING, WAITING = CapacityLimiter(8), CapacityLimiter(16)


class Asked(NamedTuple):
    """What was asked: the ledger, the parts of the path, the checked query and the body."""

    book: Ledger
    path: dict[str, Any]
    query: dict[str, Any]
    body: dict[str, Any]


# ---- answers: each returns the status and what becomes JSON


def index(_asked: Asked) -> tuple[int, Any]:
    routes = [{"method": one.method, "path": one.path, "text": one.text} for one in TABLE]
    return 200, {"name": "claimlab", "description": "/api/openapi.json", "routes": routes}


def description(_asked: Asked) -> tuple[int, Any]:
    return 200, openapi.describe(TABLE)


def runs(asked: Asked) -> tuple[int, Any]:
    status = asked.query["status"]
    if status is not None and status not in STATUSES:
        raise guard.Refused(400, f"status must be one of {', '.join(STATUSES)}")
    asked.book.reap(sse.SILENCE)
    return 200, {"runs": asked.book.runs(asked.query["study"], status, asked.query["limit"])}


def run(asked: Asked) -> tuple[int, Any]:
    return 200, known(asked)


def metrics(asked: Asked) -> tuple[int, Any]:
    row, limit = known(asked), asked.query["limit"]
    points, cursor = asked.book.points_since(row["id"], asked.query["cursor"], limit)
    return 200, {"columns": sse.POINT, "points": points, "cursor": cursor, "more": len(points) == limit, "status": row["status"]}


def events(asked: Asked) -> tuple[int, Any]:
    row, limit = known(asked), asked.query["limit"]
    found = asked.book.events(row["id"], asked.query["after"])
    kept = found[:limit]
    return 200, {"events": kept, "after": kept[-1]["id"] if kept else asked.query["after"], "more": len(found) > limit}


def verdicts(asked: Asked) -> tuple[int, Any]:
    return 200, {"verdicts": asked.book.verdicts(known(asked)["id"])}


def commands(asked: Asked) -> tuple[int, Any]:
    found = [c for c in asked.book.commands(known(asked)["id"]) if c["id"] > asked.query["after"]]
    return 200, {"commands": found[: asked.query["limit"]], "more": len(found) > asked.query["limit"]}


def command(asked: Asked) -> tuple[int, Any]:
    run = known(asked)["id"]
    found = next((c for c in asked.book.commands(run) if c["id"] == asked.path["number"]), None)
    if found is None:
        raise guard.Refused(404, f"the run {run} has no command {asked.path['number']}")
    return 200, {**found, "ok": None if found["ok"] is None else bool(found["ok"])}


def send(asked: Asked) -> tuple[int, Any]:
    """Queue a command through the function that the command line uses, and wait for its answer."""
    row, order = known(asked), _order(asked.body)
    try:
        answer = remote.send(asked.book, row["id"], order.pop("verb"), order.pop("payload"), **order)
    except (KnobError, StudyError) as wrong:
        ended = asked.book.run(row["id"])["status"] in ENDED
        raise guard.Refused(409 if ended or isinstance(wrong, StudyError) else 400, str(wrong)) from None
    if answer["ok"]:
        return 200, answer
    found = next(c for c in asked.book.commands(row["id"]) if c["id"] == answer["id"])
    return 409 if found["answered"] is not None else 202, answer


def _order(body: dict[str, Any]) -> dict[str, Any]:
    """A command as `remote.send` takes it; Refused names the field that has the wrong type."""
    given = {name: body[name] for name in openapi.COMMAND if body.get(name) is not None}
    if "verb" not in given or set(body) - set(openapi.COMMAND):
        raise guard.Refused(400, f"a command has a verb, and of these what it needs: {', '.join(openapi.COMMAND)}")
    for name, value in given.items():
        if why := openapi.wrong(value, openapi.COMMAND[name]):
            raise guard.Refused(400, f"{name} {why}")
    given["by"] = f"api {given.get('by', '')}".strip()
    return {"payload": {}, "timeout": 10, **given}


def known(asked: Asked) -> dict[str, Any]:
    """The run that the path names; Refused where there is none."""
    name = asked.path["run"]
    if not RUN.fullmatch(name):
        raise guard.Refused(404, "an id of a run has lower-case letters, digits and hyphens")
    asked.book.reap(sse.SILENCE)
    try:
        return asked.book.run(name)
    except LedgerError as error:
        raise guard.Refused(404, str(error)) from None


def stream(asked: Asked) -> Any:
    """The events of a run as they happen, as server-sent events; see `sse.follow`."""
    row = known(asked)
    return partial(sse.follow, asked.book, row["id"], asked.query["cursor"], asked.query["after"])


LIMIT = Query("limit", "integer", "at most so many", 1000, 1, 5000)
AFTER = Query("after", "integer", "only what has an id above this one", 0, 0, 2**53)
CURSOR = Query("cursor", "integer", "only points with an id above this one; each answer names the next", 0, 0, 2**53)
LIST = (Query("study", "string", "runs of this study only"), Query("status", "string", f"one of {', '.join(STATUSES)}"),
        Query("limit", "integer", "at most so many, newest first", 50, 1, 500))  # fmt: skip
TABLE = (
    Endpoint("GET", "/api", index, "what there is"),
    Endpoint("GET", "/api/openapi.json", description, "this API in OpenAPI 3.1"),
    Endpoint("GET", "/api/runs", runs, "runs, newest first", LIST),
    Endpoint("GET", "/api/runs/{run}", run, "one run: study, knobs, seeds, status, steps done"),
    Endpoint("GET", "/api/runs/{run}/metrics", metrics, "points since a cursor; a value that is not finite is null", (CURSOR, LIMIT)),
    Endpoint("GET", "/api/runs/{run}/events", events, "what happened: interventions, checkpoints, divergence", (AFTER, LIMIT)),
    Endpoint("GET", "/api/runs/{run}/verdicts", verdicts, "the verdicts on the study's claims"),
    Endpoint("GET", "/api/runs/{run}/stream", stream, "points, events and status as server-sent events until the run ends",
             (CURSOR, AFTER), stream=True),
    Endpoint("GET", "/api/runs/{run}/commands", commands, "commands and their answers", (AFTER, LIMIT)),
    Endpoint("POST", "/api/runs/{run}/commands", send, "send a command and wait for its answer", body=True),
    Endpoint("GET", "/api/runs/{run}/commands/{number}", command, "one command and its answer"),
)  # fmt: skip


# ---- from a request to an answer


def routes() -> list[Route]:
    """The routes of TABLE for Starlette, and one that tells every other path below /api that it is none."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for one in TABLE:
        by_path.setdefault(one.path, {})[one.method] = one
    found = [Route(path.replace("{number}", "{number:int}"), partial(_answer, by), methods=METHODS) for path, by in by_path.items()]
    return [*found, Route("/api/{rest:path}", partial(_answer, {}), methods=METHODS)]


async def _answer(by_method: dict[str, Endpoint], request: Request) -> Response:
    try:
        guard.check(request)
        one = by_method.get(request.method)
        if one is None:
            raise guard.Refused(*((405, f"use {' or '.join(by_method)}") if by_method else (404, "there is no such route; see /api")))
        query = {q.name: q.read(request.query_params.get(q.name)) for q in one.query}
        body = await guard.body(request) if one.body else {}
        work = partial(_act, one.act, dict(request.path_params), query, body)
        found = await to_thread.run_sync(work, limiter=WAITING if one.body else READING)
        if one.stream:
            return StreamingResponse(found(READING), media_type="text/event-stream", headers=guard.HEADERS)
        return _json(*found)
    except guard.Refused as refused:
        return _json(refused.status, {"ok": False, "reason": refused.reason})
    except openapi.BadQuery as wrong:
        return _json(400, {"ok": False, "reason": str(wrong)})
    except (LedgerError, SQLAlchemyError, KnobError, OSError) as error:
        _book.cache_clear()
        reason = str(getattr(error, "orig", None) or error)
        return _json(503, {"ok": False, "reason": f"the ledger of runs cannot be used now: {reason}"})


def _act(act: Callable[[Asked], Any], path: dict[str, Any], query: dict[str, Any], body: dict[str, Any]) -> Any:
    return act(Asked(_book(os.environ.get("CLAIMLAB_LEDGER") or f"sqlite:///{home() / 'ledger.db'}"), path, query, body))


@lru_cache(maxsize=2)
def _book(url: str) -> Ledger:
    return Ledger(url)


def _json(status: int, found: Any) -> Response:
    headers = guard.HEADERS | ({"www-authenticate": "Bearer"} if status == 401 else {})
    return Response(json.dumps(finite(found), allow_nan=False), status, headers, "application/json")
