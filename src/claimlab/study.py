"""A study: one paper as one module, found by file and read without importing it.

A study module declares PAPER, Params, CLAIMS, HONESTY (and CONTROL inside Params) as literals. Those statements alone are
executed to list the lab, so that listing needs no torch; the methods and arms are imported when a study runs.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from claimlab import claims, params

PACKAGE = Path(__file__).parent
DECLARATIONS = ("PAPER", "Params", "CLAIMS")
NAMES = (*DECLARATIONS, "ARMS", "figures", "HONESTY")
FAMILIES = (
    "training", "compression", "attribution", "representation", "robustness", "causality", "adaptation", "physics", "imaging",
    "vision", "text", "audio", "graphs", "timeseries", "recommendation", "science", "decisions",
)  # fmt: skip
_PARSER = threading.Lock()
THEMES = ("stages", "sensitivity", "representations")


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


class StudyError(ValueError):
    """A study that does not exist, or whose module does not declare what a study needs."""


@dataclass(frozen=True)
class Study:
    """One validated view of a study module. `broken` holds the reason where its declarations cannot be read."""

    slug: str
    family: str
    path: Path
    broken: str = ""
    declared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def paper(self) -> Paper:
        return self.declared["PAPER"]

    @property
    def Params(self) -> type:  # noqa: N802 - the name that a study module gives it
        return self.declared["Params"]

    @property
    def claims(self) -> tuple[claims.Claim, ...]:
        return self.declared["CLAIMS"]

    @property
    def control(self) -> Control:
        return getattr(self.Params, "CONTROL", Control())

    @property
    def honesty(self) -> str:
        return self.declared.get("HONESTY", "")

    @property
    def knobs(self) -> tuple[params.Knob, ...]:
        return params.knobs(self.Params)

    @property
    def notebook(self) -> Path:
        """The notebook with the same stem: beside a study of one's own, else under `notebooks/<family>/`."""
        beside = self.path.with_suffix(".ipynb")
        return beside if beside.exists() else root() / "notebooks" / self.family / f"{self.path.stem}.ipynb"

    @property
    def source_hash(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @cached_property
    def module(self) -> ModuleType:
        """The imported module; StudyError names what is missing or why the import failed."""
        try:
            found = load(self)
        except Exception as error:
            raise StudyError(f"{self.slug} cannot be imported: {type(error).__name__}: {error}") from error
        if missing := [name for name in NAMES if not hasattr(found, name)]:
            raise StudyError(f"{self.slug} does not define {', '.join(missing)}")
        return found

    def make(self, values=None, profile: str = "default") -> Any:
        """Checked parameters of this study (an instance of the imported class once the module is loaded)."""
        checked = params.make(self.Params, values, profile)
        if "module" in self.__dict__:
            return self.module.Params(**params.values(checked))
        return checked

    def as_dict(self) -> dict[str, Any]:
        """The documented JSON of `claimlab list --json`."""
        knob_fields = ("name", "default", "low", "high", "choices", "unit", "help", "live")
        claim_fields = ("id", "text", "kind", "metric", "arm", "baseline", "better", "margin", "source")
        control = {"set": dict(self.control.set), "vanishes": list(self.control.vanishes), "why": self.control.why}
        return {
            "slug": self.slug, "title": self.paper.title, "theme": self.paper.theme, "family": self.family,
            "year": self.paper.year, "question": self.paper.question, "system": self.paper.system,
            "claims": [{f: getattr(c, f) for f in claim_fields} for c in self.claims],
            "knobs": [{f: getattr(k, f) for f in knob_fields} for k in self.knobs],
            "control": control,
        }  # fmt: skip


def root() -> Path:
    """The project's top folder (where notebooks/ and data/ lie): CLAIMLAB_ROOT, the checkout, else the working folder."""
    if chosen := os.environ.get("CLAIMLAB_ROOT"):
        return Path(chosen)
    checkout = PACKAGE.parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def folders() -> list[Path]:
    """Where studies lie: the package's own folder, CLAIMLAB_STUDIES, and folders from entry points."""
    own = [Path(p) for p in os.environ.get("CLAIMLAB_STUDIES", "").split(os.pathsep) if p]
    plugged = []
    for point in entry_points(group="claimlab.studies"):
        spec = importlib.util.find_spec(point.value)
        plugged += [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return [PACKAGE / "studies", *own, *plugged]


def catalogue() -> list[Study]:
    """All studies, sorted by slug; broken ones are included with their reason."""
    found: dict[str, Study] = {}
    for folder in folders():
        for path in sorted(folder.rglob("*.py")):
            if path.name.startswith("_") or "__pycache__" in path.parts:
                continue
            one = read(path, family=path.parent.name if path.parent != folder else "own")
            found.setdefault(one.slug, one)
    return sorted(found.values(), key=lambda s: s.slug)


def find(slug: str) -> Study:
    """The study of that name (hyphens or underscores); StudyError gives the nearest names, or why it is broken."""
    wanted = slug.replace("_", "-").lower()
    studies = {s.slug: s for s in catalogue()}
    if wanted not in studies:
        near = difflib.get_close_matches(wanted, studies, n=3, cutoff=0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise StudyError(f"there is no study {slug!r}{hint}")
    if studies[wanted].broken:
        raise StudyError(f"the study {wanted} is broken: {studies[wanted].broken}")
    return studies[wanted]


def read(path: Path, family: str) -> Study:
    """Read the declarations of one study file without importing it."""
    slug = path.stem.replace("_", "-")
    try:
        declared = _declarations(path)
        _validate(declared)
    except Exception as error:
        return Study(slug, family, path, broken=f"{type(error).__name__}: {error}")
    return Study(slug, family, path, declared=declared)


def _declarations(path: Path) -> dict[str, Any]:
    tree = parse(path.read_text(encoding="utf-8"), str(path))
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
    return {**names, "views": _view_names(tree), "doc": ast.get_docstring(tree) or ""}


def beside(module: str, drawing: str) -> Callable[..., Any]:
    """A drawing from the file `_<study>_figures.py` beside a study, as `figures = beside(__name__, "figures")`.

    The file is loaded when somebody looks: training and declarations do not wait for it.
    """

    def draw(*seen: Any) -> Any:
        family, _, stem = module.rpartition(".")
        return getattr(importlib.import_module(f"{family}._{stem}_figures"), drawing)(*seen)

    return draw


def parse(text: str, name: str = "<unknown>") -> ast.Module:
    """`ast.parse` for use from several threads: CPython 3.11's parser counts its depth in state that they share."""
    with _PARSER:
        return ast.parse(text, filename=name)


def _name(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, ast.ClassDef) else ""


def _view_names(tree: ast.Module) -> tuple[str, ...]:
    views = [n.value for n in tree.body if _name(n) == "VIEWS" and isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)]
    return tuple(k.value for v in views for k in v.keys if isinstance(k, ast.Constant))


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


def _validate(declared: dict[str, Any]) -> None:
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


def load(study: Study) -> ModuleType:
    """Import the module of a study."""
    if study.path.is_relative_to(PACKAGE):
        dotted = ".".join(study.path.relative_to(PACKAGE).with_suffix("").parts)
        return importlib.import_module(f"claimlab.{dotted}")
    # the source is part of the name: two folders may hold the same file name, and an edited study is another module
    mark = hashlib.sha256(str(study.path).encode() + study.path.read_bytes()).hexdigest()[:8]
    name = f"claimlab_own.{study.family}.{study.path.stem}_{mark}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, study.path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
