"""`claimlab data check`: a user's file as a study's own loader reads it, before anything is trained on it."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from claimlab import params as knob_views
from claimlab.params import KnobError
from claimlab.study import Study, StudyError, catalogue, find

VARIABLE = "CLAIMLAB_DATA"
STEPS = 200  # at most, until every arm that can begin has measured something


def check(slug: str, file: Path, values: dict[str, Any] | None = None, profile: str = "default") -> dict[str, Any]:
    """What a study finds in a file: `holds` (in words), `arms` that begin with it, `new` ones that only it brings, `notes`.

    The arms of one seed begin, with the knobs of a run, on the file in place of the study's own data. KnobError says what is
    wrong with the file, in the words of the study's loader; StudyError if the study takes none.
    """
    study = find(slug)
    if not file.exists():
        raise KnobError(f"{file} is not there")
    with _named(file):
        if VARIABLE not in _reads(study):
            others = [s.slug for s in catalogue() if not s.broken and VARIABLE in _reads(s)]
            raise StudyError(f"{study.slug} takes no file of yours; these do: {', '.join(others) or 'none'}")
        params = study.module.Params(**knob_views.values(study.make(values, profile)))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            begun = _begin(study, params, file)
    notes = dict.fromkeys(str(one.message) for one in heard if issubclass(one.category, UserWarning))
    with _named(None):
        usual = [name for name, arm in study.module.ARMS.items() if getattr(arm, "when", lambda _: True)(params)]
    return {"study": study.slug, "file": str(file), "holds": holds(file), "arms": begun,
            "new": [name for name in begun if name not in usual], "notes": list(notes), "knobs": dict(values or {})}  # fmt: skip


@contextmanager
def _named(file: Path | None) -> Iterator[None]:
    """CLAIMLAB_DATA set to a file, or to nothing, for a while."""
    before = os.environ.pop(VARIABLE, None)
    try:
        if file is not None:
            os.environ[VARIABLE] = str(file.absolute())
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _reads(study: Study) -> set[str]:
    """The variables that a study's source, and what it imports, asks for a user's files."""
    from claimlab import provenance

    return {name for path in provenance.sources(study) for name in provenance.OWN_DATA if name in path.read_text(encoding="utf-8")}


def _begin(study: Study, params: Any, file: Path) -> list[str]:
    """The arms that begin on the file, each up to the first thing it measures."""
    from claimlab.experiment import Experiment

    try:
        lab = Experiment(study, params, seeds=[0])
        ticked: set[str] = set()
        for number, pair in enumerate(lab.stepwise()):
            ticked |= {pair[0]} if pair else set()
            if ticked >= set(lab.arms) or number > STEPS:
                break
        return list(lab.arms)
    except (ValueError, OSError) as error:
        raise KnobError(f"{file} does not suit {study.slug}: {error}") from None
    except Exception as error:
        raise KnobError(f"{file} does not suit {study.slug}, which fails on it: {type(error).__name__}: {error}") from None


def holds(file: Path) -> str:
    """What a file or a folder holds, in words: arrays with type and shape, columns and rows, files by folder, or its size."""
    if file.is_dir():
        counts = Counter(p.parent.relative_to(file).as_posix() for p in file.rglob("*") if p.is_file())
        return "; ".join(f"{'the folder itself' if name == '.' else name}: {n} files" for name, n in sorted(counts.items())) or "nothing"
    size = f"{file.stat().st_size:,} bytes"
    try:
        if file.suffix in (".npz", ".npy"):
            import numpy as np

            found = np.load(file, allow_pickle=False)
            arrays = {name: found[name] for name in found} if file.suffix == ".npz" else {"array": found}
            return ", ".join(f"{name} {a.dtype} {' x '.join(map(str, a.shape))}" for name, a in arrays.items())
        if file.suffix == ".csv":
            import pandas as pd

            table = pd.read_csv(file)
            return f"{len(table)} rows below a first line of {len(table.columns)} entries, {size}"
    except (ValueError, OSError):
        return size
    return size


def told(found: dict[str, Any]) -> str:
    """The answer in words."""
    lines = [f"{found['file']} suits {found['study']}.", f"It holds {found['holds']}."]
    new = f" (new: {', '.join(found['new'])})" if found["new"] else ""
    lines.append(f"These arms have begun with it: {', '.join(found['arms'])}{new}.")
    lines += [f"Note: {note}" for note in found["notes"]]
    words = "".join(f" -p {name}={value}" for name, value in found["knobs"].items())
    return "\n".join([*lines, f"Run it: {VARIABLE}={found['file']} claimlab run {found['study']}{words}"])
