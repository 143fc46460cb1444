"""How far a report is, on the error stream: one bar over all its runs with an estimate; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from claimlab.reports.making import State
from claimlab.reports.planning import Item
from claimlab.reports.timing import span


@contextmanager
def shown(console: Console) -> Iterator[Callable[[State], None]]:
    """What tells the person before `console` how far a report is."""
    if not console.is_terminal:
        yield Lines(console)
        return
    said, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    columns = (SpinnerColumn(), said, BarColumn(bar_width=None), note, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as drawn:
        yield Bars(drawn)


class Bars:
    """The bar of the whole report, and under it one for each run that goes on."""

    def __init__(self, drawn: Progress):
        self.drawn, self.whole = drawn, drawn.add_task("report", total=1.0, note="")
        self.lines: dict[Item, TaskID] = {}

    def __call__(self, state: State) -> None:
        self.drawn.update(self.whole, completed=state.share, description=f"report: {state.over} of {len(state.items)} runs",
                          note=left(state))  # fmt: skip
        for item in state.going:
            if item not in self.lines:
                self.lines[item] = self.drawn.add_task(item.name, total=1, note="")
            self.drawn.update(self.lines[item], completed=item.done, total=max(item.total, 1), note=item.text,
                              description=item.name)  # fmt: skip
        for item in [one for one in self.lines if one.ended]:
            self.drawn.remove_task(self.lines.pop(item))


class Lines:
    """A line when a run begins and when it has ended; for logs, pipes and schedulers."""

    def __init__(self, console: Console):
        self.console, self.told = console, set()

    def __call__(self, state: State) -> None:
        running = [one for one in state.items if not one.reused]
        if not self.told:
            self._say(f"{len(state.items)} runs: {len(state.items) - len(running)} are fresh and reused, {len(running)} to run")
            self.told.add("plan")
        for item in running:
            if item.began and (item, "began") not in self.told:
                self.told.add((item, "began"))
                self._say(f"{item.name}: started ({'; '.join(one['kind'] for one in item.why)})")
            if item.ended and (item, "ended") not in self.told:
                self.told.add((item, "ended"))
                self._say(f"[{state.over}/{len(state.items)}] {item.name}: {ending(item)}" + (f", {left(state)}" if left(state) else ""))

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def ending(item: Item) -> str:
    """What became of a run, in words."""
    if item.failure is not None:
        return f"{item.failure[0]}: {item.failure[1]}"
    if item.outcome is None:
        return "not run, since the study has failed"
    words = [v["verdict"] for v in item.outcome.verdicts]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    found = f"{item.outcome.status} in {span(item.outcome.seconds)}"
    return f"{found}: {item.outcome.reason}" if item.outcome.reason else f"{found}, {counts}" if counts else found


def left(state: State) -> str:
    """The time that is left in words; empty while nobody knows it."""
    if state.left is None or state.share >= 1:
        return ""
    return f"about {span(state.left)} left"
