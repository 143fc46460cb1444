"""Sends a report by e-mail: the summary as text and as HTML with the picture of its verdicts inside, verdicts.csv attached.

The server is named by CLAIMLAB_SMTP_HOST, _PORT, _USER, _PASSWORD, _FROM and _SECURITY, or by the same names in lower case
(`host = "..."`) in a TOML file: the one that CLAIMLAB_SMTP names, else `smtp.toml` in the home of runs. Variables come first.
"""

from __future__ import annotations

import os
import smtplib
import ssl
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Any

from claimlab.database import home
from claimlab.reports import document as documents
from claimlab.reports import summary
from claimlab.study import StudyError

PORTS = {"starttls": 587, "tls": 465, "none": 25}
KEYS = ("host", "port", "user", "password", "from", "security")
NEAR = ("127.0.0.1", "::1", "localhost")
PATIENCE = 30.0  # seconds that a server may be silent


@dataclass(frozen=True)
class Server:
    """A mail server. `security`: starttls (the default), tls, or none, as for one on this machine."""

    host: str
    port: int
    sender: str
    security: str = "starttls"
    user: str = ""
    password: str = ""


def settings(to: Sequence[str]) -> Server:
    """The mail server that is set up, checked together with the addresses `to`; StudyError says what is missing or wrong."""
    for one in to:
        checked("email", one)
    path = Path(os.environ.get("CLAIMLAB_SMTP") or home() / "smtp.toml")
    held = _file(path) if path.exists() or os.environ.get("CLAIMLAB_SMTP") else {}
    held |= {k: v for k in KEYS if (v := os.environ.get(f"CLAIMLAB_SMTP_{k.upper()}"))}
    if not held.get("host"):
        raise StudyError(f"there is no mail server: set CLAIMLAB_SMTP_HOST and CLAIMLAB_SMTP_FROM, or write host and from into {path}")
    security = held.get("security", "starttls")
    if security not in PORTS:
        raise StudyError(f"security = {security!r} is not allowed: one of {', '.join(PORTS)}")
    if security == "none" and held.get("password") and held["host"] not in NEAR:
        raise StudyError("security = 'none' is not allowed: it would send the password in clear to another machine; use starttls or tls")
    port = str(held.get("port", PORTS[security]))
    if not (port.isdigit() and 1 <= int(port) <= 65535):
        raise StudyError(f"port = {port} is not allowed: it must be in [1, 65535]")
    sender = str(held.get("from") or held.get("user", ""))
    checked("from", sender)
    return Server(held["host"], int(port), sender, security, str(held.get("user", "")), str(held.get("password", "")))


def _file(path: Path) -> dict[str, Any]:
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"the mail settings {path} cannot be read: {error}") from None
    if stray := sorted(set(held) - set(KEYS)):
        raise StudyError(f"{path.name}: {stray[0]} is not a setting; there are {', '.join(KEYS)}")
    return held


def checked(name: str, text: str) -> None:
    """StudyError for what is no address."""
    try:
        if not Address(addr_spec=text).domain:
            raise ValueError
    except Exception:  # the parser of addresses raises whatever it stumbles over
        raise StudyError(f"{name} = {text!r} is not allowed: it must be an address such as ann@example.org") from None


def letter(found: dict[str, Any], out: Path) -> EmailMessage:
    """The message of a report: its summary as text, and as HTML with the picture of the verdicts; verdicts.csv attached."""
    made = EmailMessage()
    made["Subject"] = f"claimlab: {summary.headline(found)}"
    made.set_content(summary.markdown(found))
    if found["verdicts"]:
        from claimlab.reports import picture

        name = f"<verdicts.{found['id']}@claimlab.invalid>"  # short: a folded header is lost on some mail programs
        made.add_alternative(html(found, f"cid:{name[1:-1]}"), subtype="html")
        made.get_payload()[1].add_related(picture.verdicts(found), "image", "png", cid=name, filename="verdicts.png",
                                          disposition="inline")  # fmt: skip
    else:
        made.add_alternative(html(found, ""), subtype="html")
    made.add_attachment((out / "verdicts.csv").read_text(encoding="utf-8"), subtype="csv", filename="verdicts.csv")
    return made


def html(found: dict[str, Any], image: str) -> str:
    """The summary as HTML that mail programs draw: no scripts, no styles but inline ones."""
    from jinja2 import Environment, PackageLoader

    made = Environment(loader=PackageLoader("claimlab", "templates/claimlab"), autoescape=True).get_template("mail.html.j2")
    lines = [(one, summary.claims(found, one["study"])) for one in found["studies"][: summary.STUDIES]]
    return made.render(found=found, headline=summary.headline(found), tally=documents.tally(found["counts"]), image=image,
                       lines=lines, changes=[documents.sentence(one) for one in found["changes"]], most=summary.MOST)  # fmt: skip


def send(server: Server, message: EmailMessage, to: Sequence[str]) -> None:
    """Send a message; OSError (of which smtplib's errors are) or ValueError says why it could not be."""
    del message["From"], message["To"], message["Date"], message["Message-ID"]
    message["From"], message["To"] = server.sender, ", ".join(to)
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=server.sender.rpartition("@")[2])
    context = ssl.create_default_context()
    if server.security == "tls":
        line = smtplib.SMTP_SSL(server.host, server.port, timeout=PATIENCE, context=context)
    else:
        line = smtplib.SMTP(server.host, server.port, timeout=PATIENCE)
    with line:
        if server.security == "starttls":
            line.starttls(context=context)
        if server.user and server.password:
            line.login(server.user, server.password)
        line.send_message(message)


def try_send(server: Server, message: EmailMessage, to: Sequence[str]) -> str:
    """Send a message; in words why it could not be sent, empty when it was."""
    try:
        send(server, message, to)
    except (OSError, ValueError) as error:
        return f"{server.host}:{server.port}: {type(error).__name__}: {error}"
    return ""
