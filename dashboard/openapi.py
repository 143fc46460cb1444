"""What the API's routes take and give, declared once: from it requests are checked and the OpenAPI description is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import claimlab
from claimlab import verbs

# the fields of a command in JSON Schema, of which `wrong` checks type, maximum, minimum and maxLength
COMMAND: dict[str, dict[str, Any]] = {
    "verb": {"type": "string", "description": f"one of {', '.join(verbs.VERBS)}", "maxLength": 20},
    "payload": {"type": "object", "description": "set: name, value; reset, freeze, unfreeze: layer; step: n; rollback: step or checkpoint; "
                "fork: change; drive: seconds, to"},
    "arm": {"type": "string", "description": "one arm only; default: all", "maxLength": 80},
    "seed": {"type": "integer", "description": "one member only", "minimum": 0, "maximum": 2**31 - 1},
    "by": {"type": "string", "description": "who sends it; in the ledger `api` stands before it", "maxLength": 60},
    "timeout": {"type": "number", "description": "seconds to wait for the answer", "minimum": 0, "maximum": 30, "default": 10},
}  # fmt: skip
KINDS = {"string": str, "object": dict, "integer": int, "number": (int, float)}
ANSWER = {"type": "object", "properties": {
    "id": {"type": "integer"}, "ok": {"type": "boolean"}, "step": {"type": ["integer", "null"]}, "old": {}, "new": {},
    "reason": {"type": "string"}, "text": {"type": "string"},
}}  # fmt: skip
REFUSAL = {"type": "object", "properties": {"ok": {"const": False}, "reason": {"type": "string"}}}
REFUSALS = {400: "a parameter or the body is not allowed; the reason names it", 401: "the token is missing or wrong",
            403: "another host, origin or site", 404: "there is no such run, command or route",
            503: "the ledger cannot be used now"}  # fmt: skip
SENT = {202: "no answer yet: the command stays queued", 409: "refused, with the reason; the run is unharmed",
        413: "the body is too large", 415: "the body is not JSON by its content type"}  # fmt: skip


class BadQuery(ValueError):
    """A parameter of the query is not allowed."""


@dataclass(frozen=True)
class Query:
    """A parameter of the query: a string, or an integer in [low, high]."""

    name: str
    type: str
    text: str
    default: Any = None
    low: int = 0
    high: int = 80

    def read(self, given: str | None) -> Any:
        """The value of what was given; BadQuery where it is not allowed."""
        if given is None:
            return self.default
        if self.type == "string":
            if len(given) > self.high:
                raise BadQuery(f"{self.name} has more than {self.high} characters")
            return given
        if not re.fullmatch(r"[0-9]{1,16}", given) or not self.low <= int(given) <= self.high:
            raise BadQuery(f"{self.name} must be a whole number in [{self.low}, {self.high}]")
        return int(given)

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        bounds = {"maxLength": self.high} if self.type == "string" else {"minimum": self.low, "maximum": self.high}
        return {"type": self.type, **bounds, **({} if self.default is None else {"default": self.default})}


@dataclass(frozen=True)
class Endpoint:
    """One route: method, path, the function that answers, what it is for, and what it takes."""

    method: str
    path: str
    act: Callable[[Any], Any]
    text: str
    query: tuple[Query, ...] = ()
    body: bool = False
    stream: bool = False


def wrong(value: Any, schema: dict[str, Any]) -> str:
    """Why a value does not fit a field of COMMAND; empty if it does."""
    if not isinstance(value, KINDS[schema["type"]]) or isinstance(value, bool):
        return f"must be of type {schema['type']}"
    if isinstance(value, str) and len(value) > schema["maxLength"]:
        return f"has more than {schema['maxLength']} characters"
    if isinstance(value, int | float) and not schema["minimum"] <= value <= schema["maximum"]:
        return f"must be in [{schema['minimum']}, {schema['maximum']}]"
    return ""


def describe(table: Iterable[Endpoint]) -> dict[str, Any]:
    """The table of routes as an OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for one in table:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    fields = {"type": "object", "required": ["verb"], "properties": COMMAND, "additionalProperties": False}
    return {
        "openapi": "3.1.0",
        "info": {"title": "claimlab", "version": claimlab.__version__, "description": "Runs of claimlab: read, follow and steer them."},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "the file api_token of the runs' home"}},
            "schemas": {"Command": fields, "Answer": ANSWER, "Refusal": REFUSAL},
        },
    }


def _operation(one: Endpoint) -> dict[str, Any]:
    inside = {"run": {"type": "string", "pattern": "^[a-z0-9-]{1,80}$"}, "number": {"type": "integer", "minimum": 0}}
    path = [{"name": n, "in": "path", "required": True, "schema": inside[n]} for n in re.findall(r"\{(\w+)\}", one.path)]
    query = [{"name": q.name, "in": "query", "description": q.text, "schema": q.schema()} for q in one.query]
    good = "text/event-stream" if one.stream else "application/json"
    schema = {"type": "string"} if one.stream else {"$ref": "#/components/schemas/Answer"} if one.body else {"type": "object"}
    answers = {"200": {"description": one.text, "content": {good: {"schema": schema}}}}
    for status, text in (REFUSALS | (SENT if one.body else {})).items():
        name = "Answer" if status == 202 else "Refusal"
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        answers[str(status)] = {"description": text, "content": content}
    found = {"operationId": one.act.__name__, "summary": one.text, "parameters": path + query, "responses": answers}
    if one.body:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Command"}}}
        found["requestBody"] = {"required": True, "content": content}
    return found
