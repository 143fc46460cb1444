"""The contract sees what it should see: a study that keeps it, and the same study with one thing broken at a time."""

import json

import pytest
import torch

from claimlab import cells, cli, contract
from claimlab.study import catalogue, find

CLIPPED = '''class Clipped(torch.optim.AdamW):
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
        return super().step(closure)


class Fast(Slow):
    joint_optimizer = {own}

    def optimizer(self, groups):
        return Clipped(groups)

'''
NOTED = '''class Fast(Slow):
    steps_seen = 0

    def batch(self, net, rng, step):
        Fast.steps_seen += 1
        return tuple(part + 0.1 * Fast.steps_seen * (part.dtype == torch.float32) for part in super().batch(net, rng, step))

    def block(self, net, rng, step, n):
        Fast.steps_seen += 1
        x, y = super().block(net, rng, step, n)
        return x + 0.1 * Fast.steps_seen, y

'''


@pytest.fixture
def changed(own_studies):
    """The toy study with `old` replaced by `new` in its source."""

    def change(old: str = "", new: str = ""):
        path = own_studies / "blobs" / "toy_blobs.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return next(one for one in catalogue() if one.slug == "toy-blobs")

    return change


def said(found: list[str], words: str) -> bool:
    return any(words in one for one in found)


# ---- a study that keeps it


def test_a_study_that_keeps_the_contract_lacks_nothing(changed):
    study = changed()
    study.path.with_suffix(".ipynb").write_text(cells.template(study).replace("To write:", "Written:"), encoding="utf-8")
    assert contract.missing(find("toy-blobs")) == []


def test_check_prints_what_is_missing_and_ends_with_one(own_studies, capsys):
    assert cli.main(["check", "toy-blobs"]) == 1
    assert "the notebook toy_blobs.ipynb is missing" in capsys.readouterr().out
    assert cli.main(["check", "toy-blobs", "--json"]) == 1
    assert said(json.loads(capsys.readouterr().out)["toy-blobs"], "toy_blobs.ipynb is missing")


# ---- declarations and files


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('HONESTY = "Two blobs are no data set."', "", "HONESTY is missing"),
        ('HONESTY = "Two', 'HONESTY = "To write: two', "still to write"),
        ("    SMOKE = dict(steps=6, seeds=2)\n", "", "Params.SMOKE is missing"),
        (', why="Blobs in one place cannot be told apart."', "", "CONTROL does not say why"),
        ('"distance of the blobs"', '"distance, 0 = one blob"', "the help of gap holds ' = '"),
    ],
)
def test_a_declaration_that_is_missing_is_named(changed, old, new, words):
    assert not said(contract.declarations(changed()), words)
    assert said(contract.declarations(changed(old, new)), words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("knob(0.05,", "knob(1.5,", "broken: KnobError: rate = 1.5"), ("seeds: int", "repeats: int", "seeds is not a knob")],
)
def test_knobs_that_contradict_each_other_make_a_study_broken(changed, old, new, words):
    assert said(contract.missing(changed(old, new)), words)


def test_a_notebook_out_of_sync_is_named(changed):
    study = changed()
    study.path.with_suffix(".ipynb").write_text(cells.template(study), encoding="utf-8")
    assert not said(contract.files(study), "claimlab sync")
    study = changed("knob(0.05,", "knob(0.06,")
    assert said(contract.files(study), "the generated cell 'parameters' differs")
    assert said(contract.files(study), "still to write: toy_blobs.ipynb")


# ---- source


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("import torch\nimport streamlit\n", "imports streamlit"),
        ("import torch\nfrom papermill.iorw import load_notebook_node\n", "imports papermill.iorw"),
        ("import torch\nfrom claimlab import runner\n", "imports claimlab.runner"),
        ("import torch\nfrom claimlab.studies.training import mixup\n", "imports claimlab.studies.training.mixup"),
        ("import torch\ntorch.manual_seed(3)\n", "calls torch.manual_seed"),
        ("import torch\n" + "x = 1\n" * 400, "the budget is 400"),
        ("import torch\ndef long():\n" + "    x = 1\n" * 40, "long has 41 lines; the budget is 40"),
    ],
)
def test_what_the_source_may_not_hold_is_named(changed, new, words):
    assert not contract.source(changed())
    assert said(contract.source(changed("import torch\n", new)), words)


def test_a_generator_of_ones_own_may_be_seeded(changed):
    assert contract.source(changed("import torch\n", "import torch\nrng = torch.Generator().manual_seed(3)\n")) == []


