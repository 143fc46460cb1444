"""Every run that goes on, and one of them at the wheel: curves, steering, layers, lineage, events. ?run=ID reopens a view."""

import streamlit as st
from panels import watch

watch.page(st.query_params.get("run", ""))
