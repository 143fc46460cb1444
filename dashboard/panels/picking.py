"""The runs of one study as a table: filtered, sorted by the effect of a claim with the best on top, picked for comparison."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st
from panels import knobs, store
from panels.wording import changed, plain, setting

from claimlab.claims import Claim
from claimlab.study import Study

MOST = 5000  # runs of a study that are read
AT_MOST = 8  # runs that are laid over each other
TOP = 2  # of the best, where nobody has chosen yet


def gathered(study: Study) -> list[dict[str, Any]]:
    """The study's runs, newest first, each with `judged`: its verdicts by claim. Two queries, whatever their number."""
    rows = store.ledger().runs(study=study.slug, limit=MOST)
    # verdicts are written before a run ends, so that they are read anew only when one has begun or ended
    judged = _judged(study.slug, tuple((row["id"], row["status"]) for row in rows), store.ledger().url)
    return [{**row, "judged": judged.get(row["id"], {})} for row in rows]


@st.cache_data(max_entries=4, show_spinner=False)
def _judged(slug: str, state: tuple, url: str) -> dict[str, dict[str, dict[str, Any]]]:
    found = store.ledger().verdicts_of(slug)
    return {run: {v["claim"]: v for v in verdicts if not v["control"]} for run, verdicts in found.items()}


def choice(label: str, name: str, options: Sequence[str], *, usual: str, scope: str, place: Any = st, **facts: Any) -> str:
    """A choice that the address keeps, as `?name=value`; an unknown value in the address falls back to the usual one."""
    key = f"compare-{name}-{scope}"
    if st.session_state.get(key) not in options:
        wanted = st.query_params.get(name, usual)
        st.session_state[key] = wanted if wanted in options else usual
    value = place.selectbox(label, options, key=key, **facts)
    if value != usual:
        st.query_params[name] = value
    else:
        st.query_params.pop(name, None)
    return value


def ranked(rows: Sequence[dict[str, Any]], claim: Claim) -> list[dict[str, Any]]:
    """The runs by the effect of a claim, best first; those without one after them, newest first."""
    sign = -1 if claim.better == "higher" else 1

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        effect = effect_of(row, claim)
        return effect is None, 0.0 if effect is None else sign * effect

    return sorted(rows, key=place)


def effect_of(row: dict[str, Any], claim: Claim) -> float | None:
    """The effect of a claim in a run; None where it was not judged or has none."""
    effect = row["judged"].get(claim.id, {}).get("effect")
    return effect if effect is not None and math.isfinite(effect) else None


def usual_of(study: Study, row: dict[str, Any]) -> dict[str, Any]:
    """The paper's setting at the profile of a run."""
    return knobs.usual(study, row["profile"] if row["profile"] in ("smoke", "default", "full") else "default")


def table(study: Study, rows: Sequence[dict[str, Any]], claim: Claim, chosen: Sequence[str], pinned: str) -> list[str]:
    """Draw filter and table, the run `pinned` as baseline on top; the ids of the runs that are picked, in the table's order."""
    usual = {profile: knobs.usual(study, profile) for profile in ("smoke", "default", "full")}
    text, words = st.columns([3, 2], vertical_alignment="bottom")
    wanted = text.text_input("Filter", key="compare-filter", icon=":material/filter_list:", placeholder="a knob, a verdict, a profile",
                             help="words that a row must all have, as: alpha = 2 supported").lower().split()  # fmt: skip
    kinds = words.pills(
        "Verdict", ("supported", "refuted", "undecided"), selection_mode="multi", key="compare-verdict", wrap=True
    )
    lines = [_line(row, claim, usual.get(row["profile"], usual["default"])) for row in ranked(rows, claim)]
    shown = [line for line in lines if _passes(line, wanted, kinds) or line["run"] == pinned]
    shown.sort(key=lambda line: line["run"] != pinned)
    if not [line for line in shown if _passes(line, wanted, kinds)]:
        st.info(f"None of the {len(lines)} runs has all of these words; take one away.", icon=":material/filter_list_off:")
        return [run for run in chosen if any(row["id"] == run for row in rows)]
    st.caption(f"{len(shown):,} of {len(lines):,} runs; best on top by the effect of the claim, {claim.better} is better; the baseline "
               f"is pinned. Tick up to {AT_MOST} rows to compare them.")  # fmt: skip
    names = [line["run"] for line in shown]
    mark = hashlib.sha256("".join([study.slug, claim.id, *names]).encode()).hexdigest()[:12]
    frame = pd.DataFrame([{"": "baseline" if line["run"] == pinned else "", **line} for line in shown])
    picked = st.dataframe(
        frame, hide_index=True, height=min(38 + 35 * len(shown), 330), key=f"runs-{mark}", on_select="rerun",
        selection_mode="multi-row", alt=f"Runs of {study.slug} by the effect of {claim.id}",
        selection_default={"selection": {"rows": [names.index(run) for run in chosen if run in names]}},
        column_config={"started": st.column_config.DatetimeColumn(format="D MMM, HH:mm"),
                       **{c: st.column_config.NumberColumn(format="%.3g") for c in ("effect", "low", "high")}},
    )  # fmt: skip
    return [names[i] for i in picked.selection.rows if i < len(names)] + [run for run in chosen if run not in names]


