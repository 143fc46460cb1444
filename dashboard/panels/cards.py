"""The catalogue's cards: a question, its paper, and each claim with its verdict; a broken study with its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import streamlit as st
from panels import search
from panels.store import Standing
from panels.wording import STATUS, ago, badge, humanised, measured, plain, span

from claimlab.study import Study

PAGE = 24
LIVE = Path(__file__).resolve().parents[1] / "app_pages" / "live.py"
FOUND = ":material/search:"


def summary(found: list[Study], standings: dict[str, Standing]) -> str:
    """How many studies and claims there are, and how they came out."""
    whole = [s for s in found if not s.broken]
    counts: Counter[str] = Counter()
    for one in whole:
        known = standings[one.slug].verdicts
        counts.update(known[c.id]["verdict"] if c.id in known else "not run yet" for c in one.claims)
    parts = [f"{len(whole)} {'study' if len(whole) == 1 else 'studies'}", f"{counts.total()} claims"]
    parts += [f"{counts[word]} {word}" for word in ("supported", "refuted", "undecided", "not run yet") if counts[word]]
    if len(whole) < len(found):
        parts.append(f"{len(found) - len(whole)} broken")
    return " · ".join(parts)


def running(going: list[dict[str, Any]]) -> None:
    """How many runs go on now, with the way to them."""
    text = f"running now: {len(going)}"
    if LIVE.exists():
        st.page_link("app_pages/live.py", label=text, icon=":material/monitoring:")
    else:
        st.markdown(text)


def grid(found: list[Study], standings: dict[str, Standing], going: list[dict[str, Any]], query: str = "") -> None:
    """Cards, as many beside each other as there is room for, and so many on a page that it answers at once."""
    pages = -(-len(found) // PAGE)
    place = st.container()
    number = 1
    if pages > 1:
        with st.container(horizontal_alignment="center"):
            number = min(st.pagination(pages, key="page", bind="query-params"), pages)
    with place, st.grid(3, min_column_width=330, gap="medium"):
        for one in found[PAGE * (number - 1) : PAGE * number]:
            with st.container(border=True, height="stretch", key=f"card-{one.slug}"):
                if one.broken:
                    _broken(one)
                else:
                    _card(one, standings[one.slug], next((r for r in going if r["study"] == one.slug), None), query)


def _card(one: Study, standing: Standing, going: dict[str, Any] | None, query: str) -> None:
    st.subheader(plain(one.paper.question), anchor=False)
    st.caption(f"{plain(one.paper.system)}, {one.paper.year} · {humanised(one.family)} · {one.paper.theme}")
    for place, text in search.where(one, query) if query else ():
        st.caption(f"{FOUND} {plain(place)}: {text}")
    for claim in one.claims:
        verdict = standing.verdicts.get(claim.id)
        shown = verdict["verdict"] if verdict else "not run yet"
        numbers = f"  \n:small[:gray[{plain(measured(verdict))}]]" if verdict else ""
        st.markdown(f"{badge(shown)} {plain(humanised(claim.id))}{numbers}", help=plain(claim.text))
    st.space("stretch")
    took = f" · takes about {span(standing.seconds)}" if standing.seconds else ""
    if going:
        share = f", {100 * (going['done'] or 0) // going['total']} % done" if going["total"] else ""
        st.caption(f"{STATUS[going['status']]} {going['status']}{share}")
    elif standing.run:
        n = len(standing.run["seeds"])
        st.caption(
            f"Last run {ago(standing.run['ended'] or standing.run['started'])}, {standing.run['profile']} profile, n = {n} seeds{took}"
        )
    else:
        st.caption("Reference results of the project" if standing.reference else "Not run yet")
    st.page_link("app_pages/study.py", label="Open the study", icon=":material/experiment:", query_params={"study": one.slug})


def _broken(one: Study) -> None:
    st.subheader(plain(humanised(one.slug)), anchor=False)
    st.caption(humanised(one.family))
    st.error(plain(one.broken), title="This study is broken", icon=":material/build:")
    st.caption(plain(f"Mend {one.path.name}; the page follows the file. All other studies work."))
