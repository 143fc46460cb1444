"""The contract of a study: what `claimlab check` looks at and the tests assert. Each check returns what is missing, in words."""

from __future__ import annotations

import ast
import copy
import math
import subprocess
import sys
from pathlib import Path

from claimlab.study import FAMILIES, NAMES, PACKAGE, Study, StudyError, root

FORBIDDEN = ("streamlit", "papermill", "claimlab.runner", "claimlab.cli", "claimlab.live", "claimlab.ledger", "claimlab.notebook")
SEEDING = ("torch.manual_seed", "np.random.seed", "numpy.random.seed", "random.seed")
FUNCTION, STUDY = 40, 400
PLACEHOLDER = "To write:"


def missing(study: Study) -> list[str]:
    """Everything that the study still lacks; empty when it keeps the contract."""
    if study.broken:
        return [f"broken: {study.broken}"]
    found = declarations(study) + files(study) + source(study)
    try:
        assert study.module
    except StudyError as error:
        return [*found, str(error)]
    return [*found, *behaviour(study)]


def declarations(study: Study) -> list[str]:
    """Names, family, claims that name declared arms, knobs that every study has, profiles, a control or the reason for none."""
    found = []
    if study.family not in FAMILIES and study.path.is_relative_to(PACKAGE):
        found.append(f"the folder {study.family} is not a family of the lab")
    knobs = {k.name for k in study.knobs}
    found += [f"the knob {name} is missing" for name in ("steps", "seeds") if name not in knobs]
    found += [f"Params.{name} is missing" for name in ("SMOKE", "FULL", "CONTROL") if not hasattr(study.Params, name)]
    if not study.control.why:
        found.append("CONTROL does not say why the effect vanishes there, or why no control makes sense")
    if not study.honesty:
        found.append("HONESTY is missing: two sentences on what the scale hides")
    if not study.claims:
        found.append("CLAIMS is empty")
    texts = [study.paper.question, study.honesty, *(c.text for c in study.claims), *(k.help for k in study.knobs)]
    return found + [f"still to write: {text}" for text in texts if PLACEHOLDER in text]


def files(study: Study) -> list[str]:
    """The notebook and the test with the same stem, and a notebook in sync with the declarations."""
    found = []
    inside = study.path.is_relative_to(PACKAGE)
    test = root() / "tests" / "studies" / study.family / f"test_{study.path.stem}.py"
    if inside and not test.exists():
        found.append(f"the test {test.relative_to(root())} is missing")
    elif inside and PLACEHOLDER in test.read_text(encoding="utf-8"):
        found.append(f"still to write: {test.name}")
    if not study.notebook.exists():
        return [*found, f"the notebook {study.notebook.name} is missing"]
    from claimlab.cells import stale

    found += [f"{study.notebook.name}: {reason}; run `claimlab sync`" for reason in stale(study.notebook)]
    if PLACEHOLDER in study.notebook.read_text(encoding="utf-8"):
        found.append(f"still to write: {study.notebook.name}")
    return found


def source(study: Study) -> list[str]:
    """Imports that point sideways or up, global seeding, and the budgets on lines."""
    text = study.path.read_text(encoding="utf-8")
    tree, found = ast.parse(text), []
    family = f"claimlab.studies.{study.family}"  # parts of a study that outgrew one file start with an underscore
    for name in imports(tree):
        sideways = name.startswith("claimlab.studies") and name != family and not name.startswith(family + "._")
        if sideways or any(name == f or name.startswith(f + ".") for f in FORBIDDEN):
            found.append(f"{study.path.name} imports {name}")
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found += [
        f"{study.path.name} calls {name}: randomness comes from a generator that was passed in"
        for name in SEEDING
        if name in calls
    ]
    if (lines := len(text.splitlines())) > STUDY:
        found.append(f"{study.path.name} has {lines} lines; the budget is {STUDY}")
    return found + [f"{study.path.name}: {name} has {n} lines; the budget is {FUNCTION}" for name, n in long_functions(tree)]


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of everything that a module imports, anywhere in it."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def long_functions(tree: ast.AST) -> list[tuple[str, int]]:
    """Functions over the budget, docstring and decorators not counted, with their lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
            if lines > FUNCTION:
                found.append((node.name, lines))
    return found


# ---- behaviour: the study is imported and run for two steps


def behaviour(study: Study) -> list[str]:
    """Silent import; the arms run at SMOKE with finite losses; metrics cover the claims; figures hold data; exact training."""
    from claimlab.experiment import Experiment

    found = [f"{study.path.stem} does not define {name}" for name in NAMES if not hasattr(study.module, name)]
    arms = study.module.ARMS
    wanted = {a for c in study.claims for a in (c.arm, c.baseline) if a}
    found += [f"a claim names the arm {name}, which ARMS does not have" for name in sorted(wanted - set(arms))]
    found += silent_import(study)
    if found:
        return found
    params = study.make(profile="smoke")
    try:
        lab = Experiment(study, params).run()
    except Exception as error:
        return [f"the smoke profile fails: {type(error).__name__}: {error}"]
    losses = lab.table[lab.table["metric"] == "loss"]["value"]
    if not all(math.isfinite(v) for v in losses):
        found.append("a loss is not finite at the smoke profile")
    have = set(zip(lab.table["arm"], lab.table["metric"], strict=True))
    full = Experiment(study, study.make()).specs
    for claim in study.claims:
        for arm in (claim.arm, claim.baseline):
            if arm in lab.specs and (arm, claim.metric) not in have:
                found.append(f"claim {claim.id}: arm {arm} records no {claim.metric}")
            if arm and arm not in full:
                found.append(f"claim {claim.id}: arm {arm} does not run at the default profile")
    drawn = lab.figures()
    found += [f"the figure {name} is empty" for name, figure in drawn.items() if not figure.data]
    if not drawn:
        found.append("figures(lab) draws nothing")
    return found + training(study, params)


MARK = """import hashlib, sys, numpy, torch
def mark():
    return hashlib.md5(torch.get_rng_state().numpy().tobytes() + numpy.random.get_state()[1].tobytes()).hexdigest()
