"""The front door: every study by the question it asks, with the verdicts of its claims; search and filters live in the URL."""

import streamlit as st
from panels import atlas, cards, search, store

st.title("Does the paper's claim hold when you turn the knobs yourself?", anchor=False)
with store.guarded():
    found = sorted(store.studies(), key=lambda s: bool(s.broken))
    standings = store.standings([s for s in found if not s.broken])
    going = store.alive()

filters = search.bar(found)
with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    st.markdown(cards.summary(found, standings), width="content")
    cards.running(going)
matching = search.matching(found, standings, filters)
if not matching:
    search.explain(found, standings, filters)
if clicked := atlas.show(found, standings, [s.slug for s in matching]):
    st.switch_page("app_pages/study.py", query_params={"study": clicked})
cards.grid(matching, standings, going, filters.q)
