"""A study's own text, read without importing it: its live source, its arms and their colours, the module's docstring."""

from __future__ import annotations

import ast
from pathlib import Path

import pandas as pd
import streamlit as st

from claimlab import figures
from claimlab.study import Study


def files(study: Study) -> list[Path]:
    """The study's module, and the files beside it that it names."""
    text = study.path.read_text(encoding="utf-8")
    beside = [p for p in sorted(study.path.parent.glob("_*.py")) if p.stem != "__init__" and p.stem in text]
    return [study.path, *beside]


def arms(study: Study) -> list[str]:
    """Names of the study's arms in the order of its ARMS, where that is written out as a dictionary."""
    return _arms(str(study.path), study.path.stat().st_mtime_ns)


@st.cache_data(max_entries=300, show_spinner=False)
def _arms(path: str, stamp: int) -> list[str]:
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        named = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ARMS"
        if named and isinstance(node.value, ast.Dict):
            return [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    return []


def palette(study: Study, table: pd.DataFrame) -> dict[str, str]:
    """The colour of each arm, the same on every page and in every report: baseline grey, method blue."""
    known = arms(study)
    names = known + [a for a in table["arm"].unique() if a not in known]
    first = next((c for c in study.claims if c.baseline), None)
    return figures.colours(names, first and first.baseline, first and first.arm)


def idea(study: Study) -> str:
    """The module's docstring as one text a paragraph."""
    parts = study.declared.get("doc", "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)
