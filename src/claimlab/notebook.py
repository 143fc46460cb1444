"""What a notebook of the lab calls: `run`, `show`, `figure`, `verdicts`. Its generated cells (`sync`) are those of `cells`."""

from __future__ import annotations

import inspect
import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from claimlab import params as knob_views
from claimlab.cells import stale, sync, template
from claimlab.study import Study, find

__all__ = ["figure", "run", "show", "stale", "sync", "template", "verdicts"]
MARKS = {"supported": "✓", "refuted": "✗", "undecided": "–"}
EVERY = 1.0
EVERY_UNSEEN = 10.0  # nobody watches a notebook that papermill runs, but a dead kernel should leave a curve behind
_joined: set[str] = set()


# ---- in a notebook


def run(study: Study | str, p: Any, *, watch: str | None = None):
    """Run the experiment of `study` with knobs `p` and return it finished and judged; a chart grows while it goes on.

    Under papermill this is the run that $CLAIMLAB_RUN names; by hand a run of its own is entered in the ledger. `watch`
    is the metric of the chart (default: that of the first claim that has a curve). An exception of the study, and
    live.Stopped, pass through; what was recorded and drawn until then is kept.
    """
    from claimlab import live

    study = find(study) if isinstance(study, str) else study
    ledger, name, mine = _enter(study, p)
    screen = _Screen(study, watch, EVERY if mine else EVERY_UNSEEN)
    try:
        lab = live.execute(study, p, ledger, name, on_tick=screen)
        if mine:
            _leave(ledger, name, "finished")
        return lab
    except BaseException as error:
        if mine:
            stopped = isinstance(error, live.Stopped | KeyboardInterrupt)
            _leave(ledger, name, "stopped" if stopped else "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        screen.close(name)
        ledger.close()


def show(thing: Any) -> None:
    """Show the source of a function, class or module as it is now, highlighted, with the place where it stands."""
    lines, first = inspect.getsourcelines(thing)
    source = textwrap.dedent("".join(lines)).rstrip()
    place = f"{Path(inspect.getsourcefile(thing)).name}, line {max(first, 1)}"
    _display({"text/markdown": f"```python\n{source}\n```\n*{place}*", "text/plain": source})


def figure(fig: Any) -> None:
    """Show one plotly figure: alive in JupyterLab, and in the exported page with the network off."""
    _display(_bundle(fig))


def verdicts(lab: Any) -> None:
    """Show what the data say of each claim: a table, the sentences, and a picture of every verdict that has values."""
    from claimlab import figures

    found = list(zip(lab.verdicts(), lab.study.claims, strict=True))
    head = "| claim | verdict | effect | 95 % interval | n |\n|---|---|---:|---|---:|\n"
    rows = [
        f"| {c.text} | {MARKS[v.verdict]} **{v.verdict}** | {_number(v.effect)} | [{_number(v.low)}, {_number(v.high)}] | {v.n} |"
        for v, c in found
    ]
    sentences = [f"- {v.sentence}" for v, _ in found]
    plain = "\n".join(f"{c.id}: {v.sentence}" for v, c in found)
    _display({"text/markdown": head + "\n".join(rows) + "\n\n" + "\n".join(sentences), "text/plain": plain})
    for v, c in found:
        if v.values:
            figure(figures.paired(v, c))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g}"


def _enter(study: Study, p: Any):
    """The ledger, the run to work for, and whether it is this process's own to close."""
    from claimlab.ledger import Ledger
    from claimlab.runner import provenance

    ledger, chosen = Ledger(), knob_views.values(p)
    name = os.environ.get("CLAIMLAB_RUN")
    if name and name not in _joined:
        given = ledger.run(name)
        if given["study"] == study.slug and _plain(given["params"]) == _plain(chosen):
            _joined.add(name)
            return ledger, name, False
    mine = ledger.start_run(
        study.slug, chosen, seeds=list(range(p.seeds)), source_hash=study.source_hash, versions=provenance(study), parent=name,
        status="starting",
    )  # fmt: skip
    return ledger, mine, True


def _plain(values: dict) -> dict:
    return json.loads(json.dumps(values))


def _leave(ledger, name: str, status: str, reason: str = "") -> None:
    ledger.finish(name)
    ledger.set_status(name, status, reason)


def in_kernel() -> bool:
    """Whether this is a notebook's kernel (and not a terminal or a plain script)."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _display(bundle: dict[str, Any], handle: Any = None) -> Any:
    """Show a bundle of mime types, in place of what `handle` showed before; plain text where there is no notebook."""
    if not in_kernel():
        print(bundle["text/plain"])
        return None
    from IPython.display import display

    if handle is not None:
        handle.update(bundle, raw=True)
        return handle
    return display(bundle, raw=True, display_id=True)


def _bundle(fig: Any) -> dict[str, Any]:
    from claimlab.export import figure_html

    title = fig.layout.title.text or "figure"
    return {
        "application/vnd.plotly.v1+json": json.loads(fig.to_json()),
        "text/html": figure_html(fig),
        "text/plain": f"[{title}]",
    }


def _register() -> None:
    """Make plotly's own ways of showing a figure (`fig.show()`, a last expression) give the same bundle as `figure`."""
    import plotly.graph_objects as go
    import plotly.io as pio
    from plotly.io.base_renderers import MimetypeRenderer

    class Renderer(MimetypeRenderer):
        def to_mimebundle(self, fig_dict):
            return _bundle(go.Figure(fig_dict, skip_invalid=True))

    pio.renderers["claimlab"] = Renderer()
    pio.renderers.default = "claimlab"


if in_kernel():
    import claimlab.lightly  # noqa: F401  # before plotly loads what it spares

    _register()


class _Screen:
    """The live chart of a run: drawn at most once in `every` seconds and for at most a twentieth of the time."""

    def __init__(self, study: Study, watch: str | None, every: float):
        self.study, self.watch, self.every = study, watch, every
        self.begun = self.drawn = time.monotonic()
        self.lab = self.chart = self.line = None

    def __call__(self, lab, arm, tick) -> None:
        self.lab = lab
        if (begun := time.monotonic()) - self.drawn >= self.every:
            self.draw()
            self.drawn = time.monotonic()
            self.every = max(self.every, 20 * (self.drawn - begun))

    def draw(self, note: str = "") -> None:
        text = f"{self.study.slug}: {self.lab.done:,} of {self.lab.total:,} steps, {len(self.lab.seeds)} seeds{note}"
        self.line = _display({"text/plain": text}, self.line)
        try:  # no trouble in drawing may cost what the run has found
            if in_kernel() and (fig := self._figure()) is not None:
                self.chart = _display(_bundle(fig), self.chart)
        except Exception as error:
            self.line = _display({"text/plain": f"{text}; no chart: {type(error).__name__}: {error}"}, self.line)

    def close(self, name: str) -> None:
        if self.lab is not None:
            self.draw(f", {time.monotonic() - self.begun:.1f} s, run {name}")

    def _figure(self):
        from claimlab import figures

        table = self.lab.table
        steps = table.groupby("metric")["step"].nunique()
        wanted = [self.watch, *(c.metric for c in self.study.claims), "loss", *steps.index]
        metric = next((m for m in wanted if m in steps.index and steps[m] > 1), None)
        if metric is None:
            return None
        claim = next((c for c in self.study.claims if c.metric == metric), self.study.claims[0])
        title = f"{metric.replace('_', ' ')} while the arms run"
        return figures.curve(
            table, metric, title=title, y_title=metric.replace("_", " "), baseline=claim.baseline, method=claim.arm
        )
