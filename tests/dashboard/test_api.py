"""The HTTP API in this process: what it lists, how one reads on from a cursor, and what becomes of a command."""

import json
import math

import jsonschema
import pytest

from claimlab import schema
from claimlab.ledger import Ledger


def run_of(book, status="running", study="toy-blobs", points=()):
    run = book.start_run(study, {"steps": 40}, seeds=[0], total_steps=40)
    book.log(run, points)
    book.flush()
    book.set_status(run, status)
    return run


def messages(text):
    """Server-sent events as (id, event, data)."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


def test_the_description_is_of_exactly_the_routes_that_answer_and_its_schemas_are_schemas(client):
    told = client.get("/api/openapi.json").json()
    listed = {(one["method"].lower(), one["path"]) for one in client.get("/api").json()["routes"]}
    assert {(method, path) for path, methods in told["paths"].items() for method in methods} == listed
    for method, path in listed:
        answer = client.request(method, path.format(run="none", number=1), json={"verb": "pause"} if method == "post" else None)
        assert "no such route" not in answer.text and answer.status_code != 405, path
    for one in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(one)
    for methods in told["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                jsonschema.Draft202012Validator.check_schema(parameter["schema"])
    assert told["openapi"].startswith("3.1") and told["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_what_is_no_route_and_what_is_no_method_of_one_say_so_in_json(client):
    assert client.get("/api/nowhere").status_code == 404 and "/api" in client.get("/api/nowhere").json()["reason"]
    assert client.request("DELETE", "/api/runs", headers={"Content-Type": "application/json"}).status_code == 405


def test_runs_are_listed_by_study_status_and_number(client, book):
    first, second = run_of(book, "finished"), run_of(book, "running", study="other")
    ids = lambda **query: [r["id"] for r in client.get("/api/runs", params=query).json()["runs"]]  # noqa: E731
    assert ids() == [second, first] and ids(study="toy-blobs") == [first] and ids(status="running") == [second] and ids(limit=1) == [second]
    assert client.get(f"/api/runs/{first}").json()["params"] == {"steps": 40}


@pytest.mark.parametrize(
    ("query", "names"), [({"limit": 0}, "limit"), ({"limit": "ten"}, "limit"), ({"limit": 10**9}, "limit"), ({"status": "happy"}, "status"),
                         ({"study": "x" * 81}, "study"), ({"limit": "1 OR 1"}, "limit"), ({"limit": "１"}, "limit")],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(client, query, names):
    answer = client.get("/api/runs", params=query)
    assert answer.status_code == 400 and answer.json()["reason"].startswith(names)


def test_points_are_read_on_from_a_cursor_a_page_at_a_time_and_none_is_lost_or_told_twice(client, book):
    rows = [("fast", seed, step, "loss", math.nan if step == 3 else step / 7) for step in range(30) for seed in (0, 1)]
    run = run_of(book, points=rows)
    cursor, found, more = 0, [], True
    while more:
        page = client.get(f"/api/runs/{run}/metrics", params={"cursor": cursor, "limit": 7}).json()
        assert len(page["points"]) <= 7 and page["columns"][1:] == ["arm", "seed", "step", "metric", "value"]
        found, cursor, more = found + page["points"], page["cursor"], page["more"]
    assert [tuple(p[1:]) for p in found] == [(*r[:-1], None if math.isnan(r[-1]) else r[-1]) for r in rows]
    assert client.get(f"/api/runs/{run}/metrics", params={"cursor": cursor}).json() == {
        "columns": page["columns"], "points": [], "cursor": cursor, "more": False, "status": "running",
    }  # fmt: skip
    book.log(run, [("fast", 0, 30, "loss", 1.0)])
    book.flush()
    assert [p[3] for p in client.get(f"/api/runs/{run}/metrics", params={"cursor": cursor}).json()["points"]] == [30]


def test_events_and_verdicts_are_those_of_the_ledger(client, book):
    run = run_of(book)
    for step in range(5):
        book.event(run, "checkpoint", step=step, payload={"norm": math.inf})
    page = client.get(f"/api/runs/{run}/events", params={"limit": 3}).json()
    rest = client.get(f"/api/runs/{run}/events", params={"after": page["after"]}).json()
    assert [e["step"] for e in page["events"] + rest["events"]] == [0, 1, 2, 3, 4] and page["more"] and not rest["more"]
    assert page["events"][0]["payload"] == {"norm": None}  # JSON has no infinity
    book.record_verdicts(run, [{"claim": "fast-wins", "verdict": "undecided", "effect": None}])
    assert client.get(f"/api/runs/{run}/verdicts").json()["verdicts"] == book.verdicts(run)


def test_a_command_is_applied_and_answered_with_step_old_and_new_or_refused_and_the_run_goes_on(client, book, going):
    def post(**body):
        return client.post(f"/api/runs/{going}/commands", json=body)

    done = post(verb="set", arm="fast", payload={"name": "lr", "value": 0.01}, by="ann")
    assert done.status_code == 200, done.text
    answer = done.json()
    jsonschema.validate(answer, client.get("/api/openapi.json").json()["components"]["schemas"]["Answer"])
    (event,) = [e for e in book.events(going) if e["kind"] == "set"]
    assert (answer["old"], answer["new"]) == (0.05, 0.01) and event["payload"]["new"] == 0.01 and event["payload"]["by"] == "api ann"
    kept = client.get(f"/api/runs/{going}/commands/{answer['id']}").json()
    assert (kept["verb"], kept["ok"], kept["step"]) == ("set", True, answer["step"])

    refused = post(verb="freeze", payload={"layer": "head"})
    assert refused.status_code == 409 and "no layer 'head'" in refused.json()["reason"]
    assert post(verb="rollback", payload={"step": 0}).status_code == 409
    listed = client.get(f"/api/runs/{going}/commands").json()["commands"]
    assert [(c["verb"], bool(c["ok"])) for c in listed] == [("set", True), ("freeze", False), ("rollback", False)]
    before = book.run(going)["done"]
    assert post(verb="pause").status_code == 200 and book.run(going)["status"] == "paused"
    assert post(verb="resume").status_code == 200 and book.run(going)["done"] >= before


def test_a_command_without_an_answer_yet_is_202_and_can_be_read_later(client, book):
    run = run_of(book)
    sent = client.post(f"/api/runs/{run}/commands", json={"verb": "pause", "timeout": 0})
    assert sent.status_code == 202 and "stays queued" in sent.json()["reason"]
    where = f"/api/runs/{run}/commands/{sent.json()['id']}"
    assert client.get(where).json()["ok"] is None
    book.answer(sent.json()["id"], True, step=12)
    assert client.get(where).json()["ok"] is True and client.get(where).json()["step"] == 12
    assert client.get(f"/api/runs/{run}/commands/99").status_code == 404


def test_the_stream_of_an_ended_run_tells_all_of_it_in_order_and_ends(client, book):
    rows = [("fast", 0, step, "loss", 1.0) for step in range(2500)]
    run = run_of(book, points=rows)
    book.event(run, "checkpoint", step=7)
    book.set_status(run, "finished")
    answer = client.get(f"/api/runs/{run}/stream")
    told = messages(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [p[3] for _, kind, data in told if kind == "points" for p in data["points"]] == list(range(2500))
    assert [d["step"] for _, kind, d in told if kind == "event"] == [7]
    assert told[-1][1] == "end" and told[-1][2]["status"] == "finished"
    where = next(name for name, kind, _ in told if kind == "points")
    cursor, _, after = where.partition(".")
    again = messages(client.get(f"/api/runs/{run}/stream", params={"cursor": cursor, "after": after}).text)
    assert [p[3] for _, kind, data in again if kind == "points" for p in data["points"]] == list(range(1000, 2500))


def test_a_ledger_that_cannot_be_used_is_503_with_the_reason_and_comes_back(client, book, home):
    run = run_of(book)
    with book._writing() as connection:
        connection.execute(schema.version.update().values(version=999))
    import api

    api._book.cache_clear()
    answer = client.get("/api/runs")
    assert answer.status_code == 503 and "schema 999" in answer.json()["reason"]
    with book._writing() as connection:
        connection.execute(schema.version.update().values(version=schema.VERSION))
    assert [r["id"] for r in client.get("/api/runs").json()["runs"]] == [run]


def test_a_run_that_has_died_is_told_as_lost(client, book):
    run = run_of(book)
    with book._writing() as connection:
        connection.execute(schema.run.update().values(heartbeat=0.0))
    assert client.get(f"/api/runs/{run}").json()["status"] == "lost"
    assert Ledger().run(run)["status"] == "lost"