def test_a_docstring_does_not_count_as_lines_of_a_function(changed):
    text = 'import torch\ndef f():\n    """' + "a\n" * 60 + '    """\n    return 1\n'
    assert contract.source(changed("import torch\n", text)) == []


def test_the_files_beside_a_study_are_looked_at_too():
    study = find("fullgrad")
    assert {p.name for p in contract.parts(study)} >= {"fullgrad.py", "_fullgrad_method.py", "_fullgrad_data.py"}


# ---- behaviour


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("import torch\nprint('hello')\n", "hello"),
        ("import torch\ntorch.rand(1)\n", "draws from a global generator"),
        ("import random\nimport torch\nrandom.random()\n", "draws from a global generator"),
        ("import torch\ntable = [i * i for i in range(3_000_000)]\n", "the budget is 50 ms"),
        ("import torch\nraise_it = 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_an_import_that_is_not_silent_is_named(changed, new, words):
    assert said(contract.silent_import(changed("import torch\n", new)), words)


def test_an_arm_that_switches_gradients_off_for_the_others_is_named(changed):
    study = changed("        yield Tick(0,", "        with torch.no_grad():\n            yield Tick(0,")
    assert said(contract.behaviour(study), "gradients switched off between two steps")
    assert torch.is_grad_enabled()


def test_a_silent_import_passes(changed):
    assert contract.silent_import(changed()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('return {"accuracy"', 'return {"correct"', "claim fast-wins: arm fast records no accuracy"),
        ('"fast": Fast, ', '"quick": Fast, ', "a claim names the arm fast"),
        ("def bind(self, seed):", "def bind(self, seed):\n        raise ValueError('no data')", "smoke profile fails: ValueError"),
        ("    last = lab", "    return {}\n    last = lab", "figures(lab) draws nothing"),
        ('go.Figure(go.Scatter(x=last["arm"], y=last["value"], mode="markers"))', "go.Figure()", "figure accuracy is empty"),
        ('poison: int = knob(-1', 'poison: int = knob(0', "a loss is not finite"),
    ],
)  # fmt: skip
def test_behaviour_that_breaks_the_contract_is_named(changed, monkeypatch, old, new, words):
    monkeypatch.setattr(contract, "silent_import", lambda study: [])
    assert said(contract.behaviour(changed(old, new)), words)


# ---- training


def broken_training(study) -> list[str]:
    assert study.module
    return contract.training(study, study.make(profile="smoke"))


def test_the_arms_of_the_toy_train_exactly(changed):
    study = changed()
    assert broken_training(study) == []
    looked = {name: contract._trained(study.module.ARMS, name, study.make()) for name in study.module.ARMS}
    assert {name: len(one) for name, one in looked.items()} == {"slow": 1, "fast": 1, "halves": 2, "tuned": 1, "probe": 0}
    assert looked["tuned"][0][2] is not None and looked["halves"][1][2] is not None


@pytest.mark.parametrize("lr", ["0.1", "0.001", "0.00001"])
def test_a_norm_clipped_over_two_seeds_is_seen_at_any_learning_rate(changed, lr):
    changed("knob(0.05,", f"knob({lr},")
    assert said(broken_training(changed("class Fast(Slow):\n", CLIPPED.format(own="True"))), "trained in company differs")


def test_a_norm_clipped_for_each_seed_alone_passes(changed):
    assert broken_training(changed("class Fast(Slow):\n", CLIPPED.format(own="False"))) == []


def test_an_arm_that_draws_from_the_global_generator_is_seen(changed):
    noisy = "class Fast(Slow):\n    joint_optimizer = False\n\n    def loss(self, net, x, y):\n" \
            "        return super().loss(net, x + torch.rand(()), y)\n\n"  # fmt: skip
    assert said(broken_training(changed("class Fast(Slow):\n", noisy)), "draws from a global generator")


def test_state_outside_of_the_run_is_seen(changed):
    found = broken_training(changed("class Fast(Slow):\n", NOTED))
    assert said(found, "arm fast: ") and said(found, "does not go on bit for bit")


def test_a_later_stage_is_looked_at_as_well(changed):
    changed("class Half(Slow):\n", CLIPPED.format(own="True").replace("class Fast(Slow)", "class Half(Slow)"))
    found = broken_training(changed("halves\": Stages(first=Half", "halves\": Stages(first=Slow"))
    assert said(found, "arm halves, stage second: a member trained in company") and not said(found, "stage first")
