"""What one would type for what the pages do: command lines of claimlab, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import streamlit as st


def steer(
    run: str, verb: str, payload: dict[str, Any], arm: str | None = None, seed: int | None = None, step: int | None = None
) -> str:
    """`claimlab steer RUN VERB ...`; `step` stands for a checkpoint, which the command line names by its step."""
    words = ["claimlab", "steer", run, verb, *_words(verb, payload, step)]
    words += ["--arm", arm] if arm else []
    words += ["--seed", str(seed)] if seed is not None else []
    return shlex.join(words)


def _words(verb: str, payload: dict[str, Any], step: int | None) -> list[str]:
    if verb == "set":
        return [f"{payload['name']}={payload['value']}"]
    if verb == "fork":
        change = payload.get("change")
        return [change["verb"], *_words(change["verb"], change, None)] if change else []
    if verb == "rollback":
        return [str(payload.get("step", step if step is not None else 0))]
    named = {"step": ("n",), "drive": ("seconds", "to")} | dict.fromkeys(("reset", "freeze", "unfreeze"), ("layer",))
    return [
        f"{payload[k]:g}" if isinstance(payload[k], float) else str(payload[k]) for k in named.get(verb, ()) if payload.get(k)
    ]


def replay(run: str, seeds: str) -> str:
    return shlex.join(["claimlab", "replay", run, *(["--seeds", seeds] if seeds else [])])


def resume(run: str) -> str:
    return shlex.join(["claimlab", "resume", run])


def show(lines: Sequence[str]) -> None:
    """Lines that one copies with a click."""
    st.code("\n".join(lines), language="bash", wrap_lines=True)
