"""`claimlab diff`: what differs between two runs or two reports, and the first step at which their numbers part."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claimlab.params import KnobError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12  # lines of numbers that part in the text; the JSON has them all
KEY = ["arm", "seed", "metric"]
JUDGED = ("verdict", "effect", "low", "high", "n", "control")


@dataclass(frozen=True)
class Result:
    """What one run said of a study, or one report of it; `run` is empty where nothing is known of the run."""

    study: str
    run: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)


def load(book: Any, name: str) -> dict[str, Result]:
    """The results of a run (its id) or a report (its folder) by study; LedgerError or KnobError where there is none."""
    if (folder := Path(name)).is_dir():
        return _report(folder)
    row = book.run(name)
    settings = {**row["params"], "profile": row["profile"], "negative control": bool(row["control"])}
    verdicts = {v["claim"]: v for v in book.verdicts(name) if not v["control"]}
    return {row["study"]: Result(row["study"], name, {**settings, "seeds": len(row["seeds"])}, row["versions"], verdicts)}


def _report(folder: Path) -> dict[str, Result]:
    whole, table = folder / "report.json", folder / "verdicts.csv"
    if whole.exists():
        try:
            said = json.loads(whole.read_text(encoding="utf-8"))
            verdicts: dict[str, dict] = {}
            for v in said["verdicts"]:
                verdicts.setdefault(v["study"], {})[v["claim"]] = v
            return {one["study"]: Result(one["study"], one["run"], {**one["params"], "profile": said["profile"]}, one["versions"],
                                         verdicts.get(one["study"], {})) for one in said["studies"]}  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise KnobError(f"{whole} is no report of claimlab: {type(error).__name__}: {error}") from None
    if not table.exists():
        raise KnobError(f"{folder} is no report: it has neither report.json nor verdicts.csv")
    found: dict[str, Result] = {}
    with table.open(encoding="utf-8", newline="") as text:
        for line in csv.DictReader(text):
            if not {"study", "claim", "verdict"} <= set(line):
                raise KnobError(f"{table} is no table of verdicts: the columns study, claim and verdict are needed")
            one = found.setdefault(line["study"], Result(line["study"], settings={"profile": line.get("profile")}))
            one.verdicts[line["claim"]] = {k: _number(line.get(k)) for k in JUDGED}
    return found


def _number(text: str | None) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text or None


def diff(book: Any, a: str, b: str) -> dict[str, Any]:
    """What differs: `only_a` and `only_b` (studies), and for each other study that differs its knobs, source, versions and
    verdicts as {name: [in a, in b]} and `numbers` (see `parted`). KnobError for runs of different studies."""
    one, other = load(book, a), load(book, b)
    if not (both := [study for study in one if study in other]):
        told_of = [", ".join(side) or "nothing" for side in (one, other)]
        raise KnobError(f"{a} is about {told_of[0]}, {b} about {told_of[1]}: there is no study to compare")
    found = {study: between(book, one[study], other[study]) for study in both}
    return {"a": a, "b": b, "only_a": [s for s in one if s not in other], "only_b": [s for s in other if s not in one],
            "compared": both, "studies": {study: facts for study, facts in found.items() if any(facts.values())}}  # fmt: skip


def between(book: Any, a: Result, b: Result) -> dict[str, Any]:
    """The differences of two results of one study; all entries are empty where there are none."""
    old, new = (_split(one.versions) for one in (a, b))
    judged = [{c: {k: v.get(k) for k in JUDGED} for c, v in one.verdicts.items()} for one in (a, b)]
    known = bool(a.versions and b.versions)
    return {
        "settings": _changed(a.settings, b.settings),
        "source": _changed(old[0], new[0]) if known else {},
        "versions": _changed(old[1], new[1]) if known else {},
        "verdicts": _changed(*judged),
        "numbers": _numbers(book, a.run, b.run),
    }


def _split(versions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hashes of the source by file, and the versions of libraries (own data and the notebook count as source)."""
    rest = dict(versions)
    sources, data = rest.pop("sources", {}), rest.pop("data", {})
    files = sources if isinstance(sources, dict) else {"source": sources}
    return {**files, **data, "notebook": rest.pop("notebook", "")}, rest