def _line(row: dict[str, Any], claim: Claim, usual: dict[str, Any]) -> dict[str, Any]:
    verdict = row["judged"].get(claim.id, {})
    started = pd.Timestamp(row["started"], unit="s") + pd.Timedelta(seconds=time.localtime(row["started"]).tm_gmtoff)
    what = ("negative control: " if row["control"] else "") + changed(row["params"], usual)
    effects = {"effect": effect_of(row, claim), "low": verdict.get("low"), "high": verdict.get("high")}
    return {"verdict": verdict.get("verdict", row["status"]), **effects, "n": verdict.get("n", len(row["seeds"])), "knobs": what,
            "profile": row["profile"], "started": started, "run": row["id"]}  # fmt: skip


def _passes(line: dict[str, Any], words: Sequence[str], kinds: Sequence[str]) -> bool:
    text = " ".join(str(line[name]) for name in ("verdict", "knobs", "profile", "run")).lower()
    return all(word in text for word in words) and (not kinds or line["verdict"] in kinds)


def first(study: Study, rows: Sequence[dict[str, Any]], claim: Claim) -> list[str]:
    """What is compared where nobody has chosen: the best runs and the newest one at the paper's setting."""
    judged = [row for row in ranked(rows, claim) if effect_of(row, claim) is not None and not row["control"]] or list(rows)
    paper = [row for row in judged if row["params"] == usual_of(study, row)]
    return list(dict.fromkeys([row["id"] for row in judged[:TOP]] + [row["id"] for row in paper[:1]]))


def baseline_of(study: Study, rows: Sequence[dict[str, Any]]) -> str:
    """The run that others are compared with where nobody has chosen: one at the paper's setting, else the last of these."""
    return next((row["id"] for row in rows if row["params"] == usual_of(study, row)), rows[-1]["id"] if rows else "")


def labels(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A short name for each run: the knobs in which these runs differ, else its time; never the same for two."""
    names = [n for n in rows[0]["params"] if len({str(r["params"].get(n)) for r in rows}) > 1] if rows else []
    found: dict[str, str] = {}
    for row in rows:
        text = ", ".join(f"{n} = {setting(row['params'].get(n))}" for n in names[:3]) or time.strftime(
            "%d %b %H:%M:%S", time.localtime(row["started"])
        )
        text = f"control, {text}" if row["control"] else text
        found[row["id"]] = f"{text} ({row['id'][-6:]})" if text in found.values() or len(names) > 3 else text
    return found


def empty(study: Study) -> None:
    """What to do where a study has no runs."""
    st.info(
        "This study has no runs here yet. Run it with a few settings of its knobs; then they can be compared.",
        icon=":material/compare_arrows:",
    )
    st.page_link(
        "app_pages/study.py", label=f"Open {plain(study.slug)}", icon=":material/experiment:", query_params={"study": study.slug}
    )
