"""What has happened to a run, newest first: changes, checkpoints, forks, drivers, divergences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st
from panels.wording import setting, span

from claimlab import verbs

SHOWN = 300
TOLD = (
    *verbs.CHANGES,
    "rollback",
    "fork",
    "forked",
    "drive",
    "ask",
    "diverged",
    "stop",
    "replayed",
    "interrupted",
    "error",
    "checkpoint",
    "look",
)


def table(run: str, events: Sequence[dict[str, Any]]) -> None:
    """The events as a table that can be searched, sorted and downloaded."""
    rows = [_line(e) for e in reversed(events) if e["kind"] in TOLD][:SHOWN]
    if not rows:
        st.caption("Nothing has been done to this run yet. Every change appears here, with who made it and at which step.")
        return
    st.dataframe(pd.DataFrame(rows), hide_index=True, key=f"{run}-events", alt="Events of this run, newest first",
                 column_config={"step": st.column_config.NumberColumn(format="localized")})  # fmt: skip


def _line(event: dict[str, Any]) -> dict[str, Any]:
    arm = (event["arm"] or "") + (f", seed {event['seed']}" if event["seed"] is not None else "")
    return {"time": time.strftime("%H:%M:%S", time.localtime(event["time"])), "what": what(event), "step": event["step"], "arm": arm,
            "by": event["payload"].get("by") or event["payload"].get("holder") or ""}  # fmt: skip


def what(event: dict[str, Any]) -> str:
    """One event in words, without its step and arm."""
    kind, payload = event["kind"], event["payload"]
    if kind == "set":
        return f"{payload['name']} {setting(payload['old'])} → {setting(payload['new'])}"
    if kind in verbs.CHANGES:
        return f"{kind} layer {payload['layer']}"
    if kind == "drive":
        left = payload["until"] - event["time"]
        return f"drives for {span(left)}" if left > 0.5 else "left the wheel"
    if kind == "look":
        decided = sum(one["verdict"] != "undecided" for one in payload["claims"])
        return f"judged at {payload['seeds']} seeds: {decided} of {len(payload['claims'])} claims decided"
    said = {"ask": "asks for the wheel", "forked": f"began as a fork of {payload.get('parent', '')}", "replayed": "replay judged",
            "fork": f"fork {payload.get('child', '')}", "checkpoint": f"checkpoint, {payload.get('why', '')}",
            "rollback": f"back to checkpoint {payload.get('checkpoint', '')}", "error": payload.get("text", "error"),
            "diverged": f"diverged; first {payload.get('tensor') or 'the loss'}"}  # fmt: skip
    return said.get(kind, kind)