def _changed(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    return {k: [a.get(k), b.get(k)] for k in {**a, **b} if a.get(k) != b.get(k)}


def _numbers(book: Any, a: str, b: str) -> dict[str, Any]:
    from claimlab.ledger import LedgerError

    if not (a and b) or a == b:
        return {}
    try:
        return parted(book.table(a), book.table(b))
    except LedgerError as gone:  # a report outlives the runs it speaks of
        return {"unknown": str(gone)}


def parted(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, Any]:
    """Where two tidy tables part: `first`, for each arm, seed and metric of both whose values differ (by a bit; NaN equals
    NaN) the first such step with both values, earliest first; `only_a`, `only_b`: curves that one of them alone has;
    `longer`: curves that go on in one of them. Empty for equal tables."""
    one, other = (t.drop_duplicates([*KEY, "step"], keep="last")[[*KEY, "step", "value"]] for t in (a, b))
    both = one.merge(other, on=[*KEY, "step"], suffixes=("_a", "_b"))
    differ = (both["value_a"] != both["value_b"]) & ~(both["value_a"].isna() & both["value_b"].isna())
    first = both[differ].sort_values("step", kind="stable").drop_duplicates(KEY)
    ends = [t.groupby(KEY)["step"].max().to_dict() for t in (one, other)]
    found = {
        "first": first.rename(columns={"value_a": "a", "value_b": "b"}).to_dict("records"),
        "only_a": [list(key) for key in ends[0] if key not in ends[1]],
        "only_b": [list(key) for key in ends[1] if key not in ends[0]],
        "longer": [[*key, end, ends[1][key]] for key, end in ends[0].items() if key in ends[1] and end != ends[1][key]],
    }  # fmt: skip
    return found if any(found.values()) else {}


# ---- in words


def told(found: dict[str, Any]) -> str:
    """The differences as text, a paragraph a study."""
    lines = [f"only in {found[side]}: {', '.join(found[f'only_{side}'])}" for side in "ab" if found[f"only_{side}"]]
    for study, facts in found["studies"].items():
        lines += [study, *(f"  {line}" for line in _study(facts))]
    every = len(found["compared"])
    if same := every - len(found["studies"]):
        lines.append(f"{same} of {every} studies compared: no difference" if every > 1 else "no difference")
    return "\n".join(lines)


def _study(facts: dict[str, Any]) -> list[str]:
    lines = [f"{kind}: " + "; ".join(f"{k} {_short(a)} -> {_short(b)}" for k, (a, b) in facts[kind].items())
             for kind in ("settings", "versions") if facts[kind]]  # fmt: skip
    if files := list(facts["source"]):
        lines.append(f"source: {', '.join(files[:SHOWN])}" + (f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""))
    for claim, (a, b) in facts["verdicts"].items():
        lines.append(f"verdict of {claim}: {_verdict(a)} -> {_verdict(b)}")
    return lines + _parting(facts["numbers"])


def _parting(numbers: dict[str, Any]) -> list[str]:
    if "unknown" in numbers:
        return [f"numbers: not compared, {numbers['unknown']}"]
    lines = [f"numbers of {where} alone: " + ", ".join(sorted({f"{arm}, seed {seed}" for arm, seed, _ in numbers[key]})[:SHOWN])
             for where, key in (("the first", "only_a"), ("the second", "only_b")) if numbers.get(key)]  # fmt: skip
    if longer := numbers.get("longer"):
        lines.append(f"numbers: {len(longer)} curves end at another step, {longer[0][0]} at {longer[0][-2]} -> {longer[0][-1]}")
    first = numbers.get("first") or []
    if first:
        lines.append(f"numbers part first at step {first[0]['step']}; {len(first)} curves differ:")
        lines += [f"  {f['arm']}, seed {f['seed']}, {f['metric']}: step {f['step']}: {f['a']:.9g} -> {f['b']:.9g}" for f in first[:SHOWN]]
        lines += [f"  and {len(first) - SHOWN} more" if len(first) > SHOWN else ""]
    return [line for line in lines if line]


def _verdict(one: dict[str, Any] | None) -> str:
    if one is None:
        return "none"
    side = [f"{one[k]:+.3g}" if isinstance(one.get(k), int | float) else "-" for k in ("effect", "low", "high")]
    n = f", n = {one['n']:g}" if isinstance(one.get("n"), int | float) else ""
    return f"{one['verdict']} ({side[0]} [{side[1]}, {side[2]}]{n})"


def _short(value: Any) -> str:
    return "none" if value is None else str(value)
