"""A process that holds the networks of a run at its checkpoints and is asked by lines of JSON: this server has no torch."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import threading
from typing import Any

import streamlit as st
from panels import launch, store

from claimlab import ledger as ledgers

PATIENCE = 90.0  # seconds for an answer; the first one loads the libraries and builds the networks


class Looker:
    """One such process; `ask` may be called from several sessions."""

    def __init__(self, run: str):
        self.run, self.lock = run, threading.Lock()
        folder = ledgers.home() / run
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "look.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "claimlab.cli", "look", run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=launch.environment(store.ledger()),
            )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request of `claimlab.views.serve`; {"reason"} where there is none."""
        with self.lock:
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                with selectors.DefaultSelector() as waiting:
                    waiting.register(self.process.stdout, selectors.EVENT_READ)
                    line = self.process.stdout.readline() if waiting.select(PATIENCE) else None
            except (OSError, ValueError):
                line = ""
            if line:
                return json.loads(line)
            self.close()
            why = f"no answer within {PATIENCE:g} s" if line is None else self._last_words()
            return {"reason": f"the networks of this run cannot be looked at: {why}"}

    def _last_words(self) -> str:
        lines = (ledgers.home() / self.run / "look.log").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "the process has ended")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@st.cache_resource(max_entries=2, ttl=900, show_spinner=False, on_release=Looker.close)
def _looker(run: str, url: str) -> Looker:
    return Looker(run)


def ask(run: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the networks of a run; a process that has ended is started anew."""
    url = store.ledger().url
    if _looker(run, url).process.poll() is not None:
        _looker.clear(run, url)
    return _looker(run, url).ask(request)
