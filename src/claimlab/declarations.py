"""What a study module declares, read without importing it: the statements PAPER, Params, CLAIMS and HONESTY alone are executed.

VIEWS and TRY are read by their names; what they call is imported when somebody looks.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from claimlab import claims, params

DECLARATIONS = ("PAPER", "Params", "CLAIMS")
THEMES = ("stages", "sensitivity", "representations")
_PARSER = threading.Lock()


@dataclass(frozen=True)
class Paper:
    """Bibliographic facts and the question that the study asks."""

    title: str
    authors: str
    year: int
    url: str
    theme: str
    system: str
    question: str


@dataclass(frozen=True)
class Control:
    """The negative control: knob values under which the claims in `vanishes` must not come out supported."""

    set: dict[str, Any] = field(default_factory=dict)
    vanishes: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Trial:
    """What one can try on trained networks oneself: `answer(net, params, value)` gives {answer: share} for one network.

    kind: `image` (value: rows of numbers in [0, 1], of this shape), `text` (a string) or `table` (rows of numbers).
    arms: those whose networks take such an input. Written as a literal, but for `answer`, so that it is read unimported.
    """

    kind: str
    answer: Callable[[Any, Any, Any], dict[str, float]]
    help: str = ""
    shape: tuple[int, int] = (0, 0)
    arms: tuple[str, ...] = ()


class StudyError(ValueError):
    """A study that does not exist, or whose module does not declare what a study needs."""


def read(path: Path) -> dict[str, Any]:
    """The declarations of a study module by name, with `views`, `trials` and `doc`, without contradictions; any error says what
    is wrong. The same source gives the same declarations again."""
    return dict(_read(path, path.read_text(encoding="utf-8")))


@lru_cache(maxsize=512)
def _read(path: Path, source: str) -> dict[str, Any]:
    tree = parse(source, str(path))
    wanted = (*DECLARATIONS, "HONESTY")
    body = [node for node in tree.body if _name(node) in wanted]
    scope: dict[str, Any] = {
        "Paper": Paper, "Control": Control, "Claim": claims.Claim, "knob": params.knob, "dataclass": dataclass,
        "KnobError": params.KnobError, "__name__": f"claimlab.declared.{path.stem}",
    }  # fmt: skip
    sys.modules.setdefault(scope["__name__"], ModuleType(scope["__name__"]))  # dataclasses look their module up
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)
    if missing := [name for name in DECLARATIONS if name not in scope]:
        raise StudyError(f"{path.name} does not declare {', '.join(missing)}")
    _check_imports(tree)
    names = {name: scope[name] for name in wanted if name in scope}
    entries = {name: _entries(tree, name) for name in ("VIEWS", "TRY")}
    trials = {name: _trial(call) for name, call in entries["TRY"].items()}
    declared = {**names, "views": tuple(entries["VIEWS"]), "trials": trials, "doc": ast.get_docstring(tree) or ""}
    validate(declared)
    return declared


def parse(text: str, name: str = "<unknown>") -> ast.Module:
    """`ast.parse` for use from several threads: CPython 3.11's parser counts its depth in state that they share."""
    with _PARSER:
        return ast.parse(text, filename=name)


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, ast.ClassDef) else ""


def _entries(tree: ast.Module, name: str) -> dict[str, ast.expr]:
    """The entries of a dictionary that a module assigns to `name`, by key."""
    found = [n.value for n in tree.body if _name(n) == name and isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)]
    return {k.value: v for d in found for k, v in zip(d.keys, d.values, strict=True) if isinstance(k, ast.Constant)}


def _trial(call: ast.expr) -> dict[str, Any]:
    """kind, help, shape and arms of a Trial that is written as a call."""
    words = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ("kind", "help", "shape", "arms")}
    return {"kind": ast.literal_eval(call.args[0]) if call.args else "", "help": "", "shape": (0, 0), "arms": (), **words}


def _check_imports(tree: ast.Module) -> None:
    """What would make the import fail and can be seen without importing: an unconditional raise, an absent package."""
    for node in tree.body:
        if isinstance(node, ast.Raise):
            raise StudyError(f"the module raises on import: {ast.unparse(node)}")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        for name in names:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                raise StudyError(f"it imports {name}, which is not installed")


def validate(declared: dict[str, Any]) -> None:
    """StudyError or KnobError where declarations contradict each other."""
    names = {one.name for one in params.knobs(declared["Params"])}
    if declared["PAPER"].theme not in THEMES:
        raise StudyError(f"theme {declared['PAPER'].theme!r} is not one of {', '.join(THEMES)}")
    ids = [c.id for c in declared["CLAIMS"]]
    if len(set(ids)) != len(ids):
        raise StudyError("two claims have the same id")
    control = getattr(declared["Params"], "CONTROL", Control())
    if stray := (set(control.set) - names) | (set(control.vanishes) - set(ids)):
        raise StudyError(f"CONTROL names what is not declared: {', '.join(sorted(stray))}")
    for profile in params.PROFILES:
        params.make(declared["Params"], profile=profile)
    params.make(declared["Params"], control.set)
