"""The dashboard's navigation. Each page is a script under app_pages/ (a folder `pages/` would be taken for an older
kind of multipage app on a fresh server); what two pages show stands in panels/."""

import streamlit as st
from panels import gate

st.set_page_config(page_title="claimlab", page_icon=":material/science:", layout="wide")
page = st.navigation(
    [
        st.Page("app_pages/catalogue.py", title="Catalogue", icon=":material/search:", default=True,
                help="All studies by the question they ask: search, filter, and see which claims hold."),
        st.Page("app_pages/study.py", title="Study", icon=":material/experiment:", url_path="study",
                help="One study: turn its knobs, run it, watch the curves and read the verdicts."),
        st.Page("app_pages/live.py", title="Live", icon=":material/monitoring:", url_path="live",
                help="Every run that goes on: watch it, steer it, fork it, and see what each command did."),
        st.Page("app_pages/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare",
                help="Runs of a study beside each other, and how its claim goes with the knobs."),
        st.Page("app_pages/sweeps.py", title="Sweeps", icon=":material/grid_on:", url_path="sweeps",
                help="A claim over a whole space of knobs: where it holds, which knob moves it, what is best."),
        st.Page("app_pages/reports.py", title="Reports", icon=":material/summarize:", url_path="reports",
                help="Which claims hold over many studies, what changed since the last time, and what failed."),
    ],
    position="top" if gate.passed() else "hidden",
)  # fmt: skip
gate.enter()
page.run()
