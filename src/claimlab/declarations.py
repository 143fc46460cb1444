"""What a study module declares, read without importing it: the statements PAPER, Params, CLAIMS and HONESTY alone are executed.

VIEWS and TRY are read by their names; what they call is imported when somebody looks.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import marshal
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from claimlab import claims, params

DECLARATIONS = ("PAPER", "Params", "CLAIMS")
THEMES = ("stages", "sensitivity", "representations")
_PARSER, _MAKER = threading.Lock(), threading.Lock()


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


class Kept(NamedTuple):
    """What has been read of a study file: compiled declarations by name, what it imports, and what is read by name alone."""

    codes: dict[str, CodeType]
    imports: tuple[str, ...]
    views: tuple[str, ...]
    trials: dict[str, dict[str, Any]]
    doc: str


class Declared(dict):
    """Declarations by name. `Params` is made when it is first asked for: dataclasses cost most of what there is to do."""

    def __init__(self, kept: Kept, stem: str):
        self._kept, self._scope = kept, {
            "Paper": Paper, "Control": Control, "Claim": claims.Claim, "knob": params.knob, "dataclass": dataclass,
            "KnobError": params.KnobError, "__name__": f"claimlab.declared.{stem}",
        }  # fmt: skip
        sys.modules.setdefault(self._scope["__name__"], ModuleType(self._scope["__name__"]))  # dataclasses look their module up
        names = {name: self._make(name) for name in (*DECLARATIONS, "HONESTY") if name in kept.codes and name != "Params"}
        super().__init__(names, views=kept.views, trials=kept.trials, doc=kept.doc)

    def __missing__(self, name: str) -> Any:
        if name not in self._kept.codes:
            raise KeyError(name)
        with _MAKER:
            if name not in self:
                self[name] = self._make(name)
        return dict.__getitem__(self, name)

    def _make(self, name: str) -> Any:
        exec(self._kept.codes[name], self._scope)
        return self._scope[name]


def read(path: Path) -> Declared:
    """The declarations of a study module by name, with `views`, `trials` and `doc`, without contradictions; any error says what
    is wrong. The same source gives the same declarations again, from a file beside Python's own compiled ones."""
    return _read(path, path.read_bytes())


@lru_cache(maxsize=512)
def _read(path: Path, source: bytes) -> Declared:
    mark = _mark(source)
    if (kept := _stored(path, mark)) is not None:
        _installed(kept.imports)
        return Declared(kept, path.stem)
    tree = parse(source.decode(), str(path))
    wanted = {_name(node): node for node in tree.body if _name(node) in (*DECLARATIONS, "HONESTY")}
    codes = {name: compile(ast.Module([node], []), str(path), "exec") for name, node in wanted.items()}
    entries = {name: _entries(tree, name) for name in ("VIEWS", "TRY")}
    trials = {name: _trial(call) for name, call in entries["TRY"].items()}
    kept = Kept(codes, _imports(tree), tuple(entries["VIEWS"]), trials, ast.get_docstring(tree) or "")
    declared = Declared(kept, path.stem)
    if missing := [name for name in DECLARATIONS if name not in wanted]:
        raise StudyError(f"{path.name} does not declare {', '.join(missing)}")
    _installed(kept.imports)
    validate(declared)
    _store(path, mark, kept)
    return declared


@lru_cache(maxsize=1)
def _judges() -> bytes:
    """What decides whether declarations are sound, and how they are kept."""
    return b"".join(Path(str(module.__file__)).read_bytes() for module in (sys.modules[__name__], claims, params))


def _mark(source: bytes) -> bytes:
    return hashlib.sha256(_judges() + source).digest()


def _place(path: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(path))).with_suffix(".declared")


def _stored(path: Path, mark: bytes) -> Kept | None:
    """What an earlier process has read of the same source; None if there is none."""
    try:
        known, *kept = marshal.loads(_place(path).read_bytes())
        return Kept(*kept) if known == mark else None
    except (OSError, EOFError, ValueError, TypeError):
        return None


def _store(path: Path, mark: bytes, kept: Kept) -> None:
    """Keep it for other processes, where one may write."""
    place = _place(path)
    written = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        if not sys.dont_write_bytecode:
            place.parent.mkdir(exist_ok=True)
            written.write_bytes(marshal.dumps((mark, *kept)))
            written.replace(place)


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


def _imports(tree: ast.Module) -> tuple[str, ...]:
    """The modules that it imports at its head; StudyError where it raises unconditionally."""
    found: dict[str, None] = {}
    for node in tree.body:
        if isinstance(node, ast.Raise):
            raise StudyError(f"the module raises on import: {ast.unparse(node)}")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found |= dict.fromkeys(names)
    return tuple(found)


def _installed(names: tuple[str, ...]) -> None:
    """StudyError names a package that is absent: the import would fail."""
    for name in names:
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in sys.modules and importlib.util.find_spec(top) is None:
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
