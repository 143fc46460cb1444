"""A study: one paper as one module, found by file and read without importing it.

A study module declares PAPER, Params, CLAIMS, HONESTY (and CONTROL inside Params) as literals. Those statements alone are
executed to list the lab, so that listing needs no torch; the methods and arms are imported when a study runs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from claimlab import claims, declarations, params
from claimlab.declarations import DECLARATIONS, THEMES, Control, Paper, StudyError, Trial, parse

PACKAGE = Path(__file__).parent
NAMES = (*DECLARATIONS, "ARMS", "figures", "HONESTY")
FAMILIES = (
    "training", "compression", "attribution", "representation", "robustness", "causality", "adaptation", "physics", "imaging",
    "vision", "text", "audio", "graphs", "timeseries", "recommendation", "science", "decisions",
)  # fmt: skip


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
    def views(self) -> tuple[str, ...]:
        """Names of the pictures that one can watch while it runs."""
        return self.declared.get("views", ())

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        """What one can try on the trained networks: kind, help, shape and arms by name."""
        return self.declared.get("trials", {})

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
    return [PACKAGE / "studies", *_own(), *_plugged()[0]]


def _own() -> list[Path]:
    return [Path(p) for p in os.environ.get("CLAIMLAB_STUDIES", "").split(os.pathsep) if p]


def _plugged() -> tuple[list[Path], list[Study]]:
    """The folders that entry points lead to, and in place of each one that leads nowhere a broken study that says why."""
    found, broken = [], []
    for point in _points(tuple((place, _changed(place)) for place in sys.path)):
        try:
            spec = importlib.util.find_spec(point.module)
            places = [Path(p) for p in (spec.submodule_search_locations if spec else None) or []]
            reason = "" if places else f"{point.module} is no package that can be found"
        except Exception as error:  # a package above it may fail on import, in any way
            places, reason = [], f"{type(error).__name__}: {error}"
        found += places
        if reason:
            slug = point.name.replace("_", "-").lower()
            broken.append(Study(slug, "own", Path(point.module), f"its entry point leads nowhere: {reason}"))
    return found, broken


@lru_cache(maxsize=4)
def _points(places: tuple[tuple[str, float], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of all that is installed; read anew when the search path has changed, or a folder on it."""
    return tuple(entry_points(group="claimlab.studies"))


def _changed(place: str) -> float:
    try:
        return os.stat(place).st_mtime
    except OSError:
        return 0.0


def surroundings(home: Path | str, ledger: str) -> dict[str, str]:
    """Variables by which another process finds the same home of runs, ledger (its URL) and studies."""
    own = os.pathsep.join(str(folder.resolve()) for folder in folders()[1:])
    return {"CLAIMLAB_HOME": str(home), "CLAIMLAB_LEDGER": ledger, "CLAIMLAB_STUDIES": own, "CLAIMLAB_ROOT": str(root().resolve())}


def importable() -> dict[str, str]:
    """The variable by which another process of this machine imports this package, from whatever folder it works in."""
    paths = [str(PACKAGE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def catalogue() -> list[Study]:
    """All studies, sorted by slug; broken ones are included with their reason."""
    known, broken = _files()
    found = [read(path, family) for path, family in known.values()] + broken
    return sorted(found, key=lambda s: s.slug)


def _files() -> tuple[dict[str, tuple[Path, str]], list[Study]]:
    """File and family of every study by slug, unread; and a broken study for each place that is named and not there."""
    found: dict[str, tuple[Path, str]] = {}
    plugged, nowhere = _plugged()
    for folder in [PACKAGE / "studies", *_own(), *plugged]:
        for path in sorted(folder.rglob("*.py")):
            if not path.name.startswith(("_", "test_")) and "__pycache__" not in path.parts:
                found.setdefault(_slug(path.stem), (path, path.parent.name if path.parent != folder else "own"))
    absent = [Study(p.name.lower(), "own", p, f"CLAIMLAB_STUDIES names {p}, which is not a folder") for p in _own() if not p.is_dir()]
    broken = {one.slug: one for one in reversed([*absent, *nowhere]) if one.slug not in found}
    return found, list(broken.values())


def _slug(stem: str) -> str:
    return stem.replace("_", "-")


def find(slug: str) -> Study:
    """The study of that name (hyphens or underscores); StudyError gives the nearest names, or why it is broken."""
    wanted = _slug(slug).lower()
    known, broken = _files()
    nowhere = {one.slug: one for one in broken}
    if wanted not in known and wanted not in nowhere:
        near = difflib.get_close_matches(wanted, [*known, *nowhere], n=3, cutoff=0.3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise StudyError(f"there is no study {slug!r}{hint}")
    one = read(*known[wanted]) if wanted in known else nowhere[wanted]
    if one.broken:
        raise StudyError(f"the study {wanted} is broken: {one.broken}")
    return one


def read(path: Path, family: str) -> Study:
    """Read the declarations of one study file without importing it."""
    slug = _slug(path.stem)
    try:
        declared = declarations.read(path)
    except Exception as error:
        return Study(slug, family, path, broken=f"{type(error).__name__}: {error}")
    return Study(slug, family, path, declared=declared)


def beside(module: str, drawing: str) -> Callable[..., Any]:
    """A drawing from the file `_<study>_figures.py` beside a study, as `figures = beside(__name__, "figures")`.

    The file is loaded when somebody looks: training and declarations do not wait for it.
    """

    def draw(*seen: Any) -> Any:
        family, _, stem = module.rpartition(".")
        return getattr(importlib.import_module(f"{family}._{stem}_figures"), drawing)(*seen)

    return draw


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


__all__ = [
    "FAMILIES", "NAMES", "PACKAGE", "THEMES", "Control", "Paper", "Study", "StudyError", "Trial", "beside", "catalogue", "find",
    "folders", "importable", "load", "parse", "root", "surroundings",
]  # fmt: skip
