"""A run's figures as files: PNG, SVG, HTML or plotly's JSON. A picture is drawn when somebody asks for it, not before."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import streamlit as st
from panels import charts
from panels.wording import humanised

FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "HTML": "text/html", "JSON": "application/json"}
DRAWN = ("PNG", "SVG")  # formats that a browser without a window draws
WIDTH, SCALE = 1000, 2  # pixels of a picture, and how many dots a pixel has


def panel(run: str, found: list[tuple[str, str]]) -> None:
    """Choose a figure and a format; `found` holds names and paths of the figures that a run has left."""
    why = cannot()
    left, right, button = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = left.selectbox("Figure", [name for name, _ in found], key="drawing", format_func=humanised)
    offered = [kind for kind in FORMATS if not (why and kind in DRAWN)]
    kind = right.segmented_control("As", offered, default=offered[0], required=True, key="drawing-as", wrap=True)
    path = dict(found).get(name)
    if path and kind in offered:
        button.download_button("Download figure", partial(drawn, path, kind), f"{run}-{name}.{kind.lower()}", FORMATS[kind],
                               icon=":material/image:", on_click="ignore", key=f"drawing-{name}-{kind}",
                               help="drawn when you press; takes some seconds" if kind in DRAWN else None)  # fmt: skip
    if why:
        st.caption(f"PNG and SVG cannot be made here: {why}.")


@st.cache_data(ttl=60, max_entries=1, show_spinner=False)
def cannot() -> str:
    """Why pictures cannot be drawn on this machine; empty if they can."""
    if importlib.util.find_spec("kaleido") is None:
        return "kaleido is not installed (pip install kaleido)"
    from choreographer.browsers.chromium import Chromium

    return "" if Chromium.find_browser(skip_local=False) else "neither Chromium nor Chrome is installed"


def drawn(path: str, kind: str) -> bytes:
    """A figure, which a run left as plotly's JSON, as a file of that kind, on white and in dark ink."""
    if kind == "JSON":
        return Path(path).read_bytes()
    figure = charts.load(path)
    if figure is None:
        raise FileNotFoundError(f"the figure {Path(path).name} cannot be read any more")
    figure.update_layout(paper_bgcolor="white", font_color=charts.INK["light"])
    if kind == "HTML":
        return figure.to_html(include_plotlyjs=True, config=charts.CONFIG).encode()
    return figure.to_image(format=kind.lower(), width=WIDTH, height=figure.layout.height, scale=SCALE if kind == "PNG" else 1)
