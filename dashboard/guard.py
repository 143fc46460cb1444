"""What a request must show before it is answered: a known host, the token, and where it changes something, our own origin."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from streamlit import config

from claimlab import access

LARGEST = 64 * 1024  # bytes of a body
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class Refused(Exception):
    """A request that is not answered: the status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def check(request: Request) -> None:
    """Refused unless the request names a host of ours and holds the token; one that may change something, see `_ours`."""
    if _hostname(request.headers.get("host", "")) not in hosts():
        raise Refused(403, "this host name is not one of the dashboard's; see `claimlab dashboard --help`, --name")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not access.same(given.strip(), access.token()):
        raise Refused(401, "send the header `Authorization: Bearer TOKEN`; the token lies in the file api_token of the runs' home")
    if request.method not in ("GET", "HEAD"):
        _ours(request)


def hosts() -> set[str]:
    """The host names under which the dashboard may be addressed, which keeps a rebound name of another site out."""
    return {str(name).lower() for name in config.get_option("server.allowedHosts") or access.LOCAL}


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _ours(request: Request) -> None:
    """Refused where a browser sent it from another site or page, or where it is a form's body, which needs no permission."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Refused(403, "this request comes from another origin")
    if site not in (None, "same-origin", "none"):
        raise Refused(403, "this request comes from another site")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body must be JSON: send the header `Content-Type: application/json`")


async def body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; Refused where it is too large, or is no strict JSON object."""
    read = b""
    async for part in request.stream():
        read += part
        if len(read) > LARGEST:
            raise Refused(413, f"the body has more than {LARGEST} bytes")
    try:
        found = json.loads(read.decode("utf-8"), parse_constant=_number, parse_float=_number, parse_int=_number)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be stored
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object")
    return found


def _number(text: str) -> float | int:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return int(text) if abs(number) < 2**53 and text.lstrip("-").isdigit() else number
