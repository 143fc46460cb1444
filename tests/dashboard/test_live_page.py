"""The page Live in Streamlit's own test harness: cards, the wheel, sliders, layers, lineage, rescue; the ledger is filled by hand."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from claimlab import cli, params, remote, verbs
from claimlab.ledger import Ledger
from claimlab.study import find

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
SLUG = "toy-blobs"
SETTINGS = dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5)
TUNED = {"layers": {"weight": 4, "bias": 2}, "frozen": [], "settings": {"lr": 0.01, "weight_decay": 0.0, "rate": 0.05}}


@pytest.fixture
def book(home, own_studies):
    """The ledger of a home of its own; nothing cached from the test before."""
    st.cache_data.clear()
    st.cache_resource.clear()
    opened = Ledger()
    yield opened
    opened.close()


def page(**query) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.query_params.update(query)
    return sound(at.switch_page("app_pages/live.py").run())


def sound(at: AppTest) -> AppTest:
    assert [e.value for e in at.exception] == []
    return at


def words(at: AppTest) -> str:
    kinds = (at.title, at.header, at.markdown, at.caption, at.error, at.warning, at.info)
    return "\n".join(str(e.value) for kind in kinds for e in kind).replace("\\", "")


def opened(at: AppTest, tab: str, key: str = "live-tab") -> AppTest:
    at.session_state[key] = tab
    return sound(at.run())


def points(gap=0.3, steps=(0, 10, 20, 30), seeds=range(5)):
    return [(arm, seed, step, "accuracy", 0.4 + step / 100 + 0.01 * seed * (1 + up) + up * gap)
            for arm, up in (("slow", 0), ("fast", 1)) for seed in seeds for step in steps]  # fmt: skip


def running(book, rows=None, **facts):
    run = book.start_run(SLUG, SETTINGS, seeds=range(5), **facts)
    book.set_status(run, "running")
    book.heartbeat(run, 40, 160)
    for arm in ("slow", "fast"):
        book.event(run, "layers", step=0, arm=arm, payload=TUNED)
    book.log(run, points() if rows is None else rows)
    book.flush()
    return run


# ---- what goes on


def test_where_nothing_runs_the_page_says_what_to_do(book):
    at = page()
    assert at.title[0].value == "Nothing is running"
    assert "set its knobs and press Run" in words(at) and "no run has ended yet" in words(at)


def test_every_run_has_a_card_with_its_share_and_its_place_in_the_queue(book):
    first = running(book)
    waiting = [book.start_run(SLUG, SETTINGS, seeds=range(5)) for _ in range(2)]
    done = book.start_run(SLUG, SETTINGS)
    book.set_status(done, "failed", "no")
    at = page(run=first)
    shown = words(at)
    assert at.title[0].value == "One run goes on, 2 in the queue"
    assert "Next in line" in shown and "Number 2 in line, 1 before it" in shown and "1 failed" in shown
    assert [p.value for p in at.progress].count(25) == 2 and "nobody drives" in shown
    assert len(waiting) == 2 and "fast is 0.32 above slow in accuracy at step 30 (n = 5)" in shown


def test_without_a_run_in_the_address_the_newest_running_one_is_shown_and_named_there(book):
    running(book)
    newest = running(book)
    book.start_run(SLUG, SETTINGS)
    at = page()
    assert at.query_params["run"] in (newest, [newest]) and newest in words(at)


def test_an_unknown_run_names_the_nearest(book):
    run = running(book)
    assert f"did you mean {run}" in words(page(run=run[:-1]))


def test_a_rate_is_steps_over_the_last_seconds():
    from panels import running as cards

    seen = []
    assert cards.pace(seen, 0.0, 0) == 0.0
    assert cards.pace(seen, 2.0, 100) == pytest.approx(50.0)
    for second in range(3, 40):
        rate = cards.pace(seen, float(second), 100 + 200 * (second - 2))
    assert rate == pytest.approx(200.0) and len(seen) < 15
    assert cards.pace(seen, 41.0, 10) == 0.0  # set back: nothing to tell it by yet


# ---- the wheel


def test_who_watches_cannot_steer_but_can_ask_and_the_driver_hands_over(book):
    from panels import lease

    run = running(book)
    book.event(run, "drive", payload={"holder": "ann", "until": time.time() + 300})
    at = page(run=run)
    assert "ann drives" in words(at) and "you watch" in words(at)
    for key in ("pause", "step", "step-1", "evaluate", "checkpoint", "rollback", "stop", "apply", "fork"):
        assert at.button(key=key).disabled, key
    sound(at.button(key="ask").click().run())
    (asked,) = [e["payload"]["by"] for e in book.events(run) if e["kind"] == "ask"]
    assert asked.startswith("dashboard ") and at.button(key="ask").disabled
    events = book.events(run)
    assert lease.askers(events) == [asked]
    book.event(run, "drive", payload={"holder": asked, "until": time.time() + 300})
    sound(at.run())
    assert "You drive" in words(at) and not at.button(key="pause").disabled
    book.event(run, "ask", payload={"by": "[bob](x)"})
    sound(at.run())
    assert "[bob](x) asks for the wheel" in words(at)
    sound(at.button(key="hand-[bob](x)").click().run())
    command = book.commands(run)[-1]
    assert (command["verb"], command["payload"]["to"], command["by"]) == ("drive", "[bob](x)", asked)


def test_a_lease_that_is_over_binds_nobody(book):
    run = running(book)
    book.event(run, "drive", payload={"holder": "ann", "until": time.time() - 1})
    at = page(run=run)
    assert "Nobody drives" in words(at) and not at.button(key="pause").disabled
    sound(at.button(key="drive").click().run())
    assert book.commands(run)[-1]["payload"] == {"seconds": 600.0}


def test_a_browser_keeps_its_name_while_its_cookie_is_masked_anew():
    from panels import lease

    token, names = bytes(range(16)), set()
    for mask in (b"\x01\x02\x03\x04", b"\xaa\xbb\xcc\xdd"):
        masked = bytes(c ^ mask[i % 4] for i, c in enumerate(token))
        names.add(lease._token(f"2|{mask.hex()}|{masked.hex()}|1700000000"))
    assert names == {token}
    assert lease._token("nonsense") == lease._token("2|zz|zz|1") == lease._token("") == b""


# ---- settings and layers


def test_a_slider_starts_at_the_present_value_and_what_is_turned_is_sent_when_applied(book):
    run = running(book)
    at = page(run=run)
    slider = at.select_slider(key=f"{run}-None-None-lr-0.01")
    assert slider.value == 0.01
    assert at.button(key="apply").disabled
    slider.set_value(0.001)
    sound(at.run())
    assert "lr 0.01 → 0.001" in words(at)
    assert f"claimlab steer {run} set lr=0.001" in [c.value for c in at.code]
    sound(at.button(key="apply").click().run())
    (command,) = book.commands(run)
    assert (command["verb"], command["payload"], command["arm"]) == ("set", {"name": "lr", "value": 0.001}, None)
    for arm in ("slow", "fast"):
        book.event(run, "set", step=30, arm=arm, payload={"name": "lr", "value": 0.001, "old": 0.01, "new": 0.001, "checkpoint": "c"})
    book.answer(command["id"], True, step=30, old=0.01, new=0.001)
    sound(at.run())
    assert at.select_slider(key=f"{run}-None-None-lr-0.001").value == 0.001 and at.button(key="apply").disabled
    assert "took effect at step 30: 0.01 → 0.001" in words(at)


def test_a_fork_takes_one_change_of_the_chosen_arm(book):
    run = running(book)
    at = page(run=run)
    at.selectbox(key=f"{run}-arm").select("fast").run()
    at.slider(key=f"{run}-fast-None-rate-0.05").set_value(0.2).run()
    sound(at.button(key="fork").click().run())
    (command,) = book.commands(run)
    assert (command["verb"], command["arm"]) == ("fork", "fast")
    assert command["payload"] == {"change": {"verb": "set", "name": "rate", "value": 0.2}}
    at.select_slider(key=f"{run}-fast-None-lr-0.01").set_value(0.1)
    sound(at.run())
    assert at.button(key="fork").disabled and not at.button(key="apply").disabled


def test_layers_are_listed_with_their_size_and_held_freed_or_drawn_anew(book):
    run = running(book)
    at = opened(page(run=run), "Layers")
    assert "weight" in words(at) and "4 parameters, learns" in words(at)
    sound(at.button(key="freeze-weight").click().run())
    sound(at.button(key="reset-bias").click().run())
    assert [(c["verb"], c["payload"]) for c in book.commands(run)] == [("freeze", {"layer": "weight"}), ("reset", {"layer": "bias"})]
    for arm in ("slow", "fast"):
        book.event(run, "freeze", step=30, arm=arm, payload={"layer": "weight", "checkpoint": "c"})
    sound(at.run())
    assert "4 parameters, held" in words(at) and at.button(key="unfreeze-weight")


def test_the_condition_follows_changes_and_goes_back_with_a_rollback(book):
    from panels import condition

    run = running(book)
    book.event(run, "checkpoint", payload={"name": "a", "arms": {"fast": 5}, "why": ""})
    book.event(run, "set", step=5, arm="fast", payload={"name": "lr", "value": 0.5, "old": 0.01, "new": 0.5, "checkpoint": "a"})
    book.event(run, "checkpoint", payload={"name": "b", "arms": {"fast": 9}, "why": ""})
    book.event(run, "freeze", step=9, arm="fast", payload={"layer": "bias", "checkpoint": "b"})
    here = condition.now(book.events(run))
    assert here.arms["fast"].settings["lr"] == 0.5 and here.arms["fast"].frozen == {"bias"} and here.undoable == "b"
    book.event(run, "rollback", payload={"checkpoint": "b", "to": {}, "cursor": 0})
    here = condition.now(book.events(run))
    assert here.arms["fast"].settings["lr"] == 0.5 and here.arms["fast"].frozen == set() and here.undoable == "a"
    book.event(run, "rollback", payload={"checkpoint": "a", "to": {}, "cursor": 0})
    here = condition.now(book.events(run))
    assert here.arms["fast"].settings["lr"] == 0.01 and here.changes == [] and here.undoable == ""


def test_a_press_that_comes_twice_is_one_command(book):
    run = running(book)
    at = page(run=run)
    at.button(key="checkpoint").click().run()
    sound(at.button(key="checkpoint").click().run())
    assert [c["verb"] for c in book.commands(run)] == ["checkpoint"]


@pytest.mark.parametrize(
    ("verb", "payload"),
    [("pause", {}), ("step", {"n": 10}), ("set", {"name": "lr", "value": 0.001}), ("set", {"name": "rate", "value": 1 / 3}),
     ("freeze", {"layer": "a b"}), ("rollback", {"step": 300}), ("drive", {"seconds": 600.0, "to": "dashboard 3f2a"}),
     ("fork", {"change": None}), ("fork", {"change": {"verb": "set", "name": "lr", "value": 1e-05}}),
     ("fork", {"change": {"verb": "reset", "layer": "0"}})],
)  # fmt: skip
def test_the_command_that_is_shown_means_what_the_button_sends(book, verb, payload):
    import shlex

    from panels import typed

    words = shlex.split(typed.steer("some-run", verb, payload, "fast", 3))
    given = cli.parser().parse_args(words[1:])
    (meant,) = remote.payloads(given.verb, given.what)
    study = find(SLUG)
    assert (given.run, given.verb, given.arm, given.seed) == ("some-run", verb, "fast", 3)
    assert verbs.validate(study, verb, meant) == verbs.validate(study, verb, payload)


# ---- marks, events


def test_a_change_is_marked_on_the_curve_with_what_who_and_when(book):
    run = running(book)
    change = {"name": "lr", "value": 0.02, "old": 0.05, "new": 0.02, "checkpoint": "c", "by": "ann <b>"}
    book.event(run, "set", step=20, arm="fast", payload=change)
    at = page(run=run)
    figure = json.loads(at.get("plotly_chart")[0].proto.spec)
    (told,) = [t["text"] for t in figure["data"] if t["name"] == "what happened"]
    assert "lr 0.05 → 0.02 · fast · step 20" in told[0] and "ann &lt;b&gt;" in told[0]
    at = opened(at, "Events")
    assert list(at.dataframe[0].value["what"]) == ["lr 0.05 → 0.02"]
    assert list(at.dataframe[0].value["by"]) == ["ann <b>"]


# ---- lineage


def test_a_fork_shows_its_tree_and_its_difference_from_the_common_step_on(book):
    parent = running(book)
    book.event(parent, "checkpoint", step=20, payload={"name": "c", "arms": {"slow": 10, "fast": 10}, "why": "before fork"})
    rows = [(a, s, step, m, v + (0.1 + 0.01 * s if a == "fast" and step > 10 else 0)) for a, s, step, m, v in points()]
    child = running(book, rows, parent=parent, branch="c")
    book.event(child, "forked", payload={"parent": parent, "checkpoint": "c",
                                         "change": {"verb": "set", "name": "lr", "value": 0.5, "arm": "fast", "seed": None}})  # fmt: skip
    at = opened(page(run=child), "Lineage")
    assert [link.proto.label for link in at.get("page_link") if "original, running" in link.proto.label]
    shown = words(at)
    assert "fast: +0.12 [0." in shown and "against its parent in accuracy at step 30, n = 5" in shown and "slow: " not in shown
    figure = json.loads(at.get("plotly_chart")[-1].proto.spec)
    assert "fork − parent" in figure["layout"]["yaxis"]["title"]["text"]
    assert "fork: lr = 0.5 of fast: fast: +0.12 [0." in words(opened(page(run=parent), "Lineage"))


def test_the_picture_of_the_tree_joins_each_run_to_its_parent_and_reads_no_marks_in_names():
    from panels import lineage

    rows = [{"id": name, "status": "running", "parent": parent} for name, parent in (("a", None), ("b", "a"), ("c", "b"))]
    body = lineage.picture(rows, {"a": "original", "b": 'fork: x"] --> evil', "c": "replay on seeds 5..9"}, "b").splitlines()
    assert body[0] == "flowchart LR" and "  n0 --> n1" in body and "  n1 --> n2" in body
    assert sum("-->" in line for line in body) == 2 and all(line.count('"') in (0, 2) for line in body)


def test_differences_are_paired_over_seeds_and_begin_at_the_common_step():
    from panels import lineage

    columns = ["arm", "seed", "step", "metric", "value"]
    before = pd.DataFrame(points(seeds=range(4)), columns=columns)
    after = pd.DataFrame(points(gap=0.5), columns=columns)
    gap = lineage.differences(after, before, "accuracy", "fast", 20)
    assert set(gap["seed"]) == {0, 1, 2, 3} and set(gap["step"]) == {20, 30}
    assert gap["value"].tolist() == pytest.approx([0.2] * 8)


class Born(list):
    """Stands in for subprocess.Popen and keeps what was to be started."""

    def __call__(self, command, **options):
        self.append((command, options))
        return type("Child", (), {"poll": lambda self: None})()


def test_a_replay_starts_a_process_of_its_own_once_there_is_something_to_replay(book, monkeypatch):
    run = running(book)
    at = opened(page(run=run), "Lineage")
    assert at.button(key="replay").disabled and "nothing has been changed in this run yet" in words(at)
    book.event(run, "set", step=20, arm="fast", payload={"name": "lr", "value": 0.02, "old": 0.05, "new": 0.02, "checkpoint": "c"})
    sound(at.run())
    born = Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    assert at.text_input(key=f"{run}-seeds").value == "5..9"
    at.text_input(key=f"{run}-seeds").input("; rm -rf /").run()
    at.button(key="replay").click().run()
    assert not born and "write 5..9 or 3,4,8" in words(at)
    at.text_input(key=f"{run}-seeds").input("7..8").run()
    sound(at.button(key="replay").click().run())
    ((command, options),) = born
    given = cli.parser().parse_args(command[3:])
    assert given.run == run and remote.seeds_of(given.seeds) == [7, 8]
    assert options["start_new_session"] and not options.get("shell")


def test_the_answer_of_a_replay_stands_under_its_original(book):
    run = running(book)
    again = running(book, parent=run, branch="replay")
    verdict = {"verdict": "supported", "sentence": "The changes make accuracy better by 0.1."}
    book.event(again, "replayed", payload={"of": run, "verdicts": [verdict]})
    assert verdict["sentence"] in words(opened(page(run=run), "Lineage"))


# ---- rescue


def test_a_lost_run_with_a_checkpoint_is_resumed_once(book, home, monkeypatch):
    from panels import launch

    run = running(book)
    book.event(run, "checkpoint", step=40, payload={"name": "000000040", "arms": {"slow": 20, "fast": 20}, "why": "regular"})
    folder = home / run / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "000000040.pt").write_bytes(b"")
    book.set_status(run, "lost", "no sign of life")
    born = Born()
    monkeypatch.setattr(subprocess, "Popen", born)
    at = page(run=run)
    assert "slow at step 20 and fast at step 20" in words(at) and f"claimlab resume {run}" in [c.value for c in at.code]
    sound(at.button(key="resume-run").click().run())
    assert [c[0][3:] for c in born] == [["resume", run]] and book.run(run)["status"] == "queued"
    with pytest.raises(launch.LedgerError, match="queued"):
        launch.resume(run, book)
    launch.CHILDREN.clear()


def test_a_lost_run_without_a_checkpoint_says_how_to_start_again(book):
    run = running(book)
    book.set_status(run, "lost", "no sign of life")
    at = page(run=run)
    assert "It left no checkpoint" in words(at) and f"claimlab run {SLUG} --profile default" in [c.value for c in at.code]


def test_a_divergence_is_explained_and_the_last_good_checkpoint_offered(book, home):
    run = running(book)
    folder = home / run / "checkpoints"
    folder.mkdir(parents=True)
    for name, step in (("a", 10), ("b", 30)):
        book.event(run, "checkpoint", payload={"name": name, "arms": {"slow": step, "fast": step}, "why": "regular"})
        (folder / f"{name}.pt").write_bytes(b"")
    facts = {"step": 25, "tensor": "weight", "gradient_norm": 123.4, "last_good": 20}
    book.event(run, "diverged", step=30, arm="fast", seed=3, payload=facts)
    at = page(run=run)
    shown = words(at)
    assert "first at step 25, where weight was no longer finite" in shown and "norm just before was 123" in shown
    assert "last good step 20" in shown and "Seed 3 of fast has diverged" in [e.proto.title for e in at.error if hasattr(e.proto, "title")]
    sound(at.button(key="last-good").click().run())
    (command,) = book.commands(run)
    assert (command["verb"], command["payload"]) == ("rollback", {"checkpoint": "a"})


def test_seeds_are_written_as_the_command_line_reads_them():
    from panels import lineage

    for seeds in ([5, 6, 7, 8, 9], [3], [3, 4, 8], [0, 1]):
        assert remote.seeds_of(lineage.spanned(seeds)) == seeds


def test_every_setting_can_show_both_ends_and_what_it_is_now(book):
    from panels import tune

    for name, (low, high) in params.SETTABLE.items():
        for now in (low, high, 0.0005, 0.3):
            stops = tune.stops(params.Knob(name, 0.001, "", low, high), now)
            assert {low, high, now} <= set(stops) and stops == sorted(stops) and len(stops) < 100


def test_neither_page_loads_torch(book, tmp_path):
    script = tmp_path / "both_pages.py"
    script.write_text(
        "import sys\nfrom streamlit.testing.v1 import AppTest\n"
        f"at = AppTest.from_file({str(APP)!r}, default_timeout=60).run()\n"
        "for name in ('live', 'compare'):\n"
        "    at.switch_page(f'app_pages/{name}.py').run()\n"
        "    assert not at.exception and at.title, name\n"
        "print('torch' in sys.modules, 'papermill' in sys.modules)\n"
    )
    running(book)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr
