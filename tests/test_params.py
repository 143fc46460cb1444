"""Knobs: one declaration, five views, and a clear refusal of everything else."""

import json
from dataclasses import dataclass

import nbformat
import numpy as np
import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claimlab import params
from claimlab.params import KnobError, knob


@dataclass(frozen=True)
class Params:
    alpha: float = knob(8.0, "blending strength", low=0.0, high=32.0, live=True)
    order: str = knob("least", "which pixels go first", choices=("least", "most"))
    shuffle: bool = knob(False, "shuffle the maps")
    warmup: int = knob(0, "steps of warm-up", low=0, high=1000)
    steps: int = knob(600, "optimiser steps", low=20, high=5000)
    seeds: int = knob(5, "repetitions", low=2, high=64)
    SMOKE = dict(steps=20, seeds=2)
    FULL = dict(steps=2000)

    def __post_init__(self):
        if self.warmup > self.steps:
            raise ValueError(f"warmup = {self.warmup} is more than steps = {self.steps}")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("alpha", "abc", "alpha = 'abc' is not allowed: alpha must be in [0, 32]"),
        ("alpha", "nan", "alpha = nan"),
        ("alpha", float("inf"), "alpha = inf"),
        ("alpha", "", "alpha = ''"),
        ("alpha", -0.1, "alpha must be in [0, 32]"),
        ("alpha", 33, "alpha = 33"),
        ("alpha", True, "alpha = True"),
        ("alpha", None, "alpha = None"),
        ("steps", 1.5, "steps must be a whole number in [20, 5000]"),
        ("steps", "1.5", "steps = 1.5"),
        ("seeds", 0, "seeds = 0"),
        ("seeds", "0", "seeds = 0"),
        ("order", "middle", "one of least, most"),
        ("shuffle", "perhaps", "one of False, True"),
        ("shuffle", 1, "one of False, True"),
        ("steps", "__import__('os')", "steps"),
        ("alpha", 10**400, "alpha must be in [0, 32]"),
        ("alpha", "1e400", "alpha = inf"),
        ("alpha", [8.0], "alpha = [8.0]"),
        ("alpha", 8 + 0j, "alpha = (8+0j)"),
        ("order", ["least"], "one of least, most"),
    ],
)
def test_a_bad_value_is_refused_with_knob_value_and_range(name, value, words):
    with pytest.raises(KnobError) as refusal:
        params.make(Params, {name: value})
    assert words in str(refusal.value)


def test_an_unknown_knob_gets_the_nearest_name():
    with pytest.raises(KnobError, match="did you mean alpha"):
        params.make(Params, {"alhpa": 1.0})
    with pytest.raises(KnobError, match="zzz is not a knob of this study"):
        params.make(Params, {"zzz": 1.0})


def test_contradictory_knobs_are_refused():
    with pytest.raises(KnobError, match="warmup = 700 is more than steps = 600"):
        params.make(Params, {"warmup": 700})


def test_profiles_lie_under_the_given_values():
    assert params.make(Params, profile="smoke") == Params(steps=20, seeds=2)
    assert params.make(Params, {"steps": "40"}, profile="smoke") == Params(steps=40, seeds=2)
    assert params.make(Params, profile="full").steps == 2000
    with pytest.raises(KnobError, match="smoke, default, full"):
        params.make(Params, profile="quick")


@given(st.floats(0, 32), st.sampled_from(["least", "most"]), st.booleans(), st.integers(20, 5000), st.integers(2, 64))
def test_text_and_json_come_back_as_the_same_values(alpha, order, shuffle, steps, seeds):
    values = {"alpha": alpha, "order": order, "shuffle": shuffle, "steps": steps, "seeds": seeds}
    made = params.make(Params, values)
    assert params.make(Params, {k: str(v) for k, v in values.items()}) == made
    assert params.make(Params, json.loads(json.dumps(params.values(made)))) == made
    assert isinstance(made.alpha, float) and isinstance(made.steps, int)


def test_numbers_of_a_grid_are_taken_as_the_knobs_own_type():
    made = params.make(Params, {"alpha": np.float32(2.5), "steps": np.int64(40), "seeds": 3.0})
    assert (made.alpha, made.steps, made.seeds) == (2.5, 40, 3)
    assert [type(v) for v in (made.alpha, made.steps, made.seeds)] == [float, int, int]
    assert json.loads(json.dumps(params.values(made))) == params.values(made)


def test_a_choice_among_numbers_keeps_its_declared_type():
    @dataclass(frozen=True)
    class Halves:
        depth: int = knob(2, "layers", choices=(2, 4))

    for given_value in (4, 4.0, "4"):
        assert repr(params.make(Halves, {"depth": given_value}).depth) == "4"


def test_papermill_reads_the_parameters_cell_back(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(params.cell(Params), metadata={"tags": ["parameters"]})])
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, tmp_path / "one.ipynb")
    found = papermill.inspect_notebook(str(tmp_path / "one.ipynb"))
    assert {k: v["inferred_type_name"] for k, v in found.items()} == {
        "alpha": "float", "order": "str", "shuffle": "bool", "warmup": "int", "steps": "int", "seeds": "int",
    }  # fmt: skip
    scope: dict = {}
    exec(params.cell(Params), scope)
    assert {n: scope[n] for n in found} == params.values(Params())
    assert "in [0, 32]" in found["alpha"]["help"] and "blending strength" in found["alpha"]["help"]


def test_salib_samples_the_knobs_within_their_ranges():
    from SALib.sample import saltelli, sobol  # noqa: F401

    problem = params.salib_problem(Params)
    assert problem["names"] == ["alpha", "warmup", "steps"]
    sample = sobol.sample(problem, 4, seed=0)
    low, high = zip(*problem["bounds"], strict=True)
    assert (sample >= low).all() and (sample <= high).all()


def test_a_declaration_without_range_or_with_a_bad_default_is_refused():
    with pytest.raises(TypeError, match="needs low and high"):
        knob(1.0, "no range")
    with pytest.raises(TypeError, match="finite range"):
        knob(1.0, "no end", low=0.0, high=float("inf"))

    @dataclass(frozen=True)
    class Bad:
        alpha: float = knob(9.0, "out of its own range", low=0.0, high=1.0)

    with pytest.raises(KnobError, match="alpha = 9"):
        params.knobs(Bad)


def test_the_written_type_is_that_of_the_default():
    """A float that starts as 8 would otherwise refuse 8.5 as no whole number."""

    @dataclass(frozen=True)
    class Slip:
        alpha: float = knob(8, "blending strength", low=0, high=32)

    with pytest.raises(TypeError, match="alpha is written as float"):
        params.knobs(Slip)


@pytest.mark.parametrize("text", ["alpha", "=3", "alpha=", " =1"])
def test_a_pair_needs_name_sign_and_value(text):
    with pytest.raises(KnobError, match="knob=value"):
        params.pairs([text])
    assert params.pairs(["alpha=3", "order = most"]) == {"alpha": "3", "order": "most"}
