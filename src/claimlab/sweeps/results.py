"""What a sweep says of a claim: a table of settings, the share of them in which it holds, the best ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claimlab.claims import Claim
from claimlab.study import Study
from claimlab.sweeps.book import Book

if TYPE_CHECKING:
    import pandas as pd

Z = 1.959963984540054  # 95 % of a normal distribution


@dataclass(frozen=True)
class Share:
    """In how many judged settings a claim is supported, refuted and undecided, and how many gave no verdict (failed, steered,
    diverged, or not yet run). [low, high] is the 95 % interval of the share of the space in which it is supported; of a grid, which
    is the whole of its space, there is none (None)."""

    claim: str
    supported: int
    refuted: int
    undecided: int
    silent: int
    low: float | None
    high: float | None
    words: str

    @property
    def judged(self) -> int:
        return self.supported + self.refuted + self.undecided

    @property
    def share(self) -> float:
        return self.supported / self.judged if self.judged else math.nan

    @property
    def sentence(self) -> str:
        """What is known, of which space, and how sure it is."""
        if not self.judged:
            return f"{self.claim}: no setting has been judged yet."
        most = (self.supported + self.undecided) / self.judged
        whole = f"[{100 * self.low:.0f}, {100 * self.high:.0f}]" if self.low is not None else ""
        what = f"knob space {whole}: it is supported in" if whole else "settings of the grid:"
        told = f"{self.claim} holds in {100 * self.share:.0f} % of the {what} {self.supported} of {self.judged}"
        told += f", refuted in {self.refuted}, undecided in {self.undecided}"
        if self.undecided:
            told += f" (it may be {100 * most:.0f} % with more seeds)"
        return told + (f"; {self.silent} gave no verdict" if self.silent else "") + f". The space: {self.words}."


def wilson(held: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. Points that fill a space evenly scatter less than the independent ones it is made for."""
    share, spread = held / count, Z * Z / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def rows(book: Book, name: str) -> list[dict[str, Any]]:
    """The points of a sweep: number, params, run, status, reason, and `judged`, the verdicts of its run by claim."""
    judged = book.judged(name)
    return [{**point, "judged": judged.get(point["run"], {})} for point in book.points(name)]


def effect(row: dict[str, Any], claim: str) -> float:
    """The effect of a claim at a point; NaN where it has none."""
    found = row["judged"].get(claim, {}).get("effect")
    return math.nan if found is None else float(found)


def share(claim: Claim, found: Sequence[dict[str, Any]], plan: dict[str, Any]) -> Share:
    """The share of the settings in which a claim holds, with the interval of the space where that was sampled.

    The sampled points are what is independent: where each of them is crossed with a grid, or has others derived from it as in an
    analysis of sensitivity, it counts once, by its part. Morris' points lie on a coarse grid and are no sample of the space.
    """
    words = [row["judged"][claim.id]["verdict"] for row in found if math.isfinite(effect(row, claim.id))]
    counts = {word: words.count(word) for word in ("supported", "refuted", "undecided")}
    low = high = None
    about = plan["about"]
    if about.get("drawn") and about["method"] != "morris" and words:
        parts: dict[Any, list[bool]] = {}
        for row in found:
            if math.isfinite(effect(row, claim.id)):
                at = tuple(row["params"][k] for k in about["drawn"]) if about["grid"] else row["number"] // about.get("block", 1)
                parts.setdefault(at, []).append(row["judged"][claim.id]["verdict"] == "supported")
        low, high = wilson(sum(sum(part) / len(part) for part in parts.values()), len(parts))
    return Share(claim.id, counts["supported"], counts["refuted"], counts["undecided"], len(found) - len(words), low, high, plan["words"])


def best(claim: Claim, found: Sequence[dict[str, Any]], most: int = 5) -> list[dict[str, Any]]:
    """The points with the largest effect in the claim's sense. The best of many is partly luck."""
    sign = -1.0 if claim.better == "higher" else 1.0
    known = [row for row in found if math.isfinite(effect(row, claim.id))]
    seen = {row["run"]: row for row in sorted(known, key=lambda row: -row["number"])}
    return sorted(seen.values(), key=lambda row: (sign * effect(row, claim.id), row["number"]))[:most]


def table(study: Study, found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a point and claim: number, all knobs, claim, verdict, effect, low, high, n, status, reason, run."""
    import pandas as pd

    lines = []
    for row in found:
        for claim in study.claims:
            v = row["judged"].get(claim.id, {})
            lines.append({"point": row["number"], **row["params"], "claim": claim.id, "verdict": v.get("verdict"),
                          **{k: v.get(k) for k in ("effect", "low", "high", "n")}, "status": row["status"] or "waiting",
                          "reason": row["reason"] or v.get("reason") or "", "run": row["run"]})  # fmt: skip
    return pd.DataFrame(lines)


def varied(study: Study, found: Sequence[dict[str, Any]]) -> list[str]:
    """The knobs that take more than one value over the points."""
    return [k.name for k in study.knobs if len({str(row["params"].get(k.name)) for row in found}) > 1]
