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
SAME = 1e-3  # rounding stays below 1e-4; a clipped norm that is shared by two seeds shows as 4e-3 and more
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
    found += [f"the help of {k.name} holds ' = ', and papermill loses such a knob" for k in study.knobs if " = " in k.help]
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
    """Imports that point sideways or up, global seeding, and the budgets on lines, in every file of the study."""
    found = []
    for path in parts(study):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        found += [f"{path.name} imports {name}" for name in imports(tree) if _stray(name, study)]
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        found += [f"{path.name} calls {n}: randomness comes from a generator that was passed in" for n in SEEDING if n in calls]
        if (lines := len(text.splitlines())) > STUDY:
            found.append(f"{path.name} has {lines} lines; the budget is {STUDY}")
        found += [f"{path.name}: {name} has {n} lines; the budget is {FUNCTION}" for name, n in long_functions(tree)]
    return found


def parts(study: Study) -> list[Path]:
    """The files of a study: its module, and the files beside it, with an underscore in front, that it imports in the end."""
    found, todo = [], [study.path, study.path.with_name(f"_{study.path.stem}_figures.py")]
    while todo:
        path = todo.pop()
        if path in found or not path.exists():
            continue
        found.append(path)
        names = imports(ast.parse(path.read_text(encoding="utf-8")))
        lead = f"claimlab.studies.{study.family}._"
        todo += [study.path.with_name("_" + name.removeprefix(lead).split(".")[0] + ".py") for name in names if name.startswith(lead)]
    return found


def _stray(name: str, study: Study) -> bool:
    family = f"claimlab.studies.{study.family}"
    own = name == family or name.startswith(family + "._") or f"{name}.".startswith(f"{family}.{study.path.stem}.")
    sideways = name.startswith("claimlab.studies") and not own
    return sideways or any(f"{name}.".startswith(f + ".") for f in FORBIDDEN)


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
    import torch

    from claimlab import views
    from claimlab.experiment import Experiment

    found = [f"{study.path.stem} does not define {name}" for name in NAMES if not hasattr(study.module, name)]
    arms = study.module.ARMS
    wanted = {a for c in study.claims for a in (c.arm, c.baseline) if a}
    found += [f"a claim names the arm {name}, which ARMS does not have" for name in sorted(wanted - set(arms))]
    found += silent_import(study)
    if found:
        return found
    params = study.make(profile="smoke")
    lab = Experiment(study, params)
    try:
        off = {arm for arm, _ in lab.ticks() if not torch.is_grad_enabled()}
    except Exception as error:
        why = "" if torch.is_grad_enabled() else "; an arm leaves gradients switched off between two steps"
        return [f"the smoke profile fails: {type(error).__name__}: {error}{why}"]
    finally:
        torch.set_grad_enabled(True)
    found += [f"arm {name} leaves gradients switched off between two steps" for name in sorted(off)]
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
    return found + views.trouble(lab) + training(study, params)


IMPORT = """import random, sys, time
import numpy, torch
from claimlab.study import find, load

def mark():
    return hash((torch.get_rng_state().numpy().tobytes(), numpy.random.get_state()[1].tobytes(), random.getstate()))

one, before, work = find(sys.argv[1]), mark(), []
load(one)
for _ in range(3):  # again, with its libraries loaded: what is left is the work of the study itself
    for name in [n for n in sys.modules if n.startswith(("claimlab.studies.", "claimlab_own."))]:
        del sys.modules[name]
    began = time.process_time()
    load(one)
    work.append(1000 * (time.process_time() - began))
if mark() != before:
    print("it draws from a global generator")
if min(work) > float(sys.argv[2]):
    print(f"it does {min(work):.0f} ms of work; the budget is {sys.argv[2]} ms")
"""


