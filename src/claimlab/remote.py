"""The commands about runs that are there already: list and show them, steer one that goes on, resume or replay one."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from claimlab import study as studies
from claimlab import verbs
from claimlab.params import KnobError, pairs

ARGUMENTS = {"step": ("n",), "rollback": ("step",), "drive": ("seconds", "to")} | dict.fromkeys(("reset", "freeze", "unfreeze"), ("layer",))
ICONS = {"supported": "✔", "refuted": "✘", "undecided": "?"}


def add_steer(one: argparse.ArgumentParser) -> None:
    """The arguments of `claimlab steer`."""
    one.add_argument("run")
    one.add_argument("verb", help="set, reset, freeze, unfreeze, pause, resume, step, checkpoint, rollback, fork, evaluate, drive, stop")
    words = "set NAME=VALUE ...; freeze LAYER; step N; rollback STEP; fork [set NAME=VALUE]; drive SECONDS"
    one.add_argument("what", nargs="*", help=words)
    one.add_argument("--arm", help="one arm only")
    one.add_argument("--seed", type=int, help="one member only, where members do not share an optimiser")
    one.add_argument("--by", default="command line", help="who is driving")
    one.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the answer")


def add_look(one: argparse.ArgumentParser) -> None:
    """The arguments of `claimlab look`."""
    one.add_argument("run")
    one.add_argument("view", nargs="?", help="the name of a view; without one, requests are read from standard input, a line each")
    one.add_argument("--arm", help="the arm whose network is shown")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--checkpoint", default="", help="an earlier moment (default: the last checkpoint)")
    one.add_argument("-o", "--output", default="view.html", help="an HTML page, or plotly's JSON for a name in .json")


def payloads(verb: str, what: list[str]) -> list[dict[str, Any]]:
    """The payload of each command that the words after a verb stand for; KnobError where they do not fit it."""
    if verb == "set":
        return [{"name": name, "value": value} for name, value in pairs(what).items()] or [{}]
    if verb == "fork" and what:
        (inner,) = payloads(what[0], what[1:]) or [{}]
        return [{"change": {"verb": what[0], **inner}}]
    names = ARGUMENTS.get(verb, ())
    if len(what) > len(names):
        raise KnobError(f"{verb} takes {' and '.join(names) or 'nothing'}, not {' '.join(what)}")
    return [dict(zip(names, what, strict=False))]


def send(book: Any, run: str, verb: str, payload: dict[str, Any], *, arm: str | None = None, seed: int | None = None,
         by: str = "", timeout: float = 10.0) -> dict[str, Any]:  # fmt: skip
    """Check a command, queue it and wait for its answer {id, ok, step, old, new, reason, text}.

    KnobError where the run has ended or the command is not allowed; a refusal by the run is an answer that is not ok.
    """
    from claimlab.ledger import ENDED

    row = book.run(run)
    if row["status"] in ENDED:
        raise KnobError(f"the run {run} is {row['status']}; only a run that goes on can be steered")
    checked = verbs.validate(studies.find(row["study"]), verb, payload)
    number = book.command(run, verb, checked, arm=arm, seed=seed, by=by)
    return _answer(book, run, number, timeout)


def _answer(book: Any, run: str, number: int, timeout: float) -> dict[str, Any]:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        command = next(c for c in book.commands(run) if c["id"] == number)
        if command["answered"] is not None:
            found = {k: command[k] for k in ("ok", "step", "old", "new", "reason")}
            done = f"applied at step {found['step']}" + ("" if found["new"] is None else f": {found['old']} -> {found['new']}")
            return {**found, "id": number, "ok": bool(found["ok"]), "text": done if found["ok"] else f"refused: {found['reason']}"}
        time.sleep(0.05)
    reason = f"no answer within {timeout:g} s; the command stays queued"
    return {"id": number, "ok": False, "step": None, "old": None, "new": None, "reason": reason, "text": reason}


# ---- the commands


def steer(options) -> int:
    from claimlab.cli import tell
    from claimlab.ledger import Ledger

    book = Ledger()
    book.reap()
    answers = [
        send(book, options.run, options.verb, payload, arm=options.arm, seed=options.seed, by=options.by, timeout=options.timeout)
        for payload in payloads(options.verb, options.what)
    ]
    for answer in answers:
        tell(answer, indent=None) if options.json else print(answer["text"])
    return 0 if all(a["ok"] for a in answers) else 2


def resume(options) -> int:
    from claimlab import live
    from claimlab.ledger import Ledger

    book = Ledger()
    book.reap()
    try:
        live.resume(book, options.run)
    except live.Stopped as stopped:
        book.finish(options.run)
        book.set_status(options.run, "stopped", str(stopped))
    except (KnobError, studies.StudyError):
        raise
    except Exception as error:
        book.finish(options.run)
        book.set_status(options.run, "failed", f"{type(error).__name__}: {error}")
        raise
    print(_described({**book.run(options.run), "verdicts": book.verdicts(options.run), "artifacts": book.artifacts(options.run)}))
    return 0


def replay(options) -> int:
    from claimlab.ledger import Ledger
    from claimlab.replay import replay as again

    new, verdicts = again(Ledger(), options.run, options.seeds and seeds_of(options.seeds))
    print(f"{new}: finished")
    for verdict in verdicts:
        print(f"{ICONS[verdict.verdict]} {verdict.claim}: {verdict.sentence}")
    return 0


def look(options) -> int:
    import sys

    from claimlab.ledger import Ledger
    from claimlab.views import Looking, draw, networks, serve

    looking = Looking(Ledger(), options.run)
    if options.view is None:
        for answer in serve(looking, sys.stdin):
            print(answer, flush=True)
        return 0
    looking.go(options.checkpoint)
    figure = draw(looking.lab, options.view, options.arm or networks(looking.lab)[0], options.seed)
    if options.output.endswith(".json"):
        figure.write_json(options.output)
    else:
        figure.write_html(options.output, include_plotlyjs=True)
    print(f"{options.output}: {options.view} at checkpoint {looking.at}")
    return 0


def seeds_of(text: str) -> list[int]:
    """Seeds written as 5..9 or 3,4,8; KnobError otherwise."""
    first, dots, last = text.partition("..")
    try:
        found = list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise KnobError(f"seeds = {text} is not allowed: write 5..9 or 3,4,8")
    return found


def runs(options) -> int:
    from claimlab.cli import tell
    from claimlab.ledger import Ledger

    if options.what and (options.what[0] != "show" or len(options.what) != 2):
        raise KnobError(f"claimlab runs {' '.join(options.what)} is not known; use `claimlab runs` or `claimlab runs show ID`")
    book = Ledger()
    book.reap()
    if options.what:
        one = book.run(options.what[1])
        facts = {**one, **{kind: getattr(book, kind)(one["id"]) for kind in ("verdicts", "artifacts", "events")}}
        tell(facts) if options.json else print(_described(facts))
        return 0
    found = book.runs(study=options.study)
    if options.json:
        tell(found)
    elif not found:
        print("No run yet. Start one with `claimlab run STUDY`.")
    for one in [] if options.json else found:
        print(f"{one['id']:52} {one['status']:9} {one['profile']:8} {one['done'] or 0}/{one['total'] or '?'} {one['reason']}")
    return 0


def _described(facts: dict[str, Any]) -> str:
    lines = [f"{facts['id']}: {facts['status']} {facts['reason']}".rstrip(), f"knobs: {json.dumps(facts['params'])}"]
    lines += [f"{ICONS[v['verdict']]} {v['claim']}: {v['sentence']}" for v in facts["verdicts"]]
    return "\n".join(lines + [f"{a['kind']}: {a['path']}" for a in facts["artifacts"]])
