"""The verdicts of a report as one picture: each claim's interval seen from its margin, in units of its own width."""

from __future__ import annotations

import io
from typing import Any

COLOURS = {"supported": "#00785a", "refuted": "#b3400a", "undecided": "#5d6673"}
MARKS = {"supported": "o", "refuted": "X", "undecided": "D"}
MOST = 40
REACH = 4.0  # half-widths of an interval that are drawn to each side of the margin


def verdicts(found: dict[str, Any]) -> bytes:
    """A PNG of the claims that have an effect, changed ones first, 40 at most: past its margin is right of the line.

    Drawn without a browser. Every claim has its own unit, so that each interval is drawn with half-width 1 and its distance from
    the margin in that measure; what lies further away than 4 is drawn at the edge.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    changed = {(one["study"], one["claim"]) for one in found["changes"]}
    rows = [row for row in found["verdicts"] if row["effect"] is not None and row["threshold"] is not None]
    rows = sorted(rows, key=lambda row: (row["study"], row["claim"]) not in changed)[:MOST][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.28 * max(1, len(rows))), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#5d6673", linestyle="--", linewidth=1)
    for height, row in enumerate(rows):
        place, half = _seen(row)
        ends = [min(REACH, max(-REACH, one)) for one in (place - half, place, place + half)]
        axes.plot(ends, [height] * 3, color=COLOURS[row["verdict"]], linewidth=2)
        axes.plot(ends[1], height, MARKS[row["verdict"]], color=COLOURS[row["verdict"]], markersize=6)
    axes.set_yticks(range(len(rows)), [f"{r['study']}: {r['claim']}{' *' if (r['study'], r['claim']) in changed else ''}" for r in rows],
                    fontsize=8)  # fmt: skip
    axes.set_xlim(-REACH - 0.3, REACH + 0.3)
    axes.set_xlabel("short of the margin  |  past it (half-widths of the interval; * changed)", fontsize=8)
    axes.set_xticks([])
    for word, colour in COLOURS.items():
        axes.plot([], [], MARKS[word], color=colour, label=word)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    held = io.BytesIO()
    FigureCanvasAgg(figure).print_png(held)
    return held.getvalue()


def _seen(row: dict[str, Any]) -> tuple[float, float]:
    """Where the effect lies seen from the margin, past it to the right, and the half-width of what is drawn."""
    ends = [abs(row[side] - row["effect"]) for side in ("low", "high") if row[side] is not None]
    half = max(ends, default=0.0)
    distance = (row["effect"] - row["threshold"]) * (1 if row["better"] == "higher" else -1)
    if half == 0:
        return (0.0 if distance == 0 else REACH if distance > 0 else -REACH), 0.0
    return distance / half, 1.0
