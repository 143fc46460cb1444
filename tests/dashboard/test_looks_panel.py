"""The interval against seeds, on both pages that show a run."""

from pathlib import Path

import streamlit as st
from panels import looks
from streamlit.testing.v1 import AppTest

from claimlab.ledger import Ledger

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"


def test_each_look_is_drawn_and_the_pages_say_where_it_stands(home, own_studies):
    st.cache_data.clear()
    st.cache_resource.clear()
    book = Ledger()
    run = book.start_run("toy-blobs", dict(rate=0.05, gap=2.0, poison=-1, steps=40, seeds=5), seeds=range(10), status="running")
    book.log(run, [(arm, seed, step, "accuracy", 0.5) for arm in ("slow", "fast") for seed in range(10) for step in (0, 10)])
    book.flush()
    for seeds, low, verdict in ((5, None, "undecided"), (10, 0.06, "supported")):
        one = {"claim": "fast-wins", "verdict": verdict, "effect": 0.1, "low": low, "high": 0.2, "threshold": 0.05}
        gone = {**one, "claim": "beats-chance", "verdict": "undecided", "effect": None, "low": None, "high": None}
        book.event(run, "look", payload={"seeds": seeds, "looks": [5, 10, 20], "claims": [one, gone]})
    book.heartbeat(run, 10, 40)
    for page, query in (("live", {"run": run}), ("study", {"study": "toy-blobs", "run": run})):
        at = AppTest.from_file(str(APP), default_timeout=60).run()
        at.query_params.update(query)
        at.switch_page(f"app_pages/{page}.py").run()
        assert [e.value for e in at.exception] == []
        words = "\n".join(e.value for e in (*at.markdown, *at.caption))
        assert "judged at 10 of at most 20 seeds" in words and "supported] fast wins" in words.replace("\\", "")
        assert "Nothing that could be measured yet" in words
    book.close()


def test_the_chart_has_a_bar_a_look_and_an_open_side_ends_at_the_edge():
    def seen(low, high):
        return {"verdict": "undecided", "effect": 0.1, "low": low, "high": high, "threshold": 0.0}

    figure = looks.drawn([(5, seen(None, 0.5)), (10, seen(-0.1, 0.3))], [5, 10, 20], "accuracy")
    assert [trace.x[0] for trace in figure.data] == ["5", "10"]
    assert figure.data[0].error_y.arrayminus[0] == 0.1 - -0.1 and figure.data[1].error_y.array[0] == 0.3 - 0.1
    assert list(figure.layout.xaxis.categoryarray) == ["5", "10", "20"]


def test_the_command_of_such_a_run_is_one_that_the_command_line_takes(own_studies):
    from panels import commands

    from claimlab.cli import parser
    from claimlab.study import find

    values = dict(rate=0.1, gap=2.0, poison=-1, steps=40, seeds=7)
    text = commands.run(find("toy-blobs"), values, "smoke, looks")
    taken = parser().parse_args(text.split()[1:])
    assert taken.until_decided and taken.seeds is None and taken.profile == "smoke" and "seeds=7" not in taken.knob
    assert "rate=0.1" in taken.knob and "until" not in commands.run(find("toy-blobs"), values, "smoke")