def silent_import(study: Study, budget: int = 50) -> list[str]:
    """Importing prints nothing, leaves the global generators alone and takes at most `budget` ms beyond its libraries."""
    command = [sys.executable, "-c", IMPORT, study.slug, str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = (done.stdout + done.stderr).strip()
    return [f"the import is not silent: {said[-400:]}"] if said or done.returncode else []


def training(study: Study, params) -> list[str]:
    """Every trained arm: vectorised = loop, a member does not notice its company, resume is exact, no global draws.

    An arm that begins with another's members, and each later stage, begins here with members that are not trained yet.
    """
    found = []
    for name, spec in study.module.ARMS.items():
        if not getattr(spec, "when", lambda p: True)(params):
            continue
        before = _generators()
        try:
            for stage, task, start in _trained(study.module.ARMS, name, params):
                found += [f"arm {name}{stage and f', stage {stage}'}: {wrong}" for wrong in _exact(task, params, start)]
        except Exception as error:
            found.append(f"arm {name}: {type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}")
        if _generators() != before:
            found.append(f"arm {name}: training draws from a global generator")
    return found


def _trained(arms: dict, name: str, params) -> list[tuple[str, type, list | None]]:
    """(stage or '', task, untrained members of what came before) of an arm; none for an arm that is no Task or Stages."""
    from claimlab.training import Run, Stages, Task

    spec = arms[name]
    stages = spec.stages if isinstance(spec, Stages) else {"": spec} if isinstance(spec, type) and issubclass(spec, Task) else {}
    start, found = None, []
    if stages and spec.after:
        if not (before := _trained(arms, spec.after, params)):
            return []
        _, task, first = before[-1]
        start = Run(task(params), [0, 1], device="cpu", start=first).members
    for stage, task in stages.items():
        found.append((stage, task, start))
        start = Run(task(params), [0, 1], device="cpu", start=start).members
    return found


def _generators() -> tuple:
    import random

    import numpy
    import torch

    kind, keys, *rest = numpy.random.get_state()
    return torch.random.get_rng_state().numpy().tobytes(), (kind, keys.tobytes(), *rest), random.getstate()


def _exact(spec, params, start=None, steps: int = 3) -> list[str]:
    from claimlab.training import Run

    def run(seeds, done: int = steps, **options) -> Run:
        first = start and [start[seed] for seed in seeds]
        one = Run(spec(params), seeds, steps, 10**9, device="cpu", start=first, **options)
        for _ in range(done):
            one.advance()
        return one

    found, together, resumed = [], run([0, 1], 1), run([0, 1], 0)
    origin, after_one = copy.deepcopy(resumed.members), copy.deepcopy(together.state())
    resumed.load(after_one)
    for one in (together, resumed):
        for _ in range(steps - 1):
            one.advance()
    if not (off := _distance(together.members, run([0, 1], stacked=False).members, origin)) <= SAME:
        found.append(f"vectorised and plain loop differ by {off:.1e} of the way that {steps} steps went")
    if not (off := _distance(together.members[1:], run([1]).members, origin[1:])) <= SAME:
        found.append(f"a member trained in company differs from the same alone by {off:.1e} of the way that {steps} steps went")
    if _distance(together.members, resumed.members, origin) != 0:
        found.append("a resumed run does not go on bit for bit")
    return found


def _distance(ones, others, origin) -> float:
    """How far `ones` and `others` lie apart (root of the sum of squares), in units of the way from `origin` to `others`.

    Relative, since a learning rate of 1e-4 moves nothing by more than 1e-3; over all parameters, since rounding may turn the
    sign of a gradient that is next to nothing, which is a whole step of Adam for that one entry.
    """

    def square(first, second) -> float:
        pairs = (pair for a, b in zip(first, second, strict=True) for pair in zip(a.parameters(), b.parameters(), strict=True))
        return sum(float((p.detach() - q.detach()).double().square().sum()) for p, q in pairs)

    apart, way = square(ones, others), square(others, origin)
    return math.sqrt(apart / way) if way else 0.0 if apart == 0 else math.inf


def budget_files(folder: Path, limit: int) -> list[str]:
    """Python files of a folder with more than `limit` lines."""
    counted = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sorted(folder.rglob("*.py"))}
    return [f"{path.relative_to(folder)} has {n} lines; the budget is {limit}" for path, n in counted.items() if n > limit]
