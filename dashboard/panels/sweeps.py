"""One sweep: how far it is, in what share of its space a claim holds, its best settings, which knob matters, and tuned arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st
from panels import charts, picking, store
from panels.wording import ago, humanised, plain, setting

from claimlab.claims import Claim
from claimlab.ledger import ALIVE
from claimlab.study import Study, StudyError
from claimlab.sweeps import results, sensitivity, tuning
from claimlab.sweeps.book import Book

EVERY = 2.0
STEP = 0.05  # of all settings, after which the page is drawn anew
KINDS = {"sweep": "sweep", "sensitivity": "sensitivity analysis", "tune": "tuning"}


def book() -> Book:
    """The ledger with sweeps that this process shares."""
    return _book(store.ledger().url)


@st.cache_resource(max_entries=4, show_spinner=False)
def _book(url: str) -> Book:
    return Book(url)


def named(row: dict[str, Any]) -> str:
    """A sweep in a list of sweeps."""
    return f"{row['name']} ({KINDS.get(row['kind'], row['kind'])}, {row['done']} of {row['total']}, {ago(row['started'])})"


def gathered(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a sweep as the panels over runs take them, in the order of the plan."""
    facts = {"control": False, "profile": row["plan"]["profile"], "seeds": row["plan"]["seeds"]}
    return [{**point, **facts, "id": point["run"] or ""} for point in results.rows(book(), row["name"])]


# ---- how far it is


def progress(row: dict[str, Any]) -> None:
    """A bar over the settings, and what runs now; it follows a sweep that goes on, and draws the page anew now and then."""
    going = row["status"] == "running"
    st.fragment(_progress, run_every=EVERY if going else None, key="sweep-progress")(row["name"], row["done"])


def _progress(name: str, drawn: int) -> None:
    row = next(one for one in book().sweeps() if one["name"] == name)
    points = book().points(name)
    running = [p["run"] for p in points if p["status"] in ALIVE]
    bad = [p for p in points if p["status"] in ("failed", "stopped", "lost")]
    state = {"running": "goes on", "finished": "complete"}.get(row["status"], row["status"])
    text = f"{row['done']:,} of {row['total']:,} settings finished; the sweep is {state}".replace("is goes", "goes")
    text += f", engine {row['engine']}" if row["engine"] else ""
    if row["status"] == "running" or row["done"] < row["total"]:
        st.progress(row["done"] / max(row["total"], 1), text=plain(text))
    else:
        st.caption(plain(f"{text}; {len(row['plan']['seeds'])} seeds each, profile {row['plan']['profile']}"))
    if row["status"] != "running" and row["done"] < row["total"]:
        st.caption("What is finished is kept: the same command goes on from here.")
    if running:
        st.page_link("app_pages/live.py", label=f"Watch and steer the {len(running)} that run now", icon=":material/monitoring:")
    for reason, count in pd.Series([p["reason"] or p["status"] for p in bad], dtype=str).value_counts().head(3).items():
        st.caption(f":material/error: {count} not finished: {plain(reason)}")
    due = max(1, STEP * row["total"]) if row["status"] == "running" else 1
    if row["done"] - drawn >= due:
        st.rerun(scope="app")


# ---- what it says


def share(claim: Claim, found: Sequence[dict[str, Any]], row: dict[str, Any]) -> results.Share:
    """In what share of the space the claim holds, how sure that is, and of which space."""
    one = results.share(claim, found, row["plan"])
    if not one.judged:
        st.info("No setting has been judged yet; a run that ends by itself is.", icon=":material/balance:")
        return one
    sampled = one.low is not None
    with st.grid(4, min_column_width=150):
        for word, count in (("holds", one.supported), ("refuted", one.refuted), ("undecided", one.undecided)):
            label = "Holds in" if word == "holds" else f"{word.capitalize()} in"
            st.metric(label, f"{100 * count / one.judged:.0f} %", f"{count} of {one.judged} settings", delta_color="off", delta_arrow="off",
                      border=True)  # fmt: skip
        side = f"{100 * one.low:.0f}–{100 * one.high:.0f} %" if sampled else "all"
        told = "of the knob space" if sampled else "settings of the grid"
        st.metric("95 % interval" if sampled else "Looked at", side, told, delta_color="off", delta_arrow="off", border=True)
    st.markdown(f"**{plain(humanised(one.sentence.partition('. The space: ')[0]))}.**")
    st.caption(f"The space: {plain(one.words)}.")
    return one


