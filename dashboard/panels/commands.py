"""What one would type for what the study page shows, and how to open its notebook."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import streamlit as st
from panels import knobs, typed

from claimlab import ledger
from claimlab import study as studies
from claimlab.study import Study
from claimlab.sweeps.looks import MARK

PATIENCE = 0.2  # seconds that a JupyterLab of this machine has to answer


def run(study: Study, values: Mapping[str, Any], profile: str, control: bool = False) -> str:
    """`claimlab run STUDY -p KNOB=VALUE ... --profile P` with the knobs that differ from the profile's."""
    adds = profile.endswith(MARK)  # seeds until its claims are decided
    profile = profile.removesuffix(MARK)
    values = {k: v for k, v in values.items() if not (adds and k == "seeds")}
    usual = knobs.usual(study, profile) | (dict(study.control.set) if control else {})
    own = [part for name, value in values.items() if usual.get(name) != value for part in ("-p", f"{name}={value}")]
    return shlex.join(["claimlab", "run", study.slug, *own, "--profile", profile, *(["--control"] if control else []),
                       *(["--until-decided"] if adds else [])])  # fmt: skip


def panel(study: Study, row: Mapping[str, Any] | None) -> None:
    """The command of the knobs as they stand, and those of the run that is shown."""
    profile, control = knobs.profile(study), knobs.is_control(study)
    st.caption("The knobs as they stand")
    typed.show([run(study, knobs.current(study), profile, control)])
    if row is None:
        return
    st.caption("The run that is shown: the same again, and what became of it")
    again = run(study, row["params"], row["profile"], bool(row["control"])) if set(row["params"]) == _names(study) else ""
    lines = [again] if again else []
    lines.append(shlex.join(["claimlab", "runs", "show", row["id"]]))
    if row["status"] in ledger.ALIVE:
        lines.append(typed.steer(row["id"], "pause", {}))
    typed.show(lines)


def _names(study: Study) -> set[str]:
    return {one.name for one in study.knobs}


# ---- notebooks


def jupyter(study: Study, executed: Path | None) -> None:
    """The way into JupyterLab: a link where one runs on this machine, else what starts one."""
    servers = running()
    books = [("The study's notebook", study.notebook)]
    books += [("The notebook of the run that is shown", executed)] if executed else []
    for label, path in books:
        if not path.exists():
            st.caption(f"{label} does not exist.")
            continue
        link = next((url for one in servers if (url := address(one, path))), "")
        if link:
            st.link_button(label, link, icon=":material/open_in_new:", width="stretch")
        else:
            st.caption(f"{label}: no JupyterLab of this machine reaches it. This starts one:")
            typed.show([start(path)])
    if servers:
        st.caption("Opens in the JupyterLab that runs on the machine of this dashboard; it may ask for its token once.")


def start(path: Path) -> str:
    """The command that opens a notebook: `make lab` where it serves the folder, else JupyterLab on the file itself."""
    root = studies.root().resolve()
    if (root / "Makefile").exists() and path.resolve().is_relative_to(root / "notebooks"):
        return f"make lab  # then open {path.resolve().relative_to(root / 'notebooks')}"
    shown = path.resolve()
    return shlex.join(["jupyter", "lab", str(shown.relative_to(Path.cwd()) if shown.is_relative_to(Path.cwd()) else shown)])


def address(server: Mapping[str, Any], path: Path) -> str:
    """The address of a notebook on a server, without its token; empty if it lies outside the folder that is served."""
    folder, path = Path(server["root"]).resolve(), path.resolve()
    return f"{server['url']}lab/tree/{quote(path.relative_to(folder).as_posix())}" if path.is_relative_to(folder) else ""


@st.cache_data(ttl=20, max_entries=1, show_spinner=False)
def running() -> list[dict[str, str]]:
    """Jupyter servers of this user that answer on this machine: address and folder."""
    from jupyter_core.paths import jupyter_runtime_dir

    found = []
    for path in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json"), key=os.path.getmtime, reverse=True):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            parts = urlsplit(facts["url"])
            socket.create_connection((parts.hostname, parts.port), PATIENCE).close()
        except (OSError, ValueError, KeyError):
            continue
        if parts.scheme in ("http", "https"):
            found.append({"url": facts["url"], "root": facts["root_dir"]})
    return found
