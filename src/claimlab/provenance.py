"""What a result depends on: the source that a study uses, its notebook, the libraries it imports, and a user's own data."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from claimlab.declarations import parse
from claimlab.study import PACKAGE, Study

OWN_DATA = ("CLAIMLAB_DATA", "CLAIMLAB_PRIORS")  # variables that name a file or a folder of the user's
ALWAYS = ("claimlab", "torch", "numpy", "pandas")
STORAGE = {"sqlalchemy"}  # keeps results and does not make them
DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image", "PIL": "pillow", "SALib": "salib"}


def provenance(study: Study) -> dict[str, Any]:
    """Versions by library, `notebook` (hash), `sources` (hash by file of this package and of the study) and `data` (hash by
    variable, for own data that the study reads)."""
    files = sources(study)
    libraries = {DISTRIBUTIONS.get(name, name) for one in files for name in _read(one)[2]}
    found = {"python": platform.python_version(), **{name: _version(name) or "not installed" for name in ALWAYS}}
    found |= {name: text for name in sorted(libraries - set(ALWAYS)) if (text := _version(name))}
    read = [name for name in OWN_DATA if any(name in _read(one)[3] for one in files)]
    data = {name: contents(Path(os.environ[name])) for name in read if os.environ.get(name)}
    notebook = hashlib.sha256(study.notebook.read_bytes()).hexdigest()[:16] if study.notebook.exists() else ""
    return {**found, "notebook": notebook, "sources": {_name(one): _read(one)[0] for one in files}, "data": data}


def sources(study: Study) -> list[Path]:
    """The study's file and every file of this package, or beside a study of one's own, that it imports, directly or not."""
    drawn = study.path.with_name(f"_{study.path.stem}_figures.py")  # loaded by name, so that no import shows it
    seen: set[Path] = set()
    todo = [study.path, drawn, PACKAGE / "experiment.py", PACKAGE / "live.py"]
    while todo:
        if (path := todo.pop()) in seen or not path.exists():
            continue
        seen.add(path)
        for name in _read(path)[1]:
            at = PACKAGE.parent.joinpath(*name.split("."))
            todo += [p for p in (at.with_suffix(".py"), at / "__init__.py") if p.exists()]
    return sorted(seen)


def read_package() -> None:
    """Read the sources that studies share ahead of time; what is read is remembered."""
    for path in PACKAGE.rglob("*.py"):
        if not path.is_relative_to(PACKAGE / "studies"):
            _read(path)


def contents(path: Path) -> str:
    """Hash of a file, or of all files of a folder with their names; 'absent' where there is none."""
    if not path.exists():
        return "absent"
    total = hashlib.sha256()
    for one in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        total.update(one.relative_to(path).as_posix().encode() if path.is_dir() else b"")
        with one.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:16]


def _read(path: Path) -> tuple[str, frozenset[str], frozenset[str], frozenset[str]]:
    facts = path.stat()
    return _parsed(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4096)
def _parsed(path: Path, _time: int, _size: int) -> tuple[str, frozenset[str], frozenset[str], frozenset[str]]:
    """Of a source file: its hash, the claimlab modules and the other libraries it imports, the own data it speaks of."""
    text = path.read_text(encoding="utf-8")
    own, others = set(), set()
    for node in ast.walk(parse(text)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        own |= {name for name in names if name.partition(".")[0] == "claimlab"}
        others |= {name.partition(".")[0] for name in names} - sys.stdlib_module_names - STORAGE - {"claimlab"}
    data = frozenset(name for name in OWN_DATA if name in text)
    return hashlib.sha256(text.encode()).hexdigest()[:12], frozenset(own), frozenset(others), data


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name


@lru_cache(maxsize=256)
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
