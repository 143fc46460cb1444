"""Who may come in: the token of the HTTP API, the password of a dashboard that others can reach, the list of OIDC guests.

Secrets lie under the home of runs, readable by their owner alone. A password is kept as a salted scrypt hash (RFC 7914).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import ipaddress
import os
import secrets
import socket
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from claimlab.database import home
from claimlab.params import KnobError

LOCAL = ("127.0.0.1", "localhost", "::1")
COST = (2**15, 8, 1)  # scrypt's n, r and p: 32 MB and about a tenth of a second for one guess
SHORTEST = 8  # characters of a password


def local(host: str | None) -> bool:
    """Whether an address or host name is this machine's own and nobody else's; None, every interface, is not."""
    try:
        return host == "localhost" or ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


def names_of(host: str) -> list[str]:
    """The names and addresses under which a server that listens at `host` is addressed."""
    if local(host):
        return list(LOCAL)
    try:
        every = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        every = False
    here = socket.gethostname()
    found = {host} if not every else {here, socket.getfqdn()} | _addresses(here)
    return [*LOCAL, *sorted(one.lower() for one in found - set(LOCAL))]


def _addresses(name: str) -> set[str]:
    """The addresses of this machine: those of its name, and the one from which it would send to the outside."""
    found = set()
    with suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))  # a documentation address: choosing a route sends nothing
        found.add(one.getsockname()[0])
    return found


# ---- the token of the API


def token_file() -> Path:
    """Where the token of the API lies."""
    return home() / "api_token"


def token() -> str:
    """The token of the API, made on first use; KnobError where its file has been damaged."""
    path = token_file()
    if not path.exists():
        _write(path, secrets.token_urlsafe(32), replace=False)
    found = path.read_text(encoding="utf-8").strip()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    if len(found) < 32:
        raise KnobError(f"the token in {path} is too short; delete the file, and another one is made")
    return found


def same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


# ---- the password of the pages


def password_file() -> Path:
    """Where the hash of the password lies."""
    return home() / "password_hash"


def hashed(password: str) -> str:
    """A salted hash of a password as scrypt$n$r$p$salt$hash; KnobError for one that is too short."""
    if len(password) < SHORTEST:
        raise KnobError(f"the password is too short: it needs {SHORTEST} characters at least")
    salt = secrets.token_bytes(16)
    return "$".join(["scrypt", *map(str, COST), _text(salt), _text(_scrypt(password, salt, COST))])


def matches(password: str, stored: str) -> bool:
    """Whether a password is the one that was hashed; KnobError where `stored` is no hash of ours."""
    cost, salt, wanted = _parts(stored)
    return hmac.compare_digest(_scrypt(password, salt, cost), wanted)


def stored_hash() -> str:
    """The hash in force: CLAIMLAB_PASSWORD_HASH, else the file; empty if there is none, KnobError if it is unreadable."""
    path = password_file()
    found = os.environ.get("CLAIMLAB_PASSWORD_HASH") or (path.read_text(encoding="utf-8") if path.exists() else "")
    if found.strip():
        _parts(found.strip())
    return found.strip()


def set_password(password: str) -> Path:
    """Store the hash of a password in place of the one before; the file."""
    _write(password_file(), hashed(password), replace=True)
    return password_file()


def _parts(stored: str) -> tuple[tuple[int, ...], bytes, bytes]:
    try:
        name, n, r, p, salt, wanted = stored.split("$")
        cost = (int(n), int(r), int(p))
        if name != "scrypt" or cost[0] & (cost[0] - 1) or not (2**14 <= cost[0] <= 2**20 and 1 <= cost[1] <= 32 and 1 <= cost[2] <= 16):
            raise ValueError
        return cost, base64.b64decode(salt, validate=True), base64.b64decode(wanted, validate=True)
    except ValueError:
        raise KnobError("the stored password hash is not one that `claimlab dashboard --set-password` writes") from None


def _scrypt(password: str, salt: bytes, cost: tuple[int, ...]) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r * p, dklen=32)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _write(path: Path, text: str, replace: bool) -> None:
    """Write a file of mode 600 in one piece; one that is there already is replaced or kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mkstemp makes it readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text + "\n")
        if replace:
            os.replace(name, path)
        else:
            os.link(name, path)
    except FileExistsError:
        pass  # another process was first
    finally:
        Path(name).unlink(missing_ok=True)


# ---- OIDC through Streamlit


def oidc(root: Path) -> tuple[str, ...]:
    """The guests whom an OIDC login lets in (addresses, or @domains); empty where no provider is set up.

    Both stand in secrets.toml: Streamlit's section [auth], and [claimlab] with users = [...]. KnobError where [auth] is there
    and could not work, or would let in whoever has an account with the provider.
    """
    found: dict[str, Any] = {}
    for path in (Path.home() / ".streamlit" / "secrets.toml", root / ".streamlit" / "secrets.toml"):
        if path.exists():
            try:
                found |= tomllib.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise KnobError(f"{path} cannot be read: {error}") from None
    if "auth" not in found:
        return ()
    users = tuple(str(one).lower() for one in found.get("claimlab", {}).get("users", ()))
    if not users:
        raise KnobError('secrets.toml has [auth] and nobody who may enter: add [claimlab] with users = ["ann@example.org", "@example.edu"]')
    if importlib.util.find_spec("authlib") is None:
        raise KnobError("secrets.toml has [auth], which needs Authlib: pip install 'streamlit[auth]'")
    return users


def guest(address: str, users: tuple[str, ...]) -> bool:
    """Whether an e-mail address is on the list of guests, itself or by its domain."""
    name = address.lower()
    return "@" in name[1:] and any(name == one or one.startswith("@") and name.endswith(one) for one in users)


def require(host: str, root: Path) -> None:
    """KnobError unless an address or name is this machine's own, or a password or OIDC guards the pages."""
    if not local(host) and not oidc(root) and not stored_hash():
        raise KnobError(
            f"host = {host} lets others reach the dashboard, and nothing asks who they are: set a password with "
            "`claimlab dashboard --set-password` (or CLAIMLAB_PASSWORD_HASH), or [auth] in .streamlit/secrets.toml"
        )