"""


def silent_import(study: Study) -> list[str]:
    """Importing prints nothing and leaves torch's and numpy's global generators as they were."""
    code = MARK + (
        "from claimlab.study import find\n"
        "torch.manual_seed(0); numpy.random.seed(0); before = mark()\n"
        "find(sys.argv[1]).module\n"
        "print('' if mark() == before else 'the import draws from a global generator', end='')"
    )
    done = subprocess.run([sys.executable, "-c", code, study.slug], capture_output=True, text=True, timeout=120)
    said = (done.stdout + done.stderr).strip()
    return [f"the import is not silent: {said[-400:]}"] if said or done.returncode else []


def training(study: Study, params) -> list[str]:
    """Every trained arm: vectorised = loop, a member does not notice its company, resume is exact, no global draws."""
    import torch

    from claimlab.training import Task

    found = []
    for name, spec in study.module.ARMS.items():
        if (
            not (isinstance(spec, type) and issubclass(spec, Task))
            or spec.after
            or not getattr(spec, "when", lambda p: True)(params)
        ):
            continue
        state = torch.random.get_rng_state()
        try:
            found += [f"arm {name}: {wrong}" for wrong in _exact(spec, params)]
        except Exception as error:
            found.append(f"arm {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
        if not torch.equal(state, torch.random.get_rng_state()):
            found.append(f"arm {name}: training draws from torch's global generator")
    return found


def _exact(spec, params, steps: int = 3) -> list[str]:
    from claimlab.training import Run

    def run(seeds, **options) -> Run:
        one = Run(spec(params), seeds, steps, 10**9, device="cpu", **options)
        for _ in range(steps):
            one.advance()
        return one

    found, together = [], run([0, 1])
    if (off := _distance(together.members, run([0, 1], stacked=False).members)) > 1e-3:
        found.append(f"vectorised and plain loop differ by {off:.1e} after {steps} steps")
    if (off := _distance(together.members[1:], run([1]).members)) > 1e-3:
        found.append(f"a member trained in company differs from the same alone by {off:.1e}")
    first = Run(spec(params), [0, 1], steps, 10**9, device="cpu")
    first.advance()
    second = Run(spec(params), [0, 1], steps, 10**9, device="cpu")
    second.load(copy.deepcopy(first.state()))
    for _ in range(steps - 1):
        first.advance()
        second.advance()
    if _distance(first.members, second.members) > 0:
        found.append("a resumed run does not go on bit for bit")
    return found


def _distance(ones, others) -> float:
    """Largest difference of any parameter, in units of the learning rate's usual step of 1."""
    pairs = (zip(a.parameters(), b.parameters(), strict=True) for a, b in zip(ones, others, strict=True))
    return max(float((p - q).detach().abs().max()) for pair in pairs for p, q in pair)


def budget_files(folder: Path, limit: int) -> list[str]:
    """Python files of a folder with more than `limit` lines."""
    counted = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sorted(folder.rglob("*.py"))}
    return [f"{path.relative_to(folder)} has {n} lines; the budget is {limit}" for path, n in counted.items() if n > limit]
