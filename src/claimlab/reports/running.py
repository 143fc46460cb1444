"""Runs what a report needs, side by side as cores and memory allow; one that fails stops no other, an interrupt stops all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from claimlab import admission, job, runner, warm
from claimlab.params import KnobError
from claimlab.reports.planning import Entry, Item
from claimlab.study import StudyError

LOOK = 0.25  # seconds between two looks at what goes on
UNSTARTED = ("stopped", "the report was interrupted before it ran")


@dataclass(eq=False)
class Hands:
    """Runs items of a report for a ledger, `abreast` at most at a time; `look` is told of every change."""

    book: Any
    abreast: int
    look: Callable[[], None] = lambda: None
    over: threading.Event = field(default_factory=threading.Event)
    held: dict[Item, int] = field(default_factory=dict)  # the most memory that each was seen to hold

    def run(self, entries: Iterable[Entry]) -> None:
        """Run what is not reused: studies before controls, the longest first, so that no long one is left for the end."""
        entries = list(entries)
        mains = {one.study.slug: one.main for one in entries}
        items = [item for one in entries for item in (one.main, one.control) if item is not None and not item.reused]
        waiting = sorted(items, key=lambda i: (i.control, -(i.expected or 0.0)))
        going: dict[Future, Item] = {}
        with _interrupts(self), warm.kernels(), ThreadPoolExecutor(self.abreast) as pool:
            while waiting or going:
                while (item := self._next(waiting, going.values())) is not None:
                    waiting.remove(item)
                    if (refusal := self._refusal(item, mains)) is not None:
                        item.failure = refusal if refusal[0] else None
                        item.ended = monotonic()
                    else:
                        item.began = monotonic()
                        going[pool.submit(self._one, item)] = item
                for ended in wait(going, LOOK, FIRST_COMPLETED).done:
                    self._keep(going.pop(ended))
                    ended.result()
                self._measure(going.values())
                self.look()

    def _refusal(self, item: Item, mains: dict[str, Item]) -> tuple[str, str] | None:
        """Why an item is not started any more; ('', '') for the control of a study that has failed, which says nothing."""
        if self.over.is_set():
            return UNSTARTED
        main = mains[item.study.slug]
        failed = main.failure is not None or main.outcome is not None and main.outcome.status != "finished"
        return ("", "") if item.control and failed else None

    def _next(self, waiting: list[Item], going: Iterable[Item]) -> Item | None:
        """The first that may start now. One that needs much memory is not passed by: it would wait for ever."""
        if not waiting or self.over.is_set():
            return waiting[0] if waiting else None
        held = [(one.memory, self.held.get(one, 0)) for one in going]
        return waiting[0] if admission.admits(waiting[0].memory, held, self.abreast) else None

    def _one(self, item: Item) -> None:
        def tell(done: int, total: int, text: str) -> None:
            item.done, item.total, item.text = done, total, text
            if self.over.is_set() and not all(one.stopping for one in job.ACTIVE):
                stop_all()  # an interrupt that came while this run was on its way

        try:
            item.outcome = runner.run(item.study.slug, profile=item.wanted["profile"], control=item.control, ledger=self.book,
                                      progress=tell)  # fmt: skip
        except (KnobError, StudyError) as error:
            item.failure = ("failed", str(error))
        except Exception as error:  # whatever breaks here is this study's failure and no other's
            item.failure = ("failed", f"{type(error).__name__}: {error}")
        finally:
            item.ended = monotonic()

    def _measure(self, going: Iterable[Item]) -> None:
        """Keep how much memory the kernel of each run holds; a kernel under way is known by its study."""
        kernels = {(one.study.slug, one.control): one.process for one in list(job.ACTIVE)}
        for item in going:
            if (process := kernels.get((item.study.slug, item.control))) is not None:
                self.held[item] = max(self.held.get(item, 0), admission.resident(process.pid))

    def _keep(self, item: Item) -> None:
        if item.outcome is None:
            return
        if item in self.held:
            self.book.event(item.outcome.run, admission.EVENT, payload={"bytes": self.held[item]})
        if item.outcome.status == "stopped" and any(e["kind"] == "interrupted" for e in self.book.events(item.outcome.run)):
            self.over.set()  # by the person at this terminal, not by a command from elsewhere


@contextmanager
def _interrupts(hands: Hands):
    """SIGTERM and Ctrl-C stop the runs under way and start no other; what there is stays. A second one kills them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def obey(number, frame):
        hands.over.set()
        stop_all()

    before = {s: signal.signal(s, obey) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_all() -> None:
    """Stop every run of this process."""
    for one in list(job.ACTIVE):
        with suppress(KeyboardInterrupt):  # raised where there is no kernel yet; the job knows all the same
            one.stop()
