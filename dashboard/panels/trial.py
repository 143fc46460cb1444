"""Try it on an input of your own: the trained members of each arm answer side by side, with their disagreement."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from panels import charts, glance, looker, pad, source
from panels.wording import plain

from claimlab.study import Study

LARGEST = 4_000_000  # bytes of an upload
ROWS = 200  # of a table


def panel(study: Study, run: dict[str, Any] | None) -> None:
    """The input, and the answers of the networks of this run; says what to do where there is no run."""
    if run is None or not glance.at(run["id"]).kept:
        st.info("Run this study first, or open a past run: its trained networks answer here.", icon=":material/draw:")
        return
    name = st.segmented_control("What to try", list(study.trials), default=next(iter(study.trials)), key=f"{study.slug}-trial")
    if name is None:
        return
    trial = study.trials[name]
    st.caption(plain(trial["help"]))
    entry, shown = st.columns([2, 5])
    with entry:
        value = _value(trial["kind"], f"{run['id']}-{name}")
    if value is None:
        return
    answer = _answered(run["id"], name, value)
    with shown:
        if "answers" not in answer:
            st.warning(plain(answer["reason"]), icon=":material/block:")
        else:
            charts.show(picture(study, answer["answers"]), key="trial-picture", title=sentence(answer["answers"]))


@st.cache_data(max_entries=32, show_spinner="Asking the networks")
def _answered(run: str, trial: str, value: Any) -> dict[str, Any]:
    return looker.ask(run, {"trial": trial, "value": value})


# ---- input, parsed as data only


def _value(kind: str, key: str) -> Any:
    if kind == "text":
        return st.text_input("Your text", key=f"{key}-text", max_chars=2000) or None
    if kind == "table":
        return _checked(table, st.file_uploader("A CSV file of numbers", type=["csv"], key=f"{key}-csv"))
    drawn = pad.draw(f"{key}-pad")
    with st.expander("Or upload a picture", icon=":material/upload:"):
        upload = st.file_uploader("A PNG or JPEG of one digit", type=["png", "jpg", "jpeg"], key=f"{key}-picture")
    return _checked(picture_file, upload) if upload is not None else drawn


def _checked(read, upload) -> Any:
    if upload is None:
        return None
    try:
        if upload.size > LARGEST:
            raise ValueError(f"the file has {upload.size:,} bytes; at most {LARGEST:,} are read")
        return read(upload.getvalue())
    except ValueError as error:
        st.error(plain(error), title="This file cannot be used", icon=":material/block:")
        return None


def picture_file(content: bytes) -> list[list[float]]:
    """A picture as 56 rows of grey in [0, 1], bright ink on dark; a bright page is turned. ValueError for anything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > 40_000_000:
                raise ValueError(f"the picture has {image.width} x {image.height} pixels; at most 40 million are read")
            grey = np.asarray(image.convert("L").resize((56, 56)), dtype=float) / 255
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError("it is no PNG or JPEG picture") from error
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.clip(1 - grey if np.median(edge) > 0.5 else grey, 0, 1)
    low, high = np.quantile(ink, [0.5, 1.0])
    return np.clip((ink - low) / max(high - low, 1e-6), 0, 1).round(3).tolist()


def table(content: bytes) -> list[list[float]]:
    """The numbers of a CSV file, a row a line; a heading is left out. ValueError names the first entry that is no number."""
    try:
        lines = [row for row in csv.reader(io.StringIO(content.decode("utf-8"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError("it is no CSV file in UTF-8") from error
    found = []
    for number, row in enumerate(lines, start=1):
        try:
            found.append([float(entry) for entry in row])
        except ValueError as error:
            if number > 1:
                raise ValueError(f"line {number}: {error}") from None
    if not 0 < len(found) <= ROWS:
        raise ValueError(f"it has {len(found)} rows of numbers; between 1 and {ROWS} are read")
    return found


# ---- answers


def picture(study: Study, answers: dict[str, dict[str, list[float]]]) -> go.Figure:
    """A bar for each answer and arm, the mean over its members, and a dot for each member."""
    palette = source.palette(study, pd.DataFrame({"arm": list(answers)}))
    options = _options(answers)
    figure = go.Figure()
    for arm, shares in answers.items():
        values = [shares.get(option, [0.0]) for option in options]
        figure.add_bar(x=options, y=[float(np.mean(v)) for v in values], name=arm, marker_color=palette.get(arm), opacity=0.75,
                       offsetgroup=arm, legendgroup=arm)  # fmt: skip
        many = [(option, share) for option, v in zip(options, values, strict=True) for share in v]
        figure.add_box(x=[o for o, _ in many], y=[s for _, s in many], offsetgroup=arm, legendgroup=arm, showlegend=False,
                       boxpoints="all", pointpos=0, jitter=0.3, fillcolor="rgba(0,0,0,0)", line_color="rgba(0,0,0,0)",
                       marker={"size": 4, "color": palette.get(arm), "line": {"width": 0.5, "color": "#888888"}}, name=arm,
                       hovertemplate=f"{arm}: %{{y:.2f}}<extra></extra>")  # fmt: skip
    figure.update_layout(barmode="group", boxmode="group", height=420, legend_orientation="h", legend_y=-0.25)
    figure.update_xaxes(title_text="answer", type="category").update_yaxes(title_text="share, mean of all members", range=[0, 1.02])
    return figure


def _options(answers: dict[str, dict[str, list[float]]], most: int = 12) -> list[str]:
    """The answers to draw: all, or those with the largest shares where there are many, in the order in which they came."""
    found = list(dict.fromkeys(option for shares in answers.values() for option in shares))
    weight = {o: max(float(np.mean(shares.get(o, [0.0]))) for shares in answers.values()) for o in found}
    kept = set(sorted(found, key=lambda o: -weight[o])[:most])
    return [option for option in found if option in kept]


def sentence(answers: dict[str, dict[str, list[float]]]) -> str:
    """What one sees: what the members of each arm say most, and how many of them agree; arms of one mind are named together."""
    told: dict[str, list[tuple[str, int, int]]] = {}
    for arm, shares in answers.items():
        votes = [max(shares, key=lambda option, k=k: shares[option][k]) for k in range(len(next(iter(shares.values()))))]
        first = max(dict.fromkeys(votes), key=votes.count)
        told.setdefault(first, []).append((arm, votes.count(first), len(votes)))
    parts = []
    for first, arms in told.items():
        who = f"All {len(arms)} arms" if len(arms) == len(answers) > 2 else ", ".join(arm for arm, _, _ in arms)
        agree, whole = sum(count for _, count, _ in arms), sum(count for _, _, count in arms)
        parts.append(f"{who} {'says' if len(arms) == 1 else 'say'} {first} ({agree} of {whole} members)")
    return "; ".join(parts)
