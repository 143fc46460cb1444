"""All reports: which claims hold, what changed since the one before, what failed and why; and a new one. ?report=FOLDER."""

import streamlit as st
from panels import calendar, reporting, reports, store

st.title("Reports", anchor=False)
with store.guarded():
    found = reports.found()
    reporting.panel()
    with st.expander("New report", icon=":material/add:", expanded=not found, key="new-report"):
        reporting.form(store.studies())
    calendar.panel()
    if found:
        reports.show(reports.listing(found), found)
    else:
        st.info(
            "A report runs studies, judges their claims and writes a page for each, with an index. Start one above, or type "
            "`claimlab report --all`.",
            title="No report yet",
            icon=":material/summarize:",
        )
