"""Reports by e-mail: a real SMTP server on this machine receives the message, and the standard library's parser reads it."""

import email
import email.policy
import io
import json
import socket

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from PIL import Image

from claimlab import cli
from claimlab.reports import mail
from claimlab.study import StudyError


class Box:
    """Keeps what a server receives."""

    def __init__(self):
        self.letters, self.to = [], []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
        if b"refused@example.org" in envelope.original_content:
            return "554 not here"
        self.letters.append(email.message_from_bytes(envelope.original_content, policy=email.policy.default))
        self.to.append(envelope.rcpt_tos)
        return "250 OK"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def post(monkeypatch):
    """A server on a free port of this machine that is set up by variables; the box of what it received."""
    box = Box()
    port = free_port()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    for name, value in {"HOST": "127.0.0.1", "PORT": str(port), "FROM": "lab@example.org", "SECURITY": "none"}.items():
        monkeypatch.setenv(f"CLAIMLAB_SMTP_{name}", value)
    yield box
    server.stop()


def test_the_command_sends_what_it_wrote(study, in_process, post, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["report", "light", "-o", str(out), "--email", "ann@example.org", "--email", "bob@example.org"]) == 0
    (letter,), (to,) = post.letters, post.to
    assert to == ["ann@example.org", "bob@example.org"] and letter["To"] == "ann@example.org, bob@example.org"
    assert letter["From"] == "lab@example.org" and "3 supported" in letter["Subject"] and letter["Date"] and letter["Message-ID"]
    text = letter.get_body(("plain",)).get_content()
    assert text.replace("\r\n", "\n").strip() == (out / "summary.md").read_text(encoding="utf-8").strip()
    parts = {part.get_content_type(): part for part in letter.walk()}
    html, picture = parts["text/html"].get_content(), parts["image/png"]
    assert f'src="cid:{picture["Content-ID"].strip("<>")}"' in html and picture.get_content_disposition() == "inline"
    assert "<strong>light</strong>" in html and "<script" not in html
    drawn = Image.open(io.BytesIO(picture.get_content()))
    drawn.verify()
    assert drawn.format == "PNG" and drawn.size[0] > 400
    (table,) = letter.iter_attachments()
    assert table.get_filename() == "verdicts.csv" and "light,adds,paired,supported" in table.get_content()


def test_a_report_that_cannot_be_sent_is_written_all_the_same_and_says_so(study, in_process, post, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLAIMLAB_SMTP_PORT", "9")  # the port "discard": nobody listens there
    assert cli.main(["report", "light", "-o", str(tmp_path / "out"), "--email", "ann@example.org"]) == 1
    said = capsys.readouterr().err
    assert "written, but not sent: 127.0.0.1:9" in said and (tmp_path / "out" / "index.html").exists() and not post.letters


def test_a_refusal_of_the_server_is_told_in_its_words(study, in_process, post, tmp_path, capsys):
    assert cli.main(["report", "light", "-o", str(tmp_path / "out"), "--email", "refused@example.org"]) == 1
    assert "554" in capsys.readouterr().err


def test_a_server_that_asks_for_a_password_is_given_it(monkeypatch, tmp_path):
    seen = []

    def check(server, session, envelope, mechanism, data):
        seen.append((data.login, data.password))
        return AuthResult(success=data.password == b"open sesame", handled=False)

    box = Box()
    port = free_port()
    server = Controller(box, hostname="127.0.0.1", port=port, authenticator=check, auth_require_tls=False, auth_required=True)
    server.start()
    try:
        file = tmp_path / "smtp.toml"
        settings = {"host": "127.0.0.1", "user": "lab", "password": "open sesame", "from": "lab@example.org", "security": "none"}
        file.write_text("".join(f'{k} = "{v}"\n' for k, v in settings.items()) + f"port = {port}\n")
        monkeypatch.setenv("CLAIMLAB_SMTP", str(file))
        message = email.message.EmailMessage()
        message.set_content("Good day")
        assert mail.try_send(mail.settings(["ann@example.org"]), message, ["ann@example.org"]) == ""
        monkeypatch.setenv("CLAIMLAB_SMTP_PASSWORD", "wrong")  # a variable comes before the file
        assert "535" in mail.try_send(mail.settings([]), message, ["ann@example.org"])
    finally:
        server.stop()
    # what is refused is offered again by each mechanism that the server knows
    assert seen[0] == (b"lab", b"open sesame") and set(seen[1:]) == {(b"lab", b"wrong")} and len(box.letters) == 1


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ({"HOST": ""}, "a@b.org", "there is no mail server: set CLAIMLAB_SMTP_HOST"),
        ({"PORT": "70000"}, "a@b.org", r"port = 70000 is not allowed: it must be in \[1, 65535\]"),
        ({"SECURITY": "ssl"}, "a@b.org", "security = 'ssl' is not allowed: one of starttls, tls, none"),
        ({"FROM": "lab"}, "a@b.org", "from = 'lab' is not allowed"),
        ({"HOST": "mail.example.org", "USER": "lab", "PASSWORD": "x"}, "a@b.org", "security = 'none' is not allowed: .* in clear"),
        ({}, "nobody", "email = 'nobody' is not allowed: it must be an address"),
        ({}, "a@b.org\nBcc: c@d.org", "email = .* is not allowed"),
    ],
)
def test_settings_are_checked_before_anything_starts(post, home, study, in_process, monkeypatch, change, to, message, capsys, tmp_path):
    for name, value in change.items():
        monkeypatch.setenv(f"CLAIMLAB_SMTP_{name}", value)
    with pytest.raises(StudyError, match=message):
        mail.settings([to])
    assert cli.main(["report", "light", "-o", str(tmp_path / "out"), "--email", to]) == 2
    assert not in_process and not (tmp_path / "out").exists()


def test_an_unknown_setting_in_the_file_is_named(home, monkeypatch):
    home.mkdir()
    (home / "smtp.toml").write_text('host = "mail.example.org"\npasword = "x"\n')
    with pytest.raises(StudyError, match="pasword is not a setting; there are host, port, user, password, from, security"):
        mail.settings([])


def test_the_json_of_the_command_is_the_document(study, in_process, tmp_path, capsys):
    assert cli.main(["report", "light", "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
