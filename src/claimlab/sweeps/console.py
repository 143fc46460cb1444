"""What the commands over sweeps print: a bar over settings while they run, then what they say of each claim."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from claimlab.claims import Claim
from claimlab.cli import tell
from claimlab.ledger import home
from claimlab.study import Study, find
from claimlab.sweeps import conduct, results
from claimlab.sweeps.book import Book
from claimlab.sweeps.child import Ended
from claimlab.sweeps.plan import Plan

ERRORS = Console(stderr=True)
OUT = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
TOLD = 5  # failures that are told one by one


def run(plan: Plan, options: Any) -> int:
    """Run a plan, print what it says, and return the exit code."""
    book = Book()
    try:
        tally = drive(plan, book, options)
        if options.json:
            tell(as_dict(book, tally.name), indent=None)
        else:
            show(book, tally.name)
        _write(options, book, tally.name)
    finally:
        book.close()
    return 0 if tally.done == tally.total else 1


def drive(plan: Plan, book: Book, options: Any) -> conduct.Tally:
    """Run a plan with a bar over its settings on the error stream."""
    name = options.name or conduct.name_of(plan)
    ERRORS.print(f"sweep {name}: {len(plan.points)} settings, {len(plan.seeds)} seeds each, engine {options.engine}", highlight=False)
    if plan.left_out:
        ERRORS.print(f"{plan.left_out} of the points drawn contradict the study's own rules and are left out", markup=False)
    shown = 0
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=None),
                  TextColumn("{task.completed:.0f}/{task.total:.0f} settings"), TimeElapsedColumn(), TimeRemainingColumn(),
                  console=ERRORS, transient=not ERRORS.is_terminal) as bar:  # fmt: skip
        line = bar.add_task(plan.study.slug, total=len(plan.points))

        def told(tally: conduct.Tally, ended: Ended | None) -> None:
            nonlocal shown
            bar.update(line, completed=tally.done)
            if ended is None and tally.before:
                ERRORS.print(f"{tally.before} of them are finished already", highlight=False)
            if ended is not None and ended.status != "finished" and (shown := shown + 1) <= TOLD:
                ERRORS.print(f"one run {ended.status}: {ended.reason}", style="red", markup=False)

        try:
            return conduct.conduct(plan, book, name=options.name, engine=options.engine, jobs=options.jobs, told=told)
        except KeyboardInterrupt:
            ERRORS.print("stopped; the same command goes on from here", highlight=False)
            raise


def as_dict(book: Book, name: str) -> dict[str, Any]:
    """The documented JSON of `claimlab sweep --json`."""
    row = book.sweep(name)
    study, found = find(row["study"]), results.rows(book, name)
    claims = []
    for claim in study.claims:
        one = results.share(claim, found, row["plan"])
        top = [{"point": r["number"], "run": r["run"], "effect": results.effect(r, claim.id)} for r in results.best(claim, found)]
        claims.append({"claim": claim.id, "share": one.share, "low": one.low, "high": one.high, "supported": one.supported,
                       "refuted": one.refuted, "undecided": one.undecided, "silent": one.silent, "sentence": one.sentence,
                       "best": top})  # fmt: skip
    points = [{k: r[k] for k in ("number", "params", "run", "status", "reason", "judged")} for r in found]
    return {"name": name, "study": row["study"], "kind": row["kind"], "status": row["status"], "engine": row["engine"], "plan": row["plan"],
            "claims": claims, "points": points}  # fmt: skip


def show(book: Book, name: str) -> None:
    """Print how a sweep stands and what it says of each claim."""
    row = book.sweep(name)
    study, found = find(row["study"]), results.rows(book, name)
    done = sum(r["status"] == "finished" for r in found)
    OUT.print(f"[bold]{name}[/] {row['status']}: {done} of {len(found)} settings, {len(row['plan']['seeds'])} seeds each")
    OUT.print(f"The space: {row['plan']['words']}.", markup=False)
    for claim in study.claims:
        OUT.print("\n" + results.share(claim, found, row["plan"]).sentence.partition(" The space:")[0], markup=False)
        if top := results.best(claim, found):
            OUT.print(_best(study, claim.id, top, results.varied(study, found)))
    bad = [r for r in found if r["status"] not in ("finished", None)]
    for one in bad[:TOLD]:
        OUT.print(f"point {one['number']} {one['status']}: {one['reason']}", style="red", markup=False)
    if done < len(found):
        OUT.print("The same command runs what is missing.")


def analyse(plan: Plan, claim: Claim, options: Any) -> int:
    """Run the design of an analysis of sensitivity, print what it says of a claim and draw it; the exit code."""
    from claimlab.sweeps import sensitivity

    book = Book()
    try:
        tally = drive(plan, book, options)
        indices = sensitivity.analyse(claim, results.rows(book, tally.name), plan.as_dict())
    finally:
        book.close()
    page = home() / "sweeps" / tally.name / f"sensitivity-{claim.id}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    sensitivity.figure(indices).write_html(page, include_plotlyjs=True)
    if options.json:
        tell({"name": tally.name, **dataclasses.asdict(indices), "sentences": indices.sentences, "figure": str(page)}, indent=None)
    else:
        OUT.print(f"[bold]{tally.name}[/] {tally.status}: {indices.runs} runs, {indices.method}")
        for sentence in indices.sentences:
            OUT.print("  " + sentence, markup=False)
        OUT.print(f"  figure: {page}", style="dim")
    return 0 if tally.done == tally.total else 1


def tune(plan: Plan, options: Any) -> int:
    """Run a tuning, keep its scores in data/tuned.csv, print the best value of each arm and whether all are tuned equally."""
    from claimlab.runner import provenance
    from claimlab.sweeps import tuning

    book = Book()
    try:
        tally = drive(plan, book, options)
        tables = {p["params"][options.tuned]: book.table(p["run"]) for p in book.points(tally.name) if p["status"] == "finished"}
    finally:
        book.close()
    if tally.done < tally.total:
        ERRORS.print(f"{tally.total - tally.done} of {tally.total} runs are not finished, so that nothing was written", style="red")
        return 1
    found = tuning.scores(plan.study, options.tuned, tables, plan.seeds, options.metric, options.better, tuning.elsewhere(plan))
    path = tuning.record(found, provenance(plan.study))
    equally = tuning.tuned_equally(plan.study, path)
    if options.json:
        best = {arm: one and {"value": one.value, "score": one.score} for arm in found.arms for one in [found.best(arm)]}
        tell({"name": tally.name, "study": found.study, "knob": found.knob, "metric": found.metric, "better": found.better,
              "why": found.why, "seeds": found.seeds, "grid": found.grid, "best": best,
              "tuned_equally": equally.answer, "sentence": equally.sentence,
              "scores": [{"arm": s.arm, "value": s.value, "score": s.score} for s in found.scores], "file": str(path)})  # fmt: skip
    else:
        _scores(found)
        OUT.print(f"Tuned equally: {equally.word}. {equally.sentence}", markup=False)
        OUT.print(f"in {path}", style="dim", markup=False)
    return 0


def _scores(found: Any) -> None:
    from claimlab.sweeps.tuning import at_the_end

    side = f"{found.better} is better, {found.why}; development seeds {found.seeds[0]} to {found.seeds[-1]}, never judged"
    OUT.print(f"{found.metric} ({side})", markup=False)
    drawn = Table(box=None)
    for column in (found.knob, *(f"{v:g}" if isinstance(v, float) else str(v) for v in found.grid), ""):
        drawn.add_column(column, no_wrap=True)
    for arm in found.arms:
        best, at = found.best(arm), {s.value: s for s in found.scores if s.arm == arm}
        cells = [f"{'[bold green]' if at[v] is best else '[dim]'}{at[v].score:.4g}[/]" for v in found.grid]
        drawn.add_row(arm, *cells, "best at the end of the grid: widen it" if at_the_end(found, arm) else "")
    OUT.print(drawn)


def _best(study: Study, claim: str, top: list[dict[str, Any]], names: list[str]) -> Table:
    drawn = Table(title="largest effects; the best of many is partly luck", title_justify="left", title_style="dim", box=None)
    for column in (*names, "effect", "95 % interval", "verdict", "run"):
        drawn.add_column(column, no_wrap=column in ("effect", "95 % interval", "verdict", "run"), overflow="fold")
    for row in top:
        v = row["judged"][claim]
        sides = ["" if v.get(k) is None else f"{v[k]:+.3g}" for k in ("low", "high")]
        drawn.add_row(*(f"{x:g}" if isinstance(x := row["params"][n], float) else str(x) for n in names), f"{v['effect']:+.3g}",
                      f"\\[{', '.join(sides)}]", v["verdict"], row["run"])  # fmt: skip
    return drawn


def list_sweeps(options: Any) -> int:
    book = Book()
    found = book.sweeps()
    book.close()
    if options.json:
        tell([{k: row[k] for k in ("name", "study", "kind", "status", "engine", "done", "total", "started", "ended")} for row in found])
    for row in [] if options.json else found:
        at = time.strftime("%d %b %H:%M", time.localtime(row["started"]))
        print(f"{row['name']:44} {row['kind']:12} {row['status']:12} {row['done']:>5}/{row['total']:<5} {at}  {row['study']}")
    if not found and not options.json:
        print("no sweep yet; one is started with: claimlab sweep STUDY --grid knob=a,b,c")
    return 0


def show_sweep(options: Any) -> int:
    book = Book()
    try:
        if options.json:
            tell(as_dict(book, options.sweep))
        else:
            show(book, options.sweep)
        _write(options, book, options.sweep)
    finally:
        book.close()
    return 0


def stop_sweep(options: Any) -> int:
    book = Book()
    row = book.sweep(options.sweep)
    book.conclude(options.sweep, None, "stopped")
    book.close()
    print(f"{options.sweep} stops" if row["status"] == "running" else f"{options.sweep} is not going on: it is {row['status']}")
    return 0


def _write(options: Any, book: Book, name: str) -> None:
    if getattr(options, "csv", None):
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        results.table(find(book.sweep(name)["study"]), results.rows(book, name)).to_csv(options.csv, index=False)
        ERRORS.print(f"table: {options.csv}", highlight=False)
