"""Who may read and steer: token, origin, hosts, the shape of what is sent, and the password where others can reach the pages."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import streamlit as st
from panels import gate
from streamlit import config
from streamlit.testing.v1 import AppTest

from claimlab import access, cli, console
from claimlab.params import KnobError

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
PASSWORD = "correct horse"
OPTIONS = ("server.address", "server.allowedHosts")


@pytest.fixture
def run(book):
    return book.start_run("toy-blobs", {"steps": 40}, seeds=[0], status="running")


# ---- the token


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x", "Bearer \xe9"])
def test_every_route_refuses_who_has_not_the_token(client, run, given):
    import api

    headers = {} if given is None else {"authorization": given.format(token=access.token()).encode("latin-1")}
    for one in api.TABLE:
        path = one.path.format(run=run, number=1)
        answer = client.request(one.method, path, token=False, headers=headers, json={"verb": "stop"} if one.body else None)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert run not in answer.text and access.token() not in answer.text
    assert client.get("/api/nowhere", token=False, headers=headers).status_code == 401


def test_the_token_lies_in_a_file_of_its_own_that_nobody_else_reads_and_stays_the_same(home):
    first = access.token()
    assert access.token() == first and len(first) >= 40
    assert stat.S_IMODE(access.token_file().stat().st_mode) == 0o600
    access.token_file().chmod(0o644)
    access.token()
    assert stat.S_IMODE(access.token_file().stat().st_mode) == 0o600
    access.token_file().unlink()
    assert access.token() != first
    access.token_file().write_text("\n")
    with pytest.raises(KnobError, match="delete the file"):
        access.token()


# ---- where a request comes from


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9999"},
                                     {"origin": "http://127.0.0.1:8501.evil.example"}, {"sec-fetch-site": "cross-site"},
                                     {"sec-fetch-site": "same-site"}])  # fmt: skip
def test_a_page_of_another_site_cannot_steer_even_with_the_token(client, book, run, headers):
    answer = client.post(f"/api/runs/{run}/commands", json={"verb": "stop", "timeout": 0}, headers=headers)
    assert answer.status_code == 403 and book.commands(run) == []
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_our_own_page_can(client, run):
    ours = {"origin": "http://127.0.0.1:8501", "sec-fetch-site": "same-origin"}
    assert client.post(f"/api/runs/{run}/commands", json={"verb": "pause", "timeout": 0}, headers=ours).status_code == 202


@pytest.mark.parametrize("host", ["evil.example:8501", "127.0.0.1.evil.example", "user@evil.example", "", "[::1", "0.0.0.0:8501"])
def test_a_name_that_was_rebound_to_this_machine_is_refused(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:8501", "LOCALHOST", "[::1]:8501", "127.0.0.1"])
def test_the_names_of_this_machine_are_not(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


# ---- the body


def body_is_refused(client, book, run, status, content, kind="application/json"):
    answer = client.post(f"/api/runs/{run}/commands", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["content-type"] == "application/json"
    assert not answer.json()["ok"] and answer.json()["reason"] and book.commands(run) == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_what_a_form_can_send_without_asking_is_no_command(client, book, run, kind):
    body_is_refused(client, book, run, 415, json.dumps({"verb": "stop"}), kind)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_a_pickle_is_not_loaded_whatever_it_says_it_is(client, book, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body_is_refused(client, book, run, 400, pickle.dumps(Trap()))
    body_is_refused(client, book, run, 415, pickle.dumps(Trap()), "application/octet-stream")
    assert not (tmp_path / "sprung").exists()


def test_a_body_beyond_the_limit_is_413_also_when_it_hides_its_length(client, book, run):
    large = json.dumps({"verb": "set", "payload": {"name": "x" * 70_000}}).encode()
    body_is_refused(client, book, run, 413, large)

    async def parts():
        for at in range(0, len(large), 1000):
            yield large[at : at + 1000]

    body_is_refused(client, book, run, 413, parts())


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", "[" * 60_000, '{"verb": NaN}', '{"verb": "set", "seed": 1e999}', '{"verb": "\\ud800"}', b"\xff\xfe{}",
        "9" * 5000, '{"verb": "stop", "exec": "import os"}', '{"payload": {}}', '{"verb": 3}', '{"verb": "stop", "payload": []}',
        '{"verb": "stop", "timeout": 31}', '{"verb": "stop", "timeout": true}', '{"verb": "stop", "seed": -1}',
        '{"verb": "stop", "seed": 1.5}', '{"verb": "stop", "seed": 99999999999999999999}', '{"verb": "stop", "arm": {"$ne": 1}}',
        '{"verb": "stop", "by": "' + "x" * 61 + '"}',
    ],
)  # fmt: skip
def test_a_body_that_is_no_command_is_400(client, book, run, content):
    body_is_refused(client, book, run, 400, content)


@pytest.mark.parametrize(
    ("verb", "payload", "reason"),
    [
        ("fly", {}, "verbs:"), ("__class__", {}, "verbs:"), ("set", {"name": "lr", "value": -1}, "lr = -1"),
        ("set", {"name": "lr", "value": "nan"}, "lr = nan"), ("set", {"name": "lr", "value": 1e9}, "must be in"),
        ("set", {"name": "lr", "value": True}, "not allowed"), ("set", {"name": "gap", "value": 1}, "cannot be changed"),
        ("set", {"name": "rate", "value": "__import__('os')"}, "rate"), ("step", {"n": 10**400}, "not"),
        ("fork", {"change": {"verb": "stop"}}, "one change"), ("reset", {"layer": ["weight"]}, "layer"),
    ],
)  # fmt: skip
def test_a_command_that_is_not_allowed_never_reaches_the_run(client, book, run, verb, payload, reason):
    content = json.dumps({"verb": verb, "payload": payload})
    answer = client.post(f"/api/runs/{run}/commands", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and reason in answer.json()["reason"] and book.commands(run) == []


# ---- ids and names


NAMES = ["..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e/%2e%2e/etc/passwd", "x'; DROP TABLE run; --", "%00", "A" * 20, "é", "x" * 81]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rest", ["", "/metrics", "/stream", "/commands/1"])
def test_an_id_is_looked_up_and_never_a_path(client, book, run, home, name, rest):
    secret = home.parent / "etc"
    secret.mkdir()
    (secret / "passwd").write_text("root:x:0:0")
    answer = client.get(f"/api/runs/{name}{rest}")
    assert answer.status_code == 404 and "root:x" not in answer.text
    assert [r["id"] for r in book.runs()] == [run]


@pytest.mark.parametrize("checkpoint", ["../../api_token", "/etc/passwd", "../other/checkpoints/000000001"])
def test_a_checkpoint_is_one_of_the_run_and_never_a_path(client, going, checkpoint):
    answer = client.post(f"/api/runs/{going}/commands", json={"verb": "rollback", "payload": {"checkpoint": checkpoint}})
    assert answer.status_code == 409 and "no checkpoint" in answer.json()["reason"]


def test_script_in_a_name_comes_back_as_json_and_nothing_else(client, book):
    evil = "<script>alert(1)</script>"
    run = book.start_run("toy-blobs", {"note": evil}, status="running")
    book.log(run, [(evil, 0, 0, evil, 1.0)])
    book.event(run, evil, payload={"by": evil, "line": "a\n\nevent: end\ndata: x"})
    book.set_status(run, "failed", evil)
    for rest in ("", "/metrics", "/events", "/stream", "/commands"):
        answer = client.get(f"/api/runs/{run}{rest}")
        wanted = "text/event-stream" if rest == "/stream" else "application/json"
        assert answer.headers["content-type"].startswith(wanted) and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.status_code == 200 and answer.text.count("event: end") == (rest == "/stream") + (rest in ("/events", "/stream"))
    told = [json.loads(b.split("data: ", 1)[1]) for b in client.get(f"/api/runs/{run}/stream").text.strip().split("\n\n")]
    assert [t["payload"]["by"] for t in told if "payload" in t] == [evil]  # a line break in a value begins no event of its own


# ---- commands that meet another's


def test_a_finished_run_obeys_nobody(client, book, run):
    book.set_status(run, "finished")
    answer = client.post(f"/api/runs/{run}/commands", json={"verb": "pause"})
    assert answer.status_code == 409 and "is finished" in answer.json()["reason"] and book.commands(run) == []


def test_the_second_of_two_drivers_is_refused_until_the_first_lets_go(client, going):
    def post(by, verb, **payload):
        return client.post(f"/api/runs/{going}/commands", json={"verb": verb, "payload": payload, "by": by})

    assert post("ann", "drive", seconds=60).status_code == 200
    refused = post("bob", "set", name="lr", value=0.01)
    assert refused.status_code == 409 and "api ann drives" in refused.json()["reason"]
    assert post("ann", "set", name="lr", value=0.01).status_code == 200
    assert post("ann", "drive", seconds=0).status_code == 200 and post("bob", "set", name="lr", value=0.02).status_code == 200


# ---- beyond this machine


@pytest.mark.parametrize("where", [["--host", "0.0.0.0"], ["--host", "::"], ["--host", "10.0.0.7"], ["--host", "lab.example.org"],
                                   ["--name", "lab.example.org"], ["--host", ""]])  # fmt: skip
def test_without_a_password_nothing_starts_where_others_could_reach_it(home, capsys, monkeypatch, where):
    monkeypatch.delenv("CLAIMLAB_PASSWORD_HASH", raising=False)
    monkeypatch.setattr(console.subprocess, "Popen", lambda *_, **__: pytest.fail("a server was started"))
    assert cli.main(["dashboard", *where]) == 2
    assert "--set-password" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "localhost"])
def test_this_machine_alone_needs_none(home, host):
    access.require(host, home)


def test_a_password_is_asked_for_twice_and_only_its_salted_hash_is_kept_for_oneself(home, capsys, monkeypatch):
    said = iter([PASSWORD, PASSWORD])
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(said))
    assert cli.main(["dashboard", "--set-password"]) == 0
    text = access.password_file().read_text()
    assert PASSWORD not in text and PASSWORD not in capsys.readouterr().out
    assert stat.S_IMODE(access.password_file().stat().st_mode) == 0o600
    assert access.hashed(PASSWORD) != access.hashed(PASSWORD)  # the salt
    assert access.matches(PASSWORD, text.strip()) and not access.matches(PASSWORD + " ", text.strip())
    access.require("0.0.0.0", home)
    assert sorted(p.name for p in home.iterdir()) == ["password_hash"]


@pytest.mark.parametrize(("first", "second"), [("short", "short"), (PASSWORD, PASSWORD + "x")])
def test_a_short_password_or_two_that_differ_change_nothing(home, capsys, monkeypatch, first, second):
    said = iter([first, second])
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(said))
    assert cli.main(["dashboard", "--set-password"]) == 2 and not access.password_file().exists()


def test_scrypt_is_that_of_rfc_7914():
    wanted = "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"  # the first half of the 64 bytes of section 12
    assert access._scrypt("pleaseletmein", b"SodiumChloride", (16384, 8, 1)).hex() == wanted


@pytest.mark.parametrize("stored", ["", "plain", "md5$1$2$3$YQ==$YQ==", "scrypt$2$8$1$YQ==$YQ==", "scrypt$32768$8$1$!$!",
                                    "scrypt$99999999999$8$1$YQ==$YQ==", "scrypt$32769$8$1$YQ==$YQ=="])  # fmt: skip
def test_a_hash_of_another_kind_is_refused_and_lets_nobody_in(home, monkeypatch, stored):
    with pytest.raises(KnobError, match="set-password"):
        access.matches("anything", stored)
    monkeypatch.setenv("CLAIMLAB_PASSWORD_HASH", stored or "x")
    with pytest.raises(KnobError):
        access.require("0.0.0.0", home)


def test_a_server_for_every_interface_answers_to_names_of_this_machine_only():
    names = access.names_of("0.0.0.0")
    assert set(access.LOCAL) < set(names) and "*" not in names and "0.0.0.0" not in names
    assert access.names_of("10.0.0.7") == [*access.LOCAL, "10.0.0.7"] and access.names_of("127.0.0.1") == list(access.LOCAL)


@pytest.mark.parametrize(
    ("section", "wrong"), [("", ""), ("[claimlab]\nusers = []", "nobody who may enter"), ('[claimlab]\nusers = ["ann@x.org"]', "Authlib")]
)
def test_oidc_needs_guests_and_its_library(home, tmp_path, monkeypatch, section, wrong):
    monkeypatch.setattr(access.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(access.Path, "home", lambda: tmp_path / "nobody")
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(f'[auth]\nclient_id = "x"\n{section}\n' if section else "")
    if not wrong:
        assert access.oidc(tmp_path) == ()
        return
    with pytest.raises(KnobError, match=wrong):
        access.oidc(tmp_path)


def test_guests_are_addresses_or_whole_domains():
    users = ("ann@x.org", "@lab.edu")
    come = ("ANN@x.org", "bob@lab.edu", "bob@x.org", "bob@evil-lab.edu", "x@lab.edu.evil.example", "", "@lab.edu")
    assert [a for a in come if access.guest(a, users)] == ["ANN@x.org", "bob@lab.edu"]


# ---- the gate


@pytest.fixture
def reachable(home, own_studies, monkeypatch):
    """A server that listens at every interface, in the options that its pages see."""
    st.cache_data.clear()
    st.cache_resource.clear()
    monkeypatch.delenv("CLAIMLAB_PASSWORD_HASH", raising=False)
    monkeypatch.setattr(gate.access, "oidc", lambda root: ())
    before = {name: config.get_option(name) for name in OPTIONS}
    config.set_option("server.address", "0.0.0.0")
    yield
    for name, value in before.items():
        config.set_option(name, value)


def shown(at):
    return at.title.len + at.header.len + at.subheader.len + at.markdown.len + at.caption.len + at.button.len


def asked(password=PASSWORD):
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.text_input(key="gate-password").input(password)
    at.button[0].click()
    return at.run()


def test_the_pages_show_nothing_but_the_question_before_the_password(reachable):
    access.set_password(PASSWORD)
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    assert [t.value for t in at.title] == ["claimlab"] and len(at.text_input) == 1 and shown(at) == 2
    at = AppTest.from_file(str(APP), default_timeout=60)
    at.query_params["study"] = "toy-blobs"
    assert shown(at.run()) == 2 and "toy-blobs" not in str(at.main)


def test_the_password_opens_the_pages_for_this_session_until_it_is_changed(reachable):
    access.set_password(PASSWORD)
    at = asked()
    assert not at.exception and at.subheader.len > 0 and at.text_input[0].label != "Password"
    assert shown(AppTest.from_file(str(APP), default_timeout=60).run()) == 2  # another session
    access.set_password(PASSWORD + "2")
    assert [t.label for t in at.run().text_input] == ["Password"]


def test_a_wrong_password_opens_nothing_and_makes_the_session_wait_longer_each_time(reachable, monkeypatch):
    access.set_password(PASSWORD)
    naps = []
    monkeypatch.setattr(gate, "sleep", naps.append)
    at = asked("wrong")
    for _ in range(8):
        at.text_input(key="gate-password").input("wrong again")
        at = at.button[0].click().run()
        assert [e.value for e in at.error] == ["That is not the password."] and at.subheader.len == 0
    assert naps == sorted(naps) and naps[0] < 1 and naps[-1] == gate.SLOWEST and naps[0] < naps[1] < naps[2]
    at.text_input(key="gate-password").input(PASSWORD)
    assert at.button[0].click().run().subheader.len > 0


@pytest.mark.parametrize("stored", ["", "no hash at all"])
def test_where_no_password_can_be_right_nobody_comes_in(reachable, monkeypatch, stored):
    monkeypatch.setenv("CLAIMLAB_PASSWORD_HASH", stored)
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    assert len(at.error) == 1 and "set-password" in at.error[0].value and not at.text_input and not at.subheader


@pytest.mark.parametrize(("address", "names", "open_to_others"), [
    ("127.0.0.1", [], False), ("localhost", ["localhost", "::1"], False), ("127.0.0.1", ["lab.example.org"], True), (None, [], True),
    ("0.0.0.0", [], True), ("::", [], True), ("192.0.2.7", [], True)])  # fmt: skip
def test_the_gate_stands_wherever_others_could_come(reachable, address, names, open_to_others):
    config.set_option("server.address", address)
    config.set_option("server.allowedHosts", names)
    assert gate.exposed() is open_to_others


@pytest.mark.parametrize(("user", "let_in"), [
    ({"is_logged_in": True, "email": "ann@lab.edu", "email_verified": True}, True), ({"is_logged_in": True, "email": "ann@lab.edu"}, True),
    ({"is_logged_in": True, "email": "ann@lab.edu", "email_verified": False}, False), ({"is_logged_in": True}, False),
    ({"is_logged_in": True, "email": "ann@else.where"}, False), ({"is_logged_in": False}, False)])  # fmt: skip
def test_an_oidc_login_lets_in_the_guests_alone(reachable, monkeypatch, user, let_in):
    monkeypatch.setattr(gate.access, "oidc", lambda root: ("@lab.edu",))
    at = AppTest.from_file(str(APP), default_timeout=60)
    at.user = user
    at.run()
    assert not at.exception and (at.subheader.len > 0) is let_in
    if not let_in:
        assert [b.label for b in at.button] == ["Log out" if user["is_logged_in"] else "Log in"] and shown(at) == 2