def best(study: Study, claim: Claim, found: Sequence[dict[str, Any]]) -> None:
    """The settings with the largest effect."""
    names = results.varied(study, found)
    lines = []
    for row in results.best(claim, found, 8):
        v = row["judged"][claim.id]
        lines.append({"verdict": v["verdict"], "effect": v["effect"], "low": v.get("low"), "high": v.get("high"), "n": v["n"],
                      **{humanised(n): setting(row["params"][n]) for n in names}, "run": row["run"]})  # fmt: skip
    st.caption("The best of many settings is partly luck: run it again with other seeds before you believe its size.")
    st.dataframe(pd.DataFrame(lines), hide_index=True, alt=f"Settings with the largest effect of {claim.id}",
                 column_config={c: st.column_config.NumberColumn(format="%+.3g") for c in ("effect", "low", "high")})  # fmt: skip


def influence(claim: Claim, found: Sequence[dict[str, Any]], row: dict[str, Any]) -> None:
    """Which knob moves the claim, by the analysis that the settings were made for."""
    try:
        indices = _indices(claim, claim.id, row["name"], tuple(p["run"] for p in found if p["status"] == "finished"))
    except StudyError as error:
        st.info(plain(error), icon=":material/hourglass_empty:")
        return
    first = indices.influences[0]
    title = f"{humanised(first.knob)} moves the claim most, by {'Sobol' if indices.method == 'sobol' else 'Morris'}, {indices.runs:,} runs"
    figure = sensitivity.figure(indices)
    charts.show(charts.legend_below(figure, figure.layout.height), key="influence", title=title, margin=14,
                alt=title + ". " + " ".join(indices.sentences))  # fmt: skip
    st.markdown("\n".join(f"- {plain(sentence)}" for sentence in indices.sentences[:-1]))


@st.cache_data(max_entries=8, show_spinner="Analysing")
def _indices(_claim: Claim, claim: str, name: str, finished: tuple[str, ...]) -> sensitivity.Indices:
    return sensitivity.analyse(_claim, results.rows(book(), name), book().sweep(name)["plan"])


def tuned(study: Study, row: dict[str, Any]) -> None:
    """The score of every arm at every value, and whether the arms are tuned equally."""
    knob = next(iter(row["plan"]["about"]["grid"]))
    points = [p for p in book().points(row["name"]) if p["status"] == "finished"]
    if not points:
        st.info("No run of this tuning has finished yet.", icon=":material/hourglass_empty:")
        return
    tables = {p["params"][knob]: book().table(p["run"]) for p in points}
    found = tuning.scores(study, knob, tables, row["plan"]["seeds"])
    seeds = f"development seeds {found.seeds[0]} to {found.seeds[-1]}, which are never judged"
    st.caption(plain(f"{found.metric}, {found.better} is better: {found.why}; {seeds}."))
    _score_curve(found)
    lines = [{"arm": arm, "best": setting(best.value) if (best := found.best(arm)) else "diverges",
              **{setting(s.value): s.score for s in found.scores if s.arm == arm}} for arm in found.arms]  # fmt: skip
    st.dataframe(pd.DataFrame(lines), hide_index=True, alt=f"Scores of each arm over {knob}",
                 column_config={setting(v): st.column_config.NumberColumn(format="%.4g") for v in found.grid})  # fmt: skip
    equally = tuning.tuned_equally(study)
    st.markdown(f"**Tuned equally: {equally.word}.** {plain(equally.sentence)}")


def _score_curve(found: tuning.Tuning) -> None:
    import plotly.graph_objects as go

    from claimlab import figures

    figure, hues = go.Figure(), figures.colours(found.arms)
    for arm in found.arms:
        here = [s for s in found.scores if s.arm == arm]
        figure.add_scatter(x=[s.value for s in here], y=[s.score for s in here], name=arm, mode="lines+markers", line={"color": hues[arm]})
    figures.style(figure, "", x=humanised(found.knob), y=humanised(found.metric), height=320)
    numbers = [v for v in found.grid if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(found.grid):
        figure.update_xaxes(type="category")
    elif min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
        figure.update_xaxes(type="log")
    title = "Best: " + ", ".join(f"{arm} at {setting(best.value)}" for arm in found.arms if (best := found.best(arm)))
    charts.show(charts.legend_below(figure, 320), key="tuned", title=f"{title}; n = {len(found.seeds)} seeds", margin=14, alt=title)


def usable(found: Sequence[dict[str, Any]], claim: Claim) -> list[dict[str, Any]]:
    """The settings that say something of a claim, each run once."""
    known = {row["id"]: row for row in found if picking.effect_of(row, claim) is not None}
    return list(known.values())
